"""normalize: division by a norm over any axes, against a wider formula and torch."""

from itertools import combinations, product

import numpy as np
import pytest
from cnorm._plan import plan
from layouts import LAYOUTS
from operations import accumulation, assert_close, epsilon, rounding, wider
from schedule import STRATEGIES
from team import team

import cnorm
import cnorm.functional as F
from cnorm import _dispatch, _reference

NORMS = (2.0, 1.0, np.inf)


def run(F, x, dy, p, dim, eps=1e-12):
    """The result, the norms, the gradient."""
    y, norm = F.normalize(x, p, dim, eps, return_stats=True)
    return y, norm, F.normalize_backward(dy, x, norm, p, dim, eps)


def agrees(x, dy, p, dim, what="", eps=1e-12):
    wide = wider(x.dtype)
    expected = run(_reference, np.array(x, wide), np.array(dy, wide), p, dim, eps)
    actual = run(F, x, dy, p, dim, eps)
    assert actual[1].dtype == np.float64
    step = epsilon(accumulation(x.dtype))
    gain = np.max(1 / np.maximum(expected[1], eps)) * np.max(np.abs(np.array(dy, wide)))
    gain = max(gain, np.max(np.abs(expected[2])))
    names = ("y", "norm", "grad_input")
    tolerances = 4 * step, 4 * step * expected[1], 16 * step * gain
    for name, value, reference, tolerance in zip(names, actual, expected, tolerances, strict=True):
        if name != "norm" and epsilon(x.dtype) > step:
            tolerance = tolerance + rounding(reference, x.dtype)
        assert_close(value, reference, tolerance, f"{name}, p={p}, dim={dim} {what}")


SHAPES = [(5,), (3, 4), (4, 1, 6), (2, 3, 4, 5), (2, 33, 4, 9), (300, 7), (2, 9000), (9000, 2)]


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_axes(shape, p, dtype, rng):
    x, dy = rng.normal(size=(2, *shape)).astype(dtype)
    for count in range(1, len(shape) + 1):
        for dim in combinations(range(len(shape)), count):
            agrees(x, dy, p, dim if count > 1 else dim[0])
            agrees(np.asfortranarray(x), dy, p, dim, "Fortran order")


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_any_layout(layout, rng):
    x, dy = rng.normal(size=(2, 3, 6, 5, 7)).astype(np.float32)
    for dim, p in product([1, -1, (2, 3), (0, 2, 3), (1, 2), (0, 2)], NORMS):
        agrees(layout(x), layout(dy), p, dim, layout.__name__)
        if not layout(x).flags.writeable:
            continue
        out = layout(np.zeros_like(x))
        assert F.normalize(x, p, dim, out=out) is out
        np.testing.assert_allclose(out, F.normalize(x, p, dim), rtol=1e-6)
        same = layout(x.copy())
        F.normalize(same, p, dim, out=same)
        np.testing.assert_allclose(same, out, rtol=1e-6)


def test_axes_that_alternate(rng):
    """No plan has room for them: a copy has its axes in another order."""
    x, dy = rng.normal(size=(2, 3, 2, 4, 2, 3, 2))
    for p in NORMS:
        for dim in [(0, 2, 4), (1, 3, 5)]:
            agrees(x, dy, p, dim)
            out = np.asfortranarray(np.zeros_like(x))
            assert F.normalize(x, p, dim, out=out) is out
            np.testing.assert_allclose(out, F.normalize(x, p, dim), rtol=1e-14)


@pytest.mark.parametrize("dim", [1, (2, 3), (0, 2, 3), (1, 2, 3), (0, 1), (0, 2)])
def test_no_copy_of_the_input(dim):
    """Neither channels first nor channels last, whatever is summed over."""
    x = np.ones((4, 6, 5, 7), np.float32)
    for layout in (x, np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)):
        assert not cnorm.explain(F.normalize, layout, dim=dim).copies
        norm = F.normalize(layout, dim=dim, return_stats=True)[1]
        assert not cnorm.explain(F.normalize_backward, layout, layout, norm, dim=dim).copies


