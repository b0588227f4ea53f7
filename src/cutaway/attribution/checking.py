"""One record for any network: the comparison with plain PyTorch, what lifting finds, and whether its edges add up."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..run.check import Check, check
from ..run.network import Network
from ..run.trace import Trace
from .sums import edge_error

__all__ = ["check_network"]


def check_network(
    net: Network, *inputs: Any, edits: int = 3, expected: Mapping[str, Sequence[int]] | None = None, **kwargs: Any
) -> Check:
    """Check `net` on inputs: recording, replay, gradients, edits, lifted components, and sums over edges.

    `expected` maps a component's name to its (units, calls). A network that cannot be lifted is checked all the same;
    the reason is one of its problems. Raises InputError and ModelError as `record` does.
    """
    found, trace = check(net, *inputs, edits=edits, **kwargs)
    wanted = None if expected is None else {name: list(pair) for name, pair in expected.items()}
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
    return found


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
        return replace(found, edge_error=edge_error(trace))
