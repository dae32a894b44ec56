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
from cnorm.checkpoint._budget import Budget
from cnorm.checkpoint._errors import CheckpointError, UnsafeCheckpointError, naming
from cnorm.checkpoint._files import check_regular, replacing
from cnorm.checkpoint._flatten import flatten
from cnorm.checkpoint._source import ArrayInfo, Source, select

__all__ = ["ArrayInfo", "CheckpointError", "UnsafeCheckpointError", "keys", "load", "save"]

_WRITERS = {".safetensors": _safetensors, ".npz": _npz}
_READERS = _WRITERS | dict.fromkeys((".pt", ".pth", ".bin", ".ckpt"), _torch)


def __dir__() -> list[str]:
    """What completion offers."""
    return list(__all__)


def load(path: str | os.PathLike[str], *, prefix: str = "") -> OrderedDict[str, NDArray[Any]]:
    """Read a checkpoint.

    Parameters
    ----------
    path
        A ``.safetensors``, ``.npz`` or torch (``.pt``, ``.pth``, ``.bin``, ``.ckpt``) file.
    prefix
        Keep only the tensors whose names begin with this, and take it off their names:
        ``"encoder.layer.0."`` picks one sub-tree, with its last dot or without. The other tensors
        are not read. `keys` says which there are.

    Returns
    -------
    OrderedDict of str to ndarray
        Ready for ``load_state_dict``. Containers nested in a torch file become dotted names, as in
        ``"optimizer.state.0.exp_avg"``; what is no tensor is left out. ``_metadata`` of torch's
        state dicts is kept as an attribute. bfloat16 comes as ``ml_dtypes.bfloat16``. Tensors that
        share memory in a torch file share it here; one whose own elements do is read-only.

    Raises
    ------
    CheckpointError
        The file is damaged, is not what its suffix says, or is no file but a folder or a pipe, or
        nothing in it begins with ``prefix``.
    UnsafeCheckpointError
        A pickle names code, or a small file would unpack to a huge one. Nothing was executed.
    ImportError
        The file needs a library that is not installed; the message names it.

    See Also
    --------
    keys : what a file holds, without reading it.

    Examples
    --------
    >>> import tempfile, pathlib, numpy as np
    >>> from cnorm import checkpoint
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "model.npz"
    >>> checkpoint.save(file, {"norm.weight": np.ones(3), "head.bias": np.zeros(2)})
    >>> dict(checkpoint.load(file, prefix="norm."))
    {'weight': array([1., 1., 1.])}
    """
    if not isinstance(prefix, str):
        raise TypeError(f"prefix must be a string, got {prefix!r}")
    path, reader = _readable(path)
    with naming(path), reader.opened(path) as file:
        source: Source = file
        names = source.names
        if prefix:
            names, prefix = select(names, prefix)
        state = OrderedDict((name[len(prefix) :], source.read(name)) for name in names)
        metadata = source.metadata
    if metadata:
        paths = {f"{module}." if module else "": value for module, value in metadata.items()}
        state._metadata = OrderedDict(  # type: ignore[attr-defined]
            (module[len(prefix) : -1], value)
            for module, value in paths.items()
            if module.startswith(prefix)
        )
    return state


def keys(path: str | os.PathLike[str]) -> dict[str, ArrayInfo]:
    """Say what a checkpoint holds: names, shapes and dtypes. No array is read.

    Parameters
    ----------
    path
        A ``.safetensors``, ``.npz`` or torch (``.pt``, ``.pth``, ``.bin``, ``.ckpt``) file.

    Returns
    -------
    dict of str to ArrayInfo
        For each name that `load` would give, a named tuple of ``shape``, a tuple of int, and
        ``dtype``, the dtype's name: ``"float32"``, ``"bfloat16"``. Neither ``ml_dtypes`` nor torch
        is needed.

    Raises
    ------
    CheckpointError, UnsafeCheckpointError, ImportError
        As from `load`. Data that `load` would find damaged is not looked at.

    See Also
    --------
    load : reads the arrays.

    Examples
    --------
    >>> import tempfile, pathlib, numpy as np
    >>> from cnorm import checkpoint
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "model.npz"
    >>> checkpoint.save(file, {"norm": {"weight": np.ones(3), "steps": 7}})
    >>> for name, (shape, dtype) in checkpoint.keys(file).items():
    ...     print(name, shape, dtype)
    norm.weight (3,) float64
    norm.steps () int64
    """
    path, reader = _readable(path)
    with naming(path), reader.opened(path) as file:
        source: Source = file
        return {name: source.info(name) for name in source.names}


