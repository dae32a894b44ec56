/* The finishing formula: how the moments of a unit become its rstd, and what backward makes of it. Families hand on the
 * Finish of their job as it is, so another formula is a change of this file, with a Norm for it, which job.pxd declares
 * for Cython. Only the gradients of rows do not: no norm of theirs has another formula, and a RowGradBlock has none. */
#ifndef CNORM_FINISH_H
#define CNORM_FINISH_H

#include <math.h>

#include "tuning.h"

/* What a unit is divided by: its deviation or root mean square; or a norm of it, the root of the sum of its squares,
 * the sum of its magnitudes, or the largest of them. 0 means no norm everywhere, so `if (norm)` reads as "by a norm". */
enum Norm { NORM_NONE, NORM_2, NORM_1, NORM_MAX };

/* Whether a norm is made of magnitudes, whose gradients are signs, and not of squares. */
static inline int has_signs(int norm) { return norm == NORM_1 || norm == NORM_MAX; }

/* What the formula depends on beside the moments. */
typedef struct {
    double eps;      /* added to the variance; with a norm, the least number to divide by */
    double rstd_max; /* with a norm, backward: rstd of units that were divided by eps, which has no gradient */
    int norm;        /* Norm */
} Finish;

static inline double rstd_from_variance(double variance, double eps) { return 1 / sqrt(variance + eps); }

/* Forward; variance is m2 / count. With a norm, m2 is the sum of the squares of a unit, the sum of its magnitudes
 * (NORM_1) or the largest (NORM_MAX), and y = x * rstd with rstd = 1 / max(norm, eps). A norm that is NaN stays NaN. */
static inline double finished_rstd(double m2, double variance, const Finish *finish) {
    if (finish->norm == NORM_NONE) return rstd_from_variance(variance, finish->eps);
    const double divisor = finish->norm == NORM_2 ? sqrt(m2) : m2;
    return 1 / (divisor < finish->eps ? finish->eps : divisor);
}
static inline double rstd_from_m2(double m2, double count, const Finish *finish) {
    return finished_rstd(m2, m2 / count, finish);
}

/* The mean square below which squares of floats have underflowed, and the sums are taken again in double; -1 where eps
 * hides it: as a variance, or with a norm its square. */
static inline double tiny_square(const Finish *finish) {
    const double least = finish->norm == NORM_NONE ? finish->eps : finish->eps * finish->eps;
    return least < TINY_SQUARE ? TINY_SQUARE : -1;
}

/* Backward, with a norm: what takes the place of sum(g * dev) in dev_coeff. With g = dy * weight and s = sum(g * x),
 *     dx = g * rstd - x * rstd**3 * s                  NORM_2
 *     dx = g * rstd - sign(x) * rstd**2 * s            NORM_1
 *     dx = g * rstd - sign(x) * rstd**2 * s / ties     NORM_MAX: the `ties` elements whose magnitude is the largest
 * and dx = g * rstd where the unit was divided by eps: its rstd is then rstd_max. */
static inline double gdev_from_norm(double s, double ties, double rstd, double count, const Finish *finish) {
    if (rstd >= finish->rstd_max) return 0;
    if (finish->norm == NORM_MAX) return ties > 0 ? s * count / (rstd * ties) : 0;
    return finish->norm == NORM_2 ? s * count : s * count / rstd;
}

#endif
