"""The index on disk: it holds what the dictionary said, in order, and what is damaged or half-written is told."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from looked import WIDTH, directions, shapes, talk
from torch import Tensor

import cutaway as cw
from cutaway import organisms
from cutaway.errors import FormatError, InputError, ResourceError
from cutaway.features import Codes, Dictionary, cutting, index_build
from cutaway.features.arrays import new_arrays
from cutaway.features.collect import collect
from cutaway.features.index import LatentIndex, build_index, open_index
from cutaway.features.seen import Part, watch


@dataclass
class Given:
    """Rows that are at hand: a table [examples, positions, width]."""

    values: Tensor
    manifest: dict[str, Any] = field(default_factory=dict)

    @property
    def examples(self) -> Sequence[Tensor]:
        generator = torch.Generator().manual_seed(0)
        return list(torch.randint(0, 50, self.values.shape[:2], generator=generator))

    def parts(self, sites: Sequence[str]) -> Iterator[Part]:
        for start in range(0, len(self.values), 100):
            part = self.values[start : start + 100]
            grid = torch.cartesian_prod(torch.arange(start, start + len(part)), torch.arange(part.shape[1]))
            yield Part(dict.fromkeys(sites, part.flatten(0, 1)), grid[:, 0], grid[:, 1:])


@pytest.fixture(scope="module")
def talked(tmp_path_factory: pytest.TempPathFactory) -> tuple[LatentIndex, Tensor]:
    """An index over a language model, and the dense table that it should hold."""
    net, inputs = talk()
    dictionary = directions("resid.4", WIDTH, 60, network=net.fingerprint)
    index = build_index(dictionary, watch(net, inputs, batch=16), tmp_path_factory.mktemp("talk") / "index")
    return index, dictionary.encode(net.record(inputs).value("resid.4").flatten(0, 1))


def test_both_orders_hold_the_dense_table(talked: tuple[LatentIndex, Tensor]) -> None:
    index, dense = talked
    for latent in range(len(index)):
        rows, values = index.of(latent)
        wanted = dense[:, latent].numpy()
        assert set(rows.tolist()) == set(np.flatnonzero(wanted).tolist())
        assert (np.diff(values) <= 0).all() and (np.diff(wanted[rows]) <= 0).all()  # the order is the exact one
        assert np.allclose(values, wanted[rows], rtol=1e-3, atol=1e-3 * max(wanted.max(), 0))
        assert len(rows) == 0 or values[0] == pytest.approx(wanted.max(), rel=1e-6)  # the largest is exact
        assert np.allclose(index.at(latent, 16, 40), wanted[16:40], rtol=1e-3, atol=1e-3 * max(wanted.max(), 0))
    row = index.row(37)
    assert {latent for latent, _ in row} == set(dense[37].nonzero().flatten().tolist())
    assert [value for _, value in row] == sorted((value for _, value in row), reverse=True)


def test_pieces_give_what_one_piece_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The merge sorts few entries at once, with the same result."""
    values = torch.randn(120, 30, 8, generator=torch.Generator().manual_seed(1))
    dictionary = directions("x", 8, 40, k=3)
    whole = build_index(dictionary, Given(values), tmp_path / "whole")
    monkeypatch.setattr(index_build, "ENTRIES", 700)
    pieces = build_index(dictionary, Given(values), tmp_path / "pieces")
    for name, array in whole.arrays.items():
        assert np.array_equal(array, pieces.arrays[name]), name


class Drawn(Dictionary):
    """A dictionary whose codes are drawn, so that a large index costs no large product."""

    def codes(self, value: Tensor) -> Codes:
        latents = (torch.rand(len(value), 3).square() * self.latents).long().sort(1).values
        count = torch.arange(0, 3 * len(value) + 1, 3)
        return Codes(count, latents.flatten() % self.latents, torch.rand(3 * len(value)), self.latents)


def test_large_index_answers(tmp_path: Path) -> None:
    """10^5 rows × 10^3 latents: a page holds each of a latent's firings once."""
    plain = directions("x", 4, 1000, k=2)
    dictionary = Drawn("drawn", "relu", plain.weights, card=plain.card)
    index = build_index(dictionary, Given(torch.zeros(1000, 100, 4)), tmp_path / "large")
    assert index.facts["rows"] == 100_000 and index.facts["entries"] == 300_000 == index.fired.sum()
    latent = int(np.argmax(index.fired))
    rows, activations = index.of(latent)
    page = index.page(latent)
    assert page.top[0].activation == pytest.approx(float(activations[0]))
    assert page.about["fired"] == len(rows) and sum(count for _, _, count, _ in page.intervals) == len(rows)


