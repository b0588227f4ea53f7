"""The proof that a graph taken from an earlier run is this run's: the network, run again, makes all of its calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import DivergenceError
from .difference import alike
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
    got, want = ([stored(side, value) for value in side.graph.outputs] for side in (anew, tape))
    if len(got) != len(want) or not all(alike(a, b, _ALIKE) for a, b in zip(got, want, strict=True)):
        raise DivergenceError(
            f"'{trace.net.name}' does something else now than when this run was recorded; record it again."
        )
    if anew.graph is not tape.graph:
        return anew
    tape.assumed = False
    return tape

