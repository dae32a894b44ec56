from cython.parallel cimport prange
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy
from cnorm.kernels.jobs cimport Moments, Norm
from cnorm.kernels.loops cimport ABREAST, ROWS_TOGETHER, Affine, RowJob, stream_end
from cnorm.kernels.machine cimport MACHINE
from cnorm.kernels.moments cimport (
    next_tile, part_moments, Piece, rstd_of, slot_total, tile_stretch, Tiling, unit_moments)
from cnorm.kernels.tuning cimport (
    NEAR_BYTES, PART, TINY, TOGETHER_BYTES, TOGETHER_LONG, TOGETHER_SHORT)
from cnorm.kernels.units cimport (
    chunk_of, given_affine, keep_statistics, unit_affine, unit_at, units_of)


cdef inline void apply_part(const Norm *a, const Tiling *t, const Affine *f, Py_ssize_t unit,
                            Py_ssize_t part) noexcept nogil:
    cdef const char *x = unit_at(a, &a.x, unit)
    cdef char *y = unit_at(a, &a.y, unit)
    cdef Py_ssize_t tile = part * PART, stop = min(tile + PART, t.tiles)
    cdef Piece p
    while tile < stop:
        p = tile_stretch(t, tile, stop)
        t.apply(a, t, f, unit, x, y, &p)
        tile = next_tile(t, tile, stop)


cdef inline void add_unit(const Norm *a, const Tiling *t, Py_ssize_t unit) noexcept nogil:
    """x = dy + plus, for one unit: what is normalised is in cache then."""
    cdef char *x = unit_at(a, &a.x, unit)
    cdef const char *one = unit_at(a, &a.dy, unit)
    cdef const char *other = unit_at(a, &a.plus, unit)
    cdef Py_ssize_t run
    for run in range(t.runs):
        t.loops.add(one + run * a.dy.stride[3], other + run * a.plus.stride[3], x + run * a.x.stride[3],
                    t.length)


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


cdef inline void normalise_unit(Norm *a, const Tiling *t, Py_ssize_t unit) noexcept nogil:
    cdef Affine f
    cdef Py_ssize_t part
    set_forward(a, t, unit, &f)
    for part in range(t.parts):
        apply_part(a, t, &f, unit, part)
    if a.stream:
        stream_end()


cdef inline void forward_unit(Norm *a, const Tiling *t, Py_ssize_t unit) noexcept nogil:
    if a.add:
        add_unit(a, t, unit)
    normalise_unit(a, t, unit)


cdef inline int forward_units(Norm *a, const Tiling *t) noexcept nogil:
    """Unit by unit."""
    cdef Py_ssize_t units = units_of(a), i
    if a.threads == 1:
        for i in range(units):
            forward_unit(a, t, i)
    else:
        for i in prange(units, num_threads=a.threads, schedule="guided",
                        chunksize=chunk_of(units, a.threads)):
            forward_unit(a, t, i)
    return 0


cdef inline void part_slot(const Norm *a, const Tiling *t, Moments *slots,
                           Py_ssize_t item) noexcept nogil:
    cdef Py_ssize_t unit = item // t.parts
    slots[item] = part_moments(t, &a.x, unit_at(a, &a.x, unit), item - unit * t.parts, a.centred, a.eps)


cdef inline int moments_by_parts(Norm *a, const Tiling *t) noexcept nogil:
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


cdef inline int forward_by_parts(Norm *a, const Tiling *t) noexcept nogil:
    cdef Py_ssize_t units = units_of(a), items = units * t.parts, i
    cdef double *kept = NULL
    cdef Norm given = a[0]
    if a.add:
        for i in prange(units, num_threads=a.threads, schedule="static"):
            add_unit(a, t, i)
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


cdef inline bint one_tile(const Norm *a, const Tiling *t) noexcept nogil:
    return a.shape[2] == 1 and t.runs == 1 and t.tiles == 1 and not a.given and a.unit_slopes == NULL


cdef inline Py_ssize_t together_of(const Norm *a, const Tiling *t) noexcept nogil:
    cdef Py_ssize_t row = t.elements * t.loops.size
    cdef bint far = 2 * units_of(a) * row >= NEAR_BYTES
    cdef Py_ssize_t rows = MACHINE.rows_from_memory // row
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


cdef inline void forward_together(Norm *a, const Tiling *t, Py_ssize_t outer, Py_ssize_t inner,
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


cdef inline int units_forward_together(Norm *a, const Tiling *t) noexcept nogil:
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
