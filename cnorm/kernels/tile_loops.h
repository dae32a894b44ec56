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
/* Whether every whole lane of every row may be streamed. */
static int FN(all_aligned)(char *const *y, ptrdiff_t rows) {
    uintptr_t low = 0;
    for (ptrdiff_t row = 0; row < rows; ++row) low |= (uintptr_t)y[row];
    return low % LANES_ALIGN == 0;
}
/* For each of R rows that are taken side by side. */
#define ROWS_ABREAST(k) _Pragma("GCC unroll 4") for (int k = 0; k < R; ++k)

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

/* Mean of the first elements, rounded to A: a shift that is near the mean. Their lanes, and how many. */
INLINE AL FN(head_lanes)(const char *source, ptrdiff_t n) {
    const S *x = (const S *)source;
    const AL zero = SET(0);
    if (n >= 4 * LANES)
        return ADD(ADD(LOAD(x), LOAD(x + LANES)), ADD(LOAD(x + 2 * LANES), LOAD(x + 3 * LANES)));
    AL sum = zero;
    ptrdiff_t i = 0;
    for (; i + LANES <= n; i += LANES) sum = ADD(sum, LOAD(x + i));
    return i < n ? ADD(sum, LOAD_PART(x + i, n - i, zero)) : sum;
}
#define HEAD(n) ((n) < 4 * LANES ? (n) : 4 * LANES)

static double FN(head)(const char *source, ptrdiff_t n) {
    return (double)(A)(FOLD(FN(head_lanes)(source, n)) / HEAD(n));
}

/* Lanes of the sums of d and of d*d, d = x - shift. Not centred: shift is 0 and the first sum is not taken.
 * Lanes are added up every CASCADE elements, so that an outlier meets few of the others. */
INLINE void FN(sums_any)(const char *source, ptrdiff_t runs, ptrdiff_t stride, ptrdiff_t n,
                         double shift, AL *first_out, AL *second_out, const int centred) {
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
    *first_out = first;
    *second_out = second;
}

/* out = {sum of d, sum of d*d} */
static void FN(sums)(const char *x, ptrdiff_t runs, ptrdiff_t stride, ptrdiff_t n, double shift,
                     int centred, double *out) {
    AL first, second;
    if (centred) FN(sums_any)(x, runs, stride, n, shift, &first, &second, 1);
    else FN(sums_any)(x, runs, stride, n, 0, &first, &second, 0);
    out[0] = FOLD(first);
    out[1] = FOLD(second);
}

/* Memory is idle while a unit that is in cache is applied: ask for the next one meanwhile. */
#define PREFETCH(p) __builtin_prefetch((const char *)(p + i) + ahead, 0, 2)

INLINE AL FN(normalised)(AL x, AL hi, AL lo, AL scale, AL weight, AL bias, const int vector,
                         const int centred, const int biased) {
    if (centred) x = SUB(x, hi);
    if (centred && vector) x = SUB(x, lo);
    x = MUL(x, vector ? MUL(scale, weight) : scale);
    return biased ? ADD(x, bias) : x;
}

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
        AL z = FN(normalised)(value, hi, lo, scale, vector ? PIECE##_PARAMETER(a->weight) : scale, \
                              vector && biased ? PIECE##_PARAMETER(a->shift) : bias, vector,     \
                              centred, biased);                                                  \
        if (stream) PREFETCH(x);                                                                 \
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

/* `R` rows abreast: a weight that is loaded once serves them all. */
INLINE void FN(apply_abreast)(const RowJob *job, ptrdiff_t row, const int R, const int centred,
                              const int biased) {
    const ptrdiff_t n = job->n;
    const A *const weight = (const A *)job->affine.weight, *const shift = (const A *)job->affine.shift;
    AL hi[ABREAST], lo[ABREAST], scale[ABREAST];
    const char *x[ABREAST];
    char *y[ABREAST];
    ROWS_ABREAST(k) {
        const double mean = (double)(A)job->mean[row + k];
        hi[k] = SET(mean);
        lo[k] = SET((job->mean[row + k] - mean) + job->lo[row + k]);
        scale[k] = SET(job->rstd[row + k]);
        x[k] = job->x + (row + k) * job->x_stride;
        y[k] = job->y + (row + k) * job->y_stride;
    }
#define NORMALISED(v, w, b) FN(normalised)(v, hi[k], lo[k], scale[k], w, b, 1, centred, biased)
    ptrdiff_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        const AL w0 = PARAMETER(weight, i), w1 = PARAMETER(weight, i + LANES);
        const AL b0 = biased ? PARAMETER(shift, i) : w0, b1 = biased ? PARAMETER(shift, i + LANES) : w1;
        ROWS_ABREAST(k) {
            const S *at = (const S *)x[k] + i;
            STORE_PAIR((S *)y[k] + i, NORMALISED(LOAD(at), w0, b0), NORMALISED(LOAD(at + LANES), w1, b1));
        }
    }
    for (; i < n; i += LANES) {
        const ptrdiff_t part = n - i < LANES ? n - i : 0;
        const AL w = FN(strip_vector)(weight, i, part), b = biased ? FN(strip_vector)(shift, i, part) : w;
        ROWS_ABREAST(k) {
            const AL x_ = FN(strip_load)(x[k], i, part, hi[k]);
            FN(strip_store)(y[k], i, part, NORMALISED(x_, w, b), 0);
        }
    }
