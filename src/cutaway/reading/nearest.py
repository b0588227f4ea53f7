"""The entries of a table nearest to many directions, streamed: directions × table is never held.

A block of directions is multiplied with the whole table, in half precision where the machine is faster at it; maxima of
runs of 64 entries say where the largest lie, and the candidates' products are made again in float32. How peaked a
direction is: how many standard deviations (over the table, exact from its mean and covariance) its largest entry lies
from the mean, on the stronger side. The same figure of random directions is the control.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

_BLOCK = 512  # directions at a time
_RUN = 64
_SPARE = 10  # candidates beyond those asked for, against rounding in half precision
_LARGE = 4_000_000  # numbers of a table from which half precision is tried


@dataclass(frozen=True, eq=False)
class Nearest:
    """For each direction of length one: the entries it points to most (`top`), and away from (`low`), with products.

    `peak`: how many standard deviations the largest lies from the mean of all entries.
    """

    top: Int[Tensor, "n k"]
    top_values: Float[Tensor, "n k"]
    low: Int[Tensor, "n k"]
    low_values: Float[Tensor, "n k"]
    peak: Float[Tensor, " n"]

    def turned(self, which: Tensor) -> Nearest:
        """The same with some directions turned round."""
        turn = which[:, None]
        return Nearest(
            torch.where(turn, self.low, self.top), torch.where(turn, -self.low_values, self.top_values),
            torch.where(turn, self.top, self.low), torch.where(turn, -self.top_values, self.low_values), self.peak,
        )  # fmt: skip


class Table:
    """Entries [rows, d] of a vocabulary, as directions are compared with them."""

    def __init__(self, rows: Float[Tensor, "rows d"], labels: str) -> None:
        self.rows = rows.float().contiguous()
        self.labels = labels
        self.fast = self._fast()
        self.controls: dict[tuple[int, int], tuple[float, float]] = {}
        self._meeting: tuple[Table, Tensor] | None = None

    @cached_property
    def mean(self) -> Tensor:
        """[d]: the mean entry."""
        return self.rows.mean(0)

    @cached_property
    def covariance(self) -> Tensor:
        """[d, d]: the covariance of the entries."""
        return self.rows.mT @ self.rows / len(self.rows) - torch.outer(self.mean, self.mean)

    def meeting(self, other: Table) -> Tensor:
        """[d, other's d]: the products of coordinates, summed over entries that both tables have a row for."""
        if self._meeting is None or self._meeting[0] is not other:
            self._meeting = other, self.rows.mT @ other.rows
        return self._meeting[1]

    def control(self, count: int, seed: int) -> tuple[float, float]:
        """(mean, standard deviation) of the peak of `count` random directions."""
        if (count, seed) not in self.controls:
            drawn = torch.randn(count, self.rows.shape[1], generator=torch.Generator().manual_seed(seed))
            peaks = self.nearest(drawn, 1).peak
            self.controls[count, seed] = float(peaks.mean()), max(float(peaks.std()), 1e-6)
        return self.controls[count, seed]

    def nearest(self, directions: Float[Tensor, "n d"], count: int) -> Nearest:
        """The `count` entries at each end of every direction."""
        count = min(count, len(self.rows))
        units = directions.float() / directions.float().norm(dim=1, keepdim=True).clamp(min=1e-30)
        parts = [self._block(block, count) for block in units.split(_BLOCK)]
        top, top_values, low, low_values = (torch.cat(column) for column in zip(*parts, strict=True))
        mean = units @ self.mean
        spread = ((units @ self.covariance) * units).sum(1).clamp(min=1e-20).sqrt()
        peak = torch.maximum(top_values[:, 0] - mean, mean - low_values[:, 0]) / spread
        return Nearest(top, top_values, low, low_values, peak)

    def _block(self, units: Tensor, count: int) -> tuple[Tensor, ...]:
        ends = _extremes(units.to(self.fast.dtype) @ self.fast, min(count + _SPARE, len(self.rows)))
        found = []
        for ids, sign in zip(ends, (1, -1), strict=True):
            values = (self.rows[ids] @ units[:, :, None])[:, :, 0] * sign
            values, order = values.topk(count, 1)
            found += [ids.gather(1, order), values * sign]
        return tuple(found)

    def _fast(self) -> Tensor:
        """[d, rows]: the table in the precision in which this machine multiplies faster."""
        whole = self.rows.mT
        if self.rows.numel() < _LARGE:
            return whole
        some, probe = whole[:, :4096].contiguous(), torch.ones(128, whole.shape[0])
        seconds = {}
        for dtype in (torch.float32, torch.bfloat16):
            left, right = probe.to(dtype), some.to(dtype)
            left @ right
            start = time.perf_counter()
            for _ in range(3):
                left @ right
            seconds[dtype] = time.perf_counter() - start
        return whole.to(min(seconds, key=lambda dtype: seconds[dtype]))


def _extremes(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Two times [n, count]: the columns of the largest scores and of the smallest, by extremes of runs of columns."""
    width = scores.shape[1] // _RUN * _RUN
    if scores.shape[1] < 4 * _RUN * max(count, 4):
        return scores.topk(count, 1).indices, scores.topk(count, 1, largest=False).indices
    least, most = scores[:, :width].view(len(scores), -1, _RUN).aminmax(dim=2)
    rest = torch.arange(width, scores.shape[1]).expand(len(scores), -1)
    found = []
    for best, largest in ((most, True), (least, False)):
        chosen = best.topk(count, 1, largest=largest).indices
        columns = torch.cat([(chosen[:, :, None] * _RUN + torch.arange(_RUN)).flatten(1), rest], 1)
        order = scores.gather(1, columns).topk(count, 1, largest=largest).indices
        found.append(columns.gather(1, order))
    return found[0], found[1]
