"""The steps that norms over channels are made of, for norms that are not here.

A norm takes moments of its input, combines them into a mean and a factor per unit, and applies these; backward
takes two sums per unit, and applies what the norm makes of them:

============== ===========================================================================
forward        `moments`, then `apply`: ``y = (x - mean) * rstd * weight + bias``
backward       `grad_sums`, then `grad_apply`; `grad_moments` for other functions of moments
============== ===========================================================================

`SyncBatchNorm` is written on them. Shared by the functions below:

channel_axis
    Which axis holds the C channels; axis 0 is the batch of N samples. With ``channel_axis=0`` the input is one
    sample.
groups
    What a unit is, which has a mean and a factor of its own. 0: a channel over the whole batch, C units, as in
    batch norm. G: a group of channels of one sample, N * G units in the order ``(N, G)``, as in group norm;
    ``groups=C`` is a channel of one sample, as in instance norm.
mean, lo, rstd
    Of every unit, float64, in any shape of as many elements. The mean is ``mean + lo``: two doubles, since a mean
    that is much larger than the deviations is not held by one. None stands for zeros. `rstd` is any factor, of
    any sign; that of a norm is ``1 / sqrt(m2 / count + eps)``.
weight, bias
    Of every channel, in any float dtype; None for a weight of 1 and a bias of 0.
negative_slope, clip
    A fused activation, as in `cnorm.functional`.

Sums are taken in an order that depends on the shape alone: results do not depend on the number of threads.
"""

import numpy as np

cimport numpy as cnp
from libc.string cimport memset

from cnorm._call.arrays cimport (as_array, as_float, as_floats, as_int, as_out, as_size, checked_product,
                                 copy_doubles, float64_array, float64_data, new_float64, shape_of)
from cnorm._call.channels cimport ChannelsCall
from cnorm._call.checks cimport as_gradient, as_statistic, axis_of
from cnorm.kernels.job cimport SUMS_GIVEN, SUMS_ONLY

__all__ = ["apply", "grad_apply", "grad_moments", "grad_sums", "moments"]

cdef extern from *:
    """
    #define CNORM_MODULE "cnorm.steps"
    #include "_hints.h"
    """

cnp.import_array()


def __dir__():
    """What completion offers: the steps."""
    return list(__all__)


cdef ChannelsCall call_on(object input, object channel_axis, object groups):
    """A call on the units of an input."""
    cdef ChannelsCall call = <ChannelsCall> ChannelsCall.__new__(ChannelsCall)
    cdef cnp.ndarray x = as_array(input, "input")
    cdef Py_ssize_t number
    cdef int axis
    channel_axis, groups = as_int(channel_axis, "channel_axis"), as_int(groups, "groups")
    x = as_floats(x, "input")
    axis = axis_of(channel_axis, cnp.PyArray_NDIM(x))
    number = as_size(groups)
    if number < 0 or number > 0 and cnp.PyArray_DIM(x, axis) % number:
        raise ValueError(f"groups must be 0 or divide the {cnp.PyArray_DIM(x, axis)} channels, but got {groups}")
    call.set_axes(x, -1 if axis == 0 else 0, axis, number)
    return call


cdef int give_statistics(ChannelsCall call, cnp.ndarray mean, cnp.ndarray lo, cnp.ndarray rstd) except -1:
    """Take the statistics of every unit."""
    cdef Py_ssize_t n = call.units()
    if mean is not None:
        call.mean_array = as_statistic(mean, "mean", n, "of a value per unit")
        call.mean = float64_data(call.mean_array)
    else:
        call.reserve(&call.mean)
        memset(call.mean, 0, n * sizeof(double))
    call.rstd_array = as_statistic(rstd, "rstd", n, "of a value per unit")
    call.rstd = float64_data(call.rstd_array)
    call.reserve(&call.lo)
    if lo is not None:
        copy_doubles(call.lo, n, lo, "lo")
    else:
        memset(call.lo, 0, n * sizeof(double))
    return 0


def moments(input, *, channel_axis=1, groups=0):
    """Count, mean and M2 of each unit.

    Parameters
    ----------
    input : array_like, shape (N, C, ...)
        float32, float64, float16 or bfloat16.
    channel_axis, groups : int
        What a unit is: see the module's documentation.

    Returns
    -------
    count : int
        Elements of a unit.
    mean, lo, m2 : ndarray, float64, shape (C,) or (N * G,)
        The mean is ``mean + lo``; ``m2`` is the sum of the squared deviations from it. 0 for units without
        elements.

    Raises
    ------
    ValueError
        A `channel_axis` that the input does not have, or `groups` that do not divide the channels.
    TypeError
        An array that is not of a float dtype.

    Examples
    --------
    >>> import numpy as np
    >>> from cnorm import steps
    >>> x = np.array([[1.0, 10.0], [3.0, 10.0]])
    >>> count, mean, lo, m2 = steps.moments(x)
    >>> count, mean, m2
    (2, array([ 2., 10.]), array([2., 0.]))
    """
    cdef ChannelsCall call = call_on(input, channel_axis, groups)
    cdef Py_ssize_t n = call.units()
    mean, lo, m2 = new_float64(n), new_float64(n), new_float64(n)
    call.mean, call.lo, call.m2 = float64_data(mean), float64_data(lo), float64_data(m2)
    call.eps = 1  # of an rstd that nobody sees
    call.moments()
    return call.unit_size(), mean, lo, m2


