"""What each rule minimises in training: one function a rule, all dense and by autograd, with their papers.

Values are centred and scaled, decoder rows have size one (see architectures.sizes), so that a penalty on activations is
the penalty weighted by decoder norms. The error is squared, summed over a row's numbers, and the mean over rows;
penalties are in units of the mean squared length of the rows, so that their weights mean the same for any width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .codes import keep_top

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Aim:
    """What a step aims at: `k` latents a row, `coefficient` the weight of the sparsity penalty, `variance` the mean
    squared length of the rows written, `dead` the latents that have not fired for long."""

    k: float
    variance: float
    coefficient: float
    dead: Bool[Tensor, "latents"]
    options: Mapping[str, Any]


class Outcome(NamedTuple):
    """The loss to take gradients of, the codes, and the squared error of a row on average."""

    loss: Float[Tensor, ""]
    codes: Float[Tensor, "rows latents"]
    error: Float[Tensor, ""]


Objective = Callable[[Weights, Tensor, Tensor, Aim], Outcome]


def linear(weights: Weights, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows latents"]:
    """Pre-activations."""
    return torch.addmm(weights["encoder_bias"], x, weights["encoder"].T)


def made(weights: Weights, codes: Tensor, x: Tensor) -> Float[Tensor, "rows d_out"]:
    """The reconstruction."""
    found = torch.addmm(weights["decoder_bias"], codes, weights["decoder"])
    return torch.addmm(found, x, weights["skip"]) if "skip" in weights else found


def keep_top_of_batch(values: Float[Tensor, "rows latents"], k: float) -> Float[Tensor, "rows latents"]:
    """The k × rows largest of the table, wherever they are (Bussmann et al. 2024)."""
    flat = values.flatten()
    best = flat.topk(min(round(k * len(values)), len(flat)), sorted=False)
    return torch.zeros_like(flat).scatter(0, best.indices, best.values).view_as(values)


def _revived(weights: Weights, pre: Tensor, error: Tensor, aim: Aim) -> Tensor | float:
    """AuxK: dead latents, the best few of each row, try to explain the error that is left (Gao et al. 2024, A.2); on an
    eighth of the rows, which is enough."""
    count = min(aim.options["aux_k"], int(aim.dead.sum()))
    if count == 0:
        return 0.0
    some = slice(0, max(len(pre) // 8, 1))
    best = pre[some, aim.dead].topk(count, sorted=False)
    codes = torch.zeros_like(pre[some, aim.dead]).scatter(1, best.indices, best.values.relu())
    again = codes @ weights["decoder"][aim.dead]
    return aim.options["aux"] * (error[some].detach() - again).square().sum(1).mean()


def _woken(pre: Tensor, least: Tensor | float, aim: Aim) -> Tensor | float:
    """Dead latents are drawn up to where they would fire (the pre-activation loss of Anthropic's January 2025
    update)."""
    if not bool(aim.dead.any()):
        return 0.0
    below = (least - pre).relu() * aim.dead
    return aim.options["wake"] * below.sum(1).mean() * aim.variance**0.5


def _top(choose: Callable[[Tensor, float], Tensor]) -> Objective:
    def objective(weights: Weights, x: Tensor, y: Tensor, aim: Aim) -> Outcome:
        pre = linear(weights, x)
        codes = choose(pre.relu(), aim.k)
        error = y - made(weights, codes, x)
        lost = error.square().sum(1).mean()
        return Outcome(lost + _revived(weights, pre, error, aim), codes, lost.detach())

    return objective


def _matryoshka(weights: Weights, x: Tensor, y: Tensor, aim: Aim) -> Outcome:
    """Each prefix of the latents reconstructs by itself; the mean of their errors counts."""
    pre = linear(weights, x)
    codes = keep_top_of_batch(pre.relu(), aim.k)
    error, losses, start = y - made(weights, torch.zeros_like(codes), x), [], 0
    for end in aim.options["prefixes"]:
        error = error - codes[:, start:end] @ weights["decoder"][start:end]
        losses.append(error.square().sum(1).mean())
        start = end
    revived = _revived(weights, pre, error, aim)
    return Outcome(torch.stack(losses).mean() + revived, codes, losses[-1].detach())


def _relu(weights: Weights, x: Tensor, y: Tensor, aim: Aim) -> Outcome:
    """Squared error and the sum of activations."""
    pre = linear(weights, x)
    codes = pre.relu()
    lost = (y - made(weights, codes, x)).square().sum(1).mean()
    penalty = aim.coefficient * codes.sum(1).mean() * (aim.variance / aim.k) ** 0.5
    return Outcome(lost + penalty + _woken(pre, 0.0, aim), codes, lost.detach())


def _gated(weights: Weights, x: Tensor, y: Tensor, aim: Aim) -> Outcome:
    """The gate is penalised and must reconstruct through a frozen decoder; the magnitude is free of the penalty."""
    gate = linear(weights, x)
    inner = (gate - weights["encoder_bias"]) * weights["log_scale"].exp() + weights["magnitude"]
    codes = inner.relu() * (gate > 0)
    lost = (y - made(weights, codes, x)).square().sum(1).mean()
    open_by = gate.relu()
    frozen = {name: tensor.detach() for name, tensor in weights.items()}
    by_gate = (y - made(frozen, open_by, x)).square().sum(1).mean()
    penalty = aim.coefficient * open_by.sum(1).mean() * (aim.variance / aim.k) ** 0.5
    return Outcome(lost + by_gate + penalty + _woken(gate, 0.0, aim), codes, lost.detach())


class _Jump(torch.autograd.Function):
    """Activations above a threshold, and whether they are; the threshold's gradient by a straight-through estimate with
    a rectangle of some bandwidth (Rajamanoharan et al. 2024, eq. 11 and 12)."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, width: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(pre, threshold)
        ctx.width = width
        over = (pre > threshold).to(pre.dtype)
        return pre * over, over

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        pre, threshold = ctx.saved_tensors
        near = ((pre - threshold).abs() < ctx.width / 2).to(pre.dtype) / ctx.width
        to_threshold = -near * (threshold * gradients[0] + gradients[1])
        return gradients[0] * (pre > threshold), to_threshold.sum(0), None


