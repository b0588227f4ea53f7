"""Undoing shrinkage: an L1 penalty makes every activation too small, and which latents fire is still right."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from .codes import Codes
from .products import sampled_products

ROUNDS = 60  # of projected gradients, at most
BOUNDS = (0.1, 10.0)  # gains lie between these
RIDGE = 1e-3  # pull of a gain towards one, as a share of the latent's own squared activations


def gains(
    codes: Codes, decoder: Float[Tensor, "latents d"], target: Float[Tensor, "rows d"]
) -> Float[Tensor, "latents"]:
    """What each latent's activations must be multiplied by to reconstruct `target` best, all latents together.

    Least squares with each gain within BOUNDS and a ridge towards one, so that latents that never fire keep it; solved
    by accelerated projected gradients that start anew where they overshoot (O'Donoghue & Candès 2015), each gain in
    units of its latent's share in the reconstruction. (Wright & Sharkey 2024 train such gains: Addressing feature
    suppression in SAEs.)
    """
    share = codes.values.square() * decoder.square().sum(1)[codes.latents]
    unit = torch.zeros(codes.count).index_add_(0, codes.latents, share).sqrt()
    per = torch.where(unit > 0, 1 / unit.clamp(min=1e-30), 0.0)
    values = codes.values * per[codes.latents]

    def made(moved: Tensor) -> Tensor:
        return Codes(codes.offsets, codes.latents, values * moved[codes.latents], codes.count).decode(decoder)

    def towards(rows: Tensor) -> Tensor:
        """Of each latent, the product of its share in the reconstruction with some rows."""
        products = sampled_products(rows, decoder, codes.offsets, codes.latents) * values
        return torch.zeros_like(unit).index_add_(0, codes.latents, products)

    def image(moved: Tensor) -> Tensor:
        return towards(made(moved)) + RIDGE * moved

    wanted = towards(target - made(unit))
    low, high = ((bound - 1) * unit for bound in BOUNDS)
    steepest = _steepest(image, unit)
    found, ahead, pace = torch.zeros_like(unit), torch.zeros_like(unit), 1.0
    for _ in range(ROUNDS):
        following = torch.clamp(ahead + (wanted - image(ahead)) / steepest, low, high)
        change = following - found
        if float(change.norm()) <= 1e-4 * float(unit.norm()):
            found = following
            break
        if float((ahead - following) @ change) > 0:
            pace = 1.0
        quicker = (1 + (1 + 4 * pace**2) ** 0.5) / 2
        ahead = following + (pace - 1) / quicker * change
        found, pace = following, quicker
    return 1 + found * per


def _steepest(image: Callable[[Tensor], Tensor], start: Tensor) -> float:
    """An upper estimate of the largest eigenvalue of a symmetric map, by power iteration."""
    vector, size = start, 0.0
    for _ in range(10):
        length = float(vector.norm())
        if not length > 0:
            return 1.0
        vector = image(vector / length)
        size = float(vector.norm())
    return max(1.1 * size, 1e-30)


def lowers(
    by: Float[Tensor, "latents"],
    codes: Codes,
    decoder: Float[Tensor, "latents d"],
    target: Float[Tensor, "rows d"],
) -> bool:
    """Whether gains lower the squared error of some rows by more than chance does: its mean change over the rows is
    more than two standard errors below zero."""
    multiplied = Codes(codes.offsets, codes.latents, codes.values * by[codes.latents], codes.count)
    before, after = ((target - one.decode(decoder)).double().square().sum(1) for one in (codes, multiplied))
    less = before - after
    return len(less) > 1 and float(less.mean()) > 2 * float(less.std()) / len(less) ** 0.5
