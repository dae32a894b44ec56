# Sequences: the moments of any dtype over trailing axes, or over any axes of which the innermost in memory is one.
#
# a) A unit is the sequence of its elements along the reduced axes; with a selection (a mask, or NaN that is left out),
#    of the selected ones. Its bits follow from that sequence alone: not from strides, nor from what lies between.
# b) The sequence is cut into tiles of TILE elements and blocks of BLOCK_TILES tiles. A tile is converted to double in
#    L1, or of contiguous float64 read in place, and summed by the loops of float64. A block is moments.pxd's: about a
#    shift that its first elements suggest, once more about its mean where that was poor. Blocks merge in the tree of
#    moments.pxd.
# c) Few, large units: threads share the blocks. With a selection, a first pass counts the selected elements of ranges
#    of positions, from which follows where each block begins.
from cython.parallel cimport prange
from libc.stdlib cimport free, malloc

from cnorm.kernels.job cimport FLOAT64, JOB_AXES, ROW_BATCHES, TWO_SWEEPS, Axes, Moments, MomentsJob, Schedule
from cnorm.kernels.loops cimport LOOPS_BY_DTYPE, READ_BY_DTYPE, LoopTable, keep_selected, short_rows_moments
from cnorm.kernels.moments cimport Tree, finite, merge_partials, moments_from_sums, tree_push, tree_total
from cnorm.kernels.schedule cimport min_chunk, schedule_sequences, short_rows_together
from cnorm.kernels.statistics cimport settle_moments, shift_is_poor
from cnorm.kernels.tuning cimport BLOCK_TILES, MOMENT_ROWS, TILE


cdef enum:
    BLOCK_ELEMENTS = BLOCK_TILES * TILE


# ---- where the elements of a unit are ----


cdef struct Cursor:
    # A place in a unit: addresses of an element and of its mask, how many elements of its run are left, and the index
    # along each outer axis.
    const char *x
    const char *mask
    Py_ssize_t left
    bint ended
    Py_ssize_t index[JOB_AXES]


cdef inline void place_cursor(const MomentsJob *job, Py_ssize_t unit, Py_ssize_t element,
                              Cursor *cursor) noexcept nogil:
    """The cursor at an element of a unit."""
    cdef const Axes *axes = &job.kept
    cdef Py_ssize_t i, k, rest
    cursor.x = job.x
    cursor.mask = job.mask
    for i in range(axes.count - 1, -1, -1):
        rest = unit // axes.shape[i]
        k = unit - rest * axes.shape[i]
        cursor.x += k * axes.x[i]
        cursor.mask += k * axes.mask[i]
        unit = rest
    axes = &job.reduced
    cursor.left = 1
    cursor.ended = False
    for i in range(axes.count - 1, -1, -1):
        rest = element // axes.shape[i] if element else 0
        k = element - rest * axes.shape[i]
        cursor.x += k * axes.x[i]
        cursor.mask += k * axes.mask[i]
        cursor.index[i] = k
        if i == axes.count - 1:
            cursor.left = axes.shape[i] - k
        element = rest


cdef inline bint next_run(const MomentsJob *job, Cursor *cursor) noexcept nogil:
    """Go from the end of a run to the next; False where the unit ends."""
    cdef const Axes *axes = &job.reduced
    cdef Py_ssize_t i = axes.count - 1, n
    if i < 1 or cursor.ended:
        return False
    n = axes.shape[i]
    cursor.x -= n * axes.x[i]
    cursor.mask -= n * axes.mask[i]
    cursor.left = n
    cursor.index[i] = 0
    for i in range(axes.count - 2, -1, -1):
        cursor.index[i] += 1
        cursor.x += axes.x[i]
        cursor.mask += axes.mask[i]
        if cursor.index[i] < axes.shape[i]:
            return True
        cursor.index[i] = 0
        cursor.x -= axes.shape[i] * axes.x[i]
        cursor.mask -= axes.shape[i] * axes.mask[i]
    cursor.left = 0
    cursor.ended = True
    return False


cdef inline bint selects(const MomentsJob *job) noexcept nogil:
    """Whether some elements may not count."""
    return job.mask != NULL or job.omit_nan


