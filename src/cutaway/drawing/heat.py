"""Heat maps: a value for each row and column, blue above zero and orange below, white at zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.etree.ElementTree import Element

from .svg import add, canvas, figure, finite, markup, places

WRITTEN = 160  # so many cells at most have their numbers in them
WIDEST = 900.0  # of all cells together, unless they would be narrower than 6
CLIPPED = 22  # characters of a label
_ZERO, _PLUS, _MINUS = (255, 255, 255), (35, 96, 159), (181, 72, 28)
_EMPTY = "#f1eee6"


def heat_map(
    rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[Any]], *, across: str, measure: str
) -> str:
    """The drawing of `values[row][column]`, or "" when there is none; `across` says what columns are, `measure` what
    the values are. Cells that hold no finite number are grey."""
    numbers = [[finite(value) for value in row] for row in values]
    known = [abs(value) for row in numbers for value in row if value is not None]
    if not known or not rows or not columns:
        return ""
    most = max(known) or 1.0
    written = len(rows) * len(columns) <= WRITTEN
    digits = places(most)
    longest = max(len(figure(-most, digits)), 4)
    wide = max(6.0, min(max(7.0 * longest + 8, 30.0) if written else 24.0, WIDEST / len(columns)))
    written = written and wide >= 7.0 * longest
    tall = 24.0 if len(rows) <= 30 else 14.0
    labels = [_clip(name) for name in columns]
    slanted = max(map(len, labels)) * 7.0 > wide - 2
    left = 16 + 7.2 * max(len(_clip(name)) for name in rows)
    top = 18 + (5.4 * max(map(len, labels)) + 10 if slanted else 18)
    width = max(left + wide * len(columns) + (5.4 * len(labels[-1]) if slanted else 0) + 10, left + 210)
    height = top + tall * len(rows) + 54
    strongest = max(
        ((abs(value), rows[at], columns[to], value) for at, row in enumerate(numbers)
         for to, value in enumerate(row) if value is not None), key=lambda found: found[0],
    )  # fmt: skip
    told = f"{len(rows)} rows by {len(columns)} columns of {measure}. Largest: {strongest[1]}, {strongest[2]}: "
    told += figure(strongest[3], digits, signed=True)
    root = canvas(width, height, name="heat", title=f"{measure} by {across}", description=told, kind="heat")
    add(root, "text", "axis", across, x=left, y=12)
    step = max(1, -(-13 // int(wide)) if slanted else 1)
    for place, label in enumerate(labels):
        x = left + wide * (place + 0.5)
        if place % step == 0 and slanted:
            add(root, "text", "tick", label, transform=f"translate({x + 4:.1f} {top - 6:.1f}) rotate(-45)")
        elif place % step == 0:
            add(root, "text", "tick", label, x=x, y=top - 6, text_anchor="middle")
    add(root, "rect", "grid", x=left - 1, y=top - 1, width=wide * len(columns) + 1, height=tall * len(rows) + 1)
    for at, (name, row) in enumerate(zip(rows, numbers, strict=True)):
        y = top + tall * at
        add(root, "text", "tick mono", _clip(name), x=left - 8, y=y + tall / 2 + 4, text_anchor="end")
        for to, value in enumerate(row):
            said = f"{name}, {columns[to]}: {figure(value, digits + 1, signed=True)}"
            _cell(root, left + wide * to, y, (wide, tall), value, most, figure(value, digits) if written else "", said)
    _scale(root, left, top + tall * len(rows) + 16, most, digits, measure)
    return markup(root)


def _cell(
    root: Element, x: float, y: float, size: tuple[float, float], value: float | None, most: float, text: str, said: str
) -> None:
    """One cell with its number and what it says when it is pointed at."""
    wide, tall = size
    group = add(root, "g", "cell")
    add(group, "title", text=said)
    fill = _EMPTY if value is None else shade(value / most)
    add(group, "rect", x=x, y=y, width=wide - 1, height=tall - 1, fill=fill)
    if value is not None and text:
        dark = abs(value) > 0.55 * most
        add(group, "text", "number", text, x=x + wide / 2, y=y + tall / 2 + 4, text_anchor="middle",
            style=f"fill: {'#ffffff' if dark else '#1d1e21'}")  # fmt: skip


def _scale(root: Element, x: float, y: float, most: float, digits: int, measure: str) -> None:
    """The colours from the least to the largest value, with zero in the middle."""
    for place in range(41):
        add(root, "rect", x=x + 4 * place, y=y, width=4.2, height=9, fill=shade((place - 20) / 20))
    for place, value in ((0, -most), (20, 0.0), (40, most)):
        add(root, "line", "notch", x1=x + 4 * place + 2, x2=x + 4 * place + 2, y1=y + 9, y2=y + 13)
        anchor = ("start", "middle", "end")[place // 20]
        add(root, "text", "tick", figure(value, digits), x=x + 4 * place + 2, y=y + 25, text_anchor=anchor)
    add(root, "text", "tick", measure, x=x + 176, y=y + 9)


def shade(share: float) -> str:
    """The colour of a value as a share of the largest: -1 is orange, 0 white, 1 blue."""
    end, weight = (_PLUS if share >= 0 else _MINUS), min(abs(share), 1.0) ** 0.8
    mixed = (round(zero + (full - zero) * weight) for zero, full in zip(_ZERO, end, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def _clip(name: str) -> str:
    return name if len(name) <= CLIPPED else name[: CLIPPED - 1] + "…"
