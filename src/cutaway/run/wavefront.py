"""The wavefront: many edits of one run, each made where it is and carried on together.

Every world is one edit. The worlds are rows of one real batch that grows: going through the ops in order, a world joins
where its value is made, and until then it is the run itself and costs nothing. Of the positions, only those from the
first edited one on are computed where nothing before them can change (causal networks), and a metric that reads one
position computes only that position as far back as ops allow.

An op that treats positions one by one runs on a range of them; any other runs on whole values, put together from the
run's own positions and the worlds'. Which is which is found by trying (trials.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .replay import as_recorded, execute, plan, stored
from .sizes import Lay, Size, Sizes
from .structure import Ref, swap, tensors
from .tape import Tape

Range = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Patch:
    """One world: `value` has `new` in place of what the run has there. `start`: its first position that differs."""

    value: int
    new: Tensor
    start: int = 0


@dataclass(eq=False)
class Wavefront:
    """How to carry worlds from some values of a tape to one of its values, `target`, at one position or whole."""

    tape: Tape
    sizes: Sizes
    sites: frozenset[int]
    ops: list[int]
    target: int
    position: int | None
    by_position: set[int]
    causal: set[int]
    single: set[int]
    values: dict[int, Tensor] = field(default_factory=dict)

    def on(self, tape: Tape) -> Wavefront:
        """The same for another run with the same graph."""
        made = replace(self, tape=tape, values={})
        made.complete()
        return made

    def complete(self) -> None:
        """Have the run's own values of everything that the ops read and make; again made where they were not kept."""
        graph = self.tape.graph
        wanted = {self.target, *self.sites}
        for index in self.ops:
            wanted.update(graph.ops[index].inputs, graph.ops[index].outputs)
        self.values = execute(self.tape, plan(self.tape, [], wanted))

    # ---- running

    def run(self, patches: Sequence[Patch]) -> Tensor:
        """[worlds, batch of the run, ...]: the target in the world of each patch."""
        made_at = self.tape.graph.values
        order = sorted(range(len(patches)), key=lambda at: (made_at[patches[at].value].op, patches[at].value))
        worlds = [patches[number] for number in order]
        start = min((patch.start for patch in worlds), default=0)
        made = _Pass(self, start, worlds).target()
        at = torch.empty(len(order), dtype=torch.long)
        at[torch.tensor(order)] = torch.arange(len(order))
        return made[at]

    def numbers(self, start: int) -> int:
        """How many numbers one world holds at most in one op, its inputs and outputs together."""
        graph, length = self.tape.graph, max(self.sizes.length, 1)
        touched = {value for index in self.ops for value in graph.ops[index].outputs}
        most = 0
        for index in self.ops:
            op, here = graph.ops[index], 0
            for value in (*op.inputs, *op.outputs):
                if value in touched:
                    size = math.prod(graph.values[value].shape)
                    low, high = self.range(value, start)
                    here += size * (high - low) // length if self.sizes.lays[value].by_position else size
            most = max(most, here)
        return most

    def share(self, value: int) -> float:
        """The share of the ops of the network that come after a value."""
        count = len(self.tape.graph.ops)
        return 1.0 - (self.tape.graph.values[value].op + 1) / count if count else 0.0

    @property
    def alone(self) -> bool:
        """Whether the target comes at the position asked for alone."""
        return self.target in self.single

    def range(self, value: int, start: int) -> Range:
        """The positions at which a value is computed by a pass that starts at a position."""
        if value in self.single and self.position is not None:
            return self.position, self.position + 1
        return (start if value in self.causal else 0), self.sizes.length

    def clean(self, value: int, at: Range, worlds: int) -> Tensor:
        """The run's own value at a range of positions, once for each world."""
        if value not in self.values:
            self.values[value] = stored(self.tape, value)
        lay = self.sizes.lays[value]
        found = cut(self.values[value], lay, at, (0, self.sizes.length))
        if lay.batch < 0 or worlds == 1:
            return found
        if found.shape[lay.batch] == 1:
            return found.expand([worlds if axis == lay.batch else -1 for axis in range(found.ndim)])
        return found.repeat([worlds if axis == lay.batch else 1 for axis in range(found.ndim)])

    def call(self, index: int, given: dict[int, Tensor], worlds: int, at: Range) -> list[Tensor]:
        """One op on given values, at a number of worlds and a range of positions; the outputs in order."""
        call, template = self.tape.calls[index], self.sizes.args[index]
        assert template is not None
        batch, length = worlds * self.sizes.batch, at[1] - at[0]

        def fill(item: Any) -> Any:
            return given[item.id] if isinstance(item, Ref) else item.at(batch, length)

        args, kwargs = swap(template, _FILLED, fill)  # type: ignore[arg-type]
        args = list(args)
        for place, _ in call.written:
            holder: Any = args if isinstance(place, int) else kwargs
            holder[place] = holder[place].clone()
        plain = call.grad and call.autocast is None
        out = call.func(*args, **kwargs) if plain else as_recorded(call, args, kwargs)
        found = {value: tensor for tensor, value in zip(tensors(out), call.results, strict=False) if value >= 0}
        for place, value in call.written:
            found[value] = args[place] if isinstance(place, int) else kwargs[place]
        return [found[value] for value in self.tape.graph.ops[index].outputs]


