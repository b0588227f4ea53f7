"""Encoders that solve a problem for each row, where a rule applied to pre-activations is not enough.

A solver is given the rows' products with the atoms, `pre` = (value − center) · decoderᵀ (so encoder and decoder are the
same table), the atoms, and `k`; it returns the coordinates. Rows are solved together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from .codes import PIECE
from .pursuit import pursue

Solver = Callable[[Tensor, Tensor, int, Mapping[str, Tensor]], Tensor]
_SWEEPS, _CLOSE = 1000, 1e-6  # coordinate descent ends when no coordinate moves by more than this share of the largest


def omp(
    pre: Float[Tensor, "*rows latents"], atoms: Float[Tensor, "latents d"], k: int, extra: Mapping[str, Tensor]
) -> Float[Tensor, "*rows latents"]:
    """Orthogonal matching pursuit (Pati et al. 1993): k times the atom nearest to what is left, then least squares on
    the atoms chosen so far."""
    shape, pre = pre.shape, pre.reshape(-1, pre.shape[-1])
    step = max(PIECE // max(k * atoms.shape[1], 1), 1)
    parts = [_matched(part, atoms, min(k, len(atoms))) for part in pre.split(step)]
    return torch.cat(parts).reshape(shape) if parts else torch.zeros_like(pre).reshape(shape)


def _matched(pre: Tensor, atoms: Tensor, k: int) -> Tensor:
    chosen = torch.zeros(len(pre), 0, dtype=torch.long, device=pre.device)
    found, left = torch.zeros_like(pre), pre
    for _ in range(k):
        best = left.abs().scatter(1, chosen, -1.0).argmax(1, keepdim=True)
        chosen = torch.cat([chosen, best], 1)
        own = atoms[chosen]
        gram = own @ own.mT
        gram.diagonal(dim1=1, dim2=2).add_(1e-7)  # two atoms may be the same
        weights = torch.linalg.solve(gram, pre.gather(1, chosen)[..., None])[..., 0]
        found = torch.zeros_like(pre).scatter(1, chosen, weights)
        left = pre - torch.einsum("rk,rkd->rd", weights, own) @ atoms.T
    return found


def _descended(pre: Tensor, atoms: Tensor, penalty: float | Tensor, signed: bool) -> Tensor:
    """The minimum of |value − c · atoms|²/2 + penalty · |c|₁, with c ≥ 0 unless signed, by coordinate descent."""
    shape, pre = pre.shape, pre.reshape(-1, pre.shape[-1])
    gram = atoms @ atoms.T
    sizes = gram.diagonal().clone()
    penalties = torch.as_tensor(penalty).to(pre).expand(len(sizes))
    found = torch.zeros_like(pre)
    for _ in range(_SWEEPS):
        moved = pre.new_zeros(())
        for latent in (sizes > 0).nonzero()[:, 0].tolist():
            old = found[:, latent]
            slope = pre[:, latent] - found @ gram[:, latent] + old * sizes[latent]
            new = (
                (slope.abs() - penalties[latent]).relu() * slope.sign()
                if signed
                else (slope - penalties[latent]).relu()
            )
            new = new / sizes[latent]
            moved = torch.maximum(moved, (new - old).abs().max())
            found[:, latent] = new
        if not found.numel() or moved <= _CLOSE * found.abs().max():
            break
    return found.reshape(shape)


def reach(k: float) -> int:
    """How many atoms pursuit may take for a row where k are on on average: two standard deviations more, if features
    come independently."""
    return max(math.ceil(k + 2 * k**0.5), 1)


def _pursuit(pre: Tensor, atoms: Tensor, k: int, extra: Mapping[str, Tensor]) -> Tensor:
    """Non-negative pursuit of unit atoms; with `extra["threshold"]`, a number a latent, only what is above it."""
    shape, pre = pre.shape, pre.reshape(-1, pre.shape[-1])
    chosen, found = pursue(pre, atoms, reach(k))
    if "threshold" in extra:
        found = found * (found > extra["threshold"][chosen])
    return torch.zeros_like(pre).scatter(1, chosen, found).reshape(shape)


SOLVERS: dict[str, Solver] = {
    "omp": omp,
    # Non-negative least squares, as NMF's coordinates are.
    "nnls": lambda pre, atoms, k, extra: _descended(pre, atoms, 0.0, False),
    # LASSO (Tibshirani 1996), `extra["penalty"]` a number a latent.
    "lasso": lambda pre, atoms, k, extra: _descended(pre, atoms, extra["penalty"], True),
    "pursuit": _pursuit,
    "positive-lasso": lambda pre, atoms, k, extra: _descended(pre, atoms, extra["penalty"], False),
}
