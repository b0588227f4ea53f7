"""Bounded reading: plain files only, and JSON without duplicate keys, deep nesting or a flood of values."""

from __future__ import annotations

import json
import mmap
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cutaway.errors import FormatError

JSON_BYTES = 100_000_000
JSON_CONTAINERS = 1_500_000  # objects and arrays: each takes far more memory than the two bytes that write it
JSON_VALUES = 4_000_000  # half a million tensors
JSON_DEPTH = 100
HEAD_BYTES = 4096


def file_size(path: Path) -> int:
    """Size of a plain file (or a link to one); devices, pipes and folders are a FormatError, as is a missing file."""
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise FormatError(f"{path} cannot be opened ({getattr(error, 'strerror', None) or error}).") from error
    if not stat.S_ISREG(status.st_mode):
        raise FormatError(f"{path} is not a plain file; give the path of a checkpoint or its folder.")
    return status.st_size


def read_range(path: Path, offset: int, size: int) -> bytes:
    """`size` bytes at `offset`. Raises FormatError if the file ends before."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            content = file.read(size)
    except (OSError, ValueError, OverflowError) as error:
        raise FormatError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error}).") from error
    if len(content) != size:
        raise FormatError(
            f"{path} ends after {offset + len(content):,} bytes, in the middle of something; get it again."
        )
    return content


def mapped(path: Path, start: int = 0, length: int | None = None) -> memoryview:
    """`length` bytes from `start` (all, if None) as a view of the file; nothing is read before it is looked at."""
    size = file_size(path)
    stop = size if length is None else start + length
    if stop > size:
        raise FormatError(f"{path} ends after {size:,} bytes, in the middle of something; get it again.")
    if not size:
        return memoryview(b"")
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))[start:stop]


@contextmanager
def damaged(path: Path, kind: str) -> Iterator[None]:
    """Turn what Python raises on bytes that make no sense into a FormatError."""
    try:
        yield
    except (struct.error, IndexError, KeyError, OverflowError, ValueError, TypeError, RecursionError) as error:
        raise FormatError(f"{path} is a damaged {kind} file ({shown(str(error), 200)}); get it again.") from error


def read_json_file(path: Path, limit: int = JSON_BYTES) -> Any:
    """The value in a JSON file of at most `limit` bytes. Raises FormatError."""
    size = file_size(path)
    if size > limit:
        raise FormatError(f"{path} has {size:,} bytes, too many for a JSON file of its kind (at most {limit:,}).")
    return strict_json(read_range(path, 0, size), str(path))


def strict_json(content: bytes, where: str) -> Any:
    """Parse JSON with bounds. Raises FormatError for bad UTF-8, duplicate keys, NaN, deep nesting, too many values."""
    if content.count(b"[") + content.count(b"{") > JSON_CONTAINERS or content.count(b",") > JSON_VALUES:
        raise FormatError(f"The JSON in {where} has more parts than any checkpoint needs; it was not parsed.")
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except RecursionError:
        raise FormatError(f"The JSON in {where} is nested too deeply; it was not parsed.") from None
    except ValueError as error:
        raise FormatError(f"The JSON in {where} cannot be parsed ({str(error)[:200]}); get the file again.") from error
    if _depth_exceeds(value, JSON_DEPTH):
        raise FormatError(f"The JSON in {where} is nested deeper than {JSON_DEPTH} levels.")
    return value


def entries(value: Any) -> Iterator[tuple[str, Any]]:
    """All pairs of key and value at any depth of parsed JSON (whose depth `strict_json` has bounded)."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key, item
            yield from entries(item)
    elif isinstance(value, list):
        for item in value:
            yield from entries(item)


def shown(text: str, limit: int = 120) -> str:
    """`text` from a file made safe to print: control characters escaped, length bounded."""
    clean = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:limit])
    return clean if len(text) <= limit else clean + "…"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {shown(twice)!r} occurs twice")
    return found


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def _depth_exceeds(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(child for child in item.values() if isinstance(child, (dict, list)))
            elif isinstance(item, list):
                below.extend(child for child in item if isinstance(child, (dict, list)))
        if not below:
            return False
        level = below
    return True
