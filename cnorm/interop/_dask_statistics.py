"""Moments and standardize of dask arrays: Moments of each chunk, merged in a tree."""

from functools import partial
from itertools import product

import dask.array as da
import numpy as np
from dask import delayed
from dask.base import normalize_token, tokenize
from dask.delayed import Delayed
from dask.graph_manipulation import clone
from dask.highlevelgraph import HighLevelGraph

import cnorm.functional as F

from .._call import moments as calls
from .._call.standardize import scale_from
from .._moments import Moments
from ._dask_arrays import as_dask, mask_like, meta, reduced_and_kept, require_known

# How many Moments a task of the tree merges: wider trees are less deep, and a task costs the
# scheduler about a millisecond, more than the merge. A constant, because the bits depend on it.
SPLIT_EVERY = 8


@normalize_token.register(Moments)
def _token(m):
    return normalize_token({k: np.asarray(v).tolist() for k, v in m.to_dict().items()})


def moments(x, axis=None, *, where=None, nan_policy="propagate"):
    """`cnorm.functional.moments` of a dask array: a tree over its chunks.

    Parameters
    ----------
    x : dask.array.Array
        Of any float, integer or bool dtype, chunked along any axes. Chunks may be of unknown size.
    axis : int, tuple of int or None
        What is reduced. Moments of chunks along the kept axes are joined.
    where : array_like of bool, optional
        Which elements count; a dask or NumPy array that broadcasts to `x`.
    nan_policy : "propagate", "omit" or "raise"
        What NaN does.

    Returns
    -------
    dask.delayed.Delayed
        Of `cnorm.Moments`.

    Examples
    --------
    >>> import dask.array as da, cnorm.interop.dask as cd
    >>> x = da.arange(12.0, chunks=4).reshape(6, 2)
    >>> cd.moments(x, axis=0).compute()
    Moments(axis=(0,), shape=(2,), count=6)
    """
    x = as_dask(x)
    _, kept = reduced_and_kept(x, axis)
    parts = parts_of(x, calls.as_axes(axis), where, nan_policy).to_delayed(optimize_graph=False)
    if parts.size == 1:
        return parts.item()
    return delayed(_joined)(parts.tolist(), kept)


def standardize(x, axis, moments=None, eps=0.0, *, ddof=0, where=None, nan_policy="propagate",
                clip=None, dtype=None, return_stats=False):  # fmt: skip
    """`cnorm.functional.standardize` of a dask array.

    Chunks are read, or computed, twice: for the statistics and for the result, and none is kept
    meanwhile. Where they cost much, `persist` the array first. With `moments` that are computed
    they are read once.

    Parameters
    ----------
    x : dask.array.Array
        Of any float, integer or bool dtype, chunked along any axes.
    axis : int, tuple of int or None
        What shares its statistics.
    moments : Moments or Delayed, optional
        Statistics over the same axes, in place of those of `x`.
    eps, ddof, where, nan_policy, clip, dtype
        As in `cnorm.functional.standardize`.
    return_stats : bool
        Whether to return the statistics too.

    Returns
    -------
    dask.array.Array, or tuple of three
        The result, chunked as `x`; with `return_stats` ``(y, mean, rstd)``, float64, lazy, with
        size 1 at the reduced axes.

    Examples
    --------
    >>> import dask.array as da, cnorm.interop.dask as cd
    >>> x = da.from_array([[1.0, 2.0], [3.0, 6.0]], chunks=1)
    >>> cd.standardize(x, axis=0).compute()
    array([[-1., -1.],
           [ 1.,  1.]])
    """
    x = as_dask(x)
    axes, kept = reduced_and_kept(x, axis)
    trial = F.standardize(
        np.zeros((1,) * x.ndim, x.dtype), axes, 0.0, 1.0, eps,
        ddof=ddof, nan_policy=nan_policy, clip=clip, dtype=dtype,
    )  # fmt: skip
    if moments is None:
        parts = parts_of(read_again(x), axes, where, nan_policy)
    else:
        parts = _given(moments, x, axes, kept)
    every = tuple(range(x.ndim))
    call = partial(
        _standardized, axes=axes, eps=eps, ddof=ddof, clip=clip, dtype=trial.dtype,
        nan_policy=nan_policy,
    )  # fmt: skip
    arrays = [x, every, parts, kept]
    if where is not None:
        arrays += [mask_like(where, x), every]
    y = da.blockwise(call, every, *arrays, dtype=trial.dtype, meta=meta(x.ndim, trial.dtype))
    if not return_stats:
        return y
    mean, rstd = (
        da.blockwise(
            partial(statistic, axes=axes, ndim=x.ndim, ddof=ddof, eps=eps, which=which),
            every, parts, kept, new_axes=dict.fromkeys(axes, 1), dtype=np.float64,
            meta=meta(x.ndim, np.float64),
        )
        for which in ("mean", "rstd")
    )  # fmt: skip
    return y, mean, rstd


