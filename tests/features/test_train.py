"""Training: every kind keeps the same promises, and a training that was stopped goes on as if it had not been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from cutaway.errors import FormatError, InputError
from cutaway.features.architectures import KINDS
from cutaway.features.checkpoints import NAME
from cutaway.features.codes import Codes
from cutaway.features.dictionary import Dictionary, concatenated, fvu
from cutaway.features.files import read_dictionary, save_dictionary
from cutaway.features.refit import BOUNDS as GAINS_WITHIN
from cutaway.features.refit import gains, lowers
from cutaway.features.rows import InMemory
from cutaway.features.train import SPARSE_FROM, train_dictionary
from cutaway.report.train_text import trained as shown_training

WIDTH, FEATURES, ACTIVE, LATENTS, K = 12, 24, 2, 24, 2
SAMPLES, BATCH, RATE = 48_000, 256, 0.02
# The most variance that a kind may leave unexplained on the synthetic rows.
BOUNDS = dict.fromkeys(KINDS, 0.25) | {"relu": 0.5, "crosscoder": 0.45, "cross-layer-transcoder": 0.45}
UNUSUAL = [kind for kind in KINDS if kind not in ("topk", "gated", "crosscoder")]
SEVERAL = ("crosscoder", "cross-layer-transcoder", "transcoder", "skip-transcoder")


def slowly(*cases: str) -> list[Any]:
    """Cases that are run apart."""
    return [pytest.param(case, marks=pytest.mark.slow) for case in cases]


@cache
def drawn(scale: float = 1.0, shift: float = 0.0) -> InMemory:
    """Sparse sums of random directions at two sites, the same features at both in directions of their own."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.zeros(20_000, FEATURES)
    chosen = torch.rand(codes.shape, generator=generator).topk(ACTIVE).indices
    codes.scatter_(1, chosen, 1 + torch.rand(len(codes), ACTIVE, generator=generator))
    first, second = (torch.randn(FEATURES, WIDTH, generator=generator) for _ in range(2))
    sites = {"resid.0": codes @ first, "resid.1": codes @ second}
    return InMemory({site: value * scale + shift for site, value in sites.items()}, {"hash": "h"}, "net")


def ends(kind: str) -> dict[str, Any]:
    sites = ["resid.0", "resid.1"]
    if kind in ("transcoder", "skip-transcoder"):
        return {"reads": sites[:1], "writes": sites[1:]}
    return {"reads": sites, "writes": sites} if kind in SEVERAL else {"reads": sites[:1]}


@cache
def trained(kind: str, scale: float = 1.0, shift: float = 0.0, seed: int = 0) -> Dictionary:
    return train_dictionary(
        drawn(scale, shift), LATENTS, K, kind=kind, seed=seed, samples=SAMPLES, batch=BATCH, lr=RATE, **ends(kind)
    )


def values(dictionary: Dictionary, rows: InMemory) -> tuple[Tensor, Tensor]:
    held = rows.sample(4000, seed=1)
    read, write = (
        concatenated(held, tuple(p.site for p in end)) for end in (dictionary.card.reads, dictionary.card.writes)
    )
    return read, write


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_reaches_its_l0_and_explains_the_rows(kind: str) -> None:
    dictionary = trained(kind)
    x, y = values(dictionary, drawn())
    l0 = dictionary.codes(x).l0
    assert l0 == pytest.approx(K, rel=0.1)
    unexplained = fvu(y, dictionary.reconstruct(x))
    assert unexplained < BOUNDS[kind]
    reference = dictionary.card.reference
    assert reference["fvu"] == pytest.approx(unexplained, abs=0.05)
    assert reference["l0"] == pytest.approx(K, rel=0.1)
    assert 0 <= dictionary.card.training["dead"] <= LATENTS // 2
    generator = torch.Generator().manual_seed(1)
    strange = torch.randn(dictionary.decoder.shape, generator=generator)
    strange = strange / strange.norm(dim=1, keepdim=True) * dictionary.decoder.norm(dim=1, keepdim=True)
    assert unexplained < fvu(y, dictionary.but(weights={**dictionary.weights, "decoder": strange}).reconstruct(x)) - 0.1


