"""The control of a circuit: random circuits of the same size that connect the input to the output."""

from __future__ import annotations

import torch
from torch import Tensor

from ..attribution.edges import EdgeGraph
from ..circuits.circuit import trimmed


def random_circuits(graph: EdgeGraph, size: int, count: int, seed: int, level: str = "edge") -> Tensor:
    """[count, readers, writers, positions]: masks of random circuits with `size` edges (or nodes) each.

    Edge circuits are grown from random paths from a source to the output, so that a random circuit could carry the
    behaviour at all (a random set of edges hardly ever could); the last path is cut to the size.
    """
    generator = torch.Generator().manual_seed(seed)
    made = [_nodes(graph, size, generator) if level == "node" else _edges(graph, size, generator) for _ in range(count)]
    return torch.stack(made)


def _nodes(graph: EdgeGraph, size: int, generator: torch.Generator) -> Tensor:
    moving = graph.valid.any(0).nonzero()[:, 0]
    total = len(moving) * graph.positions
    chosen = torch.randperm(total, generator=generator)[:size]
    mask = torch.zeros(graph.shape(), dtype=torch.bool)
    for item in chosen.tolist():
        mask[:, moving[item // graph.positions], item % graph.positions] = True
    return mask


def _edges(graph: EdgeGraph, size: int, generator: torch.Generator) -> Tensor:
    mask = torch.zeros(graph.shape(), dtype=torch.bool)
    into = [row.nonzero()[:, 0] for row in graph.valid]
    back = [column.nonzero()[:, 0] for column in graph.leads.T]
    end = int(graph.parts[-1].ports[0].rows[0])
    tries = 0
    while int(mask.sum()) < size and tries < 50 * size + 200:
        tries += 1
        row = end
        place = int(torch.randint(graph.positions, (1,), generator=generator))
        for _ in range(4 * len(graph.parts)):
            if not len(into[row]) or int(mask.sum()) >= size:
                break
            column = _pick(into[row], generator)
            mask[row, column, place] = True
            if not len(back[column]):
                break
            row = _pick(back[column], generator)
    trim = trimmed(graph, mask)
    return trim if trim.any() else mask


def _pick(options: Tensor, generator: torch.Generator) -> int:
    return int(options[torch.randint(len(options), (1,), generator=generator)])
