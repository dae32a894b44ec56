/* The loops: what a kernel does to a tile, or to rows given by their addresses.
 *
 * The algorithms in the .pyx and .pxd files are compiled once and know no dtype. They call the loops of a dtype through
 * its LoopTable, with addresses, counts of elements and strides in bytes. loops/common.h holds one text of each loop
 * and is included at the end of this file once per dtype.
 *
 * Vocabulary:
 *   storage type        the dtype of the arrays
 *   accumulation type   what loops compute in: double for float64, else float. Parameters are converted to it.
 *   run                 n contiguous elements
 *   tile                `runs` runs, `stride` bytes apart; at most a few thousand elements where a sum is taken
 *   unit, segment       what shares its statistics; a part of a unit that shares a weight (docs/architecture.md)
 *   d, dev              x - shift or x - mean_hi; x - mean
 *   g                   the gradient of the normalized value: dy after the backward of the activation, times the weight
 *                       in sums that are elementwise
 */
#ifndef CNORM_LOOPS_TABLE_H
#define CNORM_LOOPS_TABLE_H

#include "enums.h"
#include "simd/lanes.h"
#include "statistics.h"
#include "tuning.h"

/* How x is centred. UNCENTRED: not at all (root mean square). CENTRED: |mean| is at most the standard deviation; sums
 * are taken about 0, which loses about one bit, and mean_lo alone is subtracted. SHIFTED: sums are taken about a shift,
 * and x - mean is (x - mean_hi) - mean_lo (see mean_hi_part in statistics.h).
 * Norms take other terms: sums of squares UNCENTRED, of |x| (MAGNITUDES), or the largest |x| (LARGEST) in the place of
 * the sum of squares. Backward of the last two (SIGNS), d is the sign of x where |x| >= mean_hi, else 0, and sums of d*d
 * and of g*x take the place of those of g and of g*d. */
enum { UNCENTRED, CENTRED, SHIFTED, MAGNITUDES, LARGEST, SIGNS };

/* How a result is stored. STORE_NONTEMPORAL: past the cache, which is left to the input. STORE_PREFETCHED: with plain
 * stores, while the run that is `prefetch_segments` further on is prefetched for writing. */
enum { STORE_PLAIN, STORE_NONTEMPORAL, STORE_PREFETCHED };

/* What is applied to a unit or, through the pointers, to each element of a row (statistics.h has the formulas):
 *   forward    y  = ((x - mean_hi) - mean_lo) * scale + bias        mean_lo is part of bias where weights is NULL
 *   backward   dx = (g * scale - grad_offset) - (x - mean_hi) * rstd * dev_coeff     g = dy after the activation
 * With weights: scale * weights[i] for scale, biases[i] for bias. */
typedef struct {
    double mean_hi, mean_lo, scale, bias;
    double dev_coeff, grad_offset, rstd;
    double slope;
    double low, high;                      /* bounds of the result with ACT_CLIP, NaN where a side is open */
    const void *weights, *biases, *slopes; /* per element, of the accumulation type, or NULL */
    int signs;                             /* backward: SIGNS */
    int nontemporal;                       /* non-temporal stores, if the run is long enough */
    int apart;                             /* units lie apart: then a shorter run is long enough */
    ptrdiff_t prefetch_bytes;              /* with nontemporal: prefetch distance of the input */
    ptrdiff_t prefetch_segments;           /* prefetch distance in runs where runs are not contiguous, else 0 */
} Coefficients;

/* Coefficients of a batch of units or segments that lie side by side: each an array over them. */
typedef struct {
    int shifted;      /* whether some mean_hi is not 0 */
    double low, high; /* as in Coefficients */
    double *mean_hi, *scale, *bias, *slope, *dev_coeff, *grad_offset, *rstd;
} CoefficientArrays;

/* Coefficients of columns: each an array over the columns, of the accumulation type; and, where each row has a weight of
 * its own, parameters of the rows of a call, of the accumulation type. Then xhat = (x - mean_hi) * scale + bias, and the
 * normalized value is xhat * row_weight + row_bias. */
typedef struct {
    int nontemporal;
    int signs;        /* backward: SIGNS */
    int shifted;      /* whether some mean_hi is not 0 */
    double low, high; /* as in Coefficients */
    const void *mean_hi, *scale, *bias, *dev_coeff, *grad_offset, *rstd, *slope;
    const void *row_weight, *row_bias; /* or NULL */
    const void *row_slope;             /* or NULL: the slope of each column */
    ptrdiff_t prefetch_bytes;          /* prefetch distance of contiguous rows, or 0 */
} ColumnCoefficients;

