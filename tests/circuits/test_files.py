"""Circuits as files: what was written is what is read, on any kind of network, and bad files get one sentence."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import gpt2_runs, organism_runs

import cutaway as cw
from cutaway.circuits import eap_ig
from cutaway.circuits.attribution_graph import attribution_graph, paired, unpaired
from cutaway.circuits.files import FORMATS
from cutaway.circuits.schema import json_schema
from cutaway.errors import CutawayError, FormatError, InputError, MetricError, ResourceError

DOCS = Path(__file__).parents[2] / "docs"
KINDS = {
    "induction": {"refine": 20},
    "shapes": {"search": "top-n", "size": 12},
    "counter": {"search": "top-n", "size": 8},
    "placed": {"search": "top-n", "size": 13, "positions": True},
}


@pytest.fixture(scope="module")
def found() -> dict:
    """A circuit of each kind of network, with its runs: transformer, CNN, GRU, and a transformer by position."""
    made = {}
    for name, options in KINDS.items():
        clean, corrupted, metric, _ = organism_runs("induction" if name == "placed" else name, n=4)
        made[name] = (cw.find_circuit(clean, corrupted, metric, **options), clean, corrupted)
    return made


@pytest.mark.parametrize("name", KINDS)
def test_a_circuit_comes_back(name: str, found: dict, tmp_path: Path) -> None:
    circuit, clean, corrupted = found[name]
    path = cw.save_circuit(circuit, tmp_path / "sub" / "c.json")
    again = cw.load_circuit(path, clean, corrupted)
    assert torch.equal(again.mask, circuit.mask) and torch.equal(again.scores.edges, circuit.scores.edges)
    assert again.exact == circuit.exact and again.curve == circuit.curve and again.edges == circuit.edges
    assert again.faithfulness == pytest.approx(circuit.faithfulness, abs=1e-4)
    brief = cw.read_circuit(cw.save_circuit(circuit, path, whole=False))
    assert brief == json.loads(json.dumps(circuit.to_dict()))
    assert torch.equal(cw.load_circuit(path, clean, corrupted).mask, circuit.mask)


def test_the_published_schema_is_that_of_the_code() -> None:
    assert json.loads((DOCS / "circuit-schema.json").read_text(encoding="utf-8")) == json_schema()
    page = (DOCS / "circuits-json.md").read_text(encoding="utf-8")
    for name in json_schema()["$defs"]["CircuitData"]["properties"]:
        assert f"| `{name}` |" in page


def test_other_networks_are_told(found: dict, tmp_path: Path) -> None:
    circuit = found["induction"][0]
    path = cw.save_circuit(circuit, tmp_path / "c.json", whole=False)
    with pytest.raises(InputError, match="has no edge 'embed -> L0.attn.h0.k': it has no"):
        data = json.loads(path.read_text())
        data["edges"] = [edge for edge in data["edges"] if edge["edge"] == "embed -> L0.attn.h0.k"] or [
            {**data["edges"][0], "writer": "embed", "reader": "L0.attn.h0.k"}
        ]
        path.write_text(json.dumps(data))
        cw.load_circuit(path, *found["counter"][1:])
    data["edges"][0] |= {"writer": "L1.attn.h1", "reader": "L0.attn.h0.q"}
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match="no wiring leads"):
        cw.load_circuit(path, *found["induction"][1:])
    data["edges"][0] |= {"writer": "L0.attn.h0", "reader": "L1.attn.h1.z"}
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match="near it are L1.attn.h1"):
        cw.load_circuit(path, *found["induction"][1:])
    data["metric"] = {"kind": "logit_difference", "correct": {}, "wrong": 1}
    path.write_text(json.dumps(data))
    with pytest.raises(MetricError, match="cannot be read"):
        cw.load_circuit(path, *found["induction"][1:])


def _dropped(data: dict) -> None:
    del data["edges"][1:]


def _renamed(data: dict) -> None:
    data["edges"][0]["edge"] = "foo -> bar"


def _misspelt(data: dict) -> None:
    data["edges"][0] |= {"edge": "foo -> bar", "writer": "foo", "reader": "bar"}


def _unmarked(data: dict) -> None:
    data["graph"]["edges"] = [wire[:5] + [False] for wire in data["graph"]["edges"]]


@pytest.mark.parametrize("name", ["induction", "placed"])
@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        (_dropped, FormatError, "'edges' do not list '.* -> .*and its 'graph' says otherwise"),
        (_unmarked, FormatError, "'edges' list '.* -> .*and its 'graph' says otherwise"),
        (_renamed, FormatError, "called 'foo -> bar' and its ends say"),
        (_misspelt, InputError, "it has no writer 'foo'"),
    ],
)
def test_edges_changed_by_hand_are_not_passed_over(
    name: str, change: Callable[[dict], None], error: type[CutawayError], told: str, found: dict, tmp_path: Path
) -> None:
    circuit, clean, corrupted = found[name]
    path = cw.save_circuit(circuit, tmp_path / "c.json")
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(error, match=told):
        cw.load_circuit(path, clean, corrupted)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"a":' * 50_000, b"NaN", b'{"schema":"cutaway.circuit/2"}', b"1e999"],
)
@pytest.mark.parametrize("form", ["cutaway", "eap-ig"])
def test_what_is_no_circuit_is_refused(text: bytes, form: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(text)
    with pytest.raises(FormatError, match="This is not") as caught:
        cw.read_circuit(path, form)
    assert str(caught.value).count("\n") == 0
    with pytest.raises(FormatError, match="This is not"):
        cw.read_attribution_graph(path)


def test_files_that_cannot_be_are_told(found: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FormatError, match="cannot be read"):
        cw.read_circuit(tmp_path / "none.json")
    with pytest.raises(InputError, match="no format 'x'"):
        cw.save_circuit(found["induction"][0], tmp_path / "c.json", "x")
    (tmp_path / "file").write_text("{}")
    with pytest.raises(ResourceError, match="cannot be written"):
        cw.save_circuit(found["induction"][0], tmp_path / "file" / "c.json")
    monkeypatch.setattr("cutaway.circuits.reading.LARGEST", 1)
    with pytest.raises(FormatError, match="larger than"):
        cw.read_circuit(tmp_path / "file")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def _places(data: object, path: tuple = ()) -> list[tuple]:
    """The paths of everything inside data, the first two of each list."""
    inner = (
        list(data.items()) if isinstance(data, dict) else list(enumerate(data))[:2] if isinstance(data, list) else []
    )
    return [place for key, value in inner for place in [(*path, key), *_places(value, (*path, key))]]


@pytest.fixture(scope="module")
def written(found: dict, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A circuit in each format."""
    folder = tmp_path_factory.mktemp("written")
    return {form: cw.save_circuit(found["induction"][0], folder / form, form).read_text() for form in FORMATS}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(choice=st.integers(0, 10**6), value=JSON, form=st.sampled_from(sorted(FORMATS)))
