"""From a stored claim back to a circuit that can be tested again, in the same way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..attribution.edges import EdgeGraph
from ..attribution.scores import Scores
from ..circuits.circuit import Circuit
from ..circuits.loading import graph_from, metric_from, onto
from ..errors import InputError
from ..run.network import Network
from ..run.structure import tensors
from ..run.trace import Trace

Arrays = Mapping[str, np.ndarray]
TABLES = ("edge_scores", "node_scores", "exact_effects")


def stored(
    circuit: Circuit, graph: EdgeGraph, sets: Mapping[str, tuple[Trace, Trace | None]], scores: bool
) -> dict[str, np.ndarray]:
    """What it takes to test again, as arrays: the circuit's mask, the inputs of the runs it was tested on and of
    further sets of pairs, the constants of a baseline that is made of them, and all `scores` where a curve is drawn."""
    arrays = {"mask": circuit.mask.numpy().astype(np.uint8)}
    exact = torch.full(graph.shape(), float("nan"))
    for unit, effect in circuit.exact.items():
        exact[unit] = effect
    tables = zip(TABLES, (circuit.scores.edges, circuit.scores.nodes, exact), strict=True) if scores else ()
    arrays |= {name: _array(table) for name, table in tables if table is not None}
    sides = {"clean": graph.clean_trace, "corrupted": graph.corrupted_trace}
    for name, (clean, corrupted) in sets.items():
        sides |= {f"other.{name}.clean": clean, f"other.{name}.corrupted": corrupted}
    for side, trace in sides.items():
        if trace is not None:
            given: dict[int | str, Tensor] = dict(enumerate(tensors(trace.args)))
            given |= {key: value for key, value in trace.kwargs.items() if isinstance(value, Tensor)}
            arrays |= {f"{side}.{name}": _array(tensor) for name, tensor in given.items()}
    if not isinstance(constants := graph.options["baseline"], str):
        arrays |= {f"constant.{name}": _array(tensor) for name, tensor in constants.items()}
    return arrays


def rebuild(net: Network, claim: Mapping[str, Any], arrays: Arrays) -> Circuit:
    """The circuit of a stored claim on the inputs it was tested on, ready for `verify`.

    `claim` is what `Claim.to_dict` gave, `arrays` its tensors. Raises InputError when the network is not the one the
    claim is about, MetricError for a metric made of code, which is not stored.
    """
    provenance = claim["provenance"]
    if net.fingerprint != provenance["fingerprint"]:
        raise InputError(
            f"The claim is about weights {provenance['fingerprint']} and '{net.name}' has {net.fingerprint}; "
            "open the network that the claim is about."
        )
    clean, corrupted = _runs(net, arrays, "")
    constants = {name: torch.from_numpy(np.array(array)) for name, array in _under(arrays, "constant.").items()}
    graph = graph_from(claim["circuit"], clean, corrupted, constants or None)
    mask = torch.from_numpy(np.array(arrays["mask"])).bool()
    if tuple(mask.shape) != graph.shape():
        raise InputError("The stored circuit has other nodes than this version of Cutaway finds; find it again.")
    circuit = onto(graph, claim["circuit"], metric_from(provenance["metric"], clean), mask)
    edges, nodes, effects = (
        torch.from_numpy(np.array(arrays[name])) if name in arrays else None for name in TABLES
    )  # fmt: skip
    if effects is None:
        return replace(circuit, scores=replace(circuit.scores, facts={"partial": True}))
    exact = {(row, column, place): float(effects[row, column, place]) for row, column, place in _known(effects)}
    return replace(circuit, scores=Scores(edges, nodes, circuit.scores.method, 0), exact=exact)


def _known(table: Tensor) -> list[list[int]]:
    return (~table.isnan()).nonzero().tolist()


def options(net: Network, claim: Mapping[str, Any], arrays: Arrays) -> dict[str, Any]:
    """What `verify` was called with beside the circuit, so that `verify(rebuild(…), **options(…))` is the same test.

    Held-out pairs and further sets are recorded again. Raises MetricError for a set's metric made of code.
    """
    provenance = claim["provenance"]
    asked: dict[str, Any] = {"random": len(claim["details"]["null"]), "thorough": False, "alternatives": 0}
    asked |= provenance.get("options", {})
    metrics = provenance.get("other_metrics", {})
    other = {}
    for name in asked.pop("other", ()):
        clean, corrupted = _runs(net, arrays, f"other.{name}.")
        facts = metrics.get(name)
        other[name] = (clean, corrupted, metric_from(facts, clean) if facts else None)
    held = dict(zip(("clean", "corrupted"), _runs(net, arrays, ""), strict=True)) if provenance["held_out"] else {}
    return {**asked, **held, "other": other, "seed": provenance["seed"]}


def _runs(net: Network, arrays: Arrays, prefix: str) -> tuple[Trace, Trace | None]:
    """The clean and the corrupted run on stored inputs."""
    clean = _recorded(net, _under(arrays, f"{prefix}clean."))
    corrupted = _under(arrays, f"{prefix}corrupted.")
    return clean, _recorded(net, corrupted) if corrupted else None


def _under(arrays: Arrays, prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _recorded(net: Network, given: Arrays) -> Trace:
    """The run on stored inputs: numbered ones by position, the others by keyword."""
    held = {name: torch.from_numpy(np.array(array)) for name, array in given.items()}
    positional = [held[name] for name in sorted((name for name in held if name.isdigit()), key=int)]
    named: dict[str, Any] = {name: tensor for name, tensor in held.items() if not name.isdigit()}
    return net.record(*positional, **named)


def _array(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()
