# Columns, statistics: sums of row ranges, how they merge, groups of columns. See columns.pyx.
from libc.string cimport memcpy, memset

from cnorm.kernels.coefficients cimport set_value, value_at
from cnorm.kernels.columns_layout cimport (
    ColumnLayout, PackedRows, column_block_begin, column_block_size, row_at, set_packed_rows)
from cnorm.kernels.job cimport NORM_MAX, NORM_NONE, Job
from cnorm.kernels.loops cimport LOOPS_BY_DTYPE
from cnorm.kernels.moments cimport finite, terms_of
from cnorm.kernels.statistics cimport (
    larger, merge_moments, moments_about, rstd_from_m2, shift_is_poor, tiny_square)
from cnorm.kernels.tuning cimport (
    COEFFICIENT_CHUNK, COLUMN_BLOCK_DOUBLES, COLUMN_BLOCK_ROWS, DOUBLE_COLUMNS, PACKED_COLUMNS_MAX,
    PROBE_ROWS)


cdef inline double *partial_at(const ColumnLayout *layout, double *partials,
                               Py_ssize_t row_range) noexcept nogil:
    """The partial of a row range, (3, packed_columns): sum of d, sum of d*d, shift; later mean, lo, m2."""
    return partials + 3 * layout.packed_columns * row_range


cdef inline Py_ssize_t whole_rows(const ColumnLayout *layout, Py_ssize_t row_range) noexcept nogil:
    """Packed rows of a row range that have all their columns."""
    cdef Py_ssize_t end = min((row_range + 1) * layout.range_rows, layout.packed_rows)
    return end - row_range * layout.range_rows - (layout.last_columns > 0 and end == layout.packed_rows)


cdef inline double column_count(const ColumnLayout *layout, Py_ssize_t row_range,
                                Py_ssize_t column) noexcept nogil:
    """Elements of one packed column in a row range."""
    cdef Py_ssize_t rows = whole_rows(layout, row_range)
    if layout.last_columns and row_range == layout.row_ranges - 1 and column < layout.last_columns:
        rows += 1
    return <double> rows


# ---- the sums of a row range over one column block ----


cdef inline void column_block_sums(const Job *job, const ColumnLayout *layout, bint gathered,
                                   Py_ssize_t sample, Py_ssize_t row_range, Py_ssize_t column,
                                   Py_ssize_t count, bint guess, char *shift, double *sum_d,
                                   double *sum_dd) noexcept nogil:
    """Sums of d = x - shift and of d*d, down `count` columns of a row range.

    shift: one value of the accumulation type per column; guess: OUT, taken from the range's first rows."""
    cdef double buffer[COLUMN_BLOCK_ROWS * PACKED_COLUMNS_MAX]
    cdef PackedRows x
    cdef Py_ssize_t row = row_range * layout.range_rows, stop = row + whole_rows(layout, row_range), rows
    cdef Py_ssize_t tail = 0  # columns that the last, shorter packed row has
    if row_range == layout.row_ranges - 1:
        tail = min(count, layout.last_columns - column)
    memset(sum_d, 0, count * sizeof(double))
    memset(sum_dd, 0, count * sizeof(double))
    if guess and stop == row:  # nothing but the shorter row
        set_packed_rows(job, layout, &job.x, gathered, sample, row, 1, column, <char *> buffer, &x)
        x.loops.column_probe(x.at, 1, tail, shift)
    while row < stop:
        rows = min(COLUMN_BLOCK_ROWS, stop - row)
        set_packed_rows(job, layout, &job.x, gathered, sample, row, rows, column, <char *> buffer, &x)
        if guess:
            x.loops.column_probe(x.at, min(rows, PROBE_ROWS), count, shift)
            guess = False
        x.loops.column_sums(x.at, rows, count, layout.rows_per_pass, shift, terms_of(job.finish.norm), sum_d, sum_dd)
        row += rows
    if tail > 0:
        set_packed_rows(job, layout, &job.x, gathered, sample, row, 1, column, <char *> buffer, &x)
        x.loops.column_sums(x.at, 1, tail, 1, shift, terms_of(job.finish.norm), sum_d, sum_dd)


