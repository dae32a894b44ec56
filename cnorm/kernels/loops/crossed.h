/* Crossed statistics: a table whose elements are normalized by a mix of the statistics of their row and of their
 * column, as SwitchNorm does with (N, C) input. Included by common.h, once per dtype. crossed.pyx has the algorithm.
 *
 * Everything is in units of the largest deviation: `scale` is a power of two near 1 / sqrt(largest variance), and
 * variances come multiplied by scale**2. So the square of an rstd overflows no float, whatever the input's magnitude.
 * Of one element, with the shares of row and column in the mean:
 *     dev  = scale * (share[0] * (x - row mean) + share[1] * (x - column mean))
 *     rstd = 1 / sqrt(row variance + column variance)      which hold their shares, and eps
 *     xhat = dev * rstd
 * Both differences are taken by themselves, each mean in two parts: the mean of a row and that of a column may lie far
 * apart, and each may be far from 0.
 *
 * Column i goes to lane i modulo the lane count, and sums down the columns take the rows in their order: how many rows
 * go side by side changes no bits.
 */

/* Vectors of R rows, from `row` on. Captures block, row and R. */
#define CROSSED_ROWS                                                                                         \
    const VECTOR low = SET(block->low), high = SET(block->high);                                             \
    const VECTOR share0 = SET(block->share[0] * block->scale), share1 = SET(block->share[1] * block->scale); \
    const VECTOR one = SET(1);                                                                               \
    VECTOR row_hi[GRAD_ROWS_UNROLLED], row_lo[GRAD_ROWS_UNROLLED], row_variance[GRAD_ROWS_UNROLLED];         \
    FOR_UNROLLED_ROWS {                                                                                      \
        row_hi[k] = SET(block->row_hi[row + k]);                                                             \
        row_lo[k] = SET(block->row_lo[row + k]);                                                             \
        row_variance[k] = SET(block->row_variance[row + k]);                                                 \
    }

/* What the block has for the columns of the vector at j. Captures block and j. */
#define CROSSED_COLUMN(name) PARAMETER(block->name, j)
#define CROSSED_COLUMNS                                                                        \
    const VECTOR column_hi = CROSSED_COLUMN(column_hi), column_lo = CROSSED_COLUMN(column_lo); \
    const VECTOR column_variance = CROSSED_COLUMN(column_variance), weight = CROSSED_COLUMN(weight);

/* The means of the columns at j, and `padding` beyond a partial vector. */
INLINE VECTOR FN(crossed_mean)(const CrossedBlock *block, ptrdiff_t j, ptrdiff_t partial, VECTOR mean, VECTOR padding) {
    return partial ? CAT(A, load_partial)((const A *)block->column_hi + j, partial, padding) : mean;
}

/* row_d, column_d, rstd and xhat of the vector at j of row k. In lanes beyond a partial vector both differences are 0:
 * what they hold stays finite, and enters no sum, as dy is 0 there. */
#define CROSSED_ELEMENTS                                                                               \
    const VECTOR padded = FN(crossed_mean)(block, j, partial, column_hi, row_hi[k]);                   \
    const VECTOR x = FN(vector_load)(block->x[row + k], j, partial, row_hi[k]);                        \
    const VECTOR row_d = SUB(x, row_hi[k]), column_d = SUB(x, padded);                                 \
    const VECTOR dev = SUB(ADD(MUL(share0, row_d), MUL(share1, column_d)), ADD(row_lo[k], column_lo)); \
    const VECTOR rstd = CAT(A, div)(one, CAT(A, sqrt)(ADD(row_variance[k], column_variance)));         \
    const VECTOR xhat = MUL(dev, rstd);

/* VECTOR_OF(partial) for each vector of columns, with its first column in j. */
#define FOR_CROSSED_COLUMNS(VECTOR_OF)              \
    ptrdiff_t j = 0;                                \
    for (; j + LANES <= block->columns; j += LANES) \
        VECTOR_OF(0)                                \
    if (j < block->columns) VECTOR_OF(block->columns - j)

