"""Layer and rms norm over any axes, parameters that differ from sample to sample, gains less 1."""

import itertools
import random

import numpy as np
import pytest
from layouts import batch_strided, byte_swapped, channels_last, contiguous, cropped, scattered
from operations import (
    CLIP,
    DTYPES,
    FURTHER_OPERATIONS,
    AddLayerNorm,
    AddRMSNorm,
    BatchNorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    RMSNorm,
    accumulation,
    check,
    oracle,
)
from schedule import STRATEGIES
from test_strategies import MACHINES, bits, kernels  # noqa: F401

import cnorm
import cnorm.functional as F
from cnorm import _dispatch

LAYOUTS = (contiguous, channels_last, cropped, batch_strided, scattered, byte_swapped)
SIZES = (1, 2, 3, 15, 16, 17, 33)


def axes_of(ndim):
    """Every choice of axes in every order."""
    return [a for k in range(1, ndim + 1) for a in itertools.permutations(range(ndim), k)]


def grid(draws):
    """(class, shape, axes, each, layout, dtype, slope), the same in every run."""
    pick = random.Random(0)
    for _ in range(draws):
        ndim = pick.choice((2, 3, 3, 4, 4, 5))
        shape = tuple(pick.choice(SIZES if i else SIZES[:4]) for i in range(ndim))
        while np.prod(shape) > 1 << 14:
            shape = tuple(min(n, pick.choice((2, 3, 17))) for n in shape)
        axes = pick.choice(axes_of(ndim))
        others = [i for i in range(ndim) if i not in axes]
        each = tuple(i for i in others if pick.random() < 0.4)
        fixed = {"axes": axes} | ({"each": each} if others and pick.random() < 0.7 else {})
        norm = pick.choice((LayerNorm, LayerNorm, RMSNorm, AddLayerNorm, AddRMSNorm))
        if "rms" in norm.function and pick.random() < 0.5:
            fixed["zero_centred"] = True
        slope = pick.choice((None, None, 0.1, "each", "clip"))
        yield norm(**fixed), shape, pick.choice(LAYOUTS), pick.choice(DTYPES), slope


def compare(operation, shape, layout, dtype, slope=None, axis=1):
    rng = np.random.default_rng(shape)
    x = layout(rng.normal(0.5, 1, shape).astype(dtype))
    dy = layout(rng.normal(size=shape).astype(dtype))
    p = operation.draw(rng, shape, axis, accumulation(dtype))
    if slope is not None:  # at the kink rounding decides: no value lies near it
        p = {k: np.copy(v) * 2 if k == "bias" else v for k, v in p.items()}
    epilogue = {"slope": slope}
    if slope == "clip":
        epilogue = {"clip": CLIP}
    elif slope == "each":
        epilogue = {"slope": rng.uniform(0.2, 0.9, shape[1]).astype(accumulation(dtype))}
    actual = operation.run(F, x, dy, p, axis=axis, **epilogue)
    expected = oracle(operation, x, dy, p, axis=axis, **epilogue)
    context = f"{operation} {shape} {dtype} {layout.__name__} slope {slope}"
    kinks = CLIP if slope == "clip" else () if slope is None else (0,)
    plain = oracle(operation, x, dy, p, axis=axis)["y"] if kinks else None
    if not any(np.abs(plain - kink).min(initial=1) < 1e-5 for kink in kinks):
        check(actual, expected, dtype, dy, context)
    return actual


def usable(operation, shape):
    """Rows of one or two values may be nearly constant: what rounding does then is not bounded."""
    axes = operation.fixed["axes"]
    return np.prod([shape[i] for i in axes]) > 2 or "rms" in operation.function


def test_any_axes_layouts_and_parameters():
    for operation, shape, layout, dtype, slope in grid(250):
        if usable(operation, shape):
            compare(operation, shape, layout, dtype, slope)


@pytest.mark.parametrize("operation", FURTHER_OPERATIONS, ids=str)
def test_sizes_around_lanes_and_blocks(operation, build):
    pick = random.Random(str(operation))
    shapes = [(3, 5, 1, 33), (2, 97, 17), (5, 40), (2, 600, 5, 7), (1, 3, 1100), (7, 33, 3), (4, 6)]
    for shape in shapes:
        for axis in (1, -1) if operation.by_channel else (1,):
            if operation.accepts(shape, axis):
                compare(operation, shape, pick.choice(LAYOUTS), pick.choice(DTYPES), axis=axis)


