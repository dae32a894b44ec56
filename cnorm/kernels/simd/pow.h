/* Powers a**-b for a > 0: A_negative_power.
 *
 * Computed in double as 2**(-b * log2(a)). The pow of one C library differs from that of the next in the last bits,
 * which would break the promise of equal bits. a = 2**e * m with m in [sqrt(1/2), sqrt(2)), and
 * log(m) = 2 * atanh((m - 1) / (m + 1)) by its series. Lanes outside the range of that method take the library's pow.
 */
#ifndef CNORM_SIMD_POW_H
#define CNORM_SIMD_POW_H

#include <math.h>

#include "simd/arithmetic.h"

typedef int64_t i64v __attribute__((vector_size(REGISTER_BYTES)));

INLINE f64v f64v_negative_power(f64v a, double b) {
    const f64v zero = {0}, shifter = zero + 0x1.8p52;
    const i64v bits = (i64v)a;
    /* the exponent of a * sqrt(2), so that m is centred on 1 */
    const i64v biased = (bits + (0x3ff0000000000000 - 0x3fe6a09e667f3bcd)) & 0x7ff0000000000000;
    const f64v m = (f64v)(bits - biased + 0x3ff0000000000000);
    const f64v e = (f64v)(((i64v)((biased >> 52) & 0x7ff)) | 0x4330000000000000) - (0x1p52 + 1023);
    const f64v z = (m - 1) / (m + 1), w = z * z;
    f64v series = zero + 1.0 / 23;
    for (int i = 21; i >= 1; i -= 2) series = series * w + 1.0 / i;
    const f64v log2_m = z * series * 2.8853900817779268;
    const f64v y = -b * e - b * log2_m;
    const f64v n = (y + shifter) - shifter;
    /* the rounding of -b * e in y is small: e has few bits, and b has few or the product is rounded once */
    const f64v f = (y - n) * 0.69314718055994531;
    f64v power = zero + 1;
    for (int i = 14; i >= 1; --i) power = power * (f / (double)i) + 1;
    const i64v scale = ((i64v)(n + shifter) + 1023) << 52;
    power *= (f64v)scale;
    const i64v fine = (i64v)((a > 0x1p-1022) & (a < __builtin_inf()) & (y < 1022) & (y > -1022));
    if (__builtin_expect(({ int all = 1; for (int i = 0; i < f64_per_register; ++i) all &= fine[i] != 0; all; }), 1))
        return power;
    for (int i = 0; i < f64_per_register; ++i)
        if (!fine[i]) power[i] = pow(a[i], -b);
    return power;
}

INLINE f64l f64_negative_power(f64l a, double b) {
    FOR_REGISTERS a.v[k] = f64v_negative_power(a.v[k], b);
    return a;
}

INLINE f32l f32_negative_power(f32l a, double b) {
    float lane[f32_lanes];
    double wide[f32_lanes];
    f32_store(lane, a);
    for (int i = 0; i < f32_lanes; ++i) wide[i] = lane[i];
    for (int i = 0; i < f32_lanes; i += f64_per_register)
        *(f64u *)(wide + i) = f64v_negative_power(*(const f64u *)(wide + i), b);
    for (int i = 0; i < f32_lanes; ++i) lane[i] = (float)wide[i];
    return f32_load(lane);
}

#endif
