"""Toy models of superposition have the published phases (Elhage et al. 2022)."""

from __future__ import annotations

import math

import pytest
import torch

from cutaway.errors import InputError
from cutaway.features.toy import ToyModels, train_toy_models

DENSE, MEDIUM, SPARSE = 1.0, 0.2, 0.1


@pytest.fixture(scope="module")
def five() -> ToyModels:
    return train_toy_models(5, 2, (DENSE, MEDIUM, SPARSE), importance=0.9, tries=2, steps=2000, batch=256)


def angles(models: ToyModels, number: int) -> torch.Tensor:
    kept = models.directions[number][models.lengths[number] > 0.5]
    turns = torch.atan2(kept[:, 1], kept[:, 0]).sort().values * 180 / math.pi
    return torch.diff(turns, append=turns[:1] + 360)


@pytest.mark.slow
def test_dense_features_are_kept_orthogonally_or_not_at_all(five: ToyModels) -> None:
    assert torch.allclose(five.lengths[0], torch.tensor([1.0, 1, 0, 0, 0]), atol=0.2)  # the two most important
    assert min(abs(float(gap) - 90) for gap in angles(five, 0)) < 5
    assert torch.allclose(five.dimensionality[0, :2], torch.ones(2), atol=0.05)


@pytest.mark.slow
def test_sparser_ones_make_two_antipodal_pairs(five: ToyModels) -> None:
    assert int((five.lengths[1] > 0.5).sum()) == 4
    assert float(five.lengths[1, 4]) < 0.2  # the least important is left out
    assert torch.allclose(angles(five, 1), torch.full((4,), 90.0), atol=5)
    assert torch.allclose(five.dimensionality[1, :4], torch.full((4,), 0.5), atol=0.03)


@pytest.mark.slow
def test_sparse_ones_make_a_pentagon(five: ToyModels) -> None:
    assert torch.allclose(angles(five, 2), torch.full((5,), 72.0), atol=10)
    assert torch.allclose(five.dimensionality[2], torch.full((5,), 0.4), atol=0.03)


@pytest.mark.slow
def test_forty_features_in_ten_dimensions_go_through_the_plateaus() -> None:
    models = train_toy_models(40, 10, (1.0, 0.3, 0.01), steps=1500, batch=512)
    dense, medium, sparse = models.dimensionality
    assert float(models.features_kept[0]) == pytest.approx(10, abs=0.5)  # a dimension a feature
    assert int(((medium - 0.5).abs() < 0.03).sum()) >= 12  # antipodal pairs
    assert int((sparse > 0.2).sum()) == 40  # every feature is kept, four to a dimension
    assert torch.allclose(sparse, torch.full((40,), 0.25), atol=0.03)


def test_what_one_makes_of_features_is_as_written() -> None:
    models = ToyModels(torch.eye(2)[None], torch.tensor([[0.0, -0.5]]), (1.0,), torch.zeros(1))
    assert models.forward(torch.tensor([[[1.0, 1.0], [0.0, 0.25]]])).tolist() == [[[1.0, 0.5], [0.0, 0.0]]]
    assert models.dimensionality.tolist() == [[1.0, 1.0]]


def test_a_pair_shares_a_dimension() -> None:
    models = ToyModels(torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]]), torch.zeros(1, 3), (0.1,), torch.zeros(1))
    assert torch.allclose(models.dimensionality[0], torch.tensor([0.5, 0.5, 1.0]))


def test_densities_that_are_none_are_refused() -> None:
    with pytest.raises(InputError, match=r"these are 0, 0\.5"):
        train_toy_models(densities=(0.0, 0.5))
