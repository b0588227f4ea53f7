"""Undoing shrinkage: an L1 penalty makes every activation too small, and which latents fire is still right."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .codes import Codes
from .products import sampled_products

ROUNDS = 30  # of conjugate gradients, which need few: most latents meet few others


def gains(
    codes: Codes, decoder: Float[Tensor, "latents d"], target: Float[Tensor, "rows d"]
) -> Float[Tensor, "latents"]:
    """What each latent's activations must be multiplied by to reconstruct `target` best, all latents together.

    The least squares are solved by conjugate gradients from a gain of one; latents that seldom fire stay near it.
    (Wright & Sharkey 2024 train such gains: Addressing feature suppression in SAEs.)
    """

    def towards(rows: Tensor) -> Tensor:
        """Of each latent, the product of its share in the reconstruction with some rows."""
        products = sampled_products(rows, decoder, codes.offsets, codes.latents) * codes.values
        return torch.zeros(codes.count).index_add_(0, codes.latents, products)

    def made(factors: Tensor) -> Tensor:
        return Codes(codes.offsets, codes.latents, codes.values * factors[codes.latents], codes.count).decode(decoder)

    own = torch.zeros(codes.count).index_add_(0, codes.latents, codes.values.square())
    ridge = 1e-3 * own.mean().clamp(min=1e-12)
    found, left = torch.zeros(codes.count), towards(target - made(torch.ones(codes.count)))
    direction, size = left.clone(), left.square().sum()
    for _ in range(ROUNDS):
        if not float(size) > 0:
            break
        image = towards(made(direction)) + ridge * direction
        step = size / (direction * image).sum()
        found, left = found + step * direction, left - step * image
        before, size = size, left.square().sum()
        direction = left + size / before * direction
    return (1 + found).clamp(min=0.1)
