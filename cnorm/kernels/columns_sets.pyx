# Columns of a batch norm with a set of parameters for each sample: weight and bias (N, C), channels last or 2-D.
# The samples of a job are those of the batch. They share the statistics, which are given.
#
# a) What samples share is computed once (ColumnSets): the means, and what backward makes of the sums of the batch.
#    Scale and bias follow from a sample's parameters just before its rows are read, in double and rounded once: equal
#    rows of weight give the bits of one weight.
# b) Backward, a sample is summed by itself, as by ROW_RANGES. Its sums give the gradients of its parameters, and its
#    terms of two weighted sums of the batch, which add up in the order of the samples.
# c) A sample of one row, of (N, C), is one call of the loops.
from cython.parallel cimport prange
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from cnorm.kernels.coefficients cimport N_GRAD_SUMS, PASS_BACKWARD, PASS_FORWARD, PASS_SUMS, Pass
from cnorm.kernels.columns_apply cimport (
    N_COLUMN_COEFFICIENTS, apply_row_block, coefficient_bytes, coefficients_from, repeat_columns,
    sample_coefficients, split_column_means)
from cnorm.kernels.columns_layout cimport (
    ColumnLayout, column_block_begin, column_block_size, rows_are_contiguous)
from cnorm.kernels.job cimport ACT_NONE, Job, has_slopes
from cnorm.kernels.loops cimport LANES_ALIGN, ColumnCoefficients, store_fence
from cnorm.kernels.schedule cimport min_chunk
from cnorm.kernels.tuning cimport COEFFICIENT_CHUNK, STACK_DOUBLES
from cnorm.kernels.units cimport param_set_at
from cnorm.kernels.workspace cimport round_up, workspace_alloc, workspace_free


cdef struct ColumnSets:
    # What the samples of a batch share.
    ColumnCoefficients coeffs   # all but scale and bias
    double *mean_lo             # of each column
    void *memory


cdef int begin_sets(const Job *job, const ColumnLayout *layout, const double *sums, Pass what,
                    ColumnSets *sets) noexcept nogil:
    """What samples share for a pass. sums: (columns, 2), of the batch; PASS_BACKWARD, statistics not given."""
    cdef Py_ssize_t bytes = round_up(N_COLUMN_COEFFICIENTS * coefficient_bytes(layout), LANES_ALIGN), first, n
    cdef double count = <double> (job.shape[0] * layout.rows)
    cdef double mean_hi[COEFFICIENT_CHUNK]
    cdef char *workspace
    sets.memory = malloc(bytes + LANES_ALIGN + layout.columns * sizeof(double))
    if sets.memory == NULL:
        return -1
    workspace = <char *> sets.memory + (-<Py_ssize_t> sets.memory & (LANES_ALIGN - 1))
    sets.mean_lo = <double *> (workspace + bytes)
    sample_coefficients(job, layout, 0, sums, count, what, workspace, &sets.coeffs)
    for first from 0 <= first < layout.columns by COEFFICIENT_CHUNK:
        n = min(<Py_ssize_t> COEFFICIENT_CHUNK, layout.columns - first)
        split_column_means(job, layout, 0, first, n, job.rstd + first, mean_hi, sets.mean_lo + first)
    return 0


cdef inline void take_set(const Job *job, const ColumnLayout *layout, const ColumnSets *sets, Py_ssize_t sample,
                          Pass what, char *workspace, ColumnCoefficients *coeffs) noexcept nogil:
    """The coefficients of a sample. workspace: 2 * coefficient_bytes, for scale and bias."""
    cdef Py_ssize_t bytes = coefficient_bytes(layout)
    cdef bint with_bias = what == PASS_FORWARD or job.activation != ACT_NONE
    coeffs[0] = sets.coeffs
    if what == PASS_SUMS and job.activation == ACT_NONE:
        return
    coeffs.scale = workspace
    coeffs.bias = workspace + bytes
    layout.loops.set_coefficients(
        param_set_at(job.channels.set_weight, sample, job.channels.weight_step),
        param_set_at(job.channels.set_bias, sample, job.channels.bias_step), job.channels.wide_sets, job.rstd,
        sets.mean_lo, layout.columns, workspace, workspace + bytes if with_bias else NULL)
    if layout.rows > 1:
        repeat_columns(layout, workspace)
        if with_bias:
            repeat_columns(layout, workspace + bytes)


# ---- results ----


cdef inline void apply_sample_row(const Job *job, const ColumnLayout *layout, const ColumnCoefficients *coeffs,
                                  bint backward, Py_ssize_t sample) noexcept nogil:
    """The result of a sample of one row."""
    cdef const char *x = job.x.data + sample * job.x.strides[0]
    cdef const char *dy = job.dy.data + sample * job.dy.strides[0] if backward else NULL
    cdef char *y = job.y.data + sample * job.y.strides[0]
    apply_row_block(job, layout, coeffs, backward, &x, &dy, NULL, &y, 1, layout.columns)


