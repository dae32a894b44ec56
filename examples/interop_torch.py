"""A torch network whose norms run in cnorm: the same numbers, and how much sooner."""

import copy
import timeit

import torch
from torch import nn

from cnorm.interop.torch import accelerate

norms = [nn.BatchNorm2d(64), nn.LocalResponseNorm(5), nn.InstanceNorm2d(64), nn.GroupNorm(8, 64)]
model = nn.Sequential(nn.Conv2d(3, 64, 3), *norms, nn.LayerNorm(54), nn.RMSNorm(54))
fast = accelerate(copy.deepcopy(model))

x = torch.randn(8, 3, 56, 56)
assert torch.allclose(fast(x), model(x), rtol=1e-5, atol=1e-5)
x = torch.randn(8, 64, 54, 54, requires_grad=True)


def forward_and_backward(norm):
    torch.autograd.grad(norm(x), [x, *norm.parameters()], x)


for pair in [*zip(model[1:], fast[1:], strict=True)] * 2:  # the first round warms up
    runs = [timeit.repeat(lambda m=m: forward_and_backward(m), number=1, repeat=25) for m in pair]
    before, after = (min(r) * 1000 for r in runs)
    name = type(pair[0]).__name__
    print(f"{name:18} {before:6.2f} ms -> {after:6.2f} ms, {before / after:4.1f} times")
