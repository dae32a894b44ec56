"""Norms with a weight per element of a row: layer and rms norm, from arguments to kernels."""

import numpy as np

cimport numpy as cnp
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.string cimport memset

from cnorm._call.arrays cimport (accumulation_type, as_array, as_doubles, as_flag, as_float, as_floats, as_int,
                                 as_out, as_plain, as_size, check_no_overlap, checked_out, checked_product, converted,
                                 copy_if_overlapping, dtype_code, float64_array, float64_data, is_native,
                                 is_plain_array, is_plain_vector, may_overlap, new_float64, same_shape, shape_of,
                                 writable_in_place)
from cnorm._call.checks cimport as_axes, as_gradient, as_row_shape, axis_of, check_row, row_axes
from cnorm._call.launch cimport launch
from cnorm._call.output cimport (
    ARENA_DOUBLES, Call, gradient_buffer, gradient_from_sums, set_tensor, slope_gradient)
from cnorm._plan cimport ARRAYS, COLUMNS, MAX_DIMS, Plan, plan_row_axes, plan_rows
from cnorm._pool cimport empty_like, new_array
from cnorm._runtime cimport threads_for
from cnorm.kernels.job cimport (
    ACT_SLOPE, ACT_SLOPES, COLUMNS_BACKWARD, COLUMNS_FORWARD, FLOAT64, ROWS_BACKWARD, ROWS_FORWARD, Job)

cnp.import_array()

cdef enum:
    MAX_SHARED_ONES = 8192   # elements; for a longer row a call makes its own

# Made once and never replaced, so that a thread which has either reads no other length than it was told.
cdef cnp.ndarray ONES32 = np.ones(MAX_SHARED_ONES, np.float32)
cdef cnp.ndarray ONES64 = np.ones(MAX_SHARED_ONES, np.float64)


cdef cnp.ndarray ones(Py_ssize_t n, int dtype):
    """A weight of at least n elements where there is none; never written."""
    if n > MAX_SHARED_ONES:
        return np.ones(n, np.float64 if dtype == FLOAT64 else np.float32)
    return ONES64 if dtype == FLOAT64 else ONES32


cdef cnp.ndarray row_parameter(cnp.ndarray values, str name, int dtype):
    """A row's parameter as the loops take it: contiguous, of the accumulation type."""
    if values is None:
        return None
    cdef cnp.ndarray a = as_plain(values, name)
    cdef int number = accumulation_type(dtype)
    return a if cnp.PyArray_TYPE(a) == number else converted(a, number)


