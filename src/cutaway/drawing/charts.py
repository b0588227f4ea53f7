"""Small charts as inline SVG: a curve, a histogram with marks, levels on a line, an interval in a table cell.

Each returns the drawing as text, or "" when there is nothing to draw. Figures that are not finite are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any
from xml.etree.ElementTree import Element

from .svg import add, canvas, figure, finite, markup, places, ticks

WIDTH, HEIGHT = 420, 236
LEFT, RIGHT, TOP, BOTTOM = 46, 16, 30, 44
BINS = 24
Scale = Callable[[float], float]


def curve(
    points: Sequence[Sequence[Any]],
    *,
    chosen: tuple[int, Any],
    target: Any,
    unit: str = "edges",
    control: tuple[Any, Any] = (None, None),
    what: str = "faithfulness",
) -> str:
    """Faithfulness (or `what`) over circuit sizes. points: [size, value]; `chosen`: the circuit itself, after pruning;
    `target`: the faithfulness that was aimed at, so that within 1 - target of 1 is the band shown; `control`: the
    lowest and highest faithfulness of random circuits of the chosen size."""
    known = [(float(size), value) for size, raw in points if (value := finite(raw)) is not None and size >= 1]
    if not known:
        return ""
    size, reached = chosen[0], finite(chosen[1])
    sizes = [x for x, _ in known] + ([size] if size >= 1 and reached is not None else [])
    values = [y for _, y in known] + ([reached] if reached is not None else [])
    under, over = (finite(end) for end in control)
    values += [end for end in (under, over) if end is not None]
    title = f"{what.capitalize()} by number of {unit}"
    root = canvas(WIDTH, HEIGHT, name="curve", title=title, description=_told(known, unit))
    logarithmic = max(sizes) / min(sizes) > 30
    across = _across(min(sizes), max(sizes), logarithmic)
    up = _up(min(0.0, *values), max(1.1, *values))
    aim = finite(target)
    if aim is not None:
        high, low = up(2 - aim), up(aim)
        add(root, "rect", "band", x=LEFT, y=high, width=WIDTH - LEFT - RIGHT, height=max(low - high, 1))
    _rules(root, up, ticks(min(0.0, *values), max(1.1, *values), 5))
    add(root, "line", "one", x1=LEFT, x2=WIDTH - RIGHT, y1=up(1), y2=up(1))
    _below(root, across, _sizes(min(sizes), max(sizes), logarithmic), f"{unit} kept, in order of effect", "{:,.0f}")
    if under is not None and over is not None and size >= 1:
        x = across(size)
        bar = add(root, "line", "control", x1=x, x2=x, y1=up(under) + 1, y2=up(over) - 1)
        add(bar, "title", text=f"random circuits of {size} {unit}: {figure(under)} to {figure(over)}")
    add(root, "polyline", "path", points=" ".join(f"{across(x):.2f},{up(y):.2f}" for x, y in known))
    for x, y in known:
        dot = add(root, "circle", "dot", cx=across(x), cy=up(y), r=2.6)
        add(dot, "title", text=f"{x:.0f} {unit}: {figure(y)}")
    if reached is not None and size >= 1:
        ring = add(root, "circle", "chosen", cx=across(size), cy=up(reached), r=5.5)
        add(ring, "title", text=f"this circuit, {size} {unit}: {figure(reached)}")
    add(root, "text", "axis", what, x=4, y=14)
    return markup(root)


def histogram(
    values: Sequence[Any], *, name: str, title: str, axis: str, counted: str, marks: Sequence[tuple[str, Any]]
) -> str:
    """How many of `values` fall where, with `marks` (label, value) as labelled lines, the first one emphasised."""
    known = [value for raw in values if (value := finite(raw)) is not None]
    if not known:
        return ""
    told = [(label, value) for label, raw in marks if (value := finite(raw)) is not None]
    everything = [*known, *(value for _, value in told)]
    low, high = min(0.0, *everything), max(1.0, *everything)
    edge = (high - low) / BINS
    counts = [0] * BINS
    for value in known:
        counts[min(int((value - low) / edge), BINS - 1)] += 1
    marked = ", ".join(f"{label} {figure(value)}" for label, value in told)
    text = f"{len(known)} {counted} from {figure(min(known))} to {figure(max(known))}. {marked}."
    root = canvas(WIDTH, HEIGHT, name=name, title=title, description=text)
    across, up = _across(low, high, False), _up(0, max(counts), 2)
    _rules(root, up, [tick for tick in ticks(0, max(counts), 4) if tick == int(tick)])
    for place, count in enumerate(counts):
        if count:
            begin, end = low + place * edge, low + (place + 1) * edge
            width, height = max(across(end) - across(begin) - 1.5, 1), up(0) - up(count)
            bar = add(root, "rect", "bar", x=across(begin) + 0.75, y=up(count), width=width, height=height)
            add(bar, "title", text=f"{figure(begin)} to {figure(end)}: {count} {counted}")
    _below(root, across, ticks(low, high, 6), axis, "{:g}")
    for place, (label, value) in enumerate(told):
        kind = "mark first" if place == 0 else "mark"
        add(root, "line", kind, x1=across(value), x2=across(value), y1=TOP - 8 + 14 * place, y2=up(0))
        _flag(root, across(value), TOP - 12 + 14 * place, f"{label} {figure(value, 2)}", "first" if place == 0 else "")
    return markup(root)


def levels(rows: Sequence[tuple[str, Any]], *, axis: str) -> str:
    """A value a row, as dots on one scale; rows whose value is unknown are left out."""
    known = [(label, value) for label, raw in rows if (value := finite(raw)) is not None]
    if not known:
        return ""
    step, left, right = 36, 128, 50
    height = 14 + step * len(known) + 38
    digits = places(max(abs(value) for _, value in known))
    text = "; ".join(f"{label}: {figure(value, digits)}" for label, value in known)
    root = canvas(WIDTH, height, name="levels", title=f"{axis} in each run", description=text)
    low, high = min(0.0, *(value for _, value in known)), max(0.0, *(value for _, value in known))
    span = (high - low) or 1.0
    first, end = left + (right if low < 0 else 0), WIDTH - right

    def across(value: float) -> float:
        return first + (value - low) / span * (end - first)

    bottom = 14 + step * len(known)
    for tick in ticks(low, high, 6):
        add(root, "line", "rule", x1=across(tick), x2=across(tick), y1=10, y2=bottom)
        add(root, "text", "tick", _plain(tick, "{:g}"), x=across(tick), y=bottom + 15, text_anchor="middle")
    add(root, "line", "zero", x1=across(0), x2=across(0), y1=10, y2=bottom)
    for place, (label, value) in enumerate(known):
        y = 14 + step * (place + 0.5)
        kind = label.split()[0] if label.split()[0] in ("clean", "corrupted") else "part"
        add(root, "text", "label", label, x=left - 12, y=y + 4, text_anchor="end")
        add(root, "line", f"stem {kind}", x1=across(0), x2=across(value), y1=y, y2=y)
        add(root, "circle", f"end {kind}", cx=across(value), cy=y, r=5)
        near = across(value) + (10 if value >= 0 else -10)
        add(root, "text", "value", figure(value, digits), x=near, y=y + 4, text_anchor="start" if value >= 0 else "end")
    add(root, "text", "axis", axis, x=(first + end) / 2, y=height - 6, text_anchor="middle")
    return markup(root)


def interval(value: Any, low: Any, high: Any, *, name: str, what: str, bounds: tuple[float, float]) -> str:
    """A value and its interval on a line from bounds[0] to bounds[1], for a table's cell."""
    middle, left, right = finite(value), finite(low), finite(high)
    if middle is None:
        return ""
    width, height, pad = 132, 20, 8
    within = "" if left is None or right is None else f", interval {figure(left)} to {figure(right)}"
    root = canvas(width, height, name=name, title=what, description=f"{what} {figure(middle)}{within}", kind="interval")

    def across(where: float) -> float:
        return pad + (where - bounds[0]) / ((bounds[1] - bounds[0]) or 1) * (width - 2 * pad)

    add(root, "line", "rule", x1=pad, x2=width - pad, y1=height / 2, y2=height / 2)
    for end in (0, 1):
        if bounds[0] <= end <= bounds[1]:
            add(root, "line", "zero", x1=across(end), x2=across(end), y1=4, y2=height - 4)
    if left is not None and right is not None:
        add(root, "line", "span", x1=across(left), x2=across(right), y1=height / 2, y2=height / 2)
    add(root, "circle", "value", cx=across(middle), cy=height / 2, r=4)
    return markup(root)


