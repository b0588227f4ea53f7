"""What a program means: its value at every position of an input, computed as written."""

from __future__ import annotations

from collections.abc import Sequence as Listed
from typing import Any

from .language import Aggregate, Map, Selector, Sequence, Share, Source, is_numerical
from .values import absent, rounded


def interpret(program: Sequence, tokens: Listed[Any], *, causal: bool = False) -> list[Any]:
    """The program's value at each position; where `causal`, a query selects no later key.

    None stands for no value. ValueError when a categorical mean is taken of different values.
    """
    return _Run(tokens, causal).of(program)


class _Run:
    def __init__(self, tokens: Listed[Any], causal: bool) -> None:
        self.tokens, self.causal = list(tokens), causal
        self.known: dict[Sequence, list[Any]] = {}

    def of(self, sequence: Sequence) -> list[Any]:
        if sequence not in self.known:
            self.known[sequence] = self._computed(sequence)
        return self.known[sequence]

    def _computed(self, sequence: Sequence) -> list[Any]:
        places = range(len(self.tokens))
        if isinstance(sequence, Source):
            known = {"tokens": self.tokens, "indices": list(places)}
            return known[sequence.name] if sequence.constant is None else [sequence.constant for _ in places]
        if isinstance(sequence, Map):
            rows = zip(*(self.of(source) for source in sequence.sources), strict=True)
            return [absent(sequence) if None in row else sequence.function(*row) for row in rows]
        chosen = self._chosen(sequence.selector)
        if isinstance(sequence, Share):
            return [rounded(1 / (1 + len(keys))) for keys in chosen]
        values = self.of(sequence.values)
        return [_mean(sequence, [values[key] for key in keys]) for keys in chosen]

    def _chosen(self, selector: Selector) -> list[list[int]]:
        keys = list(enumerate(self.of(selector.keys)))
        return [
            [place for place, key in keys[: at + 1 if self.causal else None] if selector.predicate(key, query)]
            for at, query in enumerate(self.of(selector.queries))
        ]


def _mean(sequence: Aggregate, values: list[Any]) -> Any:
    if not values:
        return sequence.default
    if is_numerical(sequence):
        return rounded(sum(values) / len(values))
    if len(set(values)) > 1:
        raise ValueError(f"'{sequence.name}' takes the mean of the categories {values}; map them to numbers first")
    return values[0]
