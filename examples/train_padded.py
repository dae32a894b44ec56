"""Train on padded sequences, in NumPy: batch norm with the padding, and without it.

The digits are the 1797 images of 8 by 8 pixels that ship inside scikit-learn, read row by row as a
sequence of 8 channels. Each is read at a speed of its own, so that sequences have 8 to 32 steps; a
batch is padded with zeros. The same network of convolutions over time is trained twice from the
same weights, and reads the held-out digits.

    python examples/train_padded.py
"""

import argparse

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import cnorm

WIDTH, LONGEST, TAPS = 16, 32, 3


class Convolution(cnorm.Module):
    """A convolution over time of (N, C, L) input, which keeps the length."""

    def __init__(self, inputs, outputs, rng):
        super().__init__()
        weight = rng.normal(0, 1 / np.sqrt(TAPS * inputs), (outputs, inputs, TAPS))
        self.weight = cnorm.Parameter(weight.astype(np.float32))

    def windows(self, x):
        padded = np.pad(x, ((0, 0), (0, 0), (TAPS // 2, TAPS // 2)))
        return np.lib.stride_tricks.sliding_window_view(padded, TAPS, 2)  # (N, C, L, taps)

    def forward(self, x):
        self.keep(x)
        y = np.einsum("nclt,oct->nol", self.windows(x), self.weight, optimize=True)
        return np.ascontiguousarray(y)

    def backward(self, grad_output):
        (x,) = self.kept()
        grad = np.einsum("nol,nclt->oct", grad_output, self.windows(x), optimize=True)
        self.accumulate((self.weight, grad))
        back = self.weight[:, :, ::-1]
        return np.einsum("nolt,oct->ncl", self.windows(grad_output), back, optimize=True)


class Network:
    """Two convolutions with batch norm and ReLU, the mean over time, and a linear layer.

    All but the norms see the padding as it is: zeros, which add nothing. `masked` says whether the
    norms leave it out too.
    """

    def __init__(self, masked, rng):
        self.masked = masked
        sizes = [(8, WIDTH), (WIDTH, WIDTH)]
        self.convolutions = [Convolution(a, b, rng) for a, b in sizes]
        self.norms = [cnorm.BatchNorm1d(b, activation=cnorm.ReLU()) for _, b in sizes]
        self.last = cnorm.Parameter(rng.normal(0, 0.1, (WIDTH, 10)).astype(np.float32))

    def parameters(self):
        modules = self.convolutions + self.norms
        return [p for module in modules for p in module.parameters()] + [self.last]

    def train(self, mode):
        for module in self.convolutions + self.norms:
            module.train(mode)

    def forward(self, x, where):
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = norm(convolution(x), where=where if self.masked else None)
            if not self.masked:
                x = x * where  # what padding became must not reach its neighbours
        self.where, self.share = where, 1 / where.sum(2, dtype=np.float32)
        self.pooled = x.sum(2) * self.share
        return self.pooled @ self.last

    def backward(self, grad):
        self.last.grad = self.pooled.T @ grad
        grad = (grad @ self.last.T * self.share)[:, :, None] * self.where
        for convolution, norm in zip(self.convolutions[::-1], self.norms[::-1], strict=True):
            grad = convolution.backward(norm.backward(grad))
            if not self.masked:
                grad = grad * self.where


def sequences(images, rng):
    """Images (N, 8, 8) as sequences (8, length), each read at a speed of its own."""
    found = []
    for image in images:
        steps = np.linspace(0, 7, rng.integers(8, LONGEST + 1))
        low = np.minimum(steps.astype(int), 6)
        part = (steps - low)[:, None]
        rows = image[low] * (1 - part) + image[low + 1] * part
        found.append(rows.T.astype(np.float32))
    return found


def padded(parts, length):
    """A batch (N, 8, length) and its mask (N, 1, length)."""
    x = np.zeros((len(parts), 8, length), np.float32)
    for row, part in zip(x, parts, strict=True):
        row[:, : part.shape[1]] = part
    lengths = np.array([part.shape[1] for part in parts])
    return x, np.arange(length) < lengths[:, None, None]


def accuracy(network, parts, digits):
    """The share of digits that are right."""
    network.train(False)
    found = network.forward(*padded(parts, LONGEST)).argmax(1)
    network.train(True)
    return float(np.mean(found == digits))


def fit(network, parts, digits, epochs, rng, batch_size=64, rate=0.05, momentum=0.9):
    speeds = [np.zeros_like(p) for p in network.parameters()]
    for _ in range(epochs):
        order = rng.permutation(len(parts))
        for first in range(0, len(order) - batch_size + 1, batch_size):
            chosen = order[first : first + batch_size]
            batch = [parts[i] for i in chosen]
            x, where = padded(batch, max(part.shape[1] for part in batch))
            scores = network.forward(x, where)
            grad = np.exp(scores - scores.max(1, keepdims=True))
            grad /= grad.sum(1, keepdims=True)
            grad[np.arange(batch_size), digits[chosen]] -= 1
            for module in network.convolutions + network.norms:
                module.zero_grad()
            network.backward(grad / np.float32(batch_size))
            for parameter, speed in zip(network.parameters(), speeds, strict=True):
                speed *= momentum
                speed += parameter.grad
                parameter -= np.float32(rate) * speed


def main(arguments=None):
    """Train both; return the share of held-out digits that each gets right."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=8)
    options = parser.parse_args(arguments)
    images, digits = load_digits(return_X_y=True)
    parts = sequences(images.reshape(-1, 8, 8) / 16, np.random.default_rng(1))
    data = train_test_split(parts, digits, test_size=1 / 3, random_state=0)
    train_parts, test_parts, train_digits, test_digits = data
    results = {}
    for name, masked in (("counts the padding", False), ("where=mask", True)):
        network = Network(masked, np.random.default_rng(0))
        fit(network, train_parts, train_digits, options.epochs, np.random.default_rng(2))
        results[name] = accuracy(network, test_parts, test_digits)
        print(f"batch norm, {name:<20}{results[name]:>8.1%}")
    return results


if __name__ == "__main__":
    main()
