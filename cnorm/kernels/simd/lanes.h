/* The lane vocabulary: the only file that knows vector widths and storage types.
 *
 * A *Lanes* value is 64 bytes of accumulators: 16 floats (f32l) or 8 doubles (f64l), on every
 * processor. It is held in as many native vectors as fill it: one on AVX-512, two on AVX2, four on
 * SSE and NEON. Element i of a run always goes to lane i modulo the lane count, lanes are folded by
 * one fixed tree, and no build contracts a*b+c, so every build computes the same bits.
 *
 * Storage types are f32, f64, f16 and bf16; f16 and bf16 are computed in float. For each there are
 *   S_load(p), S_load_part(p, n, fill), S_store(p, v), S_store_part(p, v, n), S_stream(p, v),
 *   S_store_pair(p, v, w), S_stream_pair(p, v, w), S_crosses(p), S_load_halves(p)
 * and for each accumulator type A (f32, f64)
 *   A_set, A_add, A_sub, A_mul, A_select_positive, A_fold, A_fold_all.
 */
#ifndef CNORM_LANES_H
#define CNORM_LANES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <math.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__SANITIZE_ADDRESS__) /* a check for every load, and inlined: minutes to compile */
#define INLINE static inline
#else
#define INLINE static inline __attribute__((always_inline))
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define LANES_NATIVE 64
#elif defined(__AVX2__)
#define LANES_NATIVE 32
#else
#define LANES_NATIVE 16
#endif
#define LANES_PARTS (64 / LANES_NATIVE)

typedef struct { uint16_t bits; } f16;
typedef struct { uint16_t bits; } bf16;
typedef float f32;
typedef double f64;

enum { f32_lanes = 16, f64_lanes = 8 };

/* Bits of a where a comparison holds, else of b (C has no ?: for vectors). */
#define LANES_SELECT(mask, a, b) (((mask) & (a)) | (~(mask) & (b)))
#define FOR_PARTS for (int k = 0; k < LANES_PARTS; ++k)

/* ---- subnormals count: other libraries leave "flush to zero" set in the threads that call us, and
 * the threads of a parallel region begin with what their maker had ---- */

#if defined(__SSE2__)
INLINE unsigned lanes_enter(void) {
    const unsigned before = _mm_getcsr();
    if (before & 0x8040) _mm_setcsr(before & ~0x8040u);
    return before;
}
INLINE void lanes_leave(unsigned before) {
    if (before & 0x8040) _mm_setcsr(before);
}
#else
INLINE unsigned lanes_enter(void) { return 0; }
INLINE void lanes_leave(unsigned before) { (void)before; }
#endif

/* ---- arithmetic, once per accumulator type ---- */

