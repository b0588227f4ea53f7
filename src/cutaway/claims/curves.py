"""Faithfulness and completeness by circuit size, and the areas CPR and CMD, as in the Mechanistic Interpretability
Benchmark (Mueller et al. 2025, arXiv:2504.13151): circuits of the strongest so many per cent of edges by absolute
score, the areas by the trapezoidal rule over the share of edges from 0.1 % to 100 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..attribution.edges import EdgeGraph
from ..attribution.metric import Metric, as_metric
from ..attribution.mixture import evaluate
from ..attribution.scores import Scores
from ..circuits.circuit import Circuit
from ..circuits.ranked import connected
from ..circuits.task import Goal, Task, Unit
from ..drawing.figures import curve_plot
from ..drawing.plot import Plot
from ..errors import InputError, MetricError
from .measured import numpy
from .statistics import Interval, percentiles, resampled

MIB = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
CLOSE, WORST = 0.3, 3


@dataclass(frozen=True, eq=False)
class Curve:
    """Faithfulness by size. `rows`: one dict a size; `cpr` and `cmd`: value, low and high of the areas under
    faithfulness (higher is better) and under |1 - faithfulness| (lower is better), None where the sizes do not go from
    0.1 % (or less) to 100 %; `facts` say how it was made.
    `examples` [sizes, batch] is each example's faithfulness: 1 minus what it falls short by, in mean behaviours."""

    rows: tuple[dict[str, Any], ...]
    cpr: Interval | None
    cmd: Interval | None
    facts: dict[str, Any]
    examples: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """The curve as JSON-able data, without the examples."""
        areas = {
            name: found and dict(zip(("value", "low", "high"), found, strict=True))
            for name, found in (("cpr", self.cpr), ("cmd", self.cmd))
        }
        return {"schema": "cutaway.curve/1", "rows": [dict(row) for row in self.rows], **areas, "facts": self.facts}

    def plot(self) -> Plot:
        """Faithfulness and completeness by size."""
        return curve_plot(self.to_dict())

    def _repr_html_(self) -> str:
        return self.plot()._repr_html_()

    def __str__(self) -> str:
        lines = ["no areas under the curve: their sizes must go from 0.1 % to 100 %"]
        if self.cpr and self.cmd:
            lines = [f"CPR {self.cpr[0]:.3f} (higher is better), CMD {self.cmd[0]:.3f} (lower is better)"]
        for row in self.rows:
            lines.append(
                f"  {row['share']:>6.1%} {row['size']:>7} faithfulness {row['faithfulness']:+.3f}, "
                f"completeness {row['completeness']:+.3f}, {row['close']:.0%} of examples within {CLOSE} of 1"
            )
        return "\n".join(lines)


def circuit_curve(
    what: Circuit | Scores,
    graph: EdgeGraph | None = None,
    metric: Metric | None = None,
    sizes: Sequence[float] = MIB,
    *,
    level: str = "edge",
    greedy: bool = False,
    seed: int = 0,
) -> Curve:
    """How much of the behaviour the strongest so many edges (or nodes) carry, and how much is lost without them.

    `what`: scores, or a circuit, whose exact effects go before its scores; graph, metric and level default to the
    circuit's. `sizes` are shares of all edges that can be tested. `greedy`: instead of the strongest, those reached
    from the output back. Dead ends are cut off. 95 % percentile bootstrap intervals over examples.

    Raises InputError for sizes outside 0 to 1, in the wrong order, or without graph and metric; MetricError where
    there is no behaviour.
    """
    if isinstance(what, Circuit):
        graph, metric, level = graph or what.graph, metric or what.metric, what.level
    if graph is None or metric is None:
        raise InputError("A curve of scores needs the edge graph and the metric that they belong to.")
    if not len(sizes) or list(sizes) != sorted(set(sizes)) or sizes[0] < 0 or sizes[-1] > 1:
        raise InputError("Sizes are shares of all edges, ascending, from 0 to 1.")
    metric = as_metric(metric)
    scores = what.scores if isinstance(what, Circuit) else what
    task = Task(graph, metric, level, scores, Goal(0.1))
    if not abs(task.gap) > 1e-12:
        raise MetricError(f"The metric '{metric.name}' is the same clean and ablated, so no share of it can be kept.")
    order = _order(task, what, greedy)
    counts = [int(share * len(task.universe) + 1e-9) for share in sizes]
    masks = task.masks([order[:count] for count in counts])
    found = numpy(evaluate(graph, metric, torch.cat([masks, task.full & ~masks])))
    good, bad = map(numpy, task.ends)
    return _curve(sizes, counts, masks, found, good, bad, task, greedy, seed)


