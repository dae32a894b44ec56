# Columns, elementwise: coefficients of each column, and what they are applied to. See columns.pyx.
from libc.string cimport memcpy

from cnorm.kernels.coefficients cimport (
    PASS_BACKWARD, PASS_FORWARD, PASS_SUMS, ChannelValues, Pass, channel_values_from, coefficients,
    split_means)
from cnorm.kernels.columns_layout cimport (
    ColumnLayout, addresses_of_rows, column_block_begin, column_block_size, row_at, rows_are_contiguous)
from cnorm.kernels.job cimport Job
from cnorm.kernels.loops cimport LANES_ALIGN, CoefficientArrays, ColumnCoefficients, store_fence
from cnorm.kernels.tuning cimport COEFFICIENT_CHUNK, COLUMN_BLOCK_ROWS, PEEL_MAX_ELEMENTS, PEEL_MIN_BYTES


cdef enum:
    N_COLUMN_COEFFICIENTS = 7   # mean_hi, scale, bias, slope, dev_coeff, grad_offset, rstd


cdef inline ColumnCoefficients coefficients_from(const ColumnCoefficients *coeffs,
                                                 Py_ssize_t bytes) noexcept nogil:
    """Coefficients from a column on, which is `bytes` into each array."""
    cdef ColumnCoefficients g
    g.nontemporal = coeffs.nontemporal
    g.shifted = coeffs.shifted
    g.mean_hi = <const char *> coeffs.mean_hi + bytes
    g.scale = <const char *> coeffs.scale + bytes
    g.bias = <const char *> coeffs.bias + bytes
    g.slope = <const char *> coeffs.slope + bytes
    g.dev_coeff = <const char *> coeffs.dev_coeff + bytes
    g.grad_offset = <const char *> coeffs.grad_offset + bytes
    g.rstd = <const char *> coeffs.rstd + bytes
    return g


cdef inline bint all_rows_contiguous(const Job *job, bint backward) noexcept nogil:
    """Whether the rows of every array lie end to end."""
    return (rows_are_contiguous(job, &job.x) and rows_are_contiguous(job, &job.y)
            and (not backward or rows_are_contiguous(job, &job.dy)))


cdef inline void expand_to_columns(const double *of_group, Py_ssize_t step, Py_ssize_t group,
                                   Py_ssize_t first, Py_ssize_t count, double *out) noexcept nogil:
    """What each of the columns from `first` on finds in an array over the groups, every `step` doubles."""
    cdef Py_ssize_t j, at = first // group * step, left = group - first % group
    if group == 1 and step == 1:
        memcpy(out, of_group + first, count * sizeof(double))
    elif group == 1:
        for j in range(count):
            out[j] = of_group[at + j * step]
    else:
        for j in range(count):
            out[j] = of_group[at]
            left -= 1
            if left == 0:
                at += step
                left = group


