"""Kinds of dictionaries that can be trained: a rule for which latents fire, and where they read and write.

The two are independent: `kind="crosscoder", rule="relu"` is a crosscoder with an L1 penalty. Kinds are rows of a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError, nearest
from .card import Place

ROUTES = ("same", "other", "later", "several")


@dataclass(frozen=True)
class Kind:
    """One kind. `rule` names its objective (see objectives), `route` says where it reads and writes:

    "same": it writes what it reads; "other": it reads one set of places and writes another; "several": it writes what
    it reads, several places at once; "later": a group of latents for each place read, which writes its own place and
    those after it. `skip`: a linear path from what is read to what is written stands beside the latents.
    """

    rule: str
    route: str
    paper: str
    skip: bool = False


KINDS: dict[str, Kind] = {
    "relu": Kind("relu", "same", "Bricken et al. 2023; Anthropic, April 2024 update (penalty by decoder norm)"),
    "gated": Kind("gated", "same", "Rajamanoharan et al. 2024 (arXiv:2404.16014)"),
    "topk": Kind("topk", "same", "Gao et al. 2024 (arXiv:2406.04093)"),
    "batchtopk": Kind("batchtopk", "same", "Bussmann et al. 2024 (arXiv:2412.06410)"),
    "jumprelu": Kind("jumprelu", "same", "Rajamanoharan et al. 2024 (arXiv:2407.14435)"),
    "matryoshka": Kind("matryoshka", "same", "Bussmann et al. 2025 (arXiv:2503.17547)"),
    "transcoder": Kind("batchtopk", "other", "Dunefsky et al. 2024 (arXiv:2406.11944)"),
    "skip-transcoder": Kind("batchtopk", "other", "Paulo et al. 2025 (arXiv:2501.18823)", skip=True),
    "cross-layer-transcoder": Kind("batchtopk", "later", "Ameisen et al. 2025 (Circuit Tracing)"),
    "crosscoder": Kind("batchtopk", "several", "Lindsey et al. 2024 (Sparse Crosscoders)"),
}


def kind_named(name: str) -> Kind:
    """A kind by name. Raises InputError for one that does not exist."""
    if name not in KINDS:
        raise InputError(f"There is no kind '{name}' to train; the nearest are {nearest(name, KINDS)}.")
    return KINDS[name]


def placed(
    name: str, there: Sequence[Place], reads: Sequence[str] | None, writes: Sequence[str] | None
) -> tuple[tuple[Place, ...], tuple[Place, ...]]:
    """The places that a dictionary of a kind reads and writes, out of those that there are values of.

    Raises InputError where a place is missing, or the kind cannot have these.
    """
    route, sites = kind_named(name).route, [place.site for place in there]
    if reads is None and (len(sites) == 1 or route == "several"):
        reads = sites
    if reads is None or (writes is None and route in ("other", "later")):
        needs = "reads" if route in ("same", "several") else "reads and writes"
        raise InputError(f"These are rows of {', '.join(sites)}; say which of them a {name} dictionary {needs}.")
    writes = reads if writes is None else writes
    for site in (*reads, *writes):
        if site not in sites:
            raise InputError(f"There are no rows of '{site}'; there are those of {', '.join(sites)}.")
    if not reads or not writes:
        raise InputError("A dictionary reads and writes at least one place; reads or writes is empty.")
    if route in ("same", "several") and tuple(reads) != tuple(writes):
        raise InputError(f"A {name} dictionary writes what it reads; for other places train kind='transcoder'.")
    if route == "several" and len(reads) < 2:
        raise InputError(f"A crosscoder reads several places, and there is only '{reads[0]}'.")
    if route == "later" and len(reads) != len(writes):
        raise InputError(
            f"A cross-layer transcoder has a place to write for each that it reads: {len(reads)} are read and "
            f"{len(writes)} written."
        )
    found = {place.site: place for place in there}
    return tuple(found[site] for site in reads), tuple(found[site] for site in writes)


def spans(places: Sequence[Place]) -> tuple[tuple[int, int], ...]:
    """Where the numbers of each place begin and end in the concatenation."""
    ends = [sum(place.width for place in places[:number]) for number in range(len(places) + 1)]
    return tuple(zip(ends[:-1], ends[1:], strict=True))


def masks(
    latents: int, reads: Sequence[Place], writes: Sequence[Place]
) -> tuple[Float[Tensor, "latents d_in"], Float[Tensor, "latents d_out"]]:
    """Of a cross-layer transcoder: ones where a weight may be, in the encoder and in the decoder."""
    group = torch.arange(latents) * len(reads) // latents
    read = torch.repeat_interleave(torch.arange(len(reads)), torch.tensor([place.width for place in reads]))
    write = torch.repeat_interleave(torch.arange(len(writes)), torch.tensor([place.width for place in writes]))
    return (group[:, None] == read).float(), (group[:, None] <= write).float()


def sizes(decoder: Float[Tensor, "latents d_out"], parts: Sequence[tuple[int, int]]) -> Float[Tensor, "latents"]:
    """The size of each latent's direction: its lengths at the places that it writes, added up (Lindsey et al. 2024)."""
    return torch.stack([decoder[:, start:end].norm(dim=1) for start, end in parts]).sum(0)
