"""`info`: what it finds in values, and what it costs."""

from __future__ import annotations

import json
import os
import resource
import struct
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from crafted_files import entry, npy_bytes, safetensors_bytes, zip_bytes
from crafted_models import gguf_bytes, gguf_tensor
from safetensors.numpy import save_file

from cutaway.errors import FormatError
from cutaway.formats import info, open_checkpoint
from cutaway.formats.examination import examine

RANDOM = np.random.default_rng(0)


def _found(path: Path) -> dict[str, dict[str, str]]:
    """Findings by tensor and kind."""
    found: dict[str, dict[str, str]] = {}
    for finding in info(path)["findings"]:
        found.setdefault(finding["tensor"], {})[finding["kind"]] = finding["text"]
    return found


def test_what_is_odd_about_values(tmp_path: Path) -> None:
    normal = RANDOM.standard_normal((40, 60)).astype(np.float32)
    dead = normal.copy()
    dead[[3, 7]], dead[:, 59] = 0, 0
    same = normal.copy()
    same[5] = 2
    far = normal.copy()
    far[1, 2] = 3e3
    sparse = np.where(RANDOM.random((40, 60)) < 0.1, normal, 0).astype(np.float32)
    low = 9 * (RANDOM.standard_normal((400, 4)) @ RANDOM.standard_normal((4, 60))).astype(np.float32)
    bad = np.array([np.nan, np.inf, -np.inf, 1, 1e-40], np.float32)
    tensors = {"normal": normal, "dead": dead, "same": same, "far": far, "sparse": sparse, "low": low, "bad": bad}
    tensors |= {"zeros": np.zeros((9, 9), np.float32), "half": np.array([6e-8, 1.0], np.float16)}
    tensors |= {"count": np.arange(9), "mask": np.array([True, False]), "low16": low.astype(np.float16)}
    save_file(tensors, tmp_path / "x.safetensors")
    found = _found(tmp_path / "x.safetensors")
    assert found.keys() == {"dead", "same", "far", "sparse", "low", "low16", "bad", "zeros", "half"}
    assert found["dead"] == {"dead": "2 rows of only zeros, first 3, 7 and 1 column of only zeros, first 59"}
    assert found["same"] == {"constant rows": "1 row"} and found["far"].keys() == {"outlier"}
    assert found["low"] == found["low16"] == {"low rank": "rank 4 of at most 60"}
    assert found["bad"] == {"not finite": "1 NaN, 2 infinite", "denormal": "1 number too small for full precision"}
    assert found["zeros"] == {"constant": "all 81 values are 0"} and found["half"].keys() == {"denormal"}
    assert "90% zeros" in found["sparse"]["sparse"] or "89% zeros" in found["sparse"]["sparse"]


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2", "<i4", "|u1", "|b1", "<c8"])
@pytest.mark.parametrize("order", "CF")
def test_figures_equal_those_of_numpy(tmp_path: Path, dtype: str, order: str) -> None:
    """On an array of several pieces, with rows that do not divide them."""
    array = (RANDOM.standard_normal((3000, 211)) * 3).astype(dtype)
    array[17] = 0
    np.save(tmp_path / "x.npy", np.asarray(array, order=order))  # type: ignore[call-overload]
    facts = examine(open_checkpoint(tmp_path / "x.npy"), "x")
    plain = array.astype(array.dtype.newbyteorder("="))
    plain = (plain.view(np.float32) if plain.dtype.kind == "c" else plain).astype(np.float64)
    for key, expected in {"min": plain.min(), "max": plain.max(), "mean": plain.mean(), "std": plain.std()}.items():
        assert facts[key] == pytest.approx(expected, rel=1e-4, abs=1e-4), key
    assert facts["zeros"] == np.count_nonzero(plain == 0) and facts["nan"] == facts["inf"] == 0
    if plain.shape == array.shape:
        dead = np.flatnonzero(~array.any(1))
        assert facts["dead_rows"] == len(dead) and facts["first_dead_rows"] == dead[:5].tolist()
        assert facts["dead_columns"] == 0


@pytest.mark.parametrize("rank", [0, 1, 7, 24, 25, 60])
def test_rank(tmp_path: Path, rank: int) -> None:
    matrix = (RANDOM.standard_normal((5000, rank)) @ RANDOM.standard_normal((rank, 200))).astype(np.float32)
    np.save(tmp_path / "x.npy", matrix)
    assert examine(open_checkpoint(tmp_path / "x.npy"), "x")["rank"] == (rank if rank <= 24 else None)


def test_quantised_and_tied(tmp_path: Path) -> None:
    block = struct.pack("<e", 1.0) + bytes([0x88] * 16)  # every number is 0
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf_bytes([], [gguf_tensor("w", [3, 32], 2, 0)], block * 3))
    assert _found(path) == {"w": {"constant": "all 96 values are 0"}}
    save_file({"a.weight": np.ones(3), "b.weight": np.ones(3), "x.qweight": np.arange(4)}, tmp_path / "x.safetensors")
    facts = info(tmp_path / "x.safetensors")
    assert facts["duplicates"] == [["a.weight", "b.weight"]] and facts["quantisation"]["schemes"] == ["GPTQ or AWQ"]


