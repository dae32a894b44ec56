/* Units: the sums of a tile, and what is applied to it, forward and backward. A part of tile_loops.h. */

static double FN(rounded)(double a) { return (double)(A)a; }

static void FN(widen)(const char *source, ptrdiff_t n, void *out) {
    const S *x = (const S *)source;
    A *y = (A *)out;
    ptrdiff_t i = 0;
    for (; i + LANES <= n; i += LANES) CAT(A, store)(y + i, LOAD(x + i));
    if (i < n) CAT(A, store_partial)(y + i, LOAD_PART(x + i, n - i, SET(0)), n - i);
}

static void FN(widen64)(const char *source, ptrdiff_t n, double *out) {
    A lane[LANES];
    if (sizeof(S) == sizeof(A)) {
        for (ptrdiff_t i = 0; i < n; ++i) out[i] = ((const A *)source)[i];
        return;
    }
    for (ptrdiff_t i = 0; i < n; i += LANES) {
        const ptrdiff_t m = n - i < LANES ? n - i : LANES;
        FN(widen)(source + i * sizeof(S), m, lane);
        for (ptrdiff_t j = 0; j < m; ++j) out[i + j] = lane[j];
    }
}

static void FN(store64)(const double *x, ptrdiff_t n, char *target) {
    S *y = (S *)target;
    A lane[LANES];
    for (ptrdiff_t i = 0; i < n; i += LANES) {
        const ptrdiff_t m = n - i < LANES ? n - i : LANES;
        for (ptrdiff_t j = 0; j < m; ++j) lane[j] = sizeof(S) < sizeof(A) ? round_to_odd(x[i + j]) : (A)x[i + j];
        if (m == LANES) STORE(y + i, CAT(A, load)(lane));
        else STORE_PART(y + i, CAT(A, load_partial)(lane, m, SET(0)), m);
    }
}

/* Ask for the lines of two lanes. */
INLINE void FN(prefetch_pair)(const char *x) {
    for (size_t i = 0; i < 2 * LANES * sizeof(S); i += LANES_ALIGN) __builtin_prefetch(x + i, 0, 2);
}

/* Ask for what is wanted in cache next: the next segment of a unit whose segments lie apart, as no prefetcher
 * of the processor follows from one to the other, or the next unit while memory is idle. */
#define LINES_OF_LANES(p, ahead, written)                                                        \
    _Pragma("GCC unroll 4") for (size_t line = 0; line < LANES * sizeof(S); line += LANES_ALIGN) \
        __builtin_prefetch((const char *)((p) + i) + (ahead) + line, written, 2)
#define PREFETCH_AHEAD(p, ahead) LINES_OF_LANES(p, ahead, 0)
/* The same, to be written. */
#define PREFETCH_WRITE(p, ahead) LINES_OF_LANES(p, ahead, 1)

/* Lanes of the sums of d and of d*d, d = x - shift. `centred`: the second sum alone, both about 0, or both
 * about the shift. Lanes are added up every CASCADE elements, so that an outlier meets few of the others.
 * Sums begin at -0, which leaves what is added to it as it is. */
