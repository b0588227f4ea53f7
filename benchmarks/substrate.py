"""Cost of import, recording and patching, paired with the plain forward of the same model in one process.

    python benchmarks/substrate.py [--threads 1 2] [--rounds 9] [--peer PYTHON] [--json]

The model has GPT-2 small's shape, built from its config with random weights; the input is one prompt of 20 tokens. Each
round times the plain forward and every job once, in turn; the figure is the median over rounds of job / plain, in CPU
time. Sweeps are given twice: with a source prompt that differs from the sixth token on (only what can change is run),
and one that differs from the first (everything can change). `--peer` names the interpreter of an environment with
nnsight, torch and transformers; peers/nnsight_substrate.py runs there, against its own plain forward.
"""

from __future__ import annotations

import argparse
import json
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

LAYERS, TOKENS, HEADS = 12, 20, 12
FORWARDS, COMMAND = "plain forwards", "python benchmarks/substrate.py"


def timed(job: Callable[[], object]) -> float:
    """Seconds of CPU time of one call, all threads together."""
    start = time.process_time()
    job()
    return time.process_time() - start


def import_row(rounds: int) -> Row:
    """Median seconds of wall time of `import cutaway` beyond the interpreter's own start."""

    def seconds(code: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=False)
        return time.perf_counter() - start

    loads = subprocess.run([sys.executable, "-c", "import cutaway, sys; sys.exit('torch' in sys.modules)"], check=False)
    found = statistics.median(seconds("import cutaway") - seconds("pass") for _ in range(rounds))
    name = "import cutaway" + (" (loads torch!)" if loads.returncode else ", no torch loaded")
    return row(name, [found], "s", 0.3, COMMAND) | {"n": rounds}


def jobs(threads: int, rounds: int) -> list[Row]:
    """Rows of the recording and patching jobs at a number of threads."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
    prompt = torch.randint(0, 50257, (1, TOKENS))
    net = cw.open(model, name="GPT-2 small shape")
    run = net.record(prompt, use_cache=False)
    sources = {}
    for name, place in (("sixth", 5), ("first", 0)):
        other = prompt.clone()
        other[0, place] = (other[0, place] + 1) % 50257
        sources[name] = net.record(other, use_cache=False)
    metric = cw.logit_difference(3, 4)
    sites = {"pos": [f"L{at}.resid_pre" for at in range(LAYERS)], "head": [f"L{at}.attn.z" for at in range(LAYERS)]}

    def plain() -> None:
        with torch.no_grad():
            model(prompt, use_cache=False)

    def swept(axis: str, source: str) -> Callable[[], object]:
        return lambda: cw.patch_sweep(run, sources[source], metric, sites[axis], axis)

    table: list[tuple[str, Callable[[], object], int, float | None]] = [
        ("record, one site kept", lambda: net.record(prompt, use_cache=False, keep=["transformer.h.3/add.1"]), 1, 1.03),
        ("record, every site kept", lambda: net.record(prompt, use_cache=False), 1, 1.1),
    ]
    for axis, count, what in (("pos", LAYERS * TOKENS, "layer x position"), ("head", LAYERS * HEADS, "every head")):
        for source, goal in (("sixth", 0.10), ("first", None)):
            name = f"patch {what}, per patch ({count}), prompts differ from the {source} token on"
            table.append((name, swept(axis, source), count, goal))
    ratios: dict[str, list[float]] = {name: [] for name, *_ in table}
    new = cw.open(model)
    plain(), plain()
    anew = timed(lambda: new.record(prompt, use_cache=False)) / timed(plain)
    rows = [row(f"record, the first time, {threads} thread(s)", [anew], FORWARDS, None, COMMAND)]
    for name, job, count, _ in table:
        first = timed(job) / count / timed(plain)
        if "patch" in name and "sixth" in name:
            rows.append(row(f"{name}; with planning, {threads} thread(s)", [first], FORWARDS, None, COMMAND))
    for _ in range(rounds):
        for name, job, count, _ in table:
            before = timed(plain)
            took = timed(job)
            ratios[name].append(took / count / ((before + timed(plain)) / 2))
    for name, _, _, goal in table:
        rows.append(row(f"{name}, {threads} thread(s)", ratios[name], FORWARDS, goal, COMMAND))
    return rows


class Steps(torch.nn.Module):
    """A GRU cell for a thousand steps."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = torch.nn.GRUCell(32, 128)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The last state."""
        state = x.new_zeros(len(x), 128)
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
        return state


def memory() -> list[Row]:
    """Bytes of values that the recording of a long recurrent run holds, all of them and with checkpoints."""
    net, rows = cw.open(Steps()), []
    x = torch.randn(16, 1000, 32)
    state = 16 * 128 * 4
    for keep, goal in (("all", None), ("checkpoints", 16 * 3)):
        trace = net.record(x, keep=keep)
        given = {trace.tape.leaves[value].untyped_storage().data_ptr() for value in trace.graph.inputs}
        kept = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in trace.tape.kept.values()}
        held = sum(size for place, size in kept.items() if place not in given) / state
        name = f"recording of 1,000 recurrent steps, keep={keep!r}"
        rows.append(row(name, [held], "states of the network", goal, COMMAND))
    return rows


def peer(python: str, threads: int, rounds: int) -> dict[str, dict[str, float]]:
    """nnsight's figures by job, from its own environment; empty when it cannot run."""
    script = Path(__file__).parent / "peers" / "nnsight_substrate.py"
    done = subprocess.run([python, str(script), str(threads), str(rounds)], capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"the peer could not run: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return {}
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure and print the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--peer", help="the interpreter of an environment with nnsight")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    rows = [import_row(arguments.rounds), *memory()]
    for threads in arguments.threads:
        made = jobs(threads, arguments.rounds)
        figures = peer(arguments.peer, threads, arguments.rounds) if arguments.peer else {}
        for entry in made:
            for job, found in figures.items():
                if entry["name"].startswith(job) and "the first time" not in entry["name"]:
                    entry["peers"] = found
        rows += made
    show(rows, arguments.json)


if __name__ == "__main__":
    main()
