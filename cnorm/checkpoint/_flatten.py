"""Nested containers to one flat dict with dotted names, as ``state_dict`` itself names things."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cnorm.checkpoint._budget import CHARACTERS, Budget
from cnorm.checkpoint._errors import CheckpointError, UnsafeCheckpointError

_MAX_DEPTH = 32
_MAX_NAME = 2000
_LEAF = 16  # steps for what becomes an array of NumPy


def flatten(
    root: Any,
    is_leaf: Callable[[Any], bool],
    is_container: Callable[[Any], bool],
    budget: Budget,
) -> tuple[dict[str, Any], dict[str, dict[str, int]]]:
    """Collect the leaves below ``root``, and the ``_metadata`` that state dicts carry.

    Containers are mappings, lists and tuples; below the first, integers are names too, as in an
    optimizer's state. Whatever is neither a container nor a leaf is left out. A few shared or
    cyclic containers can describe a tree without end: the budget pays for every item that is
    looked at, and for every character of a name.
    """
    leaves: dict[str, Any] = {}
    metadata: dict[str, dict[str, int]] = {}

    def spend(steps: int) -> None:
        budget.spend(steps, "containers shared so often, or names so long, that they have no end")

    def below(name: str, key: object, depth: int) -> str:
        name = f"{name}.{key}" if depth else str(key)
        if len(name) > _MAX_NAME:
            raise UnsafeCheckpointError(f"a name of more than {_MAX_NAME} characters: {name}")
        spend(len(name) // CHARACTERS)
        return name

    def visit(node: Any, name: str, depth: int) -> None:
        if is_leaf(node):
            if name in leaves:
                raise CheckpointError(f"two tensors would both be named {name!r}")
            spend(_LEAF)
            leaves[name] = node
            return
        if depth > _MAX_DEPTH:
            raise UnsafeCheckpointError(f"containers nested more than {_MAX_DEPTH} deep")
        versions = getattr(node, "_metadata", None)
        versions = versions if isinstance(versions, Mapping) else {}
        spend(len(node) + 1)
        for module, value in versions.items():
            if isinstance(value, dict):
                spend(len(value) + 2)
                whole = below(name, module, depth) if module else name
                metadata[whole] = {k: v for k, v in value.items() if type(v) is int}
        named = isinstance(node, Mapping)
        for key, value in node.items() if named else enumerate(node):
            if named and not isinstance(key, (str, int) if depth else str):
                raise TypeError(f"names must be strings, got {key!r}")
            if is_leaf(value) or is_container(value):
                visit(value, below(name, key, depth), depth + 1)

    visit(root, "", 0)
    return leaves, metadata
