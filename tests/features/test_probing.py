"""Sparse probes, absorption, splitting and stability, on codes in which each was planted."""

from __future__ import annotations

import math

import pytest
import torch

from cutaway.errors import InputError
from cutaway.features import Codes, Dictionary, InMemory
from cutaway.features.absorption import absorption, main_latents
from cutaway.features.evaluate import evaluate_dictionary
from cutaway.features.figures import Figure
from cutaway.features.probing import Concepts, auroc, columns, probes_of, ranked, sparse_probing, whole_probe
from cutaway.features.stability import stability

COUNT, WIDTH, LATENTS, CHILDREN = 4000, 24, 20, 12
PARENT, ABSORBED = 3, 1 / 5


def named(figures: list[Figure]) -> dict[str, Figure]:
    return {one.name: one for one in figures}


def directions() -> torch.Tensor:
    """Orthonormal directions, one a latent."""
    generator = torch.Generator().manual_seed(0)
    return torch.linalg.qr(torch.randn(WIDTH, LATENTS, generator=generator))[0].T.contiguous()


def world(absorb: bool = False, split: bool = False) -> tuple[Codes, torch.Tensor, torch.Tensor, Concepts]:
    """A parent feature, children that come only with it (each on a 60th of the parent's rows), and others.

    With `absorb` the parent's latent is silent where a child is, whose decoder holds both; with `split` two latents
    share the parent's rows. Returns codes, decoder, values and the concept "parent".
    """
    generator = torch.Generator().manual_seed(1)
    true = torch.rand(COUNT, LATENTS, generator=generator) < 0.2
    there = torch.rand(COUNT, generator=generator) < 0.4
    child = torch.randint(0, round(CHILDREN / ABSORBED), (COUNT,), generator=generator)
    table = torch.zeros(COUNT, LATENTS)
    others = slice(4 + CHILDREN, LATENTS)
    table[:, others] = true[:, others] * (0.5 + torch.rand(COUNT, LATENTS, generator=generator))[:, others]
    table[:, PARENT] = there.float()
    for one in range(CHILDREN):
        table[:, 4 + one] = (there & (child == one)).float()
    features = directions()
    value = table @ features + 0.02 * torch.randn(COUNT, WIDTH, generator=generator)
    codes, decoder = table.clone(), features.clone()
    if absorb:
        has_child = there & (child < CHILDREN)
        codes[has_child, PARENT] = 0
        decoder[4 : 4 + CHILDREN] += features[PARENT]
    if split:
        half = torch.arange(COUNT) % 2 == 0
        codes[:, 0] = codes[:, PARENT] * half
        codes[:, PARENT] *= ~half
        decoder[0] = features[PARENT]
    return Codes.of(codes), decoder, value, Concepts.of({"parent": there})


def test_a_planted_absorption_is_found_with_its_absorbers() -> None:
    clean = named(absorption(*world()))
    assert clean["absorption rate"].value == 0 == clean["absorbed fraction"].value
    assert clean["latents per concept"].value == 1
    found = named(absorption(*world(absorb=True)))
    rate = found["absorption rate"]
    assert rate.value == pytest.approx(ABSORBED, abs=0.04) and rate.better == "lower"
    assert rate.low is not None and rate.high is not None and rate.low < ABSORBED < rate.high
    concept = rate.details["concepts"]["parent"]
    assert concept["latents"] == [PARENT]
    assert len(concept["absorbed_by"]) == 10 and set(concept["absorbed_by"]) <= set(range(4, 4 + CHILDREN))
    assert found["absorbed fraction"].value == pytest.approx(rate.value, abs=0.02)


def test_a_planted_split_is_found_and_is_no_absorption() -> None:
    codes, decoder, value, concepts = world(split=True)
    assert sorted(main_latents(codes, concepts.labels["parent"], concepts.fit)) == [0, PARENT]
    found = named(absorption(codes, decoder, value, concepts))
    assert found["latents per concept"].value == 2 and found["absorption rate"].value == 0


def test_one_latent_tells_a_concept_that_it_stands_for() -> None:
    codes, _, value, concepts = world()
    found = named(sparse_probing(codes, concepts))
    assert found["1-sparse probe F1"].value == 1 == found["1-sparse probe AUROC"].value
    assert found["1-sparse probe F1"].details["concepts"]["parent"]["latents"] == [PARENT]
    whole = named(whole_probe(value, concepts, probes_of(value, concepts)))
    assert whole["whole probe F1"].value is not None and whole["whole probe F1"].value > 0.99
    split = named(sparse_probing(world(split=True)[0], concepts))
    assert split["1-sparse probe F1"].value == pytest.approx(2 / 3, abs=0.05)
    assert split["2-sparse probe F1"].value == 1


