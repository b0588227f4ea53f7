"""Circuits in the JSON of EAP-IG (Hanna et al. 2024, arXiv:2403.17806; github.com/hannamw/EAP-IG, Graph.to_json).

    {"cfg": {"n_layers", "n_heads", "parallel_attn_mlp", "d_model"},
     "nodes": {"a0.h1": {"in_graph": true}, …}, "edges": {"a0.h1->a1.h2<q>": {"score", "in_graph"}, …}}

Older files have a truth value for each node and no d_model. The graph is that of a transformer: input, heads a{layer}.
h{head}, MLPs m{layer}, logits; positions are not told apart, all embeddings are one input, and all ports of an MLP one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any

from msgspec import Meta, Struct

from ..errors import FormatError, InputError
from .reading import checked, dumped
from .schema import SCHEMA

_PART = re.compile(r"^L(\d{1,4})\.(?:attn\.h(\d{1,4})|mlp)$")
_READ = re.compile(r"^L(\d{1,4})\.(?:attn\.h(\d{1,4})\.([qkv])|mlp(?:\.\w+)?)$")
_EDGE = re.compile(r"^(input|m\d{1,4}|a\d{1,4}\.h\d{1,4})->(?:(logits|m\d{1,4})|(a\d{1,4}\.h\d{1,4})<([qkv])>)$")


class Shape(Struct):
    """EAP-IG's `cfg`."""

    n_layers: Annotated[int, Meta(ge=1, le=9999)]
    n_heads: Annotated[int, Meta(ge=1, le=9999)]
    parallel_attn_mlp: bool = False
    d_model: int | None = None


class _Node(Struct):
    in_graph: bool
    score: float | None = None
    neurons: list[bool] | None = None


class _Edge(Struct):
    in_graph: bool
    score: float | None = None


class _File(Struct):
    cfg: Shape
    nodes: dict[str, bool | _Node]
    edges: dict[str, _Edge]


def edge_names(shape: Shape) -> Iterator[str]:
    """Every edge of a transformer in EAP-IG's names and order: 32,491 for 12 layers of 12 heads."""
    stream = ["input"]
    for layer in range(shape.n_layers):
        heads, mlp = [f"a{layer}.h{head}" for head in range(shape.n_heads)], f"m{layer}"
        for writer in stream:
            yield from (f"{writer}->{head}<{port}>" for head in heads for port in "qkv")
            if shape.parallel_attn_mlp:
                yield f"{writer}->{mlp}"
        stream += heads
        if not shape.parallel_attn_mlp:
            yield from (f"{writer}->{mlp}" for writer in stream)
        stream.append(mlp)
    yield from (f"{writer}->logits" for writer in stream)


def exported(data: dict[str, Any]) -> bytes:
    """A circuit's data with its whole graph as EAP-IG's JSON.

    Edges that the circuit's inputs cannot test have score 0. An edge that stands for several of ours has the sum of
    their scores, and is in when one of them is. Raises InputError for a graph that is no transformer's of heads and
    MLPs, and for one that tells positions apart.
    """
    graph = data["graph"]
    if data["universe"]["positions"] > 1:
        raise InputError("EAP-IG's format does not tell positions apart; find the circuit with positions=False.")
    writers = [_writer(name, graph["sources"]) for name in graph["writers"]]
    readers = [_reader(name) for name in graph["readers"]]
    shape = _shape(graph, writers, readers)
    found = {name: _Edge(False, 0.0) for name in edge_names(shape)}
    for reader, writer, _, score, _, member in graph["edges"]:
        node, _, port = readers[reader].partition("<")
        name = f"{writers[writer]}->{node}" + (f"<{port}" if port else "")
        if name not in found:
            raise InputError(f"EAP-IG's graph has no edge '{name}', which this network has; save it as 'cutaway'.")
        edge = found[name]
        found[name] = _Edge(edge.in_graph or member, (edge.score or 0.0) + (score if score is not None else 0.0))
    inside = {name.partition("->")[0] for name, edge in found.items() if edge.in_graph} | {"logits"}
    order = dict.fromkeys(["input", *(name.partition("->")[0] for name in found), "logits"])
    nodes = {name: {"in_graph": name in inside} for name in order}
    edges = {name: {"score": edge.score, "in_graph": edge.in_graph} for name, edge in found.items()}
    return dumped({"cfg": shape, "nodes": nodes, "edges": edges})


def _writer(name: str, sources: list[str]) -> str:
    if name in sources:
        return "input"
    return _node(_PART.match(name), name)


