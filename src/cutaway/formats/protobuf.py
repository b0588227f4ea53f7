"""Protobuf's wire format, read without a schema: https://protobuf.dev/programming-guides/encoding

A message is indexed once, and its parts are looked at when they are asked for. All positions count from the beginning
of the file, so that the bytes of a large field can be mapped where they lie.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

FIELDS = 1_000_000  # of a whole file
TEXT_BYTES = 1 << 20
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


@dataclass
class _Budget:
    left: int = FIELDS


@dataclass
class Message:
    """A part of a file. For each field number: a varint's value, or the span of bytes of everything else.

    All methods raise ValueError or IndexError for bytes that are no message.
    """

    view: memoryview
    fields: dict[int, list[int | tuple[int, int]]]
    _budget: _Budget = field(default_factory=_Budget, repr=False)

    @classmethod
    def of(cls, view: memoryview, span: tuple[int, int] | None = None, budget: _Budget | None = None) -> Message:
        """Index the message in `span` of the file."""
        budget = budget or _Budget()
        at, stop = span or (0, len(view))
        fields: dict[int, list[int | tuple[int, int]]] = {}
        while at < stop:
            budget.left -= 1
            if budget.left < 0:
                raise ValueError(f"it has more than {FIELDS:,} fields")
            key, at = varint(view, at, stop)
            wire = key & 7
            if wire == VARINT:
                value, at = varint(view, at, stop)
                fields.setdefault(key >> 3, []).append(value)
                continue
            if wire == BYTES:
                size, at = varint(view, at, stop)
            elif wire in (FIXED32, FIXED64):
                size = 4 if wire == FIXED32 else 8
            else:
                raise ValueError(f"the wire type {wire} at byte {at:,} is unknown")
            if size > stop - at:
                raise ValueError(f"a field at byte {at:,} claims {size:,} bytes")
            fields.setdefault(key >> 3, []).append((at, at + size))
            at += size
        return cls(view, fields, budget)

    def spans(self, number: int) -> list[tuple[int, int]]:
        """The spans of a field that is not a varint."""
        return [value for value in self.fields.get(number, ()) if isinstance(value, tuple)]

    def span(self, number: int) -> tuple[int, int] | None:
        """The span of a field that occurs once."""
        found = self.spans(number)
        return found[0] if len(found) == 1 == len(self.fields[number]) else None

    def has(self, numbers: Sequence[int]) -> bool:
        """Whether one of these fields is there."""
        return any(number in self.fields for number in numbers)

    def messages(self, number: int) -> Iterator[Message]:
        """The field as messages."""
        for span in self.spans(number):
            yield Message.of(self.view, span, self._budget)

    def message(self, number: int) -> Message | None:
        """The last of them, which is the one that counts."""
        found = self.spans(number)
        return Message.of(self.view, found[-1], self._budget) if found else None

    def texts(self, number: int) -> list[str]:
        """The field as texts; what is no UTF-8 is replaced."""
        return [
            bytes(self.view[start : min(stop, start + TEXT_BYTES)]).decode("utf-8", "replace")
            for start, stop in self.spans(number)
        ]

    def text(self, number: int) -> str:
        """The last of them, or an empty text."""
        found = self.spans(number)[-1:]
        return "".join(bytes(self.view[a : min(b, a + TEXT_BYTES)]).decode("utf-8", "replace") for a, b in found)

    def number(self, number: int) -> int:
        """The last value of an integer field, or 0."""
        found = [value for value in self.fields.get(number, ()) if isinstance(value, int)]
        return found[-1] if found else 0

    def numbers(self, number: int, limit: int = 1000) -> list[int]:
        """All values of an integer field, packed or not."""
        found: list[int] = []
        for value in self.fields.get(number, ()):
            if isinstance(value, int):
                found.append(value)
                continue
            at, stop = value
            while at < stop and len(found) <= limit:
                item, at = varint(self.view, at, stop)
                found.append(item)
        return found


def varint(view: memoryview, at: int, stop: int) -> tuple[int, int]:
    """The integer at `at`, of at most ten bytes, and where the next thing begins. Raises ValueError."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= stop:
            break
        byte = view[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & 0xFFFFFFFFFFFFFFFF, at
    raise ValueError(f"the number before byte {at:,} does not end")
