/* Units: what is applied to a tile, forward, and backward with its sums. Included by common.h, once per dtype, after
 * unit_sums.h.
 *
 * A tile is `runs` runs of n contiguous elements, `stride` bytes apart. "elementwise": the unit is a row whose
 * parameters differ from element to element; the first element of the tile is element `at` of the row.
 */

/* ---- forward: apply ---- */

/* ((x - mean_hi) - mean_lo) * scale * weight + bias, with the terms that the variant has. mean_lo is subtracted only
 * where the weight varies within a unit; else it is part of the bias. */
INLINE VECTOR FN(normalized)(VECTOR x, VECTOR mean_hi, VECTOR mean_lo, VECTOR scale, VECTOR weight, VECTOR bias,
                             const int elementwise, const int centred, const int biased) {
    if (centred == SHIFTED) x = SUB(x, mean_hi);
    if (centred && elementwise) x = SUB(x, mean_lo);
    x = MUL(x, elementwise ? MUL(scale, weight) : scale);
    return biased ? ADD(x, bias) : x;
}

/* The parameters of the vector at i, for the steps of FOR_RUN and for the sums; they capture i, at and partial. */
#define WHOLE_PARAMETER(p) PARAMETER(p, at + i)
#define HALVES_PARAMETER(p) PARAMETER(p, at + i)
#define PARTIAL_PARAMETER(p) PARAMETER_PARTIAL(p, at + i, partial)

/* y = the activation of z, the normalized x. */
INLINE void FN(apply_any)(const char *source, char *target, ptrdiff_t runs, ptrdiff_t x_stride,
                          ptrdiff_t y_stride, ptrdiff_t n, ptrdiff_t at, const Coefficients *coeffs,
                          const int elementwise, const int centred, const int biased,
                          const int activation, const int store) {
    const int nontemporal = store == STORE_NONTEMPORAL;
    const VECTOR mean_hi = SET(coeffs->mean_hi), mean_lo = SET(coeffs->mean_lo), scale = SET(coeffs->scale),
                 bias = SET(coeffs->bias), slope = SET(coeffs->slope), low = SET(coeffs->low),
                 high = SET(coeffs->high), padding = mean_hi;
    /* copies: for all the compiler knows, a store to y changes what coeffs points to */
    const void *const weights = coeffs->weights, *const biases = coeffs->biases, *const slopes = coeffs->slopes;
    const ptrdiff_t y_prefetch = coeffs->prefetch_segments * y_stride, x_prefetch = coeffs->prefetch_bytes;
    for (ptrdiff_t run = 0; run < runs; ++run) {
        const S *x = (const S *)(source + run * x_stride);
        S *y = (S *)(target + run * y_stride);
#define APPLY_STEP(result, value, PIECE)                                                                    \
    {                                                                                                       \
        VECTOR z = FN(normalized)(value, mean_hi, mean_lo, scale,                                           \
                                  elementwise ? PIECE##_PARAMETER(weights) : scale,                         \
                                  elementwise && biased ? PIECE##_PARAMETER(biases) : bias,                 \
                                  elementwise, centred, biased);                                            \
        if (nontemporal) PREFETCH_READ(x, x_prefetch);                                                      \
        if (store == STORE_PREFETCHED) PREFETCH_WRITE(y, y_prefetch);                                       \
        result = FN(activated)(z, elementwise && activation == ACT_SLOPES ? PIECE##_PARAMETER(slopes)       \
                                                                          : slope, low, high, activation);  \
    }
        FOR_RUN(y, n, APPLY_STEP)
#undef APPLY_STEP
    }
}

/* Whether a run at y has non-temporal stores: it is long enough, and its address a multiple of the element size. */
INLINE int FN(run_fits_nontemporal)(const char *y, ptrdiff_t n, const Coefficients *coeffs) {
    const ptrdiff_t lines = coeffs->apart ? NONTEMPORAL_APART_MIN_LINES : NONTEMPORAL_RUN_MIN_LINES;
    return coeffs->nontemporal && n * (ptrdiff_t)sizeof(S) >= lines * LANES_ALIGN && (uintptr_t)y % sizeof(S) == 0;
}

