"""Singular values of matrices, and how many of them count, without scipy and without forming large matrices twice.

Squares of singular values are the eigenvalues of the smaller Gram matrix, in double precision: values below about 1e-8
of the largest are not told from zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

EXACT = 2048  # the longest shorter side whose whole spectrum is taken
SKETCH = 64
ROWS = 4096  # of a matrix taken together


@dataclass(frozen=True)
class Spectrum:
    """Sizes of a matrix m × n: norms, and ranks that need no threshold.

    `stable_rank`: ‖W‖²_F / ‖W‖²₂. `participation`: (Σσ²)² / Σσ⁴, what a random matrix has is mn / (m + n + 1).
    `effective_rank`: exp of the entropy of σ / Σσ (Roy & Vetterli 2007); None where the spectrum was not taken.
    """

    shape: tuple[int, int]
    frobenius: float
    spectral: float
    stable_rank: float
    participation: float
    expected: float
    effective_rank: float | None
    smallest: float | None


def gram(matrix: Float[np.ndarray, "rows columns"]) -> Float[np.ndarray, "side side"]:
    """The smaller of WᵀW and WWᵀ in double precision, rows taken some at a time."""
    rows, columns = matrix.shape
    if rows < columns:
        found = np.zeros((rows, rows))
        for start in range(0, columns, ROWS):
            part = matrix[:, start : start + ROWS].astype(np.float64)
            found += part @ part.T
        return found
    found = np.zeros((columns, columns))
    for start in range(0, rows, ROWS):
        part = matrix[start : start + ROWS].astype(np.float64)
        found += part.T @ part
    return found


def spectrum(matrix: Float[np.ndarray, "rows columns"], inner: np.ndarray | None = None) -> Spectrum:
    """The spectrum of a matrix; `inner` is its smaller Gram matrix where that is known already."""
    rows, columns = matrix.shape
    inner = gram(matrix) if inner is None else inner
    total, squares = float(np.trace(inner)), float((inner * inner).sum())
    expected = rows * columns / (rows + columns + 1)
    if total == 0:
        return Spectrum((rows, columns), 0.0, 0.0, 0.0, 0.0, expected, 0.0, 0.0)
    effective = smallest = None
    if len(inner) <= EXACT:
        values = np.sqrt(np.clip(np.linalg.eigvalsh(inner), 0, None))
        top, smallest = float(values[-1]), float(values[0])
        share = values[values > 0] / values.sum()
        effective = float(np.exp(-(share * np.log(share)).sum()))
    else:
        top = _largest(inner) ** 0.5
    return Spectrum(
        (rows, columns), total**0.5, top, total / top**2, total**2 / squares, expected, effective, smallest
    )


def _largest(inner: np.ndarray, steps: int = 60) -> float:
    """The largest eigenvalue of a Gram matrix, by power iteration."""
    vector = np.random.default_rng(0).standard_normal(len(inner))
    for _ in range(steps):
        vector = inner @ vector
        vector /= np.linalg.norm(vector)
    return float(vector @ inner @ vector)


def numerical_rank(matrix: Float[np.ndarray, "rows columns"], noise: float) -> tuple[int, bool]:
    """(how many singular values stand above noise, whether that is all of them or only the least there are).

    `noise` is the standard deviation of independent errors in the entries, as rounding makes them: the largest singular
    value of such errors is about noise · (√m + √n) (Bai & Yin 1993), and twice that is the threshold. Large matrices
    are sketched (Halko, Martinsson & Tropp 2011): a rank beyond the sketch is told as "at least".
    """
    rows, columns = matrix.shape
    side = min(rows, columns)
    limit = max(2 * noise * (rows**0.5 + columns**0.5), 1e-6 * float(np.linalg.norm(matrix)))
    if side <= 512:
        values = np.linalg.svd(matrix, compute_uv=False)
        return int((values > limit).sum()), True
    generator = np.random.default_rng(0)
    sketch = matrix @ generator.standard_normal((columns, 2 * SKETCH), dtype=np.float32)
    basis, _ = np.linalg.qr(matrix @ (matrix.T @ np.linalg.qr(sketch)[0]))
    values = np.linalg.svd(basis.T @ matrix, compute_uv=False)
    found = int((values > limit).sum())
    if found < SKETCH:
        return found, True
    return (found, False) if side > 2048 else (int((np.linalg.svd(matrix, compute_uv=False) > limit).sum()), True)
