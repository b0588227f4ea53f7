"""A drawing to keep or to show: panels under a heading with a legend, as one SVG that needs nothing else.

It has a background and colours of its own, so that it reads the same in dark and light notebooks; its style rules are
bound to its own id, so that they touch nothing else on a page. PNG is made by the optional package resvg-py.
"""

from __future__ import annotations

import hashlib
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, fromstring

from ..errors import InputError, ResourceError
from ..formats.writing import write_whole
from .svg import add, canvas, markup, rules

LEAST, PAD, GAP, LINE = 560.0, 18.0, 26.0, 17.0
BESIDE = 980.0  # panels stand side by side as long as they are together no wider
SHARP = 2.0  # pixels of a PNG for each unit of the drawing
PALETTE = {
    "paper": "#fbfaf7", "card": "#ffffff", "faint": "#f4f2ec", "line": "#c9c4b8", "rule": "#e6e2d8",
    "ink": "#1d1e21", "soft": "#54585f", "quiet": "#83878e",
    "plus": "#23609f", "minus": "#b5481c", "good": "#1c6b46",
    "sans": "Inter, 'Segoe UI', 'Helvetica Neue', Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif",
    "mono": "'DejaVu Sans Mono', 'SF Mono', Menlo, Consolas, 'Liberation Mono', monospace",
}  # fmt: skip
_OWN = "svg .title { fill: var(--ink); font-size: 15px; font-weight: 600; }"


@dataclass(frozen=True, repr=False)
class Plot:
    """A finished drawing: `svg` is a whole document; a notebook shows it, `save` writes it as .svg or .png."""

    svg: str

    def __str__(self) -> str:
        return self.svg

    def __repr__(self) -> str:
        return f"Plot({len(self.svg):,} characters of SVG; .save('drawing.svg') or .save('drawing.png') keeps it)"

    def _repr_html_(self) -> str:
        return f'<div style="overflow-x:auto;margin:4px 0">{self.svg}</div>'

    def save(self, path: str | Path) -> Path:
        """Write the drawing, as its name's end says, whole or not at all.

        Raises InputError for another ending, ResourceError when the file cannot be written or resvg-py is missing.
        """
        made = {".svg": lambda: self.svg.encode(), ".png": self.png}.get(Path(path).suffix.lower())
        if made is None:
            raise InputError(f"A drawing is written as .svg or .png, and '{path}' ends in neither; give another name.")
        return write_whole(path, made())

    def png(self) -> bytes:
        """The drawing as PNG, at two pixels a unit. Raises ResourceError when resvg-py is not installed."""
        try:
            from resvg_py import svg_to_bytes
        except ImportError:
            raise ResourceError(
                "A PNG needs the package resvg-py; install cutaway[plot], or save the drawing as .svg."
            ) from None
        return bytes(svg_to_bytes(svg_string=self.svg, zoom=SHARP))


def compose(title: str, notes: Sequence[str], keys: Sequence[tuple[str, str]], panels: Sequence[str]) -> Plot:
    """Panels (drawings as text, "" for none) under a title, notes and a legend of (kind, what it means).

    Kinds: "plus" and "minus" are lines as edges are drawn.
    """
    parts = [fromstring(panel) for panel in panels if panel]
    sizes = [(float(part.get("width", "0")), float(part.get("height", "0"))) for part in parts]
    beside = sum(wide for wide, _ in sizes) + GAP * (len(sizes) - 1) <= BESIDE
    inner = sum(wide for wide, _ in sizes) + GAP * (len(sizes) - 1) if beside else max(w for w, _ in sizes)
    width = max(LEAST, inner) + 2 * PAD
    told = " ".join(text for part in parts if (text := part.findtext("desc")))
    root = canvas(width, 0, name="plot", title=title, description=told or title, kind="plot")
    add(root, "rect", x=0, y=0, width="100%", height="100%", fill=PALETTE["paper"])
    y = PAD
    for text, kind, letter in [(title, "title", 8.4), *((note, "note", 6.3) for note in notes)]:
        for line in textwrap.wrap(text, int((width - 2 * PAD) / letter)):
            y += LINE
            add(root, "text", kind, line, x=PAD, y=y - 4)
        y += 3
    y = _legend(root, keys, y + 4, width) + 10
    x, low = PAD, y
    for part, (wide, high) in zip(parts, sizes, strict=True):
        group = add(root, "g", part.get("class", ""), transform=f"translate({x:.1f} {y:.1f})")
        group.extend(child for child in part if child.tag not in ("title", "desc"))
        low = max(low, y + high)
        x, y = (x + wide + GAP, y) if beside else (x, y + high + GAP)
    return _finished(root, width, low + PAD)


def _legend(root: Element, keys: Sequence[tuple[str, str]], y: float, width: float) -> float:
    """The legend's entries in as many lines as they need; where the last of them ends."""
    x = PAD
    for place, (kind, text) in enumerate(keys):
        wide = 40 + 6.3 * len(text)
        if x > PAD and x + wide > width - PAD:
            x, y = PAD, y + LINE
        y += LINE if place == 0 else 0
        group = add(add(root, "g", "graph"), "g", kind)
        line = add(group, "line", "line", x1=x, x2=x + 26, y1=y - 8, y2=y - 8, stroke_width=3)
        if kind == "minus":
            line.set("stroke-dasharray", "7 4")
        add(root, "text", "note", text, x=x + 33, y=y - 4)
        x += wide + 12
    return y


def _finished(root: Element, width: float, height: float) -> Plot:
    """The document with its size, its rules, and ids that no other drawing on a page has."""
    root.set("xmlns", "http://www.w3.org/2000/svg")
    root.set("viewBox", f"0 0 {width:.0f} {height:.0f}")
    root.set("width", f"{width:.0f}")
    root.set("height", f"{height:.0f}")
    own = "cw" + hashlib.sha256(markup(root).encode("utf-8", "replace")).hexdigest()[:10]
    for element in root[:2]:
        element.set("id", f"{own}-{element.tag}")
    root.set("id", own)
    root.set("aria-labelledby", f"{own}-title {own}-desc")
    style = Element("style")
    style.text = _bound(f"{rules()}{_OWN}", own)
    root.insert(2, style)
    return Plot(markup(root).encode("utf-8", "replace").decode("utf-8"))


def _bound(text: str, own: str) -> str:
    """Style rules with the palette put in, for what is inside the element `own` alone."""
    made = []
    for selectors, body in re.findall(r"([^{}]+)\{([^{}]*)\}", text):
        names = [name.strip().removeprefix("svg ").strip() for name in selectors.split(",")]
        names = [f"#{own} {name}" for name in names if name != "svg" and ":hover" not in name]
        filled = re.sub(r"var\(--(\w+)\)", lambda found: PALETTE[found[1]], body.strip())
        if names:
            made.append(f"{', '.join(names)} {{ {filled} }}")
    return "\n".join([f"#{own} text {{ font-family: {PALETTE['sans']}; }}", *made])
