# How the statistics of SwitchNorm mix: instance, layer and batch, of (N, C) moments.

cdef void softmax(const double *logits, Py_ssize_t n, double *shares) noexcept nogil
cdef void softmax_backward(const double *shares, const double *grads, Py_ssize_t n, double *grad_logits) noexcept nogil
cdef void mix_forward(double[:, :, :] moments, double[:, :] layer, double[:, :] batch, bint batch_given, double count,
                      const double *p, const double *q, double eps, double[:, :, :] mixed, int threads) noexcept nogil
cdef void mix_backward(const double[:, :, :] moments, const double[:, :] layer, const double[:, :] batch,
                       const double[:, :] rstd, const double *p, const double *q, bint batch_given, double count,
                       double[:, :, :] sums, double[:, :, :] of_samples, double[:, :] of_channels, double *to_p,
                       double *to_q, int threads) noexcept nogil
