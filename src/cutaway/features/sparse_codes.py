"""Sparse codes of many rows by the search that training uses (see top), for rules whose latents are few or stand alone.

The full table of pre-activations is never made, and codes are those of the dense rule up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from .codes import Codes, rule_named
from .top import best_codes, better_precision, codes_above, fast_precision, room_for

_ROWS = 4096  # rows whose codes are found at once
_FEW, _LATENTS = 64, 512  # fewer rows or latents than these are not worth a search
_DENSE = 0.05  # latents that fire, of all, from which the full table is no slower

# What a pre-activation must exceed for a coordinate other than zero, where each latent stands alone.
_LEAST: dict[str, Callable[[Tensor, Mapping[str, Tensor]], Tensor]] = {
    "relu": lambda bias, extra: torch.zeros_like(bias),
    "jumprelu": lambda bias, extra: extra["threshold"].clamp(min=0),
    "gated": lambda bias, extra: torch.zeros_like(bias),
}


def searched(
    rows: Float[Tensor, "rows d"],
    encoder: Float[Tensor, "latents d"],
    bias: Float[Tensor, "latents"],
    activation: str,
    k: int,
    extra: Mapping[str, Tensor],
) -> Codes | None:
    """Codes of rows by a rule (see codes); None where the search does not serve: another rule, little to do, another
    precision, a gradient that is asked for, or codes that are not sparse.

    Raises InputError for a row that is not finite.
    """
    known = activation == "topk" or activation in _LEAST
    asked = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (rows, encoder, bias))
    if not known or asked or {rows.dtype, encoder.dtype, bias.dtype} != {torch.float32}:
        return None
    if len(rows) < _FEW or len(encoder) < _LATENTS:
        return None
    pieces, room, precision = [], room_for(encoder), fast_precision(str(rows.device))
    if activation == "topk":
        for part in rows.split(_ROWS):
            best = best_codes(part, encoder, bias, k, precision=precision, room=room)
            precision = better_precision(precision, best.redone)
            pieces.append(best.codes)
        return Codes.joined(pieces)
    least = _LEAST[activation](bias, extra)
    some = rows[:: max(len(rows) // _FEW, 1)]
    if float((torch.addmm(bias, some, encoder.T) > least).float().mean()) > _DENSE:
        return None
    for part in rows.split(_ROWS):
        found = codes_above(part, encoder, bias, least, precision=precision, room=room)
        here = {name: tensor.index_select(0, found.latents) for name, tensor in extra.items()}
        pieces.append(_without_zeros(found, rule_named(activation)(found.values, k, here)))
    return Codes.joined(pieces)


def _without_zeros(found: Codes, values: Float[Tensor, "entries"]) -> Codes:
    """The codes with other values, those that are zero left out."""
    kept = values.nonzero()[:, 0]
    if len(kept) == len(values):
        return Codes(found.offsets, found.latents, values, found.count)
    through = torch.zeros(len(values) + 1, dtype=torch.long, device=values.device)
    through[1:] = (values != 0).cumsum(0)
    return Codes(through[found.offsets], found.latents[kept], values[kept], found.count)
