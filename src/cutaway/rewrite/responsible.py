"""Which numbers of which parameters make, or carry on, the part of a value that an intervention edits.

Found on the tape, by gradients: a weight's numbers that multiply a head's or a neuron's output are those that a probe
of that output alone reaches. So fused projections, grouped queries, transposed weights and kernels need no rule each.
Two ways are offered, and the caller tries both: scaling what *reads* the part (a column of the next projection), and
changing what *writes* it (rows of the projections and embeddings that make it, and their biases).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..basis import Directions
from ..graph import Op
from ..lift import ops
from ..lift.flow import Flow
from ..lift.ops import sort_name
from ..run.interventions import EDITS, Intervention, project_out
from ..run.replay import execute, plan
from ..run.tape import Tape
from ..run.trace import Trace

SCALES = {"zero": lambda what: 0.0, "scale": lambda what: what.arg}
_THROUGH = ops.LAYOUT | ops.ADDITIVE | frozenset(("dropout", "feature_dropout"))


@dataclass(frozen=True)
class Proposal:
    """New values for some parameters, by their names in the network, and how they came about."""

    way: str
    parameters: dict[str, Tensor]


def removed_everywhere(trace: Trace, direction: Tensor) -> list[Intervention]:
    """The interventions that remove a direction [d] from the residual stream wherever it is."""
    return [project_out(name, direction) for name in trace.lift().streams]


def proposals(trace: Trace, interventions: Sequence[Intervention]) -> Iterator[Proposal]:
    """Parameters that may do what the interventions do, to be tried in this order; nothing where no rule applies."""
    tape, places, edits, _ = trace._edits(interventions, set())
    flow: Flow = trace.lift().flow
    what = interventions[0]
    if what.kind in SCALES and len(interventions) == 1 and not isinstance(what.arg, Tensor):
        value, mask = places[0].value, _mask(tape, places[0].value, edits[0])
        factor = float(SCALES[what.kind](what))
        if what.basis is None:
            yield from _read(tape, flow, value, mask, factor)
            yield from _written(tape, flow, value, mask, factor)
    linear = what.kind == "project_out" and what.basis is None
    if linear or (what.kind in SCALES and isinstance(what.basis, Directions)):
        values = [place.value for place in places]
        yield from _projected(tape, flow, values[-1], what)


def _mask(tape: Tape, value: int, edit: Any) -> Tensor:
    """Where an edit changes a value, as seen on a probe."""
    probe = _probe(tape, value)
    with torch.no_grad():
        return edit(probe) != probe


def _probe(tape: Tape, value: int) -> Tensor:
    """Positive random numbers in the shape of a value, so that nothing cancels."""
    found = tape.graph.values[value]
    return torch.rand(found.shape, dtype=getattr(torch, found.dtype)) + 1


def _read(tape: Tape, flow: Flow, value: int, mask: Tensor, factor: float) -> Iterator[Proposal]:
    """Scale the numbers that multiply the part, wherever it is read."""
    readers = _readers(tape, flow, value)
    if not readers:
        return
    probe = _probe(tape, value) * mask
    found: dict[str, Tensor] = {}
    for op in readers:
        for parameter in _parameters(tape, flow, op):
            here = _reached(tape, op.outputs[0], parameter, {value: probe})
            idle = _reached(tape, op.outputs[0], parameter, {value: torch.zeros_like(probe)})
            if here is None or idle is None or bool(idle.any()):
                continue  # a bias, which is added whatever is read
            name, leaf = tape.graph.values[parameter].name, tape.leaves[parameter].detach()
            found[name] = torch.where(here, found.get(name, leaf) * factor, found.get(name, leaf))
    if found:
        yield Proposal("what reads it", found)


def _readers(tape: Tape, flow: Flow, value: int) -> list[Op]:
    """The contractions with a parameter that read a value through layout alone; none where something else does too."""
    found, waiting, seen = [], [value], {value}
    while waiting:
        current = waiting.pop()
        for op in tape.graph.ops:
            if current not in op.inputs or not op.outputs:
                continue
            if sort_name(op) in ops.LAYOUT or "dropout" in op.name:
                waiting += [output for output in op.outputs if output not in seen]
                seen.update(op.outputs)
            elif sort_name(op) in ops.CONTRACTION and list(_parameters(tape, flow, op)):
                found.append(op)
            elif sort_name(op) not in ops.SHAPE_ONLY:
                return []
    return found


def _written(tape: Tape, flow: Flow, value: int, mask: Tensor, factor: float) -> Iterator[Proposal]:
    """Scale the numbers that make the part."""
    found: dict[str, Tensor] = {}
    writers = _writers(tape, flow, value)
    for parameter in writers:
        here = _making(tape, flow, value, parameter, writers, mask)
        if here is None:
            return
        name, leaf = tape.graph.values[parameter].name, tape.leaves[parameter].detach()
        found[name] = torch.where(here, leaf * factor, leaf)
    if found:
        yield Proposal("what writes it", found)


def _projected(tape: Tape, flow: Flow, value: int, what: Intervention) -> Iterator[Proposal]:
    """Remove, or scale, directions in everything that writes a value, along the axis of its last dimension."""
    found: dict[str, Tensor] = {}
    shape = tape.graph.values[value].shape
    first = torch.zeros(shape, dtype=torch.bool)
    first[..., 0] = True
    writers = _writers(tape, flow, value)
    for parameter in writers:
        here = _making(tape, flow, value, parameter, writers, first)
        leaf = tape.leaves[parameter].detach()
        axis = None if here is None else _axis(here, shape[-1])
        if axis is None:
            return
        moved = leaf.movedim(axis, -1)
        if isinstance(what.basis, Directions):
            own = what.basis.encode(moved)
            new = moved + what.basis.decode(own * float(SCALES[what.kind](what)) - own)
        else:
            new = EDITS["project_out"](moved, None, what)
        found[tape.graph.values[parameter].name] = new.movedim(-1, axis).contiguous()
    if found:
        yield Proposal("everything that writes it", found)


def _axis(here: Tensor, width: int) -> int | None:
    """The axis along which only the first place was reached: that of the outputs."""
    for axis, size in enumerate(here.shape):
        if size == width and bool(here.any()) and not bool(here.narrow(axis, 1, size - 1).any()):
            return axis
    return None


def _making(
    tape: Tape, flow: Flow, value: int, parameter: int, writers: dict[int, Op | None], mask: Tensor
) -> Tensor | None:
    """Which numbers of a parameter make the masked part of a value directly, whatever the inputs.

    The other writers are cut off, since they may read what this one writes.
    A contraction is probed with positive random activations, for a unit that happens to be silent is read all the same.
    Rows of a table that these inputs do not look up count as those that they do.
    """
    op = writers[parameter]
    multiplied = op is not None and sort_name(op) in ops.CONTRACTION
    given = {
        other.outputs[0]: torch.zeros(tape.graph.values[other.outputs[0]].shape)
        for other in writers.values() if other is not None and other is not op
    }  # fmt: skip
    if op is not None and multiplied:
        read = ops.active(op, flow.activations)
        given |= {source: _probe(tape, source) for source in read}
    here = _reached(tape, value, parameter, given, mask)
    if here is None or multiplied or here.ndim < 2:
        return here
    return here.any(tuple(range(here.ndim - 1)), keepdim=True).expand(here.shape)


def _writers(tape: Tape, flow: Flow, value: int) -> dict[int, Op | None]:
    """The parameters of all that is added up to a value, each with the op that multiplies activations with it (None for
    what is itself added); none where something else is part of the sum."""
    found: dict[int, Op | None] = {}
    waiting, seen = [value], {value}
    while waiting:
        current = waiting.pop()
        leaf = tape.graph.values[current]
        if leaf.kind == "param":
            found[current] = None
        if leaf.op < 0:
            if leaf.kind != "param":
                return {}
            continue
        op = tape.graph.ops[leaf.op]
        turned = sort_name(op) in ops.SCALING and flow.linear[op.index]  # as rotary embedding does
        if sort_name(op) in _THROUGH or turned:
            moving = ops.active(op, flow.activations)
            inputs = moving if turned else [source for source in op.inputs if _counts(tape, flow, source)]
            waiting += [source for source in inputs if source not in seen]
            seen.update(inputs)
        elif sort_name(op) in ops.CONTRACTION or sort_name(op) == "embedding":
            own = list(_parameters(tape, flow, op))
            if not own:
                return {}
            found |= dict.fromkeys(own, op)
        else:
            return {}
    return found


def _counts(tape: Tape, flow: Flow, value: int) -> bool:
    """Whether a value is an activation or made of parameters, and no index or mask."""
    return value in flow.activations or bool(list(_above(tape, flow, value)))


def _parameters(tape: Tape, flow: Flow, op: Op) -> Iterator[int]:
    """The parameters among an op's inputs, themselves or rearranged."""
    for source in dict.fromkeys(op.inputs):
        yield from _above(tape, flow, source)


def _above(tape: Tape, flow: Flow, value: int) -> Iterator[int]:
    leaf = tape.graph.values[value]
    if leaf.kind == "param":
        yield value
    elif leaf.op >= 0 and value not in flow.activations:
        for source in tape.graph.ops[leaf.op].inputs:
            yield from _above(tape, flow, source)


def _reached(
    tape: Tape, target: int, parameter: int, given: dict[int, Tensor], mask: Tensor | None = None
) -> Tensor | None:
    """Which numbers of a parameter the target (where `mask` is) depends on, when the `given` values are these."""
    leaf = tape.leaves[parameter].detach().clone().requires_grad_()
    world = {**given, parameter: leaf}
    with torch.enable_grad():
        made = execute(tape, plan(tape, [], [target], set(world)), given=world)[target]
        generator = torch.Generator().manual_seed(0)
        weights = torch.rand(made.shape, generator=generator) + 1
        weights = weights if mask is None else weights * mask
        if not made.requires_grad:
            return None
        (found,) = torch.autograd.grad((made * weights).sum(), leaf, allow_unused=True)
    return None if found is None else found != 0
