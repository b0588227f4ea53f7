"""Elementwise regions: activations of MLPs and convolutions, gates, states, norms.

A region is a connected set of bends (elementwise nonlinearities and products of activations) with the soft ops between
them. It ends where its values are read by a contraction, attention or norm, where a loop carries them on, and at
residual adds.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import ops
from .flow import Flow
from .ops import active, sort_name

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
    group = _groups(flow, bends, taken)
    gathered: dict[int, set[int]] = {}
    for bend in bends:
        gathered.setdefault(_root(group, bend), set()).add(bend)
    found: list[Region] = []
    for members in gathered.values():
        found += _split(flow, members | _soft_between(flow, members, taken))
    for op in flow.graph.ops:
        if flow.moves(op) and op.index not in taken and _is_opaque(flow, op):
            reads = tuple(active(op, flow.activations))
            found.append(Region(frozenset({op.index}), reads, op.outputs[0], sort_name(op) in ops.NORMS))
    return sorted(found, key=lambda region: flow.graph.values[region.write].op)


def _is_opaque(flow: Flow, op: ops.Op) -> bool:
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
    """Sums of nothing but what bends make: the last op of a gated update."""
    found: set[int] = set()
    for op in flow.graph.ops:
        moving = active(op, flow.activations)
        if op.index in taken or len(moving) < 2 or sort_name(op) not in ops.ADDITIVE or not flow.is_soft(op):
            continue
        if op.index in flow.useful and all(_from_bend(flow, value, bends | found, taken) for value in moving):
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


def _groups(flow: Flow, bends: list[int], taken: set[int]) -> dict[int, int]:
    """Union-find parents of bends connected through soft ops without crossing a cut."""
    group: dict[int, int] = {}
    stops = set(bends)
    for bend in bends:
        for op in _next_bends(flow, bend, stops, taken):
            group[_root(group, op)] = _root(group, bend)
    return group


def _next_bends(flow: Flow, bend: int, bends: set[int], taken: set[int]) -> list[int]:
    found, seen = [], set()
    waiting = list(flow.graph.ops[bend].outputs)
    while waiting:
        value = waiting.pop()
        if value in seen or value in flow.cuts:
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


def _soft_between(flow: Flow, bends: set[int], taken: set[int]) -> set[int]:
    """Soft ops that lie on a way from one bend of a region to another."""
    ahead: set[int] = set()
    for bend in bends:
        waiting = list(flow.graph.ops[bend].outputs)
        while waiting:
            value = waiting.pop()
            if value in flow.cuts:
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


def _split(flow: Flow, members: set[int]) -> list[Region]:
    """One region for each value handed on; a later one reads what an earlier one wrote."""
    graph = flow.graph
    outputs = set(graph.outputs)
    writes = [
        value
        for op in sorted(members)
        for value in graph.ops[op].outputs
        if value in flow.activations
        and (value in outputs or value in flow.cuts or any(user.index not in members for user in flow.users(value)))
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
        reduces = any(sort_name(graph.ops[op]) in _REDUCTIONS and _is_bent(flow, op, own) for op in own)
        found.append(Region(frozenset(own | absorbed), ordered, write, reduces))
    return found


def _is_bent(flow: Flow, reduction: int, own: set[int]) -> bool:
    """Whether what a reduction gives meets a nonlinearity or a product in its region, as it does in a norm."""
    waiting, seen = [reduction], set[int]()
    while waiting:
        for value in flow.graph.ops[waiting.pop()].outputs:
            for op in flow.users(value):
                if op.index in own and op.index not in seen:
                    if flow.is_bend(op):
                        return True
                    seen.add(op.index)
                    waiting.append(op.index)
    return False


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
        shared = next((link for link in chain if counts[link] > 1), value)
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