cdef class RowsCall(Call):
    """One call of layer or rms norm."""
    cdef cnp.ndarray weight, bias                    # as the kernels take them: (sets, elements of a row)
    cdef cnp.ndarray mean, rstd
    cdef cnp.ndarray grad_weight, grad_bias          # as the caller gets them, where kernels can write that
    cdef cnp.ndarray unit_slopes, unit_slope_grads   # where there is a slope per row
    cdef int normalized                              # axes of a row
    cdef bint trailing                               # these are the last ones
    cdef int axes[MAX_DIMS]                          # of the units, then of a row, as its elements count in memory
    cdef int places[MAX_DIMS]                        # for each dimension of normalized_shape: its place among the latter
    cdef Py_ssize_t length                           # elements of a row
    cdef tuple sets                                  # sizes of the units' axes along which weight or bias differ, else 1
    cdef Py_ssize_t param_sets, units_per_set        # job.pxd
    cdef double *grads                               # after backward: (runs, 3, length) of weight, bias and slope
    cdef bint centred                                # layer norm; else rms norm
    cdef double eps

    cdef int set_rows(self, cnp.ndarray x, int normalized, tuple row_axes, bint centred, double eps) except -1:
        """Take the input. `row_axes` are the axes of normalized_shape; None: the last ones."""
        cdef int i, first = cnp.PyArray_NDIM(x) - normalized
        self.set_input(x)
        self.normalized = normalized
        self.trailing = row_axes is None
        self.centred = centred
        self.eps = eps
        self.length = 1
        self.param_sets = 1
        for i in range(cnp.PyArray_NDIM(x)):
            self.axes[i] = i
        for i in range(normalized):
            self.places[i] = i
        if not self.trailing:
            order = [axis for _, axis in sorted([(-abs((<object> x).strides[axis]), axis) for axis in row_axes])]
            for i, axis in enumerate([axis for axis in range(cnp.PyArray_NDIM(x)) if axis not in row_axes] + order):
                self.axes[i] = axis
            for i in range(normalized):
                self.places[i] = order.index(row_axes[i])
        for i in range(normalized):
            self.length *= cnp.PyArray_DIM(x, self.axes[first + i])
        return 0

    cdef int protect_inputs(self, cnp.ndarray written) except -1:
        Call.protect_inputs(self, written)
        self.weight = copy_if_overlapping(self.weight, written)
        self.bias = copy_if_overlapping(self.bias, written)
        self.mean = copy_if_overlapping(self.mean, written)
        self.rstd = copy_if_overlapping(self.rstd, written)
        self.unit_slopes = copy_if_overlapping(self.unit_slopes, written)
        return 0

    cdef Py_ssize_t rows(self) noexcept:
        """How many rows the input has."""
        cdef Py_ssize_t n = 1
        cdef int i
        for i in range(cnp.PyArray_NDIM(self.x) - self.normalized):
            n *= cnp.PyArray_DIM(self.x, self.axes[i])
        return n

    cdef tuple stats_shape(self):
        """The shape of the statistics: the input's, with ones for the axes of a row."""
        shape = list(shape_of(self.x))
        for i in range(cnp.PyArray_NDIM(self.x) - self.normalized, cnp.PyArray_NDIM(self.x)):
            shape[self.axes[i]] = 1
        return tuple(shape)

    cdef int use_packed(self, bytes packed) except -1:
        """Take mean and rstd from, or let them be written to, packed statistics."""
        self.rstd = packed_view(packed, self.rows(), 0)
        if self.centred:
            self.mean = packed_view(packed, self.rows(), 1)
        return 0

    cdef int plan(self, int arrays, Plan *p) except -1:
        cdef const Py_ssize_t *shape
        cdef const Py_ssize_t *strides[ARRAYS]
        cdef int ndim = cnp.PyArray_NDIM(self.x)
        self.layouts(arrays, &shape, strides)
        if self.trailing:
            plan_rows(p, ndim, shape, strides, arrays, self.normalized, cnp.PyArray_ITEMSIZE(self.x))
        else:
            plan_row_axes(p, ndim, shape, strides, arrays, self.axes, self.normalized,
                          self.units_per_set if self.param_sets > 1 else 0, cnp.PyArray_ITEMSIZE(self.x))
        return 0

    cdef cnp.ndarray copy_in_order(self, cnp.ndarray a):
        if self.trailing:
            return np.ascontiguousarray(a)
        order = self.all_axes()
        return np.ascontiguousarray(a.transpose(order)).transpose(np.argsort(order))

    cdef list all_axes(self):
        return [self.axes[i] for i in range(cnp.PyArray_NDIM(self.x))]

    cdef int fill_job(self, const Plan *p, bint fuse_add, Job *a) except -1:
        """Describe the call to a kernel. With `fuse_add`, dy and addend are the terms of the sum."""
        cdef int i
        memset(a, 0, sizeof(Job))
        for i in range(5):
            a.shape[i] = p.shape[i]
        a.head.dtype = self.dtype
        a.head.threads = threads_for(self.bytes)
        set_tensor(&a.x, self.x, p, 0)
        set_tensor(&a.y, self.y, p, 1)
        if fuse_add:
            a.elements.fuse_add = True
            set_tensor(&a.elements.addend[0], self.dy, p, 2)
            set_tensor(&a.elements.addend[1], self.addend, p, 3)
        else:
            if self.dy is not None:
                set_tensor(&a.dy, self.dy, p, 2)
            if self.addend is not None:
                a.elements.add_to_grad = True
                set_tensor(&a.elements.addend[0], self.addend, p, 3)
        a.centred = self.centred
        a.activation = self.activation
        a.slope = self.slope
        a.low = self.low
        a.high = self.high
        a.eps = self.eps
        a.mean = float64_data(self.mean)
        a.rstd = float64_data(self.rstd)
        if self.weight is not None:
            a.elements.weight = cnp.PyArray_DATA(self.weight)
        if self.bias is not None:
            a.elements.bias = cnp.PyArray_DATA(self.bias)
        if self.slopes is not None:
            a.elements.slopes = cnp.PyArray_DATA(self.slopes)
        a.elements.param_sets = self.param_sets
        a.elements.units_per_set = self.units_per_set
        a.elements.unit_slopes = float64_data(self.unit_slopes)
        a.elements.unit_slope_grads = float64_data(self.unit_slope_grads)
        if p.family == COLUMNS:
            self.fill_statistics(a, not fuse_add and self.dy is not None)
        return 0

    cdef int fill_statistics(self, Job *a, bint backward) except -1:
        """The columns kernels need all statistics between sums and results; backward only mean and lo."""
        cdef Py_ssize_t rows = self.rows()
        a.channels.channels_per_group = 1
        if a.mean == NULL:
            a.mean = self.workspace(rows)
            memset(a.mean, 0, rows * sizeof(double))
        if not backward or self.dtype == FLOAT64:
            a.lo = self.workspace(rows)
            memset(a.lo, 0, rows * sizeof(double))
        if not backward:
            a.m2 = self.workspace(rows)
            if a.rstd == NULL:
                a.rstd = self.workspace(rows)
        return 0

    # ---- parameters ----

    cdef tuple sets_of(self, cnp.ndarray values):
        """The sizes of a parameter along the units' axes, where it has them and differs along any; else ()."""
        cdef int i, first = cnp.PyArray_NDIM(self.x) - self.normalized
        if values is None or first == 0 or cnp.PyArray_NDIM(values) != cnp.PyArray_NDIM(self.x):
            return ()
        sets = tuple([cnp.PyArray_DIM(values, self.axes[i]) for i in range(first)])
        return sets if any([n != 1 for n in sets]) else ()

    cdef int choose_sets(self, cnp.ndarray weight, cnp.ndarray bias) except -1:
        """How units share weight and bias: unit u takes set u // units_per_set % param_sets."""
        cdef int first = cnp.PyArray_NDIM(self.x) - self.normalized
        cdef tuple one = self.sets_of(weight), other = self.sets_of(bias)
        if not one and not other:
            return 0
        sizes = [cnp.PyArray_DIM(self.x, self.axes[i]) for i in range(first)]
        sets = [m if n == 1 else n for n, m in zip(one or (1,) * first, other or (1,) * first)]
        differing = [i for i in range(first) if sets[i] != 1]
        if any([sizes[i] != 1 and sets[i] == 1 for i in range(differing[0], differing[-1])]):
            sets, differing = sizes, [0, first - 1]  # an axis in between is shared: a set for each unit
        self.sets = tuple(sets)
        self.param_sets = product(sets)
        self.units_per_set = product(sizes[differing[-1] + 1:])
        return 0

    cdef object as_row(self, object values, bint shared):
        """A parameter with the axes of the units, if not shared, then those of a row in the order of its elements."""
        cdef int first = cnp.PyArray_NDIM(self.x) - self.normalized, i
        if not shared:
            return values.transpose(self.all_axes())
        order = [i for _, i in sorted([(self.places[i], i) for i in range(self.normalized)])]
        if values.ndim == self.normalized:
            return values.transpose(order)
        return values.transpose(self.all_axes()).reshape([cnp.PyArray_DIM(self.x, self.axes[first + i])
                                                          for i in range(self.normalized)])

    cdef cnp.ndarray lay_out(self, cnp.ndarray values, str name):
        """A parameter as the kernels take it."""
        cdef int first = cnp.PyArray_NDIM(self.x) - self.normalized
        if values is None:
            return None
        shared = not self.sets_of(values)
        if self.sets is None and (self.trailing or self.normalized == 1):
            return row_parameter(values, name, self.dtype)
        laid = self.as_row(values, shared)
        if self.sets is not None:
            laid = np.broadcast_to(laid, self.sets + laid.shape[laid.ndim - self.normalized:])
        return row_parameter(laid, name, self.dtype)

    cdef int parameters(self, cnp.ndarray weight, cnp.ndarray bias, bint always, bint zero_centred) except -1:
        """Take weight and bias. A weight of ones stands in where only others are given, or `always`."""
        self.choose_sets(weight, bias)
        self.weight = self.lay_out(weight, "weight")
        self.bias = self.lay_out(bias, "bias")
        if zero_centred and self.weight is not None:
            self.weight = np.add(self.weight, 1, dtype=self.weight.dtype)
        if self.weight is None and (self.bias is not None or self.activation == ACT_SLOPES or always):
            self.weight = ones(checked_product(self.length, self.param_sets, "the weight"), self.dtype)
        return 0

    cdef Py_ssize_t runs(self) noexcept:
        """Of rows that share a set of parameters, each of which has gradients of its own."""
        return self.rows() // self.units_per_set if self.param_sets > 1 and self.units_per_set else 1

    cdef bint kernels_write(self, cnp.ndarray parameter) except -1:
        """Whether the kernels' gradient of a parameter is the one that the caller gets."""
        if not self.trailing:
            return False
        if self.sets is None:
            return True
        return self.sets_of(parameter) == self.sets and self.runs() == self.param_sets

    cdef cnp.ndarray totals(self, int which, tuple of_parameter, bint shared, object order):
        """A gradient in double, in the order of the parameter: the sums of all runs of rows that share its elements."""
        cdef int first = cnp.PyArray_NDIM(self.x) - self.normalized
        cdef Py_ssize_t runs = self.runs()
        if self.elements == 0:
            return np.zeros(of_parameter)
        row = [cnp.PyArray_DIM(self.x, self.axes[i]) for i in range(first, cnp.PyArray_NDIM(self.x))]
        sums = float64_array(self.grads, runs * 3 * self.length).reshape(runs, 3, self.length)[:, which]
        if shared or self.sets is None:
            sums = sums.sum(0).reshape(row)
            places = [self.places[i] for i in range(self.normalized)]
            if len(of_parameter) != self.normalized:  # of the input's rank
                places = np.argsort(order[first:])
            return np.ascontiguousarray(sums.transpose(places)).reshape(of_parameter)
        units = [cnp.PyArray_DIM(self.x, self.axes[i]) for i in range(first)]
        for i in range(first - 1, -1, -1):  # the axes after the last that differs share their set
            if product(units) != runs:
                units[i] = 1
        sums = sums.reshape(units + row)
        alike = tuple([i for i in range(first) if of_parameter[self.axes[i]] == 1])
        sums = sums.sum(alike, keepdims=True)
        return np.ascontiguousarray(sums.transpose(np.argsort(order))).reshape(of_parameter)

    cdef object parameter_gradient(self, int which, cnp.ndarray written, cnp.ndarray parameter, tuple shape):
        """The gradient of weight (0) or bias (1), in its shape and dtype; without one, in normalized_shape."""
        cdef cnp.ndarray sums
        if written is not None:
            return written
        of_parameter = shape if parameter is None else shape_of(parameter)
        sums = self.totals(which, of_parameter, not self.sets_of(parameter), self.all_axes())
        return gradient_from_sums(float64_data(sums), cnp.PyArray_SIZE(sums), parameter, self.dtype,
                                  cnp.PyArray_NDIM(sums), cnp.PyArray_DIMS(sums))

    # ---- the call ----

    cdef cnp.ndarray forward(self, cnp.ndarray out, cnp.ndarray one=None, cnp.ndarray other=None):
        """Compute the norm of x; with `one` and `other`, of their sum, which is written to x."""
        cdef Plan p
        cdef Job a
        self.resolve_output(&p, out, one, other)
        if self.elements == 0:
            self.empty_statistics()
            return self.result
        self.fill_job(&p, one is not None, &a)
        launch(COLUMNS_FORWARD if p.family == COLUMNS else ROWS_FORWARD, &a.head, self.bytes, "statistics")
        return self.copy_out()

    cdef int empty_statistics(self) except -1:
        """The statistics of rows without elements, where any are wanted."""
        if self.mean is not None:
            self.mean[...] = 0
        if self.rstd is not None:
            self.rstd[...] = 1 / np.sqrt(self.eps) if self.eps > 0 else np.inf
        return 0

    cdef cnp.ndarray backward(self, cnp.ndarray grad_output, cnp.ndarray out, cnp.ndarray addend=None):
        """grad_input, to which `addend` is added. The sums of weight, bias and slope go to `grads`, but to
        grad_weight and grad_bias where these are arrays."""
        cdef Plan p
        cdef Job a
        cdef Py_ssize_t n = checked_product(self.length, self.runs(), "the gradients of all sets of parameters")
        self.grads = self.workspace(n, 3)
        self.resolve_output(&p, out, grad_output, addend)
        if self.elements:
            self.fill_job(&p, False, &a)
            a.elements.grad_weight = self.grads
            a.elements.grad_bias = a.elements.grad_weight + self.length
            a.elements.grad_slope = a.elements.grad_bias + self.length
            if self.grad_weight is not None:
                a.elements.final_weight = cnp.PyArray_DATA(self.grad_weight)
            if self.grad_bias is not None:
                a.elements.final_bias = cnp.PyArray_DATA(self.grad_bias)
            launch(COLUMNS_BACKWARD if p.family == COLUMNS else ROWS_BACKWARD, &a.head, self.bytes, "sums")
        else:
            memset(self.grads, 0, 3 * n * sizeof(double))
            for a_gradient in (self.grad_weight, self.grad_bias):
                if a_gradient is not None:
                    a_gradient[...] = 0
        return self.copy_out()