#undef NORMALISED
}

/* Every row of a job, with vectors, without an activation. */
static void FN(apply_rows)(const RowJob *job) {
    ptrdiff_t row = 0;
#define VARIANT(R)                                                                               \
    if (job->affine.shift) FN(apply_abreast)(job, row, R, 1, 1);                                 \
    else if (job->centred) FN(apply_abreast)(job, row, R, 1, 0);                                 \
    else FN(apply_abreast)(job, row, R, 0, 0);
    if (ABREAST > 1 && (job->x_stride | job->y_stride) % 4096)  /* else all of them in one set of L1 */
        for (; row + ABREAST <= job->rows; row += ABREAST) { VARIANT(ABREAST) }
    for (; row < job->rows; ++row) { VARIANT(1) }
#undef VARIANT
}

static void FN(forward_rows)(RowJob *job) {
    const double count = (double)job->n;
    double shift[ROWS_TOGETHER] = {0}, first[ROWS_TOGETHER] = {0}, second[ROWS_TOGETHER];
    AL lanes[2][ROWS_TOGETHER];
    const ptrdiff_t rows = job->rows;
    if (job->centred) {
        for (ptrdiff_t row = 0; row < rows; ++row) lanes[0][row] = FN(head_lanes)(job->x + row * job->x_stride, job->n);
        CAT(A, fold_all)(lanes[0], rows, shift);
        for (ptrdiff_t row = 0; row < rows; ++row) shift[row] = (double)(A)(shift[row] / HEAD(job->n));
        for (ptrdiff_t row = 0; row < rows; ++row)
            FN(sums_any)(job->x + row * job->x_stride, 1, 0, job->n, shift[row], &lanes[0][row], &lanes[1][row], 1);
        CAT(A, fold_all)(lanes[0], rows, first);
    } else
        for (ptrdiff_t row = 0; row < rows; ++row)
            FN(sums_any)(job->x + row * job->x_stride, 1, 0, job->n, 0, &lanes[0][row], &lanes[1][row], 0);
    CAT(A, fold_all)(lanes[1], rows, second);
    for (ptrdiff_t row = 0; row < rows; ++row) {
        const double step = first[row] / count, mean = shift[row] + step;
        const double m2 = second[row] - first[row] * step;
        job->mean[row] = mean;
        job->lo[row] = (shift[row] - mean) + step;
        job->m2[row] = m2 < 0 ? 0 : m2;
        job->rstd[row] = 1 / sqrt(job->m2[row] / count + job->eps);
    }
    int again = 0;
    for (ptrdiff_t row = 0; row < rows; ++row)
        again |= job->again[row] = !(2 * first[row] * first[row] <= count * second[row])
                                || !(second[row] - second[row] == 0) || second[row] < job->tiny * count;
    if (job->vector && !again && !job->activation && !job->affine.stream) {
        FN(apply_rows)(job);
        return;
    }
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

/* ---- backward ---- */

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

/* Lanes of the sums of g, of g*d, of d (float64 only), of dy*z where z <= 0; d = x - hi. */
INLINE void FN(grad_sums_any)(const char *x_source, const char *dy_source, ptrdiff_t runs,
                              ptrdiff_t x_stride, ptrdiff_t dy_stride, ptrdiff_t n, ptrdiff_t at,
                              const Affine *a, AL *const out[4], const int vector, const int activation) {
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
    *out[0] = sum_g;
    *out[1] = sum_gd;
    if (EXACT) *out[2] = d0;
    if (activation) *out[3] = s0;
}

INLINE void FN(grad_sums_folded)(const char *x, const char *dy, ptrdiff_t runs, ptrdiff_t x_stride,
                                 ptrdiff_t dy_stride, ptrdiff_t n, ptrdiff_t at, const Affine *a,
                                 double *out, const int vector, const int activation) {
    AL lanes[4], *const to[4] = {lanes, lanes + 1, lanes + 2, lanes + 3};
    FN(grad_sums_any)(x, dy, runs, x_stride, dy_stride, n, at, a, to, vector, activation);
    out[0] += FOLD(lanes[0]);
    out[1] += FOLD(lanes[1]);
    if (EXACT) out[2] += FOLD(lanes[2]);
    if (activation) out[3] += FOLD(lanes[3]);
}

/* out += the sums */
static void FN(grad_sums)(const char *x, const char *dy, ptrdiff_t runs, ptrdiff_t x_stride,
                          ptrdiff_t dy_stride, ptrdiff_t n, const Affine *a, int activation, double *out) {
    if (activation) FN(grad_sums_folded)(x, dy, runs, x_stride, dy_stride, n, 0, a, out, 0, 1);
    else FN(grad_sums_folded)(x, dy, runs, x_stride, dy_stride, n, 0, a, out, 0, 0);
}

static void FN(grad_sums_vector)(const char *x, const char *dy, ptrdiff_t n, ptrdiff_t at,
                                 const Affine *a, int activation, double *out) {
    if (activation == 2) FN(grad_sums_folded)(x, dy, 1, 0, 0, n, at, a, out, 1, 2);
    else if (activation) FN(grad_sums_folded)(x, dy, 1, 0, 0, n, at, a, out, 1, 1);
    else FN(grad_sums_folded)(x, dy, 1, 0, 0, n, at, a, out, 1, 0);
}

/* dx = (g * p - r) - (x - hi) * rstd * q: rstd * q may be too small for a float. */
INLINE void FN(grad_apply_any)(const char *x_source, const char *dy_source, char *dx_source,
                               ptrdiff_t runs, ptrdiff_t x_stride, ptrdiff_t dy_stride,
                               ptrdiff_t dx_stride, ptrdiff_t n, const Affine *a, const int activation,
                               const int stream) {
    enum { vector = 0, at = 0 };
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
        result = SUB(SUB(MUL(g, p), r), MUL(MUL(d, rstd), q));                                   \
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
        FN(grad_apply_any)(x, dy, dx, runs, x_stride, dy_stride, dx_stride, n, a, 1, 0);
    else if (a->stream) {
#define RUN(from, count, stream)                                                                 \
        FN(grad_apply_any)(x + BYTES(from), dy + BYTES(from), dx + BYTES(from), 1, 0, 0, 0, count, a, 0, stream);
        for (ptrdiff_t run = 0; run < runs; ++run, x += x_stride, dy += dy_stride, dx += dx_stride)
            STREAMED(dx, n, RUN)
#undef RUN
        STREAM_END;
    }
    else
        FN(grad_apply_any)(x, dy, dx, runs, x_stride, dy_stride, dx_stride, n, a, 0, 0);
}

/* ---- rows, backward: the sums of a few rows, and then, while these are in L1, all that depends on
 * them. The parameters' gradients are sums down the rows of a block, in the accumulator. ---- */

INLINE Affine FN(row_affine)(const GradRows *job, ptrdiff_t row) {
    const double mean = job->mean ? job->mean[row] : 0;
    Affine f = job->affine;
    f.hi = (double)(A)mean, f.lo = mean - f.hi, f.scale = job->rstd[row];
    if (job->row_slope) f.slope = job->row_slope[row];
    return f;
}

/* A short row that will be written and is not in cache: its lines are asked for while others come in. */
INLINE void FN(expect)(const char *y, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n * (ptrdiff_t)sizeof(S); i += LANES_ALIGN) __builtin_prefetch(y + i, 1, 3);
}

