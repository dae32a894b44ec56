"""The norms as operators of torch, ``torch.ops.cnorm.*``: cnorm's also in graphs.

Each is functional and comes with a fake implementation, a gradient and a rule for ``vmap``, so
that ``torch.compile``, ``torch.export``, ``make_fx`` and dispatch modes see it as one node.
``batch_norm`` and ``instance_norm`` return ``(y, mean, rstd, running_mean, running_var)`` with new
running statistics (empty where nothing is updated), ``group_norm`` and ``layer_norm``
``(y, mean, rstd)``, ``rms_norm`` ``(y, rstd)``, ``local_response_norm`` y. The statistics are
float64 and have no gradient. All but ``local_response_norm`` take a mask, ``where``, as their last
argument. In forward-mode differentiation the operators raise.
"""

from dataclasses import dataclass

import torch
from torch.autograd import forward_ad

from . import _torch_functions as F
from ._torch_autograd import DTYPES, arrays_of, as_tensor, check_mask, mask_of

_CHANNELS = "bool training, float momentum=0.1, float eps=1e-05"


@dataclass(frozen=True)
class _Operator:
    """One norm as an operator: which tensors and settings it takes, how many statistics it has."""

    name: str
    kind: type
    settings: str  # their schema
    parameters: int = 2
    running: bool = False
    statistics: int = 2
    masked: bool = True

    @property
    def schema(self):
        tensors = ["Tensor input", "Tensor? weight", "Tensor? bias"][: 1 + self.parameters]
        if self.running:
            tensors += ["Tensor? running_mean", "Tensor? running_var"]
        return f"({', '.join([*tensors, *self.options])}) -> {_returns(self.outputs)}"

    @property
    def options(self):
        """The schemas of what follows the tensors: a mask comes last."""
        return [self.settings, "Tensor? where=None"] if self.masked else [self.settings]

    @property
    def outputs(self):
        return 1 + self.statistics + 2 * self.running

    @property
    def backward_schema(self):
        tensors = ["Tensor grad_output", "Tensor input"]
        if self.parameters:
            tensors.append("Tensor? weight")
        tensors += [f"Tensor statistic{i}" for i in range(self.statistics)]
        return f"({', '.join([*tensors, *self.options])}) -> {_returns(1 + self.parameters)}"

    def split(self, arguments):
        """(input, weight, bias), running statistics, the norm, a mask or None."""
        n = 1 + self.parameters
        m = n + 2 * self.running
        tensors = [*arguments[:n], None, None][:3]
        norm, where = self.norm(arguments[m:])
        if where is not None:
            check_mask(where, tensors[0])
        return tensors, arguments[n:m] or (None, None), norm, where

    def norm(self, options):
        """The norm with these settings, and the mask that may follow them."""
        n = self.settings.count(",") + 1
        settings = (tuple(s) if isinstance(s, (list, tuple)) else s for s in options[:n])
        return self.kind(*settings), options[n] if len(options) > n else None

    def updates(self, norm, running):
        return norm.uses_input_stats and running[0] is not None

    # ---- what torch calls ----

    def forward(self, *arguments):
        tensors, running, norm, where = self.split(arguments)
        if self.updates(norm, running):
            running = [r.clone() for r in running]
        # what a mask leaves out keeps its value
        y = torch.empty_like(tensors[0]) if where is None else torch.zeros_like(tensors[0])
        given = () if running[0] is None else running
        (out, *arrays), mask = _arrays(self.name, (y, *tensors, *given), where)
        _, *stats = norm.forward(*arrays, out=out, **mask)
        results = [y, *map(as_tensor, stats)]
        if self.running:
            results += running if self.updates(norm, running) else [y.new_empty(0), y.new_empty(0)]
        return _packed(results)

    def fake(self, *arguments):
        (x, *_), running, norm, _ = self.split(arguments)
        results = [torch.empty_like(x)]
        results += [x.new_empty(s, dtype=torch.float64) for s in norm.stats_shapes(x.shape)]
        if self.running:
            updates = self.updates(norm, running)
            results += [torch.empty_like(r) if updates else x.new_empty(0) for r in running]
        return _packed(results)

    def backward(self, dy, x, *rest):
        weight = rest[0] if self.parameters else None
        stats = rest[bool(self.parameters) :][: self.statistics]
        norm, where = self.norm(rest[bool(self.parameters) + self.statistics :])
        dx = torch.empty_like(x)
        (out, *arrays), mask = _arrays(self.name, (dx, dy, x, weight, *stats), where)
        _, *grads = norm.backward(*arrays, out=out, **mask)
        return _packed([dx, *(as_tensor(g) for g in grads[: self.parameters])])

    def backward_fake(self, dy, x, *rest):
        results = [torch.empty_like(x)]
        if self.parameters:
            weight, settings = rest[0], rest[1 + self.statistics :]
            if weight is None:
                dtype = torch.promote_types(x.dtype, torch.float32)
                shape = getattr(self.norm(settings)[0], "normalized_shape", x.shape[1:2])
                results += [x.new_empty(shape, dtype=dtype) for _ in range(self.parameters)]
            else:
                results += [torch.empty_like(weight) for _ in range(self.parameters)]
        return _packed(results)

    def setup_context(self, ctx, inputs, output):
        n = 1 + self.parameters
        stats = output[1 : 1 + self.statistics] if self.statistics else ()
        if self.statistics:
            ctx.mark_non_differentiable(*output[1:])
        ctx.settings = inputs[n + 2 * self.running :]
        where = ()
        if self.masked:
            *ctx.settings, where = ctx.settings
            where = (where,)
        ctx.given = [t is not None for t in inputs[:n]]
        ctx.save_for_backward(*inputs[: 1 + bool(self.parameters)], *stats, *where)

    def gradient(self, ctx, dy, *_):
        *saved, where = ctx.saved_tensors if self.masked else (*ctx.saved_tensors, None)
        mask = (where,) if self.masked else ()
        grads = getattr(torch.ops.cnorm, self.name + "_backward")(dy, *saved, *ctx.settings, *mask)
        grads = grads if isinstance(grads, (list, tuple)) else (grads,)
        grads = [g if given else None for g, given in zip(grads, ctx.given, strict=True)]
        return *grads, *[None] * (2 * self.running + len(ctx.settings) + len(mask))


