"""Residual add and norm in one visit."""

import numpy as np
import pytest
from operations import AddLayerNorm, AddRMSNorm, check, oracle

import cnorm.functional as F

NORMS = ["layer_norm", "rms_norm"]


@pytest.fixture(params=NORMS)
def norm(request):
    return getattr(F, request.param), getattr(F, f"add_{request.param}")


def _pair(rng, dtype, shape=(4, 6, 33)):
    return rng.normal(size=(2, *shape)).astype(dtype)


def test_the_sum_is_rounded_as_an_addition_is(build, norm, dtype, rng):
    plain, added = norm
    x, residual = _pair(rng, dtype)
    y, total = added(x, residual, 33)
    np.testing.assert_array_equal(total.astype(float), (x + residual).astype(float))
    assert y.dtype == total.dtype == dtype
    expected = plain(x + residual, 33)
    np.testing.assert_array_equal(y.astype(float), expected.astype(float))


@pytest.mark.parametrize("length", [1, 7, 33, 300])
def test_without_a_weight_and_with_a_slope_for_each_row(build, norm, dtype, rng, length):
    plain, added = norm
    x, residual = _pair(rng, dtype, (3, 40, length))
    slopes = {"negative_slope": rng.uniform(-1, 1, 40), "channel_axis": 1}
    y, total = added(x, residual, length, **slopes)
    np.testing.assert_array_equal(total.astype(float), (x + residual).astype(float))
    expected = plain(x + residual, length, **slopes)
    np.testing.assert_array_equal(y.astype(float), expected.astype(float))


def test_in_place_on_the_residual(norm, rng):
    _, added = norm
    x, residual = _pair(rng, np.float32)
    expected, expected_sum = added(x, residual, 33)
    stream = residual.copy()
    y, total = added(x, stream, 33, residual_out=stream)
    assert total is stream
    np.testing.assert_array_equal(stream, expected_sum)
    np.testing.assert_array_equal(y, expected)


def test_in_place_on_both(norm, rng):
    _, added = norm
    x, residual = _pair(rng, np.float32)
    expected, expected_sum = added(x, residual, 33)
    y, total = added(x, residual, 33, out=x, residual_out=residual)
    assert y is x
    assert total is residual
    np.testing.assert_array_equal(x, expected)
    np.testing.assert_array_equal(residual, expected_sum)


def test_crossed_outputs_are_right_or_refused(norm, rng):
    """The result into the residual's memory and the sum into the input's."""
    _, added = norm
    x, residual = _pair(rng, np.float32)
    expected, expected_sum = added(x, residual, 33)
    try:
        y, total = added(x, residual, 33, out=residual, residual_out=x)
    except ValueError:
        return
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(total, expected_sum)


def test_one_array_for_both_outputs_is_refused(norm, rng):
    _, added = norm
    x, residual = _pair(rng, np.float32)
    both = np.empty_like(x)
    with pytest.raises(ValueError, match=r"out|overlap"):
        added(x, residual, 33, out=both, residual_out=both)


def test_layouts_of_the_residual(norm, rng):
    _, added = norm
    x, residual = _pair(rng, np.float32)
    expected = added(x, residual, 33)
    views = [
        np.asfortranarray(residual),
        np.repeat(residual, 2, -1)[..., ::2],
        np.repeat(residual, 2, 0)[::2],
        residual[:, :, ::-1].copy()[:, :, ::-1],
    ]
    for view in views:
        for actual, e in zip(added(x, view, 33), expected, strict=True):
            np.testing.assert_array_equal(actual, e)


def test_the_same_array_twice(norm, rng):
    _, added = norm
    x, _ = _pair(rng, np.float32)
    _, total = added(x, x, 33)
    np.testing.assert_array_equal(total, 2 * x)


def test_a_transformer_block_keeps_its_stream(rng):
    """Two blocks, forward and backward through both norms and the residual stream."""
    x, h1, h2, dy = rng.normal(size=(4, 3, 5, 8))
    weight, bias = rng.normal(size=(2, 8))

    def forward(x):
        y1, s1, *stats1 = F.add_layer_norm(h1, x, 8, weight, bias, return_stats=True)
        y2, s2, *stats2 = F.add_layer_norm(h2 * y1, s1, 8, weight, bias, return_stats=True)
        return y2, (s1, stats1), (s2, stats2), y1

    _, (s1, stats1), (s2, stats2), _ = forward(x)
    through, *_ = F.add_layer_norm_backward(dy, None, s2, 8, *stats2, weight)
    dx, *_ = F.add_layer_norm_backward(through * h2, through, s1, 8, *stats1, weight)
    direction, step = rng.normal(size=x.shape), 1e-5
    loss = [(forward(x + sign * step * direction)[0] * dy).sum() for sign in (1, -1)]
    assert abs((loss[0] - loss[1]) / (2 * step) - (dx * direction).sum()) < 1e-6


@pytest.mark.parametrize("operation", [AddLayerNorm(axes="all"), AddRMSNorm(axes="all")], ids=str)
def test_rows_over_several_axes(build, operation, dtype, rng):
    x, dy = rng.normal(size=(2, 4, 5, 7)).astype(dtype)
    p = operation.draw(rng, x.shape, 1, np.float64)
    check(operation.run(F, x, dy, p), oracle(operation, x, dy, p), dtype, dy, operation)
