"""Batch, instance and group norm: their arguments, what they return, and running statistics."""

import numpy as np

cimport numpy as cnp
from libc.string cimport memcpy

from cnorm._call.arrays cimport (
    as_array, as_flag, as_float, as_floats, as_int, as_out, as_running, copy_doubles, float64_array, float64_data,
    hints, size_list)
from cnorm._call.channels cimport ChannelsCall, parameter_grads
from cnorm._call.checks cimport (as_gradient, as_statistic, axis_of, check_dims, check_eps, check_groups,
                                 check_parameter, check_tracked, check_written_together, group_count)
from cnorm._call.masks cimport Mask, mask_argument
from cnorm._call.output cimport ARENA_DOUBLES
from cnorm._call.running cimport mean_over_samples, update_counted, update_running
from cnorm._runtime cimport Lock, kernels

cnp.import_array()


cdef object add_statistics(ChannelsCall call, object y):
    """What forward returns: the result, with the statistics where the caller gets them."""
    return y if call.mean_array is None else (y, call.mean_array, call.rstd_array)


cdef object running_norm_forward(NormKind kind, object input, object running_mean, object running_var, object count,
                                 object weight, object bias, object from_input, object momentum, object eps,
                                 object out, object channel_axis, object return_stats, object negative_slope,
                                 object clip, object where):
    """batch_norm or instance_norm. `from_input` is `training` of the one, `use_input_stats` of the other; with the
    input's statistics, `count` (num_batches_tracked) grows by 1 where it is not None."""
    cdef ChannelsCall call = <ChannelsCall> ChannelsCall.__new__(ChannelsCall)
    cdef bint of_batch = kind == BATCH_NORM
    cdef Mask given = mask_argument(input, where)
    cdef cnp.ndarray x = as_array(input if given is None else given.data, "input"), into = as_out(out, "out")
    cdef cnp.ndarray counter = as_running(count, "num_batches_tracked")
    cdef cnp.ndarray mean = as_running(running_mean, "running_mean")
    cdef cnp.ndarray var = as_running(running_var, "running_var")
    cdef cnp.ndarray w = as_array(weight, "weight"), b = as_array(bias, "bias")
    cdef bint with_statistics = return_stats
    cdef bint of_input = as_flag(from_input, "training" if of_batch else "use_input_stats")
    cdef double factor = as_float(momentum, "momentum") if of_input and mean is not None else 0
    cdef int axis
    cdef double arena[ARENA_DOUBLES]
    call.eps = as_float(eps, "eps")
    call.convert_activation(negative_slope, clip)
    channel_axis = as_int(channel_axis, "channel_axis")

    x = as_floats(x, "input")
    check_dims(x, "batch_norm" if of_batch else "instance_norm", 2)
    axis = axis_of(channel_axis, cnp.PyArray_NDIM(x))
    if axis == 0 and of_batch:
        raise ValueError(hints().channel_axis_of_batch())
    check_tracked(x, axis, mean, var, w, b)
    if not of_input and mean is None:
        raise no_running_statistics(kind)
    call.set_axes(x, -1 if axis == 0 else 0, axis, 0 if of_batch else cnp.PyArray_DIM(x, axis))
    call.use_arena(arena)
    if of_input and call.elements and call.elements == call.units():
        raise hints().one_value(size_list(x), "batch" if of_batch else "instance")
    if of_batch:
        check_eps("batch_norm", call.eps, of_input)
    call.take_mask(given, x, into)
    if call.mask is not None and of_input and call.elements:
        count_selected(call, x)
    call.parameters(w, b, True)
    return wrapped(given, tracked_forward(call, of_input, mean, var, counter, factor, into,
                                          0 if not with_statistics else 1 if of_batch else 2))


cdef object no_running_statistics(NormKind kind):
    """The error of a call that needs running statistics."""
    if kind == INSTANCE_NORM:
        return RuntimeError("Expected running_mean and running_var to be defined when use_input_stats is false")
    return hints().noted(RuntimeError("running_mean must be defined in evaluation mode"),
                         "training=True takes the statistics of this batch")


cdef int count_selected(ChannelsCall call, cnp.ndarray x) except -1:
    """Count what a mask selects of each unit. Of a batch's channel one element has no variance."""
    call.counts = call.masked_counts()
    if call.groups:
        return 0
    alone = np.equal(call.counts, 1)
    if alone.any():
        raise hints().one_value(f"{size_list(x)} with one True in `where` for channel {int(np.argmax(alone))}")
    return 0


