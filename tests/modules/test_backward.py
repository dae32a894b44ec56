"""What forward keeps, what backward adds, and what neither changes when it fails."""

import gc
import threading
import weakref

import numpy as np
import pytest

import cnorm
import cnorm.functional as F

NORMS = {
    "batch": (lambda: cnorm.BatchNorm2d(4), (3, 4, 2, 2)),
    "instance": (lambda: cnorm.InstanceNorm2d(4, affine=True), (3, 4, 2, 2)),
    "unbatched": (lambda: cnorm.InstanceNorm1d(4, affine=True), (4, 5)),
    "group": (lambda: cnorm.GroupNorm(2, 4), (3, 4, 2)),
    "layer": (lambda: cnorm.LayerNorm(4), (3, 4)),
    "rms": (lambda: cnorm.RMSNorm(4), (3, 4)),
    "response": (lambda: cnorm.LocalResponseNorm(3), (3, 4, 2)),
    "cross_map": (lambda: cnorm.CrossMapLRN2d(3), (3, 4, 2, 2)),
    "switch": (lambda: cnorm.SwitchNorm2d(4), (3, 4, 2, 2)),
    "relu": (cnorm.ReLU, (3, 4)),
    "prelu": (lambda: cnorm.PReLU(4), (3, 4)),
    "hardtanh": (cnorm.Hardtanh, (3, 4)),
    "sequential": (lambda: cnorm.Sequential(cnorm.LayerNorm(4), cnorm.PReLU()), (3, 4)),
}


@pytest.fixture(params=NORMS)
def norm(request):
    return NORMS[request.param][0]()


@pytest.fixture
def x(request, rng):
    shape = NORMS[request.node.callspec.params["norm"]][1]
    return rng.normal(size=shape).astype(np.float32)


def grads(norm):
    return [None if p.grad is None else p.grad.copy() for p in norm.parameters()]


def test_gradients_add_up(norm, x):
    for _ in range(2):
        y = norm(x)
        dx = norm.backward(y)
    assert (dx.shape, dx.dtype) == (x.shape, x.dtype)
    twice = grads(norm)
    norm.zero_grad()
    assert grads(norm) == [None] * len(twice)
    norm.eval()
    norm.train()
    once_norm = grads_after(norm, x, y)
    for one, two in zip(once_norm, twice, strict=True):
        np.testing.assert_allclose(2 * one, two, rtol=1e-6)


def grads_after(norm, x, grad):
    norm(x)
    norm.backward(grad)
    return grads(norm)


def test_backward_without_forward(norm, x):
    with pytest.raises(RuntimeError, match=r"enable_grad\(\)"):
        norm.backward(x)
    y = norm.eval()(x)
    with pytest.raises(RuntimeError, match=r"enable_grad\(\)"):
        norm.backward(y)
    with cnorm.enable_grad():
        y = norm(x)
    norm.backward(y)
    with pytest.raises(RuntimeError, match="once for each backward"):
        norm.backward(y)
    norm.train()
    with cnorm.no_grad():
        y = norm(x)
    with pytest.raises(RuntimeError, match=r"no_grad\(\)"):
        norm.backward(y)


def test_evaluation_forgets_the_training_forward(norm, x):
    norm(x)
    y = norm.eval()(x)
    with pytest.raises(RuntimeError, match="no forward pass"):
        norm.backward(y)


def test_wrong_gradients(norm, x):
    y = norm(x)
    before = grads(norm)
    for wrong, error, words in [
        (y[:1], RuntimeError, "Mismatch in shape: grad_output has a shape of"),
        (np.ones((*y.shape, 1), y.dtype), RuntimeError, "Mismatch in shape"),
        (y.astype(np.float64), TypeError, r"pass grad_output.astype\('float32'\)"),
        (y.astype(np.int32), TypeError, "int32"),
    ]:
        with pytest.raises(error, match=words):
            norm.backward(wrong)
        assert grads(norm) == before
    norm.backward(y)  # the forward pass is still there


