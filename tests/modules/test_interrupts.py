"""Interrupts, wherever they come: a call has changed everything that it changes, or nothing."""

import copy
import ctypes
import itertools
import os
import random
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import cnorm

INTERRUPTS = int(os.environ.get("CNORM_INTERRUPTS", "200"))  # of each case, by signals
PACKAGE = str(Path(cnorm.__file__).parent)


def trained(norm, *shape):
    """Steps that train: forward changes the statistics, backward the gradients."""
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    steps = [lambda norm: norm(x), lambda norm: norm.backward(x)]
    return norm, steps * 4


def loaded(net):
    other = copy.deepcopy(net)
    other(np.ones((4, 3), np.float32))
    shapes = {name: array.shape for name, array in other.state_dict().items()}
    twos, threes = ({k: np.full(shape, v) for k, shape in shapes.items()} for v in (2.0, 3.0))
    steps = [lambda net: net.load_state_dict(twos), lambda net: net.load_state_dict(threes)]
    return net, steps * 4


CASES = {
    "batch": lambda: trained(cnorm.BatchNorm1d(3), 4, 3),
    "batch, average": lambda: trained(cnorm.BatchNorm2d(3, momentum=None).double(), 2, 3, 4, 4),
    "batch, half": lambda: trained(cnorm.BatchNorm1d(3, activation=cnorm.PReLU(3)).half(), 4, 3),
    "lazy batch": lambda: trained(cnorm.LazyBatchNorm1d(), 4, 3),
    "instance": lambda: trained(cnorm.InstanceNorm1d(3, 1e-5, 0.1, True, True), 2, 3, 5),
    "instance, double": lambda: trained(cnorm.LazyInstanceNorm1d().double(), 2, 3, 5),
    "switch": lambda: trained(cnorm.SwitchNorm1d(3), 4, 3),
    "switch, double": lambda: trained(cnorm.SwitchNorm2d(3).double(), 2, 3, 4, 4),
    "switch, sums": lambda: trained(cnorm.SwitchNorm2d(3, using_moving_average=False), 2, 3, 4, 4),
    "layer": lambda: trained(cnorm.LayerNorm(3, activation=cnorm.PReLU()), 4, 3),
    "sequential": lambda: trained(
        cnorm.Sequential(cnorm.LayerNorm(3), cnorm.BatchNorm1d(3), cnorm.PReLU(3)), 4, 3
    ),
    "load": lambda: loaded(cnorm.Sequential(cnorm.LayerNorm(3), cnorm.BatchNorm1d(3))),
    "load, lazy": lambda: loaded(cnorm.Sequential(cnorm.LayerNorm(3), cnorm.LazyBatchNorm1d())),
}


def state(module):
    """What must not tear, as a value that can be compared."""
    kinds = tuple(type(m).__name__ for m in module.modules())
    arrays = (np.asarray(a) for a in module.state_dict().values())
    grads = (None if p.grad is None else p.grad.tobytes() for p in module.parameters())
    return kinds, tuple(a.tobytes() for a in arrays), tuple(grads)


def states(module, steps):
    """Before the first step, and after each."""
    module = copy.deepcopy(module)
    return [state(module), *(state(module) for step in steps if step(module) is not NotImplemented)]


def raised(frame):
    """An interrupt before the instruction, also where the interpreter would not look for one."""
    raise KeyboardInterrupt


def pending(frame):
    """A signal that comes before the instruction: the interpreter looks for it when it does."""
    sys.settrace(IDLE)
    while frame is not None:
        frame.f_trace = frame.f_trace and TRIP
        frame = frame.f_back
    return TRIP  # called before the next instruction


def _trace_function(name):
    """The interpreter's function as one that traces: a step of Python would take the signal."""
    function = getattr(ctypes.pythonapi, name)
    function.argtypes = [ctypes.py_object] * 3  # frame, event, arg: passed, and not looked at
    function.restype = None
    return function


TRIP = _trace_function("PyErr_SetInterrupt")  # SIGINT has come
IDLE = _trace_function("PyGILState_Check")


