"""A torch network whose norms run in cnorm: the same numbers, sooner."""

import copy
import timeit

import torch
from torch import nn

from cnorm.interop.torch import accelerate

norms = [nn.BatchNorm2d(64), nn.LocalResponseNorm(5), nn.InstanceNorm2d(64), nn.GroupNorm(8, 64)]
model = nn.Sequential(nn.Conv2d(3, 64, 3), *norms, nn.Flatten(2), nn.LayerNorm(54 * 54))
fast = accelerate(copy.deepcopy(model))

x = torch.randn(8, 3, 56, 56)
assert torch.allclose(fast(x), model(x), rtol=1e-5, atol=1e-5)
for name, network in [("torch", model), ("torch, its norms in cnorm", fast)]:
    seconds = min(timeit.repeat(lambda n=network: n(x).sum().backward(), number=1, repeat=5))
    print(f"{name}: {seconds * 1000:.0f} ms, forward and backward")
