"""Layer and rms norm, with a residual or without: their arguments, and what they return."""

import numpy as np

cimport numpy as cnp
from cpython.bytes cimport PyBytes_AS_STRING
from libc.string cimport memset

from cnorm._call.arrays cimport (
    accumulation_size, accumulation_type, as_array, as_doubles, as_flag, as_float, as_floats, as_int, as_out, as_size,
    blocks_overlap, check_no_overlap, checked_out, dtype_code, float64_array, is_native, is_plain_array,
    is_plain_vector, is_trusted, may_overlap, new_float64, same_shape, shape_of, size_of, writable_in_place)
from cnorm._call.checks cimport as_axes, as_gradient, as_row_shape, axis_of, check_row, row_axes
from cnorm._call.launch cimport launch
from cnorm._call.masks cimport Mask, mask_argument
from cnorm._call.output cimport ARENA_DOUBLES, gradient_buffer, slope_gradient
from cnorm._call.rows cimport RowsCall, packed_size, packed_statistics, row_parameter
from cnorm._plan cimport MAX_DIMS
from cnorm._pool cimport empty_like, new_array
from cnorm._runtime cimport threads_for
from cnorm.kernels.job cimport ACT_SLOPE, ACT_SLOPES, FLOAT64, ROWS_FORWARD, Job

cnp.import_array()


cdef bint find_plain_sets(cnp.ndarray x, object weight, object bias, int number, Py_ssize_t *sets,
                          Py_ssize_t *units_per_set) noexcept:
    """Whether weight, and bias if there is one, are C-contiguous and of one shape: the input's, or 1 at axes before the
    last, of which none lies between two that they differ along. Unit u then has set u // units_per_set % sets."""
    cdef int ndim = cnp.PyArray_NDIM(x), i
    cdef cnp.ndarray w
    if not is_plain_array(weight, number):
        return False
    w = <cnp.ndarray> weight
    if cnp.PyArray_NDIM(w) != ndim or cnp.PyArray_DIM(w, ndim - 1) != cnp.PyArray_DIM(x, ndim - 1):
        return False
    if bias is not None and not (is_plain_array(bias, number) and same_shape(w, <cnp.ndarray> bias)):
        return False
    sets[0] = units_per_set[0] = 1
    for i in range(ndim - 1):
        if cnp.PyArray_DIM(w, i) == 1:
            if sets[0] > 1:
                units_per_set[0] *= cnp.PyArray_DIM(x, i)
        elif cnp.PyArray_DIM(w, i) != cnp.PyArray_DIM(x, i) or units_per_set[0] > 1:
            return False
        else:
            sets[0] *= cnp.PyArray_DIM(w, i)
    return True


