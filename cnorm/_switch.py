"""SwitchNorm: the statistics of instance, layer and batch norm, mixed.

Everything comes from the moments of each (sample, channel): the layer's and the batch's are merged
from them, and the mixed mean and variance are again one of each per (sample, channel), so that
`cnorm.steps` takes the moments, applies the result, and goes backward. Only arrays of size
(N, C) are touched here.
"""

import math

import numpy as np

from . import steps
from ._call import arrays, checks, output
from ._call.running import assign, update

ROWS = 1 << 16  # elements of a 2-D input at a time


class _Argument:
    """A parameter's shape and dtype, and its values: a copy, which no write to `out` can change."""

    def __init__(self, value, name):
        self.name = name
        self.values = None
        array = arrays.to_array(value, name)
        if array is not None:
            if np.iscomplexobj(array):
                raise TypeError(f"{name} must be a float array, but got dtype {array.dtype}")
            self.shape, self.dtype = array.shape, array.dtype.newbyteorder("=")
            self.values = np.array(array, np.float64).reshape(-1)

    def check_size(self, *sizes, error=RuntimeError):
        """Raise `error` unless there are as many values as one of `sizes`, or none is given."""
        if self.values is not None and self.values.size not in sizes:
            allowed = " or ".join(map(str, sizes))
            raise error(f"{self.name} should contain {allowed} elements not {self.values.size}")

    def gradient(self, grad, default=np.float64):
        """A gradient in the parameter's shape and dtype; where there is none, in `default`."""
        if self.values is None:
            return grad.astype(default)
        return grad.reshape(self.shape).astype(self.dtype)


class _Slope:
    """`negative_slope` as it was passed: `values` is None, a number, or a copy of an array."""

    def __init__(self, negative_slope):
        self.values = None
        self.has_gradient = False
        if isinstance(negative_slope, (float, int)) and not isinstance(negative_slope, bool):
            self.values = arrays.to_float(negative_slope, "negative_slope")
        elif negative_slope is not None:
            array = arrays.to_array(negative_slope, "negative_slope")
            self.shape, self.dtype = array.shape, array.dtype.newbyteorder("=")
            self.values = arrays.as_doubles(array, "negative_slope").flatten()
            self.has_gradient = isinstance(negative_slope, np.ndarray) or len(self.shape) > 0

    def check_size(self, channels):
        if isinstance(self.values, np.ndarray):
            if self.values.size not in (1, channels):
                raise ValueError(
                    f"negative_slope must hold 1 or {channels} values, but got {self.values.size}"
                )
            if self.values.size == 1:
                self.values = float(self.values[0])

    def gradient(self, grad):
        """The gradient per channel in the shape and dtype of the slope."""
        grad = grad.sum() if isinstance(self.values, float) else grad
        return grad.reshape(self.shape).astype(self.dtype)


def _softmax(logits):
    logits = logits.tolist()
    powers = [math.exp(a - max(logits)) for a in logits]
    return [p / sum(powers) for p in powers]


def _merged(mean, lo, var, axis):
    """Mean and variance over samples or channels, merged from those of equal counts."""
    first = np.take(mean, [0], axis) if mean.size else np.zeros_like(mean[:1, :1])
    offset = (mean - first) + lo  # exact where the means are close
    step = _mean(offset, axis)
    between = _mean((offset - step) ** 2, axis)
    return first + step, _mean(var, axis) + between


def _mean(values, axis):
    """`values.mean`, and 0 of no values."""
    return values.sum(axis, keepdims=True) / max(values.shape[axis], 1)


def _unbiased(m2, count):
    return m2 / (count - 1)


class _Statistics:
    """What forward took from the input, and backward needs."""

    __slots__ = (
        "count", "instance_lo", "lo", "mean", "means", "rstd", "shape", "training", "variances",
    )  # fmt: skip


def _image_statistics(x, channel_axis, running, p_mean, p_var, training, eps):
    """Per (sample, channel): the mixed mean and 1 / sqrt(mixed variance + eps)."""
    axis = channel_axis % x.ndim
    shape = (x.shape[0], x.shape[axis])
    s = _Statistics()
    s.shape, s.training = x.shape, training
    s.count, mean, lo, m2 = steps.moments(x, channel_axis=channel_axis, groups=shape[1])
    mean, lo = mean.reshape(shape), lo.reshape(shape)
    var = _unbiased(m2.reshape(shape), s.count)
    s.means, s.variances, s.instance_lo = [mean], [var], lo
    for axis in (1, 0)[: len(p_mean) - 1]:
        if axis == 0 and not training:
            mean_bn, var_bn = (np.array(a, np.float64).reshape(1, -1) for a in running)
        else:
            mean_bn, var_bn = _merged(mean, lo, var, axis)
        s.means.append(mean_bn)
        s.variances.append(var_bn)
    # mix about the instance's mean, so that a large mean cancels nowhere
    step = sum(p * ((m - mean) - lo) for p, m in zip(p_mean[1:], s.means[1:], strict=True)) + lo
    s.mean = mean + step
    s.lo = (mean - s.mean) + step
    s.rstd = 1 / np.sqrt(sum(p * v for p, v in zip(p_var, s.variances, strict=True)) + eps)
    return s


