# Columns, backward: sums down the columns, then the gradient of each row. See columns.pxi.

# Per part and (folded) column: sum of g, of g * (x - hi), of (x - hi), of the slope's gradient.

cdef void strip_grad_sums(const Columns *a, const Layout *l, const ColumnAffine *f, bint gathered,
                          Py_ssize_t sample, Py_ssize_t part, Py_ssize_t strip,
                          double *slots) noexcept nogil:
    cdef double x_buffer[BLOCK_ROWS * FOLDED]
    cdef double dy_buffer[BLOCK_ROWS * FOLDED]
    cdef Rows x, dy
    cdef ColumnAffine g = f[0]
    cdef Py_ssize_t column = strip * STRIP, count = min(STRIP, l.wide - column), n, k
    cdef Py_ssize_t row = part * l.part, stop = row + whole_rows(l, part), rows
    cdef double *sums = slots + SLOT * l.wide * part + column
    cdef Py_ssize_t at = column * l.loops.wide
    g.hi = <const char *> f.hi + at
    g.scale = <const char *> f.scale + at
    g.bias = <const char *> f.bias + at
    g.slope = <const char *> f.slope + at
    for k in range(SLOT):
        memset(sums + k * l.wide, 0, count * sizeof(double))
    if l.rest and part == l.parts - 1:
        stop += 1
    while row < stop:
        rows = min(BLOCK_ROWS, stop - row)
        n = count
        if l.rest and row + rows == l.folded:
            if rows > 1:
                rows -= 1
            else:
                n = min(count, l.rest - column)
                if n <= 0:
                    return
        ready_rows(a, l, &a.x, gathered, sample, row, rows, column, <char *> x_buffer, &x)
        ready_rows(a, l, &a.dy, gathered, sample, row, rows, column, <char *> dy_buffer, &dy)
        x.loops.column_grad_sums(x.at, dy.at, rows, n, l.group, &g, a.activation, sums, sums + l.wide,
                                 sums + 2 * l.wide, sums + 3 * l.wide)
        row += rows


cdef void column_totals(Columns *a, const Layout *l, Py_ssize_t sample, double *slots,
                        double *sums) noexcept nogil:
    """From slots to each group's weighted sums; parameter gradients of the sample on the way."""
    cdef Py_ssize_t part, c, k, group, groups = l.columns // a.group, at
    cdef double lo, g, gd, weight
    cdef double *other
    for part in range(1, l.parts):
        other = slots + SLOT * l.wide * part
        for k in range(SLOT * l.wide):
            slots[k] += other[k]
    for k in range(SLOT):
        for part in range(1, l.fold):
            for c in range(l.columns):
                slots[k * l.wide + c] += slots[k * l.wide + part * l.columns + c]
    for group in range(groups):
        at = sample * groups + group
        lo = (a.mean[at] - l.loops.rounded(a.mean[at])) + (a.lo[at] if a.lo != NULL else 0)
        if l.loops.wide == 8 and not a.given and a.sums_mode == 0:
            lo = 0
            for c in range(group * a.group, (group + 1) * a.group):
                lo += slots[2 * l.wide + c]
            lo /= <double> (l.rows * a.group)
            if a.lo != NULL:
                a.lo[at] = lo
        sums[2 * group] = 0
        sums[2 * group + 1] = 0
        for c in range(group * a.group, (group + 1) * a.group):
            g = slots[c]
            gd = slots[l.wide + c] - lo * g
            weight = a.weight[c] if a.weight != NULL else 1
            a.grad_bias[sample * l.columns + c] = g
            a.grad_weight[sample * l.columns + c] = a.rstd[at] * gd
            if a.activation:
                a.grad_slope[sample * l.columns + c] = slots[3 * l.wide + c]
            sums[2 * group] += weight * g
            sums[2 * group + 1] += weight * gd


cdef inline void grad_strip_item(const Columns *a, const Layout *l, const ColumnAffine *f, bint gathered,
                                 Py_ssize_t sample, Py_ssize_t item, double *slots) noexcept nogil:
    cdef Py_ssize_t part = item // l.strips
    strip_grad_sums(a, l, f, gathered, sample, part, item - part * l.strips, slots)


cdef int sample_grad_sums(Columns *a, const Layout *l, double *sums, Py_ssize_t sample,
                          int threads) noexcept nogil:
    cdef Py_ssize_t i, items = l.parts * l.strips
    cdef bint gathered = not (end_to_end(a, &a.x) and end_to_end(a, &a.dy))
    cdef ColumnAffine f
    cdef double *slots = <double *> malloc(SLOT * l.parts * l.wide * sizeof(double))
    cdef char *room = <char *> malloc(COEFFICIENTS * l.wide * l.loops.wide)
    if slots == NULL or room == NULL:
        free(slots)
        free(room)
        return -1
    column_affine(a, l, sample, NULL, 0, room, &f)
    if threads == 1:
        for i in range(items):
            grad_strip_item(a, l, &f, gathered, sample, i, slots)
    else:
        for i in prange(items, num_threads=threads, schedule="dynamic"):
            grad_strip_item(a, l, &f, gathered, sample, i, slots)
    column_totals(a, l, sample, slots, sums)
    free(slots)
    free(room)
    return 0


cdef int backward_sample(Columns *a, const Layout *l, Py_ssize_t sample, int threads) noexcept nogil:
    cdef Py_ssize_t groups = l.columns // a.group
    cdef double count = <double> (l.rows * a.group)
    cdef double *sums = a.sums + 2 * groups * sample
    cdef int failed = 0
    if a.sums_mode == 0:
        sums = <double *> malloc(2 * groups * sizeof(double))
        if sums == NULL:
            return -1
    if a.sums_mode != 2:
        failed = sample_grad_sums(a, l, sums, sample, threads)
    else:
        count = a.count
    if not failed and a.sums_mode != 1:
        failed = sample_apply(a, l, sums, count, sample, threads, True)
    if a.sums_mode == 0:
        free(sums)
    return failed


cdef int columns_backward(Columns *a) noexcept nogil:
    """Gradients; y is the gradient of the input. grad_* are per sample and column."""
    cdef Layout l = layout_of(a)
    cdef Py_ssize_t i
    cdef int failed = 0
    if a.shape[0] >= 2 * a.threads and a.threads > 1:
        for i in prange(a.shape[0], num_threads=a.threads, schedule="dynamic",
                        chunksize=chunk_of(a.shape[0], a.threads)):
            failed += backward_sample(a, &l, i, 1)  # summed over the threads
        return -1 if failed else 0
    for i in range(a.shape[0]):
        if backward_sample(a, &l, i, a.threads) < 0:
            return -1
    return 0
