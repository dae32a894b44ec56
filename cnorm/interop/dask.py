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

import numpy as np

import cnorm.functional as F

from .._call import moments as calls
from ._missing import needs

with needs("dask"):
    import dask.array as da

from ._dask_arrays import (
    as_dask,
    channels_of,
    meta,
    per_channel,
    reduced_and_kept,
    require_whole,
    trial_of,
)
from ._dask_statistics import moments, parts_of, read_again, standardize, statistic

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
    x, channel = channels_of(x, channel_axis)
    if training and (running_mean is not None or running_var is not None):
        raise ValueError(
            "in training batch_norm of a dask array updates no running_mean and running_var: a "
            "graph may run twice; take return_stats=True, or moments with load_moments of a layer"
        )
    axes, kept = reduced_and_kept(x, tuple(i for i in range(x.ndim) if i != channel))
    options |= {"channel_axis": channel}
    trial_running = (running_mean, running_var)
    if training:
        if math.prod(x.shape[i] for i in axes) == 1:
            from .. import _hints  # as everywhere in cnorm, once a call has failed

            raise _hints.one_value(list(x.shape))
        trial_running = np.zeros((2, x.shape[channel]))
    trial = F.batch_norm(
        trial_of(x, {channel}), *trial_running, weight, bias, False, momentum, eps, **options
    )
    named = {"weight": weight, "bias": bias}
    if not training:
        named |= {"running_mean": running_mean, "running_var": running_var}
    named, options = per_channel(x, channel, named, options)
    call = partial(_batch_normed, names=tuple(named), options=options, momentum=momentum, eps=eps)
    every = tuple(range(x.ndim))
    arrays = [x, every]
    parts = parts_of(read_again(x), axes, None, "propagate") if training else None
    arrays += [parts, kept if training else None]
    for values in named.values():
        arrays += [values, (channel,)]
    y = da.blockwise(call, every, *arrays, dtype=trial.dtype, meta=meta(x.ndim, trial.dtype))
    if not return_stats:
        return y
    if not training:
        mean = named["running_mean"].astype(np.float64)
        return y, mean, 1 / da.sqrt(named["running_var"].astype(np.float64) + eps)
    stats = (
        da.blockwise(
            partial(statistic, axes=(), ndim=1, ddof=0, eps=eps, which=which),
            kept, parts, kept, dtype=np.float64, meta=meta(1, np.float64),
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
    x, channel = channels_of(x, channel_axis)
    if use_input_stats:
        if running_mean is not None or running_var is not None:
            raise ValueError(
                "instance_norm of a dask array updates no running_mean and running_var: a graph "
                "may run twice; leave them out, or pass use_input_stats=False"
            )
        require_whole(x, (i for i in range(1, x.ndim) if i != channel), "instance_norm")
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
    x, channel = channels_of(x, channel_axis)
    channels = x.shape[channel]
    F.group_norm(trial_of(x, {channel}), num_groups, weight, bias, eps, channel_axis=channel)
    size = channels // num_groups
    whole = [i for i in range(1, x.ndim) if i != channel]
    if any(n % size for n in x.chunks[channel]):
        whole.append(channel)
    require_whole(x, sorted(whole), "group_norm")
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
    x, channel = channels_of(x, channel_axis)
    require_whole(x, (channel,), "local_response_norm")
    options |= {"size": size, "alpha": alpha, "beta": beta, "k": k}
    return _apply(F.local_response_norm, x, channel, {}, options, [])


def switch_norm(x, running_mean, running_var, weight, bias, mean_weight, var_weight,
                training=False, momentum=0.9, eps=1e-5, using_moving_average=True, *,
                channel_axis=1, **options):  # fmt: skip
    """`cnorm.functional.switch_norm` in evaluation: samples may be chunked, no other axis.

    In training, which mixes the samples and updates running statistics, it raises ValueError.
    """
    x, channel = channels_of(x, channel_axis)
    if training:
        raise ValueError(
            "switch_norm of a dask array runs in evaluation only: in training it updates "
            "running_mean and running_var, and a graph may run twice"
        )
    require_whole(x, range(1, x.ndim), "switch_norm")
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
    x = as_dask(x)
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
    require_whole(x, sorted(whole), name)
    options |= {"normalized_shape": normalized_shape}
    every = tuple(range(x.ndim))
    outputs = [(every, {i: lambda n: 1 for i in axes}, np.float64)] * stats
    others = []
    if residual is not None:
        residual = as_dask(residual, "residual")
        if residual.shape != x.shape:
            raise ValueError(f"residual must have shape {x.shape}, but got {residual.shape}")
        others = [residual.rechunk(x.chunks)]
        outputs.insert(0, (every, {}, x.dtype))
    if stats:
        options |= {"return_stats": True}
    trial = trial_of(x, whole)
    call = partial(_called, function=function, names=(), options=options)
    result = call(trial, *(trial for _ in others))
    return _blocks(call, x, [(other, every) for other in others], result, outputs)


def _apply(function, x, channel, named, options, outputs):
    """A norm of channels, whose parameters `named` are cut into the chunks of the channels."""
    options |= {"channel_axis": channel}
    if outputs:
        options |= {"return_stats": True}
    named = {name: value for name, value in named.items() if value is not None}
    trial = trial_of(x, {channel})
    result = function(trial, **named, **options)  # raises what there is to raise
    named, options = per_channel(x, channel, named, options)
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
        return da.blockwise(call, every, *arrays, dtype=dtype, meta=meta(x.ndim, dtype))
    results = da.blockwise(call, every, *arrays, dtype=object, meta=meta(x.ndim, object))
    return tuple(
        da.blockwise(
            _item, axes, results, every, adjust_chunks=sizes, dtype=kind,
            meta=meta(len(axes), kind), i=i,
        )
        for i, (axes, sizes, kind) in enumerate([(every, {}, dtype), *outputs])
    )  # fmt: skip


def _item(results, i):
    """One of the results of a block; of nested lists of blocks, which agree, of the first."""
    return _flat(results)[0][i]


def _flat(nested):
    if not isinstance(nested, list):
        return [nested]
    return [one for part in nested for one in _flat(part)]
