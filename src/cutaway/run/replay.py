"""Replay: make again the part of a recorded run that edits can reach and targets need, above autograd.

Parse, plan, apply: `plan` decides which ops run and with which slots, from the graph alone; `execute` runs a plan. A
plan knows nothing of tensors' contents, so one plan serves many edits at the same places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import DivergenceError
from ..graph import Op
from .inner_gradients import differentiating, made_again
from .structure import Ref, swap, tensors
from .tape import Tape

Edit = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Place:
    """Where an edit acts: on `value`, as seen by ops from `after` on, or by the ops in `users` alone if given."""

    value: int
    after: int = 0
    users: frozenset[int] | None = None

    def seen_by(self, op: int) -> bool:
        """Whether the op at this index sees the edited value."""
        return op in self.users if self.users is not None else op >= self.after


@dataclass(slots=True)
class Step:
    """One step of a plan: an op (`edit` is -1) or an edit. `reads` maps value ids to slots of the environment."""

    op: int
    reads: dict[int, int]
    edit: int = -1
    source: int = -1
    target: int = -1
    free: tuple[int, ...] = ()


@dataclass(slots=True)
class Plan:
    """Steps, the values that must be there at the start, where the targets will lie, and the `roots` by which the
    network differentiates inside its forward."""

    steps: list[Step]
    stored: list[int]
    targets: dict[int, int]
    ops: int
    roots: frozenset[int] = frozenset()


def plan(
    tape: Tape, places: Sequence[Place], targets: Iterable[int], stops: Iterable[int] = (), recompute: bool = False
) -> Plan:
    """The steps that give `targets` when `places` are edited.

    `stops` are values given by the caller, whatever made them. Values that neither an edit nor a given value reaches
    are taken from the tape where they were kept, unless `recompute`; everything else is made again.
    """
    graph, calls = tape.graph, tape.calls
    targets = list(dict.fromkeys(targets))
    halted = set(stops)
    given = set(tape.leaves) | halted
    if not recompute:
        given |= set(tape.kept)
    by_value: dict[int, list[int]] = {}
    for number, place in enumerate(places):
        by_value.setdefault(place.value, []).append(number)
    for numbers in by_value.values():  # as in a run: an edit of the value comes before one after a module's exit
        numbers.sort(key=lambda number: places[number].after)
    touched = _reach(tape, places, by_value, halted)
    again, roots = made_again(tape, targets, touched, given)
    touched |= again
    needed, stored = _need(tape, targets, by_value, touched, given, halted)
    needed_ops = sorted(needed)
    steps: list[Step] = []
    slot = len(graph.values)
    versions: dict[int, list[tuple[Place, int]]] = {}

    def edit(value: int) -> None:
        nonlocal slot
        source = value
        for number in by_value.get(value, ()):
            earlier = [found for place, found in versions.get(value, []) if place.users == places[number].users]
            source = earlier[-1] if earlier else value
            steps.append(Step(-1, {}, number, source, slot))
            versions.setdefault(value, []).append((places[number], slot))
            slot += 1

    def version(value: int, op: int) -> int:
        found = value
        for place, target in versions.get(value, ()):
            if place.seen_by(op):
                found = target
        return found

    for value in stored:
        edit(value)
    for index in needed_ops:
        op = graph.ops[index]
        steps.append(Step(index, {value: version(value, index) for value in op.inputs}))
        for value in op.outputs:
            if value not in halted:
                edit(value)
    end = len(calls)
    found = {value: version(value, end) for value in targets}
    _mark_frees(steps, set(found.values()), tape)
    return Plan(steps, stored, found, len(needed_ops), frozenset(roots))


def _reach(tape: Tape, places: Sequence[Place], by_value: Mapping[int, list[int]], halted: set[int]) -> set[int]:
    """Ops that an edit or a given value can reach."""
    if not places and not halted:
        return set()
    live = set(halted)
    ops: set[int] = set()
    for op in tape.graph.ops:
        if not live.isdisjoint(op.inputs) or (by_value and _edited(op, places, by_value)):
            ops.add(op.index)
            live.update(op.outputs)
    return ops


def _edited(op: Op, places: Sequence[Place], by_value: Mapping[int, list[int]]) -> bool:
    """Whether an op sees an edit of one of its inputs."""
    return any(places[number].seen_by(op.index) for value in op.inputs for number in by_value.get(value, ()))


def _need(
    tape: Tape,
    targets: list[int],
    by_value: Mapping[int, list[int]],
    touched: set[int],
    given: set[int],
    halted: set[int],
) -> tuple[set[int], list[int]]:
    """Ops to run, and values to take as given, for the targets and for every guard that an edit can reach."""
    graph = tape.graph
    ops: set[int] = set()
    stored: dict[int, None] = {}
    waiting = list(targets)
    seen: set[int] = set()

    def want(op: int) -> None:
        if op not in ops:
            ops.add(op)
            waiting.extend(graph.ops[op].inputs)

    for op in touched:
        if not graph.ops[op].outputs:
            want(op)
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        maker = graph.values[value].op
        if value in halted or maker < 0 or (value in given and maker not in touched):
            stored[value] = None
        else:
            want(maker)
    return ops, list(stored)


def _mark_frees(steps: list[Step], keep: set[int], tape: Tape) -> None:
    """Give every step the slots that nothing after it reads."""
    used: set[int] = set(keep)
    for step in reversed(steps):
        reads = set(step.reads.values()) if step.edit < 0 else {step.source}
        made = set(tape.graph.ops[step.op].outputs) if step.edit < 0 else {step.target}
        step.free = tuple((reads | made) - used)
        used |= reads


def execute(
    tape: Tape,
    todo: Plan,
    edits: Sequence[Edit] = (),
    given: Mapping[int, Tensor] | None = None,
    on_value: Callable[[int, Tensor], None] | None = None,
) -> dict[int, Tensor]:
    """Run a plan and return its targets. `given` overrides stored values; `on_value` sees every value made.

    Raises DivergenceError when a Python value that the network took from a tensor (an `if`, an `item`) comes out
    differently than in the recording: the replay is then not what the network would do.
    """
    if torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            return execute(tape, todo, edits, given, on_value)
    if todo.roots and not torch.is_grad_enabled():
        with torch.enable_grad():
            return execute(tape, todo, edits, given, on_value)
    environment: dict[int, Tensor] = {}
    for value in todo.stored:
        found = given.get(value) if given else None
        environment[value] = found if found is not None else stored(tape, value)
        if value in todo.roots:
            environment[value] = _required(environment[value])
    for step in todo.steps:
        if step.edit >= 0:
            environment[step.target] = edits[step.edit](environment[step.source])
        else:
            if todo.roots:
                with differentiating(tape, step.op):
                    _step(tape, step, environment)
            else:
                _step(tape, step, environment)
            for value in todo.roots.intersection(tape.graph.ops[step.op].outputs) if todo.roots else ():
                environment[value] = _required(environment[value])
            if on_value is not None:
                for value in tape.graph.ops[step.op].outputs:
                    on_value(value, environment[value])
        for slot in step.free:
            environment.pop(slot, None)
    return {value: environment[slot] for value, slot in todo.targets.items()}


def _required(root: Tensor) -> Tensor:
    return root if root.requires_grad else root.detach().requires_grad_()


def stored(tape: Tape, value: int) -> Tensor:
    """A leaf or a kept value of a tape."""
    found = tape.leaves.get(value)
    if found is None:
        found = tape.kept[value]
        if found.requires_grad:  # a view of a parameter, frozen in the recording and not any more
            return found.detach()
    return found.detach() if isinstance(found, torch.nn.Parameter) else found


def _step(tape: Tape, step: Step, environment: dict[int, Tensor]) -> None:
    call = tape.calls[step.op]
    args: list[Any] | tuple[Any, ...]
    reads = step.reads
    if call.slots is not None:
        args = list(call.args)
        for position, value in call.slots:
            args[position] = environment[reads[value]]
        kwargs = call.kwargs
    else:
        args = list(swap(call.args, Ref, lambda ref: environment[reads[ref.id]]))
        kwargs = swap(call.kwargs, Ref, lambda ref: environment[reads[ref.id]])
    for place, _ in call.written:
        if isinstance(place, int):
            args[place] = args[place].clone()
        else:
            kwargs = {**kwargs, place: kwargs[place].clone()}
    if call.grad and call.autocast is None and call.rng is None:
        out = call.func(*args, **kwargs)
    else:
        out = as_recorded(call, args, kwargs)
    if call.answer is not None or not (call.results or call.written):
        _compare(tape, step.op, out)
    for place, value in call.written:
        environment[value] = args[place] if isinstance(place, int) else kwargs[place]
    if isinstance(out, Tensor):
        if call.results and call.results[0] >= 0:
            environment[call.results[0]] = out
    else:
        made = list(tensors(out))
        if call.results and len(made) != len(call.results):
            where = tape.graph.address(tape.graph.ops[step.op])
            raise DivergenceError(
                f"{where} gave {len(made)} values where the recording had {len(call.results)}, so the network may take "
                "another path; run it live instead of replaying it."
            )
        for tensor, value in zip(made, call.results, strict=True):
            if value >= 0:
                environment[value] = tensor


def as_recorded(call: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The call under the gradient mode, autocast and random state that it was recorded under."""
    with ExitStack() as stack:
        if not call.grad:
            stack.enter_context(torch.no_grad())
        if call.autocast is not None:
            stack.enter_context(torch.autocast("cpu", dtype=call.autocast))
        if call.rng is not None and (source := call.kwargs.get("generator")) is not None:
            again = torch.Generator(source.device)
            again.set_state(call.rng)
            kwargs = {**kwargs, "generator": again}
        elif call.rng is not None:
            stack.enter_context(torch.random.fork_rng(devices=[]))
            torch.set_rng_state(call.rng)
        return call.func(*args, **kwargs)


def _compare(tape: Tape, op: int, out: Any) -> None:
    recorded = tape.calls[op].answer
    if not agrees(out, recorded):
        where = tape.graph.address(tape.graph.ops[op])
        raise DivergenceError(
            f"At {where} the network read {_short(out)} from a tensor where the recording read {_short(recorded)}, "
            "so it may take another path; run it live instead of replaying it."
        )


def agrees(out: Any, recorded: Any) -> bool:
    """Whether two Python values taken from tensors are the same; NaN is the same as NaN."""
    if hasattr(recorded, "shape"):  # an array
        return out.shape == recorded.shape and bool((out == recorded).all())
    return bool(out == recorded or (out != out and recorded != recorded))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 40 else text[:37] + "..."
