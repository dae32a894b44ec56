"""A call of a norm with a weight per channel: its arrays and parameters, and the jobs of its kernels."""

import numpy as np

cimport cython
cimport numpy as cnp
from libc.math cimport INFINITY, sqrt
from libc.string cimport memcpy, memset

from cnorm._call.arrays cimport (
    accumulation_size, accumulation_type, as_plain, checked_product, converted, copy_doubles, copy_if_overlapping,
    dtype_code, float64_array, float64_data, shape_of)
from cnorm._call.launch cimport launch
from cnorm._call.masks cimport Pieces, same_along
from cnorm._call.output cimport ChannelAxisCall, gradient_buffer, gradient_from_sums, set_tensor, slope_gradient
from cnorm._plan cimport COPY, MAX_DIMS, UNITS, Plan
from cnorm._pool cimport new_array
from cnorm.kernels.job cimport (
    COLUMNS_BACKWARD, COLUMNS_FORWARD, COLUMNS_MOMENTS, FLOAT64, ITEM_ELEMENTS, ITEM_ROWS, SEGMENTS_BACKWARD,
    SEGMENTS_FORWARD, SEGMENTS_MOMENTS, SUMS_INTERNAL, SUMS_ONLY, Job, has_slopes)

cnp.import_array()


@cython.no_gc
cdef class ParameterSets:
    """Parameters per sample of batch norm."""


