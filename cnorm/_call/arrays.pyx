"""Arrays of a call: what is accepted, dtype codes, overlap, conversion.

A call first converts all of its arguments (`as_array`, `as_float`, `as_int`), then checks them, and after that
asks no argument anything again. Conversion runs code of the caller's, such as `__array__` and `__float__`, which
may answer otherwise the second time, or resize an array that was checked before. Checks read NumPy's own structs.
"""

from importlib import import_module

import numpy as np

cimport numpy as cnp
from cpython.number cimport PyNumber_Index
from cpython.ref cimport Py_INCREF
from libc.string cimport memcpy

from cnorm._pool cimport empty_like, new_array
from cnorm cimport _runtime
from cnorm._call.observe cimport note
from cnorm._runtime cimport kernels
from cnorm.kernels.job cimport BFLOAT16, FLOAT32, FLOAT64

cdef extern from "numpy/arrayobject.h":
    object PyArray_View(cnp.ndarray, void *, void *)

cnp.import_array()

cdef int BFLOAT16_TYPE = -1   # NumPy's number for ml_dtypes.bfloat16, once one has been seen


cdef int bfloat16_code(cnp.ndarray a) noexcept:
    """BFLOAT16 for an array of ml_dtypes.bfloat16; -1 for any other."""
    global BFLOAT16_TYPE
    cdef int number = cnp.PyArray_TYPE(a)
    if number == BFLOAT16_TYPE:
        return BFLOAT16
    if number >= 256 and BFLOAT16_TYPE < 0 and cnp.PyArray_ITEMSIZE(a) == 2 and (
            <object> cnp.PyArray_DESCR(a)).name == "bfloat16":
        BFLOAT16_TYPE = number
        return BFLOAT16
    return -1


def trust(subclass):
    """Name the one subclass of ndarray that calls take as it is."""
    global TRUSTED_SUBCLASS
    if TRUSTED_SUBCLASS is NULL:
        Py_INCREF(subclass)
        TRUSTED_SUBCLASS = <PyTypeObject *> subclass


# `as_array`, `as_float` and `as_int` are inlined, and so not seen by Python modules of this package: these are.

def to_array(a, str name):
    """`as_array` for Python modules."""
    return as_array(a, name)


def to_float(value, str name):
    """`as_float` for Python modules."""
    return as_float(value, name)


def to_int(value, str name):
    """`as_int` for Python modules."""
    return as_int(value, name)


def to_flag(value, str name):
    """`as_flag` for Python modules."""
    return as_flag(value, name)


cdef object hints():
    """The module that knows common mistakes: imported when a call has failed."""
    from cnorm import _hints
    return _hints


cdef int refuse_mask(object a, str name) except -1:
    if hasattr(a, "mask"):
        raise TypeError(hints().masked(name))
    return 0


cdef cnp.ndarray foreign_out(object a, str name):
    """`as_out` of anything else than None or an array of ours."""
    if not isinstance(a, cnp.ndarray):
        raise TypeError(hints().not_writable_array(name, a))
    refuse_mask(a, name)
    return <cnp.ndarray> a


