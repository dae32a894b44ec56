# Segments, backward: the gradients of BatchNorm, GroupNorm and InstanceNorm, channels first.
#
# a) A partial sum holds N_GRAD_SUMS numbers: the sums of g, of g * d, of d (float64 only) and of the slope's
#    gradient, where d = x - mean_hi. A unit has one per block, or one per segment where segments have weights
#    of their own.
# b) The partials of a unit give the gradients of its parameters and its two weighted sums (SumsMode in
#    job.pxd), from which follow the coefficients of the gradient of the input.
# c) Unit by unit, so that the second pass finds the unit in cache; in batches of units that lie side by side;
#    or in two sweeps over all partials. All add up in one order, so they compute the same bits.
from cython.parallel cimport prange
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from cnorm.kernels.coefficients cimport (
    N_GRAD_SUMS, PASS_BACKWARD, PASS_SUMS, ChannelValues, coefficients, split_means)
from cnorm.kernels.job cimport (
    NORM_NONE, SUMS_GIVEN, SUMS_INTERNAL, SUMS_ONLY, TWO_SWEEPS, UNIT_BATCHES, Job, has_slopes)
from cnorm.kernels.loops cimport Coefficients, store_fence
from cnorm.kernels.moments cimport (
    ContiguousTile, ElementRange, UnitBlocks, contiguous_tile, element_at, gather, next_range,
    range_of_tiles, run_left, tile_range, unit_blocks)
from cnorm.kernels.schedule cimport min_chunk, schedule_segments_backward
from cnorm.kernels.segments_apply cimport (
    UnitBatch, bind_batch, channel_of, channel_values, has_short_segments, segment_batch_coefficients,
    set_channel)
from cnorm.kernels.statistics cimport gdev_from_norm
from cnorm.kernels.tuning cimport BATCH_UNITS, BLOCK_TILES, SHORT_SEGMENT, STACK_PARTIALS, TILE
from cnorm.kernels.units cimport set_backward_coefficients, set_given_coefficients, unit_at, units_of


cdef inline Py_ssize_t partials_of_unit(const Job *job, const UnitBlocks *blocks) noexcept nogil:
    """Partial sums of a unit: one per segment (by_segment), or one per block."""
    return blocks.segments if job.channels.by_segment else blocks.blocks


cdef inline Py_ssize_t first_tile(const Job *job, const UnitBlocks *blocks,
                                  Py_ssize_t partial) noexcept nogil:
    """The first tile of a partial."""
    return partial * (blocks.tiles_per_segment if job.channels.by_segment else BLOCK_TILES)


cdef inline Py_ssize_t last_tile(const Job *job, const UnitBlocks *blocks, Py_ssize_t partial) noexcept nogil:
    """The tile after the last one of a partial."""
    if job.channels.by_segment:
        return first_tile(job, blocks, partial) + blocks.tiles_per_segment
    return min(first_tile(job, blocks, partial) + BLOCK_TILES, blocks.tiles)


# ---- sums of one partial, and the gradient over its elements ----


