"""After any call, also one that raised, the network, torch and the generators are what they were."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
import trap_modules as m
from entry import Entry, floats, scatter
from torch import Tensor, nn
from torch.nn.modules import module as hooks

import cutaway as cw
from cutaway.errors import CutawayError, InputError, ModelError
from zoo import ZOO, case

Snapshot = dict[str, Any]


def frozen(item: Any, depth: int = 0) -> Any:
    """Something comparable that changes when the item's contents do."""
    if isinstance(item, Tensor):
        return (
            id(item),
            tuple(item.stride()),
            item.detach().numpy(force=True).tobytes() if item.dtype != torch.bfloat16 else 0,
        )
    if isinstance(item, dict):
        return tuple((key, frozen(value, depth + 1)) for key, value in item.items())
    if isinstance(item, (list, tuple)):
        return tuple(frozen(value, depth + 1) for value in item)
    return id(item)


def snapshot(module: nn.Module) -> Snapshot:
    """All that a recording could have touched."""
    return {
        "state": {name: tensor.clone() for name, tensor in module.state_dict().items()},
        "attributes": [frozen(inner.__dict__) for inner in module.modules()],
        "training": [inner.training for inner in module.modules()],
        "flags": [(id(p), p.requires_grad, id(p.grad) if p.grad is not None else None) for p in module.parameters()],
        "forward": [id(type(inner).__dict__.get("forward")) for inner in module.modules()],
        "rng": (torch.get_rng_state().tolist(), random.getstate(), numpy.random.get_state()[1].tolist()),
        "apply": torch.autograd.Function.__dict__["apply"],
        "script": (torch._C.ScriptFunction.__call__, torch._C.ScriptMethod.__call__),
        "hooks": [
            len(getattr(hooks, name)) for name in dir(hooks) if name.startswith("_global_") and name.endswith("hooks")
        ],
        "modes": torch.overrides._get_current_function_mode_stack(),
        "dispatch": torch.utils._python_dispatch._get_current_dispatch_mode_stack(),
        "switches": (torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch._C._get_mkldnn_enabled()),
        "kernels": (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()),
        "threads": torch.get_num_threads(),
    }


def assert_same(before: Snapshot, after: Snapshot) -> None:
    old, new = before.pop("state"), after.pop("state")
    assert list(old) == list(new)
    for name in old:
        assert old[name].numpy().tobytes() == new[name].numpy().tobytes(), name
    for key in before:
        assert before[key] == after[key], key