def _reader(name: str) -> str:
    if name == "logits":
        return name
    found = _READ.match(name)
    return _node(found, name) + (f"<{found[3]}>" if found and found[3] else "")


def _node(found: re.Match[str] | None, name: str) -> str:
    if found is None:
        raise InputError(
            f"EAP-IG's format holds transformers of heads and MLPs, and this network has '{name}'; choose 'cutaway'."
        )
    return f"m{int(found[1])}" if found[2] is None else f"a{int(found[1])}.h{int(found[2])}"


def _shape(graph: dict[str, Any], writers: list[str], readers: list[str]) -> Shape:
    """The graph's layers and heads, and whether its attention and MLPs stand side by side."""
    heads = {(int(layer), int(head)) for name in writers for layer, head in re.findall(r"^a(\d+)\.h(\d+)$", name)}
    layers = {layer for layer, _ in heads} | {int(name[1:]) for name in writers if name[0] == "m"}
    if not heads or layers != set(range(len(layers))):
        raise InputError("EAP-IG's format needs layers of heads numbered from 0, and this network has none.")
    count = 1 + max(head for _, head in heads)
    mlps = {int(name[1:]) for name in readers if name[0] == "m"}
    wired = {(readers[wire[0]], writers[wire[1]]) for wire in graph["edges"]}
    beside = [(f"m{layer}", f"a{layer}.h{head}") not in wired for layer, head in heads if layer in mlps]
    return Shape(len(layers), count, bool(beside) and all(beside), graph["width"])


def imported(text: bytes) -> dict[str, Any]:
    """EAP-IG's JSON, old or new, as a circuit's data; it names no metric and no baseline, which are given when it is
    loaded. Raises FormatError for anything else, and for a circuit of single neurons."""
    file = checked(text, _File, "a graph of EAP-IG", lenient=True)
    for name, node in file.nodes.items():
        if isinstance(node, _Node) and node.neurons is not None and not all(node.neurons):
            raise FormatError(
                f"This graph of EAP-IG leaves out single neurons of '{name}', which circuits of edges cannot say."
            )
    writers: dict[str, int] = {}
    readers: dict[str, int] = {}
    rows: list[dict[str, Any]] = []
    wires: list[list[Any]] = []
    for name, edge in file.edges.items():
        writer, reader = _ours(name, file.cfg)
        at, to = readers.setdefault(reader, len(readers)), writers.setdefault(writer, len(writers))
        wires.append([at, to, None, edge.score, None, edge.in_graph])
        if edge.in_graph:
            row = {"edge": f"{writer} -> {reader}", "writer": writer, "reader": reader}
            rows.append({**row, "position": None, "score": edge.score, "exact": None})
    rows.sort(key=lambda row: -abs(row["score"] or 0.0))
    inside = {row["writer"] for row in rows}
    return {
        "schema": SCHEMA, "level": "edge", "metric": {"name": "not stored"},
        "nodes": [name for name in writers if name in inside], "edges": rows, "faithfulness": None, "curve": [],
        "universe": {"edges": len(wires), "writers": len(writers), "readers": len(readers), "positions": 1},
        "settings": {"scores": "a file of EAP-IG", "positions": False, "neurons": False},
        "graph": {
            "writers": list(writers), "readers": list(readers), "sources": ["input"], "width": file.cfg.d_model,
            "sizes": [], "edges": wires,
        },
    }  # fmt: skip


def _ours(name: str, shape: Shape) -> tuple[str, str]:
    """An edge of EAP-IG's by our names of its ends. Raises FormatError for one that the graph cannot have."""
    found = _EDGE.match(name)
    reader = found and (found[2] or found[3])
    if found is None or reader is None or _rank(found[1], shape) >= _rank(reader, shape):
        raise FormatError(f"This is not a graph of EAP-IG: it cannot have an edge {name[:80]!r}.")
    return _named(found[1]), _named(reader) + (f".{found[4]}" if found[4] else "")


def _named(node: str) -> str:
    if node in ("input", "logits"):
        return node
    layer, dot, head = node[1:].partition(".")
    return f"L{int(layer)}.attn.{head}" if dot else f"L{int(layer)}.mlp"


def _rank(node: str, shape: Shape) -> int:
    """When a node is run: heads of a layer together, its MLP after or beside them, the output and what is no node of
    the shape after all. Nothing reads what runs at the same time."""
    if node == "input":
        return -1
    layer, _, head = node[1:].partition(".h")
    if node == "logits" or int(layer) >= shape.n_layers or int(head or 0) >= shape.n_heads:
        return 2 * shape.n_layers + (node != "logits")
    return 2 * int(layer) + (0 if head or shape.parallel_attn_mlp else 1)
