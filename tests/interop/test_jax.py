"""cnorm's norms in JAX: values, gradients, jit, vmap and statistics."""

# ruff: noqa: E402 -- the optional library first, then what needs it
import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp
from jax.test_util import check_grads

import cnorm.functional as F
import cnorm.interop.jax as cj
from cnorm import _reference as reference

IMAGE = (4, 6, 5)
RUNNING = (np.linspace(-1, 1, 6), np.linspace(0.5, 2, 6))

# name: function, its reference (both of x, weight, bias), shape of the input and of the weight
CASES = {
    "batch_norm": ("batch_norm", lambda w, b: (None, None, w, b, True), IMAGE, 6),
    "batch_norm eval": ("batch_norm", lambda w, b: (*RUNNING, w, b), IMAGE, 6),
    "instance_norm": ("instance_norm", lambda w, b: (None, None, w, b), IMAGE, 6),
    "instance_norm eval": ("instance_norm", lambda w, b: (*RUNNING, w, b, False), IMAGE, 6),
    "group_norm": ("group_norm", lambda w, b: (3, w, b), IMAGE, 6),
    "layer_norm": ("layer_norm", lambda w, b: ((6, 5), w, b), IMAGE, (6, 5)),
    "rms_norm": ("rms_norm", lambda w, b: (5, w), IMAGE, 5),
    "local_response_norm": ("local_response_norm", lambda w, b: (3, 0.5), IMAGE, 6),
}
MASKED = {name: case for name, case in CASES.items() if name != "local_response_norm"}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=CASES)
def case(request, rng):
    """Our function, the reference, and the arrays of a call."""
    name, args, shape, parameter = CASES[request.param]
    x = 2 * rng.standard_normal(shape) + 1
    w, b = rng.uniform(0.5, 1.5, parameter), rng.standard_normal(parameter)

    def of(module):
        return lambda x, w, b: getattr(module, name)(x, *args(w, b))

    return of(cj), of(reference), (x, w, b)


def test_values(case):
    ours, theirs, arrays = case
    y = ours(*arrays)
    assert isinstance(y, jax.Array) and y.dtype == np.float64
    np.testing.assert_allclose(y, theirs(*arrays), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
def test_check_grads(case, compiled):
    ours, _, arrays = case
    check_grads(jax.jit(ours) if compiled else ours, arrays, order=1, modes=["rev"])


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize(
    ("compiled", "size"), [(False, (4, 1, 5)), (True, (4, 6, 5)), (True, (4, 1, 1))], ids=str
)
def test_masks(name, compiled, size, rng):
    """Values, gradients, and that nothing of what is left out comes through."""
    where = rng.random(size) < 0.6
    where[:2] = True  # so that each channel has at least two
    name, args, shape, parameter = MASKED[name]
    x = 2 * rng.standard_normal(shape) + 1
    w, b = rng.uniform(0.5, 1.5, parameter), rng.standard_normal(parameter)
    selected = np.broadcast_to(where, shape)

    def of(module):
        return lambda x, w, b, m: getattr(module, name)(x, *args(w, b), where=m)

    ours = jax.jit(of(cj)) if compiled else of(cj)
    y = ours(x, w, b, where)
    np.testing.assert_allclose(y, of(reference)(x, w, b, where), rtol=1e-13, atol=1e-13)
    assert not np.asarray(y)[~selected].any()
    check_grads(lambda *a: ours(*a, where), (x, w, b), order=1, modes=["rev"])
    poisoned = np.where(selected, x, np.nan)
    grad = jax.grad(lambda *a: (ours(*a) ** 3).sum(), argnums=(0, 1, 2))
    np.testing.assert_array_equal(ours(poisoned, w, b, where), y)
    for got, want in zip(grad(poisoned, w, b, where), grad(x, w, b, where), strict=True):
        np.testing.assert_array_equal(got, want)
    assert not np.asarray(grad(poisoned, w, b, where)[0])[~selected].any()
    everything = np.ones(where.shape, bool)
    np.testing.assert_array_equal(ours(x, w, b, everything), ours(x, w, b, None))


def test_masks_under_vmap(rng):
    x = rng.standard_normal((3, 4, 6, 5))
    mask = rng.random((3, 4, 1, 5)) < 0.7
    mask[:, :2] = True

    def loss(x, m):
        return (cj.batch_norm(x, training=True, where=m) ** 3).sum()

    got = jax.vmap(jax.grad(loss))(x, mask)
    want = jnp.stack([jax.grad(loss)(*one) for one in zip(x, mask, strict=True)])
    np.testing.assert_array_equal(got, want)
    shared = jax.vmap(jax.grad(loss), in_axes=(0, None))(x, mask[0])
    want = jnp.stack([jax.grad(loss)(one, mask[0]) for one in x])
    np.testing.assert_array_equal(shared, want)


@pytest.mark.parametrize("name", ["batch_norm", "instance_norm"])
def test_running_statistics_of_a_mask(rng, name):
    x, mask = rng.standard_normal((4, 6, 5)), rng.random((4, 6, 1)) < 0.5
    mask[0] = True
    mask[:, 2] = False
    old = [r.copy() for r in RUNNING]
    y, *new = getattr(cj, name)(x, *old, None, None, True, 0.3, where=mask)
    want = getattr(reference, name)(x, *old, None, None, True, 0.3, where=mask)
    np.testing.assert_allclose(y, want, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(new, old, rtol=1e-13)
    assert new[0][2] == RUNNING[0][2] and new[1][2] == RUNNING[1][2]


def test_no_weight_and_no_bias(rng):
    x = rng.standard_normal((4, 6))
    for norm in [
        lambda x: cj.layer_norm(x, 6),
        lambda x: cj.rms_norm(x, 6),
        lambda x: cj.group_norm(x, 2),
        lambda x: cj.batch_norm(x, training=True),
        lambda x: cj.layer_norm(x, 6, jnp.ones(6)),
    ]:
        check_grads(norm, (x,), order=1, modes=["rev"])


def test_vmap(case):
    ours, _, (x, w, b) = case
    many = jnp.stack([x, 2 * x + 1, x**2])

    def gradients(x, w, b):
        return jax.grad(lambda *a: (ours(*a) ** 3).sum(), argnums=(0, 1, 2))(x, w, b)

    for function in (ours, gradients):
        got = jax.jit(jax.vmap(function, in_axes=(0, None, None)))(many, w, b)
        want = [function(one, w, b) for one in many]
        want = jax.tree.map(lambda *a: jnp.stack(a), *want)
        jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, rtol=1e-12), got, want)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_without_float64(rng, dtype):
    """Statistics keep their precision where JAX has no float64: the bits are cnorm's own."""
    with jax.enable_x64(False):
        x = jnp.asarray(1e3 + rng.standard_normal((8, 64)), dtype)
        w, dy = jnp.full(64, 1.5, dtype), jnp.asarray(rng.standard_normal((8, 64)), dtype)
        y, back = jax.vjp(lambda x, w: cj.layer_norm(x, 64, w), x, w)
        dx, dw = back(dy)
        arrays = [np.asarray(a) for a in (x, w, dy)]
    nx, nw, ndy = arrays
    want, mean, rstd = F.layer_norm(nx, 64, nw, return_stats=True)
    want_dx, want_dw, _ = F.layer_norm_backward(ndy, nx, 64, mean, rstd, nw)
    for got, expected in [(y, want), (dx, want_dx), (dw, want_dw)]:
        assert got.dtype == dtype
        np.testing.assert_array_equal(np.asarray(got), expected)


