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


# ---- moments ----

cdef inline double *slot_of(const Layout *l, double *slots, Py_ssize_t part) noexcept nogil:
    """Per part and column: sum of d, sum of d*d, shift."""
    return slots + 3 * l.wide * part


cdef inline Py_ssize_t whole_rows(const Layout *l, Py_ssize_t part) noexcept nogil:
    """Folded rows of a part that have all their columns."""
    cdef Py_ssize_t last = min((part + 1) * l.part, l.folded)
    return last - part * l.part - (1 if l.rest and last == l.folded else 0)


cdef inline double column_count(const Layout *l, Py_ssize_t part, Py_ssize_t column) noexcept nogil:
    cdef Py_ssize_t whole = whole_rows(l, part)
    if l.rest and part == l.parts - 1 and column < l.rest:
        whole += 1
    return <double> whole


cdef void strip_sums(const Columns *a, const Layout *l, bint gathered, Py_ssize_t sample, Py_ssize_t part,
                     Py_ssize_t column, Py_ssize_t count, bint guess, char *shift,
                     double *first, double *second) noexcept nogil:
    """Sums of a part down `count` columns, about `shift` (of the accumulator's type)."""
    cdef double buffer[BLOCK_ROWS * FOLDED]
    cdef Rows r
    cdef Py_ssize_t row = part * l.part, stop = row + whole_rows(l, part), rows
    cdef Py_ssize_t rest = min(count, l.rest - column) if part == l.parts - 1 else 0
    memset(first, 0, count * sizeof(double))
    memset(second, 0, count * sizeof(double))
    if guess and stop == row:  # nothing but the shorter row
        ready_rows(a, l, &a.x, gathered, sample, row, 1, column, <char *> buffer, &r)
        r.loops.column_head(r.at, 1, rest, shift)
    while row < stop:
        rows = min(BLOCK_ROWS, stop - row)
        ready_rows(a, l, &a.x, gathered, sample, row, rows, column, <char *> buffer, &r)
        if guess:
            r.loops.column_head(r.at, min(rows, WIDE_BLOCK), count, shift)
            guess = False
        r.loops.column_sums(r.at, rows, count, l.group, shift, first, second)
        row += rows
    if rest > 0:
        ready_rows(a, l, &a.x, gathered, sample, row, 1, column, <char *> buffer, &r)
        r.loops.column_sums(r.at, 1, rest, 1, shift, first, second)


cdef void strip_sums_in_double(const Columns *a, const Layout *l, bint gathered, Py_ssize_t sample,
                               Py_ssize_t part, Py_ssize_t column, Py_ssize_t count, double *shift,
                               double *first, double *second) noexcept nogil:
    """The same of one column group where floats overflowed; count <= WIDE_BLOCK."""
    cdef double buffer[BLOCK_ROWS * FOLDED]
    cdef double wide[BLOCK_ROWS * WIDE_BLOCK]
    cdef const char *at[BLOCK_ROWS]
    cdef Rows r
    cdef Py_ssize_t row = part * l.part, stop = min(row + l.part, l.folded), rows, i, n
    memset(first, 0, count * sizeof(double))
    memset(second, 0, count * sizeof(double))
    while row < stop:
        rows = min(BLOCK_ROWS, stop - row) if row + 1 < stop else 1
        if l.rest and row + rows == l.folded and rows > 1:
            rows -= 1
        n = count
        if l.rest and row + rows == l.folded:
            n = min(count, l.rest - column)
            if n <= 0:
                return
        ready_rows(a, l, &a.x, gathered, sample, row, rows, column, <char *> buffer, &r)
        for i in range(rows):
            r.loops.widen64(r.at[i], n, wide + i * WIDE_BLOCK)
            at[i] = <char *> (wide + i * WIDE_BLOCK)
        TILES[1].column_sums(at, rows, n, l.group, shift, first, second)
        row += rows


cdef inline double shift_at(const Tile *loops, const char *shift, Py_ssize_t column) noexcept nogil:
    return (<const double *> shift)[column] if loops.wide == 8 else <double> (<const float *> shift)[column]


cdef inline void set_value(const Tile *loops, char *vector, Py_ssize_t column, double value) noexcept nogil:
    if loops.wide == 8:
        (<double *> vector)[column] = value
    else:
        (<float *> vector)[column] = <float> value


