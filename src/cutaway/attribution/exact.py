"""Exact patching: what the metric loses when one edge or node alone is ablated, measured by running the network so.

"ablate" (noising): the part carries its ablated values in the clean run; which parts are needed. "restore" (denoising):
the part alone carries its clean values in the corrupted run; which parts are enough (Heimersheim, Nanda 2024,
arXiv:2404.15255). Nodes: activation patching (Vig et al. 2020); edges: Goldowsky-Dill et al. 2023.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from ..errors import InputError, ResourceError, nearest
from .eap import check_moved
from .edges import EdgeGraph
from .methods import scoring
from .metric import Metric
from .mixture import evaluate
from .scores import Scores

Unit = tuple[int, ...]  # an edge (reader, writer, position) or a node (writer, position)
WORLDS = 32  # how many masks are made at once
LIMIT = 100_000  # forward passes, unless told


def _passes(level: str) -> Any:
    return lambda graph, options: len(units(graph, level, options["only"])) + 1.0


@scoring(
    "exact-edge",
    levels=("edge",),
    paper="Goldowsky-Dill et al. 2023 (arXiv:2304.05969); Heimersheim, Nanda 2024 (arXiv:2404.15255)",
    passes=_passes("edge"),
    exact=True,
)
def exact_edge(
    graph: EdgeGraph,
    metric: Metric,
    *,
    direction: str = "ablate",
    only: Iterable[Unit | str] | None = None,
    limit: int = LIMIT,
) -> Scores:
    """The effect of each edge alone. `only`: these edges, as names or (reader, writer, position); the others score 0.

    Raises InputError for an unknown direction or edge, ResourceError when it takes more than `limit` forward passes,
    MetricError when no edge moves the metric.
    """
    return _alone(graph, metric, "edge", direction, only, limit)


@scoring(
    "exact-node",
    levels=("node",),
    paper="Vig et al. 2020 (arXiv:2004.12265); Heimersheim, Nanda 2024 (arXiv:2404.15255)",
    passes=_passes("node"),
    exact=True,
)
def exact_node(
    graph: EdgeGraph,
    metric: Metric,
    *,
    direction: str = "ablate",
    only: Iterable[Unit | str] | None = None,
    limit: int = LIMIT,
) -> Scores:
    """The effect of each node alone. `only`: these nodes, as names or (writer, position); the others score 0.

    Raises what `exact_edge` raises.
    """
    return _alone(graph, metric, "node", direction, only, limit)


def _alone(
    graph: EdgeGraph, metric: Metric, level: str, direction: str, only: Iterable[Unit | str] | None, limit: int
) -> Scores:
    if direction not in ("ablate", "restore"):
        raise InputError(f"There is no direction '{direction}'; choose 'ablate' or 'restore'.")
    chosen = units(graph, level, only)
    check_limit(f"exact-{level}", len(chosen) + 1.0, limit, f"{len(chosen):,} {level}s")
    sign = 1.0
    if direction == "restore":  # the same in the graph whose clean run is the corrupted one
        graph, baseline, sign = _turned(graph), graph.baseline, -1.0
    else:
        baseline = graph.baseline
    whole = torch.ones(graph.shape(), dtype=torch.bool)
    table = torch.zeros(graph.shape() if level == "edge" else graph.shape()[1:])
    before = float(evaluate(graph, metric, whole[None])[0].mean())
    for start in range(0, len(chosen), WORLDS):
        some = chosen[start : start + WORLDS]
        masks = whole.repeat(len(some), 1, 1, 1)
        for mask, unit in zip(masks, some, strict=True):
            mask[unit if level == "edge" else (slice(None), *unit)] = False
        effects = before - evaluate(graph, metric, masks).mean(1)
        table[tuple(torch.tensor(some).T)] = (sign * effects).to(table)
    check_moved(table, metric)
    facts = {"baseline": baseline, "direction": direction, "scored": len(chosen), "limit": limit}
    edges, nodes = (table, None) if level == "edge" else (None, table)
    return Scores(edges, nodes, f"exact {level}s, {direction}", len(chosen) + 1.0, facts)


def _turned(graph: EdgeGraph) -> EdgeGraph:
    """The graph with its runs exchanged, so that to ablate there is to restore here."""
    kind = graph.baseline["kind"]
    if kind != "counterfactual" or graph.corrupted_trace is None:
        raise InputError(
            f"direction='restore' starts from the corrupted run, and the baseline '{kind}' has none; "
            "choose direction='ablate' or baseline='counterfactual'."
        )
    return graph.on(graph.corrupted_trace, graph.clean_trace)


def units(graph: EdgeGraph, level: str, only: Iterable[Unit | str] | None = None) -> list[Unit]:
    """The units that can be tested, in the network's order; with `only`, those of them.

    Raises InputError for one that does not exist.
    """
    found = [tuple(unit) for unit in graph.testable(level).nonzero().tolist()]
    if only is None:
        return found
    by_name: dict[str, list[Unit]] = {}
    for unit in found:
        by_name.setdefault(unit_name(graph, level, unit), []).append(unit)
        by_name.setdefault(unit_name(graph, level, unit).partition("@")[0], []).append(unit)
    known, wanted = set(found), dict[Unit, None]()
    for item in only:
        place = tuple(item) if not isinstance(item, str) else ()
        if isinstance(item, str) and item in by_name:
            wanted.update(dict.fromkeys(by_name[item]))
        elif place in known:
            wanted[place] = None
        else:
            near = nearest(str(item), by_name)
            raise InputError(
                f"There is no {level} '{item}' that differs from its baseline; those that come near: {near}."
            )
    if not wanted:
        raise InputError(f"There are no {level}s to score; name one or more, or leave only= out.")
    return [unit for unit in found if unit in wanted]


def unit_name(graph: EdgeGraph, level: str, unit: Unit) -> str:
    """`writer -> reader` or `writer`, with @position where the graph tells positions apart."""
    name = graph.edge_name(unit[0], unit[1]) if level == "edge" else graph.writers[unit[0]]
    return f"{name}@{unit[-1]}" if graph.positions > 1 else name


def check_limit(method: str, passes: float, limit: int, what: str) -> None:
    """Raises ResourceError when a forecast is above its limit, InputError for a limit that is no number."""
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise InputError(f"A limit is a whole number of forward passes, 1 or more, and it is {limit!r}.")
    if passes > limit:
        raise ResourceError(
            f"The method '{method}' takes {passes:,.0f} forward passes for {what} and the limit is {limit:,}; "
            "name fewer with only=, take a cheaper method, or raise limit."
        )


def masks_of(graph: EdgeGraph, level: str, chosen: Sequence[Unit], kept: Bool[Tensor, "sets units"]) -> Tensor:
    """[sets, readers, writers, positions]: masks in which the chosen units are as `kept` says, and all others on."""
    masks = graph.testable("edge").repeat(len(kept), 1, 1, 1)
    places = tuple(torch.tensor(chosen).T)
    if level == "edge":
        masks[(slice(None), *places)] = kept
    else:
        writers, positions = places
        masks[:, :, writers, positions] &= kept[:, None, :]
    return masks
