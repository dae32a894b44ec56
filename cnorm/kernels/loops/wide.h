/* Every dtype as double: what moments and standardize read and write. Included by table.h, after the loops of float64.
 *
 * Moments are taken in double whatever the dtype: an array has the moments of its conversion to float64, to the bit.
 * float32 and uint8 have loops of their own, which convert what they load (simd/wide.h). For the other dtypes the sums
 * are the loops of float64 (unit_sums.h, column_sums.h): a few thousand elements are converted to double at a time, in
 * L1, and then summed there. Integers beyond 2**53 are rounded.
 *
 * "Selected" elements are those where the mask is True, and with omit_nan those that are not NaN. mask may be NULL.
 */

/* Of a function that is one text for all dtypes and takes the dtype's conversion as an argument: an indirect call for
 * hundreds of elements. The compiler would make a copy for each dtype. */
#if defined(__GNUC__) && !defined(__clang__)
#define SHARED __attribute__((noinline, noclone))
#else
#define SHARED __attribute__((noinline))
#endif

typedef void (*read_elements)(const char *x, ptrdiff_t stride, ptrdiff_t n, double *out);

/* out[i] = the element `i * stride` bytes from x. (read_u32 and the like are names of CPython's headers.) */
#define READ_NUMBERS(S, T)                                                                             \
    static void CAT(read_doubles, S)(const char *x, ptrdiff_t stride, ptrdiff_t n, double *restrict out) { \
        if (stride == sizeof(T)) for (ptrdiff_t i = 0; i < n; ++i) out[i] = (double)((const T *)x)[i]; \
        else for (ptrdiff_t i = 0; i < n; ++i) out[i] = (double)*(const T *)(x + i * stride);          \
    }
/* Half types: through the vectors of their loops. */
#define READ_HALVES(S)                                                                           \
    static void CAT(read_doubles, S)(const char *x, ptrdiff_t stride, ptrdiff_t n, double *out) { \
        S gathered[f32_lanes];                                                                   \
        if (stride == sizeof(S)) {                                                               \
            CAT(widen64, S)(x, n, out);                                                          \
            return;                                                                              \
        }                                                                                        \
        for (ptrdiff_t i = 0; i < n; i += f32_lanes) {                                           \
            const ptrdiff_t count = n - i < f32_lanes ? n - i : f32_lanes;                       \
            for (ptrdiff_t k = 0; k < count; ++k) gathered[k] = *(const S *)(x + (i + k) * stride); \
            CAT(widen64, S)((const char *)gathered, count, out + i);                             \
        }                                                                                        \
    }
READ_NUMBERS(f32, float)
READ_NUMBERS(f64, double)
READ_NUMBERS(i8, int8_t)
READ_NUMBERS(u8, uint8_t)
READ_NUMBERS(i16, int16_t)
READ_NUMBERS(u16, uint16_t)
READ_NUMBERS(i32, int32_t)
READ_NUMBERS(u32, uint32_t)
READ_NUMBERS(i64, int64_t)
READ_NUMBERS(u64, uint64_t)
READ_HALVES(f16)
READ_HALVES(bf16)

static const read_elements READ_BY_DTYPE[DTYPES] = {
    [FLOAT64] = read_doubles_f64, [WIDE_FLOAT32] = read_doubles_f32,
    [WIDE_FLOAT16] = read_doubles_f16, [WIDE_BFLOAT16] = read_doubles_bf16,
    [WIDE_INT8] = read_doubles_i8, [WIDE_UINT8] = read_doubles_u8,
    [WIDE_INT16] = read_doubles_i16, [WIDE_UINT16] = read_doubles_u16,
    [WIDE_INT32] = read_doubles_i32, [WIDE_UINT32] = read_doubles_u32,
    [WIDE_INT64] = read_doubles_i64, [WIDE_UINT64] = read_doubles_u64,
};

/* bytes of an element */
static const unsigned char WIDE_SIZE[DTYPES] = {
    [FLOAT64] = 8, [WIDE_FLOAT32] = 4, [WIDE_FLOAT16] = 2, [WIDE_BFLOAT16] = 2, [WIDE_INT8] = 1, [WIDE_UINT8] = 1,
    [WIDE_INT16] = 2, [WIDE_UINT16] = 2, [WIDE_INT32] = 4, [WIDE_UINT32] = 4, [WIDE_INT64] = 8, [WIDE_UINT64] = 8,
};

/* ---- selected elements ---- */

