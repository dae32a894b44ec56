"""What the pickle of a torch archive may name: descriptions of tensors, plain containers."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from cnorm.checkpoint._errors import CheckpointError
from cnorm.checkpoint._pickle import Function

_TYPES = {
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
    "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
}
_MAX_DIMENSIONS = 64  # NumPy's own limit
_UNSIGNED = ("uint16", "uint32", "uint64")  # these have no storage class of their own


@dataclass(frozen=True, slots=True)
class Dtype:
    """A dtype's name; None is that of an untyped storage, which counts bytes."""

    name: str | None


@dataclass(frozen=True, slots=True)
class Storage:
    """A numbered file of the archive, not read yet."""

    key: str
    dtype: Dtype
    count: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """A view of a storage; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, dtype: Any, extra: Any) -> Tensor:
    if extra:
        raise CheckpointError("a lazily conjugated or negated tensor: save its .resolve_conj()")
    if (
        isinstance(storage, Storage)
        and isinstance(dtype, Dtype)
        and dtype.name is not None
        and type(shape) is type(strides) is tuple
        and len(shape) == len(strides) <= _MAX_DIMENSIONS
        and all(type(n) is int and 0 <= n < 1 << 63 for n in (offset, *shape, *strides))
    ):
        return Tensor(storage, offset, shape, strides, dtype.name)
    raise CheckpointError("the pickle describes a tensor in a way that torch does not")


def _tensor_v2(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Tensor:
    _requires_grad, _hooks, extra, *_ = (*rest, None, None, None)
    return _tensor(storage, offset, shape, strides, getattr(storage, "dtype", None), extra)


def _tensor_v3(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Tensor:
    _requires_grad, _hooks, dtype, extra, *_ = (*rest, None)
    return _tensor(storage, offset, shape, strides, dtype, extra)


def storage(identifier: Any) -> Storage:
    """Read a persistent id."""
    match identifier:
        case ("storage", Dtype() as dtype, str(key), str(), int(count)) if 0 <= count < 1 << 63:
            return Storage(key, dtype, count)
    raise CheckpointError("the pickle describes a storage in a way that torch does not")


NAMES: dict[str, Any] = {
    "collections.OrderedDict": Function(lambda: OrderedDict()),
    "collections.Counter": Function(lambda counts: counts),
    "torch.Size": Function(lambda sizes: sizes),
    "torch.device": Function(lambda *_: None),
    "torch._utils._rebuild_tensor": Function(_tensor_v2),
    "torch._utils._rebuild_tensor_v2": Function(_tensor_v2),
    "torch._utils._rebuild_tensor_v3": Function(_tensor_v3),
    "torch._utils._rebuild_parameter": Function(lambda data, *_: data),
    "torch._utils._rebuild_parameter_with_state": Function(lambda data, *_: data),
    "torch.storage.UntypedStorage": Dtype(None),
    **{f"torch.{prefix}Storage": Dtype(name) for prefix, name in _TYPES.items()},
    **{f"torch.{name}": Dtype(name) for name in (*_TYPES.values(), *_UNSIGNED)},
}
