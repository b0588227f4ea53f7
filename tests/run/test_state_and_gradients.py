"""Networks that write into a cache they are given, or take `backward` inside their forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cutaway as cw
from zoo import error


class Layer:
    def __init__(self) -> None:
        self.states = {0: torch.zeros(2, 3)}


class Cache:
    def __init__(self) -> None:
        self.layers = [Layer()]


class Remembering(nn.Module):
    """Writes its state in place into a cache, deep inside an object, as networks of Hugging Face do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, given: Tensor, cache: Cache | None = None) -> dict[str, Any]:
        cache = cache or Cache()
        states = cache.layers[0].states
        states[0].copy_(torch.tanh(self.a(given) + states[0]))
        return {"logits": self.b(states[0]), "cache": cache}


class Keeping(Remembering):
    """Its own cache, which it hands out."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = Cache()

    def forward(self, given: Tensor, cache: Cache | None = None) -> dict[str, Any]:
        return super().forward(given, self.cache)


def state(cache: Cache) -> Tensor:
    return cache.layers[0].states[0]


def test_a_cache_that_is_driven_from_outside_goes_on() -> None:
    module, net, given = Remembering(), cw.open(Remembering()), torch.ones(2, 3)
    plain = recorded = None
    for _ in range(4):
        before = None if recorded is None else state(recorded).clone()
        want, trace = module(given, plain), net.record(given, recorded)
        if before is not None:
            assert torch.equal(state(recorded), before)  # the caller's own is untouched
        assert error(trace.output["logits"], want["logits"]) <= 1e-6
        assert error(state(trace.output["cache"]), state(want["cache"])) <= 1e-6
        again = trace.replay(cw.scale("a", 1.0))
        assert error(again.logits, want["logits"]) <= 1e-6
        plain, recorded = want["cache"], trace.output["cache"]
    assert cw.check(module, given, Cache()).verified


@pytest.mark.parametrize("module", [Remembering(), Keeping()])
def test_a_replay_edits_what_the_output_holds_in_objects(module: nn.Module) -> None:
    given = torch.ones(2, 3)
    trace = cw.open(module).record(given)
    kept = state(trace.output["cache"]).clone()
    edited = trace.replay(cw.scale("a", 0.5))
    want = torch.tanh(module.a(given) * 0.5)
    assert error(state(edited.output["cache"]), want) <= 1e-6
    assert error(state(edited.replay(cw.zero("a")).output["cache"]), want * 0) == 0
    assert torch.equal(state(trace.output["cache"]), kept)
    state(trace.output["cache"]).zero_()  # what the caller does with the output leaves the recording alone
    assert error(trace.replay(cw.scale("a", 1.0)).logits, module.b(kept)) <= 1e-6


def test_a_network_that_hands_out_its_own_cache_keeps_it() -> None:
    module = Keeping()
    trace = cw.open(module).record(torch.ones(2, 3))
    assert not state(module.cache).any()
    assert state(trace.output["cache"]).abs().min() > 0


class Descending(nn.Module):
    """Steps down an energy by `backward`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.f = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = x.detach().requires_grad_()
            self.f(x).sum().backward()
            x = x - 0.1 * x.grad
        return x


class Adding(Descending):
    """Two calls of `backward` that add up, one of them for a tensor that retains its gradient."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().clone().requires_grad_()
        h = self.f[0](x).tanh()
        h.retain_grad()
        y = self.f[2](h)
        y.sum().backward(retain_graph=True)
        torch.autograd.backward([(y**2).sum()])
        return torch.cat([x.grad, h.grad], 1)


@pytest.mark.parametrize("module", [Descending(), Adding()])
def test_backward_in_a_forward_is_made_again_by_a_replay(module: nn.Module) -> None:
    torch.manual_seed(1)
    given = torch.randn(2, 3)
    trace = cw.open(module).record(given)
    assert torch.equal(trace.output, module(given)) and not trace.tape.problems
    calls: list[int] = []

    def first_doubled(inner: nn.Module, args: Any, out: Tensor) -> Tensor:
        calls.append(len(calls))
        return out * 2 if len(calls) == 1 else out

    hook = module.f[0].register_forward_hook(first_doubled)
    want = module(given)
    hook.remove()
    found = trace.replay(cw.scale("f.0", 2.0))
    assert error(found.output, want) <= 1e-6 and error(want, trace.output) > 1e-3
    assert found.receipt[0].times == 1
    assert cw.check(Descending(), given).verified
