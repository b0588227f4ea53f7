"""Questions to an index of linear paths: who writes into a site, and who reads from it. NumPy alone, no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import SiteError
from ..site import unknown

_SITE = re.compile(r"(?P<component>[^\[\]]+?)(?:\[vocab=(?P<rows>[\d|:]+)\])?")
_PART = re.compile(r"(?:\.(?P<mark>h|n|c|u|e|f|kv)(?P<slot>\d+))?(?:\.(?P<port>[a-z]+\d*))?")


End = dict[str, Any]


@dataclass(frozen=True)
class Reference:
    """One row: `strength` is what the reader reads for a one at each of the writer's units (their root sum of squares,
    or the number itself with its sign between two units); `share` is its square's part in that of all rows."""

    name: str
    port: str
    strength: float
    share: float


@dataclass(frozen=True, eq=False)
class Index:
    """The linear paths of one network: `facts` (JSON-able) and `arrays` by name (see build.py)."""

    facts: dict[str, Any]
    arrays: Mapping[str, np.ndarray]

    def size(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays.values())

    def stored(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """What a project keeps: facts, and arrays."""
        return json.loads(json.dumps(self.facts)), dict(self.arrays)

    def writers_of(self, site: str, top: int = 10, *, neurons: bool = True) -> list[Reference]:
        """Who writes what a site reads, the strongest first. A head without a port stands for all its ports; without
        `neurons` an MLP is one writer. Raises SiteError for an unknown site."""
        rows: list[tuple[str, str, float]] = []
        for reader, slot, units in self._ends(site, "readers"):
            for writer, factor in self._linked(reader["label"], 1):
                strengths = self._into(writer, reader, slot, units, factor)
                rows += _named(writer, reader["port"], strengths, neurons)
        return _ranked(rows, top)

    def readers_of(self, site: str, top: int = 10, *, neurons: bool = True) -> list[Reference]:
        """Who reads what a site writes, the strongest first; without `neurons` an MLP is one reader. Raises SiteError
        for an unknown site."""
        rows: list[tuple[str, str, float]] = []
        for writer, slot, units in self._ends(site, "writers"):
            for reader, factor in self._linked(writer["label"], 0):
                strengths = self._out_of(writer, reader, slot, units, factor)
                rows += _named(reader, reader["port"], strengths, neurons)
        return _ranked(rows, top)

    def known(self, side: str) -> list[str]:
        """The names of all writers or readers, components of large ones left out."""
        names = []
        for end in self.facts[side]:
            names += [_label(end, slot) for slot in range(end["count"] if end["count"] < 64 else 1)]
        return names

    # ---- how

    def _linked(self, label: str, side: int) -> list[tuple[End, float]]:
        ends = {end["label"]: end for end in self.facts["writers" if side else "readers"]}
        return [(ends[link[1 - side]], link[2]) for link in self.facts["links"] if link[side] == label]

    def _ends(self, site: str, side: str) -> list[tuple[End, int | None, list[int] | None]]:
        """(end, component, rows of a vocabulary) for all that a site names; [] where it names the other side alone."""
        found = self._named_by(site, side)
        if not found and not self._named_by(site, "readers" if side == "writers" else "writers"):
            raise unknown(site, [*self.known("writers"), *self.known("readers")])
        return found

    def _named_by(self, site: str, side: str) -> list[tuple[End, int | None, list[int] | None]]:
        match = _SITE.fullmatch(site.strip())
        name = match["component"] if match else ""
        found: list[tuple[End, int | None, list[int] | None]] = []
        for end in self.facts[side]:
            part = _PART.fullmatch(name[len(end["name"]) :]) if name.startswith(end["name"]) else None
            if part is None or part["port"] not in (None, end["port"]):
                continue
            if part["slot"] is None:
                found.append((end, None, _rows(match["rows"] if match else None)))
                continue
            slot = int(part["slot"])
            if part["mark"] == "h" and end["mark"] == "kv":  # the group that a head of queries reads
                heads = next(other["count"] for other in self.facts["writers"] if other["name"] == end["name"])
                slot = slot * end["count"] // heads if slot < heads else end["count"]
            elif part["mark"] != end["mark"]:
                continue
            if slot < end["count"]:
                found.append((end, slot, None))
        return found

    def _rows_of(self, name: str, rows: slice | list[int]) -> np.ndarray:
        if name not in self.arrays:
            raise SiteError(f"The index has no rows of '{name[2:]}'; ask for the whole component.")
        kept = self.arrays[name][rows].astype(np.float32)
        kept *= self.arrays[f"{name} scale"][rows][:, None]
        return kept

    def _into(self, writer: End, reader: End, slot: int | None, units: list[int] | None, factor: float) -> np.ndarray:
        """[writer's components]: strengths into one component of a reader, or into all of it."""
        table = self._table(writer, reader, units)
        if table is not None:
            return table[:, slot] if slot is not None else np.sqrt(np.square(table).sum(1))
        columns = self._rows_of(f"R {reader['label']}", _picked(reader, slot, units))
        gram = self.arrays.get(f"G W {writer['label']}")
        if gram is not None:  # a table: the root mean square over its rows
            return abs(factor) * np.sqrt(np.maximum(((columns @ gram) * columns).sum().reshape(1), 0))
        return factor * _grouped(self._rows_of(f"W {writer['label']}", slice(None)) @ columns.T, writer)

    def _out_of(self, writer: End, reader: End, slot: int | None, units: list[int] | None, factor: float) -> np.ndarray:
        """[reader's components]: strengths out of one component of a writer, or out of all of it."""
        table = self._table(writer, reader, None) if units is None else None
        if table is not None:
            rows = table if slot is None else table[slot : slot + 1]
            if rows.shape == (1, reader["count"]):
                return rows[0]
            return np.sqrt(np.square(rows).reshape(len(rows), reader["count"], -1).sum((0, 2)))
        name = f"T {writer['label']}" if units is not None else f"W {writer['label']}"
        rows = self._rows_of(name, _picked(writer, slot, units))
        gram = self.arrays.get(f"G R {reader['label']}")
        if gram is not None and reader["count"] == 1:
            return abs(factor) * np.sqrt(np.maximum(((rows @ gram) * rows).sum().reshape(1), 0))
        return factor * _grouped(self._rows_of(f"R {reader['label']}", slice(None)) @ rows.T, reader)

    def _table(self, writer: End, reader: End, units: list[int] | None) -> np.ndarray | None:
        """[writer's components, reader's components]: strengths that were kept; for some units of a reader, of them."""
        table = self.arrays.get(f"S {writer['label']} | {reader['label']}")
        if table is None or units is None:
            return table
        return table[:, units] if table.shape[1] == reader["group"] * reader["count"] else None


def _grouped(values: np.ndarray, end: End) -> np.ndarray:
    """[components]: the root sum of squares over the units of each, and over columns; one number keeps its sign."""
    if end["group"] == 1 and values.shape[1] == 1:
        return values[:, 0]
    return np.sqrt(np.square(values).sum(1).reshape(end["count"], -1).sum(1))


def _named(end: End, port: str, strengths: np.ndarray, neurons: bool) -> list[tuple[str, str, float]]:
    if end["mark"] == "n" and not neurons:
        return [(end["label"], port, float(np.sqrt(np.square(strengths).sum())))]
    return [(_label(end, slot), port, float(value)) for slot, value in enumerate(strengths)]


def _picked(end: End, slot: int | None, units: list[int] | None) -> slice | list[int]:
    if units is not None:
        return units
    return slice(None) if slot is None else slice(slot * end["group"], (slot + 1) * end["group"])


def _rows(text: str | None) -> list[int] | None:
    if text is None:
        return None
    if ":" in text:
        low, high = text.split(":")
        return list(range(int(low or 0), int(high)))
    return [int(part) for part in text.split("|")]


def _label(end: End, slot: int) -> str:
    inner = f"{end['name']}.{end['mark']}{slot}" if end["mark"] else end["name"]
    return f"{inner}.{end['port']}" if end["port"] else inner


def _ranked(rows: Iterable[tuple[str, str, float]], top: int) -> list[Reference]:
    listed = [row for row in rows if row[2]]
    whole = sum(value * value for _, _, value in listed) or 1.0
    listed.sort(key=lambda row: -abs(row[2]))
    return [Reference(name, port, float(value), float(value * value / whole)) for name, port, value in listed[:top]]