@pytest.mark.parametrize("kind", ["topk", "gated", "crosscoder", *slowly(*UNUSUAL)])
def test_units_and_the_mean_make_no_difference(kind: str) -> None:
    """Rows a thousand times as large, on another mean: the same codes up to that factor."""
    dictionary, other = trained(kind), trained(kind, 1024.0, 3000.0)
    x = values(dictionary, drawn())[0]
    ours, theirs = dictionary.encode(x), other.encode(x * 1024 + 3000) / 1024
    # float32 rounds values on a mean of 3,000 to 2e-4, which training then amplifies
    assert float((ours - theirs).norm() / ours.norm()) < 0.15
    assert other.card.reference["fvu"] == pytest.approx(dictionary.card.reference["fvu"], abs=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_and_the_file_gives_it_back(kind: str, tmp_path: Path) -> None:
    def short(seed: int) -> Dictionary:
        return train_dictionary(drawn(), LATENTS, K, kind=kind, samples=2560, batch=128, seed=seed, **ends(kind))

    first, again, other = short(3), short(3), short(4)
    assert all(torch.equal(tensor, again.weights[name]) for name, tensor in first.weights.items())
    assert not torch.equal(first.decoder, other.decoder)
    found = read_dictionary(save_dictionary(first, tmp_path / "d.safetensors"))
    x = values(first, drawn())[0]
    assert torch.equal(found.reconstruct(x), first.reconstruct(x))
    assert found.card.training["kind"] == kind and found.card.reference["rows"] > 0


@pytest.mark.parametrize("kind", ["topk", "jumprelu", *slowly("batchtopk", "gated", "skip-transcoder")])
def test_a_stopped_training_goes_on_exactly(kind: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"kind": kind, "samples": 24_000, "batch": 128, **ends(kind)}
    whole = train_dictionary(drawn(), LATENTS, K, **options)

    def stop(told: str, done: int, of: int) -> None:
        if done == 170:  # in the second pass over the rows
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"after step 170 of 18\d.*goes on from there"):
        train_dictionary(drawn(), LATENTS, K, folder=tmp_path, progress=stop, **options)
    steps: list[int] = []
    found = train_dictionary(
        drawn(), LATENTS, K, folder=tmp_path, progress=lambda told, done, of: steps.append(done), **options
    )
    assert steps[0] == 171
    for name, tensor in whole.weights.items():
        assert torch.equal(tensor, found.weights[name]), name
    assert all(torch.equal(tensor, found.extra[name]) for name, tensor in whole.extra.items())
    with pytest.raises(InputError, match="seed = 0, and this one has 1"):
        train_dictionary(drawn(), LATENTS, K, folder=tmp_path, seed=1, **options)


@pytest.mark.parametrize("rule", ["topk", "batchtopk", "matryoshka"])
@pytest.mark.parametrize("kind", ["autoencoder", *slowly("transcoder")])
def test_the_sparse_step_is_the_dense_one(rule: str, kind: str) -> None:
    """Also where latents are dead: they are after ten steps of not firing, and then learn again."""
    where = ends("transcoder" if kind == "transcoder" else rule)
    name = kind if kind == "transcoder" else rule
    given: dict[str, Any] = {"kind": name, "rule": rule, "samples": 6400, "batch": 128, "dead_after": 1280, **where}
    dense = train_dictionary(drawn(), SPARSE_FROM, 3, dense=True, **given)
    sparse = train_dictionary(drawn(), SPARSE_FROM, 3, **given)
    assert dense.card.training["dead"] > 0
    for part, tensor in {**dense.weights, **dense.extra}.items():
        assert torch.allclose(tensor, {**sparse.weights, **sparse.extra}[part], rtol=1e-3, atol=1e-4), part


def test_matryoshka_prefixes_reconstruct_by_themselves() -> None:
    """A prefix alone does better than the same prefix of a dictionary that was not trained for it."""
    nested, flat = (
        train_dictionary(
            drawn(), LATENTS, K, kind=kind, reads=["resid.0"], samples=SAMPLES, batch=BATCH, lr=RATE, **options
        )
        for kind, options in (("matryoshka", {"prefixes": [6, 12, 24]}), ("batchtopk", {}))
    )
    x = values(nested, drawn())[0]

    def by_prefix(dictionary: Dictionary, count: int) -> float:
        codes = dictionary.encode(x) * (torch.arange(LATENTS) < count)
        return fvu(x, dictionary.decode(codes))

    losses = [by_prefix(nested, count) for count in (6, 12, 24)]
    assert losses[0] > losses[1] > losses[2]
    assert losses[0] < by_prefix(flat, 6) - 0.05 and losses[1] < by_prefix(flat, 12) - 0.05


