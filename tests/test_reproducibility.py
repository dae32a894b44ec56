"""The same bits from every build, any number of threads, alone or in a batch, from any view."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import digests
import numpy as np
import pytest
from layouts import (
    batch_strided,
    byte_swapped,
    channels_last,
    channels_last_cropped,
    contiguous,
    cropped,
    negative,
    read_only,
    scattered,
    unaligned,
)
from operations import OPERATIONS, accumulation
from team import team

import cnorm
import cnorm.functional as F
from cnorm import _dispatch

THREADS = (1, 2, 3, 5, 8)


@functools.cache
def _digests_here():
    return digests.digests()


def _digests_of(build, *threads):
    """In a process of its own, by the environment variable that a user has."""
    tests = Path(__file__).parent
    environment = os.environ | {
        "CNORM_ISA": build,
        "PYTHONPATH": os.pathsep.join([str(tests), *filter(None, sys.path)]),
    }
    command = [sys.executable, str(tests / "digests.py"), *threads]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_build_and_number_of_threads_gives_the_same_bits(whole):
    """Without --whole each case on one thread and on another number of them."""
    expected = _digests_here()
    one, *others = map(str, THREADS)
    if not whole:
        others = [f"{n}:{i}/{len(others)}" for i, n in enumerate(others)]
    for build in _dispatch.available():
        alone, *parts = _digests_of(build, one, *others).values()
        assert not digests.differing(alone, expected), f"{build}, 1 thread"
        for threads, found in zip(others, parts, strict=True):
            known = {key: expected[key] for key in found} if ":" in threads else expected
            assert not digests.differing(found, known), f"{build}, {threads} threads"
        assert set().union(*parts) == set(expected)


def test_the_bits_are_those_of_the_last_release():
    """Where they should change: ``python tests/digests.py --write``, and a word in CHANGELOG."""
    golden = json.loads(digests.GOLDEN.read_text())
    found = digests.portable(_digests_here())
    assert set(found) == set(golden)
    assert not digests.differing(found, golden)


def _assert_same_bits(actual, expected, what):
    assert actual.dtype == expected.dtype
    if actual.tobytes() != expected.tobytes():
        wrong = np.argwhere(actual != expected)
        raise AssertionError(f"{what}: {len(wrong)} elements differ, first at {wrong[:1]}")


ALONE = [operation for operation in OPERATIONS if not operation.mixes_samples]


@pytest.mark.grid(4)
@pytest.mark.parametrize("operation", ALONE, ids=str)
def test_a_sample_alone_and_in_any_batch_at_any_position(build, operation, dtype, rng):
    """Batches on both sides of where threads come in."""
    for shape in [(24, 6, 33), (24, 12, 12, 11), (24, 6)]:
        if not operation.accepts((1, *shape[1:]), 1):
            continue
        for layout in (contiguous, channels_last):
            x, dy = rng.normal(size=(2, *shape)).astype(dtype)
            p = operation.draw(rng, shape, 1, accumulation(dtype))
            whole = _results(operation, layout(x), layout(dy), p)
            for part in (slice(0, 1), slice(23, 24), slice(7, 10), slice(None, None, -1)):
                q = {k: v[part] if np.shape(v) == shape else v for k, v in p.items()}
                alone = _results(operation, layout(x[part]), layout(dy[part]), q)
                for name in ("y", "grad_input"):
                    what = f"{name} of {operation} {shape} {layout.__name__} {part}"
                    _assert_same_bits(alone[name], whole[name][part], what)


def _results(operation, x, dy, p):
    results = operation.run(F, x, dy, p)
    return {name: np.ascontiguousarray(results[name]) for name in ("y", "grad_input")}


@pytest.mark.parametrize("norm", [F.layer_norm, F.rms_norm])
def test_a_row_alone_and_in_a_matrix(build, norm, dtype, rng):
    for length in (1, 5, 16, 33, 64, 65, 768, 2049, 5000):
        x = rng.normal(size=(131, length)).astype(dtype)
        w = np.linspace(0.5, 2, length).astype(accumulation(dtype))
        for weight in (None, w):
            whole = norm(x, length, weight)
            for i in (0, 1, 18, 63, 64, 65, 130):
                _assert_same_bits(norm(x[i], length, weight), whole[i], f"row {i} of {length}")


VIEWS = [
    (contiguous, (cropped, batch_strided, negative, scattered, byte_swapped, unaligned, read_only)),
    (channels_last, (channels_last_cropped,)),
]


@pytest.mark.grid(6)
@pytest.mark.parametrize("megabytes", [18, 24, 40])  # prefetched backward, forward; streamed
@pytest.mark.parametrize("length", [523, 1003])
def test_a_channel_alone_and_beside_others_in_a_large_batch(build, dtype, rng, length, megabytes):
    """Samples of a channel then lie apart: they are asked for ahead, and stored past the cache."""
    channels = 16
    samples = megabytes * 10**6 // (2 * channels * length * dtype.itemsize)
    x, dy = rng.standard_normal((2, samples, channels, length), np.float32).astype(dtype)
    w = np.linspace(0.5, 2, channels).astype(accumulation(dtype))
    y, mean, rstd = F.batch_norm(x, None, None, w, w, training=True, return_stats=True)
    dx, dw, db = F.batch_norm_backward(dy, x, mean, rstd, w)
    for c in range(channels):
        one, d_one = (np.ascontiguousarray(a[:, c : c + 1]) for a in (x, dy))
        at = slice(c, c + 1)
        alone = F.batch_norm(one, None, None, w[at], w[at], training=True, return_stats=True)
        for found, expected in zip((y[:, at], mean[at], rstd[at]), alone, strict=True):
            _assert_same_bits(found, expected, f"channel {c}")
        alone = F.batch_norm_backward(d_one, one, mean[at], rstd[at], w[at])
        for found, expected in zip((dx[:, at], dw[at], db[at]), alone, strict=True):
            _assert_same_bits(found, expected, f"gradient of channel {c}")


@pytest.mark.grid(6)
@pytest.mark.parametrize("samples", [1, 3, 200])
@pytest.mark.parametrize("length", [2, 16, 49, 100, 1003])
def test_a_channel_alone_and_among_small_images(build, dtype, rng, length, samples):
    """Many channels of small images are taken a band at a time."""
    channels = max(3000 // length, 9)
    x, dy = rng.standard_normal((2, samples, channels, length), np.float32).astype(dtype)
    x[:, 3] += 100
    w, b, slopes = np.linspace([0.5, -1, -0.3], [2, 1, 0.4], channels).T.astype(accumulation(dtype))
    given = (np.full(channels, 0.1), np.full(channels, 0.7))

    def run(x, dy, at, slope):
        w_, b_ = np.ascontiguousarray(w[at]), np.ascontiguousarray(b[at])
        how = {"return_stats": True, "negative_slope": slope}
        training = F.batch_norm(x, None, None, w_, b_, training=True, **how)
        evaluated = F.batch_norm(x, given[0][at], given[1][at], w_, b_, **how)
        alone = F.instance_norm(x, None, None, w_, b_, **how)
        how = {"bias": b_, "negative_slope": slope}
        return (
            *training,
            *evaluated,
            *alone,
            *F.batch_norm_backward(dy, x, *training[1:], w_, **how),
            *F.batch_norm_backward(dy, x, *evaluated[1:], w_, training=False, **how),
            *F.instance_norm_backward(dy, x, *alone[1:], w_, **how),
        )

    for slope in (None, slopes):
        for threads in (1, 2, 8):
            with team(threads):
                whole = run(x, dy, slice(None), slope)
            for c in (0, 3, channels // 2, channels - 1):
                at = slice(c, c + 1)
                one, d_one = (np.ascontiguousarray(a[:, at]) for a in (x, dy))
                alone = run(one, d_one, at, None if slope is None else slopes[at])
                for i, (found, expected) in enumerate(zip(whole, alone, strict=True)):
                    found = found[:, at] if found.ndim > 1 else found[at]
                    _assert_same_bits(found, expected, f"array {i}, channel {c}, {threads} threads")


@pytest.mark.parametrize(("layout", "views"), VIEWS, ids=["contiguous", "channels-last"])
def test_views_of_the_same_values(build, operation, layout, views, rng):
    for dtype in (np.dtype(np.float32), np.dtype(np.float16)):
        for shape in [(5, 6, 11, 17), (3, 6, 4, 3), (3, 1, 4, 3)]:
            if not operation.accepts(shape, 1):
                continue
            x, dy = rng.normal(size=(2, *shape)).astype(dtype)
            p = operation.draw(rng, shape, 1, accumulation(dtype))
            expected = operation.run(F, layout(x), layout(dy), p)
            for view in views:
                actual = operation.run(F, view(x), view(dy), p)
                for name in set(expected) - {"stats"}:
                    what = f"{name} of {operation} {dtype} {shape} {view.__name__}"
                    a, e = (np.ascontiguousarray(r[name]) for r in (actual, expected))
                    _assert_same_bits(a, e, what)


def test_a_channel_axis_is_a_transposed_view(build, operation, rng):
    if operation.by_channel:
        x, dy = rng.normal(size=(2, 5, 11, 17, 12)).astype(np.float32)
        p = operation.draw(rng, x.shape, -1, np.float32)
        as_it_is = operation.run(F, x, dy, p, axis=-1)
        views = (np.moveaxis(a, -1, 1) for a in (x, dy))
        viewed = operation.run(F, *views, p)
        for name in ("y", "grad_input"):
            viewed[name] = np.moveaxis(viewed[name], 1, -1)
        for name in set(viewed) - {"stats"}:
            _assert_same_bits(as_it_is[name], viewed[name], f"{name} of {operation}")


def test_where_the_result_goes_changes_nothing(build, operation, rng):
    x = rng.normal(size=(5, 6, 11, 17)).astype(np.float32)
    p = operation.draw(rng, x.shape, 1, np.float32)

    def forward(**options):
        q = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in p.items()}
        return operation.forward(F, x, q, **options)[0]

    expected = forward()
    for layout in (contiguous, channels_last, cropped, scattered):
        out = layout(np.zeros_like(x))
        _assert_same_bits(np.ascontiguousarray(forward(out=out)), expected, layout.__name__)
    _assert_same_bits(forward(out=x), expected, "in place")


def _at(a, place):
    """A copy that begins so many bytes into a line of memory."""
    memory = np.empty(a.nbytes + 128, np.uint8)
    begin = -memory.ctypes.data % 64 + place
    view = memory[begin : begin + a.nbytes].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


@pytest.mark.grid(3)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16], ids=lambda t: t.__name__)
def test_where_arrays_begin_changes_nothing(build, operation, dtype, rng):
    """Loads and stores go across lines of memory in one place and not in another."""
    step = np.dtype(dtype).itemsize
    shapes = [
        (5, 6, 11, 31),
        (3, 6, 300),
        (7, 301),
        (6, 768),
        (33, 768),
        (33, 300),
        (67, 64),
        (401, 12),
    ]
    for shape in shapes:
        if not operation.accepts(shape, 1):
            continue
        x, dy = rng.normal(size=(2, *shape)).astype(dtype)
        p = operation.draw(rng, shape, 1, accumulation(np.dtype(dtype)))
        expected = operation.run(F, _at(x, 0), _at(dy, 0), p)
        for places in [
            (16, 0, 0),
            (0, 16, 16),
            (16, 16, 16),
            (48, 32, step),
            (3 * step, 5 * step, 60 // step * step),
        ]:
            actual = operation.run(F, _at(x, places[0]), _at(dy, places[1]), p)
            out = _at(np.zeros_like(x), places[2])
            q = {k: _at(v, places[0]) if isinstance(v, np.ndarray) else v for k, v in p.items()}
            actual["y"], *stats = operation.forward(F, _at(x, places[0]), q, out=out)
            out = _at(np.zeros_like(x), places[2])
            grads = operation.backward(F, _at(dy, places[1]), _at(x, places[0]), stats, q, out=out)
            into_out = grads[0] if isinstance(grads, tuple) else grads
            what = f"grad_input of {operation} {shape} into out at {places}"
            _assert_same_bits(np.ascontiguousarray(into_out), expected["grad_input"], what)
            for name in set(expected) - {"stats"}:
                what = f"{name} of {operation} {shape} at {places}"
                _assert_same_bits(np.ascontiguousarray(actual[name]), expected[name], what)


@pytest.mark.grid(3)
@pytest.mark.parametrize("rest", [0, 1])  # whether all rows come to a line after as many elements
def test_a_result_past_the_cache_wherever_its_rows_begin(build, dtype, rng, rest):
    columns = 4224 // dtype.itemsize + rest
    rows = 17 * 10**6 // (columns * dtype.itemsize)
    x, dy = rng.standard_normal((2, rows, columns), np.float32).astype(dtype)
    w = np.linspace(0.5, 2, columns).astype(accumulation(dtype))
    _, mean, rstd = F.layer_norm(x, columns, return_stats=True)
    _, down, inverse = F.batch_norm(x, None, None, training=True, return_stats=True)
    rows_grad = (dy, x, columns, mean, rstd, w)
    columns_grad = (dy, x, down, inverse, w)
    calls = {
        "layer_norm": lambda out: F.layer_norm(x, columns, w, w, out=out),
        "its gradient": lambda out: F.layer_norm_backward(*rows_grad, out=out)[0],
        "batch_norm": lambda out: F.batch_norm(x, None, None, w, w, training=True, out=out),
        "in evaluation": lambda out: F.batch_norm(x, down, inverse, w, w, out=out),
        "gradient of batch_norm": lambda out: F.batch_norm_backward(*columns_grad, out=out)[0],
    }
    places = [_at(np.empty_like(x), place) for place in (0, 16, 48, dtype.itemsize)]
    for name, call in calls.items():
        expected = call(places[0])
        for out in places[1:]:
            out.fill(np.nan)
            _assert_same_bits(call(out), expected, name)


@pytest.mark.grid(4)
@pytest.mark.parametrize("rows", [37, 600, pytest.param(2100, marks=pytest.mark.whole)])
@pytest.mark.parametrize("columns", [300, 700, 2500])
def test_columns_summed_by_whole_rows_or_by_strips(build, dtype, rng, rows, columns):
    """How many threads there are decides; some columns are summed again, or in double."""
    x, dy = rng.standard_normal((2, rows, columns), np.float32).astype(dtype)
    x[:, 7] += 100
    x[rows // 4 :, 270] = 3e4
    if dtype.itemsize >= 4:
        x[:, 290] *= 1e25
    w, b, slopes = np.linspace([0.5, -1, -0.3], [2, 1, 0.4], columns).T.astype(accumulation(dtype))
    cropped_x, cropped_dy = (np.pad(a, ((0, 0), (3, 2)))[:, 3:-2] for a in (x, dy))

    def run(x, dy, slope, place):
        out, grad = (_at(np.empty((rows, columns), dtype), place) for _ in range(2))
        y, *stats = F.batch_norm(
            x, None, None, w, b, True, out=out, return_stats=True, negative_slope=slope
        )
        back = F.batch_norm_backward(dy, x, *stats, w, bias=b, negative_slope=slope, out=grad)
        return (y, *stats, *back)

    for slope in (None, slopes):
        with cnorm.num_threads(1):
            expected = run(x, dy, slope, 0)
        for threads in (1, 2, 3, 8):
            with team(threads):
                for place in (0, 16, dtype.itemsize):
                    others = [run(x, dy, slope, place), run(cropped_x, cropped_dy, slope, place)]
                    for other in others:
                        for i, (found, wanted) in enumerate(zip(other, expected, strict=True)):
                            what = f"array {i}, {threads} threads, results {place} bytes on"
                            _assert_same_bits(found, wanted, what)


def test_threads_change_nothing_in_this_process(operation, rng):
    for shape in [(16, 12, 30, 11), (12, 64, 7, 7), (1000, 48)]:
        if operation.accepts(shape, 1):
            x, dy = rng.normal(size=(2, *shape)).astype(np.float32)
            p = operation.draw(rng, shape, 1, np.float32)
            found = []
            for n in THREADS:
                with team(n):
                    found.append(digests.digest(operation.run(F, x, dy, p)))
            assert len(set(found)) == 1, shape
