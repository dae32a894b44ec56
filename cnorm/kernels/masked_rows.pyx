# Masked norms, rows: no job is made of a row, and no array is moved but where sums need it.
#
# a) A mask of whole rows, forward: those that count, as many as lie side by side, go through the loops of whole rows as
#    they are. (Backward, a job of a piece takes a list of them: ElementParams.rows.)
# b) Rows that have masks of their own: what is selected of a row is moved together for its sums alone, unless it lies
#    side by side. Results are computed of the whole row, which is in L1, and stored where they are selected.
# c) Sums are those of a job for each piece (masked.pyx), and so are the bits.
from libc.string cimport memcpy, memset

from cnorm.kernels.coefficients cimport N_GRAD_SUMS
from cnorm.kernels.job cimport (
    ITEM_ELEMENTS, ITEM_UNITS, NORM_NONE, ROW_BATCHES, ROWS_BACKWARD, ROWS_FORWARD, Job, MaskedJob, has_slopes)
from cnorm.kernels.loops cimport (
    Coefficients, RowGradBlock, add_selected_sums, copy_mask, find_selected, items_until, pack_items, prefetch_read,
    prefetch_write, select_items, store_fence, zero_bytes)
from cnorm.kernels.machine cimport MACHINE, cached_traffic
from cnorm.kernels.masked_layout cimport Piece, Workspace, bind_piece, end_of_run, offset, place_piece, zero_around
from cnorm.kernels.moments cimport UnitBlocks, unit_blocks
from cnorm.kernels.rows_alignment cimport align_parameters
from cnorm.kernels.schedule cimport schedule_units_forward, set_store_policy
from cnorm.kernels.segments_apply cimport segment_apply, set_channel
from cnorm.kernels.tuning cimport PREFETCH_DISTANCE, PREFETCH_SEGMENT_MAX, TILE
from cnorm.kernels.unit_sweeps cimport forward_row_batch, forward_unit, save_unit_moments
from cnorm.kernels.units cimport has_element_params, set_given_coefficients


cdef inline bint sweeps_rows(const MaskedJob *m) noexcept nogil:
    """Whether rows are taken as they lie: whole ones forward, or each with a mask of its own."""
    cdef int k
    if m.channels or m.inners != 1 or m.segment.size != 1 or MACHINE.force or m.job.stats_given or (
            m.job.finish.norm != NORM_NONE):
        return False
    if m.items == ITEM_UNITS:
        return m.kernel == ROWS_FORWARD
    if m.items != ITEM_ELEMENTS or m.unit.size != 1:
        return False
    for k in range(4):
        if m.array[k] != NULL and m.inner[0].stride[k] != m.item_bytes:
            return False
    return m.kernel == ROWS_FORWARD or m.kernel == ROWS_BACKWARD


cdef inline const void *parameter_of(const MaskedJob *m, const void *values, Py_ssize_t number,
                                     Py_ssize_t elements) noexcept nogil:
    """A parameter per element of the set that a piece takes."""
    if values == NULL or m.pieces_per_set == 0:
        return values
    return <const char *> values + number // m.pieces_per_set % m.sets * elements * m.element_bytes


cdef inline char *row_of_piece(const MaskedJob *m, const Piece *piece, int k) noexcept nogil:
    """The first row of a piece."""
    return piece.array[k] + piece.begin * m.inner[0].stride[k] if m.array[k] != NULL else NULL


cdef inline void describe_row(const MaskedJob *m, const Piece *piece, Py_ssize_t number, Py_ssize_t elements,
                              Job *job) noexcept nogil:
    """Let a job begin with the first row of a piece."""
    job.x.data = row_of_piece(m, piece, 0)
    job.y.data = row_of_piece(m, piece, 1)
    if m.reads_add:
        job.elements.addend[0].data = row_of_piece(m, piece, 2)
        job.elements.addend[1].data = row_of_piece(m, piece, 3)
    else:
        job.dy.data = row_of_piece(m, piece, 2)
        job.elements.addend[0].data = row_of_piece(m, piece, 3)
    job.elements.weight = parameter_of(m, m.job.elements.weight, number, elements)
    job.elements.bias = parameter_of(m, m.job.elements.bias, number, elements)
    job.elements.unit_slopes = offset(m.job.elements.unit_slopes, piece.unit)


# ---- whole rows ----


