"""Up to as many axes as NumPy allows: the same bits as with the axes of size 1 left out."""

import numpy as np
import pytest
from cnorm._plan import plan

import cnorm.functional as F

RANKS = (31, 32, 33, 63, 64)
SHAPE = (3, 6, 4, 5)


def _longer(shape, at, rank):
    """`shape` with axes of size 1 before position `at`, `rank` axes in all."""
    return (*shape[:at], *(1,) * (rank - len(shape)), *shape[at:])


def _parameters(p, at, rank):
    """The parameters of an input of SHAPE for one with more axes at `at`."""
    shapes = {SHAPE: _longer(SHAPE, at, rank)}
    row = p.get("normalized_shape")
    if row == SHAPE[1:]:
        shapes[row] = _longer(SHAPE, at, rank)[1:]
        p = p | {"normalized_shape": shapes[row]}
    return {
        k: v.reshape(shapes.get(v.shape, v.shape)) if isinstance(v, np.ndarray) else v
        for k, v in p.items()
    }


def _laid_out(array, order):
    if order != "gaps":
        return np.array(array, order=order)
    whole = np.full((*array.shape[:-1], 2 * array.shape[-1]), np.nan, array.dtype)
    whole[..., ::2] = array
    return whole[..., ::2]


@pytest.mark.grid(4)
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("order", ["C", "F", "gaps"])
def test_axes_of_size_1_change_no_bit(operation, rank, order, dtype, rng):
    x, dy = rng.normal(size=(2, *SHAPE)).astype(dtype)
    p = operation.draw(rng, SHAPE, 1, np.float32)
    expected = operation.run(F, _laid_out(x, order), _laid_out(dy, order), p)
    for at in (2, 3):
        arrays = (_laid_out(a.reshape(_longer(SHAPE, at, rank)), order) for a in (x, dy))
        actual = operation.run(F, *arrays, _parameters(p, at, rank))
        for name in set(expected) - {"stats"}:
            value = actual[name].reshape(expected[name].shape)
            assert value.tobytes() == expected[name].tobytes(), (name, at)


@pytest.mark.parametrize("rank", RANKS)
def test_a_slope_for_each_channel_of_rows(rank, rng):
    """Layer norm spreads the slopes over all axes."""
    x, dy = rng.normal(size=(2, 2, 2, 4)).astype(np.float32)
    slope = rng.uniform(size=2)
    long_x, long_dy = (a.reshape(_longer(a.shape, 2, rank)) for a in (x, dy))
    expected = F.layer_norm(x, 4, negative_slope=slope, return_stats=True)
    actual = F.layer_norm(long_x, 4, negative_slope=slope, return_stats=True)
    assert actual[1].shape == (*long_x.shape[:-1], 1)
    assert [a.tobytes() for a in actual] == [a.tobytes() for a in expected]
    expected = F.layer_norm_backward(dy, x, 4, *expected[1:], negative_slope=slope)
    actual = F.layer_norm_backward(long_dy, long_x, 4, *actual[1:], negative_slope=slope)
    assert [a.tobytes() for a in actual] == [a.tobytes() for a in expected]


def test_the_plan_refuses_more_axes():
    shape = (1,) * 65
    with pytest.raises(ValueError, match="at most 64 axes, but got 65"):
        plan(shape, shape, itemsize=4, normalized=1)
    with pytest.raises(ValueError, match="at most 4 arrays"):
        plan((1,), *[(4,)] * 5, itemsize=4, normalized=1)
