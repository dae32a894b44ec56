# Moments: count, mean and M2 (the sum of squared deviations) of a unit, as every mean-based norm takes them.
#
# a) A unit is cut into tiles, tiles are gathered in blocks; both follow from its shape alone.
# b) Within a block every tile is summed about one shift: a guess of the mean, or 0 where the block's first elements
#    say that |mean| is less than the standard deviation. The sums of d = x - shift and of d*d add up in double, and
#    the corrected two-pass formula (Chan, Golub, LeVeque 1983)
#        mean = shift + sum(d) / n,   M2 = sum(d*d) - sum(d)**2 / n
#    is exact about any shift. Where the shift was poor (shift_is_poor) the block is summed once more about its true
#    mean. That choice depends on the data alone.
# c) Sums that overflow or underflow a float (inputs near 1e30 or 1e-30) are taken again in double.
# d) Blocks, units and ranks merge by `merged` (Chan et al. 1979), in a fixed tree.
from cnorm.kernels.job cimport NORM_1, NORM_MAX, NORM_NONE, STRATEGY_ANY, Finish, Job, Moments, Schedule, Tensor
from cnorm.kernels.loops cimport (
    CENTRED, LARGEST, LOOPS_BY_DTYPE, MAGNITUDES, UNCENTRED, Coefficients, LoopTable)
from cnorm.kernels.statistics cimport larger, merge_moments, moments_about, shift_is_poor, tiny_square
from cnorm.kernels.tuning cimport BLOCK_TILES, SHORT_SEGMENT, TILE, TREE_LEVELS


cdef inline bint finite(double value) noexcept nogil:
    return value - value == 0


cdef inline Moments merged(Moments a, Moments b) noexcept nogil:
    """Moments of both; mean + lo is a double-double."""
    cdef double share
    if a.count == 0:
        return b
    if b.count == 0:
        return a
    if a.largest:
        a.m2 = larger(a.m2, b.m2)
        a.count += b.count
        return a
    share = b.count / (a.count + b.count)
    merge_moments(&a.mean, &a.lo, &a.m2, b.mean, b.lo, b.m2, share, a.count * share)
    a.count += b.count
    return a


cdef inline Moments moments_from_sums(double count, double shift, double sum_d, double sum_dd) noexcept nogil:
    """Moments from the sums of d and d*d, d = x - shift."""
    cdef Moments m
    m.count = count
    m.largest = False
    moments_about(shift, sum_d / count, sum_d, sum_dd, &m.mean, &m.lo, &m.m2)
    return m


cdef struct Tree:
    # Merges a sequence of moments pairwise, like the carries of a binary counter.
    Moments level[TREE_LEVELS]
    Py_ssize_t pushed
    int top


cdef inline void tree_push(Tree *tree, Moments m) noexcept nogil:
    cdef Py_ssize_t carry
    tree.pushed += 1
    carry = tree.pushed
    while carry & 1 == 0:
        tree.top -= 1
        m = merged(tree.level[tree.top], m)
        carry >>= 1
    tree.level[tree.top] = m
    tree.top += 1


cdef inline Moments tree_total(Tree *tree) noexcept nogil:
    cdef Moments m = tree.level[tree.top - 1]
    cdef int i
    for i in range(tree.top - 2, -1, -1):
        m = merged(tree.level[i], m)
    return m


cdef inline Moments merge_partials(const Moments *partials, Py_ssize_t n) noexcept nogil:
    """The moments of all blocks of a unit, in the tree of unit_moments."""
    cdef Tree tree
    cdef Py_ssize_t i
    tree.pushed = 0
    tree.top = 0
    for i in range(n):
        tree_push(&tree, partials[i])
    return tree_total(&tree)


# ---- how a unit is cut ----

cdef inline int terms_of(int norm) noexcept nogil:
    """What the loops add up where no mean is taken off (loops/table.h)."""
    return MAGNITUDES if norm == NORM_1 else LARGEST if norm == NORM_MAX else UNCENTRED


cdef struct ElementRange:
    # `count` whole segments from `segment` on, or the elements begin..end of one.
    Py_ssize_t segment, count, begin, end


cdef struct ContiguousTile:
    # A tile as the loops take it: in place, or gathered in a buffer.
    const LoopTable *loops
    const char *data
    Py_ssize_t runs, stride, length


cdef struct UnitBlocks

# What is applied to a range of a unit, whose x and y begin at these addresses.
ctypedef void (*apply_range)(const Job *, const UnitBlocks *, const Coefficients *, Py_ssize_t unit, const char *x,
                             char *y, const ElementRange *) noexcept nogil

cdef struct UnitBlocks:
    # Sizes of all units of a job (they are alike), and what executors need beside the job.
    const LoopTable *loops
    Py_ssize_t segments, runs, length
    Py_ssize_t elements            # of a segment
    Py_ssize_t segments_per_tile
    Py_ssize_t tiles_per_segment
    Py_ssize_t tiles               # of a unit
    Py_ssize_t blocks              # of a unit: BLOCK_TILES tiles each, the last perhaps fewer
    Finish finish                  # of the job
    apply_range apply
    Schedule schedule


