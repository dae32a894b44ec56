/* Columns: K lanes of columns side by side, down the rows. A part of tile_loops.h.
 *
 * The widest strip that the registers hold differs from build to build; a column's own arithmetic
 * does not depend on it. COLUMN_VECTORS runs the body with K = VECTORS_PER_COLUMN_BLOCK, then for the lanes left; the last of
 * those may have but `part` columns. */

/* `group` rows at a time, all their columns: the more, the fewer times the columns' own numbers are
 * loaded; one, or where a strip takes all columns, and memory is read strictly in its order. */
#define COLUMN_VECTORS(call) COLUMN_VECTORS_FROM(0, call)
/* The same, the first `lead` columns apart. */
#define COLUMN_VECTORS_FROM(peel, call)                                                                  \
    const ptrdiff_t together = columns <= VECTORS_PER_COLUMN_BLOCK * LANES ? rows : group;                          \
    for (ptrdiff_t begin = 0; begin < rows; begin += together) {                                 \
        const ptrdiff_t end = begin + together < rows ? begin + together : rows;                 \
        ptrdiff_t j = 0;                                                                         \
        if (peel >= LANES) call(1, 0);                                                           \
        j = peel - peel % LANES;                                                                 \
        if (peel % LANES) call(1, peel % LANES);                                                 \
        j = peel;                                                                                \
        for (; j + VECTORS_PER_COLUMN_BLOCK * LANES <= columns; j += VECTORS_PER_COLUMN_BLOCK * LANES) call(VECTORS_PER_COLUMN_BLOCK, 0);                 \
        const ptrdiff_t left = columns - j, part = left % LANES;                                 \
        if (left > 3 * LANES) call(VECTORS_PER_COLUMN_BLOCK >= 4 ? 4 : 1, part);                                    \
        else if (left > 2 * LANES) call(VECTORS_PER_COLUMN_BLOCK >= 4 ? 3 : 1, part);                               \
        else if (left > LANES) call(VECTORS_PER_COLUMN_BLOCK >= 2 ? 2 : 1, part);                                   \
        else if (left) call(1, part);                                                            \
    }
/* Bytes on from what is loaded that are asked for, where rows lie end to end: a processor sees several loads that
 * each go on by a row, and not that all memory is read. */
INLINE ptrdiff_t FN(reach)(const char *const *x, ptrdiff_t rows, ptrdiff_t columns) {
    return rows > 1 && x[1] - x[0] == columns * (ptrdiff_t)sizeof(S) ? COLUMN_PREFETCH_BYTES : 0;
}
#define REACH(row) __builtin_prefetch((row) + AT * sizeof(S) + reach, 0, 3)
#define EACH_LANE _Pragma("GCC unroll 4") for (int k = 0; k < K; ++k)
#define AT (j + k * LANES)
#define PART (k == K - 1 ? part : 0)

static void FN(narrow)(const double *restrict x, ptrdiff_t n, void *restrict out) {
    for (ptrdiff_t i = 0; i < n; ++i) ((A *)out)[i] = (A)x[i];
}
/* Whether any of n numbers is not 0. */
static int FN(any_nonzero)(const void *source, ptrdiff_t n) {
    int any = 0;
    for (ptrdiff_t i = 0; i < n; ++i) any |= ((const A *)source)[i] != 0;
    return any;
}
INLINE void FN(column_head_strip)(const char *const *x, ptrdiff_t begin, ptrdiff_t end, ptrdiff_t j,
                                  ptrdiff_t part, A *shift, const int K) {
    const A rows = (A)(end - begin);
    const AL share = SET(1 / rows), count = SET(rows), two = SET(2), zero = SET(0);
    AL sum[VECTORS_PER_COLUMN_BLOCK], squares[VECTORS_PER_COLUMN_BLOCK];
    EACH_LANE sum[k] = squares[k] = zero;
    for (ptrdiff_t row = begin; row < end; ++row) EACH_LANE {
        const AL d = FN(vector_load)(x[row], AT, PART, zero);
        sum[k] = ADD(sum[k], d);
        squares[k] = ADD(squares[k], MUL(d, d));
    }
    EACH_LANE {
        const AL excess = SUB(MUL(MUL(two, sum[k]), sum[k]), MUL(count, squares[k]));
        FN(vector_keep)(shift, AT, PART, IF_POSITIVE(excess, MUL(sum[k], share), zero));
    }
}

/* Of the first rows: a shift near each column's mean, as shift_from_probe. */
static void FN(column_probe)(const char *const *x, ptrdiff_t rows, ptrdiff_t columns, void *shift) {
    const ptrdiff_t group = rows;
#define CALL(K, part) FN(column_head_strip)(x, begin, end, j, part, shift, K)
    COLUMN_VECTORS(CALL)
#undef CALL
}

