"""Whether another seed finds the same dictionary: latents matched one to one, and the subspaces that they span.

Two dictionaries may explain the same values with other latents; then single latents do not match while the subspaces of
a few of them may.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ..errors import InputError, ResourceError
from .dictionary import Dictionary
from .figures import Figure, figure

NEAR = (2, 5)  # latents of the other dictionary whose span a latent may lie in
MATCHED = (0.7, 0.9)
MOST = 8192  # latents that are matched one to one: the assignment takes a time that grows with the third power
_APART = 7919  # added to a seed, so that the random control is no random dictionary of the caller's
_SIGNED = ("identity", "abs-topk", "omp", "lasso")  # rules whose coordinates have either sign


def stability(dictionary: Dictionary, others: Sequence[Dictionary], seed: int = 0) -> list[Figure]:
    """How well latents of other seeds' dictionaries match this one's, mean over them: cosine of decoder directions in
    the best one-to-one matching (Hungarian), shares above .7 and .9, the part of a latent that lies in the span of the
    other's nearest 2 and 5, and the overlap of the spans of the strongest directions.

    Each with the same against a random dictionary of the same shape as `chance`. Raises InputError for dictionaries of
    other widths, ResourceError when SciPy is missing.
    """
    for other in others:
        if other.out_width != dictionary.out_width:
            raise InputError(
                f"A dictionary that writes {other.out_width} numbers cannot be compared with one that writes "
                f"{dictionary.out_width}; give dictionaries of the same place."
            )
    signed = dictionary.activation in _SIGNED
    generator = torch.Generator().manual_seed(seed + _APART)
    own = dictionary.decoder.float().cpu()
    found = [_compared(own, other.decoder.float().cpu(), signed) for other in others]
    chance = [_compared(own, torch.randn(other.decoder.shape, generator=generator), signed) for other in others]
    most = f" (the first {MOST:,} latents)" if max(len(own), *(other.latents for other in others)) > MOST else ""
    how = f"decoder directions against {len(others)} other dictionaries of the same place{most}; interval: their range"
    made = []
    for name in found[0]:
        values = [one[name] for one in found]
        ends = (min(values), max(values)) if len(values) > 1 else (None, None)
        told = figure(name, (float(np.mean(values)), *ends), "higher", how)
        made.append(replace(told, controls={"random": float(np.mean([one[name] for one in chance]))}))
    return made


def _compared(own: Float[Tensor, "latents d"], other: Float[Tensor, "others d"], signed: bool) -> dict[str, float]:
    own, other = functional.normalize(own, dim=1), functional.normalize(other, dim=1)
    own, other = (table[table.norm(dim=1) > 0.5][:MOST] for table in (own, other))
    cosines = own @ other.T
    if signed:
        cosines = cosines.abs()
    matched = cosines[_matching(cosines)]
    found = {"matched cosine": float(matched.mean())}
    found |= {f"matched above {least}": float((matched > least).float().mean()) for least in MATCHED}
    for count in (count for count in NEAR if count < min(own.shape[1], len(other))):
        found[f"in the span of {count}"] = float(_inside(own, other, cosines, count).mean())
    rank = max(min(own.shape[1] // 4, len(own), len(other)), 1)
    axes = [torch.linalg.svd(table, full_matrices=False)[2][:rank] for table in (own, other)]
    found[f"overlap of {rank} directions"] = float((axes[0] @ axes[1].T).square().sum() / rank)
    return found


def _matching(cosines: Tensor) -> tuple[Tensor, Tensor]:
    """The one-to-one matching of the largest sum."""
    try:
        optimize = importlib.import_module("scipy.optimize")
    except ImportError:
        raise ResourceError(
            "Matching latents needs SciPy, which is not installed; pip install cutaway[analysis]."
        ) from None
    rows, others = optimize.linear_sum_assignment(cosines.numpy(), maximize=True)
    return torch.from_numpy(rows), torch.from_numpy(others)


def _inside(own: Tensor, other: Tensor, cosines: Tensor, count: int) -> Float[Tensor, "latents"]:
    """Length of each unit latent's projection on the span of the other dictionary's `count` nearest."""
    found = []
    for start in range(0, len(own), 1024):
        near = other[cosines[start : start + 1024].topk(count, dim=1).indices]
        basis = torch.linalg.qr(near.mT)[0]
        found.append(torch.einsum("ld,ldc->lc", own[start : start + 1024], basis).norm(dim=1))
    return torch.cat(found)
