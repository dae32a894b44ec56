# Columns: sums down the columns, a weight per column. BatchNorm of (N, C) and of channels last; and,
# a sample at a time, GroupNorm and InstanceNorm of channels last.
#
# a) Fewer than WIDE columns would leave lanes idle: `fold` consecutive rows then count as one row of
#    fold * C columns. The fold follows from C alone; rows that do not lie end to end are gathered.
# b) A part is a stretch of such rows, PART_ROWS or more, at most PARTS of them in a sample; it is visited
#    in blocks of BLOCK_ROWS: sums about a shift, in the accumulator down a block, in double over blocks.
# c) A part is summed again, about its mean, where a column's shift was a bad guess, and in double where
#    a sum overflowed. A column's choice depends on that column's data alone.
# d) Parts merge in a tree, a vector of columns at a time; columns of a group merge about the mean of
#    their means (their counts are equal).

cdef enum:
    WIDE = 32
    PARTS = 64
    PART_ROWS = 512
    STRIP = 256            # columns that a thread visits at a time
    WIDE_BLOCK = 16        # rows and columns at a time where sums are taken again in double
    ROW_GROUP = 8
    FAR_BYTES = 1 << 23
    FOLDED = 64            # columns that folded rows make, at most


cdef struct Layout:
    const Tile *loops
    Py_ssize_t rows          # of a sample
    Py_ssize_t columns       # C
    Py_ssize_t fold
    Py_ssize_t wide          # fold * C
    Py_ssize_t folded        # rows of `wide` columns, the last of them perhaps shorter
    Py_ssize_t rest          # columns of that last one, or 0 where it is whole
    Py_ssize_t part          # folded rows in a part
    Py_ssize_t parts
    Py_ssize_t strips
    Py_ssize_t group         # rows that the loops take together


