# Checks of converted arguments. Each raises what torch raises, or returns.
cimport numpy as cnp

cdef int check_eps(str name, double eps, bint training) except -1
cdef int check_tracked(cnp.ndarray x, int axis, cnp.ndarray running_mean, cnp.ndarray running_var,
                       cnp.ndarray weight, cnp.ndarray bias) except -1
cdef int check_dims(cnp.ndarray x, str name, int least) except -1
cdef int check_written_together(cnp.ndarray running_mean, cnp.ndarray running_var, cnp.ndarray count,
                                cnp.ndarray out) except -1
cdef Py_ssize_t check_groups(cnp.ndarray x, int axis, object num_groups, cnp.ndarray weight,
                             cnp.ndarray bias) except -1
cdef object group_count(object num_groups)
cdef int check_row(cnp.ndarray x, tuple shape, tuple axes, cnp.ndarray weight, cnp.ndarray bias) except -1
cdef tuple as_axes(object axis, str name=*, bint optional=*)
cdef int resolve_axes(tuple axes, int ndim, int *found, str name=*) except -1
cdef tuple row_axes(tuple axis, cnp.ndarray x, tuple shape)
cdef tuple as_row_shape(object normalized_shape)
cdef cnp.ndarray as_gradient(cnp.ndarray grad_output, cnp.ndarray x, str name=*)
cdef cnp.ndarray as_statistic(cnp.ndarray values, str name, Py_ssize_t n, str shape)
cdef int check_running(cnp.ndarray running, str name, Py_ssize_t channels, cnp.ndarray x=*, int axis=*) except -1
cdef int check_writable(cnp.ndarray running, str name) except -1
cdef int check_length(cnp.ndarray parameter, str name, Py_ssize_t channels, cnp.ndarray x, int axis) except -1
cdef int check_parameter(cnp.ndarray parameter, str name, cnp.ndarray x, int axis) except -1
cdef int check_one_activation(object negative_slope, object clip) except -1
cdef bint clip_bounds(object clip, double *low, double *high) except -1
cdef int axis_of(object channel_axis, int ndim) except -1
cdef bint is_counter(cnp.ndarray count) noexcept
