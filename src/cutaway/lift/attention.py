"""Attention, by dataflow: a softmax between two products of activations, fused or written out."""

from __future__ import annotations

from ..graph import Op
from ..run.structure import Ref
from . import ops
from .blocks import Block, Read, Slots
from .flow import Flow
from .ops import active, sort_name


def attentions(flow: Flow) -> list[Block]:
    """Every attention of a run as a block with reads q, k and v and the write z; slots are heads."""
    found = []
    for op in flow.graph.ops:
        if op.index not in flow.useful:
            continue
        if sort_name(op) == ops.SDPA:
            found.append(_fused(flow, op))
        elif sort_name(op) in ops.SOFTMAX:
            block = _written_out(flow, op)
            if block is not None:
                found.append(block)
    return found


def _fused(flow: Flow, op: Op) -> Block:
    call = flow.tape.calls[op.index]
    names = ("query", "key", "value")
    given = [call.args[place] if place < len(call.args) else call.kwargs[name] for place, name in enumerate(names)]
    values = [item.id for item in given if isinstance(item, Ref)]
    write = op.outputs[0]
    reads = tuple(Read(port, value, _heads(flow, value)) for port, value in zip(("q", "k", "v"), values, strict=True))
    members = frozenset({op.index})
    return Block("attention", reads, write, _heads(flow, write), "h", members, extra={"fused": op.index})


def _written_out(flow: Flow, softmax: Op) -> Block | None:
    """softmax(f(q k^T)) v, with anything elementwise, masks and rearrangement between."""
    below = active(softmax, flow.activations)
    if not below or not softmax.outputs:
        return None
    inside: set[int] = {softmax.index}
    scores = _product_before(flow, below[0], inside) or _product_before(flow, below[0], inside, learnt=True)
    output = _product_after(flow, softmax.outputs[0], inside)
    if scores is None or output is None:
        return None
    pattern_side = flow.graph.cone({softmax.outputs[0]})
    value = [source for source in active(output, flow.activations) if source not in pattern_side]
    query_key = _sides(flow, scores)
    if len(value) != 1 or len(query_key) != 2:
        return None
    ports = zip(("q", "k", "v"), (query_key[0], query_key[1], value[0]), strict=True)
    axes = {**_einsum_heads(flow, output), **_einsum_heads(flow, scores)}
    reads = tuple(
        Read(port, source, _heads(flow, source, axes[source]))
        if axes.get(source, 1) != 1
        else Read(port, _untransposed(flow, source), _heads(flow, source))
        for port, source in ports
    )
    write = output.outputs[0]
    members = _between(flow, {read.value for read in reads}, write) | inside
    extra = {"pattern": softmax.outputs[0], "scores": below[0]}
    slots = _heads(flow, write, axes.get(write, 1))
    return Block("attention", reads, write, slots, "h", frozenset(members), extra=extra)


def _operands(flow: Flow, op: Op) -> list[int]:
    """The op's tensor operands in order of its arguments, twice if the same tensor stands twice."""
    call = flow.tape.calls[op.index]
    listed = [item.id for item in call.args if isinstance(item, Ref)]
    listed += [item.id for item in call.kwargs.values() if isinstance(item, Ref)]
    nested = [
        item.id for group in call.args if isinstance(group, (list, tuple)) for item in group if isinstance(item, Ref)
    ]
    if op.name == "rmatmul":
        listed = listed[::-1]
    return listed + nested or list(op.inputs)


def _sides(flow: Flow, op: Op) -> list[int]:
    """What a contraction multiplies: its activations, and a batch of matrices that is none (learnt queries, say)."""
    given = _operands(flow, op)
    given = given[1:] if sort_name(op) in ("addmm", "baddbmm", "addbmm") else given
    moving = [value for value in given if value in flow.activations]
    if len(moving) == 1 and sort_name(op) != "linear" and all(len(flow.shape(value)) > 2 for value in given):
        return given
    return moving


