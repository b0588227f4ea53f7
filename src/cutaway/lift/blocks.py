"""The parts that lifting finds: blocks with reads, a write and slots.

A block is one invocation of a nonlinear piece of a network (an attention, an MLP's activation, a convolution, a step
of a recurrent cell). Its write is divided into slots along an axis (heads, neurons, channels, state units); each slot
is a component that can be a node of a circuit. A read is where values enter the block; everything between the writes of
earlier blocks and a read is wiring: linear paths and the norms that belong to the reader.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Slots:
    """`count` equal parts of a value along `axis`: the axis itself or runs of it; `tiled` when batch is folded in
    (the axis is batch × slots, slots fastest). A head's own dimensions lie along `unit`, counted from the end, and
    examples along `first`. `labels` are the slots' numbers where they are not counted from zero."""

    axis: int
    count: int
    tiled: bool = False
    unit: int = -1
    first: int = 0
    labels: tuple[int, ...] = ()

    def numbers(self) -> Sequence[int]:
        """What each slot is called."""
        return self.labels or range(self.count)


@dataclass(frozen=True)
class Read:
    """A value as it enters a block through a port."""

    port: str
    value: int
    slots: Slots


@dataclass
class Block:
    """One invocation of a nonlinear piece. `mark` is the letter of its slots' names (see AXES), or "" for one slot.

    `states` are the chains of states inside it, a value a step. `extra` are further values with a name, `units`
    how many units the block has where its slots do not say.
    """

    kind: str
    reads: tuple[Read, ...]
    write: int
    slots: Slots
    mark: str
    members: frozenset[int]
    name: str = ""
    step: int = 0
    key: tuple[object, ...] = ()
    extra: dict[str, int] = field(default_factory=dict)
    states: tuple[tuple[int, ...], ...] = ()
    units: int = 0

    def slot_names(self) -> list[str]:
        """The components' names, one a slot, the same for every step."""
        if not self.mark:
            return [self.name]
        return [f"{self.name}.{self.mark}{slot}" for slot in self.slots.numbers()]

    def reader_names(self, read: Read) -> list[str]:
        """The names of the read's slots, with the port."""
        if not read.port:
            return [self.name]
        if not self.mark or read.slots.count == 1:
            return [f"{self.name}.{read.port}"]
        mark = self.mark if read.slots.count == self.slots.count else "kv"
        return [f"{self.name}.{mark}{slot}.{read.port}" for slot in read.slots.numbers()]


AXES = {"h": "head", "n": "neuron", "c": "channel", "u": "state", "e": "expert", "f": "latent"}


def by_slot(value: Tensor, slots: Slots) -> Tensor:
    """[slots, …]: a value with all but one of its slots set to zero, for each slot."""
    if slots.count == 1:
        return value[None]
    size = value.shape[slots.axis]
    along = torch.arange(size, device=value.device)
    slot = along % slots.count if slots.tiled else along // (size // slots.count)
    rows = (slot == torch.arange(slots.count, device=value.device)[:, None]).to(value)
    return value * rows.view(slots.count, *(size if axis == slots.axis else 1 for axis in range(value.ndim)))


def slot_mask(mask: Tensor, value: Tensor, slots: Slots, position_axis: int | None) -> Tensor:
    """A mask [slots, positions] spread over the shape of a value, as a broadcastable tensor."""
    size = value.shape[slots.axis]
    repeat = size // slots.count
    spread = mask.repeat(repeat, 1) if slots.tiled else mask.repeat_interleave(repeat, 0)
    shape = [1] * value.ndim
    shape[slots.axis] = size
    if mask.shape[1] > 1 and position_axis is not None:
        shape[position_axis] = mask.shape[1]
        if position_axis < slots.axis:
            spread = spread.T
        return spread.reshape(shape)
    return spread[:, 0].reshape(shape)
