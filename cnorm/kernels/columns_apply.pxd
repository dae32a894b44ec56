from libc.string cimport memcpy
from cnorm.kernels.coefficients cimport (
    BACKWARD, FORWARD, SUMS, coefficients, Parameters, parameters_from, split_means, Visit)
from cnorm.kernels.columns_layout cimport (
    end_to_end, Layout, row_at, rows_at, strip_begin, strip_size)
from cnorm.kernels.jobs cimport Norm
from cnorm.kernels.loops cimport LANES_ALIGN, BandAffine, ColumnAffine, stream_end
from cnorm.kernels.tuning cimport (
    BLOCK_ROWS, COEFFICIENTS, LEAD, LED_BYTES, STREAM_AGAIN, STREAM_ONCE, STRIP)
from cnorm.kernels.units cimport streamed


cdef inline ColumnAffine affine_at(const ColumnAffine *f, Py_ssize_t bytes) noexcept nogil:
    """The same from a column on, `bytes` into each array."""
    cdef ColumnAffine g
    g.stream = f.stream
    g.shifted = f.shifted
    g.hi = <const char *> f.hi + bytes
    g.scale = <const char *> f.scale + bytes
    g.p = <const char *> f.p + bytes
    g.bias = <const char *> f.bias + bytes
    g.slope = <const char *> f.slope + bytes
    g.q = <const char *> f.q + bytes
    g.r = <const char *> f.r + bytes
    g.rstd = <const char *> f.rstd + bytes
    return g


cdef inline bint joined_rows(const Norm *a, bint backward) noexcept nogil:
    """Whether the rows of every array lie end to end."""
    return end_to_end(a, &a.x) and end_to_end(a, &a.y) and (not backward or end_to_end(a, &a.dy))


cdef inline void by_column(const double *of_group, Py_ssize_t step, Py_ssize_t group, Py_ssize_t first,
                           Py_ssize_t count, double *out) noexcept nogil:
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


