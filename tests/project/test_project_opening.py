"""Folders that are no project, damaged or newer ones, and ones that cannot be written."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cutaway
from cutaway.errors import CutawayError, ProjectError
from cutaway.project import Project


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _filled(path: Path) -> Path:
    with Project(path) as project:
        project.rename("L0.mlp", "counter")
        project.add_record("run", {"n": 1}, {"w": np.arange(100.0)})
        return project.path


@pytest.mark.parametrize("readonly", [False, True])
def test_newer_version_is_refused_and_untouched(tmp_path: Path, readonly: bool) -> None:
    path = _filled(tmp_path / "p")
    connection = sqlite3.connect(path / "project.db")
    connection.execute("PRAGMA user_version=2")
    connection.close()
    (path / "tensors" / ("0" * 64 + ".safetensors")).write_bytes(b"from the future")
    (path / ".tmp-old").write_bytes(b"")
    os.utime(path / ".tmp-old", (0, 0))
    before = _bytes(path)
    with pytest.raises(ProjectError, match="newer Cutaway .format 2, this one knows 1.; update"):
        Project(path, readonly=readonly)
    assert _bytes(path) == before


def test_newer_version_that_is_only_in_the_log_is_refused(tmp_path: Path) -> None:
    path = _filled(tmp_path / "p")
    connection = sqlite3.connect(path / "project.db")
    connection.execute("PRAGMA user_version=7")
    shutil.copytree(path, tmp_path / "copy.cutaway")
    connection.close()
    with pytest.raises(ProjectError, match="newer"):
        Project(tmp_path / "copy.cutaway")


def test_missing_project_suggests_near_ones(tmp_path: Path) -> None:
    _filled(tmp_path / "induction")
    with pytest.raises(ProjectError, match=r"did you mean induction\.cutaway"):
        Project(tmp_path / "inducton", create=False)
    with pytest.raises(ProjectError, match="There is no project"):
        Project(tmp_path / "nowhere" / "else", readonly=True)
    assert not (tmp_path / "inducton.cutaway").exists()


def test_what_is_no_project_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "folder.cutaway").mkdir()
    (tmp_path / "folder.cutaway" / "thesis.tex").write_text("x")
    (tmp_path / "file.cutaway").write_text("x")
    for name, content in {"text": b"not a database" * 20, "empty": b"", "short": b"SQLite format 3\0"}.items():
        (tmp_path / f"{name}.cutaway").mkdir()
        (tmp_path / f"{name}.cutaway" / "project.db").write_bytes(content)
    (tmp_path / "other.cutaway").mkdir()
    other = sqlite3.connect(tmp_path / "other.cutaway" / "project.db")
    other.execute("CREATE TABLE bookmarks (url TEXT)")
    other.close()
    before = _bytes(tmp_path)
    for name in ("folder", "file", "text", "empty", "short", "other"):
        with pytest.raises(ProjectError, match="not a Cutaway project"):
            Project(tmp_path / name)
    assert _bytes(tmp_path) == before
    with pytest.raises(ProjectError, match="NUL"):
        Project("a\0b")
    with pytest.raises(ProjectError, match="empty"):
        Project("")


def test_an_empty_folder_may_become_a_project(tmp_path: Path) -> None:
    (tmp_path / "p.cutaway").mkdir()
    _filled(tmp_path / "p")


def test_foreign_triggers_are_refused(tmp_path: Path) -> None:
    path = _filled(tmp_path / "p")
    connection = sqlite3.connect(path / "project.db")
    connection.execute("CREATE TRIGGER t AFTER INSERT ON names BEGIN DELETE FROM history; END")
    connection.close()
    with pytest.raises(ProjectError, match="foreign trigger or view 't'"):
        Project(path)


def test_forged_tensor_names_cannot_leave_the_folder(tmp_path: Path) -> None:
    path = _filled(tmp_path / "p")
    connection = sqlite3.connect(path / "project.db")
    connection.execute(
        "UPDATE records SET value = replace(value, json_extract(value, '$.tensors.w'), '../../etc/passwd')"
    )
    connection.commit()
    connection.close()
    with Project(path) as project:
        with pytest.raises(ProjectError, match="not the name of a tensor file"):
            project.tensors(project.records()[0]["id"])
        assert any("disagrees" in problem for problem in project.check())


def test_readonly_changes_nothing(tmp_path: Path) -> None:
    path = _filled(tmp_path / "p")
    with Project(path, readonly=True) as project:
        assert project.names() == {"L0.mlp": "counter"}
        assert project.check() == []
        for change in (
            lambda: project.rename("a", "b"),
            lambda: project.comment("a", "b"),
            lambda: project.add_model("a", {}),
            lambda: project.add_record("run", {}),
            project.undo,
        ):
            with pytest.raises(ProjectError, match="opened for reading"):
                change()


def test_closed_project_says_so(tmp_path: Path) -> None:
    project = Project(tmp_path / "p")
    id = project.add_record("run", {}, {"w": np.arange(3)})
    array = project.tensors(id)["w"]
    project.close()
    project.close()
    assert array.tolist() == [0, 1, 2]
    with pytest.raises(ProjectError, match="is closed"):
        project.names()


def test_check_finds_damage(tmp_path: Path) -> None:
    path = _filled(tmp_path / "p")
    (shard,) = (path / "tensors").iterdir()
    good = shard.read_bytes()
    with Project(path) as project:
        id = project.records()[0]["id"]
        shard.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        (problem,) = project.check()
        assert "another hash" in problem
        shard.write_bytes(b"\xff" * 40)
        with pytest.raises(ProjectError, match="damaged"):
            project.tensors(id)
        shard.unlink()
        (problem,) = project.check()
        assert "missing" in problem
        with pytest.raises(ProjectError, match="missing"):
            project.tensors(id)
        shard.write_bytes(good)
        orphan = path / "tensors" / ("0" * 64 + ".safetensors")
        orphan.write_bytes(good)
        (path / "tensors" / "notes.txt").write_text("a file of the user's")
        (problem,) = project.check()
        assert "belongs to no entry" in problem
    with Project(path) as project:
        assert project.check() == []
    assert not orphan.exists() and (path / "tensors" / "notes.txt").exists()


@pytest.mark.parametrize("seed", range(40))
def test_damaged_database_gives_one_sentence(tmp_path: Path, seed: int) -> None:
    path = _filled(tmp_path / "p")
    random = np.random.default_rng(seed)
    content = bytearray((path / "project.db").read_bytes())
    for position in random.integers(0, len(content), 200):
        content[position] = random.integers(0, 256)
    (path / "project.db").write_bytes(content)
    try:
        with Project(path) as project:
            project.check()
            project.rename("a", "b")
            project.show()
            project.undo()
    except CutawayError as error:
        assert "\n" not in str(error)


READONLY_DISK = """
import subprocess, sys
from cutaway.errors import ProjectError
from cutaway.project import Project
path = sys.argv[1]
subprocess.run(["mount", "--bind", path, path], check=True)
subprocess.run(["mount", "-o", "remount,ro,bind", path], check=True)
with Project(path, readonly=True) as project:
    assert project.names() == {"L0.mlp": "counter"} and project.check() == []
    assert project.tensors(project.records()[0]["id"])["w"].shape == (100,)
try:
    Project(path)
except ProjectError as error:
    print(error)
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare to mount a read-only disk")
def test_read_only_disk(tmp_path: Path) -> None:
    path = _filled(tmp_path / "p")
    unshare = ["unshare", "--mount", "--map-root-user"]
    if subprocess.run([*unshare, "mount", "--bind", str(path), str(path)], capture_output=True).returncode:
        pytest.skip("this system does not let us mount")
    source = str(Path(cutaway.__path__[0]).parent)
    command = [*unshare, sys.executable, "-c", READONLY_DISK, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": source})
    assert done.returncode == 0, done.stderr
    assert "use readonly=True" in done.stdout


def test_the_folder_one_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _filled(tmp_path / "p")
    monkeypatch.chdir(path / "tensors")
    with Project("..") as project:
        assert project.path == path and project.names() == {"L0.mlp": "counter"}
    for impossible in ("/", "x" * 5000):
        with pytest.raises(ProjectError):
            Project(impossible)
