"""normalize_image, from arguments to kernels: pixels of 8 or 16 bits or floats, channels on any axis."""

import warnings

import numpy as np

cimport numpy as cnp
from libc.math cimport fabs
from libc.string cimport memset

from cnorm cimport _runtime
from cnorm._call.arrays cimport (as_array, as_doubles, as_dtype, as_float, as_int, as_out, check_written, dtype_code, dtype_of,
                                 float64_data, hints, is_native, may_overlap, shape_of)
from cnorm._call.checks cimport axis_of
from cnorm._call.launch cimport launch
from cnorm._call.moments cimport wide_code
from cnorm._call.observe cimport note
from cnorm._call.standardize cimport result_dtype
from cnorm._plan cimport MAX_DIMS, axes_together
from cnorm._pool cimport new_array
from cnorm._runtime cimport kernels, threads_for
from cnorm.kernels.job cimport IMAGE_FORWARD, WIDE_INT32, WIDE_INT64, WIDE_UINT32, WIDE_UINT64, ImageJob
from cnorm.kernels.tuning cimport IMAGE_TABLE_MIN_PIXELS

cnp.import_array()


cdef class Image:
    """One call: x is read, y written; `channel` and `to` are their channel axes, -1 where one scalar serves all."""
    cdef cnp.ndarray x, y, mean, std
    cdef int channel, to
    cdef Py_ssize_t channels
    cdef double max_value

    cdef int take_constants(self, cnp.ndarray mean, cnp.ndarray std, object max_value) except -1:
        """mean, std and max_value, converted to double and checked."""
        self.mean = as_constant(mean, "mean")
        self.std = as_constant(std, "std")
        if not self.std.all():
            raise ValueError("std must not be 0: a channel without spread is not divided, so give it std 1")
        if max_value is not None:
            self.max_value = as_float(max_value, "max_value")
        elif cnp.PyArray_TYPE(self.x) == cnp.NPY_UINT8:
            self.max_value = 255
        else:
            raise ValueError(f"max_value must be given for dtype {self.x.dtype}: the value that stands for 1.0, for "
                             "example 65535 for uint16, or 1.0 for floats that are between 0 and 1")
        if not self.max_value > 0 or self.max_value - self.max_value != 0:
            raise ValueError(f"max_value must be positive and finite, but got {max_value}")
        return 0

    cdef int take_channels(self, object channel_axis, object out_channel_axis) except -1:
        """The channel axes, and constants of one value per channel."""
        cdef int ndim = cnp.PyArray_NDIM(self.x)
        cdef Py_ssize_t sizes = max(cnp.PyArray_SIZE(self.mean), cnp.PyArray_SIZE(self.std))
        self.channel = self.to = -1
        self.channels = 1
        if sizes == 1 and (ndim == 0 or out_channel_axis is None or out_channel_axis == channel_axis):
            return 0
        self.channel = axis_of(channel_axis, ndim)
        self.to = self.channel
        if out_channel_axis is not None:
            self.to = out_axis_of(out_channel_axis, ndim)
        self.channels = cnp.PyArray_DIM(self.x, self.channel)
        self.mean = per_channel(self.mean, "mean", self.channels, self.x, self.channel)
        self.std = per_channel(self.std, "std", self.channels, self.x, self.channel)
        return 0

    cdef cnp.ndarray moved(self, cnp.ndarray a):
        """An array in the result's order of axes, as a view in the input's."""
        return a if self.channel == self.to else np.moveaxis(a, self.to, self.channel)

    cdef object result_shape(self):
        shape = list(shape_of(self.x))
        if self.channel != self.to:
            shape.insert(self.to, shape.pop(self.channel))
        return tuple(shape)

    cdef cnp.ndarray new_result(self, object dtype):
        cdef cnp.npy_intp shape[MAX_DIMS]
        cdef int i = 0
        for n in self.result_shape():
            shape[i] = n
            i += 1
        return new_array(dtype.num, i, shape)

    cdef cnp.ndarray run(self, cnp.ndarray out, object dtype):
        """The result, in `out` where that is given."""
        cdef cnp.ndarray result = out if out is not None else self.new_result(dtype)
        cdef cnp.ndarray into = result
        cdef ImageJob job
        if not is_native(self.x):
            self.copy_input("it is not aligned, or not in this machine's byte order")
        if out is not None and may_overlap(out, self.x):
            self.copy_input("out overlaps it")
        if not is_native(result):
            into = np.empty(shape_of(result), dtype_of(result).newbyteorder("="))
        if cnp.PyArray_SIZE(result):
            self.y = self.moved(into)
            if not self.set_axes(&job):
                self.copy_input("it has more axes, apart in memory, than the kernel takes")
                if not self.set_axes(&job):
                    into = np.empty(shape_of(result), dtype_of(result))
                    self.y = self.moved(into)
                    self.set_axes(&job)
            self.normalize(&job)
        if into is not result:
            result[...] = into
        return result

    cdef int copy_input(self, str why) except -1:
        if _runtime.observing:
            note(f"input is copied: {why}")
        self.x = np.array(self.x, dtype_of(self.x).newbyteorder("="), order="C")
        return 0

    cdef bint set_axes(self, ImageJob *job) except -1:
        """The axes of x and y as images, channels, rows and pixels of a row; False where they are more.

        Neighbouring axes that are one in memory become one, and pixels lie along the axis of the smallest stride."""
        cdef list axes = [(cnp.PyArray_DIM(self.x, i), (cnp.PyArray_STRIDE(self.x, i), cnp.PyArray_STRIDE(self.y, i)))
                          for i in range(cnp.PyArray_NDIM(self.x)) if i != self.channel and cnp.PyArray_DIM(self.x, i) > 1]
        cdef list joined
        cdef int i, at
        axes.sort(key=lambda axis: -abs(axis[1][0]))
        joined = axes_together(axes)
        if len(joined) > 3:
            return False
        memset(job, 0, sizeof(ImageJob))
        for i in range(4):
            job.shape[i] = 1
        for i in range(len(joined)):
            at = (0, 2, 3)[3 - len(joined) + i]
            job.shape[at], (job.x_strides[at], job.y_strides[at]) = joined[i]
        if len(joined) == 0:
            job.x_strides[3] = cnp.PyArray_ITEMSIZE(self.x)
            job.y_strides[3] = cnp.PyArray_ITEMSIZE(self.y)
        if self.channel >= 0:
            job.shape[1] = self.channels
            job.x_strides[1] = cnp.PyArray_STRIDE(self.x, self.channel)
            job.y_strides[1] = cnp.PyArray_STRIDE(self.y, self.channel)
        job.x = cnp.PyArray_BYTES(self.x)
        job.y = cnp.PyArray_BYTES(self.y)
        job.head.dtype = wide_code(self.x)
        job.out_dtype = dtype_code(self.y)
        job.mean = float64_data(self.mean)
        job.std = float64_data(self.std)
        job.max_value = self.max_value
        job.head.threads = threads_for(cnp.PyArray_NBYTES(self.y))
        return True

    cdef int normalize(self, ImageJob *job) except -1:
        """Run the kernel; many pixels of 8 bits through a table, which the kernel makes."""
        cdef cnp.ndarray values, table
        cdef ImageJob entries
        cdef Py_ssize_t pixels = cnp.PyArray_SIZE(self.x) // job.shape[1], size = cnp.PyArray_NBYTES(self.y)
        if cnp.PyArray_ITEMSIZE(self.x) == 1 and pixels >= IMAGE_TABLE_MIN_PIXELS:
            values = np.arange(256, dtype=np.uint8)
            table = np.empty((job.shape[1], 256), dtype_of(self.y))
            entries = job[0]
            entries.head.threads = 1
            entries.x = cnp.PyArray_BYTES(values)
            entries.y = cnp.PyArray_BYTES(table)
            entries.shape[0] = entries.shape[2] = 1
            entries.shape[3] = 256
            entries.x_strides[1] = 0
            entries.x_strides[3] = 1
            entries.y_strides[1] = cnp.PyArray_STRIDE(table, 0)
            entries.y_strides[3] = cnp.PyArray_ITEMSIZE(table)
            kernels.run(IMAGE_FORWARD, &entries.head)
            job.table = cnp.PyArray_BYTES(table)
        return launch(IMAGE_FORWARD, &job.head, size, "result")


