"""Every other verb through the command line: what it answers, as JSON and as text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import CommandLine
from safetensors.numpy import save_file

from cutaway import organisms
from cutaway.commands import verbs
from cutaway.project import Project

SENTENCE = "then Mary and John today went to the store again . {} gave the drink to"
CLEAN, CORRUPTED = SENTENCE.format("John"), SENTENCE.format("Mary")
FIRST_GIVEN = ("--clean", CLEAN, "--corrupted", CORRUPTED, "--correct", "Mary", "--wrong", "John")


def test_info(cutaway: CommandLine) -> None:
    save_file({"a.weight": np.ones((2, 3), np.float32), "b": np.array([np.nan], np.float32)}, "m.safetensors")
    result = cutaway.json("info", "m.safetensors", "--sha256", "--deep")
    assert result["parameters"] == 7
    assert result["nonfinite"] == {"b": {"nan": 1, "inf": 0}}
    assert len(result["files"][0]["sha256"]) == 64
    assert "1 NaN" in cutaway("info", "m.safetensors", "--deep").out


def test_list(cutaway: CommandLine) -> None:
    result = cutaway.json("list", "indirect-object", "--prefix", "blocks.1", "--text", CLEAN)
    assert all(line["address"].startswith("blocks.1") for line in result["lines"])
    assert set(result["lines"][0]) >= {"address", "op", "shape", "dtype", "reads", "source", "repeat"}
    flat = cutaway.json("list", "indirect-object", "--prefix", "blocks.1", "--flat")
    assert len(flat["lines"]) == flat["total"] == result["total"] > len(result["lines"])
    shown = cutaway("list", "indirect-object").out
    assert "⟳ ×3" in shown and "indirect_object.py" in shown


def test_lift(cutaway: CommandLine) -> None:
    result = cutaway.json("lift", "indirect-object")
    heads = {part["name"]: part["count"] for part in result["components"] if part["axis"] == "head"}
    assert heads == {"L0.attn": 4, "L1.attn": 4, "L2.attn": 4}
    assert result["streams"]
    assert "L2.mlp" in cutaway("lift", "indirect-object").out


@pytest.mark.parametrize("name", organisms.names())
def test_record_and_lift_run_on_every_organism(cutaway: CommandLine, name: str) -> None:
    assert cutaway("record", name).status == 0
    assert cutaway("lift", name).status == 0


def test_record_keeps_values(cutaway: CommandLine) -> None:
    line = ("record", "indirect-object", "--text", CLEAN, "--keep", "L1.attn.h1", "--project", "p")
    result = cutaway.json(*line)
    assert result["top"][0][0]["token"] == "Mary"
    assert result["kept"][0]["shape"] == [1, 16, 12]
    with Project("p", create=False) as project:
        assert project.tensors(result["record"])["L1.attn.h1"].shape == (1, 16, 12)
        entries = len(project.history())
    assert cutaway.json(*line)["record"] == result["record"]
    with Project("p", create=False) as project:
        assert len(project.history()) == entries


@pytest.mark.parametrize("edit", ["zero", "mean", "resample", "patch", "scale=0.5"])
def test_patch_on_drawn_pairs(cutaway: CommandLine, edit: str) -> None:
    result = cutaway.json("patch", "indirect-object", "--site", "L2.attn.h2", "--edit", edit, "--pairs", "8")
    assert [(fired["times"], fired["change"] > 0) for fired in result["receipt"]] == [(1, True)]
    assert result["metric"]["after"] < result["metric"]["before"]


def test_patch_on_texts(cutaway: CommandLine) -> None:
    line = ("patch", "indirect-object", "--site", "L1.attn.h1", "--edit", "patch", *FIRST_GIVEN)
    result = cutaway.json(*line)
    assert result["metric"]["lost"] == pytest.approx(1, abs=0.1)
    assert (result["top_before"][0]["token"], result["top_after"][0]["token"]) == ("Mary", "John")
    assert "of the behaviour is lost" in cutaway(*line).out


def test_patch_says_when_nothing_changed(cutaway: CommandLine) -> None:
    outcome = cutaway("patch", "indirect-object", "--site", "L1.attn.h1", "--edit", "scale=1", "--clean", CLEAN)
    assert outcome.status == 0
    assert "already so" in outcome.out and "same to the last bit" in outcome.out


def test_circuit_on_one_pair_says_that_the_test_is_not_independent(cutaway: CommandLine) -> None:
    result = cutaway.json("circuit", "indirect-object", *FIRST_GIVEN)
    assert result["held_out"] is False
    assert "L2.mlp -> logits" in result["circuit"]["edges"]
    assert "no independent test" in cutaway("circuit", "indirect-object", *FIRST_GIVEN).out


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_circuit_holds_out_every_second_pair_of_a_file(cutaway: CommandLine, suffix: str) -> None:
    names = ("Anna", "Peter", "Lucy", "Tom", "Emma", "Paul", "Ruth", "Karl")
    rows = [
        {
            "clean": CLEAN.replace("Mary", name),
            "corrupted": CORRUPTED.replace("Mary", name),
            "correct": name,
            "wrong": "John",
        }
        for name in names
    ]
    text = json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows)) + "\n"
    Path(f"pairs{suffix}").write_text(text, encoding="utf-8")
    result = cutaway.json("circuit", "indirect-object", "--pairs-file", f"pairs{suffix}")
    assert (result["examples"], result["held_out"]) == (4, True)


@pytest.mark.parametrize("options", [("--level", "node"), ("--positions",), ("--neurons",)])
def test_circuit_at_other_grains(cutaway: CommandLine, options: tuple[str, ...]) -> None:
    result = cutaway.json("circuit", "indirect-object", "--pairs", "4", *options)
    assert result["circuit"]["nodes"]
    assert cutaway("circuit", "indirect-object", "--pairs", "4", *options).status == 0


def test_circuit_by_another_search_of_a_size(cutaway: CommandLine) -> None:
    how = ("--search", "greedy", "--size", "4", "--scores", "eap", "--ablation", "resample", "--limit", "40")
    result = cutaway.json("circuit", "induction", "--pairs", "8", *how)
    assert 0 < len(result["circuit"]["edges"]) <= 4
    assert "no search 'acd'; choose acdc" in cutaway("circuit", "induction", "--search", "acd").err


def test_a_kept_claim_is_tested_thoroughly(cutaway: CommandLine) -> None:
    cutaway.json("circuit", "induction", "--pairs", "8", "--project", "p")
    deep = cutaway.json("verify", "p", "--thorough", "--alternatives", "1")
    figures = {row["name"]: row for row in deep["figures"]}
    assert deep["agrees"] is True and figures["CPR"]["was"] is None and figures["CPR"]["now"] > 0.5
    assert {"CMD", "stability", "minimality p"} <= set(figures)


def test_circuit_keeps_and_verify_repeats(cutaway: CommandLine) -> None:
    kept = cutaway.json("circuit", "indirect-object", "--pairs", "8", "--project", "p")
    again = cutaway.json("verify", "p", kept["claim"][:6])
    assert again["agrees"] is True
    assert again["faithfulness"]["value"] == pytest.approx(kept["faithfulness"]["value"], abs=1e-5)
    assert again["held_out"] == kept["held_out"]
    fresh = cutaway.json("verify", "p", "--pairs", "8", "--seed", "3")
    assert fresh["fresh"] and fresh["verdict"] == "supported"
    assert "agrees on the stored inputs" in cutaway("verify", "p").out
    with Project("p", create=False) as project:
        assert len(project.claims()) == 1
        assert len(project.records("verification")) == 2
        command = project.claims()[0]["provenance"]["command"]
    assert command == "cutaway circuit indirect-object --pairs 8 --project p"


def test_project_verbs(cutaway: CommandLine) -> None:
    kept = cutaway.json("circuit", "induction", "--pairs", "4", "--project", "p")
    assert cutaway.json("rename", "p", "L1.attn.h1", "induction head")["name"] == "induction head"
    assert len(cutaway.json("comment", "p", "L1.attn.h1", "[bold]copies[/bold]")["comments"]) == 1
    shown = cutaway("show", "p").out
    for word in ("induction head", "[bold]copies[/bold]", kept["claim"], "add_claim"):
        assert word in shown
    result = cutaway.json("show", "p")
    assert result["names"] == {"L1.attn.h1": "induction head"}
    assert "SUPPORTED" in cutaway("show", "p", kept["claim"]).out
    assert cutaway.json("show", "p", kept["claim"])["told"]["verdict"] == kept["verdict"]
    assert cutaway.json("undo", "p")["undone"]["verb"] == "comment"
    assert cutaway.json("undo", "p", "--entry", "3")["undone"]["verb"] == "rename"
    assert cutaway.json("show", "p")["names"] == {}


def test_organisms(cutaway: CommandLine) -> None:
    listed = cutaway.json("organisms")
    assert [row["name"] for row in listed["organisms"]] == list(organisms.names())
    assert cutaway.json("organisms", "list") == listed
    assert "superposition" in cutaway("organisms").out


def test_organisms_train(cutaway: CommandLine) -> None:
    line = ("organisms", "train", "counter", "--steps", "20", "--seed", "5", "--out", "new/folder")
    first = cutaway.json(*line)
    assert first["figures"]["steps"] == 20
    stored = Path(first["path"]).read_bytes()
    assert [path.name for path in Path("new/folder").iterdir()] == ["counter.safetensors"]
    assert cutaway(*line).status == 0
    assert Path(first["path"]).read_bytes() == stored


def test_doctor(cutaway: CommandLine) -> None:
    result = cutaway.json("doctor")
    assert {"torch", "numpy", "transformers"} <= {row["name"] for row in result["packages"]}
    assert isinstance(result["problems"], list)
    assert cutaway("doctor").status == 0


def test_check(cutaway: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    result = cutaway.json("check", "counter")
    assert result["ok"] and result["parity"] == 0 and not result["problems"]
    assert "agrees with plain PyTorch" in cutaway("check", "counter").out
    monkeypatch.setattr("cutaway.run.check.TOLERANCE", -1.0)
    outcome = cutaway("check", "counter")
    assert outcome.status == 1 and "is not verified" in outcome.out


def test_every_verb_is_run_by_these_tests() -> None:
    text = "".join(file.read_text(encoding="utf-8") for file in Path(__file__).parent.glob("test_cli_*.py"))
    for name in verbs():
        assert '"' + '", "'.join(name.split()) + '"' in text, f"no test runs `cutaway {name}`"