def save(path: str | os.PathLike[str], state_dict: Mapping[str, Any]) -> None:
    """Write a checkpoint, whole or not at all.

    The data goes to a new file in the same folder, to disk, and then takes the place of ``path`` in
    one step: a crash leaves the old file or the new one.

    Parameters
    ----------
    path
        A ``.safetensors`` or ``.npz`` file.
    state_dict
        Names and arrays, such as a module's ``state_dict()``; anything `numpy.asarray` takes.
        Values may be dicts of the same kind, and lists of dicts: their arrays get dotted names, as
        those of nested torch files do in `load`. Keys are strings, below the top also integers.

    Raises
    ------
    CheckpointError
        The suffix is another, the format cannot hold an array, or two get one name.
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

    Model and optimizer in one file:

    >>> norm = cnorm.LayerNorm(3)
    >>> momentum = {"weight": np.zeros(3), "bias": np.zeros(3)}
    >>> checkpoint.save(file, {"model": norm.state_dict(), "momentum": momentum, "epoch": 7})
    >>> sorted(checkpoint.load(file))
    ['epoch', 'model.bias', 'model.weight', 'momentum.bias', 'momentum.weight']
    >>> norm.load_state_dict(checkpoint.load(file, prefix="model"))
    <All keys matched successfully>
    """
    path = _path(path)
    check_regular(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path must be in a folder that exists, got {path}")
    writer = _by_suffix(path, _WRITERS, "written")
    if not isinstance(state_dict, Mapping):
        forms = ("state_dict", "to_dict")
        way_out = "".join(f": pass its {form}()" for form in forms if hasattr(state_dict, form))
        raise TypeError(
            f"state_dict must be a dict of arrays, got {type(state_dict).__name__}{way_out}"
        )
    try:
        leaves, _ = flatten(state_dict, lambda value: not _nests(value), _nests, Budget())
    except CheckpointError as error:
        raise CheckpointError(f"state_dict cannot be saved: {error}") from None
    arrays = {name: _native(name, value) for name, value in leaves.items()}
    with replacing(path) as temporary:
        writer.save(temporary, arrays)


def _path(path: str | os.PathLike[str]) -> Path:
    try:
        return Path(path)
    except TypeError:
        got = f"got {path!r}"
        if isinstance(path, Mapping):
            got = f"got {type(path).__name__}: the order is save(path, state_dict)"
        raise TypeError(f"path must be the name of a file, {got}") from None


def _readable(path: str | os.PathLike[str]) -> tuple[Path, ModuleType]:
    """The file, and what reads it; from here on, errors are about the file's bytes."""
    path = _path(path)
    check_regular(path)
    reader = _by_suffix(path, _READERS, "read")
    path.open("rb").close()  # a missing file raises as itself
    return path, reader


def _by_suffix(path: Path, known: Mapping[str, ModuleType], done: str) -> ModuleType:
    try:
        return known[path.suffix.lower()]
    except KeyError:
        suffixes, suffix = ", ".join(known), path.suffix
        kind = f"a {suffix} file" if suffix else "a file without a suffix"
        hint = ": numpy.load reads one" if (suffix, done) == (".npy", "read") else ""
        text = f"{path}: expected one of {suffixes}; {kind} is not {done}{hint}"
        raise CheckpointError(text) from None


def _nests(value: Any) -> bool:
    """Whether this is a container: a list of numbers is an array, a list of dicts is not."""
    if isinstance(value, (list, tuple)):
        return any(isinstance(item, Mapping) for item in value)
    return isinstance(value, Mapping)


def _native(name: str, value: ArrayLike) -> NDArray[Any]:
    np.shape(value)  # raises for what a lazy layer has not made yet; asarray would find it empty
    array = np.asarray(value)
    if array.dtype.kind not in "biufc" and array.dtype.name != "bfloat16":
        raise TypeError(f"{name!r} must be an array of numbers, got dtype {array.dtype}")
    return np.require(array, array.dtype.newbyteorder("="), "C")
