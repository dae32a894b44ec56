"""``python -m cnorm check``: the kernels of this machine against the reference."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from importlib.util import find_spec
from itertools import product, repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

import cnorm
from cnorm import _dispatch, _reference, functional
from cnorm._cli._screen import progress, table

Array = NDArray[Any]
Function = Callable[..., tuple[Array, ...]]

# Shapes and where their channels are: odd sizes around the kernels' lanes, several tiles, images.
CASES = (
    ((2, 6, 33), 1),
    ((3, 6, 4, 5), 1),
    ((2, 6, 4099), 1),
    ((5, 12, 7, 7), 1),
    ((3, 9, 6), -1),
    ((2, 4099, 6), -1),
    ((5, 7, 7, 12), -1),
)
THREADS = (1, 3)
# How far a result may be off, in its dtype's epsilons at its largest element. In float64 the
# reference rounds as much as the kernel. Half types are rounded from float32 or wider: the kernel
# and the reference at most fall to two neighbours.
LIMITS = {"float32": 16.0, "float64": 64.0, "float16": 1.0, "bfloat16": 1.0}


class Inputs:
    """Random arrays of one shape; parameters are float32 or wider."""

    def __init__(self, shape: tuple[int, ...], channel_axis: int, dtype: np.dtype[Any]) -> None:
        rng = np.random.default_rng(0)
        wide = np.promote_types(dtype, np.float32)
        self.axis = {"channel_axis": channel_axis}
        self.x, self.residual = rng.uniform(-1, 3, (2, *shape)).astype(dtype)
        self.dy = rng.uniform(-2, 2, shape).astype(dtype)  # no mean: sums of it stay small
        by_channel = rng.uniform(0.5, 1.5, (4, shape[channel_axis])).astype(wide)
        self.weight, self.bias, self.mean, self.var = by_channel
        self.row_weight, self.row_bias = rng.uniform(0.5, 1.5, (2, shape[-1])).astype(wide)
        self.mean_mix, self.var_mix = rng.uniform(-1, 1, (2, 3)).astype(wide)


def _batch(F: Any, i: Inputs) -> tuple[Array, ...]:
    mean, var = i.mean.copy(), i.var.copy()
    y, *stats = F.batch_norm(i.x, mean, var, i.weight, i.bias, True, return_stats=True, **i.axis)
    return y, mean, var, *F.batch_norm_backward(i.dy, i.x, *stats, i.weight, **i.axis)


def _batch_eval(F: Any, i: Inputs) -> tuple[Array, ...]:
    y, *stats = F.batch_norm(i.x, i.mean, i.var, i.weight, i.bias, return_stats=True, **i.axis)
    return y, *F.batch_norm_backward(i.dy, i.x, *stats, i.weight, training=False, **i.axis)


def _instance(F: Any, i: Inputs) -> tuple[Array, ...]:
    y, *stats = F.instance_norm(i.x, weight=i.weight, bias=i.bias, return_stats=True, **i.axis)
    return y, *F.instance_norm_backward(i.dy, i.x, *stats, i.weight, **i.axis)


def _group(F: Any, i: Inputs) -> tuple[Array, ...]:
    y, *stats = F.group_norm(i.x, 3, i.weight, i.bias, return_stats=True, **i.axis)
    return y, *F.group_norm_backward(i.dy, i.x, 3, *stats, i.weight, **i.axis)


def _layer(F: Any, i: Inputs) -> tuple[Array, ...]:
    shape = i.row_weight.shape
    y, *stats = F.layer_norm(i.x, shape, i.row_weight, i.row_bias, return_stats=True)
    return y, *F.layer_norm_backward(i.dy, i.x, shape, *stats, i.row_weight)


def _rms(F: Any, i: Inputs) -> tuple[Array, ...]:
    shape = i.row_weight.shape
    y, rstd = F.rms_norm(i.x, shape, i.row_weight, 1e-5, return_stats=True)
    return y, *F.rms_norm_backward(i.dy, i.x, shape, rstd, i.row_weight)


def _add_layer(F: Any, i: Inputs) -> tuple[Array, ...]:
    shape = i.row_weight.shape
    y, total, *stats = F.add_layer_norm(
        i.x, i.residual, shape, i.row_weight, i.row_bias, return_stats=True
    )
    # of the rounded sum, which is what a later backward is given
    return y, total, *F.add_layer_norm_backward(i.dy, i.dy, total, shape, *stats, i.row_weight)


def _add_rms(F: Any, i: Inputs) -> tuple[Array, ...]:
    shape = i.row_weight.shape
    y, total, rstd = F.add_rms_norm(i.x, i.residual, shape, i.row_weight, 1e-5, return_stats=True)
    return y, total, *F.add_rms_norm_backward(i.dy, i.dy, total, shape, rstd, i.row_weight)


def _response(F: Any, i: Inputs) -> tuple[Array, ...]:
    y = F.local_response_norm(i.x, 5, 0.1, **i.axis)
    return y, F.local_response_norm_backward(i.dy, i.x, 5, 0.1, **i.axis)


def _switch(F: Any, i: Inputs) -> tuple[Array, ...]:
    mixes = i.mean_mix, i.var_mix
    y, stats = F.switch_norm(
        i.x, None, None, i.weight, i.bias, *mixes, True, return_stats=True, **i.axis
    )
    return y, *F.switch_norm_backward(i.dy, i.x, stats, i.weight, *mixes, **i.axis)


OPERATIONS: dict[str, Function] = {
    "batch_norm": _batch,
    "batch_norm, evaluation": _batch_eval,
    "instance_norm": _instance,
    "group_norm": _group,
    "layer_norm": _layer,
    "rms_norm": _rms,
    "add_layer_norm": _add_layer,
    "add_rms_norm": _add_rms,
    "local_response_norm": _response,
    "switch_norm": _switch,
}


def run() -> dict[str, Any]:
    """Check every operation, dtype and build; say what is off, and by how much."""
    start = time.perf_counter()
    dtypes = [name for name in LIMITS if name != "bfloat16" or find_spec("ml_dtypes")]
    pairs = list(product(OPERATIONS, dtypes))
    results = [_check(name, dtype) for name, dtype in progress(pairs, "cnorm check")]
    return {
        "passed": all(result["passed"] for result in results),
        "seconds": time.perf_counter() - start,
        "builds": list(_dispatch.available()),
        "threads": list(THREADS),
        "results": results,
    }


def _check(name: str, dtype_name: str) -> dict[str, Any]:
    """The worst error over shapes, builds and threads, forward and backward together."""
    errors: dict[str, float] = {}
    identical = True
    for shape, channel_axis in CASES:
        inputs = Inputs(shape, channel_axis, _dtype(dtype_name))
        expected = OPERATIONS[name](_reference, inputs)
        digests = set()
        for build, threads in product(_dispatch.available(), THREADS):
            with _dispatch.using(build), cnorm.num_threads(threads):
                got = OPERATIONS[name](functional, inputs)
            error = max(map(_error, got, expected, repeat(inputs.x.size)))
            errors[build] = max(errors.get(build, 0), error)
            digests.add(hashlib.sha256(b"".join(array.tobytes() for array in got)).digest())
        identical &= len(digests) == 1
    return {
        "operation": name,
        "dtype": dtype_name,
        "errors": errors,
        "identical": identical,
        "passed": identical and all(error <= 1 for error in errors.values()),
    }


def _dtype(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def _error(got: Array, expected: Array, terms: int) -> float:
    """The largest difference as a share of what is allowed; NaN is infinite."""
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return float("inf")
    wide = expected.astype(np.float64)
    # an element that sums n terms of size 1 may cancel to less than the sqrt(n) it rounds with
    scale = max(1.0, float(np.abs(wide).max()), (terms / wide.size) ** 0.5)
    eps = 2**-7 if got.dtype.name == "bfloat16" else float(np.finfo(got.dtype).eps)
    error = float(np.abs(got.astype(np.float64) - wide).max()) / scale / eps
    return error / LIMITS[got.dtype.name] if np.isfinite(error) else float("inf")


def render(report: dict[str, Any]) -> str:
    """A table of worst errors, a line on each failure, and the verdict."""
    by_name = {(result["operation"], result["dtype"]): result for result in report["results"]}
    dtypes = list(dict.fromkeys(dtype for _, dtype in by_name))
    rows = [
        [name, *(_share(max(by_name[name, dtype]["errors"].values())) for dtype in dtypes)]
        for name in OPERATIONS
    ]
    lines = [table(["worst error, as a share of its limit", *dtypes], rows), ""]
    for result in report["results"]:
        if not result["passed"]:
            bits = "" if result["identical"] else "; builds or threads differ in bits"
            errors = ", ".join(
                f"{build} {_share(error)}" for build, error in result["errors"].items()
            )
            lines.append(f"FAILED {result['operation']} {result['dtype']}: {errors}{bits}")
    builds, threads = ", ".join(report["builds"]), " and ".join(map(str, report["threads"]))
    ran = f"{builds}; {threads} threads; {report['seconds']:.1f} s"
    if report["passed"]:
        lines.append(f"Passed: {ran}")
        lines.append("No error is above its limit. Bits do not depend on build or threads.")
    else:
        lines.append(f"FAILED: {ran}")
    return "\n".join(lines)


def _share(error: float) -> str:
    return f"{error:.1%}" if error < 10 else "wrong"
