"""What can be wrong with a checkpoint, and the one place where a file's name joins the message."""

from __future__ import annotations

import importlib
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from cnorm._version import install

__all__ = ["CheckpointError", "UnsafeCheckpointError"]

# What zipfile, zlib and struct raise on damaged bytes. OSError is among them because a hostile
# offset becomes an invalid seek; a file that cannot be opened fails earlier, as itself.
DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    ArithmeticError,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
_MAX_MESSAGE = 1000  # characters: names and keys in a message are the file's, and may be megabytes


class CheckpointError(ValueError):
    """A checkpoint is damaged, mislabelled, or of a kind that is not read."""


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint asks for more than tensors and containers, or for absurd amounts of memory."""


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn whatever bad bytes raise into a `CheckpointError` that begins with the file's name."""
    name = os.fspath(path)
    try:
        yield
    except CheckpointError as error:
        raise type(error)(f"{name}: {_clipped(str(error))}") from _printable(error.__cause__)
    except ImportError as error:
        raise ImportError(f"{name}: {error}", name=error.name) from error.__cause__
    except DAMAGE as error:
        message = f"{name}: cut short or damaged: {_clipped(str(error))}"
        raise CheckpointError(message) from _printable(error)


def optional(name: str, what: str) -> ModuleType:
    """Import a library of the ``[checkpoint]`` extra, which ``what`` needs."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{what} needs {name}: {install('checkpoint')}", name=name) from error


def _clipped(text: str) -> str:
    if len(text) <= _MAX_MESSAGE:
        return text
    half = _MAX_MESSAGE // 2
    return f"{text[:half]} ... {text[-half:]}"


def _printable(cause: BaseException | None) -> BaseException | None:
    """The cause, unless a traceback would print megabytes of it."""
    return None if cause is None or len(str(cause)) > _MAX_MESSAGE else cause