cdef object product(object sizes):
    n = 1
    for size in sizes:
        n *= size
    return n


cdef Py_ssize_t packed_size(Py_ssize_t rows, bint centred) except -1:
    """Bytes of packed statistics."""
    return checked_product(rows, sizeof(double) * (2 if centred else 1), "the statistics of the rows")


cdef bytes packed_statistics(Py_ssize_t rows, bint centred):
    """Bytes for a kernel to write packed statistics to."""
    return PyBytes_FromStringAndSize(NULL, packed_size(rows, centred))


cdef cnp.ndarray packed_view(bytes packed, Py_ssize_t rows, int which):
    """Packed statistics `which` (0 rstd, 1 mean) as an array."""
    cdef cnp.npy_intp n = rows
    cdef cnp.ndarray a = <cnp.ndarray> cnp.PyArray_SimpleNewFromData(
        1, &n, cnp.NPY_FLOAT64, PyBytes_AS_STRING(packed) + which * rows * sizeof(double))
    cnp.set_array_base(a, packed)
    return a


cdef object forward_contiguous(object input, object normalized_shape, object weight, object bias, bint centred,
                               bint machine_epsilon, double eps, object out, Statistics wanted):
    """layer_norm or rms_norm of C-contiguous native arrays over the last axis; None where the general call must look.

    The arrays may be large. Of small ones, everything here must cost less than the norm itself: 16 float32
    elements take about 0.2 us, and the general call 0.35 us more.
    """
    cdef cnp.ndarray x, y
    cdef cnp.ndarray mean = None, rstd = None
    cdef bytes packed = None
    cdef int number, dtype, ndim, i
    cdef Py_ssize_t n, rows
    cdef cnp.npy_intp shape[MAX_DIMS]
    cdef Job a
    if not cnp.PyArray_CheckExact(input):
        return None
    x = <cnp.ndarray> input
    dtype = dtype_code(x)
    ndim = cnp.PyArray_NDIM(x)
    if dtype < 0 or not cnp.PyArray_IS_C_CONTIGUOUS(x) or not is_native(x) or ndim < 1 or ndim > MAX_DIMS:
        return None
    n = cnp.PyArray_DIM(x, ndim - 1)
    if type(normalized_shape) is tuple and len(<tuple> normalized_shape) == 1:
        normalized_shape = (<tuple> normalized_shape)[0]
    if type(normalized_shape) is not int or as_size(normalized_shape) != n or n == 0:
        return None
    number = accumulation_type(dtype)
    if weight is not None and not is_plain_vector(weight, number, n):
        return None
    if bias is not None and (weight is None or not is_plain_vector(bias, number, n)):
        return None
    rows = cnp.PyArray_SIZE(x) // n
    if rows == 0:
        return None
    if out is None:
        y = empty_like(x)
    else:
        if not is_plain_array(out, cnp.PyArray_TYPE(x)) or not cnp.PyArray_CheckExact(out) or not same_shape(out, x):
            return None
        y = <cnp.ndarray> out
        if not cnp.PyArray_ISWRITEABLE(y) or not writable_in_place(y, x, True) or (
                weight is not None and may_overlap(y, weight)) or (bias is not None and may_overlap(y, bias)):
            return None
    memset(&a, 0, sizeof(a))
    if wanted == STATS_PACKED:
        packed = packed_statistics(rows, centred)
        a.rstd = <double *> PyBytes_AS_STRING(packed)
        if centred:
            a.mean = a.rstd + rows
    elif wanted:
        for i in range(ndim - 1):
            shape[i] = cnp.PyArray_DIM(x, i)
        shape[ndim - 1] = 1
        rstd = new_array(cnp.NPY_FLOAT64, ndim, shape)
        a.rstd = <double *> cnp.PyArray_DATA(rstd)
        if centred:
            mean = new_array(cnp.NPY_FLOAT64, ndim, shape)
            a.mean = <double *> cnp.PyArray_DATA(mean)
    a.head.dtype = dtype
    a.shape[0] = 1
    a.shape[1] = rows
    a.shape[2] = 1
    a.shape[3] = 1
    a.shape[4] = n
    a.x.data = cnp.PyArray_BYTES(x)
    a.y.data = cnp.PyArray_BYTES(y)
    a.x.strides[1] = n * cnp.PyArray_ITEMSIZE(x)
    a.y.strides[1] = a.x.strides[1]
    a.head.threads = threads_for(rows * a.x.strides[1])
    a.centred = centred
    a.eps = machine_eps(dtype) if machine_epsilon else eps
    if weight is not None:
        a.elements.weight = cnp.PyArray_DATA(weight)
    if bias is not None:
        a.elements.bias = cnp.PyArray_DATA(bias)
    launch(ROWS_FORWARD, &a.head, rows * a.x.strides[1], "statistics")
    if not wanted:
        return y
    if wanted == STATS_PACKED:
        return y, packed
    return (y, mean, rstd) if centred else (y, rstd)


