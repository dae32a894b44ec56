/* One text of each loop over a tile; tiles.h includes it once per storage type.
 *
 * S: storage type, A: accumulation type, AL: its lanes, ACCUMULATOR: its place in TILES.
 * Functions ending in _any take constants that choose a variant (`vector`, `centred`, `activation`);
 * they are inlined into one function per variant, so a variant is never another text.
 */
#define FN(name) CAT(name, S)
#define LOAD(p) CAT(S, load)(p)
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

/* out[i] = STEP of x[i] over a run: two lanes at a time, one, the rest. STEP(result, value, PIECE) makes
 * the lanes at i; PIECE_... loads its other operands. */
#define FOR_RUN(out, n)                                                                          \
    ptrdiff_t i = 0;                                                                             \
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
        if (stream) STREAM((out) + i, result);                                                   \
        else STORE((out) + i, result);                                                           \
        i += LANES;                                                                              \
    }                                                                                            \
    if (i < (n)) {                                                                               \
        AL result;                                                                               \
        STEP(result, LOAD_PART(x + i, (n) - i, fill), PART)                                      \
        STORE_PART((out) + i, result, (n) - i);                                                  \
    }

static double FN(rounded)(double a) { return (double)(A)a; }

static void FN(widen)(const char *source, ptrdiff_t n, void *out) {
    const S *x = (const S *)source;
    A *y = (A *)out;
    ptrdiff_t i = 0;
    for (; i + LANES <= n; i += LANES) CAT(A, store)(y + i, LOAD(x + i));
    if (i < n) CAT(A, store_part)(y + i, LOAD_PART(x + i, n - i, SET(0)), n - i);
}

static void FN(widen64)(const char *source, ptrdiff_t n, double *out) {
    A lane[LANES];
    for (ptrdiff_t i = 0; i < n; i += LANES) {
        const ptrdiff_t m = n - i < LANES ? n - i : LANES;
        FN(widen)(source + i * sizeof(S), m, lane);
        for (ptrdiff_t j = 0; j < m; ++j) out[i + j] = lane[j];
    }
}

/* Mean of the first elements, rounded to A: a shift that is near the mean. */
static double FN(head)(const char *source, ptrdiff_t n) {
    const S *x = (const S *)source;
    const AL zero = SET(0);
    if (n >= 4 * LANES)
        return (double)(A)(FOLD(ADD(ADD(LOAD(x), LOAD(x + LANES)),
                                    ADD(LOAD(x + 2 * LANES), LOAD(x + 3 * LANES)))) / (4 * LANES));
    AL sum = zero;
    ptrdiff_t i = 0;
    for (; i + LANES <= n; i += LANES) sum = ADD(sum, LOAD(x + i));
    if (i < n) sum = ADD(sum, LOAD_PART(x + i, n - i, zero));
    return (double)(A)(FOLD(sum) / n);
}

/* out = {sum of d, sum of d*d}, d = x - shift. Not centred: shift is 0 and the first sum is not taken.
 * Lanes are added up every CASCADE elements, so that an outlier meets few of the others. */
INLINE void FN(sums_any)(const char *source, ptrdiff_t runs, ptrdiff_t stride, ptrdiff_t n,
                         double shift, double *out, const int centred) {
    const AL fill = SET(shift), zero = SET(0);
    AL first0 = zero, first1 = zero, second0 = zero, second1 = zero, first = zero, second = zero;
    ptrdiff_t since = 0;
#define STEP(k, value)                                                                           \
    {                                                                                            \
        AL d = value;                                                                            \
        if (centred) {                                                                           \
            d = SUB(d, fill);                                                                    \
            first##k = ADD(first##k, d);                                                         \
        }                                                                                        \
        second##k = ADD(second##k, MUL(d, d));                                                   \
    }
#define ADD_UP                                                                                   \
    {                                                                                            \
        if (centred) first = ADD(first, ADD(first0, first1));                                    \
        second = ADD(second, ADD(second0, second1));                                             \
        first0 = first1 = second0 = second1 = zero;                                              \
        since = 0;                                                                               \
    }
    for (ptrdiff_t run = 0; run < runs; ++run) {
        const S *x = (const S *)(source + run * stride);
        ptrdiff_t i = 0;
        while (i + CASCADE < n) {
            for (const ptrdiff_t stop = i + CASCADE; i < stop; i += 2 * LANES) {
                STEP(0, LOAD(x + i))
                STEP(1, LOAD(x + i + LANES))
            }
            ADD_UP
        }
        since += n - i;
        for (; i + 2 * LANES <= n; i += 2 * LANES) {
            STEP(0, LOAD(x + i))
            STEP(1, LOAD(x + i + LANES))
        }
        if (i + LANES <= n) {
            STEP(0, LOAD(x + i))
            i += LANES;
        }
        if (i < n) STEP(1, LOAD_PART(x + i, n - i, fill))
        if (since >= CASCADE) ADD_UP
    }
    ADD_UP
#undef ADD_UP
#undef STEP
    out[0] = centred ? FOLD(first) : 0;
    out[1] = FOLD(second);
}

static void FN(sums)(const char *x, ptrdiff_t runs, ptrdiff_t stride, ptrdiff_t n, double shift,
                     int centred, double *out) {
    if (centred) FN(sums_any)(x, runs, stride, n, shift, out, 1);
    else FN(sums_any)(x, runs, stride, n, 0, out, 0);
}

/* Memory is idle while a unit that is in cache is applied: ask for the next one meanwhile. */
#define PREFETCH(p) __builtin_prefetch((const char *)(p + i) + ahead, 0, 2)

