"""SwitchNorm: instance, layer and batch statistics, mixed. From arguments to kernels.

Images, (N, C, ...): the moments of each (sample, channel), from which those of layer and batch are merged; what they
mix to is again a mean and an rstd per (sample, channel), which the kernels of instance norm apply. Backward likewise,
with two sums in place of the moments. Between the passes over the images are N * C numbers, in `kernels.mixing`.

Tables, (N, C): statistics of rows and of columns, which mix to a mean and an rstd per element: `kernels.crossed`.
"""

import numpy as np

cimport numpy as cnp

from cnorm._call.arrays cimport (as_array, as_float, as_floats, as_int, as_out, as_running, copy_doubles,
                                 dtype_code, float64_data, hints, new_float64, shape_of, size_list)
from cnorm._call.channels cimport ChannelsCall, parameter_grads, sum_over_samples
from cnorm._call.checks cimport as_gradient, check_length, check_running, check_written_together
from cnorm._call.launch cimport launch
from cnorm._call.output cimport ARENA_DOUBLES, gradient_from_sums
from cnorm._call.running cimport assign_all, update_running
from cnorm._plan cimport UNITS, Plan
from cnorm.kernels.job cimport (
    COLUMNS_BACKWARD, COLUMNS_FORWARD, COLUMNS_MOMENTS, CROSSED_BACKWARD, CROSSED_FORWARD, FLOAT64, SEGMENTS_BACKWARD,
    SEGMENTS_FORWARD, SEGMENTS_MOMENTS, SUMS_GIVEN, SUMS_ONLY, Job)
from cnorm.kernels.mixing cimport mix_backward, mix_forward, softmax, softmax_backward
from cnorm.kernels.tuning cimport GIL_RELEASE_MIN_BYTES

cnp.import_array()


class Statistics:
    """What forward took from the input, and backward needs; float64 throughout.

    Means are `mean + lo`, variances unbiased, (3, ...) holds mean, lo and variance."""

    __slots__ = (
        "shape",      # of the input
        "channels",
        "training",   # whether the batch's statistics come from the input
        "eps",
        "shares",     # (2, 2 or 3): of the means, of the variances, in the order instance, layer, batch
        "moments",    # (3, N, C): the instances'; of a table None
        "layer",      # (3, N)
        "batch",      # (3, C), or (0, C) where there is none
        "mixed",      # (3, N, C): mean, lo, rstd; of a table None
    )


cdef cnp.ndarray as_values(cnp.ndarray array, str name):
    """A parameter of any real dtype, in one that kernels read."""
    if array is None or dtype_code(array) >= 0:
        return array
    if cnp.PyArray_ISCOMPLEX(array):
        raise TypeError(f"{name} must be a float array, but got dtype {array.dtype}")
    return np.asarray(array, np.float64)


cdef int channel_axis_of(cnp.ndarray x, object channel_axis) except -1:
    """The axis of the channels, which is not the first."""
    cdef int ndim = cnp.PyArray_NDIM(x)
    if not -ndim <= channel_axis < ndim or channel_axis % ndim == 0:
        raise ValueError(f"channel_axis {channel_axis} must be an axis of the input other than 0")
    return channel_axis % ndim


cdef int check_mixes(cnp.ndarray mean_weight, cnp.ndarray var_weight, bint with_two, bint with_three) except -1:
    """How many statistics are mixed: two, or three."""
    cdef Py_ssize_t n
    for values, name in ((mean_weight, "mean_weight"), (var_weight, "var_weight")):
        if values is None:
            raise TypeError(f"{name} must be an array, but got None")
        n = cnp.PyArray_SIZE(values)
        if not (with_two and n == 2 or with_three and n == 3):
            allowed = "2 or 3" if with_two and with_three else 2 if with_two else 3
            raise RuntimeError(f"{name} should contain {allowed} elements not {n}")
    n = cnp.PyArray_SIZE(mean_weight)
    if n != cnp.PyArray_SIZE(var_weight):
        raise RuntimeError("mean_weight and var_weight must have as many elements as each other")
    return <int> n


cdef int check_input(cnp.ndarray x, int axis, bint with_batch, cnp.ndarray running_mean, cnp.ndarray running_var,
                     bint training) except -1:
    """Running statistics that fit, and enough elements for every variance."""
    cdef Py_ssize_t channels = cnp.PyArray_DIM(x, axis), samples = cnp.PyArray_DIM(x, 0)
    check_running(running_mean, "running_mean", channels, x, axis)
    check_running(running_var, "running_var", channels, x, axis)
    if with_batch and not training and (running_mean is None or running_var is None):
        raise RuntimeError("running_mean must be defined in evaluation mode")
    if (running_mean is None) != (running_var is None):
        raise ValueError("running_mean and running_var must either both be None or neither be None")
    if cnp.PyArray_NDIM(x) > 2:
        if cnp.PyArray_SIZE(x) and cnp.PyArray_SIZE(x) == samples * channels:
            raise hints().one_value(size_list(x), "instance")
    elif channels == 1 or training and samples == 1:
        raise hints().one_value(size_list(x), "batch" if channels > 1 else "row")
    return 0


