/* Rows: a few whole ones at a time, forward and backward. A part of tile_loops.h. */

/* Few short rows at once: each step for all of them, so that no row waits for its own sums. The
 * arithmetic of a row is that of part_moments and unit_affine (moments.pxi, units.pxi). */
INLINE void FN(forward_rows_any)(RowBatch *job, const int elementwise, const int centred, const int biased,
                                 const int activation, const int stream) {
    for (ptrdiff_t row = 0; row < job->rows; ++row) {
        if (job->needs_fallback[row]) continue;
        Coefficients f = job->coeffs;
        f.mean_hi = job->mean_hi[row];
        f.mean_lo = (job->mean[row] - f.mean_hi) + job->lo[row];
        f.scale = job->rstd[row];
        if (!elementwise) {
            if (job->weight) f.scale = job->rstd[row] * job->weight[row];
            f.bias = (job->bias ? job->bias[row] : 0) - f.mean_lo * f.scale;
        }
        if (activation && job->slopes) f.slope = job->slopes[row];
        const char *x = job->x + row * job->x_stride;
        char *y = job->y + row * job->y_stride;
#define RUN(store)                                                                               \
        if (centred == SHIFTED && f.mean_hi == 0 && !activation)                                      \
            FN(apply_any)(x, y, 1, 0, 0, job->n, 0, &f, elementwise, CENTRED, biased, 0, store);      \
        else FN(apply_any)(x, y, 1, 0, 0, job->n, 0, &f, elementwise, centred, biased, activation, store);
        if (stream && FN(run_is_streamed)(y, job->n)) { RUN(STORE_NONTEMPORAL) }
        else { RUN(STORE_PLAIN) }
#undef RUN
    }
}

/* What rows lose and are scaled by, in the accumulator; and whether hi is but 0. */
typedef struct {
    A hi[ROW_BATCH_MAX], lo[ROW_BATCH_MAX], scale[ROW_BATCH_MAX];
    int shifted;
} FN(RowTerms);

/* `R` rows abreast: a weight that is loaded once serves them all. */
INLINE void FN(apply_rows_unrolled)(const RowBatch *job, const FN(RowTerms) *terms, ptrdiff_t row, const int R,
                              const int centred, const int biased) {
    const ptrdiff_t n = job->n;
    const A *const weight = (const A *)job->coeffs.weights, *const shift = (const A *)job->coeffs.biases;
    AL hi[ROWS_UNROLLED], lo[ROWS_UNROLLED], scale[ROWS_UNROLLED];
    const char *x[ROWS_UNROLLED];
    char *y[ROWS_UNROLLED];
    FOR_UNROLLED_ROWS(k) {
        hi[k] = SET(terms->hi[row + k]);
        lo[k] = SET(terms->lo[row + k]);
        scale[k] = SET(terms->scale[row + k]);
        x[k] = job->x + (row + k) * job->x_stride;
        y[k] = job->y + (row + k) * job->y_stride;
    }
#define NORMALISED(v, w, b) FN(normalised)(v, hi[k], lo[k], scale[k], w, b, 1, centred, biased)
#define STEP(part)                                                                               \
    {                                                                                            \
        const AL w = FN(vector_parameter)(weight, i, part), b = biased ? FN(vector_parameter)(shift, i, part) : w; \
        FOR_UNROLLED_ROWS(k) {                                                                        \
            const AL x_ = FN(vector_load)(x[k], i, part, hi[k]);                                  \
            FN(vector_store)(y[k], i, part, NORMALISED(x_, w, b), 0);                             \
        }                                                                                        \
    }
    const ptrdiff_t peel = R == 1 || job->y_stride % (LANES_ALIGN / 2) == 0 ? FN(peel)(y[0], n, 0) : 0;
    ptrdiff_t i = 0;
    if (peel) STEP(peel)
    for (i = peel; i + 2 * LANES <= n; i += 2 * LANES) {
        const AL w0 = PARAMETER(weight, i), w1 = PARAMETER(weight, i + LANES);
        const AL b0 = biased ? PARAMETER(shift, i) : w0, b1 = biased ? PARAMETER(shift, i + LANES) : w1;
        FOR_UNROLLED_ROWS(k) {
            const S *at = (const S *)x[k] + i;
            STORE_PAIR((S *)y[k] + i, NORMALISED(LOAD(at), w0, b0), NORMALISED(LOAD(at + LANES), w1, b1));
        }
    }
    for (; i + LANES <= n; i += LANES) STEP(0)
    if (i < n) STEP(n - i)
#undef STEP
#undef NORMALISED
}

