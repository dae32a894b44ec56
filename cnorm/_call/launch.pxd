# Running a kernel on a job: whether somebody watches, the GIL, and the team of threads.
from cnorm cimport _runtime
from cnorm._call.observe cimport observe
from cnorm._runtime cimport PolicyCall, begin_team, end_team, kernels, policy_tag
from cnorm.kernels.job cimport (
    CROSSED_BACKWARD, MASKED, SELECTED_COLUMNS_MOMENTS, STANDARDIZE_FORWARD, WINDOW_BACKWARD, ImageJob, Job, JobHead,
    Kernel, MaskedJob, MomentsJob, StandardizeJob, WindowJob)
from cnorm.kernels.tuning cimport GIL_RELEASE_MIN_BYTES


cdef inline unsigned kind_of(Kernel kernel, const JobHead *head) noexcept nogil:
    """The kind of a call, for the policy of threads: calls of a kind should take about as long."""
    cdef const MomentsJob *moments
    cdef const StandardizeJob *standardize
    cdef const ImageJob *image
    cdef const MaskedJob *masked
    cdef Py_ssize_t shape[5]
    cdef int i
    if kernel <= CROSSED_BACKWARD:
        return policy_tag(kernel, head.dtype + 4 * (<const Job *> head).stats_given +
                          8 * (<const Job *> head).channels.sums_mode, (<const Job *> head).shape)
    if kernel <= WINDOW_BACKWARD:
        return policy_tag(kernel, head.dtype + 4 * (<const WindowJob *> head).channels_last,
                          (<const WindowJob *> head).shape)
    if kernel <= SELECTED_COLUMNS_MOMENTS:
        moments = <const MomentsJob *> head
        shape = [moments.units, moments.elements, moments.kept.count, moments.reduced.count, 0]
        return policy_tag(kernel, head.dtype + 16 * (moments.mask != NULL) + 32 * moments.omit_nan, shape)
    if kernel == STANDARDIZE_FORWARD:
        standardize = <const StandardizeJob *> head
        for i in range(5):
            shape[i] = standardize.axes.shape[i] if i < standardize.axes.count else 0
        return policy_tag(kernel, head.dtype + 16 * (standardize.mask != NULL) + 32 * standardize.out_dtype, shape)
    if kernel == MASKED:
        masked = <const MaskedJob *> head
        shape = [masked.kernel, masked.unit.size, masked.part.size, masked.segment.size, masked.length]
        return policy_tag(kernel, head.dtype, shape)
    image = <const ImageJob *> head
    shape = [image.shape[0], image.shape[1], image.shape[2], image.shape[3], image.table != NULL]
    return policy_tag(kernel, head.dtype + 16 * image.out_dtype, shape)


cdef inline int launch(Kernel kernel, JobHead *job, Py_ssize_t size, str what) except -1:
    """Run a kernel that takes as long as a norm of `size` bytes; `what` it allocates. It holds the GIL where it takes
    less time than a switch of threads."""
    cdef int failed
    cdef PolicyCall call
    if _runtime.observing:
        failed = observe(kernel, job, size, kind_of(kernel, job))
    elif size < GIL_RELEASE_MIN_BYTES:
        failed = kernels.run(kernel, job)
    elif job.threads == 1:
        with nogil:
            failed = kernels.run(kernel, job)
    else:
        with nogil:
            job.threads = begin_team(&call, kind_of(kernel, job), size, job.threads)
            failed = kernels.run(kernel, job)
            end_team(&call)
    if failed:
        raise MemoryError(f"cnorm could not allocate the {what} of this call")
    return 0
