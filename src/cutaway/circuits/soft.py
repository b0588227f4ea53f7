"""A network run under a soft circuit: every edge carries a share of its writer and the rest of what ablates it.

As `attribution.mixture` does for circuits of whole edges, but differentiable in the shares and in the ablated values,
so that both can be learned.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from ..attribution.edges import EdgeGraph, Port
from ..attribution.wiring import Stem
from ..lift.blocks import Slots, slot_mask
from ..run.worlds import over


def soft_run(
    graph: EdgeGraph,
    gates: Float[Tensor, "readers writers positions"],
    ablated: Mapping[int, Tensor] | None = None,
) -> Tensor:
    """The network's output when each reader sees gate × a writer + (1 - gate) × what ablates it.

    `ablated` replaces the graph's own ablated values, by write.
    """
    carried = {**graph.corrupted, **(ablated or {})}
    current: dict[int, Tensor] = {}
    for part in graph.parts:
        write = part.block.write
        if not part.ports:
            current[write] = graph.clean[write]
            continue
        reads = {port.value: _read(graph, port, gates, current, carried) for port in part.ports}
        if write < 0:
            return reads[part.block.reads[0].value]
        current[write] = reads[write] if part.inside is None else graph.run(part.inside, reads)[write]
    raise AssertionError("an edge graph ends with its output")


def _read(
    graph: EdgeGraph, port: Port, gates: Tensor, current: dict[int, Tensor], carried: Mapping[int, Tensor]
) -> Tensor:
    """One read, each slot from its own mixture."""
    if not port.stems:
        return graph.run(port.merge, {})[port.value]
    rows = gates[port.rows]  # [slots, writers, positions]
    met = {stem.value: _contribution(graph, stem, rows, current[stem.feed], carried[stem.feed]) for stem in port.stems}
    if port.value in met:
        arrived = met[port.value]
    else:
        arrived = over(lambda world: graph.run(port.merge, world)[port.value], met)
    return arrived[0] if len(arrived) == 1 else diagonal(arrived, port.slots)


def _contribution(graph: EdgeGraph, stem: Stem, rows: Tensor, clean: Tensor, ablated: Tensor) -> Tensor:
    """[slots, …]: what a write contributes to a read, as each reader slot sees it."""
    mixed, steps = _mixture(graph, stem.feed, rows, clean, ablated), stem.steps
    return mixed if steps is None else over(lambda world: graph.run(steps, world)[stem.value], {stem.feed: mixed})


def _mixture(graph: EdgeGraph, value: int, rows: Tensor, clean: Tensor, ablated: Tensor) -> Tensor:
    """[slots, …]: a write as each reader slot sees it."""
    block, axis = graph.writes[value], graph.position_axis(value)
    chosen = rows[:, graph.columns[value]]
    if graph.positions > 1 and axis is None:
        chosen = chosen[:, :, :1]
    shares = torch.stack([slot_mask(row, ablated, block.slots, axis) for row in chosen]).to(clean)
    return ablated + shares * (clean - ablated)


def diagonal(arrived: Tensor, slots: Slots) -> Tensor:
    """Each slot from its own row. arrived: [slots, …] whole values, one made for each slot."""
    axis = slots.axis + 1
    apart = arrived.unflatten(axis, (-1, slots.count) if slots.tiled else (slots.count, -1))
    which = axis + 1 if slots.tiled else axis
    return apart.diagonal(0, 0, which).movedim(-1, which - 1).flatten(slots.axis, slots.axis + 1)
