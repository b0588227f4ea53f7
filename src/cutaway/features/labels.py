"""Labels without a language model: executable rules, learned from half of the examples and tested on the other half.

The test is detection (Bills et al. 2023; Paulo et al. 2024, arXiv:2410.13928): precision and recall of "the latent
fires here". Beside each score stand controls that a label has to beat: the best single token, the same rule for other
latents, and a rule learned in the same way for firings that were dealt out at random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ..errors import InputError
from .grounds import Ground, example_ground, index_ground
from .label_test import Score, detection
from .rule_search import best_set, f1, find_rule
from .rules import Condition, Rule

if TYPE_CHECKING:
    from .index import LatentIndex

THRESHOLD = 0.25  # of a latent's largest activation, above which it counts as firing
MOST_ROWS = 60_000  # of training and of held-out examples each
OTHERS = 20  # latents that a rule is tried on as a control
_FEWEST = 5  # firings in each half


@dataclass(frozen=True)
class Label:
    """What is said of a latent: `text`, the rule behind it (None for a label that only was proposed in words), the
    activation from which on it counts as firing, its test, controls, and how it was made."""

    latent: int
    text: str
    rule: Rule | None
    threshold: float
    score: Score
    controls: dict[str, float]
    how: dict[str, Any]
    vocabulary: Sequence[str | None] = field(default=(), repr=False, compare=False)
    class_names: Sequence[str] = field(default=(), repr=False, compare=False)

    def fires(self, example: Tensor | np.ndarray, positions: np.ndarray | None = None, kind: int = -1) -> np.ndarray:
        """[positions]: where the label says that the latent fires on an input; `kind` is its class. Raises InputError
        for a label that is no rule."""
        if self.rule is None:
            raise InputError(f"The label of latent {self.latent} is words alone; no rule stands behind it.")
        given = example.detach().cpu().numpy() if isinstance(example, Tensor) else np.asarray(example)
        if positions is None:
            grid = given.shape[:1] if given.ndim <= 2 else given.shape[1:]
            positions = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), -1).reshape(-1, len(grid))
        return self.rule.holds(example_ground(given, positions, self.vocabulary, kind, self.class_names))

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able data."""
        return {
            "latent": self.latent, "text": self.text, "rule": self.rule.to_dict() if self.rule else None,
            "threshold": self.threshold, "score": self.score.to_dict(), "controls": self.controls, "how": self.how,
        }  # fmt: skip

    @staticmethod
    def from_dict(data: dict[str, Any], vocabulary: Sequence[str | None] = (), names: Sequence[str] = ()) -> Label:
        """The label in data that `to_dict` gave. Raises InputError, KeyError or TypeError for anything else."""
        rule = None if data["rule"] is None else Rule.from_dict(data["rule"])
        return Label(
            int(data["latent"]), str(data["text"]), rule, float(data["threshold"]), Score.from_dict(data["score"]),
            dict(data["controls"]), dict(data["how"]), vocabulary, names,
        )  # fmt: skip

    def __str__(self) -> str:
        score = self.score
        return (
            f"latent {self.latent}: {self.text}\n  held out: precision {score.precision:.2f} "
            f"({score.precision_interval[0]:.2f} to {score.precision_interval[1]:.2f}), recall {score.recall:.2f} "
            f"({score.recall_interval[0]:.2f} to {score.recall_interval[1]:.2f}), F1 {score.f1:.2f}; "
            + ", ".join(f"{name} {value:.2f}" for name, value in self.controls.items())
        )


@dataclass(frozen=True, eq=False)
class Halves:
    """Training and held-out examples of an index: grounds, and the index's rows that theirs are."""

    train: Ground
    train_rows: np.ndarray
    test: Ground
    test_rows: np.ndarray


