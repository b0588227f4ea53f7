"""The methods that score nodes and edges: one function each, declared with its paper and its cost.

A method is a function `(graph, metric, **options) -> Scores` under the decorator `scoring`. tests/attribution/
test_methods.py holds each one to the same contract: right on linear networks, in the metric's units, unchanged by the
order of examples, complete where it says so.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

from torch import Tensor

from ..errors import InputError
from ..run.trace import Trace
from .edges import EdgeGraph
from .metric import Metric, as_metric
from .options import check_options
from .scores import Scores

# The files that declare methods; they are loaded when the first one is asked for.
_FILES = ("eap", "exact", "shapley", "relevance", "patching", "activations")


@dataclass(frozen=True)
class Method:
    """A scoring method: which levels it scores, its source, and `passes(graph, options)`, what it will take in forward
    and backward passes. `exact`: the very effect of ablating each part alone. `complete`: which scores add up
    to what the metric loses when everything is ablated: "all" of them, or those of the nodes that are "sources".
    `least`: the fewest steps or samples that it takes."""

    name: str
    function: Callable[..., Scores]
    levels: tuple[str, ...]
    paper: str
    passes: Callable[[EdgeGraph, dict[str, Any]], float]
    exact: bool = False
    complete: str = ""
    least: int = 1

    def options(self) -> dict[str, Any]:
        """The options with their defaults."""
        given = list(inspect.signature(self.function).parameters.values())[2:]
        return {option.name: option.default for option in given}

    def check(self, options: Any) -> None:
        """Raise InputError for an option that does not exist, or is of another type or below what the method takes."""
        if not isinstance(options, Mapping):
            raise InputError(f"A method's options are a dict of names and values, and {options!r} was given.")
        if strange := [name for name in options if name not in self.options()]:
            has = ", ".join(self.options()) or "none"
            raise InputError(f"The method '{self.name}' has no option '{strange[0]}'; its options are: {has}.")
        check_options(self.function, options, {"steps": self.least, "samples": self.least})


_METHODS: dict[str, Method] = {}


def scoring(
    name: str,
    *,
    levels: tuple[str, ...],
    paper: str,
    passes: Callable[[EdgeGraph, dict[str, Any]], float],
    exact: bool = False,
    complete: str = "",
    least: int = 1,
) -> Callable[[Callable[..., Scores]], Callable[..., Scores]]:
    """Declare a scoring method."""

    def declare(function: Callable[..., Scores]) -> Callable[..., Scores]:
        _METHODS[name] = Method(name, function, levels, paper, passes, exact, complete, least)
        return function

    return declare


def methods() -> dict[str, Method]:
    """Every scoring method by name."""
    for file in _FILES:
        import_module(f".{file}", __package__)
    return dict(_METHODS)


def method_named(name: str) -> Method:
    """A method by name. Raises InputError with those that come near."""
    known = methods()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=2) or list(known)
        raise InputError(f"There is no scoring method '{name}'; choose {' or '.join(near)}.")
    return known[name]


def score(
    graph: EdgeGraph | Trace,
    metric: Metric | Callable[[Tensor], Tensor],
    corrupted: Trace | None = None,
    *,
    method: str = "eap-ig",
    **options: Any,
) -> Scores:
    """Score the nodes and edges of a graph, or of a clean and a corrupted run, by one of `methods()`.

    `options` are the method's (`methods()[name].options()`); with runs, those of `EdgeGraph` as well (baseline,
    positions, neurons). Raises InputError for a method or an option that does not exist, or an option of another type,
    MetricError when nothing that differs moves the metric.
    """
    chosen = method_named(method)
    if isinstance(graph, Trace):
        made = {name: options.pop(name) for name in ("baseline", "positions", "neurons") if name in options}
        graph = EdgeGraph(graph, corrupted, **made)
    elif not isinstance(graph, EdgeGraph):
        raise InputError(f"Scores are made on an edge graph or recorded runs, not on a {type(graph).__name__}.")
    chosen.check(options)
    found = chosen.function(graph, as_metric(metric), **options)
    return replace(found, writers=tuple(graph.writers), readers=tuple(graph.readers))
