# Norms with a weight per channel: batch, instance and group norm, from arrays to kernels.
#
# `groups` is 0 for batch norm (a unit is a channel), C for instance norm, G for group norm.

cdef class Channels(Call):
    """One call of a norm with a weight per channel."""
    cdef int batch_axis, channel_axis
    cdef Py_ssize_t groups, channels, samples
    cdef const double *weight     # per channel, or NULL
    cdef const double *bias
    cdef double *mean             # per unit, or NULL where nobody asks for it
    cdef double *lo
    cdef double *m2
    cdef double *rstd
    cdef double *grads            # after backward: of weight, bias and slope, per channel
    cdef cnp.ndarray mean_array, rstd_array   # that hold them where the caller gets or gave them
    cdef bint given
    cdef double eps

    cdef int set(self, cnp.ndarray x, int batch_axis, int channel_axis, Py_ssize_t groups) except -1:
        self.take(x)
        self.batch_axis = batch_axis
        self.channel_axis = channel_axis
        self.groups = groups
        self.channels = cnp.PyArray_DIM(x, channel_axis)
        self.samples = cnp.PyArray_DIM(x, batch_axis) if batch_axis >= 0 else 1
        product(self.samples, self.groups, "the statistics of this call")  # there may be groups without channels
        return 0

    cdef Py_ssize_t units(self) noexcept:
        return self.samples * self.groups if self.groups else self.channels

    cdef Py_ssize_t unit_size(self) noexcept:
        """Elements of a unit."""
        return self.elements // self.units() if self.units() else 0

    cdef int guard(self, cnp.ndarray written) except -1:
        Call.guard(self, written)
        self.mean_array = kept_apart(self.mean_array, written)
        self.rstd_array = kept_apart(self.rstd_array, written)
        if self.mean_array is not None:
            self.mean = data64(self.mean_array)
        if self.rstd_array is not None:
            self.rstd = data64(self.rstd_array)
        return 0

    cdef const double *parameter(self, cnp.ndarray values, str name) except? NULL:
        cdef double *room
        if values is None:
            return NULL
        room = self.room(self.channels)
        copy_doubles(room, self.channels, values, name)
        return room

    cdef int parameters(self, cnp.ndarray weight, cnp.ndarray bias) except -1:
        self.weight = self.parameter(weight, "weight")
        self.bias = self.parameter(bias, "bias")
        self.epilogue(self.channels)
        return 0

    cdef int return_statistics(self, int ndim) except -1:
        """The caller gets mean and rstd: per channel, or (2) per sample and group."""
        cdef cnp.npy_intp shape[2]
        shape[0] = self.channels if ndim == 1 else self.samples
        shape[1] = self.groups
        self.mean_array = new_array(cnp.NPY_FLOAT64, ndim, shape)
        self.rstd_array = new_array(cnp.NPY_FLOAT64, ndim, shape)
        self.mean = data64(self.mean_array)
        self.rstd = data64(self.rstd_array)
        return 0

    cdef int keep(self, double **statistic) except -1:
        """Room for a statistic, where it has none."""
        if statistic[0] == NULL:
            statistic[0] = self.room(self.units())
        return 0

    cdef int keep_all(self) except -1:
        self.keep(&self.mean)
        self.keep(&self.rstd)
        self.keep(&self.lo)
        self.keep(&self.m2)
        return 0

    cdef int plan(self, int arrays, Plan *p) except -1:
        cdef const Py_ssize_t *shape
        cdef const Py_ssize_t *strides[ARRAYS]
        self.layouts(arrays, &shape, strides)
        plan_channels(p, cnp.PyArray_NDIM(self.x), shape, strides, arrays, self.batch_axis, self.channel_axis,
                      self.groups, cnp.PyArray_ITEMSIZE(self.x))
        return 0

    cdef int job(self, const Plan *p, Job *a) except -1:
        cdef int i
        memset(a, 0, sizeof(Job))
        for i in range(5):
            a.shape[i] = p.shape[i]
        a.dtype = self.storage
        a.threads = threads_for(self.bytes)
        set_tensor(&a.x, self.x, p, 0)
        if self.y is not None:
            set_tensor(&a.y, self.y, p, 1)
        if self.dy is not None:
            set_tensor(&a.dy, self.dy, p, 2)
        a.centred = True
        a.stats_given = self.given
        a.channels.by_segment = self.groups != 0
        a.activation = self.activation
        a.slope = self.slope
        a.channels.channels_per_group = self.channels // self.groups if self.groups else 1
        a.eps = self.eps
        a.mean = self.mean
        a.rstd = self.rstd
        a.m2 = self.m2
        a.lo = self.lo
        a.channels.weight = self.weight
        a.channels.bias = self.bias
        a.channels.slopes = data64(self.slopes)
        return 0

    cdef cnp.ndarray forward(self, cnp.ndarray out):
        cdef Plan p
        cdef Job a
        self.settle(&p, out, None)
        if self.elements == 0:
            self.empty_statistics()
            return self.final
        if p.family != UNITS and not self.given:  # the kernel keeps them meanwhile
            self.keep_all()
        self.job(&p, &a)
        run_norm(kernels.segments_forward if p.family == UNITS else kernels.columns_forward, &a, self.bytes,
                 "statistics")
        return self.finish()

    cdef int moments(self) except -1:
        """mean, lo, m2 and rstd, nothing applied."""
        cdef Plan p
        cdef Job a
        self.keep_all()
        if self.elements == 0:
            self.empty_statistics()
            return 0
        self.plan(1, &p)
        if p.family == COPY:
            self.x = np.ascontiguousarray(self.x)
            self.plan(1, &p)
        self.job(&p, &a)
        run_norm(kernels.segments_moments if p.family == UNITS else kernels.columns_moments, &a, self.bytes,
                 "statistics")
        return 0

    cdef void empty_statistics(self) noexcept:
        cdef Py_ssize_t i
        if self.given or (self.mean == NULL and self.lo == NULL and self.m2 == NULL and self.rstd == NULL):
            return
        for i in range(self.units()):
            if self.mean != NULL:
                self.mean[i] = 0
            if self.lo != NULL:
                self.lo[i] = 0
            if self.m2 != NULL:
                self.m2[i] = 0
            if self.rstd != NULL:
                self.rstd[i] = 1 / sqrt(self.eps) if self.eps > 0 else INFINITY

    cdef cnp.ndarray backward(self, cnp.ndarray grad_output, cnp.ndarray out, cnp.ndarray sums=None, int sums_mode=SUMS_INTERNAL,
                              double count=0):
        """grad_input; `grads` then holds the sums over the batch."""
        cdef Plan p
        cdef Job a
        cdef Py_ssize_t rows = max(self.samples, 1) if self.groups else 1
        cdef Py_ssize_t n = product(rows, self.channels, "the gradients of the parameters of all samples")
        cdef double *g = self.room(n, 3)
        memset(g, 0, 3 * n * sizeof(double))
        self.grads = g
        if sums_mode == SUMS_ONLY:  # nothing is written: the input stands for the result
            self.final = self.y = self.x
            self.dy = grad_output
            self.plan(3, &p)
            if p.family == COPY:
                self.y = self.x = np.ascontiguousarray(self.x)
                self.dy = np.ascontiguousarray(self.dy)
                self.plan(3, &p)
        else:
            self.settle(&p, out, grad_output)
        if not self.elements:
            if sums_mode == SUMS_ONLY:
                sums[...] = 0
        else:
            if p.family != UNITS and self.lo == NULL and self.storage == FLOAT64:
                self.lo = self.room(self.units())
                memset(self.lo, 0, self.units() * sizeof(double))
            self.job(&p, &a)
            if p.family == UNITS and sums_mode == SUMS_INTERNAL:
                a.lo = NULL
            a.channels.grad_weight = g
            a.channels.grad_bias = g + n
            a.channels.grad_slope = g + 2 * n
            a.channels.sums = data64(sums)
            a.channels.sums_mode = sums_mode
            a.channels.count = count
            run_norm(kernels.segments_backward if p.family == UNITS else kernels.columns_backward, &a, self.bytes,
                     "sums")
        if rows > 1:
            over_samples(g, rows, self.channels)
        return self.finish() if sums_mode != SUMS_ONLY else None


