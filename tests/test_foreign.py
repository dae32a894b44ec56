"""Arrays of other libraries: taken as they are, without a copy, and answered with NumPy arrays."""

import numpy as np
import pytest
from cnorm._call.arrays import as_floats, to_array
from operations import DTYPES

import cnorm.functional as F
from cnorm._reference import layer_norm

NAMES = ["float32", "float64", "float16", "bfloat16"]


def values(dtype):
    return np.random.default_rng(0).standard_normal((5, 33)).astype(dtype)


def taken(array):
    """The array that a call computes with."""
    return as_floats(to_array(array, "input"), "input")


@pytest.mark.parametrize("name", NAMES)
def test_torch(name):
    torch = pytest.importorskip("torch")
    tensor = torch.randn(5, 33, dtype=getattr(torch, name))
    seen = taken(tensor)
    assert seen.ctypes.data == tensor.data_ptr() and seen.dtype.name == name
    y = F.layer_norm(tensor, 33)
    assert type(y) is np.ndarray and y.dtype == seen.dtype
    assert np.array_equal(y, F.layer_norm(seen.copy(), 33))
    transposed = torch.randn(4, 6, 5, 7, dtype=getattr(torch, name)).to(
        memory_format=torch.channels_last
    )
    assert F.instance_norm(transposed).strides == taken(transposed).strides


@pytest.mark.parametrize("name", NAMES)
def test_jax(name):
    jax = pytest.importorskip("jax")
    with jax.enable_x64(True):
        array = jax.numpy.asarray(values(np.float64)).astype(name)
    seen = taken(array)
    assert seen.dtype.name == name
    assert seen.ctypes.data == array.unsafe_buffer_pointer()
    assert np.array_equal(F.layer_norm(array, 33), F.layer_norm(seen.copy(), 33))


def test_a_tensor_that_is_part_of_a_graph_is_refused():
    torch = pytest.importorskip("torch")
    with pytest.raises((BufferError, RuntimeError, TypeError), match=r"detach|grad"):
        F.layer_norm(torch.randn(3, 4, requires_grad=True), 4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_memory_map(dtype, tmp_path):
    x = values(dtype)
    x.tofile(tmp_path / "x")
    mapped = np.memmap(tmp_path / "x", x.dtype, "r", shape=x.shape)
    y = F.layer_norm(mapped, 33)
    assert type(y) is np.ndarray and np.array_equal(y, F.layer_norm(x, 33))


def test_lists_and_matrices():
    x = values(np.float64)
    assert np.array_equal(F.layer_norm(x.tolist(), 33), F.layer_norm(x, 33))
    y = F.layer_norm(np.asmatrix(x), 33)
    assert type(y) is np.ndarray and np.allclose(y, layer_norm(x, 33))
