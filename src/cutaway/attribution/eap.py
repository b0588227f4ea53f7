"""Edge attribution patching with integrated gradients, on any lifted graph.

The score of an edge u -> v estimates what the metric loses when v alone reads u's corrupted value: the difference of
u's outputs times the gradient of the metric at v's input. Nanda 2023, "Attribution patching"; Syed, Rager, Conmy 2023
(EAP, arXiv:2310.10348); Hanna, Pezzelle, Belinkov 2024 (EAP-IG, arXiv:2403.17806), whose gradients are averaged over
inputs interpolated between corrupted and clean.

Every read, write and contribution of the run is cut into a value and a leaf, and gradients are carried over the cuts by
hand from the output back. The gradient of a read is carried through its wiring once a slot, batched, so each
contribution receives it from each reader separately: one forward and one backward pass give all edges.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, MetricError
from ..lift.blocks import by_slot
from ..run.replay import Plan
from .alone import Alone, alone
from .baselines import Values
from .columns import Picks, Through
from .edges import EdgeGraph, Part, Port, per_slot
from .meeting import differences
from .methods import scoring
from .metric import Metric, check_gradient
from .scores import Scores
from .wiring import Stem


@scoring(
    "eap",
    levels=("edge", "node"),
    paper="Syed, Rager, Conmy 2023 (arXiv:2310.10348); nodes: Nanda 2023, attribution patching",
    passes=lambda graph, options: 2.0,
)
def eap(graph: EdgeGraph, metric: Metric, *, magnitudes: bool = False) -> Scores:
    """Edge attribution patching: the gradient at the clean run times each writer's difference.

    With `magnitudes` the mean over examples of each one's magnitude, in which examples do not cancel each other: it
    ranks better, and has no sign. Raises MetricError when the metric's gradient is zero everywhere, InputError where
    `magnitudes` cannot tell examples apart.
    """
    return at_shares(graph, metric, [1.0], "EAP", {"magnitudes": magnitudes})


@scoring(
    "eap-ig",
    levels=("edge", "node"),
    paper="Hanna, Pezzelle, Belinkov 2024 (arXiv:2403.17806)",
    passes=lambda graph, options: 2.0 * options["steps"],
    complete="sources",
)
def eap_ig(graph: EdgeGraph, metric: Metric, *, steps: int = 5, magnitudes: bool = False) -> Scores:
    """EAP with gradients averaged over `steps` inputs interpolated from the corrupted to the clean run.

    `magnitudes` and errors: see `eap`.
    """
    shares = [(step + 1) / steps for step in range(steps)]
    return at_shares(graph, metric, shares, f"EAP-IG, {steps} steps", {"steps": steps, "magnitudes": magnitudes})


def at_shares(graph: EdgeGraph, metric: Metric, shares: list[float], method: str, facts: dict[str, Any]) -> Scores:
    """Scores by a forward and a backward pass at each share of the way from corrupted (0) to clean (1)."""
    examples = (graph.batch,) if facts.get("magnitudes") else ()
    edges = torch.zeros(*graph.shape(), *examples)
    nodes = torch.zeros(len(graph.writers), graph.positions, *examples)
    known = Known(graph, alone(graph, metric))
    for share in shares:
        Carried(graph, sources_at(graph, share), known).run(metric, edges, nodes)
    check_moved(edges, metric)
    if examples:
        edges, nodes = edges.abs().sum(-1), nodes.abs().sum(-1)
    scale = 1.0 / (len(shares) * graph.batch)
    edges = edges * scale * graph.valid[:, :, None]
    return Scores(edges, nodes * scale, method, 2.0 * len(shares), {"baseline": graph.baseline, **facts})


def sources_at(graph: EdgeGraph, share: float) -> dict[int, Tensor]:
    """The writes of sources (embeddings, inputs) at a share of the way from corrupted (0) to clean (1)."""
    sources = [part.block.write for part in graph.parts if not part.ports]
    return {value: torch.lerp(graph.corrupted[value], graph.clean[value], share) for value in sources}


def check_moved(edges: Tensor, metric: Metric) -> None:
    """Raises MetricError when scores are zero everywhere."""
    if not edges.any():
        raise MetricError(
            f"The metric '{metric.name}' does not depend on anything that differs between the runs; "
            "choose another metric."
        )


@dataclass
class _Cut:
    """A part as it ran: reads before and after their cuts, and the write before its own."""

    part: Part
    arrived: dict[int, Tensor]
    entered: dict[int, Tensor]
    made: Tensor | None = None


class Carried:
    """One forward and one backward pass from `given` values of writes: those of sources, and any others.

    No gradient is carried into a block whose write is given or among `dropped`. `scored`: the write whose node and
    edges get scores, all of them if it is None. `slopes` are the gradients at writes.
    """

    def __init__(
        self,
        graph: EdgeGraph,
        given: Values,
        known: Known,
        dropped: Container[int] = (),
        scored: int | None = None,
    ) -> None:
        self.graph, self.given, self.known = graph, given, known
        self.dropped, self.scored = dropped, scored
        self.slopes: dict[int, Tensor] = {}
        # What meets before a contraction, and what the contraction makes of it; shared by the reads behind it.
        self.met: dict[int, tuple[Tensor, Tensor]] = {}
        self.leaves: dict[int, Tensor] = {}
        # Contributions by (write, value): as made (None where it is the write itself), as a leaf, and its gradient.
        self.made: dict[tuple[int, int], Tensor | None] = {}
        self.ends: dict[tuple[int, int], Tensor] = {}
        self.got: dict[tuple[int, int], Tensor] = {}

    def run(self, metric: Metric, edges: Tensor, nodes: Tensor) -> None:
        """Add this pass's scores to `edges` and `nodes`: summed over examples, or for each where these have a last axis
        of them."""
        graph, self.apart = self.graph, edges.ndim == 4
        for cut in reversed([self._forward(part) for part in graph.parts]):
            block = cut.part.block
            received = self._received(block.write) if block.write >= 0 else None
            if received is not None:
                self.slopes[block.write] = received
            if received is not None and self.scored in (None, block.write):
                product = (graph.clean[block.write] - graph.corrupted[block.write]) * received
                found = _sums(graph, block.write, product, self.apart)
                nodes.index_add_(0, graph.columns[block.write], found.detach().to(nodes))
            if block.write in self.dropped or block.write in self.given:
                continue
            for port, gradient in zip(cut.part.ports, self._gradients(cut, received, metric), strict=True):
                if gradient is not None and port.stems:
                    self._carry(port, cut.arrived[port.value], gradient, edges)

    def _forward(self, part: Part) -> _Cut:
        graph, block = self.graph, part.block
        if block.write in self.given:
            self.leaves[block.write] = self.given[block.write].detach().requires_grad_()
            return _Cut(part, {}, {})
        arrived = {port.value: self._arrive(port) for port in part.ports}
        entered = {value: tensor.detach().requires_grad_() for value, tensor in arrived.items()}
        cut = _Cut(part, arrived, entered)
        if block.write >= 0:
            if part.inside is not None:
                cut.made = graph.run(part.inside, entered)[block.write]
            source = cut.made if cut.made is not None else entered[block.write]
            self.leaves[block.write] = source.detach().requires_grad_()
        return cut

    def _arrive(self, port: Port) -> Tensor:
        """A read from the contributions that meet in it."""
        met: dict[int, Tensor] = {}
        for stem in port.stems:
            key = (stem.feed, stem.value)
            if key not in self.ends:
                leaf = self.leaves[stem.feed]
                made = self.graph.run(stem.steps, {stem.feed: leaf})[stem.value] if stem.steps is not None else None
                self.made[key] = made
                self.ends[key] = leaf if made is None else made.detach().requires_grad_()
            met[stem.value] = self.ends[key]
        if port.value in met:
            return met[port.value]
        if self.known.alone is not None and port is self.graph.parts[-1].ports[0]:
            return self.known.alone.run(self.graph, met)
        if port.through is None:
            return self.graph.run(port.merge, met)[port.value]
        last = port.through
        if last.made not in self.met:
            found = self.graph.run(last.before, met)
            self.met[last.made] = found[last.source], found[last.made]
        return self.graph.run(last.after, {**met, last.made: self.met[last.made][1]})[port.value]

    def _gradients(self, cut: _Cut, received: Tensor | None, metric: Metric) -> list[Tensor | None]:
        """The gradient of the metric at each read of a part."""
        block = cut.part.block
        if block.kind == "output":
            logits = cut.entered[block.reads[0].value]
            read = metric if self.known.alone is None else metric.of
            total = read(logits, self.graph.net).sum()
            check_gradient(metric, total)
            return list(torch.autograd.grad(total, [logits], allow_unused=True))
        if received is None or (cut.made is not None and not cut.made.requires_grad):
            return [None] * len(cut.part.ports)
        if cut.made is None:
            return [received] * len(cut.part.ports)
        entered = [cut.entered[port.value] for port in cut.part.ports]
        return list(torch.autograd.grad(cut.made, entered, received, allow_unused=True))

    def _received(self, write: int) -> Tensor | None:
        """The gradient at a write: what its contributions received, carried back through their stems."""
        total: Tensor | None = None
        for key, gradient in self.got.items():
            if key[0] != write:
                continue
            made = self.made[key]
            if made is not None and not made.requires_grad:
                continue  # the network made it under no_grad
            if made is not None:
                gradient = torch.autograd.grad(made, self.leaves[write], gradient, retain_graph=True)[0]
            total = gradient if total is None else total + gradient
        return total

    def _carry(self, port: Port, arrived: Tensor, gradient: Tensor, edges: Tensor) -> None:
        """Carry a read's gradient to the contributions, all slots in one batch, and score the edges into the read."""
        keys = [(stem.feed, stem.value) for stem in port.stems]
        if arrived.is_leaf:  # the read is a contribution itself
            carried: list[Tensor | None] = [by_slot(gradient, port.slots)]
        else:
            start, stack = self._before_contraction(port, arrived, gradient)
            carried = _batched_gradient(start, [self.ends[key] for key in keys], stack)
        together: dict[tuple[int, tuple[int, ...]], list[Stem]] = {}
        shared: dict[tuple[int, tuple[int, ...]], Tensor] = {}
        for stem, found in zip(port.stems, carried, strict=True):
            if found is not None:  # contributions that are added up receive one and the same gradient
                shared.setdefault((found.data_ptr(), found.stride()), found)
                together.setdefault((found.data_ptr(), found.stride()), []).append(stem)
        for which, stems in together.items():
            found = shared[which]
            total = found.sum(0)
            for stem in stems:
                key = (stem.feed, stem.value)
                self.got[key] = self.got[key] + total if key in self.got else total
            for rows, columns in self._rows([stem for stem in stems if self.scored in (None, stem.feed)], found):
                edges.index_put_((port.rows[:, None], columns[None, :]), rows.detach().to(edges), accumulate=True)

    def _before_contraction(self, port: Port, arrived: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Where slots' gradients go on from, and what they are there: before the contraction if that saves work."""
        last = port.through
        if last is None or last.made not in self.met or port.slots.count < 2:
            return arrived, by_slot(gradient, port.slots)
        source, made = self.met[last.made]
        picks = self.known.picks(port, last, arrived, made)
        if picks is None:
            return arrived, by_slot(gradient, port.slots)
        if picks.order is not None:
            picked = picks.of_read(gradient)
        else:
            picked = picks.of_made(_required(_batched_gradient(arrived, [made], by_slot(gradient, port.slots))[0]))
        return source, picks.back(picked, source.shape)

    def _rows(self, stems: list[Stem], found: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Scores [reader slots, writer slots, positions] from the gradients [reader slots, …] at contributions that
        share them, with the columns of the writer slots."""
        graph, known = self.graph, self.known
        by_position = found.ndim == 4 and found.shape[2] == graph.positions
        made: list[tuple[Tensor, Tensor]] = []
        linear = [stem for stem in stems if stem.steps is not None and stem.linear]
        if graph.positions == 1 or by_position:
            for change, columns in known.changes(linear):
                if self.apart:
                    made.append((_apart(found, change, graph), columns))
                elif graph.positions == 1:
                    made.append(((found.flatten(1) @ change.flatten(1).T)[:, :, None], columns))
                else:
                    change = change.view(len(change), *found.shape[1:])
                    made.append((torch.einsum("sbpd,ubpd->sup", found, change), columns))
        else:
            linear = []
        for stem in stems:
            if stem not in linear:
                made.append((self._bent(stem, found), graph.columns[stem.feed]))
        return made

    def _bent(self, stem: Stem, found: Tensor) -> Tensor:
        """The same through one stem that is not linear, or is nothing."""
        graph, end = self.graph, self.made[stem.feed, stem.value]
        if end is not None:
            found = _required(_batched_gradient(end, [self.leaves[stem.feed]], found)[0])
        change = graph.clean[stem.feed] - graph.corrupted[stem.feed]
        return torch.stack([_sums(graph, stem.feed, change * part, self.apart) for part in found])


class Known:
    """What all passes share: which columns slots read, and what each writer's difference does to its contribution."""

    def __init__(self, graph: EdgeGraph, alone: Alone | None) -> None:
        self.graph, self.alone = graph, alone
        self._picks: dict[int, Picks | None] = {}
        self._at: dict[tuple[int, int], tuple[int, int]] = {}
        self._rows = torch.zeros(0, 0)
        self._apart: dict[tuple[int, int], Tensor] = {}
        self._count = 0

    def one(self, steps: Plan, given: dict[int, Tensor]) -> Tensor:
        """The one target of a plan."""
        return next(iter(self.graph.run(steps, given).values()))

    def picks(self, port: Port, last: Through, arrived: Tensor, made: Tensor) -> Picks | None:
        """Which columns of its last contraction the slots of a read are, or touch."""
        if port.value not in self._picks:
            flow = self.graph.wiring.flow
            found = last.picks(flow, made.shape, port.slots, self.one)
            if found is None:
                noise = torch.randn(arrived.shape, generator=torch.Generator().manual_seed(0)).to(arrived)
                tried = _required(_batched_gradient(arrived, [made], by_slot(noise, port.slots))[0])
                found = last.touched(flow, tried)
            self._picks[port.value] = found
        return self._picks[port.value]

    def changes(self, stems: list[Stem]) -> list[tuple[Tensor, Tensor]]:
        """[writer slots, numbers of the contribution] with the slots' columns, neighbours in one piece."""
        found: list[tuple[Tensor, Tensor]] = []
        places: list[tuple[int, int, Stem]] = []
        for stem in stems:
            key = (stem.feed, stem.value)
            if key not in self._at and key not in self._apart:
                self._push(stem)
            if key in self._apart:
                found.append((self._apart[key], self.graph.columns[stem.feed]))
            else:
                places.append((*self._at[key], stem))
        places.sort(key=lambda place: place[0])
        first = 0
        for number in range(1, len(places) + 1):
            if number == len(places) or places[number][0] != places[number - 1][1]:
                piece = places[first:number]
                columns = torch.cat([self.graph.columns[stem.feed] for _, _, stem in piece])
                found.append((self._rows[piece[0][0] : piece[-1][1]], columns))
                first = number
        return found

    def _push(self, stem: Stem) -> None:
        """How each slot's difference between the runs changes a linear contribution."""
        graph = self.graph
        with torch.no_grad():
            clean = graph.clean[stem.feed][None]
            made = differences(graph, stem.feed, stem.steps, stem.value, clean)[0].flatten(1)
        if not self._count:
            self._rows = made.new_zeros(len(graph.writers), made.shape[1])
        end = self._count + len(made)
        if made.shape[1] != self._rows.shape[1] or end > len(self._rows) or made.dtype != self._rows.dtype:
            self._apart[stem.feed, stem.value] = made
            return
        self._rows[self._count : end] = made
        self._at[stem.feed, stem.value] = (self._count, end)
        self._count = end


def _required(found: Tensor | None) -> Tensor:
    assert found is not None, "a contribution depends on its write"
    return found


def _apart(found: Tensor, change: Tensor, graph: EdgeGraph) -> Tensor:
    """[reader slots, writer slots, positions, examples] from gradients [reader slots, examples, …] and differences."""
    _check_examples(found.shape[1], graph)
    change = change.view(len(change), *found.shape[1:])
    if graph.positions == 1:
        return torch.einsum("sbn,ubn->sub", found.flatten(2), change.flatten(2))[:, :, None]
    return torch.einsum("sbpd,ubpd->supb", found, change)


def _check_examples(count: int, graph: EdgeGraph) -> None:
    if count != graph.batch:
        raise InputError("This network folds its examples into another axis; score it without magnitudes.")


def _sums(graph: EdgeGraph, value: int, product: Tensor, apart: bool = False) -> Tensor:
    """[slots, positions]: sums over examples, or a last axis of them; a write without positions is at position 0."""
    found = per_slot(product, graph.writes[value].slots, graph.positions, graph.position_axis(value))
    if apart:
        _check_examples(found.shape[1], graph)
    found = torch.nn.functional.pad(found, (0, graph.positions - found.shape[2]))
    return found.transpose(1, 2) if apart else found.sum(1)


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
