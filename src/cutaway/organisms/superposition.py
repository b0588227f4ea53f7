"""Superposition: five sparse features kept in two dimensions, ReLU(W^T W x + b), after Elhage et al. (2022),
"Toy Models of Superposition" (transformer-circuits.pub/2022/toy_model). The features settle on a regular pentagon.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .training import Masks, Recipe, Schedule

FEATURES, DIMENSIONS = 5, 2
DENSITY = 0.05  # how often a feature is present


class SuperpositionNet(nn.Module):
    """Features (n, 5) in [0, 1] -> their reconstruction (n, 5) through two dimensions with tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(DIMENSIONS, FEATURES) * 0.5)
        self.bias = nn.Parameter(torch.zeros(FEATURES))

    def forward(self, features: Tensor) -> Tensor:
        hidden = features @ self.weight.T
        return torch.relu(hidden @ self.weight + self.bias)


def masks(module: nn.Module) -> Masks:
    """Nothing is planted here: the geometry is found by training."""
    return {}


def sparse(n: int, density: float, generator: torch.Generator) -> Tensor:
    """Features (n, 5): each present with probability `density`, then uniform in [0, 1]."""
    present = torch.rand(n, FEATURES, generator=generator) < density
    return torch.rand(n, FEATURES, generator=generator) * present


def examples(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sparse features, and the same as targets."""
    features = sparse(n, DENSITY, generator)
    return features, features


def loss(module: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error, all features equally important."""
    error: Tensor = (module(inputs) - targets).square().mean() / DENSITY
    return error


def figures(module: nn.Module, inputs: Tensor, targets: Tensor) -> dict[str, float]:
    """The pentagon: shortest and longest feature, and how far the angles between neighbours are from 72 degrees.

    Also the unexplained part of the inputs' second moment: 1 would be a network that answers nothing.
    """
    assert isinstance(module, SuperpositionNet)
    x, y = module.weight.detach()
    lengths = torch.hypot(x, y)
    angles = torch.atan2(y, x).sort().values
    gaps = torch.diff(angles, append=angles[:1] + 2 * math.pi) * 180 / math.pi
    return {
        "shortest": lengths.min().item(),
        "longest": lengths.max().item(),
        "worst_angle": (gaps - 360 / FEATURES).abs().max().item(),
        "unexplained": ((module(inputs) - targets).square().sum() / targets.square().sum()).item(),
    }


RECIPE = Recipe(
    name="superposition",
    vocabulary=None,
    outputs=tuple(f"feature {i}" for i in range(FEATURES)),
    behaviour_outputs=0,
    behaviour=None,
    description="A toy model of superposition: five sparse features in two dimensions, as a pentagon.",
    build=SuperpositionNet,
    masks=masks,
    examples=examples,
    score=(loss, figures),
    pairs=None,
    schedule=Schedule(steps=4000, batch=1024, rate=1e-2),
)
