"""The arrays of a call that kernels write: out=, in place, copies, workspace, gradients of parameters."""

import numpy as np

cimport cython
cimport numpy as cnp
from libc.string cimport memset

from cnorm._call.arrays cimport (accumulation_type, as_array, as_doubles, as_float, checked_out, checked_product,
                                 copy_if_overlapping, copy_like, dtype_code, float64_array, float64_data,
                                 is_native, new_float64, shape_of, writable_in_place)
from cnorm cimport _runtime
from cnorm._call.checks cimport check_one_activation, clip_bounds
from cnorm._call.masks cimport Mask
from cnorm._call.observe cimport note
from cnorm._plan cimport ARRAYS, COPY, Plan, plan_channels
from cnorm._pool cimport empty_like, new_array
from cnorm._runtime cimport kernels, threads_for
from cnorm.kernels.job cimport ACT_CLIP, ACT_SLOPE, ACT_SLOPES, Job

cdef extern from *:
    """
    _Static_assert(CNORM_MAX_DIMS == NPY_MAXDIMS, "arrays may have more axes than a plan has room for");
    """

cnp.import_array()


@cython.no_gc
cdef class Call:
    """The arrays of one call: x and dy are read, y is written, `result` is what the caller gets."""

    cdef int begin_job(self, double eps, Job *a) except -1:
        """Begin to describe the call to a kernel: what all norms have in common; the rest is 0."""
        memset(a, 0, sizeof(Job))
        a.head.dtype = self.dtype
        a.head.threads = threads_for(self.bytes)
        a.activation = self.activation
        a.slope = self.slope
        a.low = self.low
        a.high = self.high
        a.finish.eps = eps
        return 0

    cdef double *heap_workspace(self, Py_ssize_t n) except NULL:
        """`workspace` that is not left on the stack."""
        self.heap_blocks = (new_float64(n), self.heap_blocks)
        return float64_data((<tuple> self.heap_blocks)[0])

    cdef int protect_inputs(self, cnp.ndarray written) except -1:
        """Copy what a kernel reads besides x and the gradients, where writing to this array would change it."""
        if self.slopes is not None:
            self.slopes = copy_if_overlapping(self.slopes, written)
        if self.mask is not None:
            self.mask.where = copy_if_overlapping(self.mask.where, written)
        return 0

    cdef int plan(self, int arrays, Plan *p) except -1:
        """The plan for the first `arrays` of x, y, dy and addend."""
        raise NotImplementedError

    cdef int resolve_output(self, Plan *p, cnp.ndarray out, cnp.ndarray grad_output, cnp.ndarray addend=None) except -1:
        """Choose where the result goes, and the plan; copy what no kernel takes as it is.

        A result that the kernel cannot write goes through memory of its own, and so does one that
        overlaps x or a gradient without being the same elements; `protect_inputs` looks after all else that is read.
        """
        cdef int arrays = 2 if grad_output is None else 3 if addend is None else 4
        if out is None:
            self.result = empty_like(self.x)
            self.y = self.result
        else:
            self.result = checked_out(out, self.x)
            self.protect_inputs(out)
            self.y = self.result
            if not is_native(self.y) or not writable_in_place(self.result, self.x, True) or (
                    grad_output is not None and not writable_in_place(self.result, grad_output, True)) or (
                    addend is not None and not writable_in_place(self.result, addend, True)):
                self.y = empty_like(self.x)
                if _runtime.observing:
                    note("the result goes through memory of its own: out overlaps what is read, or is not aligned, "
                         "or not in this machine's byte order")
        self.dy = grad_output
        self.addend = addend
        self.plan(arrays, p)
        if p.family != COPY:  # a layout that is accepted for all arrays is accepted for any of them
            return 0
        self.copy_for_plan(arrays, p)
        if _runtime.observing:
            self.note_copies(out, grad_output)
        return 0

    cdef int note_copies(self, cnp.ndarray out, cnp.ndarray grad_output) except -1:
        """Say what `copy_for_plan` copied."""
        if self.y is not self.result:
            note("the result goes through memory of its own: no kernel writes the strides of the result together with "
                 "those of the input")
        if self.dy is not grad_output:
            note("grad_output is copied: no kernel reads its strides together with the input's")
        return 0

    cdef cnp.ndarray copy_in_order(self, cnp.ndarray a):
        """A copy of which a kernel takes the layout, or the array itself if it is one."""
        return np.ascontiguousarray(a)

    cdef int copy_for_plan(self, int arrays, Plan *p) except -1:
        """Copy arrays, as few as can be, until a kernel takes the layout of all."""
        self.plan(1, p)
        if p.family == COPY:
            self.x = self.copy_in_order(self.x)
            if _runtime.observing:
                note("the input is copied: no kernel reads its strides")
        self.plan(2, p)
        if p.family == COPY:
            self.y = empty_like(self.x)
            self.plan(2, p)
        if p.family == COPY:
            self.x = self.copy_in_order(self.x)
            self.y = empty_like(self.x)
            self.plan(2, p)
        if self.dy is not None:
            self.plan(arrays, p)
            if p.family == COPY:
                self.dy = copy_like(self.dy, self.x)
                self.addend = copy_like(self.addend, self.x) if self.addend is not None else None
                self.plan(arrays, p)
            if p.family == COPY:
                self.x = self.copy_in_order(self.x)
                self.y = empty_like(self.x)
                self.dy = self.copy_in_order(self.dy)
                self.addend = self.copy_in_order(self.addend) if self.addend is not None else None
                self.plan(arrays, p)
        return 0

    cdef cnp.ndarray copied_out(self):
        """`copy_out` where there is something to copy."""
        if self.mask is None:
            cnp.PyArray_CopyInto(self.result, self.y)
        else:
            self.mask.copy_selected(self.result, self.y)
        return self.result

    cdef int check_mask(self, Mask given, cnp.ndarray x, cnp.ndarray out) except -1:
        """`take_mask` of one that is given."""
        given.check(x, out is not None)
        self.mask = None if given.where is None else given
        return 0

    cdef int convert_given_activation(self, object negative_slope, object clip) except -1:
        """`convert_activation` where either is given."""
        self.convert_slope(negative_slope)
        if clip is not None and clip_bounds(clip, &self.low, &self.high):
            check_one_activation(negative_slope, clip)
            self.activation = ACT_CLIP
        return 0

    cdef int convert_slope(self, object negative_slope) except -1:
        """Convert the argument: None, a number, or an array of 1 or C."""
        if negative_slope is None:
            return 0
        self.activation = ACT_SLOPE
        if isinstance(negative_slope, (float, int)) and not isinstance(negative_slope, bool):
            self.slope = as_float(negative_slope, "negative_slope")
            return 0
        self.slope_array = as_array(negative_slope, "negative_slope")
        self.slope_gradient = isinstance(negative_slope, cnp.ndarray) or cnp.PyArray_NDIM(self.slope_array) > 0
        return 0

    cdef int check_slope_array(self, Py_ssize_t channels) except -1:
        """`check_slope` where they are an array."""
        cdef cnp.ndarray values = as_doubles(self.slope_array, "negative_slope")
        if cnp.PyArray_SIZE(values) == 1:
            self.slope = float64_data(values)[0]
        elif cnp.PyArray_SIZE(values) == channels:
            self.activation = ACT_SLOPES
            self.slopes = values
        else:
            raise ValueError(f"negative_slope must hold 1 or {channels} values, but got {values.size}")
        return 0