def test_queries(talked: tuple[LatentIndex, Tensor]) -> None:
    index, dense = talked
    by_density = index.search(sort="density", top=5)
    fired = (dense != 0).sum(0)
    assert by_density[0]["fired"] == int(fired.max())
    assert [row["max"] for row in index.search(sort="max", top=60)] == sorted(
        (row["max"] for row in index.search(sort="max", top=60)), reverse=True
    )
    busy = int(fired.argmax())
    assert [row["latent"] for row in index.search(str(busy), sort="latent")][:1] == [busy]
    best = index.on_token("gave", top=3)
    rows = index.tokens == index.facts["vocabulary"].index("gave")
    share = (dense[torch.from_numpy(rows)][:, best[0]["latent"]] != 0).double().mean()
    assert best[0]["share"] == pytest.approx(float(share))
    assert index.on_example(3)[0]["of_max"] <= 1 + 1e-3
    for wrong in (lambda: index.search(sort="size"), lambda: index.on_token("zebra"), lambda: index.of(60),
                  lambda: index.example(999), lambda: index.page(-1), lambda: index.page(0, parts=0)):  # fmt: skip
        with pytest.raises(InputError):
            wrong()


def test_own_input(talked: tuple[LatentIndex, Tensor]) -> None:
    index, dense = talked
    net, inputs = talk()
    tried = index.try_on(net, inputs[2:3])
    assert tried["tokens"][0] == net.token_text(int(inputs[2, 0]))
    assert {latent for latent, _ in tried["activations"][5]} == set(dense[2 * 16 + 5].nonzero().flatten().tolist())
    one = index.try_on(net, inputs[2:3], 7)["activations"]
    assert np.allclose(one, dense[32:48, 7].numpy(), atol=1e-5)
    with pytest.raises(InputError, match="another network"):
        index.try_on(cw.open("induction"), inputs[2:3])


def test_collected_activations_give_the_same_index(tmp_path: Path) -> None:
    net, inputs = talk(20)
    dictionary = directions("resid.4", WIDTH, 40, network=net.fingerprint)
    kept = collect(net, inputs, ["resid.4"], tmp_path / "kept", dtype="float32")
    index = build_index(dictionary, kept, tmp_path / "collected", net=net)
    plain = build_index(dictionary, watch(net, inputs), tmp_path / "watched")
    for name in ("offsets", "latents", "sorted_rows", "example", "position"):
        assert np.array_equal(index.arrays[name], plain.arrays[name]), name
    assert np.array_equal(index.example(7), inputs[7].numpy()) and index.token_text(int(inputs[7, 0]))


