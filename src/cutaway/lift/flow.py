"""Questions about the dataflow of a run that the lifting patterns ask: who depends on whom, through which kind of
op."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from ..graph import Graph, Op
from ..graph.listing import repeats
from ..run.tape import Tape
from . import ops
from .ops import is_linear, is_product, sort_name


class Flow:
    """A tape with its activations and the sort of each op, computed once."""

    def __init__(self, tape: Tape, batch: int) -> None:
        self.tape = tape
        self.graph: Graph = tape.graph
        self.batch = batch
        self.norms: dict[int, int] = {}  # ops of norms, written out or not, to what the norm writes; set by `blocks`
        self.inputs = set(self.graph.inputs)
        self.activations = self._activations()
        self.useful = self._useful()
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

    def _useful(self) -> set[int]:
        """Ops that an output depends on."""
        wanted = set(self.graph.outputs)
        found: set[int] = set()
        for op in reversed(self.graph.ops):
            if any(value in wanted for value in op.outputs):
                found.add(op.index)
                wanted.update(op.inputs)
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
        return self.moves(op) and (sort_name(op) in ops.ELEMENTWISE or is_product(self.tape, op, self.activations))

    @cached_property
    def residual_adds(self) -> dict[int, tuple[int, int]]:
        """Adds of a value and something computed from it by a contraction, attention or norm: op to (skip, branch)."""
        found: dict[int, tuple[int, int]] = {}
        hard = [
            sort_name(op) in ops.CONTRACTION or sort_name(op) in ops.NORMS or sort_name(op) == ops.SDPA
            for op in self.graph.ops
        ]
        for op in self.graph.ops:
            moving = ops.active(op, self.activations)
            if sort_name(op) not in ("add", "iadd", "radd") or len(moving) != 2 or op.index not in self.useful:
                continue
            if self.shape(moving[0]) != self.shape(moving[1]):
                continue
            for skip, branch in (moving, moving[::-1]):
                if self._reaches(skip, branch, hard):
                    found[op.index] = (skip, branch)
                    break
        return found

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
        return found & self.activations

    def _carried(self, listed: list[Op], found: set[int]) -> None:
        table: dict[tuple[object, ...], int] = {}
        keys = [table.setdefault(self._step_key(op), len(table)) for op in listed]
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
                    for place, value in enumerate(op.inputs):
                        if value in before:
                            maker, port = before[value]
                            found.update(same[maker].outputs[port] for same in steps)
                            if place < len(steps[0][position].inputs):
                                found.add(steps[0][position].inputs[place])
            self._carried(steps[0], found)

    def _step_key(self, op: Op) -> tuple[object, ...]:
        """What two ops share when they are the same place in two steps: function, module, parameters, shapes."""
        parameters = tuple(value for value in op.inputs if self.graph.values[value].kind == "param")
        shapes = tuple(self.shape(value) for value in op.outputs)
        return (op.name, self.graph.modules[op.module].path, parameters, shapes)

    @cached_property
    def cuts(self) -> set[int]:
        """Values where an elementwise region ends: read by a contraction, attention or norm, or carried by a loop."""
        found = set(self.carried)
        for op in self.graph.ops:
            if not (sort_name(op) in ops.CONTRACTION or sort_name(op) in ops.NORMS or sort_name(op) == ops.SDPA):
                continue
            for value in ops.active(op, self.activations):
                waiting = [value]
                while waiting:
                    current = waiting.pop()
                    if current in found and current != value:
                        continue
                    found.add(current)
                    maker = self.maker(current)
                    if maker is not None and self.is_layout(maker):
                        waiting.extend(ops.active(maker, self.activations))
        return found
