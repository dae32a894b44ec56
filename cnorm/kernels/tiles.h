/* The loops over one tile: what a kernel does to at most a few thousand elements.
 *
 * tile_loops.h holds one text of each loop and is included here once per storage type. Each storage
 * type leaves a table of its loops (Tile), so that the algorithms in *.pxi are compiled once and
 * know no type: they hand over addresses, counts and strides in bytes.
 *
 * A tile is `runs` runs of `n` contiguous elements, `stride` bytes apart, or, for the columns family,
 * `rows` rows given by their addresses.
 */
#ifndef CNORM_TILES_H
#define CNORM_TILES_H

#include "lanes.h"

/* Elements of a unit in a tile, at most: it stays in L1. */
enum { TILE = 2048 };

/* What is subtracted of the elements: nothing; one number at the most; two.
 * Sums are taken about 0 (CENTRED) where the mean is less than the deviation, which costs them a bit or so,
 * else about a shift. Elements lose the mean in two parts, as a float's bits do not hold it: the mean
 * rounded, hi, and the rest, lo. Where it is less than the deviation one does (hi is 0): what rounding it takes
 * is less than 2**-24 deviations, for a double 2**-53. Not so where the elements are all alike, or nearly, and
 * rstd is about 1 / sqrt(eps), the most that it can be: they shall give exactly the bias. */
enum { UNCENTRED, CENTRED, SHIFTED };

INLINE double first_part(double mean, double rounded, double rstd, double eps) {
    return fabs(mean) * rstd <= 1 && rstd * rstd * eps < 0.99 ? 0 : rounded;
}

/* Whether sums about a shift, of d and of d * d, lost too many bits: the mean is 1.4 deviations away. */
INLINE int far_from_mean(double count, double first, double second) {
    return 3 * first * first > 2 * count * second;
}

/* How a result is stored: as it comes; past the cache; as it comes, and the run that is `reach` on prefetched. */
enum { AS_IT_COMES, PAST_CACHE, APART };

/* Lanes of a run from which on a few elements are stored first, so that the rest is stored where lines begin. */
enum { LED_LANES = 8 };

/* Bytes of a row from which on it is stored past the cache though it does not begin where a line does. */
enum { STREAMED_ROW = 1 << 12 };

/* Bytes on that the loops over columns ask for. */
enum { COLUMNS_REACH = 1 << 11 };

/* Columns are summed this many at a time, of float twice as many, at most. */
enum { SUMMED = 1 << 10 };

/* What is applied to a unit or, through the vectors, to each element of its rows:
 *   forward    y  = ((x - hi) - lo) * scale + bias        (lo is folded into bias without vectors)
 *   backward   dx = (g * p - r) - (x - hi) * rstd * q     g = dy through the activation
 * With vectors: scale * weight[i] for scale, shift[i] for bias, p * weight[i] for p. */
typedef struct {
    double hi, lo, scale, bias;
    double p, q, r, rstd;
    double slope;
    const void *weight, *shift, *slopes; /* of the accumulation type, or NULL */
    int stream;                          /* the result is too large for the cache: store past it */
    ptrdiff_t ahead;                     /* with it: bytes on to what is wanted in cache next */
    ptrdiff_t reach;                     /* where runs lie apart: to the one to prefetch, else 0 */
} Affine;

/* The same for units or segments that lie side by side: each an array over them. p is scale. */
typedef struct {
    int shifted; /* some of hi are not 0 */
    double *hi, *scale, *bias, *slope, *q, *r, *rstd;
} BandAffine;

/* The same for columns: each an array over the columns, of the accumulation type. */
typedef struct {
    int stream;
    int shifted; /* some of hi are not 0 */
    const void *hi, *scale, *bias, *p, *q, *r, *rstd, *slope;
} ColumnAffine;

/* A stretch of one channel, or `runs` positions, each all its channels, and the rows summed for it:
 * squares, or (window_grad) what each channel did to its window. `kept_stride` bytes lead from one run
 * to the next in all that is kept, which is of the accumulation type. */
