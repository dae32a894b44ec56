# Columns, forward: sums down the columns, a weight per column. BatchNorm of (N, C) and of channels last; and,
# a sample at a time, GroupNorm and InstanceNorm of channels last. columns_backward.pyx has the gradients.
# With a weight per row instead (ElementParams): LayerNorm and RMSNorm over an axis that is not the last in memory,
# whose units are columns.
#
# a) Fewer than MIN_COLUMNS columns would leave lanes idle: consecutive rows then count as one packed row. How
#    many follows from C alone; rows that are not contiguous are gathered.
# b) A sample is cut into row ranges of ROW_RANGE_ROWS packed rows, or longer ones where that would make more
#    than ROW_RANGES_MAX; their number is a power of two, which threads share evenly. A range is visited in
#    blocks of COLUMN_BLOCK_ROWS: sums about a shift, in the accumulation type in a block, in double over all.
# c) A range is summed again, about its mean, where a column's shift was poor, and in double where a sum
#    overflowed. A column's choice depends on that column's data alone.
# d) Ranges merge in a tree, a vector of columns at a time. Columns of a group merge about their means' mean.
# e) What is done element by element takes contiguous rows as one run: rows are packed to whole lanes, and
#    begin at a cache line, with the coefficients of that column. The apply pass runs backwards over the rows,
#    because the statistics pass has left the last rows in cache. With given statistics the gradient does not
#    depend on sums, so both are computed in one pass.
# f) One range of more columns than a thread sums at a time (COLUMN_BLOCKS): a column block goes from its
#    first sum to its last result by itself, in the cache of one thread.
from cython.parallel cimport prange
from libc.stdlib cimport free, malloc

from cnorm.kernels.coefficients cimport PASS_BACKWARD, PASS_FORWARD
from cnorm.kernels.columns_apply cimport (
    N_COLUMN_COEFFICIENTS, all_rows_contiguous, apply_column_block, apply_row_range, bind_coefficients,
    coefficient_bytes, column_range_coefficients, sample_coefficients)
from cnorm.kernels.columns_layout cimport (
    ColumnLayout, column_block_begin, column_block_size, row_at, rows_are_contiguous, set_column_layout)
from cnorm.kernels.columns_moments cimport (
    column_block_moments, columns_statistics, group_statistics, merge_packed, merge_row_ranges, partial_at)
from cnorm.kernels.job cimport COLUMN_BLOCKS, Job, Tensor
from cnorm.kernels.loops cimport ColumnCoefficients
from cnorm.kernels.schedule cimport (
    min_chunk, reversed_within_thread_range, samples_per_thread, schedule_columns, schedule_columns_moments)
from cnorm.kernels.tuning cimport COLUMN_ROWS_PER_PASS, ROW_RANGES_MAX, STACK_DOUBLES
from cnorm.kernels.workspace cimport workspace_alloc, workspace_free


# ---- the statistics of a sample ----


cdef void add_column_block(const Job *job, const ColumnLayout *layout, Py_ssize_t sample, Py_ssize_t row_range,
                           Py_ssize_t block) noexcept nogil:
    """x = addend[0] + addend[1] over one column block of one row range, just before it is summed."""
    cdef Py_ssize_t column = 0, n = layout.columns, rows = layout.range_rows * layout.rows_packed, row, bytes
    cdef const Tensor *one = &job.elements.addend[0]
    cdef const Tensor *other = &job.elements.addend[1]
    if layout.rows_packed == 1:
        column = column_block_begin(layout, block)
        n = column_block_size(layout, block)
    bytes = column * layout.loops.size
    for row in range(row_range * rows, min((row_range + 1) * rows, layout.rows)):
        layout.loops.add(row_at(job, one, sample, row) + bytes, row_at(job, other, sample, row) + bytes,
                         row_at(job, &job.x, sample, row) + bytes, n)