INLINE void FN(apply_centred)(const char *x, char *y, ptrdiff_t runs, ptrdiff_t x_stride, ptrdiff_t y_stride,
                              ptrdiff_t n, const Coefficients *coeffs, const int centred) {
#define APPLY(store) FN(apply_any)(x, y, runs, x_stride, y_stride, n, 0, coeffs, 0, centred, 1, ACT_NONE, store)
    if (FN(run_fits_nontemporal)(y, n, coeffs)) APPLY(STORE_NONTEMPORAL);
    else if (coeffs->prefetch_segments) APPLY(STORE_PREFETCHED);
    else APPLY(STORE_PLAIN);
#undef APPLY
}

static void FN(apply)(const char *x, char *y, ptrdiff_t runs, ptrdiff_t x_stride, ptrdiff_t y_stride,
                      ptrdiff_t n, const Coefficients *coeffs, int activation) {
    if (activation == ACT_CLIP)
        FN(apply_any)(x, y, runs, x_stride, y_stride, n, 0, coeffs, 0, SHIFTED, 1, ACT_CLIP, STORE_PLAIN);
    else if (activation)
        FN(apply_any)(x, y, runs, x_stride, y_stride, n, 0, coeffs, 0, SHIFTED, 1, ACT_SLOPE, STORE_PLAIN);
    else if (coeffs->mean_hi == 0) FN(apply_centred)(x, y, runs, x_stride, y_stride, n, coeffs, CENTRED);
    else FN(apply_centred)(x, y, runs, x_stride, y_stride, n, coeffs, SHIFTED);
}

/* The coefficients of one unit of a batch. */
INLINE Coefficients FN(coefficients_at)(const CoefficientArrays *arrays, ptrdiff_t unit, const int activation,
                                        const int backward) {
    Coefficients coeffs = {0};
    coeffs.mean_hi = arrays->mean_hi[unit];
    coeffs.scale = arrays->scale[unit];
    if (activation || !backward) coeffs.bias = arrays->bias[unit];
    coeffs.low = arrays->low;
    coeffs.high = arrays->high;
    if (has_slopes(activation)) coeffs.slope = arrays->slope[unit];
    if (backward) {
        coeffs.dev_coeff = arrays->dev_coeff[unit];
        coeffs.grad_offset = arrays->grad_offset[unit];
        coeffs.rstd = arrays->rstd[unit];
    }
    return coeffs;
}

/* A batch: units whose runs lie side by side, `step` bytes apart. Run after run, all units of it: memory is read and
 * written in the order of its addresses. */
static void FN(apply_batch)(const char *x, char *y, ptrdiff_t runs, ptrdiff_t x_stride, ptrdiff_t y_stride,
                            ptrdiff_t units, ptrdiff_t x_step, ptrdiff_t y_step, ptrdiff_t n,
                            const CoefficientArrays *arrays, int activation) {
#define APPLY_TO_UNITS(centred, activation)                                                                      \
    for (ptrdiff_t run = 0; run < runs; ++run)                                                                   \
        for (ptrdiff_t unit = 0; unit < units; ++unit) {                                                         \
            const Coefficients coeffs = FN(coefficients_at)(arrays, unit, activation, 0);                        \
            FN(apply_any)(x + run * x_stride + unit * x_step, y + run * y_stride + unit * y_step, 1, 0, 0, n, 0, \
                          &coeffs, 0, centred, 1, activation, STORE_PLAIN);                                      \
        }
    if (activation == ACT_CLIP) APPLY_TO_UNITS(SHIFTED, ACT_CLIP)
    else if (activation) APPLY_TO_UNITS(SHIFTED, ACT_SLOPE)
    else if (arrays->shifted) APPLY_TO_UNITS(SHIFTED, ACT_NONE)
    else APPLY_TO_UNITS(CENTRED, ACT_NONE)
#undef APPLY_TO_UNITS
}

/* Elements at .. at + n of a row with a weight, and perhaps a bias, per element. With an activation, and without a
 * bias, a mean that is 0 is subtracted as well, which changes nothing. */
