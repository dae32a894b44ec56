from cython.parallel cimport prange
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from cnorm.kernels.coefficients cimport (
    BACKWARD, FORWARD, SUMS, coefficients, Parameters, split_means)
from cnorm.kernels.jobs cimport Moments, Norm
from cnorm.kernels.loops cimport BAND, TILE, Affine, BandAffine, stream_end
from cnorm.kernels.moments cimport (
    element_at, gather, next_tile, Piece, Ready, ready_tile, rstd_of, tile_piece, tile_stretch,
    Tiling, tiling_of, unit_moments)
from cnorm.kernels.segments_apply cimport (
    Band, band_of, channel_of, open_band, parameters_of, segment_apply, segment_band, set_channel,
    short_segments)
from cnorm.kernels.tuning cimport FEW_SLOTS, OWN, PART, SHORT, SLOT
from cnorm.kernels.unit_sweeps cimport (
    forward_by_parts, forward_units, moments_by_parts, one_tile, units_forward_together)
from cnorm.kernels.units cimport (
    by_parts, chunk_of, given_affine, keep_statistics, set_memory, unit_at, units_of)
from cnorm.kernels.workspace cimport give_back, room_for


cdef void forward_band(Norm *a, const Tiling *t, Py_ssize_t first, Py_ssize_t stop) noexcept nogil:
    cdef Band b
    cdef Moments m
    cdef double mean[BAND]
    cdef double low[BAND]
    cdef Parameters of = parameters_of(a, first)
    cdef Py_ssize_t i, n = stop - first
    open_band(&b)
    for i in range(n):
        m = unit_moments(t, &a.x, unit_at(a, &a.x, first + i), a.centred, a.eps)
        mean[i] = m.mean
        low[i] = m.lo
        b.rstd[i] = rstd_of(m.m2, m.count, a.eps)
        keep_statistics(a, first + i, m, b.rstd[i])
    b.affine.shifted = split_means(t.loops, a.eps, n, mean, low, b.rstd, b.hi, b.lo)
    coefficients(FORWARD, n, b.lo, b.rstd, &of, NULL, NULL, 0, &b.affine)
    t.loops.apply_band(unit_at(a, &a.x, first), unit_at(a, &a.y, first), t.segments, a.x.stride[2], a.y.stride[2],
                       n, a.x.stride[1], a.y.stride[1], t.elements, &b.affine, a.activation)


cdef int segments_forward_banded(Norm *a, const Tiling *t, Py_ssize_t band) noexcept nogil:
    cdef Py_ssize_t units = units_of(a), bands = (units + band - 1) // band, i
    if a.threads == 1:
        for i in range(bands):
            forward_band(a, t, i * band, min(units, (i + 1) * band))
    else:
        for i in prange(bands, num_threads=a.threads, schedule="guided"):
            forward_band(a, t, i * band, min(units, (i + 1) * band))
    return 0


cdef inline void given_band(const Norm *a, const Tiling *t, Py_ssize_t item, Py_ssize_t bands,
                            const BandAffine *f) noexcept nogil:
    cdef Py_ssize_t segment = item // bands, first = (item - segment * bands) * BAND
    cdef BandAffine g = f[0]
    g.hi += first
    g.scale += first
    g.bias += first
    g.slope += first
    t.loops.apply_band(unit_at(a, &a.x, first) + segment * a.x.stride[2],
                       unit_at(a, &a.y, first) + segment * a.y.stride[2], 1, 0, 0,
                       min(<Py_ssize_t> BAND, units_of(a) - first), a.x.stride[1], a.y.stride[1], t.elements, &g,
                       a.activation)


