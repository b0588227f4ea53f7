"""Elementwise regions: activations of MLPs and convolutions, gates, states, norms.

A region is a connected set of bends (elementwise nonlinearities and products of activations) with the soft ops between
them. It ends where its values are read by a contraction, attention or norm, where a loop carries them on, and at
residual adds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from . import ops
from .flow import Flow
from .loops import closing
from .norms import only_normalises
from .ops import active, is_product, sort_name

_REDUCTIONS = frozenset("mean sum var std var_mean norm linalg_vector_norm vector_norm logsumexp amax max".split())


@dataclass(frozen=True)
class Region:
    """One value that a region hands on, the ops that make it, and what they read."""

    members: frozenset[int]
    reads: tuple[int, ...]
    write: int
    reduces: bool


def regions(flow: Flow, taken: set[int]) -> list[Region]:
    """The regions of a run outside the ops in `taken`, in order of their writes."""
    bends = [op.index for op in flow.graph.ops if flow.is_bend(op) and op.index not in taken]
    bends = sorted({*bends, *_joiners(flow, set(bends), taken)})
    found: list[Region] = []
    for members in groups(flow, bends, taken, flow.cuts):
        members |= soft_between(flow, members, taken, flow.cuts)
        found += split(flow, members, flow.cuts, flow.useful, flow.graph.outputs)
    for op in flow.graph.ops:
        if flow.moves(op) and op.index not in taken and is_opaque(flow, op):
            reads = tuple(active(op, flow.activations))
            found.append(Region(frozenset({op.index}), reads, op.outputs[0], sort_name(op) in ops.NORMS))
    return sorted(found, key=lambda region: flow.graph.values[region.write].op)


def is_opaque(flow: Flow, op: ops.Op) -> bool:
    """Nonlinear, and neither a bend nor a pooling maximum (which belongs to its reader)."""
    if not active(op, flow.activations):
        return False
    return not (flow.linear[op.index] or flow.is_bend(op) or "max_pool" in op.name)


def _root(group: dict[int, int], item: int) -> int:
    while group.get(item, item) != item:
        group[item] = group.get(group[item], group[item])
        item = group[item]
    return item


def _joiners(flow: Flow, bends: set[int], taken: set[int]) -> set[int]:
    """Sums of nothing but what bends make, and sums with what they make that a loop carries on: the last op of a gated
    or leaky update."""
    found: set[int] = set()
    last = closing(flow)
    for op in flow.graph.ops:
        moving = active(op, flow.activations)
        if op.index in taken or not (op.index in last or (len(moving) > 1 and sort_name(op) in ops.ADDITIVE)):
            continue
        if not moving or not flow.is_soft(op):
            continue
        bent = [_from_bend(flow, value, bends | found, taken) for value in moving]
        if op.index in flow.useful and (all(bent) or (any(bent) and op.index in last)):
            found.add(op.index)
    return found


def _from_bend(flow: Flow, value: int, bends: set[int], taken: set[int]) -> bool:
    waiting, seen = [value], set()
    while waiting:
        current = waiting.pop()
        op = flow.maker(current)
        if op is None or current in flow.cuts or current in seen or op.index in taken:
            continue
        seen.add(current)
        if op.index in bends:
            return True
        if flow.is_soft(op):
            waiting.extend(active(op, flow.activations))
    return False


def groups(flow: Flow, bends: list[int], taken: set[int], cuts: set[int]) -> list[set[int]]:
    """Sets of bends that are connected through soft ops without crossing a cut."""
    group: dict[int, int] = {}
    stops = set(bends)
    for bend in bends:
        for op in _next_bends(flow, bend, stops, taken, cuts):
            group[_root(group, op)] = _root(group, bend)
    gathered: dict[int, set[int]] = {}
    for bend in bends:
        gathered.setdefault(_root(group, bend), set()).add(bend)
    return list(gathered.values())


def _next_bends(flow: Flow, bend: int, bends: set[int], taken: set[int], cuts: set[int]) -> list[int]:
    found, seen = [], set()
    waiting = list(flow.graph.ops[bend].outputs)
    while waiting:
        value = waiting.pop()
        if value in seen or value in cuts:
            continue
        seen.add(value)
        for op in flow.users(value):
            if op.index in taken:
                continue
            if op.index in bends:
                found.append(op.index)
            elif flow.is_soft(op):
                waiting.extend(op.outputs)
    return found


def soft_between(flow: Flow, bends: set[int], taken: set[int], cuts: set[int]) -> set[int]:
    """Soft ops that lie on a way from one bend of a region to another."""
    ahead: set[int] = set()
    for bend in bends:
        waiting = list(flow.graph.ops[bend].outputs)
        while waiting:
            value = waiting.pop()
            if value in cuts:
                continue
            for op in flow.users(value):
                if op.index not in ahead and op.index not in taken and op.index not in bends and flow.is_soft(op):
                    ahead.add(op.index)
                    waiting.extend(op.outputs)
    between: set[int] = set()
    waiting_ops = list(bends)
    while waiting_ops:
        for value in active(flow.graph.ops[waiting_ops.pop()], flow.activations):
            maker = flow.graph.values[value].op
            if maker in ahead and maker not in between:
                between.add(maker)
                waiting_ops.append(maker)
    return between


def _leaves(flow: Flow, value: int, members: set[int], needed: set[int]) -> bool:
    """Whether an op in `needed` outside the members reads a value's numbers."""
    outside = [user for user in flow.users(value) if user.index not in members and user.index in needed]
    return any(sort_name(user) not in ops.SHAPE_ONLY for user in outside)


