"""Killed writers, several processes, full disks: what was acknowledged is there, what was not left nothing."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

import cutaway
from cutaway.errors import CutawayError, ResourceError
from cutaway.project import Project

CLAIM = {"statement": "s", "verdict": "holds", "provenance": {}}
ROUNDS = 24

# Every kind of change in turn; a line on stdout acknowledges it, after the call returned.
WRITER = """
    import sys
    import numpy as np
    from cutaway.project import Project
    path, tag, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    with Project(path) as project:
        print("ready", flush=True)
        for i in range(count):
            key = f"{tag}.{i}"
            if i % 3 == 0:
                project.rename(key, "name of " + key)
            elif i % 3 == 1:
                project.comment(key, "text of " + key)
            else:
                project.add_record("run", {"key": key}, {"w": np.full(5000, hash(key) % 1000, np.float32)})
            print(key, flush=True)
"""
READER = """
    import sys, time
    from cutaway.project import Project
    seen, stop = 0, time.time() + float(sys.argv[2])
    with Project(sys.argv[1], readonly=True) as project:
        while time.time() < stop:
            records = project.records()
            assert len(records) >= seen
            seen = len(records)
            for record in records[-1:]:
                assert project.tensors(record["id"])["w"].shape == (5000,)
            assert project.check() == [], project.check()
            time.sleep(0.01)
    print(seen)
"""


def _start(code: str, *arguments: object) -> subprocess.Popen:
    """A Python process that runs `code` with our source tree on its path."""
    source = str(Path(cutaway.__path__[0]).parent)
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": source},
    )


def _lines(process: subprocess.Popen) -> list[str]:
    output, _ = process.communicate(timeout=120)
    # A kill may cut the last line; a cut line acknowledges nothing.
    return [line for line in output.split("\n")[:-1] if line != "ready"]


def _expect(project: Project, acknowledged: list[str]) -> None:
    names, comments = project.names(), project.comments()
    records = {record["data"]["key"]: record for record in project.records()}
    for key in acknowledged:
        index = int(key.split(".")[1])
        if index % 3 == 0:
            assert names[key] == f"name of {key}"
        elif index % 3 == 1:
            assert comments[key][0]["text"] == f"text of {key}"
        else:
            assert project.tensors(records[key]["id"])["w"].shape == (5000,)


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is a POSIX signal")
def test_kill_at_random_moments_loses_nothing_acknowledged(tmp_path: Path) -> None:
    moments = random.Random(0)
    acknowledged: list[str] = []
    path = tmp_path / "p.cutaway"
    for number in range(ROUNDS):
        process = _start(WRITER, path, f"r{number}", 100_000)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(moments.uniform(0, 0.12))
        process.send_signal(signal.SIGKILL)
        acknowledged += _lines(process)
        with Project(path) as project:
            assert project.check() == []
    assert len(acknowledged) > ROUNDS
    with Project(path) as project:
        _expect(project, acknowledged)
        entries = project.history()
        assert [entry["id"] for entry in entries] == list(range(1, len(entries) + 1))
    for file in path.rglob(".tmp*"):  # a staged file of a killed writer goes once it is an hour old
        os.utime(file, (0, 0))
    with Project(path):
        assert list(path.rglob(".tmp*")) == []


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is a POSIX signal")
def test_kill_while_creating(tmp_path: Path) -> None:
    moments = random.Random(1)
    code = "import sys\nfrom cutaway.project import Project\nprint('ready', flush=True)\nfor i in range(200):\n"
    code += "    Project(f'{sys.argv[1]}/p{i}').close()\n"
    process = _start(code, tmp_path)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(moments.uniform(0.05, 0.15))
    process.kill()
    process.communicate()
    for path in tmp_path.iterdir():
        with Project(path) as project:
            project.rename("a", "b")
            assert project.check() == []


def test_two_readers_while_one_writes(tmp_path: Path) -> None:
    path = tmp_path / "p.cutaway"
    Project(path).close()
    readers = [_start(READER, path, 0.8) for _ in range(2)]
    writer = _start(WRITER, path, "w", 90)
    assert len(_lines(writer)) == 90
    for reader in readers:
        assert _lines(reader) and reader.returncode == 0
    with Project(path) as project:
        _expect(project, [f"w.{index}" for index in range(90)])


def test_several_writers_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "p.cutaway"  # not there yet: they also race for its creation
    writers = [_start(WRITER, path, f"w{number}", 40) for number in range(5)]
    acknowledged = [line for writer in writers for line in _lines(writer)]
    assert len(acknowledged) == 200
    with Project(path) as project:
        _expect(project, acknowledged)
        assert len(project.history()) == 200
        assert project.check() == []


def test_threads_share_one_project(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with Project(tmp_path / "p") as project:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda i: project.rename(f"s{i}", f"n{i}"), range(100)))
        assert len(project.names()) == 100


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_full_disk_while_writing_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Project(tmp_path / "p") as project:
        kept = project.add_claim(CLAIM, {"w": np.zeros(10)})
        before = sorted(project.path.rglob("*"))
        with monkeypatch.context() as patch, pytest.raises(ResourceError, match="disk is full"):
            patch.setattr(os, broken, full)
            project.add_claim({**CLAIM, "n": 1}, {"w": np.ones(10)})
        assert sorted(project.path.rglob("*")) == before
        assert [claim["id"] for claim in project.claims()] == [kept]
        assert project.check() == []
        project.add_claim({**CLAIM, "n": 1}, {"w": np.ones(10)})
        assert len(project.claims()) == 2


def test_full_disk_in_the_database(tmp_path: Path) -> None:
    """SQLite's own limit on pages gives the error a full disk gives."""
    with Project(tmp_path / "p") as project:
        project.rename("a", "kept")
        project._database.read("PRAGMA max_page_count=1")
        with pytest.raises(ResourceError, match="disk is full"):
            project.add_record("run", {"text": "x" * 1_000_000}, {"w": np.ones(10)})
        assert list((project.path / "tensors").iterdir()) == []
        project._database.read("PRAGMA max_page_count=1000000")
        assert project.check() == [] and project.names() == {"a": "kept"}
        project.add_record("run", {"text": "x" * 1_000_000}, {"w": np.ones(10)})