cdef struct TileData:
    const char *x             # in a buffer, as doubles, or in place
    const LoopTable *loops    # of the type in which they are stored there


cdef inline Py_ssize_t read_tile(const MomentsJob *job, Cursor *cursor, Py_ssize_t wanted, double *buffer,
                                 TileData *tile) noexcept nogil:
    """The next elements of a unit, at most `wanted`, and the cursor behind them; 0 at the unit's end.

    tile: OUT, where they are: in the buffer, or, where the dtype has loops of its own, in place."""
    cdef Py_ssize_t found = 0, n, stride = job.reduced.x[job.reduced.count - 1] if job.reduced.count else 8
    cdef Py_ssize_t mask_stride = job.reduced.mask[job.reduced.count - 1] if job.reduced.count else 0
    tile.x = <const char *> buffer
    tile.loops = LOOPS_BY_DTYPE[<int> FLOAT64]
    if cursor.left >= wanted and stride == LOOPS_BY_DTYPE[job.head.dtype].size and not selects(job) and (
            LOOPS_BY_DTYPE[job.head.dtype].sums != NULL):
        tile.x = cursor.x
        tile.loops = LOOPS_BY_DTYPE[job.head.dtype]
        cursor.x += stride * wanted
        cursor.left -= wanted
        return wanted
    while found < wanted:
        if cursor.left == 0 and not next_run(job, cursor):
            break
        n = min(cursor.left, wanted - found)
        READ_BY_DTYPE[job.head.dtype](cursor.x, stride, n, buffer + found)
        if selects(job):
            found += keep_selected(buffer + found, n, cursor.mask if job.mask != NULL else NULL, mask_stride,
                                   job.omit_nan)
        else:
            found += n
        cursor.x += n * stride
        cursor.mask += n * mask_stride
        cursor.left -= n
    return found


# ---- the moments of a block, of a unit ----


cdef inline Moments next_block(const MomentsJob *job, Cursor *cursor, Py_ssize_t elements) noexcept nogil:
    """The moments of the next elements of a unit, at most `elements`, and the cursor behind them; at the unit's end
    a count of 0."""
    cdef double buffer[TILE]
    cdef double sums[2]
    cdef TileData tile
    cdef Cursor begin
    cdef double shift = 0, sum_d, sum_dd, first
    cdef Py_ssize_t count, n = 0
    cdef int attempt
    if elements > TILE:
        begin = cursor[0]
    for attempt in range(2):
        sum_d = 0
        sum_dd = 0
        count = 0
        while count < elements:
            if attempt == 0 or elements > TILE:  # else the one tile is still there
                n = read_tile(job, cursor, min(<Py_ssize_t> TILE, elements - count), buffer, &tile)
            if n == 0:
                break
            if attempt == 0 and count == 0:
                shift = tile.loops.probe(tile.x, n)
            tile.loops.sums(tile.x, 1, 0, n, shift, True, 0, sums)
            if count == 0 and attempt == 0 and not (finite(sums[0]) and finite(sums[1])):
                tile.loops.widen64(tile.x, 1, &first)
                if finite(first):
                    shift = first  # squares of large numbers overflow; those of their differences may not
                    tile.loops.sums(tile.x, 1, 0, n, shift, True, 0, sums)
            count += n
            sum_d += sums[0]
            sum_dd += sums[1]
            if elements <= TILE:
                break
        if attempt == 1 or count == 0 or not shift_is_poor(<double> count, sum_d, sum_dd):
            break
        shift += sum_d / <double> count
        if elements > TILE:
            cursor[0] = begin
    if count == 0:
        return moments_of_nothing()
    return moments_from_sums(<double> count, shift, sum_d, sum_dd)


cdef inline Moments moments_of_nothing() noexcept nogil:
    cdef Moments m
    m.count = 0
    m.mean = 0
    m.lo = 0
    m.m2 = 0
    m.largest = False
    return m


cdef inline void save_moments(const MomentsJob *job, Py_ssize_t unit, Moments m) noexcept nogil:
    settle_moments(&m.mean, &m.lo, &m.m2)
    job.count[unit] = m.count
    job.mean[unit] = m.mean
    job.lo[unit] = m.lo
    job.m2[unit] = m.m2


