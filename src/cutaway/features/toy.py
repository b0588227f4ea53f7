"""Toy models of superposition: more sparse features than dimensions, kept through ReLU(x W Wᵀ + b).

After Elhage et al. (2022), "Toy Models of Superposition" (transformer-circuits.pub/2022/toy_model). Many models are
trained side by side, one for each density, so that phases show in one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ..errors import InputError


@dataclass(frozen=True, eq=False)
class ToyModels:
    """Trained models, one for each of `densities`: how often a feature is there (1 − sparsity)."""

    directions: Float[Tensor, "models features d"]
    biases: Float[Tensor, "models features"]
    densities: tuple[float, ...]
    losses: Float[Tensor, "models"]

    @property
    def lengths(self) -> Float[Tensor, "models features"]:
        """How strongly each feature is kept: near 0 or near 1."""
        return self.directions.norm(dim=-1)

    @property
    def features_kept(self) -> Float[Tensor, "models"]:
        """‖W‖²: about how many features a model keeps."""
        return self.directions.square().sum((1, 2))

    @property
    def dimensionality(self) -> Float[Tensor, "models features"]:
        """The share of a dimension that each feature has: 1 alone, 1/2 in an antipodal pair, 2/3 in a triangle, 2/5 in
        a pentagon; 0 for one that is not kept."""
        unit = functional.normalize(self.directions, dim=-1, eps=1e-6)
        crowd = torch.einsum("mid,mjd->mij", unit, self.directions).square().sum(-1)
        return self.lengths.square() / crowd.clamp(min=1e-6)

    def forward(self, x: Float[Tensor, "models rows features"]) -> Float[Tensor, "models rows features"]:
        """What each model makes of features."""
        return _forward(x, self.directions, self.biases)


def _forward(x: Tensor, directions: Tensor, biases: Tensor) -> Tensor:
    return (x @ directions @ directions.mT + biases[:, None]).relu()


def train_toy_models(
    features: int = 5, dimensions: int = 2, densities: Sequence[float] = (1.0, 0.2, 0.1), *, importance: float = 1.0,
    tries: int = 1, steps: int = 3000, batch: int = 1024, rate: float = 1e-2, seed: int = 0,
) -> ToyModels:  # fmt: skip
    """Models that keep `features` features, uniform in [0, 1] where they are there, in `dimensions` dimensions.

    Feature `i` counts `importance`^i in the loss. Of `tries` models of each density the one with the lowest loss is
    kept, as some end in a worse arrangement. Raises InputError for densities outside (0, 1].
    """
    if not densities or not all(0 < density <= 1 for density in densities):
        raise InputError(f"A density is above 0 and at most 1; these are {', '.join(f'{d:g}' for d in densities)}.")
    generator = torch.Generator().manual_seed(seed)
    chance = torch.tensor(densities).repeat_interleave(tries)[:, None, None]
    weight = importance ** torch.arange(features)
    directions = (
        torch.randn(len(chance), features, dimensions, generator=generator) * (2 / (features + dimensions)) ** 0.5
    )
    directions.requires_grad_()
    biases = torch.zeros(len(chance), features, requires_grad=True)
    optimizer = torch.optim.AdamW([directions, biases], lr=rate, weight_decay=0.0)
    tail = torch.zeros(len(chance))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, 2 * (1 - step / steps))
        x = torch.rand(len(chance), batch, features, generator=generator)
        x = x * (torch.rand(x.shape, generator=generator) < chance)
        each = (weight * (_forward(x, directions, biases) - x).square()).mean((1, 2))
        optimizer.zero_grad()
        (each / chance[:, 0, 0]).sum().backward()
        optimizer.step()
        if step >= 0.9 * steps:
            tail += each.detach()
    tail = tail / (steps - -(-9 * steps // 10))
    best = tail.view(len(densities), tries).argmin(1) + tries * torch.arange(len(densities))
    return ToyModels(directions.detach()[best], biases.detach()[best], tuple(densities), tail[best])
