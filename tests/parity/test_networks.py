"""Networks that move between torch and cnorm, and train in both alike."""

import numpy as np
import pytest
import torch

import cnorm

SHAPE = (8, 4, 6, 6)


def mixed(lib):
    return lib.Sequential(
        lib.BatchNorm2d(4),
        lib.GroupNorm(2, 4),
        lib.InstanceNorm2d(4, affine=True, track_running_stats=True),
        lib.LayerNorm((6, 6)),
        lib.RMSNorm(6),
    )


def descend(net, rate=0.1):
    for p in net.parameters():
        p[...] -= rate * p.grad
    net.zero_grad()


def train_ours(net, x, target, steps):
    losses = []
    for _ in range(steps):
        y = net(x)
        losses.append(np.mean((y - target) ** 2))
        net.backward(2 * (y - target) / y.size)
        descend(net)
    return losses


def train_theirs(net, x, target, steps):
    x, target = torch.from_numpy(x), torch.from_numpy(target)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    losses = []
    for _ in range(steps):
        loss = ((net(x) - target) ** 2).mean()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def as_tensors(state):
    return {key: torch.from_numpy(value) for key, value in state.items()}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_there_and_back(dtype, rng):
    x, target = (rng.normal(size=SHAPE).astype(dtype) for _ in range(2))
    theirs, ours = mixed(torch.nn).to(torch.from_numpy(x).dtype), mixed(cnorm).to(dtype)
    train_theirs(theirs, x, target, 20)
    ours.load_state_dict(theirs.state_dict())
    after = compare_evaluation(ours, theirs, x)
    train_ours(ours, x, target, 20)
    assert np.abs(ours.eval()(x) - after).max() > 1e-2  # it did train
    theirs.load_state_dict(as_tensors(ours.state_dict()))
    compare_evaluation(ours, theirs, x)
    assert int(theirs[0].num_batches_tracked) == 40


def compare_evaluation(ours, theirs, x):
    """The outputs in evaluation, which agree to 1e-6; back to training mode."""
    y = ours.eval()(x)
    with torch.no_grad():
        np.testing.assert_allclose(y, theirs.eval()(torch.from_numpy(x)), rtol=1e-6, atol=1e-6)
    ours.train()
    theirs.train()
    return y


class Linear(cnorm.Module):
    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = cnorm.Parameter(weight), cnorm.Parameter(bias)

    def forward(self, x):
        self.keep(x)
        return x @ self.weight.T + self.bias

    def backward(self, grad_output):
        (x,) = self.kept()
        self.accumulate((self.weight, grad_output.T @ x), (self.bias, grad_output.sum(0)))
        return grad_output @ self.weight


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-11)])
@pytest.mark.parametrize(
    "norm",
    [("BatchNorm1d", (16,)), ("LayerNorm", (16,)), ("GroupNorm", (2, 16)), ("RMSNorm", (16,))],
    ids=lambda norm: norm[0],
)
def test_same_losses_for_50_steps(norm, dtype, tolerance, rng):
    name, arguments = norm
    torch.manual_seed(0)
    x, target = (rng.normal(size=(32, n)).astype(dtype) for n in (8, 3))
    theirs = torch.nn.Sequential(
        torch.nn.Linear(8, 16), getattr(torch.nn, name)(*arguments), torch.nn.ReLU(),
        torch.nn.Linear(16, 3),
    ).to(torch.from_numpy(x).dtype)  # fmt: skip
    first, last = (
        Linear(*(p.detach().numpy().copy() for p in layer.parameters()))
        for layer in (theirs[0], theirs[3])
    )
    norm = getattr(cnorm, name)(*arguments, dtype=dtype)
    ours = cnorm.Sequential(first, norm, cnorm.ReLU(), last)
    losses = train_ours(ours, x, target, 50), train_theirs(theirs, x, target, 50)
    np.testing.assert_allclose(*losses, rtol=0, atol=tolerance)
    assert losses[0][-1] < 0.7 * losses[0][0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "norm",
    [cnorm.BatchNorm1d(4), cnorm.LayerNorm(4), cnorm.GroupNorm(2, 4), cnorm.ReLU()],
    ids=lambda norm: type(norm).__name__,
)
def test_tensors_are_input(norm, dtype, rng):
    x = torch.from_numpy(rng.normal(size=(6, 4))).to(dtype)
    y = norm(x)
    assert y.dtype.name == str(dtype).removeprefix("torch.")
    assert norm.backward(x).dtype == y.dtype
