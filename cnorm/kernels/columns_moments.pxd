# Columns, statistics: sums of row ranges, their merging, groups of columns. See columns.pyx.
from libc.string cimport memcpy, memset

from cnorm.kernels.coefficients cimport set_value, value_at
from cnorm.kernels.columns_layout cimport (
    ColumnLayout, RowAddresses, column_block_begin, column_block_size, packed_rows_at)
from cnorm.kernels.job cimport Job
from cnorm.kernels.loops cimport LOOPS_BY_DTYPE
from cnorm.kernels.moments cimport finite
from cnorm.kernels.statistics cimport merge_moments, moments_about, rstd_from_variance, shift_is_poor
from cnorm.kernels.tuning cimport (
    COEFFICIENT_CHUNK, COLUMN_BLOCK_DOUBLES, COLUMN_BLOCK_ROWS, DOUBLE_COLUMNS, PACKED_COLUMNS_MAX,
    PROBE_ROWS, TINY_SQUARE)


cdef inline double *partial_at(const ColumnLayout *layout, double *partials,
                               Py_ssize_t row_range) noexcept nogil:
    """The partial of a row range, per column: sum of d, sum of d*d, shift; then mean, lo, m2."""
    return partials + 3 * layout.packed_columns * row_range


cdef inline Py_ssize_t whole_rows(const ColumnLayout *layout, Py_ssize_t row_range) noexcept nogil:
    """Packed rows of a row range that have all their columns."""
    cdef Py_ssize_t last = min((row_range + 1) * layout.range_rows, layout.packed_rows)
    return last - row_range * layout.range_rows - (layout.last_columns > 0 and last == layout.packed_rows)


cdef inline double column_count(const ColumnLayout *layout, Py_ssize_t row_range,
                                Py_ssize_t column) noexcept nogil:
    cdef Py_ssize_t whole = whole_rows(layout, row_range)
    if layout.last_columns and row_range == layout.row_ranges - 1 and column < layout.last_columns:
        whole += 1
    return <double> whole


cdef inline void column_block_sums(const Job *job, const ColumnLayout *layout, bint gathered,
                                   Py_ssize_t sample, Py_ssize_t row_range, Py_ssize_t column,
                                   Py_ssize_t count, bint guess, char *shift, double *sum_d,
                                   double *sum_dd) noexcept nogil:
    """Sums of a row range down `count` columns, about `shift` (of the accumulation type); guess: from its head."""
    cdef double buffer[COLUMN_BLOCK_ROWS * PACKED_COLUMNS_MAX]
    cdef RowAddresses r
    cdef Py_ssize_t row = row_range * layout.range_rows, stop = row + whole_rows(layout, row_range), rows
    cdef Py_ssize_t rest = 0
    if row_range == layout.row_ranges - 1:
        rest = min(count, layout.last_columns - column)
    memset(sum_d, 0, count * sizeof(double))
    memset(sum_dd, 0, count * sizeof(double))
    if guess and stop == row:  # nothing but the shorter row
        packed_rows_at(job, layout, &job.x, gathered, sample, row, 1, column, <char *> buffer, &r)
        r.loops.column_probe(r.at, 1, rest, shift)
    while row < stop:
        rows = min(COLUMN_BLOCK_ROWS, stop - row)
        packed_rows_at(job, layout, &job.x, gathered, sample, row, rows, column, <char *> buffer, &r)
        if guess:
            r.loops.column_probe(r.at, min(rows, PROBE_ROWS), count, shift)
            guess = False
        r.loops.column_sums(r.at, rows, count, layout.rows_per_pass, shift, sum_d, sum_dd)
        row += rows
    if rest > 0:
        packed_rows_at(job, layout, &job.x, gathered, sample, row, 1, column, <char *> buffer, &r)
        r.loops.column_sums(r.at, 1, rest, 1, shift, sum_d, sum_dd)


