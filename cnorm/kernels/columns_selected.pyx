# Columns: the moments of any dtype down the columns, in double; with or without a selection of elements.
#
# a) Without a selection: the statistics of columns.pyx, whose loops convert rows to double (loops/wide.h).
# b) With one, columns differ in how many elements count. Elements that do not count become the shift of their column
#    while their row is converted, and so add nothing to sums about it. Counts and merges are per column. Row ranges,
#    blocks and trees are those of columns.pyx, so a mask of all True gives the bits of no mask.
from cython.parallel cimport prange
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from cnorm.kernels.columns_layout cimport (
    ColumnLayout, addresses_of_rows, column_block_begin, column_block_size, row_at, rows_are_contiguous,
    set_column_layout)
from cnorm.kernels.columns_moments cimport whole_rows
from cnorm.kernels.job cimport ROW_RANGES, SAMPLES_PER_THREAD, Job, MomentsJob, Tensor
from cnorm.kernels.loops cimport READ_BY_DTYPE, selected_column_probe, selected_column_sums
from cnorm.kernels.schedule cimport min_chunk, plain_schedule, samples_in_parallel
from cnorm.kernels.statistics cimport merge_counted_moments, moments_about, settle_moments, shift_is_poor
from cnorm.kernels.tuning cimport (
    COLUMN_BLOCK_DOUBLES, COLUMN_BLOCK_ROWS, PACKED_COLUMNS_MAX, PROBE_ROWS, WIDE_ROWS_PER_PASS)


cdef inline void set_rows_of(const MomentsJob *job, Job *columns, Tensor *mask) noexcept nogil:
    """The job of columns.pyx: samples, three axes of rows, columns; and the strides of the mask likewise."""
    cdef Py_ssize_t i, at
    memset(columns, 0, sizeof(Job))
    columns.head.dtype = job.head.dtype
    columns.head.threads = job.head.threads
    columns.centred = True
    columns.finish.eps = 1  # of an rstd that nobody sees
    columns.channels.channels_per_group = 1
    columns.channels.shift_overflows = True
    columns.x.data = <char *> job.x
    mask.data = <char *> job.mask
    for i in range(4):
        columns.shape[i] = 1
        columns.x.strides[i] = 0
        mask.strides[i] = 0
    columns.shape[4] = job.kept.shape[job.kept.count - 1]
    if job.kept.count == 2:
        columns.shape[0] = job.kept.shape[0]
        columns.x.strides[0] = job.kept.x[0]
        mask.strides[0] = job.kept.mask[0]
    for i in range(job.reduced.count):
        at = 4 - job.reduced.count + i
        columns.shape[at] = job.reduced.shape[i]
        columns.x.strides[at] = job.reduced.x[i]
        mask.strides[at] = job.reduced.mask[i]


# ---- rows of a selection ----


cdef struct SelectedRows:
    # Up to COLUMN_BLOCK_ROWS packed rows, in place or gathered, and their masks.
    const char *x[COLUMN_BLOCK_ROWS]
    const char *mask[COLUMN_BLOCK_ROWS]
    Py_ssize_t mask_stride


cdef struct SelectedBuffers:
    double values[COLUMN_BLOCK_ROWS * PACKED_COLUMNS_MAX]     # room for any dtype
    char mask[COLUMN_BLOCK_ROWS * PACKED_COLUMNS_MAX]


cdef inline void copy_strided(const char *source, Py_ssize_t stride, Py_ssize_t n, char *target) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        target[i] = source[i * stride]


cdef inline void set_selected_rows(const MomentsJob *job, const Job *columns, const Tensor *mask,
                                   const ColumnLayout *layout, bint gathered, Py_ssize_t sample, Py_ssize_t first,
                                   Py_ssize_t rows, Py_ssize_t column, SelectedBuffers *buffers,
                                   SelectedRows *selected) noexcept nogil:
    """Packed rows first .. first + rows, from a column on. Masks of packed rows are gathered, and so are the rows
    where they do not lie end to end."""
    cdef Py_ssize_t size = layout.loops.size, i, row, begin, end
    cdef char *packed_row
    selected.mask_stride = job.kept.mask[job.kept.count - 1]
    if layout.rows_packed == 1:
        addresses_of_rows(columns, &columns.x, sample, first, 1, rows, column * size, <char **> selected.x)
        if job.mask != NULL:
            addresses_of_rows(columns, mask, sample, first, 1, rows, column * selected.mask_stride,
                              <char **> selected.mask)
        return
    if not gathered:
        addresses_of_rows(columns, &columns.x, sample, first * layout.rows_packed, layout.rows_packed, rows,
                          column * size, <char **> selected.x)
    for i in range(rows):
        begin = (first + i) * layout.rows_packed
        end = min(begin + layout.rows_packed, layout.rows)
        if gathered:
            packed_row = <char *> buffers.values + i * layout.packed_columns * size
            selected.x[i] = packed_row + column * size
            for row in range(begin, end):
                memcpy(packed_row + (row - begin) * layout.columns * size, row_at(columns, &columns.x, sample, row),
                       layout.columns * size)
        if job.mask != NULL:
            packed_row = buffers.mask + i * layout.packed_columns
            selected.mask[i] = packed_row + column
            for row in range(begin, end):
                copy_strided(row_at(columns, mask, sample, row), selected.mask_stride, layout.columns,
                             packed_row + (row - begin) * layout.columns)
    if job.mask != NULL:
        selected.mask_stride = 1


