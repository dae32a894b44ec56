"""A ConvNeXt block in NumPy with torch's weights: the same numbers, and the time of its norm.

The block normalizes the channels of (N, C, H, W) images. torch permutes, normalizes the last axis
and permutes back; cnorm takes `axis=1`.
"""

import timeit

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import nn

import cnorm


class TorchBlock(nn.Module):
    """As in "A ConvNet for the 2020s", arXiv:2201.03545."""

    def __init__(self, channels):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.expand = nn.Linear(channels, 4 * channels)
        self.project = nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.full((channels,), 0.1))

    def forward(self, x):
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.project(nn.functional.gelu(self.expand(y), approximate="tanh"))
        return x + (self.gamma * y).permute(0, 3, 1, 2)


class Block:
    """The same, of the state of a `TorchBlock`."""

    def __init__(self, state):
        self.state = {name: value.numpy() for name, value in state.items()}
        self.norm = cnorm.LayerNorm(len(self.state["gamma"]), eps=1e-6, axis=1).eval()
        self.norm.load_state_dict({k: self.state[f"norm.{k}"] for k in ("weight", "bias")})

    def depthwise(self, x):
        padded = np.pad(x, [(0, 0), (0, 0), (3, 3), (3, 3)])
        windows = sliding_window_view(padded, (7, 7), (2, 3))
        kernel, bias = self.state["depthwise.weight"], self.state["depthwise.bias"]
        return np.einsum("nchwij,cij->nchw", windows, kernel[:, 0]) + bias[:, None, None]

    def linear(self, name, x):
        """A linear layer over the channels, which stay where they are."""
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        n, c, h, w = x.shape
        return (weight @ x.reshape(n, c, h * w)).reshape(n, -1, h, w) + bias[:, None, None]

    def __call__(self, x):
        y = self.linear("expand", self.norm(self.depthwise(x)))
        gelu = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi).astype(y.dtype) * (y + 0.044715 * y**3)))
        return x + self.state["gamma"][:, None, None] * self.linear("project", gelu)


def best_ms(call):
    return 1000 * min(timeit.repeat(call, number=1, repeat=20))


@torch.no_grad()
def main(shape=(8, 96, 56, 56)):
    """Print the difference and the times; return the largest difference."""
    torch.manual_seed(0)
    theirs = TorchBlock(shape[1])
    nn.init.normal_(theirs.norm.weight, 1, 0.1)
    nn.init.normal_(theirs.norm.bias, 0, 0.1)
    ours = Block(theirs.state_dict())
    x = torch.randn(shape)
    difference = np.abs(ours(x.numpy()) - theirs(x).numpy()).max()
    print(f"largest difference of the block {difference:.1e}")

    image = np.ascontiguousarray(x.numpy())
    torch_ms = best_ms(lambda: theirs.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
    cnorm_ms = best_ms(lambda: ours.norm(image))
    print(f"its norm, {shape}: torch {torch_ms:.2f} ms, cnorm {cnorm_ms:.2f} ms")
    return difference


if __name__ == "__main__":
    main()
