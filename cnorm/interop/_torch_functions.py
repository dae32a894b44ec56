"""The functions of ``cnorm.interop.torch``, with the signatures of ``torch.nn.functional``.

Each norm of `_norms` gains ``in_torch(x, weight, bias, mean, var)``: the same by torch's own
function.
"""

import operator

import torch.nn.functional as nnF

from . import _norms
from ._torch_autograd import run


def _activated(y, negative_slope, clip):
    if clip is not None:
        return nnF.hardtanh(y, *clip)
    return y if negative_slope is None else nnF.leaky_relu(y, negative_slope)


def _per_channel(stat, x):
    """Statistics of shape (C,) or (N, C), for an input of shape (N, C, ...)."""
    if stat.ndim == 1:
        stat = stat[None]
    return stat.reshape(stat.shape + (1,) * (x.ndim - 2))


def _with_statistics(x, weight, bias, mean, rstd, negative_slope=None, clip=None):
    """Normalization with given statistics, float64 ones, in torch's operations."""
    y = (x - _per_channel(mean, x)) * _per_channel(rstd, x)
    if weight is not None:
        y = y * _per_channel(weight, x)
    if bias is not None:
        y = y + _per_channel(bias, x)
    return _activated(y.to(x.dtype), negative_slope, clip)


class BatchNorm(_norms.BatchNorm):
    __slots__ = ()

    def in_torch(self, x, weight, bias, mean, var):
        y = nnF.batch_norm(
            x, mean, var, weight, bias, self.uses_input_stats, self.momentum, self.eps
        )
        return _activated(y, self.negative_slope, self.clip)

    def with_statistics(self, x, weight, bias, mean, rstd):
        return _with_statistics(x, weight, bias, mean, rstd, self.negative_slope, self.clip)


class InstanceNorm(_norms.InstanceNorm):
    __slots__ = ()

    def in_torch(self, x, weight, bias, mean, var):
        return nnF.instance_norm(
            x, mean, var, weight, bias, self.uses_input_stats, self.momentum, self.eps
        )

    def with_statistics(self, x, weight, bias, mean, rstd):
        return _with_statistics(x, weight, bias, mean, rstd)


class GroupNorm(_norms.GroupNorm):
    __slots__ = ()

    def in_torch(self, x, weight, bias, mean=None, var=None):
        y = nnF.group_norm(x, self.num_groups, weight, bias, self.eps)
        return _activated(y, self.negative_slope, self.clip)


class LayerNorm(_norms.LayerNorm):
    __slots__ = ()

    def in_torch(self, x, weight, bias, mean=None, var=None):
        return nnF.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class RMSNorm(_norms.RMSNorm):
    __slots__ = ()

    def in_torch(self, x, weight, bias=None, mean=None, var=None):
        return nnF.rms_norm(x, self.normalized_shape, weight, self.eps)


class LocalResponseNorm(_norms.LocalResponseNorm):
    __slots__ = ()

    def in_torch(self, x, weight=None, bias=None, mean=None, var=None):
        return nnF.local_response_norm(x, self.size, self.alpha, self.beta, self.k)


def batch_norm(input, running_mean, running_var, weight=None, bias=None, training=False,
               momentum=0.1, eps=1e-5):  # fmt: skip
    """`torch.nn.functional.batch_norm`; the running statistics are updated in place.

    Examples
    --------
    >>> import torch, cnorm.interop.torch as ct
    >>> x = torch.tensor([[1.0, 10.0], [3.0, 30.0]], requires_grad=True)
    >>> ct.batch_norm(x, None, None, training=True).detach().round()
    tensor([[-1., -1.],
            [ 1.,  1.]])
    """
    settings = (training, momentum, eps)
    return run(BatchNorm, settings, input, weight, bias, running_mean, running_var)


def instance_norm(input, running_mean=None, running_var=None, weight=None, bias=None,
                  use_input_stats=True, momentum=0.1, eps=1e-5):  # fmt: skip
    """`torch.nn.functional.instance_norm`; the running statistics are updated in place."""
    settings = (use_input_stats, momentum, eps)
    return run(InstanceNorm, settings, input, weight, bias, running_mean, running_var)


def group_norm(input, num_groups, weight=None, bias=None, eps=1e-5):
    """`torch.nn.functional.group_norm`."""
    return run(GroupNorm, (num_groups, eps), input, weight, bias)


def layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5):
    """`torch.nn.functional.layer_norm`; `normalized_shape` may be an int."""
    return run(LayerNorm, (shape_of(normalized_shape), eps), input, weight, bias)


def rms_norm(input, normalized_shape, weight=None, eps=None):
    """`torch.nn.functional.rms_norm`; `normalized_shape` may be an int."""
    return run(RMSNorm, (shape_of(normalized_shape), eps), input, weight)


def local_response_norm(input, size, alpha=1e-4, beta=0.75, k=1.0):
    """`torch.nn.functional.local_response_norm`."""
    return run(LocalResponseNorm, (size, alpha, beta, k), input)


def shape_of(normalized_shape):
    if hasattr(normalized_shape, "__iter__"):
        return tuple(normalized_shape)
    return (operator.index(normalized_shape),)
