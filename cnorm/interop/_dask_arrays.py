"""Arguments of the functions of `cnorm.interop.dask`: arrays, axes, chunks, parameters."""

import math
import operator
from contextlib import suppress

import dask.array as da
import numpy as np

from .._call import moments as calls


def as_dask(x, name="the input"):
    if isinstance(x, da.Array):
        return x
    hint = "cnorm.functional takes arrays in memory"
    if type(x).__module__.startswith("xarray"):
        hint = "cnorm.interop.xarray takes those of xarray"
    raise TypeError(f"{name} must be a dask array, but got {type(x).__name__}: {hint}")


def channels_of(x, channel_axis):
    """(array, axis of the channels, not negative)."""
    x = as_dask(x)
    if x.ndim < 2:
        raise ValueError(f"expected at least 2D input (got {x.ndim}D input)")
    (channel,) = calls.resolve_axes((operator.index(channel_axis),), x.ndim)
    return x, channel


def reduced_and_kept(x, axis):
    """(reduced, kept) axes of an array."""
    axes = calls.resolve_axes(calls.as_axes(axis), x.ndim)
    return axes, calls.kept_axes(axes, x.ndim)


def meta(ndim, dtype):
    return np.empty((0,) * ndim, dtype)


def mask_like(where, x):
    """`where` as a dask array with the shape and the chunks of `x`."""
    where = da.asarray(where)
    if where.dtype == bool:
        with suppress(ValueError):
            return da.broadcast_to(where, x.shape).rechunk(x.chunks)
    from .. import _hints

    if where.dtype != bool:
        raise TypeError(_hints.mask_dtype(where.dtype))
    raise ValueError(_hints.mask_shape(where.shape, x.shape))


def require_whole(x, axes, what):
    """Raise where one of these axes is split."""
    split = [axis for axis in axes if x.numblocks[axis] > 1]
    if split:
        numbers = ", ".join(str(x.numblocks[axis]) for axis in split)
        some = f"axis {split[0]}" if len(split) == 1 else f"each of the axes {split}"
        chunks = ", ".join(f"{axis}: -1" for axis in split)
        raise ValueError(
            f"{what} needs {some} of the input in one chunk, but got {numbers}: use "
            f"x.rechunk({{{chunks}}})"
        )


def require_known(sizes):
    """Raise where one of these sizes of the input is not known."""
    if any(math.isnan(n) for n in sizes):
        raise ValueError("the input has chunks of unknown size: call x.compute_chunk_sizes() first")


def trial_of(x, whole):
    """Zeros of the input's dtype: its sizes at the axes `whole`, at most 2 at others.

    A call with them shows the dtype of the result, and raises what a block would.
    """
    require_known(x.shape)
    return np.zeros([n if i in whole else min(n, 2) for i, n in enumerate(x.shape)], x.dtype)


def per_channel(x, channel, named, options):
    """(dask arrays of the parameters, chunked as the channels; the other options)."""
    slope = options.get("negative_slope")
    if np.size(slope) > 1:
        options = {name: value for name, value in options.items() if name != "negative_slope"}
        named = named | {"negative_slope": slope}
    arrays = {}
    for name, value in named.items():
        if value is None:
            continue
        value = np.asarray(value)
        if value.size != x.shape[channel]:
            raise ValueError(
                f"{name} must have the shape ({x.shape[channel]},), but got {value.shape}: dask "
                "arrays take no parameters per sample"
            )
        arrays[name] = da.from_array(value.ravel(), chunks=(x.chunks[channel],))
    return arrays, options
