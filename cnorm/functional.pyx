"""The functions. Signatures and errors are torch's, arrays are NumPy's.

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
clip
    Fused activation: ``(low, high)`` bounds the result, with None for an open side. Applied before the result is
    rounded to its dtype; NaN stays NaN. The gradient is 0 where the value was at a bound or beyond. A call has a
    `negative_slope` or a `clip`, not both.
where
    Which elements count: a bool array that broadcasts to the input. Where it is False, forward leaves `out` as it is,
    or without `out` returns 0; the gradient of the input is 0 there. Nothing that is left out reaches anything else,
    NaN and infinity included. A unit of which no element counts has a result of 0, and statistics of 0. A
    ``numpy.ma`` input brings its mask along, and the result is masked as it is. docs/masks.md has more.

Inputs are float32, float64, float16 or ``ml_dtypes.bfloat16``; anything ``np.asarray`` or
``np.from_dlpack`` takes. The result is a NumPy array of the input's dtype and, where the input is
dense, of its memory order.
"""

from cnorm._call.channel_norms cimport (
    BATCH_NORM, GROUP_NORM, INSTANCE_NORM, channel_norm_backward, group_norm_forward, running_norm_forward)
from cnorm._call.image cimport image_normalized
from cnorm._call.normalize cimport normalize_backward_of, normalize_forward
from cnorm._call.row_norms cimport STATS_ARRAYS, STATS_NONE, add_norm_forward, rows_norm_backward, rows_norm_forward
from cnorm._call.switch cimport switch_norm_forward, switch_norm_gradients
from cnorm._call.window cimport response_norm_backward, response_norm_forward

from ._call.standardize import standardize as _standardize
from ._moments import moments as _moments

cdef extern from *:
    """
    #define CNORM_MODULE "cnorm.functional"
    #include "_hints.h"
    """

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
    "normalize",
    "normalize_backward",
    "rms_norm",
    "rms_norm_backward",
    "switch_norm",
    "switch_norm_backward",
    "moments",
    "standardize",
    "normalize_image",
]


# No __getattr__ that knows what was meant: a module that has one is looked into anew at each call, which costs 40 ns.
# Python itself ends the traceback of `F.layernorm` with "Did you mean: 'layer_norm'?", from what is listed here.
def __dir__():
    """What completion offers: the functions."""
    return list(__all__)


def batch_norm(input, running_mean=None, running_var=None, weight=None, bias=None, training=False,
               momentum=0.1, eps=1e-5, *, out=None, channel_axis=1, return_stats=False,
               negative_slope=None, clip=None, where=None):
    """Normalize each channel over the batch and all spatial positions.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias`` with the mean and the biased variance of each
    channel (training), or the running ones (evaluation).

    Parameters
    ----------
    input : array_like, shape (N, C, ...)
        float32, float64, float16 or bfloat16.
    running_mean, running_var : ndarray, shape (C,), optional
        Updated in place in training, with the unbiased variance:
        ``running = (1 - momentum) * running + momentum * batch``. Needed in evaluation.
    weight, bias : array_like, shape (C,), (1, C) or (N, C), optional
        Any float dtype; (N, C) differ from sample to sample.
    training : bool
        Use the statistics of this batch.
    momentum : float
        Share of this batch in the running statistics.
    eps : float
        Added to the variance.
    out : ndarray, optional
        For the result; ``out=input`` works in place.
    channel_axis : int
        Which axis holds the channels; -1 takes ``(N, H, W, C)`` arrays as they are.
    return_stats : bool
        Also return the statistics that were used: ``mean`` and ``rstd``, which is ``1 / sqrt(var + eps)``, shape (C,),
        float64.
    negative_slope : float or ndarray, optional
        An activation in the same pass: ``0.0`` is ReLU, another float LeakyReLU, an array PReLU.
    clip : (low, high), optional
        An activation in the same pass: bounds of the result, None for an open side.
    where : array of bool, optional
        Which elements count; it broadcasts to `input`. Elsewhere `out` keeps its value, and is 0 without `out`.

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
    Ioffe and Szegedy, "Batch Normalization", ICML 2015, https://arxiv.org/abs/1502.03167.

    Examples
    --------
    >>> import numpy as np, cnorm.functional as F
    >>> x = np.array([[1.0, 10.0], [3.0, 30.0]], np.float32)
    >>> F.batch_norm(x, training=True, eps=1e-12)
    array([[-1., -1.],
           [ 1.,  1.]], dtype=float32)

    The last sample is padding:

    >>> padded = np.concatenate([x, np.full((1, 2), np.nan, np.float32)])
    >>> F.batch_norm(padded, training=True, eps=1e-12, where=np.array([[True], [True], [False]]))
    array([[-1., -1.],
           [ 1.,  1.],
           [ 0.,  0.]], dtype=float32)
    """
    return running_norm_forward(BATCH_NORM, input, running_mean, running_var, None, weight, bias, training, momentum,
                                eps, out, channel_axis, return_stats, negative_slope, clip, where)