def _table_statistics(x, running, p_mean, p_var, training, eps):
    """Of 2-D input: the means and variances of rows and columns, mixed a block of rows at once."""
    n, c = x.shape
    s = _Statistics()
    s.shape, s.training, s.count, s.lo = x.shape, training, None, None
    _, mean, lo, m2 = steps.moments(x[:, None, :], groups=1)  # rows: one group of one channel
    s.means, s.variances = [(mean + lo)[:, None]], [_unbiased(m2, c)[:, None]]
    if training:
        _, mean, lo, m2 = steps.moments(x)
        s.means.append((mean + lo)[None])
        s.variances.append(_unbiased(m2, n)[None])
    else:
        s.means.append(np.array(running[0], np.float64).reshape(1, c))
        s.variances.append(np.array(running[1], np.float64).reshape(1, c))
    s.mean, s.rstd = (p_mean, p_var), eps
    return s


def _table_block(s, rows):
    (row_mean, column_mean), (row_var, column_var) = s.means, s.variances
    (p_mean, p_var), eps = s.mean, s.rstd
    mean = p_mean[0] * row_mean[rows] + p_mean[1] * column_mean
    return mean, 1 / np.sqrt(p_var[0] * row_var[rows] + p_var[1] * column_var + eps)


def _row_blocks(x):
    step = max(1, ROWS // max(1, x.shape[1]))
    return [slice(i, i + step) for i in range(0, x.shape[0] if x.size else 0, step)]


def _check(x, channel_axis, running, weight, bias, mean_weight, var_weight, slope, training):
    sizes = list(x.shape)
    if x.ndim < 2:
        raise ValueError(
            f"switch_norm expects at least 2 dimensions, but got input of size {sizes}"
        )
    channels = _channels(x, channel_axis)
    weights = (2,) if x.ndim == 2 else (2, 3)
    for values in (mean_weight, var_weight):
        _check_mixing(values, weights)
    mixed = mean_weight.values.size
    if mixed != var_weight.values.size:
        raise RuntimeError("mean_weight and var_weight must have as many elements as each other")
    with_batch = x.ndim == 2 or mixed == 3
    for values, name in zip(running, ("running_mean", "running_var"), strict=True):
        checks.check_running(values, name, channels)
        if values is None and with_batch and not training:
            raise RuntimeError("running_mean must be defined in evaluation mode")
    if (running[0] is None) != (running[1] is None):
        raise ValueError("running_mean and running_var must either both be None or neither be None")
    if x.ndim > 2 and x.size and x.size == x.shape[0] * channels:
        raise ValueError(
            f"Expected more than 1 spatial element when training, got input size {sizes}"
        )
    if x.ndim == 2 and (x.shape[1] == 1 or (training and x.shape[0] == 1)):
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {sizes}"
        )
    _check_channels(weight, bias, slope, channels)
    return channels


def _channels(x, channel_axis):
    if not -x.ndim <= channel_axis < x.ndim or channel_axis % x.ndim == 0:
        raise ValueError(f"channel_axis {channel_axis} must be an axis of the input other than 0")
    return x.shape[channel_axis]


def _check_mixing(values, sizes):
    if values.values is None:
        raise TypeError(f"{values.name} must be an array, but got None")
    values.check_size(*sizes)


def _check_channels(weight, bias, slope, channels):
    weight.check_size(channels)
    bias.check_size(channels)
    slope.check_size(channels)


