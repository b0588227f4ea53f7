"""On every network of the zoo: an edit by replay is the edit made live, and is what a plain forward hook does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from entry import first
from torch import Tensor

import cutaway as cw
from cutaway.errors import DivergenceError
from cutaway.run.interventions import Intervention
from cutaway.site import Site
from zoo import ZOO, Case, case, error, hookable

every = pytest.mark.parametrize("name", ZOO)


def live(found: Case, *edits: Intervention) -> Tensor:
    torch.manual_seed(3)
    args, kwargs = found.inputs()
    return found.net.record(*args, interventions=edits, **kwargs).logits


@every
def test_a_module_edited_by_replay_live_and_by_a_plain_hook(name: str) -> None:
    found = case(name)
    for path in hookable(found):
        edit = cw.scale(path, 0.5)
        want = first(found.run_plain({path: lambda out: out * 0.5}))
        replayed = found.trace.replay(edit)
        assert error(replayed.logits, want) <= 1e-6, path
        assert error(live(found, edit), want) <= 1e-6, path
        reached = error(want, found.plain) > 0  # a module may return what nobody reads
        assert [fired.times for fired in replayed.receipt] == [1] or not reached, path


@every
def test_gradients_through_a_replay_are_those_of_the_plain_model(name: str) -> None:
    found = case(name)
    weight = torch.randn(found.plain.shape, generator=torch.Generator().manual_seed(4))
    for path in hookable(found, 3):
        shape, dtype = found.trace[path].shape, found.trace[path].dtype

        def gradient(run: Callable[[Callable[[Tensor], Tensor]], Tensor], shape=shape, dtype=dtype) -> Tensor | None:
            delta = torch.zeros(shape, dtype=dtype, requires_grad=True)
            out = run(lambda value: value + delta)
            if not out.requires_grad:
                return None
            return torch.autograd.grad((out * weight).sum(), delta, allow_unused=True)[0]

        want = gradient(lambda change, path=path: first(found.run_plain({path: change})))
        got = gradient(lambda change, path=path: found.trace.replay(cw.apply(path, change)).logits)
        assert (got is None) == (want is None), path
        if got is not None and want is not None:
            assert error(got, want) <= 1e-5, path


KINDS: dict[str, tuple[Callable[..., Intervention], Callable[[Tensor, Tensor], Tensor]]] = {
    "zero": (lambda site, v, other: cw.zero(site), lambda v, other: torch.zeros_like(v)),
    "mean": (lambda site, v, other: cw.mean(site), lambda v, other: v.mean(0, keepdim=True).expand_as(v).clone()),
    "mean over": (
        lambda site, v, other: cw.mean(site, other),
        lambda v, w: w.mean(0, keepdim=True).expand_as(v).clone(),
    ),
    "patch": (lambda site, v, other: cw.patch(site, other), lambda v, other: other.clone()),
    "patch tensor": (lambda site, v, other: cw.patch(site, other[site]), lambda v, other: other.clone()),
    "add": (lambda site, v, other: cw.add(site, ramp(v), 2.0), lambda v, other: v + 2 * ramp(v)),
    "scale": (lambda site, v, other: cw.scale(site, -1.5), lambda v, other: v * -1.5),
    "project": (lambda site, v, other: cw.project_out(site, ramp(v)), lambda v, other: projected(v)),
    "apply": (lambda site, v, other: cw.apply(site, torch.sin), lambda v, other: torch.sin(v)),
}


def ramp(value: Tensor) -> Tensor:
    return torch.linspace(-1, 1, value.shape[-1]) + 0.2


def projected(value: Tensor) -> Tensor:
    unit = ramp(value) / ramp(value).norm()
    return value - (value @ unit)[..., None] * unit


@every
def test_every_kind_of_edit_on_a_whole_module(name: str) -> None:
    found = case(name)
    paths = [path for path in hookable(found, 9) if found.trace[path].dtype == torch.float32]
    if not paths:
        pytest.skip("no module runs once with a float32 output")
    path = paths[len(paths) // 2]
    args, kwargs = found.other()
    torch.manual_seed(3)
    other = found.net.record(*args, **kwargs)
    theirs = other[path]
    for kind, (make, reference) in KINDS.items():
        edit = make(path, found.trace[path], other)
        want = first(found.run_plain({path: lambda out, reference=reference: reference(out, theirs)}))
        assert error(found.trace.replay(edit).logits, want) <= 2e-6, (kind, path)
        assert error(live(found, edit), want) <= 2e-6, (kind, path)


def parts(found: Case) -> list[str]:
    """Lifted sites of the last block of each kind, whole and in part."""
    sites = []
    lifted = found.trace.lift()
    for kind, block in {block.kind: block for block in lifted.blocks}.items():
        name = f"{block.name}@{block.step}" if block.step else block.name
        if kind == "attention":
            few = lifted.tape.graph.values[block.reads[2].value].shape[1] == 1
            values = "v[head=0]" if few else "v[head=0|1]"
            sites += [f"{name}.z[head=-1]", f"{name}.q[head=-1, pos=-1]", f"{name}.{values}", f"{name}.z[pos=1:3]"]
        elif kind == "mlp":
            sites += [f"{name}.out[neuron=1]", f"{name}.out[neuron=-1, batch=0]", f"{name}.pre"]
        elif kind == "conv":
            spatial = "height" in found.trace.locate(f"{name}.out").axes
            sites += [f"{name}.out[channel=1]", f"{name}.out[channel=0:2{', height=1' if spatial else ''}]"]
        elif kind == "state":
            sites += [f"{name}.out[state=1]"]
    return [*sites, *lifted.streams[1:2]]


def edits_at(found: Case, site: str, other: Any) -> list[Intervention]:
    part = found.trace[site]
    if part.ndim == 0:
        return [cw.zero(site)]
    basis = cw.Directions(torch.randn(2, part.shape[-1], generator=torch.Generator().manual_seed(1)))
    made = [cw.zero(site), cw.mean(site), cw.patch(site, other), cw.patch(site, other[site]), cw.scale(site, 3.0)]
    if found.trace.locate(site).axes[-1] not in dict(Site.parse(site).index):
        made += [cw.project_out(site, ramp(part)), cw.add(site, ramp(part)), cw.zero(site, basis)]
        made += [cw.patch(site, other, basis), cw.scale(site, 2.0, basis)]
    if "batch" not in dict(Site.parse(site).index):
        made.append(cw.resample(site))
    return made


@every
def test_edits_of_heads_neurons_channels_and_positions(name: str) -> None:
    found = case(name)
    if found.entry.problems:
        pytest.skip("leaves torch, so nothing is lifted")
    args, kwargs = found.other()
    torch.manual_seed(3)
    other = found.net.record(*args, **kwargs)
    tried: set[str] = set()
    for site in parts(found):
        kind = Site.parse(site).name.split(".")[1].split("@")[0]
        some = 3 if kind in tried else None  # every kind of edit on one site of each kind of block
        tried.add(kind)
        whole = Site.parse(site).name
        if whole not in other.lift().sites:
            continue  # the other inputs take fewer steps
        before = found.trace[whole]
        marker = replayed_as_recorded(found, cw.apply(site, lambda v: v + 1000))
        address = found.trace.locate(site).address
        inside = "//" in address or "/alias." in address  # what only a replay can edit
        for edit in edits_at(found, site, other)[:some]:
            replayed = replayed_as_recorded(found, edit)
            if replayed is None:
                continue
            assert replayed.receipt[0].times == 1, (site, edit.kind)
            if not inside:
                assert error(replayed.logits, live(found, edit)) <= 1e-6, (site, edit.kind)
            if marker is not None:
                marked, after = marker[whole] != before, replayed[whole]
                assert not ((before != after) & ~marked).any(), (site, edit.kind)


def replayed_as_recorded(found: Case, edit: Intervention) -> Any:
    """A replay, or None where the network takes another branch, so that the replay went live or says that it must."""
    try:
        replayed = found.trace.replay(edit)
    except DivergenceError:
        assert "//" in found.trace.locate(edit.site).address
        return None
    if replayed.live:
        assert error(replayed.logits, live(found, edit)) <= 1e-6
    return None if replayed.live else replayed