/* The accumulators of a call, for COLUMNS_AT_ONCE columns, between the groups of rows. */
#define COLUMNS_AT_ONCE (COLUMN_BLOCK_DOUBLES * (ptrdiff_t)(sizeof(double) / sizeof(A)))

/* One lane that is summed, at j of a row; in halves where rows cross lines of memory. */
INLINE AL FN(summed_load)(const char *row, ptrdiff_t j, ptrdiff_t part, AL fill, const int halves) {
    return halves && !part ? LOAD_HALVES((const S *)row + j) : FN(vector_load)(row, j, part, fill);
}

INLINE void FN(column_sums_block)(const char *const *x, ptrdiff_t begin, ptrdiff_t end, ptrdiff_t j,
                                  ptrdiff_t part, const void *shift, A *first, A *second,
                                  ptrdiff_t reach, const int centred, const int halves, const int K) {
    AL s[VECTORS_PER_COLUMN_BLOCK], a[VECTORS_PER_COLUMN_BLOCK], b[VECTORS_PER_COLUMN_BLOCK];
    EACH_LANE {
        s[k] = FN(vector_parameter)(shift, AT, PART);
        a[k] = FN(vector_parameter)(first, AT, 0);
        b[k] = FN(vector_parameter)(second, AT, 0);
    }
    for (ptrdiff_t row = begin; row < end; ++row) {
        const char *const from = x[row];
        EACH_LANE {
            REACH(from);
            AL d = FN(summed_load)(from, AT, PART, s[k], halves);
            if (centred == SHIFTED) d = SUB(d, s[k]);
            a[k] = ADD(a[k], d);
            b[k] = ADD(b[k], MUL(d, d));
        }
    }
    EACH_LANE {
        FN(vector_keep)(first, AT, 0, a[k]);
        FN(vector_keep)(second, AT, 0, b[k]);
    }
}

/* first += sum of d, second += sum of d*d, d = x - shift, a column at a time; at most 64 rows and
 * COLUMNS_AT_ONCE columns. */
static void FN(column_sums)(const char *const *x, ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t group,
                            const void *shift, double *first, double *second) {
    A a[COLUMNS_AT_ONCE], b[COLUMNS_AT_ONCE];
    FN(kept_clear)(a, columns);
    FN(kept_clear)(b, columns);
    const ptrdiff_t reach = FN(reach)(x, rows, columns);
#define CALL(K, part) FN(column_sums_block)(x, begin, end, j, part, shift, a, b, reach, centred, halves, K)
    if (FN(any_nonzero)(shift, columns)) { enum { centred = SHIFTED, halves = 0 }; COLUMN_VECTORS(CALL) }
    else if (CROSSES((const S *)x[0])) { enum { centred = CENTRED, halves = 1 }; COLUMN_VECTORS(CALL) }
    else { enum { centred = CENTRED, halves = 0 }; COLUMN_VECTORS(CALL) }
#undef CALL
    FN(kept_add)(a, columns, first);
    FN(kept_add)(b, columns, second);
}

INLINE void FN(column_apply_block)(const char *const *x, char *const *y, ptrdiff_t begin,
                                   ptrdiff_t end, ptrdiff_t j, ptrdiff_t part, const ColumnCoefficients *a,
                                   ptrdiff_t reach, const int centred, const int activation, const int stream,
                                   const int K) {
    AL hi[VECTORS_PER_COLUMN_BLOCK], scale[VECTORS_PER_COLUMN_BLOCK], bias[VECTORS_PER_COLUMN_BLOCK], slope[VECTORS_PER_COLUMN_BLOCK];
    EACH_LANE {
        hi[k] = FN(vector_parameter)(a->mean_hi, AT, PART);
        scale[k] = FN(vector_parameter)(a->scale, AT, PART);
        bias[k] = FN(vector_parameter)(a->bias, AT, PART);
        if (activation) slope[k] = FN(vector_parameter)(a->slope, AT, PART);
    }
    for (ptrdiff_t row = begin; row < end; ++row) {
        const char *const from = x[row];
        char *const to = y[row];
        EACH_LANE {
            REACH(from);
            AL z = FN(vector_load)(from, AT, PART, hi[k]);
            if (centred == SHIFTED) z = SUB(z, hi[k]);
            z = ADD(MUL(z, scale[k]), bias[k]);
            if (activation) z = IF_POSITIVE(z, z, MUL(z, slope[k]));
            FN(vector_store)(to, AT, PART, z, stream && WHOLE_LINES(K));
        }
    }
}

