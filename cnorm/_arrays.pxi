# Arrays in and out of the kernels: what is accepted, what is allocated, what is copied.

#
# A call first converts all of its arguments (`given`, `number`, `integer`), then checks them, and after that asks
# no argument anything again. Conversion runs code of the caller's, such as `__array__` and `__float__`, which may
# answer otherwise the second time, or resize an array that was checked before. Checks read NumPy's own structs.

cdef extern from "numpy/arrayobject.h":
    object PyArray_NewLikeArray(cnp.ndarray, cnp.NPY_ORDER, void *, int)
    object PyArray_View(cnp.ndarray, void *, void *)

cdef extern from "Python.h":
    Py_ssize_t PyNumber_AsSsize_t(object, PyObject *) except? -1
    Py_ssize_t PY_SSIZE_T_MAX

cdef extern from "_pool.h":
    object pool_empty_like(cnp.ndarray)
    object pool_empty(int, int, const cnp.npy_intp *)
    int pool_init() except -1
    void pool_set_limit(size_t)
    void pool_clear()
    void pool_after_fork()
    size_t pool_bytes()
    size_t pool_limit

pool_init()

cdef int BFLOAT16_TYPE = -1   # NumPy's number for ml_dtypes.bfloat16, once one has been seen

cdef enum:
    FREE_GIL = 1 << 14        # bytes from which a call lets other Python threads run
    PARALLEL = 1 << 17        # bytes from which it uses threads itself


cdef inline int storage_of(cnp.ndarray a) noexcept:
    """The storage code of an array, or -1."""
    cdef int number = cnp.PyArray_TYPE(a)
    global BFLOAT16_TYPE
    if number == cnp.NPY_FLOAT32:
        return FLOAT32
    if number == cnp.NPY_FLOAT64:
        return FLOAT64
    if number == cnp.NPY_FLOAT16:
        return FLOAT16
    if number == BFLOAT16_TYPE:
        return BFLOAT16
    if number >= 256 and BFLOAT16_TYPE < 0 and cnp.PyArray_ITEMSIZE(a) == 2 and (
            <object> cnp.PyArray_DESCR(a)).name == "bfloat16":
        BFLOAT16_TYPE = number
        return BFLOAT16
    return -1


cdef inline int accumulation_type(int storage) noexcept:
    """NumPy's number of the type that an array is computed in."""
    return cnp.NPY_FLOAT64 if storage == FLOAT64 else cnp.NPY_FLOAT32


cdef inline bint native(cnp.ndarray a) noexcept:
    return cnp.PyArray_ISALIGNED(a) and cnp.PyArray_ISNOTSWAPPED(a)


cdef object TRUSTED_SUBCLASS = None   # of ndarray, which runs no code of the caller's: Parameter; set once


def _trust(subclass):
    """Name the one subclass of ndarray that calls take as it is."""
    global TRUSTED_SUBCLASS
    if TRUSTED_SUBCLASS is None:
        TRUSTED_SUBCLASS = subclass


cdef inline bint trusted(object a) noexcept:
    """Whether it is an ndarray that can be asked for anything."""
    return cnp.PyArray_CheckExact(a) or type(a) is TRUSTED_SUBCLASS


cdef inline cnp.ndarray given(object a, str name):
    """An argument as an array; None stays None."""
    if a is None or trusted(a):
        return <cnp.ndarray> a
    return foreign(a, name)


cdef int refuse_mask(object a, str name) except -1:
    if hasattr(a, "mask"):
        raise TypeError(f"{name} must not be a masked array: fill it first, for example with .filled(0)")
    return 0


cdef cnp.ndarray given_out(object a, str name):
    """An array to write to, or None, the object itself, which the caller gets back."""
    if a is None or trusted(a):
        return <cnp.ndarray> a
    if not isinstance(a, cnp.ndarray):
        raise TypeError(f"{name} must be a NumPy array, but got {type(a).__name__}")
    refuse_mask(a, name)
    return <cnp.ndarray> a