/* The sums of rows first .. stop: of short ones together, of long ones a tile at a time. */
static void FN(grad_row_sums)(GradRows *job, ptrdiff_t first, ptrdiff_t stop, int expected) {
    AL lanes[4][GRAD_ROWS];
    if (job->n <= job->tile && !job->activation) {
        for (ptrdiff_t row = first; row < stop; ++row) {
            const Affine f = FN(row_affine)(job, row);
            AL *const to[4] = {&lanes[0][row], &lanes[1][row], &lanes[2][row], 0};
            if (expected) FN(expect)(job->dx[row], job->n);
            FN(grad_sums_any)(job->x[row], job->dy[row], 1, 0, 0, job->n, 0, &f, to, 1, 0);
        }
        for (int kind = 0; kind < (EXACT ? 3 : 2); ++kind)
            CAT(A, fold_all)(lanes[kind] + first, stop - first, job->sums[kind] + first);
        return;
    }
    for (ptrdiff_t row = first; row < stop; ++row) {
        const Affine f = FN(row_affine)(job, row);
        double sums[4] = {0};
        for (ptrdiff_t i = 0; i < job->n; i += job->tile)
            FN(grad_sums_vector)(job->x[row] + BYTES(i), job->dy[row] + BYTES(i),
                                 job->n - i < job->tile ? job->n - i : job->tile, i, &f, job->activation, sums);
        for (int kind = 0; kind < 4; ++kind) job->sums[kind][row] = sums[kind];
    }
}

/* What dx of each row takes: dx = (g * rstd * weight - r) - d * rstd * q, d = x - hi. */
typedef struct { A hi[GRAD_ROWS], lo[GRAD_ROWS], rstd[GRAD_ROWS], q[GRAD_ROWS], r[GRAD_ROWS]; } FN(GradTerms);

static void FN(grad_terms)(const GradRows *job, ptrdiff_t first, ptrdiff_t stop, FN(GradTerms) *terms) {
    const double count = (double)job->n;
    for (ptrdiff_t row = first; row < stop; ++row) {
        const double sum_g = job->sums[0][row], rstd = job->rstd[row];
        const double mean = job->mean ? job->mean[row] : 0, hi = (double)(A)mean;
        const double lo = EXACT && job->centred ? job->sums[2][row] / count : mean - hi;
        const double q = rstd * rstd * (job->sums[1][row] - lo * sum_g) / count;
        terms->hi[row] = (A)hi;
        terms->lo[row] = (A)lo;
        terms->rstd[row] = (A)rstd;
        terms->q[row] = (A)q;
        terms->r[row] = (A)((job->centred ? rstd * sum_g / count : 0) - lo * rstd * q);
    }
}

