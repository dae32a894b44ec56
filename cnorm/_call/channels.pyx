"""Norms with a weight per channel: batch, instance and group norm, from arguments to kernels."""

import numpy as np

cimport numpy as cnp
from libc.math cimport INFINITY, sqrt
from libc.string cimport memcpy, memset

from cnorm._call.arrays cimport (as_array, as_flag, as_float, as_floats, as_int, as_out, as_running, checked_product,
                                 copy_doubles, copy_if_overlapping, float64_array, float64_data, hints, shape_of,
                                 size_list)
from cnorm._call.checks cimport (as_gradient, as_statistic, axis_of, check_dims, check_eps, check_groups,
                                 check_parameter, check_tracked, check_written_together, group_count)
from cnorm._call.launch cimport launch
from cnorm._call.output cimport (ARENA_DOUBLES, ChannelAxisCall, gradient_from_sums, set_tensor,
                                 slope_gradient)
from cnorm._call.running cimport mean_over_samples, update_running
from cnorm._plan cimport COPY, UNITS, Plan
from cnorm._pool cimport new_array
from cnorm._runtime cimport kernels, threads_for
from cnorm.kernels.job cimport (
    COLUMNS_BACKWARD, COLUMNS_FORWARD, COLUMNS_MOMENTS, FLOAT64, SEGMENTS_BACKWARD, SEGMENTS_FORWARD, SEGMENTS_MOMENTS,
    SUMS_GIVEN, SUMS_INTERNAL, SUMS_ONLY, Job, Tensor)

cnp.import_array()


