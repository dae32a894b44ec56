/* One text of every loop; table.h includes this file once per dtype, with these macros defined:
 *   S          storage type: f32, f64, f16, bf16 or bf16n
 *   A          accumulation type: f32 or f64
 *   VECTOR     vector of accumulators (simd/lanes.h): f32l or f64l
 *   ACC_DTYPE  the accumulation type as a Dtype
 * and MOMENTS_ALONE where a storage type has no other loops than the sums of moments (simd/wide.h).
 *
 * The sums of moments are in unit_sums.h and column_sums.h, the other loops in convert.h and in five files by family,
 * included at the end of this one. FN(name) is the name of a
 * function for S. A function whose name ends in _any or _block takes what chooses a variant (`elementwise`, `centred`,
 * `activation`, `store`) as its last arguments, and is inlined into one function per variant. These are constants where
 * a variant is worth its code; where a caller hands on what it was given, each vector tests it.
 *
 * Loops take the elements of a run a vector at a time: element i goes to lane i modulo LANES. The last elements of a
 * run, and those before an aligned address, make a partial vector of `partial` elements. Where a function takes
 * `partial`, 0 means a whole vector.
 */
#define FN(name) CAT(name, S)
#define LOAD(p) CAT(S, load)(p)
#define LOAD_HALVES(p) CAT(S, load_halves)(p)
#define SPLITS_LINE(p) CAT(S, splits_line)(p)
#define LOAD_PARTIAL(p, n, padding) CAT(S, load_partial)(p, n, padding)
#define STORE(p, v) CAT(S, store)(p, v)
#define STORE_PARTIAL(p, v, n) CAT(S, store_partial)(p, v, n)
#define STREAM(p, v) CAT(S, stream)(p, v)
#define STORE_PAIR(p, v, w) CAT(S, store_pair)(p, v, w)
#define STREAM_PAIR(p, v, w) CAT(S, stream_pair)(p, v, w)
#define SET(a) CAT(A, set)((A)(a))
#define ADD(a, b) CAT(A, add)(a, b)
#define SUB(a, b) CAT(A, sub)(a, b)
#define MUL(a, b) CAT(A, mul)(a, b)
#define IF_POSITIVE(z, a, b) CAT(A, select_positive)(z, a, b)
#define MAGNITUDE(a) CAT(A, magnitude)(a)
#define LARGER(a, b) CAT(A, larger)(a, b)
#define SIGN_OF_LARGE(a, least) CAT(A, sign_of_large)(a, least)
#define HSUM(a) CAT(A, hsum)(a)
#define HMAX(a) CAT(A, hmax)(a)
#define PARAMETER(p, i) CAT(A, load)((const A *)(p) + (i))
#define PARAMETER_PARTIAL(p, i, n) CAT(A, load_partial)((const A *)(p) + (i), n, SET(0))
#define LANES CAT(A, lanes)
#define BYTES(elements) ((elements) * (ptrdiff_t)sizeof(S))
/* Whether backward sums the deviations as well. The mean is given as a double. A float64 result needs its rounding
 * error as well, which is sum(d) / n; a float32 result does not. */
#define SUMS_DEVIATIONS (sizeof(A) == 8)
/* Whether K vectors make whole cache lines. Only whole lines are stored with non-temporal stores: each part of a line
 * would cost a memory access of its own. */
#define WHOLE_LINES(K) ((K) * LANES * sizeof(S) % LANES_ALIGN == 0)

#ifndef MOMENTS_ALONE
#define MOMENTS_ALONE 0
#endif

#if !MOMENTS_ALONE
/* ---- loop peeling ---- */

/* Elements of y to store before its aligned address: that of a cache line for non-temporal stores. Plain stores of a
 * run of PEEL_MIN_VECTORS vectors or more are aligned to a register, so that none of them touches two cache lines. */
INLINE ptrdiff_t FN(peel)(const void *y, ptrdiff_t n, const int nontemporal) {
    const uintptr_t align = nontemporal ? LANES_ALIGN : STORE_BYTES(S, A);
    return nontemporal || n >= PEEL_MIN_VECTORS * LANES ? (ptrdiff_t)(-(uintptr_t)y % align / sizeof(S)) : 0;
}

/* The peel that several rows have in common, or -1 where their addresses differ modulo a cache line. Rows that begin
 * within a line share their first and last lines with neighbours; non-temporal stores would make memory write these
 * lines twice, so such rows must have NONTEMPORAL_ROW_MIN_BYTES. */
