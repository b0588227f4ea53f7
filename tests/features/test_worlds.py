"""Synthetic worlds: what comes with what, how often, how strongly, and always the same."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from cutaway.errors import InputError
from cutaway.features.codes import Codes
from cutaway.features.worlds import KINDS, MAGNITUDES, SITE, make_world

COUNT = 20_000


def presence(codes: Codes) -> torch.Tensor:
    return codes.dense() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_as_many_features_are_on_as_asked_for(kind: str) -> None:
    world = make_world(kind, 128, 32, 4.0)
    rows, codes = world.truth(COUNT)
    error = float(codes.offsets.diff().double().std()) / COUNT**0.5
    assert codes.l0 == pytest.approx(4.0, abs=5 * error)
    assert torch.allclose(rows, codes.dense() @ world.directions, atol=1e-5)
    assert torch.allclose(world.directions.norm(dim=1), torch.ones(128))


def test_independent_features_come_independently() -> None:
    on = presence(make_world("independent", 64, 16, 8.0).truth(COUNT)[1]).double()
    frequency = on.mean(0)
    assert torch.allclose(frequency, torch.full((64,), 8 / 64, dtype=torch.double), atol=5 * (0.11 / COUNT) ** 0.5)
    correlation = torch.corrcoef(on.T) - torch.eye(64)
    assert correlation.abs().max() < 5 / COUNT**0.5
    assert on.sum(1).var() == pytest.approx(8 * (1 - 8 / 64), rel=0.05)  # as of a binomial


@pytest.mark.parametrize("kind", ["hierarchical", "hierarchical-exclusive"])
def test_a_child_comes_only_with_its_parent(kind: str) -> None:
    world = make_world(kind, 128, 32, 8.0)
    on, parent = presence(world.truth(COUNT)[1]), world.forest.parent
    child = parent >= 0
    assert child.sum() == 6 * 20
    assert not (on[:, child] & ~on[:, parent[child]]).any()
    given = (on[:, child].sum(0) / on[:, parent[child]].sum(0)).mean()
    assert given == pytest.approx(0.2, abs=0.02)


def test_siblings_exclude_each_other() -> None:
    world = make_world("hierarchical-exclusive", 128, 32, 8.0)
    on, parent = presence(world.truth(COUNT)[1]), world.forest.parent
    for node in parent[parent >= 0].unique():
        assert on[:, parent == node].sum(1).max() == 1


def test_of_a_group_at_most_one_is_on() -> None:
    on = presence(make_world("exclusive", 128, 32, 8.0).truth(COUNT)[1])
    assert on.view(COUNT, 16, 8).sum(2).max() == 1


def test_features_of_a_topic_come_together() -> None:
    on = presence(make_world("correlated", 128, 32, 4.0).truth(COUNT)[1]).double()
    correlation = torch.corrcoef(on.T)
    assert correlation[0, 1:8].mean() > 0.4
    assert correlation[0, 8:].mean().abs() < 0.02


def test_frequencies_fall_with_rank() -> None:
    on = presence(make_world("independent", 64, 16, 4.0, zipf=1.0).truth(COUNT)[1])
    frequency = on.double().mean(0)
    assert frequency[0] / frequency[9] == pytest.approx(10, rel=0.15)


@pytest.mark.parametrize("name", MAGNITUDES)
def test_magnitudes_have_mean_one(name: str) -> None:
    values = make_world(features=64, width=16, active=8.0, magnitudes=name).truth(COUNT)[1].values
    assert (values > 0).all()
    assert values.mean() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_always_the_same_and_never_alike(kind: str) -> None:
    world = make_world(kind, 64, 16, 4.0, samples=1000)
    first = [batch[SITE] for batch in world.batches(300, seed=3)]
    assert len(first) == 3
    again = [batch[SITE] for batch in world.batches(300, seed=3, skip=1)]
    assert all(torch.equal(one, other) for one, other in zip(first[1:], again, strict=True))
    assert torch.equal(world.batch_truth(300, 1, seed=3)[0], first[1])
    others = [next(world.batches(300, seed=4))[SITE], world.sample(300, seed=3)[SITE], first[1]]
    assert not any(torch.equal(first[0], other) for other in others)
    assert torch.equal(world.sample(50)[SITE], make_world(kind, 64, 16, 4.0).sample(50)[SITE])


def test_noise_is_added_to_every_number() -> None:
    world = make_world(features=64, width=16, active=4.0, noise=0.5)
    rows, codes = world.truth(COUNT)
    assert (rows - codes.decode(world.directions)).std() == pytest.approx(0.5, rel=0.02)


def test_orthogonal_directions_where_there_is_room() -> None:
    directions = make_world(features=16, width=16, active=2.0).directions
    assert torch.allclose(directions @ directions.T, torch.eye(16), atol=1e-5)


def test_millions_of_rows_take_no_memory() -> None:
    world = make_world(samples=10**12)
    assert len(world) == 10**12
    assert next(islice(world.batches(256, skip=10**9), 1))[SITE].shape == (256, 128)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"kind": "flat"}, "no world 'flat'; there are independent"),
        ({"active": 0.0}, "active between 0 and features"),
        ({"features": 4, "width": 4, "active": 5.0}, "these are 4, 4"),
        ({"kind": "hierarchical", "features": 21, "active": 20.0}, "on always"),
        ({"magnitudes": "huge"}, "no magnitudes 'huge'"),
    ],
)
def test_worlds_that_cannot_be_are_refused(options: dict[str, object], told: str) -> None:
    with pytest.raises(InputError, match=told):
        make_world(**options)  # type: ignore[arg-type]
