"""Layer and RMS norm, and both of a residual sum."""

import numpy as np

from .formulas import (
    affine_backward,
    infinite_of_nothing,
    mean_over,
    moments_over,
    normalized,
    normalized_backward,
)
from .views import RowView, View, widen


@np.errstate(all="ignore")
def layer_norm(
    input, normalized_shape, weight=None, bias=None, eps=1e-5, *, out=None, channel_axis=1,
    return_stats=False, negative_slope=None, clip=None, axis=None, where=None,
):  # fmt: skip
    view = RowView(input, normalized_shape, axis, channel_axis).select(where, out)
    centred, mean, var = moments_over(view.split(input), (1,), view.mask)
    y, rstd = normalized(view, centred, var, eps, (1,), weight, bias, (negative_slope, clip), out)
    return (y, mean.reshape(view.stats), rstd.reshape(view.stats)) if return_stats else y


@np.errstate(all="ignore")
def layer_norm_backward(
    grad_output, input, normalized_shape, mean, rstd, weight=None, *, out=None, channel_axis=1,
    negative_slope=None, clip=None, bias=None, axis=None, where=None,
):  # fmt: skip
    view = RowView(input, normalized_shape, axis, channel_axis).select(where)
    mean, rstd = view.spread(mean, (0,)), view.spread(rstd, (0,))
    xhat, g, grads = affine_backward(
        view, grad_output, mean, rstd, (1,), weight, bias, (negative_slope, clip), view.row
    )
    return normalized_backward(view, xhat, g, rstd, (1,), out), *grads


@np.errstate(all="ignore")
def rms_norm(
    input, normalized_shape, weight=None, eps=None, *, out=None, channel_axis=1,
    return_stats=False, negative_slope=None, clip=None, axis=None, zero_centered_gamma=False,
    where=None,
):  # fmt: skip
    view = RowView(input, normalized_shape, axis, channel_axis, bool(zero_centered_gamma))
    view.select(where, out)
    if eps is None:
        eps = np.finfo(np.promote_types(view.input.dtype, np.float32)).eps
    x = view.split(input)
    square = mean_over(x**2, (1,), view.mask)
    square = np.where(np.isfinite(square), square, np.nan)  # infinity spoils its unit
    square = infinite_of_nothing(square, (1,), view.mask)
    y, rstd = normalized(view, x, square, eps, (1,), weight, None, (negative_slope, clip), out)
    return (y, rstd.reshape(view.stats)) if return_stats else y


@np.errstate(all="ignore")
def rms_norm_backward(
    grad_output, input, normalized_shape, rstd, weight=None, *, out=None, channel_axis=1,
    negative_slope=None, clip=None, axis=None, zero_centered_gamma=False, where=None,
):  # fmt: skip
    view = RowView(input, normalized_shape, axis, channel_axis, bool(zero_centered_gamma))
    view.select(where)
    rstd = view.spread(rstd, (0,))
    xhat, g, (grad_weight, _, *grad_slope) = affine_backward(
        view, grad_output, 0, rstd, (1,), weight, None, (negative_slope, clip), view.row
    )
    grad_input = normalized_backward(view, xhat, g, rstd, (1,), out, centre=False)
    return grad_input, grad_weight, *grad_slope


def _add(a, b, out=None, where=None):
    """The sum, rounded to the dtype of `a`."""
    return View(a, 0, np.shape(a)).select(where, out).join(widen(a) + widen(b), out)


def _with_sum(result, total):
    y, *stats = result if isinstance(result, tuple) else (result,)
    return y, total, *stats


def add_layer_norm(
    input, residual, normalized_shape, weight=None, bias=None, eps=1e-5, *, residual_out=None,
    **options,
):  # fmt: skip
    total = _add(input, residual, residual_out, options.get("where"))
    return _with_sum(layer_norm(total, normalized_shape, weight, bias, eps, **options), total)


def add_rms_norm(
    input, residual, normalized_shape, weight=None, eps=None, *, residual_out=None, **options
):
    total = _add(input, residual, residual_out, options.get("where"))
    return _with_sum(rms_norm(total, normalized_shape, weight, eps, **options), total)


def _add_backward(norm_backward, grad_output, grad_sum, sum, *arguments, out, **options):
    """The gradients of the norm, `grad_sum` added to that of its input before rounding."""
    _, *others = norm_backward(grad_output, sum, *arguments, **options)
    grad_input, *_ = norm_backward(grad_output, widen(sum), *arguments, **options)
    if grad_sum is not None:
        grad_input = grad_input + widen(grad_sum)
    view = View(sum, 0, np.shape(sum)).select(options.get("where"))
    return view.join(grad_input, out), *others


def add_layer_norm_backward(
    grad_output, grad_sum, sum, normalized_shape, mean, rstd, weight=None, *, out=None, **options
):
    return _add_backward(
        layer_norm_backward, grad_output, grad_sum, sum, normalized_shape, mean, rstd, weight,
        out=out, **options,
    )  # fmt: skip


def add_rms_norm_backward(
    grad_output, grad_sum, sum, normalized_shape, rstd, weight=None, *, out=None, **options
):
    return _add_backward(
        rms_norm_backward, grad_output, grad_sum, sum, normalized_shape, rstd, weight, out=out,
        **options,
    )  # fmt: skip