@pytest.mark.parametrize("operation", FURTHER_OPERATIONS, ids=str)
def test_threads_and_strategies_give_the_same_bits(operation, kernels):  # noqa: F811
    machines = itertools.cycle(MACHINES)
    rng = np.random.default_rng(0)
    for shape, layout in [((3, 40, 47, 29), contiguous), ((9, 33, 300), channels_last),
                          ((2, 20, 1500), contiguous), ((130, 70), contiguous),
                          ((12, 64, 5, 7), contiguous)]:  # fmt: skip
        if not operation.accepts(shape, 1):
            continue
        dtype = DTYPES[rng.integers(len(DTYPES))]
        x, dy = layout(rng.normal(size=shape).astype(dtype)), rng.normal(size=shape).astype(dtype)
        p = operation.draw(rng, shape, 1, accumulation(dtype))
        slopes = rng.uniform(0, 1, shape[1])
        epilogue = ({}, {"slope": slopes}, {"clip": CLIP})[rng.integers(3)]
        with cnorm.num_threads(1):
            expected = bits(operation.run(F, x, dy, p, **epilogue))
        for name, threads in zip(STRATEGIES, itertools.cycle((1, 2, 5)), strict=False):
            kernels.set_machine(*MACHINES[next(machines)])
            kernels.force_strategy(STRATEGIES[name])
            with cnorm.num_threads(threads):
                got = bits(operation.run(F, x, dy, p, **epilogue))
            kernels.force_strategy(0)
            wrong = [k for k in expected if got[k] != expected[k]]
            assert not wrong, f"{wrong} of {operation} {shape} {dtype}: {name} on {threads} threads"


def test_trailing_axes_are_the_default():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 4, 5, 6)).astype(np.float32)
    w = rng.normal(size=(5, 6)).astype(np.float32)
    y, mean, rstd = F.layer_norm(x, (5, 6), w, w, return_stats=True)
    for axis in ((2, 3), (-2, -1), [2, -1]):
        got = F.layer_norm(x, (5, 6), w, w, return_stats=True, axis=axis)
        assert [a.tobytes() for a in got] == [a.tobytes() for a in (y, mean, rstd)]
    y = F.rms_norm(x, 6, w[0])
    assert F.rms_norm(x, 6, w[0], axis=3).tobytes() == F.rms_norm(x, 6, w[0], axis=-1).tobytes()
    assert F.rms_norm(x, 6, w[0], axis=-1).tobytes() == y.tobytes()


@pytest.mark.parametrize("shape", [(3, 6, 5, 7), (4, 33, 70), (2, 64, 3, 3)])
def test_equal_rows_of_weight_give_the_bits_of_one(shape, dtype):
    rng = np.random.default_rng(0)
    x = rng.normal(1, 2, shape).astype(dtype)
    n, c = shape[:2]
    w, b = rng.normal(size=(2, c)).astype(accumulation(dtype))
    wide = [np.repeat(a[None], n, 0) for a in (w, b)]
    mean, var = np.zeros(c), np.ones(c)
    for layout, axis in ((contiguous, 1), (channels_last, 1), (contiguous, -1)):
        a = layout(x)
        a = a if axis == 1 else np.moveaxis(a, 1, -1)
        for call in (
            lambda w, b, a=a, axis=axis: F.batch_norm(a, None, None, w, b, True, channel_axis=axis),
            lambda w, b, a=a, axis=axis: F.batch_norm(a, mean, var, w, b, channel_axis=axis),
            lambda w, b, a=a, axis=axis: F.instance_norm(a, None, None, w, b, channel_axis=axis),
            lambda w, b, a=a, axis=axis: F.group_norm(a, 2 - c % 2, w, b, channel_axis=axis),
        ):
            expected = call(w, b).tobytes()
            assert call(*wide).tobytes() == expected
            assert call(w[None], wide[1]).tobytes() == expected
            assert call(w, wide[1]).tobytes() == expected
    rows = rng.normal(size=(2, shape[-1])).astype(accumulation(dtype))
    ones = (1,) * (len(shape) - 1)
    for lead in ((n, *ones[1:]), shape[:-1], (1, c, *ones[2:]), ones):
        each = [np.broadcast_to(a, (*lead, shape[-1])) for a in rows]
        expected = F.layer_norm(x, shape[-1], *rows).tobytes()
        assert F.layer_norm(x, shape[-1], *each).tobytes() == expected
        assert F.layer_norm(x, shape[-1], rows[0], each[1]).tobytes() == expected
    channels = rng.normal(size=(2, c)).astype(accumulation(dtype))
    for lead in (n, 1):
        each = [np.broadcast_to(a, (lead, c)).reshape(lead, c, *ones[2:], 1) for a in channels]
        expected = F.layer_norm(x, c, *channels, axis=1).tobytes()
        assert F.layer_norm(x, c, *each, axis=1).tobytes() == expected


