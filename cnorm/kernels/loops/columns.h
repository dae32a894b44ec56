/* Columns: what is applied to each column, and the sums down the rows backward. Included by common.h, once per dtype,
 * after column_sums.h, which describes column blocks.
 */

/* ---- forward: apply ---- */

INLINE void FN(column_apply_block)(const char *const *x, char *const *y, ptrdiff_t begin, ptrdiff_t end, ptrdiff_t j,
                                   ptrdiff_t partial, const ColumnCoefficients *coeffs, ptrdiff_t prefetch_bytes,
                                   const int centred, const int activation, const int rowwise, const int nontemporal,
                                   const int K) {
    const A *const row_weight = coeffs->row_weight, *const row_bias = coeffs->row_bias,
            *const row_slope = coeffs->row_slope;
    VECTOR mean_hi[VECTORS_PER_COLUMN_BLOCK], scale[VECTORS_PER_COLUMN_BLOCK];
    VECTOR bias[VECTORS_PER_COLUMN_BLOCK], slope[VECTORS_PER_COLUMN_BLOCK];
    FOR_VECTORS {
        mean_hi[k] = FN(acc_load)(coeffs->mean_hi, COLUMN, PARTIAL_OF_VECTOR);
        scale[k] = FN(acc_load)(coeffs->scale, COLUMN, PARTIAL_OF_VECTOR);
        bias[k] = FN(acc_load)(coeffs->bias, COLUMN, PARTIAL_OF_VECTOR);
        if (has_slopes(activation)) slope[k] = FN(acc_load)(coeffs->slope, COLUMN, PARTIAL_OF_VECTOR);
        else slope[k] = bias[k]; /* not used */
    }
    const VECTOR low = SET(coeffs->low), high = SET(coeffs->high);
    for (ptrdiff_t row = begin; row < end; ++row) {
        const char *const x_row = x[row];
        char *const y_row = y[row];
        FOR_VECTORS {
            PREFETCH_COLUMN(x_row);
            VECTOR z = FN(vector_load)(x_row, COLUMN, PARTIAL_OF_VECTOR, mean_hi[k]);
            if (centred == SHIFTED) z = SUB(z, mean_hi[k]);
            z = ADD(MUL(z, scale[k]), bias[k]);
            if (rowwise) z = ADD(MUL(z, SET(row_weight[row])), SET(row_bias ? row_bias[row] : 0));
            z = FN(activated)(z, rowwise && row_slope ? SET(row_slope[row]) : slope[k], low, high, activation);
            FN(vector_store)(y_row, COLUMN, PARTIAL_OF_VECTOR, z, nontemporal && WHOLE_LINES(K));
        }
    }
}

/* The column blocks of a pass: BLOCK with centred, activated, rowwise, halves and nontemporal as the coefficients ask
 * for. They are constants in the variants that most calls take; tests of them at each vector, and the registers that
 * what they choose from would take, cost up to half as much again. All else is one variant that tests: theirs would
 * multiply. Captures coeffs, activation and the names that FOR_COLUMN_BLOCKS captures. */
#define FOR_CHOSEN_BLOCKS(BLOCK, peel, splits_line)                                                              \
    if (coeffs->signs || (coeffs->row_weight && (activation || (peel) >= 0))) {                                  \
        enum { halves = 0 };                                                                                     \
        const int centred = coeffs->signs ? SIGNS : SHIFTED, activated = activation;                             \
        const int rowwise = coeffs->row_weight != NULL, nontemporal = (peel) >= 0;                               \
        FOR_COLUMN_BLOCKS(nontemporal ? peel : 0, 1, BLOCK)                                                      \
    }                                                                                                            \
    else if ((peel) >= 0) FOR_CHOSEN_VARIANT(BLOCK, SHIFTED, ACT_NONE, 0, 0, 1, peel)                            \
    else if (coeffs->row_weight) FOR_CHOSEN_VARIANT(BLOCK, SHIFTED, ACT_NONE, 1, 0, 0, 0)                        \
    else if (activation == ACT_CLIP) FOR_CHOSEN_VARIANT(BLOCK, SHIFTED, ACT_CLIP, 0, 0, 0, 0)                    \
    else if (activation) FOR_CHOSEN_VARIANT(BLOCK, SHIFTED, ACT_SLOPES, 0, 0, 0, 0)                              \
    else if (coeffs->shifted) FOR_CHOSEN_VARIANT(BLOCK, SHIFTED, ACT_NONE, 0, 0, 0, 0)                           \
    else if (splits_line) FOR_CHOSEN_VARIANT(BLOCK, CENTRED, ACT_NONE, 0, 1, 0, 0)                               \
    else FOR_CHOSEN_VARIANT(BLOCK, CENTRED, ACT_NONE, 0, 0, 0, 0)
