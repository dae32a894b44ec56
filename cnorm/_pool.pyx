"""New arrays, in memory of freed results where there is some of their size: see `_cache.py`."""

cimport numpy as cnp

cdef extern from "_pool.h":
    object pool_empty_like(cnp.ndarray)
    object pool_empty(int, int, const cnp.npy_intp *)
    int pool_init() except -1
    void pool_set_limit(size_t)
    void pool_clear()
    void pool_after_fork()
    size_t pool_bytes()
    size_t pool_limit

cnp.import_array()
pool_init()


cdef cnp.ndarray empty_like(cnp.ndarray a):
    """A new array of the shape, dtype and, where `a` is dense, the memory order of `a`."""
    return <cnp.ndarray> pool_empty_like(a)


cdef cnp.ndarray new_array(int number, int ndim, const cnp.npy_intp *shape):
    """A new C-contiguous array of the native dtype that NumPy gives this number."""
    return <cnp.ndarray> pool_empty(number, ndim, shape)


def kept():
    """Bytes kept for the next results, and their bound."""
    return pool_bytes(), pool_limit


def set_limit(size_t limit):
    """Set the bound, in bytes."""
    pool_set_limit(limit)


def empty():
    """Free what is kept."""
    pool_clear()


def forked():
    """In a forked child: the lock that another thread held at the fork is free."""
    pool_after_fork()
