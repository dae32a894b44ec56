# Rows: a weight per element of the unit. LayerNorm and RMSNorm; a unit is a row.


from cython.parallel cimport prange
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from cnorm.kernels.jobs cimport Norm, View
from cnorm.kernels.loops cimport (
    GRAD_ABREAST, LANES_ALIGN, LED_LANES, TILE, TILES, Affine, GradRows, stream_end)
from cnorm.kernels.moments cimport element_at, gather, Piece, Tiling, tiling_of
from cnorm.kernels.segments_apply cimport segment_apply
from cnorm.kernels.tuning cimport (
    ADDED, BLOCK_BYTES, BLOCK_ROWS, EXPECTED, FETCHED, GRAD_BYTES, LAID_BY_ONE, LAID_ELEMENTS,
    LAID_ROWS, LEAST_ROWS, NEAR_BYTES, PARALLEL_SUMS, SHARED_ROWS, SLOT, SLOT_ELEMENTS, SLOT_EVEN,
    SLOTS, STRETCH)
from cnorm.kernels.unit_sweeps cimport (
    forward_by_parts, forward_units, one_tile, units_forward_together)
from cnorm.kernels.units cimport by_parts, chunk_of, set_memory, unit_affine, unit_at, units_of
from cnorm.kernels.workspace cimport power_of_two, up_to


