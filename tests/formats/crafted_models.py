"""Small GGUF, ONNX, HDF5, Keras and TensorFlow Lite files for the tests, made byte by byte."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from crafted_files import zip_bytes

# What h5py 3.16 writes for: dense/vars/0 = arange(6) as <f4 [2, 3], dense/vars/1 = arange(3) as >f8, and the attributes
# model_config = {"class_name": "Sequential"}, layer_names = ["dense"].
HDF5 = zlib.decompress(base64.b85decode(
    "c-rlm&r1S96vyA}CM;%T7;08(o;ntEh%RoV<snM4L$_LL`vJO9TTw*R(Qf?-9X<9ZbnH***s+`KIB#r6GlPNz-v^e*ym`!wGv9qHZ|)1Z<)L6A2pq"
    "$J0SJSiI`WWG+p>QLEkj#HThpXJ(CCY!KaAt2b<sXV|K>(M&!g)t$a!i}VGSVqkwSj4$n92BM}ikkjoY&w*Y@eL@XL9nUaJvR?;#wS!4Qmks;nIE+2"
    "!rsV`u;9fcwXoSYx=k7DIVYCis~8=ex7Aw7$xGKg=J;xz6mCE!W+4tcsmkNM}m+$+_*E9a-hfjeot*!=x30AP9mW2!bF8g6LI7WSs%qvVIl<6YBvXF"
    "dz<P>&iZDQ~}(EKf(Y4yq__pZXoSvJ%lNBI5}T<RJ3QXzSgY{_mmKp>Tvx@r#f6Qs>WSdr><XzzpcZS*4A@e!BTgx5mo1{IwroRQyz$;V?Ob-JYY<!=T"
    "G!^9*}z4N~m!&XlGl#OXeTtfw!1CZmW)oPI*Aw%gK#nFfFVm9P(NPuPEBux_9C{awMICfrcjyF#}?^*dOpti1%xn7|=k4=&YDj6(hO)*ZmN>(we$@AOA"
    "jH=DoutX{nvNta!yu@454yN3&gT;{4_RR=tzHrm}b@Cd>`OTwU*`uglce`l|NiPG#TJeE0!R%!Vi"
))  # fmt: skip


def keras_bytes(config: bytes = b'{"class_name": "Sequential"}', **others: bytes) -> bytes:
    """A .keras archive around HDF5."""
    return zip_bytes({"metadata.json": b"{}", "config.json": config, "model.weights.h5": HDF5, **others})


def gguf_text(text: str | bytes) -> bytes:
    """A text with its length."""
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def gguf_key(name: str, kind: int, value: bytes) -> bytes:
    """One pair of the metadata."""
    return gguf_text(name) + struct.pack("<I", kind) + value


def gguf_tensor(name: str, shape: Sequence[int], kind: int, offset: int) -> bytes:
    """One row of the list of tensors; `shape` outermost first."""
    return gguf_text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], kind, offset)


def gguf_bytes(keys: Sequence[bytes], tensors: Sequence[bytes], data: bytes, /, **counts: int) -> bytes:
    """A GGUF file of version 3; `counts` may lie about the number of `keys` and `tensors`."""
    counted = counts.get("tensors", len(tensors)), counts.get("keys", len(keys))
    head = b"GGUF" + struct.pack("<IQQ", counts.get("version", 3), *counted) + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + data


def small_gguf() -> bytes:
    """Metadata of several kinds, a plain tensor and a quantised one."""
    keys = [
        gguf_key("general.architecture", 8, gguf_text("llama")),
        gguf_key("llama.block_count", 4, struct.pack("<I", 2)),
        gguf_key("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 12) + gguf_text("ab") * 12),
        gguf_key("tokenizer.ggml.scores", 9, struct.pack("<IQ", 6, 12) + bytes(48)),
        gguf_key("tokenizer.chat_template", 8, gguf_text("{{ x }}")),
    ]
    rows = [gguf_tensor("a.weight", [2, 32], 0, 0), gguf_tensor("b.weight", [2, 32], 2, 256)]
    block = struct.pack("<e", 0.5) + bytes(range(16))
    return gguf_bytes(keys, rows, np.arange(64, dtype="<f4").tobytes() + block * 2 + bytes(28))


def varint(value: int) -> bytes:
    """Protobuf's integer of variable length."""
    found = bytearray()
    value &= 0xFFFFFFFFFFFFFFFF
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def proto(*fields: tuple[int, int | bytes | str]) -> bytes:
    """A protobuf message: integers as varints, texts and bytes with their length."""
    found = b""
    for number, value in fields:
        if isinstance(value, int):
            found += varint(number << 3) + varint(value)
        else:
            raw = value.encode() if isinstance(value, str) else value
            found += varint(number << 3 | 2) + varint(len(raw)) + raw
    return found


