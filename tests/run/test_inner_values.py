"""Odd forwards: gradients taken inside them, and outputs that are neither tensors nor lists of them."""

from __future__ import annotations

import learning_modules as g
import pytest
import torch
from torch import Tensor, nn

import cutaway as cw
from cutaway.errors import ModelError
from zoo import error


def test_a_gradient_inside_a_forward_that_an_edit_cuts_is_said_so() -> None:
    class Slope(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.field = nn.Linear(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = x.detach().requires_grad_()
            return torch.autograd.grad(self.field(x).square().sum(), x, create_graph=True)[0]

    trace = cw.open(Slope()).record(torch.randn(3, 2))
    doubled = trace.replay(cw.scale("field", 2.0))
    assert error(doubled.logits, 4 * trace.logits) <= 1e-6
    with pytest.raises(ModelError, match="gradient inside its forward"):
        trace.replay(cw.zero("field"))


def test_an_edit_between_a_place_and_its_gradient_acts_as_a_hook_does() -> None:
    torch.manual_seed(0)
    module, x = g.Physics(), torch.randn(3, 2)
    trace = cw.open(module).record(x)
    for path in ("coarse.0", "coarse.1", "fine", "fine.1"):
        handle = module.get_submodule(path).register_forward_hook(lambda module, args, out: out * 0.5 + out**2)
        want = module(x)[0]
        handle.remove()
        replayed = trace.replay(cw.apply(path, lambda out: out * 0.5 + out**2))
        assert error(replayed.logits, want) <= 1e-6, path
    with torch.no_grad():
        assert error(trace.replay(cw.scale("fine", 1.0)).logits, trace.logits) == 0
    lean = cw.open(module).record(x, keep="none")
    assert error(lean["coarse.1"], trace["coarse.1"]) == 0
    assert error(lean["/grad.0"], trace["/grad.0"]) == 0


def test_a_distribution_that_is_returned_is_made_again_with_edits() -> None:
    torch.manual_seed(0)
    module, x = g.ActorCritic(distribution=True), torch.randn(3, 6)
    trace = cw.open(module).record(x)
    value, before = trace.output
    assert torch.equal(trace.logits, value)
    halved = trace.replay(cw.scale("actor.1", 0.5)).output[1]
    handle = module.actor[1].register_forward_hook(lambda module, args, out: out * 0.5)
    want = module(x)[1]
    handle.remove()
    assert isinstance(halved, torch.distributions.Categorical)
    assert error(halved.logits, want.logits) <= 1e-6
    assert error(halved.entropy(), want.entropy()) <= 1e-6
    assert not torch.equal(before.logits, halved.logits)
