"""`L0.ln1`, `L0.ln2`, `ln_final`: the norms through which a layer's attention, its MLP and the output read the stream.

`scale` is what the stream is divided by, [batch, pos, 1], and `normalized` what comes out before gain and bias, as in
TransformerLens. Norms written out have these values, or the scale's inverse; of norms in one call they are derived.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ..graph import Op
from ..run.structure import Ref, swap
from ..run.trace import Found, Trace
from . import ops
from .blocks import Block
from .flow import Flow
from .frozen import arguments
from .names import place_of, stream_of
from .norms import DIVISIONS, scale_of
from .ops import active, sort_name

_CALLS = {"layer_norm": True, "rms_norm": False}  # whether the mean is taken away


def norm_sites(flow: Flow, blocks: Iterable[Block], output: Block) -> dict[str, Found]:
    """The sites of the norms of every layer, and of the last one, as far as there are any."""
    stream = set(stream_of(flow))
    sites: dict[str, Found] = {}
    for block in [*blocks, output]:
        if block.kind not in ("attention", "mlp", "output"):
            continue
        layer = block.name.partition(".")[0]
        name = {"attention": f"{layer}.ln1", "mlp": f"{layer}.ln2"}.get(block.kind, "ln_final")
        op = _first_norm(flow, block.reads[-1].value, stream)
        if op is not None:
            sites |= {f"{name}.{part}": found for part, found in _places(flow, op, name).items()}
    return sites


def _first_norm(flow: Flow, read: int, stream: set[int]) -> Op | None:
    """The norm next to the residual stream on the way to a read."""
    found: dict[int, Op] = {}
    waiting, seen = [read], set[int]()
    while waiting:
        value = waiting.pop()
        op = flow.maker(value)
        if value in seen or value in stream or op is None:
            continue
        seen.add(value)
        moving = active(op, flow.activations)
        scale = scale_of(flow, op, lambda value: True)
        norm = scale is not None or sort_name(op) in _CALLS
        inner = [value for value in moving if value != scale]
        if norm and _reads(flow, inner[0], stream):
            found[op.index] = op
        elif norm or flow.linear[op.index] or sort_name(op) in ops.NORMS:
            waiting.extend(inner)
    return found[min(found)] if found else None


def _reads(flow: Flow, value: int, stream: set[int]) -> bool:
    """Whether a value is one of the stream, rearranged, cast or centred at most."""
    while value not in stream:
        maker = flow.maker(value)
        if maker is None or not flow.is_soft(maker):
            return False
        value = active(maker, flow.activations)[0]
    return True


def _places(flow: Flow, op: Op, name: str) -> dict[str, Found]:
    graph = flow.graph
    source = graph.site(active(op, flow.activations)[0])
    place = place_of(flow, op.outputs[0])
    scale = scale_of(flow, op, lambda value: True)
    if scale is None:
        parts = _parts(flow, op)
        return {
            part: Found(f"derived:{name}.{part}<{source}", place.axes, 0, _derived(flow, op, pick, place))
            for part, pick in (("scale", lambda x: parts(x)[1]), ("normalized", lambda x: parts(x)[0]))
        }
    divides = sort_name(op) in DIVISIONS
    site = graph.site(scale)

    def inverse(trace: Trace) -> Tensor:
        return place.unfolded(1 / trace.value(site))

    there = Found(site, place.axes, place.fold)
    turned = Found(f"derived:{name}.scale<{site}", place.axes, 0, inverse)
    return {"normalized": place, "scale": there if divides else turned}


def _parts(flow: Flow, op: Op) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """(normalised, scale) of a norm in one call."""
    call = flow.tape.calls[op.index]
    given = arguments(call, swap(call.args, Ref, lambda ref: None), swap(call.kwargs, Ref, lambda ref: None))
    axes = tuple(range(-len(given["normalized_shape"]), 0))
    centred = _CALLS[sort_name(op)]

    def parts(x: Tensor) -> tuple[Tensor, Tensor]:
        eps = given.get("eps", 1e-5 if centred else None)
        eps = torch.finfo(x.dtype).eps if eps is None else eps
        x = x - x.mean(axes, keepdim=True) if centred else x
        scale = (x.square().mean(axes, keepdim=True) + eps).sqrt()
        return x / scale, scale

    return parts


def _derived(flow: Flow, op: Op, pick: Callable[[Tensor], Tensor], place: Found) -> Callable[[Trace], Tensor]:
    source = flow.graph.site(active(op, flow.activations)[0])
    return lambda trace: place.unfolded(pick(trace.value(source)))
