"""A circuit against a mechanism that is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..circuits.circuit import Circuit
from .statistics import auroc


def compare_with_truth(circuit: Circuit, truth: Sequence[str], unseen: Sequence[str] = ()) -> dict[str, Any]:
    """How the scores of all testable edges rank those of the known mechanism, and which of them the circuit holds.

    The AUROC is None where known edges, or others, cannot be tested. Testable: the writer differs between the runs, and
    the edge is not in `unseen`.
    """
    graph = circuit.graph
    table = {graph.edge_name(row, column): _score(circuit, row, column) for row, column in graph.edges}
    table = {name: score for name, score in table.items() if name not in set(unseen)}
    known, inside = set(truth), set(circuit.edges)
    testable = [name for name in truth if name in table]
    hidden = [name for name in truth if name not in table]
    area = auroc(list(table.values()), [name in known for name in table])
    return {
        "auroc": None if math.isnan(area) else area,
        "how": (
            f"{len(testable)} known edges among {len(table)} testable ones; {len(hidden)} more known ones "
            "do not show when clean values are replaced by corrupted ones"
        ),
        "found": [name for name in testable if name in inside],
        "missed": [name for name in testable if name not in inside],
        "beyond": [name for name in circuit.edges if name not in known],
        "untestable": hidden,
    }


def _score(circuit: Circuit, row: int, column: int) -> float:
    """The magnitude of an edge's effect, exact where it was measured, over positions."""
    exact = [circuit.exact.get((row, column, place)) for place in range(circuit.graph.positions)]
    known = [value for value in exact if value is not None]
    scores = known or [circuit.score(row, column, place) for place in range(circuit.graph.positions)]
    return abs(sum(scores))
