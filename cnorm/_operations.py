"""The registry of operations: every function of `cnorm.functional`, and what belongs to it.

`python -m cnorm check` and tools/check_install.py run the cases of each entry, and
tests/test_registry.py names what an entry lacks, and where: a stub, a reference, a page, a
benchmark. CONTRIBUTING.md lists the places. `import cnorm` does not import this module.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Function = Callable[..., tuple[Array, ...]]


@dataclass(frozen=True)
class Operation:
    """A function of `cnorm.functional` and of `cnorm._reference`, and its backward, if any."""

    name: str
    # of kernels: "rows", "channels" (segments or columns, by layout), "window"; of moments in
    # double "statistics" (sequences or columns); "image"
    family: str
    cases: tuple[tuple[str, Function], ...]  # a call forward and backward, by what it is called
    page: str  # docs/norms/<page>.md; without a backward docs/<page>.md
    layers: tuple[str, ...] = ()  # classes of `cnorm`; without any the functions stand alone
    interop: str | None = (
        None  # class of `cnorm.interop._norms`; None: not offered to other libraries
    )
    no_benchmark: str = ""  # why bench/cases.py has no case of it
    differentiable: bool = True  # whether it has a backward

    @property
    def backward(self) -> str:
        return f"{self.name}_backward"

    @property
    def functions(self) -> tuple[str, ...]:
        """Its functions: forward and, if it has one, backward."""
        return (self.name, self.backward) if self.differentiable else (self.name,)

    @property
    def document(self) -> str:
        """Where its page is."""
        return f"docs/norms/{self.page}.md" if self.differentiable else f"docs/{self.page}.md"


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
        self.mask: dict[str, Array] = {}

    def masked(self) -> Inputs:
        """A copy of these inputs with a mask that is one for all channels.

        Rows keep three elements: of two that lie close nobody computes the gradient well.
        """
        other = copy(self)
        shape = list(self.x.shape)
        shape[self.axis["channel_axis"]] = 1
        where = np.random.default_rng(1).random(shape) < 0.8
        if shape[-1] > 1:
            where[..., :3] = True
        other.mask = {"where": where}
        return other


def _masked(case: Function) -> Function:
    """A case with a mask, forward and backward."""

    def call(F: Any, i: Inputs) -> tuple[Array, ...]:
        return case(F, i.masked())

    return call


def _batch(F: Any, i: Inputs) -> tuple[Array, ...]:
    mean, var = i.mean.copy(), i.var.copy()
    y, *stats = F.batch_norm(
        i.x, mean, var, i.weight, i.bias, True, return_stats=True, **i.axis, **i.mask
    )
    return y, mean, var, *F.batch_norm_backward(i.dy, i.x, *stats, i.weight, **i.axis, **i.mask)


def _batch_eval(F: Any, i: Inputs) -> tuple[Array, ...]:
    y, *stats = F.batch_norm(
        i.x, i.mean, i.var, i.weight, i.bias, return_stats=True, **i.axis, **i.mask
    )
    return y, *F.batch_norm_backward(
        i.dy, i.x, *stats, i.weight, training=False, **i.axis, **i.mask
    )


def _instance(F: Any, i: Inputs) -> tuple[Array, ...]:
    y, *stats = F.instance_norm(
        i.x, weight=i.weight, bias=i.bias, return_stats=True, **i.axis, **i.mask
    )
    return y, *F.instance_norm_backward(i.dy, i.x, *stats, i.weight, **i.axis, **i.mask)


def _group(F: Any, i: Inputs) -> tuple[Array, ...]:
    y, *stats = F.group_norm(i.x, 3, i.weight, i.bias, return_stats=True, **i.axis, **i.mask)
    return y, *F.group_norm_backward(i.dy, i.x, 3, *stats, i.weight, **i.axis, **i.mask)


def _layer(F: Any, i: Inputs) -> tuple[Array, ...]:
    shape = i.row_weight.shape
    y, *stats = F.layer_norm(i.x, shape, i.row_weight, i.row_bias, return_stats=True, **i.mask)
    return y, *F.layer_norm_backward(i.dy, i.x, shape, *stats, i.row_weight, **i.mask)


def _rms(F: Any, i: Inputs) -> tuple[Array, ...]:
    shape = i.row_weight.shape
    y, rstd = F.rms_norm(i.x, shape, i.row_weight, 1e-5, return_stats=True, **i.mask)
    return y, *F.rms_norm_backward(i.dy, i.x, shape, rstd, i.row_weight, **i.mask)


def _add_layer(F: Any, i: Inputs) -> tuple[Array, ...]:
    shape = i.row_weight.shape
    y, total, *stats = F.add_layer_norm(
        i.x, i.residual, shape, i.row_weight, i.row_bias, return_stats=True, **i.mask
    )
    # of the rounded sum, which is what a later backward is given
    return (
        y,
        total,
        *F.add_layer_norm_backward(i.dy, i.dy, total, shape, *stats, i.row_weight, **i.mask),
    )


def _add_rms(F: Any, i: Inputs) -> tuple[Array, ...]:
    shape = i.row_weight.shape
    y, total, rstd = F.add_rms_norm(
        i.x, i.residual, shape, i.row_weight, 1e-5, return_stats=True, **i.mask
    )
    return (
        y,
        total,
        *F.add_rms_norm_backward(i.dy, i.dy, total, shape, rstd, i.row_weight, **i.mask),
    )


def _response(F: Any, i: Inputs) -> tuple[Array, ...]:
    y = F.local_response_norm(i.x, 5, 0.1, **i.axis)
    return y, F.local_response_norm_backward(i.dy, i.x, 5, 0.1, **i.axis)


def _switch(F: Any, i: Inputs) -> tuple[Array, ...]:
    mixes = i.mean_mix, i.var_mix
    y, stats = F.switch_norm(
        i.x, None, None, i.weight, i.bias, *mixes, True, return_stats=True, **i.axis
    )
    return y, *F.switch_norm_backward(i.dy, i.x, stats, i.weight, *mixes, **i.axis)


def _cross_map(F: Any, i: Inputs) -> tuple[Array, ...]:
    y = F.cross_map_lrn(i.x, 3, 0.1, **i.axis)
    return y, F.cross_map_lrn_backward(i.dy, i.x, 3, 0.1, **i.axis)


def _normalize(F: Any, i: Inputs) -> tuple[Array, ...]:
    axis = i.axis["channel_axis"]
    y, norm = F.normalize(i.x, 2.0, axis, return_stats=True)
    return y, F.normalize_backward(i.dy, i.x, norm, 2.0, axis)


def _normalize_by_sums(F: Any, i: Inputs) -> tuple[Array, ...]:
    y, norm = F.normalize(i.x, 1.0, -1, return_stats=True)
    return y, F.normalize_backward(i.dy, i.x, norm, 1.0, -1)


def _normalize_by_largest(F: Any, i: Inputs) -> tuple[Array, ...]:
    axis = i.axis["channel_axis"]
    y, norm = F.normalize(i.x, math.inf, axis, return_stats=True)
    return y, F.normalize_backward(i.dy, i.x, norm, math.inf, axis)


def _moments(F: Any, i: Inputs) -> tuple[Array, ...]:
    axes = tuple(a for a in range(i.x.ndim) if a != i.axis["channel_axis"] % i.x.ndim)
    found = []
    for axis in (axes, -1, None):
        m = F.moments(i.x, axis)
        found += [m.count, m.mean, m.m2 / m.count]
    return tuple(found)


def _standardize(F: Any, i: Inputs) -> tuple[Array, ...]:
    axes = tuple(a for a in range(i.x.ndim) if a != i.axis["channel_axis"] % i.x.ndim)
    y = F.standardize(i.x, -1, ddof=1, clip=(-1, None))
    return y, *F.standardize(i.x, axes, eps=1e-5, return_stats=True)


def _image(F: Any, i: Inputs) -> tuple[Array, ...]:
    pixels = (np.abs(i.x) * 40).astype(np.uint8)
    floats = F.normalize_image(i.x, i.mean, i.var, 3.0, dtype=i.x.dtype, **i.axis)
    y = F.normalize_image(pixels, i.mean, i.var, 255, **i.axis, out_channel_axis=-1)
    return y, floats


def _dims(name: str, *, lazy: bool = False) -> tuple[str, ...]:
    eager = tuple(f"{name}{n}d" for n in (1, 2, 3))
    return eager + tuple(f"Lazy{layer}" for layer in eager) if lazy else eager


OPERATIONS = (
    Operation(
        "batch_norm",
        "channels",
        (
            ("batch_norm", _batch),
            ("batch_norm, evaluation", _batch_eval),
            ("batch_norm, masked", _masked(_batch)),
        ),
        page="batch",
        layers=(*_dims("BatchNorm", lazy=True), "SyncBatchNorm"),
        interop="BatchNorm",
    ),
    Operation(
        "instance_norm",
        "channels",
        (("instance_norm", _instance), ("instance_norm, masked", _masked(_instance))),
        page="instance",
        layers=_dims("InstanceNorm", lazy=True),
        interop="InstanceNorm",
    ),
    Operation(
        "group_norm",
        "channels",
        (("group_norm", _group), ("group_norm, masked", _masked(_group))),
        page="group",
        layers=("GroupNorm", "LazyGroupNorm"),
        interop="GroupNorm",
    ),
    Operation(
        "layer_norm",
        "rows",
        (("layer_norm", _layer), ("layer_norm, masked", _masked(_layer))),
        page="layer",
        layers=("LayerNorm", "LazyLayerNorm"),
        interop="LayerNorm",
    ),
    Operation(
        "rms_norm",
        "rows",
        (("rms_norm", _rms), ("rms_norm, masked", _masked(_rms))),
        page="rms",
        layers=("RMSNorm", "LazyRMSNorm"),
        interop="RMSNorm",
    ),
    Operation(
        "add_layer_norm",
        "rows",
        (("add_layer_norm", _add_layer), ("add_layer_norm, masked", _masked(_add_layer))),
        page="layer",
    ),
    Operation(
        "add_rms_norm",
        "rows",
        (("add_rms_norm", _add_rms), ("add_rms_norm, masked", _masked(_add_rms))),
        page="rms",
    ),
    Operation(
        "local_response_norm",
        "window",
        (("local_response_norm", _response),),
        page="response",
        layers=("LocalResponseNorm",),
        interop="LocalResponseNorm",
    ),
    Operation(
        "cross_map_lrn",
        "window",
        (("cross_map_lrn", _cross_map),),
        page="response",
        layers=("CrossMapLRN2d",),
        no_benchmark="the loops of local_response_norm",
    ),
    Operation(
        "normalize",
        "channels",
        (
            ("normalize", _normalize),
            ("normalize, sum of magnitudes", _normalize_by_sums),
            ("normalize, largest magnitude", _normalize_by_largest),
        ),
        page="normalize",
    ),
    Operation(
        "switch_norm",
        "channels",
        (("switch_norm", _switch),),
        page="switch",
        layers=_dims("SwitchNorm"),
    ),
    Operation(
        "moments",
        "statistics",
        (("moments", _moments),),
        page="moments",
        no_benchmark="bench/pipelines.py compares it",
        differentiable=False,
    ),
    Operation(
        "standardize",
        "statistics",
        (("standardize", _standardize),),
        page="moments",
        no_benchmark="bench/pipelines.py compares it",
        differentiable=False,
    ),
    Operation(
        "normalize_image",
        "image",
        (("normalize_image", _image),),
        page="images",
        no_benchmark="bench/pipelines.py compares it",
        differentiable=False,
    ),
)
