# The schedule: what a call does with its threads and caches. Every choice between strategies is made here, by pure
# functions of the job, of how its units or columns are cut, and of the machine. Executors carry the choice out. No
# result depends on it: MACHINE.force takes any strategy that applies, and tests compare the bits.
from cnorm.kernels.columns_layout cimport ColumnLayout, bytes_of_columns
from cnorm.kernels.job cimport (
    COLUMN_BLOCKS, FLOAT32, FLOAT64, GIVEN_BATCHES, GIVEN_IN_ORDER, PARTIALS_GUIDED, PARTIALS_STATIC, ROW_BATCHES,
    ROW_RANGES, RUNS, SAMPLES_PER_THREAD, SUMS_GIVEN, SUMS_INTERNAL, TWO_SWEEPS, UNIT_BATCHES, UNIT_BY_UNIT,
    WINDOW_SPANS, Job, MomentsJob, Schedule, StandardizeJob, Tensor, WindowJob, has_signs)
from cnorm.kernels.loops cimport LANES_ALIGN, LOOPS_BY_DTYPE, ROWS_UNROLLED
from cnorm.kernels.machine cimport (
    MACHINE, batch_bytes, batch_bytes_cached, cached_traffic, columns_from_memory, nontemporal_one_read,
    nontemporal_rows_grad, nontemporal_two_reads, row_pass_bytes, row_pass_bytes_from_memory, row_pass_bytes_half)
from cnorm.kernels.moments cimport UnitBlocks
from cnorm.kernels.tuning cimport (
    APART_MIN_BYTES, BATCH_BYTES_FROM_MEMORY, BATCH_GIVEN_SEGMENT_MAX, BATCH_MIN_CALL_BYTES, BATCH_MIN_UNITS,
    BATCH_UNITS, CHUNKS_PER_THREAD, COLUMN_PREFETCH_BYTES, MOMENT_ROWS, MOMENT_ROW_MAX, NONTEMPORAL_RUN_MIN_LINES,
    PREFETCH_DISTANCE, PREFETCH_SEGMENT_MAX, PREFETCH_SEGMENT_MIN, ROW_BATCH_MAX, ROW_PASS_APART, ROW_PASS_MAX_HALF,
    ROW_PASS_MAX_LONG, ROW_PASS_SHORT_BYTES, STACK_PARTIALS, STATIC_ROWS_MAX, SWEEP_UNITS_PER_THREAD, TILE)
from cnorm.kernels.units cimport has_element_params, units_of


# ---- pieces of work ----