#define FOR_CHOSEN_VARIANT(BLOCK, centring, chosen, by_row, in_halves, past_cache, peel)                         \
    {                                                                                                            \
        enum { centred = centring, activated = chosen, rowwise = by_row, halves = in_halves };                   \
        enum { nontemporal = past_cache };                                                                       \
        FOR_COLUMN_BLOCKS(peel, 0, BLOCK)                                                                        \
    }

/* The elements of y to store before aligned non-temporal stores; -1 where these are not asked for, or do not fit. */
INLINE ptrdiff_t FN(column_peel)(char *const *y, ptrdiff_t rows, ptrdiff_t columns, const ColumnCoefficients *coeffs,
                                 int activation) {
    return coeffs->nontemporal && !activation ? FN(common_peel)(y, rows, columns, 1) : -1;
}

/* y = (x - mean_hi) * scale + bias, then the parameters of the row, if any, then the activation. */
static void FN(column_apply)(const char *const *x, char *const *y, ptrdiff_t rows, ptrdiff_t columns,
                             ptrdiff_t rows_per_pass, const ColumnCoefficients *coeffs, int activation) {
    const ptrdiff_t prefetch_bytes = FN(column_prefetch)(x, rows, columns, coeffs->prefetch_bytes);
#define APPLY_BLOCK(K, partial) \
    FN(column_apply_block)(x, y, begin, end, j, partial, coeffs, prefetch_bytes, centred, activated, rowwise, \
                           nontemporal, K)
    const ptrdiff_t peel = FN(column_peel)(y, rows, columns, coeffs, activation);
    FOR_CHOSEN_BLOCKS(APPLY_BLOCK, peel, 0)
#undef APPLY_BLOCK
}

/* ---- backward: sums, apply ---- */

/* What the activation and the parameters of rows need of the columns of a block. Captures coeffs, activation and
 * rowwise, declares z_scale, z_bias, z_slope (with slopes; else it is not used), low, high and the parameters of rows.
 */
#define LOAD_ACTIVATION                                                                                            \
    const A *const row_weight = coeffs->row_weight, *const row_bias = coeffs->row_bias,                            \
            *const row_slope = coeffs->row_slope;                                                                  \
    VECTOR z_scale[VECTORS_PER_COLUMN_BLOCK], z_bias[VECTORS_PER_COLUMN_BLOCK], z_slope[VECTORS_PER_COLUMN_BLOCK]; \
    const VECTOR low = SET(coeffs->low), high = SET(coeffs->high);                                                 \
    FOR_VECTORS {                                                                                                  \
        z_scale[k] = z_bias[k] = z_slope[k] = SET(0);                                                              \
        if (activation || rowwise) {                                                                               \
            z_scale[k] = FN(acc_load)(coeffs->scale, COLUMN, PARTIAL_OF_VECTOR);                                   \
            z_bias[k] = FN(acc_load)(coeffs->bias, COLUMN, PARTIAL_OF_VECTOR);                                     \
        }                                                                                                          \
        if (has_slopes(activation)) z_slope[k] = FN(acc_load)(coeffs->slope, COLUMN, PARTIAL_OF_VECTOR);           \
    }
/* Of vector k of a row: z is the normalized value without the row's parameters, or with those of its column, computed
 * again from d. g becomes the gradient of the input of the activation; `slopes` takes the gradient of the slope, or is
 * NULL. Captures the names that LOAD_ACTIVATION declares. */
#define NORMALIZED_AGAIN(d) ADD(MUL(d, z_scale[k]), z_bias[k])
#define ACTIVATION_BACKWARD(g, z, slopes)                                                                     \
    if (activation) {                                                                                         \
        VECTOR before = z;                                                                                    \
        if (rowwise) before = ADD(MUL(z, SET(row_weight[row])), SET(row_bias ? row_bias[row] : 0));           \
        g = FN(activation_backward)(g, before, rowwise && row_slope ? SET(row_slope[row]) : z_slope[k], low,  \
                                    high, slopes, activation);                                                \
    }
