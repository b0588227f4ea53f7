"""What reaches one value of a run when another is given impulses: the linear map that wiring is, unit by unit.

A unit of a value is one number at one position: a neuron, a channel, one of a head's dimensions. Impulses are given at
one position of the first example; what arrives is summed over positions, or kept as it lies there (a kernel).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from .axes import channel_axis
from .blocks import Slots
from .flow import Flow
from .frozen import Frozen, variants


@dataclass(frozen=True)
class Units:
    """A value's axes: `shape` with batch and heads told apart, `axes` those of units, `slot` the one of slots.

    Of the examples, which lie along `first`, there are `batch`; that axis may hold windows or positions too, which
    vary fastest, or slowest in a time-major network.
    """

    value: int
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    slot: int
    batch: int
    first: int = 0
    tiled: bool = False
    time_major: bool = False

    @property
    def places(self) -> tuple[int, ...]:
        """The axes of positions: all but that of examples and those of units."""
        return tuple(axis for axis in range(len(self.shape)) if axis not in (*self.axes, self.first))

    def impulses(self, position: int, slot: int | None) -> Tensor:
        """[units, …]: a one at each unit (of one slot, if given) at one position; in the middle of an image."""
        where: list[int | slice] = [0] * len(self.shape)
        for axis in self.places:
            where[axis] = self.shape[axis] // 2 if len(self.places) > 1 else position % self.shape[axis]
        if not self.places and self.batch and self.shape[0] > self.batch and self.shape[0] % self.batch == 0:
            place = position % (self.shape[0] // self.batch)  # positions are folded into the batch
            where[0] = place * self.batch if self.time_major else place
        for axis in self.axes:
            where[axis] = slice(None)
        counts = [self.shape[axis] for axis in self.axes]
        if slot is not None:
            where[self.slot] = slice(slot, slot + 1)
            counts[self.axes.index(self.slot)] = 1
        rows = torch.zeros(prod(counts), *self.shape)
        rows[(slice(None), *where)] = torch.eye(prod(counts)).view(-1, *counts)
        return rows.flatten(1, 2) if self.tiled else rows

    def gathered(self, value: Tensor, slot: int | None, spread: bool = False) -> Tensor:
        """[*units] (and positions, if `spread`): the first example's numbers at each unit, summed over all else."""
        value = value.unflatten(0, (-1, self.shape[1])) if self.tiled else value
        held = self.shape[self.first]
        if self.batch and held % self.batch == 0:
            mine = torch.arange(0, held, self.batch) if self.time_major else torch.arange(held // self.batch)
            value = value.index_select(self.first, mine)
        keep = sorted({*self.axes, *(self.places if spread else ())})
        if slot is not None:
            value = value.narrow(self.slot, slot, 1)
        rest = [axis for axis in range(len(self.shape)) if axis not in keep]
        value = value.sum(rest) if rest else value
        return value.permute([keep.index(axis) for axis in (*self.axes, *(self.places if spread else ()))])

    def length(self) -> int:
        """How many positions there are along a single axis of them; 0 for none or several."""
        return self.shape[self.places[0]] if len(self.places) == 1 else 0


def units_of(flow: Flow, value: int, slots: Slots, heads: bool = False) -> Units:
    """The units of a value with slots; `heads`: each slot has a last axis of its own units."""
    shape = flow.shape(value)
    if slots.tiled:
        shape = (shape[0] // slots.count, slots.count, *shape[1:])
    slot = 1 if slots.tiled else slots.axis
    last = len(shape) + slots.unit
    axes = (slot, last) if heads and slot != last else (slot,)
    major = flow.time_major and not heads
    first = slots.first if heads else _first(flow, shape, major)
    return Units(value, shape, axes, slot, flow.batch, first, slots.tiled, major)


def plain_units(flow: Flow, value: int) -> Units:
    """The units of a value of the residual stream: its last axis, or the channels of an image."""
    shape = flow.shape(value)
    axis = channel_axis(flow, value) if len(shape) == 4 else len(shape) - 1
    return Units(value, shape, (axis,), axis, flow.batch, _first(flow, shape, flow.time_major), False, flow.time_major)


def _first(flow: Flow, shape: tuple[int, ...], time_major: bool) -> int:
    """The axis along which examples lie."""
    return 1 if time_major and len(shape) == 3 and shape[1] == flow.batch else 0


def respond(
    frozen: Frozen, start: Units, end: Units, position: int, slots: tuple[int | None, int | None] = (None, None),
    spread: bool = False,
) -> Tensor | None:
    """[*start units, *end units]: how `end` answers to impulses at `start`; None where no wiring leads there.

    `slots` narrow each side to one slot, whose axis then has length one; `spread` keeps the end's positions, last.
    """  # fmt: skip
    first, second = slots
    if not leads(frozen, start.value, end.value):
        return None
    found = arrivals(frozen, start, start.impulses(position, first), [end], second, spread)[0]
    counts = [1 if axis == start.slot and first is not None else start.shape[axis] for axis in start.axes]
    return found.unflatten(0, counts)


def leads(frozen: Frozen, start: int, end: int) -> bool:
    """Whether wiring leads from one value to another."""
    return start == end or start in frozen.plan([end], _stops(frozen, start, [end])).stored


def arrivals(
    frozen: Frozen, start: Units, rows: Tensor, ends: Sequence[Units], slot: int | None = None, spread: bool = False
) -> list[Tensor]:
    """For each end, [rows, *units]: what arrives there of each row given at `start`, beyond what is there anyway."""
    wanted = [end.value for end in ends]
    steps = frozen.plan(wanted, _stops(frozen, start.value, wanted))
    shapes: list[torch.Size] = []

    def answer(world: dict[int, Tensor]) -> Tensor:
        made = frozen.run(steps, world)
        found = [end.gathered(made[end.value], slot, spread) for end in ends]
        shapes[:] = [part.shape for part in found]
        return torch.cat([part.flatten() for part in found])

    rows = rows.to(getattr(torch, frozen.flow.graph.values[start.value].dtype))
    rows = torch.cat([torch.zeros_like(rows[:1]), rows])
    out = variants(answer, {start.value: rows}, sum(prod(end.shape) for end in ends))
    parts = (out[1:] - out[0]).split([shape.numel() for shape in shapes], 1)
    return [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]


def _stops(frozen: Frozen, start: int, ends: Sequence[int]) -> set[int]:
    return {*frozen.writes, start} - {end for end in ends if end != start}