cdef void partial_grad_sums(const Job *job, const UnitBlocks *blocks, const Coefficients *unit_coeffs,
                            Py_ssize_t unit, Py_ssize_t partial, double *sums) noexcept nogil:
    """sums[N_GRAD_SUMS] over the tiles of one partial. Tiles are read in place where x and dy allow it, else
    gathered in the accumulation type."""
    cdef double x_buffer[TILE]
    cdef double dy_buffer[TILE]
    cdef const char *x = unit_at(job, &job.x, unit)
    cdef const char *dy = unit_at(job, &job.dy, unit)
    cdef Coefficients coeffs = unit_coeffs[0]
    cdef Py_ssize_t tile
    cdef ElementRange extent
    cdef ContiguousTile x_tile, dy_tile
    memset(sums, 0, N_GRAD_SUMS * sizeof(double))
    set_channel(job, &coeffs, channel_of(job, unit, partial))
    for tile in range(first_tile(job, blocks, partial), last_tile(job, blocks, partial)):
        extent = tile_range(blocks, tile)
        x_tile = contiguous_tile(blocks, &job.x, x, &extent, False, <char *> x_buffer)
        dy_tile = contiguous_tile(blocks, &job.dy, dy, &extent, False, <char *> dy_buffer)
        if x_tile.loops != dy_tile.loops:  # only one was gathered, but the loops take both in one type
            if x_tile.data != <char *> x_buffer:
                gather(blocks, &job.x, x, &extent, False, <char *> x_buffer)
                x_tile = dy_tile
                x_tile.data = <char *> x_buffer
            else:
                gather(blocks, &job.dy, dy, &extent, False, <char *> dy_buffer)
                dy_tile = x_tile
                dy_tile.data = <char *> dy_buffer
        x_tile.loops.grad_sums(x_tile.data, dy_tile.data, x_tile.runs, x_tile.stride, dy_tile.stride,
                               x_tile.length, &coeffs, job.activation, sums)


cdef void partial_grad_apply(const Job *job, const UnitBlocks *blocks, const Coefficients *unit_coeffs,
                             Py_ssize_t unit, Py_ssize_t partial) noexcept nogil:
    """The gradient of the input over the tiles of one partial."""
    cdef const char *x = unit_at(job, &job.x, unit)
    cdef const char *dy = unit_at(job, &job.dy, unit)
    cdef char *dx = unit_at(job, &job.y, unit)
    cdef Coefficients coeffs = unit_coeffs[0]
    cdef Py_ssize_t tile = first_tile(job, blocks, partial), stop = last_tile(job, blocks, partial)
    cdef Py_ssize_t segment, element, step, size = blocks.loops.size
    cdef ElementRange extent
    set_channel(job, &coeffs, channel_of(job, unit, partial))
    while tile < stop:
        extent = range_of_tiles(blocks, tile, stop)
        if blocks.runs == 1:
            blocks.loops.grad_apply(x + extent.segment * job.x.strides[2] + extent.begin * size,
                                    dy + extent.segment * job.dy.strides[2] + extent.begin * size,
                                    dx + extent.segment * job.y.strides[2] + extent.begin * size,
                                    extent.count, job.x.strides[2], job.dy.strides[2], job.y.strides[2],
                                    extent.end - extent.begin, &coeffs, job.activation)
        else:
            for segment in range(extent.segment, extent.segment + extent.count):
                element = extent.begin
                while element < extent.end:
                    step = min(run_left(blocks, element), extent.end - element)
                    blocks.loops.grad_apply(element_at(blocks, &job.x, x, segment, element),
                                            element_at(blocks, &job.dy, dy, segment, element),
                                            <char *> element_at(blocks, &job.y, dx, segment, element),
                                            1, 0, 0, 0, step, &coeffs, job.activation)
                    element += step
        tile = next_range(blocks, tile, stop)


# ---- from the sums of a unit to its coefficients ----


cdef inline bint mean_lo_from_sums(const Job *job, const UnitBlocks *blocks) noexcept nogil:
    """Whether mean_lo comes out of the sums of d: float64 stores the mean in one number, and the sum of x -
    mean_hi over the unit says what it lacks."""
    return (blocks.loops.acc_size == 8 and job.centred and not job.stats_given
            and job.channels.sums_mode == SUMS_INTERNAL)


cdef inline Py_ssize_t grad_of(const Job *job, Py_ssize_t unit, Py_ssize_t segment) noexcept nogil:
    """by_segment: the index of a segment's gradient, in the order of the parameters; each outer index has its own."""
    cdef Py_ssize_t outer = unit // job.shape[1], inner = unit - outer * job.shape[1]
    return (outer * job.shape[1] * job.shape[2] + inner * job.channels.inner_channels
            + segment * job.channels.segment_channels)