cdef object new_statistics(ChannelsCall call, int mixed, bint training, cnp.ndarray mean_weight,
                           cnp.ndarray var_weight):
    """Statistics of an input, with the shares of what is mixed; the rest is to be filled."""
    cdef cnp.ndarray x = call.x, shares
    cdef Py_ssize_t n = cnp.PyArray_DIM(x, 0), c = call.channels
    cdef double logits[6]
    stats = Statistics.__new__(Statistics)
    stats.shape, stats.channels, stats.training, stats.eps = shape_of(x), c, training, call.eps
    shares = np.empty((2, mixed))
    copy_doubles(logits, mixed, mean_weight, "mean_weight")
    copy_doubles(logits + mixed, mixed, var_weight, "var_weight")
    softmax(logits, mixed, float64_data(shares))
    softmax(logits + mixed, mixed, float64_data(shares) + mixed)
    stats.shares = shares
    stats.layer = np.empty((3, n))
    stats.batch = np.empty((3 if mixed == 3 or cnp.PyArray_NDIM(x) == 2 else 0, c))
    if cnp.PyArray_NDIM(x) == 2:
        stats.moments = stats.mixed = None
    else:
        stats.moments, stats.mixed = np.empty((3, n, c)), np.empty((3, n, c))
    return stats


cdef int set_table(Job *a, object stats) except -1:
    """Let a job have the statistics of a table."""
    cdef double *shares = float64_data(stats.shares)
    cdef double *layer = float64_data(stats.layer)
    cdef double *batch = float64_data(stats.batch)
    cdef Py_ssize_t rows = stats.shape[0], columns = stats.channels
    a.stats_given = not stats.training
    a.finish.eps = stats.eps
    a.mean = batch
    a.lo = batch + columns
    a.m2 = batch + 2 * columns
    a.crossed.share[0] = shares[0]
    a.crossed.share[1] = shares[1]
    a.crossed.var_share[0] = shares[2]
    a.crossed.var_share[1] = shares[3]
    a.crossed.row_mean = layer
    a.crossed.row_lo = layer + rows
    a.crossed.row_var = layer + 2 * rows
    return 0


cdef int set_moments(ChannelsCall call, cnp.ndarray moments, const double *rstd) noexcept:
    """Let a call have a mean, lo and rstd per (sample, channel)."""
    cdef Py_ssize_t n = call.units()
    call.mean = float64_data(moments)
    call.lo = call.mean + n
    call.m2 = NULL
    call.rstd = <double *> rstd
    return 0


cdef int mix_images(ChannelsCall call, object stats, int threads) except -1:
    """From the moments of each (sample, channel) to what is applied."""
    cdef double[:, :, :] moments = stats.moments, mixed = stats.mixed
    cdef double[:, :] layer = stats.layer, batch = stats.batch
    cdef double count = <double> call.unit_size()
    cdef const double *p = float64_data(stats.shares)
    cdef const double *q = p + batch.shape[0] // 3 + 2
    cdef bint given = not stats.training
    if call.bytes < GIL_RELEASE_MIN_BYTES:
        mix_forward(moments, layer, batch, given, count, p, q, call.eps, mixed, 1)
    else:
        with nogil:
            mix_forward(moments, layer, batch, given, count, p, q, call.eps, mixed, threads)
    return 0


cdef int forward_images(ChannelsCall call, const Plan *p, object stats) except -1:
    """The statistics of images, and their results in `call.y`."""
    cdef Job a
    cdef double *mixed = float64_data(stats.mixed)
    cdef Py_ssize_t n = call.units()
    set_moments(call, stats.moments, mixed + 2 * n)
    call.m2 = call.mean + 2 * n
    call.fill_job(p, &a)
    launch(SEGMENTS_MOMENTS if p.family == UNITS else COLUMNS_MOMENTS, &a.head, call.bytes, "statistics")
    mix_images(call, stats, a.head.threads)
    set_moments(call, stats.mixed, mixed + 2 * n)
    call.stats_given = True
    call.fill_job(p, &a)
    launch(SEGMENTS_FORWARD if p.family == UNITS else COLUMNS_FORWARD, &a.head, call.bytes, "result")
    return 0


