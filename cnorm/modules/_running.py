"""What BatchNorm and InstanceNorm share: parameters per channel and running statistics."""

import numpy as np

from ._arrays import as_dtype, as_shape, check_flag, check_number, wrong_rank
from ._norm import Norm


class RunningNorm(Norm):
    """The base of the norms that can track running statistics.

    A subclass names the ranks it takes in `_ranks` and defines `_normalize` and `_backward`.
    """

    _version = 2  # since 2 there is num_batches_tracked

    def __init__(
        self, num_features, eps, momentum, affine, track_running_stats, device, dtype, *, bias,
        channel_axis, activation,
    ):  # fmt: skip
        super().__init__(channel_axis, activation)
        self.num_features = num_features
        self.eps = check_number(eps, "eps")
        self.momentum = check_number(momentum, "momentum", optional=True)
        self.affine = check_flag(affine, "affine")
        self.track_running_stats = check_flag(track_running_stats, "track_running_stats")
        check_flag(bias, "bias")
        # with neither, num_features is not used, and may be anything
        shape = as_shape(num_features, "num_features") if affine or track_running_stats else None
        if shape is not None:
            self._check_slopes(*shape)
        self._new_parameters(shape, device, dtype, weight=affine, bias=affine and bias)
        for name in ("running_mean", "running_var"):
            buffer = np.empty(shape, as_dtype(dtype)) if track_running_stats else None
            self.register_buffer(name, buffer)
        self.register_buffer(
            "num_batches_tracked", np.zeros((), np.int64) if track_running_stats else None
        )
        self.reset_parameters()

    def reset_running_stats(self):
        """Set the mean to 0, the variance to 1 and the count to 0, in place."""
        if self.track_running_stats:
            self.running_mean.fill(0)
            self.running_var.fill(1)
            self.num_batches_tracked.fill(0)

    def reset_parameters(self):
        """Set the weight to ones, the bias to zeros, the statistics to their start, in place."""
        self.reset_running_stats()
        super().reset_parameters()

    def _check_input_dim(self, input):
        if input.ndim not in self._ranks:
            raise wrong_rank(self, input, self._ranks)

    def _batched(self, input):
        """`input`, of a rank that was checked, with its axis of samples."""
        return input

    def _forward(self, input, keep, slope, clip, where):
        self._check_input_dim(input)
        mean, var = self.running_mean, self.running_var
        of_input = self.training or (mean is None and var is None)
        if self.training and not self.track_running_stats:
            mean = var = None
        return self._normalize(input, keep, slope, clip, of_input, mean, var, where)

    def _normalize(
        self, input, keep, slope, clip, use_input_stats, running_mean, running_var, where
    ):  # fmt: skip
        """What `_forward` returns, `use_input_stats` second; updates the running statistics.

        Threads that share the module take turns to update them: it holds `_lock` then.
        """
        raise NotImplementedError

    def extra_repr(self):
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, "
            f"affine={self.affine}, bias={self.bias is not None}, "
            f"track_running_stats={self.track_running_stats}"
        )

    def _upgrade_state(self, state, prefix, version, errors):
        if (version is None or version < 2) and self.track_running_stats:
            count = self.num_batches_tracked
            count = np.zeros((), np.int64) if count is None else count
            state.setdefault(prefix + "num_batches_tracked", count)
