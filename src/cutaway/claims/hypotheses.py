"""Hypothesis tests of a circuit after Shi et al. 2024, "Hypothesis testing the circuit hypothesis in LLMs"
(arXiv:2410.13032): is it as good as the network, is the rest independent of the behaviour, is every part needed?

Each has a null hypothesis that an ideal circuit fulfils, so a rejection speaks against the circuit, and few examples
reject little. Whether it is better than random circuits of its size is tested in null.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from .statistics import binomial, holm

LEVEL, QUANTILE, EPSILON = 0.05, 0.9, 0.1
_PAPER = "Shi et al. 2024 (arXiv:2410.13032)"


@dataclass(frozen=True)
class Test:
    """A test: its null hypothesis, the p-value of `n` observations, and whether it is rejected at 5 %."""

    name: str
    null: str
    statistic: float
    p: float
    n: int
    rejected: bool
    correction: str
    source: str


def equivalence(kept: Float[np.ndarray, " batch"], good: Float[np.ndarray, " batch"], epsilon: float = EPSILON) -> Test:
    """Does the circuit beat the network on as many examples as not? kept, good: the metric of each example under the
    circuit and the whole network. Ties count half."""
    n = len(kept)
    share = float((kept > good).mean() + 0.5 * (kept == good).mean())
    apart = abs(np.arange(n + 1) / n - 0.5) >= abs(share - 0.5) - 1e-12
    p = float(min(binomial(n, 0.5 + epsilon)[apart].sum(), 1.0))
    null = f"the circuit is better than the network on {0.5 - epsilon:.0%} to {0.5 + epsilon:.0%} of examples"
    return Test("equivalence", null, share, p, n, p <= LEVEL, "no correction", _PAPER)


def independence(
    lost: Float[np.ndarray, " batch"], good: Float[np.ndarray, " batch"], *, draws: int = 1000, seed: int = 0
) -> Test:
    """Is the metric of the complement independent of that of the network? By HSIC with Gaussian kernels whose widths
    are the median distances (Gretton et al. 2007), and `draws` permutations. One that does not vary is independent."""
    n = len(good)
    null = "the complement's metric is independent of the network's"
    one, other = _centred_kernel(lost), _centred_kernel(good)
    if one is None or other is None:
        return Test("independence", null, 0.0, 1.0, n, False, "no correction", f"{_PAPER}; one side does not vary")
    observed = float((one * other).sum())
    random = np.random.default_rng(seed)
    orders = [random.permutation(n) for _ in range(draws)]
    null_draws = np.array([float((one * other[np.ix_(order, order)]).sum()) for order in orders])
    p = float((1 + (null_draws >= observed * (1 - 1e-12)).sum()) / (1 + draws))
    return Test("independence", null, observed / n**2, p, n, p <= LEVEL, "no correction", _PAPER)


def _centred_kernel(values: np.ndarray) -> np.ndarray | None:
    apart = np.abs(values[:, None] - values[None, :])
    spread = apart[apart > 1e-9 * (np.abs(values).max() + 1e-30)]
    if not len(spread):
        return None
    kernel = np.exp(-((apart / np.median(spread)) ** 2) / 2)
    return np.asarray(kernel - kernel.mean(0) - kernel.mean(1)[:, None] + kernel.mean())


def minimality(needs: Mapping[str, float], reference: Sequence[float], quantile: float = QUANTILE) -> Test:
    """Does each part of the circuit matter more than a part added at random? `needs`: what faithfulness loses without
    each part; `reference`: the same for random parts added to the circuit. Holm's correction over the parts.

    The statistic is the share of parts that are rejected as redundant, p the smallest adjusted p-value.
    """
    null = f"every part's effect exceeds the {quantile:.0%} quantile of random added parts' effects"
    correction = f"Holm over {len(needs)} parts, {len(reference)} random parts"
    if not needs or not len(reference):
        return Test("minimality", null, 0.0, 1.0, len(needs), False, correction, _PAPER)
    others = np.abs(np.asarray(reference))
    tail = binomial(len(others), quantile).cumsum()
    p_values = holm([min(float(tail[int((others < abs(need)).sum())]), 1.0) for need in needs.values()])
    redundant = float(np.mean([p <= LEVEL for p in p_values]))
    return Test("minimality", null, redundant, min(p_values), len(needs), redundant > 0, correction, _PAPER)