def resolution(dtype):
    return float(np.finfo(dtype).eps)


def held(a, way):
    """The values of a parameter as users hold them: as they are, or so that a call must look."""
    if way == "strided":
        return np.repeat(a, 2, -1)[..., ::2]
    if way == "negative":
        flipped = (slice(None, None, -1),) * a.ndim
        return np.ascontiguousarray(a[flipped])[flipped]
    if way == "fortran":
        return np.asfortranarray(a)
    if way == "double":
        return a.astype(np.float64)
    if way == "half":
        return a.astype(np.float16)
    return byte_swapped(a) if way == "swapped" else a


WAYS = ("plain", "strided", "negative", "fortran", "double", "half", "swapped")


@pytest.mark.parametrize("d", [1, 2, 15, 16, 17, 33, 64, 130])
def test_rows_take_the_set_that_is_theirs(d, build):
    pick = random.Random(d)
    rng = np.random.default_rng(d)
    for n, m in [(1, 3), (3, 1), (5, 2), (2, 9), (70, 1), (3, 40)]:
        dtype = pick.choice(DTYPES)
        x, dy = rng.normal(1, 2, (2, n, m, d)).astype(dtype)
        shapes = [(n, 1, d), (1, m, d), (n, m, d), (1, 1, d), (d,)]
        pairs = list(itertools.product(shapes, repeat=2))
        for of_weight, of_bias in [*((shape, shape) for shape in shapes), *pick.sample(pairs, 4)]:
            w, b = (
                held(np.round(rng.normal(size=s), 2).astype(np.float16).astype(accumulation(dtype)),
                     pick.choice(WAYS))
                for s in (of_weight, of_bias)
            )  # fmt: skip
            full = [np.broadcast_to(p, x.shape) for p in (w, b)]
            slope = pick.choice((None, None, 0.1))
            y, mean, rstd = F.layer_norm(x, d, w, b, return_stats=True, negative_slope=slope)
            z = F.rms_norm(x, d, w, negative_slope=slope)
            dx, dw, db = F.layer_norm_backward(
                dy, x, d, mean, rstd, w, bias=b, negative_slope=slope
            )
            sums = np.zeros((2, *x.shape))
            for i, j in itertools.product(range(n), range(m)):
                own = [np.ascontiguousarray(p[i, j]) for p in full]
                row, *of_row = F.layer_norm(
                    x[i, j], d, *own, return_stats=True, negative_slope=slope
                )
                assert row.tobytes() == y[i, j].tobytes(), (n, m, of_weight, of_bias, i, j)
                row = F.rms_norm(x[i, j], d, own[0], negative_slope=slope)
                assert row.tobytes() == z[i, j].tobytes(), (n, m, of_weight, i, j)
                grad, *of_own = F.layer_norm_backward(
                    dy[i, j], x[i, j], d, *of_row, own[0], bias=own[1], negative_slope=slope
                )
                assert grad.tobytes() == dx[i, j].tobytes(), (n, m, of_weight, of_bias, i, j)
                sums[:, i, j] = of_own
            for got, total, shape in ((dw, sums[0], of_weight), (db, sums[1], of_bias)):
                assert got.shape == shape
                if len(shape) == 1:
                    total = total.sum((0, 1))
                else:
                    alike = tuple(k for k in (0, 1) if shape[k] == 1)
                    total = total.sum(alike, keepdims=True)
                eps = max(resolution(got.dtype), resolution(accumulation(dtype)))
                atol = 8 * eps * max(1, np.abs(sums).max() * n * m)
                np.testing.assert_allclose(got.astype(np.float64), total, rtol=8 * eps, atol=atol)


