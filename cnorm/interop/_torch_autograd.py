"""Tensors as arrays and back without a copy, and the autograd function that every norm shares."""

import importlib.util
from contextlib import suppress

import torch
from torch.autograd.graph import increment_version

HALF = {torch.bfloat16} if importlib.util.find_spec("ml_dtypes") else set()
DTYPES = {torch.float32, torch.float64, torch.float16} | HALF
_in_functorch = torch._C._are_functorch_transforms_active
PLAIN = {torch.Tensor, torch.nn.Parameter}  # a subclass may hold no data, or mean something else


def as_array(tensor):
    """The memory of a tensor as an array: shape, strides and all."""
    if tensor is None:
        return None
    if tensor.dtype is torch.bfloat16:  # which NumPy knows through ml_dtypes only
        import ml_dtypes

        return as_array(tensor.detach().view(torch.uint16)).view(ml_dtypes.bfloat16)
    return tensor.numpy(force=True)


def as_tensor(array):
    """The memory of an array as a tensor."""
    if array is None:
        return None
    if array.dtype.num >= 256:  # none of NumPy's own: bfloat16
        return torch.from_numpy(array.view("uint16")).view(torch.bfloat16)
    return torch.from_numpy(array)


def has_arrays(tensors):
    """Whether NumPy can see the memory of all these tensors, and nobody is recording operations."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or _in_functorch():
        return False
    for t in tensors:
        if t is not None and not (
            type(t) in PLAIN and t.is_cpu and t.layout is torch.strided and t.dtype in DTYPES
        ):
            return False
    return True


def run(norm, in_torch, input, weight=None, bias=None, running_mean=None, running_var=None):
    """Apply a norm of `_norms` to tensors; `in_torch` is the same norm in torch's operations."""
    tensors = (input, weight, bias)
    if running_mean is not None and running_var is not None:
        tensors += (running_mean, running_var)
    if not has_arrays(tensors) or (running_mean is None) != (running_var is None):
        return in_torch(input, weight, bias, running_mean, running_var)
    if torch.is_grad_enabled() and (
        input.requires_grad
        or (weight is not None and weight.requires_grad)
        or (bias is not None and bias.requires_grad)
    ):
        return Norm.apply(norm, in_torch, *tensors)
    return forward(norm, tensors)[0]


def forward(norm, tensors):
    y, *stats = norm.forward(*map(as_array, tensors))
    if norm.uses_input_stats:
        for running in tensors[3:]:
            increment_version(running)  # autograd cannot see that cnorm wrote to it
    return as_tensor(y), stats


class Norm(torch.autograd.Function):
    """A norm of `_norms` in torch's graph."""

    @staticmethod
    def forward(ctx, norm, in_torch, *tensors):
        y, ctx.stats = forward(norm, tensors)
        ctx.norm, ctx.in_torch = norm, in_torch
        ctx.save_for_backward(*tensors[: 3 if norm.uses_input_stats else None])
        return y

    @staticmethod
    def backward(ctx, grad_output):
        needed = ctx.needs_input_grad[2:]
        dy = None
        if not torch.is_grad_enabled():  # it is where the gradient is to be differentiated
            with suppress(RuntimeError):  # several gradients at once have no array
                dy = as_array(grad_output)
        if dy is None:
            grads = Norm.backward_in_torch(ctx, grad_output, needed)
        else:
            x, weight = map(as_array, ctx.saved_tensors[:2])
            grads = ctx.norm.backward(dy, x, weight, *ctx.stats)
            grads = [as_tensor(g) if n else None for g, n in zip(grads, needed, strict=False)]
        return None, None, *grads, *[None] * (len(needed) - len(grads))

    @staticmethod
    def backward_in_torch(ctx, grad_output, needed):
        """Gradients that can be batched, and differentiated again."""
        inputs = ctx.saved_tensors[:3]
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            y = ctx.in_torch(*inputs, *(ctx.saved_tensors[3:] or (None, None)))
            wanted = [t for t, n in zip(inputs, needed, strict=False) if n]
            grads = iter(torch.autograd.grad(y, wanted, grad_output, create_graph=again))
        return [next(grads) if n else None for n in needed[:3]]