cdef inline void column_sums_in_double(const Job *job, const ColumnLayout *layout, bint gathered,
                                       Py_ssize_t sample, Py_ssize_t row_range, Py_ssize_t column,
                                       Py_ssize_t count, double *shift, double *sum_d,
                                       double *sum_dd) noexcept nogil:
    """Sums of d = x - shift and of d*d down at most DOUBLE_COLUMNS columns, in double throughout."""
    cdef double buffer[COLUMN_BLOCK_ROWS * PACKED_COLUMNS_MAX]
    cdef double widened[COLUMN_BLOCK_ROWS * DOUBLE_COLUMNS]
    cdef const char *at[COLUMN_BLOCK_ROWS]
    cdef PackedRows x
    cdef Py_ssize_t row = row_range * layout.range_rows, rows, i, n
    cdef Py_ssize_t stop = min(row + layout.range_rows, layout.packed_rows)
    memset(sum_d, 0, count * sizeof(double))
    memset(sum_dd, 0, count * sizeof(double))
    while row < stop:
        rows = min(COLUMN_BLOCK_ROWS, stop - row) if row + 1 < stop else 1
        if layout.last_columns and row + rows == layout.packed_rows and rows > 1:
            rows -= 1  # the shorter row comes by itself
        n = count
        if layout.last_columns and row + rows == layout.packed_rows:
            n = min(count, layout.last_columns - column)
            if n <= 0:
                return
        set_packed_rows(job, layout, &job.x, gathered, sample, row, rows, column, <char *> buffer, &x)
        for i in range(rows):
            x.loops.widen64(x.at[i], n, widened + i * DOUBLE_COLUMNS)
            at[i] = <char *> (widened + i * DOUBLE_COLUMNS)
        LOOPS_BY_DTYPE[1].column_sums(at, rows, n, layout.rows_per_pass, shift, terms_of(job.finish.norm), sum_d,
                                      sum_dd)
        row += rows


cdef inline void moments_from_column_sums(const ColumnLayout *layout, double *sum_d, Py_ssize_t n,
                                          double count) noexcept nogil:
    """Turn the sum of d, the sum of d*d and the shift of n columns of `count` elements into mean, lo and m2,
    in place; they are packed_columns doubles apart."""
    cdef double *sum_dd = sum_d + layout.packed_columns
    cdef double *shift = sum_dd + layout.packed_columns
    cdef double inverse = 1 / count, mean, lo
    cdef Py_ssize_t j
    for j in range(n):
        moments_about(shift[j], sum_d[j] * inverse, sum_d[j], sum_dd[j], &mean, &lo, &shift[j])
        sum_d[j] = mean
        sum_dd[j] = lo


cdef inline bint any_shift_poor(Py_ssize_t n, double count, const double *sum_d,
                                const double *sum_dd) noexcept nogil:
    """Whether the shift of any of n columns was poor."""
    cdef Py_ssize_t j, found = 0  # as wide as a double, so that the loop vectorizes
    for j in range(n):
        found |= <Py_ssize_t> shift_is_poor(count, sum_d[j], sum_dd[j])
    return found != 0


cdef inline bint sums_overflowed(double sum_d, double sum_dd, double tiny) noexcept nogil:
    """Whether a float overflowed, or underflowed: then the sum of d*d is below `tiny`."""
    return (sum_d - sum_d != 0) | (sum_dd - sum_dd != 0) | (sum_dd < tiny)


cdef inline bint any_overflowed(Py_ssize_t n, double tiny, const double *sum_d,
                                const double *sum_dd) noexcept nogil:
    """Whether the sums of any of n columns overflowed or underflowed."""
    cdef Py_ssize_t j, found = 0  # as wide as a double, so that the loop vectorizes
    for j in range(n):
        found |= <Py_ssize_t> sums_overflowed(sum_d[j], sum_dd[j], tiny)
    return found != 0


