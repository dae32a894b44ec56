# Norms with a weight per element of a row: layer and rms norm, from arrays to kernels.

cdef enum:
    KEPT_ONES = 8192   # elements; for a longer row a call makes its own

# Made once and never replaced, so that a thread which has either reads no other length than it was told.
cdef cnp.ndarray ONES32 = np.ones(KEPT_ONES, np.float32)
cdef cnp.ndarray ONES64 = np.ones(KEPT_ONES, np.float64)


cdef cnp.ndarray ones(Py_ssize_t n, int storage):
    """A weight of at least n elements where there is none; never written."""
    if n > KEPT_ONES:
        return np.ones(n, np.float64 if storage == FLOAT64 else np.float32)
    return ONES64 if storage == FLOAT64 else ONES32


cdef cnp.ndarray row_parameter(cnp.ndarray values, str name, int storage):
    """A row's parameter as the loops take it: contiguous, of the accumulation type."""
    if values is None:
        return None
    cdef cnp.ndarray a = plain_array(values, name)
    cdef int number = accumulation_type(storage)
    return a if cnp.PyArray_TYPE(a) == number else converted(a, number)


cdef class RowsCall(Call):
    """One call of layer or rms norm."""
    cdef cnp.ndarray weight, bias, mean, rstd, grad_weight, grad_bias
    cdef cnp.ndarray unit_slopes, unit_slope_grads
    cdef int normalized
    cdef Py_ssize_t length
    cdef double *grads
    cdef bint centred
    cdef double eps

    cdef int set(self, cnp.ndarray x, int normalized, bint centred, double eps) except -1:
        cdef int i
        self.take(x)
        self.normalized = normalized
        self.centred = centred
        self.eps = eps
        self.length = 1
        for i in range(cnp.PyArray_NDIM(x) - normalized, cnp.PyArray_NDIM(x)):
            self.length *= cnp.PyArray_DIM(x, i)
        return 0

    cdef int guard(self, cnp.ndarray written) except -1:
        Call.guard(self, written)
        self.weight = kept_apart(self.weight, written)
        self.bias = kept_apart(self.bias, written)
        self.mean = kept_apart(self.mean, written)
        self.rstd = kept_apart(self.rstd, written)
        self.unit_slopes = kept_apart(self.unit_slopes, written)
        return 0

    cdef Py_ssize_t rows(self) noexcept:
        cdef Py_ssize_t n = 1
        cdef int i
        for i in range(cnp.PyArray_NDIM(self.x) - self.normalized):
            n *= cnp.PyArray_DIM(self.x, i)
        return n

    cdef int keep_in(self, bytes packed) except -1:
        """Statistics that are, or will be, packed."""
        self.rstd = packed_statistic(packed, self.rows(), 0)
        if self.centred:
            self.mean = packed_statistic(packed, self.rows(), 1)
        return 0

    cdef int plan(self, int arrays, Plan *p) except -1:
        cdef const Py_ssize_t *shape
        cdef const Py_ssize_t *strides[ARRAYS]
        self.layouts(arrays, &shape, strides)
        plan_rows(p, cnp.PyArray_NDIM(self.x), shape, strides, arrays, self.normalized,
                  cnp.PyArray_ITEMSIZE(self.x))
        return 0

    cdef int job(self, const Plan *p, bint add, Job *a) except -1:
        cdef int i
        memset(a, 0, sizeof(Job))
        for i in range(5):
            a.shape[i] = p.shape[i]
        a.dtype = self.storage
        a.threads = threads_for(self.bytes)
        set_tensor(&a.x, self.x, p, 0)
        set_tensor(&a.y, self.y, p, 1)
        if add:
            a.elements.fuse_add = True
            set_tensor(&a.elements.addend[0], self.dy, p, 2)
            set_tensor(&a.elements.addend[1], self.plus, p, 3)
        else:
            if self.dy is not None:
                set_tensor(&a.dy, self.dy, p, 2)
            if self.plus is not None:
                a.elements.add_to_grad = True
                set_tensor(&a.elements.addend[0], self.plus, p, 3)
        a.centred = self.centred
        a.activation = self.activation
        a.slope = self.slope
        a.eps = self.eps
        a.mean = data64(self.mean)
        a.rstd = data64(self.rstd)
        if self.weight is not None:
            a.elements.weight = cnp.PyArray_DATA(self.weight)
        if self.bias is not None:
            a.elements.bias = cnp.PyArray_DATA(self.bias)
        if self.slopes is not None:
            a.elements.slopes = cnp.PyArray_DATA(self.slopes)
        a.elements.unit_slopes = data64(self.unit_slopes)
        a.elements.unit_slope_grads = data64(self.unit_slope_grads)
        return 0

    cdef int parameters(self, cnp.ndarray weight, cnp.ndarray bias, bint always) except -1:
        """Weight, bias and slopes of an element each; a weight of ones where only others are given."""
        self.weight = row_parameter(weight, "weight", self.storage)
        self.bias = row_parameter(bias, "bias", self.storage)
        if self.weight is None and (self.bias is not None or self.activation == ACT_SLOPES or always):
            self.weight = ones(self.length, self.storage)
        return 0

    cdef cnp.ndarray forward(self, cnp.ndarray out, cnp.ndarray one=None, cnp.ndarray other=None):
        """The norm of x; with `one` and `other`, of their sum, which is written to x."""
        cdef Plan p
        cdef Job a
        self.settle(&p, out, one, other)
        if self.elements == 0:
            self.empty_statistics()
            return self.final
        self.job(&p, one is not None, &a)
        run_norm(kernels.rows_forward, &a, self.bytes, "statistics")
        return self.finish()

    cdef int empty_statistics(self) except -1:
        if self.mean is not None:
            self.mean[...] = 0
        if self.rstd is not None:
            self.rstd[...] = 1 / np.sqrt(self.eps) if self.eps > 0 else np.inf
        return 0

    cdef cnp.ndarray backward(self, cnp.ndarray grad_output, cnp.ndarray out, cnp.ndarray plus=None):
        """grad_input, plus `plus`. The sums of weight, bias and slope go to `grads`; those of grad_weight
        and grad_bias there, where these are given."""
        cdef Plan p
        cdef Job a
        self.grads = self.room(self.length, 3)
        self.settle(&p, out, grad_output, plus)
        if self.elements:
            self.job(&p, False, &a)
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
        return self.finish()


