"""`--dictionary`: the verbs that look at a network take latents for sites, units and nodes."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import CommandLine
from dictionaries import dictionary

import cutaway as cw
from cutaway.features.card import Card, Place
from cutaway.features.files import save_dictionary

FIGURES = {"l0": 5.0, "fvu": 1.2, "norm": 8.4}


@pytest.fixture
def file(tmp_path: Path) -> str:
    """A dictionary for what the first layer of the induction organism gives."""
    place = Place("resid.1", 64, cw.open("induction").fingerprint)
    made = dictionary(64, 10).but(card=Card((place,), (place,), "induction", FIGURES))
    return str(save_dictionary(made, tmp_path / "ten.safetensors"))


def test_record_patch_and_lift(cutaway: CommandLine, file: str) -> None:
    found = cutaway.json("record", "induction", "--dictionary", file, "--keep", "resid.1[latent=3]")
    assert found["kept"][0]["shape"] == [4, 18] and found["facts"]["dictionaries"][0]["name"] == "resid.1"
    kinds = {
        part["name"]: part["kind"] for part in cutaway.json("lift", "induction", "--dictionary", file)["components"]
    }
    assert kinds["resid.1"] == "dictionary" and kinds["resid.1.error"] == "error"
    edited = cutaway.json("patch", "induction", "--dictionary", file, "--site", "resid.1.f3", "--edit", "scale=2")
    assert edited["receipt"][0]["site"] == "resid.1[latent=3]" and edited["receipt"][0]["change"] > 0


def test_strings_xrefs_and_a_circuit(cutaway: CommandLine, file: str) -> None:
    rows = cutaway.json("strings", "induction", "--dictionary", file, "--site", "resid.1")["rows"]
    assert {row["side"] for row in rows} == {"reads", "writes"}
    found = cutaway.json("xrefs", "induction", "resid.1.f3", "--dictionary", file)
    assert {"embed", "L0.attn.h0"} <= {row["name"] for row in found["writers"]}
    assert "logits" in {row["name"] for row in found["readers"]}
    run = cutaway.json("xrefs", "induction", "resid.1.f3", "--dictionary", file, "--run")
    assert run["how"] == "dynamic" and run["writers"] and run["readers"]
    circuit = cutaway.json("circuit", "induction", "--dictionary", file, "--pairs", "4")
    assert any(node.startswith("resid.1.") for node in circuit["circuit"]["nodes"]) and circuit["truth"] is None


def test_another_place_is_told_or_refused(cutaway: CommandLine, file: str) -> None:
    refused = cutaway("record", "induction", "--dictionary", f"{file}@resid.0")
    assert refused.status == 2 and "8.4 by its card" in refused.err
    assert cutaway("record", "induction", "--dictionary", "nowhere.safetensors").status == 2
    both = cutaway("xrefs", "induction", "resid.1.f3", "--dictionary", file, "--project", "p")
    assert both.status == 2 and "leave out" in both.err
    made = dictionary(64, 10).but(card=Card((Place("resid.1", 64),), (Place("resid.1", 64),)))
    other = str(save_dictionary(made, Path(file).parent / "other.safetensors"))
    shown = cutaway("record", "induction", "--dictionary", other).out
    assert "no figures to compare" in " ".join(shown.split()) and "L0" in shown
