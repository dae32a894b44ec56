# Units: what the rows and segments families share. A unit is normalised as one; it is K segments of
# R runs of contiguous elements.
#
# a) moments -> statistics -> apply, for one unit at a time where there are units enough for the
#    threads: the second visit finds the unit in cache. Else part by part, in two sweeps.
# b) Both ways visit the same parts in the same tree, so they compute the same bits.
# c) rows.pxi and segments.pxi say how one piece of a unit is applied: with a weight per element, or
#    with a scalar per segment.

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


cdef enum:
    # Bytes that a call reads and writes from which on it stores its result past the cache, which
    # is slower but leaves the cache to the input.
    STREAM_ONCE = 64 << 20    # the input is read once, or twice within a stretch that stays in cache
    STREAM_GRAD = 40 << 20    # rows backward, which are written a few at a time
    STREAM_AGAIN = 32 << 20   # it is read twice from end to end, or its units' segments lie apart


cdef inline bint streamed(const View *y, const View *x, const View *dy, Py_ssize_t bytes,
                          Py_ssize_t least) noexcept nogil:
    """Whether to store past the cache: not in place, where the line is in cache anyhow."""
    cdef Py_ssize_t total = bytes * (2 if dy.data == NULL else 3)
    return total >= least and y.data != x.data and y.data != dy.data


cdef enum:
    NEAR_BYTES = 20 << 20      # that a call reads and writes, and still finds in cache
    # Segments that lie apart, and whose bytes are between these: no prefetcher of the processor goes from one to
    # the next, and that is most of the way. The one that lies this many bytes on is prefetched.
    APART_LEAST = 1 << 9
    APART_MOST = 1 << 15
    APART_AHEAD = 1 << 12


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


cdef inline double rstd_of(double m2, double count, double eps) noexcept nogil:
    return 1 / sqrt(m2 / count + eps)


cdef enum:
    LAID_ROWS = 16             # rows, and their elements, from which on a copy of their parameters pays
    LAID_ELEMENTS = 1 << 13
    LAID_BY_ONE = 1 << 20      # the same where other threads wait for what one of them copied


cdef inline bint lies(const void *values, Py_ssize_t phase) noexcept nogil:
    """Whether they begin `phase` bytes into a line, so that lanes of theirs cross none."""
    return values == NULL or (<Py_ssize_t> values - phase) % LANES_ALIGN == 0


cdef inline const void *laid(const void *values, Py_ssize_t bytes, Py_ssize_t phase, char *room) noexcept nogil:
    """A copy of them that does, where they do not."""
    if lies(values, phase):
        return values
    room += (phase - <Py_ssize_t> room) & (LANES_ALIGN - 1)
    memcpy(room, values, bytes)
    return room


