# Masked norms: of the elements that a mask selects (MaskedJob).
#
# a) A piece is what shares a mask: some units, or a part of them. Its selected items are one run in most masks (a
#    prefix, a crop, all): the piece is then a job of the family's own kernel, with fewer items and the arrays as they
#    are. Items that are rows stay where they are too, if the kernel takes a list of them. Else they are moved together
#    into workspace, which that job takes, and its results are put back. So a piece has the bits of its selected items
#    alone.
# b) Pieces run one after another on one thread each; pieces fewer than threads run with all of them, which share the
#    parts of each (c), or else the work of its job.
# c) Where a unit has several parts (the samples of batch norm's channels, channels of a group with masks of their own),
#    the moments of its parts merge, and then results are applied with given statistics; backward likewise with two
#    sums. Parts merge in their order, which the shape decides.
#    Where the elements of a part lie side by side, no job is made of it: masked_sweep.pxd. Nor of rows:
#    masked_rows.pyx.
# d) The gradients of parameters per element are added up in double, by chunks of pieces whose number follows from the
#    shape.
from cython.parallel cimport prange, threadid
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from cnorm.kernels.job cimport (
    ITEM_ELEMENTS, ITEM_ROWS, ITEM_UNITS, ROWS_BACKWARD, RUNS, SUMS_GIVEN, SUMS_ONLY, Job, MaskedAxis, MaskedJob, Tensor,
    has_slopes)
from cnorm.kernels.loops cimport (
    LANES_ALIGN, SELECT_SLACK, add_to_selected, copy_mask, find_selected, items_until, list_items, pack_items,
    prefetch_read, prefetch_write, store_fence, turn_items, unpack_items, zero_bytes,
    zero_items)
from cnorm.kernels.machine cimport MACHINE, cached_traffic, nontemporal_one_read, nontemporal_rows_grad
from cnorm.kernels.masked_layout cimport Piece, Workspace, bind_piece, offset, pieces_of, place_piece, step
from cnorm.kernels.masked_sweep cimport Part, look_at_parts, sweep_piece, swept_units, sweeps_parts
from cnorm.kernels.schedule cimport plain_schedule, reversed_within_thread_range
from cnorm.kernels.statistics cimport merge_counted_moments, rstd_from_m2, settle_moments
from cnorm.kernels.tuning cimport (
    MASKED_PIECE_BYTES, MASKED_ROW_MIN, PREFETCH_DISTANCE, PREFETCH_SEGMENT_MAX, PREFETCH_SEGMENT_MIN)
from cnorm.kernels.workspace cimport round_up


cdef enum:
    PART_SUMS = 4   # doubles of a part for each unit: mean, lo, m2 and rstd; backward, the first two are its two sums


cdef inline void look_at_mask(const MaskedJob *m, Piece *piece) noexcept nogil:
    piece.count = find_selected(piece.mask, piece.length, &piece.first, &piece.one_run)


# ---- items: moved together, put back ----


cdef inline Py_ssize_t rows_of(const MaskedJob *m, const Piece *piece) noexcept nogil:
    """Sequences of items that share the mask: units times segments."""
    return piece.units * m.segment.size


cdef inline char *row_of(const MaskedJob *m, const Piece *piece, int k, Py_ssize_t row) noexcept nogil:
    cdef Py_ssize_t unit = row // m.segment.size
    return piece.array[k] + unit * m.unit.stride[k] + (row - unit * m.segment.size) * m.segment.stride[k]


cdef inline char *item_at(const MaskedJob *m, char *row, int k, Py_ssize_t item) noexcept nogil:
    """Where an item of a sequence is."""
    cdef Py_ssize_t rest
    cdef int i
    for i in range(m.inners - 1, 0, -1):
        rest = item // m.inner[i].size
        row += (item - rest * m.inner[i].size) * m.inner[i].stride[k]
        item = rest
    return row + item * m.inner[0].stride[k]


cdef inline Py_ssize_t items_of_run(const MaskedJob *m, Py_ssize_t item, Py_ssize_t most) noexcept nogil:
    """Items from one on that lie along the innermost axis, at most so many."""
    return min(most, m.inner[m.inners - 1].size - item % m.inner[m.inners - 1].size) if m.inners > 1 else most


