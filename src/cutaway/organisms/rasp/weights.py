"""A plan to weights: what each head and each neuron reads and writes.

Attention. The score of a selected key is `SHARPNESS` above that of the begin token, and that of any other key as much
below it, so that an empty selection falls on the begin token (as in Tracr; Lindner et al. 2023,
arXiv:2301.05062). A key's code has one direction 1, the begin token's none, so no query needs to know where the begin
token is. Where it has to be told apart after all, its mark is read.

Maps. A neuron of a category reads the directions of the values with one result; of two categories, it fires where both
agree with a result; of a number, two neurons make a step between neighbouring values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from .language import Aggregate, Map, Sequence, Share, is_numerical
from .layout import Layout

SHARPNESS = 20.0
Row = dict[int, float]  # a vector by its entries that are not 0


@dataclass
class HeadWeights:
    """One head: a row a dimension of query (with its bias) and key, and of the value, with what it writes."""

    query: list[Row] = field(default_factory=list)
    query_bias: list[float] = field(default_factory=list)
    key: list[Row] = field(default_factory=list)
    value: list[Row] = field(default_factory=list)
    out: list[Row] = field(default_factory=list)


@dataclass(frozen=True)
class Neuron:
    """relu(reads · x + bias), which adds `writes` times itself to the stream."""

    reads: Row
    bias: float
    writes: Row


def head(operation: Aggregate | Share, layout: Layout) -> HeadWeights:
    """The head that computes an aggregate, or what attention leaves to the begin token."""
    made = HeadWeights()
    _attend(operation, layout, made)
    if isinstance(operation, Share):
        made.value, made.out = [{layout.mark: 1.0}], [{layout.rows[operation].start: 1.0}]
        return made
    values, default = operation.values, layout.code(operation, operation.default)
    for direction, read in _copied(operation, layout).items():
        # At the begin token the value is the default's, whatever the sequence holds there.
        held = layout.code(values, layout.begin[values])
        there = default.get(direction, 0.0) - sum(held.get(place, 0.0) * by for place, by in read.items())
        made.value.append(_sum(read, {layout.mark: there}))
        made.out.append({direction: 1.0})
    return made


def _copied(operation: Aggregate, layout: Layout) -> dict[int, Row]:
    """What each direction of an aggregate takes from the values' directions."""
    values, first = operation.values, layout.rows[operation].start
    if is_numerical(operation):
        return {first: {layout.rows[values].start: 1.0}}
    known = layout.values.held(values)
    held = layout.values.held(operation)
    return {first + place: layout.code(values, value) if value in known else {} for place, value in enumerate(held)}


def _attend(operation: Aggregate | Share, layout: Layout, made: HeadWeights) -> None:
    """Queries and keys. Keys that every query treats alike share a dimension."""
    selector, share = operation.selector, isinstance(operation, Share)
    keys, queries = (layout.values.held(part) for part in (selector.keys, selector.queries))
    chosen, other = (0.0, -SHARPNESS) if share else (SHARPNESS, -SHARPNESS)
    table = {key: tuple(chosen if selector.predicate(key, query) else other for query in queries) for key in keys}
    # Softmax sees differences only: where all keys are alike, the begin token differs from them and none is read.
    level = table[keys[0]] if len(set(table.values())) == 1 else (0.0,) * len(queries)
    rows: dict[tuple[float, ...], Row] = {}
    for key, scores in table.items():
        table[key] = scores = tuple(score - base for score, base in zip(scores, level, strict=True))
        rows.setdefault(scores, {}).update(layout.code(selector.keys, key))
    there = table.get(layout.begin[selector.keys], (0.0,) * len(queries))
    begin = tuple(-base - score for base, score in zip(level, there, strict=True))
    rows.setdefault(begin, {})[layout.mark] = 1.0
    for scores, read in rows.items():
        if not any(scores):
            continue
        same = len(set(scores)) == 1
        made.key.append(read)
        made.query_bias.append(scores[0] if same else 0.0)
        codes = zip(queries, scores, strict=True)
        made.query.append({} if same else _sum(*(_coded(selector.queries, layout, query, by) for query, by in codes)))


def neurons(operation: Map, layout: Layout) -> list[Neuron]:
    """The neurons that compute a map."""
    if len(operation.sources) == 2:
        made = _of_two(operation, layout)
    else:
        made = _steps(operation, layout) if is_numerical(operation.sources[0]) else _of_one(operation, layout)
    return [neuron for neuron in made if neuron.writes]


def _of_one(operation: Map, layout: Layout) -> list[Neuron]:
    (source,) = operation.sources
    reads: dict[Any, Row] = {}
    for value in layout.values.held(source):
        reads.setdefault(operation.function(value), {}).update(layout.code(source, value))
    return [Neuron(read, 0.0, layout.code(operation, result)) for result, read in reads.items()]


def _of_two(operation: Map, layout: Layout) -> list[Neuron]:
    first, second = operation.sources
    made = []
    for value in layout.values.held(first):
        reads: dict[Any, Row] = {}
        for other in layout.values.held(second):
            reads.setdefault(operation.function(value, other), {}).update(layout.code(second, other))
        for result, read in reads.items():
            made.append(Neuron(_sum(layout.code(first, value), read), -1.0, layout.code(operation, result)))
    return made


def _steps(operation: Map, layout: Layout) -> list[Neuron]:
    """A neuron that is always 1 writes the first result; each step on the way up writes what changes."""
    (source,) = operation.sources
    values = layout.values.held(source)
    results = [layout.code(operation, operation.function(value)) for value in values]
    made, read = [Neuron({}, 1.0, results[0])], layout.rows[source].start
    for (low, high), (before, after) in zip(pairwise(values), pairwise(results), strict=True):
        change, slope = _sum(after, {place: -by for place, by in before.items()}), 2 / (high - low)
        for end, sign in ((low + (high - low) / 4, 1.0), (high - (high - low) / 4, -1.0)):
            made.append(Neuron({read: slope}, -slope * end, {place: sign * by for place, by in change.items()}))
    return made


def _coded(sequence: Sequence, layout: Layout, value: Any, by: float = 1.0) -> Row:
    """A value's code, times a number."""
    return {place: by * entry for place, entry in layout.code(sequence, value).items()}


def _sum(*rows: Row) -> Row:
    total: Row = {}
    for row in rows:
        for place, by in row.items():
            total[place] = total.get(place, 0.0) + by
    return {place: by for place, by in total.items() if by}
