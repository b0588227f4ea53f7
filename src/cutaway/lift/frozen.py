"""Wiring made linear: norms and pooling maxima replaced by their linear part at the values of one run.

What lies between blocks is linear but for norms and maxima. A norm is its input, perhaps centred, times a scale that
depends on the input; with the scale held at what it was in the run ("frozen") it is linear, and gives in that run what
it gave. A maximum is a choice; with the choice held it is linear too. Elhage et al. 2021 ("A Mathematical Framework for
Transformer Circuits") and Nanda 2022 fold norms so.

A norm written out needs no table: where a linear value is multiplied or divided by one that bends, the latter is the
scale. Norms that torch does in one call stand in `_CENTRED`; others are uncentred, their scale is output over input.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..graph import Op
from ..run.replay import Plan, execute, plan
from ..run.structure import Ref, swap, tensors
from ..run.tape import Call, Tape
from ..run.trace import Found, Trace
from ..run.worlds import over
from . import ops
from .blocks import Block, slot_mask
from .flow import Flow
from .norms import scale_of
from .ops import active, sort_name

_TINY = 1e-20
_NUMBERS = 4_000_000  # numbers in one batch of variants
Reader = Callable[[list[int]], dict[int, Tensor]]


class Frozen:
    """A run's wiring, affine in what blocks write, and equal to the recorded one at the run's own values.

    `held`: scales of norms written out, masks and indices (on the way `towards` a value, if one is given); every plan
    gets them. `unit`: scales of norms are 1, not what they were. `bent`: values outside blocks that are not affine in
    writes even so. `values`: those of `needed`, and what `wanted` asks for, as `read` gives them; without it, `at`
    settles them.
    """

    def __init__(
        self,
        flow: Flow,
        blocks: Iterable[Block],
        read: Reader | None,
        wanted: Iterable[int] = (),
        *,
        towards: int | None = None,
        unit: bool = False,
    ) -> None:
        self.flow = flow
        self.unit = unit
        blocks = list(blocks)
        self.writes = {block.write: block for block in blocks if block.write >= 0}
        self.held: set[int] = set()
        self.scales: set[int] = set()
        self.bent: set[int] = set()
        self.fused = self._follow({op for block in blocks for op in block.members})
        if towards is not None:
            near = self._upstream(towards)
            self.held &= near
            self.fused = [op for op in self.fused if op.outputs[0] in near]
        self.needed = {value for op in self.fused for value in op.inputs} | self.held
        self.values: dict[int, Tensor] = {}
        self.tape: Tape = flow.tape
        if read is not None:
            self._settle(read(list({*self.needed, *wanted})))

    def at(self, values: dict[int, Tensor]) -> Frozen:
        """The same wiring, frozen at other values of what is `needed`."""
        found = copy.copy(self)
        found._settle(values)
        return found

    def _settle(self, values: dict[int, Tensor]) -> None:
        self.values = dict(values)
        if self.unit:
            self.values |= {value: torch.ones_like(values[value]) for value in self.scales & self.held}
        calls = list(self.flow.tape.calls)
        for op in self.fused:
            calls[op.index] = self._linear(op, calls[op.index])
        self.tape = replace(self.flow.tape, calls=calls)

    def plan(self, wanted: Iterable[int], stops: Iterable[int]) -> Plan:
        """The steps from `stops` to values."""
        return plan(self.tape, [], wanted, {*stops, *self.held})

    def run(self, steps: Plan, given: dict[int, Tensor]) -> dict[int, Tensor]:
        """A plan on given writes and the run's norms; activations that neither accounts for are zero."""
        flow = self.flow
        whole = {value: self.values[value] for value in self.held}
        for stored in steps.stored:
            if stored in flow.activations and stored not in self.held and stored not in given:
                dtype = getattr(torch, flow.graph.values[stored].dtype)
                whole[stored] = torch.zeros(flow.shape(stored), dtype=dtype)
        return execute(self.tape, unguarded(self.tape, steps), given={**whole, **given})

    def apart(self, write: int, value: int, groups: int | None = None) -> tuple[Tensor, Tensor]:
        """(`value` with every write at zero, [slots, …] what each slot of `write` alone adds to it).

        `groups`: the most parts to divide the slots into; a part is then several slots that lie together.
        """
        whole, slots = self.values[write], self.writes[write].slots
        count = min(slots.count, groups or slots.count)
        member = torch.arange(slots.count) * count // slots.count
        masks = torch.eye(count)[:, member].to(whole)
        parts = torch.stack([whole * slot_mask(mask[:, None], whole, slots, None) for mask in masks])
        if value == write:
            return torch.zeros_like(whole), parts
        steps = self.plan([value], set(self.writes) - {value})
        rows = torch.cat([torch.zeros_like(parts[:1]), parts])
        out = variants(lambda world: self.run(steps, world)[value], {write: rows})
        return out[0], out[1:] - out[0]

    def _follow(self, members: set[int]) -> list[Op]:
        """Find out what bends, and return the fused norms and maxima on the way."""
        flow, writes, bent, fused = self.flow, self.writes, self.bent, []
        for op in flow.graph.ops:
            moving = active(op, flow.activations)
            if not moving or not op.outputs:
                continue
            # Masks and indices are choices that the run made.
            self.held.update(value for value in op.outputs if value not in flow.activations)
            if op.index in members and op.outputs[0] in writes:
                continue
            crooked = [value for value in moving if value in bent]
            if flow.linear[op.index] and not crooked:
                continue
            if not crooked and (sort_name(op) in ops.NORMS or "max_pool" in op.name):
                fused.append(op)
                continue
            scale = None if op.index in members else scale_of(flow, op, lambda value: value not in bent)
            if scale is not None:
                self.held.add(scale)
                self.scales.add(scale)
                continue
            bent.update(value for value in op.outputs if value in flow.activations and value not in writes)
        return fused

    def _upstream(self, value: int) -> set[int]:
        """What wiring leads through on its way to a value."""
        found: set[int] = set()
        waiting = [value]
        while waiting:
            current = waiting.pop()
            op = self.flow.maker(current)
            if current not in found and op is not None:
                found.add(current)
                stop = current in self.held or current in self.writes and current != value
                waiting.extend(() if stop else op.inputs)
        return found

    def _linear(self, op: Op, call: Call) -> Call:
        """The call that gives the linear part of a fused norm or maximum."""
        source = active(op, self.flow.activations)[0]
        # Copies, for a norm in training writes its running statistics.
        args = swap(call.args, Ref, lambda ref: self._value(ref.id).clone())
        kwargs = swap(call.kwargs, Ref, lambda ref: self._value(ref.id).clone())
        found = list(tensors(call.func(*args, **kwargs) if call.rng is None else ()))

        def alone(x: Tensor) -> Tensor:
            put = swap(call.args, Ref, lambda ref: x if ref.id == source else self._value(ref.id).clone())
            out: Tensor = next(tensors(call.func(*put, **kwargs)))
            return out

        at = self._value(source)
        if "max_pool" in op.name:
            part: Callable[[Tensor], Tensor] = lambda x: tangent(alone, at, x)  # noqa: E731
        else:
            part = linear_norm(sort_name(op), alone, at, arguments(call, args, kwargs), self.unit)
        func = (lambda x: (part(x), *found[1:])) if len(call.results) > 1 else part
        return replace(call, func=func, args=(Ref(source),), kwargs={}, slots=[(0, source)], written=(), rng=None)

    def _value(self, value: int) -> Tensor:
        found = self.values.get(value)
        return found if found is not None else self.flow.tape.leaves[value].detach()