cdef tuple row_shape(object normalized_shape):
    """The argument as a tuple of ints."""
    if type(normalized_shape) is not tuple:
        if hasattr(normalized_shape, "__index__") and not isinstance(normalized_shape, cnp.ndarray):
            return (integer(normalized_shape, "normalized_shape"),)
        try:
            normalized_shape = tuple(normalized_shape)
        except TypeError as error:
            raise TypeError("normalized_shape must be an integer or a sequence of integers, but got "
                            f"{type(normalized_shape).__name__}: {error}") from error
    return tuple([integer(n, "normalized_shape") for n in <tuple> normalized_shape])


cdef bint has_shape(cnp.ndarray parameter, tuple shape) except -1:
    """Whether a parameter has the shape; without making a tuple for the usual vector."""
    if len(shape) == 1:
        return cnp.PyArray_NDIM(parameter) == 1 and cnp.PyArray_DIM(parameter, 0) == shape[0]
    return shape_of(parameter) == shape


# ---- statistics, as the caller of forward wants them ----

cdef enum Statistics:
    UNWANTED
    AS_ARRAYS
    PACKED     # bytes: rstd of every row, then the means; for a module, as two arrays take as long as a short row


cdef inline Py_ssize_t packed_size(Py_ssize_t rows, bint centred) except -1:
    return product(rows, sizeof(double) * (2 if centred else 1), "the statistics of the rows")


cdef inline bytes packed_statistics(Py_ssize_t rows, bint centred):
    return PyBytes_FromStringAndSize(NULL, packed_size(rows, centred))


cdef cnp.ndarray packed_statistic(bytes packed, Py_ssize_t rows, int which):
    """One of them as an array: 0 rstd, 1 mean."""
    cdef cnp.npy_intp n = rows
    cdef cnp.ndarray a = <cnp.ndarray> cnp.PyArray_SimpleNewFromData(
        1, &n, cnp.NPY_FLOAT64, PyBytes_AS_STRING(packed) + which * rows * sizeof(double))
    cnp.set_array_base(a, packed)
    return a


# ---- the small call: plain arrays, one axis; nothing that costs more than the norm itself ----