cdef inline bint low_parts(const Norm *a, const Layout *l, Py_ssize_t sample, Py_ssize_t first, Py_ssize_t n,
                           const double *rstd, double *hi, double *lo) noexcept nogil:
    """The mean of n columns: as the accumulator's type holds it, and the rest; whether it holds any."""
    cdef double mean[STRIP]
    cdef double low[STRIP]
    cdef Py_ssize_t at = sample * (l.columns // a.group)
    by_column(a.mean + at, 1, a.group, first, n, mean)
    if a.lo != NULL:
        by_column(a.lo + at, 1, a.group, first, n, low)
    return split_means(l.loops, a.eps, n, mean, low if a.lo != NULL else NULL, rstd, hi, lo)


cdef inline void strip_affine(const Norm *a, const Layout *l, Py_ssize_t sample, const double *sums,
                              double count, Visit visit, Py_ssize_t first, Py_ssize_t n,
                              ColumnAffine *f) noexcept nogil:
    """Coefficients of n columns; what the visit does not use stays as it is."""
    cdef double lo[STRIP]
    cdef double rstd[STRIP]
    cdef double sum_g[STRIP]
    cdef double sum_gd[STRIP]
    cdef double hi[STRIP]
    cdef double room[5 * STRIP]
    cdef Py_ssize_t bytes = first * l.loops.wide
    cdef bint summed = visit == BACKWARD and not a.given
    cdef BandAffine c
    cdef Parameters of
    by_column(a.rstd + sample * (l.columns // a.group), 1, a.group, first, n, rstd)
    f.shifted |= low_parts(a, l, sample, first, n, rstd, hi, lo)
    l.loops.narrow(hi, n, <char *> f.hi + bytes)
    if visit == SUMS and not a.activation:
        return
    of = parameters_from(first, a.weight, a.bias, a.slopes, a.slope, a.activation)
    c.scale = room
    c.bias = room + STRIP
    c.slope = room + 2 * STRIP
    c.q = room + 3 * STRIP
    c.r = room + 4 * STRIP
    if summed:
        by_column(sums, 2, a.group, first, n, sum_g)
        by_column(sums + 1, 2, a.group, first, n, sum_gd)
    coefficients(visit, n, lo, rstd, &of, sum_g if summed else NULL, sum_gd, count, &c)
    l.loops.narrow(c.scale, n, <char *> f.scale + bytes)
    if visit == FORWARD or a.activation:
        l.loops.narrow(c.bias, n, <char *> f.bias + bytes)
    if a.activation:
        l.loops.narrow(c.slope, n, <char *> f.slope + bytes)
    if visit == BACKWARD:
        l.loops.narrow(c.q, n, <char *> f.q + bytes)
        l.loops.narrow(c.r, n, <char *> f.r + bytes)
        l.loops.narrow(rstd, n, <char *> f.rstd + bytes)


cdef inline Py_ssize_t coefficient_bytes(const Layout *l) noexcept nogil:
    """Of one coefficient of every column, for rows that are folded and begin at any of the first columns."""
    return (l.repeat * l.columns + LEAD) * l.loops.wide


cdef inline ColumnAffine affine_in(const Norm *a, const Layout *l, char *room) noexcept nogil:
    """Coefficients that are to be filled, in room for COEFFICIENTS * coefficient_bytes."""
    cdef Py_ssize_t bytes = coefficient_bytes(l)
    cdef ColumnAffine f
    f.hi = room
    f.scale = room + bytes
    f.p = f.scale
    f.bias = room + 2 * bytes
    f.slope = room + 3 * bytes
    f.q = room + 4 * bytes
    f.r = room + 5 * bytes
    f.rstd = room + 6 * bytes
    f.stream = streamed(&a.y, &a.x, &a.dy, a.shape[0] * l.rows * l.columns * l.loops.size,
                        STREAM_ONCE if a.given and a.dy.data == NULL else STREAM_AGAIN)
    f.shifted = False
    return f


cdef inline void columns_affine(const Norm *a, const Layout *l, Py_ssize_t sample, const double *sums, double count,
                                Visit visit, Py_ssize_t first, Py_ssize_t n, ColumnAffine *f) noexcept nogil:
    """Coefficients of n columns; sums: of g and g * (x - hi), for BACKWARD without given statistics."""
    cdef Py_ssize_t stop = first + n
    while first < stop:
        n = min(<Py_ssize_t> STRIP, stop - first)
        strip_affine(a, l, sample, sums, count, visit, first, n, f)
        first += n


cdef inline void column_affine(const Norm *a, const Layout *l, Py_ssize_t sample, const double *sums,
                               double count, Visit visit, char *room, ColumnAffine *f) noexcept nogil:
    """Coefficients of each column, repeated for folded rows."""
    cdef Py_ssize_t k, done, step, row = l.columns * l.loops.wide, bytes = coefficient_bytes(l)
    f[0] = affine_in(a, l, room)
    columns_affine(a, l, sample, sums, count, visit, 0, l.columns, f)
    if l.rows == 1:
        return
    # forward: hi, scale and bias, and the slope of an activation
    for k in range(COEFFICIENTS if visit == BACKWARD else 4 if a.activation else 3):
        done = row
        while done < bytes:
            step = min(done, bytes - done)
            memcpy(room + k * bytes + done, room + k * bytes, step)
            done += step


cdef inline void apply_block(const Norm *a, const Layout *l, const ColumnAffine *f, bint backward,
                             const char **x, const char **dy, char **y, Py_ssize_t rows,
                             Py_ssize_t columns) noexcept nogil:
    if backward:
        l.loops.column_grad_apply(x, dy, y, rows, columns, l.spread_group, f, a.activation)
    else:
        l.loops.column_apply(x, y, rows, columns, l.spread_group, f, a.activation)


cdef inline void apply_rows(const Norm *a, const Layout *l, const ColumnAffine *f, bint backward, Py_ssize_t sample,
                            Py_ssize_t first, Py_ssize_t last, Py_ssize_t column, Py_ssize_t columns) noexcept nogil:
    """Of rows first .. last, `columns` from a column on, whose coefficients f holds."""
    cdef const char *x[BLOCK_ROWS]
    cdef const char *dy[BLOCK_ROWS]
    cdef char *y[BLOCK_ROWS]
    cdef Py_ssize_t rows, bytes = column * l.loops.size
    while first < last:
        rows = min(BLOCK_ROWS, last - first)
        rows_at(a, &a.x, sample, first, 1, rows, bytes, <char **> x)
        rows_at(a, &a.y, sample, first, 1, rows, bytes, y)
        if backward:
            rows_at(a, &a.dy, sample, first, 1, rows, bytes, <char **> dy)
        apply_block(a, l, f, backward, x, dy, y, rows, columns)
        first += rows


cdef inline void apply_run(const Norm *a, const Layout *l, const ColumnAffine *f, bint backward, const char *x,
                           const char *dy, char *y, Py_ssize_t n, Py_ssize_t columns) noexcept nogil:
    """A run of n elements, `columns` of them as a row: of the first column, f holds the coefficients."""
    cdef const char *x_rows[BLOCK_ROWS]
    cdef const char *dy_rows[BLOCK_ROWS]
    cdef char *y_rows[BLOCK_ROWS]
    cdef Py_ssize_t row = columns * l.loops.size, rows, i
    while n > 0:
        rows = min(BLOCK_ROWS, n // columns)
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
        apply_block(a, l, f, backward, x_rows, dy_rows, y_rows, rows, columns)
        x += rows * row
        y += rows * row
        n -= rows * columns


cdef inline void apply_joined(const Norm *a, const Layout *l, const ColumnAffine *f, bint backward,
                              Py_ssize_t sample, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Rows first .. last, which lie end to end, as rows that begin where a line of what is written does."""
    cdef Py_ssize_t size = l.loops.size, columns = l.spread * l.columns, n = (last - first) * l.columns, lead
    cdef const char *x = row_at(a, &a.x, sample, first)
    cdef const char *dy = row_at(a, &a.dy, sample, first) if backward else NULL
    cdef char *y = row_at(a, &a.y, sample, first)
    cdef ColumnAffine led
    lead = (-<Py_ssize_t> y & (LANES_ALIGN - 1)) // size
    if lead == 0 or n * size < LED_BYTES or columns * size % LANES_ALIGN:
        apply_run(a, l, f, backward, x, dy, y, n, columns)
        return
    apply_run(a, l, f, backward, x, dy, y, lead, lead)
    led = affine_at(f, lead * l.loops.wide)
    apply_run(a, l, &led, backward, x + lead * size, dy + lead * size if backward else NULL, y + lead * size,
              n - lead, columns)


cdef inline Py_ssize_t turned(Py_ssize_t item, Py_ssize_t items, int threads) noexcept nogil:
    """Each thread's share of the items, from its last to its first: what the thread has just summed."""
    cdef Py_ssize_t share = (items + threads - 1) // threads, first = item // share * share
    return first + min(first + share, items) - 1 - item


cdef inline void apply_stretch(const Norm *a, const Layout *l, const ColumnAffine *f, bint backward,
                               bint joined, Py_ssize_t sample, Py_ssize_t first, Py_ssize_t rows) noexcept nogil:
    cdef Py_ssize_t last = min(first + rows, l.rows)
    if joined:
        apply_joined(a, l, f, backward, sample, first, last)
    else:
        apply_rows(a, l, f, backward, sample, first, last, 0, l.columns)
    if f.stream:
        stream_end()


cdef inline void apply_strip(const Norm *a, const Layout *l, const ColumnAffine *f, bint backward, Py_ssize_t sample,
                             Py_ssize_t strip) noexcept nogil:
    """All rows of a strip, from a line of y on."""
    cdef Py_ssize_t first = strip_begin(l, strip), columns = strip_size(l, strip)
    cdef ColumnAffine g
    if strip == 0 and l.lead > 0:
        apply_rows(a, l, f, backward, sample, 0, l.rows, 0, l.lead)
        first += l.lead
        columns -= l.lead
    g = affine_at(f, first * l.loops.wide)
    apply_rows(a, l, &g, backward, sample, 0, l.rows, first, columns)
    if f.stream:
        stream_end()
