"""Virtual weights: the network's own weights, multiplied along linear paths between components.

Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits": a head is a QK and an OV matrix in the
coordinates of the residual stream, and heads compose where one writes what another reads. Everything here is taken from
a recording by sending impulses through its wiring, so it holds for grouped queries, latent attention, convolutions and
what else lies between components, and no architecture is known by name.

Norms on the way are linear once their scale is fixed: at what it was in the recording at the stated positions
(`norm="frozen"`), or at one (`norm="unit"`: gains and centring stay, and only directions mean something).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..run.trace import Trace
from .addressing import block_units, component
from .factored import Factored
from .heads import Heads, frozen_wiring, note_of
from .responses import Units, respond

if TYPE_CHECKING:
    from .lift import Lifted


@dataclass(frozen=True, eq=False)
class VirtualWeights:
    """The linear map from a writer to a reader, through linear paths alone.

    `matrix` [*writer's units, *reader's units]: what the reader's units read for one at each of the writer's, summed
    over positions. A head has one axis of units, all heads of a layer two (head, dimension). Where a writer has several
    axes of positions, as in images, `kernel` has them behind: what the reader's middle sees of each place around it, as
    in a convolution's weight, cropped to where anything is seen.
    """

    writer: str
    reader: str
    matrix: Tensor
    kernel: Tensor | None
    note: str

    def norm(self) -> float:
        """The Frobenius norm of the matrix."""
        return float(self.matrix.norm())


def qk(trace: Trace, head: str, *, distance: int = 0, position: int = -1, norm: str = "frozen") -> Factored:
    """The QK matrix of a head (`L0.attn.h3`) or of all heads of an attention (`L0.attn`: a leading axis of heads).

    `x_query @ QK @ x_key` is q · k without biases and without the factor 1/√d, for values of the residual stream that
    the attention reads from. Rotary embedding makes it depend on positions: the query stands at `position` (the last,
    by default), the key `distance` before it; at distance 0 it is the part free of position. A bias by position that is
    added to scores is no part of it. Raises SiteError for no such attention and InputError for no such position.
    """
    found = Heads(trace, head, norm, position, distance)
    queries, keys = found.read("q", found.position), found.read("k", found.position - distance)
    left, right = found.picked(queries, keys.mT)
    return Factored(left, right, note=found.note)


def ov(trace: Trace, head: str, *, distance: int = 0, position: int = -1, norm: str = "frozen") -> Factored:
    """The OV matrix of a head (`L0.attn.h3`) or of all heads of an attention (`L0.attn`: a leading axis of heads).

    `x_key @ OV` is what the head adds to the residual stream at `position` when it attends only to the key `distance`
    before; the result called on `x_key` adds the value's bias. Raises SiteError for no such attention and InputError
    for no such position.
    """
    found = Heads(trace, head, norm, position, distance)
    values, out = found.read("v", found.position - distance), found.write()
    left, right, offset = found.picked(values, out, found.offset("v", found.position - distance))
    return Factored(left, right, offset.squeeze(-2), note=found.note)


def virtual_weights(
    trace: Trace, reader_name: str, writer_name: str, *, position: int = -1, norm: str = "frozen"
) -> VirtualWeights:
    """The linear map from a writer's output to a reader's input through linear paths, as a recording has them.

    Writers: `embed`, `pos_embed`, `L0.attn` or `L0.attn.h3`, `L0.mlp` or `L0.mlp.n7`, `L0.conv.c2`, `L0.rnn@1.u4`.
    Readers have a port: `L1.attn.h2.q`, `L1.mlp.in`, `L1.mlp.n5.in`, `L1.conv.c5.in`, `logits`. The writer's impulse
    stands at `position` (in the middle of an image). Raises SiteError for an unknown name and InputError when other
    components lie between the two on every path.
    """
    lifted: Lifted = trace.lift()
    flow = lifted.flow
    writer, _, first = component(lifted, writer_name, reading=False)
    block, read, second = component(lifted, reader_name, reading=True)
    assert read is not None
    frozen = frozen_wiring(trace, norm)
    start = block_units(flow, writer, writer.write, writer.slots)
    end = block_units(flow, block, read.value, read.slots)
    several = len(start.places) > 1 and bool(end.places)
    found = respond(frozen, start, end, position, (first, second), several)
    if found is None:
        raise InputError(f"No linear path leads from '{writer_name}' to '{reader_name}': other components lie between.")
    kernel = _cropped(found, len(end.places)) if several else None
    matrix = found.flatten(-len(end.places)).sum(-1) if several else found
    return VirtualWeights(
        writer_name, reader_name, _narrowed(matrix, start, end, first, second),
        None if kernel is None else _narrowed(kernel, start, end, first, second), note_of(norm, position, 0),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Composition:
    """How much of what each writing head writes each reading head reads: `scores` [writers, readers], 0 to 1.

    NaN where no linear path leads from one to the other. Random matrices do not score 0: compare with other pairs.
    """

    kind: str
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    scores: Float[Tensor, "writers readers"]
    note: str

    def top(self, count: int = 10) -> list[tuple[str, str, float]]:
        """The pairs (writer, reader, score) that compose most, the highest score first."""
        flat = self.scores.flatten().nan_to_num(-1.0)
        order = flat.argsort(descending=True)[:count].tolist()
        pairs = [(place // len(self.readers), place % len(self.readers)) for place in order if flat[place] >= 0]
        return [(self.writers[row], self.readers[column], float(self.scores[row, column])) for row, column in pairs]


def composition(trace: Trace, kind: str = "q", *, position: int = -1, norm: str = "unit") -> Composition:
    """Q-, K- or V-composition of every pair of heads: ‖OV · QK‖ / (‖OV‖ ‖QK‖) and its like.

    Elhage et al. 2021: `q`: the writer's OV into the reader's query; `k`: into its key; `v`: into its value. What lies
    between a writer and a reader on the residual stream (a norm after the sum, a factor) is multiplied in. QK is taken
    at distance 0. Heads of a pair of layers are one batch, with d_head × d_head products in place of d_model × d_model.
    """
    if kind not in ("q", "k", "v"):
        raise InputError(f"Composition is of kind 'q', 'k' or 'v', not {kind!r}.")
    names = [block.name for block in trace.lift().blocks if block.kind == "attention"]
    heads = [Heads(trace, name, norm, position, 0) for name in names]
    if not heads:
        raise InputError("This network has no attention that lifting recognises, so no heads compose.")
    rows = []
    for writer in heads:
        values, out = writer.picked(writer.read("v", writer.position), writer.write())
        whole = Factored(values, out)
        rows.append([_scores(whole, writer, found, kind) for found in heads])
    labels = tuple(label for found in heads for label in found.block.slot_names())
    scores = torch.cat([torch.cat(row, 1) for row in rows])
    return Composition(kind, labels, labels, scores, note_of(norm, position, 0))


def _scores(whole: Factored, writer: Heads, found: Heads, kind: str) -> Tensor:
    """[writer's heads, reader's heads]: ‖OV · AB‖ / (‖OV‖ ‖AB‖) where the reader reads with A and goes on with B."""
    between = writer.towards(found, kind)
    if between is None:
        return torch.full((len(whole.left), found.block.slots.count), float("nan"))
    position = found.position
    first = found.read(kind, position)
    other = {"q": "k", "k": "q"}.get(kind)
    second = found.write() if other is None else found.read(other, position).mT
    first, second = found.picked(first, second)
    across = whole.right * between if between.numel() == 1 else whole.right @ between
    middle = torch.einsum("wri,hid->whrd", across, first)
    left, right = whole.left.mT @ whole.left, second @ second.mT
    squares = torch.einsum("wrs,whsd,hde,whre->wh", left, middle, right, middle)
    scale = whole.norm()[:, None] * Factored(first, second).norm()[None]
    return squares.clamp(min=0).sqrt() / scale


def _narrowed(found: Tensor, start: Units, end: Units, first: int | None, second: int | None) -> Tensor:
    """Without the axes of length one of slots that were named."""
    gone = [start.axes.index(start.slot)] if first is not None else []
    gone += [len(start.axes) + end.axes.index(end.slot)] if second is not None else []
    kept = [axis for axis in range(found.ndim) if axis not in gone]
    return found.squeeze([axis for axis in range(found.ndim) if axis not in kept]) if gone else found


def _cropped(found: Tensor, places: int) -> Tensor:
    """The last `places` axes cut to where anything is not zero."""
    for axis in range(found.ndim - places, found.ndim):
        used = (found != 0).movedim(axis, 0).flatten(1).any(1).nonzero().flatten()
        if len(used):
            found = found.narrow(axis, int(used[0]), int(used[-1] - used[0]) + 1)
    return found.flip(list(range(found.ndim - places, found.ndim)))  # who is reached, turned to who is seen