cdef inline void column_sums_in_double(const Job *job, const ColumnLayout *layout, bint gathered,
                                       Py_ssize_t sample, Py_ssize_t row_range, Py_ssize_t column,
                                       Py_ssize_t count, double *shift, double *sum_d,
                                       double *sum_dd) noexcept nogil:
    """Sums of at most DOUBLE_COLUMNS columns, in double, where floats overflowed."""
    cdef double buffer[COLUMN_BLOCK_ROWS * PACKED_COLUMNS_MAX]
    cdef double as_double[COLUMN_BLOCK_ROWS * DOUBLE_COLUMNS]
    cdef const char *at[COLUMN_BLOCK_ROWS]
    cdef RowAddresses r
    cdef Py_ssize_t row = row_range * layout.range_rows, rows, i, n
    cdef Py_ssize_t stop = min(row + layout.range_rows, layout.packed_rows)
    memset(sum_d, 0, count * sizeof(double))
    memset(sum_dd, 0, count * sizeof(double))
    while row < stop:
        rows = min(COLUMN_BLOCK_ROWS, stop - row) if row + 1 < stop else 1
        if layout.last_columns and row + rows == layout.packed_rows and rows > 1:
            rows -= 1
        n = count
        if layout.last_columns and row + rows == layout.packed_rows:
            n = min(count, layout.last_columns - column)
            if n <= 0:
                return
        packed_rows_at(job, layout, &job.x, gathered, sample, row, rows, column, <char *> buffer, &r)
        for i in range(rows):
            r.loops.widen64(r.at[i], n, as_double + i * DOUBLE_COLUMNS)
            at[i] = <char *> (as_double + i * DOUBLE_COLUMNS)
        LOOPS_BY_DTYPE[1].column_sums(at, rows, n, layout.rows_per_pass, shift, sum_d, sum_dd)
        row += rows


cdef inline void moments_from_column_sums(const ColumnLayout *layout, double *sums, Py_ssize_t n,
                                          double count) noexcept nogil:
    """Turn sum of d, sum of d*d and shift of n columns, which have one count, into their mean, lo and m2."""
    cdef double *sum_dd = sums + layout.packed_columns
    cdef double *shift = sum_dd + layout.packed_columns
    cdef double share = 1 / count, mean, lo
    cdef Py_ssize_t j
    for j in range(n):
        moments_about(shift[j], sums[j] * share, sums[j], sum_dd[j], &mean, &lo, &shift[j])
        sums[j] = mean
        sum_dd[j] = lo


cdef inline bint any_shift_poor(Py_ssize_t n, double count, const double *sum_d,
                                const double *sum_dd) noexcept nogil:
    """Whether a column's shift was poor."""
    cdef Py_ssize_t j, poor = 0  # as as_double as a double, so that the loop vectorizes
    for j in range(n):
        poor |= <Py_ssize_t> shift_is_poor(count, sum_d[j], sum_dd[j])
    return poor != 0


cdef inline bint sums_overflowed(double sum_d, double sum_dd, double tiny) noexcept nogil:
    """Whether a float overflowed, or underflowed, on the way to these sums."""
    return (sum_d - sum_d != 0) | (sum_dd - sum_dd != 0) | (sum_dd < tiny)


cdef inline bint any_overflowed(Py_ssize_t n, double tiny, const double *sum_d,
                                const double *sum_dd) noexcept nogil:
    cdef Py_ssize_t j, found = 0
    for j in range(n):
        found |= <Py_ssize_t> sums_overflowed(sum_d[j], sum_dd[j], tiny)
    return found != 0


