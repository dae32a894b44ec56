# Norms with a weight per channel: batch, instance and group norm, from arrays to kernels.
#
# `groups` is 0 for batch norm (a unit is a channel), C for instance norm, G for group norm.

cdef class Channels(Call):
    """One call of a norm with a weight per channel."""
    cdef int batch_axis, channel_axis
    cdef Py_ssize_t groups, channels, samples
    cdef cnp.ndarray weight, bias, mean, lo, m2, rstd
    cdef bint given
    cdef double eps

    def __cinit__(self, cnp.ndarray x, int batch_axis, int channel_axis, Py_ssize_t groups):
        self.take(x)
        self.batch_axis = batch_axis
        self.channel_axis = channel_axis
        self.groups = groups
        self.channels = cnp.PyArray_DIM(x, channel_axis)
        self.samples = cnp.PyArray_DIM(x, batch_axis) if batch_axis >= 0 else 1
        self.eps = 0

    cdef Py_ssize_t units(self):
        return self.samples * self.groups if self.groups else self.channels

    cdef Py_ssize_t unit_size(self):
        """Elements of a unit."""
        return self.elements // self.units() if self.units() else 0

    cdef int parameters(self, object weight, object bias, object negative_slope) except -1:
        if weight is not None:
            self.weight = doubles(weight, "weight")
        if bias is not None:
            self.bias = doubles(bias, "bias")
        self.epilogue(negative_slope, self.channels)
        return 0

    cdef int new_statistics(self) except -1:
        cdef Py_ssize_t n = self.units()
        self.mean = new64(n)
        self.rstd = new64(n)
        self.m2 = new64(n)
        self.lo = new64(n)
        return 0

    cdef Plan plan(self, int arrays):
        cdef const Py_ssize_t *shape
        cdef const Py_ssize_t *strides[ARRAYS]
        self.layouts(arrays, &shape, strides)
        return plan_channels(cnp.PyArray_NDIM(self.x), shape, strides, arrays, self.batch_axis,
                             self.channel_axis, self.groups, cnp.PyArray_ITEMSIZE(self.x))

    cdef Units units_job(self, const Plan *p):
        cdef Units a
        cdef int i
        memset(&a, 0, sizeof(a))
        for i in range(5):
            a.shape[i] = p.shape[i]
        a.storage = self.storage
        a.threads = threads_for(self.elements * cnp.PyArray_ITEMSIZE(self.x))
        a.x = view_of(self.x, p, 0)
        if self.y is not None:
            a.y = view_of(self.y, p, 1)
        if self.dy is not None:
            a.dy = view_of(self.dy, p, 2)
        a.centred = True
        a.given = self.given
        a.by_segment = self.groups != 0
        a.activation = self.activation
        a.slope = self.slope
        a.eps = self.eps
        a.mean = data64(self.mean)
        a.rstd = data64(self.rstd)
        a.m2 = data64(self.m2)
        a.lo = data64(self.lo)
        a.weight = data64(self.weight)
        a.bias = data64(self.bias)
        a.slopes = data64(self.slopes)
        return a

    cdef Columns columns_job(self, const Plan *p):
        cdef Columns a
        cdef Units u = self.units_job(p)
        cdef int i
        memset(&a, 0, sizeof(a))
        for i in range(5):
            a.shape[i] = p.shape[i]
        a.storage = u.storage
        a.threads = u.threads
        a.x = u.x
        a.y = u.y
        a.dy = u.dy
        a.given = u.given
        a.activation = u.activation
        a.slope = u.slope
        a.group = self.channels // self.groups if self.groups else 1
        a.eps = u.eps
        a.mean = u.mean
        a.rstd = u.rstd
        a.m2 = u.m2
        a.lo = u.lo
        a.weight = u.weight
        a.bias = u.bias
        a.slopes = u.slopes
        return a

    cdef cnp.ndarray forward(self, object out):
        cdef Plan p = self.settle(out, None)
        cdef Units u
        cdef Columns c
        cdef int failed = 0
        if self.elements == 0:
            self.empty_statistics()
            return self.final
        if p.family == UNITS:
            u = self.units_job(&p)
            with nogil:
                failed = kernels.units_forward(&u)
        else:
            c = self.columns_job(&p)
            with nogil:
                failed = kernels.columns_forward(&c)
        if failed:
            raise MemoryError("cnorm could not allocate the statistics of this call")
        return self.finish()

    cdef int moments(self) except -1:
        """mean, lo, m2 and rstd, nothing applied."""
        cdef Plan p = self.plan(1)
        cdef Units u
        cdef Columns c
        cdef int failed = 0
        if self.elements == 0:
            self.empty_statistics()
            return 0
        if p.family == COPY:
            self.x = np.ascontiguousarray(self.x)
            p = self.plan(1)
        if p.family == UNITS:
            u = self.units_job(&p)
            with nogil:
                failed = kernels.units_moments(&u)
        else:
            c = self.columns_job(&p)
            with nogil:
                failed = kernels.columns_moments(&c)
        if failed:
            raise MemoryError("cnorm could not allocate the statistics of this call")
        return 0

    cdef int empty_statistics(self) except -1:
        if not self.given:
            self.mean[...] = 0
            self.m2[...] = 0
            self.lo[...] = 0
            self.rstd[...] = 1 / np.sqrt(self.eps) if self.eps > 0 else np.inf
        return 0

    cdef tuple backward(self, object grad_output, object out, object sums=None, int sums_mode=0,
                        double count=0):
        """grad_input, and the sums over the batch of grad_weight, grad_bias and grad_slope (float64)."""
        cdef Plan p
        cdef Units u
        cdef Columns c
        cdef int failed = 0
        cdef Py_ssize_t rows = self.samples if self.groups else 1
        cdef cnp.ndarray grads = zeros64(3 * rows * self.channels)
        cdef double *g = data64(grads)
        if sums_mode == 1:  # nothing is written: the input stands for the result
            self.final = self.y = self.x
            self.dy = grad_output
            p = self.plan(3)
            if p.family == COPY:
                self.y = self.x = np.ascontiguousarray(self.x)
                self.dy = np.ascontiguousarray(self.dy)
                p = self.plan(3)
        else:
            p = self.settle(out, grad_output)
        if self.lo is None and self.storage == FLOAT64:
            self.lo = zeros64(self.units())
        if self.elements:
            if p.family == UNITS:
                u = self.units_job(&p)
                u.m2 = NULL
                if sums_mode == 0:
                    u.lo = NULL
                u.grad_weight = g
                u.grad_bias = g + rows * self.channels
                u.grad_slope = g + 2 * rows * self.channels
                u.sums = data64(sums)
                u.sums_mode = sums_mode
                u.count = count
                with nogil:
                    failed = kernels.units_backward(&u)
            else:
                c = self.columns_job(&p)
                c.grad_weight = g
                c.grad_bias = g + rows * self.channels
                c.grad_slope = g + 2 * rows * self.channels
                c.sums = data64(sums)
                c.sums_mode = sums_mode
                c.count = count
                with nogil:
                    failed = kernels.columns_backward(&c)
            if failed:
                raise MemoryError("cnorm could not allocate the sums of this call")
        elif sums is not None and sums_mode == 1:
            sums[...] = 0
        totals = over_samples(grads, rows, self.channels)
        return (self.finish() if sums_mode != 1 else None), totals[0], totals[1], totals[2]