@pytest.mark.parametrize("p", NORMS)
def test_the_same_bits_everywhere(p, rng):
    """On every build, for every number of threads, by every strategy."""
    for shape, dim in [((40, 70), 1), ((3, 50_000), 1), ((50_000, 3), 0), ((6, 40, 300), 1)]:
        x, dy = rng.normal(size=(2, *shape)).astype(np.float32)
        expected = [a.tobytes() for a in run(F, x, dy, p, dim)]
        for build in _dispatch.available():
            with _dispatch.using(build):
                for threads in (1, 3):
                    with team(threads):
                        for name, strategy in STRATEGIES.items():
                            _dispatch.kernels.force_strategy(strategy)
                            try:
                                found = [a.tobytes() for a in run(F, x, dy, p, dim)]
                            finally:
                                _dispatch.kernels.force_strategy(0)
                            assert found == expected, (shape, build, threads, name)


# ---- values ----------------------------------------------------------------------------------


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_squares_that_no_float_holds(scale, p, rng):
    x, dy = rng.uniform(1, 2, (2, 3, 64)).astype(np.float32)
    x = x * np.float32(scale)
    agrees(x, dy, p, 1, eps=0.0)
    agrees(x.T.copy(), dy.T.copy(), p, 0, eps=0.0)
    largest = np.full((2, 64), np.finfo(np.float32).max)
    np.testing.assert_allclose(
        F.normalize(largest, p), np.ones((2, 64)) / {2.0: 8, 1.0: 64, np.inf: 1}[p], rtol=1e-6
    )


@pytest.mark.parametrize("p", NORMS)
def test_half_does_not_overflow(p):
    x = np.full((2, 4096), 60_000, np.float16)
    x[1] = 0
    y, norm = F.normalize(x, p, return_stats=True)
    count = {2.0: 64, 1.0: 4096, np.inf: 1}[p]
    np.testing.assert_allclose(norm[:, 0], [60_000 * count, 0], rtol=4e-7)
    np.testing.assert_array_equal(y[0], np.float16(1 / count))
    assert not y[1].any()


@pytest.mark.parametrize("p", NORMS)
def test_infinity_and_nan_stay_in_their_vector(p):
    x = np.array([[1, np.inf, 2], [1, np.nan, 2], [3, 0, 0]], np.float32)
    for y in (F.normalize(x, p), F.normalize(x.T.copy(), p, 0).T):
        np.testing.assert_array_equal(y, [[0, np.nan, 0], [np.nan] * 3, [1, 0, 0]])


# ---- torch -----------------------------------------------------------------------------------


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("eps", [1e-12, 1.0, 3.0, 6.0])
def test_torch(p, eps, rng):
    """Vectors of zeros, below eps, at eps, and with several largest elements."""
    torch = pytest.importorskip("torch")
    x = np.array([[0, 0, 0], [1, 2, -2], [1e-3, 0, 0], [3, -3, 3], [0.5, 0, -0.5]])
    for dtype, dim in product((np.float32, np.float64), (1, 0, (0, 1))):
        values, dy = x.astype(dtype), rng.normal(size=x.shape).astype(dtype)
        y, norm, dx = run(F, values, dy, p, dim, eps)
        twin = torch.tensor(values, requires_grad=True)
        other = torch.nn.functional.normalize(twin, p, dim, eps)
        other.backward(torch.tensor(dy))
        np.testing.assert_allclose(y, other.detach(), rtol=4 * epsilon(dtype))
        tolerance = 16 * epsilon(dtype) * np.abs(dy).max() / np.maximum(norm, eps).min()
        np.testing.assert_allclose(dx, twin.grad, rtol=16 * epsilon(dtype), atol=tolerance)


# ---- arguments -------------------------------------------------------------------------------

x = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: F.normalize(x, 3), ValueError, "p must be 1, 2 or infinity, but got 3"),
        (lambda: F.normalize(x, "2"), TypeError, "p must be a number"),
        (lambda: F.normalize(x, dim=2), ValueError, "dim 2 is out of bounds .* 2 dimensions"),
        (lambda: F.normalize(x, dim=(0, -2)), ValueError, "dim must name each axis once"),
        (lambda: F.normalize(x, dim=()), ValueError, "at least one axis"),
        (lambda: F.normalize(x, dim=None), TypeError, "dim must be an integer"),
        (lambda: F.normalize(x, dim=1.0), TypeError, "dim must be an integer"),
        (lambda: F.normalize(x, eps=-1), ValueError, "eps must be non-negative"),
        (lambda: F.normalize(x, eps=np.nan), ValueError, "eps must be non-negative"),
        (lambda: F.normalize(x.astype(int)), TypeError, "float"),
        (lambda: F.normalize(x.astype(bool)), TypeError, "float"),
        (lambda: F.normalize(x.astype(complex)), TypeError, "float"),
        (lambda: F.normalize(x, out=x[:1].copy()), ValueError, "out"),
        (lambda: F.normalize_backward(x, x, np.ones(2)), ValueError, r"norm must have .*\(2, 1\)"),
        (lambda: F.normalize_backward(x, x, None), TypeError, "norm must be an array"),
        (lambda: F.normalize_backward(x[:1], x, np.ones((2, 1))), ValueError, "grad_output"),
    ],
)
def test_bad_arguments(call, error, words):
    with pytest.raises(error, match=words):
        call()
    assert (x == 1).all()


def test_empty():
    for shape, dim in product([(0, 3), (3, 0)], (0, 1)):
        empty = np.empty(shape, np.float32)
        y, norm, dx = run(F, empty, empty, 2.0, dim)
        assert y.shape == dx.shape == shape
        assert norm.shape == tuple(1 if i == dim else n for i, n in enumerate(shape))
        assert not norm.any()


def test_a_scalar_has_no_axes():
    with pytest.raises(ValueError, match="out of bounds"):
        F.normalize(np.float32(3), dim=0)


def test_the_plans():
    """Rows where the last axis in memory is summed over, else columns."""

    def of(dim, order=(0, 1, 2, 3)):
        a = np.empty([(2, 3, 4, 5)[i] for i in order], np.float32).transpose(np.argsort(order))
        return plan(a.shape, a.strides, itemsize=4, reduced=dim)[:2]

    assert of((1, 2, 3)) == ("units", (1, 2, 1, 1, 60))
    assert of((0, 2, 3)) == ("units", (1, 3, 2, 1, 20))
    assert of((1, 3)) == ("units", (2, 4, 3, 1, 5))
    assert of((1,)) == ("columns", (2, 1, 1, 3, 20))
    assert of((0, 2)) == ("columns", (3, 1, 2, 4, 5))
    assert of((1,), order=(0, 2, 3, 1)) == ("units", (1, 40, 1, 1, 3))
    assert of((2, 3), order=(0, 2, 3, 1)) == ("columns", (2, 1, 1, 20, 3))


@pytest.mark.parametrize("shape", [(1, 4), (3, 700), (2, 3, 5, 7)])
def test_an_eps_whose_square_is_no_float(build, shape):
    """Squares of these numbers underflow in float32, and so does that of eps, which hides none."""
    x = np.full(shape, 1e-24, np.float32)
    n = shape[1]
    for dim in (1, -1) if len(shape) == 2 else (1,):
        y = F.normalize(x, dim=dim, eps=1e-25)
        np.testing.assert_allclose(y, np.full(shape, n**-0.5), rtol=1e-6)
    channels_last = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    y = F.normalize(channels_last, dim=-1, eps=1e-25)
    np.testing.assert_allclose(y, np.full(y.shape, n**-0.5), rtol=1e-6)
