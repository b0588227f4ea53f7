"""The inputs of a recorded run as numbers that can be varied: a metric and its gradients for many variants at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import DivergenceError, InputError, MetricError
from ..lift import Lifted
from ..lift.axes import channel_axis
from ..run.interventions import apply
from ..run.replay import execute, plan
from ..run.structure import Ref
from ..run.tape import Call
from ..run.trace import Trace
from ..run.worlds import over
from .metric import Metric

_CUTS: tuple[Callable[..., Any], ...] = (torch.Tensor.detach,)
_BYTES = 1 << 24  # of the values that the worlds of one batch make; more leave the cache
Rows = dict[str, Tensor]


class Inputs:
    """Where activations begin, by name (`input`, `embed`), with their `values`, and the metric as a function of them.

    Rows of worlds are [worlds, *value]. `fitting` worlds go into one batch. Raises InputError for a run with
    interventions, or one whose examples cannot be told apart.
    """

    def __init__(self, trace: Trace, metric: Metric) -> None:
        if trace.interventions:
            raise InputError("Saliency is taken of a recording, and a run with interventions is none; record it anew.")
        self.trace, self.metric = trace, metric
        self.lifted: Lifted = trace.lift()
        flow = self.lifted.flow
        self.tape, self.flow = flow.tape, flow
        self.sources = {block.name: block.write for block in self.lifted.sources}
        self.goal = self.lifted.output.reads[0].value
        self.steps = plan(self.tape, [], [self.goal], self.sources.values())
        with torch.no_grad():
            made = execute(self.tape, plan(self.tape, [], self.sources.values()))
        # Inputs without an axis of examples are held; positions that come before examples are put behind them.
        self.major = flow.time_major
        fitting = {
            name: made[value].detach() for name, value in self.sources.items()
            if value in self.steps.stored and flow.batch in flow.shape(value)[self.major : self.major + 1]
        }  # fmt: skip
        self.values = {name: value.movedim(int(self.major), 0) for name, value in fitting.items()}
        if not self.values:
            raise InputError("No input of this run has an axis of examples, so there is nothing to take a map over.")
        ops = [self.tape.graph.ops[step.op] for step in self.steps.steps if step.edit < 0]
        numbers = sum(prod(flow.shape(value)) for op in ops for value in op.outputs)
        self.fitting = max(1, _BYTES // max(4 * numbers, 1))

    def rows(self) -> Rows:
        """The recorded inputs as one world."""
        return {name: value[None] for name, value in self.values.items()}

    def measure(self, rows: Rows) -> Tensor:
        """[worlds, batch]: the metric of every world."""
        with torch.no_grad():
            return torch.cat([self._measured(chunk) for chunk in self._chunks(rows)])

    def gradients(self, rows: Rows, weights: Tensor | float = 1.0) -> Rows:
        """The gradients, in the form of the rows, of the metric summed over examples, by `weights` if given."""
        slopes = []
        for chunk in self._chunks(rows):
            leaves = {name: tensor.detach().requires_grad_() for name, tensor in chunk.items()}
            with torch.enable_grad():
                measured = self._measured(leaves)
            found = self._slopes(measured * weights, list(leaves.values()))
            slopes.append(dict(zip(leaves, found, strict=True)))
        return {name: torch.cat([part[name] for part in slopes]) for name in rows}

    def mixed(self) -> bool:
        """Whether an example's metric depends on other examples' inputs, as between the nodes of one graph."""
        batch = len(next(iter(self.values.values())))
        order = torch.arange(batch)  # powers of two, which scale a gradient without rounding it
        weights = 2.0 ** (order % 13 - 6) * (1 - 2 * (order // 13 % 2))
        plain, weighted = self.gradients(self.rows()), self.gradients(self.rows(), weights)
        for name, slope in plain.items():
            apart = slope * weights.to(slope).view(-1, *[1] * (slope.ndim - 2))
            if bool((weighted[name] - apart).abs().max() > 1e-4 * weighted[name].abs().max()):
                return True
        return False

    def differentiable(self) -> bool:
        """Whether gradients reach the inputs in the network as it is."""
        with torch.enable_grad():
            return self._measured({name: row.requires_grad_() for name, row in self.rows().items()}).requires_grad

    def uncut(self) -> Inputs | None:
        """The same with gradients through `detach` and `no_grad` blocks of the network; None where there are none."""
        tape, calls = self.tape, list(self.tape.calls)
        moving = tape.graph.cone(set(self.sources.values()))
        met = [step.op for step in self.steps.steps if not moving.isdisjoint(tape.graph.ops[step.op].inputs)]
        cut = [op for op in met if not calls[op].grad or calls[op].func in _CUTS]
        if not cut:
            return None
        for op in met:
            calls[op] = _led(calls[op])
        found = copy(self)
        found.tape = replace(tape, calls=calls)
        return found

    def _slopes(self, measured: Tensor, leaves: list[Tensor]) -> list[Tensor]:
        if not measured.requires_grad:
            raise MetricError(
                f"The metric '{self.metric.name}' has no gradient at the inputs (detach, no_grad, numpy or argmax); "
                "write it with differentiable torch functions, give through=True where it is the network that cuts the "
                "gradient off, or use the method 'occlusion'."
            )
        found = torch.autograd.grad(measured.sum(), leaves, allow_unused=True)
        return [torch.zeros_like(leaf) if part is None else part for leaf, part in zip(leaves, found, strict=True)]

    def _chunks(self, rows: Rows) -> list[Rows]:
        count = len(next(iter(rows.values())))
        return [
            {name: tensor[first : first + self.fitting] for name, tensor in rows.items()}
            for first in range(0, count, self.fitting)
        ]

    def _measured(self, rows: Rows) -> Tensor:
        def output(given: dict[int, Tensor]) -> Tensor:
            return execute(self.tape, self.steps, given=given)[self.goal]

        try:
            made = over(output, {self.sources[name]: self._as_given(tensor) for name, tensor in rows.items()})
        except (DivergenceError, RuntimeError):  # a variant that takes another path through the network runs live
            made = torch.stack([self._live(rows, world) for world in range(len(next(iter(rows.values()))))])
        return torch.stack([self.metric(world, self.trace.net) for world in made])

    def _as_given(self, rows: Tensor) -> Tensor:
        return rows.movedim(1, 2) if self.major else rows

    def _live(self, rows: Rows, world: int) -> Tensor:
        site = self.flow.graph.site
        given = {name: self._as_given(tensor)[world] for name, tensor in rows.items()}
        edits = [apply(site(self.sources[name]), partial(_instead, row)) for name, row in given.items()]
        return self.trace.replay(*edits).logits

    # ---- what the values are

    def is_tokens(self, name: str) -> bool:
        """Whether an input is an embedding, whose numbers belong together."""
        return name.startswith("embed")

    def unit(self, name: str) -> int:
        """The axis of channels, features or embedding units."""
        ndim = self.values[name].ndim
        return channel_axis(self.flow, self.sources[name]) if ndim == 4 and not self.is_tokens(name) else ndim - 1

    def places(self, name: str) -> list[int]:
        """The axes of places: rows and columns, positions, or features where there is nothing else."""
        ndim = self.values[name].ndim
        return [axis for axis in range(1, ndim) if axis != self.unit(name)] or list(range(1, ndim))

    def together(self, maps: Rows) -> Rows:
        """The maps with the numbers of a token added up."""
        return {name: part.sum(self.unit(name)) if self.is_tokens(name) else part for name, part in maps.items()}

    def tokens(self) -> dict[str, list[list[str]]]:
        """The tokens behind each embedding as text, where they are one a position."""
        found = {}
        for name in self.values:
            op = self.flow.maker(self.sources[name])
            shape = self.values[name].shape[:2]
            ids = [value for value in (op.inputs if op else ()) if "int" in self.flow.graph.values[value].dtype]
            if self.is_tokens(name) and len(ids) == 1 and self.flow.shape(ids[0]) == tuple(shape):
                rows = self.trace.value(self.flow.graph.site(ids[0])).tolist()
                say = self.trace.net.token_text if name == "embed" else str
                found[name] = [[say(int(token)) for token in row] for row in rows]
        return found

    # ---- baselines

    def baseline(self, given: Any) -> Rows:
        """The values that stand for absence, in the shape of the inputs.

        `zero`; `mean`: over examples and places; `blur`: of images; another run; a number or tensor; or any of these by
        the input's name. Empty: the mean of tokens, for norms make the way to an embedding of zero a jump, and zero
        of all else. Raises InputError for anything else, and for one that does not fit.
        """
        other = Inputs(given, self.metric).values if isinstance(given, Trace) else {}
        found = {}
        for name, value in self.values.items():
            chosen = given.get(name, "") if isinstance(given, Mapping) else other.get(name, given)
            found[name] = self._baseline(name, value, chosen)
        return found

    def _baseline(self, name: str, value: Tensor, given: Any) -> Tensor:
        if isinstance(given, (int, float, Tensor)):
            made = torch.as_tensor(given).to(value)
            try:
                return made.expand_as(value)
            except RuntimeError:
                raise InputError(
                    f"The baseline of '{name}' has shape {tuple(made.shape)} and the input {tuple(value.shape)}; "
                    "give one of that shape, or one that repeats to it."
                ) from None
        given = given or ("mean" if self.is_tokens(name) else "zero")
        if given == "zero":
            return torch.zeros_like(value)
        if given == "mean":
            axes = [axis for axis in range(value.ndim) if axis != self.unit(name)]
            return value.mean(axes, keepdim=True).expand_as(value)
        if given == "blur" and value.ndim == 4 and not self.is_tokens(name):
            return _blurred(value.movedim(self.unit(name), 1)).movedim(1, self.unit(name))
        raise InputError(f"There is no baseline {given!r} for '{name}'; give 'zero', 'mean', a run or a tensor"
                         " ('blur' for images).")  # fmt: skip

    # ---- convolutions

    def last_convolution(self) -> str:
        """The site of the last convolution's channels. Raises InputError when there is none."""
        blocks = [block for block in self.lifted.blocks if block.kind == "conv"]
        if not blocks:
            raise InputError("This network has no convolution that lifting recognises; name an image-like site.")
        return self.flow.graph.site(blocks[-1].write)

    def channel_axis(self, site: str) -> int:
        """The axis of channels of a site."""
        found = self.trace.locate(site)
        if "channel" in found.axes:
            return found.axes.index("channel")
        value = self.flow.graph.addresses.get(found.address)
        return channel_axis(self.flow, value) if value is not None and len(self.flow.shape(value)) == 4 else 1

    def gradient_at(self, site: str) -> tuple[Tensor, Tensor]:
        """A site's value, and the gradient of the metric there. Raises SiteError for an unknown site."""
        value = self.trace.value(site)
        delta = torch.zeros_like(value).requires_grad_()
        with torch.enable_grad():
            output = self.trace.replay(apply(site, lambda x: x + delta)).logits
            measured = self.metric(output, self.trace.net)
        return value, self._slopes(measured, [delta])[0]


