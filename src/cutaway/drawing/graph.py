"""The drawing of a circuit: a row a block, sources at the bottom, logits on top; width is effect, colour is sign."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.etree.ElementTree import Element

from .layers import Arrow, Layout, Place, lay_out, reads, split
from .svg import add, canvas, figure, finite, markup, places

DRAWN, LABELLED, WIDEST = 400, 12, 7.0
FAINT = 0.02  # edges with less than this share of the largest effect are not labelled
UP, DOWN, LEFT = -90, 90, 180  # where a tip points
TALL, PORT = 26.0, 13.0  # a node's height, and what its ports add to it
MARGIN, LEAST = 20.0, 340.0  # around the picture; the least width, so that rows look like rows
Box = tuple[float, float, float, float]
Point = tuple[float, float]


@dataclass(frozen=True)
class Drawing:
    """The picture as text, and what it leaves out, to be said beside it."""

    svg: str
    edges: int
    weak: int
    outside: int
    grouped: bool
    largest: float
    labelled: int


@dataclass
class _Sheet:
    """What the parts of a drawing share: where the rows are, how wide the largest effect is, what is taken already."""

    layout: Layout
    left: float
    bottoms: list[float]
    largest: float
    width: float
    taken: list[Box] = field(default_factory=list)
    lines: dict[Arrow, list[Point]] = field(default_factory=dict)

    def x(self, place: Place) -> float:
        return self.left + place.x

    def top(self, place: Place) -> float:
        return self.bottoms[place.row] - self.height(place)

    @staticmethod
    def height(place: Place) -> float:
        return TALL + (PORT if place.ports else 0)

    def stroke(self, arrow: Arrow) -> float:
        return max(0.9, WIDEST * abs(arrow.effect) / self.largest)


def draw(circuit: Mapping[str, Any], *, by_position: bool = False, tokens: Sequence[str] = ()) -> Drawing:
    """The drawing of a circuit (as `Circuit.to_dict` gives it).

    An edge at several positions is drawn once, as wide as the strongest of them. The strongest 400 edges are drawn and
    the strongest 12 labelled. A circuit of nodes is drawn with the edges among its nodes only.

    With `by_position` a node is drawn at each position that it writes at, in columns that `tokens` name; an edge then
    ends where its reader's node next writes.
    """
    nodes = [str(name) for name in circuit.get("nodes") or []]
    merged = spread(circuit, nodes) if by_position else _merged(circuit.get("edges") or [], nodes)
    inside = merged
    if circuit.get("level") == "node" and not by_position:
        members = {*nodes, "logits"}
        inside = {arrow: rows for arrow, rows in merged.items() if arrow.node in members}
    arrows = sorted(inside, key=lambda arrow: -abs(arrow.effect))[:DRAWN]
    if not arrows:
        return Drawing("", 0, 0, len(merged), False, 0.0, 0)
    ends = {end for arrow in arrows for end in (arrow.writer, arrow.node)}
    order = [end for name in nodes for end in sorted(ends, key=_spot) if end.partition("@")[0] == name or end == name]
    layout = lay_out(arrows, order, by_position)
    largest = max(abs(arrow.effect) for arrow in arrows) or 1.0
    loops = [arrow for arrow in arrows if layout.nodes[arrow.writer].row >= layout.nodes[arrow.node].row]
    left = MARGIN + 7.2 * max(len(label[:20]) for label in layout.labels) + 28
    right = MARGIN + (44 if loops else 0)
    spare = max(0.0, LEAST - left - layout.width - right)
    width = left + layout.width + right + spare
    sheet = _Sheet(layout, left + spare / 2, _bottoms(layout, loops), largest, width)
    height = sheet.bottoms[0] + MARGIN + (26 if by_position else 0)
    strongest = arrows[0]
    title = f"Circuit of {len(inside)} connections among {len(ends)} nodes"
    effects = figure(strongest.effect, places(largest), signed=True)
    rows = f"Rows from the bottom up: {', '.join(layout.labels)}."
    told = f"{rows} Strongest: {_name(strongest)} {effects}. The table of edges lists all of them."
    root = canvas(width, height, name="graph", title=title, description=told, kind="graph")
    _bands(root, sheet, width)
    _columns(root, sheet, tokens)
    sheet.taken += [_box(sheet, place) for place in layout.nodes.values()]
    count = len(arrows) if len(arrows) <= LABELLED + 4 else LABELLED
    strong = {arrow for arrow in arrows[:count] if abs(arrow.effect) >= FAINT * largest}
    for arrow in reversed(arrows):  # the strongest on top
        _edge(root, sheet, arrow, _told(arrow, inside[arrow]), arrow in strong, loops)
    for place in layout.nodes.values():
        _node(root, sheet, place)
    labelled = sum(_label(root, sheet, arrow) for arrow in arrows if arrow in strong)
    grouped = any(split(name)[1].startswith("kv") for name in ends)
    weak, outside = len(inside) - len(arrows), len(merged) - len(inside)
    return Drawing(markup(root), len(inside), weak, outside, grouped, largest, labelled)


def bare(sources: Sequence[str]) -> str:
    """The drawing of a circuit without edges: its sources, the output, and nothing that leads to it."""
    names = ", ".join(sources)
    shown = (names if len(names) <= 40 else names[:39] + "…") or "sources"
    root = canvas(
        LEAST, 142, name="graph", title="Circuit of no connections", description="There are no edges.", kind="graph"
    )
    for label, y in (("logits", 20.0), (shown, 96.0)):
        wide = 7.4 * len(label) + 20
        group = add(root, "g", "node")
        add(group, "rect", "box", x=(LEAST - wide) / 2, y=y, width=wide, height=TALL, rx=5)
        add(group, "text", "name", label, x=LEAST / 2, y=y + 17, text_anchor="middle")
    add(root, "text", "spot", "no edges", x=LEAST / 2, y=75, text_anchor="middle")
    return markup(root)


def effect(row: Mapping[str, Any]) -> float:
    """An edge's exact effect, or its score where no exact one was measured."""
    exact = finite(row.get("exact"))
    return exact if exact is not None else finite(row.get("score")) or 0.0


