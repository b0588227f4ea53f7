"""Dictionaries as blocks: their latents are slots of a write, and what they leave unsaid is one of its own.

The run is lifted as it is, so no name changes; then the tape with the dictionaries in it takes the place of its own. A
dictionary's block reads the value through the encoder's affine step, a slot for each latent, and writes its latents;
decoding them is wiring. The error reads the value too, and is added behind.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from ..run.attached import late, splice_of, with_dictionaries
from ..run.splice import LATENTS, SLOTS, Attachment, Splice, Spliced
from ..run.trace import Found, Trace
from .blocks import Block, Read, Slots
from .flow import Flow

if TYPE_CHECKING:
    from .lift import Lifted

_LINEAR = frozenset(("rows", "linear", "latents", "decode", "decoded", "add"))
_BY_OP = ("ancestors", "looped", "learnt")  # what a flow knows by the numbers of ops, found anew when asked


def with_latents(trace: Trace, lifted: Lifted, opened: Iterable[str]) -> Lifted:
    """The same run with the dictionaries that are attached to its network as blocks; `opened` are the opened ops.

    A dictionary for values inside a block, for values that depend on no input, or whose latents are known too late to
    reach all that they write, is no block: its latents are sites alone.
    """
    sites = dict(lifted.sites)
    chosen = []
    for what in trace.net.attachments:
        splice = splice_of(trace, what, lambda: lifted)
        sites |= _sites(what, splice)
        inner = {trace.located(site, lambda: lifted).address.partition("//") for site in what.sites}
        between = {outer for outer, mark, _ in inner if mark} <= set(opened) and _between(lifted, splice)
        if between and what.latents and not late(trace, what, lambda: lifted):
            chosen.append(what)
    if not chosen:
        return replace(lifted, sites=sites, plain=lifted)
    made = with_dictionaries(trace, {*opened, *(SLOTS + what.name for what in chosen)}, lambda: lifted)
    flow = _moved(lifted.flow, made)
    blocks = [_rebased(block, flow, made) for block in lifted.blocks]
    for splice, values in zip(made.splices, made.made, strict=True):
        blocks += _blocks(flow, splice, values)
    blocks.sort(key=lambda block: (flow.graph.values[block.write].op, block.write))
    output = _rebased(lifted.output, flow, made)
    return replace(lifted, tape=made.tape, flow=flow, blocks=blocks, output=output, sites=sites, plain=lifted)


def _sites(what: Attachment, splice: Splice) -> dict[str, Found]:
    """The sites of a dictionary's latents and errors."""
    start = f"{LATENTS}{what.name}//"
    found = {f"{what.name}.latents": Found(f"{start}latents.0", splice.reads[0].latent_axes)}
    for number, place in enumerate(splice.writes):
        found[_error_name(what, number)] = Found(f"{start}error.{number}", place.axes, place.fold)
    return found


def _between(lifted: Lifted, splice: Splice) -> bool:
    """Whether all values of a dictionary lie between blocks and depend on the inputs."""
    values = {place.value for place in (*splice.reads, *splice.writes)}
    inside = {op for block in lifted.blocks for op in block.members}
    written = {block.write for block in lifted.blocks}
    hidden = [value for value in values if lifted.flow.graph.values[value].op in inside and value not in written]
    return not hidden and values <= lifted.flow.activations


def _error_name(what: Attachment, number: int) -> str:
    return f"{what.name}.error{number if len(what.writes) > 1 else ''}"


def _moved(flow: Flow, made: Spliced) -> Flow:
    """The flow on the tape with dictionaries in it."""
    found = copy.copy(flow)
    for name in _BY_OP:
        found.__dict__.pop(name, None)
    shift, graph = made.shift, made.tape.graph
    found.tape, found.graph = made.tape, graph
    back = {new: old for old, new in enumerate(shift)}
    found.linear = [flow.linear[back[op.index]] if op.index in back else op.name in _LINEAR for op in graph.ops]
    found.activations = flow.activations | {v for values in made.made for some in values.values() for v in some}
    found.norms = {shift[op]: value for op, value in flow.norms.items()}
    found.taken = {shift[op] for op in flow.taken}
    found.goals = [made.after.get(value, value) for value in flow.goals]
    found.useful = graph.behind(set(graph.outputs))

    def seen(value: int, op: int) -> int:
        return value if value in graph.ops[op].inputs else made.after.get(value, value)

    adds = {shift[op]: pair for op, pair in flow.residual_adds.items()}
    found.__dict__["residual_adds"] = {op: (seen(one, op), seen(two, op)) for op, (one, two) in adds.items()}
    return found


def _rebased(block: Block, flow: Flow, made: Spliced) -> Block:
    """A block with the numbers that its ops have now, reading what now stands for the values that it read."""
    reads = tuple(
        replace(read, value=made.after.get(read.value, read.value)) if read.value != block.write else read
        for read in block.reads
    )
    extra = dict(block.extra)
    if "fused" in extra:
        extra["fused"] = made.shift[extra["fused"]]
    members = frozenset(made.shift[op] for op in block.members)
    return replace(block, reads=reads, members=members, extra=extra)


def _blocks(flow: Flow, splice: Splice, values: dict[str, tuple[int, ...]]) -> list[Block]:
    """The block of a dictionary's latents, and one for the error of each value that it writes."""
    what, first = splice.attachment, splice.reads[0]
    maker = {name: [flow.graph.values[value].op for value in some] for name, some in values.items()}
    axes = first.latent_axes
    examples = axes.index("batch") if "batch" in axes else 0
    slots = Slots(axes.index("latent"), len(what.latents), first=examples, labels=what.latents)
    last = len(axes) - 1
    if "linear" in values:
        reads = [Read("in", values["linear"][0], Slots(last, len(what.latents), labels=what.latents))]
        inner = maker.get("encode", []) + maker["latents"]
        if what.some.competes:
            reads.append(Read("others", values["read"][0], Slots(last, 1)))
    else:
        reads = [Read("in", values["read"][0], Slots(last, 1))]
        inner = maker["encode"] + maker["latents"]
    members = frozenset(inner)
    found = [Block("dictionary", tuple(reads), values["latents"][0], slots, "f", members, what.name)]
    for number, place in enumerate(splice.writes):
        told, last = values["told"][number], len(place.flat) - 1
        given = dict.fromkeys((*values["given"], told))
        ports = {value: "in" if not at else "out" if value == told else f"in{at}" for at, value in enumerate(given)}
        ends = tuple(Read(port, value, Slots(_last(flow, value), 1)) for value, port in ports.items())
        own = frozenset([*inner, maker["error"][number]])
        error = Block("error", ends, values["error"][number], Slots(last, 1), "", own, _error_name(what, number))
        found.append(error)
    return found


def _last(flow: Flow, value: int) -> int:
    return len(flow.shape(value)) - 1
