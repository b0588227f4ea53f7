"""Rules: when a latent fires, said so that it can be read, kept as data, and run.

A rule is a disjunction of clauses, a clause a conjunction of tests; a test looks at one row of a ground (see grounds).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError
from .grounds import PROPERTIES, Ground

MOST_WORDS = 8  # of a set of tokens that are written out


@dataclass(frozen=True)
class Condition:
    """A condition on a row: `what` is one of TESTS, `at` how far from the row's token it looks (of "contains" how far
    back, 0 for the whole text before it; of "ngram" how many tokens), `values` what it looks for."""

    what: str
    values: tuple[Any, ...]
    at: int = 0
    negated: bool = False

    def holds(self, ground: Ground) -> np.ndarray:
        """[rows]: where it holds. Raises InputError for a test that does not fit the ground."""
        if self.what not in TESTS:
            raise InputError(f"No rule tests '{self.what}'; rules test {', '.join(TESTS)}.")
        try:
            found = np.asarray(TESTS[self.what](self, ground), bool)
        except (IndexError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(f"The test {self.to_dict()} cannot be made of these inputs ({error}).") from error
        return ~found if self.negated else found

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able data."""
        return {"what": self.what, "values": list(self.values), "at": self.at, "negated": self.negated}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Condition:
        """The test in data. Raises InputError for data that are none."""
        try:
            what, values, at = data["what"], tuple(data["values"]), int(data.get("at", 0))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{data!r:.80} is no test of a rule.") from error
        if what not in TESTS or not values or not all(isinstance(value, (int, float, str)) for value in values):
            raise InputError(f"{data!r:.80} is no test of a rule; tests are {', '.join(TESTS)}.")
        return Condition(what, values, at, bool(data.get("negated", False)))


@dataclass(frozen=True)
class Rule:
    """Clauses of which one must hold; in a clause, all tests must."""

    clauses: tuple[tuple[Condition, ...], ...]

    def holds(self, ground: Ground) -> np.ndarray:
        """[rows]: where the rule holds. Raises InputError for a test that does not fit the ground."""
        found = np.zeros(len(ground), bool)
        for clause in self.clauses:
            whole = np.ones(len(ground), bool)
            for test in clause:
                whole &= test.holds(ground)
            found |= whole
        return found

    def text(self, word: Callable[[int], str] = str, kinds: Sequence[str] = ()) -> str:
        """As a person reads it; `word` gives the text of a token, `kinds` the names of classes."""
        if not self.clauses:
            return "never"
        told = [" and ".join(_said(test, word, kinds) for test in clause) for clause in self.clauses]
        return "; or ".join(told)

    @property
    def size(self) -> int:
        """How many tests and values it has: what it costs to say it."""
        return sum(1 + len(test.values) for clause in self.clauses for test in clause)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able data."""
        return {"any": [[test.to_dict() for test in clause] for clause in self.clauses]}

    @staticmethod
    def from_dict(data: Any) -> Rule:
        """The rule in data that `to_dict` gave. Raises InputError for data that are none."""
        clauses = data.get("any") if isinstance(data, dict) else None
        if not isinstance(clauses, list) or not all(isinstance(clause, list) and clause for clause in clauses):
            raise InputError(f"{data!r:.80} is no rule: it needs a list of clauses called 'any'.")
        return Rule(tuple(tuple(Condition.from_dict(test) for test in clause) for clause in clauses))


def chosen(tokens: Sequence[Any], width: int) -> np.ndarray:
    """[tokens]: a table of which tokens are among some."""
    found = np.zeros(width + 1, bool)  # the last place stands for none, -1
    found[[int(token) for token in tokens if 0 <= int(token) < width]] = True
    return found


def _property(test: Condition, ground: Ground) -> np.ndarray:
    table = np.zeros(ground.width + 1, bool)
    for name in test.values:
        table[: ground.width] |= ground.properties[name]
    return table[ground.at(test.at)]


def _affix(test: Condition, ground: Ground) -> np.ndarray:
    table = np.zeros(ground.width + 1, bool)
    for affix in test.values:
        table[: ground.width] |= ground.affix(test.what, str(affix))
    return table[ground.at(test.at)]


def _number(test: Condition, ground: Ground) -> np.ndarray:
    name, limit = test.values
    value = ground.numbers[name]
    return value > limit if test.what == "above" else value < limit


def _ngram(test: Condition, ground: Ground) -> np.ndarray:
    wanted = []
    for value in test.values:
        number = 0
        for token in str(value).split():
            number = number * ground.width + int(token)
        wanted.append(number)
    return np.isin(ground.ngrams(test.at), wanted)


TESTS: dict[str, Callable[[Condition, Ground], np.ndarray]] = {
    "token": lambda test, ground: chosen(test.values, ground.width)[ground.at(test.at)],
    "ngram": _ngram,
    "property": _property,
    "prefix": _affix,
    "suffix": _affix,
    "contains": lambda test, ground: ground.within(chosen(test.values, ground.width), test.at),
    "position": lambda test, ground: (ground.position >= test.values[0]) & (ground.position <= test.values[1]),
    "class": lambda test, ground: np.isin(ground.kind, test.values),
    "above": _number,
    "below": _number,
}


def _said(test: Condition, word: Callable[[int], str], kinds: Sequence[str]) -> str:
    no = "not " if test.negated else ""
    if test.what in ("above", "below"):
        return f"{no}{test.values[0]} {'>' if test.what == 'above' else '<'} {test.values[1]:.3g}"
    if test.what == "position":
        low, high = test.values
        return f"the position is {no}{low}" if low == high else f"the position is {no}{low} to {high}"
    if test.what == "class":
        return f"the class is {no}" + _either([kinds[k] if 0 <= k < len(kinds) else str(k) for k in test.values])
    if test.what == "contains":
        where = "the text before" if test.at == 0 else f"the {test.at} tokens before"
        verb = ("holds", "does not hold") if test.at == 0 else ("hold", "do not hold")
        return f"{where} {verb[test.negated]} {_either([repr(word(token)) for token in test.values])}"
    if test.what == "ngram":
        words = [repr("".join(word(int(token)) for token in str(value).split())) for value in test.values]
        return f"the last {test.at} tokens are {no}{_either(words)}"
    which = {0: "the token", -1: "the token before"}.get(test.at, f"the token {-test.at} before")
    if test.what in ("prefix", "suffix"):
        begins = "begins" if test.what == "prefix" else "ends"
        return f"{which} {'not ' if no else ''}{begins} with {_either([repr(value) for value in test.values])}"
    values = [repr(word(one)) for one in test.values] if test.what == "token" else [str(one) for one in test.values]
    return f"{which} is {no}{_either(values)}"


def _either(words: Sequence[str]) -> str:
    if len(words) > MOST_WORDS:
        return ", ".join(words[:MOST_WORDS]) + f" or one of {len(words) - MOST_WORDS} more"
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else list(words))


__all__ = ["PROPERTIES", "TESTS", "Rule", "Condition", "chosen"]
