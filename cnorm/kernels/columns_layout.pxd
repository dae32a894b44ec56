# Columns: how the rows and columns of a sample are cut, and where they are in memory. See columns.pyx.
from cnorm.kernels.job cimport Finish, Job, Schedule, Tensor
from cnorm.kernels.loops cimport LANES_ALIGN, LOOPS_BY_DTYPE, LoopTable
from cnorm.kernels.machine cimport columns_from_memory
from cnorm.kernels.tuning cimport (
    COEFFICIENT_CHUNK, COLUMN_BLOCK_DOUBLES, COLUMN_BLOCK_MIN, COLUMN_BLOCK_MULTIPLE, COLUMN_BLOCK_ROWS,
    COLUMN_ROWS_PER_PASS, LANE_MULTIPLE, MIN_COLUMNS, PACKED_COLUMNS_MAX, PAGE_BYTES, ROW_RANGE_MULTIPLE,
    ROW_RANGE_ROWS, ROW_RANGES_MAX, ROW_SUM_COLUMNS)
from cnorm.kernels.workspace cimport power_of_two, round_up


cdef struct ColumnLayout:
    # How the rows and columns of a sample are cut.
    const LoopTable *loops
    Py_ssize_t rows                 # of a sample
    Py_ssize_t columns              # C
    Py_ssize_t rows_packed          # consecutive rows that count as one packed row
    Py_ssize_t packed_columns       # rows_packed * C
    Py_ssize_t packed_rows          # of a sample, the last of them perhaps shorter
    Py_ssize_t last_columns         # columns of the last packed row where it is shorter, else 0
    Py_ssize_t rows_per_lanes       # rows that elementwise work packs: together they are whole lanes
    Py_ssize_t repeat               # of coefficients: for packed rows, and for rows_per_lanes
    Py_ssize_t range_rows           # packed rows of a row range
    Py_ssize_t row_ranges           # of a sample; each has partial sums of every column
    Py_ssize_t block_columns        # columns that a thread sums at a time: a column block
    Py_ssize_t column_blocks
    Py_ssize_t peel                 # more columns of the first block: the others begin at a cache line of y
    Py_ssize_t rows_per_pass        # packed rows that the loops take together
    Py_ssize_t lanes_rows_per_pass  # groups of rows_per_lanes rows that the loops take together
    Finish finish                   # of the job
    double *row_sums                # backward, where rows have parameters: (samples, row_chunks, 3, rows)
    Py_ssize_t row_chunks           # chunks of ROW_SUM_COLUMNS columns of a row
    Schedule schedule


cdef inline bint rows_have_parameters(const Job *job) noexcept nogil:
    """Whether each row has a weight, instead of each column."""
    return job.elements.weight != NULL


cdef inline bint sums_rows(const Job *job) noexcept nogil:
    """Whether backward takes sums along the rows too."""
    return rows_have_parameters(job) and job.dy.data != NULL


cdef inline Py_ssize_t column_rows_per_pass(Py_ssize_t row_bytes, bint from_memory,
                                            bint written) noexcept nogil:
    """Rows that the loops take together.

    Memory is read fastest in its order, within a page. In cache, rows that lie whole pages apart share one
    set of L1 (set conflicts), with the rows that are written if any."""
    if from_memory:
        return 1 if row_bytes < PAGE_BYTES else COLUMN_ROWS_PER_PASS // 2
    return COLUMN_ROWS_PER_PASS // 4 if written and row_bytes % PAGE_BYTES == 0 else COLUMN_ROWS_PER_PASS


cdef inline Py_ssize_t rows_of_whole_lanes(Py_ssize_t columns) noexcept nogil:
    """Rows that together are whole lanes; more, up to PACKED_COLUMNS_MAX columns, where rows are short."""
    cdef Py_ssize_t rows = 1
    if columns >= PACKED_COLUMNS_MAX:
        return 1
    while rows * columns % LANE_MULTIPLE or 2 * rows * columns <= PACKED_COLUMNS_MAX:
        rows *= 2
    return rows


cdef inline Py_ssize_t columns_to_peel(const Tensor *y, Py_ssize_t size) noexcept nogil:
    """Columns before the first cache line that begins within a row of y; 0 where rows differ in that."""
    if (y.strides[0] | y.strides[1] | y.strides[2] | y.strides[3]) % LANES_ALIGN:
        return 0
    return (-<Py_ssize_t> y.data & (LANES_ALIGN - 1)) // size