cdef object forward_contiguous(object input, object normalized_shape, object weight, object bias, bint centred,
                               object eps, object out, Statistics wanted, list kept):
    """layer_norm or rms_norm of C-contiguous native arrays over the last axis; None where the general call must look.

    Weight and bias may differ from sample to sample. The arrays may be large. Of small ones, everything here must cost
    less than the norm itself: 16 float32 elements take about 0.2 us, and the general call 0.35 us more.
    """
    cdef cnp.ndarray x, y
    cdef cnp.ndarray mean = None, rstd = None
    cdef bytes packed = None
    cdef int number, dtype, ndim, i
    cdef Py_ssize_t n, rows, size, sets = 1, units_per_set = 0
    cdef cnp.npy_intp shape[MAX_DIMS]
    cdef Job a
    if not cnp.PyArray_CheckExact(input) or not (type(eps) is float or eps is None and not centred):
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
        if not find_plain_sets(x, weight, bias, number, &sets, &units_per_set):
            return None
    elif bias is not None and (weight is None or not is_plain_vector(bias, number, n)):
        return None
    rows = size_of(x) // n
    if rows == 0:
        return None
    if out is None:
        y = empty_like(x)
    else:
        if not is_plain_array(out, cnp.PyArray_TYPE(x)) or not cnp.PyArray_CheckExact(out) or not same_shape(out, x):
            return None
        y = <cnp.ndarray> out
        size = rows * n * cnp.PyArray_ITEMSIZE(x)
        if not cnp.PyArray_ISWRITEABLE(y) or (
                cnp.PyArray_DATA(y) != cnp.PyArray_DATA(x) and blocks_overlap(y, size, x, size)) or (
                weight is not None and blocks_overlap(y, size, weight, sets * n * accumulation_size(dtype))) or (
                bias is not None and blocks_overlap(y, size, bias, sets * n * accumulation_size(dtype))):
            return None
    memset(&a, 0, sizeof(a))
    if wanted == STATS_KEPT:
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
    a.finish.eps = machine_eps(dtype) if eps is None else <double> eps
    if weight is not None:
        a.elements.weight = cnp.PyArray_DATA(weight)
    if bias is not None:
        a.elements.bias = cnp.PyArray_DATA(bias)
    a.elements.param_sets = sets
    a.elements.units_per_set = units_per_set
    launch(ROWS_FORWARD, &a.head, rows * a.x.strides[1], "statistics")
    if not wanted:
        return y
    if wanted == STATS_KEPT:
        kept[0] = (input, packed)
        return y
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


cdef object forward_any(object input, object normalized_shape, object weight, object bias, bint centred, object eps,
                        object out, object channel_axis, Statistics wanted, list kept, object negative_slope,
                        object clip, object axis, object zero_centred, object where):
    """layer_norm or rms_norm of all that `forward_contiguous` does not take."""
    cdef bint machine_epsilon = eps is None and not centred
    cdef double epsilon = 0 if machine_epsilon else as_float(eps, "eps")
    cdef RowsCall call = <RowsCall> RowsCall.__new__(RowsCall)
    cdef Mask given = mask_argument(input, where)
    cdef cnp.ndarray x = as_array(input if given is None else given.data, "input"), into = as_out(out, "out")
    cdef cnp.ndarray w = as_array(weight, "weight"), b = as_array(bias, "bias")
    cdef tuple shape = as_row_shape(normalized_shape)
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
    call.take_mask(given, x, into)
    lay_out_slopes(call, channel_axis)
    call.parameters(w, b, False, zero_centred)
    if wanted == STATS_KEPT:
        packed = packed_statistics(call.rows(), centred)
        call.use_packed(packed)
    elif wanted:
        call.rstd = new_float64(call.rows())
        if centred:
            call.mean = new_float64(call.rows())
    y = call.forward(into)
    if given is not None:
        y = given.wrapped(y)
    if not wanted:
        return y
    if wanted == STATS_KEPT:
        kept[0] = (input, packed) if where is None else (input, packed, where)
        return y
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
                               object zero_centred, object grad_sum=None, object where=None):
    """Backward of layer and rms norm. `grad_sum` is added to the gradient of the input; `rstd` may be packed
    statistics, and `mean` is then not read."""
    cdef RowsCall call = <RowsCall> RowsCall.__new__(RowsCall)
    cdef Mask given = mask_argument(input, where)
    cdef cnp.ndarray x, dy, addend, into = as_out(out, "out")
    cdef cnp.ndarray w = as_array(weight, "weight"), b = as_array(bias, "bias"), m = None, r = None
    cdef tuple shape = as_row_shape(normalized_shape)
    cdef double arena[ARENA_DOUBLES]
    cdef int normalized = len(shape)
    cdef cnp.npy_intp *row_dims
    if given is not None:
        grad_output, grad_sum, input = given.gradient(grad_output), given.gradient(grad_sum), given.data
    x, dy, addend = as_array(input, "input"), as_array(grad_output, "grad_output"), as_array(grad_sum, "grad_sum")
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
    call.take_mask(given, x, None)
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
    if call.mask is None and call.kernels_write(w):
        call.grad_weight = gradient_buffer(w, call.dtype, normalized, row_dims)
    if b is None:
        b = w
    if centred and call.mask is None and call.kernels_write(b):
        call.grad_bias = gradient_buffer(b, call.dtype, normalized, row_dims)
    grad_input = call.backward(dy, into, addend)
    if given is not None:
        grad_input = given.wrapped(grad_input)
    grad_weight = call.parameter_gradient(0, call.grad_weight, w, shape)
    grad_bias = call.parameter_gradient(1, call.grad_bias, b, shape) if centred else None
    grads = (grad_input, grad_weight, grad_bias) if centred else (grad_input, grad_weight)
    return grads + (row_slope_gradient(call, channel_axis),) if call.slope_gradient else grads


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
                             object return_stats, object negative_slope, object clip, object axis, object zero_centred,
                             object where=None):
    """add_layer_norm (`centred`) or add_rms_norm."""
    cdef RowsCall call = <RowsCall> RowsCall.__new__(RowsCall)
    cdef Mask given = mask_argument(input, where)
    cdef cnp.ndarray one = as_array(input if given is None else given.data, "input")
    cdef cnp.ndarray other = as_array(residual if given is None else given.gradient(residual, "residual"), "residual")
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
    call.sum_keeps = residual_out is not None
    call.set_rows(buffer, len(shape), axis, centred, machine_eps(dtype_code(one)) if machine_epsilon else epsilon)
    call.take_mask(given, buffer, into)
    lay_out_slopes(call, channel_axis)
    call.parameters(w, b, False, zero_centred)
    call.protect_inputs(total)
    if with_statistics:
        call.rstd = new_float64(call.rows())
        call.mean = new_float64(call.rows()) if centred else None
    y = call.forward(into, one, other)
    if call.x is not total:
        if call.mask is not None and call.sum_keeps:
            np.copyto(total, call.x, where=call.mask.where)
        else:
            cnp.PyArray_CopyInto(total, call.x)
    returned = total
    if given is not None:
        y, returned = given.wrapped(y), given.wrapped(total)
    if not with_statistics:
        return y, returned
    stats = call.stats_shape()
    if centred:
        return y, returned, call.mean.reshape(stats), call.rstd.reshape(stats)
    return y, returned, call.rstd.reshape(stats)


