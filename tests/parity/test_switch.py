"""SwitchNorm against its definition, written down in torch and differentiated by it."""

from itertools import product

import numpy as np
import pytest
import torch
from twins import DTYPES, close, same

import cnorm


def definition(x, state, training, momentum, eps, moving_average):
    """The output and the new running statistics: the paper's formulas, cancellation and all."""
    n, c = x.shape[:2]
    flat = x.reshape(n, c, -1)
    mean_in, var_in = flat.mean(-1, keepdim=True), flat.var(-1, keepdim=True)
    if x.ndim == 2:
        means, variances = [x.mean(1)[:, None, None]], [x.var(1)[:, None, None]]
        batch = x.mean(0)[None, :, None], x.var(0)[None, :, None]
    else:
        second = var_in + mean_in**2
        mean_ln = mean_in.mean(1, keepdim=True)
        means, variances = [mean_in, mean_ln], [var_in, second.mean(1, keepdim=True) - mean_ln**2]
        mean_bn = mean_in.mean(0, keepdim=True)
        batch = mean_bn, second.mean(0, keepdim=True) - mean_bn**2
    running = state.get("running_mean"), state.get("running_var")
    if running[0] is not None:
        if training:
            mean, var = (b.detach().reshape(r.shape) for b, r in zip(batch, running, strict=True))
            if moving_average:
                updates = mean, var
                running = [
                    momentum * r + (1 - momentum) * u for r, u in zip(running, updates, strict=True)
                ]
            else:
                running = [running[0] + mean, running[1] + mean**2 + var]
        else:
            batch = [r.reshape(1, -1, 1) for r in running]
        means.append(batch[0])
        variances.append(batch[1])
    p, q = state["mean_weight"].softmax(0), state["var_weight"].softmax(0)
    mean = sum(w * m for w, m in zip(p, means, strict=True))
    var = sum(w * v for w, v in zip(q, variances, strict=True))
    y = ((flat - mean) / (var + eps).sqrt()).reshape(x.shape)
    return y * state["weight"] + state["bias"], running


