"""Nested containers to one flat dict with dotted names, as ``state_dict`` itself names things."""

from __future__ import annotations

from typing import Any, TypeVar

from cnorm.checkpoint._errors import CheckpointError, UnsafeCheckpointError

_MAX_DEPTH = 32
_MAX_NAME = 2000

T = TypeVar("T")


def flatten(root: Any, leaf: type[T], budget: int) -> tuple[dict[str, T], dict[str, Any]]:
    """Collect the leaves below ``root``, and the ``_metadata`` that state dicts carry.

    Whatever is neither a container nor a leaf (an epoch, a learning rate) is left out. A few shared
    or cyclic containers can describe a tree without end: at most ``budget`` items are visited.
    """
    leaves: dict[str, T] = {}
    metadata: dict[str, Any] = {}
    left = budget

    def visit(node: Any, path: tuple[str, ...]) -> None:
        nonlocal left
        if isinstance(node, leaf):
            name = _join(path)
            if name in leaves:
                raise CheckpointError(f"two tensors would both be named {name!r}")
            leaves[name] = node
            return
        if len(path) > _MAX_DEPTH:
            raise UnsafeCheckpointError(f"containers nested more than {_MAX_DEPTH} deep")
        versions = getattr(node, "_metadata", {})
        left -= len(node) + len(versions)
        if left < 0:
            raise UnsafeCheckpointError("containers shared so often that they have no end")
        for key, value in versions.items():
            if isinstance(value, dict):
                metadata[_join((*path, str(key)) if key else path)] = value
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if isinstance(value, (dict, list, tuple, leaf)):
                visit(value, (*path, str(key)))

    if not isinstance(root, (dict, list, tuple)):
        raise CheckpointError(f"expected a state dict, got a bare {type(root).__name__.lower()}")
    visit(root, ())
    return leaves, metadata


def _join(path: tuple[str, ...]) -> str:
    if sum(map(len, path)) > _MAX_NAME:
        raise UnsafeCheckpointError(f"a name of more than {_MAX_NAME} characters")
    return ".".join(path)