INLINE int is_selected(double value, const char *mask, ptrdiff_t at, int omit_nan) {
    return (!mask || mask[at]) & (!omit_nan | (value == value));
}

/* Moves the selected ones of n values to their front; returns how many. */
static ptrdiff_t keep_selected(double *values, ptrdiff_t n, const char *mask, ptrdiff_t stride, int omit_nan) {
    enum { TOGETHER = 64 };
    ptrdiff_t kept = 0;
    if (mask && stride == 0) {
        if (!*mask) return 0;
        mask = NULL;
    }
    if (!mask && !omit_nan) return n;
    for (ptrdiff_t i = 0; i < n; i += TOGETHER) {
        const ptrdiff_t stop = n - i < TOGETHER ? n : i + TOGETHER;
        ptrdiff_t selected = 0;
        for (ptrdiff_t k = i; k < stop; ++k) selected += is_selected(values[k], mask, k * stride, omit_nan);
        if (selected == stop - i) {
            if (kept < i) memmove(values + kept, values + i, selected * sizeof(double));
            kept += selected;
        } else if (selected) for (ptrdiff_t k = i; k < stop; ++k) {
            const double value = values[k];
            values[kept] = value;
            kept += is_selected(value, mask, k * stride, omit_nan);
        }
    }
    return kept;
}

/* Per column of a row: a value that is not selected becomes the shift, which adds nothing to sums about it; one that is
 * counts. */
INLINE void select_columns(double *restrict values, ptrdiff_t n, const char *mask, ptrdiff_t stride, int omit_nan,
                           const double *restrict shift, double *restrict counts) {
    if (mask && stride == 0) {
        if (!*mask) {
            for (ptrdiff_t j = 0; j < n; ++j) values[j] = shift[j];
            return;
        }
        mask = NULL;
    }
#define SELECT(mask, stride, omit_nan)                                             \
    for (ptrdiff_t j = 0; j < n; ++j) {                                            \
        const int selected = is_selected(values[j], mask, j * (stride), omit_nan); \
        values[j] = selected ? values[j] : shift[j];                               \
        counts[j] += selected ? 1 : 0;                                             \
    }
    if (mask && stride == 1 && !omit_nan) SELECT(mask, 1, 0)
    else if (mask) SELECT(mask, stride, omit_nan)
    else if (omit_nan) SELECT((const char *)NULL, 0, 1)
    else for (ptrdiff_t j = 0; j < n; ++j) counts[j] += 1;
#undef SELECT
}

/* ---- columns ---- */

/* Rows and columns of x as doubles in `buffer`, whose rows are at `at`; counts: with a selection, else NULL. */
INLINE void read_columns(read_elements read, ptrdiff_t size, const char *const *x, ptrdiff_t rows, ptrdiff_t column,
                         ptrdiff_t n, const char *const *mask, ptrdiff_t mask_stride, int omit_nan,
                         const double *shift, double *counts, double *buffer, const char **at) {
    for (ptrdiff_t row = 0; row < rows; ++row) {
        double *values = buffer + row * WIDE_COLUMNS;
        at[row] = (const char *)values;
        read(x[row] + column * size, size, n, values);
        if (counts)
            select_columns(values, n, mask ? mask[row] + column * mask_stride : NULL, mask_stride, omit_nan, shift,
                           counts);
    }
}

/* column_sums of float64; with counts of selected elements alone, which are counted. */
static SHARED void wide_column_sums_any(read_elements read, ptrdiff_t size, const char *const *x, const char *const *mask,
                                 ptrdiff_t mask_stride, int omit_nan, ptrdiff_t rows, ptrdiff_t columns,
                                 const double *shift, double *counts, double *sum_d, double *sum_dd) {
    double sums_d[COLUMN_BLOCK_DOUBLES], sums_dd[COLUMN_BLOCK_DOUBLES], buffer[WIDE_ROWS * WIDE_COLUMNS];
    const char *at[WIDE_ROWS];
    sums_clear_f64(sums_d, columns);
    sums_clear_f64(sums_dd, columns);
    for (ptrdiff_t row = 0; row < rows; row += WIDE_ROWS) {
        const ptrdiff_t height = rows - row < WIDE_ROWS ? rows - row : WIDE_ROWS;
        for (ptrdiff_t j = 0; j < columns; j += WIDE_COLUMNS) {
            const ptrdiff_t width = columns - j < WIDE_COLUMNS ? columns - j : WIDE_COLUMNS;
            read_columns(read, size, x + row, height, j, width, mask ? mask + row : NULL, mask_stride, omit_nan,
                         shift + j, counts ? counts + j : NULL, buffer, at);
            column_sums_into_f64(at, height, width, height, shift + j, CENTRED, sums_d + j, sums_dd + j);
        }
    }
    sums_add_to_f64(sums_d, columns, sum_d);
    sums_add_to_f64(sums_dd, columns, sum_dd);
}

