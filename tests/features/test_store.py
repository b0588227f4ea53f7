"""Activations on disk: every row once, in an order that mixes and that a seed fixes, from files that are checked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from words_net import ids, words

from cutaway.errors import FormatError, InputError
from cutaway.features import cutting, store
from cutaway.features.collect import collect
from cutaway.features.rows import InMemory
from cutaway.features.store import Activations, open_activations

SITES = ["resid.1", "L0.mlp.out"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Activations:
    """1,200 rows in many shards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting, "LIMIT", 2000)
        found = collect(words(), ids(200), SITES, tmp_path_factory.mktemp("store") / "made", batch=16, dtype="float32")
    assert len(found.shards) > 15
    return found


def whole(made: Activations, site: str) -> torch.Tensor:
    return torch.cat(list(made.values(site)))


@pytest.mark.parametrize("window", [1 << 30, 9000, 1])
def test_each_row_once_in_a_seeded_order(made: Activations, window: int, monkeypatch) -> None:
    monkeypatch.setattr(store, "WINDOW", window)
    every = {site: whole(made, site) for site in SITES}
    keys = {tuple(row.tolist()): place for place, row in enumerate(torch.cat([every[site] for site in SITES], 1))}
    batches = list(made.batches(50, seed=3))
    assert len(batches) == 24 and all(batch[site].dtype is torch.float32 for batch in batches for site in SITES)
    order = [keys[tuple(row.tolist())] for batch in batches for row in torch.cat([batch[site] for site in SITES], 1)]
    # Equal rows (two equal beginnings of two examples) count as one row.
    assert len(set(order)) == len(keys) and order != sorted(order)
    again = [keys[tuple(row.tolist())] for b in made.batches(50, seed=3) for row in torch.cat([b[s] for s in SITES], 1)]
    other = [keys[tuple(row.tolist())] for b in made.batches(50, seed=4) for row in torch.cat([b[s] for s in SITES], 1)]
    assert order == again and order != other
    for skip in (1, 7, 23, 24, 30):
        rest = list(made.batches(50, seed=3, skip=skip))
        assert len(rest) == max(24 - skip, 0)
        for one, two in zip(rest, batches[skip:], strict=True):
            assert all(torch.equal(one[site], two[site]) for site in SITES)


def test_a_batch_comes_from_everywhere(made: Activations) -> None:
    """With one window the order is that of an even shuffle: a batch's mean place is that of all rows."""
    order = torch.cat([torch.from_numpy(window()) for window, _ in made._windows(0)])
    assert torch.equal(order.sort().values, torch.arange(1200))
    means = order.double().unflatten(0, (12, 100)).mean(1)
    assert float((means - 599.5).abs().max()) < 4 * (1200**2 / 12 / 100) ** 0.5
    assert abs(float(torch.corrcoef(torch.stack([order[:-1].double(), order[1:].double()]))[0, 1])) < 4 / 1200**0.5


def test_batches_leave_out_what_fills_none(made: Activations) -> None:
    assert [len(batch["resid.1"]) for batch in made.batches(700)] == [700]
    assert list(made.batches(700, skip=1)) == []
    same = InMemory({site: whole(made, site) for site in SITES})
    for rows in (made, same):
        assert len(next(rows.batches(1200))["resid.1"]) == 1200
        with pytest.raises(
            InputError, match="There are 1,200 rows, which make no batch of 1,201; ask for a smaller one"
        ):
            next(rows.batches(1201))
        with pytest.raises(InputError, match="at least 1"):
            next(rows.batches(0))


def test_a_changed_number_is_found_by_verify_alone(tmp_path: Path) -> None:
    made = collect(words(), ids(20), SITES, tmp_path / "out")
    path = made.shards[0].path
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    again = open_activations(tmp_path / "out")
    with pytest.raises(FormatError, match="its bytes have changed"):
        again.verify()


def test_no_batch_is_of_no_rows(made: Activations) -> None:
    with pytest.raises(InputError, match="at least 1"):
        next(made.batches(0))


