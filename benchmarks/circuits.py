"""Circuits: known mechanisms found, curves, correlation with exact ablation, verdicts, and the cost of scoring edges.

    python benchmarks/circuits.py [compiled] [aligned] [planted] [curves] [correlation] [verdicts] [edges]
                                  [--seeds 3] [--peer PYTHON ...] [--json]

AUROC: how the search's ranking of all edges that a replacement can show separates those of the known mechanism from the
others (1 is best). A peer is the interpreter of an environment with another library; peers/ holds what runs there.
Progress is told on the standard error.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rows import Row, row, show

import cutaway as cw
from cutaway import organisms
from cutaway.claims.truth import compare_with_truth
from cutaway.run.trace import Trace

COMMAND = "python benchmarks/circuits.py"
PAIRS = 24
# What was published: ACDC's edge AUROC on two compiled programs (Conmy et al. 2023), by ablation.
ACDC = {
    ("reverse", "zero"): "1.000 (published)", ("proportion", "zero"): "1.000 (published)",
    ("reverse", "counterfactual"): "0.200 (published)", ("proportion", "counterfactual"): "0.600 (published)",
}  # fmt: skip
SIIT = {"ACDC": ".95 (published median)", "EAP-IG": ".90 (published median)", "EAP": ".20 (published median)"}
PLANTED = ("shapes", "counter", "gates", "marks", "induction", "indirect-object")
Runs = tuple[Trace, Trace, cw.Metric]


def said(what: str) -> None:
    """Progress."""
    print(what, file=sys.stderr, flush=True)


def drawn(organism: organisms.Organism, seed: int) -> Runs:
    """Clean and corrupted runs of an organism's own behaviour, and its metric."""
    pairs = organism.pairs(PAIRS, seed=seed)
    net = cw.open(organism.name)
    clean, corrupted = net.record(pairs.clean), net.record(pairs.corrupted)
    if pairs.correct is None:  # the whole output is the behaviour
        return clean, corrupted, cw.output_distance(clean)
    position = -1 if pairs.position is None else pairs.position
    return clean, corrupted, cw.logit_difference(pairs.correct, pairs.wrong, position=position, labels=True)


def found(name: str, seed: int, baseline: str = "counterfactual", **options: Any) -> float:
    """Edge AUROC of the default search against an organism's truth."""
    organism = organisms.load(name)
    assert organism.truth is not None
    clean, corrupted, metric = drawn(organism, seed)
    circuit = cw.find_circuit(clean, corrupted, metric, baseline=baseline, neurons=organism.truth.neurons, **options)
    unseen = organism.truth.unseen if baseline == "counterfactual" else ()
    return float(compare_with_truth(circuit, organism.truth.edges, unseen)["auroc"])


def scored(name: str, seed: int, method: str, **options: object) -> float:
    """Edge AUROC of cheap scores alone."""
    organism = organisms.load(name)
    assert organism.truth is not None
    clean, corrupted, metric = drawn(organism, seed)
    circuit = cw.find_circuit(clean, corrupted, metric, search="top-n", size=1, method=method, method_options=options)
    return float(compare_with_truth(circuit, organism.truth.edges, organism.truth.unseen)["auroc"])


def compiled(seeds: int, peers: list[str]) -> list[Row]:
    """Programs compiled to weights, whose circuit is known exactly."""
    rows, command = [], f"{COMMAND} compiled --seeds {seeds}"
    figures: dict[tuple[str, str], list[float]] = {}
    for name in organisms.programs():
        said(name)
        for baseline in ("zero", "counterfactual"):
            if (name, baseline) == ("rasp:length", "counterfactual"):
                continue  # its output is the same for all inputs of one length
            every: dict[str, Any] = {"refine": 1000, "faithfulness": 0.9999}  # exact effects of all edges
            figures[name, baseline] = [found(name, seed, baseline, **every) for seed in range(seeds)]
    for (name, baseline), values in figures.items():
        program = name.removeprefix("rasp:")
        beside = ACDC.get((program, baseline))
        title = f"compiled {program}, {baseline} ablation, edge AUROC"
        rows.append(row(title, values, "AUROC", 1.0, command, {"ACDC": beside} if beside else {}, better="higher"))
    return rows