def by_formula(x, dy, w, given):
    """Gradients of batch norm with weights (N, C), in double; of statistics that are given."""
    x, dy = x.astype(np.float64), dy.astype(np.float64)
    axes, spatial = (0, *range(2, x.ndim)), tuple(range(2, x.ndim))
    wide = w.astype(np.float64).reshape(*w.shape, *(1 for _ in spatial))
    mean, rstd = x.mean(axes, keepdims=True), 1 / np.sqrt(x.var(axes, keepdims=True) + 1e-5)
    xhat, g = (x - mean) * rstd, dy * wide
    dx = g * rstd
    if not given:
        dx = rstd * (g - g.mean(axes, keepdims=True) - xhat * (g * xhat).mean(axes, keepdims=True))
    return dx, (dy * xhat).sum(spatial), dy.sum(spatial)


@pytest.mark.parametrize("c", [2, 15, 17, 31, 64, 300, 1100])
def test_samples_take_the_parameters_that_are_theirs(c, build):
    """Each has the bits that the call has with its parameters for all."""
    pick = random.Random(c)
    rng = np.random.default_rng(c)
    for n, *spatial in [(3,), (37,), (5, 1, 1), (4, 3, 3), (2, 7, 10), (33, 2)] * 2:
        layout = pick.choice((contiguous, channels_last, batch_strided, scattered))
        dtype = pick.choice(DTYPES)
        shape = (n, c, *spatial)
        x, dy = (layout(rng.normal(0.5, 1, shape).astype(dtype)) for _ in range(2))
        w, b = (
            np.round(rng.normal(size=(n, c)), 2).astype(np.float16).astype(accumulation(dtype))
            for _ in range(2)
        )
        slope = pick.choice((None, None, rng.uniform(0, 1, c)))
        training = pick.random() < 0.6
        _, mean, rstd = F.batch_norm(x, None, None, training=True, return_stats=True)
        var = 1 / rstd**2 - 1e-5
        given = (None, None) if training else (mean, var)
        mode = {"training": training, "negative_slope": slope}
        weight, bias = held(w, pick.choice(WAYS)), held(b, pick.choice(WAYS))
        if pick.random() < 0.3:
            bias, b = held(b[0], "strided"), np.broadcast_to(b[0], b.shape)
        y = F.batch_norm(x, *given, weight, bias, **mode)
        for i in {0, n // 2, n - 1}:
            alone = F.batch_norm(x, *given, np.ascontiguousarray(w[i]), b[i].copy(), **mode)
            assert alone[i].tobytes() == y[i].tobytes(), (shape, i)
        if slope is not None:
            continue
        grads = F.batch_norm_backward(dy, x, mean, rstd, weight, training=training, bias=bias)
        expected = by_formula(x, dy, w, not training)
        expected = (*expected[:2], expected[2].sum(0) if bias.ndim == 1 else expected[2])
        for got, wanted, like in zip(grads, expected, (x, weight, bias), strict=True):
            assert got.shape == like.shape and got.dtype == like.dtype.newbyteorder("=")
            eps = resolution(accumulation(dtype))
            eps = max(eps, 2**-8 if got.dtype.itemsize == 2 else resolution(got.dtype))
            scale = max(1, np.abs(wanted).max()) * max(1, np.prod(spatial) ** 0.5)
            np.testing.assert_allclose(
                got.astype(np.float64), wanted, rtol=0, atol=32 * eps * scale
            )


def test_parameters_per_sample_where_the_result_goes():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 40)).astype(np.float32)
    w, b = rng.normal(size=(2, 6, 40)).astype(np.float32)
    y = F.batch_norm(x, None, None, w, b, True)
    for which in (0, 1):
        own = [w.copy(), b.copy()]
        np.testing.assert_array_equal(F.batch_norm(x, None, None, *own, True, out=own[which]), y)
        memory = np.empty(x.size + 7, np.float32)
        own = [w, b]
        own[which] = memory[7:].reshape(x.shape)
        own[which][...] = (w, b)[which]
        out = memory[:-7].reshape(x.shape)
        np.testing.assert_array_equal(F.batch_norm(x, None, None, *own, True, out=out), y)
        rows, own = rng.normal(size=(2, 3, 40)).astype(np.float32), [w, b]
        own = [p.reshape(2, 3, 40).copy() for p in own]
        z = F.layer_norm(rows, 40, *own)
        np.testing.assert_array_equal(F.layer_norm(rows, 40, *own, out=own[which]), z)
    for shape in [(0, 40), (3, 0), (4, 5, 0)]:
        empty, p = np.ones(shape, np.float32), np.ones(shape[:2], np.float32)
        y, mean, rstd = F.batch_norm(empty, None, None, p, p, True, return_stats=True)
        dx, dw, db = F.batch_norm_backward(empty, empty, mean, rstd, p)
        assert y.shape == dx.shape == shape and dw.shape == db.shape == shape[:2]
        assert not dw.any() and not db.any()
    for shape in [(0, 2, 5), (2, 0, 5), (0, 0, 5)]:
        empty, p = np.ones(shape, np.float32), np.ones((shape[0], 1, 5), np.float32)
        y, mean, rstd = F.layer_norm(empty, 5, p, p, return_stats=True)
        dx, dw, db = F.layer_norm_backward(empty, empty, 5, mean, rstd, p)
        assert y.shape == dx.shape == shape and dw.shape == db.shape == p.shape
        assert not dw.any() and not db.any()


