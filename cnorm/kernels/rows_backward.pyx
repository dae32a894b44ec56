# Rows, backward: the gradients of LayerNorm and RMSNorm.
#
# a) The gradients of weight, bias and slope are sums down the rows. A block of rows (ROW_BLOCK_ROWS at most)
#    is summed in the accumulation type; the sums of blocks add up in double, in one of a few partial sums.
#    Blocks and partials are numbered by the shape, never by the thread, so results do not depend on the
#    number of threads.
#    Rows that share a set of parameters (job.pxd) are summed by themselves, as a job of their own.
# b) The partials add up in a reduction tree. A thread that computes neighbouring partials adds up their
#    branch of the tree itself; the threads then share the elements of the branches (total_partials).
# c) Partials too few to keep the threads busy (TWO_SWEEPS): first the sums over each row, which its gradient
#    of the input needs, then the gradients of one range of elements of one partial at a time.
from cython.parallel cimport prange
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from cnorm.kernels.coefficients cimport N_GRAD_SUMS
from cnorm.kernels.job cimport PARTIALS_GUIDED, PARTIALS_STATIC, TWO_SWEEPS, Job, Tensor, has_slopes
from cnorm.kernels.loops cimport (
    GRAD_ROWS_UNROLLED, LOOPS_BY_DTYPE, Coefficients, LoopTable, RowGradBlock, store_fence)
from cnorm.kernels.machine cimport cached_traffic, grad_pass_bytes
from cnorm.kernels.moments cimport ElementRange, UnitBlocks, element_at, gather, run_left, unit_blocks
from cnorm.kernels.rows_alignment cimport align_parameters
from cnorm.kernels.schedule cimport min_chunk, schedule_rows_backward, traffic_of
from cnorm.kernels.tuning cimport (
    ELEMENT_RANGE, PARALLEL_TOTALS_MIN, PARTIAL_STRIDE_MULTIPLE, PARTIALS_CHUNK, PREFETCH_READ_ROW_MAX,
    PREFETCH_WRITE_ROW_MAX, ROW_BLOCK_BYTES, ROW_BLOCK_MIN_ROWS, ROW_BLOCK_ROWS, ROW_PARTIALS_ELEMENTS,
    ROW_PARTIALS_MAX, TILE)
from cnorm.kernels.units cimport param_set_at, set_unit_coefficients, unit_at, units_of
from cnorm.kernels.workspace cimport power_of_two, round_up


cdef struct RowBlocks:
    # How the rows of a job are cut.
    Py_ssize_t rows, elements       # of the whole job, of a row
    Py_ssize_t rows_per_block
    Py_ssize_t blocks
    Py_ssize_t partials
    Py_ssize_t partials_per_thread  # neighbouring partials that a thread takes at a time and adds up
    Py_ssize_t stride               # doubles from one partial to the next
    double *sums                    # each partial's (3, elements): gradients of weight, bias, slope