def batch_norm_backward(grad_output, input, mean, rstd, weight=None, *, training=True, out=None,
                        channel_axis=1, negative_slope=None, clip=None, bias=None, where=None):
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
    weight : array_like, shape (C,), (1, C) or (N, C), optional
    training : bool
        Whether the statistics came from the input.
    out : ndarray, optional
        For grad_input; ``out=grad_output`` works in place.
    bias, negative_slope, clip
        Of the forward pass, where an activation was fused, or where bias has another shape than weight.
    where : array_like of bool, optional
        That of the forward pass. grad_input is 0 where it is False, in `out` too.

    Returns
    -------
    grad_input, grad_weight, grad_bias : ndarray
        Parameter gradients have the parameters' shapes and dtype, grad_bias those of bias, if given, else
        of weight; without a weight, (C,) of the accumulation type. With an array for `negative_slope` its
        gradient follows.

    Examples
    --------
    >>> import numpy as np, cnorm.functional as F
    >>> x = np.arange(6.0).reshape(3, 2)
    >>> y, mean, rstd = F.batch_norm(x, training=True, return_stats=True)
    >>> dx, dw, db = F.batch_norm_backward(np.ones_like(x), x, mean, rstd)
    >>> db
    array([3., 3.])
    """
    return channel_norm_backward(grad_output, input, None, mean, rstd, weight, bias, training, BATCH_NORM, out,
                                 channel_axis, negative_slope, clip, where)


def instance_norm(input, running_mean=None, running_var=None, weight=None, bias=None,
                  use_input_stats=True, momentum=0.1, eps=1e-5, *, out=None, channel_axis=1,
                  return_stats=False, negative_slope=None, clip=None, where=None):
    """Normalize each channel of each sample over its spatial positions.

    This is `group_norm` with one group per channel.

    Parameters
    ----------
    input : array_like, shape (N, C, ...)
    running_mean, running_var : ndarray, shape (C,), optional
        Updated in place with the mean over N of the samples' statistics (unbiased variance) where
        `use_input_stats`; used instead of the input's where not.
    weight, bias : array_like, shape (C,), (1, C) or (N, C), optional
    use_input_stats : bool
        Use the statistics of each sample, not the running ones.
    momentum : float
        Share of this batch in the running statistics.
    eps : float
        Added to the variance. Not checked, as in torch: one below minus the variance gives NaN.
    out : ndarray, optional
        For the result; ``out=input`` works in place.
    channel_axis : int
        Which axis holds the channels; -1: the last; 0: the input is one sample, (C, ...).
    return_stats : bool
        Also return ``mean`` and ``rstd = 1 / sqrt(var + eps)``, shape (N, C), float64.
    negative_slope, clip : optional
        An activation in the same pass: ``negative_slope=0.0`` is ReLU, another float LeakyReLU, an array PReLU;
        ``clip=(low, high)`` bounds the result, None for an open side.
    where : array of bool, optional
        Which elements count; it broadcasts to `input`. Elsewhere `out` keeps its value, and is 0 without `out`.

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
    Ulyanov, Vedaldi and Lempitsky, "Instance Normalization", https://arxiv.org/abs/1607.08022.

    Examples
    --------
    >>> import numpy as np, cnorm.functional as F
    >>> x = np.array([[[1.0, 3.0], [10.0, 30.0]]], np.float32)
    >>> F.instance_norm(x, eps=1e-12)
    array([[[-1.,  1.],
            [-1.,  1.]]], dtype=float32)
    """
    return running_norm_forward(INSTANCE_NORM, input, running_mean, running_var, None, weight, bias, use_input_stats,
                                momentum, eps, out, channel_axis, return_stats, negative_slope, clip, where)


def instance_norm_backward(grad_output, input, mean, rstd, weight=None, *, use_input_stats=True,
                           out=None, channel_axis=1, negative_slope=None, clip=None, bias=None, where=None):
    """Gradients of `instance_norm`, by the formula in `batch_norm_backward`.

    Parameters
    ----------
    grad_output, input : array_like, shape (N, C, ...)
    mean, rstd : array_like, shape (N, C)
        As forward returned them.
    weight : array_like, shape (C,), (1, C) or (N, C), optional
    use_input_stats : bool
        Whether the statistics came from the input.
    out : ndarray, optional
        For grad_input; ``out=grad_output`` works in place.
    channel_axis, negative_slope, clip, bias
        Of the forward pass; bias matters where an activation was
        fused, or where its shape is not the weight's.
    where : array_like of bool, optional
        That of the forward pass. grad_input is 0 where it is False, in `out` too.

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
    return channel_norm_backward(grad_output, input, None, mean, rstd, weight, bias, use_input_stats,
                                 INSTANCE_NORM, out, channel_axis, negative_slope, clip, where)


def group_norm(input, num_groups, weight=None, bias=None, eps=1e-5, *, out=None, channel_axis=1,
               return_stats=False, negative_slope=None, clip=None, where=None):
    """Normalize each group of channels of each sample.

    ``num_groups=C`` is `instance_norm`, ``num_groups=1`` is `layer_norm` over (C, ...) with a weight
    per channel.

    Parameters
    ----------
    input : array_like, shape (N, C, ...)
    num_groups : int
        Divides C.
    weight, bias : array_like, shape (C,), (1, C) or (N, C), optional
    eps : float
        Added to the variance. Not checked, as in torch: one below minus the variance gives NaN.
    out : ndarray, optional
        For the result; ``out=input`` works in place.
    channel_axis : int
        Which axis holds the channels; -1: the last.
    return_stats : bool
        Also return ``mean`` and ``rstd = 1 / sqrt(var + eps)``, shape (N, G), float64.
    negative_slope, clip : optional
        An activation in the same pass: ``negative_slope=0.0`` is ReLU, another float LeakyReLU, an array PReLU;
        ``clip=(low, high)`` bounds the result, None for an open side.
    where : array of bool, optional
        Which elements count; it broadcasts to `input`. Elsewhere `out` keeps its value, and is 0 without `out`.

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
    Wu and He, "Group Normalization", ECCV 2018, https://arxiv.org/abs/1803.08494.

    Examples
    --------
    >>> import numpy as np, cnorm.functional as F
    >>> x = np.array([[1.0, 3.0, 10.0, 30.0]], np.float32)
    >>> F.group_norm(x, 2, eps=1e-12)
    array([[-1.,  1., -1.,  1.]], dtype=float32)
    """
    return group_norm_forward(input, num_groups, weight, bias, eps, out, channel_axis, return_stats,
                              negative_slope, clip, where)


