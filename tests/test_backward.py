"""Gradients: their differences, their accuracy, and what backward takes and leaves alone."""

import numpy as np
import pytest
from operations import (
    GRADIENT_LIMIT,
    BatchNorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    RMSNorm,
    SwitchNorm,
    accumulation,
    assert_close,
    check,
    epsilon,
    oracle,
)
from team import team

import cnorm.functional as F
from cnorm import _reference

MEAN_BASED = [
    BatchNorm(training=True),
    InstanceNorm(use_input_stats=True),
    GroupNorm(),
    LayerNorm(axes="last"),
    LayerNorm(axes="all"),
]


@pytest.mark.grid(3)
@pytest.mark.parametrize("ratio", [0, 0.5, 0.9, 0.99, 1.01, 1.2, 1.4, 1.43, 3])
def test_means_beside_the_deviation(build, dtype, ratio, rng):
    """By its size in deviations a mean is taken about 0 or a shift, and lost in one part or two."""
    statistics = ("mean", "rstd", "running_mean", "running_var")  # a few columns pass 4 epsilon
    for norm in MEAN_BASED:
        for shape in [(7, 6, 70), (130, 6, 4), (40, 6), (3, 6, 700)]:
            for axis in (1, -1) if norm.by_channel else (1,):
                if not norm.accepts(shape, axis):
                    continue
                x = (rng.normal(ratio, 1, shape) * rng.choice([-3, 0.1, 40])).astype(dtype)
                dy = rng.normal(size=shape).astype(dtype)
                p = norm.draw(rng, shape, axis, accumulation(dtype))
                actual = norm.run(F, x, dy, p, axis=axis)
                expected = oracle(norm, x, dy, p, axis=axis)
                check(actual, expected, dtype, dy, f"{norm} {shape} axis {axis}", statistics)


def test_gradients_are_those_of_finite_differences_of_the_reference(build, operation, rng):
    """The compiled gradient along a random direction, by central differences in longdouble."""
    for shape in filter(lambda s: operation.accepts(s, 1), [(9, 6), (3, 6, 5), (2, 6, 4, 3)]):
        x, dy, direction = rng.normal(0.5, 1, (3, *shape))
        p = operation.draw(rng, shape, 1)
        actual = operation.run(F, x, dy, p)
        for name in [n for n in actual if n.startswith("grad_")]:
            if name == "grad_input" and "grad_sum" in p:
                continue  # there the residual follows the input; see test_residual
            numerical, analytic = _along(operation, x, dy, p, actual, name, direction, rng)
            scale = np.abs(actual[name]).sum() + 1
            assert abs(numerical - analytic) <= 1e-6 * scale, f"{name} {shape}"


def _along(operation, x, dy, p, actual, name, direction, rng):
    parameter = name.removeprefix("grad_")
    wide = {k: v.astype(np.longdouble) if isinstance(v, np.ndarray) else v for k, v in p.items()}
    arrays = wide | {"input": x.astype(np.longdouble)}
    if parameter != "input":
        direction = rng.normal(size=arrays[parameter].shape)

    def loss(step):
        moved = arrays | {parameter: arrays[parameter] + step * direction}
        at = moved.pop("input")
        return (operation.run(_reference, at, dy.astype(np.longdouble), moved)["y"] * dy).sum()

    step = np.longdouble(1e-4)
    near, far = loss(step) - loss(-step), loss(2 * step) - loss(-2 * step)
    return (8 * near - far) / (12 * step), (actual[name] * direction).sum()