cdef class ChannelsCall(ChannelAxisCall):
    """One call of a norm with a weight per channel."""

    cdef Py_ssize_t units(self) noexcept:
        """How many units, each with statistics of its own, the input has."""
        return self.samples * self.groups if self.groups else self.channels

    cdef Py_ssize_t unit_size(self) noexcept:
        """Elements of a unit."""
        return self.elements // self.units() if self.units() else 0

    cdef int protect_inputs(self, cnp.ndarray written) except -1:
        ChannelAxisCall.protect_inputs(self, written)
        self.mean_array = copy_if_overlapping(self.mean_array, written)
        self.rstd_array = copy_if_overlapping(self.rstd_array, written)
        if self.mean_array is not None:
            self.mean = float64_data(self.mean_array)
        if self.rstd_array is not None:
            self.rstd = float64_data(self.rstd_array)
        return 0

    cdef const double *parameter(self, cnp.ndarray values, str name) except? NULL:
        """A parameter per channel, or with `per_sample` per sample and channel, in float64; or NULL."""
        cdef double *copy
        cdef Py_ssize_t i, n = self.channels
        if values is None:
            return NULL
        if not self.per_sample:
            copy = self.workspace(n)
            copy_doubles(copy, n, values, name)
            return copy
        copy = self.workspace(self.samples, n)
        if self.has_samples(values):
            copy_doubles(copy, self.samples * n, values, name)
            return copy
        copy_doubles(copy, n, values, name)
        for i in range(1, self.samples):
            memcpy(copy + i * n, copy, n * sizeof(double))
        return copy

    cdef bint has_samples(self, cnp.ndarray values) noexcept:
        """Whether a parameter is (N, C)."""
        return values is not None and cnp.PyArray_NDIM(values) == 2 and self.samples > 1 and (
            cnp.PyArray_DIM(values, 0) == self.samples and cnp.PyArray_DIM(values, 1) == self.channels)

    cdef Py_ssize_t grad_size(self) noexcept:
        """Elements of the gradient of a parameter in `grads`: per channel, or (per_sample) per sample and channel."""
        return self.samples * self.channels if self.per_sample else self.channels

    cdef int parameters(self, cnp.ndarray weight, cnp.ndarray bias, bint of_samples=False) except -1:
        """Take what is given per channel, or, where that is possible, per sample; and check the slopes."""
        self.per_sample = of_samples and (self.has_samples(weight) or self.has_samples(bias))
        self.weight = self.parameter(weight, "weight")
        self.bias = self.parameter(bias, "bias")
        self.check_slope(self.channels)
        return 0

    cdef int return_statistics(self, int ndim) except -1:
        """The caller gets mean and rstd: per channel, or (2) per sample and group."""
        cdef cnp.npy_intp shape[2]
        shape[0] = self.channels if ndim == 1 else self.samples
        shape[1] = self.groups
        self.mean_array = new_array(cnp.NPY_FLOAT64, ndim, shape)
        self.rstd_array = new_array(cnp.NPY_FLOAT64, ndim, shape)
        self.mean = float64_data(self.mean_array)
        self.rstd = float64_data(self.rstd_array)
        return 0

    cdef int reserve(self, double **statistic) except -1:
        """Workspace for a statistic, where it has none."""
        if statistic[0] == NULL:
            statistic[0] = self.workspace(self.units())
        return 0

    cdef int reserve_statistics(self) except -1:
        """Workspace for all statistics that have none."""
        self.reserve(&self.mean)
        self.reserve(&self.rstd)
        self.reserve(&self.lo)
        self.reserve(&self.m2)
        return 0

    cdef const double *as_stored(self, const double *values, bint samples_last) except? NULL:
        """A parameter (N, C), or with samples_last (C, N); NULL where there is none."""
        cdef double *copy
        cdef Py_ssize_t i, c
        if values == NULL or not samples_last:
            return values
        copy = self.workspace(self.samples, self.channels)
        for i in range(self.samples):
            for c in range(self.channels):
                copy[c * self.samples + i] = values[i * self.channels + c]
        return copy

    cdef int fill_job(self, const Plan *p, Job *a) except -1:
        """Describe the call to a kernel."""
        cdef int i
        # batch norm's segments are the samples of a channel: each has a weight of its own then
        cdef bint samples_last = self.per_sample and self.groups == 0 and p.family == UNITS
        memset(a, 0, sizeof(Job))
        for i in range(5):
            a.shape[i] = p.shape[i]
        a.head.dtype = self.dtype
        a.head.threads = threads_for(self.bytes)
        set_tensor(&a.x, self.x, p, 0)
        if self.y is not None:
            set_tensor(&a.y, self.y, p, 1)
        if self.dy is not None:
            set_tensor(&a.dy, self.dy, p, 2)
        a.centred = True
        a.stats_given = self.stats_given
        a.channels.by_segment = self.groups != 0 or samples_last
        a.channels.sample_channels = self.channels if self.per_sample and self.groups else 0
        a.activation = self.activation
        a.slope = self.slope
        a.low = self.low
        a.high = self.high
        a.channels.channels_per_group = self.channels // self.groups if self.groups else 1
        a.eps = self.eps
        a.mean = self.mean
        a.rstd = self.rstd
        a.m2 = self.m2
        a.lo = self.lo
        a.channels.weight = self.as_stored(self.weight, samples_last)
        a.channels.bias = self.as_stored(self.bias, samples_last)
        a.channels.slopes = float64_data(self.slopes)
        if self.per_sample and self.slopes is not None:
            a.channels.slopes = self.as_stored(self.parameter(self.slopes, "negative_slope"), samples_last)
        return 0

    cdef int spread_statistics(self, Job *a) except -1:
        """Give a job whose units are channels of a sample the statistics of the channels."""
        cdef Py_ssize_t n = self.channels, i
        cdef double *mean = self.workspace(self.samples, n)
        cdef double *rstd = self.workspace(self.samples, n)
        cdef double *lo = self.workspace(self.samples, n)
        for i in range(self.samples):
            memcpy(mean + i * n, self.mean, n * sizeof(double))
            memcpy(rstd + i * n, self.rstd, n * sizeof(double))
            if self.lo != NULL:
                memcpy(lo + i * n, self.lo, n * sizeof(double))
            else:
                memset(lo + i * n, 0, n * sizeof(double))
        a.mean = mean
        a.rstd = rstd
        a.lo = lo
        return 0

    cdef const double *reversed_samples(self, const double *values) except? NULL:
        """A parameter (N, C) from the last sample to the first; NULL where there is none."""
        cdef double *copy
        cdef Py_ssize_t i, n = self.channels
        if values == NULL:
            return NULL
        copy = self.workspace(self.samples, n)
        for i in range(self.samples):
            memcpy(copy + i * n, values + (self.samples - 1 - i) * n, n * sizeof(double))
        return copy

    cdef int reverse_samples(self, Job *a) except -1:
        """Let a job begin with the last sample: the pass before has left the last ones in cache."""
        reverse_outer(&a.x, self.samples)
        reverse_outer(&a.y, self.samples)
        reverse_outer(&a.dy, self.samples)
        a.channels.weight = self.reversed_samples(a.channels.weight)
        a.channels.bias = self.reversed_samples(a.channels.bias)
        a.channels.slopes = self.reversed_samples(a.channels.slopes)
        return 0

    cdef int forward_by_sample(self, const Plan *p) except -1:
        """Batch norm with a weight per sample, in columns: the statistics, then each sample with its parameters."""
        cdef Plan of_samples
        cdef Job a
        if not self.stats_given:
            self.reserve_statistics()
            self.fill_job(p, &a)
            launch(COLUMNS_MOMENTS, &a.head, self.bytes, "statistics")
        self.groups = self.channels
        self.plan(2, &of_samples)
        self.fill_job(&of_samples, &a)
        self.groups = 0
        self.spread_statistics(&a)
        if not self.stats_given:
            self.reverse_samples(&a)
            a.read_before = True
        a.stats_given = True
        return launch(COLUMNS_FORWARD, &a.head, self.bytes, "statistics")

    cdef int backward_by_sample(self) except -1:
        """Its backward: the sums of each sample, then those of the batch, with which each sample has its gradient."""
        cdef Plan of_samples
        cdef Job a
        cdef Py_ssize_t n = 2 * self.channels, i, k
        cdef double *sums = self.workspace(self.samples, n)
        self.groups = self.channels
        self.plan(3, &of_samples)
        self.fill_job(&of_samples, &a)
        self.groups = 0
        self.spread_statistics(&a)
        a.channels.grad_weight = self.grads
        a.channels.grad_bias = self.grads + self.grad_size()
        a.channels.grad_slope = self.grads + 2 * self.grad_size()
        if self.stats_given:
            return launch(COLUMNS_BACKWARD, &a.head, self.bytes, "sums")
        a.channels.sums = sums
        a.channels.sums_mode = SUMS_ONLY
        launch(COLUMNS_BACKWARD, &a.head, self.bytes, "sums")
        for i in range(1, self.samples):
            for k in range(n):
                sums[k] += sums[i * n + k]
        for i in range(1, self.samples):
            memcpy(sums + i * n, sums, n * sizeof(double))
        self.reverse_samples(&a)
        a.channels.sums_mode = SUMS_GIVEN
        a.channels.count = <double> self.unit_size()
        return launch(COLUMNS_BACKWARD, &a.head, self.bytes, "sums")

    cdef cnp.ndarray forward(self, cnp.ndarray out):
        """Compute the statistics, unless they are given, and apply them."""
        cdef Plan p
        cdef Job a
        self.resolve_output(&p, out, None)
        if self.elements == 0:
            self.empty_statistics()
            return self.result
        if self.per_sample and self.groups == 0 and p.family != UNITS:
            self.forward_by_sample(&p)
            return self.copy_out()
        if p.family != UNITS and not self.stats_given:  # the columns kernels need all of them between sums and results
            self.reserve_statistics()
        self.fill_job(&p, &a)
        launch(SEGMENTS_FORWARD if p.family == UNITS else COLUMNS_FORWARD, &a.head, self.bytes, "statistics")
        return self.copy_out()

    cdef int moments(self) except -1:
        """Compute mean, lo, m2 and rstd only."""
        cdef Plan p
        cdef Job a
        self.reserve_statistics()
        if self.elements == 0:
            self.empty_statistics()
            return 0
        self.plan(1, &p)
        if p.family == COPY:
            self.x = np.ascontiguousarray(self.x)
            self.plan(1, &p)
        self.fill_job(&p, &a)
        launch(SEGMENTS_MOMENTS if p.family == UNITS else COLUMNS_MOMENTS, &a.head, self.bytes, "statistics")
        return 0

    cdef void empty_statistics(self) noexcept:
        """The statistics of units without elements, where any are wanted."""
        cdef Py_ssize_t i
        if self.stats_given or (self.mean == NULL and self.lo == NULL and self.m2 == NULL and self.rstd == NULL):
            return
        for i in range(self.units()):
            if self.mean != NULL:
                self.mean[i] = 0
            if self.lo != NULL:
                self.lo[i] = 0
            if self.m2 != NULL:
                self.m2[i] = 0
            if self.rstd != NULL:
                self.rstd[i] = 1 / sqrt(self.eps) if self.eps > 0 else INFINITY

    cdef cnp.ndarray backward(self, cnp.ndarray grad_output, cnp.ndarray out, cnp.ndarray sums=None,
                              int sums_mode=SUMS_INTERNAL, double count=0):
        """grad_input, or None with SUMS_ONLY; `grads` then holds the parameters' gradients.

        `sums` (SUMS_ONLY, SUMS_GIVEN) has two values per unit, and SUMS_GIVEN the `count` of elements of a whole
        unit, of which the input may be a part.
        """
        cdef Plan p
        cdef Job a
        cdef Py_ssize_t rows = max(self.samples, 1) if self.groups or self.per_sample else 1
        cdef Py_ssize_t n = checked_product(rows, self.channels, "the gradients of the parameters of all samples")
        cdef double *g = self.workspace(n, 3)
        memset(g, 0, 3 * n * sizeof(double))
        self.grads = g
        if sums_mode == SUMS_ONLY:  # nothing is written: the input stands for the result
            self.result = self.y = self.x
            self.dy = grad_output
            self.plan(3, &p)
            if p.family == COPY:
                self.y = self.x = np.ascontiguousarray(self.x)
                self.dy = np.ascontiguousarray(self.dy)
                self.plan(3, &p)
        else:
            self.resolve_output(&p, out, grad_output)
        if not self.elements:
            if sums_mode == SUMS_ONLY:
                sums[...] = 0
        elif self.per_sample and self.groups == 0 and p.family != UNITS:
            self.backward_by_sample()
        else:
            # lo: the columns kernels of float64 always read it; of the segments kernels only those with given sums
            if p.family != UNITS and self.lo == NULL and self.dtype == FLOAT64:
                self.lo = self.workspace(self.units())
                memset(self.lo, 0, self.units() * sizeof(double))
            self.fill_job(&p, &a)
            if p.family == UNITS and sums_mode == SUMS_INTERNAL:
                a.lo = NULL
            a.channels.grad_weight = g
            a.channels.grad_bias = g + n
            a.channels.grad_slope = g + 2 * n
            a.channels.sums = float64_data(sums)
            a.channels.sums_mode = sums_mode
            a.channels.count = count
            launch(SEGMENTS_BACKWARD if p.family == UNITS else COLUMNS_BACKWARD, &a.head, self.bytes, "sums")
            if self.per_sample and self.groups == 0:  # (C, N) become (N, C)
                samples_first(g, rows, self.channels, self.workspace(n))
        if rows > 1 and not self.per_sample:
            sum_over_samples(g, rows, self.channels)
        return self.copy_out() if sums_mode != SUMS_ONLY else None


