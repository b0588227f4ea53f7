"""Components by their names: the block, the read and the slot that `L1.attn.h2.q` means, and their units."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ..site import unknown
from .blocks import Block, Read, Slots
from .flow import Flow
from .responses import Units, plain_units, units_of

if TYPE_CHECKING:
    from .lift import Lifted

_BEHIND = re.compile(r"(?:@(?P<step>\d+))?(?:\.(?P<mark>h|n|c|u|f|kv)(?P<slot>\d+))?(?:\.(?P<port>[a-z]+\d*))?")


def block_units(flow: Flow, block: Block, value: int, slots: Slots) -> Units:
    """The units of a block's write or read: a neuron each for an MLP, each head's dimensions for an attention."""
    if block.kind == "output":
        return plain_units(flow, value)
    if block.kind == "mlp":
        slots = Slots(slots.axis, flow.shape(value)[slots.axis])
    return units_of(flow, value, slots, heads=block.kind == "attention")


def component(lifted: Lifted, name: str, reading: bool) -> tuple[Block, Read | None, int | None]:
    """A block, the read that is named, and the slot that is named."""
    blocks = [*lifted.sources, *lifted.constants, *lifted.blocks, lifted.output]
    known = [port for block in blocks for port in (_ports(block) if reading else block.slot_names())]
    fitting = [block.name for block in blocks if _BEHIND.fullmatch(name.removeprefix(block.name))]
    whole = max((found for found in fitting if name.startswith(found)), key=len, default="")
    match = _BEHIND.fullmatch(name.removeprefix(whole))
    step = int(match["step"] or 0) if match is not None else 0
    block = next((block for block in blocks if block.name == whole and block.step == step), None)
    if match is None or block is None or (not reading and block.write < 0):
        raise unknown(name, known)
    slot = None if match["slot"] is None else int(match["slot"])
    if slot is not None and block.slots.labels:
        if slot not in block.slots.labels:
            raise unknown(name, known)
        slot = block.slots.labels.index(slot)
    read = None
    if reading:
        reads = [read for read in block.reads if match["port"] in (None, read.port)]
        if not reads or (len(reads) > 1 and match["port"] is None):
            raise unknown(name, known)
        read = reads[0]
    elif match["port"]:
        raise unknown(name, known)
    slots = read.slots if read is not None else block.slots
    value = read.value if read is not None else block.write
    if slot is not None:
        count = block_units(lifted.flow, block, value, slots)
        size = count.shape[count.slot]
        if read is not None and block.kind == "attention" and match["mark"] == "h" and slot < block.slots.count:
            slot = slot * size // block.slots.count  # the group that a head of queries reads
        elif slot >= size:
            raise unknown(name, known)
    return block, read, slot


def _ports(block: Block) -> list[str]:
    return [name for read in block.reads for name in block.reader_names(read)]
