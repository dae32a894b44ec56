"""Checks of arguments that were converted: torch's conditions, in torch's words. Nothing is computed here."""

from numpy.exceptions import AxisError

cimport numpy as cnp
from libc.math cimport NAN

from cnorm._call.arrays cimport (as_doubles, as_float, as_floats, as_int, as_size, check_no_overlap, check_written,
                                 dtype_code, dtype_of, hints, is_native, is_plain_vector, same_shape, shape_of,
                                 size_list)
from cnorm._plan cimport MAX_DIMS

cnp.import_array()


cdef int check_eps(str name, double eps, bint training) except -1:
    """Of batch norm: positive where the input's variance may be 0, else non-negative."""
    if training and not eps > 0:
        raise ValueError(f"{name} eps must be positive during training, but got {eps}")
    if not training and not eps >= 0:
        raise ValueError(f"{name} eps must be non-negative, but got {eps}")
    return 0


cdef int check_tracked(cnp.ndarray x, int axis, cnp.ndarray running_mean, cnp.ndarray running_var,
                       cnp.ndarray weight, cnp.ndarray bias) except -1:
    """Running statistics and parameters that fit the channels of the input."""
    cdef Py_ssize_t channels = cnp.PyArray_DIM(x, axis)
    if (running_mean is None) != (running_var is None):
        raise ValueError("running_mean and running_var must either both be None or neither be None")
    check_running(running_mean, "running_mean", channels, x, axis)
    check_running(running_var, "running_var", channels, x, axis)
    check_parameter(weight, "weight", x, axis)
    check_parameter(bias, "bias", x, axis)
    return 0


cdef int check_parameter(cnp.ndarray parameter, str name, cnp.ndarray x, int axis) except -1:
    """None, a value per channel, or one per sample and channel."""
    if is_of_samples(parameter, x, axis):
        return 0
    return check_length(parameter, name, cnp.PyArray_DIM(x, axis), x, axis)


cdef bint is_of_samples(cnp.ndarray parameter, cnp.ndarray x, int axis) noexcept:
    """Whether a parameter is (N, C)."""
    return parameter is not None and cnp.PyArray_NDIM(parameter) == 2 and axis > 0 and (
        cnp.PyArray_DIM(parameter, 0) == cnp.PyArray_DIM(x, 0)
        and cnp.PyArray_DIM(parameter, 1) == cnp.PyArray_DIM(x, axis))


cdef int check_dims(cnp.ndarray x, str name, int least) except -1:
    """At least so many dimensions."""
    if cnp.PyArray_NDIM(x) < least:
        raise ValueError(f"{name} expects at least {least} dimensions, but got input of size {size_list(x)}")
    return 0


cdef int check_written_together(cnp.ndarray running_mean, cnp.ndarray running_var, cnp.ndarray count,
                                cnp.ndarray out) except -1:
    """What training writes can be written, and each is an array of its own."""
    if running_mean is None and running_var is None and count is None:
        return 0
    check_writable(running_mean, "running_mean")
    check_writable(running_var, "running_var")
    if count is not None:
        check_counter(count, "num_batches_tracked")
        check_no_overlap(count, "num_batches_tracked", running_mean, "running_mean")
        check_no_overlap(count, "num_batches_tracked", running_var, "running_var")
        check_no_overlap(count, "num_batches_tracked", out, "out")
    check_no_overlap(running_mean, "running_mean", running_var, "running_var")
    if out is not None:
        check_no_overlap(out, "out", running_mean, "running_mean")
        check_no_overlap(out, "out", running_var, "running_var")
    return 0


cdef Py_ssize_t check_groups(cnp.ndarray x, int axis, object num_groups, cnp.ndarray weight,
                             cnp.ndarray bias) except -1:
    """The number of groups, an int, as a size."""
    cdef Py_ssize_t groups = as_size(num_groups)
    if groups <= 0:
        raise RuntimeError(f"Expected num groups to be greater than 0, got {num_groups}")
    if cnp.PyArray_DIM(x, axis) % groups:
        raise wrong_channels(RuntimeError(
            "Expected number of channels in input to be divisible by num_groups, but got input of "
            f"shape {size_list(x)} and num_groups={num_groups}"),
            x, axis, "weight", -1 if weight is None else cnp.PyArray_SIZE(weight), groups)
    check_channel_vector(weight, "weight", x, axis)
    check_channel_vector(bias, "bias", x, axis)
    return groups


