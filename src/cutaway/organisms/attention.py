"""Causal self-attention, and masks that say which residual subspaces each head may read and write."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Spaces = dict[str, slice]


class CausalAttention(nn.Module):
    """Multi-head causal self-attention without biases, (n, positions, width) -> (n, positions, width)."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, head_width
        self.query = nn.Linear(width, heads * head_width, bias=False)
        self.key = nn.Linear(width, heads * head_width, bias=False)
        self.value = nn.Linear(width, heads * head_width, bias=False)
        self.out = nn.Linear(heads * head_width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        n, positions, _ = x.shape
        q, k, v = (
            project(x).view(n, positions, self.heads, self.head_width).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.head_width)
        future = torch.ones(positions, positions, dtype=torch.bool, device=x.device).triu(1)
        pattern = scores.masked_fill(future, float("-inf")).softmax(-1)
        written: Tensor = self.out((pattern @ v).transpose(1, 2).reshape(n, positions, -1))
        return written


@dataclass(frozen=True)
class Head:
    """The subspaces one head's ports may touch."""

    query: tuple[str, ...]
    key: tuple[str, ...]
    value: tuple[str, ...]
    out: tuple[str, ...]


def subspaces(widths: dict[str, int]) -> tuple[Spaces, int]:
    """Consecutive slices of the residual stream with these widths, and their sum."""
    spaces, start = {}, 0
    for name, width in widths.items():
        spaces[name] = slice(start, start + width)
        start += width
    return spaces, start


def indicator(spaces: Spaces, width: int, names: tuple[str, ...]) -> Tensor:
    """A (width,) vector, one inside the named subspaces and zero outside."""
    row = torch.zeros(width)
    for name in names:
        row[spaces[name]] = 1
    return row


def attention_masks(prefix: str, heads: list[Head], head_width: int, spaces: Spaces, width: int) -> dict[str, Tensor]:
    """Masks for the four projections of one CausalAttention at `prefix`, from what each head may touch."""
    rows: dict[str, list[Tensor]] = {"query": [], "key": [], "value": [], "out": []}
    for head in heads:
        for port, kept in rows.items():
            kept.append(indicator(spaces, width, getattr(head, port)).expand(head_width, width))
    stacked = {port: torch.cat(kept) for port, kept in rows.items()}
    stacked["out"] = stacked["out"].T
    return {f"{prefix}.{port}.weight": mask.contiguous() for port, mask in stacked.items()}
