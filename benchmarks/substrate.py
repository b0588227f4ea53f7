"""Cost of import, recording and patching, paired with the plain forward of the same model in one process.

    python benchmarks/substrate.py [--threads 1 2] [--rounds 9] [--json]

The model has GPT-2 small's shape, built from its config with random weights; the input is one prompt of 20 tokens. Each
round times the plain forward and every job once, in turn; the figure is the median over rounds of job / plain (wall
time).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import transformers

import cutaway as cw
from cutaway.attribution.sweep import patch_sweep

LAYERS, TOKENS = 12, 20


def timed(job: Callable[[], object]) -> float:
    """Seconds of wall time of one call."""
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def import_seconds(rounds: int) -> tuple[float, bool]:
    """Median seconds of `import cutaway` beyond the interpreter's own start, and whether torch was loaded by it."""
    empty = [sys.executable, "-c", "pass"]
    full = [sys.executable, "-c", "import cutaway, sys; sys.exit('torch' in sys.modules)"]
    loads = subprocess.run(full, check=False).returncode != 0
    pairs = [
        (timed(lambda: subprocess.run(empty, check=True)), timed(lambda: subprocess.run(full, check=False)))
        for _ in range(rounds)
    ]
    return statistics.median(b - a for a, b in pairs), loads


def jobs(threads: int, rounds: int) -> list[dict[str, object]]:
    """Rows of the recording and patching jobs at a number of threads."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
    prompt = torch.randint(0, 50257, (1, TOKENS))
    other = prompt.clone()
    other[0, 5] = (other[0, 5] + 1) % 50257
    net = cw.open(model, name="GPT-2 small shape")
    run, source = net.record(prompt, use_cache=False), net.record(other, use_cache=False)
    metric = cw.logit_difference(3, 4)
    sites = [f"L{layer}.resid_pre" for layer in range(LAYERS)]
    run.lift(), source.lift()

    def plain() -> None:
        with torch.no_grad():
            model(prompt, use_cache=False)

    def hooked() -> None:
        for place in range(TOKENS):

            def edit(module: object, args: object, out: torch.Tensor, place: int = place) -> torch.Tensor:
                out = out.clone()
                out[:, place] = 0
                return out

            handle = model.transformer.h[5].register_forward_hook(edit)
            plain()
            handle.remove()

    table: dict[str, tuple[Callable[[], object], int, float, dict[str, str]]] = {
        "record, one site kept": (
            lambda: net.record(prompt, use_cache=False, keep=["transformer.h.3/add.1"]), 1, 1.15, {},
        ),
        "record, every site kept": (lambda: net.record(prompt, use_cache=False), 1, 1.5, {}),
        f"patch layer x position, per patch ({LAYERS * TOKENS} patches)": (
            lambda: patch_sweep(run, source, metric, sites), LAYERS * TOKENS, 1 / 3, {},
        ),
    }  # fmt: skip
    ratios: dict[str, list[float]] = {name: [] for name in [*table, "hooks"]}
    for job in (plain, hooked, *(entry[0] for entry in table.values())):
        job()
    for _ in range(rounds):
        for name, (job, count, _, _) in table.items():
            base = timed(plain)
            ratios[name].append(timed(job) / count / ((base + timed(plain)) / 2))
        ratios["hooks"].append(timed(hooked) / TOKENS / timed(plain))
    hooks = round(statistics.median(ratios["hooks"]), 3)
    rows = []
    for name, (_, _, goal, _) in table.items():
        ours = round(statistics.median(ratios[name]), 3)
        peers = {"bare forward hooks, one patch a forward": hooks} if "patch" in name else {}
        spread = [round(min(ratios[name]), 3), round(max(ratios[name]), 3)]
        rows.append(
            {
                "name": f"{name}, {threads} thread(s)", "ours": ours, "unit": "plain forwards",
                "better": "lower", "peers": peers, "goal": round(goal, 3), "met": ours <= goal,
                "n": rounds, "spread": spread, "seed": 0,
                "command": f"python benchmarks/substrate.py --threads {threads} --rounds {rounds}",
            }
        )  # fmt: skip
    return rows


def main() -> None:
    """Measure and print the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    seconds, loads = import_seconds(arguments.rounds)
    rows: list[dict[str, object]] = [
        {
            "name": "import cutaway" + (" (loads torch!)" if loads else ", no torch loaded"),
            "ours": round(seconds, 3), "unit": "s", "better": "lower", "peers": {}, "goal": 0.3,
            "met": seconds <= 0.3 and not loads, "n": arguments.rounds, "seed": 0,
            "command": "python benchmarks/substrate.py",
        }
    ]  # fmt: skip
    for threads in arguments.threads:
        rows += jobs(threads, arguments.rounds)
    if arguments.json:
        print(json.dumps({"rows": rows}, indent=1))
        return
    for row in rows:
        peers = "".join(f"; {name}: {figure}" for name, figure in dict(row["peers"]).items())  # type: ignore[call-overload]
        print(
            f"{row['name']:<62} {row['ours']:>7} {row['unit']} "
            f"(goal {row['goal']}, {'met' if row['met'] else 'MISSED'}){peers}"
        )


if __name__ == "__main__":
    main()
