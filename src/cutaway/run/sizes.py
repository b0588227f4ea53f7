"""Sizes: which axes and which numbers of a recorded run stand for its batch and its number of positions.

A recorded call has its sizes baked in (`view(1, 20, 768)`). A second recording, of one example more and of fewer
positions, shows where they come from: what grew with the batch, with the length, with both, or not at all. With that
the call can be made at another size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..graph import Graph
from .structure import ATOMS, Ref, swap, tensors
from .tape import Tape

if TYPE_CHECKING:
    from .trace import Trace


class Unfit(Exception):
    """The run cannot be made at another size; the message says why."""


@dataclass(frozen=True, slots=True)
class Size:
    """A number that stands for `times` × examples and/or positions, plus `more`."""

    batch: bool
    length: bool
    times: int = 1
    more: int = 0

    def at(self, batch: int, length: int) -> int:
        """The number at a size of batch and a number of positions."""
        return self.times * (batch if self.batch else 1) * (length if self.length else 1) + self.more


@dataclass(frozen=True, slots=True)
class Lay:
    """How a value lies: the axis that counts examples, and the one that counts positions (-1: none).

    They are the same axis where a value is flattened. `odd`: it depends on the length in another way as well.
    """

    batch: int
    pos: int
    odd: bool

    @property
    def by_position(self) -> bool:
        """Whether a range of positions can be cut out of it."""
        return self.pos >= 0 and not self.odd


@dataclass(eq=False)
class Sizes:
    """A tape's sizes: `batch` and `length` as recorded (0: no positions), the values' lays, the ops' arguments."""

    batch: int
    length: int
    lays: list[Lay]
    args: list[tuple[tuple[Any, ...], dict[str, Any]] | None]


def sizes(trace: Trace, tape_of: Callable[[Trace], Tape], positions: bool = True) -> Sizes:
    """Record `trace`'s network at another size and compare the tapes that `tape_of` gives.

    `positions`: whether to look at the number of positions too. Raises Unfit when the network cannot run at another
    size.
    """
    first = next(tensors((trace.args, trace.kwargs)), None)
    if first is None or not first.ndim:
        raise Unfit("the input has no batch")
    batch = first.shape[0]
    sequence = first.ndim == 3 or (first.ndim == 2 and not first.is_floating_point())
    length = first.shape[1] if positions and sequence and first.shape[1] >= 3 else 0
    found = _compared(trace, tape_of, batch, length)
    if found is None:
        raise Unfit("the network cannot run at another size")
    return found


