"""SwitchNorm: its running statistics, its weights, and variances without cancellation."""

import copy as copying
import pickle

import numpy as np
import pytest
from operations import SwitchNorm, check, oracle

import cnorm
import cnorm.functional as F
from cnorm.kernels import mixing


def _weights(rng, mixed=3):
    return rng.normal(size=(2, mixed))


@pytest.mark.parametrize("moving_average", [True, False])
def test_running_statistics(build, moving_average, rng):
    x = rng.normal(1, 2, (4, 6, 5, 7))
    flat = x.reshape(4, 6, -1)
    mean_in, var_in = flat.mean(-1), flat.var(-1, ddof=1)
    mean = mean_in.mean(0)
    var = (var_in + mean_in**2).mean(0) - mean**2
    running = rng.normal(size=(1, 6, 1)), rng.uniform(1, 2, (1, 6, 1))
    before = [r.copy() for r in running]
    F.switch_norm(
        x, *running, None, None, *_weights(rng), training=True, momentum=0.9,
        using_moving_average=moving_average,
    )  # fmt: skip
    if moving_average:
        expected = [0.9 * b.ravel() + 0.1 * v for b, v in zip(before, (mean, var), strict=True)]
    else:
        sums = (mean, mean**2 + var)
        expected = [b.ravel() + v for b, v in zip(before, sums, strict=True)]
    for r, e in zip(running, expected, strict=True):
        assert r.shape == (1, 6, 1)
        np.testing.assert_allclose(r.ravel(), e, rtol=1e-12)


def test_evaluation_uses_and_keeps_the_running_statistics(rng):
    x = rng.normal(1, 2, (4, 6, 5, 7))
    running = rng.normal(size=6), rng.uniform(1, 2, 6)
    before = [r.copy() for r in running]
    only_batch = np.array([0, 0, 1e3])
    y = F.switch_norm(x, *running, None, None, only_batch, only_batch)
    expected = (x - running[0].reshape(6, 1, 1)) / np.sqrt(running[1].reshape(6, 1, 1) + 1e-5)
    np.testing.assert_allclose(y, expected, rtol=1e-12)
    for r, b in zip(running, before, strict=True):
        np.testing.assert_array_equal(r, b)


def test_without_batch_statistics(build, dtype, rng):
    """Two weights of input with spatial axes are those of instance and layer."""
    operation = SwitchNorm(training=True)
    x, dy = rng.normal(size=(2, 4, 6, 5, 7)).astype(dtype)
    p = operation.draw(rng, x.shape, 1)
    p |= {k: p[k][:2] for k in ("mean_weight", "var_weight")}
    del p["running_mean"], p["running_var"]
    p |= {"running_mean": None, "running_var": None}
    check(operation.run(F, x, dy, p), oracle(operation, x, dy, p), dtype, dy, operation)


def test_parameters_in_the_shapes_of_the_authors(rng):
    """(1, C, 1, 1): the gradients come in the same shapes."""
    operation = SwitchNorm(training=True)
    x, dy = rng.normal(size=(2, 4, 6, 5, 7))
    p = operation.draw(rng, x.shape, 1)
    expected = operation.run(F, x, dy, p)
    p |= {k: p[k].reshape(1, 6, 1, 1) for k in ("weight", "bias")}
    p |= {k: p[k].reshape(1, 6, 1) for k in ("running_mean", "running_var")}
    actual = operation.run(F, x, dy, p)
    for name in set(expected) - {"stats"}:
        np.testing.assert_array_equal(actual[name].ravel(), expected[name].ravel(), name)
        assert name not in ("grad_weight", "grad_bias") or actual[name].shape == (1, 6, 1, 1)


@pytest.mark.parametrize("mean", [1e2, 1e4])
def test_large_means(build, mean, rng):
    """temp - mean**2 would leave nothing of the variance."""
    operation = SwitchNorm(training=True)
    for shape in [(4, 6, 35), (4, 6, 7, 5), (32, 6)]:
        for axis in (1, -1):
            x = rng.normal(mean, 1, shape).astype(np.float32)
            dy = rng.normal(size=shape).astype(np.float32)
            p = operation.draw(rng, shape, axis)
            actual = operation.run(F, x, dy, p, axis=axis)
            check(actual, oracle(operation, x, dy, p, axis=axis), x.dtype, dy, f"{shape} {axis}")