/* column_probe of float64, of PROBE_ROWS rows at most; with a selection what is not selected counts as 0. */
static SHARED void wide_column_probe_any(read_elements read, ptrdiff_t size, const char *const *x, const char *const *mask,
                                  ptrdiff_t mask_stride, int omit_nan, ptrdiff_t rows, ptrdiff_t columns,
                                  double *shift, int selects) {
    double buffer[PROBE_ROWS * WIDE_COLUMNS], counts[WIDE_COLUMNS] = {0};
    static const double zeros[WIDE_COLUMNS];
    const char *at[PROBE_ROWS];
    for (ptrdiff_t j = 0; j < columns; j += WIDE_COLUMNS) {
        const ptrdiff_t width = columns - j < WIDE_COLUMNS ? columns - j : WIDE_COLUMNS;
        read_columns(read, size, x, rows, j, width, mask, mask_stride, omit_nan, zeros, selects ? counts : NULL, buffer,
                     at);
        column_probe_f64(at, rows, width, shift + j);
    }
}

static void selected_column_sums(read_elements read, ptrdiff_t size, const char *const *x, const char *const *mask,
                                 ptrdiff_t mask_stride, int omit_nan, ptrdiff_t rows, ptrdiff_t columns,
                                 const double *shift, double *counts, double *sum_d, double *sum_dd) {
    wide_column_sums_any(read, size, x, mask, mask_stride, omit_nan, rows, columns, shift, counts, sum_d, sum_dd);
}
static void selected_column_probe(read_elements read, ptrdiff_t size, const char *const *x, const char *const *mask,
                                  ptrdiff_t mask_stride, int omit_nan, ptrdiff_t rows, ptrdiff_t columns,
                                  double *shift) {
    wide_column_probe_any(read, size, x, mask, mask_stride, omit_nan, rows, columns, shift, 1);
}

/* The table of a dtype that is read as double: what columns_moments.pxd and sequences.pyx call. `sums` are NULL where
 * the dtype has no loops of its own. */
#define WIDE_READ(S, T)                                                                                                \
    static void CAT(wide_widen, S)(const char *x, ptrdiff_t n, void *out) {                                            \
        CAT(read_doubles, S)(x, sizeof(T), n, out);                                                                    \
    }                                                                                                                  \
    static void CAT(wide_widen64, S)(const char *x, ptrdiff_t n, double *out) {                                        \
        CAT(read_doubles, S)(x, sizeof(T), n, out);                                                                    \
    }
#define WIDE_HEAD(S, T)                                                                                                \
    .size = sizeof(T), .acc_size = sizeof(double), .acc_dtype = FLOAT64, .rounded = rounded_f64,                       \
    .widen = CAT(wide_widen, S), .widen64 = CAT(wide_widen64, S)
#define WIDE_TABLE(S, T)                                                                                               \
    WIDE_READ(S, T)                                                                                                    \
    static void CAT(wide_column_probe, S)(const char *const *x, ptrdiff_t rows, ptrdiff_t columns, void *shift) {      \
        wide_column_probe_any(CAT(read_doubles, S), sizeof(T), x, NULL, 0, 0, rows, columns, shift, 0);                \
    }                                                                                                                  \
    static void CAT(wide_column_sums, S)(const char *const *x, ptrdiff_t rows, ptrdiff_t columns,                      \
                                         ptrdiff_t rows_per_pass, const void *shift, int terms, double *sum_d,         \
                                         double *sum_dd) {                                                             \
        (void)rows_per_pass, (void)terms;                                                                              \
        wide_column_sums_any(CAT(read_doubles, S), sizeof(T), x, NULL, 0, 0, rows, columns, shift, NULL, sum_d,        \
                             sum_dd);                                                                                  \
    }                                                                                                                  \
    static const LoopTable CAT(wide, S) = {                                                                            \
        WIDE_HEAD(S, T), .column_probe = CAT(wide_column_probe, S), .column_sums = CAT(wide_column_sums, S),           \
    };
