"""An activation fused into a norm is the norm, then the activation; and so is its gradient."""

import ml_dtypes
import numpy as np
import operations
import pytest
from operations import CLIP, GroupNorm, LayerNorm, accumulation, check, epsilon, oracle

import cnorm.functional as F
from cnorm import steps

PER_CHANNEL = np.array([-0.5, 0.25, 1.5, 0.0, 0.1, 0.7])
SLOPES = {
    "ReLU": 0.0,
    "LeakyReLU": 0.01,
    "steep": 1.5,
    "negative": -0.5,
    "PReLU(1)": np.array([0.25]),
    "PReLU(C)": PER_CHANNEL,
}


CLIPS = {
    "Hardtanh": (-1.0, 1.0),
    "ReLU6": (0.0, 6.0),
    "narrow": (0.25, 0.5),
    "from below": (-0.5, None),
    "from above": (None, 0.25),
    "infinite": (-np.inf, 0.5),
    "one value": (0.125, 0.125),
}


def _inputs(operation, rng, shape, axis, dtype, kinks=(0,)):
    """No gradient where rounding might decide on which side of a kink a value falls."""
    x, dy = rng.normal(size=(2, *shape)).astype(dtype)
    p = operation.draw(rng, shape, axis, accumulation(dtype))
    y = oracle(operation, x, dy, p, axis=axis)["y"]
    near = np.any([np.abs(y - kink) < 1e-3 for kink in kinks], 0)
    return x, np.where(near, 0, dy.astype(float)).astype(dtype), p


OPERATIONS = [operation for operation in operations.OPERATIONS if operation.takes_slope]
CLIPPED = [operation for operation in operations.OPERATIONS if operation.takes_clip]


@pytest.mark.grid(4)
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


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_gradients_of_byte_swapped_slopes_are_in_native_order(operation, rng):
    x, dy = rng.normal(size=(2, 4, 6, 5)).astype(np.float32)
    p = operation.draw(rng, x.shape, 1, np.float32)
    for slope in (PER_CHANNEL, PER_CHANNEL[:1]):
        expected = operation.run(F, x, dy, p, slope=slope)["grad_slope"]
        found = operation.run(F, x, dy, p, slope=slope.astype(">f8"))["grad_slope"]
        assert found.dtype == np.dtype(np.float64) and found.tobytes() == expected.tobytes()


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


# --- clip -------------------------------------------------------------------------------------


def _bounds(clip):
    return [bound for bound in clip if bound is not None]


def _clipped(y, clip):
    """Bounds as a comparison has them: of the accumulation type."""
    wide = y.astype(accumulation(y.dtype))
    low, high = (wide.dtype.type(np.nan if bound is None else bound) for bound in clip)
    wide = np.where(wide < low, low, wide)
    return np.where(wide > high, high, wide).astype(y.dtype)


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize("operation", CLIPPED, ids=str)
def test_clip_against_the_reference(build, operation, name, rng):
    clip, dtypes = CLIPS[name], operations.DTYPES
    shapes = [((5, 6), 1), ((4, 6, 17), 1), ((4, 5, 7, 6), -1), ((3, 6, 7, 6), 1), ((2, 65, 3), 1)]
    start = list(CLIPS).index(name)  # every shape meets every dtype, with one clip or another
    for i, (shape, axis) in enumerate(shapes, start):
        if not operation.accepts(shape, axis) or (axis != 1 and not operation.by_channel):
            continue
        dtype = dtypes[i % len(dtypes)]
        x, dy, p = _inputs(operation, rng, shape, axis, dtype, _bounds(clip))
        actual = operation.run(F, x, dy, p, axis=axis, clip=clip)
        expected = oracle(operation, x, dy, p, axis=axis, clip=clip)
        check(actual, expected, dtype, dy, f"{operation} {shape} axis {axis}")


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize("operation", CLIPPED, ids=str)
def test_clipped_is_the_plain_result_clipped(build, operation, dtype, name, rng):
    """To the bit: rounding to a half type keeps the order of the numbers, so it may come first."""
    clip = CLIPS[name]
    x, dy = rng.normal(size=(2, 4, 6, 5, 7)).astype(dtype)
    p = operation.draw(rng, x.shape, 1, accumulation(dtype))
    plain, clipped = operation.run(F, x, dy, p), operation.run(F, x, dy, p, clip=clip)
    low_high = [None if b is None else accumulation(dtype).type(b) for b in clip]
    np.testing.assert_array_equal(clipped["y"], _clipped(plain["y"], low_high))
    for name in operation.statistics:
        if name != "stats":
            np.testing.assert_array_equal(clipped[name], plain[name])