def parts_of(x, axes, where, nan_policy):
    """The Moments of units: an array with the chunks of `x` along the kept axes, of Moments."""
    calls.check_policy(nan_policy)
    F.moments(np.zeros((0,) * x.ndim, x.dtype), axes)  # whether the dtype is one that is taken
    reduced, kept = reduced_and_kept(x, axes)
    every = tuple(range(x.ndim))
    arrays = [x, every] if where is None else [x, every, mask_like(where, x), every]
    call = partial(_measured, axes=axes, nan_policy=nan_policy)
    blocks = da.blockwise(call, every, *arrays, dtype=object, meta=meta(x.ndim, object))
    name = f"merge-{tokenize(blocks.name, reduced)}"
    graph = {}
    for index in np.ndindex(*(x.numblocks[i] for i in kept)):
        ranges = [range(n) for n in x.numblocks]
        for i, number in zip(kept, index, strict=True):
            ranges[i] = (number,)
        keys = [(blocks.name, *numbers) for numbers in product(*ranges)]
        level = 0
        while len(keys) > SPLIT_EVERY:
            groups = [keys[i : i + SPLIT_EVERY] for i in range(0, len(keys), SPLIT_EVERY)]
            keys = [(f"{name}-{level}", *index, i) for i in range(len(groups))]
            graph |= {key: (Moments.merge, group) for key, group in zip(keys, groups, strict=True)}
            level += 1
        graph[(name, *index)] = (Moments.merge, keys)
    graph = HighLevelGraph.from_collections(name, graph, dependencies=[blocks])
    chunks = tuple(x.chunks[i] for i in kept)
    return da.Array(graph, name, chunks, meta=meta(len(kept), object))


def read_again(x):
    """The array `x`, read again by tasks of its own.

    With tasks that are shared each chunk would stay in memory from its statistics until those of
    all chunks are known. So it is read again, by the task that needs it.
    """
    return clone(x, seed="cnorm")


def _measured(block, where=None, *, axes, nan_policy):
    return F.moments(block, axes, where=where, nan_policy=nan_policy)


def _joined(nested, kept):
    """Moments of chunks along the kept axes, as nested lists, in one."""
    if not kept or not isinstance(nested, list):
        return nested
    return Moments.concatenate([_joined(part, kept[1:]) for part in nested], kept[0])


def _given(moments, x, axes, kept):
    """An array as `parts_of` makes it, of Moments that are there or Delayed."""
    if not isinstance(moments, (Moments, Delayed)):
        raise TypeError(
            f"moments must be Moments, or a Delayed of them, but got {type(moments).__name__}"
        )
    sizes = tuple(x.shape[i] for i in kept)
    require_known(sizes)
    if isinstance(moments, Moments):
        _check_moments(moments, axes, x.ndim, sizes)
    whole = delayed(moments, pure=True)

    def nested(depth, slices):
        if depth == len(kept):
            shape = tuple(s.stop - s.start for s in slices)
            part = delayed(_part, pure=True)(whole, axes, x.ndim, sizes, slices)
            return da.from_delayed(part, shape, meta=meta(len(shape), object))
        stops = np.cumsum(x.chunks[kept[depth]]).tolist()
        starts = [0, *stops[:-1]]
        blocks = [
            nested(depth + 1, (*slices, slice(*ends))) for ends in zip(starts, stops, strict=True)
        ]
        return blocks[0] if len(blocks) == 1 else da.concatenate(blocks, axis=depth)

    return nested(0, ())


def _check_moments(moments, axes, ndim, sizes):
    if moments.axis is None:
        fits = len(axes) == ndim
    else:
        fits = moments.axis == axes and moments.shape == sizes
    if not fits:
        raise ValueError(
            f"moments must be over axis={axes} and of the shape {sizes} of the kept axes, but got "
            f"axis={moments.axis} and shape {moments.shape}"
        )


def _part(moments, axes, ndim, sizes, slices):
    """The Moments of one block."""
    _check_moments(moments, axes, ndim, sizes)
    return Moments._of(axes, ndim, [a[slices] for a in moments._arrays])


def _standardized(block, moments, where=None, *, axes, eps, ddof, clip, dtype, nan_policy):
    if where is None and nan_policy != "raise":
        return moments.standardize(block, eps=eps, ddof=ddof, clip=clip, dtype=dtype)
    return F.standardize(
        block, axes, moments.mean, moments.var(ddof), eps,
        where=where, nan_policy=nan_policy, clip=clip, dtype=dtype,
    )  # fmt: skip


def statistic(moments, *, axes, ndim, ddof, eps, which):
    mean, var = moments.mean, moments.var(ddof)
    values = mean if which == "mean" else scale_from(var, eps, False)
    return np.expand_dims(values, axes)