cdef inline void redo_overflowed_in_double(const Job *job, const ColumnLayout *layout, bint gathered,
                                           Py_ssize_t sample, Py_ssize_t row_range, Py_ssize_t column,
                                           Py_ssize_t count, double tiny, double *sum_d, double *sum_dd,
                                           double *shift) noexcept nogil:
    """Replace sums and shifts of those of `count` columns whose float sums overflowed or underflowed."""
    cdef double new_shift[DOUBLE_COLUMNS]
    cdef double new_sum_d[DOUBLE_COLUMNS]
    cdef double new_sum_dd[DOUBLE_COLUMNS]
    cdef Py_ssize_t j, k, n
    for j from 0 <= j < count by DOUBLE_COLUMNS:
        n = min(DOUBLE_COLUMNS, count - j)
        for k in range(n):
            new_shift[k] = shift[j + k] if finite(shift[j + k]) else 0
        column_sums_in_double(job, layout, gathered, sample, row_range, column + j, n, new_shift, new_sum_d,
                              new_sum_dd)
        for k in range(n):
            if sums_overflowed(sum_d[j + k], sum_dd[j + k], tiny):
                shift[j + k] = new_shift[k]
                sum_d[j + k] = new_sum_d[k]
                sum_dd[j + k] = new_sum_dd[k]


cdef inline void shift_to_first(const Job *job, const ColumnLayout *layout, Py_ssize_t sample, Py_ssize_t row_range,
                                Py_ssize_t column, Py_ssize_t count, double *shift, const double *sum_d,
                                const double *sum_dd) noexcept nogil:
    """Take the first element of a row range as the shift of those columns whose sums of float64 overflowed: squares of
    large numbers do, those of their differences may not."""
    cdef Py_ssize_t j, row
    cdef double value
    for j in range(count):
        if finite(sum_d[j]) and finite(sum_dd[j]):
            continue
        row = row_range * layout.range_rows * layout.rows_packed + (column + j) // layout.columns
        if row < layout.rows:
            layout.loops.widen64(row_at(job, &job.x, sample, row) + (column + j) % layout.columns * layout.loops.size,
                                 1, &value)
            if finite(value):
                shift[j] = value


cdef inline void column_block_moments(const Job *job, const ColumnLayout *layout, bint gathered,
                                      Py_ssize_t sample, Py_ssize_t row_range, Py_ssize_t block,
                                      double *partials) noexcept nogil:
    """Fill the partial of a row range over one column block: mean, lo and m2 of each column."""
    cdef double acc_shift[COLUMN_BLOCK_DOUBLES]  # of the accumulation type
    cdef char *acc = <char *> acc_shift
    cdef Py_ssize_t column = column_block_begin(layout, block), count = column_block_size(layout, block), j
    cdef Py_ssize_t tail = 0  # columns that the last, shorter packed row has: one element more each
    cdef double *sum_d = partial_at(layout, partials, row_range) + column
    cdef double *sum_dd = sum_d + layout.packed_columns
    cdef double *shift = sum_dd + layout.packed_columns
    cdef double rows = <double> whole_rows(layout, row_range), elements
    cdef double tiny = tiny_square(&job.finish)
    if row_range == layout.row_ranges - 1:
        tail = min(count, max(0, layout.last_columns - column))
    memset(acc_shift, 0, count * layout.loops.acc_size)
    column_block_sums(job, layout, gathered, sample, row_range, column, count, job.centred, acc, sum_d, sum_dd)
    if job.centred and (any_shift_poor(tail, rows + 1, sum_d, sum_dd)
                        or any_shift_poor(count - tail, rows, sum_d + tail, sum_dd + tail)):
        for j in range(count):
            elements = rows + 1 if j < tail else rows
            if shift_is_poor(elements, sum_d[j], sum_dd[j]):
                set_value(layout.loops, acc, j, value_at(layout.loops, acc, j) + sum_d[j] / elements)
        column_block_sums(job, layout, gathered, sample, row_range, column, count, False, acc, sum_d, sum_dd)
    if job.channels.shift_overflows and any_overflowed(count, -1, sum_d, sum_dd):
        shift_to_first(job, layout, sample, row_range, column, count, acc_shift, sum_d, sum_dd)
        column_block_sums(job, layout, gathered, sample, row_range, column, count, False, acc, sum_d, sum_dd)
    LOOPS_BY_DTYPE[layout.loops.acc_dtype].widen64(acc, count, shift)
    if layout.loops.acc_size != 8 and any_overflowed(count, tiny, sum_d, sum_dd):
        redo_overflowed_in_double(job, layout, gathered, sample, row_range, column, count, tiny, sum_d,
                                  sum_dd, shift)
    if not job.centred:  # m2 is about 0
        memset(sum_d, 0, count * sizeof(double))
    moments_from_column_sums(layout, sum_d, tail, rows + 1)
    if rows > 0:
        moments_from_column_sums(layout, sum_d + tail, count - tail, rows)


