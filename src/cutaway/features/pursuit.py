"""Non-negative sparse inference: codes that explain a row together, found atom by atom.

One matrix product and a rule cannot tell which 12 of 1,024 overlapping directions a row of 128 numbers is made of:
every feature that is there lights up the others a little. Taking the nearest direction, explaining it away, and looking
again can, where features are few enough (Tropp & Gilbert 2007; non-negative: Bruckstein et al. 2008).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

SWEEPS = 3  # of coordinate descent after each new atom, begun from the last coordinates


def pursue(
    pre: Float[Tensor, "rows latents"], atoms: Float[Tensor, "latents d"], steps: int, sweeps: int = SWEEPS
) -> tuple[Int[Tensor, "rows steps"], Float[Tensor, "rows steps"]]:
    """Which atoms (unit vectors) make up rows, and how much of each: as many as `steps`, of which some may be zero.

    `pre` are the rows' products with the atoms. After each new atom the coordinates of all chosen are fitted again,
    none below zero.
    """
    rows, steps = len(pre), min(steps, len(atoms))
    chosen = torch.zeros(rows, steps, dtype=torch.long, device=pre.device)
    own = pre.new_zeros(rows, steps, atoms.shape[1])
    gram, aim, found = pre.new_zeros(rows, steps, steps), pre.new_zeros(rows, steps), pre.new_zeros(rows, steps)
    left = pre
    for step in range(steps):
        if step:
            left = torch.addmm(pre, torch.einsum("rk,rkd->rd", found[:, :step], own[:, :step]), atoms.T, alpha=-1)
            left.scatter_(1, chosen[:, :step], -torch.inf)
        new = left.argmax(1)
        chosen[:, step], aim[:, step] = new, pre.gather(1, new[:, None])[:, 0]
        own[:, step] = atoms[new]
        products = torch.einsum("rkd,rd->rk", own[:, : step + 1], own[:, step])
        gram[:, step, : step + 1] = gram[:, : step + 1, step] = products
        many = sweeps if step + 1 < steps else 4 * sweeps
        _fit(gram[:, : step + 1, : step + 1], aim[:, : step + 1], found[:, : step + 1], many)
    return chosen, found


def _fit(gram: Tensor, aim: Tensor, found: Tensor, sweeps: int) -> None:
    """Coordinate descent on the non-negative least squares of each row, in place; the newest atom first."""
    for _ in range(sweeps):
        for one in range(found.shape[1] - 1, -1, -1):
            slope = aim[:, one] - (gram[:, one] * found).sum(1)
            found[:, one] = (found[:, one] + slope / gram[:, one, one].clamp(min=1e-12)).clamp(min=0)
