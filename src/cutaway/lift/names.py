"""Standard names of sites, and the names that TransformerLens gives them."""

from __future__ import annotations

import re

from ..graph import Graph, Op
from ..run.trace import Found
from ..site import unknown
from . import ops
from .axes import channel_axis
from .blocks import AXES, Block, Slots
from .flow import Flow
from .gates import inside
from .ops import active, sort_name

_ALIASES: tuple[tuple[str, str], ...] = (
    (r"(?:blocks\.(\d+)\.)attn\.hook_(q|k|v|z|pattern|result)", r"L\1.attn.\2"),
    (r"(?:blocks\.(\d+)\.)attn\.hook_rot_(q|k)", r"L\1.attn.\2"),
    (r"(?:blocks\.(\d+)\.)attn\.hook_attn_scores", r"L\1.attn.scores"),
    (r"(?:blocks\.(\d+)\.)hook_(resid_pre|resid_mid|resid_post|attn_out|mlp_out)", r"L\1.\2"),
    (r"(?:blocks\.(\d+)\.)mlp\.hook_pre", r"L\1.mlp.pre"),
    (r"(?:blocks\.(\d+)\.)mlp\.hook_pre_linear", r"L\1.mlp.up"),
    (r"(?:blocks\.(\d+)\.)mlp\.hook_post", r"L\1.mlp.out"),
    (r"(?:blocks\.(\d+)\.)(ln[12])\.hook_(scale|normalized)", r"L\1.\2.\3"),
    (r"ln_final\.hook_(scale|normalized)", r"ln_final.\1"),
    (r"hook_(embed|pos_embed)", r"\1"),
    (r"(?:layers_input|resid_pre)[.\[](\d+)\]?", r"L\1.resid_pre"),
    (r"(L\d+)\.mlp\.act", r"\1.mlp.out"),
    (r"(L\d+)\.conv\.channel", r"\1.conv.out"),
    (r"(L\d+)\.rnn(@\d+)?\.(?:h|state)", r"\1.rnn\2.out"),
)


def resolve(name: str, sites: dict[str, Found], graph: Graph) -> Found:
    """The place of a standard name or an alias of one. Raises SiteError with near names."""
    for whole in (name, f"{name}.out", f"{name}.z"):  # a block by its name is its write
        if whole in sites:
            return sites[whole]
    for pattern, into in _ALIASES:
        if re.fullmatch(pattern, name):
            standard = re.sub(pattern, into, name)
            if standard in sites:
                return sites[standard]
    raise unknown(name, [*sites, *graph.exits, *graph.addresses])


def standard_sites(flow: Flow, sources: list[Block], found: list[Block], output: int) -> dict[str, Found]:
    """Name to place, for every standard name of a run."""
    graph = flow.graph
    sites: dict[str, Found] = {}

    def put(name: str, value: int, axes: tuple[str, ...]) -> None:
        sites.setdefault(name, _place(flow, value, axes))

    for source in sources:
        fixed = source.write not in flow.activations and len(flow.shape(source.write)) == 2
        axes = ("pos", "neuron") if fixed else _plain(flow, source.write)
        sites[source.name] = Found(graph.site(source.write), axes) if fixed else _place(flow, source.write, axes)
    for block in found:
        name = f"{block.name}@{block.step}" if block.step else block.name
        axes = _axes(flow, block)
        if block.kind == "attention":
            _attention_sites(flow, block, sites)
        elif block.kind not in ("ssm", "moe"):  # those are named in mixing.py
            put(f"{name}.out", block.write, axes)
            reads = [(read.port, read.value) for read in block.reads]
            for port, value in inside(flow, block) if block.kind == "state" else reads:
                put(f"{name}.{port}", value, axes if len(flow.shape(value)) == len(axes) else ())
        if block.kind == "mlp":
            first = next((read for read in block.reads if read.port == "gate"), block.reads[0])
            put(f"{block.name}.pre", first.value, axes)
    axes = _plain(flow, output)
    put("logits", output, axes if "channel" in axes else (*axes[:-1], "vocab"))
    _stream_sites(flow, found, sites)
    return sites


def _place(flow: Flow, value: int, axes: tuple[str, ...]) -> Found:
    """A value's place; batch and positions folded into one axis are told apart."""
    shape = flow.shape(value)
    if len(shape) == 2 and flow.batch and shape[0] != flow.batch and shape[0] % flow.batch == 0:
        length, axes = shape[0] // flow.batch, axes or ("batch", "neuron")
        if flow.time_major and (length, flow.batch) in flow.sequences:
            return Found(flow.graph.site(value), ("pos", "batch", axes[-1]), flow.batch)
        if (flow.batch, length) in flow.sequences:
            return Found(flow.graph.site(value), ("batch", "pos", axes[-1]), length)
    return Found(flow.graph.site(value), axes)


