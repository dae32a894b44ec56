"""The functions of ``cnorm.interop.torch``, with the signatures of ``torch.nn.functional``."""

import operator

import torch.nn.functional as nnF

from . import _norms
from ._torch_autograd import run


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

    def in_torch(x, weight, bias, mean, var):
        return nnF.batch_norm(x, mean, var, weight, bias, training, momentum, eps)

    norm = _norms.BatchNorm(training, momentum, eps)
    return run(norm, in_torch, input, weight, bias, running_mean, running_var)


def instance_norm(input, running_mean=None, running_var=None, weight=None, bias=None,
                  use_input_stats=True, momentum=0.1, eps=1e-5):  # fmt: skip
    """`torch.nn.functional.instance_norm`; the running statistics are updated in place."""

    def in_torch(x, weight, bias, mean, var):
        return nnF.instance_norm(x, mean, var, weight, bias, use_input_stats, momentum, eps)

    norm = _norms.InstanceNorm(use_input_stats, momentum, eps)
    return run(norm, in_torch, input, weight, bias, running_mean, running_var)


def group_norm(input, num_groups, weight=None, bias=None, eps=1e-5):
    """`torch.nn.functional.group_norm`."""

    def in_torch(x, weight, bias, *_):
        return nnF.group_norm(x, num_groups, weight, bias, eps)

    return run(_norms.GroupNorm(num_groups, eps), in_torch, input, weight, bias)


def layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5):
    """`torch.nn.functional.layer_norm`; `normalized_shape` may be an int."""
    shape = _shape(normalized_shape)

    def in_torch(x, weight, bias, *_):
        return nnF.layer_norm(x, shape, weight, bias, eps)

    return run(_norms.LayerNorm(shape, eps), in_torch, input, weight, bias)


def rms_norm(input, normalized_shape, weight=None, eps=None):
    """`torch.nn.functional.rms_norm`; `normalized_shape` may be an int."""
    shape = _shape(normalized_shape)

    def in_torch(x, weight, *_):
        return nnF.rms_norm(x, shape, weight, eps)

    return run(_norms.RMSNorm(shape, eps), in_torch, input, weight)


def local_response_norm(input, size, alpha=1e-4, beta=0.75, k=1.0):
    """`torch.nn.functional.local_response_norm`."""

    def in_torch(x, *_):
        return nnF.local_response_norm(x, size, alpha, beta, k)

    return run(_norms.LocalResponseNorm(size, alpha, beta, k), in_torch, input)


def _shape(normalized_shape):
    if hasattr(normalized_shape, "__iter__"):
        return tuple(normalized_shape)
    return (operator.index(normalized_shape),)
