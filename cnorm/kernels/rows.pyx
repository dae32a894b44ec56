# Rows: a weight per element of the unit. LayerNorm and RMSNorm; a unit is a row.
from cython.parallel cimport prange
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from cnorm.kernels.coefficients cimport N_GRAD_SUMS
from cnorm.kernels.job cimport PARTIALS_GUIDED, ROW_BATCHES, TWO_SWEEPS, Job, Tensor
from cnorm.kernels.loops cimport (
    GRAD_ROWS_UNROLLED, LANES_ALIGN, LOOPS_BY_DTYPE, Coefficients, RowGradBlock, store_fence)
from cnorm.kernels.machine cimport cached_traffic, grad_pass_bytes
from cnorm.kernels.moments cimport ElementRange, UnitBlocks, element_at, gather, unit_blocks
from cnorm.kernels.schedule cimport min_chunk, schedule_rows_backward, schedule_units_forward
from cnorm.kernels.segments_apply cimport segment_apply
from cnorm.kernels.tuning cimport (
    ALIGN_MIN_ELEMENTS, ALIGN_MIN_ELEMENTS_THREADED, ALIGN_MIN_ROWS, ELEMENT_RANGE, PARALLEL_TOTALS_MIN,
    PARTIAL_STRIDE_MULTIPLE, PARTIALS_CHUNK, PEEL_MIN_VECTORS, PREFETCH_READ_ROW_MAX, PREFETCH_WRITE_ROW_MAX,
    ROW_BLOCK_BYTES, ROW_BLOCK_MIN_ROWS, ROW_BLOCK_ROWS, ROW_PARTIALS_ELEMENTS, ROW_PARTIALS_MAX, TILE)
from cnorm.kernels.unit_sweeps cimport forward_row_batches, forward_two_sweeps, forward_units
from cnorm.kernels.units cimport has_element_params, unit_at, unit_coefficients, units_of
from cnorm.kernels.workspace cimport power_of_two, round_up


cdef void row_apply(const Job *job, const UnitBlocks *blocks, const Coefficients *coeffs, Py_ssize_t unit,
                    const char *x, char *y, const ElementRange *extent) noexcept nogil:
    cdef Py_ssize_t segment, element, step
    for segment in range(extent.segment, extent.segment + extent.count):
        element = extent.begin
        while element < extent.end:
            step = min(blocks.length - element % blocks.length, extent.end - element)
            blocks.loops.apply_elementwise(element_at(blocks, &job.x, x, segment, element),
                                 <char *> element_at(blocks, &job.y, y, segment, element),
                                 step, segment * blocks.elements + element, coeffs, job.activation)
            element += step


cdef inline bint is_aligned_at(const void *values, Py_ssize_t phase) noexcept nogil:
    """Whether they begin `phase` bytes into a line, so that lanes of theirs cross none."""
    return values == NULL or (<Py_ssize_t> values - phase) % LANES_ALIGN == 0


cdef inline const void *aligned_copy(const void *values, Py_ssize_t bytes, Py_ssize_t phase,
                                     char *room) noexcept nogil:
    """A copy of them that does, where they do not."""
    if is_aligned_at(values, phase):
        return values
    room += (phase - <Py_ssize_t> room) & (LANES_ALIGN - 1)
    memcpy(room, values, bytes)
    return room


