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
from .ops import active, is_linear, is_product, sort_name


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
    ahead = flow.graph.cone({logits})
    write = _write(flow, logits, ahead, choices)
    if write is None:
        return None
    members = _members(flow, ahead - {logits}, write)
    chosen = next(value for value in choices[-1].outputs if flow.graph.values[value].dtype.startswith("int"))
    extra = {"chosen": chosen}
    if (weights := _weights(flow, members, chosen, write)) is not None:
        extra["weights"] = weights
    return Block(
        "moe", _reads(flow, logits, members), write, Slots(max(len(flow.shape(write)) - 1, 0), 1), "",
        frozenset(members), extra=extra, units=flow.shape(logits)[-1],
    )  # fmt: skip


def _write(flow: Flow, logits: int, ahead: set[int], choices: list[Op]) -> int | None:
    """The value in which all that depends on the logits meets after the experts, the last before others take part."""
    last = {
        value: max((user for user in flow.graph.users[value] if user in flow.ancestors), default=-1) for value in ahead
    }
    alive, found, computed, gated = {logits}, None, False, False
    experts = flow.shape(logits)[-1]
    for op in flow.graph.ops[flow.graph.values[logits].op + 1 :]:
        if op.index not in flow.ancestors or ahead.isdisjoint(op.inputs):
            continue
        if op.index in flow.residual_adds or (found is not None and _is_behind(flow, op, ahead, experts)):
            break
        computed = computed or _uses_weights(flow, op)
        gated = gated or is_product(flow.tape, op, flow.activations)
        alive = {value for value in {*alive, *op.outputs} if last[value] > op.index or value in flow.goals}
        if op.index < choices[-1].index or len(alive) != 1 or alive.isdisjoint(flow.activations):
            continue
        if computed:
            found = next(iter(alive))
        elif not gated and not _gates(flow, next(iter(alive))):
            return None  # what was chosen is read by itself, as in a sparse autoencoder
        if alive & set(flow.goals):
            break
    return found


def _is_behind(flow: Flow, op: Op, ahead: set[int], experts: int) -> bool:
    """Whether an op belongs to what follows experts: a norm, other activations taking part, weights of no expert."""
    if sort_name(op) in ops.NORMS or any(value not in ahead for value in active(op, flow.activations)):
        return True
    weights = [flow.shape(value) for value in op.inputs if value in flow.learnt] if _uses_weights(flow, op) else []
    return any(len(shape) < 3 or shape[0] != experts for shape in weights)


def _gates(flow: Flow, value: int) -> bool:
    """Whether a value is multiplied with another activation before any weights are."""
    ends = flow.ahead(value, lambda op: flow.is_soft(op) or sort_name(op) in ops.ELEMENTWISE)
    return bool(ends) and all(is_product(flow.tape, op, flow.activations) for op in ends)


def _uses_weights(flow: Flow, op: Op) -> bool:
    """Whether an op multiplies activations with learnt weights."""
    return sort_name(op) in ops.CONTRACTION | ops.GROUPED and any(value in flow.learnt for value in op.inputs)


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
    moving = {index: set(active(op, flow.activations)) - flow.learnt for index, op in last.items()}
    hidden = {index: min(values) for index, values in moving.items() if values}
    if len(hidden) == 1:
        return {"act": _whole(flow, next(iter(hidden.values())))}
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
    return found if found is None or _is_linear_in(flow, members, found) else None


def _is_linear_in(flow: Flow, members: set[int], value: int) -> bool:
    """Whether what the members make is linear in a value, all else held."""
    moving = {value}
    for index in sorted(members):
        op = flow.graph.ops[index]
        if not moving.isdisjoint(op.inputs):
            if not is_linear(flow.tape, op, moving):
                return False
            moving.update(op.outputs)
    return True
