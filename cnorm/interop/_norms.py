"""Each norm as a pair of functions over NumPy arrays: what an automatic gradient needs.

``forward(x, weight, bias, *running, out=None, where=None)`` returns ``(y, *stats)``,
``backward(dy, x, weight, *stats, bias=None, out=None, where=None)`` returns ``(dx, dw, db)``.
`running` is the pair of running statistics or nothing; forward updates it in place where
``uses_input_stats``, and reads it where not. `out` receives y or dx; `where` is a mask, which
LocalResponseNorm does not take. ``stats_shapes(shape)`` are the statistics' shapes for an input of
that shape. A norm with a ``negative_slope`` ends in ReLU (0) or LeakyReLU, one with a ``clip`` in
Hardtanh or ReLU6: its gradient depends on the bias, which `backward` takes where ``needs_bias``.
"""

from dataclasses import dataclass

import cnorm.functional as F


@dataclass(frozen=True, slots=True)
class BatchNorm:
    uses_input_stats: bool
    momentum: float = 0.1
    eps: float = 1e-5
    channel_axis: int = 1
    negative_slope: float | None = None
    clip: tuple[float, float] | None = None

    @property
    def needs_bias(self):
        return self.negative_slope is not None or self.clip is not None

    def forward(self, x, weight, bias, *running, out=None, where=None):
        return F.batch_norm(
            x, *(running or (None, None)), weight, bias, self.uses_input_stats, self.momentum,
            self.eps, channel_axis=self.channel_axis, return_stats=True, out=out, where=where,
            negative_slope=self.negative_slope, clip=self.clip,
        )  # fmt: skip

    def backward(self, dy, x, weight, mean, rstd, *, bias=None, out=None, where=None):
        return F.batch_norm_backward(
            dy, x, mean, rstd, weight, training=self.uses_input_stats, out=out,
            channel_axis=self.channel_axis, negative_slope=self.negative_slope, clip=self.clip,
            bias=bias, where=where,
        )  # fmt: skip

    def stats_shapes(self, shape):
        return [(shape[self.channel_axis],)] * 2


@dataclass(frozen=True, slots=True)
class InstanceNorm:
    uses_input_stats: bool = True
    momentum: float = 0.1
    eps: float = 1e-5
    channel_axis: int = 1
    needs_bias = False

    def forward(self, x, weight, bias, *running, out=None, where=None):
        return F.instance_norm(
            x, *(running or (None, None)), weight, bias, self.uses_input_stats, self.momentum,
            self.eps, channel_axis=self.channel_axis, return_stats=True, out=out, where=where,
        )  # fmt: skip

    def backward(self, dy, x, weight, mean, rstd, *, bias=None, out=None, where=None):
        return F.instance_norm_backward(
            dy, x, mean, rstd, weight,
            use_input_stats=self.uses_input_stats, out=out, channel_axis=self.channel_axis,
            where=where,
        )  # fmt: skip

    def stats_shapes(self, shape):
        return [(shape[0] if self.channel_axis else 1, shape[self.channel_axis])] * 2


@dataclass(frozen=True, slots=True)
class GroupNorm:
    num_groups: int
    eps: float = 1e-5
    channel_axis: int = 1
    negative_slope: float | None = None
    clip: tuple[float, float] | None = None
    uses_input_stats = True

    @property
    def needs_bias(self):
        return self.negative_slope is not None or self.clip is not None

    def forward(self, x, weight, bias, *, out=None, where=None):
        return F.group_norm(
            x, self.num_groups, weight, bias, self.eps, channel_axis=self.channel_axis,
            return_stats=True, out=out, negative_slope=self.negative_slope, clip=self.clip,
            where=where,
        )  # fmt: skip

    def backward(self, dy, x, weight, mean, rstd, *, bias=None, out=None, where=None):
        return F.group_norm_backward(
            dy, x, self.num_groups, mean, rstd, weight, channel_axis=self.channel_axis, out=out,
            negative_slope=self.negative_slope, clip=self.clip, bias=bias, where=where,
        )  # fmt: skip

    def stats_shapes(self, shape):
        return [(shape[0], self.num_groups)] * 2


@dataclass(frozen=True, slots=True)
class LayerNorm:
    normalized_shape: tuple
    eps: float = 1e-5
    uses_input_stats = True
    needs_bias = False

    def forward(self, x, weight, bias, *, out=None, where=None):
        return F.layer_norm(
            x, self.normalized_shape, weight, bias, self.eps, return_stats=True, out=out,
            where=where,
        )  # fmt: skip

    def backward(self, dy, x, weight, mean, rstd, *, bias=None, out=None, where=None):
        return F.layer_norm_backward(
            dy, x, self.normalized_shape, mean, rstd, weight, out=out, where=where
        )

    def stats_shapes(self, shape):
        k = len(self.normalized_shape)
        return [shape[:-k] + (1,) * k] * 2


@dataclass(frozen=True, slots=True)
class RMSNorm:
    normalized_shape: tuple
    eps: float | None = None
    uses_input_stats = True
    needs_bias = False

    def forward(self, x, weight, bias, *, out=None, where=None):
        return F.rms_norm(
            x, self.normalized_shape, weight, self.eps, return_stats=True, out=out, where=where
        )

    def backward(self, dy, x, weight, rstd, *, bias=None, out=None, where=None):
        grads = F.rms_norm_backward(
            dy, x, self.normalized_shape, rstd, weight, out=out, where=where
        )
        return *grads, None

    def stats_shapes(self, shape):
        k = len(self.normalized_shape)
        return [shape[:-k] + (1,) * k]


@dataclass(frozen=True, slots=True)
class LocalResponseNorm:
    size: int
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 1.0
    channel_axis: int = 1
    uses_input_stats = True
    needs_bias = False

    def forward(self, x, weight, bias, *, out=None):
        return (F.local_response_norm(x, *self._window, channel_axis=self.channel_axis, out=out),)

    def backward(self, dy, x, weight, *, bias=None, out=None):
        dx = F.local_response_norm_backward(
            dy, x, *self._window, channel_axis=self.channel_axis, out=out
        )
        return dx, None, None

    def stats_shapes(self, shape):
        return []

    @property
    def _window(self):
        return self.size, self.alpha, self.beta, self.k