def test_gradients_have_the_shapes_of_the_parameters():
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(2, 3, 4, 5, 6))
    _, mean, rstd = F.layer_norm(x, 4, return_stats=True, axis=1)
    assert mean.shape == rstd.shape == (3, 1, 5, 6)
    for w, b in [((4,), (3, 4, 1, 1)), ((1, 4, 5, 6), (4,)), ((3, 4, 5, 6), (1, 4, 1, 1))]:
        w, b = rng.normal(size=w), rng.normal(size=b)
        _, dw, db = F.layer_norm_backward(dy, x, 4, mean, rstd, w, axis=1, bias=b)
        assert dw.shape == w.shape and db.shape == b.shape
        assert F.layer_norm_backward(dy, x, 4, mean, rstd, w, axis=1)[2].shape == w.shape
    _, mean, rstd = F.instance_norm(x, return_stats=True)
    for w, b in [((4,), (3, 4)), ((3, 4), (1, 4)), ((1, 4), (4,))]:
        w, b = rng.normal(size=w).astype(np.float16), rng.normal(size=b)
        _, dw, db = F.instance_norm_backward(dy, x, mean, rstd, w, bias=b)
        assert dw.shape == w.shape and db.shape == b.shape and dw.dtype == np.float16
        assert F.instance_norm_backward(dy, x, mean, rstd, w)[2].shape == w.shape


@pytest.mark.parametrize(
    "operation",
    [LayerNorm(axes=(2, 0), each=(1,)), RMSNorm(axes=(1,), each=(0,), zero_centred=True),
     AddLayerNorm(axes=(1,)), GroupNorm(each="sample"),
     InstanceNorm(use_input_stats=True, each="sample"),
     BatchNorm(training=True, each="sample"), BatchNorm(training=False, each="sample")],
    ids=str,
)  # fmt: skip
def test_finite_differences(operation):
    rng = np.random.default_rng(0)
    shape, step = (3, 4, 5), 1e-6
    x, dy = rng.normal(size=(2, *shape))
    for axis in (1, -1) if operation.by_channel else (1,):
        p = operation.draw(rng, shape, axis, np.float64)
        if "grad_sum" in p:
            p["grad_sum"] = np.zeros(shape)
            p["doubled"] = np.zeros(shape)
        base = operation.run(F, x, dy, p, axis=axis)
        for name, array in [("input", x), ("weight", p["weight"]), ("bias", p.get("bias"))]:
            if array is None:
                continue
            for at in rng.choice(array.size, min(6, array.size), replace=False):
                ends = []
                for sign in (1, -1):
                    moved = array.copy()
                    moved.flat[at] += sign * step
                    q = p if name == "input" else p | {name: moved}
                    y = operation.run(F, moved if name == "input" else x, dy, q, axis=axis)["y"]
                    ends.append((y * dy).sum())
                slope = (ends[0] - ends[1]) / (2 * step)
                assert abs(base[f"grad_{name}"].flat[at] - slope) < 1e-6 * max(1, abs(slope))


