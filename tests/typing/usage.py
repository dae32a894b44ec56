"""What a typed program may write. mypy reads this file; nothing runs it."""

from collections import OrderedDict
from pathlib import Path
from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

import cnorm
import cnorm.functional as F
from cnorm import checkpoint, steps

Array = NDArray[Any]
Statistics = NDArray[np.float64]

x: NDArray[np.float32] = np.zeros((2, 3, 4), np.float32)
weight = np.ones(4, np.float32)

# Functions
assert_type(F.layer_norm(x, 4), Array)
assert_type(F.layer_norm(x, (4,), weight, eps=1e-6, out=x), Array)
assert_type(F.layer_norm(x, x.shape[-1:], return_stats=True), tuple[Array, Statistics, Statistics])
assert_type(F.rms_norm([[1.0, 2.0]], [2], return_stats=True), tuple[Array, Statistics])
assert_type(F.add_layer_norm(x, x, 4), tuple[Array, Array])
assert_type(F.batch_norm(x, training=True, channel_axis=-1, negative_slope=0.0), Array)
assert_type(F.layer_norm(x, 4, clip=(None, 6.0)), Array)
y, mean, rstd = F.group_norm(x, 3, return_stats=True)
assert_type(F.group_norm_backward(y, x, 3, mean, rstd), tuple[Array, Array, Array])
assert_type(
    F.group_norm_backward(y, x, 3, mean, rstd, negative_slope=weight),
    tuple[Array, Array, Array, Array],
)
assert_type(F.local_response_norm_backward(y, x, 5), Array)
assert_type(F.local_response_norm_backward(y, x, 5, clip=[-1, 1]), Array)
F.layer_norm(x, 4, clip=1.0)  # type: ignore[call-overload]
assert_type(F.normalize(x, dim=(0, 2), out=x), Array)
y, norms = F.normalize(x, 1, -1, return_stats=True)
assert_type(norms, Statistics)
assert_type(F.normalize_backward(y, x, norms, 1, -1), Array)
F.layer_norm(x, "4")  # type: ignore[arg-type]
F.layer_norm(x, 4, training=True)  # type: ignore[call-overload]
F.local_response_norm(x)  # type: ignore[call-arg]

# Steps
count, center, low, m2 = steps.moments(x, groups=3)
assert_type((count, center), tuple[int, Statistics])
assert_type(steps.apply(x, None, None, m2, bias=[1.0, 0.0, 2.0], groups=3), Array)
assert_type(steps.grad_sums(x, x, center, low, m2)[0], Statistics)
assert_type(steps.grad_apply(x, x, center, low, m2, None, None, m2, count, out=x), Array)
assert_type(steps.grad_moments(x, x, center, low, center, m2), Array)
steps.moments(x, 1)  # type: ignore[call-arg]

# Layers
norm = cnorm.BatchNorm2d(3, dtype=np.float64, channel_axis=-1, activation=cnorm.PReLU(3))
cnorm.LayerNorm(4, activation=cnorm.Hardtanh(max_val=None))
assert_type(cnorm.ReLU6().clip, tuple[float | None, float | None] | None)
assert_type(norm(x), Array)
assert_type(norm.backward(x), Array)
assert_type(norm.eval().half(), cnorm.BatchNorm2d)
assert_type(norm.weight, cnorm.Parameter | None)
net = cnorm.Sequential(cnorm.LayerNorm((4,)), cnorm.ReLU())
for parameter in net.parameters():
    if parameter.grad is not None:
        parameter -= 0.1 * parameter.grad
missing, unexpected = net.load_state_dict(net.state_dict())
assert_type(missing, list[str])
cnorm.LayerNorm()  # type: ignore[call-arg]
cnorm.BatchNorm2d(3, device="cuda")  # type: ignore[arg-type]


class Scale(cnorm.Module):
    """A layer of one's own."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = cnorm.Parameter(np.ones(size))

    def forward(self, x: Array) -> Array:
        self.keep(x)
        return np.asarray(x * self.weight)


# The rest
assert_type(checkpoint.load(Path("x.pt"), prefix="a."), OrderedDict[str, Array])
checkpoint.save("x.npz", norm.state_dict())
cnorm.BatchNorm2d(3).load_state_dict(checkpoint.load("x.safetensors"))
checkpoint.load(3)  # type: ignore[arg-type]
assert_type(checkpoint.keys("x.npz")["a"], checkpoint.ArrayInfo)
assert_type(checkpoint.keys("x.npz")["a"].shape, tuple[int, ...])
checkpoint.save("x.npz", {"model": norm.state_dict(), "optimizer": {0: {"step": 1}}})
with cnorm.no_grad(), cnorm.num_threads(2):
    cnorm.set_num_threads(cnorm.get_num_threads())