def group_norm_backward(grad_output, input, num_groups, mean, rstd, weight=None, *, out=None,
                        channel_axis=1, negative_slope=None, clip=None, bias=None, where=None):
    """Gradients of `group_norm`, by the formula in `batch_norm_backward`.

    Parameters
    ----------
    grad_output, input : array_like, shape (N, C, ...)
    num_groups : int
    mean, rstd : array_like, shape (N, G)
        As forward returned them.
    weight : array_like, shape (C,), (1, C) or (N, C), optional
    out : ndarray, optional
        For grad_input; ``out=grad_output`` works in place.
    channel_axis, negative_slope, clip, bias
        Of the forward pass; bias matters where an activation was
        fused, or where its shape is not the weight's.
    where : array_like of bool, optional
        That of the forward pass. grad_input is 0 where it is False, in `out` too.

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
    return channel_norm_backward(grad_output, input, num_groups, mean, rstd, weight, bias, True, GROUP_NORM,
                                 out, channel_axis, negative_slope, clip, where)


def layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5, *, out=None, channel_axis=1,
               return_stats=False, negative_slope=None, clip=None, axis=None, where=None):
    """Normalize over the last axes, or over any others.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias`` with the mean and the biased variance over the
    last axes, whose sizes are `normalized_shape`, or those at `axis`; weight and bias element by element.

    Parameters
    ----------
    input : array_like, shape (..., *normalized_shape)
        float32, float64, float16 or bfloat16.
    normalized_shape : int or sequence of int
        The sizes of the last axes, or of those that `axis` names.
    weight, bias : array_like, optional
        Any float dtype. Of shape normalized_shape; or, to differ from sample to sample, of the input's
        number of dimensions, with the input's sizes at the normalized axes and these or 1 at the others,
        such as (N, 1, D).
    eps : float
        Added to the variance. Not checked, as in torch: one below minus the variance gives NaN.
    out : ndarray, optional
        For the result, of the input's shape and dtype; ``out=input`` works in place.
    channel_axis : int
        Only says along which axis the slopes of a PReLU run: `axis` says what is normalized.
    return_stats : bool
        Also return ``mean`` and ``rstd = 1 / sqrt(var + eps)``, float64, of the input's shape with ones for the
        normalized axes.
    negative_slope : float or ndarray, optional
        An activation in the same pass: ``0.0`` is ReLU, another float LeakyReLU, an array PReLU.
    clip : (low, high), optional
        An activation in the same pass: bounds of the result, None for an open side.
    where : array of bool, optional
        Which elements count; it broadcasts to `input`. Elsewhere `out` keeps its value, and is 0 without `out`.
    axis : int or sequence of int, optional
        Where the dimensions of `normalized_shape` are in the input; None: at its end. ``axis=1`` takes
        (N, C, H, W) images over their channels as they are, channels first or last in memory.

    Returns
    -------
    ndarray or tuple
        The result, or ``(y, mean, rstd)``.

    Raises
    ------
    RuntimeError
        A shape or parameter that does not fit `normalized_shape`.
    ValueError, TypeError
        An `out` of the wrong shape or dtype, an `axis` that is out of bounds, named twice or not one for
        each dimension of `normalized_shape`, an array that is not of a float dtype.

    References
    ----------
    Ba, Kiros and Hinton, "Layer Normalization", https://arxiv.org/abs/1607.06450.

    Examples
    --------
    >>> import numpy as np, cnorm.functional as F
    >>> F.layer_norm(np.array([[1.0, 3.0], [10.0, 30.0]], np.float32), 2, eps=1e-12)
    array([[-1.,  1.],
           [-1.,  1.]], dtype=float32)
    >>> F.layer_norm(np.array([[1.0, 3.0], [10.0, 30.0]], np.float32), 2, eps=1e-12, axis=0)
    array([[-1., -1.],
           [ 1.,  1.]], dtype=float32)
    """
    return rows_norm_forward(input, normalized_shape, weight, bias, True, eps, out, channel_axis,
                             STATS_ARRAYS if return_stats else STATS_NONE, None, negative_slope, clip, axis, False,
                             where)


def layer_norm_backward(grad_output, input, normalized_shape, mean, rstd, weight=None, *, out=None,
                        channel_axis=1, negative_slope=None, clip=None, bias=None, axis=None, where=None):
    """Gradients of `layer_norm`, by the formula in `batch_norm_backward`.

    Parameters
    ----------
    grad_output, input : array_like, shape (..., *normalized_shape)
    normalized_shape : int or sequence of int
    mean, rstd : array_like
        As forward returned them.
    weight : array_like, optional
    out : ndarray, optional
        For grad_input; ``out=grad_output`` works in place.
    channel_axis, negative_slope, clip, bias, axis
        Of the forward pass; bias matters where an activation was
        fused, or where its shape is not the weight's.
    where : array_like of bool, optional
        That of the forward pass. grad_input is 0 where it is False, in `out` too.

    Returns
    -------
    grad_input, grad_weight, grad_bias : ndarray
        Parameter gradients have the shapes of the parameters; grad_bias that of bias, if given, else of
        weight.

    Examples
    --------
    >>> import numpy as np, cnorm.functional as F
    >>> x = np.arange(6.0).reshape(2, 3)
    >>> y, mean, rstd = F.layer_norm(x, 3, return_stats=True)
    >>> dx, dw, db = F.layer_norm_backward(np.ones_like(x), x, 3, mean, rstd)
    >>> db
    array([2., 2., 2.])
    """
    return rows_norm_backward(grad_output, input, normalized_shape, mean, rstd, weight, bias, True, out,
                              channel_axis, negative_slope, clip, axis, False, None, where)


def rms_norm(input, normalized_shape, weight=None, eps=None, *, out=None, channel_axis=1,
             return_stats=False, negative_slope=None, clip=None, axis=None, zero_centered_gamma=False, where=None):
    """Divide by the root of the mean square over the last axes, or over any others.

    ``y = x / sqrt(mean(x**2) + eps) * weight``.

    Parameters
    ----------
    input : array_like, shape (..., *normalized_shape)
    normalized_shape : int or sequence of int
        The sizes of the last axes, or of those that `axis` names.
    weight : array_like, optional
        Of shape normalized_shape; or, to differ from sample to sample, of the input's number of dimensions,
        with the input's sizes at the normalized axes and these or 1 at the others.
    eps : float, optional
        Added to the mean square; None is the machine epsilon of the accumulation type: 1.19e-7, float64: 2.2e-16.
        Not checked, as in torch: one below minus the mean square gives NaN.
    out : ndarray, optional
        For the result; ``out=input`` works in place.
    channel_axis : int
        Only says along which axis the slopes of a PReLU run.
    return_stats : bool
        Also return ``rstd``, float64, of the input's shape with ones for the normalized axes.
    negative_slope, clip : optional
        An activation in the same pass: ``negative_slope=0.0`` is ReLU, another float LeakyReLU, an array PReLU;
        ``clip=(low, high)`` bounds the result, None for an open side.
    axis : int or sequence of int, optional
        Where the dimensions of `normalized_shape` are in the input; None: at its end.
    zero_centered_gamma : bool
        Multiply by ``1 + weight``, as Gemma and others store it. No effect without a weight.
    where : array of bool, optional
        Which elements count; it broadcasts to `input`. Elsewhere `out` keeps its value, and is 0 without `out`.

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
    Zhang and Sennrich, "Root Mean Square Layer Normalization", NeurIPS 2019, https://arxiv.org/abs/1910.07467.

    Examples
    --------
    >>> import numpy as np, cnorm.functional as F
    >>> F.rms_norm(np.array([1.0, 1.0, 1.0, 1.0]), 4, eps=0)
    array([1., 1., 1., 1.])
    """
    return rows_norm_forward(input, normalized_shape, weight, None, False, eps, out, channel_axis,
                             STATS_ARRAYS if return_stats else STATS_NONE, None, negative_slope, clip,
                             axis, zero_centered_gamma, where)


def rms_norm_backward(grad_output, input, normalized_shape, rstd, weight=None, *, out=None,
                      channel_axis=1, negative_slope=None, clip=None, axis=None, zero_centered_gamma=False,
                      where=None):
    """Gradients of `rms_norm`.

    Parameters
    ----------
    grad_output, input : array_like, shape (..., *normalized_shape)
    normalized_shape : int or sequence of int
    rstd : array_like
        As forward returned it.
    weight : array_like, optional
    out : ndarray, optional
        For grad_input; ``out=grad_output`` works in place.
    channel_axis, negative_slope, clip, axis, zero_centered_gamma
        Of the forward pass.
    where : array_like of bool, optional
        That of the forward pass. grad_input is 0 where it is False, in `out` too.

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
    return rows_norm_backward(grad_output, input, normalized_shape, None, rstd, weight, None, False, out,
                              channel_axis, negative_slope, clip, axis, zero_centered_gamma, None, where)