def test_module_tree(tmp_path: Path) -> None:
    names = ["m.layers.0.a.weight", "m.layers.0.b.weight", "m.layers.1.a.weight", "m.head", "free", "." * 3000]
    save_file({name: np.ones(2, np.float32) for name in names}, tmp_path / "x.safetensors")
    modules = info(tmp_path / "x.safetensors")["modules"]
    assert {name: total["parameters"] for name, total in modules.items() if set(name) != {"."}} == {
        "m": 8, "m.layers": 6, "m.layers.0": 4, "m.layers.0.a": 2, "m.layers.0.b": 2, "m.layers.1": 2,
        "m.layers.1.a": 2, "free": 2,
    }  # fmt: skip
    assert len(modules) < 30


def test_header_of_ten_gigabytes_takes_less_than_a_second(tmp_path: Path) -> None:
    """Sparse files, so that the disk holds only the header."""
    rows, width = 1000, 10_000_000
    header = {f"layers.{index}.w": entry("U8", [width], index * width, (index + 1) * width) for index in range(rows)}
    content = safetensors_bytes(header)
    (tmp_path / "x.safetensors").write_bytes(content)
    os.truncate(tmp_path / "x.safetensors", len(content) + rows * width)
    gguf = gguf_bytes([], [gguf_tensor(f"w{index}", [width], 24, index * width) for index in range(rows)], b"")
    (tmp_path / "x.gguf").write_bytes(gguf)
    os.truncate(tmp_path / "x.gguf", len(gguf) + rows * width)
    for name in ("x.safetensors", "x.gguf"):
        start = time.perf_counter()
        facts = info(tmp_path / name)
        assert time.perf_counter() - start < 1
        assert facts["parameters"] == rows * width and not facts["examined"] and "sha256" not in facts["files"][0]
        values = open_checkpoint(tmp_path / name).read(facts["tensors"][-1]["name"])
        assert values.shape == (width,) and not values.any()


def test_deep_examination_takes_bounded_memory(tmp_path: Path) -> None:
    """A gigabyte of zeros, mapped, in columns, and deflated to a few hundred kilobytes: nothing is held as a whole."""
    content = safetensors_bytes({"w": entry("F32", [16_384, 16_384], 0, 1 << 30)})
    (tmp_path / "x.safetensors").write_bytes(content)
    os.truncate(tmp_path / "x.safetensors", len(content) + (1 << 30))
    np.savez_compressed(tmp_path / "x.npz", w=np.zeros(60 << 20, np.uint8))
    code = (
        "import resource, sys; from cutaway.formats import info\n"
        "info(sys.argv[1])\n"
        "base = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (base, base))\n"
        "facts = info(sys.argv[1], deep=True)\n"
        "assert facts['findings'][0]['kind'] == 'constant', facts['unexamined']\n"
        "assert int(open('/proc/self/status').read().split('RssAnon:')[1].split()[0]) < 200_000\n"
    )
    for name in ("x.safetensors", "x.npz"):
        environment = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, "-c", code, tmp_path / name], env=environment, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()


def test_tensors_larger_than_their_file_are_not_examined(tmp_path: Path) -> None:
    from crafted_files import tensor_pickle, torch_zip_bytes

    content = torch_zip_bytes(tensor_pickle((10**12, 2), (0, 1), 2), {"0": bytes(8)})
    (tmp_path / "x.pt").write_bytes(content)
    assert "larger than its file" in info(tmp_path / "x.pt", deep=True)["unexamined"]["w"]


def _folder(path: Path) -> Path:
    path.mkdir()
    (path / "model.safetensors").write_bytes(safetensors_bytes({"w": entry("U8", [1], 0, 1)}, b"1"))
    return path


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("levels", [150, 2_000, 200_000])
def test_json_of_absurd_depth(tmp_path: Path, name: str, levels: int) -> None:
    folder = _folder(tmp_path / "m")
    for text in (b"[" * levels + b"]" * levels, b'{"a":' * levels + b"1" + b"}" * levels):
        (folder / name).write_bytes(text)
        with pytest.raises(FormatError, match="nested"):
            info(folder)


def test_chat_templates_are_shown_and_not_rendered(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "m")
    evil = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": evil}))
    (folder / "chat_template.jinja").write_text(evil)
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": {"a": 0}}}))
    metadata = info(folder)["metadata"]
    assert metadata["chat_templates"] == {"tokenizer_config.json": evil, "chat_template.jinja": evil}
    assert metadata["tokenizer"] == {"type": "BPE", "vocabulary": 1, "added": 0}


def test_links(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "m")
    (tmp_path / "elsewhere.json").write_text("{}")
    (folder / "config.json").symlink_to(tmp_path / "elsewhere.json")
    assert any("link to a file outside" in risk["text"] for risk in info(folder)["risks"])
    (folder / "model.safetensors").unlink()
    for target in ("/dev/zero", "model.safetensors", "gone", "/etc/passwd", tmp_path):
        (folder / "model.safetensors").unlink(missing_ok=True)
        (folder / "model.safetensors").symlink_to(target)
        for path in (folder, folder / "model.safetensors"):
            with pytest.raises(FormatError):
                info(path)


