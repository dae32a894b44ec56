# Coefficients: what is applied to channels side by side, each an array of doubles over them. The loops take those
# of a band of units or segments as they are; columns round theirs to the accumulator's type.


from libc.string cimport memcpy
from cnorm.kernels.loops cimport BandAffine, first_part, Tile


cdef enum Visit:
    SUMS
    FORWARD
    BACKWARD


cdef struct Parameters:
    # Of channels side by side; weight and bias may be NULL.
    const double *weight
    const double *bias
    const double *slopes
    double slope
    int activation


cdef inline Parameters parameters_from(Py_ssize_t channel, const double *weight, const double *bias,
                                       const double *slopes, double slope, int activation) noexcept nogil:
    """Those of a channel and the ones that follow it."""
    cdef Parameters of
    of.weight = weight + channel if weight != NULL else NULL
    of.bias = bias + channel if bias != NULL else NULL
    of.slopes = slopes + channel if slopes != NULL else NULL
    of.slope = slope
    of.activation = activation
    return of


cdef inline bint split_means(const Tile *loops, double eps, Py_ssize_t n, const double *mean, const double *lo,
                             const double *rstd, double *hi, double *rest) noexcept nogil:
    """Means as the elements lose them (first_part), and the rest, with what was low already; whether hi is
    not 0 for some. lo may be NULL."""
    cdef Py_ssize_t i, shifted = 0  # as wide as a double: the loop takes lanes of them
    if loops.wide == 8:
        for i in range(n):
            hi[i] = first_part(mean[i], mean[i], rstd[i], eps)
    else:
        for i in range(n):
            hi[i] = first_part(mean[i], <double> <float> mean[i], rstd[i], eps)
    for i in range(n):
        rest[i] = mean[i] - hi[i]
        shifted |= <Py_ssize_t> (hi[i] != 0)
    if lo != NULL:
        for i in range(n):
            rest[i] += lo[i]
    return shifted != 0


cdef inline double shift_at(const Tile *loops, const char *shift, Py_ssize_t column) noexcept nogil:
    return (<const double *> shift)[column] if loops.wide == 8 else <double> (<const float *> shift)[column]


cdef inline void set_value(const Tile *loops, char *vector, Py_ssize_t column, double value) noexcept nogil:
    if loops.wide == 8:
        (<double *> vector)[column] = value
    else:
        (<float *> vector)[column] = <float> value


cdef inline void spread(double value, Py_ssize_t n, double *out) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = value


cdef inline void coefficients(Visit visit, Py_ssize_t n, const double *lo, const double *rstd,
                              const Parameters *of, const double *sum_g, const double *sum_gd, double count,
                              BandAffine *f) noexcept nogil:
    """All but hi and rstd; what the visit does not use stays as it is.

    sums: of g and g * (x - hi), over `count` elements, for BACKWARD; NULL with given statistics.
    """
    cdef Py_ssize_t i
    cdef double *scale = f.scale
    cdef double *bias = f.bias
    cdef double *q = f.q
    cdef double *r = f.r
    if of.weight != NULL:
        for i in range(n):
            scale[i] = rstd[i] * of.weight[i]
    else:
        for i in range(n):
            scale[i] = rstd[i]
    if visit == FORWARD or of.activation:
        if of.bias != NULL:
            for i in range(n):
                bias[i] = of.bias[i] - lo[i] * scale[i]
        else:
            for i in range(n):
                bias[i] = 0 - lo[i] * scale[i]
    if of.activation == 2:
        memcpy(f.slope, of.slopes, n * sizeof(double))
    elif of.activation:
        spread(of.slope, n, f.slope)
    if visit != BACKWARD:
        return
    if sum_g == NULL:
        spread(0, n, q)
        spread(0, n, r)
        return
    for i in range(n):
        q[i] = rstd[i] * rstd[i] * sum_gd[i] / count
    for i in range(n):
        r[i] = rstd[i] * sum_g[i] / count - lo[i] * rstd[i] * q[i]
