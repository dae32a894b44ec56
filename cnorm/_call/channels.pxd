# A call of a norm with a weight per channel. In a call, `groups` is 0 for batch norm (a unit is a channel), C for instance norm,
# and G for group norm (a unit is a group of channels of one sample).
cimport cython
cimport numpy as cnp

from cnorm._call.output cimport ChannelAxisCall
from cnorm._plan cimport Plan
from cnorm.kernels.job cimport Job

@cython.no_gc
cdef class ParameterSets:
    # Parameters per sample.
    cdef cnp.ndarray given_weight, given_bias
    cdef cnp.ndarray weight, bias             # (N, C), or (C,) for all samples; of the accumulation type
    cdef bint wide                            # or float64
    cdef cnp.ndarray grad_weight, grad_bias   # gradients that a kernel wrote as the caller gets them


@cython.no_gc
cdef class ChannelsCall(ChannelAxisCall):
    cdef const double *weight     # per channel, or (per_sample) per sample and channel; or NULL
    cdef const double *bias
    cdef bint per_sample          # weight and bias differ from sample to sample: (N, C)
    cdef ParameterSets sets       # of batch norm, till it knows the family of kernels; else None
    cdef double *mean             # per unit, or NULL where nobody asks for it
    cdef double *lo
    cdef double *m2
    cdef double *rstd
    cdef double *grads            # after backward: of weight, bias and slope, `grad_size()` of each
    cdef cnp.ndarray mean_array, rstd_array   # that hold them where the caller gets or gave them
    cdef bint stats_given
    cdef object counts            # with a mask: how many elements of each unit count, float64
    cdef double eps

    cdef const double *parameter(self, cnp.ndarray values, str name) except? NULL
    cdef int parameters(self, cnp.ndarray weight, cnp.ndarray bias, bint of_samples) except -1
    cdef bint has_samples(self, cnp.ndarray values) noexcept
    cdef Py_ssize_t grad_size(self) noexcept
    cdef int return_statistics(self, int ndim) except -1
    cdef int reserve_statistics(self) except -1
    cdef int fill_job(self, const Plan *p, Job *a) except -1
    cdef int spread_statistics(self, Job *a) except -1
    cdef int take_sets(self, cnp.ndarray weight, cnp.ndarray bias) except -1
    cdef cnp.ndarray set_array(self, cnp.ndarray values, str name)
    cdef int widen_sets(self) except -1
    cdef int fill_sets_job(self, int arrays, Job *a) except -1
    cdef cnp.ndarray sets_gradient(self, cnp.ndarray parameter)
    cdef int forward_by_sample(self, const Plan *p) except -1
    cdef int backward_by_sample(self) except -1
    cdef cnp.ndarray forward(self, cnp.ndarray out)
    cdef cnp.ndarray grouped(self, cnp.ndarray a, Py_ssize_t groups)
    cdef int fill_masked_job(self, Job *a, bint of_batch, bint backward) except -1
    cdef int run_masked(self, bint backward) except -1
    cdef object masked_counts(self)
    cdef int moments(self) except -1
    cdef void empty_statistics(self) noexcept
    cdef cnp.ndarray backward(self, cnp.ndarray grad_output, cnp.ndarray out, cnp.ndarray sums=*,
                              int sums_mode=*, double count=*)

    @cython.final
    cdef inline Py_ssize_t units(self) noexcept:
        """How many units, each with statistics of its own, the input has."""
        return self.samples * self.groups if self.groups else self.channels

    @cython.final
    cdef inline Py_ssize_t unit_size(self) noexcept:
        """Elements of a unit."""
        return self.elements // self.units() if self.units() else 0

    @cython.final
    cdef inline int reserve(self, double **statistic) except -1:
        """Workspace for a statistic, where it has none."""
        if statistic[0] == NULL:
            statistic[0] = self.workspace(self.units())
        return 0


cdef void sum_over_samples(double *grads, Py_ssize_t rows, Py_ssize_t channels) noexcept
cdef tuple parameter_grads(ChannelsCall call, object grad_input, cnp.ndarray weight, cnp.ndarray bias)
