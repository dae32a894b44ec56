# Arrays of a call: what is accepted, dtype codes, overlap, conversion. What is small enough to inline is here.
cimport numpy as cnp
from cpython.object cimport PyTypeObject

from cnorm._runtime cimport kernels
from cnorm.kernels.job cimport FLOAT16, FLOAT32, FLOAT64

cdef extern from "Python.h":
    PyTypeObject *Py_TYPE(object)
    long long PyLong_AsLongLongAndOverflow(object, int *) except? -1
    Py_ssize_t PY_SSIZE_T_MAX, PY_SSIZE_T_MIN

cdef PyTypeObject *TRUSTED_SUBCLASS   # of ndarray, which runs no code of the caller's: Parameter; set once

cdef int bfloat16_code(cnp.ndarray a) noexcept


cdef inline int dtype_code(cnp.ndarray a) noexcept:
    """The Dtype (job.pxd) of an array, or -1."""
    cdef int number = cnp.PyArray_TYPE(a)
    if number == cnp.NPY_FLOAT32:
        return FLOAT32
    if number == cnp.NPY_FLOAT64:
        return FLOAT64
    if number == cnp.NPY_FLOAT16:
        return FLOAT16
    return bfloat16_code(a)


cdef cnp.ndarray from_foreign(object a, str name)
cdef cnp.ndarray foreign_out(object a, str name)
cdef double converted_float(object value, str name) except? -1
cdef object converted_int(object value, str name)
cdef bint converted_flag(object value, str name) except -1
cdef object hints()
cpdef object as_dtype(object dtype)
cdef Py_ssize_t large_product(Py_ssize_t a, Py_ssize_t b, str what) except -1
cpdef cnp.ndarray as_floats(cnp.ndarray array, str name)
cdef cnp.ndarray native_copy(cnp.ndarray a, str name)
cdef object size_list(cnp.ndarray a)
cdef cnp.ndarray checked_out(cnp.ndarray out, cnp.ndarray like, str name=*)
cdef cnp.ndarray check_written(cnp.ndarray a, str name)
cdef cnp.ndarray copy_like(cnp.ndarray a, cnp.ndarray like)
cdef int check_no_overlap(cnp.ndarray a, str name, cnp.ndarray b, str other) except -1
cdef cnp.ndarray as_plain(cnp.ndarray a, str name)
cdef cnp.ndarray converted(cnp.ndarray a, int number)
cdef cnp.ndarray as_doubles(cnp.ndarray values, str name)
cdef int copy_other_doubles(double *to, Py_ssize_t n, cnp.ndarray values, str name) except -1
cdef cnp.ndarray new_float64(cnp.npy_intp n)
cdef cnp.ndarray float64_array(const double *values, Py_ssize_t n)


cdef inline int accumulation_type(int dtype) noexcept:
    """NumPy's number of the type that an array is computed in."""
    return cnp.NPY_FLOAT64 if dtype == FLOAT64 else cnp.NPY_FLOAT32


cdef inline Py_ssize_t accumulation_size(int dtype) noexcept:
    """Bytes of an element of that type."""
    return 8 if dtype == FLOAT64 else 4


cdef inline bint is_native(cnp.ndarray a) noexcept:
    """Whether its elements are aligned and in this machine's byte order."""
    return cnp.PyArray_ISALIGNED(a) and cnp.PyArray_ISNOTSWAPPED(a)


cdef inline bint is_trusted(object a) noexcept:
    """Whether it is an ndarray that can be asked for anything."""
    return cnp.PyArray_CheckExact(a) or Py_TYPE(a) == TRUSTED_SUBCLASS


cdef inline cnp.ndarray as_array(object a, str name):
    """An argument as an array; None stays None."""
    if a is None or is_trusted(a):
        return <cnp.ndarray> a
    return from_foreign(a, name)


cdef inline cnp.ndarray as_out(object a, str name):
    """An array to write to, or None, the object itself, which the caller gets back."""
    if a is None or is_trusted(a):
        return <cnp.ndarray> a
    return foreign_out(a, name)


cdef inline cnp.ndarray as_running(object a, str name):
    """An array to update, or None; of a subclass, a view."""
    if a is None or is_trusted(a):
        return <cnp.ndarray> a
    return from_foreign(foreign_out(a, name), name)


cdef inline tuple shape_of(object a):
    return a.shape


cdef inline object dtype_of(cnp.ndarray a):
    return <object> cnp.PyArray_DESCR(a)


cdef inline Py_ssize_t size_of(cnp.ndarray a) noexcept:
    """PyArray_SIZE without a call into NumPy."""
    cdef Py_ssize_t n = 1
    cdef int i
    for i in range(cnp.PyArray_NDIM(a)):
        n *= cnp.PyArray_DIM(a, i)
    return n


cdef inline bint same_shape(cnp.ndarray a, cnp.ndarray b) noexcept:
    cdef int i, n = cnp.PyArray_NDIM(a)
    if n != cnp.PyArray_NDIM(b):
        return False
    for i in range(n):
        if cnp.PyArray_DIM(a, i) != cnp.PyArray_DIM(b, i):
            return False
    return True


