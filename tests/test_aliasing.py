"""An argument that is written shares memory with one that is read: as if each had its own.

Every pair of every function is generated from the operations. Two arrays that are both written
must not overlap, which is an error before anything is written.
"""

from itertools import combinations

import numpy as np
import pytest
from operations import CLIP, calls_of, copied, outcome

import cnorm.functional as F

RUNNING = ("running_mean", "running_var")


def _written(function, arguments):
    """The arguments that a call writes, those that it could take added."""
    like = next(arguments[k] for k in ("input", "sum") if k in arguments)
    written = {"out": np.zeros_like(like)}
    if "residual" in arguments:
        written["residual_out"] = np.zeros_like(like)
    from_input = arguments.get("training") or arguments.get("use_input_stats")
    if from_input and not function.__name__.endswith("backward"):
        written |= {k: arguments[k] for k in RUNNING}
    return written


def _overlapping(one, other, start):
    """Copies of both arrays in one piece of memory, `other` from `start` bytes after `one`."""
    memory = np.zeros(max(one.nbytes, start + other.nbytes) + 64, np.uint8)
    memory = memory[-memory.ctypes.data % 64 :]
    views = []
    for array, begin in ((one, 0), (other, start)):
        view = memory[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
        view[...] = array
        views.append(view)
    return views


def _check(function, arguments, names):
    """As on copies, or an error that names the overlap, nothing written; whether the latter."""
    before = copied(arguments)
    expected_arguments = copied(arguments)
    expected = outcome(function, expected_arguments)
    found = outcome(function, arguments)
    what = f"{function.__name__}, {names}"
    assert isinstance(expected, list), (what, expected)
    if isinstance(found, tuple):
        assert found[0] is ValueError and "overlap" in found[1], (what, found)
        expected_arguments = before
    else:
        assert found == expected, what
    for name in names[:1]:
        same = arguments[name].tobytes() == expected_arguments[name].tobytes()
        assert same, f"{what}: {name} holds something else"
    return isinstance(found, tuple)


@pytest.mark.parametrize("activation", [None, "slope", "clip"])
def test_every_pair_of_a_written_and_a_read_argument(operation, dtype, activation, rng):
    slope = rng.uniform(0.1, 0.9, 6) if activation == "slope" else None
    clip = CLIP if activation == "clip" else None
    pairs = 0
    for function, arguments in calls_of(operation, rng, dtype=dtype, slope=slope, clip=clip):
        written = _written(function, arguments)
        for to in written:
            reads = [k for k, v in arguments.items() if isinstance(v, np.ndarray) and k != to]
            for read in set(reads) - set(written):
                one = written[to]
                for start in {0, one.nbytes // 16 * 8, max(one.nbytes - 8, 0)}:
                    call = arguments | {k: written[k] for k in (to, *RUNNING) if k in written}
                    call = copied(call)
                    call[to], call[read] = _overlapping(one, arguments[read], start)
                    refused = _check(function, call, (to, read))
                    assert not refused
                    pairs += 1
    assert pairs >= 6


def test_every_pair_of_written_arguments(operation, dtype, rng):
    for function, arguments in calls_of(operation, rng, dtype=dtype):
        written = _written(function, arguments)
        for one, other in combinations(written, 2):
            call = copied(arguments | written)
            call[one], call[other] = _overlapping(written[one], written[other], 0)
            assert _check(function, call, (one, other)), (function, one, other)


def test_statistics_in_the_gaps_of_each_other(rng):
    """Columns of one table share no element, however close they lie."""
    x = rng.normal(size=(5, 6)).astype(np.float32)
    table = np.array([[0, 1]] * 6, np.float32)
    F.batch_norm(x, table[:, 0], table[:, 1], training=True)
    mean, var = np.zeros(6, np.float32), np.ones(6, np.float32)
    F.batch_norm(x, mean, var, training=True)
    assert table[:, 0].tobytes() == mean.tobytes() and table[:, 1].tobytes() == var.tobytes()


def test_elements_that_share_memory_cannot_be_written(rng):
    x = rng.normal(size=(4, 6)).astype(np.float32)
    one_row = np.lib.stride_tricks.as_strided(np.zeros(6, np.float32), (4, 6), (0, 4))
    with pytest.raises(ValueError, match="out has elements that share memory"):
        F.layer_norm(x, 6, out=one_row)
    one = np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (6,), (0,))
    with pytest.raises(ValueError, match="running_mean has elements that share memory"):
        F.batch_norm(x, one, np.ones(6, np.float32), training=True)


def test_statistics_of_evaluation_stay_those_of_the_call(rng):
    """What switch norm keeps for backward does not change with the running statistics."""
    x, dy = rng.normal(size=(2, 5, 6))
    running = np.zeros(6), np.ones(6)
    mix = np.zeros(2), np.ones(2)
    _, stats = F.switch_norm(x, *running, None, None, *mix, return_stats=True)
    expected = F.switch_norm_backward(dy, x, stats, None, *mix)
    for r in running:
        r[...] = 7
    actual = F.switch_norm_backward(dy, x, stats, None, *mix)
    assert [a.tobytes() for a in actual] == [e.tobytes() for e in expected]
