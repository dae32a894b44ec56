# Segments: the coefficients of channels, and forward over ranges of a unit. See segments.pyx.
from cnorm.kernels.coefficients cimport (
    N_GRAD_SUMS, PASS_BACKWARD, PASS_FORWARD, PASS_SUMS, ChannelValues, Pass, channel_values_from, coefficients, fill)
from cnorm.kernels.job cimport ACT_NONE, ACT_SLOPES, Job
from cnorm.kernels.loops cimport CoefficientArrays, Coefficients
from cnorm.kernels.moments cimport ElementRange, UnitBlocks, element_at, run_left
from cnorm.kernels.tuning cimport BATCH_UNITS, SHORT_SEGMENT_BYTES


cdef inline Py_ssize_t channel_of(const Job *job, Py_ssize_t unit, Py_ssize_t segment) noexcept nogil:
    """The index of the weight that a segment takes."""
    cdef Py_ssize_t outer = unit // job.shape[1] if job.shape[0] > 1 else 0, inner = unit - outer * job.shape[1]
    return (outer * job.channels.sample_channels + inner * job.channels.inner_channels
            + segment * job.channels.segment_channels)


cdef inline void set_channel(const Job *job, Coefficients *coeffs, Py_ssize_t channel) noexcept nogil:
    """Scale, bias and slope of one channel, from the unit's mean and rstd; mean_lo goes into the bias."""
    cdef double bias = job.channels.bias[channel] if job.channels.bias != NULL else 0
    coeffs.scale = coeffs.rstd * job.channels.weight[channel] if job.channels.weight != NULL else coeffs.rstd
    coeffs.bias = bias - coeffs.mean_lo * coeffs.scale
    if job.activation == ACT_SLOPES:
        coeffs.slope = job.channels.slopes[channel]


# ---- batches: units or segments that lie side by side in memory, each with coefficients of its own ----
#
# a) The segments of a unit with a weight for each, where they are short: channels of a group of small images, or a
#    channel's samples with parameters of their own.
# b) One segment index of several units: batch norm's channels of small images. Unit by unit, a few cache
#    lines are read here and a few there, and written so, which takes up to twice as long. So the statistics
#    of some units come first, and then, while these are in cache, all that is applied to them: to one segment
#    after the other where each segment has a weight of its own.
# c) With given statistics there is nothing to wait for: batches as in b), in the order of memory.
# d) Units of one short segment: what is done once per unit is done for many side by side.

cdef struct UnitBatch:
    # Coefficients and sums of up to BATCH_UNITS units or segments.
    CoefficientArrays coeffs       # points to the arrays below
    double mean_hi[BATCH_UNITS]
    double scale[BATCH_UNITS]
    double bias[BATCH_UNITS]
    double slope[BATCH_UNITS]
    double dev_coeff[BATCH_UNITS]
    double grad_offset[BATCH_UNITS]
    double mean_lo[BATCH_UNITS]
    double rstd[BATCH_UNITS]
    double params[3 * BATCH_UNITS] # of segments whose parameters lie apart
    double sums[N_GRAD_SUMS * BATCH_UNITS]


cdef inline void bind_batch(UnitBatch *batch) noexcept nogil:
    """Let batch.coeffs point to the arrays of the batch."""
    batch.coeffs.mean_hi = batch.mean_hi
    batch.coeffs.scale = batch.scale
    batch.coeffs.bias = batch.bias
    batch.coeffs.slope = batch.slope
    batch.coeffs.dev_coeff = batch.dev_coeff
    batch.coeffs.grad_offset = batch.grad_offset
    batch.coeffs.rstd = batch.rstd


cdef inline ChannelValues channel_values(const Job *job, Py_ssize_t channel) noexcept nogil:
    """The parameters of the job's channels from `channel` on."""
    return channel_values_from(channel, job.channels.weight, job.channels.bias, job.channels.slopes,
                               job.slope, job.low, job.high, job.activation)


cdef inline bint has_short_segments(const Job *job, const UnitBlocks *blocks) noexcept nogil:
    """Whether the segments of a unit share a call of the loops: case a) of the batches."""
    return (job.channels.by_segment and blocks.segments > 1 and blocks.runs == 1
            and blocks.elements * blocks.loops.size <= SHORT_SEGMENT_BYTES)


cdef inline const double *gathered(const double *values, Py_ssize_t step, Py_ssize_t n, double *out) noexcept nogil:
    """n values that lie `step` apart, side by side; NULL where there are none."""
    cdef Py_ssize_t i
    if values == NULL or step == 1:
        return values
    for i in range(n):
        out[i] = values[i * step]
    return out


