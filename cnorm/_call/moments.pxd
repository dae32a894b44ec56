# The dtypes that are read as double, and those of results.
cimport numpy as cnp

cdef int wide_code(cnp.ndarray a) noexcept
cdef object result_dtype(cnp.ndarray x, object dtype, cnp.ndarray out)
