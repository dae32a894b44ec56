# The dtypes that are read as double.
cimport numpy as cnp

cdef int wide_code(cnp.ndarray a) noexcept
