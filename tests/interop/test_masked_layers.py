"""Masks beside the masked layers of flax and Keras: values, gradients and statistics.

Those layers normalize every position with the statistics of what the mask selects; cnorm's result
is 0 elsewhere. So they are compared at the True positions. flax computes in float64 here, Keras in
float32.
"""

# ruff: noqa: E402 -- the optional libraries first, then what needs them
import os

import numpy as np
import pytest

jax = pytest.importorskip("jax")
os.environ.setdefault("KERAS_BACKEND", "jax")

import cnorm
import cnorm.functional as F

EPS = 1e-3


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def padded(lengths, size):
    return np.arange(size)[:, None] < np.reshape(lengths, (-1, 1, 1))


# (samples, positions, channels), and masks that broadcast to it
SHAPE = (4, 9, 6)
MASKS = {
    "padding": padded([9, 5, 2, 1], 9),
    "positions": np.array([1, 0, 1, 1, 0, 0, 1, 1, 1], bool)[:, None],
    "elements": np.random.default_rng(1).random(SHAPE) < 0.6,
    "all": np.ones(SHAPE, bool),
}
MASKS["elements"][..., :2] = True


@pytest.fixture(params=MASKS)
def where(request):
    return MASKS[request.param]


@pytest.fixture
def data(rng):
    """Input, gradient of the result, weight and bias."""
    x, dy = 2 * rng.normal(size=(2, *SHAPE)) + 1
    return x, dy, rng.uniform(0.5, 1.5, SHAPE[-1]), rng.normal(size=SHAPE[-1])


def compare(ours, theirs, where, tolerance=1e-11):
    """A result and gradients: of the result and of the input what is selected."""
    for i, (got, want) in enumerate(zip(ours, theirs, strict=True)):
        if i < 2:
            selected = np.broadcast_to(where, SHAPE)
            assert not got[~selected].any()
            got, want = got[selected], np.asarray(want)[selected]
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


def of_flax(layer, data, where, **options):
    """The result of a layer of flax, and the gradients of input, weight and bias."""
    x, dy, weight, bias = data
    parameters = {"scale": weight, "bias": bias}
    if not getattr(layer, "use_bias", False):
        del parameters["bias"]
    variables = layer.init(jax.random.key(0), x, **options)
    rest = {k: v for k, v in variables.items() if k != "params"}

    def call(x, parameters):
        y = layer.apply(
            {"params": parameters, **rest}, x, mask=where, mutable=list(rest), **options
        )
        return y[0]

    y, back = jax.vjp(call, x, parameters)
    # what a mask leaves out has no part in what follows
    dx, gradients = back(np.where(where, dy, 0))
    return y, dx, *(gradients[name] for name in parameters)


def test_batch_norm_of_flax(data, where):
    linen = pytest.importorskip("flax.linen")
    layer = linen.BatchNorm(
        use_running_average=False, epsilon=EPS, use_fast_variance=False, param_dtype=float
    )
    x, dy, weight, bias = data
    y, *stats = F.batch_norm(
        x, None, None, weight, bias, True, eps=EPS, channel_axis=-1, return_stats=True, where=where
    )
    grads = F.batch_norm_backward(dy, x, *stats, weight, channel_axis=-1, where=where)
    compare((y, *grads), of_flax(layer, data, where), where)


def test_layer_norm_of_flax(data, where):
    linen = pytest.importorskip("flax.linen")
    layer = linen.LayerNorm(epsilon=EPS, use_fast_variance=False, param_dtype=float)
    x, dy, weight, bias = data
    where = np.broadcast_to(where, SHAPE)
    y, *stats = F.layer_norm(x, 6, weight, bias, EPS, return_stats=True, where=where)
    grads = F.layer_norm_backward(dy, x, 6, *stats, weight, where=where)
    n = 4 if where.any(-1).all() else 2  # flax divides 0 by 0 for a row without a True
    compare((y, *grads)[:n], of_flax(layer, data, where)[:n], where)


def test_rms_norm_of_flax(data, where):
    linen = pytest.importorskip("flax.linen")
    layer = linen.RMSNorm(epsilon=EPS, use_fast_variance=False, param_dtype=float)
    x, dy, weight, _ = data
    y, rstd = F.rms_norm(x, 6, weight, EPS, return_stats=True, where=where)
    grads = F.rms_norm_backward(dy, x, 6, rstd, weight, where=where)
    n = 3 if np.broadcast_to(where, SHAPE).any(-1).all() else 2
    compare((y, *grads)[:n], of_flax(layer, data, where)[:n], where)


@pytest.mark.parametrize("groups", [2, 6])
def test_group_and_instance_norm_of_flax(data, where, groups):
    linen = pytest.importorskip("flax.linen")
    layer = linen.GroupNorm(groups, epsilon=EPS, use_fast_variance=False, param_dtype=float)
    x, dy, weight, bias = data
    whole = np.broadcast_to(where, SHAPE)
    y, *stats = F.group_norm(
        x, groups, weight, bias, EPS, channel_axis=-1, return_stats=True, where=where
    )
    grads = F.group_norm_backward(dy, x, groups, *stats, weight, channel_axis=-1, where=where)
    theirs = of_flax(layer, data, whole)
    compare((y, *grads), theirs, whole)
    if groups == SHAPE[-1]:
        y = F.instance_norm(x, None, None, weight, bias, eps=EPS, channel_axis=-1, where=where)
        compare((y,), theirs[:1], whole)


@pytest.mark.parametrize("name", ["padding", "positions"])
def test_batch_norm_of_keras(data, name):
    keras = pytest.importorskip("keras")
    x, dy, weight, bias = (a.astype(np.float32) for a in data)
    where = np.broadcast_to(MASKS[name], (*SHAPE[:2], 1))
    layer = keras.layers.BatchNormalization(epsilon=EPS, momentum=0.9)
    layer.build(SHAPE)
    layer.gamma.assign(weight), layer.beta.assign(bias)
    variables = [v.value for v in layer.trainable_variables]
    rest = [v.value for v in layer.non_trainable_variables]

    def call(x, variables):
        (y, rest_after) = layer.stateless_call(
            variables, rest, x, training=True, mask=where[..., 0]
        )
        return y, rest_after

    y, back, (mean, var) = jax.vjp(call, x, variables, has_aux=True)
    dx, (dw, db) = back(jax.numpy.asarray(np.where(where, dy, 0)))
    norm = cnorm.BatchNorm1d(6, eps=EPS, channel_axis=-1)
    norm.weight[...], norm.bias[...] = weight, bias
    ours = norm(x, where=where)
    grads = norm.backward(dy), norm.weight.grad, norm.bias.grad
    compare((ours, *grads), (y, dx, dw, db), where, 1e-5)
    np.testing.assert_allclose(norm.running_mean, mean, rtol=1e-5)
    n = where.sum()  # the running variance of Keras is the biased one
    batch = (np.asarray(var) - 0.9) * n / (n - 1)
    np.testing.assert_allclose(norm.running_var, 0.9 + batch, rtol=1e-5)