cdef inline void sequence_moments(const MomentsJob *job, Py_ssize_t unit) noexcept nogil:
    """The moments of one unit."""
    cdef Cursor cursor
    cdef Tree tree
    cdef Moments m
    cdef Py_ssize_t left = job.elements
    place_cursor(job, unit, 0, &cursor)
    m = next_block(job, &cursor, min(<Py_ssize_t> BLOCK_ELEMENTS, left))
    left -= BLOCK_ELEMENTS
    if left > 0 and m.count == BLOCK_ELEMENTS:
        tree.pushed = 0
        tree.top = 0
        while m.count > 0:
            tree_push(&tree, m)
            if left <= 0:
                break
            m = next_block(job, &cursor, BLOCK_ELEMENTS if selects(job) else min(<Py_ssize_t> BLOCK_ELEMENTS, left))
            if not selects(job):
                left -= BLOCK_ELEMENTS
        m = tree_total(&tree)
    save_moments(job, unit, m)


# ---- two sweeps: threads share the blocks of a unit ----


cdef inline Py_ssize_t count_selected(const MomentsJob *job, Py_ssize_t item, Py_ssize_t blocks) noexcept nogil:
    """Selected elements among BLOCK_ELEMENTS positions of a unit; items count the ranges of each unit in turn."""
    cdef double buffer[TILE]
    cdef Cursor cursor
    cdef Py_ssize_t unit = item // blocks, first = (item - unit * blocks) * BLOCK_ELEMENTS, found = 0, n
    cdef Py_ssize_t left = min(<Py_ssize_t> BLOCK_ELEMENTS, job.elements - first)
    cdef Py_ssize_t stride = job.reduced.x[job.reduced.count - 1] if job.reduced.count else 8
    cdef Py_ssize_t mask_stride = job.reduced.mask[job.reduced.count - 1] if job.reduced.count else 0
    place_cursor(job, unit, first, &cursor)
    while left > 0:
        if cursor.left == 0 and not next_run(job, &cursor):
            break
        n = min(min(cursor.left, left), <Py_ssize_t> TILE)
        READ_BY_DTYPE[job.head.dtype](cursor.x, stride, n, buffer)
        found += keep_selected(buffer, n, cursor.mask if job.mask != NULL else NULL, mask_stride, job.omit_nan)
        cursor.x += n * stride
        cursor.mask += n * mask_stride
        cursor.left -= n
        left -= n
    return found


cdef inline void place_at_selected(const MomentsJob *job, Py_ssize_t unit, const Py_ssize_t *counts, Py_ssize_t element,
                                   Cursor *cursor) noexcept nogil:
    """The cursor at a selected element of a unit; counts: of the unit's ranges of positions."""
    cdef double buffer[TILE]
    cdef TileData tile
    cdef Py_ssize_t position = 0
    while element >= counts[position]:
        element -= counts[position]
        position += 1
    place_cursor(job, unit, position * BLOCK_ELEMENTS, cursor)
    while element > 0:
        element -= read_tile(job, cursor, min(<Py_ssize_t> TILE, element), buffer, &tile)


cdef inline void block_item(const MomentsJob *job, const Py_ssize_t *counts, Moments *partials, Py_ssize_t item,
                            Py_ssize_t blocks) noexcept nogil:
    """The moments of one block; items count the blocks of each unit in turn."""
    cdef Py_ssize_t unit = item // blocks, first = (item - unit * blocks) * BLOCK_ELEMENTS, total = 0, i
    cdef Cursor cursor
    if counts == NULL:
        place_cursor(job, unit, first, &cursor)
        partials[item] = next_block(job, &cursor, min(<Py_ssize_t> BLOCK_ELEMENTS, job.elements - first))
        return
    counts += unit * blocks
    for i in range(blocks):
        total += counts[i]
    if first >= total:
        partials[item] = moments_of_nothing()
        return
    place_at_selected(job, unit, counts, first, &cursor)
    partials[item] = next_block(job, &cursor, min(<Py_ssize_t> BLOCK_ELEMENTS, total - first))


