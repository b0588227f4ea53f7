"""Path patching: what is sent along one path of edges alone, all else as in the clean run.

The first writer of a path carries its ablated values to the first reader; that reader's block is run again and what it
writes goes to the next reader only, and so on (Wang et al. 2022, arXiv:2211.00593; Goldowsky-Dill et al. 2023,
arXiv:2304.05969). From the last reader on it spreads by every way; a path to the output ends there. An edge between
steps of a recurrent cell stands for that edge at every step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError, nearest
from .edges import EdgeGraph
from .metric import Metric, as_metric
from .mixture import evaluate

Path = str | tuple[str, ...]


def path_patch(
    graph: EdgeGraph, metric: Metric | Callable[[Tensor], Tensor], paths: Path | Sequence[Path]
) -> Float[Tensor, "paths batch"]:
    """What each example's metric loses when the ablated values go along each path alone (positive: it carries the
    behaviour).

    A path is a text "embed -> L0.attn.h1.v -> L1.attn.h2.k -> logits": a writer, and the readers that it goes through;
    or a tuple of edges ("embed -> L0.attn.h1.v", "L0.attn.h1 -> L1.attn.h2.k"), which says through which writer it goes
    where a reader has several. Paths of a list run in one batch. Raises InputError for a name that is not there, with
    those that come near, an edge that the graph lacks, and edges that do not join.
    """
    metric = as_metric(metric)
    listed: list[Path] = (
        list(paths) if isinstance(paths, Iterable) and not isinstance(paths, (str, tuple)) else [paths]
    )
    for path in listed:
        if not isinstance(path, (str, tuple, list)) or not all(isinstance(edge, str) for edge in path):
            raise InputError(f"A path is a text such as 'embed -> L0.attn.h1.v -> logits', not {path!r}.")
    if not listed:
        raise InputError("There is no path to patch; give one or more, such as 'embed -> L0.attn.h1.v -> logits'.")
    routes = [_route(graph, path) for path in listed]
    masks = torch.stack([_mask(graph, route) for route in routes])
    sent = torch.zeros(len(routes), len(graph.writers), dtype=torch.bool)
    for row, route in zip(sent, routes, strict=True):
        row[route.sender] = True
    return metric(graph.clean_trace.logits, graph.net) - evaluate(held(graph), metric, masks, (sent, graph.corrupted))


def path_to(
    graph: EdgeGraph, metric: Metric | Callable[[Tensor], Tensor], receivers: str | Iterable[str]
) -> Float[Tensor, "writers batch"]:
    """What each example's metric loses when a writer reaches these readers with its ablated values, for each writer
    (zero where it has no edge to any). Raises InputError for a reader that is not there."""
    metric = as_metric(metric)
    rows = [_place(graph.readers, name, "reader") for name in _listed(receivers)]
    senders = (graph.valid[rows].any(0)).nonzero()[:, 0]
    masks = torch.ones(len(senders) + 1, *graph.shape(), dtype=torch.bool)
    for mask, sender in zip(masks[1:], senders.tolist(), strict=True):
        mask[rows, sender] = False
    found = evaluate(graph, metric, masks)
    effects = found.new_zeros(len(graph.writers), found.shape[1])
    effects[senders] = found[0] - found[1:]
    return effects


def held(graph: EdgeGraph) -> EdgeGraph:
    """The graph in which an edge outside the mask carries its clean values: nothing that changes passes it."""
    found = copy.copy(graph)
    found.corrupted = graph.clean
    found.baseline = {"kind": "clean"}
    return found


@dataclass(frozen=True)
class _Route:
    """A path as places: edges (readers' row, writers' columns), the sender's column, and the readers at its end."""

    sender: int
    edges: tuple[tuple[int, tuple[int, ...]], ...]


def _route(graph: EdgeGraph, path: Path) -> _Route:
    hops = _chain(path) if isinstance(path, str) else [_edge(edge) for edge in path]
    if not hops:
        raise InputError("A path needs one edge or more; give them as in 'embed -> L0.attn.h1.v -> logits'.")
    edges: list[tuple[int, tuple[int, ...]]] = []
    came: Tensor | None = None  # writers of the block that the path has come to
    for start, end in hops:
        row = _place(graph.readers, end, "reader")
        if start is None:
            assert came is not None
            columns = came
        else:
            column = _place(graph.writers, start, "writer")
            if came is not None and column not in came.tolist():
                names = ", ".join(graph.writers[place] for place in came.tolist()) or "nothing"
                before = graph.readers[edges[-1][0]]
                raise InputError(f"The path breaks at '{start}': '{before}' leads to {names}; go on from there.")
            columns = torch.tensor([column])
        exist = columns[graph.wired[row, columns]]
        if not len(exist):
            name = start or graph.writers[int(columns[0])] if len(columns) else graph.readers[edges[-1][0]]
            near = [graph.writers[int(place)] for place in graph.wired[row].nonzero()[:, 0]]
            some = nearest(name, near) or "nothing"
            raise InputError(f"There is no edge '{name} -> {end}'; '{end}' is reached from {some} and others.")
        edges.append((row, tuple(exist.tolist())))
        came = graph.leads[row].nonzero()[:, 0]
    return _Route(edges[0][1][0], tuple(edges))


def _chain(path: str) -> list[tuple[str | None, str]]:
    names = [name.strip() for name in path.split("->")]
    if len(names) < 2 or not all(names):
        raise InputError(f"'{path}' is no path; write a writer and readers, such as 'embed -> L0.attn.h1.v -> logits'.")
    return [(names[0] if place == 0 else None, name) for place, name in enumerate(names[1:])]


def _edge(edge: str) -> tuple[str | None, str]:
    start, arrow, end = (piece.strip() for piece in edge.partition("->"))
    if not arrow or not start or not end or "->" in end:
        raise InputError(f"'{edge}' is no edge; write a writer and a reader, such as 'L0.attn.h1 -> L1.attn.h2.k'.")
    return start, end


def _listed(names: str | Iterable[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _place(names: list[str], name: str, what: str) -> int:
    if name not in names:
        raise InputError(f"There is no {what} '{name}'; those that come near: {nearest(name, names)}.")
    return names.index(name)


def _mask(graph: EdgeGraph, route: _Route) -> Tensor:
    """[readers, writers, positions]: the path's edges, and all behind its end."""
    mask = torch.zeros(graph.shape(), dtype=torch.bool)
    for row, columns in route.edges:
        mask[row, list(columns)] = True
    behind = graph.leads[route.edges[-1][0]]
    while True:
        wider = behind | graph.leads[(graph.wired & behind).any(1)].any(0)
        if torch.equal(wider, behind):
            break
        behind = wider
    mask[:, behind] = True
    return mask