cdef inline Py_ssize_t min_chunk(Py_ssize_t items, int threads) noexcept nogil:
    """The fewest items that a thread takes at a time: few enough to balance, enough to pay for the taking.

    Loops are `guided`: a thread takes its share of what is left. That is mostly what it took in the loop before and
    in the call before, so the data are in its own cache."""
    return max(1, items // (CHUNKS_PER_THREAD * threads))


cdef inline Py_ssize_t reversed_within_thread_range(Py_ssize_t item, Py_ssize_t items, int threads) noexcept nogil:
    """Item numbers that run backwards within each thread's share of the items: a thread begins with what it has just
    summed."""
    cdef Py_ssize_t share = (items + threads - 1) // threads, first = item // share * share
    return first + min(first + share, items) - 1 - item


cdef inline bint needs_two_sweeps(Py_ssize_t units, Py_ssize_t blocks, int threads) noexcept nogil:
    """Whether whole units would leave threads idle."""
    return threads > 1 and blocks > 1 and units < SWEEP_UNITS_PER_THREAD * threads and units % threads != 0


cdef inline int forced(int strategy) noexcept nogil:
    """Whether a test forces this strategy."""
    return MACHINE.force == strategy


# ---- how results are stored, and what is prefetched ----

cdef inline bint stores_nontemporal(const Tensor *y, const Tensor *x, const Tensor *dy, Py_ssize_t traffic,
                                    Py_ssize_t least) noexcept nogil:
    """Whether to store past the cache: not in place, where the cache line is in cache anyhow."""
    return traffic >= least and y.data != x.data and y.data != dy.data


cdef inline Py_ssize_t traffic_of(const Job *job, Py_ssize_t bytes) noexcept nogil:
    """Bytes that a call reads and writes, whose input has so many; of a piece of a call the whole call's."""
    return max(bytes, job.call_bytes) * (3 if job.dy.data != NULL or job.elements.fuse_add else 2)


cdef inline void begin_schedule(Schedule *schedule, int strategy, int threads, Py_ssize_t items) noexcept nogil:
    """Pieces of work, one by one, that threads share; how results are stored is not said."""
    schedule.strategy = strategy
    schedule.threads = threads
    schedule.items = items
    schedule.rows_per_pass = 1
    schedule.units_per_batch = 1


cdef inline Schedule plain_schedule(int strategy, int threads, Py_ssize_t items) noexcept nogil:
    """A schedule that has no more than pieces of work which threads share."""
    cdef Schedule schedule
    begin_schedule(&schedule, strategy, threads, items)
    schedule.nontemporal = False
    schedule.apart = False
    schedule.prefetch_bytes = 0
    schedule.prefetch_segments = 0
    return schedule


cdef inline bint units_lie_apart(const Job *job, Py_ssize_t segment) noexcept nogil:
    """Whether units of one segment each have gaps between them, in both arrays."""
    cdef Py_ssize_t least = segment + APART_MIN_BYTES
    return job.shape[2] == 1 and job.x.strides[1] >= least and job.y.strides[1] >= least


cdef inline void set_store_policy(const Job *job, UnitBlocks *blocks) noexcept nogil:
    """How the results of units are stored, and what is prefetched before it is read or written."""
    cdef Schedule *schedule = &blocks.schedule
    cdef Py_ssize_t segment = blocks.elements * blocks.loops.size
    cdef Py_ssize_t traffic = traffic_of(job, units_of(job) * blocks.segments * segment)
    cdef bint backward = job.dy.data != NULL or job.elements.fuse_add
    cdef bint in_order = job.stats_given and not backward
    cdef bint segments_apart = blocks.segments > 1 and job.x.strides[2] != segment and not in_order
    cdef Py_ssize_t least = nontemporal_one_read()
    if segments_apart:
        least = nontemporal_two_reads()
    elif backward and has_element_params(job):
        least = nontemporal_rows_grad()
    schedule.nontemporal = stores_nontemporal(&job.y, &job.x, &job.dy, traffic, least)
    schedule.apart = units_lie_apart(job, segment)
    schedule.prefetch_bytes = job.x.strides[1] if segments_apart else 0
    schedule.prefetch_segments = 0
    if segments_apart and blocks.runs == 1 and traffic >= cached_traffic():
        if PREFETCH_SEGMENT_MIN <= segment <= PREFETCH_SEGMENT_MAX:
            schedule.prefetch_segments = max(1, PREFETCH_DISTANCE // segment)


# ---- rows and segments, forward ----

cdef inline bint is_one_tile(const Job *job, const UnitBlocks *blocks) noexcept nogil:
    """Whether the loops of whole rows serve the units."""
    return (job.shape[2] == 1 and blocks.runs == 1 and blocks.tiles == 1 and not job.stats_given
            and job.elements.unit_slopes == NULL and not has_signs(job.finish.norm))


cdef inline Py_ssize_t rows_per_pass(const Job *job, const UnitBlocks *blocks) noexcept nogil:
    """Units of one tile that one call of the loops takes: they stay in L1 with their results."""
    cdef Py_ssize_t row = blocks.elements * blocks.loops.size, rows
    # one pass, without the divisions: a small call is not much longer
    if units_of(job) * row <= ROW_PASS_SHORT_BYTES and job.call_bytes == 0:
        return ROW_BATCH_MAX
    rows = row_pass_bytes_from_memory() // row
    if blocks.schedule.apart:
        rows = max(rows, min(<Py_ssize_t> ROW_PASS_APART, row_pass_bytes() // row))
    if 2 * max(units_of(job) * row, job.call_bytes) < cached_traffic():
        rows = min(<Py_ssize_t> ROW_PASS_MAX_LONG, row_pass_bytes() // row)
        if blocks.loops.size < blocks.loops.acc_size:  # half types; some passes for each thread
            rows = max(rows, min(min(<Py_ssize_t> ROW_PASS_MAX_HALF, row_pass_bytes_half() // row),
                                 units_of(job) // (CHUNKS_PER_THREAD // 2 * job.head.threads)))
        rows = max(ROW_PASS_SHORT_BYTES // row, rows)
    rows = min(<Py_ssize_t> ROW_BATCH_MAX, rows)
    return max(1, rows if rows < ROWS_UNROLLED else rows // ROWS_UNROLLED * ROWS_UNROLLED)


cdef inline Py_ssize_t units_per_batch(const Job *job, const UnitBlocks *blocks, bint backward) noexcept nogil:
    """Units that lie side by side in memory and are taken together; 1 or less: no batches.

    Where units have several segments, unit by unit a few cache lines are read here and a few there, and written so,
    which takes up to twice as long. Where each is one short segment, what is done once a unit is done for many."""
    cdef Py_ssize_t segment = blocks.elements * blocks.loops.size, unit = segment * blocks.segments
    cdef Py_ssize_t units = units_of(job), batch
    cdef int read = 2 if backward else 1
    if has_signs(job.finish.norm) or has_element_params(job) or blocks.runs > 1 or job.x.strides[1] != segment or (
            job.channels.by_segment and job.channels.inner_channels != 1):
        return 1
    if job.stats_given and not backward:
        return 1 if (blocks.schedule.nontemporal or segment > BATCH_GIVEN_SEGMENT_MAX
                     or job.shape[0] > 1) else BATCH_UNITS
    if blocks.segments == 1:
        if not backward or blocks.schedule.nontemporal:
            return 1
        batch = batch_bytes_cached() if (read + 1) * units * unit < cached_traffic() else BATCH_BYTES_FROM_MEMORY
        batch = batch // (read * unit)
        return min(<Py_ssize_t> BATCH_UNITS, batch) if batch >= BATCH_MIN_UNITS else 1
    if job.shape[0] > 1 or segment >= PREFETCH_SEGMENT_MIN or (read + 1) * units * unit < BATCH_MIN_CALL_BYTES:
        return 1
    batch = batch_bytes() // (read * unit)
    if job.channels.by_segment:  # parameters of more units are read and written together
        batch *= 2
    return min(<Py_ssize_t> BATCH_UNITS, min(batch, units // (2 * job.head.threads)))


cdef inline void schedule_units_forward(const Job *job, UnitBlocks *blocks) noexcept nogil:
    """Rows and segments, forward."""
    cdef Schedule *schedule = &blocks.schedule
    cdef Py_ssize_t units = units_of(job)
    cdef bint sweeps
    begin_schedule(schedule, UNIT_BY_UNIT, job.head.threads, units)
    set_store_policy(job, blocks)
    if is_one_tile(job, blocks) and not (forced(UNIT_BY_UNIT) or forced(TWO_SWEEPS)):
        schedule.strategy = ROW_BATCHES
        schedule.rows_per_pass = rows_per_pass(job, blocks)
        return
    schedule.units_per_batch = units_per_batch(job, blocks, False)
    sweeps = needs_two_sweeps(units, blocks.blocks, job.head.threads)
    if job.stats_given and schedule.units_per_batch > 1 and not (
            forced(UNIT_BY_UNIT) or forced(TWO_SWEEPS) or forced(GIVEN_IN_ORDER)):
        schedule.strategy = GIVEN_BATCHES
    elif job.stats_given and not has_element_params(job) and (
            units * blocks.segments >= job.head.threads or forced(GIVEN_IN_ORDER)) and not (
            forced(UNIT_BY_UNIT) or forced(TWO_SWEEPS)):
        schedule.strategy = GIVEN_IN_ORDER
        schedule.items = units * blocks.segments
    elif (sweeps or forced(TWO_SWEEPS)) and not (forced(UNIT_BY_UNIT) or forced(UNIT_BATCHES)):
        schedule.strategy = TWO_SWEEPS
        schedule.items = units * blocks.blocks
    elif schedule.units_per_batch > 1 and not job.stats_given and not forced(UNIT_BY_UNIT):
        schedule.strategy = UNIT_BATCHES


# ---- segments: moments alone, backward ----

cdef inline void schedule_segments_moments(const Job *job, UnitBlocks *blocks) noexcept nogil:
    cdef Schedule *schedule = &blocks.schedule
    cdef Py_ssize_t units = units_of(job)
    schedule[0] = plain_schedule(UNIT_BY_UNIT, job.head.threads, units)
    if is_one_tile(job, blocks) and not (forced(UNIT_BY_UNIT) or forced(TWO_SWEEPS)):
        schedule.strategy = ROW_BATCHES
        schedule.rows_per_pass = rows_per_pass(job, blocks)
    elif (needs_two_sweeps(units, blocks.blocks, job.head.threads) or forced(TWO_SWEEPS)) and not forced(UNIT_BY_UNIT):
        schedule.strategy = TWO_SWEEPS
        schedule.items = units * blocks.blocks


cdef inline void schedule_segments_backward(const Job *job, UnitBlocks *blocks, Py_ssize_t partials) noexcept nogil:
    """partials: how many partial sums a unit has."""
    cdef Schedule *schedule = &blocks.schedule
    cdef Py_ssize_t units = units_of(job)
    begin_schedule(schedule, UNIT_BY_UNIT, job.head.threads, units)
    set_store_policy(job, blocks)
    if job.channels.sums_mode == SUMS_GIVEN or (
            (needs_two_sweeps(units, partials, job.head.threads) or forced(TWO_SWEEPS))
            and not (forced(UNIT_BY_UNIT) or forced(UNIT_BATCHES))):
        schedule.strategy = TWO_SWEEPS
        schedule.items = units * partials
        return
    if (partials <= STACK_PARTIALS or job.channels.by_segment) and job.channels.sums_mode == SUMS_INTERNAL and not (
            forced(UNIT_BY_UNIT)):
        schedule.units_per_batch = units_per_batch(job, blocks, True)
    if schedule.units_per_batch > 1:
        schedule.strategy = UNIT_BATCHES


# ---- rows, backward ----

cdef inline void schedule_rows_backward(const Job *job, UnitBlocks *blocks, Py_ssize_t rows,
                                        Py_ssize_t partials) noexcept nogil:
    cdef Schedule *schedule = &blocks.schedule
    cdef int threads = job.head.threads
    begin_schedule(schedule, PARTIALS_GUIDED, threads, partials)
    set_store_policy(job, blocks)
    if (threads > 1 and partials < 2 * threads and partials % threads or forced(TWO_SWEEPS)) and not (
            forced(PARTIALS_STATIC) or forced(PARTIALS_GUIDED)):
        schedule.strategy = TWO_SWEEPS
    elif (threads == 1 or rows <= STATIC_ROWS_MAX * partials or forced(PARTIALS_STATIC)) and not (
            forced(PARTIALS_GUIDED)):
        schedule.strategy = PARTIALS_STATIC


# ---- columns ----

cdef inline bint samples_per_thread(const Job *job) noexcept nogil:
    """Whether each thread takes samples of its own."""
    if forced(SAMPLES_PER_THREAD):
        return True
    return job.head.threads > 1 and job.shape[0] >= 2 * job.head.threads


cdef inline Py_ssize_t column_prefetch_bytes(const Job *job, const ColumnLayout *layout) noexcept nogil:
    """How far ahead the loops of columns ask for rows that lie end to end. Not where a processor with an L1 of 32 KiB
    reads two arrays from memory: its own prefetchers see it (Zen 4: 0.86 to 0.95 of the time without)."""
    if job.dy.data != NULL and bytes_of_columns(job, layout) > columns_from_memory() and MACHINE.l1 <= 1 << 15:
        return 0
    return COLUMN_PREFETCH_BYTES


cdef inline void schedule_columns(const Job *job, ColumnLayout *layout, bint backward) noexcept nogil:
    """How a sample is processed: by column blocks, each from its first sum to its last result in the cache of one
    thread, where no block needs another's sums; else sums, a merge, results."""
    cdef Schedule *schedule = &layout.schedule
    # packed rows are one column block, whose sums are the rows' only once they are merged
    cdef bint independent = (layout.row_ranges == 1 and layout.rows_packed == 1 and not job.stats_given
                             and not job.channels.of_batch and job.channels.channels_per_group == 1)
    schedule[0] = plain_schedule(ROW_RANGES, job.head.threads, layout.row_ranges * layout.column_blocks)
    schedule.rows_per_pass = layout.rows_per_pass
    schedule.nontemporal = stores_nontemporal(
        &job.y, &job.x, &job.dy, traffic_of(job, bytes_of_columns(job, layout)),
        nontemporal_one_read() if job.stats_given and not job.read_before and not backward
        else nontemporal_two_reads())
    if independent and job.channels.sums_mode == SUMS_INTERNAL and (layout.column_blocks > 1 or forced(COLUMN_BLOCKS)):
        if not forced(ROW_RANGES):
            schedule.strategy = COLUMN_BLOCKS
            schedule.items = layout.column_blocks


cdef inline void schedule_columns_moments(const Job *job, ColumnLayout *layout) noexcept nogil:
    """Moments alone: nothing is applied, so no column block goes on to its results."""
    schedule_columns(job, layout, False)
    layout.schedule.strategy = ROW_RANGES
    layout.schedule.items = layout.row_ranges * layout.column_blocks


cdef inline void schedule_crossed(const Job *job, ColumnLayout *layout, Py_ssize_t items) noexcept nogil:
    """A table with statistics of rows and of columns: row ranges, a merge, results."""
    schedule_columns_moments(job, layout)
    layout.schedule.items = items
    layout.schedule.nontemporal = False


# ---- moments in double, standardize ----

cdef inline Py_ssize_t short_rows_together(const MomentsJob *job) noexcept nogil:
    """Rows that one call of the loops for short rows takes: of one run each, without a selection; else 0."""
    if job.mask != NULL or job.omit_nan or job.reduced.count != 1 or job.elements > MOMENT_ROW_MAX or (
            job.reduced.x[0] != LOOPS_BY_DTYPE[job.head.dtype].size):
        return 0
    return min(<Py_ssize_t> MOMENT_ROWS, TILE // job.elements)


cdef inline Schedule schedule_sequences(const MomentsJob *job, Py_ssize_t blocks) noexcept nogil:
    """blocks: of a unit, at most."""
    cdef Schedule schedule
    if short_rows_together(job) and not (forced(UNIT_BY_UNIT) or forced(TWO_SWEEPS)):
        schedule = plain_schedule(ROW_BATCHES, job.head.threads, job.units)
        schedule.rows_per_pass = short_rows_together(job)
        return schedule
    if (needs_two_sweeps(job.units, blocks, job.head.threads) or forced(TWO_SWEEPS)) and not forced(UNIT_BY_UNIT):
        return plain_schedule(TWO_SWEEPS, job.head.threads, job.units * blocks)
    return plain_schedule(UNIT_BY_UNIT, job.head.threads, job.units)


cdef inline bint samples_in_parallel(const MomentsJob *job, Py_ssize_t samples) noexcept nogil:
    """Columns: whether each thread takes samples of its own."""
    return job.head.threads > 1 and (samples >= 2 * job.head.threads or forced(SAMPLES_PER_THREAD)) and (
        not forced(ROW_RANGES))


cdef inline Py_ssize_t indices_per_visit(const StandardizeJob *job) noexcept nogil:
    """Of the outermost kept axis, that are measured and standardized while they are in L2; 0 where they do not fit, or
    leave threads idle. Moments of columns may run out of memory: not after results were written."""
    cdef const MomentsJob *measure = job.measure
    cdef Py_ssize_t size = measure.kept.shape[0] if measure.kept.count else 1, bytes
    if job.by_columns or job.outer_axis < 0 or measure.kept.count == 0:
        return 0
    bytes = measure.units // size * measure.elements * LOOPS_BY_DTYPE[job.head.dtype].size
    if forced(UNIT_BATCHES):
        return 1
    if forced(TWO_SWEEPS) or bytes > MACHINE.l2 // 4 or (
            job.head.threads > 1 and size < SWEEP_UNITS_PER_THREAD * job.head.threads and size % job.head.threads):
        return 0
    return max(1, min(MACHINE.l2 // 8 // bytes, size // (CHUNKS_PER_THREAD * job.head.threads)))


cdef inline Schedule schedule_standardize(const StandardizeJob *job, Py_ssize_t items, Py_ssize_t run_bytes,
                                          Py_ssize_t traffic) noexcept nogil:
    """run_bytes: of y, that lie side by side; traffic: bytes that the call reads and writes."""
    cdef Schedule schedule = plain_schedule(RUNS, job.head.threads, items)
    cdef Py_ssize_t least = nontemporal_two_reads() if job.read_before else nontemporal_one_read()
    cdef bint has_loop = (job.out_dtype == FLOAT32 or job.out_dtype == FLOAT64) and not (
        job.mask != NULL or job.clips or job.inverse)
    schedule.nontemporal = has_loop and job.x != job.y and max(traffic, job.call_bytes) >= least and (
        run_bytes >= NONTEMPORAL_RUN_MIN_LINES * LANES_ALIGN)
    return schedule


# ---- window ----

cdef inline void schedule_window(const WindowJob *job, Py_ssize_t items, Schedule *schedule) noexcept nogil:
    schedule[0] = plain_schedule(WINDOW_SPANS, job.head.threads, items)
