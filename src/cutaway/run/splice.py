"""Dictionaries in a run: ops put on a tape behind the values that a dictionary reads and writes.

    codes = encode(what is read)
    latents = codes                                what `SITE[latent=12]` means
    error = value − decode(codes)                  what the dictionary does not say of the value that it writes
    value' = value + decode(latents) − decode(codes)

All that read `value` afterwards reads `value'`. So an edit of latents keeps the error, and one that changes nothing
changes no bit. On the tape that is lifted, value' = decode(latents) + error instead: there both are writes of blocks,
and the encoder's affine step is an op of its own, so that every latent reads its own mixture of what comes before.

These are ordinary calls: they replay, batch and carry gradients as the network's own do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..graph import Graph, Op, Value
from .laid import Laid
from .structure import Ref, swap
from .tape import Call, Tape

LATENTS, SLOTS = "latents:", "slots:"  # how addresses of a dictionary's ops begin: for edits, and for lifting


@dataclass(frozen=True, eq=False)
class Encoding:
    """How a dictionary encodes rows [..., d_in]. Coordinates [..., latents] stand for the rows
    `coordinates @ decoder + constant` [..., d_out].

    Where there is a `matrix` [latents, d_in], `encode` is `rule` after `rows @ matrix.T + offset`. A rule that
    `competes` is given the rows too, for what others make of them counts.
    """

    encode: Callable[[Tensor], Tensor]
    decoder: Tensor
    constant: Tensor
    matrix: Tensor | None = None
    offset: Tensor | None = None
    rule: Callable[..., Tensor] | None = None
    competes: bool = False


@dataclass(frozen=True, eq=False)
class Attachment:
    """A dictionary at its place: sites whose values it reads and writes, and the axis along which their vectors lie.

    `widths` are the sizes of those vectors, by site. `whole` encodes all of its `count` latents; `some` those with the
    numbers in `latents`, which circuits tell apart, while all others count to the error.
    """

    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    axis: str
    widths: dict[str, int]
    count: int
    latents: tuple[int, ...]
    whole: Encoding
    some: Encoding
    basis: Any = None

    @property
    def sites(self) -> tuple[str, ...]:
        """All sites that it reads or writes."""
        return tuple(dict.fromkeys((*self.reads, *self.writes)))


@dataclass(frozen=True, eq=False)
class Splice:
    """One attachment on a tape: `key` begins the addresses of its ops, `told` says whether for lifting."""

    attachment: Attachment
    reads: tuple[Laid, ...]
    writes: tuple[Laid, ...]
    lifted: bool

    @property
    def key(self) -> str:
        """What comes before `//` in the addresses of its ops."""
        return f"{SLOTS if self.lifted else LATENTS}{self.attachment.name}"


@dataclass(frozen=True, eq=False)
class Spliced:
    """A tape with dictionaries in it. `shift[i]` is the new number of op `i`, `after` the value that now stands for one
    that a dictionary writes, and `made` for each splice the values of its ops by the ops' names, with those that it was
    `given` to read, and those that it was `told` of before it wrote them."""

    tape: Tape
    splices: tuple[Splice, ...]
    shift: list[int]
    after: dict[int, int]
    made: list[dict[str, tuple[int, ...]]]


def spliced(tape: Tape, splices: Sequence[Splice]) -> Spliced:
    """A copy of a tape with dictionaries put in; values of everything else keep their ids."""
    old = tape.graph
    waiting = sorted(((_behind(old, splice), at) for at, splice in enumerate(splices)))
    modules = [replace(call, counts={}) for call in old.modules]
    graph = Graph([replace(value) for value in old.values], [], modules, list(old.inputs), list(old.outputs))
    new = replace(tape, graph=graph, calls=[], leaves=dict(tape.leaves), kept=dict(tape.kept))
    after: dict[int, int] = {}
    since: dict[int, int] = {}  # the op after which a value has another in its place
    shift: list[int] = []
    made: dict[str, dict[str, tuple[int, ...]]] = {}
    for index in range(-1, len(old.ops)):
        if index >= 0:
            shift.append(len(graph.ops))
            _copy(new, old.ops[index], tape.calls[index], after)
        while waiting and waiting[0][0] == index:
            splice = splices[waiting.pop(0)[1]]
            made[splice.key] = _Put(new, splice, after, old.ops[index] if index >= 0 else None).run()
            since |= dict.fromkeys((place.value for place in splice.writes), index)

    def seen(values: tuple[int, ...], op: int) -> tuple[int, ...]:
        return tuple(after[value] if value in since and since[value] < op else value for value in values)

    starts = [*shift, len(graph.ops)]
    for call, was in zip(modules, old.modules, strict=True):
        call.inputs, call.outputs = seen(was.inputs, was.first), seen(was.outputs, was.last - 1)
        call.first = starts[was.first]
        # A module that hands a value on does so before the dictionary behind it, which sees an edit of that.
        call.last = shift[was.last - 1] + 1 if was.last > was.first else call.first
    modules[0].last = len(graph.ops)
    graph.outputs = [after.get(value, value) for value in graph.outputs]
    new.inner = tuple(after.get(value, value) for value in tape.inner)
    return Spliced(new, tuple(splices), shift, after, [made[splice.key] for splice in splices])


def _behind(graph: Graph, splice: Splice) -> int:
    """The op behind which a dictionary comes: all that it reads and writes is there, and nobody has read that yet.

    Of a dictionary that writes several values, those read before the last of them is there are read as they are.
    """
    last = max(graph.values[place.value].op for place in (*splice.reads, *splice.writes))
    readers = [op for place in splice.writes for op in graph.users[place.value] if op > last]
    return min(readers, default=len(graph.ops)) - 1


def _copy(tape: Tape, op: Op, call: Call, after: dict[int, int]) -> None:
    """Put a call at the end of a tape, with those values in `after` that now stand for others."""
    if after.keys() & set(op.inputs):
        op = replace(op, inputs=tuple(after.get(value, value) for value in op.inputs))
        slots = call.slots and [(place, after.get(value, value)) for place, value in call.slots]
        args, kwargs = swap((call.args, call.kwargs), Ref, lambda ref: Ref(after.get(ref.id, ref.id)))
        call = replace(call, args=args, kwargs=kwargs, slots=slots)
    op = replace(op, index=len(tape.graph.ops))
    for port, value in enumerate(op.outputs):
        tape.graph.values[value].op, tape.graph.values[value].port = op.index, port
    tape.graph.ops.append(op)
    tape.calls.append(call)


class _Put:
    """The ops of one dictionary, put at the end of a tape."""

    def __init__(self, tape: Tape, splice: Splice, after: dict[int, int], behind: Op | None) -> None:
        self.tape, self.splice, self.after, self.behind = tape, splice, after, behind
        self.encoding = splice.attachment.some if splice.lifted else splice.attachment.whole
        self.first = splice.reads[0]
        self.lead = self.first.lead
        self.made: dict[str, tuple[int, ...]] = {}
        self.counts: dict[str, int] = {}

    def run(self) -> dict[str, tuple[int, ...]]:
        """Put them there; returns the values of each kind of op."""
        what, first = self.splice.attachment, self.first
        count = len(what.latents) if self.splice.lifted else what.count
        codes = self._codes(count)
        shape = tuple(first.put(torch.empty((*self.lead, count), device="meta")).shape)
        latents = self._op("latents", first.put, [codes], shape)
        self.made["told"] = tuple(self.after.get(place.value, place.value) for place in self.splice.writes)
        for number, place in enumerate(self.splice.writes):
            value, told = self.made["told"][number], self._told(number)
            error = self._op("error", _error(place, told), [value, codes], place.flat)
            if self.splice.lifted:
                parts = [self._op("decode", _decoded(place, first, told), [latents], place.flat), error]
                add = torch.add if place.dtype.itemsize > 2 else _sum_as(place.dtype)
            else:
                changed = _changed(place, first, self._told(number, False))
                parts = [value, self._op("decode", changed, [latents, codes], place.flat)]
                add = torch.add if place.dtype.itemsize > 2 else _sum_as(place.dtype)
            self.after[place.value] = self._op("add", add, parts, place.flat, str(place.dtype)[6:])
        return self.made

    def _codes(self, count: int) -> int:
        """The values read, as rows, and what they are encoded to."""
        what, encoding, reads = self.splice.attachment, self.encoding, self.splice.reads
        given = [self.after.get(place.value, place.value) for place in reads]
        self.made["given"], rows = tuple(given), given[0]
        if len(reads) > 1 or not reads[0].plain:
            width = sum(what.widths[site] for site in what.reads)
            rows = self._op("rows", _side_by_side(reads), given, (*self.lead, width))
        self.made["read"] = (rows,)
        if not self.splice.lifted or encoding.matrix is None:
            return self._op("encode", encoding.encode, [rows], (*self.lead, count))
        dtype = self.first.dtype if self.first.dtype.itemsize > 2 else torch.float32
        weights = [self._leaf(part.to(dtype)) for part in (encoding.matrix, encoding.offset) if part is not None]
        made = self._op("linear", functional.linear, [rows, *weights], (*self.lead, count))
        if encoding.rule is None:
            return made
        return self._op("encode", encoding.rule, [made, rows] if encoding.competes else [made], (*self.lead, count))

    def _told(self, number: int, whole: bool = True) -> Callable[[Tensor], Tensor]:
        """What codes say of one of the values written, in rows; without what is there for none unless `whole`."""
        what, encoding = self.splice.attachment, self.encoding
        start = sum(what.widths[site] for site in what.writes[:number])
        end = start + what.widths[what.writes[number]]

        decoder, constant = encoding.decoder[:, start:end], encoding.constant[start:end]

        def told(codes: Tensor) -> Tensor:
            made = (codes.to(decoder.dtype) @ decoder).to(codes.dtype)
            return made + constant.to(made) if whole else made

        return told

    def _leaf(self, tensor: Tensor) -> int:
        values = self.tape.graph.values
        name = f"{self.splice.key}//{self.counts.setdefault('weight', 0)}"
        self.counts["weight"] += 1
        values.append(Value(len(values), "const", name, -1, 0, tuple(tensor.shape), str(tensor.dtype)[6:]))
        self.tape.leaves[values[-1].id] = tensor
        return values[-1].id

    def _op(
        self, name: str, func: Callable[..., Tensor], given: list[int], shape: tuple[int, ...], dtype: str = ""
    ) -> int:
        """Put one op there; returns the value that it makes."""
        values, index = self.tape.graph.values, len(self.tape.graph.ops)
        kind = self.first.dtype if self.first.dtype.itemsize > 2 else torch.float32
        made = Value(len(values), "op", "", index, 0, shape, dtype or str(kind)[6:])
        values.append(made)
        ordinal = self.counts.get(name, 0)
        self.counts[name] = ordinal + 1
        module, source = (self.behind.module, self.behind.source) if self.behind is not None else (0, None)
        inputs = tuple(dict.fromkeys(given))
        self.tape.graph.ops.append(Op(index, name, ordinal, module, inputs, (made.id,), source, self.splice.key))
        slots = list(enumerate(given))
        self.tape.calls.append(Call(func, tuple(map(Ref, given)), {}, slots, (made.id,)))
        self.made[name] = (*self.made.get(name, ()), made.id)
        return made.id


def _side_by_side(reads: Sequence[Laid]) -> Callable[..., Tensor]:
    def rows(*given: Tensor) -> Tensor:
        found = [place.rows(value) for place, value in zip(reads, given, strict=True)]
        return found[0] if len(found) == 1 else torch.cat(found, -1)

    return rows


def _error(place: Laid, told: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """(value, codes) to what codes do not say of the value."""
    return lambda value, codes: (value.float() if value.dtype.itemsize <= 2 else value) - place.back(told(codes))


def _decoded(place: Laid, first: Laid, told: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """What latents say, as the value lies."""
    return lambda latents: place.back(told(first.taken(latents)))


def _changed(place: Laid, first: Laid, told: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """(latents, codes) to what the difference says: exactly nothing where there is none."""
    return lambda latents, codes: place.back(told(first.taken(latents) - codes))


def _sum_as(dtype: torch.dtype) -> Callable[[Tensor, Tensor], Tensor]:
    """A sum in single precision, rounded at its end."""
    return lambda one, two: (one.float() + two.float()).to(dtype)
