"""Linear recurrences: loops whose state comes back to itself linearly.

A value carried by a loop is a linear recurrence when every way from it to itself, through other carried values too, is
linear in the state with everything else held fixed: h = a*h + b*x, with gates a and b that may depend on the input. A
recurrent cell is none, as its state comes back through a nonlinearity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..graph import Graph, Op
from ..graph.listing import repeats
from ..run.tape import Tape
from . import ops
from .ops import is_linear, sort_name

Steps = list[list[Op]]
Place = tuple[int, int]


@dataclass(frozen=True)
class Recurrence:
    """One loop's linear recurrences. `states` are chains with a value a step; `path` are the ops from state to state;
    `loose` are all carried values that need not end an elementwise region."""

    states: tuple[tuple[int, ...], ...]
    path: frozenset[int]
    loose: frozenset[int]


class Looped:
    """The loops of a run. `steps` of each loop, inner ones after the outer; `places` says for each op in one which is
    the innermost, and its position in the step; `recurrences` are the linear ones, an entry a loop."""

    def __init__(self, tape: Tape, activations: set[int], users: Callable[[int], list[Op]]) -> None:
        self.steps = loops(tape.graph)
        self.places: dict[int, Place] = {
            op.index: (number, position)
            for number, steps in enumerate(self.steps)
            for step in steps
            for position, op in enumerate(step)
        }
        found = [recurrence(tape, steps, activations, users) for steps in self.steps]
        self.recurrences: list[Recurrence] = [item for item in found if item is not None]


@dataclass
class _Mark:
    """How a value depends on a state of the step before."""

    linear: bool = True
    added: bool = False
    scaled: bool = False
    weighted: bool = False


def step_key(graph: Graph, op: Op) -> tuple[object, ...]:
    """What two ops share when they are the same place in two steps: function, module, parameters, shapes."""
    parameters = tuple(value for value in op.inputs if graph.values[value].kind == "param")
    shapes = tuple(graph.values[value].shape for value in op.outputs)
    return (op.name, graph.modules[op.module].path, parameters, shapes)


def loops(graph: Graph, listed: list[Op] | None = None) -> list[Steps]:
    """Every loop of a run as its steps, inner loops after the outer ones; the last step may be cut short."""
    listed = graph.ops if listed is None else listed
    table: dict[tuple[object, ...], int] = {}
    keys = [table.setdefault(step_key(graph, op), len(table)) for op in listed]
    found: list[Steps] = []
    for start, period, count in repeats(keys, max(len(listed) - 1, 1)):
        steps = [listed[start + period * step : start + period * (step + 1)] for step in range(count)]
        rest, end = 0, start + period * count
        while end + rest < len(keys) and rest < period and keys[end + rest] == keys[start + rest]:
            rest += 1
        found.append([*steps, listed[end : end + rest]] if rest else steps)
        for step in steps if period > 2 else ():
            found += loops(graph, step)
    return found


def recurrence(tape: Tape, steps: Steps, activations: set[int], users: Callable[[int], list[Op]]) -> Recurrence | None:
    """The linear recurrences of one loop, or None where it has none."""
    whole = [step for step in steps if len(step) == len(steps[0])]
    before, step = whole[-2:]
    places = [place for place in _carried_places(whole) if before[place[0]].outputs[place[1]] in activations]
    if not places:
        return None
    marks = {place: _marks(tape, before[place[0]].outputs[place[1]], step) for place in places}
    edges = {
        place: {to: mark for to in places if (mark := found.get(step[to[0]].outputs[to[1]])) is not None}
        for place, found in marks.items()
    }
    path: set[int] = set()
    chains: list[tuple[int, ...]] = []
    loose: set[int] = set()
    for place in places:
        cycle = _cycle(edges, place)
        inner = [edges[start][end] for start in cycle for end in edges[start] if end in cycle]
        values = tuple(part[place[0]].outputs[place[1]] for part in steps if place[0] < len(part))
        if not any(mark.weighted and not mark.linear for mark in inner):
            loose.update(values)
        own = edges[place].get(place)
        if own is None or not own.added or not all(mark.linear for mark in inner):
            continue
        on_path = _between(step, marks[place], step[place[0]].outputs[place[1]])
        indices = {step[position].index for position in on_path}
        outside = [op for op in users(before[place[0]].outputs[place[1]]) if op.index not in indices]
        if own.scaled or any(sort_name(op) not in ops.LAYOUT for op in outside):
            path |= {part[position].index for part in steps for position in on_path if position < len(part)}
            chains.append(values)
    return Recurrence(tuple(chains), frozenset(path), frozenset(loose)) if chains else None


def _carried_places(steps: Steps) -> list[Place]:
    """The (position in the step, output) of every value that a later step reads from the step before."""
    found: dict[Place, None] = {}
    for before, step in zip(steps, steps[1:], strict=False):
        made = {value: (place, port) for place, op in enumerate(before) for port, value in enumerate(op.outputs)}
        for op in step:
            found.update((made[value], None) for value in op.inputs if value in made)
    return list(found)


def _marks(tape: Tape, start: int, step: list[Op]) -> dict[int, _Mark]:
    """How each value of a step depends on one value of the step before."""
    marks = {start: _Mark()}
    for op in step:
        above = [marks[value] for value in op.inputs if value in marks]
        if not above:
            continue
        name = sort_name(op)
        mark = _Mark(
            all(mark.linear for mark in above) and is_linear(tape, op, set(marks)),
            any(mark.added for mark in above) or name in ops.SUMS,
            any(mark.scaled for mark in above) or name in ops.SCALING or name in ops.CONTRACTION,
            any(mark.weighted for mark in above) or name in ops.CONTRACTION,
        )
        marks.update((value, mark) for value in op.outputs)
    return marks


def _cycle(edges: dict[Place, dict[Place, _Mark]], place: Place) -> set[Place]:
    """The carried values that depend on `place` and that it depends on, itself included."""

    def ahead(start: Place) -> set[Place]:
        seen, waiting = set[Place](), [start]
        while waiting:
            for to in edges[waiting.pop()]:
                if to not in seen:
                    seen.add(to)
                    waiting.append(to)
        return seen

    return {place} | {to for to in ahead(place) if place in ahead(to)}


def _between(step: list[Op], marks: dict[int, _Mark], end: int) -> set[int]:
    """Positions of a step's ops on the ways from the marked start to `end`."""
    wanted, found = {end}, set[int]()
    for position in reversed(range(len(step))):
        op = step[position]
        if any(value in wanted for value in op.outputs) and any(value in marks for value in op.inputs):
            found.add(position)
            wanted.update(value for value in op.inputs if value in marks)
    return found