static void FN(apply_elementwise)(const char *x, char *y, ptrdiff_t n, ptrdiff_t at, const Coefficients *coeffs,
                                  int activation) {
    const int biased = coeffs->biases != NULL, centred = coeffs->mean_hi != 0 || coeffs->mean_lo != 0;
    const int nontemporal = FN(run_fits_nontemporal)(y, n, coeffs);
#define APPLY(centred, biased, activation, store) \
    FN(apply_any)(x, y, 1, 0, 0, n, at, coeffs, 1, centred, biased, activation, store)
#define APPLY_PLAIN(centred, biased)                                          \
    {                                                                         \
        if (nontemporal) APPLY(centred, biased, ACT_NONE, STORE_NONTEMPORAL); \
        else APPLY(centred, biased, ACT_NONE, STORE_PLAIN);                   \
    }
    if (activation == ACT_CLIP) APPLY(SHIFTED, biased, ACT_CLIP, STORE_PLAIN);
    else if (activation == ACT_SLOPES) APPLY(SHIFTED, biased, ACT_SLOPES, STORE_PLAIN);
    else if (activation) APPLY(SHIFTED, biased, ACT_SLOPE, STORE_PLAIN);
    else if (biased && coeffs->mean_hi == 0) APPLY_PLAIN(CENTRED, 1)
    else if (biased) APPLY_PLAIN(SHIFTED, 1)
    else if (centred) APPLY_PLAIN(SHIFTED, 0)
    else APPLY_PLAIN(UNCENTRED, 0)
#undef APPLY_PLAIN
#undef APPLY
}

/* ---- backward ---- */

/* g becomes the gradient of z, the input of the activation; z is computed again from d = x - mean_hi, as the gradient
 * depends on where it lies. Captures activation, elementwise, the coefficients as vectors, coeffs and sum_slope_out. */