/* y = ((x - hi) - lo) * scale + bias, then z if z > 0 else slope * z. */
INLINE void FN(apply_any)(const char *source, char *target, ptrdiff_t runs, ptrdiff_t x_stride,
                          ptrdiff_t y_stride, ptrdiff_t n, ptrdiff_t at, const Affine *a,
                          const int vector, const int centred, const int biased,
                          const int activation, const int stream) {
    const AL hi = SET(a->hi), lo = SET(a->lo), scale = SET(a->scale), bias = SET(a->bias),
             slope = SET(a->slope), fill = hi;
    const ptrdiff_t ahead = a->ahead;
    for (ptrdiff_t run = 0; run < runs; ++run) {
        const S *x = (const S *)(source + run * x_stride);
        S *y = (S *)(target + run * y_stride);
#define STEP(result, value, PIECE)                                                               \
    {                                                                                            \
        AL z = value;                                                                            \
        if (stream) PREFETCH(x);                                                                 \
        if (centred) z = SUB(z, hi);                                                             \
        if (centred && vector) z = SUB(z, lo);                                                   \
        z = MUL(z, vector ? MUL(scale, PIECE##_PARAMETER(a->weight)) : scale);                   \
        if (biased) z = ADD(z, vector ? PIECE##_PARAMETER(a->shift) : bias);                     \
        if (activation)                                                                          \
            z = IF_POSITIVE(z, z, MUL(z, vector && activation == 2 ? PIECE##_PARAMETER(a->slopes) : slope)); \
        result = z;                                                                              \
    }
#define WHOLE_PARAMETER(p) PARAMETER(p, at + i)
#define PART_PARAMETER(p) PARAMETER_PART(p, at + i, n - i)
        FOR_RUN(y, n)
#undef STEP
    }
}

/* Elements of a run before the first that a streamed store may take; all of a short run. */
static ptrdiff_t FN(unaligned)(const char *y, ptrdiff_t n) {
    const ptrdiff_t head = (ptrdiff_t)(-(uintptr_t)y % LANES_ALIGN / sizeof(S));
    return n * (ptrdiff_t)sizeof(S) < 16 * LANES_ALIGN || (uintptr_t)y % sizeof(S) ? n : head;
}

/* RUN(from, count, stream) over a run at y whose result goes past the cache. Whole lines do: a line
 * of which a part is streamed costs a visit to memory of its own. */
#define STREAMED(y, n, RUN)                                                                      \
    {                                                                                            \
        const ptrdiff_t line = LANES_ALIGN / sizeof(S), first = FN(unaligned)(y, n);             \
        const ptrdiff_t lines = ((n) - first) / line * line, rest = (n) - first - lines;         \
        if (first) { RUN(0, first, 0) }                                                          \
        if (lines) { RUN(first, lines, 1) }                                                      \
        if (rest) { RUN((n) - rest, rest, 0) }                                                   \
    }
#define BYTES(from) ((from) * (ptrdiff_t)sizeof(S))

static void FN(apply)(const char *x, char *y, ptrdiff_t runs, ptrdiff_t x_stride, ptrdiff_t y_stride,
                      ptrdiff_t n, const Affine *a, int activation) {
    if (activation) FN(apply_any)(x, y, runs, x_stride, y_stride, n, 0, a, 0, 1, 1, 1, 0);
    else if (a->stream) {
#define RUN(from, count, stream)                                                                 \
        FN(apply_any)(x + BYTES(from), y + BYTES(from), 1, 0, 0, count, 0, a, 0, 1, 1, 0, stream);
        for (ptrdiff_t run = 0; run < runs; ++run, x += x_stride, y += y_stride) STREAMED(y, n, RUN)
#undef RUN
        STREAM_END;
    }
    else FN(apply_any)(x, y, runs, x_stride, y_stride, n, 0, a, 0, 1, 1, 0, 0);
}

INLINE void FN(apply_vector_any)(const char *x, char *y, ptrdiff_t n, ptrdiff_t at, const Affine *a,
                                 int activation, const int centred, const int biased) {
    if (activation == 2) FN(apply_any)(x, y, 1, 0, 0, n, at, a, 1, centred, biased, 2, 0);
    else if (activation) FN(apply_any)(x, y, 1, 0, 0, n, at, a, 1, centred, biased, 1, 0);
    else if (a->stream) {
#define RUN(from, count, stream)                                                                 \
        FN(apply_any)(x + BYTES(from), y + BYTES(from), 1, 0, 0, count, at + (from), a, 1, centred, \
                      biased, 0, stream);
        STREAMED(y, n, RUN)
#undef RUN
        STREAM_END;
    }
    else FN(apply_any)(x, y, 1, 0, 0, n, at, a, 1, centred, biased, 0, 0);
}

/* Elements at .. at + n of a row with a weight (and a bias, if any) per element. */
static void FN(apply_vector)(const char *x, char *y, ptrdiff_t n, ptrdiff_t at, const Affine *a,
                             int activation) {
    if (a->shift) FN(apply_vector_any)(x, y, n, at, a, activation, 1, 1);
    else if (a->hi != 0 || a->lo != 0) FN(apply_vector_any)(x, y, n, at, a, activation, 1, 0);
    else FN(apply_vector_any)(x, y, n, at, a, activation, 0, 0);
}

/* Few short rows at once: each step for all of them, so that no row waits for its own sums. The
 * arithmetic of a row is that of part_moments and unit_affine (moments.pxi, units.pxi). */
INLINE void FN(forward_rows_any)(RowJob *job, const int vector, const int centred, const int biased,
                                 const int activation, const int stream) {
    for (ptrdiff_t row = 0; row < job->rows; ++row) {
        if (job->again[row]) continue;
        Affine f = job->affine;
        f.hi = (double)(A)job->mean[row];
        f.lo = (job->mean[row] - f.hi) + job->lo[row];
        f.scale = job->rstd[row];
        if (!vector) {
            if (job->weight) f.scale = job->rstd[row] * job->weight[row];
            f.bias = (job->bias ? job->bias[row] : 0) - f.lo * f.scale;
        }
        if (activation && job->slopes) f.slope = job->slopes[row];
        if (stream) {
            const char *x = job->x + row * job->x_stride;
            char *y = job->y + row * job->y_stride;
#define RUN(from, count, stream)                                                                 \
            FN(apply_any)(x + BYTES(from), y + BYTES(from), 1, 0, 0, count, from, &f, vector, centred, \
                          biased, activation, stream);
            STREAMED(y, job->n, RUN)
#undef RUN
        } else FN(apply_any)(job->x + row * job->x_stride, job->y + row * job->y_stride, 1, 0, 0, job->n, 0, &f,
                      vector, centred, biased, activation, 0);
    }
}

static void FN(forward_rows)(RowJob *job) {
    const double count = (double)job->n;
    double shift[ROWS_TOGETHER] = {0}, first[ROWS_TOGETHER], second[ROWS_TOGETHER], sums[2];
    const ptrdiff_t rows = job->rows;
    if (job->centred) {
        for (ptrdiff_t row = 0; row < rows; ++row) shift[row] = FN(head)(job->x + row * job->x_stride, job->n);
        for (ptrdiff_t row = 0; row < rows; ++row) {
            FN(sums_any)(job->x + row * job->x_stride, 1, 0, job->n, shift[row], sums, 1);
            first[row] = sums[0], second[row] = sums[1];
        }
    } else {
        for (ptrdiff_t row = 0; row < rows; ++row) {
            FN(sums_any)(job->x + row * job->x_stride, 1, 0, job->n, 0, sums, 0);
            first[row] = 0, second[row] = sums[1];
        }
    }
    for (ptrdiff_t row = 0; row < rows; ++row) {
        const double step = first[row] / count, mean = shift[row] + step;
        const double m2 = second[row] - first[row] * step;
        job->mean[row] = mean;
        job->lo[row] = (shift[row] - mean) + step;
        job->m2[row] = m2 < 0 ? 0 : m2;
        job->rstd[row] = 1 / sqrt(job->m2[row] / count + job->eps);
    }
    for (ptrdiff_t row = 0; row < rows; ++row)
        job->again[row] = !(2 * first[row] * first[row] <= count * second[row])
                       || !(second[row] - second[row] == 0) || second[row] < job->tiny * count;
#define VARIANT(vector, centred, biased)                                                         \
    if (job->activation == 2 && vector) FN(forward_rows_any)(job, vector, centred, biased, 2, 0); \
    else if (job->activation) FN(forward_rows_any)(job, vector, centred, biased, 1, 0);          \
    else if (job->affine.stream) FN(forward_rows_any)(job, vector, centred, biased, 0, 1);       \
    else FN(forward_rows_any)(job, vector, centred, biased, 0, 0);
    if (!job->vector) { VARIANT(0, 1, 1) }
    else if (job->affine.shift) { VARIANT(1, 1, 1) }
    else if (job->centred) { VARIANT(1, 1, 0) }
    else { VARIANT(1, 0, 0) }
#undef VARIANT
    if (job->affine.stream) STREAM_END;
}

/* ---- the same backward: sums of all rows, then (after the parameters' sums) their gradients ---- */

INLINE Affine FN(row_affine)(const GradRows *job, ptrdiff_t row) {
    Affine f = job->affine;
    f.hi = job->hi[row];
    f.lo = job->lo[row];
    f.scale = f.p = f.rstd = job->rstd[row];
    return f;
}

/* The gradient through the activation: its sign is that of the forward z, recomputed. */
#define THROUGH(g, d, PIECE)                                                                     \
    if (activation) {                                                                            \
        AL z = vector ? MUL(SUB(d, lo), MUL(scale, PIECE##_PARAMETER(a->weight))) : MUL(d, scale); \
        if (!vector) z = ADD(z, bias);                                                           \
        else if (a->shift) z = ADD(z, PIECE##_PARAMETER(a->shift));                              \
        const AL s = vector && activation == 2 ? PIECE##_PARAMETER(a->slopes) : slope;           \
        if (on_slope) *on_slope = ADD(*on_slope, IF_POSITIVE(z, SET(0), MUL(g, z)));             \
        g = IF_POSITIVE(z, g, MUL(g, s));                                                        \
    }

#define WHOLE_PLUS LOAD(plus + i)
#define PART_PLUS LOAD_PART(plus + i, n - i, SET(0))
#define WHOLE_DY LOAD(dy + i)
#define PART_DY LOAD_PART(dy + i, n - i, SET(0))

/* out += {sum of g, sum of g*d, sum of d (float64 only), sum of dy*z where z <= 0}, d = x - hi. */
INLINE void FN(grad_sums_any)(const char *x_source, const char *dy_source, ptrdiff_t runs,
                              ptrdiff_t x_stride, ptrdiff_t dy_stride, ptrdiff_t n, ptrdiff_t at,
                              const Affine *a, double *out, const int vector, const int activation) {
    const AL hi = SET(a->hi), lo = SET(a->lo), scale = SET(a->scale), bias = SET(a->bias),
             slope = SET(a->slope), fill = hi;
    const AL zero = SET(0);
    AL g0 = zero, g1 = zero, gd0 = zero, gd1 = zero, d0 = zero, s0 = zero, *on_slope = &s0;
    AL sum_g = zero, sum_gd = zero;
    ptrdiff_t since = 0;
#define STEP(k, value, PIECE)                                                                    \
    {                                                                                            \
        const AL d = SUB(value, hi);                                                             \
        AL g = PIECE##_DY;                                                                       \
        THROUGH(g, d, PIECE)                                                                     \
        if (vector) g = MUL(g, PIECE##_PARAMETER(a->weight));                                    \
        g##k = ADD(g##k, g);                                                                     \
        gd##k = ADD(gd##k, MUL(g, d));                                                           \
        if (EXACT) d0 = ADD(d0, d);                                                              \
    }
#define TWO_STEPS                                                                                \
    {                                                                                            \
        STEP(0, LOAD(x + i), WHOLE)                                                              \
        i += LANES;                                                                              \
        STEP(1, LOAD(x + i), WHOLE)                                                              \
        i += LANES;                                                                              \
    }
#define ADD_UP                                                                                   \
    {                                                                                            \
        sum_g = ADD(sum_g, ADD(g0, g1));                                                         \
        sum_gd = ADD(sum_gd, ADD(gd0, gd1));                                                     \
        g0 = g1 = gd0 = gd1 = zero;                                                              \
        since = 0;                                                                               \
    }
    for (ptrdiff_t run = 0; run < runs; ++run) {
        const S *x = (const S *)(x_source + run * x_stride), *dy = (const S *)(dy_source + run * dy_stride);
        ptrdiff_t i = 0;
        while (i + CASCADE < n) {
            for (const ptrdiff_t stop = i + CASCADE; i < stop; ) TWO_STEPS
            ADD_UP
        }
        since += n - i;
        while (i + 2 * LANES <= n) TWO_STEPS
        if (i + LANES <= n) {
            STEP(0, LOAD(x + i), WHOLE)
            i += LANES;
        }
        if (i < n) STEP(1, LOAD_PART(x + i, n - i, fill), PART)
        if (since >= CASCADE) ADD_UP
    }
    ADD_UP
#undef ADD_UP
#undef TWO_STEPS
#undef STEP
    (void)lo, (void)scale, (void)bias, (void)slope, (void)on_slope;
    out[0] += FOLD(sum_g);
    out[1] += FOLD(sum_gd);
    if (EXACT) out[2] += FOLD(d0);
    if (activation) out[3] += FOLD(s0);
}

static void FN(grad_sums)(const char *x, const char *dy, ptrdiff_t runs, ptrdiff_t x_stride,
                          ptrdiff_t dy_stride, ptrdiff_t n, const Affine *a, int activation, double *out) {
    if (activation) FN(grad_sums_any)(x, dy, runs, x_stride, dy_stride, n, 0, a, out, 0, 1);
    else FN(grad_sums_any)(x, dy, runs, x_stride, dy_stride, n, 0, a, out, 0, 0);
}

static void FN(grad_sums_vector)(const char *x, const char *dy, ptrdiff_t n, ptrdiff_t at,
                                 const Affine *a, int activation, double *out) {
    if (activation == 2) FN(grad_sums_any)(x, dy, 1, 0, 0, n, at, a, out, 1, 2);
    else if (activation) FN(grad_sums_any)(x, dy, 1, 0, 0, n, at, a, out, 1, 1);
    else FN(grad_sums_any)(x, dy, 1, 0, 0, n, at, a, out, 1, 0);
}

/* dx = (g * p - r) - (x - hi) * rstd * q: rstd * q may be too small for a float. Added: + plus. */
INLINE void FN(grad_apply_any)(const char *x_source, const char *dy_source, const char *plus_source,
                               char *dx_source,
                               ptrdiff_t runs, ptrdiff_t x_stride, ptrdiff_t dy_stride,
                               ptrdiff_t dx_stride, ptrdiff_t n, ptrdiff_t at, const Affine *a,
                               const int vector, const int activation, const int added,
                               const int stream) {
    const S *plus = (const S *)plus_source;
    const AL hi = SET(a->hi), lo = SET(a->lo), scale = SET(a->scale), bias = SET(a->bias),
             slope = SET(a->slope), p = SET(a->p), q = SET(a->q), r = SET(a->r),
             rstd = SET(a->rstd), fill = hi;
    AL *const on_slope = 0;
    const ptrdiff_t ahead = a->ahead;
    for (ptrdiff_t run = 0; run < runs; ++run) {
        const S *x = (const S *)(x_source + run * x_stride), *dy = (const S *)(dy_source + run * dy_stride);
        S *dx = (S *)(dx_source + run * dx_stride);
#define STEP(result, value, PIECE)                                                               \
    {                                                                                            \
        const AL d = SUB(value, hi);                                                             \
        AL g = PIECE##_DY;                                                                       \
        if (stream) PREFETCH(dy), PREFETCH(x);                                                   \
        THROUGH(g, d, PIECE)                                                                     \
        g = MUL(g, vector ? MUL(p, PIECE##_PARAMETER(a->weight)) : p);                           \
        g = SUB(SUB(g, r), MUL(MUL(d, rstd), q));                                                \
        if (added) g = ADD(g, PIECE##_PLUS);                                                     \
        result = g;                                                                              \
    }
        FOR_RUN(dx, n)
#undef STEP
    }
    (void)lo, (void)scale, (void)bias, (void)slope, (void)on_slope;
}

static void FN(grad_apply)(const char *x, const char *dy, char *dx, ptrdiff_t runs, ptrdiff_t x_stride,
                           ptrdiff_t dy_stride, ptrdiff_t dx_stride, ptrdiff_t n, const Affine *a,
                           int activation) {
    if (activation)
        FN(grad_apply_any)(x, dy, 0, dx, runs, x_stride, dy_stride, dx_stride, n, 0, a, 0, 1, 0, 0);
    else if (a->stream) {
#define RUN(from, count, stream)                                                                 \
        FN(grad_apply_any)(x + BYTES(from), dy + BYTES(from), 0, dx + BYTES(from), 1, 0, 0, 0, count, 0, a, \
                           0, 0, 0, stream);
        for (ptrdiff_t run = 0; run < runs; ++run, x += x_stride, dy += dy_stride, dx += dx_stride)
            STREAMED(dx, n, RUN)
#undef RUN
        STREAM_END;
    }
    else
        FN(grad_apply_any)(x, dy, 0, dx, runs, x_stride, dy_stride, dx_stride, n, 0, a, 0, 0, 0, 0);
}

/* A row, or elements at .. at + n of one, with the vectors of `a`. */
INLINE void FN(grad_apply_row)(const char *x, const char *dy, const char *plus, char *dx, ptrdiff_t n,
                               ptrdiff_t at, const Affine *a, const int activation, const int added) {
    if (activation || added || !a->stream)
        FN(grad_apply_any)(x, dy, plus, dx, 1, 0, 0, 0, n, at, a, 1, activation, added, 0);
    else {
#define RUN(from, count, stream)                                                                 \
        FN(grad_apply_any)(x + BYTES(from), dy + BYTES(from), 0, dx + BYTES(from), 1, 0, 0, 0, count, \
                           at + (from), a, 1, 0, 0, stream);
        STREAMED(dx, n, RUN)
#undef RUN
    }
}

static void FN(grad_apply_vector)(const char *x, const char *dy, const char *plus, char *dx, ptrdiff_t n,
                                  ptrdiff_t at, const Affine *a, int activation) {
#define VARIANT(added)                                                                           \
    if (activation == 2) FN(grad_apply_row)(x, dy, plus, dx, n, at, a, 2, added);                \
    else if (activation) FN(grad_apply_row)(x, dy, plus, dx, n, at, a, 1, added);                \
    else FN(grad_apply_row)(x, dy, plus, dx, n, at, a, 0, added);
    if (plus) { VARIANT(1) }
    else { VARIANT(0) }
#undef VARIANT
    if (a->stream) STREAM_END;
}

/* hi, lo, sum of g and of g * (x - mean) of each row; as row_sums (rows.pxi). */
static void FN(grad_sums_rows)(GradRows *job) {
    for (ptrdiff_t row = 0; row < job->rows; ++row) {
        const char *x = job->x + row * job->x_stride, *dy = job->dy + row * job->dy_stride;
        const double mean = job->mean ? job->mean[row] : 0;
        double sums[4] = {0};
        job->hi[row] = (double)(A)mean;
        job->lo[row] = mean - job->hi[row];
        const Affine f = FN(row_affine)(job, row);
        if (job->activation == 2) FN(grad_sums_any)(x, dy, 1, 0, 0, job->n, 0, &f, sums, 1, 2);
        else if (job->activation) FN(grad_sums_any)(x, dy, 1, 0, 0, job->n, 0, &f, sums, 1, 1);
        else FN(grad_sums_any)(x, dy, 1, 0, 0, job->n, 0, &f, sums, 1, 0);
        if (EXACT && job->centred) job->lo[row] = sums[2] / (double)job->n;
        job->sum_g[row] = sums[0];
        job->sum_gd[row] = sums[1] - job->lo[row] * sums[0];
    }
}

/* q and r of each row; as finish_affine (segments.pxi). */
static void FN(grad_coefficients)(const GradRows *job, double *q, double *r) {
    const double count = (double)job->n;
    for (ptrdiff_t row = 0; row < job->rows; ++row) {
        const double rstd = job->rstd[row];
        q[row] = rstd * rstd * job->sum_gd[row] / count;
        r[row] = (job->centred ? rstd * job->sum_g[row] / count : 0) - job->lo[row] * rstd * q[row];
    }
}

/* dx of each row. */
INLINE void FN(grad_apply_rows_any)(const GradRows *job, const double *q, const double *r,
                                    const int activation, const int added) {
    for (ptrdiff_t row = 0; row < job->rows; ++row) {
        Affine f = FN(row_affine)(job, row);
        f.q = q[row];
        f.r = r[row];
        FN(grad_apply_row)(job->x + row * job->x_stride, job->dy + row * job->dy_stride,
                           added ? job->plus + row * job->plus_stride : 0, job->dx + row * job->dx_stride,
                           job->n, 0, &f, activation, added);
    }
}

static void FN(grad_apply_rows)(const GradRows *job) {
    double q[GRAD_ROWS], r[GRAD_ROWS];
    FN(grad_coefficients)(job, q, r);
#define VARIANT(added)                                                                           \
    if (job->activation == 2) FN(grad_apply_rows_any)(job, q, r, 2, added);                      \
    else if (job->activation) FN(grad_apply_rows_any)(job, q, r, 1, added);                      \
    else FN(grad_apply_rows_any)(job, q, r, 0, added);
    if (job->plus) { VARIANT(1) }
    else { VARIANT(0) }
#undef VARIANT
    if (job->affine.stream) STREAM_END;
}

static void FN(add)(const char *a, const char *b, char *y, ptrdiff_t n) {
    const S *x = (const S *)a, *other = (const S *)b;
    const AL fill = SET(0);
    const int stream = 0;  /* the sum is read again at once */
#define STEP(result, value, PIECE) result = ADD(value, PIECE##_OTHER);
#define WHOLE_OTHER LOAD(other + i)
#define PART_OTHER LOAD_PART(other + i, n - i, fill)
    FOR_RUN((S *)y, n)
#undef STEP
#undef WHOLE_OTHER
#undef PART_OTHER
}

#undef WHOLE_PARAMETER
#undef PART_PARAMETER
#undef WHOLE_PLUS
#undef PART_PLUS
#undef WHOLE_DY
#undef PART_DY
#undef THROUGH
#undef FOR_RUN

/* ---- columns: K lanes of columns side by side, down the rows ----
 * The widest strip that the registers hold differs from build to build; a column's own arithmetic
 * does not depend on it. STRIPS runs the body with K = STRIP, then 1, then for the columns left. */

#ifndef STRIP
#define STRIP (LANES_NATIVE == 64 ? 4 : LANES_NATIVE == 32 ? 2 : 1)
#endif
/* `group` rows at a time, all their columns: the more, the fewer times the columns' own numbers are
 * loaded; one, and memory is read strictly in its order. */
#define STRIPS(call)                                                                             \
    for (ptrdiff_t begin = 0; begin < rows; begin += group) {                                    \
        const ptrdiff_t end = begin + group < rows ? begin + group : rows;                       \
        ptrdiff_t j = 0;                                                                         \
        for (; j + STRIP * LANES <= columns; j += STRIP * LANES) call(STRIP, 0);                 \
        for (; j + LANES <= columns; j += LANES) call(1, 0);                                     \
        if (j < columns) call(1, columns - j);                                                   \
    }

/* One lane of a strip: whole, or `part` columns of it. */
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
/* A strip of K lanes is streamed if that makes whole lines of memory. */
#define WHOLE_LINES(K) ((K) * LANES * sizeof(S) % LANES_ALIGN == 0)
/* Whether every whole lane of every row may be streamed. */
static int FN(all_aligned)(char *const *y, ptrdiff_t rows) {
    uintptr_t low = 0;
    for (ptrdiff_t row = 0; row < rows; ++row) low |= (uintptr_t)y[row];
    return low % LANES_ALIGN == 0;
}
/* total[j...] += a, in double */
INLINE void FN(strip_add)(double *total, ptrdiff_t j, ptrdiff_t part, AL a) {
    A lane[LANES];
    CAT(A, store)(lane, a);
    if (part) for (ptrdiff_t l = 0; l < part; ++l) total[j + l] += (double)lane[l];
    else for (ptrdiff_t l = 0; l < LANES; ++l) total[j + l] += (double)lane[l];
}

/* Mean of the first rows, rounded to A: a shift near each column's mean. */
static void FN(column_head)(const char *const *x, ptrdiff_t rows, ptrdiff_t columns, void *shift) {
    const AL share = SET((A)1 / (A)rows);
#define CALL(K, part)                                                                            \
    {                                                                                            \
        AL sum = SET(0);                                                                         \
        for (ptrdiff_t row = 0; row < rows; ++row)                                               \
            sum = ADD(sum, FN(strip_load)(x[row], j, part, sum));                                \
        sum = MUL(sum, share);                                                                   \
        if (part) CAT(A, store_part)((A *)shift + j, sum, part);                                 \
        else CAT(A, store)((A *)shift + j, sum);                                                 \
    }
    ptrdiff_t j = 0;
    for (; j + LANES <= columns; j += LANES) CALL(1, 0)
    if (j < columns) CALL(1, columns - j)
#undef CALL
}

/* The accumulators of a call, for COLUMNS_AT_ONCE columns, between the groups of rows. */
#define COLUMNS_AT_ONCE 256
INLINE AL FN(kept_load)(const A *kept, ptrdiff_t j) { return CAT(A, load)(kept + j); }
INLINE void FN(kept_add)(const A *kept, ptrdiff_t columns, double *total) {
    for (ptrdiff_t j = 0; j < columns; ++j) total[j] += (double)kept[j];
}

INLINE void FN(column_sums_strip)(const char *const *x, ptrdiff_t begin, ptrdiff_t end, ptrdiff_t j,
                                  ptrdiff_t part, const void *shift, A *first, A *second, const int K) {
    AL s[K], a[K], b[K];
    for (int k = 0; k < K; ++k) {
        s[k] = FN(strip_vector)(shift, j + k * LANES, part);
        a[k] = FN(kept_load)(first, j + k * LANES);
        b[k] = FN(kept_load)(second, j + k * LANES);
    }
    for (ptrdiff_t row = begin; row < end; ++row)
        for (int k = 0; k < K; ++k) {
            const AL d = SUB(FN(strip_load)(x[row], j + k * LANES, part, s[k]), s[k]);
            a[k] = ADD(a[k], d);
            b[k] = ADD(b[k], MUL(d, d));
        }
    for (int k = 0; k < K; ++k) {
        CAT(A, store)(first + j + k * LANES, a[k]);
        CAT(A, store)(second + j + k * LANES, b[k]);
    }
}

/* first += sum of d, second += sum of d*d, d = x - shift, a column at a time; at most 64 rows and
 * COLUMNS_AT_ONCE columns. */
static void FN(column_sums)(const char *const *x, ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t group,
                            const void *shift, double *first, double *second) {
    A a[COLUMNS_AT_ONCE] = {0}, b[COLUMNS_AT_ONCE] = {0};
#define CALL(K, part) FN(column_sums_strip)(x, begin, end, j, part, shift, a, b, K)
    STRIPS(CALL)
#undef CALL
    FN(kept_add)(a, columns, first);
    FN(kept_add)(b, columns, second);
}

INLINE void FN(column_apply_strip)(const char *const *x, char *const *y, ptrdiff_t begin,
                                   ptrdiff_t end, ptrdiff_t j, ptrdiff_t part, const ColumnAffine *a, const int activation,
                                   const int stream, const int K) {
    AL hi[K], scale[K], bias[K], slope[K];
    for (int k = 0; k < K; ++k) {
        hi[k] = FN(strip_vector)(a->hi, j + k * LANES, part);
        scale[k] = FN(strip_vector)(a->scale, j + k * LANES, part);
        bias[k] = FN(strip_vector)(a->bias, j + k * LANES, part);
        if (activation) slope[k] = FN(strip_vector)(a->slope, j + k * LANES, part);
    }
    for (ptrdiff_t row = begin; row < end; ++row)
        for (int k = 0; k < K; ++k) {
            AL z = SUB(FN(strip_load)(x[row], j + k * LANES, part, hi[k]), hi[k]);
            z = ADD(MUL(z, scale[k]), bias[k]);
            if (activation) z = IF_POSITIVE(z, z, MUL(z, slope[k]));
            FN(strip_store)(y[row], j + k * LANES, part, z, stream && WHOLE_LINES(K));
        }
}

/* y = (x - hi) * scale + bias, then the activation. */
static void FN(column_apply)(const char *const *x, char *const *y, ptrdiff_t rows, ptrdiff_t columns,
                             ptrdiff_t group, const ColumnAffine *a, int activation) {
#define CALL(K, part) FN(column_apply_strip)(x, y, begin, end, j, part, a, activated, streamed, K)
    if (activation) { enum { activated = 1, streamed = 0 }; STRIPS(CALL) }
    else if (a->stream && FN(all_aligned)(y, rows)) {
        enum { activated = 0, streamed = 1 };
        STRIPS(CALL)
        STREAM_END;
    }
    else { enum { activated = 0, streamed = 0 }; STRIPS(CALL) }
#undef CALL
}

/* g, the gradient through the activation, for one lane of a strip. */
#define COLUMN_THROUGH(g, d)                                                                     \
    if (activation) {                                                                            \
        const AL z = ADD(MUL(d, scale[k]), bias[k]);                                             \
        if (on_slope) on_slope[k] = ADD(on_slope[k], IF_POSITIVE(z, SET(0), MUL(g, z)));         \
        g = IF_POSITIVE(z, g, MUL(g, slope[k]));                                                 \
    }
#define COLUMN_ACTIVATION(K)                                                                     \
    AL scale[K], bias[K], slope[K];                                                              \
    for (int k = 0; activation && k < K; ++k) {                                                  \
        scale[k] = FN(strip_vector)(a->scale, j + k * LANES, part);                              \
        bias[k] = FN(strip_vector)(a->bias, j + k * LANES, part);                                \
        slope[k] = FN(strip_vector)(a->slope, j + k * LANES, part);                              \
    }

INLINE void FN(column_grad_sums_strip)(const char *const *x, const char *const *dy, ptrdiff_t begin,
                                       ptrdiff_t end, ptrdiff_t j, ptrdiff_t part,
                                       const ColumnAffine *a, A *const kept[4], const int activation,
                                       const int K) {
    AL hi[K], g_[K], gd[K], d_[K], slopes[K], *const on_slope = slopes;
    COLUMN_ACTIVATION(K)
    for (int k = 0; k < K; ++k) {
        hi[k] = FN(strip_vector)(a->hi, j + k * LANES, part);
        g_[k] = FN(kept_load)(kept[0], j + k * LANES);
        gd[k] = FN(kept_load)(kept[1], j + k * LANES);
        d_[k] = EXACT ? FN(kept_load)(kept[2], j + k * LANES) : SET(0);
        slopes[k] = activation ? FN(kept_load)(kept[3], j + k * LANES) : SET(0);
    }
    for (ptrdiff_t row = begin; row < end; ++row)
        for (int k = 0; k < K; ++k) {
            const AL d = SUB(FN(strip_load)(x[row], j + k * LANES, part, hi[k]), hi[k]);
            AL g = FN(strip_load)(dy[row], j + k * LANES, part, SET(0));
            COLUMN_THROUGH(g, d)
            g_[k] = ADD(g_[k], g);
            gd[k] = ADD(gd[k], MUL(g, d));
            if (EXACT) d_[k] = ADD(d_[k], d);
        }
    for (int k = 0; k < K; ++k) {
        CAT(A, store)(kept[0] + j + k * LANES, g_[k]);
        CAT(A, store)(kept[1] + j + k * LANES, gd[k]);
        if (EXACT) CAT(A, store)(kept[2] + j + k * LANES, d_[k]);
        if (activation) CAT(A, store)(kept[3] + j + k * LANES, slopes[k]);
    }
}

/* As grad_sums, a column at a time; at most 64 rows and COLUMNS_AT_ONCE columns. */
static void FN(column_grad_sums)(const char *const *x, const char *const *dy, ptrdiff_t rows,
                                 ptrdiff_t columns, ptrdiff_t group, const ColumnAffine *a, int activation,
                                 double *sum_g, double *sum_gd, double *sum_d, double *sum_slope) {
    A sums[4][COLUMNS_AT_ONCE] = {{0}}, *const kept[4] = {sums[0], sums[1], sums[2], sums[3]};
#define CALL(K, part) FN(column_grad_sums_strip)(x, dy, begin, end, j, part, a, kept, activated, K)
    if (activation) { enum { activated = 1 }; STRIPS(CALL) }
    else { enum { activated = 0 }; STRIPS(CALL) }
#undef CALL
    FN(kept_add)(sums[0], columns, sum_g);
    FN(kept_add)(sums[1], columns, sum_gd);
    if (EXACT) FN(kept_add)(sums[2], columns, sum_d);
    if (activation) FN(kept_add)(sums[3], columns, sum_slope);
}

INLINE void FN(column_grad_apply_strip)(const char *const *x, const char *const *dy, char *const *dx,
                                        ptrdiff_t begin, ptrdiff_t end, ptrdiff_t j, ptrdiff_t part,
                                        const ColumnAffine *a, const int activation, const int stream,
                                        const int K) {
    AL hi[K], p[K], q[K], r[K], rstd[K], *const on_slope = 0;
    COLUMN_ACTIVATION(K)
    for (int k = 0; k < K; ++k) {
        hi[k] = FN(strip_vector)(a->hi, j + k * LANES, part);
        p[k] = FN(strip_vector)(a->p, j + k * LANES, part);
        q[k] = FN(strip_vector)(a->q, j + k * LANES, part);
        r[k] = FN(strip_vector)(a->r, j + k * LANES, part);
        rstd[k] = FN(strip_vector)(a->rstd, j + k * LANES, part);
    }
    for (ptrdiff_t row = begin; row < end; ++row)
        for (int k = 0; k < K; ++k) {
            const AL d = SUB(FN(strip_load)(x[row], j + k * LANES, part, hi[k]), hi[k]);
            AL g = FN(strip_load)(dy[row], j + k * LANES, part, SET(0));
            COLUMN_THROUGH(g, d)
            g = SUB(SUB(MUL(g, p[k]), r[k]), MUL(MUL(d, rstd[k]), q[k]));
            FN(strip_store)(dx[row], j + k * LANES, part, g, stream && WHOLE_LINES(K));
        }
}

static void FN(column_grad_apply)(const char *const *x, const char *const *dy, char *const *dx,
                                  ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t group, const ColumnAffine *a,
                                  int activation) {
#define CALL(K, part) FN(column_grad_apply_strip)(x, dy, dx, begin, end, j, part, a, activated, streamed, K)
    if (activation) { enum { activated = 1, streamed = 0 }; STRIPS(CALL) }
    else if (a->stream && FN(all_aligned)(dx, rows)) {
        enum { activated = 0, streamed = 1 };
        STRIPS(CALL)
        STREAM_END;
    }
    else { enum { activated = 0, streamed = 0 }; STRIPS(CALL) }
#undef CALL
}
#undef COLUMN_THROUGH
#undef COLUMN_ACTIVATION

INLINE void FN(parameter_sums_strip)(const char *const *x, const char *const *dy, ptrdiff_t rows,
                                     ptrdiff_t at, ptrdiff_t j, ptrdiff_t part, const RowAffine *a,
                                     double *dw, double *db, double *dslope, const int activation,
                                     const int K) {
    AL weight[K], shift[K], slope[K], w[K], b[K], on_slope[K];
    for (int k = 0; k < K; ++k) {
        w[k] = b[k] = on_slope[k] = SET(0);
        if (!activation) continue;
        weight[k] = a->weight ? FN(strip_vector)(a->weight, at + j + k * LANES, part) : SET(1);
        shift[k] = a->shift ? FN(strip_vector)(a->shift, at + j + k * LANES, part) : SET(0);
        slope[k] = a->slopes ? FN(strip_vector)(a->slopes, at + j + k * LANES, part) : SET(a->slope);
    }
    for (ptrdiff_t row = 0; row < rows; ++row) {
        const AL hi = SET(a->hi[row]), lo = SET(a->lo[row]), scale = SET(a->scale[row]);
        const AL row_slope = SET(activation && a->row_slope ? a->row_slope[row] : 0);
        for (int k = 0; k < K; ++k) {
            const AL d = SUB(SUB(FN(strip_load)(x[row], j + k * LANES, part, hi), hi), lo);
            AL g = FN(strip_load)(dy[row], j + k * LANES, part, SET(0));
            if (activation) {
                AL z = MUL(d, MUL(scale, weight[k]));
                if (a->shift) z = ADD(z, shift[k]);
                on_slope[k] = ADD(on_slope[k], IF_POSITIVE(z, SET(0), MUL(g, z)));
                g = IF_POSITIVE(z, g, MUL(g, a->row_slope ? row_slope : slope[k]));
            }
            b[k] = ADD(b[k], g);
            w[k] = ADD(w[k], MUL(g, MUL(d, scale)));
        }
    }
    for (int k = 0; k < K; ++k) {
        FN(strip_add)(dw, j + k * LANES, part, w[k]);
        FN(strip_add)(db, j + k * LANES, part, b[k]);
        if (activation) FN(strip_add)(dslope, j + k * LANES, part, on_slope[k]);
    }
}

/* Down the rows of the rows family: dw += sum of g * xhat, db += sum of g; at most 64 rows.
 * x, dy, dw, db and dslope start at element `at` of the row; the vectors of `a` start at 0. */
static void FN(parameter_sums)(const char *const *x, const char *const *dy, ptrdiff_t rows,
                               ptrdiff_t at, ptrdiff_t columns, const RowAffine *a, int activation,
                               double *dw, double *db, double *dslope) {
#define CALL(K, part)                                                                            \
    FN(parameter_sums_strip)(x, dy, rows, at, j, part, a, dw, db, dslope, activated, K)
#define ALL_STRIPS                                                                               \
    ptrdiff_t j = 0;                                                                             \
    for (; j + STRIP * LANES <= columns; j += STRIP * LANES) CALL(STRIP, 0);                     \
    for (; j + LANES <= columns; j += LANES) CALL(1, 0);                                         \
    if (j < columns) CALL(1, columns - j);
    if (activation) { enum { activated = 1 }; ALL_STRIPS }
    else { enum { activated = 0 }; ALL_STRIPS }
#undef ALL_STRIPS
#undef CALL
}

/* ---- rows of a few lanes, backward: what parameter_sums and grad_apply_rows do, in one visit ---- */

INLINE void FN(grad_short_rows_any)(const GradRows *job, double *dw, double *db, const int K) {
    const ptrdiff_t part = job->n % LANES;
    double q[GRAD_ROWS], r[GRAD_ROWS];
    AL weight[K], w[K], b[K];
    FN(grad_coefficients)(job, q, r);
#define EACH(k) _Pragma("GCC unroll 4") for (int k = 0; k < K; ++k)
#define PART(k) ((k) == K - 1 ? part : 0)
    EACH(k) {
        weight[k] = FN(strip_vector)(job->affine.weight, k * LANES, PART(k));
        w[k] = b[k] = SET(0);
    }
    for (ptrdiff_t row = 0; row < job->rows; ++row) {
        const char *x = job->x + row * job->x_stride, *dy = job->dy + row * job->dy_stride;
        char *dx = job->dx + row * job->dx_stride;
        const AL hi = SET(job->hi[row]), lo = SET(job->lo[row]), rstd = SET(job->rstd[row]);
        const AL q_ = SET(q[row]), r_ = SET(r[row]);
        EACH(k) {
            const AL d = SUB(FN(strip_load)(x, k * LANES, PART(k), hi), hi);
            const AL g = FN(strip_load)(dy, k * LANES, PART(k), SET(0));
            b[k] = ADD(b[k], g);
            w[k] = ADD(w[k], MUL(g, MUL(SUB(d, lo), rstd)));
            FN(strip_store)(dx, k * LANES, PART(k), SUB(SUB(MUL(g, MUL(rstd, weight[k])), r_),
                                                        MUL(MUL(d, rstd), q_)), 0);
        }
    }
    EACH(k) {
        FN(strip_add)(dw, k * LANES, PART(k), w[k]);
        FN(strip_add)(db, k * LANES, PART(k), b[k]);
    }
#undef PART
#undef EACH
}

/* Whether the rows are that short, and plain; if so dw, db += the gradients of the parameters, and dx. */
static int FN(grad_short_rows)(const GradRows *job, double *dw, double *db) {
    if (job->activation || job->plus || job->affine.stream) return 0;
    switch ((job->n + LANES - 1) / LANES) {
        case 1: FN(grad_short_rows_any)(job, dw, db, 1); return 1;
        case 2: FN(grad_short_rows_any)(job, dw, db, 2); return 1;
        case 3: FN(grad_short_rows_any)(job, dw, db, 3); return 1;
        case 4: FN(grad_short_rows_any)(job, dw, db, 4); return 1;
        default: return 0;
    }
}

/* ---- windows: rows are channels (channels first) or one row shifted (channels last, `wide`: of the
 * accumulation type). A window's sum and what it is for share a loop: one waits on additions, the
 * other on square roots and divisions. ---- */

/* Sum over the rows of x[i]**2, or of x[i], in their order; `part` elements of it, or 0: whole lanes. */
INLINE AL FN(window_sum)(const char *const *rows, ptrdiff_t count, ptrdiff_t i, ptrdiff_t part,
                         const int wide, const int squares) {
    AL sum = SET(0);
    for (ptrdiff_t row = 0; row < count; ++row) {
        const AL v = wide ? FN(strip_vector)(rows[row], i, part) : FN(strip_load)(rows[row], i, part, SET(0));
        sum = ADD(sum, squares ? MUL(v, v) : v);
    }
    return sum;
}

/* (k + alpha * sum) ** -beta, and 1 / (k + alpha * sum) where `inverse` is asked for. */
INLINE AL FN(response)(AL sum, const Response *r, AL *inverse) {
    const AL scale = ADD(SET(r->k), MUL(SET(r->alpha), sum));
    if (inverse) *inverse = CAT(A, div)(SET(1), scale);
    if (r->beta == 0.75) {
        const AL root = CAT(A, sqrt)(scale);
        return CAT(A, div)(SET(1), MUL(root, CAT(A, sqrt)(root)));
    }
    if (r->beta == 0.5) return CAT(A, div)(SET(1), CAT(A, sqrt)(scale));
    if (r->beta == 1) return CAT(A, div)(SET(1), scale);
    return CAT(A, power)(scale, r->beta);
}

/* The gradient through the activation; z = x * power has the sign of its forward twin. */
INLINE AL FN(through)(AL dy, AL x, AL power, AL slope, const int activation) {
    return activation ? IF_POSITIVE(MUL(x, power), dy, MUL(dy, slope)) : dy;
}

/* Runs LANE(part) over whole lanes, then over the rest. */
#define FOR_LANES(LANE)                                                                          \
    for (ptrdiff_t i = 0; i < n; i += LANES) {                                                   \
        if (i + LANES <= n) LANE(0)                                                              \
        else LANE((n - i))                                                                       \
    }
#define SLOPE(part) (activation == 2 ? FN(strip_vector)(r->slopes, i, part) : slope)

INLINE void FN(window_apply_any)(const char *const *rows, ptrdiff_t count, const char *x, char *y,
                                 ptrdiff_t n, const Response *r, const int wide, const int activation) {
    const AL slope = SET(r->slope);
#define LANE(part)                                                                               \
    {                                                                                            \
        const AL p = FN(response)(FN(window_sum)(rows, count, i, part, wide, 1), r, 0);          \
        const AL z = MUL(FN(strip_load)(x, i, part, SET(0)), p);                                 \
        FN(strip_store)(y, i, part, activation ? IF_POSITIVE(z, z, MUL(z, SLOPE(part))) : z, 0); \
    }
    FOR_LANES(LANE)
#undef LANE
}

/* y = x * (k + alpha * sum of squares) ** -beta, then the activation. */
static void FN(window_apply)(const char *const *rows, ptrdiff_t count, int wide, const char *x, char *y,
                             ptrdiff_t n, const Response *r, int activation) {
    if (wide) FN(window_apply_any)(rows, count, x, y, n, r, 1, activation);
    else FN(window_apply_any)(rows, count, x, y, n, r, 0, activation);
}

INLINE void FN(window_prepare_any)(const char *const *rows, ptrdiff_t count, const char *x,
                                   const char *dy, ptrdiff_t n, const Response *r, A *power, A *shared,
                                   const int wide, const int activation) {
    const AL slope = SET(r->slope);
#define LANE(part)                                                                               \
    {                                                                                            \
        AL inverse;                                                                              \
        const AL p = FN(response)(FN(window_sum)(rows, count, i, part, wide, 1), r, &inverse);   \
        const AL v = FN(strip_load)(x, i, part, SET(0));                                         \
        const AL g = FN(through)(FN(strip_load)(dy, i, part, SET(0)), v, p, SLOPE(part), activation); \
        const AL s = MUL(MUL(g, v), MUL(p, inverse));                                            \
        if (part) {                                                                              \
            CAT(A, store_part)(power + i, p, part);                                              \
            CAT(A, store_part)(shared + i, s, part);                                             \
        } else {                                                                                 \
            CAT(A, store)(power + i, p);                                                         \
            CAT(A, store)(shared + i, s);                                                        \
        }                                                                                        \
    }
    FOR_LANES(LANE)
#undef LANE
}

/* power = scale ** -beta, shared = g * x * scale ** (-beta - 1): what a channel did to its window. */
static void FN(window_prepare)(const char *const *rows, ptrdiff_t count, int wide, const char *x,
                               const char *dy, ptrdiff_t n, const Response *r, int activation,
                               void *power, void *shared) {
    if (wide) FN(window_prepare_any)(rows, count, x, dy, n, r, (A *)power, (A *)shared, 1, activation);
    else FN(window_prepare_any)(rows, count, x, dy, n, r, (A *)power, (A *)shared, 0, activation);
}

/* dx = g * power - 2 * alpha * beta * x * (sum of `shared` over the windows that x is in) */
static void FN(window_grad)(const char *const *shared, ptrdiff_t count, const char *x, const char *dy,
                            const void *power, char *dx, ptrdiff_t n, const Response *r,
                            int activation) {
    const AL c = SET(2 * r->alpha * r->beta), slope = SET(r->slope);
#define LANE(part)                                                                               \
    {                                                                                            \
        const AL sum = FN(window_sum)(shared, count, i, part, 1, 0);                             \
        const AL v = FN(strip_load)(x, i, part, SET(0)), p = FN(strip_vector)(power, i, part);   \
        const AL g = FN(through)(FN(strip_load)(dy, i, part, SET(0)), v, p, SLOPE(part), activation); \
        FN(strip_store)(dx, i, part, SUB(MUL(g, p), MUL(MUL(c, v), sum)), 0);                    \
    }
    FOR_LANES(LANE)
#undef LANE
}
#undef FOR_LANES
#undef SLOPE

static const Tile FN(tile) = {
    sizeof(S), sizeof(A), ACCUMULATOR, FN(rounded), FN(widen), FN(widen64), FN(head), FN(sums),
    FN(apply), FN(forward_rows), FN(apply_vector), FN(grad_sums), FN(grad_sums_vector), FN(grad_apply),
    FN(grad_apply_vector), FN(grad_sums_rows), FN(grad_apply_rows), FN(grad_short_rows), FN(add), FN(parameter_sums), FN(column_head), FN(column_sums), FN(column_apply),
    FN(column_grad_sums), FN(column_grad_apply),
    FN(window_apply), FN(window_prepare), FN(window_grad),
};

#undef STRIPS
#undef STREAMED
#undef PREFETCH
#undef BYTES
#undef WHOLE_LINES
#undef FN
#undef LOAD
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
