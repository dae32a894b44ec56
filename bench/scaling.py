"""Time per element from a thousand elements to a hundred million, by number of threads.

    python bench/scaling.py --write docs      # prints a table, writes docs/scaling.svg

A call that scales well has a flat curve between the steps of the caches, and its curve on all
threads lies below the one on a single thread by the number of threads.
"""

import argparse
from pathlib import Path

import numpy as np
from implementations import available_threads, bound, timer
from tqdm import tqdm

import cnorm
import cnorm.functional as F

SIZES = [2**i for i in range(10, 28)]  # elements of the input
ROW = 512


def layer_norm(size):
    shape = (size // ROW, ROW)
    x, dy, weight, bias = arrays(shape, ROW)
    _, *stats = F.layer_norm(x, ROW, weight, bias, return_stats=True)
    return (
        bound(F.layer_norm, x, ROW, weight, bias, out=np.ones_like(x)),
        bound(F.layer_norm_backward, dy, x, (ROW,), *stats, weight, out=np.ones_like(x)),
    )


def batch_norm(size):
    x, dy, weight, bias = arrays((8, 32, size // 256), 32)
    forward = (x, None, None, weight, bias, True)
    _, *stats = F.batch_norm(*forward, return_stats=True)
    return (
        bound(F.batch_norm, *forward, out=np.ones_like(x)),
        bound(F.batch_norm_backward, dy, x, *stats, weight, out=np.ones_like(x)),
    )


def arrays(shape, parameters):
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal(shape, np.float32) for _ in range(2))
    return x, dy, np.ones(parameters, np.float32), np.zeros(parameters, np.float32)


def seconds(call, at_least=0.02, repeats=5):
    """Return the best time per call of a few batches."""
    timing = timer(call)
    number = 1
    while (elapsed := timing.timeit(number)) < at_least and number < 2**16:
        number *= 2
    return min([elapsed, *timing.repeat(repeats, number)]) / number


def measure(sizes, threads):
    """Return {(norm, direction, threads): [nanoseconds per element]}."""
    found = {}
    for size in tqdm(sizes, unit="size"):
        for norm in (layer_norm, batch_norm):
            for direction, call in zip(("forward", "backward"), norm(size), strict=True):
                for n in threads:
                    with cnorm.num_threads(n, policy="fixed"):
                        time = 1e9 * seconds(call) / size
                    found.setdefault((norm.__name__, direction, n), []).append(time)
    return found


def print_table(sizes, found):
    print("nanoseconds per element, float32, with out=")
    print(f"{'elements':>12}", *(f"{a[:5]} {b[:4]} {n}T".rjust(13) for a, b, n in found))
    for i, size in enumerate(sizes):
        print(f"{size:12,}", *(f"{times[i]:13.3f}" for times in found.values()))


def draw(sizes, found, path):
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "cnorm"  # the same file from the same numbers
    import matplotlib.pyplot as plt

    norms = ["layer_norm", "batch_norm"]
    figure, grid = plt.subplots(2, 2, figsize=(9, 6), sharex=True, sharey=True)
    for (norm, direction, threads), times in found.items():
        axes = grid[norms.index(norm), int(direction == "backward")]
        label = f"{threads} thread{'s' * (threads > 1)}"
        axes.loglog(sizes, times, ".-", label=label)
        axes.set_title(f"{norm}, {direction}", fontsize=11)
        axes.spines[["right", "top"]].set_visible(False)
        axes.grid(color="#eeeeee")
    for axes in grid[1]:
        axes.set_xlabel("elements (float32)")
    for axes in grid[:, 0]:
        axes.set_ylabel("ns per element")
    grid[0, 0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", metavar="DIR", help="write scaling.svg")
    parser.add_argument("--largest", type=float, default=SIZES[-1], help="elements")
    args = parser.parse_args(argv)
    sizes = [size for size in SIZES if size <= args.largest]
    found = measure(sizes, sorted({1, available_threads()}))
    print_table(sizes, found)
    if args.write:
        draw(sizes, found, Path(args.write) / "scaling.svg")


if __name__ == "__main__":
    main()