#define LANES_ARITHMETIC(A, integer)                                                             \
    typedef A A##v __attribute__((vector_size(LANES_NATIVE)));                                   \
    typedef A A##u __attribute__((vector_size(LANES_NATIVE), aligned(sizeof(A)), may_alias));    \
    typedef integer A##m __attribute__((vector_size(LANES_NATIVE)));                             \
    typedef struct { A##v v[LANES_PARTS]; } A##l;                                                \
    enum { A##_native = LANES_NATIVE / sizeof(A) };                                              \
    INLINE A##l A##_set(A a) { A##l r; FOR_PARTS r.v[k] = a - (A##v){0}; return r; }             \
    INLINE A##l A##_add(A##l a, A##l b) { FOR_PARTS a.v[k] += b.v[k]; return a; }                \
    INLINE A##l A##_sub(A##l a, A##l b) { FOR_PARTS a.v[k] -= b.v[k]; return a; }                \
    INLINE A##l A##_mul(A##l a, A##l b) { FOR_PARTS a.v[k] *= b.v[k]; return a; }                \
    INLINE A##l A##_div(A##l a, A##l b) { FOR_PARTS a.v[k] /= b.v[k]; return a; }                \
    /* a where z > 0, else b (also where z is NaN) */                                            \
    INLINE A##l A##_select_positive(A##l z, A##l a, A##l b) {                                    \
        FOR_PARTS a.v[k] = (A##v)LANES_SELECT(z.v[k] > 0, (A##m)a.v[k], (A##m)b.v[k]);           \
        return a;                                                                                \
    }                                                                                            \
    INLINE A##l A##_load(const A *p) {                                                           \
        A##l r;                                                                                  \
        FOR_PARTS r.v[k] = *(const A##u *)(p + k * A##_native);                                  \
        return r;                                                                                \
    }                                                                                            \
    INLINE void A##_store(A *p, A##l a) { FOR_PARTS *(A##u *)(p + k * A##_native) = a.v[k]; }

LANES_ARITHMETIC(f32, int32_t)
LANES_ARITHMETIC(f64, int64_t)

/* ---- folding: lanes (i, i+8), (i, i+4), (i, i+2), (i, i+1); of float the first two steps in float ---- */

typedef double d4v __attribute__((vector_size(32)));
typedef double d2v __attribute__((vector_size(16)));
typedef float f4v __attribute__((vector_size(16)));

INLINE double hsum4(d4v a) {
    union { d4v a; d2v h[2]; } q = {a};
    d2v p = q.h[0] + q.h[1];
    return p[0] + p[1];
}

/* Lanes that are taken apart as a whole would be kept in memory: part by part. */
#if LANES_NATIVE == 64
INLINE d4v f64_quarters(f64l a) {
    const __m512d v = (__m512d)a.v[0];
    return (d4v)(_mm512_castpd512_pd256(v) + _mm512_extractf64x4_pd(v, 1));
}
INLINE f4v f32_quarters(f32l a) {
    const __m512 v = (__m512)a.v[0];
    const __m256 half = _mm512_castps512_ps256(v) + _mm512_extractf32x8_ps(v, 1);
    return (f4v)(_mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1));
}
#elif LANES_NATIVE == 32
INLINE d4v f64_quarters(f64l a) { return (d4v)(a.v[0] + a.v[1]); }
INLINE f4v f32_quarters(f32l a) {
    union { f32v v; f4v h[2]; } half = {a.v[0] + a.v[1]};
    return half.h[0] + half.h[1];
}
#else
INLINE d4v f64_quarters(f64l a) {
    const f64v low = a.v[0] + a.v[2], high = a.v[1] + a.v[3];
    return (d4v){low[0], low[1], high[0], high[1]};
}
INLINE f4v f32_quarters(f32l a) { return (f4v)((a.v[0] + a.v[2]) + (a.v[1] + a.v[3])); }
#endif
INLINE double f64_hsum(f64l a) { return hsum4(f64_quarters(a)); }
INLINE double f32_hsum(f32l a) { return hsum4(__builtin_convertvector(f32_quarters(a), d4v)); }

/* Many at once: the same tree, eight of them side by side. */
#if LANES_NATIVE == 64
/* Quarters of each, of 128 bits: 0 + 2, 1 + 3 and 0 + 1, 2 + 3. */
#define LANES_HSUM_STEPS(A, V, add, shuffle)                                                     \
    INLINE V A##_hsum_pair(V a, V b) { return add(shuffle(a, b, 0x44), shuffle(a, b, 0xee)); }   \
    INLINE V A##_hsum_four(V a, V b) { return add(shuffle(a, b, 0x88), shuffle(a, b, 0xdd)); }
LANES_HSUM_STEPS(f32, __m512, _mm512_add_ps, _mm512_shuffle_f32x4)
LANES_HSUM_STEPS(f64, __m512d, _mm512_add_pd, _mm512_shuffle_f64x2)

/* Of four, their lanes i and i+2 added: two doubles each. */
INLINE __m512d f32_hsum_to_two(const f32l *a) {
    const __m512 v = f32_hsum_four(f32_hsum_pair((__m512)a[0].v[0], (__m512)a[1].v[0]),
                                   f32_hsum_pair((__m512)a[2].v[0], (__m512)a[3].v[0]));
    return f64_hsum_four(_mm512_cvtps_pd(_mm512_castps512_ps256(v)), _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1)));
}
INLINE __m512d f64_hsum_to_two(const f64l *a) {
    return f64_hsum_four(f64_hsum_pair((__m512d)a[0].v[0], (__m512d)a[1].v[0]),
                         f64_hsum_pair((__m512d)a[2].v[0], (__m512d)a[3].v[0]));
}
#define LANES_HSUM_ALL(A)                                                                        \
    INLINE void A##_hsum_all(const A##l *a, ptrdiff_t n, double *out) {                          \
        ptrdiff_t i = 0;                                                                         \
        for (; i + 8 <= n; i += 8) {                                                             \
            const __m512d low = A##_hsum_to_two(a + i), high = A##_hsum_to_two(a + i + 4);       \
            const __m512d sums = _mm512_unpacklo_pd(low, high) + _mm512_unpackhi_pd(low, high);  \
            _mm512_storeu_pd(out + i, _mm512_permutexvar_pd(_mm512_set_epi64(7, 5, 3, 1, 6, 4, 2, 0), sums)); \
        }                                                                                        \
        for (; i < n; ++i) out[i] = A##_hsum(a[i]);                                              \
    }