cdef inline UnitBlocks unit_blocks(const Job *job, bint tile_within_segment) noexcept nogil:
    """How units are cut. A tile spans short segments unless each needs sums of its own (tile_within_segment)."""
    cdef UnitBlocks blocks
    blocks.loops = LOOPS_BY_DTYPE[job.head.dtype]
    blocks.segments = job.shape[2]
    blocks.runs = job.shape[3]
    blocks.length = job.shape[4]
    blocks.elements = blocks.runs * blocks.length
    blocks.segments_per_tile = 1
    if not tile_within_segment and blocks.segments > 1 and 2 * blocks.elements <= TILE:
        blocks.segments_per_tile = TILE // blocks.elements
    blocks.tiles_per_segment = (blocks.elements + TILE - 1) // TILE
    if blocks.segments_per_tile == 1:
        blocks.tiles = blocks.segments * blocks.tiles_per_segment
    else:
        blocks.tiles = (blocks.segments + blocks.segments_per_tile - 1) // blocks.segments_per_tile
    blocks.blocks = (blocks.tiles + BLOCK_TILES - 1) // BLOCK_TILES
    blocks.finish = job.finish
    blocks.apply = NULL
    blocks.schedule.strategy = STRATEGY_ANY
    blocks.schedule.threads = job.head.threads
    blocks.schedule.items = 0
    blocks.schedule.units_per_batch = 1
    blocks.schedule.rows_per_pass = 1
    blocks.schedule.nontemporal = False
    blocks.schedule.apart = False
    blocks.schedule.prefetch_bytes = 0
    blocks.schedule.prefetch_segments = 0
    return blocks


cdef inline ElementRange tile_range(const UnitBlocks *blocks, Py_ssize_t tile) noexcept nogil:
    cdef ElementRange extent
    if blocks.segments_per_tile > 1:
        extent.segment = tile * blocks.segments_per_tile
        extent.count = min(blocks.segments_per_tile, blocks.segments - extent.segment)
        extent.begin = 0
        extent.end = blocks.elements
    else:
        extent.segment = tile // blocks.tiles_per_segment
        extent.count = 1
        extent.begin = (tile - extent.segment * blocks.tiles_per_segment) * TILE
        extent.end = min(extent.begin + TILE, blocks.elements)
    return extent


