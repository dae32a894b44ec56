"""Batch normalization: each channel over the samples of the batch."""

from .. import functional as F
from .._call.channel_norms import running_norm
from .._call.running import assign
from .._moments import Moments
from ._docs import parameters_of
from ._lazy import LazyNorm
from ._running import RunningNorm


class _BatchNorm(RunningNorm):
    def __init__(
        self, num_features, eps=1e-5, momentum=0.1, affine=True, track_running_stats=True,
        device=None, dtype=None, *, bias=True, channel_axis=1, activation=None,
    ):  # fmt: skip
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias,
            channel_axis=channel_axis, activation=activation,
        )  # fmt: skip

    def _normalize(
        self, input, keep, slope, clip, use_input_stats, running_mean, running_var, where
    ):  # fmt: skip
        updates = self.training and self.track_running_stats
        result = running_norm(
            self._lock if updates else None, True, self.num_batches_tracked if updates else None,
            input, running_mean, running_var, self.weight, self.bias, use_input_stats,
            self.momentum, self.eps, self.channel_axis, keep, slope, clip, where,
        )  # fmt: skip
        if not keep:
            return result, None
        output, mean, rstd = result
        return output, (input, use_input_stats, mean, rstd)

    def load_moments(self, moments):
        """Set the running statistics from moments of data ("precise batch norm").

        The running variance is the unbiased one, and `num_batches_tracked` becomes 1: as after one
        batch of all these data.

        Parameters
        ----------
        moments : Moments
            Of each channel of what the layer will be given: of shape ``(num_features,)``.

        Raises
        ------
        RuntimeError
            The layer tracks no running statistics.
        ValueError
            Moments of another shape, or of fewer than two elements in a channel.

        Examples
        --------
        >>> import cnorm, numpy as np, cnorm.functional as F
        >>> norm = cnorm.BatchNorm1d(2)
        >>> parts = (np.float32([[0, 1], [2, 3]]), np.float32([[4, 5]]))
        >>> norm.load_moments(sum(F.moments(part, 0) for part in parts))
        >>> norm.running_mean, norm.running_var
        (array([2., 3.], dtype=float32), array([4., 4.], dtype=float32))
        """
        if not isinstance(moments, Moments):
            raise TypeError(
                f"moments must be Moments, but got {type(moments).__name__}: functional.moments of "
                "the data makes them, over all axes but that of the channels"
            )
        if self.running_mean is None or self.running_var is None:
            raise RuntimeError("this layer tracks no running statistics, so it loads no moments")
        if moments.shape != (self.num_features,):
            raise ValueError(
                f"moments must have shape ({self.num_features},), one value per channel, but got "
                f"{moments.shape}: take them over all axes but that of the channels; those of each "
                "sample and channel become it by reduce(0)"
            )
        if (moments.count < 2).any():
            raise ValueError("each channel must have at least 2 elements: the variance is unbiased")
        targets = [self.running_mean, self.running_var]
        values = [moments.mean, moments.var(1)]
        if self.num_batches_tracked is not None:
            targets.append(self.num_batches_tracked)
            values.append(1)
        self._lock.run(assign, targets, values)

    def _backward(
        self, grad_output, slope, clip, input, use_input_stats, mean, rstd, where=None
    ):  # fmt: skip
        return F.batch_norm_backward(
            grad_output, input, mean, rstd, self.weight, training=use_input_stats,
            channel_axis=self.channel_axis, negative_slope=slope, clip=clip, bias=self.bias,
            where=where,
        )  # fmt: skip


