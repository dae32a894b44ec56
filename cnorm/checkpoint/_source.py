"""What every format gives: names, what is behind each of them, and the arrays themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray

from cnorm.checkpoint._errors import CheckpointError


class ArrayInfo(NamedTuple):
    """The shape of an array in a file, and the name of its dtype, such as ``"bfloat16"``."""

    shape: tuple[int, ...]
    dtype: str


class Source(Protocol):
    """An open checkpoint."""

    @property
    def names(self) -> list[str]:
        """The names of all tensors, in the file's order."""

    @property
    def metadata(self) -> Mapping[str, dict[str, int]]:
        """The versions of modules by path (torch's ``_metadata``), where the file has them."""

    def info(self, name: str) -> ArrayInfo:
        """Shape and dtype, without the data."""

    def read(self, name: str) -> NDArray[Any]:
        """The array."""


def select(names: list[str], prefix: str) -> tuple[list[str], str]:
    """The names below ``prefix``, and what is to be cut off them.

    A prefix may lack its dot: ``"layer.1"`` is ``"layer.1."`` where that exists, and so never
    picks ``"layer.10.weight"`` with it. Where it does not, names begin with the prefix as it is,
    as those of ``"ema_"`` do.
    """
    for whole in (prefix, f"{prefix}.") if prefix.endswith(".") else (f"{prefix}.", prefix):
        chosen = [name for name in names if name.startswith(whole)]
        if chosen:
            return chosen, whole
    raise CheckpointError(f"no tensor's name begins with {prefix!r}: {_there(names, prefix)}")


def _there(names: list[str], prefix: str) -> str:
    """Say which prefixes there are, below the longest part of ``prefix`` that exists."""
    if not names:
        return "the file has no tensors"
    parent = prefix
    while parent and not any(name.startswith(parent) for name in names):
        parent = parent.rstrip(".").rpartition(".")[0]
        parent += "." if parent else ""
    below = (name[len(parent) :].partition(".") for name in names if name.startswith(parent))
    found = list(dict.fromkeys(parent + first + dot for first, dot, _ in below))
    shown = ", ".join(repr(name if len(name) <= 60 else f"{name[:60]}...") for name in found[:12])
    more = f" and {len(found) - 12} more" if len(found) > 12 else ""
    return f"there are {shown}{more}"
