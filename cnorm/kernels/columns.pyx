from cython.parallel cimport prange
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from cnorm.kernels.coefficients cimport BACKWARD, FORWARD, SUMS
from cnorm.kernels.columns_apply cimport (
    affine_at, affine_in, apply_joined, apply_rows, apply_stretch, apply_strip, by_column,
    coefficient_bytes, column_affine, columns_affine, joined_rows, low_parts, turned)
from cnorm.kernels.columns_layout cimport (
    by_itself, end_to_end, Layout, layout_of, ready_rows, Rows, samples_apart, strip_begin,
    strip_size)
from cnorm.kernels.columns_moments cimport (
    columns_statistics, group_statistics, merge_slots, slot_of, strip_moments, unfold, whole_rows)
from cnorm.kernels.jobs cimport Norm
from cnorm.kernels.loops cimport ColumnAffine, first_part, stream_end
from cnorm.kernels.tuning cimport (
    BLOCK_ROWS, COEFFICIENTS, FOLDED, OWN, PARTS, ROW_GROUP, SLOT, STRIP)
from cnorm.kernels.units cimport chunk_of
from cnorm.kernels.workspace cimport give_back, room_for


cdef inline void strip_item(const Norm *a, const Layout *l, bint gathered, Py_ssize_t sample,
                            Py_ssize_t item, double *slots) noexcept nogil:
    cdef Py_ssize_t part = item // l.strips
    strip_moments(a, l, gathered, sample, part, item - part * l.strips, slots)
    if l.fold > 1:  # which makes one strip
        unfold(l, slot_of(l, slots, part), part)


cdef int sample_moments(Norm *a, const Layout *l, Py_ssize_t sample, int threads) noexcept nogil:
    cdef double counts[PARTS]
    cdef Py_ssize_t i, items = l.parts * l.strips
    cdef bint gathered = not end_to_end(a, &a.x)
    cdef double own[OWN]
    cdef double *slots = <double *> room_for(3 * l.parts * l.wide * sizeof(double), own)
    if slots == NULL:
        return -1
    if threads == 1:
        for i in range(items):
            strip_item(a, l, gathered, sample, i, slots)
    else:
        for i in prange(items, num_threads=threads, schedule="guided"):
            strip_item(a, l, gathered, sample, i, slots)
    for i in range(l.parts):
        counts[i] = <double> (min((i + 1) * l.part * l.fold, l.rows) - i * l.part * l.fold)
    merge_slots(l, slots, counts)
    group_statistics(a, l, sample, slots)
    give_back(slots, own)
    return 0


cdef int columns_moments(Norm *a) noexcept nogil:
    cdef Layout l = layout_of(a, a.threads)
    cdef Py_ssize_t i
    for i in range(a.shape[0]):
        if sample_moments(a, &l, i, a.threads) < 0:
            return -1
    return 0


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


# ---- backward ----
# Per part and (folded) column: sum of g, of g * (x - hi), of (x - hi), of the slope's gradient.


cdef inline bint summed(const Norm *a, const Layout *l, Py_ssize_t k) noexcept nogil:
    """Whether this call takes sum k of them."""
    return k < 2 or (k == 2 and l.loops.wide == 8) or (k == 3 and a.activation)


cdef enum Gradient:
    LATER    # of the input, when all sums are there
    BY_ROW   # in the visit that takes the sums
    AS_RUN   # the same, of rows that lie end to end


cdef void strip_grad_sums(const Norm *a, const Layout *l, const ColumnAffine *f, bint gathered,
                          Gradient gradient, Py_ssize_t sample, Py_ssize_t part, Py_ssize_t strip,
                          double *slots) noexcept nogil:
    """Sums of a part's strip; and the gradient of its rows where that does not wait for them."""
    cdef double x_buffer[BLOCK_ROWS * FOLDED]
    cdef double dy_buffer[BLOCK_ROWS * FOLDED]
    cdef Rows x, dy
    cdef Py_ssize_t column = strip_begin(l, strip), count = strip_size(l, strip), n, k
    cdef Py_ssize_t row = part * l.part, stop = row + whole_rows(l, part), rows, last
    cdef double *sums = slots + SLOT * l.wide * part + column
    cdef ColumnAffine g = affine_at(f, column * l.loops.wide)
    for k in range(SLOT):
        if summed(a, l, k):
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
        last = min((row + rows) * l.fold, l.rows)
        if gradient == AS_RUN:
            apply_joined(a, l, &g, True, sample, row * l.fold, last)
        elif gradient == BY_ROW:
            apply_rows(a, l, &g, True, sample, row * l.fold, last, column, min(count, l.columns))
        row += rows