cdef int forward_table(ChannelsCall call, const Plan *p, object stats) except -1:
    """The statistics of a table, and its results in `call.y`."""
    cdef Job a
    call.fill_job(p, &a)
    set_table(&a, stats)
    a.rstd = call.workspace(call.channels)
    launch(CROSSED_FORWARD, &a.head, call.bytes, "statistics")
    return 0


cdef int track(cnp.ndarray running_mean, cnp.ndarray running_var, object stats, double momentum,
               bint using_moving_average) except -1:
    """Update the running statistics with the batch's."""
    cdef Py_ssize_t n = stats.channels
    cdef const double *batch = float64_data(stats.batch)
    if using_moving_average:
        return update_running(running_mean, running_var, 1 - momentum, batch, batch + 2 * n, 1, n, None)
    mean, _, var = stats.batch
    totals = [np.asarray(running + values.reshape(shape_of(running)), running.dtype) for running, values in
              ((running_mean, mean), (running_var, mean**2 + var))]
    return assign_all([running_mean, running_var], totals)


cdef object switch_norm_forward(object input, object running_mean, object running_var, object weight, object bias,
                                object mean_weight, object var_weight, object training, object momentum, object eps,
                                object using_moving_average, object out, object channel_axis, object return_stats,
                                object negative_slope, object clip):
    """switch_norm."""
    cdef ChannelsCall call = <ChannelsCall> ChannelsCall.__new__(ChannelsCall)
    cdef cnp.ndarray x = as_array(input, "input"), mean = as_running(running_mean, "running_mean")
    cdef cnp.ndarray var = as_running(running_var, "running_var")
    cdef cnp.ndarray w = as_values(as_array(weight, "weight"), "weight")
    cdef cnp.ndarray b = as_values(as_array(bias, "bias"), "bias")
    cdef cnp.ndarray mean_mix = as_values(as_array(mean_weight, "mean_weight"), "mean_weight")
    cdef cnp.ndarray var_mix = as_values(as_array(var_weight, "var_weight"), "var_weight")
    cdef cnp.ndarray into = as_out(out, "out")
    cdef bint of_batch, with_statistics, averages, tracks
    cdef double factor
    cdef int axis, mixed, ndim
    cdef double arena[ARENA_DOUBLES]
    cdef Plan p
    cdef cnp.ndarray batch
    call.convert_activation(negative_slope, clip)
    of_batch, with_statistics, averages = training, return_stats, using_moving_average
    tracks = of_batch and mean is not None
    factor = as_float(momentum, "momentum") if tracks else 0
    call.eps = as_float(eps, "eps")
    channel_axis = as_int(channel_axis, "channel_axis")

    x = as_floats(x, "input")
    ndim = cnp.PyArray_NDIM(x)
    if ndim < 2:
        raise ValueError(f"switch_norm expects at least 2 dimensions, but got input of size {size_list(x)}")
    axis = channel_axis_of(x, channel_axis)
    mixed = check_mixes(mean_mix, var_mix, True, ndim > 2)
    check_input(x, axis, ndim == 2 or mixed == 3, mean, var, of_batch)
    check_length(w, "weight", cnp.PyArray_DIM(x, axis), x, axis)
    check_length(b, "bias", cnp.PyArray_DIM(x, axis), x, axis)
    call.set_axes(x, 0, axis, 0 if ndim == 2 else cnp.PyArray_DIM(x, axis))
    call.use_arena(arena)
    call.parameters(w, b, False)
    stats = new_statistics(call, mixed, of_batch, mean_mix, var_mix)
    batch = stats.batch
    if not of_batch and cnp.PyArray_DIM(batch, 0):
        copy_doubles(float64_data(batch), call.channels, mean, "running_mean")
        batch[1] = 0
        copy_doubles(float64_data(batch) + 2 * call.channels, call.channels, var, "running_var")
    call.resolve_output(&p, into, None)
    if of_batch:
        check_written_together(mean, var, None, into)
    if call.elements:
        if ndim == 2:
            forward_table(call, &p, stats)
        else:
            forward_images(call, &p, stats)
    y = call.copy_out()
    if tracks and call.elements and cnp.PyArray_DIM(batch, 0):
        track(mean, var, stats, factor, averages)
    return (y, stats) if with_statistics else y


# ---- backward ----