def _across(low: float, high: float, logarithmic: bool) -> Scale:
    """Values to x, over the plot's width."""
    first, last = (math.log(low), math.log(high)) if logarithmic else (low, high)
    span, width = (last - first) or 1.0, WIDTH - LEFT - RIGHT
    middle = 0.5 if last == first else 0.0  # a single value stands in the middle
    return lambda value: LEFT + (middle + ((math.log(value) if logarithmic else value) - first) / span) * width


def _up(low: float, high: float, gap: float = 0) -> Scale:
    """Values to y, over the plot's height."""
    span = (high - low) or 1.0
    return lambda value: HEIGHT - BOTTOM - (value - low) / span * (HEIGHT - TOP - BOTTOM - gap)


def _rules(root: Element, up: Scale, at: Sequence[float]) -> None:
    for tick in at:
        add(root, "line", "rule", x1=LEFT, x2=WIDTH - RIGHT, y1=up(tick), y2=up(tick))
        add(root, "text", "tick", _plain(tick, "{:g}"), x=LEFT - 8, y=up(tick) + 4, text_anchor="end")


def _below(root: Element, across: Scale, at: Sequence[float], axis: str, form: str) -> None:
    bottom = HEIGHT - BOTTOM
    add(root, "line", "zero", x1=LEFT, x2=WIDTH - RIGHT, y1=bottom, y2=bottom)
    for tick in at:
        add(root, "line", "notch", x1=across(tick), x2=across(tick), y1=bottom, y2=bottom + 4)
        add(root, "text", "tick", _plain(tick, form), x=across(tick), y=bottom + 18, text_anchor="middle")
    add(root, "text", "axis", axis, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 6, text_anchor="middle")


def _flag(root: Element, x: float, y: float, text: str, kind: str = "") -> None:
    """A label at x, turned inwards at the sides."""
    half = 3.4 * len(text)
    anchor, shift = "middle", 0.0
    if x + half > WIDTH - 2:
        anchor, shift = "end", min(6.0, WIDTH - 2 - x)
    elif x - half < LEFT:
        anchor, shift = "start", -4.0
    add(root, "text", f"flag {kind}".strip(), text, x=x + shift, y=y, text_anchor=anchor)


def _sizes(low: float, high: float, logarithmic: bool) -> list[float]:
    """Whole numbers to write below an axis of sizes."""
    if not logarithmic:
        return [tick for tick in ticks(low, high, 6) if tick == int(tick)] or [low]
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [size for power in powers for size in (1 * 10**power, 3 * 10**power) if low <= size <= high]


def _plain(tick: float, form: str) -> str:
    return form.format(tick).replace("-", "\N{MINUS SIGN}")


def _told(points: Sequence[tuple[float, float]], unit: str) -> str:
    some = points if len(points) <= 6 else [points[place * (len(points) - 1) // 5] for place in range(6)]
    return "; ".join(f"{size:.0f} {unit}: {figure(value, 2)}" for size, value in some)