def _compared(trace: Trace, tape_of: Callable[[Trace], Tape], batch: int, length: int) -> Sizes | None:
    shorter = next((n for n in range(length // 2 + 1, length) if (batch + 1) * n != batch * length), 0)
    if length and not shorter:
        length = 0

    def resized(tensor: Tensor) -> Tensor:
        if tensor.ndim and tensor.shape[0] == batch:
            tensor = tensor[[*range(batch), 0]]
        if length and tensor.ndim > 1 and tensor.shape[1] == length:
            tensor = torch.cat([tensor[:, : shorter // 2], tensor[:, length - shorter + shorter // 2 :]], 1)
        return tensor

    args, kwargs = swap((trace.args, trace.kwargs), Tensor, resized)
    try:
        other = tape_of(trace.net.record(*args, keep="none", **kwargs))
    except Exception:  # noqa: BLE001 - whatever the network says to another size, it does not take it
        return None
    tape = tape_of(trace)
    before, after = (batch, length), (batch + 1, shorter)
    pairs, same = _aligned(tape.graph, other.graph)
    lays = [Lay(-1, -1, True) for _ in tape.graph.values]
    for theirs, ours in same.items():
        here, there = tape.graph.values[ours].shape, other.graph.values[theirs].shape
        if len(here) == len(there):
            lays[ours] = _lay([_fit(a, b, before, after) for a, b in zip(here, there, strict=True)])
    templates: list[tuple[tuple[Any, ...], dict[str, Any]] | None] = [None] * len(tape.calls)
    for ours, theirs in pairs:
        one, two = tape.calls[ours], other.calls[theirs]
        try:
            templates[ours] = _Fitting(before, after, same).template((one.args, one.kwargs), (two.args, two.kwargs))
        except Unfit:
            continue
    return Sizes(batch, length, lays, templates)


def _aligned(one: Graph, two: Graph) -> tuple[list[tuple[int, int]], dict[int, int]]:
    """Pairs of ops that do the same in two runs, and the values of the second that are values of the first."""
    ours, theirs = ([(graph.modules[op.module].name, op.name, op.inside) for op in graph.ops] for graph in (one, two))
    leaves = {(value.kind, value.name): value.id for value in one.values if value.op < 0 and value.kind != "const"}
    keys = [(value.id, (value.kind, value.name)) for value in two.values if value.op < 0]
    same = {value: leaves[key] for value, key in keys if key in leaves}
    pairs = []
    for block in SequenceMatcher(None, ours, theirs, autojunk=False).get_matching_blocks():
        for step in range(block.size):
            a, b = one.ops[block.a + step], two.ops[block.b + step]
            if len(a.outputs) == len(b.outputs):
                pairs.append((a.index, b.index))
                same.update(zip(b.outputs, a.outputs, strict=True))
    return pairs, same


def _lay(axes: list[Any]) -> Lay:
    batch = [place for place, size in enumerate(axes) if isinstance(size, Size) and size.batch]
    pos = [place for place, size in enumerate(axes) if isinstance(size, Size) and size.length]
    odd = None in axes or len(pos) > 1 or len(batch) > 1
    sized = [axes[place] for place in (*batch, *pos)]
    odd = odd or any(size.more for size in sized) or any(axes[place].times != 1 for place in pos)
    return Lay(batch[0] if batch else -1, pos[0] if pos else -1, odd)


def _fit(n: int, m: int, before: tuple[int, int], after: tuple[int, int]) -> Any:
    """What a number is that was n at one size and m at another; None if it cannot be told."""
    if n == m:
        return n
    for batch, length in ((True, False), (False, True), (True, True)):
        old = (before[0] if batch else 1) * (before[1] if length else 1)
        new = (after[0] if batch else 1) * (after[1] if length else 1)
        if old and new and n % old == 0 and (n // old) * new == m:
            return Size(batch, length, n // old)
    if before[1] and n - m == before[1] - after[1]:
        return Size(False, True, 1, n - before[1])
    return None


@dataclass(frozen=True)
class _Fitting:
    """Compares the arguments of one op in two runs; `same` names the second run's values as the first's."""

    before: tuple[int, int]
    after: tuple[int, int]
    same: dict[int, int]

    def template(self, one: Any, two: Any) -> Any:
        """Arguments with a Size for every number that changed with the size of the input."""
        if isinstance(one, Ref):
            if not isinstance(two, Ref) or self.same.get(two.id, one.id) != one.id:
                raise Unfit("other values")
            return one
        if type(one) is int and type(two) is int:
            if (found := _fit(one, two, self.before, self.after)) is None:
                raise Unfit("a number of unknown origin")
            return found
        if isinstance(one, (list, tuple)) and isinstance(two, (list, tuple)) and len(one) == len(two):
            items = [self.template(a, b) for a, b in zip(one, two, strict=True)]
            return items if isinstance(one, list) else tuple(items)
        if isinstance(one, dict) and isinstance(two, dict) and one.keys() == two.keys():
            return {key: self.template(value, two[key]) for key, value in one.items()}
        if isinstance(one, slice) and isinstance(two, slice):
            return slice(*(self.template(getattr(one, at), getattr(two, at)) for at in ("start", "stop", "step")))
        if type(one) in ATOMS and one != two:
            raise Unfit("a number of unknown origin")
        return one
