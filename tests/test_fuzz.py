"""Arguments that nobody should pass: each call ends in a result or in a documented exception.

CNORM_FUZZ says how many calls, CNORM_SEED which; nothing that was passed may have changed after an
exception.
"""

import os

import ml_dtypes
import numpy as np
import pytest
from operations import OPERATIONS

import cnorm.functional as F

CALLS = int(os.environ.get("CNORM_FUZZ", "4000"))
SEED = int(os.environ.get("CNORM_SEED", "20"))
DOCUMENTED = (TypeError, ValueError, RuntimeError, IndexError, OverflowError, MemoryError)


def _strange_arrays(random):
    shape = tuple(random.integers(0, 5, random.integers(0, 5)))
    array = random.normal(size=shape)
    dtypes = ["f4", "f8", "f2", ml_dtypes.bfloat16, "i4", "u1", "?", "c8", "O", "f4", ">f4", "U3"]
    array = array.astype(dtypes[random.integers(len(dtypes))])
    return [
        array,
        array.T,
        array[..., ::-1] if array.ndim else array,
        np.broadcast_to(array, (2, *shape)),
        np.full_like(array, 0 if array.dtype.kind in "OU" else 1),
    ]


STRANGE = [
    None, True, 0, -1, 1, 3, 2**31, 2**63, 10**30, 0.5, -0.0, 1e300, float("nan"), float("inf"), 1j,
    "", "out", b"x", (), (2, 3), [], [1, "a"], [[1.0], [2.0, 3.0]], {}, {"a": 1}, object(),
    np.float32(3), np.int8(-1), np.float64("nan"), ..., type, len, np.array(None),
    np.array(5.0), np.zeros((0,)), np.zeros((1, 0, 2), np.float32), np.datetime64("2020"), slice(2),
]  # fmt: skip


def _mutated(random, value):
    choice = random.integers(4)
    if choice == 0:
        arrays = _strange_arrays(random)
        return arrays[random.integers(len(arrays))]
    if choice == 1 and isinstance(value, np.ndarray):
        return _spoiled(random, value)
    return STRANGE[random.integers(len(STRANGE))]


def _spoiled(random, array):
    array = np.array(array)
    if array.size and array.dtype.kind == "f":
        array.flat[random.integers(array.size)] = [np.nan, np.inf, 0][random.integers(3)]
    choice = random.integers(5)
    if choice == 0:
        array.flags.writeable = False
    return array[:-1] if choice == 1 and array.ndim else array


def _snapshot(arguments):
    arrays = (a for a in arguments if type(a) is np.ndarray and a.dtype.kind != "O")
    return [(a, a.tobytes()) for a in arrays]


def _call(function, positional, keywords):
    before = _snapshot([*positional, *keywords.values()])
    try:
        with np.errstate(all="ignore"):
            result = function(*positional, **keywords)
    except DOCUMENTED as error:
        assert str(error)
        for array, content in before:
            assert array.tobytes() == content, f"{function.__name__}: {error}"
        return None
    return result


class _Recorder:
    """Stands for `F`: keeps what an operation would pass, so that it can be mutated."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        def record(*positional, **keywords):
            self.calls.append((name, positional, keywords))
            return getattr(F, name)(*positional, **keywords)

        return record


def test_calls_with_mutated_arguments():
    random = np.random.default_rng(SEED)
    for i in range(CALLS):
        operation = OPERATIONS[i % len(OPERATIONS)]
        shape = [(3, 6), (2, 6, 5), (2, 6, 3, 4)][random.integers(3)]
        if not operation.accepts(shape, 1):
            continue
        x, dy = random.normal(size=(2, *shape)).astype([np.float32, np.float16][i % 2])
        recorder = _Recorder()
        operation.run(recorder, x, dy, operation.draw(random, shape, 1), axis=1)
        name, positional, keywords = recorder.calls[random.integers(len(recorder.calls))]
        positional, keywords = list(positional), dict(keywords)
        for extra in ("out", "negative_slope", "channel_axis", "bias", "return_stats", "momentum"):
            if random.uniform() < 0.1:
                keywords[extra] = _mutated(random, x)
        for _ in range(random.integers(1, 4)):
            if random.uniform() < 0.5 and positional:
                at = random.integers(len(positional))
                positional[at] = _mutated(random, positional[at])
            elif keywords:
                at = sorted(keywords)[random.integers(len(keywords))]
                keywords[at] = _mutated(random, keywords[at])
        if random.uniform() < 0.05 and positional:
            del positional[random.integers(len(positional))]
        _call(getattr(F, name), positional, keywords)


def test_memory_does_not_grow():
    """Good calls and refused ones, over and over: what is resident stays."""
    resource = os.path.exists("/proc/self/statm")
    x = np.ones((64, 32), np.float32)
    weight = np.ones(32)

    def calls(n):
        for _ in range(n):
            _, mean, rstd = F.layer_norm(x, 32, weight, return_stats=True)
            F.layer_norm_backward(x, x, 32, mean, rstd, weight)
            F.batch_norm(x, np.zeros(32), np.ones(32), training=True)
            _call(F.layer_norm, [x, 31], {})
            _call(F.batch_norm, [x, None, weight], {"training": True})

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096 if resource else 0

    calls(200)
    before = resident() if resource else 0
    calls(CALLS // 4)
    assert not resource or resident() - before < 4 << 20


X = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
IMAGE = np.random.default_rng(0).normal(size=(2, 6, 3, 3)).astype(np.float32)
TWO = np.ones(2)  # one number for each of two: no momentum
THREE = np.ones(3)
FOUND = {
    "channels in place of the batch, groups": lambda running, out: F.group_norm_backward(
        X, X, 3, np.ones((3, 3)), np.ones((3, 3)), channel_axis=0
    ),
    "channels in place of the batch": lambda running, out: F.batch_norm_backward(
        X, X, np.ones(3), np.ones(3), channel_axis=0
    ),
    "no axis of channels": lambda running, out: F.instance_norm_backward(
        X[0], X[0], np.ones(6), np.ones(6), channel_axis=0
    ),
    "momentum of batch norm": lambda running, out: F.batch_norm(
        X, *running, training=True, momentum=TWO, out=out
    ),
    "momentum of instance norm": lambda running, out: F.instance_norm(
        IMAGE, *running, momentum=TWO, out=out
    ),
    "momentum of switch norm": lambda running, out: F.switch_norm(
        IMAGE, *running, None, None, THREE, THREE, True, momentum=TWO, out=out
    ),
}


@pytest.mark.parametrize("call", FOUND)
def test_what_was_found(call):
    running = np.zeros(6), np.ones(6)
    out = np.full_like(X if "batch" in call else IMAGE, 7)
    assert _call(FOUND[call], [running, out], {}) is None
    assert (out == 7).all() and (running[0] == 0).all() and (running[1] == 1).all()