# ---- the moments of a row range over one column block ----


cdef inline void selected_block_sums(const MomentsJob *job, const Job *columns, const Tensor *mask,
                                     const ColumnLayout *layout, bint gathered, Py_ssize_t sample,
                                     Py_ssize_t row_range, Py_ssize_t column, Py_ssize_t n, bint guess, double *shift,
                                     double *counts, double *sum_d, double *sum_dd) noexcept nogil:
    """Sums of d = x - shift and of d*d over the selected elements of n columns of a row range, and their counts.

    guess: shift is OUT, taken from the range's first rows."""
    cdef SelectedBuffers buffers
    cdef SelectedRows rows
    cdef const char **masks = rows.mask if job.mask != NULL else NULL
    cdef Py_ssize_t row = row_range * layout.range_rows, stop = row + whole_rows(layout, row_range), height
    cdef Py_ssize_t tail = 0, size = layout.loops.size
    if row_range == layout.row_ranges - 1:
        tail = min(n, layout.last_columns - column)
    memset(counts, 0, n * sizeof(double))
    memset(sum_d, 0, n * sizeof(double))
    memset(sum_dd, 0, n * sizeof(double))
    if guess and stop == row:  # nothing but the shorter row
        set_selected_rows(job, columns, mask, layout, gathered, sample, row, 1, column, &buffers, &rows)
        selected_column_probe(READ_BY_DTYPE[job.head.dtype], size, rows.x, masks, rows.mask_stride, job.omit_nan, 1,
                              tail, shift)
    while row < stop:
        height = min(COLUMN_BLOCK_ROWS, stop - row)
        set_selected_rows(job, columns, mask, layout, gathered, sample, row, height, column, &buffers, &rows)
        if guess:
            selected_column_probe(READ_BY_DTYPE[job.head.dtype], size, rows.x, masks, rows.mask_stride, job.omit_nan,
                                  min(height, PROBE_ROWS), n, shift)
            guess = False
        selected_column_sums(READ_BY_DTYPE[job.head.dtype], size, rows.x, masks, rows.mask_stride, job.omit_nan, height,
                             n, shift, counts, sum_d, sum_dd)
        row += height
    if tail > 0:
        set_selected_rows(job, columns, mask, layout, gathered, sample, row, 1, column, &buffers, &rows)
        selected_column_sums(READ_BY_DTYPE[job.head.dtype], size, rows.x, masks, rows.mask_stride, job.omit_nan, 1,
                             tail, shift, counts, sum_d, sum_dd)


cdef inline double *counted_partial(const ColumnLayout *layout, double *partials, Py_ssize_t row_range) noexcept nogil:
    """The partial of a row range, (4, packed_columns): mean, lo, m2 and count."""
    return partials + 4 * layout.packed_columns * row_range


cdef inline void merge_counted(const ColumnLayout *layout, double *mean, const double *other) noexcept nogil:
    """Merge the moments of C columns into others, (4, packed_columns) each."""
    cdef Py_ssize_t step = layout.packed_columns, c
    for c in range(layout.columns):
        merge_counted_moments(&mean[3 * step + c], &mean[c], &mean[step + c], &mean[2 * step + c], other[3 * step + c],
                              other[c], other[step + c], other[2 * step + c])


