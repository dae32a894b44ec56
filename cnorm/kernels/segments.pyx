# Segments: a scalar weight per segment. BatchNorm, GroupNorm, InstanceNorm, channels first.
#
# BatchNorm: a unit is a channel, a segment a sample of it (one weight per unit).
# GroupNorm: a unit is a group of one sample, a segment a channel of it (a weight per segment).
from cython.parallel cimport prange
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from cnorm.kernels.coefficients cimport (
    N_GRAD_SUMS, PASS_BACKWARD, PASS_FORWARD, PASS_SUMS, ChannelValues, coefficients, split_means)
from cnorm.kernels.job cimport (
    GIVEN_BATCHES, GIVEN_IN_ORDER, ROW_BATCHES, SUMS_GIVEN, SUMS_INTERNAL, SUMS_ONLY, TWO_SWEEPS,
    UNIT_BATCHES, Job, Moments)
from cnorm.kernels.loops cimport CoefficientArrays, Coefficients, store_fence
from cnorm.kernels.moments cimport (
    ContiguousTile, ElementRange, UnitBlocks, contiguous_tile, element_at, gather, next_range,
    range_of_tiles, tile_range, unit_blocks, unit_moments)
from cnorm.kernels.schedule cimport (
    min_chunk, schedule_segments_backward, schedule_segments_moments, schedule_units_forward)
from cnorm.kernels.segments_apply cimport (
    UnitBatch, bind_batch, channel_of, channel_values, has_short_segments, segment_apply,
    segment_batch_coefficients, set_channel)
from cnorm.kernels.statistics cimport dev_coeff_from_sum, grad_offset_from_sum, rstd_from_variance
from cnorm.kernels.tuning cimport BATCH_UNITS, BLOCK_TILES, SHORT_SEGMENT, STACK_DOUBLES, STACK_PARTIALS, TILE
from cnorm.kernels.unit_sweeps cimport (
    forward_row_batches, forward_two_sweeps, forward_units, moments_in_blocks, save_unit_moments)
from cnorm.kernels.units cimport given_coefficients, save_statistics, unit_at, units_of
from cnorm.kernels.workspace cimport workspace_alloc, workspace_free


cdef void forward_unit_batch(Job *job, const UnitBlocks *blocks, Py_ssize_t first,
                             Py_ssize_t stop) noexcept nogil:
    cdef UnitBatch batch
    cdef Moments m
    cdef double mean[BATCH_UNITS]
    cdef double low[BATCH_UNITS]
    cdef ChannelValues values = channel_values(job, first)
    cdef Py_ssize_t i, n = stop - first
    bind_batch(&batch)
    for i in range(n):
        m = unit_moments(blocks, &job.x, unit_at(job, &job.x, first + i), job.centred, job.eps)
        mean[i] = m.mean
        low[i] = m.lo
        batch.rstd[i] = rstd_from_variance(m.m2 / m.count, job.eps)
        save_statistics(job, first + i, m, batch.rstd[i])
    batch.coeffs.shifted = split_means(blocks.loops, job.eps, n, mean, low, batch.rstd, batch.mean_hi, batch.mean_lo)
    coefficients(PASS_FORWARD, n, batch.mean_lo, batch.rstd, &values, NULL, NULL, 0, &batch.coeffs)
    blocks.loops.apply_batch(unit_at(job, &job.x, first), unit_at(job, &job.y, first), blocks.segments,
                             job.x.strides[2], job.y.strides[2], n, job.x.strides[1], job.y.strides[1],
                             blocks.elements, &batch.coeffs, job.activation)


cdef int segments_forward_batched(Job *job, const UnitBlocks *blocks) noexcept nogil:
    """UNIT_BATCHES."""
    cdef Py_ssize_t units = units_of(job), size = blocks.schedule.units_per_batch
    cdef Py_ssize_t batches = (units + size - 1) // size, i
    if job.threads == 1:
        for i in range(batches):
            forward_unit_batch(job, blocks, i * size, min(units, (i + 1) * size))
    else:
        for i in prange(batches, num_threads=job.threads, schedule="guided"):
            forward_unit_batch(job, blocks, i * size, min(units, (i + 1) * size))
    return 0


