/* One text of each loop over a tile, by family in four files; table.h includes it once per dtype.
 *
 * S: storage type, A: accumulation type, AL: its lanes, ACCUMULATOR: its place in LOOPS_BY_DTYPE.
 * Functions ending in _any take constants that choose a variant (`vector`, `centred`, `activation`);
 * they are inlined into one function per variant, so a variant is never another text.
 */
#define FN(name) CAT(name, S)
#define LOAD(p) CAT(S, load)(p)
#define LOAD_HALVES(p) CAT(S, load_halves)(p)
#define CROSSES(p) CAT(S, splits_line)(p)
#define LOAD_PART(p, n, fill) CAT(S, load_partial)(p, n, fill)
#define STORE(p, v) CAT(S, store)(p, v)
#define STORE_PART(p, v, n) CAT(S, store_partial)(p, v, n)
#define STREAM(p, v) CAT(S, stream)(p, v)
#define STORE_PAIR(p, v, w) CAT(S, store_pair)(p, v, w)
#define STREAM_PAIR(p, v, w) CAT(S, stream_pair)(p, v, w)
#define SET(a) CAT(A, set)((A)(a))
#define ADD(a, b) CAT(A, add)(a, b)
#define SUB(a, b) CAT(A, sub)(a, b)
#define MUL(a, b) CAT(A, mul)(a, b)
#define IF_POSITIVE(z, a, b) CAT(A, select_positive)(z, a, b)
#define HSUM(a) CAT(A, hsum)(a)
#define PARAMETER(p, i) CAT(A, load)((const A *)(p) + (i))
#define PARAMETER_PART(p, i, n) CAT(A, load_partial)((const A *)(p) + (i), n, SET(0))
#define LANES CAT(A, lanes)
/* float64 takes its mean from a double: the sum of deviations brings back what that rounded off */
#define EXACT (sizeof(A) == 8)

/* Elements at y to store before the first whole lanes: to the next line where these are streamed, and else, of a
 * long run, to where no vector is stored across two lines, which takes up to twice the time. */
INLINE ptrdiff_t FN(peel)(const void *y, ptrdiff_t n, const int stream) {
    const uintptr_t align = stream ? LANES_ALIGN : REGISTER_BYTES * sizeof(S) / sizeof(A);
    return stream || n >= PEEL_MIN_LANES * LANES ? (ptrdiff_t)(-(uintptr_t)y % align / sizeof(S)) : 0;
}

/* out[i] = STEP of x[i] over a run: two lanes at a time, one, the rest; of a long run a few elements first, so
 * that lanes are stored where lines of memory begin (see lead). STEP(result, value, PIECE) makes the lanes at i;
 * PIECE_... loads its other operands, for PART `part` elements of them. */
#define FOR_RUN(out, n)                                                                          \
    ptrdiff_t i = 0, part = FN(peel)(out, n, stream);                                            \
    if (part >= LANES) {                                                                         \
        AL result;                                                                               \
        STEP(result, LOAD(x), WHOLE)                                                             \
        STORE(out, result);                                                                      \
        i = LANES;                                                                               \
        part -= LANES;                                                                           \
    }                                                                                            \
    if (part) {                                                                                  \
        AL result;                                                                               \
        STEP(result, LOAD_PART(x + i, part, fill), PART)                                         \
        STORE_PART((out) + i, result, part);                                                     \
        i += part;                                                                               \
    }                                                                                            \
    for (; i + 2 * LANES <= (n); i += LANES) {                                                   \
        AL result, next;                                                                         \
        STEP(result, LOAD(x + i), WHOLE)                                                         \
        i += LANES;                                                                              \
        STEP(next, LOAD(x + i), WHOLE)                                                           \
        if (stream) STREAM_PAIR((out) + i - LANES, result, next);                                \
        else STORE_PAIR((out) + i - LANES, result, next);                                        \
    }                                                                                            \
    if (i + LANES <= (n)) {                                                                      \
        AL result;                                                                               \
        STEP(result, LOAD(x + i), WHOLE)                                                         \
        if (stream && WHOLE_LINES(1)) STREAM((out) + i, result);                                 \
        else STORE((out) + i, result);                                                           \
        i += LANES;                                                                              \
    }                                                                                            \
    part = (n) - i;                                                                              \
    if (part) {                                                                                  \
        AL result;                                                                               \
        STEP(result, LOAD_PART(x + i, part, fill), PART)                                         \
        STORE_PART((out) + i, result, part);                                                     \
    }

/* One lane at j: whole, or `part` elements of it. */
INLINE AL FN(vector_load)(const char *row, ptrdiff_t j, ptrdiff_t part, AL fill) {
    const S *p = (const S *)row + j;
    return part ? LOAD_PART(p, part, fill) : LOAD(p);
}
INLINE AL FN(vector_parameter)(const void *v, ptrdiff_t j, ptrdiff_t part) {
    const A *p = (const A *)v + j;
    return part ? CAT(A, load_partial)(p, part, SET(0)) : CAT(A, load)(p);
}
INLINE void FN(vector_store)(char *row, ptrdiff_t j, ptrdiff_t part, AL v, const int stream) {
    S *p = (S *)row + j;
    if (part) STORE_PART(p, v, part);
    else if (stream) STREAM(p, v);
    else STORE(p, v);
}

