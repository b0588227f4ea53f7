"""Questions about the dataflow of a run that the lifting patterns ask: who depends on whom, through which kind of
op."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from ..graph import Graph, Op
from ..graph.listing import repeats
from ..run.tape import Tape
from . import ops
from .loops import packed, projected, sequences, with_partial_steps
from .ops import is_linear, is_product, sort_name
from .recurrences import Looped, step_key


class Flow:
    """A tape with its activations and the sort of each op, computed once."""

    def __init__(self, tape: Tape, batch: int) -> None:
        self.tape = tape
        self.graph: Graph = tape.graph
        self.batch = batch
        self.time_major = False  # whether positions come before the batch, in values that have both; set by `lift`
        self.norms: dict[int, int] = {}  # ops of norms, written out or not, to what the norm writes; set by `blocks`
        self._injected: set[int] = set()  # ops that every step of a loop gives the same activation, as a drive
        self.packed = packed(tape.graph)
        self.sequences = sequences(tape.graph)
        self.taken: set[int] = set()  # ops of attentions, experts and scans; set by `blocks`
        self.goals = list(self.graph.outputs)  # what is explained: the main output alone, set by `lift`
        self.inputs = set(self.graph.inputs)
        self.activations = self._activations()
        self.useful = self.graph.behind(set(self.graph.outputs))  # ops that an output depends on
        self.linear = [is_linear(tape, op, self.activations) for op in self.graph.ops]

    def _activations(self) -> set[int]:
        """Floating point values that depend on what the inputs say.

        They begin at floating point inputs and where ids look something up in parameters. Masks and biases made of ids
        alone are not activations, unless nothing else leads to the output (one-hot inputs).
        """
        graph = self.graph
        floating = {value.id for value in graph.values if value.dtype.startswith(("float", "bfloat", "complex"))}
        reached = graph.cone(self.inputs, ops.SHAPE_ONLY)
        seeds = self.inputs & floating
        for op in graph.ops:
            moving = [value for value in op.inputs if value in reached]
            looked_up = any(graph.values[value].kind == "param" for value in op.inputs)
            if moving and looked_up and not any(value in floating for value in moving):
                seeds.update(value for value in op.outputs if value in floating)
        strict = graph.cone(seeds, ops.SHAPE_ONLY) & floating
        return strict if any(value in strict for value in graph.outputs) else reached & floating

    @cached_property
    def ancestors(self) -> set[int]:
        """Ops that a goal depends on: the useful ones without those that only make caches and other by-products."""
        return self.graph.behind(set(self.goals))

    @cached_property
    def learnt(self) -> set[int]:
        """Parameters, and what is made of them without activations: the weights of chosen experts too, but not what
        the inputs themselves look up, as in an embedding."""
        values = self.graph.values
        found = {value.id for value in values if value.kind == "param"}
        asked = set(self.inputs)
        for op in self.graph.ops:
            floating = [value for value in op.inputs if values[value].dtype.startswith(("float", "bfloat"))]
            if any(value in asked for value in op.inputs):
                asked.update(value for value in op.outputs if value not in self.activations)
            elif floating and all(value in found for value in floating):
                found.update(op.outputs)
        return found

    def moves(self, op: Op) -> bool:
        """Whether the op is on a way from an input's values to an output."""
        return op.index in self.useful and any(value in self.activations for value in op.outputs)

    def maker(self, value: int) -> Op | None:
        """The op that made a value."""
        found = self.graph.values[value].op
        return self.graph.ops[found] if found >= 0 else None

    def users(self, value: int) -> list[Op]:
        """The useful ops that read a value."""
        return [self.graph.ops[op] for op in self.graph.users[value] if op in self.useful]

    def shape(self, value: int) -> tuple[int, ...]:
        """A value's shape."""
        return self.graph.values[value].shape

    def back(self, value: int, through: Callable[[Op], bool]) -> list[int]:
        """The values at which walking back from `value` through ops of one sort ends (activations alone)."""
        ends: dict[int, None] = {}
        waiting, seen = [value], set()
        while waiting:
            current = waiting.pop()
            if current in seen:
                continue
            seen.add(current)
            op = self.maker(current)
            if op is None or not through(op):
                ends[current] = None
            else:
                waiting.extend(source for source in op.inputs if source in self.activations)
        return list(ends)

    def ahead(self, value: int, through: Callable[[Op], bool]) -> list[Op]:
        """The ops at which walking ahead from `value` through ops of one sort ends."""
        ends: dict[int, Op] = {}
        waiting, seen = [value], set()
        while waiting:
            current = waiting.pop()
            if current in seen:
                continue
            seen.add(current)
            for op in self.users(current):
                if through(op):
                    waiting.extend(op.outputs)
                else:
                    ends[op.index] = op
        return [ends[index] for index in sorted(ends)]

    def is_layout(self, op: Op) -> bool:
        """Whether an op only rearranges one activation's numbers."""
        return sort_name(op) in ops.LAYOUT and self.linear[op.index]

    def is_soft(self, op: Op) -> bool:
        """Whether an op is linear and not a contraction or a residual add."""
        return self.linear[op.index] and sort_name(op) not in ops.CONTRACTION and op.index not in self.residual_adds

    def is_bend(self, op: Op) -> bool:
        """Whether an op is an elementwise nonlinearity or a product of activations."""
        name = sort_name(op)
        bends = name in ops.ELEMENTWISE or name in ops.SPREADS or is_product(self.tape, op, self.activations)
        return bends and self.moves(op)

    @cached_property
    def residual_adds(self) -> dict[int, tuple[int, int]]:
        """Adds of a value and something computed from it by a contraction, attention or norm: op to (skip, branch)."""
        found: dict[int, tuple[int, int]] = {}
        recurring = {op for item in self.looped.recurrences for op in item.path}
        injected = self._injected if self.carried else set()  # finding what is carried finds these
        hard = [
            sort_name(op) in ops.CONTRACTION or sort_name(op) in ops.NORMS or sort_name(op) == ops.SDPA
            for op in self.graph.ops
        ]
        for op in self.graph.ops:
            moving = ops.active(op, self.activations)
            if sort_name(op) not in ("add", "iadd", "radd") or len(moving) != 2 or op.index not in self.useful:
                continue
            if op.index in injected or op.index in recurring:
                continue
            if self.shape(moving[0]) != self.shape(moving[1]):
                continue
            looped = op.index in self.looped.places
            for skip, branch in (moving, moving[::-1]):
                if any(self._reaches(start, branch, hard) for start in self._starts(skip, found, looped)):
                    found[op.index] = (skip, branch)
                    break
        return found

    def _starts(self, skip: int, adds: dict[int, tuple[int, int]], looped: bool) -> list[int]:
        """A skip and, where a residual add made it, what that added to: branches may run in parallel. Also what a skip
        was padded or cropped from to fit a branch of another size, and, in no loop, what it is a multiple of."""
        made = adds.get(self.graph.values[skip].op)
        starts = [skip] if made is None else [skip, made[0]]
        scale = self.maker(skip)
        if scale is not None and sort_name(scale) in ops.SCALING and len(scale.inputs) == 1 and not looped:
            starts += ops.active(scale, self.activations)
        while (op := self.maker(skip)) is not None and sort_name(op) in ops.FITTING and self.is_layout(op):
            moving = ops.active(op, self.activations)
            if not moving:
                break
            skip = moving[0]
            before, after = self.shape(skip), self.shape(op.outputs[0])
            if before[:1] != after[:1] or len(before) != len(after):
                break  # some rows, as of packed sequences, or one
            if any(a == 1 != b for a, b in zip(after, before, strict=True)):
                break  # one step of a sequence, not a crop
            starts.append(skip)
        return starts

    def _reaches(self, skip: int, branch: int, hard: list[bool]) -> bool:
        """Whether `branch` depends on `skip` (or on what skip is a rearrangement of) through a hard op."""
        first = self.graph.values[skip].op
        waiting, seen = [(branch, False)], set()
        while waiting:
            value, passed = waiting.pop()
            if (value, passed) in seen:
                continue
            seen.add((value, passed))
            if value == skip:
                if passed:
                    return True
                continue
            op = self.graph.values[value].op
            if op <= first or op < 0:
                continue
            waiting.extend(
                (source, passed or hard[op]) for source in self.graph.ops[op].inputs if source in self.activations
            )
        return False

    @cached_property
    def carried(self) -> set[int]:
        """Activations that one step of a loop hands to the next."""
        found: set[int] = set()
        self._carried(list(self.graph.ops), found)
        loose = {value for item in self.looped.recurrences for value in item.loose}
        return with_partial_steps(self, (found & self.activations) - loose) - loose

    @cached_property
    def looped(self) -> Looped:
        """The loops of the run and their linear recurrences."""
        return Looped(self.tape, self.activations, self.users)

    @cached_property
    def states(self) -> set[int]:
        """What steps of a loop write: what is carried, and what is projected into what is carried."""
        return self.carried | projected(self)

    def _carried(self, listed: list[Op], found: set[int]) -> None:
        table: dict[tuple[object, ...], int] = {}
        keys = [table.setdefault(step_key(self.graph, op), len(table)) for op in listed]
        for start, period, count in repeats(keys, max(len(listed) - 1, 1)):
            steps = [listed[start + period * step : start + period * (step + 1)] for step in range(count)]
            if not any(sort_name(op) in ops.CONTRACTION for op in steps[0]):
                continue
            made = [
                {value: (q, port) for q, op in enumerate(step) for port, value in enumerate(op.outputs)}
                for step in steps
            ]
            for before, step in zip(made, steps[1:], strict=False):
                for position, op in enumerate(step):
                    if self.activations.intersection(op.inputs).intersection(steps[0][position].inputs):
                        self._injected.update(same[position].index for same in steps)
                    for place, value in enumerate(op.inputs):
                        if value in before:
                            maker, port = before[value]
                            found.update(same[maker].outputs[port] for same in steps)
                            if place < len(steps[0][position].inputs):
                                found.add(steps[0][position].inputs[place])
            self._carried(steps[0], found)

    @cached_property
    def normed(self) -> set[int]:
        """What norms that are written out normalise, where a nonlinearity made it: x in x * rsqrt(mean(x ** 2))."""
        found: set[int] = set()
        for op in self.graph.ops:
            spread = sort_name(op) in ops.SPREADS
            if not (spread or sort_name(op) in ("mean", "sum")) or not self.moves(op):
                continue
            value, bends = ops.active(op, self.activations)[0], spread
            while (maker := self.maker(value)) is not None and len(set(ops.active(maker, self.activations))) == 1:
                source = ops.active(maker, self.activations)[0]
                if bends or self.shape(source) != self.shape(value) or not (self.is_bend(maker) or self.is_soft(maker)):
                    break
                value, bends = source, self.is_bend(maker)
            if bends and maker is not None and self.is_bend(maker) and self._scales(op, value):
                found.add(value)
        return found

    def _scales(self, op: Op, value: int) -> bool:
        """Whether what an op gives ends as a factor of `value`."""
        waiting, seen = list(op.outputs), set[int]()
        while waiting:
            for user in self.users(waiting.pop()):
                if value in user.inputs and is_product(self.tape, user, self.activations):
                    return True
                if user.index not in seen and (self.is_bend(user) or self.is_soft(user)):
                    seen.add(user.index)
                    waiting.extend(user.outputs)
        return False

    @cached_property
    def cuts(self) -> set[int]:
        """Values where an elementwise region ends: read by a contraction, attention or norm, or carried by a loop."""
        hard = (*ops.CONTRACTION, *ops.NORMS, ops.SDPA)
        return self.read_by([op for op in self.graph.ops if sort_name(op) in hard], self.carried | self.normed)

    def read_by(self, readers: list[Op], known: set[int], collected: bool = True) -> set[int]:
        """`known`, and the activations that some ops read, with what they are rearrangements of; unless `collected`,
        not of several values."""
        found = set(known)
        for op in readers:
            for value in ops.active(op, self.activations):
                waiting = [value]
                while waiting:
                    current = waiting.pop()
                    if current in found and current != value:
                        continue
                    found.add(current)
                    maker = self.maker(current)
                    if maker is not None and self.is_layout(maker):
                        moving = ops.active(maker, self.activations)
                        waiting.extend(moving if collected or len(moving) == 1 else ())
        return found
