from cnorm.kernels.job cimport Finish


cdef extern from "statistics.h" nogil:
    void moments_about(double shift, double step, double sum_d, double sum_dd, double *mean, double *lo, double *m2)
    void merge_moments(double *mean, double *lo, double *m2, double other_mean, double other_lo, double other_m2,
                       double share, double weight)
    void settle_moments(double *mean, double *lo, double *m2)
    void merge_counted_moments(double *count, double *mean, double *lo, double *m2, double other_count,
                               double other_mean, double other_lo, double other_m2)
    bint shift_is_poor(double count, double sum_d, double sum_dd)
    double rstd_from_variance(double variance, double eps)
    double larger(double a, double b)
    double rstd_from_m2(double m2, double count, const Finish *finish)
    double tiny_square(const Finish *finish)
    double mean_hi_part(double mean, double rounded, double rstd, double eps)
    double dev_coeff_from_sum(double rstd, double sum_gdev, double count)
    double grad_offset_from_sum(double rstd, double sum_g, double count, double mean_lo, double dev_coeff, bint centred)
    double gdev_from_norm(double s, double ties, double rstd, double count, const Finish *finish)