/* FUNCTION(R) for all rows of a block: side by side, and those that are left over one by one. */
#define FOR_CROSSED_ROWS(FUNCTION)                                                                           \
    ptrdiff_t row = 0;                                                                                       \
    for (; row + GRAD_ROWS_UNROLLED <= block->rows; row += GRAD_ROWS_UNROLLED) FUNCTION(GRAD_ROWS_UNROLLED); \
    for (; row < block->rows; ++row) FUNCTION(1);

/* ---- forward ---- */

INLINE void FN(crossed_apply_rows)(const CrossedBlock *block, ptrdiff_t row, const int R) {
    const int activation = block->activation;
    CROSSED_ROWS
#define APPLY_VECTOR(partial_columns)                                           \
    {                                                                           \
        const ptrdiff_t partial = partial_columns;                              \
        CROSSED_COLUMNS                                                         \
        const VECTOR bias = CROSSED_COLUMN(bias);                               \
        FOR_UNROLLED_ROWS {                                                     \
            CROSSED_ELEMENTS                                                    \
            VECTOR z = ADD(MUL(xhat, weight), bias);                            \
            z = FN(activated)(z, CROSSED_COLUMN(slope), low, high, activation); \
            FN(vector_store)(block->y[row + k], j, partial, z, 0);              \
        }                                                                       \
    }
    FOR_CROSSED_COLUMNS(APPLY_VECTOR)
#undef APPLY_VECTOR
}

/* y = xhat * weight + bias, then the activation. */
static void FN(crossed_apply)(const CrossedBlock *block) {
#define APPLY_ROWS(R) FN(crossed_apply_rows)(block, row, R)
    FOR_CROSSED_ROWS(APPLY_ROWS)
#undef APPLY_ROWS
}

/* ---- backward ---- */

/* g of row k: dy, behind the activation. Captures activation; adds to sum_slope, a vector or NULL. */
#define CROSSED_GRADIENT(sum_slope)                                                                                    \
    VECTOR g = FN(vector_load)(block->dy[row + k], j, partial, SET(0));                                                \
    if (activation)                                                                                                    \
        g = FN(activation_backward)(g, ADD(MUL(xhat, weight), CROSSED_COLUMN(bias)), CROSSED_COLUMN(slope), low, high, \
                                    sum_slope, activation);

INLINE void FN(crossed_sum_rows)(CrossedBlock *block, A sums[N_CROSSED_SUMS][CROSSED_COLUMNS_MAX], ptrdiff_t row,
                                 const int R) {
    const int activation = block->activation;
    VECTOR row_sum[2][GRAD_ROWS_UNROLLED];
    CROSSED_ROWS
    FOR_UNROLLED_ROWS row_sum[0][k] = row_sum[1][k] = SET(0);
#define SUM_VECTOR(partial_columns)                                                       \
    {                                                                                     \
        const ptrdiff_t partial = partial_columns;                                        \
        CROSSED_COLUMNS                                                                   \
        VECTOR sum_g = CAT(A, load)(sums[0] + j), sum_gxhat = CAT(A, load)(sums[1] + j),  \
               sum_mean = CAT(A, load)(sums[2] + j), sum_var = CAT(A, load)(sums[3] + j), \
               sum_slope = has_slopes(activation) ? CAT(A, load)(sums[4] + j) : SET(0);   \
        FOR_UNROLLED_ROWS {                                                               \
            CROSSED_ELEMENTS                                                              \
            CROSSED_GRADIENT(&sum_slope)                                                  \
            const VECTOR to_mean = MUL(rstd, g), to_var = MUL(to_mean, MUL(rstd, xhat));  \
            sum_g = ADD(sum_g, g);                                                        \
            sum_gxhat = ADD(sum_gxhat, MUL(g, xhat));                                     \
            sum_mean = ADD(sum_mean, to_mean);                                            \
            sum_var = ADD(sum_var, to_var);                                               \
            row_sum[0][k] = ADD(row_sum[0][k], MUL(weight, to_mean));                     \
            row_sum[1][k] = ADD(row_sum[1][k], MUL(weight, to_var));                      \
        }                                                                                 \
        CAT(A, store)(sums[0] + j, sum_g);                                                \
        CAT(A, store)(sums[1] + j, sum_gxhat);                                            \
        CAT(A, store)(sums[2] + j, sum_mean);                                             \
        CAT(A, store)(sums[3] + j, sum_var);                                              \
        if (has_slopes(activation)) CAT(A, store)(sums[4] + j, sum_slope);                \
    }
    FOR_CROSSED_COLUMNS(SUM_VECTOR)
#undef SUM_VECTOR
    FOR_UNROLLED_ROWS {
        block->row_sums[0][row + k] = HSUM(row_sum[0][k]);
        block->row_sums[1][row + k] = HSUM(row_sum[1][k]);
    }
}