cdef int sequences_in_blocks(MomentsJob *job, Py_ssize_t blocks) noexcept nogil:
    """TWO_SWEEPS."""
    cdef Py_ssize_t items = job.units * blocks, i, n
    cdef Moments *partials = <Moments *> malloc(items * sizeof(Moments))
    cdef Py_ssize_t *counts = NULL
    if partials == NULL:
        return -1
    if selects(job):
        counts = <Py_ssize_t *> malloc(items * sizeof(Py_ssize_t))
        if counts == NULL:
            free(partials)
            return -1
        for i in prange(items, num_threads=job.head.threads, schedule="guided",
                        chunksize=min_chunk(items, job.head.threads)):
            counts[i] = count_selected(job, i, blocks)
    for i in prange(items, num_threads=job.head.threads, schedule="guided",
                    chunksize=min_chunk(items, job.head.threads)):
        block_item(job, counts, partials, i, blocks)
    for i in range(job.units):
        n = blocks
        while n > 1 and partials[i * blocks + n - 1].count == 0:
            n = n - 1
        save_moments(job, i, merge_partials(partials + i * blocks, n))
    free(counts)
    free(partials)
    return 0


# ---- short rows: many in one call of the loops ----


cdef inline void short_rows_item(const MomentsJob *job, Py_ssize_t item, Py_ssize_t items,
                                 Py_ssize_t step) noexcept nogil:
    """The moments of `step` rows, or of what is left of the last kept axis; items count its pieces."""
    cdef unsigned char needs_fallback[MOMENT_ROWS]
    cdef Cursor cursor
    cdef Py_ssize_t row_length = job.kept.shape[job.kept.count - 1] if job.kept.count else 1
    cdef Py_ssize_t stride = job.kept.x[job.kept.count - 1] if job.kept.count else 0
    cdef Py_ssize_t outer = item // items, first = (item - outer * items) * step, unit = outer * row_length + first
    cdef Py_ssize_t left = min(step, row_length - first), most = short_rows_together(job), rows, i
    place_cursor(job, unit, 0, &cursor)
    while left > 0:
        rows = min(most, left)
        if short_rows_moments(job.head.dtype, cursor.x, stride, rows, job.elements, job.mean + unit, job.lo + unit,
                              job.m2 + unit, needs_fallback):
            for i in range(rows):
                if needs_fallback[i]:
                    sequence_moments(job, unit + i)
        for i in range(rows):
            job.count[unit + i] = <double> job.elements
        cursor.x += rows * stride
        unit += rows
        left -= rows


cdef int short_rows(MomentsJob *job) noexcept nogil:
    """ROW_BATCHES."""
    cdef Py_ssize_t length = job.kept.shape[job.kept.count - 1] if job.kept.count else 1, i
    cdef Py_ssize_t step = max(short_rows_together(job), min_chunk(job.units, job.head.threads))
    cdef Py_ssize_t items = (length + step - 1) // step, total = job.units // length * items
    if job.head.threads == 1:
        for i in range(total):
            short_rows_item(job, i, items, step)
    else:
        for i in prange(total, num_threads=job.head.threads, schedule="guided",
                        chunksize=min_chunk(total, job.head.threads)):
            short_rows_item(job, i, items, step)
    return 0


cdef int sequences_moments(MomentsJob *job) noexcept nogil:
    """count, mean, lo and m2 of each unit."""
    cdef Py_ssize_t blocks = max(<Py_ssize_t> 1, (job.elements + BLOCK_ELEMENTS - 1) // BLOCK_ELEMENTS), i
    cdef Schedule schedule = schedule_sequences(job, blocks)
    if job.head.schedule_only != NULL:
        job.head.schedule_only[0] = schedule
        return 0
    if schedule.strategy == ROW_BATCHES:
        return short_rows(job)
    if schedule.strategy == TWO_SWEEPS:
        return sequences_in_blocks(job, blocks)
    if job.head.threads == 1:
        for i in range(job.units):
            sequence_moments(job, i)
    else:
        for i in prange(job.units, num_threads=job.head.threads, schedule="guided",
                        chunksize=min_chunk(job.units, job.head.threads)):
            sequence_moments(job, i)
    return 0