def test_a_skip_path_without_latents_is_linear_regression() -> None:
    made = train_dictionary(
        drawn(), LATENTS, 0.01, kind="skip-transcoder", samples=16_000, batch=128, **ends("skip-transcoder")
    )
    held = drawn().sample(20_000, seed=1)
    x, y = held["resid.0"], held["resid.1"]
    wide = torch.cat([x, torch.ones(len(x), 1)], 1)
    regression = wide @ torch.linalg.lstsq(wide, y).solution
    assert fvu(regression, made.reconstruct(x)) < 0.02
    assert fvu(y, made.reconstruct(x)) == pytest.approx(fvu(y, regression), abs=0.02)


def test_a_cross_layer_transcoder_reads_one_place_and_writes_no_earlier_one() -> None:
    made = trained("cross-layer-transcoder")
    half = LATENTS // 2
    assert (made.weights["encoder"][:half, WIDTH:] == 0).all() and (made.weights["encoder"][half:, :WIDTH] == 0).all()
    assert (made.decoder[half:, :WIDTH] == 0).all() and (made.decoder[:half] != 0).all()


def test_a_crosscoder_weighs_places_alike_whatever_their_units() -> None:
    """One site a thousand times the other: the same codes, and both reconstructed as well as before."""
    plain = trained("crosscoder")
    rows = InMemory({"resid.0": drawn().values["resid.0"], "resid.1": drawn().values["resid.1"] * 1024})
    other = train_dictionary(rows, LATENTS, K, samples=SAMPLES, batch=BATCH, lr=RATE, kind="crosscoder")
    x, y = values(plain, drawn())[0], values(other, rows)[0]
    for part in (slice(0, WIDTH), slice(WIDTH, 2 * WIDTH)):
        ours, theirs = fvu(x[:, part], plain.reconstruct(x)[:, part]), fvu(y[:, part], other.reconstruct(y)[:, part])
        assert theirs == pytest.approx(ours, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["relu", "gated", "jumprelu"])
@pytest.mark.parametrize("k", [1, 5])
def test_l0_is_steered_to_what_is_asked(kind: str, k: int) -> None:
    made = train_dictionary(drawn(), 48, k, kind=kind, reads=["resid.1"], samples=SAMPLES, batch=BATCH, lr=RATE)
    assert made.codes(drawn().sample(4000, seed=1)["resid.1"]).l0 == pytest.approx(k, rel=0.1)


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from cutaway.features.refit import gains
from cutaway.features.rows import InMemory
from cutaway.features.train import train_dictionary
from cutaway.features.files import save_dictionary
rows = InMemory({"a": torch.randn(20_000, 16, generator=torch.Generator().manual_seed(0))})
def say(told, done, of):
    if done == 200: print("going", flush=True)