cdef void segment_totals(const Job *job, Coefficients *coeffs, Py_ssize_t unit, const double *partials,
                         Py_ssize_t segments, double *sum_g, double *sum_gdev) noexcept nogil:
    """by_segment: the gradients of each segment's parameters, and the unit's two sums weighted by segment.

    partials: (segments, N_GRAD_SUMS)."""
    cdef Py_ssize_t segment, channel = channel_of(job, unit, 0), out = grad_of(job, unit, 0)
    cdef const double *sums
    cdef double g, gdev, weight
    sum_g[0] = 0
    sum_gdev[0] = 0
    for segment in range(segments):
        sums = partials + N_GRAD_SUMS * segment
        g = sums[0]
        gdev = sums[1] - coeffs.mean_lo * g
        job.channels.grad_bias[out] = g
        job.channels.grad_weight[out] = coeffs.rstd * gdev
        if has_slopes(job.activation):
            job.channels.grad_slope[out] = sums[3]
        weight = job.channels.weight[channel] if job.channels.weight != NULL else 1
        sum_g[0] += weight * g
        sum_gdev[0] += weight * gdev
        channel += job.channels.segment_channels
        out += job.channels.segment_channels


cdef void unit_totals(const Job *job, const UnitBlocks *blocks, Coefficients *coeffs, Py_ssize_t unit,
                      const double *partials, double *sum_g, double *sum_gdev) noexcept nogil:
    """The gradients of a unit's parameters, and its two weighted sums: of g and of g * (x - mean).

    partials: (partials of a unit, N_GRAD_SUMS)."""
    cdef Py_ssize_t count = partials_of_unit(job, blocks), partial
    cdef double g = 0, gdev = 0, d = 0, slope = 0, weight
    if mean_lo_from_sums(job, blocks):
        for partial in range(count):
            d += partials[N_GRAD_SUMS * partial + 2]
        coeffs.mean_lo = d / <double> (blocks.segments * blocks.elements)
    if job.channels.by_segment:
        segment_totals(job, coeffs, unit, partials, blocks.segments, sum_g, sum_gdev)
        return
    for partial in range(count):
        g += partials[N_GRAD_SUMS * partial]
        gdev += partials[N_GRAD_SUMS * partial + 1]
        slope += partials[N_GRAD_SUMS * partial + 3]
    gdev -= coeffs.mean_lo * g
    job.channels.grad_bias[unit] = g
    job.channels.grad_weight[unit] = coeffs.rstd * gdev
    if has_slopes(job.activation):
        job.channels.grad_slope[unit] = slope
    weight = job.channels.weight[channel_of(job, unit, 0)] if job.channels.weight != NULL else 1
    sum_g[0] = weight * g
    sum_gdev[0] = weight * gdev


cdef inline void finish_unit(const Job *job, const UnitBlocks *blocks, Coefficients *coeffs, Py_ssize_t unit,
                             const double *partials) noexcept nogil:
    """The coefficients of the gradient of a unit's input, from its partials or from given sums."""
    cdef double sum_g, sum_gdev, count = <double> (blocks.segments * blocks.elements)
    if job.channels.sums_mode == SUMS_GIVEN:
        sum_g = job.channels.sums[2 * unit]
        sum_gdev = job.channels.sums[2 * unit + 1]
        count = job.channels.count
    else:
        unit_totals(job, blocks, coeffs, unit, partials, &sum_g, &sum_gdev)
        if job.channels.sums != NULL:
            job.channels.sums[2 * unit] = sum_g
            job.channels.sums[2 * unit + 1] = sum_gdev
        if job.finish.norm != NORM_NONE:
            sum_gdev = gdev_from_norm(sum_gdev, sum_g, coeffs.rstd, count, &job.finish)
    set_backward_coefficients(job, coeffs, count, sum_g, sum_gdev)


# ---- UNIT_BY_UNIT ----


