cimport numpy as cnp

cdef cnp.ndarray empty_like(cnp.ndarray a)
cdef cnp.ndarray new_array(int number, int ndim, const cnp.npy_intp *shape)
