"""A processor prepares what `record` is given: raw arrays, or anything of the user's own."""

import torch
from torch import nn

import cutaway as cw


class Scored(nn.Module):
    """Takes a keyword argument, as transformers' vision models do."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(4, 2)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.read(pixel_values)


def test_a_processor_may_give_keyword_arguments() -> None:
    module = Scored()
    net = cw.open(module, processor=lambda rows: {"pixel_values": torch.tensor(rows) / 255})
    trace = net.record([[0, 51, 102, 255]])
    torch.testing.assert_close(trace.logits, module(torch.tensor([[0, 0.2, 0.4, 1.0]])))


def test_a_processor_may_give_a_tensor_and_leaves_tensors_alone() -> None:
    net = cw.open(nn.Linear(3, 2), processor=lambda text: torch.tensor([[float(part) for part in text.split()]]))
    made, given = net.record("1 2 3"), net.record(torch.tensor([[1.0, 2.0, 3.0]]))
    assert torch.equal(made.logits, given.logits)
