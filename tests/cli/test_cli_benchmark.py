"""`cutaway benchmark` through the command line, on a folder of small benchmarks."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import CommandLine

SCRIPT = '''"""Counts to a number."""
import json, sys
given = sys.argv[1:]
if "broken" in given:
    sys.exit("cannot be measured")
if "silent" in given:
    sys.exit(0)
row = {"name": "count", "ours": 3, "unit": "steps", "better": "lower", "peers": {"other 1.0": 5}, "goal": 4,
       "met": True, "n": 1, "seed": 0, "command": " ".join(given)}
print(json.dumps({"rows": [row]}))
'''


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "rows.py").write_text("")
    (tmp_path / "counting.py").write_text(SCRIPT)
    return str(tmp_path)


def test_rows_are_measured_in_a_process_of_their_own(cutaway: CommandLine, folder: str) -> None:
    found = cutaway.json("benchmark", "counting", "some", "--peer", "python3", "--folder", folder)
    assert found["name"] == "counting"
    (row,) = found["rows"]
    assert row["ours"] == 3 and row["command"] == "some --peer=python3 --json"
    shown = cutaway("benchmark", "counting", "--folder", folder).out
    assert "≤ 4 met" in shown and "other 1.0: 5" in shown and "1 of 1 goals met" in shown


def test_the_benchmarks_of_the_checkout_are_listed(cutaway: CommandLine) -> None:
    listed = {row["name"]: row["what"] for row in cutaway.json("benchmark")["benchmarks"]}
    assert {"circuits", "substrate", "zoo"} <= set(listed) and "rows" not in listed
    assert all(len(what) > 10 for what in listed.values())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("contuing",), "no benchmark 'contuing'; did you mean 'counting'"),
        (("counting", "broken"), "failed with status 1"),
        (("counting", "silent"), "printed no rows"),
        (("counting", "--peer", "./no/python"), "--peer is './no/python', which is no program here"),
    ],
)
def test_what_cannot_be_measured_gets_one_sentence(
    cutaway: CommandLine, folder: str, words: tuple[str, ...], said: str
) -> None:
    done = cutaway("benchmark", *words, "--folder", folder)
    assert said in done.err and "Traceback" not in done.err


def test_a_folder_without_benchmarks(cutaway: CommandLine, tmp_path: Path) -> None:
    assert "no rows.py" in cutaway("benchmark", "--folder", str(tmp_path)).err
