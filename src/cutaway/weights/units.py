"""Units of a matrix (its rows): dead ones, twins, opposites, clusters, and how much they share their dimensions.

Sizes of superposition are those of Elhage et al. 2022, "Toy Models of Superposition": the dimensions a unit has to
itself, Dᵢ = ‖wᵢ‖² / Σⱼ(ŵᵢ·wⱼ)², is 1 for units at right angles to all others, 1/2 for an antipodal pair, 2/5 in a
pentagon. The sum over j is ŵᵢᵀ(WᵀW)ŵᵢ, so no units × units matrix is formed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from cutaway.weights.spectrum import gram

DEAD = 1e-6  # of the median length
TWIN = 0.999  # the cosine of two units that are one
CLUSTER = 0.8
CLUSTERED = 4096  # the most units whose pairs are all looked at
NAMED = 20
_TABLES, _BITS = 4, 14
_BLOCK = 512


def units(matrix: Float[np.ndarray, "units dims"], inner: np.ndarray | None = None) -> dict[str, Any]:
    """Facts about a matrix's rows, JSON-able; `inner` is its smaller Gram matrix where that is known already."""
    inner = gram(matrix) if inner is None else inner
    lengths = np.sqrt(np.einsum("ud,ud->u", matrix, matrix, dtype=np.float64))
    median = float(np.median(lengths))
    dead = np.flatnonzero(lengths <= DEAD * median) if median else np.flatnonzero(lengths == 0)
    live = np.setdiff1d(np.arange(len(lengths)), dead)
    found: dict[str, Any] = {"count": len(lengths), "dead": _named(dead), "outliers": _named(_long(lengths, median))}
    if len(live) < 2 or matrix.shape[1] < 2:
        return found | {"twins": _paired([]), "opposites": _paired([])}
    unit = (matrix[live] / lengths[live, None]).astype(np.float32)
    pairs = _near(unit)
    twins = [(int(live[a]), int(live[b])) for a, b, cosine in pairs if cosine > 0]
    opposites = [(int(live[a]), int(live[b])) for a, b, cosine in pairs if cosine < 0]
    found |= {"twins": _paired(twins), "opposites": _paired(opposites)}
    return found | _superposition(matrix.shape, inner, live, unit, lengths[live]) | _clusters(unit)


def _named(items: Any) -> dict[str, Any]:
    items = items.tolist() if isinstance(items, np.ndarray) else list(items)
    return {"count": len(items), "first": items[:NAMED]}


def _paired(pairs: list[tuple[int, int]]) -> dict[str, Any]:
    """How many units have such a partner, how many pairs there are, and the first pairs."""
    return _named(pairs) | {"count": len({unit for pair in pairs for unit in pair}), "pairs": len(pairs)}


def _long(lengths: np.ndarray, median: float) -> np.ndarray:
    """Units whose length lies far above the rest: ten times the spread of the middle half, and three medians."""
    low, high = np.quantile(lengths, (0.25, 0.75))
    return np.flatnonzero(lengths > max(high + 10 * (high - low), 3 * median, 1e-30))


def _superposition(
    shape: tuple[int, ...], inner: np.ndarray, live: np.ndarray, unit: np.ndarray, lengths: np.ndarray
) -> dict[str, Any]:
    """Features per dimension ‖W‖²_F / (max length)² / m, each unit's dimensions, and interference."""
    if len(inner) == shape[0] < shape[1]:  # the smaller Gram matrix is that of the units
        shared = np.square(inner[live]).sum(1) / lengths**2
    else:
        shared = np.einsum("ud,ud->u", unit @ inner.astype(np.float32), unit, dtype=np.float64)
    count, width = len(live), shape[1]
    own = np.clip(lengths**2 / np.maximum(shared, 1e-300), 0, 1)
    return {
        "features_per_dimension": count / width,
        "dimensions_per_feature": float(own.mean()),
        "dimensions_used": float(own.sum()),
        "interference": float(np.mean(np.maximum(shared / lengths**2 - 1, 0))),
        "interference_of_random": (count - 1) / width,
    }


def _near(unit: Float[np.ndarray, "units dims"]) -> list[tuple[int, int, float]]:
    """Pairs with a cosine of TWIN or more, or of −TWIN or less: by signs of random projections, then checked.

    Two such units differ in one of 14 signs with a chance below one in five, so that four tables miss one in 700.
    """
    generator = np.random.default_rng(0)
    found: dict[tuple[int, int], float] = {}
    powers = 1 << np.arange(_BITS)
    for _ in range(_TABLES):
        signs = unit @ generator.standard_normal((unit.shape[1], _BITS), dtype=np.float32) > 0
        codes = np.where(signs[:, :1], signs, ~signs) @ powers  # a unit and its opposite fall together
        order = np.argsort(codes, kind="stable")
        starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
        for group in np.split(order, starts[1:]):
            if len(group) < 2:
                continue
            cosines = np.triu(unit[group[:1000]] @ unit[group[:1000]].T, 1)
            for a, b in zip(*np.nonzero(np.abs(cosines) >= TWIN), strict=True):
                pair = sorted((int(group[a]), int(group[b])))
                found[pair[0], pair[1]] = float(cosines[a, b])
    return [(a, b, cosine) for (a, b), cosine in sorted(found.items())]


def _clusters(unit: Float[np.ndarray, "units dims"]) -> dict[str, Any]:
    """Groups of units of which each points nearly as another of its group does (cosine CLUSTER)."""
    if len(unit) > CLUSTERED:
        return {"clusters": None}
    label = np.arange(len(unit))
    for start in range(0, len(unit), _BLOCK):
        near = unit[start : start + _BLOCK] @ unit[start:].T >= CLUSTER
        for row in np.flatnonzero(near.sum(1) > 1):
            joined = np.unique(label[start + np.flatnonzero(near[row])])
            if len(joined) > 1:
                label[np.isin(label, joined)] = joined[0]
    names, sizes = np.unique(label, return_counts=True)
    several = sizes[sizes > 1]
    largest = np.flatnonzero(label == names[sizes.argmax()]) if len(several) else np.array([], int)
    return {"clusters": {"count": len(several), "units": int(several.sum()), "largest": _named(largest)}}
