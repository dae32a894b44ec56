"""The functions: check, plan, kernel. Signatures and errors are torch's, arrays are NumPy's.

Everything after ``*`` is cnorm's own. Shared by the functions below:

out
    Array for the result, of the input's shape and dtype and of any strides; ``out=input`` works in
    place.
channel_axis
    Which axis holds the channels; ``-1`` takes ``(N, H, W, C)`` arrays as they are.
return_stats
    Also return the statistics that were used, float64.
negative_slope
    Fused activation: None is none, ``0.0`` is ReLU, a float is LeakyReLU, an array of one value or of
    one per channel is PReLU.

Inputs are float32, float64, float16 or ``ml_dtypes.bfloat16``; anything ``np.asarray`` or
``np.from_dlpack`` takes. The result is a NumPy array of the input's dtype and, where the input is
dense, of its memory order.
"""

import operator

import numpy as np

cimport numpy as cnp
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.number cimport PyNumber_Index
from cpython.object cimport PyObject
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.math cimport INFINITY, sqrt
from libc.string cimport memcpy, memset

from cnorm._plan cimport ARRAYS, COPY, MAX_DIMS, UNITS, Plan, plan_channels, plan_rows
from cnorm.kernels.job cimport (ACT_NONE, ACT_SLOPE, ACT_SLOPES, BFLOAT16, FLOAT16, FLOAT32, FLOAT64,
                                    SUMS_GIVEN, SUMS_INTERNAL, SUMS_ONLY, ElementParams, Job, Kernels, Tensor,
                                    WindowJob, norm_kernel)

__all__ = [
    "add_layer_norm",
    "add_layer_norm_backward",
    "add_rms_norm",
    "add_rms_norm_backward",
    "batch_norm",
    "batch_norm_backward",
    "cross_map_lrn",
    "cross_map_lrn_backward",
    "group_norm",
    "group_norm_backward",
    "instance_norm",
    "instance_norm_backward",
    "layer_norm",
    "layer_norm_backward",
    "local_response_norm",
    "local_response_norm_backward",
    "rms_norm",
    "rms_norm_backward",
    "switch_norm",
    "switch_norm_backward",
]

cnp.import_array()

cdef extern from *:
    """
    _Static_assert(CNORM_MAX_DIMS == NPY_MAXDIMS, "arrays may have more axes than a plan has room for");
    #ifdef _OPENMP
    #include <omp.h>
    static int cnorm_openmp(void) { return 1; }
    #else
    static int omp_get_max_threads(void) { return 1; }
    static int omp_get_num_procs(void) { return 1; }
    static int cnorm_openmp(void) { return 0; }
    #endif
    #if defined(_MSC_VER) && !defined(__clang__)
    #define CNORM_THREAD_LOCAL __declspec(thread)
    #else
    #define CNORM_THREAD_LOCAL _Thread_local
    #endif
    static CNORM_THREAD_LOCAL int cnorm_override = 0;
    static int cnorm_get_override(void) { return cnorm_override; }
    static void cnorm_set_override(int n) { cnorm_override = n; }
    """
    int omp_get_max_threads() noexcept nogil
    int omp_get_num_procs() noexcept nogil
    int cnorm_openmp() noexcept nogil
    int cnorm_get_override() noexcept nogil
    void cnorm_set_override(int n) noexcept nogil

# ---- the kernels in use; _dispatch chooses, _threads decides how many threads ----

cdef Kernels *kernels
cdef int max_threads = 0      # 0: `default_threads` says, when it is first needed
cdef int openmp_default = 1   # what OpenMP allows until somebody limits it
cdef object default_threads
cdef bint serial_child = False


def _use(table):
    """Take the kernels of another build."""
    global kernels
    kernels = <Kernels *> PyCapsule_GetPointer(table, b"cnorm.kernels")


def _start_threads(int number, int of_openmp, default):
    """The process's number, or 0 for what `default` will return, and OpenMP's, or 0 for its own."""
    global max_threads, openmp_default, default_threads
    max_threads = number
    openmp_default = of_openmp or omp_get_num_procs()
    default_threads = default


def _set_threads(int n):
    global max_threads
    max_threads = n


def _override_threads(int n):
    """Threads of this Python thread from now on (0: the process's number); returns what held before."""
    before = cnorm_get_override()
    cnorm_set_override(n)
    return before


def _get_threads():
    return allowed_threads()


def _has_openmp():
    return bool(cnorm_openmp())


def _forked():
    """In a forked child GNU OpenMP must not start a parallel region."""
    global serial_child
    serial_child = True
    pool_after_fork()


cdef int allowed_threads() except -1:
    global max_threads
    cdef int n = cnorm_get_override(), limit
    if serial_child or not cnorm_openmp():
        return 1
    if n == 0:
        if max_threads == 0:
            max_threads = default_threads()
        n = max_threads
    limit = omp_get_max_threads()
    if limit < openmp_default and limit < n:  # somebody (threadpoolctl) limited OpenMP
        n = limit
    return n


cdef inline int threads_for(Py_ssize_t size) except -1:
    """Threads for a call that reads so many bytes: entering a parallel region must pay."""
    if size < PARALLEL or max_threads == 1 and cnorm_get_override() == 0:
        return 1
    return allowed_threads()


from . import _dispatch  # noqa: E402

_use(_dispatch.kernels.table)

include "_arrays.pxi"
include "_channels.pxi"
include "_rows_calls.pxi"
include "_window_calls.pxi"


def _cache():
    """Bytes kept for the next results, and their bound."""
    return pool_bytes(), pool_limit


def _set_cache_limit(size_t limit):
    pool_set_limit(limit)


def _empty_cache():
    pool_clear()


# ---- batch and instance norm ----

cdef int check_eps(str name, double eps, bint training) except -1:
    if training and not eps > 0:
        raise ValueError(f"{name} eps must be positive during training, but got {eps}")
    if not training and not eps >= 0:
        raise ValueError(f"{name} eps must be non-negative, but got {eps}")
    return 0


cdef int check_tracked(cnp.ndarray x, int axis, cnp.ndarray running_mean, cnp.ndarray running_var,
                       cnp.ndarray weight, cnp.ndarray bias) except -1:
    cdef Py_ssize_t channels = cnp.PyArray_DIM(x, axis)
    if (running_mean is None) != (running_var is None):
        raise ValueError("running_mean and running_var must either both be None or neither be None")
    check_running(running_mean, "running_mean", channels)
    check_running(running_var, "running_var", channels)
    check_length(weight, "weight", channels)
    check_length(bias, "bias", channels)
    return 0


cdef int check_dims(cnp.ndarray x, str name, int least) except -1:
    if cnp.PyArray_NDIM(x) < least:
        raise ValueError(f"{name} expects at least {least} dimensions, but got input of size {sizes(x)}")
    return 0


cdef object with_stats(Channels call, object y):
    return y if call.mean_array is None else (y, call.mean_array, call.rstd_array)