@pytest.mark.skipif(os.name != "posix", reason="needs RLIMIT_FSIZE")
@pytest.mark.parametrize("limit", [200_000, 60_000])
def test_file_size_limit_leaves_nothing_half_written(tmp_path: Path, limit: int) -> None:
    code = """
        import resource, sys
        import numpy as np
        from cutaway.errors import ResourceError
        from cutaway.project import Project
        with Project(sys.argv[1]) as project:
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
            kept = 0
            try:
                for i in range(10_000):
                    project.rename(f"s{i}", f"n{i}" + "x" * 150)
                    kept += 1
            except ResourceError:
                print(kept)
            try:
                project.add_record("run", {}, {"w": np.zeros(300_000)})
            except ResourceError:
                print("refused")
    """
    process = _start(code, tmp_path / "p", limit)
    kept, refused = _lines(process)
    assert refused == "refused" and int(kept) > 0
    with Project(tmp_path / "p") as project:
        assert len(project.names()) == int(kept)
        assert list((project.path / "tensors").iterdir()) == [] and project.check() == []


def test_interrupt_rolls_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> int:
        raise KeyboardInterrupt

    with Project(tmp_path / "p") as project:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("cutaway.project.history.append", interrupt)
            project.add_record("run", {}, {"w": np.zeros(3)})
        assert list((project.path / "tensors").iterdir()) == []
        project.rename("a", "b")
        assert project.check() == []


def test_a_lock_that_never_opens_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cutaway.project.database.BUSY_SECONDS", 0.1)
    with Project(tmp_path / "p") as first, Project(tmp_path / "p") as second, first._database.writing():
        with pytest.raises(CutawayError, match="locked"):
            second.rename("a", "b")
        assert second.names() == {}