cdef void segment_batch_grad_sums(const Job *job, const UnitBlocks *blocks, const Coefficients *unit_coeffs,
                                  Py_ssize_t unit, double *partials) noexcept nogil:
    """The partials (segments, N_GRAD_SUMS) of a unit of short segments, as by partial_grad_sums; those of sums that the
    call does not take are left as they are."""
    cdef UnitBatch batch
    cdef const char *x = unit_at(job, &job.x, unit)
    cdef const char *dy = unit_at(job, &job.dy, unit)
    cdef Py_ssize_t first = 0, n, i, k
    while first < blocks.segments:
        n = min(<Py_ssize_t> BATCH_UNITS, blocks.segments - first)
        segment_batch_coefficients(job, unit_coeffs, channel_of(job, unit, first), n, PASS_SUMS, &batch)
        blocks.loops.grad_sums_batch(x + first * job.x.strides[2], dy + first * job.dy.strides[2], 1, 0, 0, n,
                                     job.x.strides[2], job.dy.strides[2], blocks.elements, &batch.coeffs,
                                     job.activation, batch.sums)
        for k in range(N_GRAD_SUMS):
            if k < 2 or (k == 2 and blocks.loops.acc_size == 8) or (k == 3 and has_slopes(job.activation)):
                for i in range(n):
                    partials[N_GRAD_SUMS * (first + i) + k] = 0 + batch.sums[k * BATCH_UNITS + i]
        first += n


cdef void segment_batch_grad_apply(const Job *job, const UnitBlocks *blocks, const Coefficients *unit_coeffs,
                                   Py_ssize_t unit) noexcept nogil:
    """The gradient of the input over a unit of short segments."""
    cdef UnitBatch batch
    cdef const char *x = unit_at(job, &job.x, unit)
    cdef const char *dy = unit_at(job, &job.dy, unit)
    cdef char *dx = unit_at(job, &job.y, unit)
    cdef Py_ssize_t first = 0, n
    while first < blocks.segments:
        n = min(<Py_ssize_t> BATCH_UNITS, blocks.segments - first)
        segment_batch_coefficients(job, unit_coeffs, channel_of(job, unit, first), n, PASS_BACKWARD, &batch)
        blocks.loops.grad_apply_batch(x + first * job.x.strides[2], dy + first * job.dy.strides[2],
                                      dx + first * job.y.strides[2], 1, 0, 0, 0, n, job.x.strides[2],
                                      job.dy.strides[2], job.y.strides[2], blocks.elements, &batch.coeffs,
                                      job.activation)
        first += n


cdef inline void unit_backward_coefficients(const Job *job, const UnitBlocks *blocks, Py_ssize_t unit,
                                            double *partials, Coefficients *coeffs) noexcept nogil:
    """The sums of a unit, the gradients of its parameters, and the coefficients of the gradient of its input.

    partials: workspace of (partials of a unit, N_GRAD_SUMS), or NULL where STACK_PARTIALS are enough."""
    cdef double stack[N_GRAD_SUMS * STACK_PARTIALS]
    cdef Py_ssize_t partial
    if partials == NULL:
        partials = stack
    set_given_coefficients(job, blocks, unit, coeffs)
    if has_short_segments(job, blocks) and blocks.elements >= SHORT_SEGMENT:
        segment_batch_grad_sums(job, blocks, coeffs, unit, partials)
    else:
        for partial in range(partials_of_unit(job, blocks)):
            partial_grad_sums(job, blocks, coeffs, unit, partial, partials + N_GRAD_SUMS * partial)
    finish_unit(job, blocks, coeffs, unit, partials)


cdef void backward_unit(const Job *job, const UnitBlocks *blocks, Py_ssize_t unit,
                        double *partials) noexcept nogil:
    """All gradients of one unit, the input's while the unit is in cache."""
    cdef Coefficients coeffs
    cdef Py_ssize_t partial
    unit_backward_coefficients(job, blocks, unit, partials, &coeffs)
    if job.channels.sums_mode == SUMS_ONLY:
        return
    if has_short_segments(job, blocks):
        segment_batch_grad_apply(job, blocks, &coeffs, unit)
    else:
        for partial in range(partials_of_unit(job, blocks)):
            partial_grad_apply(job, blocks, &coeffs, unit, partial)
    if blocks.schedule.nontemporal:
        store_fence()