class BatchNorm1d(_BatchNorm):
    """Batch normalization of ``(N, C)`` or ``(N, C, L)`` input.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``, where mean and (biased) variance of each
    channel are those of the batch in training, the running ones in evaluation.

    Parameters
    ----------
    num_features : int
        The number of channels C.
    eps : float
        Added to the variance.
    momentum : float or None
        The weight of a new batch in the running statistics, whose variance is the unbiased one;
        None averages all batches.
    affine, bias : bool
        Whether there is a weight, and with it a bias.
    track_running_stats : bool
        Whether there are running statistics; without them evaluation uses the batch too.
    device : None or "cpu"
    dtype : dtype
        Of parameters and running statistics; float32 by default.
    channel_axis : int
        Where the channels are: 1, or -1 for channels last.
    activation : None, ReLU, LeakyReLU, PReLU, Hardtanh or ReLU6
        Applied to the result in the same pass.

    References
    ----------
    Ioffe and Szegedy, "Batch Normalization", 2015, https://arxiv.org/abs/1502.03167.

    Examples
    --------
    >>> import cnorm, numpy as np
    >>> norm = cnorm.BatchNorm1d(2)
    >>> norm(np.float32([[0, 1], [2, 3]])).round(2)
    array([[-1., -1.],
           [ 1.,  1.]], dtype=float32)
    >>> norm.running_mean
    array([0.1, 0.2], dtype=float32)
    """

    _ranks = (2, 3)


@parameters_of(BatchNorm1d)
class BatchNorm2d(_BatchNorm):
    """Batch normalization of ``(N, C, H, W)`` input.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``, where mean and (biased) variance of each
    channel are those of its ``N * H * W`` elements in training, the running ones in evaluation.

    Examples
    --------
    >>> import cnorm, numpy as np
    >>> x = np.random.default_rng(0).normal(5, 2, (4, 3, 8, 8))
    >>> norm = cnorm.BatchNorm2d(3, dtype=x.dtype)
    >>> y = norm(x)
    >>> y.shape, bool(np.allclose(y.mean((0, 2, 3)), 0))
    ((4, 3, 8, 8), True)
    """

    _ranks = (4,)


@parameters_of(BatchNorm1d)
class BatchNorm3d(_BatchNorm):
    """Batch normalization of ``(N, C, D, H, W)`` input.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``, where mean and (biased) variance of each
    channel are those of its ``N * D * H * W`` elements in training, the running ones in evaluation.

    Examples
    --------
    >>> import cnorm, numpy as np
    >>> x = np.random.default_rng(0).normal(5, 2, (4, 3, 2, 8, 8))
    >>> norm = cnorm.BatchNorm3d(3, dtype=x.dtype)
    >>> y = norm(x)
    >>> y.shape, bool(np.allclose(y.mean((0, 2, 3, 4)), 0))
    ((4, 3, 2, 8, 8), True)
    """

    _ranks = (5,)


@parameters_of(BatchNorm1d)
class LazyBatchNorm1d(LazyNorm, BatchNorm1d):
    """`BatchNorm1d` that takes the number of channels from its first input, or from a load.

    After that it is a `BatchNorm1d`: its class changes too. Before, its parameters have no shape.

    Examples
    --------
    >>> import cnorm, numpy as np
    >>> norm = cnorm.LazyBatchNorm1d(eps=1e-3)
    >>> y = norm(np.zeros((4, 3), np.float32))
    >>> type(norm).__name__, norm.num_features
    ('BatchNorm1d', 3)
    """

    cls_to_become = BatchNorm1d


@parameters_of(BatchNorm2d)
class LazyBatchNorm2d(LazyNorm, BatchNorm2d):
    """`BatchNorm2d` that takes the number of channels from its first input, or from a load.

    After that it is a `BatchNorm2d`: its class changes too. Before, its parameters have no shape.

    Examples
    --------
    >>> import cnorm, numpy as np
    >>> norm = cnorm.LazyBatchNorm2d(eps=1e-3)
    >>> y = norm(np.zeros((4, 3, 8, 8), np.float32))
    >>> type(norm).__name__, norm.num_features
    ('BatchNorm2d', 3)
    """

    cls_to_become = BatchNorm2d


@parameters_of(BatchNorm3d)
class LazyBatchNorm3d(LazyNorm, BatchNorm3d):
    """`BatchNorm3d` that takes the number of channels from its first input, or from a load.

    After that it is a `BatchNorm3d`: its class changes too. Before, its parameters have no shape.

    Examples
    --------
    >>> import cnorm, numpy as np
    >>> norm = cnorm.LazyBatchNorm3d(eps=1e-3)
    >>> y = norm(np.zeros((4, 3, 2, 8, 8), np.float32))
    >>> type(norm).__name__, norm.num_features
    ('BatchNorm3d', 3)
    """

    cls_to_become = BatchNorm3d