cdef inline Py_ssize_t next_range(const UnitBlocks *blocks, Py_ssize_t tile, Py_ssize_t stop) noexcept nogil:
    """The tile after the range that range_of_tiles gives for this one."""
    if blocks.tiles_per_segment == 1:
        return stop
    return min(stop, (tile // blocks.tiles_per_segment + 1) * blocks.tiles_per_segment)


cdef inline ElementRange range_of_tiles(const UnitBlocks *blocks, Py_ssize_t tile, Py_ssize_t stop) noexcept nogil:
    """As many tiles from `tile` on, before `stop`, as make one range: whole segments, or a part of one segment."""
    cdef ElementRange extent = tile_range(blocks, tile)
    cdef ElementRange last = tile_range(blocks, next_range(blocks, tile, stop) - 1)
    extent.count = last.segment + last.count - extent.segment
    extent.end = last.end
    return extent


cdef inline Py_ssize_t run_left(const UnitBlocks *blocks, Py_ssize_t element) noexcept nogil:
    """Elements from this one of a segment to the end of its run."""
    return blocks.length - (element % blocks.length if blocks.runs > 1 else element)


cdef inline const char *element_at(const UnitBlocks *blocks, const Tensor *tensor, const char *unit,
                                   Py_ssize_t segment, Py_ssize_t element) noexcept nogil:
    cdef Py_ssize_t run = 0
    if blocks.runs > 1:
        run = element // blocks.length
        element -= run * blocks.length
    return unit + segment * tensor.strides[2] + run * tensor.strides[3] + element * blocks.loops.size


cdef inline void gather(const UnitBlocks *blocks, const Tensor *tensor, const char *unit, const ElementRange *extent,
                        bint to_double, char *buffer) noexcept nogil:
    """Copy a range into a buffer, contiguous, widened to the accumulation type or to double."""
    cdef Py_ssize_t segment, element, step
    cdef int size = 8 if to_double else blocks.loops.acc_size
    cdef const char *source
    for segment in range(extent.segment, extent.segment + extent.count):
        element = extent.begin
        while element < extent.end:
            step = min(run_left(blocks, element), extent.end - element)
            source = element_at(blocks, tensor, unit, segment, element)
            if to_double:
                blocks.loops.widen64(source, step, <double *> buffer)
            else:
                blocks.loops.widen(source, step, buffer)
            buffer += step * size
            element += step


cdef inline ContiguousTile contiguous_tile(const UnitBlocks *blocks, const Tensor *tensor, const char *unit,
                                           const ElementRange *extent, bint to_double, char *buffer) noexcept nogil:
    """A tile as the loops take it: in place where its runs are contiguous, else gathered in the buffer."""
    cdef ContiguousTile tile
    cdef bint contiguous = extent.count == 1 or tensor.strides[2] == blocks.elements * blocks.loops.size
    cdef int size
    tile.runs = extent.count
    tile.length = extent.end - extent.begin
    if blocks.elements < SHORT_SEGMENT:
        tile.length *= tile.runs
        tile.runs = 1
    if not to_double and blocks.runs == 1 and (tile.runs == extent.count or contiguous):
        tile.loops = blocks.loops
        tile.data = unit + extent.segment * tensor.strides[2] + extent.begin * blocks.loops.size
        tile.stride = tensor.strides[2]
    else:
        gather(blocks, tensor, unit, extent, to_double, buffer)
        size = 8 if to_double else blocks.loops.acc_size
        tile.loops = LOOPS_BY_DTYPE[1] if to_double else LOOPS_BY_DTYPE[blocks.loops.acc_dtype]
        tile.data = buffer
        tile.stride = tile.length * size
    return tile


# ---- the moments of a block, of a unit ----

cdef struct BlockSums:
    double count, shift
    double sum_d      # of d = x - shift
    double sum_dd     # of d * d


cdef inline BlockSums block_sums(const UnitBlocks *blocks, const Tensor *tensor, const char *unit, Py_ssize_t block,
                                 bint to_double, double shift, bint guess, bint centred) noexcept nogil:
    """The sums of a block about a shift; guess: take the shift from the block's first elements."""
    cdef double buffer[TILE]
    cdef double sums[2]
    cdef Py_ssize_t t
    cdef ElementRange extent
    cdef ContiguousTile tile
    cdef BlockSums total
    cdef int terms = CENTRED if centred else terms_of(blocks.finish.norm)
    total.count = 0
    total.sum_d = 0
    total.sum_dd = 0
    for t in range(block * BLOCK_TILES, min((block + 1) * BLOCK_TILES, blocks.tiles)):
        extent = tile_range(blocks, t)
        tile = contiguous_tile(blocks, tensor, unit, &extent, to_double, <char *> buffer)
        if guess:
            shift = tile.loops.probe(tile.data, tile.length)
            guess = False
        tile.loops.sums(tile.data, tile.runs, tile.stride, tile.length, shift, terms,
                        blocks.schedule.prefetch_segments, sums)
        total.count += <double> (tile.runs * tile.length)
        total.sum_d += sums[0]
        total.sum_dd = larger(total.sum_dd, sums[1]) if terms == LARGEST else total.sum_dd + sums[1]
    total.shift = shift
    return total


cdef inline Moments block_moments(const UnitBlocks *blocks, const Tensor *tensor, const char *unit, Py_ssize_t block,
                                  bint centred) noexcept nogil:
    cdef BlockSums s = block_sums(blocks, tensor, unit, block, False, 0, centred, centred)
    cdef bint overflowed
    cdef Moments m
    if centred and shift_is_poor(s.count, s.sum_d, s.sum_dd):
        s = block_sums(blocks, tensor, unit, block, False, blocks.loops.rounded(s.shift + s.sum_d / s.count), False,
                       True)
    overflowed = not (finite(s.sum_d) and finite(s.sum_dd)) or s.sum_dd < tiny_square(&blocks.finish) * s.count
    if overflowed and blocks.loops.acc_dtype == 0:
        s = block_sums(blocks, tensor, unit, block, True, 0, centred, centred)
        if centred and shift_is_poor(s.count, s.sum_d, s.sum_dd):
            s = block_sums(blocks, tensor, unit, block, True, s.shift + s.sum_d / s.count, False, True)
    if centred:
        return moments_from_sums(s.count, s.shift, s.sum_d, s.sum_dd)
    m.count = s.count
    m.largest = blocks.finish.norm == NORM_MAX
    m.mean = 0
    m.lo = 0
    m.m2 = s.sum_dd
    if blocks.finish.norm == NORM_NONE and not finite(s.sum_dd):
        m.m2 = s.sum_dd - s.sum_dd  # infinity makes its unit NaN, as a mean would
    return m


cdef inline Moments unit_moments(const UnitBlocks *blocks, const Tensor *tensor, const char *unit,
                                 bint centred) noexcept nogil:
    cdef Tree tree
    cdef Py_ssize_t block
    if blocks.blocks == 1:
        return block_moments(blocks, tensor, unit, 0, centred)
    tree.pushed = 0
    tree.top = 0
    for block in range(blocks.blocks):
        tree_push(&tree, block_moments(blocks, tensor, unit, block, centred))
    return tree_total(&tree)
