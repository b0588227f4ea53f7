"""Generating with a cache, recorded as one run: every language model of the zoo that has a cache."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from encoders import ENCODERS
from entry import Entry
from language import LANGUAGE
from torch import Tensor, nn

import cutaway as cw
from cutaway.run.network import Network
from cutaway.run.replay import execute, plan
from cutaway.run.trace import Trace
from zoo import error

STEPS = 3
AGAIN = {"gpt2 eager", "gpt2 cached"}  # the same network as gpt2
MODELS: dict[str, Entry] = {entry.name: entry for entry in LANGUAGE if entry.name not in AGAIN}
MODELS |= {entry.name: entry for entry in ENCODERS if entry.name in ("t5", "whisper")}
OTHERWISE = {"rwkv"}  # with its state, the library's own module gives other logits than without, also when untouched
every = pytest.mark.parametrize("name", MODELS)


class Generating(nn.Module):
    """A language model whose forward generates greedily."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, prompt: Tensor) -> dict[str, Any]:
        """The prompt and STEPS more tokens [batch, pos], and the logits that chose each [batch, step, vocab]."""
        out = self.model.generate(
            prompt, max_new_tokens=STEPS, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
        return {"tokens": out.sequences, "logits": torch.stack(out.logits, 1)}


@dataclass
class Generated:
    """A model that generates, what it generates untouched, and the recording."""

    net: Network
    prompt: Tensor
    plain: dict[str, Tensor]
    trace: Trace


def fresh(name: str) -> nn.Module:
    """The network, never opened; frozen as in a recording, for torch chooses other kernels for some ops then."""
    return Generating(MODELS[name].make()[0]).eval().requires_grad_(False)


@cache
def generated(name: str) -> Generated:
    _, args, kwargs = MODELS[name].make()
    prompt = kwargs.get("input_features", kwargs.get("input_ids", args[0] if args else None))
    net = cw.open(fresh(name))
    return Generated(net, prompt, fresh(name)(prompt.clone()), net.record(prompt.clone()))


def agree(trace: Trace, plain: dict[str, Tensor], tolerance: float = 0.0) -> None:
    assert torch.equal(trace.output["tokens"], plain["tokens"])
    assert error(trace.output["logits"], plain["logits"]) <= tolerance


@every
def test_the_tokens_are_those_generated_plainly(name: str) -> None:
    found = generated(name)
    agree(found.trace, found.plain)
    assert found.plain["logits"].shape[1] == STEPS
    assert not found.trace.tape.problems
    tape = found.trace.tape
    made = execute(tape, plan(tape, [], tape.graph.outputs, recompute=True))
    for value in tape.graph.outputs:
        assert torch.equal(made[value], tape.kept[value])


@every
def test_the_cache_changes_no_logits(name: str) -> None:
    """The logits of the last step are those of the whole text read at once, without a cache."""
    found, entry = generated(name), MODELS[name]
    module, _, kwargs = entry.make()
    tokens = found.plain["tokens"][:, :-1]
    given = {"input_features": found.prompt} if found.prompt.is_floating_point() else {"input_ids": found.prompt}
    inputs = {**given, "decoder_input_ids": tokens} if "decoder_input_ids" in kwargs else {"input_ids": tokens}
    whole = cw.open(module).record(**inputs, use_cache=False).logits[:, -1].float()
    if name in OTHERWISE:
        untouched = entry.make()[0](**inputs, use_cache=False).logits[:, -1]
        assert error(found.plain["logits"][:, -1], untouched) > 1e-2
        assert error(whole, untouched) <= 1e-6
    else:
        assert error(found.trace.output["logits"][:, -1], whole) <= 1e-5


@every
def test_an_identity_patch_changes_nothing(name: str) -> None:
    trace = generated(name).trace
    floats = [v for v in trace.graph.values if v.op >= 0 and v.dtype.startswith("float") and trace.graph.users[v.id]]
    for value in floats[:: max(len(floats) // 4, 1)]:
        again = trace.replay(cw.patch(trace.graph.site(value.id), trace))
        assert not again.live
        agree(again, trace.output)


@contextmanager
def zeroed_first(module: nn.Module):
    """A plain hook that zeroes the first tensor of a module's first output."""
    calls = 0

    def hook(inner: nn.Module, args: Any, out: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 1:
            return out
        return torch.zeros_like(out) if isinstance(out, Tensor) else type(out)([torch.zeros_like(out[0]), *out[1:]])

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def mixer(found: Generated) -> str:
    """The path of the first part of a layer that has parts itself and is run at every step."""
    modules = dict(found.net.module.named_modules())
    calls = [call.path for call in found.trace.graph.modules[1:]]
    lists = {path for path, module in modules.items() if isinstance(module, nn.ModuleList)}
    for path in calls:
        layer = path.rpartition(".")[0]
        inside = layer.rpartition(".")[0] in lists or layer.rpartition(".")[0].rpartition(".")[0] in lists
        if inside and calls.count(path) == STEPS and any(True for _ in modules[path].children()):
            return path
    raise AssertionError(sorted(set(calls)))


@every
def test_an_edit_of_the_first_step_reaches_the_tokens_after_it(name: str) -> None:
    found = generated(name)
    path = mixer(found)
    module = fresh(name)
    with zeroed_first(module.get_submodule(path)):
        want = module(found.prompt.clone())
    edit = cw.zero(path)
    live = found.net.record(found.prompt.clone(), interventions=[edit])
    agree(live, want, 1e-6)
    replayed = found.trace.replay(edit)  # goes live by itself where the tokens make the model do something else
    agree(replayed, want, 1e-6)
    assert error(want["logits"], found.plain["logits"]) > 1e-3
