"""Statistics and norms of dask arrays: lazy, chunk by chunk, on one machine or on many.

Nothing is computed before dask is asked for it. Statistics travel between workers as
`cnorm.Moments`, a few numbers for each unit, merged in a tree over the chunks; data never do. What
is computed depends on the chunks and not on the workers: neither their number nor their order
changes a bit. There is no backward.

Where the workers are threads of one process, or several on one machine, let each call of cnorm run
on one thread (``CNORM_NUM_THREADS=1``), so that there are as many as there are processors.
"""

import math
import operator
from functools import partial
from itertools import product

import numpy as np

import cnorm.functional as F

from .._call import moments as calls
from .._moments import Moments
from ._missing import needs

with needs("dask"):
    import dask.array as da
    from dask import delayed
    from dask.base import normalize_token, tokenize
    from dask.delayed import Delayed
    from dask.graph_manipulation import clone
    from dask.highlevelgraph import HighLevelGraph

__all__ = [
    "add_layer_norm",
    "add_rms_norm",
    "batch_norm",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "local_response_norm",
    "moments",
    "rms_norm",
    "standardize",
    "switch_norm",
]

# How many Moments a task of the tree merges: wider trees are less deep, and a task costs the
# scheduler about a millisecond, more than the merge. A constant, because the bits depend on it.
SPLIT_EVERY = 8


@normalize_token.register(Moments)
def _token(m):
    return normalize_token({k: np.asarray(v).tolist() for k, v in m.to_dict().items()})


# ---- statistics ----


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
    x = _dask_array(x)
    _, kept = _axes(x, axis)
    parts = _parts(x, calls.as_axes(axis), where, nan_policy).to_delayed(optimize_graph=False)
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
    x = _dask_array(x)
    axes, kept = _axes(x, axis)
    trial = F.standardize(
        np.zeros((1,) * x.ndim, x.dtype), axes, 0.0, 1.0, eps,
        ddof=ddof, nan_policy=nan_policy, clip=clip, dtype=dtype,
    )  # fmt: skip
    if moments is None:
        parts = _parts(_again(x), axes, where, nan_policy)
    else:
        parts = _given(moments, x, axes, kept)
    every = tuple(range(x.ndim))
    call = partial(
        _standardized, axes=axes, eps=eps, ddof=ddof, clip=clip, dtype=trial.dtype,
        nan_policy=nan_policy,
    )  # fmt: skip
    arrays = [x, every, parts, kept]
    if where is not None:
        arrays += [_mask(where, x), every]
    y = da.blockwise(call, every, *arrays, dtype=trial.dtype, meta=_meta(x.ndim, trial.dtype))
    if not return_stats:
        return y
    mean, rstd = (
        da.blockwise(
            partial(_statistic, axes=axes, ndim=x.ndim, ddof=ddof, eps=eps, which=which),
            every, parts, kept, new_axes=dict.fromkeys(axes, 1), dtype=np.float64,
            meta=_meta(x.ndim, np.float64),
        )
        for which in ("mean", "rstd")
    )  # fmt: skip
    return y, mean, rstd


def _axes(x, axis):
    """(reduced, kept) axes of an array."""
    axes = calls.resolve_axes(calls.as_axes(axis), x.ndim)
    return axes, tuple(i for i in range(x.ndim) if i not in axes)


def _parts(x, axes, where, nan_policy):
    """The Moments of units: an array with the chunks of `x` along the kept axes, of Moments."""
    calls.check_policy(nan_policy)
    F.moments(np.zeros((0,) * x.ndim, x.dtype), axes)  # whether the dtype is one that is taken
    reduced, kept = _axes(x, axes)
    every = tuple(range(x.ndim))
    arrays = [x, every] if where is None else [x, every, _mask(where, x), every]
    call = partial(_measured, axes=axes, nan_policy=nan_policy)
    blocks = da.blockwise(call, every, *arrays, dtype=object, meta=_meta(x.ndim, object))
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
    return da.Array(graph, name, chunks, meta=_meta(len(kept), object))


def _again(x):
    """The array `x`, read again by tasks of its own.

    With tasks that are shared each chunk would stay in memory from its statistics until those of
    all chunks are known. So it is read again, by the task that needs it.
    """
    return clone(x, seed="cnorm")


