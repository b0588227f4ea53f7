"""Exact evaluation of circuits: the network run so that each reader sees its own mixture of clean and corrupted writers.

For every read slot, writers whose edge is in the circuit arrive as they are in the run being computed, all others as in
the corrupted run (path patching; Goldowsky-Dill et al. 2023, arXiv:2304.05969; as in EAP-IG and AutoCircuit). Wiring is
evaluated once for each slot and circuit, in one batch by vmap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..attribution.edges import EdgeGraph, Part, Port, slot_mask
from ..attribution.metric import Metric

# Numbers held at once by a batched evaluation of wiring; larger ones are made in chunks.
BUDGET = 48_000_000


@torch.no_grad()
def evaluate(
    graph: EdgeGraph, metric: Metric, masks: Bool[Tensor, "circuits readers writers positions"]
) -> Float[Tensor, "circuits batch"]:
    """The metric of every example under every circuit; a mask says which edges are in the circuit."""
    found = [_evaluate(graph, metric, chunk) for chunk in _chunks(graph, masks)]
    return torch.cat(found)


def _chunks(graph: EdgeGraph, masks: Tensor) -> Iterator[Tensor]:
    size = max(sum(value.numel() for value in graph.clean.values()), 1)
    return iter(masks.split(max(1, BUDGET // (4 * size))))


def _evaluate(graph: EdgeGraph, metric: Metric, masks: Tensor) -> Tensor:
    count = len(masks)
    current: dict[int, Tensor] = {}
    for part in graph.parts:
        block = part.block
        if not part.ports:
            current[block.write] = graph.clean[block.write].expand(count, *graph.clean[block.write].shape)
            continue
        reads = _reads(graph, part, masks, current)
        if block.write < 0:
            logits = reads[block.reads[0].value]
            return torch.stack([metric(row, graph.net) for row in logits])
        if part.inside is None:
            current[block.write] = reads[block.write]
        else:
            inside = part.inside
            current[block.write] = over(lambda given: graph.run(inside, given)[block.write], reads, count)
    raise AssertionError("an edge graph ends with its output")


def _reads(graph: EdgeGraph, part: Part, masks: Tensor, current: dict[int, Tensor]) -> dict[int, Tensor]:
    """{value: [circuits, …]} of a part's reads, each slot from its own mixture."""
    count = len(masks)
    found: dict[int, Tensor] = {}
    for port in part.ports:
        rows = masks[:, port.rows]  # [circuits, slots, writers, positions]
        owners = torch.arange(count).repeat_interleave(rows.shape[1])
        size = max(1, BUDGET // (3 * sum(graph.clean[value].numel() for value in port.feeds) or 1))
        pieces = []
        for chunk, owner in zip(rows.flatten(0, 1).split(size), owners.split(size), strict=True):
            mixed = {value: _mixture(graph, value, chunk, owner, current) for value in port.feeds}
            pieces.append(over(lambda given: graph.run(part.wiring, given)[port.value], mixed, len(chunk)))
        arrived = torch.cat(pieces)
        found[port.value] = _assemble(port, arrived, rows.shape[1], count)
    return found


def _mixture(graph: EdgeGraph, value: int, rows: Tensor, owner: Tensor, current: dict[int, Tensor]) -> Tensor:
    """[rows, …]: a write as each row sees it."""
    block, axis = graph.writes[value], graph.position_axis(value)
    corrupted = graph.corrupted[value]
    chosen = rows[:, graph.columns[value]]  # [rows, slots, positions]
    if graph.positions > 1 and axis is None:
        chosen = chosen[:, :, :1]
    masks = torch.stack([slot_mask(row, corrupted, block.slots, axis) for row in chosen])
    return torch.where(masks, current[value][owner], corrupted)


def _assemble(port: Port, arrived: Tensor, slots: int, count: int) -> Tensor:
    """Each slot from the row that was made for it: [circuits, …]."""
    arrived = arrived.unflatten(0, (count, slots))
    if slots == 1:
        return arrived[:, 0]
    total = torch.zeros_like(arrived[:, 0])
    for slot, row in enumerate(torch.eye(slots, dtype=torch.bool)):
        mask = slot_mask(row[:, None], arrived[0, 0], port.slots, None)
        total = torch.where(mask, arrived[:, slot], total)
    return total


def over(run: Callable[[dict[int, Tensor]], Tensor], given: dict[int, Tensor], count: int) -> Tensor:
    """`run` for each of `count` worlds in one batch by vmap; one world after the other where an op has no batching rule."""
    if not given:
        return run({}).expand(count, *run({}).shape)
    if count > 1:
        try:
            with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no batching rule
                return torch.vmap(run, randomness="same")(given)
        except RuntimeError:
            pass  # an op without a batching rule
    return torch.stack([run({value: tensor[row] for value, tensor in given.items()}) for row in range(count)])