/* Every row of a job, with vectors, without an activation. */
static void FN(apply_rows)(const RowBatch *job, const FN(RowTerms) *terms) {
    ptrdiff_t row = 0;
#define VARIANT(R)                                                                               \
    if (!job->centred) FN(apply_rows_unrolled)(job, terms, row, R, UNCENTRED, 0);                      \
    else if (!job->coeffs.biases) FN(apply_rows_unrolled)(job, terms, row, R, SHIFTED, 0);              \
    else if (terms->shifted) FN(apply_rows_unrolled)(job, terms, row, R, SHIFTED, 1);                  \
    else FN(apply_rows_unrolled)(job, terms, row, R, CENTRED, 1);
    if (ROWS_UNROLLED > 1 && (job->x_stride | job->y_stride) % 4096)  /* else all of them in one set of L1 */
        for (; row + ROWS_UNROLLED <= job->rows; row += ROWS_UNROLLED) { VARIANT(ROWS_UNROLLED) }
    for (; row < job->rows; ++row) { VARIANT(1) }
#undef VARIANT
}

/* EACH(n), where the compiler knows how many lanes a short row has: asked once for all rows. */
#define BY_LANES(n, EACH)                                                                        \
    if ((n) > PROBE_SIZE(n)) EACH(n)                                                                   \
    else switch ((n) / LANES) {                                                                  \
        case 0: EACH((n) % LANES) break;                                                         \
        case 1: EACH(LANES + (n) % LANES) break;                                                 \
        case 2: EACH(2 * LANES + (n) % LANES) break;                                             \
        case 3: EACH(3 * LANES + (n) % LANES) break;                                             \
        default: EACH(4 * LANES)                                                                 \
    }

/* Lanes of the sums of every row about 0, of n elements each. */
INLINE void FN(sums_of_rows)(const RowBatch *job, ptrdiff_t n, AL *first, AL *second, const int centred) {
#define EACH(n)                                                                                  \
    for (ptrdiff_t row = 0; row < job->rows; ++row)                                              \
        FN(sums_any)(job->x + row * job->x_stride, 1, 0, n, 0, first + row, second + row, centred, 0);
    BY_LANES(n, EACH)
#undef EACH
}

/* The statistics of each row, from its sums about a shift. `power`: 1 / count is one of 2, and dividing by count
 * is multiplying by it, which takes less. */
INLINE void FN(row_statistics)(RowBatch *job, const double *shift, const double *first, const double *second,
                               const int power) {
    const double count = (double)job->n, inverse = 1 / count;
#define BY_COUNT(a) (power ? (a) * inverse : (a) / count)
    for (ptrdiff_t row = 0; row < job->rows; ++row) {
        moments_about(shift[row], BY_COUNT(first[row]), first[row], second[row], &job->mean[row], &job->lo[row],
                      &job->m2[row]);
        job->rstd[row] = rstd_from_variance(BY_COUNT(job->m2[row]), job->eps);
        job->mean_hi[row] = mean_hi_part(job->mean[row], (double)(A)job->mean[row], job->rstd[row], job->eps);
    }
#undef BY_COUNT
}

/* Whether sums of a row lost too many bits, or overflowed, or underflowed. */
INLINE int FN(set_fallbacks)(const RowBatch *job, double first, double second) {
    const double count = (double)job->n;
    return shift_is_poor(count, first, second) | !(second - second == 0) | (second < job->tiny_square * count);
}