def halves(index: LatentIndex, seed: int = 0, most: int = MOST_ROWS) -> Halves:
    """Examples divided by a seeded draw, and cut to `most` rows a side. Raises InputError for fewer than two."""
    count = int(index.facts["examples"])
    if count < 2:
        raise InputError("A label is learned from some examples and tested on others; index at least two.")
    order = np.random.default_rng(seed).permutation(count)
    each = max(int(most * count / max(index.facts["rows"], 1)), 1)
    sides = [np.sort(side[:each]) for side in (order[: count // 2], order[count // 2 :])]
    return Halves(*index_ground(index, sides[0]), *index_ground(index, sides[1]))


def label(
    index: LatentIndex,
    latents: Iterable[int],
    *,
    threshold: float = THRESHOLD,
    seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda stage, done, of: None,
) -> dict[int, Label]:
    """A label for each of some latents that fire on enough rows of both halves; the others get none.

    `threshold`: share of the largest activation above which a latent counts as firing. Raises InputError for one that
    is no share, or for an index of a single example.
    """  # fmt: skip
    if not 0 <= threshold < 1:
        raise InputError(f"The threshold is a share of the largest activation, from 0 up to 1, not {threshold}.")
    parts, listed = halves(index, seed), list(latents)
    made = {}
    for done, latent in enumerate(listed):
        if (found := label_one(index, parts, latent, threshold, seed)) is not None:
            made[latent] = found
        progress("labels", done + 1, len(listed))
    return made


def label_one(index: LatentIndex, parts: Halves, latent: int, threshold: float, seed: int) -> Label | None:
    """One latent's label; None when it fires on fewer than five rows of either half."""
    limit = threshold * float(index.largest[latent])
    train, test = (firing(index, latent, rows, limit) for rows in (parts.train_rows, parts.test_rows))
    if min(train.sum(), test.sum()) < _FEWEST:
        return None
    rule = find_rule(parts.train, train, seed=seed)
    said = rule.holds(parts.test)
    names = index.facts["class_names"]
    how = {
        "made by": "rules", "threshold": threshold, "seed": seed, "training rows": len(train),
        "training F1": f1(rule.holds(parts.train), train), "training firings": int(train.sum()),
    }  # fmt: skip
    controls = _controls(index, parts, latent, (train, test, said), threshold, seed)
    score = detection(said, test, parts.test.group, seed)
    return Label(
        latent, rule.text(parts.train.word, names), rule, limit, score, controls, how, parts.train.vocabulary, names
    )  # fmt: skip


def firing(index: LatentIndex, latent: int, rows: np.ndarray, limit: float) -> np.ndarray:
    """[rows]: whether a latent's activation on some rows of an index is above a limit."""
    which, values = index.of(latent)
    table = np.zeros(index.facts["rows"], bool)
    table[which[: int(np.searchsorted(-values, -limit))]] = True
    return table[rows]


def _controls(
    index: LatentIndex, parts: Halves, latent: int, masks: tuple[np.ndarray, np.ndarray, np.ndarray],
    threshold: float, seed: int,
) -> dict[str, float]:  # fmt: skip
    """Held-out F1 of what a label has to beat: the best single token, this rule for other latents (the median), and a
    rule for firings dealt out at random."""
    train, test, said = masks
    generator = np.random.default_rng([seed, latent])
    found = {}
    if parts.train.is_text:
        tokens = parts.train.tokens[parts.train.here]
        every, hits = (np.bincount(tokens[mask], minlength=parts.train.width) for mask in (train | True, train))
        best = int(np.argmax(2 * hits / np.maximum(every + train.sum(), 1)))
        found["best single token"] = f1(Condition("token", (best,)).holds(parts.test), test)
        best_words = best_set(tokens, train, np.ones_like(train), parts.train.width)
        found["best set of tokens"] = (
            f1(Condition("token", tuple(best_words)).holds(parts.test), test) if best_words else 0.0
        )
    alive = np.flatnonzero((index.fired >= 2 * _FEWEST) & (np.arange(len(index)) != latent))
    others = generator.choice(alive, min(OTHERS, len(alive)), replace=False)
    if len(others):
        found["other latents"] = float(np.median([
            f1(said, firing(index, int(j), parts.test_rows, threshold * float(index.largest[j]))) for j in others
        ]))  # fmt: skip
    dealt = [generator.permutation(mask) for mask in (train, test)]
    rule = find_rule(parts.train, dealt[0], clauses=1, beam=1, seed=seed)
    found["firings at random"] = f1(rule.holds(parts.test), dealt[1])
    return found
