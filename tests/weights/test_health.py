"""Health: published facts and planted faults are found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from saving import normal, saved

from cutaway.weights import health
from cutaway.weights.spectrum import numerical_rank, spectrum
from cutaway.weights.units import units


def orthogonal(size: int) -> np.ndarray:
    return np.linalg.qr(normal(size, size))[0].astype(np.float32)


def test_an_orthogonal_matrix_has_full_rank_by_every_measure() -> None:
    found = spectrum(orthogonal(48))
    assert found.stable_rank == pytest.approx(48, rel=1e-4)
    assert found.participation == pytest.approx(48, rel=1e-4)
    assert found.effective_rank == pytest.approx(48, rel=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.integers(2, 40), st.integers(0, 10**6))
def test_a_spectrum_is_that_of_numpy(rows: int, columns: int, seed: int) -> None:
    matrix = normal(rows, columns, seed=seed)
    values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    found = spectrum(matrix)
    share = values / values.sum()
    assert found.spectral == pytest.approx(values[0], rel=1e-5)
    assert found.stable_rank == pytest.approx((values**2).sum() / values[0] ** 2, rel=1e-5)
    assert found.participation == pytest.approx((values**2).sum() ** 2 / (values**4).sum(), rel=1e-5)
    assert found.effective_rank == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-3)


def test_a_random_matrix_has_the_participation_that_is_expected() -> None:
    found = spectrum(normal(300, 200))
    assert found.participation == pytest.approx(found.expected, rel=0.02)


def test_a_large_matrix_is_sketched() -> None:
    matrix = normal(700, 5) @ normal(5, 600, seed=1) + 1e-4 * normal(700, 600, seed=2)
    assert numerical_rank(matrix, 1e-4) == (5, True)
    assert numerical_rank(normal(700, 600), 1e-4) == (600, True)


def test_dimensions_of_features_are_those_of_toy_models() -> None:
    """Elhage et al. 2022: antipodal pair 1/2, triangle 2/3, pentagon 2/5, square antiprism 3/8, tetrahedron 3/4."""
    angles = 2 * np.pi * np.arange(5) / 5
    pentagon = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    triangle = np.array([[1, 0], [-0.5, 3**0.5 / 2], [-0.5, -(3**0.5) / 2]], np.float32)
    tetrahedron = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], np.float32)
    pair = np.array([[1, 0], [-1, 0]], np.float32)
    for shape, own in ((pentagon, 2 / 5), (triangle, 2 / 3), (tetrahedron, 3 / 4), (pair, 1 / 2), (np.eye(4), 1)):
        found = units(np.asarray(shape, np.float32))
        assert found["dimensions_per_feature"] == pytest.approx(own, rel=1e-5)
    assert units(pair)["opposites"]["first"] == [(0, 1)]


def test_planted_dead_units_twins_and_opposites_are_found() -> None:
    matrix = normal(500, 32)
    matrix[7] = 0
    matrix[20] = 3 * matrix[10]
    matrix[30] = -0.5 * matrix[11]
    matrix[40] *= 50
    found = units(matrix)
    assert found["dead"]["first"] == [7]
    assert found["twins"] == {"count": 2, "first": [(10, 20)], "pairs": 1}
    assert found["opposites"]["first"] == [(11, 30)]
    assert found["outliers"]["first"] == [40]


def test_planted_clusters_are_found() -> None:
    centres = orthogonal(32)[:3]
    matrix = np.concatenate([centres[[0] * 5 + [1] * 4 + [2]] + 0.02 * normal(10, 32), orthogonal(32)[10:20]])
    found = units(matrix)["clusters"]
    assert (found["count"], found["units"], found["largest"]["first"]) == (2, 9, [0, 1, 2, 3, 4])


def test_a_checkpoint_as_a_whole(tmp_path: Path) -> None:
    tensors = {f"layers.{layer}.weight": 1.5**layer * normal(20, 30, seed=layer) for layer in range(4)}
    tensors["bad.weight"] = np.full((3, 3), np.nan, np.float32)
    tensors["flat.weight"] = np.outer(normal(16), normal(16, seed=1))
    tensors["bias"] = normal(20)
    found = health(saved(tmp_path / "a.safetensors", tensors))
    assert {row["name"] for row in found["matrices"]} == set(tensors) - {"bias"}
    assert found["growth"][0]["factor"] == pytest.approx(1.5, rel=0.05)
    assert found["summary"][0] == "bad.weight holds NaN or infinities."
    assert any("flat.weight the fewest" in sentence for sentence in found["summary"])


def test_a_sound_random_checkpoint_has_nothing_that_stands_out(tmp_path: Path) -> None:
    found = health(saved(tmp_path / "a.safetensors", {"a.weight": normal(64, 48), "b.weight": normal(48, 64)}))
    assert found["summary"] == ["Nothing stands out."]
