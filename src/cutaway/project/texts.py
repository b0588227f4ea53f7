"""What may be written into a project: lines, texts and JSON values, checked before anything is stored.

A project is read by terminals, browsers and other people's scripts. A name with an escape sequence or a
right-to-left override in it would lie to its reader, and a value JSON cannot express would come back changed;
both are refused here with one sentence, never repaired silently.
"""

from __future__ import annotations

import json
import math
import unicodedata
from typing import Any

import numpy as np

from cutaway.errors import ProjectError

LINE_LIMIT = 500  # characters of a site, a fingerprint, a kind, a tensor's name
NAME_LIMIT = 200
TEXT_LIMIT = 20_000  # characters of a comment or a statement
JSON_LIMIT = 16 << 20  # bytes of one claim or record; larger things belong into its tensors
JSON_DEPTH = 64

# Control, format (bidirectional overrides), surrogate, private, unassigned, line and paragraph separators.
_UNPRINTABLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_JOINERS = "\u200c\u200d"  # format characters which ordinary words of several scripts, and emoji, need


def clean_line(text: object, what: str, limit: int = LINE_LIMIT) -> str:
    """`text` in normal form NFC, as one printable line of 1 to `limit` characters.

    Raises ProjectError when it is not a string, empty, too long, or holds a control or invisible character.
    """
    line = _printable(text, what, limit, allowed="")
    if not line.strip():
        raise ProjectError(f"The {what} is empty; give at least one visible character.")
    return line


def clean_text(text: object, what: str, limit: int = TEXT_LIMIT) -> str:
    """Like `clean_line`, but line breaks and tabs are welcome."""
    if isinstance(text, str):
        text = text.replace("\r\n", "\n")
    cleaned = _printable(text, what, limit, allowed="\n\t")
    if not cleaned.strip():
        raise ProjectError(f"The {what} is empty; give at least one visible character.")
    return cleaned


def _printable(text: object, what: str, limit: int, allowed: str) -> str:
    if not isinstance(text, str):
        raise ProjectError(f"The {what} must be a string, not {type(text).__name__}.")
    if len(text) > limit:
        raise ProjectError(f"The {what} has {len(text):,} characters, more than the {limit:,} allowed; shorten it.")
    for position, character in enumerate(text):
        if character in allowed or character in _JOINERS:
            continue
        if unicodedata.category(character) in _UNPRINTABLE:
            raise ProjectError(
                f"The {what} holds the unprintable character U+{ord(character):04X} at position {position}; remove it."
            )
    return unicodedata.normalize("NFC", text)


def canonical_json(value: object, what: str) -> str:
    """The one JSON text of `value`: sorted keys, no spaces, at most `JSON_LIMIT` bytes.

    NumPy scalars count as the Python numbers they stand for and tuples as lists. Raises ProjectError, naming the
    place inside the value, for anything JSON cannot hold (NaN, sets, arrays, keys that are not strings).
    """
    plain = _plain(value, what, 0)
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise ProjectError(
            f"The {what} holds a lone surrogate character, which no file can store; remove it."
        ) from None
    if size > JSON_LIMIT:
        raise ProjectError(
            f"The {what} takes {size:,} bytes of JSON, more than the {JSON_LIMIT:,} allowed; "
            "pass its large arrays as tensors."
        )
    return text


def _plain(value: object, place: str, depth: int) -> Any:
    """`value` rebuilt from dict, list, str, int, float, bool and None only."""
    if depth > JSON_DEPTH:
        raise ProjectError(f"The value is nested deeper than {JSON_DEPTH} levels at {place[:200]}; flatten it.")
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        if abs(value) >= 1 << 256:
            raise ProjectError(f"The integer at {place[:200]} is too large to keep; store it as a string.")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ProjectError(
                f"The number at {place[:200]} is {value}, which JSON cannot hold; store None or a string."
            )
        return float(value)
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise ProjectError(f"The key {key!r:.80} at {place[:200]} is not a string; JSON needs string keys.")
        return {key: _plain(item, f"{place}[{key!r}]", depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{place}[{index}]", depth + 1) for index, item in enumerate(value)]
    raise ProjectError(
        f"The value at {place[:200]} is a {type(value).__name__}, which JSON cannot hold; "
        "convert it, or pass arrays as tensors."
    )
