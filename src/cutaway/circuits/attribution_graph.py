"""Attribution graphs in the JSON of circuit-tracer and Neuronpedia: metadata, qParams, nodes and links.

Such a file is read as plain data and written again as it was. A node's `feature` is one number for a layer and an
index: their Cantor pairing (schema_version 1), or the layer before the index's digits (older files).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from ..drawing.graph import effect, spread
from ..drawing.layers import reads, split
from ..errors import FormatError
from ..formats.writing import write_whole
from .reading import checked, dumped, read_bytes

_APART = {"embedding", "logit", "mlp reconstruction error", "lorsa error", "bias", "unknown"}  # no features of a layer
_KINDS = {"h": "attention head", "n": "neuron", "c": "channel", "u": "state unit", "e": "expert"}
_LAYER = re.compile(r"^L(\d{1,6})\.")


class _Node(Struct):
    node_id: str
    feature: int | None
    layer: str | int
    ctx_idx: int
    feature_type: str
    jsNodeId: str
    clerp: str
    influence: float | None = None
    activation: float | None = None


class _Link(Struct):
    source: str
    target: str
    weight: float


class _Metadata(Struct):
    slug: str
    scan: str
    prompt_tokens: list[str]
    prompt: str
    schema_version: int | None = None


class _File(Struct):
    metadata: _Metadata
    qParams: dict[str, Any]
    nodes: list[_Node]
    links: list[_Link]


@dataclass(frozen=True)
class FeatureNode:
    """A node: its id, layer ("E" for embeddings), position in the prompt, kind, label, and `index`, which feature of
    its layer it is (None where it is none)."""

    id: str
    layer: str
    index: int | None
    position: int
    kind: str
    label: str
    influence: float | None
    activation: float | None


@dataclass(frozen=True)
class AttributionGraph:
    """An attribution graph: `links` are (source id, target id, weight); `numbering` says how features are numbered:
    "cantor", "digits" (layer before index) or "index". `data` is the whole file."""

    tokens: tuple[str, ...]
    prompt: str
    numbering: str
    nodes: tuple[FeatureNode, ...]
    links: tuple[tuple[str, str, float], ...]
    data: dict[str, Any] = field(repr=False)

    def save(self, path: str | Path) -> Path:
        """Write the graph as it was read. Raises ResourceError when it cannot be written."""
        return write_whole(path, dumped(self.data))


def read_attribution_graph(path: str | Path) -> AttributionGraph:
    """An attribution graph of circuit-tracer or Neuronpedia as data.

    Raises FormatError for a file that is none, and for links between nodes that it does not have.
    """
    try:
        return attribution_graph(read_bytes(path))
    except FormatError as error:
        raise FormatError(f"{str(path)!r}: {error}") from None


def attribution_graph(text: bytes) -> AttributionGraph:
    """The same from the file's text."""
    what = "an attribution graph"
    file = checked(text, _File, what)
    data: dict[str, Any] = msgspec.json.decode(text)
    known = {node.node_id for node in file.nodes}
    if lost := next((end for link in file.links for end in (link.source, link.target) if end not in known), None):
        raise FormatError(f"This is not {what}: a link ends at the node {lost[:80]!r}, which it does not have.")
    numbering, decode = _numbering(file)
    nodes = tuple(
        FeatureNode(
            node.node_id, str(node.layer), decode(node.feature) if _is_feature(node) else None, node.ctx_idx,
            node.feature_type, node.clerp, node.influence, node.activation,
        )
        for node in file.nodes
    )  # fmt: skip
    links = tuple((link.source, link.target, link.weight) for link in file.links)
    return AttributionGraph(tuple(file.metadata.prompt_tokens), file.metadata.prompt, numbering, nodes, links, data)


def _is_feature(node: _Node) -> bool:
    return node.feature_type not in _APART and node.feature is not None and node.feature >= 0


def _numbering(file: _File) -> tuple[str, Callable[[Any], int]]:
    """How the file numbers features: the first way in which every feature's number gives the layer it stands in."""
    told = [(node.feature, str(node.layer)) for node in file.nodes if _is_feature(node)]
    cantor: tuple[str, Callable[[Any], tuple[int, int]]] = ("cantor", unpaired)
    digits = [("digits", lambda number, ten=10**count: divmod(number, ten)) for count in range(5, 10)]
    tried = [cantor, *digits] if file.metadata.schema_version == 1 else [*digits, cantor]
    for name, decode in tried:
        if told and all(str(decode(number)[0]) == layer for number, layer in told):
            return name, lambda number, decode=decode: decode(number)[1]
    return "index", lambda number: number


def paired(layer: int, index: int) -> int:
    """The Cantor pairing of two whole numbers from 0 on."""
    return (layer + index) * (layer + index + 1) // 2 + index


def unpaired(number: int) -> tuple[int, int]:
    """(layer, index) of a Cantor pairing, exact however large it is."""
    diagonal = (math.isqrt(8 * number + 1) - 1) // 2
    index = number - diagonal * (diagonal + 1) // 2
    return diagonal - index, index