def add_layer_norm(input, residual, normalized_shape, weight=None, bias=None, eps=1e-5, *, out=None,
                   residual_out=None, channel_axis=1, return_stats=False, negative_slope=None, clip=None, axis=None,
                   where=None):
    """Add a residual and normalize the sum, in one visit to memory.

    ``s = input + residual`` (rounded to the input's dtype), ``y = layer_norm(s, ...)``: what a
    transformer block does between two layers.

    Parameters
    ----------
    input, residual : array_like, shape (..., *normalized_shape)
        Of one dtype.
    normalized_shape : int or sequence of int
        The sizes of the last axes, or of those that `axis` names.
    weight, bias : array_like, optional
        Of shape normalized_shape, or of those that `layer_norm` takes for each sample.
    eps : float
        Added to the variance. Not checked, as in torch: one below minus the variance gives NaN.
    out : ndarray, optional
        For the result; ``out=input`` works in place.
    channel_axis : int
        Only says along which axis the slopes of a PReLU run.
    return_stats : bool
        Also return ``mean`` and ``rstd = 1 / sqrt(var + eps)``, float64, of the input's shape with ones for the
        normalized axes.
    negative_slope, clip : optional
        An activation in the same pass: ``negative_slope=0.0`` is ReLU, another float LeakyReLU, an array PReLU;
        ``clip=(low, high)`` bounds the result, None for an open side.
    axis : int or sequence of int, optional
        Where the dimensions of `normalized_shape` are in the input; None: at its end.
    residual_out : ndarray, optional
        Where the sum goes; ``residual_out=residual`` adds in place.
    where : array of bool, optional
        Which elements count; it broadcasts to `input`. Elsewhere `out` and `residual_out` keep their values, and are
        0 where they are not given.

    Returns
    -------
    tuple
        ``(y, s)``, or ``(y, s, mean, rstd)``.

    Raises
    ------
    ValueError, TypeError
        A residual of another shape or dtype, or an `out` that overlaps `residual_out`.
    RuntimeError
        A shape or parameter that does not fit `normalized_shape`.

    Examples
    --------
    >>> import numpy as np, cnorm.functional as F
    >>> y, s = F.add_layer_norm(np.array([[1.0, 2.0]]), np.array([[0.0, 1.0]]), 2, eps=1e-12)
    >>> s
    array([[1., 3.]])
    >>> y
    array([[-1.,  1.]])
    """
    return add_norm_forward(input, residual, normalized_shape, weight, bias, True, eps, out, residual_out,
                            channel_axis, return_stats, negative_slope, clip, axis, False, where)


