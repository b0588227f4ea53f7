"""Where channels lie: followed from the contraction that makes them through layout ops, by running these on numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..graph import Op
from ..run.structure import Ref, swap, tensors
from . import ops
from .blocks import Slots
from .flow import Flow
from .ops import active, sort_name


@dataclass(frozen=True)
class Channels:
    """How a block's write is divided: slots, the letter of their names, and the number of channels in all."""

    slots: Slots
    mark: str
    width: int


@dataclass(frozen=True)
class Source:
    """Where a read comes from with all its channels: `far` is what it may be a slice of by time, say, and `near` a
    rearrangement of it; each with its slots."""

    far: tuple[int, Slots]
    near: tuple[int, Slots]


def source_of(flow: Flow, value: int, channels: Channels, stops: set[int]) -> Source:
    """The value that a read comes from through soft ops with all its channels kept, not behind a value in `stops`."""
    chain = behind(flow, value, stops)
    numbers = _channels(flow, chain)
    last = len(chain) - 1
    while last and not _same(numbers[last], numbers[0]):
        last -= 1
    near = last
    while near and (_size(flow, chain[near]) > _size(flow, value) or not _keeps_all(flow, chain[: near + 1])):
        near -= 1

    def best(start: int) -> tuple[int, Slots]:
        alike = [place for place in range(start, -1, -1) if _size(flow, chain[place]) == _size(flow, chain[start])]
        found = [(chain[place], slots) for place in alike if (slots := _slots(numbers[place], channels)) is not None]
        full = [item for item in found if item[1].count == channels.slots.count]
        last_axis = max(len(flow.shape(chain[start])) - 1, 0)
        return next(iter(full or found), (chain[start], Slots(last_axis, 1)))

    return Source(best(last), best(near))


def behind(flow: Flow, value: int, stops: set[int]) -> list[int]:
    """A value and what it comes from through soft ops of one activation, not behind a value in `stops`."""
    chain = [value]
    while chain[-1] not in stops and (step := _softly(flow, chain[-1])) is not None:
        chain.append(step)
    return chain


def channel_axis(flow: Flow, value: int) -> int:
    """The axis of an image's channels: followed from the contraction or norm that tells where they are; the second if
    none does."""
    chain, axis = [value], 1
    while (op := flow.maker(chain[-1])) is not None:
        name, moving = sort_name(op), active(op, flow.activations)
        if name in ops.CONTRACTION or name in ops.NORMS:
            last = name in ("layer_norm", "rms_norm", "native_layer_norm") or name not in ops.CONVOLUTION | ops.NORMS
            axis = len(flow.shape(chain[-1])) - 1 if last else 1
            break
        shape = flow.shape(chain[-1])
        fitting = [item for item in moving if flow.is_layout(op) or flow.shape(item) == shape]
        if not fitting:
            return 1
        chain.append(fitting[0])
    shape = flow.shape(chain[-1])
    if len(shape) <= axis:
        return 1
    line = torch.arange(1, shape[axis] + 1).view([-1 if place == axis else 1 for place in range(len(shape))])
    found = _through(flow, chain, line.expand(shape).contiguous())[0]
    return 1 if found is None else next(iter(_varied(found)), 1)


def head_count(flow: Flow, value: int) -> int:
    """How many groups of channels lie along the first axis of a value, which also holds the examples; 1 for none."""
    chain = [value]
    while (op := flow.maker(chain[-1])) is not None and sort_name(op) not in ops.CONTRACTION:
        moving = [item for item in active(op, flow.activations) if flow.linear[op.index]]
        if not moving:
            return 1
        chain.append(moving[0])
    shape = flow.shape(chain[-1])
    if op is None or not shape:
        return 1
    numbers = torch.arange(1, shape[-1] + 1).expand(shape).contiguous()
    found = _through(flow, chain, numbers)[0]
    return 1 if found is None else len(found.flatten(1).amax(1).unique())


def _varied(numbers: Tensor) -> list[int]:
    """The axes along which numbers differ."""
    return [axis for axis in range(numbers.ndim) if bool((numbers.narrow(axis, 0, 1) != numbers).any())]


def _keeps_all(flow: Flow, chain: list[int]) -> bool:
    """Whether every number of the last value of a chain is in its first."""
    start = torch.arange(1, _size(flow, chain[-1]) + 1).view(flow.shape(chain[-1]))
    end = _through(flow, chain, start)[0]
    return end is not None and _same(start, end)