cdef inline ChannelValues segment_values(const Job *job, Py_ssize_t channel, Py_ssize_t n,
                                         UnitBatch *batch) noexcept nogil:
    """The parameters of n segments of one unit, the first of which takes those of `channel`."""
    cdef ChannelValues values = channel_values(job, channel)
    cdef Py_ssize_t step = job.channels.segment_channels
    values.weight = gathered(values.weight, step, n, batch.params)
    values.bias = gathered(values.bias, step, n, batch.params + BATCH_UNITS)
    values.slopes = gathered(values.slopes, step, n, batch.params + 2 * BATCH_UNITS)
    return values


cdef inline void segment_batch_coefficients(const Job *job, const Coefficients *unit_coeffs,
                                            Py_ssize_t channel, Py_ssize_t n, Pass what,
                                            UnitBatch *batch) noexcept nogil:
    """Coefficients of n segments of one unit: the unit's mean and rstd, parameters of their own."""
    cdef ChannelValues values
    bind_batch(batch)
    batch.coeffs.shifted = unit_coeffs.mean_hi != 0
    fill(unit_coeffs.mean_hi, n, batch.mean_hi)
    if what == PASS_SUMS and job.activation == ACT_NONE:
        return
    values = segment_values(job, channel, n, batch)
    fill(unit_coeffs.mean_lo, n, batch.mean_lo)
    fill(unit_coeffs.rstd, n, batch.rstd)
    coefficients(PASS_FORWARD if what == PASS_FORWARD else PASS_SUMS, n, batch.mean_lo, batch.rstd, &values, NULL,
                 NULL, 0, True, &batch.coeffs)
    if what == PASS_BACKWARD:
        fill(unit_coeffs.dev_coeff, n, batch.dev_coeff)
        fill(unit_coeffs.grad_offset, n, batch.grad_offset)


cdef inline void apply_segment_batch(const Job *job, const UnitBlocks *blocks,
                                     const Coefficients *unit_coeffs, Py_ssize_t unit, const char *x,
                                     char *y, Py_ssize_t first, Py_ssize_t stop) noexcept nogil:
    """Forward over the whole segments first .. stop of the unit at x, BATCH_UNITS in one call."""
    cdef UnitBatch batch
    cdef Py_ssize_t n
    while first < stop:
        n = min(<Py_ssize_t> BATCH_UNITS, stop - first)
        segment_batch_coefficients(job, unit_coeffs, channel_of(job, unit, first), n, PASS_FORWARD, &batch)
        blocks.loops.apply_batch(x + first * job.x.strides[2], y + first * job.y.strides[2], 1, 0, 0, n,
                                 job.x.strides[2], job.y.strides[2], blocks.elements, &batch.coeffs,
                                 job.activation)
        first += n


cdef inline void segment_apply(const Job *job, const UnitBlocks *blocks, const Coefficients *unit_coeffs,
                               Py_ssize_t unit, const char *x, char *y,
                               const ElementRange *extent) noexcept nogil:
    """y = (x - mean) * rstd * weight + bias over a range of a unit, with the parameters of its channels.

    x and y are the addresses of the unit. All segments in one call of the loops where a segment is one run
    and they share their parameters; else one contiguous run at a time."""
    cdef Coefficients coeffs
    cdef Py_ssize_t segment, element, step, size = blocks.loops.size
    cdef Py_ssize_t stop = extent.segment + extent.count
    if has_short_segments(job, blocks):
        apply_segment_batch(job, blocks, unit_coeffs, unit, x, y, extent.segment, stop)
        return
    coeffs = unit_coeffs[0]
    if not job.channels.by_segment:
        set_channel(job, &coeffs, channel_of(job, unit, 0))
        if blocks.runs == 1:
            blocks.loops.apply(x + extent.segment * job.x.strides[2] + extent.begin * size,
                               y + extent.segment * job.y.strides[2] + extent.begin * size, extent.count,
                               job.x.strides[2], job.y.strides[2], extent.end - extent.begin, &coeffs,
                               job.activation)
            return
    for segment in range(extent.segment, stop):
        if job.channels.by_segment:
            set_channel(job, &coeffs, channel_of(job, unit, segment))
        element = extent.begin
        while element < extent.end:
            step = min(run_left(blocks, element), extent.end - element)
            blocks.loops.apply(element_at(blocks, &job.x, x, segment, element),
                               <char *> element_at(blocks, &job.y, y, segment, element), 1, 0, 0, step,
                               &coeffs, job.activation)
            element += step
