# Rows: a weight per element of the unit. LayerNorm and RMSNorm; a unit is a row.

cdef void row_apply(const Units *a, const Tiling *t, const Affine *f, const char *x, char *y,
                    const Piece *p) noexcept nogil:
    cdef Py_ssize_t segment, element, step
    for segment in range(p.segment, p.segment + p.count):
        element = p.begin
        while element < p.end:
            step = min(t.length - element % t.length, p.end - element)
            t.loops.apply_vector(element_at(t, &a.x, x, segment, element),
                                 <char *> element_at(t, &a.y, y, segment, element),
                                 step, segment * t.elements + element, f, a.activation)
            element += step


# ---- backward ----
# The gradients of the parameters are sums down the rows: in the accumulator over the rows of a block,
# then in double in one of a few slots. Blocks and slots are numbered by the shape. Per row five
# coefficients are kept meanwhile: hi, lo, rstd, sum of g, sum of g * (x - mean).

cdef enum:
    BLOCK_ROWS = 64
    BLOCK_BYTES = 1 << 17       # of x: what is read twice must still be in cache
    SLOT_ELEMENTS = 1 << 17
    STRETCH = 1024              # elements of a row that one thread sums the parameters of


cdef struct Blocks:
    Py_ssize_t rows, elements   # of the whole job
    Py_ssize_t block            # rows in a block
    Py_ssize_t blocks
    Py_ssize_t slots
    double *sums                # slots x 3 x elements: weight, bias, slope


cdef void row_sums(const Units *a, const Tiling *t, Py_ssize_t row, Affine *f, double *sum_g,
                   double *sum_gd) noexcept nogil:
    cdef const char *x = unit_at(a, &a.x, row)
    cdef const char *dy = unit_at(a, &a.dy, row)
    cdef double sums[SLOT]
    cdef Py_ssize_t element = 0, step
    sums[0] = 0
    sums[1] = 0
    sums[2] = 0
    sums[3] = 0
    while element < t.elements:
        step = min(TILE, t.elements - element)
        row_tile_sums(a, t, f, x, dy, element, step, sums)
        element += step
    if t.loops.wide == 8 and a.centred:
        f.lo = sums[2] / <double> t.elements
    if a.unit_slope_grads != NULL:
        a.unit_slope_grads[row] = sums[3]
    sum_g[0] = sums[0]
    sum_gd[0] = sums[1] - f.lo * sums[0]


cdef void row_tile_sums(const Units *a, const Tiling *t, const Affine *f, const char *x, const char *dy,
                        Py_ssize_t element, Py_ssize_t count, double *sums) noexcept nogil:
    cdef double x_buffer[TILE]
    cdef double dy_buffer[TILE]
    cdef Piece p
    if t.runs == 1:
        grad_sums_of(a, t.loops, f, x + element * t.loops.size, dy + element * t.loops.size, count,
                     element, sums)
        return
    p.segment = 0
    p.count = 1
    p.begin = element
    p.end = element + count
    gather(t, &a.x, x, &p, False, <char *> x_buffer)
    gather(t, &a.dy, dy, &p, False, <char *> dy_buffer)
    grad_sums_of(a, TILES[t.loops.accumulator], f, <char *> x_buffer, <char *> dy_buffer, count,
                 element, sums)


cdef inline void grad_sums_of(const Units *a, const Tile *loops, const Affine *f, const char *x,
                              const char *dy, Py_ssize_t count, Py_ssize_t element,
                              double *sums) noexcept nogil:
    loops.grad_sums_vector(x, dy, count, element, f, a.activation, sums)


cdef void row_grad_apply(const Units *a, const Tiling *t, Py_ssize_t row, const Affine *f) noexcept nogil:
    cdef const char *x = unit_at(a, &a.x, row)
    cdef const char *dy = unit_at(a, &a.dy, row)
    cdef char *dx = unit_at(a, &a.y, row)
    cdef Py_ssize_t run
    cdef const char *plus = unit_at(a, &a.plus, row) if a.add_grad else NULL
    for run in range(t.runs):
        t.loops.grad_apply_vector(x + run * a.x.stride[3], dy + run * a.dy.stride[3],
                                  plus + run * a.plus.stride[3] if plus != NULL else NULL,
                                  dx + run * a.y.stride[3], t.length, run * t.length, f, a.activation)


