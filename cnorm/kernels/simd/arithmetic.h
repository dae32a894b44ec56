/* Arithmetic on vectors of accumulators, once per accumulation type, and roots.
 *
 * A_set, A_add, A_sub, A_mul, A_div, A_select_positive, A_clip, A_zero_outside, A_magnitude, A_larger, A_sign_of_large,
 * A_sqrt, A_power_minus_3_4, A_load, A_store, for A = f32 and f64. Each operation acts on every lane by itself and
 * rounds as IEEE 754 prescribes, so its bits do not depend on the register width.
 */
#ifndef CNORM_SIMD_ARITHMETIC_H
#define CNORM_SIMD_ARITHMETIC_H

#include <float.h>
#include <math.h>

#include "simd/types.h"

/* The larger of two numbers; NaN if one is. */
INLINE double larger(double a, double b) { return a >= b || a != a ? a : b; }

/* The bits of a where mask is all ones, else those of b: C has no ?: for vectors. */
#define BITWISE_SELECT(mask, a, b) (((mask) & (a)) | (~(mask) & (b)))

#define SIGN_BIT(integer) ((integer)((uint64_t)1 << (8 * sizeof(integer) - 1)))

/* A_set broadcasts a by a subtraction of 0, which keeps -0.0 as it is; an addition would not. */
#define DEFINE_ARITHMETIC(A, integer)                                                           \
    typedef A A##v __attribute__((vector_size(REGISTER_BYTES)));                                \
    typedef A A##u __attribute__((vector_size(REGISTER_BYTES), aligned(sizeof(A)), may_alias)); \
    typedef integer A##m __attribute__((vector_size(REGISTER_BYTES)));                          \
    typedef struct { A##v v[REGISTERS_PER_VECTOR]; } A##l;                                      \
    enum { A##_per_register = REGISTER_BYTES / sizeof(A) };                                     \
    INLINE A##l A##_set(A a) { A##l r; FOR_REGISTERS r.v[k] = a - (A##v){0}; return r; }        \
    INLINE A##l A##_add(A##l a, A##l b) { FOR_REGISTERS a.v[k] += b.v[k]; return a; }           \
    INLINE A##l A##_sub(A##l a, A##l b) { FOR_REGISTERS a.v[k] -= b.v[k]; return a; }           \
    INLINE A##l A##_mul(A##l a, A##l b) { FOR_REGISTERS a.v[k] *= b.v[k]; return a; }           \
    INLINE A##l A##_div(A##l a, A##l b) { FOR_REGISTERS a.v[k] /= b.v[k]; return a; }           \
    /* a where z > 0, else b; b where z is NaN */                                               \
    INLINE A##l A##_select_positive(A##l z, A##l a, A##l b) {                                   \
        FOR_REGISTERS a.v[k] = (A##v)BITWISE_SELECT(z.v[k] > 0, (A##m)a.v[k], (A##m)b.v[k]);    \
        return a;                                                                               \
    }                                                                                           \
    /* a where low < z < high or a comparison is with NaN, else 0 */                            \
    INLINE A##l A##_zero_outside(A##l z, A##l low, A##l high, A##l a) {                         \
        FOR_REGISTERS {                                                                         \
            const A##m outside = (z.v[k] <= low.v[k]) | (z.v[k] >= high.v[k]);                  \
            a.v[k] = (A##v)(~outside & (A##m)a.v[k]);                                           \
        }                                                                                       \
        return a;                                                                               \
    }                                                                                       \
    /* |a|, and the larger of magnitudes, NaN if one is: their bits are ordered as integers are */ \
    INLINE A##l A##_magnitude(A##l a) {                                                         \
        FOR_REGISTERS a.v[k] = (A##v)((A##m)a.v[k] & ~SIGN_BIT(integer));                       \
        return a;                                                                               \
    }                                                                                           \
    INLINE A##l A##_larger(A##l a, A##l b) {                                                    \
        FOR_REGISTERS a.v[k] = (A##v)BITWISE_SELECT((A##m)a.v[k] > (A##m)b.v[k], (A##m)a.v[k], (A##m)b.v[k]); \
        return a;                                                                               \
    }                                                                                           \
    /* the sign of a, 1 or -1, where |a| >= least and a is not 0; else 0 */                     \
    INLINE A##l A##_sign_of_large(A##l a, A##l least) {                                         \
        const A##l size = A##_magnitude(a), one = A##_set(1);                                   \
        FOR_REGISTERS a.v[k] = (A##v)((size.v[k] >= least.v[k]) & (size.v[k] > 0) &             \
                                      (((A##m)a.v[k] & SIGN_BIT(integer)) | (A##m)one.v[k]));   \
        return a;                                                                               \
    }                                                                                           \
    INLINE A##l A##_load(const A *p) {                                                          \
        A##l r;                                                                                 \
        FOR_REGISTERS r.v[k] = *(const A##u *)(p + k * A##_per_register);                       \
        return r;                                                                               \
    }                                                                                           \
    INLINE void A##_store(A *p, A##l a) { FOR_REGISTERS *(A##u *)(p + k * A##_per_register) = a.v[k]; }

DEFINE_ARITHMETIC(f32, int32_t)
DEFINE_ARITHMETIC(f64, int64_t)

/* A_clip: low where low > z, then high where high < z; one instruction per bound. NaN stays NaN, and a bound that is
 * NaN bounds nothing: max and min of x86 return their second operand where a comparison is with NaN, or of two zeros. */
#if REGISTER_BYTES == 64
#define CLIP_REGISTER(z, low, high, V, suffix) _mm512_min_##suffix((V)(high), _mm512_max_##suffix((V)(low), (V)(z)))
#define CLIP_F32(z, low, high) CLIP_REGISTER(z, low, high, __m512, ps)
#define CLIP_F64(z, low, high) CLIP_REGISTER(z, low, high, __m512d, pd)
#elif REGISTER_BYTES == 32
#define CLIP_REGISTER(z, low, high, V, suffix) _mm256_min_##suffix((V)(high), _mm256_max_##suffix((V)(low), (V)(z)))
#define CLIP_F32(z, low, high) CLIP_REGISTER(z, low, high, __m256, ps)
#define CLIP_F64(z, low, high) CLIP_REGISTER(z, low, high, __m256d, pd)
#elif defined(__SSE2__)
#define CLIP_REGISTER(z, low, high, V, suffix) _mm_min_##suffix((V)(high), _mm_max_##suffix((V)(low), (V)(z)))
#define CLIP_F32(z, low, high) CLIP_REGISTER(z, low, high, __m128, ps)
#define CLIP_F64(z, low, high) CLIP_REGISTER(z, low, high, __m128d, pd)
#else
INLINE f32v clip_f32(f32v z, f32v low, f32v high) {
    z = (f32v)BITWISE_SELECT(low > z, (f32m)low, (f32m)z);
    return (f32v)BITWISE_SELECT(high < z, (f32m)high, (f32m)z);
}
INLINE f64v clip_f64(f64v z, f64v low, f64v high) {
    z = (f64v)BITWISE_SELECT(low > z, (f64m)low, (f64m)z);
    return (f64v)BITWISE_SELECT(high < z, (f64m)high, (f64m)z);
}
#define CLIP_F32(z, low, high) clip_f32(z, low, high)
#define CLIP_F64(z, low, high) clip_f64(z, low, high)
#endif

INLINE f32l f32_clip(f32l z, f32l low, f32l high) {
    FOR_REGISTERS z.v[k] = (f32v)CLIP_F32(z.v[k], low.v[k], high.v[k]);
    return z;
}
INLINE f64l f64_clip(f64l z, f64l low, f64l high) {
    FOR_REGISTERS z.v[k] = (f64v)CLIP_F64(z.v[k], low.v[k], high.v[k]);
    return z;
}

/* IEEE 754 rounds square roots correctly, so every build computes equal bits. */

INLINE f32l f32_sqrt(f32l a) {
#if REGISTER_BYTES == 64
    FOR_REGISTERS a.v[k] = (f32v)_mm512_sqrt_ps((__m512)a.v[k]);
#elif REGISTER_BYTES == 32
    FOR_REGISTERS a.v[k] = (f32v)_mm256_sqrt_ps((__m256)a.v[k]);
#elif defined(__SSE2__)
    FOR_REGISTERS a.v[k] = (f32v)_mm_sqrt_ps((__m128)a.v[k]);
#else
    FOR_REGISTERS for (int i = 0; i < f32_per_register; ++i) a.v[k][i] = sqrtf(a.v[k][i]);
#endif
    return a;
}

INLINE f64l f64_sqrt(f64l a) {
#if REGISTER_BYTES == 64
    FOR_REGISTERS a.v[k] = (f64v)_mm512_sqrt_pd((__m512d)a.v[k]);
#elif REGISTER_BYTES == 32
    FOR_REGISTERS a.v[k] = (f64v)_mm256_sqrt_pd((__m256d)a.v[k]);
#elif defined(__SSE2__)
    FOR_REGISTERS a.v[k] = (f64v)_mm_sqrt_pd((__m128d)a.v[k]);
#else
    FOR_REGISTERS for (int i = 0; i < f64_per_register; ++i) a.v[k][i] = sqrt(a.v[k][i]);
#endif
    return a;
}

/* f64_divide: a / divisor by two reciprocals, hi = 1 / divisor and lo, what rounding took from it, with the bits of the
 * division (Markstein 1990): q = a * hi + a * lo is one of the two doubles next to the quotient, the remainder
 * a - q * divisor is exact, and q + remainder * hi rounds to the quotient. Four instructions that start once a cycle
 * take the place of one that starts every ten (Zen 4). For divisors that may_divide accepts, and an a that is +0, or
 * whose magnitude is between 2**-300 and 2**300. */
#if defined(__FMA__)
#define HAS_FMA 1
#if REGISTER_BYTES == 64
#define FMA_F64(a, b, c) (f64v)_mm512_fmadd_pd((__m512d)(a), (__m512d)(b), (__m512d)(c))
#else
#define FMA_F64(a, b, c) (f64v)_mm256_fmadd_pd((__m256d)(a), (__m256d)(b), (__m256d)(c))
#endif
INLINE f64l f64_divide(f64l a, f64l divisor, f64l hi, f64l lo) {
    FOR_REGISTERS {
        const f64v q = FMA_F64(a.v[k], hi.v[k], a.v[k] * lo.v[k]);
        a.v[k] = FMA_F64(FMA_F64(-q, divisor.v[k], a.v[k]), hi.v[k], q);
    }
    return a;
}
INLINE double reciprocal_rest(double divisor) { return fma(-(1 / divisor), divisor, 1) / divisor; }
#else
#define HAS_FMA 0
INLINE f64l f64_divide(f64l a, f64l divisor, f64l hi, f64l lo) { return (void)hi, (void)lo, f64_div(a, divisor); }
INLINE double reciprocal_rest(double divisor) { return (void)divisor, 0; }
#endif
INLINE int may_divide(double divisor) { return divisor >= 0x1p-200 && divisor <= 0x1p200; }

/* A_power_minus_3_4: a ** -0.75 of positive normal numbers, within 2 epsilon, and in `inverse` 1 / a, within 2. NaN
 * stays NaN; 0, infinity and subnormal numbers are the caller's to handle.
 *
 * Two roots and a division would be what bounds the loop; these are 11 multiplications. The bits of a float, read as an integer, are near to its logarithm, so that one
 * subtraction gives (4 * a) ** -0.25 within 4 %. Newton's steps come next: w *= 1.25 - a * w**4. Of what is then left,
 * q = 0.25 - a * w**4, follow the first four terms of the binomial series. */
#define DEFINE_POWER(A, unsigned_integer, seed, newton_steps)                                                    \
    typedef unsigned_integer A##b __attribute__((vector_size(REGISTER_BYTES)));                                  \
    INLINE A##l A##_power_minus_3_4(A##l a, A##l *inverse) {                                                     \
        FOR_REGISTERS {                                                                                          \
            const A##v v = a.v[k];                                                                               \
            A##v w = (A##v)((unsigned_integer)(seed) - ((A##b)v >> 2)), ww = w * w;                              \
            for (int step = 0; step < newton_steps; ++step) {                                                    \
                w = w * ((A)1.25 - (v * ww) * ww);                                                               \
                ww = w * w;                                                                                      \
            }                                                                                                    \
            const A##v q = (A)0.25 - (v * ww) * ww;                                                              \
            inverse->v[k] = (ww * ww) * ((A)4 + q * ((A)16 + q * ((A)64 + q * (A)256)));                         \
            a.v[k] = (ww * w) * ((A)2.8284271247461903 + q * ((A)8.4852813742385695 +                            \
                                 q * ((A)29.698484809834994 + q * (A)108.89444430272832)));                      \
        }                                                                                                        \
        return a;                                                                                                \
    }

DEFINE_POWER(f32, uint32_t, 0x4f18605b, 1)
DEFINE_POWER(f64, uint64_t, 0x4fe30c0b7db6c800, 2)

#endif