cdef inline void backward_unit_item(const Job *job, const UnitBlocks *blocks, Py_ssize_t unit,
                                    double *partials, Py_ssize_t count) noexcept nogil:
    """One unit in a workspace of its own: `count` partials of each unit, or NULL."""
    if partials != NULL:
        partials += N_GRAD_SUMS * count * unit
    backward_unit(job, blocks, unit, partials)


cdef int segments_backward_units(const Job *job, const UnitBlocks *blocks, Py_ssize_t count) noexcept nogil:
    """UNIT_BY_UNIT. The `count` partials of a unit are on the stack where they are few, else on the heap."""
    cdef Py_ssize_t units = units_of(job), i
    cdef Py_ssize_t workspaces = 1 if job.head.threads == 1 else units
    cdef double *partials = NULL
    if count > STACK_PARTIALS:
        partials = <double *> malloc(N_GRAD_SUMS * count * workspaces * sizeof(double))
        if partials == NULL:
            return -1
    if job.head.threads == 1:
        for i in range(units):
            backward_unit(job, blocks, i, partials)
    else:
        for i in prange(units, num_threads=job.head.threads, schedule="guided",
                        chunksize=min_chunk(units, job.head.threads)):
            backward_unit_item(job, blocks, i, partials, count)
    free(partials)
    return 0


# ---- UNIT_BATCHES ----


cdef inline void segments_grad_sums(const Job *job, const UnitBlocks *blocks, Py_ssize_t unit, Py_ssize_t n,
                                    Py_ssize_t segment, Py_ssize_t segments, UnitBatch *batch) noexcept nogil:
    """Add the sums of some segments, which share their parameters, of n units to batch.sums, in one call."""
    cdef ChannelValues values
    cdef Py_ssize_t i, k
    if job.activation:
        values = channel_values(job, channel_of(job, unit, segment))
        coefficients(PASS_SUMS, n, batch.mean_lo, batch.rstd, &values, NULL, NULL, 0, True, &batch.coeffs)
    blocks.loops.grad_sums_batch(unit_at(job, &job.x, unit) + segment * job.x.strides[2],
                                 unit_at(job, &job.dy, unit) + segment * job.dy.strides[2], segments,
                                 job.x.strides[2], job.dy.strides[2], n, job.x.strides[1], job.dy.strides[1],
                                 blocks.elements, &batch.coeffs, job.activation, batch.sums)
    for k in range(N_GRAD_SUMS):
        for i in range(n):
            batch.sums[k * BATCH_UNITS + i] = 0 + batch.sums[k * BATCH_UNITS + i]


cdef void segment_grad_sums(const Job *job, const UnitBlocks *blocks, Py_ssize_t unit, Py_ssize_t n,
                            Py_ssize_t segment, UnitBatch *batch) noexcept nogil:
    """by_segment: batch.sums of one segment of each of n units."""
    cdef double partial[N_GRAD_SUMS]
    cdef Coefficients coeffs
    cdef Py_ssize_t i, k
    memset(batch.sums, 0, sizeof(batch.sums))
    if blocks.tiles_per_segment == 1 and blocks.elements >= SHORT_SEGMENT:
        segments_grad_sums(job, blocks, unit, n, segment, 1, batch)
        return
    for i in range(n):
        set_given_coefficients(job, blocks, unit + i, &coeffs)
        partial_grad_sums(job, blocks, &coeffs, unit + i, segment, partial)
        for k in range(N_GRAD_SUMS):
            batch.sums[k * BATCH_UNITS + i] = partial[k]