@pytest.fixture(scope="module", autouse=True)
def _references_for_numpy():
    """NumPy 2.0 gives up a reference too many to its allocator wherever `__array_finalize__`
    raises, as it does here hundreds of times, and crashes once none is left: it gets more of them.
    PyDataMem_GetHandler, entry 305 of NumPy's table of functions, returns a new one."""
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    table = pointer(np._core.multiarray._ARRAY_API, None)
    entry = ctypes.c_void_p.from_address(table + 305 * ctypes.sizeof(ctypes.c_void_p))
    new_reference = ctypes.PYFUNCTYPE(ctypes.c_void_p)(entry.value)
    for _ in range(10_000):
        assert new_reference()


@pytest.mark.parametrize("interrupt", [raised, pending])
@pytest.mark.parametrize("case", CASES)
def test_an_interrupt_at_every_instruction(case, interrupt):
    original, steps = CASES[case]()
    steps = steps[:1] if case.startswith("load") else steps[:2]  # forward and backward
    allowed = set(states(original, steps))
    assert len(allowed) > 1, "the steps change nothing"
    for k in itertools.count(1):
        module = copy.deepcopy(original)
        interrupted = _run(module, steps, interrupt, k)
        assert state(module) in allowed, f"torn by an interrupt at instruction {k}"
        assert _is_free(module), f"an interrupt at instruction {k} leaves a lock taken"
        if not interrupted:
            break
    assert k > 100


def _run(module, steps, interrupt, instruction):
    """Run the steps; whether they came to that instruction of the package and were interrupted."""
    count = 0

    def trace(frame, event, arg):
        nonlocal count
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = True
        count += event == "opcode"
        if event == "opcode" and count == instruction:
            return interrupt(frame)
        return trace

    def interrupted(signum, frame):
        sys.settrace(None)
        raise KeyboardInterrupt

    before = sys.gettrace(), signal.signal(signal.SIGINT, interrupted)
    sys._getframe().f_trace_opcodes = True  # Python 3.12 has to know before it traces anything
    sys.settrace(trace)
    try:
        for step in steps:
            step(module)
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before[0])
        signal.signal(signal.SIGINT, before[1])
    return False


def with_lock(lock):
    """As ``with lock: pass`` is compiled since Python 3.14: a call, and only then the `try`."""
    lock.__enter__()
    try:
        pass
    finally:
        lock.release()


def test_an_interrupt_that_leaves_a_lock_taken_would_be_found(monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", __file__)
    free = []
    for k in itertools.count(1):
        lock = threading.RLock()
        if not _run(lock, [with_lock], pending, k):
            break
        free.append(_of_another_thread(lambda lock=lock: lock.acquire(blocking=False)))
    assert free.count(True) > 3
    assert False in free


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers")
@pytest.mark.parametrize("case", CASES)
def test_real_signals(case):
    original, steps = CASES[case]()
    allowed = set(states(original, steps))
    pick = random.Random(case)
    longest, interrupted, runs = 1e-4, 0, False

    def interrupt(signum, frame):
        if runs:  # a signal that another thread took may come after the timer was stopped
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(INTERRUPTS):
            module = copy.deepcopy(original)
            try:
                runs = True
                signal.setitimer(signal.ITIMER_REAL, pick.uniform(1e-6, longest))
                for step in steps:
                    step(module)
                runs = False
                signal.setitimer(signal.ITIMER_REAL, 0)
                longest *= 0.95
            except KeyboardInterrupt:
                runs = False
                interrupted += 1
                longest *= 1.05
            assert state(module) in allowed
            assert _is_free(module), "a lock is still held"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted > INTERRUPTS / 5


def _is_free(module):
    """Whether another thread can take every lock."""
    return _of_another_thread(lambda: [m._lock.run(int) for m in module.modules()]) is not None


def _of_another_thread(call, seconds=20):
    """What it returns there; None where it does not return in time."""
    results = []
    thread = threading.Thread(target=lambda: results.append(call()), daemon=True)
    thread.start()
    thread.join(seconds)
    return results[0] if results else None
