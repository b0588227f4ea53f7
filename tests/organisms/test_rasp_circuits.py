"""The circuit of a compiled program is exactly the circuit of its network, by exact evaluation of edge masks."""

from __future__ import annotations

import pytest
import torch

import cutaway as cw
from cutaway import organisms
from cutaway.attribution.edges import EdgeGraph
from cutaway.attribution.metric import output_distance
from cutaway.attribution.mixture import ends, evaluate
from cutaway.claims.statistics import auroc
from cutaway.organisms.rasp import PROGRAMS
from cutaway.organisms.rasp.circuit import LayerWeights, circuit_of

QUICK = (
    "reverse", "shift-2", "successor", "histogram", "first-place", "sort", "maximum", "running-maximum", "length",
    "balance", "parity", "proportion", "frac-prevs", "majority", "same-as-before", "contains-ab",
)  # fmt: skip
CROWDED = ("reverse+histogram+proportion", "sort+maximum+is-sorted")
NAMES = [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in (*PROGRAMS, *CROWDED)]
every = pytest.mark.parametrize("name", NAMES)
both = pytest.mark.parametrize("baseline", ["zero", "counterfactual"])
# Of a length the tokens say nothing, so other tokens in their place show nothing.
SILENT = ("length", "counterfactual")
NOTHING = 1e-9  # a squared distance; one wrong answer at one place is 1e-2 and more


def graph_of(name: str, baseline: str, pairs: int = 16) -> tuple[organisms.Organism, EdgeGraph, cw.Metric]:
    organism, net = organisms.load(f"rasp:{name}"), cw.open(f"rasp:{name}")
    drawn = organism.pairs(pairs, seed=0)
    clean = net.record(drawn.clean)
    return organism, EdgeGraph(clean, net.record(drawn.corrupted), baseline=baseline), output_distance(clean)


def mask_of(graph: EdgeGraph, edges: tuple[str, ...]) -> torch.Tensor:
    mask = torch.zeros(graph.shape(), dtype=torch.bool)
    for edge in edges:
        writer, reader = edge.split(" -> ")
        mask[graph.readers.index(reader), graph.writers.index(writer)] = True
    return mask


def losses(graph: EdgeGraph, metric: cw.Metric) -> dict[str, float]:
    """What the worst example loses when each edge alone is ablated."""
    masks = torch.ones(len(graph.edges), *graph.shape(), dtype=torch.bool)
    for mask, (row, column) in zip(masks, graph.edges, strict=True):
        mask[row, column] = False
    found = -evaluate(graph, metric, masks)
    return {graph.edge_name(*edge): float(loss.max()) for edge, loss in zip(graph.edges, found, strict=True)}


@every
@both
def test_the_truth_is_the_circuit_and_nothing_else_is(name: str, baseline: str) -> None:
    """The truth alone gives the whole output, the rest none of it, and an edge matters if and only if it is true."""
    organism, graph, metric = graph_of(name, baseline)
    circuit = mask_of(graph, organism.truth.edges)  # every edge of the truth is one of the graph
    alone, without = evaluate(graph, metric, torch.stack([circuit, ~circuit]))
    worst = ends(graph, metric)[1]
    assert float(alone.abs().max()) <= NOTHING
    torch.testing.assert_close(without, worst, rtol=1e-4, atol=1e-6)
    found = losses(graph, metric)
    known, unseen = set(organism.truth.edges), set(organism.truth.unseen)
    if baseline == "zero":
        assert known <= set(found)
    else:  # what is not in the graph carries the same in both runs, and that is known beforehand
        assert known - set(found) <= unseen
        known -= unseen
    assert {edge for edge, loss in found.items() if loss > NOTHING} == known
    if (name, baseline) != SILENT:
        assert float(worst.mean()) < -1e-3
        assert auroc(list(found.values()), [edge in known for edge in found]) == 1.0


@pytest.mark.parametrize("name", ["sort", "sort+maximum+is-sorted"])
def test_what_other_inputs_cannot_show_is_known(name: str) -> None:
    """The unseen edges are those of the truth whose ablation by another input's values changes nothing."""
    organism, graph, metric = graph_of(name, "counterfactual")
    found = losses(graph, metric)
    silent = {edge for edge in organism.truth.edges if found.get(edge, 0.0) <= NOTHING}
    assert silent == set(organism.truth.unseen)


@pytest.mark.parametrize("name", ["sort", "same-as-before"])
def test_a_search_finds_the_truth_and_is_told_so(name: str) -> None:
    organism, net = organisms.load(f"rasp:{name}"), cw.open(f"rasp:{name}")
    drawn = organism.pairs(16, seed=0)
    clean, corrupted = net.record(drawn.clean), net.record(drawn.corrupted)
    circuit = cw.find_circuit(clean, corrupted, output_distance(clean))
    claim = cw.verify(circuit, truth=organism.truth.edges, unseen=organism.truth.unseen, random=20)
    assert set(circuit.edges) == set(organism.truth.edges) - set(organism.truth.unseen)
    assert claim.details["truth"]["auroc"] == 1.0


def test_the_rule_on_weights_written_by_hand() -> None:
    """One layer in which h0 copies direction 0 to 2 where its query says so, h1 writes 3, which only a neuron that
    nobody reads needs, and the output reads 2."""
    zero = torch.zeros(2, 1, 4)
    query, key, value, out = zero.clone(), zero.clone(), zero.clone(), torch.zeros(2, 4, 1)
    query[0, 0, 1] = key[0, 0, 0] = value[0, 0, 0] = out[0, 2, 0] = 1
    value[1, 0, 0] = out[1, 3, 0] = 1
    up, down = torch.zeros(1, 4), torch.zeros(4, 1)
    up[0, 3] = down[3, 0] = 1
    layer = LayerWeights(query, torch.zeros(2, 1), key, value, out, up, down)
    tokens, places = torch.tensor([[0.0, 0, 0, 0], [1, 0, 0, 0], [2, 0, 0, 0]]), torch.tensor([[0.0, 1, 0, 0]])
    found = circuit_of(tokens, places, [layer], torch.tensor([[0.0, 0, 1, 0]]), begin=0)
    assert set(found.edges) == {
        "pos_embed -> L0.attn.h0.q", "embed -> L0.attn.h0.k", "embed -> L0.attn.h0.v", "L0.attn.h0 -> logits"
    }  # fmt: skip
    assert found.unseen == ("pos_embed -> L0.attn.h0.q",)
    key.zero_()
    assert set(circuit_of(tokens, places, [layer], torch.tensor([[0.0, 0, 1, 0]]), begin=0).edges) == {
        "embed -> L0.attn.h0.v", "L0.attn.h0 -> logits"
    }  # fmt: skip
