"""Which layers `accelerate` knows, and how cnorm computes each.

The computation of a layer is a function of the layer and its input, a tensor, for while nobody
watches. It returns None where the ``forward`` of the layer's class must run: for small inputs,
where torch's own function is faster, and wherever cnorm cannot compute. torch's layers are known
by their class, those of other libraries by the source of their ``forward``, whose digest is in
`KNOWN_FORWARDS`.
"""

import ast
import hashlib
import inspect
import textwrap
from functools import lru_cache
from types import FunctionType

import torch
from torch import nn

from . import _torch_functions as F
from ._torch_autograd import _is_compiling, run, run_here, watched

# Elements of an input from which cnorm is the faster one, first without gradients, then with
# forward and backward. A call of cnorm costs some 6 µs more than one of torch's own, forward and
# backward some 35 µs, which each element earns back: at once where torch computes in several
# operations, as response norm and RMSNorm; in batch norm's evaluation, where both do no more than
# read and write memory, only in results whose memory cnorm reuses (REUSED_FROM), and with gradients
# never. In a network a call costs up to 100 µs more: its code is no longer in cache.
ALWAYS, NEVER = 0, 1 << 62
BATCH_NORM = (1 << 15, 1 << 16)
BATCH_NORM_EVALUATION = (1 << 23, NEVER)
BATCH_NORM_EVALUATION_RELU = (1 << 20, 1 << 20)
FROZEN_BATCH_NORM = (1 << 14, 1 << 15)
INSTANCE_NORM = (1 << 10, 1 << 13)
GROUP_NORM = (1 << 17, 1 << 19)
GROUP_NORM_RELU = (1 << 16, 1 << 17)
LAYER_NORM = (1 << 16, 1 << 18)
RMS_NORM = (ALWAYS, ALWAYS)
RESPONSE_NORM = (ALWAYS, ALWAYS)
# Elements that a channel of batch norm costs: 0.13 µs of 2 ns each
CHANNEL = 64


# Of each computation: the least elements in evaluation, without gradients and with them, and the
# two in training. A small input then costs a layer of Python and no more.
LEAST: dict[object, tuple[int, ...]] = {}


def _from(least, evaluation=None):
    def register(compute):
        LEAST[compute] = (*(evaluation or least), *least)
        return compute

    return register


class AcceleratedForward:
    """The ``forward`` of an accelerated layer, an attribute of the layer: its class stays."""

    __slots__ = ("argument", "compute", "least", "module")

    def __init__(self, module):
        self.module = module
        self.compute = known(type(module)) or _never  # never: unpickled beside another version
        self.least = LEAST[self.compute]
        _, self.argument, *_ = inspect.signature(type(module).forward).parameters

    def __call__(self, *args, **kwargs):
        if kwargs:
            where = kwargs.pop("where", None)
            if where is not None:
                return self._masked(where, *args, **kwargs)
        if len(args) == 1 and not kwargs:
            x = args[0]
        else:
            x = None if args or len(kwargs) > 1 else kwargs.get(self.argument)
        module = self.module
        if (
            isinstance(x, torch.Tensor)
            and not _is_compiling()  # to whom a comparison of sizes would matter
            and x.numel() >= self.least[2 * module.training + torch.is_grad_enabled()]
            and not watched()
        ):
            y = self.compute(module, x)
            if y is not None:
                return y
        return type(module).forward(module, *args, **kwargs)

    def _masked(self, where, *args, **kwargs):
        """The layer with a mask, which torch's own ``forward`` has not: always by cnorm's."""
        module = self.module
        if type(module) not in MASKED:
            raise TypeError(
                f"{type(module).__name__} takes no where=: of the layers that compute with cnorm "
                f"{', '.join(kind.__name__ for kind in MASKED)} do, and the functions of "
                "cnorm.interop.torch"
            )
        (x,) = inspect.signature(type(module).forward).bind(module, *args, **kwargs).args[1:]
        return MASKED[type(module)](module, x, where=where)

    def __getstate__(self):
        return self.module

    def __setstate__(self, module):
        self.__init__(module)

    # What torch.fx and torch.export read of a forward: that of the layer's class.

    @property
    def __wrapped__(self):
        return type(self.module).forward

    @property
    def __signature__(self):
        return inspect.signature(self.__wrapped__.__get__(self.module))

    __code__ = property(lambda self: self.__wrapped__.__code__)
    __globals__ = property(lambda self: self.__wrapped__.__globals__)
    __name__ = property(lambda self: self.__wrapped__.__name__)


def _run(*args, where):
    """A norm as `run_here`; with a mask whether or not cnorm can compute it."""
    return run_here(*args) if where is None else run(*args, where=where)


def _pays(x, least, channels=0):
    return x.numel() - channels * CHANNEL >= least[torch.is_grad_enabled()]


@_from((NEVER, NEVER))
def _never(m, x):
    return None


# ---- torch's layers ----


