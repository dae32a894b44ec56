# Executors that the rows and segments families share: from moments to statistics to the result.
#
# a) Unit by unit, where there are units enough for the threads: the second pass finds the unit in cache. Else in two
#    sweeps over all blocks of all units. Units of one tile go through the loops of whole rows, many at a time.
# b) All visit the same blocks in the same tree, so they compute the same bits.
# c) What is applied to a range of elements is blocks.apply: a weight per element, or a scalar per segment.
# d) Here and in the other families a plain loop takes the place of prange where one thread runs: entering a parallel
#    region of one thread costs about 0.1 us, which shows in short calls.
from cython.parallel cimport prange
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from cnorm.kernels.job cimport ACT_SLOPES, Job, Moments
from cnorm.kernels.loops cimport Coefficients, RowBatch, store_fence
from cnorm.kernels.moments cimport (
    ElementRange, UnitBlocks, block_moments, merge_partials, next_range, range_of_tiles, unit_moments)
from cnorm.kernels.schedule cimport min_chunk
from cnorm.kernels.statistics cimport rstd_from_m2
from cnorm.kernels.tuning cimport BLOCK_TILES
from cnorm.kernels.units cimport (
    has_element_params, param_set_at, save_statistics, set_given_coefficients, set_unit_coefficients,
    unit_at, units_of)


cdef inline void apply_block(const Job *job, const UnitBlocks *blocks, const Coefficients *coeffs, Py_ssize_t unit,
                             Py_ssize_t block) noexcept nogil:
    cdef const char *x = unit_at(job, &job.x, unit)
    cdef char *y = unit_at(job, &job.y, unit)
    cdef Py_ssize_t tile = block * BLOCK_TILES, stop = min(tile + BLOCK_TILES, blocks.tiles)
    cdef ElementRange extent
    while tile < stop:
        extent = range_of_tiles(blocks, tile, stop)
        blocks.apply(job, blocks, coeffs, unit, x, y, &extent)
        tile = next_range(blocks, tile, stop)


cdef inline void add_unit(const Job *job, const UnitBlocks *blocks, Py_ssize_t unit) noexcept nogil:
    """x = addend[0] + addend[1] for one unit, just before it is normalized: it is in cache then."""
    cdef const char *one = unit_at(job, &job.elements.addend[0], unit)
    cdef const char *other = unit_at(job, &job.elements.addend[1], unit)
    cdef char *x = unit_at(job, &job.x, unit)
    cdef Py_ssize_t run
    for run in range(blocks.runs):
        blocks.loops.add(one + run * job.elements.addend[0].strides[3], other + run * job.elements.addend[1].strides[3],
                         x + run * job.x.strides[3], blocks.length)


# ---- unit by unit ----

cdef inline Moments save_unit_moments(Job *job, const UnitBlocks *blocks, Py_ssize_t unit,
                                      double *rstd) noexcept nogil:
    """The moments of a unit, which are saved with its rstd where the caller wants them."""
    cdef Moments m = unit_moments(blocks, &job.x, unit_at(job, &job.x, unit), job.centred)
    rstd[0] = rstd_from_m2(m.m2, m.count, &job.finish)
    save_statistics(job, unit, m, rstd[0])
    return m


cdef inline void normalize_unit(Job *job, const UnitBlocks *blocks, Py_ssize_t unit) noexcept nogil:
    cdef Coefficients coeffs
    cdef Py_ssize_t block
    cdef Moments m
    cdef double rstd
    if job.stats_given:
        set_given_coefficients(job, blocks, unit, &coeffs)
    else:
        m = save_unit_moments(job, blocks, unit, &rstd)
        set_unit_coefficients(job, blocks, unit, m.mean, m.lo, rstd, &coeffs)
    for block in range(blocks.blocks):
        apply_block(job, blocks, &coeffs, unit, block)
    if blocks.schedule.nontemporal:
        store_fence()


cdef inline void forward_unit(Job *job, const UnitBlocks *blocks, Py_ssize_t unit) noexcept nogil:
    if job.elements.fuse_add:
        add_unit(job, blocks, unit)
    normalize_unit(job, blocks, unit)