cdef object small_forward(object input, object normalized_shape, object weight, object bias, bint centred,
                          bint default_eps, double eps, object out, Statistics wanted):
    """layer_norm or rms_norm of plain arrays over the last axis; None where the general call must look."""
    cdef cnp.ndarray x, y
    cdef cnp.ndarray mean = None, rstd = None
    cdef bytes packed = None
    cdef int number, storage, ndim, i
    cdef Py_ssize_t n, rows
    cdef cnp.npy_intp shape[MAX_DIMS]
    cdef Job a
    if not cnp.PyArray_CheckExact(input):
        return None
    x = <cnp.ndarray> input
    storage = storage_of(x)
    ndim = cnp.PyArray_NDIM(x)
    if storage < 0 or not cnp.PyArray_IS_C_CONTIGUOUS(x) or not native(x) or ndim < 1 or ndim > MAX_DIMS:
        return None
    n = cnp.PyArray_DIM(x, ndim - 1)
    if type(normalized_shape) is tuple and len(<tuple> normalized_shape) == 1:
        normalized_shape = (<tuple> normalized_shape)[0]
    if type(normalized_shape) is not int or clipped(normalized_shape) != n or n == 0:
        return None
    number = accumulation_type(storage)
    if weight is not None and not plain_vector(weight, number, n):
        return None
    if bias is not None and (weight is None or not plain_vector(bias, number, n)):
        return None
    rows = cnp.PyArray_SIZE(x) // n
    if rows == 0:
        return None
    if out is None:
        y = empty_like(x)
    else:
        if not plain_floats(out, cnp.PyArray_TYPE(x)) or not cnp.PyArray_CheckExact(out) or not same_shape(out, x):
            return None
        y = <cnp.ndarray> out
        if not cnp.PyArray_ISWRITEABLE(y) or not writable_in_place(y, x, True) or (
                weight is not None and may_overlap(y, weight)) or (bias is not None and may_overlap(y, bias)):
            return None
    memset(&a, 0, sizeof(a))
    if wanted == PACKED:
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
    a.dtype = storage
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
    a.eps = machine_eps(storage) if default_eps else eps
    if weight is not None:
        a.elements.weight = cnp.PyArray_DATA(weight)
    if bias is not None:
        a.elements.bias = cnp.PyArray_DATA(bias)
    run_norm(kernels.rows_forward, &a, rows * a.x.strides[1], "statistics")
    if not wanted:
        return y
    if wanted == PACKED:
        return y, packed
    return (y, mean, rstd) if centred else (y, rstd)


cdef inline double machine_eps(int storage) noexcept:
    """Of the accumulation type."""
    return 2.220446049250313e-16 if storage == FLOAT64 else 1.1920928955078125e-07


cdef int check_row_parameter(cnp.ndarray parameter, str name, tuple shape) except -1:
    if parameter is not None and not has_shape(parameter, shape):
        raise RuntimeError(f"Expected {name} to be of same shape as normalized_shape, but got {name} of shape "
                           f"{sizes(parameter)} and normalized_shape = {list(shape)}")
    return 0


cdef int check_row(cnp.ndarray x, tuple shape, cnp.ndarray weight, cnp.ndarray bias) except -1:
    cdef int ndim = cnp.PyArray_NDIM(x), k = len(shape)
    if k == 0:
        raise RuntimeError("Expected normalized_shape to be at least 1-dimensional, i.e., containing at least "
                           f"one element, but got normalized_shape = {list(shape)}")
    check_row_parameter(weight, "weight", shape)
    check_row_parameter(bias, "bias", shape)
    if ndim < k or (<object> x).shape[ndim - k:] != shape:
        expected = "".join(f", {n}" for n in shape)
        raise RuntimeError(f"Given normalized_shape={list(shape)}, expected input with shape [*{expected}], "
                           f"but got input of size{sizes(x)}")
    return 0


cdef object slope_axis(RowsCall call, object channel_axis):
    """The axis of the slopes, an int; None where there is one slope or none, which needs no axis."""
    if call.slope_array is None or cnp.PyArray_SIZE(call.slope_array) <= 1:
        return None
    return integer(channel_axis, "channel_axis")


cdef int row_epilogue(RowsCall call, object channel_axis, int normalized) except -1:
    """The activation. Slopes run along the channel axis: within the rows, or one for each row."""
    cdef int ndim = cnp.PyArray_NDIM(call.x), axis, first = ndim - normalized
    axis = 0 if channel_axis is None else axis_of(channel_axis, ndim)
    call.epilogue(cnp.PyArray_DIM(call.x, axis) if ndim else 1)
    if call.activation != ACT_SLOPES:
        return 0
    shape = shape_of(call.x)[first:] if axis >= first else shape_of(call.x)[:first]
    at = axis - first if axis >= first else axis
    spread = call.slopes.reshape([-1 if i == at else 1 for i in range(len(shape))])
    spread = np.ascontiguousarray(np.broadcast_to(spread, shape))
    if axis >= first:
        call.slopes = row_parameter(spread, "negative_slope", call.storage)
    else:
        call.activation = ACT_SLOPE
        call.slopes = None
        call.unit_slopes = spread
    return 0