# ---- merging: packed columns of one column, then row ranges ----


cdef inline void merge_columns(const ColumnLayout *layout, double *mean, double count,
                               const double *other_mean, double other_count) noexcept nogil:
    """Merge the moments of C columns into others, (3, packed_columns) each: mean, lo, m2. All columns of a
    side have one count."""
    cdef double *lo = mean + layout.packed_columns
    cdef double *m2 = lo + layout.packed_columns
    cdef const double *other_lo = other_mean + layout.packed_columns
    cdef const double *other_m2 = other_lo + layout.packed_columns
    cdef double share = other_count / (count + other_count)
    cdef Py_ssize_t c
    if layout.finish.norm == NORM_MAX:
        for c in range(layout.columns):
            m2[c] = larger(m2[c], other_m2[c])
        return
    for c in range(layout.columns):
        merge_moments(&mean[c], &lo[c], &m2[c], other_mean[c], other_lo[c], other_m2[c], share, count * share)


cdef inline void merge_packed(const ColumnLayout *layout, double *partial,
                              Py_ssize_t row_range) noexcept nogil:
    """Merge the packed columns that are one column of the sample; the first C then hold the moments."""
    cdef double count = column_count(layout, row_range, 0), other_count
    cdef Py_ssize_t k
    for k from layout.columns <= k < layout.packed_columns by layout.columns:
        other_count = column_count(layout, row_range, k)
        if other_count > 0:
            merge_columns(layout, partial, count, partial + k, other_count)
        count += other_count


cdef inline void merge_row_ranges(const ColumnLayout *layout, double *partials,
                                  double *counts) noexcept nogil:
    """Merge the moments of all row ranges in a reduction tree; range 0 then holds those of the sample.

    counts[row_ranges]: elements of a column in each range, overwritten."""
    cdef Py_ssize_t step = 1, row_range
    while step < layout.row_ranges:
        row_range = 0
        while row_range + step < layout.row_ranges:
            merge_columns(layout, partial_at(layout, partials, row_range), counts[row_range],
                          partial_at(layout, partials, row_range + step), counts[row_range + step])
            counts[row_range] += counts[row_range + step]
            row_range += 2 * step
        step *= 2


# ---- statistics of groups of columns ----


cdef struct CompensatedSum:
    # A sum, and what rounding took from it: groups may have thousands of channels.
    double sum
    double rest


cdef inline void compensated_add(CompensatedSum *total, double value) noexcept nogil:
    """Add by Neumaier's compensated summation."""
    cdef double new_sum = total.sum + value
    if total.sum * total.sum >= value * value:
        total.rest += (total.sum - new_sum) + value
    else:
        total.rest += (value - new_sum) + total.sum
    total.sum = new_sum


