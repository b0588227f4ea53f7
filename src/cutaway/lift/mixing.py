"""Sites inside scans and mixtures of experts: states at each step, routers, weights, what each expert adds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ..run.replay import execute, plan
from ..run.trace import Found, Trace
from .blocks import AXES, Block, Slots
from .experts import neurons
from .flow import Flow
from .frozen import reader
from .names import folded_place

_STATES = {2: ("batch", "channel"), 3: ("batch", "channel", "state"), 4: ("batch", "head", "row", "column")}


def mixing_sites(flow: Flow, blocks: Iterable[Block]) -> dict[str, Found]:
    """The sites of every scan and mixture of experts."""
    sites: dict[str, Found] = {}
    for block in blocks:
        if block.kind == "ssm":
            sites |= _scan_sites(flow, block)
        elif block.kind == "moe":
            sites |= _expert_sites(flow, block)
    return sites


def _scan_sites(flow: Flow, block: Block) -> dict[str, Found]:
    graph = flow.graph
    name = f"{block.name}@{block.step}" if block.step else block.name
    sites = {f"{name}.out": Found(graph.site(block.write), _axes(flow, block.write, block.slots, block.mark))}
    seen: Counter[str] = Counter()  # a port that is read at every step has a site a step
    for read in block.reads:
        axes = _axes(flow, read.value, read.slots, block.mark if read.slots.count > 1 else "n")
        step = block.step + seen[read.port]
        seen[read.port] += 1
        sites[f"{block.name}@{step}.{read.port}" if step else f"{name}.{read.port}"] = Found(
            graph.site(read.value), axes
        )
    for number, chain in enumerate(block.states):
        for step, value in enumerate(chain):
            at = f"{block.name}@{step}" if step else block.name
            axes = _state_axes(flow, block, flow.shape(value))
            sites[f"{at}.state{number or ''}"] = Found(graph.site(value), axes)
    return sites


def _state_axes(flow: Flow, block: Block, shape: tuple[int, ...]) -> tuple[str, ...]:
    channels = flow.shape(block.write)[block.slots.axis]
    if len(shape) == 3 and shape[1] != channels == shape[2]:
        return ("batch", "pos", "channel")  # all steps in one tensor, written one after the other
    return _STATES.get(len(shape), ()) if shape[0] == flow.batch else ()


def _axes(flow: Flow, value: int, slots: Slots, mark: str) -> tuple[str, ...]:
    """Names of a value's axes: the slots' axis, the batch, and positions; none where that does not tell them apart."""
    shape = flow.shape(value)
    if len(shape) not in (2, 3) or slots.axis == 0:
        return ()
    channel = AXES[mark] if mark == "n" or slots.count == shape[slots.axis] else "channel"
    if flow.time_major and len(shape) == 3 and shape[1] == flow.batch:
        return ("pos", "batch", channel)
    if shape[0] != flow.batch:
        return ()
    axes = ["batch", *["pos"] * (len(shape) - 1)]
    axes[slots.axis] = channel
    return tuple(axes)


def _expert_sites(flow: Flow, block: Block) -> dict[str, Found]:
    """Logits and weights of the router, what was chosen, what the experts read and give together, and each alone."""
    sites = {f"{block.name}.out": folded_place(flow, block.write, "neuron")}
    for read in block.reads:
        sites[f"{block.name}.{read.port}"] = folded_place(
            flow, read.value, "expert" if read.port == "router" else "neuron"
        )
    for name, value in block.extra.items():
        sites[f"{block.name}.{name}"] = folded_place(flow, value, "choice")
    for name, value in neurons(flow, block).items():
        axes = {2: ("row", "neuron"), 3: ("expert", "row", "neuron")}.get(len(flow.shape(value)), ())
        sites[f"{block.name}.{name}"] = Found(flow.graph.site(value), axes)
    if "weights" in block.extra:
        place = sites[f"{block.name}.out"]
        axes = (*place.axes[:-1], "expert", *place.axes[-1:]) if place.axes else ()
        # The address is the weights': that is where an edit belongs.
        sites[f"{block.name}.result"] = Found(
            flow.graph.site(block.extra["weights"]), axes, 0, _results(flow, block, place)
        )
    return sites


def _results(flow: Flow, block: Block, place: Found) -> Callable[[Trace], Tensor]:
    """What each expert adds: the block run with the weights of all others at zero, for it is linear in its weights."""
    weights, chosen = block.extra["weights"], block.extra["chosen"]
    reads = [read.value for read in block.reads]

    def derive(trace: Trace) -> Tensor:
        given = reader(flow, trace)([weights, chosen, *reads])
        steps = plan(flow.tape, [], [block.write], [weights, chosen, *reads])
        parts = []
        for expert in range(block.units):
            alone = torch.where(given[chosen] == expert, given[weights], 0)
            made = execute(flow.tape, steps, given={**given, weights: alone})[block.write]
            parts.append(place.unfolded(made.detach()))
        return torch.stack(parts, -2)

    return derive
