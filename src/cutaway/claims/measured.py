"""What a circuit does on a set of pairs, example by example."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..attribution.edges import EdgeGraph
from ..attribution.metric import Metric
from ..attribution.mixture import ends, evaluate
from ..circuits.circuit import Circuit
from ..circuits.search import check_finite
from ..errors import MetricError
from .statistics import Interval, ratio_interval

Values = Float[np.ndarray, " batch"]


@dataclass(frozen=True, eq=False)
class Measured:
    """The metric of each example: `good` of the whole network, `bad` with everything ablated, `kept` of the circuit
    alone, `lost` of all but the circuit. `seed` is that of bootstrap draws."""

    graph: EdgeGraph
    metric: Metric
    mask: Tensor
    good: Values
    bad: Values
    kept: Values
    lost: Values
    seed: int

    @property
    def n(self) -> int:
        """How many examples there are."""
        return len(self.good)

    @property
    def gap(self) -> float:
        """The behaviour: the mean of the metric, clean minus ablated."""
        return float((self.good - self.bad).mean())

    @property
    def wins(self) -> int:
        """How many examples show the behaviour: their metric is higher clean than ablated."""
        return int((self.good > self.bad).sum())

    @property
    def faithfulness(self) -> Interval:
        """The share of the behaviour that the circuit keeps, with its interval."""
        return ratio_interval(self.kept - self.bad, self.good - self.bad, seed=self.seed)

    @property
    def completeness(self) -> Interval:
        """The share of the behaviour that is lost without the circuit, with its interval."""
        return ratio_interval(self.good - self.lost, self.good - self.bad, seed=self.seed)

    @property
    def per_example(self) -> Values:
        """Each example's faithfulness: 1 minus what the circuit falls short by, in mean behaviours."""
        return 1 - (self.good - self.kept) / self.gap

    @property
    def boot(self) -> str:
        """How intervals came about, in words."""
        one = "one example, so no interval"
        return f"95 % percentile bootstrap over {self.n} examples, 2000 draws" if self.n > 1 else one

    def shares(self, masks: Tensor) -> Float[np.ndarray, " circuits"]:
        """The faithfulness of other circuits, in chunks of 64."""
        if not len(masks):
            return np.zeros(0)
        found = [numpy(evaluate(self.graph, self.metric, part).mean(1)) for part in masks.split(64)]
        return (np.concatenate(found) - self.bad.mean()) / self.gap


def measure(circuit: Circuit, graph: EdgeGraph, metric: Metric, seed: int) -> Measured:
    """Run the circuit and its complement on a graph's examples.

    Raises MetricError when the metric is not finite, or the same with and without everything ablated.
    """
    good, bad = ends(graph, metric)
    change = good - bad
    check_finite(metric, change)
    if float(change.mean().abs()) < 1e-5 * float(torch.cat([good, bad]).abs().mean()) + 1e-30:
        raise MetricError(
            f"The metric '{metric.name}' does not distinguish clean from ablated on the tested examples, so there is "
            "no behaviour to explain; choose another metric or other inputs."
        )
    mask = circuit.mask if circuit.level == "edge" else node_mask(circuit)
    kept, lost = evaluate(graph, metric, torch.stack([mask, ~mask]))
    return Measured(graph, metric, mask, numpy(good), numpy(bad), numpy(kept), numpy(lost), seed)


def node_mask(circuit: Circuit) -> Tensor:
    """A circuit of nodes as a mask of all edges out of them."""
    return circuit.mask.any(0, keepdim=True).expand(circuit.mask.shape)


def numpy(tensor: Tensor) -> np.ndarray:
    """A tensor's values as float64 on the host."""
    return tensor.detach().double().cpu().numpy()
