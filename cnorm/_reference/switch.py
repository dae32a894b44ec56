"""Switch norm: statistics of several units, mixed, and the gradients of the mix."""

import numpy as np

from .formulas import (
    affine_backward,
    count_over,
    mean_over,
    moments_over,
    normalized,
    unbiased,
    update_running,
)
from .views import View, widen


def _softmax(logits):
    powers = np.exp(widen(logits) - np.max(widen(logits)))
    return powers / powers.sum()


def _switch_units(view, weights, training):
    """The axes of each statistic in the order of its weights; in evaluation without the batch's.

    Of 2-D input: row and column. Else: instance, and merged from the instances, layer and batch.
    """
    units = [(1,), (0,)] if view.input.ndim == 2 else [(2,), (1,), (0,)][: np.size(weights)]
    return units if training else [axes for axes in units if axes != (0,)]


def _switch_moments(x, units):
    """The means and the variances. Those over single elements are unbiased."""
    if units[0] == (1,):
        moments = [moments_over(x, axes)[1:] for axes in units]
        return [
            (m, unbiased(v, count_over(x, a))) for (m, v), a in zip(moments, units, strict=True)
        ]
    _, mean, var = moments_over(x, (2,))
    var = unbiased(var, x.shape[2])
    moments = [(mean, var)]
    for axes in units[1:]:
        _, merged, between = moments_over(mean, axes)
        moments.append((merged, mean_over(var, axes) + between))
    return moments


@np.errstate(all="ignore")
def switch_norm(
    input, running_mean, running_var, weight, bias, mean_weight, var_weight, training=False,
    momentum=0.9, eps=1e-5, using_moving_average=True, *, out=None, channel_axis=1,
    return_stats=False, negative_slope=None, clip=None,
):  # fmt: skip
    view = View(input, channel_axis)
    x = view.split(input)
    units = _switch_units(view, mean_weight, training)
    moments = _switch_moments(x, units)
    if len(moments) < np.size(mean_weight):
        moments.append((view.spread(running_mean, (1,)), view.spread(running_var, (1,))))
    elif units[-1] == (0,) and running_mean is not None and x.size:
        mean, var = moments[-1]
        if using_moving_average:
            update_running(running_mean, 1 - momentum, mean)
            update_running(running_var, 1 - momentum, var)
        else:
            running_mean += mean.reshape(running_mean.shape)
            running_var += (mean**2 + var).reshape(running_var.shape)
    mean = sum(p * m for p, (m, _) in zip(_softmax(mean_weight), moments, strict=True))
    var = sum(p * v for p, (_, v) in zip(_softmax(var_weight), moments, strict=True))
    y, rstd = normalized(view, x - mean, var, eps, (1,), weight, bias, (negative_slope, clip), out)
    return (y, (moments, mean, rstd, training)) if return_stats else y


def _mix_backward(logits, grad_mixed, mixed):
    """The gradient of the logits, and of each statistic mixed by their softmax."""
    p = _softmax(logits)
    grad_p = np.array([(grad_mixed * a).sum() for a in mixed])
    grad_logits = p * (grad_p - (p * grad_p).sum())
    grads = []
    for pi, a in zip(p, mixed, strict=True):
        broadcast = tuple(i for i in range(3) if a.shape[i] < grad_mixed.shape[i])
        grads.append(pi * grad_mixed.sum(broadcast, keepdims=True))
    return grad_logits.reshape(np.shape(logits)).astype(np.asarray(logits).dtype), grads


def _moment_backward(x, axes, mean, grad_mean, grad_var, *, correction):
    """What the mean and the variance over `axes` pass back to x."""
    count = count_over(x, axes)
    return grad_mean / count + grad_var * 2 * (x - mean) / (count - correction)


@np.errstate(all="ignore")
def switch_norm_backward(
    grad_output, input, stats, weight, mean_weight, var_weight, bias=None, *, out=None,
    channel_axis=1, negative_slope=None, clip=None,
):  # fmt: skip
    view = View(input, channel_axis)
    x = view.split(input)
    moments, mean, rstd, training = stats
    units = _switch_units(view, mean_weight, training)
    xhat, g, grads = affine_backward(
        view, grad_output, mean, rstd, (1,), weight, bias, (negative_slope, clip)
    )
    means, variances = zip(*moments, strict=True)
    grad_mean = -rstd * g.sum(2, keepdims=True)
    grad_var = -0.5 * rstd**2 * (g * xhat).sum(2, keepdims=True)
    grad_mean_weight, grad_means = _mix_backward(mean_weight, grad_mean, means)
    grad_var_weight, grad_vars = _mix_backward(var_weight, grad_var, variances)
    # Through each statistic of this batch; a running one has no axes in `units`.
    back = list(zip(units, means, grad_means, grad_vars, strict=False))
    if units[0] == (1,):
        total = sum(_moment_backward(x, *statistic, correction=1) for statistic in back)
    else:
        (_, mean_in, grad_mean, grad_var), *merged = back
        for statistic in merged:
            grad_mean = grad_mean + _moment_backward(mean_in, *statistic, correction=0)
            grad_var = grad_var + statistic[-1] / count_over(mean_in, statistic[0])
        total = _moment_backward(x, (2,), mean_in, grad_mean, grad_var, correction=1)
    grad_input = view.join(rstd * g + total, out)
    grad_weight, grad_bias, *grad_slope = grads
    return grad_input, grad_weight, grad_bias, grad_mean_weight, grad_var_weight, *grad_slope
