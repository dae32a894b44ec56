# The dtype of a result of float elements, whatever the input's.
cimport numpy as cnp

cdef object result_dtype(cnp.ndarray x, object dtype, cnp.ndarray out)
