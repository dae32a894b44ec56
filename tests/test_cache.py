"""Memory of freed results is used again: within a bound, and never while it is referenced."""

import subprocess
import sys
import threading
import tracemalloc

import numpy as np
import pytest

import cnorm
import cnorm.functional as F
from cnorm import _pool

SHAPE = (1024, 1024)  # float32: 4 MiB


@pytest.fixture(autouse=True)
def fresh():
    cnorm.empty_cache()
    yield
    cnorm.set_cache_limit(256 << 20)
    cnorm.empty_cache()


def kept():
    return _pool.kept()[0]


@pytest.fixture
def x():
    return np.random.default_rng(0).standard_normal(SHAPE, np.float32)


def test_a_freed_result_is_the_next_result(x):
    y = F.layer_norm(x, 1024)
    address = y.ctypes.data
    assert y.flags.owndata and address % 64 == 0
    del y
    assert kept() == x.nbytes
    again = F.layer_norm(x, 1024)
    assert again.ctypes.data == address and kept() == 0


@pytest.mark.parametrize("offset", [0, 16, 1024, 3072, 4092])
def test_a_result_lies_41_lines_on_from_its_input(x, offset):
    memory = np.empty(x.nbytes + 4096, np.uint8)
    begin = (offset - memory.ctypes.data) % 4096
    there = memory[begin : begin + x.nbytes].view(np.float32).reshape(SHAPE)
    there[...] = x
    for _ in range(2):  # new memory, then that of the result before, which was for another place
        y = F.layer_norm(there, 1024)
        assert y.ctypes.data % 64 == 0
        assert (y.ctypes.data - there.ctypes.data) % 4096 in range(41 * 64 - 63, 41 * 64 + 1)
        del y
        F.layer_norm(x, 1024)


def test_memory_that_is_referenced_is_not_handed_out(x):
    y = F.layer_norm(x, 1024)
    expected, view = y.copy(), y[3:5, ::2]
    del y
    assert kept() == 0
    for _ in range(3):
        F.layer_norm(x + 1, 1024)
    assert np.array_equal(view, expected[3:5, ::2])


def test_the_bound_holds(x):
    cnorm.set_cache_limit(2 * x.nbytes)
    results = [F.layer_norm(x, 1024) for _ in range(5)]
    del results
    assert kept() == 2 * x.nbytes
    cnorm.set_cache_limit(x.nbytes)
    assert kept() == x.nbytes
    cnorm.empty_cache()
    assert kept() == 0
    cnorm.set_cache_limit(0)
    F.layer_norm(x, 1024)
    assert kept() == 0


def test_an_array_may_be_resized_and_outlive_the_cache(x):
    y = F.layer_norm(x, 1024)
    y.resize((2048, 1024), refcheck=False)
    assert np.array_equal(y[:1024], F.layer_norm(x, 1024)) and not y[1024:].any()
    y.resize((3, 1024), refcheck=False)
    assert np.array_equal(y, F.layer_norm(x, 1024)[:3])
    cnorm.empty_cache()
    y[...] = 1
    del y
    assert kept() <= _pool.kept()[1]


def rows(n):
    """An input of n rows of 4 KiB, and what is a result of its size."""
    return np.ones((n, 1024), np.float32)


@pytest.mark.parametrize("shape", [(1, 16), (768,), (3, 5, 7), (64, 1024), (127, 1024)])
def test_a_small_result_is_an_array_like_any_other(shape):
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    y = F.layer_norm(x, shape[-1])
    like = np.empty_like(x)
    assert y.base is None and y.flags.owndata and y.ctypes.data % 64 == 0
    assert y.flags.num == like.flags.num and y.strides == like.strides and y.dtype == like.dtype
    address, expected = y.ctypes.data, y.copy()
    del y
    assert kept() == x.nbytes
    y = F.layer_norm(x, shape[-1])
    assert kept() == 0 and np.array_equal(y, expected)
    if x.nbytes < 16384:  # others are placed anew
        assert y.ctypes.data == address
    y.resize(2 * x.size, refcheck=False)
    assert np.array_equal(y[: x.size], expected.ravel()) and not y[x.size :].any()
    y.resize(3, refcheck=False)
    del y
    assert kept() == 12


def test_small_results_have_a_bound_of_their_own():
    large = F.layer_norm(rows(1024), 1024)
    address = large.ctypes.data
    del large
    results = [F.layer_norm(rows(n), 1024) for n in range(1, 128)]
    del results
    assert 0 < kept() - 1024 * 4096 <= 4 << 20
    again = F.layer_norm(rows(1024), 1024)
    assert abs(again.ctypes.data - address) < 8192
    cnorm.set_cache_limit(8192)
    assert kept() <= 8192
    cnorm.set_cache_limit(0)
    F.layer_norm(rows(1), 1024)
    assert kept() == 0


def test_nothing_is_kept_of_nothing():
    y = F.layer_norm(np.empty((0, 16), np.float32), 16)
    assert y.shape == (0, 16) and y.flags.owndata
    del y
    assert kept() == 0


def traced():
    """Bytes of arrays that tracemalloc knows of."""
    arrays = tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)
    return sum(t.size for t in tracemalloc.take_snapshot().filter_traces([arrays]).traces)


@pytest.mark.parametrize("n", [1, 1024])
def test_tracemalloc_knows_of_results(n):
    x = rows(n)
    tracemalloc.start()
    try:
        y = F.layer_norm(x, 1024)
        assert traced() == y.nbytes
        del y
        assert traced() == 0
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("limit, error", [(-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_bad_limits(limit, error):
    before = _pool.kept()
    with pytest.raises(error):
        cnorm.set_cache_limit(limit)
    assert _pool.kept() == before


def test_threads_get_memory_of_their_own(x):
    inputs = [x + i for i in range(4)]
    expected = [F.layer_norm(a, 1024) for a in inputs]
    wrong = []

    def run(i):
        for _ in range(40):
            if not np.array_equal(F.layer_norm(inputs[i], 1024), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_results_may_be_freed_at_exit(elsewhere):
    code = (
        "import numpy as np, cnorm.functional as F; y = F.layer_norm(np.ones((1024, 1024)), 1024)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
