# Masked norms, channels whose elements lie side by side: units of several parts, which are the samples of batch norm's
# channels or the channels of a group with masks of their own; and channels that are units (instance norm).
#
# a) No job is made of a part: the loops take the parts of some units, which stay in L2 from their sums to their results.
# b) Blocks, tiles and the order in which parts merge are those of a job for each part (masked.pyx), and so are the bits.
from libc.string cimport memcpy, memset

from cnorm.kernels.coefficients cimport N_GRAD_SUMS
from cnorm.kernels.job cimport (
    FLOAT64, ITEM_ELEMENTS, NORM_NONE, SEGMENTS_BACKWARD, SEGMENTS_FORWARD, Job, MaskedJob, Schedule, has_slopes)
from cnorm.kernels.loops cimport (
    LANES_ALIGN, Coefficients, copy_mask, find_selected, pack_items, prefetch_read, prefetch_write, select_items,
    store_fence)
from cnorm.kernels.machine cimport (
    MACHINE, batch_bytes, cached_traffic, nontemporal_one_read, nontemporal_two_reads)
from cnorm.kernels.masked_layout cimport Piece, Workspace, bind_piece, end_of_run, offset, place_piece, zero_around
from cnorm.kernels.moments cimport UnitBlocks, unit_blocks
from cnorm.kernels.schedule cimport stores_nontemporal, traffic_of
from cnorm.kernels.segments_apply cimport set_channel
from cnorm.kernels.statistics cimport merge_moments, rstd_from_m2, settle_moments
from cnorm.kernels.tuning cimport (
    BATCH_UNITS, BLOCK_TILES, PREFETCH_DISTANCE, PREFETCH_SEGMENT_MAX, PREFETCH_SEGMENT_MIN, ROW_BATCH_MAX, TILE)
from cnorm.kernels.unit_sweeps cimport forward_row_batch, save_unit_moments
from cnorm.kernels.units cimport set_backward_coefficients, set_given_coefficients


cdef struct Part:              # what is selected of a part, of each unit alike
    const char *mask
    Py_ssize_t first, count
    bint one_run


cdef inline bint sweeps_parts(const MaskedJob *m) noexcept nogil:
    """Whether the loops take the parts of units as they lie. A unit without parts is one: backward, where it has a mask of
    its own. Forward, and where many units share a mask, one job of all of them is faster."""
    cdef int k
    if m.channels != 1 or m.items != ITEM_ELEMENTS or m.inners != 1 or m.segment.size != 1 or (
            m.job.finish.norm != NORM_NONE or MACHINE.force or m.array[3] != NULL
            or m.job.stats_given and not m.merges):
        return False
    if not m.merges and (not m.backward or m.unit.size != 1 or m.job.head.dtype == FLOAT64):
        return False  # float64 takes mean_lo from a sum of its own
    for k in range(3):
        if m.array[k] != NULL and m.inner[0].stride[k] != m.item_bytes:
            return False
    return m.kernel == SEGMENTS_FORWARD or m.kernel == SEGMENTS_BACKWARD


