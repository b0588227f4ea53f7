"""Feature absorption and splitting (Chanin et al. 2024, arXiv:2409.14507), for any labelled concept.

A concept's latents are absorbed where they stay silent although the concept is there, and a more special latent stands
in for them: "starts with s" does not fire on "short", because the latent of "short" carries that direction too. A
concept is split where several latents share it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from .codes import Codes
from .figures import Figure, figure
from .probing import Concepts, Probe, columns, f1, probes_of, ranked, scored
from .uncertainty import share

# The published criteria (and those of SAEBench, arXiv:2503.09532, for the fraction).
SPLIT = 0.03  # another latent belongs to the concept if it raises F1 by more
MOST_SPLIT = 10
ALIGNED, PARTLY_ALIGNED = 0.025, 0.1  # cosine of an absorbing latent with the probe, for whole and partial absorption
STANDS_IN = 0.4  # share of the row's projection on the probe that absorbing latents make
ABSORBERS = 3  # latents that may absorb together


@dataclass(frozen=True)
class Absorbed:
    """One concept: its latents, on how many of the rows where a probe finds it they are absorbed, and by which."""

    main: list[int]
    rows: int
    whole: int
    fraction: float
    absorbers: dict[int, int]


def absorption(
    codes: Codes,
    decoder: Float[Tensor, "latents d"],
    value: Float[Tensor, "rows d"],
    concepts: Concepts,
    probes: Mapping[str, Probe] | None = None,
) -> list[Figure]:
    """Absorption rate (rows with none of the concept's latents, where another stands in, of the rows where a probe on
    the values rightly finds the concept), mean absorbed fraction, and latents that a concept is split into.

    Rates are of held-out rows; projections on the probe are counted from the mean of rows without the concept. `probes`
    are those on the values, by concept, where they are at hand (see `probes_of`).
    """
    probes = probes or probes_of(value, concepts)
    found = {
        name: _absorbed(codes, decoder, value, label, concepts.fit, probes[name])
        for name, label in concepts.labels.items()
    }
    whole, rows = sum(one.whole for one in found.values()), sum(one.rows for one in found.values())
    split = np.array([len(one.main) for one in found.values()], dtype=float)
    weighted = sum(one.fraction * one.rows for one in found.values()) / max(rows, 1)
    details: dict[str, Any] = {
        name: {
            "latents": one.main, "rate": one.whole / one.rows if one.rows else None, "rows": one.rows,
            "absorbed_by": dict(sorted(one.absorbers.items(), key=lambda item: -item[1])[:10]),
        } for name, one in found.items()
    }  # fmt: skip
    on = f"{rows:,} held-out rows of {len(found)} concepts on which a probe rightly finds them"
    return [
        figure("absorption rate", share(whole, rows), "lower",
               f"the concept's latents are silent and another makes {STANDS_IN:.0%} of its projection; {on}",
               concepts=details),
        figure("absorbed fraction", (weighted if rows else float("nan"), None, None), "lower",
               f"share of the projection that up to {ABSORBERS} others make, where they make {STANDS_IN:.0%}; {on}"),
        figure("latents per concept", (float(split.mean()), None, None), "nearer to 1",
               f"k-sparse probes' latents as long as each raises F1 by more than {SPLIT}; {len(found)} concepts"),
    ]  # fmt: skip


def main_latents(codes: Codes, label: Bool[Tensor, "rows"], fit: Bool[Tensor, "rows"]) -> list[int]:
    """The latents of a concept: the best by difference of means, and further ones as long as each helps."""
    order = ranked(codes, label, fit)[:MOST_SPLIT]
    there = label[~fit].numpy()
    table, kept, best = columns(codes, order), 1, 0.0
    for k in range(1, len(order) + 1):
        found = float(f1(scored(table[:, :k], label, fit) > 0, there))
        if k > 1 and found <= best + SPLIT:
            break
        kept, best = k, found
    return [int(latent) for latent in order[:kept]]


def _absorbed(codes: Codes, decoder: Tensor, value: Tensor, label: Tensor, fit: Tensor, given: Probe) -> Absorbed:
    main = main_latents(codes, label, fit)
    weights, bias = given
    probe = functional.normalize(torch.tensor(weights).float(), dim=0)
    right = ~fit & label & (value.double() @ torch.tensor(weights) + bias > 0)
    total = (value.float() - value[fit & ~label].float().mean(0)) @ probe
    right &= total > 0
    along = decoder.float() @ probe  # what a coordinate of one adds to the projection
    cosine = along / decoder.float().norm(dim=1).clamp(min=1e-12)
    whole, fractions, absorbers = 0, 0.0, dict[int, int]()
    for row in right.nonzero()[:, 0].tolist():
        part = slice(int(codes.offsets[row]), int(codes.offsets[row + 1]))
        latents, made = codes.latents[part], codes.values[part].float() * along[codes.latents[part]]
        own = torch.isin(latents, torch.tensor(main))
        others, gains = latents[~own], made[~own]
        if not bool(own.any()) and len(gains):
            top = int(gains.argmax())
            if float(gains[top]) >= STANDS_IN * float(total[row]) and float(cosine[others[top]]) >= ALIGNED:
                whole += 1
                absorbers[int(others[top])] = absorbers.get(int(others[top]), 0) + 1
        fractions += _fraction(float(made[own].sum()), gains[cosine[others] >= PARTLY_ALIGNED], float(total[row]))
    rows = int(right.sum())
    return Absorbed(main, rows, whole, fractions / max(rows, 1), absorbers)


def _fraction(own: float, others: Tensor, total: float) -> float:
    """Of the projection that a concept's latents and the strongest absorbing ones make, the latter's share."""
    best = float(others.clamp(min=0).topk(min(ABSORBERS, len(others))).values.sum())
    if own >= total or best < STANDS_IN * total:
        return 0.0
    if own <= 0:
        return 1.0
    absorbed = min(best, total - own)
    return absorbed / (absorbed + own)
