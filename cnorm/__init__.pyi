"""Types of the public names; the layers themselves are in `cnorm.modules`."""

import builtins
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Literal, NamedTuple, Self, SupportsIndex, TypeAlias, overload

from numpy.typing import ArrayLike, DTypeLike, NDArray

from . import checkpoint as checkpoint
from . import functional as functional
from . import interop as interop
from . import steps as steps
from ._moments import Moments as Moments
from .functional import _Axis, _Input

__version__: str

_Array: TypeAlias = NDArray[Any]
_Shape: TypeAlias = SupportsIndex | Sequence[SupportsIndex]
_Device: TypeAlias = Literal["cpu"] | None
_DType: TypeAlias = DTypeLike | None

class Parameter(_Array):
    requires_grad: bool
    def __new__(cls, data: ArrayLike, requires_grad: bool = True) -> Self: ...
    @property
    def grad(self) -> _Array | None: ...
    @grad.setter
    def grad(self, grad: _Array | None) -> None: ...
    def requires_grad_(self, requires_grad: bool = True) -> Self: ...

class UninitializedParameter(Parameter):
    cls_to_become: ClassVar[type[Parameter]]
    def __new__(
        cls, requires_grad: bool = False, device: _Device = None, dtype: _DType = None
    ) -> Self: ...
    def materialize(self, shape: _Shape, fill: float = 0) -> Parameter: ...

class UninitializedBuffer(_Array):
    cls_to_become: ClassVar[type[_Array]]
    def __new__(
        cls, requires_grad: bool = False, device: _Device = None, dtype: _DType = None
    ) -> Self: ...
    def materialize(self, shape: _Shape, fill: float = 0) -> _Array: ...

class _IncompatibleKeys(NamedTuple):
    missing_keys: list[str]
    unexpected_keys: list[str]

class Module:
    training: bool
    def __init__(self) -> None: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...
    def forward(self, *args: Any, **kwargs: Any) -> Any: ...
    def backward(self, grad_output: Any) -> Any: ...
    def keep(self, *values: Any) -> None: ...
    def kept(self) -> tuple[Any, ...]: ...
    def accumulate(self, *pairs: tuple[Parameter | None, _Array]) -> None: ...
    def train(self, mode: bool = True) -> Self: ...
    def eval(self) -> Self: ...
    def register_parameter(self, name: str, param: Parameter | None) -> None: ...
    def register_buffer(self, name: str, value: _Array | None, persistent: bool = True) -> None: ...
    def register_module(self, name: str, module: Module | None) -> None: ...
    def add_module(self, name: str, module: Module | None) -> None: ...
    def extra_repr(self) -> str: ...
    def named_modules(
        self, memo: set[Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Module]]: ...
    def modules(self) -> Iterator[Module]: ...
    def named_children(self) -> Iterator[tuple[str, Module]]: ...
    def children(self) -> Iterator[Module]: ...
    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]: ...
    def parameters(self, recurse: bool = True) -> Iterator[Parameter]: ...
    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, _Array]]: ...
    def buffers(self, recurse: bool = True) -> Iterator[_Array]: ...
    def get_submodule(self, target: str) -> Module: ...
    def apply(self, fn: Callable[[Module], object]) -> Self: ...
    def zero_grad(self, set_to_none: bool = True) -> None: ...
    def requires_grad_(self, requires_grad: bool = True) -> Self: ...
    def to(self, dtype: DTypeLike) -> Self: ...
    def half(self) -> Self: ...
    def float(self) -> Self: ...
    def double(self) -> Self: ...
    def bfloat16(self) -> Self: ...
    def state_dict(
        self,
        *,
        destination: OrderedDict[str, _Array] | None = None,
        prefix: str = "",
        keep_vars: bool = False,
    ) -> OrderedDict[str, _Array]: ...
    def load_state_dict(
        self, state_dict: Mapping[str, ArrayLike], strict: bool = True
    ) -> _IncompatibleKeys: ...