cdef int mix_image_sums(ChannelsCall call, object stats, cnp.ndarray sums, double *to_p, double *to_q,
                        int threads) except -1:
    """From the sums of each (sample, channel) to the gradients of the shares, and to what is applied."""
    cdef Py_ssize_t n = cnp.PyArray_DIM(sums, 0), c = cnp.PyArray_DIM(sums, 1)
    cdef const double[:, :, :] moments = stats.moments
    cdef const double[:, :] layer = stats.layer, batch = stats.batch, rstd = stats.mixed[2]
    cdef double[:, :, :] of_units = sums, of_samples = new_float64(8 * n).reshape(2, n, 4)
    cdef double[:, :] of_channels = new_float64(2 * c).reshape(2, c)
    cdef double count = <double> call.unit_size()
    cdef const double *p = float64_data(stats.shares)
    cdef const double *q = p + batch.shape[0] // 3 + 2
    cdef bint given = not stats.training
    if call.bytes < GIL_RELEASE_MIN_BYTES:
        mix_backward(moments, layer, batch, rstd, p, q, given, count, of_units, of_samples, of_channels, to_p, to_q, 1)
    else:
        with nogil:
            mix_backward(moments, layer, batch, rstd, p, q, given, count, of_units, of_samples, of_channels, to_p,
                         to_q, threads)
    return 0


cdef int as_given_sums(double *sums, const double *rstd, Py_ssize_t n) noexcept:
    """Two terms a and s of dx = rstd * g + a + s * (x - mean), as the sums over one element that give them."""
    cdef Py_ssize_t i
    for i in range(n):
        sums[2 * i] = -sums[2 * i] / rstd[i]
        sums[2 * i + 1] = -sums[2 * i + 1] / (rstd[i] * rstd[i] * rstd[i])
    return 0


cdef cnp.ndarray apply_given(ChannelsCall like, cnp.ndarray x, cnp.ndarray dy, cnp.ndarray out, cnp.ndarray moments,
                             const double *rstd, bint through, cnp.ndarray sums):
    """The gradient of the input from given sums; `through`: of weight and activation alone."""
    cdef ChannelsCall call = <ChannelsCall> ChannelsCall.__new__(ChannelsCall)
    call.set_axes(x, 0, like.channel_axis, like.groups)
    call.eps = like.eps
    set_moments(call, moments, rstd)
    if through:
        call.weight, call.bias = like.weight, like.bias
        call.activation, call.slope, call.slopes = like.activation, like.slope, like.slopes
        call.low, call.high = like.low, like.high
    return call.backward(dy, out, sums, SUMS_GIVEN, 1)


cdef int activated_gradient(ChannelsCall call, object stats, cnp.ndarray sums, const double *rstd) except -1:
    """The gradient of images behind an activation, into `call.y`. First through the activation, which looks at the
    result about forward's mean; then what the statistics add, about the instance's, where x - mean is small. Half types
    are rounded at the end."""
    cdef cnp.ndarray x = call.x, dy = call.dy, wide, result
    cdef Py_ssize_t n = call.units()
    if call.dtype != FLOAT64:
        x, dy = x.astype(np.float32, copy=False), dy.astype(np.float32, copy=False)
    zeros, ones = np.zeros_like(sums), np.ones(n)
    wide = apply_given(call, x, dy, None, stats.mixed, rstd, True, zeros)
    as_given_sums(float64_data(sums), float64_data(ones), n)
    result = call.y if cnp.PyArray_TYPE(wide) == cnp.PyArray_TYPE(call.y) else wide
    apply_given(call, x, wide, result, stats.moments, float64_data(ones), False, sums)
    if result is not call.y:
        cnp.PyArray_CopyInto(call.y, result)
    return 0


cdef int backward_images(ChannelsCall call, const Plan *p, object stats, double *to_p, double *to_q) except -1:
    """All gradients of images: the input's in `call.y`, the parameters' in `call.grads`, those of the shares."""
    cdef Job a
    cdef Py_ssize_t n = call.units()
    cdef cnp.ndarray sums = new_float64(2 * n).reshape(call.samples, call.channels, 2)
    cdef double *rstd = float64_data(stats.mixed) + 2 * n
    cdef double *g = call.workspaces(n, 3)
    call.grads = g
    set_moments(call, stats.mixed, rstd)
    call.fill_job(p, &a)
    a.channels.grad_weight = g
    a.channels.grad_bias = g + n
    a.channels.grad_slope = g + 2 * n
    a.channels.sums = float64_data(sums)
    a.channels.sums_mode = SUMS_ONLY
    launch(SEGMENTS_BACKWARD if p.family == UNITS else COLUMNS_BACKWARD, &a.head, call.bytes, "sums")
    sum_over_samples(g, call.samples, call.channels)
    mix_image_sums(call, stats, sums, to_p, to_q, a.head.threads)
    if call.activation:
        return activated_gradient(call, stats, sums, rstd)
    as_given_sums(float64_data(sums), rstd, n)
    a.channels.sums_mode = SUMS_GIVEN
    a.channels.count = 1
    a.mean = float64_data(stats.moments)
    a.lo = a.mean + n
    launch(SEGMENTS_BACKWARD if p.family == UNITS else COLUMNS_BACKWARD, &a.head, call.bytes, "gradient")
    return 0


