"""Worlds: many variants of one computation in one batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


def over(run: Callable[[dict[int, Tensor]], Tensor], given: dict[int, Tensor]) -> Tensor:
    """`run` for every row of its inputs, in one batch by vmap, or one by one where an op has no batching rule."""
    count = len(next(iter(given.values())))
    if count > 1:
        try:
            # The fused kernels have no batching rule; where others have none, torch warns that it is slower.
            with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
                warnings.simplefilter("ignore")
                return torch.vmap(run, randomness="same")(given)
        except (RuntimeError, KeyError):
            pass  # an op without a batching rule
    return torch.stack([run({value: tensor[row] for value, tensor in given.items()}) for row in range(count)])
