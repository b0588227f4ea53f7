"""Standard names of sites, and the names that TransformerLens gives them."""

from __future__ import annotations

import re

from ..graph import Graph
from ..run.trace import Found
from ..site import unknown
from . import ops
from .blocks import AXES, Block
from .flow import Flow
from .ops import sort_name

_ALIASES: tuple[tuple[str, str], ...] = (
    (r"(?:blocks\.(\d+)\.)attn\.hook_(q|k|v|z|pattern)", r"L\1.attn.\2"),
    (r"(?:blocks\.(\d+)\.)attn\.hook_attn_scores", r"L\1.attn.scores"),
    (r"(?:blocks\.(\d+)\.)hook_(resid_pre|resid_mid|resid_post|attn_out|mlp_out)", r"L\1.\2"),
    (r"(?:blocks\.(\d+)\.)mlp\.hook_pre", r"L\1.mlp.pre"),
    (r"(?:blocks\.(\d+)\.)mlp\.hook_post", r"L\1.mlp.out"),
    (r"hook_(embed|pos_embed)", r"\1"),
    (r"(?:layers_input|resid_pre)[.\[](\d+)\]?", r"L\1.resid_pre"),
    (r"(L\d+)\.mlp\.act", r"\1.mlp.out"),
    (r"(L\d+)\.conv\.channel", r"\1.conv.out"),
    (r"(L\d+)\.rnn(@\d+)?\.(?:h|state)", r"\1.rnn\2.out"),
)


def resolve(name: str, sites: dict[str, Found], graph: Graph) -> Found:
    """The place of a standard name or an alias of one. Raises SiteError with near names."""
    if name in sites:
        return sites[name]
    for pattern, into in _ALIASES:
        if re.fullmatch(pattern, name):
            standard = re.sub(pattern, lambda match, into=into: match.expand(into), name)
            if standard in sites:
                return sites[standard]
    raise unknown(name, [*sites, *graph.exits, *graph.addresses])


def standard_sites(flow: Flow, sources: list[Block], found: list[Block], output: int) -> dict[str, Found]:
    """Name to place, for every standard name of a run."""
    graph = flow.graph
    sites: dict[str, Found] = {}

    def put(name: str, value: int, axes: tuple[str, ...]) -> None:
        sites.setdefault(name, Found(graph.site(value), axes))

    for source in sources:
        put(source.name, source.write, _plain(flow, source.write))
    for block in found:
        name = f"{block.name}@{block.step}" if block.step else block.name
        axes = _axes(flow, block)
        if block.kind == "attention":
            _attention_sites(flow, block, sites)
        else:
            put(f"{name}.out", block.write, axes)
            for read in block.reads:
                put(f"{name}.{read.port}", read.value, axes if len(flow.shape(read.value)) == len(axes) else ())
        if block.kind == "mlp":
            put(f"{block.name}.pre", block.reads[0].value, axes)
    put("logits", output, (*_plain(flow, output)[:-1], "vocab"))
    _stream_sites(flow, found, sites)
    return sites


def _plain(flow: Flow, value: int) -> tuple[str, ...]:
    names = {2: ("batch", "neuron"), 3: ("batch", "pos", "neuron"), 4: ("batch", "channel", "height", "width")}
    shape = flow.shape(value)
    return names.get(len(shape), tuple(map(str, range(len(shape)))))


def _axes(flow: Flow, block: Block) -> tuple[str, ...]:
    axes = list(_plain(flow, block.write))
    if block.mark and block.slots.axis < len(axes) and block.kind != "attention":
        axes[block.slots.axis] = AXES[block.mark]
    if block.kind == "conv" and len(axes) == 3:
        axes[2] = "pos"
    return tuple(axes)


def _attention_sites(flow: Flow, block: Block, sites: dict[str, Found]) -> None:
    graph = flow.graph
    four = ("batch", "head", "pos", "neuron")
    for port, value in [*((read.port, read.value) for read in block.reads), ("z", block.write)]:
        shape = flow.shape(value)
        axes = four if len(shape) == 4 else ("batch", "pos", "neuron") if len(shape) == 3 else ()
        sites[f"{block.name}.{port}"] = Found(graph.site(value), axes)
    inside = ("batch", "head", "query", "key")
    if "fused" in block.extra:
        address = graph.address(graph.ops[block.extra["fused"]])
        sites[f"{block.name}.pattern"] = Found(f"{address}//_safe_softmax.0", inside)
        sites[f"{block.name}.scores"] = Found(f"{address}//_safe_softmax.0<", inside)
    else:
        for name in ("pattern", "scores"):
            shape = flow.shape(block.extra[name])
            axes = inside if len(shape) == 4 else ("batch", "query", "key")
            sites[f"{block.name}.{name}"] = Found(graph.site(block.extra[name]), axes)


def _stream_sites(flow: Flow, found: list[Block], sites: dict[str, Found]) -> None:
    """resid.0, resid.1, … and the resid_pre, resid_mid, resid_post, attn_out and mlp_out of layers."""
    graph = flow.graph
    adds = flow.residual_adds
    if not adds:
        return
    axes = ("batch", "pos", "neuron")
    stream = [adds[min(adds)][0], *(graph.ops[op].outputs[0] for op in sorted(adds))]
    for place, value in enumerate(dict.fromkeys(stream)):
        sites[f"resid.{place}"] = Found(graph.site(value), axes if len(flow.shape(value)) == 3 else _plain(flow, value))
    members = set(stream)
    for block in found:
        if block.kind not in ("attention", "mlp"):
            continue
        layer, part = block.name.split(".")
        before = _stream_before(flow, block, members)
        add = _add_after(flow, block)
        label = "resid_pre" if part == "attn" else "resid_mid"
        if before is not None:
            sites[f"{layer}.{label}"] = Found(graph.site(before), axes)
        if add is not None:
            sites[f"{layer}.{part}_out"] = Found(graph.site(adds[add][1]), axes)
            after = Found(graph.site(graph.ops[add].outputs[0]), axes)
            sites[f"{layer}.resid_post"] = after
            if part == "attn":
                sites.setdefault(f"{layer}.resid_mid", after)


def _stream_before(flow: Flow, block: Block, stream: set[int]) -> int | None:
    waiting, seen = [block.reads[0].value], set()
    while waiting:
        value = waiting.pop(0)
        if value in stream:
            return value
        op = flow.maker(value)
        if op is not None and value not in seen:
            seen.add(value)
            waiting.extend(source for source in op.inputs if source in flow.activations)
    return None


def _add_after(flow: Flow, block: Block) -> int | None:
    """The residual add that a block's write reaches as the branch, through soft ops, one contraction and a norm."""
    branches = {branch: op for op, (_, branch) in flow.residual_adds.items()}
    waiting, seen = [block.write], set()
    while waiting:
        value = waiting.pop(0)
        if value in branches:
            return branches[value]
        if value in seen:
            continue
        seen.add(value)
        for op in flow.users(value):
            if op.index not in flow.residual_adds and (flow.linear[op.index] or sort_name(op) in ops.NORMS):
                waiting.extend(op.outputs)
    return None
