"""Types of the compiled functions; what ``help(cnorm.functional)`` shows is in their source."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol, SupportsIndex, TypeAlias, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from ._moments import Moments

class _SupportsDLPack(Protocol):
    def __dlpack__(self) -> Any: ...
    def __dlpack_device__(self) -> Any: ...

_Array: TypeAlias = NDArray[Any]
_Stat: TypeAlias = NDArray[np.float64]
_SwitchStats: TypeAlias = Any
_Input: TypeAlias = ArrayLike | _SupportsDLPack
_Shape: TypeAlias = SupportsIndex | Sequence[SupportsIndex]
_Slope: TypeAlias = float | _Array | None
_Axis: TypeAlias = SupportsIndex | Sequence[SupportsIndex] | None
_Clip: TypeAlias = tuple[float | None, float | None] | Sequence[float | None] | _Array | None

@overload
def batch_norm(
    input: _Input,
    running_mean: _Array | None = None,
    running_var: _Array | None = None,
    weight: _Input | None = None,
    bias: _Input | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    out: _Array | None = None,
    channel_axis: int = 1,
    return_stats: Literal[False] = False,
    negative_slope: _Slope = None,
    clip: _Clip = None,
    where: ArrayLike | None = None,
) -> _Array: ...
@overload
def batch_norm(
    input: _Input,
    running_mean: _Array | None = None,
    running_var: _Array | None = None,
    weight: _Input | None = None,
    bias: _Input | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    out: _Array | None = None,
    channel_axis: int = 1,
    return_stats: Literal[True],
    negative_slope: _Slope = None,
    clip: _Clip = None,
    where: ArrayLike | None = None,
) -> tuple[_Array, _Stat, _Stat]: ...
@overload
def instance_norm(
    input: _Input,
    running_mean: _Array | None = None,
    running_var: _Array | None = None,
    weight: _Input | None = None,
    bias: _Input | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    out: _Array | None = None,
    channel_axis: int = 1,
    return_stats: Literal[False] = False,
    negative_slope: _Slope = None,
    clip: _Clip = None,
    where: ArrayLike | None = None,
) -> _Array: ...
@overload
def instance_norm(
    input: _Input,
    running_mean: _Array | None = None,
    running_var: _Array | None = None,
    weight: _Input | None = None,
    bias: _Input | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    out: _Array | None = None,
    channel_axis: int = 1,
    return_stats: Literal[True],
    negative_slope: _Slope = None,
    clip: _Clip = None,
    where: ArrayLike | None = None,
) -> tuple[_Array, _Stat, _Stat]: ...
@overload
def group_norm(
    input: _Input,
    num_groups: int,
    weight: _Input | None = None,
    bias: _Input | None = None,
    eps: float = 1e-5,
    *,
    out: _Array | None = None,
    channel_axis: int = 1,
    return_stats: Literal[False] = False,
    negative_slope: _Slope = None,
    clip: _Clip = None,
    where: ArrayLike | None = None,
) -> _Array: ...
@overload
def group_norm(
    input: _Input,
    num_groups: int,
    weight: _Input | None = None,
    bias: _Input | None = None,
    eps: float = 1e-5,
    *,
    out: _Array | None = None,
    channel_axis: int = 1,
    return_stats: Literal[True],
    negative_slope: _Slope = None,
    clip: _Clip = None,
    where: ArrayLike | None = None,
) -> tuple[_Array, _Stat, _Stat]: ...
@overload
def layer_norm(
    input: _Input,
    normalized_shape: _Shape,
    weight: _Input | None = None,
    bias: _Input | None = None,
    eps: float = 1e-5,
    *,
    out: _Array | None = None,
    channel_axis: int = 1,
    return_stats: Literal[False] = False,
    negative_slope: _Slope = None,
    clip: _Clip = None,
    axis: _Axis = None,
    where: ArrayLike | None = None,
) -> _Array: ...
@overload
def layer_norm(
    input: _Input,
    normalized_shape: _Shape,
    weight: _Input | None = None,
    bias: _Input | None = None,
    eps: float = 1e-5,
    *,
    out: _Array | None = None,
    channel_axis: int = 1,
    return_stats: Literal[True],
    negative_slope: _Slope = None,
    clip: _Clip = None,
    axis: _Axis = None,
    where: ArrayLike | None = None,
) -> tuple[_Array, _Stat, _Stat]: ...
@overload
def rms_norm(
    input: _Input,
    normalized_shape: _Shape,
    weight: _Input | None = None,
    eps: float | None = None,
    *,
    out: _Array | None = None,
    channel_axis: int = 1,
    return_stats: Literal[False] = False,
    negative_slope: _Slope = None,
    clip: _Clip = None,
    axis: _Axis = None,
    zero_centered_gamma: bool = False,
    where: ArrayLike | None = None,
) -> _Array: ...
@overload
def rms_norm(
    input: _Input,
    normalized_shape: _Shape,
    weight: _Input | None = None,
    eps: float | None = None,
    *,
    out: _Array | None = None,
    channel_axis: int = 1,
    return_stats: Literal[True],
    negative_slope: _Slope = None,
    clip: _Clip = None,
    axis: _Axis = None,
    zero_centered_gamma: bool = False,
    where: ArrayLike | None = None,
) -> tuple[_Array, _Stat]: ...
@overload
def switch_norm(
    input: _Input,
    running_mean: _Array | None,
    running_var: _Array | None,
    weight: _Input | None,
    bias: _Input | None,
    mean_weight: _Input,
    var_weight: _Input,
    training: bool = False,
    momentum: float = 0.9,
    eps: float = 1e-5,
    using_moving_average: bool = True,
    *,
    out: _Array | None = None,
    channel_axis: int = 1,
    return_stats: Literal[False] = False,
    negative_slope: _Slope = None,
    clip: _Clip = None,
) -> _Array: ...
@overload
def switch_norm(
    input: _Input,
    running_mean: _Array | None,
    running_var: _Array | None,
    weight: _Input | None,
    bias: _Input | None,
    mean_weight: _Input,
    var_weight: _Input,
    training: bool = False,
    momentum: float = 0.9,
    eps: float = 1e-5,
    using_moving_average: bool = True,
    *,
    out: _Array | None = None,
    channel_axis: int = 1,
    return_stats: Literal[True],
    negative_slope: _Slope = None,
    clip: _Clip = None,
) -> tuple[_Array, _SwitchStats]: ...
@overload
def add_layer_norm(
    input: _Input,
    residual: _Input,
    normalized_shape: _Shape,
    weight: _Input | None = None,
    bias: _Input | None = None,
    eps: float = 1e-5,
    *,
    out: _Array | None = None,
    residual_out: _Array | None = None,
    channel_axis: int = 1,
    return_stats: Literal[False] = False,
    negative_slope: _Slope = None,
    clip: _Clip = None,
    axis: _Axis = None,
    where: ArrayLike | None = None,
) -> tuple[_Array, _Array]: ...
@overload
def add_layer_norm(
    input: _Input,
    residual: _Input,
    normalized_shape: _Shape,
    weight: _Input | None = None,
    bias: _Input | None = None,
    eps: float = 1e-5,
    *,
    out: _Array | None = None,
    residual_out: _Array | None = None,
    channel_axis: int = 1,
    return_stats: Literal[True],
    negative_slope: _Slope = None,
    clip: _Clip = None,
    axis: _Axis = None,
    where: ArrayLike | None = None,
) -> tuple[_Array, _Array, _Stat, _Stat]: ...
@overload
def add_rms_norm(
    input: _Input,
    residual: _Input,
    normalized_shape: _Shape,
    weight: _Input | None = None,
    eps: float | None = None,
    *,
    out: _Array | None = None,
    residual_out: _Array | None = None,
    channel_axis: int = 1,
    return_stats: Literal[False] = False,
    negative_slope: _Slope = None,
    clip: _Clip = None,
    axis: _Axis = None,
    zero_centered_gamma: bool = False,
    where: ArrayLike | None = None,
) -> tuple[_Array, _Array]: ...
@overload
def add_rms_norm(
    input: _Input,
    residual: _Input,
    normalized_shape: _Shape,
    weight: _Input | None = None,
    eps: float | None = None,
    *,
    out: _Array | None = None,
    residual_out: _Array | None = None,
    channel_axis: int = 1,
    return_stats: Literal[True],
    negative_slope: _Slope = None,
    clip: _Clip = None,
    axis: _Axis = None,
    zero_centered_gamma: bool = False,
    where: ArrayLike | None = None,
) -> tuple[_Array, _Array, _Stat]: ...
def local_response_norm(
    input: _Input,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    *,
    out: _Array | None = None,
    channel_axis: int = 1,
    negative_slope: _Slope = None,
    clip: _Clip = None,
) -> _Array: ...
def cross_map_lrn(
    input: _Input,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    *,
    out: _Array | None = None,
    channel_axis: int = 1,
    negative_slope: _Slope = None,
    clip: _Clip = None,
) -> _Array: ...
@overload
def batch_norm_backward(
    grad_output: _Input,
    input: _Input,
    mean: _Input,
    rstd: _Input,
    weight: _Input | None = None,
    *,
    training: bool = True,
    out: _Array | None = None,
    channel_axis: int = 1,
    negative_slope: float | None = None,
    clip: _Clip = None,
    bias: _Input | None = None,
    where: ArrayLike | None = None,
) -> tuple[_Array, _Array, _Array]: ...
@overload
def batch_norm_backward(
    grad_output: _Input,
    input: _Input,
    mean: _Input,
    rstd: _Input,
    weight: _Input | None = None,
    *,
    training: bool = True,
    out: _Array | None = None,
    channel_axis: int = 1,
    negative_slope: _Array,
    clip: None = None,
    bias: _Input | None = None,
    where: ArrayLike | None = None,
) -> tuple[_Array, _Array, _Array, _Array]: ...
@overload
def instance_norm_backward(
    grad_output: _Input,
    input: _Input,
    mean: _Input,
    rstd: _Input,
    weight: _Input | None = None,
    *,
    use_input_stats: bool = True,
    out: _Array | None = None,
    channel_axis: int = 1,
    negative_slope: float | None = None,
    clip: _Clip = None,
    bias: _Input | None = None,
    where: ArrayLike | None = None,
) -> tuple[_Array, _Array, _Array]: ...
@overload
def instance_norm_backward(
    grad_output: _Input,
    input: _Input,
    mean: _Input,
    rstd: _Input,
    weight: _Input | None = None,
    *,
    use_input_stats: bool = True,
    out: _Array | None = None,
    channel_axis: int = 1,
    negative_slope: _Array,
    clip: None = None,
    bias: _Input | None = None,
    where: ArrayLike | None = None,
) -> tuple[_Array, _Array, _Array, _Array]: ...
@overload
def group_norm_backward(
    grad_output: _Input,
    input: _Input,
    num_groups: int,
    mean: _Input,
    rstd: _Input,
    weight: _Input | None = None,
    *,
    out: _Array | None = None,
    channel_axis: int = 1,
    negative_slope: float | None = None,
    clip: _Clip = None,
    bias: _Input | None = None,
    where: ArrayLike | None = None,
) -> tuple[_Array, _Array, _Array]: ...
@overload
def group_norm_backward(
    grad_output: _Input,
    input: _Input,
    num_groups: int,
    mean: _Input,
    rstd: _Input,
    weight: _Input | None = None,
    *,
    out: _Array | None = None,
    channel_axis: int = 1,
    negative_slope: _Array,
    clip: None = None,
    bias: _Input | None = None,
    where: ArrayLike | None = None,
) -> tuple[_Array, _Array, _Array, _Array]: ...
@overload
def layer_norm_backward(
    grad_output: _Input,
    input: _Input,
    normalized_shape: _Shape,
    mean: _Input,
    rstd: _Input,
    weight: _Input | None = None,
    *,
    out: _Array | None = None,
    channel_axis: int = 1,
    negative_slope: float | None = None,
    clip: _Clip = None,
    bias: _Input | None = None,
    axis: _Axis = None,
    where: ArrayLike | None = None,
) -> tuple[_Array, _Array, _Array]: ...
@overload
def layer_norm_backward(
    grad_output: _Input,
    input: _Input,
    normalized_shape: _Shape,
    mean: _Input,
    rstd: _Input,
    weight: _Input | None = None,
    *,
    out: _Array | None = None,
    channel_axis: int = 1,
    negative_slope: _Array,
    clip: None = None,
    bias: _Input | None = None,
    axis: _Axis = None,
    where: ArrayLike | None = None,
) -> tuple[_Array, _Array, _Array, _Array]: ...
@overload
def rms_norm_backward(
    grad_output: _Input,
    input: _Input,
    normalized_shape: _Shape,
    rstd: _Input,
    weight: _Input | None = None,
    *,
    out: _Array | None = None,
    channel_axis: int = 1,
    negative_slope: float | None = None,
    clip: _Clip = None,
    axis: _Axis = None,
    zero_centered_gamma: bool = False,
    where: ArrayLike | None = None,
) -> tuple[_Array, _Array]: ...
@overload
def rms_norm_backward(
    grad_output: _Input,
    input: _Input,
    normalized_shape: _Shape,
    rstd: _Input,
    weight: _Input | None = None,
    *,
    out: _Array | None = None,
    channel_axis: int = 1,
    negative_slope: _Array,
    clip: None = None,
    axis: _Axis = None,
    zero_centered_gamma: bool = False,
    where: ArrayLike | None = None,
) -> tuple[_Array, _Array, _Array]: ...
@overload
def switch_norm_backward(
    grad_output: _Input,
    input: _Input,
    stats: _SwitchStats,
    weight: _Input | None,
    mean_weight: _Input,
    var_weight: _Input,
    bias: _Input | None = None,
    *,
    out: _Array | None = None,
    channel_axis: int = 1,
    negative_slope: float | None = None,
    clip: _Clip = None,
) -> tuple[_Array, _Array, _Array, _Array, _Array]: ...
@overload
def switch_norm_backward(
    grad_output: _Input,
    input: _Input,
    stats: _SwitchStats,
    weight: _Input | None,
    mean_weight: _Input,
    var_weight: _Input,
    bias: _Input | None = None,
    *,
    out: _Array | None = None,
    channel_axis: int = 1,
    negative_slope: _Array,
    clip: None = None,
) -> tuple[_Array, _Array, _Array, _Array, _Array, _Array]: ...
@overload
def add_layer_norm_backward(
    grad_output: _Input,
    grad_sum: _Input | None,
    sum: _Input,
    normalized_shape: _Shape,
    mean: _Input,
    rstd: _Input,
    weight: _Input | None = None,
    *,
    out: _Array | None = None,
    channel_axis: int = 1,
    negative_slope: float | None = None,
    clip: _Clip = None,
    bias: _Input | None = None,
    axis: _Axis = None,
    where: ArrayLike | None = None,
) -> tuple[_Array, _Array, _Array]: ...
@overload
def add_layer_norm_backward(
    grad_output: _Input,
    grad_sum: _Input | None,
    sum: _Input,
    normalized_shape: _Shape,
    mean: _Input,
    rstd: _Input,
    weight: _Input | None = None,
    *,
    out: _Array | None = None,
    channel_axis: int = 1,
    negative_slope: _Array,
    clip: None = None,
    bias: _Input | None = None,
    axis: _Axis = None,
    where: ArrayLike | None = None,
) -> tuple[_Array, _Array, _Array, _Array]: ...
@overload
def add_rms_norm_backward(
    grad_output: _Input,
    grad_sum: _Input | None,
    sum: _Input,
    normalized_shape: _Shape,
    rstd: _Input,
    weight: _Input | None = None,
    *,
    out: _Array | None = None,
    channel_axis: int = 1,
    negative_slope: float | None = None,
    clip: _Clip = None,
    axis: _Axis = None,
    zero_centered_gamma: bool = False,
    where: ArrayLike | None = None,
) -> tuple[_Array, _Array]: ...
@overload
def add_rms_norm_backward(
    grad_output: _Input,
    grad_sum: _Input | None,
    sum: _Input,
    normalized_shape: _Shape,
    rstd: _Input,
    weight: _Input | None = None,
    *,
    out: _Array | None = None,
    channel_axis: int = 1,
    negative_slope: _Array,
    clip: None = None,
    axis: _Axis = None,
    zero_centered_gamma: bool = False,
    where: ArrayLike | None = None,
) -> tuple[_Array, _Array, _Array]: ...
@overload
def local_response_norm_backward(
    grad_output: _Input,
    input: _Input,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    *,
    out: _Array | None = None,
    channel_axis: int = 1,
    negative_slope: float | None = None,
    clip: _Clip = None,
) -> _Array: ...
@overload
def local_response_norm_backward(
    grad_output: _Input,
    input: _Input,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    *,
    out: _Array | None = None,
    channel_axis: int = 1,
    negative_slope: _Array,
    clip: None = None,
) -> tuple[_Array, _Array]: ...
@overload
def cross_map_lrn_backward(
    grad_output: _Input,
    input: _Input,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    *,
    out: _Array | None = None,
    channel_axis: int = 1,
    negative_slope: float | None = None,
    clip: _Clip = None,
) -> _Array: ...
@overload
def cross_map_lrn_backward(
    grad_output: _Input,
    input: _Input,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    *,
    out: _Array | None = None,
    channel_axis: int = 1,
    negative_slope: _Array,
    clip: None = None,
) -> tuple[_Array, _Array]: ...
@overload
def normalize(
    input: _Input,
    p: float = 2.0,
    dim: _Shape = 1,
    eps: float = 1e-12,
    out: _Array | None = None,
    *,
    return_stats: Literal[False] = False,
) -> _Array: ...
@overload
def normalize(
    input: _Input,
    p: float = 2.0,
    dim: _Shape = 1,
    eps: float = 1e-12,
    out: _Array | None = None,
    *,
    return_stats: Literal[True],
) -> tuple[_Array, _Stat]: ...
def normalize_backward(
    grad_output: _Input,
    input: _Input,
    norm: _Input,
    p: float = 2.0,
    dim: _Shape = 1,
    eps: float = 1e-12,
    *,
    out: _Array | None = None,
) -> _Array: ...
def moments(
    input: _Input,
    axis: SupportsIndex | Sequence[SupportsIndex] | None = None,
    *,
    where: ArrayLike | None = None,
    nan_policy: Literal["propagate", "omit", "raise"] = "propagate",
) -> Moments: ...
@overload
def standardize(
    input: _Input,
    axis: SupportsIndex | Sequence[SupportsIndex] | None,
    mean: ArrayLike | None = None,
    var: ArrayLike | None = None,
    eps: float = 0.0,
    *,
    ddof: float = 0,
    where: ArrayLike | None = None,
    nan_policy: Literal["propagate", "omit", "raise"] = "propagate",
    clip: tuple[float | None, float | None] | None = None,
    dtype: DTypeLike | None = None,
    out: _Array | None = None,
    return_stats: Literal[False] = False,
) -> _Array: ...
@overload
def standardize(
    input: _Input,
    axis: SupportsIndex | Sequence[SupportsIndex] | None,
    mean: ArrayLike | None = None,
    var: ArrayLike | None = None,
    eps: float = 0.0,
    *,
    ddof: float = 0,
    where: ArrayLike | None = None,
    nan_policy: Literal["propagate", "omit", "raise"] = "propagate",
    clip: tuple[float | None, float | None] | None = None,
    dtype: DTypeLike | None = None,
    out: _Array | None = None,
    return_stats: Literal[True],
) -> tuple[_Array, _Array, _Array]: ...
def normalize_image(
    input: _Input,
    mean: ArrayLike,
    std: ArrayLike,
    max_value: float | None = None,
    *,
    channel_axis: int = -1,
    out_channel_axis: int | None = None,
    dtype: DTypeLike = "float32",
    out: _Array | None = None,
) -> _Array: ...
