"""Real trained networks: each does what it is known for, and what is recorded, edited and lifted of it is right.

The modules are written from descriptions, so the first test of each is a fact that a wrong module would fail. The
weights lie in the shared test data, not in this package.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from entry import first
from torch import Tensor, nn
from trained_table import TRAINED, Entry

import cutaway as cw
from cutaway.run.replay import execute, plan
from zoo import Case, error

every = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * entry.slow) for name, entry in TRAINED.items()]
)
Change = Callable[[Tensor], Tensor]


@pytest.fixture
def found(name: str, shared_data: Path) -> Case:
    return case(name, shared_data)


@cache
def case(name: str, data: Path) -> Case:
    """A network, run once plainly, opened and recorded; skips where its files or Pillow are absent."""
    try:
        module, args, kwargs = Entry(TRAINED[name], data).make()
    except FileNotFoundError as absent:
        pytest.skip(f"{name} is not among the shared data: {absent}")
    found = Case(Entry(TRAINED[name], data), module, args, kwargs, torch.empty(0), cw.open(module), None)
    found.plain = first(run_plain(found)).detach()
    torch.manual_seed(3)
    found.trace = found.net.record(*args, **kwargs)
    return found


def calls(found: Case, count: int = 3) -> list[tuple[str, str, int]]:
    """Site, path and number of module calls, spread over the run, that gave one floating point tensor or began with
    one."""
    seen: list[tuple[str, int]] = []

    def note(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, out: object) -> None:
            out = out[0] if isinstance(out, tuple) else out
            if isinstance(out, Tensor) and out.is_floating_point():
                seen.append((path, sum(other == path for other, _ in seen)))

        return hook

    handles = [inner.register_forward_hook(note(path)) for path, inner in found.module.named_modules() if path]
    with torch.no_grad():
        found.module(*found.inputs()[0])
    for handle in handles:
        handle.remove()
    chosen = seen[:: max(len(seen) // count, 1)][:count]
    return [(f"{path}@{number}" if number else path, path, number) for path, number in chosen]


def run_plain(found: Case, path: str = "", number: int = 0, change: Change = lambda out: out) -> object:
    """The module's own output, with a plain forward hook on one call of one of its modules."""
    turn = iter(range(10**6))

    def hook(module: nn.Module, args: object, out: object) -> object:
        if next(turn) != number:
            return None
        return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

    handle = found.module.get_submodule(path).register_forward_hook(hook) if path else None
    torch.manual_seed(3)
    try:
        return found.module(*found.inputs()[0])
    finally:
        if handle is not None:
            handle.remove()


@every
def test_it_does_what_it_is_known_for(found: Case) -> None:
    found.entry.trained.fact(found.module, found.entry.data)


@every
def test_it_passes_the_self_test(found: Case) -> None:
    torch.manual_seed(3)
    made = cw.check(found.net, *found.inputs()[0])
    assert made.verified, str(made)
    assert None not in made.errors.values(), str(made)


@every
def test_the_recording_is_the_untouched_module(found: Case) -> None:
    assert error(found.trace.logits, found.plain) == 0.0
    assert type(found.trace.output) is type(run_plain(found))
    assert not found.trace.tape.problems
    found.trace.graph.check()
    found.trace.lift().tape.graph.check()


@every
def test_making_everything_again_from_the_leaves_gives_the_recording(found: Case) -> None:
    tape = found.trace.tape
    wanted = [value.id for value in tape.graph.values if value.op >= 0 and value.id in tape.kept]
    wanted = [value for value in wanted if not tape.graph.ops[tape.graph.values[value].op].name.startswith("empty")]
    made = execute(tape, plan(tape, [], wanted, recompute=True))
    assert wanted
    for value in wanted:
        assert torch.equal(torch.nan_to_num(made[value]), torch.nan_to_num(tape.kept[value])), tape.graph.site(value)


@every
def test_an_edit_in_the_middle_is_a_plain_hooks(found: Case) -> None:
    for site, path, number in calls(found):
        want = first(run_plain(found, path, number, lambda out: out * 0.5))
        edit = cw.scale(site, 0.5)
        replayed = found.trace.replay(edit)
        assert error(replayed.logits, want) <= 1e-6, site
        assert [fired.times for fired in replayed.receipt] == [1], site
        torch.manual_seed(3)
        assert error(found.net.record(*found.inputs()[0], interventions=[edit]).logits, want) <= 1e-6, site


@every
def test_gradients_through_a_replay_are_the_modules(found: Case) -> None:
    weight = torch.randn(found.plain.shape, generator=torch.Generator().manual_seed(4))
    for site, path, number in calls(found):
        shape = found.trace[site].shape

        def gradient(run: Callable[[Change], Tensor], shape: torch.Size = shape) -> Tensor | None:
            delta = torch.zeros(shape, requires_grad=True)
            out = run(lambda value: value + delta)
            return torch.autograd.grad((out * weight).sum(), delta, allow_unused=True)[0] if out.requires_grad else None

        want = gradient(lambda change, path=path, number=number: first(run_plain(found, path, number, change)))
        got = gradient(lambda change, site=site: found.trace.replay(cw.apply(site, change)).logits)
        assert (got is None) == (want is None), site
        if got is not None and want is not None:
            assert error(got, want) <= 1e-5, site


@every
def test_components_are_those_of_the_network(found: Case) -> None:
    lifted = found.trace.lift()
    assert {part.name: (part.count, part.calls) for part in lifted.components()} == found.entry.trained.expected
    assert len(lifted.streams) == found.entry.trained.stream


@every
def test_edits_of_components_stay_within_them(found: Case) -> None:
    """For the last block of each kind, one unit: what is edited is all that changes there, and live is as replayed."""
    lifted = found.trace.lift()
    units = {"attention": "z[head=0]", "mlp": "out[neuron=-1]", "conv": "out[channel=0]", "state": "out[state=1]"}
    args, kwargs = found.entry.inputs(2)
    torch.manual_seed(3)
    other = found.net.record(*args, **kwargs)
    for kind, block in {block.kind: block for block in lifted.blocks if block.kind in units}.items():
        name = f"{block.name}@{block.step}" if block.step else block.name
        site, whole = f"{name}.{units[kind]}", f"{name}.{units[kind].split('[')[0]}"
        before = found.trace[whole]
        marked = found.trace.replay(cw.apply(site, lambda value: value + 1000))[whole] != before
        assert marked.any() and not marked.all() or before.numel() == marked.sum(), site
        for edit in (cw.zero(site), cw.mean(site), cw.patch(site, other), cw.scale(site, 3.0)):
            replayed = found.trace.replay(edit)
            assert replayed.receipt[0].times == 1, (site, edit.kind)
            assert not ((replayed[whole] != before) & ~marked).any(), (site, edit.kind)
            if "//" not in found.trace.locate(site).address:
                torch.manual_seed(3)
                live = found.net.record(*found.inputs()[0], interventions=[edit])
                assert error(replayed.logits, live.logits) <= 1e-6, (site, edit.kind)
