"""Intervals and tests: bootstrap over examples, ranks against a null, binomial tails, the area under an ROC curve."""

from __future__ import annotations

import math
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
    above, below = resampled(np.stack([top, bottom]), draws=draws, seed=seed)
    return value, *percentiles(above / np.where(np.abs(below) < 1e-12, np.nan, below), level)


def resampled(values: np.ndarray, *, draws: int = 2000, seed: int = 0) -> np.ndarray:
    """[..., draws]: means over examples resampled with replacement; values: [..., n], every row on the same draws."""
    rows = np.random.default_rng(seed).integers(0, values.shape[-1], (draws, values.shape[-1]))
    weights = np.stack([np.bincount(row, minlength=values.shape[-1]) for row in rows], 1) / values.shape[-1]
    return values @ weights


def percentiles(draws: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The central `level` of bootstrap draws."""
    low, high = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def binomial(n: int, chance: float) -> np.ndarray:
    """[n + 1]: the probability of each count of successes in n trials, for 0 < chance < 1."""
    k = np.arange(n + 1)
    ways = [math.lgamma(n + 1) - math.lgamma(one + 1) - math.lgamma(n - one + 1) for one in k]
    return np.exp(np.array(ways) + k * math.log(chance) + (n - k) * math.log1p(-chance))


def sign_p(wins: int, n: int) -> float:
    """P(at least so many of n fair coins): the one-sided sign test."""
    return float(min(binomial(n, 0.5)[wins:].sum(), 1.0))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number, so that no more than `level` of all families holds a false rejection
    (Holm 1979)."""
    order = np.argsort(p_values)
    found, last = np.zeros(len(p_values)), 0.0
    for place, index in enumerate(order):
        last = max(last, min(1.0, (len(order) - place) * p_values[index]))
        found[index] = last
    return [float(value) for value in found]


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """The share of the union of two sets that both hold; 1 for two empty ones. one, other: boolean, same shape."""
    union = int((one | other).sum())
    return int((one & other).sum()) / union if union else 1.0


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
