"""Files: what they really are, zip archives that stay within bounds, and atomic replacement."""

from __future__ import annotations

import os
import secrets
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from numpy.typing import NDArray

from cnorm.checkpoint._errors import CheckpointError, UnsafeCheckpointError

_SIGNATURES = {
    b"PK\x03\x04": "a zip archive (.npz, or torch's .pt)",
    b"PK\x05\x06": "an empty zip archive",
    b"\x80": "a bare pickle (torch's legacy .pt format: save it again with torch 1.6 or newer)",
    b"\x93NUMPY": "a single NumPy array (.npy)",
    b"\x89HDF": "an HDF5 file",
    b"\x1f\x8b": "a gzip file",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself",
}
# Whatever an archive's ratio, what it unpacks to may be this large: fresh weights are all zeros.
_FREE_BYTES = 64 << 20

# The tensors by name, and torch's `_metadata` (versions of modules, by path) where a file has it.
Contents = tuple[dict[str, NDArray[Any]], dict[str, Any]]


def describe(file: BinaryIO) -> str:
    """Say what a file is, from its first bytes."""
    file.seek(0)
    head = file.read(32)
    file.seek(0)
    if not head:
        return "an empty file"
    for signature, kind in _SIGNATURES.items():
        if head.startswith(signature):
            return kind
    return "a safetensors file" if head[8:9] == b"{" else f"a file beginning with {head[:8]!r}"


@contextmanager
def open_zip(path: Path, expected: str, max_ratio: int) -> Iterator[zipfile.ZipFile]:
    """Open an archive that unpacks to at most ``max_ratio`` times its size, or to a little."""
    with path.open("rb") as file:
        kind = describe(file)
        if "zip archive" not in kind:
            raise CheckpointError(f"expected {expected}, got {kind}")
        with zipfile.ZipFile(file) as archive:
            packed = os.fstat(file.fileno()).st_size
            unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > max(_FREE_BYTES, max_ratio * packed):
                raise UnsafeCheckpointError(
                    f"{packed} bytes that would unpack to {unpacked}, "
                    f"more than {max_ratio} times as many (a zip bomb?)"
                )
            yield archive


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the name of a new file that takes the place of ``path`` once it is whole and on disk.

    A reader, or a crash, meets the old file or the new one, never a part of it.
    """
    target = Path(os.path.realpath(path))  # a symbolic link stays one
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.touch(exist_ok=False)
        like = target if target.exists() else temporary
        mode = stat.S_IMODE(like.stat().st_mode)
        yield temporary
        temporary.chmod(mode)  # a library may have made a private file in its place
        _sync(temporary, os.O_RDWR)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    with suppress(OSError):  # not every system can sync a folder
        _sync(target.parent, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
