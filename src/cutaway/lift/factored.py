"""Products of two thin matrices, kept as two: a head's OV and QK are d_model × d_model of rank d_head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Factored:
    """The matrix `left @ right`, for row vectors: `x @ matrix`. Leading axes (heads) are a batch.

    `offset` is what an input of zero gives between the factors (biases), for maps that are affine. `note` says how the
    matrix was obtained: at which positions, and what was done with norms.
    """

    left: Float[Tensor, "*heads into rank"]
    right: Float[Tensor, "*heads rank out"]
    offset: Float[Tensor, "*heads rank"] | None = None
    note: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the dense matrix."""
        return (*self.left.shape[:-1], self.right.shape[-1])

    @property
    def T(self) -> Factored:
        """The transposed matrix."""
        return Factored(self.right.mT, self.left.mT, note=self.note)

    def dense(self) -> Float[Tensor, "*heads into out"]:
        """The matrix itself."""
        return self.left @ self.right

    def norm(self) -> Float[Tensor, "*heads"]:
        """The Frobenius norm, from the factors' Gram matrices: ‖LR‖² = tr((LᵀL)(RRᵀ))."""
        grams = (self.left.mT @ self.left) * (self.right @ self.right.mT)
        return grams.sum((-1, -2)).clamp(min=0).sqrt()

    def singular_values(self) -> Float[Tensor, "*heads rank"]:
        """The singular values, largest first, from the triangular parts of the factors."""
        return torch.linalg.svdvals(torch.linalg.qr(self.left).R @ torch.linalg.qr(self.right.mT).R.mT)

    def rank(self, tolerance: float = 1e-5) -> Tensor:
        """How many singular values exceed `tolerance` times the largest."""
        values = self.singular_values()
        return (values > tolerance * values[..., :1]).sum(-1)

    def effective_rank(self) -> Float[Tensor, "*heads"]:
        """exp of the entropy of the normalised singular values (Roy & Vetterli 2007): how many directions count."""
        share = self.singular_values()
        share = share / share.sum(-1, keepdim=True).clamp(min=torch.finfo(share.dtype).tiny)
        return torch.special.entr(share).sum(-1).exp()

    def __matmul__(self, other: Factored) -> Factored:
        """This matrix and then another, kept as two factors: `x @ (a @ b)`."""
        return Factored(self.left, self.right @ other.left @ other.right, note=self.note or other.note)

    def __call__(self, x: Float[Tensor, "*batch into"]) -> Float[Tensor, "*batch out"]:
        """What the map gives for row vectors, offset included. For one head, or one input a head."""
        between = x @ self.left
        return (between if self.offset is None else between + self.offset) @ self.right
