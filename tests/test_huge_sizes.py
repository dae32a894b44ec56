"""Sizes whose products or bytes exceed what can be addressed: an error that says so, and soon.

Arrays of one element that is repeated 2**60 times, and arrays without elements whose other axes
are as long, cost nothing to make.
"""

import re
from math import prod

import ml_dtypes
import numpy as np
import pytest
from operations import calls_of

import cnorm.functional as F

REFUSED = (MemoryError, ValueError, RuntimeError)
# Of an allocation that failed, of a product that is no size, and of sizes that do not fit.
WORDS = re.compile(
    r"could not allocate \d+ bytes|nable to allocate|would (hold|need)|too (big|large)|[Ee]xpected|"
    r"shape|should contain|Maximum allowed|read-only"
)
# Each axis is short or too long for an array of as many elements to be allocated.
REPEATED = [
    (1, 1 << 58), (1 << 8, 1 << 51), (1 << 58, 1), (1 << 56, 4), (1, 1 << 58, 1), (2, 1 << 57, 1),
    (1 << 4, 1 << 50, 1 << 3), (2, 2, 1 << 56), (1 << 57, 2, 2), (1, 2, 2, 1 << 56),
]  # fmt: skip
EMPTY = [
    (0, 1 << 58), (1 << 58, 0), (1 << 58, 0, 1), (0, 1 << 57, 2), (1 << 8, 1 << 50, 0),
    (2, 1 << 57, 0), (1 << 57, 2, 0), (0, 2, 1 << 57), (0, 1, 2, 1 << 56),
]  # fmt: skip


def _repeated(shape, dtype):
    """An array of ones, in its own memory where that is small."""
    if prod(shape) < 1000:
        return np.ones(shape, dtype)
    return np.broadcast_to(np.ones((), dtype), shape)


def _enlarged(arguments, shape):
    """The arguments of a call for an input of another shape, each array without memory."""
    small, dtype = next((v.shape, v.dtype) for k, v in arguments.items() if k in ("input", "sum"))
    channels = shape[1]
    new = {}
    for name, value in arguments.items():
        if not isinstance(value, np.ndarray):
            new[name] = value
        elif value.shape == small:
            new[name] = _repeated(shape, dtype)
        elif value.size == small[1] and name not in ("mean_weight", "var_weight", "mean", "rstd"):
            new[name] = _repeated((channels,), value.dtype)
        else:
            new[name] = value
    if "normalized_shape" in new:
        row = shape[-1:] if len(new["normalized_shape"]) == 1 else shape[1:]
        rows = shape[: len(shape) - len(row)]
        new["normalized_shape"] = row
        for name in ("weight", "bias"):
            if new.get(name) is not None:
                new[name] = _repeated(row, np.float64)
        for name in {"mean", "rstd"} & set(new):
            new[name] = _repeated((*rows, *(1,) * len(row)), np.float64)
    else:
        units = {"group_norm_backward": (shape[0], 1), "instance_norm_backward": shape[:2]}
        for name in {"mean", "rstd"} & set(new):
            if new[name] is not None:
                new[name] = _repeated(units.get(name, (channels,)), np.float64)
    if "num_groups" in new:
        new["num_groups"] = 1
    return new


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("parameters", [True, False])
def test_huge_inputs(operation, dtype, parameters, rng):
    """An error, as no result fits, or the result without elements."""
    for function, arguments in calls_of(operation, rng, dtype=dtype):
        for shape in REPEATED + EMPTY:
            huge = _enlarged(arguments, shape)
            if not parameters:
                huge = {k: v for k, v in huge.items() if k not in ("weight", "bias")}
                if function.__name__.startswith("switch_norm"):
                    huge |= dict.fromkeys(("weight", "bias"))
            try:
                result = function(**huge)
            except REFUSED as error:
                assert WORDS.search(str(error)), (function.__name__, shape, error)
            else:
                result = result[0] if isinstance(result, tuple) else result
                assert prod(shape) == 0 and result.shape == shape, (function.__name__, shape)


def test_what_was_found():
    x = _repeated((1, 1 << 60, 1), np.float16)
    one = np.ones((1, 1))
    with pytest.raises(MemoryError, match=r"could not allocate|would need|Unable to allocate"):
        F.group_norm_backward(x, x, 1, one, one)


@pytest.mark.parametrize("groups", [1 << 62, 1 << 63, 10**30])
def test_more_groups_than_there_is_memory_for(groups):
    """No channels are divisible by any number of groups."""
    x = np.zeros((4, 0, 3), np.float32)
    with pytest.raises(MemoryError, match="would hold 4 times"):
        F.group_norm(x, groups)
    with pytest.raises(RuntimeError, match="divisible"):
        F.group_norm(np.zeros((4, 2, 3)), groups)


def test_sizes_beyond_the_address_space():
    x = np.ones((2, 3, 4))
    with pytest.raises(RuntimeError, match="normalized_shape"):
        F.layer_norm(x, 10**30)
    with pytest.raises(ValueError, match=r"size must be how many .* no array has so many"):
        F.local_response_norm(x, 10**30)
    with pytest.raises(ValueError, match="channel_axis 1000000000000000000000000000000 is out"):
        F.batch_norm(x, training=True, channel_axis=10**30)
