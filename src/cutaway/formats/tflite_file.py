"""TensorFlow Lite: tensors and operators out of a flatbuffer, read by offsets that are each held against the file.

Field numbers: tensorflow/compiler/mlir/lite/schema/schema.fbs. Flatbuffers: https://flatbuffers.dev/internals
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cutaway.errors import FormatError
from cutaway.formats.checkpoint import Checkpoint, Place, Risk, TensorInfo
from cutaway.formats.dtypes import DTYPES, bytes_of
from cutaway.formats.reading import damaged, mapped, shown

NAME = "TensorFlow Lite"
ITEMS, TEXT_BYTES, DIMENSIONS = 500_000, 10_000, 16
TYPES = {
    0: "float32", 1: "float16", 2: "int32", 3: "uint8", 4: "int64", 6: "bool", 7: "int16", 8: "complex64", 9: "int8",
    10: "float64", 11: "complex128", 12: "uint64", 15: "uint32", 16: "uint16", 18: "bfloat16",
}  # fmt: skip
CUSTOM = 32  # the operator code of what is found by its name in a native library


def detect(path: Path, head: bytes) -> bool:
    """By the identifier of the schema."""
    return head[4:8] == b"TFL3"


def open(path: Path) -> Checkpoint:
    """List tensors with stored values, operators and risks. Raises FormatError."""
    with damaged(path, NAME):
        view = mapped(path)
        model = _Table(view, _number(view, "I", 0), [ITEMS])
        buffers = model.tables(4)
        tensors: dict[str, TensorInfo] = {}
        quantised = 0
        operators: Counter[str] = Counter()
        codes = [_code(item) for item in model.tables(1)]
        for number, graph in enumerate(model.tables(2)):
            for index, tensor in enumerate(graph.tables(0)):
                found = _tensor(path, view, tensor, buffers)
                if found is not None:
                    name = f"{f'{number}:' if number else ''}{shown(tensor.text(3), 400) or f'tensor.{index}'}"
                    tensors[name if name not in tensors else f"{name}#{index}"] = found
                    quantised += tensor.table(4) is not None
            operators.update(codes[item.number("I", 0)] for item in graph.tables(3))
        metadata: dict[str, Any] = {"description": shown(model.text(3)), "ops": dict(operators.most_common(200))}
        metadata |= {"version": model.number("I", 0), "tensors_with_scales": quantised}
        custom = [code for code in codes if code.startswith("custom ")]
    risks = [Risk("medium", f"the operator {code} is looked up in a native library that is given") for code in custom]
    return Checkpoint(NAME, [path], tensors, metadata, risks[:50])


def _number(view: memoryview, form: str, at: int) -> int:
    if at < 0:
        raise ValueError(f"something points before the file, to {at:,}")
    return int(struct.unpack_from(f"<{form}", view, at)[0])


@dataclass(frozen=True)
class _Table:
    """A table: its fields are found through a row of offsets; `left` counts what may still be looked at."""

    view: memoryview
    at: int
    left: list[int]

    def field(self, number: int) -> int | None:
        """Where a field begins, or None if it is absent."""
        self.left[0] -= 1
        if self.left[0] < 0:
            raise ValueError(f"it has more than {ITEMS:,} parts")
        row = self.at - _number(self.view, "i", self.at)
        if 4 + 2 * number >= _number(self.view, "H", row):
            return None
        offset = _number(self.view, "H", row + 4 + 2 * number)
        return self.at + offset if offset else None

    def number(self, form: str, number: int) -> int:
        at = self.field(number)
        return 0 if at is None else _number(self.view, form, at)

    def vector(self, number: int, width: int) -> tuple[int, int]:
        """Where the items begin, and how many there are."""
        at = self.field(number)
        if at is None:
            return 0, 0
        at += _number(self.view, "I", at)
        count = _number(self.view, "I", at)
        if count * width > len(self.view) - at - 4:
            raise ValueError(f"a list at byte {at:,} claims {count:,} items")
        return at + 4, count

    def tables(self, number: int) -> list[_Table]:
        start, count = self.vector(number, 4)
        self.left[0] -= count
        if self.left[0] < 0:
            raise ValueError(f"it has more than {ITEMS:,} parts")
        places = range(start, start + 4 * count, 4)
        return [_Table(self.view, at + _number(self.view, "I", at), self.left) for at in places]

    def table(self, number: int) -> _Table | None:
        at = self.field(number)
        return None if at is None else _Table(self.view, at + _number(self.view, "I", at), self.left)

    def text(self, number: int) -> str:
        start, count = self.vector(number, 1)
        return bytes(self.view[start : start + min(count, TEXT_BYTES)]).decode("utf-8", "replace")


def _code(item: _Table) -> str:
    code = max(item.number("b", 0), item.number("i", 3))
    return f"custom {shown(item.text(1))}" if code == CUSTOM else f"builtin {code}"


def _tensor(path: Path, view: memoryview, tensor: _Table, buffers: list[_Table]) -> TensorInfo | None:
    """A tensor whose values are in the file; None for one that is made in a run."""
    buffer = buffers[tensor.number("I", 2)]
    start, size = buffer.vector(0, 1)
    if buffer.number("Q", 1) > 1:  # large models keep their data behind the flatbuffer
        start, size = buffer.number("Q", 1), buffer.number("Q", 2)
    if not size:
        return None
    at, rank = tensor.vector(0, 4)
    shape = struct.unpack_from(f"<{rank}i", view, at) if rank <= DIMENSIONS else (-1,)
    if any(length < 0 for length in shape) or start + size > len(view):
        raise FormatError(f"A tensor in {path} has an impossible shape, or lies beyond the end of the file.")
    kind = tensor.number("b", 1)
    dtype = TYPES.get(kind, f"TFLite type {kind}")
    if dtype not in DTYPES:
        refusal = f"is of the type {dtype}, which cannot be read here"
        return TensorInfo(dtype, shape, size, Place(path, start, size, refusal=refusal))
    if bytes_of(dtype, math.prod(shape)) != size:
        raise FormatError(f"A tensor in {path} needs {bytes_of(dtype, math.prod(shape)):,} bytes, but has {size:,}.")
    return TensorInfo(dtype, shape, size, Place(path, start, size))