cdef inline Py_ssize_t items_ahead(const MaskedJob *m, Py_ssize_t stride) noexcept nogil:
    """How many items ahead runs that lie apart are prefetched, which hardware prefetchers do not follow; or 0."""
    cdef Py_ssize_t n = m.inner[m.inners - 1].size, run = n * m.item_bytes
    if m.inners == 1 or stride != m.item_bytes or not PREFETCH_SEGMENT_MIN <= run <= PREFETCH_SEGMENT_MAX or (
            2 * m.job.call_bytes < cached_traffic()):
        return 0
    return n * max(1, PREFETCH_DISTANCE // run)


cdef void pack_array(const MaskedJob *m, const Piece *piece, int k) noexcept nogil:
    cdef Py_ssize_t row, i, n, stride = m.inner[m.inners - 1].stride[k], ahead = items_ahead(m, stride)
    cdef char *to = piece.packed[k]
    for row in range(rows_of(m, piece)):
        i = 0
        while i < piece.length:
            n = items_of_run(m, piece.begin + i, piece.length - i)
            if ahead and i + ahead < piece.length:
                prefetch_read(item_at(m, row_of(m, piece, k, row), k, piece.begin + i + ahead), n * m.item_bytes)
            to += m.item_bytes * pack_items(m.item_bytes, item_at(m, row_of(m, piece, k, row), k, piece.begin + i),
                                            stride, piece.mask + i, n, to)
            i += n


cdef inline bint streams(const MaskedJob *m) noexcept nogil:
    """Whether results that are put back go past the cache."""
    return (m.job.call_bytes * (3 if m.backward else 2) >= nontemporal_one_read() and m.items == ITEM_ELEMENTS
            and m.array[1] != m.array[0] and m.array[1] != m.array[2])


cdef void unpack_array(const MaskedJob *m, const Piece *piece, int k, bint zero) noexcept nogil:
    cdef Py_ssize_t row, i, n, stride = m.inner[m.inners - 1].stride[k], ahead = items_ahead(m, stride)
    cdef bint stream = zero and streams(m)
    cdef const char *items = piece.packed[k]
    for row in range(rows_of(m, piece)):
        i = 0
        while i < piece.length:
            n = items_of_run(m, piece.begin + i, piece.length - i)
            if ahead and not stream and i + ahead < piece.length:
                prefetch_write(item_at(m, row_of(m, piece, k, row), k, piece.begin + i + ahead), n * m.item_bytes)
            items += m.item_bytes * unpack_items(m.item_bytes, items, piece.mask + i, n,
                                                 item_at(m, row_of(m, piece, k, row), k, piece.begin + i), stride,
                                                 zero, stream)
            i += n
    if stream:
        store_fence()


cdef void zero_range(const MaskedJob *m, const Piece *piece, int k, Py_ssize_t i, Py_ssize_t stop) noexcept nogil:
    """Set items i .. stop of all sequences of a piece to 0."""
    cdef Py_ssize_t row, n, stride = m.inner[m.inners - 1].stride[k]
    cdef bint stream = stride == m.item_bytes and streams(m)
    while i < stop:
        n = items_of_run(m, piece.begin + i, stop - i)
        for row in range(rows_of(m, piece)):
            if stream:
                zero_bytes(item_at(m, row_of(m, piece, k, row), k, piece.begin + i), n * m.item_bytes, True)
            else:
                zero_items(m.item_bytes, item_at(m, row_of(m, piece, k, row), k, piece.begin + i), stride, n)
        i += n
    if stream:
        store_fence()


cdef inline void zero_outside(const MaskedJob *m, const Piece *piece, int k) noexcept nogil:
    """Set what is not selected to 0, where what is selected is one run, or nothing."""
    zero_range(m, piece, k, 0, piece.first)
    zero_range(m, piece, k, piece.first + piece.count, piece.length)


cdef inline bint in_place(const MaskedJob *m, const Piece *piece) noexcept nogil:
    """Whether a kernel takes the selected items where they are."""
    cdef int k
    if not piece.one_run or items_of_run(m, piece.begin + piece.first, piece.count) < piece.count:
        return False
    if m.items == ITEM_ELEMENTS and piece.length > 1:
        for k in range(4):
            if m.array[k] != NULL and m.inner[m.inners - 1].stride[k] != m.item_bytes:
                return False
    return True


cdef inline void set_tensor_of_piece(const MaskedJob *m, const Piece *piece, int k, bint placed,
                                     Tensor *tensor) noexcept nogil:
    cdef Py_ssize_t segment = piece.count * m.item_bytes
    if m.array[k] == NULL:
        return
    if placed:
        tensor.data = item_at(m, piece.array[k], k, piece.begin + piece.first)
        if m.items != ITEM_ELEMENTS:
            tensor.strides[<int> m.items] = m.inner[m.inners - 1].stride[k]
        else:
            tensor.strides[1] = m.unit.stride[k]
            tensor.strides[2] = m.segment.stride[k]
        return
    tensor.data = piece.packed[k]
    if m.items != ITEM_ELEMENTS:
        tensor.strides[<int> m.items] = m.item_bytes
    else:
        tensor.strides[1] = segment * m.segment.size
        tensor.strides[2] = segment


cdef inline bint lists_rows(const MaskedJob *m) noexcept nogil:
    """Whether the kernel takes a list of the rows that are selected, where they are. Short rows of columns are moved
    together: that takes less time than to address each."""
    if m.inners != 1:
        return False
    return m.kernel == ROWS_BACKWARD if m.items == ITEM_UNITS else (
        m.items == ITEM_ROWS and m.item_bytes >= MASKED_ROW_MIN)


cdef inline void set_tensor_of_rows(const MaskedJob *m, const Piece *piece, int k, Tensor *tensor) noexcept nogil:
    """An array of all rows of a piece."""
    if m.array[k] != NULL:
        tensor.data = row_of_piece(m, piece, k)
        tensor.strides[<int> m.items] = m.inner[0].stride[k]


cdef inline void zero_other_rows(const MaskedJob *m, const Piece *piece) noexcept nogil:
    """Set the result of rows that are not selected to 0."""
    cdef bint stream = (3 * m.job.call_bytes >= nontemporal_rows_grad() and m.array[1] != m.array[0]
                        and m.array[1] != m.array[2])
    cdef Py_ssize_t first = items_until(0, piece.mask, piece.length), stop
    while first < piece.length:
        stop = first + items_until(1, piece.mask + first, piece.length - first)
        zero_rows(m, piece, 1, first, stop, stream)
        first = stop + items_until(0, piece.mask + stop, piece.length - stop)
    if stream:
        store_fence()


cdef inline bint written(const MaskedJob *m, int k) noexcept nogil:
    return k == 1 or (k == 0 and m.reads_add)


cdef inline void begin_piece(const MaskedJob *m, const Piece *piece, int threads, Job *job) noexcept nogil:
    """Describe a piece to the kernel, with what it reads."""
    cdef bint placed = in_place(m, piece)
    cdef int k
    memcpy(job, &m.job, sizeof(Job))
    job.head.threads = threads
    job.shape[1] = piece.units
    job.shape[<int> m.items] = piece.count
    set_tensor_of_piece(m, piece, 0, placed, &job.x)
    set_tensor_of_piece(m, piece, 1, placed, &job.y)
    set_tensor_of_piece(m, piece, 2, placed, &job.elements.addend[0] if m.reads_add else &job.dy)
    set_tensor_of_piece(m, piece, 3, placed, &job.elements.addend[1 if m.reads_add else 0])
    if not placed and lists_rows(m):
        set_tensor_of_rows(m, piece, 0, &job.x)
        set_tensor_of_rows(m, piece, 1, &job.y)
        set_tensor_of_rows(m, piece, 2, &job.dy)
        set_tensor_of_rows(m, piece, 3, &job.elements.addend[0])
        job.elements.rows = <Py_ssize_t *> piece.packed[0]
        list_items(piece.mask, piece.length, <Py_ssize_t *> job.elements.rows)
    elif not placed:
        job.call_bytes = 0  # workspace is in cache
        for k in range(4):
            if m.array[k] != NULL and not written(m, k):
                pack_array(m, piece, k)


cdef inline void end_piece(const MaskedJob *m, const Piece *piece) noexcept nogil:
    """Put results where they belong, and 0 where the mask wants that."""
    cdef int k
    cdef bint zero, placed = piece.count == 0 or in_place(m, piece)
    if lists_rows(m):
        if m.zero:
            zero_other_rows(m, piece)
        return
    for k in range(2):
        if m.array[k] == NULL or not written(m, k):
            continue
        zero = m.zero if k == 1 else m.zero_sum
        if not placed:
            unpack_array(m, piece, k, zero)
        elif zero and piece.count < piece.length:
            zero_outside(m, piece, k)


# ---- parameters and statistics of a piece ----


cdef inline const void *packed_parameter(const MaskedJob *m, const Piece *piece, const void *values, Py_ssize_t at_set,
                                         bint placed, Py_ssize_t number, const Workspace *size) noexcept nogil:
    """A parameter per element, of the selected ones."""
    cdef const char *at = <const char *> values + at_set * m.length * m.element_bytes
    cdef char *to = piece.parameters + number * size.parameters
    if values == NULL:
        return NULL
    if placed:
        return at + piece.first * m.element_bytes
    pack_items(m.element_bytes, at, m.element_bytes, piece.mask, piece.length, to)
    return to


cdef inline void element_parameters(const MaskedJob *m, const Piece *piece, Py_ssize_t number, const Workspace *size,
                                    Job *job) noexcept nogil:
    """Parameters per element (rows)."""
    cdef Py_ssize_t at = number // m.pieces_per_set % m.sets if m.pieces_per_set else 0, row
    cdef bint placed = piece.one_run
    job.elements.param_sets = 1
    if m.items == ITEM_UNITS:
        row = at * m.job.shape[3] * m.job.shape[4] * m.element_bytes
        if job.elements.weight != NULL:
            job.elements.weight = <const char *> job.elements.weight + row
        if job.elements.bias != NULL:
            job.elements.bias = <const char *> job.elements.bias + row
        return
    job.elements.weight = packed_parameter(m, piece, job.elements.weight, at, placed, 0, size)
    job.elements.bias = packed_parameter(m, piece, job.elements.bias, at, placed, 1, size)
    job.elements.slopes = packed_parameter(m, piece, job.elements.slopes, 0, placed, 2, size)


cdef inline double *packed_statistic(const Piece *piece, double *values, int number, bint placed,
                                     bint read) noexcept nogil:
    """A statistic per item (ITEM_UNITS): where it is, or in workspace."""
    cdef double *to = piece.stats + number * piece.length
    if values == NULL:
        return NULL
    if placed:
        return values + piece.unit + piece.first
    if read:
        pack_items(sizeof(double), <const char *> (values + piece.unit), sizeof(double), piece.mask, piece.length,
                   <char *> to)
    return to


cdef inline void unpack_statistic(const Piece *piece, double *values, int number, bint placed) noexcept nogil:
    if values == NULL:
        return
    if placed:
        memset(values + piece.unit, 0, piece.first * sizeof(double))
        memset(values + piece.unit + piece.first + piece.count, 0,
               (piece.length - piece.first - piece.count) * sizeof(double))
    else:
        unpack_items(sizeof(double), <const char *> (piece.stats + number * piece.length), piece.mask, piece.length,
                     <char *> (values + piece.unit), sizeof(double), True, False)


cdef inline void unit_statistics(const MaskedJob *m, const Piece *piece, Job *job) noexcept nogil:
    """Where the statistics of a piece are."""
    cdef bint placed = piece.one_run, read = m.backward or m.job.stats_given
    if m.items == ITEM_UNITS:
        job.mean = packed_statistic(piece, m.job.mean, 0, placed, read)
        job.rstd = packed_statistic(piece, m.job.rstd, 1, placed, read)
        job.elements.unit_slopes = packed_statistic(piece, <double *> m.job.elements.unit_slopes, 2, placed, True)
        job.elements.unit_slope_grads = packed_statistic(piece, m.job.elements.unit_slope_grads, 3, placed, False)
        return
    job.mean = <double *> offset(m.job.mean, piece.unit)
    job.lo = <double *> offset(m.job.lo, piece.unit)
    job.m2 = <double *> offset(m.job.m2, piece.unit)
    job.rstd = <double *> offset(m.job.rstd, piece.unit)
    job.elements.unit_slopes = offset(m.job.elements.unit_slopes, piece.unit)
    job.elements.unit_slope_grads = <double *> offset(m.job.elements.unit_slope_grads, piece.unit)


cdef inline void save_unit_statistics(const MaskedJob *m, const Piece *piece) noexcept nogil:
    """Put statistics per item back; those of units without a selected item are 0."""
    cdef Py_ssize_t units = m.stats_per_piece if m.items == ITEM_ROWS else piece.units, i
    cdef bint reads = m.backward or m.job.stats_given
    if m.items == ITEM_UNITS:
        if not reads:
            unpack_statistic(piece, m.job.mean, 0, piece.one_run or piece.count == 0)
            unpack_statistic(piece, m.job.rstd, 1, piece.one_run or piece.count == 0)
        unpack_statistic(piece, m.job.elements.unit_slope_grads, 3, piece.one_run or piece.count == 0)
        return
    if piece.count or reads:
        return
    for i in range(piece.unit, piece.unit + units):
        if m.job.mean != NULL:
            m.job.mean[i] = 0
        if m.job.lo != NULL:
            m.job.lo[i] = 0
        if m.job.m2 != NULL:
            m.job.m2[i] = 0
        if m.job.rstd != NULL:
            m.job.rstd[i] = 0


cdef inline void channel_parameters(const MaskedJob *m, const Piece *piece, Job *job) noexcept nogil:
    """Parameters per channel, and where their gradients go."""
    cdef Py_ssize_t channels = m.channels * (m.part.size if m.merges and m.groups else 1)
    cdef Py_ssize_t shared, of_sample
    if m.groups:  # units count the groups of each sample
        of_sample = piece.unit * channels + piece.part
        shared = of_sample % (m.groups * channels)
    else:         # units are channels; parts are samples
        shared = piece.unit
        of_sample = piece.part * m.part_channels + piece.unit
    job.channels.weight = offset(job.channels.weight, of_sample if m.per_sample else shared)
    job.channels.bias = offset(job.channels.bias, of_sample if m.per_sample else shared)
    job.channels.slopes = offset(job.channels.slopes, shared)
    if m.backward:
        job.channels.grad_weight += of_sample
        job.channels.grad_bias += of_sample
        job.channels.grad_slope += of_sample


# ---- pieces that are whole units ----


cdef inline void add_gradients(const MaskedJob *m, const Piece *piece, Py_ssize_t chunk, const double *grads,
                               Py_ssize_t n, bint slopes) noexcept nogil:
    """Add the gradients (3, n) of a piece's parameters per element to the sums of its chunk."""
    cdef Py_ssize_t length = m.job.shape[3] * m.job.shape[4] if m.items == ITEM_UNITS else m.length, k, i
    cdef double *total = m.sums + 3 * length * chunk
    for k in range(3 if slopes else 2):
        if m.items == ITEM_UNITS or n == length:
            for i in range(n):
                total[i] += grads[i]
        elif piece.one_run:
            for i in range(n):
                total[piece.first + i] += grads[i]
        else:
            add_to_selected(total, grads, piece.mask, piece.length)
        total += length
        grads += n


cdef int run_piece(MaskedJob *m, Py_ssize_t number, Py_ssize_t chunk, int threads, char *workspace,
                   const Workspace *size) noexcept nogil:
    """A piece of whole units."""
    cdef Piece piece
    cdef Job job
    cdef Py_ssize_t n = 0
    cdef double *grads = NULL
    cdef int failed = 0
    place_piece(m, number, &piece)
    bind_piece(m, &piece, workspace, size)
    if m.gathers:
        gather_mask(m, &piece, <char *> piece.stats + size.stats)
    look_at_mask(m, &piece)
    if piece.count:
        begin_piece(m, &piece, threads, &job)
        unit_statistics(m, &piece, &job)
        if m.channels:
            channel_parameters(m, &piece, &job)
        else:
            element_parameters(m, &piece, number, size, &job)
            if m.backward:
                n = job.shape[3] * job.shape[4]
                grads = <double *> (workspace + size.total - size.sums)
                job.elements.grad_weight = grads
                job.elements.grad_bias = grads + n
                job.elements.grad_slope = grads + 2 * n
        failed = FUNCTIONS[m.kernel](&job.head)
        if not failed and m.backward and not m.channels:
            add_gradients(m, &piece, chunk, grads, n, has_slopes(m.job.activation))
    end_piece(m, &piece)
    save_unit_statistics(m, &piece)
    return failed


cdef inline const char *mask_at(const MaskedJob *m, const char *mask, Py_ssize_t item) noexcept nogil:
    """The mask of an item of a piece."""
    cdef Py_ssize_t rest
    cdef int k
    for k in range(m.inners - 1, 0, -1):
        rest = item // m.inner[k].size
        mask += (item - rest * m.inner[k].size) * m.inner[k].mask
        item = rest
    return mask + item * m.inner[0].mask


cdef void gather_mask(const MaskedJob *m, Piece *piece, char *to) noexcept nogil:
    """The mask of a piece of elements, moved together."""
    cdef Py_ssize_t i = 0, n
    while i < piece.length:
        n = items_of_run(m, i, piece.length - i)
        copy_mask(mask_at(m, piece.mask, i), m.inner[m.inners - 1].mask, n, to + i)
        i += n
    piece.mask = to


# ---- units of several parts ----


cdef inline void place_part(const MaskedJob *m, const Piece *whole, Py_ssize_t part, Piece *piece) noexcept nogil:
    piece[0] = whole[0]
    step(piece, &m.part, part)
    piece.part = part
    look_at_mask(m, piece)


cdef inline int threads_of_parts(const MaskedJob *m, const Workspace *size) noexcept nogil:
    """Threads that take a part of a unit each, where pieces are fewer than threads. 1: all threads share each part, as
    where parts are few, or the workspaces of all threads more than a quarter of the input."""
    if not m.merges or m.part.size < m.head.threads or 4 * m.head.threads * size.total > m.job.call_bytes:
        return 1
    return m.head.threads


cdef inline Py_ssize_t parts_together(const MaskedJob *m, Py_ssize_t units, int threads,
                                      const Workspace *size) noexcept nogil:
    """Parts whose sums are taken before they merge, each by one thread; 1: all threads share each part."""
    cdef Py_ssize_t bytes = PART_SUMS * units * sizeof(double)
    if threads == 1 or threads_of_parts(m, size) == 1:
        return 1
    return min(m.part.size, max(<Py_ssize_t> threads, MASKED_PIECE_BYTES // bytes))


cdef int sums_of_part(MaskedJob *m, const Piece *whole, Py_ssize_t part, Py_ssize_t units, int threads,
                      char *workspace, const Workspace *size, double *sums, Py_ssize_t *count) noexcept nogil:
    """The moments of a part of some units; backward their two sums, and the gradients of the part's parameters."""
    cdef Piece piece
    cdef Job job
    place_part(m, whole, part, &piece)
    bind_piece(m, &piece, workspace, size)
    count[0] = piece.count
    if piece.count == 0:
        return 0
    begin_piece(m, &piece, threads, &job)
    if not m.backward:
        job.mean = sums
        job.lo = sums + units
        job.m2 = sums + 2 * units
        job.rstd = sums + 3 * units
        return FUNCTIONS[m.moments](&job.head)
    unit_statistics(m, &piece, &job)
    channel_parameters(m, &piece, &job)
    job.channels.sums = sums
    job.channels.sums_mode = SUMS_ONLY
    return FUNCTIONS[m.kernel](&job.head)


cdef inline void merge_part(MaskedJob *m, const Piece *whole, Py_ssize_t units, double part_count, const double *sums,
                            double *totals, double count) noexcept nogil:
    """Merge what a part has with that of `count` elements before it."""
    cdef double *mean = m.job.mean + whole.unit
    cdef double *lo = m.job.lo + whole.unit
    cdef double *m2 = m.job.m2 + whole.unit
    cdef double merged
    cdef Py_ssize_t i
    if m.backward:
        for i in range(2 * units):
            totals[i] += sums[i]
        return
    for i in range(units):
        merged = count
        merge_counted_moments(&merged, &mean[i], &lo[i], &m2[i], part_count, sums[i], sums[units + i],
                              sums[2 * units + i])


cdef int merge_parts(MaskedJob *m, const Piece *whole, Py_ssize_t units, int threads, Py_ssize_t together,
                     char *workspace, const Workspace *size, double *partials, Py_ssize_t *counts, double *totals,
                     double *count) noexcept nogil:
    """The statistics of some units; backward, their sums (2, units) and the gradients of all parts' parameters."""
    cdef Py_ssize_t first, n, i
    cdef int failed = 0
    count[0] = 0
    if m.backward:
        memset(totals, 0, 2 * units * sizeof(double))
    else:
        memset(m.job.mean + whole.unit, 0, units * sizeof(double))
        memset(m.job.lo + whole.unit, 0, units * sizeof(double))
        memset(m.job.m2 + whole.unit, 0, units * sizeof(double))
    for first from 0 <= first < m.part.size by together:
        n = min(together, m.part.size - first)
        if together == 1:
            failed = sums_of_part(m, whole, first, units, threads, workspace, size, partials, counts)
        else:
            for i in prange(n, num_threads=threads, schedule="guided"):
                failed += sums_of_part(m, whole, first + i, units, 1, workspace + threadid() * size.total, size,
                                       partials + i * PART_SUMS * units, &counts[i])
        if failed:
            return -1
        for i in range(n):
            if counts[i]:
                merge_part(m, whole, units, <double> counts[i], partials + i * PART_SUMS * units, totals, count[0])
                count[0] += <double> counts[i]
    if not m.backward:
        for i in range(whole.unit, whole.unit + units):
            settle_moments(&m.job.mean[i], &m.job.lo[i], &m.job.m2[i])
            m.job.rstd[i] = rstd_from_m2(m.job.m2[i], count[0], &m.job.finish) if count[0] else 0
    return 0


cdef int apply_part(MaskedJob *m, const Piece *whole, Py_ssize_t part, int threads, char *workspace,
                    const Workspace *size, double *totals, double count) noexcept nogil:
    """The results of a part, from the statistics of its units; backward from their sums."""
    cdef Piece piece
    cdef Job job
    place_part(m, whole, part, &piece)
    bind_piece(m, &piece, workspace, size)
    if piece.count:
        begin_piece(m, &piece, threads, &job)
        unit_statistics(m, &piece, &job)
        channel_parameters(m, &piece, &job)
        if m.backward:
            job.channels.sums = totals
            job.channels.sums_mode = SUMS_GIVEN
            job.channels.count = count
        else:
            job.stats_given = True
            job.read_before = True
        if FUNCTIONS[m.kernel](&job.head):
            return -1
    end_piece(m, &piece)
    return 0


cdef int run_parts(MaskedJob *m, Py_ssize_t number, int threads, char *workspace, const Workspace *size) noexcept nogil:
    """Some units of several parts, which merge in their order."""
    cdef Piece whole
    cdef Py_ssize_t units, together, i
    cdef double count
    cdef double *totals
    cdef Py_ssize_t *counts
    cdef int failed
    place_piece(m, number, &whole)
    units = m.stats_per_piece if m.items == ITEM_ROWS else whole.units
    together = parts_together(m, units, threads, size)
    totals = <double *> malloc((2 + PART_SUMS * together) * units * sizeof(double) + together * sizeof(Py_ssize_t))
    if totals == NULL:
        return -1
    counts = <Py_ssize_t *> (totals + (2 + PART_SUMS * together) * units)
    failed = merge_parts(m, &whole, units, threads, together, workspace, size, totals + 2 * units, counts, totals,
                         &count)
    if not failed and together == 1:
        for i in range(m.part.size - 1, -1, -1):  # the last ones are in cache
            failed += apply_part(m, &whole, i, threads, workspace, size, totals, count)
    elif not failed:
        for i in prange(m.part.size, num_threads=threads, schedule="guided"):
            failed += apply_part(m, &whole, reversed_within_thread_range(i, m.part.size, threads), 1,
                                 workspace + threadid() * size.total, size, totals, count)
    free(totals)
    return -1 if failed else 0


# ---- pieces whose items lie side by side: channels that are last in memory, each with a mask of its own ----
# The items of some of them are moved, so that cache lines are used whole: those of a piece then lie side by side.


cdef inline Py_ssize_t pieces_turned(const MaskedJob *m) noexcept nogil:
    """How many pieces are moved together: a cache line of items, fewer where threads would be idle; else 1."""
    cdef Py_ssize_t size = m.item_bytes
    cdef int k
    if m.outers == 0 or m.inners == 0 or m.items != ITEM_ELEMENTS or m.channels != 1 or m.merges or MACHINE.force or (
            m.unit.size != 1 or m.segment.size != 1 or m.array[3] != NULL):
        return 1
    for k in range(3):
        if m.array[k] != NULL and (m.outer[m.outers - 1].stride[k] != size or m.inner[m.inners - 1].stride[k] == size):
            return 1
    return max(1, min(<Py_ssize_t> LANES_ALIGN // size, pieces_of(m) // m.head.threads))


cdef inline Py_ssize_t turned_stride(const MaskedJob *m) noexcept nogil:
    """Bytes from one piece to the next in workspace: an odd number of cache lines, so that the pieces do not share a set
    of L1 (set conflict)."""
    return round_up(m.length * m.item_bytes, 2 * LANES_ALIGN) + LANES_ALIGN


cdef void turn_array(const MaskedJob *m, const Piece *piece, int k, Py_ssize_t columns, char *to, Py_ssize_t stride,
                     bint back) noexcept nogil:
    """Move the items of some pieces to workspace, or back."""
    cdef Py_ssize_t i = 0, n
    while i < piece.length:
        n = items_of_run(m, i, piece.length - i)
        turn_items(m.item_bytes, item_at(m, piece.array[k], k, i), m.inner[m.inners - 1].stride[k], n, columns,
                   to + i * m.item_bytes, stride, back)
        i += n


cdef void turn_masks(const MaskedJob *m, Py_ssize_t first, Py_ssize_t columns, char *to) noexcept nogil:
    """The masks of some pieces, each moved together, one after another."""
    cdef Piece piece
    cdef Py_ssize_t i = 0, n, step = m.inner[m.inners - 1].mask
    place_piece(m, first, &piece)
    if step == 1 or m.outer[m.outers - 1].mask != 1:
        for i in range(columns):
            place_piece(m, first + i, &piece)
            gather_mask(m, &piece, to + i * m.length)
        return
    while i < m.length:  # those of one item lie side by side
        n = items_of_run(m, i, m.length - i)
        turn_items(1, <char *> mask_at(m, piece.mask, i), step, n, columns, to + i, m.length, False)
        i += n
    for i in range(columns * m.length):
        to[i] = to[i] != 0


cdef int run_turned(MaskedJob *m, Py_ssize_t item, Py_ssize_t together, char *workspace,
                    const Workspace *size) noexcept nogil:
    """Some pieces, of as many as lie along the last axis of pieces."""
    cdef MaskedJob turned = m[0]
    cdef MaskedAxis *axis = &turned.outer[0]
    cdef Piece piece
    cdef Py_ssize_t along = m.outer[m.outers - 1].size, items = (along + together - 1) // together
    cdef Py_ssize_t outer = item // items
    cdef Py_ssize_t first = outer * along + (item - outer * items) * together, row = turned_stride(m), i
    cdef Py_ssize_t columns = min(together, (outer + 1) * along - first)
    cdef char *masks = workspace + size.total - size.turned
    cdef char *arrays = masks - 3 * size.turned
    cdef int k
    place_piece(m, first, &piece)
    turned.outers = 1
    turned.inners = 1
    turned.gathers = False
    axis.size = first + columns
    for k in range(3):
        axis.stride[k] = row
        turned.inner[0].stride[k] = m.item_bytes
        turned.unit.stride[k] = 0
        if m.array[k] == NULL:
            continue
        if k == 1 and m.zero:  # results take the place of the input
            turned.array[k] = turned.array[0]
        else:
            turn_array(m, &piece, k, columns, arrays + k * size.turned, row, False)
            turned.array[k] = arrays + k * size.turned - first * row
    axis.mask = m.length
    turned.inner[0].mask = 1
    turned.inner[0].size = m.length
    turned.mask = masks - first * m.length
    turn_masks(m, first, columns, masks)
    for i in range(first, first + columns):
        if run_piece(&turned, i, 0, 1, workspace, size):
            return -1
    place_piece(m, first, &piece)
    turn_array(m, &piece, 1, columns, turned.array[1] + first * row, row, True)
    return 0


# ---- all pieces ----


cdef inline Workspace workspace_of(const MaskedJob *m) noexcept nogil:
    cdef Workspace size
    cdef Py_ssize_t units = max(m.stats_per_piece, m.units_per_piece)
    cdef Py_ssize_t row = m.job.shape[3] * m.job.shape[4] if m.items == ITEM_UNITS else m.length
    size.packed = round_up(m.units_per_piece * m.segment.size * m.items_per_piece * m.item_bytes + SELECT_SLACK,
                           LANES_ALIGN)
    if lists_rows(m):  # their numbers, and nothing else
        size.packed = round_up(m.items_per_piece * sizeof(Py_ssize_t), LANES_ALIGN)
    size.parameters = 0
    size.sums = 0
    if m.channels == 0:
        if m.items == ITEM_ELEMENTS:
            size.parameters = round_up(m.length * m.element_bytes + SELECT_SLACK, LANES_ALIGN)
        size.sums = round_up(3 * row * sizeof(double), LANES_ALIGN) if m.backward else 0
    size.stats = round_up(4 * (m.items_per_piece if m.items == ITEM_UNITS else units) * sizeof(double) + SELECT_SLACK,
                          LANES_ALIGN)
    size.mask = round_up(m.length + SELECT_SLACK, LANES_ALIGN) if m.gathers else 0
    size.parts = round_up(m.part.size * sizeof(Part), LANES_ALIGN) if sweeps_parts(m) and m.outers else 0
    # of arrays, and of their masks, which are never larger
    size.turned = pieces_turned(m) * turned_stride(m) + LANES_ALIGN
    if pieces_turned(m) == 1:
        size.turned = 0
    size.total = (4 * size.packed + 3 * size.parameters + size.stats + size.mask + size.sums + size.parts
                  + 4 * size.turned)
    return size


cdef inline Py_ssize_t rows_per_item(const MaskedJob *m) noexcept nogil:
    """Rows with masks of their own that a thread takes at a time, forward: one, if the call is small."""
    cdef Py_ssize_t rows = MASKED_PIECE_BYTES // (m.length * m.item_bytes)
    return max(1, min(rows, pieces_of(m) // (16 * m.head.threads)))


cdef inline int run_item(MaskedJob *m, Py_ssize_t item, Py_ssize_t pieces, Py_ssize_t rows, int threads,
                         char *workspace, const Workspace *size, const Part *parts) noexcept nogil:
    """A piece, or the pieces of a chunk; or so many rows."""
    cdef Py_ssize_t i
    if threads == 1 and sweeps_parts(m):
        sweep_piece(m, item, workspace, size, parts)
        return 0
    if m.merges:
        return run_parts(m, item, threads, workspace, size)
    if size.turned and threads == 1:
        return run_turned(m, item, pieces_turned(m), workspace, size)
    if threads == 1 and sweeps_rows(m):
        if m.items == ITEM_UNITS:
            forward_whole_rows(m, item)
        elif m.backward:
            backward_masked_rows(m, item * m.pieces_per_chunk, min((item + 1) * m.pieces_per_chunk, pieces), item,
                                 workspace, size)
        else:
            forward_masked_rows(m, item * rows, min((item + 1) * rows, pieces), workspace, size)
        return 0
    if not m.chunks:
        return run_piece(m, item, 0, threads, workspace, size)
    for i in range(item * m.pieces_per_chunk, min((item + 1) * m.pieces_per_chunk, pieces)):
        if run_piece(m, i, item, threads, workspace, size):
            return -1
    return 0


cdef int masked_pieces(MaskedJob *m) noexcept nogil:
    """All pieces. -1 where memory ran out: a part of the results may be written."""
    cdef Py_ssize_t pieces, items, rows = 1, i
    cdef int threads, failed = 0
    cdef Workspace size
    cdef char *workspace
    cdef char *aligned
    cdef Part *parts = NULL
    if sweeps_parts(m):
        m.units_per_piece = swept_units(m)
    pieces = pieces_of(m)
    items = m.chunks if m.chunks else pieces
    threads = m.head.threads if items >= m.head.threads else 1
    size = workspace_of(m)
    if m.head.schedule_only != NULL:
        m.head.schedule_only[0] = plain_schedule(RUNS, m.head.threads, items)
        m.head.schedule_only.units_per_batch = m.units_per_piece
        return 0
    if sweeps_rows(m) and m.items == ITEM_ELEMENTS and not m.backward:
        rows = rows_per_item(m)
        items = (pieces + rows - 1) // rows
    if size.turned and threads > 1 or size.turned and m.head.threads == 1:
        items = pieces // m.outer[m.outers - 1].size * (
            (m.outer[m.outers - 1].size + pieces_turned(m) - 1) // pieces_turned(m))
    workspace = <char *> malloc((threads if threads > 1 else threads_of_parts(m, &size)) * size.total + LANES_ALIGN)
    if workspace == NULL:
        return -1
    aligned = workspace + (-<Py_ssize_t> workspace & (LANES_ALIGN - 1))
    if sweeps_parts(m) and m.outers == 0:
        parts = <Part *> malloc(m.part.size * sizeof(Part))
        if parts == NULL:
            free(workspace)
            return -1
        look_at_parts(m, m.mask, parts)
    if threads == 1:
        for i in range(items):
            if run_item(m, i, pieces, rows, m.head.threads, aligned, &size, parts):
                failed = -1
                break
    else:
        for i in prange(items, num_threads=threads, schedule="guided", chunksize=max(1, items // (16 * threads))):
            failed += run_item(m, i, pieces, rows, 1, aligned + threadid() * size.total, &size, parts)
    free(parts)
    free(workspace)
    return -1 if failed else 0
