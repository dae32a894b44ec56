# Small helpers: workspace from the stack or the heap, and sizes that are rounded up.
from libc.stdlib cimport free, malloc

from cnorm.kernels.tuning cimport STACK_DOUBLES


cdef inline void *workspace_alloc(Py_ssize_t bytes, double *stack) noexcept nogil:
    """Workspace of so many bytes: `stack`, which holds STACK_DOUBLES doubles, or from the heap; NULL where memory
    ran out."""
    return stack if bytes <= STACK_DOUBLES * <Py_ssize_t> sizeof(double) else malloc(bytes)


cdef inline void workspace_free(void *workspace, const double *stack) noexcept nogil:
    if workspace != stack:
        free(workspace)


cdef inline Py_ssize_t round_up(Py_ssize_t n, Py_ssize_t multiple) noexcept nogil:
    return (n + multiple - 1) // multiple * multiple


cdef inline Py_ssize_t power_of_two(Py_ssize_t least, Py_ssize_t most) noexcept nogil:
    """The smallest power of two that is at least `least`, or `most`, itself a power of two, if that is less."""
    cdef Py_ssize_t n = 1
    while n < least and n < most:
        n *= 2
    return n
