# Columns, backward: the gradients of BatchNorm, GroupNorm and InstanceNorm where channels are last.
# columns.pyx says how a sample is cut, and has sample_apply, which computes the gradient of the input from
# the sums.
#
# a) The partial of a row range holds N_GRAD_SUMS sums of each packed column: of g, of g * d, of d (float64
#    only) and of the slope's gradient, where d = x - mean_hi.
# b) Row ranges, then packed columns of one column, add up in the order of their numbers. The totals give the
#    gradients of the columns' parameters and two weighted sums per group, from which follow the coefficients
#    of the gradient of the input.
# c) Where rows have parameters, their gradients are sums along the rows, of ROW_SUM_COLUMNS columns at a time, in
#    numbered slots that add up in the order of samples and chunks of columns.
# d) With given statistics the gradient of the input does not depend on sums, so one pass computes both.
from cython.parallel cimport prange
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from cnorm.kernels.coefficients cimport N_GRAD_SUMS, PASS_BACKWARD, PASS_SUMS, fill
from cnorm.kernels.columns_apply cimport (
    N_COLUMN_COEFFICIENTS, all_rows_contiguous, apply_column_block, apply_contiguous_rows, apply_rows,
    bind_coefficients, coefficient_bytes, coefficients_from, column_range_coefficients, expand_to_columns,
    move_to_row, sample_coefficients, split_column_means)
from cnorm.kernels.columns_layout cimport (
    ColumnLayout, PackedRows, column_block_begin, column_block_size, rows_are_contiguous, set_column_layout,
    set_packed_rows, sums_rows)
from cnorm.kernels.columns_moments cimport whole_rows
from cnorm.kernels.job cimport COLUMN_BLOCKS, NORM_NONE, SUMS_GIVEN, SUMS_INTERNAL, SUMS_ONLY, Job, has_slopes
from cnorm.kernels.loops cimport ColumnCoefficients, store_fence
from cnorm.kernels.schedule cimport min_chunk, samples_per_thread, schedule_columns
from cnorm.kernels.statistics cimport gdev_from_norm, mean_hi_part
from cnorm.kernels.tuning cimport (
    COEFFICIENT_CHUNK, COLUMN_BLOCK_ROWS, PACKED_COLUMNS_MAX, ROW_SUM_COLUMNS, STACK_DOUBLES)
from cnorm.kernels.workspace cimport workspace_alloc, workspace_free


cdef enum GradientTiming:   # when the gradient of the input is computed:
    GRAD_AFTER_SUMS     # when all sums are there
    GRAD_BY_ROW         # in the pass that takes the sums, row by row (given statistics)
    GRAD_CONTIGUOUS     # in the pass that takes the sums, over contiguous rows (given statistics)


cdef inline bint takes_sum(const Job *job, const ColumnLayout *layout, Py_ssize_t k) noexcept nogil:
    """Whether this call takes sum k of the N_GRAD_SUMS."""
    return k < 2 or (k == 2 and layout.loops.acc_size == 8) or (k == 3 and has_slopes(job.activation))


# ---- the sums of a row range over one column block ----


cdef void row_chunks_grad_sums(const Job *job, const ColumnLayout *layout, const ColumnCoefficients *coeffs,
                               Py_ssize_t sample, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t column, Py_ssize_t n,
                               PackedRows *x, PackedRows *dy, double *sums) noexcept nogil:
    """The sums down n columns of some rows, and, of each chunk of ROW_SUM_COLUMNS columns, along these rows."""
    cdef Py_ssize_t width = layout.packed_columns, chunk = column // ROW_SUM_COLUMNS, begin, count, k, i
    cdef double *row_sums[3]
    cdef ColumnCoefficients chunk_coeffs
    for begin from 0 <= begin < n by ROW_SUM_COLUMNS:
        count = min(<Py_ssize_t> ROW_SUM_COLUMNS, n - begin)
        chunk_coeffs = coefficients_from(coeffs, begin * layout.loops.acc_size)
        move_to_row(layout, row, &chunk_coeffs)
        for k in range(3):
            row_sums[k] = layout.row_sums + ((sample * layout.row_chunks + chunk) * 3 + k) * layout.rows + row
        layout.loops.column_grad_sums(x.at, dy.at, rows, count, layout.rows_per_pass, &chunk_coeffs, job.activation,
                                      sums, sums + width, sums + 2 * width, sums + 3 * width, row_sums)
        for i in range(rows):
            x.at[i] += count * layout.loops.size
            dy.at[i] += count * layout.loops.size
        sums += count
        chunk += 1