def test_input_is_kept_by_reference_and_released(norm, x):
    x = x.copy()
    alive = weakref.ref(x)
    y = norm(x)
    assert any(np.shares_memory(x, a) for a in kept_arrays(norm)), "a copy was kept"
    norm.backward(y)
    del x
    gc.collect()
    assert alive() is None


def kept_arrays(norm):
    for module in norm.modules():
        yield from (a for a in module._kept or () if isinstance(a, np.ndarray))


@pytest.mark.parametrize("slope", [None, 0.0, 0.25])
@pytest.mark.parametrize("shape", [(5, 16), (0, 16), (2, 3, 16), (16,)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16], ids=lambda t: t.__name__)
def test_rows_keep_statistics_as_functions_return_them(dtype, shape, slope, rng):
    activation = None if slope is None else cnorm.LeakyReLU(slope)
    x, dy = rng.normal(size=(2, *shape)).astype(dtype)
    layer = cnorm.LayerNorm(16, dtype=dtype, activation=activation)
    layer.weight[:] = np.linspace(0.5, 2, 16)
    layer.bias[:] = np.linspace(-1, 1, 16)
    y, *stats = F.layer_norm(
        x, 16, layer.weight, layer.bias, negative_slope=slope, return_stats=True
    )
    same(layer(x), y)
    grads = F.layer_norm_backward(
        dy, x, 16, *stats, layer.weight, bias=layer.bias, negative_slope=slope
    )
    for found, expected in zip((layer.backward(dy), *grads_of(layer)), grads, strict=True):
        same(found, expected)
    rms = cnorm.RMSNorm(16, dtype=dtype, activation=activation)
    y, rstd = F.rms_norm(x, 16, rms.weight, negative_slope=slope, return_stats=True)
    same(rms(x), y)
    grads = F.rms_norm_backward(dy, x, 16, rstd, rms.weight, negative_slope=slope)
    for found, expected in zip((rms.backward(dy), *grads_of(rms)), grads, strict=True):
        same(found, expected)


def same(found, expected):
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def grads_of(norm):
    return [parameter.grad for parameter in norm.parameters()]


@pytest.mark.parametrize("kept", [b"", bytes(8), bytes(79), bytes(160)])
def test_statistics_that_are_not_those_of_the_rows(kept, rng):
    """A module's are bytes, of as many rows as its input has."""
    x = rng.normal(size=(5, 16)).astype(np.float32)
    with pytest.raises(TypeError, match="rstd must be a float array"):
        F.rms_norm_backward(x, x, 16, kept)
    with pytest.raises(TypeError, match="must be a float array"):
        F.layer_norm_backward(x, x, 16, np.zeros(5), kept[:72])


def test_output_is_not_kept(norm, x):
    y = norm(x)
    alive = weakref.ref(y if y.base is None else y.base)
    del y
    gc.collect()
    if not isinstance(norm, cnorm.Sequential):
        assert alive() is None


def test_input_that_changed_in_between(norm, x):
    x = x.copy()
    y = norm(x)
    x[:] = np.nan
    assert norm.backward(y).shape == y.shape


def test_frozen_parameters_get_no_gradient(norm, x):
    norm.requires_grad_(False)
    y = norm(x)
    assert norm.backward(y).shape == x.shape
    assert grads(norm) == [None] * len(grads(norm))


def test_zero_grad_to_zeros(norm, x):
    norm.backward(norm(x))
    norm.zero_grad(set_to_none=False)
    for p in norm.parameters():
        np.testing.assert_array_equal(p.grad, 0)


def test_lists_are_input():
    norm = cnorm.LayerNorm(2)
    y = norm([[1.0, 3.0]])
    assert y.dtype == np.float64
    assert norm.backward([[1.0, 1.0]]).shape == (1, 2)


class Broken(cnorm.Module):
    def forward(self, x):
        self.keep(x)
        return x

    def backward(self, grad_output):
        raise ArithmeticError


