# The loops of loops/*.h as Cython sees them. The C headers are the definition: what is declared here is checked
# against them by the C compiler wherever it is used.
from cnorm.kernels.job cimport Finish


cdef extern from "loops/table.h" nogil:
    ctypedef struct Coefficients:
        double mean_hi, mean_lo, scale, bias, dev_coeff, grad_offset, rstd, slope, low, high
        bint signs, nontemporal, apart
        Py_ssize_t prefetch_bytes, prefetch_segments
        const void *weights
        const void *biases
        const void *slopes

    ctypedef struct CoefficientArrays:
        bint shifted
        double low, high
        double *mean_hi
        double *scale
        double *bias
        double *slope
        double *dev_coeff
        double *grad_offset
        double *rstd

    ctypedef struct ColumnCoefficients:
        bint nontemporal, signs, shifted
        double low, high
        const void *mean_hi
        const void *scale
        const void *bias
        const void *dev_coeff
        const void *grad_offset
        const void *rstd
        const void *slope
        const void *row_weight
        const void *row_bias
        const void *row_slope
        Py_ssize_t prefetch_bytes

    enum:
        UNCENTRED
        CENTRED
        MAGNITUDES
        LARGEST

    enum:
        LANES_ALIGN
        ROWS_UNROLLED
        GRAD_ROWS_UNROLLED

    ctypedef struct RowBatch:
        const char *x
        char *y
        Py_ssize_t rows, x_stride, y_stride, n
        Finish finish
        bint centred, elementwise
        int activation
        const double *weight
        const double *bias
        const double *slopes
        Coefficients coeffs
        Py_ssize_t first_set_rows, set_rows, set_bytes
        double *mean      # arrays of ROW_BATCH_MAX
        double *lo
        double *m2
        double *rstd
        bint any_fallback
        unsigned char *needs_fallback

    ctypedef struct RowGradBlock:
        const char **x    # arrays of GRAD_BLOCK_ROWS
        const char **dy
        const char **addend
        char **dx
        Py_ssize_t rows, rows_per_pass, n, prefetch_bytes
        bint centred
        int activation
        bint add_to_grad, from_memory
        Coefficients coeffs
        const double *mean
        const double *rstd
        const double *row_slopes
        void **final
        double **sums

    ctypedef struct WindowTile:
        const char *x
        const char *dy
        char *y
        Py_ssize_t runs, n, x_stride, dy_stride, y_stride, workspace_stride, x_prefetch, dy_prefetch, y_prefetch
        const char **rows
        Py_ssize_t count
        const char *newest
        char *squares
        char *scale_pow
        char *grad_term
        double alpha, beta, k, slope, low, high
        const void *slopes
        int activation

    ctypedef struct CrossedBlock:
        const char **x    # arrays of CROSSED_ROWS_MAX
        const char **dy
        char **y
        Py_ssize_t rows, columns
        int activation
        double *share
        double scale, low, high
        double *row_hi
        double *row_lo
        double *row_variance
        double *row_offset
        double *row_coeff
        double **row_sums
        const void *column_hi
        const void *column_lo
        const void *column_variance
        const void *weight
        const void *bias
        const void *slope
        const void *column_offset
        const void *column_coeff

    ctypedef struct LoopTable:
        int size, acc_size, acc_dtype
        double (*rounded)(double) noexcept nogil
        void (*widen)(const char *, Py_ssize_t, void *) noexcept nogil
        void (*widen64)(const char *, Py_ssize_t, double *) noexcept nogil
        void (*narrow)(const double *, Py_ssize_t, void *) noexcept nogil
        void (*store64)(const double *, Py_ssize_t, char *) noexcept nogil
        void (*add)(const char *, const char *, char *, Py_ssize_t) noexcept nogil
        double (*probe)(const char *, Py_ssize_t) noexcept nogil
        void (*sums)(const char *, Py_ssize_t runs, Py_ssize_t stride, Py_ssize_t n, double shift, int terms,
                     Py_ssize_t prefetch_segments, double *out) noexcept nogil
        void (*apply)(const char *, char *, Py_ssize_t runs, Py_ssize_t x_stride, Py_ssize_t y_stride, Py_ssize_t n,
                      const Coefficients *, int activation) noexcept nogil
        void (*apply_batch)(const char *, char *, Py_ssize_t runs, Py_ssize_t x_stride, Py_ssize_t y_stride,
                            Py_ssize_t units, Py_ssize_t x_step, Py_ssize_t y_step, Py_ssize_t n,
                            const CoefficientArrays *, int activation) noexcept nogil
        void (*apply_elementwise)(const char *, char *, Py_ssize_t n, Py_ssize_t at, const Coefficients *,
                                  int activation) noexcept nogil
        void (*grad_sums)(const char *, const char *, Py_ssize_t runs, Py_ssize_t x_stride, Py_ssize_t dy_stride,
                          Py_ssize_t n, const Coefficients *, int activation, double *out) noexcept nogil
        void (*grad_sums_elementwise)(const char *, const char *, Py_ssize_t n, Py_ssize_t at, const Coefficients *,
                                      int activation, double *out) noexcept nogil
        void (*grad_sums_batch)(const char *, const char *, Py_ssize_t runs, Py_ssize_t x_stride,
                                Py_ssize_t dy_stride, Py_ssize_t units, Py_ssize_t x_step, Py_ssize_t dy_step,
                                Py_ssize_t n, const CoefficientArrays *, int activation, double *out) noexcept nogil
        void (*grad_apply)(const char *, const char *, char *, Py_ssize_t runs, Py_ssize_t x_stride,
                           Py_ssize_t dy_stride, Py_ssize_t dx_stride, Py_ssize_t n, const Coefficients *,
                           int activation) noexcept nogil
        void (*grad_apply_batch)(const char *, const char *, char *, Py_ssize_t runs, Py_ssize_t x_stride,
                                 Py_ssize_t dy_stride, Py_ssize_t dx_stride, Py_ssize_t units, Py_ssize_t x_step,
                                 Py_ssize_t dy_step, Py_ssize_t dx_step, Py_ssize_t n, const CoefficientArrays *,
                                 int activation) noexcept nogil
        void (*forward_rows)(RowBatch *) noexcept nogil
        void (*grad_rows)(RowGradBlock *, Py_ssize_t at, Py_ssize_t n, bint compute_sums, bint overwrite, double *dw,
                          double *db, double *dslope) noexcept nogil
        void (*column_probe)(const char **, Py_ssize_t rows, Py_ssize_t columns, void *shift) noexcept nogil
        void (*column_sums)(const char **, Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t rows_per_pass,
                            const void *shift, int terms, double *sum_d, double *sum_dd) noexcept nogil
        void (*column_apply)(const char **, char **, Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t rows_per_pass,
                             const ColumnCoefficients *, int activation) noexcept nogil
        void (*column_grad_sums)(const char **, const char **, Py_ssize_t rows, Py_ssize_t columns,
                                 Py_ssize_t rows_per_pass, const ColumnCoefficients *, int activation, double *sum_g,
                                 double *sum_gd, double *sum_d, double *sum_slope,
                                 double **row_sums) noexcept nogil
        void (*column_grad_apply)(const char **, const char **, const char **addend, char **, Py_ssize_t rows,
                                  Py_ssize_t columns, Py_ssize_t rows_per_pass, const ColumnCoefficients *,
                                  int activation) noexcept nogil
        void (*set_coefficients)(const void *weight, const void *bias, bint wide, const double *rstd,
                                 const double *mean_lo, Py_ssize_t n, void *scale, void *bias_out) noexcept nogil
        void (*set_totals)(const double *g, double *gd, const void *weight, bint wide, const double *mean_lo,
                           Py_ssize_t n, double *sum_g, double *sum_gdev) noexcept nogil
        void (*set_row_grads)(const char *x, const char *dy, Py_ssize_t n, const ColumnCoefficients *,
                              const void *weight, bint wide, const double *rstd, const double *mean_lo,
                              void *grad_weight, void *grad_bias, double *sum_g, double *sum_gdev) noexcept nogil
        void (*crossed_apply)(const CrossedBlock *) noexcept nogil
        void (*crossed_grad_sums)(CrossedBlock *, double **total) noexcept nogil
        void (*crossed_grad_apply)(const CrossedBlock *) noexcept nogil
        void (*window_squares)(const WindowTile *) noexcept nogil
        void (*window_apply)(const WindowTile *) noexcept nogil
        void (*window_prepare)(const WindowTile *) noexcept nogil
        void (*window_grad)(const WindowTile *) noexcept nogil

    const LoopTable *LOOPS_BY_DTYPE[15]   # DTYPES
    ctypedef void (*read_elements)(const char *x, Py_ssize_t stride, Py_ssize_t n, double *out) noexcept nogil
    const read_elements READ_BY_DTYPE[15]
    Py_ssize_t keep_selected(double *values, Py_ssize_t n, const char *mask, Py_ssize_t stride, bint omit_nan)
    void selected_column_probe(read_elements read, Py_ssize_t size, const char **x, const char **mask,
                               Py_ssize_t mask_stride, bint omit_nan, Py_ssize_t rows, Py_ssize_t columns,
                               double *shift)
    void selected_column_sums(read_elements read, Py_ssize_t size, const char **x, const char **mask,
                              Py_ssize_t mask_stride, bint omit_nan, Py_ssize_t rows, Py_ssize_t columns,
                              const double *shift, double *counts, double *sum_d, double *sum_dd)
    bint short_rows_moments(int dtype, const char *x, Py_ssize_t stride, Py_ssize_t rows, Py_ssize_t n, double *mean,
                            double *lo, double *m2, unsigned char *needs_fallback)
    ctypedef struct Change:
        bint inverse, clips, nontemporal
        double low, high
    ctypedef void (*change_elements)(const char *x, char *y, Py_ssize_t n, const double *mean, const double *lo,
                                     const double *scale, const Change *, bint each) noexcept nogil
    change_elements change_loop(int dtype, int out_dtype)
    void f64_f64_change(const char *x, char *y, Py_ssize_t n, const double *mean, const double *lo,
                        const double *scale, const Change *, bint each)
    void f64_f32w_change(const char *x, char *y, Py_ssize_t n, const double *mean, const double *lo,
                         const double *scale, const Change *, bint each)
    void scales_from_moments(const double *count, const double *m2, Py_ssize_t n, double ddof, double eps,
                             double *scale)
    void write_elements(int dtype, const double *v, Py_ssize_t n, char *y)
    void write_selected(int dtype, const double *v, Py_ssize_t n, const char *mask, Py_ssize_t mask_stride, char *y)
    void normalize_values(double *v, Py_ssize_t n, double max_value, double mean, double std, bint integers)
    void look_up_three(const unsigned char *x, Py_ssize_t n, const void *table, Py_ssize_t size, char *y,
                       Py_ssize_t y_stride, Py_ssize_t y_channel)
    void look_up(const unsigned char *x, Py_ssize_t x_stride, Py_ssize_t n, const void *table, Py_ssize_t size, char *y,
                 Py_ssize_t y_stride)
    void scatter(const char *values, Py_ssize_t n, Py_ssize_t size, char *y, Py_ssize_t stride)
    bint use_bfloat16_rounding(bint by_processor)
    unsigned enable_subnormals()
    void restore_subnormals(unsigned)
    void store_fence()


