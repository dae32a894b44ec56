"""``.npz``: NumPy's own archive, without its pickles.

NumPy has no name for bfloat16 on disk and writes two opaque bytes, ``V2``; here they come back as
bfloat16.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from cnorm.checkpoint._errors import CheckpointError, UnsafeCheckpointError, optional
from cnorm.checkpoint._files import Contents, open_zip

_BFLOAT16_ON_DISK = np.dtype("V2")
_MAX_RATIO = 100  # real weights hardly compress


def load(path: Path, prefix: str) -> Contents:
    """Read the arrays whose names begin with ``prefix``."""
    with open_zip(path, "an .npz archive", _MAX_RATIO) as archive:
        strangers = [entry for entry in archive.namelist() if not entry.endswith(".npy")]
        if strangers:
            raise CheckpointError(f"expected an .npz archive of .npy files, got {strangers[0]!r}")
        entries = {entry.removesuffix(".npy"): entry for entry in archive.namelist()}
        return {
            name: _read(archive, archive.getinfo(entry))
            for name, entry in entries.items()
            if name.startswith(prefix)
        }, {}


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> NDArray[Any]:
    with archive.open(entry) as file:
        _check_header(file, entry)
    with archive.open(entry) as file:
        array: NDArray[Any] = npy.read_array(file, allow_pickle=False)
        if file.read(1):  # also reaches the end, where zipfile compares the checksum
            raise CheckpointError(f"{entry.filename!r} is longer than its header says")
    if array.dtype == _BFLOAT16_ON_DISK:
        return array.view(optional("ml_dtypes").bfloat16)
    return array


def _check_header(file: IO[bytes], entry: zipfile.ZipInfo) -> None:
    """Refuse an array that does not fit its entry before any memory is taken for it."""
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise CheckpointError(f"{entry.filename!r} is of .npy version {version}, not 1.0 or 2.0")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise UnsafeCheckpointError(f"{entry.filename!r} holds pickled objects, not numbers")
    if dtype.kind not in "biufc" and dtype != _BFLOAT16_ON_DISK:
        raise CheckpointError(f"{entry.filename!r} is of dtype {dtype}, not numbers")
    expected = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or expected != entry.file_size - file.tell():
        raise CheckpointError(
            f"{entry.filename!r} of shape {shape} needs {expected} bytes, "
            f"got {entry.file_size - file.tell()}"
        )


def save(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write uncompressed, as `numpy.savez` does, but with any name for an array."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in tensors.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                npy.write_array(file, array, allow_pickle=False)