def batch_norm(input, running_mean=None, running_var=None, weight=None, bias=None, training=False,
               momentum=0.1, eps=1e-5, *, out=None, channel_axis=1, return_stats=False,
               negative_slope=None):
    """Normalise each channel over the batch and all spatial positions.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias`` with the mean and the biased variance of each
    channel (training), or the running ones (evaluation) [1]_.

    Parameters
    ----------
    input : array_like, shape (N, C, ...)
        float32, float64, float16 or bfloat16.
    running_mean, running_var : ndarray, shape (C,), optional
        Updated in place in training, with the unbiased variance:
        ``running = (1 - momentum) * running + momentum * batch``. Needed in evaluation.
    weight, bias : array_like, shape (C,), optional
        Any float dtype.
    training : bool
        Use the statistics of this batch.
    momentum : float
        Share of this batch in the running statistics.
    eps : float
        Added to the variance.
    out, channel_axis, return_stats, negative_slope
        See the module's documentation. The statistics are ``mean`` and ``rstd``, shape (C,).

    Returns
    -------
    ndarray or tuple
        The result, or ``(y, mean, rstd)``.

    Raises
    ------
    ValueError
        One value per channel in training, only one running statistic, eps out of range, or an `out`
        of the wrong shape.
    RuntimeError
        A parameter of the wrong length, or evaluation without running statistics.
    TypeError
        An array that is not of a float dtype.

    References
    ----------
    .. [1] S. Ioffe, C. Szegedy, "Batch Normalization", ICML 2015, arXiv:1502.03167.

    Examples
    --------
    >>> import numpy as np, cnorm.functional as F
    >>> x = np.array([[1.0, 10.0], [3.0, 30.0]], np.float32)
    >>> F.batch_norm(x, training=True, eps=1e-12)
    array([[-1., -1.],
           [ 1.,  1.]], dtype=float32)
    """
    return batch_forward(input, running_mean, running_var, None, weight, bias, training, momentum, eps, out,
                         channel_axis, return_stats, negative_slope)


def _batch_norm_counting(count, input, running_mean, running_var, weight, bias, training, momentum, eps, *,
                         channel_axis, return_stats, negative_slope):
    """`batch_norm` which, in training, also adds 1 to `count`, with the running statistics or not at all."""
    return batch_forward(input, running_mean, running_var, count, weight, bias, training, momentum, eps, None,
                         channel_axis, return_stats, negative_slope)


cdef object batch_forward(object input, object running_mean, object running_var, object count, object weight,
                          object bias, object training, object momentum, object eps, object out,
                          object channel_axis, object return_stats, object negative_slope):
    cdef Channels call = <Channels> Channels.__new__(Channels)
    cdef cnp.ndarray x = given(input, "input"), into = given_out(out, "out"), counter = given_running(
        count, "num_batches_tracked")
    cdef cnp.ndarray mean = given_running(running_mean, "running_mean")
    cdef cnp.ndarray var = given_running(running_var, "running_var")
    cdef cnp.ndarray w = given(weight, "weight"), b = given(bias, "bias")
    cdef bint with_statistics = return_stats
    cdef bint of_batch = training
    cdef double factor = number(momentum, "momentum") if of_batch and mean is not None else 0
    cdef int axis
    cdef double memory[LENT]
    call.eps = number(eps, "eps")
    call.take_slope(negative_slope)
    channel_axis = integer(channel_axis, "channel_axis")

    x = floats(x, "input")
    check_dims(x, "batch_norm", 2)
    axis = axis_of(channel_axis, cnp.PyArray_NDIM(x))
    if axis == 0:
        raise ValueError("channel_axis 0 is the batch")
    check_tracked(x, axis, mean, var, w, b)
    if not of_batch and mean is None:
        raise RuntimeError("running_mean must be defined in evaluation mode")
    call.set(x, 0, axis, 0)
    call.lend(memory)
    if of_batch and call.unit_size() == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {sizes(x)}")
    check_eps("batch_norm", call.eps, of_batch)
    call.parameters(w, b)
    return tracked_forward(call, of_batch, mean, var, counter, factor, into, 1 if with_statistics else 0)


cdef object tracked_forward(Channels call, bint of_input, cnp.ndarray running_mean, cnp.ndarray running_var,
                            cnp.ndarray count, double factor, cnp.ndarray out, int stats_ndim):
    """Forward with the input's statistics, which the running ones and their count then learn of, or with
    the running ones; with mean and rstd of `stats_ndim` dimensions, or 0: without."""
    if stats_ndim:
        call.return_statistics(stats_ndim)
    if not of_input:
        given_statistics(call, running_mean, running_var)
        return with_stats(call, call.forward(out))
    check_updates(running_mean, running_var, count, out)
    if running_mean is not None:
        call.keep(&call.mean)
        call.keep(&call.m2)
    result = with_stats(call, call.forward(out))
    if running_mean is None or call.elements == 0:  # nothing that statistics could take
        track(None, None, 0, NULL, NULL, 1, 0, count)
    else:
        track(running_mean, running_var, factor, over_batch(call, call.mean), over_batch(call, call.m2),
              call.unit_size() - 1, call.channels, count)
    return result


cdef int check_updates(cnp.ndarray running_mean, cnp.ndarray running_var, cnp.ndarray count, cnp.ndarray out) except -1:
    """What training writes can be written, and each is an array of its own."""
    check_writable(running_mean, "running_mean")
    check_writable(running_var, "running_var")
    if count is not None:
        check_counter(count, "num_batches_tracked")
        check_apart(count, "num_batches_tracked", running_mean, "running_mean")
        check_apart(count, "num_batches_tracked", running_var, "running_var")
        check_apart(count, "num_batches_tracked", out, "out")
    check_apart(running_mean, "running_mean", running_var, "running_var")
    if out is not None:
        check_apart(out, "out", running_mean, "running_mean")
        check_apart(out, "out", running_var, "running_var")
    return 0


cdef int given_statistics(Channels call, cnp.ndarray mean, cnp.ndarray var) except -1:
    """Statistics that do not come from the input, one per channel, for every unit."""
    cdef Py_ssize_t i, n = call.channels, units = call.units()
    cdef double *rstd
    call.given = True
    call.keep(&call.mean)
    call.keep(&call.rstd)
    if units == 0:
        return 0
    rstd = call.rstd
    copy_doubles(call.mean, n, mean, "running_mean")
    copy_doubles(rstd, n, var, "running_var")
    kernels.rstds(rstd, n, call.eps)
    for i from n <= i < units by n:
        memcpy(call.mean + i, call.mean, n * sizeof(double))
        memcpy(rstd + i, rstd, n * sizeof(double))
    return 0


