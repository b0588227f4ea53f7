"""The control of a behaviour: does the same network show it as clearly with its weights in random order?

The entries of each weight tensor are permuted, which keeps their distribution and destroys what training put there
(after Adebayo et al. 2018, "Sanity checks for saliency maps", arXiv:1810.03292). On a network whose weights are random
already, the permuted ones cannot be told from it, so the p-value is right for it whatever its architecture: it is at
most 5 % in at most 5 % of untrained networks.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from ..attribution.edges import EdgeGraph
from ..attribution.metric import Metric, at_position, class_ids, logit, logit_difference
from ..run.network import Network
from ..run.structure import fresh
from ..run.trace import Trace, main_output

OWN_OUTPUT = ("output_distance", "kl_divergence")
NETWORKS = 39  # so the smallest p-value is 1 in 40
MOST = 4  # times as many are tried where some predict the same for all inputs, so that no answers could be chosen
LEAST = 0.25  # the share of pairs whose predictions differ that a choice of answers needs
FEW = 5  # with fewer examples their deviation says nothing
OWN = 0.9  # the share of answers that are predictions from which on they count as chosen from the output
ROLES = {"correct": 0, "answer": 0, "wrong": -1}  # answers, and the side (clean, corrupted) that may have given them


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
    sides = _outputs(graph, graph.net)
    observed = _separation(metric, sides, graph.net)
    if metric.facts.get("kind") in OWN_OUTPUT:
        return Control(observed, (), None, f"every network has an {metric.name} from its own output")
    if graph.batch < FEW:
        return Control(observed, (), None, f"too few examples ({FEW} or more are needed)")
    own = _own_answers(metric, sides, graph.net)
    try:
        twin = copy.deepcopy(graph.net.module)
    except (RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return Control(observed, (), None, f"the network cannot be copied: {reason}")
    with torch.random.fork_rng(devices=[]):
        drawn = _permuted(twin, MOST * NETWORKS if own else NETWORKS, seed)
        found = (_chosen(graph, metric, own, _opened(net, graph.net)) for net in drawn)
        values = tuple(islice((value for value in found if value is not None), NETWORKS))
    how = f"{NETWORKS} networks, this one with each tensor's weights permuted (seed {seed})"
    if own:
        how += f", the {' and '.join(own)} answers chosen again from each one's own predictions as they were here,"
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
def _outputs(graph: EdgeGraph, net: Network) -> list[Tensor]:
    return [_output(net, side) for side in (graph.clean_trace, graph.corrupted_trace) if side is not None]


@torch.no_grad()
def _separation(metric: Metric, sides: Sequence[Tensor], net: Network) -> float:
    """The difference between the sides' means over the deviation of examples from them, which has no scale."""
    values = [metric(output, net).double() for output in sides]
    means = [value.mean() for value in values]
    spread = torch.cat([value - mean for value, mean in zip(values, means, strict=True)]).square().mean().sqrt()
    apart = means[0] - means[1] if len(means) == 2 else means[0]
    least = 1e-6 * torch.cat(values).abs().max() + 1e-30  # for examples that are all alike
    return float(apart / spread.clamp_min(least))


def _own_answers(metric: Metric, sides: Sequence[Tensor], net: Network) -> tuple[str, ...]:
    """The roles whose answers are this network's own predictions, where those differ between the runs: on the clean
    run the correct ones, on the corrupted run the wrong ones."""
    if metric.facts.get("kind") not in ("logit_difference", "logit") or metric.position is None:
        return ()
    if metric.facts.get("labels"):  # stated, and kept with the claim
        return ()
    rows = [at_position(side, metric.position) for side in sides]
    best = [side.argmax(1) for side in rows]
    differ = best[0] != best[-1] if len(sides) == 2 else torch.ones_like(best[0], dtype=torch.bool)
    if float(differ.double().mean()) < LEAST:  # a network that predicts the same for both sets nothing apart by choice
        return ()
    found = []
    for role in [role for role in ROLES if role in metric.facts and not (role == "wrong" and len(sides) == 1)]:
        same = class_ids(metric.facts[role], rows[0], net) == best[ROLES[role]]
        if float(same[differ].double().mean()) >= OWN:
            found.append(role)
    return tuple(found)


def _chosen(graph: EdgeGraph, metric: Metric, own: Sequence[str], net: Network) -> float | None:
    """The separation in a permuted network, with the answers that are `own` chosen again from its predictions.

    Each clean input goes with its corrupted one or, where both answers are chosen and the same, with the next that is
    predicted otherwise, so that there are as many pairs; None where nobody could have chosen pairs.
    """
    sides = _outputs(graph, net)
    if not own:
        return _separation(metric, sides, net)
    assert metric.position is not None
    rows = [at_position(side, metric.position) for side in sides]
    given = {role: class_ids(metric.facts[role], rows[0], net) for role in ROLES if role in metric.facts}
    answers = given | {role: rows[ROLES[role]].argmax(1) for role in own}
    if "answer" in answers:
        return _separation(logit(answers["answer"]), rows, net)
    right, wrong = answers["correct"], answers["wrong"]
    count = len(right)
    shift = torch.arange(count if len(own) == 2 else 1, device=right.device)
    partner = (torch.arange(count, device=right.device)[:, None] + shift) % count
    differ = right[:, None] != wrong[partner]
    if float(differ.double().mean()) < LEAST:
        return None
    kept = differ.any(1)
    partner = partner.gather(1, differ.int().argmax(1, keepdim=True))[kept, 0]
    chosen = [rows[0][kept], *(side[partner] for side in rows[1:])]
    return _separation(logit_difference(right[kept], wrong[partner]), chosen, net)


@torch.no_grad()
def _output(net: Network, side: Trace) -> Tensor:
    if net is side.net:
        return side.logits
    args, kwargs = fresh((side.args, side.kwargs))
    return main_output(net.module(*args, **kwargs))
