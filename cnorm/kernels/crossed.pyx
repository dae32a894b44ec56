# Crossed statistics: a table (rows, columns) each of whose elements is normalized by a mix of the mean and variance of
# its row and of those of its column: SwitchNorm of (N, C) input. loops/crossed.h has the formulas of an element.
#
# a) Moments of rows are those of the rows family, moments of columns those of the columns family. One visit takes both:
#    a row range gives its rows' moments, and its columns' sums while it is in cache; ranges merge in columns' tree.
#    With fewer ranges than threads, rows and columns are two visits.
# b) What belongs to a row or a column is prepared once, for a row in double, for columns in the accumulation type. The
#    loops take blocks of CROSSED_ROWS_MAX rows and CROSSED_COLUMNS_MAX columns.
# c) Backward: of each row range and chunk of columns, the sums down the columns; of each row and chunk, two sums along
#    the row. Both add up in the order of their numbers. From the totals follow the gradients of the parameters, of the
#    two mixes, and what each row and column adds to the gradient of the input:
#        dx = rstd * g - share0 * U / C - var_share0 * V * (x - row mean) / (C - 1)        U, V: sums along the row
#                      - share1 * u / N - var_share1 * v * (x - column mean) / (N - 1)     u, v: sums down the column
#    of rstd * g and of rstd**2 * g * xhat, g with the weight. Given statistics of columns have no gradient.
from cython.parallel cimport prange
from libc.math cimport fabs, frexp, ldexp
from libc.string cimport memset

from cnorm.kernels.coefficients cimport fill
from cnorm.kernels.columns_layout cimport ColumnLayout, addresses_of_rows, rows_are_contiguous, set_column_layout
from cnorm.kernels.job cimport ACT_SLOPES, ROW_BATCHES, Job, has_slopes
from cnorm.kernels.loops cimport LOOPS_BY_DTYPE, CrossedBlock, LoopTable
from cnorm.kernels.moments cimport UnitBlocks, finite, unit_blocks
from cnorm.kernels.schedule cimport (
    min_chunk, reversed_within_thread_range, schedule_crossed, schedule_segments_moments)
from cnorm.kernels.tuning cimport (
    COEFFICIENT_CHUNK, CROSSED_COLUMNS_MAX, CROSSED_EXPONENT_MAX, CROSSED_ROWS_MAX, LANE_MULTIPLE, N_CROSSED_SUMS,
    STACK_DOUBLES)
from cnorm.kernels.unit_sweeps cimport forward_row_batch, save_unit_moments
from cnorm.kernels.workspace cimport round_up, workspace_alloc, workspace_free


cdef enum:
    N_CROSSED_COEFFICIENTS = 8   # of a column: mean in two parts, variance, weight, bias, slope, offset, coeff

cdef struct CrossedTable:
    # What executors need beside the job.
    const LoopTable *loops
    Py_ssize_t rows, columns
    Py_ssize_t row_blocks         # of CROSSED_ROWS_MAX rows
    Py_ssize_t chunks             # of CROSSED_COLUMNS_MAX columns
    Py_ssize_t padded             # columns, in whole vectors of any type
    double scale
    double least                  # a variance that is not 0 counts as at least this much, in units of 1 / scale**2
    char *columns_at              # (N_CROSSED_COEFFICIENTS, padded) of the accumulation type
    const double *row_sums        # backward: (2, rows)
    const double *column_sums     # (2, columns), with the weight


cdef CrossedTable crossed_table(const Job *job) noexcept nogil:
    """The sizes of a job's table."""
    cdef CrossedTable table
    memset(&table, 0, sizeof(table))
    table.loops = LOOPS_BY_DTYPE[job.head.dtype]
    table.rows = job.shape[1] * job.shape[2] * job.shape[3]
    table.columns = job.shape[4]
    table.row_blocks = (table.rows + CROSSED_ROWS_MAX - 1) // CROSSED_ROWS_MAX
    table.chunks = (table.columns + CROSSED_COLUMNS_MAX - 1) // CROSSED_COLUMNS_MAX
    table.padded = round_up(table.columns, LANE_MULTIPLE)
    table.least = 2.2250738585072014e-308 if table.loops.acc_size == 8 else 1.1754943508222875e-38
    return table


# ---- moments of rows and of columns ----


