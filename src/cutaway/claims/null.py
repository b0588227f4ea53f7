"""The control of a circuit: random circuits of the same size that connect the input to the output."""

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
    places = (graph.moving & graph.valid.any(0)[:, None]).nonzero()
    chosen = places[torch.randperm(len(places), generator=generator)[:size]]
    mask = torch.zeros(graph.shape(), dtype=torch.bool)
    mask[:, chosen[:, 0], chosen[:, 1]] = True
    return mask


def _edges(graph: EdgeGraph, size: int, generator: torch.Generator) -> Tensor:
    mask = torch.zeros(graph.shape(), dtype=torch.bool)
    back = [column.nonzero()[:, 0] for column in graph.leads.T]
    end = int(graph.parts[-1].ports[0].rows[0])
    places = graph.moving.any(0).nonzero()[:, 0]
    tries = 0
    while int(mask.sum()) < size and tries < 50 * size + 200:
        tries += 1
        row = end
        place = _pick(places, generator)
        into = graph.valid & graph.moving[:, place][None, :]
        for _ in range(4 * len(graph.parts)):
            options = into[row].nonzero()[:, 0]
            if not len(options) or int(mask.sum()) >= size:
                break
            column = _pick(options, generator)
            mask[row, column, place] = True
            if not len(back[column]):
                break
            row = _pick(back[column], generator)
    trim = trimmed(graph, mask)
    return trim if trim.any() else mask


def _pick(options: Tensor, generator: torch.Generator) -> int:
    return int(options[torch.randint(len(options), (1,), generator=generator)])