cdef inline bint split_column_means(const Job *job, const ColumnLayout *layout, Py_ssize_t sample,
                                    Py_ssize_t first, Py_ssize_t n, const double *rstd, double *mean_hi,
                                    double *mean_lo) noexcept nogil:
    """The mean of n columns: as the accumulator's type holds it, and the rest; whether it holds any."""
    cdef double mean[COEFFICIENT_CHUNK]
    cdef double mean_rest[COEFFICIENT_CHUNK]
    cdef Py_ssize_t at = sample * (layout.columns // job.channels.channels_per_group)
    expand_to_columns(job.mean + at, 1, job.channels.channels_per_group, first, n, mean)
    if job.lo != NULL:
        expand_to_columns(job.lo + at, 1, job.channels.channels_per_group, first, n, mean_rest)
    return split_means(layout.loops, job.eps, n, mean, mean_rest if job.lo != NULL else NULL, rstd, mean_hi,
                       mean_lo)


cdef inline void chunk_coefficients(const Job *job, const ColumnLayout *layout, Py_ssize_t sample,
                                    const double *sums, double count, Pass what, Py_ssize_t first,
                                    Py_ssize_t n, ColumnCoefficients *coeffs) noexcept nogil:
    """Coefficients of n columns; what the what does not use stays as it is."""
    cdef double mean_lo[COEFFICIENT_CHUNK]
    cdef double rstd[COEFFICIENT_CHUNK]
    cdef double sum_g[COEFFICIENT_CHUNK]
    cdef double sum_gdev[COEFFICIENT_CHUNK]
    cdef double mean_hi[COEFFICIENT_CHUNK]
    cdef double workspace[5 * COEFFICIENT_CHUNK]
    cdef Py_ssize_t bytes = first * layout.loops.acc_size
    cdef bint with_sums = what == PASS_BACKWARD and not job.stats_given
    cdef CoefficientArrays c
    cdef ChannelValues values
    expand_to_columns(job.rstd + sample * (layout.columns // job.channels.channels_per_group), 1,
                      job.channels.channels_per_group, first, n, rstd)
    coeffs.shifted |= split_column_means(job, layout, sample, first, n, rstd, mean_hi, mean_lo)
    layout.loops.narrow(mean_hi, n, <char *> coeffs.mean_hi + bytes)
    if what == PASS_SUMS and not job.activation:
        return
    values = channel_values_from(first, job.channels.weight, job.channels.bias, job.channels.slopes,
                                 job.slope, job.activation)
    c.scale = workspace
    c.bias = workspace + COEFFICIENT_CHUNK
    c.slope = workspace + 2 * COEFFICIENT_CHUNK
    c.dev_coeff = workspace + 3 * COEFFICIENT_CHUNK
    c.grad_offset = workspace + 4 * COEFFICIENT_CHUNK
    if with_sums:
        expand_to_columns(sums, 2, job.channels.channels_per_group, first, n, sum_g)
        expand_to_columns(sums + 1, 2, job.channels.channels_per_group, first, n, sum_gdev)
    coefficients(what, n, mean_lo, rstd, &values, sum_g if with_sums else NULL, sum_gdev, count, &c)
    layout.loops.narrow(c.scale, n, <char *> coeffs.scale + bytes)
    if what == PASS_FORWARD or job.activation:
        layout.loops.narrow(c.bias, n, <char *> coeffs.bias + bytes)
    if job.activation:
        layout.loops.narrow(c.slope, n, <char *> coeffs.slope + bytes)
    if what == PASS_BACKWARD:
        layout.loops.narrow(c.dev_coeff, n, <char *> coeffs.dev_coeff + bytes)
        layout.loops.narrow(c.grad_offset, n, <char *> coeffs.grad_offset + bytes)
        layout.loops.narrow(rstd, n, <char *> coeffs.rstd + bytes)


cdef inline Py_ssize_t coefficient_bytes(const ColumnLayout *layout) noexcept nogil:
    """Of one coefficient of every column, for rows that are folded and begin at any of the first columns."""
    return (layout.repeat * layout.columns + PEEL_MAX_ELEMENTS) * layout.loops.acc_size


cdef inline ColumnCoefficients bind_coefficients(const Job *job, const ColumnLayout *layout,
                                                 char *workspace) noexcept nogil:
    """Coefficients that are to be filled, in workspace for N_COLUMN_COEFFICIENTS * coefficient_bytes."""
    cdef Py_ssize_t bytes = coefficient_bytes(layout)
    cdef ColumnCoefficients coeffs
    coeffs.mean_hi = workspace
    coeffs.scale = workspace + bytes
    coeffs.bias = workspace + 2 * bytes
    coeffs.slope = workspace + 3 * bytes
    coeffs.dev_coeff = workspace + 4 * bytes
    coeffs.grad_offset = workspace + 5 * bytes
    coeffs.rstd = workspace + 6 * bytes
    coeffs.nontemporal = layout.schedule.nontemporal
    coeffs.shifted = False
    return coeffs


cdef inline void column_range_coefficients(const Job *job, const ColumnLayout *layout, Py_ssize_t sample,
                                           const double *sums, double count, Pass what, Py_ssize_t first,
                                           Py_ssize_t n, ColumnCoefficients *coeffs) noexcept nogil:
    """Coefficients of n columns; sums: of g and g * (x - mean_hi), for PASS_BACKWARD without given statistics."""
    cdef Py_ssize_t stop = first + n
    while first < stop:
        n = min(<Py_ssize_t> COEFFICIENT_CHUNK, stop - first)
        chunk_coefficients(job, layout, sample, sums, count, what, first, n, coeffs)
        first += n


cdef inline void sample_coefficients(const Job *job, const ColumnLayout *layout, Py_ssize_t sample,
                                     const double *sums, double count, Pass what, char *workspace,
                                     ColumnCoefficients *coeffs) noexcept nogil:
    """Coefficients of each column, repeated for folded rows."""
    cdef Py_ssize_t k, done, step, row = layout.columns * layout.loops.acc_size, bytes = coefficient_bytes(layout)
    coeffs[0] = bind_coefficients(job, layout, workspace)
    column_range_coefficients(job, layout, sample, sums, count, what, 0, layout.columns, coeffs)
    if layout.rows == 1:
        return
    # forward: mean_hi, scale and bias, and the slope of an activation
    for k in range(N_COLUMN_COEFFICIENTS if what == PASS_BACKWARD else 4 if job.activation else 3):
        done = row
        while done < bytes:
            step = min(done, bytes - done)
            memcpy(workspace + k * bytes + done, workspace + k * bytes, step)
            done += step


cdef inline void apply_block(const Job *job, const ColumnLayout *layout, const ColumnCoefficients *coeffs,
                             bint backward, const char **x, const char **dy, char **y, Py_ssize_t rows,
                             Py_ssize_t columns) noexcept nogil:
    if backward:
        layout.loops.column_grad_apply(x, dy, y, rows, columns, layout.lanes_rows_per_pass, coeffs,
                                       job.activation)
    else:
        layout.loops.column_apply(x, y, rows, columns, layout.lanes_rows_per_pass, coeffs, job.activation)


cdef inline void apply_rows(const Job *job, const ColumnLayout *layout, const ColumnCoefficients *coeffs,
                            bint backward, Py_ssize_t sample, Py_ssize_t first, Py_ssize_t last,
                            Py_ssize_t column, Py_ssize_t columns) noexcept nogil:
    """Of rows first .. last, `columns` from a column on, whose coefficients f holds."""
    cdef const char *x[COLUMN_BLOCK_ROWS]
    cdef const char *dy[COLUMN_BLOCK_ROWS]
    cdef char *y[COLUMN_BLOCK_ROWS]
    cdef Py_ssize_t rows, bytes = column * layout.loops.size
    while first < last:
        rows = min(COLUMN_BLOCK_ROWS, last - first)
        addresses_of_rows(job, &job.x, sample, first, 1, rows, bytes, <char **> x)
        addresses_of_rows(job, &job.y, sample, first, 1, rows, bytes, y)
        if backward:
            addresses_of_rows(job, &job.dy, sample, first, 1, rows, bytes, <char **> dy)
        apply_block(job, layout, coeffs, backward, x, dy, y, rows, columns)
        first += rows


cdef inline void apply_run(const Job *job, const ColumnLayout *layout, const ColumnCoefficients *coeffs,
                           bint backward, const char *x, const char *dy, char *y, Py_ssize_t n,
                           Py_ssize_t columns) noexcept nogil:
    """A run of n elements, `columns` of them as a row: of the first column, f holds the coefficients."""
    cdef const char *x_rows[COLUMN_BLOCK_ROWS]
    cdef const char *dy_rows[COLUMN_BLOCK_ROWS]
    cdef char *y_rows[COLUMN_BLOCK_ROWS]
    cdef Py_ssize_t row = columns * layout.loops.size, rows, i
    while n > 0:
        rows = min(COLUMN_BLOCK_ROWS, n // columns)
        if rows == 0:
            rows = 1
            columns = n
        for i in range(rows):
            x_rows[i] = x + i * row
            y_rows[i] = y + i * row
        if backward:
            for i in range(rows):
                dy_rows[i] = dy + i * row
            dy += rows * row
        apply_block(job, layout, coeffs, backward, x_rows, dy_rows, y_rows, rows, columns)
        x += rows * row
        y += rows * row
        n -= rows * columns


cdef inline void apply_contiguous(const Job *job, const ColumnLayout *layout,
                                  const ColumnCoefficients *coeffs, bint backward, Py_ssize_t sample,
                                  Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Rows first .. last, which lie end to end, as rows that begin where a line of what is written does."""
    cdef Py_ssize_t size = layout.loops.size, columns = layout.rows_per_lanes * layout.columns, n = (last
            - first) * layout.columns, peel
    cdef const char *x = row_at(job, &job.x, sample, first)
    cdef const char *dy = row_at(job, &job.dy, sample, first) if backward else NULL
    cdef char *y = row_at(job, &job.y, sample, first)
    cdef ColumnCoefficients peeled
    peel = (-<Py_ssize_t> y & (LANES_ALIGN - 1)) // size
    if peel == 0 or n * size < PEEL_MIN_BYTES or columns * size % LANES_ALIGN:
        apply_run(job, layout, coeffs, backward, x, dy, y, n, columns)
        return
    apply_run(job, layout, coeffs, backward, x, dy, y, peel, peel)
    peeled = coefficients_from(coeffs, peel * layout.loops.acc_size)
    apply_run(job, layout, &peeled, backward, x + peel * size, dy + peel * size if backward else NULL,
              y + peel * size, n - peel, columns)


cdef inline Py_ssize_t reversed_within_share(Py_ssize_t item, Py_ssize_t items, int threads) noexcept nogil:
    """Each thread's share of the items, from its last to its first: what the thread has just summed."""
    cdef Py_ssize_t share = (items + threads - 1) // threads, first = item // share * share
    return first + min(first + share, items) - 1 - item


cdef inline void apply_row_range(const Job *job, const ColumnLayout *layout,
                                 const ColumnCoefficients *coeffs, bint backward, bint joined,
                                 Py_ssize_t sample, Py_ssize_t first, Py_ssize_t rows) noexcept nogil:
    cdef Py_ssize_t last = min(first + rows, layout.rows)
    if joined:
        apply_contiguous(job, layout, coeffs, backward, sample, first, last)
    else:
        apply_rows(job, layout, coeffs, backward, sample, first, last, 0, layout.columns)
    if coeffs.nontemporal:
        store_fence()


cdef inline void apply_column_block(const Job *job, const ColumnLayout *layout,
                                    const ColumnCoefficients *coeffs, bint backward, Py_ssize_t sample,
                                    Py_ssize_t block) noexcept nogil:
    """All rows of a block, from a line of y on."""
    cdef Py_ssize_t first = column_block_begin(layout, block), columns = column_block_size(layout, block)
    cdef ColumnCoefficients g
    if block == 0 and layout.peel > 0:
        apply_rows(job, layout, coeffs, backward, sample, 0, layout.rows, 0, layout.peel)
        first += layout.peel
        columns -= layout.peel
    g = coefficients_from(coeffs, first * layout.loops.acc_size)
    apply_rows(job, layout, &g, backward, sample, 0, layout.rows, first, columns)
    if coeffs.nontemporal:
        store_fence()