def folded_place(flow: Flow, value: int, last: str) -> Found:
    """A value's place where it is by token, examples and positions in one axis or two, and `last` names the rest."""
    shape = flow.shape(value)
    if len(shape) == 3 and shape[0] == flow.batch:
        return Found(flow.graph.site(value), ("batch", "pos", last))
    if len(shape) == 2:
        found = _place(flow, value, ("batch", last))
        return found if found.fold or shape[0] == flow.batch else Found(found.address, ("row", last))
    return Found(flow.graph.site(value), ())


def _plain(flow: Flow, value: int) -> tuple[str, ...]:
    names = {2: ("batch", "neuron"), 3: ("batch", "pos", "neuron"), 4: ("batch", "channel", "height", "width")}
    shape = flow.shape(value)
    found = list(names.get(len(shape), map(str, range(len(shape)))))
    if len(shape) == 3 and flow.time_major and shape[1] == flow.batch:
        return ("pos", "batch", "neuron")
    if len(shape) == 4 and channel_axis(flow, value) == 3:
        return ("batch", "height", "width", "channel")
    if value in flow.packed:
        found[0] = "row"
    elif 1 < len(shape) < 4 and shape[0] != 1 and shape[0] % flow.batch:  # edges of a graph, say
        found[0] = "0"
    return tuple(found)


def _axes(flow: Flow, block: Block) -> tuple[str, ...]:
    axes = list(_plain(flow, block.write))
    if block.kind == "mlp" and block.slots.axis == len(axes) - 1 and len(axes) == 4:  # neurons last, of an image too
        return ("batch", "height", "width", "neuron")
    if block.kind == "mlp" and block.slots.axis == len(axes) - 2 == 1:
        return ("batch", "neuron", "pos")
    if block.mark and block.slots.axis < len(axes) and block.kind != "attention":
        axes[block.slots.axis] = AXES[block.mark]
    if block.kind == "conv" and len(axes) == 3:
        axes[3 - block.slots.axis] = "pos"
    return tuple(axes)


def _attention_sites(flow: Flow, block: Block, sites: dict[str, Found]) -> None:
    graph = flow.graph
    inside = ("batch", "head", "query", "key")

    def put(name: str, value: int, slots: Slots, axes: tuple[str, ...]) -> None:
        fold = slots.count if slots.tiled and flow.shape(value)[0] == flow.batch * slots.count else 0
        if not slots.tiled and len(flow.shape(value)) == 4 and (windows := _windows(flow, value)) > 1:
            sites[f"{block.name}.{name}"] = Found(graph.site(value), (axes[0], "window", *axes[1:]), windows)
            return
        if slots.tiled and len(flow.shape(value)) == 4:  # heads beside examples, and windows
            named = ("batch", "head", "window", *axes[2:]) * bool(fold)
            sites[f"{block.name}.{name}"] = Found(graph.site(value), named, fold)
            return
        if len(flow.shape(value)) + bool(fold) != 4:
            axes = (axes[0], *axes[2:]) if len(flow.shape(value)) == 3 else ()
        sites[f"{block.name}.{name}"] = Found(graph.site(value), axes, fold)

    def headed(value: int, slots: Slots) -> tuple[str, ...]:
        rank = len(flow.shape(value)) + slots.tiled
        if rank != 4:
            return ("batch", "head", "pos", "neuron")
        named = {slots.first: "batch", 1 if slots.tiled else slots.axis: "head", rank + slots.unit: "neuron"}
        return tuple(named.get(axis, "pos") for axis in range(rank))

    for read in block.reads:
        put(read.port, read.value, read.slots, headed(read.value, read.slots))
    put("z", block.write, block.slots, headed(block.write, block.slots))
    if "fused" in block.extra:
        address = graph.address(graph.ops[block.extra["fused"]])
        windows = _windows(flow, block.write)
        axes, fold = (inside, 0) if windows == 1 else ((inside[0], "window", *inside[1:]), windows)
        sites[f"{block.name}.pattern"] = Found(f"{address}//_safe_softmax.0", axes, fold)
        sites[f"{block.name}.scores"] = Found(f"{address}//_safe_softmax.0<", axes, fold)
    else:
        for name in ("pattern", "scores"):
            value = block.extra[name]
            put(name, value, block.slots, inside)


def _windows(flow: Flow, value: int) -> int:
    """How many windows of each example an attention's first axis holds, batch slowest; 1 where it holds the batch."""
    first = flow.shape(value)[0]
    return first // flow.batch if flow.batch > 1 and first > flow.batch and first % flow.batch == 0 else 1