cdef inline Py_ssize_t bytes_of_columns(const Job *job, const ColumnLayout *layout) noexcept nogil:
    """Bytes of the input; of a piece of a call the whole call's, which the other pieces have moved through the
    cache."""
    return max(job.shape[0] * layout.rows * layout.columns * layout.loops.size, job.call_bytes)


cdef inline void set_column_blocks(const Job *job, int threads, ColumnLayout *layout) noexcept nogil:
    """Cut the packed columns into blocks: as few as fit, since memory is read fastest in its order, unless
    that leaves threads idle."""
    cdef Py_ssize_t columns = layout.packed_columns, least = COLUMN_BLOCK_MULTIPLE, blocks, most
    most = COLUMN_BLOCK_DOUBLES * (8 // layout.loops.acc_size) - COLUMN_BLOCK_MULTIPLE
    cdef Py_ssize_t multiple = ROW_SUM_COLUMNS if sums_rows(job) else COLUMN_BLOCK_MULTIPLE
    layout.peel = 0
    blocks = (columns + most - 1) // most
    if layout.row_ranges < threads:
        if not sums_rows(job):  # whose chunks begin at columns of the shape
            layout.peel = columns_to_peel(&job.y, layout.loops.size)
        blocks = (columns + COEFFICIENT_CHUNK - 1) // COEFFICIENT_CHUNK
        blocks = round_up(blocks, (threads + layout.row_ranges - 1) // layout.row_ranges)
        least = COLUMN_BLOCK_MIN
    layout.block_columns = round_up(max((columns + blocks - 1) // blocks, least), multiple)
    blocks = (columns - layout.peel + layout.block_columns - 1) // layout.block_columns
    layout.column_blocks = max(1, blocks)


cdef inline void set_column_layout(const Job *job, int threads, ColumnLayout *layout) noexcept nogil:
    """The layout of every sample of a job, for `threads` threads in a sample.

    By a pointer, as all structs of some length that a small call fills: to copy one just after its fields were written
    waits until they are in cache, for about 8 ns each."""
    cdef Py_ssize_t size = LOOPS_BY_DTYPE[job.head.dtype].size
    cdef bint from_memory
    layout.loops = LOOPS_BY_DTYPE[job.head.dtype]
    layout.finish = job.finish
    layout.rows = job.shape[1] * job.shape[2] * job.shape[3]
    layout.columns = job.shape[4]
    layout.rows_packed = 1
    if layout.columns < MIN_COLUMNS and not sums_rows(job):
        layout.rows_packed = PACKED_COLUMNS_MAX // layout.columns
    layout.packed_columns = layout.rows_packed * layout.columns
    layout.packed_rows = (layout.rows + layout.rows_packed - 1) // layout.rows_packed
    layout.last_columns = (layout.rows - (layout.packed_rows - 1) * layout.rows_packed) * layout.columns
    if layout.last_columns == layout.packed_columns:
        layout.last_columns = 0
    layout.row_ranges = (layout.packed_rows + ROW_RANGE_ROWS - 1) // ROW_RANGE_ROWS
    layout.row_ranges = power_of_two(layout.row_ranges, ROW_RANGES_MAX)
    layout.range_rows = (layout.packed_rows + layout.row_ranges - 1) // layout.row_ranges
    layout.range_rows = round_up(layout.range_rows, ROW_RANGE_MULTIPLE)
    layout.row_ranges = (layout.packed_rows + layout.range_rows - 1) // layout.range_rows
    set_column_blocks(job, threads, layout)
    layout.row_sums = NULL
    layout.row_chunks = (layout.columns + ROW_SUM_COLUMNS - 1) // ROW_SUM_COLUMNS
    layout.rows_per_lanes = rows_of_whole_lanes(layout.columns)
    layout.repeat = max(layout.rows_per_lanes, layout.rows_packed)
    from_memory = bytes_of_columns(job, layout) > columns_from_memory()
    layout.rows_per_pass = column_rows_per_pass(layout.packed_columns * size, from_memory, False)
    layout.lanes_rows_per_pass = column_rows_per_pass(layout.rows_per_lanes * layout.columns * size,
                                                      from_memory, True)


cdef inline Py_ssize_t column_block_begin(const ColumnLayout *layout, Py_ssize_t block) noexcept nogil:
    """The first packed column of a column block."""
    return block * layout.block_columns + layout.peel if block > 0 else 0


cdef inline Py_ssize_t column_block_size(const ColumnLayout *layout, Py_ssize_t block) noexcept nogil:
    """Packed columns of a column block."""
    cdef Py_ssize_t end = layout.packed_columns
    if block + 1 < layout.column_blocks:
        end = column_block_begin(layout, block + 1)
    return end - column_block_begin(layout, block)


# ---- where rows are ----


cdef inline char *row_at(const Job *job, const Tensor *tensor, Py_ssize_t sample,
                         Py_ssize_t row) noexcept nogil:
    """The address of a row of a sample; rows count along the three axes shape[1:4], or are listed."""
    cdef Py_ssize_t middle, outer
    if job.elements.rows != NULL:
        return tensor.data + sample * tensor.strides[0] + job.elements.rows[row] * tensor.strides[3]
    middle = row // job.shape[3]
    outer = middle // job.shape[2]
    return (tensor.data + sample * tensor.strides[0] + outer * tensor.strides[1]
            + (middle - outer * job.shape[2]) * tensor.strides[2]
            + (row - middle * job.shape[3]) * tensor.strides[3])


cdef inline void addresses_of_rows(const Job *job, const Tensor *tensor, Py_ssize_t sample, Py_ssize_t first,
                                   Py_ssize_t step, Py_ssize_t rows, Py_ssize_t bytes,
                                   char **out) noexcept nogil:
    """Addresses `bytes` into each of `rows` rows: first, first + step, ..."""
    cdef Py_ssize_t i, stride = step * tensor.strides[3]
    cdef char *base
    if job.shape[1] == 1 and job.shape[2] == 1 and job.elements.rows == NULL:
        base = tensor.data + sample * tensor.strides[0] + first * tensor.strides[3] + bytes
        for i in range(rows):
            out[i] = base + i * stride
    else:
        for i in range(rows):
            out[i] = row_at(job, tensor, sample, first + i * step) + bytes


cdef inline bint rows_are_contiguous(const Job *job, const Tensor *tensor) noexcept nogil:
    """Whether the rows of a sample lie end to end."""
    cdef Py_ssize_t row_bytes = job.shape[4] * LOOPS_BY_DTYPE[job.head.dtype].size
    return (job.elements.rows == NULL and tensor.strides[3] == row_bytes
            and (job.shape[2] == 1 or tensor.strides[2] == row_bytes * job.shape[3])
            and (job.shape[1] == 1 or tensor.strides[1] == row_bytes * job.shape[3] * job.shape[2]))


cdef struct PackedRows:
    # Up to COLUMN_BLOCK_ROWS packed rows as the loops take them: in place or gathered.
    const char *at[COLUMN_BLOCK_ROWS]
    const LoopTable *loops    # of the type in which the rows are stored


cdef inline void set_packed_rows(const Job *job, const ColumnLayout *layout, const Tensor *tensor,
                                 bint gathered, Py_ssize_t sample, Py_ssize_t first, Py_ssize_t rows,
                                 Py_ssize_t column, char *buffer, PackedRows *packed) noexcept nogil:
    """Packed rows first .. first + rows, from a column on.

    gathered: rows of the tensor do not lie end to end, so packed ones are copied to the buffer, in the
    accumulation type."""
    cdef Py_ssize_t acc_size = layout.loops.acc_size, i, row, begin, end
    cdef char *packed_row
    if layout.rows_packed == 1 or not gathered:
        packed.loops = layout.loops
        addresses_of_rows(job, tensor, sample, first * layout.rows_packed, layout.rows_packed, rows,
                          column * layout.loops.size, <char **> packed.at)
        return
    packed.loops = LOOPS_BY_DTYPE[layout.loops.acc_dtype]
    for i in range(rows):
        packed_row = buffer + i * layout.packed_columns * acc_size
        packed.at[i] = packed_row + column * acc_size
        begin = (first + i) * layout.rows_packed
        end = min(begin + layout.rows_packed, layout.rows)
        for row in range(begin, end):
            layout.loops.widen(row_at(job, tensor, sample, row), layout.columns,
                               packed_row + (row - begin) * layout.columns * acc_size)