cdef inline double *kept_of(const Blocks *b, double *kept, Py_ssize_t row) noexcept nogil:
    """The coefficients of a row: five, `block` apart, after those of the blocks before."""
    cdef Py_ssize_t block = row // b.block
    return kept + 5 * b.block * block + (row - block * b.block)


cdef void keep_row(const Units *a, const Tiling *t, Py_ssize_t row, double *kept,
                   Py_ssize_t stride) noexcept nogil:
    cdef Affine f = given_affine(a, t.loops, row)
    row_sums(a, t, row, &f, kept + 3 * stride, kept + 4 * stride)
    kept[0] = f.hi
    kept[stride] = f.lo
    kept[2 * stride] = f.rstd


cdef void finish_row(const Units *a, const Tiling *t, Py_ssize_t row, const double *kept,
                     Py_ssize_t stride) noexcept nogil:
    cdef Affine f = given_affine(a, t.loops, row)
    f.lo = kept[stride]
    f.p = f.rstd
    finish_affine(a, &f, <double> t.elements, kept[3 * stride], kept[4 * stride])
    row_grad_apply(a, t, row, &f)


cdef void block_parameters(const Units *a, const Tiling *t, const Blocks *b, const double *hi,
                           const double *lo, const double *rstd, Py_ssize_t block, Py_ssize_t slot,
                           Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """Add a block of rows to a slot, over elements begin..end of the rows."""
    cdef const char *x[BLOCK_ROWS]
    cdef const char *dy[BLOCK_ROWS]
    cdef RowAffine f
    cdef Py_ssize_t first = block * b.block, rows = min(b.block, b.rows - first), row, step
    cdef double *sums = b.sums + slot * 3 * b.elements
    f.hi = hi
    f.lo = lo
    f.scale = rstd
    f.row_slope = a.unit_slopes + first if a.unit_slopes != NULL else NULL
    f.slope = a.slope
    f.weight = a.row_weight
    f.shift = a.row_bias
    f.slopes = a.row_slopes
    while begin < end:
        step = min(t.length - begin % t.length, end - begin)
        for row in range(rows):
            x[row] = element_at(t, &a.x, unit_at(a, &a.x, first + row), 0, begin)
            dy[row] = element_at(t, &a.dy, unit_at(a, &a.dy, first + row), 0, begin)
        t.loops.parameter_sums(x, dy, rows, begin, step, &f, a.activation, sums + begin,
                               sums + b.elements + begin, sums + 2 * b.elements + begin)
        begin += step


cdef inline Py_ssize_t slot_begin(const Blocks *b, Py_ssize_t slot) noexcept nogil:
    return slot * b.blocks // b.slots


cdef inline bint plain_rows(const Units *a, const Tiling *t) noexcept nogil:
    """Rows that are one tile each, at one stride: the loops take a block of them at once."""
    return a.shape[0] == 1 and t.runs == 1 and t.elements <= TILE and a.unit_slopes == NULL


cdef void backward_slot_together(const Units *a, const Tiling *t, const Blocks *b,
                                 Py_ssize_t slot) noexcept nogil:
    cdef GradRows job
    cdef Py_ssize_t block, first
    cdef double *sums = b.sums + slot * 3 * b.elements
    job.x_stride = a.x.stride[1]
    job.dy_stride = a.dy.stride[1]
    job.dx_stride = a.y.stride[1]
    job.plus_stride = a.plus.stride[1]
    job.n = t.elements
    job.centred = a.centred
    job.activation = a.activation
    job.affine.slope = a.slope
    job.affine.bias = 0
    job.affine.stream = a.stream
    job.affine.ahead = a.ahead
    job.affine.weight = a.row_weight
    job.affine.shift = a.row_bias
    job.affine.slopes = a.row_slopes
    for block in range(slot_begin(b, slot), slot_begin(b, slot + 1)):
        first = block * b.block
        job.rows = min(b.block, b.rows - first)
        job.x = unit_at(a, &a.x, first)
        job.dy = unit_at(a, &a.dy, first)
        job.dx = unit_at(a, &a.y, first)
        job.plus = unit_at(a, &a.plus, first) if a.add_grad else NULL
        job.mean = a.mean + first if a.mean != NULL else NULL
        job.rstd = a.rstd + first
        t.loops.grad_sums_rows(&job)
        if t.loops.grad_short_rows(&job, sums, sums + b.elements):
            continue
        block_parameters(a, t, b, job.hi, job.lo, job.rstd, block, slot, 0, b.elements)
        t.loops.grad_apply_rows(&job)


cdef void backward_slot(const Units *a, const Tiling *t, const Blocks *b, Py_ssize_t slot) noexcept nogil:
    """The blocks of a slot, each while it is in cache."""
    cdef double kept[5 * BLOCK_ROWS]
    cdef Py_ssize_t block, row, first, last
    if plain_rows(a, t):
        backward_slot_together(a, t, b, slot)
        return
    for block in range(slot_begin(b, slot), slot_begin(b, slot + 1)):
        first = block * b.block
        last = min(first + b.block, b.rows)
        for row in range(first, last):
            keep_row(a, t, row, kept + (row - first), b.block)
        block_parameters(a, t, b, kept, kept + b.block, kept + 2 * b.block, block, slot, 0, b.elements)
        for row in range(first, last):
            finish_row(a, t, row, kept + (row - first), b.block)


cdef void stretch_parameters(const Units *a, const Tiling *t, const Blocks *b, const double *kept,
                             Py_ssize_t item) noexcept nogil:
    cdef Py_ssize_t begin = item * STRETCH, end = min(begin + STRETCH, b.elements), slot, block
    cdef const double *coefficients
    for slot in range(b.slots):
        for block in range(slot_begin(b, slot), slot_begin(b, slot + 1)):
            coefficients = kept + 5 * b.block * block
            block_parameters(a, t, b, coefficients, coefficients + b.block, coefficients + 2 * b.block, block,
                             slot, begin, end)


cdef int backward_apart(const Units *a, const Tiling *t, const Blocks *b) noexcept nogil:
    """Few, long rows: each step over all of them before the next, so that every thread has work."""
    cdef double *kept = <double *> malloc(5 * b.blocks * b.block * sizeof(double))
    cdef Py_ssize_t i
    if kept == NULL:
        return -1
    for i in prange(b.rows, num_threads=a.threads, schedule="static"):
        keep_row(a, t, i, kept_of(b, kept, i), b.block)
    for i in prange((b.elements + STRETCH - 1) // STRETCH, num_threads=a.threads, schedule="dynamic"):
        stretch_parameters(a, t, b, kept, i)
    for i in prange(b.rows, num_threads=a.threads, schedule="static"):
        finish_row(a, t, i, kept_of(b, kept, i), b.block)
    free(kept)
    return 0


cdef void add_slots(const Units *a, const Blocks *b) noexcept nogil:
    cdef Py_ssize_t slot, i
    cdef double *sums
    for slot in range(b.slots):
        sums = b.sums + slot * 3 * b.elements
        for i in range(b.elements):
            a.grad_weight[i] += sums[i]
        for i in range(b.elements):
            a.grad_bias[i] += sums[b.elements + i]
        if a.activation:
            for i in range(b.elements):
                a.grad_slope[i] += sums[2 * b.elements + i]


cdef int rows_backward(Units *a) noexcept nogil:
    """Gradients of rows; grad_weight, grad_bias and grad_slope come zeroed."""
    cdef Tiling t = tiling_of(a, True)
    cdef Blocks b
    cdef Py_ssize_t i
    cdef int failed = 0
    b.rows = units_of(a)
    b.elements = t.elements
    b.block = min(BLOCK_ROWS, max(4, BLOCK_BYTES // (t.elements * t.loops.size)))
    b.blocks = (b.rows + b.block - 1) // b.block
    b.slots = max(1, min(b.blocks, min(16, SLOT_ELEMENTS // t.elements)))
    set_stream(a, &t)
    a.ahead = b.block * a.x.stride[1]
    # one slot is the result itself: the three gradients lie one after the other
    b.sums = a.grad_weight if b.slots == 1 else <double *> calloc(3 * b.slots * b.elements, sizeof(double))
    if b.sums == NULL:
        return -1
    if a.threads == 1:
        for i in range(b.slots):
            backward_slot(a, &t, &b, i)
    elif b.slots >= 2 * a.threads:
        for i in prange(b.slots, num_threads=a.threads, schedule="dynamic"):
            backward_slot(a, &t, &b, i)
    else:
        failed = backward_apart(a, &t, &b)
    if b.slots > 1:
        add_slots(a, &b)
        free(b.sums)
    return failed
