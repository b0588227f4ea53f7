"""Virtual weights: the network's own weights, multiplied along linear paths between components.

Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits": a head is a QK and an OV matrix in the
coordinates of the residual stream, and heads compose where one writes what another reads. Everything here is taken from
a recording by sending impulses through its wiring, so it holds for grouped queries, latent attention, convolutions and
what else lies between components, and no architecture is known by name.

Norms on the way are linear once their scale is fixed: at what it was in the recording at the stated positions
(`norm="frozen"`), or at one (`norm="unit"`: gains and centring stay, and only directions mean something).
"""

from __future__ import annotations

import re
from collections.abc import Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError, SiteError
from ..run.trace import Trace
from ..site import unknown
from .blocks import Block, Read, Slots
from .factored import Factored
from .flow import Flow
from .frozen import Frozen, reader
from .names import stream_of
from .responses import Units, arrivals, leads, plain_units, respond, units_of
from .results import attention_out

if TYPE_CHECKING:
    from .lift import Lifted

_BEHIND = re.compile(r"(?:@(?P<step>\d+))?(?:\.(?P<mark>h|n|c|u|kv)(?P<slot>\d+))?(?:\.(?P<port>[a-z]+\d*))?")


@dataclass(frozen=True, eq=False)
class VirtualWeights:
    """The linear map from a writer to a reader, through linear paths alone.

    `matrix` [*writer's units, *reader's units]: what the reader's units read for one at each of the writer's, summed
    over positions. A head has one axis of units, all heads of a layer two (head, dimension). Where a writer has several
    axes of positions, as in images, `kernel` has them behind: what the reader's middle sees of each place around it, as
    in a convolution's weight, cropped to where anything is seen.
    """

    writer: str
    reader: str
    matrix: Tensor
    kernel: Tensor | None
    note: str

    def norm(self) -> float:
        """The Frobenius norm of the matrix."""
        return float(self.matrix.norm())


def qk(trace: Trace, head: str, *, distance: int = 0, position: int = -1, norm: str = "frozen") -> Factored:
    """The QK matrix of a head (`L0.attn.h3`) or of all heads of an attention (`L0.attn`: a leading axis of heads).

    `x_query @ QK @ x_key` is q · k without biases and without the factor 1/√d, for values of the residual stream that
    the attention reads from. Rotary embedding makes it depend on positions: the query stands at `position` (the last,
    by default), the key `distance` before it; at distance 0 it is the part free of position. A bias by position that is
    added to scores is no part of it. Raises SiteError for no such attention and InputError for no such position.
    """
    found = _Heads(trace, head, norm, position, distance)
    queries, keys = found.read("q", found.position), found.read("k", found.position - distance)
    left, right = found.picked(queries, keys.mT)
    return Factored(left, right, note=found.note)


def ov(trace: Trace, head: str, *, distance: int = 0, position: int = -1, norm: str = "frozen") -> Factored:
    """The OV matrix of a head (`L0.attn.h3`) or of all heads of an attention (`L0.attn`: a leading axis of heads).

    `x_key @ OV` is what the head adds to the residual stream at `position` when it attends only to the key `distance`
    before; the result called on `x_key` adds the value's bias. Raises SiteError for no such attention and InputError
    for no such position.
    """
    found = _Heads(trace, head, norm, position, distance)
    values, out = found.read("v", found.position - distance), found.write()
    left, right, offset = found.picked(values, out, found.offset("v", found.position - distance))
    return Factored(left, right, offset.squeeze(-2), note=found.note)


