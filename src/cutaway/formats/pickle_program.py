"""Read a pickle as the program it is, without running it.

A pickle is a list of instructions for a small stack machine whose dangerous ones import and call. Here the machine is
built from symbols: an import becomes `Global(module, name)`, a call becomes `Call(function, arguments)`, and nothing
is ever imported or called. What comes out is a plain tree in which the tensors can be found, and the list of
everything that unpickling would import. Instructions: CPython's Lib/pickletools.py.
"""

from __future__ import annotations

import io
import pickletools
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cutaway.errors import FormatError
from cutaway.formats.reading import shown

INSTRUCTIONS, IMPORTS = 2_000_000, 100_000
_KEYS = (str, int, float, bool, bytes, type(None))


class Global(NamedTuple):
    """Something that unpickling would import."""

    module: str
    name: str

    def __str__(self) -> str:
        return shown(f"{self.module}.{self.name}")


@dataclass(eq=False)
class Call:
    """A call that unpickling would make, and what it would then do to the result."""

    function: Any
    arguments: Any
    items: dict[Any, Any] = field(default_factory=dict)
    appended: list[Any] = field(default_factory=list)
    state: Any = None


@dataclass(eq=False)
class Persistent:
    """A reference to something outside the pickle; torch puts its storages there."""

    id: Any


class Program(NamedTuple):
    """What a pickle would build; `end` is where the next pickle may begin."""

    value: Any
    imports: list[Global]
    persistent: list[Persistent]
    end: int


def interpret(content: bytes, where: str) -> Program:
    """Follow the pickle at the beginning of `content`. Raises FormatError (naming the imports seen) if it is broken."""
    machine = _Machine()
    try:
        with warnings.catch_warnings():
            # An old string with an odd escape makes Python warn; it is the file's business, not the user's.
            warnings.simplefilter("ignore")
            return _follow(machine, content)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, struct.error) as error:
        seen = ", ".join(sorted({str(item) for item in machine.imports})[:20])
        imports_seen = f"; until there it would import {seen}" if seen else ""
        raise FormatError(f"The pickle in {where} is broken ({shown(str(error), 200)}){imports_seen}.") from error


def _follow(machine: _Machine, content: bytes) -> Program:
    """Step through the instructions up to STOP. Raises ValueError and its kin for a program that makes no sense."""
    stream = io.BytesIO(content)
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if count >= INSTRUCTIONS:
            raise ValueError(f"it has more than {INSTRUCTIONS:,} instructions")
        if opcode.name == "STOP":
            return Program(machine.pop(), list(dict.fromkeys(machine.imports)), machine.persistent, stream.tell())
        step = _STEPS.get(opcode.name)
        if step is None:
            raise ValueError(f"it uses the instruction {opcode.name}, which no checkpoint needs")
        step(machine, argument)
    raise ValueError("it has no end")


