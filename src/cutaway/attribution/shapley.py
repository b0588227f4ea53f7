"""Shapley values of nodes and edges: what a part adds to the metric, on average over the orders of joining the circuit.

Orders are drawn at random, each with its reverse (Castro, Gómez, Tejada 2009, "Polynomial calculation of the Shapley
value based on sampling"; antithetic pairs: Mitchell et al. 2022, arXiv:2104.12199; Lundberg, Lee 2017,
arXiv:1705.07874). Along each order the metric goes from everything ablated to nothing ablated, so scores add up to that
difference whatever the number of samples. A game of few players is summed over all coalitions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .eap import check_moved
from .edges import EdgeGraph
from .exact import LIMIT, WORLDS, Unit, check_limit, masks_of, unit_name, units
from .methods import scoring
from .metric import Metric
from .mixture import evaluate
from .scores import Scores


def _passes(level: str) -> Any:
    return lambda graph, options: _cost(len(units(graph, level, options["only"])), options["samples"])


@scoring(
    "shapley-edge",
    levels=("edge",),
    paper="Castro, Gómez, Tejada 2009; Lundberg, Lee 2017 (arXiv:1705.07874)",
    passes=_passes("edge"),
    complete="all",
    least=2,
)
def shapley_edge(
    graph: EdgeGraph,
    metric: Metric,
    *,
    samples: int = 20,
    seed: int = 0,
    only: Iterable[Unit | str] | None = None,
    limit: int = LIMIT,
) -> Scores:
    """Shapley values of edges from `samples` orders (an even number). `only`: the players; no other is ablated.

    facts["standard_errors"] has each player's error of sampling. Raises InputError for samples that make no sense and
    unknown edges, ResourceError when it takes more than `limit` forward passes, MetricError when no edge matters.
    """
    return _values(graph, metric, "edge", samples, seed, only, limit)


@scoring(
    "shapley-node",
    levels=("node",),
    paper="Castro, Gómez, Tejada 2009; Lundberg, Lee 2017 (arXiv:1705.07874)",
    passes=_passes("node"),
    complete="all",
    least=2,
)
def shapley_node(
    graph: EdgeGraph,
    metric: Metric,
    *,
    samples: int = 20,
    seed: int = 0,
    only: Iterable[Unit | str] | None = None,
    limit: int = LIMIT,
) -> Scores:
    """Shapley values of nodes; options, facts and errors as for edges."""
    return _values(graph, metric, "node", samples, seed, only, limit)


def _cost(players: int, samples: int) -> float:
    """Forward passes: all coalitions where that takes no more, else all beginnings of every order."""
    sampled = samples * (players - 1) + 2.0
    return min(sampled, 2.0**players) if players < 64 else sampled


def _values(
    graph: EdgeGraph, metric: Metric, level: str, samples: int, seed: int, only: Iterable[Unit | str] | None, limit: int
) -> Scores:
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 2 or samples % 2:
        raise InputError(f"Shapley values need an even number of samples, 2 or more, and it is {samples!r}.")
    players = units(graph, level, only)
    passes = _cost(len(players), samples)
    check_limit(f"shapley-{level}", passes, limit, f"{len(players):,} {level}s and {samples:,} samples")
    whole = passes == 2 ** len(players) if len(players) < 64 else False
    errors: Tensor | None = None
    if whole:
        values = _enumerated(graph, metric, level, players)
    else:
        values, errors = _sampled(graph, metric, level, players, samples, seed)
    table = torch.zeros(graph.shape() if level == "edge" else graph.shape()[1:])
    table[tuple(torch.tensor(players).T)] = values.to(table)
    check_moved(table, metric)
    spread = errors.tolist() if errors is not None else [0.0 if whole else None] * len(players)
    facts = {
        "baseline": graph.baseline,
        "samples": None if whole else samples,
        "seed": seed,
        "limit": limit,
        "players": len(players),
        "standard_errors": {unit_name(graph, level, unit): error for unit, error in zip(players, spread, strict=True)},
    }
    method = f"Shapley values of {level}s, " + ("all coalitions" if whole else f"{samples} orders")
    edges, nodes = (table, None) if level == "edge" else (None, table)
    return Scores(edges, nodes, method, passes, facts)


def _worth(graph: EdgeGraph, metric: Metric, level: str, players: list[Unit], kept: Tensor) -> Tensor:
    """[sets]: the metric, a mean over examples, with these players kept and the other players ablated."""
    found = [evaluate(graph, metric, masks_of(graph, level, players, some)).mean(1) for some in kept.split(WORLDS)]
    return torch.cat(found).double()


def _orders(players: int, samples: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(samples // 2):
        order = torch.randperm(players, generator=generator)
        yield order
        yield order.flip(0)


def _sampled(
    graph: EdgeGraph, metric: Metric, level: str, players: list[Unit], samples: int, seed: int
) -> tuple[Tensor, Tensor | None]:
    """(values, standard errors): errors are those of the mean of pairs of orders, None with a single pair."""
    count = len(players)
    ends = _worth(graph, metric, level, players, torch.tensor([[False] * count, [True] * count]))
    added = torch.zeros(samples, count, dtype=torch.float64)
    for row, order in zip(added, _orders(count, samples, seed), strict=True):
        kept = torch.zeros(count - 1, count, dtype=torch.bool)
        for size in range(1, count):
            kept[size - 1, order[:size]] = True
        between = _worth(graph, metric, level, players, kept) if count > 1 else ends[:0]
        row[order] = torch.cat([ends[:1], between, ends[1:]]).diff()
    pairs = added.view(samples // 2, 2, count).mean(1)
    errors = pairs.std(0) / len(pairs) ** 0.5 if len(pairs) > 1 else None
    return pairs.mean(0), errors


def _enumerated(graph: EdgeGraph, metric: Metric, level: str, players: list[Unit]) -> Tensor:
    """The sum over all coalitions, weighted by the share of orders in which one comes just before a player."""
    count = len(players)
    codes = torch.arange(2**count)
    kept = (codes[:, None] >> torch.arange(count)) & 1 == 1
    worth, sizes = _worth(graph, metric, level, players, kept), kept.sum(1)
    share = torch.tensor([1 / (count * math.comb(count - 1, size)) for size in range(count)], dtype=torch.float64)
    values = []
    for player in range(count):
        without = codes[~kept[:, player]]
        values.append((share[sizes[without]] * (worth[without + 2**player] - worth[without])).sum())
    return torch.stack(values)
