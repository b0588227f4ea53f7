"""The control of a behaviour: does the same network show it with its weights in random order?

The entries of each weight tensor are permuted, which keeps their distribution and destroys what training put there
(after Adebayo et al. 2018, "Sanity checks for saliency maps", arXiv:1810.03292). On a network whose weights are random
already, the permuted ones cannot be told from it, so the p-value is right for it whatever its architecture: it is at
most 5 % in at most 5 % of untrained networks.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..attribution.edges import EdgeGraph
from ..attribution.methods import score
from ..attribution.metric import Metric
from ..circuits.loading import metric_from
from ..errors import InputError, MetricError
from ..run.network import Network
from ..run.structure import fresh
from ..run.trace import Trace, main_output
from .curves import circuit_curve

OWN_OUTPUT = ("output_distance", "kl_divergence")
NETWORKS, DEEP_NETWORKS = 39, 19  # the smallest p-value is 1 in 40, or 1 in 20


@dataclass(frozen=True)
class Control:
    """What was measured on the network and on `values` permuted ones, and how often those do at least as well, +1
    corrected. Without a copy of the network there is no p-value and `how` says why."""

    observed: float
    values: tuple[float, ...]
    p: float | None
    statistic: str
    how: str


def untrained(graph: EdgeGraph, metric: Metric, seed: int = 0) -> Control:
    """Compare the behaviour, the metric's mean difference between the runs, with that of permuted networks; without a
    corrupted run, the metric's mean.

    A distance from the network's own output differs between the runs of any network. There the question is whether few
    edges carry it: the area CMD of its strongest edges is compared, which takes scores on each permuted network.
    """
    if metric.facts.get("kind") in OWN_OUTPUT:
        count, statistic, measure = DEEP_NETWORKS, "negative CMD", _concentration
    else:
        count, statistic, measure = NETWORKS, "behaviour", _behaviour
    observed = measure(graph, metric, graph.net)
    try:
        twin = copy.deepcopy(graph.net.module)
    except (RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return Control(observed, (), None, statistic, f"the network cannot be copied: {reason}")
    with torch.random.fork_rng(devices=[]):
        values = tuple(measure(graph, metric, _opened(net, graph.net)) for net in _permuted(twin, count, seed))
    how = f"{count} networks, this one with each tensor's weights permuted (seed {seed}),"
    # A network that breaks down counts as one that does as well.
    as_good = sum(not value < observed for value in values)
    return Control(observed, values, (1 + as_good) / (1 + count), statistic, how)


def _permuted(twin: nn.Module, count: int, seed: int) -> Iterator[nn.Module]:
    """The copy with its weights in `count` random orders, one after another."""
    generator = torch.Generator().manual_seed(seed)
    weights = [parameter for parameter in twin.parameters() if parameter.is_floating_point()]
    originals = [parameter.detach().clone() for parameter in weights]
    for _ in range(count):
        with torch.no_grad():
            for parameter, original in zip(weights, originals, strict=True):
                order = torch.randperm(original.numel(), generator=generator).to(original.device)
                parameter.copy_(original.flatten()[order].view_as(parameter))
        yield twin


def _opened(module: nn.Module, like: Network) -> Network:
    return Network(
        module, name=f"{like.name}, permuted", source="module", tokenizer=like.tokenizer, lifter=like.lifter
    )  # fmt: skip


@torch.no_grad()
def _behaviour(graph: EdgeGraph, metric: Metric, net: Network) -> float:
    sides = [_output(net, side) for side in (graph.clean_trace, graph.corrupted_trace) if side is not None]
    values = [float(metric(output, net).double().mean()) for output in sides]
    return values[0] - values[1] if len(values) == 2 else values[0]


def _output(net: Network, side: Trace) -> Tensor:
    if net is side.net:
        return side.logits
    args, kwargs = fresh((side.args, side.kwargs))
    return main_output(net.module(*args, **kwargs))


def _concentration(graph: EdgeGraph, metric: Metric, net: Network) -> float:
    """Minus the CMD of the strongest edges by score; minus infinity where the network has no edges that matter."""
    clean, corrupted = graph.clean_trace, graph.corrupted_trace
    try:
        if net is not graph.net:
            sides = [net.record(*side.args, **side.kwargs) for side in (clean, corrupted) if side is not None]
            clean, corrupted = sides[0], sides[1] if len(sides) == 2 else None
        options = dict(graph.options)
        if not isinstance(options["baseline"], str):  # constants of one network say nothing about another
            options["baseline"] = "counterfactual" if corrupted is not None else "zero"
        there = EdgeGraph(clean, corrupted, **options)
        asked = metric_from(metric.facts, clean)
        return -circuit_curve(score(there, asked), there, asked).cmd[0]
    except (InputError, MetricError):
        return -float("inf")
