"""Dictionaries: one algebra for all kinds, sparse and dense alike, and a file that gives back what was saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cutaway import CutawayError
from cutaway.basis import edit_in
from cutaway.errors import FormatError, InputError
from cutaway.features import Card, Codes, Dictionary, InMemory, Place, fvu, load_dictionary, save_dictionary
from cutaway.features.codes import RULES
from cutaway.features.dictionary import PER_ROW

WIDTH, LATENTS = 6, 21


def made(activation: str = "topk", per_row: str = "", skip: bool = False, out: int = WIDTH) -> Dictionary:
    torch.manual_seed(0)
    weights = {
        "encoder": torch.randn(LATENTS, WIDTH), "decoder": torch.randn(LATENTS, out),
        "encoder_bias": torch.randn(LATENTS) / 4, "center": torch.randn(WIDTH), "decoder_bias": torch.randn(out),
    }  # fmt: skip
    if skip:
        weights["skip"] = torch.randn(WIDTH, out)
    extra = {name: torch.rand(LATENTS) + 0.1 for name in ("threshold", "scale", "magnitude_bias")}
    place = Place("resid.1", WIDTH, "abc")
    card = Card((place,), (place,), "net", {"l0": 3.0, "fvu": 0.25})
    return Dictionary("made", activation, weights, 3, extra, per_row, card)


def rows(count: int = 50) -> torch.Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("activation", RULES)
@pytest.mark.parametrize("per_row", ["", *PER_ROW])
@pytest.mark.parametrize("skip", [False, True])
def test_sparse_codes_are_the_dense_ones(activation: str, per_row: str, skip: bool) -> None:
    dictionary, value = made(activation, per_row, skip), rows()
    codes = dictionary.codes(value)
    assert torch.allclose(codes.dense(), dictionary.encode(value))
    [(again, whole)] = dictionary.reconstructions(value)
    assert torch.equal(again.latents, codes.latents)
    assert torch.allclose(whole, dictionary.reconstruct(value), atol=1e-5)


def test_topk_keeps_the_largest_that_are_positive() -> None:
    coordinates = made("topk").encode(rows())
    pre = made("topk").pre_activations(rows())
    assert (coordinates >= 0).all()
    assert ((coordinates > 0).sum(1) == pre.gt(0).sum(1).clamp(max=3)).all()
    kept = pre.masked_fill(coordinates == 0, float("inf")).min(1).values
    left = pre.masked_fill(coordinates > 0, -float("inf")).max(1).values
    assert (kept >= left).all()


def test_gate_decides_and_magnitude_says_how_much() -> None:
    dictionary = made("gated")
    pre, found = dictionary.pre_activations(rows()), dictionary.encode(rows())
    assert (found[pre <= 0] == 0).all()
    expected = (pre * dictionary.extra["scale"] + dictionary.extra["magnitude_bias"]).relu()
    assert torch.allclose(found[pre > 0], expected[pre > 0])


def test_rows_of_another_scale_and_mean_have_the_same_code_per_row() -> None:
    dictionary, value = made("topk", per_row="standard"), 10 * rows()
    scaled = dictionary.encode(3 * value + 5)
    assert torch.allclose(scaled, 3 * dictionary.encode(value), rtol=1e-3)
    again = 3 * dictionary.reconstruct(value) + 5
    assert torch.allclose(dictionary.reconstruct(3 * value + 5), again, rtol=1e-3, atol=1e-3)


def test_an_edit_keeps_the_error_term() -> None:
    dictionary, value = made(), rows()
    assert torch.allclose(edit_in(dictionary, value, lambda c: c), value, atol=1e-5)

    def without(coordinates: torch.Tensor) -> torch.Tensor:
        return coordinates * (torch.arange(LATENTS) != 4)

    change = edit_in(dictionary, value, without) - value
    assert torch.allclose(change, -dictionary.encode(value)[:, 4:5] * dictionary.decoder[4], atol=1e-5)


def test_codes_join_and_count() -> None:
    table = made().encode(rows())
    codes = Codes.joined([Codes.of(table[:10]), Codes.of(table[10:10]), Codes.of(table[10:])])
    assert torch.equal(codes.dense(), table)
    assert codes.l0 == pytest.approx(float((table != 0).sum(1).double().mean()))
    assert torch.allclose(codes.decode(made().decoder), table @ made().decoder, atol=1e-5)


def test_fvu_has_its_fixed_points() -> None:
    value = rows()
    assert fvu(value, value) == 0
    assert fvu(value, value.mean(0).expand_as(value)) == pytest.approx(1)


@pytest.mark.parametrize("activation", RULES)
def test_a_file_gives_back_what_was_saved(activation: str, tmp_path: Path) -> None:
    dictionary = made(activation, skip=True, out=4)
    found = load_dictionary(save_dictionary(dictionary, tmp_path / "d.safetensors"))
    assert (found.kind, found.activation, found.k, found.card) == ("made", activation, 3, dictionary.card)
    assert torch.equal(found.reconstruct(rows()), dictionary.reconstruct(rows()))


def test_tied_weights_can_be_saved(tmp_path: Path) -> None:
    table = torch.randn(4, 3)
    tied = Dictionary("tied", "relu", {"encoder": table, "decoder": table})
    assert torch.equal(load_dictionary(save_dictionary(tied, tmp_path / "d")).decoder, table)


BAD_HEADS = {
    "later": ('{"version": 99}', "later Cutaway"),
    "no json": ("{", "damaged"),
    "no card": ('{"version": 1, "kind": "x", "activation": "relu", "k": 0, "per_row": ""}', "damaged"),
    "strange rule": (
        '{"version": 1, "kind": "x", "activation": "eval", "k": 0, "per_row": "", '
        '"card": {"reads": [], "writes": []}}',
        "no activation 'eval'",
    ),
}


@pytest.mark.parametrize("case", BAD_HEADS)
def test_a_bad_file_is_refused_in_a_sentence(case: str, tmp_path: Path) -> None:
    head, told = BAD_HEADS[case]
    tensors = {"weights.encoder": torch.randn(4, 3), "weights.decoder": torch.randn(4, 3)}
    save_file(tensors, tmp_path / "d.safetensors", {"cutaway.dictionary": head})
    with pytest.raises(FormatError, match=told):
        load_dictionary(tmp_path / "d.safetensors")


def test_other_files_are_no_dictionaries(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(FormatError, match="no dictionary"):
        load_dictionary(tmp_path / "other.safetensors")
    head = {"cutaway.dictionary": '{"version": 1}'}
    save_file({"weights.encoder": torch.zeros(2, 2)}, tmp_path / "half.safetensors", head)
    with pytest.raises(FormatError, match="lacks the decoder"):
        load_dictionary(tmp_path / "half.safetensors")


def test_rows_of_another_width_are_refused() -> None:
    with pytest.raises(InputError, match="6 numbers and was given rows of 5"):
        made().encode(torch.zeros(3, 5))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, "no rows"),
        ({"a": torch.zeros(3, 2), "b": torch.zeros(4, 2)}, "'a' 3, 'b' 4"),
        ({"a": torch.tensor([[0.0, 1.0], [float("nan"), 0.0]])}, "Row 1 of 'a' is not finite"),
        ({"a": torch.zeros(3)}, "no table"),
    ],
)
def test_rows_that_are_none_are_refused(values: dict[str, torch.Tensor], told: str) -> None:
    with pytest.raises(CutawayError, match=told):
        InMemory(values)


def test_batches_give_every_row_once_in_a_seeded_order() -> None:
    rows = InMemory({"a": torch.arange(10.0)[:, None], "b": -torch.arange(10.0)[:, None]})
    first = list(rows.batches(2, seed=3))
    assert torch.cat([batch["a"] for batch in first]).flatten().sort().values.tolist() == list(range(10))
    assert all(torch.equal(batch["a"], -batch["b"]) for batch in first)
    again = list(rows.batches(2, seed=3, skip=2))
    assert all(torch.equal(one["a"], other["a"]) for one, other in zip(first[2:], again, strict=True))
    assert not torch.equal(first[0]["a"], next(iter(rows.batches(2, seed=4)))["a"])
