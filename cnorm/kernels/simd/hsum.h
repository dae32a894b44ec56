/* Horizontal sums: all lanes of a vector added to one double, by one fixed reduction tree.
 *
 * The tree adds lanes (i, i + 8), (i, i + 4), (i, i + 2), (i, i + 1). The first two steps of a float vector are made in
 * float, the rest in double. A float64 vector has 8 lanes and begins with (i, i + 4). A_hsum sums one vector,
 * A_hsum_all sums many and interleaves eight of them, with equal bits.
 */
#ifndef CNORM_SIMD_HSUM_H
#define CNORM_SIMD_HSUM_H

#include "simd/arithmetic.h"

typedef double d4v __attribute__((vector_size(32)));
typedef double d2v __attribute__((vector_size(16)));
typedef float f4v __attribute__((vector_size(16)));

INLINE double hsum4(d4v a) {
    union { d4v a; d2v h[2]; } q = {a};
    d2v p = q.h[0] + q.h[1];
    return p[0] + p[1];
}

/* A vector reduced to a quarter of its lanes. The halves are taken register by register: the compiler would store a
 * union of a whole vector to memory and read it back. */
#if REGISTER_BYTES == 64
INLINE d4v f64_quarter_sums(f64l a) {
    const __m512d v = (__m512d)a.v[0];
    return (d4v)(_mm512_castpd512_pd256(v) + _mm512_extractf64x4_pd(v, 1));
}
INLINE f4v f32_quarter_sums(f32l a) {
    const __m512 v = (__m512)a.v[0];
    const __m256 half = _mm512_castps512_ps256(v) + _mm512_extractf32x8_ps(v, 1);
    return (f4v)(_mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1));
}
#elif REGISTER_BYTES == 32
INLINE d4v f64_quarter_sums(f64l a) { return (d4v)(a.v[0] + a.v[1]); }
INLINE f4v f32_quarter_sums(f32l a) {
    union { f32v v; f4v h[2]; } half = {a.v[0] + a.v[1]};
    return half.h[0] + half.h[1];
}
#else
INLINE d4v f64_quarter_sums(f64l a) {
    const f64v low = a.v[0] + a.v[2], high = a.v[1] + a.v[3];
    return (d4v){low[0], low[1], high[0], high[1]};
}
INLINE f4v f32_quarter_sums(f32l a) { return (f4v)((a.v[0] + a.v[2]) + (a.v[1] + a.v[3])); }
#endif
INLINE double f64_hsum(f64l a) { return hsum4(f64_quarter_sums(a)); }
INLINE double f32_hsum(f32l a) { return hsum4(__builtin_convertvector(f32_quarter_sums(a), d4v)); }

/* The largest lane of magnitudes, NaN if one is. */
#define DEFINE_HMAX(A)                                                                         \
    INLINE double A##_hmax(A##l a) {                                                           \
        A lanes[A##_lanes];                                                                    \
        double largest = 0;                                                                    \
        A##_store(lanes, a);                                                                   \
        for (int i = 0; i < A##_lanes; ++i) largest = larger(largest, (double)lanes[i]);       \
        return largest;                                                                        \
    }
DEFINE_HMAX(f32)
DEFINE_HMAX(f64)

/* Horizontal sums of n vectors. AVX-512 interleaves eight trees, so that each addition serves several vectors. */
#if REGISTER_BYTES == 64
/* The 128-bit quarters of two vectors: hsum_pair adds quarters (0, 2) and (1, 3), hsum_four adds (0, 1) and (2, 3). */
#define DEFINE_HSUM_STEPS(A, V, add, shuffle)                                                  \
    INLINE V A##_hsum_pair(V a, V b) { return add(shuffle(a, b, 0x44), shuffle(a, b, 0xee)); } \
    INLINE V A##_hsum_four(V a, V b) { return add(shuffle(a, b, 0x88), shuffle(a, b, 0xdd)); }
DEFINE_HSUM_STEPS(f32, __m512, _mm512_add_ps, _mm512_shuffle_f32x4)
DEFINE_HSUM_STEPS(f64, __m512d, _mm512_add_pd, _mm512_shuffle_f64x2)

/* Four vectors reduced to two doubles each, which the last step of the tree will add. */
INLINE __m512d f32_hsum_to_two(const f32l *a) {
    const __m512 v = f32_hsum_four(f32_hsum_pair((__m512)a[0].v[0], (__m512)a[1].v[0]),
                                   f32_hsum_pair((__m512)a[2].v[0], (__m512)a[3].v[0]));
    return f64_hsum_four(_mm512_cvtps_pd(_mm512_castps512_ps256(v)), _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1)));
}
INLINE __m512d f64_hsum_to_two(const f64l *a) {
    return f64_hsum_four(f64_hsum_pair((__m512d)a[0].v[0], (__m512d)a[1].v[0]),
                         f64_hsum_pair((__m512d)a[2].v[0], (__m512d)a[3].v[0]));
}
#define DEFINE_HSUM_ALL(A)                                                                                    \
    INLINE void A##_hsum_all(const A##l *a, ptrdiff_t n, double *out) {                                       \
        ptrdiff_t i = 0;                                                                                      \
        for (; i + 8 <= n; i += 8) {                                                                          \
            const __m512d low = A##_hsum_to_two(a + i), high = A##_hsum_to_two(a + i + 4);                    \
            const __m512d sums = _mm512_unpacklo_pd(low, high) + _mm512_unpackhi_pd(low, high);               \
            _mm512_storeu_pd(out + i, _mm512_permutexvar_pd(_mm512_set_epi64(7, 5, 3, 1, 6, 4, 2, 0), sums)); \
        }                                                                                                     \
        for (; i < n; ++i) out[i] = A##_hsum(a[i]);                                                           \
    }
#else
#define DEFINE_HSUM_ALL(A)                                              \
    INLINE void A##_hsum_all(const A##l *a, ptrdiff_t n, double *out) { \
        for (ptrdiff_t i = 0; i < n; ++i) out[i] = A##_hsum(a[i]);      \
    }
#endif
DEFINE_HSUM_ALL(f32)
DEFINE_HSUM_ALL(f64)

#endif
