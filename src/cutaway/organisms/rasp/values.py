"""Which values each sequence of a program can take: what a transformer needs a direction or a threshold for."""

from __future__ import annotations

from typing import Any

from .language import Map, Sequence, Share, Source, is_numerical

DIGITS = 9  # numbers that agree to so many digits are one value


class Values:
    """The possible values of sequences over a vocabulary and up to a length, sorted; None (no value) among them.

    The sets may hold more than can occur, never less.
    """

    def __init__(self, vocabulary: tuple[Any, ...], length: int) -> None:
        self.vocabulary, self.length = vocabulary, length
        self._known: dict[Sequence, tuple[Any, ...]] = {}

    def __getitem__(self, sequence: Sequence) -> tuple[Any, ...]:
        if sequence not in self._known:
            self._known[sequence] = _sorted(self._possible(sequence))
        return self._known[sequence]

    def held(self, sequence: Sequence) -> tuple[Any, ...]:
        """The values without None: one direction each where the sequence is categorical."""
        return tuple(value for value in self[sequence] if value is not None)

    def nearest(self, sequence: Sequence, number: float) -> float:
        """The possible value of a numerical sequence that is nearest to a number."""
        return min(self.held(sequence), key=lambda value: abs(value - number))

    def _possible(self, sequence: Sequence) -> set[Any]:
        if isinstance(sequence, Source):
            known = {"tokens": self.vocabulary, "indices": range(self.length)}
            return set(known[sequence.name]) if sequence.constant is None else {sequence.constant}
        if isinstance(sequence, Map):
            rows: list[tuple[Any, ...]] = [()]
            for source in sequence.sources:
                rows = [(*row, value) for row in rows for value in self[source]]
            found = {absent(sequence) if None in row else sequence.function(*row) for row in rows}
            return {rounded(value) for value in found} if sequence.numerical else found
        if isinstance(sequence, Share):
            return {rounded(1 / (1 + count)) for count in range(self.length + 1)}
        values = self[sequence.values]
        return {*(self._means(values) if is_numerical(sequence) else values), sequence.default}

    def _means(self, values: tuple[float, ...]) -> set[float]:
        """The means of one to `length` of the values."""
        sums, found = {0.0}, set()
        for count in range(1, self.length + 1):
            sums = {rounded(total + value) for total in sums for value in values}
            found |= {rounded(total / count) for total in sums}
        return found


def rounded(value: float) -> float:
    """A number as it is compared with others."""
    return round(float(value), DIGITS)


def absent(sequence: Map) -> Any:
    """What a map gives where it is given no value: no number is 0, no category is None."""
    return 0.0 if sequence.numerical else None


def _sorted(values: set[Any]) -> tuple[Any, ...]:
    """Numbers by size, then other values by how they are written, then None."""

    def order(value: Any) -> tuple[bool, bool, Any]:
        number = isinstance(value, int | float)
        return value is None, not number, value if number else repr(value)

    return tuple(sorted(values, key=order))
