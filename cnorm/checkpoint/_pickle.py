"""A reader of pickles that can build containers, and what its caller allows, and nothing else.

Python's unpickler imports and calls what a file names. This one never imports: a name means what
the caller's table says, or the file is refused. It knows the few opcodes that plain data needs, so
there is no way to set an attribute, subclass, or reach a method.

No opcode costs more than its bytes in the file and a step of the budget pay for: integers have at
most 255 bytes, calls at most 16 arguments, the memo no index that a pickler would not have come to,
and dicts have strings as keys, for which Python's hash is random. (Integers can be chosen such that
a dict of n of them takes n² steps.)
"""

from __future__ import annotations

import pickletools
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cnorm.checkpoint._budget import Budget
from cnorm.checkpoint._errors import CheckpointError, UnsafeCheckpointError

_MAX_ARGUMENTS = 16
_CALL = 4  # steps, apart from those for the sizes in a tensor's arguments
_NOTHING: Any = object()  # in a place of the memo that no opcode has filled

_U1, _U2, _I4, _U4, _U8 = (struct.Struct(f"<{code}") for code in "BHiIQ")
_DOUBLE = struct.Struct(">d")


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
    budget
        Pays for each opcode.
    """

    def __init__(
        self, names: Mapping[str, Any], persistent: Callable[[Any], Any], budget: Budget
    ) -> None:
        self._names = names
        self._persistent = persistent
        self._budget = budget
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: list[Any] = []
        self._data = b""
        self._at = 0

    def read(self, data: bytes) -> Any:
        """Build what the pickle describes."""
        self._data, self._at = data, 0
        actions, budget, stop = _ACTIONS, self._budget, ord(b".")
        while (code := data[self._at]) != stop:
            self._at += 1
            budget.left -= 1
            if budget.left < 0:
                self._spend(0)
            actions[code](self)
        return self._stack.pop()

    def _spend(self, steps: int) -> None:
        self._budget.spend(steps, "a pickle of too many items is not for tensors")

    # Arguments

    def _number(self, layout: struct.Struct) -> Any:
        (value,) = layout.unpack_from(self._data, self._at)
        self._at += layout.size
        return value

    def _bytes(self, count: int) -> bytes:
        piece = self._data[self._at : self._at + count]
        if len(piece) < count:
            raise CheckpointError("damaged: the pickle ends within a value")
        self._at += count
        return piece

    def _line(self) -> str:
        end = self._data.index(b"\n", self._at)
        return self._bytes(end + 1 - self._at)[:-1].decode()

    # The stack

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _popped(self, count: int) -> list[Any]:
        items = self._stack[-count:]
        del self._stack[-count:]
        return items

    def _mark(self) -> None:
        self._marks.append(len(self._stack))

    def _marked(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    # The memo

    def _put(self, index: int) -> None:
        """Keep the top of the stack. Picklers count from 0 or 1, whatever opcodes lie between."""
        value = self._stack[-1]
        if index == len(self._memo):
            self._memo.append(value)
        elif index < len(self._memo):
            self._memo[index] = value
        elif index <= self._at:  # an optimised pickle may have holes
            self._memo += [_NOTHING] * (index - len(self._memo))
            self._memo.append(value)
        else:
            raise CheckpointError(f"damaged: the pickle's memo has no place {index} yet")

    def _get(self, index: int) -> None:
        value = self._memo[index]
        if value is _NOTHING:
            raise CheckpointError(f"damaged: the pickle's memo has nothing in place {index}")
        self._stack.append(value)

    # Containers

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise CheckpointError(f"the pickle appends to a {type(target).__name__}")
        target.extend(items)

    def _update(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) not in (dict, OrderedDict):
            raise CheckpointError(f"the pickle sets an item of a {type(target).__name__}")
        self._spend(len(items) // 2)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is int:
                if not -(1 << 63) <= key < 1 << 64:
                    raise CheckpointError("the pickle has a dict key of more than 64 bits")
                key = str(key)
            elif type(key) is not str:
                raise CheckpointError(f"the pickle has a dict key of type {type(key).__name__}")
            if key in target:
                raise CheckpointError(f"the pickle has a dict with two items named {key!r}")
            target[key] = value

    # Names

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
        if len(arguments) > _MAX_ARGUMENTS:
            raise UnsafeCheckpointError(f"the pickle calls with {len(arguments)} arguments")
        self._spend(_CALL + sum(len(item) // 8 for item in arguments if type(item) is tuple))
        return function.call(*arguments)

    def _built(self, target: Any, state: Any) -> Any:
        """Keep the one attribute that torch gives a state dict, and no other."""
        if type(target) is not OrderedDict or type(state) is not dict:
            raise UnsafeCheckpointError(f"the pickle sets attributes of a {type(target).__name__}")
        if isinstance(state.get("_metadata"), dict):
            target._metadata = state["_metadata"]  # type: ignore[attr-defined]
        return target

    def _refuse(self) -> None:
        code = self._data[self._at - 1]
        for opcode in pickletools.opcodes:
            if ord(opcode.code) == code:
                raise UnsafeCheckpointError(f"the pickle's opcode {opcode.name} is refused")
        raise CheckpointError(f"damaged: pickles have no opcode {code:#04x}")


def _text(layout: struct.Struct) -> Callable[[Reader], None]:
    return lambda r: r._push(r._bytes(r._number(layout)).decode())


# What each opcode that torch's files have does; all others are refused.
_OPCODES: dict[str, Callable[[Reader], Any]] = {
    "PROTO": lambda r: r._number(_U1),
    "FRAME": lambda r: r._number(_U8),
    "BINPUT": lambda r: r._put(r._number(_U1)),
    "LONG_BINPUT": lambda r: r._put(r._number(_U4)),
    "MEMOIZE": lambda r: r._put(len(r._memo)),
    "BINGET": lambda r: r._get(r._number(_U1)),
    "LONG_BINGET": lambda r: r._get(r._number(_U4)),
    "BINUNICODE": _text(_U4),
    "SHORT_BINUNICODE": _text(_U1),
    "BINUNICODE8": _text(_U8),
    "BINFLOAT": lambda r: r._push(r._number(_DOUBLE)),
    "BININT": lambda r: r._push(r._number(_I4)),
    "BININT1": lambda r: r._push(r._number(_U1)),
    "BININT2": lambda r: r._push(r._number(_U2)),
    "LONG1": lambda r: r._push(int.from_bytes(r._bytes(r._number(_U1)), "little", signed=True)),
    "NONE": lambda r: r._push(None),
    "NEWTRUE": lambda r: r._push(True),
    "NEWFALSE": lambda r: r._push(False),
    "MARK": lambda r: r._mark(),
    "EMPTY_TUPLE": lambda r: r._push(()),
    "TUPLE": lambda r: r._push(tuple(r._marked())),
    "TUPLE1": lambda r: r._push(tuple(r._popped(1))),
    "TUPLE2": lambda r: r._push(tuple(r._popped(2))),
    "TUPLE3": lambda r: r._push(tuple(r._popped(3))),
    "EMPTY_LIST": lambda r: r._push([]),
    "APPEND": lambda r: r._extend(r._popped(1)),
    "APPENDS": lambda r: r._extend(r._marked()),
    "EMPTY_DICT": lambda r: r._push({}),
    "SETITEM": lambda r: r._update(r._popped(2)),
    "SETITEMS": lambda r: r._update(r._marked()),
    "GLOBAL": lambda r: r._push(r._named(f"{r._line()}.{r._line()}")),
    "STACK_GLOBAL": lambda r: r._push(r._named(".".join(r._popped(2)))),
    "REDUCE": lambda r: r._push(r._called(*r._popped(2))),
    "BINPERSID": lambda r: r._push(r._persistent(r._stack.pop())),
    "BUILD": lambda r: r._push(r._built(*r._popped(2))),
}
_ACTIONS: list[Callable[[Reader], Any]] = [Reader._refuse] * 256
for _opcode in pickletools.opcodes:
    _ACTIONS[ord(_opcode.code)] = _OPCODES.get(_opcode.name, Reader._refuse)
