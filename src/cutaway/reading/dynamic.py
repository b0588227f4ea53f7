"""Who contributed to a value in a recorded run, and who used what a component wrote there.

With norms' scales and maxima's choices held at the run's (lift/frozen.py), what a reader reads is a constant plus a sum
over writers, exactly. A writer's share is its part along what was read: <what it adds, what was read> / <what was read,
what was read>. Shares of all writers and the constant sum to one; a negative one works against the rest. The gradient
of the reader along what it read gives the shares of every unit of every writer at once. A reader's use of a writer is
the same figure the other way round: what the writer alone adds to each read, along that read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SiteError
from ..lift import Lifted
from ..lift.addressing import block_units, component
from ..lift.blocks import Block, Read
from ..lift.frozen import Frozen, reader, unguarded
from ..lift.responses import Units
from ..run.trace import Trace
from ..site import Site, read_index

_NOTHING = 1e-12  # a share that is none


@dataclass(frozen=True)
class Contribution:
    """One row: `share` of what was read; `position` is where the largest part lies (−1 where there are none)."""

    name: str
    port: str
    share: float
    position: int


@dataclass(frozen=True)
class Contributions:
    """Rows by the size of their share, what the constant (biases) has, and of how many writers or readers in all."""

    site: str
    rows: tuple[Contribution, ...]
    constant: float
    total: int


def contributed(trace: Trace, site: str, top: int = 10, *, neurons: bool = True) -> Contributions:
    """Who contributed to what a reader read in this run: `L1.attn.h2.k`, `L3.mlp.n7.in`, `logits[vocab=5, pos=-1]`.

    Indices: `pos` and `batch` (all, unless given), and `vocab` for units of `logits`. `neurons`: each neuron a row of
    its own, else each MLP. Raises SiteError for an unknown site.
    """
    lifted: Lifted = trace.lift()
    name, index = _parsed(site)
    places = _steps(lifted, name, reading=True)
    frozen, blocks = _frozen(trace, lifted, [read.value for _, reads, _ in places for read in reads])
    parts: list[tuple[Block, Tensor]] = []
    constant = scale = 0.0
    for block, reads, slot in places:
        for read in reads:
            units = block_units(lifted.flow, block, read.value, read.slots)
            wanted = frozen.values[read.value].detach() * _mask(units, slot, index)
            found, left = _shared_out(frozen, blocks, block, read, wanted)
            parts += found
            constant += left
            scale += float(wanted.double().square().sum())
    rows: dict[str, tuple[str, float, float, int]] = {}
    for other, part in parts:
        _collect(rows, lifted, other, None, part / (scale or 1.0), neurons)
    port = places[0][1][0].port
    kept = [(label, share, at) for label, (_, share, _, at) in rows.items() if abs(share) > _NOTHING]
    listed = [Contribution(label, port, share, at) for label, share, at in kept]
    listed.sort(key=lambda row: -abs(row.share))
    return Contributions(site, tuple(listed[:top]), constant / (scale or 1.0), len(listed))


def _shared_out(
    frozen: Frozen, blocks: list[Block], block: Block, read: Read, wanted: Tensor
) -> tuple[list[tuple[Block, Tensor]], float]:
    """(what every number that a writer wrote adds to a read along `wanted`, what the constant adds)."""
    whole = float(wanted.double().square().sum())
    stops = set(frozen.writes) - ({block.write} if read.value == block.write else set())
    if read.value in stops:  # what is read is a write as it is, as the old state in a cell
        return [(other, wanted.double().square()) for other in blocks if other.write == read.value], 0.0
    steps = unguarded(frozen.tape, frozen.plan([read.value], stops))
    fed = [other for other in blocks if other.write in steps.stored]
    if not fed:
        return [], whole
    with torch.enable_grad():
        given = {other.write: frozen.values[other.write].detach().clone().requires_grad_() for other in fed}
        value = (frozen.run(steps, dict(given))[read.value] * wanted).sum()
        gradients = torch.autograd.grad(value, list(given.values()), allow_unused=True)
    pairs = [(other, gradient) for other, gradient in zip(fed, gradients, strict=True) if gradient is not None]
    parts = [(other, (gradient * given[other.write].detach()).double()) for other, gradient in pairs]
    return parts, whole - sum(float(part.sum()) for _, part in parts)


def _steps(lifted: Lifted, name: str, reading: bool) -> list[tuple[Block, list[Read], int | None]]:
    """(block, reads, slot) of what a name means: of all steps of a cell, unless it names one. Raises SiteError."""
    blocks = [*lifted.sources, *lifted.constants, *lifted.blocks, lifted.output]
    whole = max((block.name for block in blocks if name.startswith(block.name)), key=len, default="")
    steps = sorted({block.step for block in blocks if block.name == whole})
    rest = name[len(whole) :]
    spelled = [name] if len(steps) < 2 or rest.startswith("@") else [f"{whole}@{step}{rest}" for step in steps]
    found: list[tuple[Block, list[Read], int | None]] = []
    for at, text in enumerate(spelled):
        try:
            block, read, slot = component(lifted, text, reading)
        except SiteError:  # the first step has no old state
            if at == len(spelled) - 1 and not found:
                raise
            continue
        found.append((block, [other for other in block.reads if read is not None and other.port == read.port], slot))
    return found


def used(trace: Trace, site: str, top: int = 10, *, neurons: bool = True) -> Contributions:
    """Who read what a writer wrote in this run, and how much of what they read that was: `L0.attn.h1`, `embed[pos=3]`.

    Indices `pos` and `batch` narrow the write. Shares of different readers do not add up. Raises SiteError.
    """
    lifted: Lifted = trace.lift()
    name, index = _parsed(site)
    blocks = [*lifted.sources, *lifted.constants, *lifted.blocks, lifted.output]
    reads = [(other, read) for other in blocks for read in other.reads]
    reads = [(other, read) for other, read in reads if read.value in lifted.flow.activations]
    frozen, _ = _frozen(trace, lifted, [read.value for _, read in reads])
    changes: dict[int, Tensor] = {}
    for block, _, slot in _steps(lifted, name, reading=False):
        units = block_units(lifted.flow, block, block.write, block.slots)
        part = frozen.values[block.write].detach() * _mask(units, slot, index)
        usual = [read.value for _, read in reads if read.value not in frozen.writes]
        found = _changes(frozen, block.write, part, usual, set(frozen.writes))
        for other, read in reads:
            if read.value == block.write and other is not block:
                found[read.value] = part
            elif read.value in frozen.writes and read.value == other.write and other is not block:
                found |= _changes(frozen, block.write, part, [read.value], set(frozen.writes) - {read.value})
        for place, more in found.items():
            changes[place] = changes[place] + more if place in changes else more
    rows: dict[str, tuple[str, float, float, int]] = {}
    for other, read in reads:
        change = changes.get(read.value)
        if change is not None and bool(change.any()):
            value = frozen.values[read.value].detach().double()
            _collect(rows, lifted, other, read, change.double() * value, neurons, value.square())
    listed = [
        Contribution(label, port, part / scale if scale else 0.0, at) for label, (port, part, scale, at) in rows.items()
        if abs(part) > _NOTHING * scale
    ]
    listed.sort(key=lambda row: -abs(row.share))
    return Contributions(site, tuple(listed[:top]), 0.0, len(listed))


def _changes(
    frozen: Frozen, write: int, part: Tensor, wanted: list[int], stops: set[int]
) -> dict[int, Tensor]:
    """What a part of a write adds to each value that wiring leads to."""
    reached = [value for value in dict.fromkeys(wanted) if write in frozen.plan([value], stops).stored]
    if not reached:
        return {}
    steps = unguarded(frozen.tape, frozen.plan(reached, stops))
    with torch.no_grad():
        made, zero = (frozen.run(steps, {write: given}) for given in (part, torch.zeros_like(part)))
    return {value: made[value] - zero[value] for value in reached}


def _frozen(trace: Trace, lifted: Lifted, wanted: list[int]) -> tuple[Frozen, list[Block]]:
    blocks = [*lifted.sources, *lifted.constants, *lifted.blocks, lifted.output]
    writes = [block.write for block in blocks if block.write >= 0]
    return Frozen(lifted.flow, blocks, reader(lifted.flow, trace), [*writes, *wanted]), blocks


def _parsed(site: str) -> tuple[str, dict[str, str]]:
    """A component's name, and indices."""
    name, bracket, rest = site.partition("[")
    return name.strip(), dict(Site.parse(f"x[{rest}" if bracket else "x").index)