def aligned(seeds: int, peers: list[str]) -> list[Row]:
    """Networks trained by strict interchange interventions: cheap scores at ten passes, and the whole search."""
    names = organisms.aligned()
    rows, command = [], f"{COMMAND} aligned --seeds {seeds}"
    ways: dict[str, Callable[[str, int], float]] = {
        "EAP (2 passes)": lambda name, seed: scored(name, seed, "eap"),
        "EAP-IG, 5 steps (10 passes)": lambda name, seed: scored(name, seed, "eap-ig"),
        "EAP-IG, magnitudes, 5 steps (10 passes)": lambda name, seed: scored(name, seed, "eap-ig", magnitudes=True),
        "find_circuit": found,
    }
    for way, measure in ways.items():
        said(way)
        each = [statistics.median(measure(name, seed) for seed in range(seeds)) for name in names]
        for which, value, goal in (("median", statistics.median(each), 0.99), ("minimum", min(each), 0.95)):
            title = f"{len(names)} aligned networks, {way}, {which} edge AUROC"
            made = row(title, [value], "AUROC", goal, command, SIIT if which == "median" else {}, better="higher")
            rows.append(made | {"n": len(names), "spread": [round(min(each), 3), round(max(each), 3)]})
    return rows


def planted(seeds: int, peers: list[str]) -> list[Row]:
    """Circuits planted in networks of every kind."""
    rows, command = [], f"{COMMAND} planted --seeds {seeds}"
    for name in PLANTED:
        said(name)
        values = [found(name, seed) for seed in range(seeds)]
        title = f"planted in {name}: {organisms.load(name).description}"
        rows.append(row(title, values, "AUROC", 0.99, command, {"any tool": "none runs"}, better="higher"))
    return rows


def curves(seeds: int, peers: list[str]) -> list[Row]:
    """CMD and CPR over the sizes of the Mechanistic Interpretability Benchmark, on held-out pairs."""
    rows, command = [], f"{COMMAND} curves --seeds {seeds}"
    for name in ("induction", "indirect-object"):
        organism = organisms.load(name)
        areas: dict[str, list[tuple[float, float]]] = {}
        for seed in range(seeds):
            said(f"{name}, seed {seed}")
            clean, corrupted, metric = drawn(organism, seed)
            fresh = drawn(organism, seed + 7919)
            circuit = cw.find_circuit(clean, corrupted, metric)
            held_out = circuit.graph.on(fresh[0], fresh[1])
            ways = {"ours": circuit} | {way: cw.score(circuit.graph, metric, method=way) for way in ("eap-ig", "eap")}
            for way, what in ways.items():
                made = cw.circuit_curve(what, held_out, fresh[2])
                assert made.cmd and made.cpr
                areas.setdefault(way, []).append((made.cmd[0], made.cpr[0]))
        for place, (area, better) in enumerate((("CMD", "lower"), ("CPR", "higher"))):
            beside = {way: round(statistics.median(one[place] for one in areas[way]), 3) for way in ("eap-ig", "eap")}
            best = (min if better == "lower" else max)(beside.values())
            figures = [one[place] for one in areas["ours"]]
            title = f"{name}, {area} over the MIB sizes, held-out pairs (goal: the best of the others)"
            rows.append(row(title, figures, "area", best, command, dict(beside), better=better))
    return rows


def other(script: str, *words: str) -> Callable[[int, list[str]], list[Row]]:
    """The rows of another benchmark."""

    def measure(seeds: int, peers: list[str]) -> list[Row]:
        import json

        given = [f"--peer={peer}" for peer in peers] if script == "edges" else []
        command = [sys.executable, str(Path(__file__).parent / f"{script}.py"), *words, *given, "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows: list[Row] = json.loads(done.stdout)["rows"]
        return rows

    return measure


PARTS: dict[str, Callable[[int, list[str]], list[Row]]] = {
    "compiled": compiled,
    "aligned": aligned,
    "planted": planted,
    "curves": curves,
    "correlation": other("correlation"),
    "verdicts": other("verdicts"),
    "edges": other("edges"),
}


def main() -> None:
    """Measure and print the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--peer", action="append", default=[])
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for part in given.parts or list(PARTS):
        rows += PARTS[part](given.seeds, given.peer)
    show(rows, given.json)


if __name__ == "__main__":
    main()