cdef inline bint takes_lo(const Norm *a, const Layout *l) noexcept nogil:
    """Whether the low part of the mean comes out of the sums of (x - hi)."""
    return l.loops.wide == 8 and not a.given and a.sums_mode == 0 and a.lo != NULL


cdef void add_parts(const Norm *a, const Layout *l, double *slots) noexcept nogil:
    """Add up the parts, then the folded columns; the first C of each sum then hold them."""
    cdef Py_ssize_t part, c, k
    cdef double *sums
    cdef const double *other
    for k in range(SLOT):
        if not summed(a, l, k):
            continue
        sums = slots + k * l.wide
        for part in range(1, l.parts):
            other = sums + SLOT * l.wide * part
            for c in range(l.wide):
                sums[c] += other[c]
        for part in range(1, l.fold):
            other = sums + part * l.columns
            for c in range(l.columns):
                sums[c] += other[c]


cdef void strip_totals(Norm *a, const Layout *l, Py_ssize_t sample, double *slots, Py_ssize_t first,
                       Py_ssize_t n, double *sums) noexcept nogil:
    """The gradients of n columns' parameters; and their part in the sums of their groups."""
    cdef double hi[STRIP]
    cdef double lo[STRIP]
    cdef double value[STRIP]
    cdef Py_ssize_t j, at = first // a.group, left, groups = l.columns // a.group
    cdef double *grad_weight = a.grad_weight + sample * l.columns + first
    cdef const double *g = slots + first
    cdef const double *gd = slots + l.wide + first
    by_column(a.rstd + sample * groups, 1, a.group, first, n, value)
    low_parts(a, l, sample, first, n, value, hi, lo)
    for j in range(n):
        hi[j] = gd[j] - lo[j] * g[j]
    for j in range(n):
        grad_weight[j] = value[j] * hi[j]
    memcpy(a.grad_bias + sample * l.columns + first, g, n * sizeof(double))
    if a.activation:
        memcpy(a.grad_slope + sample * l.columns + first, slots + 3 * l.wide + first, n * sizeof(double))
    if a.weight != NULL:
        memcpy(value, a.weight + first, n * sizeof(double))
    else:
        for j in range(n):
            value[j] = 1
    left = a.group - first % a.group
    for j in range(n):
        sums[2 * at] += value[j] * g[j]
        sums[2 * at + 1] += value[j] * hi[j]
        left -= 1
        if left == 0:
            at += 1
            left = a.group