/* The sums along the rows of a call: of the gradients of weight, bias and slope, a vector of each per row. */
typedef struct {
    VECTOR weight[COLUMN_BLOCK_ROWS], bias[COLUMN_BLOCK_ROWS], slope[COLUMN_BLOCK_ROWS];
} FN(RowSums);

INLINE void FN(column_grad_sums_block)(const char *const *x, const char *const *dy, ptrdiff_t begin, ptrdiff_t end,
                                       ptrdiff_t j, ptrdiff_t partial, const ColumnCoefficients *coeffs,
                                       A *const sums[4], FN(RowSums) *row_sums, ptrdiff_t prefetch_bytes,
                                       const int centred, const int halves, const int activation, const int rowwise,
                                       const int K) {
    VECTOR mean_hi[VECTORS_PER_COLUMN_BLOCK], sum_g[VECTORS_PER_COLUMN_BLOCK], sum_gd[VECTORS_PER_COLUMN_BLOCK],
           sum_d[VECTORS_PER_COLUMN_BLOCK], sum_slope[VECTORS_PER_COLUMN_BLOCK];
    LOAD_ACTIVATION
    FOR_VECTORS {
        mean_hi[k] = FN(acc_load)(coeffs->mean_hi, COLUMN, PARTIAL_OF_VECTOR);
        sum_g[k] = FN(acc_load)(sums[0], COLUMN, 0);
        sum_gd[k] = FN(acc_load)(sums[1], COLUMN, 0);
        sum_d[k] = SUMS_DEVIATIONS ? FN(acc_load)(sums[2], COLUMN, 0) : SET(0);
        sum_slope[k] = has_slopes(activation) ? FN(acc_load)(sums[3], COLUMN, 0) : SET(0);
    }
    for (ptrdiff_t row = begin; row < end; ++row) {
        const char *const x_row = x[row], *const dy_row = dy[row];
        VECTOR row_sum_weight, row_sum_bias, row_sum_slope;
        if (rowwise) {
            row_sum_weight = row_sums->weight[row];
            row_sum_bias = row_sums->bias[row];
            if (has_slopes(activation)) row_sum_slope = row_sums->slope[row];
        }
        FOR_VECTORS {
            PREFETCH_COLUMN(x_row);
            PREFETCH_COLUMN(dy_row);
            VECTOR d = FN(column_load)(x_row, COLUMN, PARTIAL_OF_VECTOR, mean_hi[k], halves);
            if (centred == SHIFTED) d = SUB(d, mean_hi[k]);
            VECTOR g = FN(column_load)(dy_row, COLUMN, PARTIAL_OF_VECTOR, SET(0), halves);
            if (rowwise) {
                const VECTOR z = NORMALIZED_AGAIN(d);
                VECTOR slope_term = SET(0);
                ACTIVATION_BACKWARD(g, z, &slope_term)
                if (has_slopes(activation)) {
                    sum_slope[k] = ADD(sum_slope[k], slope_term);
                    row_sum_slope = ADD(row_sum_slope, slope_term);
                }
                row_sum_weight = ADD(row_sum_weight, MUL(g, z));
                row_sum_bias = ADD(row_sum_bias, g);
                g = MUL(g, SET(row_weight[row]));
            } else if (activation) {
                const VECTOR z = NORMALIZED_AGAIN(d);
                ACTIVATION_BACKWARD(g, z, &sum_slope[k])
            }
            VECTOR term = g;
            if (centred == SIGNS) {
                const VECTOR sign = SIGN_OF_LARGE(d, mean_hi[k]);
                term = MUL(sign, sign);
            }
            sum_g[k] = ADD(sum_g[k], term);
            sum_gd[k] = ADD(sum_gd[k], MUL(g, d));
            if (SUMS_DEVIATIONS) sum_d[k] = ADD(sum_d[k], d);
        }
        if (rowwise) {
            row_sums->weight[row] = row_sum_weight;
            row_sums->bias[row] = row_sum_bias;
            if (has_slopes(activation)) row_sums->slope[row] = row_sum_slope;
        }
    }
    FOR_VECTORS {
        FN(acc_store)(sums[0], COLUMN, 0, sum_g[k]);
        FN(acc_store)(sums[1], COLUMN, 0, sum_gd[k]);
        if (SUMS_DEVIATIONS) FN(acc_store)(sums[2], COLUMN, 0, sum_d[k]);
        if (has_slopes(activation)) FN(acc_store)(sums[3], COLUMN, 0, sum_slope[k]);
    }
}