def apply(input, mean, lo, rstd, weight=None, bias=None, *, channel_axis=1, groups=0, out=None,
          negative_slope=None, clip=None):
    """Apply statistics: ``(input - mean - lo) * rstd * weight + bias``.

    Parameters
    ----------
    input : array_like, shape (N, C, ...)
        float32, float64, float16 or bfloat16.
    mean, lo : array_like or None
        One value per unit.
    rstd : array_like
        One value per unit.
    weight, bias : array_like or None
        One value per channel.
    channel_axis, groups : int
        What a unit is: see the module's documentation.
    out : ndarray, optional
        For the result; ``out=input`` works in place.
    negative_slope : float or array_like, optional
    clip : pair of float or None, optional
        Fused activation, one of the two.

    Returns
    -------
    ndarray
        Of the input's shape and dtype.

    Raises
    ------
    ValueError
        Statistics that are not one per unit, or an `out` of another shape.
    RuntimeError
        Parameters that are not one per channel.
    TypeError
        An array that is not of a float dtype, or an `out` of another dtype.

    Examples
    --------
    >>> import numpy as np
    >>> from cnorm import steps
    >>> x = np.array([[1.0, 10.0], [3.0, 10.0]])
    >>> steps.apply(x, [2.0, 10.0], None, [1.0, 5.0], bias=[0.0, 7.0])
    array([[-1.,  7.],
           [ 1.,  7.]])
    """
    cdef ChannelsCall call
    cdef cnp.ndarray m = as_array(mean, "mean"), low = as_array(lo, "lo"), r = as_array(rstd, "rstd")
    cdef cnp.ndarray w = as_array(weight, "weight"), b = as_array(bias, "bias"), into = as_out(out, "out")
    call = call_on(input, channel_axis, groups)
    call.convert_activation(negative_slope, clip)
    give_statistics(call, m, low, r)
    call.stats_given = True
    call.parameters(w, b, False)
    return call.forward(into)


def grad_sums(grad_output, input, mean, lo, rstd, weight=None, bias=None, *, channel_axis=1, groups=0,
              negative_slope=None, clip=None):
    """The sums of `apply`'s backward: of each unit, and the gradients of the parameters.

    Parameters
    ----------
    grad_output, input : array_like, shape (N, C, ...)
        The gradient of what `apply` returned, and its input, of one dtype.
    mean, lo, rstd, weight, bias, channel_axis, groups, negative_slope, clip
        Of `apply`. The bias only matters where there is an activation.

    Returns
    -------
    sums : ndarray, float64, shape (C, 2) or (N * G, 2)
        With ``g = weight * grad_output``, behind the activation: the sums of ``g`` and of
        ``g * (input - mean - lo)`` over a unit. The gradient of a unit's mean is ``-rstd * sums[:, 0]``, that of its
        rstd is ``sums[:, 1]``.
    grad_weight, grad_bias, grad_slope : ndarray, float64, shape (C,)
        The gradients per channel; of a single slope, add them up. Without a slope grad_slope is 0.

    Raises
    ------
    ValueError, RuntimeError, TypeError
        As `apply`; a `grad_output` of another shape or dtype than the input.

    Examples
    --------
    >>> import numpy as np
    >>> from cnorm import steps
    >>> x = np.array([[1.0, 10.0], [3.0, 10.0]])
    >>> sums, grad_weight, grad_bias, _ = steps.grad_sums(x, x, [2.0, 10.0], None, [1.0, 5.0])
    >>> sums
    array([[ 4.,  2.],
           [20.,  0.]])
    >>> grad_bias
    array([ 4., 20.])
    """
    cdef ChannelsCall call
    cdef cnp.ndarray dy = as_array(grad_output, "grad_output")
    cdef cnp.ndarray m = as_array(mean, "mean"), low = as_array(lo, "lo"), r = as_array(rstd, "rstd")
    cdef cnp.ndarray w = as_array(weight, "weight"), b = as_array(bias, "bias")
    cdef Py_ssize_t n
    call = call_on(input, channel_axis, groups)
    call.convert_activation(negative_slope, clip)
    dy = as_gradient(dy, call.x)
    n = call.channels
    give_statistics(call, m, low, r)
    call.parameters(w, b, False)
    sums = np.zeros((call.units(), 2))
    call.backward(dy, None, sums, SUMS_ONLY)
    return (sums, float64_array(call.grads, n), float64_array(call.grads + n, n),
            float64_array(call.grads + 2 * n, n))


