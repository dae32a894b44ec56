"""cnorm's norms for PyTorch on the CPU: functions with gradients, `accelerate` for whole models.

The functions have the signatures of `torch.nn.functional`, take and return tensors, and share
memory with them: float32, float64, float16 and bfloat16, contiguous, channels last or any other
strides. What cnorm cannot see (another device, a subclass of Tensor, ``torch.compile``, tracing, a
``torch.func`` transform) goes to torch's own function, and so does the gradient of a gradient.

Threads are cnorm's: see `cnorm.set_num_threads`.
"""

from ._missing import needs as _needs

with _needs("torch"):
    import torch as _torch

from ._torch_functions import (
    batch_norm,
    group_norm,
    instance_norm,
    layer_norm,
    local_response_norm,
    rms_norm,
)
from ._torch_modules import ACCELERATED as _ACCELERATED

__all__ = [
    "accelerate",
    "batch_norm",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "local_response_norm",
    "restore",
    "rms_norm",
]

_RESTORED = {accelerated: plain for plain, accelerated in _ACCELERATED.items()}


def accelerate(model):
    """Let the norm layers of a model compute with cnorm.

    BatchNorm, InstanceNorm, GroupNorm, LayerNorm, RMSNorm and LocalResponseNorm change their class
    and nothing else: each stays the same object with its parameters, buffers, hooks and training
    flag, and the model's state_dict keeps its keys. Optimizers built before go on working. A
    subclass of one of these layers, or a layer whose ``forward`` was replaced, is left alone, as
    is a lazy layer that has not seen its first batch.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place; it may itself be a norm.

    Returns
    -------
    torch.nn.Module
        The same model.

    Examples
    --------
    >>> import torch, cnorm.interop.torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8))
    >>> cnorm.interop.torch.accelerate(model)(torch.ones(2, 4)).shape
    torch.Size([2, 8])
    """
    return _change_classes(model, _ACCELERATED)


def restore(model):
    """Give the norm layers of a model back to torch: the inverse of `accelerate`.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place.

    Returns
    -------
    torch.nn.Module
        The same model.

    Examples
    --------
    >>> import torch
    >>> from cnorm.interop.torch import accelerate, restore
    >>> type(restore(accelerate(torch.nn.LayerNorm(8)))) is torch.nn.LayerNorm
    True
    """
    return _change_classes(model, _RESTORED)


def _change_classes(model, classes):
    if not isinstance(model, _torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, but got {type(model).__name__}")
    for module in model.modules():
        if type(module) in classes and "forward" not in vars(module):
            module.__class__ = classes[type(module)]
    return model
