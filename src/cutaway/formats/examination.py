"""What the values of a tensor look like, in one pass over pieces of bounded size.

The rank is that of the matrix times 32 random directions (Halko, Martinsson, Tropp 2011, https://arxiv.org/abs/0909.4061),
kept as the triangle of a QR decomposition that every piece is folded into; a rank of up to 24 is told exactly.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np

from cutaway.formats.checkpoint import Checkpoint
from cutaway.formats.decoding import decode, is_coded
from cutaway.formats.dtypes import DTYPES
from cutaway.formats.streaming import raw_pieces, row_width

DIRECTIONS, RANK_TOLD = 32, 24
LEAST_SIDE = 8  # of a matrix whose rank is worth telling
SPARSE, OUTLIER = 0.5, 30.0  # share of zeros; largest magnitude over the root mean square
FIRST = 5
# What rounding to a type leaves of a singular value that should be 0, as a share of the largest.
_TOLERANCE = {"float64": 1e-10, "float32": 1e-5, "float16": 2e-3, "bfloat16": 1.5e-2}
_SMALLEST = {"float16": 2.0**-14, "float32": 2.0**-126, "bfloat16": 2.0**-126, "float64": 2.0**-1022,
             "complex64": 2.0**-126, "complex128": 2.0**-1022}  # fmt: skip


def examine(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """Facts about the values of one tensor, JSON-able: sha256 of the bytes in C order, counts, range, rows, rank.

    Raises what `Checkpoint.read` raises.
    """
    with np.errstate(all="ignore"):  # numbers of a file may be anything, and what is odd about them is counted
        return _examine(checkpoint, name)


def _examine(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    tensor = checkpoint.readable(name)
    digest = hashlib.sha256()
    width = row_width(tensor)
    tally = _Tally(_SMALLEST.get(tensor.dtype, 0.0))
    rows = _Rows(width) if width > 1 and DTYPES[tensor.dtype].view[0] != "c" else None
    tolerance = _TOLERANCE.get(tensor.dtype)
    ranked = rows is not None and tolerance and len(tensor.shape) == 2 and min(tensor.shape) >= LEAST_SIDE
    sketch = _Sketch(width) if ranked else None
    left = tensor.elements
    for raw in raw_pieces(checkpoint, name):
        digest.update(raw.data)
        values = _plain(tensor.dtype, raw, left)
        left -= values.size
        finite = tally.take(values)
        if rows is not None:
            rows.take(values.reshape(-1, width))
        if sketch is not None:
            sketch.take(finite.reshape(-1, width))
    facts = {"sha256": digest.hexdigest(), **tally.facts()}
    if rows is not None:
        facts |= rows.facts()
    if sketch is not None and tolerance:
        facts["rank"] = sketch.rank(tolerance, min(tensor.shape))
    return facts


def _plain(dtype: str, raw: np.ndarray, left: int) -> np.ndarray:
    """Numbers that can be reckoned with: float32 or float64, flat."""
    if is_coded(dtype):
        return decode(dtype, raw, left)
    if raw.dtype.kind == "c":
        raw = raw.view(raw.real.dtype)
    wide = raw.dtype.itemsize > 4 or raw.dtype.kind in "iu" and raw.dtype.itemsize == 4
    return raw.astype(np.float64 if wide else np.float32, copy=not raw.dtype.isnative)


class _Tally:
    """Counts, range and moments; `take` gives the values back with 0 for what is not finite."""

    def __init__(self, smallest: float) -> None:
        self.smallest = smallest
        self.count = self.nan = self.inf = self.zeros = self.denormal = 0
        self.least, self.most, self.sum, self.squares = math.inf, -math.inf, 0.0, 0.0

    def take(self, values: np.ndarray) -> np.ndarray:
        self.count += values.size
        least, most = float(values.min()), float(values.max())
        bad = 0
        if not (math.isfinite(least) and math.isfinite(most)):
            nan, inf = np.isnan(values), np.isinf(values)
            self.nan, self.inf, bad = self.nan + int(nan.sum()), self.inf + int(inf.sum()), int((nan | inf).sum())
            values = np.where(nan | inf, 0, values)
            least, most = float(values.min()), float(values.max())
        self.least, self.most = min(self.least, least), max(self.most, most)
        nonzero = int(np.count_nonzero(values))
        self.zeros += values.size - nonzero - bad
        if self.smallest:
            tiny = int(np.count_nonzero(np.abs(values) < self.smallest))
            self.denormal += tiny - (values.size - nonzero)
        if max(-least, most) > 1e15:
            values64 = values.astype(np.float64)
            self.sum, self.squares = self.sum + float(values64.sum()), self.squares + float(values64 @ values64)
        else:
            self.sum, self.squares = self.sum + float(values.sum()), self.squares + float(values @ values)
        return values

    def facts(self) -> dict[str, Any]:
        finite = self.count - self.nan - self.inf
        mean = self.sum / finite if finite else 0.0
        rms = math.sqrt(self.squares / finite) if finite and math.isfinite(self.squares) else 0.0
        peak = max(-self.least, self.most) / rms if rms else 0.0
        spread = math.sqrt(max(0.0, rms * rms - mean * mean)) if math.isfinite(mean) and rms < 1e150 else None
        return {
            "nan": self.nan, "inf": self.inf, "denormal": self.denormal, "zeros": self.zeros,
            "min": self.least if self.count else None, "max": self.most if self.count else None,
            "mean": mean if math.isfinite(mean) else None, "std": spread, "peak": round(peak, 2),
        }  # fmt: skip


class _Rows:
    """Rows and columns that hold only zeros, and rows of one and the same number."""

    def __init__(self, width: int) -> None:
        self.seen = 0
        self.dead: list[int] = []
        self.dead_count = self.constant = 0
        self.alive = np.zeros(width, bool)

    def take(self, rows: np.ndarray) -> None:
        first = rows[:, :1]
        # Most rows differ within their first numbers, and only the others are looked at as a whole.
        suspects = np.flatnonzero((rows[:, : min(rows.shape[1], 8)] == first).all(1))
        for row in suspects:
            if (rows[row] == first[row, 0]).all():
                if first[row, 0] == 0:
                    self.dead_count += 1
                    self.dead += [self.seen + int(row)] if len(self.dead) < FIRST else []
                else:
                    self.constant += 1
        if not self.alive.all():
            unseen = np.flatnonzero(~self.alive)
            self.alive[unseen] = rows[:, unseen].any(0) if len(unseen) < len(self.alive) else rows.any(0)
        self.seen += len(rows)

    def facts(self) -> dict[str, Any]:
        dead = np.flatnonzero(~self.alive)
        return {
            "dead_rows": self.dead_count, "first_dead_rows": self.dead, "constant_rows": self.constant,
            "dead_columns": len(dead), "first_dead_columns": dead[:FIRST].tolist(),
        }  # fmt: skip


class _Sketch:
    """The triangle R of QR = matrix × random directions, which has the matrix's rank if that is small."""

    def __init__(self, width: int) -> None:
        random = np.random.default_rng(0)
        self.directions = random.standard_normal((width, DIRECTIONS), np.float32)
        self.triangle: np.ndarray | None = np.zeros((0, DIRECTIONS))

    def take(self, rows: np.ndarray) -> None:
        seen = (rows @ self.directions).astype(np.float64)
        if self.triangle is not None:
            self.triangle = _triangle(np.concatenate([self.triangle, seen])) if np.isfinite(seen).all() else None

    def rank(self, tolerance: float, side: int) -> int | None:
        """The rank where it is below `side` and 25; None if it is not, or cannot be told."""
        if self.triangle is None:
            return None
        values = np.linalg.svd(self.triangle, compute_uv=False)
        rank = int(np.count_nonzero(values > values[0] * tolerance)) if len(values) and values[0] > 0 else 0
        return rank if rank < side and rank <= RANK_TOLD else None


