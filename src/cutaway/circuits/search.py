"""Finding the circuit behind a behaviour: cheap scores for all edges, exact ones where it matters, then minimality."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..attribution.baselines import Baseline
from ..attribution.edges import EdgeGraph
from ..attribution.methods import score
from ..attribution.metric import Metric, as_metric
from ..attribution.mixture import ends, evaluate
from ..attribution.scores import Scores
from ..errors import InputError, MetricError
from ..run.trace import Trace
from .circuit import Circuit, trimmed

Unit = tuple[int, ...]
Progress = Callable[[str, int, int], None]


def find_circuit(
    clean: Trace,
    corrupted: Trace | None,
    metric: Metric | Callable[[Tensor], Tensor],
    *,
    level: str = "edge",
    method: str = "eap-ig",
    baseline: Baseline = "counterfactual",
    faithfulness: float = 0.9,
    refine: int = 200,
    positions: bool = False,
    neurons: bool = False,
    progress: Progress | None = None,
) -> Circuit:
    """The smallest circuit found whose faithfulness is within `1 - faithfulness` of 1, on a batch of pairs.

    Edges (or nodes, with level="node") are scored by `method` (see `cutaway.methods`); the best `refine` are scored
    again by exact patching of each alone; the smallest prefix of that ranking that is faithful is pruned of everything
    it does not need. What is outside carries `baseline`. `positions` resolves nodes by position, `neurons` MLPs by
    neuron.

    Raises InputError for pairs that cannot be compared, MetricError for a metric that does not distinguish clean from
    corrupted.
    """
    if level not in ("edge", "node"):
        raise InputError(f"There is no level '{level}'; choose 'edge' or 'node'.")
    if not 0 < faithfulness <= 1 or refine < 1:
        raise InputError("A search needs 0 < faithfulness <= 1, and refine of at least 1.")
    metric = as_metric(metric)
    graph = EdgeGraph(clean, corrupted, baseline=baseline, positions=positions, neurons=neurons)
    search = _Search(graph, metric, level, progress or (lambda stage, done, of: None))
    search.measure_gap()
    search.progress("scoring edges", 0, 1)
    scores = score(graph, metric, method=method)
    ranked = search.rank(scores, refine)
    chosen, curve = search.shortest(ranked, 1 - faithfulness)
    chosen = search.prune(chosen, 1 - faithfulness)
    mask = search.mask(chosen)
    reached = float(search.faithfulness(mask[None])[0])
    settings = {
        "scores": scores.method, "baseline": graph.baseline, "refined": len(search.exact),
        "target_faithfulness": faithfulness,
        "positions": positions, "neurons": neurons, "evaluations": search.evaluations, "gap": search.gap,
        "clean": search.clean, "corrupted": search.corrupted,
    }  # fmt: skip
    exact = search.exact if level == "edge" else {}
    return Circuit(graph, metric, mask & graph.valid[:, :, None], scores, exact, level, reached, tuple(curve), settings)


@dataclass
class _Search:
    """What a search knows: the graph, the metric at both ends, and exact effects so far."""

    graph: EdgeGraph
    metric: Metric
    level: str
    progress: Progress
    clean: float = 0.0
    corrupted: float = 0.0
    gap: float = 0.0
    evaluations: int = 0
    exact: dict[tuple[int, int, int], float] = field(default_factory=dict)

    def measure_gap(self) -> None:
        """Measure the behaviour at both ends; raises MetricError when there is none."""
        clean, corrupted = ends(self.graph, self.metric)
        self.clean, self.corrupted = float(clean.mean()), float(corrupted.mean())
        self.gap = self.clean - self.corrupted
        check_distinguishes(self.metric, clean, corrupted)

    def faithfulness(self, masks: Tensor) -> Tensor:
        """[circuits]: the share of the behaviour that each mask keeps."""
        self.evaluations += len(masks)
        found = evaluate(self.graph, self.metric, masks)
        return (found.mean(1) - self.corrupted) / self.gap

    def masks(self, choices: Sequence[Sequence[Unit]]) -> Tensor:
        """[choices, readers, writers, positions]: the masks of sets of units, without dead ends."""
        masks = torch.zeros(len(choices), *self.graph.shape(), dtype=torch.bool)
        for mask, units in zip(masks, choices, strict=True):
            places = torch.tensor(units, dtype=torch.long).T
            if self.level == "node":
                mask[:, places[0], places[1]] = True
            else:
                mask[places[0], places[1], places[2]] = True
        return masks if self.level == "node" else trimmed(self.graph, masks)

    def mask(self, units: Sequence[Unit]) -> Tensor:
        """The mask of one set of units."""
        return self.masks([units])[0]

    def rank(self, scores: Scores, refine: int) -> list[Unit]:
        """All units, best first: exactly scored ones by exact effect, the rest by cheap score behind them."""
        if self.level == "node":
            table = scores.of("node")
            units: list[Unit] = [tuple(index) for index in table.nonzero().tolist()]
        else:
            table = scores.of("edge")
            units = [tuple(index) for index in table.nonzero().tolist()]
        units.sort(key=lambda unit: -abs(float(table[unit])))
        front = units[:refine]
        if not front:
            raise MetricError(f"The metric '{self.metric.name}' is reached by no edge that differs between the runs.")
        full = torch.ones(self.graph.shape(), dtype=torch.bool)
        effects: list[float] = []
        for start in range(0, len(front), 32):
            self.progress("exact patching", start, len(front))
            masks = full.repeat(len(front[start : start + 32]), 1, 1, 1)
            for mask, unit in zip(masks, front[start : start + 32], strict=True):
                if self.level == "node":
                    mask[:, unit[0], unit[1]] = False
                else:
                    mask[unit] = False
            effects += ((1 - self.faithfulness(masks)) * self.gap).tolist()
        measured = dict(zip(front, effects, strict=True))
        if self.level == "edge":
            self.exact = {(unit[0], unit[1], unit[2]): effect for unit, effect in measured.items()}
        front.sort(key=lambda unit: -abs(measured[unit]))
        return front + units[refine:]

    def shortest(self, ranked: list[Unit], slack: float) -> tuple[list[Unit], list[tuple[int, float]]]:
        """The shortest prefix of a ranking whose faithfulness is within `slack` of 1, and the curve of sizes tried."""
        sizes, size = [], 1
        while size < len(ranked):
            sizes.append(size)
            size = max(size + 1, int(size * 1.4))
        sizes.append(len(ranked))
        curve: list[tuple[int, float]] = []
        for start in range(0, len(sizes), 6):
            self.progress("choosing a size", start, len(sizes))
            batch = sizes[start : start + 6]
            found = self.faithfulness(self.masks([ranked[:count] for count in batch])).tolist()
            curve += list(zip(batch, found, strict=True))
            good = next((count for count, value in zip(batch, found, strict=True) if abs(1 - value) <= slack), None)
            if good is not None:
                before = max((count for count, _ in curve if count < good), default=0)
                between = list(range(before + 1, good))[:: max(1, (good - before) // 8)]
                if between:
                    finer = self.faithfulness(self.masks([ranked[:count] for count in between])).tolist()
                    curve += list(zip(between, finer, strict=True))
                    good = next((c for c, value in zip(between, finer, strict=True) if abs(1 - value) <= slack), good)
                return ranked[:good], sorted(curve)
        return ranked, sorted(curve)

    def prune(self, units: list[Unit], slack: float) -> list[Unit]:
        """Drop what the circuit does not need, in ever smaller groups, and single units last.

        Each round measures what each group is needed for, then drops as many of the least needed groups together as
        leave the circuit faithful. Rounds of single units go on until none can be dropped.
        """
        units = self._connected(units)
        groups = 8
        while len(units) > 1:
            single = groups >= len(units)
            self.progress("minimality", 0, len(units))
            size = 1 if single else -(-len(units) // groups)
            chunks = [units[start : start + size] for start in range(0, len(units), size)]
            fewer = self._drop(units, chunks, slack)
            if fewer is None and single:
                break
            if fewer is not None:
                units = self._connected(fewer)
            if fewer is None or not single:
                groups *= 2
        return units

    def _connected(self, units: list[Unit]) -> list[Unit]:
        mask = self.mask(units)
        return [unit for unit in units if mask[unit]] if self.level == "edge" else units

    def _drop(self, units: list[Unit], chunks: list[list[Unit]], slack: float) -> list[Unit] | None:
        """The units without as many chunks as stay faithful, or None when no chunk can go."""
        base = abs(1 - float(self.faithfulness(self.masks([units]))[0]))
        without = [[unit for unit in units if unit not in set(chunk)] for chunk in chunks]
        need = (1 - self.faithfulness(self.masks([rest or units for rest in without]))).abs() - base
        spare = [place for place in need.argsort().tolist() if float(need[place]) < slack]
        counts = sorted(
            {max(1, round(len(spare) * share)) for share in (1.0, 0.75, 0.5, 0.35, 0.2, 0.1, 0.05)} | {1, 2}
        )
        trials = []
        for count in reversed([count for count in counts if count <= len(spare)]):
            gone = {unit for place in spare[:count] for unit in chunks[place]}
            trials.append([unit for unit in units if unit not in gone])
        trials = [trial for trial in trials if trial]
        if not trials:
            return None
        found = (1 - self.faithfulness(self.masks(trials))).abs().tolist()
        limit = max(slack, base)
        return next((trial for trial, value in zip(trials, found, strict=True) if value <= limit), None)


def check_distinguishes(metric: Metric, clean: Tensor, corrupted: Tensor) -> None:
    """Raise MetricError when the metric is not finite, or not clearly different between clean and corrupted."""
    change = clean - corrupted
    if not torch.isfinite(change).all():
        raise MetricError(
            f"The metric '{metric.name}' is NaN or infinite on some examples; look at the network's output."
        )
    mean = float(change.mean())
    scale = float(torch.cat([clean, corrupted]).abs().mean()) + 1e-12
    error = float(change.std()) / len(change) ** 0.5 if len(change) > 1 else 0.0
    if abs(mean) < 1e-5 * scale or abs(mean) < 1.64 * error:
        raise MetricError(
            f"The metric '{metric.name}' does not distinguish clean from corrupted inputs: "
            f"{float(clean.mean()):.4g} against {float(corrupted.mean()):.4g} over {len(change)} examples "
            f"(standard error {error:.2g}); choose another metric or other inputs, or give more pairs."
        )
