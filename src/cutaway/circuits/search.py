"""Finding the circuit behind a behaviour by one of several searches, and saying beforehand what it will take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..attribution.baselines import Baseline
from ..attribution.edges import EdgeGraph
from ..attribution.methods import Method, method_named, score
from ..attribution.metric import Metric, as_metric
from ..attribution.mixture import BUDGET, evaluate
from ..errors import InputError, MetricError, ResourceError
from ..run.structure import tensors
from ..run.trace import Trace
from .circuit import Circuit
from .searches import Search, search_named
from .task import WORLDS, Goal, Progress, Spent, Task

MEMORY = 8 << 30  # bytes that a search may hold, unless told
_GRAPH = ("positions", "neurons", "seed")
_SHARED = (*_GRAPH, "method_options", "memory")
_FIXED = 40 << 20  # bytes that torch takes for its own
_TIGHT = 1e-4  # what rounding may do to a faithfulness of 1


def find_circuit(
    clean: Trace,
    corrupted: Trace | None,
    metric: Metric | Callable[[Tensor], Tensor],
    *,
    level: str = "edge",
    search: str = "refine",
    method: str = "eap-ig",
    baseline: Baseline = "counterfactual",
    faithfulness: float = 0.9,
    size: int | None = None,
    max_forwards: int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Circuit:
    """The smallest circuit found whose faithfulness is within `1 - faithfulness` of 1, on a batch of pairs; with a
    `size`, the most faithful one found of at most so many edges (nodes with level="node").

    `search` is one of `cutaway.searches()`; it starts from scores by `method` (one of `cutaway.methods()`). What is
    outside carries `baseline`. `max_forwards` bounds the forward and backward passes: the best circuit within it is
    returned, and its settings say so. `options` are the search's, and: positions=True and neurons=True to tell those
    apart, seed=, method_options= (a dict), memory= (bytes).

    Raises InputError for pairs that cannot be compared and questions that make no sense, MetricError for a metric that
    does not distinguish clean from corrupted, ResourceError when even the least of it exceeds a limit.
    """
    plan = plan_of(level, search, method, options, faithfulness, size)
    _check_passes(max_forwards)
    metric = as_metric(metric)
    graph = plan.graph(clean, corrupted, baseline)
    return search_graph(graph, metric, plan, max_forwards, progress)


@dataclass(frozen=True)
class CircuitForecast:
    """What a search takes at most: `passes` forward and backward passes for the scores, `forwards` with those of the
    search; `bytes` held at once; `seconds` extrapolated from timed passes."""

    edges: int
    nodes: int
    passes: float
    forwards: float
    bytes: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.edges:,} edges, {self.nodes:,} nodes: at most {self.forwards:,.0f} forward and backward passes, "
            f"{self.passes:,.0f} of them for scores; about {self.seconds:.2g} s and {self.bytes / 2**20:,.0f} MiB"
        )


def forecast_circuit(
    clean: Trace,
    corrupted: Trace | None,
    metric: Metric | Callable[[Tensor], Tensor],
    *,
    level: str = "edge",
    search: str = "refine",
    method: str = "eap-ig",
    baseline: Baseline = "counterfactual",
    size: int | None = None,
    max_forwards: int | None = None,
    **options: Any,
) -> CircuitForecast:
    """What `find_circuit` with these arguments takes at most, from timed passes. Raises what it raises."""
    plan = plan_of(level, search, method, options, 0.9, size)
    _check_passes(max_forwards)
    metric = as_metric(metric)
    graph = plan.graph(clean, corrupted, baseline)
    task = Task(graph, metric, level, None, Goal(0.1, size))
    check_distinguishes(metric, *task.ends)
    units = len(task.universe)
    passes = plan.passes(graph)
    forwards = passes + plan.search.forwards(units, plan.options)
    if max_forwards is not None:
        forwards = max(passes + 1, min(forwards, float(max_forwards)))
    some = task.full & (torch.rand(graph.shape(), generator=torch.Generator().manual_seed(0)) < 0.5)
    inside = task.inside(some) or task.universe
    masks = task.without(some, inside[:: max(1, len(inside) // 8)][:8])  # as searches have them: one change each
    one = _seconds(graph, metric, masks[:1])
    each = _seconds(graph, metric, masks) / len(masks)
    # A backward pass is about twice a forward one, and a score's forward pass has no worlds to share.
    seconds = (forwards - passes) * each + 1.5 * passes * one
    edges = int(graph.valid.sum()) * graph.positions
    return CircuitForecast(edges, len(graph.writers), passes, forwards, needed_bytes(graph), seconds)


@dataclass(frozen=True)
class Plan:
    """What was asked for, checked."""

    level: str
    search: Search
    method: Method
    options: dict[str, Any]
    shared: dict[str, Any]
    goal: Goal

    def graph(self, clean: Trace, corrupted: Trace | None, baseline: Baseline) -> EdgeGraph:
        """The edge graph. Raises InputError when there is nothing to compare or the size is beyond it."""
        graph = edge_graph(clean, corrupted, baseline, {k: v for k, v in self.shared.items() if k in _GRAPH})
        units = int(graph.testable(self.level).sum())
        if self.goal.size is not None and self.goal.size > units:
            raise InputError(
                f"A circuit of {self.goal.size:,} {self.level}s is wanted and {units:,} differ between "
                "the runs; choose a smaller size."
            )
        return graph

    @property
    def method_options(self) -> dict[str, Any]:
        """The scoring method's options, those given and the defaults."""
        return {**self.method.options(), **self.shared.get("method_options", {})}

    def passes(self, graph: EdgeGraph) -> float:
        """Forward and backward passes for the scores."""
        return float(self.method.passes(graph, self.method_options)) if self.search.needs_scores else 0.0


