"""Checkpoints in and out, as flat dicts of NumPy arrays.

========================  ====  ====  ============================================================
suffix                    load  save  needs
========================  ====  ====  ============================================================
``.safetensors``          yes   yes   the safetensors library (``cnorm-layers[checkpoint]``)
``.npz``                  yes   yes   NumPy alone
``.pt .pth .bin .ckpt``   yes   no    NumPy alone: torch's zip archives, read without torch
========================  ====  ====  ============================================================

bfloat16 needs ``ml_dtypes`` (also in ``cnorm-layers[checkpoint]``). Nothing in a file is ever
executed.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cnorm.checkpoint import _npz, _safetensors, _torch
from cnorm.checkpoint._errors import CheckpointError, UnsafeCheckpointError, naming
from cnorm.checkpoint._files import replacing

__all__ = ["CheckpointError", "UnsafeCheckpointError", "load", "save"]

_WRITERS = {".safetensors": _safetensors, ".npz": _npz}
_READERS = _WRITERS | dict.fromkeys((".pt", ".pth", ".bin", ".ckpt"), _torch)


def load(path: str | os.PathLike[str], *, prefix: str = "") -> OrderedDict[str, NDArray[Any]]:
    """Read a checkpoint.

    Parameters
    ----------
    path
        A ``.safetensors``, ``.npz`` or torch (``.pt``, ``.pth``, ``.bin``, ``.ckpt``) file.
    prefix
        Keep only the tensors whose names begin with this, and take it off their names:
        ``"encoder.layer.0."`` picks one sub-tree. The other tensors are not read.

    Returns
    -------
    OrderedDict of str to ndarray
        Ready for ``load_state_dict``. Containers nested in a torch file become dotted names, as in
        ``"optimizer.state.0.exp_avg"``; what is no tensor is left out. ``_metadata`` of torch's
        state dicts is kept as an attribute. bfloat16 comes as ``ml_dtypes.bfloat16``. Tensors that
        share memory in a torch file share it here; an expanded one is read-only.

    Raises
    ------
    CheckpointError
        The file is damaged, is not what its suffix says, or nothing in it begins with ``prefix``.
    UnsafeCheckpointError
        A pickle names code, or a small file would unpack to a huge one. Nothing was executed.
    ImportError
        The file needs a library that is not installed; the message names it.

    Examples
    --------
    >>> import tempfile, pathlib, numpy as np
    >>> from cnorm import checkpoint
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "model.npz"
    >>> checkpoint.save(file, {"norm.weight": np.ones(3), "head.bias": np.zeros(2)})
    >>> dict(checkpoint.load(file, prefix="norm."))
    {'weight': array([1., 1., 1.])}
    """
    path = Path(path)
    reader = _by_suffix(path, _READERS, "read")
    path.open("rb").close()  # a missing file raises as itself; from here on, errors are the bytes'
    with naming(path):
        tensors, metadata = reader.load(path, prefix)
        if prefix and not tensors:
            raise CheckpointError(f"no tensor's name begins with {prefix!r}")
    state = OrderedDict((name[len(prefix) :], tensor) for name, tensor in tensors.items())
    if metadata:
        paths = {f"{module}." if module else "": value for module, value in metadata.items()}
        state._metadata = OrderedDict(  # type: ignore[attr-defined]
            (module[len(prefix) : -1], value)
            for module, value in paths.items()
            if module.startswith(prefix)
        )
    return state


def save(path: str | os.PathLike[str], state_dict: Mapping[str, ArrayLike]) -> None:
    """Write a checkpoint, whole or not at all.

    The data goes to a new file in the same folder, to disk, and then takes the place of ``path`` in
    one step: a crash leaves the old file or the new one.

    Parameters
    ----------
    path
        A ``.safetensors`` or ``.npz`` file.
    state_dict
        Names and arrays, such as a module's ``state_dict()``; anything `numpy.asarray` takes.

    Raises
    ------
    CheckpointError
        The suffix is another, or the format cannot hold an array.
    TypeError
        A name is not a string, or an array does not hold numbers.
    ValueError
        A lazy layer has no parameters yet.

    Examples
    --------
    >>> import tempfile, pathlib, cnorm
    >>> from cnorm import checkpoint
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "norm.npz"
    >>> checkpoint.save(file, cnorm.LayerNorm(3).state_dict())
    >>> cnorm.LayerNorm(3).load_state_dict(checkpoint.load(file))
    <All keys matched successfully>
    """
    path = Path(path)
    writer = _by_suffix(path, _WRITERS, "written")
    arrays = {_checked(name): _native(name, value) for name, value in state_dict.items()}
    with replacing(path) as temporary:
        writer.save(temporary, arrays)


def _by_suffix(path: Path, known: Mapping[str, ModuleType], done: str) -> ModuleType:
    try:
        return known[path.suffix.lower()]
    except KeyError:
        suffixes = ", ".join(known)
        raise CheckpointError(
            f"{path}: expected one of {suffixes}; a {path.suffix or 'bare'} file is not {done}"
        ) from None


def _checked(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"names must be strings, got {name!r}")
    return name


def _native(name: str, value: ArrayLike) -> NDArray[Any]:
    np.shape(value)  # raises for what a lazy layer has not made yet; asarray would find it empty
    array = np.asarray(value)
    if array.dtype.kind not in "biufc" and array.dtype.name != "bfloat16":
        raise TypeError(f"{name!r} must be an array of numbers, got dtype {array.dtype}")
    return np.require(array, array.dtype.newbyteorder("="), "C")