def test_sequential_adds_all_or_nothing(rng):
    x = rng.normal(size=(3, 4)).astype(np.float32)
    net = cnorm.Sequential(cnorm.LayerNorm(4), Broken(), cnorm.LayerNorm(4), cnorm.LayerNorm(4))
    net(x)
    net[2].weight.grad = np.full(4, 7, np.float32)
    with pytest.raises(ArithmeticError):
        net.backward(x)
    np.testing.assert_array_equal(net[2].weight.grad, 7)
    assert net[3].weight.grad is None
    del net[1]
    net.backward(x)  # all that was kept is still there
    assert net[2].weight.grad is not None


def test_accumulate_adds_all_or_nothing():
    norm = cnorm.LayerNorm(2)
    with pytest.raises(RuntimeError, match="assigned grad"):
        norm.accumulate((norm.weight, np.ones(2)), (norm.bias, np.ones(3)))
    assert norm.weight.grad is None
    norm.accumulate((norm.weight, np.ones(2)), (None, np.ones(3)))
    assert norm.weight.grad.dtype == np.float32


def test_modes_nest_and_belong_to_the_thread():
    norm = cnorm.LayerNorm(2).eval()
    x = np.ones((1, 2), np.float32)

    def keeps():
        norm(x)
        return norm._kept is not None

    with cnorm.no_grad(), cnorm.enable_grad():
        assert keeps()
    with cnorm.enable_grad(), cnorm.no_grad():
        assert not keeps()
    with cnorm.enable_grad():
        seen = []
        thread = threading.Thread(target=lambda: seen.append(keeps()))
        thread.start()
        thread.join()
        assert seen == [False]

    @cnorm.enable_grad()
    def decorated():
        return keeps()

    assert decorated()
    assert decorated()
    assert not keeps()


def test_mode_ends_with_an_error():
    norm = cnorm.LayerNorm(2)
    with pytest.raises(KeyError), cnorm.no_grad():
        raise KeyError
    norm(np.ones((1, 2), np.float32))
    assert norm._kept is not None


def finite_difference(f, array, step=1e-6):
    """The gradient of the scalar ``f()`` with respect to `array`, which it reads."""
    gradient = np.empty(array.shape)
    for i in np.ndindex(array.shape):
        old = array[i]
        array[i] = old + step
        above = f()
        array[i] = old - step
        gradient[i] = (above - f()) / (2 * step)
        array[i] = old
    return gradient


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "slope", [None, cnorm.ReLU, cnorm.LeakyReLU, cnorm.PReLU, cnorm.Hardtanh, cnorm.ReLU6]
)
@pytest.mark.parametrize(
    "name", [n for n in NORMS if n not in ("relu", "prelu", "hardtanh", "sequential")]
)
def test_gradients_by_finite_differences(name, slope, training, rng):
    make, shape = NORMS[name]
    norm = make().double().train(training)
    if slope is not None and name != "cross_map":
        norm.activation = slope()
        norm.double()
    for p in norm.parameters():
        p[...] = rng.normal(1, 0.5, p.shape)
    for buffer in norm.buffers():
        if buffer.dtype == np.float64:
            buffer[...] = rng.uniform(0.5, 1.5, buffer.shape)
    state = {k: v.copy() for k, v in norm.state_dict().items()}
    x, grad = rng.normal(size=shape), rng.normal(size=shape)

    def loss():
        value = (norm(x) * grad).sum()
        for k, v in norm.named_buffers():
            v[...] = state[k]
        return value

    with cnorm.enable_grad():
        norm(x)
    dx = norm.backward(grad)
    with cnorm.no_grad():
        np.testing.assert_allclose(dx, finite_difference(loss, x), rtol=1e-6, atol=1e-7)
        for key, p in norm.named_parameters():
            expected = finite_difference(loss, p)
            np.testing.assert_allclose(p.grad, expected, rtol=1e-6, atol=1e-7, err_msg=key)
