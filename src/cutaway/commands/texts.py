"""Pairs of texts, as they come from a command line or a file, turned into examples. Imports torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import FormatError, InputError
from ..run.network import Network
from .subject import Examples

KEYS = ("clean", "corrupted", "correct", "wrong")
LARGEST = 64 << 20  # bytes of a file of pairs


@dataclass(frozen=True)
class Texts:
    """Clean and corrupted texts and the answers; one answer may stand for all."""

    clean: Sequence[str]
    corrupted: Sequence[str] = ()
    correct: Sequence[str] = ()
    wrong: Sequence[str] = ()

    def examples(self, net: Network) -> Examples:
        """The examples; what was not given is None. Raises InputError for counts or lengths that do not match."""
        count = len(self.clean)
        if self.corrupted and len(self.corrupted) != count:
            raise InputError(f"There are {count} clean texts and {len(self.corrupted)} corrupted ones; pair them up.")
        for place, (clean, corrupted) in enumerate(zip(self.clean, self.corrupted, strict=False)):
            first, second = len(net.tokens(clean)), len(net.tokens(corrupted))
            if first != second:
                raise InputError(
                    f"Pair {place} has {first} tokens clean and {second} corrupted; the two texts of a pair need the "
                    "same number of tokens, so that every position has a counterpart."
                )
        if bool(self.correct) != bool(self.wrong):
            raise InputError("Only one of --correct and --wrong is given; a behaviour is the difference between them.")
        correct = self._answers(net, "correct", self.correct, count)
        wrong = self._answers(net, "wrong", self.wrong, count)
        return Examples(list(self.clean), list(self.corrupted) or None, correct, wrong)

    @staticmethod
    def _answers(net: Network, name: str, given: Sequence[str], count: int) -> list[Any] | None:
        if not given:
            return None
        if len(given) not in (1, count):
            raise InputError(
                f"There are {len(given)} answers --{name} for {count} inputs; give one each, or one for all."
            )
        numbers = net.tokenizer is None and all(text.isdecimal() for text in given)
        listed: list[Any] = [int(text) for text in given] if numbers else [net.token_id(text) for text in given]
        return listed * count if len(listed) == 1 else listed


def read_pairs(path: str) -> Texts:
    """Pairs from a .json file (a list of objects) or a .jsonl file (an object a line), each with KEYS.

    Raises FormatError, naming the row, for anything else.
    """
    try:
        if Path(path).stat().st_size > LARGEST:
            raise FormatError(f"'{path}' is larger than {LARGEST >> 20} MiB; give fewer pairs.")
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise FormatError(f"The file of pairs '{path}' cannot be read: {why}.") from error
    try:
        lines = [line for line in text.splitlines() if line.strip()]
        rows = [json.loads(line) for line in lines] if path.endswith(".jsonl") else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"'{path}' is no JSON: {error}.") from error
    if not isinstance(rows, list) or not rows:
        raise FormatError(f"'{path}' holds no list of pairs; give objects with {', '.join(KEYS)}.")
    for place, row in enumerate(rows):
        bad = [key for key in KEYS if not isinstance(row, dict) or not isinstance(row.get(key), str)]
        if bad:
            raise FormatError(f"Pair {place} of '{path}' has no text '{bad[0]}'; each pair needs {', '.join(KEYS)}.")
    return Texts(*([row[key] for row in rows] for key in KEYS))
