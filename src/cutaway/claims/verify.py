"""Testing a circuit causally: does it carry the behaviour, the rest not, is each edge needed, is chance as good?"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..attribution.edges import EdgeGraph
from ..attribution.metric import Metric, as_metric
from ..attribution.mixture import ends, evaluate
from ..circuits.circuit import Circuit
from ..circuits.search import Progress, check_distinguishes
from ..errors import InputError
from ..run.structure import tensors
from ..run.trace import Trace
from .claim import Claim, Evidence, Reason
from .null import random_circuits
from .statistics import Interval, auroc, rank_p, ratio_interval

FAITHFUL, COMPLETE, NEEDED, SIGNIFICANT = 0.3, 0.5, 0.5, 0.05


def verify(
    circuit: Circuit,
    clean: Trace | None = None,
    corrupted: Trace | None = None,
    metric: Metric | None = None,
    *,
    truth: Sequence[str] | None = None,
    unseen: Sequence[str] = (),
    random: int = 100,
    seed: int = 0,
    progress: Progress | None = None,
) -> Claim:
    """Test a circuit, on held-out pairs if given (else on those it was found on, and the claim says so).

    Faithfulness: the share of the behaviour that the circuit alone keeps, everything else corrupted. Completeness: the
    share that is lost when the circuit alone is corrupted. Minimality: the share of edges whose removal changes
    faithfulness by more than 0.01. Null: `random` connected circuits of the same size. Intervals: 95 %, bootstrap over
    examples. `truth`: names of the known mechanism's edges; the AUROC of the scores against it is reported. `unseen`
    are those of them that replacing clean by corrupted values is known not to show; they count neither way.

    Raises InputError when the held-out pairs do not fit the circuit, MetricError when they show no behaviour.
    """
    if (clean is None) != (corrupted is None):
        raise InputError("Held-out pairs need both runs, clean and corrupted; give both or neither.")
    if random < 1:
        raise InputError("A verdict needs a control; give random=1 or more.")
    report = progress or (lambda stage, done, of: None)
    held_out = clean is not None and corrupted is not None
    graph = _graph(circuit, clean, corrupted)
    metric = as_metric(metric or circuit.metric)
    good, bad = ends(graph, metric)
    check_distinguishes(metric, good, bad)
    report("faithfulness", 0, 4)
    size = len(circuit) if circuit.level == "edge" else _node_count(circuit)
    mask = circuit.mask if circuit.level == "edge" else _node_mask(circuit)
    kept, lost = evaluate(graph, metric, torch.stack([mask, ~mask]))
    gap = _numpy(good - bad)
    faithfulness = ratio_interval(_numpy(kept - bad), gap, seed=seed)
    completeness = ratio_interval(_numpy(good - lost), gap, seed=seed)
    report("null", 1, 4)
    others = random_circuits(graph, size, random, seed, circuit.level, mask)
    # Without another circuit of this size the circuit is its own control, and no better than it.
    drawn = _numpy(evaluate(graph, metric, others)) if len(others) else _numpy(kept)[None]
    null = ((drawn - _numpy(bad)).mean(1) / gap.mean()).tolist()
    p = rank_p(-abs(1 - faithfulness[0]), [-abs(1 - value) for value in null])
    report("minimality", 2, 4)
    needs = _needs(graph, metric, circuit, mask, float(bad.mean()), float((good - bad).mean()), faithfulness[0])
    minimality = float(np.mean([abs(need) > 0.01 for need in needs.values()])) if needs else 0.0
    evidence = _evidence(faithfulness, completeness, minimality, null, p, len(good), random, len(needs))
    details: dict[str, Any] = {
        "null": null, "needs": needs, "per_example": _numpy((kept - bad) / (good - bad).mean()).tolist(),
        "clean": float(good.mean()), "corrupted": float(bad.mean()),
        "circuit": float(kept.mean()), "complement": float(lost.mean()),
    }  # fmt: skip
    if truth is not None:
        details["truth"] = compare_with_truth(circuit, truth, unseen)
        evidence.append(
            Evidence("truth AUROC", details["truth"]["auroc"], None, None, "higher", details["truth"]["how"])
        )
    reasons, verdict = _verdict(faithfulness, completeness, minimality, null, p)
    inputs = _inputs("clean", graph.clean_trace)
    if graph.corrupted_trace is not None:
        inputs |= _inputs("corrupted", graph.corrupted_trace)
    inputs["mask"] = circuit.mask.numpy().astype(np.uint8)
    return Claim(
        _statement(graph, circuit, metric),
        verdict,
        reasons,
        tuple(evidence),
        circuit.to_dict(),
        details,
        _provenance(graph, metric, held_out, seed, len(good)),
        inputs,
    )


def _statement(graph: EdgeGraph, circuit: Circuit, metric: Metric) -> str:
    if circuit.level == "node":
        total = int((graph.moving & graph.valid.any(0)[:, None]).sum())
        return f"In {graph.net.name}, {_node_count(circuit)} of {total} nodes carry the {metric.name}."
    total = int(graph.valid.sum()) * graph.positions
    nodes = len(circuit.nodes)
    return f"In {graph.net.name}, {len(circuit)} of {total} edges over {nodes} nodes carry the {metric.name}."


def _inputs(side: str, trace: Trace) -> dict[str, np.ndarray]:
    """What a run was made on: positional tensors by number, keyword tensors by name."""
    given = dict(enumerate(tensors(trace.args))) | {k: v for k, v in trace.kwargs.items() if isinstance(v, Tensor)}
    return {f"{side}.{name}": _storable(tensor) for name, tensor in given.items()}


def _storable(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()


def compare_with_truth(circuit: Circuit, truth: Sequence[str], unseen: Sequence[str] = ()) -> dict[str, Any]:
    """How the scores of all testable edges rank those of the known mechanism, and which of them the circuit holds.

    Testable: the writer differs between the runs, and the edge is not in `unseen`.
    """
    graph = circuit.graph
    table = {graph.edge_name(row, column): _score(circuit, row, column) for row, column in graph.edges}
    table = {name: score for name, score in table.items() if name not in set(unseen)}
    known, inside = set(truth), set(circuit.edges)
    testable = [name for name in truth if name in table]
    hidden = [name for name in truth if name not in table]
    return {
        "auroc": auroc(list(table.values()), [name in known for name in table]),
        "how": (
            f"{len(testable)} known edges among {len(table)} testable ones; {len(hidden)} more known ones "
            "do not show when clean values are replaced by corrupted ones"
        ),
        "found": [name for name in testable if name in inside],
        "missed": [name for name in testable if name not in inside],
        "beyond": [name for name in circuit.edges if name not in known],
        "untestable": hidden,
    }


def _score(circuit: Circuit, row: int, column: int) -> float:
    """The magnitude of an edge's effect, exact where it was measured, over positions."""
    exact = [circuit.exact.get((row, column, place)) for place in range(circuit.graph.positions)]
    known = [value for value in exact if value is not None]
    scores = known or [circuit.score(row, column, place) for place in range(circuit.graph.positions)]
    return abs(sum(scores))