cdef object channels_backward(object grad_output, object input, object num_groups, object mean, object rstd,
                              object weight, object bias, object from_input, int kind, object out,
                              object channel_axis, object negative_slope):
    """Backward of batch (kind 0), instance (1) and group norm (2)."""
    cdef Channels call = <Channels> Channels.__new__(Channels)
    cdef cnp.ndarray x = given(input, "input"), dy = given(grad_output, "grad_output"), into = given_out(out, "out")
    cdef cnp.ndarray m = given(mean, "mean"), r = given(rstd, "rstd")
    cdef cnp.ndarray w = given(weight, "weight"), b = given(bias, "bias")
    cdef int axis, batch = 0
    cdef Py_ssize_t channels, groups = 0
    cdef double memory[LENT]
    cdef str shape = "(C,)" if kind == 0 else "(N, C)" if kind == 1 else "(N, G)"
    cdef bint of_input = from_input
    call.given = not of_input
    call.take_slope(negative_slope)
    channel_axis = integer(channel_axis, "channel_axis")
    if kind == 2:
        num_groups = group_count(num_groups)

    x = floats(x, "input")
    if cnp.PyArray_NDIM(x) < 2:
        if kind == 2:
            raise RuntimeError(f"Expected at least 2 dimensions for input tensor but received {cnp.PyArray_NDIM(x)}")
        check_dims(x, ("batch_norm_backward", "instance_norm_backward")[kind], 2)
    dy = gradient_like(dy, x)
    axis = axis_of(channel_axis, cnp.PyArray_NDIM(x))
    channels = cnp.PyArray_DIM(x, axis)
    if kind == 1:
        batch = -1 if axis == 0 else 0
        groups = channels
    elif axis == 0:
        raise ValueError("channel_axis 0 is the batch")
    if kind == 2:
        groups = check_groups(x, axis, num_groups, None, None)
    call.set(x, batch, axis, groups)
    call.lend(memory)
    check_length(w, "weight", channels)
    check_length(b, "bias", channels)
    call.mean_array = statistic(m, "mean", call.units(), shape)
    call.mean = data64(call.mean_array)
    call.rstd_array = statistic(r, "rstd", call.units(), shape)
    call.rstd = data64(call.rstd_array)
    call.parameters(w, b)
    return parameter_grads(call, call.backward(dy, into), w, b)


def batch_norm_backward(grad_output, input, mean, rstd, weight=None, *, training=True, out=None,
                        channel_axis=1, negative_slope=None, bias=None):
    """Gradients of `batch_norm`.

    With ``xhat = (x - mean) * rstd`` and ``g = weight * grad_output``, in training
    ``grad_input = rstd * (g - mean(g) - xhat * mean(g * xhat))`` over the units of the forward pass; in
    evaluation ``rstd * g``.

    Parameters
    ----------
    grad_output, input : array_like, shape (N, C, ...)
        Of one dtype.
    mean, rstd : array_like, shape (C,)
        As forward returned them.
    weight : array_like, shape (C,), optional
    training : bool
        Whether the statistics came from the input.
    out : ndarray, optional
        For grad_input; ``out=grad_output`` works in place.
    bias, negative_slope
        Of the forward pass, where an activation was fused.

    Returns
    -------
    grad_input, grad_weight, grad_bias : ndarray
        Parameter gradients have the parameters' dtype; without a weight, the accumulation type. With an
        array for `negative_slope` its gradient follows.

    Examples
    --------
    >>> import numpy as np, cnorm.functional as F
    >>> x = np.arange(6.0).reshape(3, 2)
    >>> y, mean, rstd = F.batch_norm(x, training=True, return_stats=True)
    >>> dx, dw, db = F.batch_norm_backward(np.ones_like(x), x, mean, rstd)
    >>> db
    array([3., 3.])
    """
    return channels_backward(grad_output, input, None, mean, rstd, weight, bias, training, 0, out,
                             channel_axis, negative_slope)


def instance_norm(input, running_mean=None, running_var=None, weight=None, bias=None,
                  use_input_stats=True, momentum=0.1, eps=1e-5, *, out=None, channel_axis=1,
                  return_stats=False, negative_slope=None):
    """Normalise each channel of each sample over its spatial positions.

    The same as `group_norm` with one group per channel [1]_.

    Parameters
    ----------
    input : array_like, shape (N, C, ...)
    running_mean, running_var : ndarray, shape (C,), optional
        Updated in place with the mean over N of the samples' statistics (unbiased variance) where
        `use_input_stats`; used instead of the input's where not.
    weight, bias : array_like, shape (C,), optional
    use_input_stats : bool
    momentum, eps : float
    out, channel_axis, return_stats, negative_slope
        See the module's documentation. The statistics have shape (N, C). With ``channel_axis=0`` the
        input is one sample, (C, ...).

    Returns
    -------
    ndarray or tuple
        The result, or ``(y, mean, rstd)``.

    Raises
    ------
    ValueError
        One spatial element where `use_input_stats`, or only one running statistic.
    RuntimeError
        A parameter of the wrong length, or no running statistics where they are to be used.
    TypeError
        An array that is not of a float dtype.

    References
    ----------
    .. [1] D. Ulyanov, A. Vedaldi, V. Lempitsky, "Instance Normalization", arXiv:1607.08022.

    Examples
    --------
    >>> import numpy as np, cnorm.functional as F
    >>> x = np.array([[[1.0, 3.0], [10.0, 30.0]]], np.float32)
    >>> F.instance_norm(x, eps=1e-12)
    array([[[-1.,  1.],
            [-1.,  1.]]], dtype=float32)
    """
    cdef Channels call = <Channels> Channels.__new__(Channels)
    cdef cnp.ndarray x = given(input, "input"), into = given_out(out, "out")
    cdef cnp.ndarray mean = given_running(running_mean, "running_mean")
    cdef cnp.ndarray var = given_running(running_var, "running_var")
    cdef cnp.ndarray w = given(weight, "weight"), b = given(bias, "bias")
    cdef bint with_statistics = return_stats
    cdef bint of_input = use_input_stats
    cdef double factor = number(momentum, "momentum") if of_input and mean is not None else 0
    cdef int axis
    cdef double memory[LENT]
    call.eps = number(eps, "eps")
    call.take_slope(negative_slope)
    channel_axis = integer(channel_axis, "channel_axis")

    x = floats(x, "input")
    check_dims(x, "instance_norm", 2)
    axis = axis_of(channel_axis, cnp.PyArray_NDIM(x))
    check_tracked(x, axis, mean, var, w, b)
    if not of_input and mean is None:
        raise RuntimeError("Expected running_mean and running_var to be defined when use_input_stats is false")
    call.set(x, -1 if axis == 0 else 0, axis, cnp.PyArray_DIM(x, axis))
    call.lend(memory)
    if of_input and call.unit_size() == 1:
        raise ValueError(f"Expected more than 1 spatial element when training, got input size {sizes(x)}")
    call.parameters(w, b)
    return tracked_forward(call, of_input, mean, var, None, factor, into, 2 if with_statistics else 0)


def instance_norm_backward(grad_output, input, mean, rstd, weight=None, *, use_input_stats=True,
                           out=None, channel_axis=1, negative_slope=None, bias=None):
    """Gradients of `instance_norm`, as `batch_norm_backward` gives those of `batch_norm`.

    Parameters
    ----------
    grad_output, input : array_like, shape (N, C, ...)
    mean, rstd : array_like, shape (N, C)
    weight : array_like, shape (C,), optional
    use_input_stats : bool
    out, channel_axis, negative_slope, bias
        As `batch_norm_backward`.

    Returns
    -------
    grad_input, grad_weight, grad_bias : ndarray

    Examples
    --------
    >>> import numpy as np, cnorm.functional as F
    >>> x = np.arange(8.0).reshape(1, 2, 4)
    >>> y, mean, rstd = F.instance_norm(x, return_stats=True)
    >>> dx, dw, db = F.instance_norm_backward(np.ones_like(x), x, mean, rstd)
    >>> db
    array([4., 4.])
    """
    return channels_backward(grad_output, input, None, mean, rstd, weight, bias, use_input_stats, 1, out,
                             channel_axis, negative_slope)


