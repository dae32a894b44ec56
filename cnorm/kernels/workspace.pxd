from libc.stdlib cimport free, malloc
from cnorm.kernels.tuning cimport OWN


cdef inline void *room_for(Py_ssize_t size, double *own) noexcept nogil:
    """Memory of so many bytes: `own`, which holds OWN doubles, or more; NULL where there is none."""
    return own if size <= OWN * <Py_ssize_t> sizeof(double) else malloc(size)


cdef inline void give_back(void *room, const double *own) noexcept nogil:
    if room != own:
        free(room)


cdef inline Py_ssize_t up_to(Py_ssize_t n, Py_ssize_t multiple) noexcept nogil:
    return (n + multiple - 1) // multiple * multiple


cdef inline Py_ssize_t power_of_two(Py_ssize_t least, Py_ssize_t most) noexcept nogil:
    """The first that is as much as `least`, but not over `most`, which is one itself."""
    cdef Py_ssize_t n = 1
    while n < least and n < most:
        n *= 2
    return n