cdef inline void row_moments(Job *rows, const UnitBlocks *blocks, Py_ssize_t first, Py_ssize_t stop) noexcept nogil:
    """The moments of rows first .. stop."""
    cdef double rstd
    if blocks.schedule.strategy == ROW_BATCHES:
        forward_row_batch(rows, blocks, 0, first, stop)
        return
    while first < stop:
        save_unit_moments(rows, blocks, first, &rstd)
        first += 1


cdef void crossed_moments_item(const Job *job, const ColumnLayout *layout, bint gathered, Job *rows,
                               const UnitBlocks *blocks, Py_ssize_t row_range, double *partials) noexcept nogil:
    """One visit to a row range: the moments of its rows, and the partial of its columns."""
    cdef Py_ssize_t range_rows = layout.range_rows * layout.rows_packed, block
    row_moments(rows, blocks, row_range * range_rows, min((row_range + 1) * range_rows, layout.rows))
    if job.stats_given:
        return
    for block in range(layout.column_blocks):
        column_block_item(job, layout, gathered, 0, row_range * layout.column_blocks + block, partials)


cdef void row_moments_item(Job *rows, const UnitBlocks *blocks, Py_ssize_t item) noexcept nogil:
    row_moments(rows, blocks, item * CROSSED_ROWS_MAX, min((item + 1) * CROSSED_ROWS_MAX, rows.shape[1]))


cdef Job job_of_rows(const Job *job, const CrossedTable *table) noexcept nogil:
    """The rows of the table as units of the segments family."""
    cdef Job rows = job[0]
    rows.shape[1] = table.rows
    rows.shape[2] = 1
    rows.shape[3] = 1
    rows.x.strides[1] = job.x.strides[3]
    rows.y.data = NULL
    rows.stats_given = False
    rows.mean = job.crossed.row_mean
    rows.lo = job.crossed.row_lo
    rows.m2 = job.crossed.row_var
    rows.rstd = NULL
    return rows


cdef int crossed_moments(Job *job, const ColumnLayout *layout, const CrossedTable *table) noexcept nogil:
    """Mean and unbiased variance of each row and, unless they are given, of each column."""
    cdef Job rows = job_of_rows(job, table)
    cdef UnitBlocks blocks = unit_blocks(&rows, False)
    cdef bint gathered = not rows_are_contiguous(job, &job.x)
    cdef Py_ssize_t items = layout.row_ranges * layout.column_blocks, i
    cdef double stack[STACK_DOUBLES]
    cdef double *partials = <double *> workspace_alloc(
        3 * layout.row_ranges * layout.packed_columns * <Py_ssize_t> sizeof(double), stack)
    if partials == NULL:
        return -1
    schedule_segments_moments(&rows, &blocks)
    if job.head.threads == 1:
        for i in range(layout.row_ranges):
            crossed_moments_item(job, layout, gathered, &rows, &blocks, i, partials)
    elif layout.row_ranges >= job.head.threads:
        for i in prange(layout.row_ranges, num_threads=job.head.threads, schedule="guided"):
            crossed_moments_item(job, layout, gathered, &rows, &blocks, i, partials)
    else:
        for i in prange(table.row_blocks, num_threads=job.head.threads, schedule="guided"):
            row_moments_item(&rows, &blocks, i)
        if not job.stats_given:
            for i in prange(items, num_threads=job.head.threads, schedule="guided"):
                column_block_item(job, layout, gathered, 0, i, partials)
    for i in range(table.rows):
        job.crossed.row_var[i] /= <double> (table.columns - 1)
    if not job.stats_given:
        merge_sample(job, layout, 0, partials)
        for i in range(table.columns):
            job.m2[i] /= <double> (table.rows - 1)
    workspace_free(partials, stack)
    return 0


# ---- what belongs to a row or a column ----


cdef inline double largest(const double *values, Py_ssize_t n) noexcept nogil:
    """The largest of some variances, 0 if all are NaN."""
    cdef double found = 0
    cdef Py_ssize_t i
    for i in range(n):
        found = values[i] if values[i] > found else found
    return found


cdef double crossed_scale(const Job *job, const CrossedTable *table) noexcept nogil:
    """A power of two near 1 / sqrt(the largest variance)."""
    cdef double variance = (job.crossed.var_share[0] * largest(job.crossed.row_var, table.rows)
                            + job.crossed.var_share[1] * largest(job.m2, table.columns) + fabs(job.finish.eps))
    cdef int exponent = 0, most = CROSSED_EXPONENT_MAX * (5 if table.loops.acc_size == 8 else 1)
    if not (variance > 0 and finite(variance)):
        return 1
    frexp(variance, &exponent)
    return ldexp(1, max(-most, min(most, -(exponent >> 1))))


