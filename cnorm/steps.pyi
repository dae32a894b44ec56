"""Types of the compiled steps; what ``help(cnorm.steps)`` shows is in their source."""

from .functional import _Array, _Clip, _Input, _Slope, _Stat

def moments(
    input: _Input, *, channel_axis: int = 1, groups: int = 0
) -> tuple[int, _Stat, _Stat, _Stat]: ...
def apply(
    input: _Input,
    mean: _Input | None,
    lo: _Input | None,
    rstd: _Input,
    weight: _Input | None = None,
    bias: _Input | None = None,
    *,
    channel_axis: int = 1,
    groups: int = 0,
    out: _Array | None = None,
    negative_slope: _Slope = None,
    clip: _Clip = None,
) -> _Array: ...
def grad_sums(
    grad_output: _Input,
    input: _Input,
    mean: _Input | None,
    lo: _Input | None,
    rstd: _Input,
    weight: _Input | None = None,
    bias: _Input | None = None,
    *,
    channel_axis: int = 1,
    groups: int = 0,
    negative_slope: _Slope = None,
    clip: _Clip = None,
) -> tuple[_Stat, _Stat, _Stat, _Stat]: ...
def grad_apply(
    grad_output: _Input,
    input: _Input,
    mean: _Input | None,
    lo: _Input | None,
    rstd: _Input,
    weight: _Input | None,
    bias: _Input | None,
    sums: _Input,
    count: float,
    *,
    channel_axis: int = 1,
    groups: int = 0,
    out: _Array | None = None,
    negative_slope: _Slope = None,
    clip: _Clip = None,
) -> _Array: ...
def grad_moments(
    grad_input: _Input,
    input: _Input,
    mean: _Input | None,
    lo: _Input | None,
    grad_mean: _Input,
    grad_m2: _Input,
    *,
    channel_axis: int = 1,
    groups: int = 0,
    out: _Array | None = None,
) -> _Array: ...