INLINE void FN(vector_keep)(A *v, ptrdiff_t j, ptrdiff_t part, AL a) {
    if (part) CAT(A, store_partial)(v + j, a, part);
    else CAT(A, store)(v + j, a);
}

/* K lanes are streamed if they make whole lines of memory: a line of which a part is streamed costs a visit to
 * memory of its own; */
#define WHOLE_LINES(K) ((K) * LANES * sizeof(S) % LANES_ALIGN == 0)
/* and if every row comes to a line after as many elements: these, or -1. The lines of which two rows have a part
 * are read and written if streamed; short rows have too many. */
static ptrdiff_t FN(common_peel)(char *const *y, ptrdiff_t rows, ptrdiff_t n, int stream) {
    const ptrdiff_t peel = FN(peel)(y[0], n, stream);
    if (peel == 0 && !stream) return 0;
    uintptr_t apart = 0;
    for (ptrdiff_t row = 1; row < rows; ++row) apart |= (uintptr_t)y[row] ^ (uintptr_t)y[0];
    if (apart % LANES_ALIGN || (uintptr_t)y[0] % sizeof(S)) return -1;
    return peel == 0 || !stream || n * (ptrdiff_t)sizeof(S) >= NONTEMPORAL_ROW_MIN_BYTES ? peel : -1;
}
/* Sums of `n` columns down some rows, in the accumulator: whole lanes are cleared, and then added up. */
INLINE void FN(kept_clear)(A *kept, ptrdiff_t n) {
    for (ptrdiff_t j = 0; j < n; j += LANES) CAT(A, store)(kept + j, SET(0));
}
INLINE void FN(kept_add)(const A *restrict kept, ptrdiff_t n, double *restrict total) {
    for (ptrdiff_t j = 0; j < n; ++j) total[j] += (double)kept[j];
}
INLINE void FN(kept_set)(const A *restrict kept, ptrdiff_t n, double *restrict total) {
    for (ptrdiff_t j = 0; j < n; ++j) total[j] = (double)kept[j];
}

/* g through an activation whose input was z; what the slope's gradient gains goes to on_slope, if any. */
INLINE AL FN(activation_backward)(AL g, AL z, AL slope, AL *on_slope) {
    if (on_slope) *on_slope = ADD(*on_slope, IF_POSITIVE(z, SET(0), MUL(g, z)));
    return IF_POSITIVE(z, g, MUL(g, slope));
}

/* For each of R rows that are taken side by side. */
#define FOR_UNROLLED_ROWS(k) _Pragma("GCC unroll 4") for (int k = 0; k < R; ++k)

#include "loops/units.h"
#include "loops/rows.h"
#include "loops/columns.h"
#include "loops/window.h"

static const LoopTable FN(table) = {
    .size = sizeof(S), .acc_size = sizeof(A), .acc_dtype = ACCUMULATOR,
    .rounded = FN(rounded), .widen = FN(widen), .widen64 = FN(widen64), .narrow = FN(narrow),
    .store64 = FN(store64), .add = FN(add), .probe = FN(probe), .sums = FN(sums), .apply = FN(apply),
    .apply_batch = FN(apply_batch), .apply_elementwise = FN(apply_elementwise), .grad_sums = FN(grad_sums),
    .grad_sums_elementwise = FN(grad_sums_elementwise), .grad_sums_batch = FN(grad_sums_batch),
    .grad_apply = FN(grad_apply), .grad_apply_batch = FN(grad_apply_batch), .forward_rows = FN(forward_rows),
    .grad_rows = FN(grad_rows), .column_probe = FN(column_probe), .column_sums = FN(column_sums),
    .column_apply = FN(column_apply), .column_grad_sums = FN(column_grad_sums),
    .column_grad_apply = FN(column_grad_apply), .window_squares = FN(window_squares),
    .window_apply = FN(window_apply), .window_prepare = FN(window_prepare), .window_grad = FN(window_grad),
};

#undef COLUMN_VECTORS
#undef FOR_UNROLLED_ROWS
#undef PROBE_SIZE
#undef BY_LANES
#undef LINES_OF_LANES
#undef PREFETCH_AHEAD
#undef PREFETCH_WRITE
#undef BYTES
#undef WHOLE_LINES
#undef FN
#undef LOAD
#undef LOAD_HALVES
#undef CROSSES
#undef LOAD_PART
#undef STORE
#undef STORE_PART
#undef STREAM
#undef STORE_PAIR
#undef STREAM_PAIR
#undef SET
#undef ADD
#undef SUB
#undef MUL
#undef IF_POSITIVE
#undef HSUM
#undef PARAMETER
#undef PARAMETER_PART
#undef LANES
#undef EXACT
#undef S
#undef A
#undef AL
#undef ACCUMULATOR
