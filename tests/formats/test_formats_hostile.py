"""Hostile files: refused or shown, never run, never larger in memory than they deserve, always with one sentence."""

from __future__ import annotations

import os
import pickle
import resource
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from crafted_files import (
    Evil,
    entry,
    npy_bytes,
    safetensors_bytes,
    tensor_pickle,
    torch_zip_bytes,
    zip_bytes,
)

from cutaway.errors import FormatError
from cutaway.formats import info, open_checkpoint


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _nested(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


F32 = entry("F32", [2], 0, 8)
BAD_SAFETENSORS = {
    "length 2^60": safetensors_bytes({}, length=1 << 60),
    "length beyond the file": safetensors_bytes({}, length=3),
    "too short": b"\0\0\0",
    "not json": safetensors_bytes(b"{nope"),
    "not utf-8": safetensors_bytes(b'{"\xff": 1}'),
    "a list": safetensors_bytes([]),
    "overlap": safetensors_bytes({"a": F32, "b": entry("F32", [2], 4, 12)}, b"\0" * 12),
    "same place": safetensors_bytes({"a": F32, "b": F32}, b"\0" * 8),
    "hole": safetensors_bytes({"a": F32, "b": entry("F32", [1], 12, 16)}, b"\0" * 16),
    "beyond the end": safetensors_bytes({"a": entry("F32", [4], 0, 16)}, b"\0" * 8),
    "bytes left": safetensors_bytes({"a": F32}, b"\0" * 9),
    "wrong size": safetensors_bytes({"a": entry("F32", [3], 0, 8)}, b"\0" * 8),
    "negative": safetensors_bytes({"a": entry("F32", [-2], -8, 0)}),
    "backwards": safetensors_bytes({"a": entry("F32", [2], 8, 0)}, b"\0" * 8),
    "overflow": safetensors_bytes({"a": entry("U8", [1 << 32, 1 << 32], 0, 0)}),
    "huge shape": safetensors_bytes({"a": entry("U8", [1 << 62] * 64, 0, 8)}, b"\0" * 8),
    "huge integer": safetensors_bytes(
        b'{"a": {"dtype": "U8", "shape": [1' + b"0" * 9000 + b'], "data_offsets": [0, 1]}}'
    ),
    "bool as size": safetensors_bytes({"a": {"dtype": "U8", "shape": [True], "data_offsets": [0, 1]}}, b"\0"),
    "float as size": safetensors_bytes({"a": {"dtype": "U8", "shape": [1.0], "data_offsets": [0, 1]}}, b"\0"),
    "unknown dtype": safetensors_bytes({"a": entry("F99", [1], 0, 1)}, b"\0"),
    "dtype no text": safetensors_bytes({"a": {"dtype": ["U8"], "shape": [1], "data_offsets": [0, 1]}}, b"\0"),
    "half a byte": safetensors_bytes({"a": entry("F4", [1], 0, 1)}, b"\0"),
    "extra key": safetensors_bytes({"a": {**entry("U8", [1], 0, 1), "x": 1}}, b"\0"),
    "duplicate key": safetensors_bytes(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{}}', b"\0"),
    "metadata no text": safetensors_bytes({"__metadata__": {"a": 1}}),
    "metadata a list": safetensors_bytes({"__metadata__": []}),
    "deep": safetensors_bytes(b'{"a":' + _nested(100_000) + b"}"),
    "deep, below the recursion limit": safetensors_bytes(b'{"a":' + _nested(500) + b"}"),
    "many parts": safetensors_bytes(b'{"a":[' + b"[]," * 1_500_001 + b"[]]}"),
    "NaN": safetensors_bytes(b'{"a": NaN}'),
}


@pytest.mark.parametrize("case", BAD_SAFETENSORS)
def test_bad_safetensors(tmp_path: Path, case: str) -> None:
    with pytest.raises(FormatError) as caught:
        open_checkpoint(_write(tmp_path / "x.safetensors", BAD_SAFETENSORS[case]))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_pickle_that_calls_the_system_is_listed_and_not_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for protocol in range(6):
        evil = pickle.dumps({"w": Evil(os.system, f"touch {canary}"), "v": Evil(exec, "1/0")}, protocol)
        path = _write(tmp_path / "x.pt", torch_zip_bytes(evil))
        texts = [risk.text for risk in open_checkpoint(path).risks if risk.severity == "high"]
        assert any("system" in text for text in texts) and any("exec" in text for text in texts)
        info(path, sha256=True, deep=True)
        for name in ("y.pt", "y.bin"):  # a bare pickle, too
            if protocol >= 2:
                high = [r for r in open_checkpoint(_write(tmp_path / name, evil)).risks if r.severity == "high"]
                assert len(high) == 2
    assert not canary.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"(S'touch canary'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'touch canary'\no.",  # OBJ
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0ctouch canary\x85R.",  # STACK_GLOBAL
        b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94h\x00h\x01\x93\x8c\x0ctouch canary\x85R.",  # through the memo
        b"cos\nsystem\n0N.",  # imported and dropped
        b"cos\nsystem\nq\x010N.",
        b"cos\nsystem\n}(S'a'\nS'b'\nub.",
        b"cos\nsystem\n)\x81.",  # NEWOBJ
        b"cos\nsystem\n)}\x92.",  # NEWOBJ_EX
    ],
)
def test_every_way_to_import_is_seen(tmp_path: Path, program: bytes) -> None:
    path = _write(tmp_path / "x.pt", torch_zip_bytes(program))
    try:
        risks = open_checkpoint(path).risks
        assert any(risk.severity == "high" and "os.system" in risk.text for risk in risks)
    except FormatError as error:
        assert "os.system" in str(error)
    assert not (Path.cwd() / "canary").exists()