cdef void strip_moments(const Columns *a, const Layout *l, bint gathered, Py_ssize_t sample,
                        Py_ssize_t part, Py_ssize_t strip, double *slots) noexcept nogil:
    """Fill a part's slot over one strip of columns."""
    cdef double shift[STRIP]
    cdef double again[3 * WIDE_BLOCK]
    cdef Py_ssize_t column = strip * STRIP, count = min(STRIP, l.wide - column), j, k, n
    cdef double *first = slot_of(l, slots, part) + column
    cdef double *second = first + l.wide
    cdef double *kept = second + l.wide
    cdef bint redo = False, overflow = False
    cdef double size
    memset(shift, 0, sizeof(shift))
    strip_sums(a, l, gathered, sample, part, column, count, True, <char *> shift, first, second)
    for j in range(count):
        size = column_count(l, part, column + j)
        if far_from_mean(size, first[j], second[j]):
            set_value(l.loops, <char *> shift, j, shift_at(l.loops, <char *> shift, j) + first[j] / size)
            redo = True
    if redo:
        strip_sums(a, l, gathered, sample, part, column, count, False, <char *> shift, first, second)
    for j in range(count):
        kept[j] = shift_at(l.loops, <char *> shift, j)
        if not (finite(first[j]) and finite(second[j])) or (a.eps < TINY and second[j] < TINY):
            overflow = True
    if not overflow or l.loops.wide == 8:
        return
    for j from 0 <= j < count by WIDE_BLOCK:
        n = min(WIDE_BLOCK, count - j)
        for k in range(n):
            again[k] = kept[j + k] if finite(kept[j + k]) else 0
        strip_sums_in_double(a, l, gathered, sample, part, column + j, n, again, again + WIDE_BLOCK,
                             again + 2 * WIDE_BLOCK)
        for k in range(n):
            if (not (finite(first[j + k]) and finite(second[j + k]))
                    or (a.eps < TINY and second[j + k] < TINY)):
                kept[j + k] = again[k]
                first[j + k] = again[WIDE_BLOCK + k]
                second[j + k] = again[2 * WIDE_BLOCK + k]


cdef void slot_moments(const Layout *l, double *slot, Py_ssize_t begin, Py_ssize_t end,
                       double count) noexcept nogil:
    """Turn sums into mean, lo, m2 (as `about`) in columns begin..end, which have one count."""
    cdef double *first = slot
    cdef double *second = slot + l.wide
    cdef double *shift = slot + 2 * l.wide
    cdef double step, mean, m2, share = 1 / count
    cdef Py_ssize_t j
    for j in range(begin, end):
        step = first[j] * share
        m2 = second[j] - first[j] * step
        mean = shift[j] + step
        first[j] = mean
        second[j] = (shift[j] - mean) + step
        shift[j] = 0 if m2 < 0 else m2


cdef void unfold(const Layout *l, double *slot, Py_ssize_t part) noexcept nogil:
    """Merge the moments of the columns that folded rows made of one; the first C then hold them."""
    cdef Py_ssize_t c, k
    cdef Moments m, other
    for c in range(l.columns):
        m.count = column_count(l, part, c)
        m.mean = slot[c]
        m.lo = slot[l.wide + c]
        m.m2 = slot[2 * l.wide + c]
        for k from c + l.columns <= k < l.wide by l.columns:
            other.count = column_count(l, part, k)
            other.mean = slot[k]
            other.lo = slot[l.wide + k]
            other.m2 = slot[2 * l.wide + k]
            m = merged(m, other)
        slot[c] = m.mean
        slot[l.wide + c] = m.lo
        slot[2 * l.wide + c] = m.m2


cdef double part_of_slots(const Layout *l, double *slots, Py_ssize_t part) noexcept nogil:
    """Turn a slot of sums into mean, lo, m2 of the C columns; returns how many rows they are of."""
    cdef double *slot = slot_of(l, slots, part)
    cdef double whole = <double> whole_rows(l, part)
    cdef Py_ssize_t rest = l.rest if part == l.parts - 1 else 0
    slot_moments(l, slot, 0, rest, whole + 1)
    if whole > 0:
        slot_moments(l, slot, rest, l.wide, whole)
    if l.fold > 1:
        unfold(l, slot, part)
    return <double> (min((part + 1) * l.part * l.fold, l.rows) - part * l.part * l.fold)