def test_a_changed_file_is_read_or_refused(
    found: dict, written: dict[str, str], choice: int, value: object, form: str, tmp_path: Path
) -> None:
    circuit, clean, corrupted = found["induction"]
    path = tmp_path / f"{form}.json"
    data = json.loads(written[form])
    places = _places(data)
    *way, last = places[choice % len(places)]
    inside = data
    for key in way:
        inside = inside[key]
    inside[last] = value
    path.write_text(json.dumps(data))
    try:
        if form == "neuronpedia":
            cw.read_attribution_graph(path)
        else:
            cw.load_circuit(path, clean, corrupted, circuit.metric if form == "eap-ig" else None, format=form)
    except CutawayError as error:
        assert "\n" not in str(error) and len(str(error)) < 600


# ---- EAP-IG


def test_edges_are_counted_as_eap_ig_counts_them() -> None:
    names = list(eap_ig.edge_names(eap_ig.Shape(12, 12)))
    assert len(names) == len(set(names)) == 32_491
    layers, heads = 3, 4
    beside = sum(1 for _ in eap_ig.edge_names(eap_ig.Shape(layers, heads, True)))
    assert beside == sum((1 + layer * (heads + 1)) * (3 * heads + 1) for layer in range(layers)) + 1 + layers * (
        heads + 1
    )


