"""The reference against the plain definitions, a unit at a time, and its own differences."""

import numpy as np
import pytest
from operations import CLIP, OPERATIONS

from cnorm import _reference as R

EPS = 1e-5


def _normalized(unit, eps=EPS):
    return (unit - unit.mean()) / np.sqrt(unit.var() + eps)


@pytest.fixture
def x(rng):
    return rng.normal(3, 2, (4, 6, 3, 5))


@pytest.fixture
def affine(rng):
    return rng.normal(size=6), rng.normal(size=6)


def _columns(values):
    return values.reshape(-1, 1, 1)


def test_batch_norm(x, affine):
    y = R.batch_norm(x, None, None, *affine, training=True)
    for c, (weight, bias) in enumerate(zip(*affine, strict=True)):
        np.testing.assert_allclose(y[:, c], _normalized(x[:, c]) * weight + bias)


def test_batch_norm_in_evaluation(x, affine):
    mean, var = x.mean((0, 2, 3)) + 0.5, x.var((0, 2, 3)) + 0.5
    y, used, rstd = R.batch_norm(x, mean, var, *affine, return_stats=True)
    expected = (x - _columns(mean)) / np.sqrt(_columns(var) + EPS)
    np.testing.assert_allclose(y, expected * _columns(affine[0]) + _columns(affine[1]))
    np.testing.assert_array_equal(used, mean)
    np.testing.assert_allclose(rstd, 1 / np.sqrt(var + EPS))


def test_instance_norm(x, affine):
    y = R.instance_norm(x, None, None, *affine)
    for n, c in np.ndindex(4, 6):
        expected = _normalized(x[n, c]) * affine[0][c] + affine[1][c]
        np.testing.assert_allclose(y[n, c], expected)


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_group_norm(x, affine, groups):
    y = R.group_norm(x, groups, *affine)
    for sample, result in zip(x, y, strict=True):
        expected = np.concatenate([_normalized(g) for g in np.split(sample, groups)])
        expected = expected * _columns(affine[0]) + _columns(affine[1])
        np.testing.assert_allclose(result, expected)


def test_layer_norm(x, rng):
    weight, bias = rng.normal(size=(2, 3, 5))
    y = R.layer_norm(x, (3, 5), weight, bias)
    for i in np.ndindex(4, 6):
        np.testing.assert_allclose(y[i], _normalized(x[i]) * weight + bias)


def test_rms_norm(x, rng):
    weight = rng.normal(size=5)
    y = R.rms_norm(x, 5, weight, eps=EPS)
    for i in np.ndindex(4, 6, 3):
        expected = x[i] / np.sqrt(np.mean(x[i] ** 2) + EPS) * weight
        np.testing.assert_allclose(y[i], expected)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, 13])
def test_local_response_norm(x, size):
    y = R.local_response_norm(x, size, alpha=0.3, beta=0.6, k=1.5)
    for c in range(6):
        window = x[:, max(c - size // 2, 0) : c + (size - 1) // 2 + 1]
        scale = 1.5 + 0.3 / size * (window**2).sum(1)
        np.testing.assert_allclose(y[:, c], x[:, c] / scale**0.6)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, 13])
def test_cross_map_lrn(x, size):
    """The running sum of torch's legacy layer, from which channel 0 is never taken."""
    y = R.cross_map_lrn(x, size, alpha=0.3, beta=0.6, k=1.5)
    square, pre_pad = x**2, int((size - 1) / 2 + 1)
    running = square[:, :pre_pad].sum(1)
    for c in range(6):
        if c > 0 and c < 6 - pre_pad + 1:
            running = running + square[:, c + pre_pad - 1]
        if c > pre_pad:
            running = running - square[:, c - pre_pad]
        np.testing.assert_allclose(y[:, c], x[:, c] / (1.5 + 0.3 / size * running) ** 0.6)


def _softmax(logits):
    return np.exp(logits) / np.exp(logits).sum()


