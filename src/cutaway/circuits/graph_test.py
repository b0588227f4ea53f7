"""Is an attribution graph right about the network? Its strongest latents are taken away in the real run.

A latent's part is subtracted where it is written, so the error stays (`value + decode(change)`), and the network runs
on as it is: patterns, norms and MLPs answer. What the outputs lose is compared with what the graph says: direct and
indirect effects through latents that fire, all else frozen. Ameisen et al. 2025, "Circuit Tracing", on faithfulness.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..features.uncertainty import resampled
from ..run.interventions import apply
from .feature_graph import FeatureGraph
from .freezing import opened
from .replacement import places


@dataclass(frozen=True)
class GraphTest:
    """What taking latents away does: predicted and actual changes of the outputs, by latent.

    `correlation` (Pearson, over latents and outputs; higher is better, 1 is best) and `slope` (actual over predicted;
    nearer to 1 is better) are (value, low, high) with a 95 % bootstrap over latents; `control` is the same for latents
    drawn at random, and `effect` the mean size of the actual change of the strongest and of the random ones.
    """

    names: tuple[str, ...]
    predicted: Float[Tensor, "latents outputs"]
    actual: Float[Tensor, "latents outputs"]
    correlation: tuple[float, float | None, float | None]
    slope: tuple[float, float | None, float | None]
    control: tuple[float, float | None, float | None]
    effect: tuple[float, float]
    facts: dict[str, Any]

    def __str__(self) -> str:
        low, high = (f"{end:.3f}" if end is not None else "-" for end in self.correlation[1:])
        return (
            f"Taking {len(self.names)} latents away, one by one: predicted and actual changes correlate "
            f"{self.correlation[0]:.3f} [{low}, {high}] (1 is best; random latents {self.control[0]:.3f}), "
            f"mean change {self.effect[0]:.4g} (random latents {self.effect[1]:.4g})."
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able data."""
        rows = [
            {"latent": name, "predicted": one.tolist(), "actual": other.tolist()}
            for name, one, other in zip(self.names, self.predicted, self.actual, strict=True)
        ]
        return {
            "correlation": self.correlation, "slope": self.slope, "control_correlation": self.control,
            "mean_effect": self.effect[0], "control_mean_effect": self.effect[1], "latents": rows, **self.facts,
        }  # fmt: skip


def verify_graph(
    graph: FeatureGraph, *, count: int = 24, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> GraphTest:
    """Take the `count` latents of most influence away, one by one, and as many drawn at random from the others.

    Use the whole graph rather than a pruned one: of what was pruned, effects are not followed.
    Raises InputError for a graph with fewer than two latents.
    """
    latents = graph.latents
    if latents < 2:
        told = "A graph with fewer than two latents cannot be tested; give dictionaries whose latents fire."
        raise InputError(" ".join([told, *graph.notes]))
    order = graph.influence()[:latents].argsort(descending=True)
    top = order[:count]
    rest = order[count:] if latents >= 2 * count else order[latents // 2 :]
    drawn = rest[torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed))[:count]]
    both = torch.cat([top, drawn])
    predicted = removed(graph, both)
    actual = []
    for number, latent in enumerate(both.tolist()):
        actual.append(_ablated(graph, latent))
        if progress is not None:
            progress(number + 1, len(both))
    made = torch.stack(actual)
    strong, weak = slice(0, len(top)), slice(len(top), None)
    found = [(predicted[some].numpy(), made[some].numpy()) for some in (strong, weak)]
    facts = {
        "n": len(top), "control": f"{len(drawn)} random latents of less influence", "seed": seed,
        "interval": "95 %, bootstrap over latents", "better": "correlation and slope nearer to 1",
    }  # fmt: skip
    return GraphTest(
        tuple(graph.nodes[at].name for at in top.tolist()), predicted[strong], made[strong],
        resampled(lambda rows: _correlation(*(part[rows] for part in found[0])), len(top), seed=seed),
        resampled(lambda rows: _slope(*(part[rows] for part in found[0])), len(top), seed=seed),
        resampled(lambda rows: _correlation(*(part[rows] for part in found[1])), len(drawn), seed=seed),
        (float(made[strong].abs().mean()), float(made[weak].abs().mean())), facts,
    )  # fmt: skip


def removed(graph: FeatureGraph, which: Tensor) -> Float[Tensor, "removed outputs"]:
    """How the outputs change when each of some latents is taken away and all else that fires answers linearly."""
    latents = graph.latents
    first = torch.zeros(latents, len(which))
    first[which, torch.arange(len(which))] = -1.0
    answers, inner = graph.answers[:, None], graph.table[:latents, :latents]
    change, total = first, first.clone()
    for _ in range(latents):
        change = inner @ change * answers
        if not bool(change.any()):
            break
        total += change
    return (graph.table[latents:, :latents] @ total).T


def _ablated(graph: FeatureGraph, latent: int) -> Float[Tensor, " outputs"]:
    """How the outputs change in the real network."""
    node = graph.nodes[latent]
    dictionary, trace = graph.dictionaries[node.stand], graph.trace
    tape, _ = opened(trace, trace.lift())
    start, edits = 0, []
    for spot in places(trace, tape, dictionary)[1]:
        vector = dictionary.decoder[node.index, start : start + spot.width] * -node.activation
        change = spot.spread(torch.tensor([node.position]), vector[None].to(torch.float32))[0]
        edits.append(apply(spot.name, partial(_changed, change)))
        start += spot.width
    after = trace.replay(*edits).logits.detach()
    return graph.outputs.of(after) - graph.outputs.of(trace.logits.detach())


def _changed(change: Tensor, value: Tensor) -> Tensor:
    return value + change.view_as(value)


def _correlation(predicted: np.ndarray, actual: np.ndarray) -> float:
    one, other = predicted.ravel(), actual.ravel()
    return float(np.corrcoef(one, other)[0, 1]) if one.std() > 0 and other.std() > 0 else float("nan")


def _slope(predicted: np.ndarray, actual: np.ndarray) -> float:
    square = float((predicted * predicted).sum())
    return float((predicted * actual).sum()) / square if square else float("nan")