def everything(net: cw.Network, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    trace = net.record(*args, **kwargs)
    names = list(trace.graph.exits)
    edit = cw.scale(names[len(names) // 2], 0.5) if names else cw.scale("input:0", 0.5)
    replayed = trace.replay(edit)
    if replayed.logits.requires_grad:
        replayed.logits.sum().backward()
    net.record(*args, interventions=[edit] if names else [], **kwargs)
    net.record(*args, keep="none", **kwargs)
    if not trace.tape.problems:
        lifted = trace.lift()
        for site in list(lifted.sites)[:8]:
            trace[site]
    with pytest.raises(CutawayError):
        trace.replay(cw.zero("nowhere at all".replace(" ", ".")))


@pytest.mark.parametrize("name", ZOO)
def test_a_network_is_as_it_was_after_everything(name: str) -> None:
    module, args, kwargs = ZOO[name].make()
    for place, parameter in enumerate(module.parameters()):
        parameter.requires_grad_(place % 3 != 1)
        if place % 2:
            parameter.grad = torch.zeros_like(parameter)
    given = [tensor.clone() for tensor in args if isinstance(tensor, Tensor)]
    net = cw.open(module)
    before = snapshot(module)
    everything(net, args, kwargs)
    assert_same(before, snapshot(module))
    for was, now in zip(given, (tensor for tensor in args if isinstance(tensor, Tensor)), strict=True):
        assert torch.equal(was, now)
    for parameter in module.parameters():
        assert parameter.grad is None or not parameter.grad.any()


def test_a_forward_that_raises_leaves_no_trace() -> None:
    module = m.Failing()
    scatter(module)
    x = torch.randn(3, 6)
    kept, before = x.clone(), snapshot(module)
    with pytest.raises(ModelError, match=r"failed in 'b': RuntimeError: mat1 and mat2"):
        cw.open(module).record(x)
    assert_same(before, snapshot(module))
    assert torch.equal(x, kept)


def failing_edit(value: Tensor) -> Tensor:
    raise ValueError("no")


@pytest.mark.parametrize("how", ["live", "replay"])
def test_an_edit_that_raises_leaves_no_trace(how: str) -> None:
    module, args, _ = ZOO["resnet training"].make()
    net, before = cw.open(module), snapshot(module)
    trace = net.record(*args)
    edit = cw.apply("block1.relu", failing_edit)
    with pytest.raises(InputError, match="cannot be made: .* raised ValueError: no"):
        net.record(*args, interventions=[edit]) if how == "live" else trace.replay(edit)
    assert_same(before, snapshot(module))


def test_interrupting_leaves_no_trace() -> None:
    class Interrupted(m.Failing):
        def forward(self, x: Tensor) -> Tensor:
            try:
                return super().forward(x)
            except RuntimeError:
                raise KeyboardInterrupt from None

    module, x = Interrupted(), torch.randn(3, 6)
    net, before = cw.open(module), snapshot(module)
    with pytest.raises(KeyboardInterrupt):
        net.record(x)
    assert_same(before, snapshot(module))


def test_a_custom_function_still_works_after_a_recording() -> None:
    module, args, _ = ZOO["straight through"].make()
    want = module(*args)
    cw.open(module).record(*args)
    assert torch.equal(module(*args), want)
    x = torch.randn(3, requires_grad=True)
    m.Step.apply(x, 0.25).sum().backward()
    assert torch.equal(x.grad, torch.full((3,), 0.25))


def test_hooks_of_the_user_run_and_stay() -> None:
    module, args, _ = ZOO["mlp"].make()
    seen: list[str] = []
    module[1].register_forward_hook(lambda mod, given, out: seen.append("out"))
    module[2].register_forward_pre_hook(lambda mod, given: (given[0] * 2,))
    want = module(*args)
    trace = cw.open(module).record(*args)
    assert torch.equal(trace.logits, want)
    assert seen == ["out", "out"]
    assert len(module[1]._forward_hooks) == len(module[2]._forward_pre_hooks) == 1


def test_a_submodule_that_fails_and_is_caught() -> None:
    class Careful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bad, self.good = nn.Linear(9, 9), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            try:
                return self.bad(x)
            except RuntimeError:
                return self.good(x)

    module = Careful()
    trace = cw.open(module).record(torch.randn(2, 6))
    assert trace.graph.exits["good"][0] == trace.graph.outputs[0]
    assert {call.parent for call in trace.graph.modules[1:]} == {0}


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu")])
def test_recording_inside_the_callers_own_modes(around: Callable[[], Any]) -> None:
    module, args, _ = ZOO["mlp"].make()
    with around():
        args = (args[0].clone(),)
        trace = cw.open(module).record(*args)
        want = module(*args)
        edited = trace.replay(cw.scale("1", 2.0)).logits
    assert torch.equal(trace.logits.clone(), want.clone())
    assert torch.equal(edited.clone(), trace.replay(cw.scale("1", 2.0)).logits)


def test_inputs_that_cannot_be_used() -> None:
    net = cw.open(nn.Sequential(nn.Linear(6, 4)))
    with pytest.raises(InputError, match="NaN"):
        net.record(torch.tensor([[0.0, float("nan"), 0, 0, 0, 0]]))
    with pytest.raises(InputError, match="empty"):
        net.record(torch.zeros(0, 6))
    with pytest.raises(InputError, match="no tokenizer"):
        net.record("a text")
    with pytest.raises(InputError, match="Nothing to run on"):
        net.record()
    words = cw.open(nn.Embedding(3, 2), tokenizer=["a", "b", "c"])
    with pytest.raises(InputError, match="Text 1 has 1 tokens and text 0 has 2"):
        words.record(["a b", "c"])
    with pytest.raises(InputError, match="empty"):
        words.record([])
    with pytest.raises(ModelError, match="not in the vocabulary"):
        words.record("a d")


def test_entries_of_the_zoo_are_distinct() -> None:
    assert len(ZOO) >= 55
    assert isinstance(case("mlp").entry, Entry)
    assert floats(2)[0][0].shape == (3, 2)