made = train_dictionary(rows, 64, 4, samples=50_000, batch=64, folder=sys.argv[1] or None, progress=say)
save_dictionary(made.but(card=made.card.but(training={})), sys.argv[2])
"""


@pytest.mark.slow
def test_a_process_interrupted_in_the_middle_goes_on_exactly(tmp_path: Path) -> None:
    def started(folder: str, out: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", SCRIPT, folder, str(tmp_path / out)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(words, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes)

    process = started(str(tmp_path / "state"), "never")
    assert process.stdout is not None and process.stdout.readline() == "going\n"
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=60)[1]
    assert process.returncode != 0 and "goes on from there" in told
    assert not (tmp_path / "never").exists() and (tmp_path / "state" / NAME).exists()
    for folder, out in ((str(tmp_path / "state"), "resumed"), ("", "whole")):
        process = started(folder, out)
        assert process.communicate(timeout=120)[1] == "" and process.returncode == 0
    assert (tmp_path / "resumed").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_damaged_checkpoint_is_refused_in_a_sentence(tmp_path: Path) -> None:
    options: dict[str, Any] = {"samples": 2560, "batch": 128, "folder": tmp_path, **ends("topk")}
    train_dictionary(drawn(), LATENTS, K, **options)
    data = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(data[: len(data) // 2])
    with pytest.raises(FormatError, match="damaged checkpoint"):
        train_dictionary(drawn(), LATENTS, K, **options)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "too few rows": ({"latents": 30_000}, "20,000 rows for 30,000 latents"),
    "too few samples": ({"samples": 10}, "10 samples are fewer than the 24 latents"),
    "k too large": ({"k": 24}, "k = 24 latents of 24"),
    "k too small": ({"k": 0}, "k is 0; give how many"),
    "k no number": ({"k": "many"}, "k is 'many'"),
    "latents no number": ({"latents": 2.5}, "latents is 2.5; give a whole number"),
    "half a latent": ({"kind": "topk", "k": 1.5}, "whole number of latents for each row, not 1.5"),
    "unknown kind": ({"kind": "topkk"}, "no kind 'topkk' to train; the nearest are topk"),
    "unknown option": ({"lrr": 1.0}, "no option 'lrr'; the nearest are lr"),
    "unknown rule": ({"rule": "softmax"}, "no rule 'softmax'"),
    "unknown place": ({"reads": ["resid.7"]}, "no rows of 'resid.7'; there are those of resid.0, resid.1"),
    "no place": ({"reads": None}, "say which of them a batchtopk dictionary reads"),
    "transcoder without writes": ({"kind": "transcoder"}, "a transcoder dictionary reads and writes"),
    "other writes": ({"writes": ["resid.1"]}, "writes what it reads; for other places train kind='transcoder'"),
    "one place": ({"kind": "crosscoder"}, "A crosscoder reads several places"),
    "prefixes": ({"kind": "matryoshka", "prefixes": [4, 8]}, "rising numbers that end with the 24 latents"),
    "a batch of all": ({"batch": 20_000}, "leaves none of 20,000 to be kept out"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_is_refused_in_a_sentence(case: str) -> None:
    given, told = REFUSED[case]
    with pytest.raises(InputError, match=told):
        train_dictionary(drawn(), **{"latents": LATENTS, "k": K, "reads": ["resid.0"], **given})


def test_a_constant_place_and_a_diverging_training_are_told() -> None:
    with pytest.raises(InputError, match="'a' has the same value in all rows"):
        train_dictionary(InMemory({"a": torch.ones(1000, 4)}), 8, 2)
    with pytest.raises(InputError, match=r"not finite at step \d+ of .*smaller lr than 1.0e\+30"):
        train_dictionary(drawn(), LATENTS, K, reads=["resid.0"], samples=6400, batch=128, lr=1e30)


def test_gains_undo_what_was_shrunk() -> None:
    """Codes that were divided by known numbers are given back by multiplying with those."""
    generator = torch.Generator().manual_seed(0)
    table = torch.rand(2000, LATENTS, generator=generator) * (torch.rand(2000, LATENTS, generator=generator) < 0.1)
    decoder = torch.nn.functional.normalize(torch.randn(LATENTS, WIDTH, generator=generator))
    shrunk = 1 + torch.rand(LATENTS, generator=generator)
    found = gains(Codes.of(table / shrunk), decoder, table @ decoder)
    assert torch.allclose(found, shrunk, rtol=0.02)


@pytest.mark.parametrize("size", [1.0, 30.0, 100.0, 1000.0])
def test_refitting_harms_no_rows_with_one_large_dimension(size: float) -> None:
    """Nearly parallel latents, whose gains without bounds destroy the reconstruction."""
    scale = torch.ones(WIDTH).index_fill_(0, torch.tensor([WIDTH - 1]), size)
    x = drawn().values["resid.0"] * scale + 3 * (scale - 1)
    given: dict[str, Any] = {"kind": "relu", "samples": 24_000, "batch": 128}
    plain, refitted = (
        train_dictionary(InMemory({"a": x}), LATENTS, K, refit=refit, **given) for refit in (False, True)
    )
    assert fvu(x, refitted.reconstruct(x)) <= fvu(x, plain.reconstruct(x)) + 1e-6
    assert plain.codes(x).l0 == pytest.approx(K, rel=0.1)


def test_gains_stay_within_bounds_and_are_one_where_nothing_fires() -> None:
    """Two equal latents that together write a row and its like: any gains of the same sum do; a third never fires."""
    table = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    decoder = torch.nn.functional.normalize(torch.ones(3, 4))
    codes = Codes.of(table)
    for factor, wanted in ((3.0, 3.0), (100.0, GAINS_WITHIN[1]), (-5.0, GAINS_WITHIN[0])):
        found = gains(codes, decoder, factor * table @ decoder)
        assert torch.allclose(found, torch.tensor([wanted, wanted, 1.0]), rtol=0.01)
    none = Codes.of(torch.zeros(2, 3))
    assert torch.equal(gains(none, decoder, torch.ones(2, 4)), torch.ones(3))


def test_gains_are_kept_only_where_they_help_beyond_chance() -> None:
    table, decoder = torch.rand(200, 4, generator=torch.Generator().manual_seed(0)), torch.eye(4)
    codes, target = Codes.of(table), 2 * table
    assert lowers(torch.full((4,), 2.0), codes, decoder, target)
    assert not lowers(torch.ones(4), codes, decoder, target) and not lowers(
        torch.full((4,), 0.5), codes, decoder, target
    )
    target[1:] = table[1:]  # one row gains what all others lose a little
    assert not lowers(torch.full((4,), 1.001), codes, decoder, target)


@pytest.mark.parametrize("kind", ["relu", "gated"])
@pytest.mark.parametrize("count", [500, 2000])
def test_l0_is_reached_on_few_rows_on_average(kind: str, count: int) -> None:
    """Far from k were the penalty alone to decide: there are too few steps to steer it."""
    x = drawn().values["resid.0"][:count]
    made = train_dictionary(InMemory({"a": x}), 48, 4, kind=kind)
    batch, rows = made.card.training["batch"], made.card.reference["rows"]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    seen = x[order[: count // batch * batch - rows]]
    assert made.codes(seen).l0 == pytest.approx(4, rel=0.02)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_tiny_batches_are_refitted_too(batch: int) -> None:
    rows = InMemory({"a": drawn().values["resid.0"][:60]})
    made = train_dictionary(rows, 8, 2, kind="relu", batch=batch, samples=120)
    assert all(bool(tensor.isfinite().all()) for tensor in made.weights.values())


@pytest.mark.parametrize(("count", "least"), [(20_000, 1024), (3000, 300), (200, 20)])
def test_a_tenth_of_the_rows_or_a_thousand_are_kept_out(count: int, least: int) -> None:
    x = drawn().values["resid.0"][:count]
    card = train_dictionary(InMemory({"a": x}), LATENTS, K, samples=1280).card
    assert least <= card.reference["rows"] <= least + card.training["batch"]


def test_what_is_missed_on_rows_kept_out_is_told() -> None:
    """With few rows of noise and many latents nothing general can be learnt."""
    x = torch.randn(300, 16, generator=torch.Generator().manual_seed(0))
    bad = train_dictionary(InMemory({"a": x}), 200, 4, kind="gated", samples=20_000, lr=0.01).card
    l0, unexplained = bad.reference["l0"], bad.reference["fvu"]
    assert abs(l0 - 4) > 0.4 or unexplained >= 1
    (note,) = bad.training["notes"]
    assert f"{l0:.3g} latents fire on a row where 4 were asked for" in note and f"FVU is {unexplained:.3g}" in note
    good = trained("batchtopk").card
    assert good.training["notes"] == []
    for card, words in ((bad, " ".join(note.split()[:6])), (good, "")):
        told = {
            "kind": "gated", "activation": "gated", "latents": 200, "k": 4, "out": "file", **card.to_dict(),
        }  # fmt: skip
        console = Console(width=300)
        with console.capture() as shown:
            console.print(shown_training(told))
        assert words in shown.get() and ("train on more rows" in shown.get()) == bool(words)


def test_refitting_changes_no_firing_and_explains_more() -> None:
    given: dict[str, Any] = {"kind": "relu", "reads": ["resid.0"], "samples": SAMPLES, "batch": BATCH, "lr": RATE}
    plain, refitted = (train_dictionary(drawn(), LATENTS, K, refit=refit, **given) for refit in (False, True))
    x = values(plain, drawn())[0]
    assert torch.equal(plain.encode(x) > 0, refitted.encode(x) > 0)
    assert fvu(x, refitted.reconstruct(x)) < fvu(x, plain.reconstruct(x)) - 0.1