static void FN(forward_rows)(RowBatch *job) {
    const double head = (double)PROBE_SIZE(job->n);
    static const double none[ROW_BATCH_MAX]; /* to clear as many would take longer than a short row */
    double shifts[ROW_BATCH_MAX], firsts[ROW_BATCH_MAX], second[ROW_BATCH_MAX];
    const double *shift = none, *const first = job->centred ? firsts : none;
    AL lanes[2][ROW_BATCH_MAX];
    FN(RowTerms) terms;
    const ptrdiff_t rows = job->rows;
    if (job->centred) {
        FN(sums_of_rows)(job, PROBE_SIZE(job->n), lanes[0], lanes[1], CENTRED);
        CAT(A, hsum_all)(lanes[0], rows, firsts);
        CAT(A, hsum_all)(lanes[1], rows, second);
        int64_t shifted = 0; /* of a double's size, else the compiler narrows it */
        for (ptrdiff_t row = 0; row < rows; ++row) shifted |= FN(far_from_zero)(head, first[row], second[row]);
        if (shifted) {
            for (ptrdiff_t row = 0; row < rows; ++row) shifts[row] = FN(shift_from_probe)(head, first[row], second[row]);
            shift = shifts;
        }
        const int all = job->n > PROBE_SIZE(job->n); /* else those about 0 are there */
        if (shifted || all) {
            for (ptrdiff_t row = 0; row < rows; ++row) {
                const char *x = job->x + row * job->x_stride;
                if (shift[row] != 0)
                    FN(sums_any)(x, 1, 0, job->n, shift[row], &lanes[0][row], &lanes[1][row], SHIFTED, 0);
                else if (all)
                    FN(sums_any)(x, 1, 0, job->n, 0, &lanes[0][row], &lanes[1][row], CENTRED, 0);
            }
            CAT(A, hsum_all)(lanes[0], rows, firsts);
            CAT(A, hsum_all)(lanes[1], rows, second);
        }
    } else {
        FN(sums_of_rows)(job, job->n, lanes[0], lanes[1], UNCENTRED);
        CAT(A, hsum_all)(lanes[1], rows, second);
    }
    if (job->n & (job->n - 1)) FN(row_statistics)(job, shift, first, second, 0);
    else FN(row_statistics)(job, shift, first, second, 1);
    int64_t again = 0, shifted = 0;
    for (ptrdiff_t row = 0; row < rows; ++row) {
        terms.hi[row] = (A)job->mean_hi[row];
        terms.lo[row] = (A)((job->mean[row] - job->mean_hi[row]) + job->lo[row]);
        terms.scale[row] = (A)job->rstd[row];
        shifted |= job->mean_hi[row] != 0;
    }
    for (ptrdiff_t row = 0; row < rows; ++row) again |= FN(set_fallbacks)(job, first[row], second[row]);
    job->any_fallback = again != 0;
    terms.shifted = shifted != 0;
    if (job->elementwise && !again && !job->activation && !job->coeffs.nontemporal) {
        FN(apply_rows)(job, &terms);
        return;
    }
    for (ptrdiff_t row = 0; row < rows; ++row) job->needs_fallback[row] = FN(set_fallbacks)(job, first[row], second[row]);
#define VARIANT(elementwise, centred, biased)                                                         \
    if (job->activation == 2 && elementwise) FN(forward_rows_any)(job, elementwise, centred, biased, 2, 0); \
    else if (job->activation) FN(forward_rows_any)(job, elementwise, centred, biased, 1, 0);          \
    else if (job->coeffs.nontemporal) FN(forward_rows_any)(job, elementwise, centred, biased, 0, 1);       \
    else FN(forward_rows_any)(job, elementwise, centred, biased, 0, 0);
    if (!job->elementwise) { VARIANT(0, SHIFTED, 1) }
    else if (job->coeffs.biases) { VARIANT(1, SHIFTED, 1) }
    else if (job->centred) { VARIANT(1, SHIFTED, 0) }
    else { VARIANT(1, UNCENTRED, 0) }
#undef VARIANT
}

/* ---- backward: the sums of a few rows, and then, while these are in L1, all that depends on them.
 * The parameters' gradients are sums down the rows of a block, in the accumulator. ---- */