cdef inline void given_batch_item(const Job *job, const UnitBlocks *blocks, Py_ssize_t item,
                                  Py_ssize_t batches, const CoefficientArrays *coeffs) noexcept nogil:
    cdef Py_ssize_t segment = item // batches, first = (item - segment * batches) * BATCH_UNITS
    cdef CoefficientArrays g = coeffs[0]
    g.mean_hi += first
    g.scale += first
    g.bias += first
    g.slope += first
    blocks.loops.apply_batch(unit_at(job, &job.x, first) + segment * job.x.strides[2],
                             unit_at(job, &job.y, first) + segment * job.y.strides[2], 1, 0, 0,
                             min(<Py_ssize_t> BATCH_UNITS, units_of(job) - first), job.x.strides[1],
                             job.y.strides[1], blocks.elements, &g, job.activation)


cdef int segments_given_batched(const Job *job, const UnitBlocks *blocks) noexcept nogil:
    cdef Py_ssize_t units = units_of(job), batches = (units + BATCH_UNITS
                                                    - 1) // BATCH_UNITS, items = batches * blocks.segments, i
    cdef double own[STACK_DOUBLES]
    cdef double *room = <double *> workspace_alloc(5 * units * sizeof(double), own)
    cdef double *lo = room + 4 * units
    cdef CoefficientArrays coeffs
    cdef ChannelValues values = channel_values(job, 0)
    if room == NULL:
        return -1
    coeffs.mean_hi = room
    coeffs.scale = room + units
    coeffs.bias = room + 2 * units
    coeffs.slope = room + 3 * units
    coeffs.shifted = split_means(blocks.loops, job.eps, units, job.mean, job.lo, job.rstd, coeffs.mean_hi,
                                 lo)
    coefficients(PASS_FORWARD, units, lo, job.rstd, &values, NULL, NULL, 0, &coeffs)
    if job.threads == 1:
        for i in range(items):
            given_batch_item(job, blocks, i, batches, &coeffs)
    else:
        for i in prange(items, num_threads=job.threads, schedule="guided",
                        chunksize=min_chunk(items, job.threads)):
            given_batch_item(job, blocks, i, batches, &coeffs)
    workspace_free(room, own)
    return 0


# ---- statistics that are given: nothing to wait for, so in the order of memory ----


cdef void given_segment(const Job *job, const UnitBlocks *blocks, Py_ssize_t item) noexcept nogil:
    """One segment of one unit; items run over units first, as batch norm's channels lie."""
    cdef Py_ssize_t units = units_of(job), segment = item // units, unit = item - segment * units
    cdef Coefficients coeffs = given_coefficients(job, blocks, unit)
    cdef ElementRange extent
    extent.segment = segment
    extent.count = 1
    extent.begin = 0
    extent.end = blocks.elements
    segment_apply(job, blocks, &coeffs, unit, unit_at(job, &job.x, unit), unit_at(job, &job.y, unit),
                  &extent)
    if blocks.schedule.nontemporal:
        store_fence()


cdef int segments_given_in_order(const Job *job, const UnitBlocks *blocks) noexcept nogil:
    cdef Py_ssize_t items = units_of(job) * blocks.segments, i
    if job.threads == 1:
        for i in range(items):
            given_segment(job, blocks, i)
    else:
        for i in prange(items, num_threads=job.threads, schedule="guided",
                        chunksize=min_chunk(items, job.threads)):
            given_segment(job, blocks, i)
    return 0


cdef int segments_forward(Job *job) noexcept nogil:
    """y = (x - mean) * rstd * weight + bias, of each unit."""
    cdef UnitBlocks blocks = unit_blocks(job, False)
    blocks.apply = segment_apply
    schedule_units_forward(job, &blocks)
    if job.schedule_only != NULL:
        job.schedule_only[0] = blocks.schedule
        return 0
    if blocks.schedule.strategy == ROW_BATCHES:
        return forward_row_batches(job, &blocks)
    if blocks.schedule.strategy == GIVEN_BATCHES:
        return segments_given_batched(job, &blocks)
    if blocks.schedule.strategy == GIVEN_IN_ORDER:
        return segments_given_in_order(job, &blocks)
    if blocks.schedule.strategy == TWO_SWEEPS:
        return forward_two_sweeps(job, &blocks)
    if blocks.schedule.strategy == UNIT_BATCHES:
        return segments_forward_batched(job, &blocks)
    return forward_units(job, &blocks)


