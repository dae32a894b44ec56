/* The moments of columns: sums down the rows, and the probe; and how columns are cut into blocks. Included by common.h,
 * once per dtype.
 *
 * A column block is K vectors of columns side by side, whose coefficients and sums stay in registers while the rows
 * pass. K is at most VECTORS_PER_COLUMN_BLOCK, which depends on the build; the arithmetic of a column does not depend
 * on K. Rows are given by their addresses.
 */

/* Columns of the block that begins at column j. The first `peel` columns are blocks of one vector, so that the other
 * blocks begin at aligned addresses. */
INLINE ptrdiff_t FN(column_block_width)(ptrdiff_t j, ptrdiff_t peel, ptrdiff_t columns, const int single) {
    const ptrdiff_t left = j < peel ? peel - j : columns - j, whole = VECTORS_PER_COLUMN_BLOCK * LANES;
    const ptrdiff_t most = j < peel || (single && left < whole) ? LANES : whole;
    return left < most ? left : most;
}

/* Calls BLOCK(K, partial) for all column blocks of all rows; the last vector of a block may be partial.
 * rows_per_pass rows are taken at a time, each pass over all columns: more rows load the coefficients less often, fewer
 * read memory closer to its order. Rows of one block are taken in one pass, which reads memory in its order anyhow.
 * `single`, a constant: what does not fill a block is taken a vector at a time, which is less code.
 * Captures rows, columns and rows_per_pass; declares begin and end, the rows of a pass, and j, the first column of a
 * block. BLOCK calls one of the functions ..._block below. */
#define FOR_COLUMN_BLOCKS(peel, single, BLOCK)                                                              \
    const ptrdiff_t pass_rows = columns <= VECTORS_PER_COLUMN_BLOCK * LANES ? rows : rows_per_pass;         \
    for (ptrdiff_t begin = 0; begin < rows; begin += pass_rows) {                                           \
        const ptrdiff_t end = begin + pass_rows < rows ? begin + pass_rows : rows;                          \
        for (ptrdiff_t j = 0, width; j < columns; j += width) {                                             \
            width = FN(column_block_width)(j, peel, columns, single);                                       \
            const ptrdiff_t partial = width % LANES;                                                        \
            if (width == VECTORS_PER_COLUMN_BLOCK * LANES) BLOCK(VECTORS_PER_COLUMN_BLOCK, 0);              \
            else if (VECTORS_PER_COLUMN_BLOCK >= 4 && !(single) && width > 3 * LANES)                       \
                BLOCK(VECTORS_PER_COLUMN_BLOCK >= 4 ? 4 : 1, partial);                                      \
            else if (VECTORS_PER_COLUMN_BLOCK >= 4 && !(single) && width > 2 * LANES)                       \
                BLOCK(VECTORS_PER_COLUMN_BLOCK >= 4 ? 3 : 1, partial);                                      \
            else if (VECTORS_PER_COLUMN_BLOCK >= 2 && !(single) && width > LANES)                           \
                BLOCK(VECTORS_PER_COLUMN_BLOCK >= 2 ? 2 : 1, partial);                                      \
            else BLOCK(1, partial);                                                                         \
        }                                                                                                   \
    }

/* Within a block: its K vectors, the first column of vector k, and the elements of a partial vector or 0. They capture
 * K, j and partial; FOR_VECTORS declares k. */
#define FOR_VECTORS _Pragma("GCC unroll 4") for (int k = 0; k < K; ++k)
#define COLUMN (j + k * LANES)
#define PARTIAL_OF_VECTOR (k == K - 1 ? partial : 0)

/* The prefetch distance where rows are contiguous, else 0: the loads of a column block are strided by a row, and a
 * hardware prefetcher does not see that all memory is read. */
INLINE ptrdiff_t FN(column_prefetch)(const char *const *x, ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t bytes) {
    return rows > 1 && x[1] - x[0] == columns * (ptrdiff_t)sizeof(S) ? bytes : 0;
}
/* Once a cache line: of vector k, some of which share a line where they are narrower in memory. */
#define PREFETCH_COLUMN(row) \
    if (k * LANES * sizeof(S) % LANES_ALIGN == 0) __builtin_prefetch((row) + COLUMN * sizeof(S) + prefetch_bytes, 0, 3)

/* A vector of the sums' input at column j; in two halves where vectors touch two cache lines. */
INLINE VECTOR FN(column_load)(const char *row, ptrdiff_t j, ptrdiff_t partial, VECTOR padding, const int halves) {
    return halves && !partial ? LOAD_HALVES((const S *)row + j) : FN(vector_load)(row, j, partial, padding);
}

/* Whether any of n values of the accumulation type is not 0. */
static int FN(any_nonzero)(const void *values, ptrdiff_t n) {
    int any = 0;
    for (ptrdiff_t i = 0; i < n; ++i) any |= ((const A *)values)[i] != 0;
    return any;
}

/* ---- probe, sums ---- */

/* shift = the mean of each column's probe, or 0 where |mean| is at most the deviation (see shift_from_probe). */
INLINE void FN(column_probe_block)(const char *const *x, ptrdiff_t begin, ptrdiff_t end, ptrdiff_t j,
                                   ptrdiff_t partial, A *shift, const int K) {
    const A rows = (A)(end - begin);
    const VECTOR per_row = SET(1 / rows), count = SET(rows), two = SET(2), zero = SET(0);
    VECTOR sum_d[VECTORS_PER_COLUMN_BLOCK], sum_dd[VECTORS_PER_COLUMN_BLOCK];
    FOR_VECTORS sum_d[k] = sum_dd[k] = zero;
    for (ptrdiff_t row = begin; row < end; ++row) FOR_VECTORS {
        const VECTOR d = FN(vector_load)(x[row], COLUMN, PARTIAL_OF_VECTOR, zero);
        sum_d[k] = ADD(sum_d[k], d);
        sum_dd[k] = ADD(sum_dd[k], MUL(d, d));
    }
    FOR_VECTORS {
        const VECTOR excess = SUB(MUL(MUL(two, sum_d[k]), sum_d[k]), MUL(count, sum_dd[k]));
        FN(acc_store)(shift, COLUMN, PARTIAL_OF_VECTOR, IF_POSITIVE(excess, MUL(sum_d[k], per_row), zero));
    }
}

