/* Windows: y = x * (k + alpha * sum of squares over neighbouring channels) ** -beta. Included by common.h, once per
 * dtype.
 *
 * The summed rows are channels (channels first) or positions, shifted by channels (channels last); WindowTile in
 * table.h describes them. The workspace (squares, scale_pow, grad_term, the summed rows) is of the accumulation type.
 */

/* Runs BODY(K, partial) over each run of the tile: over pairs of vectors (K = 2), a vector, a partial vector.
 * Captures tile; declares x, dy and y, the run's addresses, `offset`, its offset in the workspace in bytes, and i. */
#define FOR_TILE(BODY)                                                                          \
    for (ptrdiff_t run = 0; run < tile->runs; ++run) {                                          \
        const ptrdiff_t offset = run * tile->workspace_stride;                                  \
        const char *x = tile->x + run * tile->x_stride, *dy = tile->dy + run * tile->dy_stride; \
        char *y = tile->y + run * tile->y_stride;                                               \
        ptrdiff_t i = 0;                                                                        \
        (void)dy, (void)y;                                                                      \
        for (; i + 2 * LANES <= tile->n; i += 2 * LANES) BODY(2, 0)                             \
        if (i + LANES <= tile->n) {                                                             \
            BODY(1, 0)                                                                          \
            i += LANES;                                                                         \
        }                                                                                       \
        if (i < tile->n) BODY(1, tile->n - i)                                                   \
    }
/* Each of the K vectors at i, and the first element of vector k. */
#define FOR_VECTORS(K) for (int k = 0; k < K; ++k)
#define ELEMENT (i + k * LANES)
/* Whether there are slopes these loops learn from the tile, whether there are bounds from the constant `clip`: loops
 * that might do either would keep the operands of both in registers. */
#define FORMULA (clip ? ACT_CLIP : ACT_SLOPE)
#define SLOPE(partial) (activation == ACT_SLOPES ? FN(acc_load)(tile->slopes, ELEMENT, partial) : slope)
/* Stores vector k of the run to an array of the workspace. */
#define STORE_WORKSPACE(array, v, partial) \
    FN(acc_store)((A *)((array) + offset), ELEMENT, partial, v);
#define STORE_RESULT(K, partial, result)                              \
    {                                                                 \
        if (K == 2) STORE_PAIR((S *)y + i, result[0], result[K - 1]); \
        else FN(vector_store)(y, i, partial, result[0], 0);           \
    }
/* Prefetches the cache lines `distance` bytes after the K vectors at p + i: the arithmetic leaves memory bandwidth
 * unused. */
#define PREFETCH_NEXT(K, p, distance)                              \
    for (int k = 0; k < K; k += LANES_ALIGN / (LANES * sizeof(S))) \
        __builtin_prefetch((const char *)((const S *)(p) + ELEMENT) + (distance), 0, 3);

/* sum = the sum of the window's rows, in their order. */
INLINE void FN(window_sum)(const WindowTile *tile, ptrdiff_t offset, ptrdiff_t i, ptrdiff_t partial, VECTOR *sum,
                           const int K) {
    FOR_VECTORS(K) sum[k] = SET(0);
    for (ptrdiff_t row = 0; row < tile->count; ++row)
        FOR_VECTORS(K) sum[k] = ADD(sum[k], FN(acc_load)(tile->rows[row] + offset, ELEMENT, partial));
}

/* scale = k + alpha * the sum of squares. The window's newest row, if any, is squared here, and its squares are stored
 * in the workspace for other windows. */
INLINE void FN(window_scale)(const WindowTile *tile, ptrdiff_t offset, ptrdiff_t i, ptrdiff_t partial, VECTOR *scale,
                             const int K) {
    const VECTOR alpha = SET(tile->alpha), constant = SET(tile->k);
    FN(window_sum)(tile, offset, i, partial, scale, K);
    if (tile->newest)
        FOR_VECTORS(K) {
            const VECTOR v = FN(vector_load)(tile->newest, ELEMENT, partial, SET(0)), square = MUL(v, v);
            STORE_WORKSPACE(tile->squares, square, partial)
            scale[k] = ADD(scale[k], square);
        }
    FOR_VECTORS(K) scale[k] = ADD(constant, MUL(alpha, scale[k]));
}

