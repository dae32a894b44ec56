"""Normalize two photographs with each norm, and draw what happened.

The photographs are the two that ship inside scikit-learn. They stay as they are in memory,
(sample, height, width, channel): ``channel_axis=-1`` tells a norm where the channels are.

    python examples/quickstart.py            # prints a table, writes quickstart.png
"""

import argparse
import time
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_sample_images

import cnorm

H, W, C = 1, 2, 3  # the axes of a batch of photographs; axis 0 is the photograph
EPS = 1e-5


class Panel(NamedTuple):
    """One column of the picture: a norm, and what it does in plain words."""

    title: str
    shares: str  # the pixels that share one mean and one standard deviation
    effect: str  # what that does to a photograph
    axes: tuple | None  # the axes that the same formula averages over in NumPy
    norm: object  # photographs -> photographs


def load_photographs():
    """Return the two photographs as one float32 batch, (2, 427, 640, 3), from 0 to 1."""
    return np.stack(load_sample_images().images).astype(np.float32) / 255


def make_panels(photographs):
    """Return the norms, in the order they are shown."""
    batch = cnorm.BatchNorm2d(3, momentum=None, channel_axis=-1)
    batch(photographs)  # training: use the batch's own statistics, and remember them
    remembers = cnorm.BatchNorm2d(3, channel_axis=-1).eval()
    remembers.load_state_dict(batch.state_dict())

    def one_at_a_time(x):
        return np.concatenate([remembers(photograph[np.newaxis]) for photograph in x])

    return [
        Panel(
            "BatchNorm2d, train",
            "each colour, both photos",
            "darker photo stays darker",
            (0, H, W),
            batch,
        ),
        Panel(
            "BatchNorm2d, eval",
            "remembered from training",
            "same, one photo at a time",
            None,
            one_at_a_time,
        ),
        Panel(
            "InstanceNorm2d",
            "each colour, each photo",
            "exposure and tint gone",
            (H, W),
            cnorm.InstanceNorm2d(3, channel_axis=-1),
        ),
        Panel(
            "GroupNorm(1)",
            "each photo, colours together",
            "exposure gone, tint stays",
            (H, W, C),
            cnorm.GroupNorm(1, 3, channel_axis=-1),
        ),
        Panel(
            "LayerNorm",
            "each pixel, on its own",
            "light and shade gone",
            (C,),
            cnorm.LayerNorm(3),
        ),
    ]


def numpy_norm(x, axes):
    """The same formula in NumPy."""
    mean = x.mean(axes, keepdims=True)
    return (x - mean) / np.sqrt(x.var(axes, keepdims=True) + np.float32(EPS))


def milliseconds(function, *args, repeats=7):
    """Return the best time of a few calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function(*args)
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def numbers(values):
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    return " ".join(f"{round(float(value), 2) + 0.0:5.2f}" for value in values)


def print_table(photographs, panels, results):
    """Print mean and standard deviation of red, green and blue, and the time beside NumPy's."""
    print(f"\n{'':20} {'':6}  {'mean':^17}  {'std':^17}  {'cnorm':>7}  {'NumPy':>7}")
    print(f"{'':20} {'photo':6}  {'red green blue':^17}  {'red green blue':^17}")
    rows = [("before", None, photographs)]
    rows += [(p.title, p, y) for p, y in zip(panels, results, strict=True)]
    for title, panel, batch in rows:
        timing = ""
        if panel is not None:
            panel.norm(photographs)  # the first call warms up
            timing = f"  {milliseconds(panel.norm, photographs):4.1f} ms"
            if panel.axes is not None:
                timing += f"  {milliseconds(numpy_norm, photographs, panel.axes):4.1f} ms"
        for name, photo in zip(("temple", "flower"), batch, strict=True):
            mean, std = photo.mean((0, 1), np.float64), photo.std((0, 1), np.float64)
            print(f"{title:20} {name:6}  {numbers(mean)}  {numbers(std)}{timing}")
            title = timing = ""


def draw(photographs, panels, results, path):
    """Write the picture: a column for each norm, its two photographs and their histograms."""
    columns = [("Before", "", "as the camera took them", photographs)]
    columns += [(p.title, p.shares, p.effect, y) for p, y in zip(panels, results, strict=True)]
    figure, grid = plt.subplots(
        4, len(columns), figsize=(3.1 * len(columns), 8.6), height_ratios=(3, 1.3, 3, 1.3)
    )
    for column, (title, shares, effect, batch) in enumerate(columns):
        normalized = column > 0
        low, high = (-2.2, 2.2) if normalized else (0, 1)
        for i, photo in enumerate(batch):
            picture, histogram = grid[2 * i, column], grid[2 * i + 1, column]
            picture.imshow(np.clip((photo - low) / (high - low), 0, 1))
            picture.set_axis_off()
            for channel, colour in enumerate(("#d62728", "#2ca02c", "#1f77b4")):
                values = photo[..., channel].ravel()
                bins = np.linspace(low, high, 81)
                histogram.hist(values, bins, histtype="step", color=colour, density=True)
                histogram.axvline(values.mean(), color=colour, linestyle=":", linewidth=1)
            histogram.set_xlim(low, high)
            histogram.set_yticks([])
            histogram.set_xticks([-2, -1, 0, 1, 2] if normalized else [0, 0.5, 1])
            histogram.spines[["left", "right", "top"]].set_visible(False)
        grid[0, column].set_title(
            f"$\\bf{{{title.replace(' ', '~')}}}$\n{shares}\n→ {effect}", fontsize=11
        )
    figure.suptitle(
        "A norm subtracts a mean and divides by a standard deviation. "
        "The norms differ in which pixels share them (second line of each title).\n"
        "Normalized photos: grey is 0, black -2.2, white 2.2.  "
        "Below each photo: histogram of red, green and blue; dotted: their means.",
        fontsize=12,
    )
    figure.tight_layout(rect=(0, 0, 1, 0.98))
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", default="quickstart.png", help="where the picture goes")
    args = parser.parse_args(argv)

    photographs = load_photographs()
    print(f"two photographs, {photographs.shape}, {photographs.dtype}")
    panels = make_panels(photographs)
    results = [panel.norm(photographs) for panel in panels]
    print_table(photographs, panels, results)

    print(
        "\nBatchNorm2d, eval, has the numbers of train, which it remembered: it took one "
        "photograph at a time."
    )

    # The same photographs seen as (sample, channel, height, width): a view, still no copy.
    first = photographs.transpose(0, 3, 1, 2)
    y = cnorm.InstanceNorm2d(3)(first)
    assert y.transpose(0, 2, 3, 1).flags.c_contiguous  # the result lies in memory as the input does
    print(
        f"InstanceNorm2d took channels first, {y.shape}, as a transposed view: nothing was copied."
    )

    draw(photographs, panels, results, args.picture)
    print(f"wrote {args.picture}")


if __name__ == "__main__":
    main()
