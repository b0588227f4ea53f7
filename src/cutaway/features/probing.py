"""k-sparse probing: how well a few latents tell whether a labelled concept is there (Gurnee et al. 2023,
arXiv:2305.01610), beside as many neurons, a random dictionary, and a probe on all raw values."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import InputError, ResourceError
from .codes import Codes
from .figures import Figure, figure
from .uncertainty import resampled

KS = (1, 2, 5)
LEAST = 10  # positive and negative rows that a concept needs on each side of the split
CLASSES = 256  # that labels may tell apart
Probe = tuple[np.ndarray, float]  # weights and bias: above zero the concept is there


@dataclass(frozen=True)
class Concepts:
    """Concepts that are there or not on each row, and which rows probes are fitted to (the others are held out)."""

    labels: dict[str, Bool[Tensor, "rows"]]
    fit: Bool[Tensor, "rows"]

    @staticmethod
    def of(labels: Mapping[str, Tensor], *, seed: int = 0, groups: Int[Tensor, "rows"] | None = None) -> Concepts:
        """From labels by row: true or false, or class numbers (each class is then a concept). `groups` (the example of
        each row) are not divided between both sides. Raises InputError when no concept has rows enough."""
        table: dict[str, Tensor] = {}
        for name, given in labels.items():
            kinds = given.unique().tolist()
            if given.ndim != 1 or len(kinds) > CLASSES or (given.is_floating_point() and set(kinds) - {0.0, 1.0}):
                raise InputError(
                    f"'{name}' has {len(kinds):,} different labels in shape {tuple(given.shape)}; give one of at most "
                    f"{CLASSES} classes, or true or false, for each row."
                )
            if given.dtype == torch.bool or set(kinds) <= {0, 1}:
                table[name] = given.bool()
            else:
                table |= {f"{name}={kind}": given == kind for kind in kinds}
        if not table:
            raise InputError("There are no labels; give at least one concept, as {'name': [true or false a row]}.")
        counts = {name: len(given) for name, given in table.items()}
        if len(set(counts.values())) > 1:
            raise InputError(f"The concepts have different numbers of rows: {counts}.")
        count = next(iter(counts.values()))
        groups = torch.arange(count) if groups is None else groups
        order = torch.randperm(int(groups.max()) + 1, generator=torch.Generator().manual_seed(seed))
        fit = (order < len(order) // 2)[groups]
        sides = {name: [given[fit], given[~fit]] for name, given in table.items()}
        enough = {
            name: given for name, given in table.items()
            if all(min(int(side.sum()), int((~side).sum())) >= LEAST for side in sides[name])
        }  # fmt: skip
        if not enough:
            raise InputError(f"No concept has {LEAST} rows with it and {LEAST} without on both sides; label more rows.")
        return Concepts(enough, fit)


def sparse_probing(codes: Codes, concepts: Concepts, *, ks: tuple[int, ...] = KS) -> list[Figure]:
    """F1 and AUROC of k-sparse probes on held-out rows, mean over concepts: the k latents whose means differ most
    between rows with and without the concept, in a logistic regression.

    Intervals: bootstrap over held-out rows (F1), Hanley and McNeil 1982 (AUROC).
    """
    found = []
    for k in ks:
        which = {name: ranked(codes, label, concepts.fit)[:k] for name, label in concepts.labels.items()}
        tables = {name: columns(codes, latents) for name, latents in which.items()}
        scores = {name: scored(tables[name], label, concepts.fit) for name, label in concepts.labels.items()}
        details = {name: latents.tolist() for name, latents in which.items()}
        found += summary(f"{k}-sparse probe", scores, concepts, details)
    return found


def probes_of(value: Float[Tensor, "rows d"], concepts: Concepts) -> dict[str, Probe]:
    """Probes on all numbers of a row."""
    return {name: regression(value[concepts.fit], label[concepts.fit]) for name, label in concepts.labels.items()}


def whole_probe(value: Float[Tensor, "rows d"], concepts: Concepts, probes: Mapping[str, Probe]) -> list[Figure]:
    """The figures of probes on all numbers of a row: what there is to find."""
    rows = value[~concepts.fit].double().numpy()
    scores = {name: np.asarray(rows @ weights + bias) for name, (weights, bias) in probes.items()}
    return summary("whole probe", scores, concepts, {})


def ranked(codes: Codes, label: Bool[Tensor, "rows"], fit: Bool[Tensor, "rows"]) -> Int[Tensor, "latents"]:
    """Latents by how much their mean differs between rows with and without a concept, most first."""
    rows = codes.rows
    there = torch.zeros(2, codes.count, dtype=torch.double)
    used = fit[rows]
    there.view(-1).index_add_(
        0, label[rows[used]].long() * codes.count + codes.latents[used], codes.values[used].double()
    )
    sizes = torch.stack([(fit & ~label).sum(), (fit & label).sum()]).clamp(min=1)[:, None]
    means = there / sizes
    return (means[1] - means[0]).abs().argsort(descending=True)


def columns(codes: Codes, latents: Int[Tensor, "k"]) -> Float[Tensor, "rows k"]:
    """The coordinates of some latents on all rows."""
    place = torch.full((codes.count,), -1)
    place[latents] = torch.arange(len(latents))
    column = place[codes.latents]
    kept = column >= 0
    table = torch.zeros(len(codes), len(latents))
    table[codes.rows[kept], column[kept]] = codes.values[kept].float()
    return table


def regression(table: Float[Tensor, "rows k"], label: Bool[Tensor, "rows"]) -> Probe:
    """Weights and bias of a logistic regression in which both classes weigh the same, in the table's units.

    Raises ResourceError when scikit-learn is not installed.
    """
    try:
        linear = importlib.import_module("sklearn.linear_model")
    except ImportError:
        raise ResourceError(
            "Probes need scikit-learn, which is not installed; pip install cutaway[analysis]."
        ) from None
    rows = table.double().numpy()
    middle, spread = rows.mean(0), rows.std() + 1e-12  # one scale for all, so that the direction is the rows' own
    model = linear.LogisticRegression(class_weight="balanced", max_iter=1000, tol=1e-3)
    model.fit((rows - middle) / spread, label.numpy())
    weights = model.coef_[0] / spread
    return weights, float(model.intercept_[0] - weights @ middle)


def scored(table: Tensor, label: Tensor, fit: Tensor) -> np.ndarray:
    """Scores of held-out rows: above zero the probe says that the concept is there."""
    weights, bias = regression(table[fit], label[fit])
    return np.asarray(table[~fit].double().numpy() @ weights + bias)


def f1(said: np.ndarray, there: np.ndarray) -> np.ndarray:
    """F1 along the last axis; 0 where there is neither."""
    return np.asarray(2 * (said & there).sum(-1) / np.maximum(said.sum(-1) + there.sum(-1), 1))


def auroc(scores: np.ndarray, there: np.ndarray) -> float:
    """Area under the ROC curve, ties counted half (Mann-Whitney)."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positive, negative = int(there.sum()), int((~there).sum())
    return float((ranks[there].sum() - positive * (positive + 1) / 2) / (positive * negative))


