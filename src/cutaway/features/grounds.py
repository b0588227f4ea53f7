"""What rules are judged on: for each row its token and those before it, or numbers of the input where the row lies."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .index import LatentIndex

_MOST_NUMBERS = 64  # of a plain vector that become attributes
_LAGS = (1, 2, 3)

# Properties of a token's text, each a function of it.
PROPERTIES: dict[str, Callable[[str], bool]] = {
    "capitalised": lambda text: text.strip()[:1].isupper(),
    "in capitals": lambda text: len(text.strip()) > 1 and text.strip().isupper(),
    "of digits": lambda text: text.strip().isdigit(),
    "of letters": lambda text: text.strip().isalpha(),
    "one letter": lambda text: len(text) == 1 and text.isalpha(),
    "punctuation": lambda text: bool(text.strip()) and all(unicodedata.category(c)[0] == "P" for c in text.strip()),
    "the end of a sentence": lambda text: text.strip() in (".", "!", "?", '."', '!"', '?"'),
    "the start of a word": lambda text: text[:1].isspace() and text.strip()[:1].isalpha(),
    "inside a word": lambda text: text[:1].isalpha() and text[:1].islower(),
    "white space": lambda text: not text.strip(),
    "a line break": lambda text: "\n" in text,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Ground:
    """Some rows. Of texts: all their `tokens` in one line, where each row lies in it (`here`) and where its text begins
    (`begin`), and the texts of tokens. Of other inputs: `numbers`, a name and a value a row. `group` tells the example
    of each row, `position` its place along a text or series, and `kind` its class, -1 where there are none."""

    group: np.ndarray
    position: np.ndarray
    kind: np.ndarray
    tokens: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    here: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    begin: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    vocabulary: Sequence[str | None] = ()
    numbers: Mapping[str, np.ndarray] = field(default_factory=dict)
    class_names: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.group)

    @property
    def is_text(self) -> bool:
        """Whether rows are positions of texts."""
        return len(self.here) == len(self.group) and len(self.tokens) > 0

    @cached_property
    def width(self) -> int:
        """How many different tokens there may be."""
        return max(int(self.tokens.max(initial=0)) + 1, len(self.vocabulary))

    def at(self, offset: int) -> np.ndarray:
        """[rows]: the token so many places from each row's (0: its own, -1: the one before); -1 before the text."""
        where = self.here + offset
        return np.where(where >= self.begin, self.tokens[np.maximum(where, 0)], -1)

    def ngrams(self, length: int) -> np.ndarray:
        """[rows]: a number for each row's token and those before it, `length` in all; -1 where the text is shorter."""
        found = np.zeros(len(self), np.int64)
        for offset in range(1 - length, 1):
            found = found * self.width + np.maximum(self.at(offset), 0)
        return np.where(self.here - self.begin >= length - 1, found, -1)

    def word(self, token: int) -> str:
        """The text of a token, or its number."""
        known = self.vocabulary[token] if 0 <= token < len(self.vocabulary) else None
        return str(token) if known is None else known

    @cached_property
    def properties(self) -> dict[str, np.ndarray]:
        """{property: [tokens]}: which tokens have it; none where the texts of tokens are not known."""
        if not len(self.vocabulary):
            return {}
        words = [self.word(token) for token in range(self.width)]
        return {name: np.array([test(word) for word in words]) for name, test in PROPERTIES.items()}

    def affix(self, name: str, affix: str) -> np.ndarray:
        """[tokens]: which tokens begin ("prefix") or end ("suffix") so."""
        found = [self.word(token).strip() for token in range(self.width)]
        return np.array([w.startswith(affix) if name == "prefix" else w.endswith(affix) for w in found])

    def within(self, wanted: np.ndarray, reach: int) -> np.ndarray:
        """[rows]: whether one of the `wanted` tokens [tokens] is among the `reach` before (all of the text, for 0)."""
        hits = wanted[np.minimum(self.tokens, len(wanted) - 1)] & (self.tokens < len(wanted))
        last = np.maximum.accumulate(np.where(hits, np.arange(len(hits)), -1))
        before = np.where(self.here > self.begin, last[np.maximum(self.here - 1, 0)], -1)
        return before >= (self.begin if reach == 0 else np.maximum(self.begin, self.here - reach))


def text_ground(
    texts: Sequence[np.ndarray], vocabulary: Sequence[str | None], kinds: Sequence[int] = (), names: Sequence[str] = ()
) -> Ground:
    """Every position of some texts (token ids each)."""
    lengths = np.array([len(text) for text in texts], np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])[:-1]
    group = np.repeat(np.arange(len(texts)), lengths)
    here = np.arange(int(lengths.sum()))
    kind = np.asarray(kinds, np.int64)[group] if len(kinds) else np.full(len(group), -1)
    tokens = np.concatenate(texts).astype(np.int64) if len(texts) else np.zeros(0, np.int64)
    return Ground(group, here - starts[group], kind, tokens, here, starts[group], vocabulary, {}, names)