cdef inline void unit_moments_item(Job *job, const UnitBlocks *blocks, Py_ssize_t unit) noexcept nogil:
    cdef double rstd
    save_unit_moments(job, blocks, unit, &rstd)


cdef int segments_moments(Job *job) noexcept nogil:
    """mean, lo, m2 and rstd of each unit."""
    cdef UnitBlocks blocks = unit_blocks(job, False)
    cdef Py_ssize_t units = units_of(job), i
    schedule_segments_moments(job, &blocks)
    if job.schedule_only != NULL:
        job.schedule_only[0] = blocks.schedule
        return 0
    if blocks.schedule.strategy == TWO_SWEEPS:
        return moments_in_blocks(job, &blocks)
    if job.threads == 1:
        for i in range(units):
            unit_moments_item(job, &blocks, i)
    else:
        for i in prange(units, num_threads=job.threads, schedule="guided", chunksize=min_chunk(units, job.threads)):
            unit_moments_item(job, &blocks, i)
    return 0


# ---- backward ----
# A partial holds N_GRAD_SUMS sums: of g, of g * d, of d, and of the slope's gradient; d = x - mean_hi. There is one
# per block of the unit, or one per segment where segments have weights of their own.


cdef inline Py_ssize_t partials_of_unit(const Job *job, const UnitBlocks *blocks) noexcept nogil:
    return blocks.segments if job.channels.by_segment else blocks.blocks


cdef void partial_grad_sums(const Job *job, const UnitBlocks *blocks, const Coefficients *shared,
                            Py_ssize_t unit, Py_ssize_t partial, double *out) noexcept nogil:
    cdef double x_buffer[TILE]
    cdef double dy_buffer[TILE]
    cdef const char *x = unit_at(job, &job.x, unit)
    cdef const char *dy = unit_at(job, &job.dy, unit)
    cdef Coefficients coeffs = shared[0]
    cdef Py_ssize_t tile, begin, end
    cdef ElementRange extent
    cdef ContiguousTile rx, rdy
    out[0] = 0
    out[1] = 0
    out[2] = 0
    out[3] = 0
    set_channel(job, &coeffs, channel_of(job, unit % job.shape[1], partial))
    begin = partial * (blocks.tiles_per_segment if job.channels.by_segment else BLOCK_TILES)
    end = begin + blocks.tiles_per_segment if job.channels.by_segment else min(begin + BLOCK_TILES,
            blocks.tiles)
    for tile in range(begin, end):
        extent = tile_range(blocks, tile)
        rx = contiguous_tile(blocks, &job.x, x, &extent, False, <char *> x_buffer)
        rdy = contiguous_tile(blocks, &job.dy, dy, &extent, False, <char *> dy_buffer)
        if rx.loops != rdy.loops:  # one was gathered: the loops take both in one type
            if rx.data != <char *> x_buffer:
                gather(blocks, &job.x, x, &extent, False, <char *> x_buffer)
                rx = rdy
                rx.data = <char *> x_buffer
            else:
                gather(blocks, &job.dy, dy, &extent, False, <char *> dy_buffer)
                rdy = rx
                rdy.data = <char *> dy_buffer
        rx.loops.grad_sums(rx.data, rdy.data, rx.runs, rx.stride, rdy.stride, rx.length, &coeffs,
                           job.activation, out)


