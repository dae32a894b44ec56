"""Local response norm, and its legacy form of torch."""

import numpy as np

from .formulas import activate, activate_backward
from .views import View


def _response_window(channels, size):
    """``window[c, j]``: whether channel j counts for channel c."""
    c, j = np.ogrid[:channels, :channels]
    return (c - size // 2 <= j) & (j <= c + (size - 1) // 2)


def _cross_map_window(channels, size):
    """Torch's legacy layer: as wide on both sides, and channel 0 never leaves the window."""
    c, j = np.ogrid[:channels, :channels]
    return (abs(c - j) <= (size - 1) // 2) | (j == 0)


def _window_sums(window, x):
    sums = np.empty_like(x)
    for c, members in enumerate(window):
        sums[:, c] = x[:, members].sum(1)
    return sums


def _response(window, view, size, alpha, k):
    """The input, the window, and what is raised to the power beta."""
    x = view.split(view.input)
    window = window(x.shape[1], size)
    return x, window, k + alpha / size * _window_sums(window, x**2)


@np.errstate(all="ignore")
def local_response_norm(
    input, size, alpha=1e-4, beta=0.75, k=1.0, *, out=None, channel_axis=1, negative_slope=None,
    clip=None, window=_response_window,
):  # fmt: skip
    view = View(input, channel_axis)
    x, _, scale = _response(window, view, size, alpha, k)
    return view.join(activate(view, x * scale**-beta, (negative_slope, clip)), out)


@np.errstate(all="ignore")
def local_response_norm_backward(
    grad_output, input, size, alpha=1e-4, beta=0.75, k=1.0, *, out=None, channel_axis=1,
    negative_slope=None, clip=None, window=_response_window,
):  # fmt: skip
    view = View(input, channel_axis)
    x, window, scale = _response(window, view, size, alpha, k)
    y = x * scale**-beta
    grad, grad_slope = activate_backward(view, view.split(grad_output), y, (negative_slope, clip))
    shared = _window_sums(window.T, grad * y / scale)  # what each channel did to the others
    grad_input = view.join(grad * scale**-beta - 2 * alpha * beta / size * x * shared, out)
    return (grad_input, *grad_slope) if grad_slope else grad_input


def cross_map_lrn(input, size, alpha=1e-4, beta=0.75, k=1, **options):
    return local_response_norm(input, size, alpha, beta, k, window=_cross_map_window, **options)


def cross_map_lrn_backward(grad_output, input, size, alpha=1e-4, beta=0.75, k=1, **options):
    return local_response_norm_backward(
        grad_output, input, size, alpha, beta, k, window=_cross_map_window, **options
    )