/* ... with loops of its own, of which W is the storage type in simd/wide.h */
#define WIDE_TABLE_DIRECT(S, T, W)                                                                                     \
    WIDE_READ(S, T)                                                                                                    \
    static const LoopTable CAT(wide, S) = {                                                                            \
        WIDE_HEAD(S, T), .probe = CAT(probe, W), .sums = CAT(sums, W), .column_probe = CAT(column_probe, W),           \
        .column_sums = CAT(column_sums, W),                                                                            \
    };
WIDE_TABLE_DIRECT(f32, float, f32w)
WIDE_TABLE(f16, f16)
WIDE_TABLE(bf16, bf16)
WIDE_TABLE(i8, int8_t)
WIDE_TABLE_DIRECT(u8, uint8_t, u8w)
WIDE_TABLE(i16, int16_t)
WIDE_TABLE(u16, uint16_t)
WIDE_TABLE(i32, int32_t)
WIDE_TABLE(u32, uint32_t)
WIDE_TABLE(i64, int64_t)
WIDE_TABLE(u64, uint64_t)

/* ---- short rows ---- */

/* The moments of up to MOMENT_ROWS rows of n contiguous elements, TILE elements in all at most, `stride` bytes apart:
 * those of a block of sequences.pyx. Returns whether some need the general path, which needs_fallback names: their sums
 * overflowed, or their shift was poor. */
#define DEFINE_SHORT_ROWS(S)                                                                                      \
    static int CAT(short_rows, S)(const char *x, ptrdiff_t stride, ptrdiff_t rows, ptrdiff_t n, double *mean,     \
                                  double *lo, double *m2, unsigned char *needs_fallback) {                        \
        double sum_d[MOMENT_ROWS], sum_dd[MOMENT_ROWS], shift[MOMENT_ROWS];                                       \
        f64l sums_d[MOMENT_ROWS], sums_dd[MOMENT_ROWS];                                                           \
        const ptrdiff_t probe = PROBE_VECTORS * f64_lanes;                                                        \
        const double count = (double)n, probed = (double)(n < probe ? n : probe);                                 \
        const ptrdiff_t ahead = rows * stride; /* to the next rows, which are prefetched: probes read in leaps */ \
        int any = 0;                                                                                              \
        for (ptrdiff_t row = 0; row < rows; ++row)                                                                \
            CAT(probe_sums, S)(x + row * stride, n, &sums_d[row], &sums_dd[row]);                                 \
        f64_hsum_all(sums_d, rows, sum_d);                                                                        \
        f64_hsum_all(sums_dd, rows, sum_dd);                                                                      \
        for (ptrdiff_t row = 0; row < rows; ++row)                                                                \
            shift[row] = CAT(shift_from_probe, S)(probed, sum_d[row], sum_dd[row]);                               \
        for (ptrdiff_t row = 0; row < rows; ++row) {                                                              \
            if (shift[row] != 0)                                                                                  \
                CAT(sums_any, S)(x + row * stride, 1, ahead, n, shift[row], &sums_d[row], &sums_dd[row], SHIFTED, \
                                 1);                                                                              \
            else if (n > probe) /* else the probe's sums are those of the row */                                  \
                CAT(sums_any, S)(x + row * stride, 1, ahead, n, 0, &sums_d[row], &sums_dd[row], CENTRED, 1);      \
        }                                                                                                         \
        f64_hsum_all(sums_d, rows, sum_d);                                                                        \
        f64_hsum_all(sums_dd, rows, sum_dd);                                                                      \
        for (ptrdiff_t row = 0; row < rows; ++row) {                                                              \
            const int fails = sum_d[row] - sum_d[row] != 0 || sum_dd[row] - sum_dd[row] != 0 ||                   \
                              shift_is_poor(count, sum_d[row], sum_dd[row]);                                      \
            needs_fallback[row] = (unsigned char)fails;                                                           \
            any |= fails;                                                                                         \
        }                                                                                                         \
        for (ptrdiff_t row = 0; row < rows; ++row) {                                                              \
            moments_about(shift[row], sum_d[row] / count, sum_d[row], sum_dd[row], &mean[row], &lo[row],          \
                          &m2[row]);                                                                              \
            settle_moments(&mean[row], &lo[row], &m2[row]);                                                       \
        }                                                                                                         \
        return any;                                                                                               \
    }
DEFINE_SHORT_ROWS(f64)
DEFINE_SHORT_ROWS(f32w)
DEFINE_SHORT_ROWS(u8w)
#undef DEFINE_SHORT_ROWS