#else
#define LANES_HSUM_ALL(A)                                                                        \
    INLINE void A##_hsum_all(const A##l *a, ptrdiff_t n, double *out) {                          \
        for (ptrdiff_t i = 0; i < n; ++i) out[i] = A##_hsum(a[i]);                               \
    }
#endif
LANES_HSUM_ALL(f32)
LANES_HSUM_ALL(f64)

/* ---- square root (correctly rounded, so the same everywhere) ---- */

INLINE f32l f32_sqrt(f32l a) {
#if LANES_NATIVE == 64
    FOR_PARTS a.v[k] = (f32v)_mm512_sqrt_ps((__m512)a.v[k]);
#elif LANES_NATIVE == 32
    FOR_PARTS a.v[k] = (f32v)_mm256_sqrt_ps((__m256)a.v[k]);
#elif defined(__SSE2__)
    FOR_PARTS a.v[k] = (f32v)_mm_sqrt_ps((__m128)a.v[k]);
#else
    FOR_PARTS for (int i = 0; i < f32_native; ++i) a.v[k][i] = sqrtf(a.v[k][i]);
#endif
    return a;
}

INLINE f64l f64_sqrt(f64l a) {
#if LANES_NATIVE == 64
    FOR_PARTS a.v[k] = (f64v)_mm512_sqrt_pd((__m512d)a.v[k]);
#elif LANES_NATIVE == 32
    FOR_PARTS a.v[k] = (f64v)_mm256_sqrt_pd((__m256d)a.v[k]);
#elif defined(__SSE2__)
    FOR_PARTS a.v[k] = (f64v)_mm_sqrt_pd((__m128d)a.v[k]);
#else
    FOR_PARTS for (int i = 0; i < f64_native; ++i) a.v[k][i] = sqrt(a.v[k][i]);
#endif
    return a;
}

/* ---- a**-b for a > 0, in double: 2**(-b log2 a) ----
 * a = 2**e m with m in [sqrt(1/2), sqrt(2)); log m = 2 atanh((m - 1) / (m + 1)). The libraries' pow
 * differs from one to the next and would break the bits. */

typedef int64_t i64v __attribute__((vector_size(LANES_NATIVE)));

INLINE f64v f64v_power(f64v a, double b) {
    const f64v zero = {0}, shifter = zero + 0x1.8p52;
    const i64v bits = (i64v)a;
    /* the exponent of a * sqrt(2), so that m is near 1 */
    const i64v biased = (bits + (0x3ff0000000000000 - 0x3fe6a09e667f3bcd)) & 0x7ff0000000000000;
    const f64v m = (f64v)(bits - biased + 0x3ff0000000000000);
    const f64v e = (f64v)(((i64v)((biased >> 52) & 0x7ff)) | 0x4330000000000000) - (0x1p52 + 1023);
    const f64v z = (m - 1) / (m + 1), w = z * z;
    f64v series = zero + 1.0 / 23;
    for (int i = 21; i >= 1; i -= 2) series = series * w + 1.0 / i;
    const f64v log2_m = z * series * 2.8853900817779268;
    const f64v y = -b * e - b * log2_m;
    const f64v n = (y + shifter) - shifter;
    /* what y lost of -b * e is small: b is short of bits or e is */
    const f64v f = (y - n) * 0.69314718055994531;
    f64v power = zero + 1;
    for (int i = 14; i >= 1; --i) power = power * (f / (double)i) + 1;
    const i64v scale = ((i64v)(n + shifter) + 1023) << 52;
    power *= (f64v)scale;
    const i64v fine = (i64v)((a > 0x1p-1022) & (a < __builtin_inf()) & (y < 1022) & (y > -1022));
    if (__builtin_expect(({ int all = 1; for (int i = 0; i < f64_native; ++i) all &= fine[i] != 0; all; }), 1))
        return power;
    for (int i = 0; i < f64_native; ++i)
        if (!fine[i]) power[i] = pow(a[i], -b);
    return power;
}

INLINE f64l f64_power(f64l a, double b) {
    FOR_PARTS a.v[k] = f64v_power(a.v[k], b);
    return a;
}

