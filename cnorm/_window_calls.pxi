# Response norms, from arrays to kernels.

cdef class WindowCall(Channels):
    """One call of a response norm."""
    cdef WindowJob job

    cdef int response(self, object size, double alpha, double beta, double k, bint legacy) except -1:
        cdef Py_ssize_t n = operator.index(size)
        if n < 1:
            raise ValueError(f"size must be positive, but got {n}")
        memset(&self.job, 0, sizeof(self.job))
        self.job.legacy = legacy
        self.job.before = min((n - 1) // 2 if legacy else n // 2, self.channels)
        self.job.after = min((n - 1) // 2, self.channels)
        self.job.alpha = alpha / n
        self.job.beta = beta
        self.job.k = k
        return 0

    cdef cnp.ndarray run(self, object out, object grad_output):
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
        self.job.threads = threads_for(4 * self.bytes)
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


cdef WindowCall window_call(cnp.ndarray x, object channel_axis):
    cdef int ndim = cnp.PyArray_NDIM(x), axis
    cdef WindowCall call
    if ndim < 3:
        raise ValueError(f"Expected 3D or higher dimensionality input (got {ndim} dimensions)")
    axis = axis_of(channel_axis, ndim)
    if axis == 0:
        raise ValueError("channel_axis 0 is the batch")
    call = <WindowCall> WindowCall.__new__(WindowCall)
    call.set(x, 0, axis, cnp.PyArray_DIM(x, axis))
    return call


cdef object response_forward(object input, object size, double alpha, double beta, double k, bint legacy,
                             object out, object channel_axis, object negative_slope):
    cdef cnp.ndarray x = floats(input, "input")
    cdef WindowCall call = window_call(x, channel_axis)
    call.response(size, alpha, beta, k, legacy)
    call.epilogue(negative_slope, call.channels)
    return call.run(out, None)


cdef object response_backward(object grad_output, object input, object size, double alpha, double beta,
                              double k, bint legacy, object out, object channel_axis, object negative_slope):
    cdef cnp.ndarray x = floats(input, "input")
    cdef cnp.ndarray dy = gradient_like(grad_output, x)
    cdef WindowCall call = window_call(x, channel_axis)
    call.response(size, alpha, beta, k, legacy)
    call.epilogue(negative_slope, call.channels)
    if not has_slope_gradient(negative_slope):
        return call.run(out, dy)
    if call.storage != FLOAT64:  # the result that the slope multiplies, not yet rounded to a half type
        x = x.astype(np.float32, copy=False)
    y = response_forward(x, size, alpha, beta, k, legacy, None, channel_axis, None)
    axes = tuple(i for i in range(cnp.PyArray_NDIM(x)) if i != call.channel_axis)
    grad_slope = slope_gradient(np.where(y > 0, 0, dy.astype(np.float64) * y).sum(axes), negative_slope)
    return call.run(out, dy), grad_slope