INLINE void FN(sums_any)(const char *source, ptrdiff_t runs, ptrdiff_t stride, ptrdiff_t n,
                         double shift, AL *sum_d_out, AL *sum_dd_out, const int centred,
                         const ptrdiff_t reach) {
    const ptrdiff_t ahead = reach * stride;
    const AL fill = SET(centred == SHIFTED ? shift : 0), none = SET(-0.0);
    AL d0 = none, d1 = none, dd0 = none, dd1 = none, sum_d = none, sum_dd = none;
    ptrdiff_t since = 0;
#define STEP(k, value)                                                                           \
    {                                                                                            \
        AL d = value;                                                                            \
        if (centred == SHIFTED) d = SUB(d, fill);                                                \
        if (centred) d##k = ADD(d##k, d);                                                        \
        dd##k = ADD(dd##k, MUL(d, d));                                                           \
    }
#define TWO_STEPS(FROM)                                                                          \
    {                                                                                            \
        if (reach) FN(prefetch_pair)((const char *)(x + i) + ahead);                                \
        STEP(0, FROM(x + i))                                                                     \
        STEP(1, FROM(x + i + LANES))                                                             \
    }
#define ADD_UP                                                                                   \
    {                                                                                            \
        if (centred) sum_d = ADD(sum_d, ADD(d0, d1));                                    \
        sum_dd = ADD(sum_dd, ADD(dd0, dd1));                                             \
        d0 = d1 = dd0 = dd1 = none;                                              \
        since = 0;                                                                               \
    }
    for (ptrdiff_t run = 0; run < runs; ++run) {
        const S *x = (const S *)(source + run * stride);
        const int crosses = centred && CROSSES(x);
        ptrdiff_t i = 0;
        while (i + CASCADE <= n) {
            const ptrdiff_t stop = i + CASCADE;
            if (crosses) for (; i < stop; i += 2 * LANES) TWO_STEPS(LOAD_HALVES)
            else for (; i < stop; i += 2 * LANES) TWO_STEPS(LOAD)
            ADD_UP
        }
        since += n - i;
        if (crosses) for (; i + 2 * LANES <= n; i += 2 * LANES) TWO_STEPS(LOAD_HALVES)
        else for (; i + 2 * LANES <= n; i += 2 * LANES) TWO_STEPS(LOAD)
        if (reach && i < n) FN(prefetch_pair)((const char *)(x + i) + ahead);
        if (i + LANES <= n) {
            STEP(0, LOAD(x + i))
            i += LANES;
        }
        if (i < n) STEP(1, LOAD_PART(x + i, n - i, fill))
        if (since >= CASCADE) ADD_UP
    }
    ADD_UP
#undef ADD_UP
#undef TWO_STEPS
#undef STEP
    *sum_d_out = sum_d;
    *sum_dd_out = sum_dd;
}

/* out = {sum of d, sum of d*d} */
static void FN(sums)(const char *x, ptrdiff_t runs, ptrdiff_t stride, ptrdiff_t n, double shift,
                     int centred, ptrdiff_t reach, double *out) {
    AL sum_d, sum_dd;
#define CALL(centred, reach) FN(sums_any)(x, runs, stride, n, shift, &sum_d, &sum_dd, centred, reach)
    if (!centred) CALL(UNCENTRED, 0);
    else if (shift == 0 && reach) CALL(CENTRED, reach);
    else if (shift == 0) CALL(CENTRED, 0);
    else if (reach) CALL(SHIFTED, reach);
    else CALL(SHIFTED, 0);
#undef CALL
    out[0] = HSUM(sum_d);
    out[1] = HSUM(sum_dd);
}

/* The sums of the first elements, about 0: they tell whether the rest wants a shift. */
#define PROBE_SIZE(n) ((n) < 4 * LANES ? (n) : 4 * LANES)
INLINE void FN(probe_lanes_sums)(const char *x, ptrdiff_t n, AL *sum_d, AL *sum_dd) {
    if (n >= 4 * LANES) FN(sums_any)(x, 1, 0, 4 * LANES, 0, sum_d, sum_dd, CENTRED, 0);
    else FN(sums_any)(x, 1, 0, n, 0, sum_d, sum_dd, CENTRED, 0);
}

/* A shift near the mean: 0 where the mean is less than the deviation. */
INLINE int FN(far_from_zero)(double count, double sum_d, double sum_dd) { return 2 * sum_d * sum_d > count * sum_dd; }
INLINE double FN(shift_from_probe)(double count, double sum_d, double sum_dd) {
    return FN(far_from_zero)(count, sum_d, sum_dd) ? (double)(A)(sum_d / count) : 0;
}

static double FN(probe)(const char *x, ptrdiff_t n) {
    AL sum_d, sum_dd;
    FN(probe_lanes_sums)(x, n, &sum_d, &sum_dd);
    return FN(shift_from_probe)((double)PROBE_SIZE(n), HSUM(sum_d), HSUM(sum_dd));
}

INLINE AL FN(normalised)(AL x, AL hi, AL lo, AL scale, AL weight, AL bias, const int elementwise,
                         const int centred, const int biased) {
    if (centred == SHIFTED) x = SUB(x, hi);
    if (centred && elementwise) x = SUB(x, lo);
    x = MUL(x, elementwise ? MUL(scale, weight) : scale);
    return biased ? ADD(x, bias) : x;
}