def _triangle(matrix: np.ndarray) -> np.ndarray:
    return np.asarray(np.linalg.qr(matrix, mode="r"))


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def findings(name: str, shape: tuple[int, ...], facts: dict[str, Any]) -> list[dict[str, str]]:
    """What a person should know of a tensor's values: kind and text, the worst first."""
    count = math.prod(shape)
    peak, rank = facts["peak"], facts.get("rank")
    constant = count > 1 and facts["min"] == facts["max"] and not facts["nan"] + facts["inf"]
    rows, columns = facts.get("dead_rows", 0), facts.get("dead_columns", 0)
    dead = " and ".join(
        f"{_counted(number, what)} of only zeros, first {', '.join(map(str, facts[f'first_dead_{what}s']))}"
        for number, what in ((rows, "row"), (columns, "column"))
        if number
    )
    zeros = facts["zeros"] / max(1, count)
    found = (
        ("not finite", facts["nan"] + facts["inf"], f"{facts['nan']:,} NaN, {facts['inf']:,} infinite"),
        ("constant", constant, f"all {count:,} values are {facts['min']:g}"),
        ("dead", not constant and rows + columns, dead),
        ("constant rows", not constant and facts.get("constant_rows"), _counted(facts.get("constant_rows", 0), "row")),
        ("low rank", not constant and rank is not None, f"rank {rank} of at most {min(shape, default=0)}"),
        ("outlier", peak > OUTLIER, f"the largest magnitude is {peak:.0f} times the root mean square"),
        ("sparse", count > 1 and not constant and zeros > SPARSE, f"{zeros:.0%} zeros"),
        ("denormal", facts["denormal"], f"{_counted(facts['denormal'], 'number')} too small for full precision"),
    )
    return [{"kind": kind, "tensor": name, "text": text} for kind, holds, text in found if holds]