def _merged(edges: Sequence[Any], nodes: Sequence[str]) -> dict[Arrow, list[Mapping[str, Any]]]:
    """One arrow for a writer and a reader, with the edges it stands for, the strongest first."""
    known = set(nodes)
    found: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in edges:
        writer, reader = str(row.get("writer", "?")), str(row.get("reader", "?"))
        found.setdefault((writer, *reads(reader, known)), []).append(row)
    merged = {}
    for (writer, node, port), rows in found.items():
        rows.sort(key=lambda row: -abs(effect(row)))
        merged[Arrow(writer, node, port, effect(rows[0]))] = rows
    return merged


def _name(arrow: Arrow) -> str:
    return f"{arrow.writer} → {arrow.node}" + (f".{arrow.port}" if arrow.port else "")


def spread(circuit: Mapping[str, Any], nodes: Sequence[str]) -> dict[Arrow, list[Mapping[str, Any]]]:
    """One arrow for each edge at a position, from the node there to the position `to` of the reader's node, or, where
    the edge does not say, to where that node next writes."""
    held: dict[str, list[int]] = {}
    rows = [row for row in circuit.get("edges") or [] if isinstance(row.get("position"), int)]
    for row in rows:
        held.setdefault(str(row.get("writer")), []).append(row["position"])
    last = max((row["position"] for row in rows), default=0)
    found: dict[tuple[str, str, str], tuple[Arrow, list[Mapping[str, Any]]]] = {}
    for row in rows:
        node, port = reads(str(row.get("reader")), set(nodes))
        at = row["position"]
        to = row.get("to")
        if not isinstance(to, int):
            to = min((spot for spot in held.get(node, ()) if spot >= at), default=max(held.get(node, (last,))))
        arrow = Arrow(f"{row.get('writer')}@{at}", f"{node}@{to}", port, effect(row))
        found.setdefault((arrow.writer, arrow.node, arrow.port), (arrow, [row]))
    return dict(found.values())