cdef int check_channel_vector(cnp.ndarray parameter, str name, cnp.ndarray x, int axis) except -1:
    """None, a vector of a value per channel, the same as (1, C), or one per sample and channel."""
    cdef int ndim
    if parameter is None or is_of_samples(parameter, x, axis):
        return 0
    ndim = cnp.PyArray_NDIM(parameter)
    if not (ndim == 1 or ndim == 2 and cnp.PyArray_DIM(parameter, 0) == 1) or (
            cnp.PyArray_DIM(parameter, ndim - 1) != cnp.PyArray_DIM(x, axis)):
        error = RuntimeError(f"Expected {name} to be a vector of size equal to the number of channels in input, but "
                             f"got {name} of shape {size_list(parameter)} and input of shape {size_list(x)}")
        if cnp.PyArray_SIZE(parameter) == cnp.PyArray_DIM(x, axis):
            raise hints().noted(error, f"pass {name}.reshape(-1)")
        raise wrong_parameter(error, x, axis, name, parameter)
    return 0


cdef object group_count(object num_groups):
    """The argument `num_groups` as an int."""
    if isinstance(num_groups, cnp.ndarray):
        raise TypeError(hints().number("num_groups", num_groups, "an integer"))
    return as_int(num_groups, "num_groups")


cdef int check_row_parameter(cnp.ndarray parameter, str name, tuple shape, cnp.ndarray x, tuple axes) except -1:
    """None, or a parameter of the shape of a row; or of the input's rank, with the row at its axes and the input's
    size or 1 at the others."""
    cdef int i, ndim = cnp.PyArray_NDIM(x), first = ndim - len(shape)
    cdef bint fits
    if parameter is None or has_shape(parameter, shape):
        return 0
    fits = cnp.PyArray_NDIM(parameter) == ndim and first > 0
    for i in range(ndim if fits else 0):
        if cnp.PyArray_DIM(parameter, i) != cnp.PyArray_DIM(x, i) and (
                cnp.PyArray_DIM(parameter, i) != 1 or (i >= first if axes is None else i in axes)):
            fits = False
    if not fits:
        check_given_shape(parameter, name, shape, ndim)
        raise RuntimeError(f"Expected {name} to be of normalized_shape = {list(shape)}, or to have the sizes of the input "
                           f"{size_list(x)} at the normalized axes and these or 1 at the others, but got {name} of shape "
                           f"{size_list(parameter)}")
    return 0


cdef int check_row(cnp.ndarray x, tuple shape, tuple axes, cnp.ndarray weight, cnp.ndarray bias) except -1:
    """An input whose last axes, or `axes`, are a row's, and parameters of its shape."""
    cdef int ndim = cnp.PyArray_NDIM(x), k = len(shape)
    if k == 0:
        raise RuntimeError("Expected normalized_shape to be at least 1-dimensional, i.e., containing at least "
                           f"one element, but got normalized_shape = {list(shape)}")
    if axes is None:
        fits = ndim >= k and sizes_are(x, ndim - k, shape)
    else:
        fits = tuple([cnp.PyArray_DIM(x, axis) for axis in axes]) == shape
    if not fits:
        check_given_shape(weight, "weight", shape, ndim)
        check_given_shape(bias, "bias", shape, ndim)
        where = "" if axes is None else f" at axes {axes}"
        expected = ", ".join((["*"] if axes is None else []) + [str(n) for n in shape])
        error = RuntimeError(f"Given normalized_shape={list(shape)}, expected input with shape [{expected}]{where}, "
                             f"but got input of size{size_list(x)}")
        raise hints().noted(error, hints().row(shape_of(x), shape) if axes is None else
                            hints().row_at(shape_of(x), shape, axes))
    check_row_parameter(weight, "weight", shape, x, axes)
    check_row_parameter(bias, "bias", shape, x, axes)
    return 0


cdef int check_given_shape(cnp.ndarray parameter, str name, tuple shape, int ndim) except -1:
    """Refuse, in torch's words, a parameter that is neither of the shape of a row nor of the input's rank."""
    if parameter is not None and (cnp.PyArray_NDIM(parameter) != ndim or ndim <= len(shape)) and (
            not has_shape(parameter, shape)):
        error = RuntimeError(f"Expected {name} to be of same shape as normalized_shape, but got {name} of shape "
                             f"{size_list(parameter)} and normalized_shape = {list(shape)}")
        if cnp.PyArray_NDIM(parameter) == 0:
            raise hints().noted(error, hints().scalar(name, parameter))
        raise error
    return 0