cdef void unit_grad_totals(const Job *job, const UnitBlocks *blocks, Coefficients *coeffs, Py_ssize_t unit,
                      const double *partials, double *sum_g, double *sum_gd) noexcept nogil:
    """From partials to the unit's weighted sums; parameter gradients on the way."""
    cdef Py_ssize_t partial, count = partials_of_unit(job, blocks), inner = unit % job.shape[1]
    cdef Py_ssize_t outer = unit // job.shape[1], channels, channel
    cdef double g = 0, gd = 0, d = 0, on_slope = 0, weight
    cdef double size = <double> (blocks.segments * blocks.elements)
    if blocks.loops.acc_size == 8 and not job.stats_given and job.channels.sums_mode == SUMS_INTERNAL:
        for partial in range(count):
            d += partials[N_GRAD_SUMS * partial + 2]
        coeffs.mean_lo = d / size
    if job.channels.by_segment:
        channels = job.shape[1] * blocks.segments
        sum_g[0] = 0
        sum_gd[0] = 0
        for partial in range(count):
            channel = outer * channels + channel_of(job, inner, partial)
            weight = job.channels.weight[channel_of(job, inner, partial)] if job.channels.weight != NULL else 1
            g = partials[N_GRAD_SUMS * partial]
            gd = partials[N_GRAD_SUMS * partial + 1] - coeffs.mean_lo * g
            job.channels.grad_bias[channel] = g
            job.channels.grad_weight[channel] = coeffs.rstd * gd
            if job.activation:
                job.channels.grad_slope[channel] = partials[N_GRAD_SUMS * partial + 3]
            sum_g[0] += weight * g
            sum_gd[0] += weight * gd
        return
    for partial in range(count):
        g += partials[N_GRAD_SUMS * partial]
        gd += partials[N_GRAD_SUMS * partial + 1]
        on_slope += partials[N_GRAD_SUMS * partial + 3]
    gd -= coeffs.mean_lo * g
    job.channels.grad_bias[unit] = g
    job.channels.grad_weight[unit] = coeffs.rstd * gd
    if job.activation:
        job.channels.grad_slope[unit] = on_slope
    weight = job.channels.weight[inner] if job.channels.weight != NULL else 1
    sum_g[0] = weight * g
    sum_gd[0] = weight * gd


cdef void set_backward_coefficients(const Job *job, Coefficients *coeffs, double count, double sum_g,
                                    double sum_gdev) noexcept nogil:
    """The coefficients of the gradient of the input, from the unit's two weighted sums."""
    if job.stats_given:  # evaluation: the statistics do not depend on x
        coeffs.dev_coeff = 0
        coeffs.grad_offset = 0
        return
    coeffs.dev_coeff = dev_coeff_from_sum(coeffs.rstd, sum_gdev, count)
    coeffs.grad_offset = grad_offset_from_sum(coeffs.rstd, sum_g, count, coeffs.mean_lo, coeffs.dev_coeff,
                                              job.centred)


cdef inline void finish_unit(const Job *job, const UnitBlocks *blocks, Coefficients *coeffs,
                             Py_ssize_t unit, const double *partials) noexcept nogil:
    cdef double sum_g, sum_gd, count = <double> (blocks.segments * blocks.elements)
    if job.channels.sums_mode == SUMS_GIVEN:
        sum_g = job.channels.sums[2 * unit]
        sum_gd = job.channels.sums[2 * unit + 1]
        count = job.channels.count
    else:
        unit_grad_totals(job, blocks, coeffs, unit, partials, &sum_g, &sum_gd)
        if job.channels.sums != NULL:
            job.channels.sums[2 * unit] = sum_g
            job.channels.sums[2 * unit + 1] = sum_gd
    set_backward_coefficients(job, coeffs, count, sum_g, sum_gd)


cdef void segment_grad_apply(const Job *job, const UnitBlocks *blocks, const Coefficients *shared,
                             Py_ssize_t unit, Py_ssize_t partial) noexcept nogil:
    """The gradient of the input, over the tiles of one partial."""
    cdef const char *x = unit_at(job, &job.x, unit)
    cdef const char *dy = unit_at(job, &job.dy, unit)
    cdef char *dx = unit_at(job, &job.y, unit)
    cdef Coefficients coeffs = shared[0]
    cdef Py_ssize_t tile, stop, segment, element, step, size = blocks.loops.size
    cdef ElementRange extent
    set_channel(job, &coeffs, channel_of(job, unit % job.shape[1], partial))
    tile = partial * (blocks.tiles_per_segment if job.channels.by_segment else BLOCK_TILES)
    stop = tile + blocks.tiles_per_segment if job.channels.by_segment else min(tile + BLOCK_TILES,
            blocks.tiles)
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
                    step = min(blocks.length - element % blocks.length, extent.end - element)
                    blocks.loops.grad_apply(element_at(blocks, &job.x, x, segment, element),
                                       element_at(blocks, &job.dy, dy, segment, element),
                                       <char *> element_at(blocks, &job.y, dx, segment, element),
                                       1, 0, 0, 0, step, &coeffs, job.activation)
                    element += step
        tile = next_range(blocks, tile, stop)