cdef void column_totals(Norm *a, const Layout *l, Py_ssize_t sample, double *slots, Py_ssize_t first,
                        Py_ssize_t n, double *sums) noexcept nogil:
    """From the slots of n columns, whole groups, to each group's weighted sums; the gradients of the columns'
    parameters on the way."""
    cdef Py_ssize_t c, group, at, groups = l.columns // a.group, stop = first + n
    cdef double lo, mean
    if takes_lo(a, l):
        for group in range(first // a.group, stop // a.group):
            lo = 0
            for c in range(group * a.group, (group + 1) * a.group):
                lo += slots[2 * l.wide + c]
            at = sample * groups + group
            mean = a.mean[at]
            a.lo[at] = lo / <double> (l.rows * a.group) - (mean - first_part(mean, mean, a.rstd[at], a.eps))
    memset(sums + 2 * (first // a.group), 0, 2 * (n // a.group) * sizeof(double))
    while first < stop:
        n = min(<Py_ssize_t> STRIP, stop - first)
        strip_totals(a, l, sample, slots, first, n, sums)
        first += n


cdef inline void grad_strip_item(const Norm *a, const Layout *l, const ColumnAffine *f, bint gathered,
                                 Gradient gradient, Py_ssize_t sample, Py_ssize_t item,
                                 double *slots) noexcept nogil:
    cdef Py_ssize_t part = item // l.strips
    strip_grad_sums(a, l, f, gathered, gradient, sample, part, item - part * l.strips, slots)
    if f.stream:
        stream_end()


cdef int sample_grad_sums(Norm *a, const Layout *l, double *sums, Py_ssize_t sample, int threads,
                          bint apply) noexcept nogil:
    """Sums of a sample; with `apply` also its gradient, in the same visit."""
    cdef Py_ssize_t i, items = l.parts * l.strips
    cdef Gradient gradient = LATER
    cdef bint gathered = not (end_to_end(a, &a.x) and end_to_end(a, &a.dy))
    cdef ColumnAffine f
    cdef double own[OWN]
    cdef double *slots = <double *> room_for(
        SLOT * l.parts * l.wide * sizeof(double) + COEFFICIENTS * coefficient_bytes(l), own)
    cdef char *room = <char *> (slots + SLOT * l.parts * l.wide)
    if slots == NULL:
        return -1
    if apply:
        gradient = AS_RUN if l.strips == 1 and joined_rows(a, True) else BY_ROW
    column_affine(a, l, sample, NULL, 0, BACKWARD if apply else SUMS, room, &f)
    if threads == 1:
        for i in range(items):
            grad_strip_item(a, l, &f, gathered, gradient, sample, i, slots)
    else:
        for i in prange(items, num_threads=threads, schedule="guided"):
            grad_strip_item(a, l, &f, gathered, gradient, sample, i, slots)
    add_parts(a, l, slots)
    column_totals(a, l, sample, slots, 0, l.columns, sums)
    give_back(slots, own)
    return 0


cdef void strip_backward(Norm *a, const Layout *l, bint gathered, Py_ssize_t sample, Py_ssize_t strip,
                         double *slots, double *sums, char *room) noexcept nogil:
    cdef ColumnAffine f = affine_in(a, l, room)
    cdef Py_ssize_t first = strip_begin(l, strip), n = strip_size(l, strip)
    columns_affine(a, l, sample, NULL, 0, SUMS, first, n, &f)
    strip_grad_sums(a, l, &f, gathered, LATER, sample, 0, strip, slots)
    column_totals(a, l, sample, slots, first, n, sums)
    columns_affine(a, l, sample, sums, <double> l.rows, BACKWARD, first, n, &f)
    apply_strip(a, l, &f, True, sample, strip)


cdef int backward_by_strips(Norm *a, const Layout *l, Py_ssize_t sample, int threads) noexcept nogil:
    cdef Py_ssize_t i
    cdef bint gathered = not (end_to_end(a, &a.x) and end_to_end(a, &a.dy))
    cdef double *slots = <double *> malloc((SLOT + 2) * l.wide * sizeof(double) + COEFFICIENTS * coefficient_bytes(l))
    cdef double *sums = slots + SLOT * l.wide
    cdef char *room = <char *> (sums + 2 * l.wide)
    if slots == NULL:
        return -1
    if threads == 1:
        for i in range(l.strips):
            strip_backward(a, l, gathered, sample, i, slots, sums, room)
    else:
        for i in prange(l.strips, num_threads=threads, schedule="guided"):
            strip_backward(a, l, gathered, sample, i, slots, sums, room)
    free(slots)
    return 0


cdef int backward_sample(Norm *a, const Layout *l, Py_ssize_t sample, int threads) noexcept nogil:
    cdef Py_ssize_t groups = l.columns // a.group
    cdef double count = <double> (l.rows * a.group)
    cdef double *sums = a.sums + 2 * groups * sample
    cdef bint at_once = a.given and a.sums_mode == 0
    cdef double own[OWN]
    cdef int failed = 0
    if a.sums_mode == 0 and not a.given and by_itself(a, l):
        return backward_by_strips(a, l, sample, threads)
    if a.sums_mode == 0:
        sums = <double *> room_for(2 * groups * sizeof(double), own)
        if sums == NULL:
            return -1
    if a.sums_mode != 2:
        failed = sample_grad_sums(a, l, sums, sample, threads, at_once)
    else:
        count = a.count
    if not failed and a.sums_mode != 1 and not at_once:
        failed = sample_apply(a, l, sums, count, sample, threads, True)
    if a.sums_mode == 0:
        give_back(sums, own)
    return failed


cdef int columns_backward(Norm *a) noexcept nogil:
    """Gradients; y is the gradient of the input. grad_* are per sample and column."""
    cdef bint apart = samples_apart(a)
    cdef Layout l = layout_of(a, 1 if apart else a.threads)
    cdef Py_ssize_t i
    cdef int failed = 0
    if apart:
        for i in prange(a.shape[0], num_threads=a.threads, schedule="guided",
                        chunksize=chunk_of(a.shape[0], a.threads)):
            failed += backward_sample(a, &l, i, 1)  # summed over the threads
        return -1 if failed else 0
    for i in range(a.shape[0]):
        if backward_sample(a, &l, i, a.threads) < 0:
            return -1
    return 0