cdef int segments_given_banded(const Norm *a, const Tiling *t) noexcept nogil:
    cdef Py_ssize_t units = units_of(a), bands = (units + BAND - 1) // BAND, items = bands * t.segments, i
    cdef double own[OWN]
    cdef double *room = <double *> room_for(5 * units * sizeof(double), own)
    cdef double *lo = room + 4 * units
    cdef BandAffine f
    cdef Parameters of = parameters_of(a, 0)
    if room == NULL:
        return -1
    f.hi = room
    f.scale = room + units
    f.bias = room + 2 * units
    f.slope = room + 3 * units
    f.shifted = split_means(t.loops, a.eps, units, a.mean, a.lo, a.rstd, f.hi, lo)
    coefficients(FORWARD, units, lo, a.rstd, &of, NULL, NULL, 0, &f)
    if a.threads == 1:
        for i in range(items):
            given_band(a, t, i, bands, &f)
    else:
        for i in prange(items, num_threads=a.threads, schedule="guided", chunksize=chunk_of(items, a.threads)):
            given_band(a, t, i, bands, &f)
    give_back(room, own)
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
    segment_apply(a, t, &f, unit, unit_at(a, &a.x, unit), unit_at(a, &a.y, unit), &p)
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


cdef int segments_forward(Norm *a) noexcept nogil:
    """y = (x - mean) * rstd * weight + bias, of each unit."""
    cdef Tiling t = tiling_of(a, False)
    cdef Py_ssize_t units = units_of(a), band
    t.apply = segment_apply
    set_memory(a, &t)
    band = band_of(a, &t, False)
    if one_tile(a, &t):
        return units_forward_together(a, &t)
    if a.given and band > 1:
        return segments_given_banded(a, &t)
    if a.given and units * t.segments >= a.threads:
        return forward_given(a, &t)
    if by_parts(units, t.parts, a.threads):
        return forward_by_parts(a, &t)
    if band > 1:
        return segments_forward_banded(a, &t, band)
    return forward_units(a, &t)


cdef inline void moments_unit(Norm *a, const Tiling *t, Py_ssize_t unit) noexcept nogil:
    cdef Moments m = unit_moments(t, &a.x, unit_at(a, &a.x, unit), a.centred, a.eps)
    keep_statistics(a, unit, m, rstd_of(m.m2, m.count, a.eps))


cdef int segments_moments(Norm *a) noexcept nogil:
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


# ---- backward ----
# Per slot: sum of g, of g * (x - hi), of (x - hi), of the slope's gradient. A slot is a part of the
# unit, or one segment of it where segments have weights of their own.


cdef inline Py_ssize_t slots_of(const Norm *a, const Tiling *t) noexcept nogil:
    return t.segments if a.by_segment else t.parts


cdef void segment_sums(const Norm *a, const Tiling *t, const Affine *shared, Py_ssize_t unit,
                       Py_ssize_t slot, double *out) noexcept nogil:
    cdef double x_buffer[TILE]
    cdef double dy_buffer[TILE]
    cdef const char *x = unit_at(a, &a.x, unit)
    cdef const char *dy = unit_at(a, &a.dy, unit)
    cdef Affine f = shared[0]
    cdef Py_ssize_t tile, begin, end
    cdef Piece p
    cdef Ready rx, rdy
    out[0] = 0
    out[1] = 0
    out[2] = 0
    out[3] = 0
    set_channel(a, &f, channel_of(a, unit % a.shape[1], slot))
    begin = slot * (t.chunks if a.by_segment else PART)
    end = begin + t.chunks if a.by_segment else min(begin + PART, t.tiles)
    for tile in range(begin, end):
        p = tile_piece(t, tile)
        rx = ready_tile(t, &a.x, x, &p, False, <char *> x_buffer)
        rdy = ready_tile(t, &a.dy, dy, &p, False, <char *> dy_buffer)
        if rx.loops != rdy.loops:  # one was gathered: the loops take both in one type
            if rx.data != <char *> x_buffer:
                gather(t, &a.x, x, &p, False, <char *> x_buffer)
                rx = rdy
                rx.data = <char *> x_buffer
            else:
                gather(t, &a.dy, dy, &p, False, <char *> dy_buffer)
                rdy = rx
                rdy.data = <char *> dy_buffer
        rx.loops.grad_sums(rx.data, rdy.data, rx.runs, rx.stride, rdy.stride, rx.length, &f,
                           a.activation, out)