def _jumprelu(weights: Weights, x: Tensor, y: Tensor, aim: Aim) -> Outcome:
    """Squared error and the number of latents that fire."""
    pre = linear(weights, x)
    threshold = weights["log_threshold"].exp()
    codes, fired = _Jump.apply(pre, threshold, aim.options["bandwidth"])
    lost = (y - made(weights, codes, x)).square().sum(1).mean()
    penalty = aim.coefficient * fired.sum(1).mean() * aim.variance / aim.k
    return Outcome(lost + penalty + _woken(pre, threshold, aim), codes, lost.detach())


def _gate(pre: Tensor, k: float) -> dict[str, Tensor]:
    return {name: torch.zeros(pre.shape[1]) for name in ("log_scale", "magnitude")}


def _thresholds(pre: Tensor, k: float) -> dict[str, Tensor]:
    """One threshold for all at first, over which k latents a row fire."""
    at = pre.flatten().topk(max(round(k * len(pre)), 1)).values[-1].clamp(min=1e-3)
    return {"log_threshold": at.log().repeat(pre.shape[1])}


@dataclass(frozen=True)
class Rule:
    """How a rule is trained. `activation` is the dictionary's rule afterwards, `controlled`: L0 follows from the
    penalty, so that its weight is steered; `own`: weights that it has beside encoder and decoder, from the first
    pre-activations and k."""

    objective: Objective
    activation: str
    controlled: bool = False
    own: Callable[[Tensor, float], dict[str, Tensor]] = lambda pre, k: {}


RULES: dict[str, Rule] = {
    "topk": Rule(_top(lambda values, k: keep_top(values, round(k))), "topk"),
    "batchtopk": Rule(_top(keep_top_of_batch), "jumprelu"),
    "matryoshka": Rule(_matryoshka, "jumprelu"),
    "relu": Rule(_relu, "relu", controlled=True),
    "gated": Rule(_gated, "gated", controlled=True, own=_gate),
    "jumprelu": Rule(_jumprelu, "jumprelu", controlled=True, own=_thresholds),
}
