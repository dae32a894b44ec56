"""Batch, instance and group norm."""

import numpy as np

from .formulas import (
    affine_backward,
    count_over,
    mean_over,
    moments_over,
    normalized,
    normalized_backward,
    unbiased,
    update_running,
    update_running_selected,
)
from .views import View


@np.errstate(all="ignore")
def _tracked(
    units, input, running_mean, running_var, weight, bias, from_input, momentum, eps, *,
    out=None, channel_axis=1, return_stats=False, negative_slope=None, clip=None, where=None,
):  # fmt: skip
    """Batch and instance norm: they differ in their units. Running statistics take the mean."""
    view = View(input, channel_axis).select(where, out)
    x = view.split(input)
    if from_input:
        centred, mean, var = moments_over(x, units, view.mask)
        if running_mean is not None and view.mask is not None:
            update_running_selected(
                running_mean, running_var, momentum, mean, var, view.mask, units
            )
        elif running_mean is not None and x.size:
            update_running(running_mean, momentum, mean_over(mean, (0,)))
            update_running(
                running_var, momentum, mean_over(unbiased(var, count_over(x, units)), (0,))
            )
    else:
        mean, var = view.spread(running_mean, (1,)), view.spread(running_var, (1,))
        centred = x - mean
    y, rstd = normalized(view, centred, var, eps, (1,), weight, bias, (negative_slope, clip), out)
    each = (1,) if 0 in units else (0, 1)
    return (y, view.fill(mean, each), view.fill(rstd, each)) if return_stats else y


@np.errstate(all="ignore")
def _tracked_backward(
    units, grad_output, input, mean, rstd, weight, from_input, *, out=None, channel_axis=1,
    negative_slope=None, clip=None, bias=None, where=None,
):  # fmt: skip
    view = View(input, channel_axis).select(where)
    mean, rstd = (view.spread(a, (1,) if 0 in units else (0, 1)) for a in (mean, rstd))
    xhat, g, grads = affine_backward(
        view, grad_output, mean, rstd, (1,), weight, bias, (negative_slope, clip)
    )
    if from_input:
        return normalized_backward(view, xhat, g, rstd, units, out), *grads
    return view.join(rstd * g, out), *grads


def batch_norm(
    input, running_mean=None, running_var=None, weight=None, bias=None, training=False,
    momentum=0.1, eps=1e-5, **options,
):  # fmt: skip
    return _tracked(
        (0, 2), input, running_mean, running_var, weight, bias, training, momentum, eps, **options
    )


def batch_norm_backward(grad_output, input, mean, rstd, weight=None, *, training=True, **options):
    return _tracked_backward((0, 2), grad_output, input, mean, rstd, weight, training, **options)


def instance_norm(
    input, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True,
    momentum=0.1, eps=1e-5, **options,
):  # fmt: skip
    return _tracked(
        (2,), input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps,
        **options,
    )  # fmt: skip


def instance_norm_backward(
    grad_output, input, mean, rstd, weight=None, *, use_input_stats=True, **options
):
    return _tracked_backward(
        (2,), grad_output, input, mean, rstd, weight, use_input_stats, **options
    )


def _groups(input, num_groups, channel_axis):
    return View(input, channel_axis, lambda n, c, s: (n, num_groups, c // num_groups, s))


@np.errstate(all="ignore")
def group_norm(
    input, num_groups, weight=None, bias=None, eps=1e-5, *, out=None, channel_axis=1,
    return_stats=False, negative_slope=None, clip=None, where=None,
):  # fmt: skip
    view = _groups(input, num_groups, channel_axis).select(where, out)
    centred, mean, var = moments_over(view.split(input), (2, 3), view.mask)
    y, rstd = normalized(view, centred, var, eps, (1, 2), weight, bias, (negative_slope, clip), out)
    return (y, view.fill(mean, (0, 1)), view.fill(rstd, (0, 1))) if return_stats else y


@np.errstate(all="ignore")
def group_norm_backward(
    grad_output, input, num_groups, mean, rstd, weight=None, *, out=None, channel_axis=1,
    negative_slope=None, clip=None, bias=None, where=None,
):  # fmt: skip
    view = _groups(input, num_groups, channel_axis).select(where)
    mean, rstd = view.spread(mean, (0, 1)), view.spread(rstd, (0, 1))
    channels = view.shape[1] * view.shape[2]
    xhat, g, grads = affine_backward(
        view, grad_output, mean, rstd, (1, 2), weight, bias, (negative_slope, clip), channels
    )
    return normalized_backward(view, xhat, g, rstd, (2, 3), out), *grads
