"""An activation fused into a norm is the norm, then the activation; and so is its gradient."""

import numpy as np
import operations
import pytest
from operations import GroupNorm, LayerNorm, accumulation, check, epsilon, oracle

import cnorm.functional as F

PER_CHANNEL = np.array([-0.5, 0.25, 1.5, 0.0, 0.1, 0.7])
SLOPES = {
    "ReLU": 0.0,
    "LeakyReLU": 0.01,
    "steep": 1.5,
    "negative": -0.5,
    "PReLU(1)": np.array([0.25]),
    "PReLU(C)": PER_CHANNEL,
}


def _inputs(operation, rng, shape, axis, dtype):
    """No gradient where rounding might decide on which side of zero a value falls."""
    x, dy = rng.normal(size=(2, *shape)).astype(dtype)
    p = operation.draw(rng, shape, axis, accumulation(dtype))
    y = oracle(operation, x, dy, p, axis=axis)["y"]
    return x, np.where(np.abs(y) < 1e-3, 0, dy.astype(float)).astype(dtype), p


OPERATIONS = [operation for operation in operations.OPERATIONS if operation.takes_slope]


@pytest.mark.parametrize("name", SLOPES)
@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_against_the_reference(build, operation, dtype, name, rng):
    slope = SLOPES[name]
    for shape, axis in [((5, 6), 1), ((4, 6, 17), 1), ((4, 5, 7, 6), -1), ((3, 6, 7, 6), 1)]:
        if not operation.accepts(shape, axis) or (axis != 1 and not operation.by_channel):
            continue
        x, dy, p = _inputs(operation, rng, shape, axis, dtype)
        actual = operation.run(F, x, dy, p, axis=axis, slope=slope)
        expected = oracle(operation, x, dy, p, axis=axis, slope=slope)
        check(actual, expected, dtype, dy, f"{operation} {shape} axis {axis}")


def _activated(y, slope):
    if isinstance(slope, np.ndarray):
        slope = slope.reshape(-1, *[1] * (y.ndim - 2)).astype(y.dtype)
    return np.where(y > 0, y, y * slope)


@pytest.mark.parametrize("name", SLOPES)
@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
@pytest.mark.parametrize("float_type", [np.float32, np.float64])
def test_fused_is_unfused(operation, float_type, name, rng):
    """To the bit in float64, to a rounding in float32."""
    slope = SLOPES[name]
    x, dy = rng.normal(size=(2, 4, 6, 5, 7)).astype(float_type)
    p = operation.draw(rng, x.shape, 1, float_type)
    plain = operation.run(F, x, dy, p)["y"]
    fused = operation.run(F, x, dy, p, slope=slope)["y"]
    if float_type is np.float64:
        np.testing.assert_array_equal(fused, _activated(plain, slope))
    else:
        np.testing.assert_array_max_ulp(fused, _activated(plain, slope), 1)


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_no_slope_is_none(operation, rng):
    x, dy = rng.normal(size=(2, 4, 6, 5, 7)).astype(np.float32)
    p = operation.draw(rng, x.shape, 1, np.float32)
    plain, slope_of_one = operation.run(F, x, dy, p), operation.run(F, x, dy, p, slope=1.0)
    # switch norm goes through an activation in a step of its own, and so rounds once more
    once_more = epsilon(x.dtype) if str(operation).startswith("switch") else 0
    for name in ("y", "grad_input"):
        rounding = once_more * np.abs(plain[name]).max() if name == "grad_input" else 0
        np.testing.assert_allclose(plain[name], slope_of_one[name], rtol=0, atol=rounding)


def test_the_gradient_of_a_slope_has_its_shape_and_dtype(rng):
    x, dy = rng.normal(size=(2, 4, 6, 5)).astype(np.float32)
    for shape in [(1,), (6,)]:
        for float_type in (np.float16, np.float32, np.float64):
            slope = np.full(shape, 0.25, float_type)
            norm = GroupNorm()
            p = norm.draw(rng, x.shape, 1, np.float32)
            gradient = norm.run(F, x, dy, p, slope=slope)["grad_slope"]
            assert gradient.shape == shape
            assert gradient.dtype == float_type


def test_slopes_along_an_axis_of_the_row_and_outside_of_it(rng):
    """For rows the channels are still axis 1, unless channel_axis says otherwise."""
    x, dy = rng.normal(size=(2, 4, 6, 6, 6))
    for row in [(6,), (6, 6), (6, 6, 6)]:
        _, mean, rstd = F.layer_norm(x, row, return_stats=True)
        plain = F.layer_norm(x, row)
        for axis in (1, 2, -1):
            along = np.moveaxis(np.broadcast_to(PER_CHANNEL, x.shape), -1, axis)
            options = {"negative_slope": PER_CHANNEL, "channel_axis": axis}
            y = F.layer_norm(x, row, **options)
            expected = np.where(plain > 0, plain, plain * along)
            np.testing.assert_allclose(y, expected, rtol=0, atol=1e-15)
            *_, gradient = F.layer_norm_backward(dy, x, row, mean, rstd, **options)
            full = np.where(plain > 0, 0, plain * dy)
            expected = np.moveaxis(full, axis, 0).reshape(6, -1).sum(1)
            np.testing.assert_allclose(gradient, expected, rtol=1e-12)


def test_in_place_with_a_slope(rng):
    x = rng.normal(size=(4, 6, 5, 7)).astype(np.float32)
    norm = LayerNorm(axes="last")
    p = norm.draw(rng, x.shape, 1, np.float32)
    expected = F.layer_norm(x, **p, negative_slope=PER_CHANNEL)
    F.layer_norm(x, **p, negative_slope=PER_CHANNEL, out=x)
    np.testing.assert_array_equal(x, expected)
