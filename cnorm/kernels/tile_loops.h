/* One text of each loop over a tile, by family in four files; tiles.h includes it once per storage type.
 *
 * S: storage type, A: accumulation type, AL: its lanes, ACCUMULATOR: its place in TILES.
 * Functions ending in _any take constants that choose a variant (`vector`, `centred`, `activation`);
 * they are inlined into one function per variant, so a variant is never another text.
 */
#define FN(name) CAT(name, S)
#define LOAD(p) CAT(S, load)(p)
#define LOAD_HALVES(p) CAT(S, load_halves)(p)
#define CROSSES(p) CAT(S, crosses)(p)
#define LOAD_PART(p, n, fill) CAT(S, load_part)(p, n, fill)
#define STORE(p, v) CAT(S, store)(p, v)
#define STORE_PART(p, v, n) CAT(S, store_part)(p, v, n)
#define STREAM(p, v) CAT(S, stream)(p, v)
#define STORE_PAIR(p, v, w) CAT(S, store_pair)(p, v, w)
#define STREAM_PAIR(p, v, w) CAT(S, stream_pair)(p, v, w)
#define SET(a) CAT(A, set)((A)(a))
#define ADD(a, b) CAT(A, add)(a, b)
#define SUB(a, b) CAT(A, sub)(a, b)
#define MUL(a, b) CAT(A, mul)(a, b)
#define IF_POSITIVE(z, a, b) CAT(A, select_positive)(z, a, b)
#define FOLD(a) CAT(A, fold)(a)
#define PARAMETER(p, i) CAT(A, load)((const A *)(p) + (i))
#define PARAMETER_PART(p, i, n) CAT(A, load_part)((const A *)(p) + (i), n, SET(0))
#define LANES CAT(A, lanes)
/* float64 takes its mean from a double: the sum of deviations brings back what that rounded off */
#define EXACT (sizeof(A) == 8)

/* Elements at y to store before the first whole lanes: to the next line where these are streamed, and else, of a
 * long run, to where no vector is stored across two lines, which takes up to twice the time. */
INLINE ptrdiff_t FN(lead)(const void *y, ptrdiff_t n, const int stream) {
    const uintptr_t align = stream ? LANES_ALIGN : LANES_NATIVE * sizeof(S) / sizeof(A);
    return stream || n >= LED_LANES * LANES ? (ptrdiff_t)(-(uintptr_t)y % align / sizeof(S)) : 0;
}

/* out[i] = STEP of x[i] over a run: two lanes at a time, one, the rest; of a long run a few elements first, so
 * that lanes are stored where lines of memory begin (see lead). STEP(result, value, PIECE) makes the lanes at i;
 * PIECE_... loads its other operands, for PART `part` elements of them. */
#define FOR_RUN(out, n)                                                                          \
    ptrdiff_t i = 0, part = FN(lead)(out, n, stream);                                            \
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
INLINE AL FN(strip_load)(const char *row, ptrdiff_t j, ptrdiff_t part, AL fill) {
    const S *p = (const S *)row + j;
    return part ? LOAD_PART(p, part, fill) : LOAD(p);
}
INLINE AL FN(strip_vector)(const void *v, ptrdiff_t j, ptrdiff_t part) {
    const A *p = (const A *)v + j;
    return part ? CAT(A, load_part)(p, part, SET(0)) : CAT(A, load)(p);
}
INLINE void FN(strip_store)(char *row, ptrdiff_t j, ptrdiff_t part, AL v, const int stream) {
    S *p = (S *)row + j;
    if (part) STORE_PART(p, v, part);
    else if (stream) STREAM(p, v);
    else STORE(p, v);
}

INLINE void FN(strip_keep)(A *v, ptrdiff_t j, ptrdiff_t part, AL a) {
    if (part) CAT(A, store_part)(v + j, a, part);
    else CAT(A, store)(v + j, a);
}

/* K lanes are streamed if they make whole lines of memory: a line of which a part is streamed costs a visit to
 * memory of its own; */
#define WHOLE_LINES(K) ((K) * LANES * sizeof(S) % LANES_ALIGN == 0)
/* and if every row comes to a line after as many elements: these, or -1. The lines of which two rows have a part
 * are read and written if streamed; short rows have too many. */
static ptrdiff_t FN(common_lead)(char *const *y, ptrdiff_t rows, ptrdiff_t n, int stream) {
    const ptrdiff_t lead = FN(lead)(y[0], n, stream);
    if (lead == 0 && !stream) return 0;
    uintptr_t apart = 0;
    for (ptrdiff_t row = 1; row < rows; ++row) apart |= (uintptr_t)y[row] ^ (uintptr_t)y[0];
    if (apart % LANES_ALIGN || (uintptr_t)y[0] % sizeof(S)) return -1;
    return lead == 0 || !stream || n * (ptrdiff_t)sizeof(S) >= STREAMED_ROW ? lead : -1;
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
INLINE AL FN(through)(AL g, AL z, AL slope, AL *on_slope) {
    if (on_slope) *on_slope = ADD(*on_slope, IF_POSITIVE(z, SET(0), MUL(g, z)));
    return IF_POSITIVE(z, g, MUL(g, slope));
}

/* For each of R rows that are taken side by side. */
#define ROWS_ABREAST(k) _Pragma("GCC unroll 4") for (int k = 0; k < R; ++k)

#include "unit_loops.h"
#include "row_loops.h"
#include "column_loops.h"
#include "window_loops.h"

static const Tile FN(tile) = {
    sizeof(S), sizeof(A), ACCUMULATOR, FN(rounded), FN(widen), FN(widen64), FN(head), FN(sums),
    FN(apply), FN(apply_band), FN(forward_rows), FN(apply_vector), FN(grad_sums), FN(grad_sums_vector),
    FN(grad_apply), FN(grad_apply_band), FN(grad_sums_band), FN(grad_rows), FN(add), FN(narrow), FN(store64),
    FN(column_head), FN(column_sums), FN(column_apply), FN(column_grad_sums), FN(column_grad_apply),
    FN(window_squares), FN(window_apply), FN(window_prepare), FN(window_grad),
};

#undef STRIPS
#undef ROWS_ABREAST
#undef HEAD
#undef BY_LANES
#undef LINES_OF_LANES
#undef PREFETCH
#undef PREPARE
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
#undef FOLD
#undef PARAMETER
#undef PARAMETER_PART
#undef LANES
#undef EXACT
#undef S
#undef A
#undef AL
#undef ACCUMULATOR
