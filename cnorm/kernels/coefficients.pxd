# Coefficients of channels that lie side by side, each an array of doubles over the channels. The loops take the
# arrays of a batch of units or segments as they are; columns round theirs to the accumulation type. The formulas are
# in statistics.h.
from libc.string cimport memcpy

from cnorm.kernels.job cimport ACT_NONE, ACT_SLOPES, has_slopes
from cnorm.kernels.loops cimport CoefficientArrays, LoopTable
from cnorm.kernels.statistics cimport dev_coeff_from_sum, grad_offset_from_sum, mean_hi_part


cdef enum Pass:         # what a pass over the data computes
    PASS_SUMS           # the sums of backward
    PASS_FORWARD
    PASS_BACKWARD       # the gradient of the input

cdef enum:
    N_GRAD_SUMS = 4     # sums that backward takes of a unit: of g, of g * d, of d (float64 only), of the slope's
                        # gradient; d = x - mean_hi

cdef struct ChannelValues:
    # Parameters of channels side by side; weight and bias may be NULL.
    const double *weight
    const double *bias
    const double *slopes
    double slope
    double low              # bounds, with ACT_CLIP
    double high
    int activation


cdef inline ChannelValues channel_values_from(Py_ssize_t channel, const double *weight, const double *bias,
                                              const double *slopes, double slope, double low, double high,
                                              int activation) noexcept nogil:
    """The parameters of a channel and of the channels that follow it."""
    cdef ChannelValues values
    values.weight = weight + channel if weight != NULL else NULL
    values.bias = bias + channel if bias != NULL else NULL
    values.slopes = slopes + channel if slopes != NULL else NULL
    values.slope = slope
    values.low = low
    values.high = high
    values.activation = activation
    return values


cdef inline double value_at(const LoopTable *loops, const char *vector, Py_ssize_t i) noexcept nogil:
    """Element i of a vector of the accumulation type."""
    return (<const double *> vector)[i] if loops.acc_size == 8 else <double> (<const float *> vector)[i]


cdef inline void set_value(const LoopTable *loops, char *vector, Py_ssize_t i, double value) noexcept nogil:
    if loops.acc_size == 8:
        (<double *> vector)[i] = value
    else:
        (<float *> vector)[i] = <float> value


cdef inline void fill(double value, Py_ssize_t n, double *out) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = value


cdef inline bint split_means(const LoopTable *loops, double eps, Py_ssize_t n, const double *mean, const double *lo,
                             const double *rstd, double *mean_hi, double *mean_lo) noexcept nogil:
    """Split mean + lo into mean_hi and mean_lo; whether some mean_hi is not 0. lo may be NULL."""
    cdef Py_ssize_t i, shifted = 0  # as wide as a double, so that the loop vectorizes
    if loops.acc_size == 8:
        for i in range(n):
            mean_hi[i] = mean_hi_part(mean[i], mean[i], rstd[i], eps)
    else:
        for i in range(n):
            mean_hi[i] = mean_hi_part(mean[i], <double> <float> mean[i], rstd[i], eps)
    for i in range(n):
        mean_lo[i] = mean[i] - mean_hi[i]
        shifted |= <Py_ssize_t> (mean_hi[i] != 0)
    if lo != NULL:
        for i in range(n):
            mean_lo[i] += lo[i]
    return shifted != 0


cdef inline void coefficients(Pass what, Py_ssize_t n, const double *mean_lo, const double *rstd,
                              const ChannelValues *values, const double *sum_g, const double *sum_gdev, double count,
                              bint centred, CoefficientArrays *coeffs) noexcept nogil:
    """Fill all arrays but mean_hi and rstd; those that the pass does not use stay as they are.

    For PASS_BACKWARD: sum_g and sum_gdev are the sums of g and of g * dev over `count` elements; sum_g is NULL with
    given statistics.
    """
    cdef Py_ssize_t i
    cdef double *scale = coeffs.scale
    cdef double *bias = coeffs.bias
    cdef double *dev_coeff = coeffs.dev_coeff
    cdef double *grad_offset = coeffs.grad_offset
    coeffs.low = values.low
    coeffs.high = values.high
    if values.weight != NULL:
        for i in range(n):
            scale[i] = rstd[i] * values.weight[i]
    else:
        for i in range(n):
            scale[i] = rstd[i]
    if what == PASS_FORWARD or values.activation != ACT_NONE:
        if values.bias != NULL:
            for i in range(n):
                bias[i] = values.bias[i] - mean_lo[i] * scale[i]
        else:
            for i in range(n):
                bias[i] = 0 - mean_lo[i] * scale[i]
    if values.activation == ACT_SLOPES:
        memcpy(coeffs.slope, values.slopes, n * sizeof(double))
    elif has_slopes(values.activation):
        fill(values.slope, n, coeffs.slope)
    if what != PASS_BACKWARD:
        return
    if sum_g == NULL:
        fill(0, n, dev_coeff)
        fill(0, n, grad_offset)
        return
    for i in range(n):
        dev_coeff[i] = dev_coeff_from_sum(rstd[i], sum_gdev[i], count)
    for i in range(n):
        grad_offset[i] = grad_offset_from_sum(rstd[i], sum_g[i], count, mean_lo[i], dev_coeff[i], centred)
