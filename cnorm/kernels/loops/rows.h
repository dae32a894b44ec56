/* Rows: several whole rows in one call, forward and backward. Included by common.h, once per dtype. */

/* ---- forward ----
 * Each step is done for all rows of a batch before the next step begins, so that the latency of the horizontal sums,
 * divisions and roots of one row overlaps with those of the others. The formulas are those of statistics.h; moments.pxd
 * and units.pxd apply them to one unit at a time, with equal bits. */

/* RUN(n), where the compiler knows how many whole vectors a short row has: the count is looked up once for all rows. */
#define BY_VECTOR_COUNT(n, RUN)                     \
    if ((n) > PROBE_SIZE(n)) RUN(n)                 \
    else switch ((n) / LANES) {                     \
        case 0: RUN((n) % LANES) break;             \
        case 1: RUN(LANES + (n) % LANES) break;     \
        case 2: RUN(2 * LANES + (n) % LANES) break; \
        case 3: RUN(3 * LANES + (n) % LANES) break; \
        default: RUN(PROBE_VECTORS * LANES)         \
    }

/* Vectors of the sums of the first n elements of every row, about 0. */
INLINE void FN(row_sums)(const RowBatch *batch, ptrdiff_t n, VECTOR *sum_d, VECTOR *sum_dd, const int centred) {
#define SUM_ROWS(n)                                   \
    for (ptrdiff_t row = 0; row < batch->rows; ++row) \
        FN(sums_any)(batch->x + row * batch->x_stride, 1, 0, n, 0, sum_d + row, sum_dd + row, centred, 0);
    BY_VECTOR_COUNT(n, SUM_ROWS)
#undef SUM_ROWS
}

/* The statistics of each row, from its sums about a shift. power_of_two: the count is one, so that multiplying by its
 * inverse equals dividing by it, in a fraction of the time. norm: that of the batch, or NORM_NONE as a constant. */
INLINE void FN(row_statistics)(RowBatch *batch, const double *shift, const double *sum_d, const double *sum_dd,
                               const int power_of_two, const int norm) {
    const double count = (double)batch->n, inverse = 1 / count;
    const Finish finish = {.eps = batch->finish.eps, .norm = norm};
#define PER_COUNT(a) (power_of_two ? (a) * inverse : (a) / count)
    for (ptrdiff_t row = 0; row < batch->rows; ++row) {
        moments_about(shift[row], PER_COUNT(sum_d[row]), sum_d[row], sum_dd[row], &batch->mean[row], &batch->lo[row],
                      &batch->m2[row]);
        batch->rstd[row] = finished_rstd(batch->m2[row], PER_COUNT(batch->m2[row]), &finish);
        batch->mean_hi[row] = mean_hi_part(batch->mean[row], (double)(A)batch->mean[row], batch->rstd[row],
                                           finish.eps);
    }
#undef PER_COUNT
}

/* Whether the sums of a row lost too many bits to a poor shift, overflowed (sum_dd is inf or NaN) or underflowed. */
INLINE int FN(row_needs_fallback)(const RowBatch *batch, double sum_d, double sum_dd) {
    const double count = (double)batch->n;
    return shift_is_poor(count, sum_d, sum_dd) | !(sum_dd - sum_dd == 0) |
           (sum_dd < tiny_square(&batch->finish) * count);
}

/* Bytes from the parameters of the first row to those of a row. */
INLINE ptrdiff_t FN(set_offset)(const RowBatch *batch, ptrdiff_t row) {
    if (row < batch->first_set_rows) return 0;
    return (1 + (row - batch->first_set_rows) / batch->set_rows) * batch->set_bytes;
}

/* The rows of a batch one by one, all but those that need the fallback. by_call: by the loops of long rows, which a
 * short row would pay for with a call. */