@pytest.mark.parametrize("module", ["torch", "collections", "builtins", "numpy", "torch._utils", "_codecs"])
@pytest.mark.parametrize("name", ["eval", "load", "OrderedDict.__init__", "os.system", "getattr", "__import__"])
def test_the_allow_list_is_exact(tmp_path: Path, module: str, name: str) -> None:
    path = _write(tmp_path / "x.pt", torch_zip_bytes(f"c{module}\n{name}\n.".encode()))
    assert any(risk.severity == "high" for risk in open_checkpoint(path).risks)


def _tuples(depth: int) -> bytes:
    return b"\x80\x02)" + b"\x85" * depth + b"."


def _laughs(levels: int) -> bytes:
    """Each level holds the one before ten times: a kilobyte that describes 10^levels things."""
    return b"\x80\x02]" + b"".join(b"q\x00](" + b"h\x00" * 10 + b"e" for _ in range(levels)) + b"."


BAD_PICKLES = {
    "no end": b"\x80\x02}",
    "empty": b"",
    "no such instruction": b"\x80\x02\xff.",
    "empty stack": b"\x80\x020.",
    "no mark": b"\x80\x02t.",
    "no memo": b"\x80\x02h\x07.",
    "claims 2^62 bytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b".",
    "claims 4 GB": b"\x80\x02X" + struct.pack("<I", 0xFFFFFFFF) + b".",
    "extension": b"\x80\x02\x82\x01.",
    "computed import": b"\x80\x04KAKA\x93.",
    "a thousand million parts": _laughs(9),
    "odd dict": b"\x80\x02(Nd.",
    "long integer text": b"I" + b"9" * 10_000 + b"\n.",
    "storage of another kind": tensor_pickle((1,), (1,), 1).replace(b"FloatStorage", b"WrongStorage"),
    "beyond its storage": tensor_pickle((3,), (1,), 2),
    "beyond by stride": tensor_pickle((2, 2), (1, 9), 4),
    "beyond by offset": tensor_pickle((2,), (1,), 2, offset=1),
    "beyond the file": tensor_pickle((1000,), (1,), 1000),
    "negative stride": tensor_pickle((2,), (-1,), 2),
    "negative size": tensor_pickle((-2,), (1,), 2),
    "huge": tensor_pickle((1 << 60, 1 << 60), (0, 0), 2),
    "shape and stride differ": tensor_pickle((2, 1), (1,), 2),
    "missing storage": tensor_pickle((1,), (1,), 1, key="../../etc/passwd"),
}


@pytest.mark.parametrize("case", BAD_PICKLES)
def test_bad_pickles(tmp_path: Path, case: str) -> None:
    with pytest.raises(FormatError) as caught:
        open_checkpoint(_write(tmp_path / "x.pt", torch_zip_bytes(BAD_PICKLES[case], {"0": b"\0" * 16})))
    assert "\n" not in str(caught.value)


def test_deep_pickles_do_not_exhaust_the_stack(tmp_path: Path) -> None:
    deep = _tuples(300_000)
    for program in (deep, deep[:-1] + b"}" + b"s.", b"\x80\x02}" + deep[2:-1] + b"Ns."):
        try:
            info(_write(tmp_path / "x.pt", torch_zip_bytes(program)))
        except FormatError as error:
            assert "broken" in str(error)
    itself = b"\x80\x02]q\x00h\x00a."
    assert open_checkpoint(_write(tmp_path / "y.pt", torch_zip_bytes(itself))).tensors == {}


