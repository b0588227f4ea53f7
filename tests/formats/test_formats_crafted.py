"""Files made for the test: every format round-trips, and `info` says what is in it."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from crafted_files import entry, npy_bytes, safetensors_bytes, tensor_pickle, torch_zip_bytes, zip_bytes

from cutaway.errors import FormatError
from cutaway.formats import info, open_checkpoint


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_types_numpy_lacks(tmp_path: Path) -> None:
    bits = np.array([0x3F80, 0x7F80, 0x7FC0, 0xFF80], np.uint16)  # 1, inf, nan, -inf
    small = np.array([0x7F, 0xFF, 0x7E, 0], np.uint8)  # e4m3fn: nan, nan, 448, 0
    header = {
        "__metadata__": {"format": "pt"},
        "b": entry("BF16", [2, 2], 0, 8),
        "e4": entry("F8_E4M3", [4], 8, 12),
        "e5": entry("F8_E5M2", [4], 12, 16),
        "f4": entry("F4", [2, 4], 16, 20),
        "empty": entry("F32", [0, 3], 20, 20),
        "scalar": entry("I64", [], 20, 28),
    }
    data = bits.tobytes() + small.tobytes() + bytes([0x7C, 0x7D, 0xFC, 0]) + b"\1\2\3\4" + (7).to_bytes(8, "little")
    path = _write(tmp_path / "x.safetensors", safetensors_bytes(header, data))
    checkpoint = open_checkpoint(path)
    assert checkpoint.tensors["b"].dtype == "bfloat16"
    assert checkpoint.read("b").dtype == np.uint16 and checkpoint.read("b").tolist() == bits.reshape(2, 2).tolist()
    assert checkpoint.read("f4").tolist() == [1, 2, 3, 4]
    assert checkpoint.read("empty").shape == (0, 3) and checkpoint.read("scalar").item() == 7
    assert not checkpoint.read("b").flags.writeable
    facts = info(path, deep=True)
    assert facts["nonfinite"] == {
        "b": {"nan": 1, "inf": 2},
        "e4": {"nan": 2, "inf": 0},
        "e5": {"nan": 1, "inf": 2},
    }
    assert facts["metadata"] == {"metadata": {"format": "pt"}} and facts["parameters"] == 21
    with pytest.raises(FormatError, match="did you mean scalar"):
        checkpoint.read("scaler")


def test_strided_and_tied_tensors_of_torch(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32)
    turned = _write(
        tmp_path / "t.pt", torch_zip_bytes(tensor_pickle((3, 2), (1, 4), 12, offset=2), {"0": values.tobytes()})
    )
    expected = np.lib.stride_tricks.as_strided(values[2:], (3, 2), (4, 16))
    assert np.array_equal(open_checkpoint(turned).read("w"), expected)
    assert info(turned, deep=True)["parameters"] == 6
    spread = _write(
        tmp_path / "e.pt", torch_zip_bytes(tensor_pickle((10**12, 2), (0, 1), 2), {"0": values[:2].tobytes()})
    )
    facts = info(spread, deep=True)  # must not read 8 TB
    assert any("more elements than are stored" in risk["text"] for risk in facts["risks"])
    assert open_checkpoint(spread).read("w")[10**11].tolist() == [0, 1]


def test_torch_saves(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    shared = torch.randn(4, 3)
    saved = {
        "model": {
            "a.weight": shared,
            "b.weight": shared,
            "t": shared.t()[1:],
            "half": shared.half(),
            "bf": shared.bfloat16(),
        },
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "step": 7,
        "list": [torch.zeros(2, 0), torch.tensor(3)],
        "flags": torch.tensor([True, False]),
        "complex": torch.ones(2, dtype=torch.complex64),
        3: torch.ones(1),
    }
    for legacy in (False, True):
        path = tmp_path / f"{legacy}.pt"
        torch.save(saved, path, _use_new_zipfile_serialization=not legacy)
        checkpoint = open_checkpoint(path)
        assert checkpoint.format == ("torch (legacy)" if legacy else "torch (zip)")
        assert np.array_equal(checkpoint.read("model.t"), shared.t()[1:].numpy())
        assert np.array_equal(checkpoint.read("model.bf"), shared.bfloat16().view(torch.uint16).numpy())
        assert checkpoint.tensors["list.0"].shape == (2, 0) and checkpoint.read("list.1").item() == 3
        assert checkpoint.read("3").tolist() == [1] and checkpoint.read("parameter").tolist() == [1, 1]
        assert ["model.a.weight", "model.b.weight"] == info(path)["tied"][0]
        assert [risk.severity for risk in checkpoint.risks] == ["low"]


def test_pickled_module_of_ours_and_torchscript(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    torch.save(module, tmp_path / "m.pt")
    checkpoint = open_checkpoint(tmp_path / "m.pt")
    assert set(checkpoint.tensors) == set(module.state_dict())
    assert any("torch.nn.modules.linear.Linear" in r.text for r in checkpoint.risks if r.severity == "high")


def test_numpy_archives(tmp_path: Path) -> None:
    arrays = {
        "W_enc": np.arange(6, dtype=np.float32).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big": np.arange(4, dtype=">i4"),
        "scalar": np.array(2.5),
        "mask": np.array([True, False]),
    }
    np.savez(tmp_path / "a.npz", **arrays)
    np.savez_compressed(tmp_path / "b.npz", **arrays)
    for name in ("a.npz", "b.npz"):
        checkpoint = open_checkpoint(tmp_path / name)
        assert set(checkpoint.tensors) == set(arrays)
        assert all(np.array_equal(checkpoint.read(key), array) for key, array in arrays.items())
        assert info(tmp_path / name, deep=True)["nonfinite"] == {}


def test_sharded_folder(tmp_path: Path) -> None:
    config = {"model_type": "x", "auto_map": {"AutoModel": "modeling.Evil"}, "_attn_implementation": "someone/kernel"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "modeling.py").write_text("raise SystemExit")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ x }}"}))
    _write(tmp_path / "pytorch_model.bin", b"\x80\x02}.")
    for number in (1, 2):
        header = {f"t{number}": entry("U8", [2], 0, 2)}
        _write(tmp_path / f"model-{number}.safetensors", safetensors_bytes(header, b"ab"))
    index = {"weight_map": {"t1": "model-1.safetensors", "t2": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    checkpoint = open_checkpoint(tmp_path)
    assert set(checkpoint.tensors) == {"t1", "t2"} and checkpoint.metadata["weights"] == "safetensors (sharded)"
    high = " ".join(risk.text for risk in checkpoint.risks if risk.severity == "high")
    assert "auto_map" in high and "modeling.py" in high and "someone/kernel" in high
    assert any("pytorch_model.bin" in risk.text for risk in checkpoint.risks if risk.severity == "medium")
    assert any("chat_template" in risk.text for risk in checkpoint.risks)
    for where in ("../model-1.safetensors", "/etc/passwd", "..", "gone.safetensors", "model-2.safetensors"):
        index["weight_map"]["t1"] = where
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(FormatError):
            open_checkpoint(tmp_path)


def test_folder_with_pickles_only(tmp_path: Path) -> None:
    content = torch_zip_bytes(tensor_pickle((2,), (1,), 2), {"0": b"\0" * 8})
    _write(tmp_path / "pytorch_model.bin", content)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.tensors["w"].shape == (2,)
    assert any(risk.severity == "medium" for risk in checkpoint.risks)


def test_bare_pickle_lists_imports(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(_write(tmp_path / "x.pkl", pickle.dumps({"a": np.ones(2)})))
    assert checkpoint.format == "pickle" and not checkpoint.tensors
    assert "numpy.ndarray" in checkpoint.metadata["imports"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
            (b"<!DOCTYPE html>", "web page"),
        (b"", "no format"),
        (b"hello", "no format"),
    ],
)
def test_strangers(tmp_path: Path, content: bytes, says: str) -> None:
    with pytest.raises(FormatError, match=says):
        open_checkpoint(_write(tmp_path / "x.bin", content))


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    _write(tmp_path / "model.safetensors", safetensors_bytes({}))
    with pytest.raises(FormatError, match=r"did you mean model\.safetensors"):
        open_checkpoint(tmp_path / "modle.safetensors")
    for path in ("a\0b", "x" * 5000, "/dev/zero", tmp_path / "no" / "where"):
        with pytest.raises(FormatError):
            open_checkpoint(path)
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(FormatError, match="not a plain file"):
        open_checkpoint(tmp_path / "pipe.pt")


def test_empty_archives(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="without a checkpoint"):
        open_checkpoint(_write(tmp_path / "x.zip", zip_bytes({"readme": b"hi"})))
    assert open_checkpoint(_write(tmp_path / "x.safetensors", safetensors_bytes({}))).tensors == {}
    with pytest.raises(FormatError, match="compressed member"):
        packed = zip_bytes({"archive/data.pkl": b"\x80\x02}." + b" " * 99}, zipfile.ZIP_DEFLATED)
        open_checkpoint(_write(tmp_path / "x.pt", packed))


def test_big_endian_npy(tmp_path: Path) -> None:
    path = _write(tmp_path / "x.npy", npy_bytes(np.arange(3, dtype=">f4")))
    assert open_checkpoint(path).read("x").tolist() == [0, 1, 2]