cdef inline void column_block_item(const Job *job, const ColumnLayout *layout, bint gathered,
                                   Py_ssize_t sample, Py_ssize_t item, double *partials) noexcept nogil:
    """The moments of one column block in one row range; items count the blocks of each range in turn."""
    cdef Py_ssize_t row_range = item // layout.column_blocks
    if job.elements.fuse_add:
        add_column_block(job, layout, sample, row_range, item - row_range * layout.column_blocks)
    column_block_moments(job, layout, gathered, sample, row_range, item - row_range * layout.column_blocks,
                         partials)
    if layout.rows_packed > 1:  # there is then one column block
        merge_packed(layout, partial_at(layout, partials, row_range), row_range)


cdef void merge_sample(Job *job, const ColumnLayout *layout, Py_ssize_t sample, double *partials) noexcept nogil:
    """The statistics of a sample from the partials of its row ranges."""
    cdef double counts[ROW_RANGES_MAX]
    cdef Py_ssize_t range_rows = layout.range_rows * layout.rows_packed, i
    for i in range(layout.row_ranges):
        counts[i] = <double> (min((i + 1) * range_rows, layout.rows) - i * range_rows)
    merge_row_ranges(layout, partials, counts)
    group_statistics(job, layout, sample, partials)


cdef int sample_moments(Job *job, const ColumnLayout *layout, Py_ssize_t sample, int threads) noexcept nogil:
    """mean, lo, m2 and rstd of each group of columns of a sample."""
    cdef Py_ssize_t items = layout.row_ranges * layout.column_blocks, i
    cdef Py_ssize_t bytes = 3 * layout.row_ranges * layout.packed_columns * sizeof(double)
    cdef bint gathered = not rows_are_contiguous(job, &job.x)
    cdef double stack[STACK_DOUBLES]
    cdef double *partials = <double *> workspace_alloc(bytes, stack)
    if partials == NULL:
        return -1
    if threads == 1:
        for i in range(items):
            column_block_item(job, layout, gathered, sample, i, partials)
    else:
        for i in prange(items, num_threads=threads, schedule="guided"):
            column_block_item(job, layout, gathered, sample, i, partials)
    merge_sample(job, layout, sample, partials)
    workspace_free(partials, stack)
    return 0


cdef int columns_moments(Job *job) noexcept nogil:
    """mean, lo, m2 and rstd of each group of columns, a sample at a time."""
    cdef ColumnLayout layout
    cdef Py_ssize_t i
    set_column_layout(job, job.head.threads, &layout)
    schedule_columns_moments(job, &layout)
    if job.head.schedule_only != NULL:
        job.head.schedule_only[0] = layout.schedule
        return 0
    for i in range(job.shape[0]):
        if sample_moments(job, &layout, i, job.head.threads) < 0:
            return -1
    return 0


# ---- ROW_RANGES: results of a sample whose statistics are there ----


