/* Images: integers looked up in a table, everything else by the formula. Included by table.h, after loops/wide.h. */

/* ((v / max_value) - mean) / std of n values in L1, in place: the float64 formula, operation by operation, since for
 * integers it has to be its very result. */
static void normalize_values(double *v, ptrdiff_t n, double max_value, double mean, double std) {
    for (ptrdiff_t i = 0; i < n; ++i) v[i] = (v[i] / max_value - mean) / std;
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

/* The same of pixels of three channels that lie side by side in x; in y channels are y_channel bytes apart, and pixels
 * y_stride. */
#define LOOK_UP_PIXELS(T, step, channel)                                          \
    _Pragma("GCC unroll 4") for (ptrdiff_t i = 0; i < n; ++i) {                   \
        *(T *)(y + i * (step)) = t[x[3 * i]];                                     \
        *(T *)(y + i * (step) + (channel)) = t[256 + x[3 * i + 1]];               \
        *(T *)(y + i * (step) + 2 * (channel)) = t[512 + x[3 * i + 2]];           \
    }
#define LOOK_UP_THREE(T)                                                          \
    {                                                                             \
        const T *restrict const t = table;                                        \
        const ptrdiff_t size = sizeof(T);                                         \
        if (y_channel == size && y_stride == 3 * size) LOOK_UP_PIXELS(T, 3 * size, size) \
        else if (y_stride == size) LOOK_UP_PIXELS(T, size, y_channel)             \
        else LOOK_UP_PIXELS(T, y_stride, y_channel)                               \
    }
static void look_up_three(const unsigned char *restrict x, ptrdiff_t n, const void *restrict table, ptrdiff_t bytes,
                          char *restrict y, ptrdiff_t y_stride, ptrdiff_t y_channel) {
    if (bytes == 4) LOOK_UP_THREE(uint32_t)
    else if (bytes == 2) LOOK_UP_THREE(uint16_t)
    else LOOK_UP_THREE(uint64_t)
}
#undef LOOK_UP_PIXELS
#undef LOOK_UP_THREE

/* y, whose elements are `stride` bytes apart, from n elements that lie side by side. */
static void scatter(const char *values, ptrdiff_t n, ptrdiff_t size, char *y, ptrdiff_t stride) {
    if (size == 4) for (ptrdiff_t i = 0; i < n; ++i) *(uint32_t *)(y + i * stride) = ((const uint32_t *)values)[i];
    else if (size == 2) for (ptrdiff_t i = 0; i < n; ++i) *(uint16_t *)(y + i * stride) = ((const uint16_t *)values)[i];
    else for (ptrdiff_t i = 0; i < n; ++i) *(uint64_t *)(y + i * stride) = ((const uint64_t *)values)[i];
}