def _spot(name: str) -> tuple[str, int]:
    node, _, spot = name.rpartition("@")
    return (node, int(spot)) if node and spot.isdigit() else (name, -1)


def _columns(root: Element, sheet: _Sheet, tokens: Sequence[str]) -> None:
    """A line and a label for each position, where nodes stand apart by position."""
    for spot, middle in sheet.layout.columns.items():
        x, y = sheet.left + middle, sheet.bottoms[0] + 12
        add(root, "line", "column", x1=x, x2=x, y1=MARGIN / 2, y2=y)
        text = str(spot) + (f" {tokens[spot]}" if 0 <= spot < len(tokens) and tokens[spot] else "")
        add(root, "text", "spot", text if len(text) <= 12 else text[:11] + "…", x=x, y=y + 14, text_anchor="middle")


def _told(arrow: Arrow, rows: Sequence[Mapping[str, Any]]) -> str:
    """What an edge says when it is pointed at."""
    kind = "exact effect" if finite(rows[0].get("exact")) is not None else "score"
    text = f"{_name(arrow)}: {kind} {figure(arrow.effect, places(abs(arrow.effect), 3), signed=True)}"
    if rows[0].get("position") is None:
        return text
    spots = ", ".join(str(row.get("position")) for row in rows[:24]) + (" …" if len(rows) > 24 else "")
    return f"{text} at position {rows[0]['position']}; in the circuit at {spots}"


def _bottoms(layout: Layout, loops: Sequence[Arrow]) -> list[float]:
    """The y at which the nodes of each row stand; the last row is at the top of the picture."""
    gap = 62.0 if len(layout.labels) <= 10 else 48.0
    arched = {layout.nodes[arrow.writer].row for arrow in loops}
    bottoms, y = [], MARGIN
    for row in reversed(range(len(layout.labels))):
        ported = any(place.ports for place in layout.nodes.values() if place.row == row)
        y += (24 if row in arched else 0) + TALL + (PORT if ported else 0)
        bottoms.append(y)
        y += gap
    return bottoms[::-1]


def _bands(root: Element, sheet: _Sheet, width: float) -> None:
    """A stripe behind each row, with the row's name."""
    for row, label in enumerate(sheet.layout.labels):
        places = [place for place in sheet.layout.nodes.values() if place.row == row]
        tall = max((sheet.height(place) for place in places), default=TALL)
        y = sheet.bottoms[row] - tall
        add(root, "rect", "row", x=0, y=y - 7, width=width, height=tall + 14, rx=4)
        shown = add(root, "text", "rowname", label[:20], x=MARGIN - 6, y=y + tall / 2 + 4)
        if len(label) > 20:
            add(shown, "title", text=label)


def _box(sheet: _Sheet, place: Place) -> Box:
    x, y = sheet.x(place), sheet.top(place)
    return x - place.width / 2, y, x + place.width / 2, y + sheet.height(place)


def _node(root: Element, sheet: _Sheet, place: Place) -> None:
    left, top, right, _ = _box(sheet, place)
    group = add(root, "g", "node")
    add(group, "title", text=place.node + (f", reads {', '.join(place.ports)}" if place.ports else ""))
    add(group, "rect", "box", x=left, y=top, width=right - left, height=sheet.height(place), rx=5)
    name = split(place.node)[1]
    shown = name if len(name) <= 24 else name[:23] + "…"
    add(group, "text", "name", shown, x=sheet.x(place), y=top + 17, text_anchor="middle")
    for port in place.ports:
        add(group, "text", "port", port[:6], x=sheet.left + place.port(port), y=top + TALL + 8, text_anchor="middle")


