"""Weight and bias given per sample beside shared ones: the price of (N, C) and (N, 1, D).

    python bench/per_sample.py [--quick] [--threads N]

Each line is one shape: microseconds of the call with shared parameters, and the ratio of the call
with parameters per sample to it, of the same values; the two alternate, and the least time of each
counts, because other programs only ever add time.
"""

import argparse

import numpy as np
from masks import pairs

import cnorm
from cnorm import functional as F

IMAGES = [(64, 512, 7, 7), (64, 64, 14, 14), (8, 64, 14, 14), (16, 256, 32, 32), (32, 64, 56, 56)]
ROWS = [(8, 128, 768), (8, 16, 768), (64, 8, 256), (32, 64, 64), (64, 1, 768), (2, 1, 16)]


def array(rng, shape, last=False):
    if last:
        return np.moveaxis(array(rng, (shape[0], *shape[2:], shape[1])), -1, 1)
    return rng.standard_normal(shape, np.float32)


def channel_calls(name, x, dy, y, weight, bias):
    """Forward, backward and evaluation of a norm with parameters per channel; of (weight, bias)."""
    middle = (min(32, x.shape[1]),) if name == "group_norm" else (None, None)
    mode = {"training": True} if name == "batch_norm" else {}
    run, back = getattr(F, name), getattr(F, name + "_backward")
    _, *stats = run(x, *middle, weight, bias, return_stats=True, **mode)
    groups = middle if name == "group_norm" else ()
    yield "forward", lambda w, b: run(x, *middle, w, b, out=y, **mode)
    yield "backward", lambda w, b: back(dy, x, *groups, *stats, w, out=y)
    if name == "batch_norm":
        mean, var = (a.astype(np.float32) for a in stats)
        yield "evaluation", lambda w, b: run(x, mean, var, w, b, out=y)


def row_calls(name, x, dy, y, weight, bias):
    """Forward and backward of a norm with parameters per element of a row; of (weight, bias)."""
    n = x.shape[-1]
    run, back = getattr(F, name), getattr(F, name + "_backward")
    own = (lambda w, b: (w, b)) if name == "layer_norm" else (lambda w, b: (w,))
    _, *stats = run(x, n, *own(weight, bias), return_stats=True)
    yield "forward", lambda w, b: run(x, n, *own(w, b), out=y)
    yield "backward", lambda w, b: back(dy, x, n, *stats, w, out=y)


def cases(quick):
    """(name, shape, channels last, shape of the parameters per sample)."""
    for shape in IMAGES[:1] if quick else IMAGES:
        for last in (False, True):
            for name in ("batch_norm", "group_norm", "instance_norm"):
                yield name, shape, last, shape[:2]
    yield "batch_norm", (256, 128), False, (256, 128)
    for shape in ROWS[:2] if quick else ROWS:
        for name in ("layer_norm", "rms_norm"):
            yield name, shape, False, (shape[0], 1, shape[2])


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one shape of images and two of rows")
    parser.add_argument("--seconds", type=float, default=0.4, help="of each pair")
    parser.add_argument("--threads", type=int, help="at most so many, instead of all")
    options = parser.parse_args()
    if options.threads:
        cnorm.set_num_threads(options.threads)
    rng = np.random.default_rng(0)
    print(f"{cnorm.get_num_threads()} threads; microseconds with shared parameters, and the ratio")
    for name, shape, last, of_sample in cases(options.quick):
        x, dy, y = (array(rng, shape, last) for _ in range(3))
        shared = array(rng, of_sample[-1:]), array(rng, of_sample[-1:])
        each = [np.ascontiguousarray(np.broadcast_to(p, of_sample)) for p in shared]
        calls = row_calls if len(of_sample) == 3 else channel_calls
        found = []
        for kind, call in calls(name, x, dy, y, *shared):
            one, other = pairs(
                lambda call=call, p=shared: call(*p),
                lambda call=call, p=each: call(*p),
                options.seconds,
            )
            found.append(f"{kind} {one:8.1f} {other / one:5.2f}x")
        layout = ", channels last" if last else ""
        print(f"{name} {'x'.join(map(str, shape)) + layout:<30}{'   '.join(found)}", flush=True)


if __name__ == "__main__":
    main()