cdef void segment_batch_grad_sums(const Job *job, const UnitBlocks *blocks, const Coefficients *shared,
                                  Py_ssize_t unit, double *partials) noexcept nogil:
    """The sums of all segments of a unit: what partial_grad_sums comes to."""
    cdef UnitBatch batch
    cdef Py_ssize_t first = 0, count, i, k
    memset(batch.sums, 0, sizeof(batch.sums))
    while first < blocks.segments:
        count = min(<Py_ssize_t> BATCH_UNITS, blocks.segments - first)
        segment_batch_coefficients(job, shared, channel_of(job, unit % job.shape[1], first), count, False,
                                   &batch)
        blocks.loops.grad_sums_batch(unit_at(job, &job.x, unit) + first * job.x.strides[2],
                                     unit_at(job, &job.dy, unit) + first * job.dy.strides[2], 1, 0, 0,
                                     count, job.x.strides[2], job.dy.strides[2], blocks.elements,
                                     &batch.coeffs, job.activation, batch.sums)
        for i in range(count):
            for k in range(N_GRAD_SUMS):
                partials[N_GRAD_SUMS * (first + i) + k] = 0 + batch.sums[k * BATCH_UNITS + i]
        first += count


cdef inline void unit_backward_coefficients(const Job *job, const UnitBlocks *blocks, Py_ssize_t unit,
                                            double *partials, Coefficients *coeffs) noexcept nogil:
    """What is applied to a unit, from its sums. `partials` is room for these, or NULL where few are needed."""
    cdef double own[N_GRAD_SUMS * STACK_PARTIALS]
    cdef Py_ssize_t partial
    if partials == NULL:
        partials = own
    coeffs[0] = given_coefficients(job, blocks, unit)
    if has_short_segments(job, blocks) and blocks.elements >= SHORT_SEGMENT:
        segment_batch_grad_sums(job, blocks, coeffs, unit, partials)
    else:
        for partial in range(partials_of_unit(job, blocks)):
            partial_grad_sums(job, blocks, coeffs, unit, partial, partials + N_GRAD_SUMS * partial)
    finish_unit(job, blocks, coeffs, unit, partials)


cdef void grad_apply_segment_batch(const Job *job, const UnitBlocks *blocks, const Coefficients *shared,
                                   Py_ssize_t unit) noexcept nogil:
    """The gradient of a unit's input."""
    cdef UnitBatch batch
    cdef const char *x = unit_at(job, &job.x, unit)
    cdef const char *dy = unit_at(job, &job.dy, unit)
    cdef char *dx = unit_at(job, &job.y, unit)
    cdef Py_ssize_t first = 0, count
    while first < blocks.segments:
        count = min(<Py_ssize_t> BATCH_UNITS, blocks.segments - first)
        segment_batch_coefficients(job, shared, channel_of(job, unit % job.shape[1], first), count, True,
                                   &batch)
        blocks.loops.grad_apply_batch(x + first * job.x.strides[2], dy + first * job.dy.strides[2],
                                      dx + first * job.y.strides[2], 1, 0, 0, 0, count, job.x.strides[2],
                                      job.dy.strides[2], job.y.strides[2], blocks.elements, &batch.coeffs,
                                      job.activation)
        first += count


cdef void segments_backward_unit(const Job *job, const UnitBlocks *blocks, Py_ssize_t unit,
                                 double *partials) noexcept nogil:
    """One unit, while it is in cache."""
    cdef Coefficients coeffs
    cdef Py_ssize_t partial
    unit_backward_coefficients(job, blocks, unit, partials, &coeffs)
    if job.channels.sums_mode == SUMS_ONLY:
        return
    if has_short_segments(job, blocks):
        grad_apply_segment_batch(job, blocks, &coeffs, unit)
    else:
        for partial in range(partials_of_unit(job, blocks)):
            segment_grad_apply(job, blocks, &coeffs, unit, partial)
    if blocks.schedule.nontemporal:
        store_fence()