INLINE void FN(forward_rows_any)(RowBatch *batch, const int elementwise, const int activation, const int by_call) {
    for (ptrdiff_t row = 0; row < batch->rows; ++row) {
        if (batch->needs_fallback[row]) continue;
        Coefficients coeffs = batch->coeffs;
        coeffs.mean_hi = batch->mean_hi[row];
        coeffs.mean_lo = (batch->mean[row] - coeffs.mean_hi) + batch->lo[row];
        coeffs.scale = batch->rstd[row];
        if (!elementwise) {
            if (batch->weight) coeffs.scale = batch->rstd[row] * batch->weight[row];
            coeffs.bias = (batch->bias ? batch->bias[row] : 0) - coeffs.mean_lo * coeffs.scale;
        }
        if (has_slopes(activation) && batch->slopes) coeffs.slope = batch->slopes[row];
        if (elementwise) {
            const ptrdiff_t offset = FN(set_offset)(batch, row);
            coeffs.weights = (const char *)coeffs.weights + offset;
            if (coeffs.biases) coeffs.biases = (const char *)coeffs.biases + offset;
        }
        const char *x = batch->x + row * batch->x_stride;
        char *y = batch->y + row * batch->y_stride;
        const ptrdiff_t n = batch->n;
        const int biased = !elementwise || coeffs.biases != NULL;
        if (by_call && elementwise) FN(apply_elementwise)(x, y, n, 0, &coeffs, activation);
        else if (by_call) FN(apply)(x, y, 1, 0, 0, n, &coeffs, activation);
        else if (!activation && coeffs.mean_hi == 0)
            FN(apply_any)(x, y, 1, 0, 0, n, 0, &coeffs, elementwise, CENTRED, biased, ACT_NONE, STORE_PLAIN);
        else FN(apply_any)(x, y, 1, 0, 0, n, 0, &coeffs, elementwise, SHIFTED, biased, activation, STORE_PLAIN);
    }
}

/* Coefficients of the rows of a batch, of the accumulation type. shifted: whether some mean_hi is not 0. */
typedef struct {
    A mean_hi[ROW_BATCH_MAX], mean_lo[ROW_BATCH_MAX], scale[ROW_BATCH_MAX];
    int shifted;
} FN(RowCoefficients);

/* R rows side by side, with parameters per element, which begin `offset` bytes after the first row's: each vector of
 * weights is loaded once for R rows. nontemporal: past the cache, for rows of whole cache lines. */
INLINE void FN(apply_rows_unrolled)(const RowBatch *batch, const FN(RowCoefficients) *coeffs, ptrdiff_t row,
                                    ptrdiff_t offset, const int R, const int centred, const int biased,
                                    const int nontemporal) {
    const ptrdiff_t n = batch->n;
    const A *const weights = (const A *)((const char *)batch->coeffs.weights + offset),
            *const biases = biased ? (const A *)((const char *)batch->coeffs.biases + offset) : weights;
    VECTOR mean_hi[ROWS_UNROLLED], mean_lo[ROWS_UNROLLED], scale[ROWS_UNROLLED];
    const char *x[ROWS_UNROLLED];
    char *y[ROWS_UNROLLED];
    FOR_UNROLLED_ROWS {
        mean_hi[k] = SET(coeffs->mean_hi[row + k]);
        mean_lo[k] = SET(coeffs->mean_lo[row + k]);
        scale[k] = SET(coeffs->scale[row + k]);
        x[k] = batch->x + (row + k) * batch->x_stride;
        y[k] = batch->y + (row + k) * batch->y_stride;
    }
#define NORMALIZED(v, weight, bias) \
    FN(normalized)(v, mean_hi[k], mean_lo[k], scale[k], weight, bias, 1, centred, biased)
#define APPLY_VECTOR(partial) /* one vector of each row, at i */                              \
    {                                                                                         \
        const VECTOR weight = FN(acc_load)(weights, i, partial),                              \
                     bias = biased ? FN(acc_load)(biases, i, partial) : weight;               \
        FOR_UNROLLED_ROWS {                                                                   \
            const VECTOR value = FN(vector_load)(x[k], i, partial, mean_hi[k]);               \
            FN(vector_store)(y[k], i, partial, NORMALIZED(value, weight, bias), nontemporal); \
        }                                                                                     \
    }
    const ptrdiff_t peel = nontemporal ? 0 : R == 1 || batch->y_stride % (LANES_ALIGN / 2) == 0 ? FN(peel)(y[0], n, 0) : 0;
    ptrdiff_t i = 0;
    if (peel) APPLY_VECTOR(peel)
    for (i = peel; i + 2 * LANES <= n; i += 2 * LANES) {
        const VECTOR weight0 = PARAMETER(weights, i), weight1 = PARAMETER(weights, i + LANES);
        const VECTOR bias0 = biased ? PARAMETER(biases, i) : weight0,
                     bias1 = biased ? PARAMETER(biases, i + LANES) : weight1;
        FOR_UNROLLED_ROWS {
            const S *p = (const S *)x[k] + i;
            S *const q = (S *)y[k] + i;
            const VECTOR first = NORMALIZED(LOAD(p), weight0, bias0),
                         second = NORMALIZED(LOAD(p + LANES), weight1, bias1);
            if (nontemporal) STREAM_PAIR(q, first, second);
            else STORE_PAIR(q, first, second);
        }
    }
    for (; i + LANES <= n; i += LANES) APPLY_VECTOR(0)
    if (i < n) APPLY_VECTOR(n - i)
#undef APPLY_VECTOR
#undef NORMALIZED
}