def summary(
    name: str, scores: Mapping[str, np.ndarray], concepts: Concepts, details: Mapping[str, Any]
) -> list[Figure]:
    """F1 and AUROC of probes, mean over concepts."""
    there = np.stack([concepts.labels[concept][~concepts.fit].numpy() for concept in scores])
    said = np.stack(list(scores.values())) > 0
    count = there.shape[1]
    each = f1(said, there)
    areas = np.array([auroc(found, label) for found, label in zip(scores.values(), there, strict=True)])
    error = np.sqrt(sum(_variance(area, label) for area, label in zip(areas, there, strict=True))) / len(areas)
    on = f"{len(each)} concepts, logistic regression fitted to {int(concepts.fit.sum()):,} rows, {count:,} held out"
    told = {key: {"f1": float(one), "auroc": float(area), "latents": details.get(key)}
            for key, one, area in zip(scores, each, areas, strict=True)}  # fmt: skip
    interval = resampled(lambda rows: float(f1(said[:, rows], there[:, rows]).mean()), count, draws=200)
    mean = float(areas.mean())
    around = (mean, mean - 1.96 * float(error), min(mean + 1.96 * float(error), 1.0))
    return [figure(f"{name} F1", interval, "higher", on, concepts=told), figure(f"{name} AUROC", around, "higher", on)]


def _variance(area: float, there: np.ndarray) -> float:
    """Of an AUROC (Hanley and McNeil 1982)."""
    positive, negative = int(there.sum()), int((~there).sum())
    one, two = area / (2 - area), 2 * area**2 / (1 + area)
    spread = area * (1 - area) + (positive - 1) * (one - area**2) + (negative - 1) * (two - area**2)
    return float(spread / (positive * negative))