def _measured(block, where=None, *, axes, nan_policy):
    return F.moments(block, axes, where=where, nan_policy=nan_policy)


def _flat(nested):
    if not isinstance(nested, list):
        return [nested]
    return [one for part in nested for one in _flat(part)]


def _joined(nested, kept):
    """Moments of chunks along the kept axes, as nested lists, in one."""
    if not kept or not isinstance(nested, list):
        return nested
    return Moments.concatenate([_joined(part, kept[1:]) for part in nested], kept[0])


def _given(moments, x, axes, kept):
    """An array as `_parts` makes it, of Moments that are there or Delayed."""
    if not isinstance(moments, (Moments, Delayed)):
        raise TypeError(
            f"moments must be Moments, or a Delayed of them, but got {type(moments).__name__}"
        )
    sizes = tuple(x.shape[i] for i in kept)
    if any(map(math.isnan, sizes)):
        raise ValueError("the input has chunks of unknown size: call x.compute_chunk_sizes() first")
    if isinstance(moments, Moments):
        _check_moments(moments, axes, x.ndim, sizes)
    whole = delayed(moments, pure=True)

    def nested(depth, slices):
        if depth == len(kept):
            shape = tuple(s.stop - s.start for s in slices)
            part = delayed(_part, pure=True)(whole, axes, x.ndim, sizes, slices)
            return da.from_delayed(part, shape, meta=_meta(len(shape), object))
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


def _statistic(moments, *, axes, ndim, ddof, eps, which):
    mean, var = moments.mean, moments.var(ddof)
    values = mean if which == "mean" else calls.scale_from(var, eps, False)
    return np.expand_dims(values, axes)


# ---- norms ----


def batch_norm(x, running_mean=None, running_var=None, weight=None, bias=None, training=False,
               momentum=0.1, eps=1e-5, *, channel_axis=1, return_stats=False,
               **options):  # fmt: skip
    """`cnorm.functional.batch_norm`: every axis may be chunked.

    In training the statistics are the `moments` of the batch, in double, for which chunks are read
    twice, as in `standardize`. Running statistics are not
    updated, because dask may run a task twice: ask for `return_stats`, or use `moments` and
    `BatchNorm2d.load_moments`.

    Returns
    -------
    dask.array.Array, or tuple of three
        With `return_stats` ``(y, mean, rstd)``, both of shape (C,), lazy.

    Examples
    --------
    >>> import dask.array as da, cnorm.interop.dask as cd
    >>> x = da.from_array([[1.0, 10.0], [3.0, 30.0]], chunks=1)
    >>> y, mean, rstd = cd.batch_norm(x, training=True, return_stats=True)
    >>> mean.compute()
    array([ 2., 20.])
    """
    x, channel = _channels(x, channel_axis)
    if training and (running_mean is not None or running_var is not None):
        raise ValueError(
            "in training batch_norm of a dask array updates no running_mean and running_var: a "
            "graph may run twice; take return_stats=True, or moments with load_moments of a layer"
        )
    axes, kept = _axes(x, tuple(i for i in range(x.ndim) if i != channel))
    options |= {"channel_axis": channel}
    trial_running = (running_mean, running_var)
    if training:
        if math.prod(x.shape[i] for i in axes) == 1:
            size = str(list(x.shape))
            raise ValueError(
                f"Expected more than 1 value per channel when training, got input size {size}"
            )
        trial_running = np.zeros((2, x.shape[channel]))
    trial = F.batch_norm(
        _trial(x, {channel}), *trial_running, weight, bias, False, momentum, eps, **options
    )
    named = {"weight": weight, "bias": bias}
    if not training:
        named |= {"running_mean": running_mean, "running_var": running_var}
    named, options = _per_channel(x, channel, named, options)
    call = partial(_batch_normed, names=tuple(named), options=options, momentum=momentum, eps=eps)
    every = tuple(range(x.ndim))
    arrays = [x, every]
    parts = _parts(_again(x), axes, None, "propagate") if training else None
    arrays += [parts, kept if training else None]
    for values in named.values():
        arrays += [values, (channel,)]
    y = da.blockwise(call, every, *arrays, dtype=trial.dtype, meta=_meta(x.ndim, trial.dtype))
    if not return_stats:
        return y
    if not training:
        mean = named["running_mean"].astype(np.float64)
        return y, mean, 1 / da.sqrt(named["running_var"].astype(np.float64) + eps)
    stats = (
        da.blockwise(
            partial(_statistic, axes=(), ndim=1, ddof=0, eps=eps, which=which),
            kept, parts, kept, dtype=np.float64, meta=_meta(1, np.float64),
        )
        for which in ("mean", "rstd")
    )  # fmt: skip
    return y, *stats