cdef void *lay_parameters(Norm *a, const Tiling *t) noexcept nogil:
    """Weight and bias of many rows to where whole lanes of them lie: as the rows' do after the few elements that
    are stored first, up to a line of y. To be freed; NULL: they are used as they lie."""
    cdef Py_ssize_t bytes = t.elements * t.loops.wide, phase = 0
    cdef Py_ssize_t least = LAID_ELEMENTS if a.threads == 1 else LAID_BY_ONE
    cdef char *room
    if a.row_weight == NULL or units_of(a) < LAID_ROWS or units_of(a) * t.elements < least:
        return NULL
    if bytes >= LED_LANES * LANES_ALIGN and a.y.stride[1] % LANES_ALIGN == 0:
        phase = (-(t.loops.wide // t.loops.size) * (-<Py_ssize_t> a.y.data & (LANES_ALIGN - 1))) & (LANES_ALIGN - 1)
    if lies(a.row_weight, phase) and lies(a.row_bias, phase):
        return NULL
    room = <char *> malloc(2 * (bytes + LANES_ALIGN))
    if room != NULL:
        a.row_weight = laid(a.row_weight, bytes, phase, room)
        a.row_bias = laid(a.row_bias, bytes, phase, room + bytes + LANES_ALIGN)
    return room


include "segments.pxi"
include "rows.pxi"


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


cdef void keep_statistics(Norm *a, Py_ssize_t unit, Moments m, double rstd) noexcept nogil:
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


cdef inline void apply_part(const Norm *a, const Tiling *t, const Affine *f, Py_ssize_t unit,
                            Py_ssize_t part) noexcept nogil:
    cdef const char *x = unit_at(a, &a.x, unit)
    cdef char *y = unit_at(a, &a.y, unit)
    cdef Py_ssize_t tile = part * PART, stop = min(tile + PART, t.tiles)
    cdef Piece p
    while tile < stop:
        p = tile_stretch(t, tile, stop)
        if a.by_element:
            row_apply(a, t, f, x, y, &p)
        else:
            segment_apply(a, t, f, unit % a.shape[1], x, y, &p)
        tile = next_tile(t, tile, stop)


cdef inline Py_ssize_t next_tile(const Tiling *t, Py_ssize_t tile, Py_ssize_t stop) noexcept nogil:
    if t.chunks == 1:
        return stop
    return min(stop, (tile // t.chunks + 1) * t.chunks)


cdef inline Piece tile_stretch(const Tiling *t, Py_ssize_t tile, Py_ssize_t stop) noexcept nogil:
    """As many tiles from this one on as make one piece: whole segments, or a stretch of one."""
    cdef Piece p = tile_piece(t, tile), last = tile_piece(t, next_tile(t, tile, stop) - 1)
    p.count = last.segment + last.count - p.segment
    p.end = last.end
    return p


cdef void add_unit(const Norm *a, const Tiling *t, Py_ssize_t unit) noexcept nogil:
    """x = dy + plus, for one unit: what is normalised is in cache then."""
    cdef char *x = unit_at(a, &a.x, unit)
    cdef const char *one = unit_at(a, &a.dy, unit)
    cdef const char *other = unit_at(a, &a.plus, unit)
    cdef Py_ssize_t run
    for run in range(t.runs):
        t.loops.add(one + run * a.dy.stride[3], other + run * a.plus.stride[3], x + run * a.x.stride[3],
                    t.length)


cdef inline void forward_unit(Norm *a, const Tiling *t, Py_ssize_t unit) noexcept nogil:
    if a.add:
        add_unit(a, t, unit)
    normalise_unit(a, t, unit)


cdef inline void set_forward(Norm *a, const Tiling *t, Py_ssize_t unit, Affine *f) noexcept nogil:
    """What is applied to a unit, from its statistics, which are kept, or from those that are given."""
    cdef Moments m
    cdef double rstd
    if a.given:
        f[0] = given_affine(a, t, unit)
    else:
        m = unit_moments(t, &a.x, unit_at(a, &a.x, unit), a.centred, a.eps)
        rstd = rstd_of(m.m2, m.count, a.eps)
        keep_statistics(a, unit, m, rstd)
        f[0] = unit_affine(a, t, unit, m.mean, m.lo, rstd)


cdef void normalise_unit(Norm *a, const Tiling *t, Py_ssize_t unit) noexcept nogil:
    cdef Affine f
    cdef Py_ssize_t part
    set_forward(a, t, unit, &f)
    for part in range(t.parts):
        apply_part(a, t, &f, unit, part)
    if a.stream:
        stream_end()


cdef inline Moments slot_total(const Moments *slots, Py_ssize_t parts) noexcept nogil:
    cdef Tree tree
    cdef Py_ssize_t part
    tree.pushed = 0
    tree.top = 0
    for part in range(parts):
        tree_push(&tree, slots[part])
    return tree_total(&tree)


cdef inline void part_slot(const Norm *a, const Tiling *t, Moments *slots,
                           Py_ssize_t item) noexcept nogil:
    cdef Py_ssize_t unit = item // t.parts
    slots[item] = part_moments(t, &a.x, unit_at(a, &a.x, unit), item - unit * t.parts, a.centred, a.eps)


cdef int moments_by_parts(Norm *a, const Tiling *t) noexcept nogil:
    """Statistics of few, large units."""
    cdef Py_ssize_t units = units_of(a), items = units * t.parts, i
    cdef Moments *slots = <Moments *> malloc(items * sizeof(Moments))
    cdef Moments m
    if slots == NULL:
        return -1
    for i in prange(items, num_threads=a.threads, schedule="guided", chunksize=chunk_of(items, a.threads)):
        part_slot(a, t, slots, i)
    for i in range(units):
        m = slot_total(slots + i * t.parts, t.parts)
        keep_statistics(a, i, m, rstd_of(m.m2, m.count, a.eps))
    free(slots)
    return 0


cdef inline void apply_item(const Norm *a, const Tiling *t, Py_ssize_t item) noexcept nogil:
    cdef Py_ssize_t unit = item // t.parts
    cdef Affine f = given_affine(a, t, unit)
    apply_part(a, t, &f, unit, item - unit * t.parts)
    if a.stream:
        stream_end()


cdef int forward_by_parts(Norm *a, const Tiling *t) noexcept nogil:
    cdef Py_ssize_t units = units_of(a), items = units * t.parts, i
    cdef double *kept = NULL
    cdef Norm given = a[0]
    if not a.given:
        # the caller may not want every statistic: the sweep that applies does
        kept = <double *> malloc(3 * units * sizeof(double))
        if kept == NULL:
            return -1
        given.mean = kept
        given.lo = kept + units
        given.rstd = kept + 2 * units
        if moments_by_parts(&given, t) < 0:
            free(kept)
            return -1
        for i in range(units):
            if a.mean != NULL:
                a.mean[i] = given.mean[i]
            if a.lo != NULL:
                a.lo[i] = given.lo[i]
            if a.rstd != NULL:
                a.rstd[i] = given.rstd[i]
    for i in prange(items, num_threads=a.threads, schedule="guided", chunksize=chunk_of(items, a.threads)):
        apply_item(&given, t, i)
    free(kept)
    return 0


# ---- units of one segment that is one tile: many at once ----

cdef extern from *:
    """
    #if defined(__unix__)
    #include <unistd.h>
    #endif
    /* Bytes of the processor's first cache, or 0 where nobody says. */
    static ptrdiff_t first_cache(void) {
    #if defined(_SC_LEVEL1_DCACHE_SIZE)
        return sysconf(_SC_LEVEL1_DCACHE_SIZE);
    #else
        return 0;
    #endif
    }
    """
    Py_ssize_t first_cache()

cdef enum:
    # Of the rows that one visit takes, which stay in L1 with their results:
    TOGETHER_BYTES = 1 << 14
    TOGETHER_LONG = 16         # rows, at most; and of short ones more,
    TOGETHER_SHORT = 1 << 13   # up to so many bytes

# The same where they come from memory: as much again is prefetched while these are written. A page, or half of one
# where the first cache has but 32 KiB: Zen 4 takes up to thrice the time for pages, Zen 5 0.8 of it.
cdef Py_ssize_t TOGETHER_FAR = 1 << 12 if first_cache() > 1 << 15 else 1 << 11


cdef inline bint one_tile(const Norm *a, const Tiling *t) noexcept nogil:
    return a.shape[2] == 1 and t.runs == 1 and t.tiles == 1 and not a.given and a.unit_slopes == NULL


cdef inline Py_ssize_t together_of(const Norm *a, const Tiling *t) noexcept nogil:
    cdef Py_ssize_t row = t.elements * t.loops.size
    cdef bint far = 2 * units_of(a) * row >= NEAR_BYTES
    cdef Py_ssize_t rows = TOGETHER_FAR // row
    if not far:
        rows = max(TOGETHER_SHORT // row, min(<Py_ssize_t> TOGETHER_LONG, TOGETHER_BYTES // row))
    rows = min(<Py_ssize_t> ROWS_TOGETHER, rows)
    return max(1, rows if rows < ABREAST else rows // ABREAST * ABREAST)


cdef inline void keep_rows(Norm *a, Py_ssize_t unit, const RowJob *job) noexcept nogil:
    cdef size_t bytes = job.rows * sizeof(double)
    if a.mean != NULL:
        memcpy(a.mean + unit, job.mean, bytes)
    if a.lo != NULL:
        memcpy(a.lo + unit, job.lo, bytes)
    if a.m2 != NULL:
        memcpy(a.m2 + unit, job.m2, bytes)
    if a.rstd != NULL:
        memcpy(a.rstd + unit, job.rstd, bytes)


cdef void forward_together(Norm *a, const Tiling *t, Py_ssize_t outer, Py_ssize_t inner,
                           Py_ssize_t stop, Py_ssize_t together) noexcept nogil:
    """Units inner .. stop of one outer index."""
    cdef RowJob job
    cdef Py_ssize_t unit = outer * a.shape[1] + inner, i
    job.x_stride = a.x.stride[1]
    job.y_stride = a.y.stride[1]
    job.n = t.elements
    job.eps = a.eps
    job.tiny = TINY if a.eps < TINY else 0
    job.centred = a.centred
    job.vector = a.by_element
    job.activation = a.activation
    job.affine.slope = a.slope
    job.affine.bias = 0
    job.affine.stream = a.stream
    job.affine.ahead = together * a.x.stride[1]
    job.affine.weight = a.row_weight
    job.affine.shift = a.row_bias
    job.affine.slopes = a.row_slopes
    while inner < stop:
        job.rows = min(together, stop - inner)
        job.x = a.x.data + outer * a.x.stride[0] + inner * a.x.stride[1]
        job.y = a.y.data + outer * a.y.stride[0] + inner * a.y.stride[1]
        job.weight = a.weight + inner if a.weight != NULL else NULL
        job.bias = a.bias + inner if a.bias != NULL else NULL
        job.slopes = a.slopes + inner if a.activation == 2 and a.slopes != NULL else NULL
        if a.add:
            for i in range(job.rows):
                add_unit(a, t, unit + i)
        t.loops.forward_rows(&job)
        keep_rows(a, unit, &job)
        if job.any_again:
            for i in range(job.rows):
                if job.again[i]:
                    normalise_unit(a, t, unit + i)
        inner += job.rows
        unit += job.rows
    if a.stream:
        stream_end()


cdef inline void together_item(Norm *a, const Tiling *t, Py_ssize_t item, Py_ssize_t items,
                               Py_ssize_t step, Py_ssize_t together) noexcept nogil:
    cdef Py_ssize_t outer = item // items, first = (item - outer * items) * step
    forward_together(a, t, outer, first, min(first + step, a.shape[1]), together)


cdef int units_forward_together(Norm *a, const Tiling *t) noexcept nogil:
    cdef Py_ssize_t together = together_of(a, t), step, items, i
    if a.threads == 1:
        for i in range(a.shape[0]):
            forward_together(a, t, i, 0, a.shape[1], together)
        return 0
    step = (chunk_of(units_of(a), a.threads) + together - 1) // together * together
    items = (a.shape[1] + step - 1) // step
    for i in prange(a.shape[0] * items, num_threads=a.threads, schedule="guided"):
        together_item(a, t, i, items, step, together)
    return 0


# ---- statistics that are given: nothing to wait for, so in the order of memory ----

cdef void given_segment(const Norm *a, const Tiling *t, Py_ssize_t item) noexcept nogil:
    """One segment of one unit; items run over units first, as batch norm's channels lie."""
    cdef Py_ssize_t units = units_of(a), segment = item // units, unit = item - segment * units
    cdef Affine f = given_affine(a, t, unit)
    cdef Piece p
    p.segment = segment
    p.count = 1
    p.begin = 0
    p.end = t.elements
    segment_apply(a, t, &f, unit % a.shape[1], unit_at(a, &a.x, unit), unit_at(a, &a.y, unit), &p)
    if a.stream:
        stream_end()


cdef int forward_given(const Norm *a, const Tiling *t) noexcept nogil:
    cdef Py_ssize_t items = units_of(a) * t.segments, i
    if a.threads == 1:
        for i in range(items):
            given_segment(a, t, i)
    else:
        for i in prange(items, num_threads=a.threads, schedule="guided",
                        chunksize=chunk_of(items, a.threads)):
            given_segment(a, t, i)
    return 0


cdef int forward_all(Norm *a, const Tiling *t) noexcept nogil:
    """Every unit, in the way that suits their number and size."""
    cdef Py_ssize_t units = units_of(a), band = band_of(a, t, False), i
    if one_tile(a, t):
        return units_forward_together(a, t)
    if a.given and band > 1:
        return segments_given_banded(a, t)
    if a.given and not a.by_element and units * t.segments >= a.threads:
        return forward_given(a, t)
    if by_parts(units, t.parts, a.threads):
        if a.add:
            for i in prange(units, num_threads=a.threads, schedule="static"):
                add_unit(a, t, i)
        return forward_by_parts(a, t)
    if band > 1:
        return segments_forward_banded(a, t, band)
    if a.threads == 1:
        for i in range(units):
            forward_unit(a, t, i)
    else:
        for i in prange(units, num_threads=a.threads, schedule="guided",
                        chunksize=chunk_of(units, a.threads)):
            forward_unit(a, t, i)
    return 0


cdef int units_forward(Norm *a) noexcept nogil:
    """y = (x - mean) * rstd * weight + bias, of each unit."""
    cdef Tiling t = tiling_of(a, False)
    cdef void *room = lay_parameters(a, &t)
    cdef int failed
    set_memory(a, &t)
    failed = forward_all(a, &t)
    free(room)
    return failed


cdef inline void moments_unit(Norm *a, const Tiling *t, Py_ssize_t unit) noexcept nogil:
    cdef Moments m = unit_moments(t, &a.x, unit_at(a, &a.x, unit), a.centred, a.eps)
    keep_statistics(a, unit, m, rstd_of(m.m2, m.count, a.eps))


cdef int units_moments(Norm *a) noexcept nogil:
    """mean, lo, m2 and rstd of each unit."""
    cdef Tiling t = tiling_of(a, False)
    cdef Py_ssize_t units = units_of(a), i
    if by_parts(units, t.parts, a.threads):
        return moments_by_parts(a, &t)
    if a.threads == 1:
        for i in range(units):
            moments_unit(a, &t, i)
    else:
        for i in prange(units, num_threads=a.threads, schedule="guided",
                        chunksize=chunk_of(units, a.threads)):
            moments_unit(a, &t, i)
    return 0


cdef int units_backward(Norm *a) noexcept nogil:
    """Gradients of the input and of the parameters; y is the gradient of the input."""
    if a.by_element:
        return rows_backward(a)
    return segments_backward(a)