cdef void unit_totals(const Norm *a, const Tiling *t, Affine *f, Py_ssize_t unit,
                      const double *slots, double *sum_g, double *sum_gd) noexcept nogil:
    """From slots to the unit's weighted sums; parameter gradients on the way."""
    cdef Py_ssize_t slot, count = slots_of(a, t), inner = unit % a.shape[1]
    cdef Py_ssize_t outer = unit // a.shape[1], channels, channel
    cdef double g = 0, gd = 0, d = 0, on_slope = 0, weight
    cdef double size = <double> (t.segments * t.elements)
    if t.loops.wide == 8 and not a.given and a.sums_mode == 0:
        for slot in range(count):
            d += slots[SLOT * slot + 2]
        f.lo = d / size
    if a.by_segment:
        channels = a.shape[1] * t.segments
        sum_g[0] = 0
        sum_gd[0] = 0
        for slot in range(count):
            channel = outer * channels + channel_of(a, inner, slot)
            weight = a.weight[channel_of(a, inner, slot)] if a.weight != NULL else 1
            g = slots[SLOT * slot]
            gd = slots[SLOT * slot + 1] - f.lo * g
            a.grad_bias[channel] = g
            a.grad_weight[channel] = f.rstd * gd
            if a.activation:
                a.grad_slope[channel] = slots[SLOT * slot + 3]
            sum_g[0] += weight * g
            sum_gd[0] += weight * gd
        return
    for slot in range(count):
        g += slots[SLOT * slot]
        gd += slots[SLOT * slot + 1]
        on_slope += slots[SLOT * slot + 3]
    gd -= f.lo * g
    a.grad_bias[unit] = g
    a.grad_weight[unit] = f.rstd * gd
    if a.activation:
        a.grad_slope[unit] = on_slope
    weight = a.weight[inner] if a.weight != NULL else 1
    sum_g[0] = weight * g
    sum_gd[0] = weight * gd


cdef void finish_affine(const Norm *a, Affine *f, double count, double sum_g,
                        double sum_gd) noexcept nogil:
    """q and r of dx = (g * p - r) - (x - hi) * rstd * q, from the unit's two weighted sums."""
    if a.given:  # evaluation: the statistics do not depend on x
        f.q = 0
        f.r = 0
        return
    f.q = f.rstd * f.rstd * sum_gd / count
    f.r = (f.rstd * sum_g / count if a.centred else 0) - f.lo * f.rstd * f.q


cdef inline void finish_unit(const Norm *a, const Tiling *t, Affine *f, Py_ssize_t unit,
                             const double *slots) noexcept nogil:
    cdef double sum_g, sum_gd, count = <double> (t.segments * t.elements)
    if a.sums_mode == 2:
        sum_g = a.sums[2 * unit]
        sum_gd = a.sums[2 * unit + 1]
        count = a.count
    else:
        unit_totals(a, t, f, unit, slots, &sum_g, &sum_gd)
        if a.sums != NULL:
            a.sums[2 * unit] = sum_g
            a.sums[2 * unit + 1] = sum_gd
    finish_affine(a, f, count, sum_g, sum_gd)