def switch_norm(
    input, running_mean, running_var, weight, bias, mean_weight, var_weight, training=False,
    momentum=0.9, eps=1e-5, using_moving_average=True, *, out=None, channel_axis=1,
    return_stats=False, negative_slope=None, clip=None,
):  # fmt: skip
    """Normalise with a learned mix of instance, layer and batch statistics [1]_.

    ``y = (x - sum(p * mean)) / sqrt(sum(q * var) + eps) * weight + bias``, p and q the softmax of
    `mean_weight` and `var_weight` in the order instance, layer, batch; of 2-D input: layer, batch.
    The
    variance of an instance (of 2-D input, of a row or column) is the unbiased one.

    Parameters
    ----------
    input : array_like, shape (N, C) or (N, C, ...)
    running_mean, running_var : ndarray of C elements, or None
        The batch's, in evaluation. Updated in place in training:
        ``running = momentum * running + (1 - momentum) * batch``; without `using_moving_average`,
        the sums of mean and of ``mean**2 + var``.
    weight, bias : array_like of C elements, or None
    mean_weight, var_weight : array_like of 3 elements; 2 without the batch's statistics
    training : bool
    momentum, eps : float
    using_moving_average : bool
    out, channel_axis, negative_slope, clip
        As the other functions.
    return_stats : bool
        Also return what `switch_norm_backward` needs.

    Returns
    -------
    ndarray or tuple
        The result, or ``(y, stats)``.

    Raises
    ------
    ValueError
        One spatial element, or (2-D) one value per row or column.
    RuntimeError
        A parameter of the wrong length.
    TypeError
        An array that is not of a float dtype.

    References
    ----------
    .. [1] P. Luo, J. Ren, Z. Peng, R. Zhang, J. Li, "Differentiable Learning-to-Normalize via
       Switchable Normalization", ICLR 2019, arXiv:1806.10779.

    Examples
    --------
    >>> import numpy as np, cnorm.functional as F
    >>> x = np.arange(8.0).reshape(1, 2, 4)
    >>> F.switch_norm(x, None, None, None, None, np.ones(3), np.ones(3), True).shape
    (1, 2, 4)
    """
    x = arrays.to_array(input, "input")
    running = (
        arrays.as_running(running_mean, "running_mean"),
        arrays.as_running(running_var, "running_var"),
    )
    w, b = _Argument(weight, "weight"), _Argument(bias, "bias")
    mixes = _Argument(mean_weight, "mean_weight"), _Argument(var_weight, "var_weight")
    out = arrays.as_out(out, "out")
    slope, clip = _Slope(negative_slope), checks.as_clip(clip)
    checks.check_one_activation(negative_slope, clip)
    training, return_stats = bool(training), bool(return_stats)
    using_moving_average = bool(using_moving_average)
    tracks = training and running[0] is not None
    momentum = arrays.to_float(momentum, "momentum") if tracks else 0.0
    eps = arrays.to_float(eps, "eps")
    channel_axis = arrays.to_int(channel_axis, "channel_axis")

    x = arrays.as_floats(x, "input")
    channels = _check(x, channel_axis, running, w, b, *mixes, slope, training)
    y = output.result_array(out, x)  # raises before anything is computed, which takes long
    if training:
        checks.check_running_updates(*running, out)
    p_mean, p_var = (_softmax(m.values) for m in mixes)
    if x.ndim == 2:
        s = _table_statistics(x, running, p_mean, p_var, training, eps)
        _table_apply(x, s, w.values, b.values, y, slope.values, clip)
    else:
        s = _image_statistics(x, channel_axis, running, p_mean, p_var, training, eps)
        steps.apply(
            x, s.mean, s.lo, s.rstd, w.values, b.values, channel_axis=channel_axis,
            groups=channels, out=y, negative_slope=slope.values, clip=clip,
        )  # fmt: skip
    if tracks and x.size and (x.ndim == 2 or len(p_mean) == 3):
        _track(running, s, momentum, using_moving_average)
    return (y, s) if return_stats else y


def _track(running, s, momentum, using_moving_average):
    mean, var = s.means[-1], s.variances[-1]
    if using_moving_average:
        update(*running, 1 - momentum, mean, var)
    else:
        sums = zip(running, (mean, mean**2 + var), strict=True)
        assign(running, [total + batch.reshape(total.shape) for total, batch in sums])


def _table_apply(x, s, w, b, y, slope, clip):
    if np.may_share_memory(x, y):
        x = x.copy()
    for rows in _row_blocks(x):
        mean, rstd = _table_block(s, rows)
        z = _affine((x[rows] - mean) * rstd, w, b)
        if slope is not None:
            z = np.where(z > 0, z, z * slope)
        elif clip is not None:
            low, high = _bounds(clip)
            z = np.where(z < low, low, z)
            z = np.where(z > high, high, z)
        y[rows] = z


def _bounds(clip):
    """The bounds of `clip`; NaN, which no number passes, is an open side."""
    return (np.nan if bound is None else bound for bound in clip)


def _affine(z, w, b):
    z = z if w is None else z * w
    return z if b is None else z + b


