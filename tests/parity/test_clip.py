"""A norm with fused bounds is torch's norm, then torch's Hardtanh or ReLU6."""

import numpy as np
import pytest
import torch
from twins import DTYPES, close, same

import cnorm

BOUNDS = {
    "Hardtanh": lambda m: m.Hardtanh(),
    "narrow": lambda m: m.Hardtanh(-0.25, 0.5),
    "ReLU6": lambda m: m.ReLU6(),
    "one side": lambda m: m.Hardtanh(-0.5, float("inf")),
}
NORMS = {
    "BatchNorm2d": ((3,), (2, 3, 4, 5)),
    "InstanceNorm1d": ((3,), (2, 3, 7)),
    "GroupNorm": ((2, 4), (2, 4, 5)),
    "LayerNorm": (((4, 6),), (3, 4, 6)),
    "RMSNorm": ((6,), (3, 4, 6)),
    "LocalResponseNorm": ((3,), (2, 4, 5)),
}


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("name", NORMS)
def test_norms_with_bounds(name, bounds, dtype, rng):
    arguments, shape = NORMS[name]
    ours = getattr(cnorm, name)(*arguments, activation=BOUNDS[bounds](cnorm)).to(dtype)
    norm = getattr(torch.nn, name)(*arguments).double()
    theirs = torch.nn.Sequential(norm, BOUNDS[bounds](torch.nn))
    same(repr(ours.activation), repr(theirs[1]))
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        p[...] = rng.uniform(0.5, 1.5, p.shape)
        q.data[...] = torch.tensor(p.astype(np.float64))
    for training in (True, False):
        ours.train(training)
        theirs.train(training)
        x, grad = (rng.normal(size=shape).astype(dtype) for _ in range(2))
        their_x = torch.tensor(x.astype(np.float64), requires_grad=True)
        their_y = theirs(their_x)
        their_y.backward(torch.tensor(grad.astype(np.float64)))
        with cnorm.enable_grad():
            close(ours(x), their_y, 10)
            close(ours.backward(grad), their_x.grad, 40)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        close(p.grad, q.grad, 40)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_at_a_bound_as_hardtanh_backward_has_them(dtype):
    """Equal values, and so equal gradients, of every kind of number."""
    x = np.array([-np.inf, -2, -1, -0.5, -0.0, 0.0, 0.5, 1, 2, np.inf, np.nan], dtype)
    for low, high in [(-1.0, 1.0), (0.0, 0.5), (-0.5, np.inf), (-np.inf, 1.0), (0.5, 1.0)]:
        ours = cnorm.Hardtanh(low, high)
        y, dx = ours(x), ours.backward(np.ones_like(x))
        their_x = torch.tensor(x.astype(np.float64), requires_grad=True)
        their_y = torch.nn.functional.hardtanh(their_x, low, high)
        their_y.sum().backward()
        np.testing.assert_array_equal(y.astype(np.float64), their_y.detach().numpy())
        np.testing.assert_array_equal(dx.astype(np.float64), their_x.grad.numpy())
