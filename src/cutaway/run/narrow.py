"""When only one position of an output is read, compute only that position where ops allow it.

Walking back from the output, an op that treats positions independently (linear, norms, elementwise) can run on one
position alone; the walk ends at the first value that needs them all. From there on the ops run on a slice.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..graph import Op
from .replay import execute, plan
from .structure import Ref
from .tape import Tape

_ELEMENTWISE = frozenset(
    "add sub mul div truediv gelu relu silu tanh sigmoid pow rsqrt dropout to float contiguous getitem view reshape "
    "clone neg".split()
)


def narrow(tape: Tape, target: int, axis: int, position: int) -> tuple[int, Callable[[Tensor], Tensor]]:
    """(cut, finish): `finish(value of cut)` is the target [.., 1 at axis, ..] at one position.

    When nothing can be saved, cut is the target itself and finish only slices.
    """
    size = tape.graph.values[target].shape[axis]
    chain: list[Op] = []
    cut = target
    while (op := _maker(tape, cut)) is not None and _by_position(tape, op, axis):
        chain.append(op)
        cut = _main_input(tape, op)
    chain.reverse()
    steps = {op.index: plan(tape, [], [op.outputs[0]], [_main_input(tape, op)]) for op in chain if not _same(tape, op)}

    def finish(value: Tensor) -> Tensor:
        value = value.narrow(axis, position % size, 1)
        for op in chain:
            if op.index in steps:
                value = execute(tape, steps[op.index], given={_main_input(tape, op): value})[op.outputs[0]]
        return value

    return cut, finish


def _maker(tape: Tape, value: int) -> Op | None:
    found = tape.graph.values[value].op
    return tape.graph.ops[found] if found >= 0 else None


def _main_input(tape: Tape, op: Op) -> int:
    """The one input that is a value of the run, not a parameter or a number."""
    made = [value for value in op.inputs if tape.graph.values[value].kind in ("op", "input")]
    return made[0] if made else op.inputs[0]


def _same(tape: Tape, op: Op) -> bool:
    """Whether a rearrangement leaves the shape as it is, so that it can be left out."""
    shapes = tape.graph.values
    name = op.name.strip("_")
    if name not in ("view", "reshape", "getitem"):
        return False
    return shapes[op.outputs[0]].shape == shapes[_main_input(tape, op)].shape


def _by_position(tape: Tape, op: Op, axis: int) -> bool:
    values, name = tape.graph.values, op.name.strip("_")
    if len(op.outputs) != 1 or tape.calls[op.index].rng is not None:
        return False
    made = [value for value in op.inputs if values[value].kind in ("op", "input")]
    if len(made) != 1 or len(values[made[0]].shape) != len(values[op.outputs[0]].shape):
        return False
    before, after = values[made[0]].shape, values[op.outputs[0]].shape
    if before[axis] != after[axis] or not 0 <= axis < len(after) - 1:
        return False
    others = [values[value] for value in op.inputs if value not in made]
    if name == "linear":
        first = tape.calls[op.index].args[0]
        return isinstance(first, Ref) and first.id == made[0]
    if name in ("layer_norm", "rms_norm"):
        return all(len(other.shape) < len(after) - axis for other in others)
    if name in ("view", "reshape", "getitem"):
        return _same(tape, op)
    return name in _ELEMENTWISE and all(len(other.shape) < len(after) - axis for other in others)
