"""Lifting: from the op graph of a run to components, by dataflow alone.

The driver is a table of contents: open recurrent ops, find sources, find blocks, find the residual stream, name sites.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import SiteError
from ..graph import Graph
from ..run.replay import execute, plan
from ..run.structure import tensors
from ..run.tape import Tape
from ..run.trace import Found, Trace
from . import ops
from .assemble import blocks
from .axes import channel_axis
from .batch import batch_axis
from .blocks import AXES, Block, Read, Slots
from .flow import Flow
from .latents import with_latents
from .mixing import mixing_sites
from .names import resolve, standard_sites
from .norm_sites import norm_sites
from .ops import active, channels, sort_name
from .results import result_sites


@dataclass(frozen=True)
class Component:
    """A part of the network: `count` units along `axis` of the value at `site`; `sites` are its invocations."""

    name: str
    kind: str
    site: str
    axis: str
    count: int
    calls: int
    reads: tuple[str, ...]


@dataclass
class Lifted:
    """What lifting found in one run. `blocks` are in order of execution; `sources` come before, `output` after.

    `plain` is the same run without the dictionaries that are attached to its network.
    """

    tape: Tape
    flow: Flow
    sources: list[Block]
    constants: list[Block]
    blocks: list[Block]
    output: Block
    unembed: tuple[str, int] | None
    sites: dict[str, Found] = field(default_factory=dict)
    plain: Lifted | None = None

    @property
    def streams(self) -> list[str]:
        """The values of the residual stream, in order."""
        return [name for name in self.sites if name.removeprefix("resid.").isdigit()]

    def find(self, name: str) -> Found:
        """Where a standard name, or a TransformerLens name, lies. Raises SiteError with near names."""
        return resolve(name, self.sites, self.tape.graph)

    def layout(self, graph: Graph, address: str, axes: tuple[str, ...]) -> tuple[int, tuple[str, ...]]:
        """Fold and axes of the value at a raw address, which has `axes`: those of a name that the value has, if any; of
        an image, the channels are looked for."""
        value = graph.find(address)[0]
        named = (one for one in self.sites.values() if one.derive is None and one.axes and "//" not in one.address)
        same = (one for one in named if one.address in graph.addresses or one.address in graph.exits)
        found = next((one for one in same if graph.find(one.address)[0] == value), None)
        if found is not None:
            return found.fold, found.axes
        if len(axes) != 4 or axes[0] != "batch":
            return 0, axes
        last = channel_axis((self.plain or self).flow, value) == 3
        return 0, ("batch", "height", "width", "channel") if last else ("batch", "channel", "height", "width")

    def components(self) -> list[Component]:
        """One row a component kind and layer: heads, neurons, channels, state units, embeddings, the unembedding."""
        rows: dict[str, Component] = {}
        for block in [*self.sources, *self.constants, *self.blocks]:
            key = f"{block.name}{block.mark if block.mark == 'f' else ''}"  # a dictionary may share another's name
            if (row := rows.get(key)) is not None:
                more = tuple(dict.fromkeys((*row.reads, *(read.port for read in block.reads))))
                rows[key] = replace(row, calls=row.calls + 1, reads=more)
                continue
            shape = self.flow.shape(block.write)
            neurons = block.kind == "mlp" and bool(shape)
            axis = "neuron" if neurons else "expert" if block.units else AXES.get(block.mark, "")
            count = block.units or (shape[block.slots.axis] if neurons else block.slots.count)
            reads = tuple(dict.fromkeys(read.port for read in block.reads))
            rows[key] = Component(block.name, block.kind, self.tape.graph.site(block.write), axis, count, 1, reads)
        if self.unembed is not None:
            site, width = self.unembed
            rows["unembed"] = Component("unembed", "unembedding", site, "vocab", width, 1, ("in",))
        return list(rows.values())

    def __iter__(self) -> Any:
        return iter(self.components())

    def __str__(self) -> str:
        rows = [("component", "kind", "units", "calls", "reads", "site")]
        for part in self.components():
            units = f"{part.count} {part.axis}s" if part.axis else "1"
            rows.append((part.name, part.kind, units, str(part.calls), " ".join(part.reads), part.site))
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines = [
            "  ".join(f"{cell:<{w}}" for cell, w in zip(row[:5], widths, strict=True)) + "  " + row[5] for row in rows
        ]
        return "\n".join([*lines, f"residual stream: {len(self.streams)} values"])


def lift(trace: Trace) -> Lifted:
    """The components of a run and the standard names of its sites.

    Raises SiteError when no output depends on an input.
    """
    recurrent = [trace.graph.address(op) for op in trace.graph.ops if sort_name(op) in ops.RECURRENT]
    tape = trace.tape_with(recurrent)
    first = next(tensors((trace.args, trace.kwargs)), None)
    flow = Flow(tape, first.shape[0] if first is not None and first.ndim else 1)
    if first is not None and batch_axis(flow, first):
        flow.batch, flow.time_major = first.shape[1], True
    output = _main(trace, flow)
    if output is None:
        raise SiteError("No floating point output of this run depends on its inputs, so there is nothing to lift.")
    flow.goals = [output]
    found = blocks(flow)
    ending = Block("output", (Read("", output, _whole(flow, output)),), -1, Slots(0, 1), "", frozenset(), "logits")
    sources = _sources(flow, [*found, ending])
    lifted = Lifted(tape, flow, sources, _constants(flow, found), found, ending, _unembed(flow, output))
    lifted.sites = standard_sites(flow, sources + lifted.constants, found, output)
    lifted.sites |= mixing_sites(flow, found)
    lifted.sites |= result_sites(flow, found, sources) | norm_sites(flow, found, ending)
    return with_latents(trace, lifted, recurrent) if trace.net.attachments else lifted


def _main(trace: Trace, flow: Flow) -> int | None:
    """The output that `trace.logits` is, else the first that depends on the inputs."""
    values, given = flow.graph.outputs, list(tensors(trace.output))
    if len(given) == len(values):
        main = next((value for value, tensor in zip(values, given, strict=True) if tensor is trace.logits), None)
        if main in flow.activations:
            return main
    return next((value for value in values if value in flow.activations), None)


def _whole(flow: Flow, value: int) -> Slots:
    return Slots(max(len(flow.shape(value)) - 1, 0), 1)


def _sources(flow: Flow, found: Iterable[Block]) -> list[Block]:
    """Where activations begin: embeddings of ids, floating point inputs, a first convolution into a stream."""
    writes = {block.write for block in found}
    wanted: set[int] = set()
    waiting = [read.value for block in found for read in block.reads]
    first = {read.value for block in found for read in block.reads if read.value == block.write}
    seen: set[int] = set()
    while waiting:
        value = waiting.pop()
        if value in seen or value not in flow.activations or (value in writes and value not in first):
            continue
        seen.add(value)
        op = flow.maker(value)
        if op is None or not active(op, flow.activations):
            wanted.add(value)
        else:
            waiting.extend(op.inputs)
    sources, counts = [], {"embed": 0, "input": 0}
    for value in sorted(wanted):
        kind = "input" if flow.graph.values[value].op < 0 else "embed"
        name = kind + (str(counts[kind]) if counts[kind] else "")
        counts[kind] += 1
        sources.append(
            Block("embedding" if kind == "embed" else "input", (), value, _whole(flow, value), "", frozenset(), name)
        )
    return sources


def _constants(flow: Flow, blocks: Iterable[Block]) -> list[Block]:
    """Values made of parameters or buffers alone that are added to activations outside the blocks and differ by
    position, or by nothing.

    The first are position embeddings, learnt tables or parts of them; the others embed what is the same everywhere,
    such as a token's type. Biases are broadcast over positions and are neither.
    """
    found: list[Block] = []
    counts: dict[str, int] = {}
    inside = {op for block in blocks for op in block.members}  # where masks and biases of attention are added
    for op in flow.graph.ops:
        if sort_name(op) not in ("add", "iadd") or not flow.moves(op) or op.index in inside:
            continue
        for value in op.inputs:
            if value in flow.activations or not _is_table(flow, value, flow.shape(op.outputs[0])):
                continue
            rows = execute(flow.tape, plan(flow.tape, [], [value]))[value]
            kind = "type_embed" if bool((rows == rows[..., :1, :]).all()) else "pos_embed"
            name = kind + (str(counts[kind]) if kind in counts else "")
            counts[kind] = counts.get(kind, 0) + 1
            found.append(Block("embedding", (), value, _whole(flow, value), "", frozenset(), name))
    return found


def _is_table(flow: Flow, value: int, shape: tuple[int, ...]) -> bool:
    """Whether a value is a parameter or buffer, or rows of one, with a row for each position of an activation of this
    shape."""
    maker = flow.maker(value)
    sources = (value,) if maker is None else maker.inputs
    if maker is not None and sort_name(maker) not in ("embedding", "getitem", "slice", "index_select"):
        return False
    own = flow.shape(value)
    fits = len(shape) >= 3 and len(own) >= 2 and own[-2:] == shape[-2:]
    return fits and any(flow.graph.values[source].kind in ("param", "buffer") for source in sources)


def _unembed(flow: Flow, output: int) -> tuple[str, int] | None:
    """The parameter of the last contraction before the output, if nothing but soft ops stands between, and the number
    of its outputs."""
    for end in flow.back(output, lambda op: flow.is_soft(op) or sort_name(op) in ops.ELEMENTWISE | ops.SOFTMAX):
        op = flow.maker(end)
        if op is not None and sort_name(op) in ops.CONTRACTION and flow.linear[op.index]:
            names = [flow.graph.site(value) for value in op.inputs if flow.graph.values[value].kind == "param"]
            site = max(names, key=lambda name: len(flow.shape(flow.graph.addresses[name])), default=None)
            return None if site is None else (site, flow.shape(op.outputs[0])[channels(op)])
    return None
