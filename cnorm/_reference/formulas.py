"""What the norms share: moments, running statistics, affine step, activation, gradients."""

import math

import numpy as np

from .views import widen


def count_over(x, axes):
    return math.prod(x.shape[i] for i in axes)


def mean_over(x, axes, mask=None):
    if mask is None:
        return x.sum(axes, keepdims=True) / max(count_over(x, axes), 1)
    count = mask.sum(axes, keepdims=True)
    return np.where(mask, x, 0).sum(axes, keepdims=True) / np.maximum(count, 1)


def moments_over(x, axes, mask=None):
    """The input minus its mean, the mean, and the biased variance, infinity of nothing."""
    mean = mean_over(x, axes, mask)
    centred = x - mean
    rest = mean_over(centred, axes, mask)  # what rounding took from the mean
    centred = centred - rest
    return centred, mean + rest, infinite_of_nothing(mean_over(centred**2, axes, mask), axes, mask)


def infinite_of_nothing(var, axes, mask):
    return var if mask is None else np.where(mask.any(axes, keepdims=True), var, np.inf)


def unbiased(var, count):
    return var * np.float64(count) / (count - 1)


def update_running(running, factor, batch):
    """``running = (1 - factor) * running + factor * batch``, in place."""
    running[...] = (1 - factor) * widen(running) + factor * batch.reshape(running.shape)


def update_running_selected(running_mean, running_var, factor, mean, var, mask, units):
    """Running statistics of what a mask selects; units of fewer than two elements do not count."""
    count = mask.sum(units, keepdims=True)
    counted = count > 1
    var = np.where(counted, var * count / np.maximum(count - 1, 1), 0)
    for running, batch in ((running_mean, np.where(counted, mean, 0)), (running_var, var)):
        before = running.copy()
        update_running(running, factor, batch.sum(0) / np.maximum(counted.sum(0), 1))
        kept = ~counted.any(0).reshape(running.shape)
        running[kept] = before[kept]


def affine(view, x, axes, weight, bias):
    if weight is not None:
        x = x * view.spread_parameter(weight, axes)
    if bias is not None:
        x = x + view.spread_parameter(bias, axes)
    return x


def _bounds(clip):
    """The bounds of `clip`; an open side is NaN, which every comparison is False with."""
    return (np.nan if bound is None else bound for bound in clip)


def activate(view, z, epilogue):
    """`epilogue` is a pair: a slope and a clip, of which one at least is None."""
    slope, clip = epilogue
    if slope is not None:
        return np.where(z > 0, z, z * view.spread_slope(slope))
    if clip is None:
        return z
    low, high = _bounds(clip)
    z = np.where(z < low, low, z)
    return np.where(z > high, high, z)


def activate_backward(view, grad, z, epilogue):
    """The gradient before the epilogue, and a list: the gradient of a PReLU slope, if any."""
    slope, clip = epilogue
    if clip is not None:
        low, high = _bounds(clip)
        return np.where((z <= low) | (z >= high), 0, grad), []
    if slope is None:
        return grad, []
    before = np.where(z > 0, grad, grad * view.spread_slope(slope))
    if np.ndim(slope) == 0 and not isinstance(slope, np.ndarray):
        return before, []
    return before, [view.gather_slope(np.where(z > 0, 0, grad * z), slope)]


def normalized(view, centred, var, eps, axes, weight, bias, epilogue, out):
    """The result, and rstd."""
    rstd = 1 / np.sqrt(var + eps)
    z = affine(view, centred * rstd, axes, weight, bias)
    return view.join(activate(view, z, epilogue), out), rstd


def affine_backward(view, grad_output, mean, rstd, axes, weight, bias, epilogue, shape=None):
    """xhat, its gradient, and those of the parameters, of what `normalized` computes."""
    if shape is None:
        shape = tuple(view.shape[i] for i in axes)
    xhat = (view.split(view.input) - mean) * rstd
    z = affine(view, xhat, axes, weight, bias)
    grad, grad_slope = activate_backward(view, view.split(grad_output), z, epilogue)
    grad_weight = view.gather(grad * xhat, axes, weight, shape)
    grad_bias = view.gather(grad, axes, weight if bias is None else bias, shape)
    return xhat, affine(view, grad, axes, weight, None), (grad_weight, grad_bias, *grad_slope)


def normalized_backward(view, xhat, g, rstd, units, out, centre=True):
    """The gradient of the input whose mean and rstd were taken over the axes `units`."""
    mask = view.mask
    g = g - xhat * mean_over(g * xhat, units, mask) - (mean_over(g, units, mask) if centre else 0)
    return view.join(rstd * g, out)
