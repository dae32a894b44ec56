"""What every call reads of the process: the kernels in use, and how many threads a call may have.

This module imports nothing of cnorm: `_dispatch` puts the kernels here, and `_threads` the limits.
"""

from threading import RLock

from cpython.pycapsule cimport PyCapsule_GetPointer

from cnorm.kernels.tuning cimport PARALLEL_MIN_BYTES

cdef extern from "_team.h":
    int omp_get_max_threads() noexcept nogil
    int omp_get_num_procs() noexcept nogil
    int team_openmp() noexcept nogil
    int team_get_override() noexcept nogil
    void team_set_override(int n) noexcept nogil
    int team_get_size() noexcept nogil
    int team_for(int n, size_t stack) noexcept nogil

cdef int max_threads = 0      # of the process; 0: `default_threads` says, when it is first needed
cdef int openmp_default = 1   # what OpenMP allows until somebody limits it
cdef object default_threads
cdef object learn_caches = None   # until it was called
cdef bint serial = False      # whatever is asked for: in a forked child, and where stacks are too small
cdef size_t thread_stack = 0  # bytes of an OpenMP thread; 0: the system's default


def use_kernels(table, learn):
    """Take the kernels of another build: the capsule `table` of its module. `learn` tells them this machine's
    caches, before the first call that may use threads."""
    global kernels, learn_caches
    learn_caches = learn
    kernels = <Kernels *> PyCapsule_GetPointer(table, b"cnorm.kernels")


def start_threads(int number, int of_openmp, default, size_t stack, bint alone):
    """The process's number, or 0 for what `default` will return; OpenMP's, or 0 for its own; the stack of
    its threads in bytes, or 0 for the system's; and whether every call is to run on its caller's alone."""
    global max_threads, openmp_default, default_threads, thread_stack, serial
    max_threads = number
    openmp_default = of_openmp or omp_get_num_procs()
    default_threads = default
    thread_stack = stack
    serial = alone


def set_threads(int n):
    """Threads of the process from now on."""
    global max_threads
    max_threads = n


def override_threads(int n):
    """Threads of this Python thread from now on (0: the process's number); returns what held before."""
    before = team_get_override()
    team_set_override(n)
    return before


def get_threads():
    """Threads that a large call of this Python thread may use."""
    return allowed_threads()


def has_openmp():
    """Whether cnorm was built with OpenMP."""
    return bool(team_openmp())


def forked():
    """In a forked child GNU OpenMP must not start a parallel region."""
    global serial
    serial = True


cdef int allowed_threads() except -1:
    global max_threads
    cdef int n = team_get_override(), limit
    if serial or not team_openmp() or n == 0 and max_threads == 1:
        return 1
    if n == 0:
        if max_threads == 0:
            max_threads = default_threads()
        n = max_threads
    limit = omp_get_max_threads()
    if limit < openmp_default and limit < n:  # somebody (threadpoolctl) limited OpenMP
        n = limit
    return n


cdef int team_of(Py_ssize_t size) except -1:
    """Threads for a call that reads `size` bytes, PARALLEL_MIN_BYTES or more. Each thread that is started must pay.
    Those that the call before has left waiting take part even in a small call: to end them and start them again would
    cost more."""
    global learn_caches
    cdef Py_ssize_t worth = size // (PARALLEL_MIN_BYTES // 2), n
    if learn_caches is not None:
        learn, learn_caches = learn_caches, None
        learn()
    n = allowed_threads()
    if n == 1:
        return 1
    return team_for(<int> min(n, max(worth, <Py_ssize_t> team_get_size())), thread_stack)


cdef class Lock:
    """Runs functions one at a time: of one thread, which may run another from within, not of two.

    It is taken and released here, in compiled code, where no signal handler can run. In Python an interrupt
    may come between the call that takes a lock and the `try` that releases it, since 3.14 in a `with` too,
    whose `__enter__` is a call like any other; the lock then stays taken, and other threads wait for ever.
    For the same reason nothing here takes the lock and returns.
    """

    cdef object acquire
    cdef object release

    def __cinit__(self):
        lock = RLock()
        self.acquire, self.release = lock.acquire, lock.release

    def run(self, function, *args):
        """What the function returns."""
        self.acquire()  # an interrupt while it waits raises, and the lock is not taken
        try:
            return function(*args)
        finally:
            self.release()