cdef void row_totals(const Job *job, const ColumnLayout *layout) noexcept nogil:
    """The gradients of the parameters of rows: of all samples, or of each run of samples with a set of their own."""
    cdef Py_ssize_t samples = job.shape[0], rows = layout.rows, sample, chunk, k, i
    cdef double *total = job.elements.grad_weight
    cdef const double *sums = layout.row_sums
    if job.elements.param_sets > 1:
        samples = job.elements.units_per_set // layout.columns
    for sample in range(job.shape[0]):
        if sample % samples == 0:
            total = job.elements.grad_weight + 3 * rows * (sample // samples)
            memset(total, 0, 3 * rows * sizeof(double))
        for chunk in range(layout.row_chunks):
            for k in range(3 if has_slopes(job.activation) else 2):
                for i in range(rows):
                    total[k * rows + i] += sums[k * rows + i]
            sums += 3 * rows


cdef void column_block_grad_sums(const Job *job, const ColumnLayout *layout, const ColumnCoefficients *coeffs,
                                 bint gathered, GradientTiming timing, Py_ssize_t sample,
                                 Py_ssize_t row_range, Py_ssize_t block, double *partials) noexcept nogil:
    """The sums of a row range over one column block; and the gradient of its rows, unless that waits for all
    sums.

    partials: (row_ranges, N_GRAD_SUMS, packed_columns)."""
    cdef double x_buffer[COLUMN_BLOCK_ROWS * PACKED_COLUMNS_MAX]
    cdef double dy_buffer[COLUMN_BLOCK_ROWS * PACKED_COLUMNS_MAX]
    cdef PackedRows x, dy
    cdef Py_ssize_t column = column_block_begin(layout, block), count = column_block_size(layout, block), n, k
    cdef Py_ssize_t row = row_range * layout.range_rows, stop = row + whole_rows(layout, row_range)
    cdef Py_ssize_t width = layout.packed_columns, rows, first, last
    cdef double *sums = partials + N_GRAD_SUMS * width * row_range + column
    cdef ColumnCoefficients block_coeffs = coefficients_from(coeffs, column * layout.loops.acc_size)
    for k in range(N_GRAD_SUMS):
        if takes_sum(job, layout, k):
            memset(sums + k * width, 0, count * sizeof(double))
    if layout.last_columns and row_range == layout.row_ranges - 1:
        stop += 1
    while row < stop:
        rows = min(COLUMN_BLOCK_ROWS, stop - row)
        n = count
        if layout.last_columns and row + rows == layout.packed_rows:
            if rows > 1:
                rows -= 1  # the shorter row comes by itself
            else:
                n = min(count, layout.last_columns - column)
                if n <= 0:
                    return
        set_packed_rows(job, layout, &job.x, gathered, sample, row, rows, column, <char *> x_buffer, &x)
        set_packed_rows(job, layout, &job.dy, gathered, sample, row, rows, column, <char *> dy_buffer, &dy)
        if sums_rows(job):
            row_chunks_grad_sums(job, layout, &block_coeffs, sample, row, rows, column, n, &x, &dy, sums)
        else:
            x.loops.column_grad_sums(x.at, dy.at, rows, n, layout.rows_per_pass, &block_coeffs, job.activation,
                                     sums, sums + width, sums + 2 * width, sums + 3 * width, NULL)
        first = row * layout.rows_packed
        last = min((row + rows) * layout.rows_packed, layout.rows)
        if timing == GRAD_CONTIGUOUS:
            apply_contiguous_rows(job, layout, &block_coeffs, True, sample, first, last)
        elif timing == GRAD_BY_ROW:
            apply_rows(job, layout, &block_coeffs, True, sample, first, last, column,
                       min(count, layout.columns))
        row += rows


# ---- totals: the gradients of the parameters, and the weighted sums of groups ----


cdef inline bint column_mean_lo_from_sums(const Job *job, const ColumnLayout *layout) noexcept nogil:
    """Whether mean_lo comes out of the sums of d: float64 stores the mean in one number, and the sum of x -
    mean_hi over a group says what it lacks."""
    return (layout.loops.acc_size == 8 and job.centred and not job.stats_given
            and job.channels.sums_mode == SUMS_INTERNAL and job.lo != NULL)


cdef void add_row_ranges(const Job *job, const ColumnLayout *layout, double *partials) noexcept nogil:
    """Add up row ranges, then packed columns of one column; the first C of each sum then hold totals."""
    cdef Py_ssize_t row_range, packed, c, k
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
        for packed in range(1, layout.rows_packed):
            other = sums + packed * layout.columns
            for c in range(layout.columns):
                sums[c] += other[c]


cdef void chunk_totals(Job *job, const ColumnLayout *layout, Py_ssize_t sample, double *totals,
                       Py_ssize_t first, Py_ssize_t n, double *sums) noexcept nogil:
    """The gradients of n columns' parameters, if they have any, at most COEFFICIENT_CHUNK; their terms of sums
    (groups, 2)."""
    cdef Py_ssize_t size = job.channels.channels_per_group, groups = layout.columns // size
    cdef Py_ssize_t out = sample * layout.columns + first, group = first // size, left, j
    cdef double mean_hi[COEFFICIENT_CHUNK]
    cdef double mean_lo[COEFFICIENT_CHUNK]
    cdef double rstd[COEFFICIENT_CHUNK]
    cdef double weight[COEFFICIENT_CHUNK]
    cdef double gdev[COEFFICIENT_CHUNK]   # sum of g * (x - mean)
    cdef const double *g = totals + first
    cdef const double *gd = totals + layout.packed_columns + first
    expand_to_columns(job.rstd + sample * groups, 1, size, first, n, rstd)
    split_column_means(job, layout, sample, first, n, rstd, mean_hi, mean_lo)
    for j in range(n):
        gdev[j] = gd[j] - mean_lo[j] * g[j]
    if job.channels.grad_weight != NULL:
        for j in range(n):
            job.channels.grad_weight[out + j] = rstd[j] * gdev[j]
        memcpy(job.channels.grad_bias + out, g, n * sizeof(double))
        if has_slopes(job.activation):
            memcpy(job.channels.grad_slope + out, totals + 3 * layout.packed_columns + first, n * sizeof(double))
    if job.elements.unit_slope_grads != NULL:
        memcpy(job.elements.unit_slope_grads + out, totals + 3 * layout.packed_columns + first, n * sizeof(double))
    if job.channels.weight != NULL:
        memcpy(weight, job.channels.weight + sample * job.channels.sample_channels + first, n * sizeof(double))
    else:
        fill(1, n, weight)
    if job.finish.norm != NORM_NONE:  # no groups
        for j in range(n):
            sums[2 * (first + j) + 1] = gdev_from_norm(gdev[j], g[j], rstd[j], <double> layout.rows,
                                                       &job.finish)
        return
    left = size - first % size
    for j in range(n):
        sums[2 * group] += weight[j] * g[j]
        sums[2 * group + 1] += weight[j] * gdev[j]
        left -= 1
        if left == 0:
            group += 1
            left = size


cdef void set_group_lo(Job *job, const ColumnLayout *layout, Py_ssize_t sample, const double *sum_d,
                       Py_ssize_t group) noexcept nogil:
    """job.lo of a group, so that mean_lo becomes the group's sum of x - mean_hi over its count."""
    cdef Py_ssize_t size = job.channels.channels_per_group, at = sample * (layout.columns // size) + group, c
    cdef double total = 0, mean = job.mean[at], mean_hi = mean_hi_part(mean, mean, job.rstd[at], job.finish.eps)
    for c in range(group * size, (group + 1) * size):
        total += sum_d[c]
    job.lo[at] = total / <double> (layout.rows * size) - (mean - mean_hi)


cdef void column_totals(Job *job, const ColumnLayout *layout, Py_ssize_t sample, double *totals,
                        Py_ssize_t first, Py_ssize_t n, double *sums) noexcept nogil:
    """The gradients of the parameters of n columns, whole groups, and the weighted sums (groups, 2) of their
    groups.

    totals: (N_GRAD_SUMS, packed_columns), the partial of row range 0 once all others are added."""
    cdef Py_ssize_t size = job.channels.channels_per_group, stop = first + n, group
    if column_mean_lo_from_sums(job, layout):
        for group in range(first // size, stop // size):
            set_group_lo(job, layout, sample, totals + 2 * layout.packed_columns, group)
    memset(sums + 2 * (first // size), 0, 2 * (n // size) * sizeof(double))
    while first < stop:
        n = min(<Py_ssize_t> COEFFICIENT_CHUNK, stop - first)
        chunk_totals(job, layout, sample, totals, first, n, sums)
        first += n


# ---- ROW_RANGES ----


cdef inline void grad_column_block_item(const Job *job, const ColumnLayout *layout,
                                        const ColumnCoefficients *coeffs, bint gathered,
                                        GradientTiming timing, Py_ssize_t sample, Py_ssize_t item,
                                        double *partials) noexcept nogil:
    """The sums of one column block in one row range; items count the blocks of each range in turn."""
    cdef Py_ssize_t row_range = item // layout.column_blocks, block = item - row_range * layout.column_blocks
    column_block_grad_sums(job, layout, coeffs, gathered, timing, sample, row_range, block, partials)
    if coeffs.nontemporal:
        store_fence()


cdef inline GradientTiming gradient_timing(const Job *job, const ColumnLayout *layout, bint apply) noexcept nogil:
    """apply: the gradient of the input is computed in the pass that takes the sums."""
    if not apply:
        return GRAD_AFTER_SUMS
    return GRAD_CONTIGUOUS if layout.column_blocks == 1 and all_rows_contiguous(job, True) else GRAD_BY_ROW


cdef void grad_sums_of_sample(const Job *job, const ColumnLayout *layout, const ColumnCoefficients *coeffs,
                              bint gathered, GradientTiming timing, Py_ssize_t sample, int threads,
                              double *partials) noexcept nogil:
    """The sums of a sample; the first C of each of partials (N_GRAD_SUMS, packed_columns) then hold them."""
    cdef Py_ssize_t items = layout.row_ranges * layout.column_blocks, i
    if threads == 1:
        for i in range(items):
            grad_column_block_item(job, layout, coeffs, gathered, timing, sample, i, partials)
    else:
        for i in prange(items, num_threads=threads, schedule="guided"):
            grad_column_block_item(job, layout, coeffs, gathered, timing, sample, i, partials)
    add_row_ranges(job, layout, partials)


cdef int sample_grad_sums(Job *job, const ColumnLayout *layout, double *sums, Py_ssize_t sample, int threads,
                          bint apply) noexcept nogil:
    """The gradients of the parameters of a sample and its sums (groups, 2); apply: also the gradient of the
    input, in one pass."""
    cdef Py_ssize_t partial_doubles = N_GRAD_SUMS * layout.row_ranges * layout.packed_columns
    cdef Py_ssize_t bytes = N_COLUMN_COEFFICIENTS * coefficient_bytes(layout)
    cdef bint gathered = not (rows_are_contiguous(job, &job.x) and rows_are_contiguous(job, &job.dy))
    cdef ColumnCoefficients coeffs
    cdef double stack[STACK_DOUBLES]
    cdef double *partials = <double *> workspace_alloc(partial_doubles * sizeof(double) + bytes, stack)
    cdef char *workspace = <char *> (partials + partial_doubles)
    if partials == NULL:
        return -1
    sample_coefficients(job, layout, sample, NULL, 0, PASS_BACKWARD if apply else PASS_SUMS, workspace,
                        &coeffs)
    grad_sums_of_sample(job, layout, &coeffs, gathered, gradient_timing(job, layout, apply), sample, threads, partials)
    column_totals(job, layout, sample, partials, 0, layout.columns, sums)
    workspace_free(partials, stack)
    return 0


# ---- COLUMN_BLOCKS: each column block from its first sum to its last result ----


cdef void backward_column_block(Job *job, const ColumnLayout *layout, bint gathered, Py_ssize_t sample,
                                Py_ssize_t block, double *partials, double *sums,
                                char *workspace) noexcept nogil:
    """All gradients of one column block; blocks share the workspaces, each at its own columns."""
    cdef ColumnCoefficients coeffs
    cdef Py_ssize_t first = column_block_begin(layout, block), n = column_block_size(layout, block)
    cdef double count = <double> layout.rows
    bind_coefficients(job, layout, sample, workspace, &coeffs)
    column_range_coefficients(job, layout, sample, NULL, 0, PASS_SUMS, first, n, &coeffs)
    column_block_grad_sums(job, layout, &coeffs, gathered, GRAD_AFTER_SUMS, sample, 0, block, partials)
    column_totals(job, layout, sample, partials, first, n, sums)
    column_range_coefficients(job, layout, sample, sums, count, PASS_BACKWARD, first, n, &coeffs)
    apply_column_block(job, layout, &coeffs, True, sample, block)


cdef int backward_column_blocks(Job *job, const ColumnLayout *layout, Py_ssize_t sample,
                                int threads) noexcept nogil:
    """COLUMN_BLOCKS."""
    cdef Py_ssize_t partial_doubles = N_GRAD_SUMS * layout.packed_columns, i
    cdef Py_ssize_t sum_doubles = 2 * layout.packed_columns
    cdef Py_ssize_t bytes = N_COLUMN_COEFFICIENTS * coefficient_bytes(layout)
    cdef bint gathered = not (rows_are_contiguous(job, &job.x) and rows_are_contiguous(job, &job.dy))
    cdef double *partials = <double *> malloc((partial_doubles + sum_doubles) * sizeof(double) + bytes)
    cdef double *sums = partials + partial_doubles
    cdef char *workspace = <char *> (sums + sum_doubles)
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


cdef int backward_sample(Job *job, const ColumnLayout *layout, Py_ssize_t sample, int threads) noexcept nogil:
    """The gradients of one sample, as far as sums_mode asks for them."""
    cdef Py_ssize_t size = job.channels.channels_per_group, groups = layout.columns // size
    cdef double count = <double> (layout.rows * size)
    cdef double *sums = job.channels.sums + 2 * groups * sample
    cdef bint in_one_pass = job.stats_given and job.channels.sums_mode == SUMS_INTERNAL
    cdef double stack[STACK_DOUBLES]
    cdef int failed = 0
    if layout.schedule.strategy == COLUMN_BLOCKS:
        return backward_column_blocks(job, layout, sample, threads)
    if job.channels.sums_mode == SUMS_INTERNAL:
        sums = <double *> workspace_alloc(2 * groups * sizeof(double), stack)
        if sums == NULL:
            return -1
    if job.channels.sums_mode != SUMS_GIVEN:
        failed = sample_grad_sums(job, layout, sums, sample, threads, in_one_pass)
    else:
        count = job.channels.count
    if not failed and job.channels.sums_mode != SUMS_ONLY and not in_one_pass:
        failed = sample_apply(job, layout, sums, count, sample, threads, True)
    if job.channels.sums_mode == SUMS_INTERNAL:
        workspace_free(sums, stack)
    return failed


cdef int backward_samples(Job *job, const ColumnLayout *layout, bint by_sample) noexcept nogil:
    """The gradients of all samples."""
    cdef Py_ssize_t i
    cdef int failed = 0
    if by_sample:
        for i in prange(job.shape[0], num_threads=job.head.threads, schedule="guided",
                        chunksize=min_chunk(job.shape[0], job.head.threads)):
            failed += backward_sample(job, layout, i, 1)  # summed over the threads
        return -1 if failed else 0
    for i in range(job.shape[0]):
        if backward_sample(job, layout, i, job.head.threads) < 0:
            return -1
    return 0


cdef int columns_backward(Job *job) noexcept nogil:
    """The gradients of the input (y) and of the parameters: per sample and column, or per row."""
    cdef bint by_sample = samples_per_thread(job)
    cdef ColumnLayout layout
    cdef int failed
    set_column_layout(job, 1 if by_sample else job.head.threads, &layout)
    schedule_columns(job, &layout, True)
    if job.head.schedule_only != NULL:
        job.head.schedule_only[0] = layout.schedule
        return 0
    if job.channels.of_batch:
        return columns_backward_sets(job, &layout, by_sample)
    if not sums_rows(job):
        return backward_samples(job, &layout, by_sample)
    layout.row_sums = <double *> malloc(3 * job.shape[0] * layout.row_chunks * layout.rows * sizeof(double))
    if layout.row_sums == NULL:
        return -1
    failed = backward_samples(job, &layout, by_sample)
    if not failed:
        row_totals(job, &layout)
    free(layout.row_sums)
    return failed