def split(
    flow: Flow, members: set[int], cuts: set[int], needed: set[int], outputs: Iterable[int]
) -> list[Region]:
    """One region for each value handed on to an op in `needed` or cut off; a later one reads what an earlier one
    wrote."""
    graph = flow.graph
    outputs = set(outputs)
    writes = [
        value
        for op in sorted(members)
        for value in graph.ops[op].outputs
        if value in flow.activations
        and (value in outputs or value in cuts or _leaves(flow, value, members, needed))
    ]
    writes = [value for value in writes if flow.users(value) or value in outputs]
    found = []
    for write in writes:
        own: set[int] = set()
        reads: dict[int, None] = {}
        waiting = [graph.values[write].op]
        while waiting:
            op = waiting.pop()
            if op in own:
                continue
            own.add(op)
            for value in active(graph.ops[op], flow.activations):
                maker = graph.values[value].op
                if maker in members and value not in writes:
                    waiting.append(maker)
                else:
                    reads[value] = None
        ordered = tuple(sorted(reads))
        ordered, absorbed = _absorb(flow, ordered)
        reduces = any(sort_name(graph.ops[op]) in _REDUCTIONS and _normalises(flow, op, own) for op in own)
        reduces = reduces and only_normalises(flow, own, write)
        found.append(Region(frozenset(own | absorbed), ordered, write, reduces))
    return found


def _normalises(flow: Flow, reduction: int, own: set[int]) -> bool:
    """Whether what a reduction gives becomes, in its region, a factor of something that it was computed from."""
    sources = _read_from(flow, flow.graph.ops[reduction].inputs, own)
    waiting, seen = list(flow.graph.ops[reduction].outputs), set[int]()
    while waiting:
        value = waiting.pop()
        for op in flow.users(value):
            if op.index not in own or op.index in seen:
                continue
            seen.add(op.index)
            others = [other for other in active(op, flow.activations) if other != value]
            if is_product(flow.tape, op, flow.activations) and sources & _read_from(flow, others, own):
                return True
            waiting.extend(op.outputs)
    return False


def _read_from(flow: Flow, values: Iterable[int], own: set[int]) -> set[int]:
    """What a region reads to make some of its values, and what that is a sum or rearrangement of."""
    found, waiting, seen = set[int](), list(values), set[int]()
    while waiting:
        value = waiting.pop()
        if value in seen or value not in flow.activations:
            continue
        seen.add(value)
        maker = flow.maker(value)
        if maker is not None and maker.index in own:
            waiting.extend(maker.inputs)
        else:
            found.add(value)
            waiting.extend(maker.inputs if maker is not None and flow.is_soft(maker) else ())
    return found


def _absorb(flow: Flow, reads: tuple[int, ...]) -> tuple[tuple[int, ...], set[int]]:
    """Reads that are rescalings of the same value become that one value."""
    chains = {value: _chain(flow, value) for value in reads}
    counts: dict[int, int] = {}
    for chain in chains.values():
        for value in chain:
            counts[value] = counts.get(value, 0) + 1
    kept: dict[int, None] = {}
    absorbed: set[int] = set()
    for value, chain in chains.items():
        old = chain[-1] if chain[-1] in flow.carried else value
        shared = next((link for link in chain if counts[link] > 1), old)
        kept[shared] = None
        for link in chain[: chain.index(shared)] if shared in chain else []:
            absorbed.add(flow.graph.values[link].op)
    return tuple(sorted(kept)), absorbed


def _chain(flow: Flow, value: int) -> list[int]:
    """`value` and what it is a rescaling, shift or cast of, back to a contraction, a cut or a choice."""
    chain = [value]
    while value not in flow.carried:
        op = flow.maker(value)
        if op is None or not flow.is_soft(op) or sort_name(op) in _REDUCTIONS:
            break
        moving = active(op, flow.activations)
        if len(moving) != 1 or flow.shape(moving[0]) != flow.shape(value):
            break
        value = moving[0]
        chain.append(value)
    return chain
