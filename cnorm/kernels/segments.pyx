# Segments, forward: BatchNorm, GroupNorm and InstanceNorm, channels first. A segment has one weight.
# segments_backward.pyx has the gradients.
#
# BatchNorm: a unit is a channel, a segment one sample's elements of it (a weight per unit).
# GroupNorm: a unit is a group of one sample, a segment a channel of the group (a weight per segment).
from cython.parallel cimport prange

from cnorm.kernels.coefficients cimport PASS_FORWARD, ChannelValues, coefficients, split_means
from cnorm.kernels.job cimport (
    GIVEN_BATCHES, GIVEN_IN_ORDER, ROW_BATCHES, TWO_SWEEPS, UNIT_BATCHES, Job, Moments)
from cnorm.kernels.loops cimport CoefficientArrays, Coefficients, store_fence
from cnorm.kernels.moments cimport ElementRange, UnitBlocks, unit_blocks, unit_moments
from cnorm.kernels.schedule cimport min_chunk, schedule_segments_moments, schedule_units_forward
from cnorm.kernels.segments_apply cimport UnitBatch, bind_batch, channel_of, channel_values, segment_apply
from cnorm.kernels.statistics cimport rstd_from_m2
from cnorm.kernels.tuning cimport BATCH_UNITS, STACK_DOUBLES
from cnorm.kernels.unit_sweeps cimport (
    forward_row_batches, forward_two_sweeps, forward_units, moments_in_blocks, save_unit_moments)
from cnorm.kernels.units cimport save_statistics, set_given_coefficients, unit_at, units_of
from cnorm.kernels.workspace cimport workspace_alloc, workspace_free


# ---- batches of units: the statistics of some units, then all that is applied to them ----


cdef inline void apply_unit_batch(const Job *job, const UnitBlocks *blocks, Py_ssize_t unit, Py_ssize_t n,
                                  Py_ssize_t segment, Py_ssize_t segments, UnitBatch *batch) noexcept nogil:
    """Forward over some segments, which share their parameters, of n units."""
    cdef ChannelValues values = channel_values(job, channel_of(job, unit, segment))
    coefficients(PASS_FORWARD, n, batch.mean_lo, batch.rstd, &values, NULL, NULL, 0, True, &batch.coeffs)
    blocks.loops.apply_batch(unit_at(job, &job.x, unit) + segment * job.x.strides[2],
                             unit_at(job, &job.y, unit) + segment * job.y.strides[2], segments, job.x.strides[2],
                             job.y.strides[2], n, job.x.strides[1], job.y.strides[1], blocks.elements, &batch.coeffs,
                             job.activation)


cdef void forward_unit_batch(Job *job, const UnitBlocks *blocks, Py_ssize_t first,
                             Py_ssize_t stop) noexcept nogil:
    """Statistics and results of units first .. stop, at most BATCH_UNITS."""
    cdef UnitBatch batch
    cdef Moments m
    cdef double mean[BATCH_UNITS]
    cdef double lo[BATCH_UNITS]
    cdef Py_ssize_t i, n = stop - first
    bind_batch(&batch)
    for i in range(n):
        m = unit_moments(blocks, &job.x, unit_at(job, &job.x, first + i), job.centred)
        mean[i] = m.mean
        lo[i] = m.lo
        batch.rstd[i] = rstd_from_m2(m.m2, m.count, &job.finish)
        save_statistics(job, first + i, m, batch.rstd[i])
    batch.coeffs.shifted = split_means(blocks.loops, job.finish.eps, n, mean, lo, batch.rstd, batch.mean_hi,
                                       batch.mean_lo)
    if not job.channels.by_segment:
        apply_unit_batch(job, blocks, first, n, 0, blocks.segments, &batch)
        return
    for i in range(blocks.segments):
        apply_unit_batch(job, blocks, first, n, i, 1, &batch)