cdef tuple as_axes(object axis, str name="axis", bint optional=True):
    """The argument `axis` as a tuple of ints, or None where that may be."""
    if axis is None and optional:
        return None
    if isinstance(axis, (int, str)) or (hasattr(axis, "__index__") and not isinstance(axis, cnp.ndarray)):
        return (as_int(axis, name),)
    try:
        axis = tuple(axis)
    except TypeError as error:
        raise TypeError(hints().axes(name, axis, optional)) from error
    return tuple([as_int(n, name) for n in <tuple> axis])


cdef int resolve_axes(tuple axes, int ndim, int *found, str name="axis") except -1:
    """Axes of an input of `ndim` dimensions, counted from its first: `found` in their order, which has room for
    `ndim`. Returns how many."""
    cdef Py_ssize_t axis
    cdef int count = 0, i
    for given in axes:
        axis = as_size(given)
        if not -ndim <= axis < ndim:
            raise AxisError(f"{name} {given} is out of bounds for an input with {ndim} dimensions"
                            + hints().beyond(name, ndim))
        axis += ndim if axis < 0 else 0
        for i in range(count):
            if found[i] == axis:
                raise ValueError(f"{name} must name each axis once, but names axis {axis} twice: {axes}")
        found[count] = <int> axis
        count += 1
    return count


cdef tuple row_axes(tuple axis, cnp.ndarray x, tuple shape):
    """The axes of an input that belong to the dimensions of normalized_shape; None where they are the last ones."""
    cdef int ndim = cnp.PyArray_NDIM(x), count, i
    cdef int found[MAX_DIMS]
    cdef bint last = True
    if axis is None:
        return None
    if len(axis) != len(shape):
        raise ValueError(hints().axes_of_row(shape, axis))
    count = resolve_axes(axis, ndim, found)
    for i in range(count):
        last = last and found[i] == ndim - count + i
    return None if last else tuple([found[i] for i in range(count)])


cdef tuple as_row_shape(object normalized_shape):
    """The argument as a tuple of ints."""
    if type(normalized_shape) is int:
        return (normalized_shape,)
    if type(normalized_shape) is not tuple:
        if hasattr(normalized_shape, "__index__") and not isinstance(normalized_shape, cnp.ndarray):
            return (as_int(normalized_shape, "normalized_shape"),)
        try:
            sizes = tuple(normalized_shape)
        except TypeError as error:
            raise TypeError(hints().number("normalized_shape", normalized_shape,
                                           "an integer or a sequence of integers")) from error
        try:
            return tuple([as_int(n, "normalized_shape") for n in <tuple> sizes])
        except TypeError as error:
            raise TypeError(hints().row_shape(normalized_shape, error)) from error
    return tuple([as_int(n, "normalized_shape") for n in <tuple> normalized_shape])


cdef bint has_shape(cnp.ndarray parameter, tuple shape) except -1:
    """Whether a parameter has the shape."""
    return cnp.PyArray_NDIM(parameter) == len(shape) and sizes_are(parameter, 0, shape)


cdef bint sizes_are(cnp.ndarray a, int first, tuple shape) except -1:
    """Whether the axes of an array from `first` on have these sizes, of which there are as many; without a tuple."""
    cdef int i
    for i in range(len(shape)):
        if cnp.PyArray_DIM(a, first + i) != as_size(shape[i]):
            return False
    return True


cdef cnp.ndarray as_gradient(cnp.ndarray grad_output, cnp.ndarray x, str name="grad_output"):
    """grad_output, checked against the input it belongs to."""
    cdef cnp.ndarray dy = as_floats(grad_output, name)
    if not same_shape(dy, x):
        raise ValueError(f"{name} must have the input's shape {shape_of(x)}, but got {shape_of(dy)}")
    if dtype_code(dy) != dtype_code(x):
        raise TypeError(f"{name} must have the input's dtype {x.dtype}, but got {dy.dtype}")
    return dy


cdef cnp.ndarray as_statistic(cnp.ndarray values, str name, Py_ssize_t n, str shape):
    """Statistics as a plain float64 array of n values; `shape` is what a message calls their shape."""
    cdef cnp.ndarray a = as_doubles(values, name)
    if cnp.PyArray_SIZE(a) != n:
        raise ValueError(f"{name} must have shape {shape}, but got {shape_of(a)}")
    return a


cdef int check_running(cnp.ndarray running, str name, Py_ssize_t channels, cnp.ndarray x=None,
                        int axis=0) except -1:
    """None, or a float array of a value per channel: of the input on that axis, where these are given."""
    if running is None or is_plain_vector(running, cnp.NPY_FLOAT32, channels):
        return 0
    check_length(running, name, channels, x, axis)
    if dtype_code(running) < 0:
        raise TypeError(hints().floats(name, running, "a float array"))
    return 0