static int short_rows_moments(int dtype, const char *x, ptrdiff_t stride, ptrdiff_t rows, ptrdiff_t n, double *mean,
                              double *lo, double *m2, unsigned char *needs_fallback) {
    double buffer[TILE];
    const read_elements read = READ_BY_DTYPE[dtype];
    if (dtype == FLOAT64) return short_rows_f64(x, stride, rows, n, mean, lo, m2, needs_fallback);
    if (dtype == WIDE_FLOAT32) return short_rows_f32w(x, stride, rows, n, mean, lo, m2, needs_fallback);
    if (dtype == WIDE_UINT8) return short_rows_u8w(x, stride, rows, n, mean, lo, m2, needs_fallback);
    for (ptrdiff_t row = 0; row < rows; ++row) read(x + row * stride, WIDE_SIZE[dtype], n, buffer + row * n);
    return short_rows_f64((const char *)buffer, n * sizeof(double), rows, n, mean, lo, m2, needs_fallback);
}

/* ---- standardize ---- */

/* What is done to elements, beside the statistics. */
typedef struct {
    int inverse, clips, nontemporal;
    double low, high;
} Change;

/* ((v - mean) - lo) * scale, or the inverse, (v * scale + lo) + mean; then clipped, NaN stays NaN. */
INLINE f64l changed(f64l v, f64l mean, f64l lo, f64l scale, f64l low, f64l high, int inverse, int clips) {
    v = inverse ? f64_add(f64_add(f64_mul(v, scale), lo), mean) : f64_mul(f64_sub(f64_sub(v, mean), lo), scale);
    return clips ? f64_clip(v, low, high) : v;
}

/* y of n contiguous elements, with the statistics of one unit or (each) of a unit per element; x may be y. X and Y are
 * storage types that are computed in double (simd/wide.h). Stores begin at a cache line of y where the run is long. */
#define DEFINE_CHANGE(X, Y)                                                                                       \
    INLINE void CAT(X, CAT(Y, change_any))(const char *source, char *target, ptrdiff_t n, const double *mean,      \
                                           const double *lo, const double *scale, const Change *change,           \
                                           const int each, const int inverse, const int clips,                    \
                                           const int nontemporal) {                                               \
        const X *const x = (const X *)source;                                                                     \
        Y *const y = (Y *)target;                                                                                 \
        const f64l one_mean = f64_set(each ? 0 : *mean), one_lo = f64_set(each ? 0 : *lo),                        \
                   one_scale = f64_set(each ? 0 : *scale), low = f64_set(change->low), high = f64_set(change->high); \
        ptrdiff_t i = 0, peel = -(uintptr_t)target % LANES_ALIGN / sizeof(Y), stop = n < CHANGE_PEEL_MIN ? 0 : peel; \
        for (;;) { /* up to a cache line; what is left */                                                         \
            while (i < stop) {                                                                                    \
                const ptrdiff_t k = stop - i < f64_lanes ? stop - i : 0;                                          \
                f64l v = k ? CAT(X, load_partial)(x + i, k, one_mean) : CAT(X, load)(x + i);                      \
                if (!each) v = changed(v, one_mean, one_lo, one_scale, low, high, inverse, clips);                \
                else if (k) v = changed(v, f64_load_partial(mean + i, k, one_mean),                               \
                                        f64_load_partial(lo + i, k, one_lo),                                      \
                                        f64_load_partial(scale + i, k, one_scale), low, high, inverse, clips);    \
                else v = changed(v, f64_load(mean + i), f64_load(lo + i), f64_load(scale + i), low, high,         \
                                 inverse, clips);                                                                 \
                if (k) CAT(Y, store_partial)(y + i, v, k);                                                        \
                else CAT(Y, store)(y + i, v);                                                                     \
                i += k ? k : f64_lanes;                                                                           \
            }                                                                                                     \
            if (i == n) return;                                                                                   \
            for (; i + 2 * f64_lanes <= n; i += 2 * f64_lanes) {                                                  \
                f64l v[2] = {CAT(X, load)(x + i), CAT(X, load)(x + i + f64_lanes)};                               \
                _Pragma("GCC unroll 2") for (int k = 0; k < 2; ++k)                                               \
                    v[k] = changed(v[k], each ? f64_load(mean + i + k * f64_lanes) : one_mean,                    \
                                   each ? f64_load(lo + i + k * f64_lanes) : one_lo,                              \
                                   each ? f64_load(scale + i + k * f64_lanes) : one_scale, low, high, inverse,    \
                                   clips);                                                                        \
                if (nontemporal) CAT(Y, stream_pair)(y + i, v[0], v[1]);                                          \
                else CAT(Y, store_pair)(y + i, v[0], v[1]);                                                       \
            }                                                                                                     \
            stop = n;                                                                                             \
        }                                                                                                         \
    }                                                                                                             \
    static void CAT(X, CAT(Y, change))(const char *x, char *y, ptrdiff_t n, const double *mean, const double *lo, \
                                       const double *scale, const Change *change, int each) {                     \
        const int nontemporal = change->nontemporal && n >= CHANGE_PEEL_MIN;                                      \
        if (change->inverse || change->clips) {                                                                   \
            if (each) CHANGE(X, Y, 1, change->inverse, change->clips, 0);                                         \
            else CHANGE(X, Y, 0, change->inverse, change->clips, 0);                                              \
        }                                                                                                         \
        else if (each && nontemporal) CHANGE(X, Y, 1, 0, 0, 1);                                                   \
        else if (each) CHANGE(X, Y, 1, 0, 0, 0);                                                                  \
        else if (nontemporal) CHANGE(X, Y, 0, 0, 0, 1);                                                           \
        else CHANGE(X, Y, 0, 0, 0, 0);                                                                            \
    }
