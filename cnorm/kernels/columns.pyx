# Columns: sums down the columns, a weight per column. BatchNorm of (N, C) and of channels last; and, a sample at a time,
# GroupNorm and InstanceNorm of channels last.
#
# a) Fewer than MIN_COLUMNS columns would leave lanes idle: consecutive rows then count as one packed row. How many
#    follows from C alone; rows that are not contiguous are gathered.
# b) A sample is cut into row ranges of ROW_RANGE_ROWS packed rows, or longer ones where that would make more than
#    ROW_RANGES_MAX; their number is a power of two, which threads share evenly. A range is visited in blocks of
#    COLUMN_BLOCK_ROWS: sums about a shift, in the accumulation type down a block, in double over blocks.
# c) A range is summed again, about its mean, where a column's shift was poor, and in double where a sum overflowed.
#    A column's choice depends on that column's data alone.
# d) Ranges merge in a tree, a vector of columns at a time; columns of a group merge about the mean of their means.
# e) What is done element by element takes contiguous rows as one run: rows are packed to whole lanes, and begin at a
#    cache line, with the coefficients of that column. The apply pass runs backwards over the rows, because the
#    statistics pass has left the last rows in cache. With given statistics the gradient does not depend on sums, so
#    both are computed in one pass.
# f) One range of more columns than a thread sums at a time (COLUMN_BLOCKS): a column block goes from its first sum to
#    its last result by itself, in the cache of one thread.
from cython.parallel cimport prange
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from cnorm.kernels.coefficients cimport N_GRAD_SUMS, PASS_BACKWARD, PASS_FORWARD, PASS_SUMS
from cnorm.kernels.columns_apply cimport (
    N_COLUMN_COEFFICIENTS, all_rows_contiguous, apply_column_block, apply_contiguous, apply_row_range,
    apply_rows, bind_coefficients, coefficient_bytes, coefficients_from, column_range_coefficients,
    expand_to_columns, reversed_within_share, sample_coefficients, split_column_means)
from cnorm.kernels.columns_layout cimport (
    ColumnLayout, RowAddresses, column_block_begin, column_block_size, column_layout, packed_rows_at,
    rows_are_contiguous)
from cnorm.kernels.columns_moments cimport (
    column_block_moments, columns_statistics, group_statistics, merge_packed, merge_row_ranges, partial_at,
    whole_rows)
from cnorm.kernels.job cimport COLUMN_BLOCKS, SUMS_GIVEN, SUMS_INTERNAL, SUMS_ONLY, Job
from cnorm.kernels.loops cimport ColumnCoefficients, store_fence
from cnorm.kernels.schedule cimport min_chunk, samples_per_thread, schedule_columns, schedule_columns_moments
from cnorm.kernels.statistics cimport mean_hi_part
from cnorm.kernels.tuning cimport (
    COEFFICIENT_CHUNK, COLUMN_BLOCK_ROWS, COLUMN_ROWS_PER_PASS, PACKED_COLUMNS_MAX, ROW_RANGES_MAX,
    STACK_DOUBLES)
from cnorm.kernels.workspace cimport workspace_alloc, workspace_free


cdef inline void column_block_item(const Job *job, const ColumnLayout *layout, bint gathered,
                                   Py_ssize_t sample, Py_ssize_t item, double *partials) noexcept nogil:
    cdef Py_ssize_t row_range = item // layout.column_blocks
    column_block_moments(job, layout, gathered, sample, row_range, item - row_range * layout.column_blocks,
                         partials)
    if layout.rows_packed > 1:  # there is then one column block
        merge_packed(layout, partial_at(layout, partials, row_range), row_range)


cdef int sample_moments(Job *job, const ColumnLayout *layout, Py_ssize_t sample,
                        int threads) noexcept nogil:
    cdef double counts[ROW_RANGES_MAX]
    cdef Py_ssize_t i, items = layout.row_ranges * layout.column_blocks
    cdef bint gathered = not rows_are_contiguous(job, &job.x)
    cdef double stack[STACK_DOUBLES]
    cdef double *partials = <double *> workspace_alloc(3 * layout.row_ranges * layout.packed_columns
                                                    * sizeof(double), stack)
    if partials == NULL:
        return -1
    if threads == 1:
        for i in range(items):
            column_block_item(job, layout, gathered, sample, i, partials)
    else:
        for i in prange(items, num_threads=threads, schedule="guided"):
            column_block_item(job, layout, gathered, sample, i, partials)
    for i in range(layout.row_ranges):
        counts[i] = <double> (min((i + 1) * layout.range_rows * layout.rows_packed, layout.rows) - i
                              * layout.range_rows * layout.rows_packed)
    merge_row_ranges(layout, partials, counts)
    group_statistics(job, layout, sample, partials)
    workspace_free(partials, stack)
    return 0


