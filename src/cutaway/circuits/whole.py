"""A circuit's whole graph as data: every edge with its score, and what each writer writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..attribution.edges import EdgeGraph, per_slot

if TYPE_CHECKING:
    from .circuit import Circuit


def sources(graph: EdgeGraph) -> list[str]:
    """The writers that read nothing: embeddings and inputs."""
    columns = [column for part in graph.parts if not part.ports for column in graph.columns[part.block.write].tolist()]
    return [graph.writers[column] for column in sorted(set(columns))]


def whole_graph(circuit: Circuit) -> dict[str, Any]:
    """Every edge of a circuit's graph as data (`schema.WholeGraph`). An edge with scores at several positions is listed
    at each of them, one without any once."""
    graph, exact = circuit.graph, circuit.exact
    rows: list[tuple[Any, ...]] = []
    for row, column in graph.wired.nonzero().tolist():
        spots = [
            spot for spot in range(graph.positions)
            if circuit.mask[row, column, spot] or circuit.score(row, column, spot) or (row, column, spot) in exact
        ]  # fmt: skip
        for spot in spots or [0]:
            at = spot if graph.positions > 1 and spots else None
            member = bool(circuit.mask[row, column, spot])
            effect = exact.get((row, column, spot))
            rows.append((row, column, at, circuit.score(row, column, spot), effect, member))
    first = {graph.clean[part.block.write].shape[-1] for part in graph.parts if not part.ports}
    return {
        "writers": list(graph.writers), "readers": list(graph.readers), "sources": sources(graph),
        "width": first.pop() if len(first) == 1 else None, "sizes": _sizes(graph), "edges": rows,
    }  # fmt: skip


def _sizes(graph: EdgeGraph) -> list[list[float]]:
    """[writers][positions]: the norm of what each writer writes, mean over examples; the largest of several steps."""
    table = torch.zeros(len(graph.writers), graph.positions)
    for value, block in graph.writes.items():
        squares = per_slot(graph.clean[value].float() ** 2, block.slots, graph.positions, graph.position_axis(value))
        norms = squares.sqrt().mean(1)
        norms = torch.nn.functional.pad(norms, (0, graph.positions - norms.shape[1]))
        table[graph.columns[value]] = torch.maximum(table[graph.columns[value]], norms)
    return table.tolist()