cdef double machine_eps(int dtype) noexcept:
    """The machine epsilon of the accumulation type."""
    return 2.220446049250313e-16 if dtype == FLOAT64 else 1.1920928955078125e-07


cdef object slope_axis(RowsCall call, object channel_axis):
    """`channel_axis` as an int; None where there is one slope or none, which needs no axis."""
    if call.slope_array is None or cnp.PyArray_SIZE(call.slope_array) <= 1:
        return None
    return as_int(channel_axis, "channel_axis")


cdef int lay_out_slopes(RowsCall call, object channel_axis) except -1:
    """Lay out the slopes along the channel axis: per element of a row, or one for each row."""
    cdef int ndim = cnp.PyArray_NDIM(call.x), axis, first = ndim - call.normalized
    axis = 0 if channel_axis is None else axis_of(channel_axis, ndim)
    call.check_slope(cnp.PyArray_DIM(call.x, axis) if ndim else 1)
    if call.activation != ACT_SLOPES:
        return 0
    at = call.all_axes().index(axis)
    shape = [cnp.PyArray_DIM(call.x, call.axes[i]) for i in (range(first, ndim) if at >= first else range(first))]
    slopes = call.slopes.reshape([-1 if i == (at - first if at >= first else at) else 1 for i in range(len(shape))])
    slopes = np.ascontiguousarray(np.broadcast_to(slopes, shape))
    if at >= first:
        call.slopes = row_parameter(slopes, "negative_slope", call.dtype)
    else:
        call.activation = ACT_SLOPE
        call.slopes = None
        call.unit_slopes = slopes
    return 0


