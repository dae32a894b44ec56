from cnorm.kernels.job cimport Kernels
from cnorm.kernels.tuning cimport PARALLEL_MIN_BYTES

cdef Kernels *kernels   # of the build in use; `_dispatch` chooses it before the first call

cdef int observing      # whether somebody explains a call, or wants a line a call: see _call/observe

cdef int allowed_threads() except -1
cdef int team_of(Py_ssize_t size) except -1


cdef inline int threads_for(Py_ssize_t size) except -1:
    """Threads for a call that reads `size` bytes."""
    return 1 if size < PARALLEL_MIN_BYTES else team_of(size)