cdef int apply_samples(const Job *job, const ColumnLayout *layout, const ColumnSets *sets, Py_ssize_t first,
                       Py_ssize_t stop, bint backwards, int threads, bint backward) noexcept nogil:
    """The results of samples first .. stop; `backwards`: from the last to the first."""
    cdef Pass what = PASS_BACKWARD if backward else PASS_FORWARD
    cdef Py_ssize_t i, sample
    cdef ColumnCoefficients coeffs
    cdef double stack[STACK_DOUBLES]
    cdef char *workspace = <char *> workspace_alloc(2 * coefficient_bytes(layout), stack)
    if workspace == NULL:
        return -1
    for i in range(first, stop):
        sample = first + stop - 1 - i if backwards else i
        take_set(job, layout, sets, sample, what, workspace, &coeffs)
        if layout.rows == 1:
            apply_sample_row(job, layout, &coeffs, backward, sample)
        else:
            apply_sample(job, layout, &coeffs, sample, threads, backward)
    if layout.schedule.nontemporal:
        store_fence()
    workspace_free(workspace, stack)
    return 0


cdef int apply_sets(const Job *job, const ColumnLayout *layout, const ColumnSets *sets, bint by_sample,
                    bint backwards, bint backward) noexcept nogil:
    """The results of all samples."""
    cdef Py_ssize_t samples = job.shape[0], chunk, chunks, i, at
    cdef int failed = 0
    if not by_sample:
        return apply_samples(job, layout, sets, 0, samples, backwards, job.head.threads, backward)
    chunk = min_chunk(samples, job.head.threads)
    chunks = (samples + chunk - 1) // chunk
    for i in prange(chunks, num_threads=job.head.threads, schedule="guided"):
        at = (chunks - 1 - i if backwards else i) * chunk
        failed += apply_samples(job, layout, sets, at, min(at + chunk, samples), backwards, 1, backward)
    return -1 if failed else 0


cdef int columns_forward_sets(const Job *job, const ColumnLayout *layout, bint by_sample) noexcept nogil:
    """y of all samples. It begins with the last where their statistics were just taken: that one is in cache."""
    cdef ColumnSets sets
    cdef int failed
    if begin_sets(job, layout, NULL, PASS_FORWARD, &sets) < 0:
        return -1
    failed = apply_sets(job, layout, &sets, by_sample, job.read_before, False)
    free(sets.memory)
    return failed


# ---- sums ----


cdef void sample_row_sums(const Job *job, const ColumnLayout *layout, const ColumnCoefficients *coeffs,
                          Py_ssize_t sample, double *sums) noexcept nogil:
    """The sums (N_GRAD_SUMS, packed_columns) of a sample of one row."""
    cdef Py_ssize_t width = layout.packed_columns, block, first, n, k
    cdef const char *x
    cdef const char *dy
    cdef ColumnCoefficients block_coeffs
    for block in range(layout.column_blocks):
        first = column_block_begin(layout, block)
        n = min(column_block_size(layout, block), layout.columns - first)
        for k in range(N_GRAD_SUMS):
            memset(sums + k * width + first, 0, n * sizeof(double))
        x = job.x.data + sample * job.x.strides[0] + first * layout.loops.size
        dy = job.dy.data + sample * job.dy.strides[0] + first * layout.loops.size
        block_coeffs = coefficients_from(coeffs, first * layout.loops.acc_size)
        layout.loops.column_grad_sums(&x, &dy, 1, n, 1, &block_coeffs, job.activation, sums + first,
                                      sums + width + first, sums + 2 * width + first, sums + 3 * width + first, NULL)


cdef inline void write_gradient(const ColumnLayout *layout, const double *values, Py_ssize_t sample, void *final,
                                double *out) noexcept nogil:
    """The gradients of a sample's parameter: rounded to `final`, or, where that is NULL, in double."""
    if final != NULL:
        layout.loops.narrow(values, layout.columns,
                            <char *> final + sample * layout.columns * layout.loops.acc_size)
    else:
        memcpy(out + sample * layout.columns, values, layout.columns * sizeof(double))


cdef void sample_totals(const Job *job, const ColumnLayout *layout, const ColumnSets *sets, Py_ssize_t sample,
                        double *partials, double *sums) noexcept nogil:
    """The gradients of a sample's parameters, and its terms of the weighted sums (2, columns).

    partials: (N_GRAD_SUMS, packed_columns), the sums of the sample."""
    cdef Py_ssize_t j
    cdef double *gdev = partials + layout.packed_columns
    layout.loops.set_totals(partials, gdev, param_set_at(job.channels.set_weight, sample, job.channels.weight_step),
                            job.channels.wide_sets, sets.mean_lo, layout.columns, sums, sums + layout.columns)
    write_gradient(layout, partials, sample, job.channels.final_bias, job.channels.grad_bias)
    for j in range(layout.columns):
        gdev[j] *= job.rstd[j]
    write_gradient(layout, gdev, sample, job.channels.final_weight, job.channels.grad_weight)
    if has_slopes(job.activation):
        write_gradient(layout, partials + 3 * layout.packed_columns, sample, NULL, job.channels.grad_slope)


