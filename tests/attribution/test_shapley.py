"""Shapley values: their definition over all orders, their axioms, and the errors of sampling."""

from itertools import permutations

import pytest
import torch
from networks import gpt2_runs, organism_runs
from torch import nn

import cutaway as cw
from cutaway.attribution.exact import masks_of, units
from cutaway.attribution.mixture import ends, evaluate
from cutaway.errors import InputError, ResourceError

METRIC = cw.logit_difference(3, 4)


@pytest.mark.parametrize("level", ["edge", "node"])
def test_few_players_get_the_mean_over_all_orders(level: str) -> None:
    clean, corrupted, _ = gpt2_runs()
    graph = cw.EdgeGraph(clean, corrupted)
    players = units(graph, level)[1::3][:4]
    scores = cw.score(graph, METRIC, method=f"shapley-{level}", only=players)
    orders = list(permutations(range(4)))
    kept = torch.zeros(len(orders), 5, 4, dtype=torch.bool)
    for row, order in zip(kept, orders, strict=True):
        for size in range(5):
            row[size, list(order[:size])] = True
    distinct, index = torch.unique(kept.flatten(0, 1), dim=0, return_inverse=True)
    worth = evaluate(graph, METRIC, masks_of(graph, level, players, distinct)).mean(1)[index].view(len(orders), 5)
    want = torch.zeros(4)
    for order, row in zip(orders, worth, strict=True):
        want[list(order)] += row.diff() / len(orders)
    found = scores.of(level)[tuple(torch.tensor(players).T)]
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-6)
    assert scores.passes == 16 and set(scores.facts["standard_errors"].values()) == {0.0}


@pytest.mark.parametrize("baseline", ["counterfactual", "zero"])
def test_sampled_values_add_up_to_what_is_lost_when_all_is_ablated(baseline: str) -> None:
    clean, corrupted, metric, _ = organism_runs("induction", n=4)
    graph = cw.EdgeGraph(clean, corrupted, baseline=baseline)
    scores = cw.score(graph, metric, method="shapley-node", samples=2)
    good, bad = ends(graph, metric)
    assert float(scores.nodes.sum()) == pytest.approx(float((good - bad).mean()), rel=1e-4)
    assert scores.facts["samples"] == 2


def test_sampled_values_come_close_within_their_errors_and_follow_the_seed() -> None:
    clean, corrupted, _ = gpt2_runs()
    graph = cw.EdgeGraph(clean, corrupted)
    players = units(graph, "node")[:6]
    every = cw.score(graph, METRIC, method="shapley-node", only=players, samples=20)
    assert every.passes == 2**6
    some = cw.score(graph, METRIC, method="shapley-node", only=players, samples=12)
    again, other = (
        cw.score(graph, METRIC, method="shapley-node", only=players, samples=12, seed=seed) for seed in (0, 1)
    )
    assert torch.equal(some.nodes, again.nodes) and not torch.equal(some.nodes, other.nodes)
    errors = some.facts["standard_errors"]
    for unit in players:
        assert abs(float(some.nodes[unit] - every.nodes[unit])) <= 5 * errors[graph.writers[unit[0]]] + 1e-6


class Both(nn.Module):
    """Two of three hidden units are read by a third layer that gives 1 when both are 1."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 3), nn.Linear(3, 1), nn.Linear(1, 2)
        with torch.no_grad():
            for layer in (self.first, self.second, self.last):
                layer.bias.zero_()
            self.first.weight.copy_(torch.eye(3))
            self.second.weight.copy_(torch.tensor([[1.0, 1.0, 0.0]]))
            self.second.bias.fill_(-1.0)
            self.last.weight.copy_(torch.tensor([[1.0], [0.0]]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.second(torch.relu(self.first(x)))))


def test_alike_players_share_and_a_null_player_gets_nothing() -> None:
    """Neither is worth anything alone and both together 1, so each is worth a half."""
    net = cw.open(Both().eval())
    graph = cw.EdgeGraph(net.record(torch.ones(2, 3)), net.record(torch.zeros(2, 3)), neurons=True)
    players = [f"L0.mlp.n{number}" for number in range(3)]
    scores = cw.score(graph, cw.logit_difference(0, 1), method="shapley-node", only=players)
    values = [float(scores.nodes[graph.writers.index(name)]) for name in players]
    assert values == pytest.approx([0.5, 0.5, 0.0], abs=1e-6)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"samples": 3}, InputError, "an even number of samples, 2 or more, and it is 3"),
        ({"samples": 0}, InputError, "samples is a whole number of at least 2"),
        ({"samples": 100, "limit": 50}, ResourceError, "100 samples and the limit is 50"),
        ({"only": ["nothing"]}, InputError, "no node 'nothing'"),
    ],
)
def test_what_makes_no_sense_or_costs_too_much_is_refused(options: dict, error: type, message: str) -> None:
    clean, corrupted, _ = gpt2_runs()
    with pytest.raises(error, match=message):
        cw.score(cw.EdgeGraph(clean, corrupted), METRIC, method="shapley-node", **options)