cdef void apply_sample(const Job *job, const ColumnLayout *layout, const ColumnCoefficients *coeffs,
                       Py_ssize_t sample, int threads, bint backward) noexcept nogil:
    """The result of a sample whose coefficients are there; backward: the gradient of its input.

    It runs backwards over the rows where a statistics pass has left the last rows in cache."""
    cdef bint contiguous = all_rows_contiguous(job, backward)
    cdef Py_ssize_t packed = layout.rows_per_lanes if contiguous else 1, rows, items, i
    cdef bint forwards = job.stats_given  # there was no statistics pass
    rows = packed * max(COLUMN_ROWS_PER_PASS, min_chunk((layout.rows + packed - 1) // packed, threads))
    items = (layout.rows + rows - 1) // rows
    if threads == 1:
        for i in range(items):
            apply_row_range(job, layout, coeffs, backward, contiguous, sample,
                            rows * (i if forwards else items - 1 - i), rows)
    else:
        for i in prange(items, num_threads=threads, schedule="guided"):
            apply_row_range(job, layout, coeffs, backward, contiguous, sample,
                            rows * (i if forwards else reversed_within_thread_range(i, items, threads)), rows)


cdef int sample_apply(const Job *job, const ColumnLayout *layout, const double *sums, double count,
                      Py_ssize_t sample, int threads, bint backward) noexcept nogil:
    """The result of a sample; backward: from sums (groups, 2) over `count` elements."""
    cdef ColumnCoefficients coeffs
    cdef double stack[STACK_DOUBLES]
    cdef char *workspace = <char *> workspace_alloc(N_COLUMN_COEFFICIENTS * coefficient_bytes(layout), stack)
    if workspace == NULL:
        return -1
    sample_coefficients(job, layout, sample, sums, count, PASS_BACKWARD if backward else PASS_FORWARD,
                        workspace, &coeffs)
    apply_sample(job, layout, &coeffs, sample, threads, backward)
    workspace_free(workspace, stack)
    return 0


# ---- COLUMN_BLOCKS: each column block from its first sum to its last result ----


cdef void forward_column_block(Job *job, const ColumnLayout *layout, bint gathered, Py_ssize_t sample,
                               Py_ssize_t block, double *partials, char *workspace) noexcept nogil:
    """Statistics and results of one column block; blocks share the workspaces, each at its own columns."""
    cdef ColumnCoefficients coeffs
    cdef Py_ssize_t first = column_block_begin(layout, block), n = column_block_size(layout, block)
    bind_coefficients(job, layout, sample, workspace, &coeffs)
    if job.elements.fuse_add:
        add_column_block(job, layout, sample, 0, block)
    column_block_moments(job, layout, gathered, sample, 0, block, partials)
    columns_statistics(job, layout, sample, partials, first, n)
    column_range_coefficients(job, layout, sample, NULL, 0, PASS_FORWARD, first, n, &coeffs)
    apply_column_block(job, layout, &coeffs, False, sample, block)


cdef int forward_column_blocks(Job *job, const ColumnLayout *layout, Py_ssize_t sample,
                               int threads) noexcept nogil:
    """COLUMN_BLOCKS."""
    cdef Py_ssize_t partial_doubles = 3 * layout.packed_columns, i
    cdef Py_ssize_t bytes = N_COLUMN_COEFFICIENTS * coefficient_bytes(layout)
    cdef bint gathered = not rows_are_contiguous(job, &job.x)
    cdef double *partials = <double *> malloc(partial_doubles * sizeof(double) + bytes)
    cdef char *workspace = <char *> (partials + partial_doubles)
    if partials == NULL:
        return -1
    if threads == 1:
        for i in range(layout.column_blocks):
            forward_column_block(job, layout, gathered, sample, i, partials, workspace)
    else:
        for i in prange(layout.column_blocks, num_threads=threads, schedule="guided"):
            forward_column_block(job, layout, gathered, sample, i, partials, workspace)
    free(partials)
    return 0


cdef inline int forward_sample(Job *job, const ColumnLayout *layout, Py_ssize_t sample,
                               int threads) noexcept nogil:
    """Statistics, unless given, and results of one sample."""
    if layout.schedule.strategy == COLUMN_BLOCKS:
        return forward_column_blocks(job, layout, sample, threads)
    if not job.stats_given and sample_moments(job, layout, sample, threads) < 0:
        return -1
    return sample_apply(job, layout, NULL, 0, sample, threads, False)


cdef int columns_forward(Job *job) noexcept nogil:
    """y = (x - mean) * rstd * weight + bias; mean, lo, m2 and rstd are written (read where given)."""
    cdef bint by_sample = samples_per_thread(job)
    cdef ColumnLayout layout
    cdef Py_ssize_t i
    cdef int failed = 0
    set_column_layout(job, 1 if by_sample else job.head.threads, &layout)
    schedule_columns(job, &layout, False)
    if job.head.schedule_only != NULL:
        job.head.schedule_only[0] = layout.schedule
        return 0
    if job.channels.of_batch:
        return columns_forward_sets(job, &layout, by_sample)
    if by_sample:
        for i in prange(job.shape[0], num_threads=job.head.threads, schedule="guided",
                        chunksize=min_chunk(job.shape[0], job.head.threads)):
            failed += forward_sample(job, &layout, i, 1)  # summed over the threads
        return -1 if failed else 0
    for i in range(job.shape[0]):
        if forward_sample(job, &layout, i, job.head.threads) < 0:
            return -1
    return 0