@cython.no_gc
cdef class ChannelAxisCall(Call):
    """A call that sees its arrays as (samples, channels, everything spatial)."""

    cdef int set_axes(self, cnp.ndarray x, int batch_axis, int channel_axis, Py_ssize_t groups) except -1:
        """Take the input. `groups` is 0 where a unit is a channel of the batch, else the groups of a sample."""
        self.set_input(x)
        self.batch_axis = batch_axis
        self.channel_axis = channel_axis
        self.groups = groups
        self.channels = cnp.PyArray_DIM(x, channel_axis)
        self.samples = cnp.PyArray_DIM(x, batch_axis) if batch_axis >= 0 else 1
        checked_product(self.samples, self.groups, "the statistics of this call")  # groups without channels too
        return 0

    cdef int plan(self, int arrays, Plan *p) except -1:
        cdef const Py_ssize_t *shape
        cdef const Py_ssize_t *strides[ARRAYS]
        self.layouts(arrays, &shape, strides)
        plan_channels(p, cnp.PyArray_NDIM(self.x), shape, strides, arrays, self.batch_axis, self.channel_axis,
                      self.groups, cnp.PyArray_ITEMSIZE(self.x))
        return 0


cdef cnp.ndarray gradient_array(cnp.ndarray parameter, int dtype, int ndim, cnp.npy_intp *shape):
    """A new array for the gradient of a parameter, in its shape and dtype; None where kernels cannot write that.

    Without a parameter: of the accumulation type, of the shape that one would have.
    """
    if parameter is None:
        return new_array(accumulation_type(dtype), ndim, shape)
    if dtype_code(parameter) < 0 or not is_native(parameter):
        return None
    return new_array(cnp.PyArray_TYPE(parameter), cnp.PyArray_NDIM(parameter), cnp.PyArray_DIMS(parameter))


cdef cnp.ndarray gradient_buffer(cnp.ndarray parameter, int dtype, int ndim, cnp.npy_intp *shape):
    """A gradient of the accumulation type, as kernels leave it; None where the parameter has another."""
    if parameter is not None and cnp.PyArray_TYPE(parameter) != accumulation_type(dtype):
        return None
    return gradient_array(parameter, dtype, ndim, shape)


cdef object gradient_from_sums(const double *sums, Py_ssize_t n, cnp.ndarray parameter, int dtype, int ndim,
                               cnp.npy_intp *shape):
    """The gradient of a parameter, which was summed in double."""
    cdef cnp.ndarray a = gradient_array(parameter, dtype, ndim, shape)
    if a is None:
        return float64_array(sums, n).reshape(shape_of(parameter)).astype(parameter.dtype.newbyteorder("="))
    if cnp.PyArray_SIZE(a) != n:
        raise RuntimeError(f"a parameter was resized to {cnp.PyArray_SIZE(a)} elements while its gradient was taken")
    kernels.narrow(dtype_code(a), sums, n, cnp.PyArray_BYTES(a))
    return a


cdef object slope_gradient(cnp.ndarray per_channel, cnp.ndarray slope):
    """A gradient per channel in the shape and dtype of the slope, in this machine's byte order."""
    if cnp.PyArray_SIZE(slope) == 1:
        per_channel = np.asarray(per_channel.sum())
    return per_channel.reshape(shape_of(slope)).astype(slope.dtype.newbyteorder("="))