def _mask(units: Units, slot: int | None, index: dict[str, str]) -> Tensor:
    """A value's shape, one at what is meant and zero elsewhere."""
    mask = torch.ones(units.shape)
    if slot is not None:
        mask = _only(mask, units.slot, str(slot))
    if "vocab" in index:
        mask = _only(mask, units.axes[-1], index["vocab"])
    if "pos" in index and len(units.places) == 1:
        mask = _only(mask, units.places[0], index["pos"])
    if "batch" in index:
        mask = _only(mask, units.first, index["batch"])
    return mask.flatten(0, 1) if units.tiled else mask


def _only(mask: Tensor, axis: int, text: str) -> Tensor:
    chosen = read_index(text)
    places = torch.arange(mask.shape[axis])
    picked = places[list(chosen) if isinstance(chosen, tuple) else chosen].reshape(-1)
    keep = torch.zeros(mask.shape[axis])
    keep[picked] = 1
    shape = [1] * mask.ndim
    shape[axis] = -1
    return mask * keep.view(shape)


def _collect(
    rows: dict[str, tuple[str, float, float, int]], lifted: Lifted, block: Block, read: Read | None, parts: Tensor,
    neurons: bool, scales: Tensor | None = None,
) -> None:
    """Add a block's parts to the rows, one a component; steps of a cell share names and are added up."""
    value, slots = (block.write, block.slots) if read is None else (read.value, read.slots)
    units = block_units(lifted.flow, block, value, slots)
    names = block.slot_names() if read is None else block.reader_names(read)
    if block.kind == "mlp" and neurons:
        port = f".{read.port}" if read is not None and read.port else ""
        names = [f"{block.name}.n{slot}{port}" for slot in range(units.shape[units.slot])]
    sums, where = _by_component(units, parts, len(names))
    sizes, _ = _by_component(units, scales, len(names)) if scales is not None else (torch.zeros_like(sums), where)
    for label, part, size, at in zip(names, sums.tolist(), sizes.tolist(), where.tolist(), strict=True):
        _, before, scale, _ = rows.get(label, ("", 0.0, 0.0, 0))
        rows[label] = (read.port if read is not None else "", before + part, scale + size, at)