/* Whether rows can be stored past the cache side by side: short ones of whole cache lines. The loops of long rows, which
 * begin and end within a line, cost a short row a call: layer norm of (1000000, 16) took 1.28 times as long. */
INLINE int FN(rows_are_short_lines)(const RowBatch *batch) {
    return ROWS_UNROLLED > 1 && batch->n <= 4 * LANES && batch->n % LANES == 0
           && (batch->n * sizeof(S) | (uintptr_t)batch->y | (uintptr_t)batch->y_stride) % LANES_ALIGN == 0;
}

/* Every row of a batch, with parameters per element, without an activation; with non-temporal stores such rows alone as
 * rows_are_short_lines. Rows whole pages apart are taken one by one: side by side, all their lines would fall into one
 * set of L1. */
static void FN(apply_rows)(const RowBatch *batch, const FN(RowCoefficients) *coeffs) {
    ptrdiff_t row = 0, end = batch->first_set_rows, offset = 0;
#define APPLY_TO_ROWS(R, nontemporal)                                                                                \
    if (!batch->centred) FN(apply_rows_unrolled)(batch, coeffs, row, offset, R, UNCENTRED, 0, nontemporal);          \
    else if (!batch->coeffs.biases) FN(apply_rows_unrolled)(batch, coeffs, row, offset, R, SHIFTED, 0, nontemporal); \
    else if (coeffs->shifted) FN(apply_rows_unrolled)(batch, coeffs, row, offset, R, SHIFTED, 1, nontemporal);       \
    else FN(apply_rows_unrolled)(batch, coeffs, row, offset, R, CENTRED, 1, nontemporal);
    for (;;) { /* the rows of one set of parameters */
        if (ROWS_UNROLLED > 1 && batch->coeffs.nontemporal)
            for (; row + ROWS_UNROLLED <= end; row += ROWS_UNROLLED) { APPLY_TO_ROWS(ROWS_UNROLLED, 1) }
        else if (ROWS_UNROLLED > 1 && (batch->x_stride | batch->y_stride) % PAGE_BYTES)
            for (; row + ROWS_UNROLLED <= end; row += ROWS_UNROLLED) { APPLY_TO_ROWS(ROWS_UNROLLED, 0) }
        for (; row < end; ++row) { APPLY_TO_ROWS(1, 0) }
        if (end == batch->rows) return;
        end = end + batch->set_rows < batch->rows ? end + batch->set_rows : batch->rows;
        offset += batch->set_bytes;
    }
#undef APPLY_TO_ROWS
}

