"""Scores against known features: exact cases, permutations, signs, and the controls beside them."""

from __future__ import annotations

import pytest
import torch

from cutaway.errors import InputError
from cutaway.features.dictionary import Dictionary
from cutaway.features.truth import compare_with_features, match
from cutaway.features.worlds import World, make_world

ROWS = 4000


def tied(directions: torch.Tensor, activation: str = "topk", k: int = 3, scale: float = 1.0) -> Dictionary:
    return Dictionary("made", activation, {"encoder": directions, "decoder": directions * scale}, k)


def orthogonal() -> World:
    return make_world(features=16, width=16, active=2.0)


def test_the_true_directions_score_one() -> None:
    world = orthogonal()
    found = compare_with_features(tied(world.directions, "relu"), world, rows=ROWS)
    assert found["mcc"] == pytest.approx(1, abs=1e-5)
    assert found["recovered"] == 1
    assert found["f1_best_threshold"] > 0.999
    assert found["shrinkage"] == pytest.approx(1, abs=1e-4)
    assert found["fvu"] < 1e-6


def test_order_does_not_matter_and_sign_does() -> None:
    world = make_world(features=64, width=24, active=3.0)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    shuffled = compare_with_features(tied(world.directions[order]), world, rows=ROWS, controls=False)
    plain = compare_with_features(tied(world.directions), world, rows=ROWS, controls=False)
    assert shuffled["mcc"] == pytest.approx(1, abs=1e-5)
    assert shuffled["f1"] == pytest.approx(plain["f1"], abs=1e-6)
    assert torch.equal(order[shuffled["per_feature"]["latent"]], torch.arange(64))
    assert compare_with_features(tied(-world.directions), world, rows=ROWS, controls=False)["mcc"] < 0.6


def test_a_signed_coordinate_may_point_either_way() -> None:
    world = orthogonal()
    found = compare_with_features(tied(-world.directions, "identity"), world, rows=ROWS, controls=False)
    assert found["mcc"] == pytest.approx(1, abs=1e-5)
    assert found["f1_best_threshold"] > 0.999


def test_half_the_strength_is_seen_as_shrinkage() -> None:
    world = orthogonal()
    found = compare_with_features(tied(world.directions, "relu", scale=0.5), world, rows=ROWS, controls=False)
    assert found["shrinkage"] == pytest.approx(0.5, abs=1e-4)
    assert found["mcc"] == pytest.approx(1, abs=1e-5)


def test_features_without_a_latent_count_as_zero() -> None:
    world = orthogonal()
    found = compare_with_features(tied(world.directions[:4], "relu"), world, rows=ROWS, controls=False)
    assert found["mcc"] == pytest.approx(0.25, abs=1e-5)
    assert found["recovered"] == 0.25
    assert found["f1_best_threshold"] == pytest.approx(0.25, abs=1e-3)


def test_matching_is_the_best_one_to_one() -> None:
    features = torch.eye(3)
    latents = torch.tensor([[1.0, 0.1, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    which, cosine = match(latents, features)
    assert which.tolist() == [1, 3, 2]
    assert torch.allclose(cosine, torch.ones(3))
    which, cosine = match(latents[:1], features)
    assert (which >= 0).sum() == 1
    assert which.tolist() == [0, -1, -1]


def test_f1_counts_as_by_hand() -> None:
    world = make_world(features=32, width=12, active=3.0)
    dictionary = tied(world.directions, k=4)
    found = compare_with_features(dictionary, world, rows=ROWS, controls=False)
    rows, codes = world.truth(ROWS, seed=1)
    there, fired = codes.dense() > 0, dictionary.encode(rows)[:, found["per_feature"]["latent"]] > 0
    both = (there & fired).sum(0).double()
    by_hand = 2 * both / (there.sum(0) + fired.sum(0))
    assert torch.allclose(found["per_feature"]["f1"].double(), by_hand, atol=1e-6)


def test_controls_stand_beside_with_what_they_can_do() -> None:
    world = make_world(features=64, width=24, active=2.0)
    found = compare_with_features(tied(world.directions), world, rows=ROWS)
    controls = found["controls"]
    assert controls["random"]["mcc"] < 0.7 < found["mcc"]
    assert controls["random"]["l0"] == pytest.approx(found["l0"], abs=1)
    assert controls["pca"]["fvu"] < 1e-5  # all axes: perfect reconstruction
    assert controls["pca"]["mcc"] < 0.5  # of the wrong things
    assert 0 < controls["random"]["f1"] < found["f1"] <= 1
    assert controls["ridge_probe"]["f1_best_threshold"] > controls["pca"]["f1_best_threshold"]
    assert set(found["better"]) <= set(found)


def test_principal_components_find_orthogonal_features_of_different_frequency() -> None:
    world = make_world(features=8, width=8, active=2.0, zipf=1.0, samples=10**6)
    found = compare_with_features(tied(world.directions), world, rows=60_000)
    assert found["controls"]["pca"]["mcc"] > 0.9


def test_a_probe_separates_what_is_linearly_separable() -> None:
    found = compare_with_features(tied(orthogonal().directions), orthogonal(), rows=ROWS)
    assert found["controls"]["ridge_probe"]["f1_best_threshold"] > 0.99


def test_a_latent_that_never_fires_scores_nothing() -> None:
    world = orthogonal()
    mute = Dictionary(
        "mute", "relu",
        {"encoder": world.directions, "decoder": world.directions, "encoder_bias": torch.full((16,), -1e6)},
    )  # fmt: skip
    found = compare_with_features(mute, world, rows=ROWS, controls=False)
    assert (found["f1"], found["f1_best_threshold"], found["shrinkage"], found["l0"]) == (0, 0, 0, 0)


def test_another_width_is_refused() -> None:
    with pytest.raises(InputError, match="reads 5 and writes 5"):
        compare_with_features(tied(torch.randn(4, 5)), orthogonal())
