/* Conversions between the storage type, the accumulation type and double. Included by common.h, once per dtype. */

static double FN(rounded)(double value) { return (double)(A)value; }

static void FN(widen)(const char *source, ptrdiff_t n, void *out) {
    const S *x = (const S *)source;
    A *y = (A *)out;
    ptrdiff_t i = 0;
    for (; i + LANES <= n; i += LANES) CAT(A, store)(y + i, LOAD(x + i));
    if (i < n) CAT(A, store_partial)(y + i, LOAD_PARTIAL(x + i, n - i, SET(0)), n - i);
}

static void FN(widen64)(const char *source, ptrdiff_t n, double *out) {
    A buffer[LANES];
    if (sizeof(S) == sizeof(A)) {
        for (ptrdiff_t i = 0; i < n; ++i) out[i] = ((const A *)source)[i];
        return;
    }
    for (ptrdiff_t i = 0; i < n; i += LANES) {
        const ptrdiff_t count = n - i < LANES ? n - i : LANES;
        FN(widen)(source + i * sizeof(S), count, buffer);
        for (ptrdiff_t j = 0; j < count; ++j) out[i + j] = buffer[j];
    }
}

static void FN(narrow)(const double *restrict x, ptrdiff_t n, void *restrict out) {
    for (ptrdiff_t i = 0; i < n; ++i) ((A *)out)[i] = (A)x[i];
}

/* Half types round twice, to float and to half: rounding to odd first makes that one rounding. */
static void FN(store64)(const double *x, ptrdiff_t n, char *target) {
    S *y = (S *)target;
    A buffer[LANES];
    for (ptrdiff_t i = 0; i < n; i += LANES) {
        const ptrdiff_t count = n - i < LANES ? n - i : LANES;
        for (ptrdiff_t j = 0; j < count; ++j) buffer[j] = sizeof(S) < sizeof(A) ? round_to_odd(x[i + j]) : (A)x[i + j];
        if (count == LANES) STORE(y + i, CAT(A, load)(buffer));
        else STORE_PARTIAL(y + i, CAT(A, load_partial)(buffer, count, SET(0)), count);
    }
}