def test_labels_that_mean_nothing_are_not_learned() -> None:
    codes, _, value, _ = world()
    noise = torch.rand(COUNT, generator=torch.Generator().manual_seed(9)) < 0.5
    concepts = Concepts.of({"noise": noise})
    for figures in (sparse_probing(codes, concepts), whole_probe(value, concepts, probes_of(value, concepts))):
        area = next(one for one in figures if one.name.endswith("AUROC"))
        assert area.low is not None and area.high is not None and area.low < 0.5 < area.high + 0.02
        assert area.high - area.low < 0.1


def test_selection_and_columns_are_those_of_the_dense_table() -> None:
    codes, _, _, concepts = world(absorb=True)
    table, label = codes.dense(), concepts.labels["parent"]
    means = table[concepts.fit & label].mean(0) - table[concepts.fit & ~label].mean(0)
    order = ranked(codes, label, concepts.fit)
    assert means[order].abs().numpy() == pytest.approx(means.abs().sort(descending=True).values.numpy(), abs=1e-6)
    assert torch.equal(columns(codes, torch.tensor([7, 2])), table[:, [7, 2]])


def test_classes_become_concepts_and_examples_stay_on_one_side() -> None:
    groups = torch.arange(100).repeat_interleave(5)
    found = Concepts.of({"digit": groups % 3}, groups=groups)
    assert list(found.labels) == ["digit=0", "digit=1", "digit=2"]
    assert len({tuple(side.tolist()) for side in found.fit.view(100, 5)}) == 2
    with pytest.raises(InputError, match="10 rows with it"):
        Concepts.of({"rare": torch.arange(100) == 0})
    with pytest.raises(InputError, match="no labels"):
        Concepts.of({})
    with pytest.raises(InputError, match="different numbers"):
        Concepts.of({"a": torch.zeros(3), "b": torch.zeros(4)})


def test_area_counts_ties_half() -> None:
    import numpy as np

    assert auroc(np.array([1.0, 1.0, 1.0, 1.0]), np.array([True, False, True, False])) == 0.5
    assert auroc(np.array([3.0, 1.0, 2.0, 0.0]), np.array([True, False, True, False])) == 1


# ---- seeds


def made(seed: int, latents: int = 60, width: int = 32) -> Dictionary:
    table = torch.nn.functional.normalize(
        torch.randn(latents, width, generator=torch.Generator().manual_seed(seed)), dim=1
    )
    return Dictionary("made", "topk", {"encoder": table, "decoder": table}, 3)


def test_a_permuted_and_scaled_copy_is_the_same() -> None:
    own = made(0)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    copy = own.but(weights={"encoder": own.decoder[order], "decoder": 3 * own.decoder[order]})
    for one in stability(own, [copy]):
        assert one.value == pytest.approx(1, abs=1e-4), one.name


def test_another_random_dictionary_is_at_chance() -> None:
    for one in stability(made(0), [made(1), made(2)]):
        assert one.value == pytest.approx(one.controls["random"], abs=0.08), one.name
        assert one.low is not None and one.low <= one.value <= one.high
    overlap = next(one for one in stability(made(0), [made(1)]) if one.name.startswith("overlap"))
    assert overlap.value == pytest.approx(8 / 32, abs=0.12)


def test_signs_matter_only_where_coordinates_have_none() -> None:
    own = made(0)
    turned = own.but(weights={"encoder": -own.decoder, "decoder": -own.decoder})
    assert next(iter(stability(own, [turned]))).value < 0.9
    linear = own.but(activation="identity"), turned.but(activation="identity")
    assert next(iter(stability(linear[0], [linear[1]]))).value == pytest.approx(1)


def test_pairs_of_latents_that_turned_together_match_as_subspaces() -> None:
    """Each pair of latents spans the plane of a pair of the other, at 45 degrees."""
    axes = torch.eye(32)
    plus, minus = (axes[0::2] + axes[1::2]) / math.sqrt(2), (axes[0::2] - axes[1::2]) / math.sqrt(2)
    own = Dictionary("own", "topk", {"encoder": axes, "decoder": axes}, 3)
    turned = torch.cat([plus, minus])
    other = own.but(weights={"encoder": turned, "decoder": turned})
    found = named(stability(own.but(activation="identity"), [other.but(activation="identity")]))
    assert found["matched cosine"].value == pytest.approx(1 / math.sqrt(2), abs=1e-4)
    assert found["in the span of 2"].value == pytest.approx(1, abs=1e-4)


def test_dictionaries_of_other_widths_are_not_compared() -> None:
    with pytest.raises(InputError, match="same place"):
        stability(made(0), [made(0, width=16)])


def test_labels_reach_the_evaluation_beside_the_supervised_probe() -> None:
    codes, decoder, value, concepts = world()
    features = directions()
    own = Dictionary(
        "own", "relu", {"encoder": features, "decoder": features, "encoder_bias": torch.full((LATENTS,), -0.1)}
    )
    found = evaluate_dictionary(own, InMemory({"a": value}), labels={"parent": concepts.labels["parent"].tolist()})
    one = found.figure("1-sparse probe F1")
    assert one.value == 1 and {"random", "PCA", "neurons", "probe"} <= set(one.controls)
    assert one.controls["random"] < 0.95 < one.controls["probe"]
