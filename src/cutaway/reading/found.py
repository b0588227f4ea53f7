"""What `strings` finds: for every unit and side, the entries of a vocabulary that its direction points to."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .nearest import Nearest


@dataclass(frozen=True, eq=False)
class Section:
    """One side of many units. `names` are the units', `side` what is shown: writes, reads, ov writes, qk key …

    `through`: by which path and vocabulary; `texts` stand for entries where a filter is described, or say more.
    """

    names: Sequence[str]
    side: str
    through: str
    labels: str
    nearest: Nearest | None
    z: Tensor
    texts: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class Strings:
    """All that was found. `labels` are the vocabularies' entries by name; `notes` say how, and what was left out."""

    sections: tuple[Section, ...]
    labels: dict[str, list[str]]
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return sum(len(section.names) for section in self.sections)

    def rows(self, grep: str = "", top: int | None = 20, site: str = "", side: str = "") -> list[dict[str, Any]]:
        """Rows as plain data, those furthest above random directions first.

        `grep`: a regular expression that one of the entries shown, or a description, must match; `site`: units whose
        name begins so; `side`: this side alone. Raises InputError for an expression that is none.
        """
        try:
            pattern = re.compile(grep, re.IGNORECASE) if grep else None
        except re.error as error:
            raise InputError(f"{grep!r} is no regular expression: {error}.") from error
        hits = {name: _hits(pattern, labels) for name, labels in self.labels.items()} if pattern else {}
        places = []
        for number, section in enumerate(self.sections):
            if side and section.side != side:
                continue
            keep = torch.ones(len(section.names), dtype=torch.bool)
            if pattern is not None:
                keep = _matching(section, pattern, hits)
            if site:
                keep &= torch.tensor([_below(name, site) for name in section.names])
            rows = keep.nonzero().flatten()
            if top is not None and len(rows) > top:
                rows = rows[section.z[rows].nan_to_num(-1e9).topk(top).indices]
            places += [(number, int(row), float(section.z[row])) for row in rows]
        places.sort(key=lambda place: -(place[2] if place[2] == place[2] else -1e9))
        return [self._row(number, row) for number, row, _ in places[:top]]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows(top=None))

    def __str__(self) -> str:
        lines = [f"{row['site']:<18} {row['side']:<10} z {row['z']:>7.1f}  {_words(row)}" for row in self.rows()]
        return "\n".join([*lines, *self.notes])

    def _row(self, number: int, row: int) -> dict[str, Any]:
        section = self.sections[number]
        found: dict[str, Any] = {
            "site": section.names[row], "side": section.side, "z": round(float(section.z[row]), 2),
            "through": section.through, "text": section.texts[row] if section.texts else "", "top": [], "low": [],
        }  # fmt: skip
        if section.nearest is not None:
            labels, near = self.labels[section.labels], section.nearest
            found["peak"] = round(float(near.peak[row]), 2)
            for key, ids, values in (("top", near.top, near.top_values), ("low", near.low, near.low_values)):
                pairs = zip(ids[row].tolist(), values[row].tolist(), strict=True)
                found[key] = [{"entry": labels[at], "id": at, "value": round(value, 4)} for at, value in pairs]
        return found


def _hits(pattern: re.Pattern[str], labels: Sequence[str]) -> Tensor:
    return torch.tensor([pattern.search(label) is not None for label in labels], dtype=torch.bool)


def _matching(section: Section, pattern: re.Pattern[str], hits: dict[str, Tensor]) -> Tensor:
    found = torch.zeros(len(section.names), dtype=torch.bool)
    if section.texts:
        found |= torch.tensor([pattern.search(text) is not None for text in section.texts])
    if section.nearest is not None:
        hit = hits[section.labels]
        found |= hit[section.nearest.top].any(1) | hit[section.nearest.low].any(1)
    return found


def _below(name: str, site: str) -> bool:
    return name == site or name.startswith(f"{site}.")


def _words(row: dict[str, Any]) -> str:
    words = " ".join(repr(entry["entry"]) for entry in row["top"][:4])
    return f"{words}  {row['text']}".strip()