@_from(BATCH_NORM, BATCH_NORM_EVALUATION)
def _batch_norm(m, x, *activation, where=None):
    training, tracks = m.training, m.track_running_stats
    if training or not tracks:
        least = BATCH_NORM
    else:
        least = BATCH_NORM_EVALUATION_RELU if activation else BATCH_NORM_EVALUATION
    # before the layer's buffers are asked for
    if where is None and not _pays(x, least, m.num_features):
        return None
    mean, var, count = m.running_mean, m.running_var, m.num_batches_tracked
    if training and not tracks:
        mean = var = None
    of_batch = training or (mean is None and var is None)
    m._check_input_dim(x)
    momentum = m.momentum or 0.0
    counts = training and tracks and count is not None
    if counts and m.momentum is None:  # a cumulative average
        momentum = 1 / (int(count) + 1)
    settings = (of_batch, momentum, m.eps, 1, *activation)
    y = _run(F.BatchNorm, settings, x, m.weight, m.bias, mean, var, where=where)
    if counts and y is not None:
        count.add_(1)
    return y


@_from(INSTANCE_NORM)
def _instance_norm(m, x, where=None):
    if where is not None:
        m._check_input_dim(x)
    elif x.is_nested:
        return None
    unbatched = m._get_no_batch_dim()
    batched = x.ndim > unbatched
    if where is None and (x.ndim != unbatched + batched or x.shape[-unbatched] != m.num_features):
        return None  # torch says what is wrong, or warns
    settings = (m.training or not m.track_running_stats, m.momentum or 0.0, m.eps)
    tensors = (x if batched else x[None], m.weight, m.bias, m.running_mean, m.running_var)
    y = _run(F.InstanceNorm, settings, *tensors, where=where)
    return y if batched or y is None else y[0]


@_from(GROUP_NORM)
def _group_norm(m, x, *activation, where=None):
    if where is None and not _pays(x, GROUP_NORM_RELU if activation else GROUP_NORM):
        return None
    settings = (m.num_groups, m.eps, 1, *activation)
    return _run(F.GroupNorm, settings, x, m.weight, m.bias, where=where)


@_from(LAYER_NORM)
def _layer_norm(m, x, where=None):
    if x.layout is torch.strided and not x.is_nested:
        x = x.contiguous()  # as the result of torch's own is, and as what follows is used to
    return _run(F.LayerNorm, (m.normalized_shape, m.eps), x, m.weight, m.bias, where=where)


@_from(RMS_NORM)
def _rms_norm(m, x, where=None):
    return _run(F.RMSNorm, (m.normalized_shape, m.eps), x, m.weight, where=where)


@_from(RESPONSE_NORM)
def _local_response_norm(m, x):
    return run_here(F.LocalResponseNorm, (m.size, m.alpha, m.beta, m.k), x)


CLASSES = {
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm3d: _batch_norm,
    nn.InstanceNorm1d: _instance_norm,
    nn.InstanceNorm2d: _instance_norm,
    nn.InstanceNorm3d: _instance_norm,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
    nn.LocalResponseNorm: _local_response_norm,
}
# Those that take a mask
MASKED = {kind: compute for kind, compute in CLASSES.items() if kind is not nn.LocalResponseNorm}


# ---- layers of timm, torchvision, transformers and diffusers ----


def _with_activation(norm, least, evaluation=None):
    """A norm followed by the layer's ``drop`` and ``act``, as timm's are; some in one pass."""

    @_from(least, evaluation)
    def compute(m, x):
        activation = _fused(m)
        y = norm(m, x, *activation)
        return y if y is None or activation else m.act(m.drop(y))

    return compute


def _fused(m):
    """``(negative_slope, clip)`` of the layer's activation where a norm computes it, else ()."""
    if type(m.drop) is not nn.Identity or _has_hooks(m.drop) or _has_hooks(m.act):
        return ()
    if type(m.act) is nn.ReLU:
        return 0.0, None
    if type(m.act) is nn.LeakyReLU and m.act.negative_slope >= 0:
        return m.act.negative_slope, None
    if type(m.act) in (nn.Hardtanh, nn.ReLU6) and m.act.min_val <= m.act.max_val:
        return None, (m.act.min_val, m.act.max_val)
    return ()


def _has_hooks(m):
    everywhere = nn.modules.module
    return bool(
        m._forward_hooks
        or m._forward_pre_hooks
        or m._backward_hooks
        or m._backward_pre_hooks
        or everywhere._global_forward_hooks
        or everywhere._global_forward_pre_hooks
        or everywhere._global_backward_hooks
        or everywhere._global_backward_pre_hooks
        or "forward" in vars(m)
    )


def _without_fast_norm(norm):
    """A norm of timm's, which has another computation in its "fast" mode."""

    def compute(m, x):
        return None if m._fast_norm else norm(m, x)

    LEAST[compute] = LEAST[norm]
    return compute


@_from(LAYER_NORM)
def _layer_norm_2d(m, x):
    if x.is_nested or x.ndim != 4:
        return None
    y = _layer_norm(m, x.permute(0, 2, 3, 1))
    return None if y is None else y.permute(0, 3, 1, 2)