/* dx of R rows, and what they add to the gradients of the parameters (kept: weight, bias, slope). */
INLINE void FN(grad_abreast)(const GradRows *job, const FN(GradTerms) *terms, ptrdiff_t row, ptrdiff_t at,
                             ptrdiff_t n, A *const kept[3], const int R, const int activation,
                             const int added, const int stream) {
    const A *const weights = (const A *)job->affine.weight + at;
    const A *const shifts = job->affine.shift ? (const A *)job->affine.shift + at : 0;
    const A *const slopes = activation == 2 ? (const A *)job->affine.slopes + at : 0;
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
    AL dw = FN(strip_vector)(kept[0], i, part), db = FN(strip_vector)(kept[1], i, part);         \
    AL dslope = activation ? FN(strip_vector)(kept[2], i, part) : SET(0);
#define STEP(result, weight, shift, slope_, dw, db, dslope, i, part)                             \
    AL result;                                                                                   \
    {                                                                                            \
        const AL d = SUB(FN(strip_load)(x[k], i, part, hi[k]), hi[k]), exact = SUB(d, lo[k]);    \
        AL g = FN(strip_load)(dy[k], i, part, SET(0));                                           \
        if (activation) {                                                                        \
            AL z = MUL(exact, MUL(rstd[k], weight));                                             \
            if (shifts) z = ADD(z, shift);                                                       \
            dslope = ADD(dslope, IF_POSITIVE(z, SET(0), MUL(g, z)));                             \
            g = IF_POSITIVE(z, g, MUL(g, activation == 2 ? slope_ : slope[k]));                  \
        }                                                                                        \
        db = ADD(db, g);                                                                         \
        dw = ADD(dw, MUL(g, MUL(exact, rstd[k])));                                               \
        result = SUB(SUB(MUL(g, MUL(rstd[k], weight)), r[k]), MUL(MUL(d, rstd[k]), q[k]));       \
        if (added) result = ADD(result, FN(strip_load)(plus[k], i, part, SET(0)));               \
    }
#define KEEP(dw, db, dslope, i, part)                                                            \
    FN(strip_keep)(kept[0], i, part, dw);                                                        \
    FN(strip_keep)(kept[1], i, part, db);                                                        \
    if (activation) FN(strip_keep)(kept[2], i, part, dslope);
    ptrdiff_t i = 0;
    for (; LANES_PARTS == 1 && i + 2 * LANES <= n; i += 2 * LANES) {
        LANE(w0, b0, s0, dw0, db0, ds0, i, 0)
        LANE(w1, b1, s1, dw1, db1, ds1, i + LANES, 0)
        ROWS_ABREAST(k) {
            STEP(z0, w0, b0, s0, dw0, db0, ds0, i, 0)
            STEP(z1, w1, b1, s1, dw1, db1, ds1, i + LANES, 0)
            if (stream) STREAM_PAIR((S *)dx[k] + i, z0, z1);
            else STORE_PAIR((S *)dx[k] + i, z0, z1);
        }
        KEEP(dw0, db0, ds0, i, 0)
        KEEP(dw1, db1, ds1, i + LANES, 0)
    }
#define LAST(part)                                                                               \
    {                                                                                            \
        LANE(w0, b0, s0, dw0, db0, ds0, i, part)                                                 \
        ROWS_ABREAST(k) {                                                                        \
            STEP(z, w0, b0, s0, dw0, db0, ds0, i, part)                                          \
            FN(strip_store)(dx[k], i, part, z, 0);                                               \
        }                                                                                        \
        KEEP(dw0, db0, ds0, i, part)                                                             \
    }
    for (; i + LANES <= n; i += LANES) LAST(0)
    if (i < n) LAST((n - i))
#undef LAST
#undef LANE
#undef STEP
#undef KEEP
    (void)slope;
}

/* Each a function of its own: one function of all would be too much for the compiler. Rows from `row`
 * on, as many as make groups of R; returns the first that is left. */
#define VARIANT(name, R, activation, added, stream)                                              \
    static __attribute__((noinline)) ptrdiff_t FN(name)(                                         \
        const GradRows *job, const FN(GradTerms) *terms, ptrdiff_t row, ptrdiff_t stop, ptrdiff_t at, \
        ptrdiff_t n, A *const kept[3]) {                                                         \
        for (; row + R <= stop; row += R)                                                        \
            FN(grad_abreast)(job, terms, row, at, n, kept, R, activation, added, stream);        \
        return row;                                                                              \
    }
VARIANT(grad_plain, GRAD_ABREAST, 0, 0, 0)
VARIANT(grad_added, GRAD_ABREAST, 0, 1, 0)
VARIANT(grad_streamed, GRAD_ABREAST, 0, 0, 1)
VARIANT(grad_plain_one, 1, 0, 0, 0)
VARIANT(grad_added_one, 1, 0, 1, 0)
VARIANT(grad_streamed_one, 1, 0, 0, 1)
VARIANT(grad_slope, 1, 1, job->added, 0)
VARIANT(grad_slopes, 1, 2, job->added, 0)
#undef VARIANT

/* Elements at .. at + n of the rows of a job: dx, and the block's sums for the parameters, which are
 * added to dw, db and dslope, or (`fresh`) written there. First the rows' own sums, if they are to be
 * taken: whole rows are at hand then. */
static void FN(grad_rows)(GradRows *job, ptrdiff_t at, ptrdiff_t n, int take_sums, int fresh, double *dw,
                          double *db, double *dslope) {
    A sums[3][GRAD_ELEMENTS], *const kept[3] = {sums[0], sums[1], sums[2]};
    double *const totals[3] = {dw, db, dslope};
    const int kinds = job->activation ? 3 : 2;
    FN(GradTerms) terms;
    const int stream = job->affine.stream && n >= 2 * LANES && FN(all_aligned)(job->dx, job->rows);
    for (int kind = 0; kind < kinds; ++kind) memset(kept[kind], 0, n * sizeof(A));
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
            CALL(grad_added);
            CALL(grad_added_one);
        } else if (stream) {
            CALL(grad_streamed);
            CALL(grad_streamed_one);
        } else {
            CALL(grad_plain);
            CALL(grad_plain_one);
        }
