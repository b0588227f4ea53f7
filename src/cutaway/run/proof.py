"""The proof that a graph taken from an earlier run is this run's: the network, run again, makes all of its calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import DivergenceError
from .replay import stored
from .tape import Tape

if TYPE_CHECKING:
    from .trace import Trace

_ALIKE = 1e-5  # of the largest number


def proven(trace: Trace) -> Tape:
    """The tape of a trace whose graph was assumed, or that of a new recording where the network makes other calls.

    Raises DivergenceError when the network no longer gives this run's output: something that it depends on has changed.
    """
    tape, anew = trace.tape, trace.net.record(*trace.args, **trace.kwargs).tape
    outputs = tape.graph.outputs
    pairs = zip(anew.graph.outputs, outputs, strict=False)
    if len(anew.graph.outputs) != len(outputs) or not all(_alike(stored(anew, a), stored(tape, b)) for a, b in pairs):
        raise DivergenceError(
            f"'{trace.net.name}' does something else now than when this run was recorded; record it again."
        )
    if anew.graph is not tape.graph:
        return anew
    tape.assumed = False
    return tape


def _alike(one: Tensor, two: Tensor) -> bool:
    if one.shape != two.shape or one.dtype != two.dtype or one.layout != two.layout:
        return False
    if one.layout != torch.strided or one.is_nested:
        one, two = one.detach().to_dense(), two.detach().to_dense()
    one, two = (torch.nan_to_num(side.detach()) for side in (one, two))
    if not one.is_floating_point():
        return torch.equal(one, two)
    largest = float(two.abs().max()) if two.numel() else 0.0
    return not two.numel() or float((one - two).abs().max()) <= _ALIKE * (largest or 1.0)