INLINE f32l f32_power(f32l a, double b) {
    float lane[f32_lanes];
    double wide[f32_lanes];
    f32_store(lane, a);
    for (int i = 0; i < f32_lanes; ++i) wide[i] = lane[i];
    for (int i = 0; i < f32_lanes; i += f64_native)
        *(f64u *)(wide + i) = f64v_power(*(const f64u *)(wide + i), b);
    for (int i = 0; i < f32_lanes; ++i) lane[i] = (float)wide[i];
    return f32_load(lane);
}

/* ---- float16 and bfloat16: conversion of one native vector ---- */

/* A double as the float next to it whose last bit is odd, unless it is one: what is rounded from there to fewer
 * bits is rounded as from the double. */
INLINE float to_odd(double x) {
    union { float f; uint32_t bits; } r = {(float)x};
    const double rest = x - (double)r.f;
    if ((rest < 0 || rest > 0) && !(r.bits & 1)) r.bits += (rest > 0) == (x > 0) ? 1 : -1;
    return r.f;
}

typedef uint32_t u32v __attribute__((vector_size(LANES_NATIVE)));
typedef uint16_t u16h __attribute__((vector_size(LANES_NATIVE / 2)));
typedef uint16_t u16hu __attribute__((vector_size(LANES_NATIVE / 2), aligned(2), may_alias));

/* 16 bits to 32 and back; the compiler's own conversion of whole vectors takes twice the steps. */
INLINE u32v u16_widen(u16h h) {
#if LANES_NATIVE == 64
    return (u32v)_mm512_cvtepu16_epi32((__m256i)h);
#elif LANES_NATIVE == 32
    return (u32v)_mm256_cvtepu16_epi32((__m128i)h);
#elif defined(__SSE4_1__)
    return (u32v)_mm_cvtepu16_epi32(_mm_cvtsi64_si128((long long)h));
#else
    return __builtin_convertvector(h, u32v);
#endif
}

/* Of numbers below 2**16. */
INLINE u16h u16_narrow(u32v x) {
#if LANES_NATIVE == 64
    return (u16h)_mm512_cvtepi32_epi16((__m512i)x);
#elif LANES_NATIVE == 32
    return (u16h)_mm_packus_epi32(_mm256_castsi256_si128((__m256i)x), _mm256_extracti128_si256((__m256i)x, 1));
#elif defined(__SSE4_1__)
    return (u16h)_mm_cvtsi128_si64(_mm_packus_epi32((__m128i)x, (__m128i)x));
#else
    return __builtin_convertvector(x, u16h);
#endif
}

#define BITS(x) ((u32v)(x))
#define FLOATS(x) ((f32v)(x))

INLINE f32v f16_widen(u16h h) {
#if LANES_NATIVE == 64
    return (f32v)_mm512_cvtph_ps((__m256i)h);
#elif LANES_NATIVE == 32
    return (f32v)_mm256_cvtph_ps((__m128i)h);
#else
    const u32v x = u16_widen(h);
    const u32v magnitude = (x & 0x7fff) << 13, exponent = magnitude & 0x0f800000;
    const u32v normal = magnitude + ((127 - 15) << 23);
    const u32v special = (magnitude + ((255 - 31) << 23)) | ((u32v)(magnitude > 0x0f800000) & 0x400000);
    const f32v subnormal = FLOATS(magnitude + (113 << 23)) - FLOATS((u32v){0} + (113u << 23));
    u32v r = LANES_SELECT((u32v)(exponent == 0x0f800000), special, normal);
    r = LANES_SELECT((u32v)(exponent == 0), BITS(subnormal), r);
    return FLOATS(r | (x & 0x8000) << 16);
#endif
}

