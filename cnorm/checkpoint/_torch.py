"""torch's ``.pt`` zip archives, without torch.

Such an archive holds ``data.pkl``, a pickle of the saved object in which each tensor is a view
(offset, sizes, strides) of a numbered storage, and ``data/<number>``, the bytes of each storage.
"""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnorm.checkpoint._budget import Budget
from cnorm.checkpoint._errors import CheckpointError, UnsafeCheckpointError, optional
from cnorm.checkpoint._files import fill, open_zip
from cnorm.checkpoint._flatten import flatten
from cnorm.checkpoint._pickle import Reader
from cnorm.checkpoint._source import ArrayInfo
from cnorm.checkpoint._tensors import NAMES, Storage, Tensor, storage

_MAX_PICKLE = 8 << 20  # names and shapes only: a model of 10 000 tensors takes 2 MB


class _Archive:
    """One archive's files; each storage is read once, so that tied tensors stay tied."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._buffers: dict[str, tuple[bytearray, int]] = {}
        names = archive.namelist()
        pickles = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise CheckpointError(f"expected a torch archive with one data.pkl, got {names[:3]}")
        self._root = pickles[0].removesuffix("data.pkl")
        if self._root + "constants.pkl" in names:
            raise CheckpointError("expected a state dict, got TorchScript: save its state_dict()")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise UnsafeCheckpointError("a compressed archive: torch does not write such a file")
        self._swapped = self._byte_order(names) != sys.byteorder
        self._tensors, self.metadata = self._described()

    def _byte_order(self, names: list[str]) -> str:
        name = self._root + "byteorder"
        if name not in names:
            return "little"  # as torch takes files of before it wrote the order
        order = bytes(self._entry(name, 16, "a byte order"))
        if order not in (b"little", b"big"):
            raise CheckpointError(f"expected the byte order 'little' or 'big', got {order!r}")
        return order.decode()

    def _described(self) -> tuple[dict[str, Tensor], dict[str, dict[str, int]]]:
        """The saved object's tensors and ``_metadata``, by dotted name."""
        data = bytes(self._entry(self._root + "data.pkl", _MAX_PICKLE, "a pickle"))
        budget = Budget(len(data))
        root = Reader(NAMES, storage, budget).read(data)
        if not isinstance(root, (dict, list, tuple)):
            raise CheckpointError(
                f"expected a state dict, got a bare {type(root).__name__.lower()}"
            )
        tensors, metadata = flatten(
            root,
            lambda value: isinstance(value, Tensor),
            lambda value: isinstance(value, (dict, list, tuple)),
            budget,
        )
        budget.spend(sum(len(tensor.shape) for tensor in tensors.values()), "too many axes")
        return tensors, metadata

    def _entry(self, name: str, limit: int, what: str) -> bytearray:
        entry = self._archive.getinfo(name)
        if entry.file_size > limit:
            raise UnsafeCheckpointError(
                f"{what} of {entry.file_size} bytes is not for tensors; the limit is {limit}"
            )
        data = bytearray(entry.file_size)
        with self._archive.open(entry) as file:
            fill(file, memoryview(data), name)
        return data

    @property
    def names(self) -> list[str]:
        return list(self._tensors)

    def info(self, name: str) -> ArrayInfo:
        tensor = self._tensors[name]
        return ArrayInfo(tensor.shape, tensor.dtype)

    def read(self, name: str) -> NDArray[Any]:
        """The tensor as a view of its storage, read-only where its elements share memory."""
        tensor = self._tensors[name]
        half = tensor.dtype == "bfloat16"
        library = optional("ml_dtypes", f"the bfloat16 of {name!r}") if half else np
        dtype = np.dtype(getattr(library, tensor.dtype) if half else tensor.dtype)
        buffer = self._buffer(tensor.storage, dtype)
        start = tensor.offset * dtype.itemsize
        steps = [step * dtype.itemsize for step in tensor.strides]
        last = sum((n - 1) * step for n, step in zip(tensor.shape, steps, strict=True))
        if 0 in tensor.shape:
            start = 0
        elif start + last + dtype.itemsize > len(buffer):
            raise CheckpointError(f"tensor {name!r} reaches beyond its storage")
        view: NDArray[Any] = np.ndarray(tensor.shape, dtype, buffer, start, steps)
        view.flags.writeable = not _overlaps(tensor)
        return view

    def _buffer(self, storage: Storage, dtype: np.dtype[Any]) -> bytearray:
        entry = self._archive.getinfo(f"{self._root}data/{storage.key}")
        expected = storage.count * (dtype.itemsize if storage.dtype.name else 1)
        if entry.file_size != expected:
            raise CheckpointError(
                f"storage {storage.key!r} needs {expected} bytes, got {entry.file_size}"
            )
        unit = dtype.itemsize // 2 if dtype.kind == "c" else dtype.itemsize
        if storage.key not in self._buffers:
            buffer = self._entry(entry.filename, expected, "a storage")
            if self._swapped:
                np.frombuffer(buffer, f"u{unit}").byteswap(inplace=True)
            self._buffers[storage.key] = buffer, unit
        buffer, swapped_by = self._buffers[storage.key]
        if self._swapped and swapped_by != unit:
            raise CheckpointError(
                f"storage {storage.key!r} of the other byte order holds numbers of "
                f"{swapped_by} and of {unit} bytes"
            )
        return buffer


def _overlaps(tensor: Tensor) -> bool:
    """Whether two elements may be at one place: not where each step leaps over the smaller ones."""
    reach = 0  # elements from the first to the last one of the axes so far
    for step, n in sorted(zip(tensor.strides, tensor.shape, strict=True)):
        if n > 1 and step <= reach:
            return 0 not in tensor.shape
        reach += (n - 1) * step
    return False


@contextmanager
def opened(path: Path) -> Iterator[_Archive]:
    """Open a file; a storage is read when the first of its tensors is."""
    with open_zip(path, "a torch .pt archive") as archive:
        yield _Archive(archive)
