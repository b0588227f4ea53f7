"""From regions and attentions to named blocks: what each piece is, and what its reads are called."""

from __future__ import annotations

import torch

from ..run.structure import Ref, swap, tensors
from . import ops
from .attention import attentions
from .blocks import Block, Read, Slots
from .experts import experts
from .flow import Flow
from .ops import active, sort_name
from .regions import Region, regions
from .scans import scans

_SUFFIX = {
    "attention": "attn",
    "mlp": "mlp",
    "conv": "conv",
    "state": "rnn",
    "cell": "cell",
    "act": "act",
    "norm": "norm",
    "ssm": "ssm",
    "moe": "moe",
}


def blocks(flow: Flow) -> list[Block]:
    """All blocks of a run in order of their writes, named."""
    found = attentions(flow)
    if any(block.slots.first == 1 and flow.shape(block.write)[0] != flow.batch for block in found):
        flow.time_major = True  # inside, whatever the inputs are
    taken = {op for block in found for op in block.members}
    found += experts(flow, taken)
    taken = {op for block in found for op in block.members}
    found += scans(flow, taken)
    flow.taken = taken = {op for block in found for op in block.members}
    pieces = regions(flow, taken)
    flow.norms = {op: region.write for region in pieces if region.reduces for op in region.members}
    found += [block for region in pieces if (block := _block(flow, region)) is not None]
    found += _plain_convolutions(flow, found)
    found += _linear_states(flow, found)
    found.sort(key=lambda block: (flow.graph.values[block.write].op, block.write))
    _name(flow, found)
    return found


def _ends(flow: Flow, value: int) -> list[ops.Op]:
    """The contractions that a value comes from through soft ops and norms of its own."""
    makers = [flow.maker(end) for end in flow.back(value, lambda op: _is_own(flow, op))]
    contracting = [op for op in makers if op is not None and sort_name(op) in ops.CONTRACTION]
    return [op for op in contracting if op.index not in flow.taken]


def _is_own(flow: Flow, op: ops.Op) -> bool:
    """Whether an op between a contraction and a nonlinearity belongs to them: soft, or a norm that alone reads what it
    reads, as between a convolution and its activation."""
    if sort_name(op) in ops.NORMS and not flow.linear[op.index]:
        moving = active(op, flow.activations)
        return len(moving) == 1 and len(flow.users(moving[0])) == 1
    return flow.is_soft(op) and not sort_name(op).startswith("cat")


def _block(flow: Flow, region: Region) -> Block | None:
    shape = flow.shape(region.write)
    last = Slots(max(len(shape) - 1, 0), 1)
    sources = [_ends(flow, value) for value in region.reads]
    consumers = flow.ahead(region.write, lambda op: flow.is_soft(op) or sort_name(op) in ops.NORMS)
    if region.reduces:
        if not _on_skip_path(flow, region.write):
            return None
        kind, slots, mark = "norm", last, ""
    elif len(shape) > 2 and (convolutions := [op for op in sum(sources, []) if sort_name(op) in ops.CONVOLUTION]):
        axis = _channel_axis(flow, convolutions[0], 1, region.write)
        kind, mark = ("state", "u") if region.write in flow.states else ("conv", "c")
        slots = Slots(axis, shape[axis])
    elif region.write in flow.states and shape:
        kind, slots, mark = "state", Slots(len(shape) - 1, shape[-1]), "u"
    elif len(shape) == 3 and consumers and all(sort_name(op) in ops.CONVOLUTION for op in consumers):
        kind, slots, mark = "act", Slots(1, shape[1]), "c"  # a gate before a convolution over positions
    elif all(sources) and any(sort_name(op) in ops.CONTRACTION for op in consumers):
        contraction = sources[0][0]
        start = len(flow.shape(contraction.outputs[0])) - 1
        axis = _channel_axis(flow, contraction, start, region.write) if start == last.axis else last.axis
        kind, slots, mark = "mlp", Slots(axis, 1), ""
    elif len(shape) == 4:
        kind, slots, mark = "act", Slots(1, shape[1]), "c"
    else:
        kind, slots, mark = "act", last, ""
    reads = []
    for value, port in zip(region.reads, _ports(flow, region, kind), strict=True):
        same = flow.shape(value) == shape
        reads.append(Read(port, value, slots if same else Slots(max(len(flow.shape(value)) - 1, 0), 1)))
    once = {read.value: read for read in reads}
    return Block(kind, tuple(once.values()), region.write, slots, mark, region.members)


def _channel_axis(flow: Flow, contraction: ops.Op, axis: int, write: int) -> int:
    """The axis of a region's write along which a contraction's channels lie, after the layout ops between them; they
    come out of it along `axis`."""
    value = contraction.outputs[0]
    onward: dict[int, tuple[ops.Op, int]] = {}
    waiting = [write]
    while waiting and value not in onward:
        current = waiting.pop(0)
        maker = flow.maker(current)
        if maker is None or maker.index <= contraction.index:
            continue
        for source in active(maker, flow.activations):
            if source not in onward:
                onward[source] = (maker, current)
                waiting.append(source)
    while value in onward and value != write:
        op, after = onward[value]
        if flow.is_layout(op) and len(op.inputs) == 1:
            axis = _moved_axis(flow, op, op.outputs.index(after), axis)
        value = after
    return axis