# ---- group norm ----

cdef object group_count(object num_groups):
    if isinstance(num_groups, cnp.ndarray):
        raise TypeError("num_groups must be an integer, but got an array")
    return integer(num_groups, "num_groups")


cdef Py_ssize_t check_groups(cnp.ndarray x, int axis, object num_groups, cnp.ndarray weight, cnp.ndarray bias) except -1:
    """The number of groups, an int, as a size."""
    cdef Py_ssize_t groups = clipped(num_groups)
    if groups <= 0:
        raise RuntimeError(f"Expected num groups to be greater than 0, got {num_groups}")
    if cnp.PyArray_DIM(x, axis) % groups:
        raise RuntimeError("Expected number of channels in input to be divisible by num_groups, but got input of "
                           f"shape {sizes(x)} and num_groups={num_groups}")
    check_channel_vector(weight, "weight", x, axis)
    check_channel_vector(bias, "bias", x, axis)
    return groups


cdef int check_channel_vector(cnp.ndarray parameter, str name, cnp.ndarray x, int axis) except -1:
    if parameter is not None and (
            cnp.PyArray_NDIM(parameter) != 1 or cnp.PyArray_DIM(parameter, 0) != cnp.PyArray_DIM(x, axis)):
        raise RuntimeError(f"Expected {name} to be a vector of size equal to the number of channels in input, but "
                           f"got {name} of shape {sizes(parameter)} and input of shape {sizes(x)}")
    return 0


def group_norm(input, num_groups, weight=None, bias=None, eps=1e-5, *, out=None, channel_axis=1,
               return_stats=False, negative_slope=None):
    """Normalise each group of channels of each sample [1]_.

    ``num_groups=C`` is `instance_norm`, ``num_groups=1`` is `layer_norm` over (C, ...) with a weight
    per channel.

    Parameters
    ----------
    input : array_like, shape (N, C, ...)
    num_groups : int
        Divides C.
    weight, bias : array_like, shape (C,), optional
    eps : float
    out, channel_axis, return_stats, negative_slope
        See the module's documentation. The statistics have shape (N, G).

    Returns
    -------
    ndarray or tuple
        The result, or ``(y, mean, rstd)``.

    Raises
    ------
    RuntimeError
        Fewer than 2 dimensions, channels that `num_groups` does not divide, parameters that are not
        vectors of C.
    TypeError
        An array that is not of a float dtype.

    References
    ----------
    .. [1] Y. Wu, K. He, "Group Normalization", ECCV 2018, arXiv:1803.08494.

    Examples
    --------
    >>> import numpy as np, cnorm.functional as F
    >>> x = np.array([[1.0, 3.0, 10.0, 30.0]], np.float32)
    >>> F.group_norm(x, 2, eps=1e-12)
    array([[-1.,  1., -1.,  1.]], dtype=float32)
    """
    cdef Channels call = <Channels> Channels.__new__(Channels)
    cdef cnp.ndarray x = given(input, "input"), into = given_out(out, "out")
    cdef cnp.ndarray w = given(weight, "weight"), b = given(bias, "bias")
    cdef bint with_statistics = return_stats
    cdef int axis
    cdef double memory[LENT]
    cdef Py_ssize_t groups
    call.eps = number(eps, "eps")
    call.take_slope(negative_slope)
    channel_axis = integer(channel_axis, "channel_axis")
    num_groups = group_count(num_groups)

    x = floats(x, "input")
    if cnp.PyArray_NDIM(x) < 2:
        raise RuntimeError(f"Expected at least 2 dimensions for input tensor but received {cnp.PyArray_NDIM(x)}")
    axis = axis_of(channel_axis, cnp.PyArray_NDIM(x))
    if axis == 0:
        raise ValueError("channel_axis 0 is the batch")
    groups = check_groups(x, axis, num_groups, w, b)
    call.set(x, 0, axis, groups)
    call.lend(memory)
    if call.elements == groups:  # torch counts all samples of a group together
        spatial = [n for i, n in enumerate(sizes(x)) if i not in (0, axis)]
        raise ValueError("Expected more than 1 value per channel when training, got input size "
                         f"{[call.samples * call.channels // groups, groups, *spatial]}")
    call.parameters(w, b)
    if with_statistics:
        call.return_statistics(2)
    return with_stats(call, call.forward(into))


def group_norm_backward(grad_output, input, num_groups, mean, rstd, weight=None, *, out=None,
                        channel_axis=1, negative_slope=None, bias=None):
    """Gradients of `group_norm`, as `batch_norm_backward` gives those of `batch_norm`.

    Parameters
    ----------
    grad_output, input : array_like, shape (N, C, ...)
    num_groups : int
    mean, rstd : array_like, shape (N, G)
    weight : array_like, shape (C,), optional
    out, channel_axis, negative_slope, bias
        As `batch_norm_backward`.

    Returns
    -------
    grad_input, grad_weight, grad_bias : ndarray

    Examples
    --------
    >>> import numpy as np, cnorm.functional as F
    >>> x = np.arange(8.0).reshape(1, 4, 2)
    >>> y, mean, rstd = F.group_norm(x, 2, return_stats=True)
    >>> dx, dw, db = F.group_norm_backward(np.ones_like(x), x, 2, mean, rstd)
    >>> db
    array([2., 2., 2., 2.])
    """
    return channels_backward(grad_output, input, num_groups, mean, rstd, weight, bias, True, 2, out,
                             channel_axis, negative_slope)


# ---- layer and rms norm ----

cdef tuple stats_shape(cnp.ndarray x, int normalized):
    return (<object> x).shape[:cnp.PyArray_NDIM(x) - normalized] + (1,) * normalized


cdef object rows_forward(object input, object normalized_shape, object weight, object bias, bint centred,
                         object eps, object out, object channel_axis, Statistics wanted, object negative_slope):
    """Layer and rms norm, of which the latter takes an `eps` of None, the machine's."""
    cdef RowsCall call
    cdef cnp.ndarray x, into, w, b
    cdef tuple shape
    cdef bint default_eps = eps is None and not centred
    cdef double epsilon = 0 if default_eps else number(eps, "eps")
    if negative_slope is None:
        y = small_forward(input, normalized_shape, weight, bias, centred, default_eps, epsilon, out, wanted)
        if y is not None:
            return y
    call = <RowsCall> RowsCall.__new__(RowsCall)
    x, into = given(input, "input"), given_out(out, "out")
    w, b = given(weight, "weight"), given(bias, "bias")
    shape = row_shape(normalized_shape)
    call.take_slope(negative_slope)
    channel_axis = slope_axis(call, channel_axis)

    x = floats(x, "input")
    check_row(x, shape, w, b)
    call.set(x, len(shape), centred, epsilon)
    if default_eps:
        call.eps = machine_eps(call.storage)
    row_epilogue(call, channel_axis, len(shape))
    call.parameters(w, b, False)
    if wanted == PACKED:
        packed = packed_statistics(call.rows(), centred)
        call.keep_in(packed)
    elif wanted:
        call.rstd = new64(call.rows())
        if centred:
            call.mean = new64(call.rows())
    y = call.forward(into)
    if not wanted:
        return y
    if wanted == PACKED:
        return y, packed
    stats = stats_shape(x, len(shape))
    if centred:
        return y, call.mean.reshape(stats), call.rstd.reshape(stats)
    return y, call.rstd.reshape(stats)