cdef void segment_grad_apply(const Norm *a, const Tiling *t, const Affine *shared, Py_ssize_t unit,
                             Py_ssize_t slot) noexcept nogil:
    """The gradient of the input, over the tiles of one slot."""
    cdef const char *x = unit_at(a, &a.x, unit)
    cdef const char *dy = unit_at(a, &a.dy, unit)
    cdef char *dx = unit_at(a, &a.y, unit)
    cdef Affine f = shared[0]
    cdef Py_ssize_t tile, stop, segment, element, step, size = t.loops.size
    cdef Piece p
    set_channel(a, &f, channel_of(a, unit % a.shape[1], slot))
    tile = slot * (t.chunks if a.by_segment else PART)
    stop = tile + t.chunks if a.by_segment else min(tile + PART, t.tiles)
    while tile < stop:
        p = tile_stretch(t, tile, stop)
        if t.runs == 1:
            t.loops.grad_apply(x + p.segment * a.x.stride[2] + p.begin * size,
                               dy + p.segment * a.dy.stride[2] + p.begin * size,
                               dx + p.segment * a.y.stride[2] + p.begin * size,
                               p.count, a.x.stride[2], a.dy.stride[2], a.y.stride[2],
                               p.end - p.begin, &f, a.activation)
        else:
            for segment in range(p.segment, p.segment + p.count):
                element = p.begin
                while element < p.end:
                    step = min(t.length - element % t.length, p.end - element)
                    t.loops.grad_apply(element_at(t, &a.x, x, segment, element),
                                       element_at(t, &a.dy, dy, segment, element),
                                       <char *> element_at(t, &a.y, dx, segment, element),
                                       1, 0, 0, 0, step, &f, a.activation)
                    element += step
        tile = next_tile(t, tile, stop)


cdef void sums_by_band(const Norm *a, const Tiling *t, const Affine *shared, Py_ssize_t unit,
                       double *slots) noexcept nogil:
    """The sums of all segments of a unit: what segment_sums comes to."""
    cdef Band b
    cdef Py_ssize_t first = 0, count, i, k
    memset(b.sums, 0, sizeof(b.sums))
    while first < t.segments:
        count = min(<Py_ssize_t> BAND, t.segments - first)
        segment_band(a, shared, channel_of(a, unit % a.shape[1], first), count, False, &b)
        t.loops.grad_sums_band(unit_at(a, &a.x, unit) + first * a.x.stride[2],
                               unit_at(a, &a.dy, unit) + first * a.dy.stride[2], 1, 0, 0, count, a.x.stride[2],
                               a.dy.stride[2], t.elements, &b.affine, a.activation, b.sums)
        for i in range(count):
            for k in range(SLOT):
                slots[SLOT * (first + i) + k] = 0 + b.sums[k * BAND + i]
        first += count


cdef inline void set_backward(const Norm *a, const Tiling *t, Py_ssize_t unit, double *slots,
                              Affine *f) noexcept nogil:
    """What is applied to a unit, from its sums. `slots` is room for these, or NULL where few are needed."""
    cdef double own[SLOT * FEW_SLOTS]
    cdef Py_ssize_t slot
    if slots == NULL:
        slots = own
    f[0] = given_affine(a, t, unit)
    if short_segments(a, t) and t.elements >= SHORT:
        sums_by_band(a, t, f, unit, slots)
    else:
        for slot in range(slots_of(a, t)):
            segment_sums(a, t, f, unit, slot, slots + SLOT * slot)
    finish_unit(a, t, f, unit, slots)


cdef void band_grad_apply(const Norm *a, const Tiling *t, const Affine *shared, Py_ssize_t unit) noexcept nogil:
    """The gradient of a unit's input."""
    cdef Band b
    cdef const char *x = unit_at(a, &a.x, unit)
    cdef const char *dy = unit_at(a, &a.dy, unit)
    cdef char *dx = unit_at(a, &a.y, unit)
    cdef Py_ssize_t first = 0, count
    while first < t.segments:
        count = min(<Py_ssize_t> BAND, t.segments - first)
        segment_band(a, shared, channel_of(a, unit % a.shape[1], first), count, True, &b)
        t.loops.grad_apply_band(x + first * a.x.stride[2], dy + first * a.dy.stride[2], dx + first * a.y.stride[2],
                                1, 0, 0, 0, count, a.x.stride[2], a.dy.stride[2], a.y.stride[2], t.elements,
                                &b.affine, a.activation)
        first += count


