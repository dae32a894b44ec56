"""Arguments that nobody should pass: each call ends in a result or in a documented exception.

CNORM_FUZZ says how many calls, CNORM_SEED which; nothing that was passed may have changed after an
exception. By hand, with a count of the outcomes of each kind of call:

    python tests/test_fuzz.py --calls 300000 --seed 1

The kinds: other layouts, odd values and arguments of a wrong kind; an argument that shares memory
with one that is written; up to 64 axes; objects that change an array while they are asked; sizes
that cannot be addressed; calls from several threads at once; layers, with bad input and bad
attributes; arrays of other libraries, and the functions and the estimator for those libraries.
"""

import argparse
import copy
import importlib
import os
import threading
from collections import Counter
from contextlib import suppress
from inspect import signature
from math import prod

import layouts
import ml_dtypes
import numpy as np
import pytest
from cnorm._call.arrays import to_array
from operations import CLIP, DTYPES, OPERATIONS, calls_of, copied, outcome

import cnorm
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


def _operation(random, shape):
    """One that accepts the shape."""
    while True:
        operation = OPERATIONS[random.integers(len(OPERATIONS))]
        if operation.accepts(shape, 1):
            return operation


def _drawn(random):
    """A good call: (function, arguments by name)."""
    shape = [(3, 6), (2, 6, 5), (2, 6, 3, 4)][random.integers(3)]
    activation = random.uniform()
    slope = random.uniform(0.1, 0.9, 6) if activation < 0.3 else None
    clip = CLIP if activation > 0.8 else None
    dtype = DTYPES[random.integers(len(DTYPES))]
    calls = calls_of(_operation(random, shape), random, shape, dtype, slope, clip)
    function, arguments = calls[random.integers(len(calls))]
    if "where" in signature(function).parameters and random.uniform() < 0.25:
        of_mask = [1 if random.uniform() < 0.4 else n for n in _like(arguments).shape]
        arguments["where"] = random.random(of_mask) < random.choice([0.3, 0.9, 1])
    return function, arguments


def _like(arguments):
    """What the result is like."""
    return next(arguments[k] for k in ("input", "sum") if k in arguments)


def _chosen(random, names):
    names = sorted(names)
    return names[random.integers(len(names))]


def _arrays(arguments):
    return [k for k, v in arguments.items() if isinstance(v, np.ndarray)]


VALID = {
    "eps": [1e-12, 1e-5, 0.5, np.float32(1e-3), 1],
    "momentum": [0, 0.1, 0.999, 1, np.float64(0.5)],
    "return_stats": [True, False, np.True_],
    "negative_slope": [0, 0.25, 1, 1.5, np.float32(0.1)],
    "clip": [None, CLIP, (0, 6), (-np.inf, np.float32(0.3))],
}
READ = [layouts.contiguous, layouts.negative, layouts.scattered, layouts.read_only,
        layouts.unaligned, layouts.byte_swapped]  # fmt: skip
WRITTEN = READ[:3]
ODD = [np.nan, np.inf, -np.inf, 0, -0.0, 1e-40, 6e4, 1e30]


def _written(function, arguments):
    """The names of what the call writes to."""
    names = {"out", "residual_out"}
    if arguments.get("training") or arguments.get("use_input_stats"):
        names |= {"running_mean", "running_var"}
    return {name for name in names & set(arguments) if arguments[name] is not None}


def _same(outcomes, others):
    """Whether both are the same results, whatever bits a NaN has, or the same exception."""
    if isinstance(outcomes, tuple) or isinstance(others, tuple) or outcomes == others:
        return outcomes == others

    def values(result):
        _, dtype, content = result
        return np.frombuffer(content, dtype).astype(np.float64)  # array_equal knows its NaN

    return len(outcomes) == len(others) and all(
        one[:2] == other[:2] and np.array_equal(values(one), values(other), equal_nan=True)
        for one, other in zip(outcomes, others, strict=True)
    )


def _varied(random, function, arguments):
    """Good values of what may be chosen, and odd ones in arrays."""
    for name, values in VALID.items():
        either = name in {"negative_slope", "clip"} and {"negative_slope", "clip"} & set(arguments)
        if name in signature(function).parameters and random.uniform() < 0.3 and not either:
            arguments.setdefault(name, values[random.integers(len(values))])
    like = _like(arguments)
    if "channel_axis" in arguments:
        arguments["channel_axis"] = [1, 1 - like.ndim, np.int8(1)][random.integers(3)]
    if "out" in signature(function).parameters and random.uniform() < 0.3:
        arguments["out"] = np.zeros_like(like)
    for name in _arrays(arguments):
        if random.uniform() < 0.2 and arguments[name].size:
            at = random.integers(arguments[name].size, size=random.integers(1, 4))
            arguments[name].flat[at] = ODD[random.integers(len(ODD))]


