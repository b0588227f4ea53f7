"""Testing a label: does it say on examples that it was not made from where its latent fires?"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .intervals import wilson
from .rule_search import f1

_DRAWS = 300


@dataclass(frozen=True)
class Score:
    """Detection on held-out rows at their natural rate; higher is better. `precision`: of rows where the label says so,
    the share on which the latent fires; `recall`: of rows on which it fires, the share where the label says so. Each
    with a 95 % interval (Wilson, rows taken as independent; of F1, by the bootstrap over examples)."""

    precision: float
    recall: float
    f1: float
    precision_interval: tuple[float, float]
    recall_interval: tuple[float, float]
    f1_interval: tuple[float, float]
    said: int
    fired: int
    rows: int
    examples: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able data."""
        return asdict(self)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Score:
        """The score in data that `to_dict` gave. Raises TypeError for anything else."""
        given: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in data.items()}
        return Score(**given)


def detection(said: np.ndarray, fires: np.ndarray, group: np.ndarray, seed: int = 0) -> Score:
    """How well `said` [rows] tells `fires` [rows]; `group` [rows] is the example of each row."""
    hits, said_count, fired = int((said & fires).sum()), int(said.sum()), int(fires.sum())
    return Score(
        hits / said_count if said_count else 0.0, hits / fired if fired else 0.0, f1(said, fires),
        wilson(hits, said_count), wilson(hits, fired), _f1_interval(said, fires, group, seed),
        said_count, fired, len(fires), len(np.unique(group)),
    )  # fmt: skip


def _f1_interval(said: np.ndarray, fires: np.ndarray, group: np.ndarray, seed: int) -> tuple[float, float]:
    _, number = np.unique(group, return_inverse=True)
    count = int(number.max(initial=-1)) + 1
    if not count:
        return 0.0, 0.0
    table = np.stack([np.bincount(number, one, count) for one in (2.0 * (said & fires), 1.0 * said + fires)], 1)
    generator = np.random.default_rng(seed)
    weights = generator.multinomial(count, np.full(count, 1 / count), _DRAWS)
    both, total = (weights @ table).T
    low, high = np.quantile(np.where(total > 0, both / np.maximum(total, 1e-30), 0.0), [0.025, 0.975])
    return float(low), float(high)
