"""`cutaway zoo`: the developers' check through the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import CommandLine

from cutaway.commands import checkout
from cutaway.commands import zoo as verb
from zoo import ZOO

FIELDS = {"name", "ok", "parity", "replay_error", "gradient_error", "edge_error", "expected", "found"}


def test_networks_are_checked(cutaway: CommandLine) -> None:
    rows = cutaway.json("zoo", "mlp", "gru by hand")["networks"]
    assert [row["name"] for row in rows] == ["mlp", "gru by hand"]
    assert all(set(row) >= FIELDS and row["ok"] for row in rows)
    assert rows[0]["found"] == rows[0]["expected"] == {k: list(v) for k, v in ZOO["mlp"].expected.items()}
    assert max(row[field] for row in rows for field in ("parity", "replay_error", "edge_error")) <= 1e-5
    shown = cutaway("zoo", "mlp").out
    assert "1 of 1 networks" in shown and "L0.mlp 10" in shown


def test_what_leaves_torch_on_purpose_is_as_it_should_be(cutaway: CommandLine) -> None:
    (row,) = cutaway.json("zoo", "numpy")["networks"]
    assert row["ok"] and any("numpy" in text for text in row["problems"])


def test_a_network_that_is_not_as_it_should_be(cutaway: CommandLine, tmp_path: Path, monkeypatch) -> None:
    from entry import Entry, floats
    from torch import nn

    def broken() -> nn.Module:
        raise ValueError("cannot be built")

    entries = {
        "other": Entry("other", ZOO["mlp"].build, lambda: floats(6), {"L0.mlp": (3, 1)}),
        "broken": Entry("broken", broken, lambda: floats(6), {}),
    }
    monkeypatch.setattr(verb, "_entries", lambda folder: entries)
    outcome = cutaway("zoo", "--json")
    assert outcome.status == 1
    other, second = outcome.data["networks"]
    assert not other["ok"] and other["parity"] == 0 and other["found"]["L0.mlp"] == [10, 1]
    assert not second["ok"] and second["problems"] == ["cannot be built"]
    shown = cutaway("zoo")
    assert shown.status == 1
    assert "L0.mlp: found [10, 1], expected [3, 1]" in shown.out and "cannot be built" in shown.out


@pytest.mark.parametrize(
    ("line", "says"),
    [(("zoo", "gtp2"), "did you mean 'gpt2'?"), (("zoo", "--folder", "/"), "There is no zoo.py in '/'")],
)
def test_mistakes_get_one_sentence(line: tuple[str, ...], says: str, cutaway: CommandLine) -> None:
    outcome = cutaway(*line)
    assert outcome.status == 2
    assert says in outcome.err and outcome.err.count("\n") == 1


def test_an_installed_package_has_no_zoo(cutaway: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkout, "__file__", "/usr/lib/python/site-packages/cutaway/commands/checkout.py")
    outcome = cutaway("zoo")
    assert outcome.status == 2
    assert "pip install -e" in outcome.err