cdef void over_samples(double *grads, Py_ssize_t rows, Py_ssize_t channels) noexcept:
    """Sum (3, rows, channels) over the rows, in their order: what comes first is then (3, channels)."""
    cdef double *total = grads
    cdef const double *row
    cdef Py_ssize_t k, i, c
    for k in range(3):
        for c in range(channels):
            total[c] = 0 + grads[c]  # -0 becomes 0, as in any sum
        for i in range(1, rows):
            row = grads + i * channels
            for c in range(channels):
                total[c] += row[c]
        grads += rows * channels
        total += channels


cdef cnp.ndarray gradient_like(cnp.ndarray grad_output, cnp.ndarray x, str name="grad_output"):
    """grad_output, checked against the input it belongs to."""
    cdef cnp.ndarray dy = floats(grad_output, name)
    if not same_shape(dy, x):
        raise ValueError(f"{name} must have the input's shape {shape_of(x)}, but got {shape_of(dy)}")
    if storage_of(dy) != storage_of(x):
        raise TypeError(f"{name} must have the input's dtype {x.dtype}, but got {dy.dtype}")
    return dy


cdef cnp.ndarray statistic(cnp.ndarray values, str name, Py_ssize_t n, str shape):
    cdef cnp.ndarray a = doubles(values, name)
    if cnp.PyArray_SIZE(a) != n:
        raise ValueError(f"{name} must have shape {shape}, but got {shape_of(a)}")
    return a


