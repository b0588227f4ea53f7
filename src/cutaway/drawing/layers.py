"""A layered layout of a circuit: a row for each block in order of execution, the sources below, the output on top.

The steps are those of Sugiyama et al. (1981): rows, a place in each row for edges that pass it, an order in each row by
the mean of the neighbours, coordinates that pull neighbours together and keep their distance. Nothing is random, so the
same circuit always gives the same picture.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

GAP, PASS = 16.0, 6.0  # between neighbours; the width of a place for a passing edge, with half the gap around it
ROUTED = 48  # so many of the strongest edges get places of their own in the rows they pass; the rest run behind
SWEEPS = 12
_UNIT = re.compile(r"^(?P<block>.+)\.(?P<unit>(?:h|n|c|u|kv|latent)\d+|error)$")
_LAYER = re.compile(r"^L(\d{1,6})\.")
_SPOT = re.compile(r"@(\d{1,9})$")


@dataclass
class Place:
    """A node, or a place where edges of one writer pass a row (`node` is then ""). `x` is its middle; `room` is kept
    free on its right for edges from the node to itself."""

    node: str
    row: int
    width: float
    x: float = 0.0
    room: float = 0.0
    ports: list[str] = field(default_factory=list)

    def port(self, name: str) -> float:
        """Where edges into a port arrive."""
        if name not in self.ports:
            return self.x
        widths = [port_width(port) for port in self.ports]
        place = self.ports.index(name)
        return self.x - sum(widths) / 2 + sum(widths[:place]) + widths[place] / 2


@dataclass(frozen=True)
class Arrow:
    """An edge to draw: from a node to a port ("" for the only one) of a node."""

    writer: str
    node: str
    port: str
    effect: float


@dataclass(frozen=True)
class Layout:
    """Rows from the bottom up: their labels, the nodes by name, and the places that each forward arrow passes.

    `columns` are the middles of positions, where nodes stand apart by position.
    """

    labels: tuple[str, ...]
    nodes: dict[str, Place]
    passes: dict[Arrow, tuple[Place, ...]]
    width: float
    columns: dict[int, float] = field(default_factory=dict)


def port_width(port: str) -> float:
    """What a port's name takes below a node."""
    return max(18.0, 6.4 * min(len(port), 6) + 7)


def split(name: str) -> tuple[str, str]:
    """A node's block and its own part of the name: "L0.attn.h3" is ("L0.attn", "h3"), "L2.mlp" is ("L2.mlp", "mlp").

    The position of "L0.attn.h3@5" is part of neither.
    """
    name = _SPOT.sub("", name)
    if found := _UNIT.match(name):
        return found["block"], found["unit"]
    return name, name.rpartition(".")[2] if _LAYER.match(name) else name


def reads(reader: str, known: Iterable[str]) -> tuple[str, str]:
    """The node and the port of a reader: "L1.attn.h2.k" is ("L1.attn.h2", "k"); "logits" has no port."""
    node, dot, port = reader.rpartition(".")
    return (reader, "") if not dot or reader in known else (node, port)


def lay_out(arrows: Sequence[Arrow], order: Sequence[str], by_position: bool = False) -> Layout:
    """Places for the nodes of arrows, strongest first. `order`: nodes in order of execution, as far as it is known.

    With `by_position` a node "NAME@5" stands in the column of position 5.
    """
    names = list(dict.fromkeys([*order, *(end for arrow in arrows for end in (arrow.writer, arrow.node))]))
    labels, row_of = _rows(arrows, names, set(order))
    nodes = {name: Place(name, row_of[name], 0.0) for name in names}
    for arrow in arrows:
        if arrow.port and arrow.port not in nodes[arrow.node].ports:
            nodes[arrow.node].ports.append(arrow.port)
    for place in nodes.values():
        place.ports.sort(key=lambda port: ("qkv".find(port) if port in ("q", "k", "v") else 9, port))
        place.width = max(46.0, 7.4 * len(split(place.node)[1][:24]) + 20, sum(map(port_width, place.ports)) + 8)
    arched = set()
    for arrow in arrows:
        if nodes[arrow.writer].row == nodes[arrow.node].row:
            arched.add(nodes[arrow.node].row)
            if arrow.writer == arrow.node:
                nodes[arrow.node].room = (nodes[arrow.node].room or 20.0) + 11.0
    rows: list[list[Place]] = [[] for _ in labels]
    for place in nodes.values():
        rows[place.row].append(place)
        place.room += 30.0 if place.row in arched else 0.0
    if by_position:
        width, columns = _in_columns(rows)
        return Layout(labels, nodes, dict.fromkeys(arrows, ()), width, columns)
    passes = _passes(arrows, nodes, rows)
    links = _links(arrows, nodes, passes)
    _order(rows, links)
    width = _coordinates(rows, links)
    return Layout(labels, nodes, passes, width)