cdef inline bint row_grads_at_once(const Job *job, const ColumnLayout *layout) noexcept nogil:
    """Whether one loop makes the gradients of a sample's parameters."""
    return (layout.rows == 1 and job.activation == ACT_NONE and job.channels.final_weight != NULL
            and job.channels.final_bias != NULL)


cdef inline void sample_row_grads(const Job *job, const ColumnLayout *layout, const ColumnSets *sets,
                                  Py_ssize_t sample, double *sums) noexcept nogil:
    """`sample_row_sums` and `sample_totals` in one."""
    cdef Py_ssize_t bytes = layout.columns * layout.loops.acc_size
    layout.loops.set_row_grads(
        job.x.data + sample * job.x.strides[0], job.dy.data + sample * job.dy.strides[0], layout.columns, &sets.coeffs,
        param_set_at(job.channels.set_weight, sample, job.channels.weight_step), job.channels.wide_sets, job.rstd,
        sets.mean_lo, <char *> job.channels.final_weight + sample * bytes,
        <char *> job.channels.final_bias + sample * bytes, sums, sums + layout.columns)


cdef int sum_samples(const Job *job, const ColumnLayout *layout, const ColumnSets *sets, Py_ssize_t first,
                     Py_ssize_t stop, int threads, bint apply, double *sums, Py_ssize_t step) noexcept nogil:
    """The gradients of the parameters of samples first .. stop, whose terms are added to `sums`, which begin `step`
    doubles later for the next sample. apply: the gradient of the input as well, in the same pass."""
    cdef Pass what = PASS_BACKWARD if apply else PASS_SUMS
    cdef Py_ssize_t partial_doubles = N_GRAD_SUMS * layout.row_ranges * layout.packed_columns, sample
    cdef GradientTiming timing = gradient_timing(job, layout, apply)
    cdef bint gathered = not (rows_are_contiguous(job, &job.x) and rows_are_contiguous(job, &job.dy))
    cdef bint at_once = row_grads_at_once(job, layout)
    cdef ColumnCoefficients coeffs
    cdef double stack[STACK_DOUBLES]
    cdef double *partials = <double *> workspace_alloc(
        partial_doubles * sizeof(double) + 2 * coefficient_bytes(layout), stack)
    if partials == NULL:
        return -1
    for sample in range(first, stop):
        take_set(job, layout, sets, sample, what, <char *> (partials + partial_doubles), &coeffs)
        if at_once:
            sample_row_grads(job, layout, sets, sample, sums + sample * step)
        elif layout.rows == 1:
            sample_row_sums(job, layout, &coeffs, sample, partials)
        else:
            grad_sums_of_sample(job, layout, &coeffs, gathered, timing, sample, threads, partials)
        if apply and layout.rows == 1:
            apply_sample_row(job, layout, &coeffs, True, sample)
        if not at_once:
            sample_totals(job, layout, sets, sample, partials, sums + sample * step)
    if layout.schedule.nontemporal:
        store_fence()
    workspace_free(partials, stack)
    return 0


cdef int sum_sets(const Job *job, const ColumnLayout *layout, const ColumnSets *sets, bint by_sample, bint apply,
                  double *sums) noexcept nogil:
    """`sum_samples` of all samples; sums: (samples, 2, columns) if each thread takes some, else (2, columns)."""
    cdef Py_ssize_t samples = job.shape[0], chunk, chunks, i
    cdef int failed = 0
    if not by_sample:
        return sum_samples(job, layout, sets, 0, samples, job.head.threads, apply, sums, 0)
    chunk = min_chunk(samples, job.head.threads)
    chunks = (samples + chunk - 1) // chunk
    for i in prange(chunks, num_threads=job.head.threads, schedule="guided"):
        failed += sum_samples(job, layout, sets, i * chunk, min((i + 1) * chunk, samples), 1, apply, sums,
                              2 * layout.columns)
    return -1 if failed else 0


cdef int columns_backward_sets(const Job *job, const ColumnLayout *layout, bint by_sample) noexcept nogil:
    """The gradients of the parameters of each sample, and that of the input."""
    cdef Py_ssize_t columns = layout.columns, slots = job.shape[0] if by_sample else 1, i, j
    cdef ColumnSets sets
    cdef int failed = -1
    cdef double *pairs
    cdef double *sums = <double *> calloc((slots + 1) * 2 * columns, sizeof(double))
    if sums == NULL:
        return -1
    if begin_sets(job, layout, NULL, PASS_BACKWARD if job.stats_given else PASS_SUMS, &sets) == 0:
        failed = sum_sets(job, layout, &sets, by_sample, job.stats_given, sums)
        free(sets.memory)
    if not failed and not job.stats_given:
        for i in range(1, slots):
            for j in range(2 * columns):
                sums[j] += sums[i * 2 * columns + j]
        pairs = sums + slots * 2 * columns
        for j in range(columns):
            pairs[2 * j] = sums[j]
            pairs[2 * j + 1] = sums[columns + j]
        failed = begin_sets(job, layout, pairs, PASS_BACKWARD, &sets)
        if not failed:
            failed = apply_sets(job, layout, &sets, by_sample, True, True)
            free(sets.memory)
    free(sums)
    return failed