cdef tuple parameter_grads(Channels call, object grad_input, cnp.ndarray weight, cnp.ndarray bias):
    """What backward returns: the sums in the parameters' shapes and dtypes."""
    cdef cnp.npy_intp shape = call.channels
    cdef const double *g = call.grads
    result = (
        grad_input,
        gradient(g, shape, weight, call.storage, 1, &shape),
        gradient(g + shape, shape, weight if bias is None else bias, call.storage, 1, &shape),
    )
    if call.slope_gradient:
        result += (slope_gradient(array64(g + 2 * shape, shape), call.slope_array),)
    return result


cdef object slope_gradient(cnp.ndarray per_channel, cnp.ndarray slope):
    if cnp.PyArray_SIZE(slope) == 1:
        per_channel = np.asarray(per_channel.sum())
    return per_channel.reshape(shape_of(slope)).astype(slope.dtype)


# ---- running statistics ----
#
# A batch changes all of them, and their count, or nothing: what may fail, or run Python code, where an
# interrupt may be raised, comes before the first of them is written.

cdef int track(cnp.ndarray running_mean, cnp.ndarray running_var, double factor, const double *mean,
               const double *var, double divisor, Py_ssize_t n, cnp.ndarray count) except -1:
    """running = (1 - factor) * running + factor * batch, in double, the variance's batch over `divisor`;
    count += 1. Each of the three may be None."""
    cdef list targets, values
    if in_place(running_mean) and in_place(running_var) and is_counter(count):
        if running_mean is not None:
            mix_in_place(running_mean, factor, mean, 1)
        if running_var is not None:
            mix_in_place(running_var, factor, var, divisor)
        if count is not None:
            (<cnp.int64_t *> cnp.PyArray_DATA(count))[0] += 1
        return 0
    targets, values = [], []
    if running_mean is not None:
        targets.append(running_mean)
        values.append(mixed(running_mean, factor, array64(mean, n)))
    if running_var is not None:
        targets.append(running_var)
        values.append(mixed(running_var, factor, array64(var, n) / divisor))
    if count is not None:
        targets.append(count)
        values.append(np.asarray(count + 1, count.dtype))
    return assign(targets, values)