cdef int segments_forward_batches(Job *job, const UnitBlocks *blocks) noexcept nogil:
    """UNIT_BATCHES."""
    cdef Py_ssize_t units = units_of(job), size = blocks.schedule.units_per_batch
    cdef Py_ssize_t batches = (units + size - 1) // size, i
    if job.head.threads == 1:
        for i in range(batches):
            forward_unit_batch(job, blocks, i * size, min(units, (i + 1) * size))
    else:
        for i in prange(batches, num_threads=job.head.threads, schedule="guided"):
            forward_unit_batch(job, blocks, i * size, min(units, (i + 1) * size))
    return 0


# ---- given statistics: results wait for no sum, so segments are taken in the order of memory ----


cdef inline void given_batch_item(const Job *job, const UnitBlocks *blocks, Py_ssize_t item, Py_ssize_t batches,
                                  const CoefficientArrays *coeffs, const double *mean_lo) noexcept nogil:
    """One segment of one batch of units; items count the batches of the first segment, then of the next. By segment,
    `coeffs` has no more than the means."""
    cdef Py_ssize_t segment = item // batches, first = (item - segment * batches) * BATCH_UNITS
    cdef Py_ssize_t n = min(<Py_ssize_t> BATCH_UNITS, units_of(job) - first)
    cdef CoefficientArrays batch_coeffs = coeffs[0]
    cdef ChannelValues values
    cdef double own[3 * BATCH_UNITS]
    batch_coeffs.mean_hi += first
    if job.channels.by_segment:
        values = channel_values(job, channel_of(job, first, segment))
        batch_coeffs.scale = own
        batch_coeffs.bias = own + BATCH_UNITS
        batch_coeffs.slope = own + 2 * BATCH_UNITS
        coefficients(PASS_FORWARD, n, mean_lo + first, job.rstd + first, &values, NULL, NULL, 0, True, &batch_coeffs)
    else:
        batch_coeffs.scale += first
        batch_coeffs.bias += first
        batch_coeffs.slope += first
    blocks.loops.apply_batch(unit_at(job, &job.x, first) + segment * job.x.strides[2],
                             unit_at(job, &job.y, first) + segment * job.y.strides[2], 1, 0, 0, n,
                             job.x.strides[1], job.y.strides[1], blocks.elements, &batch_coeffs,
                             job.activation)


cdef int segments_given_batches(const Job *job, const UnitBlocks *blocks) noexcept nogil:
    """GIVEN_BATCHES: the coefficients of all units, or of each segment of a batch; then batches of short segments."""
    cdef Py_ssize_t units = units_of(job), batches = (units + BATCH_UNITS - 1) // BATCH_UNITS
    cdef Py_ssize_t items = batches * blocks.segments, i
    cdef double stack[STACK_DOUBLES]
    cdef double *workspace = <double *> workspace_alloc(5 * units * sizeof(double), stack)
    cdef double *mean_lo = workspace + 4 * units
    cdef CoefficientArrays coeffs
    cdef ChannelValues values = channel_values(job, 0)
    if workspace == NULL:
        return -1
    coeffs.mean_hi = workspace
    coeffs.scale = workspace + units
    coeffs.bias = workspace + 2 * units
    coeffs.slope = workspace + 3 * units
    coeffs.dev_coeff = NULL
    coeffs.grad_offset = NULL
    coeffs.rstd = NULL
    coeffs.shifted = split_means(blocks.loops, job.finish.eps, units, job.mean, job.lo, job.rstd, coeffs.mean_hi,
                                 mean_lo)
    if not job.channels.by_segment:
        coefficients(PASS_FORWARD, units, mean_lo, job.rstd, &values, NULL, NULL, 0, True, &coeffs)
    if job.head.threads == 1:
        for i in range(items):
            given_batch_item(job, blocks, i, batches, &coeffs, mean_lo)
    else:
        for i in prange(items, num_threads=job.head.threads, schedule="guided",
                        chunksize=min_chunk(items, job.head.threads)):
            given_batch_item(job, blocks, i, batches, &coeffs, mean_lo)
    workspace_free(workspace, stack)
    return 0