static void FN(forward_rows)(RowBatch *batch) {
    const double probe_size = (double)PROBE_SIZE(batch->n);
    static const double zeros[ROW_BATCH_MAX]; /* static: clearing it takes longer than normalizing a short row */
    double shifts[ROW_BATCH_MAX], centred_sum_d[ROW_BATCH_MAX], sum_dd[ROW_BATCH_MAX];
    const double *shift = zeros, *const sum_d = batch->centred ? centred_sum_d : zeros;
    VECTOR vectors[2][ROW_BATCH_MAX]; /* of sum_d and sum_dd */
    FN(RowCoefficients) coeffs;
    const ptrdiff_t rows = batch->rows;
    if (batch->centred) {
        FN(row_sums)(batch, PROBE_SIZE(batch->n), vectors[0], vectors[1], CENTRED);
        CAT(A, hsum_all)(vectors[0], rows, centred_sum_d);
        CAT(A, hsum_all)(vectors[1], rows, sum_dd);
        int64_t any_shift = 0; /* 64 bits, the size of a double, so that the loop vectorizes */
        for (ptrdiff_t row = 0; row < rows; ++row) any_shift |= probe_needs_shift(probe_size, sum_d[row], sum_dd[row]);
        if (any_shift) {
            for (ptrdiff_t row = 0; row < rows; ++row)
                shifts[row] = FN(shift_from_probe)(probe_size, sum_d[row], sum_dd[row]);
            shift = shifts;
        }
        const int beyond_probe = batch->n > PROBE_SIZE(batch->n); /* else the sums about 0 are complete */
        if (any_shift || beyond_probe) {
            for (ptrdiff_t row = 0; row < rows; ++row) {
                const char *x = batch->x + row * batch->x_stride;
                if (shift[row] != 0)
                    FN(sums_any)(x, 1, 0, batch->n, shift[row], &vectors[0][row], &vectors[1][row], SHIFTED, 0);
                else if (beyond_probe)
                    FN(sums_any)(x, 1, 0, batch->n, 0, &vectors[0][row], &vectors[1][row], CENTRED, 0);
            }
            CAT(A, hsum_all)(vectors[0], rows, centred_sum_d);
            CAT(A, hsum_all)(vectors[1], rows, sum_dd);
        }
    } else {
        FN(row_sums)(batch, batch->n, vectors[0], vectors[1], UNCENTRED);
        CAT(A, hsum_all)(vectors[1], rows, sum_dd);
    }
    if (batch->finish.norm) FN(row_statistics)(batch, shift, sum_d, sum_dd, 0, batch->finish.norm);
    else if (batch->n & (batch->n - 1)) FN(row_statistics)(batch, shift, sum_d, sum_dd, 0, NORM_NONE);
    else FN(row_statistics)(batch, shift, sum_d, sum_dd, 1, NORM_NONE);
    int64_t any_fallback = 0, shifted = 0;
    for (ptrdiff_t row = 0; row < rows; ++row) {
        coeffs.mean_hi[row] = (A)batch->mean_hi[row];
        coeffs.mean_lo[row] = (A)((batch->mean[row] - batch->mean_hi[row]) + batch->lo[row]);
        coeffs.scale[row] = (A)batch->rstd[row];
        shifted |= batch->mean_hi[row] != 0;
    }
    for (ptrdiff_t row = 0; row < rows; ++row) any_fallback |= FN(row_needs_fallback)(batch, sum_d[row], sum_dd[row]);
    batch->any_fallback = any_fallback != 0;
    coeffs.shifted = shifted != 0;
    if (batch->elementwise && !any_fallback && !batch->activation && batch->y
        && (!batch->coeffs.nontemporal || FN(rows_are_short_lines)(batch))) {
        FN(apply_rows)(batch, &coeffs);
        return;
    }
    for (ptrdiff_t row = 0; row < rows; ++row)
        batch->needs_fallback[row] = FN(row_needs_fallback)(batch, sum_d[row], sum_dd[row]);
    if (!batch->y) return;
    /* rows with parameters per element come here with an activation, after a fallback, or with non-temporal stores unless
     * they are short lines */
    if (batch->elementwise && batch->activation) FN(forward_rows_any)(batch, 1, batch->activation, 0);
    else if (batch->activation) FN(forward_rows_any)(batch, 0, batch->activation, 0);
    else if (batch->elementwise) FN(forward_rows_any)(batch, 1, ACT_NONE, 1);
    else if (batch->coeffs.nontemporal) FN(forward_rows_any)(batch, 0, ACT_NONE, 1);
    else FN(forward_rows_any)(batch, 0, ACT_NONE, 0);
}

/* ---- backward ----
 * A pass sums a few rows and then, while they are in L1, computes dx and what they add to the gradients of the
 * parameters. These gradients are sums over the rows of the block, kept in the accumulation type. */

INLINE Coefficients FN(row_coefficients)(const RowGradBlock *block, ptrdiff_t row) {
    const double mean = block->mean ? block->mean[row] : 0;
    Coefficients coeffs = block->coeffs;
    coeffs.mean_hi = mean_hi_part(mean, (double)(A)mean, block->rstd[row], 0);
    coeffs.mean_lo = mean - coeffs.mean_hi;
    coeffs.scale = block->rstd[row];
    if (block->row_slopes) coeffs.slope = block->row_slopes[row];
    return coeffs;
}

/* Prefetches the lines of a short row of dx, while its input comes from memory. */
INLINE void FN(prefetch_for_write)(const char *dx, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n * (ptrdiff_t)sizeof(S); i += LANES_ALIGN) __builtin_prefetch(dx + i, 1, 3);
}

