"""Classical decompositions as dictionaries: what scikit-learn gives, and what is known of each."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import NMF, PCA, FactorAnalysis, sparse_encode

from cutaway.errors import InputError, ResourceError
from cutaway.features import Dictionary, InMemory, Place, fvu, load_dictionary, save_dictionary
from cutaway.features.classical import KINDS, fit_dictionary
from cutaway.features.controls import frozen, identity_dictionary, matched, principal, random_dictionary
from cutaway.features.solvers import SOLVERS

COUNT, WIDTH, LATENTS = 600, 10, 6


def mixed(positive: bool = False, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Sparse sources, and rows that mix them."""
    generator = torch.Generator().manual_seed(seed)
    there = torch.rand(COUNT, LATENTS, generator=generator) < 0.3
    sources = torch.rand(COUNT, LATENTS, generator=generator) * there
    mixing = torch.rand(LATENTS, WIDTH, generator=generator)
    return sources, sources @ (mixing if positive else mixing - 0.5) + (0 if positive else 3.0)


def rows(positive: bool = False) -> InMemory:
    return InMemory({"a": mixed(positive)[1]}, {"hash": "abc"}, "net")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_a_dictionary_that_can_be_kept(kind: str, tmp_path: Path) -> None:
    given = rows(positive=kind == "nmf")
    found = fit_dictionary(given, LATENTS, kind, k=2)
    assert (found.kind, found.latents, found.width) == (kind, LATENTS, WIDTH)
    assert found.card.reads == found.card.writes == (Place("a", WIDTH, "net"),)
    assert found.card.reference["fvu"] == pytest.approx(
        fvu(given.values["a"], found.reconstruct(given.values["a"])), abs=1e-6
    )
    assert found.card.training["seed"] == 0 and found.card.versions["scikit-learn"]
    again = load_dictionary(save_dictionary(found, tmp_path / "d"))
    assert torch.equal(again.encode(given.values["a"]), found.encode(given.values["a"]))
    repeated = fit_dictionary(given, LATENTS, kind, k=2)
    assert torch.equal(repeated.decoder, found.decoder)


def test_what_pca_leaves_is_what_its_components_do_not_explain() -> None:
    value = mixed()[1]
    model = PCA(4).fit(value.double().numpy())
    found = fit_dictionary(rows(), 4, "pca")
    assert fvu(value, found.reconstruct(value)) == pytest.approx(1 - model.explained_variance_ratio_.sum(), abs=1e-5)
    assert principal(value, 4)[2].numpy() == pytest.approx(model.explained_variance_ratio_, abs=1e-5)
    assert (found.decoder.numpy() * model.components_).sum(1) == pytest.approx(
        np.sign((found.decoder.numpy() * model.components_).sum(1)), abs=1e-4
    )


def test_ica_unmixes() -> None:
    sources, value = mixed()
    found = fit_dictionary(rows(), LATENTS, "ica").encode(value)
    together = torch.corrcoef(torch.cat([sources, found], 1).T)[:LATENTS, LATENTS:].abs()
    assert together.max(1).values.min() > 0.98
    assert sorted(together.argmax(1).tolist()) == list(range(LATENTS))


def test_factors_are_those_of_scikit_learn() -> None:
    value = mixed()[1] + 0.1 * torch.randn(COUNT, WIDTH, generator=torch.Generator().manual_seed(5))
    found = fit_dictionary(InMemory({"a": value}), 3, "factor-analysis")
    model = FactorAnalysis(3, random_state=0).fit(value.double().numpy())
    assert found.encode(value).numpy() == pytest.approx(model.transform(value.double().numpy()), abs=1e-4)


def test_k_means_gives_each_row_its_nearest_centre() -> None:
    value = mixed()[1]
    found = fit_dictionary(rows(), LATENTS, "k-means")
    model = KMeans(LATENTS, random_state=0, n_init=4).fit(rows().sample(COUNT)["a"].double().numpy())
    codes, labels = found.codes(value), model.predict(value.double().numpy())
    assert codes.latents.tolist() == labels.tolist() and codes.l0 == 1
    assert found.reconstruct(value).numpy() == pytest.approx(model.cluster_centers_[labels], abs=1e-5)


def test_nmf_is_nowhere_negative_and_solves_each_row() -> None:
    value = mixed(positive=True)[1]
    found = fit_dictionary(rows(positive=True), LATENTS, "nmf")
    codes = found.encode(value)
    assert (found.decoder >= 0).all() and (codes >= 0).all() and found.card.reference["fvu"] < 0.01
    model = NMF(LATENTS, init="nndsvda", max_iter=2000, tol=1e-9, random_state=0)
    model.components_, model.n_components_, model._beta_loss = found.decoder.double().numpy(), LATENTS, 2
    other = model.transform(value.double().numpy())
    assert np.square(value.numpy() - codes.numpy() @ found.decoder.numpy()).sum() <= np.square(
        value.numpy() - other @ found.decoder.numpy()
    ).sum() * (1 + 1e-3)


