"""GGUF, ONNX, HDF5, Keras and TensorFlow Lite: what is read is what was written, and hostile ones are refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from crafted_files import zip_bytes
from crafted_models import (
    HDF5,
    gguf_bytes,
    gguf_key,
    gguf_tensor,
    gguf_text,
    keras_bytes,
    onnx_bytes,
    onnx_tensor,
    proto,
    small_gguf,
    small_onnx,
    small_tflite,
    varint,
)

from cutaway.errors import CutawayError, FormatError
from cutaway.formats import info, open_checkpoint
from cutaway.formats.decoding import decode
from cutaway.formats.dtypes import DTYPES


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_gguf(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(_write(tmp_path / "x.gguf", small_gguf()))
    assert checkpoint.metadata["general.architecture"] == "llama" and checkpoint.metadata["llama.block_count"] == 2
    assert checkpoint.metadata["tokenizer.ggml.tokens"] == {"length": 12, "first": ["ab"] * 8}
    assert np.array_equal(checkpoint.read("a.weight"), np.arange(64, dtype=np.float32).reshape(2, 32))
    expected = (np.concatenate([np.arange(16) & 15, np.zeros(16)]) - 8) * 0.5
    assert checkpoint.tensors["b.weight"].dtype == "q4_0"
    assert np.array_equal(checkpoint.numbers("b.weight"), np.stack([expected, expected]))
    facts = info(checkpoint.path)
    assert facts["quantisation"]["types"] == {"q4_0": {"tensors": 1, "bits": 4.5}} and facts["parameters"] == 128
    assert any("Jinja" in risk["text"] for risk in facts["risks"])


def test_gguf_without_tensors(tmp_path: Path) -> None:
    assert open_checkpoint(_write(tmp_path / "x.gguf", gguf_bytes([], [], b""))).tensors == {}


def test_gguf_of_an_unknown_type_is_listed_and_refused(tmp_path: Path) -> None:
    rows = [gguf_tensor("a", [256], 16, 0), gguf_tensor("b", [2], 99, 64), gguf_tensor("c", [2], 0, 96)]
    path = _write(tmp_path / "x.gguf", gguf_bytes([], rows, bytes(104)))
    checkpoint = open_checkpoint(path)
    assert [tensor.dtype for tensor in checkpoint.tensors.values()] == ["iq2_xxs", "ggml type 99", "float32"]
    for name in "ab":
        with pytest.raises(FormatError, match="cannot be read here"):
            checkpoint.read(name)
        with pytest.raises(FormatError, match="cannot be read here"):
            checkpoint.numbers(name)
    assert set(info(path)["unexamined"]) == {"a", "b"}


def test_quantised_blocks_equal_those_of_the_gguf_package() -> None:
    gguf = pytest.importorskip("gguf")
    random = np.random.default_rng(0)
    for name, kind in DTYPES.items():
        if kind.block > 1:
            raw = random.integers(0, 256, (64, kind.bits // 8), dtype=np.uint8)
            with np.errstate(all="ignore"):
                expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name.upper()])
            found = decode(name, raw.reshape(-1), 64 * kind.block)
            assert found.dtype == np.float32 and np.array_equal(found, expected.reshape(-1), equal_nan=True), name


def test_small_floats_equal_those_of_torch() -> None:
    torch = pytest.importorskip("torch")
    bits = torch.arange(256, dtype=torch.uint8)
    for name in ("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"):
        expected = bits.view(getattr(torch, name)).float().numpy()
        assert np.array_equal(decode(name, bits.numpy(), 256), expected, equal_nan=True), name
    halves = torch.arange(65536, dtype=torch.int32).to(torch.uint16)
    expected = halves.view(torch.bfloat16).float().numpy()
    assert np.array_equal(decode("bfloat16", halves.numpy(), 65536), expected, equal_nan=True)


def _key(kind: int, value: bytes) -> bytes:
    return gguf_bytes([gguf_key("k", kind, value)], [], b"")


def _nested(levels: int) -> bytes:
    return struct.pack("<IQ", 9, 1) * levels + struct.pack("<IQ", 0, 0)


BAD_GGUF = {
    "version": gguf_bytes([], [], b"", version=1),
    "other byte order": gguf_bytes([], [], b"", version=0x03000000),
    "2^63 tensors": gguf_bytes([], [], b"", tensors=1 << 63),
    "2^63 keys": gguf_bytes([], [], b"", keys=1 << 63),
    "2^63 letters": _key(8, struct.pack("<Q", 1 << 63)),
    "2^63 numbers": _key(9, struct.pack("<IQ", 0, 1 << 63)),
    "2^63 texts": _key(9, struct.pack("<IQ", 8, 1 << 63)),
    "2^32 empty arrays": _key(9, struct.pack("<IQ", 9, 1 << 32) + bytes(100)),
    "arrays in arrays": _key(9, _nested(1000)),
    "unknown kind": _key(77, b""),
    "name of 2^62 letters": b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 62),
    "2^32 dimensions": gguf_bytes([], [gguf_text("w") + struct.pack("<I", 0xFFFFFFFF)], b""),
    "2^63 elements": gguf_bytes([], [gguf_tensor("w", [1 << 63], 0, 0)], b""),
    "2^80 elements": gguf_bytes([], [gguf_tensor("w", [1 << 40, 1 << 40], 0, 0)], b""),
    "beyond the end": gguf_bytes([], [gguf_tensor("w", [9], 0, 0)], bytes(8)),
    "offset 2^63": gguf_bytes([], [gguf_tensor("w", [1], 0, 1 << 63)], bytes(8)),
    "overlap": gguf_bytes([], [gguf_tensor("w", [4], 0, 0), gguf_tensor("v", [2], 0, 8)], bytes(16)),
    "same place": gguf_bytes([], [gguf_tensor("w", [4], 0, 0), gguf_tensor("v", [4], 0, 0)], bytes(16)),
    "same name": gguf_bytes([], [gguf_tensor("w", [1], 0, 0), gguf_tensor("w", [1], 0, 4)], bytes(8)),
    "half a block": gguf_bytes([], [gguf_tensor("w", [2, 16], 2, 0)], bytes(18)),
    "alignment 0": gguf_bytes([gguf_key("general.alignment", 4, bytes(4))], [], b""),
    "cut short": small_gguf()[:90],
}


@pytest.mark.parametrize("case", BAD_GGUF)
def test_bad_gguf(tmp_path: Path, case: str) -> None:
    with pytest.raises(FormatError) as caught:
        open_checkpoint(_write(tmp_path / "x.gguf", BAD_GGUF[case]))
    assert "\n" not in str(caught.value)


def test_onnx(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(_write(tmp_path / "x.onnx", small_onnx()))
    assert np.array_equal(checkpoint.read("w"), np.arange(6, dtype=np.float32).reshape(3, 2))
    assert checkpoint.read("b").tolist() == [1, 2] and checkpoint.read("shape").tolist() == [1, -2, 300_000]
    assert "if.then.t" in checkpoint.tensors
    assert checkpoint.metadata["ops"] == {"MatMul": 1, "If": 1, "Neg": 1}
    assert checkpoint.metadata["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["n", 3]}]
    assert checkpoint.metadata["nodes"][0] == {"op": "MatMul", "name": "mm", "reads": ["x", "w"], "writes": "y"}


def test_onnx_equals_the_onnx_package(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    kinds = ("FLOAT DOUBLE FLOAT16 BFLOAT16 INT8 INT16 INT32 INT64 UINT8 UINT16 UINT32 UINT64 BOOL FLOAT8E4M3FN "
             "FLOAT8E5M2").split()  # fmt: skip
    tensors = [onnx.helper.make_tensor(kind, getattr(onnx.TensorProto, kind), [3], [0, 1, 1]) for kind in kinds]
    tensors.append(onnx.numpy_helper.from_array(np.random.default_rng(0).normal(size=(2, 3)), "raw"))
    graph = onnx.helper.make_graph([], "g", [], [], tensors)
    onnx.save(onnx.helper.make_model(graph), tmp_path / "x.onnx")
    checkpoint = open_checkpoint(tmp_path / "x.onnx")
    for tensor in tensors:
        expected = onnx.numpy_helper.to_array(tensor)
        assert np.array_equal(checkpoint.numbers(tensor.name), expected.astype(np.float64)), tensor.name


def _external(location: str, **others: str) -> bytes:
    entries = [(13, proto((1, key), (2, value))) for key, value in {"location": location, **others}.items()]
    return onnx_bytes(onnx_tensor("w", [2], (14, 1), *entries))


def test_onnx_external_data_stays_in_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    secret = _write(tmp_path / "secret", bytes(64))
    _write(folder / "w.bin", bytes(8) + np.array([1, 2], "<f4").tobytes())
    (folder / "link").symlink_to(secret)
    (folder / "circle").symlink_to(folder / "circle")
    (folder / "up").symlink_to(tmp_path)
    path = _write(folder / "x.onnx", _external("w.bin", offset="8", length="8"))
    assert open_checkpoint(path).read("w").tolist() == [1, 2]
    outside = ("/etc/passwd", "../secret", "link", "up/secret", "a/../../secret", "", ".", "w\0", "x" * 5000)
    for location in outside:
        checkpoint = open_checkpoint(_write(path, _external(location)))
        assert [risk.severity for risk in checkpoint.risks] == ["high"], location
        assert checkpoint.paths == [path] and "w" in info(path, deep=True)["unexamined"]
        with pytest.raises(FormatError, match="outside the model's folder"):
            checkpoint.read("w")
    for location in ("circle", "gone.bin"):
        with pytest.raises(FormatError):
            open_checkpoint(_write(path, _external(location))).read("w")
    for wrong in ({"offset": "9"}, {"offset": "-8"}, {"offset": "9" * 30}, {"length": "4"}, {"offset": "²"}):
        with pytest.raises(FormatError):
            open_checkpoint(_write(path, _external("w.bin", **wrong)))


def _deep_graph(levels: int) -> bytes:
    graph = b""
    for _ in range(levels):
        graph = proto((1, proto((4, "If"), (5, proto((1, "then"), (6, graph))))))
    return proto((1, 8), (7, graph))


BAD_ONNX = {
    "no graph": proto((1, 8)),
    "no message": b"\x08\x08\x12\xff\xff\xff\xff\x0f",
    "group": b"\x08\x08\x0b",
    "endless number": b"\x08" + b"\xff" * 20,
    "2^62 bytes": b"\x08\x08\x3a" + varint(1 << 62),
    "too few bytes": onnx_bytes(onnx_tensor("w", [3], (9, bytes(8)))),
    "too many bytes": onnx_bytes(onnx_tensor("w", [1], (9, bytes(8)))),
    "no bytes": onnx_bytes(onnx_tensor("w", [3])),
    "2^63 elements": onnx_bytes(onnx_tensor("w", [1 << 63], (9, bytes(8)))),
    "2^100 elements": onnx_bytes(onnx_tensor("w", [1 << 50] * 2, (9, bytes(8)))),
    "100 dimensions": onnx_bytes(onnx_tensor("w", [1] * 100, (9, bytes(4)))),
    "twice": onnx_bytes(*[onnx_tensor("w", [1], (9, bytes(4)))] * 2),
    "too few varints": onnx_bytes(onnx_tensor("w", [9], (7, b"\1\1"), kind=7)),
    "complex numbers as varints": onnx_bytes(onnx_tensor("w", [1], (7, b"\1"), kind=15)),
    "deep": _deep_graph(100),
}


@pytest.mark.parametrize("case", BAD_ONNX)
def test_bad_onnx(tmp_path: Path, case: str) -> None:
    with pytest.raises(FormatError) as caught:
        open_checkpoint(_write(tmp_path / "x.onnx", BAD_ONNX[case]))
    assert "\n" not in str(caught.value)


def test_onnx_operators_that_run_foreign_code_are_reported(tmp_path: Path) -> None:
    nodes = [proto((4, "PyOp"), (7, "ai.onnx.contrib")), proto((4, "Evil"), (7, "me"))]
    risks = open_checkpoint(_write(tmp_path / "x.onnx", onnx_bytes(nodes=nodes))).risks
    assert sorted(risk.severity for risk in risks) == ["high", "medium"]


def test_hdf5_and_keras(tmp_path: Path) -> None:
    for name, content in {"x.h5": HDF5, "x.keras": keras_bytes()}.items():
        checkpoint = open_checkpoint(_write(tmp_path / name, content))
        assert np.array_equal(checkpoint.read("dense/vars/0"), np.arange(6, dtype=np.float32).reshape(2, 3))
        assert checkpoint.tensors["dense/vars/1"].dtype == "float64"
        assert checkpoint.read("dense/vars/1").tolist() == [0, 1, 2] and checkpoint.risks == []
        assert checkpoint.metadata["attributes"]["model_config"] == {"class_name": "Sequential"}
        assert info(tmp_path / name)["modules"]["dense/vars"]["parameters"] == 9


def test_hdf5_equals_h5py(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    random = np.random.default_rng(0)
    kinds = ("<f2", "<f4", ">f4", "<f8", "|i1", "<u2", ">i4", "<i8", "<u8", "|b1")
    for number, options in enumerate(({}, {"libver": "latest"}, {"track_order": True}, {"userblock_size": 0})):
        path = tmp_path / f"{number}.h5"
        names = {f"g{index // 5}/{kind[1:]}": kind for index, kind in enumerate(kinds)}
        arrays = {name: random.integers(0, 2, (3, 4)).astype(kind) for name, kind in names.items()}
        arrays |= {"scalar": np.array(2.5), "none": np.zeros((0, 3), "f4")}
        arrays |= {f"many/n{index}": np.full(2, index, np.float32) for index in range(300)}
        with h5py.File(path, "w", **options) as file:
            for name, array in arrays.items():
                file[name] = array
            file.create_dataset("packed", data=np.zeros((10, 10)), compression="gzip")
            file["text"] = "words"
            file["links/soft"] = h5py.SoftLink("/scalar")
            file["links/elsewhere"] = h5py.ExternalLink("/etc/passwd", "/")
        checkpoint = open_checkpoint(path)
        assert checkpoint.tensors.keys() - {"packed", "text"} == arrays.keys()
        for name, array in arrays.items():
            if array.size:
                assert np.array_equal(checkpoint.read(name), array), name
        assert sum("link by name" in risk.text for risk in checkpoint.risks) == 2
        for name, says in (("packed", "h5repack"), ("text", "no array of plain numbers")):
            with pytest.raises(FormatError, match=says):
                checkpoint.read(name)


@pytest.mark.parametrize("count", [9, 40, 700, 3000])
def test_hdf5_groups_in_heaps_equal_h5py(tmp_path: Path, count: int) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "x.h5", "w", libver="latest") as file:
        names = {f"{'long ' * (index % 30)}{index}": index for index in range(count)}
        for name, index in names.items():
            file[name] = np.array([index, -index])
        file["back"] = file["/"]
    checkpoint = open_checkpoint(tmp_path / "x.h5")
    assert len(checkpoint.tensors) == count and checkpoint.tensors.keys() == names.keys()
    for name, index in list(names.items())[:: 1 + count // 50]:
        assert checkpoint.read(name).tolist() == [index, -index]


def test_hdf5_with_links_of_every_kind_by_default(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        for index in range(9):
            file[f"n{index}"] = np.full(3, index, "f4")
        file["soft"], file["out"] = h5py.SoftLink("/n0"), h5py.ExternalLink("/etc/passwd", "/x")
    checkpoint = open_checkpoint(path)
    assert checkpoint.tensors.keys() == {f"n{index}" for index in range(9)}
    assert sorted(risk.text[:6] for risk in checkpoint.risks) == ["'out' ", "'soft'"]
    content = path.read_bytes()
    for at in (content.index(b"FRHP"), content.index(b"BTHD"), content.index(b"FHDB"), content.index(b"BTLF")):
        for change in range(at, min(at + 160, len(content))):
            mutant = bytearray(content)
            mutant[change] ^= 0xFF
            try:
                open_checkpoint(_write(tmp_path / "y.h5", bytes(mutant)))
            except FormatError as error:
                assert "y.h5" in str(error)


@pytest.mark.parametrize("name", ["x.h5", "x.keras"])
def test_hdf5_that_is_cut_short_says_so(tmp_path: Path, name: str) -> None:
    content = HDF5[: len(HDF5) // 2]
    path = _write(tmp_path / name, content if name == "x.h5" else zip_bytes({"model.weights.h5": content}))
    with pytest.raises(FormatError, match=f"{name} is cut short: {len(content):,} of its {len(HDF5):,} bytes"):
        open_checkpoint(path)


def test_hdf5_data_in_another_file_is_not_followed(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("w", (4,), "u1", external=[("/etc/passwd", 0, 4)])
    checkpoint = open_checkpoint(tmp_path / "x.h5")
    assert [risk.severity for risk in checkpoint.risks] == ["high"]
    with pytest.raises(FormatError, match="another file"):
        checkpoint.read("w")


def test_keras_configurations_that_run_code_are_reported(tmp_path: Path) -> None:
    layers = [{"class_name": "Lambda", "config": {}}, {"module": "os", "class_name": "x"}, {"module": "keras.layers"}]
    layers.append({"registered_name": "evil>Layer"})
    checkpoint = open_checkpoint(_write(tmp_path / "x.keras", keras_bytes(json.dumps(layers).encode())))
    assert sorted(risk.severity for risk in checkpoint.risks) == ["high", "high", "medium"]
    climbing = _write(tmp_path / "y.keras", keras_bytes(b"{}", **{"../../evil.py": b"1"}))
    assert "outside" in open_checkpoint(climbing).risks[0].text and not (tmp_path.parent.parent / "evil.py").exists()
    with pytest.raises(FormatError, match="nested"):
        open_checkpoint(_write(tmp_path / "z.keras", keras_bytes(b"[" * 100_000 + b"]" * 100_000)))


@pytest.mark.parametrize("at", [40, 64, 96, 100, 104])
@pytest.mark.parametrize("value", [0, 1, 96, 1 << 31, (1 << 63) - 1, (1 << 64) - 2])
def test_hdf5_addresses_that_lead_nowhere(tmp_path: Path, at: int, value: int) -> None:
    content = bytearray(HDF5)
    content[at : at + 8] = struct.pack("<Q", value)
    try:
        info(_write(tmp_path / "x.h5", bytes(content)))
    except CutawayError as error:
        assert isinstance(error, FormatError)


def test_tflite(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(_write(tmp_path / "x.tflite", small_tflite()))
    assert np.array_equal(checkpoint.read("dense/kernel"), np.arange(6, dtype=np.float32).reshape(2, 3))
    assert set(checkpoint.tensors) == {"dense/kernel"} and checkpoint.metadata["ops"] == {"builtin 9": 1}
    assert "Evil" in checkpoint.risks[0].text and checkpoint.metadata["description"] == "tests"


def test_the_networks_of_acas_xu(shared_data: Path) -> None:
    files = sorted((shared_data / "verify-acasxu-a").glob("*.onnx"))
    onnx = pytest.importorskip("onnx")
    assert files
    for file in files:
        facts = info(file)
        assert facts["parameters"] == 13_305 and facts["risks"] == [] and facts["findings"] == []
        checkpoint = open_checkpoint(file)
        for tensor in onnx.load(file).graph.initializer:
            assert np.array_equal(checkpoint.read(tensor.name), onnx.numpy_helper.to_array(tensor))