def _by_component(units: Units, parts: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """([components] sums, [components] positions where the largest part lies)."""
    value = parts.unflatten(0, (-1, units.shape[1])) if units.tiled else parts
    place = units.places[0] if len(units.places) == 1 else None
    slot = units.slot
    keep = [slot] if place is None else [slot, place]
    rest = [axis for axis in range(value.ndim) if axis not in keep]
    value = value.sum(rest) if rest else value
    value = value.mT if place is not None and place < slot else value
    value = value[:, None] if place is None else value
    value = value.unflatten(0, (count, -1)).sum(1)
    where = value.abs().argmax(1) if place is not None else torch.full((count,), -1)
    return value.sum(1), where


def sites_of(trace: Trace, site: str) -> tuple[list[str], list[str]]:
    """(sites that `contributed` takes, sites that `used` takes) for what a name means: a head has a port each for its
    query, key and value, and an output. Raises SiteError for a name that is neither."""
    lifted: Lifted = trace.lift()
    name, _ = _parsed(site)
    bracket = site[len(site.partition("[")[0]) :]
    blocks = [*lifted.sources, *lifted.constants, *lifted.blocks, lifted.output]
    ports = list(dict.fromkeys(read.port for block in blocks for read in block.reads if name.startswith(block.name)))
    reading = [name] if _means(lifted, name) else [f"{name}.{port}" for port in ports if port]
    reading = [f"{asked}{bracket}" for asked in reading if _means(lifted, asked)]
    writing = [site] if _means(lifted, name, reading=False) else []
    if not reading and not writing:
        _steps(lifted, name, reading=True)  # raises, with near names
    return reading, writing


def _means(lifted: Lifted, name: str, reading: bool = True) -> bool:
    try:
        return bool(_steps(lifted, name, reading))
    except SiteError:
        return False