def _softly(flow: Flow, value: int) -> int | None:
    """What a value is rearranged, shifted or rescaled from, if that is one activation."""
    op = flow.maker(value)
    if op is None or not flow.is_soft(op) or value not in op.outputs:
        return None
    moving = active(op, flow.activations)
    if len(moving) != 1 or not (flow.is_layout(op) or flow.shape(moving[0]) == flow.shape(value)):
        return None
    return moving[0]


def _channels(flow: Flow, chain: list[int]) -> list[Tensor | None]:
    """For each value of a chain (last the earliest), which channel of the first contraction each number comes from."""
    onward = list(chain)
    while (op := flow.maker(onward[-1])) is not None and sort_name(op) not in ops.CONTRACTION:
        shape = flow.shape(onward[-1])
        sources = [item for item in active(op, flow.activations) if flow.is_layout(op) or flow.shape(item) == shape]
        if not sources:
            break
        onward.append(sources[0])
    shape = flow.shape(onward[-1])
    if not shape:
        return [None] * len(chain)
    contracts = op is not None and sort_name(op) in ops.CONTRACTION
    axis = _output_axis(flow, op) % len(shape) if op is not None and contracts else len(shape) - 1
    line = torch.arange(1, shape[axis] + 1).view([-1 if place == axis else 1 for place in range(len(shape))])
    return _through(flow, onward, line.expand(shape))[: len(chain)]


def _output_axis(flow: Flow, op: Op) -> int:
    """The axis along which a contraction's outputs lie: that of rows where its weights stand on the left."""
    first = next((item.id for item in flow.tape.calls[op.index].args if isinstance(item, Ref)), None)
    left = sort_name(op) in ("matmul", "mm", "bmm") and first not in flow.activations
    return -2 if left and len(flow.shape(op.outputs[0])) > 1 else ops.channels(op)


def _through(flow: Flow, chain: list[int], numbers: Tensor) -> list[Tensor | None]:
    """What the ops of a chain, run from its last value to its first, make of numbers, for each value of the chain."""
    current: Tensor | None = numbers
    found = [current]
    for source, value in zip(chain[::-1], chain[-2::-1], strict=False):
        op = flow.maker(value)
        assert op is not None
        if current is not None and flow.is_layout(op):
            current = _moved(flow, op, source, value, current)
        found.append(current)
    return found[::-1]


def _moved(flow: Flow, op: Op, source: int, value: int, numbers: Tensor) -> Tensor | None:
    """What a layout op makes of numbers in place of one input; None where it needs what was not kept."""
    call, tape = flow.tape.calls[op.index], flow.tape
    held = {item: tape.leaves.get(item, tape.kept.get(item)) for item in op.inputs if item != source}
    if call.written or any(tensor is None for tensor in held.values()):
        return None
    held[source] = numbers
    args, kwargs = swap((call.args, call.kwargs), Ref, lambda ref: held[ref.id])
    made = list(tensors(call.func(*args, **kwargs)))
    found = made[op.outputs.index(value)]
    return found if tuple(found.shape) == flow.shape(value) else None


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether the same numbers are in both; zero is padding."""
    if one is None or other is None:
        return False
    one, other = _once(one), _once(other)
    return torch.equal(one[one > 0].unique(), other[other > 0].unique())


def _once(numbers: Tensor) -> Tensor:
    """A tensor without its repetitions: an expanded axis has one place in memory."""
    return numbers[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in numbers.stride())]


def _size(flow: Flow, value: int) -> int:
    return torch.Size(flow.shape(value)).numel()


def _slots(numbers: Tensor | None, channels: Channels) -> Slots | None:
    """Slots along the axis of channels; one slot where there are as many as neither slots nor channels; None if spread
    over axes that do not begin with the slots."""
    if numbers is None or not numbers.numel():
        return None
    count = channels.slots.count
    short = _once(numbers)
    axes = [axis for axis in range(numbers.ndim) if bool((short.narrow(axis, 0, 1) != short).any())]
    if len(axes) == 1:
        fits = numbers.shape[axes[0]] in (count, channels.width)
        return Slots(axes[0], count if fits else 1)
    if len(axes) > 1 and numbers.shape[axes[0]] == count:
        return Slots(axes[0], count)
    return None