/* scale ** -beta for any beta. Not inlined: two of them side by side need more registers than there are. */
static __attribute__((noinline)) VECTOR FN(scale_pow_any)(VECTOR scale, double beta) {
    return CAT(A, negative_power)(scale, beta);
}

/* Whether no scale is below the normal numbers. */
#define SCALES_ARE_NORMAL(tile) ((tile)->k >= (sizeof(A) == 4 ? FLT_MIN : DBL_MIN) && (tile)->alpha >= 0)

/* scale ** -beta, and 1 / scale where `inverse` is not NULL. `normal`: no scale is below the normal numbers. */
INLINE VECTOR FN(scale_pow)(VECTOR scale, double beta, const int normal, VECTOR *inverse) {
    if (beta == 0.75 && normal) {
        const VECTOR infinity = SET(INFINITY);
        VECTOR over;
        const VECTOR power = CAT(A, power_minus_3_4)(scale, &over);
        if (inverse) *inverse = CAT(A, zero_outside)(scale, SET(0), infinity, over);
        return CAT(A, zero_outside)(scale, SET(0), infinity, power);
    }
    if (inverse) *inverse = CAT(A, div)(SET(1), scale);
    if (beta == 0.75) {
        const VECTOR root = CAT(A, sqrt)(scale);
        return CAT(A, div)(SET(1), MUL(root, CAT(A, sqrt)(root)));
    }
    if (beta == 0.5) return CAT(A, div)(SET(1), CAT(A, sqrt)(scale));
    if (beta == 1) return CAT(A, div)(SET(1), scale);
    return FN(scale_pow_any)(scale, beta);
}

/* The gradient of z = x * scale ** -beta, the input of the activation, from g. */
#define ACTIVATION_BACKWARD(g, x_value, scale_pow, partial)                                                    \
    (activation ? FN(activation_backward)(g, MUL(x_value, scale_pow), SLOPE(partial), low, high, NULL, FORMULA) \
                : (g))

/* squares[i] = x[i]**2 */
static void FN(window_squares)(const WindowTile *tile) {
#define SQUARES(K, partial)                                            \
    FOR_VECTORS(K) {                                                   \
        const VECTOR v = FN(vector_load)(x, ELEMENT, partial, SET(0)); \
        STORE_WORKSPACE(tile->squares, MUL(v, v), partial)             \
    }
    FOR_TILE(SQUARES)
#undef SQUARES
}

/* y = x * scale ** -beta, then the activation. */
INLINE void FN(window_apply_any)(const WindowTile *tile_in, double beta, const int normal, const int activation,
                                 const int clip) {
    const WindowTile copy = *tile_in, *const tile = &copy; /* a copy, which no store can change */
    const VECTOR slope = SET(tile->slope), low = SET(tile->low), high = SET(tile->high);
#define APPLY(K, partial)                                                                            \
    {                                                                                                \
        VECTOR scale[2], z[2];                                                                       \
        PREFETCH_NEXT(K, x, tile->x_prefetch)                                                        \
        PREFETCH_NEXT(K, y, tile->y_prefetch)                                                        \
        FN(window_scale)(tile, offset, i, partial, scale, K);                                        \
        FOR_VECTORS(K) {                                                                             \
            z[k] = MUL(FN(vector_load)(x, ELEMENT, partial, SET(0)), FN(scale_pow)(scale[k], beta, normal, NULL)); \
            if (activation) z[k] = FN(activated)(z[k], SLOPE(partial), low, high, FORMULA);          \
        }                                                                                            \
        STORE_RESULT(K, partial, z)                                                                  \
    }
    FOR_TILE(APPLY)
#undef APPLY
    (void)low, (void)high; /* unused without bounds */
}
static void FN(window_apply)(const WindowTile *tile) {
    const int normal = SCALES_ARE_NORMAL(tile);
    if (tile->beta == 0.75 && normal && !tile->activation) FN(window_apply_any)(tile, 0.75, 1, ACT_NONE, 0);
    else if (tile->activation == ACT_CLIP) FN(window_apply_any)(tile, tile->beta, normal, ACT_CLIP, 1);
    else FN(window_apply_any)(tile, tile->beta, normal, tile->activation, 0);
}

