"""One record for any network: the comparison with plain PyTorch, what lifting finds, and whether its edges add up."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..errors import InputError
from ..run.check import Check, check
from ..run.network import Network
from ..run.trace import Trace
from .sums import edge_errors

__all__ = ["check_network"]


def check_network(
    net: Network, *inputs: Any, edits: int = 3, expected: Mapping[str, Sequence[int]] | None = None, **kwargs: Any
) -> Check:
    """Check `net` on inputs: recording, replay, gradients, edits, lifted components, and sums over edges.

    `expected` maps a component's name to its (units, calls). A network that cannot be lifted is checked all the same;
    the reason is one of its problems. Raises InputError for an `expected` of another form, and as `record` does.
    """
    wanted = _wanted(expected)
    found, trace = check(net, *inputs, edits=edits, **kwargs)
    found = replace(found, expected=wanted)
    if trace.tape.problems:  # what left torch in the middle is not lifted
        return found
    for step in (_components, _edges):
        try:
            found = step(found, trace)
        except Exception as failure:  # noqa: BLE001 - whatever goes wrong here is a finding about this network
            first = (str(failure).strip() or type(failure).__name__).splitlines()[0]
            what = "its components could not be found" if step is _components else "its edges could not be added up"
            return replace(found, problems=(*found.problems, f"{what}: {first}"))
    return found.explained()


def _wanted(expected: Any) -> dict[str, list[int]] | None:
    if expected is None:
        return None
    if not isinstance(expected, Mapping):
        raise InputError("What is expected is a dict of components' names to their (units, calls).")
    for name, pair in expected.items():
        counts = isinstance(pair, (tuple, list)) and len(pair) == 2 and all(isinstance(part, int) for part in pair)
        if not counts:
            raise InputError(f"What is expected of '{name}' is {pair!r}; give its (units, calls), such as (7, 1).")
    return {name: list(pair) for name, pair in expected.items()}


def _components(found: Check, trace: Trace) -> Check:
    parts = trace.lift().components()
    return replace(found, found={part.name: [part.count, part.calls] for part in parts})


def _edges(found: Check, trace: Trace) -> Check:
    values = (*trace.tape.kept.values(), *trace.tape.leaves.values())
    if any(tensor.is_nested or tensor.layout != torch.strided for tensor in values):
        note = "edges are not added up, for some values are nested or sparse tensors"
        return replace(found, notes=(*found.notes, note))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the network warns of was said in the recording
        errors = edge_errors(trace)
    worst = max(errors, key=errors.__getitem__, default="")
    found = replace(found, edge_error=errors[worst] if worst else None)
    if worst and math.isinf(errors[worst]):
        bent = f"the edges to '{worst}' cannot be added up, for what leads there is not linear"
        return replace(found, problems=(*found.problems, bent))
    return found
