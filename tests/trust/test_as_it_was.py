"""After any call, also one that fails or is interrupted, the network and torch are byte for byte what they were."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_untouched import assert_same, snapshot
from torch import Tensor, nn

import cutaway as cw
from cutaway import organisms
from cutaway.errors import CutawayError
from zoo import ZOO

Call = Callable[[cw.Network, cw.Trace, random.Random], Any]


class Stop(BaseException):
    """As an interrupt from the keyboard, which no `except Exception` may catch."""


def state(module: nn.Module) -> dict[str, Any]:
    """What `snapshot` sees, and the rest of torch's switches."""
    found = snapshot(module)
    found["grads"] = [None if p.grad is None else p.grad.detach().clone().tolist() for p in module.parameters()]
    found["dtype"] = (torch.get_default_dtype(), torch.get_autocast_dtype("cpu"), torch.is_inference_mode_enabled())
    found["warnings"] = list(warnings.filters)
    found["deterministic"] = torch.are_deterministic_algorithms_enabled()
    return found


def a_site(trace: cw.Trace, draw: random.Random) -> str:
    graph = trace.graph
    sites = [graph.site(v.id) for v in graph.values if v.op >= 0 and v.dtype.startswith("float")]
    return draw.choice([*graph.exits, *(site for site in sites if "/alias." not in site)])


def raising(error: type[BaseException]) -> Callable[[Tensor], Tensor]:
    def edit(value: Tensor) -> Tensor:
        raise error("in the middle")

    return edit


def hooked(net: cw.Network, trace: cw.Trace, draw: random.Random, error: type[BaseException]) -> None:
    """A hook of the user's that raises."""
    known = dict(net.module.named_modules())
    path = draw.choice([call.path for call in trace.graph.modules if call.path in known])
    handle = known[path].register_forward_hook(lambda mod, args, out: raising(error)(out))
    try:
        before = state(net.module)
        with pytest.raises((CutawayError, Stop)):
            net.record(*trace.args, **trace.kwargs)
        assert_same(before, state(net.module))
    finally:
        handle.remove()


CALLS: dict[str, Call] = {
    "record": lambda net, trace, draw: net.record(*trace.args, **trace.kwargs),
    "record some": lambda net, trace, draw: net.record(*trace.args, keep=["*relu*", "*add*"], **trace.kwargs),
    "record none": lambda net, trace, draw: net.record(*trace.args, keep="none", **trace.kwargs),
    "replay": lambda net, trace, draw: trace.replay(cw.scale(a_site(trace, draw), 0.5)),
    "live": lambda net, trace, draw: net.run_live(trace, [cw.scale(a_site(trace, draw), 0.5)]),
    "a part": lambda net, trace, draw: trace.replay(cw.zero(a_site(trace, draw)), until=[a_site(trace, draw)]),
    "patch": lambda net, trace, draw: trace.replay(cw.patch(a_site(trace, draw), trace)),
    "gradient": lambda net, trace, draw: backward(trace, a_site(trace, draw)),
    "lift": lambda net, trace, draw: str(net.record(*trace.args, **trace.kwargs).lift()),
    "listing": lambda net, trace, draw: str(trace.listing()),
    "an edit that raises": lambda net, trace, draw: trace.replay(cw.apply(a_site(trace, draw), raising(ValueError))),
    "a live edit that raises": lambda net, trace, draw: net.run_live(
        trace, [cw.apply(a_site(trace, draw), raising(ValueError))]
    ),
    "an interrupted replay": lambda net, trace, draw: trace.replay(cw.apply(a_site(trace, draw), raising(Stop))),
    "an interrupted run": lambda net, trace, draw: net.run_live(trace, [cw.apply(a_site(trace, draw), raising(Stop))]),
    "a hook that raises": lambda net, trace, draw: hooked(net, trace, draw, ValueError),
    "a hook that interrupts": lambda net, trace, draw: hooked(net, trace, draw, Stop),
    "a site that is none": lambda net, trace, draw: trace.replay(cw.zero("nowhere.at.all")),
    "inputs that are none": lambda net, trace, draw: net.record(object(), object(), object(), object(), object()),
}


def backward(trace: cw.Trace, site: str) -> None:
    delta = torch.zeros_like(trace[site]).requires_grad_()
    output = trace.replay(cw.add(site, delta)).logits
    if output.requires_grad:
        output.sum().backward()


@pytest.mark.parametrize("name", ZOO)
def test_every_call_leaves_everything_as_it_was(name: str) -> None:
    module, args, kwargs = ZOO[name].make()
    draw = random.Random(name)
    for place, parameter in enumerate(module.parameters()):
        parameter.requires_grad_(place % 3 != 1)
        if place % 2:
            parameter.grad = torch.ones_like(parameter)
    net = cw.open(module)
    trace = net.record(*args, **kwargs)
    for what, call in CALLS.items():
        if what == "lift" and ZOO[name].problems:
            continue
        before = state(module)
        try:
            call(net, trace, draw)
        except (CutawayError, RuntimeError, Stop):
            pass
        try:
            assert_same(before, state(module))
        except AssertionError as error:
            pytest.fail(f"after '{what}': {error}")


@pytest.mark.parametrize("name", ["mlp", "resnet training", "gru", "gpt2", "stateful", "dropout", "compiled"])
def test_a_check_leaves_everything_as_it_was(name: str) -> None:
    if name == "compiled":
        module, args, kwargs = ZOO["mlp"].make()
        module.compile(backend="eager")
        module(*args)
    else:
        module, args, kwargs = ZOO[name].make()
    before = state(module)
    cw.check(module, *args, **kwargs)
    assert_same(before, state(module))


@pytest.mark.parametrize("fails", ["", "metric", "interrupted"])
@pytest.mark.parametrize("name", ["induction", "shapes", "counter"])
def test_a_search_leaves_everything_as_it_was(name: str, fails: str) -> None:
    organism = organisms.load(name)
    module, pairs = organism.module, organism.pairs(4, seed=0)
    net = cw.open(module)
    clean, corrupted = net.record(pairs.clean), net.record(pairs.corrupted)
    count = 0

    def value(logits: Tensor) -> Tensor:
        nonlocal count
        count += 1
        if fails and count > 2:
            raise ValueError("no") if fails == "metric" else Stop
        rows = logits if logits.ndim == 2 else logits[:, -1]
        answers = torch.stack([torch.as_tensor(pairs.correct), torch.as_tensor(pairs.wrong)], 1)
        right, wrong = rows.gather(1, answers).unbind(1)
        return right - wrong

    before = state(module)
    if fails:
        with pytest.raises((CutawayError, ValueError, Stop)):
            cw.find_circuit(clean, corrupted, cw.custom(value))
    else:
        cw.find_circuit(clean, corrupted, cw.custom(value), level="node")
    assert_same(before, state(module))


def test_the_callers_own_switches_stay_on() -> None:
    """A float64 default, autocast and gradients off, set by the caller, are neither lost nor in the way."""
    module, args, _ = ZOO["mlp"].make()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            before = state(module)
            cw.check(module, *args)
            cw.open(module).record(*args).replay(cw.scale("1", 0.5))
            assert_same(before, state(module))
    finally:
        torch.set_default_dtype(torch.float32)
