"""The ends of linear paths: what every block writes and reads, and where each joins the residual stream.

A writer's exit is what it adds to the stream (or its write, where it adds nothing alone); a reader's entrance is the
nearest value of the stream that it is made from. Between an exit and an entrance mostly nothing lies: then the weights
from any unit to any other are a product of two matrices, and never need to be made.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from ..lift import Lifted
from ..lift.addressing import block_units
from ..lift.blocks import Block, Read
from ..lift.flow import Flow
from ..lift.frozen import Frozen, reader
from ..lift.heads import _behind
from ..lift.names import stream_of, way_out
from ..lift.responses import Units, plain_units
from ..lift.results import attention_out
from ..run.attached import splice_of
from ..run.laid import Laid
from ..run.trace import Trace
from .maps import linear_map


@dataclass(frozen=True, eq=False)
class End:
    """One side of a block: `count` components of `group` units each, at `units`; `joint` is the exit or entrance.

    `name` is the block's, with the port of a reader in `port`; `mark` is the letter of its components. With `matrix`
    the units are directions in a value, [components, d]: latents of a dictionary that is attached there.
    """

    name: str
    port: str
    mark: str
    count: int
    group: int
    kind: str
    step: int
    units: Units
    joint: Units
    matrix: Tensor | None = None

    @property
    def label(self) -> str:
        """The whole end's name: `L1.attn.q`, `L0.mlp`."""
        return f"{self.name}.{self.port}" if self.port else self.name

    def component(self, slot: int) -> str:
        """One component's name: `L1.attn.h2.q`, `L0.mlp.n7`."""
        inner = f"{self.name}.{self.mark}{slot}" if self.mark else self.name
        return f"{inner}.{self.port}" if self.port else inner


@dataclass(frozen=True, eq=False)
class Paths:
    """The linear paths of a recording: its frozen wiring, and the writers and readers at their ends.

    Of the steps of a recurrent cell, the last two stand for all: what a step reads of the one before is among them.
    """

    lifted: Lifted
    frozen: Frozen
    position: int
    writers: tuple[End, ...]
    readers: tuple[End, ...]

    @property
    def flow(self) -> Flow:
        """The flow of the run."""
        return self.lifted.flow

    def written(self, end: End) -> Tensor | None:
        """[units, exit's units]: what each unit of a writer adds at its exit."""
        if end.matrix is not None:
            return end.matrix
        return linear_map(self.frozen, end.units, end.joint, self.position)

    def read(self, end: End) -> Tensor | None:
        """[entrance's units, units]: what each unit of a reader reads of its entrance."""
        if end.matrix is not None:
            return end.matrix.mT
        return linear_map(self.frozen, end.joint, end.units, self.position)


def paths(trace: Trace, norm: str, position: int, *, through_norms: bool = False) -> Paths:
    """The linear paths of a recording. `norm`: scales of norms as recorded ("frozen") or one ("unit").

    `through_norms`: norms that stand on the skip path (as in BERT) are wiring too, not components of their own.
    """
    whole: Lifted = trace.lift()
    lifted = whole.plain or whole  # a dictionary changes nothing, so paths lead through where it is attached
    blocks = [*lifted.sources, *lifted.constants, *lifted.blocks, lifted.output]
    if through_norms:
        blocks = [block for block in blocks if block.kind != "norm"]
    frozen = Frozen(lifted.flow, blocks, reader(lifted.flow, trace), unit=norm == "unit")
    stream = {*stream_of(lifted.flow), *frozen.writes}
    last: dict[str, int] = {}
    for block in blocks:
        last[block.name] = max(last.get(block.name, 0), block.step)
    writers, readers = [], []
    for block in blocks:
        if block.step < last[block.name] - 1:
            continue
        if block.write >= 0:
            writers.append(_writer(lifted, block))
        readers += [_reader(lifted, block, read, stream) for read in block.reads if _moves(lifted.flow, read)]
    for what in trace.net.attachments:
        splice = splice_of(trace, what, lambda: lifted)
        ends = (splice.reads, what.whole.matrix, "in", readers), (splice.writes, what.whole.decoder, "", writers)
        for places, matrix, port, side in ends:
            if (
                len(places) == 1
                and matrix is not None
                and (found := _latents(lifted, what.name, places[0], matrix, port))
            ):
                side.append(found)
    return Paths(lifted, frozen, position, tuple(writers), tuple(readers))


def _latents(lifted: Lifted, name: str, place: Laid, matrix: Tensor, port: str) -> End | None:
    """The latents of a dictionary as directions in a value; None where that has other units than they have numbers."""
    units = plain_units(lifted.flow, place.value)
    if prod(units.shape[axis] for axis in units.axes) != matrix.shape[1] or place.value not in lifted.flow.activations:
        return None
    return End(name, port, "f", len(matrix), 1, "dictionary", 0, units, units, matrix.float())


def _moves(flow: Flow, read: Read) -> bool:
    return read.value in flow.activations


def _writer(lifted: Lifted, block: Block) -> End:
    flow = lifted.flow
    units = block_units(flow, block, block.write, block.slots)
    joint = units
    if block.kind == "attention":
        joint = plain_units(flow, attention_out(flow, block))
    elif block.kind == "mlp":
        out, _ = way_out(flow, block)
        joint = units if out is None else plain_units(flow, out)
    elif not block.mark:
        units = joint = plain_units(flow, block.write)
    return _end(block, "", units, joint, block.slots.count, block.mark)


def _reader(lifted: Lifted, block: Block, read: Read, stream: set[int]) -> End:
    flow = lifted.flow
    units = block_units(flow, block, read.value, read.slots)
    if not block.mark and block.kind != "mlp":
        units = plain_units(flow, read.value)
    mark = block.mark if read.slots.count in (1, block.slots.count) else "kv"
    return _end(block, read.port, units, plain_units(flow, entrance(flow, read.value, stream)), read.slots.count, mark)


def _end(block: Block, port: str, units: Units, joint: Units, slots: int, mark: str) -> End:
    total = prod(units.shape[axis] for axis in units.axes)
    if block.kind == "mlp":
        slots, mark = total, "n"
    count = slots if mark and total % slots == 0 else 1
    return End(block.name, port, mark if count > 1 else "", count, total // count, block.kind, block.step, units, joint)


def entrance(flow: Flow, value: int, stream: Iterable[int]) -> int:
    """The nearest value of the stream that a value is made from; where others join in behind it, the place where they
    all have."""
    stops = set(stream)
    behind = _behind(flow, value, stops)
    found = next((other for other in behind if other in stops), value)
    if _behind(flow, value, {found}, stops):
        return found
    return next(other for other in sorted(behind) if _behind(flow, value, {other}, stops))


def is_image(units: Units) -> bool:
    """Whether a value's positions lie along several axes."""
    return len(units.places) > 1


def grouped(values: Tensor, groups: tuple[int, int]) -> Tensor:
    """[components, components]: the root of the sum of squares over the units of each pair; the plain number, with its
    sign, where each has one unit."""
    if groups == (1, 1):
        return values
    rows, columns = groups
    squares = values.unflatten(0, (-1, rows)).unflatten(2, (-1, columns)).square().sum((1, 3))
    return torch.sqrt(squares)
