"""The one training loop all organisms share: seeded, with fixed 0/1 masks held on the weights.

Planting: after every step each masked weight is multiplied by its 0/1 mask. What the mask forbids is therefore exactly
zero in the stored weights, and the shipped module is an ordinary one that knows nothing of masks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .organism import Pairs

Masks = dict[str, Tensor]
Progress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train; the learning rate warms up over 5 % of the steps and falls to zero.

    The weights are rounded to `stored` at the end, so that those in a file are the very ones that were trained.
    """

    steps: int
    batch: int
    rate: float
    decay: float = 0.0
    stored: torch.dtype = torch.float32


@dataclass(frozen=True)
class Recipe:
    """Everything that defines one organism; the single place its file hands over.

    `behaviour_outputs` is how many outputs belong to the behaviour (they come first, the distractor's follow).
    `examples(n, generator)` draws inputs and targets, `loss(module, inputs, targets)` scores them, and
    `figures(module, inputs, targets)` gives what is worth telling beyond the behaviour itself.
    """

    name: str
    vocabulary: tuple[str, ...] | None
    outputs: tuple[str, ...]
    behaviour_outputs: int
    behaviour: str | None
    description: str
    build: Callable[[], nn.Module]
    masks: Callable[[nn.Module], Masks]
    examples: Callable[[int, torch.Generator], tuple[Any, Tensor]]
    score: tuple[Callable[[nn.Module, Any, Tensor], Tensor], Callable[[nn.Module, Any, Tensor], dict[str, float]]]
    pairs: Callable[[int, int], Pairs] | None
    schedule: Schedule


def build(recipe: Recipe, seed: int) -> nn.Module:
    """A fresh module with random weights from `seed`; the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return recipe.build()


def apply_masks(module: nn.Module, masks: Masks) -> None:
    """Multiply the named parameters by their masks, in place."""
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name, mask in masks.items():
            parameters[name].mul_(mask)


def fit(recipe: Recipe, seed: int, steps: int | None, progress: Progress | None) -> tuple[nn.Module, dict[str, Any]]:
    """Train one organism from scratch; the same seed and steps give the same weights on the same machine.

    Returns the module in eval mode and its final figures. `progress(step, steps, loss)` is called every 100 steps.
    """
    plan = recipe.schedule
    total = plan.steps if steps is None else steps
    module = build(recipe, seed).train()
    masks = recipe.masks(module)
    apply_masks(module, masks)
    generator = torch.Generator().manual_seed(seed + 1)
    loss_of, _ = recipe.score
    optimiser = torch.optim.AdamW(module.parameters(), lr=plan.rate, weight_decay=plan.decay)
    loss = torch.zeros(())
    for step in range(total):
        warm = min(1.0, (step + 1) / max(1.0, 0.05 * total))
        for group in optimiser.param_groups:
            group["lr"] = plan.rate * warm * (1 - step / total)
        inputs, targets = recipe.examples(plan.batch, generator)
        loss = loss_of(module, inputs, targets)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        apply_masks(module, masks)
        if progress is not None and (step + 1) % 100 == 0:
            progress(step + 1, total, loss.item())
    module.to(plan.stored).float().eval()
    return module, {"loss": loss.item(), "steps": total, "seed": seed, **measure(recipe, module, seed + 2)}


def measure(recipe: Recipe, module: nn.Module, seed: int, n: int = 500) -> dict[str, float]:
    """Accuracy and logit differences on `n` fresh pairs, and the recipe's further figures on `n` fresh examples."""
    _, figures_of = recipe.score
    with torch.no_grad():
        inputs, targets = recipe.examples(n, torch.Generator().manual_seed(seed))
        found = figures_of(module, inputs, targets)
        if recipe.pairs is None:
            return found
        pairs = recipe.pairs(n, seed)
        assert pairs.correct is not None, "a trained organism decides between two outputs"
        clean, corrupted = (outputs_at(module(x), pairs.position) for x in (pairs.clean, pairs.corrupted))
        best = clean[:, : recipe.behaviour_outputs].argmax(1)
        return {
            "accuracy": (best == pairs.correct).float().mean().item(),
            "logit_difference": difference(clean, pairs).item(),
            "corrupted_logit_difference": difference(corrupted, pairs).item(),
            **found,
        }


def outputs_at(outputs: Tensor, position: int | None) -> Tensor:
    """The (n, outputs) rows a behaviour is read from."""
    return outputs if position is None else outputs[:, position, :]


def difference(outputs: Tensor, pairs: Pairs) -> Tensor:
    """Mean of correct minus wrong over (n, outputs) rows."""
    assert pairs.correct is not None and pairs.wrong is not None
    gap = outputs.gather(1, pairs.correct[:, None]) - outputs.gather(1, pairs.wrong[:, None])
    return gap.mean()
