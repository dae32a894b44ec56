# The machine's caches, and the sizes of the schedule that follow from them. tuning.h has the other constants.
from cnorm.kernels.tuning cimport PAGE_BYTES

cdef extern from "machine.h" nogil:
    ctypedef struct Machine:
        Py_ssize_t l1, l2, l3
        int force

    Machine MACHINE


cdef inline Py_ssize_t cached_traffic() noexcept nogil:
    """Bytes that a call may read and write and still find in cache when the next call begins: 5/8 of L3 (20 of
    32 MiB, measured on a Zen 4 and a Zen 5)."""
    return MACHINE.l3 // 8 * 5


cdef inline Py_ssize_t nontemporal_one_read() noexcept nogil:
    """Bytes of traffic from which on results are stored past the cache, where the input is read once, or twice while
    it is in cache: twice L3. Below that such stores were up to 2.5 times slower (Zen 5)."""
    return 2 * MACHINE.l3


cdef inline Py_ssize_t nontemporal_rows_grad() noexcept nogil:
    """The bound for gradients of rows, which are written a few rows at a time: 5/4 of L3."""
    return MACHINE.l3 // 4 * 5


cdef inline Py_ssize_t nontemporal_two_reads() noexcept nogil:
    """The bound where the input is read twice from end to end, or the segments of its units lie apart: L3."""
    return MACHINE.l3


cdef inline Py_ssize_t columns_from_memory() noexcept nogil:
    """Bytes of input from which on columns come from memory rather than from cache: a quarter of L3."""
    return MACHINE.l3 // 4


cdef inline Py_ssize_t row_pass_bytes() noexcept nogil:
    """Bytes of long rows of one pass: half of a 32 KiB L1, so that rows and results stay in it. A larger L1 gained
    nothing from more (Zen 5, 48 KiB)."""
    return min(MACHINE.l1 // 2, 1 << 14)


cdef inline Py_ssize_t row_pass_bytes_half() noexcept nogil:
    """Bytes of long rows of one pass, of half types: they are bound by arithmetic, so the second visit may find its
    rows in L2, and longer passes wait less often for sums that all rows of a pass need (Zen 4: 0.96 of the time for
    rows of 768)."""
    return min(MACHINE.l2 // 16, 1 << 16)


cdef inline Py_ssize_t row_pass_bytes_from_memory() noexcept nogil:
    """Bytes of rows of one pass where they come from memory: the next pass is prefetched while this one is stored. A
    page where L1 is larger than 32 KiB (Zen 5: 0.8 of the time of half a page), half a page elsewhere (Zen 4: a page
    takes up to three times as long)."""
    return PAGE_BYTES if MACHINE.l1 > 1 << 15 else PAGE_BYTES // 2


cdef inline Py_ssize_t batch_bytes() noexcept nogil:
    """Bytes read for a batch of units of several segments: a quarter of L2, since results take as much again."""
    return MACHINE.l2 // 4


cdef inline Py_ssize_t batch_bytes_cached() noexcept nogil:
    """Bytes read for a batch of single segments in cache: L1."""
    return MACHINE.l1


cdef inline Py_ssize_t grad_pass_bytes() noexcept nogil:
    """Bytes of x and dy of rows that are summed and then read again: they are in L1 the second time."""
    return MACHINE.l1


cdef inline Py_ssize_t window_bytes() noexcept nogil:
    """Bytes that a visit of the window family keeps: three quarters of L1."""
    return MACHINE.l1 // 4 * 3
