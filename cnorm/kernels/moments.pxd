# Moments: (count, mean, M2) of a unit, as every mean-based norm takes them.
#
# a) A unit is cut in tiles, tiles are gathered in parts; both follow from its shape alone.
# b) Within a part every tile is summed about one shift, a guess of the mean, or 0 where the part's first
#    elements say that the mean is less than the deviation: the sums of d = x - shift and of d*d simply
#    add up, in double, and the corrected two-pass formula
#        mean = shift + sum(d) / n,   M2 = sum(d*d) - sum(d)**2 / n
#    is exact about any shift. Where the guess was bad (the correction is over two thirds of sum(d*d))
#    the part is summed once more about its true mean. That choice depends on the data alone.
# c) Sums that overflow a float (inputs near 1e30), or underflow one, are taken again in double.
# d) Parts, units and ranks merge by `merged` (Chan et al. 1979), in a fixed tree.


from libc.math cimport sqrt
from cnorm.kernels.jobs cimport Moments, Norm, View
from cnorm.kernels.loops cimport TILE, TILES, Affine, far_from_mean, Tile
from cnorm.kernels.tuning cimport PART, SHORT, TINY


cdef inline bint finite(double a) noexcept nogil:
    return a - a == 0


cdef inline Moments merged(Moments a, Moments b) noexcept nogil:
    """Moments of both: the one merge formula. The mean keeps a low part, as a double-double."""
    cdef Moments m
    cdef double delta, share, step
    if a.count == 0:
        return b
    if b.count == 0:
        return a
    m.count = a.count + b.count
    share = b.count / m.count
    delta = (b.mean - a.mean) + (b.lo - a.lo)
    step = a.lo + delta * share
    m.mean = a.mean + step
    m.lo = (a.mean - m.mean) + step
    m.m2 = a.m2 + b.m2 + delta * delta * (a.count * share)
    return m


cdef inline Moments about(double count, double shift, double first, double second) noexcept nogil:
    """Moments from the sums of d and d*d, d = x - shift."""
    cdef Moments m
    cdef double step = first / count
    m.count = count
    m.mean = shift + step
    m.lo = (shift - m.mean) + step
    m.m2 = second - first * step
    if m.m2 < 0:  # rounding; NaN stays
        m.m2 = 0
    return m


cdef struct Tree:
    # Merges a sequence of moments pairwise, like the carries of a binary counter.
    Moments level[48]
    Py_ssize_t pushed
    int top


cdef inline void tree_push(Tree *t, Moments m) noexcept nogil:
    cdef Py_ssize_t carry
    t.pushed += 1
    carry = t.pushed
    while carry & 1 == 0:
        t.top -= 1
        m = merged(t.level[t.top], m)
        carry >>= 1
    t.level[t.top] = m
    t.top += 1


cdef inline Moments tree_total(Tree *t) noexcept nogil:
    cdef Moments m = t.level[t.top - 1]
    cdef int i
    for i in range(t.top - 2, -1, -1):
        m = merged(t.level[i], m)
    return m


# ---- tiles of a unit (rows and segments families) ----


cdef struct Piece:
    # `count` whole segments from `segment` on, or elements begin..end of one.
    Py_ssize_t segment, count, begin, end


cdef struct Ready:
    # A tile as the loops take it: in place, or gathered in a buffer.
    const Tile *loops
    const char *data
    Py_ssize_t runs, stride, length


cdef struct Tiling

# What is applied to elements of one unit, whose x and y begin at these addresses.
ctypedef void (*apply_range)(const Norm *, const Tiling *, const Affine *, Py_ssize_t unit, const char *x, char *y,
                             const Piece *) noexcept nogil

cdef struct Tiling:
    apply_range apply
    const Tile *loops
    Py_ssize_t segments, runs, length
    Py_ssize_t elements      # of a segment
    Py_ssize_t together      # segments in a tile
    Py_ssize_t chunks        # tiles in a segment
    Py_ssize_t tiles         # in a unit
    Py_ssize_t parts         # in a unit
    Py_ssize_t reach         # segments on to the one to prefetch, where they lie apart, or 0


cdef inline Tiling tiling_of(const Norm *a, bint segment_alone) noexcept nogil:
    cdef Tiling t
    t.loops = TILES[a.storage]
    t.segments = a.shape[2]
    t.runs = a.shape[3]
    t.length = a.shape[4]
    t.elements = t.runs * t.length
    t.together = 1
    if not segment_alone and t.segments > 1 and 2 * t.elements <= TILE:
        t.together = TILE // t.elements
    t.chunks = (t.elements + TILE - 1) // TILE
    t.tiles = t.segments * t.chunks if t.together == 1 else (t.segments + t.together - 1) // t.together
    t.parts = (t.tiles + PART - 1) // PART
    t.reach = 0
    t.apply = NULL
    return t


cdef inline Piece tile_piece(const Tiling *t, Py_ssize_t tile) noexcept nogil:
    cdef Piece p
    if t.together > 1:
        p.segment = tile * t.together
        p.count = min(t.together, t.segments - p.segment)
        p.begin = 0
        p.end = t.elements
    else:
        p.segment = tile // t.chunks
        p.count = 1
        p.begin = (tile - p.segment * t.chunks) * TILE
        p.end = min(p.begin + TILE, t.elements)
    return p


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


