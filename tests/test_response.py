"""LocalResponseNorm and the legacy CrossMapLRN2d: sizes, powers, and nothing that drifts."""

import numpy as np
import pytest
from operations import CrossMapLRN, ResponseNorm, check, oracle

import cnorm.functional as F


@pytest.mark.parametrize("norm", [ResponseNorm, CrossMapLRN])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, 13, 40])
def test_sizes_even_and_odd_and_larger_than_the_channels(build, norm, size, rng):
    for channels in (1, 2, 7, 17):
        for axis, shape in [(1, (2, channels, 5, 7)), (-1, (2, 5, 7, channels))]:
            for dtype in (np.float32, np.float64):
                x, dy = rng.normal(size=(2, *shape)).astype(dtype)
                for beta in (0.75, 0.6):
                    operation = norm(size=size, beta=beta)
                    p = operation.draw(rng, shape, axis)
                    actual = operation.run(F, x, dy, p, axis=axis)
                    expected = oracle(operation, x, dy, p, axis=axis)
                    check(actual, expected, x.dtype, dy, f"{operation} {shape}")


@pytest.mark.parametrize("beta", [0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 0.1, 3.3, -0.5])
def test_powers(build, beta, rng):
    """The fast paths and the general power, over many scales."""
    operation = ResponseNorm(size=5, beta=beta)
    for k in (1.0, 1e-3, 100.0):
        for scale in (1e-4, 1.0, 1e4):
            x, dy = rng.normal(0, scale, (2, 3, 9, 35)).astype(np.float32)
            p = {"alpha": 0.7, "k": k}
            actual, expected = operation.run(F, x, dy, p), oracle(operation, x, dy, p)
            for name, limit in (("y", 4), ("grad_input", 16)):
                size = np.abs(expected[name]).max()
                error = np.abs(actual[name] - expected[name]).max()
                assert error <= limit * np.finfo(np.float32).eps * size, (name, k, scale)


def test_a_window_forgets_what_has_left_it(build):
    """A running sum would keep the rounding of a large channel: this must not."""
    x = np.ones((1, 64, 33), np.float32)
    x[:, 3] = 1e8
    y = F.local_response_norm(x, 5, alpha=1.0, beta=1.0, k=0.0)
    np.testing.assert_allclose(y[:, 10:-2], 1.0, rtol=1e-6)


def test_defaults_are_those_of_torch(rng):
    x = rng.normal(0, 10, (2, 6, 5))
    y = F.local_response_norm(x, 2)
    before = np.concatenate([np.zeros((2, 1, 5)), x[:, :-1]], 1)
    expected = x / (1 + 1e-4 / 2 * (x**2 + before**2)) ** 0.75
    np.testing.assert_allclose(y, expected, rtol=1e-14)


def test_ranks(build, rng):
    operation = ResponseNorm(size=3, beta=0.75)
    for shape in [(2, 6, 5), (2, 6, 5, 3), (2, 6, 3, 2, 3), (2, 6, 2, 3, 2, 2)]:
        x, dy = rng.normal(size=(2, *shape)).astype(np.float32)
        p = operation.draw(rng, shape, 1)
        check(operation.run(F, x, dy, p), oracle(operation, x, dy, p), x.dtype, dy, shape)


@pytest.mark.parametrize("norm", [ResponseNorm, CrossMapLRN])
@pytest.mark.parametrize("axis", [1, -1])
def test_in_place(build, norm, axis, rng):
    """Several stretches, more channels than are under way at a time: nothing is read too late."""
    shape = (2, 23, 1, 1501) if axis == 1 else (2, 1, 1501, 23)
    operation = norm(size=5, beta=0.75)
    p = operation.draw(rng, shape, axis)
    for dtype in (np.float32, np.float64, np.float16):
        x, dy = rng.normal(size=(2, *shape)).astype(dtype)
        (y,) = operation.forward(F, x, p, channel_axis=axis)
        dx = operation.backward(F, dy, x, (), p, channel_axis=axis)
        same = x.copy()
        operation.backward(F, dy, same, (), p, channel_axis=axis, out=same)
        np.testing.assert_array_equal(same, dx)
        same = dy.copy()
        operation.backward(F, same, x, (), p, channel_axis=axis, out=same)
        np.testing.assert_array_equal(same, dx)
        same = x.copy()
        operation.forward(F, same, p, channel_axis=axis, out=same)
        np.testing.assert_array_equal(same, y)


def test_one_bad_value_spoils_its_window_and_no_more(build, rng):
    clean = rng.normal(size=(2, 9, 5)).astype(np.float32)
    x = clean.copy()
    x[1, 4, 2] = np.nan
    y, expected = F.local_response_norm(x, 3), F.local_response_norm(clean, 3)
    expected[1, 3:6, 2] = np.nan
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_power_without_roots_at_its_ends(build, dtype):
    """Scales from the least to the largest normal number, beyond both, and what is no number."""
    limits = np.finfo(dtype)
    x = np.zeros((1, 1, 40), dtype)
    x[..., :20] = np.geomspace(1e-3, 1e3, 20)
    for k in (limits.smallest_subnormal, limits.tiny / 4, limits.tiny, 1.0, limits.max / 2):
        y = F.local_response_norm(x, 1, alpha=0.0, k=float(k))
        expected = x.astype(np.longdouble) * np.longdouble(dtype(k)) ** -0.75
        error = np.abs(y - expected) / np.maximum(np.abs(expected), limits.tiny)
        assert error.max() <= 4 * limits.eps
    x[0, 0, :3] = np.sqrt(limits.max) * 4, np.inf, np.nan  # whose squares are infinite, and NaN
    for y in (
        F.local_response_norm(x, 1, alpha=1.0),
        F.local_response_norm(x, 1, alpha=1.0, k=float(limits.tiny / 4)),  # by roots
        F.local_response_norm_backward(np.ones_like(x), x, 1, alpha=1.0),
    ):
        assert np.isnan(y[0, 0, 1:3]).all()
        assert np.isfinite(y[0, 0, 3:]).all()
    assert F.local_response_norm(x, 1, alpha=1.0)[0, 0, 0] == 0
    with np.errstate(invalid="ignore"):
        assert np.isnan(F.local_response_norm(x, 1, alpha=-1.0)[0, 0, 4:20]).sum() > 0  # roots
