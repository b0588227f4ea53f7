"""Figures with intervals of 95 %: a ratio of means over many rows, any figure of a few examples, a share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .intervals import Z, wilson

Interval = tuple[float, float | None, float | None]


def ratio(top: np.ndarray, bottom: np.ndarray | float = 1.0) -> Interval:
    """mean(top) / mean(bottom), with the interval of the delta method over rows, as value, low, high.

    top, bottom: [n], paired; n is large, or the interval is none.
    """
    top = np.asarray(top, dtype=float)
    below = np.broadcast_to(np.asarray(bottom, dtype=float), top.shape)
    mean = float(below.mean())
    if mean == 0:
        return float("nan"), None, None
    value = float(top.mean()) / mean
    if len(top) < 8:
        return value, None, None
    half = Z * float((top - value * below).std()) / abs(mean) / len(top) ** 0.5
    return value, value - half, value + half


def resampled(figure: Callable[[np.ndarray], float], count: int, *, draws: int = 500, seed: int = 0) -> Interval:
    """A figure of some of `count` examples (given by their numbers), with its percentile bootstrap (Efron 1979)."""
    value = figure(np.arange(count))
    if count < 2:
        return value, None, None
    random = np.random.default_rng(seed)
    drawn = np.array([figure(random.integers(0, count, count)) for _ in range(draws)])
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return value, None, None
    low, high = np.quantile(drawn, [0.025, 0.975])
    return value, float(low), float(high)


def share(hits: int, count: int) -> Interval:
    """hits / count with Wilson's interval."""
    return (hits / count, *wilson(hits, count)) if count else (float("nan"), None, None)