SHAPES = {
    "SwitchNorm1d": [(4, 3), (2, 5)],
    "SwitchNorm2d": [(2, 3, 4, 5), (1, 4, 1, 3), (3, 1, 2, 2)],
    "SwitchNorm3d": [(2, 3, 2, 3, 2), (1, 2, 1, 1, 2)],
}
CASES = [
    (name, shape, {"using_moving_average": moving} | ({} if bn is None else {"using_bn": bn}), axis)
    for name, shapes in SHAPES.items()
    for shape, moving, bn, axis in product(
        shapes, (True, False), (None,) if name.endswith("1d") else (True, False), (1, -1)
    )
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.filterwarnings("ignore:var")  # torch, of single elements that it does not use
@pytest.mark.parametrize("case", CASES, ids=str)
def test_definition(case, dtype, rng):
    name, shape, options, axis = case
    norm = getattr(cnorm, name)(shape[1], dtype=dtype, channel_axis=axis, **options)
    for p in norm.parameters():
        p[...] = rng.normal(0.5, 0.5, p.shape)
    for b in norm.buffers():
        b[...] = rng.uniform(0.5, 1.5, b.shape)
    ulps = 50_000 if dtype == np.float64 else 200
    for training in (True, True, False):
        state = {k: torch.tensor(v.astype(np.float64)) for k, v in norm.state_dict().items()}
        for key in ("weight", "bias", "mean_weight", "var_weight"):
            state[key].requires_grad_()
        x, grad = (rng.normal(1, 2, shape).astype(dtype) for _ in range(2))
        their_x = torch.tensor(x.astype(np.float64), requires_grad=True)
        their_y, running = definition(
            their_x, state, training, norm.momentum, norm.eps, norm.using_moving_average
        )
        their_y.backward(torch.tensor(grad.astype(np.float64)))
        norm.train(training).zero_grad()
        with cnorm.enable_grad():
            y = norm(np.moveaxis(x, 1, axis))
        dx = norm.backward(np.moveaxis(grad, 1, axis))
        close(np.moveaxis(y, axis, 1), their_y, ulps, "output")
        close(np.moveaxis(dx, axis, 1), their_x.grad, ulps, "gradient of the input")
        for key, p in norm.named_parameters():
            close(p.grad, state[key].grad, ulps, f"gradient of {key}")
        for buffer, theirs in zip(norm.buffers(), running, strict=False):
            close(buffer, theirs, ulps)


# Names and shapes of the checkpoints of the authors' layer, in their order.
STATES = {
    "SwitchNorm1d": [(1, 3), (1, 3), (2,), (2,), (1, 3), (1, 3)],
    "SwitchNorm2d": [(1, 3, 1, 1), (1, 3, 1, 1), (3,), (3,), (1, 3, 1), (1, 3, 1)],
    "SwitchNorm3d": [(1, 3, 1, 1, 1), (1, 3, 1, 1, 1), (3,), (3,), (1, 3, 1), (1, 3, 1)],
}
KEYS = ["weight", "bias", "mean_weight", "var_weight", "running_mean", "running_var"]


@pytest.mark.parametrize("name", STATES)
def test_state(name):
    norm = getattr(cnorm, name)(3)
    same([(k, v.shape) for k, v in norm.state_dict().items()],
         list(zip(KEYS, STATES[name], strict=True)))  # fmt: skip
    same([float(v.ravel()[0]) for v in norm.state_dict().values()], [1, 0, 1, 1, 0, 0])
    theirs = {k: torch.full(s, 2.0) for k, s in zip(KEYS, STATES[name], strict=True)}
    same(repr(norm.load_state_dict(theirs)), "<All keys matched successfully>")
    if not name.endswith("1d"):
        small = getattr(cnorm, name)(3, using_bn=False, last_gamma=True)
        same([(k, v.shape) for k, v in small.state_dict().items()],
             list(zip(KEYS, [*STATES[name][:2], (2,), (2,)], strict=False)))  # fmt: skip
        same(float(small.weight.sum()), 0.0)


@pytest.mark.parametrize("name", STATES)
def test_sums_become_averages(name, rng):
    shape = {"SwitchNorm1d": (6, 3), "SwitchNorm2d": (4, 3, 2, 5), "SwitchNorm3d": (4, 3, 2, 2, 3)}
    norm = getattr(cnorm, name)(3, using_moving_average=False, dtype=np.float64)
    batches = rng.normal(5, 2, (10, *shape[name]))
    means, variances = [], []
    for batch in batches:
        norm(batch)
        once = getattr(cnorm, name)(3, momentum=0.0, dtype=np.float64)
        once(batch)
        means.append(once.running_mean)
        variances.append(once.running_var)
    norm.average_running_stats(10)
    mean, square = np.mean(means, 0), np.mean(np.square(means) + variances, 0)
    np.testing.assert_allclose(norm.running_mean, mean, rtol=1e-12)
    np.testing.assert_allclose(norm.running_var, square - mean**2, rtol=1e-10)
    with pytest.raises(ValueError, match="at least 1"):
        norm.average_running_stats(0)
    with pytest.raises(RuntimeError, match="no sums to average"):
        getattr(cnorm, name)(3).average_running_stats(1)


@pytest.mark.parametrize("name", STATES)
def test_refusals(name):
    norm = getattr(cnorm, name)(3)
    rank = 1 + int(name[-2]) + (name[-2] != "1")
    for ndim in (*range(rank), rank + 1):
        with pytest.raises(ValueError, match=rf"expected {rank}D input \(got {ndim}D input\)"):
            norm(np.ones((3,) * ndim))
    if rank > 2:
        one = (2, 3) + (1,) * (rank - 2)
        with pytest.raises(ValueError, match="more than 1 spatial element when training, got"):
            norm(np.ones(one))


@pytest.mark.parametrize("activation", ["ReLU", "LeakyReLU", "PReLU", "Hardtanh", "ReLU6"])
@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 5), (2, 3, 2, 2)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_activations(activation, shape, dtype, rng):
    """The twins of torch's own."""
    for arguments in ({}, {"num_parameters": 3}) if activation == "PReLU" else ({},):
        ours = getattr(cnorm, activation)(**arguments).to(dtype)
        theirs = getattr(torch.nn, activation)(**arguments).double()
        same(repr(ours), repr(theirs))
        same(list(ours.state_dict()), list(theirs.state_dict()))
        for _ in range(2):
            x, grad = (rng.normal(size=shape).astype(dtype) for _ in range(2))
            x.flat[:2] = -1, 0  # bounds of Hardtanh and ReLU6
            their_x = torch.tensor(x.astype(np.float64), requires_grad=True)
            their_y = theirs(their_x)
            their_y.backward(torch.tensor(grad.astype(np.float64)))
            close(ours(x), their_y, 2)
            close(ours.backward(grad), their_x.grad, 2)
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            close(p.grad, q.grad, 10)
