"""Cost of scoring every edge, paired with the plain forward of the same model in one process.

    python benchmarks/edges.py [--threads 1] [--rounds 5] [--json]

The model has GPT-2 small's shape (32,491 edges), random weights, one pair of prompts of 20 tokens. A figure is the
median over rounds of job / mean of the plain forwards just before and after it, in CPU time. Memory is what the job adds
to what the process held before it, at its highest, in a process of its own (Linux).
"""

from __future__ import annotations

import argparse
import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from rows import Row, row, show

import cutaway as cw

TOKENS, COMMAND = 20, "python benchmarks/edges.py"
JOBS: dict[str, tuple[str, dict[str, int], float, float]] = {
    "EAP, every edge": ("eap", {}, 4.5, 200),
    "EAP-IG with 5 steps, every edge": ("eap-ig", {"steps": 5}, 15, 200),
}


def subject() -> tuple[Callable[[], None], cw.EdgeGraph, cw.Metric]:
    """(the plain forward of the clean prompt, the graph, the metric)."""
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
    net = cw.open(model, name="GPT-2 small shape")
    clean = torch.randint(0, 50257, (1, TOKENS))
    other = clean.clone()
    other[0, 0] = (other[0, 0] + 1) % 50257
    graph = cw.EdgeGraph(net.record(clean, use_cache=False), net.record(other, use_cache=False))

    def plain() -> None:
        with torch.no_grad():
            model(clean, use_cache=False)

    return plain, graph, cw.logit_difference(3, 4)


def timed(job: Callable[[], object]) -> float:
    """Seconds of CPU time of one call."""
    start = time.process_time()
    job()
    return time.process_time() - start


def held(which: str) -> float:
    """MiB of memory of this process now (VmRSS) or at its highest since it was last reset (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(which)).split()[1]) / 1024


def added(name: str) -> float:
    """MiB that one scoring adds to the process."""
    plain, graph, metric = subject()
    plain()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the highest starts anew
    before = held("VmRSS")
    method, options, _, _ = JOBS[name]
    cw.score(graph, metric, method=method, **options)
    return held("VmHWM") - before


def figures(threads: int, rounds: int) -> list[Row]:
    """Rows of time and of memory."""
    torch.set_num_threads(threads)
    plain, graph, metric = subject()
    rows = []
    for name, (method, options, goal, most) in JOBS.items():
        ratios = []
        cw.score(graph, metric, method=method, **options)
        for _ in range(rounds):
            around = [timed(plain)]
            took = timed(lambda: cw.score(graph, metric, method=method, **options))  # noqa: B023
            around.append(timed(plain))
            ratios.append(took / statistics.mean(around))
        command = f"{COMMAND} --threads {threads} --rounds {rounds}"
        rows.append(row(f"{name}, {int(graph.valid.sum()):,} of them", ratios, "plain forwards", goal, command))
        child = [sys.executable, __file__, "--threads", str(threads), "--memory", name]
        most_held = float(subprocess.run(child, check=True, capture_output=True, text=True).stdout)
        rows.append(row(f"{name}, memory", [most_held], "MiB", most, command))
    return rows


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", choices=JOBS)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.memory:
        print(added(given.memory))
        return
    show(figures(given.threads, given.rounds), given.json)


if __name__ == "__main__":
    main()
