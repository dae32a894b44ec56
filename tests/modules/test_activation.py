"""Activations, alone and carried by a norm."""

import pickle

import ml_dtypes
import numpy as np
import pytest

import cnorm

ACTIVATIONS = {
    "relu": cnorm.ReLU,
    "leaky": lambda: cnorm.LeakyReLU(0.1),
    "prelu": cnorm.PReLU,
    "prelu_channels": lambda: cnorm.PReLU(4),
    "hardtanh": lambda: cnorm.Hardtanh(-0.5, 0.75),
    "hardtanh_open": lambda: cnorm.Hardtanh(max_val=None),
    "relu6": cnorm.ReLU6,
}
NORMS = {
    "batch": (lambda **k: cnorm.BatchNorm2d(4, **k), (3, 4, 5, 6)),
    "instance": (lambda **k: cnorm.InstanceNorm1d(4, affine=True, **k), (3, 4, 5)),
    "unbatched": (lambda **k: cnorm.InstanceNorm1d(4, affine=True, **k), (4, 5)),
    "group": (lambda **k: cnorm.GroupNorm(2, 4, **k), (3, 4, 5)),
    "layer": (lambda **k: cnorm.LayerNorm((4, 6), **k), (3, 4, 6)),
    "rms": (lambda **k: cnorm.RMSNorm(6, **k), (3, 4, 6)),
    "response": (lambda **k: cnorm.LocalResponseNorm(3, **k), (3, 4, 6)),
    "switch": (lambda **k: cnorm.SwitchNorm2d(4, **k), (3, 4, 5, 6)),
}
DTYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16]


@pytest.mark.parametrize(
    ("activation", "first"),
    [
        (cnorm.ReLU(), 0),
        (cnorm.PReLU(), -0.4227),
        (cnorm.LeakyReLU(), -0.0169),
        (cnorm.Hardtanh(max_val=1.5), -1),
        (cnorm.ReLU6(), 0),
    ],
    ids=repr,
)
def test_known_values(activation, first):
    row = np.array([-0.9, 0.1, 0, -0.1, 0.9, -0.4, 0.9, -0.5, 0.8, 0.1])
    y = cnorm.LayerNorm(10, eps=0, elementwise_affine=False, activation=activation)(row)
    assert round(float(y[0]), 4) == pytest.approx(first, abs=1e-9)
    assert round(float(y[4]), 4) == 1.3833


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: np.dtype(t).name)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm", NORMS)
def test_fused_equals_unfused(norm, activation, dtype, rng):
    """To the bit in float64 and float32; half types round once less."""
    make, shape = NORMS[norm]
    if norm == "unbatched" and activation == "prelu_channels":
        apart = cnorm.PReLU(4, channel_axis=0)
    else:
        apart = ACTIVATIONS[activation]()
    fused = make(activation=ACTIVATIONS[activation]()).to(dtype)
    plain = make().to(dtype)
    for p in fused.parameters():
        p[...] = rng.normal(0.5, 0.5, p.shape)
    own = {k: v for k, v in fused.state_dict().items() if not k.startswith("activation")}
    plain.load_state_dict(own)
    apart.to(dtype).load_state_dict(fused.activation.state_dict())
    chain = cnorm.Sequential(plain, apart)
    x, grad = (rng.normal(size=shape).astype(dtype) for _ in range(2))
    ulps = {8: 0, 4: 2, 2: 2}[np.dtype(dtype).itemsize]
    eps = float(ml_dtypes.finfo(dtype).eps)

    def agree(ours, theirs, ulps, what):
        ours, theirs = (a.astype(np.float64) for a in (ours, theirs))
        scale = max(1, np.abs(theirs).max())
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=ulps * eps * scale, err_msg=what)

    y = fused(x)
    agree(y, chain(x), ulps, "output")
    (between,) = apart.kept()  # rounded, which decides on which side of a bound a value falls
    for bound in filter(None, apart.clip or ()):
        grad[np.abs(between.astype(float) - bound) < 2 * eps] = 0
    agree(fused.backward(grad), chain.backward(grad), 40, "gradient of the input")
    expected = [p.grad for p in (*plain.parameters(), *apart.parameters())]
    for (name, p), theirs in zip(fused.named_parameters(), expected, strict=True):
        agree(p.grad, theirs, 40, name)


def test_state_and_copies():
    norm = cnorm.BatchNorm1d(3, activation=cnorm.PReLU(3, init=0.5))
    assert list(norm.state_dict())[-1] == "activation.weight"
    norm.load_state_dict({**norm.state_dict(), "activation.weight": np.full(3, 0.1)})
    assert norm(np.ones((2, 3)) * [[-1], [1]]).min() == pytest.approx(-0.1, rel=1e-4)


