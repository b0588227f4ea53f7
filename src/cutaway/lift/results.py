"""`L0.attn.result`: what each head adds to the residual stream, derived from z through the linear path behind it.

It is no value of the run: heads are added up inside the out-projection. It is made from z when somebody reads it, and
an edit belongs to z. A norm between the out-projection and the stream has the scale that it had in the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ..run.trace import Found, Trace
from .blocks import Block
from .flow import Flow
from .frozen import Frozen, reader
from .names import place_of, way_out
from .ops import active


def result_sites(flow: Flow, blocks: Iterable[Block], sources: Iterable[Block]) -> dict[str, Found]:
    """The `result` of every attention, with an axis of heads put before the last one of what the attention adds."""
    blocks, sources = list(blocks), list(sources)
    found = {}
    for block in blocks:
        if block.kind != "attention":
            continue
        out = attention_out(flow, block)
        place = place_of(flow, out)
        shape = len(flow.shape(out)) + bool(place.fold)
        axes = place.axes if len(place.axes) == shape else tuple(map(str, range(shape)))
        head = 1 if axes[1:2] == ("channel",) else len(axes) - 1
        derive = _derived(flow, [*sources, *blocks], block, out, place, head)
        name = f"{block.name}.result"
        found[name] = Found(f"derived:{name}<{block.name}.z", (*axes[:head], "head", *axes[head:]), 0, derive)
    return found


def attention_out(flow: Flow, block: Block) -> int:
    """What an attention adds to the residual stream or, without one, the last that comes linearly from z alone."""
    out, _ = way_out(flow, block)
    value = block.write
    while out is None:
        users = flow.users(value)
        alone = len(users) == 1 and flow.linear[users[0].index] and active(users[0], flow.activations) == [value]
        if not alone or len(users[0].outputs) != 1:
            return value
        value = users[0].outputs[0]
    return out


def _derived(
    flow: Flow, blocks: list[Block], block: Block, out: int, place: Found, head: int
) -> Callable[[Trace], Tensor]:
    def derive(trace: Trace) -> Tensor:
        frozen = Frozen(flow, blocks, reader(flow, trace), [block.write], towards=out)
        _, parts = frozen.apart(block.write, out)
        return torch.stack([place.unfolded(part) for part in parts], head)

    return derive
