"""A long run in bounded memory: what is alive at a few moments is kept, and everything can be made again from it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import cutaway as cw
from zoo import ZOO, case


class Long(nn.Module):
    """A recurrent cell for many steps; `fused` as one call of torch, else a loop."""

    def __init__(self, steps: int, fused: bool) -> None:
        super().__init__()
        self.steps, self.fused = steps, fused
        self.cell = nn.LSTM(8, 16, batch_first=True) if fused else nn.GRUCell(8, 16)
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            return self.out(self.cell(x)[0][:, -1])
        state = x.new_zeros(len(x), 16)
        for step in range(self.steps):
            state = self.cell(x[:, step], state)
        return self.out(state)


def held(trace: cw.Trace) -> int:
    """Bytes of kept values, each storage once, views of the inputs left out."""
    given = {trace.tape.leaves[value].untyped_storage().data_ptr() for value in trace.graph.inputs}
    storages = [tensor.untyped_storage() for tensor in trace.tape.kept.values()]
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
    return sum(size for place, size in sizes.items() if place not in given)


def test_memory_does_not_grow_with_the_number_of_steps() -> None:
    state, sizes = 4 * 16 * 4, {}
    for steps in (100, 1000):
        net = cw.open(Long(steps, fused=False))
        x = torch.randn(4, steps, 8)
        whole, sparse = net.record(x), net.record(x, keep="checkpoints")
        sizes[steps] = held(sparse)
        assert torch.equal(sparse.logits, whole.logits)
        assert held(whole) >= steps * state
    alive = 3 * state  # the cell's state, the one before it, and the output
    assert sizes[1000] <= 16 * alive


@pytest.mark.parametrize("fused", [False, True])
def test_every_step_can_be_read_and_edited(fused: bool) -> None:
    torch.manual_seed(0)
    net = cw.open(Long(160, fused))
    x = torch.randn(2, 160, 8)
    whole, sparse = net.record(x), net.record(x, keep="checkpoints")
    for step in (0, 7, 90, 159):
        site = f"L0.rnn@{step}.out" if step else "L0.rnn.out"
        torch.testing.assert_close(sparse[site], whole[site], rtol=0, atol=1e-6)
        edit = cw.zero(f"{site}[1=3]")
        torch.testing.assert_close(sparse.replay(edit).logits, whole.replay(edit).logits, rtol=0, atol=1e-6)
    inside = [len(trace.lift().tape.kept) for trace in (whole, sparse)]
    assert inside[1] < inside[0] / 4


@pytest.mark.parametrize("name", ZOO)
def test_checkpoints_give_the_same_values(name: str) -> None:
    found = case(name)
    torch.manual_seed(3)
    args, kwargs = found.inputs()
    sparse = found.net.record(*args, keep="checkpoints", **kwargs)
    graph = found.trace.graph
    blank = graph.cone({value for op in graph.ops if "empty" in op.name for value in op.outputs})
    values = [value for value in found.trace.tape.kept if value not in blank]
    for value in values[:: max(len(values) // 6, 1)]:
        site = graph.site(value)
        assert torch.equal(torch.nan_to_num(sparse[site]), torch.nan_to_num(found.trace[site])), site