def _moved_axis(flow: Flow, op: ops.Op, port: int, axis: int) -> int:
    """Where a layout op puts an axis: seen by what it does to a tensor of numbers that differ along that axis alone."""
    call, shape = flow.tape.calls[op.index], flow.shape(op.inputs[0])
    along = [-1 if place == axis else 1 for place in range(len(shape))]
    ramp = torch.arange(shape[axis]).view(along).expand(shape).clone()
    args, kwargs = swap((call.args, call.kwargs), Ref, lambda ref: ramp)
    outs = list(tensors(call.func(*args, **kwargs)))
    if port >= len(outs):  # it writes into what it is given, which stays as it lies
        return axis
    made = outs[port]
    moved = [place for place in range(made.ndim) if bool((made.narrow(place, 0, 1) != made).any())]
    return moved[0] if moved else min(axis, made.ndim - 1)


def _on_skip_path(flow: Flow, write: int) -> bool:
    """Whether a value, rescaled or rearranged at most, is the skip operand of a residual add."""
    skips = {skip for skip, _ in flow.residual_adds.values()}
    waiting, seen = [write], set()
    while waiting:
        value = waiting.pop()
        if value in skips:
            return True
        if value in seen:
            continue
        seen.add(value)
        waiting += [made for op in flow.users(value) if flow.is_soft(op) for made in op.outputs]
    return False


def _ports(flow: Flow, region: Region, kind: str) -> list[str]:
    """Names of a region's reads, from what the region does with them."""
    if len(region.reads) == 1 and kind != "state":
        return ["in"]
    first = {value: _first_bend(flow, region, value) for value in region.reads}
    if kind != "state":
        names = ["up" if first[value] in ("product", "") else "gate" for value in region.reads]
        return names if sorted(names) == ["gate", "up"] else ["in" + (str(n) if n else "") for n in range(len(names))]
    return _gate_ports(flow, region, first)


def _gate_ports(flow: Flow, region: Region, first: dict[int, str]) -> list[str]:
    """Reset, update, new and carry for a GRU; input, forget, cell and output for an LSTM; in and carry otherwise."""
    carry = {value for value in region.reads if value in flow.carried and first[value] != "tanh"}
    sigmoid = [value for value in region.reads if first[value] == "sigmoid"]
    resets = {value for value in sigmoid if _leads_to(flow, region, value, "tanh")}
    others = [value for value in sigmoid if value not in resets]
    products = {value: _partners(flow, region, value) for value in others}
    names = []
    for value in region.reads:
        if value in carry:
            names.append("carry")
        elif value in flow.carried:
            names.append("cell")
        elif value in resets:
            names.append("r")
        elif value in others:
            if len(others) == 1:
                names.append("z" if carry or resets else "o")
            else:
                held = products[value] & (carry | _constants(flow, region))
                names.append("f" if held else "i")
        elif first[value] in ("tanh", "product") and (resets or len(others) == 1):
            names.append("n")
        elif first[value] == "tanh" and others:
            names.append("g")
        else:
            names.append("in")
    return names


def _constants(flow: Flow, region: Region) -> set[int]:
    return {value for op in region.members for value in flow.graph.ops[op].inputs if value not in flow.activations}


def _first_bend(flow: Flow, region: Region, value: int) -> str:
    """The first bend that a read meets inside its region: its name, "product", or "" for none."""
    for op in flow.users(value):
        if op.index not in region.members:
            continue
        if flow.is_bend(op):
            return sort_name(op) if sort_name(op) in ops.ELEMENTWISE else "product"
        for made in op.outputs:
            if found := _first_bend(flow, region, made):
                return found
    return ""


def _leads_to(flow: Flow, region: Region, value: int, name: str) -> bool:
    """Whether what a sigmoid makes of a read goes into a bend of this name inside the region."""
    made = [out for op in flow.users(value) if op.index in region.members for out in op.outputs]
    seen: set[int] = set()
    while made:
        current = made.pop()
        for op in flow.users(current):
            if op.index in region.members and op.index not in seen:
                seen.add(op.index)
                if sort_name(op) == name:
                    return True
                made.extend(op.outputs)
    return False


def _partners(flow: Flow, region: Region, value: int) -> set[int]:
    """What a gate is multiplied with."""
    found: set[int] = set()
    for op in flow.users(value):
        if op.index in region.members:
            for gate in op.outputs:
                for user in flow.users(gate):
                    if sort_name(user) in ops.PRODUCTS:
                        found |= {other for other in user.inputs if other != gate}
    return found


