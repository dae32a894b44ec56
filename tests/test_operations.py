"""Every operation against the reference: builds x dtypes x layouts x threads x sizes."""

from itertools import count, cycle

import numpy as np
import pytest
from layouts import LAYOUTS
from operations import SIZES, accumulation, check, oracle
from team import team

import cnorm.functional as F
from cnorm import _dispatch

THREADS = (1, 2, 3, 8)


def _agrees_everywhere(operation, x, dy, p, context, **options):
    """Each build gives the reference's results; the input stays as it was."""
    expected = oracle(operation, np.array(x), np.array(dy), p, **options)
    before = np.array(x), np.array(dy)
    for build in _dispatch.available():
        with _dispatch.using(build):
            actual = operation.run(F, x, dy, p, **options)
        check(actual, expected, x.dtype.newbyteorder("="), dy, f"{operation} {context} {build}")
        assert actual["y"].dtype == actual["grad_input"].dtype == x.dtype.newbyteorder("=")
        np.testing.assert_array_equal(x, before[0])
        np.testing.assert_array_equal(dy, before[1])


def _axes(operation):
    return (1, -1) if operation.by_channel else (1,)


@pytest.mark.grid(4)
@pytest.mark.parametrize("size", SIZES)
def test_sizes(operation, dtype, size, rng):
    shapes = [(size,), (size, 6), (6, size), (3, 6, size), (2, size, 3), (2, 3, size, 2)]
    threads = cycle(THREADS)
    for shape in shapes:
        for axis in _axes(operation):
            if operation.accepts(shape, axis):
                x, dy = rng.normal(0.5, 1, (2, *shape)).astype(dtype)
                p = operation.draw(rng, shape, axis, accumulation(dtype))
                with team(next(threads)):
                    _agrees_everywhere(operation, x, dy, p, f"{shape}, axis {axis}", axis=axis)


@pytest.mark.grid(4)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_layouts(operation, dtype, layout, rng):
    others = cycle(LAYOUTS)
    for shape, turn in zip([(7, 33), (4, 6, 35), (4, 6, 5, 7), (2, 5, 3, 2, 3)], count()):
        for axis in _axes(operation):
            if operation.accepts(shape, axis):
                x, dy = rng.normal(0.5, 1, (2, *shape)).astype(dtype)
                p = operation.draw(rng, shape, axis, accumulation(dtype))
                of_dy = layout if turn % 2 else next(others)
                x, dy = layout(x, axis), of_dy(dy, axis)
                with team(THREADS[turn]):
                    context = f"{shape}, axis {axis}, dy {of_dy.__name__}"
                    _agrees_everywhere(operation, x, dy, p, context, axis=axis)


@pytest.mark.parametrize("parameters", [np.float16, np.float32, np.float64])
def test_parameters_keep_their_dtype(operation, dtype, parameters, rng):
    shape = (4, 6, 5, 3)
    x, dy = rng.normal(size=(2, *shape)).astype(dtype)
    p = operation.draw(rng, shape, 1, parameters)
    actual = operation.run(F, x, dy, p)
    check(actual, oracle(operation, x, dy, p), dtype, dy, operation)
    for name in ("weight", "bias", "mean_weight", "var_weight"):
        if name in p and f"grad_{name}" in actual:
            assert actual[f"grad_{name}"].dtype == parameters, name
    for name in ("mean", "rstd"):
        assert name not in actual or actual[name].dtype == np.float64


def test_absent_parameters(operation, dtype, rng):
    """Without weight and bias their gradients still come, in the accumulation type."""
    x, dy = rng.normal(size=(2, 4, 6, 5, 3)).astype(dtype)
    p = operation.draw(rng, x.shape, 1)
    p |= {name: None for name in ("weight", "bias") if name in p}
    actual = operation.run(F, x, dy, p)
    check(actual, oracle(operation, x, dy, p), dtype, dy, operation)
    for name in ("grad_weight", "grad_bias"):
        if name in actual:
            assert actual[name].dtype == accumulation(dtype)


def test_empty_arrays(operation, dtype):
    for shape in [(0, 6, 5, 2), (4, 6, 5, 0)]:
        x = np.empty(shape, dtype)
        if operation.accepts(shape, 1):
            p = operation.draw(np.random.default_rng(0), shape, 1)
            actual = operation.run(F, x, x, p)
            assert actual["y"].shape == actual["grad_input"].shape == shape
            for name in ("running_mean", "running_var"):
                if name in p:
                    np.testing.assert_array_equal(actual[name], p[name])
            for name in ("grad_weight", "grad_bias"):
                assert not np.any(actual.get(name))
