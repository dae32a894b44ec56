/* Arithmetic on vectors of accumulators, once per accumulation type, and the square root.
 *
 * A_set, A_add, A_sub, A_mul, A_div, A_select_positive, A_sqrt, A_load, A_store, for A = f32 and f64. Each operation
 * acts on every lane by itself and rounds as IEEE 754 prescribes, so its bits do not depend on the register width.
 */
#ifndef CNORM_SIMD_ARITHMETIC_H
#define CNORM_SIMD_ARITHMETIC_H

#include <math.h>

#include "simd/types.h"

/* The bits of a where mask is all ones, else those of b: C has no ?: for vectors. */
#define BITWISE_SELECT(mask, a, b) (((mask) & (a)) | (~(mask) & (b)))

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
    INLINE A##l A##_load(const A *p) {                                                          \
        A##l r;                                                                                 \
        FOR_REGISTERS r.v[k] = *(const A##u *)(p + k * A##_per_register);                       \
        return r;                                                                               \
    }                                                                                           \
    INLINE void A##_store(A *p, A##l a) { FOR_REGISTERS *(A##u *)(p + k * A##_per_register) = a.v[k]; }

DEFINE_ARITHMETIC(f32, int32_t)
DEFINE_ARITHMETIC(f64, int64_t)

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

#endif