cdef inline double scaled_variance(const CrossedTable *table, double variance) noexcept nogil:
    """A variance in units of 1 / scale**2. One that is not 0 stays so: its rstd is finite."""
    cdef double scaled = variance * table.scale * table.scale
    return table.least if variance > 0 and scaled < table.least else scaled


cdef inline double rounded_mean(const CrossedTable *table, double mean) noexcept nogil:
    return mean if table.loops.acc_size == 8 else <double> <float> mean


cdef inline char *crossed_column(const CrossedTable *table, int k, Py_ssize_t column) noexcept nogil:
    """Coefficient k of a column."""
    return table.columns_at + (k * table.padded + column) * table.loops.acc_size


cdef void column_chunk_coefficients(const Job *job, const CrossedTable *table, Py_ssize_t first,
                                    Py_ssize_t n) noexcept nogil:
    """The coefficients of at most COEFFICIENT_CHUNK columns."""
    cdef double values[N_CROSSED_COEFFICIENTS][COEFFICIENT_CHUNK]
    cdef double scale = table.scale, hi, lo
    cdef Py_ssize_t i, c
    cdef int k
    for i in range(n):
        c = first + i
        hi = rounded_mean(table, job.mean[c])
        lo = scale * ((job.mean[c] - hi) + (job.lo[c] if job.lo != NULL else 0))
        values[0][i] = hi
        values[1][i] = job.crossed.share[1] * lo
        values[2][i] = scaled_variance(table, job.crossed.var_share[1] * job.m2[c])
        values[3][i] = job.channels.weight[c] if job.channels.weight != NULL else 1
        values[4][i] = job.channels.bias[c] if job.channels.bias != NULL else 0
        values[5][i] = job.channels.slopes[c] if job.activation == ACT_SLOPES else job.slope
        values[6][i] = 0
        values[7][i] = 0
        if table.column_sums != NULL and not job.stats_given:
            values[7][i] = (job.crossed.var_share[1] * table.column_sums[table.columns + c]
                            / <double> (table.rows - 1))
            values[6][i] = (job.crossed.share[1] * table.column_sums[c] / <double> table.rows - values[7][i] * lo)
            values[7][i] *= scale
    for k in range(N_CROSSED_COEFFICIENTS):
        table.loops.narrow(values[k], n, crossed_column(table, k, first))


cdef void set_columns(const Job *job, const CrossedTable *table) noexcept nogil:
    """The coefficients of all columns. Those that fill the last vector are 0, and their variance is 1."""
    cdef double ones[LANE_MULTIPLE]
    cdef Py_ssize_t first = 0, left = table.padded - table.columns, i
    cdef int k
    while first < table.columns:
        column_chunk_coefficients(job, table, first, min(<Py_ssize_t> COEFFICIENT_CHUNK, table.columns - first))
        first += COEFFICIENT_CHUNK
    if left:
        fill(1, left, ones)
        for k in range(N_CROSSED_COEFFICIENTS):
            memset(crossed_column(table, k, table.columns), 0, left * table.loops.acc_size)
        table.loops.narrow(ones, left, crossed_column(table, 2, table.columns))


