from cnorm.kernels.job cimport Kernels
from cnorm.kernels.tuning cimport PARALLEL_MIN_BYTES

cdef extern from "_policy.h" nogil:
    enum:
        POLICY_SAMPLE

    ctypedef struct PolicyCall:   # one call, while it runs
        int threads, brief, reason
        long long started

    unsigned policy_tag(size_t kernel, int flags, const Py_ssize_t *shape)

cpdef enum:
    MAX_THREADS = 1024   # of one call

cdef Kernels *kernels   # of the build in use; `_dispatch` chooses it before the first call

cdef int observing      # whether somebody explains a call, or wants a line a call: see _call/observe

cdef int allowed_threads() except -1
cdef int team_of(Py_ssize_t size) except -1
cdef int begin_team(PolicyCall *call, unsigned kind, Py_ssize_t size, int wanted) noexcept nogil
cdef void end_team(PolicyCall *call) noexcept nogil
cdef int likely_team(Py_ssize_t size, int wanted) noexcept nogil


cdef inline int threads_for(Py_ssize_t size) except -1:
    """Threads that a call which reads `size` bytes may have. Where that is more than one, `begin_team` says how many
    it gets."""
    return 1 if size < PARALLEL_MIN_BYTES else team_of(size)


cdef class Lock:
    cdef object acquire
    cdef object release