INLINE Coefficients FN(row_coefficients)(const RowGradBlock *job, ptrdiff_t row) {
    const double mean = job->mean ? job->mean[row] : 0;
    Coefficients f = job->coeffs;
    f.mean_hi = mean_hi_part(mean, (double)(A)mean, job->rstd[row], 0), f.mean_lo = mean - f.mean_hi, f.scale = job->rstd[row];
    if (job->row_slopes) f.slope = job->row_slopes[row];
    return f;
}

/* A short row that will be written and is not in cache: its lines are asked for while others come in. */
INLINE void FN(prefetch_for_write)(const char *y, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n * (ptrdiff_t)sizeof(S); i += LANES_ALIGN) __builtin_prefetch(y + i, 1, 3);
}

INLINE void FN(grad_sums_of_rows)(const RowGradBlock *job, ptrdiff_t first, ptrdiff_t stop, const double *hi,
                                  AL lanes[3][GRAD_BLOCK_ROWS], int expected, const int centred) {
    Coefficients f = job->coeffs;
#define EACH(count)                                                                              \
    for (ptrdiff_t row = first; row < stop; ++row) {                                             \
        if (expected) FN(prefetch_for_write)(job->dx[row], job->n);                                          \
        AL *const to[4] = {&lanes[0][row], &lanes[1][row], &lanes[2][row], 0};                   \
        f.mean_hi = hi[row];                                                                          \
        FN(grad_sums_any)(job->x[row], job->dy[row], 1, 0, 0, count, 0, &f, to, 1, centred, 0, 0); \
    }
    BY_LANES(job->n, EACH)
#undef EACH
}

/* The sums of rows first .. stop: of short ones together, of long ones a tile at a time. */
static void FN(grad_row_sums)(RowGradBlock *job, ptrdiff_t first, ptrdiff_t stop, int expected) {
    if (job->n <= TILE && !job->activation) {
        AL lanes[3][GRAD_BLOCK_ROWS];
        double hi[GRAD_BLOCK_ROWS];
        int64_t shifted = 0;
        for (ptrdiff_t row = first; row < stop; ++row) {
            const double mean = job->mean ? job->mean[row] : 0;
            hi[row] = mean_hi_part(mean, (double)(A)mean, job->rstd[row], 0);
            shifted |= hi[row] != 0;
        }
        if (shifted) FN(grad_sums_of_rows)(job, first, stop, hi, lanes, expected, SHIFTED);
        else FN(grad_sums_of_rows)(job, first, stop, hi, lanes, expected, CENTRED);
        for (int kind = 0; kind < (EXACT ? 3 : 2); ++kind)
            CAT(A, hsum_all)(lanes[kind] + first, stop - first, job->sums[kind] + first);
        return;
    }
    for (ptrdiff_t row = first; row < stop; ++row) {
        const Coefficients f = FN(row_coefficients)(job, row);
        double sums[4] = {0};
        for (ptrdiff_t i = 0; i < job->n; i += TILE)
            FN(grad_sums_elementwise)(job->x[row] + BYTES(i), job->dy[row] + BYTES(i),
                                 job->n - i < TILE ? job->n - i : TILE, i, &f, job->activation, sums);
        for (int kind = 0; kind < 4; ++kind) job->sums[kind][row] = sums[kind];
    }
}

/* What dx of each row takes: dx = (g * rstd * weight - r) - d * rstd * q, d = x - hi; and whether hi is but 0. */
typedef struct {
    A hi[GRAD_BLOCK_ROWS], lo[GRAD_BLOCK_ROWS], rstd[GRAD_BLOCK_ROWS], dev_coeff[GRAD_BLOCK_ROWS], grad_offset[GRAD_BLOCK_ROWS];
    int shifted;
} FN(GradTerms);