INLINE u16h f16_narrow(f32v f) {
#if LANES_NATIVE == 64
    return (u16h)_mm512_cvtps_ph((__m512)f, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif LANES_NATIVE == 32
    return (u16h)_mm256_cvtps_ph((__m256)f, _MM_FROUND_TO_NEAREST_INT);
#else
    const u32v x = BITS(f), magnitude = x & 0x7fffffff;
    const u32v odd = (magnitude >> 13) & 1;
    const u32v normal = (magnitude - ((127 - 15) << 23) + 0xfff + odd) >> 13;
    /* adding 0.5 leaves the float's own rounding at the last bit of a half subnormal */
    const u32v subnormal = BITS(FLOATS(magnitude) + 0.5f) - 0x3f000000;
    const u32v special = 0x7c00 | ((u32v)(magnitude > 0x7f800000) & (0x200 | ((magnitude >> 13) & 0x3ff)));
    u32v r = LANES_SELECT((u32v)(magnitude < (113u << 23)), subnormal, normal);
    r = LANES_SELECT((u32v)(magnitude >= (143u << 23)), special, r);
    return u16_narrow(r | (x & 0x80000000) >> 16);
#endif
}

/* Upper halves of 32 bits, with one shuffle each way where there is one. */
#if LANES_NATIVE == 64
INLINE u32v u16_raise(u16h h) {
    const __m512i from = _mm512_set_epi16(15, 0, 14, 0, 13, 0, 12, 0, 11, 0, 10, 0, 9, 0, 8, 0,
                                          7, 0, 6, 0, 5, 0, 4, 0, 3, 0, 2, 0, 1, 0, 0, 0);
    return (u32v)_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, from, _mm512_castsi256_si512((__m256i)h));
}
INLINE u16h u16_upper(u32v x) {
    const __m512i from = _mm512_broadcast_i64x4(_mm256_set_epi16(31, 29, 27, 25, 23, 21, 19, 17, 15, 13,
                                                                 11, 9, 7, 5, 3, 1));
    return (u16h)_mm512_castsi512_si256(_mm512_permutexvar_epi16(from, (__m512i)x));
}
#else
INLINE u32v u16_raise(u16h h) { return u16_widen(h) << 16; }
INLINE u16h u16_upper(u32v x) { return u16_narrow(x >> 16); }
#endif

INLINE f32v bf16_widen(u16h h) {
    /* a signalling NaN becomes a quiet one in the first operation on it */
    return FLOATS(u16_raise(h));
}

INLINE u16h bf16_narrow(f32v f) {
    const u32v x = BITS(f);
#if LANES_NATIVE == 64
    const __m512i v = (__m512i)x;
    __m512i r = _mm512_add_epi32(v, _mm512_set1_epi32(0x7fff));
    r = _mm512_mask_add_epi32(r, _mm512_test_epi32_mask(v, _mm512_set1_epi32(0x10000)), v,
                              _mm512_set1_epi32(0x8000));
    r = _mm512_mask_or_epi32(r, _mm512_cmp_ps_mask((__m512)f, (__m512)f, _CMP_UNORD_Q), v,
                             _mm512_set1_epi32(0x400000));
    return u16_upper((u32v)r);
#else
    const u32v rounded = x + 0x7fff + ((x >> 16) & 1), quiet = x | 0x400000;
    return u16_upper(LANES_SELECT((u32v)(f != f), quiet, rounded));
#endif
}

#if LANES_NATIVE == 64
/* The same of two vectors, with half the steps: the upper halves are rounded up where the lower ones
 * say so. What is stored comes out of arithmetic, so its NaNs are quiet, and stay NaN cut short. */
INLINE __m512i bf16_narrow_pair(f32v a, f32v b) {
    const __m512i one = _mm512_set1_epi16(1), lower_at = _mm512_set_epi16(
        62, 60, 58, 56, 54, 52, 50, 48, 46, 44, 42, 40, 38, 36, 34, 32,
        30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    const __m512i upper_at = _mm512_or_si512(lower_at, one);
    const __m512i lower = _mm512_permutex2var_epi16((__m512i)a, lower_at, (__m512i)b);
    const __m512i upper = _mm512_permutex2var_epi16((__m512i)a, upper_at, (__m512i)b);
    const __mmask32 number = _mm512_cmple_epi16_mask(_mm512_and_si512(upper, _mm512_set1_epi16(0x7fff)),
                                                     _mm512_set1_epi16(0x7f80));
    /* lower | (upper & 1): half way, an odd one goes up */
    const __m512i odd = _mm512_ternarylogic_epi32(lower, upper, one, 0xf8);
    const __mmask32 up = _mm512_mask_cmpgt_epu16_mask(number, odd, _mm512_set1_epi16((short)0x8000));
    return _mm512_mask_add_epi16(upper, up, upper, one);
}
#endif

#define LANES_HALF(S)                                                                            \
    INLINE f32l S##_load(const S *p) {                                                           \
        f32l r;                                                                                  \
        FOR_PARTS r.v[k] = S##_widen((u16h) * (const u16hu *)(p + k * f32_native));              \
        return r;                                                                                \
    }                                                                                            \
    INLINE void S##_store(S *p, f32l a) {                                                        \
        FOR_PARTS *(u16hu *)(p + k * f32_native) = (u16hu)S##_narrow(a.v[k]);                    \
    }
LANES_HALF(f16)
LANES_HALF(bf16)

/* ---- loads of 64 bytes across two lines of memory, as where NumPy's arrays mostly begin, 16 bytes into one: they
 * cost sums more than their halves, of which but one does cross ---- */