def _edge(root: Element, sheet: _Sheet, arrow: Arrow, told: str, strong: bool, loops: Sequence[Arrow]) -> None:
    """Draw an edge, and note where its line is when it is a strong one."""
    width = sheet.stroke(arrow)
    sign = "minus" if arrow.effect < 0 else "plus"
    d, tip, turn, line = _arch(sheet, arrow, loops) if arrow in loops else _rise(sheet, arrow, width)
    group = add(root, "g", f"edge {sign}" + ("" if strong else " thin"))
    add(group, "title", text=told)
    add(group, "path", "reach", d=d)  # unseen and wide, so that a thin edge can be pointed at
    drawn = add(group, "path", "line", d=d, stroke_width=width)
    if sign == "minus":
        drawn.set("stroke-dasharray", f"{5 + 1.5 * width:.1f} {2.5 + 0.5 * width:.1f}")
    half, (x, y) = width / 2 + (3.2 if strong else 2.0), tip
    back = half * 1.5
    where = f"translate({x:.1f} {y:.1f}) rotate({turn})"
    add(group, "path", "tip", d=f"M0 0L{-back:.1f} {-half:.1f}V{half:.1f}Z", transform=where)
    if strong:
        sheet.lines[arrow] = line
        sheet.taken.append((x - half, y - 4, x + half, y + 14) if turn == UP else (x - 6, y - 12, x + 6, y + 2))


def _rise(sheet: _Sheet, arrow: Arrow, width: float) -> tuple[str, Point, int, list[Point]]:
    """A path upwards, straight through the places it passes; its tip, where that points, points on the last bend."""
    start, end = sheet.layout.nodes[arrow.writer], sheet.layout.nodes[arrow.node]
    x, y = sheet.x(start), sheet.top(start)
    tip = (sheet.left + end.port(arrow.port), sheet.top(end) + sheet.height(end) + 1)
    path = [f"M{x:.1f} {y:.1f}"]
    for place in sheet.layout.passes[arrow]:
        there, enter, leave = sheet.x(place), sheet.bottoms[place.row] + 4, sheet.bottoms[place.row] - TALL - PORT - 4
        path.append(_bend(x, y, there, enter) + f"V{leave:.1f}")
        x, y = there, leave
    stop = tip[1] + (width / 2 + 2.5) * 1.4
    lane = _lane(sheet, arrow)
    if lane is not None:
        enter, leave = y - 26, stop + 26
        path.append(_bend(x, y, lane, enter) + f"V{leave:.1f}" + _bend(lane, leave, tip[0], stop))
        return "".join(path), tip, UP, [(lane, enter + (leave - enter) * share / 8) for share in range(9)]
    path.append(_bend(x, y, tip[0], stop))
    half = (y + stop) / 2
    return "".join(path), tip, UP, _points((x, y), (x, half), (tip[0], half), (tip[0], stop))


