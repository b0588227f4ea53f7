"""Comparisons of a recorded run with plain PyTorch, one method each; what goes wrong in one is a finding.

Used by `check`, which says what the figures mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from ..errors import CutawayError, DivergenceError, ModelError, SiteError
from ..graph import ModuleCall
from .difference import difference
from .inside import OPAQUE
from .interventions import Intervention, add, apply, patch, scale
from .plain import Plain
from .replay import execute, plan
from .structure import fresh, tensors, within
from .trace import Trace
from .worlds import over

_SHOWS = frozenset("getitem alias view reshape transpose permute narrow select chunk split unbind flatten".split())


class _Interrupted(BaseException):
    """Ends a run in the middle, as an interrupt from the keyboard does."""


class Comparison:
    """One recording against plain PyTorch: errors by field, and what was noticed on the way."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.plain = Plain(trace.net.module, trace.args, trace.kwargs, trace.tape.generators)
        self.problems = list(trace.tape.problems)
        self.notes: list[str] = []
        self.ungraded = ""
        names = ("parity", "replay_error", "gradient_error", "hook_error")
        self.errors: dict[str, list[float]] = {name: [] for name in names}
        dtypes = {value.dtype for value in trace.graph.values}
        self.exact = not dtypes & {"float16", "bfloat16"}  # else rounding differs between ways to the same number

    def run(self, edits: int) -> None:
        """Make every comparison."""
        with self.comparing("the output"):
            self.outputs()
        with self.comparing("what the recording kept"):
            self.errors["replay_error"].append(self.again())
        if self.exact:
            for op in [op for op in self.trace.graph.ops if op.name in OPAQUE][:edits]:
                with self.comparing(f"'{self.trace.graph.address(op)}', opened,"):
                    self.errors["replay_error"].append(self.inside(op.index))
        calls = _comparable(self.trace, edits)
        for call in calls if self.trace.graph.outputs else ():
            with self.comparing(f"'{call.name}'"):
                self.edited(call)
        for call in calls if self.trace.graph.outputs else ():
            with self.comparing(f"the gradient at '{call.name}'"):
                if (error := self.gradient(call)) is not None:
                    self.errors["gradient_error"].append(error)
        for name in _shared_first(self.trace)[: min(edits, 2)]:
            # Where the network takes another branch with it, only a live run could follow, and it edits no weights.
            with self.comparing(f"the weight '{name}'"), suppress(DivergenceError, SiteError):
                changed = self.plain.run(parameter=name, change=lambda value: value * 0.5)
                self.made(scale(f"param:{name}", 0.5), changed)
        if not self.errors["gradient_error"]:
            self.notes.append(f"gradients were not compared, for {self.untested(calls, edits)}")
        with self.comparing("another input"):
            self.other_input()
        with self.comparing("an interrupted run"):
            self.interrupted(calls)

    def untested(self, calls: Sequence[ModuleCall], edits: int) -> str:
        """Why no gradient was compared."""
        if edits < 1 or not self.trace.graph.outputs:
            return "no edits were asked for" if edits < 1 else "the network returned no tensor"
        if not calls:
            return "no module within the network returns one new floating point tensor that was kept"
        return self.ungraded or "the comparison did not come to an end"

    @contextmanager
    def comparing(self, what: str) -> Iterator[None]:
        """Turn whatever goes wrong inside the block into a finding."""
        try:
            yield
        except Exception as failure:  # noqa: BLE001 - any failure here is a finding, and the others are still wanted
            first = (str(failure).strip() or type(failure).__name__).splitlines()[0]
            self.problems.append(f"{what} could not be compared: {first}")

    def agree(self, got: Any, want: Any) -> None:
        """Note how far an edited run is from the plain one."""
        self.errors["hook_error"].append(self.apart(got, want))

    def apart(self, got: Any, want: Any) -> float:
        """The difference of two outputs, of what their caches hold too."""
        inner = difference(within(got), within(want)) if self.trace.tape.inner else 0.0
        return max(difference(got, want), inner)

    def made(self, edit: Intervention, want: Any, live: bool = False) -> None:
        """Compare the output with an edit to the one wanted; where they matter, edits must have been made once."""
        found = self.trace.net.run_live(self.trace, [edit]) if live else self.trace.replay(edit)
        self.agree(found.output, want)
        for fired in found.receipt:
            if fired.times != 1 and difference(self.trace.output, want) > 0:
                how = "live" if live else "by replay"
                self.problems.append(f"the edit '{fired.kind}' at '{fired.site}' was made {fired.times} times {how}")

    def outputs(self) -> None:
        """The recorded output against the plain one, and what is odd about it."""
        trace, graph = self.trace, self.trace.graph
        found = list(tensors(trace.output))
        if not found:
            kind = type(trace.output).__name__
            self.problems.append(f"the network returned no tensor but a {kind}, so there is nothing to compare")
            return
        before = torch.get_rng_state()
        want, after = self.plain.run(lambda output: (fresh(output), torch.get_rng_state()))
        self.errors["parity"].append(self.apart(trace.output, want))
        if any(tensor.is_floating_point() and not tensor.is_nested and tensor.isnan().any() for tensor in found):
            self.problems.append(f"the output holds NaN, first made at '{self.first_nan()}'")
        if not graph.cone(set(graph.inputs)) & set(graph.outputs) and graph.inputs:
            self.problems.append("the output depends on no input through a recorded call, so it was made out of sight")
        if not torch.equal(before, after):
            mode = " in training mode (eval() turns dropout off)" if trace.net.module.training else ""
            self.notes.append(f"the network draws random numbers{mode}; all figures are for this one draw")

    def first_nan(self) -> str:
        """The first op that made NaN."""
        for value, tensor in sorted(self.trace.tape.kept.items()):
            if tensor.is_floating_point() and not tensor.is_nested and tensor.isnan().any():
                return self.trace.graph.site(value)
        return "an input"

    def again(self) -> float:
        """How far what is made again from the leaves alone is from what was kept during the run."""
        tape, graph = self.trace.tape, self.trace.graph
        blank: set[int] = set()  # memory that nothing was written into yet, and what shows it
        for op in graph.ops:
            if "empty" in op.name or (op.name in _SHOWS and not blank.isdisjoint(op.inputs)):
                blank.update(op.outputs)
        kept = {value: kept for value, kept in tape.kept.items() if value not in blank}
        wanted = {value: held for value, held in kept.items() if graph.values[value].op >= 0}
        made = execute(tape, plan(tape, [], wanted, recompute=True))
        return max((difference(made[value], held) for value, held in wanted.items()), default=0.0)

    def inside(self, index: int) -> float:
        """How far the output of an op that was opened is from that of the op."""
        op, tape = self.trace.graph.ops[index], self.trace.tape
        opened = self.trace.tape_with([self.trace.graph.address(op)])
        outputs = [value for value in op.outputs if value in tape.kept]
        made = execute(opened, plan(opened, [], outputs, op.inputs, recompute=True))
        return max((difference(made[value], tape.kept[value]) for value in outputs), default=0.0)

    def edited(self, call: ModuleCall) -> None:
        """A module call's output halved, changed in one row and at one place, patched with itself, and in worlds."""
        trace, at, value = self.trace, (call.path, call.call), call.outputs[0]
        want = self.plain.run(at=at, change=lambda out: out * 0.5)
        self.made(scale(call.name, 0.5), want)
        self.made(scale(call.name, 0.5), want, live=True)
        shape = trace.graph.values[value].shape
        for axis in (0, 1) if len(shape) > 1 else (0,):
            place = (shape[axis] - 1) // 2
            edit = scale(f"{call.name}[{axis}={place}]", -1.0)
            self.made(edit, self.plain.run(at=at, change=_negated(axis, place)))
        # A patch with the value itself changes nothing, but to a gradient that the network takes inside.
        own = trace.value(call.name)
        with suppress(CutawayError):  # which a network that takes a gradient inside refuses, with the reason
            same = trace.replay(patch(call.name, trace)).output
            self.agree(same, self.plain.run(at=at, change=lambda out: own.clone()))
        if self.exact:
            with suppress(DivergenceError, ModelError):  # it reads numbers, or takes a gradient that this cuts
                self.agree(*self.worlds(value))

    def worlds(self, value: int) -> tuple[Tensor, Tensor]:
        """Three runs that differ in one value, in one batch and one by one."""
        tape, output = self.trace.tape, self.trace.graph.outputs[0]
        steps = plan(tape, [], [output], [value])
        own = self.trace.tape.kept[value].detach()
        # Nothing far from what the network knows: saturated outputs would make its rounding look like an error.
        rows = torch.stack([own * factor for factor in (0.5, 1.0, 0.0)])
        many = over(lambda given: execute(tape, steps, given=given)[output], {value: rows})
        return many, torch.stack([execute(tape, steps, given={value: row})[output] for row in rows])

    def gradient(self, call: ModuleCall) -> float | None:
        """The gradient of a random direction of the output for a module's output; None where there is none."""
        trace, found = self.trace, []
        value = trace.value(call.name)
        for replayed in (False, True):
            delta = torch.zeros_like(value).requires_grad_()

            def slope(output: Any, delta: Tensor = delta) -> Tensor | None:
                outs = [out for out in tensors(output) if out.requires_grad and not out.is_nested]
                if not outs:
                    return None
                draw = torch.Generator().manual_seed(0)
                weights = [torch.randn(out.shape, generator=draw, dtype=torch.float64).to(out) for out in outs]
                parts = [(out * weight).sum().abs() for out, weight in zip(outs, weights, strict=True)]
                total = torch.stack(parts).sum()
                return torch.autograd.grad(total, delta, allow_unused=True)[0]

            try:
                if replayed:
                    found.append(slope(trace.replay(add(call.name, delta)).output))
                else:
                    found.append(self.plain.run(slope, at=(call.path, call.call), change=delta.add))
            except (RuntimeError, TypeError):
                if replayed:
                    raise
                self.ungraded = "the network itself cannot be differentiated: it writes over what its gradient needs"
                return None
        if found[0] is None and found[1] is None:
            self.ungraded = "no gradient leads from the output to the modules that were tried"
            return None
        if found[0] is None or found[1] is None:
            where = "in the network but not in a replay" if found[1] is None else "in a replay but not in the network"
            self.problems.append(f"the gradient at '{call.name}' is there {where}")
            return float("inf")
        return difference(found[1], found[0])

    def other_input(self) -> None:
        """The recorded run on other inputs of the same shape, against the network on them."""
        trace = self.trace
        edits = [apply(f"input:{place}", _other) for place in range(len(trace.graph.inputs))]
        if not edits or any(tensor.is_nested or tensor.layout != torch.strided for tensor in tensors(trace.args)):
            return
        want = self.plain.run(inputs=_other)
        with suppress(DivergenceError):
            self.agree(trace.replay(*edits).output, want)

    def interrupted(self, calls: Sequence[ModuleCall]) -> None:
        """Stop a run in the middle; whether it leaves something behind is seen at the end."""

        def stop(value: Tensor) -> Tensor:
            raise _Interrupted

        for call in calls[len(calls) // 2 :][:1]:
            with suppress(_Interrupted):
                self.trace.net.run_live(self.trace, [apply(call.name, stop)])
                self.problems.append(f"an edit that raises at '{call.name}' was not made")


def _comparable(trace: Trace, count: int) -> list[ModuleCall]:
    """Up to `count` module calls, spread over the run, that returned one new floating point tensor."""
    graph, known = trace.graph, dict(trace.net.module.named_modules())
    found = [
        call
        for call in graph.modules[1:]
        if call.path in known
        and not isinstance(known[call.path], torch.jit.ScriptModule)  # takes no hooks
        and len(call.outputs) == 1
        and graph.values[call.outputs[0]].op >= 0
        and call.outputs[0] not in call.inputs
        and call.outputs[0] in trace.tape.kept
        and graph.values[call.outputs[0]].dtype.startswith(("float", "bfloat"))
        and trace.tape.kept[call.outputs[0]].layout == torch.strided
        and trace.tape.kept[call.outputs[0]].numel()
    ]
    chosen = found[:: max(len(found) // max(count, 1), 1)][:count]
    repeated = [call for call in found if call.call > 0 and call not in chosen]
    return [*chosen, *repeated[: min(count, 1)]]


def _shared_first(trace: Trace) -> list[str]:
    """Parameters that the run reads as they are, those with several readers first."""
    graph, known = trace.graph, dict(trace.net.module.named_parameters())
    found = [
        (-len(graph.users[value.id]), value.name)
        for value in graph.values
        if value.kind == "param" and value.name in known and known[value.name].is_floating_point()
    ]
    return [name for _, name in sorted(found)]


def _negated(axis: int, place: int) -> Callable[[Tensor], Tensor]:
    """A change of sign at one place of an axis, written without the package's help."""

    def change(value: Tensor) -> Tensor:
        sign = torch.ones(value.shape[axis], dtype=value.dtype, device=value.device)
        sign[place] = -1
        return value * sign.view([-1 if at == axis else 1 for at in range(value.ndim)])

    return change


def _other(tensor: Tensor) -> Tensor:
    """Another input that the network can take: its rows in another order, or somewhat larger numbers."""
    if tensor.ndim and tensor.shape[0] > 1:
        return tensor.roll(1, 0)
    if tensor.is_floating_point() or tensor.is_complex():
        return tensor * 1.25
    return tensor.flip(-1) if tensor.ndim else tensor