#if LANES_NATIVE == 64
#define LANES_HALVES(S, A, insert, low, load)                                                    \
    INLINE int S##_crosses(const S *p) { return (uintptr_t)p % 32 != 0; }                        \
    INLINE A##l S##_load_halves(const S *p) {                                                    \
        A##l r;                                                                                  \
        r.v[0] = (A##v)insert(low(load(p)), load(p + A##_lanes / 2), 1);                         \
        return r;                                                                                \
    }
LANES_HALVES(f32, f32, _mm512_insertf32x8, _mm512_castps256_ps512, _mm256_loadu_ps)
LANES_HALVES(f64, f64, _mm512_insertf64x4, _mm512_castpd256_pd512, _mm256_loadu_pd)
#endif
#define LANES_WHOLE(S, A)                                                                        \
    INLINE int S##_crosses(const S *p) { return (void)p, 0; }                                    \
    INLINE A##l S##_load_halves(const S *p) { return S##_load(p); }
#if LANES_NATIVE < 64
LANES_WHOLE(f32, f32)
LANES_WHOLE(f64, f64)
#endif
LANES_WHOLE(f16, f32)
LANES_WHOLE(bf16, f32)

/* ---- the end of a run: fewer elements than lanes; the other lanes hold `fill` ---- */

#if LANES_NATIVE == 64

INLINE f32l f32_load_part(const f32 *p, ptrdiff_t n, f32l fill) {
    fill.v[0] = (f32v)_mm512_mask_loadu_ps((__m512)fill.v[0], (__mmask16)((1u << n) - 1), p);
    return fill;
}
INLINE void f32_store_part(f32 *p, f32l a, ptrdiff_t n) {
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)a.v[0]);
}
INLINE f64l f64_load_part(const f64 *p, ptrdiff_t n, f64l fill) {
    fill.v[0] = (f64v)_mm512_mask_loadu_pd((__m512d)fill.v[0], (__mmask8)((1u << n) - 1), p);
    return fill;
}
INLINE void f64_store_part(f64 *p, f64l a, ptrdiff_t n) {
    _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1), (__m512d)a.v[0]);
}
#define LANES_HALF_PART(S)                                                                       \
    INLINE f32l S##_load_part(const S *p, ptrdiff_t n, f32l fill) {                             \
        const __mmask16 m = (__mmask16)((1u << n) - 1);                                          \
        const f32v x = S##_widen((u16h)_mm256_maskz_loadu_epi16(m, p));                          \
        fill.v[0] = (f32v)_mm512_mask_mov_ps((__m512)fill.v[0], m, (__m512)x);                   \
        return fill;                                                                             \
    }                                                                                            \
    INLINE void S##_store_part(S *p, f32l a, ptrdiff_t n) {                                     \
        _mm256_mask_storeu_epi16(p, (__mmask16)((1u << n) - 1), (__m256i)S##_narrow(a.v[0]));    \
    }
LANES_HALF_PART(f16)
LANES_HALF_PART(bf16)

#else

/* Lanes that are among the first n: from 16 - n of the one or 8 - n of the other on. */
static const int32_t LANES_FIRST32[32] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
static const int64_t LANES_FIRST64[16] = {-1, -1, -1, -1, -1, -1, -1, -1};

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "cnorm's kernels want a little-endian processor"
#endif

/* The first bytes of up to eight, in steps of two, as a number: never through memory, where a vector would wait
 * for its pieces. */
INLINE uint64_t bytes_load(const char *p, ptrdiff_t n) {
    uint64_t all = 0;
    uint32_t four;
    uint16_t two;
    if (n >= 8) memcpy(&all, p, 8);
    else if (n > 0) {
        if (n & 4) memcpy(&four, p, 4), all = four;
        if (n & 2) memcpy(&two, p + (n & 4), 2), all |= (uint64_t)two << 8 * (n & 4);
    }
    return all;
}
INLINE void bytes_store(char *p, uint64_t all, ptrdiff_t n) {
    const uint32_t four = (uint32_t)all;
    if (n >= 8) memcpy(p, &all, 8);
    else if (n > 0) {
        const uint16_t two = (uint16_t)(n & 4 ? all >> 32 : all);
        if (n & 4) memcpy(p, &four, 4);
        if (n & 2) memcpy(p + (n & 4), &two, 2);
    }
}

typedef f32m f32mu __attribute__((aligned(4), may_alias));
typedef f64m f64mu __attribute__((aligned(8), may_alias));