@pytest.mark.parametrize("mixed", [2, 3])
def test_switch_norm(x, affine, rng, mixed):
    """The authors' formulas, written out."""
    mean_weight, var_weight = rng.normal(size=(2, mixed))
    flat = x.reshape(4, 6, -1)
    mean_in, var_in = flat.mean(-1, keepdims=True), flat.var(-1, keepdims=True, ddof=1)
    temp = var_in + mean_in**2
    mean_ln, mean_bn = mean_in.mean(1, keepdims=True), mean_in.mean(0, keepdims=True)
    var_ln = temp.mean(1, keepdims=True) - mean_ln**2
    var_bn = temp.mean(0, keepdims=True) - mean_bn**2
    means, variances = [mean_in, mean_ln, mean_bn], [var_in, var_ln, var_bn]
    mean = sum(p * m for p, m in zip(_softmax(mean_weight), means, strict=False))
    var = sum(p * v for p, v in zip(_softmax(var_weight), variances, strict=False))
    expected = ((flat - mean) / np.sqrt(var + EPS)).reshape(x.shape)
    running = [np.zeros((1, 6, 1)), np.zeros((1, 6, 1))]
    y = R.switch_norm(x, *running, *affine, mean_weight, var_weight, training=True)
    np.testing.assert_allclose(y, expected * _columns(affine[0]) + _columns(affine[1]))
    if mixed == 3:
        np.testing.assert_allclose(running[0], 0.1 * mean_bn)
        np.testing.assert_allclose(running[1], 0.1 * var_bn)


def test_switch_norm_of_rows(affine, rng):
    x = rng.normal(1, 2, (7, 6))
    mean_weight, var_weight = rng.normal(size=(2, 2))
    p, q = _softmax(mean_weight), _softmax(var_weight)
    mean = p[0] * x.mean(1, keepdims=True) + p[1] * x.mean(0)
    var = q[0] * x.var(1, keepdims=True, ddof=1) + q[1] * x.var(0, ddof=1)
    sums = [np.zeros(6), np.zeros(6)]
    y = R.switch_norm(
        x, *sums, *affine, mean_weight, var_weight, training=True, using_moving_average=False
    )
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + EPS) * affine[0] + affine[1])
    np.testing.assert_allclose(sums[0], x.mean(0))
    np.testing.assert_allclose(sums[1], x.mean(0) ** 2 + x.var(0, ddof=1))


def test_running_statistics(x):
    for function, axes in [(R.batch_norm, (0, 2, 3)), (R.instance_norm, (2, 3))]:
        mean, var = np.full(6, 0.5), np.full(6, 2.0)
        options = {"training": True} if function is R.batch_norm else {}
        function(x, mean, var, momentum=0.3, **options)
        batch_mean, batch_var = x.mean(axes), x.var(axes, ddof=1)
        if function is R.instance_norm:
            batch_mean, batch_var = batch_mean.mean(0), batch_var.mean(0)
        np.testing.assert_allclose(mean, 0.7 * 0.5 + 0.3 * batch_mean)
        np.testing.assert_allclose(var, 0.7 * 2.0 + 0.3 * batch_var)


def test_epilogue(x):
    plain = R.group_norm(x, 3)
    for slope in (0.0, 0.2, np.array([0.2]), np.linspace(-1, 1, 6)):
        each = slope if np.size(slope) == 1 else slope.reshape(6, 1, 1)
        expected = np.where(plain > 0, plain, plain * each)
        np.testing.assert_allclose(R.group_norm(x, 3, negative_slope=slope), expected)


def test_residual(x, rng):
    residual = rng.normal(size=x.shape)
    y, total = R.add_layer_norm(x, residual, 5)
    np.testing.assert_array_equal(total, x + residual)
    np.testing.assert_array_equal(y, R.layer_norm(x + residual, 5))
    y, total = R.add_rms_norm(x, residual, 5, residual_out=residual)
    assert total is residual
    np.testing.assert_array_equal(y, R.rms_norm(residual, 5))


