"""Edge attribution patching with integrated gradients, on any lifted graph.

The score of an edge u -> v estimates what the metric loses when v alone reads u's corrupted value: the difference of u's
outputs times the gradient of the metric at v's input. Nanda 2023, "Attribution patching"; Syed, Rager, Conmy 2023 (EAP,
arXiv:2310.10348); Hanna, Pezzelle, Belinkov 2024 (EAP-IG, arXiv:2403.17806), whose gradients are averaged over inputs
interpolated between corrupted and clean.

Every read and write of the run is cut into a value and a leaf, and gradients are carried over the cuts by hand from the
output back. The gradient of a read is carried through its wiring once a slot, batched, so each writer receives it from
each reader separately: one forward and one backward pass give all edges.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import MetricError
from .edges import EdgeGraph, Part, Port, per_slot, slot_mask
from .metric import Metric


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of a graph's edges [readers, writers, positions] and nodes [writers, positions], and how they came about.

    Positive: the edge carries the behaviour (corrupting it lowers the metric).
    """

    edges: Float[Tensor, "readers writers positions"]
    nodes: Float[Tensor, "writers positions"]
    method: str
    passes: int


def eap_ig(graph: EdgeGraph, metric: Metric, steps: int = 5) -> Scores:
    """Scores of all edges and nodes by `steps` forward and backward passes (steps=1: EAP, the gradient at the clean run).

    Raises MetricError when the metric's gradient is zero everywhere.
    """
    edges = torch.zeros(graph.shape())
    nodes = torch.zeros(len(graph.writers), graph.positions)
    for step in range(steps):
        share = 1.0 if steps == 1 else (step + 1) / steps
        _pass(graph, metric, share, edges, nodes)
    if not edges.any():
        raise MetricError(f"The metric '{metric.name}' does not depend on anything that differs between the runs; choose another metric.")
    scale = 1.0 / (steps * graph.batch)
    edges = edges * scale * graph.valid[:, :, None]
    method = f"EAP-IG, {steps} steps" if steps > 1 else "EAP"
    return Scores(edges, nodes * scale, method, 2 * steps)


@dataclass
class _Cut:
    """A part as it ran: reads before and after their cuts, the write before and after its own."""

    part: Part
    arrived: dict[int, Tensor]
    entered: dict[int, Tensor]
    made: Tensor | None


def _pass(graph: EdgeGraph, metric: Metric, share: float, edges: Tensor, nodes: Tensor) -> None:
    leaves: dict[int, Tensor] = {}
    cuts = [_forward(graph, part, share, leaves) for part in graph.parts]
    received: dict[int, Tensor] = {}
    for cut in reversed(cuts):
        block = cut.part.block
        if block.kind == "output":
            logits = cut.entered[block.reads[0].value]
            gradients = list(torch.autograd.grad(metric(logits, graph.net).sum(), [logits], allow_unused=True))
        elif block.write not in received or not cut.part.ports:
            gradients = [None] * len(cut.part.ports)
        elif cut.made is None:
            gradients = [received[block.write]]
        else:
            entered = [cut.entered[port.value] for port in cut.part.ports]
            gradients = list(torch.autograd.grad(cut.made, entered, received[block.write], allow_unused=True))
        for port, gradient in zip(cut.part.ports, gradients, strict=True):
            if gradient is not None:
                _carry(graph, port, cut.arrived[port.value], gradient, leaves, received, edges)
    for value, gradient in received.items():
        block = graph.writes[value]
        product = (graph.clean[value] - graph.corrupted[value]) * gradient
        nodes.index_add_(0, graph.columns[value], _sums(graph, value, product).detach())


def _sums(graph: EdgeGraph, value: int, product: Tensor) -> Tensor:
    """[slots, positions]: sums over examples; a write without positions counts at position 0."""
    found = per_slot(product, graph.writes[value].slots, graph.positions, graph.position_axis(value)).sum(1)
    return torch.nn.functional.pad(found, (0, graph.positions - found.shape[1]))


def _forward(graph: EdgeGraph, part: Part, share: float, leaves: dict[int, Tensor]) -> _Cut:
    block = part.block
    if not part.ports:
        start = torch.lerp(graph.corrupted[block.write], graph.clean[block.write], share)
        leaves[block.write] = start.detach().requires_grad_()
        return _Cut(part, {}, {}, None)
    arrived = graph.run(part.wiring, leaves)
    entered = {value: tensor.detach().requires_grad_() for value, tensor in arrived.items()}
    if block.write < 0:
        return _Cut(part, arrived, entered, None)
    made = graph.run(part.inside, entered)[block.write] if part.inside is not None else None
    source = made if made is not None else entered[block.write]
    leaves[block.write] = source.detach().requires_grad_()
    return _Cut(part, arrived, entered, made)


def _carry(
    graph: EdgeGraph,
    port: Port,
    arrived: Tensor,
    gradient: Tensor,
    leaves: dict[int, Tensor],
    received: dict[int, Tensor],
    edges: Tensor,
) -> None:
    """Carry a read's gradient through its wiring, slot by slot in one batch, and score the edges into the read."""
    feeds = [value for value in port.feeds if value in leaves]
    if not feeds:
        return
    stack = _by_slot(port, gradient)
    if arrived.is_leaf:  # the read is an earlier write itself, with no wiring between
        carried: list[Tensor | None] = [stack]
    else:
        carried = _batched_gradient(arrived, [leaves[value] for value in feeds], stack)
    for value, found in zip(feeds, carried, strict=True):
        if found is None:
            continue
        change = graph.clean[value] - graph.corrupted[value]
        rows = torch.stack([_sums(graph, value, change * part) for part in found])
        edges.index_put_((port.rows[:, None], graph.columns[value][None, :]), rows.detach(), accumulate=True)
        total = found.sum(0)
        received[value] = received[value] + total if value in received else total


def _by_slot(port: Port, gradient: Tensor) -> Tensor:
    """[slots, …]: the gradient with all but one slot set to zero, for each slot."""
    if port.slots.count == 1:
        return gradient[None]
    eye = torch.eye(port.slots.count)
    return torch.stack([gradient * slot_mask(row[:, None], gradient, port.slots, None) for row in eye])


def _batched_gradient(output: Tensor, inputs: list[Tensor], stack: Tensor) -> list[Tensor | None]:
    """The gradients for each of a stack of output gradients, in one batched pass where torch can."""
    if len(stack) == 1:
        plain = torch.autograd.grad(output, inputs, stack[0], retain_graph=True, allow_unused=True)
        return [None if found is None else found[None] for found in plain]
    try:
        return list(
            torch.autograd.grad(output, inputs, stack, is_grads_batched=True, retain_graph=True, allow_unused=True)
        )
    except RuntimeError:  # an op without a batching rule: one slot after the other
        rows = [torch.autograd.grad(output, inputs, row, retain_graph=True, allow_unused=True) for row in stack]
        return [None if column[0] is None else torch.stack(column) for column in zip(*rows, strict=True)]