cdef Layout layout_of(const Columns *a) noexcept nogil:
    cdef Layout l
    l.loops = TILES[a.storage]
    l.rows = a.shape[1] * a.shape[2] * a.shape[3]
    l.columns = a.shape[4]
    l.fold = 1 if l.columns >= WIDE else FOLDED // l.columns
    l.wide = l.fold * l.columns
    l.folded = (l.rows + l.fold - 1) // l.fold
    l.rest = (l.rows - (l.folded - 1) * l.fold) * l.columns
    if l.rest == l.wide:
        l.rest = 0
    l.part = max(PART_ROWS, (l.folded + PARTS - 1) // PARTS)
    l.part = (l.part + BLOCK_ROWS - 1) // BLOCK_ROWS * BLOCK_ROWS
    l.parts = (l.folded + l.part - 1) // l.part
    l.strips = (l.wide + STRIP - 1) // STRIP
    # far memory is read fastest strictly in its order
    l.group = 1 if (l.columns * l.loops.size >= 512
                    and a.shape[0] * l.rows * l.columns * l.loops.size > FAR_BYTES) else ROW_GROUP
    return l


cdef inline char *row_at(const Columns *a, const View *v, Py_ssize_t sample, Py_ssize_t row) noexcept nogil:
    cdef Py_ssize_t outer = row // a.shape[3], first
    row -= outer * a.shape[3]
    first = outer // a.shape[2]
    return (v.data + sample * v.stride[0] + first * v.stride[1] + (outer - first * a.shape[2]) * v.stride[2]
            + row * v.stride[3])


cdef inline void rows_at(const Columns *a, const View *v, Py_ssize_t sample, Py_ssize_t first, Py_ssize_t step,
                         Py_ssize_t rows, Py_ssize_t bytes, char **out) noexcept nogil:
    """Addresses of rows first, first + step, ..., `bytes` into each."""
    cdef Py_ssize_t i, stride = step * v.stride[3]
    cdef char *base
    if a.shape[1] == 1 and a.shape[2] == 1:
        base = v.data + sample * v.stride[0] + first * v.stride[3] + bytes
        for i in range(rows):
            out[i] = base + i * stride
    else:
        for i in range(rows):
            out[i] = row_at(a, v, sample, first + i * step) + bytes


cdef inline bint end_to_end(const Columns *a, const View *v) noexcept nogil:
    """Whether the rows of a sample lie one after the other."""
    cdef Py_ssize_t row = a.shape[4] * TILES[a.storage].size
    return (v.stride[3] == row
            and (a.shape[2] == 1 or v.stride[2] == row * a.shape[3])
            and (a.shape[1] == 1 or v.stride[1] == row * a.shape[3] * a.shape[2]))


cdef struct Rows:
    # Up to BLOCK_ROWS rows as the loops take them: in place or gathered.
    const char *at[BLOCK_ROWS]
    const Tile *loops
    Py_ssize_t rows


cdef void ready_rows(const Columns *a, const Layout *l, const View *v, bint gathered, Py_ssize_t sample,
                     Py_ssize_t first, Py_ssize_t rows, Py_ssize_t column, char *buffer,
                     Rows *out) noexcept nogil:
    """Folded rows first .. first + rows, from a column on."""
    cdef Py_ssize_t i, row, last
    cdef Py_ssize_t size = l.columns * l.loops.wide
    out.rows = rows
    if l.fold == 1 or not gathered:
        out.loops = l.loops
        rows_at(a, v, sample, first * l.fold, l.fold, rows, column * l.loops.size, <char **> out.at)
        return
    out.loops = TILES[l.loops.accumulator]
    for i in range(rows):
        out.at[i] = buffer + i * l.wide * l.loops.wide + column * l.loops.wide
        last = min((first + i + 1) * l.fold, l.rows)
        for row in range((first + i) * l.fold, last):
            l.loops.widen(row_at(a, v, sample, row), l.columns,
                          buffer + i * l.wide * l.loops.wide + (row - (first + i) * l.fold) * size)


include "columns_moments.pxi"


# ---- apply ----

cdef enum:
    COEFFICIENTS = 8   # hi, scale, bias, slope, p, q, r, rstd


cdef inline Py_ssize_t apply_fold(const Columns *a, const Layout *l, bint backward) noexcept nogil:
    """Elementwise work may fold rows only where they lie end to end in every array."""
    if l.fold > 1 and end_to_end(a, &a.x) and end_to_end(a, &a.y) and (
            not backward or end_to_end(a, &a.dy)):
        return l.fold
    return 1


cdef void column_affine(const Columns *a, const Layout *l, Py_ssize_t sample, const double *sums,
                        double count, char *room, ColumnAffine *f) noexcept nogil:
    """Coefficients of each column, repeated for folded rows; sums: of g and g * (x - hi), or NULL."""
    cdef Py_ssize_t c, k, at, groups = l.columns // a.group, bytes = l.wide * l.loops.wide
    cdef double hi, lo, rstd, scale, bias, q, r
    cdef char *v = room
    for c in range(l.columns):
        at = sample * groups + c // a.group
        rstd = a.rstd[at]
        hi = l.loops.rounded(a.mean[at])
        lo = (a.mean[at] - hi) + (a.lo[at] if a.lo != NULL else 0)
        scale = rstd * a.weight[c] if a.weight != NULL else rstd
        bias = (a.bias[c] if a.bias != NULL else 0) - lo * scale
        q = 0
        r = 0
        if sums != NULL and not a.given:
            q = rstd * rstd * sums[2 * (c // a.group) + 1] / count
            r = rstd * sums[2 * (c // a.group)] / count - lo * rstd * q
        for k in range(l.fold):
            set_value(l.loops, v, k * l.columns + c, hi)
            set_value(l.loops, v + bytes, k * l.columns + c, scale)
            set_value(l.loops, v + 2 * bytes, k * l.columns + c, bias)
            set_value(l.loops, v + 3 * bytes, k * l.columns + c, a.slopes[c] if a.activation == 2 else a.slope)
            set_value(l.loops, v + 4 * bytes, k * l.columns + c, scale)
            set_value(l.loops, v + 5 * bytes, k * l.columns + c, q)
            set_value(l.loops, v + 6 * bytes, k * l.columns + c, r)
            set_value(l.loops, v + 7 * bytes, k * l.columns + c, rstd)
    f.stream = streamed(&a.y, &a.x, &a.dy, a.shape[0] * l.rows * l.columns * l.loops.size,
                        a.dy.data != NULL or not a.given)
    f.hi = v
    f.scale = v + bytes
    f.bias = v + 2 * bytes
    f.slope = v + 3 * bytes
    f.p = v + 4 * bytes
    f.q = v + 5 * bytes
    f.r = v + 6 * bytes
    f.rstd = v + 7 * bytes


cdef void apply_rows(const Columns *a, const Layout *l, const ColumnAffine *f, bint backward,
                     Py_ssize_t fold, Py_ssize_t sample, Py_ssize_t block) noexcept nogil:
    """A block of (folded) rows, all columns."""
    cdef const char *x[BLOCK_ROWS]
    cdef const char *dy[BLOCK_ROWS]
    cdef char *y[BLOCK_ROWS]
    cdef Py_ssize_t first = block * BLOCK_ROWS, row
    cdef Py_ssize_t whole = l.rows // fold
    cdef Py_ssize_t rows = min(BLOCK_ROWS, whole - first)
    rows_at(a, &a.x, sample, first * fold, fold, rows, 0, <char **> x)
    rows_at(a, &a.y, sample, first * fold, fold, rows, 0, y)
    if backward:
        rows_at(a, &a.dy, sample, first * fold, fold, rows, 0, <char **> dy)
    if rows > 0:
        if backward:
            l.loops.column_grad_apply(x, dy, y, rows, fold * l.columns, l.group, f, a.activation)
        else:
            l.loops.column_apply(x, y, rows, fold * l.columns, l.group, f, a.activation)
    if first + rows == whole and whole * fold < l.rows and rows < BLOCK_ROWS:
        row = whole * fold
        x[0] = row_at(a, &a.x, sample, row)
        y[0] = row_at(a, &a.y, sample, row)
        if backward:
            dy[0] = row_at(a, &a.dy, sample, row)
            l.loops.column_grad_apply(x, dy, y, 1, (l.rows - row) * l.columns, 1, f, a.activation)
        else:
            l.loops.column_apply(x, y, 1, (l.rows - row) * l.columns, 1, f, a.activation)


cdef int sample_apply(const Columns *a, const Layout *l, const double *sums, double count,
                      Py_ssize_t sample, int threads, bint backward) noexcept nogil:
    cdef Py_ssize_t fold = apply_fold(a, l, backward), blocks, i
    cdef ColumnAffine f
    cdef char *room = <char *> malloc(COEFFICIENTS * l.wide * l.loops.wide)
    if room == NULL:
        return -1
    column_affine(a, l, sample, sums, count, room, &f)
    # one block more than whole rows need, where the rest of the rows would find none
    blocks = (l.rows // fold) // BLOCK_ROWS + 1
    if threads == 1:
        for i in range(blocks):
            apply_rows(a, l, &f, backward, fold, sample, i)
    else:
        for i in prange(blocks, num_threads=threads, schedule="dynamic", chunksize=chunk_of(blocks, threads)):
            apply_rows(a, l, &f, backward, fold, sample, i)
    free(room)
    return 0


cdef inline int forward_sample(Columns *a, const Layout *l, Py_ssize_t sample, int threads) noexcept nogil:
    if not a.given and sample_moments(a, l, sample, threads) < 0:
        return -1
    return sample_apply(a, l, NULL, 0, sample, threads, False)


cdef int columns_forward(Columns *a) noexcept nogil:
    """y = (x - mean) * rstd * weight + bias; mean, lo, m2 and rstd are written (read where given)."""
    cdef Layout l = layout_of(a)
    cdef Py_ssize_t i
    cdef int failed = 0
    if a.shape[0] >= 2 * a.threads and a.threads > 1:
        for i in prange(a.shape[0], num_threads=a.threads, schedule="dynamic",
                        chunksize=chunk_of(a.shape[0], a.threads)):
            failed += forward_sample(a, &l, i, 1)  # summed over the threads
        return -1 if failed else 0
    for i in range(a.shape[0]):
        if forward_sample(a, &l, i, a.threads) < 0:
            return -1
    return 0


cdef int columns_moments(Columns *a) noexcept nogil:
    cdef Layout l = layout_of(a)
    cdef Py_ssize_t i
    for i in range(a.shape[0]):
        if sample_moments(a, &l, i, a.threads) < 0:
            return -1
    return 0


include "columns_backward.pxi"
