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


cdef extern from "lanes.h" nogil:
    unsigned lanes_enter() noexcept
    void lanes_leave(unsigned) noexcept
    void stream_end() noexcept
