"""A reader of pickles that can build containers, and what its caller allows, and nothing else.

Python's unpickler imports and calls what a file names. This one never imports: a name means what
the caller's table says, or the file is refused. It knows the few opcodes that plain data needs, so
there is no way to set an attribute, subclass, or reach a method, and no opcode whose cost is not
paid for by bytes of the file. `pickletools.genops` does the parsing.
"""

from __future__ import annotations

import pickletools
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cnorm.checkpoint._errors import CheckpointError, UnsafeCheckpointError


@dataclass(frozen=True)
class Function:
    """What a pickle may call: the caller's own code under a foreign name."""

    call: Callable[..., Any]


class Reader:
    """One reading of one pickle.

    Parameters
    ----------
    names
        What each dotted name stands for: a `Function`, or a value that cannot be called.
    persistent
        Makes an object of a persistent id.
    """

    def __init__(self, names: Mapping[str, Any], persistent: Callable[[Any], Any]) -> None:
        self._names = names
        self._persistent = persistent
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def read(self, data: bytes) -> Any:
        """Build what the pickle describes."""
        push, pop = self._stack.append, self._stack.pop
        argument: Any
        for opcode, argument, _ in pickletools.genops(data):
            match opcode.name:  # the common ones first
                case "BINPUT" | "LONG_BINPUT":
                    self._memo[argument] = self._stack[-1]
                case "BINGET" | "LONG_BINGET":
                    push(self._memo[argument])
                case "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8" | "BINFLOAT":
                    push(argument)
                case "BININT1" | "BININT2" | "BININT" | "LONG1" | "LONG4":
                    push(argument)
                case "MEMOIZE":
                    self._memo[len(self._memo)] = self._stack[-1]
                case "MARK":
                    self._marks.append(len(self._stack))
                case "TUPLE":
                    push(tuple(self._marked()))
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    push(tuple(self._popped(int(opcode.name[-1]))))
                case "EMPTY_TUPLE":
                    push(())
                case "EMPTY_LIST":
                    push([])
                case "EMPTY_DICT":
                    push({})
                case "NONE":
                    push(None)
                case "NEWTRUE" | "NEWFALSE":
                    push(opcode.name == "NEWTRUE")
                case "REDUCE":
                    push(self._called(*self._popped(2)))
                case "BINPERSID":
                    push(self._persistent(pop()))
                case "APPEND":
                    self._extend([pop()])
                case "APPENDS":
                    self._extend(self._marked())
                case "SETITEM":
                    self._update(self._popped(2))
                case "SETITEMS":
                    self._update(self._marked())
                case "GLOBAL":
                    push(self._named(argument.replace(" ", ".")))
                case "STACK_GLOBAL":
                    push(self._named(".".join(self._popped(2))))
                case "BUILD":
                    push(self._built(*self._popped(2)))
                case "PROTO" | "FRAME" | "STOP":
                    pass
                case refused:
                    raise UnsafeCheckpointError(f"the pickle's opcode {refused} is refused")
        return pop()

    def _popped(self, count: int) -> list[Any]:
        items = self._stack[-count:]
        del self._stack[-count:]
        return items

    def _marked(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise CheckpointError(f"the pickle appends to a {type(target).__name__}")
        target.extend(items)

    def _update(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) not in (dict, OrderedDict):
            raise CheckpointError(f"the pickle sets an item of a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int):
                raise CheckpointError(f"the pickle has a dict key of type {type(key).__name__}")
            target[key] = value

    def _named(self, name: str) -> Any:
        if name not in self._names:
            raise UnsafeCheckpointError(
                f"the pickle names {name[:200]}; only tensors and plain containers are read: "
                "save model.state_dict() rather than the model or other objects"
            )
        return self._names[name]

    def _called(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Function) or type(arguments) is not tuple:
            raise UnsafeCheckpointError(f"the pickle calls a {type(function).__name__}")
        return function.call(*arguments)

    def _built(self, target: Any, state: Any) -> Any:
        """Keep the one attribute that torch gives a state dict, and no other."""
        if type(target) is not OrderedDict or type(state) is not dict:
            raise UnsafeCheckpointError(f"the pickle sets attributes of a {type(target).__name__}")
        if isinstance(state.get("_metadata"), dict):
            target._metadata = state["_metadata"]  # type: ignore[attr-defined]
        return target