cdef object rows_norm_forward(object input, object normalized_shape, object weight, object bias, bint centred,
                              object eps, object out, object channel_axis, Statistics wanted,
                              object negative_slope, object clip, object axis, object zero_centred):
    """layer_norm (`centred`) or rms_norm, which takes an `eps` of None: the machine epsilon."""
    cdef RowsCall call
    cdef cnp.ndarray x, into, w, b
    cdef tuple shape
    cdef bint machine_epsilon = eps is None and not centred
    cdef double epsilon = 0 if machine_epsilon else as_float(eps, "eps")
    if negative_slope is None and clip is None and axis is None and zero_centred is False:
        y = forward_contiguous(input, normalized_shape, weight, bias, centred, machine_epsilon, epsilon, out, wanted)
        if y is not None:
            return y
    call = <RowsCall> RowsCall.__new__(RowsCall)
    x, into = as_array(input, "input"), as_out(out, "out")
    w, b = as_array(weight, "weight"), as_array(bias, "bias")
    shape = as_row_shape(normalized_shape)
    axis = as_axes(axis)
    zero_centred = as_flag(zero_centred, "zero_centered_gamma")
    call.convert_activation(negative_slope, clip)
    channel_axis = slope_axis(call, channel_axis)

    x = as_floats(x, "input")
    axis = row_axes(axis, x, shape)
    check_row(x, shape, axis, w, b)
    call.set_rows(x, len(shape), axis, centred, epsilon)
    if machine_epsilon:
        call.eps = machine_eps(call.dtype)
    lay_out_slopes(call, channel_axis)
    call.parameters(w, b, False, zero_centred)
    if wanted == STATS_PACKED:
        packed = packed_statistics(call.rows(), centred)
        call.use_packed(packed)
    elif wanted:
        call.rstd = new_float64(call.rows())
        if centred:
            call.mean = new_float64(call.rows())
    y = call.forward(into)
    if not wanted:
        return y
    if wanted == STATS_PACKED:
        return y, packed
    stats = call.stats_shape()
    if centred:
        return y, call.mean.reshape(stats), call.rstd.reshape(stats)
    return y, call.rstd.reshape(stats)


