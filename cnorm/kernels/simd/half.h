/* Conversion of float16 and bfloat16 to float and back, one register of floats at a time: f16_widen, f16_narrow,
 * bf16_widen, bf16_narrow. Narrowing rounds to the nearest value, ties to even, and keeps NaN a NaN.
 */
#ifndef CNORM_SIMD_HALF_H
#define CNORM_SIMD_HALF_H

#include "simd/arithmetic.h"

/* x rounded to odd: a float that equals x, or else the neighbour of x whose last bit is odd. Rounding the result to a
 * half type gives what rounding x itself would give: no double rounding. */
INLINE float round_to_odd(double x) {
    union { float f; uint32_t bits; } r = {(float)x};
    const double rest = x - (double)r.f;
    if ((rest < 0 || rest > 0) && !(r.bits & 1)) r.bits += (rest > 0) == (x > 0) ? 1 : -1;
    return r.f;
}

typedef uint32_t u32v __attribute__((vector_size(REGISTER_BYTES)));
typedef uint16_t u16h __attribute__((vector_size(REGISTER_BYTES / 2)));
typedef uint16_t u16hu __attribute__((vector_size(REGISTER_BYTES / 2), aligned(2), may_alias));

/* 16-bit integers to 32 bits. __builtin_convertvector would take twice as many instructions. */
INLINE u32v u16_widen(u16h h) {
#if REGISTER_BYTES == 64
    return (u32v)_mm512_cvtepu16_epi32((__m256i)h);
#elif REGISTER_BYTES == 32
    return (u32v)_mm256_cvtepu16_epi32((__m128i)h);
#elif defined(__SSE4_1__)
    return (u32v)_mm_cvtepu16_epi32(_mm_cvtsi64_si128((long long)h));
#else
    return __builtin_convertvector(h, u32v);
#endif
}

/* 32-bit integers below 2**16 to 16 bits. */
INLINE u16h u16_narrow(u32v x) {
#if REGISTER_BYTES == 64
    return (u16h)_mm512_cvtepi32_epi16((__m512i)x);
#elif REGISTER_BYTES == 32
    return (u16h)_mm_packus_epi32(_mm256_castsi256_si128((__m256i)x), _mm256_extracti128_si256((__m256i)x, 1));
#elif defined(__SSE4_1__)
    return (u16h)_mm_cvtsi128_si64(_mm_packus_epi32((__m128i)x, (__m128i)x));
#else
    return __builtin_convertvector(x, u16h);
#endif
}

#define AS_BITS(x) ((u32v)(x))
#define AS_FLOATS(x) ((f32v)(x))

INLINE f32v f16_widen(u16h h) {
#if REGISTER_BYTES == 64
    return (f32v)_mm512_cvtph_ps((__m256i)h);
#elif REGISTER_BYTES == 32
    return (f32v)_mm256_cvtph_ps((__m128i)h);
#else
    const u32v x = u16_widen(h);
    const u32v magnitude = (x & 0x7fff) << 13, exponent = magnitude & 0x0f800000;
    const u32v normal = magnitude + ((127 - 15) << 23);
    const u32v special = (magnitude + ((255 - 31) << 23)) | ((u32v)(magnitude > 0x0f800000) & 0x400000);
    const f32v subnormal = AS_FLOATS(magnitude + (113 << 23)) - AS_FLOATS((u32v){0} + (113u << 23));
    u32v r = BITWISE_SELECT((u32v)(exponent == 0x0f800000), special, normal);
    r = BITWISE_SELECT((u32v)(exponent == 0), AS_BITS(subnormal), r);
    return AS_FLOATS(r | (x & 0x8000) << 16);
#endif
}

INLINE u16h f16_narrow(f32v f) {
#if REGISTER_BYTES == 64
    return (u16h)_mm512_cvtps_ph((__m512)f, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif REGISTER_BYTES == 32
    return (u16h)_mm256_cvtps_ph((__m256)f, _MM_FROUND_TO_NEAREST_INT);
#else
    const u32v x = AS_BITS(f), magnitude = x & 0x7fffffff;
    const u32v odd = (magnitude >> 13) & 1;
    const u32v normal = (magnitude - ((127 - 15) << 23) + 0xfff + odd) >> 13;
    /* the unit in the last place of 0.5f is the spacing of subnormal halves: the addition rounds to it */
    const u32v subnormal = AS_BITS(AS_FLOATS(magnitude) + 0.5f) - 0x3f000000;
    const u32v special = 0x7c00 | ((u32v)(magnitude > 0x7f800000) & (0x200 | ((magnitude >> 13) & 0x3ff)));
    u32v r = BITWISE_SELECT((u32v)(magnitude < (113u << 23)), subnormal, normal);
    r = BITWISE_SELECT((u32v)(magnitude >= (143u << 23)), special, r);
    return u16_narrow(r | (x & 0x80000000) >> 16);
#endif
}

/* 16-bit integers to the upper halves of 32-bit ones, and back: one shuffle each way on AVX-512. */
#if REGISTER_BYTES == 64
INLINE u32v u16_to_upper(u16h h) {
    const __m512i from = _mm512_set_epi16(15, 0, 14, 0, 13, 0, 12, 0, 11, 0, 10, 0, 9, 0, 8, 0,
                                          7, 0, 6, 0, 5, 0, 4, 0, 3, 0, 2, 0, 1, 0, 0, 0);
    return (u32v)_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, from, _mm512_castsi256_si512((__m256i)h));
}
INLINE u16h u16_from_upper(u32v x) {
    const __m512i from = _mm512_broadcast_i64x4(_mm256_set_epi16(31, 29, 27, 25, 23, 21, 19, 17, 15, 13,
                                                                 11, 9, 7, 5, 3, 1));
    return (u16h)_mm512_castsi512_si256(_mm512_permutexvar_epi16(from, (__m512i)x));
}
#else
INLINE u32v u16_to_upper(u16h h) { return u16_widen(h) << 16; }
INLINE u16h u16_from_upper(u32v x) { return u16_narrow(x >> 16); }
#endif