cdef void unit_batch_segment_totals(const Job *job, const UnitBlocks *blocks, Py_ssize_t unit, Py_ssize_t n,
                                    UnitBatch *batch) noexcept nogil:
    """by_segment: the gradients of the parameters of all segments of n units, and in batch.sums the units' weighted
    sums, bit for bit as by unit_totals. The gradients hold the sums of g and of g * d until all of d are known."""
    cdef double d[BATCH_UNITS]
    cdef double total[2 * BATCH_UNITS]
    cdef double *grad_weight
    cdef double *grad_bias
    cdef const double *weight
    cdef double count = <double> (blocks.segments * blocks.elements)
    cdef Py_ssize_t segment, out = grad_of(job, unit, 0), channel, i
    memset(d, 0, sizeof(d))
    memset(total, 0, sizeof(total))
    for segment in range(blocks.segments):
        segment_grad_sums(job, blocks, unit, n, segment, batch)
        memcpy(job.channels.grad_bias + out, batch.sums, n * sizeof(double))
        memcpy(job.channels.grad_weight + out, batch.sums + BATCH_UNITS, n * sizeof(double))
        if has_slopes(job.activation):
            memcpy(job.channels.grad_slope + out, batch.sums + 3 * BATCH_UNITS, n * sizeof(double))
        for i in range(n):
            d[i] += batch.sums[2 * BATCH_UNITS + i]
        out += job.channels.segment_channels
    if mean_lo_from_sums(job, blocks):
        for i in range(n):
            batch.mean_lo[i] = d[i] / count
    channel = channel_of(job, unit, 0)
    grad_bias = job.channels.grad_bias + grad_of(job, unit, 0)
    grad_weight = job.channels.grad_weight + grad_of(job, unit, 0)
    for segment in range(blocks.segments):
        weight = job.channels.weight + channel if job.channels.weight != NULL else NULL
        blocks.loops.set_totals(grad_bias, grad_weight, weight, True, batch.mean_lo, n, total, total + BATCH_UNITS)
        for i in range(n):
            grad_weight[i] *= batch.rstd[i]
        channel += job.channels.segment_channels
        grad_bias += job.channels.segment_channels
        grad_weight += job.channels.segment_channels
    memcpy(batch.sums, total, sizeof(total))


cdef void unit_batch_grad_sums(const Job *job, const UnitBlocks *blocks, Py_ssize_t unit, Py_ssize_t n,
                               UnitBatch *batch) noexcept nogil:
    """batch.sums (N_GRAD_SUMS, BATCH_UNITS) of n units: in one call where each is one tile, else by unit."""
    cdef double partials[N_GRAD_SUMS]
    cdef double sums[N_GRAD_SUMS]
    cdef Coefficients coeffs
    cdef Py_ssize_t i, k, partial
    memset(batch.sums, 0, sizeof(batch.sums))
    if blocks.tiles == 1 and (blocks.segments == 1 or blocks.elements >= SHORT_SEGMENT):
        segments_grad_sums(job, blocks, unit, n, 0, blocks.segments, batch)
        return
    for i in range(n):
        set_given_coefficients(job, blocks, unit + i, &coeffs)
        memset(sums, 0, sizeof(sums))
        for partial in range(partials_of_unit(job, blocks)):
            partial_grad_sums(job, blocks, &coeffs, unit + i, partial, partials)
            for k in range(N_GRAD_SUMS):
                sums[k] += partials[k]
        for k in range(N_GRAD_SUMS):
            batch.sums[k * BATCH_UNITS + i] = sums[k]