cdef cnp.ndarray row_statistic(RowsCall call, cnp.ndarray values, str name):
    """Statistics of the rows as a plain float64 array."""
    cdef cnp.ndarray a = as_doubles(values, name)
    if cnp.PyArray_SIZE(a) != call.rows():
        raise ValueError(f"{name} must have shape {call.stats_shape()}, but got {shape_of(a)}")
    return a


cdef object rows_norm_backward(object grad_output, object input, object normalized_shape, object mean,
                               object rstd, object weight, object bias, bint centred, object out,
                               object channel_axis, object negative_slope, object clip, object axis,
                               object zero_centred, object grad_sum=None):
    """Backward of layer and rms norm. `grad_sum` is added to the gradient of the input; `rstd` may be packed
    statistics, and `mean` is then not read."""
    cdef RowsCall call = <RowsCall> RowsCall.__new__(RowsCall)
    cdef cnp.ndarray x = as_array(input, "input"), dy = as_array(grad_output, "grad_output"), into = as_out(out, "out")
    cdef cnp.ndarray addend = as_array(grad_sum, "grad_sum")
    cdef cnp.ndarray w = as_array(weight, "weight"), b = as_array(bias, "bias"), m = None, r = None
    cdef tuple shape = as_row_shape(normalized_shape)
    cdef double arena[ARENA_DOUBLES]
    cdef int normalized = len(shape)
    cdef cnp.npy_intp *row_dims
    axis = as_axes(axis)
    zero_centred = as_flag(zero_centred, "zero_centered_gamma")
    if type(rstd) is not bytes:
        r = as_array(rstd, "rstd")
        if centred:
            m = as_array(mean, "mean")
    call.convert_activation(negative_slope, clip)
    channel_axis = slope_axis(call, channel_axis)

    x = as_floats(x, "input")
    dy = as_gradient(dy, x)
    if addend is not None:
        addend = as_gradient(addend, x, "grad_sum")
    axis = row_axes(axis, x, shape)
    check_row(x, shape, axis, w, b)
    call.set_rows(x, normalized, axis, centred, 0)
    call.use_arena(arena)
    if type(rstd) is bytes:
        if len(<bytes> rstd) != packed_size(call.rows(), centred):
            raise TypeError(f"rstd must be a float array of shape {call.stats_shape()}, but got "
                            f"{len(<bytes> rstd)} bytes")
        call.use_packed(rstd)
    else:
        if centred:
            call.mean = row_statistic(call, m, "mean")
        call.rstd = row_statistic(call, r, "rstd")
    lay_out_slopes(call, channel_axis)
    if call.unit_slopes is not None:
        call.unit_slope_grads = np.zeros(call.rows())
    call.parameters(w, b, True, zero_centred)
    row_dims = cnp.PyArray_DIMS(x) + (cnp.PyArray_NDIM(x) - normalized)
    if call.kernels_write(w):
        call.grad_weight = gradient_buffer(w, call.dtype, normalized, row_dims)
    if b is None:
        b = w
    if centred and call.kernels_write(b):
        call.grad_bias = gradient_buffer(b, call.dtype, normalized, row_dims)
    result = (call.backward(dy, into, addend), call.parameter_gradient(0, call.grad_weight, w, shape))
    if centred:
        result += (call.parameter_gradient(1, call.grad_bias, b, shape),)
    if call.slope_gradient:
        result += (row_slope_gradient(call, channel_axis),)
    return result