cdef void selected_block_moments(const MomentsJob *job, const Job *columns, const Tensor *mask,
                                 const ColumnLayout *layout, bint gathered, Py_ssize_t sample, Py_ssize_t item,
                                 double *partials) noexcept nogil:
    """Fill the partial of a row range over one column block; items count the blocks of each range in turn."""
    cdef Py_ssize_t row_range = item // layout.column_blocks, block = item - row_range * layout.column_blocks
    cdef Py_ssize_t column = column_block_begin(layout, block), n = column_block_size(layout, block), j, k
    cdef double *partial = counted_partial(layout, partials, row_range)
    cdef double *sum_d = partial + column
    cdef double *sum_dd = sum_d + layout.packed_columns
    cdef double *m2 = sum_dd + layout.packed_columns
    cdef double *counts = m2 + layout.packed_columns
    cdef double shift[COLUMN_BLOCK_DOUBLES]
    cdef bint poor = False
    memset(shift, 0, n * sizeof(double))
    selected_block_sums(job, columns, mask, layout, gathered, sample, row_range, column, n, True, shift, counts, sum_d,
                        sum_dd)
    for j in range(n):
        if counts[j] > 0 and shift_is_poor(counts[j], sum_d[j], sum_dd[j]):
            shift[j] += sum_d[j] / counts[j]
            poor = True
    if poor:
        selected_block_sums(job, columns, mask, layout, gathered, sample, row_range, column, n, False, shift, counts,
                            sum_d, sum_dd)
    for j in range(n):
        if counts[j] > 0:
            moments_about(shift[j], sum_d[j] * (1 / counts[j]), sum_d[j], sum_dd[j], &sum_d[j], &sum_dd[j], &m2[j])
        else:
            sum_d[j] = 0
            sum_dd[j] = 0
            m2[j] = 0
    if layout.rows_packed > 1:  # there is then one column block
        for k from layout.columns <= k < layout.packed_columns by layout.columns:
            merge_counted(layout, partial, partial + k)


# ---- samples ----


cdef int selected_sample(const MomentsJob *job, const Job *columns, const Tensor *mask, const ColumnLayout *layout,
                         Py_ssize_t sample, int threads) noexcept nogil:
    """The moments of the columns of one sample, of a selection."""
    cdef Py_ssize_t items = layout.row_ranges * layout.column_blocks, i, step = 1, out = sample * layout.columns
    cdef bint gathered = not rows_are_contiguous(columns, &columns.x)
    cdef double *partials = <double *> malloc(4 * layout.row_ranges * layout.packed_columns * sizeof(double))
    cdef size_t bytes = layout.columns * sizeof(double)
    if partials == NULL:
        return -1
    if threads == 1:
        for i in range(items):
            selected_block_moments(job, columns, mask, layout, gathered, sample, i, partials)
    else:
        for i in prange(items, num_threads=threads, schedule="guided"):
            selected_block_moments(job, columns, mask, layout, gathered, sample, i, partials)
    while step < layout.row_ranges:
        for i from 0 <= i < layout.row_ranges - step by 2 * step:
            merge_counted(layout, counted_partial(layout, partials, i), counted_partial(layout, partials, i + step))
        step *= 2
    memcpy(job.mean + out, partials, bytes)
    memcpy(job.lo + out, partials + layout.packed_columns, bytes)
    memcpy(job.m2 + out, partials + 2 * layout.packed_columns, bytes)
    memcpy(job.count + out, partials + 3 * layout.packed_columns, bytes)
    free(partials)
    return 0


cdef inline int sample_of_columns(const MomentsJob *job, Job *columns, const Tensor *mask, const ColumnLayout *layout,
                                  Py_ssize_t sample, int threads) noexcept nogil:
    if selects(job):
        return selected_sample(job, columns, mask, layout, sample, threads)
    return sample_moments(columns, layout, sample, threads)


cdef int selected_columns_moments(MomentsJob *job) noexcept nogil:
    """count, mean, lo and m2 of each column of each sample."""
    cdef Job columns
    cdef Tensor mask
    cdef ColumnLayout layout
    cdef bint by_sample
    cdef int failed = 0
    cdef Py_ssize_t i
    set_rows_of(job, &columns, &mask)
    columns.mean = job.mean
    columns.lo = job.lo
    columns.m2 = job.m2
    columns.rstd = job.count  # of no use, and overwritten
    by_sample = samples_in_parallel(job, columns.shape[0])
    set_column_layout(&columns, 1 if by_sample else job.head.threads, &layout)
    if layout.loops.acc_size > layout.loops.size:
        layout.rows_per_pass = max(layout.rows_per_pass, <Py_ssize_t> WIDE_ROWS_PER_PASS)
    if job.head.schedule_only != NULL:
        job.head.schedule_only[0] = plain_schedule(
            SAMPLES_PER_THREAD if by_sample else ROW_RANGES, job.head.threads,
            columns.shape[0] if by_sample else layout.row_ranges * layout.column_blocks)
        return 0
    if by_sample:
        for i in prange(columns.shape[0], num_threads=job.head.threads, schedule="guided",
                        chunksize=min_chunk(columns.shape[0], job.head.threads)):
            failed += sample_of_columns(job, &columns, &mask, &layout, i, 1)  # summed over the threads
    else:
        for i in range(columns.shape[0]):
            failed += sample_of_columns(job, &columns, &mask, &layout, i, job.head.threads)
    if failed:
        return -1
    for i in range(job.units):
        if not selects(job):
            job.count[i] = <double> job.elements
        settle_moments(&job.mean[i], &job.lo[i], &job.m2[i])
    return 0