cdef void sum_over_samples(double *grads, Py_ssize_t rows, Py_ssize_t channels) noexcept:
    """Sum (3, rows, channels) over the rows, in their order and in place: (3, channels) remain, at the start."""
    cdef double *total = grads
    cdef const double *row
    cdef Py_ssize_t k, i, c
    for k in range(3):
        for c in range(channels):
            total[c] = 0 + grads[c]  # -0 becomes 0, as in any sum
        for i in range(1, rows):
            row = grads + i * channels
            for c in range(channels):
                total[c] += row[c]
        grads += rows * channels
        total += channels


cdef void reverse_outer(Tensor *tensor, Py_ssize_t n) noexcept:
    """Let the first of a tensor's axes, of n elements, count from its end. A tensor of none stays as it is."""
    if tensor.data != NULL:
        tensor.data += (n - 1) * tensor.strides[0]
        tensor.strides[0] = -tensor.strides[0]


cdef void samples_first(double *grads, Py_ssize_t samples, Py_ssize_t channels, double *workspace) noexcept:
    """(3, channels, samples) become (3, samples, channels), in place; the workspace holds one of the three."""
    cdef Py_ssize_t k, i, c
    for k in range(3):
        memcpy(workspace, grads, samples * channels * sizeof(double))
        for c in range(channels):
            for i in range(samples):
                grads[i * channels + c] = workspace[c * samples + i]
        grads += samples * channels


