# The kernels for other people's Cython: one entry for each family and direction, over strided memoryviews, without
# the GIL. docs/cython.md is their documentation. Use: from cnorm.kernels.api cimport OK, rows_forward

ctypedef fused real:
    float
    double

cdef enum Status:
    OK = 0
    NO_MEMORY = -1     # nothing was written
    BAD_LAYOUT = -2    # shapes that do not fit, or a last axis that is not contiguous; nothing was written

# LayerNorm (centred) and RMSNorm of each row of (M, L). weight and bias have L values, mean and rstd M; each of the
# four may be None. y may be x.
cdef int rows_forward(const real[:, :] x, real[:, :] y, const real[:] weight, const real[:] bias, double[:] mean,
                      double[:] rstd, bint centred, double eps, int threads) noexcept nogil

# dx may be dy or x. weight, grad_weight and grad_bias may be None, mean where not centred.
cdef int rows_backward(const real[:, :] dy, const real[:, :] x, real[:, :] dx, const real[:] weight,
                       const double[:] mean, const double[:] rstd, double[:] grad_weight, double[:] grad_bias,
                       bint centred, int threads) noexcept nogil

# (N, C, S), S contiguous. groups 0 is BatchNorm, with C values of mean and rstd; else GroupNorm, with N * groups of
# them, InstanceNorm where groups is C. given: mean and rstd are read, else written. weight and bias may be None, mean
# and rstd where they are written.
cdef int segments_forward(const real[:, :, :] x, real[:, :, :] y, const real[:] weight, const real[:] bias,
                          double[:] mean, double[:] rstd, Py_ssize_t groups, bint given, double eps,
                          int threads) noexcept nogil

# given: the statistics do not depend on x (evaluation).
cdef int segments_backward(const real[:, :, :] dy, const real[:, :, :] x, real[:, :, :] dx, const real[:] weight,
                           const double[:] mean, const double[:] rstd, double[:] grad_weight, double[:] grad_bias,
                           Py_ssize_t groups, bint given, int threads) noexcept nogil

# BatchNorm of (M, C), C contiguous: channels last, all positions of all samples in one axis.
cdef int columns_forward(const real[:, :] x, real[:, :] y, const real[:] weight, const real[:] bias, double[:] mean,
                         double[:] rstd, bint given, double eps, int threads) noexcept nogil
cdef int columns_backward(const real[:, :] dy, const real[:, :] x, real[:, :] dx, const real[:] weight,
                          const double[:] mean, const double[:] rstd, double[:] grad_weight, double[:] grad_bias,
                          bint given, int threads) noexcept nogil

# SwitchNorm of (M, C), C contiguous, M and C at least 2. shares: of the means of row and column, then of their
# variances. rows (3, M) and columns (3, C), contiguous, are written: mean, what its rounding lacks, and the unbiased
# variance; given: those of columns are read. weight and bias may be None.
cdef int crossed_forward(const real[:, :] x, real[:, :] y, const real[:] weight, const real[:] bias,
                         const double[:] shares, double[:, :] rows, double[:, :] columns, bint given, double eps,
                         int threads) noexcept nogil

# grad_shares: the gradients of the first share less that of the second, of means and of variances; it may be None.
cdef int crossed_backward(const real[:, :] dy, const real[:, :] x, real[:, :] dx, const real[:] weight,
                          const double[:] shares, const double[:, :] rows, const double[:, :] columns,
                          double[:] grad_weight, double[:] grad_bias, double[:] grad_shares, bint given, double eps,
                          int threads) noexcept nogil

# Local response norm over windows of `size` channels of (N, C, S), where S or C is contiguous. Forward, y shares no
# memory with x where S is contiguous.
cdef int window_forward(const real[:, :, :] x, real[:, :, :] y, Py_ssize_t size, double alpha, double beta, double k,
                        int threads) noexcept nogil
cdef int window_backward(const real[:, :, :] dy, const real[:, :, :] x, real[:, :, :] dx, Py_ssize_t size,
                         double alpha, double beta, double k, int threads) noexcept nogil