def linear_norm(
    name: str, norm: Callable[[Tensor], Tensor], at: Tensor, given: dict[str, Any], unit: bool = False
) -> Callable[[Tensor], Tensor]:
    """The affine part of a norm in one call, its scale as it is at a value, or 1 if `unit`; `given` are its arguments
    by name."""
    return _centred(name, given, at, unit) or _scaled(norm, at, given, unit)


def tangent(func: Callable[[Tensor], Tensor], at: Tensor, x: Tensor) -> Tensor:
    """The linear part of a function at a value."""
    with warnings.catch_warnings():  # at its first use torch loads decompositions by a way that it calls deprecated
        warnings.simplefilter("ignore", DeprecationWarning)
        found: Tensor = torch.func.jvp(func, (at,), (x.to(at),))[1]
        return found


def arguments(call: Call, args: Any, kwargs: Any) -> dict[str, Any]:
    """Arguments by name, as far as the function's signature is known."""
    try:
        names = list(inspect.signature(call.func).parameters)
    except (TypeError, ValueError):
        names = list(_ORDERS.get(getattr(call.func, "__name__", ""), ()))
    return dict(zip(names, args, strict=False)) | kwargs


_ORDERS = {
    "layer_norm": ("input", "normalized_shape", "weight", "bias", "eps"),
    "group_norm": ("input", "num_groups", "weight", "bias", "eps"),
    "batch_norm": ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps"),
    "instance_norm": (
        "input", "weight", "bias", "running_mean", "running_var", "use_input_stats", "momentum", "eps",
    ),
}  # fmt: skip


