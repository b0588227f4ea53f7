"""The page of a latent as a drawing: its examples in context, how strongly it fires, and its words.

Takes the plain data of a page. Texts are lines of tokens shaded by activation, images are the input beside a map of
activations, series are curves with a shaded strip below them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

from .heat import shade
from .plot import Plot, compose
from .svg import add, canvas, figure, markup

WIDE, LINE, LETTER, LEFT = 900.0, 21.0, 7.25, 64.0
MAP, MOST_CELLS = 92.0, 32  # a map's side, and cells along it
_SIDES = (("promoted", "writes: promotes"), ("suppressed", "suppresses"), ("read", "reads from the embedding"))


def latent_page(page: Mapping[str, Any]) -> Plot:
    """A page's drawing; `page` is what `Page.to_dict` gave."""
    about = page["about"]
    notes = [
        f"{about['dictionary']}, {about['latents']:,} latents of {about['sites']}"
        + (f" in {about['network']}" if about["network"] else ""),
        f"Fires on {about['fired']:,} of {_rows(about['rows'])}: {about['density']:.3%} (95 % {about['low']:.3%} to "
        f"{about['high']:.3%}); at most {figure(about['max'])}, {figure(about['mean'])} on average where it fires.",
    ]
    if page["label"]:
        score = page["label"]["score"]
        notes.append(f"Label: {page['label']['text']}. On held-out examples: precision {score['precision']:.2f}, "
                     f"recall {score['recall']:.2f}, F1 {score['f1']:.2f}.")  # fmt: skip
    return compose(f"Latent {page['latent']}", notes, [], [_examples(page), _bars(page["histogram"]), _lists(page)])


def _examples(page: Mapping[str, Any]) -> str:
    groups = [("strongest", page["top"])]
    groups += [(f"{figure(low, 2)} to {figure(high, 2)}: {_rows(count)}", shown)
               for low, high, count, shown in page["intervals"] if shown]  # fmt: skip
    groups = [(name, shown) for name, shown in groups if shown]
    if not groups:
        return ""
    most = max(page["about"]["max"], 1e-12)
    root = canvas(WIDE, 0, name="examples", title="Examples", description=f"examples of latent {page['latent']}")
    y = 4.0
    for name, examples in groups:
        y += 18
        add(root, "text", "axis", name, x=0, y=y)
        y += 8
        if examples[0]["tokens"]:
            for shown in examples:
                _line(root, y, shown, most, page["about"]["gap"])
                y += LINE
        else:
            y = _pictures(root, y, examples, most)
    root.set("height", f"{y + 4:.0f}")
    root.set("viewBox", f"0 0 {WIDE:.0f} {y + 4:.0f}")
    return markup(root)


def _rows(count: int) -> str:
    return f"{count:,} row{'s' * (count != 1)}"


def _line(root: Element, y: float, shown: Mapping[str, Any], most: float, gap: str) -> None:
    """Tokens in a line, the row's own in the middle; those that do not fit are left out at both ends."""
    texts = [token.replace("\n", "↵").replace(" ", "\N{NO-BREAK SPACE}") or "∅" for token in shown["tokens"]]
    texts = [text + gap.replace(" ", "\N{NO-BREAK SPACE}") for text in texts]
    low, high = 0, len(texts)
    at = shown["at"]
    while high - low > 1 and sum(map(len, texts[low:high])) * LETTER > WIDE - LEFT - 8:
        low, high = (low + 1, high) if at - low > high - 1 - at else (low, high - 1)
    add(root, "text", "tick", figure(shown["activation"], 2), x=LEFT - 10, y=y + 14, text_anchor="end")
    x = LEFT
    spread = shown["activations"] if len(shown["activations"]) == len(texts) else [0.0] * len(texts)
    for place in range(low, high):
        wide, value = len(texts[place]) * LETTER, spread[place]
        if value:
            cell = add(root, "rect", x=x, y=y + 1, width=wide, height=LINE - 3, fill=shade(0.85 * value / most))
            add(cell, "title", text=f"{texts[place]}: {figure(value)}")
        if place == at:
            add(root, "line", "notch", x1=x, x2=x + wide, y1=y + LINE - 2, y2=y + LINE - 2)
        ink = "#ffffff" if value > 0.6 * most else "#1d1e21"
        add(root, "text", text=texts[place], x=x, y=y + 14, style=f"fill:{ink};font:12px 'DejaVu Sans Mono',monospace",
            textLength=wide)  # fmt: skip
        x += wide


def _pictures(root: Element, y: float, examples: Sequence[Mapping[str, Any]], most: float) -> float:
    """Examples that are no texts, side by side; where the next row begins."""
    x = 0.0
    for shown in examples:
        parts = [part for part in (_seen(shown), _fired(shown, most)) if part]
        wide = max(len(parts) * (MAP + 6), 1) + 14
        if x + wide > WIDE:
            x, y = 0.0, y + MAP + 30
        for place, cells in enumerate(parts):
            _map(root, x + place * (MAP + 6), y, cells)
        said = f"example {shown['example']}" + (f", {shown['kind']}" if shown["kind"] else "")
        add(root, "text", "tick", f"{said}: {figure(shown['activation'], 2)}", x=x, y=y + MAP + 14)
        x += wide
    return y + MAP + 30


