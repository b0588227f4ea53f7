"""Exact evaluation of circuits: the network run so that each reader sees its own mixture of clean and corrupted writers.

For every read slot, writers whose edge is in the circuit arrive as they are in the run being computed, all others as in
the corrupted run (path patching; Goldowsky-Dill et al. 2023, arXiv:2304.05969; as in EAP-IG and AutoCircuit).

Many circuits are evaluated at once, as worlds. Worlds and slots that see the same mixture are computed once: a sweep that
takes out one edge at a time shares everything above that edge, and the heads of a layer share their wiring. What is left
runs in one batch by vmap.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..attribution.edges import EdgeGraph, Part, Port, slot_mask
from ..attribution.metric import Metric
from ..run.worlds import over

# Numbers held at once by a batched evaluation; larger batches are made in chunks.
BUDGET = 24_000_000


@torch.no_grad()
def evaluate(
    graph: EdgeGraph, metric: Metric, masks: Bool[Tensor, "circuits readers writers positions"]
) -> Float[Tensor, "circuits batch"]:
    """The metric of every example under every circuit; a mask says which edges are in the circuit."""
    held = max(sum(value.numel() for value in graph.clean.values()), 1)
    return torch.cat([_evaluate(graph, metric, chunk) for chunk in masks.split(max(8, 8 * BUDGET // held))])


class _Worlds:
    """A value in every world: `rows` are its distinct versions, `index` [worlds] says which one each world has."""

    def __init__(self, rows: Tensor, index: Tensor) -> None:
        self.rows = rows
        self.index = index


def _evaluate(graph: EdgeGraph, metric: Metric, masks: Tensor) -> Tensor:
    count = len(masks)
    current: dict[int, _Worlds] = {}
    for part in graph.parts:
        block = part.block
        if not part.ports:
            current[block.write] = _Worlds(graph.clean[block.write][None], torch.zeros(count, dtype=torch.long))
            continue
        reads = {port.value: _read(graph, part, port, masks[:, port.rows], current) for port in part.ports}
        if block.write < 0:
            logits = reads[block.reads[0].value]
            return torch.stack([metric(row, graph.net) for row in logits.rows])[logits.index]
        if part.inside is None:
            current[block.write] = reads[block.write]
        else:
            current[block.write] = _inside(graph, part, reads)
    raise AssertionError("an edge graph ends with its output")


def _inside(graph: EdgeGraph, part: Part, reads: dict[int, _Worlds]) -> _Worlds:
    """A block's write from its reads, once for each distinct combination of them."""
    values = list(reads)
    keys = torch.stack([reads[value].index for value in values], 1)
    first, index = _distinct(keys)
    inside, write = part.inside, part.block.write
    assert inside is not None
    given = {value: reads[value].rows[reads[value].index[first]] for value in values}
    return _Worlds(over(lambda world: graph.run(inside, world)[write], given), index)


def _read(graph: EdgeGraph, part: Part, port: Port, masks: Tensor, current: dict[int, _Worlds]) -> _Worlds:
    """One read in every world, each slot from its own mixture. masks: [worlds, slots, writers, positions]."""
    worlds, slots = masks.shape[:2]
    rows = masks.flatten(0, 1)
    owner = torch.arange(worlds).repeat_interleave(slots)
    keys = []
    for value in port.feeds:
        chosen = rows[:, graph.columns[value]].flatten(1)
        version = current[value].index[owner]
        keys += [chosen.long(), torch.where(chosen.any(1), version, -1)[:, None]]
    if not keys:
        fixed = graph.run(part.wiring, {})[port.value]
        return _Worlds(fixed[None], torch.zeros(worlds, dtype=torch.long))
    first, index = _distinct(torch.cat(keys, 1))
    size = max(1, BUDGET // (2 * sum(graph.clean[value].numel() for value in port.feeds)))
    pieces = []
    for chunk in first.split(size):
        mixed = {value: _mixture(graph, value, rows[chunk], owner[chunk], current[value]) for value in port.feeds}
        pieces.append(over(lambda world: graph.run(part.wiring, world)[port.value], mixed))
    arrived = torch.cat(pieces)
    if slots == 1:
        return _Worlds(arrived, index)
    combinations = index.view(worlds, slots)
    first, where = _distinct(combinations)
    return _Worlds(_assemble(port, arrived, combinations[first]), where)


def _distinct(keys: Tensor) -> tuple[Tensor, Tensor]:
    """(a place of each distinct row, which distinct row each row is), by a 64-bit hash of the rows."""
    generator = torch.Generator().manual_seed(7919)
    weights = torch.randint(-(2**62), 2**62, (keys.shape[1],), generator=generator)
    hashed = ((keys + 1) * weights).sum(1)
    found, index = torch.unique(hashed, return_inverse=True)
    first = torch.full((len(found),), len(keys), dtype=torch.long)
    first.scatter_reduce_(0, index, torch.arange(len(keys)), "amin")
    return first, index


def _mixture(graph: EdgeGraph, value: int, rows: Tensor, owner: Tensor, worlds: _Worlds) -> Tensor:
    """[rows, …]: a write as each row sees it."""
    block, axis = graph.writes[value], graph.position_axis(value)
    corrupted = graph.corrupted[value]
    chosen = rows[:, graph.columns[value]]  # [rows, slots, positions]
    if graph.positions > 1 and axis is None:
        chosen = chosen[:, :, :1]
    masks = torch.stack([slot_mask(row, corrupted, block.slots, axis) for row in chosen])
    return torch.where(masks, worlds.rows[worlds.index[owner]], corrupted)


def _assemble(port: Port, arrived: Tensor, combinations: Tensor) -> Tensor:
    """Each slot from the row that was made for it. combinations: [versions, slots] rows of `arrived`."""
    total = arrived[combinations[:, 0]]
    for slot, row in enumerate(torch.eye(combinations.shape[1], dtype=torch.bool)):
        if bool((combinations[:, slot] == combinations[:, 0]).all()):
            continue
        mask = slot_mask(row[:, None], arrived[0], port.slots, None)
        total = torch.where(mask, arrived[combinations[:, slot]], total)
    return total
