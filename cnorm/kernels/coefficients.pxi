# Coefficients: what is applied to channels side by side, each an array over them, of the accumulator's type. For
# columns, and for the units and segments that loops take in bands.

cdef enum:
    COEFFICIENTS = 7   # hi, scale, bias, slope, q, r, rstd
    STRIP = 256        # channels that are prepared at a time

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


cdef inline ColumnAffine affine_in(char *room, Py_ssize_t bytes) noexcept nogil:
    """Coefficients that are to be filled: COEFFICIENTS arrays of so many bytes."""
    cdef ColumnAffine f
    f.stream = False
    f.shifted = False
    f.hi = room
    f.scale = room + bytes
    f.p = f.scale
    f.bias = room + 2 * bytes
    f.slope = room + 3 * bytes
    f.q = room + 4 * bytes
    f.r = room + 5 * bytes
    f.rstd = room + 6 * bytes
    return f


cdef inline ColumnAffine affine_at(const ColumnAffine *f, Py_ssize_t bytes) noexcept nogil:
    """The same from a channel on, `bytes` into each array."""
    cdef ColumnAffine g
    g.stream = f.stream
    g.shifted = f.shifted
    g.hi = <const char *> f.hi + bytes
    g.scale = <const char *> f.scale + bytes
    g.p = <const char *> f.p + bytes
    g.bias = <const char *> f.bias + bytes
    g.slope = <const char *> f.slope + bytes
    g.q = <const char *> f.q + bytes
    g.r = <const char *> f.r + bytes
    g.rstd = <const char *> f.rstd + bytes
    return g


cdef inline void spread(const Tile *loops, double value, Py_ssize_t n, const void *out) noexcept nogil:
    """The same number for n <= STRIP channels."""
    cdef double values[STRIP]
    cdef Py_ssize_t j
    for j in range(n):
        values[j] = value
    loops.narrow(values, n, <void *> out)


cdef void coefficients(const Tile *loops, Visit visit, Py_ssize_t n, Py_ssize_t bytes, const double *lo,
                       const double *rstd, const Parameters *of, const double *sum_g, const double *sum_gd,
                       double count, ColumnAffine *f) noexcept nogil:
    """All but hi, of n <= STRIP channels, `bytes` into the arrays; what the visit does not use stays as it is.

    sums: of g and g * (x - hi), over `count` elements, for BACKWARD; NULL with given statistics.
    """
    cdef double scale[STRIP]
    cdef double value[STRIP]
    cdef double part[STRIP]
    cdef Py_ssize_t j
    if of.weight != NULL:
        for j in range(n):
            scale[j] = rstd[j] * of.weight[j]
    else:
        memcpy(scale, rstd, n * sizeof(double))
    loops.narrow(scale, n, <char *> f.scale + bytes)
    if visit == FORWARD or of.activation:
        if of.bias != NULL:
            for j in range(n):
                value[j] = of.bias[j] - lo[j] * scale[j]
        else:
            for j in range(n):
                value[j] = 0 - lo[j] * scale[j]
        loops.narrow(value, n, <char *> f.bias + bytes)
    if of.activation == 2:
        loops.narrow(of.slopes, n, <char *> f.slope + bytes)
    elif of.activation:
        spread(loops, of.slope, n, <char *> f.slope + bytes)
    if visit != BACKWARD:
        return
    loops.narrow(rstd, n, <char *> f.rstd + bytes)
    if sum_g == NULL:
        memset(<char *> f.q + bytes, 0, n * loops.wide)
        memset(<char *> f.r + bytes, 0, n * loops.wide)
        return
    for j in range(n):
        value[j] = rstd[j] * rstd[j] * sum_gd[j] / count
    loops.narrow(value, n, <char *> f.q + bytes)
    for j in range(n):
        part[j] = rstd[j] * sum_g[j] / count - lo[j] * rstd[j] * value[j]
    loops.narrow(part, n, <char *> f.r + bytes)