@pytest.mark.parametrize("mean", [1e2, 1e4])
@pytest.mark.parametrize("norm", MEAN_BASED, ids=str)
def test_float32_gradients_at_a_large_mean(build, norm, mean, rng):
    """A few epsilon off those of float64, where uncentred sums lose four digits."""
    for shape in [(16, 6, 64), (8, 6, 7, 7), (64, 96)]:
        for axis in (1, -1) if norm.by_channel else (1,):
            if norm.accepts(shape, axis):
                x = rng.normal(mean, 1, shape).astype(np.float32)
                dy = rng.normal(size=shape).astype(np.float32)
                p = norm.draw(rng, shape, axis, np.float32)
                actual = norm.run(F, x, dy, p, axis=axis)
                expected = oracle(norm, x, dy, p, axis=axis)
                check(actual, expected, x.dtype, dy, f"{norm} {shape} axis {axis}")


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_gradients_at_any_scale(build, scale, rng):
    for norm in (LayerNorm(axes="last"), GroupNorm(), BatchNorm(training=True)):
        x = rng.normal(0, scale, (8, 6, 35)).astype(np.float32)
        dy = rng.normal(size=x.shape).astype(np.float32)
        p = norm.draw(rng, x.shape, 1)  # a running variance of 1e60 is no float32
        actual, expected = norm.run(F, x, dy, p), oracle(norm, x, dy, p)
        check(actual, expected, x.dtype, dy, norm)


def test_gradient_of_a_shift_and_of_a_scale_is_zero(build, rng):
    """Each unit's gradient sums to zero, and is orthogonal to the unit (eps is 0)."""
    x, dy = rng.normal(3, 1, (2, 8, 6, 35)).astype(np.float32)
    _, mean, rstd = F.layer_norm(x, 35, eps=0, return_stats=True)
    dx, *_ = F.layer_norm_backward(dy, x, 35, mean, rstd)
    scale = epsilon(x.dtype) * 35 * np.abs(dx).max()
    assert np.abs(dx.astype(float).sum(-1)).max() <= scale
    assert np.abs((dx.astype(float) * (x - mean)).sum(-1)).max() <= 3 * scale


def test_constant_statistics_pass_the_gradient_straight_through(build, rng):
    x, dy = rng.normal(size=(2, 4, 6, 35))
    rstd, weight = rng.uniform(1, 2, 6), rng.normal(size=6)
    dx, *_ = F.batch_norm_backward(dy, x, np.zeros(6), rstd, weight, training=False)
    factor = (rstd * weight).reshape(6, 1)
    assert_close(dx, dy * factor, GRADIENT_LIMIT * epsilon(x.dtype) * np.abs(dx).max())


def test_statistics_may_be_any_float_dtype(build, rng):
    """float32 statistics are what a user may have kept."""
    x, dy = rng.normal(size=(2, 4, 6, 35)).astype(np.float32)
    _, mean, rstd = F.group_norm(x, 3, return_stats=True)
    expected = F.group_norm_backward(dy, x, 3, mean, rstd)
    actual = F.group_norm_backward(dy, x, 3, mean.astype(np.float32), rstd.astype(np.float32))
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-5)


def test_backward_changes_nothing_it_is_given(build, operation, dtype, rng):
    x, dy = rng.normal(size=(2, 4, 6, 5, 3)).astype(dtype)
    p = operation.draw(rng, x.shape, 1)
    for array in (x, dy, *(v for v in p.values() if isinstance(v, np.ndarray))):
        array.flags.writeable = False
    first = operation.run(F, x, dy, p)
    again = operation.run(F, x, dy, p)
    for name in set(first) - {"stats"}:
        np.testing.assert_array_equal(first[name].astype(float), again[name].astype(float), name)


def test_mixed_layouts_of_input_and_gradient(build, operation, rng):
    x, dy = rng.normal(size=(2, 4, 6, 5, 3)).astype(np.float32)
    p = operation.draw(rng, x.shape, 1, np.float32)
    expected = operation.run(F, x, dy, p)
    strided = np.moveaxis(np.ascontiguousarray(np.moveaxis(dy, 1, -1)), -1, 1)
    actual = operation.run(F, x, strided, p)
    check(actual, oracle(operation, x, dy, p), x.dtype, dy, operation)
    np.testing.assert_allclose(actual["grad_input"], expected["grad_input"], atol=1e-5)


