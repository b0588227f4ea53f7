"""What `doctor` recognises, on machines that are made up."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from cutaway.commands import checkup


def _found(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> list[str]:
    known = dict.fromkeys(checkup.NEEDED, "9.9") | versions
    monkeypatch.setattr(checkup, "_version", lambda name: known.get(name))
    return [problem["text"] for problem in checkup.doctor()["problems"]]


def test_old_torch_and_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _found(monkeypatch, torch="2.9.1", transformers="5.2.0")
    assert any("torch 2.9.1" in text and "CVE-2026-24747" in text for text in found)
    assert any("transformers 5.2.0" in text for text in found)
    assert not _found(monkeypatch, torch="2.10.0+cpu", transformers="5.3.0")


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "msgspec is not installed." in _found(monkeypatch, msgspec=None)
    assert not checkup.doctor()["healthy"]


def test_cuda_build_without_a_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "version.py").write_text("__version__ = '2.13.0'\ncuda: Optional[str] = '12.8'\nhip = None\n")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(checkup.importlib.util, "find_spec", lambda name: spec if name == "torch" else None)
    monkeypatch.setattr(checkup, "_gpu", lambda: False)
    assert any("CUDA 12.8" in text for text in _found(monkeypatch, torch="2.13.0"))
    monkeypatch.setattr(checkup, "_gpu", lambda: True)
    assert not _found(monkeypatch, torch="2.13.0")


def test_torchvision_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup.importlib.util, "find_spec", lambda name: object() if name == "torchvision" else None)
    broken = "Traceback…\nRuntimeError: operator torchvision::nms does not exist\n"
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: SimpleNamespace(returncode=1, stderr=broken))
    found = _found(monkeypatch, torchvision="0.28.0")
    assert any("operator torchvision::nms does not exist" in text and "does not match" in text for text in found)
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: SimpleNamespace(returncode=0, stderr=""))
    assert not _found(monkeypatch, torchvision="0.28.0")


def test_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(checkup.shutil, "disk_usage", lambda place: SimpleNamespace(free=10_000_000))
    monkeypatch.setattr(checkup.os, "access", lambda place, mode: False)
    found = [problem["text"] for problem in checkup.doctor(str(tmp_path))["problems"]]
    assert any("cannot be written to" in text for text in found)
    assert any("0.0 GB are free" in text for text in found)
    assert any("no folder" in problem["text"] for problem in checkup.doctor(str(tmp_path / "none"))["problems"])