cdef cnp.ndarray given_running(object a, str name):
    """An array to update, or None; of a subclass, a view."""
    return given(given_out(a, name), name)


cdef cnp.ndarray foreign(object a, str name):
    """An array from anything else: a subclass of ndarray, what has DLPack or the array protocols, a sequence."""
    cdef cnp.ndarray array
    refused = None
    if isinstance(a, cnp.ndarray):
        refuse_mask(a, name)
        return <cnp.ndarray> PyArray_View(<cnp.ndarray> a, NULL, <void *> cnp.ndarray)
    if hasattr(a, "__dlpack__"):
        if str(getattr(a, "dtype", None)) == "torch.bfloat16":  # NumPy's import does not know it
            import ml_dtypes
            import torch
            return np.from_dlpack(a.view(torch.uint16)).view(ml_dtypes.bfloat16)
        try:
            return np.from_dlpack(a)
        except (AttributeError, BufferError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            refused = error
    array = np.asarray(a)
    if refused is not None and cnp.PyArray_TYPE(array) == cnp.NPY_OBJECT:
        raise TypeError(f"{name} cannot be read as an array: its __dlpack__ raised {type(refused).__name__}: {refused}. "
                        "Pass a NumPy array, or one that can be exported from the memory of the CPU") from refused
    return array


cdef double number(object value, str name) except? -1:
    """An argument as a float."""
    if type(value) is float:
        return <double> value
    try:
        return value
    except TypeError as error:
        raise TypeError(f"{name} must be a number, but got {type(value).__name__}: {error}") from error


cdef object integer(object value, str name):
    """An argument as an int, and not a subclass, which may compare as it likes."""
    if type(value) is int:
        return value
    try:
        return PyNumber_Index(value)
    except TypeError as error:
        raise TypeError(f"{name} must be an integer, but got {type(value).__name__}: {error}") from error


cdef Py_ssize_t clipped(object value) except? -1:
    """An int as a size; one that is none as the largest or the smallest."""
    return PyNumber_AsSsize_t(value, NULL)


cdef Py_ssize_t product(Py_ssize_t a, Py_ssize_t b, str what) except -1:
    """a * b of sizes, or MemoryError."""
    if a > 0 and b > PY_SSIZE_T_MAX // a:
        raise MemoryError(f"{what} would hold {a} times {b} elements, which is more than can be addressed")
    return a * b


cdef cnp.ndarray floats(cnp.ndarray array, str name):
    """A native float array."""
    if array is None:
        raise TypeError(f"{name} must be an array, but got None")
    if storage_of(array) < 0:
        raise TypeError(f"{name} must be a float32, float64, float16 or bfloat16 array, but got dtype {array.dtype}")
    if not native(array):
        array = array.astype(array.dtype.newbyteorder("="))
    return array


cdef inline tuple shape_of(object a):
    return a.shape


cdef inline object sizes(cnp.ndarray a):
    """A shape as torch prints it."""
    return list((<object> a).shape)


cdef inline bint same_shape(cnp.ndarray a, cnp.ndarray b) noexcept:
    cdef int i, n = cnp.PyArray_NDIM(a)
    if n != cnp.PyArray_NDIM(b):
        return False
    for i in range(n):
        if cnp.PyArray_DIM(a, i) != cnp.PyArray_DIM(b, i):
            return False
    return True


cdef inline bint same_memory(cnp.ndarray a, cnp.ndarray b) noexcept:
    """Whether b is a, element for element."""
    cdef int i
    if cnp.PyArray_DATA(a) != cnp.PyArray_DATA(b):
        return False
    for i in range(cnp.PyArray_NDIM(a)):
        if cnp.PyArray_DIM(a, i) > 1 and cnp.PyArray_STRIDE(a, i) != cnp.PyArray_STRIDE(b, i):
            return False
    return True


cdef cnp.ndarray checked_out(cnp.ndarray out, cnp.ndarray like, str name="out"):
    if not same_shape(out, like):
        raise ValueError(f"{name} must have shape {shape_of(like)}, but got {shape_of(out)}")
    if storage_of(out) != storage_of(like):
        raise TypeError(f"{name} must have dtype {like.dtype}, but got {dtype_of(out)}")
    return check_written(out, name)


cdef inline object dtype_of(cnp.ndarray a):
    return <object> cnp.PyArray_DESCR(a)


cdef cnp.ndarray check_written(cnp.ndarray a, str name):
    """An array whose elements can be written, each on its own."""
    cdef size_t low, high
    if not cnp.PyArray_ISWRITEABLE(a):
        raise ValueError(f"{name} is read-only")
    if not cnp.PyArray_IS_C_CONTIGUOUS(a):
        extent_of(a, &low, &high)
        if high - low < <size_t> cnp.PyArray_NBYTES(a):
            raise ValueError(f"{name} has elements that share memory: pass an array of its own, such as a copy")
    return a


cdef inline cnp.ndarray empty_like(cnp.ndarray a):
    return <cnp.ndarray> pool_empty_like(a)


cdef inline cnp.ndarray new_array(int number, int ndim, const cnp.npy_intp *shape):
    return <cnp.ndarray> pool_empty(number, ndim, shape)


cdef cnp.ndarray copy_like(cnp.ndarray a, cnp.ndarray like):
    """A copy in the memory order of another array."""
    cdef cnp.ndarray copy = empty_like(like)
    copy[...] = a
    return copy


cdef inline void extent_of(cnp.ndarray a, size_t *low, size_t *high) noexcept:
    """The addresses that an array lies between."""
    cdef int i
    cdef Py_ssize_t reach
    low[0] = <size_t> cnp.PyArray_DATA(a)
    high[0] = low[0] + cnp.PyArray_ITEMSIZE(a)
    if cnp.PyArray_SIZE(a) == 0:
        high[0] = low[0]
        return
    for i in range(cnp.PyArray_NDIM(a)):
        reach = (cnp.PyArray_DIM(a, i) - 1) * cnp.PyArray_STRIDE(a, i)
        if reach > 0:
            high[0] += reach
        else:
            low[0] += reach


cdef inline bint may_overlap(cnp.ndarray a, cnp.ndarray b) noexcept:
    cdef size_t a_low, a_high, b_low, b_high
    extent_of(a, &a_low, &a_high)
    extent_of(b, &b_low, &b_high)
    return a_low < b_high and b_low < a_high


cdef int check_apart(cnp.ndarray a, str name, cnp.ndarray b, str other) except -1:
    """Two arrays that are both written must not share an element. Each may be None."""
    cdef bint shared = True
    if a is None or b is None or not may_overlap(a, b):
        return 0
    try:  # only the elements count: one array may lie in the gaps of the other
        shared = np.shares_memory(plain_view(a), plain_view(b), max_work=100_000)
    except np.exceptions.TooHardError:
        pass
    if shared:
        raise ValueError(f"{name} and {other} must not overlap: both are written")
    return 0


cdef inline cnp.ndarray plain_view(cnp.ndarray a):
    return a if trusted(a) else <cnp.ndarray> PyArray_View(a, NULL, <void *> cnp.ndarray)


cdef inline cnp.ndarray kept_apart(cnp.ndarray a, cnp.ndarray written):
    """`a`, or a copy of it where writing to the other array would change it. May be None."""
    if a is not None and may_overlap(a, written):
        return <cnp.ndarray> cnp.PyArray_Copy(a)
    return a


cdef inline bint writable_in_place(cnp.ndarray out, cnp.ndarray array, bint elementwise):
    """Whether a kernel may write `out` while it reads `array`."""
    if elementwise and same_memory(out, array):
        return True
    return not may_overlap(out, array)


cdef inline void strides_of(cnp.ndarray a, const Py_ssize_t **shape, const Py_ssize_t **strides) noexcept:
    shape[0] = <const Py_ssize_t *> cnp.PyArray_DIMS(a)
    strides[0] = <const Py_ssize_t *> cnp.PyArray_STRIDES(a)


cdef inline bint plain(cnp.ndarray a, int number) noexcept:
    """Whether it is C-contiguous, native and of that dtype."""
    return cnp.PyArray_TYPE(a) == number and cnp.PyArray_IS_C_CONTIGUOUS(a) and native(a)


cdef inline bint plain_floats(object a, int number) noexcept:
    """Whether it is a C-contiguous native array of a dtype."""
    return trusted(a) and plain(<cnp.ndarray> a, number)


cdef inline bint plain_vector(object a, int number, Py_ssize_t n) noexcept:
    """n of them."""
    return plain_floats(a, number) and cnp.PyArray_NDIM(<cnp.ndarray> a) == 1 and (
        cnp.PyArray_DIM(<cnp.ndarray> a, 0) == n)


cdef cnp.ndarray plain_array(cnp.ndarray a, str name):
    """A C-contiguous, native array from parameters or statistics of any float type."""
    if a is None:
        raise TypeError(f"{name} must be a float array, but got None")
    if storage_of(a) < 0:
        raise TypeError(f"{name} must be a float array, but got dtype {a.dtype}")
    if not cnp.PyArray_IS_C_CONTIGUOUS(a) or not native(a):
        return a.astype(a.dtype.newbyteorder("="), order="C")
    return a


cdef cnp.ndarray converted(cnp.ndarray a, int number):
    """A plain array as a new one of float32 or float64: for the usual short one NumPy's own conversion takes
    longer, and of half types much."""
    cdef cnp.ndarray to = new_array(number, cnp.PyArray_NDIM(a), cnp.PyArray_DIMS(a))
    cdef Py_ssize_t n = cnp.PyArray_SIZE(a)
    if number == cnp.NPY_FLOAT64:
        kernels.widen64(storage_of(a), cnp.PyArray_BYTES(a), n, data64(to))
    elif storage_of(a) == FLOAT64:
        kernels.narrow(FLOAT32, data64(a), n, cnp.PyArray_BYTES(to))
    else:
        kernels.widen(storage_of(a), cnp.PyArray_BYTES(a), n, cnp.PyArray_BYTES(to))
    return to


cdef cnp.ndarray doubles(cnp.ndarray values, str name):
    """A plain float64 array from parameters or statistics of any float type."""
    cdef cnp.ndarray a = plain_array(values, name)
    return a if storage_of(a) == FLOAT64 else converted(a, cnp.NPY_FLOAT64)


cdef int copy_doubles(double *to, Py_ssize_t n, cnp.ndarray values, str name) except -1:
    """Copy n parameters or statistics of any float type to doubles."""
    cdef cnp.ndarray a
    if plain_vector(values, cnp.NPY_FLOAT32, n):  # the usual one
        kernels.widen64(FLOAT32, cnp.PyArray_BYTES(<cnp.ndarray> values), n, to)
        return 0
    a = plain_array(values, name)
    if cnp.PyArray_SIZE(a) != n:
        raise RuntimeError(f"{name} should contain {n} elements not {cnp.PyArray_SIZE(a)}")
    kernels.widen64(storage_of(a), cnp.PyArray_BYTES(a), n, to)
    return 0


cdef inline double *data64(object a) noexcept:
    return <double *> cnp.PyArray_DATA(<cnp.ndarray> a) if a is not None else NULL


cdef inline cnp.ndarray new64(cnp.npy_intp n):
    return new_array(cnp.NPY_FLOAT64, 1, &n)


cdef cnp.ndarray array64(const double *values, Py_ssize_t n):
    cdef cnp.ndarray a = new64(n)
    memcpy(data64(a), values, n * sizeof(double))
    return a


cdef cnp.ndarray gradient_array(cnp.ndarray parameter, int storage, int ndim, cnp.npy_intp *shape):
    """A new array for the gradient of a parameter, in its shape and dtype; None where kernels cannot write that.

    Without a parameter: of the accumulation type, of the shape that one would have.
    """
    if parameter is None:
        return new_array(accumulation_type(storage), ndim, shape)
    if storage_of(parameter) < 0 or not native(parameter):
        return None
    return <cnp.ndarray> PyArray_NewLikeArray(parameter, cnp.NPY_CORDER, NULL, 0)


cdef cnp.ndarray gradient_room(cnp.ndarray parameter, int storage, int ndim, cnp.npy_intp *shape):
    """A gradient of the accumulation type, as kernels leave it; None where the parameter has another."""
    if parameter is not None and cnp.PyArray_TYPE(parameter) != accumulation_type(storage):
        return None
    return gradient_array(parameter, storage, ndim, shape)


cdef object gradient(const double *sums, Py_ssize_t n, cnp.ndarray parameter, int storage, int ndim,
                     cnp.npy_intp *shape):
    """The gradient of a parameter, which was summed in double."""
    cdef cnp.ndarray a = gradient_array(parameter, storage, ndim, shape)
    if a is None:
        return array64(sums, n).reshape(shape_of(parameter)).astype(parameter.dtype.newbyteorder("="))
    if cnp.PyArray_SIZE(a) != n:
        raise RuntimeError(f"a parameter was resized to {cnp.PyArray_SIZE(a)} elements while its gradient was taken")
    kernels.narrow(storage_of(a), sums, n, cnp.PyArray_BYTES(a))
    return a


# ---- a call ----

cdef inline void set_tensor(Tensor *v, cnp.ndarray a, const Plan *p, int which) noexcept:
    cdef int i
    v.data = cnp.PyArray_BYTES(a)
    for i in range(4):
        v.strides[i] = p.stride[which][i]


cdef enum:
    LENT = 4096   # doubles of its stack that a function lends to a call


cdef class Call:
    """The arrays of one call: x and dy are read, y is written, `final` is what the caller gets."""
    cdef cnp.ndarray x, y, dy, plus, final
    cdef cnp.ndarray slope_array   # the negative_slope that was given, where it is no number
    cdef bint slope_gradient       # whether its gradient is wanted
    cdef cnp.ndarray slopes        # of the epilogue, where there is one per channel
    cdef int storage, activation
    cdef Py_ssize_t elements, bytes
    cdef double slope
    cdef double *lent         # what is left of it
    cdef Py_ssize_t left
    cdef object borrowed

    cdef void take(self, cnp.ndarray x) noexcept:
        self.x = x
        self.storage = storage_of(x)
        self.elements = cnp.PyArray_SIZE(x)
        self.bytes = self.elements * cnp.PyArray_ITEMSIZE(x)

    cdef void lend(self, double *memory) noexcept:
        """LENT doubles that outlive the call: short vectors then need no allocation."""
        self.lent = memory
        self.left = LENT

    cdef double *room(self, Py_ssize_t n, Py_ssize_t times=1) except NULL:
        """Memory for n doubles, or several times n, while the call lasts."""
        n = product(n, times, "the workspace of this call")
        if n >= self.left:
            self.borrowed = (new64(n), self.borrowed)
            return data64((<tuple> self.borrowed)[0])
        self.lent += n
        self.left -= n
        return self.lent - n

    cdef int guard(self, cnp.ndarray written) except -1:
        """Copy what a kernel reads besides x and the gradients, where writing to this array would change it."""
        self.slopes = kept_apart(self.slopes, written)
        return 0

    cdef int plan(self, int arrays, Plan *p) except -1:
        """The plan for x, for x and y, or for all three."""
        raise NotImplementedError

    cdef void layouts(self, int arrays, const Py_ssize_t **shape, const Py_ssize_t **strides) noexcept:
        strides_of(self.x, shape, &strides[0])
        if arrays > 1:
            strides_of(self.y, shape, &strides[1])
        if arrays > 2:
            strides_of(self.dy, shape, &strides[2])
        if arrays > 3:
            strides_of(self.plus, shape, &strides[3])

    cdef int settle(self, Plan *p, cnp.ndarray out, cnp.ndarray grad_output, cnp.ndarray plus=None) except -1:
        """Choose where the result goes, and the plan; copy what no kernel takes as it is.

        A result that the kernel cannot write goes through memory of its own, and so does one that
        overlaps x or a gradient without being the same elements; `guard` looks after all else that is read.
        """
        cdef int arrays = 2 if grad_output is None else 3 if plus is None else 4
        if out is None:
            self.final = empty_like(self.x)
            self.y = self.final
        else:
            self.final = checked_out(out, self.x)
            self.guard(out)
            self.y = self.final
            if not native(self.y) or not writable_in_place(self.final, self.x, True) or (
                    grad_output is not None and not writable_in_place(self.final, grad_output, True)) or (
                    plus is not None and not writable_in_place(self.final, plus, True)):
                self.y = empty_like(self.x)
        self.dy = grad_output
        self.plus = plus
        self.plan(arrays, p)
        if p.family != COPY:  # then no kernel refuses fewer of them
            return 0
        self.plan(1, p)
        if p.family == COPY:
            self.x = np.ascontiguousarray(self.x)
        self.plan(2, p)
        if p.family == COPY:
            self.y = empty_like(self.x)
            self.plan(2, p)
        if p.family == COPY:
            self.x = np.ascontiguousarray(self.x)
            self.y = empty_like(self.x)
            self.plan(2, p)
        if self.dy is not None:
            self.plan(arrays, p)
            if p.family == COPY:
                self.dy = copy_like(self.dy, self.x)
                self.plus = copy_like(self.plus, self.x) if plus is not None else None
                self.plan(arrays, p)
            if p.family == COPY:
                self.x = np.ascontiguousarray(self.x)
                self.y = empty_like(self.x)
                self.dy = np.ascontiguousarray(self.dy)
                self.plus = np.ascontiguousarray(self.plus) if plus is not None else None
                self.plan(arrays, p)
        return 0

    cdef cnp.ndarray finish(self):
        if self.y is not self.final:
            cnp.PyArray_CopyInto(self.final, self.y)
        return self.final

    cdef int take_slope(self, object negative_slope) except -1:
        """Convert the argument: None, a number, or an array of 1 or C."""
        if negative_slope is None:
            return 0
        self.activation = ACT_SLOPE
        if isinstance(negative_slope, (float, int)) and not isinstance(negative_slope, bool):
            self.slope = number(negative_slope, "negative_slope")
            return 0
        self.slope_array = given(negative_slope, "negative_slope")
        self.slope_gradient = isinstance(negative_slope, cnp.ndarray) or cnp.PyArray_NDIM(self.slope_array) > 0
        return 0

    cdef int epilogue(self, Py_ssize_t channels) except -1:
        """Check the slopes that were taken."""
        cdef cnp.ndarray values
        if self.slope_array is None:
            return 0
        values = doubles(self.slope_array, "negative_slope")
        if cnp.PyArray_SIZE(values) == 1:
            self.slope = data64(values)[0]
        elif cnp.PyArray_SIZE(values) == channels:
            self.activation = ACT_SLOPES
            self.slopes = values
        else:
            raise ValueError(f"negative_slope must hold 1 or {channels} values, but got {values.size}")
        return 0


cdef int run_norm(norm_kernel kernel, Job *job, Py_ssize_t size, str what) except -1:
    """Run a kernel on so many bytes: while it would take other Python threads longer to start, alone."""
    cdef int failed
    if size < FREE_GIL:
        failed = kernels.run_norm(kernel, job)
    else:
        with nogil:
            failed = kernels.run_norm(kernel, job)
    if failed:
        raise MemoryError(f"cnorm could not allocate the {what} of this call")
    return 0
