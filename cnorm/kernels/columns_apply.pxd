# Columns, elementwise: the coefficients of each column, and what they are applied to. See columns.pyx.
from libc.string cimport memcpy

from cnorm.kernels.coefficients cimport (
    PASS_BACKWARD, PASS_FORWARD, PASS_SUMS, ChannelValues, Pass, channel_values_from, coefficients, fill,
    split_means)
from cnorm.kernels.columns_layout cimport (
    ColumnLayout, addresses_of_rows, column_block_begin, column_block_size, row_at, rows_are_contiguous,
    rows_have_parameters)
from cnorm.kernels.job cimport ACT_SLOPE, ACT_SLOPES, NORM_MAX, Job, has_signs, has_slopes
from cnorm.kernels.loops cimport LANES_ALIGN, CoefficientArrays, ColumnCoefficients, store_fence
from cnorm.kernels.schedule cimport column_prefetch_bytes
from cnorm.kernels.tuning cimport COEFFICIENT_CHUNK, COLUMN_BLOCK_ROWS, PEEL_MAX_ELEMENTS, PEEL_MIN_BYTES
from cnorm.kernels.units cimport param_set_at, param_set_of


cdef enum:
    N_COLUMN_COEFFICIENTS = 7   # mean_hi, scale, bias, slope, dev_coeff, grad_offset, rstd


cdef inline ColumnCoefficients coefficients_from(const ColumnCoefficients *coeffs,
                                                 Py_ssize_t bytes) noexcept nogil:
    """The coefficients from a column on, which is `bytes` into each array."""
    cdef ColumnCoefficients moved
    moved.nontemporal = coeffs.nontemporal
    moved.signs = coeffs.signs
    moved.shifted = coeffs.shifted
    moved.low = coeffs.low
    moved.high = coeffs.high
    moved.mean_hi = <const char *> coeffs.mean_hi + bytes
    moved.scale = <const char *> coeffs.scale + bytes
    moved.bias = <const char *> coeffs.bias + bytes
    moved.slope = <const char *> coeffs.slope + bytes
    moved.dev_coeff = <const char *> coeffs.dev_coeff + bytes
    moved.grad_offset = <const char *> coeffs.grad_offset + bytes
    moved.rstd = <const char *> coeffs.rstd + bytes
    moved.row_weight = coeffs.row_weight
    moved.row_bias = coeffs.row_bias
    moved.row_slope = coeffs.row_slope
    moved.prefetch_bytes = coeffs.prefetch_bytes
    return moved


cdef inline void move_to_row(const ColumnLayout *layout, Py_ssize_t row, ColumnCoefficients *coeffs) noexcept nogil:
    """Let the parameters of rows begin at a row of the sample."""
    cdef Py_ssize_t size = layout.loops.acc_size
    coeffs.row_weight = param_set_at(coeffs.row_weight, row, size)
    coeffs.row_bias = param_set_at(coeffs.row_bias, row, size)
    coeffs.row_slope = param_set_at(coeffs.row_slope, row, size)


cdef inline bint all_rows_contiguous(const Job *job, bint backward) noexcept nogil:
    """Whether the rows of every array lie end to end, and may be taken as one."""
    return (not rows_have_parameters(job) and rows_are_contiguous(job, &job.x) and rows_are_contiguous(job, &job.y)
            and (not backward or rows_are_contiguous(job, &job.dy)))


# ---- the coefficients of columns ----


cdef inline void expand_to_columns(const double *of_group, Py_ssize_t step, Py_ssize_t group_size,
                                   Py_ssize_t first, Py_ssize_t count, double *out) noexcept nogil:
    """out[count]: for each of the columns from `first` on, the value of its group, in an array over the
    groups with `step` doubles from one to the next."""
    cdef Py_ssize_t j, at = first // group_size * step, left = group_size - first % group_size
    if group_size == 1 and step == 1:
        memcpy(out, of_group + first, count * sizeof(double))
    elif group_size == 1:
        for j in range(count):
            out[j] = of_group[at + j * step]
    else:
        for j in range(count):
            out[j] = of_group[at]
            left -= 1
            if left == 0:
                at += step
                left = group_size