def add_rms_norm(input, residual, normalized_shape, weight=None, eps=None, *, out=None, residual_out=None,
                 channel_axis=1, return_stats=False, negative_slope=None, clip=None,
                 axis=None, zero_centered_gamma=False, where=None):
    """Add a residual and divide the sum by its root mean square: `add_layer_norm` with `rms_norm`.

    Parameters
    ----------
    input, residual : array_like, shape (..., *normalized_shape)
        Of one dtype.
    normalized_shape : int or sequence of int
        The sizes of the last axes, or of those that `axis` names.
    weight : array_like, optional
        Of shape normalized_shape, or of those that `rms_norm` takes for each sample.
    eps : float, optional
        Added to the mean square; None is the machine epsilon of the accumulation type: 1.19e-7, float64: 2.2e-16.
        Not checked, as in torch: one below minus the mean square gives NaN.
    out : ndarray, optional
        For the result; ``out=input`` works in place.
    channel_axis : int
        Only says along which axis the slopes of a PReLU run.
    return_stats : bool
        Also return ``rstd``, float64, of the input's shape with ones for the normalized axes.
    negative_slope, clip : optional
        An activation in the same pass: ``negative_slope=0.0`` is ReLU, another float LeakyReLU, an array PReLU;
        ``clip=(low, high)`` bounds the result, None for an open side.
    axis : int or sequence of int, optional
        Where the dimensions of `normalized_shape` are in the input; None: at its end.
    zero_centered_gamma : bool
        Multiply by ``1 + weight``. No effect without a weight.
    residual_out : ndarray, optional
        Where the sum goes; ``residual_out=residual`` adds in place.
    where : array of bool, optional
        Which elements count; it broadcasts to `input`. Elsewhere `out` and `residual_out` keep their values, and are
        0 where they are not given.

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
    return add_norm_forward(input, residual, normalized_shape, weight, None, False, eps, out, residual_out,
                            channel_axis, return_stats, negative_slope, clip, axis, zero_centered_gamma, where)


def add_layer_norm_backward(grad_output, grad_sum, sum, normalized_shape, mean, rstd, weight=None, *,
                            out=None, channel_axis=1, negative_slope=None, clip=None, bias=None, axis=None,
                            where=None):
    """Gradients of `add_layer_norm`.

    Parameters
    ----------
    grad_output : array_like
        Of ``y``.
    grad_sum : array_like or None
        Of ``s``, where it was used elsewhere too.
    sum : array_like
        ``s``, as forward returned it.
    normalized_shape : int or sequence of int
    mean, rstd : array_like
        As forward returned them.
    weight : array_like, optional
    out : ndarray, optional
        For grad_input; ``out=grad_output`` works in place.
    channel_axis, negative_slope, clip, bias, axis
        Of the forward pass; bias matters where an activation was
        fused, or where its shape is not the weight's.
    where : array_like of bool, optional
        That of the forward pass. grad_input is 0 where it is False, in `out` too.

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
    return rows_norm_backward(grad_output, sum, normalized_shape, mean, rstd, weight, bias, True, out,
                              channel_axis, negative_slope, clip, axis, False, grad_sum, where)


def add_rms_norm_backward(grad_output, grad_sum, sum, normalized_shape, rstd, weight=None, *, out=None,
                          channel_axis=1, negative_slope=None, clip=None, axis=None, zero_centered_gamma=False,
                          where=None):
    """Gradients of `add_rms_norm`.

    Parameters
    ----------
    grad_output : array_like
        Of ``y``.
    grad_sum : array_like or None
        Of ``s``, where it was used elsewhere too.
    sum : array_like
        ``s``, as forward returned it.
    normalized_shape : int or sequence of int
    rstd : array_like
        As forward returned it.
    weight : array_like, optional
    out : ndarray, optional
        For grad_input; ``out=grad_output`` works in place.
    channel_axis, negative_slope, clip, axis, zero_centered_gamma
        Of the forward pass.
    where : array_like of bool, optional
        That of the forward pass. grad_input is 0 where it is False, in `out` too.

    Returns
    -------
    grad_input, grad_weight : ndarray
        grad_input is the gradient of both the input and the residual.

    Examples
    --------
    >>> import numpy as np, cnorm.functional as F
    >>> x = np.array([[3.0, 4.0]])
    >>> y, s, rstd = F.add_rms_norm(x, x, 2, return_stats=True)
    >>> dx, dw = F.add_rms_norm_backward(np.zeros_like(y), np.ones_like(s), s, 2, rstd)
    >>> dx
    array([[1., 1.]])
    """
    return rows_norm_backward(grad_output, sum, normalized_shape, None, rstd, weight, None, False, out,
                              channel_axis, negative_slope, clip, axis, zero_centered_gamma, grad_sum, where)


def local_response_norm(input, size, alpha=1e-4, beta=0.75, k=1.0, *, out=None, channel_axis=1,
                        negative_slope=None, clip=None):
    """Divide each element by a power of the sum of squares over neighbouring channels.

    ``y[c] = x[c] / (k + alpha / size * sum(x[j]**2))**beta``, j from ``c - size // 2`` to
    ``c + (size - 1) // 2`` within the channels.

    Parameters
    ----------
    input : array_like, shape (N, C, ...), at least 3 dimensions
    size : int
        Channels in a window, even ones too.
    alpha, beta, k : float
        As in the formula.
    out : ndarray, optional
        For the result; ``out=input`` works in place.
    channel_axis : int
        Which axis holds the channels; -1: the last.
    negative_slope, clip : optional
        An activation in the same pass: ``negative_slope=0.0`` is ReLU, another float LeakyReLU, an array PReLU;
        ``clip=(low, high)`` bounds the result, None for an open side.

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
    Krizhevsky, Sutskever and Hinton, "ImageNet Classification with Deep Convolutional
    Neural Networks", NeurIPS 2012, section 3.3.

    Examples
    --------
    >>> import numpy as np, cnorm.functional as F
    >>> F.local_response_norm(np.ones((1, 3, 1)), 3, alpha=3.0, beta=1.0).ravel().round(4)
    array([0.3333, 0.25  , 0.3333])
    """
    return response_norm_forward(input, size, alpha, beta, k, False, out, channel_axis, negative_slope, clip)