def test_no_copy_channels_first_or_last():
    x = np.ones((8, 96, 14, 14), np.float32)
    last = np.moveaxis(np.moveaxis(x, 1, -1).copy(), -1, 1)
    for array, axis, family in [
        (x, 1, "columns"), (last, 1, "rows"), (x, (1, 2), "columns"), (last, (1, 2), "rows"),
        (x, 0, "columns"), (x, (0, 1), "columns"), (x, 2, "columns"), (x, (1, 3), "rows"),
        (x, (2, 3), "rows"), (x, (3, 1, 2), "rows"),
    ]:  # fmt: skip
        axes = axis if isinstance(axis, tuple) else (axis,)
        shape = tuple(array.shape[i] for i in axes)
        plan = cnorm.explain(F.layer_norm, array, shape, np.ones(shape), axis=axis)
        assert plan.copies == [] and plan.step["family"] == family, (axis, plan)
    plan = cnorm.explain(F.layer_norm, last, 14, axis=2)  # three other axes, of no order
    assert plan.copies[0] == "the input is copied: no kernel reads its strides"


@pytest.mark.parametrize("axis", [1, (1, 2), 0])
def test_out_in_place_and_overlapping(axis):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 20, 6, 50)).astype(np.float32)
    axes = axis if isinstance(axis, tuple) else (axis,)
    shape = tuple(x.shape[i] for i in axes)
    w = rng.normal(size=shape).astype(np.float32)
    y, mean, rstd = F.layer_norm(x, shape, w, axis=axis, return_stats=True)
    for layout in (contiguous, channels_last, scattered):
        out = layout(np.empty_like(x))
        assert F.layer_norm(x, shape, w, axis=axis, out=out) is out
        np.testing.assert_array_equal(out, y)
    own = x.copy()
    F.layer_norm(own, shape, w, axis=axis, out=own)
    np.testing.assert_array_equal(own, y)
    memory = np.empty(x.size + 50, np.float32)
    shifted = memory[50:].reshape(x.shape)
    shifted[...] = x
    out = memory[:-50].reshape(x.shape)
    np.testing.assert_array_equal(F.layer_norm(shifted, shape, w, axis=axis, out=out), y)
    dx = F.layer_norm_backward(y, x, shape, mean, rstd, w, axis=axis)[0]
    dy = y.copy()
    F.layer_norm_backward(dy, x, shape, mean, rstd, w, axis=axis, out=dy)
    np.testing.assert_array_equal(dy, dx)
    total, residual = x.copy(), np.ones_like(x)
    z, s = F.add_layer_norm(x, residual, shape, w, axis=axis, residual_out=total)
    np.testing.assert_array_equal(s, x + 1)
    np.testing.assert_array_equal(z, F.layer_norm(x + 1, shape, w, axis=axis))


def test_not_finite_and_empty():
    x = np.ones((2, 40, 70), np.float32) + np.arange(40, dtype=np.float32)[:, None]
    x[0, 3, 5], x[1, 7, 60] = np.nan, np.inf
    for call in (F.layer_norm, F.rms_norm):
        y = call(x, 40, np.ones(40), axis=1)
        assert np.isnan(y[0, :, 5]).all() and np.isnan(y[1, :, 60]).all()
        y[0, :, 5] = y[1, :, 60] = 0
        assert np.isfinite(y).all()
    large = np.full((2, 40, 70), 1e30, np.float32) * (1 + np.arange(40, dtype=np.float32))[:, None]
    y = F.rms_norm(large, 40, axis=1)
    np.testing.assert_allclose((y.astype(np.float64) ** 2).mean(1), 1, rtol=1e-6)
    y, rstd = F.rms_norm(np.full((2, 40, 70), 1e-30, np.float32), 40, None, 0.0, axis=1,
                         return_stats=True)  # fmt: skip
    np.testing.assert_allclose(y, 1, rtol=1e-6)
    for shape in [(0, 3, 4), (2, 3, 0)]:
        x = np.ones(shape, np.float32)
        w = np.ones((shape[0], 3, 1))
        y, mean, rstd = F.layer_norm(x, 3, w, np.ones(3), axis=1, return_stats=True)
        dx, dw, db = F.layer_norm_backward(x, x, 3, mean, rstd, w, axis=1, bias=np.ones(3))
        assert y.shape == dx.shape == shape and dw.shape == w.shape and db.shape == (3,)
        assert not dw.any() and not db.any()