cdef inline bint split_column_means(const Job *job, const ColumnLayout *layout, Py_ssize_t sample,
                                    Py_ssize_t first, Py_ssize_t n, const double *rstd, double *mean_hi,
                                    double *mean_lo) noexcept nogil:
    """Split the means of n columns, at most COEFFICIENT_CHUNK, into mean_hi and mean_lo; whether some mean_hi
    is not 0."""
    cdef double mean[COEFFICIENT_CHUNK]
    cdef double lo[COEFFICIENT_CHUNK]
    cdef Py_ssize_t size = job.channels.channels_per_group, at = sample * (layout.columns // size)
    expand_to_columns(job.mean + at, 1, size, first, n, mean)
    if job.finish.norm == NORM_MAX:  # the mean that backward is given is the norm
        memcpy(mean_hi, mean, n * sizeof(double))
        fill(0, n, mean_lo)
        return True
    if job.lo != NULL:
        expand_to_columns(job.lo + at, 1, size, first, n, lo)
    return split_means(layout.loops, job.finish.eps, n, mean, lo if job.lo != NULL else NULL, rstd, mean_hi, mean_lo)


cdef inline ChannelValues column_values(const Job *job, const ColumnLayout *layout, Py_ssize_t sample,
                                        Py_ssize_t first) noexcept nogil:
    """The parameters of the columns from `first` on: channels, or units of their own, which may have slopes."""
    cdef ChannelValues values = channel_values_from(
        first + sample * job.channels.sample_channels, job.channels.weight, job.channels.bias, job.channels.slopes,
        job.slope, job.low, job.high, job.activation)
    if job.elements.unit_slopes != NULL:
        values.slopes = job.elements.unit_slopes + sample * layout.columns + first
        values.activation = ACT_SLOPES
    elif values.slopes == NULL and has_slopes(values.activation):
        values.activation = ACT_SLOPE
    return values


cdef inline void chunk_coefficients(const Job *job, const ColumnLayout *layout, Py_ssize_t sample,
                                    const double *sums, double count, Pass what, Py_ssize_t first,
                                    Py_ssize_t n, ColumnCoefficients *coeffs) noexcept nogil:
    """Fill the coefficients of n columns, at most COEFFICIENT_CHUNK, rounded to the accumulation type; those
    that the pass does not use stay as they are."""
    cdef double mean_hi[COEFFICIENT_CHUNK]
    cdef double mean_lo[COEFFICIENT_CHUNK]
    cdef double rstd[COEFFICIENT_CHUNK]
    cdef double sum_g[COEFFICIENT_CHUNK]
    cdef double sum_gdev[COEFFICIENT_CHUNK]
    cdef double workspace[5 * COEFFICIENT_CHUNK]
    cdef Py_ssize_t size = job.channels.channels_per_group, bytes = first * layout.loops.acc_size
    cdef bint with_sums = what == PASS_BACKWARD and not job.stats_given, rowwise = rows_have_parameters(job)
    cdef CoefficientArrays arrays
    cdef ChannelValues values
    expand_to_columns(job.rstd + sample * (layout.columns // size), 1, size, first, n, rstd)
    coeffs.shifted |= split_column_means(job, layout, sample, first, n, rstd, mean_hi, mean_lo)
    layout.loops.narrow(mean_hi, n, <char *> coeffs.mean_hi + bytes)
    if what == PASS_SUMS and not job.activation and not rowwise:
        return
    values = column_values(job, layout, sample, first)
    arrays.shifted = coeffs.shifted
    arrays.mean_hi = mean_hi
    arrays.rstd = rstd
    arrays.scale = workspace
    arrays.bias = workspace + COEFFICIENT_CHUNK
    arrays.slope = workspace + 2 * COEFFICIENT_CHUNK
    arrays.dev_coeff = workspace + 3 * COEFFICIENT_CHUNK
    arrays.grad_offset = workspace + 4 * COEFFICIENT_CHUNK
    if with_sums:
        expand_to_columns(sums, 2, size, first, n, sum_g)
        expand_to_columns(sums + 1, 2, size, first, n, sum_gdev)
    # the sums along rows need what forward does
    coefficients(PASS_FORWARD if rowwise and what == PASS_SUMS else what, n, mean_lo, rstd, &values,
                 sum_g if with_sums else NULL, sum_gdev if with_sums else NULL, count, job.centred, &arrays)
    layout.loops.narrow(arrays.scale, n, <char *> coeffs.scale + bytes)
    if what == PASS_FORWARD or job.activation or (rowwise and what == PASS_SUMS):
        layout.loops.narrow(arrays.bias, n, <char *> coeffs.bias + bytes)
    if has_slopes(job.activation):
        layout.loops.narrow(arrays.slope, n, <char *> coeffs.slope + bytes)
    if what == PASS_BACKWARD:
        layout.loops.narrow(arrays.dev_coeff, n, <char *> coeffs.dev_coeff + bytes)
        layout.loops.narrow(arrays.grad_offset, n, <char *> coeffs.grad_offset + bytes)
        layout.loops.narrow(rstd, n, <char *> coeffs.rstd + bytes)


cdef inline Py_ssize_t coefficient_bytes(const ColumnLayout *layout) noexcept nogil:
    """Bytes of one coefficient of all columns, repeated for packed rows and for the elements to peel."""
    return (layout.repeat * layout.columns + PEEL_MAX_ELEMENTS) * layout.loops.acc_size


cdef inline void bind_coefficients(const Job *job, const ColumnLayout *layout, Py_ssize_t sample, char *workspace,
                                   ColumnCoefficients *coeffs) noexcept nogil:
    """Coefficients to be filled, in a workspace of N_COLUMN_COEFFICIENTS * coefficient_bytes."""
    cdef Py_ssize_t bytes = coefficient_bytes(layout), set_bytes = layout.rows * layout.loops.acc_size
    cdef Py_ssize_t param_set = param_set_of(job, sample * layout.columns)
    coeffs.mean_hi = workspace
    coeffs.scale = workspace + bytes
    coeffs.bias = workspace + 2 * bytes
    coeffs.slope = workspace + 3 * bytes
    coeffs.dev_coeff = workspace + 4 * bytes
    coeffs.grad_offset = workspace + 5 * bytes
    coeffs.rstd = workspace + 6 * bytes
    coeffs.nontemporal = layout.schedule.nontemporal
    coeffs.signs = has_signs(job.finish.norm)
    coeffs.shifted = False
    coeffs.low = job.low
    coeffs.high = job.high
    coeffs.row_weight = param_set_at(job.elements.weight, param_set, set_bytes)
    coeffs.row_bias = param_set_at(job.elements.bias, param_set, set_bytes)
    coeffs.row_slope = job.elements.slopes
    coeffs.prefetch_bytes = column_prefetch_bytes(job, layout)


cdef inline void column_range_coefficients(const Job *job, const ColumnLayout *layout, Py_ssize_t sample,
                                           const double *sums, double count, Pass what, Py_ssize_t first,
                                           Py_ssize_t n, ColumnCoefficients *coeffs) noexcept nogil:
    """Fill the coefficients of n columns.

    sums: (groups, 2), of g and g * (x - mean) over `count` elements; PASS_BACKWARD, statistics not given."""
    cdef Py_ssize_t stop = first + n
    while first < stop:
        n = min(<Py_ssize_t> COEFFICIENT_CHUNK, stop - first)
        chunk_coefficients(job, layout, sample, sums, count, what, first, n, coeffs)
        first += n


cdef inline void repeat_columns(const ColumnLayout *layout, char *values) noexcept nogil:
    """Repeat a coefficient of all columns as packed rows need it."""
    cdef Py_ssize_t done = layout.columns * layout.loops.acc_size, end = coefficient_bytes(layout), step
    if layout.rows * layout.columns * layout.loops.size < PEEL_MIN_BYTES:  # nothing is peeled: fewer copies
        end = layout.repeat * done
    while done < end:
        step = min(done, end - done)
        memcpy(values + done, values, step)
        done += step


cdef inline void sample_coefficients(const Job *job, const ColumnLayout *layout, Py_ssize_t sample,
                                     const double *sums, double count, Pass what, char *workspace,
                                     ColumnCoefficients *coeffs) noexcept nogil:
    """Coefficients of all columns of a sample, repeated as packed rows need them."""
    cdef Py_ssize_t bytes = coefficient_bytes(layout), used, k
    bind_coefficients(job, layout, sample, workspace, coeffs)
    column_range_coefficients(job, layout, sample, sums, count, what, 0, layout.columns, coeffs)
    if layout.rows == 1:
        return
    # forward uses mean_hi, scale and bias, and the slopes of an activation
    used = N_COLUMN_COEFFICIENTS if what == PASS_BACKWARD else 4 if has_slopes(job.activation) else 3
    for k in range(used):
        repeat_columns(layout, workspace + k * bytes)


# ---- what they are applied to ----


cdef inline void apply_row_block(const Job *job, const ColumnLayout *layout, const ColumnCoefficients *coeffs,
                                 bint backward, const char **x, const char **dy, const char **addend, char **y,
                                 Py_ssize_t rows, Py_ssize_t columns) noexcept nogil:
    """Forward or the gradient of the input over rows at these addresses."""
    if backward:
        layout.loops.column_grad_apply(x, dy, addend, y, rows, columns, layout.lanes_rows_per_pass, coeffs,
                                       job.activation)
    else:
        layout.loops.column_apply(x, y, rows, columns, layout.lanes_rows_per_pass, coeffs, job.activation)


cdef inline void apply_rows(const Job *job, const ColumnLayout *layout, const ColumnCoefficients *coeffs,
                            bint backward, Py_ssize_t sample, Py_ssize_t first, Py_ssize_t last,
                            Py_ssize_t column, Py_ssize_t columns) noexcept nogil:
    """Over `columns` columns from `column` on, of rows first .. last; `coeffs` begins with `column`."""
    cdef const char *x[COLUMN_BLOCK_ROWS]
    cdef const char *dy[COLUMN_BLOCK_ROWS]
    cdef const char *addend[COLUMN_BLOCK_ROWS]
    cdef char *y[COLUMN_BLOCK_ROWS]
    cdef bint add_to_grad = backward and job.elements.add_to_grad
    cdef Py_ssize_t rows, bytes = column * layout.loops.size
    cdef ColumnCoefficients row_coeffs = coeffs[0]
    while first < last:
        rows = min(COLUMN_BLOCK_ROWS, last - first)
        addresses_of_rows(job, &job.x, sample, first, 1, rows, bytes, <char **> x)
        addresses_of_rows(job, &job.y, sample, first, 1, rows, bytes, y)
        if backward:
            addresses_of_rows(job, &job.dy, sample, first, 1, rows, bytes, <char **> dy)
        if add_to_grad:
            addresses_of_rows(job, &job.elements.addend[0], sample, first, 1, rows, bytes, <char **> addend)
        row_coeffs.row_weight = coeffs.row_weight
        row_coeffs.row_bias = coeffs.row_bias
        row_coeffs.row_slope = coeffs.row_slope
        move_to_row(layout, first, &row_coeffs)
        apply_row_block(job, layout, &row_coeffs, backward, x, dy, addend if add_to_grad else NULL, y, rows,
                        columns)
        first += rows


cdef inline void apply_run(const Job *job, const ColumnLayout *layout, const ColumnCoefficients *coeffs,
                           bint backward, const char *x, const char *dy, char *y, Py_ssize_t n,
                           Py_ssize_t columns) noexcept nogil:
    """Over a contiguous run of n elements, taken as rows of `columns` columns, the last perhaps shorter;
    `coeffs` begins with the first element's column."""
    cdef const char *x_rows[COLUMN_BLOCK_ROWS]
    cdef const char *dy_rows[COLUMN_BLOCK_ROWS]
    cdef char *y_rows[COLUMN_BLOCK_ROWS]
    cdef Py_ssize_t row_bytes = columns * layout.loops.size, rows, i
    while n > 0:
        rows = min(COLUMN_BLOCK_ROWS, n // columns)
        if rows == 0:
            rows = 1
            columns = n
        for i in range(rows):
            x_rows[i] = x + i * row_bytes
            y_rows[i] = y + i * row_bytes
        if backward:
            for i in range(rows):
                dy_rows[i] = dy + i * row_bytes
            dy += rows * row_bytes
        apply_row_block(job, layout, coeffs, backward, x_rows, dy_rows, NULL, y_rows, rows, columns)
        x += rows * row_bytes
        y += rows * row_bytes
        n -= rows * columns


cdef inline void apply_contiguous_rows(const Job *job, const ColumnLayout *layout,
                                       const ColumnCoefficients *coeffs, bint backward, Py_ssize_t sample,
                                       Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Over rows first .. last, which lie end to end: as one run, whose elements before the first cache line
    of y are peeled so that all other rows begin at a cache line."""
    cdef Py_ssize_t size = layout.loops.size, columns = layout.rows_per_lanes * layout.columns
    cdef Py_ssize_t n = (last - first) * layout.columns, peel
    cdef const char *x = row_at(job, &job.x, sample, first)
    cdef const char *dy = row_at(job, &job.dy, sample, first) if backward else NULL
    cdef char *y = row_at(job, &job.y, sample, first)
    cdef ColumnCoefficients peeled
    peel = (-<Py_ssize_t> y & (LANES_ALIGN - 1)) // size
    if peel == 0 or n * size < PEEL_MIN_BYTES or columns * size % LANES_ALIGN:
        apply_run(job, layout, coeffs, backward, x, dy, y, n, columns)
        return
    apply_run(job, layout, coeffs, backward, x, dy, y, peel, peel)
    x += peel * size
    y += peel * size
    if backward:
        dy += peel * size
    peeled = coefficients_from(coeffs, peel * layout.loops.acc_size)
    apply_run(job, layout, &peeled, backward, x, dy, y, n - peel, columns)


cdef inline void apply_row_range(const Job *job, const ColumnLayout *layout, const ColumnCoefficients *coeffs,
                                 bint backward, bint contiguous, Py_ssize_t sample, Py_ssize_t first,
                                 Py_ssize_t rows) noexcept nogil:
    """Over at most `rows` rows from `first` on; contiguous: the rows of every array lie end to end."""
    cdef Py_ssize_t last = min(first + rows, layout.rows)
    if contiguous:
        apply_contiguous_rows(job, layout, coeffs, backward, sample, first, last)
    else:
        apply_rows(job, layout, coeffs, backward, sample, first, last, 0, layout.columns)
    if coeffs.nontemporal:
        store_fence()


cdef inline void apply_column_block(const Job *job, const ColumnLayout *layout,
                                    const ColumnCoefficients *coeffs, bint backward, Py_ssize_t sample,
                                    Py_ssize_t block) noexcept nogil:
    """Over all rows of a column block; the first block's columns before a cache line of y are peeled."""
    cdef Py_ssize_t first = column_block_begin(layout, block), columns = column_block_size(layout, block)
    cdef ColumnCoefficients block_coeffs
    if block == 0 and layout.peel > 0:
        apply_rows(job, layout, coeffs, backward, sample, 0, layout.rows, 0, layout.peel)
        first += layout.peel
        columns -= layout.peel
    block_coeffs = coefficients_from(coeffs, first * layout.loops.acc_size)
    apply_rows(job, layout, &block_coeffs, backward, sample, 0, layout.rows, first, columns)
    if coeffs.nontemporal:
        store_fence()