INLINE f32v bf16_widen(u16h h) {
    /* a signalling NaN stays one here; the first arithmetic operation on it makes it quiet */
    return AS_FLOATS(u16_to_upper(h));
}

INLINE u16h bf16_narrow(f32v f) {
    const u32v x = AS_BITS(f);
#if REGISTER_BYTES == 64
    const __m512i v = (__m512i)x;
    __m512i r = _mm512_add_epi32(v, _mm512_set1_epi32(0x7fff));
    r = _mm512_mask_add_epi32(r, _mm512_test_epi32_mask(v, _mm512_set1_epi32(0x10000)), v,
                              _mm512_set1_epi32(0x8000));
    r = _mm512_mask_or_epi32(r, _mm512_cmp_ps_mask((__m512)f, (__m512)f, _CMP_UNORD_Q), v,
                             _mm512_set1_epi32(0x400000));
    return u16_from_upper((u32v)r);
#else
    const u32v rounded = x + 0x7fff + ((x >> 16) & 1), quiet = x | 0x400000;
    return u16_from_upper(BITWISE_SELECT((u32v)(f != f), quiet, rounded));
#endif
}

#if REGISTER_BYTES == 64
/* Two registers of floats to one of bfloat16, with half the instructions of two bf16_narrow: the lower 16 bits of each
 * float decide whether its upper 16 bits are rounded up. Results of arithmetic hold quiet NaNs only, which truncation
 * keeps NaN. */
INLINE __m512i bf16_narrow_pair(f32v a, f32v b) {
    const __m512i one = _mm512_set1_epi16(1), lower_at = _mm512_set_epi16(
        62, 60, 58, 56, 54, 52, 50, 48, 46, 44, 42, 40, 38, 36, 34, 32,
        30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    const __m512i upper_at = _mm512_or_si512(lower_at, one);
    const __m512i lower = _mm512_permutex2var_epi16((__m512i)a, lower_at, (__m512i)b);
    const __m512i upper = _mm512_permutex2var_epi16((__m512i)a, upper_at, (__m512i)b);
    const __mmask32 number = _mm512_cmple_epi16_mask(_mm512_and_si512(upper, _mm512_set1_epi16(0x7fff)),
                                                     _mm512_set1_epi16(0x7f80));
    /* lower | (upper & 1): of a tie (0x8000) an odd upper half is rounded up, to even */
    const __m512i odd = _mm512_ternarylogic_epi32(lower, upper, one, 0xf8);
    const __mmask32 up = _mm512_mask_cmpgt_epu16_mask(number, odd, _mm512_set1_epi16((short)0x8000));
    return _mm512_mask_add_epi16(upper, up, upper, one);
}
#elif REGISTER_BYTES == 32
/* A vector of bfloat16 to two registers of floats: interleaved with zeros, 16-bit integers are upper halves. */
INLINE void bf16_widen_pair(__m256i h, f32v *a, f32v *b) {
    const __m256i zero = _mm256_setzero_si256(), quarters = _mm256_permute4x64_epi64(h, 0xd8); /* 0, 2, 1, 3 */
    *a = (f32v)_mm256_unpacklo_epi16(zero, quarters);
    *b = (f32v)_mm256_unpackhi_epi16(zero, quarters);
}
/* Two registers of floats to a vector of bfloat16, as on AVX-512, in 14 instructions instead of 24. */
INLINE __m256i bf16_narrow_pair(f32v a, f32v b) {
    const __m256i one = _mm256_set1_epi16(1), lowest = _mm256_set1_epi16((short)0x8000);
    /* of 128 bits the lower halves of the four floats, then the upper ones */
    const __m256i halves = _mm256_broadcastsi128_si256(
        _mm_set_epi8(15, 14, 11, 10, 7, 6, 3, 2, 13, 12, 9, 8, 5, 4, 1, 0));
    const __m256i first = _mm256_shuffle_epi8((__m256i)a, halves), second = _mm256_shuffle_epi8((__m256i)b, halves);
    const __m256i lower = _mm256_unpacklo_epi64(first, second), upper = _mm256_unpackhi_epi64(first, second);
    const __m256i number = _mm256_cmpgt_epi16(_mm256_set1_epi16(0x7f81),
                                              _mm256_and_si256(upper, _mm256_set1_epi16(0x7fff)));
    const __m256i odd = _mm256_or_si256(lower, _mm256_and_si256(upper, one));
    /* odd > 0x8000 of unsigned integers, which AVX2 does not compare; true is -1 */
    const __m256i up = _mm256_cmpgt_epi16(_mm256_xor_si256(odd, lowest), _mm256_setzero_si256());
    return _mm256_permute4x64_epi64(_mm256_sub_epi16(upper, _mm256_and_si256(up, number)), 0xd8);
}
#endif

#endif