cdef void unit_batch_grad_sums(const Job *job, const UnitBlocks *blocks, Py_ssize_t unit, Py_ssize_t n,
                               UnitBatch *batch) noexcept nogil:
    """The sums of n units."""
    cdef double partials[N_GRAD_SUMS * STACK_PARTIALS]
    cdef double sums[N_GRAD_SUMS]
    cdef Coefficients coeffs
    cdef ChannelValues values
    cdef Py_ssize_t i, k, partial
    if blocks.tiles == 1 and (blocks.segments == 1 or blocks.elements >= SHORT_SEGMENT):  # in place, and one tile
        if job.activation:
            values = channel_values(job, unit % job.shape[1])
            coefficients(PASS_SUMS, n, batch.mean_lo, batch.rstd, &values, NULL, NULL, 0, &batch.coeffs)
        blocks.loops.grad_sums_batch(unit_at(job, &job.x, unit), unit_at(job, &job.dy, unit),
                                     blocks.segments, job.x.strides[2], job.dy.strides[2], n,
                                     job.x.strides[1], job.dy.strides[1], blocks.elements, &batch.coeffs,
                                     job.activation, batch.sums)
        for k in range(N_GRAD_SUMS):
            for i in range(n):
                batch.sums[k * BATCH_UNITS + i] = 0 + batch.sums[k * BATCH_UNITS + i]
        return
    for i in range(n):
        coeffs = given_coefficients(job, blocks, unit + i)
        memset(sums, 0, sizeof(sums))
        for partial in range(partials_of_unit(job, blocks)):
            partial_grad_sums(job, blocks, &coeffs, unit + i, partial, partials)
            for k in range(N_GRAD_SUMS):
                sums[k] += partials[k]
        for k in range(N_GRAD_SUMS):
            batch.sums[k * BATCH_UNITS + i] = sums[k]


cdef void backward_unit_batch(const Job *job, const UnitBlocks *blocks, Py_ssize_t unit,
                              Py_ssize_t n) noexcept nogil:
    """n units of one outer index: unit_grad_totals and set_backward_coefficients for all of them."""
    cdef UnitBatch batch
    cdef Py_ssize_t i, inner = unit % job.shape[1]
    cdef double count = <double> (blocks.segments * blocks.elements)
    cdef double *g = batch.sums
    cdef double *gd = g + BATCH_UNITS
    cdef const double *d = gd + BATCH_UNITS
    cdef const double *on_slope = d + BATCH_UNITS
    cdef double *grad_weight = job.channels.grad_weight + unit
    cdef ChannelValues values = channel_values(job, inner)
    bind_batch(&batch)
    memset(batch.sums, 0, sizeof(batch.sums))
    memcpy(batch.rstd, job.rstd + unit, n * sizeof(double))
    batch.coeffs.shifted = split_means(blocks.loops, job.eps, n, job.mean + unit,
                                       job.lo + unit if job.lo != NULL else NULL, batch.rstd, batch.mean_hi,
                                       batch.mean_lo)
    unit_batch_grad_sums(job, blocks, unit, n, &batch)
    if blocks.loops.acc_size == 8 and not job.stats_given:
        for i in range(n):
            batch.mean_lo[i] = d[i] / count
    memcpy(job.channels.grad_bias + unit, g, n * sizeof(double))
    for i in range(n):
        gd[i] -= batch.mean_lo[i] * g[i]
        grad_weight[i] = batch.rstd[i] * gd[i]
    if job.activation:
        memcpy(job.channels.grad_slope + unit, on_slope, n * sizeof(double))
    if job.channels.weight != NULL:
        for i in range(n):
            g[i] *= job.channels.weight[inner + i]
            gd[i] *= job.channels.weight[inner + i]
    coefficients(PASS_BACKWARD, n, batch.mean_lo, batch.rstd, &values, NULL if job.stats_given else g, gd, count,
                 &batch.coeffs)
    blocks.loops.grad_apply_batch(unit_at(job, &job.x, unit), unit_at(job, &job.dy, unit),
                                  unit_at(job, &job.y, unit), blocks.segments, job.x.strides[2],
                                  job.dy.strides[2], job.y.strides[2], n, job.x.strides[1],
                                  job.dy.strides[1], job.y.strides[1], blocks.elements, &batch.coeffs,
                                  job.activation)


cdef inline void backward_batch_item(const Job *job, const UnitBlocks *blocks, Py_ssize_t item) noexcept nogil:
    cdef Py_ssize_t size = blocks.schedule.units_per_batch, batches = (job.shape[1] + size - 1) // size
    cdef Py_ssize_t outer = item // batches, first = (item - outer * batches) * size
    backward_unit_batch(job, blocks, outer * job.shape[1] + first, min(size, job.shape[1] - first))