cdef int check_writable(cnp.ndarray running, str name) except -1:
    """None, or an array that training can update."""
    if running is None:
        return 0
    if not cnp.PyArray_ISWRITEABLE(running):
        raise ValueError(f"{name} is read-only, and training updates it")
    check_written(running, name)
    return 0


cdef int check_counter(cnp.ndarray count, str name) except -1:
    """One number that training can update."""
    if not is_counter(count) and dtype_of(count).kind not in "iuf":
        raise TypeError(f"{name} must be an array of one number, but got dtype {count.dtype}")
    return check_writable(count, name)


cdef bint is_counter(cnp.ndarray count) noexcept:
    """Whether it is None, or one int64."""
    return count is None or (
        cnp.PyArray_NDIM(count) == 0 and is_native(count) and cnp.PyArray_TYPE(count) == cnp.NPY_INT64)


cdef int check_length(cnp.ndarray parameter, str name, Py_ssize_t channels, cnp.ndarray x, int axis) except -1:
    """None, or a value per channel: of the input on that axis, unless the input is None."""
    if parameter is not None and cnp.PyArray_SIZE(parameter) != channels:
        raise wrong_parameter(RuntimeError(f"{name} should contain {channels} elements not "
                                           f"{cnp.PyArray_SIZE(parameter)}"), x, axis, name, parameter)
    return 0


cdef object wrong_parameter(object error, cnp.ndarray x, int axis, str name, cnp.ndarray parameter):
    """The error of a call whose parameter `name` is not of the input's channels, or is a number."""
    if cnp.PyArray_NDIM(parameter) == 0 and name in ("weight", "bias"):
        return hints().noted(error, hints().scalar(name, parameter))
    return wrong_channels(error, x, axis, name, cnp.PyArray_SIZE(parameter), 0)


cdef object wrong_channels(object error, cnp.ndarray x, int axis, str name, Py_ssize_t channels, Py_ssize_t groups):
    """The error of a call that takes another axis for the channels, or has other channels than the parameter `name`;
    `channels` or `groups` says which axes fit."""
    if x is None:
        return error
    return hints().noted(error, hints().channels(shape_of(x), axis, name, channels, groups))


cdef int axis_of(object channel_axis, int ndim) except -1:
    """The axis that an int names."""
    cdef Py_ssize_t axis = as_size(channel_axis)
    if not -ndim <= axis < ndim:
        raise ValueError(f"channel_axis {channel_axis} is out of bounds for an input with {ndim} dimensions: "
                         "1 is channels first, -1 channels last")
    return axis + ndim if axis < 0 else axis


cdef int check_one_activation(object negative_slope, object clip) except -1:
    """At most one of the two is given; `clip` is one that bounds something."""
    if negative_slope is not None and clip is not None:
        raise ValueError("negative_slope and clip exclude each other: pass one of them, but got a negative_slope and "
                         f"clip={clip!r}")
    return 0


cdef bint clip_bounds(object clip, double *low, double *high) except -1:
    """Whether the argument `clip` bounds anything: None, or a pair of which each is a bound or None. An open side is
    NaN, which every comparison passes by."""
    low[0] = high[0] = NAN
    if clip is None:
        return False
    try:
        lowest, highest = clip
    except TypeError as error:
        raise TypeError(f"clip must be None or a pair (low, high), but got {type(clip).__name__}") from error
    except ValueError as error:
        raise ValueError(f"clip must be None or a pair (low, high), but got {clip!r}") from error
    if lowest is not None:
        low[0] = clip_bound(lowest, "low", clip)
    if highest is not None:
        high[0] = clip_bound(highest, "high", clip)
    if low[0] > high[0]:
        raise ValueError(f"clip=(low, high) must have low <= high, but got {clip!r}")
    return lowest is not None or highest is not None


cdef double clip_bound(object value, str side, object clip) except? -1:
    """One bound of `clip`."""
    cdef double bound = as_float(value, f"{side} of clip")
    if bound != bound:
        raise ValueError(f"{side} of clip must not be NaN, but got {clip!r}; None leaves a side open")
    return bound


def as_clip(clip):
    """The argument `clip` as None or a pair of float or None, for Python modules of this package."""
    cdef double low, high
    if not clip_bounds(clip, &low, &high):
        return None
    return None if low != low else low, None if high != high else high
