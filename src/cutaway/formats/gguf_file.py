"""GGUF, the format of llama.cpp: typed metadata, a list of tensors, then their bytes, many of them quantised.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Every length is held against the file before it is believed.
Types that have no row here are listed by their name, and refused when they are read.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

from cutaway.errors import FormatError
from cutaway.formats.checkpoint import Checkpoint, Place, Risk, TensorInfo
from cutaway.formats.dtypes import DTYPES, bytes_of
from cutaway.formats.reading import damaged, mapped, shown

NAME = "GGUF"
MAGIC = b"GGUF"
ITEMS = 2_000_000  # entries of all arrays in the metadata together
TENSORS, KEYS, DIMENSIONS, DEPTH = 100_000, 100_000, 8, 4
KEY_BYTES, SHOWN_ITEMS, SHOWN_TEXT = 65_535, 8, 20_000

TYPES = {
    0: "float32", 1: "float16", 2: "q4_0", 3: "q4_1", 6: "q5_0", 7: "q5_1", 8: "q8_0", 10: "q2_k", 11: "q3_k",
    12: "q4_k", 13: "q5_k", 14: "q6_k", 24: "int8", 25: "int16", 26: "int32", 27: "int64", 28: "float64",
    30: "bfloat16",
}  # fmt: skip
LISTED = {
    9: "q8_1", 15: "q8_k", 16: "iq2_xxs", 17: "iq2_xs", 18: "iq3_xxs", 19: "iq1_s", 20: "iq4_nl", 21: "iq3_s",
    22: "iq2_s", 23: "iq4_xs", 29: "iq1_m", 34: "tq1_0", 35: "tq2_0", 39: "mxfp4",
}  # fmt: skip
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9


def detect(path: Path, head: bytes) -> bool:
    """By magic number."""
    return head.startswith(MAGIC)


def open(path: Path) -> Checkpoint:
    """Read metadata and the list of tensors. Raises FormatError."""
    with damaged(path, NAME):
        reader = _Reader(mapped(path))
        _, version, tensors, keys = reader.unpack("4sIQQ")
        if version not in (2, 3):
            raise FormatError(f"{path} is GGUF of version {version}, or of the other byte order; convert it again.")
        if tensors > TENSORS or keys > KEYS:
            raise FormatError(f"{path} claims {tensors:,} tensors and {keys:,} keys, more than any model has.")
        metadata = {shown(reader.text(KEY_BYTES)): reader.value(reader.unpack("I")[0], DEPTH) for _ in range(keys)}
        entries = [_entry(path, reader) for _ in range(tensors)]
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= 1 << 20:
            raise FormatError(f"{path} aligns its tensors to {shown(str(alignment), 20)} bytes, which is impossible.")
        start = -(-reader.at // alignment) * alignment
        found = _placed(path, entries, start, len(reader.view))
    template = [Risk("low", f"{key} is a Jinja template; it is a program, and was not rendered")
                for key in metadata if "chat_template" in key]  # fmt: skip
    return Checkpoint(NAME, [path], found, metadata, template)


class _Reader:
    """A place in the file that moves on with every value."""

    def __init__(self, view: memoryview) -> None:
        self.view, self.at, self.items = view, 0, 0

    def unpack(self, form: str) -> tuple[Any, ...]:
        found = struct.unpack_from(f"<{form}", self.view, self.at)
        self.at += struct.calcsize(f"<{form}")
        return found

    def skip(self, size: int) -> memoryview:
        if size > len(self.view) - self.at:
            raise ValueError(f"something at byte {self.at:,} claims {size:,} bytes")
        self.at += size
        return self.view[self.at - size : self.at]

    def text(self, limit: int | None = None) -> str:
        (size,) = self.unpack("Q")
        if limit is not None and size > limit:
            raise ValueError(f"a name claims {size:,} bytes")
        content = self.skip(size)
        kept = bytes(content[:SHOWN_TEXT]).decode("utf-8", "replace")
        return kept if size <= SHOWN_TEXT else f"{kept}… ({size:,} bytes)"

    def value(self, kind: int, depth: int) -> Any:
        if kind in _NUMBERS:
            (number,) = self.unpack(_NUMBERS[kind])
            return number if not isinstance(number, float) or math.isfinite(number) else str(number)
        if kind == _TEXT:
            return self.text()
        if kind != _ARRAY or depth == 0:
            raise ValueError(f"a value is of the unknown kind {kind}, or nested too deeply")
        return self.array(depth)

    def array(self, depth: int) -> Any:
        """A short array as a list; of a long one the first items and the length."""
        kind, count = self.unpack("IQ")
        if kind in _NUMBERS:
            width = struct.calcsize(_NUMBERS[kind])
            if count * width > len(self.view) - self.at:
                raise ValueError(f"an array claims {count:,} items")
            start = self.at
            first = [self.value(kind, 0) for _ in range(min(count, SHOWN_ITEMS))]
            self.at = start + count * width
        else:
            self.items += count
            if self.items > ITEMS or 8 * count > len(self.view) - self.at:
                raise ValueError(f"an array claims {count:,} items")
            first = [self.value(kind, depth - 1) for _ in range(min(count, SHOWN_ITEMS))]
            for _ in range(count - len(first)):
                if kind == _TEXT:
                    self.skip(*self.unpack("Q"))
                else:
                    self.value(kind, depth - 1)
        return first if count <= SHOWN_ITEMS else {"length": count, "first": first}


def _entry(path: Path, reader: _Reader) -> tuple[str, int, tuple[int, ...], int]:
    """Name, type, shape (outermost first, as everywhere here) and offset of one tensor."""
    name = shown(reader.text(KEY_BYTES), 500)
    (count,) = reader.unpack("I")
    if count > DIMENSIONS:
        raise FormatError(f"The tensor {name!r} in {path} claims {count:,} dimensions, at most {DIMENSIONS}.")
    shape = reader.unpack(f"{count}Q")[::-1]
    if math.prod(shape) >= 1 << 62 or any(size >= 1 << 62 for size in shape):
        raise FormatError(f"The tensor {name!r} in {path} claims more elements than any file holds.")
    kind, offset = reader.unpack("IQ")
    return name, kind, shape, offset


def _placed(
    path: Path, entries: list[tuple[str, int, tuple[int, ...], int]], start: int, size: int
) -> dict[str, TensorInfo]:
    """The tensors with their places, which must lie in the file and apart from each other."""
    offsets = sorted({entry[3] for entry in entries})
    ends = dict(zip(offsets, [*offsets[1:], max(0, size - start)], strict=False))  # without tensors there is no end
    found: dict[str, TensorInfo] = {}
    for name, kind, shape, offset in entries:
        where = f"The tensor {name!r} in {path}"
        room, elements = ends[offset] - offset, math.prod(shape)
        if name in found:
            raise FormatError(f"{where} is listed twice; it was made to deceive.")
        dtype = TYPES.get(kind) or LISTED.get(kind) or f"ggml type {kind}"
        if dtype not in DTYPES:
            refusal = f"is of the type {dtype}, which cannot be read here; convert it to a plainer one"
            nbytes = room
        else:
            refusal, nbytes = "", bytes_of(dtype, elements)
            if elements and (shape[-1] if shape else 1) % DTYPES[dtype].block:
                raise FormatError(f"{where} has rows that are no multiple of the blocks of {dtype}; it is damaged.")
        if not 0 <= nbytes <= room:
            raise FormatError(f"{where} needs {nbytes:,} bytes where there are {max(0, room):,}; get it again.")
        found[name] = TensorInfo(dtype, shape, nbytes, Place(path, start + offset, nbytes, refusal=refusal))
    if len(offsets) < sum(1 for tensor in found.values() if tensor.nbytes):
        raise FormatError(f"{path} has tensors that share their bytes; it was made to deceive.")
    return found
