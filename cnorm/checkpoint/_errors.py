"""What can be wrong with a checkpoint, and the one place where a file's name joins the message."""

from __future__ import annotations

import importlib
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from cnorm._version import install

__all__ = ["CheckpointError", "UnsafeCheckpointError"]

# What zipfile, zlib and numpy.lib.format raise on damaged bytes. OSError is among them because a
# hostile offset becomes an invalid seek; a file that cannot be opened fails earlier, as itself.
DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    ArithmeticError,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    RecursionError,
    RuntimeError,
    SyntaxError,
    tokenize.TokenError,
    TypeError,
    ValueError,
)


class CheckpointError(ValueError):
    """A checkpoint is damaged, mislabelled, or of a kind that is not read."""


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint asks for more than tensors and containers, or for absurd amounts of memory."""


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn whatever bad bytes raise into a `CheckpointError` that begins with the file's name."""
    try:
        yield
    except CheckpointError as error:
        raise type(error)(f"{os.fspath(path)}: {error}") from error.__cause__
    except DAMAGE as error:
        raise CheckpointError(f"{os.fspath(path)}: cut short or damaged: {error}") from error


def optional(name: str) -> ModuleType:
    """Import a library of the ``[checkpoint]`` extra."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        message = f"this checkpoint needs {name}: {install('checkpoint')}"
        raise ImportError(message, name=name) from error