cdef object add_statistics(ChannelsCall call, object y):
    """What forward returns: the result, with the statistics where the caller gets them."""
    return y if call.mean_array is None else (y, call.mean_array, call.rstd_array)


cdef object batch_norm_forward(object input, object running_mean, object running_var, object count, object weight,
                               object bias, object training, object momentum, object eps, object out,
                               object channel_axis, object return_stats, object negative_slope, object clip):
    """batch_norm; in training, `count` (num_batches_tracked) grows by 1 where it is not None."""
    cdef ChannelsCall call = <ChannelsCall> ChannelsCall.__new__(ChannelsCall)
    cdef cnp.ndarray x = as_array(input, "input"), into = as_out(out, "out"), counter = as_running(
        count, "num_batches_tracked")
    cdef cnp.ndarray mean = as_running(running_mean, "running_mean")
    cdef cnp.ndarray var = as_running(running_var, "running_var")
    cdef cnp.ndarray w = as_array(weight, "weight"), b = as_array(bias, "bias")
    cdef bint with_statistics = return_stats
    cdef bint of_batch = as_flag(training, "training")
    cdef double factor = as_float(momentum, "momentum") if of_batch and mean is not None else 0
    cdef int axis
    cdef double arena[ARENA_DOUBLES]
    call.eps = as_float(eps, "eps")
    call.convert_activation(negative_slope, clip)
    channel_axis = as_int(channel_axis, "channel_axis")

    x = as_floats(x, "input")
    check_dims(x, "batch_norm", 2)
    axis = axis_of(channel_axis, cnp.PyArray_NDIM(x))
    if axis == 0:
        raise ValueError(hints().channel_axis_of_batch())
    check_tracked(x, axis, mean, var, w, b)
    if not of_batch and mean is None:
        raise hints().noted(RuntimeError("running_mean must be defined in evaluation mode"),
                            "training=True takes the statistics of this batch")
    call.set_axes(x, 0, axis, 0)
    call.use_arena(arena)
    if of_batch and call.unit_size() == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {size_list(x)}")
    check_eps("batch_norm", call.eps, of_batch)
    call.parameters(w, b, True)
    return tracked_forward(call, of_batch, mean, var, counter, factor, into, 1 if with_statistics else 0)


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
    if running_mean is None or call.elements == 0:  # no statistics to update, or none to update them with
        update_running(None, None, 0, NULL, NULL, 1, 0, count)
    else:
        update_running(running_mean, running_var, factor, of_channels(call, call.mean), of_channels(call, call.m2),
                       call.unit_size() - 1, call.channels, count)
    return result


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