def test_zero_centered_gamma(dtype):
    rng = np.random.default_rng(0)
    wide = accumulation(dtype)
    x, dy, residual = rng.normal(size=(3, 5, 48)).astype(dtype)
    w = rng.normal(size=48).astype(dtype)
    stored = {"zero_centered_gamma": True}
    gain = w.astype(wide) + wide.type(1)
    y, rstd = F.rms_norm(x, 48, w, return_stats=True, **stored)
    np.testing.assert_array_equal(y, F.rms_norm(x, 48, gain))
    dx, dw = F.rms_norm_backward(dy, x, 48, rstd, w, **stored)
    expected = F.rms_norm_backward(dy, x, 48, rstd, gain)
    np.testing.assert_array_equal(dx, expected[0])
    np.testing.assert_array_equal(dw, expected[1].astype(dtype))
    y, _ = F.add_rms_norm(x, residual, 48, w, **stored)
    np.testing.assert_array_equal(y, F.add_rms_norm(x, residual, 48, gain)[0])
    np.testing.assert_array_equal(F.rms_norm(x, 48, **stored), F.rms_norm(x, 48))


def test_layers():
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(2, 4, 6, 5, 7)).astype(np.float32)
    for layer, p in [
        (cnorm.LayerNorm(6, axis=1), {}), (cnorm.LayerNorm((7, 6), axis=(3, 1), bias=False), {}),
        (cnorm.RMSNorm(6, axis=-3, zero_centered_gamma=True), {"zero_centered_gamma": True}),
    ]:  # fmt: skip
        rms = isinstance(layer, cnorm.RMSNorm)
        assert not layer.weight.any() if rms else (layer.weight == 1).all()
        layer.weight[...] = rng.normal(size=layer.weight.shape)
        p = p | {"axis": layer.axis}
        parameters = [layer.weight] if rms else [layer.weight, layer.bias]
        norm, back = (
            (F.rms_norm, F.rms_norm_backward) if rms else (F.layer_norm, F.layer_norm_backward)
        )
        y, *stats = norm(x, layer.normalized_shape, *parameters, return_stats=True, **p)
        np.testing.assert_array_equal(layer(x), y)
        dx, *grads = back(dy, x, layer.normalized_shape, *stats, layer.weight, **p)
        np.testing.assert_array_equal(layer.backward(dy), dx)
        for parameter, grad in zip(layer.parameters(), grads, strict=False):
            np.testing.assert_array_equal(parameter.grad, grad)
    assert repr(cnorm.LayerNorm(6, axis=1)).endswith("bias=True, axis=1)")
    assert "axis=(1, 2), zero_centered_gamma=True" in repr(
        cnorm.RMSNorm((6, 5), axis=[1, 2], zero_centered_gamma=True)
    )
    plain, other = cnorm.LayerNorm(6), cnorm.LayerNorm(6, axis=1)
    other.load_state_dict(plain.state_dict())  # the state is the same


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"axis": (1, 1), "normalized_shape": (6, 6)}, ValueError, "each axis once"),
        ({"axis": (1, -3), "normalized_shape": (6, 6)}, ValueError, "each axis once"),
        ({"axis": 4}, ValueError, "axis 4 is out of bounds for an input with 4 dimensions"),
        ({"axis": -5}, ValueError, "axis -5 is out of bounds"),
        ({"axis": (1, 2)}, ValueError, r"one axis for each dimension of normalized_shape = \[6\]"),
        ({"axis": ()}, ValueError, "one axis for each dimension"),
        ({"axis": 1.0}, TypeError, "axis must be None, an integer or a sequence of integers"),
        ({"axis": "c"}, TypeError, "axis must be an integer"),
        ({"axis": 2}, RuntimeError, r"input with shape \[6\] at axes \(2,\)"),
        ({"axis": 1, "weight": np.ones((4, 5, 1, 1))}, RuntimeError, "Expected weight to be of"),
        ({"axis": 1, "weight": np.ones((3, 6, 1, 1))}, RuntimeError, "these or 1 at the others"),
        ({"axis": 1, "bias": np.ones((1, 6, 5))}, RuntimeError, "same shape as normalized_shape"),
    ],
)  # fmt: skip
def test_errors(arguments, error, words):
    x = np.ones((4, 6, 5, 7), np.float32)
    with pytest.raises(error, match=words):
        F.layer_norm(x, **{"normalized_shape": 6} | arguments)
    with pytest.raises(error, match=words):
        F.add_layer_norm(x, x, **{"normalized_shape": 6} | arguments)
    stats = np.ones((4, 1, 5, 7))
    with pytest.raises(error, match=words):
        F.layer_norm_backward(x, x, mean=stats, rstd=stats, **{"normalized_shape": 6} | arguments)


