# Response norms, from arrays to kernels.

cdef class WindowCall(Channels):
    """One call of a response norm."""
    cdef WindowJob job

    cdef int response(self, object size, object alpha, object beta, object k, bint legacy) except -1:
        """Convert the arguments, and check the size."""
        cdef object length = integer(size, "size")
        cdef Py_ssize_t n = clipped(length)
        if n < 1 or n == PY_SSIZE_T_MAX:
            raise ValueError(f"size must be positive and less than {PY_SSIZE_T_MAX}, but got {length}")
        memset(&self.job, 0, sizeof(self.job))
        self.job.legacy = legacy
        self.job.before = (n - 1) // 2 if legacy else n // 2
        self.job.after = (n - 1) // 2
        self.job.alpha = number(alpha, "alpha") / n
        self.job.beta = number(beta, "beta")
        self.job.k = number(k, "k")
        return 0

    cdef int over(self, cnp.ndarray x, object channel_axis) except -1:
        """The input, and no window wider than it."""
        cdef int axis
        if cnp.PyArray_NDIM(x) < 3:
            raise ValueError(f"Expected 3D or higher dimensionality input (got {cnp.PyArray_NDIM(x)} dimensions)")
        axis = axis_of(channel_axis, cnp.PyArray_NDIM(x))
        if axis == 0:
            raise ValueError("channel_axis 0 is the batch")
        self.set(x, 0, axis, cnp.PyArray_DIM(x, axis))
        self.job.before = min(self.job.before, self.channels)
        self.job.after = min(self.job.after, self.channels)
        self.epilogue(self.channels)
        return 0

    cdef cnp.ndarray run(self, cnp.ndarray out, cnp.ndarray grad_output):
        cdef Plan p
        cdef int failed = 0, i
        self.settle(&p, out, grad_output)
        # channels first, a window reads what its neighbour writes
        if grad_output is None and p.family == UNITS and self.y is self.final and not writable_in_place(
                self.y, self.x, False):
            self.y = empty_like(self.x)
            self.plan(2, &p)
        if not self.elements:
            return self.final
        for i in range(5):
            self.job.shape[i] = p.shape[i]
        self.job.channels_last = p.family != UNITS
        self.job.dtype = self.storage
        self.job.threads = threads_for(product(self.bytes, 4, "the input"))
        set_tensor(&self.job.x, self.x, &p, 0)
        set_tensor(&self.job.y, self.y, &p, 1)
        if grad_output is not None:
            set_tensor(&self.job.dy, self.dy, &p, 2)
        self.job.activation = self.activation
        self.job.slope = self.slope
        self.job.slopes = data64(self.slopes)
        with nogil:
            failed = kernels.run_window(kernels.window_forward if grad_output is None else kernels.window_backward,
                                        &self.job)
        if failed:
            raise MemoryError("cnorm could not allocate the sums of this call")
        return self.finish()


cdef object response_forward(object input, object size, object alpha, object beta, object k, bint legacy,
                             object out, object channel_axis, object negative_slope):
    cdef WindowCall call = <WindowCall> WindowCall.__new__(WindowCall)
    cdef cnp.ndarray x = given(input, "input"), into = given_out(out, "out")
    call.response(size, alpha, beta, k, legacy)
    call.take_slope(negative_slope)
    channel_axis = integer(channel_axis, "channel_axis")
    call.over(floats(x, "input"), channel_axis)
    return call.run(into, None)


cdef object response_backward(object grad_output, object input, object size, object alpha, object beta,
                              object k, bint legacy, object out, object channel_axis, object negative_slope):
    cdef WindowCall call = <WindowCall> WindowCall.__new__(WindowCall), response
    cdef cnp.ndarray x = given(input, "input"), dy = given(grad_output, "grad_output"), into = given_out(out, "out")
    cdef cnp.ndarray y
    call.response(size, alpha, beta, k, legacy)
    call.take_slope(negative_slope)
    channel_axis = integer(channel_axis, "channel_axis")
    x = floats(x, "input")
    dy = gradient_like(dy, x)
    call.over(x, channel_axis)
    if not call.slope_gradient:
        return call.run(into, dy)
    if into is not None:
        checked_out(into, x)
    if call.storage != FLOAT64:  # the result that the slope multiplies, not yet rounded to a half type
        x = x.astype(np.float32, copy=False)
    response = <WindowCall> WindowCall.__new__(WindowCall)
    response.job = call.job
    response.over(x, channel_axis)
    y = response.run(None, None)
    axes = tuple([i for i in range(cnp.PyArray_NDIM(x)) if i != call.channel_axis])
    grad_slope = slope_gradient(np.where(y > 0, 0, dy.astype(np.float64) * y).sum(axes), call.slope_array)
    return call.run(into, dy), grad_slope