def virtual_weights(
    trace: Trace, reader_name: str, writer_name: str, *, position: int = -1, norm: str = "frozen"
) -> VirtualWeights:
    """The linear map from a writer's output to a reader's input through linear paths, as a recording has them.

    Writers: `embed`, `pos_embed`, `L0.attn` or `L0.attn.h3`, `L0.mlp` or `L0.mlp.n7`, `L0.conv.c2`, `L0.rnn@1.u4`.
    Readers have a port: `L1.attn.h2.q`, `L1.mlp.in`, `L1.mlp.n5.in`, `L1.conv.c5.in`, `logits`. The writer's impulse
    stands at `position` (in the middle of an image). Raises SiteError for an unknown name and InputError when other
    components lie between the two on every path.
    """
    lifted: Lifted = trace.lift()
    flow = lifted.flow
    writer, _, first = _component(lifted, writer_name, reading=False)
    block, read, second = _component(lifted, reader_name, reading=True)
    assert read is not None
    frozen = _frozen(trace, norm)
    start = _units(flow, writer, writer.write, writer.slots)
    end = _units(flow, block, read.value, read.slots)
    several = len(start.places) > 1 and bool(end.places)
    found = respond(frozen, start, end, position, (first, second), several)
    if found is None:
        raise InputError(f"No linear path leads from '{writer_name}' to '{reader_name}': other components lie between.")
    kernel = _cropped(found, len(end.places)) if several else None
    matrix = found.flatten(-len(end.places)).sum(-1) if several else found
    return VirtualWeights(
        writer_name, reader_name, _narrowed(matrix, start, end, first, second),
        None if kernel is None else _narrowed(kernel, start, end, first, second), _note(norm, position, 0),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Composition:
    """How much of what each writing head writes each reading head reads: `scores` [writers, readers], 0 to 1.

    NaN where no linear path leads from one to the other. Random matrices do not score 0: compare with other pairs.
    """

    kind: str
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    scores: Float[Tensor, "writers readers"]
    note: str

    def top(self, count: int = 10) -> list[tuple[str, str, float]]:
        """The pairs (writer, reader, score) that compose most, the highest score first."""
        flat = self.scores.flatten().nan_to_num(-1.0)
        order = flat.argsort(descending=True)[:count].tolist()
        pairs = [(place // len(self.readers), place % len(self.readers)) for place in order if flat[place] >= 0]
        return [(self.writers[row], self.readers[column], float(self.scores[row, column])) for row, column in pairs]


def composition(trace: Trace, kind: str = "q", *, position: int = -1, norm: str = "unit") -> Composition:
    """Q-, K- or V-composition of every pair of heads: ‖OV · QK‖ / (‖OV‖ ‖QK‖) and its like.

    Elhage et al. 2021: `q`: the writer's OV into the reader's query; `k`: into its key; `v`: into its value. What lies
    between a writer and a reader on the residual stream (a norm after the sum, a factor) is multiplied in. QK is taken
    at distance 0. Heads of a pair of layers are one batch, with d_head × d_head products in place of d_model × d_model.
    """
    if kind not in ("q", "k", "v"):
        raise InputError(f"Composition is of kind 'q', 'k' or 'v', not {kind!r}.")
    names = [block.name for block in trace.lift().blocks if block.kind == "attention"]
    heads = [_Heads(trace, name, norm, position, 0) for name in names]
    if not heads:
        raise InputError("This network has no attention that lifting recognises, so no heads compose.")
    rows = []
    for writer in heads:
        values, out = writer.picked(writer.read("v", writer.position), writer.write())
        whole = Factored(values, out)
        rows.append([_scores(whole, writer, found, kind) for found in heads])
    labels = tuple(label for found in heads for label in found.block.slot_names())
    scores = torch.cat([torch.cat(row, 1) for row in rows])
    return Composition(kind, labels, labels, scores, _note(norm, position, 0))


def _scores(whole: Factored, writer: _Heads, found: _Heads, kind: str) -> Tensor:
    """[writer's heads, reader's heads]: ‖OV · AB‖ / (‖OV‖ ‖AB‖) where the reader reads with A and goes on with B."""
    between = writer.towards(found, kind)
    if between is None:
        return torch.full((len(whole.left), found.block.slots.count), float("nan"))
    position = found.position
    first = found.read(kind, position)
    other = {"q": "k", "k": "q"}.get(kind)
    second = found.write() if other is None else found.read(other, position).mT
    first, second = found.picked(first, second)
    across = whole.right * between if between.numel() == 1 else whole.right @ between
    middle = torch.einsum("wri,hid->whrd", across, first)
    left, right = whole.left.mT @ whole.left, second @ second.mT
    squares = torch.einsum("wrs,whsd,hde,whre->wh", left, middle, right, middle)
    scale = whole.norm()[:, None] * Factored(first, second).norm()[None]
    return squares.clamp(min=0).sqrt() / scale


class _Heads:
    """The heads of one attention: what reads its ports from the stream, and what its heads write."""

    def __init__(self, trace: Trace, name: str, norm: str, position: int, distance: int) -> None:
        lifted: Lifted = trace.lift()
        self.flow = lifted.flow
        self.block, _, self.slot = _component(lifted, name, reading=False)
        if self.block.kind != "attention":
            raise SiteError(f"'{name}' is no attention or head; QK and OV are of heads, such as 'L0.attn.h0'.")
        self.frozen = _frozen(trace, norm)
        self.stream = {*stream_of(self.flow), *self.frozen.writes}
        self.known: dict[tuple[str, int], Tensor] = {}
        self.ports = {read.port: read for read in self.block.reads}
        length, keys = self.length("q"), self.length("k")
        if not -length <= position < length or not 0 <= distance <= position % length:
            raise InputError(
                f"The recording has {length} positions; position {position} with a key {distance} before it is not "
                "among them."
            )
        self.position = min(position % length, keys - 1 + distance)
        self.note = _note(norm, self.position, distance)

    def length(self, port: str) -> int:
        """How many positions a port is made from."""
        value = self.entrance(port) if self._reads(port) else self.block.write
        return plain_units(self.flow, value).length() or 1

    def _reads(self, port: str) -> bool:
        """Whether what a port reads depends on the inputs."""
        return self.ports[port].value in self.flow.activations

    def entrance(self, port: str) -> int:
        """The nearest value of the residual stream, or write of a component, that a port is made from.

        Where other components join in behind it, the place where they have all joined in.
        """
        read = self.ports[port].value
        if not self._reads(port):
            raise InputError(f"'{self.block.name}.{port}' reads nothing that depends on the inputs.")
        behind = _behind(self.flow, read, self.stream)
        found = next((value for value in behind if value in self.stream), read)
        if _behind(self.flow, read, {found}, self.stream):
            return found
        return next(value for value in sorted(behind) if _behind(self.flow, read, {value}, self.stream))

    def read(self, port: str, position: int) -> Tensor:
        """[port's heads, d_stream, d_head]: from the stream to a port."""
        if (port, position) not in self.known:
            entrance = self.entrance(port)
            alike = [name for name in self.ports if self._reads(name) and self.entrance(name) == entrance]
            ends = [_units(self.flow, self.block, self.ports[name].value, self.ports[name].slots) for name in alike]
            start = plain_units(self.flow, entrance)
            found = arrivals(self.frozen, start, start.impulses(position, None), ends)
            for name, part in zip(alike, found, strict=True):
                self.known[name, position] = part.movedim(0, -2) if part.ndim == 3 else part[None]
        return self.known[port, position]

    def offset(self, port: str, position: int) -> Tensor:
        """[port's heads, 1, d_head]: what a port reads when every write is zero."""
        read = self.ports[port]
        end = _units(self.flow, self.block, read.value, read.slots)
        steps = self.frozen.plan([read.value], {*self.frozen.writes, self.entrance(port)})
        zeros = {self.entrance(port): torch.zeros(self.flow.shape(self.entrance(port)))}
        value = self.frozen.run(steps, zeros)[read.value].detach()
        value = value.unflatten(0, (-1, end.shape[1])) if end.tiled else value
        places = [position if len(end.places) == 1 else 0 for _ in end.places]
        index: list[int | slice] = [slice(None) if axis in end.axes else 0 for axis in range(value.ndim)]
        for axis, place in zip(end.places, places, strict=True):
            index[axis] = min(place, value.shape[axis] - 1)
        found = value[tuple(index)]
        return found[:, None] if found.ndim == 2 else found[None, None]

    def write(self) -> Tensor:
        """[heads, d_head, d_stream]: from z to what the attention adds to the stream."""
        key = ("z", self.position)
        if key not in self.known:
            start = _units(self.flow, self.block, self.block.write, self.block.slots)
            found = respond(self.frozen, start, plain_units(self.flow, attention_out(self.flow, self.block)), key[1])
            assert found is not None, "an attention leads to what it adds"
            self.known[key] = found if found.ndim == 3 else found[None]
        return self.known[key]

    def picked(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """The parts for every head (grouped ones repeated), or for the one head that was named."""
        count = self.block.slots.count
        spread = [part.repeat_interleave(count // len(part), 0) for part in parts]
        return tuple(spread if self.slot is None else [part[self.slot] for part in spread])

    def towards(self, other: _Heads, port: str) -> Tensor | None:
        """[d_stream, d_stream]: what lies between what this attention adds and another's entrance; None: no path.

        Mostly it is the identity, or a factor: two random rows show that before impulses at every unit are tried.
        """
        out = attention_out(self.flow, self.block)
        if not other._reads(port) or not leads(self.frozen, out, other.entrance(port)):
            return None
        start, end = plain_units(self.flow, out), plain_units(self.flow, other.entrance(port))
        impulses = start.impulses(self.position, None)
        rows = torch.randn(2, len(impulses), generator=torch.Generator().manual_seed(0))
        got = arrivals(self.frozen, start, torch.tensordot(rows, impulses, 1), [end])[0]
        factor = (got * rows).sum() / rows.square().sum() if got.shape == rows.shape else torch.tensor(0.0)
        if got.shape == rows.shape and (got - factor * rows).abs().max() <= 1e-5 * got.abs().max():
            return factor.reshape(1, 1)
        return arrivals(self.frozen, start, impulses, [end])[0]


def _behind(flow: Flow, value: int, stops: set[int], never: Set[int] = frozenset()) -> list[int]:
    """What a value is made from, nearest first, back to `stops`; nothing if it is made of one of `never` besides."""
    waiting, seen = [value], dict[int, None]()
    while waiting:
        current = waiting.pop(0)
        if current in seen:
            continue
        seen[current] = None
        if current in stops:
            continue
        if current in never:
            return []
        op = flow.maker(current)
        waiting.extend(source for source in (op.inputs if op is not None else ()) if source in flow.activations)
    return list(seen)


def _frozen(trace: Trace, norm: str) -> Frozen:
    if norm not in ("frozen", "unit"):
        raise InputError(f"Norms are 'frozen' (at the recording's scale) or 'unit' (scale one), not {norm!r}.")
    lifted: Lifted = trace.lift()
    blocks = [*lifted.sources, *lifted.blocks, lifted.output]
    return Frozen(lifted.flow, blocks, reader(lifted.flow, trace), unit=norm == "unit")


def _note(norm: str, position: int, distance: int) -> str:
    scale = "norms at the recording's scale" if norm == "frozen" else "norms at scale one"
    return f"{scale}, position {position}" + (f", key {distance} before" if distance else "")


def _units(flow: Flow, block: Block, value: int, slots: Slots) -> Units:
    if block.kind == "output":
        return plain_units(flow, value)
    if block.kind == "mlp":
        slots = Slots(slots.axis, flow.shape(value)[slots.axis])
    return units_of(flow, value, slots, heads=block.kind == "attention")


def _component(lifted: Lifted, name: str, reading: bool) -> tuple[Block, Read | None, int | None]:
    """A block, the read that is named, and the slot that is named."""
    blocks = [*lifted.sources, *lifted.constants, *lifted.blocks, lifted.output]
    known = [port for block in blocks for port in (_ports(block) if reading else block.slot_names())]
    fitting = [block.name for block in blocks if _BEHIND.fullmatch(name.removeprefix(block.name))]
    whole = max((found for found in fitting if name.startswith(found)), key=len, default="")
    match = _BEHIND.fullmatch(name.removeprefix(whole))
    step = int(match["step"] or 0) if match is not None else 0
    block = next((block for block in blocks if block.name == whole and block.step == step), None)
    if match is None or block is None or (not reading and block.write < 0):
        raise unknown(name, known)
    slot = None if match["slot"] is None else int(match["slot"])
    read = None
    if reading:
        reads = [read for read in block.reads if match["port"] in (None, read.port)]
        if not reads or (len(reads) > 1 and match["port"] is None):
            raise unknown(name, known)
        read = reads[0]
    elif match["port"]:
        raise unknown(name, known)
    slots = read.slots if read is not None else block.slots
    value = read.value if read is not None else block.write
    if slot is not None:
        count = _units(lifted.flow, block, value, slots)
        size = count.shape[count.slot]
        if read is not None and block.kind == "attention" and match["mark"] == "h" and slot < block.slots.count:
            slot = slot * size // block.slots.count  # the group that a head of queries reads
        elif slot >= size:
            raise unknown(name, known)
    return block, read, slot


def _ports(block: Block) -> list[str]:
    return [name for read in block.reads for name in block.reader_names(read)]


def _narrowed(found: Tensor, start: Units, end: Units, first: int | None, second: int | None) -> Tensor:
    """Without the axes of length one of slots that were named."""
    gone = [start.axes.index(start.slot)] if first is not None else []
    gone += [len(start.axes) + end.axes.index(end.slot)] if second is not None else []
    kept = [axis for axis in range(found.ndim) if axis not in gone]
    return found.squeeze([axis for axis in range(found.ndim) if axis not in kept]) if gone else found


def _cropped(found: Tensor, places: int) -> Tensor:
    """The last `places` axes cut to where anything is not zero."""
    for axis in range(found.ndim - places, found.ndim):
        used = (found != 0).movedim(axis, 0).flatten(1).any(1).nonzero().flatten()
        if len(used):
            found = found.narrow(axis, int(used[0]), int(used[-1] - used[0]) + 1)
    return found.flip(list(range(found.ndim - places, found.ndim)))  # who is reached, turned to who is seen