def plan_of(
    level: str, search: str, method: str, options: Mapping[str, Any], faithfulness: float, size: int | None
) -> Plan:
    """What is asked for, checked. Raises InputError for anything that does not exist or is out of range."""
    if level not in ("edge", "node"):
        raise InputError(f"There is no level '{level}'; choose 'edge' or 'node'.")
    if not 0 < faithfulness <= 1:
        raise InputError(f"A search needs 0 < faithfulness <= 1, and it is {faithfulness}.")
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise InputError(f"A circuit's size is a whole number of {level}s, 1 or more, and it is {size!r}.")
    chosen, scoring = search_named(search, level), method_named(method)
    if chosen.needs_scores and level not in scoring.levels:
        raise InputError(f"The method '{method}' scores no {level}s; choose another method or level.")
    shared = {name: value for name, value in options.items() if name in _SHARED}
    scoring.check(shared.get("method_options", {}))
    own = chosen.checked({name: value for name, value in options.items() if name not in _SHARED})
    return Plan(level, chosen, scoring, own, shared, Goal(max(1 - faithfulness, _TIGHT), size))


def _check_passes(limit: Any) -> None:
    """Raise InputError for a limit that is no number."""
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, (int, float)) or math.isnan(limit)):
        raise InputError(f"max_forwards is a number of passes, and {limit!r} was given.")


def search_graph(
    graph: EdgeGraph,
    metric: Metric,
    plan: Plan,
    max_forwards: int | None = None,
    progress: Progress | None = None,
    allowed: Tensor | None = None,
    scores: Any = None,
) -> Circuit:
    """Search in a graph, within the edges of the mask `allowed`; see `find_circuit`."""
    report: Progress = progress or (lambda stage, done, of: None)
    task = Task(graph, metric, plan.level, None, plan.goal, report=report, allowed=allowed)
    check_distinguishes(metric, *task.ends)
    own = plan.search.forwards(len(task.universe), plan.options)
    passes = 0.0 if scores is not None else plan.passes(graph)
    least = passes + (own if plan.search.whole else 2)
    if max_forwards is not None and least > max_forwards:
        raise ResourceError(
            f"The search '{plan.search.name}' needs at least {least:,.0f} forward and backward passes and the limit "
            f"is {max_forwards:,}; raise max_forwards, or choose a cheaper search or scoring method."
        )
    bytes_, memory = needed_bytes(graph), plan.shared.get("memory", MEMORY)
    if bytes_ > memory:
        raise ResourceError(
            f"The search needs about {bytes_:,} bytes and the limit is {memory:,}; give fewer examples, leave out "
            "positions or neurons, or raise memory."
        )
    if plan.search.needs_scores and scores is None:
        report(f"scoring {plan.level}s", 0, 1)
        scores = score(graph, metric, method=plan.method.name, **plan.shared.get("method_options", {}))
        task.forwards = passes
    task.scores = scores
    task.limit = min(passes + own, max_forwards if max_forwards is not None else math.inf)
    stopped = False
    try:
        mask = plan.search.function(task, **plan.options)
        reached = float(task.faithfulness(mask[None])[0])
    except Spent:
        stopped, mask, reached = True, task.best[1], task.best[2]
    return _circuit(task, plan, mask, reached, stopped, max_forwards)


