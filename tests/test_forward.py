"""Forward on inputs that punish a careless formula: within 4 epsilon, on every build."""

import numpy as np
import pytest
from operations import (
    FORWARD_LIMIT,
    BatchNorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    RMSNorm,
    accumulation,
    assert_close,
    check,
    epsilon,
    oracle,
)

import cnorm.functional as F

MEAN_BASED = [
    BatchNorm(training=True),
    InstanceNorm(use_input_stats=True),
    GroupNorm(),
    LayerNorm(axes="last"),
    LayerNorm(axes="all"),
]
SHAPES = [(12, 6, 70), (3, 6, 33, 5), (300, 6)]


def _outlier(rng, shape):
    x = rng.normal(size=shape)
    x.flat[:: max(x.size // 3, 1)] = 1e4
    return x


HOSTILE = {
    "mean 1e2": lambda rng, shape: rng.normal(1e2, 1, shape),
    "mean 1e4": lambda rng, shape: rng.normal(1e4, 1, shape),
    "mean 1e6": lambda rng, shape: rng.normal(1e6, 1, shape),
    "mean -1e6": lambda rng, shape: rng.normal(-1e6, 1, shape),
    "outlier": _outlier,
    "ramp": lambda rng, shape: np.linspace(-5, 1e3, int(np.prod(shape))).reshape(shape),
    "large": lambda rng, shape: rng.normal(0, 1e30, shape),
    "small": lambda rng, shape: rng.normal(0, 1e-30, shape),
    "alternating": lambda rng, shape: np.where(np.indices(shape).sum(0) % 2, 1e4, -1e4 + 1),
}


@pytest.mark.parametrize("values", HOSTILE, ids=lambda v: v.replace(" ", "-"))
@pytest.mark.parametrize("float_type", [np.float32, np.float64])
@pytest.mark.parametrize("norm", MEAN_BASED, ids=str)
def test_hostile_values(build, norm, float_type, values, rng):
    dtype = np.dtype(float_type)
    for shape in SHAPES:
        for axis in (1, -1) if norm.by_channel else (1,):
            if norm.accepts(shape, axis):
                x = HOSTILE[values](rng, shape).astype(dtype)
                p = norm.draw(rng, shape, axis, dtype)
                actual = norm.run(F, x, np.ones_like(x), p, axis=axis)["y"]
                expected = oracle(norm, x, np.ones_like(x), p, axis=axis)["y"]
                scale = max(np.abs(expected).max(), 1)
                tolerance = FORWARD_LIMIT * epsilon(dtype) * scale
                assert_close(actual, expected, tolerance, f"{norm} {shape} axis {axis}")


@pytest.mark.parametrize("scale", [1e30, 1e-30, 1e4])
def test_rms_norm_at_any_scale(build, scale, rng):
    for shape in [(5, 3000), (40, 7)]:
        x = rng.normal(0, scale, shape).astype(np.float32)
        dy = rng.normal(size=shape).astype(np.float32)
        norm = RMSNorm(axes="last")
        p = norm.draw(rng, shape, 1, np.float32)
        actual = norm.run(F, x, dy, p)
        check(actual, oracle(norm, x, dy, p), x.dtype, dy, f"scale {scale}, {shape}")


@pytest.mark.parametrize("value", [0.1, -3.0, 1e4, 1e30, 1e-3, 1e-30, 0.0])
def test_a_constant_unit_gives_exactly_the_bias(build, dtype, value):
    value = min(value, 6e4) if dtype == np.float16 else value
    for shape in [(3, 6, 37), (5, 6, 700), (4, 6, 3, 5)]:
        x = np.full(shape, value).astype(dtype)
        bias = np.linspace(-1, 1, 6).astype(accumulation(dtype))
        expected = np.broadcast_to(bias.reshape(6, *[1] * (x.ndim - 2)), shape).astype(dtype)
        weight = np.full_like(bias, 1.7)
        np.testing.assert_array_equal(
            F.batch_norm(x, None, None, weight, bias, training=True), expected
        )
        np.testing.assert_array_equal(F.instance_norm(x, None, None, weight, bias), expected)
        np.testing.assert_array_equal(F.group_norm(x, 2, weight, bias), expected)
        bias = np.linspace(-1, 1, shape[-1]).astype(accumulation(dtype))
        y = F.layer_norm(x, shape[-1], None, bias)
        np.testing.assert_array_equal(y, np.broadcast_to(bias, shape).astype(dtype))


@pytest.mark.parametrize("spoiler", [np.nan, np.inf, -np.inf], ids=str)
def test_one_bad_value_spoils_its_unit_and_no_other(build, dtype, spoiler, rng):
    shape = (4, 6, 5, 7)
    clean = rng.normal(size=shape).astype(dtype)
    x = clean.copy()
    x[1, 4, 2, 3] = spoiler
    units = {
        "batch": (lambda a: F.batch_norm(a, training=True), np.s_[:, 4]),
        "instance": (F.instance_norm, np.s_[1, 4]),
        "group": (lambda a: F.group_norm(a, 3), np.s_[1, 4:6]),
        "layer": (lambda a: F.layer_norm(a, 7), np.s_[1, 4, 2]),
        "rms": (lambda a: F.rms_norm(a, 7), np.s_[1, 4, 2]),
        "layer all": (lambda a: F.layer_norm(a, shape[1:]), np.s_[1]),
    }
    for name, (norm, unit) in units.items():
        y, expected = norm(x), norm(clean).copy()
        assert np.isnan(y[unit].astype(float)).all(), name
        expected[unit] = np.nan
        np.testing.assert_array_equal(y.astype(float), expected.astype(float), err_msg=name)


def test_nan_in_evaluation_spoils_one_element(build, dtype, rng):
    x = rng.normal(size=(4, 6, 35)).astype(dtype)
    x[1, 2, 3] = np.nan
    y = F.batch_norm(x, np.zeros(6), np.ones(6))
    assert np.isnan(y.astype(float)).sum() == 1
    assert np.isnan(y[1, 2, 3])


def test_long_units(build, rng):
    """Many tiles in a unit, and a unit that fits in no cache."""
    for shape in [(2, 200_003), (1, 1_000_000)]:
        x = rng.normal(1e4, 1, shape).astype(np.float32)
        norm = LayerNorm(axes="last")
        p = norm.draw(rng, shape, 1, np.float32)
        check(norm.run(F, x, x, p), oracle(norm, x, x, p), x.dtype, x, f"{shape}")
    for norm, shape in [
        (BatchNorm(training=True), (40, 3, 90, 101)),
        (GroupNorm(), (2, 6, 150, 151)),
        (BatchNorm(training=True), (50_001, 6)),
    ]:
        for axis in (1, -1):
            x = rng.normal(1e2, 1, shape).astype(np.float32)
            dy = rng.normal(size=shape).astype(np.float32)
            p = norm.draw(rng, shape, axis, np.float32)
            actual = norm.run(F, x, dy, p, axis=axis)
            check(actual, oracle(norm, x, dy, p, axis=axis), x.dtype, dy, f"{norm} {shape} {axis}")


def test_statistics(build, rng):
    """What return_stats gives: float64, in the shapes that broadcast."""
    x = rng.normal(1e3, 2, (4, 6, 5, 7)).astype(np.float32)
    wide = x.astype(np.float64)
    cases = [
        (F.batch_norm(x, training=True, return_stats=True), (0, 2, 3), (6,)),
        (F.instance_norm(x, return_stats=True), (2, 3), (4, 6)),
        (F.layer_norm(x, (5, 7), return_stats=True), (2, 3), (4, 6, 1, 1)),
        (F.layer_norm(x, 7, return_stats=True), (3,), (4, 6, 5, 1)),
        (F.group_norm(x, 1, return_stats=True), (1, 2, 3), (4, 1)),
    ]
    for (y, mean, rstd), axes, shape in cases:
        assert y.dtype == x.dtype
        assert mean.dtype == rstd.dtype == np.float64
        assert mean.shape == rstd.shape == shape
        np.testing.assert_allclose(mean, wide.mean(axes).reshape(shape), rtol=1e-9)
        expected = 1 / np.sqrt(wide.var(axes).reshape(shape) + 1e-5)
        np.testing.assert_allclose(rstd, expected, rtol=5e-7)


def test_statistics_in_evaluation_are_the_running_ones(build):
    x = np.ones((4, 6, 5), np.float32)
    mean, var = np.arange(6.0), np.arange(1.0, 7)
    _, used, rstd = F.batch_norm(x, mean, var, return_stats=True)
    np.testing.assert_array_equal(used, mean)
    np.testing.assert_allclose(rstd, 1 / np.sqrt(var + 1e-5))
    assert not np.shares_memory(used, mean)
