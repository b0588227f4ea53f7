"""The self-test at opening: it passes on the zoo, and it notices what it is for."""

from __future__ import annotations

import pytest
import torch
from test_untouched import assert_same, snapshot
from torch import nn

import cutaway as cw
from zoo import ZOO, case


@pytest.mark.parametrize("name", ZOO)
def test_the_zoo_is_verified_where_nothing_leaves_torch(name: str) -> None:
    module, args, kwargs = ZOO[name].make()
    net = cw.open(module)
    before = snapshot(module)
    found = cw.check(net, *args, expected=ZOO[name].expected or None, **kwargs)
    assert found.ok is not bool(ZOO[name].problems), str(found)
    assert str(found).startswith("verified" if found.verified else "not verified")
    assert_same(before, snapshot(module))


def test_a_module_is_opened_for_the_check() -> None:
    module, args, _ = ZOO["mlp"].make()
    found = cw.check(module, *args)
    assert found.verified
    assert found.hook_error <= 1e-6 and found.edge_error <= 1e-6
    assert found.found == {name: list(pair) for name, pair in ZOO["mlp"].expected.items()}
    assert found.gradient_error is not None


def test_what_a_recording_cannot_follow_is_not_verified() -> None:
    found = cw.check(case("numpy").net, *case("numpy").args)
    assert not found.verified
    assert "numpy" in str(found)


def test_a_network_that_depends_on_something_outside_is_not_verified() -> None:
    class Drifting(nn.Module):
        calls = 0

        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            Drifting.calls += 1
            return self.a(x) * Drifting.calls

    found = cw.check(Drifting(), torch.randn(2, 3))
    assert not found.verified
    assert found.parity > 0.1


def test_components_other_than_expected_are_named() -> None:
    module, args, _ = ZOO["mlp"].make()
    found = cw.check(module, *args, expected={**ZOO["mlp"].expected, "L0.mlp": (3, 1)})
    assert not found.verified and found.problems == ("L0.mlp: found [10, 1], expected [3, 1]",)


def test_gradients_that_were_not_compared_come_with_the_reason() -> None:
    class Descending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.detach().requires_grad_()
            return x - torch.autograd.grad(self.f(x).sum(), x)[0]

    found = cw.check(Descending(), torch.randn(2, 3))
    assert found.gradient_error is None
    assert any("gradients were not compared, for" in note for note in found.notes)


def test_an_infinite_error_comes_with_a_problem_in_words() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                h = self.a(x)
            return self.b(h)

    found = cw.check(Half(), torch.randn(2, 3))
    assert found.gradient_error == float("inf")
    assert any("the gradient at 'a' is there in a replay but not in the network" in text for text in found.problems)
