"""Norms of what a mask selects in torch's own operations, for where cnorm cannot compute.

torch's functions take no mask. These ones record, transform and differentiate as any program of
torch's does, in forward mode and twice. What is left out is read as 0 before anything else, so that
no NaN of it meets a derivative, and the result is 0 there.
"""

import math

import torch

from ._torch_autograd import watched


def _in_shape(function):
    """A norm whose mask is of the input's shape, and whose result of its shape and dtype."""

    def compute(norm, x, weight, bias, mean, var, where):
        where = where.expand(x.shape)
        y = function(norm, x, weight, bias, mean, var, where)
        return y.reshape(x.shape).to(x.dtype)

    return compute


def per_channel(stat, x):
    """Statistics or parameters of shape (C,) or (N, C), for an input of shape (N, C, ...)."""
    if stat.ndim == 1:
        stat = stat[None]
    return stat.reshape(stat.shape + (1,) * (x.ndim - 2))


@_in_shape
def batch_norm(norm, x, weight, bias, mean, var, where):
    return _of_axes((0, 2), norm, x, weight, bias, mean, var, where)


@_in_shape
def instance_norm(norm, x, weight, bias, mean, var, where):
    return _of_axes((2,), norm, x, weight, bias, mean, var, where)


@_in_shape
def group_norm(norm, x, weight, bias, mean, var, where):
    x, where = _flat(x, where)
    n, channels, size = x.shape
    if channels % norm.num_groups:
        raise RuntimeError(
            f"Expected number of channels in input to be divisible by num_groups, but got input of "
            f"shape {list(x.shape)} and num_groups={norm.num_groups}"
        )
    groups = (n, norm.num_groups, channels // norm.num_groups * size)
    y, *_ = _normalized(x.reshape(groups), where.reshape(groups), (2,), norm.eps)
    return _affine(y.reshape(x.shape), weight, bias, where)


@_in_shape
def layer_norm(norm, x, weight, bias, mean, var, where):
    return _rows(norm, x, weight, bias, where, norm.eps, True)


@_in_shape
def rms_norm(norm, x, weight, bias, mean, var, where):
    eps = norm.eps
    if eps is None:
        eps = torch.finfo(torch.promote_types(x.dtype, torch.float32)).eps
    return _rows(norm, x, weight, None, where, eps, False)


def _flat(x, where):
    """Both as (N, C, S), with S everything spatial."""
    shape = (*x.shape[:2], math.prod(x.shape[2:]))
    return x.reshape(shape), where.reshape(shape)


def _selected(x, where):
    """The input in the dtype that norms compute in, 0 where it is left out."""
    return x.masked_fill(~where, 0).to(torch.promote_types(x.dtype, torch.float32))


def _normalized(x, where, axes, eps, centred=True):
    """The input of mean 0 (if `centred`) and variance 1, and its count, mean and variance."""
    x = _selected(x, where)
    count = where.sum(axes, keepdim=True)
    n = count.clamp(min=1).to(x.dtype)
    mean = x.sum(axes, keepdim=True) / n
    if centred:
        x = (x - mean).masked_fill(~where, 0)
    var = x.square().sum(axes, keepdim=True) / n
    rstd = (var + eps).masked_fill(count == 0, 1).rsqrt()
    return x * rstd, count, mean, var


def _of_axes(axes, norm, x, weight, bias, mean, var, where):
    """A norm over these axes of (N, C, S), with running statistics or without."""
    x, where = _flat(x, where)
    y, count, *stats = _normalized(x, where, axes, norm.eps)
    # of a batch's channel one element has no variance; of a graph nobody knows the values yet
    if 0 in axes and not watched() and (count == 1).any():
        from .. import _hints  # as everywhere in cnorm, once a call has failed

        raise _hints.one_value(f"{list(x.shape)} with one True in a channel of where")
    if mean is not None:
        _update(mean, var, norm.momentum, count, *stats)
    return _affine(y, weight, bias, where)


def _affine(y, weight, bias, where):
    """Weight and bias of channels, of an input of shape (N, C, S)."""
    if weight is not None:
        y = y * per_channel(weight, y)
    if bias is not None:
        y = y + per_channel(bias, y)
    return y.masked_fill(~where, 0)


def _rows(norm, x, weight, bias, where, eps, centred):
    shape = tuple(norm.normalized_shape)
    if tuple(x.shape[x.dim() - len(shape) :]) != shape:
        raise RuntimeError(
            f"Given normalized_shape={list(shape)}, expected input with shape [*, "
            f"{', '.join(map(str, shape))}], but got input of size {list(x.shape)}"
        )
    y, *_ = _normalized(x, where, tuple(range(-len(shape), 0)), eps, centred)
    if weight is not None:
        y = y * weight
    if bias is not None:
        y = y + bias
    return y.masked_fill(~where, 0)


@torch.no_grad()
def _update(running_mean, running_var, momentum, count, mean, var):
    """Running statistics in place; units of fewer than two elements do not count.

    Those of several samples are averaged.
    """
    counted = count > 1
    n = count.clamp(min=2).to(var.dtype)
    var = var * (n / (n - 1))
    samples = counted.sum(0).clamp(min=1).to(var.dtype)
    some = counted.any(0).reshape(running_mean.shape)
    for running, batch in ((running_mean, mean), (running_var, var)):
        batch = (batch * counted).sum(0) / samples
        new = (1 - momentum) * running + momentum * batch.reshape(running.shape).to(running.dtype)
        running.copy_(torch.where(some, new, running))