cdef inline void redo_overflowed_in_double(const Job *job, const ColumnLayout *layout, bint gathered,
                                           Py_ssize_t sample, Py_ssize_t row_range, Py_ssize_t column,
                                           Py_ssize_t count, double tiny, double *sum_d, double *sum_dd,
                                           double *shift64) noexcept nogil:
    """Sums and shifts of those columns of a block whose float sums overflowed or underflowed."""
    cdef double again[3 * DOUBLE_COLUMNS]
    cdef Py_ssize_t j, k, n
    for j from 0 <= j < count by DOUBLE_COLUMNS:
        n = min(DOUBLE_COLUMNS, count - j)
        for k in range(n):
            again[k] = shift64[j + k] if finite(shift64[j + k]) else 0
        column_sums_in_double(job, layout, gathered, sample, row_range, column + j, n, again,
                              again + DOUBLE_COLUMNS, again + 2 * DOUBLE_COLUMNS)
        for k in range(n):
            if sums_overflowed(sum_d[j + k], sum_dd[j + k], tiny):
                shift64[j + k] = again[k]
                sum_d[j + k] = again[DOUBLE_COLUMNS + k]
                sum_dd[j + k] = again[2 * DOUBLE_COLUMNS + k]


cdef inline void column_block_moments(const Job *job, const ColumnLayout *layout, bint gathered,
                                      Py_ssize_t sample, Py_ssize_t row_range, Py_ssize_t block,
                                      double *partials) noexcept nogil:
    """Fill the partial of a row range over one column block: mean, lo and m2 of each column."""
    cdef double shift[COLUMN_BLOCK_DOUBLES]  # of the accumulation type
    cdef Py_ssize_t column = column_block_begin(layout, block), count = column_block_size(layout, block), j
    cdef Py_ssize_t rest = 0
    cdef double *sum_d = partial_at(layout, partials, row_range) + column
    cdef double *sum_dd = sum_d + layout.packed_columns
    cdef double *shift64 = sum_dd + layout.packed_columns
    cdef double whole = <double> whole_rows(layout, row_range), size
    cdef double tiny = TINY_SQUARE if job.eps < TINY_SQUARE else -1
    if row_range == layout.row_ranges - 1:
        rest = min(count, max(0, layout.last_columns - column))
    memset(shift, 0, count * layout.loops.acc_size)
    column_block_sums(job, layout, gathered, sample, row_range, column, count, True, <char *> shift, sum_d,
                      sum_dd)
    if any_shift_poor(rest, whole + 1, sum_d, sum_dd) or any_shift_poor(count - rest, whole, sum_d + rest,
            sum_dd + rest):
        for j in range(count):
            size = whole + 1 if j < rest else whole
            if shift_is_poor(size, sum_d[j], sum_dd[j]):
                set_value(layout.loops, <char *> shift, j, value_at(layout.loops, <char *> shift, j)
                          + sum_d[j] / size)
        column_block_sums(job, layout, gathered, sample, row_range, column, count, False, <char *> shift,
                          sum_d, sum_dd)
    LOOPS_BY_DTYPE[layout.loops.acc_dtype].widen64(<char *> shift, count, shift64)
    if layout.loops.acc_size != 8 and any_overflowed(count, tiny, sum_d, sum_dd):
        redo_overflowed_in_double(job, layout, gathered, sample, row_range, column, count, tiny, sum_d,
                                  sum_dd, shift64)
    moments_from_column_sums(layout, sum_d, rest, whole + 1)
    if whole > 0:
        moments_from_column_sums(layout, sum_d + rest, count - rest, whole)


cdef inline void merge_columns(const ColumnLayout *layout, double *to, double count, const double *other,
                               double other_count) noexcept nogil:
    """Merge other moments of each column into those at `to`; all columns have one count."""
    cdef double *lo = to + layout.packed_columns
    cdef double *m2 = lo + layout.packed_columns
    cdef const double *other_lo = other + layout.packed_columns
    cdef const double *other_m2 = other_lo + layout.packed_columns
    cdef double share = other_count / (count + other_count)
    cdef Py_ssize_t c
    for c in range(layout.columns):
        merge_moments(&to[c], &lo[c], &m2[c], other[c], other_lo[c], other_m2[c], share, count * share)