def _circuit(task: Task, plan: Plan, mask: Tensor, reached: float, stopped: bool, max_forwards: int | None) -> Circuit:
    graph = task.graph
    settings: dict[str, Any] = {
        "search": {"name": plan.search.name, **plan.options},
        "scores": task.scores.method if task.scores is not None else plan.search.name,
        "method": {"name": plan.method.name, **plan.method_options} if plan.search.needs_scores else None,
        "baseline": graph.baseline,
        "refined": len(task.exact),
        "target_faithfulness": None if plan.goal.size is not None else 1 - plan.goal.slack,
        "target_size": plan.goal.size,
        **{name: graph.options[name] for name in _GRAPH},
        "evaluations": task.evaluations, "forwards": task.forwards,
        "max_forwards": max_forwards, "stopped_by_limit": stopped,
        "gap": task.gap, "clean": task.clean, "corrupted": task.corrupted, **task.facts,
    }  # fmt: skip
    exact = {(row, column, place): effect for (row, column, place), effect in task.exact.items()}
    scores = task.scores
    assert scores is not None, "a search without cheap scores leaves its own"
    curve = tuple(sorted(set(task.curve)))
    return Circuit(graph, task.metric, mask & task.full, scores, exact, plan.level, reached, curve, settings)


def edge_graph(clean: Trace, corrupted: Trace | None, baseline: Baseline, options: Mapping[str, Any]) -> EdgeGraph:
    """The edge graph of two runs. Raises InputError when the corrupted inputs are the clean ones."""
    if baseline == "counterfactual" and isinstance(clean, Trace) and isinstance(corrupted, Trace):
        pairs = [list(tensors((run.args, run.kwargs))) for run in (clean, corrupted)]
        same = [len(pairs[0]) == len(pairs[1])] + [torch.equal(a, b) for a, b in zip(*pairs, strict=False)]
        if pairs[0] and all(same):
            raise InputError(
                "The corrupted inputs are the clean ones, so nothing can be told apart; change what the behaviour "
                "depends on, or choose baseline='zero', 'mean' or 'resample'."
            )
    return EdgeGraph(clean, corrupted, baseline=baseline, **options)


def needed_bytes(graph: EdgeGraph) -> int:
    """About how many bytes it takes to measure circuits on a graph: worlds of every write, their masks, and mixtures.

    Mixtures are held several times over on their way into a read; measured on convolutions and transformers.
    """
    sizes = [value.numel() for value in graph.clean.values()]
    each = max(value.element_size() for value in graph.clean.values())
    widest = max((len(columns) for columns in graph.columns.values()), default=1)
    slots = max((len(port.rows) for part in graph.parts for port in part.ports), default=1)
    masks = 5 * math.prod(graph.shape()) + 24 * slots * widest * graph.positions
    worlds = min(WORLDS, max(8, 8 * BUDGET // sum(sizes)))  # as many as `evaluate` takes together
    mixtures = slots * min(8 * BUDGET / len(graph.writers), worlds * max(sizes))
    return int(_FIXED + worlds * masks + each * (2 * (worlds + 1) * sum(sizes) + 10 * mixtures))


def check_finite(metric: Metric, change: Tensor) -> None:
    """Raise MetricError when a metric's change is not finite on every example."""
    if not torch.isfinite(change).all():
        raise MetricError(
            f"The metric '{metric.name}' is NaN or infinite on some examples; look at the network's output."
        )


def check_distinguishes(metric: Metric, clean: Tensor, corrupted: Tensor) -> None:
    """Raise MetricError when the metric is not finite, is constant, or is not clearly different between clean and
    corrupted."""
    change = clean - corrupted
    check_finite(metric, change)
    both = torch.cat([clean, corrupted])
    if bool((both == both[0]).all()):
        raise MetricError(
            f"The metric '{metric.name}' is {float(both[0]):.4g} for every example, clean or corrupted, and does not "
            "distinguish them; choose a metric that depends on the output."
        )
    mean, scale = float(change.mean()), float(both.abs().mean()) + 1e-12
    spread = float(change.std()) if len(change) > 1 else 0.0
    error = spread / len(change) ** 0.5
    if abs(mean) < 1e-5 * scale or abs(mean) < 1.64 * error:
        least = math.ceil((1.64 * spread / mean) ** 2) if abs(mean) >= 1e-5 * scale else 0
        pairs = f"give about {least:,} pairs" if least else "give more pairs"
        raise MetricError(
            f"The metric '{metric.name}' does not distinguish clean from corrupted inputs: "
            f"{float(clean.mean()):.4g} against {float(corrupted.mean()):.4g} over {len(change)} examples "
            f"(standard error {error:.2g}); choose another metric or other inputs, or {pairs}."
        )


def _seconds(graph: EdgeGraph, metric: Metric, masks: Tensor) -> float:
    start = time.perf_counter()
    evaluate(graph, metric, masks)
    return time.perf_counter() - start
