"""Every operation of `cnorm.functional` in plain NumPy and float64: the oracle of the tests.

Same names, arguments and results as the compiled functions, written for the reader: nothing is
fused or blocked, nothing is checked beyond what the mathematics needs. Inputs are widened to
float64 (a longdouble input computes in longdouble); results are rounded once, to the dtype of
the input. Each norm is a view of the input, the axes of a unit, and the axes of its parameters:

=========  =======================  ==============  ===============
norm       view                     unit            parameters
=========  =======================  ==============  ===============
batch      ``(N, C, S)``            axes ``0, 2``   axis ``1``
instance   ``(N, C, S)``            axis ``2``      axis ``1``
group      ``(N, G, C // G, S)``    axes ``2, 3``   axes ``1, 2``
layer      ``(M, L)``               axis ``1``      axis ``1``
rms        ``(M, L)``               axis ``1``      axis ``1``
response   ``(N, C, S)``            a window        none
normalize  the input                any axes        none
switch     ``(N, C, S)``            several         axis ``1``
=========  =======================  ==============  ===============

N is samples, C channels, S everything spatial, G groups, M rows, L elements of a row. Parameters
may differ from sample to sample: then they have axis ``0`` too.
"""

import math
from typing import NamedTuple

import numpy as np

# --- views ------------------------------------------------------------------------------------


def _wide(array):
    array = np.asarray(array)
    return array.astype(np.promote_types(array.dtype, np.float64))


class _View:
    """An input seen as one of the shapes above, and the way back.

    `shape` turns ``N, C, S`` into the shape of the view. Rows give their shape as it is; their
    `channel_axis` only says along which axis a PReLU slope runs. With a mask (`select`) what does
    not count is read as 0, and written as 0, or not at all where `keeps` is set.
    """

    mask = None
    keeps = False

    def __init__(self, input, channel_axis, shape=lambda n, c, s: (n, c, s)):
        self.input = np.asarray(input)
        self.channel_axis = channel_axis
        self.is_rows = not callable(shape)
        if self.is_rows:
            self.shape = shape
        else:
            n, c, *spatial = np.moveaxis(self.input, channel_axis, 1).shape
            self.shape = shape(n, c, math.prod(spatial))

    def split(self, array):
        """An array of the input's shape, widened, in the shape of the view."""
        array = _wide(array)
        if not self.is_rows:
            array = np.moveaxis(array, self.channel_axis, 1)
        array = array.reshape(self.shape)
        return array if self.mask is None else np.where(self.mask, array, 0)

    def join(self, array, out=None):
        """The way back: the input's shape, dtype and memory order, or into `out`."""
        if out is None:
            out = np.empty_like(self.input, dtype=self.input.dtype.newbyteorder("="))
        self.write(array, out if self.is_rows else np.moveaxis(out, self.channel_axis, 1))
        return out

    def write(self, array, into):
        """Write an array of the view's shape."""
        where = True
        if self.mask is not None:
            array = np.where(self.mask, array, 0)
            where = self.mask.reshape(into.shape) if self.keeps else True
        np.copyto(into, array.reshape(into.shape), where=where, casting="unsafe")

    def select(self, where, out=None):
        """Take a mask, and with it an `out`, which keeps what does not count."""
        if where is not None:
            whole = np.broadcast_to(where, np.shape(self.input))
            self.mask = self.split(whole).astype(bool)
            self.keeps = out is not None
        return self

    def spread(self, values, axes):
        """One value for each element of `axes`, to broadcast against the view."""
        return _wide(values).reshape([n if i in axes else 1 for i, n in enumerate(self.shape)])

    def fill(self, array, axes):
        """The opposite of `spread`: an array with only the axes that are named."""
        shape = [n if i in axes else 1 for i, n in enumerate(self.shape)]
        return np.broadcast_to(array, shape).reshape([self.shape[i] for i in axes])

    def parameter_axes(self, values, axes):
        """The axes that a parameter has: `axes`, and that of the samples where it is (N, C)."""
        of_samples = np.ndim(values) == 2 and len(values) == self.shape[0] > 1
        return (0, *axes) if of_samples else axes

    def spread_parameter(self, values, axes):
        return self.spread(values, self.parameter_axes(values, axes))

    def gather(self, array, axes, like, shape):
        """The sum over all but `axes`: the gradient of a parameter such as `like`."""
        axes = self.parameter_axes(like, axes)
        total = array.sum(tuple(i for i in range(array.ndim) if i not in axes))
        if like is None:
            return total.reshape(shape).astype(np.promote_types(self.input.dtype, np.float32))
        return total.reshape(np.shape(like)).astype(np.asarray(like).dtype)

    def spread_slope(self, slope):
        """One slope, or one for each channel, to broadcast against the view."""
        if np.size(slope) == 1:
            return _wide(slope).reshape(())
        channels_last = np.moveaxis(self.input, self.channel_axis, -1).shape
        slope = np.broadcast_to(np.ravel(slope), channels_last)
        return self.split(np.moveaxis(slope, -1, self.channel_axis))

    def gather_slope(self, array, slope):
        """The gradient of `slope` from its gradient at each element."""
        slope = np.asarray(slope)
        array = self.join(array, np.zeros(self.input.shape, array.dtype))
        if slope.size != 1:
            array = np.moveaxis(array, self.channel_axis, -1)
            total = array.sum(tuple(range(array.ndim - 1)))
        else:
            total = array.sum()
        return total.reshape(slope.shape).astype(slope.dtype)


