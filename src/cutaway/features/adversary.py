"""Counter-examples to a label: texts changed token by token until the network's latent and the label disagree.

Held-out texts are mutated where the rule keeps its answer, by hill climbing on the real network: rows where the rule
holds are driven towards silence, rows where it does not towards firing. What survives is a harder test than held-out
text, for a rule learned from text knows only what text holds together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import InputError
from ..run.network import Network
from .grounds import text_ground
from .intervals import wilson
from .label_test import detection
from .labels import Label, firing, halves
from .rule_search import f1, find_rule
from .seen import watch

if TYPE_CHECKING:
    from .index import LatentIndex

NEAR = 16  # tokens before a row within which one is replaced


@dataclass(frozen=True)
class Adversarial:
    """What the search found. `precision`: of rows where the rule was kept true, the share on which the latent still
    fires; `missed`: of rows where it was kept false, the share on which it now does. Each with Wilson's interval, and
    beside it what as many changes at random do; before any change all of the former rows fire, none of the latter."""

    latent: int
    precision: float
    precision_interval: tuple[float, float]
    precision_at_random: float
    missed: float
    missed_interval: tuple[float, float]
    missed_at_random: float
    changes: int
    examples: tuple[dict[str, Any], ...]
    how: dict[str, Any]
    texts: np.ndarray = field(repr=False, compare=False)
    fires: np.ndarray = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able data, the texts left out."""
        return {name: value for name, value in asdict(self).items() if name not in ("texts", "fires")}


@dataclass(frozen=True, eq=False)
class _Hunt:
    net: Network
    index: LatentIndex
    label: Label
    generator: np.random.Generator

    def activations(self, texts: np.ndarray) -> np.ndarray:
        """[texts, pos]: the latent's activations in the real network."""
        return latent_on(self.net, self.index, self.label.latent, texts)

    def says(self, texts: np.ndarray) -> np.ndarray:
        """[texts, pos]: where the rule holds."""
        assert self.label.rule is not None, "checked before"
        ground = text_ground(list(texts), self.label.vocabulary)
        return self.label.rule.holds(ground).reshape(texts.shape)

    def climb(self, texts: np.ndarray, at: np.ndarray, sign: float, rounds: int, tries: int) -> np.ndarray:
        """Texts after some rounds: of `tries` mutants each that keep the rule's answer at `at`, the one in which the
        activation there is largest (sign +1) or smallest (-1) is kept."""
        kept = np.arange(len(texts))
        said = self.says(texts)[kept, at]
        best = sign * self.activations(texts)[kept, at]
        for _ in range(rounds):
            mutants = np.repeat(texts, tries, 0)
            rows = np.arange(len(mutants))
            where = np.repeat(at, tries)
            back = self.generator.integers(1, NEAR + 1, len(mutants))
            place = np.maximum(where - back, 1)
            mutants[rows, place] = self.generator.choice(self.index.tokens, len(mutants))
            same = self.says(mutants)[rows, where] == np.repeat(said, tries)
            same &= mutants[rows, where] == np.repeat(texts[kept, at], tries)  # the row's own token stays
            value = np.where(same, sign * self.activations(mutants)[rows, where], -np.inf).reshape(len(texts), tries)
            first = value.argmax(1)
            better = value[kept, first] > best
            texts = np.where(better[:, None], mutants.reshape(len(texts), tries, -1)[kept, first], texts)
            best = np.where(better, value[kept, first], best)
        return texts


def latent_on(net: Network, index: LatentIndex, latent: int, texts: np.ndarray) -> np.ndarray:
    """[texts, pos]: a latent's activations on texts (token ids) in the network. Raises what recording raises."""
    sites = tuple(index.facts["sites"])
    found = []
    for part in watch(net, torch.from_numpy(texts.astype(np.int64))).parts(sites):
        value = torch.cat([part.values[site] for site in sites], -1).float()
        with torch.no_grad():
            codes = index.dictionary.codes(value)
        column = torch.zeros(len(value))
        hits = codes.latents == latent
        column[codes.rows[hits]] = codes.values[hits].float()
        found.append(column.numpy())
    return np.concatenate(found).reshape(texts.shape)


def hunt(
    net: Network, index: LatentIndex, label: Label, *, rows: int = 24, rounds: int = 4, tries: int = 8, seed: int = 0
) -> Adversarial:
    """Search for inputs on which a label is wrong: `rows` held-out rows of each side, `rounds` changes each, the best
    of `tries`. Raises InputError for a label without a rule, for inputs that are no texts, or for another network."""
    if label.rule is None:
        raise InputError(f"The label of latent {label.latent} is words alone, and has no rule to hold fixed.")
    if index.facts["kind"] != "text" or index.facts["axes"] != 1:
        raise InputError("Counter-examples are made by replacing tokens, and these inputs are no texts.")
    if index.facts["network"] not in ("", net.fingerprint):
        raise InputError(f"The index was made with another network than '{net.name}'; open that one.")
    generator = np.random.default_rng(seed)
    prey = _Hunt(net, index, label, generator)
    sides = [_rows(prey, holds, rows) for holds in (True, False)]
    if not len(sides[0][0]):
        raise InputError(f"The rule of latent {label.latent} holds nowhere on the held-out texts; learn another one.")
    told: dict[str, list[float]] = {"climbed": [], "random": []}
    texts, fires, shown = [], [], []
    for (start, at), sign in zip(sides, (-1.0, 1.0), strict=True):
        here = np.arange(len(start))
        climbed = prey.climb(start, at, sign, rounds, tries)
        after = prey.activations(climbed)
        told["climbed"].append(float((after[here, at] > label.threshold).sum()))
        drifted = start
        for _ in range(rounds):
            drifted = _drift(prey, drifted, at)
        told["random"].append(_share(prey.activations(drifted)[here, at] > label.threshold))
        texts.append(climbed)
        fires.append(after > label.threshold)
        shown += _shown(index, label, climbed, at, after[here, at], sign < 0)
    counts = [len(side[0]) for side in sides]
    hits = told["climbed"]
    return Adversarial(
        label.latent, hits[0] / counts[0], wilson(hits[0], counts[0]), told["random"][0],
        hits[1] / max(counts[1], 1), wilson(hits[1], counts[1]), told["random"][1], rounds, tuple(shown),
        {"rows": counts, "tries": tries, "seed": seed, "replaced": f"one of the {NEAR} tokens before, each time"},
        np.concatenate(texts), np.concatenate(fires),
    )  # fmt: skip


