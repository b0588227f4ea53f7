"""A RASP-like language: programs over sequences as plain expressions (Weiss, Goldberg, Yahav 2021, arXiv:2106.06981).

A sequence has one value a position. It is categorical (any of finitely many values; a transformer holds it one-hot) or
numerical (a number; it is held as one). A selector says for every query position which key positions it attends to.
Expressions are compared by identity: one object used twice is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class Source:
    """A sequence that needs no computing: the tokens, the indices (0 is the first token's), or one constant value."""

    name: str
    constant: Hashable = None


@dataclass(frozen=True, eq=False)
class Map:
    """A function of the values of one or two sequences at each position; None, or 0, where one has no value."""

    function: Callable[..., Any]
    sources: tuple[Sequence, ...]
    numerical: bool
    name: str


@dataclass(frozen=True, eq=False)
class Selector:
    """Which keys a query attends to: those where `predicate(key, query)` holds."""

    keys: Sequence
    queries: Sequence
    predicate: Callable[[Any, Any], bool]


@dataclass(frozen=True, eq=False)
class Aggregate:
    """The mean of the selected values, or `default` where nothing is selected."""

    selector: Selector
    values: Sequence
    default: Any
    name: str


@dataclass(frozen=True, eq=False)
class Share:
    """1 / (1 + number of selected positions): what attention leaves to a further place that is always selected."""

    selector: Selector
    name: str


Sequence = Source | Map | Aggregate | Share
tokens, indices = Source("tokens"), Source("indices")


def constant(value: Hashable) -> Source:
    """The same category at every position."""
    return Source(f"constant {value}", value)


def map(function: Callable[[Any], Any], source: Sequence, *, numerical: bool = False, name: str = "map") -> Map:
    """The function of each value; of a numerical sequence, that of the nearest number that can occur."""
    return Map(function, (source,), numerical, name)


def sequence_map(
    function: Callable[[Any, Any], Any],
    first: Sequence,
    second: Sequence,
    *,
    numerical: bool = False,
    name: str = "map",
) -> Map:
    """A function of two categorical sequences, position by position. ValueError for a numerical one."""
    for source in (first, second):
        _refuse_numerical(source, "sequence_map")
    return Map(function, (first, second), numerical, name)


def select(keys: Sequence, queries: Sequence, predicate: Callable[[Any, Any], bool]) -> Selector:
    """For each query the keys where the predicate holds, both categorical. ValueError for a numerical sequence."""
    for source in (keys, queries):
        _refuse_numerical(source, "select")
    return Selector(keys, queries, predicate)


def aggregate(selector: Selector, values: Sequence, *, default: Any = None, name: str = "aggregate") -> Aggregate:
    """The mean of the selected values: numerical, or categorical where all that is selected at once is equal.

    `default` is the value where nothing is selected: 0 for numbers, and no value (None) for categories.
    """
    return Aggregate(selector, values, 0 if default is None and is_numerical(values) else default, name)


def selector_width(selector: Selector, *, name: str = "width") -> Map:
    """How many positions are selected, as a category: read off from what attention leaves to the begin token."""
    return map(lambda share: round(1 / share) - 1, Share(selector, f"share of {name}"), name=name)


def is_numerical(sequence: Sequence) -> bool:
    """Whether a sequence holds numbers rather than categories."""
    if isinstance(sequence, Aggregate):
        return is_numerical(sequence.values)
    return isinstance(sequence, Share) or (isinstance(sequence, Map) and sequence.numerical)


def sources_of(sequence: Sequence) -> tuple[Sequence, ...]:
    """The sequences that one is computed from, without the selector's where it attends to all alike."""
    if isinstance(sequence, Map):
        return sequence.sources
    if isinstance(sequence, Source):
        return ()
    own = (sequence.selector.keys, sequence.selector.queries)
    return (*own, sequence.values) if isinstance(sequence, Aggregate) else own


def _refuse_numerical(sequence: Sequence, operation: str) -> None:
    if is_numerical(sequence):
        raise ValueError(f"{operation} takes categories and '{sequence.name}' is numerical; map it to categories first")