class _Rows(_View):
    """An input seen as ``(M, L)``: the axes of the rows, then those of `normalized_shape`.

    `offset` is added to the weight, the only parameter then.
    """

    def __init__(self, input, normalized_shape, axis, channel_axis, offset=0):
        shape, ndim = np.shape(input), np.ndim(input)
        self.row = (normalized_shape,) if np.ndim(normalized_shape) == 0 else normalized_shape
        self.row = tuple(self.row)
        if axis is None:
            axis = range(ndim - len(self.row), ndim)
        inner = [i % ndim for i in np.atleast_1d(list(axis) if np.ndim(axis) else axis)]
        outer = [i for i in range(ndim) if i not in inner]
        self.order = outer + inner
        self.outer = tuple(shape[i] for i in outer)
        self.stats = tuple(1 if i in inner else n for i, n in enumerate(shape))
        self.offset = offset
        super().__init__(input, channel_axis, (math.prod(self.outer), math.prod(self.row)))

    def split(self, array):
        return super().split(np.transpose(array, self.order))

    def join(self, array, out=None):
        if out is None:
            out = np.empty_like(self.input, dtype=self.input.dtype.newbyteorder("="))
        self.write(array, out.transpose(self.order))
        return out

    def is_row(self, values):
        return np.ndim(values) == len(self.row)

    def spread_parameter(self, values, axes):
        values = _wide(values) + self.offset
        if self.is_row(values):
            return self.spread(values, axes)
        values = np.broadcast_to(values.transpose(self.order), self.outer + self.row)
        return values.reshape(self.shape)

    def gather(self, array, axes, like, shape):
        if like is None or self.is_row(like):
            return super().gather(array, axes, like, shape)
        array = array.reshape(self.outer + self.row).transpose(np.argsort(self.order))
        alike = tuple(i for i, n in enumerate(np.shape(like)) if n == 1)
        return array.sum(alike, keepdims=True).astype(np.asarray(like).dtype)

    def parameter_axes(self, values, axes):
        return axes


# --- moments, apply, epilogue, gradient -------------------------------------------------------


def _count(x, axes):
    return math.prod(x.shape[i] for i in axes)


def _mean(x, axes, mask=None):
    if mask is None:
        return x.sum(axes, keepdims=True) / max(_count(x, axes), 1)
    count = mask.sum(axes, keepdims=True)
    return np.where(mask, x, 0).sum(axes, keepdims=True) / np.maximum(count, 1)


def _moments(x, axes, mask=None):
    """The input minus its mean, the mean, and the biased variance, infinity of nothing."""
    mean = _mean(x, axes, mask)
    centred = x - mean
    rest = _mean(centred, axes, mask)  # what rounding took from the mean
    centred = centred - rest
    return centred, mean + rest, _spread(_mean(centred**2, axes, mask), axes, mask)


def _spread(var, axes, mask):
    return var if mask is None else np.where(mask.any(axes, keepdims=True), var, np.inf)


def _unbiased(var, count):
    return var * np.float64(count) / (count - 1)


def _update(running, factor, batch):
    """``running = (1 - factor) * running + factor * batch``, in place."""
    running[...] = (1 - factor) * _wide(running) + factor * batch.reshape(running.shape)