@cython.no_gc
cdef class ChannelsCall(ChannelAxisCall):
    """One call of a norm with a weight per channel."""

    cdef int protect_inputs(self, cnp.ndarray written) except -1:
        ChannelAxisCall.protect_inputs(self, written)
        if self.sets is not None:
            self.sets.weight = copy_if_overlapping(self.sets.weight, written)
            self.sets.bias = copy_if_overlapping(self.sets.bias, written)
        if self.mean_array is not None:
            self.mean_array = copy_if_overlapping(self.mean_array, written)
            self.mean = float64_data(self.mean_array)
        if self.rstd_array is not None:
            self.rstd_array = copy_if_overlapping(self.rstd_array, written)
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
        copy = self.workspaces(max(self.samples, <Py_ssize_t> 1), n)
        if self.has_samples(values):
            copy_doubles(copy, self.samples * n, values, name)
            return copy
        copy_doubles(copy, n, values, name)
        for i in range(1, self.samples):
            memcpy(copy + i * n, copy, n * sizeof(double))
        return copy

    cdef bint has_samples(self, cnp.ndarray values) noexcept:
        """Whether a parameter is (N, C)."""
        return values is not None and cnp.PyArray_NDIM(values) == 2 and self.samples != 1 and (
            cnp.PyArray_DIM(values, 0) == self.samples and cnp.PyArray_DIM(values, 1) == self.channels)

    cdef Py_ssize_t grad_size(self) noexcept:
        """Elements of the gradient of a parameter in `grads`: per channel, or (per_sample) per sample and channel."""
        return self.samples * self.channels if self.per_sample else self.channels

    cdef int parameters(self, cnp.ndarray weight, cnp.ndarray bias, bint of_samples) except -1:
        """Take what is given per channel, or, where that is possible, per sample; and check the slopes."""
        self.per_sample = of_samples and (self.has_samples(weight) or self.has_samples(bias))
        if self.per_sample and self.groups == 0 and self.mask is None:
            self.take_sets(weight, bias)
        else:
            self.weight = self.parameter(weight, "weight")
            self.bias = self.parameter(bias, "bias")
        self.check_slope(self.channels)
        return 0

    cdef int take_sets(self, cnp.ndarray weight, cnp.ndarray bias) except -1:
        """Take parameters per sample of batch norm, where the family of kernels says in which type."""
        self.sets = <ParameterSets> ParameterSets.__new__(ParameterSets)
        self.sets.given_weight = weight
        self.sets.given_bias = bias
        self.sets.wide = self.dtype != FLOAT64 and (is_float64(weight) or is_float64(bias))
        self.sets.weight = self.set_array(weight, "weight")
        self.sets.bias = self.set_array(bias, "bias")
        return 0

    cdef cnp.ndarray set_array(self, cnp.ndarray values, str name):
        """A parameter, C-contiguous, of the accumulation type, which has its values exactly, or (wide) float64."""
        cdef cnp.ndarray a
        cdef int number = cnp.NPY_FLOAT64 if self.sets.wide else accumulation_type(self.dtype)
        if values is None:
            return None
        a = as_plain(values, name)
        if not self.has_samples(a) and cnp.PyArray_SIZE(a) != self.channels:
            raise RuntimeError(f"{name} should contain {self.channels} elements not {cnp.PyArray_SIZE(a)}")
        return a if cnp.PyArray_TYPE(a) == number else converted(a, number)

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

    cdef int reserve_statistics(self) except -1:
        """Workspace for all statistics that have none."""
        self.reserve(&self.mean)
        self.reserve(&self.rstd)
        self.reserve(&self.lo)
        self.reserve(&self.m2)
        return 0

    cdef int fill_job(self, const Plan *p, Job *a) except -1:
        """Describe the call to a kernel."""
        cdef int i
        self.begin_job(self.eps, a)
        for i in range(5):
            a.shape[i] = p.shape[i]
        set_tensor(&a.x, self.x, p, 0)
        if self.y is not None:
            set_tensor(&a.y, self.y, p, 1)
        if self.dy is not None:
            set_tensor(&a.dy, self.dy, p, 2)
        a.centred = True
        a.stats_given = self.stats_given
        if self.groups:
            a.channels.by_segment = True  # a segment is a channel of a group
            a.channels.channels_per_group = self.channels // self.groups
            a.channels.inner_channels = a.channels.channels_per_group
            a.channels.segment_channels = 1
            a.channels.sample_channels = self.channels if self.per_sample else 0
        else:
            a.channels.channels_per_group = 1
            a.channels.inner_channels = 1
            if self.per_sample and p.family == UNITS:
                a.channels.by_segment = True  # a segment is a sample of a channel
                a.channels.segment_channels = self.channels
        a.mean = self.mean
        a.rstd = self.rstd
        a.m2 = self.m2
        a.lo = self.lo
        a.channels.weight = self.weight
        a.channels.bias = self.bias
        a.channels.slopes = float64_data(self.slopes)
        if self.per_sample and self.slopes is not None and (self.sets is None or p.family == UNITS):
            a.channels.slopes = self.parameter(self.slopes, "negative_slope")
        return 0

    cdef int spread_statistics(self, Job *a) except -1:
        """Give a job whose units are channels of a sample the statistics of the channels."""
        cdef Py_ssize_t n = self.channels, i
        cdef double *mean = self.workspaces(self.samples, n)
        cdef double *rstd = self.workspaces(self.samples, n)
        cdef double *lo = self.workspaces(self.samples, n)
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

    cdef int widen_sets(self) except -1:
        """Take the parameters of all samples in float64, as the segments kernels do."""
        self.weight = self.parameter(self.sets.weight, "weight")
        self.bias = self.parameter(self.sets.bias, "bias")
        return 0

    cdef int fill_sets_job(self, int arrays, Job *a) except -1:
        """Describe batch norm with parameters per sample, in columns, to a kernel: the samples share the statistics."""
        cdef Plan of_samples
        cdef Py_ssize_t size
        self.groups = self.channels
        self.plan(arrays, &of_samples)
        self.fill_job(&of_samples, a)
        self.groups = 0
        a.channels.of_batch = True
        a.channels.sample_channels = 0
        a.channels.wide_sets = self.sets.wide
        size = sizeof(double) if self.sets.wide else accumulation_size(self.dtype)
        if self.sets.weight is not None:
            a.channels.set_weight = cnp.PyArray_DATA(self.sets.weight)
            a.channels.weight_step = size * self.channels if self.has_samples(self.sets.weight) else 0
        if self.sets.bias is not None:
            a.channels.set_bias = cnp.PyArray_DATA(self.sets.bias)
            a.channels.bias_step = size * self.channels if self.has_samples(self.sets.bias) else 0
        return 0

    cdef int forward_by_sample(self, const Plan *p) except -1:
        """Batch norm with parameters per sample, in columns: the statistics, then each sample with its parameters."""
        cdef Job a
        if not self.stats_given:
            self.reserve_statistics()
            self.fill_job(p, &a)
            launch(COLUMNS_MOMENTS, &a.head, self.bytes, "statistics")
        self.fill_sets_job(2, &a)
        a.read_before = not self.stats_given
        a.stats_given = True
        return launch(COLUMNS_FORWARD, &a.head, self.bytes, "statistics")

    cdef int backward_by_sample(self) except -1:
        """Its backward. Gradients that a kernel can write as the caller gets them are arrays, the others `grads`."""
        cdef Job a
        cdef ParameterSets sets = self.sets
        cdef Py_ssize_t n = checked_product(self.samples, self.channels, "the gradients of all sets of parameters")
        self.fill_sets_job(3, &a)
        sets.grad_weight = self.sets_gradient(sets.given_weight)
        sets.grad_bias = self.sets_gradient(sets.given_weight if sets.given_bias is None else sets.given_bias)
        if sets.grad_weight is None or sets.grad_bias is None or has_slopes(self.activation):
            self.grads = self.workspaces(n, 3)
            a.channels.grad_weight = self.grads
            a.channels.grad_bias = self.grads + n
            a.channels.grad_slope = self.grads + 2 * n
        if sets.grad_weight is not None:
            a.channels.final_weight = cnp.PyArray_DATA(sets.grad_weight)
        if sets.grad_bias is not None:
            a.channels.final_bias = cnp.PyArray_DATA(sets.grad_bias)
        return launch(COLUMNS_BACKWARD, &a.head, self.bytes, "sums")

    cdef cnp.ndarray sets_gradient(self, cnp.ndarray parameter):
        """An array for the gradient of a parameter (N, C) of the accumulation type; else None."""
        if not self.has_samples(parameter):
            return None
        return gradient_buffer(parameter, self.dtype, 2, cnp.PyArray_DIMS(parameter))

    cdef cnp.ndarray forward(self, cnp.ndarray out):
        """Compute the statistics, unless they are given, and apply them."""
        cdef Plan p
        cdef Job a
        self.resolve_output(&p, out, None)
        if self.elements == 0:
            self.empty_statistics()
            return self.result
        if self.mask is not None:
            self.run_masked(False)
            return self.copy_out()
        if self.sets is not None:
            if p.family != UNITS:
                self.forward_by_sample(&p)
                return self.copy_out()
            self.widen_sets()
        if p.family != UNITS and not self.stats_given:  # the columns kernels need all of them between sums and results
            self.reserve_statistics()
        self.fill_job(&p, &a)
        launch(SEGMENTS_FORWARD if p.family == UNITS else COLUMNS_FORWARD, &a.head, self.bytes, "statistics")
        return self.copy_out()

    # ---- masks ----

    cdef cnp.ndarray grouped(self, cnp.ndarray a, Py_ssize_t groups):
        """A view of an array as (samples, groups, channels of a group, spatial axes); of a mask too."""
        cdef list spatial = [i for i in range(cnp.PyArray_NDIM(self.x))
                             if i not in (self.batch_axis, self.channel_axis)]
        cdef list order = ([self.batch_axis] if self.batch_axis >= 0 else []) + [self.channel_axis] + spatial
        cdef list ones = []
        cdef cnp.ndarray view
        if a is None:
            return None
        if len(order) > MAX_DIMS - 2:  # there are two axes more here; of so many some have size 1
            ones = [i for i in spatial if cnp.PyArray_DIM(self.x, i) == 1][:2]
        view = a.transpose([i for i in order if i not in ones] + ones)
        if ones:
            view = view.reshape(shape_of(view)[:len(order) - len(ones)])
        if self.batch_axis < 0:
            view = view[None]
        shape = shape_of(view)
        channels = (groups, shape[1] // groups) if shape[1] == self.channels else (1, 1)
        return view.reshape((shape[0], *channels, *shape[2:]))

    cdef object masked_counts(self):
        """How many elements of each unit count."""
        cdef Py_ssize_t groups = self.groups or self.channels
        cdef cnp.ndarray where, counts, x = self.grouped(self.x, groups)
        self.mask.scan(self.batch_axis, self.channel_axis)
        where = self.grouped(self.mask.where, groups)
        counts = where
        if self.mask.counts is not None:  # of each channel of each sample
            counts = self.mask.counts.reshape(-1, groups, self.channels // groups)
        axes = [i for i in range(cnp.PyArray_NDIM(x)) if i != 1 and (i != 0 or self.groups == 0)]
        counts = np.add.reduce(counts, tuple([i for i in axes if i < cnp.PyArray_NDIM(counts)]), dtype=np.float64)
        for i in axes:
            if cnp.PyArray_DIM(where, i) == 1:
                counts = counts * cnp.PyArray_DIM(x, i)
        units = list(shape_of(x)[:2]) if self.groups else [cnp.PyArray_DIM(x, 1)]
        return np.array(np.broadcast_to(counts, units), order="C")

    cdef int run_masked(self, bint backward) except -1:
        """Run the call in pieces. A unit whose parts have masks of their own (the samples of a channel, the channels of
        a group) is made of the moments and sums of these."""
        cdef Pieces pieces = <Pieces> Pieces.__new__(Pieces)
        cdef Job *a = &pieces.m.job
        cdef Py_ssize_t groups = self.groups or self.channels, n
        cdef bint of_batch = self.groups == 0, given = self.stats_given, in_rows
        cdef list views = [self.grouped(one, groups) for one in (self.x, self.y, self.dy, None)]
        cdef cnp.ndarray where
        cdef cnp.ndarray x = views[0]
        cdef list spatial = list(range(3, cnp.PyArray_NDIM(x))), outer = [0], unit = [1], part = [], segment = [2]
        cdef list inner = spatial
        self.mask.scan(self.batch_axis, self.channel_axis)
        where = self.grouped(self.mask.where, groups)
        for i in (2, 1):
            if same_along(where, i):
                where = where[(slice(None),) * i + (slice(0, 1),)]
        varies = cnp.PyArray_DIM(where, 1) > 1
        ragged = cnp.PyArray_DIM(where, 2) > 1
        in_rows = self.channels > 1 and not varies and not ragged and not is_channels_first(views, spatial) and all(
            [one is None or is_contiguous_pair(one) for one in views])
        if of_batch and given and not (in_rows and not spatial and not self.per_sample):
            of_batch = False  # each sample by itself, with the statistics of its channels
        self.fill_masked_job(a, of_batch, backward)
        if in_rows:
            outer, unit, segment = [0], [], []
        if of_batch:
            outer = []
            if in_rows and not spatial and not self.per_sample:
                inner = [0]
            elif varies and not in_rows and not self.per_sample:
                outer, unit, inner = [1], [], [0, *spatial]
            else:
                part = [0]
                if varies:
                    outer, unit = [1], []
        elif ragged:
            outer, unit, part, segment = [0, 1], [], [2], []
        elif varies:
            outer, unit = [0, 1], []
        pieces.m.backward = backward
        pieces.m.zero = backward or not self.mask.keeps
        pieces.set_arrays(views, where, ITEM_ROWS if in_rows else ITEM_ELEMENTS, outer, unit, part, segment, inner,
                          self.mask.plain_bytes)
        pieces.m.merges = pieces.m.part.size > 1
        pieces.m.channels = 1 if of_batch or ragged else self.channels // groups
        pieces.m.groups = 0 if of_batch else groups
        pieces.m.per_sample = self.per_sample
        pieces.m.part_channels = self.channels
        if in_rows:
            pieces.m.stats_per_piece = groups
            a.channels.channels_per_group = self.channels // groups
        if backward and (pieces.m.merges or in_rows):  # these kernels read it
            if self.lo == NULL:
                self.lo = self.workspace(self.units())
                memset(self.lo, 0, self.units() * sizeof(double))
            if a.lo == NULL and not (self.groups == 0 and not of_batch):
                a.lo = self.lo
        if backward:
            pieces.run(COLUMNS_BACKWARD if in_rows else SEGMENTS_BACKWARD, self.bytes)
            n = max(self.samples, 1)
            if n > 1 and not self.per_sample:
                sum_over_samples(self.grads, n, self.channels)
            return 0
        pieces.m.moments = COLUMNS_MOMENTS if in_rows else SEGMENTS_MOMENTS
        return pieces.run(COLUMNS_FORWARD if in_rows else SEGMENTS_FORWARD, self.bytes)

    cdef int fill_masked_job(self, Job *a, bint of_batch, bint backward) except -1:
        """The job of which `run_masked` makes pieces."""
        cdef Py_ssize_t n = max(self.samples, 1) * self.channels
        self.begin_job(self.eps, a)
        a.centred = True
        a.stats_given = self.stats_given
        a.channels.by_segment = not of_batch
        a.channels.inner_channels = self.channels // self.groups if self.groups else 1
        a.channels.segment_channels = 0 if of_batch else 1
        a.channels.channels_per_group = 1
        a.channels.weight = self.weight
        a.channels.bias = self.bias
        a.channels.slopes = float64_data(self.slopes)
        if not backward and not self.stats_given:
            self.reserve_statistics()
        a.mean = self.mean
        a.rstd = self.rstd
        a.m2 = self.m2
        a.lo = self.lo
        if self.groups == 0 and not of_batch:
            self.spread_statistics(a)
        if backward:
            a.channels.grad_weight = self.grads
            a.channels.grad_bias = self.grads + n
            a.channels.grad_slope = self.grads + 2 * n
        return 0

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
        cdef Py_ssize_t rows = max(self.samples, 1) if self.groups or self.per_sample or self.mask is not None else 1
        cdef Py_ssize_t n = checked_product(rows, self.channels, "the gradients of the parameters of all samples")
        cdef double *g
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
        if self.sets is not None and self.elements:
            if p.family != UNITS:
                self.backward_by_sample()
                return self.copy_out()
            self.widen_sets()
        g = self.workspaces(n, 3)
        memset(g, 0, 3 * n * sizeof(double))
        self.grads = g
        if not self.elements:
            if sums_mode == SUMS_ONLY:
                sums[...] = 0
        elif self.mask is not None:
            self.run_masked(True)
            return self.copy_out()
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
        if rows > 1 and not self.per_sample:
            sum_over_samples(g, rows, self.channels)
        return self.copy_out() if sums_mode != SUMS_ONLY else None


cdef bint is_channels_first(list views, list spatial) except -1:
    """Whether elements of a channel lie side by side, in all views (samples, groups, channels, spatial axes)."""
    cdef cnp.ndarray a
    for one in views:
        a = one
        if a is not None and (not spatial or cnp.PyArray_STRIDE(a, spatial[-1]) != cnp.PyArray_ITEMSIZE(a)):
            return False
    return True


cdef bint is_contiguous_pair(cnp.ndarray a) noexcept:
    """Whether the channels of a view lie side by side."""
    cdef Py_ssize_t expected = cnp.PyArray_ITEMSIZE(a)
    cdef int i
    for i in (2, 1):
        if cnp.PyArray_DIM(a, i) > 1 and cnp.PyArray_STRIDE(a, i) != expected:
            return False
        expected *= cnp.PyArray_DIM(a, i)
    return True


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


cdef bint is_float64(cnp.ndarray a) noexcept:
    return a is not None and dtype_code(a) == FLOAT64


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
    cdef cnp.ndarray written = None
    if call.sets is not None:
        written = call.sets.grad_bias if which else call.sets.grad_weight
    if written is not None:
        return written
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
