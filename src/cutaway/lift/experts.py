"""Mixture of experts, by dataflow: a router's logits choose which weights each token meets, and weigh what comes out.

The logits come out of a contraction; a choice (top-k, an arg max) is made from them; contractions with learnt weights
follow on what was chosen, in a loop over experts, in batched products with looked-up weights or in grouped products;
and all of it flows together again in one value before anything is added to the residual stream. What lies between the
logits and that value is one block. Shared experts are MLPs of their own.
"""

from __future__ import annotations

import torch

from ..graph import Op
from . import ops
from .blocks import Block, Read, Slots
from .flow import Flow
from .ops import active, sort_name


def experts(flow: Flow, taken: set[int]) -> list[Block]:
    """Every mixture of experts outside the ops in `taken`, in order of execution."""
    routers: dict[int, list[Op]] = {}
    for op in flow.graph.ops:
        if sort_name(op) in ops.CHOICES and op.index in flow.ancestors and op.index not in taken:
            logits = _logits(flow, op)
            if logits is not None:
                routers.setdefault(logits, []).append(op)
    found = [_block(flow, logits, choices) for logits, choices in routers.items()]
    return [block for block in found if block is not None]


def _logits(flow: Flow, choice: Op) -> int | None:
    """The result of the contraction with weights that a choice is made from."""
    moving = active(choice, flow.activations)
    if not moving or not any(flow.graph.values[value].dtype.startswith("int") for value in choice.outputs):
        return None
    ends = flow.back(moving[0], lambda op: sort_name(op) not in ops.CONTRACTION and op.index not in flow.residual_adds)
    maker = flow.maker(ends[0]) if len(ends) == 1 else None
    weighted = maker is not None and sort_name(maker) in ops.CONTRACTION and flow.linear[maker.index]
    return ends[0] if weighted else None


def _block(flow: Flow, logits: int, choices: list[Op]) -> Block | None:
    graph = flow.graph
    ahead = graph.cone({logits})
    last = {
        value: max((user for user in graph.users[value] if user in flow.ancestors), default=-1) for value in ahead
    }
    alive, write = {logits}, None
    computed = False
    for op in graph.ops[graph.values[logits].op + 1 :]:
        if op.index not in flow.ancestors or not any(value in ahead for value in op.inputs):
            continue
        if op.index in flow.residual_adds:
            return None
        computed = computed or _uses_weights(flow, op)
        alive = {value for value in {*alive, *op.outputs} if last[value] > op.index or value in flow.goals}
        if computed and op.index >= choices[-1].index and len(alive) == 1:
            write = next(iter(alive))
            break
    if write is None or write not in flow.activations:
        return None
    write = _onward(flow, write)
    members = _members(flow, ahead - {logits}, write)
    reads = _reads(flow, logits, members)
    chosen = next(value for value in choices[-1].outputs if graph.values[value].dtype.startswith("int"))
    extra = {"chosen": chosen}
    if (weights := _weights(flow, members, chosen, write)) is not None:
        extra["weights"] = weights
    shape = flow.shape(write)
    return Block(
        "moe", reads, write, Slots(max(len(shape) - 1, 0), 1), "", frozenset(members), extra=extra,
        units=flow.shape(logits)[-1],
    )  # fmt: skip


def _uses_weights(flow: Flow, op: Op) -> bool:
    """Whether an op multiplies activations with learnt weights."""
    if sort_name(op) not in ops.CONTRACTION and "grouped_mm" not in op.name:
        return False
    return any(value in flow.learnt for value in op.inputs)


def _onward(flow: Flow, value: int) -> int:
    """The value after the rearrangements and sums that nothing else takes part in."""
    while True:
        users = [user for user in flow.users(value) if user.index in flow.ancestors]
        if len(users) != 1 or value in flow.goals or len(users[0].outputs) != 1:
            return value
        op = users[0]
        name = sort_name(op)
        collects = flow.is_layout(op) or name == "sum"
        if not collects or active(op, flow.activations) != [value] or name.startswith(("split", "getitem")):
            return value
        value = op.outputs[0]