# --- gradients --------------------------------------------------------------------------------


def _numerical(loss, array, step=1e-4):
    """The gradient by differences of the fourth order, in longdouble."""
    gradient = np.empty(array.shape)
    for i in np.ndindex(array.shape):
        value = array[i]
        at = {}
        for k in (-2, -1, 1, 2):
            array[i] = value + k * step
            at[k] = loss()
        array[i] = value
        gradient[i] = (8 * (at[1] - at[-1]) - (at[2] - at[-2])) / (12 * step)
    return gradient


@pytest.mark.parametrize(
    "activation",
    [
        {},
        {"slope": 0.1},
        {"slope": np.array([0.3])},
        {"slope": np.array([-0.2, 0.5, 0.1, 0.7])},
        {"clip": CLIP},
        {"clip": (None, 0.5)},
    ],
    ids=str,
)
def test_gradients_are_those_of_finite_differences(operation, activation, rng):
    if not operation.takes_clip:
        activation = {}
    slope = activation.get("slope")
    kinks = [0] if slope is not None else [b for b in activation.get("clip", ()) if b is not None]
    if isinstance(slope, np.ndarray):
        activation = {"slope": slope.astype(np.longdouble)}
    for shape in filter(lambda s: operation.accepts(s, 1), [(5, 4), (3, 4, 3), (2, 4, 2, 2)]):
        x, dy = rng.normal(0.5, 1, (2, *shape)).astype(np.longdouble)
        p = operation.draw(rng, shape, 1, np.longdouble)
        y = operation.run(R, x, dy, p)["y"]
        for kink in kinks:
            dy[np.abs(y - kink) < 0.05] = 0  # not to step over it
        _gradients_agree(operation, x, dy, p, **activation)


def _gradients_agree(operation, x, dy, p, **activation):
    def loss():
        return (operation.run(R, x, dy, p, **activation)["y"] * dy).sum()

    results = operation.run(R, x, dy, p, **activation)
    arrays = p | {"input": x} | activation
    for name in [n for n in results if n.startswith("grad_")]:
        if name == "grad_input" and "grad_sum" in p:
            continue  # there the residual follows the input: the next test
        numerical = _numerical(loss, arrays[name.removeprefix("grad_")])
        error = np.abs(results[name] - numerical).max()
        assert error <= 1e-6 * np.abs(numerical).max(), f"{name}, {x.shape}"


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_gradient_of_a_residual_sum(norm, rng):
    total, dy, grad_sum = rng.normal(size=(3, 4, 5))
    weight = rng.normal(size=5)
    _, *stats = getattr(R, norm)(total, 5, weight, return_stats=True)
    plain = getattr(R, f"{norm}_backward")(dy, total, 5, *stats, weight)
    added = getattr(R, f"add_{norm}_backward")(dy, grad_sum, total, 5, *stats, weight)
    np.testing.assert_allclose(added[0], plain[0] + grad_sum)
    np.testing.assert_allclose(added[1], plain[1])
    alone = getattr(R, f"add_{norm}_backward")(dy, None, total, 5, *stats, weight)
    np.testing.assert_allclose(alone[0], plain[0])


def test_channel_axis_says_where_the_channels_are(rng):
    x, dy = rng.normal(size=(2, 3, 6, 4, 5))
    for operation in OPERATIONS:
        if operation.by_channel:
            p = operation.draw(rng, x.shape, 1)
            expected = operation.run(R, x, dy, p)
            moved = (np.moveaxis(a, 1, -1) for a in (x, dy))
            actual = operation.run(R, *moved, p, axis=-1)
            for name in ("y", "grad_input"):
                actual[name] = np.moveaxis(actual[name], -1, 1)
            for name in set(expected) - {"stats"}:
                np.testing.assert_allclose(actual[name], expected[name], err_msg=f"{operation}")
