"""Scores of the edges and nodes of a graph, and how they came about."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ..drawing.figures import by_layer, table_plot
from ..drawing.plot import Plot
from ..errors import InputError


@dataclass(frozen=True, eq=False)
class Scores:
    """What a scoring method gives: means over examples, in units of the metric; None for a level it does not score.

    Positive: the edge or node carries the behaviour (ablating it lowers the metric). `passes` is what it took, in
    forward and backward passes; `facts` are the method's options and the baseline, JSON-able. `writers` and `readers`
    name the tables' rows and columns, as `score` fills them in.
    """

    edges: Float[Tensor, "readers writers positions"] | None
    nodes: Float[Tensor, "writers positions"] | None
    method: str
    passes: float
    facts: dict[str, Any] = field(default_factory=dict)
    writers: tuple[str, ...] = ()
    readers: tuple[str, ...] = ()

    def of(self, level: str) -> Tensor:
        """The table of a level, "edge" or "node". Raises InputError when the method does not score it."""
        table = {"edge": self.edges, "node": self.nodes}.get(level)
        if table is None:
            raise InputError(f"The method '{self.method}' gives no scores of {level}s; choose another method or level.")
        return table

    def plot(self, most: int = 40) -> Plot:
        """Nodes by layer and slot (by position where those are told apart); edges, if there are no nodes, with the
        `most` readers and writers of the largest scores."""
        title, measure = f"Scores by {self.method}", "score; above zero: ablating it lowers the metric"
        table = self.nodes if self.nodes is not None else self.of("edge").sum(2)
        names = self.writers or tuple(str(place) for place in range(table.shape[-1 if self.nodes is None else 0]))
        if self.nodes is None:
            readers = self.readers or tuple(str(place) for place in range(len(table)))
            rows, columns = (_largest(table.abs().amax(axis), most) for axis in (1, 0))
            shown = table[rows][:, columns].tolist()
            named = [readers[row] for row in rows], [names[column] for column in columns]
            return table_plot(*named, shown, title=title, across="writer", measure=measure)
        if table.shape[1] > 1:
            rows = _largest(table.abs().amax(1), most)
            spots = [str(place) for place in range(table.shape[1])]
            shown, parts = table[rows].tolist(), [names[row] for row in rows]
            return table_plot(parts, spots, shown, title=title, across="position", measure=measure)
        blocks, units, values = by_layer(names, table[:, 0].tolist())
        return table_plot(blocks, units, values, title=title, across="slot", measure=measure)

    def _repr_html_(self) -> str:
        return self.plot()._repr_html_()


def _largest(values: Tensor, most: int) -> list[int]:
    """The places of the largest values, in order of place."""
    return sorted(values.topk(min(most, len(values))).indices.tolist())
