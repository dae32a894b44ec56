# Segments: a scalar weight per segment. BatchNorm, GroupNorm, InstanceNorm, channels first.
#
# BatchNorm: a unit is a channel, a segment a sample of it (one weight per unit).
# GroupNorm: a unit is a group of one sample, a segment a channel of it (a weight per segment).


from cnorm.kernels.coefficients cimport FORWARD, coefficients, Parameters, parameters_from, spread
from cnorm.kernels.jobs cimport Norm
from cnorm.kernels.loops cimport BAND, Affine, BandAffine
from cnorm.kernels.moments cimport element_at, Piece, Tiling
from cnorm.kernels.tuning cimport (
    APART_LEAST, BAND_BYTES, BAND_FAR, BAND_FEW, BAND_GIVEN, BAND_LEAST, BAND_NEAR, BAND_SEGMENT,
    NEAR_BYTES, SLOT)
from cnorm.kernels.units cimport units_of


cdef inline Py_ssize_t channel_of(const Norm *a, Py_ssize_t inner, Py_ssize_t segment) noexcept nogil:
    return inner * a.shape[2] + segment if a.by_segment else inner


cdef inline void set_channel(const Norm *a, Affine *f, Py_ssize_t channel) noexcept nogil:
    """scale, bias, slope and p of one channel; lo goes into the bias."""
    f.scale = f.rstd * a.weight[channel] if a.weight != NULL else f.rstd
    f.p = f.scale
    f.bias = (a.bias[channel] if a.bias != NULL else 0) - f.lo * f.scale
    if a.activation == 2:
        f.slope = a.slopes[channel]


cdef struct Band:
    BandAffine affine       # in what follows
    double hi[BAND]
    double scale[BAND]
    double bias[BAND]
    double slope[BAND]
    double q[BAND]
    double r[BAND]
    double lo[BAND]
    double rstd[BAND]
    double sums[SLOT * BAND]


cdef inline void open_band(Band *b) noexcept nogil:
    b.affine.hi = b.hi
    b.affine.scale = b.scale
    b.affine.bias = b.bias
    b.affine.slope = b.slope
    b.affine.q = b.q
    b.affine.r = b.r
    b.affine.rstd = b.rstd


cdef inline Parameters parameters_of(const Norm *a, Py_ssize_t channel) noexcept nogil:
    return parameters_from(channel, a.weight, a.bias, a.slopes, a.slope, a.activation)


cdef inline bint short_segments(const Norm *a, const Tiling *t) noexcept nogil:
    """a)"""
    return a.by_segment and t.segments > 1 and t.runs == 1 and t.elements * t.loops.size <= BAND_SEGMENT


cdef inline void segment_band(const Norm *a, const Affine *f, Py_ssize_t channel, Py_ssize_t n, bint backward,
                              Band *b) noexcept nogil:
    """Segments of one unit: one mean and deviation, and parameters for each."""
    cdef Parameters of = parameters_of(a, channel)
    open_band(b)
    b.affine.shifted = f.hi != 0
    spread(f.hi, n, b.hi)
    spread(f.lo, n, b.lo)
    spread(f.rstd, n, b.rstd)
    coefficients(FORWARD, n, b.lo, b.rstd, &of, NULL, NULL, 0, &b.affine)
    if backward:
        spread(f.q, n, b.q)
        spread(f.r, n, b.r)


cdef inline void band_apply(const Norm *a, const Tiling *t, const Affine *shared, Py_ssize_t inner, const char *x,
                            char *y, Py_ssize_t first, Py_ssize_t stop) noexcept nogil:
    """Whole segments."""
    cdef Band b
    cdef Py_ssize_t count
    while first < stop:
        count = min(<Py_ssize_t> BAND, stop - first)
        segment_band(a, shared, channel_of(a, inner, first), count, False, &b)
        t.loops.apply_band(x + first * a.x.stride[2], y + first * a.y.stride[2], 1, 0, 0, count, a.x.stride[2],
                           a.y.stride[2], t.elements, &b.affine, a.activation)
        first += count


cdef inline void segment_apply(const Norm *a, const Tiling *t, const Affine *shared, Py_ssize_t unit,
                               const char *x, char *y, const Piece *p) noexcept nogil:
    cdef Affine f
    cdef Py_ssize_t segment, element, step, size = t.loops.size, inner = unit % a.shape[1]
    if short_segments(a, t):
        band_apply(a, t, shared, inner, x, y, p.segment, p.segment + p.count)
        return
    f = shared[0]
    if not a.by_segment:
        set_channel(a, &f, inner)
        if t.runs == 1:
            t.loops.apply(x + p.segment * a.x.stride[2] + p.begin * size,
                          y + p.segment * a.y.stride[2] + p.begin * size,
                          p.count, a.x.stride[2], a.y.stride[2], p.end - p.begin, &f, a.activation)
            return
    for segment in range(p.segment, p.segment + p.count):
        if a.by_segment:
            set_channel(a, &f, channel_of(a, inner, segment))
        element = p.begin
        while element < p.end:
            step = min(t.length - element % t.length, p.end - element)
            t.loops.apply(element_at(t, &a.x, x, segment, element),
                          <char *> element_at(t, &a.y, y, segment, element),
                          1, 0, 0, step, &f, a.activation)
            element += step


cdef inline Py_ssize_t band_of(const Norm *a, const Tiling *t, bint backward) noexcept nogil:
    """b), c), d): units in a band, at most; 1 or less: no bands."""
    cdef Py_ssize_t segment = t.elements * t.loops.size, unit = segment * t.segments, units = units_of(a), band
    cdef int read = 2 if backward else 1
    if a.by_element or t.runs > 1 or a.x.stride[1] != segment or (a.by_segment and t.segments > 1):
        return 1
    if a.given and not backward:
        return 1 if a.stream or segment > BAND_GIVEN or a.shape[0] > 1 else BAND
    if t.segments == 1:
        band = (BAND_NEAR if (read + 1) * units * unit < NEAR_BYTES else BAND_FAR) // (read * unit)
        return min(<Py_ssize_t> BAND, band) if backward and not a.stream and band >= BAND_FEW else 1
    if a.shape[0] > 1 or segment >= APART_LEAST or (read + 1) * units * unit < BAND_LEAST:
        return 1
    return min(<Py_ssize_t> BAND, min(BAND_BYTES // (read * unit), units // (2 * a.threads)))