cdef inline bint same_memory(cnp.ndarray a, cnp.ndarray b) noexcept:
    """Whether the elements of b are those of a, one by one; both have one shape."""
    cdef int i
    if cnp.PyArray_DATA(a) != cnp.PyArray_DATA(b):
        return False
    for i in range(cnp.PyArray_NDIM(a)):
        if cnp.PyArray_DIM(a, i) > 1 and cnp.PyArray_STRIDE(a, i) != cnp.PyArray_STRIDE(b, i):
            return False
    return True


cdef inline void byte_range(cnp.ndarray a, size_t *low, size_t *high) noexcept:
    """The addresses that an array lies between."""
    cdef int i
    cdef Py_ssize_t reach
    low[0] = <size_t> cnp.PyArray_DATA(a)
    high[0] = low[0] + cnp.PyArray_ITEMSIZE(a)
    for i in range(cnp.PyArray_NDIM(a)):
        if cnp.PyArray_DIM(a, i) == 0:
            low[0] = high[0] = <size_t> cnp.PyArray_DATA(a)
            return
        reach = (cnp.PyArray_DIM(a, i) - 1) * cnp.PyArray_STRIDE(a, i)
        if reach > 0:
            high[0] += reach
        else:
            low[0] += reach


cdef inline bint may_overlap(cnp.ndarray a, cnp.ndarray b) noexcept:
    cdef size_t a_low, a_high, b_low, b_high
    byte_range(a, &a_low, &a_high)
    byte_range(b, &b_low, &b_high)
    return a_low < b_high and b_low < a_high


cdef inline bint blocks_overlap(object a, Py_ssize_t size, object b, Py_ssize_t other) noexcept:
    """`may_overlap` of C-contiguous arrays of so many bytes."""
    cdef const char *first = cnp.PyArray_BYTES(<cnp.ndarray> a)
    cdef const char *second = cnp.PyArray_BYTES(<cnp.ndarray> b)
    return first < second + other and second < first + size


cdef inline cnp.ndarray copy_if_overlapping(cnp.ndarray a, cnp.ndarray written):
    """`a`, or a copy of it where writing to the other array would change it. May be None."""
    if a is not None and may_overlap(a, written):
        return <cnp.ndarray> cnp.PyArray_Copy(a)
    return a


cdef inline bint writable_in_place(cnp.ndarray out, cnp.ndarray array, bint elementwise):
    """Whether a kernel may write `out` while it reads `array`."""
    if elementwise and same_memory(out, array):
        return True
    return not may_overlap(out, array)


cdef inline void shape_and_strides(cnp.ndarray a, const Py_ssize_t **shape, const Py_ssize_t **strides) noexcept:
    shape[0] = <const Py_ssize_t *> cnp.PyArray_DIMS(a)
    strides[0] = <const Py_ssize_t *> cnp.PyArray_STRIDES(a)


cdef inline bint is_plain(cnp.ndarray a, int number) noexcept:
    """Whether it is C-contiguous, native and of that dtype."""
    return cnp.PyArray_TYPE(a) == number and cnp.PyArray_IS_C_CONTIGUOUS(a) and is_native(a)


cdef inline bint is_plain_array(object a, int number) noexcept:
    """Whether it is a C-contiguous native array of a dtype."""
    return is_trusted(a) and is_plain(<cnp.ndarray> a, number)


cdef inline bint is_plain_vector(object a, int number, Py_ssize_t n) noexcept:
    """Whether it is a C-contiguous native vector of n elements of a dtype."""
    return is_plain_array(a, number) and cnp.PyArray_NDIM(<cnp.ndarray> a) == 1 and (
        cnp.PyArray_DIM(<cnp.ndarray> a, 0) == n)


cdef inline int copy_doubles(double *to, Py_ssize_t n, cnp.ndarray values, str name) except -1:
    """Copy n parameters or statistics of any float type to doubles."""
    if is_plain_vector(values, cnp.NPY_FLOAT32, n):  # the usual one
        kernels.widen64(FLOAT32, cnp.PyArray_BYTES(values), n, to)
        return 0
    return copy_other_doubles(to, n, values, name)


cdef inline double *float64_data(object a) noexcept:
    return <double *> cnp.PyArray_DATA(<cnp.ndarray> a) if a is not None else NULL


cdef inline double as_float(object value, str name) except? -1:
    """An argument as a float."""
    return <double> value if type(value) is float else converted_float(value, name)


cdef inline bint as_flag(object value, str name) except -1:
    """An argument as true or false."""
    return value is True if value is True or value is False else converted_flag(value, name)


cdef inline object as_int(object value, str name):
    """An argument as an int, and not a subclass, which may compare as it likes."""
    return value if type(value) is int else converted_int(value, name)


cdef inline Py_ssize_t as_size(object value) except? -1:
    """An int as a size; one that no size can be as the largest or the smallest."""
    cdef int beyond
    cdef long long n = PyLong_AsLongLongAndOverflow(value, &beyond)
    if beyond > 0 or n > PY_SSIZE_T_MAX:
        return PY_SSIZE_T_MAX
    return PY_SSIZE_T_MIN if beyond < 0 or n < PY_SSIZE_T_MIN else <Py_ssize_t> n


cdef inline Py_ssize_t checked_product(Py_ssize_t a, Py_ssize_t b, str what) except -1:
    """a * b of sizes, or MemoryError. Of sizes of few bits without a division."""
    return a * b if (a | b) >> (4 * sizeof(Py_ssize_t) - 1) == 0 else large_product(a, b, what)
