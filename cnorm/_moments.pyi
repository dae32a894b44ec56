"""Types of `Moments`."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self, SupportsIndex, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from .functional import _Input

_Axis: TypeAlias = SupportsIndex | Sequence[SupportsIndex] | None
_Clip: TypeAlias = tuple[float | None, float | None] | None
_Double: TypeAlias = NDArray[np.float64]

class Moments:
    __hash__: ClassVar[None]  # type: ignore[assignment]
    __array_ufunc__: ClassVar[None]
    def __init__(self, axis: _Axis = None) -> None: ...
    @property
    def axis(self) -> tuple[int, ...] | None: ...
    @property
    def count(self) -> _Double: ...
    @property
    def mean(self) -> _Double: ...
    @property
    def m2(self) -> _Double: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    def var(self, ddof: float = 0) -> _Double: ...
    def std(self, ddof: float = 0) -> _Double: ...
    def update(
        self,
        input: _Input,
        *,
        where: ArrayLike | None = None,
        nan_policy: Literal["propagate", "omit", "raise"] = "propagate",
    ) -> Self: ...
    def __add__(self, other: Moments | Literal[0]) -> Moments: ...
    def __radd__(self, other: Moments | Literal[0]) -> Moments: ...
    @staticmethod
    def merge(parts: Iterable[Moments]) -> Moments: ...
    @staticmethod
    def concatenate(parts: Iterable[Moments], axis: SupportsIndex) -> Moments: ...
    def reduce(self, axis: _Axis) -> Moments: ...
    def allreduce(self, comm: Any) -> Moments: ...
    def standardize(
        self,
        input: _Input,
        *,
        eps: float = 0.0,
        ddof: float = 0,
        where: ArrayLike | None = None,
        clip: _Clip = None,
        dtype: DTypeLike | None = None,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]: ...
    def inverse(
        self,
        input: _Input,
        *,
        eps: float = 0.0,
        ddof: float = 0,
        where: ArrayLike | None = None,
        dtype: DTypeLike | None = None,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]: ...
    @classmethod
    def from_stats(
        cls, count: ArrayLike, mean: ArrayLike, var: ArrayLike, axis: _Axis, ddof: float = 0
    ) -> Self: ...
    def to_dict(self) -> dict[str, Any]: ...
    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Self: ...
    def copy(self) -> Self: ...
    def __eq__(self, other: object) -> bool: ...
