"""Other circuits for the same behaviour: found where there are several ways, and none where there is one."""

import pytest
import torch
from networks import organism_runs
from torch import nn

import cutaway as cw
from cutaway.circuits.alternatives import overlap
from cutaway.errors import InputError


class TwoWays(nn.Module):
    """The output reads the same feature from either of two units; together they saturate."""

    def __init__(self) -> None:
        super().__init__()
        self.units, self.out = nn.Linear(3, 3), nn.Linear(3, 2)
        with torch.no_grad():
            self.units.weight.copy_(torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 0, 1.0]]))
            self.units.bias.zero_()
            self.out.weight.copy_(torch.tensor([[20.0, 20.0, 0], [0, 0, 1.0]]))
            self.out.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.out(torch.relu(self.units(x))))


def test_each_of_two_ways_is_found_and_no_third() -> None:
    net = cw.open(TwoWays().eval())
    clean = torch.rand(16, 3, generator=torch.Generator().manual_seed(0)) + 0.5
    corrupted = clean * torch.tensor([0.0, 1.0, 1.0])
    runs = net.record(clean), net.record(corrupted)
    circuit = cw.find_circuit(*runs, lambda output: output[:, 0], neurons=True)
    others = cw.alternatives(circuit)
    assert len(others) == 1
    assert not any(".n" in edge and edge in others[0].edges for edge in circuit.edges)
    assert abs(1 - others[0].faithfulness) <= 0.1
    assert others[0].settings["overlap"] == [overlap(others[0], circuit)] and overlap(circuit, others[0]) < 0.5


def test_a_behaviour_with_one_way_has_no_alternative() -> None:
    clean, corrupted, metric, _ = organism_runs("induction", n=12)
    circuit = cw.find_circuit(clean, corrupted, metric)
    assert cw.alternatives(circuit) == []
    assert overlap(circuit, circuit) == 1.0


def test_alternatives_are_faithful_and_differ_from_each_other() -> None:
    clean, corrupted, metric, _ = organism_runs("shapes", n=12)
    circuit = cw.find_circuit(clean, corrupted, metric)
    others = cw.alternatives(circuit, count=2)
    assert others
    for place, other in enumerate(others):
        assert abs(1 - other.faithfulness) <= 0.1
        assert other.settings["overlap"] == [overlap(other, earlier) for earlier in (circuit, *others[:place])]
        assert max(other.settings["overlap"]) <= 0.9


def test_none_cannot_be_asked_for() -> None:
    clean, corrupted, metric, _ = organism_runs("induction", n=4)
    with pytest.raises(InputError, match="At least one"):
        cw.alternatives(cw.find_circuit(clean, corrupted, metric), count=0)
