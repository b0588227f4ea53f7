"""Norms that belong to a writer: those between a block and the residual stream (as in Gemma 2 and OLMo 2).

Such a norm's scale is the writer's, the same for all who read it, whatever each of them sees of other writers' heads.
So the write of the block is moved behind the norm. Where it has slots, its new value is what each slot adds to the
stream, with the norm's scale taken from all of them together: `sum over slots = what the block adds`. Both are put on a
copy of the tape, in place of the ops that lay between.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..graph import Graph, Value
from ..lift import Block, Lifted, Slots
from ..lift.blocks import by_slot
from ..lift.flow import Flow
from ..lift.frozen import Frozen
from ..lift.names import way_out
from ..run.replay import Plan, execute, plan
from ..run.structure import Ref
from ..run.tape import Call
from ..run.worlds import over


def behind_norms(lifted: Lifted, blocks: list[Block]) -> tuple[Flow, list[Block]]:
    """The flow and the blocks with every writer's norm inside its write; the same ones where there is none."""
    flow, found = lifted.flow, []
    for block in blocks:
        moved = _moved(lifted, flow, block) if block.kind in ("attention", "mlp") else None
        flow, block = moved if moved is not None else (flow, block)
        found.append(block)
    return flow, found


def _moved(lifted: Lifted, flow: Flow, block: Block) -> tuple[Flow, Block] | None:
    out, _ = way_out(lifted.flow, block)
    if out is None or out == block.write or len(lifted.flow.shape(out)) != 3 or block.mark not in ("", "h"):
        return None
    between = plan(lifted.flow.tape, [], [out], [block.write])
    steps = [step.op for step in between.steps]
    if len(steps) < 2 or all(lifted.flow.linear[op] for op in steps) or not _exclusive(lifted.flow, block, steps, out):
        return None
    if block.slots.count == 1:
        return flow, replace(block, write=out, slots=Slots(2, 1))
    frozen = Frozen(lifted.flow, [*lifted.sources, *lifted.blocks], None, towards=out)
    return _with_results(flow, block, frozen, steps, out)


def _exclusive(flow: Flow, block: Block, steps: list[int], out: int) -> bool:
    """Whether nothing but the way out reads the write, or what is made of it on the way."""
    made = {block.write} | {value for op in steps for value in flow.graph.ops[op].outputs} - {out}
    outside = {op.index for value in made for op in flow.users(value)} - set(steps)
    return not outside and not made & set(flow.graph.outputs)


def _with_results(flow: Flow, block: Block, frozen: Frozen, steps: list[int], out: int) -> tuple[Flow, Block]:
    """A flow in which the first op on the way out gives each slot's part, and the last one adds them up."""
    graph = flow.graph
    first, last = graph.ops[steps[0]], graph.ops[steps[-1]]
    shape, count = graph.values[out].shape, block.slots.count
    result = len(graph.values)
    value = Value(result, "op", "", first.index, 0, (shape[0], count, *shape[1:]), graph.values[out].dtype)
    listed, calls = list(graph.ops), list(flow.tape.calls)
    listed[first.index] = replace(first, name="head_results", inputs=(block.write,), outputs=(result,))
    calls[first.index] = _call(_results(block, frozen, out), block.write, result)
    listed[last.index] = replace(last, name="sum", inputs=(result,), outputs=(out,))
    calls[last.index] = _call(lambda parts: parts.sum(1), result, out)
    found = copy.copy(flow)
    found.graph = Graph([*graph.values, value], listed, graph.modules, graph.inputs, graph.outputs)
    found.tape = replace(flow.tape, graph=found.graph, calls=calls)
    found.linear = [linear or op == last.index for op, linear in enumerate(flow.linear)]
    found.activations = flow.activations | {result}
    return found, replace(block, write=result, slots=Slots(1, count))


def _call(func: Callable[[Tensor], Tensor], source: int, made: int) -> Call:
    return Call(func, (Ref(source),), {}, [(0, source)], (made,))


def _results(block: Block, frozen: Frozen, out: int) -> Callable[..., Tensor]:
    """[batch, slots, pos, width] from a write: what each slot adds, constants shared out among them; the norm's scale
    is the write's own, or that of the value in `at`."""
    tape, write, count = frozen.flow.tape, block.write, block.slots.count
    whole: Plan = plan(tape, [], [*frozen.needed, out], [write])
    apart = frozen.plan([out], [write])

    def results(z: Tensor, at: Tensor | None = None) -> Tensor:
        now = frozen.at(execute(tape, whole, given={write: z if at is None else at}))
        rows = torch.cat([torch.zeros_like(z)[None], by_slot(z, block.slots)])
        made = over(lambda world: now.run(apart, world)[out], {write: rows})
        return (made[1:] - made[0] * (1 - 1 / count)).movedim(0, 1)

    return results
