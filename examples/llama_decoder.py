"""A small Llama-like decoder in NumPy with torch's weights: the same logits, and its norms' time.

Each layer adds to the residual and normalizes the sum: `add_rms_norm` does both in one visit.
"""

import timeit

import numpy as np
import torch
from torch import nn

import cnorm.functional as F

EPS = 1e-6


class TorchLayer(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.RMSNorm(width, eps=EPS)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.RMSNorm(width, eps=EPS)
        self.gate, self.up = (nn.Linear(width, 3 * width, bias=False) for _ in range(2))
        self.down = nn.Linear(3 * width, width, bias=False)

    def forward(self, x, cos, sin):
        n, t, d = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = ((v * cos + torch.cat([-v.chunk(2, -1)[1], v.chunk(2, -1)[0]], -1) * sin)
                for v in qkv[:2])  # fmt: skip
        y = nn.functional.scaled_dot_product_attention(q, k, qkv[2], is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(n, t, d))
        y = self.mlp_norm(x)
        return x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))


class TorchDecoder(nn.Module):
    def __init__(self, words=256, width=128, heads=4, layers=2):
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.layers = nn.ModuleList(TorchLayer(width, heads) for _ in range(layers))
        self.norm = nn.RMSNorm(width, eps=EPS)
        self.head = nn.Linear(width, words, bias=False)

    def forward(self, tokens):
        x = self.embedding(tokens)
        width = x.shape[-1] // self.layers[0].heads
        cos, sin = map(torch.from_numpy, rotation(tokens.shape[1], width))
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.head(self.norm(x))


def rotation(length, width):
    """cos and sin of rotary positions."""
    rate = 10000.0 ** (-np.arange(0, width, 2) / width)
    angle = np.tile(np.arange(length)[:, None] * rate, 2)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


class Decoder:
    """The decoder of the state of a `TorchDecoder`."""

    def __init__(self, state, heads=4):
        self.state = {name: value.numpy() for name, value in state.items()}
        self.heads = heads
        self.layers = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("layers."))

    def weight(self, *names):
        return self.state[".".join(map(str, (*names, "weight")))]

    def attention(self, i, x, cos, sin):
        n, t, d = x.shape
        qkv = (x @ self.weight("layers", i, "qkv").T).reshape(n, t, 3, self.heads, -1)
        q, k, v = qkv.transpose(2, 0, 3, 1, 4)
        half = q.shape[-1] // 2
        q, k = (a * cos + np.concatenate([-a[..., half:], a[..., :half]], -1) * sin for a in (q, k))
        scores = q @ k.swapaxes(-1, -2) / np.sqrt(np.float32(q.shape[-1]))
        scores = np.where(np.tri(t, dtype=bool), scores, -np.inf)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        y = (p / p.sum(-1, keepdims=True)) @ v
        return y.transpose(0, 2, 1, 3).reshape(n, t, d) @ self.weight("layers", i, "out").T

    def mlp(self, i, x):
        gate, up = (x @ self.weight("layers", i, name).T for name in ("gate", "up"))
        return (gate / (1 + np.exp(-gate)) * up) @ self.weight("layers", i, "down").T

    def __call__(self, tokens):
        total = self.weight("embedding")[tokens]
        d = total.shape[-1]
        cos, sin = rotation(tokens.shape[1], d // self.heads)
        y = F.rms_norm(total, d, self.weight("layers", 0, "attention_norm"), EPS)
        for i in range(self.layers):
            norm = self.weight("layers", i, "mlp_norm")
            y, total = F.add_rms_norm(self.attention(i, y, cos, sin), total, d, norm, EPS)
            last = i + 1 == self.layers
            norm = self.weight("norm") if last else self.weight("layers", i + 1, "attention_norm")
            y, total = F.add_rms_norm(self.mlp(i, y), total, d, norm, EPS)
        return y @ self.weight("head").T


def best_ms(call):
    return 1000 * min(timeit.repeat(call, number=1, repeat=20))


@torch.no_grad()
def main(tokens=(8, 64), time_of=(8, 512, 1024)):
    """Print the difference and the times; return the largest difference over the largest logit."""
    torch.manual_seed(0)
    theirs = TorchDecoder()
    for name, parameter in theirs.named_parameters():
        if "norm" in name:
            nn.init.normal_(parameter, 1, 0.1)
    words = torch.randint(0, 256, tokens)
    expected = theirs(words).numpy()
    logits = Decoder(theirs.state_dict())(words.numpy())
    difference = np.abs(logits - expected).max() / np.abs(expected).max()
    print(f"largest difference of the logits, relative {difference:.1e}")

    x, residual = torch.randn(2, *time_of)
    norm = nn.RMSNorm(time_of[-1], eps=EPS)
    a, b, weight = x.numpy(), residual.numpy(), norm.weight.numpy()
    torch_ms = best_ms(lambda: norm(x + residual))
    cnorm_ms = best_ms(lambda: F.add_rms_norm(a, b, time_of[-1], weight, EPS))
    print(f"add and norm, {time_of}: torch {torch_ms:.2f} ms, cnorm {cnorm_ms:.2f} ms")
    return difference


if __name__ == "__main__":
    main()