def _update_selected(running_mean, running_var, factor, mean, var, mask, units):
    """Running statistics of what a mask selects; units of fewer than two elements do not count."""
    count = mask.sum(units, keepdims=True)
    counted = count > 1
    var = np.where(counted, var * count / np.maximum(count - 1, 1), 0)
    for running, batch in ((running_mean, np.where(counted, mean, 0)), (running_var, var)):
        before = running.copy()
        _update(running, factor, batch.sum(0) / np.maximum(counted.sum(0), 1))
        kept = ~counted.any(0).reshape(running.shape)
        running[kept] = before[kept]


def _affine(view, x, axes, weight, bias):
    if weight is not None:
        x = x * view.spread_parameter(weight, axes)
    if bias is not None:
        x = x + view.spread_parameter(bias, axes)
    return x


def _bounds(clip):
    """The bounds of `clip`; an open side is NaN, which every comparison is False with."""
    return (np.nan if bound is None else bound for bound in clip)


def _activate(view, z, epilogue):
    """`epilogue` is a pair: a slope and a clip, of which one at least is None."""
    slope, clip = epilogue
    if slope is not None:
        return np.where(z > 0, z, z * view.spread_slope(slope))
    if clip is None:
        return z
    low, high = _bounds(clip)
    z = np.where(z < low, low, z)
    return np.where(z > high, high, z)


def _activate_backward(view, grad, z, epilogue):
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


def _normalize(view, centred, var, eps, axes, weight, bias, epilogue, out):
    """The result, and rstd."""
    rstd = 1 / np.sqrt(var + eps)
    z = _affine(view, centred * rstd, axes, weight, bias)
    return view.join(_activate(view, z, epilogue), out), rstd


def _affine_backward(view, grad_output, mean, rstd, axes, weight, bias, epilogue, shape=None):
    """xhat, its gradient, and those of the parameters, of what `_normalize` computes."""
    if shape is None:
        shape = tuple(view.shape[i] for i in axes)
    xhat = (view.split(view.input) - mean) * rstd
    z = _affine(view, xhat, axes, weight, bias)
    grad, grad_slope = _activate_backward(view, view.split(grad_output), z, epilogue)
    grad_weight = view.gather(grad * xhat, axes, weight, shape)
    grad_bias = view.gather(grad, axes, weight if bias is None else bias, shape)
    return xhat, _affine(view, grad, axes, weight, None), (grad_weight, grad_bias, *grad_slope)


def _normalize_backward(view, xhat, g, rstd, units, out, centre=True):
    """The gradient of the input whose mean and rstd were taken over the axes `units`."""
    mask = view.mask
    g = g - xhat * _mean(g * xhat, units, mask) - (_mean(g, units, mask) if centre else 0)
    return view.join(rstd * g, out)


# --- batch, instance, group -------------------------------------------------------------------


@np.errstate(all="ignore")
def _tracked(
    units, input, running_mean, running_var, weight, bias, from_input, momentum, eps, *,
    out=None, channel_axis=1, return_stats=False, negative_slope=None, clip=None, where=None,
):  # fmt: skip
    """Batch and instance norm: they differ in their units. Running statistics take the mean."""
    view = _View(input, channel_axis).select(where, out)
    x = view.split(input)
    if from_input:
        centred, mean, var = _moments(x, units, view.mask)
        if running_mean is not None and view.mask is not None:
            _update_selected(running_mean, running_var, momentum, mean, var, view.mask, units)
        elif running_mean is not None and x.size:
            _update(running_mean, momentum, _mean(mean, (0,)))
            _update(running_var, momentum, _mean(_unbiased(var, _count(x, units)), (0,)))
    else:
        mean, var = view.spread(running_mean, (1,)), view.spread(running_var, (1,))
        centred = x - mean
    y, rstd = _normalize(view, centred, var, eps, (1,), weight, bias, (negative_slope, clip), out)
    each = (1,) if 0 in units else (0, 1)
    return (y, view.fill(mean, each), view.fill(rstd, each)) if return_stats else y