def _stream_sites(flow: Flow, found: list[Block], sites: dict[str, Found]) -> None:
    """resid.0, resid.1, … and the resid_pre, resid_mid, resid_post, attn_out and mlp_out of layers.

    A layer is an attention and the MLP of the same number, when the MLP reads what the attention read or what it added
    to; an attention or an MLP without a partner of its number is a layer of its own. Where numbers do not match so
    (a decoder with cross-attention) there is no resid_mid and no resid_post.
    """
    stream = stream_of(flow)
    for place, value in enumerate(stream):
        sites[f"resid.{place}"] = place_of(flow, value)
    members = set(stream)
    layers: dict[str, dict[str, tuple[int | None, int | None]]] = {}
    for block in found:
        if block.kind not in ("attention", "mlp", "moe", "ssm") or not members:
            continue
        layer, part = block.name.split(".")
        before, (out, after) = _stream_before(flow, block, members), way_out(flow, block)
        if block.kind != "ssm":
            layers.setdefault(layer, {})[part] = (before, after)
        if out is not None:
            sites[f"{layer}.{part}_out"] = place_of(flow, out)
    starts = [parts["attn"][0] for parts in layers.values() if "attn" in parts]
    ends = {*starts, *stream[-1:]}
    for layer, parts in layers.items():
        for name, value in _layer(flow, parts, ends).items():
            sites[f"{layer}.{name}"] = place_of(flow, value)


def _layer(flow: Flow, parts: dict[str, tuple[int | None, int | None]], ends: set[int | None]) -> dict[str, int]:
    """The residual values around one layer's attention and MLP, each given as (value before, value after).

    `ends` are where layers may end: at what an attention reads, and at the last value of the stream.
    """
    names: dict[str, int | None] = {}
    start, middle = parts.get("attn", (None, None))
    second, end = parts.get("mlp", parts.get("moe", (None, None)))
    if "attn" not in parts:
        names = {"resid_pre": second, "resid_post": end}
    elif "mlp" not in parts and "moe" not in parts:  # something that is no MLP to us may come before the layer ends
        names = {"resid_pre": start, "resid_post": middle if middle in ends else None}
    elif second == start:  # both read the same: a parallel layer
        names = {"resid_pre": start, "resid_post": end}
    elif second is not None and middle in flow.back(second, lambda op: op.index in flow.norms or _is_norm(op)):
        names = {"resid_pre": start, "resid_mid": middle, "resid_post": end}
    else:
        names = {"resid_pre": start}
    return {name: value for name, value in names.items() if value is not None}


def _is_norm(op: Op) -> bool:
    return sort_name(op) in ops.NORMS


def stream_of(flow: Flow) -> list[int]:
    """What residual adds add to and what they give, in order of execution."""
    adds = flow.residual_adds
    values = {flow.graph.ops[op].outputs[0] for op in adds}
    for skip, _ in adds.values():
        if not values.intersection(flow.back(skip, lambda op: flow.is_layout(op) and op.outputs[0] not in values)):
            values.add(skip)
    return sorted(values, key=lambda value: (flow.graph.values[value].op, value))


def place_of(flow: Flow, value: int) -> Found:
    """The place of a value of the residual stream, or of what is added to it."""
    return _place(flow, value, _plain(flow, value))


def _stream_before(flow: Flow, block: Block, stream: set[int]) -> int | None:
    waiting, seen = [block.reads[0].value], set[int]()
    while waiting:
        value = waiting.pop(0)
        if value in stream:
            return value
        op = flow.maker(value)
        if op is not None and value not in seen:
            seen.add(value)
            waiting.extend(source for source in op.inputs if source in flow.activations)
    return None


def way_out(flow: Flow, block: Block) -> tuple[int | None, int | None]:
    """What a block adds to the residual stream, before anything else is added to it, and the stream after that."""
    branches = {branch: op for op, (_, branch) in flow.residual_adds.items()}
    waiting: list[tuple[int, int | None]] = [(block.write, None)]
    seen = set[int]()
    while waiting:
        value, out = waiting.pop(0)
        if value in branches:
            return value if out is None else out, flow.graph.ops[branches[value]].outputs[0]
        if value in seen:
            continue
        seen.add(value)
        for op in flow.users(value):
            if op.index in flow.norms:
                waiting.append((flow.norms[op.index], out))
            elif op.index not in flow.residual_adds and (flow.linear[op.index] or _is_norm(op)):
                joins = sort_name(op) in ("add", "iadd", "radd") and len(active(op, flow.activations)) > 1
                waiting.extend((made, value if joins and out is None else out) for made in op.outputs)
    return None, None
