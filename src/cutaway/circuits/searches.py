"""The searches for a circuit: one function each, declared with its source and a bound on what it takes.

A search is a function `(task, **options) -> mask` under the decorator `searching`; it measures circuits through its
`Task`, which counts forward passes and remembers the best circuit. tests/circuits/test_searches.py holds each one to
the same contract: known mechanisms found, connected circuits, the size asked for, the same circuit when repeated.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import Tensor

from ..errors import InputError

# The files that declare searches; they are loaded when the first one is asked for.
_FILES = ("refine", "ranked", "acdc", "edge_pruning")


@dataclass(frozen=True)
class Search:
    """A search: the levels it works on, its source, and `forwards(units, options)`: the most forward and backward
    passes it takes among so many edges or nodes, beside those of the scores. `needs_scores`: whether it uses them.
    `whole`: it cannot stop early, so a bound below its cost is refused."""

    name: str
    function: Callable[..., Tensor]
    levels: tuple[str, ...]
    paper: str
    forwards: Callable[[int, dict[str, Any]], int]
    needs_scores: bool = True
    whole: bool = False

    def options(self) -> dict[str, Any]:
        """The options with their defaults."""
        given = list(inspect.signature(self.function).parameters.values())[1:]
        return {option.name: option.default for option in given}

    def checked(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """All options, those given and the defaults of the others. Raises InputError for one that does not exist."""
        known = self.options()
        if strange := [name for name in options if name not in known]:
            near = difflib.get_close_matches(strange[0], known, n=1)
            guess = f"; did you mean '{near[0]}'?" if near else f"; its options are: {', '.join(known) or 'none'}."
            raise InputError(f"The search '{self.name}' has no option '{strange[0]}'{guess}")
        return {**known, **options}


_SEARCHES: dict[str, Search] = {}


def searching(
    name: str,
    *,
    paper: str,
    forwards: Callable[[int, dict[str, Any]], int],
    levels: tuple[str, ...] = ("edge", "node"),
    needs_scores: bool = True,
    whole: bool = False,
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Declare a search."""

    def declare(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        _SEARCHES[name] = Search(name, function, levels, paper, forwards, needs_scores, whole)
        return function

    return declare


def searches() -> dict[str, Search]:
    """Every search by name."""
    for file in _FILES:
        import_module(f".{file}", __package__)
    return dict(sorted(_SEARCHES.items()))


def search_named(name: str, level: str) -> Search:
    """A search by name. Raises InputError with those that come near, or when it does not know the level."""
    known = searches()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=2) or list(known)
        raise InputError(f"There is no search '{name}'; choose {' or '.join(near)}.")
    if level not in known[name].levels:
        others = ", ".join(other for other, one in known.items() if level in one.levels)
        raise InputError(f"The search '{name}' finds no circuits of {level}s; choose {others}.")
    return known[name]
