"""Attribution graphs over latents in the files of circuit-tracer, as drawings, and on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from graphs import gpt2, ids, random_dictionary, transcoders

import cutaway as cw
from cutaway.circuits.attribution_graph import paired, read_attribution_graph
from cutaway.circuits.feature_graph import FeatureGraph, feature_graph
from cutaway.commands import verbs
from cutaway.errors import InputError, SiteError
from cutaway.features import save_dictionary


@pytest.fixture(scope="module")
def graph() -> FeatureGraph:
    module = gpt2()
    return feature_graph(cw.open(module).record(ids()), transcoders(module, "transformer.h.{}.ln_2"))


def test_a_file_reads_back_with_nodes_links_and_supernodes(graph: FeatureGraph, tmp_path: Path) -> None:
    small = graph.prune()
    members = [node.name for node in small.nodes if node.kind == "latent"][:2]
    path = small.grouped({"two": members}).to_attribution_graph().save(tmp_path / "graph.json")
    back = read_attribution_graph(path)
    assert back.numbering == "cantor" and len(back.tokens) == ids().shape[1]
    assert len(back.nodes) == len(small.nodes) and len(back.links) == len(small.edges)
    assert len({node.id for node in back.nodes}) == len(back.nodes)
    for node, made in zip(small.nodes, back.nodes, strict=True):
        if node.kind == "latent":
            assert (made.layer, made.index, made.position) == (str(node.layer), node.index, node.position)
            assert made.activation == pytest.approx(node.activation)
    data = json.loads(path.read_text())
    assert [group[0] for group in data["qParams"]["supernodes"]] == ["two"]
    assert set(data["qParams"]["supernodes"][0][1:]) <= {node["node_id"] for node in data["nodes"]}
    first = next(node for node in data["nodes"] if node["feature_type"] == "cross layer transcoder")
    layer, index, spot = map(int, first["node_id"].split("_"))
    assert first["feature"] == paired(layer, index) and first["ctx_idx"] == spot
    with pytest.raises(InputError, match="no node 'L9'"):
        small.grouped({"none": ["L9"]})


def test_the_drawing_shows_the_strongest_nodes_by_position(graph: FeatureGraph) -> None:
    svg = graph.prune().plot(12).svg
    assert "Replacement score" in svg and "latent" in svg and "output" in svg and "12 of " in svg
    spots = {node.position for node, _ in graph.prune().top(12)}
    assert svg.count('class="column"') >= len(spots)


def test_a_heads_score_is_divided_among_pairs_of_nodes(graph: FeatureGraph) -> None:
    found = graph.attention("L2.attn.h1", query=5, key=2)
    assert found.error < 1e-5
    assert float(found.table.sum()) + found.rest == pytest.approx(found.score, abs=1e-4)
    for at, node in enumerate(found.nodes):  # each side is at its own position
        if node.kind == "latent" and node.position != 5 and node.layer == 1:
            assert not found.table[at].any()
    assert found.side("query")[0][0] != found.side("key")[0][0]
    with pytest.raises(InputError, match="does not see a key 6"):
        graph.attention("L2.attn.h1", query=2, key=6)
    with pytest.raises(SiteError):
        graph.attention("L2.mlp")


def test_a_first_layers_score_is_divided_as_among_writers(graph: FeatureGraph) -> None:
    ours = graph.attention("L0.attn.h1", query=5, key=2)
    theirs = cw.explain_attention(graph.trace, "L0.attn.h1", query=5, key=2)
    names = [node.name for node in ours.nodes]
    for one in ("embed", "pos_embed"):
        for other in ("embed", "pos_embed"):
            mine = float(ours.table[names.index(f"{one}@5"), names.index(f"{other}@2")])
            known = float(theirs.table[0, theirs.query_sources.index(one), theirs.key_sources.index(other)])
            assert mine == pytest.approx(known, abs=1e-5)


def test_the_verb_explains_saves_and_draws(tmp_path: Path) -> None:
    width = (
        cw.open("indirect-object")
        .record(cw.organisms.load("indirect-object").pairs(1, seed=0).clean)["resid.0"]
        .shape[-1]
    )
    made = [random_dictionary({f"L{at}.resid_mid": width}, {f"L{at}.mlp_out": width}, seed=at) for at in range(3)]
    files = [str(save_dictionary(one, tmp_path / f"{at}.safetensors")) for at, one in enumerate(made)]
    asked = {
        "model": "indirect-object", "dictionary": files, "save": str(tmp_path / "g.json"), "test": 3,
        "plot": str(tmp_path / "g.svg"),
    }  # fmt: skip
    verb = verbs()["attribute"]
    result = verb(asked)
    json.dumps(result)
    assert result["error"] < 1e-4 and result["scores"]["replacement"] < 1 and result["test"]["n"] == 3
    assert read_attribution_graph(tmp_path / "g.json").links and (tmp_path / "g.svg").stat().st_size > 1000
    from rich.console import Console

    console = Console(record=True, width=120)
    console.print(verb.show(result))
    assert "Replacement score" in console.export_text()
    with pytest.raises(InputError, match="2 texts are given"):
        verb({**asked, "text": ["a", "b"]})
    with pytest.raises(InputError, match="No dictionaries are named"):
        verb({"model": "indirect-object"})