def _batch_normed(block, moments, *values, names, options, momentum, eps):
    named = dict(zip(names, values, strict=True))
    if moments is not None:
        named |= {"running_mean": moments.mean, "running_var": moments.var()}
    slope = named.pop("negative_slope", None)
    if slope is not None:
        options = options | {"negative_slope": slope}
    return F.batch_norm(block, momentum=momentum, eps=eps, **named, **options)


def instance_norm(x, running_mean=None, running_var=None, weight=None, bias=None,
                  use_input_stats=True, momentum=0.1, eps=1e-5, *, channel_axis=1,
                  return_stats=False, **options):  # fmt: skip
    """`cnorm.functional.instance_norm`: samples and channels may be chunked, positions not.

    With `use_input_stats` running statistics are refused, as in `batch_norm`; without, every axis
    may be chunked. ``return_stats`` adds mean and rstd of shape (N, C).

    Examples
    --------
    >>> import dask.array as da, cnorm.interop.dask as cd
    >>> cd.instance_norm(da.ones((4, 2, 9), chunks=(1, 2, 9))).numblocks
    (4, 1, 1)
    """
    x, channel = _channels(x, channel_axis)
    if use_input_stats:
        if running_mean is not None or running_var is not None:
            raise ValueError(
                "instance_norm of a dask array updates no running_mean and running_var: a graph "
                "may run twice; leave them out, or pass use_input_stats=False"
            )
        _whole(x, (i for i in range(1, x.ndim) if i != channel), "instance_norm")
    options |= {"use_input_stats": use_input_stats, "momentum": momentum, "eps": eps}
    named = {"running_mean": running_mean, "running_var": running_var}
    named |= {"weight": weight, "bias": bias}
    stats = ((0, channel), {}, np.float64)
    return _apply(F.instance_norm, x, channel, named, options, [stats] * 2 * return_stats)


