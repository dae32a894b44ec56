"""``.safetensors``, through the library that defines the format and checks every header."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from cnorm.checkpoint._errors import CheckpointError, optional
from cnorm.checkpoint._files import Contents, describe

_DTYPES = {f"{kind}{bits}" for kind in "FIU" for bits in (16, 32, 64)} | {"I8", "U8"}
_DTYPES |= {"BF16", "BOOL", "C64"}


def load(path: Path, prefix: str) -> Contents:
    """Read the tensors whose names begin with ``prefix``; the others are not read from disk."""
    library = optional("safetensors")
    with path.open("rb") as file:
        kind = describe(file)
    if "safetensors" not in kind:
        raise CheckpointError(f"expected a safetensors file, got {kind}")
    try:
        with library.safe_open(path, framework="np") as tensors:
            names = [name for name in tensors.keys() if name.startswith(prefix)]  # noqa: SIM118
            for name in names:
                _check(name, tensors.get_slice(name).get_dtype())
            return {name: tensors.get_tensor(name) for name in names}, {}
    except library.SafetensorError as error:
        raise CheckpointError(f"not a whole safetensors file: {error}") from error


def _check(name: str, dtype: str) -> None:
    if dtype not in _DTYPES:
        raise CheckpointError(f"tensor {name!r} is of dtype {dtype}, which is not supported")
    if dtype == "BF16":
        optional("ml_dtypes")  # importing it is what teaches NumPy, and so the library, bfloat16


def save(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write native, C-contiguous arrays."""
    library = optional("safetensors.numpy")
    try:
        library.save_file(dict(tensors), path)
    except optional("safetensors").SafetensorError as error:
        raise CheckpointError(f"safetensors cannot hold this: {error}") from error
