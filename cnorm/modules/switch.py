"""Switchable normalization: a learned mix of instance, layer and batch statistics."""

import numpy as np

from .. import functional as F
from .._call.running import assign
from ._arrays import as_array, as_dtype, as_shape, check_flag, check_number, wrong_rank
from ._docs import parameters_of
from ._norm import Norm, without_mask


class _SwitchNorm(Norm):
    _learned = ("weight", "bias", "mean_weight", "var_weight")
    _takes_where = False
    last_gamma = False

    def _create(self, num_features, eps, momentum, using_moving_average, mixed, device, dtype):
        """The state, under the names and shapes of the authors' layer."""
        self.num_features = num_features
        self.eps = check_number(eps, "eps")
        self.momentum = check_number(momentum, "momentum")
        self.using_moving_average = check_flag(using_moving_average, "using_moving_average")
        (channels,) = as_shape(num_features, "num_features")
        self._check_slopes(channels)
        spatial = (1,) * (self._rank - 2)
        shape = (1, channels, *spatial)
        self._new_parameters(shape, device, dtype, weight=True, bias=True)
        self._new_parameters(mixed, device, dtype, mean_weight=True, var_weight=True)
        for name in ("running_mean", "running_var") if self.using_bn else ():
            self.register_buffer(name, np.empty((1, channels, *spatial[:1]), as_dtype(dtype)))
        self.reset_parameters()

    def reset_parameters(self):
        """Set weight (but a last gamma) and mix to ones, all else to zeros, in place."""
        super().reset_parameters()
        if self.last_gamma:
            self.weight.fill(0)
        self.mean_weight.fill(1)
        self.var_weight.fill(1)
        for buffer in self.buffers():
            buffer.fill(0)

    def average_running_stats(self, num_batches):
        """Turn the sums that ``using_moving_average=False`` gathers into statistics, in place.

        Parameters
        ----------
        num_batches : int
            How many batches were summed since the buffers were zero.
        """
        if self.using_moving_average or not self.using_bn:
            raise RuntimeError(
                "there are no sums to average: they are gathered with using_moving_average=False "
                "and using_bn=True"
            )
        if num_batches < 1:
            raise ValueError(f"num_batches must be at least 1, but got {num_batches}")
        self._lock.run(self._average, num_batches)

    def _average(self, num_batches):
        mean = self.running_mean / num_batches
        var = self.running_var / num_batches - mean**2
        assign((self.running_mean, self.running_var), (mean, np.maximum(var, 0)))

    def _check_input_dim(self, input):
        if input.ndim != self._rank:
            raise wrong_rank(self, input, (self._rank,))

    def forward(self, input, where=None):
        if where is not None:
            raise without_mask(self)
        input = as_array(input)
        self._check_input_dim(input)
        return super().forward(input)

    def _forward(self, input, keep, slope, clip, where):
        if not self.using_bn:
            return self._normalize(input, keep, slope, clip, None, None)
        arguments = input, keep, slope, clip, self.running_mean, self.running_var
        if self.training:  # threads that share the module take turns to update it
            return self._lock.run(self._normalize, *arguments)
        return self._normalize(*arguments)

    def _normalize(self, input, keep, slope, clip, running_mean, running_var):
        result = F.switch_norm(
            input, running_mean, running_var, self.weight, self.bias, self.mean_weight,
            self.var_weight, self.training, self.momentum, self.eps, self.using_moving_average,
            channel_axis=self.channel_axis, return_stats=keep, negative_slope=slope, clip=clip,
        )  # fmt: skip
        return (result[0], (input, *result[1:])) if keep else (result, None)

    def _backward(self, grad_output, slope, clip, input, stats):
        return F.switch_norm_backward(
            grad_output, input, stats, self.weight, self.mean_weight, self.var_weight, self.bias,
            channel_axis=self.channel_axis, negative_slope=slope, clip=clip,
        )  # fmt: skip

    def extra_repr(self):
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, "
            f"using_moving_average={self.using_moving_average}"
        )


