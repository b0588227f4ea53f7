"""The local replacement model: one run of a network in which dictionaries stand for what they were made for.

Latents' activations, what reconstructions miss ("errors"), patterns of attention, scales of norms, gates outside
dictionaries and components, and derivatives of what bends behind the last linear map are held at this run's values.
What is left is affine: from what is written (latents, errors, embeddings, and blocks that no dictionary stands for) to
what latents read. At the run's own values it gives exactly what the run had. Ameisen et al. 2025, "Circuit Tracing";
Dunefsky, Chlenski, Nanda 2024 (arXiv:2406.11944).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import InputError
from ..features import Codes, Dictionary, Place
from ..features.products import offsets_of
from ..lift import Block, Lifted
from ..lift.frozen import Frozen, reader
from ..run.tape import Tape
from ..run.trace import Trace
from .freezing import Skip, frozen_wiring, held_patterns, last_bends, moved, opened, with_skips, with_slopes


@dataclass(frozen=True, eq=False)
class Spot:
    """A value of the run as rows: `axis` is the one that its vectors lie along, `order` the op that makes it.
    `scale` [rows, 1] and `centred` where what is read is the value divided by a norm's scale, which has no value of its
    own in a norm of one call."""

    name: str
    value: int
    axis: int
    shape: tuple[int, ...]
    order: int = -1
    scale: Tensor | None = None
    centred: bool = False

    @property
    def width(self) -> int:
        """How many numbers a row has."""
        return self.shape[self.axis]

    @property
    def count(self) -> int:
        """How many rows there are."""
        return torch.Size(self.shape).numel() // max(self.width, 1)

    def rows(self, value: Tensor) -> Float[Tensor, "*lead rows width"]:
        """The rows of values [..., *shape]."""
        moved = value.movedim(self.axis - len(self.shape), -1)
        return moved.reshape(*value.shape[: value.ndim - len(self.shape)], -1, self.width)

    def read(self, value: Tensor) -> Float[Tensor, "*lead rows width"]:
        """What a dictionary reads of it, as rows."""
        return self.rows(value) if self.scale is None else self._centre(self.rows(value)) / self.scale

    def pull(self, at: Tensor, vectors: Float[Tensor, "count width"]) -> Float[Tensor, "count width"]:
        """Readers of what is read at some rows, as readers of the value's own rows."""
        return vectors if self.scale is None else self._centre(vectors / self.scale[at])

    def spread(self, at: Tensor, vectors: Float[Tensor, "count width"]) -> Float[Tensor, "count *shape"]:
        """Values that are zero but for one row each."""
        table = vectors.new_zeros(len(at), self.count, self.width)
        table[torch.arange(len(at)), at] = vectors
        return self.back(table)

    def back(self, rows: Float[Tensor, "*lead rows width"]) -> Tensor:
        """Values [..., *shape] of rows."""
        grid = self.shape[: self.axis] + self.shape[self.axis + 1 :]
        return rows.reshape(*rows.shape[:-2], *grid, self.width).movedim(-1, self.axis - len(self.shape))

    def _centre(self, rows: Tensor) -> Tensor:
        return rows - rows.mean(-1, keepdim=True) if self.centred else rows


@dataclass(frozen=True, eq=False)
class Stand:
    """A dictionary in the run: what it reads and writes, and the latents that fire, by row."""

    dictionary: Dictionary
    reads: tuple[Spot, ...]
    writes: tuple[Spot, ...]
    codes: Codes
    spread: Tensor | None  # of each row, where rows are normalised one by one
    answers: Float[Tensor, " entries"]  # the share of itself by which a latent changes when it reads one unit more

    def readers(self, at: Tensor, place: int) -> Float[Tensor, "count width"]:
        """What entries of the codes read of a place: their pre-activation is the sum of these products and `offsets`,
        each with a row."""
        encoder = self.dictionary.weights["encoder"][self.codes.latents[at]]
        if self.spread is not None:
            encoder = self._centred(encoder, -1) / self.spread[self.codes.rows[at]]
        spot = self.reads[place]
        return spot.pull(self.codes.rows[at], encoder[:, _part(self.reads, place)].to(torch.float32))

    def offsets(self, at: Tensor) -> Float[Tensor, " count"]:
        """What the pre-activations of entries hold besides."""
        weights, latents = self.dictionary.weights, self.codes.latents[at]
        found = -(weights["encoder"][latents] @ weights["center"]) if "center" in weights else torch.zeros(len(at))
        return found + weights["encoder_bias"][latents] if "encoder_bias" in weights else found

    def writers(self, at: Tensor, place: int) -> Float[Tensor, "count width"]:
        """What entries of the codes write to a place."""
        decoder = self.dictionary.decoder[self.codes.latents[at]][:, _part(self.writes, place)]
        return decoder.to(torch.float32) * self.codes.values[at, None]

    def skips(self) -> list[Skip]:
        """The linear paths from places that are read to those that are written."""
        whole = self.dictionary.weights.get("skip")
        whole = whole if whole is None else self._centred(whole, 0)
        spread: Any = 1.0 if self.spread is None else self.spread
        found: list[Skip] = []
        for come, source in enumerate(self.reads if whole is not None else ()):
            for go, target in enumerate(self.writes):
                assert whole is not None
                matrix = whole[_part(self.reads, come)][:, _part(self.writes, go)]

                def path(value: Tensor, source: Spot = source, target: Spot = target, by: Tensor = matrix) -> Tensor:
                    return target.back(source.read(value) / spread @ by)

                found.append((source.value, target.value, path))
        return found

    def _centred(self, vectors: Tensor, axis: int) -> Tensor:
        """Readers of normalised rows, as readers of rows less their mean."""
        return vectors - vectors.mean(axis, keepdim=True) if self.dictionary.per_row == "standard" else vectors