static ptrdiff_t FN(common_peel)(char *const *y, ptrdiff_t rows, ptrdiff_t n, int nontemporal) {
    const ptrdiff_t peel = FN(peel)(y[0], n, nontemporal);
    if (peel == 0 && !nontemporal) return 0;
    uintptr_t differing_bits = 0;
    for (ptrdiff_t row = 1; row < rows; ++row) differing_bits |= (uintptr_t)y[row] ^ (uintptr_t)y[0];
    if (differing_bits % LANES_ALIGN || (uintptr_t)y[0] % sizeof(S)) return -1;
    return peel == 0 || !nontemporal || n * (ptrdiff_t)sizeof(S) >= NONTEMPORAL_ROW_MIN_BYTES ? peel : -1;
}

/* y[i] = STEP of x[i] over the n elements of a run: the peeled elements, pairs of vectors, a vector, a partial vector.
 *
 * STEP(result, value, PIECE) computes the vector at i from `value`, that of x. It loads further operands by macros
 * PIECE_..., where PIECE is WHOLE, or PARTIAL for a vector of `partial` elements.
 * Captures x, `padding` (lanes beyond a partial vector of x) and `nontemporal`; declares i and partial. */
#define FOR_RUN(y, n, STEP)                                          \
    ptrdiff_t i = 0, partial = FN(peel)(y, n, nontemporal);          \
    if (partial >= LANES) {                                          \
        VECTOR result;                                               \
        STEP(result, LOAD(x), WHOLE)                                 \
        STORE(y, result);                                            \
        i = LANES;                                                   \
        partial -= LANES;                                            \
    }                                                                \
    if (partial) {                                                   \
        VECTOR result;                                               \
        STEP(result, LOAD_PARTIAL(x + i, partial, padding), PARTIAL) \
        STORE_PARTIAL((y) + i, result, partial);                     \
        i += partial;                                                \
    }                                                                \
    for (; i + 2 * LANES <= (n); i += LANES) {                       \
        VECTOR result, next;                                         \
        STEP(result, LOAD(x + i), WHOLE)                             \
        i += LANES;                                                  \
        STEP(next, LOAD(x + i), WHOLE)                               \
        if (nontemporal) STREAM_PAIR((y) + i - LANES, result, next); \
        else STORE_PAIR((y) + i - LANES, result, next);              \
    }                                                                \
    if (i + LANES <= (n)) {                                          \
        VECTOR result;                                               \
        STEP(result, LOAD(x + i), WHOLE)                             \
        if (nontemporal && WHOLE_LINES(1)) STREAM((y) + i, result);  \
        else STORE((y) + i, result);                                 \
        i += LANES;                                                  \
    }                                                                \
    partial = (n) - i;                                               \
    if (partial) {                                                   \
        VECTOR result;                                               \
        STEP(result, LOAD_PARTIAL(x + i, partial, padding), PARTIAL) \
        STORE_PARTIAL((y) + i, result, partial);                     \
    }

INLINE void FN(vector_store)(char *row, ptrdiff_t j, ptrdiff_t partial, VECTOR v, const int nontemporal) {
    S *p = (S *)row + j;
    if (partial) STORE_PARTIAL(p, v, partial);
    else if (nontemporal) STREAM(p, v);
    else STORE(p, v);
}
#endif

/* ---- one vector at element j, whole or partial: of a row (S), and of parameters or sums (A) ---- */

INLINE VECTOR FN(vector_load)(const char *row, ptrdiff_t j, ptrdiff_t partial, VECTOR padding) {
    const S *p = (const S *)row + j;
    return partial ? LOAD_PARTIAL(p, partial, padding) : LOAD(p);
}
INLINE VECTOR FN(acc_load)(const void *values, ptrdiff_t j, ptrdiff_t partial) {
    const A *p = (const A *)values + j;
    return partial ? CAT(A, load_partial)(p, partial, SET(0)) : CAT(A, load)(p);
}
INLINE void FN(acc_store)(A *values, ptrdiff_t j, ptrdiff_t partial, VECTOR v) {
    if (partial) CAT(A, store_partial)(values + j, v, partial);
    else CAT(A, store)(values + j, v);
}

/* ---- sums of n columns down some rows, in the accumulation type, and their float64 totals ---- */

/* Clears whole vectors: n rounded up to LANES. */
INLINE void FN(sums_clear)(A *sums, ptrdiff_t n) {
    for (ptrdiff_t j = 0; j < n; j += LANES) CAT(A, store)(sums + j, SET(0));
}
INLINE void FN(sums_add_to)(const A *restrict sums, ptrdiff_t n, double *restrict total) {
    for (ptrdiff_t j = 0; j < n; ++j) total[j] += (double)sums[j];
}
INLINE void FN(sums_larger_to)(const A *restrict sums, ptrdiff_t n, double *restrict total) {
    for (ptrdiff_t j = 0; j < n; ++j) total[j] = larger(total[j], (double)sums[j]);
}
INLINE void FN(sums_copy_to)(const A *restrict sums, ptrdiff_t n, double *restrict total) {
    for (ptrdiff_t j = 0; j < n; ++j) total[j] = (double)sums[j];
}

