"""The wavefront: many edits of one run, each made where it is and carried on together.

Every world is one edit. The worlds are rows of one real batch that grows: going through the ops in order, a world joins
where its value is made, and until then it is the run itself and costs nothing. Of the positions, only those from the
first edited one on are computed where nothing before them can change (causal networks), and a metric that reads one
position computes only that position as far back as ops allow.

Nothing here knows an op by name. What may be cut is found by trying it: an op whose result on a range of positions is
that range of its result runs on the range, any other on whole values; whether earlier positions can change is found by
disturbing later ones; and whether a batch of two worlds gives each world's own result is tried for every op.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .replay import Place, _as_recorded, _stored, execute, plan
from .sizes import Lay, Size, Sizes, Unfit
from .structure import Ref, swap, tensors
from .tape import Tape

Range = tuple[int, int]
_ALIKE = 1e-4  # of the largest number: an op on fewer rows may round otherwise, an op that is another differs by more


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
    _clean: dict[int, Tensor] = field(default_factory=dict)

    def on(self, tape: Tape) -> Wavefront:
        """The same for another run with the same graph."""
        made = replace(self, tape=tape, _clean={})
        _complete(made)
        return made

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
        if value not in self._clean:
            self._clean[value] = _stored(self.tape, value)
        lay = self.sizes.lays[value]
        found = cut(self._clean[value], lay, at, (0, self.sizes.length))
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
        out = call.func(*args, **kwargs) if plain else _as_recorded(call, args, kwargs)
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
        at = front.range(front.target, self.start)
        found = self._get(front.target, at)
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


# ---- planning


def wavefront(
    tape: Tape, found: Sizes, sites: Iterable[int], target: int, position: int | None = None
) -> Wavefront:
    """The wavefront from the values `sites` to `target`; at `position` alone if given.

    Raises Unfit where a batch of worlds, made of the recorded calls at another size, is not each world by itself.
    """
    graph = tape.graph
    sites = set(sites)
    reached = graph.cone(set(sites))
    needed = _above(tape, target)
    ops = [
        op.index
        for op in graph.ops
        if any(value in reached for value in op.inputs) and any(value in needed for value in op.outputs)
    ]
    if target not in reached:
        raise Unfit("the target does not depend on the sites")
    if any(value in reached for op in graph.ops if not op.outputs for value in op.inputs):
        raise Unfit("Python reads a value that depends on the sites, and what it does then may differ between worlds")
    for index in ops:
        call = tape.calls[index]
        if call.rng is not None or found.args[index] is None:
            raise Unfit(f"{graph.address(graph.ops[index])} cannot be made at another size")
        for value in graph.ops[index].outputs:
            if value in needed and found.lays[value].batch < 0:
                raise Unfit(f"{graph.site(value)} has no axis of examples")
    if any(found.lays[value].batch < 0 for value in sites):
        raise Unfit("a patched value has no axis of examples")
    if position is not None:
        position %= max(found.length, 1)
    front = Wavefront(tape, found, frozenset(sites), ops, target, position, set(), set(), set())
    _complete(front)
    noisy, made = _disturbed(front, sites, 1 if found.length > 1 else 0)
    _try(front, noisy, made)
    if found.length > 2:
        _find_causal(front, sites, noisy)
    if position is not None and found.lays[target].by_position:
        _find_single(front, sites)
    return front


def _above(tape: Tape, target: int) -> set[int]:
    """Every value that the target is made from."""
    seen: set[int] = set()
    waiting = [target]
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        maker = tape.graph.values[value].op
        if maker >= 0:
            waiting += tape.graph.ops[maker].inputs
    return seen


def _complete(front: Wavefront) -> None:
    """Clean values of everything that the ops read and make, made again where they were not kept."""
    graph = front.tape.graph
    wanted = {front.target, *front.sites}
    for index in front.ops:
        wanted.update(graph.ops[index].inputs, graph.ops[index].outputs)
    front._clean = execute(front.tape, plan(front.tape, [], wanted))


def _disturbed(front: Wavefront, sites: set[int], start: int) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Values with noise on the sites from a position on: as ops read them, and as ops made them."""
    tape, lays = front.tape, front.sizes.lays
    noise = torch.Generator().manual_seed(start)
    order = sorted(sites)
    edits = []
    for value in order:
        clean = front._clean[value]
        spread = float(clean.detach().float().std()) if clean.numel() > 1 else 1.0
        more = torch.randn(clean.shape, generator=noise).to(clean) * (spread or 1.0)
        if lays[value].by_position:
            early = cut(more, lays[value], (0, start), (0, front.sizes.length))
            early.zero_()
            if lays[value].batch == lays[value].pos:  # a flattened axis: cut gave a copy
                rest = cut(more, lays[value], (start, front.sizes.length), (0, front.sizes.length))
                more = joined([early, rest], lays[value], [start, front.sizes.length - start])
        edits.append(lambda found, more=more: found + more)
    made: dict[int, Tensor] = {}
    wanted = {value for index in front.ops for value in tape.graph.ops[index].outputs}
    steps = plan(tape, [Place(value) for value in order], [*order, *wanted])
    noisy = execute(tape, steps, edits, on_value=made.__setitem__)
    return noisy, made


