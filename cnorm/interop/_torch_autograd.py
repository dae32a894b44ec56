"""The memory of tensors as arrays, and the autograd function that every norm shares.

A call computes here where nobody records or transforms torch's operations and all tensors are
plain ones in the memory of the CPU; `watched` and `arrays_of` decide that. Every other call belongs
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

# A result of so many bytes takes memory that cnorm reuses, as gradients do: from this size on
# malloc asks the system for new pages each time (glibc, 32 MiB), which takes longer than the norm.
# The storage of such a tensor cannot be resized; torch allocates smaller results, which can.
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


def arrays_of(tensors):
    """The memory of tensors as arrays (None for None), or None where NumPy cannot see all of it.

    The arrays must not outlive the tensors.
    """
    arrays = []
    for t in tensors:
        if t is None:
            arrays.append(None)
            continue
        if type(t) not in _PLAIN or _keys(t).raw_repr() not in _DENSE:
            return None
        dtype = DTYPES.get(t.dtype)
        if dtype is None:
            return None
        arrays.append(_array_of(t, dtype))
    return arrays


def check_mask(where, x):
    """Whether a mask is a tensor of bools that broadcasts to the input."""
    if not isinstance(where, torch.Tensor):
        raise TypeError(f"where must be a bool tensor, but got {type(where).__name__}")
    fits = where.dim() <= x.dim() and all(
        n == 1 or n == size
        for n, size in zip(reversed(where.shape), reversed(x.shape), strict=False)
    )
    if where.dtype is torch.bool and fits:
        return
    from .. import _hints  # as everywhere in cnorm, once a call has failed

    if where.dtype is not torch.bool:
        raise TypeError(_hints.mask_dtype(where.dtype).replace("bool array", "bool tensor"))
    raise ValueError(_hints.mask_shape(tuple(where.shape), tuple(x.shape)))


def mask_of(where):
    """The memory of a mask as an array (None for None), or None where NumPy cannot see it."""
    if where is None or type(where) not in _PLAIN or _keys(where).raw_repr() not in _DENSE:
        return None
    return _array_of(where, np.dtype(bool))


def _array_of(t, dtype):
    memory = _memory_at(t.data_ptr())
    if t.is_contiguous():
        return np.ndarray(t.shape, dtype, memory)
    return np.ndarray(t.shape, dtype, memory, 0, [s * dtype.itemsize for s in t.stride()])


def as_tensor(array):
    """The memory of an array as a tensor."""
    if array.dtype.num >= 256:  # none of NumPy's own: bfloat16
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


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


def run(kind, settings, x, weight=None, bias=None, mean=None, var=None, where=None):
    """A norm of `_torch_functions` applied to tensors, here or by torch's own function."""
    if where is not None:
        check_mask(where, x)
    y = None if watched() else run_here(kind, settings, x, weight, bias, mean, var, where)
    return kind(*settings).in_torch(x, weight, bias, mean, var, where) if y is None else y


def run_here(kind, settings, x, weight=None, bias=None, mean=None, var=None, where=None):
    """The norm while nobody watches, or None where torch's own function must do it."""
    if (mean is None) != (var is None):
        return None
    tensors = (x, weight, bias) if mean is None else (x, weight, bias, mean, var)
    arrays, mask = arrays_of(tensors), mask_of(where)
    if arrays is None or (mask is None) != (where is None):
        return None
    norm = _made(kind, settings)
    if differentiable(x, weight, bias):
        return _apply(norm, arrays, mask, x, weight, bias, where)
    return compute(norm, arrays, mask, x)[0]


def compute(norm, arrays, mask, x):
    """The result as a tensor, then the statistics as arrays."""
    options = {} if mask is None else {"where": mask}
    if x.numel() * x.element_size() >= REUSED_FROM:
        y, *stats = norm.forward(*arrays, **options)
        return as_tensor(y), stats
    # what the mask leaves out keeps its value
    y = torch.empty_like(x) if mask is None else torch.zeros_like(x)
    _, *stats = norm.forward(*arrays, out=arrays_of((y,))[0], **options)
    return y, stats


class Norm(torch.autograd.Function):
    """A norm of `_torch_functions` in torch's graph.

    The statistics are saved, never the running ones: a later training step changes those.
    """

    @staticmethod
    def forward(ctx, norm, arrays, mask, x, weight, bias, where):
        y, ctx.stats = compute(norm, arrays, mask, x)
        ctx.norm = norm
        ctx.save_for_backward(x, weight, bias, where)
        return y

    @staticmethod
    def backward(ctx, dy):
        _, _, _, of_x, of_weight, of_bias, _ = ctx.needs_input_grad
        *saved, where = ctx.saved_tensors
        x, weight, bias = saved
        norm = ctx.norm
        # with gradients enabled the gradient is to be differentiated; several gradients at once
        # (`is_grads_batched`) have no memory of their own
        arrays = None
        if not (torch.is_grad_enabled() or watched()):
            arrays = arrays_of((dy, x, weight, bias) if norm.needs_bias else (dy, x, weight))
        if arrays is None:
            needed = (of_x, of_weight, of_bias)
            grads = gradients_in_torch(norm, ctx.stats, dy, saved, needed, where)
            return None, None, None, *grads, None
        bias = arrays[3] if norm.needs_bias else None
        options = {} if where is None else {"where": mask_of(where)}
        dx, dw, db = norm.backward(*arrays[:3], *ctx.stats, bias=bias, **options)
        return (
            None,
            None,
            None,
            as_tensor(dx) if of_x else None,
            as_tensor(dw) if of_weight else None,
            as_tensor(db) if of_bias else None,
            None,
        )


# Norm.apply without what concerns torch.func only, whose tensors do not come here
_apply = super(torch.autograd.Function, Norm).apply


def gradients_in_torch(norm, stats, dy, tensors, needed, where):
    """Gradients by torch's operations: they can be batched, and differentiated again."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        if norm.uses_input_stats:
            y = norm.in_torch(*tensors, None, None, where)
        else:
            y = norm.with_statistics(*tensors, *map(torch.from_numpy, stats), where)
        wanted = [t for t, n in zip(tensors, needed, strict=True) if n]
        grads = iter(torch.autograd.grad(y, wanted, dy, create_graph=again))
    return [next(grads) if n else None for n in needed]
