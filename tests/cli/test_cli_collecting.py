"""`cutaway collect`: from an organism, a file of texts or of arrays to a folder that opens, or one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import CommandLine

from cutaway import organisms
from cutaway.features import collect as collects
from cutaway.features.store import open_activations


def test_an_organism_is_collected_from_its_own_examples(cutaway: CommandLine) -> None:
    sites = ("--site", "resid.1", "--site", "L1.attn_out")
    told = cutaway.json("collect", "induction", *sites, "--out", "acts", "--examples", "50", "--forecast")
    assert told["forecast"]["rows"] == 900 and not Path("acts").exists()
    found = cutaway.json("collect", "induction", *sites, "--out", "acts", "--examples", "50")
    made = open_activations("acts")
    assert len(made) == found["manifest"]["counts"]["rows"] == 900
    assert [site["site"] for site in found["manifest"]["sites"]] == ["resid.1", "L1.attn_out"]
    assert found["mean_norm"]["resid.1"] == pytest.approx(
        float(made.sample(900)["resid.1"].norm(dim=1).mean()), rel=1e-4
    )
    shown = cutaway("collect", "induction", *sites, "--out", "acts", "--examples", "50").out
    assert "900 rows of 50 examples" in shown and "cutaway train acts" in shown


def test_files_of_arrays_and_of_texts(cutaway: CommandLine) -> None:
    images = organisms.load("shapes").pairs(5, seed=0).clean
    np.save("images.npy", images.numpy())
    found = cutaway.json("collect", "shapes", "--site", "L1.conv.out", "--inputs", "images.npy", "--out", "images")
    assert found["manifest"]["rows"] == ["height", "width"] and found["manifest"]["counts"]["examples"] == 5
    words = organisms.load("indirect-object").vocabulary
    assert words
    Path("texts.json").write_text(json.dumps([" ".join(words[:5]), " ".join(words[3:12])]))
    Path("text.txt").write_text(" ".join(words[:30]))
    options = ("indirect-object", "--site", "resid.1", "--dtype", "float32")
    one = cutaway.json("collect", *options, "--texts", "texts.json", "--out", "one", "--skip-first", "1")
    two = cutaway.json("collect", *options, "--texts", "text.txt", "--out", "two", "--context", "8", "--limit", "2")
    assert one["manifest"]["counts"]["rows"] == 4 + 8 and two["manifest"]["counts"]["rows"] == 16
    assert two["manifest"]["data"]["left_out"]["tokens"] == 14


MISTAKES = {
    "no site": (("collect", "induction", "--out", "acts"), "No site is given"),
    "unknown site": (("collect", "induction", "--site", "resid.99", "--out", "acts"), "resid.99"),
    "two data sets": (("collect", "induction", "--site", "resid.1", "--out", "a", "--texts", "x", "--inputs", "y"),
                      "Both --texts and --inputs"),
    "no file": (("collect", "induction", "--site", "resid.1", "--out", "acts", "--inputs", "none.npy"), "no file"),
    "no such dtype": (("collect", "induction", "--site", "resid.1", "--out", "acts", "--dtype", "int8"), "int8"),
    "a file in the way": (("collect", "induction", "--site", "resid.1", "--out", "taken"), "cannot be written"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_sentence(cutaway: CommandLine, name: str) -> None:
    Path("taken").write_text("")
    arguments, said = MISTAKES[name]
    outcome = cutaway(*arguments)
    assert outcome.status == 2 and said in outcome.err and outcome.err.strip().count("\n") == 0


def test_an_interrupted_run_says_how_to_go_on(cutaway: CommandLine, monkeypatch) -> None:
    def stop(*given: object, **options: object) -> None:
        raise KeyboardInterrupt

    arguments = ("collect", "induction", "--site", "resid.1", "--out", "acts", "--examples", "20")
    with monkeypatch.context() as patch:
        patch.setattr(collects, "_collected", stop)
        outcome = cutaway(*arguments)
    assert outcome.status == 130 and "stays in 'acts'" in outcome.err and "goes on from there" in outcome.err
    assert cutaway.json(*arguments)["manifest"]["counts"]["examples"] == 20
