"""`normalize`: division by a vector norm over any axes."""

import numpy as np

from .views import widen


def _norm(x, p, axes):
    size = np.abs(x)
    if p == 2:
        return np.sqrt((x**2).sum(axes, keepdims=True))
    if p == 1:
        return size.sum(axes, keepdims=True)
    return size.max(axes, keepdims=True, initial=0)


def _dims(dim):
    return dim if isinstance(dim, int) else tuple(dim)


@np.errstate(all="ignore")
def normalize(input, p=2.0, dim=1, eps=1e-12, out=None, *, return_stats=False):
    x, input = widen(input), np.asarray(input)
    norm = _norm(x, p, _dims(dim))
    if out is None:
        out = np.empty_like(input, dtype=input.dtype.newbyteorder("="))
    out[...] = x / np.maximum(norm, eps)
    return (out, norm) if return_stats else out


@np.errstate(all="ignore")
def normalize_backward(grad_output, input, norm, p=2.0, dim=1, eps=1e-12, *, out=None):
    x, g, input, axes = widen(input), widen(grad_output), np.asarray(input), _dims(dim)
    if p == 2:
        grad_norm = np.where(norm > 0, x / norm, 0)
    elif p == 1:
        grad_norm = np.sign(x)
    else:
        largest = np.abs(x) == norm
        grad_norm = np.sign(x) * largest / largest.sum(axes, keepdims=True)
    divisor = np.maximum(norm, eps)
    of_divisor = -(g * x).sum(axes, keepdims=True) / divisor**2
    if out is None:
        out = np.empty_like(input, dtype=input.dtype.newbyteorder("="))
    out[...] = g / divisor + np.where(norm >= eps, of_divisor * grad_norm, 0)
    return out