cdef object instance_norm_forward(object input, object running_mean, object running_var, object weight,
                                  object bias, object use_input_stats, object momentum, object eps, object out,
                                  object channel_axis, object return_stats, object negative_slope, object clip):
    """instance_norm."""
    cdef ChannelsCall call = <ChannelsCall> ChannelsCall.__new__(ChannelsCall)
    cdef cnp.ndarray x = as_array(input, "input"), into = as_out(out, "out")
    cdef cnp.ndarray mean = as_running(running_mean, "running_mean")
    cdef cnp.ndarray var = as_running(running_var, "running_var")
    cdef cnp.ndarray w = as_array(weight, "weight"), b = as_array(bias, "bias")
    cdef bint with_statistics = return_stats
    cdef bint of_input = as_flag(use_input_stats, "use_input_stats")
    cdef double factor = as_float(momentum, "momentum") if of_input and mean is not None else 0
    cdef int axis
    cdef double arena[ARENA_DOUBLES]
    call.eps = as_float(eps, "eps")
    call.convert_activation(negative_slope, clip)
    channel_axis = as_int(channel_axis, "channel_axis")

    x = as_floats(x, "input")
    check_dims(x, "instance_norm", 2)
    axis = axis_of(channel_axis, cnp.PyArray_NDIM(x))
    check_tracked(x, axis, mean, var, w, b)
    if not of_input and mean is None:
        raise RuntimeError("Expected running_mean and running_var to be defined when use_input_stats is false")
    call.set_axes(x, -1 if axis == 0 else 0, axis, cnp.PyArray_DIM(x, axis))
    call.use_arena(arena)
    if of_input and call.unit_size() == 1:
        raise ValueError(f"Expected more than 1 spatial element when training, got input size {size_list(x)}")
    call.parameters(w, b, True)
    return tracked_forward(call, of_input, mean, var, None, factor, into, 2 if with_statistics else 0)


