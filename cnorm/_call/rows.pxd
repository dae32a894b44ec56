# A call of a norm with a weight per element of a row.
cimport cython
cimport numpy as cnp

from cnorm._call.masks cimport Pieces
from cnorm._call.output cimport Call
from cnorm._plan cimport MAX_DIMS, Plan
from cnorm.kernels.job cimport Job


@cython.no_gc
cdef class RowsCall(Call):
    cdef cnp.ndarray weight, bias                    # as the kernels take them: (sets, elements of a row)
    cdef cnp.ndarray mean, rstd
    cdef cnp.ndarray grad_weight, grad_bias          # as the caller gets them, where kernels can write that
    cdef cnp.ndarray unit_slopes, unit_slope_grads   # where there is a slope per row
    cdef int normalized                              # axes of a row
    cdef bint trailing                               # these are the last ones
    cdef int axes[MAX_DIMS]                          # of the units, then of a row, as its elements count in memory
    cdef int places[MAX_DIMS]                        # for each dimension of normalized_shape: its place among the latter
    cdef Py_ssize_t length                           # elements of a row
    cdef bint by_set                                 # weight or bias differ along axes of the units
    cdef unsigned char varies[MAX_DIMS]              # along which of them
    cdef Py_ssize_t param_sets, units_per_set        # job.pxd
    cdef double *grads                               # after backward: (runs, 3, length) of weight, bias and slope
    cdef bint centred                                # layer norm; else rms norm
    cdef bint sum_keeps                              # with a mask: residual_out was given, and keeps its values
    cdef double eps

    cdef int set_rows(self, cnp.ndarray x, int normalized, tuple row_axes, bint centred, double eps) except -1
    cdef Py_ssize_t rows(self) noexcept
    cdef tuple stats_shape(self)
    cdef int use_packed(self, bytes packed) except -1
    cdef list all_axes(self)
    cdef int fill_job(self, const Plan *p, bint fuse_add, Job *a) except -1
    cdef int fill_statistics(self, Job *a, bint backward) except -1
    cdef bint has_sets(self, cnp.ndarray values) noexcept
    cdef Py_ssize_t set_size(self, int i) noexcept
    cdef bint is_all_sets(self, cnp.ndarray values) noexcept
    cdef bint sets_in_order(self) noexcept
    cdef int choose_sets(self, cnp.ndarray weight, cnp.ndarray bias) except -1
    cdef object as_row(self, object values, bint shared)
    cdef cnp.ndarray lay_out(self, cnp.ndarray values, str name)
    cdef int parameters(self, cnp.ndarray weight, cnp.ndarray bias, bint always, bint zero_centred) except -1
    cdef Py_ssize_t runs(self) noexcept
    cdef bint kernels_write(self, cnp.ndarray parameter) except -1
    cdef cnp.ndarray totals(self, int which, tuple of_parameter, bint shared, object order)
    cdef object parameter_gradient(self, int which, cnp.ndarray written, cnp.ndarray parameter, tuple shape)
    cdef cnp.ndarray forward(self, cnp.ndarray out, cnp.ndarray one=*, cnp.ndarray other=*)
    cdef int run_masked(self, Job *a, bint backward) except -1
    cdef int copy_rows(self, bint backward) except -1
    cdef int choose_chunks(self, Pieces pieces, Py_ssize_t runs) except -1
    cdef int empty_statistics(self) except -1
    cdef cnp.ndarray backward(self, cnp.ndarray grad_output, cnp.ndarray out, cnp.ndarray addend=*)


cdef Py_ssize_t packed_size(Py_ssize_t rows, bint centred) except -1
cdef bytes packed_statistics(Py_ssize_t rows, bint centred)
cdef cnp.ndarray row_parameter(cnp.ndarray values, str name, int dtype)