cdef void given_segment(const Job *job, const UnitBlocks *blocks, Py_ssize_t item) noexcept nogil:
    """One segment of one unit; items count the units of the first segment, then of the next, which is the
    order in which batch norm's channels lie in memory."""
    cdef Py_ssize_t units = units_of(job), segment = item // units, unit = item - segment * units
    cdef Coefficients coeffs
    cdef ElementRange extent
    set_given_coefficients(job, blocks, unit, &coeffs)
    extent.segment = segment
    extent.count = 1
    extent.begin = 0
    extent.end = blocks.elements
    segment_apply(job, blocks, &coeffs, unit, unit_at(job, &job.x, unit), unit_at(job, &job.y, unit), &extent)


cdef inline void given_segment_item(const Job *job, const UnitBlocks *blocks, Py_ssize_t item) noexcept nogil:
    given_segment(job, blocks, item)
    if blocks.schedule.nontemporal:
        store_fence()


cdef int segments_given_in_order(const Job *job, const UnitBlocks *blocks) noexcept nogil:
    """GIVEN_IN_ORDER."""
    cdef Py_ssize_t items = units_of(job) * blocks.segments, i
    if job.head.threads == 1:
        for i in range(items):
            given_segment(job, blocks, i)
        if blocks.schedule.nontemporal:  # once: a fence waits until all lines are written
            store_fence()
    else:
        for i in prange(items, num_threads=job.head.threads, schedule="guided",
                        chunksize=min_chunk(items, job.head.threads)):
            given_segment_item(job, blocks, i)
    return 0


cdef int segments_forward(Job *job) noexcept nogil:
    """y = (x - mean) * rstd * weight + bias, of each unit."""
    cdef UnitBlocks blocks = unit_blocks(job, False)
    blocks.apply = segment_apply
    schedule_units_forward(job, &blocks)
    if job.head.schedule_only != NULL:
        job.head.schedule_only[0] = blocks.schedule
        return 0
    if blocks.schedule.strategy == ROW_BATCHES:
        return forward_row_batches(job, &blocks)
    if blocks.schedule.strategy == GIVEN_BATCHES:
        return segments_given_batches(job, &blocks)
    if blocks.schedule.strategy == GIVEN_IN_ORDER:
        return segments_given_in_order(job, &blocks)
    if blocks.schedule.strategy == TWO_SWEEPS:
        return forward_two_sweeps(job, &blocks)
    if blocks.schedule.strategy == UNIT_BATCHES:
        return segments_forward_batches(job, &blocks)
    return forward_units(job, &blocks)


# ---- moments alone ----


cdef inline void unit_moments_item(Job *job, const UnitBlocks *blocks, Py_ssize_t unit) noexcept nogil:
    cdef double rstd
    save_unit_moments(job, blocks, unit, &rstd)


cdef int segments_moments(Job *job) noexcept nogil:
    """mean, lo, m2 and rstd of each unit."""
    cdef UnitBlocks blocks = unit_blocks(job, False)
    cdef Py_ssize_t units = units_of(job), i
    schedule_segments_moments(job, &blocks)
    if job.head.schedule_only != NULL:
        job.head.schedule_only[0] = blocks.schedule
        return 0
    if blocks.schedule.strategy == ROW_BATCHES:
        job.y.data = NULL  # nothing is applied
        return forward_row_batches(job, &blocks)
    if blocks.schedule.strategy == TWO_SWEEPS:
        return moments_in_blocks(job, &blocks)
    if job.head.threads == 1:
        for i in range(units):
            unit_moments_item(job, &blocks, i)
    else:
        for i in prange(units, num_threads=job.head.threads, schedule="guided",
                        chunksize=min_chunk(units, job.head.threads)):
            unit_moments_item(job, &blocks, i)
    return 0
