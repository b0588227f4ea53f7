"""Testing a circuit causally: does it carry the behaviour, the rest not, is each edge needed, is chance as good?"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..attribution.edges import EdgeGraph
from ..attribution.methods import score
from ..attribution.metric import Metric, as_metric
from ..attribution.repair import self_repair
from ..circuits.alternatives import alternatives, overlap
from ..circuits.circuit import Circuit
from ..circuits.loading import metric_from
from ..circuits.search import Progress
from ..errors import InputError
from ..run.trace import Trace
from . import judging
from .claim import Claim, Evidence
from .curves import circuit_curve
from .hypotheses import equivalence, independence, minimality
from .judging import Finding
from .measured import Measured, measure
from .null import inflated, random_circuits
from .repeat import stored
from .stability import named_parts, stability
from .truth import compare_with_truth
from .untrained import FEW, OWN_OUTPUT, untrained

__all__ = ["compare_with_truth", "verify"]

Pairs = tuple[Trace, Trace | None, Metric | None]
INFLATED = 100


def verify(
    circuit: Circuit,
    clean: Trace | None = None,
    corrupted: Trace | None = None,
    metric: Metric | None = None,
    *,
    truth: Sequence[str] | None = None,
    unseen: Sequence[str] = (),
    other: Mapping[str, Pairs] | Sequence[Pairs] = (),
    alternatives: int = 0,
    thorough: bool = False,
    random: int = 100,
    seed: int = 0,
    progress: Progress | None = None,
) -> Claim:
    """Test a circuit, on held-out pairs if given (else on those it was found on, and the claim says so).

    Whether the pairs show the behaviour one by one (sign test) and only the trained weights do (permuted weights);
    faithfulness: the share of it that the circuit alone keeps, everything else ablated; against `random` connected
    circuits of its size; completeness: the share lost when the circuit alone is ablated; minimality: the share of edges
    whose removal changes faithfulness by more than 0.01. Intervals: 95 %, percentile bootstrap over examples.

    `other`: further sets of pairs (clean, corrupted, metric or None), by name or in order: does it hold there too?
    `thorough` adds curves, stability, the minimality test and self-repair; `alternatives` looks for so many other
    circuits. `truth`: names of the known mechanism's edges; the AUROC of the scores against it is reported. `unseen`
    are those of them that replacing clean by corrupted values is known not to show; they count neither way.

    See docs/verdict.md. Raises InputError when pairs do not fit the circuit, MetricError when the metric is the same
    with everything ablated.
    """
    if (clean is None) != (corrupted is None) and (clean is None or circuit.graph.corrupted_trace is not None):
        raise InputError("Held-out pairs need both runs, clean and corrupted; give both or neither.")
    if random < 1:
        raise InputError("A verdict needs a control; give random=1 or more.")
    held_out = clean is not None
    graph = circuit.graph if clean is None else circuit.graph.on(clean, corrupted)
    sets = _sets(circuit, other)
    report = progress or (lambda stage, done, of: None)
    report("faithfulness", 0, 5)
    found = measure(circuit, graph, _metric_on(metric or circuit.metric, clean), seed)
    findings = [judging.behaves(found, held_out)]
    report("untrained control", 1, 5)
    open_question = found.metric.facts.get("kind") in OWN_OUTPUT or found.n < FEW
    findings += [judging.trained(untrained(graph, found.metric, seed), open_question), judging.faithful(found)]
    report("null", 2, 5)
    findings += [judging.beats_chance(found, _null(found, circuit, random), random), judging.complete(found)]
    report("minimality", 3, 5)
    needs = _needs(found, circuit)
    tests = [equivalence(found.kept, found.good), independence(found.lost, found.good, seed=seed)]
    if thorough:
        more, less = inflated(graph, found.mask, INFLATED, seed, circuit.level)
        tests.append(minimality(needs, (found.shares(more) - found.shares(less)).tolist()))
    findings += [judging.minimal(needs), judging.tested(tests)]
    for name, (other_clean, other_corrupted, other_metric) in sets.items():
        there = circuit.graph.on(other_clean, other_corrupted)
        asked = _metric_on(other_metric or circuit.metric, other_clean)
        findings.append(judging.elsewhere(name, measure(circuit, there, asked, seed)))
    report("further tests", 4, 5)
    findings += _deeper(found, circuit) if thorough else []
    findings += [_alternatives(circuit, found, alternatives)] if alternatives else []
    findings += [_truth(circuit, truth, unseen)] if truth is not None else []
    asked_for = {"thorough": thorough, "alternatives": alternatives, "random": random, "other": list(sets)}
    facts = _provenance(found, held_out) | {"options": asked_for}
    facts["other_metrics"] = {name: _facts(pairs[2]) for name, pairs in sets.items()}
    return _claim(circuit, found, findings, facts, sets)


def _claim(
    circuit: Circuit, found: Measured, findings: Sequence[Finding], facts: dict[str, Any], sets: Mapping[str, Pairs]
) -> Claim:
    reasons = tuple(reason for finding in findings for reason in finding.reasons)
    evidence = tuple(item for finding in findings for item in finding.evidence)
    means = {"clean": found.good, "corrupted": found.bad, "circuit": found.kept, "complement": found.lost}
    details: dict[str, Any] = {name: float(values.mean()) for name, values in means.items()}
    for finding in findings:
        details |= finding.details
    statement = _statement(found.graph, circuit, found.metric)
    # The main figure stands first.
    evidence = tuple(sorted(evidence, key=lambda item: item.name != "faithfulness"))
    runs = {name: pairs[:2] for name, pairs in sets.items()}
    tensors = stored(circuit, found.graph, runs, facts["options"]["thorough"])
    verdict = judging.verdict(reasons)
    return Claim(statement, verdict, reasons, evidence, circuit.to_dict(), details, facts, tensors)


def _sets(circuit: Circuit, other: Mapping[str, Pairs] | Sequence[Pairs]) -> dict[str, Pairs]:
    named = other if isinstance(other, Mapping) else {f"set {place}": pairs for place, pairs in enumerate(other, 2)}
    for name, pairs in named.items():
        if not isinstance(pairs, tuple) or len(pairs) != 3:
            raise InputError(f"'{name}' is no set of pairs; give (clean, corrupted, metric or None).")
        if "." in name:
            raise InputError(f"The set's name '{name}' has a dot; choose another.")
    return dict(named)


def _metric_on(metric: Metric, clean: Trace | None) -> Metric:
    """The metric for other runs: a distance from the network's own output is one from its output there."""
    metric = as_metric(metric)
    own = clean is not None and metric.facts.get("kind") in OWN_OUTPUT
    return metric_from(metric.facts, clean) if own and clean is not None else metric