cdef inline void zero_rows(const MaskedJob *m, const Piece *piece, int k, Py_ssize_t first, Py_ssize_t stop,
                           bint stream) noexcept nogil:
    cdef Py_ssize_t stride = m.inner[0].stride[k], i
    cdef char *y = row_of_piece(m, piece, k) + first * stride
    if stride == m.item_bytes:
        zero_bytes(y, (stop - first) * stride, stream)
        return
    for i in range(stop - first):
        zero_bytes(y + i * stride, m.item_bytes, stream)


cdef inline void set_statistics(double *values, Py_ssize_t first, Py_ssize_t stop, double value) noexcept nogil:
    cdef Py_ssize_t i
    if values != NULL:
        for i in range(first, stop):
            values[i] = value


cdef inline void no_statistics(const MaskedJob *m, Py_ssize_t first, Py_ssize_t stop) noexcept nogil:
    """The statistics of rows without a selected element."""
    set_statistics(m.job.mean, first, stop, 0)
    set_statistics(m.job.lo, first, stop, 0)
    set_statistics(m.job.m2, first, stop, 0)
    set_statistics(m.job.rstd, first, stop, 0)


cdef void forward_whole_rows(const MaskedJob *m, Py_ssize_t number) noexcept nogil:
    """The rows of a piece."""
    cdef Piece piece
    cdef Job job
    cdef UnitBlocks blocks
    cdef void *copies
    cdef Py_ssize_t first = 0, stop, next_row, i
    cdef int reads = 2 if m.reads_add else 0
    cdef bint from_memory = 2 * m.job.call_bytes >= cached_traffic()
    cdef bint stream = from_memory and m.array[1] != m.array[0] and m.array[1] != m.array[2]
    place_piece(m, number, &piece)
    memcpy(&job, &m.job, sizeof(Job))
    job.head.threads = 1
    job.shape[1] = piece.length
    job.elements.param_sets = 1
    describe_row(m, &piece, number, m.job.shape[3] * m.job.shape[4], &job)
    job.x.strides[1] = m.inner[0].stride[0]
    job.y.strides[1] = m.inner[0].stride[1]
    job.elements.addend[0].strides[1] = m.inner[0].stride[2]
    job.elements.addend[1].strides[1] = m.inner[0].stride[3]
    job.mean = <double *> offset(m.job.mean, piece.unit)
    job.lo = <double *> offset(m.job.lo, piece.unit)
    job.m2 = <double *> offset(m.job.m2, piece.unit)
    job.rstd = <double *> offset(m.job.rstd, piece.unit)
    blocks = unit_blocks(&job, False)
    blocks.apply = row_apply if has_element_params(&job) else segment_apply
    schedule_units_forward(&job, &blocks)
    copies = align_parameters(&job, &blocks)
    while first < piece.length:
        stop = first + items_until(0, piece.mask + first, piece.length - first)
        next_row = stop + items_until(1, piece.mask + stop, piece.length - stop)
        if next_row < piece.length and from_memory:
            prefetch_read(row_of_piece(m, &piece, reads) + next_row * m.inner[0].stride[reads],
                          min(m.item_bytes, <Py_ssize_t> PREFETCH_DISTANCE))
        if blocks.schedule.strategy == ROW_BATCHES:
            forward_row_batch(&job, &blocks, 0, first, stop)
        else:
            for i in range(first, stop):
                forward_unit(&job, &blocks, i)
        first = next_row
        no_statistics(m, piece.unit + stop, piece.unit + first)
        if m.zero:
            zero_rows(m, &piece, 1, stop, first, stream)
        if m.reads_add and m.zero_sum:
            zero_rows(m, &piece, 0, stop, first, False)
    if stream:
        store_fence()
    free(copies)


# ---- rows with masks of their own ----


cdef inline void look_at_row(const MaskedJob *m, Piece *piece, char *own) noexcept nogil:
    """What is selected of a row; own: room for its mask, where the call's is not one of 0 and 1."""
    if m.gathers:
        copy_mask(piece.mask, m.inner[0].mask, piece.length, own)
        piece.mask = own
    piece.count = find_selected(piece.mask, piece.length, &piece.first, &piece.one_run)


cdef inline void zero_ends(const MaskedJob *m, const Piece *piece, int k, bint stream) noexcept nogil:
    """Set what is not selected to 0, where what is selected is one run, or nothing."""
    zero_around(piece.array[k], piece.first, piece.first + piece.count, piece.length, m.item_bytes, stream, NULL, -1)