@np.errstate(all="ignore")
def _tracked_backward(
    units, grad_output, input, mean, rstd, weight, from_input, *, out=None, channel_axis=1,
    negative_slope=None, clip=None, bias=None, where=None,
):  # fmt: skip
    view = _View(input, channel_axis).select(where)
    mean, rstd = (view.spread(a, (1,) if 0 in units else (0, 1)) for a in (mean, rstd))
    xhat, g, grads = _affine_backward(
        view, grad_output, mean, rstd, (1,), weight, bias, (negative_slope, clip)
    )
    if from_input:
        return _normalize_backward(view, xhat, g, rstd, units, out), *grads
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
    return _View(input, channel_axis, lambda n, c, s: (n, num_groups, c // num_groups, s))


@np.errstate(all="ignore")
def group_norm(
    input, num_groups, weight=None, bias=None, eps=1e-5, *, out=None, channel_axis=1,
    return_stats=False, negative_slope=None, clip=None, where=None,
):  # fmt: skip
    view = _groups(input, num_groups, channel_axis).select(where, out)
    centred, mean, var = _moments(view.split(input), (2, 3), view.mask)
    y, rstd = _normalize(view, centred, var, eps, (1, 2), weight, bias, (negative_slope, clip), out)
    return (y, view.fill(mean, (0, 1)), view.fill(rstd, (0, 1))) if return_stats else y


@np.errstate(all="ignore")
def group_norm_backward(
    grad_output, input, num_groups, mean, rstd, weight=None, *, out=None, channel_axis=1,
    negative_slope=None, clip=None, bias=None, where=None,
):  # fmt: skip
    view = _groups(input, num_groups, channel_axis).select(where)
    mean, rstd = view.spread(mean, (0, 1)), view.spread(rstd, (0, 1))
    channels = view.shape[1] * view.shape[2]
    xhat, g, grads = _affine_backward(
        view, grad_output, mean, rstd, (1, 2), weight, bias, (negative_slope, clip), channels
    )
    return _normalize_backward(view, xhat, g, rstd, (2, 3), out), *grads


# --- layer, rms, and the same after a residual add --------------------------------------------


@np.errstate(all="ignore")
def layer_norm(
    input, normalized_shape, weight=None, bias=None, eps=1e-5, *, out=None, channel_axis=1,
    return_stats=False, negative_slope=None, clip=None, axis=None, where=None,
):  # fmt: skip
    view = _Rows(input, normalized_shape, axis, channel_axis).select(where, out)
    centred, mean, var = _moments(view.split(input), (1,), view.mask)
    y, rstd = _normalize(view, centred, var, eps, (1,), weight, bias, (negative_slope, clip), out)
    return (y, mean.reshape(view.stats), rstd.reshape(view.stats)) if return_stats else y


@np.errstate(all="ignore")
def layer_norm_backward(
    grad_output, input, normalized_shape, mean, rstd, weight=None, *, out=None, channel_axis=1,
    negative_slope=None, clip=None, bias=None, axis=None, where=None,
):  # fmt: skip
    view = _Rows(input, normalized_shape, axis, channel_axis).select(where)
    mean, rstd = view.spread(mean, (0,)), view.spread(rstd, (0,))
    xhat, g, grads = _affine_backward(
        view, grad_output, mean, rstd, (1,), weight, bias, (negative_slope, clip), view.row
    )
    return _normalize_backward(view, xhat, g, rstd, (1,), out), *grads


@np.errstate(all="ignore")
def rms_norm(
    input, normalized_shape, weight=None, eps=None, *, out=None, channel_axis=1,
    return_stats=False, negative_slope=None, clip=None, axis=None, zero_centered_gamma=False,
    where=None,
):  # fmt: skip
    view = _Rows(input, normalized_shape, axis, channel_axis, bool(zero_centered_gamma))
    view.select(where, out)
    if eps is None:
        eps = np.finfo(np.promote_types(view.input.dtype, np.float32)).eps
    x = view.split(input)
    square = _mean(x**2, (1,), view.mask)
    square = np.where(np.isfinite(square), square, np.nan)  # infinity spoils its unit, as above
    square = _spread(square, (1,), view.mask)
    y, rstd = _normalize(view, x, square, eps, (1,), weight, None, (negative_slope, clip), out)
    return (y, rstd.reshape(view.stats)) if return_stats else y


@np.errstate(all="ignore")
def rms_norm_backward(
    grad_output, input, normalized_shape, rstd, weight=None, *, out=None, channel_axis=1,
    negative_slope=None, clip=None, axis=None, zero_centered_gamma=False, where=None,
):  # fmt: skip
    view = _Rows(input, normalized_shape, axis, channel_axis, bool(zero_centered_gamma))
    view.select(where)
    rstd = view.spread(rstd, (0,))
    xhat, g, (grad_weight, _, *grad_slope) = _affine_backward(
        view, grad_output, 0, rstd, (1,), weight, None, (negative_slope, clip), view.row
    )
    grad_input = _normalize_backward(view, xhat, g, rstd, (1,), out, centre=False)
    return grad_input, grad_weight, *grad_slope


def _add(a, b, out=None, where=None):
    """The sum, rounded to the dtype of `a`."""
    return _View(a, 0, np.shape(a)).select(where, out).join(_wide(a) + _wide(b), out)


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
    grad_input, *_ = norm_backward(grad_output, _wide(sum), *arguments, **options)
    if grad_sum is not None:
        grad_input = grad_input + _wide(grad_sum)
    view = _View(sum, 0, np.shape(sum)).select(options.get("where"))
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


# --- response norms ---------------------------------------------------------------------------


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
    view = _View(input, channel_axis)
    x, _, scale = _response(window, view, size, alpha, k)
    return view.join(_activate(view, x * scale**-beta, (negative_slope, clip)), out)


@np.errstate(all="ignore")
def local_response_norm_backward(
    grad_output, input, size, alpha=1e-4, beta=0.75, k=1.0, *, out=None, channel_axis=1,
    negative_slope=None, clip=None, window=_response_window,
):  # fmt: skip
    view = _View(input, channel_axis)
    x, window, scale = _response(window, view, size, alpha, k)
    y = x * scale**-beta
    grad, grad_slope = _activate_backward(view, view.split(grad_output), y, (negative_slope, clip))
    shared = _window_sums(window.T, grad * y / scale)  # what each channel did to the others
    grad_input = view.join(grad * scale**-beta - 2 * alpha * beta / size * x * shared, out)
    return (grad_input, *grad_slope) if grad_slope else grad_input


def cross_map_lrn(input, size, alpha=1e-4, beta=0.75, k=1, **options):
    return local_response_norm(input, size, alpha, beta, k, window=_cross_map_window, **options)


def cross_map_lrn_backward(grad_output, input, size, alpha=1e-4, beta=0.75, k=1, **options):
    return local_response_norm_backward(
        grad_output, input, size, alpha, beta, k, window=_cross_map_window, **options
    )


# --- switch norm ------------------------------------------------------------------------------


def _softmax(logits):
    powers = np.exp(_wide(logits) - np.max(_wide(logits)))
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
        moments = [_moments(x, axes)[1:] for axes in units]
        return [(m, _unbiased(v, _count(x, a))) for (m, v), a in zip(moments, units, strict=True)]
    _, mean, var = _moments(x, (2,))
    var = _unbiased(var, x.shape[2])
    moments = [(mean, var)]
    for axes in units[1:]:
        _, merged, between = _moments(mean, axes)
        moments.append((merged, _mean(var, axes) + between))
    return moments


@np.errstate(all="ignore")
def switch_norm(
    input, running_mean, running_var, weight, bias, mean_weight, var_weight, training=False,
    momentum=0.9, eps=1e-5, using_moving_average=True, *, out=None, channel_axis=1,
    return_stats=False, negative_slope=None, clip=None,
):  # fmt: skip
    view = _View(input, channel_axis)
    x = view.split(input)
    units = _switch_units(view, mean_weight, training)
    moments = _switch_moments(x, units)
    if len(moments) < np.size(mean_weight):
        moments.append((view.spread(running_mean, (1,)), view.spread(running_var, (1,))))
    elif units[-1] == (0,) and running_mean is not None and x.size:
        mean, var = moments[-1]
        if using_moving_average:
            _update(running_mean, 1 - momentum, mean)
            _update(running_var, 1 - momentum, var)
        else:
            running_mean += mean.reshape(running_mean.shape)
            running_var += (mean**2 + var).reshape(running_var.shape)
    mean = sum(p * m for p, (m, _) in zip(_softmax(mean_weight), moments, strict=True))
    var = sum(p * v for p, (_, v) in zip(_softmax(var_weight), moments, strict=True))
    y, rstd = _normalize(view, x - mean, var, eps, (1,), weight, bias, (negative_slope, clip), out)
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
    count = _count(x, axes)
    return grad_mean / count + grad_var * 2 * (x - mean) / (count - correction)


@np.errstate(all="ignore")
def switch_norm_backward(
    grad_output, input, stats, weight, mean_weight, var_weight, bias=None, *, out=None,
    channel_axis=1, negative_slope=None, clip=None,
):  # fmt: skip
    view = _View(input, channel_axis)
    x = view.split(input)
    moments, mean, rstd, training = stats
    units = _switch_units(view, mean_weight, training)
    xhat, g, grads = _affine_backward(
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
            grad_var = grad_var + statistic[-1] / _count(mean_in, statistic[0])
        total = _moment_backward(x, (2,), mean_in, grad_mean, grad_var, correction=1)
    grad_input = view.join(rstd * g + total, out)
    grad_weight, grad_bias, *grad_slope = grads
    return grad_input, grad_weight, grad_bias, grad_mean_weight, grad_var_weight, *grad_slope


# --- division by a norm -----------------------------------------------------------------------


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
    x, input = _wide(input), np.asarray(input)
    norm = _norm(x, p, _dims(dim))
    if out is None:
        out = np.empty_like(input, dtype=input.dtype.newbyteorder("="))
    out[...] = x / np.maximum(norm, eps)
    return (out, norm) if return_stats else out


@np.errstate(all="ignore")
def normalize_backward(grad_output, input, norm, p=2.0, dim=1, eps=1e-12, *, out=None):
    x, g, input, axes = _wide(input), _wide(grad_output), np.asarray(input), _dims(dim)
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


# --- statistics over any axes ----------------------------------------------------------------


class Moments(NamedTuple):
    """What `cnorm.Moments` has, in the shape of the kept axes."""

    count: np.ndarray
    mean: np.ndarray
    m2: np.ndarray

    def var(self, ddof=0):
        freedom = self.count - ddof
        return np.where(freedom > 0, self.m2 / np.where(freedom > 0, freedom, 1), np.nan)


def _selected(x, where, nan_policy):
    """Where an element counts."""
    where = np.broadcast_to(True if where is None else where, x.shape)
    if nan_policy == "raise" and np.isnan(x[where]).any():
        raise ValueError("the input contains NaN")
    return where & ~np.isnan(x) if nan_policy == "omit" else where


def moments(input, axis=None, *, where=None, nan_policy="propagate"):
    x = _wide(input)
    counts = _selected(x, where, nan_policy)
    axes = tuple(range(x.ndim)) if axis is None else axis
    n = counts.sum(axes, keepdims=True).astype(x.dtype)
    some = np.maximum(n, 1)
    with np.errstate(invalid="ignore"):
        mean = np.where(counts, x, 0).sum(axes, keepdims=True) / some
        mean = mean + np.where(counts, x - mean, 0).sum(axes, keepdims=True) / some
        m2 = (np.where(counts, x - mean, 0) ** 2).sum(axes, keepdims=True)
        mean = np.where(n > 0, mean + (m2 - m2), np.nan)  # infinity makes its unit NaN
    return Moments(*(np.squeeze(a, axes) for a in (n, mean, m2 + (m2 - m2))))


def standardize(
    input, axis, mean=None, var=None, eps=0.0, *, ddof=0, where=None, nan_policy="propagate",
    clip=None, dtype=None, out=None, return_stats=False,
):  # fmt: skip
    x = _wide(input)
    axes = tuple(range(x.ndim)) if axis is None else axis
    if mean is None:
        m = moments(input, axis, where=where, nan_policy=nan_policy)
        mean, var = m.mean, m.var(ddof)
    reduced = {a % x.ndim for a in np.atleast_1d(axes)}
    sizes = [1 if i in reduced else n for i, n in enumerate(x.shape)]
    kept = [n for i, n in enumerate(x.shape) if i not in reduced]
    mean, var = (
        np.broadcast_to(a, sizes if a.ndim == x.ndim else kept).reshape(sizes)
        for a in (_wide(mean), _wide(var))
    )
    std = np.sqrt(var + eps)
    rstd = 1 / np.where(std == 0, 1, std)
    y = (x - mean) * rstd
    if clip is not None:
        y = np.clip(y, *clip)
    if dtype is None:
        dtype = np.asarray(input).dtype if out is None else out.dtype
        dtype = np.float32 if dtype.kind in "iub" else dtype
    if out is None:
        out = np.zeros(x.shape, dtype)
    np.copyto(out, y, casting="unsafe", where=True if where is None else where)
    return (out, mean, rstd) if return_stats else out


def normalize_image(
    input, mean, std, max_value=None, *, channel_axis=-1, out_channel_axis=None, dtype="float32",
    out=None,
):  # fmt: skip
    x = _wide(input)
    sizes = [1] * x.ndim
    if np.size(mean) > 1 or np.size(std) > 1:
        sizes[channel_axis] = x.shape[channel_axis]
    mean, std = (np.broadcast_to(np.ravel(_wide(a)), max(sizes, default=1)) for a in (mean, std))
    y = (x / (255 if max_value is None else max_value) - mean.reshape(sizes)) / std.reshape(sizes)
    if out_channel_axis is not None:
        y = np.moveaxis(y, channel_axis, out_channel_axis)
    if out is None:
        out = np.empty(y.shape, dtype)
    out[...] = y
    return out