cdef void set_block(const Job *job, const CrossedTable *table, Py_ssize_t row, Py_ssize_t stop, Py_ssize_t chunk,
                    CrossedBlock *block) noexcept nogil:
    """Rows row .. stop, at most CROSSED_ROWS_MAX, of a chunk of columns."""
    cdef Py_ssize_t column = chunk * CROSSED_COLUMNS_MAX, bytes = column * table.loops.size, i, r
    cdef double scale = table.scale, lo, coeff
    block.rows = stop - row
    block.columns = min(<Py_ssize_t> CROSSED_COLUMNS_MAX, table.columns - column)
    block.activation = job.activation
    block.share[0] = job.crossed.share[0]
    block.share[1] = job.crossed.share[1]
    block.scale = scale
    block.low = job.low
    block.high = job.high
    addresses_of_rows(job, &job.x, 0, row, 1, block.rows, bytes, <char **> block.x)
    if job.y.data != NULL:
        addresses_of_rows(job, &job.y, 0, row, 1, block.rows, bytes, block.y)
    if job.dy.data != NULL:
        addresses_of_rows(job, &job.dy, 0, row, 1, block.rows, bytes, <char **> block.dy)
    for i in range(block.rows):
        r = row + i
        block.row_hi[i] = rounded_mean(table, job.crossed.row_mean[r])
        lo = scale * ((job.crossed.row_mean[r] - block.row_hi[i]) + job.crossed.row_lo[r])
        block.row_lo[i] = job.crossed.share[0] * lo
        block.row_variance[i] = scaled_variance(
            table, job.crossed.var_share[0] * job.crossed.row_var[r] + job.finish.eps)
        if table.row_sums != NULL:
            coeff = job.crossed.var_share[0] * table.row_sums[table.rows + r] / <double> (table.columns - 1)
            block.row_offset[i] = job.crossed.share[0] * table.row_sums[r] / <double> table.columns - coeff * lo
            block.row_coeff[i] = coeff * scale
    block.column_hi = crossed_column(table, 0, column)
    block.column_lo = crossed_column(table, 1, column)
    block.column_variance = crossed_column(table, 2, column)
    block.weight = crossed_column(table, 3, column)
    block.bias = crossed_column(table, 4, column)
    block.slope = crossed_column(table, 5, column)
    block.column_offset = crossed_column(table, 6, column)
    block.column_coeff = crossed_column(table, 7, column)


# ---- results ----


cdef void crossed_apply_item(const Job *job, const CrossedTable *table, Py_ssize_t item) noexcept nogil:
    """The results of a block of rows and a chunk of columns; items count the chunks of each block in turn."""
    cdef Py_ssize_t at = item // table.chunks, row = at * CROSSED_ROWS_MAX
    cdef CrossedBlock block
    set_block(job, table, row, min(row + CROSSED_ROWS_MAX, table.rows), item - at * table.chunks, &block)
    if job.dy.data != NULL:
        table.loops.crossed_grad_apply(&block)
    else:
        table.loops.crossed_apply(&block)


cdef void crossed_results(const Job *job, const CrossedTable *table) noexcept nogil:
    """All results, backwards over the rows: the moments or the sums have left the last rows in cache."""
    cdef Py_ssize_t items = table.row_blocks * table.chunks, i
    if job.head.threads == 1:
        for i in range(items):
            crossed_apply_item(job, table, items - 1 - i)
    else:
        for i in prange(items, num_threads=job.head.threads, schedule="guided",
                        chunksize=min_chunk(items, job.head.threads)):
            crossed_apply_item(job, table, reversed_within_thread_range(i, items, job.head.threads))


cdef int crossed_forward(Job *job) noexcept nogil:
    """y = (x - mean) * rstd * weight + bias, with the mixed mean and rstd of each element; and the moments of rows and,
    unless they are given, of columns: mean, lo, and in m2 the variance."""
    cdef ColumnLayout layout
    cdef CrossedTable table = crossed_table(job)
    cdef double stack[STACK_DOUBLES]
    set_column_layout(job, job.head.threads, &layout)
    schedule_crossed(job, &layout, table.row_blocks * table.chunks)
    if job.head.schedule_only != NULL:
        job.head.schedule_only[0] = layout.schedule
        return 0
    if crossed_moments(job, &layout, &table) < 0:
        return -1
    table.columns_at = <char *> workspace_alloc(N_CROSSED_COEFFICIENTS * table.padded * table.loops.acc_size, stack)
    if table.columns_at == NULL:
        return -1
    table.scale = crossed_scale(job, &table)
    set_columns(job, &table)
    crossed_results(job, &table)
    workspace_free(table.columns_at, stack)
    return 0


# ---- backward ----


cdef void crossed_sums_item(const Job *job, const ColumnLayout *layout, const CrossedTable *table, Py_ssize_t item,
                            double *row_sums, double *partials) noexcept nogil:
    """The sums of one row range and one chunk of columns; items count the chunks of each range in turn.

    row_sums: (chunks, 2, rows); partials: (row_ranges, N_CROSSED_SUMS, columns)."""
    cdef Py_ssize_t row_range = item // table.chunks, chunk = item - row_range * table.chunks, i, k
    cdef Py_ssize_t range_rows = layout.range_rows * layout.rows_packed, row = row_range * range_rows
    cdef Py_ssize_t stop = min(row + range_rows, table.rows), column = chunk * CROSSED_COLUMNS_MAX
    cdef double *total[N_CROSSED_SUMS]
    cdef CrossedBlock block
    row_sums += 2 * table.rows * chunk
    for k in range(N_CROSSED_SUMS):
        total[k] = partials + (N_CROSSED_SUMS * row_range + k) * table.columns + column
        memset(total[k], 0, min(<Py_ssize_t> CROSSED_COLUMNS_MAX, table.columns - column) * sizeof(double))
    while row < stop:
        set_block(job, table, row, min(row + CROSSED_ROWS_MAX, stop), chunk, &block)
        table.loops.crossed_grad_sums(&block, total)
        for i in range(block.rows):
            row_sums[row + i] = block.row_sums[0][i]
            row_sums[table.rows + row + i] = block.row_sums[1][i]
        row += block.rows