INLINE void FN(grad_row_vectors)(const RowGradBlock *block, ptrdiff_t begin, ptrdiff_t end, const double *mean_hi,
                                 VECTOR sums[3][GRAD_BLOCK_ROWS], int prefetch_dx, const int centred) {
    Coefficients coeffs = block->coeffs;
#define GRAD_SUM_ROWS(count)                                                                               \
    for (ptrdiff_t row = begin; row < end; ++row) {                                                        \
        if (prefetch_dx) FN(prefetch_for_write)(block->dx[row], block->n);                                 \
        VECTOR *const sums_out[4] = {&sums[0][row], &sums[1][row], &sums[2][row], 0};                      \
        coeffs.mean_hi = mean_hi[row];                                                                     \
        FN(grad_sums_any)(block->x[row], block->dy[row], 1, 0, 0, count, 0, &coeffs, sums_out, 1, centred, \
                          ACT_NONE, 0);                                                                    \
    }
    BY_VECTOR_COUNT(block->n, GRAD_SUM_ROWS)
#undef GRAD_SUM_ROWS
}

/* The sums of rows begin .. end into block->sums: of rows of one tile together, of long rows a tile at a time. */
static void FN(grad_row_sums)(RowGradBlock *block, ptrdiff_t begin, ptrdiff_t end, int prefetch_dx) {
    if (block->n <= TILE && !block->activation) {
        VECTOR vectors[3][GRAD_BLOCK_ROWS];
        double mean_hi[GRAD_BLOCK_ROWS];
        int64_t shifted = 0;
        for (ptrdiff_t row = begin; row < end; ++row) {
            const double mean = block->mean ? block->mean[row] : 0;
            mean_hi[row] = mean_hi_part(mean, (double)(A)mean, block->rstd[row], 0);
            shifted |= mean_hi[row] != 0;
        }
        if (shifted) FN(grad_row_vectors)(block, begin, end, mean_hi, vectors, prefetch_dx, SHIFTED);
        else FN(grad_row_vectors)(block, begin, end, mean_hi, vectors, prefetch_dx, CENTRED);
        for (int sum = 0; sum < (SUMS_DEVIATIONS ? 3 : 2); ++sum)
            CAT(A, hsum_all)(vectors[sum] + begin, end - begin, block->sums[sum] + begin);
        return;
    }
    for (ptrdiff_t row = begin; row < end; ++row) {
        const Coefficients coeffs = FN(row_coefficients)(block, row);
        double sums[4] = {0};
        for (ptrdiff_t i = 0; i < block->n; i += TILE)
            FN(grad_sums_elementwise)(block->x[row] + BYTES(i), block->dy[row] + BYTES(i),
                                      block->n - i < TILE ? block->n - i : TILE, i, &coeffs, block->activation, sums);
        for (int sum = 0; sum < 4; ++sum) block->sums[sum][row] = sums[sum];
    }
}

/* Coefficients of dx of the rows of a block, of the accumulation type; shifted: whether some mean_hi is not 0.
 *     dx = (g * rstd * weight - grad_offset) - d * rstd * dev_coeff,   d = x - mean_hi */
typedef struct {
    A mean_hi[GRAD_BLOCK_ROWS], mean_lo[GRAD_BLOCK_ROWS], rstd[GRAD_BLOCK_ROWS];
    A dev_coeff[GRAD_BLOCK_ROWS], grad_offset[GRAD_BLOCK_ROWS];
    int shifted;
} FN(RowGradCoefficients);

static void FN(row_grad_coefficients)(const RowGradBlock *block, ptrdiff_t begin, ptrdiff_t end,
                                      FN(RowGradCoefficients) *coeffs) {
    const double count = (double)block->n;
    coeffs->shifted = 0;
    for (ptrdiff_t row = begin; row < end; ++row) {
        const double sum_g = block->sums[0][row], rstd = block->rstd[row];
        const double mean = block->mean ? block->mean[row] : 0;
        const double mean_hi = mean_hi_part(mean, (double)(A)mean, rstd, 0);
        coeffs->shifted |= mean_hi != 0;
        const double mean_lo = SUMS_DEVIATIONS && block->centred ? block->sums[2][row] / count : mean - mean_hi;
        const double dev_coeff = dev_coeff_from_sum(rstd, block->sums[1][row] - mean_lo * sum_g, count);
        coeffs->mean_hi[row] = (A)mean_hi;
        coeffs->mean_lo[row] = (A)mean_lo;
        coeffs->rstd[row] = (A)rstd;
        coeffs->dev_coeff[row] = (A)dev_coeff;
        coeffs->grad_offset[row] = (A)grad_offset_from_sum(rstd, sum_g, count, mean_lo, dev_coeff, block->centred);
    }
}

/* dx of R rows, elements at .. at + n, and what these rows add to param_sums: the sums of the gradients of weight, bias
 * and slope. overwrite: the sums begin here, whatever param_sums holds. */
