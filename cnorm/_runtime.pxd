from cnorm.kernels.job cimport Kernels

cdef enum:
    GIL_RELEASE_MIN_BYTES = 1 << 14   # from here on a call lets other Python threads run
    PARALLEL_MIN_BYTES = 1 << 17      # from here on it uses threads itself: entering a parallel region must pay

cdef Kernels *kernels   # of the build in use; `_dispatch` chooses it before the first call

cdef int observing      # whether somebody explains a call, or wants a line a call: see _call/observe

cdef int allowed_threads() except -1
cdef int team_of(Py_ssize_t size) except -1


cdef inline int threads_for(Py_ssize_t size) except -1:
    """Threads for a call that reads `size` bytes."""
    return 1 if size < PARALLEL_MIN_BYTES else team_of(size)
