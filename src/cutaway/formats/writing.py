"""Files written whole or not at all: beside their place first, then put there in one step; and what begins a
safetensors file, for those who write its tensors piece by piece.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ..errors import ResourceError


def write_whole(path: str | Path, data: bytes) -> Path:
    """Write a file so that a crash at any moment leaves the old one or the new one. Makes missing folders.

    Raises ResourceError when it cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        with suppress(OSError, ValueError):
            partial.unlink(missing_ok=True)
        raise ResourceError(f"The file {str(path)!r} cannot be written: {why}.") from error
    return path


def safetensors_head(
    tensors: Iterable[tuple[str, str, Sequence[int], int]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """What comes before the bytes of tensors (name, code of the dtype, shape, bytes), which follow in this order
    without gaps; they begin at a multiple of eight."""
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    start = 0
    for name, code, shape, size in tensors:
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