def _order(task: Task, what: Circuit | Scores, greedy: bool) -> list[Unit]:
    exact: dict[Unit, float] = {}
    if isinstance(what, Circuit) and task.level == "edge":
        exact |= dict(what.exact.items())
    units = task.ranked()
    if greedy and task.level == "edge":
        assert task.scores is not None
        table = task.scores.of("edge").abs()
        return connected(task, {unit: abs(exact.get(unit, float(table[unit]))) for unit in units})
    measured = sorted((unit for unit in units if unit in exact), key=lambda unit: -abs(exact[unit]))
    return measured + [unit for unit in units if unit not in exact]


def _curve(
    sizes: Sequence[float],
    counts: Sequence[int],
    masks: Tensor,
    found: np.ndarray,
    good: np.ndarray,
    bad: np.ndarray,
    task: Task,
    greedy: bool,
    seed: int,
) -> Curve:
    gap = (good - bad).mean()
    kept, lost = found[: len(sizes)], found[len(sizes) :]
    examples = 1 - (good - kept) / gap
    draws = resampled(np.stack([good - bad, *(kept - bad)]), seed=seed) if len(good) > 1 else None
    whole = np.where(np.abs(draws[0]) < 1e-12, np.nan, draws[0]) if draws is not None else None
    faithful = examples.mean(1)
    drawn = draws[1:] / whole if draws is not None else None
    rows = []
    for place, (share, count) in enumerate(zip(sizes, counts, strict=True)):
        low, high = percentiles(drawn[place]) if drawn is not None else (None, None)
        rows.append(
            {
                "share": share, "size": count, "connected": task.count(masks[place]),
                "faithfulness": float(faithful[place]), "low": low, "high": high,
                "completeness": float((good - lost[place]).mean() / gap), **spread(examples[place]),
            }
        )  # fmt: skip
    areas = []
    for shape in (lambda values: values, lambda values: np.abs(1 - values)):
        interval = percentiles(area(sizes, shape(drawn))) if drawn is not None else (None, None)
        areas.append((float(area(sizes, shape(faithful))), *interval))
    facts = {
        "level": task.level, "circuits": "greedy from the output" if greedy else "strongest by absolute score",
        "scores": task.scores.method if task.scores is not None else None, "baseline": task.graph.baseline,
        "examples": len(good), "universe": len(task.universe), "seed": seed,
        "interval": "95 % percentile bootstrap over examples, 2000 draws" if drawn is not None else None,
    }  # fmt: skip
    cpr, cmd = areas if sizes[0] <= MIB[0] and sizes[-1] == MIB[-1] else (None, None)
    return Curve(tuple(rows), cpr, cmd, facts, examples)


def area(sizes: Sequence[float], values: np.ndarray) -> np.ndarray:
    """The area under values [sizes, ...] over sizes, by the trapezoidal rule."""
    steps = np.diff(np.asarray(sizes))
    return np.tensordot(steps, (values[1:] + values[:-1]) / 2, 1)


def spread(examples: np.ndarray) -> dict[str, Any]:
    """The distribution of examples' faithfulness: quantiles, the share within 0.3 of 1, and the worst (place, value).

    examples: [batch].
    """
    worst = np.argsort(-np.abs(1 - examples))[:WORST]
    return {
        "quantiles": [float(value) for value in np.quantile(examples, [0.05, 0.25, 0.5, 0.75, 0.95])],
        "close": float((np.abs(1 - examples) <= CLOSE).mean()),
        "worst": [[int(place), float(examples[place])] for place in worst],
    }