cdef void segments_backward_unit(const Norm *a, const Tiling *t, Py_ssize_t unit,
                                 double *slots) noexcept nogil:
    """One unit, while it is in cache."""
    cdef Affine f
    cdef Py_ssize_t slot
    set_backward(a, t, unit, slots, &f)
    if a.sums_mode == 1:
        return
    if short_segments(a, t):
        band_grad_apply(a, t, &f, unit)
    else:
        for slot in range(slots_of(a, t)):
            segment_grad_apply(a, t, &f, unit, slot)
    if a.stream:
        stream_end()


cdef void band_sums(const Norm *a, const Tiling *t, Py_ssize_t unit, Py_ssize_t n, Band *b) noexcept nogil:
    """The sums of n units."""
    cdef double slots[SLOT * FEW_SLOTS]
    cdef double sums[SLOT]
    cdef Affine f
    cdef Parameters of
    cdef Py_ssize_t i, k, slot
    if t.tiles == 1 and (t.segments == 1 or t.elements >= SHORT):  # in place, and one tile
        if a.activation:
            of = parameters_of(a, unit % a.shape[1])
            coefficients(SUMS, n, b.lo, b.rstd, &of, NULL, NULL, 0, &b.affine)
        t.loops.grad_sums_band(unit_at(a, &a.x, unit), unit_at(a, &a.dy, unit), t.segments, a.x.stride[2],
                               a.dy.stride[2], n, a.x.stride[1], a.dy.stride[1], t.elements, &b.affine,
                               a.activation, b.sums)
        for k in range(SLOT):
            for i in range(n):
                b.sums[k * BAND + i] = 0 + b.sums[k * BAND + i]
        return
    for i in range(n):
        f = given_affine(a, t, unit + i)
        memset(sums, 0, sizeof(sums))
        for slot in range(slots_of(a, t)):
            segment_sums(a, t, &f, unit + i, slot, slots)
            for k in range(SLOT):
                sums[k] += slots[k]
        for k in range(SLOT):
            b.sums[k * BAND + i] = sums[k]


cdef void backward_band(const Norm *a, const Tiling *t, Py_ssize_t unit, Py_ssize_t n) noexcept nogil:
    """n units of one outer index: unit_totals and finish_affine for all of them."""
    cdef Band b
    cdef Py_ssize_t i, inner = unit % a.shape[1]
    cdef double count = <double> (t.segments * t.elements)
    cdef double *g = b.sums
    cdef double *gd = g + BAND
    cdef const double *d = gd + BAND
    cdef const double *on_slope = d + BAND
    cdef double *grad_weight = a.grad_weight + unit
    cdef Parameters of = parameters_of(a, inner)
    open_band(&b)
    memset(b.sums, 0, sizeof(b.sums))
    memcpy(b.rstd, a.rstd + unit, n * sizeof(double))
    b.affine.shifted = split_means(t.loops, a.eps, n, a.mean + unit, a.lo + unit if a.lo != NULL else NULL, b.rstd,
                                   b.hi, b.lo)
    band_sums(a, t, unit, n, &b)
    if t.loops.wide == 8 and not a.given:
        for i in range(n):
            b.lo[i] = d[i] / count
    memcpy(a.grad_bias + unit, g, n * sizeof(double))
    for i in range(n):
        gd[i] -= b.lo[i] * g[i]
        grad_weight[i] = b.rstd[i] * gd[i]
    if a.activation:
        memcpy(a.grad_slope + unit, on_slope, n * sizeof(double))
    if a.weight != NULL:
        for i in range(n):
            g[i] *= a.weight[inner + i]
            gd[i] *= a.weight[inner + i]
    coefficients(BACKWARD, n, b.lo, b.rstd, &of, NULL if a.given else g, gd, count, &b.affine)
    t.loops.grad_apply_band(unit_at(a, &a.x, unit), unit_at(a, &a.dy, unit), unit_at(a, &a.y, unit), t.segments,
                            a.x.stride[2], a.dy.stride[2], a.y.stride[2], n, a.x.stride[1],
                            a.dy.stride[1], a.y.stride[1], t.elements, &b.affine, a.activation)