@pytest.mark.parametrize("wrong", ["relu", 0.1, cnorm.ReLU, np.maximum, cnorm.LayerNorm(2)])
def test_what_is_no_activation(wrong):
    with pytest.raises(TypeError, match="ReLU, LeakyReLU, PReLU, Hardtanh or ReLU6 module"):
        cnorm.LayerNorm(2, activation=wrong)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: np.dtype(t).name)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_alone(activation, dtype, rng):
    layer = ACTIVATIONS[activation]().to(dtype)
    x, grad = (rng.normal(size=(3, 4, 5)).astype(dtype) for _ in range(2))
    wide = x.astype(np.float64)
    if layer.clip is None:
        slope = np.asarray(layer.slope, np.float64).reshape(-1, 1)
        expected, factor = np.where(wide > 0, wide, wide * slope), np.where(wide > 0, 1, slope)
    else:
        low, high = (np.nan if bound is None else bound for bound in layer.clip)
        expected, factor = np.clip(wide, *layer.clip), ~((wide <= low) | (wide >= high))
    eps = float(ml_dtypes.finfo(dtype).eps)
    y = layer(x)
    assert y.dtype == dtype
    np.testing.assert_allclose(y.astype(np.float64), expected, rtol=eps)
    dx = layer.backward(grad)
    expected = factor * grad.astype(np.float64)
    np.testing.assert_allclose(dx.astype(np.float64), expected, rtol=eps)
    if layer.state_dict():
        each = np.where(wide > 0, 0, wide * grad.astype(np.float64))
        total = each.sum((0, 2)) if slope.size > 1 else each.sum().reshape(1)
        np.testing.assert_allclose(layer.weight.grad.astype(np.float64), total, rtol=4 * eps)


def test_channels():
    x = -np.ones((2, 3, 4))
    y = cnorm.PReLU(4, channel_axis=-1)
    y.weight[...] = [1, 2, 3, 4]
    np.testing.assert_array_equal(y(x)[0, 0], [-1, -2, -3, -4])
    with pytest.raises(RuntimeError, match="Mismatch of parameter numbers"):
        cnorm.PReLU(4)(x)


@pytest.mark.parametrize("dtype", [np.int64, bool, complex])
def test_floats_alone(dtype):
    with pytest.raises(TypeError, match=np.dtype(dtype).name):
        cnorm.ReLU()(np.ones((2, 3), dtype))


def test_nan_passes_and_infinity_stops():
    np.testing.assert_array_equal(cnorm.ReLU()(np.array([np.nan, np.inf])), [np.nan, np.inf])
    np.testing.assert_array_equal(cnorm.ReLU()(np.array([-np.inf, -1.0])) + 0, [0, 0])


def test_hardtanh_at_its_bounds():
    """A value equal to a bound is outside, and NaN is neither outside nor changed."""
    for dtype in DTYPES:
        layer = cnorm.Hardtanh(-0.5, 2.0)
        x = np.array([-np.inf, -1, -0.5, -0.25, 0, 1, 2, 3, np.inf, np.nan], dtype)
        clipped = [-0.5, -0.5, -0.5, -0.25, 0, 1, 2, 2, 2, np.nan]
        y = layer(x)
        np.testing.assert_array_equal(y.astype(float), clipped)
        dx = layer.backward(np.full_like(x, 3))
        np.testing.assert_array_equal(dx.astype(float), [0, 0, 0, 3, 3, 3, 0, 0, 0, 3])
        assert y.dtype == dx.dtype == dtype
    layer = cnorm.Hardtanh(0.1, 0.1)
    np.testing.assert_array_equal(layer(np.array([-1.0, 0.1, 1.0])), 0.1)
    assert not layer.backward(np.ones(3)).any()


def test_bounds_of_half_input_are_not_rounded():
    """float16 has no 0.1, and 0.09998 is less: its gradient passes."""
    layer = cnorm.Hardtanh(max_val=0.1)
    x = np.array([0.1, 0.2], np.float16)
    np.testing.assert_array_equal(layer(x), np.float16([0.1, 0.1]))
    np.testing.assert_array_equal(layer.backward(np.ones_like(x)), [1, 0])


@pytest.mark.parametrize("bounds", [(1.0, -1.0), (np.nan, 1.0), (0.0, np.nan)])
def test_bounds_that_are_none(bounds):
    with pytest.raises(ValueError, match=r"clip|min_val must be at most max_val"):
        cnorm.Hardtanh(*bounds)


def test_hardtanh_has_no_state_and_is_printed_as_torch_prints_it():
    norm = cnorm.LayerNorm(3, activation=cnorm.Hardtanh(0, 2))
    assert list(norm.state_dict()) == ["weight", "bias"]
    assert repr(norm.activation) == "Hardtanh(min_val=0, max_val=2)"
    assert repr(cnorm.ReLU6()) == "ReLU6()"
    assert isinstance(cnorm.ReLU6(), cnorm.Hardtanh)
    assert repr(norm).endswith("activation=Hardtanh(min_val=0, max_val=2))")
    twin = pickle.loads(pickle.dumps(norm))
    assert twin.activation.clip == (0, 2)