cdef void merge_slots(const Layout *l, double *slots, double *counts) noexcept nogil:
    """Merge the parts' moments in a tree; part 0 then holds the sample's. As `merged`, over columns."""
    cdef Py_ssize_t step = 1, part, c
    cdef double *mean
    cdef double *other
    cdef double share, weight, delta, shift, sum_
    while step < l.parts:
        part = 0
        while part + step < l.parts:
            share = counts[part + step] / (counts[part] + counts[part + step])
            weight = counts[part] * share
            mean = slot_of(l, slots, part)
            other = slot_of(l, slots, part + step)
            for c in range(l.columns):
                delta = (other[c] - mean[c]) + (other[l.wide + c] - mean[l.wide + c])
                shift = mean[l.wide + c] + delta * share
                sum_ = mean[c] + shift
                mean[l.wide + c] = (mean[c] - sum_) + shift
                mean[c] = sum_
                mean[2 * l.wide + c] = mean[2 * l.wide + c] + other[2 * l.wide + c] + delta * delta * weight
            counts[part] += counts[part + step]
            part += 2 * step
        step *= 2


cdef struct Total:
    # A sum and what rounding took from it: groups may have thousands of channels.
    double sum
    double rest


cdef inline void total_add(Total *t, double value) noexcept nogil:
    cdef double sum_ = t.sum + value
    t.rest += (t.sum - sum_) + value if t.sum * t.sum >= value * value else (value - sum_) + t.sum
    t.sum = sum_


cdef void group_statistics(Columns *a, const Layout *l, Py_ssize_t sample, const double *slots) noexcept nogil:
    """Statistics of each group of columns of a sample, from part 0 of the slots."""
    cdef const double *mean = slots
    cdef const double *lo = mean + l.wide
    cdef const double *m2 = lo + l.wide
    cdef Py_ssize_t group, groups = l.columns // a.group, c, first, at
    cdef double delta, step, shift, count = <double> l.rows
    cdef Total total
    for group in range(groups):
        first = group * a.group
        at = sample * groups + group
        total.sum = 0
        total.rest = 0
        for c in range(first, first + a.group):
            total_add(&total, (mean[c] - mean[first]) + (lo[c] - lo[first]))
        step = (total.sum + total.rest) / <double> a.group
        total.sum = 0
        total.rest = 0
        for c in range(first, first + a.group):
            delta = (mean[c] - mean[first]) + (lo[c] - lo[first]) - step
            total_add(&total, m2[c] + delta * delta * count)
        total.sum += total.rest
        shift = lo[first] + step
        a.mean[at] = mean[first] + shift
        a.lo[at] = (mean[first] - a.mean[at]) + shift
        a.m2[at] = total.sum
        a.rstd[at] = rstd_of(total.sum, count * <double> a.group, a.eps)


cdef inline void strip_item(const Columns *a, const Layout *l, bint gathered, Py_ssize_t sample,
                            Py_ssize_t item, double *slots) noexcept nogil:
    cdef Py_ssize_t part = item // l.strips
    strip_moments(a, l, gathered, sample, part, item - part * l.strips, slots)


cdef int sample_moments(Columns *a, const Layout *l, Py_ssize_t sample, int threads) noexcept nogil:
    cdef double counts[PARTS]
    cdef Py_ssize_t i, items = l.parts * l.strips
    cdef bint gathered = not end_to_end(a, &a.x)
    cdef double *slots = <double *> malloc(3 * l.parts * l.wide * sizeof(double))
    if slots == NULL:
        return -1
    if threads == 1:
        for i in range(items):
            strip_item(a, l, gathered, sample, i, slots)
    else:
        for i in prange(items, num_threads=threads, schedule="dynamic"):
            strip_item(a, l, gathered, sample, i, slots)
    for i in range(l.parts):
        counts[i] = part_of_slots(l, slots, i)
    merge_slots(l, slots, counts)
    group_statistics(a, l, sample, slots)
    free(slots)
    return 0


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


# ---- backward ----
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
