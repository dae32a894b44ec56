"""The layers: parameters and state around `cnorm.functional`."""

from ._base import Module
from ._grad_mode import enable_grad, no_grad
from ._lazy import UninitializedBuffer, UninitializedParameter
from ._parameter import Parameter
from .activation import Hardtanh, LeakyReLU, PReLU, ReLU, ReLU6
from .batch import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    LazyBatchNorm1d,
    LazyBatchNorm2d,
    LazyBatchNorm3d,
)
from .containers import ModuleList, Sequential
from .group import GroupNorm, LazyGroupNorm
from .instance import (
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    LazyInstanceNorm1d,
    LazyInstanceNorm2d,
    LazyInstanceNorm3d,
)
from .layer import LayerNorm, LazyLayerNorm
from .response import CrossMapLRN2d, LocalResponseNorm
from .rms import LazyRMSNorm, RMSNorm
from .switch import SwitchNorm1d, SwitchNorm2d, SwitchNorm3d
from .sync import SyncBatchNorm

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
    "PReLU",
    "Parameter",
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
    "enable_grad",
    "no_grad",
]