cdef void crossed_totals(const Job *job, const ColumnLayout *layout, CrossedTable *table, double *row_sums,
                         double *partials) noexcept nogil:
    """Add up chunks and row ranges in their order; the gradients of the parameters and of the two mixes."""
    cdef Py_ssize_t n = 2 * table.rows, width = N_CROSSED_SUMS * table.columns, i, k, c
    cdef double scale = table.scale, first = job.crossed.row_mean[0], first_lo = job.crossed.row_lo[0], weight
    cdef double *column_sums = partials + 2 * table.columns
    cdef double to_mean = 0, to_var = 0
    for k in range(1, table.chunks):
        for i in range(n):
            row_sums[i] += row_sums[k * n + i]
    for k in range(1, layout.row_ranges):
        for i in range(width):
            partials[i] += partials[k * width + i]
    for c in range(table.columns):
        job.channels.grad_bias[c] = partials[c]
        job.channels.grad_weight[c] = partials[table.columns + c]
        if has_slopes(job.activation):
            job.channels.grad_slope[c] = partials[4 * table.columns + c]
        weight = job.channels.weight[c] if job.channels.weight != NULL else 1
        column_sums[c] *= weight
        column_sums[table.columns + c] *= weight
    # of the mixed mean -rstd * g, of the mixed variance -rstd**2 * g * xhat / 2. The shares add up to 1, so means count
    # from any point: from one of them nothing cancels
    for i in range(table.rows):
        to_mean -= row_sums[i] * ((job.crossed.row_mean[i] - first) + (job.crossed.row_lo[i] - first_lo))
        to_var -= row_sums[table.rows + i] * job.crossed.row_var[i]
    for c in range(table.columns):
        to_mean += column_sums[c] * ((job.mean[c] - first) + ((job.lo[c] if job.lo != NULL else 0) - first_lo))
        to_var += column_sums[table.columns + c] * job.m2[c]
    job.crossed.grad_shares[0] = to_mean * scale
    job.crossed.grad_shares[1] = to_var * scale * scale / 2
    table.row_sums = row_sums
    table.column_sums = column_sums


cdef int crossed_backward(Job *job) noexcept nogil:
    """The gradients of the input (y), of the parameters, and of the shares of rows less those of columns."""
    cdef ColumnLayout layout
    cdef CrossedTable table = crossed_table(job)
    cdef Py_ssize_t items, partial_doubles, i
    cdef Py_ssize_t row_doubles = 2 * table.rows * table.chunks
    cdef double stack[STACK_DOUBLES]
    cdef double *row_sums
    cdef double *partials
    set_column_layout(job, job.head.threads, &layout)
    items = layout.row_ranges * table.chunks
    partial_doubles = N_CROSSED_SUMS * table.columns * layout.row_ranges
    schedule_crossed(job, &layout, items)
    if job.head.schedule_only != NULL:
        job.head.schedule_only[0] = layout.schedule
        return 0
    row_sums = <double *> workspace_alloc((row_doubles + partial_doubles) * <Py_ssize_t> sizeof(double)
                                          + N_CROSSED_COEFFICIENTS * table.padded * table.loops.acc_size, stack)
    if row_sums == NULL:
        return -1
    partials = row_sums + row_doubles
    table.columns_at = <char *> (partials + partial_doubles)
    table.scale = crossed_scale(job, &table)
    set_columns(job, &table)
    if job.head.threads == 1:
        for i in range(items):
            crossed_sums_item(job, &layout, &table, i, row_sums, partials)
    else:
        for i in prange(items, num_threads=job.head.threads, schedule="guided"):
            crossed_sums_item(job, &layout, &table, i, row_sums, partials)
    crossed_totals(job, &layout, &table, row_sums, partials)
    set_columns(job, &table)
    crossed_results(job, &table)
    workspace_free(row_sums, stack)
    return 0