@pytest.mark.parametrize("spoiler", [np.nan, np.inf], ids=str)
def test_one_bad_gradient_spoils_its_unit_and_no_other(build, spoiler, rng):
    x, clean = rng.normal(size=(2, 4, 6, 5, 7)).astype(np.float32)
    dy = clean.copy()
    dy[1, 4, 2, 3] = spoiler
    _, *stats = F.instance_norm(x, return_stats=True)
    expected = F.instance_norm_backward(clean, x, *stats)[0]
    dx, grad_weight, grad_bias = F.instance_norm_backward(dy, x, *stats)
    assert np.isnan(dx[1, 4]).any()
    expected[1, 4] = dx[1, 4]
    np.testing.assert_array_equal(dx, expected)
    assert not np.isfinite(grad_weight[4])
    assert not np.isfinite(grad_bias[4])
    assert np.isfinite(np.delete(grad_weight, 4)).all()


def test_one_element_in_a_unit(build):
    """Nothing varies, so nothing comes back (but for a rounding, times an rstd of 316)."""
    x = np.array([[3.0], [-2.0]], np.float32)
    for norm in (LayerNorm(axes="last"), GroupNorm()):
        results = norm.run(F, x, x, norm.draw(np.random.default_rng(0), x.shape, 1, np.float32))
        assert np.abs(results["grad_input"]).max() <= 3 * 316 * epsilon(x.dtype)
        assert results["grad_weight"].item() == 0
        assert results["grad_bias"].item() == 1


@pytest.mark.parametrize("norm", [LayerNorm(axes="last"), RMSNorm(axes="last")], ids=str)
def test_one_row(build, dtype, norm, rng):
    """The sums of its parameters' gradients begin and end with it."""
    for length in (1, 15, 16, 17, 31, 33, 768, 4099):
        x, dy = rng.normal(size=(2, 1, length)).astype(dtype)
        p = norm.draw(rng, x.shape, 1, accumulation(dtype))
        actual, expected = norm.run(F, x, dy, p), oracle(norm, x, dy, p)
        check(actual, expected, dtype, dy, f"{norm} of {length}")


@pytest.mark.grid(3)
@pytest.mark.parametrize(
    "shape",
    [(33, 4099), (80, 4099), (112, 4099), (208, 4099), (176, 12289), (900, 31)],
    ids=str,
)
@pytest.mark.parametrize("norm", [LayerNorm(axes="last"), RMSNorm(axes="last")], ids=str)
def test_any_number_of_blocks_of_rows(build, norm, shape, rng):
    """Their sums add up in a tree, of 3, 5, 7, 13, 10 and 16 leaves; threads take its branches."""
    x, dy = rng.normal(size=(2, *shape)).astype(np.float32)
    p = norm.draw(rng, shape, 1, np.float32)
    expected, first = oracle(norm, x, dy, p), None
    for threads in (1, 2, 3, 4, 5, 7, 16):
        with team(threads):
            actual = norm.run(F, x, dy, p)
        check(actual, expected, x.dtype, dy, f"{norm} {shape} on {threads} threads")
        first = first or actual
        assert all(np.array_equal(actual[name], first[name]) for name in actual if name != "stats")


@pytest.mark.parametrize(
    "norm",
    [BatchNorm(training=True), RMSNorm(axes="last"), SwitchNorm(training=True)],
    ids=str,
)
def test_gradients_of_parameters_add_up_over_many_rows(build, norm, rng):
    """Sums over 200,000 elements still hold their digits."""
    shape = (20_001, 10)
    x, dy = rng.normal(1, 1, (2, *shape)).astype(np.float32)  # dy has a mean: it adds up
    p = norm.draw(rng, shape, 1, np.float32)
    check(norm.run(F, x, dy, p), oracle(norm, x, dy, p), x.dtype, dy, norm)