static void FN(grad_terms)(const RowGradBlock *job, ptrdiff_t first, ptrdiff_t stop, FN(GradTerms) *terms) {
    const double count = (double)job->n;
    terms->shifted = 0;
    for (ptrdiff_t row = first; row < stop; ++row) {
        const double sum_g = job->sums[0][row], rstd = job->rstd[row];
        const double mean = job->mean ? job->mean[row] : 0, hi = mean_hi_part(mean, (double)(A)mean, rstd, 0);
        terms->shifted |= hi != 0;
        const double lo = EXACT && job->centred ? job->sums[2][row] / count : mean - hi;
        const double dev_coeff = dev_coeff_from_sum(rstd, job->sums[1][row] - lo * sum_g, count);
        terms->hi[row] = (A)hi;
        terms->lo[row] = (A)lo;
        terms->rstd[row] = (A)rstd;
        terms->dev_coeff[row] = (A)dev_coeff;
        terms->grad_offset[row] = (A)grad_offset_from_sum(rstd, sum_g, count, lo, dev_coeff, job->centred);
    }
}

/* dx of R rows, and what they add to the gradients of the parameters (kept: weight, bias, slope); `fresh`: to 0,
 * whatever is kept there. */
INLINE void FN(grad_rows_unrolled)(const RowGradBlock *job, const FN(GradTerms) *terms, ptrdiff_t row, ptrdiff_t at,
                             ptrdiff_t n, A *const kept[3], const int R, const int centred,
                             const int activation, const int added, const int stream, const int fresh) {
    const A *const weights = (const A *)job->coeffs.weights + at;
    const A *const shifts = job->coeffs.biases ? (const A *)job->coeffs.biases + at : 0;
    const A *const slopes = activation == 2 ? (const A *)job->coeffs.slopes + at : 0;
    /* by value: for all the compiler knows, storing the results might change what `job` and `kept` point to */
    A *const kept_dw = kept[0], *const kept_db = kept[1], *const kept_dslope = kept[2];
    const ptrdiff_t peel = job->peel, ahead = job->prefetch_bytes;
    AL hi[GRAD_ROWS_UNROLLED], lo[GRAD_ROWS_UNROLLED], rstd[GRAD_ROWS_UNROLLED], q[GRAD_ROWS_UNROLLED], r[GRAD_ROWS_UNROLLED], slope[GRAD_ROWS_UNROLLED];
    const char *x[GRAD_ROWS_UNROLLED], *dy[GRAD_ROWS_UNROLLED], *plus[GRAD_ROWS_UNROLLED];
    char *dx[GRAD_ROWS_UNROLLED];
    FOR_UNROLLED_ROWS(k) {
        hi[k] = SET(terms->hi[row + k]);
        lo[k] = SET(terms->lo[row + k]);
        rstd[k] = SET(terms->rstd[row + k]);
        q[k] = SET(terms->dev_coeff[row + k]);
        r[k] = SET(terms->grad_offset[row + k]);
        slope[k] = SET(job->row_slopes ? job->row_slopes[row + k] : job->coeffs.slope);
        x[k] = job->x[row + k];
        dy[k] = job->dy[row + k];
        dx[k] = job->dx[row + k];
        plus[k] = added ? job->addend[row + k] : 0;
    }
    /* one lane at i: LANE reads the parameters, STEP takes a row of it, KEEP writes the sums */
#define LANE(weight, shift, slope_, dw, db, dslope, i, part)                                     \
    const AL weight = FN(vector_parameter)(weights, i, part);                                        \
    const AL shift = activation && shifts ? FN(vector_parameter)(shifts, i, part) : SET(0);          \
    const AL slope_ = slopes ? FN(vector_parameter)(slopes, i, part) : SET(0);                       \
    AL dw = fresh ? SET(0) : FN(vector_parameter)(kept_dw, i, part);                                 \
    AL db = fresh ? SET(0) : FN(vector_parameter)(kept_db, i, part);                                 \
    AL dslope = activation ? FN(vector_parameter)(kept_dslope, i, part) : SET(0);
#define STEP(result, weight, shift, slope_, dw, db, dslope, i, part)                             \
    AL result;                                                                                   \
    {                                                                                            \
        AL d = FN(vector_load)(x[k], i, part, hi[k]);                                             \
        if (centred == SHIFTED) d = SUB(d, hi[k]);                                               \
        const AL exact = SUB(d, lo[k]);                                                          \
        AL g = FN(vector_load)(dy[k], i, part, SET(0));                                           \
        if (activation) {                                                                        \
            AL z = MUL(exact, MUL(rstd[k], weight));                                             \
            if (shifts) z = ADD(z, shift);                                                       \
            g = FN(activation_backward)(g, z, activation == 2 ? slope_ : slope[k], &dslope);                 \
        }                                                                                        \
        db = ADD(db, g);                                                                         \
        dw = ADD(dw, MUL(g, MUL(exact, rstd[k])));                                               \
        result = SUB(SUB(MUL(g, MUL(rstd[k], weight)), r[k]), MUL(MUL(d, rstd[k]), q[k]));       \
        if (added) result = ADD(result, FN(vector_load)(plus[k], i, part, SET(0)));               \
    }
#define KEEP(dw, db, dslope, i, part)                                                            \
    FN(vector_keep)(kept_dw, i, part, dw);                                                        \
    FN(vector_keep)(kept_db, i, part, db);                                                        \
    if (activation) FN(vector_keep)(kept_dslope, i, part, dslope);
#define LAST(part)                                                                               \
    {                                                                                            \
        LANE(w0, b0, s0, dw0, db0, ds0, i, part)                                                 \
        FOR_UNROLLED_ROWS(k) {                                                                        \
            STEP(z, w0, b0, s0, dw0, db0, ds0, i, part)                                          \
            FN(vector_store)(dx[k], i, part, z, stream && i >= peel && WHOLE_LINES(1));           \
        }                                                                                        \
        KEEP(dw0, db0, ds0, i, part)                                                             \
    }
    ptrdiff_t i = 0;
    if (peel >= LANES) {
        LAST(0)
        i = LANES;
    }
    if (i < peel) {
        LAST((peel - i))
        i = peel;
    }
    for (; GRAD_ROW_PAIRS && i + 2 * LANES <= n; i += 2 * LANES) {
        LANE(w0, b0, s0, dw0, db0, ds0, i, 0)
        LANE(w1, b1, s1, dw1, db1, ds1, i + LANES, 0)
        FOR_UNROLLED_ROWS(k) {
            if (ahead) {
                FN(prefetch_pair)(x[k] + BYTES(i) + ahead);
                FN(prefetch_pair)(dy[k] + BYTES(i) + ahead);
            }
            STEP(z0, w0, b0, s0, dw0, db0, ds0, i, 0)
            STEP(z1, w1, b1, s1, dw1, db1, ds1, i + LANES, 0)
            if (stream) STREAM_PAIR((S *)dx[k] + i, z0, z1);
            else STORE_PAIR((S *)dx[k] + i, z0, z1);
        }
        KEEP(dw0, db0, ds0, i, 0)
        KEEP(dw1, db1, ds1, i + LANES, 0)
    }
    for (; i + LANES <= n; i += LANES) LAST(0)
    if (i < n) LAST((n - i))
#undef LAST
#undef LANE
#undef STEP
#undef KEEP
    (void)slope, (void)kept_dslope;
}