cdef object keep_rows(list kept, bint keep, object input, object result):
    """What a module's forward returns; `kept` takes what its backward will want, or None."""
    if not keep:
        kept[0] = None
        return result
    kept[0] = (input, (<tuple> result)[1])
    return (<tuple> result)[0]


cdef cnp.ndarray row_statistic(RowsCall call, cnp.ndarray values, str name):
    cdef cnp.ndarray a = doubles(values, name)
    if cnp.PyArray_SIZE(a) != call.rows():
        raise ValueError(f"{name} must have shape {stats_shape(call.x, call.normalized)}, but got {shape_of(a)}")
    return a


cdef object rows_backward(object grad_output, object input, object normalized_shape, object mean,
                          object rstd, object weight, object bias, bint centred, object out,
                          object channel_axis, object negative_slope, object grad_sum=None):
    """Backward of layer and rms norm; grad_sum is added to the gradient of the input."""
    cdef RowsCall call = <RowsCall> RowsCall.__new__(RowsCall)
    cdef cnp.ndarray x = given(input, "input"), dy = given(grad_output, "grad_output"), into = given_out(out, "out")
    cdef cnp.ndarray plus = given(grad_sum, "grad_sum")
    cdef cnp.ndarray w = given(weight, "weight"), b = given(bias, "bias"), m = None, r = None
    cdef tuple shape = row_shape(normalized_shape)
    cdef double memory[LENT]
    cdef int normalized = len(shape)
    cdef cnp.npy_intp *sizes_of_row
    if type(rstd) is not bytes:
        r = given(rstd, "rstd")
        if centred:
            m = given(mean, "mean")
    call.take_slope(negative_slope)
    channel_axis = slope_axis(call, channel_axis)

    x = floats(x, "input")
    dy = gradient_like(dy, x)
    if plus is not None:
        plus = gradient_like(plus, x, "grad_sum")
    check_row(x, shape, w, b)
    call.set(x, normalized, centred, 0)
    call.lend(memory)
    if type(rstd) is bytes:
        if len(<bytes> rstd) != packed_size(call.rows(), centred):
            raise TypeError(f"rstd must be a float array of shape {stats_shape(x, normalized)}, but got "
                            f"{len(<bytes> rstd)} bytes")
        call.keep_in(rstd)
    else:
        if centred:
            call.mean = row_statistic(call, m, "mean")
        call.rstd = row_statistic(call, r, "rstd")
    row_epilogue(call, channel_axis, normalized)
    if call.unit_slopes is not None:
        call.unit_slope_grads = np.zeros(call.rows())
    call.parameters(w, b, True)
    sizes_of_row = cnp.PyArray_DIMS(x) + (cnp.PyArray_NDIM(x) - normalized)
    call.grad_weight = gradient_room(w, call.storage, normalized, sizes_of_row)
    if b is None:
        b = w
    if centred:
        call.grad_bias = gradient_room(b, call.storage, normalized, sizes_of_row)
    result = (call.backward(dy, into, plus),)
    result += (call.grad_weight if call.grad_weight is not None else
               gradient(call.grads, call.length, w, call.storage, normalized, sizes_of_row),)
    if centred:
        result += (call.grad_bias if call.grad_bias is not None else
                   gradient(call.grads + call.length, call.length, b, call.storage, normalized, sizes_of_row),)
    if call.slope_gradient:
        result += (row_slope_gradient(call, array64(call.grads + 2 * call.length, call.length), channel_axis, shape),)
    return result


cdef object row_slope_gradient(RowsCall call, cnp.ndarray per_element, object channel_axis, tuple shape):
    cdef cnp.ndarray slope = call.slope_array
    if channel_axis is None:
        return per_element.sum().reshape(shape_of(slope)).astype(slope.dtype)
    axis = axis_of(channel_axis, cnp.PyArray_NDIM(call.x))
    first = cnp.PyArray_NDIM(call.x) - len(shape)
    if axis >= first:
        values, axis = per_element.reshape(shape), axis - first
    else:
        values = call.unit_slope_grads.reshape(shape_of(call.x)[:first])
    values = values.sum(tuple([i for i in range(values.ndim) if i != axis]))
    return values.reshape(shape_of(slope)).astype(slope.dtype)


def layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5, *, out=None, channel_axis=1,
               return_stats=False, negative_slope=None):
    """Normalise over the last axes [1]_.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias`` with the mean and the biased variance over the
    axes that `normalized_shape` names, the weight and bias element by element.

    Parameters
    ----------
    input : array_like, shape (..., *normalized_shape)
        float32, float64, float16 or bfloat16.
    normalized_shape : int or sequence of int
        The trailing axes.
    weight, bias : array_like, shape normalized_shape, optional
        Any float dtype.
    eps : float
        Added to the variance.
    out, channel_axis, return_stats, negative_slope
        See the module's documentation; `channel_axis` only says along which axis the slopes of a PReLU
        run. The statistics have the input's shape with ones for the normalised axes.

    Returns
    -------
    ndarray or tuple
        The result, or ``(y, mean, rstd)``.

    Raises
    ------
    RuntimeError
        A shape or parameter that does not fit `normalized_shape`.
    ValueError, TypeError
        An `out` of the wrong shape or dtype, an array that is not of a float dtype.

    References
    ----------
    .. [1] J. L. Ba, J. R. Kiros, G. E. Hinton, "Layer Normalization", arXiv:1607.06450.

    Examples
    --------
    >>> import numpy as np, cnorm.functional as F
    >>> F.layer_norm(np.array([[1.0, 3.0], [10.0, 30.0]], np.float32), 2, eps=1e-12)
    array([[-1.,  1.],
           [-1.,  1.]], dtype=float32)
    """
    return rows_forward(input, normalized_shape, weight, bias, True, eps, out, channel_axis,
                        AS_ARRAYS if return_stats else UNWANTED, negative_slope)


def _layer_norm_keeping(list kept, bint keep, input, normalized_shape, weight, bias, eps, channel_axis,
                        negative_slope):
    """`layer_norm` of a module: `kept` takes (input, rstd for `layer_norm_backward`), or None."""
    input = given(input, "input")
    return keep_rows(kept, keep, input,
                     rows_forward(input, normalized_shape, weight, bias, True, eps, None, channel_axis,
                                  PACKED if keep else UNWANTED, negative_slope))