cdef inline void band_item(const Norm *a, const Tiling *t, Py_ssize_t item, Py_ssize_t band) noexcept nogil:
    cdef Py_ssize_t bands = (a.shape[1] + band - 1) // band, outer = item // bands
    cdef Py_ssize_t first = (item - outer * bands) * band
    backward_band(a, t, outer * a.shape[1] + first, min(band, a.shape[1] - first))


cdef void segments_backward_banded(const Norm *a, const Tiling *t, Py_ssize_t band) noexcept nogil:
    cdef Py_ssize_t items = a.shape[0] * ((a.shape[1] + band - 1) // band), i
    if a.threads == 1:
        for i in range(items):
            band_item(a, t, i, band)
    else:
        for i in prange(items, num_threads=a.threads, schedule="guided", chunksize=chunk_of(items, a.threads)):
            band_item(a, t, i, band)


cdef inline void sums_item(const Norm *a, const Tiling *t, double *slots, Py_ssize_t item,
                           Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t unit = item // count
    cdef Affine f = given_affine(a, t, unit)
    segment_sums(a, t, &f, unit, item - unit * count, slots + SLOT * item)


cdef inline void grad_item(const Norm *a, const Tiling *t, const Affine *affine, Py_ssize_t item,
                           Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t unit = item // count
    segment_grad_apply(a, t, affine + unit, unit, item - unit * count)
    if a.stream:
        stream_end()


cdef inline void backward_item(const Norm *a, const Tiling *t, Py_ssize_t unit, double *slots,
                               Py_ssize_t count) noexcept nogil:
    segments_backward_unit(a, t, unit, slots + SLOT * count * unit if slots != NULL else NULL)


cdef int segments_backward(Norm *a) noexcept nogil:
    cdef Tiling t = tiling_of(a, a.by_segment)
    cdef Py_ssize_t units = units_of(a), count = slots_of(a, &t), items = units * count, i
    cdef bint apart = by_parts(units, count, a.threads) or a.sums_mode == 2
    cdef bint serial = a.threads == 1
    cdef bint on_stack = not apart and count <= FEW_SLOTS
    cdef Py_ssize_t band = 1
    cdef double *slots = NULL
    cdef Affine *affine = <Affine *> malloc(units * sizeof(Affine)) if apart else NULL
    if not on_stack:
        slots = <double *> malloc(SLOT * (count if serial and not apart else items) * sizeof(double))
    set_memory(a, &t)
    if on_stack and a.sums_mode == 0:
        band = band_of(a, &t, True)
    if (slots == NULL and not on_stack) or (apart and affine == NULL):
        free(slots)
        free(affine)
        return -1
    if band > 1:
        segments_backward_banded(a, &t, band)
    elif not apart:
        if serial:
            for i in range(units):
                segments_backward_unit(a, &t, i, slots)
        else:
            for i in prange(units, num_threads=a.threads, schedule="guided",
                            chunksize=chunk_of(units, a.threads)):
                backward_item(a, &t, i, slots, count)
    else:
        if a.sums_mode != 2:
            for i in prange(items, num_threads=a.threads, use_threads_if=not serial,
                            schedule="guided", chunksize=chunk_of(items, a.threads)):
                sums_item(a, &t, slots, i, count)
        for i in range(units):
            affine[i] = given_affine(a, &t, i)
            finish_unit(a, &t, affine + i, i, slots + SLOT * count * i)
        if a.sums_mode != 1:
            for i in prange(items, num_threads=a.threads, use_threads_if=not serial,
                            schedule="guided", chunksize=chunk_of(items, a.threads)):
                grad_item(a, &t, affine, i, count)
    free(slots)
    free(affine)
    return 0