def exported(data: dict[str, Any]) -> bytes:
    """A circuit's data with its whole graph as an attribution graph.

    A part is a node at each position it writes at (at the last one where positions are not told apart), under our name
    as its label; the metric is one logit node with p = 1, as effects are on it and on no single token. Links have the
    edges' effects; one that reaches on by attention ends where its reader next writes. `influence` is the cumulative
    share of effects, the strongest nodes first; `activation` the mean norm of what the part writes.
    """
    graph, tokens = data["graph"], list(data["inputs"]["tokens"])
    count = max(data["universe"]["positions"], len(tokens), 1)
    tokens += [f"[{place}]" for place in range(len(tokens), count)]
    apart = data["universe"]["positions"] > 1
    rows = data["edges"] if apart else [{**row, "position": count - 1} for row in data["edges"]]
    arrows = spread({"edges": rows}, data["nodes"])
    weights: dict[tuple[str, str], float] = {}
    for arrow, found in arrows.items():
        ends = (arrow.writer, arrow.node)
        weights[ends] = weights.get(ends, 0.0) + effect(found[0])
    known = set(graph["writers"])
    groups = [node for reader in graph["readers"][:-1] if (node := reads(reader, known)[0]) not in known]
    layers = _layers([*graph["writers"], *dict.fromkeys(groups)], graph["sources"])
    members = dict.fromkeys(end for ends in weights for end in ends)
    influence = _influence(weights)
    nodes = []
    for member in members:
        name, _, spot = member.rpartition("@")
        place = graph["writers"].index(name) if name in graph["writers"] else None
        sizes = graph["sizes"][place] if place is not None else []
        made = _node(name, int(spot), layers, data["metric"].get("name", "metric"))
        made |= {"influence": influence.get(member), "activation": sizes[int(spot) if apart else 0] if sizes else None}
        nodes.append((member, made))
    ids = {member: made["node_id"] for member, made in nodes}
    links = [{"source": ids[one], "target": ids[two], "weight": value} for (one, two), value in weights.items()]
    return dumped(
        {"metadata": _metadata(data, tokens), "qParams": _QUERY, "nodes": [made for _, made in nodes], "links": links}
    )


_QUERY = {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""}


def _metadata(data: dict[str, Any], tokens: Sequence[str]) -> dict[str, Any]:
    provenance = data["provenance"]
    name, metric = provenance["model"], str(data["metric"].get("name", "metric"))
    slug = re.sub(r"[^a-z0-9]+", "-", f"{name}-{metric}".lower()).strip("-")
    generator = {"name": "Cutaway", "version": provenance["versions"].get("cutaway", "")}
    about = f"{len(data['edges'])} of {data['universe']['edges']} edges, faithfulness {data['faithfulness']}"
    settings = {"metric": metric, "baseline": provenance["baseline"], "fingerprint": provenance["fingerprint"]}
    return {
        "slug": slug, "scan": name, "transcoder_list": [], "prompt_tokens": list(tokens), "prompt": " ".join(tokens),
        "node_threshold": 1.0, "schema_version": 1, "info": {"description": about, "generator": generator},
        "generation_settings": settings,
    }  # fmt: skip


def _layers(parts: Sequence[str], sources: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Each part's layer and its number there; layers as names say, or blocks in order where they do not.

    Layers begin at 1 where there would be only layer 0, which Neuronpedia's page cannot show.
    """
    inner = [name for name in parts if name not in sources]
    numbers = {name: _LAYER.match(name) for name in inner}
    blocks = list(dict.fromkeys(split(name)[0] for name in inner))
    plain = {name: int(found[1]) if found else blocks.index(split(name)[0]) for name, found in numbers.items()}
    if not all(numbers.values()):
        plain = {name: blocks.index(split(name)[0]) for name in inner}
    first = 0 if max(plain.values(), default=0) else 1
    counts: dict[int, int] = {}
    made = {}
    for name, layer in plain.items():
        made[name] = (layer + first, counts.get(layer, 0))
        counts[layer] = counts.get(layer, 0) + 1
    return made | {name: (-1, place) for place, name in enumerate(sources)}


def _node(name: str, spot: int, layers: dict[str, tuple[int, int]], metric: str) -> dict[str, Any]:
    shared: dict[str, Any] = {"ctx_idx": spot, "run_idx": 0, "reverse_ctx_idx": 0}
    if name not in layers:  # the output
        top = 1 + max(layer for layer, _ in layers.values())
        own = {"node_id": f"{top}_0_{spot}", "feature": 0, "layer": str(top), "feature_type": "logit"}
        said = {"clerp": f'Output "{name}: {metric}" (p=1.000)', "token_prob": 1.0, "is_target_logit": True}
        return {**own, **shared, "jsNodeId": f"L_0-{spot}", **said}
    layer, index = layers[name]
    unit = split(name)[1]
    kind = _KINDS.get(unit[0], name) if unit[1:].isdigit() else name.rpartition(".")[2]
    feature = spot if layer < 0 else paired(layer, index)
    where = "E" if layer < 0 else str(layer)
    kind = "embedding" if layer < 0 else kind
    own = {"node_id": f"{where}_{index}_{spot}", "feature": feature, "layer": where, "feature_type": kind}
    said = {"clerp": name, "token_prob": 0.0, "is_target_logit": False}
    return {**own, **shared, "jsNodeId": f"{where}_{index}-{spot}", **said}


def _influence(weights: dict[tuple[str, str], float]) -> dict[str, float]:
    """The cumulative share of all effects at each writer, the strongest first."""
    sums: dict[str, float] = {}
    for (writer, _), value in weights.items():
        sums[writer] = sums.get(writer, 0.0) + abs(value)
    whole, passed, found = sum(sums.values()) or 1.0, 0.0, {}
    for writer in sorted(sums, key=lambda name: -sums[name]):
        passed += sums[writer]
        found[writer] = min(passed / whole, 1.0)
    return found
