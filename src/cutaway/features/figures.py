"""What an evaluation is made of: figures, each with its interval, the direction that is better, and the controls'."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .uncertainty import Interval


@dataclass(frozen=True)
class Figure:
    """One figure: `better` is "higher", "lower" or "nearer to 1"; `how` says how it was obtained; `controls` are the
    same figure of other dictionaries; `details` whatever it was made from. A value of None could not be had, and `how`
    says why."""

    name: str
    value: float | None
    low: float | None
    high: float | None
    better: str
    how: str
    controls: Mapping[str, float | None] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """All figures of a dictionary. `densities` is the histogram of how often latents fire (log10 of the share of rows),
    `facts` say what was evaluated and on what, `notes` what to mind."""

    facts: dict[str, Any]
    figures: tuple[Figure, ...]
    densities: dict[str, Any]
    notes: tuple[str, ...] = ()

    def figure(self, name: str) -> Figure:
        """A figure by name. Raises KeyError for one that was not measured."""
        for figure in self.figures:
            if figure.name == name:
                return figure
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able data: numbers that are not finite are None."""
        made: dict[str, Any] = _plain(asdict(self))
        return made

    def __str__(self) -> str:
        others = list(dict.fromkeys(name for figure in self.figures for name in figure.controls))
        table = [("", "value", "95 %", "better", *others)]
        for figure in self.figures:
            beside = (_short(figure.controls.get(name)) for name in others)
            table.append((figure.name, _short(figure.value), span(figure), figure.better, *beside))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
        return "\n".join([self.facts["dictionary"], *(line.rstrip() for line in lines), *self.notes])


def figure(name: str, found: Interval, better: str, how: str, **details: Any) -> Figure:
    """A figure from an interval; one that is not finite has no value."""
    value, low, high = (one if one is not None and math.isfinite(one) else None for one in found)
    return Figure(name, value, low, high, better, how, {}, details)


def beside(figures: Iterable[Figure], controls: Mapping[str, Iterable[Figure]]) -> list[Figure]:
    """Figures with those of the same name of each control."""
    tables = {name: {other.name: other.value for other in others} for name, others in controls.items()}
    return [
        replace(one, controls={**one.controls, **{name: t[one.name] for name, t in tables.items() if one.name in t}})
        for one in figures
    ]


def span(figure: Figure) -> str:
    """The interval as text."""
    return "" if figure.low is None else f"{_short(figure.low)} … {_short(figure.high)}"


def _short(value: float | None) -> str:
    return "—" if value is None else f"{value:.3g}"


def _plain(data: Any) -> Any:
    if isinstance(data, dict):
        return {str(key): _plain(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_plain(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
