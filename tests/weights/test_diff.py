"""Differences: what was planted is found, and nothing else."""

from __future__ import annotations

import io
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from crafted_models import gguf_bytes, gguf_key, gguf_tensor, gguf_text
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from saving import normal, saved, saved_by_torch

from cutaway.formats import open_checkpoint
from cutaway.report.weights_text import differing as differing_text
from cutaway.weights import compare, health, recover

BEFORE = {"a.weight": normal(48, 40), "b.weight": normal(40, 48, seed=1), "c.bias": normal(48, seed=2)}


def differing(tmp_path: Path, after: dict[str, np.ndarray], before: dict[str, np.ndarray] = BEFORE):
    return compare(saved(tmp_path / "a.safetensors", before), saved(tmp_path / "b.safetensors", after))


def test_equal_files_of_two_formats(tmp_path: Path) -> None:
    one = saved(tmp_path / "a.safetensors", BEFORE)
    other = saved_by_torch(tmp_path / "b.pt", {name: torch.from_numpy(array) for name, array in BEFORE.items()})
    found = compare(one, other)
    assert found.equal and found.summary() == ["Both hold the same numbers under the same names."]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 8), st.sampled_from(["float32", "bfloat16", "float16"]), st.floats(0.02, 1.0))
def test_a_merged_lora_is_recognised_with_its_rank(rank: int, dtype: str, size: float) -> None:
    folder = Path(tempfile.mkdtemp())
    weight = torch.from_numpy(normal(96, 80, seed=rank))
    update = torch.from_numpy(normal(96, rank, seed=rank + 1) @ normal(rank, 80, seed=rank + 2)) / 80**0.5
    kind = getattr(torch, dtype)
    one = saved_by_torch(folder / "a.pt", {"w": weight.to(kind)})
    other = saved_by_torch(folder / "b.pt", {"w": (weight.to(kind).float() + size * update).to(kind)})
    (row,) = compare(one, other).changes
    if dtype == "float32" or size > 0.2:
        assert row.low_rank and row.rank == rank
    else:
        assert row.rank <= rank  # a direction may drown in what rounding does, but none is made up


def test_a_full_change_is_no_lora(tmp_path: Path) -> None:
    found = differing(tmp_path, {**BEFORE, "a.weight": BEFORE["a.weight"] + 0.1 * normal(48, 40, seed=9)})
    (row,) = [row for row in found.changes if row.status == "changed"]
    assert (row.rank, row.low_rank) == (40, False)
    assert row.figures["relative"] == pytest.approx(0.1, rel=0.1)


def test_places_are_named(tmp_path: Path) -> None:
    after = {**BEFORE, "a.weight": BEFORE["a.weight"].copy()}
    after["a.weight"][[3, 17], 5] += 1
    (row,) = [row for row in differing(tmp_path, after).changes if row.status == "changed"]
    assert row.rows == {"count": 2, "of": 48, "first": [3, 17]}
    assert row.columns == {"count": 1, "of": 40, "first": [5]}
    assert (row.rank, row.low_rank, row.figures["largest"]) == (1, False, pytest.approx(1))


def test_renamed_transposed_added_and_removed(tmp_path: Path) -> None:
    after = {"x.weight": BEFORE["a.weight"], "b.weight": BEFORE["b.weight"].T, "new": normal(5, 7, seed=5)}
    found = differing(tmp_path, after)
    rows = {row.name: row for row in found.changes}
    assert (rows["a.weight"].other, rows["a.weight"].status) == ("x.weight", "same")
    assert rows["b.weight"].transposed and rows["b.weight"].status == "same"
    assert (found.added, found.removed, found.equal) == (["new"], ["c.bias"], False)


def test_a_square_matrix_that_was_transposed(tmp_path: Path) -> None:
    square = {"w": normal(16, 16)}
    found = differing(tmp_path, {"w": square["w"].T}, square)
    (row,) = found.changes
    assert row.transposed and row.status == "same" and not found.equal
    assert found.summary() == ["1 tensor holds the same numbers.", "1 tensor is transposed."]
    assert found.record()["changes"][0]["transposed"]
    console = Console(width=90, record=True, file=io.StringIO())
    console.print(differing_text(found.record()))
    assert re.search(r"^ *w +same transposed", console.export_text(), re.MULTILINE)


def test_renamed_and_changed(tmp_path: Path) -> None:
    after = {**BEFORE, "z": BEFORE["c.bias"] * 1.01}
    del after["c.bias"]
    found = differing(tmp_path, after)
    assert [(row.other, row.status) for row in found.changes if row.name == "c.bias"] == [("z", "changed")]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_another_type_is_a_cast_and_no_change(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {name: torch.from_numpy(array) for name, array in BEFORE.items()}
    one = saved_by_torch(tmp_path / "a.pt", tensors)
    other = saved_by_torch(tmp_path / "b.pt", {name: tensor.to(dtype) for name, tensor in tensors.items()})
    assert {row.status for row in compare(one, other).changes} == {"cast"}
    assert {row.status for row in compare(other, one).changes} == {"cast"}


def test_reshaped(tmp_path: Path) -> None:
    found = differing(tmp_path, {**BEFORE, "a.weight": normal(50, 40)})
    assert found.reshaped == [("a.weight", (48, 40), (50, 40))]


def test_equal_tensors_are_paired_by_their_names(tmp_path: Path) -> None:
    ones = {f"layers.{layer}.norm.weight": np.ones(8, np.float32) for layer in range(3)}
    found = differing(tmp_path, {f"model.{name}": array for name, array in ones.items()}, ones)
    assert all(row.other == f"model.{row.name}" for row in found.changes)


def test_a_quantised_gguf_file_against_full_precision(tmp_path: Path) -> None:
    weight = normal(16, 64, seed=3)
    blocks = weight.reshape(-1, 32)
    scale = (np.abs(blocks).max(1, keepdims=True) / 127).astype(np.float16)
    codes = np.rint(blocks / scale.astype(np.float32)).astype(np.int8)
    data = b"".join(part.tobytes() + row.tobytes() for part, row in zip(scale, codes, strict=True))
    key = gguf_key("general.architecture", 8, gguf_text("llama"))
    path = tmp_path / "b.gguf"
    path.write_bytes(gguf_bytes([key], [gguf_tensor("blk.0.attn_q.weight", (16, 64), 8, 0)], data))
    one = saved(tmp_path / "a.safetensors", {"model.layers.0.self_attn.q_proj.weight": weight})
    found = compare(one, open_checkpoint(path))
    (row,) = found.changes
    assert (row.status, row.other) == ("quantised", "blk.0.attn_q.weight")
    assert row.figures["relative"] < 0.01 and row.figures["cosine"] > 0.999


def test_a_tensor_larger_than_its_file_is_not_read(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1).expand(1 << 20, 1 << 20), "x": torch.ones(3)}, tmp_path / "a.pt")
    found = compare(open_checkpoint(tmp_path / "a.pt"), open_checkpoint(tmp_path / "a.pt"))
    assert found.unread == ["w"] and not found.equal
    assert health(open_checkpoint(tmp_path / "a.pt"))["skipped"] == ["w"]
    assert recover(open_checkpoint(tmp_path / "a.pt")).confidence == "unknown"
