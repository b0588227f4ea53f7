"""How much a circuit depends on which examples were drawn: the same search on bootstrap resamples.

Scores are means over examples, so a resample is one more scoring with a metric that counts each example as often as it
was drawn: any scoring method can be asked, without a run of its own for each resample.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..attribution.edges import EdgeGraph
from ..attribution.methods import score
from ..attribution.metric import Metric
from ..circuits.circuit import Circuit
from ..circuits.ranked import fitting
from ..circuits.task import Goal, Task
from ..errors import InputError
from .statistics import jaccard


@dataclass(frozen=True)
class Stability:
    """Mean Jaccard overlap of the circuits of two resamples (1 is best), its central 95 % over pairs of them, what
    random sets of the size would have, and in how many resamples each part of the circuit was found again."""

    jaccard: float
    low: float
    high: float
    chance: float
    inclusion: dict[str, float]
    facts: dict[str, Any]


def stability(
    circuit: Circuit,
    graph: EdgeGraph | None = None,
    metric: Metric | None = None,
    *,
    method: str = "eap-ig",
    draws: int = 10,
    seed: int = 0,
) -> Stability:
    """Resample the examples `draws` times; each time score by `method` and take the strongest edges (or nodes), as many
    as the circuit has. A "resample" baseline draws its other examples anew as well.

    Raises InputError for fewer than two draws or examples.
    """
    graph, metric = graph or circuit.graph, metric or circuit.metric
    if draws < 2 or graph.batch < 2:
        raise InputError("Stability compares circuits of resampled examples; give 2 or more examples and draws.")
    random = np.random.default_rng(seed)
    size = int((circuit.mask.any(0) if circuit.level == "node" else circuit.mask).sum())
    found = []
    for draw in range(draws):
        if "seed" in graph.baseline:
            graph = graph.on(graph.clean_trace, graph.corrupted_trace, seed=seed + draw)
        counts = np.bincount(random.integers(0, graph.batch, graph.batch), minlength=graph.batch)
        scores = score(graph, weighted(metric, torch.from_numpy(counts)), method=method)
        task = Task(graph, metric, circuit.level, scores, Goal(0.1, size))
        mask = fitting(task, task.ranked(), size)
        found.append((mask.any(0) if circuit.level == "node" else mask).numpy())
    overlaps = [jaccard(one, other) for one, other in combinations(found, 2)]
    share = np.mean(found, 0)
    inclusion = {name: float(share[unit]) for unit, name in named_parts(graph, circuit.mask, circuit.level)}
    # Random sets of k of n share k²/n on average.
    shared = size**2 / max(len(task.universe), 1)
    facts = {"method": method, "draws": draws, "examples": graph.batch, "size": size, "seed": seed}
    low, high = np.quantile(overlaps, [0.025, 0.975])
    chance = shared / max(2 * size - shared, 1e-12)
    return Stability(float(np.mean(overlaps)), float(low), float(high), chance, inclusion, facts)


def weighted(metric: Metric, weights: Tensor) -> Metric:
    """The metric with each example's value times its weight. weights: [batch]."""
    return replace(metric, read=lambda output, net: metric.read(output, net) * weights.to(output))


def named_parts(graph: EdgeGraph, mask: Tensor, level: str) -> list[tuple[tuple[int, ...], str]]:
    """Each edge (reader, writer, position) or node (writer, position) of a mask, and its name."""
    many = graph.positions > 1
    if level == "node":
        units = [tuple(unit) for unit in mask.any(0).nonzero().tolist()]
        return [(unit, graph.writers[unit[0]] + (f"@{unit[1]}" if many else "")) for unit in units]
    units = [tuple(unit) for unit in mask.nonzero().tolist()]
    return [(unit, graph.edge_name(unit[0], unit[1]) + (f"@{unit[2]}" if many else "")) for unit in units]
