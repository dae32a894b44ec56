/* Rows: a few whole ones at a time, forward and backward. A part of tile_loops.h. */

/* Few short rows at once: each step for all of them, so that no row waits for its own sums. The
 * arithmetic of a row is that of part_moments and unit_affine (moments.pxi, units.pxi). */
INLINE void FN(forward_rows_any)(RowJob *job, const int vector, const int centred, const int biased,
                                 const int activation, const int stream) {
    for (ptrdiff_t row = 0; row < job->rows; ++row) {
        if (job->again[row]) continue;
        Affine f = job->affine;
        f.hi = job->hi[row];
        f.lo = (job->mean[row] - f.hi) + job->lo[row];
        f.scale = job->rstd[row];
        if (!vector) {
            if (job->weight) f.scale = job->rstd[row] * job->weight[row];
            f.bias = (job->bias ? job->bias[row] : 0) - f.lo * f.scale;
        }
        if (activation && job->slopes) f.slope = job->slopes[row];
        const char *x = job->x + row * job->x_stride;
        char *y = job->y + row * job->y_stride;
#define RUN(store)                                                                               \
        if (centred == SHIFTED && f.hi == 0 && !activation)                                      \
            FN(apply_any)(x, y, 1, 0, 0, job->n, 0, &f, vector, CENTRED, biased, 0, store);      \
        else FN(apply_any)(x, y, 1, 0, 0, job->n, 0, &f, vector, centred, biased, activation, store);
        if (stream && FN(streams)(y, job->n)) { RUN(PAST_CACHE) }
        else { RUN(AS_IT_COMES) }
#undef RUN
    }
}

/* What rows lose and are scaled by, in the accumulator; and whether hi is but 0. */
typedef struct {
    A hi[ROWS_TOGETHER], lo[ROWS_TOGETHER], scale[ROWS_TOGETHER];
    int shifted;
} FN(RowTerms);

