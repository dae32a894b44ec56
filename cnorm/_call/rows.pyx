"""Norms with a weight per element of a row: layer and rms norm, from arguments to kernels."""

import numpy as np

cimport numpy as cnp
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.string cimport memset

from cnorm._call.arrays cimport (accumulation_type, as_array, as_doubles, as_float, as_floats, as_int, as_out,
                                 as_plain, as_size, check_no_overlap, checked_out, checked_product, converted,
                                 copy_if_overlapping, dtype_code, float64_array, float64_data, is_native,
                                 is_plain_array, is_plain_vector, may_overlap, new_float64, same_shape, shape_of,
                                 writable_in_place)
from cnorm._call.checks cimport as_gradient, as_row_shape, axis_of, check_row
from cnorm._call.output cimport (
    ARENA_DOUBLES, Call, gradient_buffer, gradient_from_sums, run_norm, set_tensor, slope_gradient)
from cnorm._plan cimport ARRAYS, MAX_DIMS, Plan, plan_rows
from cnorm._pool cimport empty_like, new_array
from cnorm._runtime cimport kernels, threads_for
from cnorm.kernels.job cimport ACT_SLOPE, ACT_SLOPES, FLOAT64, Job

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
    cdef cnp.ndarray weight, bias, mean, rstd
    cdef cnp.ndarray grad_weight, grad_bias          # as the caller gets them, where kernels can write that
    cdef cnp.ndarray unit_slopes, unit_slope_grads   # where there is a slope per row
    cdef int normalized                              # axes of a row
    cdef Py_ssize_t length                           # elements of a row
    cdef double *grads                               # after backward: of weight, bias and slope, per element
    cdef bint centred                                # layer norm; else rms norm
    cdef double eps

    cdef int set_rows(self, cnp.ndarray x, int normalized, bint centred, double eps) except -1:
        """Take the input, whose last `normalized` axes are a row."""
        cdef int i
        self.set_input(x)
        self.normalized = normalized
        self.centred = centred
        self.eps = eps
        self.length = 1
        for i in range(cnp.PyArray_NDIM(x) - normalized, cnp.PyArray_NDIM(x)):
            self.length *= cnp.PyArray_DIM(x, i)
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
            n *= cnp.PyArray_DIM(self.x, i)
        return n

    cdef int use_packed(self, bytes packed) except -1:
        """Take mean and rstd from, or let them be written to, packed statistics."""
        self.rstd = packed_view(packed, self.rows(), 0)
        if self.centred:
            self.mean = packed_view(packed, self.rows(), 1)
        return 0

    cdef int plan(self, int arrays, Plan *p) except -1:
        cdef const Py_ssize_t *shape
        cdef const Py_ssize_t *strides[ARRAYS]
        self.layouts(arrays, &shape, strides)
        plan_rows(p, cnp.PyArray_NDIM(self.x), shape, strides, arrays, self.normalized,
                  cnp.PyArray_ITEMSIZE(self.x))
        return 0

    cdef int fill_job(self, const Plan *p, bint fuse_add, Job *a) except -1:
        """Describe the call to a kernel. With `fuse_add`, dy and addend are the terms of the sum."""
        cdef int i
        memset(a, 0, sizeof(Job))
        for i in range(5):
            a.shape[i] = p.shape[i]
        a.dtype = self.dtype
        a.threads = threads_for(self.bytes)
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
        a.elements.unit_slopes = float64_data(self.unit_slopes)
        a.elements.unit_slope_grads = float64_data(self.unit_slope_grads)
        return 0

    cdef int parameters(self, cnp.ndarray weight, cnp.ndarray bias, bint always) except -1:
        """Take weight and bias. A weight of ones stands in where only others are given, or `always`."""
        self.weight = row_parameter(weight, "weight", self.dtype)
        self.bias = row_parameter(bias, "bias", self.dtype)
        if self.weight is None and (self.bias is not None or self.activation == ACT_SLOPES or always):
            self.weight = ones(self.length, self.dtype)
        return 0

    cdef cnp.ndarray forward(self, cnp.ndarray out, cnp.ndarray one=None, cnp.ndarray other=None):
        """Compute the norm of x; with `one` and `other`, of their sum, which is written to x."""
        cdef Plan p
        cdef Job a
        self.resolve_output(&p, out, one, other)
        if self.elements == 0:
            self.empty_statistics()
            return self.result
        self.fill_job(&p, one is not None, &a)
        run_norm(kernels.rows_forward, &a, self.bytes, "statistics")
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
        self.grads = self.workspace(self.length, 3)
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
            run_norm(kernels.rows_backward, &a, self.bytes, "sums")
        else:
            memset(self.grads, 0, 3 * self.length * sizeof(double))
            for a_gradient in (self.grad_weight, self.grad_bias):
                if a_gradient is not None:
                    a_gradient[...] = 0
        return self.copy_out()


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


