"""Exact evaluation of circuits: the network run so that each reader sees its own mix of clean and corrupted writers.

For every read slot, writers whose edge is in the circuit arrive as they are in the run being computed, all others as in
the corrupted run (path patching; Goldowsky-Dill et al. 2023, arXiv:2304.05969; as in EAP-IG and AutoCircuit).

Many circuits are evaluated at once, as worlds. Worlds and slots that see the same mixture are computed once: a sweep
that takes out one edge at a time shares everything above that edge, and the heads of a layer share their wiring. What
is left runs in one batch by vmap.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..lift.blocks import slot_mask
from ..run.replay import Plan
from ..run.worlds import over
from .alone import Alone, alone
from .edges import EdgeGraph, Part, Port
from .meeting import Total, differences, known, sliced, total
from .metric import Metric
from .wiring import Stem

# Numbers held at once by a batched evaluation; larger batches are made in chunks.
BUDGET = 24_000_000
# With more distinct mixtures a world than this, mixtures are made by the product of masks and differences.
_MANY = 3
Sent = tuple[Tensor, Mapping[int, Tensor]]


@torch.no_grad()
def evaluate(
    graph: EdgeGraph,
    metric: Metric,
    masks: Bool[Tensor, "circuits readers writers positions"],
    sent: Sent | None = None,
) -> Float[Tensor, "circuits batch"]:
    """The metric of every example under every circuit; a mask says which edges are in the circuit.

    `sent`: a mask [circuits, writers] of writers that do not compute but hold the values given for their writes.
    """
    end = alone(graph, metric)
    size = _worlds(graph, masks)
    found, ablated = [], dict[int, Tensor]()
    for start in range(0, len(masks), size):
        some = slice(start, start + size)
        part = (sent[0][some], sent[1]) if sent is not None else None
        found.append(_Evaluation(graph, metric, masks[some], end, part, ablated).run())
    return torch.cat(found)


@torch.no_grad()
def ends(graph: EdgeGraph, metric: Metric) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """The metric of each example with nothing ablated and with everything ablated."""
    good = metric(graph.clean_trace.logits, graph.net)
    if graph.baseline["kind"] == "counterfactual" and graph.corrupted_trace is not None:
        return good, metric(graph.corrupted_trace.logits, graph.net)
    return good, evaluate(graph, metric, torch.zeros(1, *graph.shape(), dtype=torch.bool))[0]


def _worlds(graph: EdgeGraph, masks: Tensor) -> int:
    """How many circuits go together: fewer where readers see many mixtures, each of which is held."""
    numbers = max(sum(value.numel() for value in graph.clean.values()), 1)
    most = max(8, 8 * BUDGET // numbers)
    some = masks[:: max(1, len(masks) // 8)].flatten(2)
    mixtures = sum(len(torch.unique(_hash(mask.long()))) for mask in some) / max(len(some), 1)
    if mixtures <= _MANY + 1:
        return most
    slots = max((len(port.rows) for part in graph.parts for port in part.ports), default=1)
    largest = max(value.numel() for value in graph.clean.values())
    return max(1, min(most, 8 * BUDGET // (largest * int(max(len(graph.writers), min(mixtures, 3 * slots))))))


class _Worlds:
    """A value in every world: `rows` are its distinct versions, `index` [worlds] says which one each world has."""

    def __init__(self, rows: Tensor, index: Tensor) -> None:
        self.rows = rows
        self.index = index


class _Evaluation:
    """One batch of circuits: the worlds of every write so far, and of every contribution."""

    def __init__(
        self, graph: EdgeGraph, metric: Metric, masks: Tensor, end: Alone | None, sent: Sent | None,
        ablated: dict[int, Tensor],
    ) -> None:  # fmt: skip
        self.graph, self.metric, self.masks, self.end, self.sent = graph, metric, masks, end, sent
        self.ablated = ablated  # contributions of ablated writes by value, shared by all batches
        self.current: dict[int, _Worlds] = {}
        self.contributions: dict[tuple[int, int], dict[int, Tensor]] = {}
        # What each slot adds to a sum, [worlds, slots, numbers], and where the slots of each contribution lie.
        self.apart, self.places = torch.empty(0, 0, 0), dict[tuple[int, int], slice]()
        # What was made on the way to a projection, by the hash of the mixture: queries, keys and values share it.
        self.met: tuple[int, dict[int, Tensor]] = (-1, {})

    def run(self) -> Tensor:
        """[circuits, batch]: the metric in every world."""
        for part in self.graph.parts:
            block = part.block
            if not part.ports:
                start = self.graph.clean[block.write][None]
                self._keep(block.write, _Worlds(start, torch.zeros(len(self.masks), dtype=torch.long)))
                continue
            reads = {port.value: self._read(port) for port in part.ports}
            if block.write < 0:
                logits = reads[block.reads[0].value]
                read = self.metric if self.end is None else self.metric.of
                return torch.stack([read(row, self.graph.net) for row in logits.rows])[logits.index]
            self._keep(block.write, reads[block.write] if part.inside is None else self._inside(part, reads))
        raise AssertionError("an edge graph ends with its output")

    def _keep(self, write: int, worlds: _Worlds) -> None:
        """Note a write's worlds, with the values of slots that hold given ones."""
        if self.sent is not None:
            chosen = self.sent[0][:, self.graph.columns[write]]
            rows = chosen.any(1).nonzero()[:, 0]
            if len(rows):
                first, where = _distinct(torch.cat([chosen[rows].long(), worlds.index[rows, None]], 1))
                given, slots = self.sent[1][write], self.graph.writes[write].slots
                masks = torch.stack([slot_mask(chosen[row][:, None], given, slots, None) for row in rows[first]])
                made = torch.where(masks, given, worlds.rows[worlds.index[rows[first]]])
                index = worlds.index.clone()
                index[rows] = len(worlds.rows) + where
                worlds = _Worlds(torch.cat([worlds.rows, made]), index)
        self.current[write] = worlds

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
        if port is self.graph.parts[-1].ports[0] and self.end is not None:
            split, target, merge = None, port.value, None
        else:
            split = known(self.graph, port.value, "sliced", lambda: sliced(self.graph, port))
            target, merge = (split.source, split.enter) if split is not None else (port.value, port.merge)
        keys = {value: self._keys(value, rows, owner) for value in port.feeds}
        mixture = _hash(torch.stack([keys[value] for value in port.feeds], 1))
        found, first, index = _firsts(mixture)
        if self.met[0] != target:
            self.met = target, {}
        seen = self.met[1]
        new = torch.tensor([key not in seen for key in found.tolist()], dtype=torch.bool)
        if bool(new.any()):
            made = self._meet(port, target, merge, rows, owner, keys, first[new])
            seen.update(zip(found[new].tolist(), made, strict=True))
        arrived = torch.stack([seen[key] for key in found.tolist()]) if not bool(new.all()) else made
        if slots == 1:
            return _Worlds(arrived, index)
        combinations = index.view(worlds, slots)
        first, where = _distinct(combinations)
        combinations = combinations[first]
        if split is not None:
            return _Worlds(split.run(self.graph, port, arrived, combinations), where)
        return _Worlds(_assemble(port, arrived, combinations), where)

    def _meet(
        self, port: Port, target: int, merge: Plan | None, rows: Tensor, owner: Tensor, keys: dict[int, Tensor],
        first: Tensor,
    ) -> Tensor:  # fmt: skip
        """[mixtures, …]: the target from what the rows at `first` see."""
        graph = self.graph
        if merge is not None and len(first) > _MANY * len(self.masks):
            summed = known(graph, port.value, "total", lambda: total(graph, port, target))
            if summed is not None:
                return self._by_product(port, target, summed, rows[first], owner[first])
        given = [self._contribution(stem, rows, owner, keys[stem.feed], first) for stem in port.stems]
        size = max(1, BUDGET // (2 * sum(item.rows[0].numel() for item in given)))
        pieces = []
        for chunk in torch.arange(len(first)).split(size):
            met = {stem.value: item.rows[item.index[chunk]] for stem, item in zip(port.stems, given, strict=True)}
            if merge is None:
                end = self.end
                assert end is not None
                pieces.append(over(lambda world: end.run(graph, world), met))  # noqa: B023
            elif target in met:
                pieces.append(met[target])
            else:
                pieces.append(over(lambda world: graph.run(merge, world)[target], met))
        return torch.cat(pieces)

    def _by_product(self, port: Port, target: int, summed: Total, rows: Tensor, owner: Tensor) -> Tensor:
        """The target from the base of ablated contributions and, for each world, masks × differences."""
        graph = self.graph
        for stem in port.stems:
            if stem.value not in self.ablated:
                given = {stem.feed: graph.corrupted[stem.feed]}
                self.ablated[stem.value] = graph.run(stem.steps, given)[stem.value] if stem.steps else given[stem.feed]
        ablated = {stem.value: self.ablated[stem.value] for stem in port.stems}
        base = graph.run(summed.to, ablated)[summed.at] if summed.at not in ablated else ablated[summed.at]
        stems = self._fill(port, base.numel())
        columns = torch.cat([graph.columns[stem.feed] for stem in stems])
        places = [self.places[stem.feed, stem.value] for stem in stems]
        near = all(one.stop == two.start for one, two in zip(places, places[1:], strict=False))
        made = base.new_empty(len(rows), base.numel())
        for world in torch.unique(owner).tolist():
            here, apart = owner == world, self.apart[world]
            parts = apart[places[0].start : places[-1].stop] if near else torch.cat([apart[place] for place in places])
            made[here] = torch.addmm(base.flatten()[None], rows[here][:, columns, 0].to(base), parts)
        sums = made.view(len(rows), *base.shape)
        if summed.at == target:
            return sums
        return over(lambda world: graph.run(summed.rest, world)[target], {summed.at: sums})

    def _fill(self, port: Port, numbers: int) -> list[Stem]:
        """The stems in the order in which their slots' differences lie in `apart`; new ones are put there."""
        graph = self.graph
        if self.apart.shape[2] != numbers:
            slots = sum(len(graph.columns[value]) for value in graph.writes)
            self.apart, self.places = torch.empty(len(self.masks), slots, numbers, dtype=self.apart.dtype), {}
        for stem in port.stems:
            if (stem.feed, stem.value) not in self.places:
                current = self.current[stem.feed]
                found = differences(graph, stem.feed, stem.steps, stem.value, current.rows).flatten(2)
                start = max((place.stop for place in self.places.values()), default=0)
                place = slice(start, start + found.shape[1])
                self.places[stem.feed, stem.value] = place
                self.apart = self.apart.to(found)
                while place.stop > self.apart.shape[1]:  # a write that contributes in several ways
                    self.apart = torch.cat([self.apart, torch.empty_like(self.apart)], 1)
                self.apart[:, place] = found[current.index]
        return sorted(port.stems, key=lambda stem: self.places[stem.feed, stem.value].start)

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
    """A 64-bit hash of each row.

    The sum is mixed, because hashes are hashed again: sums of sums would be equal for rows such as (1, 2) and (2, 1).
    """
    generator = torch.Generator().manual_seed(7919)
    total = ((keys + 1) * torch.randint(-(2**62), 2**62, (keys.shape[1],), generator=generator)).sum(1)
    total = (total ^ (total >> 29)) * 0x2545F4914F6CDD1D
    return total ^ (total >> 32)


def _distinct(keys: Tensor) -> tuple[Tensor, Tensor]:
    """(a place of each distinct row, which distinct row each row is)."""
    return _firsts(_hash(keys))[1:]


def _firsts(hashes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(the distinct hashes, a place of each, which of them each is)."""
    found, index = torch.unique(hashes, return_inverse=True)
    first = torch.full((len(found),), len(hashes)).scatter_reduce_(0, index, torch.arange(len(hashes)), "amin")
    return found, first, index


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
