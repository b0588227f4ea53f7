"""Views that a network writes through: an edit during a run puts another tensor in a view's place, and what is written
into that tensor does not reach what the view was of. A replay follows such writes, so these are edited by replays."""

from __future__ import annotations

from functools import cache

import torch

from .tape import Tape

_MADE_VIEWS = frozenset(("getitem", "T", "mT", "H", "mH"))


def written_through(tape: Tape, address: str) -> bool:
    """Whether the value at an address is a view of an earlier one, and written into later, itself or through a view."""
    graph = tape.graph
    if address not in graph.addresses and address not in graph.exits:
        return False
    value, _ = graph.find(address)
    maker = graph.values[value].op
    if maker < 0 or not _views(graph.ops[maker].name):
        return False
    same = {value}
    for op in graph.ops[maker + 1 :]:
        if same.intersection(op.inputs[:1]):
            after = graph.ops[op.index + 1].name if op.index + 1 < len(graph.ops) else ""
            if op.name != "alias" and after == "alias":  # a write that other tensors on the same memory see
                return True
            if _views(op.name):
                same.update(op.outputs)
    return False


@cache
def _views(name: str) -> bool:
    """Whether the op of this name may return a view of what it is given."""
    packet = getattr(torch.ops.aten, name, None) if name.isidentifier() else None
    schemas = [getattr(packet, overload)._schema for overload in packet.overloads()] if packet is not None else []
    marks = [made.alias_info for schema in schemas for made in schema.returns]
    return name in _MADE_VIEWS or any(mark is not None and not mark.is_write for mark in marks)