cdef object over_samples(cnp.ndarray grads, Py_ssize_t rows, Py_ssize_t channels):
    """Sum (3, rows, channels) over the rows, in their order."""
    cdef cnp.ndarray total = zeros64(3 * channels)
    cdef const double *g = data64(grads)
    cdef double *t = data64(total)
    cdef Py_ssize_t k, row, c
    if rows == 1:
        return grads.reshape(3, channels)
    for k in range(3):
        for row in range(rows):
            for c in range(channels):
                t[k * channels + c] += g[(k * rows + row) * channels + c]
    return total.reshape(3, channels)


cdef cnp.ndarray gradient_like(object grad_output, cnp.ndarray x):
    """grad_output, checked against the input it belongs to."""
    cdef cnp.ndarray dy = floats(grad_output, "grad_output")
    if not same_shape(dy, x):
        raise ValueError(f"grad_output must have the input's shape {shape_of(x)}, but got {shape_of(dy)}")
    if storage_of(dy) != storage_of(x):
        raise TypeError(f"grad_output must have the input's dtype {x.dtype}, but got {dy.dtype}")
    return dy


cdef cnp.ndarray statistic(object values, str name, Py_ssize_t n, str shape):
    cdef cnp.ndarray a = doubles(values, name)
    if cnp.PyArray_SIZE(a) != n:
        raise ValueError(f"{name} must have shape {shape}, but got {shape_of(a)}")
    return a if cnp.PyArray_NDIM(a) == 1 else a.reshape(-1)


cdef tuple parameter_grads(Channels call, tuple grads, object weight, object bias, object negative_slope):
    """What backward returns: the sums in the parameters' shapes and dtypes."""
    cdef cnp.ndarray x = call.final
    cdef tuple shape = (call.channels,)
    cdef object like = weight if bias is None else bias
    result = (
        grads[0],
        as_parameter(grads[1], weight, x, np.shape(weight) if weight is not None else shape),
        as_parameter(grads[2], like, x, np.shape(like) if like is not None else shape),
    )
    if has_slope_gradient(negative_slope):
        result += (slope_gradient(grads[3], negative_slope),)
    return result