cdef cnp.ndarray as_constant(cnp.ndarray a, str name):
    """mean or std: one number or a vector of numbers, as float64."""
    if a is None:
        raise TypeError(f"{name} must be a number or an array of one number per channel, but got None")
    if dtype_code(a) < 0 and dtype_of(a).kind in "iub":
        a = a.astype(np.float64)
    a = as_doubles(a, name)
    if cnp.PyArray_NDIM(a) > 1 and cnp.PyArray_SIZE(a) != 1:
        raise ValueError(f"{name} must be a number or have one value per channel, but got shape {shape_of(a)}")
    return a.reshape(-1)


cdef int warn_of_pixel_means(cnp.ndarray mean) except -1:
    """Means that uint8 divided by 255 cannot have: those of the pixels themselves, most likely."""
    cdef double *values = float64_data(mean)
    cdef Py_ssize_t i
    for i in range(cnp.PyArray_SIZE(mean)):
        if fabs(values[i]) > 1:
            warnings.warn(f"uint8 is divided by 255 before mean and std are applied, and mean {values[i]} is not "
                          "between 0 and 1: pass max_value=1 if they are of 0 to 255", stacklevel=1)
            return 0
    return 0


cdef cnp.ndarray per_channel(cnp.ndarray a, str name, Py_ssize_t channels, cnp.ndarray x, int axis):
    """One number or one per channel, as one per channel."""
    cdef Py_ssize_t size = cnp.PyArray_SIZE(a)
    if size == channels:
        return a
    if size != 1:
        raise ValueError(
            f"{name} has {size} values, but the input of shape {shape_of(x)} has {channels} channels on axis {axis}: "
            + hints().image_channels(shape_of(x), axis, size))
    return np.repeat(a, channels)


