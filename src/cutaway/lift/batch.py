"""Which axis of the inputs, and of each value, is the batch: seen from what the run does, not assumed.

States of recurrent cells and the operands of fused attention lead with the batch, in batch-first and in time-major
networks alike. If their first axis is as long as the first input's second, the network is time-major. Where time and
batch are equally long, the examples are put in another order: the states' first axis follows the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import DivergenceError
from ..run.replay import Place, execute, plan
from . import ops
from .flow import Flow
from .ops import sort_name


def batch_axis(flow: Flow, first: Tensor | None) -> int:
    """1 for a time-major network, else 0. `first` is the run's first input."""
    if first is None or not (first.ndim == 3 or (first.ndim == 2 and not first.is_floating_point())):
        return 0
    led = _led_by_batch(flow)
    sizes = {flow.shape(value)[0] for value in led}
    if len(sizes) != 1 or sizes != {first.shape[1]}:
        return 0
    if first.shape[0] != first.shape[1]:
        return 1
    follows = [_follows(flow, first, axis, led[0]) for axis in (0, 1)]
    return 1 if follows == [False, True] else 0


def _led_by_batch(flow: Flow) -> list[int]:
    """Values that lead with the batch: states of recurrent cells, queries of fused attention."""
    found = [value for value in sorted(flow.carried - flow.packed) if len(flow.shape(value)) == 2]
    for op in flow.graph.ops:
        if sort_name(op) == ops.SDPA and len(flow.shape(op.outputs[0])) == 4 and op.index in flow.useful:
            found.append(op.outputs[0])
    return found


def follows(flow: Flow, value: int) -> int | None:
    """The axis of a value that follows the order of the examples, which lie along the first axis of every input."""
    given = [leaf for leaf in flow.graph.inputs if flow.shape(leaf)[:1] == (flow.batch,)]
    if flow.batch < 2 or not given:
        return None
    before = execute(flow.tape, plan(flow.tape, [], [value]))[value]
    try:
        steps = plan(flow.tape, [Place(leaf, 0) for leaf in given], [value])
        after = execute(flow.tape, steps, [lambda tensor: tensor.flip(0)] * len(given))[value]
    except DivergenceError:
        return None
    sized = [axis for axis in range(before.ndim) if before.shape[axis] == flow.batch]
    return next((axis for axis in sized if torch.allclose(after, before.flip(axis), atol=1e-5, equal_nan=True)), None)


def _follows(flow: Flow, first: Tensor, axis: int, value: int) -> bool:
    """Whether turning the first input around along an axis turns a value around along its first, and nothing else."""
    given = next((leaf for leaf in flow.graph.inputs if flow.shape(leaf) == tuple(first.shape)), None)
    if given is None or first.shape[axis] < 2:
        return False
    before = execute(flow.tape, plan(flow.tape, [], [value]))[value]
    try:
        steps = plan(flow.tape, [Place(given, 0)], [value])
        after = execute(flow.tape, steps, [lambda tensor: tensor.flip(axis)])[value]
    except DivergenceError:
        return False
    return torch.allclose(after, before.flip(0), atol=1e-5) and not torch.allclose(after, before, atol=1e-5)
