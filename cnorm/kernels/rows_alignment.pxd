# Rows: alignment of weight and bias.
#
# A vector load or store that crosses a cache line takes two accesses. The loops store the first elements of a
# row apart (loop peeling), so that all further stores to y begin at a cache line. Weight and bias are copied
# to where the loads that go with those stores cross no cache line either.
from libc.stdlib cimport malloc
from libc.string cimport memcpy

from cnorm.kernels.job cimport Job
from cnorm.kernels.loops cimport LANES_ALIGN
from cnorm.kernels.moments cimport UnitBlocks
from cnorm.kernels.tuning cimport (
    ALIGN_MIN_ELEMENTS, ALIGN_MIN_ELEMENTS_THREADED, ALIGN_MIN_ROWS, PEEL_MIN_VECTORS)
from cnorm.kernels.units cimport units_of


cdef inline bint is_aligned_at(const void *values, Py_ssize_t phase) noexcept nogil:
    """Whether the values begin `phase` bytes into a cache line, or are absent (NULL)."""
    return values == NULL or (<Py_ssize_t> values - phase) % LANES_ALIGN == 0


cdef inline const void *aligned_copy(const void *values, Py_ssize_t bytes, Py_ssize_t phase,
                                     char *workspace) noexcept nogil:
    """The values themselves where they begin `phase` bytes into a cache line, else a copy in the workspace
    that does.

    The workspace holds bytes + LANES_ALIGN."""
    if is_aligned_at(values, phase):
        return values
    workspace += (phase - <Py_ssize_t> workspace) & (LANES_ALIGN - 1)
    memcpy(workspace, values, bytes)
    return workspace


cdef inline Py_ssize_t parameter_phase(const Job *job, const UnitBlocks *blocks) noexcept nogil:
    """Bytes into a cache line at which weight and bias should begin.

    Elements are peeled where a row of y is long, and every row of y begins at one offset in a cache line. The
    first parameter after the peeled ones should begin a cache line."""
    cdef Py_ssize_t bytes = blocks.elements * blocks.loops.acc_size
    cdef Py_ssize_t widening = blocks.loops.acc_size // blocks.loops.size
    cdef Py_ssize_t peeled
    if bytes < PEEL_MIN_VECTORS * LANES_ALIGN or job.y.strides[1] % LANES_ALIGN != 0:
        return 0
    peeled = -<Py_ssize_t> job.y.data & (LANES_ALIGN - 1)  # bytes of y
    return (-widening * peeled) & (LANES_ALIGN - 1)


cdef inline void *align_parameters(Job *job, const UnitBlocks *blocks) noexcept nogil:
    """Let the job use aligned copies of weight and bias where there are rows enough to pay for the copies.

    Returns the workspace of the copies, to be freed after the job; NULL where there are none."""
    cdef Py_ssize_t rows = units_of(job), bytes = blocks.elements * blocks.loops.acc_size, phase
    cdef Py_ssize_t sets = job.elements.param_sets
    cdef Py_ssize_t least = ALIGN_MIN_ELEMENTS if job.head.threads == 1 else ALIGN_MIN_ELEMENTS_THREADED
    cdef char *workspace
    if job.elements.weight == NULL or rows < ALIGN_MIN_ROWS or rows * blocks.elements < least:
        return NULL
    if sets > 1:  # an aligned first set is an aligned copy of all, where a set is whole cache lines
        if bytes % LANES_ALIGN or rows < ALIGN_MIN_ROWS * sets:
            return NULL
        bytes *= sets
    phase = parameter_phase(job, blocks)
    if is_aligned_at(job.elements.weight, phase) and is_aligned_at(job.elements.bias, phase):
        return NULL
    workspace = <char *> malloc(2 * (bytes + LANES_ALIGN))
    if workspace != NULL:
        job.elements.weight = aligned_copy(job.elements.weight, bytes, phase, workspace)
        job.elements.bias = aligned_copy(job.elements.bias, bytes, phase, workspace + bytes + LANES_ALIGN)
    return workspace
