"""``.safetensors``, through the library that defines the format and checks every header."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from cnorm.checkpoint._errors import CheckpointError, optional
from cnorm.checkpoint._files import describe
from cnorm.checkpoint._source import ArrayInfo

_LETTERS = {"F": "float", "I": "int", "U": "uint"}
_DTYPES = {f"{kind}{n}": f"{name}{n}" for kind, name in _LETTERS.items() for n in (16, 32, 64)}
_DTYPES |= {"I8": "int8", "U8": "uint8", "BF16": "bfloat16", "BOOL": "bool", "C64": "complex64"}
_MAX_HEADER = 10 << 20  # bytes; an entry takes about 100
_MAX_DIMENSIONS = 64


class _File:
    """One file; the library maps it, and reads a tensor when it is asked for."""

    metadata: Mapping[str, dict[str, int]] = {}

    def __init__(self, tensors: Any) -> None:
        self._tensors = tensors
        self.names: list[str] = list(tensors.keys())

    def info(self, name: str) -> ArrayInfo:
        tensor = self._tensors.get_slice(name)
        shape, dtype = tensor.get_shape(), tensor.get_dtype()
        if len(shape) > _MAX_DIMENSIONS:
            raise CheckpointError(f"tensor {name!r} has {len(shape)} axes, more than an array can")
        return ArrayInfo(tuple(shape), _DTYPES.get(dtype, dtype))

    def read(self, name: str) -> NDArray[Any]:
        dtype = self.info(name).dtype
        if dtype not in _DTYPES.values():
            raise CheckpointError(f"tensor {name!r} is of dtype {dtype}, which is not supported")
        if dtype == "bfloat16":  # importing it is what teaches NumPy, and so the library, bfloat16
            optional("ml_dtypes", f"the bfloat16 of {name!r}")
        array: NDArray[Any] = self._tensors.get_tensor(name)
        return array


@contextmanager
def opened(path: Path) -> Iterator[_File]:
    """Open a file; only its header is read yet."""
    library = optional("safetensors", "a .safetensors file")
    with path.open("rb") as file:
        kind = describe(file)
        header = int.from_bytes(file.read(8), "little")
        size = path.stat().st_size
    if "safetensors" not in kind:
        raise CheckpointError(f"expected a safetensors file, got {kind}")
    if _MAX_HEADER < header <= size - 8:  # where it is larger than the file, the library says so
        raise CheckpointError(f"a header of {header} bytes; the limit is {_MAX_HEADER}")
    try:
        with library.safe_open(path, framework="np") as tensors:
            yield _File(tensors)
    except library.SafetensorError as error:
        raise CheckpointError(f"not a whole safetensors file: {error}") from error


def save(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write native, C-contiguous arrays."""
    library = optional("safetensors.numpy", "a .safetensors file")
    for name, array in tensors.items():
        if array.dtype.name not in _DTYPES.values():
            raise CheckpointError(
                f"safetensors cannot hold {name!r}: it is of dtype {array.dtype}; .npz can hold it"
            )
    try:
        library.save_file(dict(tensors), path)
    except optional("safetensors", "a .safetensors file").SafetensorError as error:
        raise CheckpointError(f"safetensors cannot hold this: {error}") from error
