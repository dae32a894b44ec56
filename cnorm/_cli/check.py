"""``python -m cnorm check``: the kernels of this machine against the reference."""

from __future__ import annotations

import hashlib
import time
from importlib.util import find_spec
from itertools import product, repeat
from typing import Any

import numpy as np

import cnorm
from cnorm import _dispatch, _operations, _reference, functional
from cnorm._cli._screen import progress, table
from cnorm._operations import Array, Inputs
from cnorm._version import install

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


# What each operation computes, forward and backward, by name.
OPERATIONS = {name: case for operation in _operations.OPERATIONS for name, case in operation.cases}


def run() -> dict[str, Any]:
    """Check every operation, dtype and build; say what is off, and by how much."""
    start = time.perf_counter()
    missing = (
        {} if find_spec("ml_dtypes") else {"bfloat16": f"it needs ml_dtypes: {install('half')}"}
    )
    dtypes = [name for name in LIMITS if name not in missing]
    pairs = list(product(OPERATIONS, dtypes))
    results = [_check(name, dtype) for name, dtype in progress(pairs, "cnorm check")]
    return {
        "passed": all(result["passed"] for result in results),
        "seconds": time.perf_counter() - start,
        "builds": list(_dispatch.available()),
        "threads": list(THREADS),
        "not_checked": missing,
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
            with _dispatch.using(build), cnorm.num_threads(threads, policy="fixed"):
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
    for dtype, why in report.get("not_checked", {}).items():
        lines.append(f"{dtype} was not checked: {why}")
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
