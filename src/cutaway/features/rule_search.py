"""Finding a rule for when a latent fires: clauses are grown test by test, and added as long as they earn their length.

What counts is F1 over all rows of the training examples, less a price for every test and value: the bits that it takes
to say it, as a share of the bits that it takes to say without a rule where the latent fires (a description length). So
a latent that fires seldom gets a short rule. Sets of tokens are exact: ordered by how often the latent fires on them,
the best set is one of the beginnings of that order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from .grounds import Ground
from .rules import Condition, Rule

LEAST = 0.001  # price of a test or a value, in F1, however much there is to say
_CHOICE = 100  # tests among which one is chosen, about
GAIN = 0.01  # of F1 that a further clause must bring
CLAUSES, TESTS, BEAM = 4, 3, 3
_REACHES = (8, 32, 0)
_SAMPLE = 1500  # rows of each side whose contexts are compared
_BINS = 16
Found = tuple[Condition, np.ndarray]


@dataclass(frozen=True, eq=False)
class _Clause:
    tests: tuple[Condition, ...]
    mask: np.ndarray
    value: float


@dataclass(frozen=True)
class Prices:
    """What a test, and each value in it, cost in F1."""

    test: float
    value: float

    @staticmethod
    def of(ground: Ground, fires: np.ndarray) -> Prices:
        """By the bits that say which of the rows fire."""
        share = max(float(fires.mean()), 1e-9)
        bits = len(fires) * -(share * np.log2(share) + (1 - share) * np.log2(max(1 - share, 1e-9)))
        each = (np.log2(_CHOICE), np.log2(max(ground.width if ground.is_text else _BINS, 2)))
        return Prices(*(max(float(one / max(bits, 1.0)), LEAST) for one in each))

    def cost(self, tests: Iterable[Condition]) -> float:
        """The price of some tests."""
        return sum(
            self.test + self.value * len(test.values) * (test.at if test.what == "ngram" else 1) for test in tests
        )


def find_rule(
    ground: Ground, fires: np.ndarray, *, clauses: int = CLAUSES, tests: int = TESTS, beam: int = BEAM, seed: int = 0
) -> Rule:
    """The rule for `fires` [rows]: at most so many clauses of at most so many tests, from a beam of beginnings."""
    rule, prices = Rule(()), Prices.of(ground, fires)
    covered = np.zeros(len(ground), bool)
    reached = 0.0
    if not fires.any():
        return rule
    for _ in range(clauses):
        spent = prices.cost(test for clause in rule.clauses for test in clause)
        best = _grown(ground, fires, covered, prices, (spent, tests, beam, seed))
        if best is None or best.value < reached + GAIN * bool(rule.clauses):
            break
        rule, covered, reached = Rule((*rule.clauses, best.tests)), covered | best.mask, best.value
    return rule


def _grown(
    ground: Ground, fires: np.ndarray, covered: np.ndarray, prices: Prices, limits: tuple[float, int, int, int]
) -> _Clause | None:
    """The best further clause. `limits`: what the rule costs so far, most tests, the beam's width, and a seed."""
    spent, tests, beam, seed = limits
    best: _Clause | None = None
    open_clauses = [_Clause((), np.ones(len(ground), bool), -1.0)]
    for _ in range(tests):
        grown: list[_Clause] = []
        for clause in open_clauses:
            for test, holds in candidates(ground, fires & ~covered, clause.mask & ~covered, seed, prices.value):
                if any(test.what == other.what and test.at == other.at for other in clause.tests):
                    continue
                mask = clause.mask & holds
                value = f1(covered | mask, fires) - spent - prices.cost((*clause.tests, test))
                if value > clause.value:
                    grown.append(_Clause((*clause.tests, test), mask, value))
        grown.sort(key=lambda clause: -clause.value)
        open_clauses = grown[:beam]
        if not grown or (best is not None and grown[0].value <= best.value):
            break
        best = grown[0]
    return best


def f1(said: np.ndarray, fires: np.ndarray) -> float:
    """2·hits / (said + fired): 1 where both agree on every row."""
    both, total = int((said & fires).sum()), int(said.sum()) + int(fires.sum())
    return 2 * both / total if total else 0.0


def candidates(
    ground: Ground, wanted: np.ndarray, within: np.ndarray, seed: int, price: float = LEAST
) -> Iterator[Found]:
    """Tests that tell `wanted` rows from the others `within` a clause, with where they hold."""
    made: list[Callable[[], Iterator[Found]]] = []
    if ground.is_text:
        made += [lambda: _token_sets(ground, wanted, within, price),
                 lambda: _ngrams(ground, wanted, within, price), lambda: _properties(ground, wanted, within),
                 lambda: _contexts(ground, wanted, within, seed)]  # fmt: skip
    made += [lambda: _positions(ground, wanted, within), lambda: _classes(ground, wanted, within, price),
             lambda: _limits(ground, wanted, within)]  # fmt: skip
    for make in made:
        yield from make()


def best_set(values: np.ndarray, wanted: np.ndarray, within: np.ndarray, width: int, price: float = LEAST) -> list[int]:
    """The values whose set has the highest F1 for `wanted` rows `within`, less the price of each."""
    counted = within & (values >= 0)
    every = np.bincount(values[counted], minlength=width)
    hits = np.bincount(values[counted & wanted], minlength=width)
    order = np.argsort(-(hits / (every + 1.0)), kind="stable")
    order = order[hits[order] > 0]
    if not len(order):
        return []
    score = 2 * np.cumsum(hits[order]) / (np.cumsum(every[order]) + max(int(wanted.sum()), 1))
    return [int(one) for one in order[: int(np.argmax(score - price * np.arange(len(order)))) + 1]]


