"""What every call reads of the process: the kernels in use, and how many threads a call may have and gets.

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
    int team_get_fixed() noexcept nogil
    void team_set_fixed(int fixed) noexcept nogil
    int team_get_default() noexcept nogil
    void team_set_default(int n, long long lasts) noexcept nogil
    int team_get_size() noexcept nogil
    long long team_get_region() noexcept nogil
    long long team_clock() noexcept nogil
    int team_for(int n, size_t stack) noexcept nogil
    int team_can_brief() noexcept nogil
    int team_gathers() noexcept nogil
    void team_wait(int brief, int size, size_t stack) noexcept nogil

cdef extern from "_policy.h" nogil:
    ctypedef struct PolicyClass:
        int level, failures, trying
        long long balance, rest

    ctypedef struct Policy:
        int can_brief, brief, brief_failures
        long long brief_rest

    void policy_reset(Policy *p, int can_brief)
    PolicyClass *policy_class(Policy *p, long long size)
    void policy_choose(Policy *p, PolicyCall *call, unsigned tag, long long size, int wanted)
    int policy_likely(Policy *p, long long size, int wanted)
    unsigned long long policy_calls(Policy *p)
    unsigned long long policy_fewer(Policy *p)
    int policy_brief(Policy *p)
    void policy_note(Policy *p, const PolicyCall *call, long long elapsed)

cdef enum:
    REGION_NS = 2000      # of a region without work, for which PARALLEL_MIN_BYTES was measured
    REGION_TIMES = 8      # a slower region asks for so many times that work, at most

cdef long long DEFAULT_LASTS = 2_000_000_000   # ns: the default is looked up again afterwards

cdef int max_threads = 0      # of the process; 0: `default_threads` says
cdef int openmp_default = 1   # what OpenMP allows until somebody limits it
cdef object default_threads
cdef object learn_caches = None   # until it was called
cdef bint serial = False      # whatever is asked for: in a forked child, and where stacks are too small
cdef bint fixed = False       # whether calls get all threads that they may have, in this process
cdef size_t thread_stack = 0  # bytes of an OpenMP thread; 0: the system's default
cdef Policy policy            # of this process


def use_kernels(table, learn):
    """Take the kernels of another build: the capsule `table` of its module. `learn` tells them this machine's
    caches, before the first call that may use threads."""
    global kernels, learn_caches
    learn_caches = learn
    kernels = <Kernels *> PyCapsule_GetPointer(table, b"cnorm.kernels")


def start_threads(int number, int of_openmp, default, size_t stack, bint alone, bint as_asked,
                  bint waits_as_told):
    """The process's number, or 0 for what `default` returns; OpenMP's, or 0 for its own; the stack of its threads in
    bytes, or 0 for the system's; whether every call is to run on its caller's thread alone; whether calls get all
    threads that they may have, however busy the machine is; and whether the user has said how threads wait."""
    global max_threads, openmp_default, default_threads, thread_stack, serial, fixed
    max_threads = number
    openmp_default = of_openmp or omp_get_num_procs()
    default_threads = default
    thread_stack = stack
    serial = alone
    fixed = as_asked
    policy_reset(&policy, team_can_brief() and not waits_as_told)


def set_threads(int n):
    """Threads of the process from now on."""
    global max_threads
    max_threads = n


def set_fixed(bint as_asked):
    """Whether calls get all threads that they may have, in this process."""
    global fixed
    fixed = as_asked


def get_override():
    """What `override_threads` was told in this Python thread; (0, -1): nothing."""
    return team_get_override(), team_get_fixed()


def override_threads(int n, int as_asked):
    """Threads of this Python thread from now on (0: the process's number), and whether its calls get all of them (-1:
    as the process has it)."""
    team_set_override(n)
    team_set_fixed(as_asked)


def get_threads():
    """Threads that a large call of this Python thread may use."""
    team_set_default(0, 0)  # who asks gets no old answer
    return allowed_threads()


def get_fixed():
    """Whether calls of this Python thread get all threads that they may have."""
    return bool(as_asked())


def count_calls():
    """Calls since the process began that might have had a team, those of them that got fewer threads than that, and
    whether threads wait briefly for each other now."""
    return policy_calls(&policy), policy_fewer(&policy), bool(policy_brief(&policy))


def has_openmp():
    """Whether cnorm was built with OpenMP."""
    return bool(team_openmp())


def forked():
    """In a forked child GNU OpenMP must not start a parallel region."""
    global serial
    serial = True


cdef int allowed_threads() except -1:
    cdef int n = team_get_override(), limit
    if serial or not team_openmp() or n == 0 and max_threads == 1:
        return 1
    if n == 0:
        n = max_threads
    if n == 0:  # seldom looked up, by each Python thread: the processors that it may use may differ
        n = team_get_default()
        if n == 0:
            n = default_threads()
            team_set_default(n, DEFAULT_LASTS)
    limit = omp_get_max_threads()
    if limit < openmp_default and limit < n:  # somebody (threadpoolctl) limited OpenMP
        n = limit
    return n


cdef int team_of(Py_ssize_t size) except -1:
    """Threads that a call which reads `size` bytes, PARALLEL_MIN_BYTES or more, may have. Each thread that is started
    must pay. Those that the call before has left waiting take part even in a small call: to end them and start them
    again would cost more."""
    global learn_caches
    cdef Py_ssize_t share = PARALLEL_MIN_BYTES // 2, n
    if learn_caches is not None:
        learn, learn_caches = learn_caches, None
        learn()
    n = allowed_threads()
    if n == 1:
        return 1
    if not as_asked() and team_get_region() > REGION_NS:  # a team costs more here
        share = share * min(team_get_region(), REGION_NS * REGION_TIMES) // REGION_NS
    if size < 2 * share:
        return 1
    return <int> min(n, max(size // share, <Py_ssize_t> team_get_size()))


cdef inline bint as_asked() noexcept nogil:
    """Whether a call of this Python thread gets all threads that it may have."""
    cdef int here = team_get_fixed()
    return fixed if here < 0 else here


cdef int begin_team(PolicyCall *call, unsigned kind, Py_ssize_t size, int wanted) noexcept nogil:
    """Threads for a call of a `kind` (`policy_tag`) that may have `wanted`, and the team for them. `end_team` follows
    as soon as it is done."""
    cdef int n
    cdef long long now
    call.reason = 0
    call.started = 0
    if wanted == 1:
        return 1
    if as_asked():
        team_wait(False, wanted, thread_stack)
        return team_for(wanted, thread_stack)
    policy_choose(&policy, call, kind, size, wanted)
    if call.threads > 1:
        team_wait(call.brief, call.threads, thread_stack)
    now = team_clock()
    n = team_for(call.threads, thread_stack)
    if n == call.threads:  # else there are no more to be had, which says nothing about time
        call.started = now
    return n


cdef void end_team(PolicyCall *call) noexcept nogil:
    """Take note of what a call took."""
    if call.started:
        policy_note(&policy, call, team_clock() - call.started)


cdef int likely_team(Py_ssize_t size, int wanted) noexcept nogil:
    """Threads that `begin_team` would give a call now. Nothing changes."""
    return wanted if wanted == 1 or as_asked() else policy_likely(&policy, size, wanted)


cdef class Chosen:
    """A call that `ThreadPolicy` was asked for."""
    cdef PolicyCall call

    @property
    def threads(self):
        return self.call.threads

    @property
    def brief(self):
        """Whether its threads are to wait briefly for each other."""
        return bool(self.call.brief)


cdef class ThreadPolicy:
    """A policy by itself, or with `of_process` that of this process, fed with times that its caller makes up: for
    tests."""
    cdef Policy own
    cdef Policy *policy

    def __cinit__(self, bint can_brief=True, bint of_process=False):
        policy_reset(&self.own, can_brief)
        self.policy = &policy if of_process else &self.own

    def choose(self, unsigned kind, long long size, int wanted):
        """A call that may have `wanted` threads, two or more. A kind is an odd number."""
        cdef Chosen chosen = Chosen()
        policy_choose(self.policy, &chosen.call, kind, size, wanted)
        return chosen

    def likely(self, long long size, int wanted):
        """Threads that such a call would get."""
        return policy_likely(self.policy, size, wanted)

    def note(self, Chosen chosen, long long elapsed):
        """It took so many nanoseconds."""
        policy_note(self.policy, &chosen.call, elapsed)

    def state(self, long long size):
        """The state of the class of calls of a size, and of the process."""
        cdef PolicyClass *c = policy_class(self.policy, size)
        return {"level": c.level, "failures": c.failures, "trying": bool(c.trying), "balance": c.balance,
                "rest": c.rest, "brief": bool(self.policy.brief), "brief_rest": self.policy.brief_rest,
                "brief_failures": self.policy.brief_failures}

    def counts(self):
        """Calls, and those that got fewer threads than they might have had."""
        return policy_calls(self.policy), policy_fewer(self.policy)

    def reset(self):
        """Forget everything."""
        policy_reset(self.policy, self.policy.can_brief)


def wait_briefly(bint brief, int size):
    """Let the threads of teams of `size` wait briefly, or as they did; whether a thread of ours is what it takes. For
    tests."""
    team_wait(brief, size, thread_stack)
    return bool(team_gathers())


cdef class Lock:
    """Runs functions one at a time: of one thread, which may run another from within, not of two.

    It is taken and released here, in compiled code, where no signal handler can run. In Python an interrupt
    may come between the call that takes a lock and the `try` that releases it, since 3.14 in a `with` too,
    whose `__enter__` is a call like any other; the lock then stays taken, and other threads wait for ever.
    For the same reason nothing takes the lock and returns to Python; compiled functions may take and release it.
    """

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