/* A batch of whole rows, each of one tile: the arguments of forward_rows, and the statistics that it computes. */
typedef struct {
    const char *x;
    char *y;                              /* NULL: the statistics alone */
    ptrdiff_t rows, x_stride, y_stride, n;
    Finish finish;
    int centred, elementwise, activation; /* elementwise: parameters per element, in coeffs */
    const double *weight, *bias, *slopes; /* one per row, or NULL; without `elementwise` */
    Coefficients coeffs;                  /* the slope and bounds, the parameters per element, the store policy */
    ptrdiff_t first_set_rows;             /* rows with these parameters; those of the next set_rows rows begin */
    ptrdiff_t set_rows, set_bytes;        /* set_bytes later, and so on */
    double mean[ROW_BATCH_MAX], lo[ROW_BATCH_MAX], m2[ROW_BATCH_MAX], rstd[ROW_BATCH_MAX];
    double mean_hi[ROW_BATCH_MAX];
    int any_fallback;                     /* OUT: whether some rows need the general path */
    /* OUT: the rows whose sums overflowed, underflowed or had a poor shift; their results were not written */
    unsigned char needs_fallback[ROW_BATCH_MAX];
} RowBatch;

/* A block of rows, backward: the addresses of its rows, or of the range of their elements that a call is for. */
typedef struct {
    const char *x[GRAD_BLOCK_ROWS], *dy[GRAD_BLOCK_ROWS], *addend[GRAD_BLOCK_ROWS];
    char *dx[GRAD_BLOCK_ROWS];
    ptrdiff_t rows;
    ptrdiff_t rows_per_pass;          /* rows summed, and then read again from L1 */
    ptrdiff_t n;                      /* elements of a row */
    ptrdiff_t prefetch_bytes;         /* prefetch distance of x and dy where these come from memory, else 0 */
    int centred, activation;
    int add_to_grad;                  /* addend is added to dx */
    int from_memory;                  /* short rows whose dx is not in cache: it is prefetched */
    Coefficients coeffs;              /* the parameters per element, the slope and bounds */
    const double *mean, *rstd;        /* one per row; mean is NULL where not centred */
    const double *row_slopes;         /* one per row, or NULL: the slope or slopes of coeffs */
    void *final[3];                   /* where one block is the whole input: the sums for weight, bias and slope,
                                         of the accumulation type; or NULL */
    double sums[4][GRAD_BLOCK_ROWS];  /* per row: the four sums of grad_sums_elementwise */
    ptrdiff_t peel;                   /* set by grad_rows: elements of each row before its dx is aligned */
} RowGradBlock;

/* Rows of a table, all or some of their columns, that are normalized by statistics of their row and of their column:
 * loops/crossed.h has the formulas. What belongs to columns is of the accumulation type, in whole vectors. */
typedef struct {
    const char *x[CROSSED_ROWS_MAX], *dy[CROSSED_ROWS_MAX];
    char *y[CROSSED_ROWS_MAX];        /* backward: the gradient of x */
    ptrdiff_t rows, columns;
    int activation;
    double share[2];                  /* of the row's mean and the column's */
    double scale;
    double low, high;                 /* as in Coefficients */
    double row_hi[CROSSED_ROWS_MAX], row_lo[CROSSED_ROWS_MAX], row_variance[CROSSED_ROWS_MAX];
    double row_offset[CROSSED_ROWS_MAX], row_coeff[CROSSED_ROWS_MAX];
    double row_sums[2][CROSSED_ROWS_MAX]; /* OUT of crossed_grad_sums */
    const void *column_hi, *column_lo, *column_variance, *weight, *bias, *slope, *column_offset, *column_coeff;
} CrossedBlock;

/* The window family: a span of one channel, or `runs` positions with all their channels, and the rows of its window,
 * whose sum it needs: squares, or (window_grad) grad_term. The rows and the arrays squares, scale_pow and grad_term are
 * a workspace of the accumulation type, with workspace_stride bytes from one run to the next. */
