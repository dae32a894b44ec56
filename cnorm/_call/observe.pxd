from cnorm.kernels.job cimport (
    ImageJob, Job, MomentsJob, StandardizeJob, WindowJob, image_kernel, moments_kernel, norm_kernel, standardize_kernel,
    window_kernel)
from cnorm._runtime cimport policy_tag

cdef int observe_norm(norm_kernel kernel, Job *job, Py_ssize_t size) except? -2
cdef int observe_window(window_kernel kernel, WindowJob *job, Py_ssize_t size) except? -2
cdef int observe_moments(moments_kernel kernel, MomentsJob *job, Py_ssize_t size) except? -2
cdef int observe_standardize(standardize_kernel kernel, StandardizeJob *job, Py_ssize_t size) except? -2
cdef int observe_image(image_kernel kernel, ImageJob *job, Py_ssize_t size) except? -2
cdef int note(str text) except -1


# ---- the kind of a call, for the policy of threads ----

cdef inline unsigned kind_of_norm(norm_kernel kernel, const Job *job) noexcept nogil:
    return policy_tag(<size_t> <void *> kernel, job.dtype + 4 * job.stats_given + 8 * job.channels.sums_mode,
                      job.shape)


cdef inline unsigned kind_of_window(window_kernel kernel, const WindowJob *job) noexcept nogil:
    return policy_tag(<size_t> <void *> kernel, job.dtype + 4 * job.channels_last, job.shape)


cdef inline unsigned kind_of_moments(moments_kernel kernel, const MomentsJob *job) noexcept nogil:
    cdef Py_ssize_t shape[5]
    shape[0] = job.units
    shape[1] = job.elements
    shape[2] = job.kept.count
    shape[3] = job.reduced.count
    shape[4] = 0
    return policy_tag(<size_t> <void *> kernel, job.dtype + 16 * (job.mask != NULL) + 32 * job.omit_nan, shape)


cdef inline unsigned kind_of_standardize(standardize_kernel kernel, const StandardizeJob *job) noexcept nogil:
    cdef Py_ssize_t shape[5]
    cdef int i
    for i in range(5):
        shape[i] = job.axes.shape[i] if i < job.axes.count else 0
    return policy_tag(<size_t> <void *> kernel, job.dtype + 16 * (job.mask != NULL) + 32 * job.out_dtype, shape)


cdef inline unsigned kind_of_image(image_kernel kernel, const ImageJob *job) noexcept nogil:
    cdef Py_ssize_t shape[5]
    cdef int i
    for i in range(4):
        shape[i] = job.shape[i]
    shape[4] = job.table != NULL
    return policy_tag(<size_t> <void *> kernel, job.dtype + 16 * job.out_dtype, shape)
