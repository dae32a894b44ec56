# Columns, statistics: parts of a sample, their merging, groups of columns. See columns.pxi.


from libc.string cimport memcpy, memset
from cnorm.kernels.coefficients cimport set_value, shift_at
from cnorm.kernels.columns_layout cimport Layout, ready_rows, Rows, strip_begin, strip_size
from cnorm.kernels.jobs cimport Norm
from cnorm.kernels.loops cimport SUMMED, TILES, far_from_mean
from cnorm.kernels.moments cimport finite, rstd_of
from cnorm.kernels.tuning cimport BLOCK_ROWS, FOLDED, STRIP, TINY, WIDE_BLOCK


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


cdef inline void strip_sums(const Norm *a, const Layout *l, bint gathered, Py_ssize_t sample, Py_ssize_t part,
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


cdef inline void strip_sums_in_double(const Norm *a, const Layout *l, bint gathered, Py_ssize_t sample,
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


cdef inline void slot_moments(const Layout *l, double *first, Py_ssize_t n, double count) noexcept nogil:
    """Turn sums into mean, lo, m2 (as `about`) in n columns, which have one count."""
    cdef double *second = first + l.wide
    cdef double *shift = second + l.wide
    cdef double step, mean, m2, share = 1 / count
    cdef Py_ssize_t j
    for j in range(n):
        step = first[j] * share
        m2 = second[j] - first[j] * step
        mean = shift[j] + step
        first[j] = mean
        second[j] = (shift[j] - mean) + step
        shift[j] = 0 if m2 < 0 else m2


cdef inline bint any_far(Py_ssize_t n, double count, const double *first, const double *second) noexcept nogil:
    """Whether a shift was a bad guess."""
    cdef Py_ssize_t j, far = 0  # as wide as a double: the loop takes lanes of them
    for j in range(n):
        far |= <Py_ssize_t> far_from_mean(count, first[j], second[j])
    return far != 0


cdef inline bint lost(double first, double second, double tiny) noexcept nogil:
    """Whether a float overflowed, or underflowed, on the way to these sums."""
    return (first - first != 0) | (second - second != 0) | (second < tiny)


cdef inline bint any_lost(Py_ssize_t n, double tiny, const double *first, const double *second) noexcept nogil:
    cdef Py_ssize_t j, found = 0
    for j in range(n):
        found |= <Py_ssize_t> lost(first[j], second[j], tiny)
    return found != 0


cdef inline void sum_lost_in_double(const Norm *a, const Layout *l, bint gathered, Py_ssize_t sample,
                                    Py_ssize_t part, Py_ssize_t column, Py_ssize_t count, double tiny,
                                    double *first, double *second, double *kept) noexcept nogil:
    """Sums and shifts of the columns of a strip that floats have lost."""
    cdef double again[3 * WIDE_BLOCK]
    cdef Py_ssize_t j, k, n
    for j from 0 <= j < count by WIDE_BLOCK:
        n = min(WIDE_BLOCK, count - j)
        for k in range(n):
            again[k] = kept[j + k] if finite(kept[j + k]) else 0
        strip_sums_in_double(a, l, gathered, sample, part, column + j, n, again, again + WIDE_BLOCK,
                             again + 2 * WIDE_BLOCK)
        for k in range(n):
            if lost(first[j + k], second[j + k], tiny):
                kept[j + k] = again[k]
                first[j + k] = again[WIDE_BLOCK + k]
                second[j + k] = again[2 * WIDE_BLOCK + k]


cdef inline void strip_moments(const Norm *a, const Layout *l, bint gathered, Py_ssize_t sample,
                               Py_ssize_t part, Py_ssize_t strip, double *slots) noexcept nogil:
    """Fill a part's slot over one strip of columns: mean, lo and m2 of each."""
    cdef double shift[SUMMED]  # of the accumulator's type
    cdef Py_ssize_t column = strip_begin(l, strip), count = strip_size(l, strip), j
    cdef Py_ssize_t rest = min(count, max(0, l.rest - column)) if part == l.parts - 1 else 0
    cdef double *first = slot_of(l, slots, part) + column
    cdef double *second = first + l.wide
    cdef double *kept = second + l.wide
    cdef double whole = <double> whole_rows(l, part), size, tiny = TINY if a.eps < TINY else -1
    memset(shift, 0, count * l.loops.wide)
    strip_sums(a, l, gathered, sample, part, column, count, True, <char *> shift, first, second)
    if any_far(rest, whole + 1, first, second) or any_far(count - rest, whole, first + rest, second + rest):
        for j in range(count):
            size = whole + 1 if j < rest else whole
            if far_from_mean(size, first[j], second[j]):
                set_value(l.loops, <char *> shift, j, shift_at(l.loops, <char *> shift, j) + first[j] / size)
        strip_sums(a, l, gathered, sample, part, column, count, False, <char *> shift, first, second)
    TILES[l.loops.accumulator].widen64(<char *> shift, count, kept)
    if l.loops.wide != 8 and any_lost(count, tiny, first, second):
        sum_lost_in_double(a, l, gathered, sample, part, column, count, tiny, first, second, kept)
    slot_moments(l, first, rest, whole + 1)
    if whole > 0:
        slot_moments(l, first + rest, count - rest, whole)


cdef inline void merge_columns(const Layout *l, double *to, double count, const double *other,
                               double other_count) noexcept nogil:
    """Merge other moments of each column into those at `to`. As `merged`, over columns of one count."""
    cdef double *lo = to + l.wide
    cdef double *m2 = lo + l.wide
    cdef const double *other_lo = other + l.wide
    cdef const double *other_m2 = other_lo + l.wide
    cdef double share = other_count / (count + other_count), weight = count * share, delta, shift, sum_
    cdef Py_ssize_t c
    for c in range(l.columns):
        delta = (other[c] - to[c]) + (other_lo[c] - lo[c])
        shift = lo[c] + delta * share
        sum_ = to[c] + shift
        lo[c] = (to[c] - sum_) + shift
        to[c] = sum_
        m2[c] = m2[c] + other_m2[c] + delta * delta * weight


cdef inline void unfold(const Layout *l, double *slot, Py_ssize_t part) noexcept nogil:
    """Merge the moments of the columns that folded rows made of one; the first C then hold them."""
    cdef double count = column_count(l, part, 0), other
    cdef Py_ssize_t k
    for k from l.columns <= k < l.wide by l.columns:
        other = column_count(l, part, k)
        if other > 0:
            merge_columns(l, slot, count, slot + k, other)
        count += other


cdef inline void merge_slots(const Layout *l, double *slots, double *counts) noexcept nogil:
    """Merge the parts' moments in a tree; part 0 then holds the sample's."""
    cdef Py_ssize_t step = 1, part
    while step < l.parts:
        part = 0
        while part + step < l.parts:
            merge_columns(l, slot_of(l, slots, part), counts[part], slot_of(l, slots, part + step),
                          counts[part + step])
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


cdef inline void strip_statistics(Norm *a, const Layout *l, Py_ssize_t at, const double *slots,
                                  Py_ssize_t n) noexcept nogil:
    """Statistics of n columns that are groups by themselves: what group_statistics comes to."""
    cdef const double *mean = slots
    cdef const double *lo = mean + l.wide
    cdef const double *m2 = lo + l.wide
    cdef double out[STRIP]
    cdef double low[STRIP]
    cdef double m2_out[STRIP]
    cdef double step, shift, total, count = <double> l.rows
    cdef Py_ssize_t c
    for c in range(n):
        step = (mean[c] - mean[c]) + (lo[c] - lo[c])  # 0, or NaN
        shift = lo[c] + step
        out[c] = mean[c] + shift
        low[c] = (mean[c] - out[c]) + shift
    for c in range(n):
        total = m2[c] + (out[c] - out[c])
        m2_out[c] = total + (total - total)  # infinity spoils its column
    memcpy(a.mean + at, out, n * sizeof(double))
    memcpy(a.lo + at, low, n * sizeof(double))
    memcpy(a.m2 + at, m2_out, n * sizeof(double))
    for c in range(n):
        out[c] = rstd_of(m2_out[c], count, a.eps)
    memcpy(a.rstd + at, out, n * sizeof(double))


cdef inline void columns_statistics(Norm *a, const Layout *l, Py_ssize_t sample, const double *slots, Py_ssize_t first,
                                    Py_ssize_t n) noexcept nogil:
    """The same of any number of columns, from part 0 of the slots."""
    cdef Py_ssize_t stop = first + n
    while first < stop:
        n = min(<Py_ssize_t> STRIP, stop - first)
        strip_statistics(a, l, sample * l.columns + first, slots + first, n)
        first += n


cdef inline void group_statistics(Norm *a, const Layout *l, Py_ssize_t sample, const double *slots) noexcept nogil:
    """Statistics of each group of columns of a sample, from part 0 of the slots."""
    cdef const double *mean = slots
    cdef const double *lo = mean + l.wide
    cdef const double *m2 = lo + l.wide
    cdef Py_ssize_t group, groups = l.columns // a.group, c, first, at
    cdef double delta, step, shift, count = <double> l.rows
    cdef Total total
    if a.group == 1:
        columns_statistics(a, l, sample, slots, 0, l.columns)
        return
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
