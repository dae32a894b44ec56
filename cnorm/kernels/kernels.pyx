# The kernels of one build: the shims _baseline.pyx, _avx2.pyx and _avx512.pyx include this file.
from cpython.pycapsule cimport PyCapsule_New

from cnorm.kernels.job cimport (
    ImageJob, Job, Kernels, MomentsJob, StandardizeJob, WindowJob, image_kernel, moments_kernel, norm_kernel,
    standardize_kernel, window_kernel)
from cnorm.kernels.loops cimport LOOPS_BY_DTYPE, enable_subnormals, restore_subnormals, use_bfloat16_rounding
from cnorm.kernels.machine cimport MACHINE
from cnorm.kernels.statistics cimport rstd_from_variance

include "rows.pyx"
include "rows_backward.pyx"
include "segments.pyx"
include "segments_backward.pyx"
include "columns.pyx"
include "columns_backward.pyx"
include "crossed.pyx"
include "window.pyx"
include "sequences.pyx"
include "columns_selected.pyx"
include "standardize.pyx"
include "image.pyx"


# ---- what the table offers ----
# Other libraries leave "flush to zero" set in the threads that call us. enable_subnormals lets subnormals count
# while a kernel runs, restore_subnormals restores what was set.


cdef int run_norm(norm_kernel kernel, Job *job) noexcept nogil:
    """Run a kernel; 0, or -1 where memory ran out."""
    cdef unsigned before = enable_subnormals()
    cdef int failed = kernel(job)
    restore_subnormals(before)
    return failed


cdef int run_window(window_kernel kernel, WindowJob *job) noexcept nogil:
    """Run a kernel of the window family; 0, or -1 where memory ran out."""
    cdef unsigned before = enable_subnormals()
    cdef int failed = kernel(job)
    restore_subnormals(before)
    return failed


cdef int run_moments(moments_kernel kernel, MomentsJob *job) noexcept nogil:
    """Run a kernel of moments in double; 0, or -1 where memory ran out."""
    cdef unsigned before = enable_subnormals()
    cdef int failed = kernel(job)
    restore_subnormals(before)
    return failed


cdef int run_standardize(standardize_kernel kernel, StandardizeJob *job) noexcept nogil:
    """Run a kernel of standardize; 0, or -1 where memory ran out."""
    cdef unsigned before = enable_subnormals()
    cdef int failed = kernel(job)
    restore_subnormals(before)
    return failed


cdef int run_image(image_kernel kernel, ImageJob *job) noexcept nogil:
    """Run a kernel of images; 0."""
    cdef unsigned before = enable_subnormals()
    cdef int failed = kernel(job)
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
_kernels.rows_forward = rows_forward
_kernels.rows_backward = rows_backward
_kernels.segments_moments = segments_moments
_kernels.segments_forward = segments_forward
_kernels.segments_backward = segments_backward
_kernels.columns_moments = columns_moments
_kernels.columns_forward = columns_forward
_kernels.columns_backward = columns_backward
_kernels.crossed_forward = crossed_forward
_kernels.crossed_backward = crossed_backward
_kernels.window_forward = window_forward
_kernels.window_backward = window_backward
_kernels.sequences_moments = sequences_moments
_kernels.selected_columns_moments = selected_columns_moments
_kernels.standardize_forward = standardize_forward
_kernels.image_forward = image_forward
_kernels.run_moments = run_moments
_kernels.run_standardize = run_standardize
_kernels.run_image = run_image
_kernels.run_norm = run_norm
_kernels.run_window = run_window
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
