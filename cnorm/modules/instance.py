"""Instance normalization: each channel of each sample over its positions."""

import warnings

import numpy as np

from .. import functional as F
from .._call.channel_norms import running_norm
from ._docs import parameters_of
from ._lazy import LazyNorm
from ._running import RunningNorm


class _InstanceNorm(RunningNorm):
    def __init__(
        self, num_features, eps=1e-5, momentum=0.1, affine=False, track_running_stats=False,
        device=None, dtype=None, *, bias=True, channel_axis=1, activation=None,
    ):  # fmt: skip
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias,
            channel_axis=channel_axis, activation=activation,
        )  # fmt: skip

    def _batched(self, input):
        return input[None] if input.ndim == self._ranks[0] else input

    def _normalize(
        self, input, keep, slope, clip, use_input_stats, running_mean, running_var, where
    ):  # fmt: skip
        batched = self._batched(input)
        if batched.shape[self.channel_axis] != self.num_features:
            self._other_channels(batched, batched.ndim - input.ndim)
        if where is not None:
            where = self._batched_mask(where, batched is input)
        result = running_norm(
            self._lock if self.training and self.track_running_stats else None, False, None,
            batched, running_mean, running_var, self.weight, self.bias, use_input_stats,
            self.momentum, self.eps, self.channel_axis, keep, slope, clip, where,
        )  # fmt: skip
        if not keep:
            return result if batched is input else result[0], None
        output, mean, rstd = result
        return output if batched is input else output[0], (input, use_input_stats, mean, rstd)

    def _batched_mask(self, where, as_it_is):
        """A mask of a sample without its axis, as one that broadcasts to the batch of it."""
        return where if where is None or as_it_is else np.asarray(where)[None]

    def _other_channels(self, batched, axes_added):
        """Input of other channels than `num_features`: an error, or a warning."""
        from .. import _hints

        channels = batched.shape[self.channel_axis]
        axis = self.channel_axis % batched.ndim - axes_added
        hint = _hints.other_axis(batched.shape, self.channel_axis, self.num_features)
        if self.affine:
            error = ValueError(
                f"expected input's size at dim={axis} to match num_features "
                f"({self.num_features}), but got: {channels}."
            )
            raise _hints.noted(error, hint)
        warnings.warn(
            f"input's size at dim={axis} does not match num_features. You can silence this warning "
            "by not passing in num_features, which is not used because affine=False"
            + (hint and f". {hint}"),
            stacklevel=5,
        )

    def _backward(
        self, grad_output, slope, clip, input, use_input_stats, mean, rstd, where=None
    ):  # fmt: skip
        batched = self._batched(input)
        grad_input, *gradients = F.instance_norm_backward(
            self._batched(grad_output), batched, mean, rstd, self.weight,
            use_input_stats=use_input_stats, channel_axis=self.channel_axis,
            negative_slope=slope, clip=clip, bias=self.bias,
            where=self._batched_mask(where, batched is input),
        )  # fmt: skip
        return grad_input if batched is input else grad_input[0], *gradients

    def _upgrade_state(self, state, prefix, version, errors):
        if version is None and not self.track_running_stats:
            keys = [prefix + name for name in ("running_mean", "running_var")]
            if found := [key for key in keys if state.pop(key, None) is not None]:
                names, klass = " and ".join(f'"{key}"' for key in found), type(self).__name__
                errors.append(
                    f"Unexpected running stats buffer(s) {names} for {klass} with "
                    "track_running_stats=False. If state_dict is a checkpoint saved before 0.4.0, "
                    f"this may be expected because {klass} does not track running stats by default "
                    "since 0.4.0. Please remove these keys from state_dict. If the running stats "
                    f"are actually needed, instead set track_running_stats=True in {klass} to "
                    f"enable them. See the documentation of {klass} for details."
                )
        super()._upgrade_state(state, prefix, version, errors)


