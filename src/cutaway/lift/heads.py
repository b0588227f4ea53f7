"""The heads of one attention as linear maps: what its ports read from the residual stream, and what its heads write."""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import InputError, SiteError
from ..run.trace import Trace
from .addressing import block_units, component
from .flow import Flow
from .frozen import Frozen, reader
from .names import stream_of
from .responses import arrivals, leads, plain_units, respond
from .results import attention_out

if TYPE_CHECKING:
    from .lift import Lifted


class Heads:
    """The heads of one attention, or the one that `name` names (`slot`), at one position of a recording."""

    def __init__(self, trace: Trace, name: str, norm: str, position: int, distance: int) -> None:
        lifted: Lifted = trace.lift()
        self.flow = lifted.flow
        self.block, _, self.slot = component(lifted, name, reading=False)
        if self.block.kind != "attention":
            raise SiteError(f"'{name}' is no attention or head; QK and OV are of heads, such as 'L0.attn.h0'.")
        if self.block.slots.tiled and len(self.flow.shape(self.block.write)) == 4:
            raise InputError(
                f"'{self.block.name}' attends in overlapping windows, where one value is read several times; a QK or "
                "OV matrix of it would be wrong. Read q, k, v and result instead."
            )
        if self.block.slots.first and not self.flow.time_major:
            raise InputError(
                f"'{self.block.name}' puts positions before examples, of which there are as many; record another "
                "number of examples to tell them apart."
            )
        self.frozen = frozen_wiring(trace, norm)
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
        self.note = note_of(norm, self.position, distance)

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
            reads = [self.ports[name] for name in alike]
            ends = [block_units(self.flow, self.block, read.value, read.slots) for read in reads]
            start = plain_units(self.flow, entrance)
            found = arrivals(self.frozen, start, start.impulses(position, None), ends)
            for name, part in zip(alike, found, strict=True):
                self.known[name, position] = part.movedim(0, -2) if part.ndim == 3 else part[None]
        return self.known[port, position]

    def offset(self, port: str, position: int) -> Tensor:
        """[port's heads, 1, d_head]: what a port reads when every write is zero."""
        read = self.ports[port]
        end = block_units(self.flow, self.block, read.value, read.slots)
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
            start = block_units(self.flow, self.block, self.block.write, self.block.slots)
            found = respond(self.frozen, start, plain_units(self.flow, attention_out(self.flow, self.block)), key[1])
            assert found is not None, "an attention leads to what it adds"
            self.known[key] = found if found.ndim == 3 else found[None]
        return self.known[key]

    def picked(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """The parts for every head (grouped ones repeated), or for the one head that was named."""
        count = self.block.slots.count
        spread = [part.repeat_interleave(count // len(part), 0) for part in parts]
        return tuple(spread if self.slot is None else [part[self.slot] for part in spread])

    def towards(self, other: Heads, port: str) -> Tensor | None:
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


def frozen_wiring(trace: Trace, norm: str) -> Frozen:
    """The wiring of a run with its norms as asked for. Raises InputError for another word than frozen or unit."""
    if norm not in ("frozen", "unit"):
        raise InputError(f"Norms are 'frozen' (at the recording's scale) or 'unit' (scale one), not {norm!r}.")
    lifted: Lifted = trace.lift()
    blocks = [*lifted.sources, *lifted.blocks, lifted.output]
    return Frozen(lifted.flow, blocks, reader(lifted.flow, trace), unit=norm == "unit")


def note_of(norm: str, position: int, distance: int) -> str:
    """How a virtual weight was obtained."""
    scale = "norms at the recording's scale" if norm == "frozen" else "norms at scale one"
    return f"{scale}, position {position}" + (f", key {distance} before" if distance else "")