typedef struct {
    const char *x, *dy;
    char *y;                             /* backward: the gradient of x */
    ptrdiff_t runs, n, x_stride, dy_stride, y_stride, workspace_stride;
    ptrdiff_t x_prefetch, dy_prefetch, y_prefetch; /* prefetch distances in bytes, or 0 */
    const char **rows;
    ptrdiff_t count;    /* rows */
    const char *newest; /* or NULL: one more row of the window, of x itself, not squared yet */
    char *squares;      /* OUT: the squares of newest, or of x */
    char *scale_pow;    /* scale**-beta of each element */
    char *grad_term;    /* g * x * scale**(-beta - 1) of each element */
    double alpha, beta, k, slope, low, high;
    const void *slopes;
    int activation;
} WindowTile;

typedef struct LoopTable {
    int size;      /* bytes of a stored element */
    int acc_size;  /* bytes of the accumulation type: 4 or 8 */
    int acc_dtype; /* its index in LOOPS_BY_DTYPE */
    double (*rounded)(double);                                /* rounded to the accumulation type */
    void (*widen)(const char *x, ptrdiff_t n, void *out);     /* to the accumulation type */
    void (*widen64)(const char *x, ptrdiff_t n, double *out); /* to double */
    void (*narrow)(const double *x, ptrdiff_t n, void *out);  /* to the accumulation type */
    void (*store64)(const double *x, ptrdiff_t n, char *out); /* to the dtype, rounded once */
    void (*add)(const char *a, const char *b, char *y, ptrdiff_t n);

    /* units: tiles with scalar coefficients, or (elementwise) with parameters per element from element `at` on */
    double (*probe)(const char *x, ptrdiff_t n); /* the shift that the first elements suggest, or 0 */
    void (*sums)(const char *x, ptrdiff_t runs, ptrdiff_t stride, ptrdiff_t n, double shift, int terms,
                 ptrdiff_t prefetch_segments, double *out);
    void (*apply)(const char *x, char *y, ptrdiff_t runs, ptrdiff_t x_stride, ptrdiff_t y_stride, ptrdiff_t n,
                  const Coefficients *coeffs, int activation);
    void (*apply_batch)(const char *x, char *y, ptrdiff_t runs, ptrdiff_t x_stride, ptrdiff_t y_stride, ptrdiff_t units,
                        ptrdiff_t x_step, ptrdiff_t y_step, ptrdiff_t n, const CoefficientArrays *arrays,
                        int activation);
    void (*apply_elementwise)(const char *x, char *y, ptrdiff_t n, ptrdiff_t at, const Coefficients *coeffs,
                              int activation);
    void (*grad_sums)(const char *x, const char *dy, ptrdiff_t runs, ptrdiff_t x_stride, ptrdiff_t dy_stride,
                      ptrdiff_t n, const Coefficients *coeffs, int activation, double *out);
    void (*grad_sums_elementwise)(const char *x, const char *dy, ptrdiff_t n, ptrdiff_t at, const Coefficients *coeffs,
                                  int activation, double *out);
    void (*grad_sums_batch)(const char *x, const char *dy, ptrdiff_t runs, ptrdiff_t x_stride, ptrdiff_t dy_stride,
                            ptrdiff_t units, ptrdiff_t x_step, ptrdiff_t dy_step, ptrdiff_t n,
                            const CoefficientArrays *arrays, int activation, double *out);
    void (*grad_apply)(const char *x, const char *dy, char *dx, ptrdiff_t runs, ptrdiff_t x_stride, ptrdiff_t dy_stride,
                       ptrdiff_t dx_stride, ptrdiff_t n, const Coefficients *coeffs, int activation);
    void (*grad_apply_batch)(const char *x, const char *dy, char *dx, ptrdiff_t runs, ptrdiff_t x_stride,
                             ptrdiff_t dy_stride, ptrdiff_t dx_stride, ptrdiff_t units, ptrdiff_t x_step,
                             ptrdiff_t dy_step, ptrdiff_t dx_step, ptrdiff_t n, const CoefficientArrays *arrays,
                             int activation);

    /* rows: batches of whole rows; the gradients of a block of rows, elements at .. at + n */
    void (*forward_rows)(RowBatch *batch);
    void (*grad_rows)(RowGradBlock *block, ptrdiff_t at, ptrdiff_t n, int compute_sums, int overwrite, double *dw,
                      double *db, double *dslope);

    /* columns */
    void (*column_probe)(const char *const *x, ptrdiff_t rows, ptrdiff_t columns, void *shift);
    void (*column_sums)(const char *const *x, ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t rows_per_pass,
                        const void *shift, int terms, double *sum_d, double *sum_dd);
    void (*column_apply)(const char *const *x, char *const *y, ptrdiff_t rows, ptrdiff_t columns,
                         ptrdiff_t rows_per_pass, const ColumnCoefficients *coeffs, int activation);
    void (*column_grad_sums)(const char *const *x, const char *const *dy, ptrdiff_t rows, ptrdiff_t columns,
                             ptrdiff_t rows_per_pass, const ColumnCoefficients *coeffs, int activation, double *sum_g,
                             double *sum_gd, double *sum_d, double *sum_slope, double *const *row_sums);
    void (*column_grad_apply)(const char *const *x, const char *const *dy, const char *const *addend, char *const *dx,
                              ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t rows_per_pass,
                              const ColumnCoefficients *coeffs, int activation);
    void (*set_coefficients)(const void *weight, const void *bias, int wide, const double *rstd, const double *mean_lo,
                             ptrdiff_t n, void *scale, void *bias_out);
    void (*set_totals)(const double *g, double *gd, const void *weight, int wide, const double *mean_lo, ptrdiff_t n,
                       double *sum_g, double *sum_gdev);
    void (*set_row_grads)(const char *x, const char *dy, ptrdiff_t n, const ColumnCoefficients *coeffs, const void *weight,
                          int wide, const double *rstd, const double *mean_lo, void *grad_weight, void *grad_bias,
                          double *sum_g, double *sum_gdev);

    /* crossed statistics of rows and columns */
    void (*crossed_apply)(const CrossedBlock *block);
    void (*crossed_grad_sums)(CrossedBlock *block, double *const total[N_CROSSED_SUMS]);
    void (*crossed_grad_apply)(const CrossedBlock *block);

    /* window */
    void (*window_squares)(const WindowTile *tile);
    void (*window_apply)(const WindowTile *tile);
    void (*window_prepare)(const WindowTile *tile);
    void (*window_grad)(const WindowTile *tile);
} LoopTable;