def test_inputs_that_were_not_kept_are_given_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are larger than the values of a site; they are known by the hash of the collection."""
    monkeypatch.setattr(cutting, "SMALL", 0)
    net, images, _ = shapes(12)
    acts = collect(net, images, ["L1.conv.out"], tmp_path / "acts")
    assert not acts.manifest["inputs"]
    made = directions("L1.conv.out", acts.places[0].width, 9)
    with pytest.raises(InputError, match="give inputs="):
        build_index(made, acts, tmp_path / "i")
    other = images.clone()
    other[3, 0, 0, 0] += 1
    with pytest.raises(InputError, match="other data"):
        build_index(made, acts, tmp_path / "i", inputs=other)
    with pytest.raises(InputError, match="other data"):
        build_index(made, acts, tmp_path / "i", inputs=images[:11])
    assert not (tmp_path / "i").exists()
    np.save(tmp_path / "images.npy", images.numpy())
    for given in (images, images.numpy(), tmp_path / "images.npy", str(tmp_path / "images.npy")):
        index = build_index(made, acts, tmp_path / "i", inputs=given)
        assert np.array_equal(index.example(7), images[7].numpy())
    with pytest.raises(InputError, match="network is needed"):
        build_index(made, acts, tmp_path / "i", inputs=(images,))
    with pytest.raises(InputError, match="has its inputs already"):
        build_index(made, watch(net, images), tmp_path / "i", inputs=images)
    halves = collect(net, iter([images[:5], images[5:]]), ["L1.conv.out"], tmp_path / "stream", limit=9)
    index = build_index(made, halves, tmp_path / "s", net=net, inputs=iter([images[:7], images[7:]]))
    assert index.facts["examples"] == 9 and np.array_equal(index.example(8), images[8].numpy())
    with pytest.raises(InputError, match="other data"):
        build_index(made, halves, tmp_path / "s", inputs=other)


def test_texts_are_given_again_in_the_same_contexts(tmp_path: Path) -> None:
    net, inputs = talk(6)
    text = " ".join(net.token_text(int(token)) for token in inputs.flatten())
    (tmp_path / "t.txt").write_text(text)
    (tmp_path / "o.txt").write_text(text.replace("gave", "went"))
    acts = collect(net, tmp_path / "t.txt", ["resid.4"], tmp_path / "acts", context=10, limit=7)
    made = directions("resid.4", WIDTH, 20)
    index = build_index(made, acts, tmp_path / "i", net=net, inputs=tmp_path / "t.txt")
    assert index.facts["examples"] == 7 and np.array_equal(index.example(2), inputs.flatten()[20:30].numpy())
    with pytest.raises(InputError, match="other data"):
        build_index(made, acts, tmp_path / "i", net=net, inputs=tmp_path / "o.txt")


def test_an_index_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values, place = torch.randn(10, 5, 8), tmp_path / "index"
    first = build_index(directions("x", 8, 12), Given(values), place)
    monkeypatch.setattr(index_build, "write_examples", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        build_index(directions("x", 8, 20), Given(values), place)
    assert len(open_index(place)) == len(first) == 12
    monkeypatch.undo()
    assert len(build_index(directions("x", 8, 20), Given(values), place)) == 20
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_bad_rows_and_places(tmp_path: Path) -> None:
    values = torch.randn(10, 5, 8)
    values[3, 2, 1] = torch.nan
    with pytest.raises(InputError, match=r"example 3, position \(2,\)"):
        build_index(directions("x", 8, 12), Given(values), tmp_path / "index")
    row = Part({"x": values[3, 2:3]}, torch.tensor([0]), torch.zeros(1, 0, dtype=torch.long))
    flat = SimpleNamespace(examples=[torch.zeros(8)], manifest={}, parts=lambda sites: iter([row]))
    with pytest.raises(InputError, match="The values at example 0 are not finite"):
        build_index(directions("x", 8, 12), flat, tmp_path / "index")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="something else"):
        build_index(directions("x", 8, 12), Given(values), tmp_path / "mine")
    net, inputs = talk(4)
    with pytest.raises(InputError, match="another network"):
        build_index(directions("resid.4", WIDTH, 12, network="abc"), watch(net, inputs), tmp_path / "other")
    with pytest.raises(InputError, match="classes"):
        build_index(directions("resid.4", WIDTH, 12), watch(net, inputs), tmp_path / "o", classes=([0], ["a"]))
    with pytest.raises(InputError, match="nothing to look at"):
        watch(net, [])


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full, raising=False)
    with pytest.raises(ResourceError, match="No space left"):
        new_arrays(tmp_path / "arrays", {"a": ("float32", (10,))})
    with pytest.raises(ResourceError, match="No space left"):
        build_index(directions("x", 8, 12), Given(torch.randn(4, 5, 8)), tmp_path / "index")


@pytest.mark.parametrize("damage", ["cut", "missing", "manifest", "newer", "labels", "other dictionary"])
def test_damage_is_told(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "index"
    build_index(directions("x", 8, 12), Given(torch.randn(10, 5, 8)), folder)
    manifest, arrays = folder / "manifest.json", folder / "index.safetensors"
    if damage == "cut":
        arrays.write_bytes(arrays.read_bytes()[:-10])
    elif damage == "missing":
        arrays.unlink()
    elif damage == "manifest":
        manifest.write_text("[]")
    elif damage == "newer":
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": 99}))
    elif damage == "labels":
        (folder / "labels.json").write_text('{"0": {}}')
    else:
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"latents": 13}))
    with pytest.raises((FormatError, InputError)):
        open_index(folder).search()


def test_images_and_vectors(tmp_path: Path) -> None:
    """A convolution's positions are height and width; a toy model's rows are whole inputs."""
    net, images, classes = shapes()
    value = net.record(images).value("L1.conv")
    index = build_index(
        directions("L1.conv", value.shape[1], 20, k=2), watch(net, images), tmp_path / "i",
        classes=(classes, [f"shape {one}" for one in range(7)]),
    )  # fmt: skip
    rows, _ = index.of(int(np.argmax(index.fired)))
    example, where = index.arrays["example"][rows[0]], index.arrays["position"][rows[0]]
    dense = index.dictionary.encode(value.movedim(1, -1))
    assert float(dense[int(example), int(where[0]), int(where[1]), int(np.argmax(index.fired))]) > 0
    toy = cw.open("superposition")
    width = next(iter(organisms.load("superposition").module.parameters())).shape[-1]
    inputs = torch.rand(30, width)
    plain = build_index(directions("L0.act", width, 6, k=2), watch(toy, inputs), tmp_path / "v")
    assert plain.facts["axes"] == 0 and plain.facts["rows"] == 30
    assert plain.page(int(np.argmax(plain.fired))).top[0].values_shape == (width,)