def local_response_norm_backward(grad_output, input, size, alpha=1e-4, beta=0.75, k=1.0, *, out=None,
                                 channel_axis=1, negative_slope=None, clip=None):
    """Gradient of `local_response_norm`.

    Parameters
    ----------
    grad_output, input : array_like, shape (N, C, ...)
    out : ndarray, optional
        For grad_input; ``out=grad_output`` works in place.
    size, alpha, beta, k, channel_axis, negative_slope, clip
        Of the forward pass.

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
    return response_norm_backward(grad_output, input, size, alpha, beta, k, False, out, channel_axis,
                                  negative_slope, clip)


def cross_map_lrn(input, size, alpha=1e-4, beta=0.75, k=1.0, *, out=None, channel_axis=1,
                  negative_slope=None, clip=None):
    """Torch's legacy response norm over maps.

    As `local_response_norm` with a window of ``(size - 1) // 2`` channels on both sides, except that
    channel 0 is in every window: the legacy layer never subtracts it from its running sum.

    Parameters
    ----------
    input : array_like, shape (N, C, ...)
    size : int
        Channels in a window.
    alpha, beta, k : float
        As in the formula of `local_response_norm`.
    out : ndarray, optional
        For the result; ``out=input`` works in place.
    channel_axis : int
        Which axis holds the channels; -1: the last.
    negative_slope, clip : optional
        An activation in the same pass: ``negative_slope=0.0`` is ReLU, another float LeakyReLU, an array PReLU;
        ``clip=(low, high)`` bounds the result, None for an open side.

    Returns
    -------
    ndarray

    Examples
    --------
    >>> import numpy as np, cnorm.functional as F
    >>> F.cross_map_lrn(np.ones((1, 3, 1, 1)), 1, alpha=1.0, beta=1.0).ravel().round(4)
    array([0.5   , 0.3333, 0.3333])
    """
    return response_norm_forward(input, size, alpha, beta, k, True, out, channel_axis, negative_slope, clip)


def cross_map_lrn_backward(grad_output, input, size, alpha=1e-4, beta=0.75, k=1.0, *, out=None,
                           channel_axis=1, negative_slope=None, clip=None):
    """Gradient of `cross_map_lrn`.

    Parameters
    ----------
    grad_output, input : array_like, shape (N, C, ...)
    out : ndarray, optional
        For grad_input; ``out=grad_output`` works in place.
    size, alpha, beta, k, channel_axis, negative_slope, clip
        Of the forward pass.

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
    return response_norm_backward(grad_output, input, size, alpha, beta, k, True, out, channel_axis,
                                  negative_slope, clip)


def normalize(input, p=2.0, dim=1, eps=1e-12, out=None, *, return_stats=False):
    """Divide by the norm over any axes.

    ``y = x / max(norm, eps)``, with the norm of what lies along `dim`: the root of the sum of its squares
    (``p=2``), the sum of its magnitudes (``p=1``), or the largest of them (``p=inf``).

    Parameters
    ----------
    input : array_like
        float32, float64, float16 or bfloat16.
    p : float
        1, 2 or infinity.
    dim : int or tuple of int
        The axes that share a norm.
    eps : float
        The least number that is divided by, so that a vector of zeros stays one.
    out : ndarray, optional
        For the result; ``out=input`` works in place.
    return_stats : bool
        Also return the norms: float64, before the maximum with `eps`, of the input's shape with ones for the
        axes of `dim`.

    Returns
    -------
    ndarray or tuple
        The result, or ``(y, norm)``.

    Raises
    ------
    ValueError
        Another `p`, a `dim` that the input does not have or that names an axis twice, a negative `eps`, or an
        `out` of another shape.
    TypeError
        An array that is not of a float dtype.

    Notes
    -----
    Norms are taken in the accumulation type, so float16 does not overflow, and again in double where squares of
    float32 overflow or underflow. torch's function of this name computes float16 in float16.

    References
    ----------
    PyTorch, `torch.nn.functional.normalize`.

    Examples
    --------
    >>> import numpy as np, cnorm.functional as F
    >>> F.normalize(np.array([[3.0, 4.0], [0.0, 0.0]]))
    array([[0.6, 0.8],
           [0. , 0. ]])
    >>> y, norm = F.normalize(np.array([[3.0, 4.0], [6.0, 8.0]]), dim=(0, 1), p=1, return_stats=True)
    >>> norm
    array([[21.]])
    """
    return normalize_forward(input, p, dim, eps, out, return_stats)