#define CAT_(a, b) a##_##b
#define CAT(a, b) CAT_(a, b)

#define S f32
#define A f32
#define VECTOR f32l
#define ACC_DTYPE FLOAT32
#include "loops/common.h"
#define S f64
#define A f64
#define VECTOR f64l
#define ACC_DTYPE FLOAT64
#include "loops/common.h"
#define S f16
#define A f32
#define VECTOR f32l
#define ACC_DTYPE FLOAT32
#include "loops/common.h"
#define S bf16
#define A f32
#define VECTOR f32l
#define ACC_DTYPE FLOAT32
#include "loops/common.h"

#if NATIVE_BF16
NATIVE_BF16_BEGIN
#define S bf16n
#define A f32
#define VECTOR f32l
#define ACC_DTYPE FLOAT32
#include "loops/common.h"
NATIVE_BF16_END
#endif

#define S f32w
#define A f64
#define VECTOR f64l
#define ACC_DTYPE FLOAT64
#define MOMENTS_ALONE 1
#include "loops/common.h"
#define S u8w
#define A f64
#define VECTOR f64l
#define ACC_DTYPE FLOAT64
#define MOMENTS_ALONE 1
#include "loops/common.h"

#include "loops/wide.h"
#include "loops/image.h"

static const LoopTable *LOOPS_BY_DTYPE[DTYPES] = {
    [FLOAT32] = &table_f32, [FLOAT64] = &table_f64, [FLOAT16] = &table_f16, [BFLOAT16] = &table_bf16,
    [WIDE_FLOAT32] = &wide_f32, [WIDE_FLOAT16] = &wide_f16, [WIDE_BFLOAT16] = &wide_bf16, [WIDE_INT8] = &wide_i8,
    [WIDE_UINT8] = &wide_u8, [WIDE_INT16] = &wide_i16, [WIDE_UINT16] = &wide_u16, [WIDE_INT32] = &wide_i32,
    [WIDE_UINT32] = &wide_u32, [WIDE_INT64] = &wide_i64, [WIDE_UINT64] = &wide_u64,
};

/* Chooses how bfloat16 is rounded: by the processor where it can (AVX512_BF16), or in integer arithmetic, with equal
 * bits. Returns whether the processor rounds from now on. */
static int use_bfloat16_rounding(int by_processor) {
#if NATIVE_BF16
    by_processor = by_processor && bf16n_supported();
    LOOPS_BY_DTYPE[BFLOAT16] = by_processor ? &table_bf16n : &table_bf16;
    return by_processor;
#else
    (void)by_processor;
    return 0;
#endif
}

#endif