def _members(flow: Flow, ahead: set[int], write: int) -> set[int]:
    """The ops on the ways from the logits to the write."""
    found: set[int] = set()
    waiting = [write]
    while waiting:
        op = flow.maker(waiting.pop())
        if op is not None and op.index not in found:
            found.add(op.index)
            waiting.extend(value for value in op.inputs if value in ahead)
    return found


def _reads(flow: Flow, logits: int, members: set[int]) -> tuple[Read, ...]:
    made = {value for op in members for value in flow.graph.ops[op].outputs}
    outside: dict[int, None] = {}
    for op in sorted(members):
        outside.update(
            (value, None) for value in active(flow.graph.ops[op], flow.activations) if value not in made
        )
    outside.pop(logits, None)
    outside = {_whole(flow, value): None for value in outside}
    ports = {value: "in" + (str(number) if number else "") for number, value in enumerate(outside)}
    return tuple(
        Read(port, value, Slots(max(len(flow.shape(value)) - 1, 0), 1))
        for value, port in [(logits, "router"), *ports.items()]
    )


def _whole(flow: Flow, value: int) -> int:
    """What a value is a rearrangement of, repeats included."""
    while (op := flow.maker(value)) is not None and flow.is_layout(op):
        moving = active(op, flow.activations)
        if len(moving) != 1 or torch.Size(flow.shape(moving[0])).numel() > torch.Size(flow.shape(value)).numel():
            break
        value = moving[0]
    return value


def neurons(flow: Flow, block: Block) -> dict[str, int]:
    """The hidden activations of experts: `act` where one value holds those of all chosen experts, row by row, and
    `e2.act` where each expert has its own value."""
    last: dict[int, Op] = {}
    for index in sorted(block.members):
        op = flow.graph.ops[index]
        if _uses_weights(flow, op) and not _leads_on(flow, block, op):
            last[index] = op
    hidden = {index: next(v for v in active(op, flow.activations) if v not in flow.learnt) for index, op in last.items()}
    if len(hidden) == 1:
        return {"act": _whole(flow, value) for value in hidden.values()}
    names = {index: _number(flow, op) for index, op in last.items()}
    return {f"e{names[index]}.act": value for index, value in hidden.items() if names[index] is not None}


def _leads_on(flow: Flow, block: Block, op: Op) -> bool:
    """Whether another contraction with learnt weights follows inside the block."""
    waiting, seen = list(op.outputs), set[int]()
    while waiting:
        for user in flow.users(waiting.pop()):
            if user.index in block.members and user.index not in seen:
                if _uses_weights(flow, user):
                    return True
                seen.add(user.index)
                waiting.extend(user.outputs)
    return False


def _number(flow: Flow, op: Op) -> int | None:
    """Which expert's weights an op multiplies with: by the index that they were taken at, or its module's number."""
    for value in op.inputs:
        maker = flow.maker(value)
        if value in flow.learnt and maker is not None:
            for index in maker.inputs:
                held = flow.tape.kept.get(index, flow.tape.leaves.get(index))
                if held is not None and held.numel() == 1 and not held.is_floating_point():
                    return int(held)
            return None
    numbers = [part for part in flow.graph.modules[op.module].path.split(".") if part.isdigit()]
    return int(numbers[-1]) if numbers else None


def _weights(flow: Flow, members: set[int], chosen: int, write: int) -> int | None:
    """The weights of the chosen experts, as the experts' outputs are multiplied with them."""
    shape, found = flow.shape(chosen), None
    for index in sorted(members):
        op = flow.graph.ops[index]
        if _uses_weights(flow, op):
            break
        for value in op.outputs:
            if value in flow.activations and flow.shape(value) == shape and value != write:
                found = value
    return found