def layer_norm_backward(grad_output, input, normalized_shape, mean, rstd, weight=None, *, out=None,
                        channel_axis=1, negative_slope=None, bias=None):
    """Gradients of `layer_norm`, as `batch_norm_backward` gives those of `batch_norm`.

    Parameters
    ----------
    grad_output, input : array_like, shape (..., *normalized_shape)
    normalized_shape : int or sequence of int
    mean, rstd : array_like
        As forward returned them.
    weight : array_like, shape normalized_shape, optional
    out, channel_axis, negative_slope, bias
        As `batch_norm_backward`.

    Returns
    -------
    grad_input, grad_weight, grad_bias : ndarray

    Examples
    --------
    >>> import numpy as np, cnorm.functional as F
    >>> x = np.arange(6.0).reshape(2, 3)
    >>> y, mean, rstd = F.layer_norm(x, 3, return_stats=True)
    >>> dx, dw, db = F.layer_norm_backward(np.ones_like(x), x, 3, mean, rstd)
    >>> db
    array([2., 2., 2.])
    """
    return rows_backward(grad_output, input, normalized_shape, mean, rstd, weight, bias, True, out,
                         channel_axis, negative_slope)


def rms_norm(input, normalized_shape, weight=None, eps=None, *, out=None, channel_axis=1,
             return_stats=False, negative_slope=None):
    """Divide by the root of the mean square over the last axes [1]_.

    ``y = x / sqrt(mean(x**2) + eps) * weight``.

    Parameters
    ----------
    input : array_like, shape (..., *normalized_shape)
    normalized_shape : int or sequence of int
    weight : array_like, shape normalized_shape, optional
    eps : float, optional
        None is the machine epsilon of the accumulation type: 1.19e-7, float64: 2.2e-16.
    out, channel_axis, return_stats, negative_slope
        As `layer_norm`.

    Returns
    -------
    ndarray or tuple
        The result, or ``(y, rstd)``.

    Raises
    ------
    RuntimeError
        A shape or parameter that does not fit `normalized_shape`.
    TypeError
        An array that is not of a float dtype.

    References
    ----------
    .. [1] B. Zhang, R. Sennrich, "Root Mean Square Layer Normalization", NeurIPS 2019, arXiv:1910.07467.

    Examples
    --------
    >>> import numpy as np, cnorm.functional as F
    >>> F.rms_norm(np.array([1.0, 1.0, 1.0, 1.0]), 4, eps=0)
    array([1., 1., 1., 1.])
    """
    return rows_forward(input, normalized_shape, weight, None, False, eps, out, channel_axis,
                        AS_ARRAYS if return_stats else UNWANTED, negative_slope)


def _rms_norm_keeping(list kept, bint keep, input, normalized_shape, weight, eps, channel_axis, negative_slope):
    """`rms_norm` of a module: `kept` takes (input, rstd for `rms_norm_backward`), or None."""
    input = given(input, "input")
    return keep_rows(kept, keep, input,
                     rows_forward(input, normalized_shape, weight, None, False, eps, None,
                                  channel_axis, PACKED if keep else UNWANTED, negative_slope))


def rms_norm_backward(grad_output, input, normalized_shape, rstd, weight=None, *, out=None,
                      channel_axis=1, negative_slope=None):
    """Gradients of `rms_norm`.

    Parameters
    ----------
    grad_output, input : array_like, shape (..., *normalized_shape)
    normalized_shape : int or sequence of int
    rstd : array_like
        As forward returned it.
    weight : array_like, shape normalized_shape, optional
    out, channel_axis, negative_slope
        As `batch_norm_backward`.

    Returns
    -------
    grad_input, grad_weight : ndarray

    Examples
    --------
    >>> import numpy as np, cnorm.functional as F
    >>> x = np.array([[3.0, 4.0]])
    >>> y, rstd = F.rms_norm(x, 2, return_stats=True)
    >>> dx, dw = F.rms_norm_backward(np.ones_like(x), x, 2, rstd)
    >>> bool(np.allclose(dw, y[0]))
    True
    """
    return rows_backward(grad_output, input, normalized_shape, None, rstd, weight, None, False, out,
                         channel_axis, negative_slope)


# ---- the same after a residual add ----

cdef object add_forward(object input, object residual, object normalized_shape, object weight, object bias,
                        bint centred, object eps, object out, object residual_out, object channel_axis,
                        object return_stats, object negative_slope):
    cdef RowsCall call = <RowsCall> RowsCall.__new__(RowsCall)
    cdef cnp.ndarray one = given(input, "input"), other = given(residual, "residual")
    cdef cnp.ndarray into = given_out(out, "out"), total = given_out(residual_out, "residual_out"), room
    cdef cnp.ndarray w = given(weight, "weight"), b = given(bias, "bias")
    cdef tuple shape = row_shape(normalized_shape)
    cdef bint default_eps = eps is None and not centred, with_statistics = return_stats
    cdef double epsilon = 0 if default_eps else number(eps, "eps")
    call.take_slope(negative_slope)
    channel_axis = slope_axis(call, channel_axis)

    one, other = floats(one, "input"), floats(other, "residual")
    if not same_shape(one, other):
        raise ValueError(f"residual must have the input's shape {shape_of(one)}, but got {shape_of(other)}")
    if storage_of(one) != storage_of(other):
        raise TypeError(f"residual must have the input's dtype {one.dtype}, but got {other.dtype}")
    check_row(one, shape, w, b)
    if into is not None:
        checked_out(into, one)
    total = empty_like(one) if total is None else checked_out(total, one, "residual_out")
    check_apart(into, "out", total, "residual_out")
    room = total
    if not native(room) or not writable_in_place(room, one, True) or not writable_in_place(room, other, True) or (
            into is not None and may_overlap(room, into)):
        room = empty_like(one)
    call.set(room, len(shape), centred, machine_eps(storage_of(one)) if default_eps else epsilon)
    row_epilogue(call, channel_axis, len(shape))
    call.parameters(w, b, False)
    call.guard(total)
    if with_statistics:
        call.rstd = new64(call.rows())
        call.mean = new64(call.rows()) if centred else None
    y = call.forward(into, one, other)
    if call.x is not total:
        cnp.PyArray_CopyInto(total, call.x)
    if not with_statistics:
        return y, total
    stats = stats_shape(one, len(shape))
    if centred:
        return y, total, call.mean.reshape(stats), call.rstd.reshape(stats)
    return y, total, call.rstd.reshape(stats)


def add_layer_norm(input, residual, normalized_shape, weight=None, bias=None, eps=1e-5, *, out=None,
                   residual_out=None, channel_axis=1, return_stats=False, negative_slope=None):
    """Add a residual and normalise the sum, in one visit to memory.

    ``s = input + residual`` (rounded to the input's dtype), ``y = layer_norm(s, ...)``: what a
    transformer block does between two layers.

    Parameters
    ----------
    input, residual : array_like, shape (..., *normalized_shape)
        Of one dtype.
    normalized_shape, weight, bias, eps, out, channel_axis, return_stats, negative_slope
        As `layer_norm`.
    residual_out : ndarray, optional
        Where the sum goes; ``residual_out=residual`` adds in place.

    Returns
    -------
    tuple
        ``(y, s)``, or ``(y, s, mean, rstd)``.

    Raises
    ------
    ValueError, TypeError
        A residual of another shape or dtype, or an `out` that overlaps `residual_out`.
    RuntimeError
        As `layer_norm`.

    Examples
    --------
    >>> import numpy as np, cnorm.functional as F
    >>> y, s = F.add_layer_norm(np.array([[1.0, 2.0]]), np.array([[0.0, 1.0]]), 2, eps=1e-12)
    >>> s
    array([[1., 3.]])
    >>> y
    array([[-1.,  1.]])
    """
    return add_forward(input, residual, normalized_shape, weight, bias, True, eps, out, residual_out,
                       channel_axis, return_stats, negative_slope)