def _patched_zip(members: dict[str, bytes], **sizes: int) -> bytes:
    """A deflated archive whose directory lies about the size of its first member."""
    content = bytearray(zip_bytes(members, zipfile.ZIP_DEFLATED))
    at = content.index(b"PK\1\2")
    content[at + 24 : at + 28] = struct.pack("<I", sizes["size"])
    return bytes(content)


def test_zip_bombs(tmp_path: Path) -> None:
    zeros = npy_bytes(np.zeros(100 << 20, np.uint8))
    bomb = _write(tmp_path / "bomb.npz", zip_bytes({"a.npy": zeros}, zipfile.ZIP_DEFLATED))
    assert bomb.stat().st_size < 200_000
    with pytest.raises(FormatError, match="zip bombs"):
        open_checkpoint(bomb)
    packed = zip_bytes({"archive/data.pkl": b"\x80\x02}.", "archive/data/0": zeros}, zipfile.ZIP_DEFLATED)
    with pytest.raises(FormatError, match="compressed member"):
        open_checkpoint(_write(tmp_path / "bomb.pt", packed))
    small = npy_bytes(np.zeros(1000, np.uint8))
    for size in (len(small) - 1, len(small) + 1, 0, 1 << 31):
        with pytest.raises(FormatError):
            path = _write(tmp_path / "lie.npz", _patched_zip({"a.npy": small}, size=size))
            open_checkpoint(path).read("a")


def test_member_that_unpacks_to_more_than_it_claims_is_bounded(tmp_path: Path) -> None:
    """The header of a small array in front of a gigabyte: reading stops at what was claimed."""
    claimed = npy_bytes(np.zeros(100, np.uint8))
    content = claimed + b"\0" * (50 << 20)
    path = _write(tmp_path / "x.npz", _patched_zip({"a.npy": content}, size=len(claimed)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert open_checkpoint(path).read("a").shape == (100,)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000


def test_archives_that_deceive(tmp_path: Path) -> None:
    good = torch_zip_bytes(tensor_pickle((2,), (1,), 2), {"0": b"\0" * 8})
    assert open_checkpoint(_write(tmp_path / "x.pt", good)).tensors
    first = good.index(b"archive/data.pkl")
    other_name = good[:first] + b"archive/DATA.pkl" + good[first + 16 :]
    directory = good.index(b"PK\1\2")
    encrypted = good[: directory + 8] + b"\1" + good[directory + 9 :]
    second = good.index(b"PK\1\2", directory + 1)
    overlapping = good[: second + 42] + b"\0\0\0\0" + good[second + 46 :]
    for content in (other_name, encrypted, overlapping, good[:-1], good + b"x", good[: len(good) // 2], b"PK\3\4" * 30):
        with pytest.raises(FormatError):
            open_checkpoint(_write(tmp_path / "x.pt", content))
    with pytest.warns(UserWarning):
        twice = zipfile.ZipFile(tmp_path / "twice.pt", "w")
        for content in (b"\x80\x02}.", b"cos\nsystem\n."):
            twice.writestr("archive/data.pkl", content)
        twice.close()
    with pytest.raises(FormatError, match="two members"):
        open_checkpoint(tmp_path / "twice.pt")


@pytest.mark.parametrize(
    "array",
    [np.array([{}, 1], object), np.zeros(2, [("a", "O"), ("b", "f4")]), np.zeros(2, [("a", "f4")]), np.array(["text"])],
)
def test_arrays_that_are_no_numbers(tmp_path: Path, array: np.ndarray) -> None:
    content = npy_bytes(array)
    for name, data in {"x.npy": content, "x.npz": zip_bytes({"a.npy": content})}.items():
        with pytest.raises(FormatError):
            open_checkpoint(_write(tmp_path / name, data))


@pytest.mark.parametrize(
    "header",
    [
        b"__import__('os').system('touch canary')",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (1 << 3,)}",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'x': 1}",
        b"{'descr': '<f4', 'fortran_order': False}",
        b"(" * 5000,
        b"[" * 90 + b"]" * 90,
        b"9" * 9000,
        b"\0",
        b"",
    ],
)
def test_bad_npy_headers(tmp_path: Path, header: bytes) -> None:
    content = b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + b"\0" * 8
    with pytest.raises(FormatError):
        open_checkpoint(_write(tmp_path / "x.npy", content))
    assert not (Path.cwd() / "canary").exists()


def test_odd_escapes_in_a_file_warn_nobody(tmp_path: Path) -> None:
    assert open_checkpoint(_write(tmp_path / "x.pt", torch_zip_bytes(b"S'\\L'\n."))).tensors == {}
    header = b"{'descr': '\\L', 'fortran_order': False, 'shape': (2,)}"
    with pytest.raises(FormatError):
        open_checkpoint(_write(tmp_path / "x.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header))
