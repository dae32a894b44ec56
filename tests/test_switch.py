"""SwitchNorm: its running statistics, its weights, and variances without cancellation."""

import numpy as np
import pytest
from operations import SwitchNorm, check, oracle

import cnorm.functional as F


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