@pytest.mark.parametrize("rule", ["omp", "lasso", "positive-lasso", "nnls"])
def test_codes_are_those_of_scikit_learn(rule: str) -> None:
    generator = torch.Generator().manual_seed(2)
    atoms = torch.nn.functional.normalize(torch.randn(8, WIDTH, generator=generator), dim=1)
    value = torch.randn(40, WIDTH, generator=generator)
    found = SOLVERS[rule](value @ atoms.T, atoms, 3, {"penalty": torch.full((8,), 0.3)})
    options: dict[str, dict[str, Any]] = {
        "omp": {"algorithm": "omp", "n_nonzero_coefs": 3},
        "lasso": {"algorithm": "lasso_cd", "alpha": 0.3, "max_iter": 10000},
        "positive-lasso": {"algorithm": "lasso_cd", "alpha": 0.3, "positive": True, "max_iter": 10000},
        "nnls": {"algorithm": "lasso_cd", "alpha": 1e-9, "positive": True, "max_iter": 10000},
    }
    wanted = sparse_encode(value.double().numpy(), atoms.double().numpy(), **options[rule])
    assert found.numpy() == pytest.approx(wanted, abs=2e-3)


def test_a_repeated_atom_is_no_division_by_zero() -> None:
    atoms = torch.nn.functional.normalize(torch.randn(2, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    value = atoms[:1] * 2
    found = SOLVERS["omp"](value @ atoms[[0, 0, 1]].T, atoms[[0, 0, 1]], 3, {})
    assert found.isfinite().all() and (found @ atoms[[0, 0, 1]]).sub(value).abs().max() < 1e-2


def test_sparse_coding_uses_k_atoms_and_beats_random_ones() -> None:
    value = mixed()[1]
    found = fit_dictionary(rows(), 16, "sparse-coding", k=3)
    assert found.codes(value).l0 <= 3
    chance = frozen(value, value, 16, 3).but(activation="omp")
    chance = chance.but(weights={**chance.weights, "decoder": chance.weights["encoder"], "decoder_bias": value.mean(0)})
    assert fvu(value, found.reconstruct(value)) < fvu(value, chance.reconstruct(value))


# ---- controls


def test_neurons_reconstruct_themselves() -> None:
    value = mixed()[1]
    found = identity_dictionary(WIDTH)
    assert fvu(value, found.reconstruct(value)) == 0 and found.codes(value).l0 == WIDTH


@pytest.mark.parametrize("directions", ["random", "data"])
def test_a_random_dictionary_has_unit_directions_and_the_best_scale(directions: str) -> None:
    value = mixed()[1]
    found = random_dictionary(rows(), 40, 4, seed=1, directions=directions)
    assert found.weights["encoder"].norm(dim=1) == pytest.approx(torch.ones(40), abs=1e-5)
    assert found.codes(value).l0 == pytest.approx(4)
    error = fvu(value, found.reconstruct(value))
    assert 0 < error < 1
    for factor in (0.9, 1.1):
        other = found.but(weights={**found.weights, "decoder": found.decoder * factor})
        assert fvu(value, other.reconstruct(value)) > error - 1e-9
    assert not torch.equal(random_dictionary(rows(), 40, 4, seed=2).decoder, found.decoder)


def test_a_random_transcoder_has_the_best_linear_map() -> None:
    value = mixed()[1]
    target = value @ torch.randn(WIDTH, 3, generator=torch.Generator().manual_seed(1)) + 1
    linear = frozen(value, target, 400, 40)
    assert linear.out_width == 3 and fvu(target, linear.reconstruct(value)) < 0.5


def test_searched_codes_stand_beside_searched_codes() -> None:
    value = mixed()[1]
    names = {
        rule: matched(identity_dictionary(WIDTH).but(activation=rule, k=3), value, value, 3.0, 0)
        for rule in ("topk", "omp")
    }
    assert list(names["topk"]) == ["random", "data", "PCA", "pursuit"] and list(names["omp"]) == [
        "random",
        "data",
        "PCA",
    ]
    assert names["omp"]["data"].activation == names["topk"]["pursuit"].activation == "omp"
    searched, quick = (fvu(value, names["topk"][name].reconstruct(value)) for name in ("pursuit", "data"))
    assert searched < quick


# ---- what cannot be

REFUSED: dict[str, tuple[Callable[[], Dictionary], str]] = {
    "negative": (lambda: fit_dictionary(InMemory({"a": mixed()[1] - 4}), 3, "nmf"), "never negative.*after a ReLU"),
    "too many": (lambda: fit_dictionary(rows(), WIDTH + 1, "pca"), "at most as many latents as a row has numbers"),
    "few rows": (lambda: fit_dictionary(InMemory({"a": torch.randn(4, WIDTH)}), 5, "k-means"), "4 rows cannot give 5"),
    "none": (lambda: fit_dictionary(rows(), 0, "pca"), "at least one"),
    "unknown": (lambda: fit_dictionary(rows(), 3, "umap"), "no classical decomposition 'umap'; there is pca"),
    "directions": (lambda: random_dictionary(rows(), 3, 1, directions="best"), "'random' and 'data'"),
    "few data": (lambda: random_dictionary(InMemory({"a": torch.randn(4, WIDTH)}), 5, 1, directions="data"),
                 "4 rows for 5"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_said(case: str) -> None:
    make, told = REFUSED[case]
    with pytest.raises(InputError, match=told):
        make()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, *rest: Any) -> Any:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return found(name, *rest)

    found = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ResourceError, match=r"pip install cutaway\[analysis\]"):
        fit_dictionary(rows(), 3, "ica")