@pytest.mark.parametrize("operation", CLIPPED, ids=str)
def test_a_clip_of_none_is_none(operation, rng):
    x, dy = rng.normal(size=(2, 4, 6, 5, 7)).astype(np.float32)
    p = operation.draw(rng, x.shape, 1, np.float32)
    plain = operation.run(F, x, dy, p)
    for clip in [(None, None), [None, None], (-np.inf, np.inf), (-(10.0**30), None)]:
        wide = operation.run(F, x, dy, p, clip=clip)
        once_more = epsilon(x.dtype) if str(operation).startswith("switch") and clip[0] else 0
        for name in set(plain) - {"stats"}:
            rounding = once_more * np.abs(plain[name]).max() if name == "grad_input" else 0
            np.testing.assert_allclose(wide[name], plain[name], rtol=4e-6, atol=rounding + 1e-5)
        np.testing.assert_array_equal(wide["y"], plain["y"])


def _constant(operation, dtype, bias):
    """A call whose values before the clip are the bias, exactly."""
    x = np.full((4, 6, 16), 3, dtype)
    p = operation.draw(np.random.default_rng(0), x.shape, 1, accumulation(dtype))
    return x, np.ones_like(x), p | {"bias": np.full_like(p["bias"], bias)}


OF_CONSTANTS = [
    operation
    for operation in operations.OPERATIONS
    if operation.function in ("batch_norm", "instance_norm", "group_norm", "layer_norm")
    and not {"training": False, "use_input_stats": False}.items() & operation.fixed.items()
]


@pytest.mark.parametrize("operation", OF_CONSTANTS, ids=str)
def test_the_gradient_at_a_bound_is_zero(build, operation, dtype):
    """As torch's: a value equal to a bound is outside, the next number inside."""
    wide = accumulation(dtype).type
    for clip in [(0.1, 0.7), (0.1, None), (None, 0.7), (0.1, 0.1), (-np.inf, 0.7)]:
        for bound in {0.1, 0.7}:
            for bias in (bound, *(np.nextafter(wide(bound), wide(to)) for to in (-9, 9))):
                x, dy, p = _constant(operation, dtype, wide(bias))
                results = operation.run(F, x, dy, p, clip=clip)
                low, high = (wide(np.nan if b is None else b) for b in clip)
                outside = wide(bias) <= low or wide(bias) >= high
                count = 0 if outside else dy.size / results["grad_bias"].size
                assert (results["grad_bias"] == count).all(), (clip, bias)
                np.testing.assert_array_equal(results["y"], _clipped(np.full_like(x, bias), clip))


@pytest.mark.parametrize("clip", [(-1.0, 1.0), (None, 0.5), (0.0, None), (-np.inf, np.inf)])
@pytest.mark.parametrize("operation", CLIPPED, ids=str)
def test_clip_keeps_nan(build, operation, dtype, clip, rng):
    x, dy = rng.normal(size=(2, 4, 6, 5, 7)).astype(dtype)
    x[1, 2, 3, 4] = np.nan
    p = operation.draw(rng, x.shape, 1, accumulation(dtype))
    plain, clipped = operation.run(F, x, dy, p)["y"], operation.run(F, x, dy, p, clip=clip)["y"]
    assert np.isnan(plain).any()
    np.testing.assert_array_equal(np.isnan(clipped), np.isnan(plain))


def test_zeros_keep_their_sign(build, dtype):
    """Of two zeros the value stays, whichever build compares them."""
    x = np.full((2, 19), 5, dtype)
    for zero in (0.0, -0.0):
        bias = np.full(19, zero)
        weight = np.full(19, np.copysign(1, zero))
        plain = F.layer_norm(x, 19, weight, bias)
        for clip in [(0.0, 1.0), (-0.0, 1.0), (-1.0, 0.0), (-1.0, -0.0), (0.0, -0.0)]:
            y = F.layer_norm(x, 19, weight, bias, clip=clip)
            np.testing.assert_array_equal(np.signbit(y), np.signbit(plain))


def test_infinite_values_and_open_sides(rng):
    """A bound that is infinite clips infinite values, whose gradient it takes; None does not."""
    for bias, bounded in [(np.inf, (None, np.inf)), (-np.inf, (-np.inf, None))]:
        x, dy = np.full((3, 4), 2.0), np.ones((3, 4))
        y, mean, rstd = F.layer_norm(x, 4, None, np.full(4, bias), return_stats=True, clip=bounded)
        assert (y == bias).all()
        for clip, gradient in [(bounded, 0), (bounded[::-1], 3)]:
            if clip[0] == np.inf or clip[1] == -np.inf:
                clip = tuple(None if b is None else -b for b in clip)
            how = {"bias": np.full(4, bias), "clip": clip}
            grad_bias = F.layer_norm_backward(dy, x, 4, mean, rstd, **how)[2]
            assert (grad_bias == gradient).all(), (bias, clip)


