"""What cutting an edge does to its reader, exactly: the reader's block run again for each writer, gradients after it.

Attribution patching linearises an edge's effect through the block that reads it, and from there to the output. The
first is made exact here at little cost, as only one block is run again: the read with one writer's slot ablated, norms
recomputed, all writers in one batch. What the block then writes is multiplied by the gradient there. AtP* does so for
the queries and keys of attention (Kramár et al. 2024, arXiv:2403.00745).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..lift.blocks import slot_mask
from ..run.worlds import over
from .edges import EdgeGraph, Part, Port, per_slot
from .metric import Metric

_NUMBERS = 8_000_000  # numbers of a read and a write in one batch
_TINY, _NEAR = 1e-30, 1e-6  # of squares; of the way below which a change goes none of it
Chosen = Callable[[Part, Port], bool]


@torch.no_grad()
def through_readers(graph: EdgeGraph, metric: Metric, slopes: Mapping[int, Tensor], chosen: Chosen) -> Tensor:
    """[2, readers, writers, positions]: what the metric loses, summed over examples, by each edge into `chosen` reads,
    with gradients along the way that its reader's write goes, and with those at the clean run alone.

    `slopes` [points, *write] are the metric's gradients at writes, at points evenly spaced from a write's clean to its
    ablated value, everything before it as in the clean run; one point is the clean run. Edges into other reads are NaN;
    an edge that a cell has at several steps counts at each.
    """
    edges = torch.zeros(2, *graph.shape())
    seen = torch.zeros(len(graph.readers), dtype=torch.bool)
    for part in graph.parts:
        ports = [port for port in part.ports if port.feeds and chosen(part, port)]
        if not ports:
            continue
        for port in ports:
            seen[port.rows] = True
        if part.block.write < 0 or part.block.write in slopes:
            _Reads(graph, metric, part, slopes).add(ports, edges)
    edges[:, ~seen] = float("nan")
    return edges


def reader_cost(graph: EdgeGraph, chosen: Chosen) -> float:
    """What `through_readers` takes, in forward passes of the network, counted in ops."""
    total = 0
    for part in graph.parts:
        inside = len(part.inside.steps) if part.inside is not None else 0
        for port in part.ports:
            if chosen(part, port):
                times = sum(len(graph.columns[write]) for write in port.feeds) * graph.positions
                total += times * (inside + len(port.merge.steps))
    return total / len(graph.tape.graph.ops)


class _Reads:
    """One block at the clean run: its reads, and what it makes of them when a writer's slot is ablated."""

    def __init__(self, graph: EdgeGraph, metric: Metric, part: Part, slopes: Mapping[int, Tensor]) -> None:
        self.graph, self.metric, self.part = graph, metric, part
        self.ends: dict[int, Tensor] = {}
        for stem in (stem for port in part.ports for stem in port.stems if stem.value not in self.ends):
            clean = graph.clean[stem.feed]
            made = clean if stem.steps is None else graph.run(stem.steps, {stem.feed: clean})[stem.value]
            self.ends[stem.value] = made
        self.reads = {port.value: self._merged(port, {}) for port in part.ports}
        self.slope = slopes.get(part.block.write)
        self.whole = self._made({})

    def add(self, ports: list[Port], edges: Tensor) -> None:
        """Add the effects of the edges into some ports."""
        for port in ports:
            apart = self._apart(port)
            for write in port.feeds:
                masks = self._masks(write)
                size = max(1, _NUMBERS // (self.reads[port.value].numel() + self.whole.numel()))
                made = torch.cat([self._effects(port, write, chunk, apart) for chunk in masks.split(size)])
                columns = self.graph.columns[write]
                found = made.view(len(columns), -1, *made.shape[1:]).permute(3, 2, 0, 1)
                found = torch.nn.functional.pad(found, (0, self.graph.positions - found.shape[3]))
                for table, part in zip(edges, found.to(edges), strict=True):
                    table.index_put_((port.rows[:, None], columns[None, :]), part, accumulate=True)

    def _masks(self, write: int) -> Tensor:
        """[slots × positions, slots, positions]: what is ablated, one place at a time."""
        slots = self.graph.writes[write].slots.count
        counted = self.graph.positions if self.graph.position_axis(write) is not None else 1
        return torch.eye(slots * counted, dtype=torch.bool).view(-1, slots, counted)

    def _effects(self, port: Port, write: int, masks: Tensor, apart: bool) -> Tensor:
        """[places, read slots, 2]: what the metric loses by each ablation, as each slot of the port alone sees it."""
        graph, block = self.graph, self.graph.writes[write]
        clean, axis = graph.clean[write], graph.position_axis(write)
        spread = torch.stack([slot_mask(mask, clean, block.slots, axis) for mask in masks])
        mixed = torch.where(spread, graph.corrupted[write], clean)
        met = {}
        for stem in (stem for stem in port.stems if stem.feed == write):
            steps, end = stem.steps, stem.value
            run = None if steps is None else (lambda world, steps=steps, end=end: graph.run(steps, world)[end])
            met[end] = mixed if run is None else over(run, {write: mixed})
        read = over(lambda world: self._merged(port, world), met)
        if apart:
            return self._lost(port, read)
        count = port.slots.count
        alone = [slot_mask(row[:, None], self.reads[port.value], port.slots, None) for row in torch.eye(count) > 0]
        rows = [torch.where(mask, read, self.reads[port.value]) for mask in alone]
        return torch.cat([self._lost(port, row).sum(1, keepdim=True) for row in rows], 1)

    def _merged(self, port: Port, changed: Mapping[int, Tensor]) -> Tensor:
        met = {stem.value: changed.get(stem.value, self.ends[stem.value]) for stem in port.stems}
        return met[port.value] if port.value in met else self.graph.run(port.merge, met)[port.value]

    def _made(self, changed: Mapping[int, Tensor]) -> Tensor:
        """The block's write, or the metric [batch], from its reads."""
        reads = {**self.reads, **changed}
        if self.part.block.write < 0:
            return self.metric(reads[self.part.ports[0].value], self.graph.net)
        inside, write = self.part.inside, self.part.block.write
        return reads[write] if inside is None else self.graph.run(inside, reads)[write]

    def _lost(self, port: Port, read: Tensor) -> Tensor:
        """[places, read slots, 2]: what the metric loses by each version of a read."""
        if self.slope is None:
            return torch.stack([(self.whole - self._made({port.value: row})).sum().expand(1, 2) for row in read])
        made = over(lambda world: self._made(world), {port.value: read})
        sums = torch.stack([self._along(self.whole - row) for row in made])
        return sums.unflatten(1, (min(port.slots.count, sums.shape[1]), -1)).sum(2)

    def _along(self, change: Tensor) -> Tensor:
        """[slots, 2]: a change of the write times the gradient's mean over the part of the way that the change makes
        up, and times the first gradient.

        How far a slot goes is the size of its change by that of ablating it.
        """
        assert self.slope is not None
        write, slots = self.part.block.write, self.part.block.slots
        gains = torch.stack([per_slot(change * slope, slots, 1, None)[:, :, 0] for slope in self.slope])
        steps, first = len(gains) - 1, gains[0].sum(1)
        if not steps:
            return torch.stack([first, first], 1)
        whole = self.graph.clean[write] - self.graph.corrupted[write]
        went, way = (per_slot(moved.square(), slots, 1, None)[:, :, 0] for moved in (change, whole))
        share = (went / way.clamp_min(_TINY)).sqrt().clamp(max=1) * steps
        last = share.floor().clamp(max=steps - 1).long()[None]
        rest = share - last[0]
        before = torch.cat([torch.zeros_like(gains[:1]), ((gains[1:] + gains[:-1]) / 2).cumsum(0)])
        low, high = gains.gather(0, last)[0], gains.gather(0, last + 1)[0]
        area = before.gather(0, last)[0] + rest * (low + (high - low) * rest / 2)
        mean = torch.where(share > _NEAR, area / share.clamp_min(_NEAR), gains[0])
        return torch.stack([mean.sum(1), first], 1)

    def _apart(self, port: Port) -> bool:
        """Whether each slot of a read reaches its own slots of the write alone, so that all can change at once."""
        block = self.part.block
        if port.slots.count == 1 or block.write < 0 or self.part.inside is None:
            return True
        if block.slots.count % port.slots.count:
            return False
        first = slot_mask(torch.arange(port.slots.count)[:, None] == 0, self.reads[port.value], port.slots, None)
        moved = torch.where(first, self.reads[port.value] * 1.1 + 0.1, self.reads[port.value])
        change = (self._made({port.value: moved}) - self.whole).abs()
        sums = per_slot(change, block.slots, 1, None).sum((1, 2)).view(port.slots.count, -1).sum(1)
        return not bool(sums[1:].any())
