/* The moments of units: sums of a tile, and the probe. Included by common.h, once per dtype.
 *
 * A tile is `runs` runs of n contiguous elements, `stride` bytes apart.
 */

/* ---- prefetch ---- */

INLINE void FN(prefetch_pair)(const char *x) {
    for (size_t i = 0; i < 2 * LANES * sizeof(S); i += LANES_ALIGN) __builtin_prefetch(x + i, 0, 2);
}

/* Prefetches the cache lines `distance` bytes after the vector at p + i, to be read or to be written. Two uses: the
 * next segment of a unit whose segments lie apart, which hardware prefetchers do not follow; the next unit, while the
 * results of this one leave memory bandwidth unused. Captures i. */
#define PREFETCH_VECTOR(p, distance, for_write)                                                  \
    _Pragma("GCC unroll 4") for (size_t line = 0; line < LANES * sizeof(S); line += LANES_ALIGN) \
        __builtin_prefetch((const char *)((p) + i) + (distance) + line, for_write, 2)
#define PREFETCH_READ(p, distance) PREFETCH_VECTOR(p, distance, 0)
#define PREFETCH_WRITE(p, distance) PREFETCH_VECTOR(p, distance, 1)

/* ---- forward: sums ---- */

/* Vectors of the sums of d and of d*d over a tile, d = x - shift. UNCENTRED: only d*d, about 0; CENTRED: both about 0;
 * SHIFTED: both about the shift; MAGNITUDES, LARGEST: of |x|, or the largest, instead of d*d. Two accumulators of each
 * sum hide the latency of additions; they are added to the running sum every CASCADE elements, so that an outlier meets
 * few other elements. Sums begin at -0.0, the number that leaves every addend as it is, +0.0 included. */
INLINE void FN(sums_any)(const char *source, ptrdiff_t runs, ptrdiff_t stride, ptrdiff_t n,
                         double shift, VECTOR *sum_d_out, VECTOR *sum_dd_out, const int centred,
                         const ptrdiff_t prefetch_segments) {
    const ptrdiff_t prefetch_bytes = prefetch_segments * stride;
    const VECTOR padding = SET(centred == SHIFTED ? shift : 0), zero = SET(-0.0);
    VECTOR d0 = zero, d1 = zero, dd0 = zero, dd1 = zero, sum_d = zero, sum_dd = zero;
    const int with_d = centred == CENTRED || centred == SHIFTED;
    ptrdiff_t pending = 0; /* elements in d0 .. dd1 */
#define TERM(d) (centred == MAGNITUDES || centred == LARGEST ? MAGNITUDE(d) : MUL(d, d))
#define COMBINED(a, b) (centred == LARGEST ? LARGER(a, b) : ADD(a, b))
#define SUM_STEP(k, value) /* adds a vector to accumulators k */ \
    {                                                            \
        VECTOR d = value;                                        \
        if (centred == SHIFTED) d = SUB(d, padding);             \
        if (with_d) d##k = ADD(d##k, d);                         \
        dd##k = COMBINED(dd##k, TERM(d));                        \
    }
#define SUM_PAIR(LOAD_VECTOR) /* two vectors at x + i */                                  \
    {                                                                                     \
        if (prefetch_segments) FN(prefetch_pair)((const char *)(x + i) + prefetch_bytes); \
        SUM_STEP(0, LOAD_VECTOR(x + i))                                                   \
        SUM_STEP(1, LOAD_VECTOR(x + i + LANES))                                           \
    }
#define FLUSH_ACCUMULATORS                            \
    {                                                 \
        if (with_d) sum_d = ADD(sum_d, ADD(d0, d1));  \
        sum_dd = COMBINED(sum_dd, COMBINED(dd0, dd1)); \
        d0 = d1 = dd0 = dd1 = zero;                   \
        pending = 0;                                  \
    }
    for (ptrdiff_t run = 0; run < runs; ++run) {
        const S *x = (const S *)(source + run * stride);
        const int halves = with_d && SPLITS_LINE(x);
        ptrdiff_t i = 0;
        while (i + CASCADE <= n) {
            const ptrdiff_t stop = i + CASCADE;
            if (halves) for (; i < stop; i += 2 * LANES) SUM_PAIR(LOAD_HALVES)
            else for (; i < stop; i += 2 * LANES) SUM_PAIR(LOAD)
            FLUSH_ACCUMULATORS
        }
        pending += n - i;
        if (halves) for (; i + 2 * LANES <= n; i += 2 * LANES) SUM_PAIR(LOAD_HALVES)
        else for (; i + 2 * LANES <= n; i += 2 * LANES) SUM_PAIR(LOAD)
        if (prefetch_segments && i < n) FN(prefetch_pair)((const char *)(x + i) + prefetch_bytes);
        if (i + LANES <= n) {
            SUM_STEP(0, LOAD(x + i))
            i += LANES;
        }
        if (i < n) SUM_STEP(1, LOAD_PARTIAL(x + i, n - i, padding))
        if (pending >= CASCADE) FLUSH_ACCUMULATORS
    }
    FLUSH_ACCUMULATORS
#undef FLUSH_ACCUMULATORS
#undef SUM_PAIR
#undef SUM_STEP
#undef TERM
#undef COMBINED
    *sum_d_out = sum_d;
    *sum_dd_out = sum_dd;
}