def group_norm(x, num_groups, weight=None, bias=None, eps=1e-5, *, channel_axis=1,
               return_stats=False, **options):  # fmt: skip
    """`cnorm.functional.group_norm`: samples may be chunked, channels between groups.

    ``return_stats`` adds mean and rstd of shape (N, G).
    """
    x, channel = _channels(x, channel_axis)
    channels = x.shape[channel]
    F.group_norm(_trial(x, {channel}), num_groups, weight, bias, eps, channel_axis=channel)
    size = channels // num_groups
    whole = [i for i in range(1, x.ndim) if i != channel]
    if any(n % size for n in x.chunks[channel]):
        whole.append(channel)
    _whole(x, sorted(whole), "group_norm")
    stats = ((0, channel), {channel: lambda n: n // size}, np.float64)
    options |= {"eps": eps}
    named = {"weight": weight, "bias": bias}
    return _apply(
        partial(_group_normed, size=size), x, channel, named, options, [stats] * 2 * return_stats
    )


def _group_normed(block, *, size, channel_axis, **options):
    groups = block.shape[channel_axis] // size
    return F.group_norm(block, groups, channel_axis=channel_axis, **options)


def local_response_norm(x, size, alpha=1e-4, beta=0.75, k=1.0, *, channel_axis=1,
                        **options):  # fmt: skip
    """`cnorm.functional.local_response_norm`: all axes but the channels may be chunked."""
    x, channel = _channels(x, channel_axis)
    _whole(x, (channel,), "local_response_norm")
    options |= {"size": size, "alpha": alpha, "beta": beta, "k": k}
    return _apply(F.local_response_norm, x, channel, {}, options, [])


def switch_norm(x, running_mean, running_var, weight, bias, mean_weight, var_weight,
                training=False, momentum=0.9, eps=1e-5, using_moving_average=True, *,
                channel_axis=1, **options):  # fmt: skip
    """`cnorm.functional.switch_norm` in evaluation: samples may be chunked, no other axis.

    In training, which mixes the samples and updates running statistics, it raises ValueError.
    """
    x, channel = _channels(x, channel_axis)
    if training:
        raise ValueError(
            "switch_norm of a dask array runs in evaluation only: in training it updates "
            "running_mean and running_var, and a graph may run twice"
        )
    _whole(x, range(1, x.ndim), "switch_norm")
    options |= {"running_mean": running_mean, "running_var": running_var, "weight": weight}
    options |= {"bias": bias, "mean_weight": mean_weight, "var_weight": var_weight, "eps": eps}
    options |= {"using_moving_average": using_moving_average}
    return _apply(F.switch_norm, x, channel, {}, options, [])


def layer_norm(x, normalized_shape, weight=None, bias=None, eps=1e-5, *, axis=None,
               return_stats=False, **options):  # fmt: skip
    """`cnorm.functional.layer_norm`: every axis may be chunked but those that are normalized.

    Examples
    --------
    >>> import dask.array as da, cnorm.interop.dask as cd
    >>> x = da.random.default_rng(0).normal(5, 2, size=(64, 8), chunks=(16, 8))
    >>> y = cd.layer_norm(x, 8)
    >>> bool(abs(y.mean()).compute() < 1e-7)
    True
    >>> cd.layer_norm(x.rechunk((64, 4)), 8)
    Traceback (most recent call last):
        ...
    ValueError: layer_norm needs axis 1 of the input in one chunk, but got 2: use x.rechunk({1: -1})
    """
    options |= {"weight": weight, "bias": bias, "eps": eps}
    return _rows(F.layer_norm, x, None, normalized_shape, axis, options, 2 * return_stats)


def rms_norm(x, normalized_shape, weight=None, eps=None, *, axis=None, return_stats=False,
             **options):  # fmt: skip
    """`cnorm.functional.rms_norm`: every axis may be chunked but those that are normalized."""
    options |= {"weight": weight, "eps": eps}
    return _rows(F.rms_norm, x, None, normalized_shape, axis, options, int(return_stats))


def add_layer_norm(x, residual, normalized_shape, weight=None, bias=None, eps=1e-5, *, axis=None,
                   return_stats=False, **options):  # fmt: skip
    """`cnorm.functional.add_layer_norm`: (norm of the sum, sum), both lazy."""
    options |= {"weight": weight, "bias": bias, "eps": eps}
    return _rows(F.add_layer_norm, x, residual, normalized_shape, axis, options, 2 * return_stats)


def add_rms_norm(x, residual, normalized_shape, weight=None, eps=None, *, axis=None,
                 return_stats=False, **options):  # fmt: skip
    """`cnorm.functional.add_rms_norm`: (norm of the sum, sum), both lazy."""
    options |= {"weight": weight, "eps": eps}
    return _rows(F.add_rms_norm, x, residual, normalized_shape, axis, options, int(return_stats))


def _rows(function, x, residual, normalized_shape, axis, options, stats):
    """A norm of rows: over the last axes, or over `axis`."""
    x = _dask_array(x)
    name = function.__name__
    if hasattr(normalized_shape, "__iter__"):
        normalized_shape = tuple(normalized_shape)
    else:
        normalized_shape = (operator.index(normalized_shape),)
    k = len(normalized_shape)
    axes = tuple(range(max(0, x.ndim - k), x.ndim))
    if axis is not None:
        options |= {"axis": axis}
        axes = calls.resolve_axes(calls.as_axes(axis), x.ndim)
    for parameter in ("weight", "bias"):
        if np.ndim(options.get(parameter)) > k:
            raise ValueError(f"{parameter} must have the shape {normalized_shape}: dask arrays "
                             "take no parameters per sample")  # fmt: skip
    whole = set(axes)
    if np.size(options.get("negative_slope")) > 1:
        whole.add(options.get("channel_axis", 1) % x.ndim)
    _whole(x, sorted(whole), name)
    options |= {"normalized_shape": normalized_shape}
    every = tuple(range(x.ndim))
    outputs = [(every, {i: lambda n: 1 for i in axes}, np.float64)] * stats
    others = []
    if residual is not None:
        residual = _dask_array(residual, "residual")
        if residual.shape != x.shape:
            raise ValueError(f"residual must have shape {x.shape}, but got {residual.shape}")
        others = [residual.rechunk(x.chunks)]
        outputs.insert(0, (every, {}, x.dtype))
    if stats:
        options |= {"return_stats": True}
    trial = _trial(x, whole)
    call = partial(_called, function=function, names=(), options=options)
    result = call(trial, *(trial for _ in others))
    return _blocks(call, x, [(other, every) for other in others], result, outputs)


def _apply(function, x, channel, named, options, outputs):
    """A norm of channels, whose parameters `named` are cut into the chunks of the channels."""
    options |= {"channel_axis": channel}
    if outputs:
        options |= {"return_stats": True}
    named = {name: value for name, value in named.items() if value is not None}
    trial = _trial(x, {channel})
    result = function(trial, **named, **options)  # raises what there is to raise
    named, options = _per_channel(x, channel, named, options)
    call = partial(_called, function=function, names=tuple(named), options=options)
    return _blocks(call, x, [(values, (channel,)) for values in named.values()], result, outputs)


def _called(block, *values, function, names, options):
    if names:
        return function(block, **dict(zip(names, values, strict=True)), **options)
    return function(block, *values, **options)


def _blocks(call, x, others, trial, outputs):
    """Apply `call` to each block, as it was to one for `trial`.

    `others` are further arrays and their axes; `outputs` the axes, changes of sizes, and dtypes of
    the results that follow the first.
    """
    every = tuple(range(x.ndim))
    arrays = [one for pair in [(x, every), *others] for one in pair]
    dtype = (trial[0] if outputs else trial).dtype
    if not outputs:
        return da.blockwise(call, every, *arrays, dtype=dtype, meta=_meta(x.ndim, dtype))
    results = da.blockwise(call, every, *arrays, dtype=object, meta=_meta(x.ndim, object))
    return tuple(
        da.blockwise(
            _item, axes, results, every, adjust_chunks=sizes, dtype=kind,
            meta=_meta(len(axes), kind), i=i,
        )
        for i, (axes, sizes, kind) in enumerate([(every, {}, dtype), *outputs])
    )  # fmt: skip


def _item(results, i):
    """One of the results of a block; of nested lists of blocks, which agree, of the first."""
    return _flat(results)[0][i]


# ---- arguments ----


def _dask_array(x, name="the input"):
    if isinstance(x, da.Array):
        return x
    hint = "cnorm.functional takes arrays in memory"
    if type(x).__module__.startswith("xarray"):
        hint = "cnorm.interop.xarray takes those of xarray"
    raise TypeError(f"{name} must be a dask array, but got {type(x).__name__}: {hint}")


def _channels(x, channel_axis):
    """(array, axis of the channels, not negative)."""
    x = _dask_array(x)
    if x.ndim < 2:
        raise ValueError(f"expected at least 2D input (got {x.ndim}D input)")
    (channel,) = calls.resolve_axes((operator.index(channel_axis),), x.ndim)
    return x, channel


def _meta(ndim, dtype):
    return np.empty((0,) * ndim, dtype)


def _mask(where, x):
    """`where` as a dask array with the shape and the chunks of `x`."""
    where = da.asarray(where)
    if where.dtype != bool:
        raise TypeError(f"where must be a bool array, but got dtype {where.dtype}")
    try:
        return da.broadcast_to(where, x.shape).rechunk(x.chunks)
    except ValueError:
        raise ValueError(
            f"where must broadcast to the input's shape {x.shape}, but got {where.shape}"
        ) from None


def _whole(x, axes, what):
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


def _trial(x, whole):
    """Zeros of the input's dtype: its sizes at the axes `whole`, at most 2 at others.

    A call with them shows the dtype of the result, and raises what a block would.
    """
    if any(math.isnan(n) for n in x.shape):
        raise ValueError("the input has chunks of unknown size: call x.compute_chunk_sizes() first")
    return np.zeros([n if i in whole else min(n, 2) for i, n in enumerate(x.shape)], x.dtype)


def _per_channel(x, channel, named, options):
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
