"""The training step of every kind, dense and by autograd: what the faster steps are compared with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from .architectures import sizes
from .objectives import RULES, Aim
from .row_adam import RowAdam

BETAS = (0.9, 0.999)


class StepReport(NamedTuple):
    """What a step found, before it changed anything: the squared error of a row on average, the fraction of the
    variance that it is (both lower is better), latents that fire on a row, and which fired (or on how many rows)."""

    loss: float
    fvu: float
    l0: float
    fired: Tensor


class Step(Protocol):
    """A way to train: it holds weights and all else that training changes."""

    def step(self, x: Tensor, y: Tensor, lr: float) -> Any:
        """One step on rows [rows, d_in] and what is to be written [rows, d_out], centred and scaled; gives a report
        with what StepReport has."""

    def weights(self) -> dict[str, Tensor]:
        """The weights as they are."""

    def state(self) -> dict[str, Tensor]:
        """Everything that a checkpoint needs."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a checkpoint."""


class DenseStep:
    """Adam on a rule's objective, decoder rows of size one.

    `parts` are the places written, as spans of columns; `masks` zero blocks of encoder and decoder where given.
    """

    def __init__(
        self,
        rule: str,
        weights: Mapping[str, Tensor],
        k: float,
        variance: float,
        steps: int,
        options: Mapping[str, Any],
        parts: tuple[tuple[int, int], ...],
        masks: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.rule, self.k, self.variance, self.steps, self.options = RULES[rule], k, variance, steps, options
        self.parts, self.masks = parts, dict(zip(("encoder", "decoder"), masks or (), strict=False))
        self.parameters = {
            name: tensor.clone(memory_format=torch.contiguous_format).requires_grad_()
            for name, tensor in weights.items()
        }
        self.adam = {name: RowAdam.of(tensor.data) for name, tensor in self.parameters.items()}
        self.steps_made = 0
        count, device = len(weights["encoder"]), weights["encoder"].device
        self.since = torch.zeros(count, dtype=torch.long, device=device)  # rows since a latent fired
        # The penalty's weight, as a logarithm: by the sum of what L0 was off by, and now; and how many steps were made.
        level = math.log(options["penalty"])
        self.steering = torch.tensor([level, level, 0.0], dtype=torch.double)

    def step(self, x: Float[Tensor, "rows d_in"], y: Float[Tensor, "rows d_out"], lr: float) -> StepReport:
        """One step."""
        dead = self.since >= self.options["dead_after"]
        aim = Aim(self.k, self.variance, float(self.steering[1].exp()), dead, self.options)
        loss, codes, error = self.rule.objective(self.parameters, x, y, aim)
        found = torch.autograd.grad(loss, list(self.parameters.values()), materialize_grads=True)
        gradients = self._confined(dict(zip(self.parameters, found, strict=True)))
        self.steps_made += 1
        with torch.no_grad():
            for name, gradient in gradients.items():
                self.adam[name].apply(slice(None), gradient, self.steps_made, lr, BETAS)
            self.parameters["decoder"] /= self._sizes()
            fired = codes.detach() > 0
            l0, fired = float(fired.sum() / len(x)), fired.any(0)
            self.since = torch.where(fired, 0, self.since + len(x))
        if self.rule.controlled:
            self._steer(l0)
        return StepReport(float(error), float(error) / self.variance, l0, fired)

    def _sizes(self) -> Float[Tensor, "latents 1"]:
        return sizes(self.parameters["decoder"], self.parts).clamp(min=1e-12)[:, None]

    @torch.no_grad()
    def _confined(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gradients without what may not move: masked blocks, and the decoder's change of size."""
        for name, mask in self.masks.items():
            gradients[name] = gradients[name] * mask
        decoder = self.parameters["decoder"]
        normal = torch.cat(
            [decoder[:, a:b] / decoder[:, a:b].norm(dim=1, keepdim=True).clamp(min=1e-12) for a, b in self.parts], 1
        )
        along = (gradients["decoder"] * normal).sum(1, keepdim=True) / normal.square().sum(1, keepdim=True).clamp(
            min=1e-12
        )
        gradients["decoder"] = gradients["decoder"] - along * normal
        return gradients

    def _steer(self, l0: float) -> None:
        """Change the penalty's weight so that L0 goes to k: its logarithm follows what L0 is off by, now and summed.

        Where training starts far from k, the aim goes there over its first part.
        """
        level, _, done = self.steering.tolist()
        start = math.log(max(self.options["first_l0"], 1e-3) / self.k)
        aim = max(0.0, 1 - done / max(self.options["approach"] * self.steps, 1)) * start
        off = max(-1.0, min(1.0, math.log(max(l0, 1e-3) / self.k) - aim))
        level += off * min(self.options["steering"] / self.steps, 0.1)
        self.steering = torch.tensor([level, level + self.options["firmness"] * off, done + 1], dtype=torch.double)

    def weights(self) -> dict[str, Tensor]:
        """The weights."""
        return {name: tensor.detach() for name, tensor in self.parameters.items()}

    def state(self) -> dict[str, Tensor]:
        """Weights, Adam's moments, and the counters."""
        found = {f"weights.{name}": tensor.detach() for name, tensor in self.parameters.items()}
        for name in self.parameters:
            found |= {f"first.{name}": self.adam[name].first, f"second.{name}": self.adam[name].second}
        return {**found, "since": self.since, "steering": self.steering, "steps": torch.tensor(self.steps_made)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The same again."""
        with torch.no_grad():
            for name, tensor in self.parameters.items():
                tensor.copy_(state[f"weights.{name}"])
                self.adam[name].first.copy_(state[f"first.{name}"])
                self.adam[name].second.copy_(state[f"second.{name}"])
        self.steps_made = int(state["steps"])
        self.since = state["since"].to(self.since.device)
        self.steering = state["steering"].clone()
