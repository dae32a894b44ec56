# Standardize: (x - mean) * rstd of any dtype into any float dtype, over any axes, in double; and the inverse.
#
# a) Axes are in the order of memory. The innermost is a run: all of one unit, or each element of the next unit.
# b) Elements are converted to double, changed, clipped, and rounded once to the dtype of y, so the result is that of
#    float64 arithmetic. Frequent pairs of dtypes have loops of their own (change_loop); of others a chunk is converted
#    in L1 before and after.
# c) Short runs that lie end to end are joined. Where each element of a run is of the next unit, their coefficients are
#    spread out, one per element of a chunk.
# d) Statistics of x itself: of some units at a time, which are still in L2 when they are standardized, where that fits;
#    else those of all units, then all results.
from cython.parallel cimport prange

from cnorm.kernels.job cimport (
    FLOAT32, FLOAT64, TWO_SWEEPS, UNIT_BATCHES, Axes, MomentsJob, Schedule, StandardizeJob)
from cnorm.kernels.loops cimport (
    LOOPS_BY_DTYPE, READ_BY_DTYPE, Change, change_elements, change_loop, f64_f32w_change, f64_f64_change,
    scales_from_moments, store_fence, write_elements, write_selected)
from cnorm.kernels.schedule cimport indices_per_visit, min_chunk, schedule_standardize
from cnorm.kernels.tuning cimport STANDARDIZE_CHUNK, STANDARDIZE_ITEM, STANDARDIZE_SHORT_RUN


cdef struct Spread:
    # Statistics of the elements of a chunk, one per element.
    double mean[STANDARDIZE_CHUNK]
    double lo[STANDARDIZE_CHUNK]
    double scale[STANDARDIZE_CHUNK]


cdef struct Runs:
    # How the elements are cut. `length` elements of a run, of which `joined` lie end to end; runs are counted along the
    # axes outside.
    int outer            # axes outside
    Py_ssize_t runs, length, joined
    Py_ssize_t x_stride, y_stride, mask_stride     # from element to element
    Py_ssize_t unit_stride                         # from element to element of a run that is not joined: 0 or 1
    Py_ssize_t unit_step                           # from one joined run to the next
    Py_ssize_t x_size, y_size
    Py_ssize_t together                            # joined runs whose statistics are spread out together
    Py_ssize_t pieces, piece                       # of a run, if it is long: how many, of how many elements
    Py_ssize_t runs_per_item
    change_elements loop                           # of the dtypes, or NULL
    Change change