cdef int columns_moments(Job *job) noexcept nogil:
    """mean, lo, m2 and rstd of each group of columns of each sample."""
    cdef ColumnLayout layout = column_layout(job, job.threads)
    cdef Py_ssize_t i
    schedule_columns_moments(job, &layout)
    if job.schedule_only != NULL:
        job.schedule_only[0] = layout.schedule
        return 0
    for i in range(job.shape[0]):
        if sample_moments(job, &layout, i, job.threads) < 0:
            return -1
    return 0


cdef int sample_apply(const Job *job, const ColumnLayout *layout, const double *sums, double count,
                      Py_ssize_t sample, int threads, bint backward) noexcept nogil:
    cdef bint joined = all_rows_contiguous(job, backward)
    cdef Py_ssize_t fold = layout.rows_per_lanes if joined else 1, rows, items, i
    cdef ColumnCoefficients coeffs
    cdef double stack[STACK_DOUBLES]
    cdef char *workspace = <char *> workspace_alloc(N_COLUMN_COEFFICIENTS * coefficient_bytes(layout),
                                                    stack)
    if workspace == NULL:
        return -1
    sample_coefficients(job, layout, sample, sums, count, PASS_BACKWARD if backward else PASS_FORWARD,
                        workspace, &coeffs)
    rows = fold * max(COLUMN_ROWS_PER_PASS, min_chunk((layout.rows + fold - 1) // fold, threads))
    items = (layout.rows + rows - 1) // rows
    if threads == 1:
        for i in range(items):
            apply_row_range(job, layout, &coeffs, backward, joined, sample,
                            rows * (i if job.stats_given else items - 1 - i), rows)
    else:
        for i in prange(items, num_threads=threads, schedule="guided"):
            apply_row_range(job, layout, &coeffs, backward, joined, sample,
                            rows * (i if job.stats_given else reversed_within_share(i, items, threads)),
                            rows)
    workspace_free(workspace, stack)
    return 0


cdef void forward_column_block(Job *job, const ColumnLayout *layout, bint gathered, Py_ssize_t sample,
                               Py_ssize_t block, double *partials, char *workspace) noexcept nogil:
    cdef ColumnCoefficients coeffs = bind_coefficients(job, layout, workspace)
    cdef Py_ssize_t first = column_block_begin(layout, block), n = column_block_size(layout, block)
    column_block_moments(job, layout, gathered, sample, 0, block, partials)
    columns_statistics(job, layout, sample, partials, first, n)
    column_range_coefficients(job, layout, sample, NULL, 0, PASS_FORWARD, first, n, &coeffs)
    apply_column_block(job, layout, &coeffs, False, sample, block)


cdef int forward_column_blocks(Job *job, const ColumnLayout *layout, Py_ssize_t sample,
                               int threads) noexcept nogil:
    cdef Py_ssize_t i
    cdef bint gathered = not rows_are_contiguous(job, &job.x)
    cdef double *partials = <double *> malloc(3 * layout.packed_columns * sizeof(double)
                                           + N_COLUMN_COEFFICIENTS * coefficient_bytes(layout))
    cdef char *workspace = <char *> (partials + 3 * layout.packed_columns)
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
    if layout.schedule.strategy == COLUMN_BLOCKS:
        return forward_column_blocks(job, layout, sample, threads)
    if not job.stats_given and sample_moments(job, layout, sample, threads) < 0:
        return -1
    return sample_apply(job, layout, NULL, 0, sample, threads, False)


cdef int columns_forward(Job *job) noexcept nogil:
    """y = (x - mean) * rstd * weight + bias; mean, lo, m2 and rstd are written (read where given)."""
    cdef bint by_sample = samples_per_thread(job)
    cdef ColumnLayout layout = column_layout(job, 1 if by_sample else job.threads)
    cdef Py_ssize_t i
    cdef int failed = 0
    schedule_columns(job, &layout, False)
    if job.schedule_only != NULL:
        job.schedule_only[0] = layout.schedule
        return 0
    if by_sample:
        for i in prange(job.shape[0], num_threads=job.threads, schedule="guided",
                        chunksize=min_chunk(job.shape[0], job.threads)):
            failed += forward_sample(job, &layout, i, 1)  # summed over the threads
        return -1 if failed else 0
    for i in range(job.shape[0]):
        if forward_sample(job, &layout, i, job.threads) < 0:
            return -1
    return 0


# ---- backward ----
# The partial of a row range holds N_GRAD_SUMS sums of each (packed) column.


cdef inline bint takes_sum(const Job *job, const ColumnLayout *layout, Py_ssize_t k) noexcept nogil:
    """Whether this call takes sum k of them."""
    return k < 2 or (k == 2 and layout.loops.acc_size == 8) or (k == 3 and job.activation)


cdef enum GradientTiming:   # when the gradient of the input is computed:
    GRAD_AFTER_SUMS     # when all sums are there
    GRAD_BY_ROW         # in the pass that takes the sums, row by row (given statistics)
    GRAD_CONTIGUOUS     # in the pass that takes the sums, over contiguous rows (given statistics)


cdef void column_block_grad_sums(const Job *job, const ColumnLayout *layout,
                                 const ColumnCoefficients *coeffs, bint gathered, GradientTiming gradient,
                                 Py_ssize_t sample, Py_ssize_t row_range, Py_ssize_t block,
                                 double *partials) noexcept nogil:
    """Sums of a row range over one column block; and the gradient of its rows, unless that waits for all sums."""
    cdef double x_buffer[COLUMN_BLOCK_ROWS * PACKED_COLUMNS_MAX]
    cdef double dy_buffer[COLUMN_BLOCK_ROWS * PACKED_COLUMNS_MAX]
    cdef RowAddresses x, dy
    cdef Py_ssize_t column = column_block_begin(layout, block), count = column_block_size(layout,
            block), n, k
    cdef Py_ssize_t row = row_range * layout.range_rows, stop = row + whole_rows(layout,
            row_range), rows, last
    cdef double *sums = partials + N_GRAD_SUMS * layout.packed_columns * row_range + column
    cdef ColumnCoefficients g = coefficients_from(coeffs, column * layout.loops.acc_size)
    for k in range(N_GRAD_SUMS):
        if takes_sum(job, layout, k):
            memset(sums + k * layout.packed_columns, 0, count * sizeof(double))
    if layout.last_columns and row_range == layout.row_ranges - 1:
        stop += 1
    while row < stop:
        rows = min(COLUMN_BLOCK_ROWS, stop - row)
        n = count
        if layout.last_columns and row + rows == layout.packed_rows:
            if rows > 1:
                rows -= 1
            else:
                n = min(count, layout.last_columns - column)
                if n <= 0:
                    return
        packed_rows_at(job, layout, &job.x, gathered, sample, row, rows, column, <char *> x_buffer, &x)
        packed_rows_at(job, layout, &job.dy, gathered, sample, row, rows, column, <char *> dy_buffer, &dy)
        x.loops.column_grad_sums(x.at, dy.at, rows, n, layout.rows_per_pass, &g, job.activation, sums,
                                 sums + layout.packed_columns, sums + 2 * layout.packed_columns,
                                 sums + 3 * layout.packed_columns)
        last = min((row + rows) * layout.rows_packed, layout.rows)
        if gradient == GRAD_CONTIGUOUS:
            apply_contiguous(job, layout, &g, True, sample, row * layout.rows_packed, last)
        elif gradient == GRAD_BY_ROW:
            apply_rows(job, layout, &g, True, sample, row * layout.rows_packed, last, column,
                       min(count, layout.columns))
        row += rows


cdef inline bint takes_mean_lo(const Job *job, const ColumnLayout *layout) noexcept nogil:
    """Whether the low row_range of the mean comes out of the sums of (x - hi)."""
    return layout.loops.acc_size == 8 and not job.stats_given and job.channels.sums_mode == SUMS_INTERNAL and job.lo != NULL


cdef void add_row_ranges(const Job *job, const ColumnLayout *layout, double *partials) noexcept nogil:
    """Add up the row ranges, then the packed columns; the first C of each sum then hold the totals."""
    cdef Py_ssize_t row_range, c, k
    cdef double *sums
    cdef const double *other
    for k in range(N_GRAD_SUMS):
        if not takes_sum(job, layout, k):
            continue
        sums = partials + k * layout.packed_columns
        for row_range in range(1, layout.row_ranges):
            other = sums + N_GRAD_SUMS * layout.packed_columns * row_range
            for c in range(layout.packed_columns):
                sums[c] += other[c]
        for row_range in range(1, layout.rows_packed):
            other = sums + row_range * layout.columns
            for c in range(layout.columns):
                sums[c] += other[c]


cdef void chunk_totals(Job *job, const ColumnLayout *layout, Py_ssize_t sample, double *partials,
                       Py_ssize_t first, Py_ssize_t n, double *sums) noexcept nogil:
    """The gradients of the parameters of n columns, and what they add to the sums of their groups."""
    cdef Py_ssize_t size = job.channels.channels_per_group
    cdef double hi[COEFFICIENT_CHUNK]
    cdef double lo[COEFFICIENT_CHUNK]
    cdef double value[COEFFICIENT_CHUNK]
    cdef Py_ssize_t j, at = first // size, left, groups = layout.columns // size
    cdef double *grad_weight = job.channels.grad_weight + sample * layout.columns + first
    cdef const double *g = partials + first
    cdef const double *gd = partials + layout.packed_columns + first
    expand_to_columns(job.rstd + sample * groups, 1, size, first, n, value)
    split_column_means(job, layout, sample, first, n, value, hi, lo)
    for j in range(n):
        hi[j] = gd[j] - lo[j] * g[j]
    for j in range(n):
        grad_weight[j] = value[j] * hi[j]
    memcpy(job.channels.grad_bias + sample * layout.columns + first, g, n * sizeof(double))
    if job.activation:
        memcpy(job.channels.grad_slope + sample * layout.columns + first,
               partials + 3 * layout.packed_columns + first, n * sizeof(double))
    if job.channels.weight != NULL:
        memcpy(value, job.channels.weight + first, n * sizeof(double))
    else:
        for j in range(n):
            value[j] = 1
    left = size - first % size
    for j in range(n):
        sums[2 * at] += value[j] * g[j]
        sums[2 * at + 1] += value[j] * hi[j]
        left -= 1
        if left == 0:
            at += 1
            left = size


cdef void column_totals(Job *job, const ColumnLayout *layout, Py_ssize_t sample, double *partials,
                        Py_ssize_t first, Py_ssize_t n, double *sums) noexcept nogil:
    """From the partials of n columns, whole groups, to the weighted sums of each group, and the gradients of the
    columns' parameters."""
    cdef Py_ssize_t size = job.channels.channels_per_group
    cdef Py_ssize_t c, group, at, groups = layout.columns // size, stop = first + n
    cdef double lo, mean
    if takes_mean_lo(job, layout):
        for group in range(first // size,
                           stop // size):
            lo = 0
            for c in range(group * size,
                           (group + 1) * size):
                lo += partials[2 * layout.packed_columns + c]
            at = sample * groups + group
            mean = job.mean[at]
            job.lo[at] = lo / <double> (layout.rows * size) - (mean
                    - mean_hi_part(mean, mean, job.rstd[at], job.eps))
    memset(sums + 2 * (first // size), 0,
           2 * (n // size) * sizeof(double))
    while first < stop:
        n = min(<Py_ssize_t> COEFFICIENT_CHUNK, stop - first)
        chunk_totals(job, layout, sample, partials, first, n, sums)
        first += n


cdef inline void grad_column_block_item(const Job *job, const ColumnLayout *layout,
                                        const ColumnCoefficients *coeffs, bint gathered,
                                        GradientTiming gradient, Py_ssize_t sample, Py_ssize_t item,
                                        double *partials) noexcept nogil:
    cdef Py_ssize_t row_range = item // layout.column_blocks
    column_block_grad_sums(job, layout, coeffs, gathered, gradient, sample, row_range,
                           item - row_range * layout.column_blocks, partials)
    if coeffs.nontemporal:
        store_fence()


cdef int sample_grad_sums(Job *job, const ColumnLayout *layout, double *sums, Py_ssize_t sample,
                          int threads, bint apply) noexcept nogil:
    """Sums of a sample; with `apply` also its gradient, in the same visit."""
    cdef Py_ssize_t i, items = layout.row_ranges * layout.column_blocks
    cdef GradientTiming gradient = GRAD_AFTER_SUMS
    cdef bint gathered = not (rows_are_contiguous(job, &job.x) and rows_are_contiguous(job, &job.dy))
    cdef ColumnCoefficients coeffs
    cdef double stack[STACK_DOUBLES]
    cdef double *partials = <double *> workspace_alloc(N_GRAD_SUMS * layout.row_ranges
                                                       * layout.packed_columns * sizeof(double) + N_COLUMN_COEFFICIENTS * coefficient_bytes(layout), stack)
    cdef char *workspace = <char *> (partials + N_GRAD_SUMS * layout.row_ranges * layout.packed_columns)
    if partials == NULL:
        return -1
    if apply:
        gradient = GRAD_CONTIGUOUS if layout.column_blocks == 1 and all_rows_contiguous(job,
                True) else GRAD_BY_ROW
    sample_coefficients(job, layout, sample, NULL, 0, PASS_BACKWARD if apply else PASS_SUMS, workspace,
                        &coeffs)
    if threads == 1:
        for i in range(items):
            grad_column_block_item(job, layout, &coeffs, gathered, gradient, sample, i, partials)
    else:
        for i in prange(items, num_threads=threads, schedule="guided"):
            grad_column_block_item(job, layout, &coeffs, gathered, gradient, sample, i, partials)
    add_row_ranges(job, layout, partials)
    column_totals(job, layout, sample, partials, 0, layout.columns, sums)
    workspace_free(partials, stack)
    return 0


cdef void backward_column_block(Job *job, const ColumnLayout *layout, bint gathered, Py_ssize_t sample,
                                Py_ssize_t block, double *partials, double *sums,
                                char *workspace) noexcept nogil:
    cdef ColumnCoefficients coeffs = bind_coefficients(job, layout, workspace)
    cdef Py_ssize_t first = column_block_begin(layout, block), n = column_block_size(layout, block)
    column_range_coefficients(job, layout, sample, NULL, 0, PASS_SUMS, first, n, &coeffs)
    column_block_grad_sums(job, layout, &coeffs, gathered, GRAD_AFTER_SUMS, sample, 0, block, partials)
    column_totals(job, layout, sample, partials, first, n, sums)
    column_range_coefficients(job, layout, sample, sums, <double> layout.rows, PASS_BACKWARD, first, n,
                              &coeffs)
    apply_column_block(job, layout, &coeffs, True, sample, block)


cdef int backward_column_blocks(Job *job, const ColumnLayout *layout, Py_ssize_t sample,
                                int threads) noexcept nogil:
    cdef Py_ssize_t i
    cdef bint gathered = not (rows_are_contiguous(job, &job.x) and rows_are_contiguous(job, &job.dy))
    cdef double *partials = <double *> malloc((N_GRAD_SUMS + 2) * layout.packed_columns * sizeof(double)
                                           + N_COLUMN_COEFFICIENTS * coefficient_bytes(layout))
    cdef double *sums = partials + N_GRAD_SUMS * layout.packed_columns
    cdef char *workspace = <char *> (sums + 2 * layout.packed_columns)
    if partials == NULL:
        return -1
    if threads == 1:
        for i in range(layout.column_blocks):
            backward_column_block(job, layout, gathered, sample, i, partials, sums, workspace)
    else:
        for i in prange(layout.column_blocks, num_threads=threads, schedule="guided"):
            backward_column_block(job, layout, gathered, sample, i, partials, sums, workspace)
    free(partials)
    return 0


cdef int backward_sample(Job *job, const ColumnLayout *layout, Py_ssize_t sample,
                         int threads) noexcept nogil:
    cdef Py_ssize_t size = job.channels.channels_per_group
    cdef Py_ssize_t groups = layout.columns // size
    cdef double count = <double> (layout.rows * size)
    cdef double *sums = job.channels.sums + 2 * groups * sample
    cdef bint at_once = job.stats_given and job.channels.sums_mode == SUMS_INTERNAL
    cdef double stack[STACK_DOUBLES]
    cdef int failed = 0
    if layout.schedule.strategy == COLUMN_BLOCKS:
        return backward_column_blocks(job, layout, sample, threads)
    if job.channels.sums_mode == SUMS_INTERNAL:
        sums = <double *> workspace_alloc(2 * groups * sizeof(double), stack)
        if sums == NULL:
            return -1
    if job.channels.sums_mode != SUMS_GIVEN:
        failed = sample_grad_sums(job, layout, sums, sample, threads, at_once)
    else:
        count = job.channels.count
    if not failed and job.channels.sums_mode != SUMS_ONLY and not at_once:
        failed = sample_apply(job, layout, sums, count, sample, threads, True)
    if job.channels.sums_mode == SUMS_INTERNAL:
        workspace_free(sums, stack)
    return failed


cdef int columns_backward(Job *job) noexcept nogil:
    """Gradients; y is the gradient of the input. grad_* are per sample and column."""
    cdef bint by_sample = samples_per_thread(job)
    cdef ColumnLayout layout = column_layout(job, 1 if by_sample else job.threads)
    cdef Py_ssize_t i
    cdef int failed = 0
    schedule_columns(job, &layout, True)
    if job.schedule_only != NULL:
        job.schedule_only[0] = layout.schedule
        return 0
    if by_sample:
        for i in prange(job.shape[0], num_threads=job.threads, schedule="guided",
                        chunksize=min_chunk(job.shape[0], job.threads)):
            failed += backward_sample(job, &layout, i, 1)  # summed over the threads
        return -1 if failed else 0
    for i in range(job.shape[0]):
        if backward_sample(job, &layout, i, job.threads) < 0:
            return -1
    return 0