cdef void unit_batch_totals(const Job *job, const UnitBlocks *blocks, Py_ssize_t unit, Py_ssize_t n,
                            UnitBatch *batch) noexcept nogil:
    """The gradients of the parameters of n units, and in batch.sums the units' weighted sums."""
    cdef Py_ssize_t i, channel = channel_of(job, unit, 0)
    cdef double count = <double> (blocks.segments * blocks.elements)
    cdef double *g = batch.sums
    cdef double *gdev = g + BATCH_UNITS
    cdef const double *d = gdev + BATCH_UNITS
    cdef const double *slope = d + BATCH_UNITS
    cdef double *grad_weight = job.channels.grad_weight + unit
    unit_batch_grad_sums(job, blocks, unit, n, batch)
    if mean_lo_from_sums(job, blocks):
        for i in range(n):
            batch.mean_lo[i] = d[i] / count
    memcpy(job.channels.grad_bias + unit, g, n * sizeof(double))
    for i in range(n):
        gdev[i] -= batch.mean_lo[i] * g[i]
        grad_weight[i] = batch.rstd[i] * gdev[i]
    if has_slopes(job.activation):
        memcpy(job.channels.grad_slope + unit, slope, n * sizeof(double))
    if job.channels.weight != NULL:
        for i in range(n):
            g[i] *= job.channels.weight[channel + i]
            gdev[i] *= job.channels.weight[channel + i]
    if job.finish.norm != NORM_NONE:
        for i in range(n):
            gdev[i] = gdev_from_norm(gdev[i], g[i], batch.rstd[i], count, &job.finish)
            g[i] = 0


cdef inline void grad_apply_unit_batch(const Job *job, const UnitBlocks *blocks, Py_ssize_t unit, Py_ssize_t n,
                                       Py_ssize_t segment, Py_ssize_t segments, UnitBatch *batch) noexcept nogil:
    """The gradient of the input over some segments of n units."""
    blocks.loops.grad_apply_batch(
        unit_at(job, &job.x, unit) + segment * job.x.strides[2],
        unit_at(job, &job.dy, unit) + segment * job.dy.strides[2],
        unit_at(job, &job.y, unit) + segment * job.y.strides[2], segments, job.x.strides[2], job.dy.strides[2],
        job.y.strides[2], n, job.x.strides[1], job.dy.strides[1], job.y.strides[1], blocks.elements, &batch.coeffs,
        job.activation)


cdef void backward_unit_batch(const Job *job, const UnitBlocks *blocks, Py_ssize_t unit,
                              Py_ssize_t n) noexcept nogil:
    """All gradients of n units of one outer index, bit for bit as by backward_unit."""
    cdef UnitBatch batch
    cdef Py_ssize_t segment
    cdef double count = <double> (blocks.segments * blocks.elements)
    cdef double *g = batch.sums
    cdef ChannelValues values = channel_values(job, channel_of(job, unit, 0))
    bind_batch(&batch)
    memcpy(batch.rstd, job.rstd + unit, n * sizeof(double))
    batch.coeffs.shifted = split_means(blocks.loops, job.finish.eps, n, job.mean + unit,
                                       job.lo + unit if job.lo != NULL else NULL, batch.rstd, batch.mean_hi,
                                       batch.mean_lo)
    if job.channels.by_segment:
        unit_batch_segment_totals(job, blocks, unit, n, &batch)
    else:
        unit_batch_totals(job, blocks, unit, n, &batch)
    coefficients(PASS_BACKWARD, n, batch.mean_lo, batch.rstd, &values, NULL if job.stats_given else g, g + BATCH_UNITS,
                 count, True, &batch.coeffs)
    if not job.channels.by_segment:
        grad_apply_unit_batch(job, blocks, unit, n, 0, blocks.segments, &batch)
        return
    for segment in range(blocks.segments):
        values = channel_values(job, channel_of(job, unit, segment))
        coefficients(PASS_SUMS, n, batch.mean_lo, batch.rstd, &values, NULL, NULL, 0, True, &batch.coeffs)
        grad_apply_unit_batch(job, blocks, unit, n, segment, 1, &batch)


cdef inline void backward_batch_item(const Job *job, const UnitBlocks *blocks,
                                     Py_ssize_t item) noexcept nogil:
    """One batch of units; items count the batches of the first outer index, then of the next."""
    cdef Py_ssize_t size = blocks.schedule.units_per_batch, batches = (job.shape[1] + size - 1) // size
    cdef Py_ssize_t outer = item // batches, first = (item - outer * batches) * size
    backward_unit_batch(job, blocks, outer * job.shape[1] + first, min(size, job.shape[1] - first))