cdef int backward_table(ChannelsCall call, const Plan *p, object stats, double *to_p, double *to_q) except -1:
    """All gradients of a table, likewise."""
    cdef Job a
    cdef double differences[2]
    call.grads = call.workspaces(call.channels, 3)
    call.fill_job(p, &a)
    set_table(&a, stats)
    a.channels.grad_weight = call.grads
    a.channels.grad_bias = call.grads + call.channels
    a.channels.grad_slope = call.grads + 2 * call.channels
    a.crossed.grad_shares = differences
    launch(CROSSED_BACKWARD, &a.head, call.bytes, "sums")
    to_p[0] = differences[0]
    to_q[0] = differences[1]
    return 0


cdef object mix_gradient(const double *shares, const double *grads, cnp.ndarray logits, int dtype):
    """The gradient of the logits in their shape and dtype."""
    cdef cnp.npy_intp n = cnp.PyArray_SIZE(logits)
    cdef double values[3]
    softmax_backward(shares, grads, n, values)
    return gradient_from_sums(values, n, logits, dtype, 1, &n)


cdef object switch_norm_gradients(object grad_output, object input, object stats, object weight, object mean_weight,
                                  object var_weight, object bias, object out, object channel_axis,
                                  object negative_slope, object clip):
    """switch_norm_backward."""
    cdef ChannelsCall call = <ChannelsCall> ChannelsCall.__new__(ChannelsCall)
    cdef cnp.ndarray x, dy, w, b, mean_mix, var_mix, into
    cdef int axis, mixed, ndim, i
    cdef double arena[ARENA_DOUBLES]
    cdef double to_shares[6]
    cdef const double *shares
    cdef Plan p
    if not isinstance(stats, Statistics):
        raise TypeError(f"stats must be what switch_norm returned, but got {type(stats).__name__}")
    x, dy = as_array(input, "input"), as_array(grad_output, "grad_output")
    w, b = as_array(weight, "weight"), as_array(bias, "bias")
    mean_mix, var_mix = as_array(mean_weight, "mean_weight"), as_array(var_weight, "var_weight")
    into = as_out(out, "out")
    call.convert_activation(negative_slope, clip)
    channel_axis = as_int(channel_axis, "channel_axis")

    x = as_floats(x, "input")
    dy = as_gradient(dy, x)
    if shape_of(x) != stats.shape:
        raise ValueError(f"stats are of an input of shape {stats.shape}, but got {shape_of(x)}")
    ndim = cnp.PyArray_NDIM(x)
    axis = channel_axis_of(x, channel_axis)
    if cnp.PyArray_DIM(x, axis) != stats.channels:
        raise ValueError(f"stats are of {stats.channels} channels, but channel_axis {channel_axis} has "
                         f"{cnp.PyArray_DIM(x, axis)}")
    mixed = stats.shares.shape[1]
    check_mixes(as_values(mean_mix, "mean_weight"), as_values(var_mix, "var_weight"), mixed == 2, mixed == 3)
    check_length(w, "weight", stats.channels, x, axis)
    check_length(b, "bias", stats.channels, x, axis)
    call.eps = stats.eps
    call.set_axes(x, 0, axis, 0 if ndim == 2 else stats.channels)
    call.use_arena(arena)
    call.parameters(as_values(w, "weight"), as_values(b, "bias"), False)
    call.resolve_output(&p, into, dy)
    for i in range(6):
        to_shares[i] = 0
    if call.elements == 0:
        call.grads = call.workspaces(call.channels, 3)
        for i in range(3 * call.channels):
            call.grads[i] = 0
    elif ndim == 2:
        backward_table(call, &p, stats, to_shares, to_shares + 3)
    else:
        backward_images(call, &p, stats, to_shares, to_shares + 3)
    grad_input, grad_weight, grad_bias, *grad_slope = parameter_grads(call, call.copy_out(), w, b)
    shares = float64_data(stats.shares)
    return (grad_input, grad_weight, grad_bias,
            mix_gradient(shares, to_shares, mean_mix, call.dtype),
            mix_gradient(shares + mixed, to_shares + 3, var_mix, call.dtype), *grad_slope)