@pytest.mark.parametrize("name", ["batch_norm", "instance_norm"])
def test_running_statistics(rng, name):
    x = rng.standard_normal((4, 6, 5))
    old = [r.copy() for r in RUNNING]
    step = jax.jit(lambda x, *running: getattr(cj, name)(x, *running, None, None, True, 0.3))
    y, *new = step(x, *old)
    for r, untouched in zip(old, RUNNING, strict=True):
        np.testing.assert_array_equal(r, untouched)
    want = getattr(reference, name)(x, *old, None, None, True, 0.3)
    np.testing.assert_allclose(y, want, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(new, old, rtol=1e-13)
    # no gradient flows through them
    dx = jax.grad(lambda x: sum(r.sum() for r in step(x, *RUNNING)[1:]))(x)
    assert not dx.any()


def test_channels_last(rng):
    x = rng.standard_normal((2, 3, 4, 6))
    w = rng.uniform(0.5, 1.5, 6)
    for name, args in [("batch_norm", (None, None, w, None, True)), ("group_norm", (3, w))]:
        norm = getattr(cj, name)
        last = norm(x, *args, channel_axis=-1)
        first = norm(jnp.moveaxis(x, -1, 1), *args)
        np.testing.assert_allclose(last, jnp.moveaxis(first, 1, -1), rtol=1e-12, atol=1e-12)
        check_grads(lambda x, n=norm, a=args: n(x, *a, channel_axis=-1), (x,), 1, modes=["rev"])


def test_large_arrays_in_a_loop():
    """JAX's own arrays inside a callback have deadlocked before."""

    @jax.jit
    def step(x, w):
        return jax.grad(lambda x: cj.layer_norm(cj.rms_norm(x, 512, w), 512, w).sum())(x)

    x, w = jnp.ones((512, 512), np.float32), jnp.ones(512, np.float32)
    for _ in range(20):
        x = step(x, w)
    assert x.shape == (512, 512)


def test_errors():
    with pytest.raises(TypeError, match="float arrays, but got dtype int64"):
        cj.layer_norm(jnp.arange(4), 4)
    with pytest.raises(TypeError, match="where must be a bool array, but got dtype float64"):
        cj.layer_norm(jnp.ones((2, 4)), 4, where=jnp.ones((2, 1)))
    with pytest.raises(ValueError, match=r"got \(2,\): where\[:, None\] does"):
        jax.jit(lambda x, m: cj.layer_norm(x, 4, where=m))(jnp.ones((2, 4)), jnp.ones(2, bool))
    with pytest.raises(ValueError, match=r"where must broadcast to the input's shape \(2, 4\)"):
        cj.rms_norm(jnp.ones((2, 4)), 4, where=jnp.ones((3, 2, 4), bool))
    with pytest.raises(ValueError, match="must either both be None"):
        cj.batch_norm(jnp.ones((2, 3)), jnp.ones(3), training=True)
    with pytest.raises(RuntimeError, match="normalized_shape"):  # through JAX
        jax.block_until_ready(cj.layer_norm(jnp.ones((2, 3)), 4))