cdef void row_apply(const Norm *a, const Tiling *t, const Affine *f, Py_ssize_t unit, const char *x, char *y,
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


cdef inline bint lies(const void *values, Py_ssize_t phase) noexcept nogil:
    """Whether they begin `phase` bytes into a line, so that lanes of theirs cross none."""
    return values == NULL or (<Py_ssize_t> values - phase) % LANES_ALIGN == 0


cdef inline const void *laid(const void *values, Py_ssize_t bytes, Py_ssize_t phase, char *room) noexcept nogil:
    """A copy of them that does, where they do not."""
    if lies(values, phase):
        return values
    room += (phase - <Py_ssize_t> room) & (LANES_ALIGN - 1)
    memcpy(room, values, bytes)
    return room


cdef void *lay_parameters(Norm *a, const Tiling *t) noexcept nogil:
    """Weight and bias of many rows to where whole lanes of them lie: as the rows' do after the few elements that
    are stored first, up to a line of y. To be freed; NULL: they are used as they lie."""
    cdef Py_ssize_t bytes = t.elements * t.loops.wide, phase = 0
    cdef Py_ssize_t least = LAID_ELEMENTS if a.threads == 1 else LAID_BY_ONE
    cdef char *room
    if a.row_weight == NULL or units_of(a) < LAID_ROWS or units_of(a) * t.elements < least:
        return NULL
    if bytes >= LED_LANES * LANES_ALIGN and a.y.stride[1] % LANES_ALIGN == 0:
        phase = (-(t.loops.wide // t.loops.size) * (-<Py_ssize_t> a.y.data & (LANES_ALIGN - 1))) & (LANES_ALIGN - 1)
    if lies(a.row_weight, phase) and lies(a.row_bias, phase):
        return NULL
    room = <char *> malloc(2 * (bytes + LANES_ALIGN))
    if room != NULL:
        a.row_weight = laid(a.row_weight, bytes, phase, room)
        a.row_bias = laid(a.row_bias, bytes, phase, room + bytes + LANES_ALIGN)
    return room


cdef int rows_forward(Norm *a) noexcept nogil:
    """y = (x - mean) * rstd * weight + bias, of each row."""
    cdef Tiling t = tiling_of(a, False)
    cdef void *room = lay_parameters(a, &t)
    cdef int failed
    t.apply = row_apply if a.by_element else segment_apply  # without a weight, a row is one segment
    set_memory(a, &t)
    if one_tile(a, &t):
        failed = units_forward_together(a, &t)
    elif by_parts(units_of(a), t.parts, a.threads):
        failed = forward_by_parts(a, &t)
    else:
        failed = forward_units(a, &t)
    free(room)
    return failed


# ---- backward ----
# The gradients of the parameters are sums down the rows: in the accumulator over the rows of a block,
# then in double in one of a few slots. Blocks and slots are numbered by the shape.


cdef struct Blocks:
    Py_ssize_t rows, elements   # of the whole job
    Py_ssize_t block            # rows in a block
    Py_ssize_t blocks
    Py_ssize_t slots
    Py_ssize_t share            # slots that a thread takes at a time and adds up
    Py_ssize_t stride           # doubles from one slot's sums to the next
    double *sums                # each slot's 3 x elements: weight, bias, slope


cdef inline Py_ssize_t slot_begin(const Blocks *b, Py_ssize_t slot) noexcept nogil:
    return slot * b.blocks // b.slots


cdef inline Affine row_affine(const Norm *a, const Tiling *t, Py_ssize_t row) noexcept nogil:
    return unit_affine(a, t, row, a.mean[row] if a.mean != NULL else 0, 0, a.rstd[row])


cdef void tile_grad_sums(const Norm *a, const Tiling *t, Py_ssize_t row, Py_ssize_t tile,
                         double *sums) noexcept nogil:
    """Add the sums over one tile of a row, wherever its runs lie."""
    cdef double x_buffer[TILE]
    cdef double dy_buffer[TILE]
    cdef Affine f = row_affine(a, t, row)
    cdef Piece p
    cdef const char *x = unit_at(a, &a.x, row)
    cdef const char *dy = unit_at(a, &a.dy, row)
    p.segment = 0
    p.count = 1
    p.begin = tile * TILE
    p.end = min(p.begin + TILE, t.elements)
    if t.runs == 1:
        t.loops.grad_sums_vector(x + p.begin * t.loops.size, dy + p.begin * t.loops.size, p.end - p.begin,
                                 p.begin, &f, a.activation, sums)
        return
    gather(t, &a.x, x, &p, False, <char *> x_buffer)
    gather(t, &a.dy, dy, &p, False, <char *> dy_buffer)
    TILES[t.loops.accumulator].grad_sums_vector(<char *> x_buffer, <char *> dy_buffer, p.end - p.begin,
                                                p.begin, &f, a.activation, sums)


cdef void block_job(const Norm *a, const Tiling *t, const Blocks *b, Py_ssize_t block,
                    GradRows *job) noexcept nogil:
    """What the loops must know of a block's rows, but for their addresses."""
    cdef Py_ssize_t first = block * b.block, row = t.elements * t.loops.size
    cdef bint far = 3 * b.rows * row >= NEAR_BYTES
    job.rows = min(b.block, b.rows - first)
    job.far = far and row <= EXPECTED
    if far:  # what comes from memory is best read on and on
        job.together = job.rows
    else:
        job.together = max(<Py_ssize_t> GRAD_ABREAST, GRAD_BYTES // (2 * row) // GRAD_ABREAST * GRAD_ABREAST)
    job.ahead = job.rows * a.x.stride[1] if far and row <= FETCHED else 0
    job.n = t.elements
    job.centred = a.centred
    job.activation = a.activation
    job.added = a.add_grad
    job.affine = row_affine(a, t, first)
    job.mean = a.mean + first if a.mean != NULL else NULL
    job.rstd = a.rstd + first
    job.row_slope = a.unit_slopes + first if a.unit_slopes != NULL else NULL
    job.final[0] = a.final_weight if b.blocks == 1 else NULL
    job.final[1] = a.final_bias if b.blocks == 1 else NULL
    job.final[2] = NULL


cdef inline void rows_from(const Norm *a, const Tiling *t, const View *v, Py_ssize_t first, Py_ssize_t element,
                           Py_ssize_t rows, const char **out) noexcept nogil:
    """Addresses of one element of each of a few rows."""
    cdef const char *base = element_at(t, v, unit_at(a, v, first), 0, element)
    cdef Py_ssize_t i
    for i in range(rows):
        out[i] = base + i * v.stride[1]
    if a.shape[0] > 1:
        for i in range(rows):
            out[i] = element_at(t, v, unit_at(a, v, first + i), 0, element)


cdef void stretch_of_block(const Norm *a, const Tiling *t, const Blocks *b, Py_ssize_t slot,
                           Py_ssize_t block, Py_ssize_t begin, Py_ssize_t end, bint take_sums,
                           GradRows *job) noexcept nogil:
    """dx and the parameters' sums over elements begin..end of a block's rows."""
    cdef Py_ssize_t first = block * b.block, step
    cdef double *sums = b.sums + slot * b.stride
    while begin < end:
        step = min(<Py_ssize_t> TILE, min(t.length - begin % t.length, end - begin))
        rows_from(a, t, &a.x, first, begin, job.rows, job.x)
        rows_from(a, t, &a.dy, first, begin, job.rows, job.dy)
        rows_from(a, t, &a.y, first, begin, job.rows, <const char **> job.dx)
        if a.add_grad:
            rows_from(a, t, &a.plus, first, begin, job.rows, job.plus)
        t.loops.grad_rows(job, begin, step, take_sums and begin == 0, block == slot_begin(b, slot),
                          sums + begin, sums + b.elements + begin, sums + 2 * b.elements + begin)
        begin += step


cdef inline void keep_slopes(const Norm *a, const Blocks *b, Py_ssize_t block,
                             const GradRows *job) noexcept nogil:
    cdef Py_ssize_t i
    if a.unit_slope_grads != NULL:
        for i in range(job.rows):
            a.unit_slope_grads[block * b.block + i] = job.sums[3][i]


cdef inline void set_sums(GradRows *job, Py_ssize_t row, const double *sums) noexcept nogil:
    cdef int kind
    for kind in range(SLOT):
        job.sums[kind][row] = sums[kind]


cdef void backward_slot(const Norm *a, const Tiling *t, const Blocks *b, Py_ssize_t slot) noexcept nogil:
    cdef GradRows job
    cdef double sums[SLOT]
    cdef Py_ssize_t block, i, tile
    for block in range(slot_begin(b, slot), slot_begin(b, slot + 1)):
        block_job(a, t, b, block, &job)
        if t.runs > 1:
            for i in range(job.rows):
                memset(sums, 0, sizeof(sums))
                for tile in range(t.tiles):
                    tile_grad_sums(a, t, block * b.block + i, tile, sums)
                set_sums(&job, i, sums)
        stretch_of_block(a, t, b, slot, block, 0, b.elements, t.runs == 1, &job)
        keep_slopes(a, b, block, &job)
    if a.stream:
        stream_end()


cdef inline void tile_item(const Norm *a, const Tiling *t, Py_ssize_t item, double *kept) noexcept nogil:
    cdef double *sums = kept + SLOT * item
    cdef Py_ssize_t row = item // t.tiles
    memset(sums, 0, SLOT * sizeof(double))
    tile_grad_sums(a, t, row, item - row * t.tiles, sums)


cdef inline void total_item(const Tiling *t, Py_ssize_t row, double *kept) noexcept nogil:
    """Add the tiles of a row to its first."""
    cdef double *sums = kept + SLOT * t.tiles * row
    cdef Py_ssize_t tile, i
    for tile in range(1, t.tiles):
        for i in range(SLOT):
            sums[i] += sums[SLOT * tile + i]


cdef void stretch_item(const Norm *a, const Tiling *t, const Blocks *b, const double *kept,
                       Py_ssize_t slot, Py_ssize_t begin) noexcept nogil:
    cdef GradRows job
    cdef Py_ssize_t block, i
    for block in range(slot_begin(b, slot), slot_begin(b, slot + 1)):
        block_job(a, t, b, block, &job)
        for i in range(job.rows):
            set_sums(&job, i, kept + SLOT * t.tiles * (block * b.block + i))
        stretch_of_block(a, t, b, slot, block, begin, min(begin + STRETCH, b.elements), False, &job)
        if begin == 0:
            keep_slopes(a, b, block, &job)
    if a.stream:
        stream_end()


cdef int backward_apart(const Norm *a, const Tiling *t, const Blocks *b) noexcept nogil:
    """Slots too few to keep the threads busy: the sums of all rows before any stretch of any slot."""
    cdef Py_ssize_t items = b.rows * t.tiles, stretches = (b.elements + STRETCH - 1) // STRETCH, i
    cdef double *kept = <double *> malloc(SLOT * items * sizeof(double))
    if kept == NULL:
        return -1
    for i in prange(items, num_threads=a.threads, schedule="guided", chunksize=chunk_of(items, a.threads)):
        tile_item(a, t, i, kept)
    if t.tiles > 1:
        for i in range(b.rows):
            total_item(t, i, kept)
    items = b.slots * stretches
    for i in prange(items, num_threads=a.threads, schedule="guided", chunksize=chunk_of(items, a.threads)):
        stretch_item(a, t, b, kept, i // stretches, i % stretches * STRETCH)
    free(kept)
    return 0


cdef inline Py_ssize_t share_of(const Blocks *b, int threads) noexcept nogil:
    """How many neighbours a thread takes of the slots: a branch of their tree, as large as leaves the threads
    evenly busy."""
    cdef Py_ssize_t share = 1, largest = 1, fewest = (b.slots + threads - 1) // threads, each
    while share < 2 * fewest:
        each = (up_to(b.slots, share) // share + threads - 1) // threads
        if min(share * each, b.slots) == fewest:
            largest = share
        share *= 2
    return largest


cdef void add_slots(const Norm *a, const Blocks *b, Py_ssize_t first, Py_ssize_t last, Py_ssize_t apart,
                    Py_ssize_t element, Py_ssize_t stop) noexcept nogil:
    """Add up slots first .. last over a stretch of elements, in a tree; the first then holds the sums. Those of
    fewer than `apart` neighbours are added already. Some elements at a time, that all slots' are in L1."""
    cdef Py_ssize_t kind, step, slot, i, n
    cdef double *sums
    cdef double *to
    cdef const double *other
    while element < stop:
        n = min(<Py_ssize_t> ADDED, stop - element)
        for kind in range(3 if a.activation else 2):
            sums = b.sums + kind * b.elements + element
            step = apart
            while step < last - first:
                slot = first
                while slot + step < last:
                    to = sums + slot * b.stride
                    other = to + step * b.stride
                    for i in range(n):
                        to[i] += other[i]
                    slot += 2 * step
                step *= 2
        element += n


cdef void backward_share(const Norm *a, const Tiling *t, const Blocks *b, Py_ssize_t share) noexcept nogil:
    """A share of the slots and their sum: what one thread wrote and another reads takes both long, the one that
    reads it now and the one that writes there in the next call."""
    cdef Py_ssize_t first = share * b.share, last = min(first + b.share, b.slots), i
    for i in range(first, last):
        backward_slot(a, t, b, i)
    add_slots(a, b, first, last, 1, 0, b.elements)


cdef void total_columns(const Norm *a, const Tiling *t, const Blocks *b, Py_ssize_t first) noexcept nogil:
    """Add up the shares over a stretch of elements, and round what is wanted rounded."""
    cdef Py_ssize_t n = min(<Py_ssize_t> STRETCH, b.elements - first), bytes = first * t.loops.wide
    cdef const double *sums = b.sums + first
    add_slots(a, b, 0, b.slots, b.share, first, first + n)
    if a.final_weight != NULL:
        t.loops.narrow(sums, n, <char *> a.final_weight + bytes)
    elif b.slots > 1:
        memcpy(a.grad_weight + first, sums, n * sizeof(double))
    sums += b.elements
    if a.final_bias != NULL:
        t.loops.narrow(sums, n, <char *> a.final_bias + bytes)
    elif b.slots > 1:
        memcpy(a.grad_bias + first, sums, n * sizeof(double))
    sums += b.elements
    if a.activation and b.slots > 1:
        memcpy(a.grad_slope + first, sums, n * sizeof(double))


cdef void total_blocks(const Norm *a, const Tiling *t, const Blocks *b) noexcept nogil:
    """The parameters' gradients of several blocks."""
    cdef Py_ssize_t stretches = (b.elements + STRETCH - 1) // STRETCH, i
    if a.threads == 1 or stretches == 1 or b.slots // b.share * b.elements < PARALLEL_SUMS:
        for i in range(stretches):
            total_columns(a, t, b, i * STRETCH)
    else:
        for i in prange(stretches, num_threads=a.threads, schedule="static"):
            total_columns(a, t, b, i * STRETCH)


cdef int rows_backward(Norm *a) noexcept nogil:
    """Gradients of rows; grad_weight, grad_bias and grad_slope, which lie one after the other, are written, the
    last where there is an activation; final_weight and final_bias instead, where there are any."""
    cdef Tiling t = tiling_of(a, True)
    cdef Blocks b
    cdef Py_ssize_t i, shares
    cdef void *room
    cdef int failed = 0
    b.rows = units_of(a)
    b.elements = t.elements
    b.block = min(BLOCK_ROWS, max(LEAST_ROWS, BLOCK_BYTES // (t.elements * t.loops.size)))
    # so many, or some more, that threads share them evenly: a power of two, or a multiple of the slots
    b.blocks = (b.rows + b.block - 1) // b.block
    b.blocks = up_to(b.blocks, power_of_two(b.blocks, SLOTS))
    b.block = max(<Py_ssize_t> LEAST_ROWS, up_to((b.rows + b.blocks - 1) // b.blocks, 2))
    b.blocks = (b.rows + b.block - 1) // b.block
    b.slots = max(1, min(b.blocks, min(SLOTS, SLOT_ELEMENTS // t.elements)))
    set_memory(a, &t)
    b.stride = up_to(3 * b.elements, SLOT_EVEN) + ADDED
    # one slot is the result itself
    b.sums = a.grad_weight if b.slots == 1 else <double *> malloc(b.slots * b.stride * sizeof(double))
    if b.sums == NULL:
        return -1
    room = lay_parameters(a, &t)
    b.share = share_of(&b, a.threads)
    shares = (b.slots + b.share - 1) // b.share
    if a.threads == 1:
        backward_share(a, &t, &b, 0)
    elif b.slots < 2 * a.threads and b.slots % a.threads:
        b.share = 1
        failed = backward_apart(a, &t, &b)
    elif b.rows <= SHARED_ROWS * b.slots:
        for i in prange(shares, num_threads=a.threads, schedule="static"):
            backward_share(a, &t, &b, i)
    else:
        b.share = 1
        for i in prange(b.slots, num_threads=a.threads, schedule="guided"):
            backward_slot(a, &t, &b, i)
    if b.blocks > 1 and not failed:
        total_blocks(a, &t, &b)
    if b.slots > 1:
        free(b.sums)
    free(room)
    return failed
