"""Mixtures of experts as writers with a slot an expert.

A mixture's write is a sum over experts, in which they cannot be told apart any more. It is linear in the weights of the
chosen experts, so what one expert adds is the write with the weights of all others at zero. These parts and their sum
are put on a copy of the tape, in place of the block's last ops; a routing that changes with what is read is followed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import DivergenceError, InputError
from ..graph import Graph, Value
from ..lift import Block, Slots
from ..lift.flow import Flow
from ..lift.frozen import unguarded
from ..run.replay import execute, plan
from ..run.structure import Ref
from ..run.tape import Call


def by_expert(flow: Flow, blocks: list[Block]) -> tuple[Flow, list[Block]]:
    """The flow and the blocks with a slot for each expert; the same ones where there are no experts."""
    found = []
    for block in blocks:
        if block.kind == "moe" and "weights" in block.extra and len(block.members) > 1:
            flow, block = _with_parts(flow, block)
        found.append(block)
    return flow, found


def _with_parts(flow: Flow, block: Block) -> tuple[Flow, Block]:
    """A flow in which the block's last op but one gives each expert's part, and its last one adds them up."""
    graph = flow.graph
    early, last = sorted(block.members)[-2:]
    reads = tuple(read.value for read in block.reads)
    if last != graph.values[block.write].op or max(graph.values[value].op for value in reads) > early:
        return flow, block
    shape, result = graph.values[block.write].shape, len(graph.values)
    value = Value(
        result, "op", "", early, 0, (shape[0], block.units, *shape[1:]), graph.values[block.write].dtype
    )
    listed, calls = list(graph.ops), list(flow.tape.calls)
    listed[early] = replace(listed[early], name="expert_results", inputs=reads, outputs=(result,))
    slots = list(enumerate(reads))
    calls[early] = Call(_parts(flow, block), tuple(map(Ref, reads)), {}, slots, (result,))
    listed[last] = replace(listed[last], name="sum", inputs=(result,), outputs=(block.write,))
    calls[last] = Call(lambda parts: parts.sum(1), (Ref(result),), {}, [(0, result)], (block.write,))
    found = copy.copy(flow)
    found.graph = Graph([*graph.values, value], listed, graph.modules, graph.inputs, graph.outputs)
    found.tape = replace(flow.tape, graph=found.graph, calls=calls)
    found.linear = [linear or op == last for op, linear in enumerate(flow.linear)]
    found.linear[early] = False
    found.activations = flow.activations | {result}
    return found, replace(block, write=result, slots=Slots(1, block.units), mark="e")


def _parts(flow: Flow, block: Block) -> Callable[..., Tensor]:
    """[batch, experts, …] from a block's reads: what each expert adds."""
    reads = [read.value for read in block.reads]
    weights, chosen = block.extra["weights"], block.extra["chosen"]
    route = unguarded(flow.tape, plan(flow.tape, [], [weights, chosen], reads))
    rest = unguarded(flow.tape, plan(flow.tape, [], [block.write], [weights, chosen, *reads]))

    def parts(*given: Tensor) -> Tensor:
        known = dict(zip(reads, given, strict=True))
        known |= execute(flow.tape, route, given=known)
        whole = known[weights]
        made = []
        for expert in range(block.units):
            known[weights] = torch.where(known[chosen] == expert, whole, 0)
            try:
                made.append(execute(flow.tape, rest, given=known)[block.write])
            except DivergenceError:
                raise InputError(
                    f"Between the clean and the corrupted run '{block.name}' would use other experts than in the clean "
                    "one, and this network computes only those it uses; compare inputs that use the same experts, or "
                    "have them computed in one batch."
                ) from None
        return torch.stack(made, 1)

    return parts
