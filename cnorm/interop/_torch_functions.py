"""The functions of ``cnorm.interop.torch``, with the signatures of ``torch.nn.functional``.

Each norm of `_norms` gains ``in_torch(x, weight, bias, mean, var, where)``: the same by torch's own
function, or with a mask by torch's operations.
"""

import operator

import torch.nn.functional as nnF

from . import _norms
from . import _torch_masked as masked
from ._torch_autograd import run
from ._torch_masked import per_channel


def _activated(y, negative_slope, clip, where=None):
    if clip is not None:
        y = nnF.hardtanh(y, *clip)
    elif negative_slope is not None:
        y = nnF.leaky_relu(y, negative_slope)
    return y if where is None else y.masked_fill(~where, 0)


def _with_statistics(x, weight, bias, mean, rstd, where, negative_slope=None, clip=None):
    """Normalization with given statistics, float64 ones, in torch's operations."""
    if where is not None:
        x = x.masked_fill(~where, 0)
    y = (x - per_channel(mean, x)) * per_channel(rstd, x)
    if weight is not None:
        y = y * per_channel(weight, x)
    if bias is not None:
        y = y + per_channel(bias, x)
    return _activated(y.to(x.dtype), negative_slope, clip, where)


def _with_mask(compute, norm, x, weight, bias, mean, var, where):
    """A norm that has running statistics, or may have them."""
    if (mean is None) != (var is None):
        raise ValueError("running_mean and running_var must either both be None or neither be None")
    if norm.uses_input_stats:
        y = compute(norm, x, weight, bias, mean, var, where)
        return norm.activated(y, where)
    if mean is None:
        raise RuntimeError("running_mean must be defined in evaluation mode")
    return norm.with_statistics(x, weight, bias, mean, (var + norm.eps).rsqrt(), where)


class BatchNorm(_norms.BatchNorm):
    __slots__ = ()

    def in_torch(self, x, weight, bias, mean, var, where=None):
        if where is not None:
            return _with_mask(masked.batch_norm, self, x, weight, bias, mean, var, where)
        y = nnF.batch_norm(
            x, mean, var, weight, bias, self.uses_input_stats, self.momentum, self.eps
        )
        return _activated(y, self.negative_slope, self.clip)

    def activated(self, y, where):
        return _activated(y, self.negative_slope, self.clip, where)

    def with_statistics(self, x, weight, bias, mean, rstd, where):
        return _with_statistics(x, weight, bias, mean, rstd, where, self.negative_slope, self.clip)


class InstanceNorm(_norms.InstanceNorm):
    __slots__ = ()

    def in_torch(self, x, weight, bias, mean, var, where=None):
        if where is not None:
            return _with_mask(masked.instance_norm, self, x, weight, bias, mean, var, where)
        return nnF.instance_norm(
            x, mean, var, weight, bias, self.uses_input_stats, self.momentum, self.eps
        )

    def activated(self, y, where):
        return y

    def with_statistics(self, x, weight, bias, mean, rstd, where):
        return _with_statistics(x, weight, bias, mean, rstd, where)


class GroupNorm(_norms.GroupNorm):
    __slots__ = ()

    def in_torch(self, x, weight, bias, mean=None, var=None, where=None):
        if where is not None:
            y = masked.group_norm(self, x, weight, bias, mean, var, where)
            return _activated(y, self.negative_slope, self.clip, where)
        y = nnF.group_norm(x, self.num_groups, weight, bias, self.eps)
        return _activated(y, self.negative_slope, self.clip)


class LayerNorm(_norms.LayerNorm):
    __slots__ = ()

    def in_torch(self, x, weight, bias, mean=None, var=None, where=None):
        if where is not None:
            return masked.layer_norm(self, x, weight, bias, mean, var, where)
        return nnF.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class RMSNorm(_norms.RMSNorm):
    __slots__ = ()

    def in_torch(self, x, weight, bias=None, mean=None, var=None, where=None):
        if where is not None:
            return masked.rms_norm(self, x, weight, bias, mean, var, where)
        return nnF.rms_norm(x, self.normalized_shape, weight, self.eps)


class LocalResponseNorm(_norms.LocalResponseNorm):
    __slots__ = ()

    def in_torch(self, x, weight=None, bias=None, mean=None, var=None, where=None):
        return nnF.local_response_norm(x, self.size, self.alpha, self.beta, self.k)


def batch_norm(input, running_mean, running_var, weight=None, bias=None, training=False,
               momentum=0.1, eps=1e-5, *, where=None):  # fmt: skip
    """`torch.nn.functional.batch_norm`; the running statistics are updated in place.

    `where` is a bool tensor that broadcasts to the input, and says which elements count: see
    `cnorm.functional`. Elsewhere the result and the gradient of the input are 0. All functions
    here but `local_response_norm` take it.

    Examples
    --------
    >>> import torch, cnorm.interop.torch as ct
    >>> x = torch.tensor([[1.0, 10.0], [3.0, 30.0]], requires_grad=True)
    >>> ct.batch_norm(x, None, None, training=True).detach().round()
    tensor([[-1., -1.],
            [ 1.,  1.]])
    """
    settings = (training, momentum, eps)
    return run(BatchNorm, settings, input, weight, bias, running_mean, running_var, where)


def instance_norm(input, running_mean=None, running_var=None, weight=None, bias=None,
                  use_input_stats=True, momentum=0.1, eps=1e-5, *, where=None):  # fmt: skip
    """`torch.nn.functional.instance_norm`; the running statistics are updated in place."""
    settings = (use_input_stats, momentum, eps)
    return run(InstanceNorm, settings, input, weight, bias, running_mean, running_var, where)


def group_norm(input, num_groups, weight=None, bias=None, eps=1e-5, *, where=None):
    """`torch.nn.functional.group_norm`."""
    return run(GroupNorm, (num_groups, eps), input, weight, bias, where=where)


def layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5, *, where=None):
    """`torch.nn.functional.layer_norm`; `normalized_shape` may be an int."""
    return run(LayerNorm, (shape_of(normalized_shape), eps), input, weight, bias, where=where)


def rms_norm(input, normalized_shape, weight=None, eps=None, *, where=None):
    """`torch.nn.functional.rms_norm`; `normalized_shape` may be an int."""
    return run(RMSNorm, (shape_of(normalized_shape), eps), input, weight, where=where)


def local_response_norm(input, size, alpha=1e-4, beta=0.75, k=1.0):
    """`torch.nn.functional.local_response_norm`."""
    return run(LocalResponseNorm, (size, alpha, beta, k), input)


def shape_of(normalized_shape):
    if hasattr(normalized_shape, "__iter__"):
        return tuple(normalized_shape)
    return (operator.index(normalized_shape),)