def _part(spots: Sequence[Spot], place: int) -> slice:
    start = sum(spot.width for spot in spots[:place])
    return slice(start, start + spots[place].width)


@dataclass(frozen=True, eq=False)
class Attention:
    """An attention in the run: the value whose positions it mixes, what it makes of them, and its pattern."""

    read: int
    made: int
    pattern: Tensor


@dataclass(frozen=True, eq=False)
class Replacement:
    """The local replacement model of a run.

    `written` are the values that dictionaries write, in order: `errors` is what reconstructions miss of them, as rows
    by value, `constants` what reconstructions hold without any latent, as values. `parts` are blocks that no dictionary
    stands for, `sources` embeddings and inputs; `held` all their values in the run, and those that are read.
    """

    trace: Trace
    tape: Tape
    stands: tuple[Stand, ...]
    written: tuple[Spot, ...]
    errors: dict[int, Float[Tensor, "rows width"]]
    constants: dict[int, Tensor]
    parts: tuple[Spot, ...]
    sources: tuple[Spot, ...]
    output: Spot
    frozen: Frozen
    held: dict[int, Tensor]
    attentions: tuple[Attention, ...]

    @property
    def columns(self) -> int:
        """How many nodes write."""
        spots = (*self.written, *self.parts, *self.sources)
        return sum(len(stand.codes.latents) for stand in self.stands) + sum(spot.count for spot in spots)

    @property
    def stops(self) -> dict[int, Spot]:
        """Everything that writes, by value."""
        return {spot.value: spot for spot in (*self.written, *self.parts, *self.sources)}

    def run(self, wanted: Iterable[int], given: dict[int, Tensor]) -> dict[int, Tensor]:
        """Values from what is written. One that dictionaries read and write is what it is before it is written."""
        stops, over = set(self.stops), {spot.value for spot in self.written}
        made: dict[int, Tensor] = {}
        plain = {value for value in wanted if value not in over}
        for some in (plain, *({value} for value in wanted if value in over and ~value not in stops)):
            made |= self.frozen.run(self.frozen.plan(some, stops - (some & over)), given)
        return made | {value: given[~value] for value in wanted if ~value in stops}