def add_rms_norm(input, residual, normalized_shape, weight=None, eps=None, *, out=None, residual_out=None,
                 channel_axis=1, return_stats=False, negative_slope=None):
    """Add a residual and divide the sum by its root mean square: `add_layer_norm` with `rms_norm`.

    Parameters
    ----------
    input, residual : array_like, shape (..., *normalized_shape)
    normalized_shape, weight, eps, out, channel_axis, return_stats, negative_slope
        As `rms_norm`.
    residual_out : ndarray, optional
        Where the sum goes; ``residual_out=residual`` adds in place.

    Returns
    -------
    tuple
        ``(y, s)``, or ``(y, s, rstd)``.

    Examples
    --------
    >>> import numpy as np, cnorm.functional as F
    >>> y, s = F.add_rms_norm(np.array([1.0, 1.0]), np.array([1.0, 1.0]), 2, eps=0)
    >>> y, s
    (array([1., 1.]), array([2., 2.]))
    """
    return add_forward(input, residual, normalized_shape, weight, None, False, eps, out,
                       residual_out, channel_axis, return_stats, negative_slope)


def add_layer_norm_backward(grad_output, grad_sum, sum, normalized_shape, mean, rstd, weight=None, *,
                            out=None, channel_axis=1, negative_slope=None, bias=None):
    """Gradients of `add_layer_norm`.

    Parameters
    ----------
    grad_output : array_like
        Of ``y``.
    grad_sum : array_like or None
        Of ``s``, where it was used elsewhere too.
    sum : array_like
        ``s``, as forward returned it.
    normalized_shape, mean, rstd, weight, out, channel_axis, negative_slope, bias
        As `layer_norm_backward`.

    Returns
    -------
    grad_input, grad_weight, grad_bias : ndarray
        grad_input is the gradient of both the input and the residual.

    Examples
    --------
    >>> import numpy as np, cnorm.functional as F
    >>> x = np.array([[1.0, 2.0]])
    >>> y, s, mean, rstd = F.add_layer_norm(x, x, 2, return_stats=True)
    >>> dx, dw, db = F.add_layer_norm_backward(np.zeros_like(y), np.ones_like(s), s, 2, mean, rstd)
    >>> dx
    array([[1., 1.]])
    """
    return rows_backward(grad_output, sum, normalized_shape, mean, rstd, weight, bias, True, out,
                         channel_axis, negative_slope, grad_sum)


def add_rms_norm_backward(grad_output, grad_sum, sum, normalized_shape, rstd, weight=None, *, out=None,
                          channel_axis=1, negative_slope=None):
    """Gradients of `add_rms_norm`; see `add_layer_norm_backward`.

    Parameters
    ----------
    grad_output, grad_sum, sum, normalized_shape, rstd, weight, out, channel_axis, negative_slope
        As `add_layer_norm_backward`.

    Returns
    -------
    grad_input, grad_weight : ndarray

    Examples
    --------
    >>> import numpy as np, cnorm.functional as F
    >>> x = np.array([[3.0, 4.0]])
    >>> y, s, rstd = F.add_rms_norm(x, x, 2, return_stats=True)
    >>> dx, dw = F.add_rms_norm_backward(np.zeros_like(y), np.ones_like(s), s, 2, rstd)
    >>> dx
    array([[1., 1.]])
    """
    return rows_backward(grad_output, sum, normalized_shape, None, rstd, weight, None, False, out,
                         channel_axis, negative_slope, grad_sum)


# ---- response norms ----

def local_response_norm(input, size, alpha=1e-4, beta=0.75, k=1.0, *, out=None, channel_axis=1,
                        negative_slope=None):
    """Divide each element by a power of the sum of squares over neighbouring channels [1]_.

    ``y[c] = x[c] / (k + alpha / size * sum(x[j]**2))**beta``, j from ``c - size // 2`` to
    ``c + (size - 1) // 2`` within the channels.

    Parameters
    ----------
    input : array_like, shape (N, C, ...), at least 3 dimensions
    size : int
        Channels in a window, even ones too.
    alpha, beta, k : float
    out, channel_axis, negative_slope
        See the module's documentation.

    Returns
    -------
    ndarray

    Raises
    ------
    ValueError
        Fewer than 3 dimensions, or a size below 1.
    TypeError
        An array that is not of a float dtype.

    References
    ----------
    .. [1] A. Krizhevsky, I. Sutskever, G. E. Hinton, "ImageNet Classification with Deep Convolutional
       Neural Networks", NeurIPS 2012, section 3.3.

    Examples
    --------
    >>> import numpy as np, cnorm.functional as F
    >>> F.local_response_norm(np.ones((1, 3, 1)), 3, alpha=3.0, beta=1.0).ravel().round(4)
    array([0.3333, 0.25  , 0.3333])
    """
    return response_forward(input, size, alpha, beta, k, False, out, channel_axis, negative_slope)


def local_response_norm_backward(grad_output, input, size, alpha=1e-4, beta=0.75, k=1.0, *, out=None,
                                 channel_axis=1, negative_slope=None):
    """Gradient of `local_response_norm`.

    Parameters
    ----------
    grad_output, input : array_like, shape (N, C, ...)
    size, alpha, beta, k, out, channel_axis, negative_slope
        As `local_response_norm`.

    Returns
    -------
    ndarray, or a tuple with the gradient of an array `negative_slope`

    Examples
    --------
    >>> import numpy as np, cnorm.functional as F
    >>> x = np.ones((1, 1, 1))
    >>> F.local_response_norm_backward(x, x, 1, alpha=1.0, beta=1.0)
    array([[[0.]]])
    """
    return response_backward(grad_output, input, size, alpha, beta, k, False, out, channel_axis, negative_slope)


def cross_map_lrn(input, size, alpha=1e-4, beta=0.75, k=1.0, *, out=None, channel_axis=1,
                  negative_slope=None):
    """Torch's legacy response norm over maps.

    As `local_response_norm` with a window of ``(size - 1) // 2`` channels on both sides, except that
    channel 0 is in every window: the legacy layer never subtracts it from its running sum.

    Parameters
    ----------
    input : array_like, shape (N, C, ...)
    size, alpha, beta, k, out, channel_axis, negative_slope
        As `local_response_norm`.

    Returns
    -------
    ndarray

    Examples
    --------
    >>> import numpy as np, cnorm.functional as F
    >>> F.cross_map_lrn(np.ones((1, 3, 1, 1)), 1, alpha=1.0, beta=1.0).ravel().round(4)
    array([0.5   , 0.3333, 0.3333])
    """
    return response_forward(input, size, alpha, beta, k, True, out, channel_axis, negative_slope)


