"""How far two outputs are from one another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .structure import tensors


def difference(got: Any, want: Any) -> float:
    """The largest difference between the tensors of two outputs, each relative to the largest number wanted in it.

    Infinite where shapes, dtypes or the number of tensors differ.
    """
    pairs = list(tensors(got)), list(tensors(want))
    if len(pairs[0]) != len(pairs[1]):
        return float("inf")
    return max(map(_difference, *pairs), default=0.0)


def _difference(got: Tensor, want: Tensor) -> float:
    got, want = got.detach(), want.detach()
    if want.is_nested:
        return difference(list(got.unbind()), list(want.unbind()))
    if got.shape != want.shape or got.dtype != want.dtype:
        return float("inf")
    if want.layout != torch.strided:
        got, want = got.to_dense(), want.to_dense()
    if want.is_quantized:
        got, want = got.dequantize(), want.dequantize()
    if not want.numel():
        return 0.0
    wide = torch.complex128 if want.is_complex() else torch.float64
    got, want = got.to(wide), want.to(wide)
    worst = torch.where((got == want) | (got.isnan() & want.isnan()), 0.0, (got - want).abs()).max().item()
    finite = want[want.isfinite()]
    largest = finite.abs().max().item() if finite.numel() else 0.0
    return float("inf") if worst != worst else worst / (largest or 1.0)


def alike(got: Tensor, want: Tensor, within: float) -> bool:
    """Whether two tensors differ by no more than a share of the largest number; whole numbers must be equal."""
    return difference(got, want) <= (within if want.is_floating_point() or want.is_complex() else 0.0)
