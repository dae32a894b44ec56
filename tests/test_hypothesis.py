"""Calls that nobody would think of: any shape, strides, dtype, axis, aliasing and norm.

CNORM_EXAMPLES says how many of them; the default suits a continuous integration.
"""

import os

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from layouts import LAYOUTS
from operations import DTYPES, OPERATIONS, accumulation, check, oracle
from team import team

import cnorm.functional as F
from cnorm import _dispatch

pytestmark = pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # of half parameters
EXAMPLES = int(os.environ.get("CNORM_EXAMPLES", "300"))
LENGTHS = st.one_of(st.integers(0, 5), st.sampled_from([1, 1, 2, 7, 15, 16, 17, 33, 65]))
SHAPES = st.lists(LENGTHS, min_size=1, max_size=6).filter(lambda s: np.prod(s) <= 5000)
SLOPES = st.sampled_from([None, None, 0.0, 0.1, -0.5, "one", "channels"])
CLIPS = st.sampled_from([(-0.5, 0.75), (0.0, 6.0), (None, 0.25), (-1, None), (0.1, 0.1)])

in_ci = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)


@st.composite
def calls(draw):
    operation = draw(st.sampled_from(OPERATIONS))
    shape = tuple(draw(SHAPES))
    by_channel = operation.by_channel and len(shape) > 1
    axis = draw(st.integers(1, len(shape) - 1)) if by_channel else 1
    axis -= len(shape) if by_channel and draw(st.booleans()) else 0
    assume(operation.accepts(shape, axis))
    dtype = draw(st.sampled_from(DTYPES))
    parameters = draw(st.sampled_from([np.float16, np.float32, np.float64]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    x, dy = draw(st.sampled_from([0.0, 0.5, -100.0])) + rng.normal(size=(2, *shape))
    p = operation.draw(rng, shape, axis, parameters)
    for name in draw(st.sets(st.sampled_from(["weight", "bias"]))) & set(p):
        p[name] = None
    layouts = [draw(st.sampled_from(LAYOUTS)) for _ in range(3)]
    return operation, x.astype(dtype), dy.astype(dtype), p, axis, layouts, rng


def _slope(kind, shape, axis, rng):
    if kind == "one":
        return np.array([0.25], np.float32)
    if kind == "channels" and len(shape) > 1 and shape[axis]:
        return rng.uniform(-1, 1, shape[axis]).astype(np.float32)
    return None if isinstance(kind, str) else kind


@in_ci
@given(calls(), SLOPES | CLIPS, st.sampled_from(_dispatch.available()), st.integers(1, 3))
def test_any_call(call, kind, build, threads):
    operation, x, dy, p, axis, layouts, rng = call
    how = {}
    if isinstance(kind, tuple):
        how = {"clip": kind} if operation.takes_clip else {}
    elif operation.takes_slope and (slope := _slope(kind, x.shape, axis, rng)) is not None:
        how = {"slope": slope}
    if x.size:
        x, dy = layouts[0](x, axis % x.ndim), layouts[1](dy, axis % x.ndim)
    if how:  # not where rounding decides on which side of a kink a value falls
        z = oracle(operation, np.array(x), np.array(dy), p, axis=axis)["y"]
        kinks = [0] if "slope" in how else [bound for bound in kind if bound is not None]
        near = np.any([np.abs(z - kink) < 1e-2 for kink in kinks], 0)
        dy = np.where(near, 0, dy.astype(float)).astype(dy.dtype.newbyteorder("="))
    expected = oracle(operation, np.array(x), np.array(dy), p, axis=axis, **how)
    with _dispatch.using(build), team(threads):
        actual = operation.run(F, x, dy, p, axis=axis, **how)
    check(actual, expected, x.dtype.newbyteorder("="), np.array(dy), f"{operation} {x.shape}")


@in_ci
@given(calls(), st.sampled_from(["x", "layout", "shifted", "transposed"]), st.integers(-9, 9))
def test_any_output(call, kind, shift):
    operation, x, _, p, axis, layouts, _ = call
    assume(x.size)
    x = np.array(layouts[0](x, axis % x.ndim))
    x = x.astype(x.dtype.newbyteorder("="))
    memory = np.zeros(3 * x.size, x.dtype)
    source = memory[x.size : 2 * x.size].reshape(x.shape)
    source[...] = x
    if kind == "x":
        out = source
    elif kind == "layout":
        out = layouts[2](np.zeros_like(x), axis % x.ndim)
        assume(out.flags.writeable and out.dtype.isnative and 0 not in out.strides)
    elif kind == "shifted":
        start = max(0, min(x.size + shift, 2 * x.size))
        out = memory[start : start + x.size].reshape(x.shape)
    else:
        out = source.transpose()
        assume(out.shape == x.shape)
    options = {"channel_axis": axis} if operation.by_channel else {}
    expected = operation.forward(F, x, _copies(p), **options)[0].copy()
    try:
        actual = operation.forward(F, source, _copies(p), out=out, **options)[0]
    except ValueError as error:
        assert "overlap" in str(error)
        np.testing.assert_array_equal(source.astype(float), x.astype(float))
        return
    assert actual is out
    limit = 8 * float(np.finfo(accumulation(x.dtype)).eps)
    if x.dtype.itemsize == 2:
        limit = 2.0**-7
    largest = np.abs(expected.astype(float)).max()
    np.testing.assert_allclose(
        out.astype(float), expected.astype(float), rtol=limit, atol=limit * max(1, largest)
    )


def _copies(p):
    return {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in p.items()}