def replacement(trace: Trace, dictionaries: Sequence[Dictionary]) -> Replacement:
    """Put dictionaries in their places in a run of one example.

    Raises InputError for several examples, a run with interventions, and dictionaries that do not fit the run.
    """
    if trace.interventions:
        raise InputError("A graph is made of a recording, and a run with interventions is none; record it anew.")
    if not dictionaries:
        raise InputError("There are no dictionaries; give transcoders or autoencoders whose cards name their places.")
    lifted: Lifted = trace.lift()
    if lifted.flow.batch != 1:
        raise InputError(f"A graph is that of one example, and this run has {lifted.flow.batch}; record one of them.")
    tape, patterns = opened(trace, lifted)
    flow = held_patterns(tape, lifted, set(patterns.values()))
    read = reader(flow)
    spots_of = [places(trace, tape, dictionary) for dictionary in dictionaries]
    written = {spot.value: spot for _, writes in spots_of for spot in writes}
    reads = {spot.value for found, _ in spots_of for spot in found}
    with torch.no_grad():
        values = read(sorted({*reads, *written}))
        if odd := [value for value in values.values() if value.dtype != torch.float32]:
            raise InputError(
                f"The network computes in {odd[0].dtype}, and graphs are made in single precision; open it so."
            )
        stands = tuple(_stand(*row, values) for row in zip(dictionaries, spots_of, strict=True))
    errors, constants = _remainders(stands, written, values)
    flow, entries = with_skips(flow, [skip for stand in stands for skip in stand.skips()])
    ending = _spot(trace, tape, Place("logits", 0))
    last = last_bends(flow, ending.value, written)
    flow = with_slopes(flow, last, read)
    parts = [
        block for block in lifted.blocks if block.write >= 0 and id(block) not in patterns and block.kind != "norm"
    ]
    begin = [*lifted.sources, *lifted.constants]
    named = {moved(trace, tape, lifted, block.write): block for block in (*begin, *parts)}
    straight = {value for op in last for value in op.outputs}
    named = {value: block for value, block in named.items() if value not in {*written, *straight}}
    stops = {*named, *(entries.get(value, value) for value in written)}
    again = reads & set(written) - set(entries)
    frozen, bends = frozen_wiring(flow, stops, {*reads, ending.value}, again, read)
    spots = {value: _of_block(tape, block, value) for value, block in named.items()}
    spots |= {value: _plain(tape, tape.graph.site(value), value) for value in bends if value not in again}
    # What is read and written at one place and cannot be held is a component of its own, read before it is written.
    spots |= {~value: _plain(tape, f"{written[value].name} before", value) for value in bends if value in again}
    used = {~value for value in bends}
    for wanted in ({*reads, ending.value} - again, *({value} for value in again - set(bends))):
        used |= set(frozen.plan(wanted, {*stops, *bends} - (wanted & again)).stored)
    first = {moved(trace, tape, lifted, block.write) for block in begin}
    with torch.no_grad():
        held = read(sorted({ending.value, *(max(value, ~value) for value in spots if value in used)}))
    held = {**values, **held}
    held |= {value: held[~value] for value in spots if value < 0}
    order = sorted(written.values(), key=lambda spot: spot.order)
    left, still = ({entries.get(value, value): rows for value, rows in table.items()} for table in (errors, constants))
    return Replacement(
        trace, tape, tuple(replace(stand, writes=_entered(stand.writes, entries)) for stand in stands),
        _entered(order, entries), left, still,
        tuple(replace(spot, value=value) for value, spot in spots.items() if value in used - first),
        tuple(spot for value, spot in spots.items() if value in used & first), ending, frozen, held,
        _attentions(trace, tape, lifted, patterns, frozen),
    )  # fmt: skip


def _attentions(
    trace: Trace, tape: Tape, lifted: Lifted, patterns: dict[int, int], frozen: Frozen
) -> tuple[Attention, ...]:
    found = []
    for block in lifted.blocks:
        read = next((read.value for read in block.reads if read.port == "v"), None)
        if id(block) in patterns and read is not None:
            before, after = (moved(trace, tape, lifted, value) for value in (read, block.write))
            found.append(Attention(before, after, frozen.values[patterns[id(block)]]))
    return tuple(found)


def _entered(spots: Iterable[Spot], entries: dict[int, int]) -> tuple[Spot, ...]:
    return tuple(replace(spot, value=entries.get(spot.value, spot.value)) for spot in spots)


def places(trace: Trace, tape: Tape, dictionary: Dictionary) -> tuple[tuple[Spot, ...], tuple[Spot, ...]]:
    """What a dictionary reads and writes in a run. Raises InputError where it does not fit."""
    card, told = dictionary.card, repr(dictionary)
    if not card.reads or not card.writes:
        raise InputError(f"{told} does not say what it reads and writes; give it a card with `reads` and `writes`.")
    reads = tuple(_spot(trace, tape, place) for place in card.reads)
    writes = tuple(_spot(trace, tape, place) for place in card.writes)
    for verb, spots, width in (("reads", reads, dictionary.width), ("writes", writes, dictionary.out_width)):
        if sum(spot.width for spot in spots) != width:
            there = " + ".join(f"{spot.name} ({spot.width})" for spot in spots)
            raise InputError(f"{told} {verb} {width} numbers a row, and there are {there} in this network.")
    if len(counts := {spot.count for spot in (*reads, *writes)}) > 1:
        raise InputError(f"{told} joins values with different numbers of rows ({sorted(counts)}) in this run.")
    if any(spot.scale is not None for spot in writes):
        raise InputError(f"{told} writes what a norm makes inside one call, which cannot be replaced there.")
    return reads, writes


