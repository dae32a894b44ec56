/* Images: integers looked up in a table, everything else by the formula. Included by table.h, after loops/wide.h. */

/* ((v / max_value) - mean) / std of n values in L1, in place: the float64 formula, operation by operation, since for
 * integers it has to be its very result. Those are in the range of f64_divide, and so are their differences from a mean
 * that is neither tiny nor huge. */
static void normalize_values(double *v, ptrdiff_t n, double max_value, double mean, double std, int integers) {
    const double size = fabs(mean);
    ptrdiff_t i = 0;
    if (integers && may_divide(max_value) && may_divide(std) && (size == 0 || may_divide(size))) {
        const f64l top = f64_set(max_value), hi = f64_set(1 / max_value), lo = f64_set(reciprocal_rest(max_value)),
                   spread = f64_set(std), spread_hi = f64_set(1 / std), spread_lo = f64_set(reciprocal_rest(std)),
                   centre = f64_set(mean);
        for (; i + f64_lanes <= n; i += f64_lanes) {
            const f64l d = f64_sub(f64_divide(f64_load(v + i), top, hi, lo), centre);
            f64_store(v + i, f64_divide(d, spread, spread_hi, spread_lo));
        }
    }
    for (; i < n; ++i) v[i] = (v[i] / max_value - mean) / std;
}

/* y[i] = table[x[i]]. A table of 256 results is in L1, and a load a result is as fast as arithmetic. */
#define LOOK_UP_STRIDES(T, x_stride, y_stride) \
    for (ptrdiff_t i = 0; i < n; ++i) *(T *)(y + i * (y_stride)) = ((const T *)table)[x[i * (x_stride)]];
#define LOOK_UP(T)                                                        \
    {                                                                     \
        if (x_stride == 1 && y_stride == sizeof(T)) LOOK_UP_STRIDES(T, 1, sizeof(T)) \
        else if (x_stride == 3 && y_stride == sizeof(T)) LOOK_UP_STRIDES(T, 3, sizeof(T)) \
        else LOOK_UP_STRIDES(T, x_stride, y_stride)                       \
    }
static void look_up(const unsigned char *restrict x, ptrdiff_t x_stride, ptrdiff_t n, const void *restrict table,
                    ptrdiff_t size, char *restrict y, ptrdiff_t y_stride) {
    if (size == 4) LOOK_UP(uint32_t)
    else if (size == 2) LOOK_UP(uint16_t)
    else LOOK_UP(uint64_t)
}
#undef LOOK_UP
#undef LOOK_UP_STRIDES

/* Looks up pixels of three channels that lie side by side in x; in y channels are y_channel bytes apart, and pixels
 * y_stride. Two results that lie side by side in y are stored at once, through an integer W of twice the size: the
 * compiler would load bytes as a vector, and take it apart again. */
#define ENTRY(i) t[(i) % 3 * 256 + bytes[i]]
#define LOOK_UP_PAIRS(W, A, B, C, at_a, at_b, at_c)                                                              \
    for (; i + 2 <= n; i += 2) {                                                                                 \
        const unsigned char *const bytes = x + 3 * i;                                                            \
        const W a = A, b = B, c = C;                                                                             \
        memcpy(y + i * y_stride + (at_a), &a, sizeof(W));                                                        \
        memcpy(y + i * y_stride + (at_b), &b, sizeof(W));                                                        \
        memcpy(y + i * y_stride + (at_c), &c, sizeof(W));                                                        \
    }
#define PAIR(W, i, k) (ENTRY(i) | (W)ENTRY(k) << 4 * sizeof(W))
#define LOOK_UP_THREE(T, W)                                                                                      \
    {                                                                                                            \
        const T *restrict const t = table;                                                                       \
        if (sizeof(W) > sizeof(T) && y_channel == sizeof(T) && y_stride == 3 * sizeof(T))                        \
            LOOK_UP_PAIRS(W, PAIR(W, 0, 1), PAIR(W, 2, 3), PAIR(W, 4, 5), 0, sizeof(W), 2 * sizeof(W))           \
        else if (sizeof(W) > sizeof(T) && y_stride == sizeof(T))                                                 \
            LOOK_UP_PAIRS(W, PAIR(W, 0, 3), PAIR(W, 1, 4), PAIR(W, 2, 5), 0, y_channel, 2 * y_channel)           \
        for (; i < n; ++i) {                                                                                     \
            const unsigned char *const bytes = x + 3 * i;                                                        \
            for (int c = 0; c < 3; ++c) memcpy(y + i * y_stride + c * y_channel, &ENTRY(c), sizeof(T));          \
        }                                                                                                        \
    }
static void look_up_three(const unsigned char *restrict x, ptrdiff_t n, const void *restrict table, ptrdiff_t size,
                          char *restrict y, ptrdiff_t y_stride, ptrdiff_t y_channel) {
    ptrdiff_t i = 0;
    if (size == 4) LOOK_UP_THREE(uint32_t, uint64_t)
    else if (size == 2) LOOK_UP_THREE(uint16_t, uint32_t)
    else LOOK_UP_THREE(uint64_t, uint64_t)
}
#undef ENTRY
#undef LOOK_UP_PAIRS
#undef PAIR
#undef LOOK_UP_THREE

/* y, whose elements are `stride` bytes apart, from n elements that lie side by side. */
static void scatter(const char *values, ptrdiff_t n, ptrdiff_t size, char *y, ptrdiff_t stride) {
    if (size == 4) for (ptrdiff_t i = 0; i < n; ++i) *(uint32_t *)(y + i * stride) = ((const uint32_t *)values)[i];
    else if (size == 2) for (ptrdiff_t i = 0; i < n; ++i) *(uint16_t *)(y + i * stride) = ((const uint16_t *)values)[i];
    else for (ptrdiff_t i = 0; i < n; ++i) *(uint64_t *)(y + i * stride) = ((const uint64_t *)values)[i];
}