class SwitchNorm1d(_SwitchNorm):
    """Switchable normalization of ``(N, C)`` input.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``, where mean and variance are mixtures of
    those of the row (layer) and those of the channel (batch; the running ones in evaluation), all
    with the unbiased variance, by ``softmax(mean_weight)`` and ``softmax(var_weight)``.

    Parameters
    ----------
    num_features : int
        The number of channels C.
    eps : float
        Added to the variance. Not checked: one below minus the variance gives NaN.
    momentum : float
        The weight of the old running statistics (the reverse of `BatchNorm1d`).
    using_moving_average : bool
        If False, running statistics are sums, which `average_running_stats` turns into averages.
    device : None or "cpu"
    dtype : dtype
        Of parameters and running statistics; float32 by default.
    channel_axis : int
        Where the channels are.
    activation : None, ReLU, LeakyReLU, PReLU, Hardtanh or ReLU6
        Applied to the result in the same pass.

    References
    ----------
    Luo et al., "Differentiable Learning-to-Normalize via Switchable Normalization", 2018,
    https://arxiv.org/abs/1806.10779.

    Examples
    --------
    >>> import cnorm, numpy as np
    >>> norm = cnorm.SwitchNorm1d(2)
    >>> norm(np.float32([[0, 1], [2, 4]])).shape
    (2, 2)
    """

    _rank = 2
    using_bn = True

    def __init__(
        self, num_features, eps=1e-5, momentum=0.997, using_moving_average=True, *, device=None,
        dtype=None, channel_axis=1, activation=None,
    ):  # fmt: skip
        super().__init__(channel_axis, activation)
        self._create(num_features, eps, momentum, using_moving_average, 2, device, dtype)


class _SpatialSwitchNorm(_SwitchNorm):
    def __init__(
        self, num_features, eps, momentum, using_moving_average, using_bn, last_gamma, device,
        dtype, channel_axis, activation,
    ):  # fmt: skip
        super().__init__(channel_axis, activation)
        self.using_bn = check_flag(using_bn, "using_bn")
        self.last_gamma = check_flag(last_gamma, "last_gamma")
        mixed = 3 if using_bn else 2
        self._create(num_features, eps, momentum, using_moving_average, mixed, device, dtype)

    def extra_repr(self):
        return f"{super().extra_repr()}, using_bn={self.using_bn}, last_gamma={self.last_gamma}"


@parameters_of(SwitchNorm1d)
class SwitchNorm2d(_SpatialSwitchNorm):
    """Switchable normalization of ``(N, C, H, W)`` input.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``, where mean and variance are mixtures of
    those of the channel of the sample (instance), of the sample (layer), and of the channel
    (batch; the running ones in evaluation), by ``softmax(mean_weight)`` and
    ``softmax(var_weight)``. The instance variance is the unbiased one, and the others follow
    from it.

    Parameters
    ----------
    using_bn : bool
        Whether batch statistics take part.
    last_gamma : bool
        Whether the weight starts as zeros, as in the last norm of a residual block.

    Examples
    --------
    >>> import cnorm, numpy as np
    >>> norm = cnorm.SwitchNorm2d(3, using_bn=False)
    >>> norm(np.zeros((2, 3, 4, 4))).shape
    (2, 3, 4, 4)
    """

    _rank = 4

    def __init__(
        self, num_features, eps=1e-5, momentum=0.9, using_moving_average=True, using_bn=True,
        last_gamma=False, *, device=None, dtype=None, channel_axis=1, activation=None,
    ):  # fmt: skip
        super().__init__(
            num_features, eps, momentum, using_moving_average, using_bn, last_gamma, device,
            dtype, channel_axis, activation,
        )  # fmt: skip


@parameters_of(SwitchNorm2d)
class SwitchNorm3d(_SpatialSwitchNorm):
    """Switchable normalization of ``(N, C, D, H, W)`` input.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``, where mean and variance are mixtures of
    those of the channel of the sample (instance), of the sample (layer), and of the channel
    (batch; the running ones in evaluation), as of `SwitchNorm2d`.

    Examples
    --------
    >>> import cnorm, numpy as np
    >>> norm = cnorm.SwitchNorm3d(3)
    >>> norm(np.zeros((2, 3, 2, 4, 4))).shape
    (2, 3, 2, 4, 4)
    >>> norm.running_mean.shape
    (1, 3, 1)
    """

    _rank = 5

    def __init__(
        self, num_features, eps=1e-5, momentum=0.997, using_moving_average=True, using_bn=True,
        last_gamma=False, *, device=None, dtype=None, channel_axis=1, activation=None,
    ):  # fmt: skip
        super().__init__(
            num_features, eps, momentum, using_moving_average, using_bn, last_gamma, device,
            dtype, channel_axis, activation,
        )  # fmt: skip
