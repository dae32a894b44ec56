"""torch's norm layers with cnorm's functions inside: the classes that `accelerate` gives."""

from torch import nn

from . import _torch_functions as F


class _BatchNorm:
    def forward(self, input):
        self._check_input_dim(input)
        tracks = self.training and self.track_running_stats and self.num_batches_tracked is not None
        factor = self.momentum or 0.0
        if tracks and self.momentum is None:  # a cumulative average
            factor = 1 / (int(self.num_batches_tracked) + 1)
        keep = not self.training or self.track_running_stats
        y = F.batch_norm(
            input,
            self.running_mean if keep else None,
            self.running_var if keep else None,
            self.weight,
            self.bias,
            self.training or (self.running_mean is None and self.running_var is None),
            factor,
            self.eps,
        )
        if tracks:
            self.num_batches_tracked.add_(1)
        return y


class _InstanceNorm:
    def _apply_instance_norm(self, input):  # torch's own forward checks and adds a batch, then this
        return F.instance_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or not self.track_running_stats,
            self.momentum or 0.0,
            self.eps,
        )


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    pass


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    pass


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    pass


class InstanceNorm1d(_InstanceNorm, nn.InstanceNorm1d):
    pass


class InstanceNorm2d(_InstanceNorm, nn.InstanceNorm2d):
    pass


class InstanceNorm3d(_InstanceNorm, nn.InstanceNorm3d):
    pass


class GroupNorm(nn.GroupNorm):
    def forward(self, input):
        return F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


class LayerNorm(nn.LayerNorm):
    def forward(self, input):
        return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


class RMSNorm(nn.RMSNorm):
    def forward(self, input):
        return F.rms_norm(input, self.normalized_shape, self.weight, self.eps)


class LocalResponseNorm(nn.LocalResponseNorm):
    def forward(self, input):
        return F.local_response_norm(input, self.size, self.alpha, self.beta, self.k)


ACCELERATED = {
    getattr(nn, accelerated.__name__): accelerated
    for accelerated in (
        *(BatchNorm1d, BatchNorm2d, BatchNorm3d),
        *(InstanceNorm1d, InstanceNorm2d, InstanceNorm3d),
        *(GroupNorm, LayerNorm, RMSNorm, LocalResponseNorm),
    )
}
