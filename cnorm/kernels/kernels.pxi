# One source for every build: the shims _baseline.pyx, _avx2.pyx and _avx512.pyx include it.
from cython.parallel cimport prange, threadid
from cpython.pycapsule cimport PyCapsule_New
from libc.math cimport sqrt
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from cnorm.kernels.jobs cimport Kernels, Moments, Norm, View, Window

cdef extern from "tiles.h" nogil:
    ctypedef struct Affine:
        double hi, lo, scale, bias, p, q, r, rstd, slope
        int stream
        Py_ssize_t ahead, reach
        const void *weight
        const void *shift
        const void *slopes

    ctypedef struct BandAffine:
        int shifted
        double *hi
        double *scale
        double *bias
        double *slope
        double *q
        double *r
        double *rstd

    ctypedef struct ColumnAffine:
        int stream, shifted
        const void *hi
        const void *scale
        const void *bias
        const void *p
        const void *q
        const void *r
        const void *rstd
        const void *slope

    enum:
        TILE
        ROWS_TOGETHER
        SUMMED
        BAND
        LANES_ALIGN
        LED_LANES
        ABREAST
        GRAD_ABREAST

    double first_part(double mean, double rounded, double rstd, double eps)
    bint far_from_mean(double count, double first, double second)

    ctypedef struct RowJob:
        const char *x
        char *y
        Py_ssize_t rows, x_stride, y_stride, n
        double eps, tiny
        int centred, vector, activation
        const double *weight
        const double *bias
        const double *slopes
        Affine affine
        double mean[16]
        double lo[16]
        double m2[16]
        double rstd[16]
        int any_again
        unsigned char again[16]

    ctypedef struct GradRows:
        const char *x[64]
        const char *dy[64]
        const char *plus[64]
        char *dx[64]
        Py_ssize_t rows, together, n, ahead
        int centred, activation, added, far
        void *final[3]
        Affine affine
        const double *mean
        const double *rstd
        const double *row_slope
        double sums[4][64]

    ctypedef struct WindowTile:
        const char *x
        const char *dy
        char *y
        Py_ssize_t runs, n, x_stride, dy_stride, y_stride, kept_stride, x_ahead, dy_ahead, y_ahead
        const char **rows
        Py_ssize_t count
        const char *fresh
        char *squares
        char *power
        char *shared
        double alpha, beta, k, slope
        const void *slopes
        int activation

    ctypedef struct Tile:
        int size, wide, accumulator
        double (*rounded)(double) noexcept nogil
        void (*widen)(const char *, Py_ssize_t, void *) noexcept nogil
        void (*widen64)(const char *, Py_ssize_t, double *) noexcept nogil
        double (*head)(const char *, Py_ssize_t) noexcept nogil
        void (*sums)(const char *, Py_ssize_t, Py_ssize_t, Py_ssize_t, double, int, Py_ssize_t,
                     double *) noexcept nogil
        void (*apply)(const char *, char *, Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t,
                      const Affine *, int) noexcept nogil
        void (*apply_band)(const char *, char *, Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t,
                           Py_ssize_t, Py_ssize_t, const BandAffine *, int) noexcept nogil
        void (*forward_rows)(RowJob *) noexcept nogil
        void (*apply_vector)(const char *, char *, Py_ssize_t, Py_ssize_t, const Affine *,
                             int) noexcept nogil
        void (*grad_sums)(const char *, const char *, Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t,
                          const Affine *, int, double *) noexcept nogil
        void (*grad_sums_vector)(const char *, const char *, Py_ssize_t, Py_ssize_t, const Affine *,
                                 int, double *) noexcept nogil
        void (*grad_apply)(const char *, const char *, char *, Py_ssize_t, Py_ssize_t, Py_ssize_t,
                           Py_ssize_t, Py_ssize_t, const Affine *, int) noexcept nogil
        void (*grad_apply_band)(const char *, const char *, char *, Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t,
                                Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t,
                                const BandAffine *, int) noexcept nogil
        void (*grad_sums_band)(const char *, const char *, Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t,
                               Py_ssize_t, Py_ssize_t, Py_ssize_t, const BandAffine *, int,
                               double *) noexcept nogil
        void (*grad_rows)(GradRows *, Py_ssize_t, Py_ssize_t, int, int, double *, double *,
                          double *) noexcept nogil
        void (*add)(const char *, const char *, char *, Py_ssize_t) noexcept nogil
        void (*narrow)(const double *, Py_ssize_t, void *) noexcept nogil
        void (*store64)(const double *, Py_ssize_t, char *) noexcept nogil
        void (*column_head)(const char **, Py_ssize_t, Py_ssize_t, void *) noexcept nogil
        void (*column_sums)(const char **, Py_ssize_t, Py_ssize_t, Py_ssize_t, const void *, double *,
                            double *) noexcept nogil
        void (*column_apply)(const char **, char **, Py_ssize_t, Py_ssize_t, Py_ssize_t, const ColumnAffine *,
                             int) noexcept nogil
        void (*column_grad_sums)(const char **, const char **, Py_ssize_t, Py_ssize_t, Py_ssize_t,
                                 const ColumnAffine *, int, double *, double *, double *,
                                 double *) noexcept nogil
        void (*column_grad_apply)(const char **, const char **, char **, Py_ssize_t, Py_ssize_t,
                                  Py_ssize_t, const ColumnAffine *, int) noexcept nogil
        void (*window_squares)(const WindowTile *) noexcept nogil
        void (*window_apply)(const WindowTile *) noexcept nogil
        void (*window_prepare)(const WindowTile *) noexcept nogil
        void (*window_grad)(const WindowTile *) noexcept nogil

    const Tile *TILES[4]
    bint tiles_round(bint by_processor)

