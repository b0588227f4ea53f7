"""The state of every matrix of a checkpoint, read one tensor at a time: spectra, units, growth over layers."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from cutaway.formats import Checkpoint
from cutaway.weights.shapes import general
from cutaway.weights.spectrum import gram, spectrum
from cutaway.weights.units import units

LARGEST = 150_000_000  # numbers; a matrix beyond is named, not measured
GROWTH = 0.02  # of a norm in a layer, in logarithms, from which it is told
LOW = 0.25  # of what a random matrix has, below which a participation ratio is called low
_NUMBER = re.compile(r"(?:^|\.)(\d+)(?=\.)")


def health(checkpoint: Checkpoint, progress: Callable[[str, int, int], None] | None = None) -> dict[str, Any]:
    """Facts about a checkpoint's matrices, JSON-able, with a summary in sentences. Raises FormatError.

    `matrices`: spectrum, and units along rows (a linear layer's outputs) and columns (its inputs). Kernels are taken as
    a matrix of output channels × all else. `growth`: Frobenius norms along layers. `skipped` are tensors too large.
    """
    matrices: list[dict[str, Any]] = []
    skipped: list[str] = []
    names = [name for name, tensor in checkpoint.tensors.items() if len(tensor.shape) >= 2 and min(tensor.shape) > 0]
    for done, name in enumerate(names):
        if progress is not None:
            progress("matrices", done, len(names))
        tensor = checkpoint.tensors[name]
        if tensor.elements > LARGEST or tensor.expanded or tensor.place.refusal:
            skipped.append(name)
            continue
        numbers = checkpoint.numbers(name)
        if numbers.dtype.kind != "f":
            continue
        matrix = numbers.reshape(len(numbers), -1).astype(np.float32, copy=False)
        if min(matrix.shape) < 2:
            continue
        matrices.append(_measured(name, tensor.shape, matrix))
    growth = _growth(matrices)
    return {
        "path": str(checkpoint.path), "format": checkpoint.format, "matrices": matrices, "growth": growth,
        "skipped": skipped, "summary": _summary(matrices, growth, skipped),
    }  # fmt: skip


def _measured(name: str, shape: tuple[int, ...], matrix: np.ndarray) -> dict[str, Any]:
    bad = int(matrix.size - np.count_nonzero(np.isfinite(matrix)))
    found: dict[str, Any] = {"name": name, "shape": list(shape), "not_finite": bad}
    if bad:
        return found
    inner = gram(matrix)
    facts = asdict(spectrum(matrix, inner))
    del facts["shape"]
    found |= {"spectrum": facts, "rows": units(matrix, inner)}
    # WᵀW of the transposed matrix is WWᵀ, so that both sides share the smaller one; a square matrix has two.
    return found | ({"columns": units(matrix.T, inner if shape[0] != shape[1] else None)} if len(shape) == 2 else {})


def _growth(matrices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each kind of matrix that several layers have: its norm by layer, and by what factor it grows a layer."""
    kinds: dict[str, list[tuple[int, float]]] = {}
    for row in matrices:
        place = _NUMBER.search(row["name"])
        if place and row["not_finite"] == 0 and row["spectrum"]["frobenius"] > 0:
            kinds.setdefault(general(row["name"]), []).append((int(place[1]), row["spectrum"]["frobenius"]))
    found = []
    for kind, rows in kinds.items():
        if len({layer for layer, _ in rows}) < 2 or len({layer for layer, _ in rows}) < len(rows):
            continue
        layers, norms = np.array([layer for layer, _ in rows]), np.array([norm for _, norm in rows])
        slope = float(np.polyfit(layers, np.log(norms), 1)[0])
        found.append({"kind": kind, "layers": layers.tolist(), "norms": norms.tolist(), "factor": float(np.exp(slope))})
    return found


def _summary(matrices: list[dict[str, Any]], growth: list[dict[str, Any]], skipped: list[str]) -> list[str]:
    """What a reader should know, worst first."""
    found = []
    if broken := [row["name"] for row in matrices if row["not_finite"]]:
        found.append(f"{_named(broken)} NaN or infinities.")
    sound = [row for row in matrices if not row["not_finite"]]
    if empty := [row["name"] for row in sound if not row["spectrum"]["frobenius"]]:
        found.append(f"{_named(empty)} nothing but zeros.")
    for side in ("rows", "columns"):
        for key, words in _UNITS.items():
            rows = [row for row in sound if row.get(side, {}).get(key, {}).get("count")]
            if rows:
                total = sum(row[side][key]["count"] for row in rows)
                worst = max(rows, key=lambda row: row[side][key]["count"])
                one = worst[side][key]
                said = words[1].format(total, side) if total > 1 else words[0].format(side[:-1])
                among = f"{one['count']} of them in" if total > 1 else "in"
                found.append(
                    f"{said}, {among} {worst['name']} "
                    f"({', '.join(map(_said, one['first'][:4]))}{' …' if one['count'] > 4 else ''})."
                )
    ratios = {row["name"]: row["spectrum"]["participation"] / row["spectrum"]["expected"] for row in sound}
    if low := sorted((name for name in ratios if 0 < ratios[name] < LOW), key=lambda name: ratios[name]):
        found.append(
            f"{len(low)} of {len(sound)} matrices use under a quarter of the directions that a random one would, "
            f"{low[0]} the fewest ({ratios[low[0]]:.1%})."
        )
    changing = [row for row in growth if abs(np.log(row["factor"])) > GROWTH]
    if changing:
        most = max(changing, key=lambda row: abs(np.log(row["factor"])))
        word = "grows" if most["factor"] > 1 else "shrinks"
        found.append(f"Over layers the norm of {most['kind']} changes most: it {word} by {most['factor']:.3f} a layer.")
    if skipped:
        which = "1 tensor is" if len(skipped) == 1 else f"{len(skipped)} tensors are"
        found.append(f"{which} too large to be measured here, or cannot be read: {skipped[0]}.")
    return found or ["Nothing stands out."]


_UNITS = {
    "dead": ("1 {} is dead (no weight)", "{} {} are dead (no weight)"),
    "twins": ("1 {} has a twin (cosine over 0.999)", "{} {} have a twin (cosine over 0.999)"),
    "opposites": ("1 {} has an opposite (cosine under −0.999)", "{} {} have an opposite (cosine under −0.999)"),
    "outliers": ("1 {} is far longer than the rest", "{} {} are far longer than the rest"),
}


def _said(item: Any) -> str:
    return "–".join(map(str, item)) if isinstance(item, (list, tuple)) else str(item)


def _named(names: list[str]) -> str:
    return f"{names[0]} holds" if len(names) == 1 else f"{len(names)} matrices, {names[0]} the first, hold"