static void FN(column_probe)(const char *const *x, ptrdiff_t rows, ptrdiff_t columns, void *shift) {
    const ptrdiff_t rows_per_pass = rows;
#define PROBE_BLOCK(K, partial) FN(column_probe_block)(x, begin, end, j, partial, shift, K)
    FOR_COLUMN_BLOCKS(0, 0, PROBE_BLOCK)
#undef PROBE_BLOCK
}

/* Columns of one call of the sums, at most: their sums lie on the stack between the passes. */
#define SUMMED_COLUMNS_MAX (COLUMN_BLOCK_DOUBLES * (ptrdiff_t)(sizeof(double) / sizeof(A)))

INLINE void FN(column_sums_block)(const char *const *x, ptrdiff_t begin, ptrdiff_t end, ptrdiff_t j,
                                  ptrdiff_t partial, const void *shifts, A *sums_d, A *sums_dd,
                                  ptrdiff_t prefetch_bytes, const int centred, const int halves, const int K) {
    VECTOR shift[VECTORS_PER_COLUMN_BLOCK], sum_d[VECTORS_PER_COLUMN_BLOCK], sum_dd[VECTORS_PER_COLUMN_BLOCK];
    FOR_VECTORS {
        shift[k] = FN(acc_load)(shifts, COLUMN, PARTIAL_OF_VECTOR);
        sum_d[k] = FN(acc_load)(sums_d, COLUMN, 0);
        sum_dd[k] = FN(acc_load)(sums_dd, COLUMN, 0);
    }
    for (ptrdiff_t row = begin; row < end; ++row) {
        const char *const x_row = x[row];
        FOR_VECTORS {
            PREFETCH_COLUMN(x_row);
            VECTOR d = FN(column_load)(x_row, COLUMN, PARTIAL_OF_VECTOR, shift[k], halves);
            if (centred == SHIFTED) d = SUB(d, shift[k]);
            if (centred == MAGNITUDES) sum_dd[k] = ADD(sum_dd[k], MAGNITUDE(d));
            else if (centred == LARGEST) sum_dd[k] = LARGER(sum_dd[k], MAGNITUDE(d));
            else {
                sum_d[k] = ADD(sum_d[k], d);
                sum_dd[k] = ADD(sum_dd[k], MUL(d, d));
            }
        }
    }
    FOR_VECTORS {
        FN(acc_store)(sums_d, COLUMN, 0, sum_d[k]);
        FN(acc_store)(sums_dd, COLUMN, 0, sum_dd[k]);
    }
}

/* Adds the `terms` of some rows to the sums of each column, which are whole vectors: d and d*d, d = x - shift; for
 * MAGNITUDES and LARGEST |x|, to sums_dd alone. */
static void FN(column_sums_into)(const char *const *x, ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t rows_per_pass,
                                 const void *shift, int terms, A *sums_d, A *sums_dd) {
    const ptrdiff_t prefetch_bytes =
        FN(column_prefetch)(x, rows, columns, MOMENTS_ALONE ? WIDE_PREFETCH_BYTES : COLUMN_PREFETCH_BYTES);
#define SUMS_BLOCK(K, partial) \
    FN(column_sums_block)(x, begin, end, j, partial, shift, sums_d, sums_dd, prefetch_bytes, centred, halves, K)
#define FOR_SUMS_BLOCKS(centring, in_halves)                \
    {                                                       \
        enum { centred = centring, halves = in_halves };    \
        FOR_COLUMN_BLOCKS(0, 0, SUMS_BLOCK)                 \
    }
    if (!MOMENTS_ALONE && (terms == MAGNITUDES || terms == LARGEST)) {
        enum { halves = 0 };
        const int centred = terms;
        FOR_COLUMN_BLOCKS(0, 1, SUMS_BLOCK)
    }
    else if (FN(any_nonzero)(shift, columns)) FOR_SUMS_BLOCKS(SHIFTED, 0)
    else if (SPLITS_LINE((const S *)x[0])) FOR_SUMS_BLOCKS(CENTRED, 1)
    else FOR_SUMS_BLOCKS(CENTRED, 0)
#undef FOR_SUMS_BLOCKS
#undef SUMS_BLOCK
}

/* Per column: sum_d += sum of d, sum_dd += sum of d*d, d = x - shift; MAGNITUDES, LARGEST: sum_dd gets them.
 * COLUMN_BLOCK_ROWS rows and SUMMED_COLUMNS_MAX columns at most. */
static void FN(column_sums)(const char *const *x, ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t rows_per_pass,
                            const void *shift, int terms, double *sum_d, double *sum_dd) {
    A sums_d[SUMMED_COLUMNS_MAX], sums_dd[SUMMED_COLUMNS_MAX];
    FN(sums_clear)(sums_d, columns);
    FN(sums_clear)(sums_dd, columns);
    FN(column_sums_into)(x, rows, columns, rows_per_pass, shift, terms, sums_d, sums_dd);
    FN(sums_add_to)(sums_d, columns, sum_d);
    if (terms == LARGEST) FN(sums_larger_to)(sums_dd, columns, sum_dd);
    else FN(sums_add_to)(sums_dd, columns, sum_dd);
}
