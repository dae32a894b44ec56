"""Group normalization: groups of channels of each sample."""

import operator

from .. import functional as F
from ._arrays import as_shape, check_flag, check_number
from ._docs import parameters_of
from ._lazy import LazyGroups
from ._norm import Norm


class GroupNorm(Norm):
    """Group normalization of ``(N, C, ...)`` input.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``, where mean and (biased) variance are
    those of one group of channels of one sample. One group is `LayerNorm` over all but the first
    axis with a weight per channel; as many groups as channels is `InstanceNorm1d`.

    Parameters
    ----------
    num_groups : int
        How many groups the channels are split into, each of neighbours.
    num_channels : int
        The number of channels C, a multiple of `num_groups`.
    eps : float
        Added to the variance. Not checked, as in torch: one below minus the variance gives NaN.
    affine, bias : bool
        Whether there is a weight per channel, and with it a bias.
    device : None or "cpu"
    dtype : dtype
        Of the parameters; float32 by default.
    channel_axis : int
        Where the channels are: 1, or -1 for channels last.
    activation : None, ReLU, LeakyReLU, PReLU, Hardtanh or ReLU6
        Applied to the result in the same pass.

    References
    ----------
    Wu and He, "Group Normalization", 2018, https://arxiv.org/abs/1803.08494.

    Examples
    --------
    >>> import cnorm, numpy as np
    >>> cnorm.GroupNorm(1, 2)(np.float32([[[1, 1], [3, 3]]])).round(2)
    array([[[-1., -1.],
            [ 1.,  1.]]], dtype=float32)
    """

    def __init__(
        self, num_groups, num_channels, eps=1e-5, affine=True, device=None, dtype=None, *,
        bias=True, channel_axis=1, activation=None,
    ):  # fmt: skip
        super().__init__(channel_axis, activation)
        if not hasattr(num_groups, "__index__"):
            raise TypeError(f"num_groups must be a positive integer, but got {num_groups!r}")
        num_groups = operator.index(num_groups)
        if num_groups <= 0:
            raise ValueError(f"num_groups must be a positive integer, but got {num_groups}")
        fraction = isinstance(num_channels, float)  # torch: first whether it divides
        channels = num_channels if fraction else as_shape(num_channels, "num_channels")[0]
        if channels % num_groups != 0:
            from .. import _hints

            error = ValueError(
                f"num_channels ({num_channels}) must be divisible by num_groups ({num_groups})"
            )
            raise _hints.noted(error, _hints.groups(num_groups, channels))
        self._check_slopes(*as_shape(num_channels, "num_channels"))
        self.num_groups = num_groups
        self.num_channels = num_channels
        self.eps = check_number(eps, "eps")
        self.affine = check_flag(affine, "affine")
        check_flag(bias, "bias")
        self._new_parameters(num_channels, device, dtype, weight=affine, bias=affine and bias)
        self.reset_parameters()

    def _forward(self, input, keep, slope, clip, where):
        result = F.group_norm(
            input, self.num_groups, self.weight, self.bias, self.eps,
            channel_axis=self.channel_axis, return_stats=keep, negative_slope=slope, clip=clip,
            where=where,
        )  # fmt: skip
        if not keep:
            return result, None
        output, mean, rstd = result
        return output, (input, mean, rstd)

    def _backward(self, grad_output, slope, clip, input, mean, rstd, where=None):
        return F.group_norm_backward(
            grad_output, input, self.num_groups, mean, rstd, self.weight,
            channel_axis=self.channel_axis, negative_slope=slope, clip=clip, bias=self.bias,
            where=where,
        )  # fmt: skip

    def extra_repr(self):
        return (
            f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}, "
            f"bias={self.bias is not None}"
        )


@parameters_of(GroupNorm)
class LazyGroupNorm(LazyGroups, GroupNorm):
    """`GroupNorm` that takes the number of channels from its first input, or from a load.

    After that it is a `GroupNorm`: its class changes too. Before, its parameters have no shape.

    Examples
    --------
    >>> import cnorm, numpy as np
    >>> norm = cnorm.LazyGroupNorm(2)
    >>> y = norm(np.zeros((4, 6, 8, 8), np.float32))
    >>> type(norm).__name__, norm.num_channels
    ('GroupNorm', 6)
    """

    cls_to_become = GroupNorm

    def __init__(
        self, num_groups, eps=1e-5, affine=True, device=None, dtype=None, *, bias=True,
        channel_axis=1, activation=None,
    ):  # fmt: skip
        super().__init__(
            num_groups, 0, eps, affine, device, dtype, bias=bias, channel_axis=channel_axis,
            activation=activation,
        )  # fmt: skip