class InstanceNorm1d(_InstanceNorm):
    """Instance normalization of ``(N, C, L)`` or, unbatched, ``(C, L)`` input.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``, where mean and (biased) variance are
    those of one channel of one sample. With one group for each channel, `GroupNorm` does the same.

    Parameters
    ----------
    num_features : int
        The number of channels C.
    eps : float
        Added to the variance. Not checked, as in torch: one below minus the variance gives NaN.
    momentum : float or None
        The weight of a new batch in the running statistics (the average of those of its samples);
        None leaves them as they are.
    affine, bias : bool
        Whether there is a weight, and with it a bias.
    track_running_stats : bool
        Whether there are running statistics, which evaluation then uses.
    device : None or "cpu"
    dtype : dtype
        Of parameters and running statistics; float32 by default.
    channel_axis : int
        Where the channels of batched input are: 1, or -1 for channels last.
    activation : None, ReLU, LeakyReLU, PReLU, Hardtanh or ReLU6
        Applied to the result in the same pass.

    References
    ----------
    Ulyanov et al., "Instance Normalization", 2016, https://arxiv.org/abs/1607.08022.

    Examples
    --------
    >>> import cnorm, numpy as np
    >>> cnorm.InstanceNorm1d(2)(np.float32([[[0, 2], [5, 9]]])).round(2)
    array([[[-1.,  1.],
            [-1.,  1.]]], dtype=float32)
    """

    _ranks = (2, 3)


@parameters_of(InstanceNorm1d)
class InstanceNorm2d(_InstanceNorm):
    """Instance normalization of ``(N, C, H, W)`` or, unbatched, ``(C, H, W)`` input.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``, where mean and (biased) variance are
    those of the ``H * W`` elements of one channel of one sample.

    Examples
    --------
    >>> import cnorm, numpy as np
    >>> x = np.random.default_rng(0).normal(5, 2, (4, 3, 8, 8))
    >>> y = cnorm.InstanceNorm2d(3)(x)
    >>> y.shape, bool(np.allclose(y.mean((2, 3)), 0))
    ((4, 3, 8, 8), True)
    """

    _ranks = (3, 4)


@parameters_of(InstanceNorm1d)
class InstanceNorm3d(_InstanceNorm):
    """Instance normalization of ``(N, C, D, H, W)`` or, unbatched, ``(C, D, H, W)`` input.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``, where mean and (biased) variance are
    those of the ``D * H * W`` elements of one channel of one sample.

    Examples
    --------
    >>> import cnorm, numpy as np
    >>> x = np.random.default_rng(0).normal(5, 2, (4, 3, 2, 8, 8))
    >>> y = cnorm.InstanceNorm3d(3)(x)
    >>> y.shape, bool(np.allclose(y.mean((2, 3, 4)), 0))
    ((4, 3, 2, 8, 8), True)
    """

    _ranks = (4, 5)


@parameters_of(InstanceNorm1d)
class LazyInstanceNorm1d(LazyNorm, InstanceNorm1d):
    """`InstanceNorm1d` that takes the number of channels from its first input, or from a load.

    After that it is an `InstanceNorm1d`: its class changes too. Before, its parameters have no
    shape. Unlike `InstanceNorm1d`, it has a weight, a bias and running statistics by default.

    Examples
    --------
    >>> import cnorm, numpy as np
    >>> norm = cnorm.LazyInstanceNorm1d(eps=1e-3)
    >>> y = norm(np.zeros((4, 3, 9), np.float32))
    >>> type(norm).__name__, norm.num_features
    ('InstanceNorm1d', 3)
    """

    cls_to_become = InstanceNorm1d


@parameters_of(InstanceNorm2d)
class LazyInstanceNorm2d(LazyNorm, InstanceNorm2d):
    """`InstanceNorm2d` that takes the number of channels from its first input, or from a load.

    After that it is an `InstanceNorm2d`: its class changes too. Before, its parameters have no
    shape. Unlike `InstanceNorm2d`, it has a weight, a bias and running statistics by default.

    Examples
    --------
    >>> import cnorm, numpy as np
    >>> norm = cnorm.LazyInstanceNorm2d(eps=1e-3)
    >>> y = norm(np.zeros((4, 3, 8, 8), np.float32))
    >>> type(norm).__name__, norm.num_features
    ('InstanceNorm2d', 3)
    """

    cls_to_become = InstanceNorm2d


@parameters_of(InstanceNorm3d)
class LazyInstanceNorm3d(LazyNorm, InstanceNorm3d):
    """`InstanceNorm3d` that takes the number of channels from its first input, or from a load.

    After that it is an `InstanceNorm3d`: its class changes too. Before, its parameters have no
    shape. Unlike `InstanceNorm3d`, it has a weight, a bias and running statistics by default.

    Examples
    --------
    >>> import cnorm, numpy as np
    >>> norm = cnorm.LazyInstanceNorm3d(eps=1e-3)
    >>> y = norm(np.zeros((4, 3, 2, 8, 8), np.float32))
    >>> type(norm).__name__, norm.num_features
    ('InstanceNorm3d', 3)
    """

    cls_to_become = InstanceNorm3d
