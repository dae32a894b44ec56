# What moments and standardize take: dtypes that are read as double, axes in the order of memory.
cimport numpy as cnp

from cnorm.kernels.job cimport Axes, MomentsJob


cdef class Measurement:
    cdef cnp.ndarray x, mask
    cdef tuple reduced, kept          # axes of the input
    cdef list order                   # the kept axes as the kernels number units
    cdef bint omit
    cdef cnp.ndarray count, mean, lo, m2   # in the shape of the kept axes

    cdef int take(self, cnp.ndarray x, cnp.ndarray mask, tuple reduced, bint omit) except -1
    cdef tuple kept_shape(self)
    cdef bint plan(self, MomentsJob *job, bint with_mask) except -1
    cdef bint fits_columns(self, const MomentsJob *job) noexcept
    cdef bint is_empty(self)
    cdef bint prepare(self, MomentsJob *job) except -1
    cdef int launch(self, MomentsJob *job, bint columns) except -1
    cdef int run(self) except -1
    cdef int copy(self) except -1
    cdef int copy_mask(self) except -1
    cdef int make_results(self) except -1
    cdef int order_results(self) except -1


cdef int wide_code(cnp.ndarray a) noexcept
cdef cnp.ndarray as_numbers(cnp.ndarray a, str name)
cpdef tuple as_axes(axis)
cpdef tuple resolve_axes(axes, int ndim)
cpdef tuple kept_axes(tuple reduced, int ndim)
cpdef int check_policy(nan_policy) except -1
cdef list memory_order(cnp.ndarray a)
cdef void add_axis(Axes *axes, Py_ssize_t size, Py_ssize_t x, Py_ssize_t y, Py_ssize_t mask, Py_ssize_t unit) noexcept
cdef Measurement measured(cnp.ndarray x, cnp.ndarray mask, tuple reduced, str nan_policy)
cpdef cnp.ndarray to_doubles(values, str name)
cpdef variance(count, m2, double ddof)
