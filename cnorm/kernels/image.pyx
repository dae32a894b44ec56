# Images: (x / max_value - mean) / std per channel, integers or floats in, floats out, channels moved in the same visit.
#
# a) An item is some pixels of all channels, so that what lies side by side in x or y is read and written together.
# b) The values of a channel are converted to double in L1, changed, and rounded once to the dtype of y.
# c) Integers of 8 bits are looked up instead, in a table of the 256 results of each channel, which (b) has made.
from cython.parallel cimport prange

from cnorm.kernels.job cimport RUNS, WIDE_INT8, ImageJob
from cnorm.kernels.loops cimport (
    LOOPS_BY_DTYPE, READ_BY_DTYPE, look_up, look_up_three, normalize_values, scatter, write_elements)
from cnorm.kernels.schedule cimport min_chunk, plain_schedule
from cnorm.kernels.tuning cimport STANDARDIZE_CHUNK


cdef inline void normalize_pixels(const ImageJob *job, Py_ssize_t channel, const char *x, char *y,
                                  Py_ssize_t n) noexcept nogil:
    """y of n pixels of one channel, STANDARDIZE_CHUNK at most."""
    cdef double values[STANDARDIZE_CHUNK]
    cdef double rounded[STANDARDIZE_CHUNK]
    cdef Py_ssize_t size = LOOPS_BY_DTYPE[job.out_dtype].size, x_stride = job.x_strides[3], y_stride = job.y_strides[3]
    if job.table != NULL:
        look_up(<const unsigned char *> x, x_stride, n, job.table + channel * 256 * size, size, y, y_stride)
        return
    READ_BY_DTYPE[job.head.dtype](x, x_stride, n, values)
    normalize_values(values, n, job.max_value, job.mean[channel], job.std[channel],
                     job.head.dtype >= WIDE_INT8)
    if y_stride == size:
        write_elements(job.out_dtype, values, n, y)
    else:
        write_elements(job.out_dtype, values, n, <char *> rounded)
        scatter(<const char *> rounded, n, size, y, y_stride)


cdef void normalize_item(const ImageJob *job, Py_ssize_t chunks, Py_ssize_t item) noexcept nogil:
    """One chunk of the pixels of a row, in all channels."""
    cdef Py_ssize_t at = item // chunks, first = (item - at * chunks) * STANDARDIZE_CHUNK
    cdef Py_ssize_t image = at // job.shape[2], row = at - image * job.shape[2], channel
    cdef const char *x = job.x + image * job.x_strides[0] + row * job.x_strides[2] + first * job.x_strides[3]
    cdef char *y = job.y + image * job.y_strides[0] + row * job.y_strides[2] + first * job.y_strides[3]
    cdef Py_ssize_t n = min(<Py_ssize_t> STANDARDIZE_CHUNK, job.shape[3] - first)
    if job.table != NULL and job.shape[1] == 3 and job.x_strides[1] == 1 and job.x_strides[3] == 3:
        look_up_three(<const unsigned char *> x, n, job.table, LOOPS_BY_DTYPE[job.out_dtype].size, y,
                      job.y_strides[3], job.y_strides[1])
        return
    for channel in range(job.shape[1]):
        normalize_pixels(job, channel, x + channel * job.x_strides[1], y + channel * job.y_strides[1], n)


cdef int image_forward(ImageJob *job) noexcept nogil:
    """y = (x / max_value - mean) / std."""
    cdef Py_ssize_t chunks = (job.shape[3] + STANDARDIZE_CHUNK - 1) // STANDARDIZE_CHUNK
    cdef Py_ssize_t items = job.shape[0] * job.shape[2] * chunks, item
    if job.head.schedule_only != NULL:
        job.head.schedule_only[0] = plain_schedule(RUNS, job.head.threads, items)
        return 0
    if job.head.threads == 1:
        for item in range(items):
            normalize_item(job, chunks, item)
    else:
        for item in prange(items, num_threads=job.head.threads, schedule="guided",
                           chunksize=min_chunk(items, job.head.threads)):
            normalize_item(job, chunks, item)
    return 0