def _mix_backward(logits, grad, mixed):
    """Gradients of the logits, and of each statistic that their softmax mixes."""
    p = _softmax(logits.values)
    grad_p = [float((grad * m).sum()) for m in mixed]
    centre = sum(a * g for a, g in zip(p, grad_p, strict=True))
    grad_logits = np.array([a * (g - centre) for a, g in zip(p, grad_p, strict=True)])
    grads = []
    for a, m in zip(p, mixed, strict=True):
        axes = tuple(i for i in range(grad.ndim) if m.shape[i] < grad.shape[i])
        grads.append(a * grad.sum(axes, keepdims=True))
    return logits.gradient(grad_logits), grads


def switch_norm_backward(
    grad_output, input, stats, weight, mean_weight, var_weight, bias=None, *, out=None,
    channel_axis=1, negative_slope=None, clip=None,
):  # fmt: skip
    """Gradients of `switch_norm`, the unbiased variances included.

    Parameters
    ----------
    grad_output, input : array_like, shape (N, C) or (N, C, ...)
    stats
        As forward returned it.
    weight, mean_weight, var_weight, bias
        Of the forward pass.
    out, channel_axis, negative_slope, clip
        As the other functions.

    Returns
    -------
    grad_input, grad_weight, grad_bias, grad_mean_weight, grad_var_weight : ndarray
        With an array for `negative_slope` its gradient follows.

    Examples
    --------
    >>> import numpy as np, cnorm.functional as F
    >>> x, one = np.arange(8.0).reshape(1, 2, 4), np.ones(3)
    >>> y, stats = F.switch_norm(x, None, None, None, None, one, one, True, return_stats=True)
    >>> dx, dw, db, dp, dq = F.switch_norm_backward(np.ones_like(x), x, stats, None, one, one)
    >>> db
    array([4., 4.])
    """
    if not isinstance(stats, _Statistics):
        raise TypeError(f"stats must be what switch_norm returned, but got {type(stats).__name__}")
    x, dy = arrays.to_array(input, "input"), arrays.to_array(grad_output, "grad_output")
    w, b = _Argument(weight, "weight"), _Argument(bias, "bias")
    mixes = _Argument(mean_weight, "mean_weight"), _Argument(var_weight, "var_weight")
    out = arrays.as_out(out, "out")
    slope, clip = _Slope(negative_slope), checks.as_clip(clip)
    checks.check_one_activation(negative_slope, clip)
    channel_axis = arrays.to_int(channel_axis, "channel_axis")

    x = arrays.as_floats(x, "input")
    dy = checks.as_gradient(dy, x)
    if x.shape != stats.shape:
        raise ValueError(f"stats are of an input of shape {stats.shape}, but got {x.shape}")
    channels = _channels(x, channel_axis)
    if x.ndim > 2 and stats.mean.shape[1] != channels:
        raise ValueError(
            f"stats are of {stats.mean.shape[1]} channels, but channel_axis {channel_axis} has "
            f"{channels}"
        )
    for values in mixes:
        _check_mixing(values, (len(stats.means),))
    _check_channels(w, b, slope, channels)
    y = output.result_array(out, x)
    backward = _table_backward if x.ndim == 2 else _image_backward
    grads, grad_mean_weight, grad_var_weight, grad_slope = backward(
        dy, x, stats, w.values, b.values, *mixes, y, channel_axis, slope.values, clip
    )
    default = np.float64 if x.dtype == np.float64 else np.float32
    result = [y, w.gradient(grads[0], default)]
    result.append((w if b.values is None else b).gradient(grads[1], default))
    result += [grad_mean_weight, grad_var_weight]
    if slope.has_gradient:
        result.append(slope.gradient(grad_slope))
    return tuple(result)


def _grad(dy, x, mean, lo, rstd, w, b, a, slope, out, how):
    sums = np.stack([-a / rstd, -slope / rstd**3], -1).reshape(-1, 2)
    return steps.grad_apply(dy, x, mean, lo, rstd, w, b, sums, 1.0, out=out, **how)


