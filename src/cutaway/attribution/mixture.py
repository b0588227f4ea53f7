"""Exact evaluation of circuits: the network run so that each reader sees its own mix of clean and corrupted writers.

For every read slot, writers whose edge is in the circuit arrive as they are in the run being computed, all others as in
the corrupted run (path patching; Goldowsky-Dill et al. 2023, arXiv:2304.05969; as in EAP-IG and AutoCircuit).

Many circuits are evaluated at once, as worlds. Worlds and slots that see the same mixture are computed once: a sweep
that takes out one edge at a time shares everything above that edge, and the heads of a layer share their wiring. What
is left runs in one batch by vmap.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..lift.blocks import slot_mask
from ..run.worlds import over
from .edges import EdgeGraph, Part, Port
from .metric import Metric
from .wiring import Stem

# Numbers held at once by a batched evaluation; larger batches are made in chunks.
BUDGET = 24_000_000


@torch.no_grad()
def evaluate(
    graph: EdgeGraph, metric: Metric, masks: Bool[Tensor, "circuits readers writers positions"]
) -> Float[Tensor, "circuits batch"]:
    """The metric of every example under every circuit; a mask says which edges are in the circuit."""
    held = max(sum(value.numel() for value in graph.clean.values()), 1)
    return torch.cat([_Evaluation(graph, metric, chunk).run() for chunk in masks.split(max(8, 8 * BUDGET // held))])


@torch.no_grad()
def ends(graph: EdgeGraph, metric: Metric) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """The metric of each example with nothing ablated and with everything ablated."""
    good = metric(graph.clean_trace.logits, graph.net)
    if graph.baseline["kind"] == "counterfactual" and graph.corrupted_trace is not None:
        return good, metric(graph.corrupted_trace.logits, graph.net)
    return good, evaluate(graph, metric, torch.zeros(1, *graph.shape(), dtype=torch.bool))[0]


class _Worlds:
    """A value in every world: `rows` are its distinct versions, `index` [worlds] says which one each world has."""

    def __init__(self, rows: Tensor, index: Tensor) -> None:
        self.rows = rows
        self.index = index


class _Evaluation:
    """One batch of circuits: the worlds of every write so far, and of every contribution."""

    def __init__(self, graph: EdgeGraph, metric: Metric, masks: Tensor) -> None:
        self.graph, self.metric, self.masks = graph, metric, masks
        self.current: dict[int, _Worlds] = {}
        self.contributions: dict[tuple[int, int], dict[int, Tensor]] = {}

    def run(self) -> Tensor:
        """[circuits, batch]: the metric in every world."""
        for part in self.graph.parts:
            block = part.block
            if not part.ports:
                start = self.graph.clean[block.write][None]
                self.current[block.write] = _Worlds(start, torch.zeros(len(self.masks), dtype=torch.long))
                continue
            reads = {port.value: self._read(port) for port in part.ports}
            if block.write < 0:
                logits = reads[block.reads[0].value]
                return torch.stack([self.metric(row, self.graph.net) for row in logits.rows])[logits.index]
            self.current[block.write] = reads[block.write] if part.inside is None else self._inside(part, reads)
        raise AssertionError("an edge graph ends with its output")

    def _inside(self, part: Part, reads: dict[int, _Worlds]) -> _Worlds:
        """A block's write from its reads, once for each distinct combination of them."""
        first, index = _distinct(torch.stack([worlds.index for worlds in reads.values()], 1))
        inside, write = part.inside, part.block.write
        assert inside is not None
        given = {value: worlds.rows[worlds.index[first]] for value, worlds in reads.items()}
        return _Worlds(over(lambda world: self.graph.run(inside, world)[write], given), index)

    def _read(self, port: Port) -> _Worlds:
        """One read in every world, each slot from its own mixture."""
        masks = self.masks[:, port.rows]  # [worlds, slots, writers, positions]
        worlds, slots = masks.shape[:2]
        rows = masks.flatten(0, 1)
        owner = torch.arange(worlds).repeat_interleave(slots)
        if not port.stems:
            fixed = self.graph.run(port.merge, {})[port.value]
            return _Worlds(fixed[None], torch.zeros(worlds, dtype=torch.long))
        keys = {value: self._keys(value, rows, owner) for value in port.feeds}
        first, index = _distinct(torch.stack([keys[value] for value in port.feeds], 1))
        given = [self._contribution(stem, rows, owner, keys[stem.feed], first) for stem in port.stems]
        size = max(1, BUDGET // (2 * sum(item.rows[0].numel() for item in given)))
        pieces = []
        for chunk in torch.arange(len(first)).split(size):
            met = {stem.value: item.rows[item.index[chunk]] for stem, item in zip(port.stems, given, strict=True)}
            merged = met[port.value] if port.value in met else None
            pieces.append(
                over(lambda world: self.graph.run(port.merge, world)[port.value], met) if merged is None else merged
            )
        arrived = torch.cat(pieces)
        if slots == 1:
            return _Worlds(arrived, index)
        combinations = index.view(worlds, slots)
        first, where = _distinct(combinations)
        return _Worlds(_assemble(port, arrived, combinations[first]), where)

    def _keys(self, value: int, rows: Tensor, owner: Tensor) -> Tensor:
        """[rows]: equal where rows see the same version of a write through the same mask."""
        chosen = rows[:, self.graph.columns[value]].flatten(1)
        version = torch.where(chosen.any(1), self.current[value].index[owner], -1)
        return _hash(torch.cat([chosen.long(), version[:, None]], 1))

    def _contribution(self, stem: Stem, rows: Tensor, owner: Tensor, keys: Tensor, first: Tensor) -> _Worlds:
        """A write's contribution as the rows at `first` see it; those seen before are not made again."""
        made = self.contributions.setdefault((stem.feed, stem.value), {})
        wanted, index = torch.unique(keys[first], return_inverse=True)
        place = torch.full((len(wanted),), len(first)).scatter_reduce_(0, index, torch.arange(len(first)), "amin")
        missing = [spot for spot, key in enumerate(wanted.tolist()) if key not in made]
        if missing:
            picked = first[place[torch.tensor(missing)]]
            mixed = _mixture(self.graph, stem.feed, rows[picked], owner[picked], self.current[stem.feed])
            steps = stem.steps
            if steps is not None:
                mixed = over(lambda world: self.graph.run(steps, world)[stem.value], {stem.feed: mixed})
            made.update((int(wanted[spot]), row) for spot, row in zip(missing, mixed, strict=True))
        return _Worlds(torch.stack([made[key] for key in wanted.tolist()]), index)


def _hash(keys: Tensor) -> Tensor:
    """A 64-bit hash of each row."""
    generator = torch.Generator().manual_seed(7919)
    return ((keys + 1) * torch.randint(-(2**62), 2**62, (keys.shape[1],), generator=generator)).sum(1)


def _distinct(keys: Tensor) -> tuple[Tensor, Tensor]:
    """(a place of each distinct row, which distinct row each row is)."""
    found, index = torch.unique(_hash(keys), return_inverse=True)
    first = torch.full((len(found),), len(keys)).scatter_reduce_(0, index, torch.arange(len(keys)), "amin")
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