def _lane(sheet: _Sheet, arrow: Arrow) -> float | None:
    """The x beside a column at which an edge passes the column's other nodes; None for one that meets none."""
    nodes = sheet.layout.nodes

    def ends(other: Arrow) -> tuple[int, float, float]:
        start, end = nodes[other.writer], nodes[other.node]
        return end.row - start.row, start.x, end.x

    span, start, end = ends(arrow)
    if not sheet.layout.columns or span < 2 or abs(start - end) > 1:
        return None
    beside = [other for other in sheet.layout.passes if ends(other)[0] > 1 and ends(other)[1:] == (start, end)]
    number = sorted(beside, key=lambda other: (ends(other)[0], _name(other))).index(arrow)
    side, far = (1, -1)[number % 2], 44 + 13 * (number // 2)
    return sheet.left + start + side * far


def _bend(x: float, y: float, to_x: float, to_y: float) -> str:
    half = (y + to_y) / 2
    return f"C{x:.1f} {half:.1f} {to_x:.1f} {half:.1f} {to_x:.1f} {to_y:.1f}"


def _arch(sheet: _Sheet, arrow: Arrow, loops: Sequence[Arrow]) -> tuple[str, Point, int, list[Point]]:
    """An edge that does not go up, as in a recurrence: beside its node, over its row, or around the right side down."""
    start, end = sheet.layout.nodes[arrow.writer], sheet.layout.nodes[arrow.node]
    nth = [other for other in loops if (other.writer, other.node) == (arrow.writer, arrow.node)].index(arrow)
    width, stop = sheet.stroke(arrow), (sheet.stroke(arrow) / 2 + 2.5) * 1.4
    if start is end:
        x, top = sheet.x(start) + start.width / 2, sheet.top(start)
        far, y, tip = x + 18 + 15 * nth, top + 7 - 3 * nth, (x + 1, top + sheet.height(start) - 11 + 5 * nth)
        corners = ((x, y), (far + 6, y - 6), (far + 6, tip[1] + 6), (tip[0] + stop, tip[1]))
        return _curve(*corners), tip, LEFT, _points(*corners)
    side = 1 if end.x > start.x else -1
    x, y = sheet.x(start) + side * (start.width / 2 - 10 - 7 * nth), sheet.top(start)
    tip = (sheet.x(end) - side * (end.width / 2 - 10 - 8 * nth), sheet.top(end) - 1)
    if start.row == end.row:
        high = y - 26 - min(26, abs(tip[0] - x) * 0.14) - width - 8 * nth
        corners = ((x, y), (x, high), (tip[0], high), (tip[0], tip[1] - stop))
        return _curve(*corners), tip, DOWN, _points(*corners)
    right = sheet.left + sheet.layout.width + 24
    out = _curve((x, y), (x, y - 30), (right, y - 30), (right, y + 20))
    back = _curve((right, tip[1] - 40), (right, tip[1] - 26), (tip[0], tip[1] - 26), (tip[0], tip[1] - stop))
    return out + "L" + back[1:], tip, DOWN, [(right, y + (tip[1] - y) * share / 8) for share in range(1, 8)]


def _curve(start: Point, one: Point, other: Point, end: Point) -> str:
    corners = " ".join(f"{x:.1f} {y:.1f}" for x, y in (one, other, end))
    return f"M{start[0]:.1f} {start[1]:.1f}C{corners}"


def _points(start: Point, one: Point, other: Point, end: Point) -> list[Point]:
    """Points along a cubic Bézier curve."""
    found = []
    for step in range(1, 25):
        t = step / 25
        a, b, c, d = (1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3
        x = a * start[0] + b * one[0] + c * other[0] + d * end[0]
        found.append((x, a * start[1] + b * one[1] + c * other[1] + d * end[1]))
    return found


def _label(root: Element, sheet: _Sheet, arrow: Arrow) -> bool:
    """An edge's effect beside it, where nothing stands and least else passes; False where there is no room."""
    text = figure(arrow.effect, 0 if sheet.largest >= 1000 else places(sheet.largest), signed=True)
    half, line = 3.5 * len(text) + 2, sheet.lines[arrow]
    own = _dots(line, sheet.stroke(arrow))
    foreign = ((other, points) for other, points in sheet.lines.items() if other is not arrow)
    others = [dot for other, points in foreign for dot in _dots(points, sheet.stroke(other))]
    aside = sheet.stroke(arrow) / 2 + half + 3
    over = -9.0 - sheet.stroke(arrow) / 2
    spots = ((aside, 0.0), (-aside, 0.0), (0.0, over), (aside + 13, 0.0), (aside + 26, 0.0), (0.0, 0.0))
    best: tuple[float, Box, Point] | None = None
    for step, (x, y) in enumerate(line):
        for dx, dy in spots:
            box = (x + dx - half, y + dy - 7, x + dx + half, y + dy + 7)
            if box[0] < MARGIN or box[2] > sheet.width - 4 or any(_meet(box, other) for other in sheet.taken):
                continue
            crossed, covered = sum(_meet(box, dot) for dot in others), sum(_meet(box, dot) for dot in own)
            cost = 3 * crossed + 2 * covered + abs(step - len(line) / 2) / len(line) + max(0.0, dx - aside) / 10
            if best is None or cost < best[0]:
                best = (cost, box, (x + dx, y + dy))
    if best is None:
        return False
    sheet.taken.append(best[1])
    kind = "effect " + ("minus" if arrow.effect < 0 else "plus")
    add(root, "text", kind, text, x=best[2][0], y=best[2][1] + 4, text_anchor="middle")
    return True


def _dots(line: Sequence[Point], width: float) -> list[Box]:
    """The squares that a line covers at its points."""
    half = width / 2
    return [(x - half, y - half, x + half, y + half) for x, y in line]


def _meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