#define ACTIVATION_BACKWARD(g, d, PIECE)                                                                            \
    if (activation) {                                                                                               \
        VECTOR z = elementwise ? MUL(SUB(d, mean_lo), MUL(scale, PIECE##_PARAMETER(coeffs->weights)))               \
                               : MUL(d, scale);                                                                     \
        if (!elementwise) z = ADD(z, bias);                                                                         \
        else if (coeffs->biases) z = ADD(z, PIECE##_PARAMETER(coeffs->biases));                                     \
        const VECTOR z_slope = elementwise && activation == ACT_SLOPES ? PIECE##_PARAMETER(coeffs->slopes) : slope; \
        g = FN(activation_backward)(g, z, z_slope, low, high, sum_slope_out, activation);                           \
    }

/* The vector of dy at i; they capture dy, i and partial. */
#define WHOLE_DY LOAD(dy + i)
#define HALVES_DY LOAD_HALVES(dy + i)
#define PARTIAL_DY LOAD_PARTIAL(dy + i, partial, SET(0))

/* Vectors of the sums of g, of g*d, of d (float64 only) and of dy*z where z <= 0, the gradient of the slope.
 * d = x - mean_hi (SHIFTED) or x. SIGNS: the sum of d*d takes the place of that of g, and of g*x that of g*d. */
INLINE void FN(grad_sums_any)(const char *x_source, const char *dy_source, ptrdiff_t runs,
                              ptrdiff_t x_stride, ptrdiff_t dy_stride, ptrdiff_t n, ptrdiff_t at,
                              const Coefficients *coeffs, VECTOR *const out[4], const int elementwise,
                              const int centred, const int activation, const ptrdiff_t prefetch_segments) {
    const ptrdiff_t x_prefetch = prefetch_segments * x_stride, dy_prefetch = prefetch_segments * dy_stride;
    const VECTOR mean_hi = SET(coeffs->mean_hi), mean_lo = SET(coeffs->mean_lo), scale = SET(coeffs->scale),
                 bias = SET(coeffs->bias), slope = SET(coeffs->slope), low = SET(coeffs->low),
                 high = SET(coeffs->high), padding = centred == SIGNS ? SET(0) : mean_hi;
    const VECTOR zero = SET(-0.0);
    VECTOR g0 = zero, g1 = zero, gd0 = zero, gd1 = zero, sum_d = zero, sum_slope = zero, *sum_slope_out = &sum_slope;
    VECTOR sum_g = zero, sum_gd = zero;
    ptrdiff_t pending = 0; /* elements in g0 .. gd1 */
#define GRAD_SUM_STEP(k, value, PIECE) /* adds a vector to accumulators k */ \
    {                                                                        \
        const VECTOR d = centred == SHIFTED ? SUB(value, mean_hi) : value;   \
        VECTOR g = PIECE##_DY;                                               \
        ACTIVATION_BACKWARD(g, d, PIECE)                                     \
        if (elementwise) g = MUL(g, PIECE##_PARAMETER(coeffs->weights));     \
        const VECTOR sign = SIGN_OF_LARGE(d, mean_hi);                       \
        g##k = ADD(g##k, centred == SIGNS ? MUL(sign, sign) : g);            \
        gd##k = ADD(gd##k, MUL(g, d));                                       \
        if (SUMS_DEVIATIONS) sum_d = ADD(sum_d, d);                          \
    }
#define PREFETCH_SEGMENT                                         \
    if (prefetch_segments) {                                     \
        FN(prefetch_pair)((const char *)(x + i) + x_prefetch);   \
        FN(prefetch_pair)((const char *)(dy + i) + dy_prefetch); \
    }
#define GRAD_SUM_PAIR(LOAD_VECTOR, PIECE) /* two vectors at i */ \
    {                                                            \
        PREFETCH_SEGMENT                                         \
        GRAD_SUM_STEP(0, LOAD_VECTOR(x + i), PIECE)              \
        i += LANES;                                              \
        GRAD_SUM_STEP(1, LOAD_VECTOR(x + i), PIECE)              \
        i += LANES;                                              \
    }
#define FLUSH_ACCUMULATORS                   \
    {                                        \
        sum_g = ADD(sum_g, ADD(g0, g1));     \
        sum_gd = ADD(sum_gd, ADD(gd0, gd1)); \
        g0 = g1 = gd0 = gd1 = zero;          \
        pending = 0;                         \
    }
    for (ptrdiff_t run = 0; run < runs; ++run) {
        const S *x = (const S *)(x_source + run * x_stride), *dy = (const S *)(dy_source + run * dy_stride);
        const int halves = (!elementwise || n > PROBE_VECTORS * LANES) && (SPLITS_LINE(x) || SPLITS_LINE(dy));
        ptrdiff_t i = 0;
        while (i + CASCADE <= n) {
            const ptrdiff_t stop = i + CASCADE;
            if (halves) while (i < stop) GRAD_SUM_PAIR(LOAD_HALVES, HALVES)
            else while (i < stop) GRAD_SUM_PAIR(LOAD, WHOLE)
            FLUSH_ACCUMULATORS
        }
        pending += n - i;
        if (halves) while (i + 2 * LANES <= n) GRAD_SUM_PAIR(LOAD_HALVES, HALVES)
        else while (i + 2 * LANES <= n) GRAD_SUM_PAIR(LOAD, WHOLE)
        if (i < n) PREFETCH_SEGMENT
        if (i + LANES <= n) {
            GRAD_SUM_STEP(0, LOAD(x + i), WHOLE)
            i += LANES;
        }
        const ptrdiff_t partial = n - i;
        if (partial > 0) GRAD_SUM_STEP(1, LOAD_PARTIAL(x + i, partial, padding), PARTIAL)
        if (pending >= CASCADE) FLUSH_ACCUMULATORS
    }
    FLUSH_ACCUMULATORS
#undef FLUSH_ACCUMULATORS
#undef GRAD_SUM_PAIR
#undef PREFETCH_SEGMENT
#undef GRAD_SUM_STEP
    (void)mean_lo, (void)scale, (void)bias, (void)slope, (void)sum_slope_out; /* unused without an activation */
    (void)low, (void)high;                                                    /* unused without bounds */
    *out[0] = sum_g;
    *out[1] = sum_gd;
    if (SUMS_DEVIATIONS) *out[2] = sum_d;
    if (has_slopes(activation)) *out[3] = sum_slope;
}

/* out[0..3] += the horizontal sums */
INLINE void FN(grad_sums_hsum)(const char *x, const char *dy, ptrdiff_t runs, ptrdiff_t x_stride,
                               ptrdiff_t dy_stride, ptrdiff_t n, ptrdiff_t at, const Coefficients *coeffs,
                               double *out, const int elementwise, const int centred, const int activation,
                               const ptrdiff_t prefetch_segments) {
    VECTOR sums[4], *const sums_out[4] = {sums, sums + 1, sums + 2, sums + 3};
    FN(grad_sums_any)(x, dy, runs, x_stride, dy_stride, n, at, coeffs, sums_out, elementwise, centred, activation,
                      prefetch_segments);
    out[0] += HSUM(sums[0]);
    out[1] += HSUM(sums[1]);
    if (SUMS_DEVIATIONS) out[2] += HSUM(sums[2]);
    if (has_slopes(activation)) out[3] += HSUM(sums[3]);
}

static void FN(grad_sums)(const char *x, const char *dy, ptrdiff_t runs, ptrdiff_t x_stride,
                          ptrdiff_t dy_stride, ptrdiff_t n, const Coefficients *coeffs, int activation,
                          double *out) {
    const ptrdiff_t prefetch_segments = coeffs->prefetch_segments;
#define GRAD_SUMS(centred, activation, segments) \
    FN(grad_sums_hsum)(x, dy, runs, x_stride, dy_stride, n, 0, coeffs, out, 0, centred, activation, segments)
    if (coeffs->signs) GRAD_SUMS(SIGNS, ACT_NONE, 0);
    else if (activation == ACT_CLIP) GRAD_SUMS(SHIFTED, ACT_CLIP, 0);
    else if (activation) GRAD_SUMS(SHIFTED, ACT_SLOPE, 0);
    else if (coeffs->mean_hi == 0 && prefetch_segments) GRAD_SUMS(CENTRED, ACT_NONE, prefetch_segments);
    else if (coeffs->mean_hi == 0) GRAD_SUMS(CENTRED, ACT_NONE, 0);
    else if (prefetch_segments) GRAD_SUMS(SHIFTED, ACT_NONE, prefetch_segments);
    else GRAD_SUMS(SHIFTED, ACT_NONE, 0);
#undef GRAD_SUMS
}

static void FN(grad_sums_elementwise)(const char *x, const char *dy, ptrdiff_t n, ptrdiff_t at,
                                      const Coefficients *coeffs, int activation, double *out) {
#define GRAD_SUMS(centred, activation) \
    FN(grad_sums_hsum)(x, dy, 1, 0, 0, n, at, coeffs, out, 1, centred, activation, 0)
    if (activation == ACT_CLIP) GRAD_SUMS(SHIFTED, ACT_CLIP);
    else if (activation == ACT_SLOPES) GRAD_SUMS(SHIFTED, ACT_SLOPES);
    else if (activation) GRAD_SUMS(SHIFTED, ACT_SLOPE);
    else if (coeffs->mean_hi == 0) GRAD_SUMS(CENTRED, ACT_NONE);
    else GRAD_SUMS(SHIFTED, ACT_NONE);
#undef GRAD_SUMS
}

/* dx = (g * scale - grad_offset) - d * rstd * dev_coeff. d * rstd comes first: rstd * dev_coeff may underflow. */
INLINE void FN(grad_apply_any)(const char *x_source, const char *dy_source, char *dx_target,
                               ptrdiff_t runs, ptrdiff_t x_stride, ptrdiff_t dy_stride,
                               ptrdiff_t dx_stride, ptrdiff_t n, const Coefficients *coeffs, const int centred,
                               const int activation, const int store) {
    const int nontemporal = store == STORE_NONTEMPORAL;
    enum { elementwise = 0, at = 0 };
    const VECTOR mean_hi = SET(coeffs->mean_hi), mean_lo = SET(coeffs->mean_lo), scale = SET(coeffs->scale),
                 bias = SET(coeffs->bias), slope = SET(coeffs->slope), low = SET(coeffs->low),
                 high = SET(coeffs->high), dev_coeff = SET(coeffs->dev_coeff),
                 grad_offset = SET(coeffs->grad_offset), rstd = SET(coeffs->rstd), padding = mean_hi;
    VECTOR *const sum_slope_out = 0;
    const ptrdiff_t dx_prefetch = coeffs->prefetch_segments * dx_stride, input_prefetch = coeffs->prefetch_bytes;
    for (ptrdiff_t run = 0; run < runs; ++run) {
        const S *x = (const S *)(x_source + run * x_stride), *dy = (const S *)(dy_source + run * dy_stride);
        S *dx = (S *)(dx_target + run * dx_stride);
#define GRAD_STEP(result, value, PIECE)                                                           \
    {                                                                                             \
        const VECTOR d = centred == SHIFTED ? SUB(value, mean_hi)                                 \
                         : centred == SIGNS ? SIGN_OF_LARGE(value, mean_hi) : value;              \
        VECTOR g = PIECE##_DY;                                                                    \
        if (nontemporal) { PREFETCH_READ(dy, input_prefetch); PREFETCH_READ(x, input_prefetch); } \
        if (store == STORE_PREFETCHED) PREFETCH_WRITE(dx, dx_prefetch);                           \
        ACTIVATION_BACKWARD(g, d, PIECE)                                                          \
        result = SUB(SUB(MUL(g, scale), grad_offset), MUL(MUL(d, rstd), dev_coeff));              \
    }
        FOR_RUN(dx, n, GRAD_STEP)
#undef GRAD_STEP
    }
    (void)mean_lo, (void)scale, (void)bias, (void)slope, (void)sum_slope_out; /* unused without an activation */
    (void)low, (void)high;                                                    /* unused without bounds */
}

INLINE void FN(grad_apply_centred)(const char *x, const char *dy, char *dx, ptrdiff_t runs, ptrdiff_t x_stride,
                                   ptrdiff_t dy_stride, ptrdiff_t dx_stride, ptrdiff_t n,
                                   const Coefficients *coeffs, const int centred) {
#define GRAD_APPLY(store) \
    FN(grad_apply_any)(x, dy, dx, runs, x_stride, dy_stride, dx_stride, n, coeffs, centred, ACT_NONE, store)
    if (FN(run_fits_nontemporal)(dx, n, coeffs)) GRAD_APPLY(STORE_NONTEMPORAL);
    else if (coeffs->prefetch_segments) GRAD_APPLY(STORE_PREFETCHED);
    else GRAD_APPLY(STORE_PLAIN);
#undef GRAD_APPLY
}

static void FN(grad_apply)(const char *x, const char *dy, char *dx, ptrdiff_t runs, ptrdiff_t x_stride,
                           ptrdiff_t dy_stride, ptrdiff_t dx_stride, ptrdiff_t n, const Coefficients *coeffs,
                           int activation) {
    if (coeffs->signs)
        FN(grad_apply_any)(x, dy, dx, runs, x_stride, dy_stride, dx_stride, n, coeffs, SIGNS, ACT_NONE, STORE_PLAIN);
    else if (activation == ACT_CLIP)
        FN(grad_apply_any)(x, dy, dx, runs, x_stride, dy_stride, dx_stride, n, coeffs, SHIFTED, ACT_CLIP, STORE_PLAIN);
    else if (activation)
        FN(grad_apply_any)(x, dy, dx, runs, x_stride, dy_stride, dx_stride, n, coeffs, SHIFTED, ACT_SLOPE, STORE_PLAIN);
    else if (coeffs->mean_hi == 0)
        FN(grad_apply_centred)(x, dy, dx, runs, x_stride, dy_stride, dx_stride, n, coeffs, CENTRED);
    else FN(grad_apply_centred)(x, dy, dx, runs, x_stride, dy_stride, dx_stride, n, coeffs, SHIFTED);
}

/* dx of a batch of units, in the order of memory (see apply_batch). */
static void FN(grad_apply_batch)(const char *x, const char *dy, char *dx, ptrdiff_t runs, ptrdiff_t x_stride,
                                 ptrdiff_t dy_stride, ptrdiff_t dx_stride, ptrdiff_t units, ptrdiff_t x_step,
                                 ptrdiff_t dy_step, ptrdiff_t dx_step, ptrdiff_t n, const CoefficientArrays *arrays,
                                 int activation) {
#define GRAD_APPLY_TO_UNITS(centred, activation)                                                          \
    for (ptrdiff_t run = 0; run < runs; ++run)                                                            \
        for (ptrdiff_t unit = 0; unit < units; ++unit) {                                                  \
            const Coefficients coeffs = FN(coefficients_at)(arrays, unit, activation, 1);                 \
            FN(grad_apply_any)(x + run * x_stride + unit * x_step, dy + run * dy_stride + unit * dy_step, \
                               dx + run * dx_stride + unit * dx_step, 1, 0, 0, 0, n, &coeffs, centred,    \
                               activation, STORE_PLAIN);                                                  \
        }
    if (activation == ACT_CLIP) GRAD_APPLY_TO_UNITS(SHIFTED, ACT_CLIP)
    else if (activation) GRAD_APPLY_TO_UNITS(SHIFTED, ACT_SLOPE)
    else if (arrays->shifted) GRAD_APPLY_TO_UNITS(SHIFTED, ACT_NONE)
    else GRAD_APPLY_TO_UNITS(CENTRED, ACT_NONE)
#undef GRAD_APPLY_TO_UNITS
}

/* The sums of BATCH_UNITS units at most, each over all its runs: out[sum * BATCH_UNITS + unit], with the four sums of
 * grad_sums. */
static void FN(grad_sums_batch)(const char *x, const char *dy, ptrdiff_t runs, ptrdiff_t x_stride,
                                ptrdiff_t dy_stride, ptrdiff_t units, ptrdiff_t x_step, ptrdiff_t dy_step,
                                ptrdiff_t n, const CoefficientArrays *arrays, int activation, double *out) {
    VECTOR sums[4][BATCH_UNITS];
#define GRAD_SUMS_OF_UNITS(centred, activation)                                                                       \
    for (ptrdiff_t unit = 0; unit < units; ++unit) {                                                                  \
        const Coefficients coeffs = FN(coefficients_at)(arrays, unit, activation, 0);                                 \
        VECTOR *const sums_out[4] = {&sums[0][unit], &sums[1][unit], &sums[2][unit], &sums[3][unit]};                 \
        FN(grad_sums_any)(x + unit * x_step, dy + unit * dy_step, runs, x_stride, dy_stride, n, 0, &coeffs, sums_out, \
                          0, centred, activation, 0);                                                                 \
    }
    if (activation == ACT_CLIP) GRAD_SUMS_OF_UNITS(SHIFTED, ACT_CLIP)
    else if (activation) GRAD_SUMS_OF_UNITS(SHIFTED, ACT_SLOPE)
    else if (arrays->shifted) GRAD_SUMS_OF_UNITS(SHIFTED, ACT_NONE)
    else GRAD_SUMS_OF_UNITS(CENTRED, ACT_NONE)
#undef GRAD_SUMS_OF_UNITS
    for (int sum = 0; sum < 4; ++sum)
        if (sum < 2 || (sum == 2 && SUMS_DEVIATIONS) || (sum == 3 && has_slopes(activation)))
            CAT(A, hsum_all)(sums[sum], units, out + sum * BATCH_UNITS);
}

/* ---- y = x + other, with plain stores: the sum is read again at once ---- */

static void FN(add)(const char *x_source, const char *other_source, char *y, ptrdiff_t n) {
    const S *x = (const S *)x_source, *other = (const S *)other_source;
    const VECTOR padding = SET(0);
    const int nontemporal = 0;
#define ADD_STEP(result, value, PIECE) result = ADD(value, PIECE##_OTHER);
#define WHOLE_OTHER LOAD(other + i)
#define PARTIAL_OTHER LOAD_PARTIAL(other + i, partial, padding)
    FOR_RUN((S *)y, n, ADD_STEP)
#undef ADD_STEP
#undef WHOLE_OTHER
#undef PARTIAL_OTHER
}

#undef PREFETCH_VECTOR
#undef PREFETCH_READ
#undef PREFETCH_WRITE
#undef WHOLE_PARAMETER
#undef HALVES_PARAMETER
#undef PARTIAL_PARAMETER
#undef WHOLE_DY
#undef HALVES_DY
#undef PARTIAL_DY
#undef ACTIVATION_BACKWARD