/* ---- the activation (enums.h), a constant: every loop uses these two. Bounds are NaN where a side is open ---- */

/* The activation of z; slope, or low and high, are used as it asks for. */
INLINE VECTOR FN(activated)(VECTOR z, VECTOR slope, VECTOR low, VECTOR high, const int activation) {
    if (activation == ACT_CLIP) return CAT(A, clip)(z, low, high);
    return activation ? IF_POSITIVE(z, z, MUL(z, slope)) : z;
}
/* The gradient of z from g, the gradient of its activation; adds the gradient of the slope to *sum_slope, if any. */
INLINE VECTOR FN(activation_backward)(VECTOR g, VECTOR z, VECTOR slope, VECTOR low, VECTOR high, VECTOR *sum_slope,
                                      const int activation) {
    if (activation == ACT_CLIP) return CAT(A, zero_outside)(z, low, high, g);
    if (sum_slope) *sum_slope = ADD(*sum_slope, IF_POSITIVE(z, SET(0), MUL(g, z)));
    return IF_POSITIVE(z, g, MUL(g, slope));
}

/* For each k of the R rows that are processed side by side; R is at most 4. Captures R, declares k. */
#define FOR_UNROLLED_ROWS _Pragma("GCC unroll 4") for (int k = 0; k < R; ++k)

#include "loops/unit_sums.h"
#include "loops/column_sums.h"
#if MOMENTS_ALONE
#undef PREFETCH_VECTOR
#undef PREFETCH_READ
#undef PREFETCH_WRITE
#undef PROBE_SIZE
#undef FOR_COLUMN_BLOCKS
#undef FOR_VECTORS
#undef COLUMN
#undef PARTIAL_OF_VECTOR
#undef PREFETCH_COLUMN
#undef SUMMED_COLUMNS_MAX
#else
#include "loops/convert.h"
#include "loops/units.h"
#include "loops/rows.h"
#include "loops/columns.h"
#include "loops/crossed.h"
#include "loops/window.h"

static const LoopTable FN(table) = {
    .size = sizeof(S), .acc_size = sizeof(A), .acc_dtype = ACC_DTYPE,
    .rounded = FN(rounded), .widen = FN(widen), .widen64 = FN(widen64), .narrow = FN(narrow),
    .store64 = FN(store64), .add = FN(add), .probe = FN(probe), .sums = FN(sums), .apply = FN(apply),
    .apply_batch = FN(apply_batch), .apply_elementwise = FN(apply_elementwise), .grad_sums = FN(grad_sums),
    .grad_sums_elementwise = FN(grad_sums_elementwise), .grad_sums_batch = FN(grad_sums_batch),
    .grad_apply = FN(grad_apply), .grad_apply_batch = FN(grad_apply_batch), .forward_rows = FN(forward_rows),
    .grad_rows = FN(grad_rows), .column_probe = FN(column_probe), .column_sums = FN(column_sums),
    .column_apply = FN(column_apply), .column_grad_sums = FN(column_grad_sums),
    .column_grad_apply = FN(column_grad_apply), .set_coefficients = FN(set_coefficients), .set_totals = FN(set_totals),
    .set_row_grads = FN(set_row_grads), .crossed_apply = FN(crossed_apply),
    .crossed_grad_sums = FN(crossed_grad_sums), .crossed_grad_apply = FN(crossed_grad_apply), .window_squares = FN(window_squares),
    .window_apply = FN(window_apply), .window_prepare = FN(window_prepare), .window_grad = FN(window_grad),
};
#endif

#undef FN
#undef LOAD
#undef LOAD_HALVES
#undef SPLITS_LINE
#undef LOAD_PARTIAL
#undef STORE
#undef STORE_PARTIAL
#undef STREAM
#undef STORE_PAIR
#undef STREAM_PAIR
#undef SET
#undef ADD
#undef SUB
#undef MUL
#undef IF_POSITIVE
#undef MAGNITUDE
#undef LARGER
#undef SIGN_OF_LARGE
#undef HSUM
#undef HMAX
#undef PARAMETER
#undef PARAMETER_PARTIAL
#undef LANES
#undef BYTES
#undef SUMS_DEVIATIONS
#undef WHOLE_LINES
#undef FOR_RUN
#undef FOR_UNROLLED_ROWS
#undef S
#undef A
#undef VECTOR
#undef ACC_DTYPE
#undef MOMENTS_ALONE
