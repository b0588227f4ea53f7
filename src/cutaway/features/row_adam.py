"""Adam over some rows of a table at a time, so that a gradient of the whole table never exists."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.adam import adam


@dataclass(frozen=True, eq=False)
class RowAdam:
    """A parameter with its moments (Kingma & Ba 2015, arXiv:1412.6980); changed in place.

    Each step must give every row its gradient, zeros for latents that did not fire: this is dense Adam, made in parts.
    Leaving out rows that did not fire would be another optimiser for latents that fire rarely, and could save little:
    beside the search for the latents that fire, the whole of Adam is a few per cent of a step with thousands of rows.
    """

    weights: Tensor
    first: Tensor
    second: Tensor

    @staticmethod
    def of(weights: Tensor) -> RowAdam:
        """Before the first step."""
        return RowAdam(weights, torch.zeros_like(weights), torch.zeros_like(weights))

    def apply(
        self, rows: slice, gradient: Float[Tensor, "..."], step: int, lr: float, betas: tuple[float, float]
    ) -> None:
        """The step's change of these rows. `step` counts from 1."""
        done = torch.tensor(float(step - 1), device=gradient.device)
        adam(
            [self.weights[rows]], [gradient], [self.first[rows]], [self.second[rows]], [], [done], fused=True,
            amsgrad=False, beta1=betas[0], beta2=betas[1], lr=lr, weight_decay=0.0, eps=1e-8, maximize=False,
        )  # fmt: skip