cdef inline const char *add_row(const MaskedJob *m, const Piece *piece, const UnitBlocks *blocks) noexcept nogil:
    """The sum of both addends, stored where it is selected; where the whole sum is."""
    cdef Py_ssize_t at = piece.first * m.item_bytes
    if piece.one_run:
        blocks.loops.add(piece.array[2] + at, piece.array[3] + at, piece.array[0] + at, piece.count)
        if m.zero_sum:
            zero_ends(m, piece, 0, False)
        return piece.array[0]
    blocks.loops.add(piece.array[2], piece.array[3], piece.packed[2], piece.length)
    select_items(m.item_bytes, piece.packed[2], piece.mask, piece.length, piece.array[0], m.zero_sum, False)
    return piece.packed[2]


cdef inline void apply_to_row(const UnitBlocks *blocks, const Job *job, const Coefficients *coeffs, const char *x,
                              char *y, Py_ssize_t n, Py_ssize_t at) noexcept nogil:
    """n elements from element `at` on."""
    if has_element_params(job):
        blocks.loops.apply_elementwise(x, y, n, at, coeffs, job.activation)
    else:
        blocks.loops.apply(x, y, 1, 0, 0, n, coeffs, job.activation)


cdef void row_statistics(const MaskedJob *m, const Piece *piece, Job *job) noexcept nogil:
    """The statistics of a row, some of whose elements are selected."""
    cdef UnitBlocks blocks
    cdef const char *x = piece.array[0]
    cdef double rstd
    job.shape[4] = piece.count
    blocks = unit_blocks(job, False)
    if m.reads_add:
        x = add_row(m, piece, &blocks)
    if piece.one_run:
        job.x.data = <char *> x + piece.first * m.item_bytes
    else:
        pack_items(m.item_bytes, x, m.item_bytes, piece.mask, piece.length, piece.packed[0])
        job.x.data = piece.packed[0]
    job.y.data = NULL
    job.mean = piece.stats
    job.lo = piece.stats + 1
    job.m2 = piece.stats + 2
    job.rstd = piece.stats + 3
    if blocks.tiles == 1:
        forward_row_batch(job, &blocks, 0, 0, 1)
    else:
        save_unit_moments(job, &blocks, 0, &rstd)
    set_statistics(m.job.mean, piece.unit, piece.unit + 1, job.mean[0])
    set_statistics(m.job.lo, piece.unit, piece.unit + 1, job.lo[0])
    set_statistics(m.job.m2, piece.unit, piece.unit + 1, job.m2[0])
    set_statistics(m.job.rstd, piece.unit, piece.unit + 1, job.rstd[0])


cdef void apply_row(const MaskedJob *m, const Piece *piece, Job *job, bint stream) noexcept nogil:
    cdef UnitBlocks blocks
    cdef Coefficients coeffs
    cdef Py_ssize_t at = piece.first * m.item_bytes, i = 0, n, end = -1
    cdef const char *x = piece.packed[2] if m.reads_add and not piece.one_run else piece.array[0]
    cdef char *y = piece.array[1]
    job.shape[4] = m.length
    blocks = unit_blocks(job, False)
    blocks.schedule.nontemporal = stream and piece.one_run
    set_given_coefficients(job, &blocks, 0, &coeffs)
    if not has_element_params(job):
        set_channel(job, &coeffs, 0)
    if piece.one_run:
        if stream and m.zero:
            end = end_of_run(y, piece.first + piece.count, piece.count, m.length, m.item_bytes)
        n = piece.count - max(end, <Py_ssize_t> 0)
        apply_to_row(&blocks, job, &coeffs, x + at, y + at, n, piece.first)
        if end > 0:
            coeffs.nontemporal = False
            apply_to_row(&blocks, job, &coeffs, x + at + n * m.item_bytes, piece.packed[1], end, piece.first + n)
        if m.zero:
            zero_around(y, piece.first, piece.first + piece.count, m.length, m.item_bytes, stream, piece.packed[1], end)
        return
    while i < piece.length:
        n = min(<Py_ssize_t> TILE, piece.length - i)
        at = i * m.item_bytes
        apply_to_row(&blocks, job, &coeffs, x + at, piece.packed[1], n, i)
        select_items(m.item_bytes, piece.packed[1], piece.mask + i, n, y + at, m.zero, m.zero and stream)
        i += n


