"""Normalization layers for NumPy arrays, forward and backward, compiled and multithreaded.

The layers are here, under torch's names, and the functions in `cnorm.functional`:

>>> import numpy as np
>>> import cnorm
>>> import cnorm.functional as F
>>> x = np.random.default_rng(0).normal(5, 3, (32, 64)).astype(np.float32)
>>> y = F.layer_norm(x, 64)  # each row; F.standardize(x, axis=0) each column, of integers too
>>> norm = cnorm.BatchNorm1d(64)
>>> y = norm(x)
>>> dx = norm.backward(np.ones_like(y))

`cnorm.checkpoint` loads what torch saved, `cnorm.interop` is cnorm inside torch, JAX, scikit-learn,
dask and xarray, `cnorm.Moments` merges statistics, `cnorm.steps` has what norms of your own are
made of. `cnorm.show_config()` and `cnorm.explain` tell what runs.
"""

from importlib import import_module as _import_module

from ._start import explained

with explained():
    from . import functional, steps
    from ._threads import get_num_threads, num_threads, set_num_threads

from ._cache import empty_cache, set_cache_limit
from ._config import show_config
from ._explain import Plan, explain
from ._moments import Moments
from ._version import __version__
from .modules import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    CrossMapLRN2d,
    GroupNorm,
    Hardtanh,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    LayerNorm,
    LazyBatchNorm1d,
    LazyBatchNorm2d,
    LazyBatchNorm3d,
    LazyGroupNorm,
    LazyInstanceNorm1d,
    LazyInstanceNorm2d,
    LazyInstanceNorm3d,
    LazyLayerNorm,
    LazyRMSNorm,
    LeakyReLU,
    LocalResponseNorm,
    Module,
    ModuleList,
    Parameter,
    PReLU,
    ReLU,
    ReLU6,
    RMSNorm,
    Sequential,
    SwitchNorm1d,
    SwitchNorm2d,
    SwitchNorm3d,
    SyncBatchNorm,
    UninitializedBuffer,
    UninitializedParameter,
    enable_grad,
    no_grad,
)

# Imported when first used: not everybody needs them, and they import more of the standard library.
_LATER = ("checkpoint", "interop")

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "CrossMapLRN2d",
    "GroupNorm",
    "Hardtanh",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyBatchNorm3d",
    "LazyGroupNorm",
    "LazyInstanceNorm1d",
    "LazyInstanceNorm2d",
    "LazyInstanceNorm3d",
    "LazyLayerNorm",
    "LazyRMSNorm",
    "LeakyReLU",
    "LocalResponseNorm",
    "Module",
    "ModuleList",
    "Moments",
    "PReLU",
    "Parameter",
    "Plan",
    "RMSNorm",
    "ReLU",
    "ReLU6",
    "Sequential",
    "SwitchNorm1d",
    "SwitchNorm2d",
    "SwitchNorm3d",
    "SyncBatchNorm",
    "UninitializedBuffer",
    "UninitializedParameter",
    "__version__",
    "empty_cache",
    "enable_grad",
    "explain",
    "functional",
    "get_num_threads",
    "no_grad",
    "num_threads",
    "set_cache_limit",
    "set_num_threads",
    "show_config",
    "steps",
]


def __getattr__(name):
    if name in _LATER:
        return _import_module(f"cnorm.{name}")
    if name.startswith("_"):  # programs that look for what modules may have
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import _hints

    raise AttributeError(_hints.attribute(__name__, name, __dir__(), functional.__all__))


def __dir__():
    return sorted([*__all__, *_LATER])