def normalize_backward(grad_output, input, norm, p=2.0, dim=1, eps=1e-12, *, out=None):
    """Gradient of `normalize`.

    With ``s = sum(grad_output * x)`` over `dim`, ``grad_input = (grad_output - grad_norm * s / norm) / norm``, where
    ``grad_norm`` is the gradient of the norm: ``x / norm`` (``p=2``), ``sign(x)`` (``p=1``), or ``sign(x)`` at the
    largest magnitudes, which share it, and 0 elsewhere (``p=inf``). Where the norm is below `eps`, ``grad_input`` is
    ``grad_output / eps``.

    Parameters
    ----------
    grad_output, input : array_like
        Of one shape and dtype.
    norm : array_like
        As `normalize` returned it.
    p, dim, eps
        Of the forward pass.
    out : ndarray, optional
        For the result; ``out=grad_output`` works in place.

    Returns
    -------
    ndarray

    Raises
    ------
    ValueError, TypeError
        What `normalize` raises; a `norm` of another shape, or a `grad_output` of another shape or dtype than the input.

    Examples
    --------
    >>> import numpy as np, cnorm.functional as F
    >>> x = np.array([[3.0, 4.0]])
    >>> y, norm = F.normalize(x, return_stats=True)
    >>> F.normalize_backward(np.array([[1.0, 0.0]]), x, norm).round(3)
    array([[ 0.128, -0.096]])
    """
    return normalize_backward_of(grad_output, input, norm, p, dim, eps, out)


def switch_norm(input, running_mean, running_var, weight, bias, mean_weight, var_weight, training=False,
                momentum=0.9, eps=1e-5, using_moving_average=True, *, out=None, channel_axis=1,
                return_stats=False, negative_slope=None, clip=None):
    """Normalize with a learned mix of instance, layer and batch statistics.

    ``y = (x - sum(p * mean)) / sqrt(sum(q * var) + eps) * weight + bias``, p and q the softmax of
    `mean_weight` and `var_weight` in the order instance, layer, batch; of 2-D input: layer, batch. The
    variance of an instance (of 2-D input, of a row or column) is the unbiased one.

    Parameters
    ----------
    input : array_like, shape (N, C) or (N, C, ...)
    running_mean, running_var : ndarray of C elements, or None
        The batch's, in evaluation. Updated in place in training:
        ``running = momentum * running + (1 - momentum) * batch``; without `using_moving_average`,
        the sums of mean and of ``mean**2 + var``.
    weight, bias : array_like of C elements, or None
    mean_weight, var_weight : array_like of 3 elements; 2 without the batch's statistics
    training : bool
        Use the statistics of this batch, and update the running ones.
    momentum : float
        The weight of the old running statistics (the reverse of `batch_norm`).
    eps : float
        Added to the variance. Not checked: one below minus the variance gives NaN.
    using_moving_average : bool
        If False, running statistics are sums.
    out : ndarray, optional
        For the result; ``out=input`` works in place.
    channel_axis : int
        Which axis holds the channels; -1: the last.
    negative_slope, clip : optional
        An activation in the same pass: ``negative_slope=0.0`` is ReLU, another float LeakyReLU, an array PReLU;
        ``clip=(low, high)`` bounds the result, None for an open side.
    return_stats : bool
        Also return what `switch_norm_backward` needs.

    Returns
    -------
    ndarray or tuple
        The result, or ``(y, stats)``.

    Raises
    ------
    ValueError
        One spatial element, or (2-D) one value per row or column.
    RuntimeError
        A parameter of the wrong length.
    TypeError
        An array that is not of a float dtype.

    References
    ----------
    Luo, Ren, Peng, Zhang and Li, "Differentiable Learning-to-Normalize via
    Switchable Normalization", ICLR 2019, https://arxiv.org/abs/1806.10779.

    Examples
    --------
    >>> import numpy as np, cnorm.functional as F
    >>> x = np.arange(8.0).reshape(1, 2, 4)
    >>> F.switch_norm(x, None, None, None, None, np.ones(3), np.ones(3), True).shape
    (1, 2, 4)
    """
    return switch_norm_forward(input, running_mean, running_var, weight, bias, mean_weight, var_weight, training,
                               momentum, eps, using_moving_average, out, channel_axis, return_stats,
                               negative_slope, clip)


def switch_norm_backward(grad_output, input, stats, weight, mean_weight, var_weight, bias=None, *, out=None,
                         channel_axis=1, negative_slope=None, clip=None):
    """Gradients of `switch_norm`, the unbiased variances included.

    Parameters
    ----------
    grad_output, input : array_like, shape (N, C) or (N, C, ...)
    stats
        As forward returned it.
    weight, mean_weight, var_weight, bias
        Of the forward pass.
    out : ndarray, optional
        For grad_input; ``out=grad_output`` works in place.
    channel_axis, negative_slope, clip
        Of the forward pass.

    Returns
    -------
    grad_input, grad_weight, grad_bias, grad_mean_weight, grad_var_weight : ndarray
        With an array for `negative_slope` its gradient follows.

    Examples
    --------
    >>> import numpy as np, cnorm.functional as F
    >>> x, one = np.arange(8.0).reshape(1, 2, 4), np.ones(3)
    >>> y, stats = F.switch_norm(x, None, None, None, None, one, one, True, return_stats=True)
    >>> dx, dw, db, dp, dq = F.switch_norm_backward(np.ones_like(x), x, stats, None, one, one)
    >>> db
    array([4., 4.])
    """
    return switch_norm_gradients(grad_output, input, stats, weight, mean_weight, var_weight, bias, out,
                                 channel_axis, negative_slope, clip)