def _try(front: Wavefront, noisy: dict[int, Tensor], made: dict[int, Tensor]) -> None:
    """Try every op on two worlds, on a range of positions and whole, and note which run on a range."""
    graph, lays, length = front.tape.graph, front.sizes.lays, front.sizes.length
    whole, late = (0, length), (length // 2, length)

    def two(value: int, at: Range) -> Tensor:
        if value not in noisy:
            return front.clean(value, at, 2)
        parts = [cut(found, lays[value], at, whole) for found in (front._clean[value], noisy[value])]
        return torch.cat(parts, lays[value].batch)

    def works(index: int, at: Range) -> bool:
        op = graph.ops[index]
        try:
            tried = front.call(index, {value: two(value, at) for value in op.inputs}, 2, at)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return False
        wanted = [(got, value) for got, value in zip(tried, op.outputs, strict=True) if lays[value].batch >= 0]
        return all(_alike(got, _pair(front, made, value, at)) for got, value in wanted)

    for index in front.ops:
        op = graph.ops[index]
        touched = [value for value in op.inputs if value in noisy]
        made_here = [value for value in op.outputs if lays[value].batch >= 0]
        cuttable = length > 1 and all(lays[value].by_position for value in (*touched, *made_here))
        if cuttable and works(index, late):
            front.by_position.add(index)
        elif not works(index, whole):
            raise Unfit(f"{graph.address(op)} does not treat the examples of a batch one by one")


def _pair(front: Wavefront, made: dict[int, Tensor], value: int, at: Range) -> Tensor:
    lay, whole = front.sizes.lays[value], (0, front.sizes.length)
    return torch.cat([cut(found, lay, at, whole) for found in (front._clean[value], made[value])], lay.batch)


def _alike(got: Tensor, want: Tensor) -> bool:
    if got.shape != want.shape:
        return False
    if not got.is_floating_point():
        return torch.equal(got, want)
    got, want = torch.nan_to_num(got), torch.nan_to_num(want)
    most = float(want.abs().max()) if want.numel() else 0.0
    return not want.numel() or float((got - want).abs().max()) <= _ALIKE * (most or 1.0)


def _find_causal(front: Wavefront, sites: set[int], noisy: dict[int, Tensor]) -> None:
    """Values whose early positions do not change when later ones of the sites do."""
    lays, length = front.sizes.lays, front.sizes.length
    whole = (0, length)
    front.causal = {value for value in (*sites, *noisy) if lays[value].by_position}
    for start in dict.fromkeys((1, length // 2, length - 1)):
        late = noisy if start == 1 else _disturbed(front, sites, start)[0]
        for value in list(front.causal):
            early = [cut(found, lays[value], (0, start), whole) for found in (front._clean[value], late[value])]
            if not _alike(early[1], early[0]):
                front.causal.discard(value)


def _find_single(front: Wavefront, sites: set[int]) -> None:
    """Values that are needed at the position asked for alone."""
    graph, lays = front.tape.graph, front.sizes.lays
    everywhere: set[int] = set()
    front.single = {front.target}
    for index in reversed(front.ops):
        op = graph.ops[index]
        alone = index in front.by_position and all(
            value in front.single and value not in everywhere for value in op.outputs
        )
        for value in op.inputs:
            if alone and lays[value].by_position:
                front.single.add(value)
            else:
                everywhere.add(value)
    front.single -= everywhere
