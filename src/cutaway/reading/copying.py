"""Heads in human terms: what OV copies and what QK looks for (Elhage et al. 2021).

A head's OV, from embedding to outputs, is a token × token matrix of rank d_head that is never made: its strongest
singular pair says which tokens it reads and which it writes then, and its eigenvalues, those of a d_head × d_head
matrix, whether it copies: Σλ / Σ|λ| is 1 for a head that raises what it reads, −1 for one that lowers it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def strongest(
    left: Float[Tensor, "heads into rank"], right: Float[Tensor, "heads rank out"]
) -> tuple[Float[Tensor, "heads into"], Float[Tensor, "heads out"], Float[Tensor, " heads"]]:
    """The strongest singular pair of every `left @ right`, and its share of the sum of squares; from rank × rank Gram
    matrices, in double precision."""
    first, second = (left.mT @ left).double(), (right @ right.mT).double()
    values, vectors = torch.linalg.eigh(second)
    root = vectors * values.clamp(min=0).sqrt()[:, None] @ vectors.mT
    squares, found = torch.linalg.eigh(root @ first @ root)
    into = left @ (root @ found[:, :, -1:]).float()
    out = (into.mT @ left) @ right
    share = squares[:, -1] / squares.sum(1).clamp(min=1e-30)
    return into[:, :, 0], out[:, 0], share.float()


def copying_score(
    left: Float[Tensor, "into rank"], right: Float[Tensor, "rank out"], meeting: Float[Tensor, "out into"]
) -> float:
    """Σ Re λ / Σ |λ| of `E left right Uᵀ`, from `meeting` = Uᵀ E."""
    values = torch.linalg.eigvals(right @ meeting @ left)
    return float(values.real.sum() / values.abs().sum().clamp(min=1e-30))


def copying_control(shape: tuple[int, int, int], meeting: Tensor, count: int, seed: int) -> tuple[float, float]:
    """(mean, standard deviation) of the copying score of heads drawn at random; `shape`: into, out, rank."""
    into, out, rank = shape
    drawn = torch.Generator().manual_seed(seed)
    scores = []
    for _ in range(count):
        left, right = torch.randn(into, rank, generator=drawn), torch.randn(rank, out, generator=drawn)
        scores.append(copying_score(left, right, meeting))
    found = torch.tensor(scores)
    return float(found.mean()), max(float(found.std()), 1e-6)
