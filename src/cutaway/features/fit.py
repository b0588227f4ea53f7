"""Whether a dictionary is at its place: what its card says, held against what it does on a run.

A dictionary that is put elsewhere (another layer, before a norm instead of after it, another checkpoint, another scale)
still gives numbers. Its card knows which site of which network it was made for, and how sparse and how good it was on a
probe batch. Here the same figures are measured where it is now; figures that are clearly off are refused with both
numbers, another name or fingerprint with figures that hold is told. At its own site of its own network figures may be
off because the inputs are of another kind: that is told, and only lengths of another order are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError, SiteError
from ..run.attached import splice_of
from ..run.network import Network
from ..run.splice import Attachment
from ..run.trace import Trace
from .dictionary import Dictionary, fvu
from .encoding import attachment_of

ENOUGH = 32  # rows below which figures are told and refuse nothing
_L0, _NORM = 2.0, 1.25  # factors by which these may differ from the card's
_FAR = 3.0  # the factor by which the mean length may differ at a dictionary's own place, where inputs alone can differ
_WORSE, _MORE = 1.5, 0.1  # the FVU may be so many times the card's, and so much more


@dataclass(frozen=True)
class Fit:
    """What `check_fit` found: `verdict` is "fits", "note" (it does well where the card says something else),
    "refused" (figures are off), "few rows" or "unknown" (the card has no figures).

    `measured` and `reference`: `l0` latents a row, `fvu` (lower is better) and `norm`, the mean length of a row read;
    `rows` how many there were. `reasons` say what differs, each with both numbers.
    """

    verdict: str
    site: str
    measured: dict[str, float]
    reference: dict[str, float]
    reasons: tuple[str, ...] = ()
    network: dict[str, str] = field(default_factory=dict)

    @property
    def note(self) -> str:
        """One sentence for a reader; empty where all is as the card says."""
        if self.verdict == "fits":
            return ""
        told = ", ".join(f"{_WORDS[name]} {number:.3g}" for name, number in self.measured.items() if name in _WORDS)
        why = {"unknown": "its card has no figures to compare", "few rows": f"only {self.measured['rows']:.0f} rows"}
        return f"The dictionary at '{self.site}': {'; '.join(self.reasons) or why[self.verdict]} (measured: {told})."

    def record(self) -> dict[str, Any]:
        """As JSON-able data."""
        return {**asdict(self), "note": self.note}

    def __str__(self) -> str:
        return self.note or f"The dictionary at '{self.site}' fits."


_WORDS = {"l0": "L0", "fvu": "FVU", "norm": "mean length"}


def check_fit(
    dictionary: Dictionary, where: Trace | Network, site: str | Sequence[str] | None = None, inputs: Any = None
) -> Fit:
    """Hold a dictionary's card against a run: a trace, or a network and inputs (or those that the card holds).

    `site` is where it is put, the card's own place by default. Raises InputError for a width that does not fit or when
    there is nothing to run, SiteError for a site that is not there.
    """
    if isinstance(where, Network):
        given = inputs if inputs is not None else reference_inputs(dictionary)
        if given is None:
            raise InputError("There is nothing to measure the dictionary on; give inputs or a trace.")
        where = where.record(given)
    return fit_on(attachment_of(dictionary, site), where)


def reference_inputs(dictionary: Dictionary) -> Any:
    """The inputs of the card's probe batch, if it holds them: texts, or a tensor of token ids or numbers."""
    held = dictionary.card.reference.get("inputs")
    if held is None or (isinstance(held, list) and held and all(isinstance(item, str) for item in held)):
        return held
    return held if isinstance(held, Tensor) else torch.tensor(held)