def _rows(arrows: Sequence[Arrow], names: Sequence[str], known: set[str]) -> tuple[tuple[str, ...], dict[str, int]]:
    """Row labels from the bottom up, and the row of each node."""
    read = {arrow.node for arrow in arrows if arrow.writer != arrow.node}
    writes = {arrow.writer for arrow in arrows}
    sources = [name for name in names if name not in read and not _LAYER.match(name)]
    ends = [name for name in names if name not in known and name not in writes and not _LAYER.match(name)]
    blocks = list(dict.fromkeys(split(name)[0] for name in names if name in known and name not in [*sources, *ends]))
    for name in names:  # readers whose node the circuit does not list stand right after what they read
        block = split(name)[0]
        if block not in blocks and name not in sources and name not in ends:
            before = {split(arrow.writer)[0] for arrow in arrows if arrow.node == name}
            after = [n + 1 for n, other in enumerate(blocks) if other in before or _earlier(other, block)]
            blocks.insert(max(after, default=0), block)
    labels = (["sources"] if sources else []) + blocks + (["output"] if ends else [])
    first = 1 if sources else 0
    row_of = dict.fromkeys(sources, 0) | dict.fromkeys(ends, len(labels) - 1)
    for name in names:
        if name not in row_of:
            row_of[name] = first + blocks.index(split(name)[0])
    return tuple(labels), row_of


def _earlier(block: str, other: str) -> bool:
    """Whether both are blocks of one kind, the first with the smaller number."""
    one, two = _LAYER.match(block), _LAYER.match(other)
    if not one or not two or block[one.end() :] != other[two.end() :]:
        return False
    return int(one[1]) < int(two[1])


def _passes(
    arrows: Sequence[Arrow], nodes: dict[str, Place], rows: list[list[Place]]
) -> dict[Arrow, tuple[Place, ...]]:
    """Places in the rows between; arrows of one writer and sign share them, so that they run as one bundle."""
    shared: dict[tuple[str, bool, int], Place] = {}
    found: dict[Arrow, tuple[Place, ...]] = {}
    for number, arrow in enumerate(arrows):
        between = range(nodes[arrow.writer].row + 1, nodes[arrow.node].row if number < ROUTED else 0)
        passed = []
        for row in between:
            key = (arrow.writer, arrow.effect < 0, row)
            if key not in shared:
                shared[key] = Place("", row, PASS)
                rows[row].append(shared[key])
            passed.append(shared[key])
        found[arrow] = tuple(passed)
    return found


def _links(
    arrows: Sequence[Arrow], nodes: dict[str, Place], passes: dict[Arrow, tuple[Place, ...]]
) -> dict[int, list[tuple[Place, float]]]:
    """The neighbours of each place in the rows above and below it, with weights; keyed by identity."""
    top = max((abs(arrow.effect) for arrow in arrows), default=0.0) or 1.0
    links: dict[int, list[tuple[Place, float]]] = defaultdict(list)
    for arrow in arrows:
        chain = [nodes[arrow.writer], *passes[arrow], nodes[arrow.node]]
        if chain[0].row >= chain[-1].row:
            continue
        for one, other in zip(chain, chain[1:], strict=False):
            # bundles are kept straight, and strong edges short; edges that run behind others hardly count
            straight = 4.0 if not one.node and not other.node else 1.0
            weight = (0.1 + abs(arrow.effect) / top) * straight / abs(one.row - other.row)
            links[id(one)].append((other, weight))
            links[id(other)].append((one, weight))
    return links