cdef const double *over_batch(Channels call, const double *values) except NULL:
    """The mean over the samples of (samples, channels) statistics, as NumPy adds them; of a batch, itself."""
    cdef Py_ssize_t n = call.channels, i, c
    cdef double *mean
    if call.samples == 1 or call.groups == 0:
        return values
    mean = call.room(n)
    memcpy(mean, values, n * sizeof(double))
    for i in range(1, call.samples):
        for c in range(n):
            mean[c] += values[i * n + c]
    if n == 1:  # the samples then lie side by side, which NumPy adds in pairs
        mean[0] = np.add.reduce(array64(values, call.samples))
    for c in range(n):
        mean[c] /= call.samples
    return mean


cdef inline bint in_place(cnp.ndarray running) noexcept:
    """Whether `mix_in_place` takes it: None, or a float32 vector."""
    return running is None or (
        cnp.PyArray_NDIM(running) == 1 and native(running) and cnp.PyArray_TYPE(running) == cnp.NPY_FLOAT32)


cdef inline bint is_counter(cnp.ndarray count) noexcept:
    """Whether it is None, or one int64."""
    return count is None or (
        cnp.PyArray_NDIM(count) == 0 and native(count) and cnp.PyArray_TYPE(count) == cnp.NPY_INT64)


cdef inline void mix_in_place(cnp.ndarray running, double factor, const double *batch, double divisor) noexcept:
    cdef cnp.npy_intp n = cnp.PyArray_DIM(running, 0), step = cnp.PyArray_STRIDE(running, 0)
    if step == sizeof(float):  # a constant, which makes it a loop of vectors
        mix_floats(cnp.PyArray_BYTES(running), n, sizeof(float), factor, batch, divisor)
    else:
        mix_floats(cnp.PyArray_BYTES(running), n, step, factor, batch, divisor)


cdef inline void mix_floats(char *p, Py_ssize_t n, Py_ssize_t step, double factor, const double *batch,
                            double divisor) noexcept:
    cdef Py_ssize_t i
    for i in range(n):
        (<float *> (p + i * step))[0] = <float> ((1 - factor) * <double> (<float *> (p + i * step))[0]
                                                 + factor * (batch[i] / divisor))


cdef cnp.ndarray mixed(cnp.ndarray running, double factor, cnp.ndarray batch):
    """The new value of a running statistic of any shape and float dtype."""
    wide = (1 - factor) * np.asarray(running, np.float64).reshape(-1) + factor * batch
    return wide.reshape(shape_of(running)).astype(running.dtype)


cdef int assign(list targets, list values) except -1:
    """Copy values into arrays of their dtypes: no Python code runs."""
    for target in targets:
        check_writable(target, "an array")
    for i in range(len(targets)):
        cnp.PyArray_CopyInto(targets[i], values[i])
    return 0


cdef int check_running(cnp.ndarray running, str name, Py_ssize_t channels) except -1:
    if running is None or plain_vector(running, cnp.NPY_FLOAT32, channels):
        return 0
    check_length(running, name, channels)
    if storage_of(running) < 0:
        raise TypeError(f"{name} must be a float array, but got dtype {running.dtype}")
    return 0


cdef int check_writable(cnp.ndarray running, str name) except -1:
    if running is None:
        return 0
    if not cnp.PyArray_ISWRITEABLE(running):
        raise ValueError(f"{name} is read-only, and training updates it")
    check_written(running, name)
    return 0


cdef int check_counter(cnp.ndarray count, str name) except -1:
    if not is_counter(count) and dtype_of(count).kind not in "iuf":
        raise TypeError(f"{name} must be an array of one number, but got dtype {count.dtype}")
    return check_writable(count, name)


cdef int check_length(cnp.ndarray parameter, str name, Py_ssize_t channels) except -1:
    if parameter is not None and cnp.PyArray_SIZE(parameter) != channels:
        raise RuntimeError(f"{name} should contain {channels} elements not {cnp.PyArray_SIZE(parameter)}")
    return 0


cdef int axis_of(object channel_axis, int ndim) except -1:
    """The axis that an int names."""
    cdef Py_ssize_t axis = clipped(channel_axis)
    if not -ndim <= axis < ndim:
        raise ValueError(f"channel_axis {channel_axis} is out of bounds for an input with {ndim} dimensions")
    return axis + ndim if axis < 0 else axis
