"""Self-repair: a network built to make up for a unit, and one that cannot."""

import pytest
import torch
from networks import gpt2_runs, linear_convolutions
from torch import nn

import cutaway as cw
from cutaway.attribution.mixture import evaluate
from cutaway.errors import InputError


class Backup(nn.Module):
    """out = a + 0.8 · relu(1 - a) with a = relu(x): when a goes, most of it comes back by the other way."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = (nn.Linear(1, 1) for _ in range(3))
        with torch.no_grad():
            for layer, weight, bias in ((self.first, 1.0, 0.0), (self.second, -1.0, 1.0), (self.last, 0.8, 0.0)):
                layer.weight.fill_(weight)
                layer.bias.fill_(bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = torch.relu(self.first(x))
        return a + self.last(torch.relu(self.second(a)))


def test_what_a_backup_makes_up_for_by_hand() -> None:
    net = cw.open(Backup().eval())
    graph = cw.EdgeGraph(net.record(torch.ones(3, 1)), net.record(torch.zeros(3, 1)))
    rows = cw.self_repair(graph, cw.custom(lambda output: output[:, 0]))
    hidden = rows[0]
    assert (hidden.direct, hidden.total, hidden.repaired) == pytest.approx((1.0, 0.2, 0.8), abs=1e-6)
    assert hidden.share == pytest.approx(0.8) and hidden.error == pytest.approx(0.0, abs=1e-6)
    backup = next(row for row in rows if row.node != hidden.node)
    assert (backup.direct, backup.total) == pytest.approx((-0.8, -0.8), abs=1e-6)
    assert backup.repaired == pytest.approx(0.0, abs=1e-6)


def test_the_last_node_of_a_network_is_never_repaired() -> None:
    """What has no way but the straight one: total and direct effect are the same."""
    net = cw.open(linear_convolutions())
    torch.manual_seed(1)
    graph = cw.EdgeGraph(net.record(torch.randn(5, 2, 8, 8)), net.record(torch.randn(5, 2, 8, 8)))
    for row in cw.self_repair(graph, cw.logit_difference(0, 2)):
        assert row.repaired == pytest.approx(0.0, abs=1e-5)


def test_direct_and_total_effects_are_those_of_masks() -> None:
    clean, corrupted, _ = gpt2_runs()
    graph, metric = cw.EdgeGraph(clean, corrupted), cw.logit_difference(3, 4)
    (row,) = cw.self_repair(graph, metric, ["L0.attn.h1"])
    masks = torch.ones(3, *graph.shape(), dtype=torch.bool)
    column = graph.writers.index("L0.attn.h1")
    masks[1, graph.readers.index("logits"), column] = False
    masks[2, :, column] = False
    full, direct, total = evaluate(graph, metric, masks).mean(1).tolist()
    assert (row.direct, row.total) == pytest.approx((full - direct, full - total), abs=1e-6)
    assert row.repaired == pytest.approx(row.direct - row.total, abs=1e-6)


def test_one_name_is_one_node() -> None:
    clean, corrupted, _ = gpt2_runs()
    graph, metric = cw.EdgeGraph(clean, corrupted), cw.logit_difference(3, 4)
    assert cw.self_repair(graph, metric, "L0.attn.h1") == cw.self_repair(graph, metric, ["L0.attn.h1"])


def test_a_node_that_is_not_there_is_refused() -> None:
    clean, corrupted, _ = gpt2_runs()
    with pytest.raises(InputError, match="no node 'L0.attn.h8'"):
        cw.self_repair(cw.EdgeGraph(clean, corrupted), cw.logit_difference(3, 4), ["L0.attn.h8"])
