"""Train on handwritten digits, in NumPy, with and without a norm.

The digits are the 1797 images of 8 by 8 pixels that ship inside scikit-learn; a third of them is
held out. The same deep, narrow network is trained four times from the same weights: with
BatchNorm1d, with LayerNorm, with GroupNorm, and without a norm.

    python examples/train_digits.py          # prints a table, writes train_digits.png
"""

import argparse
import time

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import cnorm

WIDTH, DEPTH = 64, 4
NORMS = {
    "BatchNorm1d": lambda: cnorm.BatchNorm1d(WIDTH),
    "LayerNorm": lambda: cnorm.LayerNorm(WIDTH),
    "GroupNorm": lambda: cnorm.GroupNorm(8, WIDTH),
    "no norm": None,
}


class Linear(cnorm.Module):
    """``x @ weight + bias``: how a layer of one's own is made."""

    def __init__(self, inputs, outputs, rng):
        super().__init__()
        weight = rng.uniform(-1, 1, (inputs, outputs)) / np.sqrt(inputs)
        self.weight = cnorm.Parameter(weight.astype(np.float32))
        self.bias = cnorm.Parameter(np.zeros(outputs, np.float32))

    def forward(self, x):
        self.keep(x)  # for backward; kept in training only
        return x @ self.weight + self.bias

    def backward(self, grad_output):
        (x,) = self.kept()
        self.accumulate((self.weight, x.T @ grad_output), (self.bias, grad_output.sum(0)))
        return grad_output @ self.weight.T


def make_network(norm, rng):
    """Return Linear, norm, ReLU a few times over, then Linear to the ten digits."""
    layers, inputs = [], 64
    for _ in range(DEPTH):
        layers.append(Linear(inputs, WIDTH, rng))
        if norm is not None:
            layers.append(norm())
        layers.append(cnorm.ReLU())
        inputs = WIDTH
    return cnorm.Sequential(*layers, Linear(WIDTH, 10, rng))


def cross_entropy(scores, digits):
    """Return the mean loss and its gradient with respect to the scores."""
    rows = np.arange(len(digits))
    shifted = scores - scores.max(1, keepdims=True)
    log_probability = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    grad = np.exp(log_probability)
    grad[rows, digits] -= 1
    return -log_probability[rows, digits].mean(), grad / np.float32(len(digits))


def accuracy(network, images, digits):
    network.eval()
    found = network(images).argmax(1)
    network.train()
    return float((found == digits).mean())


def train(name, data, epochs, batch_size=64, rate=0.02, momentum=0.9):
    """Train one network by gradient descent with momentum; return its curves and its time."""
    images, test_images, digits, test_digits = data
    network = make_network(NORMS[name], np.random.default_rng(0))
    parameters = list(network.parameters())
    velocities = [np.zeros_like(parameter) for parameter in parameters]
    order = np.random.default_rng(1)
    losses, accuracies, seconds = [], [], 0.0
    with tqdm(range(epochs), desc=f"{name:12}", unit="epoch") as bar:
        for epoch in bar:
            step = rate * (1 - epoch / epochs)  # smaller and smaller
            start, total = time.perf_counter(), 0.0
            shuffled = order.permutation(len(images))
            for i in range(0, len(images) - batch_size + 1, batch_size):
                batch = shuffled[i : i + batch_size]
                loss, grad = cross_entropy(network(images[batch]), digits[batch])
                network.zero_grad()
                network.backward(grad)
                for parameter, velocity in zip(parameters, velocities, strict=True):
                    velocity *= momentum
                    velocity -= step * parameter.grad
                    parameter += velocity
                total += loss
            seconds += time.perf_counter() - start
            losses.append(total / (len(images) // batch_size))
            accuracies.append(accuracy(network, test_images, test_digits))
            bar.set_postfix(loss=f"{losses[-1]:.4f}", held_out=f"{accuracies[-1]:.1%}")
    return {"losses": losses, "accuracies": accuracies, "seconds": seconds}


def draw(curves, path):
    """Write the picture: loss in training, and accuracy on the held-out third."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
    for name, curve in curves.items():
        style = {"color": "black", "linestyle": "--"} if name == "no norm" else {}
        epochs = range(1, len(curve["losses"]) + 1)
        left.semilogy(epochs, curve["losses"], label=name, **style)
        right.plot(epochs, [100 * a for a in curve["accuracies"]], label=name, **style)
    left.set(title="training loss", xlabel="epoch")
    right.set(title="accuracy on the held-out third, %", xlabel="epoch", ylim=(80, 100))
    right.axhline(97, color="#bbbbbb", linewidth=1, zorder=0)
    left.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["right", "top"]].set_visible(False)
    figure.suptitle("The same network, the same first weights, four times")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--picture", default="train_digits.png", help="where the picture goes")
    args = parser.parse_args(argv)

    digits = load_digits()
    images = (digits.data / 16).astype(np.float32)
    data = train_test_split(
        images, digits.target, test_size=1 / 3, random_state=0, stratify=digits.target
    )
    curves = {name: train(name, data, args.epochs) for name in NORMS}

    print(f"\n{'':12}  {'loss':>8}  {'held out':>8}  {'time':>7}")
    for name, curve in curves.items():
        loss, correct, seconds = curve["losses"][-1], curve["accuracies"][-1], curve["seconds"]
        print(f"{name:12}  {loss:8.5f}  {correct:8.1%}  {seconds:5.2f} s")
    draw(curves, args.picture)
    print(f"wrote {args.picture}")
    return curves


if __name__ == "__main__":
    main()
