"""Masked norms beside the unmasked call, a parallel copy, NumPy's and torch's own lines.

    python bench/masks.py [--quick] [--only TEXT]

Each line is one shape and one kind of mask: microseconds of the masked call, and its ratio to the
unmasked call of the same run; the two alternate, and the least time of each counts, because other
programs only ever add time. The mask is made outside the clock.
"""

import argparse
import time
from functools import partial

import numpy as np

import cnorm
from cnorm import functional as F


def pairs(first, second, seconds):
    """The least time of each of two calls that alternate, in microseconds."""
    best = [np.inf, np.inf]
    until = time.perf_counter() + seconds
    rounds = 0
    while time.perf_counter() < until or rounds < 3:
        for i, call in enumerate((first, second)):
            begin = time.perf_counter()
            call()
            best[i] = min(best[i], time.perf_counter() - begin)
        rounds += 1
    return [1e6 * t for t in best]


def kinds(shape, rows, rng):
    """Masks of a shape (N, C, L), or (N, T, D) of rows."""
    n, _, last = shape
    if rows:
        tokens = shape[1]
        lengths = rng.integers(9 * tokens // 10, tokens + 1, (n, 1, 1))
        yield "tokens, 5 % padding", np.arange(tokens)[:, None] < lengths
        yield (
            "tokens, half padding",
            np.arange(tokens)[:, None] < rng.integers(1, tokens, (n, 1, 1)),
        )
        yield "tokens left out at random", rng.random((n, tokens, 1)) < 0.8
        full = np.broadcast_to(
            np.arange(last) < rng.integers(last // 2, last + 1, (n, tokens, 1)), shape
        )
        yield "full-size prefixes", np.ascontiguousarray(full)
        yield "the last tenth of the row", np.arange(last) < last * 9 // 10
    else:
        yield "5 % padding", np.arange(last) < rng.integers(9 * last // 10, last + 1, (n, 1, 1))
        yield "half padding", np.arange(last) < rng.integers(1, last, (n, 1, 1))
        yield "positions at random", rng.random((n, 1, last)) < 0.8
        full = np.arange(last) < rng.integers(last // 2, last + 1, (n, 1, 1))
        yield "full-size prefixes", np.ascontiguousarray(np.broadcast_to(full, shape))
    yield "elements at random", rng.random(shape) < 0.8


def numpy_batch_norm(x, where):
    axes = (0, 2)
    mean = x.mean(axes, where=where, keepdims=True)
    var = x.var(axes, where=where, keepdims=True)
    return np.where(where, (x - mean) / np.sqrt(var + 1e-5), 0)


def numpy_layer_norm(x, where):
    with np.errstate(all="ignore"):
        mean = x.mean(-1, where=where, keepdims=True)
        var = x.var(-1, where=where, keepdims=True)
        return np.where(where, (x - mean) / np.sqrt(var + 1e-5), 0)


def torch_lines(x, where, rows):
    """What people write in torch: sums of products with the mask; None without torch."""
    try:
        import torch
    except ModuleNotFoundError:
        return None
    a, m = torch.from_numpy(x), torch.from_numpy(np.broadcast_to(where, x.shape).astype(np.float32))
    axes = (-1,) if rows else (0, 2)

    def call():
        n = m.sum(axes, keepdim=True).clamp(min=1)
        mean = (a * m).sum(axes, keepdim=True) / n
        d = (a - mean) * m
        return d / torch.sqrt((d * d).sum(axes, keepdim=True) / n + 1e-5)

    return call


def cases(quick):
    yield "batch_norm", (64, 256, 512), False
    yield "layer_norm", (32, 256, 768), True
    if not quick:
        yield "instance_norm", (64, 256, 512), False
        yield "group_norm", (64, 256, 512), False
        yield "rms_norm", (32, 256, 768), True
        yield "batch_norm, channels last", (64, 256, 512), False
        yield "batch_norm", (8, 16, 20), False
        yield "layer_norm", (4, 8, 32), True


def calls(name, x, rng):
    """(forward, backward) that take `where`."""
    if name in ("layer_norm", "rms_norm"):
        weight, bias = np.ones((2, x.shape[-1]), np.float32)
        parameters = (weight, bias) if name == "layer_norm" else (weight,)
        run, back = getattr(F, name), getattr(F, name + "_backward")
        dy = rng.normal(size=x.shape).astype(np.float32)
        _, *stats = run(x, x.shape[-1], *parameters, return_stats=True)
        return (
            lambda where=None: run(x, x.shape[-1], *parameters, where=where),
            lambda where=None: back(dy, x, x.shape[-1], *stats, weight, where=where),
        )
    name, last = name.split(",")[0], "last" in name
    if last:
        x = np.ascontiguousarray(x.transpose(0, 2, 1)).transpose(0, 2, 1)
    dy = rng.normal(size=x.shape).astype(np.float32)
    dy = np.ascontiguousarray(dy.transpose(0, 2, 1)).transpose(0, 2, 1) if last else dy
    weight, bias = np.ones((2, x.shape[1]), np.float32)
    options = {"weight": weight, "bias": bias}
    middle = ()
    if name == "batch_norm":
        options["training"] = True
    if name == "group_norm":
        middle = (32,)
    run, back = getattr(F, name), getattr(F, name + "_backward")
    _, *stats = run(x, *middle, return_stats=True, **options)
    return (
        lambda where=None: run(x, *middle, where=where, **options),
        lambda where=None: back(dy, x, *middle, *stats, weight, where=where),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two shapes, half a second a pair")
    parser.add_argument(
        "--only", default="", help="lines that contain this, as `rms_norm 32` or `half padding`"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="of each pair")
    options = parser.parse_args()
    seconds = 0.4 if options.quick else options.seconds
    rng = np.random.default_rng(0)
    print(f"{cnorm.get_num_threads()} threads; microseconds, and ratio to the unmasked call")
    print(f"{'':<58}{'forward':>18}{'backward':>18}")
    for name, shape, rows in cases(options.quick):
        lines = [
            f"{name} {'x'.join(map(str, shape))}, {k}"
            for k, _ in kinds(shape, rows, np.random.default_rng(0))
        ]
        if not any(options.only in line for line in lines):
            continue
        x = rng.normal(size=shape).astype(np.float32)
        forward, backward = calls(name, x, rng)
        for kind, where in kinds(shape, rows, rng):
            line = f"{name} {'x'.join(map(str, shape))}, {kind}"
            if options.only not in line:
                continue
            found = []
            for call in (forward, backward):
                plain, masked = pairs(call, lambda call=call, w=where: call(w), seconds)
                found.append(f"{masked:>11.0f} {masked / plain:>5.2f}x")
            print(f"{line:<58}{found[0]:>18}{found[1]:>18}", flush=True)
        if x.size > 1 << 20 and not options.only:
            where = next(iter(kinds(shape, rows, rng)))[1]
            own = numpy_layer_norm if rows else numpy_batch_norm
            plain, other = pairs(forward, partial(own, x, where), seconds)
            print(
                f"  unmasked {plain:.0f}; NumPy's lines, first mask {other:.0f} "
                f"{other / plain:.1f}x"
            )
            if (call := torch_lines(x, where, rows)) is not None:
                plain, other = pairs(forward, call, seconds)
                print(f"  torch's lines, first mask {other:.0f} {other / plain:.1f}x")
            into = np.empty_like(x)
            plain, other = pairs(forward, partial(np.copyto, into, x), seconds)
            print(f"  NumPy's copy, one thread {other:.0f} {other / plain:.2f}x", flush=True)


if __name__ == "__main__":
    main()