cdef object forward_keeping(list kept, object input, object normalized_shape, object weight, object bias, bint centred,
                            object eps, object channel_axis, object negative_slope, object clip, bint keep,
                            object axis, object zero_centred, object where):
    """The result. Item 0 of `kept` becomes what backward needs: the input as an array, packed statistics, which
    `rows_norm_backward` takes for rstd, and the mask where there is one; or None, unless `keep`."""
    cdef object x = input
    if not is_trusted(input) and not isinstance(input, np.ma.MaskedArray):
        x = as_array(input, "input")
    y = rows_norm_forward(x, normalized_shape, weight, bias, centred, eps, None, channel_axis,
                          STATS_KEPT if keep else STATS_NONE, kept, negative_slope, clip, axis, zero_centred, where)
    if not keep:
        kept[0] = None
    return y


def layer_norm_keeping(list kept, input, normalized_shape, weight, bias, eps, channel_axis, negative_slope, clip,
                       bint keep, axis, where):
    """`layer_norm` of a module, which keeps what `layer_norm_backward` needs in item 0 of `kept`."""
    return forward_keeping(kept, input, normalized_shape, weight, bias, True, eps, channel_axis, negative_slope, clip,
                           keep, axis, False, where)


def rms_norm_keeping(list kept, input, normalized_shape, weight, eps, channel_axis, negative_slope, clip, bint keep,
                     axis, zero_centered_gamma, where):
    """`rms_norm` of a module, which keeps what `rms_norm_backward` needs in item 0 of `kept`."""
    return forward_keeping(kept, input, normalized_shape, weight, None, False, eps, channel_axis, negative_slope, clip,
                           keep, axis, zero_centered_gamma, where)
