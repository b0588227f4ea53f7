"""Seconds and peak memory of strings and xrefs on GPT-2 small's shape, against TransformerLens' nearest functions.

    python benchmarks/static.py [--threads 2] [--rounds 1] [--peer PYTHON] [--json]

Random weights from the config; each job runs in a process of its own, so that its peak memory is its own (what the
process holds at most beyond what it held when the network was recorded and lifted; the model itself is 0.5 GB).
`--peer` names the interpreter of an environment with transformer-lens; peers/transformer_lens_static.py runs there.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rows import Row, show

LAYERS, WIDTH, HEADS, WORDS = 12, 768, 12, 50257
PEER = "TransformerLens 4.3.0"
# name, unit, goal, the peer's job
JOBS: dict[str, tuple[str, float | None, str]] = {
    "what all 36,864 neurons write: 6 tokens each way, z": ("writes", None, "writes"),
    "strings, everything (neurons both ways, heads' OV and QK)": ("strings", None, ""),
    "xrefs: build the index and keep it in a project": ("index", None, ""),
    "xrefs: writers of a neuron, from the project": ("ask neuron", 1.0, ""),
    "xrefs: writers and readers of a head, from the project": ("ask head", 1.0, ""),
    "xrefs in a run: who contributed to one logit": ("contributed", None, ""),
    "xrefs in a run: who used a head's output": ("used", None, ""),
    "K-composition of all heads": ("composition", None, "composition"),
}


def peak() -> float:
    """The most memory this process has held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def trace_of() -> Any:
    """A lifted recording of the shape, four tokens long."""
    import transformers

    import cutaway as cw

    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
    trace = cw.open(model, name="GPT-2 small shape").record(torch.randint(0, WORDS, (1, 4)), use_cache=False)
    trace.lift()
    return trace


def child(job: str, folder: str) -> None:
    """Run one job and print {seconds, mb}."""
    from cutaway.project import Project
    from cutaway.reading import Index, build_index, contributed, strings, used

    project = Path(folder) / "static.cutaway"

    def kept() -> Index:
        with Project(project, readonly=True) as opened:
            (row,) = opened.records("xrefs index")
            return Index(row["data"], opened.tensors(row["id"]))

    def keep() -> None:
        facts, arrays = build_index(trace).stored()
        with Project(project) as opened:
            opened.add_record("xrefs index", facts, arrays)

    def head() -> None:
        index = kept()
        index.writers_of("L6.attn.h3")
        index.readers_of("L6.attn.h3")

    import cutaway as cw

    table: dict[str, Callable[[], object]] = {
        "writes": lambda: strings(trace, side="writes"),
        "strings": lambda: strings(trace),
        "index": keep,
        "ask neuron": lambda: kept().writers_of("L11.mlp.n7.in"),
        "ask head": head,
        "contributed": lambda: contributed(trace, "logits[vocab=11, pos=-1]"),
        "used": lambda: used(trace, "L2.attn.h5"),
        "composition": lambda: cw.composition(trace, "k"),
    }
    trace = None if job.startswith("ask") else trace_of()
    before = peak()
    start = time.perf_counter()
    table[job]()
    print(json.dumps({"seconds": time.perf_counter() - start, "mb": peak() - before}))


def run(command: list[str]) -> dict[str, Any]:
    """The last line of a child's output, or why there is none."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"why": (done.stderr.strip().splitlines() or ["no output"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def measured(threads: int, rounds: int, peer: str | None) -> list[Row]:
    """A row for the seconds and one for the memory of each job."""
    rows: list[Row] = []
    command = "python benchmarks/static.py"
    for name, (job, goal, theirs) in JOBS.items():
        figures, other = [], []
        for turn in range(rounds):
            with_folder = FOLDER.name if job != "index" else f"{FOLDER.name}/{turn}" if turn else FOLDER.name
            figures.append(run([sys.executable, __file__, "--child", job, with_folder, "--threads", str(threads)]))
            if peer and theirs:
                script = Path(__file__).parent / "peers" / "transformer_lens_static.py"
                other.append(run([peer, str(script), theirs, str(threads)]))
        for key, unit in (("seconds", "s"), ("mb", "MB beyond the recorded model")):
            ours = _median(figures, key)
            peers = {PEER: _median(other, key)} if other else {PEER: "has no such function"} if not theirs else {}
            limit = goal if key == "seconds" else None
            rows.append({
                "name": f"{name}, {threads} thread(s)", "ours": ours, "unit": unit, "better": "lower", "peers": peers,
                "goal": limit, "met": None if limit is None or isinstance(ours, str) else ours <= limit, "n": rounds,
                "seed": 0, "command": command,
            })  # fmt: skip
    return rows


def _median(figures: list[dict[str, Any]], key: str) -> float | str:
    if failed := [figure["why"] for figure in figures if "why" in figure]:
        return failed[0]
    return round(statistics.median(figure[key] for figure in figures), 3)


FOLDER = tempfile.TemporaryDirectory()


def main() -> None:
    """Measure and print the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--peer", help="the interpreter of an environment with transformer-lens")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.child:
        child(*arguments.child)
        return
    rows = measured(arguments.threads, arguments.rounds, arguments.peer)
    show(rows, arguments.json)


if __name__ == "__main__":
    main()
