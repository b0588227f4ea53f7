"""`cutaway demo`: on every organism with a behaviour, twice, as text and as JSON."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import CommandLine

from cutaway import organisms
from cutaway.project import Project

BEHAVING = tuple(name for name in organisms.names() if organisms.load(name).behaviour)


@pytest.mark.parametrize("name", BEHAVING)
def test_demo_explains_an_organism_and_a_second_run_adds_nothing(cutaway: CommandLine, name: str) -> None:
    result = cutaway.json("demo", "--organism", name, "--pairs", "16")
    assert result["model"] == name
    assert result["behaviour"] == organisms.load(name).behaviour
    assert result["verdict"] in ("supported", "partly supported", "not supported")
    assert result["circuit"]["nodes"]
    assert all(" -> " in edge for edge in result["circuit"]["edges"])
    faithfulness = result["faithfulness"]
    assert faithfulness["low"] <= faithfulness["value"] <= faithfulness["high"]
    assert 0 < result["null"]["p"] <= 1
    assert isinstance(result["null"]["mean"], float)
    assert result["truth_auroc"] > 0.8
    assert result["held_out"] is True
    assert 0 < result["seconds"] < 60
    assert Path(result["report"]).read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype html>")
    with Project(result["project"], create=False, readonly=True) as project:
        before = (len(project.history()), [claim["id"] for claim in project.claims()], list(project.models()))
        assert set(project.tensors(result["claim"])) == {"clean.0", "corrupted.0", "mask"}
    again = cutaway.json("demo", "--organism", name, "--pairs", "16")
    assert (result["new"], again["new"]) == (True, False)
    with Project(result["project"], create=False, readonly=True) as project:
        assert (len(project.history()), [claim["id"] for claim in project.claims()], list(project.models())) == before


def test_demo_finds_the_planted_mechanism(cutaway: CommandLine) -> None:
    result = cutaway.json("demo")
    assert result["verdict"] == "supported"
    assert result["truth"]["beyond"] == []
    assert len(result["truth"]["found"]) >= 5
    assert set(result["circuit"]["nodes"]) <= set(organisms.load("indirect-object").truth.nodes)


def test_demo_prints_something_worth_reading(cutaway: CommandLine) -> None:
    outcome = cutaway("demo", "--organism", "induction", "--pairs", "16", "--project", "here/first")
    assert outcome.status == 0
    assert outcome.err == ""
    for word in ("SUPPORTED", "L1.attn.h1", "◂─ k", "0.5 is chance", "▲ higher", "cutaway show here/first.cutaway"):
        assert word in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 100
    assert Path("here/first.html").exists()


def test_every_command_that_demo_suggests_works(cutaway: CommandLine) -> None:
    out = cutaway("demo", "--organism", "induction", "--pairs", "16").out
    after = out.partition("Further")[2]
    suggested = [line[line.index("cutaway ") :].split() for line in after.splitlines() if "  cutaway " in line]
    assert [words[1] for words in suggested] == ["show", "verify", "patch"]
    for words in suggested:
        assert cutaway(*words[1:]).status == 0
    code = [line.strip().removeprefix("in Python").strip() for line in after.partition("in Python")[2].splitlines()]
    exec("\n".join(code), {})