def test_rows_samples_and_examples_agree(made: Activations) -> None:
    net, given = words(), ids(200)
    every = whole(made, "L0.mlp.out")
    picked = torch.tensor([5, 1199, 0, 5, 700])
    assert torch.equal(made.rows("L0.mlp.out", picked), every[picked])
    sample = made.sample(300, seed=1)
    rows = {tuple(row.tolist()) for row in torch.cat([whole(made, site) for site in SITES], 1)}
    assert {tuple(row.tolist()) for row in torch.cat([sample[site] for site in SITES], 1)} <= rows
    assert len(made.sample(10**6)["resid.1"]) == 1200 and len(sample["resid.1"]) == 300
    numbers, positions = made.where(range(1200))
    assert torch.equal(numbers, torch.arange(200).repeat_interleave(6))
    assert torch.equal(positions[:, 0], torch.arange(6).repeat(200))
    assert len(made.examples) == 200
    example = made.examples[123]
    assert example.inputs["0"].tolist() == given[123].tolist() and (example.row, example.rows) == (738, 6)
    torch.testing.assert_close(
        made.rows("resid.1", range(738, 744)), net.record(given[123:124]).value("resid.1")[0], rtol=1e-5, atol=1e-6
    )


def test_what_is_not_there_is_said(made: Activations, tmp_path: Path) -> None:
    for ask, said in (
        (lambda: made.rows("resid.7", [0]), "no values of 'resid.7'"),
        (lambda: made.rows("resid.1", [1200]), "row 1,200"),
        (lambda: made.rows("resid.1", [-1]), "row -1"),
        (lambda: made.examples[200], "no example 200"),
        (lambda: next(made.values("x")), "no values of 'x'"),
    ):
        with pytest.raises(InputError, match=said):
            ask()
    with pytest.raises(FormatError, match="has no manifest.json"):
        open_activations(tmp_path)


BAD = {
    "no JSON": lambda told: "{",
    "another schema": lambda told: told | {"schema": "x"},
    "later": lambda told: told | {"version": 99},
    "no sites": lambda told: {key: value for key, value in told.items() if key != "sites"},
    "sites of another kind": lambda told: told | {"sites": [{"site": 3}]},
    "a shard elsewhere": lambda told: told | {"shards": [{"file": "../x", "examples": [0, 1]}]},
    "a shard that is not there": lambda told: told | {"shards": [{"file": "x.safetensors", "examples": [0, 1]}]},
    "an unknown dtype": lambda told: told | {"dtype": "float8"},
    "a list": lambda told: [told],
    "another range": lambda told: told | {"shards": [{**told["shards"][0], "examples": [0, 7]}]},
    "wrong width": lambda told: told | {"sites": [{**told["sites"][0], "width": 9}]},
    "a site that no shard has": lambda told: told | {"sites": [{**told["sites"][0], "site": "other"}]},
}


@pytest.mark.parametrize("name", BAD)
def test_a_hostile_manifest_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    collect(words(), ids(20), "resid.1", tmp_path)
    path = tmp_path / "manifest.json"
    changed = BAD[name](json.loads(path.read_text()))
    path.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    with pytest.raises(FormatError) as error:
        open_activations(tmp_path)
    assert "\n" not in str(error.value)
    if name == "later":
        assert "later Cutaway" in str(error.value)


def test_hostile_shards_are_refused_or_renewed(tmp_path: Path) -> None:
    """Cut anywhere, a shard is refused when it is opened or verified, never read wrongly, and made again."""
    collect(words(), ids(20), "resid.1", tmp_path)
    shard = next(path for path in tmp_path.iterdir() if path.suffix == ".safetensors")
    data = shard.read_bytes()
    for bad in (b"", data[:7], data[:100], data[:-1], data + b"x", bytes(len(data)), data[:8] + data[9:] + b"{"):
        shard.write_bytes(bad)
        with pytest.raises(FormatError) as error:
            open_activations(tmp_path).verify()
        assert "collect again" in str(error.value) and "\n" not in str(error.value)
        collect(words(), ids(20), "resid.1", tmp_path)
        assert shard.read_bytes() == data