/* y = ((x - hi) - lo) * scale + bias, then z if z > 0 else slope * z. */
INLINE void FN(apply_any)(const char *source, char *target, ptrdiff_t runs, ptrdiff_t x_stride,
                          ptrdiff_t y_stride, ptrdiff_t n, ptrdiff_t at, const Coefficients *a,
                          const int elementwise, const int centred, const int biased,
                          const int activation, const int store) {
    const int stream = store == STORE_NONTEMPORAL;
    const AL hi = SET(a->mean_hi), lo = SET(a->mean_lo), scale = SET(a->scale), bias = SET(a->bias),
             slope = SET(a->slope), fill = hi;
    /* by value: for all the compiler knows, storing the result might change what `a` points to */
    const void *const weights = a->weights, *const shifts = a->biases, *const slopes = a->slopes;
    const ptrdiff_t ahead = a->prefetch_segments * y_stride, fetched = a->prefetch_bytes;
    for (ptrdiff_t run = 0; run < runs; ++run) {
        const S *x = (const S *)(source + run * x_stride);
        S *y = (S *)(target + run * y_stride);
#define STEP(result, value, PIECE)                                                               \
    {                                                                                            \
        AL z = FN(normalised)(value, hi, lo, scale, elementwise ? PIECE##_PARAMETER(weights) : scale, \
                              elementwise && biased ? PIECE##_PARAMETER(shifts) : bias, elementwise,       \
                              centred, biased);                                                  \
        if (stream) PREFETCH_AHEAD(x, fetched);                                                           \
        if (store == STORE_PREFETCHED) PREFETCH_WRITE(y, ahead);                                                   \
        if (activation)                                                                          \
            z = IF_POSITIVE(z, z, MUL(z, elementwise && activation == 2 ? PIECE##_PARAMETER(slopes) : slope)); \
        result = z;                                                                              \
    }
#define WHOLE_PARAMETER(p) PARAMETER(p, at + i)
#define HALVES_PARAMETER(p) PARAMETER(p, at + i)
#define PART_PARAMETER(p) PARAMETER_PART(p, at + i, part)
        FOR_RUN(y, n)
#undef STEP
    }
}

/* Whether a run at y is long enough to be stored past the cache. */
INLINE int FN(run_is_streamed)(const char *y, ptrdiff_t n) {
    return n * (ptrdiff_t)sizeof(S) >= 16 * LANES_ALIGN && (uintptr_t)y % sizeof(S) == 0;
}
#define BYTES(from) ((from) * (ptrdiff_t)sizeof(S))

INLINE void FN(apply_centred)(const char *x, char *y, ptrdiff_t runs, ptrdiff_t x_stride, ptrdiff_t y_stride,
                              ptrdiff_t n, const Coefficients *a, const int centred) {
    if (a->nontemporal && FN(run_is_streamed)(y, n))
        FN(apply_any)(x, y, runs, x_stride, y_stride, n, 0, a, 0, centred, 1, 0, STORE_NONTEMPORAL);
    else if (a->prefetch_segments)
        FN(apply_any)(x, y, runs, x_stride, y_stride, n, 0, a, 0, centred, 1, 0, STORE_PREFETCHED);
    else
        FN(apply_any)(x, y, runs, x_stride, y_stride, n, 0, a, 0, centred, 1, 0, STORE_PLAIN);
}

static void FN(apply)(const char *x, char *y, ptrdiff_t runs, ptrdiff_t x_stride, ptrdiff_t y_stride,
                      ptrdiff_t n, const Coefficients *a, int activation) {
    if (activation) FN(apply_any)(x, y, runs, x_stride, y_stride, n, 0, a, 0, SHIFTED, 1, 1, STORE_PLAIN);
    else if (a->mean_hi == 0) FN(apply_centred)(x, y, runs, x_stride, y_stride, n, a, CENTRED);
    else FN(apply_centred)(x, y, runs, x_stride, y_stride, n, a, SHIFTED);
}

/* What is applied to one unit of a band. */
INLINE Coefficients FN(coefficients_at)(const CoefficientArrays *a, ptrdiff_t unit, const int activation, const int backward) {
    Coefficients f = {0};
    f.mean_hi = a->mean_hi[unit];
    f.scale = a->scale[unit];
    if (activation || !backward) f.bias = a->bias[unit];
    if (activation) f.slope = a->slope[unit];
    if (backward) {
        f.dev_coeff = a->dev_coeff[unit];
        f.grad_offset = a->grad_offset[unit];
        f.rstd = a->rstd[unit];
    }
    return f;
}

/* The same of units whose runs lie side by side, `step` bytes from one unit's to the next's: in the order of
 * memory. */
static void FN(apply_batch)(const char *x, char *y, ptrdiff_t runs, ptrdiff_t x_stride, ptrdiff_t y_stride,
                           ptrdiff_t units, ptrdiff_t x_step, ptrdiff_t y_step, ptrdiff_t n, const CoefficientArrays *a,
                           int activation) {
#define EACH(centred, activation)                                                                \
    for (ptrdiff_t run = 0; run < runs; ++run)                                                   \
        for (ptrdiff_t unit = 0; unit < units; ++unit) {                                         \
            const Coefficients f = FN(coefficients_at)(a, unit, activation, 0);                              \
            FN(apply_any)(x + run * x_stride + unit * x_step, y + run * y_stride + unit * y_step, 1, 0, 0, n, 0, \
                          &f, 0, centred, 1, activation, STORE_PLAIN);                           \
        }
    if (activation) EACH(SHIFTED, 1)
    else if (a->shifted) EACH(SHIFTED, 0)
    else EACH(CENTRED, 0)
#undef EACH
}

INLINE void FN(apply_elementwise_any)(const char *x, char *y, ptrdiff_t n, ptrdiff_t at, const Coefficients *a,
                                 int activation, const int centred, const int biased) {
    if (activation == 2) FN(apply_any)(x, y, 1, 0, 0, n, at, a, 1, centred, biased, 2, STORE_PLAIN);
    else if (activation) FN(apply_any)(x, y, 1, 0, 0, n, at, a, 1, centred, biased, 1, STORE_PLAIN);
    else if (a->nontemporal && FN(run_is_streamed)(y, n))
        FN(apply_any)(x, y, 1, 0, 0, n, at, a, 1, centred, biased, 0, STORE_NONTEMPORAL);
    else FN(apply_any)(x, y, 1, 0, 0, n, at, a, 1, centred, biased, 0, STORE_PLAIN);
}

/* Elements at .. at + n of a row with a weight (and a bias, if any) per element. */
static void FN(apply_elementwise)(const char *x, char *y, ptrdiff_t n, ptrdiff_t at, const Coefficients *a,
                             int activation) {
    if (a->biases && a->mean_hi == 0) FN(apply_elementwise_any)(x, y, n, at, a, activation, CENTRED, 1);
    else if (a->biases) FN(apply_elementwise_any)(x, y, n, at, a, activation, SHIFTED, 1);
    else if (a->mean_hi != 0) FN(apply_elementwise_any)(x, y, n, at, a, activation, SHIFTED, 0);
    else if (a->mean_lo != 0) FN(apply_elementwise_any)(x, y, n, at, a, activation, CENTRED, 0);
    else FN(apply_elementwise_any)(x, y, n, at, a, activation, UNCENTRED, 0);
}

/* ---- backward ---- */

/* The gradient through the activation: its sign is that of the forward z, recomputed. */
#define ACTIVATION_BACKWARD(g, d, PIECE)                                                                     \
    if (activation) {                                                                            \
        AL z = elementwise ? MUL(SUB(d, lo), MUL(scale, PIECE##_PARAMETER(a->weights))) : MUL(d, scale); \
        if (!elementwise) z = ADD(z, bias);                                                           \
        else if (a->biases) z = ADD(z, PIECE##_PARAMETER(a->biases));                              \
        const AL s = elementwise && activation == 2 ? PIECE##_PARAMETER(a->slopes) : slope;           \
        g = FN(activation_backward)(g, z, s, on_slope);                                                      \
    }

#define WHOLE_DY LOAD(dy + i)
#define HALVES_DY LOAD_HALVES(dy + i)
#define PART_DY LOAD_PART(dy + i, part, SET(0))

/* Lanes of the sums of g, of g*d, of d (float64 only), of dy*z where z <= 0; d = x - hi, or x. */
INLINE void FN(grad_sums_any)(const char *x_source, const char *dy_source, ptrdiff_t runs,
                              ptrdiff_t x_stride, ptrdiff_t dy_stride, ptrdiff_t n, ptrdiff_t at,
                              const Coefficients *a, AL *const out[4], const int elementwise, const int centred,
                              const int activation, const ptrdiff_t reach) {
    const ptrdiff_t ahead = reach * x_stride, dy_ahead = reach * dy_stride;
    const AL hi = SET(a->mean_hi), lo = SET(a->mean_lo), scale = SET(a->scale), bias = SET(a->bias),
             slope = SET(a->slope), fill = hi;
    const AL zero = SET(-0.0);
    AL g0 = zero, g1 = zero, gd0 = zero, gd1 = zero, d0 = zero, s0 = zero, *on_slope = &s0;
    AL sum_g = zero, sum_gd = zero;
    ptrdiff_t since = 0;
#define STEP(k, value, PIECE)                                                                    \
    {                                                                                            \
        const AL d = centred == SHIFTED ? SUB(value, hi) : value;                                \
        AL g = PIECE##_DY;                                                                       \
        ACTIVATION_BACKWARD(g, d, PIECE)                                                                     \
        if (elementwise) g = MUL(g, PIECE##_PARAMETER(a->weights));                                    \
        g##k = ADD(g##k, g);                                                                     \
        gd##k = ADD(gd##k, MUL(g, d));                                                           \
        if (EXACT) d0 = ADD(d0, d);                                                              \
    }
#define PREFETCH_READ                                                                                    \
    if (reach) {                                                                                 \
        FN(prefetch_pair)((const char *)(x + i) + ahead);                                           \
        FN(prefetch_pair)((const char *)(dy + i) + dy_ahead);                                       \
    }
#define TWO_STEPS(FROM, PIECE)                                                                   \
    {                                                                                            \
        PREFETCH_READ                                                                                    \
        STEP(0, FROM(x + i), PIECE)                                                              \
        i += LANES;                                                                              \
        STEP(1, FROM(x + i), PIECE)                                                              \
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
        const int crosses = (!elementwise || n > 4 * LANES) && (CROSSES(x) || CROSSES(dy));
        ptrdiff_t i = 0;
        while (i + CASCADE <= n) {
            const ptrdiff_t stop = i + CASCADE;
            if (crosses) while (i < stop) TWO_STEPS(LOAD_HALVES, HALVES)
            else while (i < stop) TWO_STEPS(LOAD, WHOLE)
            ADD_UP
        }
        since += n - i;
        if (crosses) while (i + 2 * LANES <= n) TWO_STEPS(LOAD_HALVES, HALVES)
        else while (i + 2 * LANES <= n) TWO_STEPS(LOAD, WHOLE)
        if (i < n) PREFETCH_READ
        if (i + LANES <= n) {
            STEP(0, LOAD(x + i), WHOLE)
            i += LANES;
        }
        const ptrdiff_t part = n - i;
        if (part > 0) STEP(1, LOAD_PART(x + i, part, fill), PART)
        if (since >= CASCADE) ADD_UP
    }
    ADD_UP
#undef ADD_UP
#undef TWO_STEPS
#undef PREFETCH_READ
#undef STEP
    (void)lo, (void)scale, (void)bias, (void)slope, (void)on_slope;
    *out[0] = sum_g;
    *out[1] = sum_gd;
    if (EXACT) *out[2] = d0;
    if (activation) *out[3] = s0;
}

INLINE void FN(grad_sums_hsum)(const char *x, const char *dy, ptrdiff_t runs, ptrdiff_t x_stride,
                                 ptrdiff_t dy_stride, ptrdiff_t n, ptrdiff_t at, const Coefficients *a,
                                 double *out, const int elementwise, const int centred, const int activation,
                                 const ptrdiff_t reach) {
    AL lanes[4], *const to[4] = {lanes, lanes + 1, lanes + 2, lanes + 3};
    FN(grad_sums_any)(x, dy, runs, x_stride, dy_stride, n, at, a, to, elementwise, centred, activation, reach);
    out[0] += HSUM(lanes[0]);
    out[1] += HSUM(lanes[1]);
    if (EXACT) out[2] += HSUM(lanes[2]);
    if (activation) out[3] += HSUM(lanes[3]);
}

/* out += the sums */
static void FN(grad_sums)(const char *x, const char *dy, ptrdiff_t runs, ptrdiff_t x_stride,
                          ptrdiff_t dy_stride, ptrdiff_t n, const Coefficients *a, int activation, double *out) {
    const ptrdiff_t reach = a->prefetch_segments;
#define CALL(centred, activation, reach)                                                         \
    FN(grad_sums_hsum)(x, dy, runs, x_stride, dy_stride, n, 0, a, out, 0, centred, activation, reach)
    if (activation) CALL(SHIFTED, 1, 0);
    else if (a->mean_hi == 0 && reach) CALL(CENTRED, 0, reach);
    else if (a->mean_hi == 0) CALL(CENTRED, 0, 0);
    else if (reach) CALL(SHIFTED, 0, reach);
    else CALL(SHIFTED, 0, 0);
#undef CALL
}

static void FN(grad_sums_elementwise)(const char *x, const char *dy, ptrdiff_t n, ptrdiff_t at,
                                 const Coefficients *a, int activation, double *out) {
#define CALL(centred, activation)                                                                \
    FN(grad_sums_hsum)(x, dy, 1, 0, 0, n, at, a, out, 1, centred, activation, 0)
    if (activation == 2) CALL(SHIFTED, 2);
    else if (activation) CALL(SHIFTED, 1);
    else if (a->mean_hi == 0) CALL(CENTRED, 0);
    else CALL(SHIFTED, 0);
#undef CALL
}

/* dx = (g * p - r) - (x - hi) * rstd * q: rstd * q may be too small for a float. */
INLINE void FN(grad_apply_any)(const char *x_source, const char *dy_source, char *dx_source,
                               ptrdiff_t runs, ptrdiff_t x_stride, ptrdiff_t dy_stride,
                               ptrdiff_t dx_stride, ptrdiff_t n, const Coefficients *a, const int centred,
                               const int activation, const int store) {
    const int stream = store == STORE_NONTEMPORAL;
    enum { elementwise = 0, at = 0 };
    const AL hi = SET(a->mean_hi), lo = SET(a->mean_lo), scale = SET(a->scale), bias = SET(a->bias),
             slope = SET(a->slope), dev_coeff = SET(a->dev_coeff), grad_offset = SET(a->grad_offset),
             rstd = SET(a->rstd), fill = hi;
    AL *const on_slope = 0;
    const ptrdiff_t ahead = a->prefetch_segments * dx_stride, fetched = a->prefetch_bytes;
    for (ptrdiff_t run = 0; run < runs; ++run) {
        const S *x = (const S *)(x_source + run * x_stride), *dy = (const S *)(dy_source + run * dy_stride);
        S *dx = (S *)(dx_source + run * dx_stride);
#define STEP(result, value, PIECE)                                                               \
    {                                                                                            \
        const AL d = centred == SHIFTED ? SUB(value, hi) : value;                                \
        AL g = PIECE##_DY;                                                                       \
        if (stream) { PREFETCH_AHEAD(dy, fetched); PREFETCH_AHEAD(x, fetched); }                                   \
        if (store == STORE_PREFETCHED) PREFETCH_WRITE(dx, ahead);                                                  \
        ACTIVATION_BACKWARD(g, d, PIECE)                                                                     \
        result = SUB(SUB(MUL(g, scale), grad_offset), MUL(MUL(d, rstd), dev_coeff));             \
    }
        FOR_RUN(dx, n)
#undef STEP
    }
    (void)lo, (void)scale, (void)bias, (void)slope, (void)on_slope;
}

INLINE void FN(grad_apply_centred)(const char *x, const char *dy, char *dx, ptrdiff_t runs, ptrdiff_t x_stride,
                                   ptrdiff_t dy_stride, ptrdiff_t dx_stride, ptrdiff_t n, const Coefficients *a,
                                   const int centred) {
    if (a->nontemporal && FN(run_is_streamed)(dx, n))
        FN(grad_apply_any)(x, dy, dx, runs, x_stride, dy_stride, dx_stride, n, a, centred, 0, STORE_NONTEMPORAL);
    else if (a->prefetch_segments)
        FN(grad_apply_any)(x, dy, dx, runs, x_stride, dy_stride, dx_stride, n, a, centred, 0, STORE_PREFETCHED);
    else
        FN(grad_apply_any)(x, dy, dx, runs, x_stride, dy_stride, dx_stride, n, a, centred, 0, STORE_PLAIN);
}

static void FN(grad_apply)(const char *x, const char *dy, char *dx, ptrdiff_t runs, ptrdiff_t x_stride,
                           ptrdiff_t dy_stride, ptrdiff_t dx_stride, ptrdiff_t n, const Coefficients *a,
                           int activation) {
    if (activation)
        FN(grad_apply_any)(x, dy, dx, runs, x_stride, dy_stride, dx_stride, n, a, SHIFTED, 1, STORE_PLAIN);
    else if (a->mean_hi == 0) FN(grad_apply_centred)(x, dy, dx, runs, x_stride, dy_stride, dx_stride, n, a, CENTRED);
    else FN(grad_apply_centred)(x, dy, dx, runs, x_stride, dy_stride, dx_stride, n, a, SHIFTED);
}

/* As apply_batch. */
static void FN(grad_apply_batch)(const char *x, const char *dy, char *dx, ptrdiff_t runs, ptrdiff_t x_stride,
                                ptrdiff_t dy_stride, ptrdiff_t dx_stride, ptrdiff_t units, ptrdiff_t x_step,
                                ptrdiff_t dy_step, ptrdiff_t dx_step, ptrdiff_t n, const CoefficientArrays *a,
                                int activation) {
#define EACH(centred, activation)                                                                \
    for (ptrdiff_t run = 0; run < runs; ++run)                                                   \
        for (ptrdiff_t unit = 0; unit < units; ++unit) {                                         \
            const Coefficients f = FN(coefficients_at)(a, unit, activation, 1);                              \
            FN(grad_apply_any)(x + run * x_stride + unit * x_step, dy + run * dy_stride + unit * dy_step, \
                               dx + run * dx_stride + unit * dx_step, 1, 0, 0, 0, n, &f, centred, \
                               activation, STORE_PLAIN);                                         \
        }
    if (activation) EACH(SHIFTED, 1)
    else if (a->shifted) EACH(SHIFTED, 0)
    else EACH(CENTRED, 0)
#undef EACH
}

/* The sums of BATCH_UNITS units at most, each over all its runs: out[kind * BATCH_UNITS + unit], kinds as in grad_sums. */
static void FN(grad_sums_batch)(const char *x, const char *dy, ptrdiff_t runs, ptrdiff_t x_stride,
                               ptrdiff_t dy_stride, ptrdiff_t units, ptrdiff_t x_step, ptrdiff_t dy_step,
                               ptrdiff_t n, const CoefficientArrays *a, int activation, double *out) {
    AL lanes[4][BATCH_UNITS];
#define EACH(centred, activation)                                                                \
    for (ptrdiff_t unit = 0; unit < units; ++unit) {                                             \
        const Coefficients f = FN(coefficients_at)(a, unit, activation, 0);                                  \
        AL *const to[4] = {&lanes[0][unit], &lanes[1][unit], &lanes[2][unit], &lanes[3][unit]};  \
        FN(grad_sums_any)(x + unit * x_step, dy + unit * dy_step, runs, x_stride, dy_stride, n, 0, &f, to, 0, \
                          centred, activation, 0);                                               \
    }
    if (activation) EACH(SHIFTED, 1)
    else if (a->shifted) EACH(SHIFTED, 0)
    else EACH(CENTRED, 0)
#undef EACH
    for (int kind = 0; kind < 4; ++kind)
        if (kind < 2 || (kind == 2 && EXACT) || (kind == 3 && activation))
            CAT(A, hsum_all)(lanes[kind], units, out + kind * BATCH_UNITS);
}

static void FN(add)(const char *a, const char *b, char *y, ptrdiff_t n) {
    const S *x = (const S *)a, *other = (const S *)b;
    const AL fill = SET(0);
    const int stream = 0;  /* the sum is read again at once */
#define STEP(result, value, PIECE) result = ADD(value, PIECE##_OTHER);
#define WHOLE_OTHER LOAD(other + i)
#define PART_OTHER LOAD_PART(other + i, part, fill)
    FOR_RUN((S *)y, n)
#undef STEP
#undef WHOLE_OTHER
#undef PART_OTHER
}

#undef WHOLE_PARAMETER
#undef HALVES_PARAMETER
#undef PART_PARAMETER
#undef WHOLE_DY
#undef HALVES_DY
#undef PART_DY
#undef ACTIVATION_BACKWARD
#undef FOR_RUN