class ModuleList(Module):
    def __init__(self, modules: Iterable[Module] = ()) -> None: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Module]: ...
    @overload
    def __getitem__(self, i: int) -> Module: ...
    @overload
    def __getitem__(self, i: slice) -> Self: ...
    def append(self, module: Module) -> Self: ...
    def extend(self, modules: Iterable[Module]) -> Self: ...
    def insert(self, i: int, module: Module) -> None: ...

class Sequential(Module):
    @overload
    def __init__(self, modules: Mapping[str, Module], /) -> None: ...
    @overload
    def __init__(self, *modules: Module) -> None: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Module]: ...
    @overload
    def __getitem__(self, i: int) -> Module: ...
    @overload
    def __getitem__(self, i: slice) -> Self: ...
    def append(self, module: Module) -> Self: ...
    def extend(self, modules: Iterable[Module]) -> Self: ...
    def insert(self, i: int, module: Module) -> None: ...
    def __call__(self, input: _Input, where: ArrayLike | None = None) -> Any: ...
    def forward(self, input: _Input, where: ArrayLike | None = None) -> Any: ...

class _Layer(Module):
    def __call__(self, input: _Input) -> _Array: ...
    def forward(self, input: _Input) -> _Array: ...
    def backward(self, grad_output: _Input) -> _Array: ...

class _Activation(_Layer):
    @property
    def slope(self) -> builtins.float | Parameter | None: ...
    @property
    def clip(self) -> tuple[builtins.float | None, builtins.float | None] | None: ...

class ReLU(_Activation): ...

class LeakyReLU(_Activation):
    negative_slope: builtins.float
    def __init__(self, negative_slope: builtins.float = 0.01) -> None: ...

class Hardtanh(_Activation):
    min_val: builtins.float | None
    max_val: builtins.float | None
    def __init__(
        self, min_val: builtins.float | None = -1.0, max_val: builtins.float | None = 1.0
    ) -> None: ...

class ReLU6(Hardtanh):
    def __init__(self) -> None: ...

class PReLU(_Activation):
    num_parameters: int
    init: builtins.float
    channel_axis: int
    weight: Parameter
    def __init__(
        self,
        num_parameters: int = 1,
        init: builtins.float = 0.25,
        device: _Device = None,
        dtype: _DType = None,
        *,
        channel_axis: int = 1,
    ) -> None: ...
    def reset_parameters(self) -> None: ...

class _Norm(_Layer):
    channel_axis: int
    activation: _Activation | None
    def __call__(self, input: _Input, where: ArrayLike | None = None) -> _Array: ...
    def forward(self, input: _Input, where: ArrayLike | None = None) -> _Array: ...
    def reset_parameters(self) -> None: ...

class _RunningNorm(_Norm):
    num_features: int
    eps: builtins.float
    momentum: builtins.float | None
    affine: bool
    track_running_stats: bool
    weight: Parameter | None
    bias: Parameter | None
    running_mean: _Array | None
    running_var: _Array | None
    num_batches_tracked: _Array | None
    def reset_running_stats(self) -> None: ...

class _Lazy:
    cls_to_become: ClassVar[type[_RunningNorm]]
    def has_uninitialized_params(self) -> bool: ...

class _LazySizes:
    cls_to_become: ClassVar[type[_Norm]]
    def has_uninitialized_params(self) -> bool: ...

class _BatchNorm(_RunningNorm):
    def __init__(
        self,
        num_features: int,
        eps: builtins.float = 1e-5,
        momentum: builtins.float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: _Device = None,
        dtype: _DType = None,
        *,
        bias: bool = True,
        channel_axis: int = 1,
        activation: _Activation | None = None,
    ) -> None: ...
    def load_moments(self, moments: Moments) -> None: ...

class BatchNorm1d(_BatchNorm): ...
class BatchNorm2d(_BatchNorm): ...
class BatchNorm3d(_BatchNorm): ...

class LazyBatchNorm1d(_Lazy, BatchNorm1d):
    def __init__(
        self,
        eps: builtins.float = 1e-5,
        momentum: builtins.float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: _Device = None,
        dtype: _DType = None,
        *,
        bias: bool = True,
        channel_axis: int = 1,
        activation: _Activation | None = None,
    ) -> None: ...