cdef inline void chunk_statistics(Job *job, const ColumnLayout *layout, Py_ssize_t out,
                                  const double *partials, Py_ssize_t n) noexcept nogil:
    """Statistics of at most COEFFICIENT_CHUNK columns that are groups by themselves, written from index `out`
    on: the bits of group_statistics, in loops that vectorize."""
    cdef const double *mean = partials
    cdef const double *lo = mean + layout.packed_columns
    cdef const double *m2 = lo + layout.packed_columns
    cdef double mean_out[COEFFICIENT_CHUNK]
    cdef double lo_out[COEFFICIENT_CHUNK]
    cdef double m2_out[COEFFICIENT_CHUNK]
    cdef double rstd_out[COEFFICIENT_CHUNK]
    cdef double step, shift, total, count = <double> layout.rows
    cdef Py_ssize_t c
    for c in range(n):
        step = (mean[c] - mean[c]) + (lo[c] - lo[c])  # 0, or NaN
        shift = lo[c] + step
        mean_out[c] = mean[c] + shift
        lo_out[c] = (mean[c] - mean_out[c]) + shift
    for c in range(n):
        total = m2[c] + (mean_out[c] - mean_out[c])
        m2_out[c] = total + (total - total)  # infinity makes its column NaN
    if job.finish.norm != NORM_NONE:
        memcpy(m2_out, m2, n * sizeof(double))
    for c in range(n):
        rstd_out[c] = rstd_from_m2(m2_out[c], count, &job.finish)
    memcpy(job.mean + out, mean_out, n * sizeof(double))
    memcpy(job.lo + out, lo_out, n * sizeof(double))
    memcpy(job.m2 + out, m2_out, n * sizeof(double))
    memcpy(job.rstd + out, rstd_out, n * sizeof(double))


cdef inline void columns_statistics(Job *job, const ColumnLayout *layout, Py_ssize_t sample,
                                    const double *partials, Py_ssize_t first, Py_ssize_t n) noexcept nogil:
    """Statistics of n columns that are groups by themselves, from the partial of row range 0."""
    cdef Py_ssize_t stop = first + n
    while first < stop:
        n = min(<Py_ssize_t> COEFFICIENT_CHUNK, stop - first)
        chunk_statistics(job, layout, sample * layout.columns + first, partials + first, n)
        first += n


cdef inline void group_statistics(Job *job, const ColumnLayout *layout, Py_ssize_t sample,
                                  const double *partials) noexcept nogil:
    """Statistics of each group of columns of a sample, from the partial of row range 0.

    Columns of a group have equal counts, so they merge about the mean of their means."""
    cdef const double *mean = partials
    cdef const double *lo = mean + layout.packed_columns
    cdef const double *m2 = lo + layout.packed_columns
    cdef Py_ssize_t size = job.channels.channels_per_group, groups = layout.columns // size
    cdef Py_ssize_t group, c, first, out
    cdef double delta, step, shift, count = <double> layout.rows
    cdef CompensatedSum total
    if size == 1:
        columns_statistics(job, layout, sample, partials, 0, layout.columns)
        return
    for group in range(groups):
        first = group * size
        out = sample * groups + group
        total.sum = 0
        total.rest = 0
        for c in range(first, first + size):
            compensated_add(&total, (mean[c] - mean[first]) + (lo[c] - lo[first]))
        step = (total.sum + total.rest) / <double> size
        total.sum = 0
        total.rest = 0
        for c in range(first, first + size):
            delta = (mean[c] - mean[first]) + (lo[c] - lo[first]) - step
            compensated_add(&total, m2[c] + delta * delta * count)
        total.sum += total.rest
        shift = lo[first] + step
        job.mean[out] = mean[first] + shift
        job.lo[out] = (mean[first] - job.mean[out]) + shift
        job.m2[out] = total.sum
        job.rstd[out] = rstd_from_m2(total.sum, count * <double> size, &job.finish)
