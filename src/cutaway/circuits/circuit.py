"""A circuit: edges (or nodes) of an edge graph, the scores that put them there and the measure of what they carry."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from html import escape
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from ..attribution.edges import EdgeGraph
from ..attribution.metric import Metric
from ..attribution.scores import Scores
from ..attribution.template import template
from ..drawing.figures import circuit_plot
from ..drawing.plot import Plot
from .schema import SCHEMA


@dataclass(frozen=True, eq=False)
class Circuit:
    """What `find_circuit` returns.

    `mask` says which edges are in; `curve` holds (edges, faithfulness) of the sizes tried.

    `exact` are exact effects of single edges (what the metric loses when that edge alone is corrupted), where measured.
    """

    graph: EdgeGraph
    metric: Metric
    mask: Bool[Tensor, "readers writers positions"]
    scores: Scores
    exact: dict[tuple[int, int, int], float]
    level: str
    faithfulness: float
    curve: tuple[tuple[int, float], ...]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def edges(self) -> list[str]:
        """Edges by name, the most important first."""
        return [row["edge"] for row in self.table()]

    @property
    def nodes(self) -> list[str]:
        """Names of the writers in the circuit, in order of execution."""
        columns = self.mask.any(0).any(1)
        return [name for name, inside in zip(self.graph.writers, columns.tolist(), strict=True) if inside]

    def score(self, row: int, column: int, position: int) -> float:
        """The score of an edge, or of its writer where only nodes were scored."""
        edges, nodes = self.scores.edges, self.scores.nodes
        if edges is not None:
            return float(edges[row, column, position])
        return float(nodes[column, position]) if nodes is not None else float("nan")

    def table(self) -> list[dict[str, Any]]:
        """One row an edge: edge, writer, reader, position (None for all), score, exact effect or None."""
        rows = []
        for row, column, position in self.mask.nonzero().tolist():
            exact = self.exact.get((row, column, position))
            rows.append(
                {
                    "edge": self.graph.edge_name(row, column),
                    "writer": self.graph.writers[column],
                    "reader": self.graph.readers[row],
                    "position": position if self.graph.positions > 1 else None,
                    "score": self.score(row, column, position),
                    "exact": exact,
                }
            )
        return sorted(rows, key=lambda row: -abs(row["exact"] if row["exact"] is not None else row["score"]))

    def to_dict(self) -> dict[str, Any]:
        """The circuit as JSON-able data: the fields of `schema.CircuitData`, without the whole graph."""
        return {
            "schema": SCHEMA,
            "level": self.level,
            "metric": {"name": self.metric.name, **self.metric.facts},
            "nodes": self.nodes,
            "edges": self.table(),
            "faithfulness": self.faithfulness,
            "curve": [list(point) for point in self.curve],
            "universe": {
                "edges": int(self.graph.valid.sum()) * self.graph.positions,
                "writers": len(self.graph.writers),
                "readers": len(self.graph.readers),
                "positions": self.graph.positions,
            },
            "settings": self.settings,
            "provenance": provenance(self.graph),
            "inputs": {"examples": self.graph.batch, "tokens": list(template(self.graph.clean_trace))},
        }

    def plot(self) -> Plot:
        """The circuit by layer, and by position where it tells them apart, with its faithfulness curve."""
        return circuit_plot(self.to_dict())

    def _repr_html_(self) -> str:
        return self.plot()._repr_html_() if len(self) else f"<pre>{escape(str(self))}</pre>"

    def __len__(self) -> int:
        return int(self.mask.sum())

    def __str__(self) -> str:
        total = int(self.graph.valid.sum()) * self.graph.positions
        lines = [
            f"Circuit of {len(self)} of {total} edges, {len(self.nodes)} nodes; "
            f"faithfulness {self.faithfulness:.3f} (1 is best)"
        ]
        for row in self.table():
            place = f" @{row['position']}" if row["position"] is not None else ""
            exact = f"{row['exact']:+.3f}" if row["exact"] is not None else "      "
            lines.append(
                f"  {row['edge'] + place:<44} exact {exact}   {self.scores.method.split(',')[0]} {row['score']:+.3f}"
            )
        return "\n".join(lines)


def provenance(graph: EdgeGraph) -> dict[str, Any]:
    """Which network figures on a graph are about, against which baseline, and with which versions."""
    from .. import __version__

    net = graph.net
    versions = {"cutaway": __version__, "torch": str(torch.__version__), "python": platform.python_version()}
    known = {"model": net.name, "source": net.source, "fingerprint": net.fingerprint}
    return {**known, "baseline": graph.baseline, "versions": versions}


def trimmed(graph: EdgeGraph, mask: Tensor) -> Tensor:
    """The mask [..., readers, writers, positions] without edges that lie on no path from a source to the output."""
    flat = mask.reshape(-1, *graph.shape())
    through = flat.any(3).float()
    sources = torch.zeros(len(graph.writers), dtype=torch.bool)
    for part in graph.parts:
        if not part.ports:
            sources[graph.columns[part.block.write]] = True
    ends = torch.zeros(len(graph.readers), dtype=torch.bool)
    ends[graph.parts[-1].ports[0].rows] = True
    leads = graph.leads.float()
    reached = sources.expand(len(flat), -1).clone()
    wanted = ends.expand(len(flat), -1).clone()
    for _ in range(len(graph.parts)):
        rows = (through @ reached.float()[:, :, None])[:, :, 0] > 0
        new_reached = reached | ((rows.float() @ leads) > 0)
        columns = (wanted.float()[:, None] @ through)[:, 0] > 0
        new_wanted = wanted | ((columns.float() @ leads.T) > 0)
        if torch.equal(new_reached, reached) and torch.equal(new_wanted, wanted):
            break
        reached, wanted = new_reached, new_wanted
    kept = flat & reached[:, None, :, None] & wanted[:, :, None, None]
    return kept.reshape(mask.shape)
