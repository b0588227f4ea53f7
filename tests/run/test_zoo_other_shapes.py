"""On every network of the zoo: it is recorded as well at another batch size and at another length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from entry import first, resized

import cutaway as cw
from cutaway.run.replay import execute, plan
from cutaway.run.structure import tensors
from cutaway.run.trace import Trace
from zoo import ZOO, case, clones, error, hookable

every = pytest.mark.parametrize("name", ZOO)


def shapes(inputs: Any) -> list[torch.Size]:
    return [tensor.shape for tensor in tensors(inputs)]


def compared(name: str, batch: int = 0, longer: int = 0) -> Trace:
    """A recording on resized inputs, which is what the plain module does with them; so is its replay."""
    found = case(name)
    args, kwargs = resized((found.args, found.kwargs), batch, longer)
    if shapes((args, kwargs)) == shapes((found.args, found.kwargs)):
        pytest.skip("no input has the batch first" if batch else "no input holds token ids")
    module = found.entry.make(twin=True)[0].requires_grad_(False)
    torch.manual_seed(3)
    want = first(module(*clones(args), **clones(kwargs))).detach()
    torch.manual_seed(3)
    trace = found.net.record(*clones(args), **clones(kwargs))
    assert error(trace.logits, want) <= (1e-6 if found.entry.fused else 0.0)
    tape = trace.tape
    made = execute(tape, plan(tape, [], tape.graph.outputs, recompute=True))
    for value in tape.graph.outputs:
        kept = tape.kept[value] if value in tape.kept else tape.leaves[value]
        assert torch.equal(torch.nan_to_num(made[value]), torch.nan_to_num(kept))
    edit = [cw.scale(path, 0.5) for path in hookable(found, 2)[-1:] if path in trace.graph.exits]
    if edit:
        torch.manual_seed(3)
        live = found.net.record(*clones(args), interventions=edit, **clones(kwargs))
        assert error(trace.replay(*edit).logits, live.logits) <= 1e-6
    return trace


def modules(trace: Trace) -> dict[str, list[tuple[str, str]]]:
    """The names and addresses of ops of each call of each module."""
    found: dict[str, list[tuple[str, str]]] = {}
    for op in trace.graph.ops:
        found.setdefault(trace.graph.modules[op.module].name, []).append((op.name, trace.graph.address(op)))
    return found


def same_addresses(name: str, trace: Trace, varies: bool) -> None:
    """Ops have the addresses that they have in the first recording, wherever a module ran the same ops.

    `varies`: some modules may have run others.
    """
    mine, theirs = modules(trace), modules(case(name).trace)
    same = {path for path in mine if [op for op, _ in mine[path]] == [op for op, _ in theirs.get(path, [])]}
    assert all(mine[path] == theirs[path] for path in same)
    if not varies:
        assert same == mine.keys() == theirs.keys()


@every
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_another_batch_size(name: str, batch: int) -> None:
    if not ZOO[name].batches:
        pytest.skip("the network takes one batch size")
    trace = compared(name, batch=batch)
    same_addresses(name, trace, varies=ZOO[name].varies or batch == 1)  # alone, nothing needs to be expanded or masked


@every
@pytest.mark.parametrize("longer", [-1, 3])
def test_another_length(name: str, longer: int) -> None:
    if not ZOO[name].lengths:
        pytest.skip("the network takes one length")
    same_addresses(name, compared(name, longer=longer), varies=ZOO[name].varies)
