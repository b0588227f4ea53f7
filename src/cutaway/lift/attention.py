"""Attention, by dataflow: a softmax between two products of activations, fused or written out."""

from __future__ import annotations

import torch

from ..graph import Op
from ..run.structure import Ref, swap, tensors
from . import ops
from .axes import head_count
from .batch import follows
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
        elif sort_name(op) in ops.SOFTMAX or sort_name(op) == "exp":
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
    reads = tuple(Read(port, value, heads_of(flow, value)) for port, value in zip(("q", "k", "v"), values, strict=True))
    members = frozenset({op.index})
    return Block("attention", reads, write, heads_of(flow, write), "h", members, extra={"fused": op.index})


def _written_out(flow: Flow, softmax: Op) -> Block | None:
    """softmax(f(q k^T)) v, with anything elementwise, masks and rearrangement between."""
    below = active(softmax, flow.activations)
    if not below or not softmax.outputs:
        return None
    inside: set[int] = {softmax.index}
    scores = _product_before(flow, below[0], inside) or _product_before(flow, below[0], inside, learnt=True)
    after = _product_after(flow, softmax.outputs[0], inside) if scores is not None else None
    if scores is None or after is None:
        return None
    output, pattern = after
    if not _is_normal(flow, softmax, scores, pattern):
        return None
    pattern_side = flow.graph.cone({softmax.outputs[0]})
    value = [source for source in active(output, flow.activations) if source not in pattern_side]
    query_key = _sides(flow, scores)
    if len(value) != 1 or len(query_key) != 2:
        return None
    ports = (("q", query_key[0]), ("k", query_key[1]), ("v", value[0]))
    tiled = _beside_examples(flow, query_key[0])
    axes = {**einsum_slots(flow, output, value[0]), **einsum_slots(flow, scores)}
    reads = tuple(
        _read(flow, port, source, axes.get(source), scores if port != "v" else output) for port, source in ports
    )
    write = output.outputs[0]
    if tiled is not None:
        axes[write] = tiled
        reads = tuple(Read(read.port, read.value, tiled) for read in reads)
    members = _between(flow, {read.value for read in reads}, write) | inside
    reads += _gates(flow, softmax, pattern, reads)
    extra = {"pattern": pattern, "scores": below[0]}
    slots = axes.get(write) or heads_of(flow, write, unit=_unit(flow, output, value[0]))
    return Block("attention", reads, write, slots, "h", frozenset(members), extra=extra)


def _read(flow: Flow, port: str, value: int, slots: Slots | None, product: Op) -> Read:
    """A port's read, with its heads, before what only prepares it for its product."""
    if slots is not None:
        return Read(port, value, slots)
    unit = _unit(flow, product, value, score=port != "v")
    found, turned = _untransposed(flow, value)
    return Read(port, found, heads_of(flow, found, unit=-3 - unit if turned else unit))


def _beside_examples(flow: Flow, query: int) -> Slots | None:
    """The heads of an attention in windows, where they lie beside the examples on the first axis."""
    shape = flow.shape(query)
    if len(shape) != 4 or not flow.batch or shape[0] == flow.batch or shape[0] % flow.batch:
        return None
    count = head_count(flow, query)
    return Slots(0, count, tiled=True) if count > 1 and count * flow.batch == shape[0] else None


def _gates(flow: Flow, softmax: Op, pattern: int, reads: tuple[Read, ...]) -> tuple[Read, ...]:
    """What else an attention reads to change its pattern after the softmax."""
    known = flow.graph.cone({read.value for read in reads})
    path = sorted(_between(flow, {softmax.outputs[0]}, pattern))
    given = [value for op in path for value in active(flow.graph.ops[op], flow.activations) if value not in known]
    found = dict.fromkeys(given)
    return tuple(
        Read(f"gate{place or ''}", value, Slots(max(len(flow.shape(value)) - 1, 0), 1))
        for place, value in enumerate(found)
    )


def _unit(flow: Flow, product: Op, value: int, score: bool = False) -> int:
    """The axis, from the end, of a head's own dimensions in an operand of a matrix product: the one that scores sum
    over, and the one that values do not."""
    sides = _sides(flow, product)
    if sort_name(product) not in ("matmul", "rmatmul", "bmm", "baddbmm") or value not in sides or len(sides) != 2:
        return -1
    second = value == sides[1]
    return -2 if second == score else -1


def _is_normal(flow: Flow, op: Op, scores: Op, pattern: int) -> bool:
    """Whether what an exponential of scores leads to is divided by a sum of exponentials: it is a softmax by hand."""
    if sort_name(op) != "exp":
        return True
    between = _between(flow, {scores.outputs[0]}, pattern)
    names = {index: sort_name(flow.graph.ops[index]) for index in between}
    if "logsumexp" in names.values():
        return True
    made = flow.graph.cone({op.outputs[0]})
    sums = [flow.graph.ops[index] for index, name in names.items() if name == "sum"]
    divided = any(name in ("div", "truediv", "divide", "idiv", "itruediv", "mul") for name in names.values())
    return divided and any(value in made for sum_ in sums for value in sum_.inputs)


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
        eased = sort_name(op) in ops.ELEMENTWISE | ops.CHOICES  # a choice keeps some scores alone
        if flow.linear[op.index] and sort_name(op) not in ops.CONTRACTION or eased:
            inside.add(op.index)
            waiting.extend(active(op, flow.activations))
    return None


