"""Bad command lines: one sentence, the right exit status, no traceback, nothing half-written."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import CommandLine

from cutaway.cli import main as module
from cutaway.errors import CutawayError
from cutaway.project import Project

CLEAN = "then Mary and John today went to the store again . John gave the drink to"
PAIR = ("circuit", "indirect-object", "--project", "new", "--clean", CLEAN, "--corrupted")
OTHER = CLEAN.replace(". John", ". Mary")


def _files() -> None:
    Path("broken.safetensors").write_bytes(b"\xff" * 64)
    Path("pairs.json").write_text('[{"clean": "a", "corrupted": "b", "correct": "c"}]')
    Path("plain.txt").write_text("nothing")
    with Project("newer") as project:
        path = project.path
    with sqlite3.connect(path / "project.db") as connection:
        connection.execute("PRAGMA user_version=99")
    connection.close()
    with Project("empty"):
        pass


BAD: dict[str, tuple[tuple[str, ...], str]] = {
    "no such verb": (("lst",), "Did you mean 'list'"),
    "no such option": (("demo", "--organsim", "x"), "--organism"),
    "no number": (("demo", "--pairs", "many"), "--pairs"),
    "too few": (("demo", "--pairs", "1"), "give at least 2"),
    "missing option": (("patch", "induction", "--edit", "zero"), "--site"),
    "wrong organism": (("demo", "--organism", "inductoin"), "did you mean 'induction'"),
    "nearly an organism": (("list", "indirect-objct"), "did you mean 'indirect-object'"),
    "no behaviour": (("demo", "--organism", "superposition"), "decides nothing"),
    "no folder to draw in": ((*PAIR, OTHER, "--plot", "nowhere/a.svg"), "'nowhere' is no folder"),
    "no folder to save in": ((*PAIR, OTHER, "--save", "nowhere/a.json"), "'nowhere' is no folder"),
    "no drawing": ((*PAIR, OTHER, "--plot", "a.pdf"), ".svg or .png"),
    "one fresh pair": (("verify", "empty", "--pairs", "1"), "--pairs is 1; give at least 2"),
    "no such folder": (("list", "./nowhere"), "no folder './nowhere'"),
    "a file as network": (("lift", "plain.txt"), "is a file"),
    "wrong site": (("patch", "induction", "--site", "L1.atn.z", "--edit", "zero"), "L1.attn.z"),
    "no such head": (("patch", "induction", "--site", "L1.attn.h9", "--edit", "zero"), "there is no 9"),
    "no site": (("patch", "induction", "--site", "a[b", "--edit", "zero"), "is not a site"),
    "wrong edit": (("patch", "induction", "--site", "L1.attn.h1", "--edit", "zeero"), "did you mean 'zero'"),
    "no factor": (("patch", "induction", "--site", "L1.attn.h1", "--edit", "scale=big"), "has no factor"),
    "no other run": (
        ("patch", "indirect-object", "--site", "L1.attn.h1", "--edit", "patch", "--clean", CLEAN),
        "give --corrupted",
    ),
    "wrong prefix": (("list", "induction", "--prefix", "layer"), "layers.0"),
    "unknown word": (("record", "indirect-object", "--text", "Zoe"), "not in the vocabulary"),
    "empty text": (("record", "indirect-object", "--text", "", "--project", "new"), "no tokens"),
    "texts of two lengths": (("record", "induction", "--text", "a b", "--text", "a", "--project", "new"), "tokens"),
    "kept site": (("record", "induction", "--keep", "L9.attn.z", "--project", "new"), "No site"),
    "pair of two lengths": ((*PAIR, "Mary", "--correct", "Mary", "--wrong", "John"), "16 tokens clean and 1"),
    "pairs do not pair": (
        (*PAIR, OTHER, "--corrupted", OTHER, "--correct", "Mary", "--wrong", "John"),
        "1 clean texts and 2",
    ),
    "answer of two tokens": ((*PAIR, OTHER, "--correct", "Mary John", "--wrong", "John"), "not a single token"),
    "no answer": ((*PAIR, OTHER, "--correct", "Mary"), "--wrong"),
    "equal answers": ((*PAIR, OTHER, "--correct", "Mary", "--wrong", "Mary"), "same"),
    "equal inputs": ((*PAIR, CLEAN, "--correct", "Mary", "--wrong", "John"), "corrupted inputs are the clean ones"),
    "wrong level": (("circuit", "induction", "--level", "nodes"), "did you mean 'node'"),
    "pairs without a key": (("circuit", "induction", "--pairs-file", "pairs.json"), "no text 'wrong'"),
    "no JSON": (("circuit", "induction", "--pairs-file", "plain.txt"), "is no JSON"),
    "no file of pairs": (("circuit", "induction", "--pairs-file", "none.json"), "cannot be read"),
    "unreadable checkpoint": (("info", "broken.safetensors"), "broken.safetensors"),
    "no checkpoint": (("info", "brokn.safetensors"), "did you mean broken.safetensors"),
    "newer project": (("show", "newer"), "newer Cutaway"),
    "newer project before the work": (("demo", "--project", "newer"), "newer Cutaway"),
    "no project": (("show", "newr"), "did you mean newer.cutaway"),
    "rename in no project": (("rename", "none", "a", "b"), "no project"),
    "no name": (("rename", "empty", "L0.mlp", "a\x1bb"), "unprintable"),
    "claim unknown": (("verify", "empty", "abcd1234"), "no claim"),
    "no claim at all": (("verify", "empty"), "no claim to verify"),
    "nothing to undo": (("undo", "empty"), "no change"),
    "no such entry": (("undo", "empty", "--entry", "7"), "7"),
    "no such organism to train": (("organisms", "train", "countr"), "did you mean 'counter'"),
    "training into a file": (("organisms", "train", "counter", "--out", "plain.txt"), "no folder"),
    "project in a file": (("demo", "--project", "plain.txt/p"), "no folder"),
}


def _state() -> dict[str, int]:
    return {
        str(path): path.stat().st_size
        for path in Path().rglob("*")
        if "-wal" not in path.name and "-shm" not in path.name
    }


@pytest.mark.parametrize("name", BAD)
def test_mistakes_are_one_sentence_and_leave_nothing(cutaway: CommandLine, name: str) -> None:
    arguments, expected = BAD[name]
    _files()
    before = _state()
    outcome = cutaway(*arguments)
    assert outcome.status == 2, outcome
    assert outcome.out == ""
    assert outcome.err.startswith("cutaway: ") and outcome.err.count("\n") == 1
    assert expected in outcome.err
    assert "Traceback" not in outcome.err and "\x1b" not in outcome.err
    as_json = cutaway(*arguments, "--json")
    assert (as_json.status, as_json.err) == (2, "")
    assert as_json.data == {"error": outcome.err.removeprefix("cutaway: ").rstrip("\n")} or "\\u" in outcome.err
    assert _state() == before


def _fails_with(error: BaseException) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (CutawayError("A sentence\nin two lines."), 2, "A sentence in two lines."),
        (ZeroDivisionError("by zero.\nmore"), 1, "unexpected ZeroDivisionError: by zero. Run it again with --debug"),
        (AssertionError(), 1, "unexpected AssertionError"),
    ],
)
def test_exit_status_of_what_is_raised(
    cutaway: CommandLine, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, says: str
) -> None:
    monkeypatch.setattr(sys.modules[module.__module__], "_run", _fails_with(error))
    outcome = cutaway("demo")
    assert (outcome.status, outcome.out) == (status, "")
    assert says in outcome.err and outcome.err.count("\n") == 1
    assert says.split(" Run")[0] in cutaway("demo", "--json").data["error"]
    assert ("Traceback" in cutaway("demo", "--debug").err) == (status == 1)


def test_other_weights_are_refused(cutaway: CommandLine) -> None:
    """A claim about a network whose weights have changed since is not tested on the new ones."""
    kept = cutaway.json("circuit", "induction", "--pairs", "4", "--project", "p")
    with Project("p") as project:
        claim = project.claim(kept["claim"])
        claim["provenance"]["fingerprint"] = "0" * 16
        other = project.add_claim(claim, project.tensors(kept["claim"]))
        claim["provenance"]["source"] = "module"
        lost = project.add_claim(claim, project.tensors(kept["claim"]))
    assert "The claim is about weights 0000000000000000" in cutaway("verify", "p", other).err
    assert "made in Python" in cutaway("verify", "p", lost).err


def _python(code: str, **options: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, **options)


def test_help_is_light() -> None:
    code = "import sys; from cutaway.cli import main; s = main(['--help']); sys.exit(s or 'torch' in sys.modules)"
    done = _python(code)
    assert done.returncode == 0, done.stderr
    assert "demo" in done.stdout


def test_info_uses_no_torch(tmp_path: Path) -> None:
    from cutaway import organisms

    weights = Path(organisms.__file__).parent / "weights" / "counter.safetensors"
    run = f"main(['info', {str(weights)!r}])"
    assert (
        _python(f"import sys; from cutaway.cli import main; sys.exit({run} or 'torch' in sys.modules)").returncode == 0
    )


def test_a_closed_pipe_leaves_no_traceback(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "cutaway.cli", "list", "induction", "--json"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_text_from_a_file_cannot_control_the_terminal(cutaway: CommandLine) -> None:
    header = json.dumps({"evil\x1b[2J\u202e": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    Path("e.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    outcome = cutaway("info", "e.safetensors")
    assert "\x1b" not in outcome.out and "\u202e" not in outcome.out
    assert "\x1b" not in cutaway("info", "e.safetensors", "--json").out
    assert "\x1b" not in cutaway("info", "\x1b[2Jnone").err


def test_version_and_bare_call(cutaway: CommandLine) -> None:
    from cutaway import __version__

    assert cutaway("--version").out == f"cutaway {__version__}\n"
    bare = cutaway()
    assert bare.status == 0 and "demo" in bare.out
