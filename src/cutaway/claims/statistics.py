"""Intervals and tests: bootstrap over examples, ranks against a null, the area under an ROC curve."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Interval = tuple[float, float | None, float | None]


def ratio_interval(
    top: np.ndarray, bottom: np.ndarray, *, draws: int = 2000, level: float = 0.95, seed: int = 0
) -> Interval:
    """mean(top) / mean(bottom) and its percentile bootstrap interval over examples (Efron 1979), as value, low, high.

    top, bottom: [n], paired. One example has no interval: low and high are None.
    """
    value = float(top.mean() / bottom.mean())
    if len(top) < 2:
        return value, None, None
    rows = np.random.default_rng(seed).integers(0, len(top), (draws, len(top)))
    below = bottom[rows].mean(1)
    below = np.where(np.abs(below) < 1e-12, np.nan, below)
    ratios = top[rows].mean(1) / below
    low, high = np.nanquantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return value, float(low), float(high)


def rank_p(observed: float, null: Sequence[float]) -> float:
    """P(a null draw is at least as good as observed), +1 corrected (Phipson and Smyth 2010); higher is better."""
    return (1 + sum(value >= observed - 1e-6 for value in null)) / (1 + len(null))


def auroc(scores: Sequence[float], truth: Sequence[bool]) -> float:
    """Area under the ROC curve, ties counted half (Mann-Whitney); NaN when one class is empty."""
    values, labels = np.asarray(scores, dtype=float), np.asarray(truth, dtype=bool)
    positive, negative = int(labels.sum()), int((~labels).sum())
    if not positive or not negative:
        return float("nan")
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = (ends - (counts - 1) / 2)[inverse]
    return float((ranks[labels].sum() - positive * (positive + 1) / 2) / (positive * negative))