def _graph(circuit: Circuit, clean: Trace | None, corrupted: Trace | None) -> EdgeGraph:
    return circuit.graph if clean is None else circuit.graph.on(clean, corrupted)


def _node_mask(circuit: Circuit) -> Tensor:
    return circuit.mask.any(0, keepdim=True).expand(circuit.mask.shape)


def _node_count(circuit: Circuit) -> int:
    return int(circuit.mask.any(0).sum())


def _needs(
    graph: EdgeGraph, metric: Metric, circuit: Circuit, mask: Tensor, bad: float, gap: float, whole: float
) -> dict[str, float]:
    """What faithfulness loses when one edge (or node) of the circuit is taken out."""
    if circuit.level == "node":
        units = [(slice(None), *unit) for unit in circuit.mask.any(0).nonzero().tolist()]
        names = [graph.writers[unit[1]] + (f"@{unit[2]}" if graph.positions > 1 else "") for unit in units]
    else:
        listed = circuit.mask.nonzero().tolist()
        units = [tuple(unit) for unit in listed]
        names = [graph.edge_name(unit[0], unit[1]) + (f"@{unit[2]}" if graph.positions > 1 else "") for unit in listed]
    found: dict[str, float] = {}
    for start in range(0, len(units), 64):
        masks = mask.clone().repeat(len(units[start : start + 64]), 1, 1, 1)
        for row, unit in zip(masks, units[start : start + 64], strict=True):
            row[unit] = False
        values = (evaluate(graph, metric, masks).mean(1) - bad) / gap
        found |= {name: whole - float(value) for name, value in zip(names[start:], values, strict=False)}
    return found