def _seen(shown: Mapping[str, Any]) -> list[list[str]]:
    """The input as rows of colours: an image of one or three channels, a series or a vector as grey values."""
    shape, values = list(shown["values_shape"]), shown["values"]
    if not shape:
        return []
    least, most = min(values), max(values)
    level = [round(255 * (value - least) / ((most - least) or 1)) for value in values]
    if len(shape) == 3:
        high, wide = shape[1:]
        planes = [level[plane * high * wide : (plane + 1) * high * wide] for plane in range(shape[0])]
        shown_planes = planes[:3] if len(planes) >= 3 else [planes[0]] * 3
        pixels = ["#" + "".join(f"{part:02x}" for part in pixel) for pixel in zip(*shown_planes, strict=True)]
        return _thinned([pixels[row * wide : (row + 1) * wide] for row in range(high)])
    wide = shape[-1] if len(shape) == 2 else math.ceil(math.sqrt(len(level)))
    return _thinned([[f"#{one:02x}{one:02x}{one:02x}" for one in level[at : at + wide]]
                     for at in range(0, len(level), wide)])  # fmt: skip


def _fired(shown: Mapping[str, Any], most: float) -> list[list[str]]:
    """The activations over positions as rows of colours; [] where there is one alone."""
    flat, shape = shown["activations"], shown["shape"]
    if len(flat) < 2 or math.prod(shape or (0,)) != len(flat):
        return []
    wide = shape[-1] if len(shape) == 2 else 1
    return _thinned([[shade(value / most) for value in flat[at : at + wide]] for at in range(0, len(flat), wide)])


def _thinned(rows: list[list[str]]) -> list[list[str]]:
    step = max(1, -(-max(len(rows), max(map(len, rows))) // MOST_CELLS))
    return [row[::step] for row in rows[::step]]


def _map(root: Element, x: float, y: float, cells: Sequence[Sequence[str]]) -> None:
    side = MAP / max(len(cells), max(map(len, cells)))
    high, wide = MAP / len(cells) if len(cells[0]) == 1 else side, side if len(cells[0]) > 1 else 18.0
    add(root, "rect", "grid", x=x - 1, y=y - 1, width=wide * len(cells[0]) + 2, height=high * len(cells) + 2,
        fill="#c9c4b8")  # fmt: skip
    for row, line in enumerate(cells):
        for column, fill in enumerate(line):
            add(root, "rect", x=x + column * wide, y=y + row * high, width=wide + 0.05, height=high + 0.05, fill=fill)


def _bars(histogram: Mapping[str, Sequence[float]]) -> str:
    """How often it fires how strongly; counts on a logarithmic scale."""
    counts, edges = histogram["counts"], histogram["edges"]
    if not counts:
        return ""
    wide, high = 300.0, 130.0
    told = f"{sum(counts):,.0f} activations from {figure(edges[0])} to {figure(edges[-1])}"
    root = canvas(wide, high + 44, name="activations", title="Activations", description=told)
    add(root, "text", "axis", "rows by activation (logarithmic)", x=0, y=14)
    top = math.log1p(max(counts))
    for place, count in enumerate(counts):
        if count:
            tall = max(math.log1p(count) / top * (high - 26), 1)
            step = wide / len(counts)
            bar = add(root, "rect", "bar", x=place * step, y=high - tall, width=step - 1.5, height=tall)
            add(bar, "title", text=f"{figure(edges[place])} to {figure(edges[place + 1])}: {_rows(int(count))}")
    add(root, "line", "zero", x1=0, x2=wide, y1=high, y2=high)
    for place, anchor in ((0, "start"), (-1, "end")):
        add(root, "text", "tick", figure(edges[place], 2), x=0 if place == 0 else wide, y=high + 16, text_anchor=anchor)
    return markup(root)


def _lists(page: Mapping[str, Any]) -> str:
    """The words of its directions, the tokens it fires on, and the latents near it."""
    columns = [(name, [(repr(word)[1:-1], figure(value, signed=True)) for word, value in page["words"].get(side, [])])
               for side, name in _SIDES]  # fmt: skip
    columns.append(("fires on", [(repr(row["token"])[1:-1], f"{row['fired']:,} of {row['of']:,}")
                                 for row in page["tokens"][:10]]))  # fmt: skip
    for key, name in (("nearest", "nearest by decoder"), ("together", "fire together")):
        columns.append((name, [(f"latent {latent}", figure(value, 2)) for latent, value in page[key]]))
    columns = [(name, rows) for name, rows in columns if rows]
    if not columns:
        return ""
    each = 190.0
    height = 30 + 16 * max(len(rows) for _, rows in columns)
    root = canvas(each * len(columns), height, name="words", title="Words", description="words and neighbours")
    for place, (name, rows) in enumerate(columns):
        add(root, "text", "axis", name, x=place * each, y=14)
        for line, (word, value) in enumerate(rows):
            y = 34 + 16 * line
            add(root, "text", "label", word[:16], x=place * each, y=y)
            add(root, "text", "tick", value, x=(place + 1) * each - 34, y=y, text_anchor="end")
    return markup(root)