def _is_two_sided(flow: Flow, op: Op, learnt: bool = False) -> bool:
    if sort_name(op) not in ops.CONTRACTION or sort_name(op) in ops.CONVOLUTION:
        return False
    sides = _sides(flow, op)
    return len(sides) >= 2 and (learnt or all(value in flow.activations for value in sides))


def _product_before(flow: Flow, value: int, inside: set[int], learnt: bool = False) -> Op | None:
    """The product of activations that a softmax's input comes from; `learnt`: one side may be none."""
    waiting, seen = [value], set()
    while waiting:
        current = waiting.pop(0)
        op = flow.maker(current)
        if op is None or current in seen:
            continue
        seen.add(current)
        if _is_two_sided(flow, op, learnt):
            inside.add(op.index)
            return op
        if flow.linear[op.index] and sort_name(op) not in ops.CONTRACTION or sort_name(op) in ops.ELEMENTWISE:
            inside.add(op.index)
            waiting.extend(active(op, flow.activations))
    return None


def _product_after(flow: Flow, value: int, inside: set[int]) -> Op | None:
    """The product of activations that a softmax's output goes into."""
    waiting, seen = [value], set()
    while waiting:
        current = waiting.pop(0)
        if current in seen:
            continue
        seen.add(current)
        for op in flow.users(current):
            if _is_two_sided(flow, op):
                inside.add(op.index)
                return op
            if flow.linear[op.index] and sort_name(op) not in ops.CONTRACTION:
                inside.add(op.index)
                waiting.extend(op.outputs)
    return None


def _untransposed(flow: Flow, value: int) -> int:
    """The value before the transposition that a key gets for its product, and before a scaling of what is."""
    found, op = value, flow.maker(value)
    while op is not None and flow.linear[op.index]:
        moves = sort_name(op) in ("transpose", "mT", "swapaxes", "contiguous", "clone")
        source = next(iter(active(op, flow.activations)), -1)
        if source < 0 or not (moves or sort_name(op) in ops.SCALING) or flow.shape(source)[:1] != flow.shape(value)[:1]:
            break
        if _head_axis_moves(flow, op, value):
            break
        value, op = source, flow.maker(source)
        found = value if moves else found
    return found


def _head_axis_moves(flow: Flow, op: Op, value: int) -> bool:
    before, after = flow.shape(active(op, flow.activations)[0]), flow.shape(value)
    return len(before) > 3 and before[1] != after[1]


def _einsum_heads(flow: Flow, op: Op) -> dict[int, int]:
    """The axis of heads in what an einsum of two tensors reads and writes: the one axis, after the first, of all."""
    equation = next(iter(flow.tape.calls[op.index].args), None)
    if sort_name(op) != "einsum" or not isinstance(equation, str) or "->" not in equation or "." in equation:
        return {}
    terms = equation.replace(" ", "").replace("->", ",").split(",")
    shared = [letter for letter in terms[-1][1:] if all(letter in term for term in terms)]
    values = [*_operands(flow, op), op.outputs[0]]
    if len(shared) != 1 or len(values) != len(terms):
        return {}
    return {value: term.index(shared[0]) for value, term in zip(values, terms, strict=True)}


def _heads(flow: Flow, value: int, axis: int = 1) -> Slots:
    shape = flow.shape(value)
    if len(shape) >= 4:
        return Slots(axis, shape[axis])
    if len(shape) == 3 and shape[0] != flow.batch and flow.batch and shape[0] % flow.batch == 0:
        return Slots(0, shape[0] // flow.batch, tiled=True)
    return Slots(max(len(shape) - 1, 0), 1)


def _between(flow: Flow, starts: set[int], end: int) -> set[int]:
    """Ops on the ways from `starts` to `end`."""
    ahead = flow.graph.cone(starts)
    found: set[int] = set()
    waiting, seen = [end], set(starts)
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        op = flow.maker(value)
        if op is not None and value in ahead:
            found.add(op.index)
            waiting.extend(op.inputs)
    return found