cdef tuple stats_shape(cnp.ndarray x, int normalized):
    """The shape of the statistics: the input's, with ones for the axes of a row."""
    return (<object> x).shape[:cnp.PyArray_NDIM(x) - normalized] + (1,) * normalized


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
    a.dtype = dtype
    a.shape[0] = 1
    a.shape[1] = rows
    a.shape[2] = 1
    a.shape[3] = 1
    a.shape[4] = n
    a.x.data = cnp.PyArray_BYTES(x)
    a.y.data = cnp.PyArray_BYTES(y)
    a.x.strides[1] = n * cnp.PyArray_ITEMSIZE(x)
    a.y.strides[1] = a.x.strides[1]
    a.threads = threads_for(rows * a.x.strides[1])
    a.centred = centred
    a.eps = machine_eps(dtype) if machine_epsilon else eps
    if weight is not None:
        a.elements.weight = cnp.PyArray_DATA(weight)
    if bias is not None:
        a.elements.bias = cnp.PyArray_DATA(bias)
    run_norm(kernels.rows_forward, &a, rows * a.x.strides[1], "statistics")
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


cdef int lay_out_slopes(RowsCall call, object channel_axis, int normalized) except -1:
    """Lay out the slopes along the channel axis: per element of a row, or one for each row."""
    cdef int ndim = cnp.PyArray_NDIM(call.x), axis, first = ndim - normalized
    axis = 0 if channel_axis is None else axis_of(channel_axis, ndim)
    call.check_slope(cnp.PyArray_DIM(call.x, axis) if ndim else 1)
    if call.activation != ACT_SLOPES:
        return 0
    shape = shape_of(call.x)[first:] if axis >= first else shape_of(call.x)[:first]
    at = axis - first if axis >= first else axis
    slopes = call.slopes.reshape([-1 if i == at else 1 for i in range(len(shape))])
    slopes = np.ascontiguousarray(np.broadcast_to(slopes, shape))
    if axis >= first:
        call.slopes = row_parameter(slopes, "negative_slope", call.dtype)
    else:
        call.activation = ACT_SLOPE
        call.slopes = None
        call.unit_slopes = slopes
    return 0