cdef int out_axis_of(object axis, int ndim) except -2:
    try:
        return axis_of(axis, ndim)
    except ValueError:
        raise ValueError(f"out_channel_axis {axis} is out of bounds for an input with {ndim} dimensions") from None


cdef cnp.ndarray as_pixels(cnp.ndarray x):
    """An input of a dtype that pixels have."""
    cdef int code
    if x is None:
        raise TypeError("input must be an array, but got None")
    code = wide_code(x)
    if code < 0 or code in (WIDE_INT32, WIDE_UINT32, WIDE_INT64, WIDE_UINT64) or cnp.PyArray_TYPE(x) == cnp.NPY_BOOL:
        raise TypeError("input must be an array of uint8, int8, uint16, int16, float16, bfloat16, float32 or float64, "
                        f"but got dtype {x.dtype}: {hints().pixels(x)}")
    return x


cdef object image_normalized(object input, object mean, object std, object max_value, object channel_axis,
                             object out_channel_axis, object dtype, object out):
    """normalize_image."""
    cdef Image image = Image.__new__(Image)
    cdef cnp.ndarray means, stds, into
    if isinstance(input, np.ma.MaskedArray):
        raise TypeError("input must not be a masked array: normalize its .data, and keep the mask")
    image.x = as_array(input, "input")
    means, stds, into = as_array(mean, "mean"), as_array(std, "std"), as_out(out, "out")
    channel_axis = as_int(channel_axis, "channel_axis")
    if out_channel_axis is not None:
        out_channel_axis = as_int(out_channel_axis, "out_channel_axis")
    as_pixels(image.x)
    dtype = result_dtype(image.x, as_dtype(dtype), into)
    image.take_constants(means, stds, max_value)
    image.take_channels(channel_axis, out_channel_axis)
    if into is not None:
        if shape_of(into) != image.result_shape():
            raise ValueError(f"out must have shape {image.result_shape()}, but got {shape_of(into)}")
        check_written(into, "out")
    if max_value is None:
        warn_of_pixel_means(image.mean)
    return image.run(into, dtype)