_FILLED = (Ref, Size)


def cut(tensor: Tensor, lay: Lay, want: Range, have: Range) -> Tensor:
    """A range of positions of a value that is there at a range of positions."""
    if not lay.by_position or want == have:
        return tensor
    if lay.batch == lay.pos:
        parts = tensor.unflatten(lay.pos, (-1, have[1] - have[0]))
        return parts.narrow(lay.pos + 1, want[0] - have[0], want[1] - want[0]).flatten(lay.pos, lay.pos + 1)
    return tensor.narrow(lay.pos, want[0] - have[0], want[1] - want[0])


def joined(parts: list[Tensor], lay: Lay, lengths: list[int]) -> Tensor:
    """Ranges of positions of one value, side by side."""
    if lay.batch == lay.pos:
        parts = [part.unflatten(lay.pos, (-1, length)) for part, length in zip(parts, lengths, strict=True)]
        return torch.cat(parts, lay.pos + 1).flatten(lay.pos, lay.pos + 1)
    return torch.cat(parts, lay.pos)


class _Pass:
    """One pass over the ops, with worlds sorted by where they join."""

    def __init__(self, front: Wavefront, start: int, worlds: Sequence[Patch]) -> None:
        self.front, self.start, self.worlds = front, start, worlds
        self.count = 0
        self.held: dict[int, tuple[Tensor, int, Range]] = {}
        graph = front.tape.graph
        self.last = {value: index for index in front.ops for value in graph.ops[index].inputs}
        self.last[front.target] = len(graph.ops)

    def target(self) -> Tensor:
        """[worlds, batch, ...]"""
        front, graph = self.front, self.front.tape.graph
        for index in front.ops:
            op = graph.ops[index]
            self._join(index)
            if any(value in self.held for value in op.inputs):
                self._step(index)
            for value in op.inputs:
                if self.last[value] == index:
                    self.held.pop(value, None)
        self._join(len(graph.ops))
        whole = (0, front.sizes.length)
        found = self._get(front.target, front.range(front.target, self.start) if front.alone else whole)
        lay = front.sizes.lays[front.target]
        return found.unflatten(lay.batch, (len(self.worlds), -1)).movedim(lay.batch, 0)

    def _step(self, index: int) -> None:
        front, op = self.front, self.front.tape.graph.ops[index]
        ranges = {value: front.range(value, self.start) for value in op.outputs if value in self.last}
        alike = index in front.by_position and len(set(ranges.values())) == 1
        at = next(iter(ranges.values())) if alike else (0, front.sizes.length)
        given = {value: self._get(value, at) for value in op.inputs}
        for value, made in zip(op.outputs, front.call(index, given, self.count, at), strict=True):
            if value in ranges:
                want = ranges[value]
                self.held[value] = (cut(made, front.sizes.lays[value], want, at), self.count, want)

    def _get(self, value: int, at: Range) -> Tensor:
        """A value of all worlds so far, at a range of positions."""
        front, lay = self.front, self.front.sizes.lays[value]
        if value not in self.held:
            return front.clean(value, at, self.count)
        found, count, have = self.held[value]
        if lay.by_position and not (have[0] < at[1] and at[0] < have[1]):
            return front.clean(value, at, self.count)
        if lay.by_position and have != at:
            low, high = max(at[0], have[0]), min(at[1], have[1])
            parts = [cut(found, lay, (low, high), have)]
            lengths = [high - low]
            if at[0] < low:
                parts.insert(0, front.clean(value, (at[0], low), count))
                lengths.insert(0, low - at[0])
            if high < at[1]:
                parts.append(front.clean(value, (high, at[1]), count))
                lengths.append(at[1] - high)
            found = joined(parts, lay, lengths) if len(parts) > 1 else parts[0]
        if count < self.count:
            found = torch.cat([found, front.clean(value, at, self.count - count)], lay.batch)
        return found

    def _join(self, index: int) -> None:
        """Let the worlds in whose patched value is made before an op."""
        values = self.front.tape.graph.values
        while self.count < len(self.worlds) and values[self.worlds[self.count].value].op < index:
            value = self.worlds[self.count].value
            joining = [patch for patch in self.worlds[self.count :] if patch.value == value]
            lay, at = self.front.sizes.lays[value], self.front.range(value, self.start)
            new = [cut(patch.new, lay, at, (0, self.front.sizes.length)) for patch in joining]
            if self.count:
                new.insert(0, self._get(value, at))
            self.count += len(joining)
            self.held[value] = (torch.cat(new, lay.batch), self.count, at)
