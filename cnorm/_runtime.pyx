"""What every call reads of the process: the kernels in use, and how many threads a call may have.

This module imports nothing of cnorm: `_dispatch` puts the kernels here, and `_threads` the limits.
"""

from cpython.pycapsule cimport PyCapsule_GetPointer

cdef extern from *:
    """
    #ifdef _OPENMP
    #include <omp.h>
    static int cnorm_openmp(void) { return 1; }
    #else
    static int omp_get_max_threads(void) { return 1; }
    static int omp_get_num_procs(void) { return 1; }
    static int cnorm_openmp(void) { return 0; }
    #endif
    #if defined(_MSC_VER) && !defined(__clang__)
    #define CNORM_THREAD_LOCAL __declspec(thread)
    #else
    #define CNORM_THREAD_LOCAL _Thread_local
    #endif
    static CNORM_THREAD_LOCAL int cnorm_override = 0;
    static int cnorm_get_override(void) { return cnorm_override; }
    static void cnorm_set_override(int n) { cnorm_override = n; }
    """
    int omp_get_max_threads() noexcept nogil
    int omp_get_num_procs() noexcept nogil
    int cnorm_openmp() noexcept nogil
    int cnorm_get_override() noexcept nogil
    void cnorm_set_override(int n) noexcept nogil

cdef int max_threads = 0      # of the process; 0: `default_threads` says, when it is first needed
cdef int openmp_default = 1   # what OpenMP allows until somebody limits it
cdef object default_threads
cdef bint serial_child = False


def use_kernels(table):
    """Take the kernels of another build: the capsule `table` of its module."""
    global kernels
    kernels = <Kernels *> PyCapsule_GetPointer(table, b"cnorm.kernels")


def start_threads(int number, int of_openmp, default):
    """The process's number, or 0 for what `default` will return, and OpenMP's, or 0 for its own."""
    global max_threads, openmp_default, default_threads
    max_threads = number
    openmp_default = of_openmp or omp_get_num_procs()
    default_threads = default


def set_threads(int n):
    """Threads of the process from now on."""
    global max_threads
    max_threads = n


def override_threads(int n):
    """Threads of this Python thread from now on (0: the process's number); returns what held before."""
    before = cnorm_get_override()
    cnorm_set_override(n)
    return before


def get_threads():
    """Threads that a large call of this Python thread may use."""
    return allowed_threads()


def has_openmp():
    """Whether cnorm was built with OpenMP."""
    return bool(cnorm_openmp())


def forked():
    """In a forked child GNU OpenMP must not start a parallel region."""
    global serial_child
    serial_child = True


cdef int allowed_threads() except -1:
    global max_threads
    cdef int n = cnorm_get_override(), limit
    if serial_child or not cnorm_openmp() or n == 0 and max_threads == 1:
        return 1
    if n == 0:
        if max_threads == 0:
            max_threads = default_threads()
        n = max_threads
    limit = omp_get_max_threads()
    if limit < openmp_default and limit < n:  # somebody (threadpoolctl) limited OpenMP
        n = limit
    return n