def test_errors_of_parameters_per_sample():
    x = np.ones((4, 6, 5), np.float32)
    for shape in [(3, 6), (4, 5), (4, 6, 1), (24,), (6, 4)]:
        with pytest.raises(RuntimeError, match="weight should contain 6 elements not"):
            F.batch_norm(x, None, None, np.ones(shape), None, True)
        with pytest.raises(RuntimeError, match="Expected bias to be a vector of size equal"):
            F.group_norm(x, 2, None, np.ones(shape))


@pytest.mark.parametrize("shape", [(4, 24, 9, 11), (2, 33, 40), (3, 7, 9, 3, 4)])
def test_torch_movedim_and_autograd(shape):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(2, *shape)).astype(np.float32)
    for axis, each in [(1, False), (1, True), (2, False), (2, True)]:
        n = shape[axis]
        sizes = [m if i in (0, axis) else 1 for i, m in enumerate(shape)]
        w, b = rng.normal(size=(2, *(sizes if each else [n]))).astype(np.float32)
        tensors = [torch.tensor(a, requires_grad=True) for a in (x, w, b)]
        input, weight, bias = tensors
        moved = torch.nn.functional.layer_norm(input.movedim(axis, -1), (n,))
        spread = [p.movedim(axis, -1) if each else p for p in (weight, bias)]
        theirs = (moved * spread[0] + spread[1]).movedim(-1, axis)
        theirs.backward(torch.tensor(dy))
        y, *stats = F.layer_norm(x, n, w, b, axis=axis, return_stats=True)
        grads = F.layer_norm_backward(dy, x, n, *stats, w, axis=axis, bias=b)
        np.testing.assert_allclose(y, theirs.detach().numpy(), atol=4e-6, rtol=4e-6)
        for mine, tensor in zip(grads, tensors, strict=True):
            scale = max(1, np.abs(mine).max())
            np.testing.assert_allclose(mine, tensor.grad.numpy(), atol=2e-5 * scale)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(40, 128, 7, 7), (16, 300, 3, 3), (3, 70, 40, 40)])
def test_batch_norm_by_sample_has_the_same_bits_by_every_strategy(build, shape, dtype, rng):
    x = (rng.normal(size=shape) + 10).astype(dtype)
    dy = rng.normal(size=shape).astype(dtype)
    weight, bias = rng.normal(size=(2, *shape[:2])).astype(dtype)

    def run(**how):
        y, mean, rstd = F.batch_norm(x, None, None, weight, bias, True, return_stats=True, **how)
        of_given = F.batch_norm(x, mean, rstd, weight, bias, **how)
        of_bias = {"bias": bias} if how else {}
        grads = F.batch_norm_backward(dy, x, mean, rstd, weight, **of_bias, **how)
        return [a.tobytes() for a in (y, mean, rstd, of_given, *grads)]

    for how in ({}, {"negative_slope": 0.1}, {"clip": (-1, 1)}):
        with cnorm.num_threads(1):
            expected = run(**how)
        for name in (
            "UNIT_BY_UNIT",
            "UNIT_BATCHES",
            "TWO_SWEEPS",
            "GIVEN_BATCHES",
            "GIVEN_IN_ORDER",
        ):
            _dispatch.kernels.force_strategy(STRATEGIES[name])
            try:
                with cnorm.num_threads(2):
                    assert run(**how) == expected, name
            finally:
                _dispatch.kernels.force_strategy(0)
