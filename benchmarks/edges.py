"""Cost of scoring every edge, paired with the plain forward of the same model in one process.

    python benchmarks/edges.py [--threads 1] [--rounds 5] [--peer PYTHON] [--json]

The model has GPT-2 small's shape (32,491 edges), random weights, one pair of prompts of 20 tokens. A figure is the
median over rounds of job / mean of the plain forwards just before and after it, in CPU time. "From the prompts on"
includes recording both of them again and making the graph. Memory is what all of that adds to what the process held
before, at its highest, in a process of its own (Linux). `--peer` names the interpreter of an environment with
auto-circuit, which is measured against its own plain forward.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from rows import Row, row, show

import cutaway as cw

TOKENS, COMMAND = 20, "python benchmarks/edges.py"
JOBS: dict[str, tuple[str, dict[str, int], float, float]] = {
    "EAP, every edge": ("eap", {}, 4.5, 200),
    "EAP-IG with 5 steps, every edge": ("eap-ig", {"steps": 5}, 15, 200),
}


Subject = tuple[Callable[[], None], Callable[[], cw.EdgeGraph], cw.Metric]


def subject() -> Subject:
    """(the plain forward of the clean prompt, recording both prompts and making the graph, the metric)."""
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
    net = cw.open(model, name="GPT-2 small shape")
    clean = torch.randint(0, 50257, (1, TOKENS))
    other = clean.clone()
    other[0, 0] = (other[0, 0] + 1) % 50257

    def plain() -> None:
        with torch.no_grad():
            model(clean, use_cache=False)

    def graph() -> cw.EdgeGraph:
        return cw.EdgeGraph(net.record(clean, use_cache=False), net.record(other, use_cache=False))

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
    graph()  # what a first recording takes is not the scoring's
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the highest starts anew
    before = held("VmRSS")
    method, options, _, _ = JOBS[name]
    cw.score(graph(), metric, method=method, **options)
    return held("VmHWM") - before


def peer(pythons: Sequence[str], threads: int, rounds: int) -> dict[str, dict[str, Any]]:
    """auto-circuit's figures by job, or why there are none. EAP-IG's library is on no package index."""
    found: dict[str, dict[str, Any]] = {name: {"EAP-IG": "not on PyPI, not run"} for name in JOBS}
    script = Path(__file__).parent / "peers" / "auto_circuit_edges.py"
    for python in pythons:
        words = [python, str(script), str(threads), str(rounds)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            for one in found.values():
                one.setdefault("auto-circuit", f"could not run: {reason}")
            continue
        for name, figures in json.loads(done.stdout.splitlines()[-1]).items():
            found[name] |= figures
    return found


def _after(make: Callable[[], cw.EdgeGraph], score: Callable[[cw.EdgeGraph], object]) -> None:
    score(make())


def measured(threads: int, rounds: int, peers: Sequence[str]) -> list[Row]:
    """Rows of time and of memory."""
    torch.set_num_threads(threads)
    plain, make, metric = subject()
    graph = make()
    figures = peer(peers, threads, rounds)
    rows = []
    for name, (method, options, goal, most) in JOBS.items():
        command = f"{COMMAND} --threads {threads} --rounds {rounds}"
        score = partial(cw.score, metric=metric, method=method, **options)
        jobs: dict[str, Callable[[], object]] = {
            f"{name}, {int(graph.valid.sum()):,} of them": partial(score, graph),
            f"{name}, from the prompts on": partial(_after, make, score),
        }
        for title, job in jobs.items():
            job()
            ratios = []
            for _ in range(rounds):
                around = [timed(plain)]
                took = timed(job)
                around.append(timed(plain))
                ratios.append(took / statistics.mean(around))
            asked = goal if "of them" in title else None
            rows.append(row(title, ratios, "plain forwards", asked, command, figures.get(name)))
        child = [sys.executable, __file__, "--threads", str(threads), "--memory", name]
        most_held = float(subprocess.run(child, check=True, capture_output=True, text=True).stdout)
        rows.append(row(f"{name}, memory", [most_held], "MiB", most, command))
    return rows


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", choices=JOBS, help="only what this job adds to memory, in this process")
    parser.add_argument("--peer", action="append", default=[], help="the interpreter of an environment, repeatable")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.memory:
        print(added(given.memory))
        return
    show(measured(given.threads, given.rounds, given.peer), given.json)


if __name__ == "__main__":
    main()
