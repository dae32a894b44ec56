/* Loads, stores, non-temporal stores and the fence, per storage type S.
 *
 * S_load, S_store                  a whole vector, at any alignment
 * S_load_partial, S_store_partial  the first n elements of a vector; the other lanes of a load take those of `padding`
 * S_load_halves, S_splits_line     a load in two halves, and whether it pays at an address
 * S_store_pair                     two vectors, to consecutive addresses
 * S_stream, S_stream_pair          non-temporal stores of one or two vectors; the address is a multiple of LANES_ALIGN
 */
#ifndef CNORM_SIMD_MEMORY_H
#define CNORM_SIMD_MEMORY_H

#include <string.h>

#include "simd/half.h"

#define LANES_ALIGN 64 /* bytes of a cache line */

#define DEFINE_HALF_LOAD_STORE(S)                                                             \
    INLINE f32l S##_load(const S *p) {                                                        \
        f32l r;                                                                               \
        FOR_REGISTERS r.v[k] = S##_widen((u16h) * (const u16hu *)(p + k * f32_per_register)); \
        return r;                                                                             \
    }                                                                                         \
    INLINE void S##_store(S *p, f32l a) {                                                     \
        FOR_REGISTERS *(u16hu *)(p + k * f32_per_register) = (u16hu)S##_narrow(a.v[k]);       \
    }
DEFINE_HALF_LOAD_STORE(f16)
#if REGISTER_BYTES == 32 /* both registers of a vector at once take fewer instructions */
INLINE f32l bf16_load(const bf16 *p) {
    f32l r;
    bf16_widen_pair(_mm256_loadu_si256((const __m256i *)p), &r.v[0], &r.v[1]);
    return r;
}
INLINE void bf16_store(bf16 *p, f32l a) { _mm256_storeu_si256((__m256i *)p, bf16_narrow_pair(a.v[0], a.v[1])); }
#else
DEFINE_HALF_LOAD_STORE(bf16)
#endif

/* ---- loads in two halves ----
 * A load of 64 bytes at an address that is no multiple of 64 touches two cache lines; NumPy's arrays mostly begin 16
 * bytes into a line. Two loads of 32 bytes cost the sums less, since only one of them touches two lines. */

#if REGISTER_BYTES == 64
#define DEFINE_LOAD_HALVES(S, A, insert, low, load)                           \
    INLINE int S##_splits_line(const S *p) { return (uintptr_t)p % 32 != 0; } \
    INLINE A##l S##_load_halves(const S *p) {                                 \
        A##l r;                                                               \
        r.v[0] = (A##v)insert(low(load(p)), load(p + A##_lanes / 2), 1);      \
        return r;                                                             \
    }
DEFINE_LOAD_HALVES(f32, f32, _mm512_insertf32x8, _mm512_castps256_ps512, _mm256_loadu_ps)
DEFINE_LOAD_HALVES(f64, f64, _mm512_insertf64x4, _mm512_castpd256_pd512, _mm256_loadu_pd)
#endif
#define DEFINE_LOAD_HALVES_WHOLE(S, A)                            \
    INLINE int S##_splits_line(const S *p) { return (void)p, 0; } \
    INLINE A##l S##_load_halves(const S *p) { return S##_load(p); }
#if REGISTER_BYTES < 64
DEFINE_LOAD_HALVES_WHOLE(f32, f32)
DEFINE_LOAD_HALVES_WHOLE(f64, f64)
#endif
DEFINE_LOAD_HALVES_WHOLE(f16, f32)
DEFINE_LOAD_HALVES_WHOLE(bf16, f32)

/* ---- partial vectors: the end of a run, 0 < n < lanes ---- */

#if REGISTER_BYTES == 64