/* Of native vectors of V, each made of 8-byte words. Out of line, as it is off the hot path. */
#define LANES_PART(S, A, V, first, widened, narrowed)                                            \
    static __attribute__((noinline)) A##l S##_load_part(const S *p, ptrdiff_t n, A##l fill) {    \
        typedef uint64_t words __attribute__((vector_size(sizeof(V))));                          \
        FOR_PARTS {                                                                              \
            const char *const q = (const char *)(p + k * A##_native);                            \
            const ptrdiff_t left = (n - k * A##_native) * (ptrdiff_t)sizeof(S);                  \
            words w;                                                                             \
            for (size_t i = 0; i < sizeof(V) / 8; ++i) w[i] = bytes_load(q + 8 * i, left - 8 * (ptrdiff_t)i); \
            const A##m mask = *(const A##mu *)(first + A##_lanes - n + k * A##_native);          \
            fill.v[k] = (A##v)LANES_SELECT(mask, (A##m)widened((V)w), (A##m)fill.v[k]);          \
        }                                                                                        \
        return fill;                                                                             \
    }                                                                                            \
    static __attribute__((noinline)) void S##_store_part(S *p, A##l a, ptrdiff_t n) {            \
        typedef uint64_t words __attribute__((vector_size(sizeof(V))));                          \
        FOR_PARTS {                                                                              \
            char *const q = (char *)(p + k * A##_native);                                        \
            const ptrdiff_t left = (n - k * A##_native) * (ptrdiff_t)sizeof(S);                  \
            const words w = (words)narrowed(a.v[k]);                                             \
            for (size_t i = 0; i < sizeof(V) / 8; ++i) bytes_store(q + 8 * i, w[i], left - 8 * (ptrdiff_t)i); \
        }                                                                                        \
    }
LANES_PART(f16, f32, u16h, LANES_FIRST32, f16_widen, f16_narrow)
LANES_PART(bf16, f32, u16h, LANES_FIRST32, bf16_widen, bf16_narrow)

#if LANES_NATIVE == 32
/* Piece by piece: stores by a mask are slow on processors of AMD. */
INLINE void bytes_store_part(char *p, __m256i low, __m256i high, ptrdiff_t n) {
    if (n & 32) {
        _mm256_storeu_si256((__m256i *)p, low);
        p += 32, low = high;
    }
    __m128i rest = _mm256_castsi256_si128(low);
    if (n & 16) {
        _mm_storeu_si128((__m128i *)p, rest);
        p += 16, rest = _mm256_extracti128_si256(low, 1);
    }
    if (n & 8) {
        _mm_storel_epi64((__m128i *)p, rest);
        p += 8, rest = _mm_srli_si128(rest, 8);
    }
    bytes_store(p, (uint64_t)_mm_cvtsi128_si64(rest), n & 7);
}
#define LANES_MASKED(A, V, first, load, blend)                                                   \
    INLINE A##l A##_load_part(const A *p, ptrdiff_t n, A##l fill) {                              \
        FOR_PARTS {                                                                              \
            const __m256i m = _mm256_loadu_si256((const __m256i *)(first + A##_lanes - n + k * A##_native)); \
            fill.v[k] = (A##v)blend((V)fill.v[k], load(p + k * A##_native, m), (V)m);            \
        }                                                                                        \
        return fill;                                                                             \
    }                                                                                            \
    INLINE void A##_store_part(A *p, A##l a, ptrdiff_t n) {                                      \
        bytes_store_part((char *)p, (__m256i)a.v[0], (__m256i)a.v[1], n * (ptrdiff_t)sizeof(A)); \
    }
LANES_MASKED(f32, __m256, LANES_FIRST32, _mm256_maskload_ps, _mm256_blendv_ps)
LANES_MASKED(f64, __m256d, LANES_FIRST64, _mm256_maskload_pd, _mm256_blendv_pd)
#else
LANES_PART(f32, f32, f32v, LANES_FIRST32, , )
LANES_PART(f64, f64, f64v, LANES_FIRST64, , )
#endif

#endif

/* ---- stores past the cache, for results larger than it: p is aligned to LANES_ALIGN bytes ---- */

#define LANES_ALIGN 64

#if LANES_NATIVE == 64
#define STREAM_PART(p, v) _mm512_stream_si512((void *)(p), (__m512i)(v))
#define STREAM_HALF(p, v) _mm256_stream_si256((void *)(p), (__m256i)(v))
#define STREAM_END _mm_sfence()
#elif LANES_NATIVE == 32
#define STREAM_PART(p, v) _mm256_stream_si256((void *)(p), (__m256i)(v))
#define STREAM_HALF(p, v) _mm_stream_si128((void *)(p), (__m128i)(v))
#define STREAM_END _mm_sfence()
#elif defined(__SSE2__)
#define STREAM_PART(p, v) _mm_stream_si128((void *)(p), (__m128i)(v))
#define STREAM_HALF(p, v) (*(u16hu *)(p) = (u16hu)(v))
#define STREAM_END _mm_sfence()
#else
#define STREAM_PART(p, v) memcpy((p), &(v), sizeof(v))
#define STREAM_HALF(p, v) (*(u16hu *)(p) = (u16hu)(v))
#define STREAM_END ((void)0)
#endif

/* What a thread stored past the cache is there for the others. It waits for memory: once for many rows. */
INLINE void store_fence(void) { STREAM_END; }

INLINE void f32_stream(f32 *p, f32l a) { FOR_PARTS STREAM_PART(p + k * f32_native, a.v[k]); }
INLINE void f64_stream(f64 *p, f64l a) { FOR_PARTS STREAM_PART(p + k * f64_native, a.v[k]); }
INLINE void f16_stream(f16 *p, f32l a) { FOR_PARTS STREAM_HALF(p + k * f32_native, f16_narrow(a.v[k])); }
INLINE void bf16_stream(bf16 *p, f32l a) { FOR_PARTS STREAM_HALF(p + k * f32_native, bf16_narrow(a.v[k])); }

/* ---- two lanes side by side ---- */

#define LANES_PAIR(S, A)                                                                         \
    INLINE void S##_store_pair(S *p, A##l a, A##l b) {                                           \
        S##_store(p, a);                                                                         \
        S##_store(p + A##_lanes, b);                                                             \
    }                                                                                            \
    INLINE void S##_stream_pair(S *p, A##l a, A##l b) {                                          \
        S##_stream(p, a);                                                                        \
        S##_stream(p + A##_lanes, b);                                                            \
    }
LANES_PAIR(f32, f32)
LANES_PAIR(f64, f64)
LANES_PAIR(f16, f32)
#if LANES_NATIVE == 64
#define LANES_NARROWED_PAIR(S)                                                                   \
    INLINE void S##_store_pair(S *p, f32l a, f32l b) {                                           \
        _mm512_storeu_si512(p, S##_narrow_pair(a.v[0], b.v[0]));                                 \
    }                                                                                            \
    INLINE void S##_stream_pair(S *p, f32l a, f32l b) { STREAM_PART(p, S##_narrow_pair(a.v[0], b.v[0])); }
LANES_NARROWED_PAIR(bf16)
#else
LANES_PAIR(bf16, f32)
#endif

/* ---- bfloat16 as the processor rounds it, where it has an instruction for that: the same bits in half the steps.
 * What uses these is compiled for such processors, between LANES_BF16N_BEGIN and LANES_BF16N_END. ---- */

#if LANES_NATIVE == 64 && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 11
#define LANES_BF16N 1
#define LANES_BF16N_BEGIN _Pragma("GCC push_options") _Pragma("GCC target(\"avx512bf16\")")
#define LANES_BF16N_END _Pragma("GCC pop_options")

typedef struct { uint16_t bits; } bf16n;
INLINE int bf16n_runs(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512bf16") != 0;
}

LANES_BF16N_BEGIN
/* The instruction takes a subnormal float for 0. */
INLINE __mmask16 subnormals(f32v f) { return _mm512_fpclass_ps_mask((__m512)f, 0x20); }

INLINE f32v bf16n_widen(u16h h) { return bf16_widen(h); }
INLINE u16h bf16n_narrow(f32v f) {
    if (__builtin_expect(subnormals(f) != 0, 0)) return bf16_narrow(f);
    return (u16h)_mm512_cvtneps_pbh((__m512)f);
}
INLINE __m512i bf16n_narrow_pair(f32v a, f32v b) {
    if (__builtin_expect(!_kortestz_mask16_u8(subnormals(a), subnormals(b)), 0)) return bf16_narrow_pair(a, b);
    return (__m512i)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a);
}
LANES_HALF(bf16n)
LANES_HALF_PART(bf16n)
LANES_WHOLE(bf16n, f32)
INLINE void bf16n_stream(bf16n *p, f32l a) { STREAM_HALF(p, bf16n_narrow(a.v[0])); }
LANES_NARROWED_PAIR(bf16n)
LANES_BF16N_END
#else
#define LANES_BF16N 0
#endif

#endif
