# Columns: sums down the columns, a weight per column. BatchNorm of (N, C) and of channels last; and,
# a sample at a time, GroupNorm and InstanceNorm of channels last.
#
# a) Fewer than WIDE columns would leave lanes idle: `fold` consecutive rows then count as one row of
#    fold * C columns. The fold follows from C alone; rows that do not lie end to end are gathered.
# b) A part is a stretch of such rows, PART_ROWS of them unless there are PARTS parts; their number is a power
#    of two, which threads share evenly. A part is visited in blocks of BLOCK_ROWS: sums about a shift, in the
#    accumulator down a block, in double over blocks.
# c) A part is summed again, about its mean, where a column's shift was a bad guess, and in double where
#    a sum overflowed. A column's choice depends on that column's data alone.
# d) Parts merge in a tree, a vector of columns at a time; columns of a group merge about the mean of
#    their means (their counts are equal).
# e) What is done element by element takes rows that lie end to end as one run: rows are folded to whole
#    lanes (`spread`), and begin where a line of memory does, with the coefficients of that column.
#    It goes from the last stretch of rows to the first where sums have left the last in cache. With
#    given statistics the gradient waits for no sum: it is made in the visit that takes them.
# f) One part of more columns than a thread sums at a time: such a strip goes from its first sum to its last
#    result by itself, in the cache of one thread.

cdef enum:
    WIDE = 32
    PARTS = 64
    PART_ROWS = 512
    PART_EVEN = 16         # rows that a part's are a multiple of
    STRIP_EVEN = 64        # columns that a strip's are a multiple of
    STRIP_LEAST = 128      # of a strip, at least, where parts are fewer than threads: about STRIP of them then
    WIDE_BLOCK = 16        # rows and columns at a time where sums are taken again in double
    ROW_GROUP = 8
    FAR_BYTES = 1 << 23
    PAGE = 4096
    FOLDED = 64            # columns that folded rows make, at most
    EVEN = 16              # elements of any type that are whole lanes
    LED_BYTES = 1 << 12    # of a run from which on it is worth while to begin at a line
    LEAD = 32              # elements before a line, at most


cdef struct Layout:
    const Tile *loops
    Py_ssize_t rows          # of a sample
    Py_ssize_t columns       # C
    Py_ssize_t fold
    Py_ssize_t wide          # fold * C
    Py_ssize_t folded        # rows of `wide` columns, the last of them perhaps shorter
    Py_ssize_t rest          # columns of that last one, or 0 where it is whole
    Py_ssize_t spread        # rows that elementwise work may fold: they make whole lanes
    Py_ssize_t repeat        # the larger of the two: how often coefficients are repeated
    Py_ssize_t part          # folded rows in a part
    Py_ssize_t parts
    Py_ssize_t strip         # columns that a thread sums at a time
    Py_ssize_t strips
    Py_ssize_t lead          # more columns of the first, so that the others begin where a line of y does
    Py_ssize_t group         # rows that the loops take together
    Py_ssize_t spread_group  # the same of `spread` rows


cdef inline Py_ssize_t group_of(Py_ssize_t row, bint far, bint written) noexcept nogil:
    """Rows of so many bytes to take together: far memory is read fastest in its order, within a page; rows
    that lie whole pages apart meet in one set of the first cache, with what is written."""
    if far:
        return 1 if row < PAGE else ROW_GROUP // 2
    return ROW_GROUP // 4 if written and row % PAGE == 0 else ROW_GROUP


cdef inline Py_ssize_t spread_of(Py_ssize_t columns) noexcept nogil:
    cdef Py_ssize_t spread = 1
    if columns >= FOLDED:
        return 1
    while spread * columns % EVEN or 2 * spread * columns <= FOLDED:
        spread *= 2
    return spread


cdef Py_ssize_t lead_of(const View *y, Py_ssize_t size) noexcept nogil:
    """Columns before the first line of memory that begins in a row, if that is the same for all rows."""
    if (y.stride[0] | y.stride[1] | y.stride[2] | y.stride[3]) % LANES_ALIGN:
        return 0
    return (-<Py_ssize_t> y.data & (LANES_ALIGN - 1)) // size