cdef int segments_backward_batched(const Job *job, const UnitBlocks *blocks) noexcept nogil:
    """UNIT_BATCHES."""
    cdef Py_ssize_t size = blocks.schedule.units_per_batch
    cdef Py_ssize_t items = job.shape[0] * ((job.shape[1] + size - 1) // size), i
    if job.threads == 1:
        for i in range(items):
            backward_batch_item(job, blocks, i)
    else:
        for i in prange(items, num_threads=job.threads, schedule="guided", chunksize=min_chunk(items, job.threads)):
            backward_batch_item(job, blocks, i)
    return 0


cdef inline void backward_unit_item(const Job *job, const UnitBlocks *blocks, Py_ssize_t unit, double *partials,
                                    Py_ssize_t count) noexcept nogil:
    segments_backward_unit(job, blocks, unit,
                           partials + N_GRAD_SUMS * count * unit if partials != NULL else NULL)


cdef int segments_backward_units(const Job *job, const UnitBlocks *blocks, Py_ssize_t count) noexcept nogil:
    """UNIT_BY_UNIT. `count` partials per unit are kept on the stack where they are few, else here."""
    cdef Py_ssize_t units = units_of(job), i
    cdef double *partials = NULL
    if count > STACK_PARTIALS:
        partials = <double *> malloc(N_GRAD_SUMS * count * (1 if job.threads == 1 else units) * sizeof(double))
        if partials == NULL:
            return -1
    if job.threads == 1:
        for i in range(units):
            segments_backward_unit(job, blocks, i, partials)
    else:
        for i in prange(units, num_threads=job.threads, schedule="guided", chunksize=min_chunk(units, job.threads)):
            backward_unit_item(job, blocks, i, partials, count)
    free(partials)
    return 0


cdef inline void grad_sums_item(const Job *job, const UnitBlocks *blocks, double *partials, Py_ssize_t item,
                                Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t unit = item // count
    cdef Coefficients coeffs = given_coefficients(job, blocks, unit)
    partial_grad_sums(job, blocks, &coeffs, unit, item - unit * count, partials + N_GRAD_SUMS * item)


cdef inline void grad_apply_item(const Job *job, const UnitBlocks *blocks, const Coefficients *coeffs,
                                 Py_ssize_t item, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t unit = item // count
    segment_grad_apply(job, blocks, coeffs + unit, unit, item - unit * count)
    if blocks.schedule.nontemporal:
        store_fence()


cdef int segments_backward_two_sweeps(const Job *job, const UnitBlocks *blocks, Py_ssize_t count) noexcept nogil:
    """TWO_SWEEPS: all partials of all units, `count` each; then the gradient."""
    cdef Py_ssize_t units = units_of(job), items = units * count, i
    cdef Coefficients *coeffs = <Coefficients *> malloc(units * sizeof(Coefficients))
    cdef double *partials = <double *> malloc(N_GRAD_SUMS * items * sizeof(double))
    if coeffs == NULL or partials == NULL:
        free(coeffs)
        free(partials)
        return -1
    if job.channels.sums_mode != SUMS_GIVEN:
        for i in prange(items, num_threads=job.threads, use_threads_if=job.threads > 1, schedule="guided",
                        chunksize=min_chunk(items, job.threads)):
            grad_sums_item(job, blocks, partials, i, count)
    for i in range(units):
        coeffs[i] = given_coefficients(job, blocks, i)
        finish_unit(job, blocks, coeffs + i, i, partials + N_GRAD_SUMS * count * i)
    if job.channels.sums_mode != SUMS_ONLY:
        for i in prange(items, num_threads=job.threads, use_threads_if=job.threads > 1, schedule="guided",
                        chunksize=min_chunk(items, job.threads)):
            grad_apply_item(job, blocks, coeffs, i, count)
    free(partials)
    free(coeffs)
    return 0


cdef int segments_backward(Job *job) noexcept nogil:
    """Gradients of the input and, per channel, of the parameters; y is the gradient of the input."""
    cdef UnitBlocks blocks = unit_blocks(job, job.channels.by_segment)
    cdef Py_ssize_t count = partials_of_unit(job, &blocks)
    schedule_segments_backward(job, &blocks, count)
    if job.schedule_only != NULL:
        job.schedule_only[0] = blocks.schedule
        return 0
    if blocks.schedule.strategy == TWO_SWEEPS:
        return segments_backward_two_sweeps(job, &blocks, count)
    if blocks.schedule.strategy == UNIT_BATCHES:
        return segments_backward_batched(job, &blocks)
    return segments_backward_units(job, &blocks, count)
