"""The control of a circuit: random circuits of its size that connect input to output, and random parts added to it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..attribution.edges import EdgeGraph
from ..circuits.circuit import trimmed


def random_circuits(
    graph: EdgeGraph, size: int, count: int, seed: int, level: str = "edge", tested: Tensor | None = None
) -> Tensor:
    """[count, readers, writers, positions]: masks of random circuits with `size` edges (or nodes) each.

    Edge circuits are grown from random paths from a source to the output, so that a random circuit could carry the
    behaviour at all (a random set of edges hardly ever could); the last path is cut to the size. Draws that are the
    circuit under test itself (`tested`) are left out; there are fewer than `count` where there are no others.
    """
    generator = torch.Generator().manual_seed(seed)
    draw = _nodes if level == "node" else _edges
    made: list[Tensor] = []
    for _ in range(20 * count):
        mask = draw(graph, size, generator)
        if tested is None or not torch.equal(mask & graph.valid[:, :, None], tested & graph.valid[:, :, None]):
            made.append(mask)
        if len(made) == count:
            break
    return torch.stack(made) if made else torch.zeros(0, *graph.shape(), dtype=torch.bool)


def _nodes(graph: EdgeGraph, size: int, generator: torch.Generator) -> Tensor:
    places = graph.testable("node").nonzero()
    chosen = places[torch.randperm(len(places), generator=generator)[:size]]
    mask = torch.zeros(graph.shape(), dtype=torch.bool)
    mask[:, chosen[:, 0], chosen[:, 1]] = True
    return mask


def _edges(graph: EdgeGraph, size: int, generator: torch.Generator) -> Tensor:
    mask = torch.zeros(graph.shape(), dtype=torch.bool)
    for _ in range(50 * size + 200):
        for edge in _path(graph, generator):
            if int(mask.sum()) >= size:
                break
            mask[edge] = True
        if int(mask.sum()) >= size:
            break
    trim = trimmed(graph, mask)
    return trim if trim.any() else mask


def _path(graph: EdgeGraph, generator: torch.Generator) -> list[tuple[int, int, int]]:
    """The edges (reader, writer, position) of a random path from the output back to a source, at one position."""
    row = int(graph.parts[-1].ports[0].rows[0])
    place = _pick(graph.moving.any(0).nonzero()[:, 0], generator)
    into = graph.valid & graph.moving[:, place][None, :]
    edges: list[tuple[int, int, int]] = []
    for _ in range(4 * len(graph.parts)):
        options = into[row].nonzero()[:, 0]
        if not len(options):
            break
        column = _pick(options, generator)
        edges.append((row, column, place))
        back = graph.leads[:, column].nonzero()[:, 0]
        if not len(back):
            break
        row = _pick(back, generator)
    return edges


def inflated(graph: EdgeGraph, mask: Tensor, count: int, seed: int, level: str = "edge") -> tuple[Tensor, Tensor]:
    """(the circuit with a random path or node added, the same without one of the added edges or without the node),
    each [count, readers, writers, positions]; fewer where nothing can be added (Shi et al. 2024, arXiv:2410.13032)."""
    generator = torch.Generator().manual_seed(seed)
    more: list[Tensor] = []
    less: list[Tensor] = []
    for _ in range(20 * count):
        if len(more) == count:
            break
        added = mask.clone()
        if level == "node":
            added |= _nodes(graph, 2, generator)
            new = [(slice(None), *unit) for unit in (added.any(0) & ~mask.any(0)).nonzero().tolist()]
        else:
            for edge in _path(graph, generator):
                added[edge] = True
            new = [tuple(unit) for unit in (added & ~mask).nonzero().tolist()]
        if new:
            taken = added.clone()
            taken[new[int(torch.randint(len(new), (1,), generator=generator))]] = False
            more.append(added)
            less.append(taken)
    empty = torch.zeros(0, *graph.shape(), dtype=torch.bool)
    return (torch.stack(more), torch.stack(less)) if more else (empty, empty)


def _pick(options: Tensor, generator: torch.Generator) -> int:
    return int(options[torch.randint(len(options), (1,), generator=generator)])