INLINE f32l f32_load_partial(const f32 *p, ptrdiff_t n, f32l padding) {
    padding.v[0] = (f32v)_mm512_mask_loadu_ps((__m512)padding.v[0], (__mmask16)((1u << n) - 1), p);
    return padding;
}
INLINE void f32_store_partial(f32 *p, f32l a, ptrdiff_t n) {
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)a.v[0]);
}
INLINE f64l f64_load_partial(const f64 *p, ptrdiff_t n, f64l padding) {
    padding.v[0] = (f64v)_mm512_mask_loadu_pd((__m512d)padding.v[0], (__mmask8)((1u << n) - 1), p);
    return padding;
}
INLINE void f64_store_partial(f64 *p, f64l a, ptrdiff_t n) {
    _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1), (__m512d)a.v[0]);
}
#define DEFINE_HALF_PARTIAL(S)                                                                \
    INLINE f32l S##_load_partial(const S *p, ptrdiff_t n, f32l padding) {                     \
        const __mmask16 m = (__mmask16)((1u << n) - 1);                                       \
        const f32v x = S##_widen((u16h)_mm256_maskz_loadu_epi16(m, p));                       \
        padding.v[0] = (f32v)_mm512_mask_mov_ps((__m512)padding.v[0], m, (__m512)x);          \
        return padding;                                                                       \
    }                                                                                         \
    INLINE void S##_store_partial(S *p, f32l a, ptrdiff_t n) {                                \
        _mm256_mask_storeu_epi16(p, (__mmask16)((1u << n) - 1), (__m256i)S##_narrow(a.v[0])); \
    }
DEFINE_HALF_PARTIAL(f16)
DEFINE_HALF_PARTIAL(bf16)

#else

/* A mask of the first n lanes begins at element lanes - n of these. */
static const int32_t FIRST_LANES_32[32] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
static const int64_t FIRST_LANES_64[16] = {-1, -1, -1, -1, -1, -1, -1, -1};

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "cnorm's kernels need a little-endian processor"
#endif

/* The first n bytes at p, n even, as one integer; 8 at most. They do not pass through memory: a vector load of
 * several smaller stores would wait until all of them have left the store buffer. */
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

