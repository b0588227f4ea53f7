"""The control of a behaviour: does the same network show it as clearly with its weights in random order?

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
from ..attribution.metric import Metric
from ..run.network import Network
from ..run.structure import fresh
from ..run.trace import Trace, main_output

OWN_OUTPUT = ("output_distance", "kl_divergence")
NETWORKS = 39  # so the smallest p-value is 1 in 40


@dataclass(frozen=True)
class Control:
    """How far clean and corrupted examples differ, in standard deviations of examples, in the network and in permuted
    ones, and how often those do as well, +1 corrected. There is no p-value where the control cannot be made; `how`
    says why."""

    observed: float
    values: tuple[float, ...]
    p: float | None
    how: str


def untrained(graph: EdgeGraph, metric: Metric, seed: int = 0) -> Control:
    """Compare how well the metric separates the clean from the corrupted examples (from 0, without a corrupted run)
    with how well it does in permuted networks. A metric that is a distance from the network's own output has no such
    control: every network has an output of its own.
    """
    observed = _separation(graph, metric, graph.net)
    if metric.facts.get("kind") in OWN_OUTPUT:
        return Control(observed, (), None, f"every network has an {metric.name} from its own output")
    try:
        twin = copy.deepcopy(graph.net.module)
    except (RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return Control(observed, (), None, f"the network cannot be copied: {reason}")
    with torch.random.fork_rng(devices=[]):
        values = tuple(_separation(graph, metric, _opened(net, graph.net)) for net in _permuted(twin, NETWORKS, seed))
    how = f"{NETWORKS} networks, this one with each tensor's weights permuted (seed {seed})"
    # A network that breaks down counts as one that does as well.
    as_good = sum(not value < observed for value in values)
    return Control(observed, values, (1 + as_good) / (1 + NETWORKS), how)


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
def _separation(graph: EdgeGraph, metric: Metric, net: Network) -> float:
    """The difference between the sides' means over the deviation of examples from them, which has no scale."""
    sides = [_output(net, side) for side in (graph.clean_trace, graph.corrupted_trace) if side is not None]
    values = [metric(output, net).double() for output in sides]
    means = [value.mean() for value in values]
    spread = torch.cat([value - mean for value, mean in zip(values, means, strict=True)]).square().mean().sqrt()
    apart = means[0] - means[1] if len(means) == 2 else means[0]
    least = 1e-6 * torch.cat(values).abs().max() + 1e-30  # for examples that are all alike
    return float(apart / spread.clamp_min(least))


def _output(net: Network, side: Trace) -> Tensor:
    if net is side.net:
        return side.logits
    args, kwargs = fresh((side.args, side.kwargs))
    return main_output(net.module(*args, **kwargs))