/* Per column: adds the sums of g, of g*d, of d (float64 only) and of the gradient of the slope. Where rows have
 * parameters, row_sums has the addresses of the gradients of weight, bias and slope of each row, which are written.
 * COLUMN_BLOCK_ROWS rows and SUMMED_COLUMNS_MAX columns at most. */
static void FN(column_grad_sums)(const char *const *x, const char *const *dy, ptrdiff_t rows, ptrdiff_t columns,
                                 ptrdiff_t rows_per_pass, const ColumnCoefficients *coeffs, int activation,
                                 double *sum_g, double *sum_gd, double *sum_d, double *sum_slope,
                                 double *const *row_sums) {
    FN(RowSums) of_rows;
    A buffer[4][SUMMED_COLUMNS_MAX], *const sums[4] = {buffer[0], buffer[1], buffer[2], buffer[3]};
    FN(sums_clear)(sums[0], columns);
    FN(sums_clear)(sums[1], columns);
    if (SUMS_DEVIATIONS) FN(sums_clear)(sums[2], columns);
    if (has_slopes(activation)) FN(sums_clear)(sums[3], columns);
    const ptrdiff_t prefetch_bytes = FN(column_prefetch)(x, rows, columns, coeffs->prefetch_bytes);
#define GRAD_SUMS_BLOCK(K, partial)                                                                          \
    FN(column_grad_sums_block)(x, dy, begin, end, j, partial, coeffs, sums, &of_rows, prefetch_bytes, centred, \
                               halves, activated, rowwise, K)
    if (coeffs->row_weight)
        for (ptrdiff_t row = 0; row < rows; ++row)
            of_rows.weight[row] = of_rows.bias[row] = of_rows.slope[row] = SET(0);
    FOR_CHOSEN_BLOCKS(GRAD_SUMS_BLOCK, -1, SPLITS_LINE((const S *)x[0]))
    if (coeffs->row_weight) {
        CAT(A, hsum_all)(of_rows.weight, rows, row_sums[0]);
        CAT(A, hsum_all)(of_rows.bias, rows, row_sums[1]);
        if (has_slopes(activation)) CAT(A, hsum_all)(of_rows.slope, rows, row_sums[2]);
    }
#undef GRAD_SUMS_BLOCK
    FN(sums_add_to)(sums[0], columns, sum_g);
    FN(sums_add_to)(sums[1], columns, sum_gd);
    if (SUMS_DEVIATIONS) FN(sums_add_to)(sums[2], columns, sum_d);
    if (has_slopes(activation)) FN(sums_add_to)(sums[3], columns, sum_slope);
}

INLINE void FN(column_grad_apply_block)(const char *const *x, const char *const *dy, const char *const *addend,
                                        char *const *dx, ptrdiff_t begin, ptrdiff_t end, ptrdiff_t j,
                                        ptrdiff_t partial, const ColumnCoefficients *coeffs, ptrdiff_t prefetch_bytes,
                                        const int centred, const int activation, const int rowwise,
                                        const int nontemporal, const int K) {
    VECTOR mean_hi[VECTORS_PER_COLUMN_BLOCK], scale[VECTORS_PER_COLUMN_BLOCK], dev_coeff[VECTORS_PER_COLUMN_BLOCK],
           grad_offset[VECTORS_PER_COLUMN_BLOCK];
    VECTOR rstd[VECTORS_PER_COLUMN_BLOCK];
    LOAD_ACTIVATION
    FOR_VECTORS {
        mean_hi[k] = FN(acc_load)(coeffs->mean_hi, COLUMN, PARTIAL_OF_VECTOR);
        scale[k] = FN(acc_load)(coeffs->scale, COLUMN, PARTIAL_OF_VECTOR);
        dev_coeff[k] = FN(acc_load)(coeffs->dev_coeff, COLUMN, PARTIAL_OF_VECTOR);
        grad_offset[k] = FN(acc_load)(coeffs->grad_offset, COLUMN, PARTIAL_OF_VECTOR);
        rstd[k] = FN(acc_load)(coeffs->rstd, COLUMN, PARTIAL_OF_VECTOR);
    }
    for (ptrdiff_t row = begin; row < end; ++row) {
        const char *const x_row = x[row], *const dy_row = dy[row];
        char *const dx_row = dx[row];
        FOR_VECTORS {
            PREFETCH_COLUMN(x_row);
            PREFETCH_COLUMN(dy_row);
            VECTOR d = FN(vector_load)(x_row, COLUMN, PARTIAL_OF_VECTOR, mean_hi[k]);
            if (centred == SHIFTED) d = SUB(d, mean_hi[k]);
            if (centred == SIGNS) d = SIGN_OF_LARGE(d, mean_hi[k]);
            VECTOR g = FN(vector_load)(dy_row, COLUMN, PARTIAL_OF_VECTOR, SET(0));
            if (activation) {
                const VECTOR z = NORMALIZED_AGAIN(d);
                ACTIVATION_BACKWARD(g, z, NULL)
            }
            if (rowwise) g = MUL(g, SET(row_weight[row]));
            g = SUB(SUB(MUL(g, scale[k]), grad_offset[k]), MUL(MUL(d, rstd[k]), dev_coeff[k]));
            if (rowwise && addend) g = ADD(g, FN(vector_load)(addend[row], COLUMN, PARTIAL_OF_VECTOR, SET(0)));
            FN(vector_store)(dx_row, COLUMN, PARTIAL_OF_VECTOR, g, nontemporal && WHOLE_LINES(K));
        }
    }
}

