"""The verbs on weights through the command line: recover, health, diff, edit."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from command_line import CommandLine

import cutaway as cw
from cutaway import organisms


def test_the_verbs(cutaway: CommandLine, tmp_path: Path) -> None:
    shutil.copy(Path(organisms.__file__).parent / "weights" / "induction.safetensors", tmp_path / "a.safetensors")
    done = cutaway.json(
        "edit", "induction", "--site", "L1.attn.h1", "--edit", "zero", "--out", "b.safetensors", "--project", "p",
    )  # fmt: skip
    assert done["error"] <= 1e-5 and done["project"].endswith("p.cutaway")
    with cw.Project("p", create=False) as project:
        (kept,) = project.records("edit")
        assert kept["data"]["difference"]["changes"] == done["difference"]["changes"]
        assert project.history()[-1]["command"].startswith("cutaway edit induction")
    found = cutaway.json("diff", "a.safetensors", "b.safetensors")
    assert [row["name"] for row in found["changes"] if row["status"] == "changed"] == done["tensors"]
    heads = cutaway.json("health", "induction")["heads"]
    assert heads["copying"]["L1.attn.h1"] > 0.9
    assert cutaway.json("recover", "a.safetensors")["family"] is None
    np.save("d.npy", np.random.default_rng(0).standard_normal(64).astype(np.float32))
    assert cutaway("edit", "induction", "--site", "resid", "--edit", "remove", "--out", "c.safetensors").status == 2
    line = ("--site", "resid", "--edit", "remove", "--direction", "d.npy", "--out", "c.safetensors")
    assert cutaway("edit", "induction", *line).status == 0
    for verb in (("recover", "a.safetensors"), ("health", "a.safetensors"), ("diff", "a.safetensors", "c.safetensors")):
        assert cutaway(*verb).status == 0
