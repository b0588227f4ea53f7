"""The same direct effects by algebra, where wiring between attentions only adds positions' own vectors to one stream.

Each attention then is three arrays: a matrix from the stream to its values, its pattern with the norm's scale, a matrix
back to the stream. Writers are carried up to the middle of the network and targets down to it, each with the positions
that it reaches alone; effects within a half are read off on the way, those across are products in the middle. Halving
the way of both does half the work of carrying either through. What has only its own position yet reaches others by one
vector a head, so its first attention costs one position.

Whether a network is such a one is found out on its frozen wiring, never by name; where not, `direct_effects` carries
gradients instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Mixer:
    """An attention between two levels of the stream: `values` [head · width, d] makes what is moved, `moves`
    [heads, to, from] moves it between positions, `back` [head · width, d] writes it to the stream."""

    values: Float[Tensor, "inner d"]
    moves: Float[Tensor, "heads to from_"]
    back: Float[Tensor, "inner d"]

    def carry(self, rows: Float[Tensor, "count length d"], old: int, at: int, span: slice, up: bool) -> None:
        """Add what passes the attention to carried vectors, in place: up from writers, or down from targets.

        `rows` hold the positions in `span`; from `old` on they are zero but at position `at`.
        """
        first, last = (self.values, self.back) if up else (self.back, self.values)
        moves = self.moves if up else self.moves.transpose(1, 2)
        heads = len(moves)
        fresh = rows[old:, at - span.start] @ first.T
        if len(fresh):
            each = fresh.view(len(fresh), heads, -1).transpose(0, 1)
            reach = torch.bmm(each, last.view(heads, -1, last.shape[1]))  # [heads, count, d]
            found = (moves[:, span, at].T @ reach.flatten(1)).view(-1, *reach.shape[1:])
        if old:
            inner = rows[:old].flatten(0, 1) @ first.T
            width = inner.shape[1] // heads
            apart = inner.view(old, -1, heads, width).permute(2, 1, 0, 3).reshape(heads, -1, old * width)
            moved = torch.bmm(moves[:, span, span], apart).view(heads, -1, old, width)
            rows[:old].flatten(0, 1).addmm_(moved.permute(2, 1, 0, 3).reshape(len(inner), -1), last)
        if len(fresh):
            rows[old:] += found.transpose(0, 1)


class Ends:
    """Vectors of the stream, by the position `rows` where they lie and the level where writers are first visible, or
    where targets read; `columns` are their numbers in the table. Kept in order: by position, then by level, upwards for
    writers (`up`) and downwards for targets, which is the order in which they join."""

    def __init__(self, vectors: Tensor, rows: Tensor, levels: Tensor, columns: Tensor, up: bool, size: int) -> None:
        self.up, self.size = up, size  # `size`: how many levels there are
        key = rows * size + (levels if up else size - 1 - levels)
        order = key.argsort(stable=True)
        self.vectors, self.levels, self.columns = vectors[order], levels[order], columns[order]
        self.starts = torch.searchsorted(key[order], torch.arange(size * (int(rows.max()) + 2))).tolist()

    def at(self, row: int, level: int) -> slice:
        """Those of a position and a level."""
        place = row * self.size + (level if self.up else self.size - 1 - level)
        found = self.starts[place : place + 2]
        return slice(*found) if len(found) == 2 else slice(0, 0)


@dataclass(frozen=True, eq=False)
class Stream:
    """A network's wiring as one stream: `mixers[i]` are the attentions that read level i and write to level i + 1;
    nothing moves back if it is `causal`."""

    mixers: tuple[tuple[Mixer, ...], ...]
    length: int
    causal: bool

    def cut(self, writers: Ends, targets: Ends) -> int:
        """The level where both meet, so that least is carried."""
        passed = torch.tensor([0, *(len(found) for found in self.mixers)]).cumsum(0)
        up, down = (torch.bincount(ends.levels, minlength=len(passed)) for ends in (writers, targets))

        def work(level: int) -> int:  # a first attention costs next to nothing
            risen = (passed[level] - passed - 1).clamp(min=0) * up
            fallen = (passed - passed[level] - 1).clamp(min=0) * down
            return int(risen.sum() + fallen.sum())

        return min(range(len(passed)), key=work)

    def span(self, position: int, up: bool) -> slice:
        """The positions that something at a position reaches, up or down."""
        if not self.causal:
            return slice(0, self.length)
        return slice(position, self.length) if up else slice(0, position + 1)


class _Carried:
    """Writers or targets of one position on their way: the first `joined` of them, the first `old` past an attention,
    as `rows` [count, span, d]. `start` is where they begin among all."""

    def __init__(self, ends: Ends, position: int, span: slice, levels: Sequence[int]) -> None:
        self.ends, self.position, self.span = ends, position, span
        found = [ends.at(position, level) for level in levels]
        self.start = found[0].start if found else 0
        count = found[-1].stop - self.start if found else 0
        self.rows = ends.vectors.new_zeros(count, span.stop - span.start, ends.vectors.shape[1])
        self.joined = self.old = 0

    @property
    def own(self) -> slice:
        """Their places among all."""
        return slice(self.start, self.start + self.joined)

    def join(self, level: int) -> None:
        """Let those of a level in."""
        found = self.ends.at(self.position, level)
        count = found.stop - found.start
        place = self.position - self.span.start
        self.rows[self.joined : self.joined + count, place] = self.ends.vectors[found]
        self.joined += count

    def meet(self, others: Ends, level: int, table: Tensor) -> None:
        """Put products with others, which lie at one level, into the table [self, others]."""
        for row in range(self.span.start, self.span.stop) if self.joined else ():
            there = others.at(row, level)
            if there.stop > there.start:
                table[self.own, there] = self.rows[: self.joined, row - self.span.start] @ others.vectors[there].T

    def cross(self, other: _Carried, table: Tensor) -> None:
        """Put products with what was carried the other way into the table [self, others]."""
        low, high = max(self.span.start, other.span.start), min(self.span.stop, other.span.stop)
        if low < high and self.joined and other.joined:
            mine = self.rows[: self.joined, low - self.span.start : high - self.span.start].flatten(1)
            theirs = other.rows[: other.joined, low - other.span.start : high - other.span.start].flatten(1)
            table[self.own, other.own] = mine @ theirs.T

    def carry(self, mixers: Sequence[Mixer], up: bool) -> None:
        """Carry what is under way through the attentions between two levels."""
        rows = self.rows[: self.joined]
        if not mixers or not self.joined:
            return
        before = rows.clone() if len(mixers) > 1 else rows
        for number, mixer in enumerate(mixers):
            copied = rows if number == 0 else before.clone()  # attentions side by side read the same
            mixer.carry(copied, self.old, self.position, self.span, up)
            if number:
                rows += copied - before
        self.old = self.joined


def stream_effects(stream: Stream, writers: Ends, targets: Ends) -> Float[Tensor, "targets writers"]:
    """The direct effect of every writer on every target, in the order of both."""
    table = torch.zeros(len(targets.levels), len(writers.levels))
    middle, top = stream.cut(writers, targets), len(stream.mixers)
    risen = []
    for position in range(stream.length):
        going = _Carried(writers, position, stream.span(position, True), range(middle + 1))
        for level in range(middle + 1):
            going.join(level)
            going.meet(targets, level, table.T)
            going.carry(stream.mixers[level] if level < middle else (), True)
        risen.append(going)
    for position in range(stream.length):
        coming = _Carried(targets, position, stream.span(position, False), range(top, middle, -1))
        for level in range(top, middle, -1):
            coming.join(level)
            coming.meet(writers, level, table)
            coming.carry(stream.mixers[level - 1], False)
        for going in risen:
            coming.cross(going, table)
    return table