def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    save_file({"w": np.ones(3, np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "loop.pt").symlink_to("loop.pt")
    assert any("loop.pt is a link that leads nowhere" in risk["text"] for risk in info(tmp_path)["risks"])
    with pytest.raises(FormatError, match="loop.pt is a link that leads nowhere"):
        info(tmp_path / "loop.pt")
    with pytest.raises(FormatError, match="is empty"):
        info("")


def test_a_byte_that_was_inverted_in_an_archive_is_found(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", a=np.zeros(99), b=np.ones(9))
    (tmp_path / "y.zip").write_bytes(zip_bytes({"a.npy": npy_bytes(np.arange(50.0)), "b.npy": npy_bytes(np.ones(3))}))
    (tmp_path / "y.zip").rename(tmp_path / "y.npz")
    for name in ("x.npz", "y.npz"):
        assert not any(finding["kind"] == "damaged" for finding in info(tmp_path / name, deep=True)["findings"])
    content = bytearray((tmp_path / "y.npz").read_bytes())
    content[content.index(np.arange(50.0).tobytes()) + 9] ^= 0xFF
    (tmp_path / "y.npz").write_bytes(content)
    damaged = [finding for finding in info(tmp_path / "y.npz", deep=True)["findings"] if finding["kind"] == "damaged"]
    assert [finding["tensor"] for finding in damaged] == ["a"]
    assert damaged[0]["text"] == "a.npy in y.npz does not agree with its checksum; get the file again"


def test_archives_of_torch_without_checksums_are_not_called_damaged(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    computed = torch.serialization.get_crc32_options()
    try:
        for crc in (True, False):
            torch.serialization.set_crc32_options(crc)
            torch.save({"w": torch.arange(50.0)}, tmp_path / "x.pt")
            content = (tmp_path / "x.pt").read_bytes()
            assert info(tmp_path / "x.pt")["findings"] == []
            at = content.index(np.arange(50, dtype=np.float32).tobytes()) + 4
            (tmp_path / "y.pt").write_bytes(content[:at] + b"\1" + content[at + 1 :])
            damaged = [row for row in info(tmp_path / "y.pt", deep=True)["findings"] if row["kind"] == "damaged"]
            assert [row["tensor"] for row in damaged] == (["w"] if crc else [])
    finally:
        torch.serialization.set_crc32_options(computed)


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_of_undecoded_kinds_are_listed(tmp_path: Path, zipped: bool) -> None:
    torch = pytest.importorskip("torch")
    marked = torch.ones(3)
    marked.note = "x"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.quantize_per_tensor(torch.ones(4, 2), 0.1, 0, torch.qint8)
    tensors = {"q": quantised, "marked": marked, "sparse": torch.eye(3).to_sparse()}
    torch.save(tensors, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    facts = info(tmp_path / "x.pt")
    rows = {row["name"]: (row["dtype"], row["shape"]) for row in facts["tensors"]}
    assert rows["q"] == ("qint8", [4, 2]) and rows["marked"] == ("float32", [3])
    assert rows.keys() == {"q", "marked", "sparse.0", "sparse.1"}
    assert "'q' in x.pt is of a kind that is not decoded" in facts["unexamined"]["q"]


def test_a_folder_of_another_format(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(gguf_bytes([], [gguf_tensor("w", [2], 0, 0)], bytes(8)))
    assert info(tmp_path)["metadata"]["weights"] == "GGUF"


def test_archives_that_climb_out_of_their_folder_write_nothing(tmp_path: Path) -> None:
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    (inside / "x.zip").write_bytes(zip_bytes({"../../evil.py": b"1", "/etc/evil": b"2"}))
    (inside / "x.npz").write_bytes(zip_bytes({"../../evil.npy": b"1"}))
    (inside / "x.pt").write_bytes(zip_bytes({"../data.pkl": b"\x80\x02}.", "../../evil": b""}))
    for name in ("x.zip", "x.npz"):
        with pytest.raises(FormatError):
            info(inside / name)
    assert sum("outside" in risk["text"] for risk in info(inside / "x.pt")["risks"]) == 2
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "x.npz", "x.pt", "x.zip"]


def test_memo_bombs_take_little_time_and_memory(tmp_path: Path) -> None:
    from crafted_files import torch_zip_bytes

    doubling = b"\x80\x02]q\x00" + b"".join(b"](h" + bytes([n % 250]) + b"h" + bytes([n % 250]) + b"eq"
                                            + bytes([(n + 1) % 250]) for n in range(240)) + b"."  # fmt: skip
    (tmp_path / "x.pt").write_bytes(torch_zip_bytes(doubling))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with pytest.raises(FormatError, match="repeats some without end"):
        info(tmp_path / "x.pt")
    assert time.perf_counter() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
