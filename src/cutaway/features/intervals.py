"""Intervals: of a share (Wilson), and of a mean by the bootstrap."""

from __future__ import annotations

import math

import numpy as np

Z = 1.959964  # 95 %


def wilson(hits: float, of: float, z: float = Z) -> tuple[float, float]:
    """Wilson's interval of the share hits/of (Wilson 1927); (0, 1) where there is nothing to go by."""
    if of <= 0:
        return 0.0, 1.0
    share, spread = hits / of, z * z / of
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(max(share * (1 - share) / of + spread / (4 * of), 0.0))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def bootstrap(values: np.ndarray, *, seed: int = 0, draws: int = 1000) -> tuple[float, float]:
    """The 95 % interval of the mean of independent values (one an example), by drawing them anew."""
    if len(values) == 0:
        return math.nan, math.nan
    generator = np.random.default_rng(seed)
    means = values[generator.integers(0, len(values), (draws, len(values)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