@torch.no_grad()
def fit_on(what: Attachment, trace: Trace) -> Fit:
    """The fit of an attached dictionary on a run."""
    dictionary: Dictionary = what.basis
    reads, writes = (_rows(what, trace, side) for side in ("reads", "writes"))
    measured = measure(dictionary, reads, writes)
    card, net = dictionary.card, trace.net
    reference = {name: float(card.reference[name]) for name in _WORDS if name in card.reference}
    off = figures_off(measured, reference)
    places = [(place, site) for place, site in zip(card.reads + card.writes, what.reads + what.writes, strict=False)]
    moved = [
        f"it was made for '{place.site}' and is attached at '{site}'"
        for place, site in dict.fromkeys(places)
        if place.site != site and trace.locate(site).address not in _addresses(trace, place.site)
    ]
    made_for = {place.network for place in (*card.reads, *card.writes) if place.network}
    if made_for and made_for != {net.fingerprint}:
        moved.append(f"it was made for the network {', '.join(sorted(made_for))} and this is {net.fingerprint}")
    if not moved and made_for:  # its own site of its own network, so nothing can be off but inputs or the scale
        far = off and "norm" in reference and not 1 / _FAR <= measured["norm"] / (reference["norm"] or 1.0) <= _FAR
        why = "the place is its own, so the inputs differ from the probe's or the dictionary was changed"
        moved = [why] if off and not far else []
        off, moved = (off, []) if far else ([], [*off, *moved])
    if off and measured["rows"] < ENOUGH:
        verdict = "few rows"
    elif off:
        verdict = "refused"
    elif not reference:
        verdict = "unknown"
    else:
        verdict = "note" if moved else "fits"
    names = {"made for": ", ".join(sorted(made_for)), "this": net.fingerprint}
    return Fit(verdict, what.name, measured, reference, (*off, *moved), names)


def measure(
    dictionary: Dictionary, reads: Float[Tensor, "rows d_in"], writes: Float[Tensor, "rows d_out"]
) -> dict[str, float]:
    """The figures of a card on some rows: `l0`, `fvu`, `norm` (mean length of a row read) and `rows`."""
    parts, fired = [], 0
    for codes, made in dictionary.reconstructions(reads):
        fired += len(codes.latents)
        parts.append(made)
    rows = len(reads)
    norm = float(reads.double().norm(dim=-1).mean())
    return {"l0": fired / rows, "fvu": fvu(writes, torch.cat(parts)), "norm": norm, "rows": float(rows)}


def figures_off(measured: dict[str, float], reference: dict[str, float]) -> list[str]:
    """What is clearly not as the card says, each with both numbers."""
    found = []
    for name, most in (("norm", _NORM), ("l0", _L0)):
        if name not in reference or not reference[name]:
            continue
        ratio = measured[name] / reference[name]
        if not 1 / most <= ratio <= most:
            found.append(f"{_WORDS[name]} is {measured[name]:.3g} here and {reference[name]:.3g} by its card")
    if "fvu" in reference and not measured["fvu"] <= reference["fvu"] * _WORSE + _MORE:
        found.append(f"FVU is {measured['fvu']:.3g} here and {reference['fvu']:.3g} by its card (lower is better)")
    return found


def refuse(fit: Fit) -> None:
    """Raises InputError for a fit with figures that are off."""
    if fit.verdict == "refused":
        raise InputError(
            f"The dictionary does not belong at '{fit.site}': {'; '.join(fit.reasons)}. "
            "Attach it where it was made, or give force=True to do it anyway."
        )


def _rows(what: Attachment, trace: Trace, side: str) -> Tensor:
    splice = splice_of(trace, what, trace.lift)
    places, sites = (splice.reads, what.reads) if side == "reads" else (splice.writes, what.writes)
    found = [place.rows(trace.raw(site)).flatten(0, -2) for place, site in zip(places, sites, strict=True)]
    return torch.cat(found, -1)


def _addresses(trace: Trace, site: str) -> set[str]:
    """The address of a site, by another name perhaps; none where the run has no such site."""
    try:
        return {trace.locate(site).address}
    except SiteError:
        return set()