def test_constant_input_gives_the_bias(build):
    bias = np.linspace(-1, 1, 6)
    x = np.full((4, 6, 5, 7), 0.1, np.float32)
    y = F.switch_norm(x, None, None, None, bias, np.ones(3), np.ones(3), training=True)
    expected = np.broadcast_to(bias.astype(np.float32).reshape(6, 1, 1), x.shape)
    np.testing.assert_allclose(y, expected, atol=1e-7)


def test_extreme_weights_do_not_overflow(rng):
    x = rng.normal(size=(4, 6, 35)).astype(np.float32)
    huge = np.array([1e4, -1e4, 0.0])
    y = F.switch_norm(x, None, None, None, None, huge, huge, training=True)
    assert np.isfinite(y).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("slope", [None, 0.25])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "shape", [(0, 6, 5), (4, 6, 0), (4, 0, 5), (0, 6), (4, 0), (0, 0), (0, 0, 0)]
)
def test_empty_arrays_warn_of_nothing(shape, training, slope):
    x, channels, mixed = np.empty(shape, np.float32), shape[1], min(len(shape), 3)
    parameters = np.ones(channels), np.ones(channels), np.ones(mixed), np.ones(mixed)
    running = np.zeros(channels), np.ones(channels)
    y, stats = F.switch_norm(
        x, *running, *parameters, training, return_stats=True, negative_slope=slope
    )
    weight, bias, *mixes = parameters
    grads = F.switch_norm_backward(x, x, stats, weight, *mixes, bias, negative_slope=slope)
    assert y.shape == grads[0].shape == shape
    assert not any(np.any(grad) for grad in grads)
    assert (running[0] == 0).all() and (running[1] == 1).all()


def test_a_slope_of_the_wrong_length(rng):
    x = rng.normal(size=(4, 6))
    for slope in ((), [1.0, 2.0]):
        with pytest.raises(ValueError, match="negative_slope must hold 1 or 6 values"):
            F.switch_norm(
                x, None, None, None, None, np.ones(2), np.ones(2), True, negative_slope=slope
            )


def test_statistics_of_another_input(rng):
    x = rng.normal(size=(4, 6, 5))
    mix = np.ones(3), np.ones(3)
    _, stats = F.switch_norm(x, None, None, None, None, *mix, True, return_stats=True)
    for other in (x[:2], x[:, :3], rng.normal(size=(4, 6))):
        with pytest.raises(ValueError, match="stats are of an input of shape"):
            F.switch_norm_backward(other, other, stats, None, *mix)
    with pytest.raises(ValueError, match="stats are of 6 channels"):
        F.switch_norm_backward(x, x, stats, None, *mix, channel_axis=-1)


# --- accuracy -----------------------------------------------------------------------------------


LONG = np.longdouble
needs_long_doubles = pytest.mark.skipif(
    np.finfo(LONG).nmant < 63, reason="long doubles are no longer than doubles here"
)


@needs_long_doubles
def test_exponential(rng):
    x = np.concatenate([rng.uniform(-750, 0, 4000), rng.uniform(-2, 0, 4000), [0.0, -1e-300, -745]])
    found = np.array([mixing.exp(value) for value in x])
    exact = np.exp(x.astype(LONG))
    ulps = np.abs(found - exact) / np.spacing(exact.astype(np.float64)).astype(LONG)
    assert ulps.max() < 0.9
    assert mixing.exp(0.0) == 1
    assert mixing.exp(-np.inf) == mixing.exp(-800.0) == 0
    assert mixing.exp(710.5) == np.inf
    assert np.isnan(mixing.exp(np.nan))


def _shares(logits):
    powers = np.exp(logits.astype(LONG) - logits.max())
    return powers / powers.sum()


def _exactly(x, p, eps=1e-5):
    """The result, in long doubles."""
    n, c = x.shape[:2]
    flat = x.astype(LONG).reshape(n, c, -1)
    if x.ndim == 2:
        means = [flat.mean(axis, keepdims=True) for axis in (1, 0)]
        variances = [flat.var(axis, ddof=1, keepdims=True) for axis in (1, 0)]
    else:
        mean, var = flat.mean(-1, keepdims=True), flat.var(-1, ddof=1, keepdims=True)
        means, variances = [mean], [var]
        for axis in (1, 0):
            means.append(mean.mean(axis, keepdims=True))
            variances.append(var.mean(axis, keepdims=True) + mean.var(axis, keepdims=True))
    mean = sum(a * b for a, b in zip(_shares(p["mean_weight"]), means, strict=True))
    var = sum(a * b for a, b in zip(_shares(p["var_weight"]), variances, strict=True))
    weight, bias = p["weight"].reshape(-1, 1), p["bias"].reshape(-1, 1)
    return ((flat - mean) / np.sqrt(var + LONG(eps)) * weight + bias).reshape(x.shape)