typedef struct {
    const char *x, *dy;
    char *y;                             /* backward: the gradient of x */
    ptrdiff_t runs, n, x_stride, dy_stride, y_stride, kept_stride;
    ptrdiff_t x_ahead, dy_ahead, y_ahead; /* bytes on to what is wanted in cache next, or 0 */
    const char **rows;
    ptrdiff_t count;
    const char *fresh; /* or NULL: one row more, of x, whose squares are yet to be taken */
    char *squares, *power, *shared;
    double alpha, beta, k, slope;
    const void *slopes;
    int activation;
} WindowTile;

/* Rows whose elements are taken side by side, forward and backward: more than the registers hold, or than
 * a set of the first cache has lines for, cost more than they save. No result depends on it. */
enum { ABREAST = LANES_NATIVE == 64 ? 4 : LANES_NATIVE == 32 ? 2 : 1, GRAD_ABREAST = LANES_NATIVE >= 32 ? 2 : 1 };

/* Units that lie side by side and that the loops take at a time, at most. */
enum { BAND = 32 };

/* Elements after which a sum's lanes are added to what came before; a multiple of two lanes. */
enum { CASCADE = 256 };

/* Whole rows, each one tile: what forward_rows takes, and the statistics it leaves. */
enum { ROWS_TOGETHER = 64 };
typedef struct {
    const char *x;
    char *y;
    ptrdiff_t rows, x_stride, y_stride, n;
    double eps, tiny;
    int centred, vector, activation;
    const double *weight, *bias, *slopes; /* one per row, or NULL; without `vector` */
    Affine affine;                        /* the slope, and the vectors of `vector` */
    double mean[ROWS_TOGETHER], lo[ROWS_TOGETHER], m2[ROWS_TOGETHER], rstd[ROWS_TOGETHER];
    double hi[ROWS_TOGETHER];             /* of the mean, what is subtracted first */
    int any_again;                        /* some rows take the long way: */
    unsigned char again[ROWS_TOGETHER];   /* these, and they were not written */
} RowJob;

/* A block of rows, backward: where each begins, or its stretch of elements that a call is for. */
enum { GRAD_ROWS = 64 };
typedef struct {
    const char *x[GRAD_ROWS], *dy[GRAD_ROWS], *plus[GRAD_ROWS];
    char *dx[GRAD_ROWS];
    ptrdiff_t rows, together;         /* together: rows that are summed, and then taken up again */
    ptrdiff_t n;                      /* elements of a row */
    ptrdiff_t ahead;                  /* bytes on to the next block of x and dy, where it is in memory */
    int centred, activation;
    int added;                        /* plus is added to dx */
    int far;                          /* short rows, written to memory that is not in cache */
    Affine affine;                    /* the vectors and the slope */
    const double *mean, *rstd;        /* one per row; no mean where not centred */
    const double *row_slope;          /* one per row, or NULL: then those of `affine` */
    void *final[3];                   /* one block is all: its sums, of the accumulation type; NULL: those in double */
    double sums[4][GRAD_ROWS];        /* those of grad_sums_vector */
    ptrdiff_t lead;                   /* elements of each row before its dx is stored in whole lines */
} GradRows;

