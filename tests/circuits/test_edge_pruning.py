"""Soft circuits, learned masks and learned constants."""

import pytest
import torch
from networks import BEHAVING, gpt2_runs, linear_convolutions, organism_runs

import cutaway as cw
from cutaway.attribution.edges import EdgeGraph
from cutaway.attribution.mixture import ends, evaluate
from cutaway.circuits.soft import diagonal, soft_run
from cutaway.errors import InputError, MetricError
from cutaway.lift import Slots


@pytest.mark.parametrize("name", BEHAVING)
def test_gates_of_zero_and_one_are_the_exact_evaluation(name: str) -> None:
    clean, corrupted, metric, _ = organism_runs(name, n=4)
    graph = EdgeGraph(clean, corrupted)
    mask = torch.rand(graph.shape(), generator=torch.Generator().manual_seed(0)) < 0.6
    with torch.no_grad():
        found = metric(soft_run(graph, mask.float()), graph.net)
    torch.testing.assert_close(found, evaluate(graph, metric, mask[None])[0], rtol=1e-4, atol=1e-4)


def test_gates_by_position_are_the_exact_evaluation() -> None:
    clean, corrupted, _ = gpt2_runs()
    graph = EdgeGraph(clean, corrupted, positions=True)
    metric = cw.logit_difference(3, 4)
    mask = torch.rand(graph.shape(), generator=torch.Generator().manual_seed(0)) < 0.6
    found = metric(soft_run(graph, mask.float()), graph.net).detach()
    torch.testing.assert_close(found, evaluate(graph, metric, mask[None])[0], rtol=1e-4, atol=1e-5)


def test_on_a_linear_network_a_gate_s_gradient_is_its_edge_s_effect() -> None:
    net = cw.open(linear_convolutions())
    generator = torch.Generator().manual_seed(1)
    runs = [net.record(torch.randn(2, 2, 8, 8, generator=generator)) for _ in range(2)]
    graph, metric = EdgeGraph(*runs), cw.custom(lambda output: output[:, 0])
    gates = torch.ones(graph.shape(), requires_grad=True)
    (slope,) = torch.autograd.grad(metric(soft_run(graph, gates), graph.net).mean(), [gates])
    masks = torch.ones(len(graph.edges), *graph.shape(), dtype=torch.bool)
    for mask, (row, column) in zip(masks, graph.edges, strict=True):
        mask[row, column] = False
    lost = ends(graph, metric)[0].mean() - evaluate(graph, metric, masks).mean(1)
    torch.testing.assert_close(
        torch.stack([slope[row, column, 0] for row, column in graph.edges]), lost, atol=1e-5, rtol=1e-3
    )


@pytest.mark.parametrize(("slots", "shape"), [(Slots(1, 3), (2, 6, 4)), (Slots(0, 3, tiled=True), (6, 4))])
def test_each_slot_is_taken_from_its_own_row(slots: Slots, shape: tuple[int, ...]) -> None:
    rows = torch.arange(3.0).view(3, *[1] * len(shape)).expand(3, *shape)
    found = diagonal(rows, slots)
    assert found.shape == shape
    along = found.movedim(slots.axis, 0).flatten(1)[:, 0]
    wanted = torch.arange(3.0).repeat(2) if slots.tiled else torch.arange(3.0).repeat_interleave(2)
    assert torch.equal(along, wanted)


def test_learned_constants_do_less_harm_than_the_mean_or_zero() -> None:
    clean, corrupted, metric, _ = organism_runs("shapes", n=8)
    circuit = cw.find_circuit(clean, corrupted, metric)
    constants = cw.optimal_baseline(circuit.graph, metric, circuit.mask, steps=25)
    harm = {}
    for baseline in ("zero", "mean", constants):
        graph = EdgeGraph(clean, corrupted, baseline=baseline)
        apart = evaluate(graph, metric, circuit.mask[None])[0] - metric(clean.logits, clean.net)
        harm[graph.baseline["kind"]] = float(apart.detach().square().mean())
    assert harm["optimal"] < 0.5 * min(harm["zero"], harm["mean"])


def test_constants_learned_with_the_mask_stand_in_the_circuit_s_graph() -> None:
    clean, corrupted, metric, _ = organism_runs("shapes", n=8)
    found = cw.find_circuit(clean, corrupted, metric, search="edge-pruning", optimal=True, steps=10, size=30)
    assert found.settings["baseline"]["kind"] == "optimal" and found.graph.baseline["kind"] == "optimal"
    assert 0 < len(found) <= 30
    value = float(evaluate(found.graph, metric, found.mask[None]).mean())
    assert found.faithfulness == pytest.approx((value - found.settings["corrupted"]) / found.settings["gap"], abs=1e-4)


def test_seeds_decide_alone() -> None:
    clean, corrupted, metric, _ = organism_runs("induction", n=8)
    torch.manual_seed(5)
    first = cw.find_circuit(clean, corrupted, metric, search="edge-pruning", steps=10)
    state = torch.get_rng_state()
    again = cw.find_circuit(clean, corrupted, metric, search="edge-pruning", steps=10)
    assert torch.equal(first.scores.edges, again.scores.edges)
    assert torch.equal(state, torch.get_rng_state())


def test_bad_questions_get_one_sentence() -> None:
    clean, corrupted, metric, _ = organism_runs("induction", n=4)
    graph = EdgeGraph(clean, corrupted)
    with pytest.raises(InputError, match="mask of shape"):
        cw.optimal_baseline(graph, metric, torch.ones(2, 2, 1))
    with pytest.raises(MetricError, match="cuts the gradient off"):
        cw.find_circuit(
            clean, corrupted, lambda output: metric(output, clean.net).detach(), search="edge-pruning", steps=2
        )
