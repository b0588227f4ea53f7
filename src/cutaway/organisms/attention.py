"""Self-attention, and masks that say which residual subspaces each head may read and write."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Spaces = dict[str, slice]


class Attention(nn.Module):
    """Multi-head self-attention without biases, (n, positions, width) -> (n, positions, width)."""

    def __init__(self, width: int, heads: int, head_width: int, *, causal: bool = True) -> None:
        super().__init__()
        self.heads, self.head_width, self.causal = heads, head_width, causal
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
        pattern = self.hide(q @ k.transpose(-1, -2) / math.sqrt(self.head_width)).softmax(-1)
        written: Tensor = self.out((pattern @ v).transpose(1, 2).reshape(n, positions, -1))
        return written

    def hide(self, scores: Tensor) -> Tensor:
        """Scores (..., queries, keys) without those of later keys, if this attention is causal."""
        if not self.causal:
            return scores
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        return scores.masked_fill(future, float("-inf"))


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
    """Masks for the four projections of one Attention at `prefix`, from what each head may touch."""
    rows: dict[str, list[Tensor]] = {"query": [], "key": [], "value": [], "out": []}
    for head in heads:
        for port, kept in rows.items():
            kept.append(indicator(spaces, width, getattr(head, port)).expand(head_width, width))
    stacked = {port: torch.cat(kept) for port, kept in rows.items()}
    stacked["out"] = stacked["out"].T
    return {f"{prefix}.{port}.weight": mask.contiguous() for port, mask in stacked.items()}
