"""cnorm's norms for PyTorch on the CPU: functions with gradients, `accelerate` for whole models.

The functions have the signatures of `torch.nn.functional`, take and return tensors, and read the
memory of tensors where it lies: float32, float64, float16 and bfloat16, contiguous, channels last
or any other strides. torch's own function runs wherever cnorm does not: on another device, for a
subclass of Tensor, for the gradient of a gradient, in forward-mode differentiation, and while
anything records or transforms torch's operations (``torch.compile``, ``torch.export``,
``make_fx``, dispatch modes, tracing, ``torch.func``). The operators ``torch.ops.cnorm.*`` are
cnorm's also there.

Threads are cnorm's: see `cnorm.set_num_threads`.
"""

import warnings as _warnings
from collections import Counter as _Counter
from dataclasses import dataclass as _dataclass

from ._missing import needs as _needs

with _needs("torch"):
    import torch as _torch

from . import _torch_modules as _layers
from . import _torch_operators  # noqa: F401 -- makes torch.ops.cnorm
from ._torch_functions import (
    batch_norm,
    group_norm,
    instance_norm,
    layer_norm,
    local_response_norm,
    rms_norm,
)

__all__ = [
    "Report",
    "accelerate",
    "batch_norm",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "local_response_norm",
    "report",
    "restore",
    "rms_norm",
]


@_dataclass(frozen=True)
class Report:
    """Which norms of a model compute with cnorm; ``str`` makes a table of it.

    Attributes
    ----------
    replaced : dict
        Names of accelerated layers, as ``named_modules`` gives them, and their classes' names.
    left : dict
        Names of the norms that are torch's or their library's own, each with its class's name and
        why it was left.
    """

    replaced: dict
    left: dict

    def __str__(self):
        lines = [f"cnorm computes {len(self.replaced)} layers and leaves {len(self.left)} norms"]
        for name, n in _Counter(self.replaced.values()).items():
            lines.append(f"  {n:4} {name}: replaced")
        for (name, why), n in _Counter(self.left.values()).items():
            lines.append(f"  {n:4} {name}: left, {why}")
        return "\n".join(lines)


def accelerate(model, *, verbose=False):
    """Let the norm layers of a model compute with cnorm.

    Each layer stays the same object of the same class, with its parameters, buffers, hooks and
    training flag, and the model's state_dict keeps its keys; what it gains is a ``forward`` of its
    own. Optimizers built before go on working. A small input goes to torch's own function, which
    is the faster one there.

    Replaced are BatchNorm, InstanceNorm, GroupNorm, LayerNorm, RMSNorm and LocalResponseNorm of
    torch; timm's BatchNormAct2d, FrozenBatchNormAct2d, GroupNormAct, GroupNorm, LayerNorm,
    LayerNorm2d and RmsNorm; LayerNorm2d and FrozenBatchNorm2d of torchvision; RMSNorm of
    diffusers; and in transformers each RMSNorm that computes what LlamaRMSNorm or T5LayerNorm
    does. Layers of other libraries are known by the source of their ``forward``, never by their
    name. A subclass of torch's layers, SyncBatchNorm, a layer whose ``forward`` was replaced, and
    a lazy layer that has not seen its first batch are left alone.

    torch's layers, but LocalResponseNorm, then take a mask as well: ``layer(x, where=mask)``, with
    a bool tensor that broadcasts to the input.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place; it may itself be a norm.
    verbose : bool
        Print which norms were replaced, which were not, and why: what `report` returns.

    Returns
    -------
    torch.nn.Module
        The same model.

    Warns
    -----
    UserWarning
        Where the model has no layer that cnorm computes.

    Examples
    --------
    >>> import torch, cnorm.interop.torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8))
    >>> cnorm.interop.torch.accelerate(model)(torch.ones(2, 4)).shape
    torch.Size([2, 8])
    """
    for module in _modules(model):
        if not _layers.is_accelerated(module):
            compute, _ = _layers.computation_of(module)
            if compute is not None:
                module.forward = _layers.AcceleratedForward(module)
    done = report(model)
    if verbose:
        print(done)
    if not done.replaced:
        message = "no layer of the model was accelerated"
        if done.left:
            message += f"\n{done}"
        _warnings.warn(message, stacklevel=2)
    return model


def report(model):
    """Which norms of a model compute with cnorm, which do not, and why.

    Parameters
    ----------
    model : torch.nn.Module
        Before or after `accelerate`.

    Returns
    -------
    Report

    Examples
    --------
    >>> import torch
    >>> from cnorm.interop.torch import accelerate, report
    >>> model = torch.nn.Sequential(torch.nn.LayerNorm(8), torch.nn.SyncBatchNorm(8))
    >>> print(report(accelerate(model)))
    cnorm computes 1 layers and leaves 1 norms
         1 LayerNorm: replaced
         1 SyncBatchNorm: left, it merges statistics over processes, which is torch's part
    """
    replaced, left = {}, {}
    _modules(model)
    for name, module in model.named_modules():
        kind = type(module).__name__
        if _layers.is_accelerated(module):
            replaced[name] = kind
        elif _layers.is_norm(module):
            _, why = _layers.computation_of(module)
            left[name] = (kind, why or "accelerate would replace it")
    return Report(replaced, left)


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
    >>> layer = restore(accelerate(torch.nn.LayerNorm(8)))
    >>> "forward" in vars(layer)
    False
    """
    for module in _modules(model):
        if _layers.is_accelerated(module):
            del module.forward
    return model


def _modules(model):
    if not isinstance(model, _torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, but got {type(model).__name__}")
    return model.modules()
