from cnorm.kernels.job cimport JobHead, Kernel

cdef int observe(Kernel kernel, JobHead *job, Py_ssize_t size, unsigned kind) except? -2
cdef int note(str text) except -1
