"""``python -m cnorm bench``: the norms here against NumPy, and torch where installed."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

import cnorm
from cnorm import _runtime
from cnorm import functional as F
from cnorm._cli._screen import progress, table

Array = NDArray[Any]
Call = Callable[[], object]

EPS = 1e-5
SECONDS = 0.15  # for each measurement
# Above these shares the report says that something disturbs it: of the processors that others
# keep busy before the first measurement, and of the time that the middle batch takes longer.
BUSY, UNEVEN = 0.1, 0.1
FEWER = 0.05  # of the calls that may have several threads: samples are at most 1/64 of the time


@dataclass(frozen=True)
class Case:
    """A norm on one shape. ``axes`` are those of a unit once the input is seen as ``view``."""

    norm: str
    shape: tuple[int, ...]
    view: tuple[int, ...]
    axes: tuple[int, ...]
    parameters: tuple[int, ...]  # their shape, against the view


CASES = (
    Case("layer_norm", (1, 16), (1, 16), (1,), (16,)),
    Case("layer_norm", (8, 128, 768), (1024, 768), (1,), (768,)),
    Case("rms_norm", (8, 128, 768), (1024, 768), (1,), (768,)),
    Case("batch_norm", (4096, 256), (4096, 256, 1), (0, 2), (256, 1)),
    Case("batch_norm", (8, 64, 56, 56), (8, 64, 3136), (0, 2), (64, 1)),
    Case("group_norm", (8, 128, 32, 32), (8, 32, 4, 1024), (2, 3), (32, 4, 1)),
    Case("instance_norm", (8, 128, 32, 32), (8, 128, 1024), (2,), (128, 1)),
)


class Numpy:
    """The norms as one writes them in NumPy."""

    def __init__(self, case: Case, x: Array, dy: Array, weight: Array, bias: Array) -> None:
        self.axes = case.axes
        self.x, self.dy = x.reshape(case.view), dy.reshape(case.view)
        self.weight, self.bias = weight.reshape(case.parameters), bias.reshape(case.parameters)
        self.centred = case.norm != "rms_norm"
        names = range(-len(case.parameters), 0)
        kept = [axis % self.x.ndim for axis, n in zip(names, case.parameters, strict=True) if n > 1]
        self.others = tuple(axis for axis in range(self.x.ndim) if axis not in kept)
        self.mean = self.x.mean(self.axes, keepdims=True) if self.centred else np.float32(0)
        square = np.square(self.x - self.mean).mean(self.axes, keepdims=True)
        self.rstd = 1 / np.sqrt(square + EPS)

    def forward(self) -> Array:
        x = self.x
        if self.centred:
            x = x - x.mean(self.axes, keepdims=True)
        y: Array = x / np.sqrt(np.square(x).mean(self.axes, keepdims=True) + EPS) * self.weight
        return y + self.bias if self.centred else y

    def backward(self) -> tuple[Array, ...]:
        xhat = (self.x - self.mean) * self.rstd
        g = self.dy * self.weight
        dx = g - xhat * (g * xhat).mean(self.axes, keepdims=True)
        if self.centred:
            dx -= g.mean(self.axes, keepdims=True)
        return dx * self.rstd, (self.dy * xhat).sum(self.others), self.dy.sum(self.others)


def _cnorm(case: Case, x: Array, dy: Array, weight: Array, bias: Array) -> tuple[Call, Call]:
    forward: Callable[..., Any] = getattr(F, case.norm)
    backward: Callable[..., Any] = getattr(F, f"{case.norm}_backward")
    extra: tuple[Any, ...] = {
        "layer_norm": (weight.shape,),
        "rms_norm": (weight.shape,),
        "group_norm": (case.view[1],),
        "batch_norm": (None, None),
        "instance_norm": (None, None),
    }[case.norm]
    options = {"training": True} if case.norm == "batch_norm" else {}
    affine = (weight,) if case.norm == "rms_norm" else (weight, bias)
    call = partial(forward, x, *extra, *affine, eps=EPS, **options)
    _, *stats = call(return_stats=True)
    extra = () if extra == (None, None) else extra
    return call, partial(backward, dy, x, *extra, *stats, weight)


def _numpy(case: Case, x: Array, dy: Array, weight: Array, bias: Array) -> tuple[Call, Call]:
    norm = Numpy(case, x, dy, weight, bias)
    return norm.forward, norm.backward


def _torch(case: Case, x: Array, dy: Array, weight: Array, bias: Array) -> tuple[Call, Call]:
    import torch

    tx, tw, tb = (torch.from_numpy(array).requires_grad_() for array in (x, weight, bias))
    tdy = torch.from_numpy(dy)
    functional = torch.nn.functional
    call: Call = {
        "layer_norm": lambda: functional.layer_norm(tx, tw.shape, tw, tb, EPS),
        "rms_norm": lambda: functional.rms_norm(tx, tw.shape, tw, EPS),
        "group_norm": lambda: functional.group_norm(tx, case.view[1], tw, tb, EPS),
        "batch_norm": lambda: functional.batch_norm(tx, None, None, tw, tb, True, eps=EPS),
        "instance_norm": lambda: functional.instance_norm(tx, None, None, tw, tb, eps=EPS),
    }[case.norm]
    inputs = (tx, tw) if case.norm == "rms_norm" else (tx, tw, tb)
    y = call()
    backward = partial(torch.autograd.grad, y, inputs, tdy, retain_graph=True)
    return torch.no_grad()(call), backward


@dataclass(frozen=True)
class Time:
    """Microseconds a call took, in many batches, each long enough to time."""

    best: float
    spread: float  # how much longer the median batch took, as a share of the best


def _time(call: Call) -> Time:
    start = time.perf_counter()
    call()
    once = max(time.perf_counter() - start, 1e-7)
    number = max(1, int(1e-3 / once))
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(number):
            call()
        times.append((time.perf_counter() - start) / number)
    best = min(times)
    return Time(best * 1e6, statistics.median(times) / best - 1)


def _busy(seconds: float = 0.3) -> float | None:
    """How many of our processors others keep busy while this process sleeps; None if unknown."""
    before = _ticks()
    time.sleep(seconds)
    after = _ticks()
    if not before or before.keys() != after.keys():
        return None
    share = 0.0
    for processor, (idle, total) in after.items():
        passed = total - before[processor][1]
        if not passed:  # some sandboxes have counters that stand still
            return None
        share += 1 - (idle - before[processor][0]) / passed
    return share


def _ticks() -> dict[str, tuple[int, int]]:
    """Ticks of each processor that this process may use, idle and in all; empty if unknown."""
    try:
        ours = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        with open("/proc/stat") as file:
            lines = [line.split() for line in file if line.startswith("cpu")]
        # user nice system idle iowait irq softirq steal; what follows is part of user and nice
        counts = {name: list(map(int, numbers[:8])) for name, *numbers in lines if name in ours}
        return {name: (sum(ticks[3:5]), sum(ticks)) for name, ticks in counts.items()}
    except (AttributeError, OSError, ValueError):  # not on macOS or Windows
        return {}


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """The threads of cnorm and, where it is installed, of torch."""
    with cnorm.num_threads(number):
        if not find_spec("torch"):
            yield
            return
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(number)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def run(threads: int | None = None) -> dict[str, Any]:
    """Time every case; ``threads`` goes for cnorm and torch."""
    peers = {"cnorm": _cnorm, "numpy": _numpy}
    if find_spec("torch"):
        peers["torch"] = _torch
    busy, before = _busy(), _runtime.count_calls()
    with _threads(threads or cnorm.get_num_threads()):
        results = [
            result for case in progress(CASES, "cnorm bench") for result in _measure(case, peers)
        ]
        calls, fewer, brief = _runtime.count_calls()
        return {
            "calls_for_threads": calls - before[0],
            "calls_on_fewer_threads": fewer - before[1],
            "threads_wait_briefly": brief,
            "unit": "microseconds",
            "threads": cnorm.get_num_threads(),
            "processors": len(_ticks()) or os.cpu_count(),
            "busy_processors": busy,
            "results": results,
        }


def _measure(case: Case, peers: dict[str, Any]) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(2, *case.shape)).astype(np.float32)
    size = int(np.prod(case.parameters))
    weight, bias = rng.normal(size=(2, size)).astype(np.float32)
    calls = {name: peer(case, x, dy, weight, bias) for name, peer in peers.items()}
    results = []
    for index, direction in enumerate(("forward", "backward")):
        times = {name: _time(pair[index]) for name, pair in calls.items()}
        results.append(
            {
                "norm": case.norm,
                "shape": list(case.shape),
                "direction": direction,
                "times": {name: time.best for name, time in times.items()},
                "spreads": {name: time.spread for name, time in times.items()},
            }
        )
    return results


def render(report: dict[str, Any]) -> str:
    """A table: microseconds, and how many times as long as cnorm the others take; what disturbed.

    A time is that of the best batch; `+3%` says how much longer the median batch took.
    """
    others = [name for name in report["results"][0]["times"] if name != "cnorm"]
    rows = []
    for result in report["results"]:
        times, spreads = result["times"], result["spreads"]
        shown = {name: f"{times[name]:.1f} +{spreads[name]:.0%}" for name in times}
        shape = "x".join(map(str, result["shape"]))
        direction = "" if result["direction"] == "forward" else " backward"
        rows.append(
            [f"{result['norm']} {shape}{direction}", shown["cnorm"]]
            + [shown[name] for name in others]
            + [_ratio(times[name] / times["cnorm"]) for name in others]
        )
    threads = report["threads"]
    head = [f"microseconds, float32, {threads} thread{'s' * (threads > 1)}", "cnorm", *others]
    lines = [table([*head, *(f"{name}/cnorm" for name in others)], rows), ""]
    lines.append("A time is the best batch's; +3% says that the median batch took 3% longer.")
    return "\n".join([*lines, *_disturbances(report)])


def _ratio(ratio: float) -> str:
    """How many times as long; more than 100 is a disturbed time, of which digits say nothing."""
    return f"{ratio:.1f}x" if ratio <= 100 else ">100x"


def _disturbances(report: dict[str, Any]) -> Iterator[str]:
    """A line on whatever makes these times less certain."""
    busy, processors = report["busy_processors"], report["processors"]
    if busy is not None and busy > BUSY * processors:
        yield (
            f"The machine is busy: before the first measurement other programs used {busy:.1f} of "
            f"{processors} processors. Times are too long; repeat on a quiet machine."
        )
    calls, fewer = report["calls_for_threads"], report["calls_on_fewer_threads"]
    if fewer > FEWER * calls or report["threads_wait_briefly"]:
        yield (
            f"{fewer} of {calls} calls of cnorm that are worth {report['threads']} threads ran on "
            "fewer, because threads that wait for processors take longer. CNORM_THREAD_POLICY="
            "fixed turns that off."
        )
    spreads = [spread for result in report["results"] for spread in result["spreads"].values()]
    if (typical := statistics.median(spreads)) > UNEVEN:
        yield (
            f"Times are uneven: a typical median batch took {typical:.0%} longer than the best. "
            "Other programs may be running, or the processor's clock changing."
        )