cdef inline bint begin_rows(const MaskedJob *m, Job *job) noexcept nogil:
    """A job of one row, on one thread; whether results go past the cache."""
    cdef UnitBlocks blocks
    memcpy(job, &m.job, sizeof(Job))
    job.head.threads = 1
    job.shape[1] = 1
    job.shape[4] = m.length
    job.elements.param_sets = 1
    job.x.data = m.array[0]
    job.y.data = m.array[1]
    if not m.reads_add:
        job.dy.data = m.array[2]
    blocks = unit_blocks(job, False)
    set_store_policy(job, &blocks)
    return blocks.schedule.nontemporal


cdef inline Py_ssize_t rows_ahead(const MaskedJob *m) noexcept nogil:
    """How many rows ahead a row is prefetched, where rows come from memory: the sums of one must be complete before its
    results, so no other row is read meanwhile. Else 0."""
    cdef Py_ssize_t row = m.length * m.item_bytes
    if 2 * m.job.call_bytes < cached_traffic() or row > PREFETCH_SEGMENT_MAX:
        return 0
    return max(1, PREFETCH_DISTANCE // row)


cdef inline void prefetch_row(const MaskedJob *m, Py_ssize_t number, bint stream) noexcept nogil:
    """Prefetch what is read of a row and, unless it goes past the cache, what is written."""
    cdef Piece piece
    cdef int k
    place_piece(m, number, &piece)
    for k in range(4):
        if m.array[k] == NULL:
            continue
        if k == 1 and not stream or k == 0 and m.reads_add:
            prefetch_write(piece.array[k], m.length * m.item_bytes)
        elif k != 1:
            prefetch_read(piece.array[k], m.length * m.item_bytes)


cdef inline void take_row(const MaskedJob *m, Py_ssize_t number, char *workspace, const Workspace *size,
                          Piece *piece, Job *job) noexcept nogil:
    """Where a piece that is a row lies, what its mask selects, and its job."""
    place_piece(m, number, piece)
    bind_piece(m, piece, workspace, size)
    look_at_row(m, piece, <char *> piece.stats + size.stats)
    describe_row(m, piece, number, m.length, job)


cdef void forward_masked_rows(const MaskedJob *m, Py_ssize_t number, Py_ssize_t stop, char *workspace,
                              const Workspace *size) noexcept nogil:
    """Pieces number .. stop, each a row."""
    cdef Piece piece
    cdef Job job
    cdef bint stream = begin_rows(m, &job)
    cdef Py_ssize_t ahead = rows_ahead(m)
    job.elements.fuse_add = False
    while number < stop:
        take_row(m, number, workspace, size, &piece, &job)
        if ahead and number + ahead < stop:
            prefetch_row(m, number + ahead, stream)
        if piece.count:
            row_statistics(m, &piece, &job)
            apply_row(m, &piece, &job, stream)
        else:
            no_statistics(m, piece.unit, piece.unit + 1)
            if m.zero:
                zero_ends(m, &piece, 1, stream)
            if m.reads_add and m.zero_sum:
                zero_ends(m, &piece, 0, False)
        number += 1
    if stream:
        store_fence()


cdef inline const void *pack_parameter(const MaskedJob *m, const Piece *piece, const void *values,
                                       char *to) noexcept nogil:
    if values != NULL:
        pack_items(m.element_bytes, <const char *> values, m.element_bytes, piece.mask, piece.length, to)
        return to
    return NULL


cdef void packed_grad_sums(const MaskedJob *m, const Piece *piece, const Job *job, const UnitBlocks *blocks,
                           const Workspace *size, double *sums) noexcept nogil:
    """sums[N_GRAD_SUMS] over what is selected of a row."""
    cdef Coefficients coeffs
    cdef Py_ssize_t i = 0, n
    cdef char *at = piece.parameters
    pack_items(m.item_bytes, piece.array[0], m.item_bytes, piece.mask, piece.length, piece.packed[0])
    pack_items(m.item_bytes, piece.array[2], m.item_bytes, piece.mask, piece.length, piece.packed[2])
    set_row_coefficients(job, blocks, 0, &coeffs)
    coeffs.weights = pack_parameter(m, piece, job.elements.weight, at)
    if job.activation:
        coeffs.biases = pack_parameter(m, piece, job.elements.bias, at + size.parameters)
        coeffs.slopes = pack_parameter(m, piece, job.elements.slopes, at + 2 * size.parameters)
    memset(sums, 0, N_GRAD_SUMS * sizeof(double))
    while i < piece.count:
        n = min(<Py_ssize_t> TILE, piece.count - i)
        blocks.loops.grad_sums_elementwise(piece.packed[0] + i * m.item_bytes, piece.packed[2] + i * m.item_bytes, n, i,
                                           &coeffs, job.activation, sums)
        i += n


cdef inline void place_grad(const MaskedJob *m, const Piece *piece, Py_ssize_t item, char *dx,
                            RowGradBlock *grad) noexcept nogil:
    """The addresses of a row from an item on."""
    cdef Py_ssize_t at = item * m.item_bytes
    grad.x[0] = piece.array[0] + at
    grad.dy[0] = piece.array[2] + at
    grad.dx[0] = dx
    if grad.add_to_grad:
        grad.addend[0] = piece.array[3] + at


cdef void backward_row(const MaskedJob *m, Piece *piece, Job *job, double *total, char *floats, bint stream,
                       const Workspace *size) noexcept nogil:
    """A row, some of whose elements are selected. total: (3, length), to which the gradients of its parameters are
    added; floats: room for these."""
    cdef UnitBlocks blocks
    cdef RowBlocks cut
    cdef RowGradBlock grad
    cdef double sums[N_GRAD_SUMS]
    cdef Py_ssize_t i = 0, n, k, first = piece.first, bytes = m.length * m.element_bytes
    job.mean = <double *> offset(m.job.mean, piece.unit)
    job.rstd = <double *> offset(m.job.rstd, piece.unit)
    blocks = unit_blocks(job, True)
    cut = row_blocks_of(job, &blocks, 1)
    blocks.schedule.nontemporal = stream and piece.one_run
    set_grad_block(job, &blocks, &cut, 0, &grad)
    grad.n = piece.count
    if piece.one_run:
        bytes = first * m.element_bytes
        grad.coeffs.weights = <const char *> grad.coeffs.weights + bytes
        if grad.coeffs.biases != NULL:
            grad.coeffs.biases = <const char *> grad.coeffs.biases + bytes
        if grad.coeffs.slopes != NULL:
            grad.coeffs.slopes = <const char *> grad.coeffs.slopes + bytes
        while i < piece.count:
            n = min(<Py_ssize_t> TILE, piece.count - i)
            place_grad(m, piece, first + i, piece.array[1] + (first + i) * m.item_bytes, &grad)
            k = first + i
            blocks.loops.grad_rows(&grad, i, n, i == 0, False, total + k, total + m.length + k,
                                   total + 2 * m.length + k)
            i += n
        zero_ends(m, piece, 1, stream)
    else:
        packed_grad_sums(m, piece, job, &blocks, size, sums)
        set_row_sums(&grad, 0, sums)
        for k in range(3):
            grad.final[k] = floats + k * bytes
        while i < piece.length:
            n = min(<Py_ssize_t> TILE, piece.length - i)
            place_grad(m, piece, i, piece.packed[1], &grad)
            blocks.loops.grad_rows(&grad, i, n, False, True, NULL, NULL, NULL)
            select_items(m.item_bytes, piece.packed[1], piece.mask + i, n, piece.array[1] + i * m.item_bytes, True,
                         stream)
            for k in range(3 if has_slopes(job.activation) else 2):
                add_selected_sums(m.element_bytes, floats + k * bytes + i * m.element_bytes, piece.mask + i, n,
                                  total + k * m.length + i)
            i += n
    if m.job.elements.unit_slope_grads != NULL:
        m.job.elements.unit_slope_grads[piece.unit] = grad.sums[3][0]


cdef void backward_masked_rows(const MaskedJob *m, Py_ssize_t number, Py_ssize_t stop, Py_ssize_t chunk,
                               char *workspace, const Workspace *size) noexcept nogil:
    """Pieces number .. stop, each a row, of a chunk."""
    cdef Piece piece
    cdef Job job
    cdef bint stream = begin_rows(m, &job)
    cdef Py_ssize_t ahead = rows_ahead(m)
    while number < stop:
        take_row(m, number, workspace, size, &piece, &job)
        if ahead and number + ahead < stop:
            prefetch_row(m, number + ahead, stream)
        if piece.count:
            backward_row(m, &piece, &job, m.sums + 3 * m.length * chunk, workspace + size.total - size.sums, stream,
                         size)
        else:
            zero_ends(m, &piece, 1, stream)
        number += 1
    if stream:
        store_fence()