cdef inline Py_ssize_t swept_units(const MaskedJob *m) noexcept nogil:
    """Units whose parts stay in L2 from their sums to their results: of a quarter of L2 backward, of all of it forward,
    where more units made the parts that lie side by side longer (Zen 4)."""
    cdef Py_ssize_t unit = m.part.size * m.length * m.item_bytes * (2 if m.backward else 1)
    cdef Py_ssize_t share = max(1, m.unit.size // m.head.threads)
    return min(min(<Py_ssize_t> BATCH_UNITS, share), max(1, (1 if m.backward else 4) * batch_bytes() // max(unit, 1)))


cdef inline void look_at_parts(const MaskedJob *m, const char *mask, Part *parts) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(m.part.size):
        parts[i].mask = mask + i * m.part.mask
        parts[i].count = find_selected(parts[i].mask, m.length, &parts[i].first, &parts[i].one_run)


cdef inline char *part_of(const MaskedJob *m, const Piece *whole, int k, Py_ssize_t part,
                          Py_ssize_t unit) noexcept nogil:
    return whole.array[k] + part * m.part.stride[k] + unit * m.unit.stride[k]


cdef inline void begin_sweep(const MaskedJob *m, const Piece *whole, Job *job, Schedule *schedule) noexcept nogil:
    """A job of the units of a piece; how their results are stored."""
    cdef Py_ssize_t row = m.length * m.item_bytes, traffic
    memcpy(job, &m.job, sizeof(Job))
    job.head.threads = 1
    job.shape[1] = whole.units
    job.x.data = whole.array[0]
    job.y.data = whole.array[1]
    job.dy.data = whole.array[2]
    job.x.strides[1] = m.unit.stride[0]
    job.y.strides[1] = m.unit.stride[1]
    job.dy.strides[1] = m.unit.stride[2]
    job.mean = <double *> offset(m.job.mean, whole.unit)
    job.lo = <double *> offset(m.job.lo, whole.unit)
    job.m2 = <double *> offset(m.job.m2, whole.unit)
    job.rstd = <double *> offset(m.job.rstd, whole.unit)
    traffic = traffic_of(job, 0)
    schedule.nontemporal = stores_nontemporal(&job.y, &job.x, &job.dy, traffic,
                                              nontemporal_two_reads() if m.merges else nontemporal_one_read())
    schedule.apart = (row | <Py_ssize_t> whole.array[1]) % LANES_ALIGN == 0  # parts of whole lines
    schedule.prefetch_bytes = whole.units * m.unit.stride[0]
    schedule.prefetch_segments = 0
    if traffic >= cached_traffic() and PREFETCH_SEGMENT_MIN <= row <= PREFETCH_SEGMENT_MAX:
        schedule.prefetch_segments = max(1, PREFETCH_DISTANCE // (row * whole.units))


cdef inline Py_ssize_t channel_of_part(const MaskedJob *m, const Piece *whole, Py_ssize_t part) noexcept nogil:
    """The channel of a part of the first unit, counted over all samples."""
    if m.groups:  # units count the groups of each sample, parts the channels of a group
        return whole.unit * m.part.size + part
    return part * m.part_channels + whole.unit


cdef inline bint parts_differ(const MaskedJob *m) noexcept nogil:
    """Whether parts of a unit have parameters of their own."""
    return m.per_sample or m.groups != 0


cdef inline void set_part_channels(const MaskedJob *m, const Piece *whole, Py_ssize_t part, Job *job,
                                   Coefficients *coeffs) noexcept nogil:
    """The parameters of the units, of one part."""
    cdef Py_ssize_t of_sample = channel_of_part(m, whole, part), u
    cdef Py_ssize_t shared = of_sample % (m.groups * m.part.size) if m.groups else whole.unit
    job.channels.weight = offset(m.job.channels.weight, of_sample if m.per_sample else shared)
    job.channels.bias = offset(m.job.channels.bias, of_sample if m.per_sample else shared)
    job.channels.slopes = offset(m.job.channels.slopes, shared)
    for u in range(whole.units):
        set_channel(job, &coeffs[u], u)


cdef inline void sweep_moments(const MaskedJob *m, const Piece *whole, const Part *parts, Job *job,
                        const Schedule *schedule) noexcept nogil:
    """The statistics of some units, from those of their parts."""
    cdef Job one = job[0]
    cdef UnitBlocks blocks
    cdef double *stats = whole.stats
    cdef Py_ssize_t units = whole.units, part, i, next_part
    cdef double total = 0, count, share, rstd
    memset(job.mean, 0, units * sizeof(double))
    memset(job.lo, 0, units * sizeof(double))
    memset(job.m2, 0, units * sizeof(double))
    memset(job.rstd, 0, units * sizeof(double))
    one.y.data = NULL
    one.mean = stats
    one.lo = stats + units
    one.m2 = stats + 2 * units
    one.rstd = stats + 3 * units
    for part in range(m.part.size):
        next_part = part + schedule.prefetch_segments
        if next_part > part and next_part < m.part.size:
            for i in range(units):
                prefetch_read(part_of(m, whole, 0, next_part, i) + parts[next_part].first * m.item_bytes,
                              parts[next_part].count * m.item_bytes)
        if parts[part].count == 0:
            continue
        one.shape[4] = parts[part].count
        if parts[part].one_run:
            one.x.data = part_of(m, whole, 0, part, 0) + parts[part].first * m.item_bytes
            one.x.strides[1] = m.unit.stride[0]
        else:
            one.x.data = whole.packed[0]
            one.x.strides[1] = parts[part].count * m.item_bytes
            for i in range(units):
                pack_items(m.item_bytes, part_of(m, whole, 0, part, i), m.item_bytes, parts[part].mask, m.length,
                           one.x.data + i * one.x.strides[1])
        blocks = unit_blocks(&one, False)
        if blocks.tiles == 1:
            blocks.schedule.rows_per_pass = ROW_BATCH_MAX
            forward_row_batch(&one, &blocks, 0, 0, units)
        else:
            for i in range(units):
                save_unit_moments(&one, &blocks, i, &rstd)
        count = <double> parts[part].count
        if total == 0:
            memcpy(job.mean, one.mean, units * sizeof(double))
            memcpy(job.lo, one.lo, units * sizeof(double))
            memcpy(job.m2, one.m2, units * sizeof(double))
        else:
            share = count / (total + count)
            for i in range(units):
                merge_moments(&job.mean[i], &job.lo[i], &job.m2[i], one.mean[i], one.lo[i], one.m2[i], share,
                              total * share)
        total += count
    for i in range(units):
        settle_moments(&job.mean[i], &job.lo[i], &job.m2[i])
        job.rstd[i] = rstd_from_m2(job.m2[i], total, &m.job.finish) if total else 0


cdef inline Py_ssize_t end_of_part(const MaskedJob *m, const Part *part, const char *y, bint stream) noexcept nogil:
    """end_of_run of a part that is one run, where results and zeros go past the cache; else -1."""
    if not (stream and m.zero and part.one_run):
        return -1
    return end_of_run(y, part.first + part.count, part.count, m.length, m.item_bytes)


cdef inline void end_part(const MaskedJob *m, const Piece *whole, const Part *part, char *y, bint stream,
                          Py_ssize_t end) noexcept nogil:
    """Copy what is selected from workspace, unless it is one run, whose results are in place but for its end
    (end_of_run); and set what is not selected to 0, where the mask wants that."""
    if part.count and not part.one_run:
        select_items(m.item_bytes, whole.packed[0], part.mask, m.length, y, m.zero, m.zero and stream)
    elif m.zero:
        zero_around(y, part.first, part.first + part.count, m.length, m.item_bytes, stream, whole.packed[0], end)


cdef inline void prefetch_end(const MaskedJob *m, const Part *part, char *y) noexcept nogil:
    """Prefetch the lines after a run, of which plain stores write a part; those of a long rest are written whole."""
    cdef Py_ssize_t rest = (m.length - part.first - part.count) * m.item_bytes
    if rest and part.count:
        prefetch_write(y + m.length * m.item_bytes - rest, min(rest, <Py_ssize_t> 8 * LANES_ALIGN) if m.zero else 1)


cdef inline Coefficients in_cache(const Coefficients *coeffs) noexcept nogil:
    """Coefficients of a call of the loops whose results stay in cache."""
    cdef Coefficients changed = coeffs[0]
    changed.nontemporal = False
    changed.prefetch_segments = 0
    return changed


cdef inline void sweep_forward(const MaskedJob *m, const Piece *whole, const Part *parts) noexcept nogil:
    cdef Job job
    cdef UnitBlocks blocks
    cdef Coefficients coeffs[BATCH_UNITS]
    cdef Coefficients plain
    cdef const Part *part
    cdef Py_ssize_t i, u, at, end, n
    cdef char *x
    cdef char *y
    blocks = unit_blocks(&m.job, False)
    begin_sweep(m, whole, &job, &blocks.schedule)
    sweep_moments(m, whole, parts, &job, &blocks.schedule)
    for u in range(whole.units):
        set_given_coefficients(&job, &blocks, u, &coeffs[u])
    for i in range(m.part.size - 1, -1, -1):
        part = &parts[i]
        at = part.first * m.item_bytes
        if i == m.part.size - 1 or parts_differ(m):
            set_part_channels(m, whole, i, &job, coeffs)
        for u in range(whole.units):
            x = part_of(m, whole, 0, i, u)
            y = part_of(m, whole, 1, i, u)
            end = end_of_part(m, part, y, blocks.schedule.nontemporal)
            n = part.count - max(end, <Py_ssize_t> 0)
            if part.one_run:
                if end < 0:
                    prefetch_end(m, part, y)
                blocks.loops.apply(x + at, y + at, 1, m.part.stride[0], -m.part.stride[1], n, &coeffs[u],
                                   job.activation)
                if end > 0:
                    plain = in_cache(&coeffs[u])
                    blocks.loops.apply(x + at + n * m.item_bytes, whole.packed[0], 1, 0, 0, end, &plain, job.activation)
            elif part.count:
                plain = in_cache(&coeffs[u])
                blocks.loops.apply(x, whole.packed[0], 1, 0, 0, m.length, &plain, job.activation)
            end_part(m, whole, part, y, blocks.schedule.nontemporal, end)
    if blocks.schedule.nontemporal:
        store_fence()


cdef inline void part_grad_sums(const UnitBlocks *blocks, const char *x, const char *dy, Py_ssize_t x_stride,
                                Py_ssize_t dy_stride, Py_ssize_t n, const Coefficients *coeffs, int activation,
                                double *total) noexcept nogil:
    """total[N_GRAD_SUMS] of n elements, tile by tile and block by block, as partial_grad_sums has them."""
    cdef double sums[N_GRAD_SUMS]
    cdef Py_ssize_t tile = 0, k, begin
    memset(total, 0, N_GRAD_SUMS * sizeof(double))
    while tile * TILE < n:
        if tile % BLOCK_TILES == 0:
            memset(sums, 0, sizeof(sums))
        begin = tile * TILE
        blocks.loops.grad_sums(x + begin * blocks.loops.size, dy + begin * blocks.loops.size, 1, x_stride, dy_stride,
                               min(<Py_ssize_t> TILE, n - begin), coeffs, activation, sums)
        tile += 1
        if tile % BLOCK_TILES == 0 or tile * TILE >= n:
            for k in range(N_GRAD_SUMS):
                total[k] += sums[k]


cdef inline void sweep_grad_sums(const MaskedJob *m, const Piece *whole, const Part *parts, Job *job,
                          const UnitBlocks *blocks, Coefficients *coeffs, double *count) noexcept nogil:
    """The two sums of some units, and the gradients of each part's parameters."""
    cdef double *sums = whole.stats
    cdef double total[N_GRAD_SUMS]
    cdef double g, gdev, weight
    cdef Coefficients plain
    cdef const Part *part
    cdef Py_ssize_t i, u, at, out
    count[0] = 0
    memset(sums, 0, 2 * whole.units * sizeof(double))
    for i in range(m.part.size):
        part = &parts[i]
        if i == 0 or parts_differ(m):
            set_part_channels(m, whole, i, job, coeffs)
        if part.count == 0:
            continue
        at = part.first * m.item_bytes
        count[0] += <double> part.count
        for u in range(whole.units):
            if part.one_run:
                part_grad_sums(blocks, part_of(m, whole, 0, i, u) + at, part_of(m, whole, 2, i, u) + at,
                               m.part.stride[0], m.part.stride[2], part.count, &coeffs[u], job.activation, total)
            else:
                plain = in_cache(&coeffs[u])
                if blocks.schedule.prefetch_segments and i + blocks.schedule.prefetch_segments < m.part.size:
                    out = i + blocks.schedule.prefetch_segments
                    prefetch_read(part_of(m, whole, 0, out, u), m.length * m.item_bytes)
                    prefetch_read(part_of(m, whole, 2, out, u), m.length * m.item_bytes)
                pack_items(m.item_bytes, part_of(m, whole, 0, i, u), m.item_bytes, part.mask, m.length, whole.packed[0])
                pack_items(m.item_bytes, part_of(m, whole, 2, i, u), m.item_bytes, part.mask, m.length, whole.packed[2])
                part_grad_sums(blocks, whole.packed[0], whole.packed[2], 0, 0, part.count, &plain, job.activation,
                               total)
            g = total[0]
            gdev = total[1] - coeffs[u].mean_lo * g
            out = channel_of_part(m, whole, i) + u
            m.job.channels.grad_bias[out] = g
            m.job.channels.grad_weight[out] = coeffs[u].rstd * gdev
            if has_slopes(job.activation):
                m.job.channels.grad_slope[out] = total[3]
            weight = job.channels.weight[u] if job.channels.weight != NULL else 1
            sums[2 * u] += weight * g
            sums[2 * u + 1] += weight * gdev


cdef inline void sweep_backward(const MaskedJob *m, const Piece *whole, const Part *parts) noexcept nogil:
    cdef Job job
    cdef UnitBlocks blocks
    cdef Coefficients coeffs[BATCH_UNITS]
    cdef Coefficients plain
    cdef const Part *part
    cdef Py_ssize_t i, u, at, end, n
    cdef char *x
    cdef char *dy
    cdef char *dx
    cdef double count = 0
    blocks = unit_blocks(&m.job, False)
    begin_sweep(m, whole, &job, &blocks.schedule)
    for u in range(whole.units):
        set_given_coefficients(&job, &blocks, u, &coeffs[u])
    sweep_grad_sums(m, whole, parts, &job, &blocks, coeffs, &count)
    for u in range(whole.units):
        set_backward_coefficients(&job, &coeffs[u], count, whole.stats[2 * u], whole.stats[2 * u + 1])
    for i in range(m.part.size - 1, -1, -1):
        part = &parts[i]
        at = part.first * m.item_bytes
        if parts_differ(m):
            set_part_channels(m, whole, i, &job, coeffs)
        for u in range(whole.units):
            x = part_of(m, whole, 0, i, u)
            dx = part_of(m, whole, 1, i, u)
            dy = part_of(m, whole, 2, i, u)
            end = end_of_part(m, part, dx, blocks.schedule.nontemporal)
            n = part.count - max(end, <Py_ssize_t> 0)
            if part.one_run:
                if end < 0:
                    prefetch_end(m, part, dx)
                blocks.loops.grad_apply(x + at, dy + at, dx + at, 1, m.part.stride[0], m.part.stride[2],
                                        -m.part.stride[1], n, &coeffs[u], job.activation)
                if end > 0:
                    plain = in_cache(&coeffs[u])
                    n = at + n * m.item_bytes
                    blocks.loops.grad_apply(x + n, dy + n, whole.packed[0], 1, 0, 0, 0, end, &plain, job.activation)
            elif part.count:
                plain = in_cache(&coeffs[u])
                blocks.loops.grad_apply(x, dy, whole.packed[0], 1, 0, 0, 0, m.length, &plain, job.activation)
            end_part(m, whole, part, dx, blocks.schedule.nontemporal, end)
    if blocks.schedule.nontemporal:
        store_fence()


cdef inline void sweep_piece(const MaskedJob *m, Py_ssize_t number, char *workspace, const Workspace *size,
                             const Part *parts) noexcept nogil:
    """Some units of several parts. parts: of all pieces, or NULL where pieces differ in them."""
    cdef Piece whole, after
    cdef Part *own
    place_piece(m, number, &whole)
    # The sums of a unit are waited for, and nothing else is read then. Of longer ones the processor asks for the next.
    if not m.merges and 3 * m.job.call_bytes >= cached_traffic() and m.length * m.item_bytes <= PREFETCH_DISTANCE:
        place_piece(m, number + 1, &after)
        prefetch_read(after.array[0], m.length * m.item_bytes)
        prefetch_read(after.array[2], m.length * m.item_bytes)
    bind_piece(m, &whole, workspace, size)
    if parts == NULL:
        own = <Part *> (workspace + size.total - size.parts)
        if m.gathers:
            copy_mask(whole.mask, m.inner[0].mask, m.length, <char *> whole.stats + size.stats)
            whole.mask = <char *> whole.stats + size.stats
        look_at_parts(m, whole.mask, own)
        parts = own
    if m.backward:
        sweep_backward(m, &whole, parts)
    else:
        sweep_forward(m, &whole, parts)
