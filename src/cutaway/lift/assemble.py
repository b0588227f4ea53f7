"""From regions and attentions to named blocks: what each piece is, and what its reads are called."""

from __future__ import annotations

from . import ops
from .attention import attentions
from .blocks import Block, Read, Slots
from .flow import Flow
from .ops import active, sort_name
from .regions import Region, regions

_SUFFIX = {
    "attention": "attn",
    "mlp": "mlp",
    "conv": "conv",
    "state": "rnn",
    "cell": "cell",
    "act": "act",
    "norm": "norm",
}


def blocks(flow: Flow) -> list[Block]:
    """All blocks of a run in order of their writes, named."""
    found = attentions(flow)
    taken = {op for block in found for op in block.members}
    pieces = regions(flow, taken)
    flow.norms = {op: region.write for region in pieces if region.reduces for op in region.members}
    found += [block for region in pieces if (block := _block(flow, region)) is not None]
    found += _plain_convolutions(flow, found)
    found.sort(key=lambda block: (flow.graph.values[block.write].op, block.write))
    _name(flow, found)
    return found


def _ends(flow: Flow, value: int) -> list[ops.Op]:
    """The contractions that a value comes from through soft ops."""
    ends = flow.back(value, lambda op: flow.is_soft(op) and not sort_name(op).startswith("cat"))
    return [op for end in ends if (op := flow.maker(end)) is not None and sort_name(op) in ops.CONTRACTION]


def _block(flow: Flow, region: Region) -> Block | None:
    shape = flow.shape(region.write)
    last = Slots(max(len(shape) - 1, 0), 1)
    sources = [op for value in region.reads for op in _ends(flow, value)]
    consumers = flow.ahead(region.write, lambda op: flow.is_soft(op) or sort_name(op) in ops.NORMS)
    if region.reduces:
        if not _on_skip_path(flow, region.write):
            return None
        kind, slots, mark = "norm", last, ""
    elif region.write in flow.carried and shape:
        kind, slots, mark = "state", Slots(len(shape) - 1, shape[-1]), "u"
    elif any(sort_name(op) in ops.CONVOLUTION for op in sources) and len(shape) > 2:
        kind, slots, mark = "conv", Slots(1, shape[1]), "c"
    elif sources and any(sort_name(op) in ops.CONTRACTION for op in consumers):
        kind, slots, mark = "mlp", last, ""
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
        if block.kind == "conv"
        for item in block.reads
        for end in flow.back(item.value, lambda op: flow.is_soft(op) and not sort_name(op).startswith("cat"))
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
    """Give names: kinds are counted in order; steps of one recurrent cell (same weights) share a name."""
    counts: dict[str, int] = {}
    cells: dict[tuple[object, ...], str] = {}
    steps: dict[str, int] = {}
    layers: dict[object, int] = {}
    for block in found:
        if block.kind == "state":
            weights = _parameters(flow, block)
            maker = flow.maker(block.write)
            hidden = any(sort_name(op) in ops.CONTRACTION for op in flow.ahead(block.write, flow.is_layout))
            role = sort_name(maker) if maker is not None else ""
            block.key = (weights[:1], role)
            if block.key not in cells:
                layer = layers.setdefault(weights[:1], len(layers))
                name = (
                    f"L{layer}.rnn"
                    if hidden or f"L{layer}.rnn" not in cells.values() and not _has_other(found, block)
                    else f"L{layer}.cell"
                )
                cells[block.key] = name
            block.name = cells[block.key]
            block.step = steps.get(block.name, 0)
            steps[block.name] = block.step + 1
        else:
            suffix = _SUFFIX[block.kind]
            block.name = f"L{counts.get(suffix, 0)}.{suffix}"
            counts[suffix] = counts.get(suffix, 0) + 1


def _has_other(found: list[Block], block: Block) -> bool:
    return any(
        other is not block and block.write in {read.value for read in other.reads} and other.kind == "state"
        for other in found
    )
