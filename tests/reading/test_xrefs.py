"""Cross-references: planted edges are recalled, strengths are the weights', shares are what patches say, and indices
of a project are found again and grow old."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import cutaway as cw
from cutaway import organisms
from cutaway.cli import main
from cutaway.commands import verbs
from cutaway.errors import InputError, SiteError
from cutaway.project import Project
from cutaway.reading import Index, build_index, contributed, used

PLANTED = ("induction", "indirect-object", "shapes", "counter")


def planted(name: str) -> tuple[cw.Trace, dict[str, set[str]], organisms.Truth]:
    """A run, the writers of each reader among the known edges, and what is known."""
    organism = organisms.load(name)
    assert organism.truth is not None
    found: dict[str, set[str]] = defaultdict(set)
    for edge in organism.truth.edges:
        writer, reader = edge.split(" -> ")
        found[reader].add(writer)
    # The outputs that the behaviour is about; others are the distractor's.
    found[f"logits[vocab=0:{organism.truth.figures['behaviour_outputs']}]"] = found.pop("logits")
    return cw.open(name).record(organism.pairs(16, 0).clean), found, organism.truth


@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.parametrize("how", ["static", "dynamic"])
def test_known_writers_come_first(name: str, how: str) -> None:
    """Top-k recall 1.0, where k is how many writers the reader is known to have."""
    trace, known, _ = planted(name)
    index = build_index(trace)
    for reader, writers in known.items():
        if how == "static":
            rows = index.writers_of(reader, len(writers), neurons=False)
        else:
            rows = contributed(trace, reader, len(writers), neurons=False).rows
        assert {row.name for row in rows} == writers, reader


@pytest.mark.parametrize("name", PLANTED)
def test_both_directions_tell_the_same_edges(name: str) -> None:
    trace, known, truth = planted(name)
    index = build_index(trace)
    for edge in truth.edges:
        writer, reader = edge.split(" -> ")
        assert reader in {row.name for row in index.readers_of(writer, 1000, neurons=False)}, edge
        assert reader in {row.name for row in used(trace, writer, 1000, neurons=False).rows}, edge


@pytest.mark.parametrize("name", PLANTED)
def test_shares_and_the_constant_add_up_to_one(name: str) -> None:
    trace, known, _ = planted(name)
    for reader in known:
        found = contributed(trace, reader, 10_000)
        assert sum(row.share for row in found.rows) + found.constant == pytest.approx(1, abs=1e-4), reader


@pytest.fixture(scope="module")
def small() -> cw.Trace:
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=3, n_embd=32, n_head=4, vocab_size=90, n_positions=16)
    return cw.open(transformers.GPT2LMHeadModel(config).eval()).record(torch.tensor([[5, 2, 7, 1]]), use_cache=False)


@pytest.mark.parametrize(
    ("reader", "writer"),
    [("L2.mlp.n5.in", "L0.mlp.n7"), ("L2.attn.h1.q", "L0.attn.h3"), ("L1.attn.h0.v", "L0.mlp.n2"),
     ("logits", "L1.attn.h2")],
)  # fmt: skip
def test_strengths_are_those_of_virtual_weights(small: cw.Trace, reader: str, writer: str) -> None:
    index = build_index(small)
    wanted = cw.virtual_weights(small, reader, writer, norm="unit").norm()
    (row,) = [row for row in index.writers_of(reader, 10_000) if row.name == writer]
    assert abs(row.strength) == pytest.approx(wanted, rel=2e-3)
    (row,) = [row for row in index.readers_of(writer, 10_000) if row.name == reader]
    assert abs(row.strength) == pytest.approx(wanted, rel=2e-3)


def test_a_token_reads_and_writes_as_its_rows_do(small: cw.Trace) -> None:
    index = build_index(small)
    model = small.net.module
    w = model.transformer.h[0].mlp.c_proj.weight[4].detach()
    (row,) = [row for row in index.writers_of("logits[vocab=11]", 10_000) if row.name == "L0.mlp.n4"]
    assert row.strength == pytest.approx(float((w - w.mean()) @ model.lm_head.weight[11].detach()), rel=2e-3)
    r, e = model.transformer.h[1].mlp.c_fc.weight[:, 3].detach(), model.transformer.wte.weight[11].detach()
    (row,) = [row for row in index.readers_of("embed[vocab=11]", 10_000) if row.name == "L1.mlp.n3.in"]
    assert row.strength == pytest.approx(float((e - e.mean()) @ r), rel=2e-3)


def test_a_share_is_what_taking_the_writer_away_takes_away() -> None:
    """Without norms the wiring is linear as it is: zeroing a writer takes its share from what was read."""
    trace, _, _ = planted("induction")
    share = contributed(trace, "L1.attn.h1.k").rows[0].share
    whole = trace["L1.attn.k[head=1]"]
    edited = trace.replay(cw.zero("L0.attn.h0"), until="L1.attn.k[head=1]").output[0]
    assert share == pytest.approx(float(((whole - edited) * whole).sum() / whole.square().sum()), abs=1e-4)


def test_neurons_shares_are_their_mlps(small: cw.Trace) -> None:
    rows = {row.name: row for row in contributed(small, "L2.mlp.n5.in[pos=-1]", 10_000, neurons=False).rows}
    heads = [f"L{layer}.attn.h{head}" for layer in range(3) for head in range(4)]
    assert set(rows) == {"embed", "pos_embed", "L0.mlp", "L1.mlp", *heads}
    whole = contributed(small, "L2.mlp.n5.in[pos=-1]", 10_000)
    assert sum(row.share for row in whole.rows if row.name.startswith("L0.mlp.")) == pytest.approx(
        rows["L0.mlp"].share, abs=1e-5
    )


def test_unknown_sites_are_refused_with_near_names(small: cw.Trace) -> None:
    index = build_index(small)
    for ask in (index.writers_of, index.readers_of):
        with pytest.raises(SiteError, match=r"L1\.attn"):
            ask("L1.atn.h0")
    with pytest.raises(SiteError):
        contributed(small, "L9.mlp.in")
    with pytest.raises(SiteError):
        index.writers_of("L0.mlp.n999.in")
    with pytest.raises(InputError):
        build_index(small, norm="none")
    assert index.readers_of("logits") == [] and index.writers_of("embed") == []


def test_an_index_is_kept_found_again_and_grows_old(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=2, n_embd=32, n_head=4, vocab_size=90, n_positions=16)
    model = transformers.GPT2LMHeadModel(config).eval()
    model.save_pretrained(tmp_path / "net")
    words = {f"w{number}": number for number in range(90)}
    _tokenizer(words).save_pretrained(tmp_path / "net")
    project = str(tmp_path / "p")
    capsys.readouterr()

    def ask() -> dict:
        words = ["xrefs", str(tmp_path / "net"), "L1.mlp.n3", "--neurons", "--project", project, "--json"]
        assert main(words) in (0, None)
        return json.loads(capsys.readouterr().out)

    first, second = ask(), ask()
    assert first["built"] and not second["built"] and second["writers"] == first["writers"]
    assert first["record"] == second["record"] and second["seconds"] < 1
    with torch.no_grad():
        model.transformer.h[0].mlp.c_proj.weight.mul_(-1)
    model.save_pretrained(tmp_path / "net")
    third = ask()
    assert third["built"] and third["record"] != first["record"]
    with Project(project, readonly=True) as kept:
        assert kept.check() == []


def _tokenizer(words: dict[str, int]) -> transformers.PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel(words, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="w0")


def test_an_index_survives_storage(small: cw.Trace, tmp_path: Path) -> None:
    index = build_index(small)
    facts, arrays = index.stored()
    with Project(tmp_path / "p") as project:
        key = project.add_record("xrefs index", facts, arrays)
        again = Index(project.records()[0]["data"], project.tensors(key))
    assert again.writers_of("L2.mlp.n5.in", 50) == index.writers_of("L2.mlp.n5.in", 50)
    assert all(isinstance(array, np.ndarray) for array in again.arrays.values())


def test_the_verbs_answer_in_both_ways() -> None:
    result = verbs()["xrefs"]({"model": "induction", "site": "L1.attn.h1"})
    assert result["how"] == "static" and {row["name"] for row in result["writers"]} >= {"L0.attn.h0", "embed"}
    result = verbs()["xrefs"]({"model": "induction", "site": "L0.attn.h0", "run": True})
    first = result["readers"][0]
    assert first["name"] == "L1.attn.h1.k" and first["share"] == pytest.approx(1, abs=1e-3)
    result = verbs()["xrefs"]({"model": "induction", "site": "logits", "token": "c"})
    assert result["site"] == "logits[vocab=2]" and result["writers"][0]["name"] == "L1.attn.h1"
    result = verbs()["strings"]({"model": "shapes", "grep": "stripes"})
    assert result["rows"] and all("stripes" in row["text"] for row in result["rows"])