cdef object group_norm_forward(object input, object num_groups, object weight, object bias, object eps,
                               object out, object channel_axis, object return_stats, object negative_slope,
                               object clip):
    """group_norm."""
    cdef ChannelsCall call = <ChannelsCall> ChannelsCall.__new__(ChannelsCall)
    cdef cnp.ndarray x = as_array(input, "input"), into = as_out(out, "out")
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
        raise ValueError("Expected more than 1 value per channel when training, got input size "
                         f"{[call.samples * call.channels // groups, groups, *spatial]}")
    call.parameters(w, b, True)
    if with_statistics:
        call.return_statistics(2)
    return add_statistics(call, call.forward(into))


cdef object channel_norm_backward(object grad_output, object input, object num_groups, object mean, object rstd,
                                  object weight, object bias, object from_input, NormKind kind, object out,
                                  object channel_axis, object negative_slope, object clip):
    """Backward of the three norms. `from_input`: the statistics came from the input, so they have gradients."""
    cdef ChannelsCall call = <ChannelsCall> ChannelsCall.__new__(ChannelsCall)
    cdef cnp.ndarray x = as_array(input, "input"), dy = as_array(grad_output, "grad_output"), into = as_out(out, "out")
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
    call.parameters(w, b, True)
    return parameter_grads(call, call.backward(dy, into), w, b)


cdef tuple parameter_grads(ChannelsCall call, object grad_input, cnp.ndarray weight, cnp.ndarray bias):
    """What backward returns: the sums in the parameters' shapes and dtypes."""
    result = (grad_input, parameter_grad(call, 0, weight), parameter_grad(call, 1, weight if bias is None else bias))
    if call.slope_gradient:
        per_channel = channel_grads(call, 2)
        result += (slope_gradient(float64_array(per_channel, call.channels), call.slope_array),)
    return result


cdef object parameter_grad(ChannelsCall call, int which, cnp.ndarray parameter):
    """The gradient of weight (0) or bias (1)."""
    cdef cnp.npy_intp shape = call.channels
    if call.per_sample and call.has_samples(parameter):
        shape = call.grad_size()
        return gradient_from_sums(call.grads + which * shape, shape, parameter, call.dtype, 1, &shape)
    return gradient_from_sums(channel_grads(call, which), shape, parameter, call.dtype, 1, &shape)


cdef const double *channel_grads(ChannelsCall call, int which) except NULL:
    """Gradients per channel: those of all samples added up, in their order."""
    cdef double *grads = call.grads + which * call.grad_size()
    cdef double *total
    cdef Py_ssize_t i, c
    if not call.per_sample:
        return grads
    total = call.workspace(call.channels)
    memset(total, 0, call.channels * sizeof(double))
    for i in range(call.samples):
        for c in range(call.channels):
            total[c] += grads[i * call.channels + c]
    return total


def batch_norm_and_count(num_batches_tracked, input, running_mean, running_var, weight, bias, training, momentum,
                         eps, *, channel_axis, return_stats, negative_slope, clip):
    """`batch_norm` of a module: in training its counter grows by 1, together with the running statistics or not."""
    return batch_norm_forward(input, running_mean, running_var, num_batches_tracked, weight, bias, training,
                              momentum, eps, None, channel_axis, return_stats, negative_slope, clip)
