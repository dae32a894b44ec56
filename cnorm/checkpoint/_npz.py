"""``.npz``: NumPy's own archive, without its pickles.

NumPy has no name for bfloat16 on disk and writes two opaque bytes, ``V2``; here they come back as
bfloat16. Headers of arrays are Python literals. They are matched with the few words that an array
of numbers needs: Python's parser takes gigabytes for some that are short.
"""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from cnorm.checkpoint._errors import CheckpointError, UnsafeCheckpointError, optional
from cnorm.checkpoint._files import fill, open_zip
from cnorm.checkpoint._source import ArrayInfo

_BFLOAT16_ON_DISK = np.dtype("V2")
_MAX_HEADER = 10_000  # characters, as NumPy has it
_MAX_DIMENSIONS = 64
_HEADER = re.compile(r"\{(?P<items>[^{}]*)\}\s*")
_ITEM = re.compile(
    r"""\s*(?P<quote>['"])(?P<key>\w{1,20})(?P=quote)\s*:\s*
        (?: ['"](?P<descr>[^'"]{1,20})['"] | (?P<order>True|False) | \((?P<shape>[-\dL,\s]*)\) )
        \s*(?:,|\Z)\s*""",
    re.VERBOSE,
)
_NUMBER = re.compile(r"[<>=|]?([biufc]\d{1,2}|V2)")


class _Archive:
    """One archive; the header of an array is read when it is asked for, its data with `read`."""

    metadata: Mapping[str, dict[str, int]] = {}

    def __init__(self, archive: zipfile.ZipFile) -> None:
        strangers = [entry for entry in archive.namelist() if not entry.endswith(".npy")]
        if strangers:
            raise CheckpointError(f"expected an .npz archive of .npy files, got {strangers[0]!r}")
        self._archive = archive
        self._entries = {entry.removesuffix(".npy"): entry for entry in archive.namelist()}

    @property
    def names(self) -> list[str]:
        return list(self._entries)

    @contextmanager
    def _open(self, name: str) -> Iterator[IO[bytes]]:
        entry = self._archive.getinfo(self._entries[name])
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise CheckpointError(
                f"{entry.filename!r} is packed in a way that NumPy does not write, "
                f"number {entry.compress_type}"
            )
        with self._archive.open(entry) as file:
            yield file

    def info(self, name: str) -> ArrayInfo:
        with self._open(name) as file:
            shape, _, dtype = self._header(name, file)
        return ArrayInfo(shape, "bfloat16" if dtype == _BFLOAT16_ON_DISK else dtype.name)

    def read(self, name: str) -> NDArray[Any]:
        with self._open(name) as file:
            shape, fortran, dtype = self._header(name, file)
            array: NDArray[Any] = np.empty(shape, dtype, "F" if fortran else "C")
            flat = (array.T if fortran else array).reshape(-1).view(np.uint8)
            fill(file, flat.data, self._entries[name])
        if dtype == _BFLOAT16_ON_DISK:
            return array.view(optional("ml_dtypes", f"the bfloat16 of {name!r}").bfloat16)
        return array

    def _header(self, name: str, file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
        """Shape, whether in Fortran's order, dtype: of an array that fits its entry."""
        entry = self._entries[name]
        version = npy.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise CheckpointError(f"{entry!r} is of .npy version {version}, not 1.0 or 2.0")
        width = 2 if version == (1, 0) else 4
        length = int.from_bytes(file.read(width), "little")
        text = file.read(min(length, _MAX_HEADER)).decode("latin-1")
        if len(text) < length:
            raise CheckpointError(f"damaged: {entry!r} has a header of {length} characters")
        values = _parsed(text)
        if values is None:
            raise CheckpointError(
                f"{entry!r} is damaged or not numbers: its header is {text.strip()[:200]!r}"
            )
        shape, fortran, descr = values
        if descr.endswith("O"):
            raise UnsafeCheckpointError(f"{entry!r} holds pickled objects, not numbers")
        if not _NUMBER.fullmatch(descr):
            raise CheckpointError(f"{entry!r} is of dtype {descr}, not numbers")
        dtype = np.dtype(descr)
        expected = math.prod(shape) * dtype.itemsize
        size = self._archive.getinfo(entry).file_size - (8 + width + length)
        if min(shape, default=0) < 0 or expected != size:
            raise CheckpointError(f"{entry!r} of shape {shape} needs {expected} bytes, got {size}")
        return shape, fortran, dtype


def _parsed(text: str) -> tuple[tuple[int, ...], bool, str] | None:
    """Shape, order and dtype of a header, such as ``{'descr': '<f8', ..., 'shape': (3,), }``."""
    whole = _HEADER.fullmatch(text)
    if not whole:
        return None
    items, at, found = whole["items"].strip(), 0, {}
    while at < len(items):
        item = _ITEM.match(items, at)
        if not item or item["key"] in found:
            return None
        found[item["key"]] = item
        at = item.end()
    if found.keys() != {"descr", "fortran_order", "shape"}:
        return None
    descr, order = found["descr"]["descr"], found["fortran_order"]["order"]
    sizes = found["shape"]["shape"]
    if descr is None or order is None or sizes is None:
        return None
    numbers = [size.strip() for size in sizes.split(",")]
    if numbers[-1] == "":  # of () and of (3,)
        numbers.pop()
    if len(numbers) > _MAX_DIMENSIONS or not all(re.fullmatch(r"-?\d{1,19}L?", n) for n in numbers):
        return None
    return tuple(int(number.rstrip("L")) for number in numbers), order == "True", descr


@contextmanager
def opened(path: Path) -> Iterator[_Archive]:
    """Open a file; nothing but its directory is read yet."""
    with open_zip(path, "an .npz archive") as archive:
        yield _Archive(archive)


def save(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write uncompressed, as `numpy.savez` does, but with any name for an array."""
    for name in tensors:
        if "\0" in name:
            raise CheckpointError(f"an .npz archive cannot hold the name {name!r}")
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in tensors.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                npy.write_array(file, array, allow_pickle=False)