cdef extern from "loops/select.h" nogil:  # which describes them
    enum:
        SELECT_SLACK
    Py_ssize_t find_selected(const char *mask, Py_ssize_t n, Py_ssize_t *first, bint *one_run)
    Py_ssize_t pack_items(Py_ssize_t size, const char *x, Py_ssize_t stride, const char *mask, Py_ssize_t n, char *to)
    Py_ssize_t unpack_items(Py_ssize_t size, const char *items, const char *mask, Py_ssize_t n, char *y,
                            Py_ssize_t stride, bint zero, bint stream)
    void select_items(Py_ssize_t size, const char *values, const char *mask, Py_ssize_t n, char *y, bint zero,
                      bint stream)
    void copy_mask(const char *mask, Py_ssize_t stride, Py_ssize_t n, char *to)
    void prefetch_read(const char *p, Py_ssize_t n)
    void prefetch_write(const char *p, Py_ssize_t n)
    void zero_bytes(char *y, Py_ssize_t n, bint stream)
    void stream_end(const char *values, Py_ssize_t used, char *y, Py_ssize_t n)
    void zero_items(Py_ssize_t size, char *y, Py_ssize_t stride, Py_ssize_t n)
    void list_items(const char *mask, Py_ssize_t n, Py_ssize_t *items)
    Py_ssize_t items_until(int value, const char *mask, Py_ssize_t n)
    void add_selected_sums(Py_ssize_t acc_size, const void *sums, const char *mask, Py_ssize_t n, double *total)
    void add_to_selected(double *total, const double *sums, const char *mask, Py_ssize_t n)


cdef extern from "loops/turn.h" nogil:  # which describes them
    void turn_items(Py_ssize_t size, char *items, Py_ssize_t stride, Py_ssize_t n, Py_ssize_t columns, char *rows,
                    Py_ssize_t row_stride, bint back)