def _returns(n):
    return "Tensor" if n == 1 else f"({', '.join(['Tensor'] * n)})"


def _packed(results):
    return results[0] if len(results) == 1 else tuple(results)


def _arrays(name, tensors, where):
    """The memory of tensors, and the option of a norm that is the mask."""
    # torch would drop the tangents: its operators from Python have no forward-mode derivative, and
    # under torch.func.jvp the kernel cannot see which of its tensors have one
    if forward_ad._current_level >= 0:
        raise NotImplementedError(
            f"torch.ops.cnorm.{name} has no forward-mode derivative: use the layer or "
            f"cnorm.interop.torch.{name}, which torch computes itself in that mode"
        )
    arrays, mask = arrays_of(tensors), mask_of(where)
    if arrays is None or (mask is None) != (where is None):
        kinds = sorted({str(t.dtype) for t in tensors if t is not None})
        raise TypeError(
            f"torch.ops.cnorm.{name} computes dense tensors on the CPU of "
            f"{', '.join(map(str, DTYPES))}, but got {', '.join(kinds)}"
        )
    return arrays, {} if mask is None else {"where": mask}


def _one_by_one(operator):
    """The rule for ``vmap``: the samples one after the other."""

    def rule(info, in_dims, *arguments):
        def sample(i):
            return [
                a.select(d, i) if isinstance(a, torch.Tensor) and d is not None else a
                for a, d in zip(arguments, in_dims, strict=True)
            ]  # fmt: skip

        results = [operator(*sample(i)) for i in range(info.batch_size)]
        if isinstance(results[0], torch.Tensor):
            return torch.stack(results), 0
        stacked = tuple(torch.stack(r) for r in zip(*results, strict=True))
        return stacked, (0,) * len(stacked)

    return rule


OPERATORS = (
    _Operator("batch_norm", F.BatchNorm, _CHANNELS, running=True),
    _Operator("instance_norm", F.InstanceNorm, _CHANNELS, running=True),
    _Operator("group_norm", F.GroupNorm, "int num_groups, float eps=1e-05"),
    _Operator("layer_norm", F.LayerNorm, "int[] normalized_shape, float eps=1e-05"),
    _Operator("rms_norm", F.RMSNorm, "int[] normalized_shape, float? eps=None", 1, statistics=1),
    _Operator(
        "local_response_norm",
        F.LocalResponseNorm,
        "int size, float alpha=0.0001, float beta=0.75, float k=1.0",
        0,
        statistics=0,
        masked=False,
    ),
)

for _operator in OPERATORS:
    _name = f"cnorm::{_operator.name}"
    _library = torch.library
    for _qualified, _function, _fake, _schema in (
        (_name, _operator.forward, _operator.fake, _operator.schema),
        (
            _name + "_backward",
            _operator.backward,
            _operator.backward_fake,
            _operator.backward_schema,
        ),
    ):
        _defined = _library.custom_op(
            _qualified, _function, mutates_args=(), device_types="cpu", schema=_schema
        )
        _library.register_fake(_qualified, _fake)
        if hasattr(_library, "register_vmap"):  # from torch 2.5 on
            _library.register_vmap(_qualified, _one_by_one(_defined))
    _library.register_autograd(_name, _operator.gradient, setup_context=_operator.setup_context)