cdef inline bint has_slope_gradient(object negative_slope):
    return negative_slope is not None and (isinstance(negative_slope, np.ndarray) or np.ndim(negative_slope) > 0)


cdef object slope_gradient(cnp.ndarray per_channel, object negative_slope):
    slope = np.asarray(negative_slope)
    if slope.size == 1:
        per_channel = np.asarray(per_channel.sum())
    return per_channel.reshape(slope.shape).astype(slope.dtype)


# ---- running statistics ----
#
# A batch changes all of them, and their count, or nothing: what may fail, or run Python code, where an
# interrupt may be raised, comes before the first of them is written.

cdef int track(object running_mean, object running_var, double factor, cnp.ndarray mean, cnp.ndarray var,
               double divisor, object count) except -1:
    """running = (1 - factor) * running + factor * batch, in double, the variance's batch over `divisor`;
    count += 1. Each of the three may be None."""
    cdef list targets, values
    if in_place(running_mean) and in_place(running_var) and is_counter(count):
        mix_in_place(running_mean, factor, mean, 1)
        mix_in_place(running_var, factor, var, divisor)
        if count is not None:
            (<cnp.int64_t *> cnp.PyArray_DATA(count))[0] += 1
        return 0
    targets, values = [], []
    if running_mean is not None:
        targets.append(running_mean)
        values.append(mixed(running_mean, factor, mean))
    if running_var is not None:
        targets.append(running_var)
        values.append(mixed(running_var, factor, var / divisor))
    if count is not None:
        targets.append(count)
        values.append(np.asarray(count + 1, count.dtype))
    return assign(targets, values)


cdef bint in_place(object running) except -1:
    """Whether `mix_in_place` takes it: None, or a float32 vector."""
    return running is None or (
        plain_memory(running, "running statistics") and cnp.PyArray_NDIM(running) == 1
        and native(running) and cnp.PyArray_TYPE(running) == cnp.NPY_FLOAT32)


cdef bint is_counter(object count) except -1:
    """Whether it is None, or one int64."""
    return count is None or (
        isinstance(count, np.ndarray) and cnp.PyArray_NDIM(count) == 0 and native(count)
        and cnp.PyArray_TYPE(count) == cnp.NPY_INT64)


cdef void mix_in_place(object running, double factor, cnp.ndarray batch, double divisor) noexcept:
    cdef cnp.npy_intp i, step
    cdef char *p
    cdef const double *b
    if running is None:
        return
    p = cnp.PyArray_BYTES(running)
    step = cnp.PyArray_STRIDE(running, 0)
    b = data64(batch)
    for i in range(cnp.PyArray_DIM(running, 0)):
        (<float *> (p + i * step))[0] = <float> ((1 - factor) * <double> (<float *> (p + i * step))[0]
                                                 + factor * (b[i] / divisor))


cdef cnp.ndarray mixed(object running, double factor, cnp.ndarray batch):
    """The same for any running statistic: its new value."""
    wide = (1 - factor) * np.asarray(running, np.float64).reshape(-1) + factor * batch
    return wide.reshape(running.shape).astype(running.dtype)


cdef int assign(list targets, list values) except -1:
    """Copy values into arrays of their dtypes: no Python code runs."""
    for target in targets:
        check_writable(target, "an array")
    for i in range(len(targets)):
        cnp.PyArray_CopyInto(targets[i], values[i])
    return 0


cdef int check_running(object running, str name, Py_ssize_t channels) except -1:
    if running is None:
        return 0
    if not isinstance(running, np.ndarray):
        raise TypeError(f"{name} must be a NumPy array, but got {type(running).__name__}")
    check_length(running, name, channels)
    if storage_of(running) < 0:
        raise TypeError(f"{name} must be a float array, but got dtype {running.dtype}")
    return 0


cdef int check_writable(object running, str name) except -1:
    if running is not None and not cnp.PyArray_ISWRITEABLE(running):
        raise ValueError(f"{name} is read-only, and training updates it")
    return 0


cdef int check_length(object parameter, str name, Py_ssize_t channels) except -1:
    cdef Py_ssize_t n
    if parameter is None:
        return 0
    n = cnp.PyArray_SIZE(parameter) if isinstance(parameter, cnp.ndarray) else np.size(parameter)
    if n != channels:
        raise RuntimeError(f"{name} should contain {channels} elements not {n}")
    return 0


cdef int axis_of(object channel_axis, int ndim) except -1:
    axis = operator.index(channel_axis)
    if not -ndim <= axis < ndim:
        raise ValueError(f"channel_axis {axis} is out of bounds for an input with {ndim} dimensions")
    return axis % ndim
