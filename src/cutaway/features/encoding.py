"""A dictionary at its place, as a run takes it: which sites it reads and writes, and how it encodes and decodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..basis import Basis, Directions
from ..errors import InputError
from ..run.attached import splice_of
from ..run.splice import Attachment, Encoding
from ..run.trace import Trace
from ..site import Site
from .card import Place
from .codes import rule_named
from .dictionary import Dictionary
from .solvers import SOLVERS

_ALONE = frozenset(("identity", "relu", "jumprelu", "gated"))  # rules by which latents do not compete


def attachment_of(
    basis: Basis, site: str | Sequence[str] | None = None, *, name: str = "", axis: str = ""
) -> Attachment:
    """A basis at its place, with all of its latents. Raises InputError where no place is known, or none that fits."""
    reads: tuple[Place, ...] = ()
    writes: tuple[Place, ...] = ()
    if isinstance(basis, Directions):
        widths, count = [basis.vectors.shape[-1]] * 2, len(basis.vectors)
    elif isinstance(basis, Dictionary):
        reads, writes = basis.card.reads, basis.card.writes
        widths, count = [basis.width, basis.out_width], basis.latents
    else:
        raise InputError(f"A {type(basis).__name__} cannot be attached; give a Dictionary or Directions.")
    where = ((site,) if isinstance(site, str) else tuple(site)) if site is not None else None
    sizes: dict[str, int] = {}
    if where is None:
        if not reads or not writes:
            raise InputError("Nothing says where this dictionary belongs; give site=, as in 'resid.2' or 'L1.mlp_out'.")
        ends = tuple(tuple(str(Site.parse(place.site)) for place in side) for side in (reads, writes))
        sizes = {str(Site.parse(place.site)): place.width for place in (*reads, *writes)}
        axis = axis or reads[0].axis
    elif len(where) in (1, 2):
        ends = tuple((str(Site.parse(end)),) for end in (where[0], where[-1]))
        sizes = {ends[0][0]: widths[0], ends[1][0]: widths[1]}
        axis = axis or (reads[0].axis if reads else "")
    else:
        raise InputError(f"site= is one site, or two for a transcoder (read, written), and here are {len(where)}.")
    if steps := [end for side in ends for end in side if "@*" in end]:
        one = steps[0].replace("@*", "@3")
        raise InputError(
            f"'{steps[0]}' is all steps of a recurrence, and each step is attached apart: attach(dictionary, '{one}')."
        )
    whole = encoding_of(basis, None)
    label = name or ends[1][0]
    return Attachment(label, ends[0], ends[1], axis, sizes, count, tuple(range(count)), whole, whole, basis)


def parts_of(what: Attachment) -> tuple[Attachment, ...]:
    """The attachment in parts, one for each place read, where each latent reads one of several places alone (as in a
    cross-layer transcoder); else as it is.

    A part writes the places that its latents write, so a change comes behind each of those values; its latents have the
    numbers that they have in the dictionary.
    """
    basis = what.basis
    if len(what.reads) < 2 or not isinstance(basis, Dictionary) or basis.per_row or basis.activation not in _ALONE:
        return (what,)
    read, written = _touched(basis.weights["encoder"], what, what.reads), _touched(basis.decoder, what, what.writes)
    if (read.sum(1) > 1).any():
        return (what,)
    group = read.int().argmax(1)
    kept = [place for place in range(len(what.reads)) if bool((group == place).any())]
    into = {place: written[group == place].any(0).nonzero()[:, 0].tolist() or [len(what.writes) - 1] for place in kept}
    last = {write: place for place in kept for write in into[place]}  # the part that has the bias of what is written
    firsts = [what.writes[into[place][0]] for place in kept]
    named = what.name == what.writes[0] and len(set(firsts)) == len(firsts)
    found = []
    for number, place in enumerate(kept):
        own = (group == place).nonzero()[:, 0]
        biased = [write for write in into[place] if last[write] == place]
        name = firsts[number] if named else f"{what.name}.{number}"
        found.append(_part(what, name, (place, into[place], biased), own))
    return tuple(found)


def _touched(table: Tensor, what: Attachment, sites: Sequence[str]) -> Tensor:
    """[latents, sites]: whether a latent has weights that are not zero at a site."""
    parts = table.split([what.widths[site] for site in sites], 1)
    return torch.stack([part.ne(0).any(1) for part in parts], 1).cpu()


def _part(what: Attachment, name: str, ends: tuple[int, list[int], list[int]], own: Tensor) -> Attachment:
    """The latents `own` as an attachment: the place that they read, those that they write, and those of whose biases
    this part is told."""
    basis, (place, into, biased) = what.basis, ends
    spans = torch.arange(basis.width).split([what.widths[site] for site in what.reads])[place]
    sizes = [what.widths[site] for site in what.writes]
    outs = torch.arange(basis.out_width).split(sizes)
    given = basis.weights
    weights = {
        "encoder": given["encoder"][:, spans],
        "decoder": given["decoder"][:, torch.cat([outs[w] for w in into])],
    }
    weights |= {"encoder_bias": given["encoder_bias"]} if "encoder_bias" in given else {}
    weights |= {"center": given["center"][spans]} if "center" in given else {}
    if "decoder_bias" in given:
        bias = [given["decoder_bias"][outs[write]] * (write in biased) for write in into]
        weights["decoder_bias"] = torch.cat(bias)
    alone = Dictionary(basis.kind, basis.activation, weights, basis.k, basis.extra, card=basis.card)
    mask = torch.zeros(basis.latents, dtype=torch.bool).index_fill(0, own, True).to(basis.decoder.device)
    some, numbers = encoding_of(alone, own), tuple(own.tolist())
    whole = replace(encoding_of(alone, None), encode=lambda rows: alone.encode(rows) * mask, rule=None)
    writes = tuple(what.writes[write] for write in into)
    return Attachment(
        name, (what.reads[place],), writes, what.axis, what.widths, what.count, numbers, whole, some, alone,
        frozenset(numbers), what.name,
    )  # fmt: skip


@torch.no_grad()
def active_in(what: Attachment, traces: Sequence[Trace], most: int = 0) -> list[int]:
    """The latents that are not zero somewhere in some runs; of more than `most` those that move their value most: by
    how much they differ between two runs of the same shape, or else by how strong they are."""
    rows = [_rows_read(what, trace) for trace in traces]
    alike = len(rows) == 2 and rows[0].shape == rows[1].shape
    fired, moved = torch.zeros(what.count, dtype=torch.bool), torch.zeros(what.count)
    step = max(1, (1 << 24) // max(what.count, 1))
    pieces = [side.split(step) for side in rows]
    for parts in zip(*pieces, strict=True) if alike else ((part,) for side in pieces for part in side):
        codes = [what.whole.encode(part) for part in parts]
        fired |= torch.stack([(side != 0).any(0) for side in codes]).any(0).cpu()
        moved += (codes[0] - codes[1] if alike else codes[0]).abs().sum(0).float().cpu()
    chosen = fired.nonzero()[:, 0]
    if most and len(chosen) > most:
        size = moved * what.whole.decoder.float().norm(dim=1).cpu()
        chosen = chosen[size[chosen].topk(most).indices].sort().values
    return [int(place) for place in chosen]


def _rows_read(what: Attachment, trace: Trace) -> Tensor:
    places = splice_of(trace, what, trace.lift).reads
    rows = [place.rows(trace.raw(site)).flatten(0, -2) for place, site in zip(places, what.reads, strict=True)]
    return torch.cat(rows, -1)


def with_latents(what: Attachment, latents: Sequence[int]) -> Attachment:
    """The attachment with some latents told apart. Raises InputError for none, or one that does not exist."""
    chosen = tuple(sorted(set(latents)))
    if not chosen:
        raise InputError(f"No latent of '{what.name}' is told apart (none is active, perhaps); give at least one.")
    if odd := [latent for latent in chosen if not 0 <= latent < what.count]:
        raise InputError(f"'{what.name}' has {what.count:,} latents, so there is no {odd[0]}.")
    if what.own and not (chosen := tuple(latent for latent in chosen if latent in what.own)):
        return replace(what, latents=())  # a part of a dictionary none of whose latents is a node
    return replace(what, latents=chosen, some=encoding_of(what.basis, torch.tensor(chosen)))


def encoding_of(basis: Basis, chosen: Tensor | None) -> Encoding:
    """How a basis encodes and decodes, all of it or some latents alone."""
    if isinstance(basis, Directions):
        return _along(basis, chosen)
    assert isinstance(basis, Dictionary), "attachment_of refuses all else"
    decoder, weights = basis.decoder, basis.weights
    constant = basis.decode(decoder.new_zeros(basis.latents))
    picked = slice(None) if chosen is None else chosen

    def encode(rows: Tensor) -> Tensor:
        return basis.encode(rows)[..., picked]

    if basis.per_row or basis.activation in SOLVERS:
        return Encoding(encode, decoder[picked], constant)
    rule = rule_named(basis.activation)
    alone = basis.activation in _ALONE
    extra = {key: held[picked] for key, held in basis.extra.items()} if alone else basis.extra
    offset = decoder.new_zeros(basis.latents) + weights.get("encoder_bias", 0.0)
    if "center" in weights:
        offset = offset - weights["encoder"] @ weights["center"]
    matrix, competes = weights["encoder"][picked], not alone and chosen is not None

    def ruled(pre: Tensor, *rows: Tensor) -> Tensor:
        if not competes or chosen is None:
            return rule(pre, basis.k, extra)
        whole = basis.pre_activations(rows[0]).to(pre.dtype)
        return rule(whole.index_copy(-1, chosen, pre), basis.k, extra)[..., chosen]

    return Encoding(encode, decoder[picked], constant, matrix, offset[picked], ruled, competes)


def _along(basis: Directions, chosen: Tensor | None) -> Encoding:
    vectors = basis.vectors.float() if basis.vectors.dtype.itemsize <= 2 else basis.vectors
    picked = slice(None) if chosen is None else chosen
    matrix, told = vectors.pinverse().mT[picked], vectors[picked]
    return Encoding(lambda rows: rows @ matrix.to(rows).mT, told, vectors.new_zeros(vectors.shape[-1]), matrix)