def refit(index: LatentIndex, label: Label, found: Adversarial, *, seed: int = 0) -> Label:
    """A label learned again with half of the counter-examples among its training texts, and tested as before. Its `how`
    says what the old rule and the new one make of the other half (F1)."""
    parts = halves(index, int(label.how["seed"]))
    plain = firing(index, label.latent, parts.train_rows, label.threshold)
    groups = np.unique(parts.train.group)
    known = np.unique(index.arrays["example"][parts.train_rows])
    texts = [index.example(int(one)) for one in known] if len(groups) else []
    if len(parts.train) != sum(map(len, texts)):
        raise InputError("Only labels of indexes that hold every position can be learned again.")
    ground = text_ground([*texts, *found.texts[::2]], label.vocabulary)
    rule = find_rule(ground, np.concatenate([plain, found.fires[::2].ravel()]), seed=seed)
    fires = firing(index, label.latent, parts.test_rows, label.threshold)
    hard, hard_fires = text_ground(list(found.texts[1::2]), label.vocabulary), found.fires[1::2].ravel()
    how = label.how | {
        "made by": "rules and counter-examples", "F1 on counter-examples": f1(rule.holds(hard), hard_fires),
        "F1 on counter-examples before": f1(label.rule.holds(hard), hard_fires) if label.rule else 0.0,
    }  # fmt: skip
    score = detection(rule.holds(parts.test), fires, parts.test.group, seed)
    text = rule.text(parts.train.word, index.facts["class_names"])
    return replace(label, rule=rule, text=text, score=score, how=how)


def _rows(prey: _Hunt, holds: bool, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(texts, positions) of held-out rows where the rule holds and the latent fires, or where neither does; of the
    latter those whose token the latent fires on elsewhere come first. Texts have the length of the first drawn."""
    index, label = prey.index, prey.label
    parts = halves(index, int(label.how["seed"]))
    assert label.rule is not None, "checked before"
    said = label.rule.holds(parts.test)
    fires = firing(index, label.latent, parts.test_rows, label.threshold)
    rows = np.flatnonzero((said & fires) if holds else (~said & ~fires))
    rows = prey.generator.permutation(rows[parts.test.position[rows] > 1])
    if not holds:
        on = np.unique(index.tokens[index.of(label.latent)[0]])
        near = np.isin(parts.test.tokens[parts.test.here[rows]], on)
        rows = np.concatenate([rows[near][: (count + 1) // 2], rows[~near]])
    examples = index.arrays["example"][parts.test_rows[rows]]
    _, first = np.unique(examples, return_index=True)
    picked = np.sort(first)[: 4 * count]
    texts = [index.example(int(examples[one])) for one in picked]
    same = [place for place, text in enumerate(texts) if len(text) == len(texts[0])][:count]
    at = index.arrays["position"][parts.test_rows[rows[picked[same]]], 0] if same else np.zeros(0, np.int64)
    return np.stack([texts[place] for place in same]) if same else np.zeros((0, 1), np.int32), at


def _drift(prey: _Hunt, texts: np.ndarray, at: np.ndarray) -> np.ndarray:
    """One change at random where it keeps the rule's answer."""
    rows = np.arange(len(texts))
    changed = texts.copy()
    changed[rows, np.maximum(at - prey.generator.integers(1, NEAR + 1, len(texts)), 1)] = prey.generator.choice(
        prey.index.tokens, len(texts)
    )
    same = (prey.says(changed) == prey.says(texts))[rows, at] & (changed[rows, at] == texts[rows, at])
    return np.where(same[:, None], changed, texts)


def _shown(
    index: LatentIndex, label: Label, texts: np.ndarray, at: np.ndarray, values: np.ndarray, holds: bool
) -> list[dict[str, Any]]:
    """The counter-examples among some texts, as tokens around the row."""
    wrong: Sequence[int] = np.flatnonzero((values > label.threshold) != holds)[:6].tolist()
    return [
        {"tokens": [index.token_text(int(token)) for token in texts[row, max(at[row] - NEAR, 0) : at[row] + 1]],
         "rule": holds, "activation": float(values[row])} for row in wrong
    ]  # fmt: skip


def _share(hits: np.ndarray) -> float:
    return float(hits.mean()) if len(hits) else 0.0
