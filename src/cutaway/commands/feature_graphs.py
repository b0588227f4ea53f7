"""The verb that explains one answer by the latents of dictionaries."""

from __future__ import annotations

from typing import Annotated, Any

from ..report.feature_graph_text import graph as graph_text
from .looking import NOTHING, Model, Texts
from .progress import report
from .verb import Argument, Result, verb


@verb("attribute", show=graph_text, chapter="Features")
def attribute(
    model: Model,
    dictionary: Annotated[
        list[str],
        Argument(
            "A file or folder of dictionaries whose cards name their places; several times for more.", shown="FILE"
        ),
    ] = NOTHING,
    text: Texts = NOTHING,
    target: Annotated[
        list[str], Argument("A token or class to explain; the likeliest ones when left out.", shown="TOKEN")
    ] = NOTHING,
    most: Annotated[int, Argument("How many latents the graph has at most.", least=1)] = 8192,
    nodes: Annotated[int, Argument("Percent of all influence that the kept nodes have.", least=1)] = 80,
    edges: Annotated[int, Argument("Percent of all influence that the kept edges have.", least=1)] = 98,
    test: Annotated[int, Argument("How many of the strongest latents to take away in the real network.", least=0)] = 0,
    save: Annotated[str, Argument("A file for the kept graph, in the JSON of circuit-tracer.", shown="FILE")] = "",
    plot: Annotated[str, Argument("A file for its drawing, .svg or .png.", shown="FILE")] = "",
    count: Annotated[int, Argument("How many nodes and edges to show.", least=1)] = 10,
) -> Result:
    """Which latents make which others, and the answer: an attribution graph over dictionaries' latents on one input."""
    from ..circuits.feature_graph import feature_graph
    from ..circuits.graph_test import verify_graph
    from ..errors import InputError
    from ..features.opening import load_dictionaries
    from .subject import facts, inputs_of, open_model

    if not dictionary:
        raise InputError("No dictionaries are named; give --dictionary FILE, several times for several of them.")
    if len(text) > 1:
        raise InputError(f"A graph is that of one input, and {len(text)} texts are given; give --text once.")
    found = [one for path in dictionary for one in load_dictionaries(path)]
    net = open_model(model)
    trace = net.record(inputs_of(net, text)[:1])
    asked: Any = [int(word) if net.tokenizer is None and word.isdecimal() else word for word in target] or None
    whole = feature_graph(
        trace, found, targets=asked, most_nodes=most, progress=lambda done, of: report("effects", done, of)
    )
    kept, tested = whole.prune(nodes / 100, edges / 100), None
    if test:
        tested = verify_graph(whole, count=test, progress=lambda done, of: report("ablations", done, of)).to_dict()
    files = {}
    if save:
        files["graph"] = str(kept.to_attribution_graph().save(save))
    if plot:
        files["drawing"] = str(kept.plot().save(plot))
    return {
        "model": model, "facts": facts(net), "dictionaries": [repr(one) for one in found], "how": whole.facts,
        "error": whole.error, "scores": whole.scores(), "counts": _counts(whole), "kept": _counts(kept),
        "nodes": [{"node": node.name, "kind": node.kind, "influence": value} for node, value in whole.top(count)],
        "edges": [
            {"from": one.name, "to": other.name, "effect": effect} for one, other, effect in kept.edges[:count]
        ],
        "outputs": [
            {"output": node.label, "probability": node.activation} for node in whole.nodes if node.kind == "output"
        ],
        "test": tested, "files": files,
    }  # fmt: skip


def _counts(graph: Any) -> dict[str, int]:
    """How many nodes of each kind, and edges."""
    kinds = ("latent", "error", "component", "embedding", "output")
    return {kind: graph.count(kind) for kind in kinds} | {"edges": int((graph.table != 0).sum())}
