/* Windows: rows are channels (channels first) or positions, shifted (channels last). A part of
 * tile_loops.h. */

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
#define SLOPE(part) (activation == 2 ? FN(vector_parameter)(w->slopes, AT, part) : slope)
/* In what is kept, and in the result. */
#define KEEP(p, v, part)                                                                         \
    FN(vector_keep)((A *)((p) + kept), AT, part, v);
#define WRITE(K, part, result)                                                                   \
    {                                                                                            \
        if (K == 2) STORE_PAIR((S *)y + i, result[0], result[K - 1]);                            \
        else FN(vector_store)(y, i, part, result[0], 0);                                          \
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
        EACH(K) sum[k] = ADD(sum[k], FN(vector_parameter)(w->rows[row] + kept, AT, part));
}

/* scale = k + alpha * the sum of squares. A window's last row may be `fresh`: it is squared here, and
 * its squares are kept for other windows. */
INLINE void FN(window_scale)(const WindowTile *w, ptrdiff_t kept, ptrdiff_t i, ptrdiff_t part, AL *scale,
                             const int K) {
    const AL alpha = SET(w->alpha), constant = SET(w->k);
    FN(window_sum)(w, kept, i, part, scale, K);
    if (w->newest)
        EACH(K) {
            const AL v = FN(vector_load)(w->newest, AT, part, SET(0)), square = MUL(v, v);
            KEEP(w->squares, square, part)
            scale[k] = ADD(scale[k], square);
        }
    EACH(K) scale[k] = ADD(constant, MUL(alpha, scale[k]));
}

/* Any power; out of line, as two of them side by side want more registers than there are. */
static __attribute__((noinline)) AL FN(any_response)(AL scale, double beta) {
    return CAT(A, negative_power)(scale, beta);
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

/* The gradient through the activation; x * power is its input, to a factor that is positive. */
#define ACTIVATION_BACKWARD(g, v, p, part) (activation ? FN(activation_backward)(g, MUL(v, p), SLOPE(part), NULL) : (g))

/* squares[i] = x[i]**2 */
static void FN(window_squares)(const WindowTile *w) {
#define LANE(K, part)                                                                            \
    EACH(K) {                                                                                    \
        const AL v = FN(vector_load)(x, AT, part, SET(0));                                        \
        KEEP(w->squares, MUL(v, v), part)                                                        \
    }
    FOR_LANES(LANE)
#undef LANE
}

/* y = x * (k + alpha * sum of squares) ** -beta, then the activation. */
INLINE void FN(window_apply_any)(const WindowTile *tile, double beta, const int activation) {
    const WindowTile own = *tile, *const w = &own; /* which no store can change */
    const AL slope = SET(w->slope);
#define LANE(K, part)                                                                            \
    {                                                                                            \
        AL scale[2], z[2];                                                                       \
        AHEAD(K, x, w->x_prefetch)                                                                  \
        AHEAD(K, y, w->y_prefetch)                                                                  \
        FN(window_scale)(w, kept, i, part, scale, K);                                            \
        EACH(K) {                                                                                \
            z[k] = MUL(FN(vector_load)(x, AT, part, SET(0)), FN(response)(scale[k], beta));       \
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
INLINE void FN(window_prepare_any)(const WindowTile *tile, double beta, const int activation) {
    const WindowTile own = *tile, *const w = &own; /* which no store can change */
    const AL slope = SET(w->slope);
#define LANE(K, part)                                                                            \
    {                                                                                            \
        AL scale[2];                                                                             \
        AHEAD(K, x, w->x_prefetch)                                                                  \
        AHEAD(K, dy, w->dy_prefetch)                                                                \
        AHEAD(K, y, w->y_prefetch)                                                                  \
        FN(window_scale)(w, kept, i, part, scale, K);                                            \
        EACH(K) {                                                                                \
            const AL inverse = CAT(A, div)(SET(1), scale[k]), p = FN(response)(scale[k], beta);  \
            const AL v = FN(vector_load)(x, AT, part, SET(0));                                    \
            const AL g = ACTIVATION_BACKWARD(FN(vector_load)(dy, AT, part, SET(0)), v, p, part);              \
            KEEP(w->scale_pow, p, part)                                                              \
            KEEP(w->grad_term, MUL(MUL(g, v), MUL(p, inverse)), part)                               \
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
static void FN(window_grad)(const WindowTile *tile) {
    const WindowTile own = *tile, *const w = &own; /* which no store can change */
    const AL c = SET(2 * w->alpha * w->beta), slope = SET(w->slope);
    const int activation = w->activation;
#define LANE(K, part)                                                                            \
    {                                                                                            \
        AL sum[2];                                                                               \
        FN(window_sum)(w, kept, i, part, sum, K);                                                \
        EACH(K) {                                                                                \
            const AL v = FN(vector_load)(x, AT, part, SET(0));                                    \
            const AL p = FN(vector_parameter)(w->scale_pow + kept, AT, part);                            \
            const AL g = ACTIVATION_BACKWARD(FN(vector_load)(dy, AT, part, SET(0)), v, p, part);              \
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
#undef ACTIVATION_BACKWARD
#undef KEEP
#undef WRITE
#undef AHEAD
