# Units: what the rows and segments families share. A unit is normalized as one; it is K segments of R runs of
# contiguous elements.
from cnorm.kernels.job cimport NORM_MAX, Job, Moments, Tensor, has_signs
from cnorm.kernels.loops cimport Coefficients
from cnorm.kernels.moments cimport UnitBlocks
from cnorm.kernels.statistics cimport dev_coeff_from_sum, grad_offset_from_sum, mean_hi_part


cdef inline Py_ssize_t units_of(const Job *job) noexcept nogil:
    return job.shape[0] * job.shape[1]


cdef inline char *unit_at(const Job *job, const Tensor *tensor, Py_ssize_t unit) noexcept nogil:
    cdef Py_ssize_t outer = unit // job.shape[1] if job.shape[0] > 1 else 0
    return tensor.data + outer * tensor.strides[0] + (unit - outer * job.shape[1]) * tensor.strides[1]


cdef inline bint has_element_params(const Job *job) noexcept nogil:
    """Whether there is a weight per element of a row. A row without one is a segment without a weight."""
    return job.elements.weight != NULL


cdef inline Py_ssize_t param_set_of(const Job *job, Py_ssize_t unit) noexcept nogil:
    """The set of weights and biases that a unit takes."""
    if job.elements.param_sets <= 1:
        return 0
    return unit // job.elements.units_per_set % job.elements.param_sets


cdef inline const void *param_set_at(const void *values, Py_ssize_t param_set, Py_ssize_t bytes) noexcept nogil:
    """A set, of so many bytes; NULL where there are no values."""
    return <const char *> values + param_set * bytes if values != NULL else NULL


cdef inline void save_statistics(Job *job, Py_ssize_t unit, Moments m, double rstd) noexcept nogil:
    if job.mean != NULL:
        job.mean[unit] = m.mean
    if job.lo != NULL:
        job.lo[unit] = m.lo
    if job.m2 != NULL:
        job.m2[unit] = m.m2
    if job.rstd != NULL:
        job.rstd[unit] = rstd


cdef inline void set_unit_coefficients(const Job *job, const UnitBlocks *blocks, Py_ssize_t unit, double mean,
                                       double lo, double rstd, Coefficients *coeffs) noexcept nogil:
    """What is applied to a unit, forward, before its channel's parameters (set_channel) or with those per element."""
    cdef Py_ssize_t param_set = param_set_of(job, unit), bytes = blocks.elements * blocks.loops.acc_size
    coeffs.mean_hi = mean_hi_part(mean, blocks.loops.rounded(mean), rstd, job.finish.eps)
    coeffs.mean_lo = (mean - coeffs.mean_hi) + lo
    coeffs.rstd = rstd
    coeffs.scale = rstd
    coeffs.bias = 0
    coeffs.signs = has_signs(job.finish.norm)
    coeffs.dev_coeff = 0
    coeffs.grad_offset = 0
    coeffs.nontemporal = blocks.schedule.nontemporal
    coeffs.apart = blocks.schedule.apart
    coeffs.prefetch_bytes = blocks.schedule.prefetch_bytes
    coeffs.prefetch_segments = blocks.schedule.prefetch_segments
    coeffs.slope = job.elements.unit_slopes[unit] if job.elements.unit_slopes != NULL else job.slope
    coeffs.low = job.low
    coeffs.high = job.high
    coeffs.weights = param_set_at(job.elements.weight, param_set, bytes)
    coeffs.biases = param_set_at(job.elements.bias, param_set, bytes)
    coeffs.slopes = job.elements.slopes


cdef inline void set_given_coefficients(const Job *job, const UnitBlocks *blocks, Py_ssize_t unit,
                                        Coefficients *coeffs) noexcept nogil:
    """The coefficients of a unit whose statistics the job holds."""
    set_unit_coefficients(job, blocks, unit, job.mean[unit] if job.mean != NULL else 0,
                          job.lo[unit] if job.lo != NULL else 0, job.rstd[unit], coeffs)
    if job.finish.norm == NORM_MAX:  # the mean that backward is given is the norm
        coeffs.mean_hi = job.mean[unit]
        coeffs.mean_lo = 0


cdef inline void set_backward_coefficients(const Job *job, Coefficients *coeffs, double count, double sum_g,
                                           double sum_gdev) noexcept nogil:
    """The coefficients of the gradient of the input, from a unit's two weighted sums."""
    if job.stats_given:  # evaluation: the statistics do not depend on x
        coeffs.dev_coeff = 0
        coeffs.grad_offset = 0
        return
    coeffs.dev_coeff = dev_coeff_from_sum(coeffs.rstd, sum_gdev, count)
    coeffs.grad_offset = grad_offset_from_sum(coeffs.rstd, sum_g, count, coeffs.mean_lo, coeffs.dev_coeff,
                                              job.centred)
