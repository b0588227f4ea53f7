"""ONNX: the initialisers of a graph and the graph itself, out of protobuf's wire format.

The field numbers are those of onnx/onnx.proto. Weights that lie in the file are mapped where they are; weights in other
files are followed only to plain files within the model's own folder.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from cutaway.errors import FormatError
from cutaway.formats.checkpoint import Checkpoint, Place, Risk, TensorInfo
from cutaway.formats.dtypes import DTYPES, bytes_of
from cutaway.formats.protobuf import Message
from cutaway.formats.reading import damaged, file_size, mapped, shown

NAME = "ONNX"
DIMENSIONS, DEPTH, SHOWN_NODES = 64, 16, 2_000
VARINT_BYTES = 4 << 20  # they take forty times as much while they are read
TYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16", 17: "float8_e4m3fn",
    19: "float8_e5m2", 23: "float4_e2m1", 24: "float8_e8m0fnu",
}  # fmt: skip
# Fields of a tensor that hold its numbers one by one: fixed-width ones can be mapped, the others are varints.
_FIXED, _VARINT = {4: 4, 10: 8}, (5, 7, 11)
_RAW, _EXTERNAL = 9, 13
_OWN_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "ai.onnx.preview.training", "com.microsoft")


def detect(path: Path, head: bytes) -> bool:
    """By suffix, or by what stands at the beginning of a model: its version of the format, then who made it."""
    return path.suffix == ".onnx" or (len(head) > 8 and head[0] == 8 and head[1] < 32 and head[2] == 0x12)


def open(path: Path) -> Checkpoint:
    """List initialisers, nodes and risks. Raises FormatError."""
    with damaged(path, NAME):
        model = Message.of(mapped(path))
        graph = model.message(7)
        if graph is None:
            raise FormatError(f"{path} holds no graph, so it is no ONNX model.")
        walk = _Walk(path)
        walk.graph(graph, "", DEPTH)
        for function in model.messages(25):
            walk.nodes(function.messages(7), shown(function.text(1)), DEPTH)
        metadata: dict[str, Any] = {
            "producer": shown(f"{model.text(2)} {model.text(3)}".strip()),
            "opset": {shown(item.text(1) or "ai.onnx"): item.number(2) for item in list(model.messages(8))[:50]},
            "inputs": [_value(item) for item in list(graph.messages(11))[:200]],
            "outputs": [_value(item) for item in list(graph.messages(12))[:200]],
            "ops": dict(walk.ops.most_common(200)),
            "nodes": walk.listed,
        }
    return Checkpoint(NAME, [path, *sorted(walk.others)], walk.tensors, metadata, walk.risks())


class _Walk:
    """Everything found on the way through a graph and the graphs within its nodes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors: dict[str, TensorInfo] = {}
        self.ops: Counter[str] = Counter()
        self.listed: list[dict[str, Any]] = []
        self.others: set[Path] = set()
        self.outside: list[str] = []
        self.foreign: Counter[str] = Counter()

    def graph(self, graph: Message, prefix: str, depth: int) -> None:
        if depth == 0:
            raise FormatError(f"{self.path} nests graphs deeper than {DEPTH} levels; not read.")
        for number, tensor in enumerate(graph.messages(5)):
            self.tensor(tensor, f"{prefix}{tensor.text(8) or f'initializer.{number}'}")
        for sparse in graph.messages(15):
            for field, part in ((1, "values"), (2, "indices")):
                for tensor in sparse.messages(field):
                    self.tensor(tensor, f"{prefix}{tensor.text(8) or 'sparse'}.{part}")
        self.nodes(graph.messages(1), prefix, depth)

    def nodes(self, nodes: Any, prefix: str, depth: int) -> None:
        for node in nodes:
            op, name = shown(node.text(4)), shown(node.text(3), 200)
            output = shown(node.text(2), 200)
            self.ops[op] += 1
            if node.text(7) not in _OWN_DOMAINS:
                self.foreign[f"{shown(node.text(7))}.{op}"] += 1
            if len(self.listed) < SHOWN_NODES:
                reads = [shown(text, 200) for text in node.texts(1)[:50]]
                self.listed.append({"op": op, "name": name, "reads": reads, "writes": output})
            for attribute in node.messages(5):
                where = f"{prefix}{name or output}.{shown(attribute.text(1))}"
                for field in (5, 10):
                    for number, tensor in enumerate(attribute.messages(field)):
                        self.tensor(tensor, where if field == 5 else f"{where}.{number}")
                for field in (6, 11):
                    for inner in attribute.messages(field):
                        self.graph(inner, f"{where}.", depth - 1)

    def tensor(self, tensor: Message, name: str) -> None:
        name = shown(name, 500)
        where = f"The tensor {name!r} in {self.path}"
        if name in self.tensors:
            raise FormatError(f"{where} is defined twice; it was made to deceive.")
        shape = tuple(tensor.numbers(1))
        if len(shape) > DIMENSIONS or any(size >= 1 << 62 for size in shape) or math.prod(shape) >= 1 << 60:
            raise FormatError(f"{where} has an impossible shape.")
        kind = tensor.number(2)
        if kind == 8:  # texts
            return
        dtype = TYPES.get(kind, f"onnx type {kind}")
        if dtype not in DTYPES:
            refusal = f"is of the type {dtype}, which cannot be read here; convert it"
            self.tensors[name] = TensorInfo(dtype, shape, 0, Place(self.path, 0, 0, refusal=refusal))
            return
        nbytes = bytes_of(dtype, math.prod(shape))
        place = self.external(tensor, nbytes, name) if tensor.number(14) == 1 else self.inside(tensor, dtype, nbytes)
        if place is None:
            raise FormatError(f"{where} has not the {nbytes:,} bytes that its shape needs; get it again.")
        self.tensors[name] = TensorInfo(dtype, shape, nbytes, place)

    def inside(self, tensor: Message, dtype: str, nbytes: int) -> Place | None:
        """Where the numbers stand in the model's own file, or None if they are too few or too many."""
        if nbytes == 0:
            return Place(self.path, 0, 0)
        for field in (_RAW, *_FIXED):
            span = tensor.span(field)
            if span is not None:
                fits = span[1] - span[0] == nbytes and (field == _RAW or DTYPES[dtype].view[0] in "fc")
                return Place(self.path, span[0], nbytes) if fits else None
        for field in _VARINT:
            span = tensor.span(field)
            if span is not None:
                elements = nbytes * 8 // max(8, DTYPES[dtype].bits)
                if not _has_varints(dtype) or not elements <= span[1] - span[0] <= 10 * elements:
                    return None
                much = "holds too many numbers of variable length; save it again with raw data"
                refusal = much if span[1] - span[0] > VARINT_BYTES else ""
                packed = span[1] - span[0]
                return Place(self.path, span[0], nbytes, packed=packed, coding="varint", refusal=refusal)
        single = "holds its numbers one by one, which is not read here; save it again with raw data"
        return Place(self.path, 0, nbytes, refusal=single) if tensor.has((*_FIXED, *_VARINT)) else None

    def external(self, tensor: Message, nbytes: int, name: str) -> Place:
        """A place in another file, if that is a plain file in the model's folder and large enough."""
        entries = {item.text(1): item.text(2) for item in list(tensor.messages(_EXTERNAL))[:20]}
        location = entries.get("location", "")
        numbers = [entries.get("offset") or "0", entries.get("length") or str(nbytes)]
        if not all(text.isascii() and text.isdecimal() and len(text) < 19 for text in numbers):
            raise FormatError(f"The tensor {name!r} in {self.path} has no number for where its data are.")
        offset, length = map(int, numbers)
        folder = self.path.parent.resolve()
        target = _within(folder, location)
        if target is None:
            self.outside.append(location)
            refusal = f"lies in {shown(location)!r}, outside the model's folder; it was not looked at"
            return Place(self.path, 0, nbytes, refusal=refusal)
        if not target.is_file():
            return Place(self.path, 0, nbytes, refusal=f"lies in {shown(location)!r}, which is not there; get it too")
        if length != nbytes or offset + nbytes > file_size(target):
            raise FormatError(f"The tensor {name!r} in {self.path} reaches beyond {shown(location)!r}; get it again.")
        self.others.add(target)
        return Place(target, offset, nbytes)

    def risks(self) -> list[Risk]:
        found = [
            Risk("high", f"a tensor is to be read from {shown(location)!r}, outside the model's folder")
            for location in dict.fromkeys(self.outside)
        ][:50]
        if self.foreign:
            names = ", ".join(name for name, _ in self.foreign.most_common(5))
            found.append(Risk("medium", f"operators of other domains ({names}) run a native library that is given"))
        if "PyOp" in self.ops or "PyFunc" in self.ops:
            found.append(Risk("high", "an operator calls a Python function by its name"))
        return found


def _has_varints(dtype: str) -> bool:
    """Integers, and small floats as their bits; the others have fields of fixed width."""
    return not DTYPES[dtype].packed and (DTYPES[dtype].view[0] in "iu?" or dtype == "float16")


def _within(folder: Path, location: str) -> Path | None:
    """The file at `location`, links followed, if it is in `folder`."""
    if not location or "\0" in location or len(location) > 4096 or Path(location).is_absolute():
        return None
    try:
        target = (folder / location).resolve()
    except (OSError, RuntimeError):  # a name too long, or links in a circle
        return None
    return target if target.is_relative_to(folder) and target != folder else None


def _value(value: Message) -> dict[str, Any]:
    """Name, type and shape of an input or an output; sizes that are only known in a run have a name."""
    kind = value.message(2)
    tensor = kind.message(1) if kind is not None else None
    shape = tensor.message(2) if tensor is not None else None
    sizes = [shown(size.text(2)) or size.number(1) for size in list(shape.messages(1))[:DIMENSIONS]] if shape else []
    return {"name": shown(value.text(1)), "dtype": TYPES.get(tensor.number(1) if tensor else 0, "?"), "shape": sizes}