def test_half_types_are_rounded_after_the_clip():
    """A bound between two numbers of a half type: the result is the nearer of them."""
    x = np.array([[-4, -1, 1, 4]])
    for dtype in (np.float16, ml_dtypes.bfloat16):
        y = F.layer_norm(x.astype(dtype), 4, clip=(-0.3, 0.7001))
        expected = np.float32([[-0.3, -0.3, 0.343, 0.7001]]).astype(dtype)
        np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize(
    ("clip", "error", "words"),
    [
        ((1.0, 0.5), ValueError, "clip=(low, high) must have low <= high, but got (1.0, 0.5)"),
        ((np.nan, 1.0), ValueError, "low of clip must not be NaN"),
        ((None, float("nan")), ValueError, "None leaves a side open"),
        (0.5, TypeError, "clip must be None or a pair (low, high), but got float"),
        ((1.0,), ValueError, "clip must be None or a pair (low, high), but got (1.0,)"),
        ((0.0, 1.0, 2.0), ValueError, "clip must be None or a pair"),
        (("a", 1.0), TypeError, "low of clip must be a number"),
        ((0.0, np.zeros(2)), TypeError, "high of clip must be a number"),
    ],
    ids=str,
)
@pytest.mark.parametrize("operation", CLIPPED, ids=str)
def test_what_is_no_clip(operation, clip, error, words, rng):
    calls = operations.calls_of(operation, rng)
    for function, arguments in calls:
        before = operations.copied(arguments)
        with pytest.raises(error) as caught:
            function(**arguments, clip=clip)
        assert words in str(caught.value)
        with pytest.raises(ValueError, match="negative_slope and clip exclude each other"):
            function(**arguments, negative_slope=0.0, clip=CLIP)
        function(**arguments, negative_slope=0.0, clip=(None, None))
        arguments = {k: v for k, v in arguments.items() if not k.startswith("running")}
        for name, value in arguments.items():
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(value, before[name])


def test_bounds_may_be_any_numbers(rng):
    x = rng.normal(size=(3, 5)).astype(np.float32)
    expected = F.layer_norm(x, 5, clip=(-1.0, 1.0))
    for clip in [[-1, 1], np.array([-1, 1]), (np.float16(-1), np.int8(1)), iter((-1.0, True))]:
        np.testing.assert_array_equal(F.layer_norm(x, 5, clip=clip), expected)


def test_steps_clip(rng):
    x, dy = rng.normal(size=(2, 3, 6, 5, 7))
    weight, bias = rng.normal(size=(2, 6))
    _, mean, lo, m2 = steps.moments(x, groups=2)
    given = mean, lo, 1 / np.sqrt(m2), weight, bias
    how = {"groups": 2, "clip": CLIP}
    z = steps.apply(x, *given, groups=2)
    np.testing.assert_array_equal(steps.apply(x, *given, **how), np.clip(z, *CLIP))
    behind = np.where((z <= CLIP[0]) | (z >= CLIP[1]), 0, dy)
    clipped = steps.grad_sums(dy, x, *given, **how)
    for got, want in zip(clipped, steps.grad_sums(behind, x, *given, groups=2), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)
    assert not clipped[3].any()
    np.testing.assert_allclose(
        steps.grad_apply(dy, x, *given, clipped[0], 105, **how),
        steps.grad_apply(behind, x, *given, clipped[0], 105, groups=2),
        rtol=1e-12,
    )  # fmt: skip


def test_the_residual_is_not_clipped(rng):
    x, residual = rng.normal(size=(2, 4, 9)).astype(np.float32)
    y, total = F.add_layer_norm(x, residual, 9, clip=(0.0, 0.5))
    np.testing.assert_array_equal(total, x + residual)
    np.testing.assert_array_equal(y, F.layer_norm(x + residual, 9, clip=(0.0, 0.5)))


@pytest.mark.parametrize("operation", CLIPPED, ids=str)
def test_backward_sees_the_value_that_forward_clipped(build, operation, rng):
    """To the bit in float32: the gradient stops at a bound that equals a value, not one below."""
    for shape, axis, far in [((2, 6, 17), 1, 0), ((3, 5, 12), -1, 0.75), ((2, 4, 80), 1, 100)]:
        axis = axis if operation.by_channel else 1
        x = (far + rng.normal(size=shape)).astype(np.float32)
        dy = rng.uniform(1, 2, shape).astype(np.float32)
        p = operation.draw(rng, shape, axis, np.float32)
        y = operation.run(F, x, dy, p, axis=axis)["y"].ravel()
        for value in y[rng.integers(y.size, size=10)]:
            below = np.nextafter(value, np.float32(-np.inf))
            at, before = (
                operation.run(F, x, dy, p, axis=axis, clip=(low, None)) for low in (value, below)
            )
            np.testing.assert_array_equal(at["y"], before["y"].clip(value))
            gradients = [name for name in at if name.startswith("grad_")]
            assert any((at[name] != before[name]).any() for name in gradients), value
