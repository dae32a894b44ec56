# cython: boundscheck=False, wraparound=False
"""Mixing statistics: what SwitchNorm does between the moments of each (sample, channel) and its result.

Arrays here have N * C values, or N, or C: images have many times as many. Everything is in double, and sums are taken
in an order that the shape alone fixes. Means are a double-double, mean + lo. A mean that is subtracted from another is
so in both its parts, so that nothing cancels where all are large.

Of N samples and C channels: `moments` (3, N, C) holds mean, lo and the unbiased variance; `layer` (3, N) and `batch`
(3, C) the same of a sample and of a channel; `mixed` (3, N, C) mean, lo and rstd. `batch` may have length 0 along its
first axis: then two statistics are mixed.
"""

from cython.parallel cimport prange
from libc.math cimport sqrt

cdef extern from "exponential.h" nogil:
    double exponential(double)

cdef extern from "simd/subnormals.h" nogil:
    unsigned enable_subnormals()
    void restore_subnormals(unsigned)

cdef enum:
    LANES = 8              # of a sum along a sample's channels
    CHANNELS = 64          # whose sums over the samples are taken together
    PARALLEL_MIN = 1 << 14 # values from which on threads share them
    N_SUMS = 7             # of a sample in backward: see `sample_sums`


def exp(double x):
    """exp, within 1 ulp, with the same bits everywhere."""
    return exponential(x)


cdef void softmax(const double *logits, Py_ssize_t n, double *shares) noexcept nogil:
    """The softmax of n logits."""
    cdef double most = logits[0], total = 0
    cdef Py_ssize_t k
    for k in range(1, n):
        if logits[k] > most:
            most = logits[k]
    for k in range(n):
        shares[k] = exponential(logits[k] - most)
        total += shares[k]
    for k in range(n):
        shares[k] /= total


cdef void softmax_backward(const double *shares, const double *grads, Py_ssize_t n, double *grad_logits) noexcept nogil:
    """The gradients of the logits from those of the shares."""
    cdef double centre = 0
    cdef Py_ssize_t k
    for k in range(n):
        centre += shares[k] * grads[k]
    for k in range(n):
        grad_logits[k] = shares[k] * (grads[k] - centre)


cdef inline double sum_of_lanes(const double *lanes) noexcept nogil:
    return (((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7])))


