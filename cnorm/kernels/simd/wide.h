/* Storage types that are computed in double: f32w and u8w, of which element i of a vector of doubles is element i of
 * memory. Loads as in memory.h; f32w has stores too.
 */
#ifndef CNORM_SIMD_WIDE_H
#define CNORM_SIMD_WIDE_H

#include "simd/memory.h"

typedef float f32w;
typedef uint8_t u8w;

#if REGISTER_BYTES == 64

INLINE f64l f32w_load(const f32w *p) { return (f64l){{(f64v)_mm512_cvtps_pd(_mm256_loadu_ps(p))}}; }
INLINE f64l f32w_load_partial(const f32w *p, ptrdiff_t n, f64l padding) {
    const __mmask8 m = (__mmask8)((1u << n) - 1);
    padding.v[0] = (f64v)_mm512_mask_cvtps_pd((__m512d)padding.v[0], m, _mm256_maskz_loadu_ps(m, p));
    return padding;
}
INLINE void f32w_store(f32w *p, f64l a) { _mm256_storeu_ps(p, _mm512_cvtpd_ps((__m512d)a.v[0])); }
INLINE void f32w_store_partial(f32w *p, f64l a, ptrdiff_t n) {
    _mm256_mask_storeu_ps(p, (__mmask8)((1u << n) - 1), _mm512_cvtpd_ps((__m512d)a.v[0]));
}
INLINE void f32w_stream_pair(f32w *p, f64l a, f64l b) {
    const __m512 low = _mm512_castps256_ps512(_mm512_cvtpd_ps((__m512d)a.v[0]));
    STREAM_REGISTER(p, _mm512_insertf32x8(low, _mm512_cvtpd_ps((__m512d)b.v[0]), 1));
}

INLINE f64l u8w_load(const u8w *p) {
    return (f64l){{(f64v)_mm512_cvtepi32_pd(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)))}};
}
INLINE f64l u8w_load_partial(const u8w *p, ptrdiff_t n, f64l padding) {
    const __mmask8 m = (__mmask8)((1u << n) - 1);
    const __m256i x = _mm256_cvtepu8_epi32(_mm_maskz_loadu_epi8(m, p));
    padding.v[0] = (f64v)_mm512_mask_cvtepi32_pd((__m512d)padding.v[0], m, x);
    return padding;
}

#else

#if REGISTER_BYTES == 32
#define WIDEN_F32(p) (f64v)_mm256_cvtps_pd(_mm_loadu_ps(p))
#define NARROW_F32(p, a) _mm_storeu_ps(p, _mm256_cvtpd_ps((__m256d)(a)))
#define WIDEN_U8(p) (f64v)_mm256_cvtepi32_pd(_mm_cvtepu8_epi32(_mm_cvtsi32_si128((int)bytes_load((const char *)(p), 4))))
#elif defined(__SSE4_1__)
#define WIDEN_F32(p) (f64v)_mm_cvtps_pd(_mm_castsi128_ps(_mm_loadl_epi64((const __m128i *)(p))))
#define NARROW_F32(p, a) _mm_storel_epi64((__m128i *)(p), _mm_castps_si128(_mm_cvtpd_ps((__m128d)(a))))
#define WIDEN_U8(p) (f64v)_mm_cvtepi32_pd(_mm_cvtepu8_epi32(_mm_cvtsi32_si128((int)bytes_load((const char *)(p), 2))))
#else
#define WIDEN_F32(p) (f64v){(p)[0], (p)[1]}
#define NARROW_F32(p, a) ((p)[0] = (float)(a)[0], (p)[1] = (float)(a)[1])
#define WIDEN_U8(p) (f64v){(p)[0], (p)[1]}
#endif

#define DEFINE_WIDE_LOAD(S, widen)                                                             \
    INLINE f64l S##_load(const S *p) {                                                         \
        f64l r;                                                                                \
        FOR_REGISTERS r.v[k] = widen(p + k * f64_per_register);                                \
        return r;                                                                              \
    }                                                                                          \
    /* a register at a time, as far as it is whole: what is stored by elements is slow to load \
     * as a vector */                                                                          \
    INLINE f64l S##_load_partial(const S *p, ptrdiff_t n, f64l padding) {                      \
        FOR_REGISTERS {                                                                        \
            const S *const q = p + k * f64_per_register;                                       \
            const ptrdiff_t left = n - k * f64_per_register;                                   \
            if (left >= f64_per_register) padding.v[k] = widen(q);                             \
            else for (int i = 0; i < f64_per_register; ++i)                                    \
                if (i < left) padding.v[k][i] = (double)q[i];                                  \
        }                                                                                      \
        return padding;                                                                        \
    }
DEFINE_WIDE_LOAD(f32w, WIDEN_F32)
DEFINE_WIDE_LOAD(u8w, WIDEN_U8)

INLINE void f32w_store(f32w *p, f64l a) { FOR_REGISTERS NARROW_F32(p + k * f64_per_register, a.v[k]); }
INLINE void f32w_store_partial(f32w *p, f64l a, ptrdiff_t n) {
    f32w all[f64_lanes];
    f32w_store(all, a);
    for (ptrdiff_t i = 0; i < n; ++i) p[i] = all[i];
}
INLINE void f32w_stream_pair(f32w *p, f64l a, f64l b) {
    f32w all[2 * f64_lanes];
    f32w_store(all, a);
    f32w_store(all + f64_lanes, b);
    f32_stream(p, f32_load(all));
}

#endif

INLINE void f32w_store_pair(f32w *p, f64l a, f64l b) {
    f32w_store(p, a);
    f32w_store(p + f64_lanes, b);
}
DEFINE_LOAD_HALVES_WHOLE(f32w, f64)
DEFINE_LOAD_HALVES_WHOLE(u8w, f64)

#endif