#undef CALL
    }
    for (int kind = 0; kind < kinds; ++kind)
        for (ptrdiff_t i = 0; i < n; ++i)
            totals[kind][i] = fresh ? (double)kept[kind][i] : totals[kind][i] + (double)kept[kind][i];
    if (stream) STREAM_END;
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
 * does not depend on it. STRIPS runs the body with K = STRIP, then for the lanes left; the last of
 * those may have but `part` columns. */

#ifndef STRIP
#define STRIP (LANES_NATIVE == 64 ? 4 : LANES_NATIVE == 32 ? 2 : 1)
#endif
/* `group` rows at a time, all their columns: the more, the fewer times the columns' own numbers are
 * loaded; one, or where a strip takes all columns, and memory is read strictly in its order. */
#define STRIPS(call)                                                                             \
    const ptrdiff_t together = columns <= STRIP * LANES ? rows : group;                          \
    for (ptrdiff_t begin = 0; begin < rows; begin += together) {                                 \
        const ptrdiff_t end = begin + together < rows ? begin + together : rows;                 \
        ptrdiff_t j = 0;                                                                         \
        for (; j + STRIP * LANES <= columns; j += STRIP * LANES) call(STRIP, 0);                 \
        const ptrdiff_t left = columns - j, part = left % LANES;                                 \
        if (left > 3 * LANES) call(STRIP >= 4 ? 4 : 1, part);                                    \
        else if (left > 2 * LANES) call(STRIP >= 4 ? 3 : 1, part);                               \
        else if (left > LANES) call(STRIP >= 2 ? 2 : 1, part);                                   \
        else if (left) call(1, part);                                                            \
    }
#define EACH_LANE _Pragma("GCC unroll 4") for (int k = 0; k < K; ++k)
#define AT (j + k * LANES)
#define PART (k == K - 1 ? part : 0)

static void FN(narrow)(const double *restrict x, ptrdiff_t n, void *restrict out) {
    for (ptrdiff_t i = 0; i < n; ++i) ((A *)out)[i] = (A)x[i];
}
static void FN(split)(const double *restrict x, ptrdiff_t n, void *restrict hi, double *restrict rest) {
    for (ptrdiff_t i = 0; i < n; ++i) {
        const A a = (A)x[i];
        ((A *)hi)[i] = a;
        rest[i] = x[i] - (double)a;
    }
}

/* A strip of K lanes is streamed if that makes whole lines of memory. */
#define WHOLE_LINES(K) ((K) * LANES * sizeof(S) % LANES_ALIGN == 0)
/* Mean of the first rows, rounded to A: a shift near each column's mean. */
static void FN(column_head)(const char *const *x, ptrdiff_t rows, ptrdiff_t columns, void *shift) {
    const AL share = SET((A)1 / (A)rows);
#define CALL(part)                                                                               \
    {                                                                                            \
        AL sum = SET(0);                                                                         \
        for (ptrdiff_t row = 0; row < rows; ++row)                                               \
            sum = ADD(sum, FN(strip_load)(x[row], j, part, sum));                                \
        sum = MUL(sum, share);                                                                   \
        if (part) CAT(A, store_part)((A *)shift + j, sum, part);                                 \
        else CAT(A, store)((A *)shift + j, sum);                                                 \
    }
    ptrdiff_t j = 0;
    for (; j + LANES <= columns; j += LANES) CALL(0)
    if (j < columns) CALL(columns - j)
#undef CALL
}

/* The accumulators of a call, for COLUMNS_AT_ONCE columns, between the groups of rows. */
#define COLUMNS_AT_ONCE 256
INLINE void FN(kept_clear)(A *kept, ptrdiff_t columns) {
    for (ptrdiff_t j = 0; j < columns; j += LANES) CAT(A, store)(kept + j, SET(0));
}
INLINE AL FN(kept_load)(const A *kept, ptrdiff_t j) { return CAT(A, load)(kept + j); }
INLINE void FN(kept_store)(A *kept, ptrdiff_t j, AL a) { CAT(A, store)(kept + j, a); }
INLINE void FN(kept_add)(const A *restrict kept, ptrdiff_t columns, double *restrict total) {
    for (ptrdiff_t j = 0; j < columns; ++j) total[j] += (double)kept[j];
}

INLINE void FN(column_sums_strip)(const char *const *x, ptrdiff_t begin, ptrdiff_t end, ptrdiff_t j,
                                  ptrdiff_t part, const void *shift, A *first, A *second, const int K) {
    AL s[STRIP], a[STRIP], b[STRIP];
    EACH_LANE {
        s[k] = FN(strip_vector)(shift, AT, PART);
        a[k] = FN(kept_load)(first, AT);
        b[k] = FN(kept_load)(second, AT);
    }
    for (ptrdiff_t row = begin; row < end; ++row) {
        const char *const from = x[row];
        EACH_LANE {
            const AL d = SUB(FN(strip_load)(from, AT, PART, s[k]), s[k]);
            a[k] = ADD(a[k], d);
            b[k] = ADD(b[k], MUL(d, d));
        }
    }
    EACH_LANE {
        FN(kept_store)(first, AT, a[k]);
        FN(kept_store)(second, AT, b[k]);
    }
}

