"""The memory of tensors as arrays, and the autograd function that every norm shares.

A call computes here where nobody records or transforms torch's operations and all tensors are
plain ones in the memory of the CPU; `usable` and `watched` decide that. Every other call belongs
to torch's own function, so that dispatch modes, ``make_fx``, ``torch.compile``, ``torch.export``,
``torch.func`` and forward-mode differentiation see what they know.
"""

import ctypes
from functools import lru_cache

import numpy as np
import torch
from torch.autograd import forward_ad
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

DTYPES = {
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
    torch.float16: np.dtype(np.float16),
}
try:
    import ml_dtypes
except ModuleNotFoundError:  # NumPy then has no bfloat16
    pass
else:
    DTYPES[torch.bfloat16] = np.dtype(ml_dtypes.bfloat16)

# A result of so many bytes takes memory that cnorm reuses: from this size on malloc asks the system
# for new pages each time (glibc, 32 MiB), which takes longer than the norm. Such a storage cannot
# be resized; smaller results are allocated by torch and can.
REUSED_FROM = 1 << 25

_PLAIN = {torch.Tensor, torch.nn.Parameter}  # a subclass may hold no data, or mean something else
_keys = torch._C._dispatch_keys
with torch.inference_mode():
    # of dense tensors on the CPU: not nested, sparse, negated lazily, functional, or without data
    _DENSE = {_keys(torch.empty(0)).raw_repr()}
with torch.inference_mode(False):
    _DENSE.add(_keys(torch.empty(0)).raw_repr())
_is_compiling = torch.compiler.is_compiling
_is_tracing = torch._C._get_tracing_state
_in_functorch = torch._C._are_functorch_transforms_active
_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._len_torch_function_stack

# Memory from an address on, of no particular length. Tensor.numpy() would make the tensor's storage
# non-resizable, which breaks FSDP2 among others.
_memory_at = (ctypes.c_char * (2**62)).from_address


def watched():
    """Whether somebody records, transforms or overrides the operations of torch here."""
    return (
        _is_compiling()
        or _dispatch_modes() > 0
        or _in_functorch()
        or forward_ad._current_level >= 0
        or _is_tracing() is not None
        or (_function_modes() > 0 and not _only_devices())
    )


def _only_devices():
    """Whether all function modes are default devices, which concern new tensors only."""
    return all(isinstance(mode, DeviceContext) for mode in _get_current_function_mode_stack())


def usable(tensors):
    """Whether each of the tensors is None or one whose memory NumPy can see."""
    for t in tensors:
        if t is not None and not (
            type(t) in _PLAIN and _keys(t).raw_repr() in _DENSE and t.dtype in DTYPES
        ):
            return False
    return True


def as_array(tensor):
    """The memory of a usable tensor as an array, which must not outlive the tensor."""
    if tensor is None:
        return None
    dtype, memory = DTYPES[tensor.dtype], _memory_at(tensor.data_ptr())
    if tensor.is_contiguous():
        return np.ndarray(tensor.shape, dtype, memory)
    size = dtype.itemsize
    return np.ndarray(tensor.shape, dtype, memory, 0, [s * size for s in tensor.stride()])


def as_tensor(array):
    """The memory of an array as a tensor."""
    if array.dtype.num >= 256:  # none of NumPy's own: bfloat16
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def result_like(tensor):
    """A new tensor for a result and its array, or twice None where cnorm is to allocate it."""
    if tensor.numel() * tensor.element_size() >= REUSED_FROM:
        return None, None
    result = torch.empty_like(tensor)
    return result, as_array(result)


def differentiable(*tensors):
    """Whether autograd wants to know of a call with these tensors."""
    if torch.is_grad_enabled():
        for t in tensors:
            if t is not None and t.requires_grad:
                return True
    return False


@lru_cache(1024)
def _made(kind, settings):
    """A norm of `_torch_functions`; making one takes longer than looking it up."""
    return kind(*settings)


def run(kind, settings, x, weight=None, bias=None, mean=None, var=None):
    """A norm of `_torch_functions` applied to tensors, here or by torch's own function."""
    y = run_here(kind, settings, x, weight, bias, mean, var)
    return kind(*settings).in_torch(x, weight, bias, mean, var) if y is None else y


def run_here(kind, settings, x, weight=None, bias=None, mean=None, var=None):
    """The norm, or None where torch's own function must do it."""
    if watched() or not usable((x, weight, bias, mean, var)) or (mean is None) != (var is None):
        return None
    norm = _made(kind, settings)
    if differentiable(x, weight, bias):
        return Norm.apply(norm, x, weight, bias, mean, var)
    return compute(norm, x, weight, bias, mean, var)[0]


def compute(norm, x, weight, bias, mean, var):
    """The result as a tensor, then the statistics as arrays."""
    y, out = result_like(x)
    running = () if mean is None else (as_array(mean), as_array(var))
    array, *stats = norm.forward(as_array(x), as_array(weight), as_array(bias), *running, out=out)
    return as_tensor(array) if y is None else y, stats


class Norm(torch.autograd.Function):
    """A norm of `_torch_functions` in torch's graph.

    The statistics are saved, never the running ones: a later training step changes those.
    """

    @staticmethod
    def forward(ctx, norm, x, weight, bias, mean, var):
        y, ctx.stats = compute(norm, x, weight, bias, mean, var)
        ctx.norm = norm
        ctx.save_for_backward(x, weight, bias)
        return y

    @staticmethod
    def backward(ctx, dy):
        _, *needed, _, _ = ctx.needs_input_grad
        saved = ctx.saved_tensors
        # with gradients enabled the gradient is to be differentiated; several gradients at once
        # (`is_grads_batched`) have no memory of their own
        if torch.is_grad_enabled() or watched() or not usable((dy, *saved)):
            return None, *gradients_in_torch(ctx.norm, ctx.stats, dy, saved, needed), None, None
        x, weight, bias = saved
        dx, out = result_like(x)
        array, *parameter_grads = ctx.norm.backward(
            as_array(dy), as_array(x), as_array(weight), *ctx.stats, bias=as_array(bias), out=out
        )
        if dx is None:
            dx = as_tensor(array)
        # a copy, in memory of torch's own, of what is short
        dw, db = (
            as_tensor(g).clone() if n else None
            for g, n in zip(parameter_grads, needed[1:], strict=True)
        )
        return None, dx if needed[0] else None, dw, db, None, None


def gradients_in_torch(norm, stats, dy, tensors, needed):
    """Gradients by torch's operations: they can be batched, and differentiated again."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        if norm.uses_input_stats:
            y = norm.in_torch(*tensors, None, None)
        else:
            y = norm.with_statistics(*tensors, *map(torch.from_numpy, stats))
        wanted = [t for t, n in zip(tensors, needed, strict=True) if n]
        grads = iter(torch.autograd.grad(y, wanted, dy, create_graph=again))
    return [next(grads) if n else None for n in needed]