cdef inline int forward_units(Job *job, const UnitBlocks *blocks) noexcept nogil:
    """UNIT_BY_UNIT."""
    cdef Py_ssize_t units = units_of(job), i
    if job.head.threads == 1:
        for i in range(units):
            forward_unit(job, blocks, i)
    else:
        for i in prange(units, num_threads=job.head.threads, schedule="guided",
                        chunksize=min_chunk(units, job.head.threads)):
            forward_unit(job, blocks, i)
    return 0


# ---- two sweeps over blocks ----

cdef inline void save_block_moments(const Job *job, const UnitBlocks *blocks, Moments *partials,
                                    Py_ssize_t item) noexcept nogil:
    cdef Py_ssize_t unit = item // blocks.blocks
    partials[item] = block_moments(blocks, &job.x, unit_at(job, &job.x, unit), item - unit * blocks.blocks,
                                   job.centred)


cdef inline int moments_in_blocks(Job *job, const UnitBlocks *blocks) noexcept nogil:
    """Statistics of few, large units."""
    cdef Py_ssize_t units = units_of(job), items = units * blocks.blocks, i
    cdef Moments *partials = <Moments *> malloc(items * sizeof(Moments))
    cdef Moments m
    if partials == NULL:
        return -1
    for i in prange(items, num_threads=job.head.threads, schedule="guided",
                    chunksize=min_chunk(items, job.head.threads)):
        save_block_moments(job, blocks, partials, i)
    for i in range(units):
        m = merge_partials(partials + i * blocks.blocks, blocks.blocks)
        save_statistics(job, i, m, rstd_from_m2(m.m2, m.count, &job.finish))
    free(partials)
    return 0


cdef inline void apply_block_item(const Job *job, const UnitBlocks *blocks, Py_ssize_t item) noexcept nogil:
    cdef Py_ssize_t unit = item // blocks.blocks
    cdef Coefficients coeffs
    set_given_coefficients(job, blocks, unit, &coeffs)
    apply_block(job, blocks, &coeffs, unit, item - unit * blocks.blocks)
    if blocks.schedule.nontemporal:
        store_fence()


cdef inline int forward_two_sweeps(Job *job, const UnitBlocks *blocks) noexcept nogil:
    """TWO_SWEEPS."""
    cdef Py_ssize_t units = units_of(job), items = units * blocks.blocks, i
    cdef double *saved = NULL
    cdef Job given = job[0]
    if job.elements.fuse_add:
        for i in prange(units, num_threads=job.head.threads, schedule="static"):
            add_unit(job, blocks, i)
    if not job.stats_given:
        # the caller may not want every statistic: the sweep that applies does
        saved = <double *> malloc(3 * units * sizeof(double))
        if saved == NULL:
            return -1
        given.mean = saved
        given.lo = saved + units
        given.rstd = saved + 2 * units
        if moments_in_blocks(&given, blocks) < 0:
            free(saved)
            return -1
        for i in range(units):
            if job.mean != NULL:
                job.mean[i] = given.mean[i]
            if job.lo != NULL:
                job.lo[i] = given.lo[i]
            if job.rstd != NULL:
                job.rstd[i] = given.rstd[i]
    for i in prange(items, num_threads=job.head.threads, schedule="guided",
                    chunksize=min_chunk(items, job.head.threads)):
        apply_block_item(&given, blocks, i)
    free(saved)
    return 0


# ---- units of one tile: many in one call of the loops ----

cdef inline void save_row_statistics(Job *job, Py_ssize_t unit, const RowBatch *batch) noexcept nogil:
    cdef size_t bytes = batch.rows * sizeof(double)
    if job.mean != NULL:
        memcpy(job.mean + unit, batch.mean, bytes)
    if job.lo != NULL:
        memcpy(job.lo + unit, batch.lo, bytes)
    if job.m2 != NULL:
        memcpy(job.m2 + unit, batch.m2, bytes)
    if job.rstd != NULL:
        memcpy(job.rstd + unit, batch.rstd, bytes)


cdef inline void fall_back(Job *job, const UnitBlocks *blocks, Py_ssize_t unit) noexcept nogil:
    """A unit by the general path."""
    cdef double rstd
    if job.y.data != NULL:
        normalize_unit(job, blocks, unit)
    else:
        save_unit_moments(job, blocks, unit, &rstd)


