"""A program to a plan: in which layer each operation runs, and which residual directions hold each sequence.

Heads run in the first half of a layer and maps in the second, each as early as what it reads allows.
"""

from __future__ import annotations

from collections.abc import Sequence as Listed
from dataclasses import dataclass
from typing import Any

from .language import Aggregate, Map, Sequence, Share, Source, is_numerical, sources_of
from .values import Values, absent

MARK = "begin"  # the direction that is 1 at the begin token alone; position embeddings write it


@dataclass(frozen=True)
class Layout:
    """Where everything is. `heads` and `maps` list each layer's operations, `rows` gives each sequence its directions.

    `begin` is what a sequence holds at the begin token, None where all its directions are 0 there. `labels` names
    every direction.
    """

    values: Values
    heads: tuple[tuple[Aggregate | Share, ...], ...]
    maps: tuple[tuple[Map, ...], ...]
    rows: dict[Sequence, slice]
    begin: dict[Sequence, Any]
    labels: tuple[str, ...]

    @property
    def mark(self) -> int:
        """The direction of the begin token's mark."""
        return len(self.labels) - 1

    def name(self, sequence: Sequence) -> str:
        """What a sequence is called here: its name, with a number where several have the same."""
        return self.labels[self.rows[sequence].start].partition(":")[0]

    def code(self, sequence: Sequence, value: Any) -> dict[int, float]:
        """How a value is written: the sequence's directions that are not 0. None is written as nothing."""
        if value is None or (is_numerical(sequence) and value == 0):
            return {}
        first = self.rows[sequence].start
        return {first: float(value)} if is_numerical(sequence) else {first + self.values[sequence].index(value): 1.0}


def lay_out(programs: Listed[Sequence], values: Values) -> Layout:
    """The plan of one or several programs that share a network. ValueError for what a transformer cannot hold."""
    order: dict[Sequence, int] = {}
    for program in programs:
        _visit(program, order)
    depth = max(1, *(half // 2 + 1 for half in order.values())) if order else 1
    heads: list[list[Aggregate | Share]] = [[] for _ in range(depth)]
    maps: list[list[Map]] = [[] for _ in range(depth)]
    rows: dict[Sequence, slice] = {}
    labels: list[str] = []
    for sequence, half in order.items():
        if isinstance(sequence, Map):
            maps[half // 2].append(sequence)
        elif not isinstance(sequence, Source):
            heads[half // 2].append(sequence)
        held = ("",) if is_numerical(sequence) else values.held(sequence)
        name = _unused(sequence.name, {label.partition(":")[0] for label in labels})
        rows[sequence] = slice(len(labels), len(labels) + len(held))
        labels += [f"{name}:{value}" if value != "" else name for value in held]
    _check(order, values)
    begin: dict[Sequence, Any] = {}
    for sequence in order:
        begin[sequence] = _at_begin(sequence, begin, values)
    return Layout(values, tuple(map(tuple, heads)), tuple(map(tuple, maps)), rows, begin, (*labels, MARK))


def _visit(sequence: Sequence, order: dict[Sequence, int]) -> None:
    """Put a sequence behind what it reads, with its half layer: even for heads, odd for maps, -1 for embeddings."""
    if sequence in order:
        return
    for source in sources_of(sequence):
        _visit(source, order)
    if isinstance(sequence, Source):
        order[sequence] = -1
        return
    ready = 1 + max(order[source] for source in sources_of(sequence))
    order[sequence] = ready + (ready + isinstance(sequence, Map)) % 2


def _check(order: dict[Sequence, int], values: Values) -> None:
    for sequence in order:
        for part in () if isinstance(sequence, Source | Map) else (sequence.selector.keys, sequence.selector.queries):
            if None in values[part]:
                raise ValueError(
                    f"'{part.name}' may have no value where '{sequence.name}' selects by it; give it a default"
                )


def _at_begin(sequence: Sequence, begin: dict[Sequence, Any], values: Values) -> Any:
    """What a sequence holds at the begin token, which attends to itself alone."""
    if isinstance(sequence, Source):
        return None
    if isinstance(sequence, Share):
        return 1.0
    if isinstance(sequence, Aggregate):
        return sequence.default
    there = [begin[source] for source in sequence.sources]
    if None in there:
        return absent(sequence)
    read = [
        values.nearest(source, value) if is_numerical(source) else value
        for source, value in zip(sequence.sources, there, strict=True)
    ]
    return sequence.function(*read)


def _unused(name: str, taken: set[str]) -> str:
    return next(tried for tried in (name, *(f"{name} {count}" for count in range(2, 99))) if tried not in taken)