/* Partial vectors of 8-byte words, for register type V. Not inlined: the code is long and runs once per run. */
#define WORDS(V) ((ptrdiff_t)(sizeof(V) / 8))
#define DEFINE_PARTIAL_BY_WORDS(S, A, V, first_lanes, widen, narrow)                                \
    static __attribute__((noinline)) A##l S##_load_partial(const S *p, ptrdiff_t n, A##l padding) { \
        typedef uint64_t words __attribute__((vector_size(sizeof(V))));                             \
        FOR_REGISTERS {                                                                             \
            const char *const q = (const char *)(p + k * A##_per_register);                         \
            const ptrdiff_t left = (n - k * A##_per_register) * (ptrdiff_t)sizeof(S);               \
            words w;                                                                                \
            for (ptrdiff_t i = 0; i < WORDS(V); ++i) w[i] = bytes_load(q + 8 * i, left - 8 * i);    \
            const A##m mask = *(const A##mu *)(first_lanes + A##_lanes - n + k * A##_per_register); \
            padding.v[k] = (A##v)BITWISE_SELECT(mask, (A##m)widen((V)w), (A##m)padding.v[k]);       \
        }                                                                                           \
        return padding;                                                                             \
    }                                                                                               \
    static __attribute__((noinline)) void S##_store_partial(S *p, A##l a, ptrdiff_t n) {            \
        typedef uint64_t words __attribute__((vector_size(sizeof(V))));                             \
        FOR_REGISTERS {                                                                             \
            char *const q = (char *)(p + k * A##_per_register);                                     \
            const ptrdiff_t left = (n - k * A##_per_register) * (ptrdiff_t)sizeof(S);               \
            const words w = (words)narrow(a.v[k]);                                                  \
            for (ptrdiff_t i = 0; i < WORDS(V); ++i) bytes_store(q + 8 * i, w[i], left - 8 * i);    \
        }                                                                                           \
    }
DEFINE_PARTIAL_BY_WORDS(f16, f32, u16h, FIRST_LANES_32, f16_widen, f16_narrow)
DEFINE_PARTIAL_BY_WORDS(bf16, f32, u16h, FIRST_LANES_32, bf16_widen, bf16_narrow)

#if REGISTER_BYTES == 32
/* The first n bytes of 64 in stores of 32, 16, 8, 4 and 2 bytes: masked stores are slow on AMD processors. */
INLINE void bytes_store_partial(char *p, __m256i low, __m256i high, ptrdiff_t n) {
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
#define DEFINE_PARTIAL_BY_MASK(A, V, first_lanes, load, blend)                                      \
    INLINE A##l A##_load_partial(const A *p, ptrdiff_t n, A##l padding) {                           \
        FOR_REGISTERS {                                                                             \
            const void *const mask = first_lanes + A##_lanes - n + k * A##_per_register;            \
            const __m256i m = _mm256_loadu_si256((const __m256i *)mask);                            \
            padding.v[k] = (A##v)blend((V)padding.v[k], load(p + k * A##_per_register, m), (V)m);   \
        }                                                                                           \
        return padding;                                                                             \
    }                                                                                               \
    INLINE void A##_store_partial(A *p, A##l a, ptrdiff_t n) {                                      \
        bytes_store_partial((char *)p, (__m256i)a.v[0], (__m256i)a.v[1], n * (ptrdiff_t)sizeof(A)); \
    }
DEFINE_PARTIAL_BY_MASK(f32, __m256, FIRST_LANES_32, _mm256_maskload_ps, _mm256_blendv_ps)
DEFINE_PARTIAL_BY_MASK(f64, __m256d, FIRST_LANES_64, _mm256_maskload_pd, _mm256_blendv_pd)
#else
DEFINE_PARTIAL_BY_WORDS(f32, f32, f32v, FIRST_LANES_32, , )
DEFINE_PARTIAL_BY_WORDS(f64, f64, f64v, FIRST_LANES_64, , )
#endif

#endif

/* ---- non-temporal stores, for results larger than the cache ---- */

#if REGISTER_BYTES == 64
#define STREAM_REGISTER(p, v) _mm512_stream_si512((void *)(p), (__m512i)(v))
#define STREAM_HALF_REGISTER(p, v) _mm256_stream_si256((void *)(p), (__m256i)(v))
#define STREAM_FENCE _mm_sfence()
#elif REGISTER_BYTES == 32
#define STREAM_REGISTER(p, v) _mm256_stream_si256((void *)(p), (__m256i)(v))
#define STREAM_HALF_REGISTER(p, v) _mm_stream_si128((void *)(p), (__m128i)(v))
#define STREAM_FENCE _mm_sfence()
#elif defined(__SSE2__)
#define STREAM_REGISTER(p, v) _mm_stream_si128((void *)(p), (__m128i)(v))
#define STREAM_HALF_REGISTER(p, v) (*(u16hu *)(p) = (u16hu)(v))
#define STREAM_FENCE _mm_sfence()
#else
#define STREAM_REGISTER(p, v) memcpy((p), &(v), sizeof(v))
#define STREAM_HALF_REGISTER(p, v) (*(u16hu *)(p) = (u16hu)(v))
#define STREAM_FENCE ((void)0)
#endif

/* Makes the non-temporal stores of this thread visible to other threads. It waits for memory, so it is called once for
 * many rows. */
INLINE void store_fence(void) { STREAM_FENCE; }

INLINE void f32_stream(f32 *p, f32l a) { FOR_REGISTERS STREAM_REGISTER(p + k * f32_per_register, a.v[k]); }
INLINE void f64_stream(f64 *p, f64l a) { FOR_REGISTERS STREAM_REGISTER(p + k * f64_per_register, a.v[k]); }
INLINE void f16_stream(f16 *p, f32l a) {
    FOR_REGISTERS STREAM_HALF_REGISTER(p + k * f32_per_register, f16_narrow(a.v[k]));
}
INLINE void bf16_stream(bf16 *p, f32l a) {
#if REGISTER_BYTES == 32
    STREAM_REGISTER(p, bf16_narrow_pair(a.v[0], a.v[1]));
#else
    FOR_REGISTERS STREAM_HALF_REGISTER(p + k * f32_per_register, bf16_narrow(a.v[k]));
#endif
}

/* ---- pairs of vectors: bfloat16 narrows two vectors with fewer instructions than twice one ---- */

#define DEFINE_PAIR(S, A)                               \
    INLINE void S##_store_pair(S *p, A##l a, A##l b) {  \
        S##_store(p, a);                                \
        S##_store(p + A##_lanes, b);                    \
    }                                                   \
    INLINE void S##_stream_pair(S *p, A##l a, A##l b) { \
        S##_stream(p, a);                               \
        S##_stream(p + A##_lanes, b);                   \
    }
DEFINE_PAIR(f32, f32)
DEFINE_PAIR(f64, f64)
DEFINE_PAIR(f16, f32)
#if REGISTER_BYTES == 64
#define DEFINE_NARROWED_PAIR(S)                                  \
    INLINE void S##_store_pair(S *p, f32l a, f32l b) {           \
        _mm512_storeu_si512(p, S##_narrow_pair(a.v[0], b.v[0])); \
    }                                                            \
    INLINE void S##_stream_pair(S *p, f32l a, f32l b) { STREAM_REGISTER(p, S##_narrow_pair(a.v[0], b.v[0])); }
DEFINE_NARROWED_PAIR(bf16)
#else
DEFINE_PAIR(bf16, f32)
#endif

#endif
