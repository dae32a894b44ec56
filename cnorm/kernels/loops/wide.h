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
static int short_rows_moments(read_elements read, ptrdiff_t size, const char *x, ptrdiff_t stride, ptrdiff_t rows,
                              ptrdiff_t n, double *mean, double *lo, double *m2, unsigned char *needs_fallback) {
    double buffer[TILE], sum_d[MOMENT_ROWS], sum_dd[MOMENT_ROWS], shift[MOMENT_ROWS];
    f64l sums_d[MOMENT_ROWS], sums_dd[MOMENT_ROWS];
    const double count = (double)n, probed = (double)(n < PROBE_VECTORS * f64_lanes ? n : PROBE_VECTORS * f64_lanes);
    int any = 0;
    if (stride == n * size) read(x, size, rows * n, buffer);
    else for (ptrdiff_t row = 0; row < rows; ++row) read(x + row * stride, size, n, buffer + row * n);
    for (ptrdiff_t row = 0; row < rows; ++row)
        probe_sums_f64((const char *)(buffer + row * n), n, &sums_d[row], &sums_dd[row]);
    f64_hsum_all(sums_d, rows, sum_d);
    f64_hsum_all(sums_dd, rows, sum_dd);
    for (ptrdiff_t row = 0; row < rows; ++row) shift[row] = shift_from_probe_f64(probed, sum_d[row], sum_dd[row]);
    for (ptrdiff_t row = 0; row < rows; ++row) {
        const char *const values = (const char *)(buffer + row * n);
        if (shift[row] != 0) sums_any_f64(values, 1, 0, n, shift[row], &sums_d[row], &sums_dd[row], SHIFTED, 0);
        else if (n > PROBE_VECTORS * f64_lanes) /* else the probe's sums are those of the row */
            sums_any_f64(values, 1, 0, n, 0, &sums_d[row], &sums_dd[row], CENTRED, 0);
    }
    f64_hsum_all(sums_d, rows, sum_d);
    f64_hsum_all(sums_dd, rows, sum_dd);
    for (ptrdiff_t row = 0; row < rows; ++row) {
        const int fails = sum_d[row] - sum_d[row] != 0 || sum_dd[row] - sum_dd[row] != 0 ||
                          shift_is_poor(count, sum_d[row], sum_dd[row]);
        needs_fallback[row] = (unsigned char)fails;
        any |= fails;
    }
    for (ptrdiff_t row = 0; row < rows; ++row) {
        moments_about(shift[row], sum_d[row] / count, sum_d[row], sum_dd[row], &mean[row], &lo[row], &m2[row]);
        settle_moments(&mean[row], &lo[row], &m2[row]);
    }
    return any;
}

/* ---- standardize: n values in L1, in place ---- */

/* ((v - mean) - lo) * scale: of `runs` runs of n values, with the statistics of a unit each, `step` apart; or (each)
 * with those of a unit per value */
static void standardize_runs(double *v, ptrdiff_t runs, ptrdiff_t n, const double *mean, const double *lo,
                             const double *scale, ptrdiff_t step) {
    for (ptrdiff_t run = 0; run < runs; ++run) {
        const double a = mean[run * step], b = lo[run * step], c = scale[run * step];
        double *const values = v + run * n;
        for (ptrdiff_t i = 0; i < n; ++i) values[i] = ((values[i] - a) - b) * c;
    }
}
static void standardize_each(double *restrict v, ptrdiff_t n, const double *restrict mean, const double *restrict lo,
                             const double *restrict scale) {
    for (ptrdiff_t i = 0; i < n; ++i) v[i] = ((v[i] - mean[i]) - lo[i]) * scale[i];
}

/* The inverse: v * scale + mean */
static void restore_runs(double *v, ptrdiff_t runs, ptrdiff_t n, const double *mean, const double *lo,
                         const double *scale, ptrdiff_t step) {
    for (ptrdiff_t run = 0; run < runs; ++run) {
        const double a = mean[run * step], b = lo[run * step], c = scale[run * step];
        double *const values = v + run * n;
        for (ptrdiff_t i = 0; i < n; ++i) values[i] = (values[i] * c + b) + a;
    }
}
static void restore_each(double *restrict v, ptrdiff_t n, const double *restrict mean, const double *restrict lo,
                         const double *restrict scale) {
    for (ptrdiff_t i = 0; i < n; ++i) v[i] = (v[i] * scale[i] + lo[i]) + mean[i];
}

/* NaN stays NaN. */
static void clip_values(double *v, ptrdiff_t n, double low, double high) {
    for (ptrdiff_t i = 0; i < n; ++i) {
        const double above = v[i] < low ? low : v[i];
        v[i] = above > high ? high : above;
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