def _plain_convolutions(flow: Flow, found: list[Block]) -> list[Block]:
    """Convolutions without a nonlinearity of their own: blocks that hand on what they read."""
    read = {
        end
        for block in found
        if block.kind in ("conv", "state")
        for item in block.reads
        for end in flow.back(item.value, lambda op: _is_own(flow, op))
    }
    plain = []
    for op in flow.graph.ops:
        if not flow.moves(op) or sort_name(op) not in ops.CONVOLUTION or not flow.linear[op.index]:
            continue
        write = op.outputs[0]
        shape = flow.shape(write)
        if write in read or len(shape) < 3 or set(active(op, flow.activations)) <= flow.inputs:
            continue
        slots = Slots(1, shape[1])
        plain.append(Block("conv", (Read("in", write, slots),), write, slots, "c", frozenset()))
    return plain


def _linear_states(flow: Flow, found: list[Block]) -> list[Block]:
    """Steps of recurrent cells that bend nothing, for their old state is a constant: blocks that hand on what they
    read."""
    cells = {_cell(flow, block) for block in found if block.kind == "state"}
    written = {block.write for block in found}
    linear = []
    for value in sorted(flow.carried - written) if cells else ():
        maker = flow.maker(value)
        if maker is None or maker.index not in flow.useful or sort_name(maker) not in ops.ADDITIVE:
            continue
        slots = Slots(len(flow.shape(value)) - 1, flow.shape(value)[-1])
        block = Block("state", (Read("in", value, slots),), value, slots, "u", frozenset())
        if _cell(flow, block) in cells:
            linear.append(block)
    return linear


def _cell(flow: Flow, block: Block) -> tuple[object, ...]:
    """What the steps of one recurrent cell share: its first parameter and the op that makes its state."""
    maker = flow.maker(block.write)
    return (_parameters(flow, block)[:1], sort_name(maker) if maker is not None else "")


def _parameters(flow: Flow, block: Block) -> tuple[int, ...]:
    """The parameters in the contractions that feed a block's reads."""
    found: set[int] = set()
    for read in block.reads:
        for op in _ends(flow, read.value):
            waiting = [value for value in op.inputs if value not in flow.activations]
            while waiting:
                value = waiting.pop()
                if flow.graph.values[value].kind == "param":
                    found.add(value)
                elif (maker := flow.maker(value)) is not None:
                    waiting.extend(maker.inputs)
    return tuple(sorted(found))


def _name(flow: Flow, found: list[Block]) -> None:
    """Give names: kinds are counted in order; steps of one recurrent cell (same weights) share a name, and so do calls
    of one layer that do not depend on each other."""
    counts: dict[str, int] = {}
    again = _called_again(flow, found)
    cells: dict[tuple[object, ...], str] = {}
    steps: dict[str, int] = {}
    layers: dict[object, int] = {}
    for block in found:
        if block.kind == "state":
            hidden = any(sort_name(op) in ops.CONTRACTION for op in flow.ahead(block.write, flow.is_layout))
            block.key = _cell(flow, block)
            weights = block.key[0]
            if block.key not in cells:
                layer = layers.setdefault(weights, len(layers))
                name = (
                    f"L{layer}.rnn"
                    if hidden or f"L{layer}.rnn" not in cells.values() and not _has_other(found, block)
                    else f"L{layer}.cell"
                )
                cells[block.key] = name
            block.name = cells[block.key]
            block.step = steps.get(block.name, 0)
            steps[block.name] = block.step + 1
        elif block.kind == "ssm" and block.key in cells:
            block.name = cells[block.key]
            block.step = steps[block.name]
            steps[block.name] += 1
        elif id(block) in again:
            block.name = again[id(block)].name
            block.step = steps[block.name] = steps.get(block.name, 0) + 1
        else:
            suffix = _SUFFIX[block.kind]
            block.name = f"L{counts.get(suffix, 0)}.{suffix}"
            counts[suffix] = counts.get(suffix, 0) + 1
            if block.kind == "ssm":
                cells[block.key], steps[block.name] = block.name, 1


def _called_again(flow: Flow, found: list[Block]) -> dict[int, Block]:
    """For blocks (by identity) that run a layer again, the block that ran it first and that they do not depend on: one
    network on several frames, say. Layers that share weights and follow each other are not among them."""
    firsts: dict[tuple[object, ...], tuple[Block, set[int]]] = {}
    again: dict[int, Block] = {}
    for block in found:
        parameters = _parameters(flow, block) if block.kind in ("conv", "mlp") else ()
        key = (block.kind, parameters, flow.shape(block.write)[1:])
        if not parameters:
            continue
        if key not in firsts:
            firsts[key] = (block, set())
            continue
        first, ahead = firsts[key]
        if not ahead:  # what depends on the first call's contractions, as the halves of one projection do
            made = {op.outputs[0] for read in first.reads for op in _ends(flow, read.value)}
            ahead |= flow.graph.cone(made)
        if ahead.isdisjoint(read.value for read in block.reads):
            again[id(block)] = first
    return again


def _has_other(found: list[Block], block: Block) -> bool:
    return any(
        other is not block and block.write in {read.value for read in other.reads} and other.kind == "state"
        for other in found
    )
