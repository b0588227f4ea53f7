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
