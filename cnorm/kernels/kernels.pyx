# The kernels of one build: the shims _baseline.pyx, _avx2.pyx and _avx512.pyx include this file.
from cpython.pycapsule cimport PyCapsule_New

from cnorm.kernels.job cimport (
    COLUMNS_BACKWARD, COLUMNS_FORWARD, COLUMNS_MOMENTS, CROSSED_BACKWARD, CROSSED_FORWARD, IMAGE_FORWARD, KERNELS,
    MASKED, ROWS_BACKWARD, ROWS_FORWARD, SEGMENTS_BACKWARD, SEGMENTS_FORWARD, SEGMENTS_MOMENTS,
    SELECTED_COLUMNS_MOMENTS, SEQUENCES_MOMENTS, STANDARDIZE_FORWARD, WINDOW_BACKWARD, WINDOW_FORWARD, JobHead, Kernel, Kernels)
from cnorm.kernels.loops cimport LOOPS_BY_DTYPE, enable_subnormals, restore_subnormals, use_bfloat16_rounding
from cnorm.kernels.machine cimport MACHINE
from cnorm.kernels.statistics cimport rstd_from_variance

ctypedef int (*kernel_function)(JobHead *) noexcept nogil

cdef kernel_function[KERNELS] FUNCTIONS   # filled in below; a masked call runs others by it

include "rows.pyx"
include "rows_backward.pyx"
include "segments.pyx"
include "segments_backward.pyx"
include "columns.pyx"
include "columns_backward.pyx"
include "columns_sets.pyx"
include "crossed.pyx"
include "window.pyx"
include "sequences.pyx"
include "columns_selected.pyx"
include "standardize.pyx"
include "image.pyx"
include "masked_rows.pyx"
include "masked.pyx"


# ---- what the table offers ----
# Other libraries leave "flush to zero" set in the threads that call us. enable_subnormals lets subnormals count
# while a kernel runs, restore_subnormals restores what was set.


# Here alone a kernel, which takes a pointer to its own kind of job, becomes one that takes a pointer to the head of
# that job.
FUNCTIONS[ROWS_FORWARD] = <kernel_function> rows_forward
FUNCTIONS[ROWS_BACKWARD] = <kernel_function> rows_backward
FUNCTIONS[SEGMENTS_MOMENTS] = <kernel_function> segments_moments
FUNCTIONS[SEGMENTS_FORWARD] = <kernel_function> segments_forward
FUNCTIONS[SEGMENTS_BACKWARD] = <kernel_function> segments_backward
FUNCTIONS[COLUMNS_MOMENTS] = <kernel_function> columns_moments
FUNCTIONS[COLUMNS_FORWARD] = <kernel_function> columns_forward
FUNCTIONS[COLUMNS_BACKWARD] = <kernel_function> columns_backward
FUNCTIONS[CROSSED_FORWARD] = <kernel_function> crossed_forward
FUNCTIONS[CROSSED_BACKWARD] = <kernel_function> crossed_backward
FUNCTIONS[WINDOW_FORWARD] = <kernel_function> window_forward
FUNCTIONS[WINDOW_BACKWARD] = <kernel_function> window_backward
FUNCTIONS[SEQUENCES_MOMENTS] = <kernel_function> sequences_moments
FUNCTIONS[SELECTED_COLUMNS_MOMENTS] = <kernel_function> selected_columns_moments
FUNCTIONS[STANDARDIZE_FORWARD] = <kernel_function> standardize_forward
FUNCTIONS[IMAGE_FORWARD] = <kernel_function> image_forward
FUNCTIONS[MASKED] = <kernel_function> masked_pieces


cdef int run(Kernel kernel, JobHead *job) noexcept nogil:
    """Run a kernel; 0, or -1 where memory ran out."""
    cdef unsigned before = enable_subnormals()
    cdef int failed = FUNCTIONS[kernel](job)
    restore_subnormals(before)
    return failed


cdef void widen(int dtype, const char *values, Py_ssize_t n, void *out) noexcept nogil:
    """n values of a dtype, as values of its accumulation type."""
    cdef unsigned before = enable_subnormals()
    LOOPS_BY_DTYPE[dtype].widen(values, n, out)
    restore_subnormals(before)


cdef void widen64(int dtype, const char *values, Py_ssize_t n, double *out) noexcept nogil:
    """n values of a dtype, as float64."""
    cdef unsigned before = enable_subnormals()
    LOOPS_BY_DTYPE[dtype].widen64(values, n, out)
    restore_subnormals(before)


cdef void narrow(int dtype, const double *values, Py_ssize_t n, char *out) noexcept nogil:
    """n values of float64, rounded once to a dtype."""
    cdef unsigned before = enable_subnormals()
    LOOPS_BY_DTYPE[dtype].store64(values, n, out)
    restore_subnormals(before)


cdef void rstds(double *values, Py_ssize_t n, double eps) noexcept nogil:
    """Turn n variances into 1 / sqrt(variance + eps), in place."""
    cdef unsigned before = enable_subnormals()
    cdef Py_ssize_t i
    for i in range(n):
        values[i] = rstd_from_variance(values[i], eps)
    restore_subnormals(before)


cdef Kernels _kernels
_kernels.run = run
_kernels.widen = widen
_kernels.widen64 = widen64
_kernels.narrow = narrow
_kernels.rstds = rstds

table = PyCapsule_New(&_kernels, b"cnorm.kernels", NULL)


def set_machine(Py_ssize_t l1, Py_ssize_t l2, Py_ssize_t l3):
    """Tell the schedule the sizes of the caches in bytes: L1 and L2 of a core, and the shared L3. Returns those that
    held before."""
    before = MACHINE.l1, MACHINE.l2, MACHINE.l3
    MACHINE.l1 = l1
    MACHINE.l2 = l2
    MACHINE.l3 = l3
    return before


def force_strategy(int strategy):
    """Take this Strategy (job.pxd) wherever it applies; 0: the schedule chooses. For tests."""
    MACHINE.force = strategy


def round_bfloat16(bint by_processor):
    """Let the processor round bfloat16, or round in integer arithmetic; both give equal bits, as tests check.

    Returns whether the processor rounds from now on: not every processor can."""
    return use_bfloat16_rounding(by_processor)


round_bfloat16(True)