cdef object rows_norm_forward(object input, object normalized_shape, object weight, object bias, bint centred,
                              object eps, object out, object channel_axis, Statistics wanted,
                              object negative_slope, object clip):
    """layer_norm (`centred`) or rms_norm, which takes an `eps` of None: the machine epsilon."""
    cdef RowsCall call
    cdef cnp.ndarray x, into, w, b
    cdef tuple shape
    cdef bint machine_epsilon = eps is None and not centred
    cdef double epsilon = 0 if machine_epsilon else as_float(eps, "eps")
    if negative_slope is None and clip is None:
        y = forward_contiguous(input, normalized_shape, weight, bias, centred, machine_epsilon, epsilon, out, wanted)
        if y is not None:
            return y
    call = <RowsCall> RowsCall.__new__(RowsCall)
    x, into = as_array(input, "input"), as_out(out, "out")
    w, b = as_array(weight, "weight"), as_array(bias, "bias")
    shape = as_row_shape(normalized_shape)
    call.convert_activation(negative_slope, clip)
    channel_axis = slope_axis(call, channel_axis)

    x = as_floats(x, "input")
    check_row(x, shape, w, b)
    call.set_rows(x, len(shape), centred, epsilon)
    if machine_epsilon:
        call.eps = machine_eps(call.dtype)
    lay_out_slopes(call, channel_axis, len(shape))
    call.parameters(w, b, False)
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
    stats = stats_shape(x, len(shape))
    if centred:
        return y, call.mean.reshape(stats), call.rstd.reshape(stats)
    return y, call.rstd.reshape(stats)


cdef cnp.ndarray row_statistic(RowsCall call, cnp.ndarray values, str name):
    """Statistics of the rows as a plain float64 array."""
    cdef cnp.ndarray a = as_doubles(values, name)
    if cnp.PyArray_SIZE(a) != call.rows():
        raise ValueError(f"{name} must have shape {stats_shape(call.x, call.normalized)}, but got {shape_of(a)}")
    return a


cdef object rows_norm_backward(object grad_output, object input, object normalized_shape, object mean,
                               object rstd, object weight, object bias, bint centred, object out,
                               object channel_axis, object negative_slope, object clip, object grad_sum=None):
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
    check_row(x, shape, w, b)
    call.set_rows(x, normalized, centred, 0)
    call.use_arena(arena)
    if type(rstd) is bytes:
        if len(<bytes> rstd) != packed_size(call.rows(), centred):
            raise TypeError(f"rstd must be a float array of shape {stats_shape(x, normalized)}, but got "
                            f"{len(<bytes> rstd)} bytes")
        call.use_packed(rstd)
    else:
        if centred:
            call.mean = row_statistic(call, m, "mean")
        call.rstd = row_statistic(call, r, "rstd")
    lay_out_slopes(call, channel_axis, normalized)
    if call.unit_slopes is not None:
        call.unit_slope_grads = np.zeros(call.rows())
    call.parameters(w, b, True)
    row_dims = cnp.PyArray_DIMS(x) + (cnp.PyArray_NDIM(x) - normalized)
    call.grad_weight = gradient_buffer(w, call.dtype, normalized, row_dims)
    if b is None:
        b = w
    if centred:
        call.grad_bias = gradient_buffer(b, call.dtype, normalized, row_dims)
    result = (call.backward(dy, into, addend),)
    result += (call.grad_weight if call.grad_weight is not None else
               gradient_from_sums(call.grads, call.length, w, call.dtype, normalized, row_dims),)
    if centred:
        result += (call.grad_bias if call.grad_bias is not None else
                   gradient_from_sums(call.grads + call.length, call.length, b, call.dtype, normalized, row_dims),)
    if call.slope_gradient:
        per_element = float64_array(call.grads + 2 * call.length, call.length)
        result += (row_slope_gradient(call, per_element, channel_axis, shape),)
    return result


cdef object row_slope_gradient(RowsCall call, cnp.ndarray per_element, object channel_axis, tuple shape):
    """The gradient of the slopes in their shape and dtype, from sums per element of a row or per row."""
    cdef cnp.ndarray slope = call.slope_array
    if channel_axis is None:
        return slope_gradient(per_element, slope)
    axis = axis_of(channel_axis, cnp.PyArray_NDIM(call.x))
    first = cnp.PyArray_NDIM(call.x) - len(shape)
    if axis >= first:
        values, axis = per_element.reshape(shape), axis - first
    else:
        values = call.unit_slope_grads.reshape(shape_of(call.x)[:first])
    values = values.sum(tuple([i for i in range(values.ndim) if i != axis]))
    return slope_gradient(values, slope)