cdef object tracked_forward(ChannelsCall call, bint of_input, cnp.ndarray running_mean, cnp.ndarray running_var,
                            cnp.ndarray count, double factor, cnp.ndarray out, int stats_ndim):
    """Forward with the input's statistics, which then change the running ones and their count, or with the
    running ones. The caller gets mean and rstd of `stats_ndim` dimensions, or with 0 none."""
    if stats_ndim:
        call.return_statistics(stats_ndim)
    if not of_input:
        use_running_statistics(call, running_mean, running_var)
        return add_statistics(call, call.forward(out))
    check_written_together(running_mean, running_var, count, out)
    if running_mean is not None:
        call.reserve(&call.mean)
        call.reserve(&call.m2)
    result = add_statistics(call, call.forward(out))
    if call.counts is not None and running_mean is not None:
        update_from_masked(call, running_mean, running_var, factor, count)
    elif running_mean is None or call.elements == 0:  # no statistics to update, or none to update them with
        if count is not None:
            update_running(None, None, 0, NULL, NULL, 1, 0, count)
    else:
        update_running(running_mean, running_var, factor, of_channels(call, call.mean), of_channels(call, call.m2),
                       call.unit_size() - 1, call.channels, count)
    return result


cdef object wrapped(Mask given, object result):
    """What a function returns: the array of the input's shape, alone or the first of several, masked where the input
    is."""
    if given is None:
        return result
    if type(result) is tuple:
        return (given.wrapped((<tuple> result)[0]), *(<tuple> result)[1:])
    return given.wrapped(result)


cdef int update_from_masked(ChannelsCall call, cnp.ndarray running_mean, cnp.ndarray running_var, double factor,
                            cnp.ndarray count) except -1:
    """Update running statistics with those of what the mask selects. A channel of fewer than two elements keeps its
    own; of instance norm's samples those count that have two."""
    cdef object shape = [call.samples if call.groups else 1, call.channels]
    mean = float64_array(call.mean, call.units()).reshape(shape)
    m2 = float64_array(call.m2, call.units()).reshape(shape)
    counts = call.counts.reshape(shape)
    counted = np.greater(counts, 1)
    n = counted.sum(0)
    share = np.maximum(n, 1)
    mean = np.where(counted, mean, 0).sum(0) / share
    var = np.divide(m2, counts - 1, out=np.zeros(counts.shape), where=counted).sum(0) / share
    return update_counted(running_mean, running_var, factor, mean, var, np.greater(n, 0), count)


cdef const double *of_channels(ChannelsCall call, const double *values) except NULL:
    """Statistics per channel: those of units that are channels, or the mean over the samples."""
    cdef double *mean
    if call.samples == 1 or call.groups == 0:
        return values
    mean = call.workspace(call.channels)
    mean_over_samples(values, call.samples, call.channels, mean)
    return mean


cdef int use_running_statistics(ChannelsCall call, cnp.ndarray mean, cnp.ndarray var) except -1:
    """Take statistics that do not come from the input, one per channel, for every unit."""
    cdef Py_ssize_t i, n = call.channels, units = call.units()
    cdef double *rstd
    call.stats_given = True
    call.reserve(&call.mean)
    call.reserve(&call.rstd)
    if units == 0:
        return 0
    rstd = call.rstd
    copy_doubles(call.mean, n, mean, "running_mean")
    copy_doubles(rstd, n, var, "running_var")
    kernels.rstds(rstd, n, call.eps)
    for i from n <= i < units by n:
        memcpy(call.mean + i, call.mean, n * sizeof(double))
        memcpy(rstd + i, rstd, n * sizeof(double))
    return 0