/* dx = (g * scale - grad_offset) - (x - mean_hi) * rstd * dev_coeff, with g times the row's weight, if any; then
 * `addend` is added, if there is one: where rows have parameters. */
static void FN(column_grad_apply)(const char *const *x, const char *const *dy, const char *const *addend,
                                  char *const *dx, ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t rows_per_pass,
                                  const ColumnCoefficients *coeffs, int activation) {
    const ptrdiff_t prefetch_bytes = FN(column_prefetch)(x, rows, columns, coeffs->prefetch_bytes);
#define GRAD_APPLY_BLOCK(K, partial)                                                                           \
    FN(column_grad_apply_block)(x, dy, addend, dx, begin, end, j, partial, coeffs, prefetch_bytes, centred, \
                                activated, rowwise, nontemporal, K)
    const ptrdiff_t peel = FN(column_peel)(dx, rows, columns, coeffs, activation);
    FOR_CHOSEN_BLOCKS(GRAD_APPLY_BLOCK, peel, 0)
#undef GRAD_APPLY_BLOCK
}

/* ---- parameters of one sample: of the accumulation type, or (wide) double; a weight or a bias may be NULL ---- */

/* scale = rstd * weight and, unless bias_out is NULL, bias_out = bias - mean_lo * scale, of n columns: in double, rounded
 * once. */
static void FN(set_coefficients)(const void *weights, const void *biases, int wide, const double *restrict rstd,
                                 const double *restrict mean_lo, ptrdiff_t n, void *scales, void *biases_out) {
    A *restrict const scale = scales, *restrict const bias_out = biases_out;
#define FOR_COLUMNS(WEIGHT, BIAS, with_bias)                                   \
    for (ptrdiff_t j = 0; j < n; ++j) {                                        \
        const double factor = WEIGHT;                                          \
        scale[j] = (A)factor;                                                  \
        if (with_bias) bias_out[j] = (A)((BIAS) - mean_lo[j] * factor);        \
    }
#define FOR_PARAMETERS(P)                                                      \
    {                                                                          \
        const P *restrict const weight = weights, *restrict const bias = biases; \
        if (!bias_out && weight) FOR_COLUMNS(rstd[j] * (double)weight[j], 0, 0) \
        else if (!bias_out) FOR_COLUMNS(rstd[j], 0, 0)                         \
        else if (weight && bias) FOR_COLUMNS(rstd[j] * (double)weight[j], (double)bias[j], 1) \
        else if (weight) FOR_COLUMNS(rstd[j] * (double)weight[j], 0, 1)        \
        else if (bias) FOR_COLUMNS(rstd[j], (double)bias[j], 1)                \
        else FOR_COLUMNS(rstd[j], 0, 1)                                        \
    }
    if (wide) FOR_PARAMETERS(double)
    else FOR_PARAMETERS(A)
#undef FOR_PARAMETERS
#undef FOR_COLUMNS
}

