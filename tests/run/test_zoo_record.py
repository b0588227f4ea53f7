"""On every network of the zoo: what is recorded is what the network does, and replaying it gives it again."""

from __future__ import annotations

import pytest
import torch
from entry import first

import cutaway as cw
from cutaway.run.inner_gradients import inner_gradients
from cutaway.run.replay import execute, plan
from zoo import ZOO, case, error

every = pytest.mark.parametrize("name", ZOO)


@every
def test_the_recorded_output_is_the_untouched_models(name: str) -> None:
    found = case(name)
    got = found.trace.logits
    assert error(got, found.plain) <= (1e-6 if found.entry.fused else 0.0)
    assert error(got, first(found.run_plain())) <= 1e-6
    assert type(found.trace.output) is type(found.run_plain())


@every
def test_problems_are_those_expected(name: str) -> None:
    problems = case(name).trace.tape.problems
    assert len(problems) == len(case(name).entry.problems), problems
    for expected, text in zip(case(name).entry.problems, problems, strict=True):
        assert expected in text


@every
def test_making_everything_again_from_the_leaves_gives_the_recording(name: str) -> None:
    tape = case(name).trace.tape
    wanted = [value.id for value in tape.graph.values if value.op >= 0 and value.id in tape.kept]
    unfilled: set[int] = set()  # what nobody has written yet holds anything
    for op in tape.graph.ops:
        if "empty" in op.name or (op.name in ("getitem", "setitem", "alias") and unfilled.intersection(op.inputs)):
            unfilled.update(op.outputs)
    wanted = [value for value in wanted if value not in unfilled]
    made = execute(tape, plan(tape, [], wanted, recompute=True))
    assert wanted
    for value in wanted:
        got, want = made[value], tape.kept[value]
        assert torch.equal(torch.nan_to_num(got), torch.nan_to_num(want)), tape.graph.site(value)


@every
def test_the_graph_is_legal_raw_and_opened(name: str) -> None:
    found = case(name)
    found.trace.graph.check()
    if not found.entry.problems:
        found.trace.lift().tape.graph.check()
    opaque = [
        found.trace.graph.address(op) for op in found.trace.graph.ops if op.name == "scaled_dot_product_attention"
    ]
    found.trace.tape_with(opaque).graph.check()


@every
def test_an_identity_edit_changes_nothing(name: str) -> None:
    trace = case(name).trace
    floats = [v for v in trace.graph.values if v.op >= 0 and v.dtype.startswith("float") and trace.graph.users[v.id]]
    for value in floats[:: max(len(floats) // 6, 1)]:
        site = trace.graph.site(value.id)
        # A given value is a constant, which matters to a network that differentiates inside its forward.
        again = trace.replay(cw.scale(site, 1.0) if inner_gradients(trace.tape) else cw.patch(site, trace))
        assert not again.live
        assert torch.equal(again.logits, trace.logits), trace.graph.site(value.id)


@every
def test_a_run_that_keeps_nothing_gives_the_same_values(name: str) -> None:
    found = case(name)
    torch.manual_seed(3)
    args, kwargs = found.inputs()
    lean = found.net.record(*args, keep="none", **kwargs)
    full = found.trace
    assert set(lean.tape.kept) <= {*lean.graph.outputs, *lean.tape.inner}  # a cache is part of what is returned
    assert lean.sites() == full.sites()
    sites = [full.graph.site(value) for value in full.tape.kept]
    for site in sites[:: max(len(sites) // 5, 1)]:
        assert torch.equal(torch.nan_to_num(lean[site]), torch.nan_to_num(full[site])), site


@every
def test_recording_twice_gives_the_same_addresses_and_numbers(name: str) -> None:
    found = case(name)
    torch.manual_seed(3)
    args, kwargs = found.inputs()
    again = found.net.record(*args, **kwargs)
    assert [found.trace.graph.address(op) for op in found.trace.graph.ops] == [
        again.graph.address(op) for op in again.graph.ops
    ]
    assert torch.equal(first(again.output), first(found.trace.output))
