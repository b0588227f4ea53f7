"""Attribution graphs over latents as circuit-tracer and Neuronpedia read them, and as drawings."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from ..drawing.graph import draw
from ..drawing.plot import Plot, compose
from ..drawing.svg import figure
from ..errors import InputError
from ..run.structure import tensors
from ..run.trace import Trace
from .attribution_graph import AttributionGraph, attribution_graph, paired
from .graph_nodes import ERROR, LATENT, OUTPUT, PART, SOURCE, GraphNode
from .pruning import cumulative
from .reading import dumped

if TYPE_CHECKING:
    from .feature_graph import FeatureGraph

_MOST = 1_000_000  # links in a file
_TYPES = {LATENT: "cross layer transcoder", ERROR: "mlp reconstruction error", PART: "mlp reconstruction error"}


def tokens(trace: Trace, count: int) -> tuple[list[str], list[int]]:
    """What stands at each of `count` positions, as text and as a number; only numbers where inputs are no tokens."""
    first = next(tensors((trace.args, trace.kwargs)), None)
    if first is None or first.is_floating_point() or tuple(first.shape) != (1, count):
        return [f"[{place}]" for place in range(count)], list(range(count))
    ids = [int(token) for token in first[0]]
    return [trace.net.token_text(token) for token in ids], ids


def attribution_data(graph: FeatureGraph) -> AttributionGraph:
    """The graph in the JSON of circuit-tracer: a node's `influence` is the share of all influence that it and stronger
    nodes have. Components are kept as reconstruction errors, as no latents stand for them.

    Raises InputError for more than a million edges.
    """
    rows, columns = graph.table.nonzero(as_tuple=True)
    if len(rows) > _MOST:
        raise InputError(f"The graph has {len(rows):,} edges, too many for a file; prune it first: graph.prune().")
    count = 1 + max(node.position for node in graph.nodes)
    said, ids = tokens(graph.trace, count)
    passed = cumulative(graph.influence()).tolist()
    seen: Counter[str] = Counter()
    made = []
    for at, node in enumerate(graph.nodes):
        data = _node(node, ids, graph.facts["layers"])
        seen[data["node_id"]] += 1
        if seen[data["node_id"]] > 1:  # position embeddings beside tokens, several dictionaries of one layer
            data["node_id"] += f"_{seen[data['node_id']]}"
        made.append(data | {"influence": passed[at] if at < len(passed) else None})
    names = [data["node_id"] for data in made]
    ends = [*names[: graph.latents], *names[graph.table.shape[1] :]]
    weights = graph.table[rows, columns].tolist()
    links = [
        {"source": names[column], "target": ends[row], "weight": weight}
        for row, column, weight in zip(rows.tolist(), columns.tolist(), weights, strict=True)
    ]
    where = dict(zip((node.name for node in graph.nodes), names, strict=True))
    groups = [[label, *(where[name] for name in members)] for label, members in graph.supernodes.items()]
    pinned = sorted({name for group in groups for name in group[1:]})
    query = {"pinnedIds": pinned, "supernodes": groups, "linkType": "both", "clickedId": "", "sg_pos": ""}
    return attribution_graph(
        dumped({"metadata": _metadata(graph, said), "qParams": query, "nodes": made, "links": links})
    )


def _metadata(graph: FeatureGraph, said: list[str]) -> dict[str, Any]:
    from .. import __version__

    name = graph.trace.net.name
    ends = " ".join(node.label for node in graph.nodes if node.kind == OUTPUT)
    scores = {name: round(value, 4) for name, value in graph.scores().items()}
    return {
        "slug": re.sub(r"[^a-z0-9]+", "-", f"{name}-{ends}".lower()).strip("-") or "graph", "scan": name,
        "transcoder_list": [], "prompt_tokens": said, "prompt": "".join(said),
        "node_threshold": graph.facts.get("node_share", 1.0), "schema_version": 1,
        "info": {"description": str(scores), "generator": {"name": "Cutaway", "version": __version__}},
        "generation_settings": {
            **scores, "frozen": graph.facts["frozen"], "notes": list(graph.notes),
            "fingerprint": graph.trace.net.fingerprint,
        },
    }  # fmt: skip


def _node(node: GraphNode, ids: list[int], layers: int) -> dict[str, Any]:
    spot, layer = node.position, str(node.layer)
    shared: dict[str, Any] = {
        "ctx_idx": spot, "run_idx": 0, "reverse_ctx_idx": 0, "clerp": "", "token_prob": 0.0, "is_target_logit": False,
        "activation": node.activation,
    }  # fmt: skip
    if node.kind == OUTPUT:
        top, index = str(layers + 1), max(node.index, 0)
        own = {"node_id": f"{top}_{index}_{spot}", "feature": index, "layer": top, "feature_type": "logit"}
        said = f'Output "{node.label}" (p={node.activation:.3f})'
        return shared | own | {
            "jsNodeId": f"L_{index}-{spot}", "clerp": said, "token_prob": node.activation, "is_target_logit": True
        }  # fmt: skip
    if node.kind == SOURCE:
        own = {"node_id": f"E_{ids[spot]}_{spot}", "feature": spot, "layer": "E", "feature_type": "embedding"}
        return shared | own | {"jsNodeId": f"E_{ids[spot]}-{spot}", "clerp": node.site}
    if node.kind == LATENT:
        own = {"node_id": f"{layer}_{node.index}_{spot}", "feature": paired(node.layer, node.index), "layer": layer}
        return shared | own | {"feature_type": _TYPES[LATENT], "jsNodeId": f"{layer}_{node.index}-0"}
    own = {"node_id": f"0_{layer}_{spot}", "feature": -1, "layer": layer, "feature_type": _TYPES[node.kind]}
    return shared | own | {"jsNodeId": f"{layer}_{spot}-0", "clerp": node.name}


def drawn(graph: FeatureGraph, count: int) -> Plot:
    """The `count` nodes of most influence, the outputs, and the edges among them, in columns by position."""
    width = graph.table.shape[1]
    order = graph.influence().argsort(descending=True)[:count]
    shown = set(order.tolist())
    names = [_unit(node) for node in graph.nodes]
    targets = graph.targets
    rows, columns = graph.table.nonzero(as_tuple=True)
    edges = []
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        if column in shown and (row in shown or row >= graph.latents):
            ends, at = (names[column], _unit(targets[row])), graph.nodes[column].position
            edges.append({
                "writer": ends[0], "reader": ends[1], "position": at, "to": targets[row].position,
                "score": float(graph.table[row, column]),
            })  # fmt: skip
    order_of = sorted(range(width), key=lambda at: (graph.nodes[at].layer, graph.nodes[at].kind != SOURCE))
    said, _ = tokens(graph.trace, 1 + max(node.position for node in graph.nodes))
    listed = list(dict.fromkeys(names[at] for at in order_of if at in shown))
    drawing = draw({"nodes": listed, "edges": edges, "level": "edge"}, by_position=True, tokens=said)
    scores = graph.scores()
    passed = float(graph.influence()[order].sum() / graph.influence().sum().clamp(min=1e-30))
    notes = [
        f"{len(shown)} of {width:,} nodes, with {passed:.0%} of all influence; lines lead from writers up.",
        f"Replacement score {figure(scores['replacement'])}, "
        f"completeness {figure(scores['completeness'])} (1 is best).",
    ]
    keys = [("plus", "direct effect above zero"), ("minus", "below zero")] if edges else []
    return compose(f"Attribution graph of {graph.trace.net.name}", notes, keys, [drawing.svg])


def _unit(node: GraphNode) -> str:
    if node.kind == OUTPUT:
        return f"output {node.label}".replace(".", "·")
    told = {LATENT: f".latent{node.index}", ERROR: ".error"}.get(node.kind, "")
    return f"{node.site}{told}"
