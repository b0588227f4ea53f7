"""Wiring for attribution graphs: frozen as lifting freezes it, and attention held at the pattern that it had.

With its pattern held, an attention only moves values between positions, so it is linear. Fused calls are opened for
that. What bends behind the last linear map (a cap on logits, a softmax) is held at its derivative, the rest of it going
to the bias; what bends outside blocks elsewhere is held at the factor that it had; what cannot be, becomes a writer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import InputError
from ..graph import Graph, Op, Value
from ..lift import Block, Lifted, Slots
from ..lift.flow import Flow
from ..lift.frozen import Frozen, Reader, tangent
from ..lift.ops import CONTRACTION, ELEMENTWISE, SOFTMAX, active, is_linear, sort_name
from ..run.replay import Plan, Step
from ..run.structure import Ref, swap
from ..run.tape import Call, Tape
from ..run.trace import Trace


def moved(trace: Trace, tape: Tape, lifted: Lifted, value: int) -> int:
    """A value of the lifted tape in another one of the same run."""
    return value if tape is lifted.tape else trace._find(tape, lifted.tape.graph.site(value))[0]


def opened(trace: Trace, lifted: Lifted) -> tuple[Tape, dict[int, int]]:
    """The tape with every attention opened, and the pattern of each attention by the identity of its block."""
    graph = lifted.tape.graph
    fused = {
        id(block): graph.address(graph.ops[block.extra["fused"]])
        for block in lifted.blocks if block.kind == "attention" and "fused" in block.extra
    }  # fmt: skip
    recurrent = {op.inside for op in graph.ops if op.inside}
    tape = trace.tape_with({*fused.values(), *recurrent}) if fused else lifted.tape
    patterns = {name: trace._find(tape, f"{address}//_safe_softmax.0")[0] for name, address in fused.items()}
    for block in lifted.blocks:
        if block.kind == "attention" and "pattern" in block.extra:
            patterns[id(block)] = moved(trace, tape, lifted, block.extra["pattern"])
    return tape, patterns


def held_patterns(tape: Tape, lifted: Lifted, patterns: Collection[int]) -> Flow:
    """The flow of a tape in which patterns are no activations: what only they reach is fixed."""
    flow = Flow(tape, lifted.flow.batch)
    flow.goals, flow.time_major = lifted.flow.goals, lifted.flow.time_major
    makers = tape.graph.values
    moving = {
        value for value in flow.activations
        if makers[value].op < 0 or not active(tape.graph.ops[makers[value].op], flow.activations)
    }  # fmt: skip
    for op in tape.graph.ops:
        if not moving.isdisjoint(op.inputs):
            moving |= {value for value in op.outputs if value in flow.activations and value not in patterns}
    flow.activations = moving
    flow.linear = [is_linear(tape, op, moving) for op in tape.graph.ops]
    # What the network hides from its own training (detach, no_grad) is part of what it computes.
    calls = [call if call.grad else replace(call, grad=True) for call in tape.calls]
    for op in tape.graph.ops:
        if sort_name(op) in ("detach", "data"):
            calls[op.index] = _call(lambda x: x.view_as(x), op.inputs, op.outputs)
    flow.tape = replace(tape, calls=calls)
    return flow


def frozen_wiring(
    flow: Flow, stops: Collection[int], goals: Collection[int], again: Collection[int], read: Reader
) -> tuple[Frozen, list[int]]:
    """Wiring from `stops` to `goals`, affine, and the values that had to become writers for that.

    Values in `again` are written over where they are read: they are goals of what comes before, and stops.
    """
    bends: list[int] = []
    while True:
        frozen = Frozen(flow, [_writer(value) for value in (*(set(stops) - set(again)), *bends)], None)
        op = _first_bend(frozen, flow, {*stops, *bends}, goals, set(again) - set(bends))
        if op is None:
            return frozen.at(read(sorted(frozen.needed))), bends
        factor = _factor(flow, op, read)
        if factor is None:
            bends += [value for value in op.outputs if value in frozen.bent]
        else:
            calls = list(flow.tape.calls)
            calls[op.index] = _call(lambda x, factor=factor: x * factor, active(op, flow.activations), op.outputs)
            flow = copy.copy(flow)
            flow.tape = replace(flow.tape, calls=calls)
            flow.linear = [linear or at == op.index for at, linear in enumerate(flow.linear)]


def last_bends(flow: Flow, output: int, stops: Collection[int]) -> list[Op]:
    """The ops that bend between the last linear map, or one of the stops, and the output."""
    found: list[Op] = []
    while output not in stops and (op := flow.maker(output)) is not None:
        moving = active(op, flow.activations)
        linear = flow.linear[op.index]
        bend = sort_name(op) in ELEMENTWISE | SOFTMAX and len(op.outputs) == 1 and flow.tape.calls[op.index].rng is None
        if len(moving) != 1 or (sort_name(op) in CONTRACTION if linear else not bend):
            break
        found += [] if linear else [op]
        output = moving[0]
    return found


def with_slopes(flow: Flow, bends: Sequence[Op], read: Reader) -> Flow:
    """The flow in which ops are their tangents at this run: its value and its derivative, which also holds where a
    factor would have the wrong sign (a sigmoid)."""
    calls, straight = list(flow.tape.calls), {op.index for op in bends}
    for op in bends:
        (source,) = active(op, flow.activations)
        held = {value: one.detach() for value, one in read([*op.inputs, *op.outputs]).items()}

        def bent(x: Tensor, call: Call = calls[op.index], held: dict[int, Tensor] = held, at: int = source) -> Tensor:
            args, kwargs = swap(
                (call.args, call.kwargs), Ref, lambda ref: (x if ref.id == at else held[ref.id]).clone()
            )
            made: Tensor = call.func(*args, **kwargs)
            return made

        def straightened(
            x: Tensor,
            bent: Callable[[Tensor], Tensor] = bent,
            at: Tensor = held[source],
            made: Tensor = held[op.outputs[0]],
        ) -> Tensor:
            return made + tangent(bent, at, x - at)

        calls[op.index] = _call(straightened, [source], op.outputs)
    found = copy.copy(flow)
    found.tape = replace(flow.tape, calls=calls)
    found.linear = [linear or at in straight for at, linear in enumerate(flow.linear)]
    return found


def _writer(value: int) -> Block:
    return Block("", (), value, Slots(0, 1), "", frozenset())


def _first_bend(frozen: Frozen, flow: Flow, stops: set[int], goals: Collection[int], again: set[int]) -> Op | None:
    """The first op on the way to a goal that is not affine."""
    found: list[Op] = []
    for some in (set(goals) - again, *({goal} for goal in again)):
        for step in way(flow.tape, some, stops - (some & again) | frozen.held).steps:
            op = flow.graph.ops[step.op]
            bent = any(value in frozen.bent for value in op.outputs)
            if bent and not any(value in frozen.bent for value in op.inputs):
                found.append(op)
    return min(found, key=lambda op: op.index, default=None)


def way(tape: Tape, wanted: Collection[int], stops: Collection[int]) -> Plan:
    """The steps from stops, and from what is fixed, to some values: a plan without guards, made by walking back from
    the values alone."""
    makers, listed = tape.graph.values, tape.graph.ops
    ops: set[int] = set()
    given: dict[int, None] = {}
    waiting, seen = list(wanted), set[int]()
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        maker = makers[value].op
        if value in stops or maker < 0:
            given[value] = None
        elif maker not in ops:
            ops.add(maker)
            waiting.extend(listed[maker].inputs)
    steps = [Step(index, {value: value for value in listed[index].inputs}) for index in sorted(ops)]
    return Plan(steps, list(given), {value: value for value in wanted}, len(steps))


def _factor(flow: Flow, op: Op, read: Reader) -> Tensor | None:
    """What an elementwise op multiplied its one activation by in the run."""
    moving = active(op, flow.activations)
    if sort_name(op) not in ELEMENTWISE or len(moving) != 1 or len(op.outputs) != 1:
        return None
    found = read([moving[0], op.outputs[0]])
    before, after = found[moving[0]].detach(), found[op.outputs[0]].detach()
    if before.shape != after.shape or bool(((before == 0) & (after != 0)).any()):
        return None
    return torch.where(before == 0, 0.0, after / torch.where(before == 0, 1.0, before))


def _call(func: Callable[..., Tensor], sources: Sequence[int], made: Sequence[int]) -> Call:
    return Call(func, tuple(map(Ref, sources)), {}, list(enumerate(sources)), tuple(made))


Skip = tuple[int, int, Callable[[Tensor], Tensor]]  # a value that is read, one that is written, and the map between


def with_skips(flow: Flow, skips: Sequence[Skip]) -> tuple[Flow, dict[int, int]]:
    """The flow in which linear paths from what dictionaries read to what they write are ops, `written = entry + map of
    what is read`, and the entries by what is written. Raises InputError where a call makes more than that value."""
    values, listed, calls, entries = list(flow.graph.values), list(flow.graph.ops), list(flow.tape.calls), {}
    for target in dict.fromkeys(skip[1] for skip in skips):
        maker = listed[values[target].op]
        sources = [skip[0] for skip in skips if skip[1] == target]
        if values[target].op < 0 or len(maker.outputs) > 1 or any(values[one].op >= maker.index for one in sources):
            raise InputError(f"A skip path cannot end at '{flow.graph.site(target)}', which is not made by it alone.")
        maps = [skip[2] for skip in skips if skip[1] == target]

        def joined(entry: Tensor, *read: Tensor, maps: Sequence[Callable[[Tensor], Tensor]] = maps) -> Tensor:
            return entry + sum((one(value) for one, value in zip(maps, read, strict=True)), torch.zeros(()))

        entries[target] = entry = len(values)
        values.append(Value(entry, "input", f"entry of {target}", -1, 0, values[target].shape, values[target].dtype))
        listed[maker.index] = replace(maker, name="add", inputs=(entry, *sources))
        calls[maker.index] = _call(joined, (entry, *sources), (target,))
    found = copy.copy(flow)
    found.graph = Graph(values, listed, flow.graph.modules, flow.graph.inputs, flow.graph.outputs)
    found.tape = replace(flow.tape, graph=found.graph, calls=calls)
    found.activations = flow.activations | set(entries.values())
    found.linear = [is_linear(found.tape, op, found.activations) for op in listed]
    return found, entries