/* out = {sum of d, sum of d*d}; terms: UNCENTRED, CENTRED (or SHIFTED, where the shift is not 0), MAGNITUDES, LARGEST */
static void FN(sums)(const char *x, ptrdiff_t runs, ptrdiff_t stride, ptrdiff_t n, double shift,
                     int terms, ptrdiff_t prefetch_segments, double *out) {
    VECTOR sum_d, sum_dd;
#define SUMS(centred, segments) FN(sums_any)(x, runs, stride, n, shift, &sum_d, &sum_dd, centred, segments)
    if (MOMENTS_ALONE) {
        if (shift == 0) SUMS(CENTRED, 0);
        else SUMS(SHIFTED, 0);
    }
    else if (terms == UNCENTRED) SUMS(UNCENTRED, 0);
    else if (terms == MAGNITUDES || terms == LARGEST) SUMS(terms, 0);
    else if (shift == 0 && prefetch_segments) SUMS(CENTRED, prefetch_segments);
    else if (shift == 0) SUMS(CENTRED, 0);
    else if (prefetch_segments) SUMS(SHIFTED, prefetch_segments);
    else SUMS(SHIFTED, 0);
#undef SUMS
    out[0] = HSUM(sum_d);
    out[1] = terms == LARGEST ? HMAX(sum_dd) : HSUM(sum_dd);
}

/* The probe: the sums of the first elements about 0. They decide whether the sums of all elements need a shift. */
#define PROBE_SIZE(n) ((n) < PROBE_VECTORS * LANES ? (n) : PROBE_VECTORS * LANES)
INLINE void FN(probe_sums)(const char *x, ptrdiff_t n, VECTOR *sum_d, VECTOR *sum_dd) {
    if (n >= PROBE_VECTORS * LANES) FN(sums_any)(x, 1, 0, PROBE_VECTORS * LANES, 0, sum_d, sum_dd, CENTRED, 0);
    else FN(sums_any)(x, 1, 0, n, 0, sum_d, sum_dd, CENTRED, 0);
}

/* The shift that a probe of `count` elements suggests: its mean, or 0 where |mean| is at most the deviation. */
INLINE double FN(shift_from_probe)(double count, double sum_d, double sum_dd) {
    return probe_needs_shift(count, sum_d, sum_dd) ? (double)(A)(sum_d / count) : 0;
}

static double FN(probe)(const char *x, ptrdiff_t n) {
    VECTOR sum_d, sum_dd;
    FN(probe_sums)(x, n, &sum_d, &sum_dd);
    return FN(shift_from_probe)((double)PROBE_SIZE(n), HSUM(sum_d), HSUM(sum_dd));
}