def moments(input, axis=None, *, where=None, nan_policy="propagate"):
    """Count, mean and variance over some axes, in one pass, as `cnorm.Moments`, which merge.

    Parameters
    ----------
    input : array_like
        Of a float dtype, an integer dtype or bool, and of any strides. Sums are taken in double for all of
        them; integers beyond 2**53 are rounded to double.
    axis : int, tuple of int or None
        What is reduced, as in `numpy.var`.
    where : array_like of bool, optional
        Which elements count; broadcasts to the input. The mask of a masked array counts too.
    nan_policy : "propagate", "omit" or "raise"
        What NaN does: makes its unit NaN, does not count, or raises.

    Returns
    -------
    Moments
        With arrays `count`, `mean` and `m2` in the shape of the kept axes, and methods ``var(ddof=0)`` and
        ``std(ddof=0)``. A unit, here and below, is what shares one mean: a column, with ``axis=0``.

    Raises
    ------
    ValueError
        An axis that the input does not have or that is named twice, a mask that does not broadcast, another
        `nan_policy`; with "raise", NaN where the mask is True.
    TypeError
        An input that is complex or of objects; a mask that is not of bools.

    Examples
    --------
    >>> import numpy as np, cnorm.functional as F
    >>> m = F.moments(np.array([[1, 2], [3, 6]], np.uint8), axis=0)
    >>> m.count, m.mean, m.var()
    (array([2., 2.]), array([2., 4.]), array([1., 4.]))
    >>> (m + F.moments([[8, 4]], axis=0)).mean
    array([4., 4.])
    """
    return _moments(input, axis, where=where, nan_policy=nan_policy)


def standardize(input, axis, mean=None, var=None, eps=0.0, *, ddof=0, where=None, nan_policy="propagate",
                clip=None, dtype=None, out=None, return_stats=False):
    """``(input - mean) / sqrt(var + eps)`` over any axes: the z-score.

    Statistics are taken in double, and so is the result, which is rounded once. Where ``var + eps`` is 0 the
    result is ``input - mean``, as scikit-learn has it: 0 for a constant.

    Parameters
    ----------
    input : array_like
        Of a float dtype, an integer dtype or bool, and of any strides.
    axis : int, tuple of int or None
        What shares its statistics, as in `numpy.var`: 0 for each column of a table.
    mean, var : array_like, optional
        Statistics instead of the input's: both or neither. Of the input's number of dimensions, with size 1 at
        the reduced axes; otherwise they broadcast to the shape of the kept axes.
    eps : float
        Added to the variance.
    ddof : float
        The variance of the input is over ``count - ddof``. Where that is not positive the result is NaN.
    where : array_like of bool, optional
        Which elements count, and get a result; broadcasts to the input. Elsewhere `out` keeps its value, and
        without `out` the result is 0.
    nan_policy : "propagate", "omit" or "raise"
        What NaN does: makes its unit NaN, stays NaN and does not count, or raises.
    clip : (low, high), optional
        Bounds of the result; None leaves a side open.
    dtype : dtype, optional
        Of the result, one of the float dtypes: that of `out`, else the input's, of integers float32.
    out : ndarray, optional
        For the result; ``out=input`` works in place.
    return_stats : bool
        Also return the statistics.

    Returns
    -------
    ndarray or tuple
        The result, of the input's shape; or ``(y, mean, rstd)`` with statistics of size 1 at the reduced axes,
        float64, and rstd ``1 / sqrt(var + eps)``, or 1 where that is 0.

    Raises
    ------
    ValueError
        One of mean and var alone, statistics that do not broadcast, a negative variance or eps, bounds of `clip`
        that are NaN or out of order, and what `moments` raises; an `out` of another shape.
    TypeError
        What `moments` raises; a dtype that is not a float dtype.

    Examples
    --------
    >>> import numpy as np, cnorm.functional as F
    >>> F.standardize(np.array([[1, 2], [3, 6]], np.uint8), axis=0)
    array([[-1., -1.],
           [ 1.,  1.]], dtype=float32)
    >>> F.standardize([1.0, 2.0, 9.0], 0, mean=2, var=4, clip=(None, 3))
    array([-0.5,  0. ,  3. ])
    """
    return _standardize(input, axis, mean, var, eps, ddof, where, nan_policy, clip, dtype, out, return_stats)


def normalize_image(input, mean, std, max_value=None, *, channel_axis=-1, out_channel_axis=None, dtype="float32",
                    out=None):
    """``(input / max_value - mean) / std`` per channel, in one pass: pixels as they are stored in, floats out.

    Channels may move in the same pass: from ``(N, H, W, C)``, as files have them, to ``(N, C, H, W)``, as networks
    want them.

    Parameters
    ----------
    input : array_like
        One image or a batch of any shape, of uint8, int8, uint16, int16 or a float dtype.
    mean, std : float or array_like
        One number for all channels, or one per channel, in units of the result before normalization: usually between
        0 and 1. For means of bytes, such as 123.675, give ``max_value=1``. Single numbers take an input of any rank,
        such as a grey image of two axes.
    max_value : float, optional
        The value of a pixel that stands for 1.0. For uint8 it is 255 unless given; for other dtypes it must be given.
    channel_axis : int, optional
        The axis of the channels in the input.
    out_channel_axis : int, optional
        Their axis in the result; by default that of the input.
    dtype : data-type, optional
        Of the result: a float dtype.
    out : ndarray, optional
        Where the result goes: of its shape, and of `dtype`.

    Returns
    -------
    ndarray
        C-contiguous, of the shape that ``np.moveaxis(input, channel_axis, out_channel_axis)`` has. For integers each
        value is the float64 formula, rounded once.

    Raises
    ------
    TypeError
        An input of another dtype, such as int32 or bool; a `dtype` that is no float dtype.
    ValueError
        A std of 0; a mean or std of another size than 1 and the number of channels; no `max_value` where it must be
        given; an axis that the input does not have; an `out` of another shape.

    Warns
    -----
    UserWarning
        A mean above 1 or below -1 without `max_value`.

    See Also
    --------
    standardize : with statistics of the input, over any axes

    Examples
    --------
    >>> import numpy as np
    >>> import cnorm.functional as F
    >>> photos = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    >>> y = F.normalize_image(photos, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], out_channel_axis=1)
    >>> y.shape, y.dtype
    ((2, 3, 2, 2), dtype('float32'))
    """
    return image_normalized(input, mean, std, max_value, channel_axis, out_channel_axis, dtype, out)