cdef int segments_backward_batches(const Job *job, const UnitBlocks *blocks) noexcept nogil:
    """UNIT_BATCHES."""
    cdef Py_ssize_t size = blocks.schedule.units_per_batch, i
    cdef Py_ssize_t items = job.shape[0] * ((job.shape[1] + size - 1) // size)
    if job.head.threads == 1:
        for i in range(items):
            backward_batch_item(job, blocks, i)
    else:
        for i in prange(items, num_threads=job.head.threads, schedule="guided",
                        chunksize=min_chunk(items, job.head.threads)):
            backward_batch_item(job, blocks, i)
    return 0


# ---- TWO_SWEEPS ----


cdef inline void grad_sums_item(const Job *job, const UnitBlocks *blocks, double *partials, Py_ssize_t item,
                                Py_ssize_t count) noexcept nogil:
    """The sums of one partial; items count the `count` partials of the first unit, then of the next."""
    cdef Py_ssize_t unit = item // count
    cdef Coefficients coeffs
    set_given_coefficients(job, blocks, unit, &coeffs)
    partial_grad_sums(job, blocks, &coeffs, unit, item - unit * count, partials + N_GRAD_SUMS * item)


cdef inline void grad_apply_item(const Job *job, const UnitBlocks *blocks, const Coefficients *coeffs,
                                 Py_ssize_t item, Py_ssize_t count) noexcept nogil:
    """The gradient of the input over one partial, with the coefficients of its unit."""
    cdef Py_ssize_t unit = item // count
    partial_grad_apply(job, blocks, coeffs + unit, unit, item - unit * count)
    if blocks.schedule.nontemporal and job.head.threads > 1:
        store_fence()


cdef int segments_backward_two_sweeps(const Job *job, const UnitBlocks *blocks,
                                      Py_ssize_t count) noexcept nogil:
    """TWO_SWEEPS: the sums of all units, `count` partials each, then the gradients of the input."""
    cdef Py_ssize_t units = units_of(job), items = units * count, i
    cdef Coefficients *coeffs = <Coefficients *> malloc(units * sizeof(Coefficients))
    cdef double *partials = <double *> malloc(N_GRAD_SUMS * items * sizeof(double))
    if coeffs == NULL or partials == NULL:
        free(coeffs)
        free(partials)
        return -1
    if job.channels.sums_mode != SUMS_GIVEN:
        for i in prange(items, num_threads=job.head.threads, use_threads_if=job.head.threads > 1, schedule="guided",
                        chunksize=min_chunk(items, job.head.threads)):
            grad_sums_item(job, blocks, partials, i, count)
    for i in range(units):
        set_given_coefficients(job, blocks, i, coeffs + i)
        finish_unit(job, blocks, coeffs + i, i, partials + N_GRAD_SUMS * count * i)
    if job.channels.sums_mode != SUMS_ONLY:
        for i in prange(items, num_threads=job.head.threads, use_threads_if=job.head.threads > 1, schedule="guided",
                        chunksize=min_chunk(items, job.head.threads)):
            grad_apply_item(job, blocks, coeffs, i, count)
        if blocks.schedule.nontemporal and job.head.threads == 1:  # once: a fence waits until all lines are written
            store_fence()
    free(partials)
    free(coeffs)
    return 0


cdef int segments_backward(Job *job) noexcept nogil:
    """The gradients of the input (y) and, per unit or per segment, of the parameters."""
    cdef UnitBlocks blocks = unit_blocks(job, job.channels.by_segment)
    cdef Py_ssize_t count = partials_of_unit(job, &blocks)
    schedule_segments_backward(job, &blocks, count)
    if job.head.schedule_only != NULL:
        job.head.schedule_only[0] = blocks.schedule
        return 0
    if blocks.schedule.strategy == TWO_SWEEPS:
        return segments_backward_two_sweeps(job, &blocks, count)
    if blocks.schedule.strategy == UNIT_BATCHES:
        return segments_backward_batches(job, &blocks)
    return segments_backward_units(job, &blocks, count)
