# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""The kernels over strided memoryviews, for Cython: `from cnorm.kernels.api cimport rows_forward`."""
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from cnorm._runtime cimport MAX_THREADS, kernels
from cnorm.kernels.job cimport (
    COLUMNS_BACKWARD, COLUMNS_FORWARD, CROSSED_BACKWARD, CROSSED_FORWARD, FLOAT32, FLOAT64, ROWS_BACKWARD, ROWS_FORWARD,
    SEGMENTS_BACKWARD, SEGMENTS_FORWARD, WINDOW_BACKWARD, WINDOW_FORWARD, Job, Kernel, Tensor, WindowJob)

# ---- checks: of shapes and of strides, as the kernels take them ----

cdef inline bint is_row_of(const real[:] values, Py_ssize_t n) noexcept nogil:
    """Whether they are None, or n values one after the other."""
    return values is None or values.shape[0] == n and (n == 1 or values.strides[0] == sizeof(real))


cdef inline bint has_length(const real[:] values, Py_ssize_t n) noexcept nogil:
    return values is None or values.shape[0] == n


cdef inline bint is_aligned(const char *data, const Py_ssize_t *strides, int ndim, size_t size) noexcept nogil:
    cdef int i
    cdef size_t together = <size_t> data
    for i in range(ndim):
        together |= <size_t> strides[i]
    return together % size == 0


cdef inline bint same_matrices(const real[:, :] a, const real[:, :] b) noexcept nogil:
    return a.shape[0] == b.shape[0] and a.shape[1] == b.shape[1]


cdef inline bint same_volumes(const real[:, :, :] a, const real[:, :, :] b) noexcept nogil:
    return a.shape[0] == b.shape[0] and a.shape[1] == b.shape[1] and a.shape[2] == b.shape[2]


cdef inline bint takes_matrix(const real[:, :] a) noexcept nogil:
    """Whether the rows are contiguous, and every element is where the dtype lets one be."""
    return (a.shape[1] == 1 or a.strides[1] == sizeof(real)) and is_aligned(
        <const char *> &a[0, 0], &a.strides[0], 1, sizeof(real))


cdef inline bint takes_volume(const real[:, :, :] a, int axis) noexcept nogil:
    """Whether this axis is contiguous, and every element is where the dtype lets one be."""
    return (a.shape[axis] == 1 or a.strides[axis] == sizeof(real)) and is_aligned(
        <const char *> &a[0, 0, 0], &a.strides[0], 3, sizeof(real))


# ---- jobs ----

cdef inline Tensor tensor(const void *data, Py_ssize_t s0, Py_ssize_t s1, Py_ssize_t s2, Py_ssize_t s3) noexcept nogil:
    cdef Tensor t
    t.data = <char *> data
    t.strides[0] = s0
    t.strides[1] = s1
    t.strides[2] = s2
    t.strides[3] = s3
    return t


