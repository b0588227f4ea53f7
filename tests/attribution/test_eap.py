"""EAP and EAP-IG: exact where the network is linear, complete as integrated gradients, in order with brute force."""

import pytest
import torch
from networks import BEHAVING, gpt2_runs, linear_convolutions, organism_runs

import cutaway as cw
from cutaway.attribution.eap import eap_ig
from cutaway.attribution.edges import EdgeGraph
from cutaway.attribution.mixture import evaluate
from cutaway.errors import InputError, MetricError


def exact_effects(graph: EdgeGraph, metric: cw.Metric) -> torch.Tensor:
    """What the metric loses when each edge alone is corrupted, in the order of `graph.edges`."""
    masks = torch.ones(1, *graph.shape(), dtype=torch.bool).repeat(len(graph.edges) + 1, 1, 1, 1)
    for mask, (row, column) in zip(masks[1:], graph.edges, strict=True):
        mask[row, column] = False
    found = evaluate(graph, metric, masks).mean(1)
    return found[0] - found[1:]


def by_edge(graph: EdgeGraph, scores: torch.Tensor) -> torch.Tensor:
    return torch.stack([scores[row, column].sum() for row, column in graph.edges])


@pytest.mark.parametrize("steps", [1, 3])
def test_scores_are_exact_on_a_linear_network(steps: int) -> None:
    net = cw.open(linear_convolutions())
    torch.manual_seed(1)
    graph = EdgeGraph(net.record(torch.randn(5, 2, 8, 8)), net.record(torch.randn(5, 2, 8, 8)))
    metric = cw.logit_difference(0, 2)
    scores = by_edge(graph, eap_ig(graph, metric, steps=steps).edges)
    assert len(graph.edges) > 6
    torch.testing.assert_close(scores, exact_effects(graph, metric), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BEHAVING)
def test_scores_of_the_sources_add_up_to_the_behaviour(name: str) -> None:
    """Integrated gradients are complete (Sundararajan et al. 2017): over sources they sum to the whole difference."""
    clean, corrupted, metric, _ = organism_runs(name, n=4)
    graph = EdgeGraph(clean, corrupted)
    scores = eap_ig(graph, metric, steps=40)
    sources = [column for block in graph.lifted.sources for column in graph.columns[block.write].tolist()]
    whole = (metric(clean.logits, clean.net) - metric(corrupted.logits, clean.net)).mean()
    assert float(scores.nodes[sources].sum()) == pytest.approx(float(whole), rel=0.05)


@pytest.mark.parametrize("name", BEHAVING)
def test_scores_follow_brute_force_in_sign_and_order(name: str) -> None:
    clean, corrupted, metric, _ = organism_runs(name, n=32)
    graph = EdgeGraph(clean, corrupted)
    scores, exact = by_edge(graph, eap_ig(graph, metric, steps=5).edges), exact_effects(graph, metric)
    assert float(torch.corrcoef(torch.stack([scores, exact]))[0, 1]) > 0.75
    strong = exact.abs() > 0.2 * exact.abs().max()
    assert bool((scores[strong].sign() == exact[strong].sign()).all())


def test_a_node_scores_the_sum_of_its_edges_where_it_is_read_once() -> None:
    clean, corrupted, _ = gpt2_runs()
    graph = EdgeGraph(clean, corrupted)
    scores = eap_ig(graph, cw.logit_difference(3, 4), steps=1)
    torch.testing.assert_close(scores.edges.sum(0), scores.nodes, rtol=1e-3, atol=1e-6)


def test_scores_by_position_add_up_to_scores_without() -> None:
    clean, corrupted, _ = gpt2_runs()
    metric = cw.logit_difference(3, 4)
    whole = eap_ig(EdgeGraph(clean, corrupted), metric, steps=2)
    parts = eap_ig(EdgeGraph(clean, corrupted, positions=True), metric, steps=2)
    assert parts.edges.shape[2] == 7
    torch.testing.assert_close(parts.edges.sum(2, keepdim=True), whole.edges, rtol=1e-4, atol=1e-6)


def test_neurons_can_be_nodes() -> None:
    clean, corrupted, _ = gpt2_runs()
    metric = cw.logit_difference(3, 4)
    whole = eap_ig(EdgeGraph(clean, corrupted), metric, steps=1)
    graph = EdgeGraph(clean, corrupted, neurons=True)
    single = eap_ig(graph, metric, steps=1)
    column = whole_column(EdgeGraph(clean, corrupted), "L0.mlp")
    neurons = [place for place, name in enumerate(graph.writers) if name.startswith("L0.mlp.n")]
    assert len(neurons) == 128
    assert float(single.nodes[neurons].sum()) == pytest.approx(float(whole.nodes[column].sum()), rel=1e-3)


def whole_column(graph: EdgeGraph, name: str) -> int:
    return graph.writers.index(name)


def test_runs_that_cannot_be_compared_are_refused() -> None:
    clean, corrupted, module = gpt2_runs()
    with pytest.raises(InputError, match="differs between"):
        EdgeGraph(clean, clean)
    shorter = clean.net.record(clean.args[0][:, :5])
    with pytest.raises(InputError, match="same number of tokens"):
        EdgeGraph(clean, shorter)
    with pytest.raises(InputError, match="different networks"):
        EdgeGraph(clean, cw.open(module).record(corrupted.args[0]))


def test_a_metric_that_depends_on_nothing_is_refused() -> None:
    clean, corrupted, _ = gpt2_runs()
    constant = cw.custom(lambda logits: logits[:, 0, 0] * 0.0, name="nothing")
    with pytest.raises(MetricError, match="does not depend"):
        eap_ig(EdgeGraph(clean, corrupted), constant)


@pytest.mark.parametrize("name", ["induction", "shapes", "counter"])
@pytest.mark.parametrize("positions", [False, True])
def test_magnitudes_are_those_of_examples_scored_one_by_one(name: str, positions: bool) -> None:
    if positions and name != "induction":
        pytest.skip("values without a common position axis")
    clean, corrupted, metric, organism = organism_runs(name, n=3)
    graph = EdgeGraph(clean, corrupted, positions=positions)
    together = eap_ig(graph, metric, steps=2, magnitudes=True)
    signed = eap_ig(graph, metric, steps=2)
    assert bool((together.edges >= 0.9999 * signed.edges.abs()).all())
    pairs, total = organism.pairs(3, seed=1), torch.zeros(graph.shape())
    for row in range(3):
        here = slice(row, row + 1)
        one = [clean.net.record(side[here]) for side in (clean.args[0], corrupted.args[0])]
        alone = cw.logit_difference(pairs.correct[here], pairs.wrong[here], position=metric.position or -1)
        own = EdgeGraph(*one, positions=positions)
        scores = eap_ig(own, alone, steps=2)
        total += scores.edges.abs() / 3
    torch.testing.assert_close(together.edges, total, rtol=1e-3, atol=1e-5)
