"""The batched ACDC makes the decisions of the plain sequential algorithm."""

import pytest
import torch
from networks import gpt2_runs, organism_runs

import cutaway as cw
from cutaway.attribution.edges import EdgeGraph
from cutaway.attribution.mixture import ends, evaluate
from cutaway.circuits.acdc import acdc, removals
from cutaway.circuits.circuit import trimmed
from cutaway.circuits.task import Goal, Task


def plainly(graph: EdgeGraph, metric, tau: float, loss_of) -> torch.Tensor:
    """ACDC as published: one edge after the other, one run each."""
    mask = graph.valid[:, :, None].clone()
    loss = loss_of(evaluate(graph, metric, mask[None])[0])
    for part in reversed(graph.parts):
        for port in part.ports:
            for row in port.rows.tolist():
                for column in reversed(range(len(graph.writers))):
                    if not mask[row, column, 0]:
                        continue
                    fewer = mask.clone()
                    fewer[row, column] = False
                    without = loss_of(evaluate(graph, metric, fewer[None])[0])
                    if without - loss < tau:
                        mask, loss = fewer, without
    return trimmed(graph, mask)


@pytest.mark.parametrize("tau", [0.03, pytest.param(0.3, marks=pytest.mark.slow)])
def test_decisions_are_those_of_the_sequential_algorithm(tau: float) -> None:
    clean, corrupted, _ = gpt2_runs()
    graph, metric = EdgeGraph(clean, corrupted), cw.logit_difference(3, 4)
    good, bad = (float(end.mean()) for end in ends(graph, metric))
    task = Task(graph, metric, "edge", None, Goal(0.1))
    found = acdc(task, tau=tau)
    wanted = plainly(graph, metric, tau, lambda value: abs(1 - (float(value.mean()) - bad) / (good - bad)))
    assert torch.equal(found, wanted)
    assert 0 < int(found.sum()) < int(graph.valid.sum())


def test_divergence_decides_as_the_sequential_algorithm_does() -> None:
    clean, corrupted, metric, _ = organism_runs("induction", n=8)
    graph = EdgeGraph(clean, corrupted)
    found = acdc(Task(graph, metric, "edge", None, Goal(0.1)), tau=0.02, measure="kl")
    wanted = plainly(graph, cw.kl_divergence(clean), 0.02, lambda value: -float(value.mean()))
    assert torch.equal(found, wanted)


def test_every_edge_is_tried_once_and_readers_come_from_the_output_back() -> None:
    clean, corrupted, metric, _ = organism_runs("induction", n=4)
    graph = EdgeGraph(clean, corrupted)
    task = Task(graph, metric, "edge", None, Goal(0.1))
    tried = [unit for group in removals(task) for unit in group]
    assert sorted(tried) == sorted(task.universe) and len(set(tried)) == len(tried)
    assert graph.readers[tried[0][0]] == "logits"


def test_without_tau_the_target_is_reached() -> None:
    clean, corrupted, metric, organism = organism_runs("induction", n=24)
    found = cw.find_circuit(clean, corrupted, metric, search="acdc")
    assert abs(1 - found.faithfulness) <= 0.1
    assert set(found.edges) == set(organism.truth.edges) - set(organism.truth.unseen)
    assert found.settings["tau"] > 0
    sized = cw.find_circuit(clean, corrupted, metric, search="acdc", size=3)
    assert len(sized) <= 3
