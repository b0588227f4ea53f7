"""Scans: state-space layers, linear attention and hand-written linear recurrences, each one block.

A scan is a connected set of elementwise ops and products of activations, with no weight between them, in which a state
goes through a linear recurrence, or, where the states are never made (chunked forms), activations are multiplied by
activations more than once. Its write is what a contraction with weights reads next; a scan that is read at every step
(a readout inside the loop) is a block a step, as a recurrent cell is.

What a read does names its port: `in` enters the state, `decay` also scales it, `read` reads it out, `gate` multiplies
what was read out, `carry` is the state of the step before.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from ..graph import Op
from . import ops
from .axes import Channels, Source, behind, source_of
from .blocks import Block, Read, Slots
from .flow import Flow
from .ops import active, sort_name
from .regions import Region, groups, is_opaque, soft_between, split

_PORTS = ("carry", "decay", "in", "read", "gate")


@dataclass
class _Scan:
    """A connected set of ops, the recurrences in it, and its products of two activations."""

    members: set[int]
    path: set[int]
    states: list[tuple[int, ...]]
    mixing: set[int]


def scans(flow: Flow, taken: set[int]) -> list[Block]:
    """Every scan of a run outside the ops in `taken`, in order of execution."""
    needed = flow.ancestors
    mixing = {op.index for op in flow.graph.ops if op.index not in taken and op.index in needed and _mixes(flow, op)}
    path = {op for found in flow.looped.recurrences for op in found.path if op not in taken and op in needed}
    if not path and len(mixing) < 2:
        return []
    found: list[Block] = []
    for number, scan in enumerate(_scans(flow, mixing, path, taken)):
        loops = [loop for loop, item in enumerate(flow.looped.recurrences) if item.path & scan.path]
        found += _blocks(flow, scan, ("loop", loops[0]) if loops else ("scan", number))
    return found


def _mixes(flow: Flow, op: Op) -> bool:
    """Whether an op contracts activations with activations."""
    return sort_name(op) in ops.MIXING and flow.moves(op) and not flow.linear[op.index]


def _is_weighted(flow: Flow, op: Op, given: set[int]) -> bool:
    """Whether an op contracts an activation with something that was learnt or given, not with zeros or a mask."""
    return sort_name(op) in ops.CONTRACTION and flow.linear[op.index] and any(
        value in given for value in op.inputs if value not in flow.activations
    )


def _scans(flow: Flow, mixing: set[int], path: set[int], taken: set[int]) -> list[_Scan]:
    """The connected sets that are scans."""
    graph = flow.graph
    given = graph.cone({value.id for value in graph.values if value.op < 0}, ops.SHAPE_ONLY)  # no zeros, no masks
    listed = [op for op in flow.graph.ops if op.index not in taken and op.index in flow.ancestors and flow.moves(op)]
    hard = [op for op in listed if _is_weighted(flow, op, given)]
    convolved = {op.index for op in listed if flow.is_bend(op) and _follows_convolution(flow, op)}
    joined = [
        op.index
        for op in listed
        if (flow.is_bend(op) or op.index in path or sort_name(op) in ops.NORMS or is_opaque(flow, op))
        and not (op.index in convolved or _is_weighted(flow, op, given))
    ]
    unweighted = {op.index for op in listed if sort_name(op) in ops.MIXING and not _is_weighted(flow, op, given)}
    joined = sorted({*joined, *mixing, *unweighted})
    attended = [flow.graph.ops[op] for op in taken]
    known = {value for op in convolved for value in flow.graph.ops[op].outputs}
    cuts = flow.read_by([*hard, *attended], flow.carried | known, collected=False)
    found = []
    for members in groups(flow, joined, taken, cuts):
        if not members & path and len(members & mixing) < 2:
            continue
        whole = members | soft_between(flow, members, taken, cuts)
        whole |= _rearranged(flow, whole)
        items = [item for item in flow.looped.recurrences if item.path & members]
        states = [chain for item in items for chain in item.states]
        around = {op for item in items for op in item.path}
        found.append(_Scan(_without_last_norms(flow, whole), around, states, members & mixing))
    return found


def _follows_convolution(flow: Flow, op: Op) -> bool:
    """Whether an op is the nonlinearity of a convolution."""
    moving = set(active(op, flow.activations))
    if len(moving) != 1 or sort_name(op) not in ops.ELEMENTWISE:
        return False
    makers = [flow.maker(end) for end in flow.back(moving.pop(), flow.is_soft)]
    return all(maker is not None and sort_name(maker) in ops.CONVOLUTION for maker in makers)


def _rearranged(flow: Flow, members: set[int]) -> set[int]:
    """The ops that only collect and rearrange what members make: steps stacked, heads merged."""
    made = {value for op in members for value in flow.graph.ops[op].outputs}
    found: set[int] = set()
    waiting = [user.index for value in made for user in flow.users(value) if user.index not in members]
    heapify(waiting)
    while waiting:
        op = flow.graph.ops[heappop(waiting)]
        moving = active(op, flow.activations)
        if op.index in found or op.index not in flow.ancestors or not flow.is_layout(op):
            continue
        if moving and all(value in made for value in moving):
            found.add(op.index)
            made.update(op.outputs)
            for user in (user for value in op.outputs for user in flow.users(value)):
                heappush(waiting, user.index)
    return found


def _without_last_norms(flow: Flow, members: set[int]) -> set[int]:
    """Members without the norms after which nothing but rearrangement follows: those belong to the next reader."""
    for index in sorted(members, reverse=True):
        op = flow.graph.ops[index]
        if sort_name(op) not in ops.NORMS:
            continue
        after, waiting = set[int](), list(op.outputs)
        while waiting:
            for user in flow.users(waiting.pop()):
                if user.index in members and user.index not in after:
                    after.add(user.index)
                    waiting.extend(user.outputs)
        if all(flow.is_layout(flow.graph.ops[item]) for item in after):
            members = members - after - {index}
    return members


def _blocks(flow: Flow, scan: _Scan, key: tuple[object, ...]) -> list[Block]:
    """A scan's blocks: one, or one for each value that it hands on; the steps of one loop share a key."""
    found: list[Block] = []
    pieces = split(flow, scan.members, set(), flow.ancestors, flow.goals)
    writes = {piece.write for piece in pieces}
    for piece in pieces:
        channels = _write_slots(flow, scan, piece.write)
        block = Block("ssm", (), piece.write, channels.slots, channels.mark, piece.members, key=key)
        block.reads = _reads(flow, scan, piece, channels, writes)
        found.append(block)
    found[-1].states = tuple(tuple(chain) for chain in scan.states)
    return found