def _centred(name: str, given: dict[str, Any], at: Tensor, unit: bool) -> Callable[[Tensor], Tensor] | None:
    """A norm that takes the mean away: its linear part with the scale that it has at `at`."""
    weight, bias, eps = given.get("weight"), given.get("bias"), given.get("eps", 1e-5)
    if name == "layer_norm":
        axes, groups = tuple(range(-len(given["normalized_shape"]), 0)), 0
    elif name in ("group_norm", "instance_norm"):
        axes, groups = (2,), given.get("num_groups", at.shape[1])
    elif name == "batch_norm":
        axes, groups = tuple(axis for axis in range(at.ndim) if axis != 1), 0
    else:
        return None

    def shaped(x: Tensor) -> Tensor:
        return x.unflatten(1, (groups, -1)).flatten(2) if groups else x

    def spread(parameter: Tensor | None) -> Any:
        if parameter is None or name == "layer_norm":
            return parameter
        return parameter.view(-1, *[1] * (at.ndim - 2))

    weight, bias = spread(weight), spread(bias)
    scale = 1.0 if unit else (shaped(at).var(axes, unbiased=False, keepdim=True) + eps).rsqrt()

    def part(x: Tensor) -> Tensor:
        x = x.to(at.dtype)
        centred = (shaped(x) - shaped(x).mean(axes, keepdim=True)) * scale
        out = centred.reshape(x.shape) if groups else centred
        out = out * weight if weight is not None else out
        return out + bias if bias is not None else out

    return part


def _scaled(
    norm: Callable[[Tensor], Tensor], at: Tensor, given: dict[str, Any], unit: bool
) -> Callable[[Tensor], Tensor]:
    """A norm without a mean: its scale is what it gives divided by what it got."""
    if unit:
        weight = given.get("weight")
        return lambda x: x * weight if weight is not None else x
    nonzero = torch.where(at == 0, _TINY, at)
    scale = norm(nonzero) / nonzero
    return lambda x: x * scale


def unguarded(tape: Tape, steps: Plan) -> Plan:
    """A plan without its guards and what is made for them alone, for variants that are no runs of the network and need
    not take its branches."""
    wanted, kept = set(steps.targets.values()), []
    for step in reversed(steps.steps):
        made = {step.target} if step.edit >= 0 else set(tape.graph.ops[step.op].outputs)
        if made & wanted:
            kept.append(step)
            wanted.update((step.source,) if step.edit >= 0 else step.reads.values())
    return Plan(kept[::-1], [value for value in steps.stored if value in wanted], steps.targets, len(kept), steps.roots)


def reader(flow: Flow, trace: Trace | None = None) -> Reader:
    """How values of a trace are read, those that its interventions changed included; without one, of the recording."""

    def read(wanted: list[int]) -> dict[int, Tensor]:
        if trace is not None and trace.interventions:
            return {value: trace._whole(Found(flow.graph.site(value), ())).detach() for value in wanted}
        with torch.no_grad():
            return execute(flow.tape, plan(flow.tape, [], wanted))

    return read


def variants(run: Callable[[dict[int, Tensor]], Tensor], rows: dict[int, Tensor], beside: int = 0) -> Tensor:
    """`run` over the rows of its inputs, as many at once as fit; `beside` numbers are made for each besides them."""
    size = max(1, _NUMBERS // max(sum(tensor[0].numel() for tensor in rows.values()) + beside, 1))
    chunks = zip(*(tensor.split(size) for tensor in rows.values()), strict=True)
    with torch.no_grad():
        return torch.cat([over(run, dict(zip(rows, chunk, strict=True))) for chunk in chunks])