typedef struct Tile {
    int size;        /* bytes of a stored element */
    int wide;        /* bytes of an accumulator: 4 or 8 */
    int accumulator; /* index in TILES of the type that accumulates */
    double (*rounded)(double);
    void (*widen)(const char *x, ptrdiff_t n, void *out);     /* to the accumulator */
    void (*widen64)(const char *x, ptrdiff_t n, double *out); /* to double */
    double (*head)(const char *x, ptrdiff_t n);
    void (*sums)(const char *x, ptrdiff_t runs, ptrdiff_t stride, ptrdiff_t n, double shift,
                 int centred, ptrdiff_t reach, double *out);
    void (*apply)(const char *x, char *y, ptrdiff_t runs, ptrdiff_t x_stride, ptrdiff_t y_stride,
                  ptrdiff_t n, const Affine *a, int activation);
    void (*apply_band)(const char *x, char *y, ptrdiff_t runs, ptrdiff_t x_stride, ptrdiff_t y_stride,
                       ptrdiff_t units, ptrdiff_t x_step, ptrdiff_t y_step, ptrdiff_t n, const BandAffine *a,
                       int activation);
    void (*forward_rows)(RowJob *job);
    void (*apply_vector)(const char *x, char *y, ptrdiff_t n, ptrdiff_t at, const Affine *a,
                         int activation);
    void (*grad_sums)(const char *x, const char *dy, ptrdiff_t runs, ptrdiff_t x_stride,
                      ptrdiff_t dy_stride, ptrdiff_t n, const Affine *a, int activation, double *out);
    void (*grad_sums_vector)(const char *x, const char *dy, ptrdiff_t n, ptrdiff_t at,
                             const Affine *a, int activation, double *out);
    void (*grad_apply)(const char *x, const char *dy, char *dx, ptrdiff_t runs, ptrdiff_t x_stride,
                       ptrdiff_t dy_stride, ptrdiff_t dx_stride, ptrdiff_t n, const Affine *a,
                       int activation);
    void (*grad_apply_band)(const char *x, const char *dy, char *dx, ptrdiff_t runs, ptrdiff_t x_stride,
                            ptrdiff_t dy_stride, ptrdiff_t dx_stride, ptrdiff_t units, ptrdiff_t x_step,
                            ptrdiff_t dy_step, ptrdiff_t dx_step, ptrdiff_t n, const BandAffine *a,
                            int activation);
    void (*grad_sums_band)(const char *x, const char *dy, ptrdiff_t runs, ptrdiff_t x_stride, ptrdiff_t dy_stride,
                           ptrdiff_t units, ptrdiff_t x_step, ptrdiff_t dy_step, ptrdiff_t n,
                           const BandAffine *a, int activation, double *out);
    void (*grad_rows)(GradRows *job, ptrdiff_t at, ptrdiff_t n, int take_sums, int fresh, double *dw,
                      double *db, double *dslope);
    void (*add)(const char *a, const char *b, char *y, ptrdiff_t n);
    void (*narrow)(const double *x, ptrdiff_t n, void *out);  /* to the accumulator */
    void (*store64)(const double *x, ptrdiff_t n, char *out); /* to the storage type, rounded once */
    void (*column_head)(const char *const *x, ptrdiff_t rows, ptrdiff_t columns, void *shift);
    void (*column_sums)(const char *const *x, ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t group,
                        const void *shift, double *first, double *second);
    void (*column_apply)(const char *const *x, char *const *y, ptrdiff_t rows, ptrdiff_t columns,
                         ptrdiff_t group, const ColumnAffine *a, int activation);
    void (*column_grad_sums)(const char *const *x, const char *const *dy, ptrdiff_t rows,
                             ptrdiff_t columns, ptrdiff_t group, const ColumnAffine *a,
                             int activation, double *sum_g, double *sum_gd, double *sum_d, double *sum_slope);
    void (*column_grad_apply)(const char *const *x, const char *const *dy, char *const *dx,
                              ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t group,
                              const ColumnAffine *a, int activation);
    void (*window_squares)(const WindowTile *w);
    void (*window_apply)(const WindowTile *w);
    void (*window_prepare)(const WindowTile *w);
    void (*window_grad)(const WindowTile *w);
} Tile;

#define CAT_(a, b) a##_##b
#define CAT(a, b) CAT_(a, b)

#define S f32
#define A f32
#define AL f32l
#define ACCUMULATOR 0
#include "tile_loops.h"
#define S f64
#define A f64
#define AL f64l
#define ACCUMULATOR 1
#include "tile_loops.h"
#define S f16
#define A f32
#define AL f32l
#define ACCUMULATOR 0
#include "tile_loops.h"
#define S bf16
#define A f32
#define AL f32l
#define ACCUMULATOR 0
#include "tile_loops.h"

#if LANES_BF16N
LANES_BF16N_BEGIN
#define S bf16n
#define A f32
#define AL f32l
#define ACCUMULATOR 0
#include "tile_loops.h"
LANES_BF16N_END
#endif

/* In the order of the storage codes in jobs.pxd. */
static const Tile *TILES[4] = {&tile_f32, &tile_f64, &tile_f16, &tile_bf16};

/* bfloat16 by the processor's own rounding, where it has that, or not; whether it is from now on. */
static int tiles_round(int by_processor) {
#if LANES_BF16N
    by_processor = by_processor && bf16n_runs();
    TILES[3] = by_processor ? &tile_bf16n : &tile_bf16;
    return by_processor;
#else
    (void)by_processor;
    return 0;
#endif
}

#endif