def _image_backward(dy, x, s, w, b, mean_weight, var_weight, y, channel_axis, negative_slope, clip):
    channels = x.shape[channel_axis]
    units = {"channel_axis": channel_axis, "groups": channels}
    how = units | {"negative_slope": negative_slope, "clip": clip}
    sums, grad_w, grad_b, grad_slope = steps.grad_sums(dy, x, s.mean, s.lo, s.rstd, w, b, **how)
    sum_g, sum_gd = (a.reshape(s.rstd.shape) for a in sums.T)
    grad_mean_weight, to_means = _mix_backward(mean_weight, -s.rstd * sum_g, s.means)
    grad_var_weight, to_vars = _mix_backward(var_weight, -0.5 * s.rstd**3 * sum_gd, s.variances)
    # back through the merges to the moments of each (sample, channel); a running one ends here
    mean, to_mean, to_var = s.means[0], to_means[0], to_vars[0]
    counts = [max(mean.shape[1], 1)]  # of channels in the layer; of samples in the batch
    if s.training and len(s.means) == 3:
        counts.append(max(mean.shape[0], 1))
    for k, count in enumerate(counts, 1):
        to_mean = to_mean + (to_means[k] + 2 * to_vars[k] * (mean - s.means[k])) / count
        to_var = to_var + to_vars[k] / count
    # dx = rstd * g + a + slope * (x - mean): what `grad_apply` gives for the sums in `_grad`
    slope, a = 2 * to_var / max(s.count - 1, 1), to_mean / max(s.count, 1)
    unit = np.ones_like(s.rstd)
    about_instance = (mean, s.instance_lo)  # where x - mean is small, whatever the mix
    if negative_slope is None and clip is None:
        _grad(dy, x, *about_instance, s.rstd, w, b, a, slope, y, how)
    else:  # first through the activation, as forward's mean has it; half types round at the end
        wide = np.promote_types(x.dtype, np.float32)
        x32, dy32 = x.astype(wide, copy=False), dy.astype(wide, copy=False)
        through = _grad(dy32, x32, s.mean, s.lo, s.rstd, w, b, 0 * a, 0 * a, None, how)
        direct = y if wide == x.dtype else None
        grad_input = _grad(through, x32, *about_instance, unit, None, None, a, slope, direct, units)
        if direct is None:
            y[...] = grad_input
    return (grad_w, grad_b), grad_mean_weight, grad_var_weight, grad_slope


def _table_backward(dy, x, s, w, b, mean_weight, var_weight, y, channel_axis, negative_slope, clip):
    n, c = x.shape
    grads = np.zeros((3, c))  # of weight, bias, slope
    row_sums, column_sums = np.zeros((2, n, 1)), np.zeros((2, 1, c))
    p_grad = np.zeros((2, 2))  # of the mixing weights, before the softmax
    p = s.mean

    def through(rows):
        mean, rstd = _table_block(s, rows)
        xhat, g = (x[rows] - mean) * rstd, dy[rows].astype(np.float64)
        on_slope = np.zeros_like(g)
        if negative_slope is not None:
            z = _affine(xhat, w, b)
            on_slope = np.where(z > 0, 0, g * z)
            g = np.where(z > 0, g, g * negative_slope)
        elif clip is not None:
            low, high = _bounds(clip)
            z = _affine(xhat, w, b)
            g = np.where((z <= low) | (z >= high), 0, g)
        return rstd, xhat, g, on_slope

    for rows in _row_blocks(x):
        rstd, xhat, g, on_slope = through(rows)
        grads += [(g * xhat).sum(0), g.sum(0), on_slope.sum(0)]
        g = _affine(g, w, None)
        for k, grad in enumerate((-rstd * g, -0.5 * rstd**2 * g * xhat)):
            row_sums[k, rows] = grad.sum(1, keepdims=True)
            column_sums[k] += grad.sum(0, keepdims=True)
            row, column = (s.means, s.variances)[k]
            p_grad[k] += [(grad * row[rows]).sum(), (grad * column).sum()]
    if np.may_share_memory(y, x):
        x = x.copy()
    if np.may_share_memory(y, dy) and y is not dy:
        dy = dy.copy()
    for rows in _row_blocks(x):
        rstd, _, g, _ = through(rows)
        dx = rstd * _affine(g, w, None)
        dx += p[0][0] * row_sums[0, rows] / max(c, 1)
        dx += p[1][0] * row_sums[1, rows] * 2 * (x[rows] - s.means[0][rows]) / (c - 1)
        if s.training:
            dx += p[0][1] * column_sums[0] / n
            dx += p[1][1] * column_sums[1] * 2 * (x[rows] - s.means[1]) / (n - 1)
        y[rows] = dx
    logits = []
    for weights, share, grad in zip((mean_weight, var_weight), p, p_grad, strict=True):
        centre = share[0] * grad[0] + share[1] * grad[1]
        grad = np.array([share[0] * (grad[0] - centre), share[1] * (grad[1] - centre)])
        logits.append(weights.gradient(grad))
    return grads[:2], *logits, grads[2]
