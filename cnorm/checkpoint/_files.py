"""Files: what they really are, zip archives that stay within bounds, and atomic replacement."""

from __future__ import annotations

import io
import os
import secrets
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO

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
_SPECIAL = {
    stat.S_IFDIR: "a folder (name a file in it)",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
# Whatever an archive's ratio, what it unpacks to may be this large: fresh weights are all zeros.
_FREE_BYTES = 64 << 20
_MAX_RATIO = 100  # real weights hardly compress
# Of a zip's directory, of which an entry takes 46 bytes and its name: 60,000 tensors of a model.
_MAX_DIRECTORY = 6 << 20
_CHUNK = 1 << 20  # bytes that are read at a time, beside the array that they go to
_LOCAL, _CENTRAL = 30, 46  # bytes of an entry's two headers, apart from its name


def check_regular(path: Path) -> None:
    """Refuse what exists and is no ordinary file: opening a pipe would wait for its writer."""
    if path.exists() and not path.is_file():
        kind = _SPECIAL.get(stat.S_IFMT(path.stat().st_mode), "a special file")
        raise CheckpointError(f"path must be a file, got {kind}: {path}")


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


class _Frugal(io.BufferedReader):
    """A file of which zipfile reads the directory, in one piece, if it is not too large."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_DIRECTORY:
            raise UnsafeCheckpointError(
                f"a zip archive with a directory of {size} bytes; the limit is {_MAX_DIRECTORY}"
            )
        return super().read(size)


@contextmanager
def open_zip(path: Path, expected: str) -> Iterator[zipfile.ZipFile]:
    """Open an archive that unpacks to at most a hundred times its size, or to a little."""
    with _Frugal(io.FileIO(path)) as file:
        kind = describe(file)
        if "zip archive" not in kind:
            raise CheckpointError(f"expected {expected}, got {kind}")
        with zipfile.ZipFile(file) as archive:
            packed = os.fstat(file.fileno()).st_size
            entries = archive.infolist()
            unpacked = sum(entry.file_size for entry in entries)
            if unpacked > max(_FREE_BYTES, _MAX_RATIO * packed):
                raise UnsafeCheckpointError(
                    f"{packed} bytes that would unpack to {unpacked}, "
                    f"more than {_MAX_RATIO} times as many (a zip bomb?)"
                )
            for entry in entries:
                stored = entry.compress_type == zipfile.ZIP_STORED
                if stored and entry.file_size != entry.compress_size:
                    raise CheckpointError(f"damaged: {entry.filename!r} is stored, with two sizes")
            headers = sum(_LOCAL + _CENTRAL + 2 * len(entry.filename) for entry in entries)
            if headers + sum(entry.compress_size for entry in entries) > packed:
                raise UnsafeCheckpointError(
                    "a zip archive whose entries add up to more than the file: it is damaged, "
                    "or they share their bytes (a zip bomb?)"
                )
            yield archive


def fill(file: IO[bytes], target: memoryview, name: str) -> None:
    """Read an entry to its end, where zipfile compares the checksum, into ``target``."""
    at = 0
    while chunk := file.read(min(_CHUNK, len(target) - at) or 1):
        if at + len(chunk) > len(target):
            raise CheckpointError(f"{name!r} is longer than the {len(target)} bytes it needs")
        target[at : at + len(chunk)] = chunk
        at += len(chunk)
    if at < len(target):
        raise CheckpointError(f"{name!r} needs {len(target)} bytes, got {at}")


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