/* `R` rows abreast: a weight that is loaded once serves them all. */
INLINE void FN(apply_abreast)(const RowJob *job, const FN(RowTerms) *terms, ptrdiff_t row, const int R,
                              const int centred, const int biased) {
    const ptrdiff_t n = job->n;
    const A *const weight = (const A *)job->affine.weight, *const shift = (const A *)job->affine.shift;
    AL hi[ABREAST], lo[ABREAST], scale[ABREAST];
    const char *x[ABREAST];
    char *y[ABREAST];
    ROWS_ABREAST(k) {
        hi[k] = SET(terms->hi[row + k]);
        lo[k] = SET(terms->lo[row + k]);
        scale[k] = SET(terms->scale[row + k]);
        x[k] = job->x + (row + k) * job->x_stride;
        y[k] = job->y + (row + k) * job->y_stride;
    }
#define NORMALISED(v, w, b) FN(normalised)(v, hi[k], lo[k], scale[k], w, b, 1, centred, biased)
#define STEP(part)                                                                               \
    {                                                                                            \
        const AL w = FN(strip_vector)(weight, i, part), b = biased ? FN(strip_vector)(shift, i, part) : w; \
        ROWS_ABREAST(k) {                                                                        \
            const AL x_ = FN(strip_load)(x[k], i, part, hi[k]);                                  \
            FN(strip_store)(y[k], i, part, NORMALISED(x_, w, b), 0);                             \
        }                                                                                        \
    }
    const ptrdiff_t lead = R == 1 || job->y_stride % (LANES_ALIGN / 2) == 0 ? FN(lead)(y[0], n, 0) : 0;
    ptrdiff_t i = 0;
    if (lead) STEP(lead)
    for (i = lead; i + 2 * LANES <= n; i += 2 * LANES) {
        const AL w0 = PARAMETER(weight, i), w1 = PARAMETER(weight, i + LANES);
        const AL b0 = biased ? PARAMETER(shift, i) : w0, b1 = biased ? PARAMETER(shift, i + LANES) : w1;
        ROWS_ABREAST(k) {
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
static void FN(apply_rows)(const RowJob *job, const FN(RowTerms) *terms) {
    ptrdiff_t row = 0;
#define VARIANT(R)                                                                               \
    if (!job->centred) FN(apply_abreast)(job, terms, row, R, UNCENTRED, 0);                      \
    else if (!job->affine.shift) FN(apply_abreast)(job, terms, row, R, SHIFTED, 0);              \
    else if (terms->shifted) FN(apply_abreast)(job, terms, row, R, SHIFTED, 1);                  \
    else FN(apply_abreast)(job, terms, row, R, CENTRED, 1);
    if (ABREAST > 1 && (job->x_stride | job->y_stride) % 4096)  /* else all of them in one set of L1 */
        for (; row + ABREAST <= job->rows; row += ABREAST) { VARIANT(ABREAST) }
    for (; row < job->rows; ++row) { VARIANT(1) }
#undef VARIANT
}

/* EACH(n), where the compiler knows how many lanes a short row has: asked once for all rows. */
#define BY_LANES(n, EACH)                                                                        \
    if ((n) > HEAD(n)) EACH(n)                                                                   \
    else switch ((n) / LANES) {                                                                  \
        case 0: EACH((n) % LANES) break;                                                         \
        case 1: EACH(LANES + (n) % LANES) break;                                                 \
        case 2: EACH(2 * LANES + (n) % LANES) break;                                             \
        case 3: EACH(3 * LANES + (n) % LANES) break;                                             \
        default: EACH(4 * LANES)                                                                 \
    }

/* Lanes of the sums of every row about 0, of n elements each. */
INLINE void FN(sums_of_rows)(const RowJob *job, ptrdiff_t n, AL *first, AL *second, const int centred) {
#define EACH(n)                                                                                  \
    for (ptrdiff_t row = 0; row < job->rows; ++row)                                              \
        FN(sums_any)(job->x + row * job->x_stride, 1, 0, n, 0, first + row, second + row, centred, 0);
    BY_LANES(n, EACH)
#undef EACH
}

/* The statistics of each row, from its sums about a shift. `power`: 1 / count is one of 2, and dividing by count
 * is multiplying by it, which takes less. */
INLINE void FN(row_statistics)(RowJob *job, const double *shift, const double *first, const double *second,
                               const int power) {
    const double count = (double)job->n, inverse = 1 / count;
#define BY_COUNT(a) (power ? (a) * inverse : (a) / count)
    for (ptrdiff_t row = 0; row < job->rows; ++row) {
        const double step = BY_COUNT(first[row]), mean = shift[row] + step;
        const double m2 = second[row] - first[row] * step;
        job->mean[row] = mean;
        job->lo[row] = (shift[row] - mean) + step;
        job->m2[row] = m2 < 0 ? 0 : m2;
        job->rstd[row] = 1 / sqrt(BY_COUNT(job->m2[row]) + job->eps);
        job->hi[row] = first_part(mean, (double)(A)mean, job->rstd[row], job->eps);
    }
#undef BY_COUNT
}

/* Whether sums of a row lost too many bits, or overflowed, or underflowed. */
INLINE int FN(takes_long_way)(const RowJob *job, double first, double second) {
    const double count = (double)job->n;
    return far_from_mean(count, first, second) | !(second - second == 0) | (second < job->tiny * count);
}

static void FN(forward_rows)(RowJob *job) {
    const double head = (double)HEAD(job->n);
    static const double none[ROWS_TOGETHER]; /* to clear as many would take longer than a short row */
    double shifts[ROWS_TOGETHER], firsts[ROWS_TOGETHER], second[ROWS_TOGETHER];
    const double *shift = none, *const first = job->centred ? firsts : none;
    AL lanes[2][ROWS_TOGETHER];
    FN(RowTerms) terms;
    const ptrdiff_t rows = job->rows;
    if (job->centred) {
        FN(sums_of_rows)(job, HEAD(job->n), lanes[0], lanes[1], CENTRED);
        CAT(A, fold_all)(lanes[0], rows, firsts);
        CAT(A, fold_all)(lanes[1], rows, second);
        int64_t shifted = 0; /* of a double's size, else the compiler narrows it */
        for (ptrdiff_t row = 0; row < rows; ++row) shifted |= FN(far_from_0)(head, first[row], second[row]);
        if (shifted) {
            for (ptrdiff_t row = 0; row < rows; ++row) shifts[row] = FN(head_shift)(head, first[row], second[row]);
            shift = shifts;
        }
        const int all = job->n > HEAD(job->n); /* else those about 0 are there */
        if (shifted || all) {
            for (ptrdiff_t row = 0; row < rows; ++row) {
                const char *x = job->x + row * job->x_stride;
                if (shift[row] != 0)
                    FN(sums_any)(x, 1, 0, job->n, shift[row], &lanes[0][row], &lanes[1][row], SHIFTED, 0);
                else if (all)
                    FN(sums_any)(x, 1, 0, job->n, 0, &lanes[0][row], &lanes[1][row], CENTRED, 0);
            }
            CAT(A, fold_all)(lanes[0], rows, firsts);
            CAT(A, fold_all)(lanes[1], rows, second);
        }
    } else {
        FN(sums_of_rows)(job, job->n, lanes[0], lanes[1], UNCENTRED);
        CAT(A, fold_all)(lanes[1], rows, second);
    }
    if (job->n & (job->n - 1)) FN(row_statistics)(job, shift, first, second, 0);
    else FN(row_statistics)(job, shift, first, second, 1);
    int64_t again = 0, shifted = 0;
    for (ptrdiff_t row = 0; row < rows; ++row) {
        terms.hi[row] = (A)job->hi[row];
        terms.lo[row] = (A)((job->mean[row] - job->hi[row]) + job->lo[row]);
        terms.scale[row] = (A)job->rstd[row];
        shifted |= job->hi[row] != 0;
    }
    for (ptrdiff_t row = 0; row < rows; ++row) again |= FN(takes_long_way)(job, first[row], second[row]);
    job->any_again = again != 0;
    terms.shifted = shifted != 0;
    if (job->vector && !again && !job->activation && !job->affine.stream) {
        FN(apply_rows)(job, &terms);
        return;
    }
    for (ptrdiff_t row = 0; row < rows; ++row) job->again[row] = FN(takes_long_way)(job, first[row], second[row]);
#define VARIANT(vector, centred, biased)                                                         \
    if (job->activation == 2 && vector) FN(forward_rows_any)(job, vector, centred, biased, 2, 0); \
    else if (job->activation) FN(forward_rows_any)(job, vector, centred, biased, 1, 0);          \
    else if (job->affine.stream) FN(forward_rows_any)(job, vector, centred, biased, 0, 1);       \
    else FN(forward_rows_any)(job, vector, centred, biased, 0, 0);
    if (!job->vector) { VARIANT(0, SHIFTED, 1) }
    else if (job->affine.shift) { VARIANT(1, SHIFTED, 1) }
    else if (job->centred) { VARIANT(1, SHIFTED, 0) }
    else { VARIANT(1, UNCENTRED, 0) }
#undef VARIANT
}

/* ---- backward: the sums of a few rows, and then, while these are in L1, all that depends on them.
 * The parameters' gradients are sums down the rows of a block, in the accumulator. ---- */

INLINE Affine FN(row_affine)(const GradRows *job, ptrdiff_t row) {
    const double mean = job->mean ? job->mean[row] : 0;
    Affine f = job->affine;
    f.hi = first_part(mean, (double)(A)mean, job->rstd[row], 0), f.lo = mean - f.hi, f.scale = job->rstd[row];
    if (job->row_slope) f.slope = job->row_slope[row];
    return f;
}

/* A short row that will be written and is not in cache: its lines are asked for while others come in. */
INLINE void FN(expect)(const char *y, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n * (ptrdiff_t)sizeof(S); i += LANES_ALIGN) __builtin_prefetch(y + i, 1, 3);
}

INLINE void FN(grad_sums_of_rows)(const GradRows *job, ptrdiff_t first, ptrdiff_t stop, const double *hi,
                                  AL lanes[3][GRAD_ROWS], int expected, const int centred) {
    Affine f = job->affine;
#define EACH(count)                                                                              \
    for (ptrdiff_t row = first; row < stop; ++row) {                                             \
        if (expected) FN(expect)(job->dx[row], job->n);                                          \
        AL *const to[4] = {&lanes[0][row], &lanes[1][row], &lanes[2][row], 0};                   \
        f.hi = hi[row];                                                                          \
        FN(grad_sums_any)(job->x[row], job->dy[row], 1, 0, 0, count, 0, &f, to, 1, centred, 0, 0); \
    }
    BY_LANES(job->n, EACH)
#undef EACH
}

/* The sums of rows first .. stop: of short ones together, of long ones a tile at a time. */
static void FN(grad_row_sums)(GradRows *job, ptrdiff_t first, ptrdiff_t stop, int expected) {
    if (job->n <= TILE && !job->activation) {
        AL lanes[3][GRAD_ROWS];
        double hi[GRAD_ROWS];
        int64_t shifted = 0;
        for (ptrdiff_t row = first; row < stop; ++row) {
            const double mean = job->mean ? job->mean[row] : 0;
            hi[row] = first_part(mean, (double)(A)mean, job->rstd[row], 0);
            shifted |= hi[row] != 0;
        }
        if (shifted) FN(grad_sums_of_rows)(job, first, stop, hi, lanes, expected, SHIFTED);
        else FN(grad_sums_of_rows)(job, first, stop, hi, lanes, expected, CENTRED);
        for (int kind = 0; kind < (EXACT ? 3 : 2); ++kind)
            CAT(A, fold_all)(lanes[kind] + first, stop - first, job->sums[kind] + first);
        return;
    }
    for (ptrdiff_t row = first; row < stop; ++row) {
        const Affine f = FN(row_affine)(job, row);
        double sums[4] = {0};
        for (ptrdiff_t i = 0; i < job->n; i += TILE)
            FN(grad_sums_vector)(job->x[row] + BYTES(i), job->dy[row] + BYTES(i),
                                 job->n - i < TILE ? job->n - i : TILE, i, &f, job->activation, sums);
        for (int kind = 0; kind < 4; ++kind) job->sums[kind][row] = sums[kind];
    }
}

/* What dx of each row takes: dx = (g * rstd * weight - r) - d * rstd * q, d = x - hi; and whether hi is but 0. */
typedef struct {
    A hi[GRAD_ROWS], lo[GRAD_ROWS], rstd[GRAD_ROWS], q[GRAD_ROWS], r[GRAD_ROWS];
    int shifted;
} FN(GradTerms);

static void FN(grad_terms)(const GradRows *job, ptrdiff_t first, ptrdiff_t stop, FN(GradTerms) *terms) {
    const double count = (double)job->n;
    terms->shifted = 0;
    for (ptrdiff_t row = first; row < stop; ++row) {
        const double sum_g = job->sums[0][row], rstd = job->rstd[row];
        const double mean = job->mean ? job->mean[row] : 0, hi = first_part(mean, (double)(A)mean, rstd, 0);
        terms->shifted |= hi != 0;
        const double lo = EXACT && job->centred ? job->sums[2][row] / count : mean - hi;
        const double q = rstd * rstd * (job->sums[1][row] - lo * sum_g) / count;
        terms->hi[row] = (A)hi;
        terms->lo[row] = (A)lo;
        terms->rstd[row] = (A)rstd;
        terms->q[row] = (A)q;
        terms->r[row] = (A)((job->centred ? rstd * sum_g / count : 0) - lo * rstd * q);
    }
}

/* dx of R rows, and what they add to the gradients of the parameters (kept: weight, bias, slope); `fresh`: to 0,
 * whatever is kept there. */
INLINE void FN(grad_abreast)(const GradRows *job, const FN(GradTerms) *terms, ptrdiff_t row, ptrdiff_t at,
                             ptrdiff_t n, A *const kept[3], const int R, const int centred,
                             const int activation, const int added, const int stream, const int fresh) {
    const A *const weights = (const A *)job->affine.weight + at;
    const A *const shifts = job->affine.shift ? (const A *)job->affine.shift + at : 0;
    const A *const slopes = activation == 2 ? (const A *)job->affine.slopes + at : 0;
    /* by value: for all the compiler knows, storing the results might change what `job` and `kept` point to */
    A *const kept_dw = kept[0], *const kept_db = kept[1], *const kept_dslope = kept[2];
    const ptrdiff_t lead = job->lead, ahead = job->ahead;
    AL hi[GRAD_ABREAST], lo[GRAD_ABREAST], rstd[GRAD_ABREAST], q[GRAD_ABREAST], r[GRAD_ABREAST], slope[GRAD_ABREAST];
    const char *x[GRAD_ABREAST], *dy[GRAD_ABREAST], *plus[GRAD_ABREAST];
    char *dx[GRAD_ABREAST];
    ROWS_ABREAST(k) {
        hi[k] = SET(terms->hi[row + k]);
        lo[k] = SET(terms->lo[row + k]);
        rstd[k] = SET(terms->rstd[row + k]);
        q[k] = SET(terms->q[row + k]);
        r[k] = SET(terms->r[row + k]);
        slope[k] = SET(job->row_slope ? job->row_slope[row + k] : job->affine.slope);
        x[k] = job->x[row + k];
        dy[k] = job->dy[row + k];
        dx[k] = job->dx[row + k];
        plus[k] = added ? job->plus[row + k] : 0;
    }
    /* one lane at i: LANE reads the parameters, STEP takes a row of it, KEEP writes the sums */
#define LANE(weight, shift, slope_, dw, db, dslope, i, part)                                     \
    const AL weight = FN(strip_vector)(weights, i, part);                                        \
    const AL shift = activation && shifts ? FN(strip_vector)(shifts, i, part) : SET(0);          \
    const AL slope_ = slopes ? FN(strip_vector)(slopes, i, part) : SET(0);                       \
    AL dw = fresh ? SET(0) : FN(strip_vector)(kept_dw, i, part);                                 \
    AL db = fresh ? SET(0) : FN(strip_vector)(kept_db, i, part);                                 \
    AL dslope = activation ? FN(strip_vector)(kept_dslope, i, part) : SET(0);
#define STEP(result, weight, shift, slope_, dw, db, dslope, i, part)                             \
    AL result;                                                                                   \
    {                                                                                            \
        AL d = FN(strip_load)(x[k], i, part, hi[k]);                                             \
        if (centred == SHIFTED) d = SUB(d, hi[k]);                                               \
        const AL exact = SUB(d, lo[k]);                                                          \
        AL g = FN(strip_load)(dy[k], i, part, SET(0));                                           \
        if (activation) {                                                                        \
            AL z = MUL(exact, MUL(rstd[k], weight));                                             \
            if (shifts) z = ADD(z, shift);                                                       \
            g = FN(through)(g, z, activation == 2 ? slope_ : slope[k], &dslope);                 \
        }                                                                                        \
        db = ADD(db, g);                                                                         \
        dw = ADD(dw, MUL(g, MUL(exact, rstd[k])));                                               \
        result = SUB(SUB(MUL(g, MUL(rstd[k], weight)), r[k]), MUL(MUL(d, rstd[k]), q[k]));       \
        if (added) result = ADD(result, FN(strip_load)(plus[k], i, part, SET(0)));               \
    }
#define KEEP(dw, db, dslope, i, part)                                                            \
    FN(strip_keep)(kept_dw, i, part, dw);                                                        \
    FN(strip_keep)(kept_db, i, part, db);                                                        \
    if (activation) FN(strip_keep)(kept_dslope, i, part, dslope);
#define LAST(part)                                                                               \
    {                                                                                            \
        LANE(w0, b0, s0, dw0, db0, ds0, i, part)                                                 \
        ROWS_ABREAST(k) {                                                                        \
            STEP(z, w0, b0, s0, dw0, db0, ds0, i, part)                                          \
            FN(strip_store)(dx[k], i, part, z, stream && i >= lead && WHOLE_LINES(1));           \
        }                                                                                        \
        KEEP(dw0, db0, ds0, i, part)                                                             \
    }
    ptrdiff_t i = 0;
    if (lead >= LANES) {
        LAST(0)
        i = LANES;
    }
    if (i < lead) {
        LAST((lead - i))
        i = lead;
    }
    for (; LANES_PARTS == 1 && i + 2 * LANES <= n; i += 2 * LANES) {
        LANE(w0, b0, s0, dw0, db0, ds0, i, 0)
        LANE(w1, b1, s1, dw1, db1, ds1, i + LANES, 0)
        ROWS_ABREAST(k) {
            if (ahead) {
                FN(fetch_pair)(x[k] + BYTES(i) + ahead);
                FN(fetch_pair)(dy[k] + BYTES(i) + ahead);
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
        const GradRows *job, const FN(GradTerms) *terms, ptrdiff_t row, ptrdiff_t stop, ptrdiff_t at, \
        ptrdiff_t n, A *const kept[3]) {                                                         \
        for (; row + R <= stop; row += R)                                                        \
            FN(grad_abreast)(job, terms, row, at, n, kept, R, centred, activation, added, stream, fresh); \
        return row;                                                                              \
    }
VARIANT(grad_plain, GRAD_ABREAST, SHIFTED, 0, 0, 0, 0)
VARIANT(grad_plain_near, GRAD_ABREAST, CENTRED, 0, 0, 0, 0)
VARIANT(grad_added, GRAD_ABREAST, SHIFTED, 0, 1, 0, 0)
VARIANT(grad_added_near, GRAD_ABREAST, CENTRED, 0, 1, 0, 0)
VARIANT(grad_streamed, GRAD_ABREAST, SHIFTED, 0, 0, 1, 0)
VARIANT(grad_plain_one, 1, SHIFTED, 0, 0, 0, 0)
VARIANT(grad_alone, 1, SHIFTED, 0, 0, 0, 1)
VARIANT(grad_added_one, 1, SHIFTED, 0, 1, 0, 0)
VARIANT(grad_streamed_one, 1, SHIFTED, 0, 0, 1, 0)
VARIANT(grad_slope, 1, SHIFTED, 1, job->added, 0, 0)
VARIANT(grad_slopes, 1, SHIFTED, 2, job->added, 0, 0)
#undef VARIANT

/* Elements at .. at + n of the rows of a job: dx, and the block's sums for the parameters, which are
 * added to dw, db and dslope, or (`fresh`) written there. First the rows' own sums, if they are to be
 * taken: whole rows are at hand then. */
static void FN(grad_rows)(GradRows *job, ptrdiff_t at, ptrdiff_t n, int take_sums, int fresh, double *dw,
                          double *db, double *dslope) {
    double *const totals[3] = {dw, db, dslope};
    const int kinds = job->activation ? 3 : 2;
    FN(GradTerms) terms;
    const ptrdiff_t least = WHOLE_LINES(1) ? LANES : 2 * LANES;
    ptrdiff_t lead = job->affine.stream && n >= least ? FN(common_lead)(job->dx, job->rows, n, 1) : -1;
    const int stream = lead >= 0;
    if (!stream) lead = FN(common_lead)(job->dx, job->rows, n, 0);
    job->lead = lead > 0 ? lead : 0;
    /* what is kept of the first element after the lead begins a line, too */
    A sums[3][TILE + LANES] __attribute__((aligned(LANES_ALIGN)));
    const ptrdiff_t begin = (LANES - job->lead % LANES) % LANES;
    A *kept[3] = {sums[0] + begin, sums[1] + begin, sums[2] + begin};
    const int alone = job->rows == 1 && !job->activation && !job->added && !stream; /* then it begins the sums */
    for (int kind = 0; kind < kinds; ++kind) {
        if (job->final[kind]) kept[kind] = (A *)job->final[kind] + at;
        if (!alone) memset(kept[kind], 0, n * sizeof(A));
    }
    const ptrdiff_t together = take_sums ? job->together : job->rows;
    for (ptrdiff_t first = 0; first < job->rows; first += together) {
        const ptrdiff_t stop = first + together < job->rows ? first + together : job->rows;
        ptrdiff_t row = first;
        if (take_sums) FN(grad_row_sums)(job, first, stop, job->far && !stream);
        FN(grad_terms)(job, first, stop, &terms);
#define CALL(variant) row = FN(variant)(job, &terms, row, stop, at, n, kept)
        if (job->activation == 2) CALL(grad_slopes);
        else if (job->activation) CALL(grad_slope);
        else if (job->added) {
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