def grad_apply(grad_output, input, mean, lo, rstd, weight, bias, sums, count, *, channel_axis=1, groups=0,
               out=None, negative_slope=None, clip=None):
    """The gradient of the input of a norm, from the sums.

    ``rstd * (g - sums[:, 0] / count - (input - mean - lo) * rstd**2 * sums[:, 1] / count)``: the gradient where mean
    and rstd are those of the unit's `count` elements, of which the input may be a part. With sums of 0 it is that of
    `apply` alone, ``rstd * g``, for any `count` but 0.

    Parameters
    ----------
    grad_output, input : array_like, shape (N, C, ...)
        As in `grad_sums`.
    mean, lo, rstd, weight, bias, channel_axis, groups, negative_slope, clip
        Of `apply`.
    sums : array_like, shape (units, 2)
        As `grad_sums` returned them, added up over all parts of a unit.
    count : float
        Elements of a whole unit.
    out : ndarray, optional
        For the result; ``out=grad_output`` works in place.

    Returns
    -------
    ndarray
        Of the input's shape and dtype.

    Raises
    ------
    ValueError, RuntimeError, TypeError
        As `grad_sums`; `sums` of another size.

    Examples
    --------
    >>> import numpy as np
    >>> from cnorm import steps
    >>> x = np.array([[1.0], [3.0], [5.0]])
    >>> count, mean, lo, m2 = steps.moments(x)
    >>> forward = x, mean, lo, 1 / np.sqrt(m2 / count), None, None
    >>> dy = np.array([[1.0], [0.0], [0.0]])
    >>> sums = steps.grad_sums(dy, *forward)[0]
    >>> steps.grad_apply(dy, *forward, sums, count).round(3)
    array([[ 0.102],
           [-0.204],
           [ 0.102]])
    """
    cdef ChannelsCall call
    cdef cnp.ndarray dy = as_array(grad_output, "grad_output"), of_units = as_array(sums, "sums")
    cdef cnp.ndarray m = as_array(mean, "mean"), low = as_array(lo, "lo"), r = as_array(rstd, "rstd")
    cdef cnp.ndarray w = as_array(weight, "weight"), b = as_array(bias, "bias"), into = as_out(out, "out")
    cdef double elements = as_float(count, "count")
    call = call_on(input, channel_axis, groups)
    call.convert_activation(negative_slope, clip)
    dy = as_gradient(dy, call.x)
    of_units = np.array(of_units, np.float64, order="C")
    if cnp.PyArray_SIZE(of_units) != checked_product(call.units(), 2, "the sums"):
        raise ValueError(f"sums must have shape {(call.units(), 2)}, but got {shape_of(of_units)}")
    give_statistics(call, m, low, r)
    call.parameters(w, b, False)
    return call.backward(dy, into, of_units, SUMS_GIVEN, elements)


def grad_moments(grad_input, input, mean, lo, grad_mean, grad_m2, *, channel_axis=1, groups=0, out=None):
    """The backward of `moments`, added to the gradient of the input so far.

    ``grad_input + grad_mean / count + 2 * grad_m2 * (input - mean - lo)``, with the `count` elements of a unit. For
    norms whose factor is another function of the moments than ``1 / sqrt(m2 / count + eps)``.

    Parameters
    ----------
    grad_input, input : array_like, shape (N, C, ...)
        The gradient of the input so far, such as ``rstd * g`` from `grad_apply`, and the input, of one dtype.
    mean, lo : array_like or None
        As `moments` returned them. None for both: `grad_m2` is then the gradient of the sum of squares about 0,
        ``m2 + count * (mean + lo)**2``.
    grad_mean, grad_m2 : array_like
        The gradient of the mean and of m2 of each unit, in any shape of as many elements; zeros for one that has none.
    channel_axis, groups : int
        Of `moments`.
    out : ndarray, optional
        For the result; ``out=grad_input`` works in place.

    Returns
    -------
    ndarray
        Of the input's shape and dtype.

    Raises
    ------
    ValueError, TypeError
        As `grad_apply`; gradients that are not one per unit.

    Examples
    --------
    >>> import numpy as np
    >>> from cnorm import steps
    >>> x = np.array([[1.0], [3.0], [5.0]])
    >>> count, mean, lo, m2 = steps.moments(x)
    >>> steps.grad_moments(np.zeros_like(x), x, mean, lo, [0.0], [1.0])
    array([[-4.],
           [ 0.],
           [ 4.]])
    """
    cdef ChannelsCall call
    cdef cnp.ndarray so_far = as_array(grad_input, "grad_input"), into = as_out(out, "out")
    cdef cnp.ndarray m = as_array(mean, "mean"), low = as_array(lo, "lo")
    cdef cnp.ndarray to_mean = as_array(grad_mean, "grad_mean"), to_m2 = as_array(grad_m2, "grad_m2")
    cdef cnp.ndarray sums
    cdef Py_ssize_t n
    call = call_on(input, channel_axis, groups)
    so_far = as_gradient(so_far, call.x, "grad_input")
    n = call.units()
    to_mean = as_statistic(to_mean, "grad_mean", n, "of a value per unit")
    to_m2 = as_statistic(to_m2, "grad_m2", n, "of a value per unit")
    give_statistics(call, m, low, np.ones(n))
    # `grad_apply` with a factor of 1
    sums = np.stack([to_mean.reshape(-1) / -max(call.unit_size(), 1), -2 * to_m2.reshape(-1)], -1)
    return call.backward(so_far, into, sums, SUMS_GIVEN, 1)
