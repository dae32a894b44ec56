# How a batch changes running statistics and their count.
cimport numpy as cnp

cdef int update_running(cnp.ndarray running_mean, cnp.ndarray running_var, double factor, const double *mean,
                        const double *var, double divisor, Py_ssize_t n, cnp.ndarray count) except -1
cdef int update_counted(cnp.ndarray running_mean, cnp.ndarray running_var, double factor, cnp.ndarray mean,
                        cnp.ndarray var, cnp.ndarray counted, cnp.ndarray count) except -1
cdef int mean_over_samples(const double *values, Py_ssize_t samples, Py_ssize_t channels, double *mean) except -1
cdef int assign_all(list targets, list values) except -1