/* first += sum of d, second += sum of d*d, d = x - shift, a column at a time; at most 64 rows and
 * COLUMNS_AT_ONCE columns. */
static void FN(column_sums)(const char *const *x, ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t group,
                            const void *shift, double *first, double *second) {
    A a[COLUMNS_AT_ONCE], b[COLUMNS_AT_ONCE];
    FN(kept_clear)(a, columns);
    FN(kept_clear)(b, columns);
#define CALL(K, part) FN(column_sums_strip)(x, begin, end, j, part, shift, a, b, K)
    STRIPS(CALL)
#undef CALL
    FN(kept_add)(a, columns, first);
    FN(kept_add)(b, columns, second);
}

INLINE void FN(column_apply_strip)(const char *const *x, char *const *y, ptrdiff_t begin,
                                   ptrdiff_t end, ptrdiff_t j, ptrdiff_t part, const ColumnAffine *a,
                                   const int activation, const int stream, const int K) {
    AL hi[STRIP], scale[STRIP], bias[STRIP], slope[STRIP];
    EACH_LANE {
        hi[k] = FN(strip_vector)(a->hi, AT, PART);
        scale[k] = FN(strip_vector)(a->scale, AT, PART);
        bias[k] = FN(strip_vector)(a->bias, AT, PART);
        if (activation) slope[k] = FN(strip_vector)(a->slope, AT, PART);
    }
    for (ptrdiff_t row = begin; row < end; ++row) {
        const char *const from = x[row];
        char *const to = y[row];
        EACH_LANE {
            AL z = SUB(FN(strip_load)(from, AT, PART, hi[k]), hi[k]);
            z = ADD(MUL(z, scale[k]), bias[k]);
            if (activation) z = IF_POSITIVE(z, z, MUL(z, slope[k]));
            FN(strip_store)(to, AT, PART, z, stream && WHOLE_LINES(K));
        }
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
#define COLUMN_ACTIVATION                                                                        \
    AL scale[STRIP], bias[STRIP], slope[STRIP];                                                  \
    EACH_LANE if (activation) {                                                                  \
        scale[k] = FN(strip_vector)(a->scale, AT, PART);                                         \
        bias[k] = FN(strip_vector)(a->bias, AT, PART);                                           \
        slope[k] = FN(strip_vector)(a->slope, AT, PART);                                         \
    }

INLINE void FN(column_grad_sums_strip)(const char *const *x, const char *const *dy, ptrdiff_t begin,
                                       ptrdiff_t end, ptrdiff_t j, ptrdiff_t part,
                                       const ColumnAffine *a, A *const kept[4], const int activation,
                                       const int K) {
    AL hi[STRIP], g_[STRIP], gd[STRIP], d_[STRIP], slopes[STRIP], *const on_slope = slopes;
    COLUMN_ACTIVATION
    EACH_LANE {
        hi[k] = FN(strip_vector)(a->hi, AT, PART);
        g_[k] = FN(kept_load)(kept[0], AT);
        gd[k] = FN(kept_load)(kept[1], AT);
        d_[k] = EXACT ? FN(kept_load)(kept[2], AT) : SET(0);
        slopes[k] = activation ? FN(kept_load)(kept[3], AT) : SET(0);
    }
    for (ptrdiff_t row = begin; row < end; ++row) {
        const char *const x_row = x[row], *const dy_row = dy[row];
        EACH_LANE {
            const AL d = SUB(FN(strip_load)(x_row, AT, PART, hi[k]), hi[k]);
            AL g = FN(strip_load)(dy_row, AT, PART, SET(0));
            COLUMN_THROUGH(g, d)
            g_[k] = ADD(g_[k], g);
            gd[k] = ADD(gd[k], MUL(g, d));
            if (EXACT) d_[k] = ADD(d_[k], d);
        }
    }
    EACH_LANE {
        FN(kept_store)(kept[0], AT, g_[k]);
        FN(kept_store)(kept[1], AT, gd[k]);
        if (EXACT) FN(kept_store)(kept[2], AT, d_[k]);
        if (activation) FN(kept_store)(kept[3], AT, slopes[k]);
    }
}

/* As grad_sums, a column at a time; at most 64 rows and COLUMNS_AT_ONCE columns. */
static void FN(column_grad_sums)(const char *const *x, const char *const *dy, ptrdiff_t rows,
                                 ptrdiff_t columns, ptrdiff_t group, const ColumnAffine *a, int activation,
                                 double *sum_g, double *sum_gd, double *sum_d, double *sum_slope) {
    A sums[4][COLUMNS_AT_ONCE], *const kept[4] = {sums[0], sums[1], sums[2], sums[3]};
    FN(kept_clear)(kept[0], columns);
    FN(kept_clear)(kept[1], columns);
    if (EXACT) FN(kept_clear)(kept[2], columns);
    if (activation) FN(kept_clear)(kept[3], columns);
#define CALL(K, part) FN(column_grad_sums_strip)(x, dy, begin, end, j, part, a, kept, activated, K)
    if (activation) { enum { activated = 1 }; STRIPS(CALL) }
    else { enum { activated = 0 }; STRIPS(CALL) }
#undef CALL
    FN(kept_add)(kept[0], columns, sum_g);
    FN(kept_add)(kept[1], columns, sum_gd);
    if (EXACT) FN(kept_add)(kept[2], columns, sum_d);
    if (activation) FN(kept_add)(kept[3], columns, sum_slope);
}

INLINE void FN(column_grad_apply_strip)(const char *const *x, const char *const *dy, char *const *dx,
                                        ptrdiff_t begin, ptrdiff_t end, ptrdiff_t j, ptrdiff_t part,
                                        const ColumnAffine *a, const int activation, const int stream,
                                        const int K) {
    AL hi[STRIP], p[STRIP], q[STRIP], r[STRIP], rstd[STRIP], *const on_slope = NULL;
    COLUMN_ACTIVATION
    EACH_LANE {
        hi[k] = FN(strip_vector)(a->hi, AT, PART);
        p[k] = FN(strip_vector)(a->p, AT, PART);
        q[k] = FN(strip_vector)(a->q, AT, PART);
        r[k] = FN(strip_vector)(a->r, AT, PART);
        rstd[k] = FN(strip_vector)(a->rstd, AT, PART);
    }
    for (ptrdiff_t row = begin; row < end; ++row) {
        const char *const x_row = x[row], *const dy_row = dy[row];
        char *const to = dx[row];
        EACH_LANE {
            const AL d = SUB(FN(strip_load)(x_row, AT, PART, hi[k]), hi[k]);
            AL g = FN(strip_load)(dy_row, AT, PART, SET(0));
            COLUMN_THROUGH(g, d)
            g = SUB(SUB(MUL(g, p[k]), r[k]), MUL(MUL(d, rstd[k]), q[k]));
            FN(strip_store)(to, AT, PART, g, stream && WHOLE_LINES(K));
        }
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
#undef EACH_LANE
#undef AT
#undef PART

/* ---- windows: rows are channels (channels first) or positions, shifted (channels last) ---- */

/* Runs LANE(K, part) over two lanes of every run, then over one, then over the rest of it. */
#define FOR_LANES(LANE)                                                                          \
    for (ptrdiff_t run = 0; run < w->runs; ++run) {                                              \
        const ptrdiff_t kept = run * w->kept_stride;                                             \
        const char *x = w->x + run * w->x_stride, *dy = w->dy + run * w->dy_stride;              \
        char *y = w->y + run * w->y_stride;                                                      \
        ptrdiff_t i = 0;                                                                         \
        (void)dy, (void)y;                                                                       \
        for (; i + 2 * LANES <= w->n; i += 2 * LANES) LANE(2, 0)                                 \
        if (i + LANES <= w->n) {                                                                 \
            LANE(1, 0)                                                                           \
            i += LANES;                                                                          \
        }                                                                                        \
        if (i < w->n) LANE(1, w->n - i)                                                          \
    }
#define EACH(K) for (int k = 0; k < K; ++k)
#define AT (i + k * LANES)
#define SLOPE(part) (activation == 2 ? FN(strip_vector)(w->slopes, AT, part) : slope)
/* In what is kept, and in the result. */
#define KEEP(p, v, part)                                                                         \
    {                                                                                            \
        if (part) CAT(A, store_part)((A *)((p) + kept) + AT, v, part);                           \
        else CAT(A, store)((A *)((p) + kept) + AT, v);                                           \
    }
#define WRITE(K, part, result)                                                                   \
    {                                                                                            \
        if (K == 2) STORE_PAIR((S *)y + i, result[0], result[K - 1]);                            \
        else FN(strip_store)(y, i, part, result[0], 0);                                          \
    }
/* Memory is idle while roots are taken: ask for what comes next, a line of memory each time. */
#define AHEAD(K, p, ahead)                                                                       \
    for (int k = 0; k < K; k += 64 / (LANES * sizeof(S)))                                        \
        __builtin_prefetch((const char *)((const S *)(p) + AT) + (ahead), 0, 3);

/* sum = the sum of a window's rows, in their order; `part` elements of it, or 0: whole lanes. */
INLINE void FN(window_sum)(const WindowTile *w, ptrdiff_t kept, ptrdiff_t i, ptrdiff_t part, AL *sum,
                           const int K) {
    EACH(K) sum[k] = SET(0);
    for (ptrdiff_t row = 0; row < w->count; ++row)
        EACH(K) sum[k] = ADD(sum[k], FN(strip_vector)(w->rows[row] + kept, AT, part));
}

/* scale = k + alpha * the sum of squares. A window's last row may be `fresh`: it is squared here, and
 * its squares are kept for other windows. */
INLINE void FN(window_scale)(const WindowTile *w, ptrdiff_t kept, ptrdiff_t i, ptrdiff_t part, AL *scale,
                             const int K) {
    const AL alpha = SET(w->alpha), constant = SET(w->k);
    FN(window_sum)(w, kept, i, part, scale, K);
    if (w->fresh)
        EACH(K) {
            const AL v = FN(strip_load)(w->fresh, AT, part, SET(0)), square = MUL(v, v);
            KEEP(w->squares, square, part)
            scale[k] = ADD(scale[k], square);
        }
    EACH(K) scale[k] = ADD(constant, MUL(alpha, scale[k]));
}

/* Any power; out of line, as two of them side by side want more registers than there are. */
static __attribute__((noinline)) AL FN(any_response)(AL scale, double beta) {
    return CAT(A, power)(scale, beta);
}

/* scale ** -beta */
INLINE AL FN(response)(AL scale, double beta) {
    if (beta == 0.75) {
        const AL root = CAT(A, sqrt)(scale);
        return CAT(A, div)(SET(1), MUL(root, CAT(A, sqrt)(root)));
    }
    if (beta == 0.5) return CAT(A, div)(SET(1), CAT(A, sqrt)(scale));
    if (beta == 1) return CAT(A, div)(SET(1), scale);
    return FN(any_response)(scale, beta);
}

/* The gradient through the activation; z = x * power has the sign of its forward twin. */
INLINE AL FN(through)(AL dy, AL x, AL power, AL slope, const int activation) {
    return activation ? IF_POSITIVE(MUL(x, power), dy, MUL(dy, slope)) : dy;
}

/* squares[i] = x[i]**2 */
static void FN(window_squares)(const WindowTile *w) {
#define LANE(K, part)                                                                            \
    EACH(K) {                                                                                    \
        const AL v = FN(strip_load)(x, AT, part, SET(0));                                        \
        KEEP(w->squares, MUL(v, v), part)                                                        \
    }
    FOR_LANES(LANE)
#undef LANE
}

/* y = x * (k + alpha * sum of squares) ** -beta, then the activation. */
INLINE void FN(window_apply_any)(const WindowTile *w, double beta, const int activation) {
    const AL slope = SET(w->slope);
#define LANE(K, part)                                                                            \
    {                                                                                            \
        AL scale[2], z[2];                                                                       \
        AHEAD(K, x, w->x_ahead)                                                                  \
        AHEAD(K, y, w->y_ahead)                                                                  \
        FN(window_scale)(w, kept, i, part, scale, K);                                            \
        EACH(K) {                                                                                \
            z[k] = MUL(FN(strip_load)(x, AT, part, SET(0)), FN(response)(scale[k], beta));       \
            if (activation) z[k] = IF_POSITIVE(z[k], z[k], MUL(z[k], SLOPE(part)));              \
        }                                                                                        \
        WRITE(K, part, z)                                                                        \
    }
    FOR_LANES(LANE)
#undef LANE
}
static void FN(window_apply)(const WindowTile *w) {
    if (w->beta == 0.75 && !w->activation) FN(window_apply_any)(w, 0.75, 0);
    else FN(window_apply_any)(w, w->beta, w->activation);
}

/* power = scale ** -beta, shared = g * x * scale ** (-beta - 1): what a channel did to its window. */
INLINE void FN(window_prepare_any)(const WindowTile *w, double beta, const int activation) {
    const AL slope = SET(w->slope);
#define LANE(K, part)                                                                            \
    {                                                                                            \
        AL scale[2];                                                                             \
        AHEAD(K, x, w->x_ahead)                                                                  \
        AHEAD(K, dy, w->dy_ahead)                                                                \
        AHEAD(K, y, w->y_ahead)                                                                  \
        FN(window_scale)(w, kept, i, part, scale, K);                                            \
        EACH(K) {                                                                                \
            const AL inverse = CAT(A, div)(SET(1), scale[k]), p = FN(response)(scale[k], beta);  \
            const AL v = FN(strip_load)(x, AT, part, SET(0));                                    \
            const AL g = FN(through)(FN(strip_load)(dy, AT, part, SET(0)), v, p, SLOPE(part), activation); \
            KEEP(w->power, p, part)                                                              \
            KEEP(w->shared, MUL(MUL(g, v), MUL(p, inverse)), part)                               \
        }                                                                                        \
    }
    FOR_LANES(LANE)
#undef LANE
}
static void FN(window_prepare)(const WindowTile *w) {
    if (w->beta == 0.75 && !w->activation) FN(window_prepare_any)(w, 0.75, 0);
    else FN(window_prepare_any)(w, w->beta, w->activation);
}

/* dx = g * power - 2 * alpha * beta * x * (sum of `shared` over the windows that x is in) */
static void FN(window_grad)(const WindowTile *w) {
    const AL c = SET(2 * w->alpha * w->beta), slope = SET(w->slope);
    const int activation = w->activation;
#define LANE(K, part)                                                                            \
    {                                                                                            \
        AL sum[2];                                                                               \
        FN(window_sum)(w, kept, i, part, sum, K);                                                \
        EACH(K) {                                                                                \
            const AL v = FN(strip_load)(x, AT, part, SET(0));                                    \
            const AL p = FN(strip_vector)(w->power + kept, AT, part);                            \
            const AL g = FN(through)(FN(strip_load)(dy, AT, part, SET(0)), v, p, SLOPE(part), activation); \
            sum[k] = SUB(MUL(g, p), MUL(MUL(c, v), sum[k]));                                     \
        }                                                                                        \
        WRITE(K, part, sum)                                                                      \
    }
    FOR_LANES(LANE)
#undef LANE
}
#undef FOR_LANES
#undef EACH
#undef AT
#undef SLOPE
#undef KEEP
#undef WRITE
#undef AHEAD

static const Tile FN(tile) = {
    sizeof(S), sizeof(A), ACCUMULATOR, FN(rounded), FN(widen), FN(widen64), FN(head), FN(sums),
    FN(apply), FN(forward_rows), FN(apply_vector), FN(grad_sums), FN(grad_sums_vector), FN(grad_apply),
    FN(grad_rows), FN(add), FN(narrow), FN(split), FN(column_head), FN(column_sums), FN(column_apply),
    FN(column_grad_sums), FN(column_grad_apply),
    FN(window_squares), FN(window_apply), FN(window_prepare), FN(window_grad),
};

#undef STRIPS
#undef ROWS_ABREAST
#undef HEAD
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