cdef object row_slope_gradient(RowsCall call, object channel_axis):
    """The gradient of the slopes in their shape and dtype, from sums per element of a row or per row."""
    cdef cnp.ndarray slope = call.slope_array
    cdef Py_ssize_t runs = call.runs()
    cdef int ndim = cnp.PyArray_NDIM(call.x), first = ndim - call.normalized
    per_element = float64_array(call.grads, runs * 3 * call.length).reshape(runs, 3, call.length)[:, 2].sum(0)
    if channel_axis is None:
        return slope_gradient(per_element, slope)
    at = call.all_axes().index(axis_of(channel_axis, ndim))
    values, axes = per_element, range(first, ndim)
    if at >= first:
        at -= first
    else:
        values, axes = call.unit_slope_grads, range(first)
    values = values.reshape([cnp.PyArray_DIM(call.x, call.axes[i]) for i in axes])
    values = values.sum(tuple([i for i in range(values.ndim) if i != at]))
    return slope_gradient(values, slope)


cdef object add_norm_forward(object input, object residual, object normalized_shape, object weight, object bias,
                             bint centred, object eps, object out, object residual_out, object channel_axis,
                             object return_stats, object negative_slope, object clip, object axis, object zero_centred):
    """add_layer_norm (`centred`) or add_rms_norm."""
    cdef RowsCall call = <RowsCall> RowsCall.__new__(RowsCall)
    cdef cnp.ndarray one = as_array(input, "input"), other = as_array(residual, "residual")
    cdef cnp.ndarray into = as_out(out, "out"), total = as_out(residual_out, "residual_out"), buffer
    cdef cnp.ndarray w = as_array(weight, "weight"), b = as_array(bias, "bias")
    cdef tuple shape = as_row_shape(normalized_shape)
    cdef bint machine_epsilon = eps is None and not centred, with_statistics = return_stats
    cdef double epsilon = 0 if machine_epsilon else as_float(eps, "eps")
    axis = as_axes(axis)
    zero_centred = as_flag(zero_centred, "zero_centered_gamma")
    call.convert_activation(negative_slope, clip)
    channel_axis = slope_axis(call, channel_axis)

    one, other = as_floats(one, "input"), as_floats(other, "residual")
    if not same_shape(one, other):
        raise ValueError(f"residual must have the input's shape {shape_of(one)}, but got {shape_of(other)}")
    if dtype_code(one) != dtype_code(other):
        raise TypeError(f"residual must have the input's dtype {one.dtype}, but got {other.dtype}")
    axis = row_axes(axis, one, shape)
    check_row(one, shape, axis, w, b)
    if into is not None:
        checked_out(into, one)
    total = empty_like(one) if total is None else checked_out(total, one, "residual_out")
    check_no_overlap(into, "out", total, "residual_out")
    buffer = total
    if not is_native(buffer) or not writable_in_place(buffer, one, True) or (
            not writable_in_place(buffer, other, True)) or (into is not None and may_overlap(buffer, into)):
        buffer = empty_like(one)
    call.set_rows(buffer, len(shape), axis, centred, machine_eps(dtype_code(one)) if machine_epsilon else epsilon)
    lay_out_slopes(call, channel_axis)
    call.parameters(w, b, False, zero_centred)
    call.protect_inputs(total)
    if with_statistics:
        call.rstd = new_float64(call.rows())
        call.mean = new_float64(call.rows()) if centred else None
    y = call.forward(into, one, other)
    if call.x is not total:
        cnp.PyArray_CopyInto(total, call.x)
    if not with_statistics:
        return y, total
    stats = call.stats_shape()
    if centred:
        return y, total, call.mean.reshape(stats), call.rstd.reshape(stats)
    return y, total, call.rstd.reshape(stats)