@_from(FROZEN_BATCH_NORM)
def _frozen_batch_norm(m, x, *activation):
    if x.is_nested or x.ndim != 4 or not _pays(x, FROZEN_BATCH_NORM, x.shape[1]):
        return None
    tensors = (m.weight, m.bias, m.running_mean, m.running_var)
    if any(t.dtype is not x.dtype for t in tensors):  # the result would have another dtype
        return None
    return run_here(F.BatchNorm, (False, 0.0, m.eps, 1, *activation), x, *tensors)


def _rms_norm_of_last(eps):
    """RMSNorm over the last axis, with the weight's dtype that of the input."""

    @_from(RMS_NORM)
    def compute(m, x):
        if x.is_nested or not x.ndim:
            return None
        weight = m.weight
        if weight is not None and (weight.dtype is not x.dtype or weight.shape != x.shape[-1:]):
            return None
        return run_here(F.RMSNorm, (tuple(x.shape[-1:]), getattr(m, eps)), x, weight)

    return compute


@_from(RMS_NORM)
def _rms_norm_of_diffusers(m, x):
    return None if m.bias is not None else _of_eps(m, x)


_of_eps = _rms_norm_of_last("eps")
_of_llama = _rms_norm_of_last("variance_epsilon")

# By `digest_of`. A forward that is not listed, such as that of another version, is left alone.
KNOWN_FORWARDS = {
    # timm 1.0: BatchNormAct2d, FrozenBatchNormAct2d; GroupNormAct and GroupNorm1Act
    "81f3f8b6b04abb7c": _with_activation(_batch_norm, BATCH_NORM, BATCH_NORM_EVALUATION_RELU),
    "cf7f2995c0569d72": _with_activation(_frozen_batch_norm, FROZEN_BATCH_NORM),
    "6cbfa0e71705c914": _without_fast_norm(_with_activation(_group_norm, GROUP_NORM_RELU)),
    # GroupNorm and GroupNorm1; LayerNorm, LayerNorm2d, RmsNorm
    "7f5270765e35f6e7": _without_fast_norm(_group_norm),
    "23d63967920a9766": _without_fast_norm(_layer_norm),
    "9c58bcbc9f92c797": _without_fast_norm(_layer_norm_2d),
    "a1218df7e541df89": _without_fast_norm(_rms_norm),
    # torchvision 0.28: LayerNorm2d, FrozenBatchNorm2d
    "53d6777bbfa2e1db": _layer_norm_2d,
    "228cfd874a3fde84": _frozen_batch_norm,
    # transformers 5: weight * (x * rsqrt(mean(x**2) + eps)) in float32, whose three texts differ in
    # where they round half types: LlamaRMSNorm and 141 more, OlmoHybridRMSNorm and 11 more,
    # HeliumRMSNorm and 3 more
    "9635bcd843f309a0": _of_llama,
    "eef4e978a32aa4a4": _of_llama,
    "b6d7ab076811b6bb": _of_llama,
    # T5LayerNorm and 4 more
    "3152525beceb0d02": _of_llama,
    # diffusers 0.42: RMSNorm
    "8486c8e24319fcfd": _rms_norm_of_diffusers,
}


# What names in the source of a forward must stand for
MEANINGS = {"torch": torch, "nn": nn, "F": nn.functional, "rms_norm": nn.functional.rms_norm}


@lru_cache(4096)
def digest_of(forward):
    """A digest of what a ``forward`` computes: its source without annotations and documentation."""
    if type(forward) is not FunctionType or hasattr(forward, "__wrapped__"):
        return None
    for name, meaning in MEANINGS.items():
        if forward.__globals__.get(name, meaning) is not meaning:
            return None
    try:
        (function,) = ast.parse(textwrap.dedent(inspect.getsource(forward))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    if not isinstance(function, ast.FunctionDef) or function.decorator_list:
        return None
    function.returns = None
    for argument in function.args.args:
        argument.annotation = None
    function.body = [
        statement
        for statement in function.body
        if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
    ]
    return hashlib.sha256(ast.unparse(function).encode()).hexdigest()[:16]


# ---- what becomes of a layer ----


def known(kind):
    """The computation of a class of layers, or None."""
    return CLASSES.get(kind) or KNOWN_FORWARDS.get(digest_of(kind.forward))


_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
    nn.CrossMapLRN2d,
)


def is_accelerated(m):
    return type(vars(m).get("forward")) is AcceleratedForward


def is_norm(m):
    """Whether a layer is a norm, as far as its class tells."""
    name = type(m).__name__.lower()
    return isinstance(m, _NORMS) or ("norm" in name and not any(True for _ in m.children()))


def computation_of(m):
    """How cnorm computes a layer, and why it does not: one of both is None."""
    if "forward" in vars(m):
        return None, "its forward was replaced"
    if isinstance(m, nn.SyncBatchNorm):
        return None, "it merges statistics over processes, which is torch's part"
    if isinstance(m, nn.modules.lazy.LazyModuleMixin) and m.has_uninitialized_params():
        return None, "it has not seen its first batch"
    compute = known(type(m))
    if compute is None:
        return None, "its forward is none that cnorm knows"
    if getattr(m, "_fast_norm", False):
        return None, "timm's fast norm is on"
    return compute, None