cdef object add_norm_forward(object input, object residual, object normalized_shape, object weight, object bias,
                             bint centred, object eps, object out, object residual_out, object channel_axis,
                             object return_stats, object negative_slope, object clip):
    """add_layer_norm (`centred`) or add_rms_norm."""
    cdef RowsCall call = <RowsCall> RowsCall.__new__(RowsCall)
    cdef cnp.ndarray one = as_array(input, "input"), other = as_array(residual, "residual")
    cdef cnp.ndarray into = as_out(out, "out"), total = as_out(residual_out, "residual_out"), buffer
    cdef cnp.ndarray w = as_array(weight, "weight"), b = as_array(bias, "bias")
    cdef tuple shape = as_row_shape(normalized_shape)
    cdef bint machine_epsilon = eps is None and not centred, with_statistics = return_stats
    cdef double epsilon = 0 if machine_epsilon else as_float(eps, "eps")
    call.convert_activation(negative_slope, clip)
    channel_axis = slope_axis(call, channel_axis)

    one, other = as_floats(one, "input"), as_floats(other, "residual")
    if not same_shape(one, other):
        raise ValueError(f"residual must have the input's shape {shape_of(one)}, but got {shape_of(other)}")
    if dtype_code(one) != dtype_code(other):
        raise TypeError(f"residual must have the input's dtype {one.dtype}, but got {other.dtype}")
    check_row(one, shape, w, b)
    if into is not None:
        checked_out(into, one)
    total = empty_like(one) if total is None else checked_out(total, one, "residual_out")
    check_no_overlap(into, "out", total, "residual_out")
    buffer = total
    if not is_native(buffer) or not writable_in_place(buffer, one, True) or (
            not writable_in_place(buffer, other, True)) or (into is not None and may_overlap(buffer, into)):
        buffer = empty_like(one)
    call.set_rows(buffer, len(shape), centred, machine_eps(dtype_code(one)) if machine_epsilon else epsilon)
    lay_out_slopes(call, channel_axis, len(shape))
    call.parameters(w, b, False)
    call.protect_inputs(total)
    if with_statistics:
        call.rstd = new_float64(call.rows())
        call.mean = new_float64(call.rows()) if centred else None
    y = call.forward(into, one, other)
    if call.x is not total:
        cnp.PyArray_CopyInto(total, call.x)
    if not with_statistics:
        return y, total
    stats = stats_shape(one, len(shape))
    if centred:
        return y, total, call.mean.reshape(stats), call.rstd.reshape(stats)
    return y, total, call.rstd.reshape(stats)


cdef tuple forward_and_saved(object input, object normalized_shape, object weight, object bias, bint centred,
                             object eps, object channel_axis, object negative_slope, object clip, bint save):
    """(result, what backward needs): None, or with `save` the input as an array and packed statistics, which
    `rows_norm_backward` takes for rstd."""
    cdef object x = as_array(input, "input")
    result = rows_norm_forward(x, normalized_shape, weight, bias, centred, eps, None, channel_axis,
                               STATS_PACKED if save else STATS_NONE, negative_slope, clip)
    if not save:
        return result, None
    return (<tuple> result)[0], (x, (<tuple> result)[1])


def layer_norm_and_saved(input, normalized_shape, weight, bias, eps, channel_axis, negative_slope, clip,
                         bint save):
    """`layer_norm` of a module: the result, and with `save` (input, rstd) for `layer_norm_backward`, else None."""
    return forward_and_saved(input, normalized_shape, weight, bias, True, eps, channel_axis, negative_slope, clip,
                             save)


def rms_norm_and_saved(input, normalized_shape, weight, eps, channel_axis, negative_slope, clip, bint save):
    """`rms_norm` of a module: the result, and with `save` (input, rstd) for `rms_norm_backward`, else None."""
    return forward_and_saved(input, normalized_shape, weight, None, False, eps, channel_axis, negative_slope, clip,
                             save)
