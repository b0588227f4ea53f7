"""Recovery of known features: pursuit explains rows away, and directions learned from its codes are the true ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from cutaway.errors import InputError
from cutaway.features import load_dictionary, save_dictionary
from cutaway.features.dictionary import Dictionary
from cutaway.features.pursuit import pursue
from cutaway.features.recovery import infer_codes, recover_dictionary
from cutaway.features.rows import InMemory
from cutaway.features.train import train_dictionary
from cutaway.features.truth import compare_with_features
from cutaway.features.worlds import World, make_world


def small(kind: str = "independent") -> World:
    return make_world(kind, 128, 32, 3.0)


def pursuing(world: World, k: int) -> Dictionary:
    atoms = world.directions
    extra = {"threshold": torch.full((len(atoms),), 0.2)}
    return Dictionary("truth", "pursuit", {"encoder": atoms, "decoder": atoms}, k, extra)


def test_pursuit_finds_the_codes_where_one_product_does_not() -> None:
    world = make_world(features=256, width=64, active=4.0)
    rule = Dictionary("truth", "topk", {"encoder": world.directions, "decoder": world.directions}, 4)
    one = compare_with_features(rule, world, rows=2000, controls=False)
    many = compare_with_features(pursuing(world, 6), world, rows=2000, controls=False)
    assert one["mcc"] == many["mcc"] == pytest.approx(1, abs=1e-5)
    assert one["f1"] < 0.9 < 0.97 < many["f1"]
    assert many["shrinkage"] == pytest.approx(1, abs=0.02)


def test_pursuit_is_non_negative_least_squares_on_its_choice() -> None:
    from scipy.optimize import nnls

    generator = torch.Generator().manual_seed(0)
    atoms = functional.normalize(torch.randn(40, 12, generator=generator), dim=1)
    rows = torch.randn(20, 12, generator=generator)
    chosen, found = pursue(rows @ atoms.T, atoms, 5, sweeps=60)
    assert (found >= 0).all()
    for row, picked, values in zip(rows, chosen, found, strict=True):
        assert len(set(picked.tolist())) == 5
        exact = nnls(atoms[picked].T.double().numpy(), row.double().numpy())[0]
        assert torch.allclose(values.double(), torch.from_numpy(exact), atol=1e-3)


def test_pursuit_of_orthogonal_atoms_is_the_products() -> None:
    rows = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
    chosen, found = pursue(rows, torch.eye(6), 6)
    assert torch.allclose(torch.zeros(10, 6).scatter(1, chosen, found), rows.relu(), atol=1e-6)


def test_more_steps_than_atoms_are_no_harm() -> None:
    chosen, found = pursue(torch.ones(2, 3), torch.eye(3), 9)
    assert chosen.shape == found.shape == (2, 3)


def test_independent_features_are_recovered(tmp_path: Path) -> None:
    world = small()
    made = recover_dictionary(world, 128, 3.0, samples=80_000, batch=1024)
    found = compare_with_features(made, world, rows=4000)
    assert found["mcc"] > 0.95
    assert found["recovered"] > 0.9
    assert found["f1"] > 0.85
    assert found["f1"] > found["controls"]["ridge_probe"]["f1_best_threshold"]
    assert found["mcc"] > found["controls"]["random"]["mcc"] + 0.3
    assert found["l0"] == pytest.approx(3.0, rel=0.15)
    assert made.card.reference["fvu"] < 0.1
    assert made.card.training["seed"] == 0
    rows = world.sample(50)["world"]
    again = load_dictionary(save_dictionary(made, tmp_path / "d"))
    assert torch.equal(again.encode(rows), made.encode(rows))


def test_the_same_seed_gives_the_same_dictionary() -> None:
    one, two, other = (recover_dictionary(small(), 64, 3.0, samples=4096, batch=512, seed=s) for s in (1, 1, 2))
    assert torch.equal(one.decoder, two.decoder)
    assert not torch.equal(one.decoder, other.decoder)


@pytest.mark.slow
def test_children_come_apart_from_their_parents() -> None:
    world = make_world("hierarchical-exclusive", 168, 48, 4.0)
    together, apart = (
        compare_with_features(
            recover_dictionary(world, 168, 4.0, samples=200_000, batch=2048, apart=apart), world, rows=4000
        )
        for apart in (False, True)
    )
    assert apart["mcc"] > together["mcc"] + 0.02
    assert apart["recovered"] > together["recovered"]


def test_rows_at_hand_are_read_again_and_again() -> None:
    rows = InMemory({"resid.1": torch.randn(600, 8, generator=torch.Generator().manual_seed(0)) + 5})
    told: list[int] = []
    made = recover_dictionary(rows, 24, 3.0, samples=6000, batch=200, progress=lambda what, done, of: told.append(done))
    assert told == list(range(1, 31))
    assert made.card.reads[0].site == "resid.1"
    assert made.card.reference["fvu"] < 0.5
    assert made.encode(rows.values["resid.1"]).min() >= 0


def test_the_truth_stays_where_it_is() -> None:
    world = small()
    made = recover_dictionary(world, 128, 3.0, samples=20_000, batch=512, start=pursuing(world, 3))
    assert (made.decoder * world.directions).sum(1).mean() > 0.97
    with pytest.raises(InputError, match=r"table of \(128, 32\)"):
        recover_dictionary(world, 64, 3.0, samples=2000, start=pursuing(world, 3))


def test_rows_that_are_all_zero_are_no_harm() -> None:
    made = recover_dictionary(InMemory({"a": torch.zeros(500, 4)}), 8, 2.0, samples=2000, batch=100)
    assert made.encode(torch.zeros(3, 4)).eq(0).all()


@pytest.mark.parametrize(
    ("latents", "k", "told"),
    [(0, 1.0, "these are 0"), (8, 0.0, "k"), (8, 9.0, "8 and 9"), (999, 3.0, "100 rows for 999")],
)
def test_settings_that_cannot_be_are_refused(latents: int, k: float, told: str) -> None:
    with pytest.raises(InputError, match=told):
        recover_dictionary(InMemory({"a": torch.zeros(100, 4)}), latents, k)


def test_an_autoencoders_directions_with_inferred_codes() -> None:
    world = make_world("hierarchical-exclusive", 126, 48, 3.0, seed=2)
    trained = train_dictionary(world, 126, 3.0, kind="jumprelu", samples=40_000)
    inferred = infer_codes(trained, world, 3.0)
    before, after = (compare_with_features(one, world, controls=False, rows=4000) for one in (trained, inferred))
    assert after["mcc"] == pytest.approx(before["mcc"], abs=1e-3)  # the same directions
    assert after["f1_best_threshold"] > before["f1_best_threshold"] and after["fvu"] < 0.8 * before["fvu"]
    assert after["l0"] == pytest.approx(3.0, rel=0.1)
    assert inferred.card.training["codes"] == "pursuit" and inferred.kind == "jumprelu"