def test_eap_ig_round_trip_on_gpt2(tmp_path: Path) -> None:
    clean, corrupted, _ = gpt2_runs(1)
    metric = cw.logit_difference(3, 4)
    circuit = cw.find_circuit(clean, corrupted, metric, search="top-n", size=20)
    path = cw.save_circuit(circuit, tmp_path / "graph.json", "eap-ig")
    stored = json.loads(path.read_text())
    assert stored["cfg"] == {"n_layers": 2, "n_heads": 4, "parallel_attn_mlp": False, "d_model": 32}
    assert list(stored["edges"]) == list(eap_ig.edge_names(eap_ig.Shape(2, 4)))
    assert stored["nodes"]["logits"] == {"in_graph": True} and len(stored["nodes"]) == 2 + 2 * 5
    again = cw.load_circuit(path, clean, corrupted, metric, format="eap-ig")
    assert torch.equal(again.mask, circuit.mask) and again.faithfulness == pytest.approx(circuit.faithfulness, abs=1e-4)
    second = cw.save_circuit(again, tmp_path / "second.json", "eap-ig")
    for name, edge in json.loads(second.read_text())["edges"].items():
        was = stored["edges"][name]
        assert edge["in_graph"] == was["in_graph"] and edge["score"] == pytest.approx(was["score"], abs=1e-6)
    old = stored | {"nodes": {name: node["in_graph"] for name, node in stored["nodes"].items()}}
    del old["cfg"]["d_model"]
    older = eap_ig.imported(json.dumps(old).encode())
    assert older["edges"] == cw.read_circuit(path, "eap-ig")["edges"]
    with pytest.raises(MetricError, match="made of code"):
        cw.load_circuit(path, clean, corrupted, format="eap-ig")


def test_other_graphs_are_none_of_eap_ig(found: dict, tmp_path: Path) -> None:
    for name, words in (
        ("shapes", "this network has 'L0.conv.c0'"),
        ("counter", "'L0.rnn.u0'"),
        ("placed", "positions"),
    ):
        with pytest.raises(InputError, match=words):
            cw.save_circuit(found[name][0], tmp_path / "c.json", "eap-ig")
    edge = {"score": float("nan"), "in_graph": True}  # a score that was never set is written as NaN
    good = {"cfg": {"n_layers": 1, "n_heads": 1}, "nodes": {"m0": {"in_graph": True, "score": float("nan")}}}
    read = eap_ig.imported(json.dumps(good | {"edges": {"input->a0.h0<q>": edge}}).encode())
    assert read["edges"][0]["edge"] == "input -> L0.attn.h0.q" and read["edges"][0]["score"] is None
    for name in (
        "m0->a0.h0<q>",
        "a0.h0->a0.h0<k>",
        "logits->m0",
        "a0.h1->m0",
        "m1->logits",
        "input->a0.h0",
        "input->m0<q>",
    ):
        with pytest.raises(FormatError, match="cannot have an edge"):
            eap_ig.imported(json.dumps(good | {"edges": {name: edge}}).encode())
    partial = {"nodes": {"m0": {"in_graph": True, "neurons": [True, False]}}, "edges": {}}
    with pytest.raises(FormatError, match="single neurons of 'm0'"):
        eap_ig.imported(json.dumps(good | partial).encode())


# ---- circuit-tracer and Neuronpedia


@given(st.integers(0, 200), st.integers(0, 2**40))
def test_pairing(layer: int, index: int) -> None:
    assert unpaired(paired(layer, index)) == (layer, index)