cdef void *align_parameters(Job *job, const UnitBlocks *blocks) noexcept nogil:
    """Weight and bias of many rows to where whole lanes of them lie: as the rows' do after the few elements that
    are stored first, up to a line of y. To be freed; NULL: they are used as they lie."""
    cdef Py_ssize_t bytes = blocks.elements * blocks.loops.acc_size, phase = 0
    cdef Py_ssize_t least = ALIGN_MIN_ELEMENTS if job.threads == 1 else ALIGN_MIN_ELEMENTS_THREADED
    cdef char *room
    if job.elements.weight == NULL or units_of(job) < ALIGN_MIN_ROWS or units_of(job) * blocks.elements < least:
        return NULL
    if bytes >= PEEL_MIN_VECTORS * LANES_ALIGN and job.y.strides[1] % LANES_ALIGN == 0:
        phase = (-(blocks.loops.acc_size // blocks.loops.size)
                 * (-<Py_ssize_t> job.y.data & (LANES_ALIGN - 1))) & (LANES_ALIGN - 1)
    if is_aligned_at(job.elements.weight, phase) and is_aligned_at(job.elements.bias, phase):
        return NULL
    room = <char *> malloc(2 * (bytes + LANES_ALIGN))
    if room != NULL:
        job.elements.weight = aligned_copy(job.elements.weight, bytes, phase, room)
        job.elements.bias = aligned_copy(job.elements.bias, bytes, phase, room + bytes + LANES_ALIGN)
    return room


cdef int rows_forward(Job *job) noexcept nogil:
    """y = (x - mean) * rstd * weight + bias, of each row."""
    cdef UnitBlocks blocks = unit_blocks(job, False)
    cdef void *copies = align_parameters(job, &blocks)
    cdef int failed
    blocks.apply = row_apply if has_element_params(job) else segment_apply  # without a weight, a row is one segment
    schedule_units_forward(job, &blocks)
    if blocks.schedule.strategy == ROW_BATCHES:
        failed = forward_row_batches(job, &blocks)
    elif blocks.schedule.strategy == TWO_SWEEPS:
        failed = forward_two_sweeps(job, &blocks)
    else:
        failed = forward_units(job, &blocks)
    free(copies)
    return failed


# ---- backward ----
# The gradients of the parameters are sums down the rows: in the accumulator over the rows of a block,
# then in double in one of a few partials. Blocks and partials are numbered by the shape.


cdef struct RowBlocks:
    # How the rows of a job are cut.
    Py_ssize_t rows, elements       # of the whole job
    Py_ssize_t rows_per_block
    Py_ssize_t blocks
    Py_ssize_t partials
    Py_ssize_t partials_per_thread  # neighbouring partials that a thread takes at a time and adds up
    Py_ssize_t stride               # doubles from one partial to the next
    double *sums                    # each partial's 3 x elements: of weight, bias, slope


cdef inline RowBlocks row_blocks_of(const Job *job, const UnitBlocks *blocks) noexcept nogil:
    """Blocks and partials follow from the shape alone. There are so many blocks, or some more, that partials share
    them evenly: a power of two, or a multiple of ROW_PARTIALS_MAX."""
    cdef RowBlocks cut
    cut.rows = units_of(job)
    cut.elements = blocks.elements
    cut.rows_per_block = max(ROW_BLOCK_MIN_ROWS, ROW_BLOCK_BYTES // (blocks.elements * blocks.loops.size))
    cut.rows_per_block = min(<Py_ssize_t> ROW_BLOCK_ROWS, cut.rows_per_block)
    cut.blocks = (cut.rows + cut.rows_per_block - 1) // cut.rows_per_block
    cut.blocks = round_up(cut.blocks, power_of_two(cut.blocks, ROW_PARTIALS_MAX))
    cut.rows_per_block = max(<Py_ssize_t> ROW_BLOCK_MIN_ROWS,
                             round_up((cut.rows + cut.blocks - 1) // cut.blocks, 2))
    cut.blocks = (cut.rows + cut.rows_per_block - 1) // cut.rows_per_block
    cut.partials = min(<Py_ssize_t> ROW_PARTIALS_MAX, ROW_PARTIALS_ELEMENTS // cut.elements)
    cut.partials = max(1, min(cut.blocks, cut.partials))
    cut.partials_per_thread = 1
    cut.stride = round_up(3 * cut.elements, PARTIAL_STRIDE_MULTIPLE) + PARTIALS_CHUNK
    cut.sums = NULL
    return cut


cdef inline Py_ssize_t partial_begin(const RowBlocks *cut, Py_ssize_t partial) noexcept nogil:
    return partial * cut.blocks // cut.partials


cdef inline Coefficients row_coefficients(const Job *job, const UnitBlocks *blocks,
                                          Py_ssize_t row) noexcept nogil:
    return unit_coefficients(job, blocks, row, job.mean[row] if job.mean != NULL else 0, 0, job.rstd[row])


cdef void tile_grad_sums(const Job *job, const UnitBlocks *blocks, Py_ssize_t row, Py_ssize_t tile,
                         double *sums) noexcept nogil:
    """Add the sums over one tile of a row, wherever its runs lie."""
    cdef double x_buffer[TILE]
    cdef double dy_buffer[TILE]
    cdef Coefficients coeffs = row_coefficients(job, blocks, row)
    cdef ElementRange extent
    cdef const char *x = unit_at(job, &job.x, row)
    cdef const char *dy = unit_at(job, &job.dy, row)
    extent.segment = 0
    extent.count = 1
    extent.begin = tile * TILE
    extent.end = min(extent.begin + TILE, blocks.elements)
    if blocks.runs == 1:
        blocks.loops.grad_sums_elementwise(x + extent.begin * blocks.loops.size,
                                           dy + extent.begin * blocks.loops.size,
                                           extent.end - extent.begin, extent.begin, &coeffs,
                                           job.activation, sums)
        return
    gather(blocks, &job.x, x, &extent, False, <char *> x_buffer)
    gather(blocks, &job.dy, dy, &extent, False, <char *> dy_buffer)
    LOOPS_BY_DTYPE[blocks.loops.acc_dtype].grad_sums_elementwise(<char *> x_buffer, <char *> dy_buffer,
            extent.end - extent.begin, extent.begin, &coeffs, job.activation, sums)


cdef void set_grad_block(const Job *job, const UnitBlocks *blocks, const RowBlocks *cut,
                         Py_ssize_t block, RowGradBlock *grad) noexcept nogil:
    """What the loops must know of a block's rows, but for their addresses."""
    cdef Py_ssize_t first = block * cut.rows_per_block, row = blocks.elements * blocks.loops.size
    cdef bint far = 3 * cut.rows * row >= cached_traffic()
    grad.rows = min(cut.rows_per_block, cut.rows - first)
    grad.from_memory = far and row <= PREFETCH_WRITE_ROW_MAX
    if far:  # what comes from memory is best read on and on
        grad.rows_per_pass = grad.rows
    else:
        grad.rows_per_pass = max(<Py_ssize_t> GRAD_ROWS_UNROLLED,
                                 grad_pass_bytes() // (2 * row) // GRAD_ROWS_UNROLLED * GRAD_ROWS_UNROLLED)
    grad.prefetch_bytes = grad.rows * job.x.strides[1] if far and row <= PREFETCH_READ_ROW_MAX else 0
    grad.n = blocks.elements
    grad.centred = job.centred
    grad.activation = job.activation
    grad.add_to_grad = job.elements.add_to_grad
    grad.coeffs = row_coefficients(job, blocks, first)
    grad.mean = job.mean + first if job.mean != NULL else NULL
    grad.rstd = job.rstd + first
    grad.row_slopes = job.elements.unit_slopes + first if job.elements.unit_slopes != NULL else NULL
    grad.final[0] = job.elements.final_weight if cut.blocks == 1 else NULL
    grad.final[1] = job.elements.final_bias if cut.blocks == 1 else NULL
    grad.final[2] = NULL


cdef inline void row_addresses(const Job *job, const UnitBlocks *blocks, const Tensor *tensor,
                               Py_ssize_t first, Py_ssize_t element, Py_ssize_t rows,
                               const char **out) noexcept nogil:
    """Addresses of one element of each of a few rows."""
    cdef const char *base = element_at(blocks, tensor, unit_at(job, tensor, first), 0, element)
    cdef Py_ssize_t i
    for i in range(rows):
        out[i] = base + i * tensor.strides[1]
    if job.shape[0] > 1:
        for i in range(rows):
            out[i] = element_at(blocks, tensor, unit_at(job, tensor, first + i), 0, element)


cdef void grad_element_range(const Job *job, const UnitBlocks *blocks, const RowBlocks *cut,
                             Py_ssize_t partial, Py_ssize_t block, Py_ssize_t begin, Py_ssize_t end,
                             bint compute_sums, RowGradBlock *grad) noexcept nogil:
    """dx and the parameters' sums over elements begin..end of a block's rows."""
    cdef Py_ssize_t first = block * cut.rows_per_block, step
    cdef double *sums = cut.sums + partial * cut.stride
    while begin < end:
        step = min(<Py_ssize_t> TILE, min(blocks.length - begin % blocks.length, end - begin))
        row_addresses(job, blocks, &job.x, first, begin, grad.rows, grad.x)
        row_addresses(job, blocks, &job.dy, first, begin, grad.rows, grad.dy)
        row_addresses(job, blocks, &job.y, first, begin, grad.rows, <const char **> grad.dx)
        if job.elements.add_to_grad:
            row_addresses(job, blocks, &job.elements.addend[0], first, begin, grad.rows, grad.addend)
        blocks.loops.grad_rows(grad, begin, step, compute_sums and begin == 0,
                               block == partial_begin(cut, partial), sums + begin,
                               sums + cut.elements + begin, sums + 2 * cut.elements + begin)
        begin += step


cdef inline void save_slope_grads(const Job *job, const RowBlocks *cut, Py_ssize_t block,
                             const RowGradBlock *grad) noexcept nogil:
    cdef Py_ssize_t i
    if job.elements.unit_slope_grads != NULL:
        for i in range(grad.rows):
            job.elements.unit_slope_grads[block * cut.rows_per_block + i] = grad.sums[3][i]


cdef inline void set_sums(RowGradBlock *grad, Py_ssize_t row, const double *sums) noexcept nogil:
    cdef int kind
    for kind in range(N_GRAD_SUMS):
        grad.sums[kind][row] = sums[kind]


cdef void backward_partial(const Job *job, const UnitBlocks *blocks, const RowBlocks *cut,
                           Py_ssize_t partial) noexcept nogil:
    cdef RowGradBlock grad
    cdef double sums[N_GRAD_SUMS]
    cdef Py_ssize_t block, i, tile
    for block in range(partial_begin(cut, partial), partial_begin(cut, partial + 1)):
        set_grad_block(job, blocks, cut, block, &grad)
        if blocks.runs > 1:
            for i in range(grad.rows):
                memset(sums, 0, sizeof(sums))
                for tile in range(blocks.tiles):
                    tile_grad_sums(job, blocks, block * cut.rows_per_block + i, tile, sums)
                set_sums(&grad, i, sums)
        grad_element_range(job, blocks, cut, partial, block, 0, cut.elements, blocks.runs == 1,
                           &grad)
        save_slope_grads(job, cut, block, &grad)
    if blocks.schedule.nontemporal:
        store_fence()


cdef inline void tile_sums_item(const Job *job, const UnitBlocks *blocks, Py_ssize_t item,
                                double *row_sums) noexcept nogil:
    cdef double *sums = row_sums + N_GRAD_SUMS * item
    cdef Py_ssize_t row = item // blocks.tiles
    memset(sums, 0, N_GRAD_SUMS * sizeof(double))
    tile_grad_sums(job, blocks, row, item - row * blocks.tiles, sums)


cdef inline void row_sums_item(const UnitBlocks *blocks, Py_ssize_t row, double *row_sums) noexcept nogil:
    """Add the tiles of a row to its first."""
    cdef double *sums = row_sums + N_GRAD_SUMS * blocks.tiles * row
    cdef Py_ssize_t tile, i
    for tile in range(1, blocks.tiles):
        for i in range(N_GRAD_SUMS):
            sums[i] += sums[N_GRAD_SUMS * tile + i]


cdef void element_range_item(const Job *job, const UnitBlocks *blocks, const RowBlocks *cut,
                             const double *row_sums, Py_ssize_t partial, Py_ssize_t begin) noexcept nogil:
    cdef RowGradBlock grad
    cdef Py_ssize_t block, i
    for block in range(partial_begin(cut, partial), partial_begin(cut, partial + 1)):
        set_grad_block(job, blocks, cut, block, &grad)
        for i in range(grad.rows):
            set_sums(&grad, i, row_sums + N_GRAD_SUMS * blocks.tiles
                     * (block * cut.rows_per_block + i))
        grad_element_range(job, blocks, cut, partial, block, begin,
                           min(begin + ELEMENT_RANGE, cut.elements), False, &grad)
        if begin == 0:
            save_slope_grads(job, cut, block, &grad)
    if blocks.schedule.nontemporal:
        store_fence()


cdef int rows_backward_two_sweeps(const Job *job, const UnitBlocks *blocks,
                             const RowBlocks *cut) noexcept nogil:
    """Slots too few to keep the threads busy: the sums of all rows before any stretch of any partial."""
    cdef Py_ssize_t items = cut.rows * blocks.tiles, ranges = (cut.elements
            + ELEMENT_RANGE - 1) // ELEMENT_RANGE, i
    cdef double *row_sums = <double *> malloc(N_GRAD_SUMS * items * sizeof(double))
    if row_sums == NULL:
        return -1
    for i in prange(items, num_threads=job.threads, schedule="guided",
                    chunksize=min_chunk(items, job.threads)):
        tile_sums_item(job, blocks, i, row_sums)
    if blocks.tiles > 1:
        for i in range(cut.rows):
            row_sums_item(blocks, i, row_sums)
    items = cut.partials * ranges
    for i in prange(items, num_threads=job.threads, schedule="guided",
                    chunksize=min_chunk(items, job.threads)):
        element_range_item(job, blocks, cut, row_sums, i // ranges, i % ranges * ELEMENT_RANGE)
    free(row_sums)
    return 0


cdef inline Py_ssize_t partials_per_thread(const RowBlocks *cut, int threads) noexcept nogil:
    """How many neighbours a thread takes of the partials: a branch of their tree, as large as leaves the threads
    evenly busy."""
    cdef Py_ssize_t share = 1, largest = 1, fewest = (cut.partials + threads - 1) // threads, each
    while share < 2 * fewest:
        each = (round_up(cut.partials, share) // share + threads - 1) // threads
        if min(share * each, cut.partials) == fewest:
            largest = share
        share *= 2
    return largest


cdef void add_partials(const Job *job, const RowBlocks *cut, Py_ssize_t first, Py_ssize_t last,
                       Py_ssize_t apart, Py_ssize_t element, Py_ssize_t stop) noexcept nogil:
    """Add up partials first .. last over a stretch of elements, in a tree; the first then holds the sums. Those of
    fewer than `apart` neighbours are added already. Some elements at a time, that all partials' are in L1."""
    cdef Py_ssize_t kind, step, partial, i, n
    cdef double *sums
    cdef double *to
    cdef const double *other
    while element < stop:
        n = min(<Py_ssize_t> PARTIALS_CHUNK, stop - element)
        for kind in range(3 if job.activation else 2):
            sums = cut.sums + kind * cut.elements + element
            step = apart
            while step < last - first:
                partial = first
                while partial + step < last:
                    to = sums + partial * cut.stride
                    other = to + step * cut.stride
                    for i in range(n):
                        to[i] += other[i]
                    partial += 2 * step
                step *= 2
        element += n


cdef void backward_thread_range(const Job *job, const UnitBlocks *blocks, const RowBlocks *cut,
                                Py_ssize_t share) noexcept nogil:
    """A share of the partials and their sum: what one thread wrote and another reads takes both long, the one that
    reads it now and the one that writes there in the next call."""
    cdef Py_ssize_t first = share * cut.partials_per_thread, last = min(first
            + cut.partials_per_thread, cut.partials), i
    for i in range(first, last):
        backward_partial(job, blocks, cut, i)
    add_partials(job, cut, first, last, 1, 0, cut.elements)


cdef void total_element_range(const Job *job, const UnitBlocks *blocks, const RowBlocks *cut,
                              Py_ssize_t first) noexcept nogil:
    """Add up the shares over a stretch of elements, and round what is wanted rounded."""
    cdef Py_ssize_t n = min(<Py_ssize_t> ELEMENT_RANGE, cut.elements
                            - first), bytes = first * blocks.loops.acc_size
    cdef const double *sums = cut.sums + first
    add_partials(job, cut, 0, cut.partials, cut.partials_per_thread, first, first + n)
    if job.elements.final_weight != NULL:
        blocks.loops.narrow(sums, n, <char *> job.elements.final_weight + bytes)
    elif cut.partials > 1:
        memcpy(job.elements.grad_weight + first, sums, n * sizeof(double))
    sums += cut.elements
    if job.elements.final_bias != NULL:
        blocks.loops.narrow(sums, n, <char *> job.elements.final_bias + bytes)
    elif cut.partials > 1:
        memcpy(job.elements.grad_bias + first, sums, n * sizeof(double))
    sums += cut.elements
    if job.activation and cut.partials > 1:
        memcpy(job.elements.grad_slope + first, sums, n * sizeof(double))


cdef void total_partials(const Job *job, const UnitBlocks *blocks,
                         const RowBlocks *cut) noexcept nogil:
    """The parameters' gradients of several blocks."""
    cdef Py_ssize_t ranges = (cut.elements + ELEMENT_RANGE - 1) // ELEMENT_RANGE, i
    if job.threads == 1 or ranges == 1 or cut.partials // cut.partials_per_thread * cut.elements < PARALLEL_TOTALS_MIN:
        for i in range(ranges):
            total_element_range(job, blocks, cut, i * ELEMENT_RANGE)
    else:
        for i in prange(ranges, num_threads=job.threads, schedule="static"):
            total_element_range(job, blocks, cut, i * ELEMENT_RANGE)


cdef int rows_backward(Job *job) noexcept nogil:
    """Gradients of rows. grad_weight, grad_bias and grad_slope, which lie one after the other, are written, the last
    where there is an activation; final_weight and final_bias instead, where there are any."""
    cdef UnitBlocks blocks = unit_blocks(job, True)
    cdef RowBlocks cut = row_blocks_of(job, &blocks)
    cdef Py_ssize_t i, shares
    cdef void *copies
    cdef int failed = 0
    schedule_rows_backward(job, &blocks, cut.rows, cut.partials)
    # one partial is the result itself
    cut.sums = job.elements.grad_weight
    if cut.partials > 1:
        cut.sums = <double *> malloc(cut.partials * cut.stride * sizeof(double))
        if cut.sums == NULL:
            return -1
    copies = align_parameters(job, &blocks)
    if blocks.schedule.strategy == TWO_SWEEPS:
        failed = rows_backward_two_sweeps(job, &blocks, &cut)
    elif blocks.schedule.strategy == PARTIALS_GUIDED:
        for i in prange(cut.partials, num_threads=job.threads, schedule="guided"):
            backward_partial(job, &blocks, &cut, i)
    else:
        cut.partials_per_thread = partials_per_thread(&cut, job.threads)
        shares = (cut.partials + cut.partials_per_thread - 1) // cut.partials_per_thread
        if shares == 1:
            backward_thread_range(job, &blocks, &cut, 0)
        else:
            for i in prange(shares, num_threads=job.threads, schedule="static"):
                backward_thread_range(job, &blocks, &cut, i)
    if cut.blocks > 1 and not failed:
        total_partials(job, &blocks, &cut)
    if cut.partials > 1:
        free(cut.sums)
    free(copies)
    return failed
