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


from cnorm.kernels.jobs cimport Norm, View
from cnorm.kernels.loops cimport LANES_ALIGN, SUMMED, TILES, Tile
from cnorm.kernels.tuning cimport (
    BLOCK_ROWS, EVEN, FAR_BYTES, FOLDED, PAGE, PART_EVEN, PART_ROWS, PARTS, ROW_GROUP, STRIP,
    STRIP_EVEN, STRIP_LEAST, WIDE)
from cnorm.kernels.workspace cimport power_of_two, up_to


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


cdef inline Py_ssize_t lead_of(const View *y, Py_ssize_t size) noexcept nogil:
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


cdef inline Layout layout_of(const Norm *a, int threads) noexcept nogil:
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


cdef inline void ready_rows(const Norm *a, const Layout *l, const View *v, bint gathered, Py_ssize_t sample,
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