def index_ground(index: LatentIndex, examples: np.ndarray) -> tuple[Ground, np.ndarray]:
    """(the ground of some examples of an index, [rows]: the index's rows that its rows are)."""
    facts = index.facts
    classes = facts["classes"]
    kinds = [classes[int(one)] for one in examples] if classes else []
    rows = np.concatenate(
        [np.arange(index.example_rows[one], index.example_rows[one + 1]) for one in examples] or [np.zeros(0, np.int64)]
    )
    if facts["kind"] == "text" and facts["axes"] == 1:
        whole = text_ground([index.example(int(one)) for one in examples], facts["vocabulary"] or (), kinds,
                            facts["class_names"])  # fmt: skip
        lengths = np.bincount(whole.group, minlength=len(examples))
        starts = np.concatenate([[0], np.cumsum(lengths)])[:-1]
        place = np.searchsorted(examples, index.arrays["example"][rows])
        at = starts[place] + index.arrays["position"][rows, 0]
        picked = Ground(whole.group[at], whole.position[at], whole.kind[at], whole.tokens, at, whole.begin[at],
                        whole.vocabulary, {}, whole.class_names)  # fmt: skip
        return picked, rows
    parts = [_numbers(index.example(int(one)), index.arrays["position"][_span(index, int(one))]) for one in examples]
    group = np.searchsorted(examples, index.arrays["example"][rows])
    position = index.arrays["position"][rows, 0] if facts["axes"] == 1 else np.zeros(len(rows), np.int64)
    numbers = {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else ())}
    kind = np.asarray(kinds, np.int64)[group] if kinds else np.full(len(rows), -1)
    return Ground(group, position, kind, numbers=numbers, class_names=facts["class_names"]), rows


def example_ground(
    example: np.ndarray, positions: np.ndarray, vocabulary: Sequence[str | None], kind: int, names: Sequence[str]
) -> Ground:
    """One input, text or not, at some positions [rows, axes]."""
    if not np.issubdtype(example.dtype, np.floating) and example.ndim == 1 and positions.shape[1] == 1:
        return text_ground([example], vocabulary, [kind], names)
    count = len(positions)
    position = positions[:, 0] if positions.shape[1] == 1 else np.zeros(count, np.int64)
    return Ground(np.zeros(count, np.int64), position, np.full(count, kind), numbers=_numbers(example, positions),
                  class_names=names)  # fmt: skip


def _span(index: LatentIndex, example: int) -> slice:
    return slice(int(index.example_rows[example]), int(index.example_rows[example + 1]))


def _numbers(example: np.ndarray, positions: np.ndarray) -> dict[str, np.ndarray]:
    """Attributes of an input at some positions: of an image brightness, channels and edges there, of a series its
    values and those before, of a vector its numbers."""
    count = len(positions)
    if example.ndim == 3 and positions.shape[1] == 2:
        return _pixels(example, positions)
    if example.ndim == 2 and positions.shape[1] == 1:
        at = np.minimum(positions[:, 0], len(example) - 1)
        found = {f"value {one}": example[at, one] for one in range(min(example.shape[1], _MOST_NUMBERS))}
        for lag in _LAGS:
            found[f"value 0, {lag} before"] = example[np.maximum(at - lag, 0), 0]
        found["change of value 0"] = example[at, 0] - example[np.maximum(at - 1, 0), 0]
        return found | {"position": positions[:, 0].astype(np.float32)}
    flat = np.asarray(example, np.float32).ravel()
    found = {"mean of the input": np.full(count, flat.mean())}
    if flat.size <= _MOST_NUMBERS:
        found |= {f"number {one}": np.full(count, value) for one, value in enumerate(flat)}
    for axis in range(positions.shape[1]):
        found[f"position {axis}"] = positions[:, axis].astype(np.float32)
    return found


def _pixels(image: np.ndarray, positions: np.ndarray) -> dict[str, np.ndarray]:
    channels, high, wide = image.shape
    span = np.maximum(positions.max(0) + 1, 1)
    rows = np.minimum(((positions[:, 0] + 0.5) * high / span[0]).astype(int), high - 1)
    columns = np.minimum(((positions[:, 1] + 0.5) * wide / span[1]).astype(int), wide - 1)
    grey = image.mean(0)
    padded = np.pad(grey, 1, mode="edge")
    near = np.stack([padded[y : y + high, x : x + wide] for y in range(3) for x in range(3)])
    found = {
        "brightness": grey,
        "brightness around": near.mean(0),
        "contrast around": near.std(0),
        "edge across": padded[1:-1, 2:] - padded[1:-1, :-2],
        "edge down": padded[2:, 1:-1] - padded[:-2, 1:-1],
    }
    if 1 < channels <= 4:
        names = ("red", "green", "blue", "channel 3")
        found |= {names[one]: image[one] for one in range(channels)}
        found |= {f"{names[one]} against the others": image[one] - grey for one in range(channels)}
    made = {name: plane[rows, columns].astype(np.float32) for name, plane in found.items()}
    down, across = (positions[:, axis] / np.maximum(span[axis] - 1, 1) for axis in (0, 1))
    border = np.minimum(np.minimum(down, 1 - down), np.minimum(across, 1 - across))
    whole = {"brightness of the image": float(image.mean()), "contrast of the image": float(image.std())}
    made |= {"height": down, "width": across, "distance from the border": border}
    return made | {name: np.full(len(positions), value, np.float32) for name, value in whole.items()}
