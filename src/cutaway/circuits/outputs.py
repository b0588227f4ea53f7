"""The outputs that an attribution graph ends in: the largest ones, those that are named, or any number made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..attribution.metric import Metric, as_metric, check_gradient, class_ids
from ..errors import InputError, MetricError
from ..run.network import Network
from .direct_effects import Targets
from .replacement import Spot

_ENOUGH = 0.95  # of all probability, as published


@dataclass(frozen=True, eq=False)
class Outputs:
    """Outputs as targets: each reads the rows of the output at `rows` by `vectors` [outputs, rows, width]. `ids` are
    classes or tokens (-1 where an output is none), `weights` what each counts in influence."""

    spot: Spot
    rows: Int[Tensor, " rows"]
    vectors: Float[Tensor, "outputs rows width"]
    labels: tuple[str, ...]
    ids: tuple[int, ...]
    weights: Float[Tensor, " outputs"]
    told: dict[str, Any]

    def of(self, output: Tensor) -> Float[Tensor, " outputs"]:
        """What they are in a run with this main output."""
        return torch.einsum("orw,rw->o", self.vectors, self.spot.rows(output)[self.rows])

    def targets(self, first: int) -> Targets:
        """As targets whose numbers begin at `first`."""
        count = len(self.labels)
        reads = tuple((self.spot, row.expand(count), self.vectors[:, at]) for at, row in enumerate(self.rows))
        return Targets(torch.arange(first, first + count), reads, torch.zeros(count))


def outputs(
    spot: Spot,
    whole: Tensor,
    net: Network,
    asked: Sequence[str | int] | Metric | Callable[[Tensor], Tensor] | None,
    position: int,
    most: int,
) -> Outputs:
    """The outputs that were asked for; nothing asked for, the largest up to 95 % of probability, at most `most`.

    A class's target is its output minus the mean output. Raises MetricError for a class, token or position that is not
    there, and for a metric without a gradient.
    """
    if isinstance(asked, Metric) or callable(asked):
        return _scalar(spot, whole, as_metric(asked), net)
    rows = spot.rows(whole)
    if not -len(rows) <= position < len(rows):
        raise MetricError(f"There is no position {position}; the output has {len(rows)}.")
    row = position % len(rows)
    chances = rows[row].softmax(-1) if spot.width > 1 else torch.ones(1)
    if asked is None:
        ordered = chances.sort(descending=True)
        count = min(int((ordered.values.cumsum(0) < _ENOUGH).sum()) + 1, most, spot.width)
        ids = ordered.indices[:count].tolist()
    else:
        if isinstance(asked, (str, int)) or not len(asked):
            raise InputError("Targets are a list of tokens or classes, such as [' Mary', ' John'].")
        ids = [int(class_ids(one, rows[row : row + 1], net)[0]) for one in asked]
    vectors = torch.zeros(len(ids), 1, spot.width)
    vectors[torch.arange(len(ids)), 0, torch.tensor(ids)] = 1.0
    if spot.width > 1:
        vectors -= 1.0 / spot.width
    labels = tuple(net.token_text(one) if spot.width > 1 else "output" for one in ids)
    told = {"position": row, "ids": ids, "labels": list(labels), "less": "the mean output" if spot.width > 1 else ""}
    return Outputs(spot, torch.tensor([row]), vectors, labels, tuple(ids), chances[torch.tensor(ids)], told)


def _scalar(spot: Spot, whole: Tensor, metric: Metric, net: Network) -> Outputs:
    """A number made of the output, by its gradient in this run."""
    with torch.enable_grad():
        leaf = whole.detach().clone().requires_grad_()
        made = metric(leaf, net).sum()
        check_gradient(metric, made)
        (slope,) = torch.autograd.grad(made, leaf)
    slopes = spot.rows(slope)
    rows = slopes.any(-1).nonzero()[:, 0]
    if not len(rows):
        raise MetricError(f"The metric '{metric.name}' has no gradient at this run's output; choose another.")
    told = {"metric": metric.facts, "value": float(made.detach())}
    return Outputs(spot, rows, slopes[rows][None], (metric.name,), (-1,), torch.ones(1), told)