cdef inline Tensor volume(const real[:, :, :] a, Py_ssize_t groups) noexcept nogil:
    """(N, C, S) under the axes of a segments job."""
    if groups == 0:
        return tensor(&a[0, 0, 0], 0, a.strides[1], a.strides[0], 0)
    return tensor(&a[0, 0, 0], a.strides[0], a.strides[1] * (a.shape[1] // groups), a.strides[1], 0)


cdef inline void set_shape(Py_ssize_t *shape, Py_ssize_t s0, Py_ssize_t s1, Py_ssize_t s2, Py_ssize_t s3,
                           Py_ssize_t s4) noexcept nogil:
    shape[0] = s0
    shape[1] = s1
    shape[2] = s2
    shape[3] = s3
    shape[4] = s4


cdef inline int threads_of(int threads) noexcept nogil:
    return min(MAX_THREADS, max(1, threads))


cdef inline Job new_job(int dtype, bint centred, double eps, int threads) noexcept nogil:
    cdef Job job
    memset(&job, 0, sizeof(job))
    job.head.dtype = dtype
    job.centred = centred
    job.finish.eps = eps
    job.head.threads = threads_of(threads)
    job.channels.channels_per_group = 1
    return job


cdef inline int dtype_of(const real *unused) noexcept nogil:
    return FLOAT32 if real is float else FLOAT64


cdef void *ones(Py_ssize_t n, int dtype) noexcept nogil:
    """A weight where there is none; to be freed."""
    cdef void *values = malloc(n * (sizeof(float) if dtype == FLOAT32 else sizeof(double)))
    cdef Py_ssize_t i
    if values == NULL:
        return NULL
    for i in range(n):
        if dtype == FLOAT32:
            (<float *> values)[i] = 1
        else:
            (<double *> values)[i] = 1
    return values


cdef void copy_in(const real[:] values, double *out) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(values.shape[0]):
        out[i] = values[i]


cdef void copy_out(const double *values, double[:] out) noexcept nogil:
    cdef Py_ssize_t i
    if out is not None:
        for i in range(out.shape[0]):
            out[i] = values[i]


cdef void clear(double[:] out) noexcept nogil:
    cdef Py_ssize_t i
    if out is not None:
        for i in range(out.shape[0]):
            out[i] = 0


# ---- rows ----

cdef int rows_forward(const real[:, :] x, real[:, :] y, const real[:] weight, const real[:] bias, double[:] mean,
                      double[:] rstd, bint centred, double eps, int threads) noexcept nogil:
    cdef Py_ssize_t rows = x.shape[0], n = x.shape[1]
    cdef void *made = NULL
    cdef Job job
    cdef int failed
    if not same_matrices(x, y) or not is_row_of(weight, n) or not is_row_of(bias, n):
        return BAD_LAYOUT
    if not is_row_of(mean, rows) or not is_row_of(rstd, rows):
        return BAD_LAYOUT
    if rows == 0 or n == 0:
        return OK
    if not takes_matrix(x) or not takes_matrix(y):
        return BAD_LAYOUT
    job = new_job(dtype_of(&x[0, 0]), centred, eps, threads)
    set_shape(job.shape, 1, rows, 1, 1, n)
    job.x = tensor(&x[0, 0], 0, x.strides[0], 0, 0)
    job.y = tensor(&y[0, 0], 0, y.strides[0], 0, 0)
    job.mean = &mean[0] if mean is not None else NULL
    job.rstd = &rstd[0] if rstd is not None else NULL
    if weight is not None:
        job.elements.weight = &weight[0]
    elif bias is not None:  # the kernel takes a bias beside a weight
        made = ones(n, job.head.dtype)
        if made == NULL:
            return NO_MEMORY
        job.elements.weight = made
    if bias is not None:
        job.elements.bias = &bias[0]
    failed = kernels.run(ROWS_FORWARD, &job.head)
    free(made)
    return NO_MEMORY if failed else OK


cdef int rows_backward(const real[:, :] dy, const real[:, :] x, real[:, :] dx, const real[:] weight,
                       const double[:] mean, const double[:] rstd, double[:] grad_weight, double[:] grad_bias,
                       bint centred, int threads) noexcept nogil:
    cdef Py_ssize_t rows = x.shape[0], n = x.shape[1]
    cdef void *made = NULL
    cdef double *grads
    cdef Job job
    cdef int failed
    if not same_matrices(x, dy) or not same_matrices(x, dx) or not is_row_of(weight, n):
        return BAD_LAYOUT
    if rstd is None or (centred and mean is None) or not is_row_of(mean, rows) or not is_row_of(rstd, rows):
        return BAD_LAYOUT
    if not has_length(grad_weight, n) or not has_length(grad_bias, n):
        return BAD_LAYOUT
    if rows == 0 or n == 0:
        clear(grad_weight)
        clear(grad_bias)
        return OK
    if not takes_matrix(x) or not takes_matrix(dy) or not takes_matrix(dx):
        return BAD_LAYOUT
    job = new_job(dtype_of(&x[0, 0]), centred, 0, threads)
    set_shape(job.shape, 1, rows, 1, 1, n)
    job.x = tensor(&x[0, 0], 0, x.strides[0], 0, 0)
    job.dy = tensor(&dy[0, 0], 0, dy.strides[0], 0, 0)
    job.y = tensor(&dx[0, 0], 0, dx.strides[0], 0, 0)
    job.mean = <double *> &mean[0] if mean is not None else NULL
    job.rstd = <double *> &rstd[0]
    grads = <double *> malloc(3 * n * sizeof(double))
    if weight is None:
        made = ones(n, job.head.dtype)
    if grads == NULL or (weight is None and made == NULL):
        free(grads)
        free(made)
        return NO_MEMORY
    job.elements.weight = made if weight is None else <void *> &weight[0]
    job.elements.grad_weight = grads
    job.elements.grad_bias = grads + n
    job.elements.grad_slope = grads + 2 * n
    failed = kernels.run(ROWS_BACKWARD, &job.head)
    if not failed:
        copy_out(grads, grad_weight)
        copy_out(grads + n, grad_bias)
    free(grads)
    free(made)
    return NO_MEMORY if failed else OK


# ---- channels: what segments and columns share ----

cdef int channels_forward(Kernel kernel, Job *job, Py_ssize_t units, Py_ssize_t channels, const real[:] weight,
                          const real[:] bias, double[:] mean, double[:] rstd) noexcept nogil:
    """Run with the parameters in double and with room for all statistics, which the kernels of columns need."""
    cdef double *room = <double *> malloc((4 * units + 2 * channels) * sizeof(double))
    cdef double *values = room + 4 * units
    cdef int failed
    if room == NULL:
        return NO_MEMORY
    job.mean = &mean[0] if mean is not None else room
    job.rstd = &rstd[0] if rstd is not None else room + units
    if not job.stats_given:
        job.m2 = room + 2 * units
        job.lo = room + 3 * units
    if weight is not None:
        copy_in(weight, values)
        job.channels.weight = values
    if bias is not None:
        copy_in(bias, values + channels)
        job.channels.bias = values + channels
    failed = kernels.run(kernel, &job.head)
    free(room)
    return NO_MEMORY if failed else OK


cdef int channels_backward(Kernel kernel, Job *job, Py_ssize_t units, Py_ssize_t samples, Py_ssize_t channels,
                           bint takes_lo, const real[:] weight, const double[:] mean, const double[:] rstd,
                           double[:] grad_weight, double[:] grad_bias) noexcept nogil:
    """Run, and add the parameters' gradients up over the samples, in their order."""
    cdef Py_ssize_t n = samples * channels, i, c
    cdef double *room = <double *> calloc(3 * n + channels + units, sizeof(double))
    cdef double *values = room + 3 * n
    cdef int failed
    if room == NULL:
        return NO_MEMORY
    job.mean = <double *> &mean[0]
    job.rstd = <double *> &rstd[0]
    if takes_lo:
        job.lo = values + channels
    if weight is not None:
        copy_in(weight, values)
        job.channels.weight = values
    job.channels.grad_weight = room
    job.channels.grad_bias = room + n
    job.channels.grad_slope = room + 2 * n
    failed = kernels.run(kernel, &job.head)
    if not failed:
        for i in range(1, samples):
            for c in range(channels):
                room[c] += room[i * channels + c]
                room[n + c] += room[n + i * channels + c]
        copy_out(room, grad_weight)
        copy_out(room + n, grad_bias)
    free(room)
    return NO_MEMORY if failed else OK


# ---- segments ----

cdef inline bint divides(Py_ssize_t groups, Py_ssize_t channels) noexcept nogil:
    return groups == 0 or (groups > 0 and channels % groups == 0)


cdef inline void set_segments_shape(Job *job, Py_ssize_t samples, Py_ssize_t channels, Py_ssize_t size,
                                    Py_ssize_t groups) noexcept nogil:
    if groups == 0:
        set_shape(job.shape, 1, channels, samples, 1, size)
        job.channels.inner_channels = 1
    else:
        set_shape(job.shape, samples, groups, channels // groups, 1, size)
        job.channels.by_segment = True
        job.channels.inner_channels = channels // groups
        job.channels.segment_channels = 1
        job.channels.channels_per_group = channels // groups


cdef int segments_forward(const real[:, :, :] x, real[:, :, :] y, const real[:] weight, const real[:] bias,
                          double[:] mean, double[:] rstd, Py_ssize_t groups, bint given, double eps,
                          int threads) noexcept nogil:
    cdef Py_ssize_t channels = x.shape[1], units = channels if groups == 0 else x.shape[0] * groups
    cdef Job job
    if not same_volumes(x, y) or not divides(groups, channels):
        return BAD_LAYOUT
    if not has_length(weight, channels) or not has_length(bias, channels):
        return BAD_LAYOUT
    if not is_row_of(mean, units) or not is_row_of(rstd, units):
        return BAD_LAYOUT
    if given and (mean is None or rstd is None):
        return BAD_LAYOUT
    if x.shape[0] == 0 or channels == 0 or x.shape[2] == 0:
        return OK
    if not takes_volume(x, 2) or not takes_volume(y, 2):
        return BAD_LAYOUT
    job = new_job(dtype_of(&x[0, 0, 0]), True, eps, threads)
    set_segments_shape(&job, x.shape[0], channels, x.shape[2], groups)
    job.x = volume(x, groups)
    job.y = volume(y, groups)
    job.stats_given = given
    return channels_forward(SEGMENTS_FORWARD, &job, units, channels, weight, bias, mean, rstd)


cdef int segments_backward(const real[:, :, :] dy, const real[:, :, :] x, real[:, :, :] dx, const real[:] weight,
                           const double[:] mean, const double[:] rstd, double[:] grad_weight, double[:] grad_bias,
                           Py_ssize_t groups, bint given, int threads) noexcept nogil:
    cdef Py_ssize_t channels = x.shape[1], units = channels if groups == 0 else x.shape[0] * groups
    cdef Job job
    if not same_volumes(x, dy) or not same_volumes(x, dx) or not divides(groups, channels):
        return BAD_LAYOUT
    if mean is None or rstd is None or not is_row_of(mean, units) or not is_row_of(rstd, units):
        return BAD_LAYOUT
    if not has_length(weight, channels) or not has_length(grad_weight, channels) or (
            not has_length(grad_bias, channels)):
        return BAD_LAYOUT
    if x.shape[0] == 0 or channels == 0 or x.shape[2] == 0:
        clear(grad_weight)
        clear(grad_bias)
        return OK
    if not takes_volume(x, 2) or not takes_volume(dy, 2) or not takes_volume(dx, 2):
        return BAD_LAYOUT
    job = new_job(dtype_of(&x[0, 0, 0]), True, 0, threads)
    set_segments_shape(&job, x.shape[0], channels, x.shape[2], groups)
    job.x = volume(x, groups)
    job.dy = volume(dy, groups)
    job.y = volume(dx, groups)
    job.stats_given = given
    return channels_backward(SEGMENTS_BACKWARD, &job, units, 1 if groups == 0 else x.shape[0], channels, False,
                             weight, mean, rstd, grad_weight, grad_bias)


# ---- columns ----

cdef int columns_forward(const real[:, :] x, real[:, :] y, const real[:] weight, const real[:] bias, double[:] mean,
                         double[:] rstd, bint given, double eps, int threads) noexcept nogil:
    cdef Py_ssize_t rows = x.shape[0], channels = x.shape[1]
    cdef Job job
    if not same_matrices(x, y) or not has_length(weight, channels) or not has_length(
            bias, channels):
        return BAD_LAYOUT
    if not is_row_of(mean, channels) or not is_row_of(rstd, channels):
        return BAD_LAYOUT
    if given and (mean is None or rstd is None):
        return BAD_LAYOUT
    if rows == 0 or channels == 0:
        return OK
    if not takes_matrix(x) or not takes_matrix(y):
        return BAD_LAYOUT
    job = new_job(dtype_of(&x[0, 0]), True, eps, threads)
    set_shape(job.shape, 1, 1, 1, rows, channels)
    job.x = tensor(&x[0, 0], 0, 0, 0, x.strides[0])
    job.y = tensor(&y[0, 0], 0, 0, 0, y.strides[0])
    job.stats_given = given
    return channels_forward(COLUMNS_FORWARD, &job, channels, channels, weight, bias, mean, rstd)


cdef int columns_backward(const real[:, :] dy, const real[:, :] x, real[:, :] dx, const real[:] weight,
                          const double[:] mean, const double[:] rstd, double[:] grad_weight, double[:] grad_bias,
                          bint given, int threads) noexcept nogil:
    cdef Py_ssize_t rows = x.shape[0], channels = x.shape[1]
    cdef Job job
    if not same_matrices(x, dy) or not same_matrices(x, dx) or not has_length(weight, channels):
        return BAD_LAYOUT
    if mean is None or rstd is None or not is_row_of(mean, channels) or not is_row_of(rstd, channels):
        return BAD_LAYOUT
    if not has_length(grad_weight, channels) or not has_length(grad_bias, channels):
        return BAD_LAYOUT
    if rows == 0 or channels == 0:
        clear(grad_weight)
        clear(grad_bias)
        return OK
    if not takes_matrix(x) or not takes_matrix(dy) or not takes_matrix(dx):
        return BAD_LAYOUT
    job = new_job(dtype_of(&x[0, 0]), True, 0, threads)
    set_shape(job.shape, 1, 1, 1, rows, channels)
    job.x = tensor(&x[0, 0], 0, 0, 0, x.strides[0])
    job.dy = tensor(&dy[0, 0], 0, 0, 0, dy.strides[0])
    job.y = tensor(&dx[0, 0], 0, 0, 0, dx.strides[0])
    job.stats_given = given
    return channels_backward(COLUMNS_BACKWARD, &job, channels, 1, channels, real is double, weight, mean, rstd,
                             grad_weight, grad_bias)


# ---- crossed ----

cdef inline bint has_statistics(const double[:, :] values, Py_ssize_t n) noexcept nogil:
    """Whether they are (3, n), one value after the other."""
    return (values is not None and values.shape[0] == 3 and values.shape[1] == n
            and values.strides[1] == sizeof(double) and values.strides[0] == n * <Py_ssize_t> sizeof(double))


cdef inline Job crossed_job(int dtype, Py_ssize_t m, Py_ssize_t c, const double[:] shares, const double[:, :] rows,
                            const double[:, :] columns, bint given, double eps, int threads) noexcept nogil:
    cdef Job job = new_job(dtype, True, eps, threads)
    set_shape(job.shape, 1, 1, 1, m, c)
    job.stats_given = given
    job.mean = <double *> &columns[0, 0]
    job.lo = <double *> &columns[1, 0]
    job.m2 = <double *> &columns[2, 0]
    job.crossed.row_mean = <double *> &rows[0, 0]
    job.crossed.row_lo = <double *> &rows[1, 0]
    job.crossed.row_var = <double *> &rows[2, 0]
    job.crossed.share[0] = shares[0]
    job.crossed.share[1] = shares[1]
    job.crossed.var_share[0] = shares[2]
    job.crossed.var_share[1] = shares[3]
    return job


cdef int crossed_forward(const real[:, :] x, real[:, :] y, const real[:] weight, const real[:] bias,
                         const double[:] shares, double[:, :] rows, double[:, :] columns, bint given, double eps,
                         int threads) noexcept nogil:
    cdef Py_ssize_t m = x.shape[0], c = x.shape[1]
    cdef double *room
    cdef Job job
    cdef int failed
    if not same_matrices(x, y) or not has_length(weight, c) or not has_length(bias, c):
        return BAD_LAYOUT
    if m < 2 or c < 2 or not has_statistics(rows, m) or not has_statistics(columns, c):
        return BAD_LAYOUT
    if shares is None or shares.shape[0] != 4 or not takes_matrix(x) or not takes_matrix(y):
        return BAD_LAYOUT
    job = crossed_job(dtype_of(&x[0, 0]), m, c, shares, rows, columns, given, eps, threads)
    job.x = tensor(&x[0, 0], 0, 0, 0, x.strides[0])
    job.y = tensor(&y[0, 0], 0, 0, 0, y.strides[0])
    room = <double *> malloc(3 * c * sizeof(double))
    if room == NULL:
        return NO_MEMORY
    job.rstd = room
    if weight is not None:
        copy_in(weight, room + c)
        job.channels.weight = room + c
    if bias is not None:
        copy_in(bias, room + 2 * c)
        job.channels.bias = room + 2 * c
    failed = kernels.run(CROSSED_FORWARD, &job.head)
    free(room)
    return NO_MEMORY if failed else OK


cdef int crossed_backward(const real[:, :] dy, const real[:, :] x, real[:, :] dx, const real[:] weight,
                          const double[:] shares, const double[:, :] rows, const double[:, :] columns,
                          double[:] grad_weight, double[:] grad_bias, double[:] grad_shares, bint given, double eps,
                          int threads) noexcept nogil:
    cdef Py_ssize_t m = x.shape[0], c = x.shape[1]
    cdef double differences[2]
    cdef double *room
    cdef Job job
    cdef int failed
    if not same_matrices(x, dy) or not same_matrices(x, dx) or not has_length(weight, c):
        return BAD_LAYOUT
    if not has_length(grad_weight, c) or not has_length(grad_bias, c) or not has_length(grad_shares, 2):
        return BAD_LAYOUT
    if m < 2 or c < 2 or not has_statistics(rows, m) or not has_statistics(columns, c):
        return BAD_LAYOUT
    if shares is None or shares.shape[0] != 4:
        return BAD_LAYOUT
    if not takes_matrix(x) or not takes_matrix(dy) or not takes_matrix(dx):
        return BAD_LAYOUT
    job = crossed_job(dtype_of(&x[0, 0]), m, c, shares, rows, columns, given, eps, threads)
    job.x = tensor(&x[0, 0], 0, 0, 0, x.strides[0])
    job.dy = tensor(&dy[0, 0], 0, 0, 0, dy.strides[0])
    job.y = tensor(&dx[0, 0], 0, 0, 0, dx.strides[0])
    room = <double *> malloc(4 * c * sizeof(double))
    if room == NULL:
        return NO_MEMORY
    job.channels.grad_weight = room
    job.channels.grad_bias = room + c
    job.channels.grad_slope = room + 2 * c
    job.crossed.grad_shares = differences
    if weight is not None:
        copy_in(weight, room + 3 * c)
        job.channels.weight = room + 3 * c
    failed = kernels.run(CROSSED_BACKWARD, &job.head)
    if not failed:
        copy_out(room, grad_weight)
        copy_out(room + c, grad_bias)
        copy_out(differences, grad_shares)
    free(room)
    return NO_MEMORY if failed else OK


# ---- window ----

cdef inline Tensor window_tensor(const real[:, :, :] a, bint channels_last) noexcept nogil:
    if channels_last:
        return tensor(&a[0, 0, 0], a.strides[0], 0, 0, a.strides[2])
    return tensor(&a[0, 0, 0], a.strides[0], a.strides[1], 0, 0)


cdef int window(const real[:, :, :] x, const real[:, :, :] dy, const real[:, :, :] y, bint backward, Py_ssize_t size,
                double alpha, double beta, double k, int threads) noexcept nogil:
    cdef Py_ssize_t channels = x.shape[1]
    cdef WindowJob job
    cdef int failed
    if not same_volumes(x, y) or not same_volumes(x, dy) or size < 1:
        return BAD_LAYOUT
    if x.shape[0] == 0 or channels == 0 or x.shape[2] == 0:
        return OK
    memset(&job, 0, sizeof(job))
    job.channels_last = not (takes_volume(x, 2) and takes_volume(dy, 2) and takes_volume(y, 2))
    if job.channels_last and not (takes_volume(x, 1) and takes_volume(dy, 1) and takes_volume(y, 1)):
        return BAD_LAYOUT
    if job.channels_last:
        set_shape(job.shape, x.shape[0], 1, 1, x.shape[2], channels)
    else:
        set_shape(job.shape, x.shape[0], channels, 1, 1, x.shape[2])
    job.head.dtype = dtype_of(&x[0, 0, 0])
    job.head.threads = threads_of(threads)
    job.x = window_tensor(x, job.channels_last)
    job.y = window_tensor(y, job.channels_last)
    if backward:
        job.dy = window_tensor(dy, job.channels_last)
    job.before = min(size // 2, channels)
    job.after = min((size - 1) // 2, channels)
    job.alpha = alpha / <double> size
    job.beta = beta
    job.k = k
    failed = kernels.run(WINDOW_BACKWARD if backward else WINDOW_FORWARD, &job.head)
    return NO_MEMORY if failed else OK


cdef int window_forward(const real[:, :, :] x, real[:, :, :] y, Py_ssize_t size, double alpha, double beta, double k,
                        int threads) noexcept nogil:
    return window(x, x, y, False, size, alpha, beta, k, threads)


cdef int window_backward(const real[:, :, :] dy, const real[:, :, :] x, real[:, :, :] dx, Py_ssize_t size,
                         double alpha, double beta, double k, int threads) noexcept nogil:
    return window(x, dy, dx, True, size, alpha, beta, k, threads)


# ---- for tests: the entries as Python functions, which return the status ----

def _rows_forward(const real[:, :] x, real[:, :] y, const real[:] weight, const real[:] bias, double[:] mean,
                  double[:] rstd, bint centred, double eps, int threads):
    with nogil:
        status = rows_forward(x, y, weight, bias, mean, rstd, centred, eps, threads)
    return status


def _rows_backward(const real[:, :] dy, const real[:, :] x, real[:, :] dx, const real[:] weight, const double[:] mean,
                   const double[:] rstd, double[:] grad_weight, double[:] grad_bias, bint centred, int threads):
    with nogil:
        status = rows_backward(dy, x, dx, weight, mean, rstd, grad_weight, grad_bias, centred, threads)
    return status


def _segments_forward(const real[:, :, :] x, real[:, :, :] y, const real[:] weight, const real[:] bias, double[:] mean,
                      double[:] rstd, Py_ssize_t groups, bint given, double eps, int threads):
    with nogil:
        status = segments_forward(x, y, weight, bias, mean, rstd, groups, given, eps, threads)
    return status


def _segments_backward(const real[:, :, :] dy, const real[:, :, :] x, real[:, :, :] dx, const real[:] weight,
                       const double[:] mean, const double[:] rstd, double[:] grad_weight, double[:] grad_bias,
                       Py_ssize_t groups, bint given, int threads):
    with nogil:
        status = segments_backward(dy, x, dx, weight, mean, rstd, grad_weight, grad_bias, groups, given, threads)
    return status


def _columns_forward(const real[:, :] x, real[:, :] y, const real[:] weight, const real[:] bias, double[:] mean,
                     double[:] rstd, bint given, double eps, int threads):
    with nogil:
        status = columns_forward(x, y, weight, bias, mean, rstd, given, eps, threads)
    return status


def _columns_backward(const real[:, :] dy, const real[:, :] x, real[:, :] dx, const real[:] weight,
                      const double[:] mean, const double[:] rstd, double[:] grad_weight, double[:] grad_bias,
                      bint given, int threads):
    with nogil:
        status = columns_backward(dy, x, dx, weight, mean, rstd, grad_weight, grad_bias, given, threads)
    return status


def _crossed_forward(const real[:, :] x, real[:, :] y, const real[:] weight, const real[:] bias,
                     const double[:] shares, double[:, :] rows, double[:, :] columns, bint given, double eps,
                     int threads):
    with nogil:
        status = crossed_forward(x, y, weight, bias, shares, rows, columns, given, eps, threads)
    return status


def _crossed_backward(const real[:, :] dy, const real[:, :] x, real[:, :] dx, const real[:] weight,
                      const double[:] shares, const double[:, :] rows, const double[:, :] columns,
                      double[:] grad_weight, double[:] grad_bias, double[:] grad_shares, bint given, double eps,
                      int threads):
    with nogil:
        status = crossed_backward(dy, x, dx, weight, shares, rows, columns, grad_weight, grad_bias, grad_shares,
                                  given, eps, threads)
    return status


def _window_forward(const real[:, :, :] x, real[:, :, :] y, Py_ssize_t size, double alpha, double beta, double k,
                    int threads):
    with nogil:
        status = window_forward(x, y, size, alpha, beta, k, threads)
    return status


def _window_backward(const real[:, :, :] dy, const real[:, :, :] x, real[:, :, :] dx, Py_ssize_t size, double alpha,
                     double beta, double k, int threads):
    with nogil:
        status = window_backward(dy, x, dx, size, alpha, beta, k, threads)
    return status