/* Each a function of its own: one function of all would be too much for the compiler. Rows from `row`
 * on, as many as make groups of R; returns the first that is left. */
#define VARIANT(name, R, centred, activation, added, stream, fresh)                              \
    static __attribute__((noinline)) ptrdiff_t FN(name)(                                         \
        const RowGradBlock *job, const FN(GradTerms) *terms, ptrdiff_t row, ptrdiff_t stop, ptrdiff_t at, \
        ptrdiff_t n, A *const kept[3]) {                                                         \
        for (; row + R <= stop; row += R)                                                        \
            FN(grad_rows_unrolled)(job, terms, row, at, n, kept, R, centred, activation, added, stream, fresh); \
        return row;                                                                              \
    }
VARIANT(grad_plain, GRAD_ROWS_UNROLLED, SHIFTED, 0, 0, 0, 0)
VARIANT(grad_plain_near, GRAD_ROWS_UNROLLED, CENTRED, 0, 0, 0, 0)
VARIANT(grad_added, GRAD_ROWS_UNROLLED, SHIFTED, 0, 1, 0, 0)
VARIANT(grad_added_near, GRAD_ROWS_UNROLLED, CENTRED, 0, 1, 0, 0)
VARIANT(grad_streamed, GRAD_ROWS_UNROLLED, SHIFTED, 0, 0, 1, 0)
VARIANT(grad_plain_one, 1, SHIFTED, 0, 0, 0, 0)
VARIANT(grad_alone, 1, SHIFTED, 0, 0, 0, 1)
VARIANT(grad_added_one, 1, SHIFTED, 0, 1, 0, 0)
VARIANT(grad_streamed_one, 1, SHIFTED, 0, 0, 1, 0)
VARIANT(grad_slope, 1, SHIFTED, 1, job->add_to_grad, 0, 0)
VARIANT(grad_slopes, 1, SHIFTED, 2, job->add_to_grad, 0, 0)
#undef VARIANT