def _evidence(
    faithfulness: Interval,
    completeness: Interval,
    minimality: float,
    null: list[float],
    p: float,
    n: int,
    random: int,
    units: int,
) -> list[Evidence]:
    boot = f"95 % bootstrap interval over {n} examples, 2000 draws" if n > 1 else "one example, so no interval"
    return [
        Evidence("faithfulness", *faithfulness, "closer to 1", f"everything outside the circuit corrupted; {boot}"),
        Evidence("completeness", *completeness, "higher", f"the circuit alone corrupted; {boot}"),
        Evidence(
            "minimality", minimality, None, None, "higher",
            f"share of {units} parts whose removal moves faithfulness by more than 0.01",
        ),
        Evidence(
            "null faithfulness", float(np.mean(null)),
            float(np.quantile(null, 0.025)), float(np.quantile(null, 0.975)), "lower",
            f"mean and central 95 % of {random} random connected circuits of the same size",
        ),
        Evidence(
            "null p", p, None, None, "lower",
            f"share of {random} random circuits at least as close to faithfulness 1, +1 corrected",
        ),
    ]  # fmt: skip


def _verdict(
    faithfulness: Interval, completeness: Interval, minimality: float, null: list[float], p: float
) -> tuple[tuple[Reason, ...], str]:
    value, low, high = faithfulness
    within = low is not None and high is not None and low >= 1 - 2 * FAITHFUL and high <= 1 + 2 * FAITHFUL
    faithful = abs(1 - value) <= FAITHFUL and within
    spread = (
        f" [{low:.0%}, {high:.0%}]"
        if low is not None and high is not None
        else " (one example: no interval, give more)"
    )
    beats = p <= SIGNIFICANT
    complete = completeness[0] >= COMPLETE
    minimal = minimality >= NEEDED
    reasons = (
        Reason("faithful", faithful, f"the circuit alone keeps {value:.0%} of the behaviour{spread}"),
        Reason(
            "beats chance",
            beats,
            f"random circuits of its size keep {abs(round(float(np.mean(null)), 3)):.0%} on average; p = {p:.3f}",
        ),
        Reason("complete", complete, f"corrupting it removes {completeness[0]:.0%} of the behaviour"),
        Reason("minimal", minimal, f"{minimality:.0%} of its parts are needed"),
    )
    if not (faithful and beats):
        return reasons, "not supported"
    return reasons, "supported" if complete and minimal else "partly supported"


def _provenance(graph: EdgeGraph, metric: Metric, held_out: bool, seed: int, n: int) -> dict[str, Any]:
    from .. import __version__

    return {
        "model": graph.net.name,
        "source": graph.net.source,
        "fingerprint": graph.net.fingerprint,
        "metric": {"name": metric.name, **metric.facts},
        "baseline": graph.baseline,
        "examples": n,
        "held_out": held_out,
        "seed": seed,
        "versions": {"cutaway": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()