def onnx_tensor(name: str, shape: Sequence[int], *data: tuple[int, int | bytes | str], kind: int = 1) -> bytes:
    """A TensorProto."""
    return proto(*((1, size) for size in shape), (2, kind), (8, name), *data)


def onnx_bytes(*tensors: bytes, nodes: Sequence[bytes] = ()) -> bytes:
    """A model with these initialisers."""
    value = proto((1, "x"), (2, proto((1, proto((1, 1), (2, proto((1, proto((2, "n"))), (1, proto((1, 3))))))))))
    graph = proto(*((1, node) for node in nodes), (2, "g"), *((5, tensor) for tensor in tensors), (11, value))
    return proto((1, 8), (2, "tests"), (7, graph), (8, proto((2, 17))))


def small_onnx() -> bytes:
    """Raw data, fixed-width numbers, varints, and a graph inside a node."""
    inner = proto((1, proto((1, "y"), (4, "Neg"))), (5, onnx_tensor("t", [2], (9, bytes(8)))))
    nodes = [
        proto((1, "x"), (1, "w"), (2, "y"), (3, "mm"), (4, "MatMul")),
        proto((1, "y"), (2, "z"), (3, "if"), (4, "If"), (5, proto((1, "then"), (6, inner)))),
    ]
    raw = onnx_tensor("w", [3, 2], (9, np.arange(6, dtype="<f4").tobytes()))
    fixed = onnx_tensor("b", [2], (4, np.array([1, 2], "<f4").tobytes()))
    wide = onnx_tensor("shape", [3], (7, varint(1) + varint(-2) + varint(300_000)), kind=7)
    return onnx_bytes(raw, fixed, wide, nodes=nodes)


class Flat:
    """A flatbuffer written parents first: `table` takes scalars as bytes and everything else as a writer of it."""

    def __init__(self) -> None:
        self.bytes = bytearray(b"\0\0\0\0TFL3")

    def table(self, fields: dict[int, Any]) -> int:
        """Write a table with these fields; gives its place."""
        row = len(self.bytes)
        size = 4 + 8 * len(fields)
        places = {number: 4 + 8 * index for index, number in enumerate(fields)}
        count = max(fields, default=-1) + 1
        self.bytes += struct.pack(
            f"<HH{count}H", 4 + 2 * count, size, *(places.get(number, 0) for number in range(count))
        )
        self.bytes += bytes(-len(self.bytes) % 8)
        at = len(self.bytes)
        self.bytes += struct.pack("<i", at - row) + bytes(size - 4)
        for number, value in fields.items():
            place = at + places[number]
            if isinstance(value, bytes):
                self.bytes[place : place + len(value)] = value
            else:
                self.refer(place, value())
        return at

    def refer(self, place: int, target: int) -> None:
        """Write the distance to what was written later."""
        self.bytes[place : place + 4] = struct.pack("<I", target - place)

    def raw(self, content: bytes, count: int) -> int:
        """Write a list of plain numbers."""
        self.bytes += bytes(-len(self.bytes) % 4)
        at = len(self.bytes)
        self.bytes += struct.pack("<I", count) + content
        return at

    def tables(self, rows: Sequence[dict[int, Any]]) -> int:
        """Write a list of tables."""
        at = self.raw(bytes(4 * len(rows)), len(rows))
        for index, fields in enumerate(rows):
            self.refer(at + 4 + 4 * index, self.table(fields))
        return at


def small_tflite() -> bytes:
    """Two tensors, one of them made in a run, an operator of the schema and one from a library."""
    flat = Flat()
    weights = np.arange(6, dtype="<f4").tobytes()
    stored = {
        0: lambda: flat.raw(struct.pack("<2i", 2, 3), 2),
        1: b"\0",
        2: struct.pack("<I", 1),
        3: lambda: flat.raw(b"dense/kernel", 12),
    }
    made = {0: lambda: flat.raw(struct.pack("<i", 2), 1), 1: b"\0", 3: lambda: flat.raw(b"out", 3)}
    graph = {0: lambda: flat.tables([stored, made]), 3: lambda: flat.tables([{0: bytes(4)}])}
    codes = [{0: b"\x09", 3: struct.pack("<i", 9)}, {0: b"\x20", 1: lambda: flat.raw(b"Evil", 4)}]
    model = {
        0: struct.pack("<I", 3),
        1: lambda: flat.tables(codes),
        2: lambda: flat.tables([graph]),
        3: lambda: flat.raw(b"tests", 5),
        4: lambda: flat.tables([{}, {0: lambda: flat.raw(weights, len(weights))}]),
    }
    flat.refer(0, flat.table(model))
    return bytes(flat.bytes)