cdef enum:
    OWN = 1024   # doubles of its stack that a kernel takes before it allocates


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


include "moments.pxi"
include "coefficients.pxi"
include "units.pxi"
include "columns.pxi"
include "window.pxi"

cdef extern from "lanes.h" nogil:
    unsigned lanes_enter() noexcept
    void lanes_leave(unsigned) noexcept
    void stream_end() noexcept

# What the table offers: the kernels, entered with subnormals counting.

cdef int enter_units_moments(Norm *job) noexcept nogil:
    cdef unsigned before = lanes_enter()
    cdef int failed = units_moments(job)
    lanes_leave(before)
    return failed


cdef int enter_units_forward(Norm *job) noexcept nogil:
    cdef unsigned before = lanes_enter()
    cdef int failed = units_forward(job)
    lanes_leave(before)
    return failed


cdef int enter_units_backward(Norm *job) noexcept nogil:
    cdef unsigned before = lanes_enter()
    cdef int failed = units_backward(job)
    lanes_leave(before)
    return failed


cdef int enter_columns_moments(Norm *job) noexcept nogil:
    cdef unsigned before = lanes_enter()
    cdef int failed = columns_moments(job)
    lanes_leave(before)
    return failed


cdef int enter_columns_forward(Norm *job) noexcept nogil:
    cdef unsigned before = lanes_enter()
    cdef int failed = columns_forward(job)
    lanes_leave(before)
    return failed


cdef int enter_columns_backward(Norm *job) noexcept nogil:
    cdef unsigned before = lanes_enter()
    cdef int failed = columns_backward(job)
    lanes_leave(before)
    return failed


cdef int enter_window_forward(Window *job) noexcept nogil:
    cdef unsigned before = lanes_enter()
    cdef int failed = window_forward(job)
    lanes_leave(before)
    return failed


cdef int enter_window_backward(Window *job) noexcept nogil:
    cdef unsigned before = lanes_enter()
    cdef int failed = window_backward(job)
    lanes_leave(before)
    return failed


cdef void enter_widen(int storage, const char *values, Py_ssize_t n, void *out) noexcept nogil:
    cdef unsigned before = lanes_enter()
    TILES[storage].widen(values, n, out)
    lanes_leave(before)


cdef void enter_widen64(int storage, const char *values, Py_ssize_t n, double *out) noexcept nogil:
    cdef unsigned before = lanes_enter()
    TILES[storage].widen64(values, n, out)
    lanes_leave(before)


cdef void enter_narrow(int storage, const double *values, Py_ssize_t n, char *out) noexcept nogil:
    cdef unsigned before = lanes_enter()
    TILES[storage].store64(values, n, out)
    lanes_leave(before)


cdef void enter_deviations(double *values, Py_ssize_t n, double eps) noexcept nogil:
    cdef unsigned before = lanes_enter()
    cdef Py_ssize_t i
    for i in range(n):
        values[i] = 1 / sqrt(values[i] + eps)
    lanes_leave(before)


cdef Kernels _kernels
_kernels.units_moments = enter_units_moments
_kernels.units_forward = enter_units_forward
_kernels.units_backward = enter_units_backward
_kernels.columns_moments = enter_columns_moments
_kernels.columns_forward = enter_columns_forward
_kernels.columns_backward = enter_columns_backward
_kernels.window_forward = enter_window_forward
_kernels.window_backward = enter_window_backward
_kernels.widen = enter_widen
_kernels.widen64 = enter_widen64
_kernels.narrow = enter_narrow
_kernels.deviations = enter_deviations

table = PyCapsule_New(&_kernels, b"cnorm.kernels", NULL)


def round_bfloat16(bint by_processor):
    """Let the processor round bfloat16, or do it in integers: the same bits, for tests. Returns which holds
    from now on: not every processor can."""
    return tiles_round(by_processor)


round_bfloat16(True)