def _write_slots(flow: Flow, scan: _Scan, write: int) -> Channels:
    """Heads where states or parameters are by head, else channels."""
    shape = flow.shape(write)
    axis = max(len(shape) - 1, 0)
    width = shape[axis] if shape else 1
    heads = _heads(flow, scan, width)
    folded = len(shape) == 4 and heads == shape[2]
    if folded or (heads > 1 and width % heads == 0):
        return Channels(Slots(2 if folded else axis, heads), "h", width * (heads if folded else 1))
    return Channels(Slots(axis, width), "c", width)


def _heads(flow: Flow, scan: _Scan, width: int) -> int:
    states = [flow.shape(chain[0]) for chain in scan.states]
    for shape in states:
        if len(shape) == 4:
            return shape[1]
    if states:
        return 1
    sizes = Counter(max(shape) for value in sorted(_parameters(flow, scan)) if _is_line(shape := flow.shape(value)))
    return next((size for size, _ in sizes.most_common() if 1 < size < width and width % size == 0), 1)


def _is_line(shape: tuple[int, ...]) -> bool:
    return sum(size > 1 for size in shape) == 1


def _parameters(flow: Flow, scan: _Scan) -> set[int]:
    """The parameters and buffers that a scan's ops read, through ops on these alone."""
    found: set[int] = set()
    waiting = [v for op in scan.members for v in flow.graph.ops[op].inputs if v not in flow.activations]
    seen: set[int] = set()
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        if flow.graph.values[value].kind in ("param", "buffer"):
            found.add(value)
        elif (maker := flow.maker(value)) is not None:
            waiting.extend(v for v in maker.inputs if v not in flow.activations)
    return found


