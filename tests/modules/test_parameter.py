"""Parameter: an array with a gradient."""

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest

import cnorm


@pytest.fixture
def p():
    return cnorm.Parameter(np.arange(1, 4, dtype=np.float32))


def test_shares_its_array():
    array = np.ones(3, np.float32)
    cnorm.Parameter(array)[0] = 5
    assert array[0] == 5


@pytest.mark.parametrize(
    "result",
    [
        lambda p: p + 1, lambda p: 1 - p, lambda p: p @ p[:, None], lambda p: -p, np.sqrt,
        lambda p: np.add.reduce(p[None]), lambda p: np.concatenate([p, p]), lambda p: np.dot(p, p),
        lambda p: p > 1, lambda p: np.exp(p, out=np.empty(3, np.float32)), np.asarray,
    ],
)  # fmt: skip
def test_arithmetic_gives_plain_arrays(p, result):
    assert not isinstance(result(p), cnorm.Parameter)


def test_in_place_keeps_the_parameter(p):
    before = p
    p += 1
    p *= 2
    np.subtract(p, 1, out=p)
    assert p is before
    assert type(p) is cnorm.Parameter
    np.testing.assert_array_equal(p, [3, 5, 7])


def test_grad_must_fit(p):
    p.grad = np.ones(3, np.float32)
    assert type(p.grad) is np.ndarray
    for wrong, error in [
        (np.ones(4, np.float32), RuntimeError),
        (np.ones(3, np.float64), RuntimeError),
        ([1.0, 2.0, 3.0], TypeError),
    ]:
        with pytest.raises(error, match="assigned grad"):
            p.grad = wrong
        np.testing.assert_array_equal(p.grad, 1)
    p.grad = None
    assert p.grad is None


def test_only_floats_learn():
    with pytest.raises(RuntimeError, match="int64"):
        cnorm.Parameter(np.arange(3))
    assert cnorm.Parameter(np.arange(3), requires_grad=False).dtype == np.int64
    assert cnorm.Parameter(np.ones(3, ml_dtypes.bfloat16)).requires_grad


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_copies_hold_value_and_flag(protocol, dtype):
    p = cnorm.Parameter(np.arange(3).astype(dtype), requires_grad=False)
    p.grad = np.ones(3, dtype)
    for other in (pickle.loads(pickle.dumps(p, protocol)), copy.deepcopy(p)):
        assert type(other) is cnorm.Parameter
        assert (other.dtype, other.requires_grad, other.grad) == (p.dtype, False, None)
        np.testing.assert_array_equal(other, p)
        other[0] = 9
        assert p[0] == 0


def test_out_of_band_pickle(p):
    buffers = []
    data = pickle.dumps(p, 5, buffer_callback=buffers.append)
    assert buffers
    np.testing.assert_array_equal(pickle.loads(data, buffers=buffers), p)