def _spot(trace: Trace, tape: Tape, place: Place) -> Spot:
    """A place in a run."""
    found = trace.locate(place.site)
    scale, centred, address = None, False, found.address
    if address.startswith("derived:"):
        name = place.site.removesuffix(".normalized")
        if name == place.site:
            raise InputError(f"'{place.site}' is derived from the run and cannot be a dictionary's place.")
        address = address.partition("<")[2]
        scale = trace.value(f"{name}.scale").flatten()[:, None]
        source, made = trace.value(address).flatten(0, -2), trace.value(place.site).flatten(0, -2)
        plain = source / scale
        centred = bool((made - plain + plain.mean(-1, keepdim=True)).norm() < (made - plain).norm())
    value, _ = trace._find(tape, address)
    shape, axes = tuple(tape.graph.values[value].shape), found.axes
    if place.axis and place.axis not in axes:
        raise InputError(f"'{place.site}' has no axis '{place.axis}'; it has {', '.join(axes)}.")
    wanted = place.axis or ("channel" if "channel" in axes and len(shape) == 4 else "")
    axis = axes.index(wanted) - bool(found.fold) if wanted else len(shape) - 1
    return Spot(place.site, value, axis, shape, tape.graph.values[value].op, scale, centred)


def _of_block(tape: Tape, block: Block, value: int) -> Spot:
    """The write of a block, with vectors along its channels or the last axis."""
    axis, shape = _last(tape, value)
    axis = block.slots.axis if block.mark == "c" else 1 if len(shape) == 4 and block.kind == "input" else axis
    return Spot(
        f"{block.name}@{block.step}" if block.step else block.name, value, axis, shape, tape.graph.values[value].op
    )


def _plain(tape: Tape, name: str, value: int) -> Spot:
    return Spot(name, value, *_last(tape, value), tape.graph.values[value].op)


def _last(tape: Tape, value: int) -> tuple[int, tuple[int, ...]]:
    shape = tuple(tape.graph.values[value].shape)
    return max(len(shape) - 1, 0), shape


def _stand(dictionary: Dictionary, ends: tuple[tuple[Spot, ...], tuple[Spot, ...]], values: dict[int, Tensor]) -> Stand:
    reads, writes = ends
    rows = torch.cat([spot.read(values[spot.value]) for spot in reads], -1)
    spread = dictionary._spread(rows.to(dictionary.decoder.dtype))[1] if dictionary.per_row else None
    stand = Stand(dictionary, reads, writes, dictionary.codes(rows), spread, torch.zeros(0))
    every = torch.arange(len(stand.codes.latents))
    read = stand.offsets(every)
    for place, spot in enumerate(stand.reads):
        read = read + (spot.rows(values[spot.value])[stand.codes.rows] * stand.readers(every, place)).sum(-1)
    return replace(stand, answers=_answers(dictionary, stand.codes, read))


def _answers(dictionary: Dictionary, codes: Codes, read: Tensor) -> Tensor:
    """Rules hand on what is read, scaled; but for gates, which shift it, and choices, which do not answer."""
    if dictionary.activation == "onehot":
        return torch.zeros_like(read)
    if dictionary.activation == "gated":
        return dictionary.extra["scale"][codes.latents] / codes.values
    return torch.where(read == 0, 0.0, 1 / torch.where(read == 0, 1.0, read))


def kept(model: Replacement, which: Sequence[Bool[Tensor, " entries"]]) -> Replacement:
    """The model with some of the latents that fire; what the others write counts to the errors."""
    errors = {value: rows.clone() for value, rows in model.errors.items()}
    stands = []
    for stand, keep in zip(model.stands, which, strict=True):
        gone, codes = (~keep).nonzero()[:, 0], stand.codes
        for place, spot in enumerate(stand.writes):
            errors[spot.value].index_add_(0, codes.rows[gone], stand.writers(gone, place))
        offsets = offsets_of(codes.rows[keep], len(codes))
        left = Codes(offsets, codes.latents[keep], codes.values[keep], codes.count)
        stands.append(replace(stand, codes=left, answers=stand.answers[keep]))
    return replace(model, stands=tuple(stands), errors=errors)


def _remainders(
    stands: Sequence[Stand], written: dict[int, Spot], values: dict[int, Tensor]
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """What reconstructions miss of each value that is written, as rows, and what they hold without latents."""
    errors = {value: spot.rows(values[value]).clone() for value, spot in written.items()}
    constants = {value: torch.zeros_like(values[value]) for value in written}
    for stand in stands:
        rows = torch.cat([spot.read(values[spot.value]) for spot in stand.reads], -1)
        none = stand.dictionary.decode(rows.new_zeros(len(rows), stand.dictionary.latents)[:1])
        still = (none + stand.dictionary.rest(rows)).to(rows)
        made = stand.codes.decode(stand.dictionary.decoder).to(rows)
        for place, spot in enumerate(stand.writes):
            part = _part(stand.writes, place)
            errors[spot.value] -= made[:, part] + still[:, part]
            constants[spot.value] += spot.back(still[:, part])
        for source, target, path in stand.skips():
            constants[target] -= path(values[source])
    return errors, constants