cdef tuple forward_and_saved(object input, object normalized_shape, object weight, object bias, bint centred,
                             object eps, object channel_axis, object negative_slope, object clip, bint save,
                             object axis, object zero_centred):
    """(result, what backward needs): None, or with `save` the input as an array and packed statistics, which
    `rows_norm_backward` takes for rstd."""
    cdef object x = as_array(input, "input")
    result = rows_norm_forward(x, normalized_shape, weight, bias, centred, eps, None, channel_axis,
                               STATS_PACKED if save else STATS_NONE, negative_slope, clip, axis, zero_centred)
    if not save:
        return result, None
    return (<tuple> result)[0], (x, (<tuple> result)[1])


def layer_norm_and_saved(input, normalized_shape, weight, bias, eps, channel_axis, negative_slope, clip,
                         bint save, axis=None):
    """`layer_norm` of a module: the result, and with `save` (input, rstd) for `layer_norm_backward`, else None."""
    return forward_and_saved(input, normalized_shape, weight, bias, True, eps, channel_axis, negative_slope, clip,
                             save, axis, False)


def rms_norm_and_saved(input, normalized_shape, weight, eps, channel_axis, negative_slope, clip, bint save,
                       axis=None, zero_centered_gamma=False):
    """`rms_norm` of a module: the result, and with `save` (input, rstd) for `rms_norm_backward`, else None."""
    return forward_and_saved(input, normalized_shape, weight, None, False, eps, channel_axis, negative_slope, clip,
                             save, axis, zero_centered_gamma)