/* Elements at .. at + n of the rows of a job: dx, and the block's sums for the parameters, which are
 * added to dw, db and dslope, or (`fresh`) written there. First the rows' own sums, if they are to be
 * taken: whole rows are at hand then. */
static void FN(grad_rows)(RowGradBlock *job, ptrdiff_t at, ptrdiff_t n, int take_sums, int fresh, double *dw,
                          double *db, double *dslope) {
    double *const totals[3] = {dw, db, dslope};
    const int kinds = job->activation ? 3 : 2;
    FN(GradTerms) terms;
    const ptrdiff_t least = WHOLE_LINES(1) ? LANES : 2 * LANES;
    ptrdiff_t peel = job->coeffs.nontemporal && n >= least ? FN(common_peel)(job->dx, job->rows, n, 1) : -1;
    const int stream = peel >= 0;
    if (!stream) peel = FN(common_peel)(job->dx, job->rows, n, 0);
    job->peel = peel > 0 ? peel : 0;
    /* what is kept of the first element after the lead begins a line, too */
    A sums[3][TILE + LANES] __attribute__((aligned(LANES_ALIGN)));
    const ptrdiff_t begin = (LANES - job->peel % LANES) % LANES;
    A *kept[3] = {sums[0] + begin, sums[1] + begin, sums[2] + begin};
    const int alone = job->rows == 1 && !job->activation && !job->add_to_grad && !stream; /* then it begins the sums */
    for (int kind = 0; kind < kinds; ++kind) {
        if (job->final[kind]) kept[kind] = (A *)job->final[kind] + at;
        if (!alone) memset(kept[kind], 0, n * sizeof(A));
    }
    const ptrdiff_t together = take_sums ? job->rows_per_pass : job->rows;
    for (ptrdiff_t first = 0; first < job->rows; first += together) {
        const ptrdiff_t stop = first + together < job->rows ? first + together : job->rows;
        ptrdiff_t row = first;
        if (take_sums) FN(grad_row_sums)(job, first, stop, job->from_memory && !stream);
        FN(grad_terms)(job, first, stop, &terms);
#define CALL(variant) row = FN(variant)(job, &terms, row, stop, at, n, kept)
        if (job->activation == 2) CALL(grad_slopes);
        else if (job->activation) CALL(grad_slope);
        else if (job->add_to_grad) {
            if (terms.shifted) CALL(grad_added);
            else CALL(grad_added_near);
            CALL(grad_added_one);
        } else if (alone) CALL(grad_alone);
        else if (stream) {
            CALL(grad_streamed);
            CALL(grad_streamed_one);
        } else {
            if (terms.shifted) CALL(grad_plain);
            else CALL(grad_plain_near);
            CALL(grad_plain_one);
        }
#undef CALL
    }
    for (int kind = 0; kind < kinds; ++kind) {
        if (job->final[kind]) continue;
        if (fresh) FN(kept_set)(kept[kind], n, totals[kind]);
        else FN(kept_add)(kept[kind], n, totals[kind]);
    }
}