cdef inline Runs cut_runs(const StandardizeJob *job) noexcept nogil:
    cdef const Axes *axes = &job.axes
    cdef Runs cut
    cdef int last = axes.count - 1, i
    cdef Py_ssize_t n
    cut.x_size = LOOPS_BY_DTYPE[job.head.dtype].size
    cut.y_size = LOOPS_BY_DTYPE[job.out_dtype].size
    cut.outer = max(last, 0)
    cut.length = 1
    cut.joined = 1
    cut.x_stride = cut.x_size
    cut.y_stride = cut.y_size
    cut.mask_stride = 0
    cut.unit_stride = 0
    cut.unit_step = 0
    if last >= 0:
        cut.length = axes.shape[last]
        cut.x_stride = axes.x[last]
        cut.y_stride = axes.y[last]
        cut.mask_stride = axes.mask[last]
        cut.unit_stride = axes.unit[last]
    n = cut.length
    if last >= 1 and n < STANDARDIZE_SHORT_RUN and axes.x[last - 1] == n * axes.x[last] and (
            axes.y[last - 1] == n * axes.y[last] and axes.mask[last - 1] == n * axes.mask[last]):
        cut.outer = last - 1
        cut.joined = axes.shape[last - 1]
        cut.unit_step = axes.unit[last - 1]
    cut.runs = 1
    for i in range(cut.outer):
        cut.runs *= axes.shape[i]
    # a power of two of them, so that chunks are whole cache lines more often
    cut.together = 1
    while 2 * cut.together * cut.length <= STANDARDIZE_CHUNK and cut.together < cut.joined:
        cut.together *= 2
    # a piece is whole chunks of joined runs, or a part of one run
    n = cut.length * cut.together if cut.joined > 1 else 1
    cut.piece = max(n, STANDARDIZE_ITEM // n * n)
    cut.loop = NULL
    if job.mask == NULL and cut.x_stride == cut.x_size:
        cut.loop = change_loop(job.head.dtype, job.out_dtype)
    cut.change.inverse = job.inverse
    cut.change.clips = job.clips
    cut.change.low = job.low
    cut.change.high = job.high
    cut.change.nontemporal = False
    cut.pieces = (cut.length * cut.joined + cut.piece - 1) // cut.piece
    cut.runs_per_item = max(<Py_ssize_t> 1, STANDARDIZE_ITEM // (cut.length * cut.joined))
    return cut


cdef inline void spread_statistics(const StandardizeJob *job, const Runs *cut, Py_ssize_t unit, Py_ssize_t runs,
                                   Spread *spread) noexcept nogil:
    """Statistics of the elements of some joined runs, from the first unit of the first."""
    cdef Py_ssize_t run, i, u, at = 0
    for run in range(runs):
        for i in range(cut.length):
            u = unit + i * cut.unit_stride
            spread.mean[at] = job.mean[u]
            spread.lo[at] = job.lo[u]
            spread.scale[at] = job.scale[u]
            at += 1
        unit += cut.unit_step


cdef inline void change_run(const StandardizeJob *job, const Runs *cut, const char *x, char *y, const char *mask,
                            Py_ssize_t n, const double *mean, const double *lo, const double *scale,
                            bint each) noexcept nogil:
    """y of n elements, STANDARDIZE_CHUNK at most where the dtypes have no loop of their own: of one unit, or (each)
    with the statistics of a unit per element."""
    cdef double values[STANDARDIZE_CHUNK]
    if cut.loop != NULL:
        cut.loop(x, y, n, mean, lo, scale, &cut.change, each)
        return
    READ_BY_DTYPE[job.head.dtype](x, cut.x_stride, n, values)
    if mask == NULL and job.out_dtype == FLOAT32:
        f64_f32w_change(<const char *> values, y, n, mean, lo, scale, &cut.change, each)
    elif mask == NULL and job.out_dtype == FLOAT64:
        f64_f64_change(<const char *> values, y, n, mean, lo, scale, &cut.change, each)
    else:
        f64_f64_change(<const char *> values, <char *> values, n, mean, lo, scale, &cut.change, each)
        if mask != NULL:
            write_selected(job.out_dtype, values, n, mask, cut.mask_stride, y)
        else:
            write_elements(job.out_dtype, values, n, y)


cdef inline void change_chunk(const StandardizeJob *job, const Runs *cut, const char *x, char *y, const char *mask,
                              Py_ssize_t runs, Py_ssize_t unit) noexcept nogil:
    """y of some joined runs, each of one unit."""
    cdef Py_ssize_t i
    for i in range(runs):
        change_run(job, cut, x, y, mask, cut.length, job.mean + unit, job.lo + unit, job.scale + unit, False)
        x += cut.length * cut.x_stride
        y += cut.length * cut.y_stride
        if mask != NULL:
            mask += cut.length * cut.mask_stride
        unit += cut.unit_step


cdef inline void change_piece(const StandardizeJob *job, const Runs *cut, Py_ssize_t run, Py_ssize_t first,
                              Spread *spread) noexcept nogil:
    """y of one piece of a run, from its element `first` on."""
    cdef const Axes *axes = &job.axes
    cdef const char *x = job.x + first * cut.x_stride
    cdef const char *mask = job.mask + first * cut.mask_stride if job.mask != NULL else NULL
    cdef char *y = job.y + first * cut.y_stride
    cdef Py_ssize_t unit = 0, n = min(cut.piece, cut.length * cut.joined - first), chunk, runs, i, k, rest, spreads = -1
    for i in range(cut.outer - 1, -1, -1):
        rest = run // axes.shape[i]
        k = run - rest * axes.shape[i]
        x += k * axes.x[i]
        y += k * axes.y[i]
        if mask != NULL:
            mask += k * axes.mask[i]
        unit += k * axes.unit[i]
        run = rest
    if cut.joined > 1:
        unit += first // cut.length * cut.unit_step
    else:
        unit += first * cut.unit_stride
    while n > 0:
        if cut.joined > 1:
            runs = min(cut.together, n // cut.length)
            chunk = runs * cut.length
            if cut.unit_stride == 0:
                change_chunk(job, cut, x, y, mask, runs, unit)
            else:
                if cut.unit_step != 0 or spreads < runs:
                    spread_statistics(job, cut, unit, runs, spread)
                    spreads = runs
                change_run(job, cut, x, y, mask, chunk, spread.mean, spread.lo, spread.scale, True)
            unit += runs * cut.unit_step
        else:
            chunk = n if cut.loop != NULL else min(<Py_ssize_t> STANDARDIZE_CHUNK, n)
            change_run(job, cut, x, y, mask, chunk, job.mean + unit, job.lo + unit, job.scale + unit, cut.unit_stride)
            unit += chunk * cut.unit_stride
        x += chunk * cut.x_stride
        y += chunk * cut.y_stride
        if mask != NULL:
            mask += chunk * cut.mask_stride
        n -= chunk


cdef void change_item(const StandardizeJob *job, const Runs *cut, Py_ssize_t item) noexcept nogil:
    """Some short runs, or one piece of a long one."""
    cdef Spread spread
    cdef Py_ssize_t run, first
    if cut.pieces > 1:
        run = item // cut.pieces
        change_piece(job, cut, run, (item - run * cut.pieces) * cut.piece, &spread)
    else:
        first = item * cut.runs_per_item
        for run in range(first, min(first + cut.runs_per_item, cut.runs)):
            change_piece(job, cut, run, 0, &spread)
    if cut.change.nontemporal:
        store_fence()


cdef int standardize_given(StandardizeJob *job) noexcept nogil:
    """y = (x - mean - lo) * scale, or its inverse."""
    cdef Runs cut = cut_runs(job)
    cdef Py_ssize_t items = cut.runs * cut.pieces, run = cut.length * cut.joined, i
    cdef Schedule schedule
    if cut.pieces == 1:
        items = (cut.runs + cut.runs_per_item - 1) // cut.runs_per_item
    schedule = schedule_standardize(job, items, run * cut.y_size, cut.runs * run * (cut.x_size + cut.y_size))
    if job.head.schedule_only != NULL:
        job.head.schedule_only[0] = schedule
        return 0
    cut.change.nontemporal = schedule.nontemporal
    if job.head.threads == 1:
        for i in range(items):
            change_item(job, &cut, i)
    else:
        for i in prange(items, num_threads=job.head.threads, schedule="guided",
                        chunksize=min_chunk(items, job.head.threads)):
            change_item(job, &cut, i)
    return 0


# ---- with statistics of x itself ----


cdef int measure_units(StandardizeJob *job) noexcept nogil:
    """The moments of x, and the scales."""
    cdef MomentsJob *measure = job.measure
    cdef int failed = selected_columns_moments(measure) if job.by_columns else sequences_moments(measure)
    if failed == 0:
        scales_from_moments(measure.count, measure.m2, measure.units, job.ddof, job.eps, <double *> job.scale)
    return failed


cdef int visit_units(const StandardizeJob *job, Py_ssize_t first, Py_ssize_t n) noexcept nogil:
    """Measure and standardize n indices of the outermost kept axis."""
    cdef StandardizeJob part = job[0]
    cdef MomentsJob measure = job.measure[0]
    cdef Py_ssize_t step = measure.units // measure.kept.shape[0], unit = first * step
    cdef int axis = job.outer_axis
    measure.head.threads = 1
    measure.units = n * step
    measure.x += first * measure.kept.x[0]
    measure.kept.shape[0] = n
    measure.count += unit
    measure.mean += unit
    measure.lo += unit
    measure.m2 += unit
    part.measure = &measure
    part.head.threads = 1
    part.x += first * part.axes.x[axis]
    part.y += first * part.axes.y[axis]
    part.axes.shape[axis] = n
    part.mean += unit
    part.lo += unit
    part.scale += unit
    return measure_units(&part) or standardize_given(&part)


cdef int standardize_forward(StandardizeJob *job) noexcept nogil:
    """y, with the statistics that are given, or with those of x."""
    cdef Py_ssize_t visit = indices_per_visit(job) if job.measure != NULL else 0, size, items, i
    cdef Schedule *schedule_only = job.head.schedule_only
    cdef int failed = 0
    if visit == 0:
        if job.measure != NULL and schedule_only == NULL:
            job.measure.head.threads = job.head.threads
            failed = measure_units(job)
        if job.measure != NULL:
            job.read_before = True
        if failed == 0:
            failed = standardize_given(job)
        if job.measure != NULL and schedule_only != NULL:
            schedule_only.strategy = TWO_SWEEPS
        return failed
    size = job.measure.kept.shape[0]
    items = (size + visit - 1) // visit
    job.call_bytes = job.measure.units * job.measure.elements * (
        LOOPS_BY_DTYPE[job.head.dtype].size + LOOPS_BY_DTYPE[job.out_dtype].size)
    if schedule_only != NULL:
        standardize_given(job)  # how results are stored
        schedule_only.strategy = UNIT_BATCHES
        schedule_only.items = items
        schedule_only.units_per_batch = visit * (job.measure.units // size)
        return 0
    if job.head.threads == 1:
        for i in range(items):
            failed += visit_units(job, i * visit, min(visit, size - i * visit))
    else:
        for i in prange(items, num_threads=job.head.threads, schedule="guided",
                        chunksize=min_chunk(items, job.head.threads)):
            failed += visit_units(job, i * visit, min(visit, size - i * visit))  # summed over the threads
    return -1 if failed else 0