def _token_sets(ground: Ground, wanted: np.ndarray, within: np.ndarray, price: float) -> Iterator[Found]:
    for offset in (0, -1, -2, -3):
        tokens = ground.at(offset)
        if chosen := best_set(tokens, wanted, within, ground.width, price):
            test = Condition("token", tuple(chosen), offset)
            yield test, test.holds(ground)
            if len(chosen) > 1:  # the first alone, of which a conjunction may make more
                test = Condition("token", tuple(chosen[:1]), offset)
                yield test, test.holds(ground)


def _ngrams(ground: Ground, wanted: np.ndarray, within: np.ndarray, price: float) -> Iterator[Found]:
    for length in (2, 3):
        known, numbers = np.unique(ground.ngrams(length), return_inverse=True)
        numbers = numbers - int(known[0] == -1)  # the first stands for rows that have none
        known = known[known >= 0]
        chosen = best_set(numbers, wanted, within, max(len(known), 1), price * length)
        if chosen:
            powers = ground.width ** np.arange(length - 1, -1, -1)
            values = [" ".join(str(known[one] // power % ground.width) for power in powers) for one in chosen]
            test = Condition("ngram", tuple(values), length)
            yield test, test.holds(ground)


def _properties(ground: Ground, wanted: np.ndarray, within: np.ndarray) -> Iterator[Found]:
    for offset in (0, -1):
        for name in ground.properties:
            for negated in (False, True):
                test = Condition("property", (name,), offset, negated)
                yield test, test.holds(ground)
    if not len(ground.vocabulary):
        return
    tokens = ground.tokens[ground.here]
    hits = np.bincount(tokens[wanted & within], minlength=ground.width)
    heavy = np.argsort(-hits, kind="stable")[:6]
    for token in heavy[hits[heavy] > 0].tolist():
        word = ground.word(token).strip()
        for length in (1, 2, 3):
            if len(word) > length:
                for test in (Condition("prefix", (word[:length],)), Condition("suffix", (word[-length:],))):
                    yield test, test.holds(ground)


def _contexts(ground: Ground, wanted: np.ndarray, within: np.ndarray, seed: int) -> Iterator[Found]:
    """Tokens that lie before wanted rows more often than before others, alone and with those next to them."""
    generator = np.random.default_rng(seed)
    sides = [np.flatnonzero(side) for side in (wanted & within, within & ~wanted)]
    if not all(len(side) for side in sides):
        return
    drawn = [generator.choice(side, min(_SAMPLE, len(side)), replace=False) for side in sides]
    for reach in _REACHES:
        share = [_share(ground, rows, reach or 64) for rows in drawn]
        order = np.argsort(-(share[0] - share[1]), kind="stable")[:4]
        for count in (1, 2, 4):
            test = Condition("contains", tuple(int(token) for token in order[:count]), reach)
            yield test, test.holds(ground)
        test = Condition("contains", (int(np.argmax(share[1] - share[0])),), reach, True)
        yield test, test.holds(ground)


def _share(ground: Ground, rows: np.ndarray, reach: int) -> np.ndarray:
    """[tokens]: on which share of some rows each token is among those before."""
    where = ground.here[rows][:, None] - np.arange(1, reach + 1)
    found = np.where(where >= ground.begin[rows][:, None], ground.tokens[np.maximum(where, 0)], ground.width)
    found.sort(axis=1)
    fresh = np.ones(found.shape, bool)
    fresh[:, 1:] = found[:, 1:] != found[:, :-1]
    counts = np.bincount(found[fresh], minlength=ground.width + 1)[: ground.width]
    return counts / len(rows)


def _positions(ground: Ground, wanted: np.ndarray, within: np.ndarray) -> Iterator[Found]:
    if not ground.position.any():
        return
    there = ground.position[wanted & within]
    if not len(there):
        return
    ends = {(0, 0), (int(there.min()), int(there.max())), (int(np.median(there)),) * 2}
    low, high = (int(one) for one in np.quantile(there, [0.05, 0.95]))
    for begin, end in sorted(ends | {(low, high)}):
        test = Condition("position", (begin, end))
        yield test, test.holds(ground)


def _classes(ground: Ground, wanted: np.ndarray, within: np.ndarray, price: float) -> Iterator[Found]:
    if ground.kind.max(initial=-1) < 0:
        return
    if chosen := best_set(ground.kind, wanted, within, int(ground.kind.max()) + 1, price):
        test = Condition("class", tuple(chosen))
        yield test, test.holds(ground)


def _limits(ground: Ground, wanted: np.ndarray, within: np.ndarray) -> Iterator[Found]:
    """For each attribute, the limit above and the limit below which F1 is best, among its quantiles."""
    total = int(wanted.sum())
    for name, value in ground.numbers.items():
        inside = value[within]
        if not len(inside) or not (inside.max() > inside.min()):
            continue
        edges = np.unique(np.quantile(inside, np.linspace(0, 1, _BINS + 1)))
        edges = (edges[1:-1] if len(edges) > 2 else edges[:1]).astype(np.float64)
        hits = np.sort(value[within & wanted])
        every = np.sort(inside)
        over = (len(hits) - np.searchsorted(hits, edges, "right"), len(every) - np.searchsorted(every, edges, "right"))
        under = (np.searchsorted(hits, edges, "left"), np.searchsorted(every, edges, "left"))
        for what, (good, said) in (("above", over), ("below", under)):
            at = int(np.argmax(2 * good / np.maximum(said + total, 1)))
            test = Condition(what, (name, float(edges[at])))
            yield test, test.holds(ground)