def _facts(metric: Metric | None) -> dict[str, Any] | None:
    return None if metric is None else {"name": as_metric(metric).name, **as_metric(metric).facts}


def _null(found: Measured, circuit: Circuit, random: int) -> list[float]:
    """The faithfulness of random circuits of the same size."""
    size = int((circuit.mask.any(0) if circuit.level == "node" else circuit.mask).sum())
    masks = random_circuits(found.graph, size, random, found.seed, circuit.level, found.mask)
    # Without another circuit of this size the circuit is its own control, and no better than it.
    return found.shares(masks).tolist() if len(masks) else [found.faithfulness[0]]


def _needs(found: Measured, circuit: Circuit) -> dict[str, float]:
    """What faithfulness loses when one edge (or node) of the circuit is taken out."""
    parts = named_parts(found.graph, circuit.mask, circuit.level)
    if not parts:
        return {}
    masks = found.mask.repeat(len(parts), 1, 1, 1)
    for row, (unit, _) in zip(masks, parts, strict=True):
        row[unit if circuit.level == "edge" else (slice(None), *unit)] = False
    whole = found.faithfulness[0]
    values = found.shares(masks).tolist()
    return {name: whole - value for (_, name), value in zip(parts, values, strict=True)}


def _deeper(found: Measured, circuit: Circuit) -> list[Finding]:
    """What takes longer: curves, stability and self-repair."""
    graph, metric, seed = found.graph, found.metric, found.seed
    if circuit.scores.facts.get("partial"):  # a stored circuit, with scores of its own edges only
        circuit = replace(circuit, scores=score(graph, metric), exact={})
    findings = [judging.curved(circuit_curve(circuit, graph, metric, seed=seed))]
    if found.n > 1:
        findings.append(judging.stable(stability(circuit, graph, metric, seed=seed)))
    return [*findings, judging.repaired(self_repair(graph, metric, circuit.nodes))]


def _alternatives(circuit: Circuit, found: Measured, count: int) -> Finding:
    """Other circuits for the same behaviour, measured on the same examples."""
    rows = []
    for one in alternatives(circuit, count):
        value, low, high = measure(one, found.graph, found.metric, found.seed).faithfulness
        figures = {"faithfulness": value, "low": low, "high": high, "size": len(one), "edges": one.edges}
        rows.append({"overlap": overlap(one, circuit), **figures})
    return judging.others(rows, count)


def _truth(circuit: Circuit, truth: Sequence[str], unseen: Sequence[str]) -> Finding:
    compared = compare_with_truth(circuit, truth, unseen)
    area = compared["auroc"]
    evidence = (Evidence("truth AUROC", area, None, None, "higher", compared["how"]),) if area is not None else ()
    return Finding(evidence, (), {"truth": compared})


def _statement(graph: EdgeGraph, circuit: Circuit, metric: Metric) -> str:
    if circuit.level == "node":
        total = int(graph.testable("node").sum())
        return f"In {graph.net.name}, {int(circuit.mask.any(0).sum())} of {total} nodes carry the {metric.name}."
    total = int(graph.valid.sum()) * graph.positions
    nodes = len(circuit.nodes)
    return f"In {graph.net.name}, {len(circuit)} of {total} edges over {nodes} nodes carry the {metric.name}."


def _provenance(found: Measured, held_out: bool) -> dict[str, Any]:
    from .. import __version__

    net = found.graph.net
    return {
        "model": net.name,
        "source": net.source,
        "fingerprint": net.fingerprint,
        "metric": _facts(found.metric),
        "baseline": found.graph.baseline,
        "examples": found.n,
        "held_out": held_out,
        "seed": found.seed,
        "versions": {"cutaway": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