cdef inline void merge_packed(const ColumnLayout *layout, double *partial,
                              Py_ssize_t row_range) noexcept nogil:
    """Merge the moments of the columns that packed rows made of one; the first C then hold them."""
    cdef double count = column_count(layout, row_range, 0), other
    cdef Py_ssize_t k
    for k from layout.columns <= k < layout.packed_columns by layout.columns:
        other = column_count(layout, row_range, k)
        if other > 0:
            merge_columns(layout, partial, count, partial + k, other)
        count += other


cdef inline void merge_row_ranges(const ColumnLayout *layout, double *partials,
                                  double *counts) noexcept nogil:
    """Merge the moments of all row ranges in a tree; range 0 then holds the sample's."""
    cdef Py_ssize_t step = 1, row_range
    while step < layout.row_ranges:
        row_range = 0
        while row_range + step < layout.row_ranges:
            merge_columns(layout, partial_at(layout, partials, row_range), counts[row_range],
                          partial_at(layout, partials, row_range + step), counts[row_range + step])
            counts[row_range] += counts[row_range + step]
            row_range += 2 * step
        step *= 2


cdef struct CompensatedSum:
    # A sum, and what rounding took from it: groups may have thousands of channels.
    double sum
    double rest


cdef inline void compensated_add(CompensatedSum *total, double value) noexcept nogil:
    cdef double sum_ = total.sum + value
    if total.sum * total.sum >= value * value:
        total.rest += (total.sum - sum_) + value
    else:
        total.rest += (value - sum_) + total.sum
    total.sum = sum_


cdef inline void chunk_statistics(Job *job, const ColumnLayout *layout, Py_ssize_t at, const double *partials,
                                  Py_ssize_t n) noexcept nogil:
    """Statistics of n columns that are groups by themselves: the bits of group_statistics, in vectors."""
    cdef const double *mean = partials
    cdef const double *lo = mean + layout.packed_columns
    cdef const double *m2 = lo + layout.packed_columns
    cdef double mean_out[COEFFICIENT_CHUNK]
    cdef double lo_out[COEFFICIENT_CHUNK]
    cdef double m2_out[COEFFICIENT_CHUNK]
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
    memcpy(job.mean + at, mean_out, n * sizeof(double))
    memcpy(job.lo + at, lo_out, n * sizeof(double))
    memcpy(job.m2 + at, m2_out, n * sizeof(double))
    for c in range(n):
        mean_out[c] = rstd_from_variance(m2_out[c] / count, job.eps)
    memcpy(job.rstd + at, mean_out, n * sizeof(double))


cdef inline void columns_statistics(Job *job, const ColumnLayout *layout, Py_ssize_t sample, const double *partials,
                                    Py_ssize_t first, Py_ssize_t n) noexcept nogil:
    """Statistics of any number of columns that are groups by themselves, from the partials of row range 0."""
    cdef Py_ssize_t stop = first + n
    while first < stop:
        n = min(<Py_ssize_t> COEFFICIENT_CHUNK, stop - first)
        chunk_statistics(job, layout, sample * layout.columns + first, partials + first, n)
        first += n


cdef inline void group_statistics(Job *job, const ColumnLayout *layout, Py_ssize_t sample,
                                  const double *partials) noexcept nogil:
    """Statistics of each group of columns of a sample, from the partials of row range 0. Columns of a group merge
    about the mean of their means, since their counts are equal."""
    cdef const double *mean = partials
    cdef const double *lo = mean + layout.packed_columns
    cdef const double *m2 = lo + layout.packed_columns
    cdef Py_ssize_t size = job.channels.channels_per_group, groups = layout.columns // size, group, c, first, at
    cdef double delta, step, shift, count = <double> layout.rows
    cdef CompensatedSum total
    if size == 1:
        columns_statistics(job, layout, sample, partials, 0, layout.columns)
        return
    for group in range(groups):
        first = group * size
        at = sample * groups + group
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
        job.mean[at] = mean[first] + shift
        job.lo[at] = (mean[first] - job.mean[at]) + shift
        job.m2[at] = total.sum
        job.rstd[at] = rstd_from_variance(total.sum / (count * <double> size), job.eps)
