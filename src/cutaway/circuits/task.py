"""What every search works with: a graph, a metric at both ends, and circuits measured exactly within a bound."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..attribution.edges import EdgeGraph
from ..attribution.metric import Metric
from ..attribution.mixture import ends, evaluate
from ..attribution.scores import Scores
from .circuit import trimmed

Unit = tuple[int, ...]
Progress = Callable[[str, int, int], None]
WORLDS = 32  # circuits that are measured together at most


class Spent(Exception):
    """The bound on forward passes is reached; the best circuit so far stands in the task."""


@dataclass(frozen=True)
class Goal:
    """The smallest circuit whose faithfulness is within `slack` of 1, or, with a `size`, the one of at most so many
    edges or nodes whose faithfulness is closest to 1."""

    slack: float
    size: int | None = None

    def key(self, count: int, faithfulness: float) -> tuple[int | float, ...]:
        """Sorts circuits, the best first."""
        apart = abs(1 - faithfulness)
        if self.size is not None:
            return (max(0, count - self.size), apart, count)
        return (0, count, apart) if apart <= self.slack else (1, apart, count)


class Task:
    """A search under way. `scores` are the cheap ones; `exact` collects exact effects of single edges, `curve` the
    (size, faithfulness) of circuits tried for their size; `forwards` counts what was spent of `limit`."""

    def __init__(
        self, graph: EdgeGraph, metric: Metric, level: str, scores: Scores | None, goal: Goal,
        limit: float = float("inf"), report: Progress | None = None, allowed: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.metric, self.level, self.scores, self.goal, self.limit = metric, level, scores, goal, limit
        self.report: Progress = report or (lambda stage, done, of: None)
        self.exact: dict[Unit, float] = {}
        self.curve: list[tuple[int, float]] = []
        self.forwards = float(scores.passes) if scores is not None else 0.0
        self.evaluations = 0
        self.facts: dict[str, object] = {}
        self._known: dict[tuple[int, bytes], float] = {}
        self.on(graph, allowed)

    def on(self, graph: EdgeGraph, allowed: Tensor | None = None) -> None:
        """Go on with this graph (other values of what is ablated), within the edges of the mask `allowed`."""
        self.graph = graph
        testable = graph.testable("edge")
        self.full: Bool[Tensor, "readers writers positions"] = testable if allowed is None else testable & allowed
        self._known.clear()
        good, bad = ends(graph, self.metric)
        self.ends = good, bad
        self.clean, self.corrupted = float(good.mean()), float(bad.mean())
        self.gap = self.clean - self.corrupted
        self.best: tuple[tuple[float, ...], Tensor, float] = (self.goal.key(self.count(self.full), 1.0), self.full, 1.0)

    # ---- units

    @property
    def universe(self) -> list[Unit]:
        """Every edge (reader, writer, position) or node (writer, position) that can be tested."""
        table = self.full if self.level == "edge" else self.full.any(0)
        return [tuple(unit) for unit in table.nonzero().tolist()]

    def ranked(self) -> list[Unit]:
        """All units by the size of their cheap score, the largest first."""
        strength = self.strength()
        return sorted(strength, key=lambda unit: -strength[unit])

    def strength(self) -> dict[Unit, float]:
        """The size of every unit's cheap score."""
        assert self.scores is not None, "a search that ranks by scores says that it needs them"
        units = self.universe
        table = self.scores.of(self.level).abs()
        return dict(zip(units, table[tuple(torch.tensor(units, dtype=torch.long).T)].tolist(), strict=True))

    def masks(self, choices: Sequence[Sequence[Unit]]) -> Bool[Tensor, "choices readers writers positions"]:
        """The masks of sets of units, without dead ends."""
        masks = torch.zeros(len(choices), *self.graph.shape(), dtype=torch.bool)
        for mask, units in zip(masks, choices, strict=True):
            if units:
                mask[self._places(units)] = True
        return masks & self.full if self.level == "node" else trimmed(self.graph, masks & self.full)

    def without(self, mask: Tensor, units: Sequence[Unit]) -> Bool[Tensor, "units readers writers positions"]:
        """A mask without each of some units alone; dead ends stay, so that each is one change."""
        masks = mask.repeat(len(units), 1, 1, 1)
        for row, unit in zip(masks, units, strict=True):
            row[self._places([unit])] = False
        return masks

    def inside(self, mask: Tensor) -> list[Unit]:
        """The units of a mask."""
        table = mask if self.level == "edge" else mask.any(0)
        return [tuple(unit) for unit in table.nonzero().tolist()]

    def count(self, mask: Tensor) -> int:
        """How many edges or nodes a mask has."""
        return int((mask if self.level == "edge" else mask.any(0)).sum())

    def _places(self, units: Sequence[Unit]) -> tuple[slice | Tensor, ...]:
        places = tuple(torch.tensor(units, dtype=torch.long).T)
        return places if self.level == "edge" else (slice(None), *places)

    # ---- measuring

    def faithfulness(self, masks: Tensor) -> Float[Tensor, " circuits"]:
        """The share of the behaviour that each mask keeps. Raises Spent when the bound leaves no pass for one.

        Better circuits than the best so far are remembered.
        """
        return (self.measure(masks) - self.corrupted) / self.gap

    def faithful(self, mask: Tensor) -> bool:
        """Whether a circuit is within the slack of faithfulness 1."""
        return abs(1 - float(self.faithfulness(mask[None])[0])) <= self.goal.slack

    def measure(self, masks: Tensor, metric: Metric | None = None) -> Float[Tensor, " circuits"]:
        """The mean of a metric under each mask; one that was measured before costs nothing."""
        wanted = metric or self.metric
        keys = [(id(wanted), _digest(mask & self.full)) for mask in masks]
        new = {key: place for place, key in enumerate(keys) if key not in self._known}
        for start in range(0, len(new), WORLDS):
            due = list(new.items())[start : start + WORLDS]
            part = due[: max(0, int(min(self.limit - self.forwards, WORLDS)))]
            if not part:
                raise Spent
            picked = masks[[place for _, place in part]]
            values = evaluate(self.graph, wanted, picked).mean(1).tolist()
            self.forwards += len(part)
            self.evaluations += len(part)
            for (key, _), mask, value in zip(part, picked, values, strict=True):
                self._known[key] = value
                if wanted is self.metric:
                    self._offer(mask, (value - self.corrupted) / self.gap)
            if len(part) < len(due):
                raise Spent
        return torch.tensor([self._known[key] for key in keys], dtype=torch.float64)

    def _offer(self, mask: Tensor, faithfulness: float) -> None:
        key = self.goal.key(self.count(mask & self.full), faithfulness)
        if key < self.best[0]:
            self.best = (key, mask & self.full, faithfulness)


def _digest(mask: Tensor) -> bytes:
    return hashlib.blake2b(mask.contiguous().numpy().tobytes(), digest_size=16).digest()