cdef inline void clear(double *values, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        values[i] = 0


cdef inline int team(Py_ssize_t values, int threads) noexcept nogil:
    """Threads for so many values."""
    return threads if values >= PARALLEL_MIN else 1


# ---- merging: moments of equal counts ----
# mean = first + step, step the mean of the offsets from the first; variance = mean variance + variance of the offsets.


cdef void merge_layer(double[:, :, :] moments, double count, double[:, :] layer, Py_ssize_t n) noexcept nogil:
    """The layer's mean, lo and variance of sample n, whose sums of squares become variances."""
    cdef Py_ssize_t channels = moments.shape[2], c
    cdef double first = moments[0, n, 0], step, offset
    cdef double offsets[LANES]
    cdef double squares[LANES]
    clear(offsets, LANES)
    clear(squares, LANES)
    for c in range(channels):
        offsets[c % LANES] += (moments[0, n, c] - first) + moments[1, n, c]
    step = sum_of_lanes(offsets) / <double> channels
    for c in range(channels):
        moments[2, n, c] /= count - 1
        offset = (moments[0, n, c] - first) + moments[1, n, c] - step
        squares[c % LANES] += moments[2, n, c] + offset * offset
    layer[0, n] = first + step
    layer[1, n] = (first - layer[0, n]) + step
    layer[2, n] = sum_of_lanes(squares) / <double> channels


cdef void merge_channels(const double[:, :, :] moments, double[:, :] batch, Py_ssize_t at) noexcept nogil:
    """The batch's mean, lo and variance of CHANNELS channels, the last perhaps fewer."""
    cdef Py_ssize_t begin = at * CHANNELS, count = min(<Py_ssize_t> CHANNELS, moments.shape[2] - begin)
    cdef Py_ssize_t samples = moments.shape[1], n, i
    cdef double first[CHANNELS]
    cdef double offsets[CHANNELS]
    cdef double squares[CHANNELS]
    cdef double offset
    clear(offsets, count)
    clear(squares, count)
    for i in range(count):
        first[i] = moments[0, 0, begin + i]
    for n in range(samples):
        for i in range(count):
            offsets[i] += (moments[0, n, begin + i] - first[i]) + moments[1, n, begin + i]
    for i in range(count):
        offsets[i] /= <double> samples
    for n in range(samples):
        for i in range(count):
            offset = (moments[0, n, begin + i] - first[i]) + moments[1, n, begin + i] - offsets[i]
            squares[i] += moments[2, n, begin + i] + offset * offset
    for i in range(count):
        batch[0, begin + i] = first[i] + offsets[i]
        batch[1, begin + i] = (first[i] - batch[0, begin + i]) + offsets[i]
        batch[2, begin + i] = squares[i] / <double> samples


# ---- forward ----


cdef void mix_sample(const double[:, :, :] moments, const double[:, :] layer, const double[:, :] batch, const double *p,
                     const double *q, double eps, double[:, :, :] mixed, Py_ssize_t n) noexcept nogil:
    """The mixed mean, lo and rstd of the channels of sample n, about the instance's mean: shares add up to 1."""
    cdef double mean, lo, step, var
    cdef Py_ssize_t c
    for c in range(moments.shape[2]):
        mean = moments[0, n, c]
        lo = moments[1, n, c]
        step = p[1] * ((layer[0, n] - mean) + (layer[1, n] - lo))
        var = q[0] * moments[2, n, c] + q[1] * layer[2, n]
        if batch.shape[0]:
            step = step + p[2] * ((batch[0, c] - mean) + (batch[1, c] - lo))
            var = var + q[2] * batch[2, c]
        step = step + lo
        mixed[0, n, c] = mean + step
        mixed[1, n, c] = (mean - mixed[0, n, c]) + step
        mixed[2, n, c] = 1 / sqrt(var + eps)


cdef void mix_forward(double[:, :, :] moments, double[:, :] layer, double[:, :] batch, bint batch_given, double count,
                      const double *p, const double *q, double eps, double[:, :, :] mixed, int threads) noexcept nogil:
    """Fill `layer`, `batch` unless it is given, and `mixed`, with the shares p of the means and q of the variances.

    moments[2]: IN the sum of squared deviations of `count` elements, OUT the variance."""
    cdef unsigned before = enable_subnormals()
    cdef Py_ssize_t samples = moments.shape[1], blocks = (moments.shape[2] + CHANNELS - 1) // CHANNELS, i
    cdef int used = team(samples * moments.shape[2], threads)
    if batch_given or batch.shape[0] == 0:
        blocks = 0
    if used == 1:
        for i in range(samples):
            merge_layer(moments, count, layer, i)
        for i in range(blocks):
            merge_channels(moments, batch, i)
        for i in range(samples):
            mix_sample(moments, layer, batch, p, q, eps, mixed, i)
    else:
        for i in prange(samples, num_threads=used, schedule="static"):
            merge_layer(moments, count, layer, i)
        for i in prange(blocks, num_threads=used, schedule="static"):
            merge_channels(moments, batch, i)
        for i in prange(samples, num_threads=used, schedule="static"):
            mix_sample(moments, layer, batch, p, q, eps, mixed, i)
    restore_subnormals(before)


# ---- backward ----
# The gradient of a mixed mean is -rstd * sum_g, that of a mixed variance -rstd**3 * sum_gdev / 2. First these, in place
# of the sums; then their sums over a sample, over a channel; then what they make of each (sample, channel).


cdef void sample_sums(const double[:, :, :] moments, const double[:, :] layer, const double[:, :] batch,
                      const double[:, :] rstd, double[:, :, :] sums, double[:, :, :] of_samples,
                      Py_ssize_t n) noexcept nogil:
    """Of sample n: the gradients of its mixed statistics, in place of the sums of g and g * dev.

    of_samples[0, n]: the sums of the gradients of mean and variance; of them times the layer's and the batch's mean,
    less the instance's; [1, n]: of the gradient of the variance times each of the three variances."""
    cdef double lanes[N_SUMS][LANES]
    cdef double mean, lo, factor, to_mean, to_var
    cdef Py_ssize_t c, k
    for k in range(N_SUMS):
        clear(lanes[k], LANES)
    for c in range(moments.shape[2]):
        mean = moments[0, n, c]
        lo = moments[1, n, c]
        factor = rstd[n, c]
        to_mean = -factor * sums[n, c, 0]
        to_var = -factor * factor * factor * sums[n, c, 1] / 2
        sums[n, c, 0] = to_mean
        sums[n, c, 1] = to_var
        k = c % LANES
        lanes[0][k] += to_mean
        lanes[1][k] += to_var
        lanes[2][k] += to_mean * ((layer[0, n] - mean) + (layer[1, n] - lo))
        lanes[4][k] += to_var * moments[2, n, c]
        if batch.shape[0]:
            lanes[3][k] += to_mean * ((batch[0, c] - mean) + (batch[1, c] - lo))
            lanes[6][k] += to_var * batch[2, c]
    for k in range(4):
        of_samples[0, n, k] = sum_of_lanes(lanes[k])
    of_samples[1, n, 0] = sum_of_lanes(lanes[4])
    of_samples[1, n, 1] = of_samples[0, n, 1] * layer[2, n]
    of_samples[1, n, 2] = sum_of_lanes(lanes[6])


cdef void channel_sums(const double[:, :, :] sums, double[:, :] of_channels, Py_ssize_t at) noexcept nogil:
    """Of CHANNELS channels, the last perhaps fewer: the sums of both gradients over the samples."""
    cdef Py_ssize_t begin = at * CHANNELS, count = min(<Py_ssize_t> CHANNELS, sums.shape[1] - begin), n, i
    cdef double to_mean[CHANNELS]
    cdef double to_var[CHANNELS]
    clear(to_mean, count)
    clear(to_var, count)
    for n in range(sums.shape[0]):
        for i in range(count):
            to_mean[i] += sums[n, begin + i, 0]
            to_var[i] += sums[n, begin + i, 1]
    for i in range(count):
        of_channels[0, begin + i] = to_mean[i]
        of_channels[1, begin + i] = to_var[i]


cdef void sample_gradients(const double[:, :, :] moments, const double[:, :] layer, const double[:, :] batch,
                           const double *p, const double *q, bint batch_given, double count, double[:, :, :] sums,
                           const double[:, :, :] of_samples, const double[:, :] of_channels,
                           Py_ssize_t n) noexcept nogil:
    """Of each channel of sample n, from both gradients: what `dx = rstd * g + sums[0] + sums[1] * (x - mean)` adds,
    with the instance's mean."""
    cdef double mean, lo, to_mean, to_var, samples = <double> sums.shape[0], channels = <double> sums.shape[1]
    cdef double unbiased = count - 1 if count > 1 else 1
    cdef Py_ssize_t c
    for c in range(sums.shape[1]):
        mean = moments[0, n, c]
        lo = moments[1, n, c]
        to_mean = p[0] * sums[n, c, 0] + (
            p[1] * of_samples[0, n, 0]
            + 2 * q[1] * of_samples[0, n, 1] * ((mean - layer[0, n]) + (lo - layer[1, n]))) / channels
        to_var = q[0] * sums[n, c, 1] + q[1] * of_samples[0, n, 1] / channels
        if batch.shape[0] and not batch_given:
            to_mean = to_mean + (
                p[2] * of_channels[0, c]
                + 2 * q[2] * of_channels[1, c] * ((mean - batch[0, c]) + (lo - batch[1, c]))) / samples
            to_var = to_var + q[2] * of_channels[1, c] / samples
        sums[n, c, 0] = to_mean / count
        sums[n, c, 1] = 2 * to_var / unbiased


cdef void mix_backward(const double[:, :, :] moments, const double[:, :] layer, const double[:, :] batch,
                       const double[:, :] rstd, const double *p, const double *q, bint batch_given, double count,
                       double[:, :, :] sums, double[:, :, :] of_samples, double[:, :] of_channels, double *to_p,
                       double *to_q, int threads) noexcept nogil:
    """Back through `mix` and the merges.

    sums (N, C, 2): IN the sums of g and of g * dev over the `count` elements of each (sample, channel); OUT the two
    terms of the gradient of the input that `sample_gradients` names. to_p, to_q: the gradients of the three shares,
    those of the means less the first. of_samples (2, N, 4), of_channels (2, C): workspace."""
    cdef unsigned before = enable_subnormals()
    cdef Py_ssize_t samples = sums.shape[0], blocks = (sums.shape[1] + CHANNELS - 1) // CHANNELS, i
    cdef int used = team(samples * sums.shape[1], threads)
    if batch_given or batch.shape[0] == 0:
        blocks = 0
    if used == 1:
        for i in range(samples):
            sample_sums(moments, layer, batch, rstd, sums, of_samples, i)
        for i in range(blocks):
            channel_sums(sums, of_channels, i)
        for i in range(samples):
            sample_gradients(moments, layer, batch, p, q, batch_given, count, sums, of_samples, of_channels, i)
    else:
        for i in prange(samples, num_threads=used, schedule="static"):
            sample_sums(moments, layer, batch, rstd, sums, of_samples, i)
        for i in prange(blocks, num_threads=used, schedule="static"):
            channel_sums(sums, of_channels, i)
        for i in prange(samples, num_threads=used, schedule="static"):
            sample_gradients(moments, layer, batch, p, q, batch_given, count, sums, of_samples, of_channels, i)
    clear(to_p, 3)
    clear(to_q, 3)
    for i in range(samples):
        to_p[1] += of_samples[0, i, 2]
        to_p[2] += of_samples[0, i, 3]
        to_q[0] += of_samples[1, i, 0]
        to_q[1] += of_samples[1, i, 1]
        to_q[2] += of_samples[1, i, 2]
    restore_subnormals(before)
