"""JSON files of others read as data: bounded in size, checked against a type, one sentence for what is wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ..errors import FormatError

LARGEST = 128 << 20  # bytes of a file
_T = TypeVar("_T")


def read_bytes(path: str | Path) -> bytes:
    """The bytes of a file. Raises FormatError when it cannot be read or is larger than 128 MiB."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        raise FormatError(
            f"The file {str(path)!r} cannot be read: {getattr(error, 'strerror', None) or error}."
        ) from error
    if len(data) > LARGEST:
        raise FormatError(f"The file {str(path)!r} is larger than {LARGEST >> 20} MiB, which no circuit is.")
    return data


def checked(data: bytes, kind: type[_T], what: str, *, lenient: bool = False) -> _T:
    """JSON text as a `kind`; `lenient` takes NaN and infinity, which some writers put in, for None.

    Raises FormatError, naming the place, for anything else.
    """
    try:
        raw = _lenient(data) if lenient else msgspec.json.decode(data)
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise FormatError(f"This is not {what}: {_said(error)}.") from None
    except (msgspec.DecodeError, ValueError) as error:
        raise FormatError(f"This is not {what}, and no JSON at all: {_said(error)}.") from None
    except (RecursionError, MemoryError):
        raise FormatError(f"This is not {what}: it is nested too deeply.") from None


def _lenient(data: bytes) -> Any:
    return json.loads(data.decode("utf-8"), parse_constant=lambda word: None, parse_float=_finite)


def _finite(text: str) -> float | None:
    return value if math.isfinite(value := float(text)) else None


def _said(error: Exception) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return text[:1].lower() + text[1:200]


def dumped(data: Any) -> bytes:
    """Data as JSON text, None for what is not a finite number."""
    return msgspec.json.encode(data)
