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

    A dictionary whose latents each read one of several places is attached in parts, one for each of those places: `own`
    are the numbers of the latents that this part has (in `whole` all others are zero), `group` the name of them all.
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
    own: frozenset[int] = frozenset()
    group: str = ""

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
    modules = [replace(call, counts={}) for call in old.modules]
    graph = Graph([replace(value) for value in old.values], [], modules, list(old.inputs), list(old.outputs))
    after: dict[int, int] = {}
    new = replace(tape, graph=graph, calls=[], leaves=dict(tape.leaves), kept=dict(tape.kept), after=after)
    since: dict[int, int] = {}  # the op after which a value has another in its place
    shift: list[int] = []
    unsaid: dict[tuple[str, int], tuple[int, int]] = {}
    puts = [_Put(new, splice, after, unsaid) for splice in splices]
    waiting = []
    for at, splice in enumerate(splices):
        ends = _behind(old, splice)  # the codes are number -1, and come before what is written by them
        waiting += [(index, at, number) for number, index in enumerate([min(ends), *ends], -1)]
    waiting.sort()
    for index in range(-1, len(old.ops)):
        if index >= 0:
            shift.append(len(graph.ops))
            _copy(new, old.ops[index], tape.calls[index], after)
        while waiting and waiting[0][0] == index:
            _, at, number = waiting.pop(0)
            puts[at].behind = old.ops[index] if index >= 0 else None
            if number < 0:
                puts[at].encode()
            else:
                puts[at].write(number)
                since[splices[at].writes[number].value] = index

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
    return Spliced(new, tuple(splices), shift, after, [put.values for put in puts])


def _behind(graph: Graph, splice: Splice) -> list[int]:
    """For each value that a dictionary writes, the op behind which its change comes: all that is read and the value are
    there, and nobody has read the value yet; or else as soon as that can be (see `used_before`)."""
    read = max(graph.values[place.value].op for place in splice.reads)
    lasts = [max(read, graph.values[place.value].op) for place in splice.writes]
    readers = [
        [op for op in graph.users[place.value] if op > last] for place, last in zip(splice.writes, lasts, strict=True)
    ]
    return [min(found, default=len(graph.ops)) - 1 for found in readers]


def used_before(graph: Graph, splice: Splice) -> str:
    """The first site written whose value is used before all that the dictionary reads is there; "" where none is.

    A change of latents would come too late for those that use it, so they cannot be edited.
    """
    read = max(graph.values[place.value].op for place in splice.reads)
    sites = zip(splice.attachment.writes, splice.writes, strict=True)
    return next((site for site, place in sites if any(op <= read for op in graph.users[place.value])), "")


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

    def __init__(
        self, tape: Tape, splice: Splice, after: dict[int, int], unsaid: dict[tuple[str, int], tuple[int, int]]
    ) -> None:
        self.tape, self.splice, self.after, self.unsaid = tape, splice, after, unsaid
        self.encoding = splice.attachment.some if splice.lifted else splice.attachment.whole
        self.behind: Op | None = None
        self.first = splice.reads[0]
        self.lead = self.first.lead
        self.made: dict[str, dict[int, int]] = {}
        self.counts: dict[str, int] = {}
        self.codes = self.latents = -1

    @property
    def values(self) -> dict[str, tuple[int, ...]]:
        """The values of each kind of op, in the order of the places read and written."""
        return {name: tuple(found[number] for number in sorted(found)) for name, found in self.made.items()}

    def encode(self) -> None:
        """Put the codes and latents there."""
        what, first = self.splice.attachment, self.first
        count = len(what.latents) if self.splice.lifted else what.count
        self.codes = self._codes(count)
        shape = tuple(first.put(torch.empty((*self.lead, count), device="meta")).shape)
        self.latents = self._op("latents", first.put, [self.codes], shape)

    def write(self, number: int) -> None:
        """Put the change of one value there.

        Parts of one dictionary that write the same value have one error: that of the first is what the next describes.
        """
        place, first, told = self.splice.writes[number], self.first, self._told(number)
        value = self.after.get(place.value, place.value)
        part = (f"{self.splice.lifted} {self.splice.attachment.group or self.splice.key}", place.value)
        said, rest = self.unsaid.get(part, (-1, value))
        self.made.setdefault("told", {})[number] = rest
        error = self._op("error", _error(place, told), [rest, self.codes], place.flat, number=number)
        if self.splice.lifted:
            made = self._op("decode", _decoded(place, first, told), [self.latents], place.flat, number=number)
            if said >= 0:
                made = self._op("decoded", torch.add, [said, made], place.flat, number=number)
            parts, said = [made, error], made
        else:
            changed = _changed(place, first, self._told(number, False))
            parts = [value, self._op("decode", changed, [self.latents, self.codes], place.flat, number=number)]
        self.unsaid[part] = said, error
        add = torch.add if place.dtype.itemsize > 2 else _sum_as(place.dtype)
        self.after[place.value] = self._op("add", add, parts, place.flat, str(place.dtype)[6:], number)

    def _codes(self, count: int) -> int:
        """The values read, as rows, and what they are encoded to."""
        what, encoding, reads = self.splice.attachment, self.encoding, self.splice.reads
        given = [self.after.get(place.value, place.value) for place in reads]
        self.made["given"], rows = dict(enumerate(given)), given[0]
        if len(reads) > 1 or not reads[0].plain:
            width = sum(what.widths[site] for site in what.reads)
            rows = self._op("rows", _side_by_side(reads), given, (*self.lead, width))
        self.made["read"] = {0: rows}
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
        self,
        name: str,
        func: Callable[..., Tensor],
        given: list[int],
        shape: tuple[int, ...],
        dtype: str = "",
        number: int = 0,
    ) -> int:
        """Put one op there, that of this number of its kind; returns the value that it makes."""
        values, index = self.tape.graph.values, len(self.tape.graph.ops)
        kind = self.first.dtype if self.first.dtype.itemsize > 2 else torch.float32
        made = Value(len(values), "op", "", index, 0, shape, dtype or str(kind)[6:])
        values.append(made)
        module, source = (self.behind.module, self.behind.source) if self.behind is not None else (0, None)
        inputs = tuple(dict.fromkeys(given))
        self.tape.graph.ops.append(Op(index, name, number, module, inputs, (made.id,), source, self.splice.key))
        slots = list(enumerate(given))
        self.tape.calls.append(Call(func, tuple(map(Ref, given)), {}, slots, (made.id,)))
        self.made.setdefault(name, {})[number] = made.id
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
