"""Direct effects in the local replacement model: what each writer adds to what each target reads.

Gradients of the targets' readers are carried back through frozen wiring, many targets as one batch; a writer's effect
is its product with the gradient where it writes. As everything is affine, effects and the bias add up to what the
target was in the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .replacement import Replacement, Spot, Stand

_NUMBERS = 1 << 25  # numbers in the gradients of one batch of targets at one value


@dataclass(frozen=True, eq=False)
class Targets:
    """Targets that read the same values: their `numbers` in the graph, and for each value (spot, rows, vectors): the
    target is the sum of products of its vector with its row of the value, and its `offset`."""

    numbers: Int[Tensor, " targets"]
    reads: tuple[tuple[Spot, Tensor, Float[Tensor, "targets width"]], ...]
    offsets: Float[Tensor, " targets"]

    def part(self, some: slice) -> Targets:
        """Some of the targets."""
        reads = tuple((spot, rows[some], vectors[some]) for spot, rows, vectors in self.reads)
        return Targets(self.numbers[some], reads, self.offsets[some])

    def of(self, values: dict[int, Tensor]) -> Float[Tensor, " targets"]:
        """What the targets are when values are these."""
        found = self.offsets.clone()
        for spot, rows, vectors in self.reads:
            found += (spot.rows(values[spot.value])[rows] * vectors).sum(-1)
        return found


def latent_targets(stand: Stand, first: int) -> list[Targets]:
    """The latents of a dictionary as targets, by the places that they read; their numbers begin at `first`."""
    every = torch.arange(len(stand.codes.latents))
    vectors = [stand.readers(every, place) for place in range(len(stand.reads))]
    used = torch.stack([part.any(-1) for part in vectors], -1)
    found = []
    for pattern in torch.unique(used, dim=0):
        at = (used == pattern).all(-1).nonzero()[:, 0]
        reads = tuple(
            (spot, stand.codes.rows[at], vectors[place][at])
            for place, spot in enumerate(stand.reads) if pattern[place]
        )  # fmt: skip
        found.append(Targets(at + first, reads, stand.offsets(at)))
    return found


def carried(model: Replacement, groups: Sequence[Targets]) -> Iterator[tuple[Targets, dict[int, Tensor]]]:
    """Targets, some at a time, with the gradients [targets, *shape] at every writer that reaches them."""
    leaves = {value: torch.zeros(spot.shape, requires_grad=True) for value, spot in model.stops.items()}
    alive = {spot.value for group in groups for spot, _, _ in group.reads}
    with torch.enable_grad():
        made = {value: one * 1.0 for value, one in model.run(alive, leaves).items() if one.requires_grad}
        for group in groups:
            size = max(1, _NUMBERS // max(leaf.numel() for leaf in leaves.values()))
            for start in range(0, len(group.numbers), size):
                part = group.part(slice(start, start + size))
                yield part, _gradients(part, made, leaves)


def _gradients(targets: Targets, made: dict[int, Tensor], leaves: dict[int, Tensor]) -> dict[int, Tensor]:
    outputs = [made[spot.value] for spot, _, _ in targets.reads if spot.value in made]
    given = [spot.spread(rows, vectors) for spot, rows, vectors in targets.reads if spot.value in made]
    if not outputs:
        return {}
    inputs = list(leaves.values())
    found: Sequence[Tensor | None]
    try:
        found = torch.autograd.grad(outputs, inputs, given, retain_graph=True, allow_unused=True, is_grads_batched=True)
    except RuntimeError:  # an op without a batching rule: one target after the other
        rows = [
            torch.autograd.grad(outputs, inputs, list(row), retain_graph=True, allow_unused=True)
            for row in zip(*given, strict=True)
        ]
        found = [None if column[0] is None else torch.stack(column) for column in zip(*rows, strict=True)]
    return {value: one for value, one in zip(leaves, found, strict=True) if one is not None}


@dataclass(frozen=True, eq=False)
class Writers:
    """What writes a value: `vectors` [rows, most, width] and the graph's columns [rows, most] that they are of; rows
    with fewer writers are filled up with zeros in a column that does not count (the last)."""

    spot: Spot
    vectors: Float[Tensor, "rows most width"]
    columns: Int[Tensor, "rows most"]

    def add(self, gradients: Tensor, into: Float[Tensor, "targets columns"]) -> None:
        """Add the effects on targets with these gradients [targets, *shape]."""
        rows = self.spot.rows(gradients).transpose(0, 1)
        found = torch.bmm(rows, self.vectors.transpose(1, 2)).transpose(0, 1)
        into.index_add_(1, self.columns.flatten(), found.flatten(1))


def entries(model: Replacement) -> list[tuple[Spot, Tensor, Tensor, Tensor]]:
    """Everything that writes: (spot, rows, vectors, columns). Columns are latents by dictionary and row, then errors by
    what is written and row, then the rows of parts and of sources; a latent may write to several spots."""
    found, count = [], 0
    for stand in model.stands:
        every = torch.arange(len(stand.codes.latents))
        found += [
            (spot, stand.codes.rows, stand.writers(every, place), every + count)
            for place, spot in enumerate(stand.writes)
        ]
        count += len(every)
    for spot in (*model.written, *model.parts, *model.sources):
        rows = model.errors[spot.value] if spot.value in model.errors else spot.rows(model.held[spot.value])
        found.append((spot, torch.arange(spot.count), rows, torch.arange(spot.count) + count))
        count += spot.count
    return found


def writers(model: Replacement) -> list[Writers]:
    """Everything that writes, by value."""
    made: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {}
    for spot, rows, vectors, columns in entries(model):
        made.setdefault(spot.value, []).append((rows, vectors, columns))
    return [_by_row(model.stops[value], found, model.columns) for value, found in made.items()]


def _by_row(spot: Spot, found: list[tuple[Tensor, Tensor, Tensor]], last: int) -> Writers:
    rows, vectors, columns = (torch.cat(part) for part in zip(*found, strict=True))
    order = rows.argsort(stable=True)
    rows, counts = rows[order], torch.bincount(rows, minlength=spot.count)
    place = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[rows]
    table = vectors.new_zeros(spot.count, int(counts.max()), spot.width)
    table[rows, place] = vectors[order]
    numbers = torch.full(table.shape[:2], last)
    numbers[rows, place] = columns[order]
    return Writers(spot, table, numbers)


def effects(
    model: Replacement, groups: Sequence[Targets], progress: Callable[[int, int], None] | None = None
) -> Float[Tensor, "targets writers"]:
    """The direct effect of every writer on every target."""
    whole = sum(len(group.numbers) for group in groups)
    found, count = writers(model), model.columns
    table, done = torch.zeros(whole, count), 0
    for part, gradients in carried(model, groups):
        rows = torch.zeros(len(part.numbers), count + 1)
        for one in found:
            if one.spot.value in gradients:
                one.add(gradients[one.spot.value], rows)
        table[part.numbers] = rows[:, :count]
        done += len(part.numbers)
        if progress is not None:
            progress(done, whole)
    return table


def biases(
    model: Replacement, groups: Sequence[Targets]
) -> tuple[Float[Tensor, " targets"], Float[Tensor, " targets"]]:
    """(what targets are without any writer, what they are in the run)."""
    still = {value: model.constants.get(value, torch.zeros(spot.shape)) for value, spot in model.stops.items()}
    alive = {spot.value for group in groups for spot, _, _ in group.reads}
    with torch.no_grad():
        base = model.run(alive, still)
    count = sum(len(group.numbers) for group in groups)
    bias, own = torch.zeros(count), torch.zeros(count)
    for group in groups:
        bias[group.numbers], own[group.numbers] = group.of(base), group.of(model.held)
    return bias, own


def total_effects(model: Replacement, ends: Targets, weights: Tensor, most: int) -> list[Float[Tensor, " entries"]]:
    """By dictionary, what each latent that fires makes of the sum of some targets, weighted: directly and through all
    others, each of which answers linearly. Where no more than `most` fire, only whether that is zero is found out."""
    leaves = {value: torch.zeros(spot.shape, requires_grad=True) for value, spot in model.stops.items()}
    slopes: dict[int, Tensor] = {}
    waiting: list[tuple[int, Tensor]] = []  # what is not carried back yet
    every = sum(len(stand.codes.latents) for stand in model.stands) > most

    def settle() -> None:
        for value, slope in waiting if made else ():
            if not made[value].requires_grad:
                continue
            new = torch.autograd.grad(made[value], list(leaves.values()), slope, retain_graph=True, allow_unused=True)
            for leaf, part in zip(leaves, new, strict=True):
                if part is not None:
                    slopes[leaf] = slopes[leaf] + part if leaf in slopes else part
        waiting.clear()

    def total(stand: Stand) -> Tensor:
        found = torch.zeros(len(stand.codes.latents))
        for place, spot in enumerate(stand.writes):
            if spot.value in slopes:
                slope = spot.rows(slopes[spot.value])[stand.codes.rows]
                found += (slope * stand.writers(torch.arange(len(found)), place)).sum(-1)
        return found

    alive = {spot.value for stand in model.stands for spot in stand.reads} | {spot.value for spot, _, _ in ends.reads}
    totals: dict[int, Tensor] = {}
    with torch.enable_grad():
        made = {value: one * 1.0 for value, one in model.run(alive, leaves).items()}
        waiting += [
            (spot.value, spot.spread(rows, vectors * weights[:, None]).sum(0)) for spot, rows, vectors in ends.reads
        ]
        settle()
        for at in sorted(range(len(model.stands)), key=lambda at: -max(spot.order for spot in model.stands[at].reads)):
            stand = model.stands[at]
            if every or waiting and not bool(total(stand).all()):
                settle()
            totals[at] = total(stand)
            answered, numbers = (totals[at] * stand.answers)[:, None], torch.arange(len(stand.codes.latents))
            for place, spot in enumerate(stand.reads):
                table = torch.zeros(spot.count, spot.width)
                table.index_add_(0, stand.codes.rows, stand.readers(numbers, place) * answered)
                waiting.append((spot.value, spot.back(table)))
    return [totals[at] for at in range(len(model.stands))]
