# Segments: the coefficients of channels, and forward over ranges of a unit. See segments.pyx.
from cnorm.kernels.coefficients cimport (
    N_GRAD_SUMS, PASS_BACKWARD, PASS_FORWARD, PASS_SUMS, ChannelValues, Pass, channel_values_from, coefficients, fill)
from cnorm.kernels.columns_apply cimport coefficients_from
from cnorm.kernels.job cimport ACT_NONE, ACT_SLOPES, Job, has_slopes
from cnorm.kernels.loops cimport LANES_ALIGN, CoefficientArrays, Coefficients, ColumnCoefficients, LoopTable
from cnorm.kernels.moments cimport ElementRange, UnitBlocks, element_at, run_left
from cnorm.kernels.tuning cimport (
    BATCH_UNITS, COLUMN_BLOCK_ROWS, COLUMN_ROWS_PER_PASS, SHORT_SEGMENT_BYTES, SPREAD_MAX)
from cnorm.kernels.units cimport unit_at


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
# e) In b), where many segments share them, coefficients are spread out, one for each element of a segment of all units:
#    one sample's part of the batch is then a row of columns. Segments of 49 elements make vectors that begin and end
#    within a cache line, and every fourth has one element; rows of them do not.

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


# ---- e) batches as rows of columns ----


cdef inline const char *spread(const LoopTable *loops, const double *values, Py_ssize_t units, Py_ssize_t elements,
                               double *out) noexcept nogil:
    """out: each unit's value for each of its elements, of the accumulation type."""
    cdef Py_ssize_t i, j
    cdef float *narrow = <float *> out
    for i in range(units):
        if loops.acc_size == 8:
            fill(values[i], elements, out + i * elements)
        else:
            for j in range(i * elements, (i + 1) * elements):
                narrow[j] = <float> values[i]
    return <const char *> out


cdef inline void apply_spread_range(const Job *job, const UnitBlocks *blocks, const ColumnCoefficients *coeffs,
                                    Py_ssize_t unit, Py_ssize_t first, Py_ssize_t columns) noexcept nogil:
    """Forward or backward over `columns` elements of each segment, from the element `first` of a unit on; `coeffs`
    begin with that element."""
    cdef const char *x[COLUMN_BLOCK_ROWS]
    cdef const char *dy[COLUMN_BLOCK_ROWS]
    cdef char *y[COLUMN_BLOCK_ROWS]
    cdef Py_ssize_t segment = 0, bytes = first * blocks.loops.size, rows, i
    while segment < blocks.segments:
        rows = min(<Py_ssize_t> COLUMN_BLOCK_ROWS, blocks.segments - segment)
        for i in range(rows):
            x[i] = unit_at(job, &job.x, unit) + (segment + i) * job.x.strides[2] + bytes
            y[i] = unit_at(job, &job.y, unit) + (segment + i) * job.y.strides[2] + bytes
        if job.dy.data == NULL:
            blocks.loops.column_apply(x, y, rows, columns, COLUMN_ROWS_PER_PASS, coeffs, job.activation)
        else:
            for i in range(rows):
                dy[i] = unit_at(job, &job.dy, unit) + (segment + i) * job.dy.strides[2] + bytes
            blocks.loops.column_grad_apply(x, dy, NULL, y, rows, columns, COLUMN_ROWS_PER_PASS, coeffs,
                                           job.activation)
        segment += rows


cdef inline void apply_spread(const Job *job, const UnitBlocks *blocks, Py_ssize_t unit, Py_ssize_t n,
                              const CoefficientArrays *of_units) noexcept nogil:
    """Forward or backward over all segments of n units, bit for bit as apply_batch and grad_apply_batch of the loops.

    Where all rows of the result begin at the same place in a cache line, vectors begin at lines; what is before the
    first one comes by itself."""
    cdef double workspace[7 * (SPREAD_MAX + 8)]  # each array a cache line on, so that they do not share sets of L1
    cdef double *bias = workspace + 2 * (SPREAD_MAX + 8)
    cdef double *slope = workspace + 3 * (SPREAD_MAX + 8)
    cdef double *dev_coeff = workspace + 4 * (SPREAD_MAX + 8)
    cdef double *grad_offset = workspace + 5 * (SPREAD_MAX + 8)
    cdef double *rstd = workspace + 6 * (SPREAD_MAX + 8)
    cdef ColumnCoefficients coeffs, peeled
    cdef const LoopTable *loops = blocks.loops
    cdef Py_ssize_t elements = blocks.elements, columns = n * elements, peel = 0
    coeffs.nontemporal = False
    coeffs.signs = False
    coeffs.shifted = of_units.shifted
    coeffs.low = of_units.low
    coeffs.high = of_units.high
    coeffs.row_weight = NULL
    coeffs.row_bias = NULL
    coeffs.row_slope = NULL
    coeffs.prefetch_bytes = 0
    coeffs.mean_hi = spread(loops, of_units.mean_hi, n, elements, workspace)
    coeffs.scale = spread(loops, of_units.scale, n, elements, workspace + SPREAD_MAX + 8)
    coeffs.bias = bias
    coeffs.slope = slope
    coeffs.dev_coeff = dev_coeff
    coeffs.grad_offset = grad_offset
    coeffs.rstd = rstd
    if job.activation or job.dy.data == NULL:
        spread(loops, of_units.bias, n, elements, bias)
    if has_slopes(job.activation):
        spread(loops, of_units.slope, n, elements, slope)
    if job.dy.data != NULL:
        spread(loops, of_units.dev_coeff, n, elements, dev_coeff)
        spread(loops, of_units.grad_offset, n, elements, grad_offset)
        spread(loops, of_units.rstd, n, elements, rstd)
    if job.y.strides[2] % LANES_ALIGN == 0:
        peel = min(columns, (-<Py_ssize_t> unit_at(job, &job.y, unit) & (LANES_ALIGN - 1)) // loops.size)
    if peel > 0:
        apply_spread_range(job, blocks, &coeffs, unit, 0, peel)
    peeled = coefficients_from(&coeffs, peel * loops.acc_size)
    apply_spread_range(job, blocks, &peeled, unit, peel, columns - peel)