cdef inline void set_strips(const Norm *a, int threads, Layout *l) noexcept nogil:
    """Of rows as much as can be, for memory is read fastest in its order, unless that leaves threads idle."""
    cdef Py_ssize_t most = SUMMED * (8 // l.loops.wide) - STRIP_EVEN, least = STRIP_EVEN
    l.lead = 0
    l.strips = (l.wide + most - 1) // most
    if l.parts < threads:
        l.lead = lead_of(&a.y, l.loops.size)
        l.strips = up_to((l.wide + STRIP - 1) // STRIP, (threads + l.parts - 1) // l.parts)
        least = STRIP_LEAST
    l.strip = up_to(max((l.wide + l.strips - 1) // l.strips, least), STRIP_EVEN)
    l.strips = max(1, (l.wide - l.lead + l.strip - 1) // l.strip)


cdef Layout layout_of(const Norm *a, int threads) noexcept nogil:
    """For so many threads in a sample."""
    cdef Layout l
    cdef bint far
    l.loops = TILES[a.storage]
    l.rows = a.shape[1] * a.shape[2] * a.shape[3]
    l.columns = a.shape[4]
    l.fold = 1 if l.columns >= WIDE else FOLDED // l.columns
    l.wide = l.fold * l.columns
    l.folded = (l.rows + l.fold - 1) // l.fold
    l.rest = (l.rows - (l.folded - 1) * l.fold) * l.columns
    if l.rest == l.wide:
        l.rest = 0
    l.parts = power_of_two((l.folded + PART_ROWS - 1) // PART_ROWS, PARTS)
    l.part = up_to((l.folded + l.parts - 1) // l.parts, PART_EVEN)
    l.parts = (l.folded + l.part - 1) // l.part
    set_strips(a, threads, &l)
    l.spread = spread_of(l.columns)
    l.repeat = max(l.spread, l.fold)
    far = a.shape[0] * l.rows * l.columns * l.loops.size > FAR_BYTES
    l.group = group_of(l.wide * l.loops.size, far, False)
    l.spread_group = group_of(l.spread * l.columns * l.loops.size, far, True)
    return l


cdef inline bint samples_apart(const Norm *a) noexcept nogil:
    """Whether each thread takes samples of its own."""
    return a.threads > 1 and a.shape[0] >= 2 * a.threads


cdef inline Py_ssize_t strip_begin(const Layout *l, Py_ssize_t strip) noexcept nogil:
    return strip * l.strip + l.lead if strip > 0 else 0


cdef inline Py_ssize_t strip_size(const Layout *l, Py_ssize_t strip) noexcept nogil:
    return (strip_begin(l, strip + 1) if strip + 1 < l.strips else l.wide) - strip_begin(l, strip)


cdef inline bint by_itself(const Norm *a, const Layout *l) noexcept nogil:
    """Whether no strip needs another's sums."""
    return l.parts == 1 and l.strips > 1 and a.group == 1


cdef inline char *row_at(const Norm *a, const View *v, Py_ssize_t sample, Py_ssize_t row) noexcept nogil:
    cdef Py_ssize_t outer = row // a.shape[3], first
    row -= outer * a.shape[3]
    first = outer // a.shape[2]
    return (v.data + sample * v.stride[0] + first * v.stride[1] + (outer - first * a.shape[2]) * v.stride[2]
            + row * v.stride[3])


cdef inline void rows_at(const Norm *a, const View *v, Py_ssize_t sample, Py_ssize_t first, Py_ssize_t step,
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


cdef inline bint end_to_end(const Norm *a, const View *v) noexcept nogil:
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


cdef void ready_rows(const Norm *a, const Layout *l, const View *v, bint gathered, Py_ssize_t sample,
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
    COEFFICIENTS = 7   # hi, scale, bias, slope, q, r, rstd


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


cdef void by_column(const double *of_group, Py_ssize_t step, Py_ssize_t group, Py_ssize_t first,
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


cdef bint low_parts(const Norm *a, const Layout *l, Py_ssize_t sample, Py_ssize_t first, Py_ssize_t n,
                    const double *rstd, double *hi, double *lo) noexcept nogil:
    """The mean of n columns: as the accumulator's type holds it, and the rest; whether it holds any."""
    cdef double mean[STRIP]
    cdef double low[STRIP]
    cdef Py_ssize_t at = sample * (l.columns // a.group)
    by_column(a.mean + at, 1, a.group, first, n, mean)
    if a.lo != NULL:
        by_column(a.lo + at, 1, a.group, first, n, low)
    return split_means(l.loops, a.eps, n, mean, low if a.lo != NULL else NULL, rstd, hi, lo)


cdef void strip_affine(const Norm *a, const Layout *l, Py_ssize_t sample, const double *sums,
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


cdef void columns_affine(const Norm *a, const Layout *l, Py_ssize_t sample, const double *sums, double count,
                         Visit visit, Py_ssize_t first, Py_ssize_t n, ColumnAffine *f) noexcept nogil:
    """Coefficients of n columns; sums: of g and g * (x - hi), for BACKWARD without given statistics."""
    cdef Py_ssize_t stop = first + n
    while first < stop:
        n = min(<Py_ssize_t> STRIP, stop - first)
        strip_affine(a, l, sample, sums, count, visit, first, n, f)
        first += n


cdef void column_affine(const Norm *a, const Layout *l, Py_ssize_t sample, const double *sums,
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


cdef void apply_rows(const Norm *a, const Layout *l, const ColumnAffine *f, bint backward, Py_ssize_t sample,
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


cdef void apply_run(const Norm *a, const Layout *l, const ColumnAffine *f, bint backward, const char *x,
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


cdef void apply_joined(const Norm *a, const Layout *l, const ColumnAffine *f, bint backward,
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


cdef void apply_strip(const Norm *a, const Layout *l, const ColumnAffine *f, bint backward, Py_ssize_t sample,
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


cdef int sample_apply(const Norm *a, const Layout *l, const double *sums, double count,
                      Py_ssize_t sample, int threads, bint backward) noexcept nogil:
    cdef bint joined = joined_rows(a, backward)
    cdef Py_ssize_t fold = l.spread if joined else 1, rows, items, i
    cdef ColumnAffine f
    cdef double own[OWN]
    cdef char *room = <char *> room_for(COEFFICIENTS * coefficient_bytes(l), own)
    if room == NULL:
        return -1
    column_affine(a, l, sample, sums, count, BACKWARD if backward else FORWARD, room, &f)
    rows = fold * max(ROW_GROUP, chunk_of((l.rows + fold - 1) // fold, threads))
    items = (l.rows + rows - 1) // rows
    if threads == 1:
        for i in range(items):
            apply_stretch(a, l, &f, backward, joined, sample, rows * (i if a.given else items - 1 - i), rows)
    else:
        for i in prange(items, num_threads=threads, schedule="guided"):
            apply_stretch(a, l, &f, backward, joined, sample, rows * (i if a.given else turned(i, items, threads)),
                          rows)
    give_back(room, own)
    return 0


cdef void strip_forward(Norm *a, const Layout *l, bint gathered, Py_ssize_t sample, Py_ssize_t strip,
                        double *slots, char *room) noexcept nogil:
    cdef ColumnAffine f = affine_in(a, l, room)
    cdef Py_ssize_t first = strip_begin(l, strip), n = strip_size(l, strip)
    strip_moments(a, l, gathered, sample, 0, strip, slots)
    columns_statistics(a, l, sample, slots, first, n)
    columns_affine(a, l, sample, NULL, 0, FORWARD, first, n, &f)
    apply_strip(a, l, &f, False, sample, strip)


cdef int forward_by_strips(Norm *a, const Layout *l, Py_ssize_t sample, int threads) noexcept nogil:
    cdef Py_ssize_t i
    cdef bint gathered = not end_to_end(a, &a.x)
    cdef double *slots = <double *> malloc(3 * l.wide * sizeof(double) + COEFFICIENTS * coefficient_bytes(l))
    cdef char *room = <char *> (slots + 3 * l.wide)
    if slots == NULL:
        return -1
    if threads == 1:
        for i in range(l.strips):
            strip_forward(a, l, gathered, sample, i, slots, room)
    else:
        for i in prange(l.strips, num_threads=threads, schedule="guided"):
            strip_forward(a, l, gathered, sample, i, slots, room)
    free(slots)
    return 0


cdef inline int forward_sample(Norm *a, const Layout *l, Py_ssize_t sample, int threads) noexcept nogil:
    if not a.given and by_itself(a, l):
        return forward_by_strips(a, l, sample, threads)
    if not a.given and sample_moments(a, l, sample, threads) < 0:
        return -1
    return sample_apply(a, l, NULL, 0, sample, threads, False)


cdef int columns_forward(Norm *a) noexcept nogil:
    """y = (x - mean) * rstd * weight + bias; mean, lo, m2 and rstd are written (read where given)."""
    cdef bint apart = samples_apart(a)
    cdef Layout l = layout_of(a, 1 if apart else a.threads)
    cdef Py_ssize_t i
    cdef int failed = 0
    if apart:
        for i in prange(a.shape[0], num_threads=a.threads, schedule="guided",
                        chunksize=chunk_of(a.shape[0], a.threads)):
            failed += forward_sample(a, &l, i, 1)  # summed over the threads
        return -1 if failed else 0
    for i in range(a.shape[0]):
        if forward_sample(a, &l, i, a.threads) < 0:
            return -1
    return 0


cdef int columns_moments(Norm *a) noexcept nogil:
    cdef Layout l = layout_of(a, a.threads)
    cdef Py_ssize_t i
    for i in range(a.shape[0]):
        if sample_moments(a, &l, i, a.threads) < 0:
            return -1
    return 0


include "columns_backward.pxi"