/* The strips of an `a` that is applied to rows at `to`, by what it takes of `centred`, `activated`, `streamed`. */
#define APPLIED(call, to)                                                                        \
    const ptrdiff_t peel = a->nontemporal && !activation ? FN(common_peel)(to, rows, columns, 1) : -1; \
    if (activation) { enum { centred = SHIFTED, activated = 1, nontemporal = 0 }; COLUMN_VECTORS(call) }    \
    else if (peel >= 0) {                                                                        \
        enum { centred = SHIFTED, activated = 0, nontemporal = 1 };                                 \
        COLUMN_VECTORS_FROM(peel, call)                                                                  \
    }                                                                                            \
    else if (a->shifted) { enum { centred = SHIFTED, activated = 0, nontemporal = 0 }; COLUMN_VECTORS(call) } \
    else { enum { centred = CENTRED, activated = 0, nontemporal = 0 }; COLUMN_VECTORS(call) }

/* y = (x - hi) * scale + bias, then the activation. */
static void FN(column_apply)(const char *const *x, char *const *y, ptrdiff_t rows, ptrdiff_t columns,
                             ptrdiff_t group, const ColumnCoefficients *a, int activation) {
    const ptrdiff_t reach = FN(reach)(x, rows, columns);
#define CALL(K, part) FN(column_apply_block)(x, y, begin, end, j, part, a, reach, centred, activated, nontemporal, K)
    APPLIED(CALL, y)
#undef CALL
}

/* g, the gradient through the activation, for one lane of a strip. */
#define COLUMN_THROUGH(g, d)                                                                     \
    if (activation) {                                                                            \
        const AL z = ADD(MUL(d, scale[k]), bias[k]);                                             \
        g = FN(activation_backward)(g, z, slope[k], on_slope ? &on_slope[k] : NULL);                         \
    }
#define COLUMN_ACTIVATION                                                                        \
    AL scale[VECTORS_PER_COLUMN_BLOCK], bias[VECTORS_PER_COLUMN_BLOCK], slope[VECTORS_PER_COLUMN_BLOCK];                                                  \
    EACH_LANE if (activation) {                                                                  \
        scale[k] = FN(vector_parameter)(a->scale, AT, PART);                                         \
        bias[k] = FN(vector_parameter)(a->bias, AT, PART);                                           \
        slope[k] = FN(vector_parameter)(a->slope, AT, PART);                                         \
    }

INLINE void FN(column_grad_sums_block)(const char *const *x, const char *const *dy, ptrdiff_t begin,
                                       ptrdiff_t end, ptrdiff_t j, ptrdiff_t part,
                                       const ColumnCoefficients *a, A *const kept[4], ptrdiff_t reach,
                                       const int centred, const int halves, const int activation, const int K) {
    AL hi[VECTORS_PER_COLUMN_BLOCK], g_[VECTORS_PER_COLUMN_BLOCK], gd[VECTORS_PER_COLUMN_BLOCK], d_[VECTORS_PER_COLUMN_BLOCK], slopes[VECTORS_PER_COLUMN_BLOCK], *const on_slope = slopes;
    COLUMN_ACTIVATION
    EACH_LANE {
        hi[k] = FN(vector_parameter)(a->mean_hi, AT, PART);
        g_[k] = FN(vector_parameter)(kept[0], AT, 0);
        gd[k] = FN(vector_parameter)(kept[1], AT, 0);
        d_[k] = EXACT ? FN(vector_parameter)(kept[2], AT, 0) : SET(0);
        slopes[k] = activation ? FN(vector_parameter)(kept[3], AT, 0) : SET(0);
    }
    for (ptrdiff_t row = begin; row < end; ++row) {
        const char *const x_row = x[row], *const dy_row = dy[row];
        EACH_LANE {
            REACH(x_row);
            REACH(dy_row);
            AL d = FN(summed_load)(x_row, AT, PART, hi[k], halves);
            if (centred == SHIFTED) d = SUB(d, hi[k]);
            AL g = FN(summed_load)(dy_row, AT, PART, SET(0), halves);
            COLUMN_THROUGH(g, d)
            g_[k] = ADD(g_[k], g);
            gd[k] = ADD(gd[k], MUL(g, d));
            if (EXACT) d_[k] = ADD(d_[k], d);
        }
    }
    EACH_LANE {
        FN(vector_keep)(kept[0], AT, 0, g_[k]);
        FN(vector_keep)(kept[1], AT, 0, gd[k]);
        if (EXACT) FN(vector_keep)(kept[2], AT, 0, d_[k]);
        if (activation) FN(vector_keep)(kept[3], AT, 0, slopes[k]);
    }
}

