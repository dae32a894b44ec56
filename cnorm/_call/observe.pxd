from cnorm.kernels.job cimport Job, WindowJob, norm_kernel, window_kernel
from cnorm._runtime cimport policy_tag

cdef int observe_norm(norm_kernel kernel, Job *job, Py_ssize_t size) except? -2
cdef int observe_window(window_kernel kernel, WindowJob *job, Py_ssize_t size) except? -2
cdef int note(str text) except -1


# ---- the kind of a call, for the policy of threads ----

cdef inline unsigned kind_of_norm(norm_kernel kernel, const Job *job) noexcept nogil:
    return policy_tag(<size_t> <void *> kernel, job.dtype + 4 * job.stats_given + 8 * job.channels.sums_mode,
                      job.shape)


cdef inline unsigned kind_of_window(window_kernel kernel, const WindowJob *job) noexcept nogil:
    return policy_tag(<size_t> <void *> kernel, job.dtype + 4 * job.channels_last, job.shape)