cdef cnp.ndarray from_foreign(object a, str name):
    """An array from anything else: a subclass of ndarray, what has DLPack or the array protocols, a sequence."""
    cdef cnp.ndarray array
    refused = None
    if isinstance(a, cnp.ndarray):
        refuse_mask(a, name)
        return <cnp.ndarray> PyArray_View(<cnp.ndarray> a, NULL, <void *> cnp.ndarray)
    if getattr(a, "__dask_graph__", None) is not None and graph_of(a) is not None:
        raise TypeError(f"{name} must be an array in memory, but got a {type(a).__module__.partition('.')[0]} "
                        f"{type(a).__name__} that is not computed yet: cnorm.interop.dask keeps it lazy, and "
                        ".compute() makes it an array")
    if hasattr(a, "__dlpack__"):
        try:
            if str(getattr(a, "dtype", None)) == "torch.bfloat16":  # NumPy's import does not know it
                return from_torch_bfloat16(a)
            return np.from_dlpack(a)
        except (AttributeError, BufferError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            refused = error
    try:
        array = np.asarray(a)
    except (RuntimeError, TypeError, ValueError) as error:
        raise hints().unreadable(name, a, error) from error
    if cnp.PyArray_TYPE(array) != cnp.NPY_OBJECT:
        return array
    if refused is not None:
        raise TypeError(f"{name} cannot be read as an array: its __dlpack__ raised {type(refused).__name__}: "
                        f"{refused}. Pass a NumPy array, or one that can be exported from the memory of the CPU") from refused
    if cnp.PyArray_NDIM(array) == 0:
        raise TypeError(hints().no_array(name, a))
    return array


cdef object from_torch_bfloat16(object a):
    """A torch tensor of bfloat16."""
    dtype = as_dtype("bfloat16")
    import torch
    return np.from_dlpack(a.view(torch.uint16)).view(dtype)


cpdef object as_dtype(object dtype):
    """The argument `dtype` as one of NumPy's, which does not know "bfloat16" before ml_dtypes is imported."""
    if not isinstance(dtype, str) or dtype != "bfloat16":
        try:
            return np.dtype(dtype)
        except TypeError:
            raise hints().not_a_dtype(dtype) from None
    try:
        return np.dtype(import_module("ml_dtypes").bfloat16)
    except ModuleNotFoundError as error:
        raise hints().needs_ml_dtypes(error) from None


cdef object graph_of(object a):
    """The graph of what dask would compute: that of an xarray object in memory is None."""
    graph = a.__dask_graph__
    return graph() if callable(graph) else graph


cdef double converted_float(object value, str name) except? -1:
    """`as_float` of what is no float."""
    try:
        return value
    except TypeError as error:
        raise TypeError(hints().number(name, value)) from error


cdef object converted_int(object value, str name):
    """`as_int` of what is no int."""
    try:
        return PyNumber_Index(value)
    except TypeError as error:
        raise TypeError(hints().number(name, value, "an integer")) from error


cdef bint converted_flag(object value, str name) except -1:
    """`as_flag` of what is neither True nor False."""
    if isinstance(value, str):  # which is true, whatever it says
        raise TypeError(hints().flag(name, value))
    return bool(value)


cdef Py_ssize_t large_product(Py_ssize_t a, Py_ssize_t b, str what) except -1:
    """`checked_product` of any sizes."""
    if a > 0 and b > PY_SSIZE_T_MAX // a:
        raise MemoryError(f"{what} would hold {a} times {b} elements, which is more than can be addressed")
    return a * b


cpdef cnp.ndarray as_floats(cnp.ndarray array, str name):
    """A native float array."""
    if array is None:
        raise TypeError(hints().no_array(name, None))
    if dtype_code(array) < 0:
        raise TypeError(hints().floats(name, array))
    return array if is_native(array) else native_copy(array, name)


cdef cnp.ndarray native_copy(cnp.ndarray a, str name):
    """A copy that is aligned and in this machine's byte order."""
    if _runtime.observing:
        note(f"{name} is copied: it is not aligned, or not in this machine's byte order")
    return a.astype(a.dtype.newbyteorder("="))


cdef object size_list(cnp.ndarray a):
    """A shape as torch prints it."""
    return list((<object> a).shape)


cdef cnp.ndarray checked_out(cnp.ndarray out, cnp.ndarray like, str name="out"):
    if not same_shape(out, like):
        raise ValueError(f"{name} must have shape {shape_of(like)}, but got {shape_of(out)}: "
                         f"np.empty({shape_of(like)}, '{like.dtype}') makes one")
    if dtype_code(out) != dtype_code(like):
        raise TypeError(f"{name} must have dtype {like.dtype}, but got {dtype_of(out)}: "
                        f"np.empty({shape_of(like)}, '{like.dtype}') makes one")
    return check_written(out, name)


cdef cnp.ndarray check_written(cnp.ndarray a, str name):
    """An array whose elements can be written, each on its own."""
    cdef size_t low, high
    if not cnp.PyArray_ISWRITEABLE(a):
        raise ValueError(f"{name} is read-only: pass an array that can be written; a memory map can with mode='r+'")
    if not cnp.PyArray_IS_C_CONTIGUOUS(a):
        byte_range(a, &low, &high)
        if high - low < <size_t> cnp.PyArray_NBYTES(a):
            raise ValueError(f"{name} has elements that share memory: pass an array of its own, such as a copy")
    return a


cdef cnp.ndarray copy_like(cnp.ndarray a, cnp.ndarray like):
    """A copy in the memory order of another array."""
    cdef cnp.ndarray copy = empty_like(like)
    copy[...] = a
    return copy


cdef int check_no_overlap(cnp.ndarray a, str name, cnp.ndarray b, str other) except -1:
    """Two arrays that are both written must not share an element. Each may be None."""
    cdef bint shared = True
    if a is None or b is None or not may_overlap(a, b):
        return 0
    try:  # only the elements count: one array may lie in the gaps of the other
        shared = np.shares_memory(base_view(a), base_view(b), max_work=100_000)
    except np.exceptions.TooHardError:
        pass
    if shared:
        raise ValueError(f"{name} and {other} must not overlap: both are written")
    return 0


cdef cnp.ndarray base_view(cnp.ndarray a):
    return a if is_trusted(a) else <cnp.ndarray> PyArray_View(a, NULL, <void *> cnp.ndarray)


cdef cnp.ndarray as_plain(cnp.ndarray a, str name):
    """A C-contiguous, native array from parameters or statistics of any float type."""
    if a is None:
        raise TypeError(f"{name} must be a float array, but got None")
    if dtype_code(a) < 0:
        raise TypeError(hints().floats(name, a, "a float array"))
    if not cnp.PyArray_IS_C_CONTIGUOUS(a) or not is_native(a):
        return a.astype(a.dtype.newbyteorder("="), order="C")
    return a


cdef cnp.ndarray converted(cnp.ndarray a, int number):
    """A plain array as a new one of float32 or float64: for the usual short one NumPy's own conversion takes
    longer, and of half types much."""
    cdef cnp.ndarray to = new_array(number, cnp.PyArray_NDIM(a), cnp.PyArray_DIMS(a))
    cdef Py_ssize_t n = cnp.PyArray_SIZE(a)
    if number == cnp.NPY_FLOAT64:
        kernels.widen64(dtype_code(a), cnp.PyArray_BYTES(a), n, float64_data(to))
    elif dtype_code(a) == FLOAT64:
        kernels.narrow(FLOAT32, float64_data(a), n, cnp.PyArray_BYTES(to))
    else:
        kernels.widen(dtype_code(a), cnp.PyArray_BYTES(a), n, cnp.PyArray_BYTES(to))
    return to


cdef cnp.ndarray as_doubles(cnp.ndarray values, str name):
    """A plain float64 array from parameters or statistics of any float type."""
    cdef cnp.ndarray a = as_plain(values, name)
    return a if dtype_code(a) == FLOAT64 else converted(a, cnp.NPY_FLOAT64)


cdef int copy_other_doubles(double *to, Py_ssize_t n, cnp.ndarray values, str name) except -1:
    """`copy_doubles` of any vector."""
    cdef cnp.ndarray a = as_plain(values, name)
    if cnp.PyArray_SIZE(a) != n:
        raise RuntimeError(f"{name} should contain {n} elements not {cnp.PyArray_SIZE(a)}")
    kernels.widen64(dtype_code(a), cnp.PyArray_BYTES(a), n, to)
    return 0


cdef cnp.ndarray new_float64(cnp.npy_intp n):
    return new_array(cnp.NPY_FLOAT64, 1, &n)


cdef cnp.ndarray float64_array(const double *values, Py_ssize_t n):
    cdef cnp.ndarray a = new_float64(n)
    memcpy(float64_data(a), values, n * sizeof(double))
    return a