def cross_map_lrn_backward(grad_output, input, size, alpha=1e-4, beta=0.75, k=1.0, *, out=None,
                           channel_axis=1, negative_slope=None):
    """Gradient of `cross_map_lrn`.

    Parameters
    ----------
    grad_output, input : array_like, shape (N, C, ...)
    size, alpha, beta, k, out, channel_axis, negative_slope
        As `cross_map_lrn`.

    Returns
    -------
    ndarray

    Examples
    --------
    >>> import numpy as np, cnorm.functional as F
    >>> x = np.ones((1, 1, 1, 1))
    >>> F.cross_map_lrn_backward(x, x, 1, alpha=1.0, beta=1.0)
    array([[[[0.]]]])
    """
    return response_backward(grad_output, input, size, alpha, beta, k, True, out, channel_axis, negative_slope)


# ---- the steps on their own: what SwitchNorm and SyncBatchNorm are built from ----
# groups 0: a unit is a channel; C: one channel of one sample.

cdef Channels steps_call(object input, object channel_axis, Py_ssize_t groups, object mean, object lo,
                         object rstd):
    cdef cnp.ndarray x = given(input, "input"), m = given(mean, "mean"), low = given(lo, "lo"), r = given(rstd, "rstd")
    cdef int axis
    cdef Channels call = <Channels> Channels.__new__(Channels)
    channel_axis = integer(channel_axis, "channel_axis")
    x = floats(x, "input")
    axis = axis_of(channel_axis, cnp.PyArray_NDIM(x))
    call.set(x, -1 if axis == 0 else 0, axis, groups)
    if m is not None:
        call.mean_array = statistic(m, "mean", call.units(), "of a value per unit")
        call.rstd_array = statistic(r, "rstd", call.units(), "of a value per unit")
        call.mean = data64(call.mean_array)
        call.rstd = data64(call.rstd_array)
        call.keep(&call.lo)
        copy_doubles(call.lo, call.units(), low, "lo")
    return call


def _moments(input, channel_axis=1, groups=0):
    """(elements of a unit, mean, lo, m2), float64: mean + lo is the mean, m2 the squared deviations."""
    cdef Channels call = steps_call(input, channel_axis, groups, None, None, None)
    cdef Py_ssize_t n = call.units()
    mean, lo, m2 = new64(n), new64(n), new64(n)
    call.mean, call.lo, call.m2 = data64(mean), data64(lo), data64(m2)
    call.eps = 1
    call.moments()
    return call.unit_size(), mean, lo, m2


def _apply(input, mean, lo, rstd, weight=None, bias=None, *, channel_axis=1, groups=0, out=None,
           negative_slope=None):
    """y = (x - mean - lo) * rstd * weight + bias, statistics given per unit."""
    cdef Channels call = steps_call(input, channel_axis, groups, mean, lo, rstd)
    call.given = True
    call.take_slope(negative_slope)
    call.parameters(given(weight, "weight"), given(bias, "bias"))
    return call.forward(given_out(out, "out"))


def _grad_sums(grad_output, input, mean, lo, rstd, weight=None, bias=None, *, channel_axis=1, groups=0,
               negative_slope=None):
    """Per unit (sum of g, sum of g * (x - mean)), g = weight * grad_output; and the gradients of weight,
    bias and slope per channel, all float64."""
    cdef Channels call = steps_call(input, channel_axis, groups, mean, lo, rstd)
    cdef cnp.ndarray dy = gradient_like(given(grad_output, "grad_output"), call.x)
    cdef Py_ssize_t n = call.channels
    call.take_slope(negative_slope)
    call.parameters(given(weight, "weight"), given(bias, "bias"))
    sums = np.zeros((call.units(), 2))
    call.backward(dy, None, sums, SUMS_ONLY)
    return sums, array64(call.grads, n), array64(call.grads + n, n), array64(call.grads + 2 * n, n)


def _grad_apply(grad_output, input, mean, lo, rstd, weight, bias, sums, count, *, channel_axis=1,
                groups=0, out=None, negative_slope=None):
    """The gradient of the input from the sums (of all parts of a unit, `count` elements together)."""
    cdef Channels call = steps_call(input, channel_axis, groups, mean, lo, rstd)
    cdef cnp.ndarray dy = gradient_like(given(grad_output, "grad_output"), call.x)
    cdef cnp.ndarray of_units = np.array(sums, np.float64, order="C")
    if cnp.PyArray_SIZE(of_units) != product(call.units(), 2, "the sums"):
        raise ValueError(f"sums must have shape {(call.units(), 2)}, but got {shape_of(of_units)}")
    call.take_slope(negative_slope)
    call.parameters(given(weight, "weight"), given(bias, "bias"))
    return call.backward(dy, given_out(out, "out"), of_units, SUMS_GIVEN, count)


def _track(running_mean, running_var, factor, mean, var, count=None):
    """running = (1 - factor) * running + factor * batch, in place, and count += 1: all of it or nothing."""
    cdef cnp.ndarray of_mean = given_running(running_mean, "running_mean")
    cdef cnp.ndarray of_var = given_running(running_var, "running_var")
    cdef cnp.ndarray counter = given_running(count, "num_batches_tracked")
    cdef cnp.ndarray means = given(mean, "mean"), variances = given(var, "var")
    cdef double share = number(factor, "momentum")
    means, variances = doubles(means, "mean"), doubles(variances, "var")
    if cnp.PyArray_SIZE(variances) != cnp.PyArray_SIZE(means):
        raise ValueError(f"var must have shape {shape_of(means)}, but got {shape_of(variances)}")
    check_length(of_mean, "running_mean", cnp.PyArray_SIZE(means))
    check_length(of_var, "running_var", cnp.PyArray_SIZE(means))
    check_updates(of_mean, of_var, counter, None)
    track(of_mean, of_var, share, data64(means), data64(variances), 1, cnp.PyArray_SIZE(means), counter)


def _assign(targets, values):
    """Copy values into arrays of their shapes, cast: all or none."""
    assign(list(targets), [np.asarray(value, target.dtype).reshape(target.shape)
                           for target, value in zip(targets, values, strict=True)])


def _given(array, name):
    """What was passed, as an array (None stays None); see the comment at the head of `_arrays.pxi`."""
    return given(array, name)


def _given_out(out, name):
    """What was passed, if it is an array that can be written to, or None."""
    return given_out(out, name)


def _given_running(running, name):
    """What was passed, if it is an array that can be updated, as a plain one, or None."""
    return given_running(running, name)


def _number(value, name):
    """What was passed, as a float."""
    return number(value, name)


def _integer(value, name):
    """What was passed, as an int."""
    return integer(value, name)


def _floats(array, name):
    """What was passed, as a native array, if it is of a float dtype."""
    return floats(given(array, name), name)


def _doubles(array, name):
    """A float64 copy of an array that was passed, if it is of a float dtype."""
    return np.array(doubles(array, name))


def _checked_gradient(grad_output, x):
    """A gradient that was passed, if it fits the input."""
    return gradient_like(grad_output, x)


def _check_running(running, name, channels):
    """RuntimeError or TypeError where a running statistic does not fit."""
    check_running(running, name, channels)


def _check_updates(running_mean, running_var, out):
    """ValueError where training cannot write one of them, or two share memory."""
    check_updates(running_mean, running_var, None, out)


def _result(out, like):
    """`out`, if it fits, or a new array."""
    return empty_like(like) if out is None else checked_out(out, like)


from ._switch import switch_norm, switch_norm_backward  # noqa: E402, F401