cdef inline const char *element_at(const Tiling *t, const View *v, const char *base, Py_ssize_t segment,
                                   Py_ssize_t element) noexcept nogil:
    cdef Py_ssize_t run = 0
    if t.runs > 1:
        run = element // t.length
        element -= run * t.length
    return base + segment * v.stride[2] + run * v.stride[3] + element * t.loops.size


cdef inline void gather(const Tiling *t, const View *v, const char *base, const Piece *p, bint wide,
                        char *buffer) noexcept nogil:
    """Lay a piece end to end in a buffer, widened to the accumulator or (wide) to double."""
    cdef Py_ssize_t segment, element, step
    cdef int size = 8 if wide else t.loops.wide
    cdef const char *source
    for segment in range(p.segment, p.segment + p.count):
        element = p.begin
        while element < p.end:
            step = min(t.length - element % t.length, p.end - element)
            source = element_at(t, v, base, segment, element)
            if wide:
                t.loops.widen64(source, step, <double *> buffer)
            else:
                t.loops.widen(source, step, buffer)
            buffer += step * size
            element += step


cdef inline Ready ready_tile(const Tiling *t, const View *v, const char *base, const Piece *p, bint wide,
                             char *buffer) noexcept nogil:
    cdef Ready r
    cdef bint end_to_end = p.count == 1 or v.stride[2] == t.elements * t.loops.size
    cdef int size
    r.runs = p.count
    r.length = p.end - p.begin
    if t.elements < SHORT:
        r.length *= r.runs
        r.runs = 1
    if not wide and t.runs == 1 and (r.runs == p.count or end_to_end):
        r.loops = t.loops
        r.data = base + p.segment * v.stride[2] + p.begin * t.loops.size
        r.stride = v.stride[2]
    else:
        gather(t, v, base, p, wide, buffer)
        size = 8 if wide else t.loops.wide
        r.loops = TILES[1] if wide else TILES[t.loops.accumulator]
        r.data = buffer
        r.stride = r.length * size
    return r


cdef inline void part_sums(const Tiling *t, const View *v, const char *base, Py_ssize_t part, bint wide,
                           double shift, bint guess, bint centred, double *out) noexcept nogil:
    """out = {count, shift, sum of d, sum of d*d} of a part; guess: take the shift from its head."""
    cdef double buffer[TILE]
    cdef double sums[2]
    cdef Py_ssize_t tile
    cdef Piece p
    cdef Ready r
    out[0] = 0
    out[2] = 0
    out[3] = 0
    for tile in range(part * PART, min((part + 1) * PART, t.tiles)):
        p = tile_piece(t, tile)
        r = ready_tile(t, v, base, &p, wide, <char *> buffer)
        if guess:
            shift = r.loops.head(r.data, r.length)
            guess = False
        r.loops.sums(r.data, r.runs, r.stride, r.length, shift, centred, t.reach, sums)
        out[0] += <double> (r.runs * r.length)
        out[2] += sums[0]
        out[3] += sums[1]
    out[1] = shift


cdef inline Moments part_moments(const Tiling *t, const View *v, const char *base, Py_ssize_t part,
                                 bint centred, double eps) noexcept nogil:
    cdef double s[4]
    cdef bint wide = False
    cdef Moments m
    part_sums(t, v, base, part, False, 0, centred, centred, s)
    if centred and far_from_mean(s[0], s[2], s[3]):
        part_sums(t, v, base, part, False, t.loops.rounded(s[1] + s[2] / s[0]), False, True, s)
    wide = not (finite(s[2]) and finite(s[3])) or (eps < TINY and s[3] < TINY * s[0])
    if wide and t.loops.accumulator == 0:
        part_sums(t, v, base, part, True, 0, centred, centred, s)
        if centred and far_from_mean(s[0], s[2], s[3]):
            part_sums(t, v, base, part, True, s[1] + s[2] / s[0], False, True, s)
    if centred:
        return about(s[0], s[1], s[2], s[3])
    m.count = s[0]
    m.mean = 0
    m.lo = 0
    m.m2 = s[3] if finite(s[3]) else s[3] - s[3]  # infinity spoils its unit, as it does a mean
    return m


cdef inline Moments unit_moments(const Tiling *t, const View *v, const char *base, bint centred,
                                 double eps) noexcept nogil:
    cdef Tree tree
    cdef Py_ssize_t part
    if t.parts == 1:
        return part_moments(t, v, base, 0, centred, eps)
    tree.pushed = 0
    tree.top = 0
    for part in range(t.parts):
        tree_push(&tree, part_moments(t, v, base, part, centred, eps))
    return tree_total(&tree)


cdef inline Moments slot_total(const Moments *slots, Py_ssize_t parts) noexcept nogil:
    cdef Tree tree
    cdef Py_ssize_t part
    tree.pushed = 0
    tree.top = 0
    for part in range(parts):
        tree_push(&tree, slots[part])
    return tree_total(&tree)


cdef inline double rstd_of(double m2, double count, double eps) noexcept nogil:
    return 1 / sqrt(m2 / count + eps)
