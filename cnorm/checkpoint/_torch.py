"""torch's ``.pt`` zip archives, without torch.

Such an archive holds ``data.pkl``, a pickle of the saved object in which each tensor is a view
(offset, sizes, strides) of a numbered storage, and ``data/<number>``, the bytes of each storage.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnorm.checkpoint._errors import CheckpointError, UnsafeCheckpointError, optional
from cnorm.checkpoint._files import Contents, open_zip
from cnorm.checkpoint._flatten import flatten
from cnorm.checkpoint._pickle import Reader
from cnorm.checkpoint._tensors import NAMES, Storage, Tensor, storage

_MAX_PICKLE = 8 << 20  # names and shapes only: a model of 10 000 tensors takes 2 MB


class _Archive:
    """One archive's files; each storage is read once, so that tied tensors stay tied."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._buffers: dict[tuple[str, int], bytearray] = {}
        names = archive.namelist()
        pickles = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise CheckpointError(f"expected a torch archive with one data.pkl, got {names[:3]}")
        self._root = pickles[0].removesuffix("data.pkl")
        if self._root + "constants.pkl" in names:
            raise CheckpointError("expected a state dict, got TorchScript: save its state_dict()")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise UnsafeCheckpointError("a compressed archive: torch does not write such a file")
        order = self._root + "byteorder"
        self._order = archive.read(order).decode() if order in names else "little"

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The saved object's tensors and ``_metadata``, by dotted name."""
        pickle = self._archive.getinfo(self._root + "data.pkl")
        if pickle.file_size > _MAX_PICKLE:
            raise UnsafeCheckpointError(f"a pickle of {pickle.file_size} bytes is not for tensors")
        root = Reader(NAMES, storage).read(self._archive.read(pickle))
        return flatten(root, Tensor, budget=pickle.file_size)

    def array(self, name: str, tensor: Tensor) -> NDArray[Any]:
        """The tensor as a view of its storage, read-only where elements share memory."""
        half = tensor.dtype == "bfloat16"
        dtype = np.dtype(optional("ml_dtypes").bfloat16 if half else tensor.dtype)
        buffer = self._buffer(tensor.storage, dtype)
        start = tensor.offset * dtype.itemsize
        steps = [step * dtype.itemsize for step in tensor.strides]
        last = sum((n - 1) * step for n, step in zip(tensor.shape, steps, strict=True))
        if 0 in tensor.shape:
            start = 0
        elif start + last + dtype.itemsize > len(buffer):
            raise CheckpointError(f"tensor {name!r} reaches beyond its storage")
        view: NDArray[Any] = np.ndarray(tensor.shape, dtype, buffer, start, steps)
        view.flags.writeable = view.nbytes <= len(buffer)
        return view

    def _buffer(self, storage: Storage, dtype: np.dtype[Any]) -> bytearray:
        entry = self._archive.getinfo(f"{self._root}data/{storage.key}")
        expected = storage.count * (dtype.itemsize if storage.dtype.name else 1)
        if entry.file_size != expected:
            raise CheckpointError(
                f"storage {storage.key!r} needs {expected} bytes, got {entry.file_size}"
            )
        key = (storage.key, dtype.itemsize)
        if key not in self._buffers:
            self._buffers[key] = buffer = bytearray(self._archive.read(entry))
            if self._order != sys.byteorder:
                unit = dtype.itemsize // 2 if dtype.kind == "c" else dtype.itemsize
                np.frombuffer(buffer, f"u{unit}").byteswap(inplace=True)
        return self._buffers[key]


def load(path: Path, prefix: str) -> Contents:
    """Read the tensors whose dotted names begin with ``prefix``; no other storage is read."""
    with open_zip(path, "a torch .pt archive", max_ratio=1) as zipped:
        archive = _Archive(zipped)
        tensors, metadata = archive.tensors()
        kept = {
            name: archive.array(name, tensor)
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }
        return kept, metadata
