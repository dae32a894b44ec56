/* exp in double, within 1 ulp, with the same bits everywhere: the platform's own differs from one to the next.
 *
 * x = k * log(2) + r with |r| <= log(2) / 2, and exp(x) = 2**k * exp(r). log(2) comes in two parts, the first short
 * enough that k times it is exact; what rounding r loses goes into the last step. exp(r) = 1 + r + r**2 * q(r), q by
 * Taylor's series: its next term is below 2**-57. */
#ifndef CNORM_EXPONENTIAL_H
#define CNORM_EXPONENTIAL_H

#include <math.h>

static inline double exponential(double x) {
    static const double inverse[] = { /* 1 / n! for n = 2 ... 13 */
        1.0 / 2, 1.0 / 6, 1.0 / 24, 1.0 / 120, 1.0 / 720, 1.0 / 5040, 1.0 / 40320, 1.0 / 362880, 1.0 / 3628800,
        1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800.0};
    const double log2_hi = 0x1.62e42fee00000p-1, log2_lo = 0x1.a39ef35793c76p-33;
    if (!(x > -746)) return x - x == 0 || x < 0 ? 0 : x; /* underflow; NaN stays NaN */
    if (x > 710) return INFINITY;
    const double k = floor(x * 0x1.71547652b82fep+0 + 0.5);
    const double high = x - k * log2_hi, low = k * log2_lo;
    const double r = high - low, rest = (high - r) - low;
    double q = inverse[11];
    for (int n = 10; n >= 0; --n) q = q * r + inverse[n];
    return ldexp(1 + (r + (rest + r * r * q)), (int)k);
}

#endif
