"""Files written whole or not at all: beside their place first, then put there in one step."""

from __future__ import annotations

import os
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