#define CHANGE(X, Y, each, inverse, clips, nontemporal) \
    CAT(X, CAT(Y, change_any))(x, y, n, mean, lo, scale, change, each, inverse, clips, nontemporal)
DEFINE_CHANGE(f32w, f32w)
DEFINE_CHANGE(f64, f64)
DEFINE_CHANGE(u8w, f32w)
DEFINE_CHANGE(f64, f32w)
#undef CHANGE
#undef DEFINE_CHANGE

typedef void (*change_elements)(const char *x, char *y, ptrdiff_t n, const double *mean, const double *lo,
                                const double *scale, const Change *change, int each);

/* The loop from a dtype (read as double) to one of the four float dtypes, or NULL. */
static change_elements change_loop(int dtype, int out_dtype) {
    if (out_dtype == FLOAT64) return dtype == FLOAT64 ? f64_f64_change : NULL;
    if (out_dtype != FLOAT32) return NULL;
    return dtype == WIDE_FLOAT32 ? f32w_f32w_change
         : dtype == WIDE_UINT8   ? u8w_f32w_change
         : dtype == FLOAT64      ? f64_f32w_change
                                 : NULL;
}

/* 1 / sqrt(m2 / (count - ddof) + eps) of n units: NaN where count <= ddof, 1 where the root is 0. */
static void scales_from_moments(const double *restrict count, const double *restrict m2, ptrdiff_t n, double ddof,
                                double eps, double *restrict scale) {
    for (ptrdiff_t i = 0; i < n; ++i) {
        const double std = sqrt((count[i] > ddof ? m2[i] / (count[i] - ddof) : NAN) + eps);
        scale[i] = 1 / (std == 0 ? 1 : std);
    }
}

/* Values rounded once to one of the four float dtypes. */
static void write_elements(int dtype, const double *restrict v, ptrdiff_t n, char *restrict y) {
    if (dtype == FLOAT64) memcpy(y, v, n * sizeof(double));
    else if (dtype == FLOAT32) for (ptrdiff_t i = 0; i < n; ++i) ((float *)y)[i] = (float)v[i];
    else if (dtype == FLOAT16) store64_f16(v, n, y);
    else store64_bf16(v, n, y);
}

/* Values rounded once where the mask is True, STANDARDIZE_CHUNK at most; elsewhere y keeps its value. */
static void write_selected(int dtype, const double *v, ptrdiff_t n, const char *mask, ptrdiff_t mask_stride, char *y) {
    double rounded[STANDARDIZE_CHUNK];
    write_elements(dtype, v, n, (char *)rounded);
#define WRITE(T)                                                                      \
    {                                                                                 \
        for (ptrdiff_t i = 0; i < n; ++i)                                             \
            if (mask[i * mask_stride]) ((T *)y)[i] = ((const T *)rounded)[i];         \
    }
    if (dtype == FLOAT64) WRITE(double)
    else if (dtype == FLOAT32) WRITE(float)
    else if (dtype == FLOAT16) WRITE(f16)
    else WRITE(bf16)
#undef WRITE
}