/* Of each row: row_sums = the sums of weight * rstd * g and of weight * rstd**2 * g * xhat. To those of each column are
 * added the sums of g, of g * xhat, of rstd * g, of rstd**2 * g * xhat, and of the slope's gradient. */
static void FN(crossed_grad_sums)(CrossedBlock *block, double *const total[N_CROSSED_SUMS]) {
    A sums[N_CROSSED_SUMS][CROSSED_COLUMNS_MAX];
    const int used = has_slopes(block->activation) ? N_CROSSED_SUMS : N_CROSSED_SUMS - 1;
    for (int i = 0; i < used; ++i) FN(sums_clear)(sums[i], block->columns);
#define SUM_ROWS(R) FN(crossed_sum_rows)(block, sums, row, R)
    FOR_CROSSED_ROWS(SUM_ROWS)
#undef SUM_ROWS
    for (int i = 0; i < used; ++i) FN(sums_add_to)(sums[i], block->columns, total[i]);
}

INLINE void FN(crossed_grad_rows)(const CrossedBlock *block, ptrdiff_t row, const int R) {
    const int activation = block->activation;
    const VECTOR scale = SET(block->scale);
    VECTOR row_offset[GRAD_ROWS_UNROLLED], row_coeff[GRAD_ROWS_UNROLLED];
    CROSSED_ROWS
    FOR_UNROLLED_ROWS {
        row_offset[k] = SET(block->row_offset[row + k]);
        row_coeff[k] = SET(block->row_coeff[row + k]);
    }
#define GRAD_VECTOR(partial_columns)                                                                             \
    {                                                                                                            \
        const ptrdiff_t partial = partial_columns;                                                               \
        CROSSED_COLUMNS                                                                                          \
        const VECTOR column_offset = CROSSED_COLUMN(column_offset), column_coeff = CROSSED_COLUMN(column_coeff); \
        FOR_UNROLLED_ROWS {                                                                                      \
            CROSSED_ELEMENTS                                                                                     \
            CROSSED_GRADIENT(NULL)                                                                               \
            g = SUB(MUL(MUL(rstd, weight), g), ADD(row_offset[k], column_offset));                               \
            g = SUB(g, ADD(MUL(row_coeff[k], row_d), MUL(column_coeff, column_d)));                              \
            FN(vector_store)(block->y[row + k], j, partial, MUL(g, scale), 0);                                   \
        }                                                                                                        \
    }
    FOR_CROSSED_COLUMNS(GRAD_VECTOR)
#undef GRAD_VECTOR
}

/* dx = scale * ((rstd * weight * g - row_offset - column_offset) - row_coeff * row_d - column_coeff * column_d) */
static void FN(crossed_grad_apply)(const CrossedBlock *block) {
#define GRAD_ROWS(R) FN(crossed_grad_rows)(block, row, R)
    FOR_CROSSED_ROWS(GRAD_ROWS)
#undef GRAD_ROWS
}

#undef CROSSED_ROWS
#undef CROSSED_COLUMN
#undef CROSSED_COLUMNS
#undef CROSSED_ELEMENTS
#undef CROSSED_GRADIENT
#undef FOR_CROSSED_COLUMNS
#undef FOR_CROSSED_ROWS