/* As grad_sums, a column at a time; at most 64 rows and COLUMNS_AT_ONCE columns. */
static void FN(column_grad_sums)(const char *const *x, const char *const *dy, ptrdiff_t rows,
                                 ptrdiff_t columns, ptrdiff_t group, const ColumnCoefficients *a, int activation,
                                 double *sum_g, double *sum_gd, double *sum_d, double *sum_slope) {
    A sums[4][COLUMNS_AT_ONCE], *const kept[4] = {sums[0], sums[1], sums[2], sums[3]};
    FN(kept_clear)(kept[0], columns);
    FN(kept_clear)(kept[1], columns);
    if (EXACT) FN(kept_clear)(kept[2], columns);
    if (activation) FN(kept_clear)(kept[3], columns);
    const ptrdiff_t reach = FN(reach)(x, rows, columns);
#define CALL(K, part)                                                                            \
    FN(column_grad_sums_block)(x, dy, begin, end, j, part, a, kept, reach, centred, halves, activated, K)
    if (activation) { enum { centred = SHIFTED, halves = 0, activated = 1 }; COLUMN_VECTORS(CALL) }
    else if (a->shifted) { enum { centred = SHIFTED, halves = 0, activated = 0 }; COLUMN_VECTORS(CALL) }
    else if (CROSSES((const S *)x[0])) { enum { centred = CENTRED, halves = 1, activated = 0 }; COLUMN_VECTORS(CALL) }
    else { enum { centred = CENTRED, halves = 0, activated = 0 }; COLUMN_VECTORS(CALL) }
#undef CALL
    FN(kept_add)(kept[0], columns, sum_g);
    FN(kept_add)(kept[1], columns, sum_gd);
    if (EXACT) FN(kept_add)(kept[2], columns, sum_d);
    if (activation) FN(kept_add)(kept[3], columns, sum_slope);
}

INLINE void FN(column_grad_apply_block)(const char *const *x, const char *const *dy, char *const *dx,
                                        ptrdiff_t begin, ptrdiff_t end, ptrdiff_t j, ptrdiff_t part,
                                        const ColumnCoefficients *a, ptrdiff_t reach, const int centred,
                                        const int activation, const int stream, const int K) {
    AL hi[VECTORS_PER_COLUMN_BLOCK], scale_[VECTORS_PER_COLUMN_BLOCK], dev_coeff[VECTORS_PER_COLUMN_BLOCK], grad_offset[VECTORS_PER_COLUMN_BLOCK];
    AL rstd[VECTORS_PER_COLUMN_BLOCK], *const on_slope = NULL;
    COLUMN_ACTIVATION
    EACH_LANE {
        hi[k] = FN(vector_parameter)(a->mean_hi, AT, PART);
        scale_[k] = FN(vector_parameter)(a->scale, AT, PART);
        dev_coeff[k] = FN(vector_parameter)(a->dev_coeff, AT, PART);
        grad_offset[k] = FN(vector_parameter)(a->grad_offset, AT, PART);
        rstd[k] = FN(vector_parameter)(a->rstd, AT, PART);
    }
    for (ptrdiff_t row = begin; row < end; ++row) {
        const char *const x_row = x[row], *const dy_row = dy[row];
        char *const to = dx[row];
        EACH_LANE {
            REACH(x_row);
            REACH(dy_row);
            AL d = FN(vector_load)(x_row, AT, PART, hi[k]);
            if (centred == SHIFTED) d = SUB(d, hi[k]);
            AL g = FN(vector_load)(dy_row, AT, PART, SET(0));
            COLUMN_THROUGH(g, d)
            g = SUB(SUB(MUL(g, scale_[k]), grad_offset[k]), MUL(MUL(d, rstd[k]), dev_coeff[k]));
            FN(vector_store)(to, AT, PART, g, stream && WHOLE_LINES(K));
        }
    }
}

static void FN(column_grad_apply)(const char *const *x, const char *const *dy, char *const *dx,
                                  ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t group, const ColumnCoefficients *a,
                                  int activation) {
    const ptrdiff_t reach = FN(reach)(x, rows, columns);
#define CALL(K, part)                                                                            \
    FN(column_grad_apply_block)(x, dy, dx, begin, end, j, part, a, reach, centred, activated, nontemporal, K)
    APPLIED(CALL, dx)
#undef CALL
}
#undef COLUMN_THROUGH
#undef COLUMN_ACTIVATION
#undef APPLIED
#undef REACH
#undef EACH_LANE
#undef AT
#undef PART
