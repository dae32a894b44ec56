"""New arrays, in memory of freed results where there is some of their size: see `_cache.py`."""

cimport numpy as cnp

cdef extern from "_recycle.h":
    object recycle_like(cnp.ndarray)
    object recycle_simple(int, int, const cnp.npy_intp *)
    int recycle_start() except -1
    void recycle_set_limit(size_t)
    void recycle_empty()
    void recycle_forked()
    size_t recycle_bytes()
    size_t recycle_limit

cnp.import_array()
recycle_start()


cdef cnp.ndarray empty_like(cnp.ndarray a):
    """A new array of the shape, dtype and, where `a` is dense, the memory order of `a`."""
    return <cnp.ndarray> recycle_like(a)


cdef cnp.ndarray new_array(int number, int ndim, const cnp.npy_intp *shape):
    """A new C-contiguous array of the native dtype that NumPy gives this number."""
    return <cnp.ndarray> recycle_simple(number, ndim, shape)


def kept():
    """Bytes kept for the next results, and their bound."""
    return recycle_bytes(), recycle_limit


def set_limit(size_t limit):
    """Set the bound, in bytes."""
    recycle_set_limit(limit)


def empty():
    """Free what is kept."""
    recycle_empty()


def forked():
    """In a forked child: the lock that another thread held at the fork is free."""
    recycle_forked()