/* gd, sums of g * d, become sums of g * dev; sum_g and sum_gdev grow by the weighted sums of n columns. */
static void FN(set_totals)(const double *restrict g, double *restrict gd, const void *weights, int wide,
                           const double *restrict mean_lo, ptrdiff_t n, double *restrict sum_g,
                           double *restrict sum_gdev) {
#define FOR_COLUMNS(WEIGHT)                    \
    for (ptrdiff_t j = 0; j < n; ++j) {        \
        const double factor = WEIGHT;          \
        gd[j] -= mean_lo[j] * g[j];            \
        sum_g[j] += factor * g[j];             \
        sum_gdev[j] += factor * gd[j];         \
    }
    if (!weights) FOR_COLUMNS(1)
    else if (wide) FOR_COLUMNS(((const double *)weights)[j])
    else FOR_COLUMNS((double)((const A *)weights)[j])
#undef FOR_COLUMNS
}

/* The gradients of n columns' parameters, of the accumulation type, from g and g * d of one row; sum_g and sum_gdev grow as
 * by set_totals. A function of its own, so that the compiler takes `restrict` at its word. */
static __attribute__((noinline)) void FN(row_totals)(
    const A *restrict g, const A *restrict gd, const void *weights, int wide, const double *restrict rstd,
    const double *restrict mean_lo, ptrdiff_t n, A *restrict grad_weight, A *restrict grad_bias,
    double *restrict sum_g, double *restrict sum_gdev) {
#define FOR_COLUMNS(WEIGHT)                                                     \
    for (ptrdiff_t j = 0; j < n; ++j) {                                         \
        const double factor = WEIGHT;                                           \
        const double gdev = (double)gd[j] - mean_lo[j] * (double)g[j];          \
        grad_weight[j] = (A)(rstd[j] * gdev);                                   \
        grad_bias[j] = g[j];                                                    \
        sum_g[j] += factor * (double)g[j];                                      \
        sum_gdev[j] += factor * gdev;                                           \
    }
    if (!weights) FOR_COLUMNS(1)
    else if (wide) FOR_COLUMNS(((const double *)weights)[j])
    else FOR_COLUMNS((double)((const A *)weights)[j])
#undef FOR_COLUMNS
}

/* `row_totals` of n columns of a sample of one row, without an activation. In chunks that stay in L1. */
static void FN(set_row_grads)(const char *x, const char *dy, ptrdiff_t n, const ColumnCoefficients *coeffs,
                              const void *weights, int wide, const double *rstd, const double *mean_lo,
                              void *grad_weight, void *grad_bias, double *sum_g, double *sum_gdev) {
    enum { CHUNK = 4 * COLUMN_BLOCK_MULTIPLE };
    A gs[CHUNK], gds[CHUNK];
    const ptrdiff_t weight_size = !weights ? 0 : wide ? sizeof(double) : sizeof(A);
    for (ptrdiff_t begin = 0; begin < n; begin += CHUNK) {
        const ptrdiff_t count = n - begin < CHUNK ? n - begin : CHUNK;
        for (ptrdiff_t i = 0; i < count; i += LANES) {
            const ptrdiff_t j = begin + i, partial = count - i < LANES ? count - i : 0;
            const VECTOR mean_hi = FN(acc_load)(coeffs->mean_hi, j, partial);
            const VECTOR d = SUB(FN(vector_load)(x, j, partial, mean_hi), mean_hi);
            const VECTOR g = FN(vector_load)(dy, j, partial, SET(0));
            CAT(A, store)(gs + i, ADD(SET(0), g));
            CAT(A, store)(gds + i, ADD(SET(0), MUL(g, d)));
        }
        FN(row_totals)(gs, gds, (const char *)weights + begin * weight_size, wide, rstd + begin, mean_lo + begin, count,
                       (A *)grad_weight + begin, (A *)grad_bias + begin, sum_g + begin, sum_gdev + begin);
    }
}

#undef FOR_COLUMN_BLOCKS
#undef FOR_VECTORS
#undef COLUMN
#undef PARTIAL_OF_VECTOR
#undef PREFETCH_COLUMN
#undef SUMMED_COLUMNS_MAX
#undef FOR_CHOSEN_BLOCKS
#undef FOR_CHOSEN_VARIANT
#undef LOAD_ACTIVATION
#undef NORMALIZED_AGAIN
#undef ACTIVATION_BACKWARD
