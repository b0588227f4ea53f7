"""Inline SVG with a title and a description, and numbers as people read them.

Elements are built as a tree (`xml.etree`), so every text and attribute is escaped by construction. Colours are classes
that `drawings.css` defines in terms of a page's palette, so one drawing serves light and dark; a drawing by itself
(`plot.py`) brings its own.
"""

from __future__ import annotations

import math
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

MINUS = "\N{MINUS SIGN}"
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # controls, direction marks, lone surrogates: never sent raw


@cache
def rules() -> str:
    """The style rules of all drawings, for a page that defines the palette."""
    return (Path(__file__).parent / "drawings.css").read_text(encoding="utf-8")


def canvas(width: float, height: float, *, name: str, title: str, description: str, kind: str = "chart") -> Element:
    """An empty drawing. `name` begins the ids inside it and must be unique on a page."""
    wide, high = number(width), number(height)
    given = {"class": kind, "viewBox": f"0 0 {wide} {high}", "width": wide, "height": high, "role": "img"}
    root = Element("svg", given | {"aria-labelledby": f"{name}-title {name}-desc"})
    SubElement(root, "title", {"id": f"{name}-title"}).text = visible(title)
    SubElement(root, "desc", {"id": f"{name}-desc"}).text = visible(description)
    return root


def add(parent: Element, tag: str, kind: str = "", text: str | None = None, **attributes: Any) -> Element:
    """A new element inside `parent`. Numbers are rounded to hundredths; `stroke_width` is written stroke-width."""
    given = {"class": kind} if kind else {}
    for key, value in attributes.items():
        text_of = number if isinstance(value, (int, float)) else visible
        given[key.rstrip("_").replace("_", "-")] = text_of(value)
    made = SubElement(parent, tag, given)
    if text is not None:
        made.text = visible(text)
    return made


def markup(root: Element) -> str:
    """The drawing as text that can stand in an HTML page."""
    return tostring(root, encoding="unicode")


def number(value: float) -> str:
    """A coordinate, rounded to hundredths."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if value % 1 else str(int(value))


def visible(text: str) -> str:
    """The text with characters that cannot be seen, or that reorder others, written as their code points."""
    return "".join(f"\\u{{{ord(c):x}}}" if unicodedata.category(c) in _HIDDEN and c != "\n" else c for c in text)


def finite(value: Any) -> float | None:
    """The value as a float; None for anything that is not a finite number."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    return float(value) if -1e300 < value < 1e300 else None


def figure(value: Any, digits: int = 3, *, signed: bool = False) -> str:
    """A number to read, aligned by its digits; a dash for what is none."""
    known = finite(value)
    if known is None:
        return "\N{EN DASH}"
    if abs(known) >= 1e6:
        text = f"{known:.2e}"
    elif abs(known) < 0.5 * 10**-digits:  # a digit more where that shows one; -0.000 is never written
        text = f"{known:.{digits + 1}f}" if abs(known) >= 10 ** -(digits + 1) else f"{0:.{digits}f}"
    else:
        text = f"{known:,.{digits}f}"
    sign = "+" if signed and float(text.replace(",", "")) > 0 else ""
    return sign + text.replace("-", MINUS)


def places(largest: float, least: int = 2) -> int:
    """How many decimals show the largest of some numbers with at least three digits."""
    return least if largest >= 0.1 or largest <= 0 else min(least + math.ceil(-math.log10(largest)), 9)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers in [low, high], about `count` of them: steps of 1, 2 or 5 times a power of ten."""
    span = high - low
    if span <= max(1e-12 * max(abs(low), abs(high)), 1e-280):
        return [low]
    power = 10 ** math.floor(math.log10(span / count))
    step = next(factor * power for factor in (1, 2, 5, 10) if span / (factor * power) <= count)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(place * step, 12) for place in range(first, last + 1)]