cdef object group_norm_forward(object input, object num_groups, object weight, object bias, object eps,
                               object out, object channel_axis, object return_stats, object negative_slope,
                               object clip, object where):
    """group_norm."""
    cdef ChannelsCall call = <ChannelsCall> ChannelsCall.__new__(ChannelsCall)
    cdef Mask given = mask_argument(input, where)
    cdef cnp.ndarray x = as_array(input if given is None else given.data, "input"), into = as_out(out, "out")
    cdef cnp.ndarray w = as_array(weight, "weight"), b = as_array(bias, "bias")
    cdef bint with_statistics = return_stats
    cdef int axis
    cdef double arena[ARENA_DOUBLES]
    cdef Py_ssize_t groups
    call.eps = as_float(eps, "eps")
    call.convert_activation(negative_slope, clip)
    channel_axis = as_int(channel_axis, "channel_axis")
    num_groups = group_count(num_groups)

    x = as_floats(x, "input")
    if cnp.PyArray_NDIM(x) < 2:
        raise RuntimeError(f"Expected at least 2 dimensions for input tensor but received {cnp.PyArray_NDIM(x)}")
    axis = axis_of(channel_axis, cnp.PyArray_NDIM(x))
    if axis == 0:
        raise ValueError(hints().channel_axis_of_batch())
    groups = check_groups(x, axis, num_groups, w, b)
    call.set_axes(x, 0, axis, groups)
    call.use_arena(arena)
    if call.elements == groups:  # torch counts all samples of a group together
        spatial = [n for i, n in enumerate(size_list(x)) if i not in (0, axis)]
        raise hints().one_value([call.samples * call.channels // groups, groups, *spatial], "group")
    call.take_mask(given, x, into)
    call.parameters(w, b, True)
    if with_statistics:
        call.return_statistics(2)
    return wrapped(given, add_statistics(call, call.forward(into)))


cdef object channel_norm_backward(object grad_output, object input, object num_groups, object mean, object rstd,
                                  object weight, object bias, object from_input, NormKind kind, object out,
                                  object channel_axis, object negative_slope, object clip, object where=None):
    """Backward of the three norms. `from_input`: the statistics came from the input, so they have gradients."""
    cdef ChannelsCall call = <ChannelsCall> ChannelsCall.__new__(ChannelsCall)
    cdef Mask given = mask_argument(input, where)
    cdef cnp.ndarray x = as_array(input if given is None else given.data, "input")
    cdef cnp.ndarray dy = as_array(grad_output if given is None else given.gradient(grad_output), "grad_output")
    cdef cnp.ndarray into = as_out(out, "out")
    cdef cnp.ndarray m = as_array(mean, "mean"), r = as_array(rstd, "rstd")
    cdef cnp.ndarray w = as_array(weight, "weight"), b = as_array(bias, "bias")
    cdef int axis, batch = 0
    cdef Py_ssize_t channels, groups = 0
    cdef double arena[ARENA_DOUBLES]
    cdef str shape = "(C,)" if kind == BATCH_NORM else "(N, C)" if kind == INSTANCE_NORM else "(N, G)"
    cdef bint of_input = from_input
    call.stats_given = not of_input
    call.convert_activation(negative_slope, clip)
    channel_axis = as_int(channel_axis, "channel_axis")
    if kind == GROUP_NORM:
        num_groups = group_count(num_groups)

    x = as_floats(x, "input")
    if cnp.PyArray_NDIM(x) < 2:
        if kind == GROUP_NORM:
            raise RuntimeError(f"Expected at least 2 dimensions for input tensor but received {cnp.PyArray_NDIM(x)}")
        check_dims(x, "batch_norm_backward" if kind == BATCH_NORM else "instance_norm_backward", 2)
    dy = as_gradient(dy, x)
    axis = axis_of(channel_axis, cnp.PyArray_NDIM(x))
    channels = cnp.PyArray_DIM(x, axis)
    if kind == INSTANCE_NORM:
        batch = -1 if axis == 0 else 0
        groups = channels
    elif axis == 0:
        raise ValueError(hints().channel_axis_of_batch())
    if kind == GROUP_NORM:
        groups = check_groups(x, axis, num_groups, None, None)
    call.set_axes(x, batch, axis, groups)
    call.use_arena(arena)
    check_parameter(w, "weight", x, axis)
    check_parameter(b, "bias", x, axis)
    call.mean_array = as_statistic(m, "mean", call.units(), shape)
    call.mean = float64_data(call.mean_array)
    call.rstd_array = as_statistic(r, "rstd", call.units(), shape)
    call.rstd = float64_data(call.rstd_array)
    call.take_mask(given, x, None)
    call.parameters(w, b, True)
    return wrapped(given, parameter_grads(call, call.backward(dy, into), w, b))


def running_norm(Lock lock, bint of_batch, num_batches_tracked, input, running_mean, running_var, weight, bias,
                 from_input, momentum, eps, channel_axis, return_stats, negative_slope, clip, where):
    """`batch_norm` (`of_batch`) or `instance_norm` of a module, whose counter grows by 1 where it is not None. A
    momentum of None gives all counted batches the same weight, and changes nothing where none are counted. `lock` is
    None where nothing is updated: a module's own `Lock.run` would make a tuple of the arguments, 0.15 us."""
    if lock is not None:
        lock.acquire()
    try:
        if momentum is None:
            momentum = 0.0 if num_batches_tracked is None else 1 / (int(num_batches_tracked) + 1)
        return running_norm_forward(BATCH_NORM if of_batch else INSTANCE_NORM, input, running_mean, running_var,
                                    num_batches_tracked, weight, bias, from_input, momentum, eps, None, channel_axis,
                                    return_stats, negative_slope, clip, where)
    finally:
        if lock is not None:
            lock.release()
