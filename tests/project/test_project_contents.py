"""What goes into a project comes out again, and what may not go in is refused with one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cutaway.errors import ProjectError
from cutaway.project import Project

CLAIM = {"statement": "L0.attn.h1 copies the previous token", "verdict": "holds", "provenance": {"seed": 0}}


@pytest.fixture
def project(tmp_path: Path):
    with Project(tmp_path / "ioi") as opened:
        yield opened


def test_suffix_is_added_and_kept(tmp_path: Path) -> None:
    with Project(tmp_path / "ioi") as first, Project(tmp_path / "ioi.cutaway") as second:
        assert first.path == second.path == tmp_path / "ioi.cutaway"


def test_claim_comes_back_with_its_arrays(project: Project) -> None:
    arrays = {
        "scores": np.arange(12, dtype=np.float32).reshape(3, 4),
        "mask": np.array([True, False]),
        "scalar": np.array(7, dtype=np.int64),
        "empty": np.zeros((0, 5), dtype=np.float16),
        "big endian": np.arange(3, dtype=">f8"),
        "transposed": np.arange(6, dtype=np.int32).reshape(2, 3).T,
    }
    id = project.add_claim(CLAIM, arrays)
    claim = project.claim(id)
    assert {key: claim[key] for key in CLAIM} == CLAIM
    assert claim["id"] == id and claim["tensor_names"] == sorted(arrays)
    back = project.tensors(id)
    for name, array in arrays.items():
        assert back[name].shape == array.shape
        assert np.array_equal(back[name], array)
        assert not back[name].flags.writeable


def test_arrays_are_an_ordinary_safetensors_file(project: Project) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    arrays = {"a": np.ones((2, 2), np.float32), "b": np.array([1, 2], np.int8), "c": np.array(3, np.int64)}
    project.add_claim(CLAIM, arrays)
    (file,) = (project.path / "tensors").iterdir()
    assert {name: array.tolist() for name, array in safetensors.load_file(file).items()} == {
        name: array.tolist() for name, array in arrays.items()
    }


def test_same_content_is_kept_once(project: Project) -> None:
    arrays = {"w": np.ones(4, np.float32)}
    first = project.add_claim(CLAIM, arrays)
    assert project.add_claim({**CLAIM}, arrays) == first
    assert project.add_claim(project.claim(first), arrays) == first, "a claim handed back is the same claim"
    assert project.add_claim(CLAIM) != first, "without its arrays it is another claim"
    assert project.add_record("run", CLAIM, arrays) != first
    project.add_model("abc", {"name": "gpt2"})
    project.add_model("abc", {"name": "gpt2"})
    assert [entry["verb"] for entry in project.history()] == ["add_claim", "add_claim", "add_record", "add_model"]
    assert len(list((project.path / "tensors").iterdir())) == 1
    assert project.check() == []


def test_large_sets_are_split_into_shards(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cutaway.project.shards.SHARD_BYTES", 1000)
    arrays = {f"t{index}": np.full(100, index, np.float32) for index in range(10)}
    id = project.add_record("activations", {}, arrays)
    assert len(list((project.path / "tensors").iterdir())) == 5
    assert all(np.array_equal(project.tensors(id)[name], array) for name, array in arrays.items())


def test_records_by_kind(project: Project) -> None:
    project.add_record("run", {"kind": "mine", "n": np.int64(3), "shape": (1, 2)})
    project.add_record("sweep", {"x": 1})
    (run,) = project.records("run")
    assert run["kind"] == "run" and run["data"] == {"kind": "mine", "n": 3, "shape": [1, 2]}
    assert [record["kind"] for record in project.records()] == ["run", "sweep"]


def test_names_and_comments(project: Project) -> None:
    project.rename("L0.attn.h1", "previous token")
    project.rename("L0.attn.h1", "previous token head")
    project.rename("L1.attn.h2", "induction 👩‍🔬")
    project.comment("L0.attn.h1", "first\nsecond line")
    project.comment("L0.attn.h1", "again")
    project.comment("L0.attn.h1", "again")
    assert project.names() == {"L0.attn.h1": "previous token head", "L1.attn.h2": "induction 👩‍🔬"}
    assert [comment["text"] for comment in project.comments()["L0.attn.h1"]] == ["first\nsecond line", "again", "again"]
    project.rename("L1.attn.h2", "")
    assert "L1.attn.h2" not in project.names()
    assert project.history()[0]["command"] == f"cutaway rename {project.path} L0.attn.h1 'previous token'"


def test_show_is_json_and_complete(project: Project) -> None:
    project.add_model("abc", {"name": "gpt2"})
    project.rename("L0.mlp", "counter")
    project.add_claim(CLAIM, {"w": np.ones(3)})
    project.add_record("run", {})
    shown = json.loads(json.dumps(project.show()))
    assert shown["models"] == {"abc": {"name": "gpt2"}} and shown["records"] == {"run": 1}
    assert shown["claims"][0]["statement"] == CLAIM["statement"]
    assert shown["entries"] == 4 and shown["tensor_files"] == 1


def test_unknown_id_suggests_near_ones(project: Project) -> None:
    id = project.add_claim(CLAIM)
    assert project.claim(id[:6])["id"] == id
    with pytest.raises(ProjectError, match=id):
        project.claim(id[:-1] + "x")
    with pytest.raises(ProjectError, match="has no claim"):
        project.claim("zzzz")
    with pytest.raises(ProjectError, match="has no claim or record"):
        project.tensors("zzzz")


def test_two_sites_cannot_share_a_name(project: Project) -> None:
    project.rename("L0.attn.h1", "copier")
    with pytest.raises(ProjectError, match="already belongs to L0.attn.h1; take another"):
        project.rename("L0.attn.h2", "copier")
    with pytest.raises(ProjectError, match="already belongs"):
        project.rename("L0.attn.h2", " copier".strip())
    assert project.names() == {"L0.attn.h1": "copier"}
    assert project.check() == []


@pytest.mark.parametrize("name", ["a\x1b[2Jb", "a\nb", "a\0b", "abc\u202egpj", " ", "x" * 201, "a\ud800", 3])
def test_names_that_would_lie_or_flood_are_refused(project: Project, name: object) -> None:
    with pytest.raises(ProjectError):
        project.rename("L0.attn.h1", name)  # type: ignore[arg-type]
    assert project.names() == {} and project.history() == []


@pytest.mark.parametrize("text", ["x" * 20_001, "a\x07b", "", "\n"])
def test_comments_are_bounded(project: Project, text: str) -> None:
    with pytest.raises(ProjectError):
        project.comment("L0.mlp", text)


def _deep(levels: int) -> object:
    return [] if levels == 0 else [_deep(levels - 1)]


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"effect": float("nan")}, r"\['effect'\] is nan"),
        ({"x": {1: 2}}, "not a string"),
        ({"x": {1, 2}}, "set"),
        ({"x": np.ones(2)}, "tensors"),
        ({"x": _deep(100)}, "deeper"),
        ({"x": 10**5000}, "too large"),
        ({"x": "a" * (17 << 20)}, "bytes of JSON"),
        ({"x": "\ud800"}, "surrogate"),
        ({"statement": "\x1b[0m"}, "U\\+001B"),
    ],
)
def test_values_json_cannot_hold_are_refused(project: Project, extra: dict, says: str) -> None:
    with pytest.raises(ProjectError, match=says):
        project.add_claim({**CLAIM, **extra}, {"w": np.ones(2)})
    assert project.history() == [] and list((project.path / "tensors").iterdir()) == []


@pytest.mark.parametrize("key", list(CLAIM))
def test_incomplete_claims_are_refused(project: Project, key: str) -> None:
    with pytest.raises(ProjectError, match=key):
        project.add_claim({k: v for k, v in CLAIM.items() if k != key})


@pytest.mark.parametrize(
    "tensors",
    [
        {"w": np.array([object()])},
        {"w": [1, 2]},
        {"w": np.array(["a"])},
        {"w": np.ones(2, np.complex128)},
        {"": np.ones(1)},
        {"__metadata__": np.ones(1)},
        {"é": np.ones(1), "e\u0301": np.ones(1)},
    ],
)
def test_arrays_that_cannot_be_stored_are_refused(project: Project, tensors: dict) -> None:
    with pytest.raises(ProjectError):
        project.add_record("run", {}, tensors)
    assert list((project.path / "tensors").iterdir()) == []