def crafted(numbers: dict[tuple[str, int], int], **metadata: object) -> bytes:
    """A graph with these (layer, index) features and an error, an embedding and an output, with unknown fields."""
    nodes = [
        {"node_id": f"{layer}_{index}_1", "feature": number, "layer": layer, "ctx_idx": 1, "clerp": "",
         "feature_type": "cross layer transcoder", "jsNodeId": "x", "influence": 0.5, "extra": [1]}
        for (layer, index), number in numbers.items()
    ]  # fmt: skip
    rest = {"ctx_idx": 0, "jsNodeId": "y", "clerp": "", "token_prob": 0.0}
    nodes.append({"node_id": "E_7_0", "feature": 0, "layer": "E", "feature_type": "embedding", **rest})
    nodes.append({"node_id": "0_-1_0", "feature": -1, "layer": "0", "feature_type": "mlp reconstruction error", **rest})
    links = [{"source": "E_7_0", "target": nodes[0]["node_id"], "weight": -1.5}]
    about = {"slug": "s", "scan": "m", "prompt_tokens": ["a", "b"], "prompt": "a b", **metadata}
    return json.dumps({"metadata": about, "qParams": {"own": 1}, "nodes": nodes, "links": links, "more": {}}).encode()


FEATURES = [("0", 437), ("3", 12), ("25", 9974)]
# circuit-tracer pairs (layer, index); older Gemma files have five digits for the index; older Qwen ones the bare index
NUMBERINGS = {
    "cantor": ({key: paired(int(key[0]), key[1]) for key in FEATURES}, {"schema_version": 1}),
    "digits": ({key: int(f"{key[0]}{key[1]:05d}") for key in FEATURES}, {}),
    "index": ({key: key[1] for key in FEATURES}, {"schema_version": None}),
}


@pytest.mark.parametrize("numbering", NUMBERINGS)
def test_features_are_decoded_and_files_kept(numbering: str, tmp_path: Path) -> None:
    numbers, metadata = NUMBERINGS[numbering]
    text = crafted(numbers, **metadata)
    graph = attribution_graph(text)
    assert graph.numbering == numbering and graph.tokens == ("a", "b") and graph.prompt == "a b"
    assert [(node.layer, node.index) for node in graph.nodes[:3]] == FEATURES
    assert [node.index for node in graph.nodes[3:]] == [None, None]
    assert graph.links == (("E_7_0", "0_437_1", -1.5),)
    assert json.loads(graph.save(tmp_path / "g.json").read_text()) == json.loads(text)


def test_a_published_number() -> None:
    assert unpaired(6786882270) == (0, 116505) and unpaired(11971382709) == (35, 154698)


def test_links_to_nothing_are_refused() -> None:
    with pytest.raises(FormatError, match="a link ends at the node 'E_7_0'"):
        attribution_graph(crafted(NUMBERINGS["cantor"][0]).replace(b'"node_id": "E_7_0"', b'"node_id": "E_8_0"'))


@pytest.mark.parametrize("name", KINDS)
def test_circuits_are_attribution_graphs(name: str, found: dict, tmp_path: Path) -> None:
    circuit = found[name][0]
    graph = cw.read_attribution_graph(cw.save_circuit(circuit, tmp_path / "g.json", "neuronpedia"))
    required = {"node_id", "feature", "layer", "ctx_idx", "feature_type", "jsNodeId", "clerp"}
    assert all(required <= set(node) for node in graph.data["nodes"])
    ids = [node.id for node in graph.nodes]
    assert len(ids) == len(set(ids)) and all(node.position < len(graph.tokens) for node in graph.nodes)
    assert {node.label for node in graph.nodes if node.kind != "logit"} == set(circuit.nodes)
    effects = [row["exact"] if row["exact"] is not None else row["score"] for row in circuit.table()]
    assert sum(weight for _, _, weight in graph.links) == pytest.approx(sum(effects), rel=1e-4)
    assert graph.numbering == "cantor" and max(int(node.layer) for node in graph.nodes if node.layer != "E") >= 1
    (out,) = {node.label for node in graph.nodes if node.kind == "logit"}
    assert float(out.split("(p=")[1].split(")")[0]) == 1, "Neuronpedia's page reads the probability from the label"
    shares = [node.influence for node in graph.nodes if node.influence is not None]
    assert max(shares) == pytest.approx(1) and all(
        node.activation is None or node.activation >= 0 for node in graph.nodes
    )
