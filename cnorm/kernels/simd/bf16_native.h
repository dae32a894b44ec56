/* bf16n: bfloat16 narrowed by the processor's own instruction (AVX512_BF16), with the bits of bf16 in half the
 * instructions.
 *
 * It is a second storage type within the AVX-512 build. Its code, and the loops for it, are compiled between
 * NATIVE_BF16_BEGIN and NATIVE_BF16_END, and used where bf16n_supported(). NATIVE_BF16 is 0 in the other builds.
 */
#ifndef CNORM_SIMD_BF16_NATIVE_H
#define CNORM_SIMD_BF16_NATIVE_H

#include "simd/memory.h"

#if REGISTER_BYTES == 64 && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 11
#define NATIVE_BF16 1
#define NATIVE_BF16_BEGIN _Pragma("GCC push_options") _Pragma("GCC target(\"avx512bf16\")")
#define NATIVE_BF16_END _Pragma("GCC pop_options")

typedef struct { uint16_t bits; } bf16n;
INLINE int bf16n_supported(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512bf16") != 0;
}

NATIVE_BF16_BEGIN
/* The lanes that hold subnormal floats, which the instruction would take for 0. */
INLINE __mmask16 subnormal_lanes(f32v f) { return _mm512_fpclass_ps_mask((__m512)f, 0x20); }

INLINE f32v bf16n_widen(u16h h) { return bf16_widen(h); }
INLINE u16h bf16n_narrow(f32v f) {
    if (__builtin_expect(subnormal_lanes(f) != 0, 0)) return bf16_narrow(f);
    return (u16h)_mm512_cvtneps_pbh((__m512)f);
}
INLINE __m512i bf16n_narrow_pair(f32v a, f32v b) {
    const int any_subnormal = !_kortestz_mask16_u8(subnormal_lanes(a), subnormal_lanes(b));
    if (__builtin_expect(any_subnormal, 0)) return bf16_narrow_pair(a, b);
    return (__m512i)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a);
}
DEFINE_HALF_LOAD_STORE(bf16n)
DEFINE_HALF_PARTIAL(bf16n)
DEFINE_LOAD_HALVES_WHOLE(bf16n, f32)
INLINE void bf16n_stream(bf16n *p, f32l a) { STREAM_HALF_REGISTER(p, bf16n_narrow(a.v[0])); }
DEFINE_NARROWED_PAIR(bf16n)
NATIVE_BF16_END
#else
#define NATIVE_BF16 0
#endif

#endif