cdef inline RowBlocks row_blocks_of(const Job *job, const UnitBlocks *blocks, Py_ssize_t runs) noexcept nogil:
    """Cut the rows into blocks, and the blocks into partials, by the shape alone.

    `runs`: how many such jobs the call has, which share the threads. The number of blocks is rounded up to a power of two, or to a multiple of ROW_PARTIALS_MAX where there are
    more, so that partials hold equally many blocks."""
    cdef RowBlocks cut
    cdef Py_ssize_t row_bytes = blocks.elements * blocks.loops.size
    memset(&cut, 0, sizeof(cut))
    cut.rows = units_of(job)
    cut.elements = blocks.elements
    cut.rows_per_block = max(ROW_BLOCK_MIN_ROWS, ROW_BLOCK_BYTES // row_bytes)
    cut.rows_per_block = min(<Py_ssize_t> ROW_BLOCK_ROWS, cut.rows_per_block)
    cut.blocks = (cut.rows + cut.rows_per_block - 1) // cut.rows_per_block
    cut.blocks = round_up(cut.blocks, power_of_two(cut.blocks, ROW_PARTIALS_MAX))
    cut.rows_per_block = round_up((cut.rows + cut.blocks - 1) // cut.blocks, 2)
    cut.rows_per_block = max(<Py_ssize_t> ROW_BLOCK_MIN_ROWS, cut.rows_per_block)
    cut.blocks = (cut.rows + cut.rows_per_block - 1) // cut.rows_per_block
    cut.partials = min(<Py_ssize_t> ROW_PARTIALS_MAX // runs, ROW_PARTIALS_ELEMENTS // cut.elements)
    cut.partials = max(1, min(cut.blocks, cut.partials))
    cut.partials_per_thread = 1
    cut.stride = round_up(3 * cut.elements, PARTIAL_STRIDE_MULTIPLE) + PARTIALS_CHUNK
    return cut


cdef inline Py_ssize_t first_block(const RowBlocks *cut, Py_ssize_t partial) noexcept nogil:
    """The first block of a partial; for `partial` = cut.partials, the number of blocks."""
    return partial * cut.blocks // cut.partials


cdef inline Py_ssize_t element_ranges(const RowBlocks *cut) noexcept nogil:
    """Ranges of ELEMENT_RANGE elements in a row, the last perhaps shorter."""
    return (cut.elements + ELEMENT_RANGE - 1) // ELEMENT_RANGE


cdef inline void set_row_coefficients(const Job *job, const UnitBlocks *blocks, Py_ssize_t row,
                                      Coefficients *coeffs) noexcept nogil:
    """The coefficients of a row, from the statistics that forward left."""
    set_unit_coefficients(job, blocks, row, job.mean[row] if job.mean != NULL else 0, 0, job.rstd[row], coeffs)


cdef inline char *job_row_at(const Job *job, const Tensor *tensor, Py_ssize_t row) noexcept nogil:
    """Where a row of the job is."""
    if job.elements.rows != NULL:
        return tensor.data + job.elements.rows[row] * tensor.strides[1]
    return unit_at(job, tensor, row)


# ---- the sums over a row ----
# N_GRAD_SUMS numbers per row: the gradient of the input needs them before its first element.


cdef void add_tile_sums(const Job *job, const UnitBlocks *blocks, Py_ssize_t row, Py_ssize_t tile,
                        double *sums) noexcept nogil:
    """Add the sums over one tile of a row to sums[N_GRAD_SUMS]. Tiles of several runs are gathered first."""
    cdef double x_buffer[TILE]
    cdef double dy_buffer[TILE]
    cdef Coefficients coeffs
    cdef const LoopTable *loops = blocks.loops
    cdef const char *x = job_row_at(job, &job.x, row)
    cdef const char *dy = job_row_at(job, &job.dy, row)
    cdef ElementRange extent
    extent.segment = 0
    extent.count = 1
    extent.begin = tile * TILE
    extent.end = min(extent.begin + TILE, blocks.elements)
    set_row_coefficients(job, blocks, row, &coeffs)
    if blocks.runs == 1:
        x += extent.begin * loops.size
        dy += extent.begin * loops.size
    else:
        gather(blocks, &job.x, x, &extent, False, <char *> x_buffer)
        gather(blocks, &job.dy, dy, &extent, False, <char *> dy_buffer)
        x = <char *> x_buffer
        dy = <char *> dy_buffer
        loops = LOOPS_BY_DTYPE[loops.acc_dtype]
    loops.grad_sums_elementwise(x, dy, extent.end - extent.begin, extent.begin, &coeffs, job.activation, sums)


cdef inline void set_row_sums(RowGradBlock *grad, Py_ssize_t row, const double *sums) noexcept nogil:
    """Hand sums[N_GRAD_SUMS] of one row of a block to the loops."""
    cdef int k
    for k in range(N_GRAD_SUMS):
        grad.sums[k][row] = sums[k]


# ---- the gradients of a block of rows ----


cdef void set_grad_block(const Job *job, const UnitBlocks *blocks, const RowBlocks *cut, Py_ssize_t block,
                         RowGradBlock *grad) noexcept nogil:
    """Describe a block's rows to the loops: all but the addresses and the sums."""
    cdef Py_ssize_t first = block * cut.rows_per_block, row_bytes = blocks.elements * blocks.loops.size
    cdef Py_ssize_t rows_in_cache
    cdef bint from_memory = traffic_of(job, cut.rows * row_bytes) >= cached_traffic()
    grad.rows = min(cut.rows_per_block, cut.rows - first)
    grad.from_memory = from_memory and row_bytes <= PREFETCH_WRITE_ROW_MAX
    if from_memory:  # memory is read fastest in one stream
        grad.rows_per_pass = grad.rows
    else:
        rows_in_cache = grad_pass_bytes() // (2 * row_bytes) // GRAD_ROWS_UNROLLED * GRAD_ROWS_UNROLLED
        grad.rows_per_pass = max(<Py_ssize_t> GRAD_ROWS_UNROLLED, rows_in_cache)
    grad.prefetch_bytes = 0
    if from_memory and row_bytes <= PREFETCH_READ_ROW_MAX:
        grad.prefetch_bytes = grad.rows * job.x.strides[1]
    grad.n = blocks.elements
    grad.centred = job.centred
    grad.activation = job.activation
    grad.add_to_grad = job.elements.add_to_grad
    set_row_coefficients(job, blocks, first, &grad.coeffs)
    grad.mean = job.mean + first if job.mean != NULL else NULL
    grad.rstd = job.rstd + first
    grad.row_slopes = job.elements.unit_slopes + first if job.elements.unit_slopes != NULL else NULL
    grad.final[0] = job.elements.final_weight if cut.blocks == 1 else NULL
    grad.final[1] = job.elements.final_bias if cut.blocks == 1 else NULL
    grad.final[2] = NULL


cdef inline void row_addresses(const Job *job, const UnitBlocks *blocks, const Tensor *tensor,
                               Py_ssize_t first, Py_ssize_t element, Py_ssize_t rows,
                               const char **out) noexcept nogil:
    """Addresses of one element in each of `rows` rows from `first` on."""
    cdef const char *base = element_at(blocks, tensor, job_row_at(job, tensor, first), 0, element)
    cdef Py_ssize_t i
    for i in range(rows):
        out[i] = base + i * tensor.strides[1]
    if job.shape[0] > 1 or job.elements.rows != NULL:
        for i in range(rows):
            out[i] = element_at(blocks, tensor, job_row_at(job, tensor, first + i), 0, element)


cdef void backward_elements(const Job *job, const UnitBlocks *blocks, const RowBlocks *cut,
                            Py_ssize_t partial, Py_ssize_t block, Py_ssize_t begin, Py_ssize_t end,
                            bint take_sums, RowGradBlock *grad) noexcept nogil:
    """dx over elements begin..end of a block's rows, and their terms of the partial's sums.

    take_sums: the loops take the sums over each row themselves, before the first element's gradient."""
    cdef Py_ssize_t first = block * cut.rows_per_block, step
    cdef double *sums = cut.sums + partial * cut.stride
    cdef bint fresh = block == first_block(cut, partial)  # the partial's sums begin with this block
    while begin < end:
        step = min(run_left(blocks, begin), end - begin)
        step = min(<Py_ssize_t> TILE, step)
        row_addresses(job, blocks, &job.x, first, begin, grad.rows, grad.x)
        row_addresses(job, blocks, &job.dy, first, begin, grad.rows, grad.dy)
        row_addresses(job, blocks, &job.y, first, begin, grad.rows, <const char **> grad.dx)
        if job.elements.add_to_grad:
            row_addresses(job, blocks, &job.elements.addend[0], first, begin, grad.rows, grad.addend)
        blocks.loops.grad_rows(grad, begin, step, take_sums and begin == 0, fresh, sums + begin,
                               sums + cut.elements + begin, sums + 2 * cut.elements + begin)
        begin += step


cdef inline void save_slope_grads(const Job *job, const RowBlocks *cut, Py_ssize_t block,
                                  const RowGradBlock *grad) noexcept nogil:
    """The gradients of the slopes of a block's rows, where each row has a slope of its own."""
    cdef Py_ssize_t first = block * cut.rows_per_block, i
    if job.elements.unit_slope_grads != NULL:
        for i in range(grad.rows):
            job.elements.unit_slope_grads[first + i] = grad.sums[3][i]


cdef void backward_partial(const Job *job, const UnitBlocks *blocks, const RowBlocks *cut,
                           Py_ssize_t partial) noexcept nogil:
    """All gradients of the blocks of one partial."""
    cdef RowGradBlock grad
    cdef double sums[N_GRAD_SUMS]
    cdef Py_ssize_t block, row, i, tile
    for block in range(first_block(cut, partial), first_block(cut, partial + 1)):
        set_grad_block(job, blocks, cut, block, &grad)
        if blocks.runs > 1:
            for i in range(grad.rows):
                row = block * cut.rows_per_block + i
                memset(sums, 0, sizeof(sums))
                for tile in range(blocks.tiles):
                    add_tile_sums(job, blocks, row, tile, sums)
                set_row_sums(&grad, i, sums)
        backward_elements(job, blocks, cut, partial, block, 0, cut.elements, blocks.runs == 1, &grad)
        save_slope_grads(job, cut, block, &grad)
    if blocks.schedule.nontemporal:
        store_fence()


# ---- two sweeps, where partials are too few to keep the threads busy ----


cdef inline void tile_sums_item(const Job *job, const UnitBlocks *blocks, Py_ssize_t item,
                                double *tile_sums) noexcept nogil:
    """The sums over one tile; items count the tiles of all rows."""
    cdef double *sums = tile_sums + N_GRAD_SUMS * item
    cdef Py_ssize_t row = item // blocks.tiles
    memset(sums, 0, N_GRAD_SUMS * sizeof(double))
    add_tile_sums(job, blocks, row, item - row * blocks.tiles, sums)


cdef inline void add_up_tiles(const UnitBlocks *blocks, Py_ssize_t row, double *tile_sums) noexcept nogil:
    """Add the sums over a row's tiles to those of its first tile, which then are the sums over the row."""
    cdef double *sums = tile_sums + N_GRAD_SUMS * blocks.tiles * row
    cdef Py_ssize_t tile, k
    for tile in range(1, blocks.tiles):
        for k in range(N_GRAD_SUMS):
            sums[k] += sums[N_GRAD_SUMS * tile + k]


cdef void element_range_item(const Job *job, const UnitBlocks *blocks, const RowBlocks *cut,
                             const double *tile_sums, Py_ssize_t partial, Py_ssize_t begin) noexcept nogil:
    """The gradients of one range of elements of a partial's rows, from the sums over each row."""
    cdef RowGradBlock grad
    cdef Py_ssize_t block, row, i, end = min(begin + ELEMENT_RANGE, cut.elements)
    for block in range(first_block(cut, partial), first_block(cut, partial + 1)):
        set_grad_block(job, blocks, cut, block, &grad)
        for i in range(grad.rows):
            row = block * cut.rows_per_block + i
            set_row_sums(&grad, i, tile_sums + N_GRAD_SUMS * blocks.tiles * row)
        backward_elements(job, blocks, cut, partial, block, begin, end, False, &grad)
        if begin == 0:
            save_slope_grads(job, cut, block, &grad)
    if blocks.schedule.nontemporal:
        store_fence()


cdef int rows_backward_two_sweeps(const Job *job, const UnitBlocks *blocks,
                                  const RowBlocks *cut) noexcept nogil:
    """TWO_SWEEPS: the sums over all rows, then the gradients by partial and range of elements."""
    cdef Py_ssize_t items = cut.rows * blocks.tiles, ranges = element_ranges(cut), i
    cdef double *tile_sums = <double *> malloc(N_GRAD_SUMS * items * sizeof(double))
    if tile_sums == NULL:
        return -1
    for i in prange(items, num_threads=job.head.threads, schedule="guided",
                    chunksize=min_chunk(items, job.head.threads)):
        tile_sums_item(job, blocks, i, tile_sums)
    if blocks.tiles > 1:
        for i in range(cut.rows):
            add_up_tiles(blocks, i, tile_sums)
    items = cut.partials * ranges
    for i in prange(items, num_threads=job.head.threads, schedule="guided",
                    chunksize=min_chunk(items, job.head.threads)):
        element_range_item(job, blocks, cut, tile_sums, i // ranges, i % ranges * ELEMENT_RANGE)
    free(tile_sums)
    return 0


# ---- the reduction tree of the partials ----


cdef inline Py_ssize_t partials_per_thread(const RowBlocks *cut, int threads) noexcept nogil:
    """Neighbouring partials that a thread takes at a time: a branch of the reduction tree, so a power of two,
    and the largest with which no thread takes more partials than evenly shared ones would be."""
    cdef Py_ssize_t branch = 1, largest = 1, branches, per_thread
    cdef Py_ssize_t fewest = (cut.partials + threads - 1) // threads
    while branch < 2 * fewest:
        branches = round_up(cut.partials, branch) // branch
        per_thread = (branches + threads - 1) // threads
        if min(branch * per_thread, cut.partials) == fewest:
            largest = branch
        branch *= 2
    return largest


cdef void add_partials(const Job *job, const RowBlocks *cut, Py_ssize_t first, Py_ssize_t last,
                       Py_ssize_t added, Py_ssize_t element, Py_ssize_t stop) noexcept nogil:
    """Add up partials first .. last over elements element .. stop, in a tree; partial `first` then holds the
    sums.

    Branches of `added` partials are added up already. PARTIALS_CHUNK elements are taken at a time, so that
    those of all partials stay in L1."""
    cdef Py_ssize_t kind, step, partial, i, n
    cdef double *sums
    cdef double *total
    cdef const double *other
    while element < stop:
        n = min(<Py_ssize_t> PARTIALS_CHUNK, stop - element)
        for kind in range(3 if has_slopes(job.activation) else 2):
            sums = cut.sums + kind * cut.elements + element
            step = added
            while step < last - first:
                partial = first
                while partial + step < last:
                    total = sums + partial * cut.stride
                    other = total + step * cut.stride
                    for i in range(n):
                        total[i] += other[i]
                    partial += 2 * step
                step *= 2
        element += n


cdef void backward_thread_range(const Job *job, const UnitBlocks *blocks, const RowBlocks *cut,
                                Py_ssize_t item) noexcept nogil:
    """One thread computes a contiguous range of partial sums and reduces it itself.

    If another thread reduced them, the cache lines would move between cores twice: for the reduction, and
    again when the owner writes them in the next call."""
    cdef Py_ssize_t first = item * cut.partials_per_thread, partial
    cdef Py_ssize_t last = min(first + cut.partials_per_thread, cut.partials)
    for partial in range(first, last):
        backward_partial(job, blocks, cut, partial)
    add_partials(job, cut, first, last, 1, 0, cut.elements)


cdef void total_element_range(const Job *job, const UnitBlocks *blocks, const RowBlocks *cut,
                              Py_ssize_t first) noexcept nogil:
    """Add up the branches over the range of elements from `first` on, and write the gradients: rounded to the
    accumulation type where final_weight or final_bias asks for it, else in double."""
    cdef Py_ssize_t n = min(<Py_ssize_t> ELEMENT_RANGE, cut.elements - first)
    cdef Py_ssize_t bytes = first * blocks.loops.acc_size
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
    if has_slopes(job.activation) and cut.partials > 1:
        memcpy(job.elements.grad_slope + first, sums, n * sizeof(double))


cdef void total_partials(const Job *job, const UnitBlocks *blocks, const RowBlocks *cut) noexcept nogil:
    """The gradients of the parameters, each range of elements by one thread."""
    cdef Py_ssize_t ranges = element_ranges(cut), branches = cut.partials // cut.partials_per_thread, i
    if job.head.threads == 1 or ranges == 1 or branches * cut.elements < PARALLEL_TOTALS_MIN:
        for i in range(ranges):
            total_element_range(job, blocks, cut, i * ELEMENT_RANGE)
    else:
        for i in prange(ranges, num_threads=job.head.threads, schedule="static"):
            total_element_range(job, blocks, cut, i * ELEMENT_RANGE)


cdef inline void plan_rows_backward(Job *job, Py_ssize_t runs, UnitBlocks *blocks, RowBlocks *cut) noexcept nogil:
    """How the rows of a job, one of `runs` that are alike, are cut and scheduled."""
    blocks[0] = unit_blocks(job, True)
    cut[0] = row_blocks_of(job, blocks, runs)
    schedule_rows_backward(job, blocks, cut.rows, cut.partials)
    if blocks.schedule.strategy == PARTIALS_STATIC:
        cut.partials_per_thread = partials_per_thread(cut, job.head.threads)


cdef int rows_backward_run(Job *job, const UnitBlocks *blocks, const RowBlocks *planned) noexcept nogil:
    """The gradients of the input (y) and of the parameters, where all rows share them.

    grad_weight, grad_bias and, where the activation has slopes, grad_slope are written: (3, elements) in one
    array. Where final_weight or final_bias is given, it is written instead."""
    cdef RowBlocks cut = planned[0]
    cdef Py_ssize_t i, items
    cdef void *copies
    cdef int failed = 0
    cut.sums = job.elements.grad_weight  # one partial is the result itself
    if cut.partials > 1:
        cut.sums = <double *> malloc(cut.partials * cut.stride * sizeof(double))
        if cut.sums == NULL:
            return -1
    copies = align_parameters(job, blocks)
    if blocks.schedule.strategy == TWO_SWEEPS:
        failed = rows_backward_two_sweeps(job, blocks, &cut)
    elif blocks.schedule.strategy == PARTIALS_GUIDED:
        for i in prange(cut.partials, num_threads=job.head.threads, schedule="guided"):
            backward_partial(job, blocks, &cut, i)
    else:
        items = (cut.partials + cut.partials_per_thread - 1) // cut.partials_per_thread
        if items == 1:
            backward_thread_range(job, blocks, &cut, 0)
        else:
            for i in prange(items, num_threads=job.head.threads, schedule="static"):
                backward_thread_range(job, blocks, &cut, i)
    if cut.blocks > 1 and not failed:
        total_partials(job, blocks, &cut)
    if cut.partials > 1:
        free(cut.sums)
    free(copies)
    return failed


# ---- sets of parameters ----


cdef inline void move_to_unit(const Job *job, const Tensor *tensor, Py_ssize_t unit, Tensor *moved) noexcept nogil:
    """Let a tensor begin at a unit."""
    if tensor.data != NULL:
        moved.data = unit_at(job, tensor, unit)


cdef inline void restrict_units(Job *job, Py_ssize_t count) noexcept nogil:
    """Restrict a job to `count` units: a part of one outer index, or whole ones."""
    if count <= job.shape[1]:
        job.shape[0] = 1
        job.shape[1] = count
    else:
        job.shape[0] = count // job.shape[1]


cdef inline void move_to_run(const Job *whole, const UnitBlocks *blocks, Py_ssize_t run, Job *job) noexcept nogil:
    """Let a job, a copy of the whole one that is restricted to a run of rows that share a set of parameters, be for
    this run."""
    cdef Py_ssize_t elements = blocks.elements, bytes = elements * blocks.loops.acc_size
    cdef Py_ssize_t first = run * whole.elements.units_per_set, param_set = run % whole.elements.param_sets
    move_to_unit(whole, &whole.x, first, &job.x)
    move_to_unit(whole, &whole.y, first, &job.y)
    move_to_unit(whole, &whole.dy, first, &job.dy)
    move_to_unit(whole, &whole.elements.addend[0], first, &job.elements.addend[0])
    if whole.mean != NULL:
        job.mean = whole.mean + first
    job.rstd = whole.rstd + first
    if whole.elements.unit_slopes != NULL:
        job.elements.unit_slopes = whole.elements.unit_slopes + first
        job.elements.unit_slope_grads = whole.elements.unit_slope_grads + first
    job.elements.weight = param_set_at(whole.elements.weight, param_set, bytes)
    job.elements.bias = param_set_at(whole.elements.bias, param_set, bytes)
    job.elements.grad_weight = whole.elements.grad_weight + 3 * elements * run
    job.elements.grad_bias = whole.elements.grad_bias + 3 * elements * run
    job.elements.grad_slope = whole.elements.grad_slope + 3 * elements * run
    job.elements.final_weight = <void *> param_set_at(whole.elements.final_weight, run, bytes)
    job.elements.final_bias = <void *> param_set_at(whole.elements.final_bias, run, bytes)


cdef int rows_backward_set(const Job *whole, const Job *of_run, const UnitBlocks *blocks, const RowBlocks *cut,
                           Py_ssize_t run) noexcept nogil:
    """The gradients of one run of rows, in a job of its own."""
    cdef Job job = of_run[0]
    move_to_run(whole, blocks, run, &job)
    return rows_backward_run(&job, blocks, cut)


cdef int rows_backward(Job *job) noexcept nogil:
    """The gradients of the input (y) and of the parameters: of all rows, or for each run of rows that share a set of
    parameters by itself."""
    cdef Py_ssize_t runs = 1, i
    cdef int failed = 0
    cdef UnitBlocks blocks
    cdef RowBlocks cut
    cdef Job of_run
    if job.elements.param_sets <= 1:
        plan_rows_backward(job, 1, &blocks, &cut)
        if job.head.schedule_only != NULL:
            job.head.schedule_only[0] = blocks.schedule
            return 0
        return rows_backward_run(job, &blocks, &cut)
    of_run = job[0]
    runs = units_of(job) // job.elements.units_per_set
    restrict_units(&of_run, job.elements.units_per_set)
    of_run.elements.param_sets = 1
    if runs >= job.head.threads:
        of_run.head.threads = 1
    plan_rows_backward(&of_run, runs, &blocks, &cut)
    if job.head.schedule_only != NULL:
        job.head.schedule_only[0] = blocks.schedule
        job.head.schedule_only.threads = job.head.threads
        return 0
    if of_run.head.threads == 1 and job.head.threads > 1:
        for i in prange(runs, num_threads=job.head.threads, schedule="guided",
                        chunksize=min_chunk(runs, job.head.threads)):
            failed += rows_backward_set(job, &of_run, &blocks, &cut, i)  # summed over the threads
        return -1 if failed else 0
    for i in range(runs):
        move_to_run(job, &blocks, i, &of_run)
        if rows_backward_run(&of_run, &blocks, &cut) < 0:
            return -1
    return 0
