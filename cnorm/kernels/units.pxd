# Units: what the rows and segments families share. A unit is normalised as one; it is K segments of
# R runs of contiguous elements.
#
# a) moments -> statistics -> apply, for one unit at a time where there are units enough for the
#    threads: the second visit finds the unit in cache. Else part by part, in two sweeps.
# b) Both ways visit the same parts in the same tree, so they compute the same bits.
# c) rows.pxi and segments.pxi say how one piece of a unit is applied: with a weight per element, or
#    with a scalar per segment.


from cnorm.kernels.jobs cimport Moments, Norm, View
from cnorm.kernels.loops cimport Affine, first_part
from cnorm.kernels.moments cimport Tiling
from cnorm.kernels.tuning cimport (
    APART_AHEAD, APART_LEAST, APART_MOST, NEAR_BYTES, STREAM_AGAIN, STREAM_GRAD, STREAM_ONCE)


cdef inline Py_ssize_t units_of(const Norm *a) noexcept nogil:
    return a.shape[0] * a.shape[1]


cdef inline char *unit_at(const Norm *a, const View *v, Py_ssize_t unit) noexcept nogil:
    cdef Py_ssize_t outer = unit // a.shape[1] if a.shape[0] > 1 else 0
    return v.data + outer * v.stride[0] + (unit - outer * a.shape[1]) * v.stride[1]


cdef inline Py_ssize_t chunk_of(Py_ssize_t items, int threads) noexcept nogil:
    """The fewest items a thread takes at a time: few enough to balance, enough to pay for the taking.

    Loops are `guided`: a thread takes its share of what is left, which is mostly the same items as in the loop
    before and in the call before, and these are in its own cache."""
    return max(1, items // (8 * threads))


cdef inline bint by_parts(Py_ssize_t units, Py_ssize_t parts, int threads) noexcept nogil:
    """Whether whole units would leave threads idle."""
    return threads > 1 and parts > 1 and units < 4 * threads and units % threads != 0


cdef inline bint streamed(const View *y, const View *x, const View *dy, Py_ssize_t bytes,
                          Py_ssize_t least) noexcept nogil:
    """Whether to store past the cache: not in place, where the line is in cache anyhow."""
    cdef Py_ssize_t total = bytes * (2 if dy.data == NULL else 3)
    return total >= least and y.data != x.data and y.data != dy.data


cdef inline void set_memory(Norm *a, Tiling *t) noexcept nogil:
    """What is stored past the cache, and what is asked for before it is read or written."""
    cdef Py_ssize_t segment = t.elements * t.loops.size, bytes = units_of(a) * t.segments * segment
    cdef bint backward = a.dy.data != NULL, in_order = a.given and not backward
    cdef bint apart = t.segments > 1 and a.x.stride[2] != segment and not in_order
    a.stream = streamed(&a.y, &a.x, &a.dy, bytes,
                        STREAM_AGAIN if apart else STREAM_GRAD if backward and a.by_element else STREAM_ONCE)
    a.ahead = a.x.stride[1] if apart else 0
    if apart and t.runs == 1 and bytes * (3 if backward else 2) >= NEAR_BYTES:
        if APART_LEAST <= segment <= APART_MOST:
            t.reach = max(1, APART_AHEAD // segment)


cdef inline void split_mean(const Norm *a, const Tiling *t, double mean, double lo, double rstd,
                            Affine *f) noexcept nogil:
    """The mean as the accumulator's hi and the rest."""
    f.hi = first_part(mean, t.loops.rounded(mean), rstd, a.eps)
    f.lo = (mean - f.hi) + lo


cdef inline Affine unit_affine(const Norm *a, const Tiling *t, Py_ssize_t unit, double mean,
                               double lo, double rstd) noexcept nogil:
    cdef Affine f
    split_mean(a, t, mean, lo, rstd, &f)
    f.rstd = rstd
    f.scale = rstd
    f.bias = 0
    f.p = 0
    f.q = 0
    f.r = 0
    f.stream = a.stream
    f.ahead = a.ahead
    f.reach = t.reach
    f.slope = a.unit_slopes[unit] if a.unit_slopes != NULL else a.slope
    f.weight = a.row_weight
    f.shift = a.row_bias
    f.slopes = a.row_slopes
    return f


cdef inline void keep_statistics(Norm *a, Py_ssize_t unit, Moments m, double rstd) noexcept nogil:
    if a.mean != NULL:
        a.mean[unit] = m.mean
    if a.lo != NULL:
        a.lo[unit] = m.lo
    if a.m2 != NULL:
        a.m2[unit] = m.m2
    if a.rstd != NULL:
        a.rstd[unit] = rstd


cdef inline Affine given_affine(const Norm *a, const Tiling *t, Py_ssize_t unit) noexcept nogil:
    return unit_affine(a, t, unit, a.mean[unit] if a.mean != NULL else 0,
                       a.lo[unit] if a.lo != NULL else 0, a.rstd[unit])
