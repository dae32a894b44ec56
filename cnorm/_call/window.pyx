"""Response norms, from arguments to kernels."""

import numpy as np

cimport numpy as cnp
from libc.string cimport memset

from cnorm._call.arrays cimport (as_array, as_float, as_floats, as_int, as_out, as_size, checked_out, checked_product,
                                 float64_data, hints, writable_in_place)
from cnorm._call.checks cimport as_gradient, axis_of
from cnorm._call.launch cimport launch
from cnorm._call.output cimport ChannelAxisCall, set_tensor, slope_gradient
from cnorm._plan cimport UNITS, Plan
from cnorm._pool cimport empty_like
from cnorm._runtime cimport threads_for
from cnorm.kernels.job cimport FLOAT64, WINDOW_BACKWARD, WINDOW_FORWARD, WindowJob

cdef extern from "Python.h":
    Py_ssize_t PY_SSIZE_T_MAX

cnp.import_array()


cdef class WindowCall(ChannelAxisCall):
    """One call of a response norm."""
    cdef WindowJob job

    cdef int convert_window(self, object size, object alpha, object beta, object k, bint legacy) except -1:
        """Convert the arguments, and check the size."""
        cdef object length = as_int(size, "size")
        cdef Py_ssize_t n = as_size(length)
        if n < 1 or n == PY_SSIZE_T_MAX:
            few = "a window has at least one channel" if n < 1 else "no array has so many channels"
            raise ValueError(f"size must be how many channels a window has, but got {length}: {few}")
        memset(&self.job, 0, sizeof(self.job))
        self.job.legacy = legacy
        self.job.before = (n - 1) // 2 if legacy else n // 2
        self.job.after = (n - 1) // 2
        self.job.alpha = as_float(alpha, "alpha") / n
        self.job.beta = as_float(beta, "beta")
        self.job.k = as_float(k, "k")
        return 0

    cdef int check_input(self, cnp.ndarray x, object channel_axis) except -1:
        """Take the input, and let no window be wider than its channels."""
        cdef int axis
        if cnp.PyArray_NDIM(x) < 3:
            raise ValueError(f"Expected 3D or higher dimensionality input (got {cnp.PyArray_NDIM(x)} dimensions)")
        axis = axis_of(channel_axis, cnp.PyArray_NDIM(x))
        if axis == 0:
            raise ValueError(hints().channel_axis_of_batch())
        self.set_axes(x, 0, axis, cnp.PyArray_DIM(x, axis))
        self.job.before = min(self.job.before, self.channels)
        self.job.after = min(self.job.after, self.channels)
        self.check_slope(self.channels)
        return 0

    cdef cnp.ndarray run(self, cnp.ndarray out, cnp.ndarray grad_output):
        """Forward, or with a grad_output backward."""
        cdef Plan p
        cdef int i
        cdef Py_ssize_t weighed
        self.resolve_output(&p, out, grad_output)
        # Channels first, a window reads what its neighbour writes.
        if grad_output is None and p.family == UNITS and self.y is self.result and not writable_in_place(
                self.y, self.x, False):
            self.y = empty_like(self.x)
            self.plan(2, &p)
        if not self.elements:
            return self.result
        for i in range(5):
            self.job.shape[i] = p.shape[i]
        self.job.channels_last = p.family != UNITS
        self.job.head.dtype = self.dtype
        # an element takes about as long as 4 of another norm
        weighed = checked_product(self.bytes, 4, "the input")
        self.job.head.threads = threads_for(weighed)
        set_tensor(&self.job.x, self.x, &p, 0)
        set_tensor(&self.job.y, self.y, &p, 1)
        if grad_output is not None:
            set_tensor(&self.job.dy, self.dy, &p, 2)
        self.job.activation = self.activation
        self.job.slope = self.slope
        self.job.low = self.low
        self.job.high = self.high
        self.job.slopes = float64_data(self.slopes)
        launch(WINDOW_FORWARD if grad_output is None else WINDOW_BACKWARD, &self.job.head, weighed, "sums")
        return self.copy_out()


cdef object response_norm_forward(object input, object size, object alpha, object beta, object k, bint legacy,
                                  object out, object channel_axis, object negative_slope, object clip):
    """local_response_norm, or with `legacy` cross_map_lrn."""
    cdef WindowCall call = <WindowCall> WindowCall.__new__(WindowCall)
    cdef cnp.ndarray x = as_array(input, "input"), into = as_out(out, "out")
    call.convert_window(size, alpha, beta, k, legacy)
    call.convert_activation(negative_slope, clip)
    channel_axis = as_int(channel_axis, "channel_axis")
    call.check_input(as_floats(x, "input"), channel_axis)
    return call.run(into, None)


cdef object response_norm_backward(object grad_output, object input, object size, object alpha, object beta,
                                   object k, bint legacy, object out, object channel_axis, object negative_slope,
                                   object clip):
    """Backward of the response norms."""
    cdef WindowCall call = <WindowCall> WindowCall.__new__(WindowCall), response
    cdef cnp.ndarray x = as_array(input, "input"), dy = as_array(grad_output, "grad_output"), into = as_out(out, "out")
    cdef cnp.ndarray y
    call.convert_window(size, alpha, beta, k, legacy)
    call.convert_activation(negative_slope, clip)
    channel_axis = as_int(channel_axis, "channel_axis")
    x = as_floats(x, "input")
    dy = as_gradient(dy, x)
    call.check_input(x, channel_axis)
    if not call.slope_gradient:
        return call.run(into, dy)
    if into is not None:
        checked_out(into, x)
    if call.dtype != FLOAT64:  # the result that the slope multiplies, not yet rounded to a half type
        x = x.astype(np.float32, copy=False)
    response = <WindowCall> WindowCall.__new__(WindowCall)
    response.job = call.job
    response.check_input(x, channel_axis)
    y = response.run(None, None)
    axes = tuple([i for i in range(cnp.PyArray_NDIM(x)) if i != call.channel_axis])
    grad_slope = slope_gradient(np.where(y > 0, 0, dy.astype(np.float64) * y).sum(axes), call.slope_array)
    return call.run(into, dy), grad_slope
