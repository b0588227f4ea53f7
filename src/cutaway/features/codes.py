"""Sparse codes: which latents fire on which rows, and how strongly, without a dense table; and the rules behind them.

Most latents are zero on most rows, so rows × latents numbers are never held at once: rows are encoded in pieces, and
what is not zero is kept by row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import InputError
from .products import group_sums, offsets_of

PIECE = 1 << 24  # numbers of the widest table that is made at once: 64 MiB in single precision


@dataclass(frozen=True, eq=False)
class Codes:
    """Codes of some rows by row: row `i` has latents `latents[offsets[i]:offsets[i + 1]]` with `values` at the same
    places; `count` is how many latents the dictionary has."""

    offsets: Int[Tensor, "rows_and_one"]
    latents: Int[Tensor, "fired"]
    values: Float[Tensor, "fired"]
    count: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def rows(self) -> Int[Tensor, "fired"]:
        """The row of each entry."""
        return torch.repeat_interleave(torch.arange(len(self), device=self.offsets.device), self.offsets.diff())

    @property
    def l0(self) -> float:
        """Latents that fire on a row, on average."""
        return len(self.latents) / max(len(self), 1)

    def dense(self) -> Float[Tensor, "rows latents"]:
        """The full table."""
        table = self.values.new_zeros(len(self), self.count)
        table[self.rows, self.latents] = self.values
        return table

    def decode(self, decoder: Float[Tensor, "latents d"]) -> Float[Tensor, "rows d"]:
        """The weighted sums of the decoder's rows: only those of latents that fired are read."""
        return group_sums(decoder, self.offsets, self.latents, self.values.to(decoder.dtype))

    @staticmethod
    def of(table: Float[Tensor, "rows latents"]) -> Codes:
        """The codes in a full table."""
        rows, latents = table.nonzero(as_tuple=True)
        return Codes(offsets_of(rows, len(table)), latents, table[rows, latents], table.shape[1])

    @staticmethod
    def joined(pieces: list[Codes]) -> Codes:
        """The codes of all rows of some pieces, in order."""
        ends = torch.tensor([0, *(len(piece.latents) for piece in pieces)]).cumsum(0)
        offsets = [piece.offsets[:-1] + int(start) for piece, start in zip(pieces, ends[:-1], strict=True)]
        device = pieces[0].offsets.device
        return Codes(
            torch.cat([*offsets, ends[-1:].to(device)]), torch.cat([piece.latents for piece in pieces]),
            torch.cat([piece.values for piece in pieces]), pieces[0].count,
        )  # fmt: skip


# A rule turns pre-activations [rows, latents], the encoder's bias in them, into coordinates of the same shape. `k` is
# how many may fire, `extra` holds what else the rule needs, a number a latent.
Rule = Callable[[Tensor, int, Mapping[str, Tensor]], Tensor]


def keep_top(values: Float[Tensor, "rows latents"], k: int) -> Float[Tensor, "rows latents"]:
    """The k largest of each row where they are, zeros elsewhere."""
    best = values.topk(min(k, values.shape[-1]), dim=-1, sorted=False)
    return torch.zeros_like(values).scatter(-1, best.indices, best.values)


def _top_of_groups(values: Float[Tensor, "*rows latents"], k: int) -> Float[Tensor, "*rows latents"]:
    """The largest of each of k groups of neighbours where it is, zeros elsewhere."""
    groups = values.unflatten(-1, (k, -1))
    return keep_top(groups, 1).flatten(-2)


def _gated(pre: Tensor, k: int, extra: Mapping[str, Tensor]) -> Tensor:
    """Gate and magnitude share directions (Rajamanoharan et al. 2024, arXiv:2404.16014). `pre` holds the gate's bias,
    so `magnitude_bias` is the magnitude's less that one times the scale."""
    return (pre * extra["scale"] + extra["magnitude_bias"]).relu() * (pre > 0)


RULES: dict[str, Rule] = {
    "identity": lambda pre, k, extra: pre,
    "relu": lambda pre, k, extra: pre.relu(),
    "topk": lambda pre, k, extra: keep_top(pre.relu(), k),  # Gao et al. 2024 (arXiv:2406.04093)
    "groupmax": lambda pre, k, extra: _top_of_groups(pre.relu(), k),
    "abs-topk": lambda pre, k, extra: pre * (keep_top(pre.abs(), k) > 0),
    "jumprelu": lambda pre, k, extra: pre * (pre > extra["threshold"].clamp(min=0)),  # arXiv:2407.14435
    "gated": _gated,
    "onehot": lambda pre, k, extra: torch.zeros_like(pre).scatter(-1, pre.argmax(-1, keepdim=True), 1.0),  # k-means
}


def rule_named(name: str) -> Rule:
    """A rule by name. Raises InputError for one that does not exist."""
    if name not in RULES:
        raise InputError(f"There is no activation '{name}' for a dictionary; there is {', '.join(RULES)}.")
    return RULES[name]
