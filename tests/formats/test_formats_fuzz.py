"""Mutated files of every format, and files that hypothesis thinks of: an answer, or one sentence, and nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crafted_files import entry, safetensors_bytes, torch_zip_bytes, zip_bytes
from crafted_models import gguf_bytes, gguf_key, gguf_tensor, onnx_bytes, onnx_tensor, proto
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from seeds import seeds

from cutaway.errors import FormatError
from cutaway.formats import info, open_checkpoint

HERE = Path(__file__).parent
SOURCE = HERE.parent.parent / "src"
CALM = settings(
    max_examples=100, deadline=5000, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip


def _fuzz(folder: Path, count: int, number: int, files: Sequence[Path] = ()) -> dict[str, Any]:
    """Run the fuzzer in a process of its own, which limits itself; a canary lies where a file might write to."""
    (folder / "work").mkdir()
    outside = {path.name for path in folder.iterdir()}
    environment = {"PYTHONPATH": os.pathsep.join([str(SOURCE), str(HERE)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", str(HERE / "fuzz_files.py"), str(count), str(number), "work"]
    command += map(str, files)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert {path.name for path in folder.iterdir()} == outside, "something was written outside the folder"
    report: dict[str, Any] = json.loads(done.stdout)
    print(report)
    return report


def _sound(report: dict[str, Any], count: int, kinds: set[str]) -> None:
    assert report["files"] == count and report["slowest"] < 5 and report["grown_mib"] < 512
    assert set(report["opened"]) == kinds
    assert all(0 < opened < count / len(kinds) for opened in report["opened"].values()), "some open, and some do not"


def test_some_thousand_mutants(tmp_path: Path) -> None:
    _sound(_fuzz(tmp_path, 5_200, 1), 5_200, set(seeds()))


@pytest.mark.slow
def test_twenty_six_thousand_mutants(tmp_path: Path) -> None:
    """About 25 seconds on a machine that does nothing else."""
    _sound(_fuzz(tmp_path, 26_000, 2), 26_000, set(seeds()))


@pytest.mark.slow
def test_mutants_of_real_files(tmp_path: Path, shared_data: Path) -> None:
    names = (
        "verify-acasxu-a/ACASXU_run2a_1_1_batch_2000.onnx", "loader-edge-cases/l_2_2_model.pth",
        "loader-edge-cases/CartPole-v1.zip", "vision-tiny-vgg/model.safetensors", "vision-blazeface/anchors.npy",
        "vision-resnet20-cifar10/resnet20-12fca82f.th",
    )  # fmt: skip
    files = [shared_data / name for name in names]
    _sound(_fuzz(tmp_path, 1_200, 3, files), 1_200, set(map(str, files)))


def test_the_fuzzer_ends_when_something_is_executed(tmp_path: Path) -> None:
    """The watch itself is watched: an opener that unpickles does not go unseen."""
    code = (
        "import fuzz_files, sys, pickle\n"
        "fuzz_files.watched = True; sys.addaudithook(fuzz_files.watch)\n"
        "{}\n"
    )  # fmt: skip
    deeds = (
        "pickle.loads(b'cos\\nsystem\\n.')",
        "open('x', 'w')",
        "import wave",
        "exec('1')",
        "sys.modules['os'].mkdir('y')",
    )
    environment = {"PYTHONPATH": os.pathsep.join([str(SOURCE), str(HERE)])}
    for deed in deeds:
        command = [sys.executable, "-c", code.format(deed)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
        assert done.returncode == 77, deed
    assert list(tmp_path.iterdir()) == []


FLOODS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "texts": (
        "x.gguf",
        lambda: gguf_bytes([gguf_key("k", 9, struct.pack("<IQ", 8, 1_990_000) + bytes(8 * 1_990_000))], [], b""),
    ),
    "quantised tensors": (
        "x.gguf",
        lambda: gguf_bytes([], [gguf_tensor(f"w{at}", [1], 24, at) for at in range(99_000)], bytes(99_000)),
    ),
    "fields": ("x.onnx", lambda: proto((1, 8), (7, b"\x08\x01" * 990_000))),
    "nodes": ("x.onnx", lambda: proto((1, 8), (7, proto((1, b"")) * 490_000))),
    "parts": ("x.pt", lambda: torch_zip_bytes(b"\x80\x02(" + b"]" * 1_900_000 + b"l.")),
    "imports": (
        "x.pt",
        lambda: torch_zip_bytes(b"\x80\x02" + b"".join(b"ca%d\nb\n0" % at for at in range(600_000)) + b"N."),
    ),
    "header": (
        "x.safetensors",
        lambda: safetensors_bytes({f"w{at}": entry("U8", [1], at, at + 1) for at in range(99_000)}, bytes(99_000)),
    ),
    "members": ("x.npz", lambda: zip_bytes({f"{at}.npy": b"" for at in range(49_000)})),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", FLOODS)
def test_as_much_as_is_allowed_is_no_hang(tmp_path: Path, case: str) -> None:
    name, content = FLOODS[case]
    (tmp_path / name).write_bytes(content())
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with contextlib.suppress(FormatError):
        info(tmp_path / name)
    assert time.process_time() - start < 20  # a hang, not a figure: two to four seconds on a core of its own
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 512 << 10


def _answers(path: Path) -> None:
    try:
        facts = info(path, deep=True)
    except FormatError as error:
        assert str(error) and "\n" not in str(error)
    else:
        json.dumps(facts, allow_nan=False)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F8_E4M3", "F4", "BOOL", "C64", "U64", "?"]),
        "shape": st.lists(st.integers(-1, 1 << 63) | st.integers(0, 4), max_size=3),
        "data_offsets": st.lists(st.integers(-1, 1 << 63) | st.integers(0, 64), min_size=1, max_size=3),
    }
)


@CALM
@given(header=JSON | st.dictionaries(st.text(max_size=5), ENTRY | JSON, max_size=4), data=st.binary(max_size=64))
def test_any_safetensors_header(tmp_path: Path, header: Any, data: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(safetensors_bytes(header, data))
    _answers(tmp_path / "x.safetensors")


@CALM
@given(
    content=st.binary(max_size=200), mark=st.sampled_from(["", "GGUF", "\x89HDF\r\n\x1a\n", "\x80\x02", "\x93NUMPY"])
)  # fmt: skip
def test_any_bytes(tmp_path: Path, content: bytes, mark: str) -> None:
    for name in ("x", "x.onnx", "x.tflite", "x.pt", "x.npz", "x.keras", "x.safetensors.index.json"):
        (tmp_path / name).write_bytes(mark.encode("latin1") + content)
        _answers(tmp_path / name)


@CALM
@given(program=st.binary(max_size=60).map(lambda body: b"\x80\x04" + body + b"."))
def test_any_pickle(tmp_path: Path, program: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(torch_zip_bytes(program))
    _answers(tmp_path / "x.pt")


@CALM
@given(config=JSON, tokenizer=JSON)
def test_any_configuration(tmp_path: Path, config: Any, tokenizer: Any) -> None:
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes({}))
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text(json.dumps(tokenizer))
    _answers(tmp_path)


@CALM
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    seed=st.integers(0, 99),
    big=st.booleans(),
)
def test_what_is_written_is_read(tmp_path: Path, shape: list[int], seed: int, big: bool) -> None:
    """One array through every format that is written here, in either byte order where there are two."""
    array = np.random.default_rng(seed).standard_normal(shape).astype("<f4")
    raw = array.tobytes()
    np.save(tmp_path / "x.npy", array.astype(">f4") if big else array)
    np.savez_compressed(tmp_path / "x.npz", x=np.asfortranarray(array) if big else array)
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, len(raw)]}
    (tmp_path / "x.safetensors").write_bytes(safetensors_bytes({"x": entry}, raw))
    (tmp_path / "x.gguf").write_bytes(gguf_bytes([], [gguf_tensor("x", shape, 0, 0)], raw))
    (tmp_path / "x.onnx").write_bytes(onnx_bytes(onnx_tensor("x", shape, (9, raw))))
    hashes = set()
    for suffix in ("npy", "npz", "safetensors", "gguf", "onnx"):
        checkpoint = open_checkpoint(tmp_path / f"x.{suffix}")
        assert np.array_equal(checkpoint.read("x"), array) and checkpoint.tensors["x"].shape == tuple(shape)
        facts = info(tmp_path / f"x.{suffix}")
        assert facts["tensors"][0]["values"]["max"] == array.max()
        hashes |= {facts["content_sha256"]} if suffix != "npy" or not big else set()
    assert len(hashes) == 1, "the content has one hash in every format"