def mutated(random):
    """Any layout and value, with the results of a copy; in a quarter wrong kinds of arguments."""
    function, arguments = _drawn(random)
    with np.errstate(all="ignore"):
        _varied(random, function, arguments)
    written = _written(function, arguments)
    laid_out = copied(arguments)
    for name in _arrays(arguments):
        layout = READ[random.integers(len(WRITTEN if name in written else READ))]
        laid_out[name] = layout(laid_out[name])
    if random.uniform() < 0.75:
        expected, found = outcome(function, arguments), outcome(function, laid_out)
        assert _same(found, expected), (function.__name__, found[:2], expected[:2])
        for name in written:
            one, other = (a[name].astype(np.float64) for a in (arguments, laid_out))
            assert np.array_equal(one, other, equal_nan=True), (function.__name__, name)
        return isinstance(found, list)
    for _ in range(random.integers(1, 4)):
        name = _chosen(random, signature(function).parameters)
        laid_out[name] = _mutated(random, laid_out.get(name))
    if random.uniform() < 0.05:
        del laid_out[_chosen(random, laid_out)]
    return _call(function, [], laid_out) is not None


def aliased(random):
    """Two arguments in one piece of memory, at any distance: as on copies, or refused."""
    function, arguments = _drawn(random)
    arguments["out"] = np.zeros_like(_like(arguments))
    if "residual" in arguments and random.uniform() < 0.5:
        arguments["residual_out"] = np.zeros_like(_like(arguments))
    one, other = random.permutation(_arrays(arguments))[:2]
    sizes = arguments[one].nbytes, arguments[other].nbytes
    memory = np.zeros(sum(sizes) + 64, np.uint8)[: sum(sizes)]
    for name, at in ((one, 0), (other, int(random.integers(sizes[0] // 8 + 1)) * 8)):
        view = memory[at : at + arguments[name].nbytes].view(arguments[name].dtype)
        view = view.reshape(arguments[name].shape)
        view[...] = arguments[name]
        arguments[name] = view
    separate, before = copied(arguments), memory.copy()
    expected, found = outcome(function, separate), outcome(function, arguments)
    what = function.__name__, one, other
    if found != expected:
        assert found[0] is ValueError and "overlap" in found[1], what
        assert (memory == before).all(), what
        return False
    for name in _written(function, arguments):
        if isinstance(found, list) and name in {one, other}:
            assert arguments[name].tobytes() == separate[name].tobytes(), what
    return isinstance(found, list)


def ranked(random):
    """Axes of size 1 between channels and the last axis: the same bits."""
    function, arguments = _drawn(random)
    shape = _like(arguments).shape
    rank = int(random.integers(len(shape), 65))
    row = arguments.get("normalized_shape")
    if len(shape) < 3 or function.__name__.startswith("switch") or (row and len(row) > 1):
        return True
    if arguments.get("axis") is not None or not isinstance(arguments.get("dim", 1), int):
        return True  # which would name other axes
    ones = (1,) * (rank - len(shape))
    long = {
        k: v.reshape(*v.shape[:2], *ones, *v.shape[2:])
        if isinstance(v, np.ndarray) and v.ndim == len(shape)
        else v
        for k, v in copied(arguments).items()
    }
    expected, found = outcome(function, arguments), outcome(function, long)
    assert [e[1:] for e in expected] == [f[1:] for f in found], (function.__name__, rank)
    return True


class _Lying:
    """Any argument, with an effect on another when it is asked, and another answer each time."""

    def __init__(self, random, value, victim):
        self.random, self.value, self.victim, self.asked = random, value, victim, 0

    def _answer(self):
        self.asked += 1
        if self.random.uniform() < 0.7:
            size = int(self.victim.size * self.random.uniform(0, 2))
            with suppress(ValueError):  # not its own memory
                self.victim.resize((max(size, 1),), refcheck=False)
        return self.value

    def __array__(self, dtype=None, copy=None):
        array = np.array(self._answer(), dtype)
        return array if self.asked == 1 else array.ravel()[: array.size // 2]

    def __float__(self):
        return float(self._answer())

    def __index__(self):
        return int(self._answer()) + self.asked - 1

    def __bool__(self):
        return bool(self._answer())

    def __len__(self):
        return len(self._answer()) + self.asked - 1


def lying(random):
    function, arguments = _drawn(random)
    arguments = copied(arguments)
    for name in ("eps", "momentum"):
        if name in signature(function).parameters:
            arguments.setdefault(name, 1e-5)
    arguments["out"] = np.zeros_like(_like(arguments))
    name = _chosen(random, set(arguments) - {"out"})
    victim = arguments[_chosen(random, set(_arrays(arguments)) - {name})]
    arguments[name] = _Lying(random, arguments[name], victim)
    return isinstance(outcome(function, arguments), list)


def huge(random):
    """Elements and axes without end; never a result, but of no elements."""
    function, arguments = _drawn(random)
    like = _like(arguments)
    shape = list(like.shape)
    shape[random.integers(len(shape))] = 1 << int(random.integers(48, 52))
    if random.uniform() < 0.3:
        shape[random.integers(len(shape))] = 0
    for name, value in arguments.items():
        if isinstance(value, np.ndarray) and value.shape == like.shape:
            arguments[name] = np.broadcast_to(np.ones((), like.dtype), shape)
        elif isinstance(value, np.ndarray) and value.ndim == 1 and random.uniform() < 0.5:
            arguments[name] = np.broadcast_to(np.ones((), value.dtype), (shape[1],))
    if "normalized_shape" in arguments:
        arguments["normalized_shape"] = tuple(shape[-len(arguments["normalized_shape"]) :])
    found = outcome(function, arguments)
    assert isinstance(found, tuple) or prod(shape) == 0, (function.__name__, shape)
    return isinstance(found, list)


def threaded(random):
    """Several calls, each in a thread of its own, at once: as one after the other."""
    calls = [_drawn(random) for _ in range(4)]
    expected = [outcome(function, copied(arguments)) for function, arguments in calls]
    found = [None] * len(calls)
    barrier = threading.Barrier(len(calls))

    def call(i):
        barrier.wait()
        found[i] = outcome(calls[i][0], calls[i][1])

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected
    return True


LAYERS = [
    (lambda: cnorm.BatchNorm2d(6, activation=cnorm.PReLU(6)), (2, 6, 3, 4)),
    (lambda: cnorm.BatchNorm1d(6, dtype=np.float64), (3, 6)),
    (lambda: cnorm.InstanceNorm2d(6, affine=True, track_running_stats=True), (2, 6, 3, 4)),
    (lambda: cnorm.GroupNorm(3, 6, activation=cnorm.LeakyReLU()), (3, 6)),
    (lambda: cnorm.LayerNorm((3, 4)), (2, 6, 3, 4)),
    (lambda: cnorm.RMSNorm(4, activation=cnorm.PReLU()), (2, 6, 3, 4)),
    (lambda: cnorm.SwitchNorm2d(6), (2, 6, 3, 4)),
    (lambda: cnorm.SwitchNorm1d(6), (3, 6)),
    (lambda: cnorm.LocalResponseNorm(3), (2, 6, 3, 4)),
    (lambda: cnorm.CrossMapLRN2d(3), (2, 6, 3, 4)),
    (lambda: cnorm.LazyBatchNorm2d(), (2, 6, 3, 4)),
]
ATTRIBUTES = ["eps", "momentum", "channel_axis", "num_groups", "normalized_shape", "size", "alpha"]


def _state(layer):
    arrays = layer.__dict__.values()
    return type(layer), [a.tobytes() for a in arrays if type(a) is np.ndarray and a.dtype != "O"]


def layered(random):
    """Forward and backward of a layer; one that raises leaves its buffers as they were."""
    make, shape = LAYERS[random.integers(len(LAYERS))]
    layer = make()
    x = random.normal(size=shape).astype(np.float32)
    gradient = x
    choice = random.integers(10)
    if choice == 0:
        x = _mutated(random, x)
    elif choice == 1:
        gradient = _mutated(random, x)
    elif choice == 2:
        name = _chosen(random, [a for a in ATTRIBUTES if hasattr(layer, a)])
        setattr(layer, name, STRANGE[random.integers(len(STRANGE))])
    elif choice == 3:
        buffers = [k for k, v in layer.__dict__.items() if type(v) is np.ndarray and v.ndim]
        if buffers:
            setattr(layer, _chosen(random, buffers), _spoiled(random, np.ones(6)))
        x = _Lying(random, x, x.copy())
    else:
        x, gradient = (READ[random.integers(len(READ))](x) for _ in range(2))
        layer.train(bool(random.integers(2)))
    layer = copy.deepcopy(layer)
    calls = [(layer.forward, x), (layer.backward, gradient)]
    for call, argument in calls[: 1 + layer.training]:
        before = _state(layer)
        try:
            with np.errstate(all="ignore"):
                call(argument)
        except DOCUMENTED as error:
            assert str(error)
            assert _state(layer) == before, (type(layer).__name__, error)
            return False
    return True


class _Exported:
    """Memory by one protocol alone; some raise."""

    def __init__(self, array, name, error=None):
        def export(*positional, **keywords):
            if error:
                raise error("not today")
            return getattr(array, name)(*positional, **keywords)

        self.exports = {name: export}
        if name == "__dlpack__":
            self.exports["__dlpack_device__"] = array.__dlpack_device__

    def __getattr__(self, name):
        try:
            return self.exports[name]
        except KeyError:
            raise AttributeError(name) from None


class _Subclass(np.ndarray):
    pass


def _library(name):
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _tensor(array):
    torch = _library("torch")
    if array.dtype.isbuiltin == 1:
        return torch.from_numpy(array)
    return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)


def _foreign(random, array):
    """The array as an object of another library, or one that raises when it is read."""
    choice = random.integers(6)
    jax = _library("jax")
    native = array.dtype.isbuiltin == 1  # bfloat16 is not
    if choice == 0:
        return array.view(_Subclass)
    if choice == 1 and native:
        return memoryview(array)
    if choice == 2 and _library("torch"):
        return _tensor(array)
    if choice == 3 and jax and array.dtype != np.float64:  # which would become float32
        return jax.numpy.asarray(array)
    if choice == 4 and native:
        errors = [None, None, None, None, BufferError, RuntimeError, TypeError]
        return _Exported(array, "__dlpack__", errors[random.integers(len(errors))])
    return _Exported(array, "__array__")


def foreign(random):
    """Arrays of other libraries and exporters of memory: the results of NumPy's, or refused."""
    if random.uniform() < 0.1 and _library("sklearn"):
        return _estimated(random)
    function, arguments = _drawn(random)
    expected = outcome(function, copied(arguments))
    if random.uniform() < 0.2 and _library("torch"):
        _through_torch(function, copied(arguments), expected)
    for name in _arrays(arguments):
        if not name.startswith("running") and random.uniform() < 0.7:  # to be NumPy's in any case
            arguments[name] = _foreign(random, arguments[name])
    found = outcome(function, arguments)
    assert found == expected or (found[0] is TypeError and "__dlpack__" in found[1]), found[:2]
    return isinstance(found, list)


def _through_torch(function, arguments, expected):
    """The function for torch on tensors: the same bits."""
    theirs = getattr(_library("cnorm.interop.torch"), function.__name__, None)
    if theirs is None or {"negative_slope", "clip", "where"} & set(arguments):
        return
    known = signature(theirs).parameters
    arguments = {
        name: _tensor(value) if isinstance(value, np.ndarray) else value
        for name, value in arguments.items()
        if name in known
    }
    found = outcome(lambda **arguments: to_array(theirs(**arguments), "result"), arguments)
    assert found[0] == expected[0], function.__name__


def _estimated(random):
    """The estimator: what it raises leaves what it has seen as it was."""
    norm = _library("cnorm.interop.sklearn").BatchNorm()
    x = random.normal(size=(5, 3)).astype([np.float32, np.float64][random.integers(2)])
    norm.fit(x)
    if random.uniform() < 0.3:
        setattr(norm, ["eps", "momentum"][random.integers(2)], _mutated(random, 0.5))
    before = copy.deepcopy({k: v for k, v in vars(norm).items() if k.endswith("_")})
    try:
        with np.errstate(all="ignore"):
            norm.partial_fit(x if random.uniform() < 0.5 else _mutated(random, x))
            norm.inverse_transform(norm.transform(x))
    except DOCUMENTED as error:
        assert str(error)
        if "seen" in vars(norm):
            assert norm.n_samples_seen_ in (before["n_samples_seen_"], 10)
        return False
    return True


KINDS = [mutated, aliased, ranked, lying, huge, threaded, layered, foreign]


def run(calls, seed, kinds=KINDS):
    """So many calls, of all kinds in turn: how many of each kind gave a result, how many none."""
    random = np.random.default_rng(seed)
    found = Counter()
    for i in range(calls):
        kind = kinds[i % len(kinds)]
        try:
            found[kind.__name__, bool(kind(random))] += 1
        except BaseException:
            print(f"call {i} of seed {seed}: {kind.__name__}", flush=True)
            raise
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_calls(kind):
    calls = CALLS if kind is mutated else CALLS // 8
    found = run(calls // 4 if kind is threaded else calls, SEED, [kind])
    assert found[kind.__name__, True] > 0


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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Fuzz cnorm; see the head of this file.")
    parser.add_argument("--calls", type=int, default=CALLS)
    parser.add_argument("--seed", type=int, default=SEED)
    parsed = parser.parse_args()
    counts = run(parsed.calls, parsed.seed)
    for kind in KINDS:
        results, errors = counts[kind.__name__, True], counts[kind.__name__, False]
        print(f"{kind.__name__:10} {results:8} results {errors:8} documented exceptions")