def _product_after(flow: Flow, value: int, inside: set[int]) -> tuple[Op, int] | None:
    """The product of activations that a softmax's output goes into, and what of it comes out of the last nonlinear op
    on the way: it may be renormalised, gated or exponentiated there."""
    shape = flow.shape(value)
    waiting, seen = [(value, value)], set()
    while waiting:
        current, pattern = waiting.pop(0)
        if current in seen:
            continue
        seen.add(current)
        for op in flow.users(current):
            if _is_two_sided(flow, op):
                inside.add(op.index)
                return op, pattern
            if flow.linear[op.index] and sort_name(op) not in ops.CONTRACTION:
                inside.add(op.index)
                waiting.extend((made, pattern) for made in op.outputs)
            elif flow.is_bend(op) and len(op.outputs) == 1 and flow.shape(op.outputs[0]) == shape:
                inside.add(op.index)
                waiting.append((op.outputs[0], op.outputs[0]))
    return None


def _untransposed(flow: Flow, value: int) -> tuple[int, bool]:
    """The value before the transposition that a key gets for its product, and before a scaling of what is; and whether
    its last two axes are the other way round there."""
    found, op, turned, flips = value, flow.maker(value), False, False
    while op is not None and flow.linear[op.index]:
        moves = sort_name(op) in ("transpose", "mT", "swapaxes", "permute", "contiguous", "clone")
        source = next(iter(active(op, flow.activations)), -1)
        if source < 0 or not (moves or sort_name(op) in ops.SCALING) or flow.shape(source)[:1] != flow.shape(value)[:1]:
            break
        order, rank = permutation(flow, op) if moves else list(range(len(flow.shape(value)))), len(flow.shape(value))
        if order[:-2] != list(range(rank - 2)) or len(order) != rank:
            break
        flips ^= order[-2:] == [rank - 1, rank - 2]
        value, op = source, flow.maker(source)
        if moves:
            found, turned = value, flips
    return found, turned


def permutation(flow: Flow, op: Op) -> list[int]:
    """Which axis of what it reads each axis of a transposition's result is: seen from what it does to axes of different
    lengths."""
    call = flow.tape.calls[op.index]
    rank = len(flow.shape(active(op, flow.activations)[0]))
    sizes = [axis + 2 for axis in range(rank)]
    args, kwargs = swap((call.args, call.kwargs), Ref, lambda ref: torch.empty(sizes, device="meta"))
    return [size - 2 for size in next(tensors(call.func(*args, **kwargs))).shape]


def einsum_slots(flow: Flow, op: Op, weighed: int = -1) -> dict[int, Slots]:
    """The heads in what an einsum of two tensors reads and writes, by its letters: heads are in all terms and are no
    examples. A head's own dimensions are what scores sum over, and what only values (`weighed`) and the result have."""
    equation = next(iter(flow.tape.calls[op.index].args), None)
    if sort_name(op) != "einsum" or not isinstance(equation, str) or "->" not in equation or "." in equation:
        return {}
    terms = equation.replace(" ", "").replace("->", ",").split(",")
    values = [*_operands(flow, op), op.outputs[0]]
    if len(terms) != 3 or len(values) != 3:
        return {}
    sizes = dict(zip("".join(terms), (size for value in values for size in flow.shape(value)), strict=False))
    shared = [letter for letter in terms[-1] if all(letter in term for term in terms)]
    if len(shared) == 2:
        batch = _examples(flow, op, [terms[-1].index(letter) for letter in shared], [sizes[x] for x in shared])
        if batch is None:
            return {}
        shared = [shared[1 - batch], shared[batch]]
    elif len(shared) != 1 or shared[0] == terms[-1][0]:
        return {}
    first = shared[1] if len(shared) == 2 else terms[-1][0]
    bearing = [2, values.index(weighed)] if weighed in values[:2] else [0, 1]
    own = [x for x in terms[bearing[0]] if all((x in term) == (place in bearing) for place, term in enumerate(terms))]
    found = {}
    for value, term in zip(values, terms, strict=True):
        unit = term.index(own[0]) - len(term) if own and own[0] in term else -1
        begin = term.index(first) if first in term else 0
        found[value] = Slots(term.index(shared[0]), sizes[shared[0]], unit=unit, first=begin)
    return found


def _examples(flow: Flow, op: Op, places: list[int], sizes: list[int]) -> int | None:
    """Which of two axes of an op's result holds the examples: by its length, else by what changes with their order."""
    fitting = [place for place, size in enumerate(sizes) if size == flow.batch]
    if len(fitting) == 2:
        axis = follows(flow, op.outputs[0])
        fitting = [places.index(axis)] if axis in places else fitting[:1]
    return fitting[0] if len(fitting) == 1 else None


def heads_of(flow: Flow, value: int, axis: int = 1, unit: int = -1) -> Slots:
    """The heads of a value whose axes nothing tells: the second axis, or part of the first."""
    shape = flow.shape(value)
    if len(shape) >= 4:
        return Slots(axis, shape[axis], unit=unit)
    if len(shape) == 3 and shape[0] != flow.batch and flow.batch and shape[0] % flow.batch == 0:
        return Slots(0, shape[0] // flow.batch, tiled=True, unit=unit)
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