class LazyBatchNorm2d(_Lazy, BatchNorm2d):
    def __init__(
        self,
        eps: builtins.float = 1e-5,
        momentum: builtins.float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: _Device = None,
        dtype: _DType = None,
        *,
        bias: bool = True,
        channel_axis: int = 1,
        activation: _Activation | None = None,
    ) -> None: ...

class LazyBatchNorm3d(_Lazy, BatchNorm3d):
    def __init__(
        self,
        eps: builtins.float = 1e-5,
        momentum: builtins.float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: _Device = None,
        dtype: _DType = None,
        *,
        bias: bool = True,
        channel_axis: int = 1,
        activation: _Activation | None = None,
    ) -> None: ...

class _InstanceNorm(_RunningNorm):
    def __init__(
        self,
        num_features: int,
        eps: builtins.float = 1e-5,
        momentum: builtins.float | None = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: _Device = None,
        dtype: _DType = None,
        *,
        bias: bool = True,
        channel_axis: int = 1,
        activation: _Activation | None = None,
    ) -> None: ...

class InstanceNorm1d(_InstanceNorm): ...
class InstanceNorm2d(_InstanceNorm): ...
class InstanceNorm3d(_InstanceNorm): ...

class LazyInstanceNorm1d(_Lazy, InstanceNorm1d):
    def __init__(
        self,
        eps: builtins.float = 1e-5,
        momentum: builtins.float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: _Device = None,
        dtype: _DType = None,
        *,
        bias: bool = True,
        channel_axis: int = 1,
        activation: _Activation | None = None,
    ) -> None: ...

class LazyInstanceNorm2d(_Lazy, InstanceNorm2d):
    def __init__(
        self,
        eps: builtins.float = 1e-5,
        momentum: builtins.float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: _Device = None,
        dtype: _DType = None,
        *,
        bias: bool = True,
        channel_axis: int = 1,
        activation: _Activation | None = None,
    ) -> None: ...

class LazyInstanceNorm3d(_Lazy, InstanceNorm3d):
    def __init__(
        self,
        eps: builtins.float = 1e-5,
        momentum: builtins.float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: _Device = None,
        dtype: _DType = None,
        *,
        bias: bool = True,
        channel_axis: int = 1,
        activation: _Activation | None = None,
    ) -> None: ...

class GroupNorm(_Norm):
    num_groups: int
    num_channels: int
    eps: builtins.float
    affine: bool
    weight: Parameter | None
    bias: Parameter | None
    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: builtins.float = 1e-5,
        affine: bool = True,
        device: _Device = None,
        dtype: _DType = None,
        *,
        bias: bool = True,
        channel_axis: int = 1,
        activation: _Activation | None = None,
    ) -> None: ...

class LazyGroupNorm(_LazySizes, GroupNorm):
    def __init__(
        self,
        num_groups: int,
        eps: builtins.float = 1e-5,
        affine: bool = True,
        device: _Device = None,
        dtype: _DType = None,
        *,
        bias: bool = True,
        channel_axis: int = 1,
        activation: _Activation | None = None,
    ) -> None: ...

class LayerNorm(_Norm):
    normalized_shape: tuple[int, ...]
    eps: builtins.float
    elementwise_affine: bool
    axis: int | tuple[int, ...] | None
    weight: Parameter | None
    bias: Parameter | None
    def __init__(
        self,
        normalized_shape: _Shape,
        eps: builtins.float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: _Device = None,
        dtype: _DType = None,
        *,
        activation: _Activation | None = None,
        axis: _Axis = None,
    ) -> None: ...

class LazyLayerNorm(_LazySizes, LayerNorm):
    def __init__(
        self,
        eps: builtins.float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: _Device = None,
        dtype: _DType = None,
        *,
        activation: _Activation | None = None,
        axis: _Axis = None,
    ) -> None: ...

class RMSNorm(_Norm):
    normalized_shape: tuple[int, ...]
    eps: builtins.float | None
    elementwise_affine: bool
    axis: int | tuple[int, ...] | None
    zero_centered_gamma: bool
    weight: Parameter | None
    bias: None
    def __init__(
        self,
        normalized_shape: _Shape,
        eps: builtins.float | None = None,
        elementwise_affine: bool = True,
        device: _Device = None,
        dtype: _DType = None,
        *,
        activation: _Activation | None = None,
        axis: _Axis = None,
        zero_centered_gamma: bool = False,
    ) -> None: ...

