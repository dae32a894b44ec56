"""The steps on their own: what each computes, in every layout and dtype, and what it refuses."""

import numpy as np
import pytest
from layouts import channels_last, contiguous
from operations import DTYPES

import cnorm
import cnorm.functional as F
from cnorm import steps

SHAPE = (3, 6, 5, 7)
GROUPS = [0, 1, 2, 6]  # batch, layer, group and instance norm


def units(x, groups):
    """A float64 view of (units, elements), channels second."""
    x = np.asarray(x, np.float64)
    if groups == 0:
        return np.moveaxis(x, 1, 0).reshape(x.shape[1], -1)
    return x.reshape(len(x) * groups, -1)


def by_unit(values, groups, shape=SHAPE):
    """Values per unit as they broadcast against an input."""
    n, c = shape[:2]
    values = np.asarray(values, np.float64)
    if groups:
        values = np.repeat(values.reshape(n, groups), c // groups, axis=1)
    return values.reshape((-1, c) + (1,) * (len(shape) - 2))


def by_channel(values):
    return np.asarray(values, np.float64).reshape(1, -1, 1, 1)


@pytest.fixture
def draw(rng):
    """Statistics of all units and parameters of all channels."""

    def drawn(groups):
        n = SHAPE[0] * groups if groups else SHAPE[1]
        mean, rstd = rng.standard_normal(n), rng.standard_normal(n)  # a factor of any sign
        weight, bias = rng.standard_normal((2, SHAPE[1]))
        return mean, mean * 1e-9, rstd, weight, bias

    return drawn


def tolerance(dtype):
    return {2: 2e-2, 4: 2e-5, 8: 1e-12}[np.dtype(dtype).itemsize]


def close(got, want, dtype):
    scale = max(1.0, np.abs(want).max(initial=0))
    np.testing.assert_allclose(
        np.asarray(got, np.float64), want, rtol=tolerance(dtype), atol=tolerance(dtype) * scale
    )


@pytest.mark.parametrize("layout", [contiguous, channels_last], ids=lambda f: f.__name__)
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_moments(rng, dtype, groups, layout):
    x = (rng.standard_normal(SHAPE) + 3).astype(dtype)
    count, mean, lo, m2 = steps.moments(layout(x), groups=groups)
    expected = units(x, groups)
    assert count == expected.shape[1]
    assert mean.dtype == lo.dtype == m2.dtype == np.float64
    np.testing.assert_allclose(mean + lo, expected.mean(1), rtol=1e-6)
    np.testing.assert_allclose(m2, expected.var(1) * count, rtol=1e-5)


def test_the_mean_is_two_doubles():
    x = np.array([[1e16, 1.0], [1e16 + 2, 2.0], [1e16 + 2, 3.0]])
    _, mean, lo, m2 = steps.moments(x)
    assert mean[0] + lo[0] - 1e16 in (1.0, 2.0)  # the nearest doubles are 2 apart
    assert (mean[0] - 1e16) + lo[0] == pytest.approx(4 / 3)
    np.testing.assert_allclose(m2, [8 / 3, 2.0])


@pytest.mark.parametrize("layout", [contiguous, channels_last], ids=lambda f: f.__name__)
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_apply_and_its_backward(rng, draw, dtype, groups, layout):
    x, dy = rng.standard_normal((2, *SHAPE)).astype(dtype)
    mean, lo, rstd, weight, bias = draw(groups)
    x64, dy64 = np.asarray(x, np.float64), np.asarray(dy, np.float64)
    dev, factor = x64 - by_unit(mean + lo, groups), by_unit(rstd, groups)
    w, b = by_channel(weight), by_channel(bias)
    forward = layout(x), mean, lo, rstd, weight, bias

    y = steps.apply(*forward, groups=groups)
    assert y.dtype == dtype
    close(y, dev * factor * w + b, dtype)

    sums, *grads = steps.grad_sums(layout(dy), *forward, groups=groups)
    g = dy64 * w
    wanted = np.stack([units(a, groups).sum(1) for a in (g, g * dev)], -1)
    close(sums, wanted, dtype)
    close(grads[0], (dy64 * dev * factor).sum((0, 2, 3)), dtype)
    close(grads[1], dy64.sum((0, 2, 3)), dtype)

    count = 11.0  # elements of a whole unit, of which this is a part
    dx = steps.grad_apply(layout(dy), *forward, sums, count, groups=groups)
    first, second = (by_unit(a, groups) / count for a in sums.T)
    close(dx, factor * (g - first - dev * factor**2 * second), dtype)
    nothing = steps.grad_apply(layout(dy), *forward, np.zeros_like(sums), 1, groups=groups)
    close(nothing, factor * g, dtype)


@pytest.mark.parametrize("layout", [contiguous, channels_last], ids=lambda f: f.__name__)
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_grad_moments(rng, draw, dtype, groups, layout):
    x, dx = rng.standard_normal((2, *SHAPE)).astype(dtype)
    grad_mean, _, grad_m2, _, _ = draw(groups)
    count, mean, lo, _ = steps.moments(layout(x), groups=groups)
    got = steps.grad_moments(layout(dx), layout(x), mean, lo, grad_mean, grad_m2, groups=groups)
    dev = np.asarray(x, np.float64) - by_unit(mean + lo, groups)
    wanted = by_unit(grad_mean, groups) / count + 2 * by_unit(grad_m2, groups) * dev
    assert got.dtype == dtype
    close(got, np.asarray(dx, np.float64) + wanted, dtype)


@pytest.mark.parametrize("groups", GROUPS)
def test_a_norm_of_steps_is_the_norm(rng, groups):
    x, dy = rng.standard_normal((2, *SHAPE))
    weight, bias = rng.standard_normal((2, SHAPE[1]))
    count, mean, lo, m2 = steps.moments(x, groups=groups)
    forward = x, mean, lo, 1 / np.sqrt(m2 / count + 1e-5), weight, bias
    y = steps.apply(*forward, groups=groups)
    sums, grad_weight, grad_bias, _ = steps.grad_sums(dy, *forward, groups=groups)
    dx = steps.grad_apply(dy, *forward, sums, count, groups=groups)
    if groups:
        expected = F.group_norm(x, groups, weight, bias, return_stats=True)
        grads = F.group_norm_backward(dy, x, groups, *expected[1:], weight)
    else:
        expected = F.batch_norm(x, None, None, weight, bias, True, return_stats=True)
        grads = F.batch_norm_backward(dy, x, *expected[1:], weight)
    for got, want in zip((y, dx, grad_weight, grad_bias), (expected[0], *grads), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("slope", [0.0, 0.3, "channel"])
def test_the_activation(rng, draw, slope):
    x, dy = rng.standard_normal((2, *SHAPE))
    mean, lo, rstd, weight, bias = draw(6)
    slopes = np.linspace(-0.5, 0.5, SHAPE[1]) if slope == "channel" else slope
    how = {"groups": 6, "negative_slope": slopes}
    z = steps.apply(x, mean, lo, rstd, weight, bias, groups=6)
    s = by_channel(slopes) if slope == "channel" else slopes
    y = steps.apply(x, mean, lo, rstd, weight, bias, **how)
    np.testing.assert_array_equal(y, np.where(z > 0, z, z * s))
    sums, grad_weight, grad_bias, grad_slope = steps.grad_sums(
        dy, x, mean, lo, rstd, weight, bias, **how
    )
    behind = np.where(z > 0, dy, dy * s)
    plain = steps.grad_sums(behind, x, mean, lo, rstd, weight, bias, groups=6)
    for got, want in zip((sums, grad_weight, grad_bias), plain, strict=False):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(grad_slope, np.where(z > 0, 0, dy * z).sum((0, 2, 3)), rtol=1e-12)


def test_channel_axes(rng):
    x = rng.standard_normal(SHAPE)
    last = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    for groups in GROUPS:
        for got, want in zip(
            steps.moments(last, channel_axis=-1, groups=groups),
            steps.moments(x, groups=groups),
            strict=True,
        ):
            np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-15)
    one, expected = steps.moments(x[0], channel_axis=0), steps.moments(x[:1])
    for got, want in zip(one, expected, strict=True):
        np.testing.assert_array_equal(got, want)


def test_none_stands_for_zeros(rng):
    x = rng.standard_normal(SHAPE)
    rstd, zeros = rng.standard_normal(6), np.zeros(6)
    expected = steps.apply(x, zeros, zeros, rstd)
    np.testing.assert_array_equal(steps.apply(x, None, None, rstd), expected)
    np.testing.assert_array_equal(steps.apply(x, zeros, None, rstd), expected)
    np.testing.assert_array_equal(
        steps.grad_sums(x, x, None, None, rstd)[0], steps.grad_sums(x, x, zeros, zeros, rstd)[0]
    )


def test_parts_add_up_to_the_whole(rng):
    x, dy = rng.standard_normal((2, *SHAPE))
    count, mean, lo, m2 = steps.moments(x)
    stats = mean, lo, 1 / np.sqrt(m2 / count + 1e-5)
    whole = steps.grad_sums(dy, x, *stats)
    parts = [steps.grad_sums(dy[i], x[i], *stats) for i in (slice(0, 1), slice(1, 3))]
    for got, want in zip(zip(*parts, strict=True), whole, strict=True):
        np.testing.assert_allclose(sum(got), want, rtol=1e-10, atol=1e-12)
    dx = steps.grad_apply(dy, x, *stats, None, None, whole[0], count)
    part = steps.grad_apply(dy[1:], x[1:], *stats, None, None, whole[0], count)
    np.testing.assert_allclose(part, dx[1:], rtol=1e-12, atol=1e-14)


def test_in_place(rng, draw):
    x, dy = rng.standard_normal((2, *SHAPE)).astype(np.float32)
    stats = draw(6)
    expected = steps.apply(x, *stats, groups=6)
    inside = x.copy()
    assert steps.apply(inside, *stats, groups=6, out=inside) is inside
    np.testing.assert_array_equal(inside, expected)
    sums = steps.grad_sums(dy, x, *stats, groups=6)[0]
    expected = steps.grad_apply(dy, x, *stats, sums, 35, groups=6)
    inside = dy.copy()
    steps.grad_apply(inside, x, *stats, sums, 35, groups=6, out=inside)
    np.testing.assert_array_equal(inside, expected)
    expected = steps.grad_moments(dy, x, *stats[:2], stats[0], stats[2], groups=6)
    inside = dy.copy()
    steps.grad_moments(inside, x, *stats[:2], stats[0], stats[2], groups=6, out=inside)
    np.testing.assert_array_equal(inside, expected)


def test_statistics_in_the_result_are_copied(rng):
    x = rng.standard_normal((4, 6))
    memory = rng.standard_normal((4, 6))
    mean, rstd = memory[0], memory[1]
    expected = steps.apply(x, mean.copy(), None, rstd.copy())
    np.testing.assert_array_equal(steps.apply(x, mean, None, rstd, out=memory), expected)


def test_units_without_elements():
    x = np.zeros((0, 3, 2), np.float32)
    count, mean, lo, m2 = steps.moments(x)
    assert count == 0 and not mean.any() and not lo.any() and not m2.any()
    zeros = np.zeros(3)
    assert steps.apply(x, zeros, zeros, zeros).shape == x.shape
    assert not steps.grad_sums(x, x, zeros, zeros, zeros)[0].any()
    assert steps.grad_moments(x, x, zeros, zeros, zeros, zeros).shape == x.shape


def test_threads_change_no_bit(rng):
    x, dy = rng.standard_normal((2, 8, 16, 40, 40)).astype(np.float32)

    def everything():
        count, mean, lo, m2 = steps.moments(x, groups=4)
        forward = x, mean, lo, 1 / np.sqrt(m2 / count), None, None
        y = steps.apply(*forward, groups=4)
        sums, *grads = steps.grad_sums(dy, *forward, groups=4)
        dx = steps.grad_apply(dy, *forward, sums, count, groups=4)
        last = steps.grad_moments(dx, x, mean, lo, mean, m2, groups=4)
        return [a.tobytes() for a in (mean, lo, m2, y, sums, *grads, dx, last)]

    with cnorm.num_threads(1):
        expected = everything()
    with cnorm.num_threads(3):
        assert everything() == expected


X, STATS = np.ones((2, 4, 3)), np.ones(4)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: steps.moments(X, groups=3), ValueError, "groups must be 0 or divide the 4"),
        (lambda: steps.moments(X, groups=-1), ValueError, "groups must be 0 or divide the 4"),
        (lambda: steps.moments(X, groups=1.0), TypeError, "groups must be an integer"),
        (lambda: steps.moments(X, channel_axis=3), ValueError, "channel_axis 3 is out of bounds"),
        (lambda: steps.moments([1, 2]), TypeError, "input must be a float32"),
        (lambda: steps.apply(X, STATS[:3], None, STATS), ValueError, "mean must have shape"),
        (lambda: steps.apply(X, STATS, None, STATS[:3]), ValueError, "rstd must have shape"),
        (lambda: steps.apply(X, STATS, None, None), TypeError, "rstd must be a float array"),
        (lambda: steps.apply(X, STATS, STATS[:3], STATS), RuntimeError, "lo should contain 4"),
        (lambda: steps.apply(X, STATS, None, STATS, STATS[1:]), RuntimeError, "weight should cont"),
        (lambda: steps.apply(X, STATS, None, STATS, out=X[:1]), ValueError, "out must have shape"),
        (lambda: steps.grad_sums(X[:1], X, STATS, None, STATS), ValueError, "grad_output must"),
        (
            lambda: steps.grad_apply(X, X, STATS, None, STATS, None, None, STATS, 1),
            ValueError,
            r"sums must have shape \(4, 2\)",
        ),
        (
            lambda: steps.grad_apply(X, X, STATS, None, STATS, None, None, np.ones((4, 2)), None),
            TypeError,
            "count must be a number",
        ),
        (
            lambda: steps.grad_moments(X.astype("f4"), X, STATS, None, STATS, STATS),
            TypeError,
            "grad_input must have the input's dtype",
        ),
        (
            lambda: steps.grad_moments(X, X, STATS, None, STATS[1:], STATS),
            ValueError,
            "grad_mean must have shape",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
    assert (X == 1).all() and (STATS == 1).all()


@pytest.mark.parametrize("module", [F, steps], ids=lambda m: m.__name__)
def test_completion_shows_the_public_names(module):
    assert sorted(dir(module)) == sorted(module.__all__)
    assert all(callable(getattr(module, name)) for name in module.__all__)
