/* From sums to statistics, from statistics to coefficients: each formula once, for one unit (moments.pxd, units.pxd),
 * for vectors of channels (coefficients.pxd, columns_moments.pxd) and for rows (loops/rows.h).
 *
 * Forward, y = ((x - mean_hi) - mean_lo) * scale + bias with scale = rstd * weight. The mean is subtracted in two
 * parts, since a float has too few bits for the mean: mean_hi is the mean rounded to the accumulation type, mean_lo the
 * rest. Where a unit has one scalar weight, mean_lo is part of the bias.
 *
 * Backward, with d = x - mean_hi, dev = d - mean_lo = x - mean, g = weight * dy, sums over the n elements of a unit:
 *     dx = rstd * (g - sum(g) / n - dev * rstd**2 * sum(g * dev) / n)
 *        = (g * rstd - grad_offset) - d * rstd * dev_coeff
 *     dev_coeff   = rstd**2 * sum(g * dev) / n
 *     grad_offset = rstd * sum(g) / n - mean_lo * rstd * dev_coeff
 * where sum(g * dev) = sum(g * d) - mean_lo * sum(g). A root mean square has no term in sum(g). With given statistics
 * both coefficients are 0. d * rstd comes first in the loops: rstd * dev_coeff may be too small for a float.
 */
#ifndef CNORM_STATISTICS_H
#define CNORM_STATISTICS_H

#include <math.h>

#include "finish.h"
#include "simd/arithmetic.h"
#include "tuning.h"

/* The mean and M2 of a unit from the sums of d and d*d, d = x - shift; step is sum_d / count. */
INLINE void moments_about(double shift, double step, double sum_d, double sum_dd, double *mean, double *lo,
                          double *m2) {
    const double squares = sum_dd - sum_d * step;
    *mean = shift + step;
    *lo = (shift - *mean) + step;
    *m2 = squares < 0 ? 0 : squares; /* negative by rounding alone; NaN stays NaN */
}

/* Merges other moments into mean, lo and m2 (Chan et al. 1979). share = other_count / (count + other_count), weight =
 * count * share. */
INLINE void merge_moments(double *mean, double *lo, double *m2, double other_mean, double other_lo, double other_m2,
                          double share, double weight) {
    const double delta = (other_mean - *mean) + (other_lo - *lo);
    const double step = *lo + delta * share, merged = *mean + step;
    *lo = (*mean - merged) + step;
    *mean = merged;
    *m2 = *m2 + other_m2 + delta * delta * weight;
}

/* The mean as the nearest double and the rest. NaN and infinity make all of a unit NaN. */
INLINE void settle_moments(double *mean, double *lo, double *m2) {
    const double nothing = (*mean - *mean) + (*lo - *lo); /* 0, or NaN */
    const double shift = *lo + nothing, settled = *mean + shift;
    *lo = (*mean - settled) + shift;
    *mean = settled;
    *m2 = *m2 + nothing;
}

/* Merges the moments of one unit into others; either may be of nothing. */
INLINE void merge_counted_moments(double *count, double *mean, double *lo, double *m2, double other_count,
                                  double other_mean, double other_lo, double other_m2) {
    if (other_count == 0) return;
    if (*count == 0) {
        *count = other_count;
        *mean = other_mean;
        *lo = other_lo;
        *m2 = other_m2;
        return;
    }
    const double share = other_count / (*count + other_count);
    merge_moments(mean, lo, m2, other_mean, other_lo, other_m2, share, *count * share);
    *count += other_count;
}

/* Whether a probe's sums of x and x*x ask for a shift: |mean| is more than the standard deviation,
 * mean**2 > variance, times count**2. */
INLINE int probe_needs_shift(double count, double sum_d, double sum_dd) { return 2 * sum_d * sum_d > count * sum_dd; }

/* Whether sums of d and d*d about a shift lost too many bits: the mean is more than sqrt(2) standard deviations from
 * the shift, (mean - shift)**2 > 2 * variance, times count**2. */
INLINE int shift_is_poor(double count, double sum_d, double sum_dd) { return 3 * sum_d * sum_d > 2 * count * sum_dd; }

/* mean_hi: the rounded mean, or 0 where |mean| is at most the standard deviation. mean_lo is then the whole mean, and
 * rounding it to the accumulation type costs less than 2**-24 standard deviations (float64: 2**-53). Constant units,
 * and nearly constant ones (CONSTANT_UNIT), always have the rounded mean: their result is exactly the bias. */
INLINE double mean_hi_part(double mean, double rounded, double rstd, double eps) {
    return fabs(mean) * rstd <= 1 && rstd * rstd * eps < CONSTANT_UNIT ? 0 : rounded;
}

INLINE double dev_coeff_from_sum(double rstd, double sum_gdev, double count) { return rstd * rstd * sum_gdev / count; }

INLINE double grad_offset_from_sum(double rstd, double sum_g, double count, double mean_lo, double dev_coeff,
                                   int centred) {
    return (centred ? rstd * sum_g / count : 0) - mean_lo * rstd * dev_coeff;
}

#endif