INLINE void FN(grad_rows_unrolled)(const RowGradBlock *block, const FN(RowGradCoefficients) *coeffs, ptrdiff_t row,
                                   ptrdiff_t at, ptrdiff_t n, A *const param_sums[3], const int R, const int centred,
                                   const int activation, const int add_to_grad, const int nontemporal,
                                   const int overwrite) {
    const A *const weights = (const A *)block->coeffs.weights + at;
    const A *const biases = block->coeffs.biases ? (const A *)block->coeffs.biases + at : 0;
    const A *const slopes = activation == ACT_SLOPES ? (const A *)block->coeffs.slopes + at : 0;
    /* copies: for all the compiler knows, a store to dx changes what block and param_sums point to */
    A *const sum_dw = param_sums[0], *const sum_db = param_sums[1], *const sum_dslope = param_sums[2];
    const ptrdiff_t peel = block->peel, prefetch_bytes = block->prefetch_bytes;
    const VECTOR low = SET(block->coeffs.low), high = SET(block->coeffs.high);
    VECTOR mean_hi[GRAD_ROWS_UNROLLED], mean_lo[GRAD_ROWS_UNROLLED], rstd[GRAD_ROWS_UNROLLED],
           dev_coeff[GRAD_ROWS_UNROLLED], grad_offset[GRAD_ROWS_UNROLLED], row_slope[GRAD_ROWS_UNROLLED];
    const char *x[GRAD_ROWS_UNROLLED], *dy[GRAD_ROWS_UNROLLED], *addend[GRAD_ROWS_UNROLLED];
    char *dx[GRAD_ROWS_UNROLLED];
    FOR_UNROLLED_ROWS {
        mean_hi[k] = SET(coeffs->mean_hi[row + k]);
        mean_lo[k] = SET(coeffs->mean_lo[row + k]);
        rstd[k] = SET(coeffs->rstd[row + k]);
        dev_coeff[k] = SET(coeffs->dev_coeff[row + k]);
        grad_offset[k] = SET(coeffs->grad_offset[row + k]);
        row_slope[k] = SET(block->row_slopes ? block->row_slopes[row + k] : block->coeffs.slope);
        x[k] = block->x[row + k];
        dy[k] = block->dy[row + k];
        dx[k] = block->dx[row + k];
        addend[k] = add_to_grad ? block->addend[row + k] : 0;
    }
    /* Of the vector at i, in variables whose names end in `id`: LOAD_PARAMS loads the parameters and the sums of their
     * gradients, GRAD_STEP computes `result`, that of row k, and adds to the sums, STORE_SUMS stores these. */
#define LOAD_PARAMS(id, i, partial)                                                           \
    const VECTOR weight##id = FN(acc_load)(weights, i, partial);                              \
    const VECTOR bias##id = activation && biases ? FN(acc_load)(biases, i, partial) : SET(0); \
    const VECTOR slope##id = slopes ? FN(acc_load)(slopes, i, partial) : SET(0);              \
    VECTOR dw##id = overwrite ? SET(0) : FN(acc_load)(sum_dw, i, partial);                    \
    VECTOR db##id = overwrite ? SET(0) : FN(acc_load)(sum_db, i, partial);                    \
    VECTOR dslope##id = has_slopes(activation) ? FN(acc_load)(sum_dslope, i, partial) : SET(0);
#define GRAD_STEP(result, id, i, partial)                                                                        \
    VECTOR result;                                                                                               \
    {                                                                                                            \
        VECTOR d = FN(vector_load)(x[k], i, partial, mean_hi[k]);                                                \
        if (centred == SHIFTED) d = SUB(d, mean_hi[k]);                                                          \
        const VECTOR dev = SUB(d, mean_lo[k]);                                                                   \
        VECTOR g = FN(vector_load)(dy[k], i, partial, SET(0));                                                   \
        if (activation) {                                                                                        \
            VECTOR z = MUL(dev, MUL(rstd[k], weight##id));                                                       \
            if (biases) z = ADD(z, bias##id);                                                                    \
            g = FN(activation_backward)(g, z, activation == ACT_SLOPES ? slope##id : row_slope[k], low, high,    \
                                        &dslope##id, activation);                                                \
        }                                                                                                        \
        db##id = ADD(db##id, g);                                                                                 \
        dw##id = ADD(dw##id, MUL(g, MUL(dev, rstd[k])));                                                         \
        result = SUB(SUB(MUL(g, MUL(rstd[k], weight##id)), grad_offset[k]), MUL(MUL(d, rstd[k]), dev_coeff[k])); \
        if (add_to_grad) result = ADD(result, FN(vector_load)(addend[k], i, partial, SET(0)));                   \
    }
#define STORE_SUMS(id, i, partial)             \
    FN(acc_store)(sum_dw, i, partial, dw##id); \
    FN(acc_store)(sum_db, i, partial, db##id); \
    if (has_slopes(activation)) FN(acc_store)(sum_dslope, i, partial, dslope##id);
#define GRAD_VECTOR(partial) /* one vector of each row, at i */                                      \
    {                                                                                                \
        LOAD_PARAMS(0, i, partial)                                                                   \
        FOR_UNROLLED_ROWS {                                                                          \
            GRAD_STEP(result, 0, i, partial)                                                         \
            FN(vector_store)(dx[k], i, partial, result, nontemporal && i >= peel && WHOLE_LINES(1)); \
        }                                                                                            \
        STORE_SUMS(0, i, partial)                                                                    \
    }
    ptrdiff_t i = 0;
    if (peel >= LANES) {
        GRAD_VECTOR(0)
        i = LANES;
    }
    if (i < peel) {
        GRAD_VECTOR((peel - i))
        i = peel;
    }
    for (; GRAD_ROW_PAIRS && i + 2 * LANES <= n; i += 2 * LANES) {
        LOAD_PARAMS(0, i, 0)
        LOAD_PARAMS(1, i + LANES, 0)
        FOR_UNROLLED_ROWS {
            if (prefetch_bytes) {
                FN(prefetch_pair)(x[k] + BYTES(i) + prefetch_bytes);
                FN(prefetch_pair)(dy[k] + BYTES(i) + prefetch_bytes);
            }
            GRAD_STEP(result0, 0, i, 0)
            GRAD_STEP(result1, 1, i + LANES, 0)
            if (nontemporal) STREAM_PAIR((S *)dx[k] + i, result0, result1);
            else STORE_PAIR((S *)dx[k] + i, result0, result1);
        }
        STORE_SUMS(0, i, 0)
        STORE_SUMS(1, i + LANES, 0)
    }
    for (; i + LANES <= n; i += LANES) GRAD_VECTOR(0)
    if (i < n) GRAD_VECTOR((n - i))
#undef GRAD_VECTOR
#undef LOAD_PARAMS
#undef GRAD_STEP
#undef STORE_SUMS
    (void)row_slope, (void)sum_dslope, (void)low, (void)high; /* not used by every activation */
}

/* Variants of grad_rows_unrolled, each a function: rows from `row` on while R of them are left; returns the first row
 * that is left over. They are not inlined, as one function of all variants would take the compiler too long. */
#define GRAD_ROWS_VARIANT(name, R, centred, activation, add_to_grad, nontemporal, overwrite)                          \
    static __attribute__((noinline)) ptrdiff_t FN(name)(                                                              \
        const RowGradBlock *block, const FN(RowGradCoefficients) *coeffs, ptrdiff_t row, ptrdiff_t end, ptrdiff_t at, \
        ptrdiff_t n, A *const param_sums[3]) {                                                                        \
        for (; row + R <= end; row += R)                                                                              \
            FN(grad_rows_unrolled)(block, coeffs, row, at, n, param_sums, R, centred, activation, add_to_grad,        \
                                   nontemporal, overwrite);                                                           \
        return row;                                                                                                   \
    }
GRAD_ROWS_VARIANT(grad_shifted, GRAD_ROWS_UNROLLED, SHIFTED, ACT_NONE, 0, 0, 0)
GRAD_ROWS_VARIANT(grad_centred, GRAD_ROWS_UNROLLED, CENTRED, ACT_NONE, 0, 0, 0)
GRAD_ROWS_VARIANT(grad_add_shifted, GRAD_ROWS_UNROLLED, SHIFTED, ACT_NONE, 1, 0, 0)
GRAD_ROWS_VARIANT(grad_add_centred, GRAD_ROWS_UNROLLED, CENTRED, ACT_NONE, 1, 0, 0)
GRAD_ROWS_VARIANT(grad_nontemporal, GRAD_ROWS_UNROLLED, SHIFTED, ACT_NONE, 0, 1, 0)
GRAD_ROWS_VARIANT(grad_one_row, 1, SHIFTED, ACT_NONE, 0, 0, 0)
GRAD_ROWS_VARIANT(grad_only_row, 1, SHIFTED, ACT_NONE, 0, 0, 1)
GRAD_ROWS_VARIANT(grad_add_one_row, 1, SHIFTED, ACT_NONE, 1, 0, 0)
GRAD_ROWS_VARIANT(grad_nontemporal_one_row, 1, SHIFTED, ACT_NONE, 0, 1, 0)
GRAD_ROWS_VARIANT(grad_clip, 1, SHIFTED, ACT_CLIP, block->add_to_grad, 0, 0)
GRAD_ROWS_VARIANT(grad_slope, 1, SHIFTED, ACT_SLOPE, block->add_to_grad, 0, 0)
GRAD_ROWS_VARIANT(grad_slopes, 1, SHIFTED, ACT_SLOPES, block->add_to_grad, 0, 0)
#undef GRAD_ROWS_VARIANT

/* Elements at .. at + n of the rows of a block: dx, and the block's sums for the gradients of the parameters, which
 * are added to dw, db and dslope, or written there (overwrite). compute_sums: the rows' own sums come first; the rows
 * are then whole. */
static void FN(grad_rows)(RowGradBlock *block, ptrdiff_t at, ptrdiff_t n, int compute_sums, int overwrite, double *dw,
                          double *db, double *dslope) {
    double *const totals[3] = {dw, db, dslope};
    const int params = has_slopes(block->activation) ? 3 : 2;
    FN(RowGradCoefficients) coeffs;
    const ptrdiff_t nontemporal_min = WHOLE_LINES(1) ? LANES : 2 * LANES;
    const int may_be_nontemporal = block->coeffs.nontemporal && n >= nontemporal_min;
    ptrdiff_t peel = may_be_nontemporal ? FN(common_peel)(block->dx, block->rows, n, 1) : -1;
    const int nontemporal = peel >= 0;
    if (!nontemporal) peel = FN(common_peel)(block->dx, block->rows, n, 0);
    block->peel = peel > 0 ? peel : 0;
    /* the sums of the first element after the peel begin a cache line, so that no vector of sums touches two */
    A sums[3][TILE + LANES] __attribute__((aligned(LANES_ALIGN)));
    const ptrdiff_t offset = (LANES - block->peel % LANES) % LANES;
    A *param_sums[3] = {sums[0] + offset, sums[1] + offset, sums[2] + offset};
    const int only_row = block->rows == 1 && !block->activation && !block->add_to_grad && !nontemporal;
    for (int param = 0; param < params; ++param) {
        if (block->final[param]) param_sums[param] = (A *)block->final[param] + at;
        if (!only_row) memset(param_sums[param], 0, n * sizeof(A)); /* an only row overwrites the sums */
    }
    const ptrdiff_t rows_per_pass = compute_sums ? block->rows_per_pass : block->rows;
    for (ptrdiff_t begin = 0; begin < block->rows; begin += rows_per_pass) {
        const ptrdiff_t end = begin + rows_per_pass < block->rows ? begin + rows_per_pass : block->rows;
        ptrdiff_t row = begin;
        if (compute_sums) FN(grad_row_sums)(block, begin, end, block->from_memory && !nontemporal);
        FN(row_grad_coefficients)(block, begin, end, &coeffs);
#define GRAD_ROWS(variant) row = FN(variant)(block, &coeffs, row, end, at, n, param_sums)
        if (block->activation == ACT_CLIP) GRAD_ROWS(grad_clip);
        else if (block->activation == ACT_SLOPES) GRAD_ROWS(grad_slopes);
        else if (block->activation) GRAD_ROWS(grad_slope);
        else if (block->add_to_grad) {
            if (coeffs.shifted) GRAD_ROWS(grad_add_shifted);
            else GRAD_ROWS(grad_add_centred);
            GRAD_ROWS(grad_add_one_row);
        } else if (only_row) GRAD_ROWS(grad_only_row);
        else if (nontemporal) {
            GRAD_ROWS(grad_nontemporal);
            GRAD_ROWS(grad_nontemporal_one_row);
        } else {
            if (coeffs.shifted) GRAD_ROWS(grad_shifted);
            else GRAD_ROWS(grad_centred);
            GRAD_ROWS(grad_one_row);
        }
#undef GRAD_ROWS
    }
    for (int param = 0; param < params; ++param) {
        if (block->final[param]) continue;
        if (overwrite) FN(sums_copy_to)(param_sums[param], n, totals[param]);
        else FN(sums_add_to)(param_sums[param], n, totals[param]);
    }
}

#undef PROBE_SIZE
#undef BY_VECTOR_COUNT