def _led(call: Call) -> Call:
    """A call that a gradient can pass. Results that are written into a given tensor are returned instead."""
    if call.func in _CUTS:
        return replace(call, func=torch.Tensor.view_as, args=(call.args[0], call.args[0]), slots=None, grad=True)
    if [place for place, _ in call.written] == ["out"] and isinstance(call.kwargs["out"], Ref):
        kept = {name: given for name, given in call.kwargs.items() if name != "out"}
        return replace(call, kwargs=kept, slots=None, results=(call.written[0][1],), written=(), grad=True)
    return call if call.grad else replace(call, grad=True)


def _instead(row: Tensor, recorded: Tensor) -> Tensor:
    return row


def _blurred(image: Tensor) -> Tensor:
    """[batch, channel, row, column] under a Gaussian an eighth of the shorter side wide."""
    sigma = max(min(image.shape[2:]) / 8, 0.5)
    reach = min(int(3 * sigma), *(size - 1 for size in image.shape[2:]))
    line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2).to(image)
    line = (line / line.sum()).expand(image.shape[1], 1, 1, -1)
    padded = F.pad(image, (reach, reach, reach, reach), mode="replicate")
    rows = F.conv2d(padded, line, groups=image.shape[1])
    return F.conv2d(rows, line.mT, groups=image.shape[1])