def _reads(flow: Flow, scan: _Scan, piece: Region, channels: Channels, writes: set[int]) -> tuple[Read, ...]:
    """A block's reads: slices of one value by time are that value; ports are named for what the scan does with them."""
    sources = _sources(flow, piece, channels, writes)
    shared = Counter(found.far[0] for found in sources.values())
    kept: dict[int, tuple[str, Slots]] = {}
    roles: dict[object, str] = {}
    for value, found in sources.items():
        place = _place(flow, value)
        if place not in roles:
            roles[place] = _role(flow, scan, piece, value)
        role = roles[place]
        value, slots = found.far if shared[found.far[0]] > 1 else found.near
        if value not in kept or _PORTS.index(role) < _PORTS.index(kept[value][0]):
            kept[value] = (role, slots)
    names: dict[tuple[object, ...], str] = {}
    counts: Counter[str] = Counter()
    reads = []
    for value in sorted(kept):
        role, slots = kept[value]
        key = (role, _place(flow, value))
        if key not in names:
            names[key] = role + (str(counts[role]) if counts[role] else "")
            counts[role] += 1
        reads.append(Read(names[key], value, slots))
    return tuple(reads)


def _sources(flow: Flow, piece: Region, channels: Channels, writes: set[int]) -> dict[int, Source]:
    """Where each read comes from; what one step of a loop reads a slice of, the others do too."""
    found: dict[int, Source] = {}
    known: dict[object, Source] = {}
    for value in piece.reads:
        place = _place(flow, value)
        if place in known and known[place].far[0] in behind(flow, value, writes):
            found[value] = Source(known[place].far, known[place].far)
        else:
            found[value] = known[place] = source_of(flow, value, channels, writes)
    return found


def _place(flow: Flow, value: int) -> object:
    """The place in a loop's step at which a value is made, the same for every step but the first; else the value."""
    made = flow.graph.values[value]
    loop = flow.looped.places.get(made.op)
    if loop is None or made.op in {op.index for op in flow.looped.steps[loop[0]][0]}:
        return value
    return (*loop, made.port)


def _role(flow: Flow, scan: _Scan, piece: Region, value: int) -> str:
    """What a scan does with a read."""
    states = {item for chain in scan.states for item in chain}
    on_path = {out for op in scan.path for out in flow.graph.ops[op].outputs} | states
    if value in on_path:
        return "carry"
    met, reached = _met(flow, piece, value)
    if not scan.path:
        mixed = {op for op in met if op in scan.mixing or sort_name(flow.graph.ops[op]) in ops.SOLVING}
        if not mixed:
            return "gate"
        return "decay" if any(sort_name(flow.graph.ops[op]) == "exp" for op in met) else "in"
    beside = {
        op: reached.intersection(flow.graph.ops[op].inputs) - on_path for op in scan.path if op in piece.members
    }
    if any(found and sort_name(flow.graph.ops[op]) not in ops.SUMS for op, found in beside.items()):
        return "decay"
    if any(beside.values()):
        return "in"
    return "read" if met & scan.mixing else "gate"


def _met(flow: Flow, piece: Region, value: int) -> tuple[set[int], set[int]]:
    """The members of a piece that a read reaches, and the values."""
    found, values = set[int](), {value}
    waiting = [value]
    while waiting:
        for user in flow.users(waiting.pop()):
            if user.index in piece.members and user.index not in found:
                found.add(user.index)
                values.update(user.outputs)
                waiting.extend(user.outputs)
    return found, values