/* The first step of backward: scale_pow = scale ** -beta and grad_term = g * x * scale ** (-beta - 1), what an element
 * adds to the gradient of each element of its window, up to a constant factor. */
INLINE void FN(window_prepare_any)(const WindowTile *tile_in, double beta, const int normal, const int activation,
                                   const int clip) {
    const WindowTile copy = *tile_in, *const tile = &copy; /* a copy, which no store can change */
    const VECTOR slope = SET(tile->slope), low = SET(tile->low), high = SET(tile->high);
#define PREPARE(K, partial)                                                                                     \
    {                                                                                                           \
        VECTOR scale[2];                                                                                        \
        PREFETCH_NEXT(K, x, tile->x_prefetch)                                                                   \
        PREFETCH_NEXT(K, dy, tile->dy_prefetch)                                                                 \
        PREFETCH_NEXT(K, y, tile->y_prefetch)                                                                   \
        FN(window_scale)(tile, offset, i, partial, scale, K);                                                   \
        FOR_VECTORS(K) {                                                                                        \
            VECTOR inverse;                                                                                     \
            const VECTOR p = FN(scale_pow)(scale[k], beta, normal, &inverse);                                   \
            const VECTOR v = FN(vector_load)(x, ELEMENT, partial, SET(0));                                      \
            const VECTOR g = ACTIVATION_BACKWARD(FN(vector_load)(dy, ELEMENT, partial, SET(0)), v, p, partial); \
            STORE_WORKSPACE(tile->scale_pow, p, partial)                                                        \
            STORE_WORKSPACE(tile->grad_term, MUL(MUL(g, v), MUL(p, inverse)), partial)                          \
        }                                                                                                       \
    }
    FOR_TILE(PREPARE)
#undef PREPARE
    (void)low, (void)high; /* unused without bounds */
}
static void FN(window_prepare)(const WindowTile *tile) {
    const int normal = SCALES_ARE_NORMAL(tile);
    if (tile->beta == 0.75 && normal && !tile->activation) FN(window_prepare_any)(tile, 0.75, 1, ACT_NONE, 0);
    else if (tile->activation == ACT_CLIP) FN(window_prepare_any)(tile, tile->beta, normal, ACT_CLIP, 1);
    else FN(window_prepare_any)(tile, tile->beta, normal, tile->activation, 0);
}

/* dx = g * scale_pow - 2 * alpha * beta * x * (the sum of grad_term over the windows that x is in) */
INLINE void FN(window_grad_any)(const WindowTile *tile_in, const int activation, const int clip) {
    const WindowTile copy = *tile_in, *const tile = &copy; /* a copy, which no store can change */
    const VECTOR factor = SET(2 * tile->alpha * tile->beta), slope = SET(tile->slope);
    const VECTOR low = SET(tile->low), high = SET(tile->high);
#define GRAD(K, partial)                                                                                        \
    {                                                                                                           \
        VECTOR dx[2];                                                                                           \
        FN(window_sum)(tile, offset, i, partial, dx, K);                                                        \
        FOR_VECTORS(K) {                                                                                        \
            const VECTOR v = FN(vector_load)(x, ELEMENT, partial, SET(0));                                      \
            const VECTOR p = FN(acc_load)(tile->scale_pow + offset, ELEMENT, partial);                          \
            const VECTOR g = ACTIVATION_BACKWARD(FN(vector_load)(dy, ELEMENT, partial, SET(0)), v, p, partial); \
            dx[k] = SUB(MUL(g, p), MUL(MUL(factor, v), dx[k]));                                                 \
        }                                                                                                       \
        STORE_RESULT(K, partial, dx)                                                                            \
    }
    FOR_TILE(GRAD)
#undef GRAD
    (void)low, (void)high; /* unused without bounds */
}
static void FN(window_grad)(const WindowTile *tile) {
    if (tile->activation == ACT_CLIP) FN(window_grad_any)(tile, ACT_CLIP, 1);
    else FN(window_grad_any)(tile, tile->activation, 0);
}

#undef FOR_TILE
#undef FOR_VECTORS
#undef ELEMENT
#undef FORMULA
#undef SCALES_ARE_NORMAL
#undef SLOPE
#undef STORE_WORKSPACE
#undef STORE_RESULT
#undef PREFETCH_NEXT
#undef ACTIVATION_BACKWARD