def _order(rows: list[list[Place]], links: dict[int, list[tuple[Place, float]]]) -> None:
    """Put each row in the order of its neighbours' means, sweeping up and down."""
    rank = {id(place): spot - (len(row) - 1) / 2 for row in rows for spot, place in enumerate(row)}
    for sweep in range(SWEEPS):
        upward = sweep % 2 == 0
        for row in rows if upward else reversed(rows):
            wanted: dict[int, float] = {}
            for place in row:
                near = [(other, weight) for other, weight in links[id(place)] if (other.row < place.row) == upward]
                total = sum(weight for _, weight in near)
                pulled = sum(rank[id(other)] * weight for other, weight in near)
                wanted[id(place)] = pulled / total if near else rank[id(place)]
            row.sort(key=lambda place: wanted[id(place)])
            for spot, place in enumerate(row):
                rank[id(place)] = spot - (len(row) - 1) / 2


def _coordinates(rows: list[list[Place]], links: dict[int, list[tuple[Place, float]]]) -> float:
    """Set every x, and return the width of the whole."""
    for row in rows:
        _settle(row, [0.0] * len(row), [1.0] * len(row))
    for sweep in range(2 * SWEEPS):
        for row in rows if sweep % 2 == 0 else reversed(rows):
            wanted, weights = [], []
            for place in row:
                near = links[id(place)]
                total = sum(weight for _, weight in near)
                wanted.append(sum(other.x * weight for other, weight in near) / total if near else place.x)
                weights.append(total or 0.1)
            _settle(row, wanted, weights)
    places = [place for row in rows for place in row]
    left = min((place.x - place.width / 2 for place in places), default=0.0)
    for place in places:
        place.x -= left
    return max((place.x + place.width / 2 + place.room for place in places), default=0.0)


def _in_columns(rows: list[list[Place]]) -> tuple[float, dict[int, float]]:
    """Set every x so that each position has a column; the width of all, and the middle of each column."""
    held: dict[int, dict[int, list[Place]]] = defaultdict(lambda: defaultdict(list))
    for row, places in enumerate(rows):
        for place in places:
            held[int(found[1]) if (found := _SPOT.search(place.node)) else -1][row].append(place)
    left, columns = 0.0, {}
    for spot in sorted(held):
        widths = [sum(place.width + place.room + GAP for place in places) for places in held[spot].values()]
        whole = max([*widths, 62.0])
        columns[spot] = left + whole / 2
        for places, own in zip(held[spot].values(), widths, strict=True):
            x = columns[spot] - own / 2
            for place in places:
                place.x = x + (place.width + GAP) / 2
                x += place.width + place.room + GAP
        left += whole
    return left, columns


def _settle(row: list[Place], wanted: list[float], weights: list[float]) -> None:
    """The x nearest to what each place wants (least squares) that keep order and distance, by pooling violators."""
    offsets = [0.0]
    for one, other in zip(row, row[1:], strict=False):
        gap = GAP if one.node and other.node else GAP / 2
        offsets.append(offsets[-1] + (one.width + other.width) / 2 + one.room + gap)
    pools: list[list[float]] = []  # [mean, weight, members]
    for want, offset, weight in zip(wanted, offsets, weights, strict=False):
        pools.append([want - offset, weight, 1])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            mean, heavy, count = pools.pop()
            last = pools[-1]
            last[0] = (last[0] * last[1] + mean * heavy) / (last[1] + heavy)
            last[1] += heavy
            last[2] += count
    spots = iter(zip(row, offsets, strict=False))
    for mean, _, count in pools:
        for _ in range(int(count)):
            place, offset = next(spots)
            place.x = mean + offset