cdef inline void take_sets(const Job *job, Py_ssize_t unit, Py_ssize_t bytes, RowBatch *batch) noexcept nogil:
    """Let a batch, whose first row is `unit`, take its rows' sets of parameters of so many bytes. It ends with the last
    set: the next row has the first one again."""
    cdef Py_ssize_t rows = job.elements.units_per_set, number = unit // rows, first = unit - number * rows
    number %= job.elements.param_sets
    batch.coeffs.weights = param_set_at(job.elements.weight, number, bytes)
    batch.coeffs.biases = param_set_at(job.elements.bias, number, bytes)
    batch.rows = min(batch.rows, (job.elements.param_sets - number) * rows - first)
    batch.first_set_rows = min(batch.rows, rows - first)
    batch.set_rows = rows
    batch.set_bytes = bytes


cdef inline void forward_row_batch(Job *job, const UnitBlocks *blocks, Py_ssize_t outer, Py_ssize_t inner,
                                   Py_ssize_t stop) noexcept nogil:
    """Units inner .. stop of one outer index; without a y their moments alone."""
    cdef RowBatch batch
    cdef Py_ssize_t unit = outer * job.shape[1] + inner, i, rows = blocks.schedule.rows_per_pass
    cdef Py_ssize_t bytes = blocks.elements * blocks.loops.acc_size
    cdef Py_ssize_t channel = outer * job.channels.sample_channels
    batch.x_stride = job.x.strides[1]
    batch.y_stride = job.y.strides[1]
    batch.n = blocks.elements
    batch.finish = job.finish
    batch.centred = job.centred
    batch.elementwise = has_element_params(job)
    batch.activation = job.activation
    batch.coeffs.slope = job.slope
    batch.coeffs.low = job.low
    batch.coeffs.high = job.high
    batch.coeffs.bias = 0
    batch.coeffs.nontemporal = blocks.schedule.nontemporal
    batch.coeffs.apart = blocks.schedule.apart
    batch.coeffs.prefetch_bytes = rows * job.x.strides[1]
    batch.coeffs.prefetch_segments = 0  # a row is contiguous
    batch.coeffs.weights = job.elements.weight
    batch.coeffs.biases = job.elements.bias
    batch.coeffs.slopes = job.elements.slopes
    while inner < stop:
        batch.rows = min(rows, stop - inner)
        batch.first_set_rows = batch.rows
        if job.elements.param_sets > 1:
            take_sets(job, unit, bytes, &batch)
        batch.x = job.x.data + outer * job.x.strides[0] + inner * job.x.strides[1]
        batch.y = NULL
        if job.y.data != NULL:
            batch.y = job.y.data + outer * job.y.strides[0] + inner * job.y.strides[1]
        batch.weight = job.channels.weight + channel + inner if job.channels.weight != NULL else NULL
        batch.bias = job.channels.bias + channel + inner if job.channels.bias != NULL else NULL
        batch.slopes = NULL
        if job.activation == ACT_SLOPES and job.channels.slopes != NULL:
            batch.slopes = job.channels.slopes + channel + inner
        if job.elements.fuse_add:
            for i in range(batch.rows):
                add_unit(job, blocks, unit + i)
        blocks.loops.forward_rows(&batch)
        save_row_statistics(job, unit, &batch)
        if batch.any_fallback:
            for i in range(batch.rows):
                if batch.needs_fallback[i]:
                    fall_back(job, blocks, unit + i)
        inner += batch.rows
        unit += batch.rows
    if blocks.schedule.nontemporal:
        store_fence()


cdef inline void row_batch_item(Job *job, const UnitBlocks *blocks, Py_ssize_t item, Py_ssize_t items,
                                Py_ssize_t step) noexcept nogil:
    cdef Py_ssize_t outer = item // items, first = (item - outer * items) * step
    forward_row_batch(job, blocks, outer, first, min(first + step, job.shape[1]))


cdef inline int forward_row_batches(Job *job, const UnitBlocks *blocks) noexcept nogil:
    """ROW_BATCHES."""
    cdef Py_ssize_t rows = blocks.schedule.rows_per_pass, step, items, i
    if job.head.threads == 1:
        for i in range(job.shape[0]):
            forward_row_batch(job, blocks, i, 0, job.shape[1])
        return 0
    step = (min_chunk(units_of(job), job.head.threads) + rows - 1) // rows * rows
    items = (job.shape[1] + step - 1) // step
    for i in prange(job.shape[0] * items, num_threads=job.head.threads, schedule="guided"):
        row_batch_item(job, blocks, i, items, step)
    return 0