class _Machine:
    """Stack, marks and memo, as CPython's unpickler has them."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.imports: list[Global] = []
        self.persistent: list[Persistent] = []

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        return self.stack.pop()

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def import_(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("it computes the name of an import")
        found = Global(module, name)
        if len(self.imports) >= IMPORTS:
            raise ValueError(f"it has more than {IMPORTS:,} imports")
        self.imports.append(found)
        self.push(found)

    def refer(self, id: Any) -> None:
        found = Persistent(id)
        self.persistent.append(found)
        self.push(found)

    def fill(self, items: list[Any]) -> None:
        """Put the pairs of `items` into the dict (or object) on top of the stack."""
        if len(items) % 2:
            raise ValueError("a key has no value")
        target = self.stack[-1]
        target = target.items if isinstance(target, Call) else target
        if not isinstance(target, dict):
            raise ValueError("it puts items into something that holds none")
        target.update(_dict(items))

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        target = target.appended if isinstance(target, Call) else target
        if not isinstance(target, list):
            raise ValueError("it appends to something that is no list")
        target.extend(items)

    def build(self, state: Any) -> None:
        if isinstance(self.stack[-1], Call):
            self.stack[-1].state = state

    def call(self, arguments: int) -> None:
        """Call with the topmost `arguments` values; the function lies below them."""
        taken = [self.pop() for _ in range(arguments)][::-1]
        self.push(Call(self.pop(), taken[0] if arguments == 1 else tuple(taken)))

    def instance(self, function: Any, arguments: list[Any]) -> None:
        self.push(Call(function, tuple(arguments)))


def _dict(items: list[Any]) -> dict[Any, Any]:
    """Pairs as a dict. Hashing a deeply nested key can exhaust the C stack, so only plain keys stay themselves."""
    keys = (key if isinstance(key, _KEYS) else f"<{type(key).__name__}>" for key in items[::2])
    return dict(zip(keys, items[1::2], strict=True))


def _stack_global(machine: _Machine) -> None:
    name, module = machine.pop(), machine.pop()
    machine.import_(module, name)


def _inst(machine: _Machine, argument: str) -> None:
    arguments = machine.since_mark()
    machine.import_(*argument.split(" ", 1))
    machine.instance(machine.pop(), arguments)


def _obj(machine: _Machine) -> None:
    function, *arguments = machine.since_mark()
    machine.instance(function, arguments)


def _take(count: int) -> Callable[[_Machine, Any], None]:
    """A tuple of the topmost `count` values."""
    return lambda machine, _: machine.push(tuple([machine.pop() for _ in range(count)][::-1]))


def _pop(machine: _Machine, _: Any) -> None:
    # As in CPython: POP on an empty frame drops the mark below it.
    if machine.stack:
        machine.pop()
    else:
        machine.since_mark()


def _put(machine: _Machine, index: int) -> None:
    machine.memo[int(index)] = machine.stack[-1]


_Step = Callable[[_Machine, Any], Any]
_VALUES = (
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8"
)
_STEPS: dict[str, _Step] = {
    **{name: (lambda machine, value: machine.push(value)) for name in _VALUES.split()},
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "MARK": lambda machine, _: machine.mark(),
    "POP": _pop,
    "POP_MARK": lambda machine, _: machine.since_mark(),
    "DUP": lambda machine, _: machine.push(machine.stack[-1]),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_SET": lambda machine, _: machine.push([]),
    "LIST": lambda machine, _: machine.push(machine.since_mark()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "FROZENSET": lambda machine, _: machine.push(machine.since_mark()),
    "DICT": lambda machine, _: machine.push(_dict(machine.since_mark())),
    "TUPLE1": _take(1),
    "TUPLE2": _take(2),
    "TUPLE3": _take(3),
    "APPEND": lambda machine, _: machine.extend([machine.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.since_mark()),
    "ADDITEMS": lambda machine, _: machine.extend(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.fill([machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.fill(machine.since_mark()),
    "GET": lambda machine, index: machine.push(machine.memo[int(index)]),
    "BINGET": lambda machine, index: machine.push(machine.memo[index]),
    "LONG_BINGET": lambda machine, index: machine.push(machine.memo[index]),
    "PUT": _put,
    "BINPUT": _put,
    "LONG_BINPUT": _put,
    "MEMOIZE": lambda machine, _: _put(machine, len(machine.memo)),
    "GLOBAL": lambda machine, argument: machine.import_(*argument.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: _stack_global(machine),
    "INST": _inst,
    "OBJ": lambda machine, _: _obj(machine),
    "REDUCE": lambda machine, _: machine.call(1),
    "NEWOBJ": lambda machine, _: machine.call(1),
    "NEWOBJ_EX": lambda machine, _: machine.call(2),
    "BUILD": lambda machine, _: machine.build(machine.pop()),
    "PERSID": lambda machine, id: machine.refer(id),
    "BINPERSID": lambda machine, _: machine.refer(machine.pop()),
}