class LazyRMSNorm(_LazySizes, RMSNorm):
    def __init__(
        self,
        eps: builtins.float | None = None,
        elementwise_affine: bool = True,
        device: _Device = None,
        dtype: _DType = None,
        *,
        activation: _Activation | None = None,
        axis: _Axis = None,
        zero_centered_gamma: bool = False,
    ) -> None: ...

class LocalResponseNorm(_Norm):
    size: int
    alpha: builtins.float
    beta: builtins.float
    k: builtins.float
    def __init__(
        self,
        size: int,
        alpha: builtins.float = 1e-4,
        beta: builtins.float = 0.75,
        k: builtins.float = 1.0,
        *,
        channel_axis: int = 1,
        activation: _Activation | None = None,
    ) -> None: ...

class CrossMapLRN2d(_Norm):
    size: int
    alpha: builtins.float
    beta: builtins.float
    k: builtins.float
    def __init__(
        self,
        size: int,
        alpha: builtins.float = 1e-4,
        beta: builtins.float = 0.75,
        k: builtins.float = 1,
    ) -> None: ...

class _SwitchNorm(_Norm):
    num_features: int
    eps: builtins.float
    momentum: builtins.float
    using_moving_average: bool
    using_bn: bool
    last_gamma: bool
    weight: Parameter
    bias: Parameter
    mean_weight: Parameter
    var_weight: Parameter
    running_mean: _Array
    running_var: _Array
    def average_running_stats(self, num_batches: int) -> None: ...

class SwitchNorm1d(_SwitchNorm):
    def __init__(
        self,
        num_features: int,
        eps: builtins.float = 1e-5,
        momentum: builtins.float = 0.997,
        using_moving_average: bool = True,
        *,
        device: _Device = None,
        dtype: _DType = None,
        channel_axis: int = 1,
        activation: _Activation | None = None,
    ) -> None: ...

class SwitchNorm2d(_SwitchNorm):
    def __init__(
        self,
        num_features: int,
        eps: builtins.float = 1e-5,
        momentum: builtins.float = 0.9,
        using_moving_average: bool = True,
        using_bn: bool = True,
        last_gamma: bool = False,
        *,
        device: _Device = None,
        dtype: _DType = None,
        channel_axis: int = 1,
        activation: _Activation | None = None,
    ) -> None: ...

class SwitchNorm3d(_SwitchNorm):
    def __init__(
        self,
        num_features: int,
        eps: builtins.float = 1e-5,
        momentum: builtins.float = 0.997,
        using_moving_average: bool = True,
        using_bn: bool = True,
        last_gamma: bool = False,
        *,
        device: _Device = None,
        dtype: _DType = None,
        channel_axis: int = 1,
        activation: _Activation | None = None,
    ) -> None: ...

class SyncBatchNorm(_BatchNorm):
    process_group: Any
    def __init__(
        self,
        num_features: int,
        eps: builtins.float = 1e-5,
        momentum: builtins.float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        device: _Device = None,
        dtype: _DType = None,
        *,
        bias: bool = True,
        channel_axis: int = 1,
        activation: _Activation | None = None,
    ) -> None: ...
    @classmethod
    def convert_sync_batchnorm(cls, module: Module, process_group: Any = None) -> Module: ...

def enable_grad() -> AbstractContextManager[None]: ...
def no_grad() -> AbstractContextManager[None]: ...
def show_config() -> None: ...

class Plan:
    function: str
    step: dict[str, Any] | None
    copies: list[str]
    def __init__(self, function: str, step: dict[str, Any] | None, copies: list[str]) -> None: ...

def explain(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Plan: ...
def set_cache_limit(limit: int) -> None: ...
def empty_cache() -> None: ...
def set_num_threads(n: int, *, policy: Literal["adaptive", "fixed"] | None = None) -> None: ...
def get_num_threads() -> int: ...
def num_threads(
    n: int, *, policy: Literal["adaptive", "fixed"] | None = None
) -> AbstractContextManager[None]: ...