@needs_long_doubles
@pytest.mark.parametrize("shape", [(300, 70), (33, 700), (6, 12, 9, 5)])
@pytest.mark.parametrize("far", [(1, 1), (0, 1), (1, 0)], ids=["all", "samples", "channels"])
@pytest.mark.parametrize("tilt", [0, 8])
def test_no_mean_costs_accuracy(build, shape, far, tilt, rng):
    """Means of 1e4 and deviations of 1, together or apart, whatever has most of the mix."""
    sizes = [1 if together else n for n, together in zip(shape, far, strict=False)]
    means = rng.normal(size=(*sizes, *[1] * (len(shape) - 2)))
    p = SwitchNorm(training=True).draw(rng, shape, 1)
    for k in range(len(p["mean_weight"])):
        for name in ("mean_weight", "var_weight"):
            p[name][:] = rng.normal(size=p[name].size)
            p[name][k] += tilt
        for dtype in (np.float32, np.float64):
            x = (1e4 * means + rng.normal(size=shape)).astype(dtype)
            y = F.switch_norm(x, None, None, p["weight"], p["bias"], p["mean_weight"],
                              p["var_weight"], True)  # fmt: skip
            exact = _exactly(x, p)
            error = np.abs(y - exact).max() / np.abs(exact).max() / np.finfo(dtype).eps
            assert error < 6, (dtype, k, float(error))


@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e15, 1e30])
@pytest.mark.parametrize("shape", [(40, 21), (3, 5, 4, 6)])
def test_magnitudes_that_squares_do_not_have(build, scale, shape, rng):
    """In float32 the squares of these overflow, or are 0."""
    operation = SwitchNorm(training=True, eps=1e-70)
    x, dy = rng.normal(size=(2, *shape)).astype(np.float32)
    x *= np.float32(scale)
    p = operation.draw(rng, shape, 1)
    check(operation.run(F, x, dy, p), oracle(operation, x, dy, p), x.dtype, dy, operation)


def test_one_outlier_of_a_table_leaves_the_others(build):
    """Where a row and a column without variance cross, others having a large one, is the bias."""
    x = np.zeros((6, 5), np.float32)
    x[0, 0] = 1e30
    y = F.switch_norm(x, None, None, None, np.ones(5), np.zeros(2), np.zeros(2), True)
    assert np.isfinite(y).all()
    np.testing.assert_array_equal(y[1:, 1:], 1)


# --- threads ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(64, 300, 4), (3, 6000, 2), (520, 530), (2000, 9), (40, 1030)])
@pytest.mark.parametrize("slope", [None, 0.25])
def test_threads_give_the_same_bits(shape, slope, rng):
    """Of many (sample, channel) pairs; of tables with one row range and with more."""
    operation = SwitchNorm(training=True)
    x, dy = rng.normal(3, 1, (2, *shape)).astype(np.float32)
    p = operation.draw(rng, shape, 1)
    found = []
    for threads in (1, 2, 5):
        with cnorm.num_threads(threads):
            found.append(operation.run(F, x, dy, p, slope=slope))
    for name in set(found[0]) - {"stats"}:
        for other in found[1:]:
            np.testing.assert_array_equal(other[name], found[0][name], name)


# --- statistics that are kept -------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 6), (3, 6, 5)])
def test_kept_statistics_can_be_copied(shape, rng):
    operation = SwitchNorm(training=True)
    x, dy = rng.normal(size=(2, *shape))
    p = operation.draw(rng, shape, 1)
    expected = operation.run(F, x, dy, p)
    _, stats = operation.forward(F, x, p)
    for copy in (copying.deepcopy(stats), pickle.loads(pickle.dumps(stats))):
        for name, grad in zip(
            operation.gradients, operation.backward(F, dy, x, (copy,), p), strict=False
        ):
            np.testing.assert_array_equal(grad, expected[name], name)
