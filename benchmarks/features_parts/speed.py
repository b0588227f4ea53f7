"""Training steps of a TopK dictionary, beside those of other libraries: time, memory, and what was learnt.

All get the same rows, latents, k, batches, threads and learning rate of Adam, and make their own trainer's step. They
take turns, a step each, and CPU time is counted; the first step of each is left out. Beside tokens per CPU second stand
tokens in the time that a plain product of a GFLOP took right before the step, which a busy machine changes less.
Memory is what the process holds at its highest, less what it held with the rows before anything of the step was made.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

SIDE = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(SIDE), str(SIDE / "peers")]

from rows import Row, row, show  # noqa: E402
from steps import GIGAFLOP, SIZES  # noqa: E402

COMMAND = "python benchmarks/features_parts/speed.py"
STEPS = {"large": 6, "small": 60}
GOALS = {"large": 4500.0, "small": 50_000.0}
SCRIPTS = {
    "sae_lens": [["sae_lens_step.py"], ["sae_lens_step.py", "autocast"]],
    "dictionary_learning": [["dictionary_learning_step.py"]],
    "sparsify": [["sparsify_step.py"]],
}


class Driven:
    """A script that makes a step when it is told to."""

    def __init__(self, python: str, script: list[str], given: list[str]) -> None:
        self.name = " ".join(script)
        words = [python, str(SIDE / "peers" / script[0]), *given, *script[1:]]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)

    def ask(self, word: str) -> dict[str, Any] | None:
        """What it answers, or None when it has ended."""
        assert self.process.stdin and self.process.stdout
        with contextlib.suppress(BrokenPipeError):  # one that has made all its steps may have ended by itself
            self.process.stdin.write(word + "\n")
            self.process.stdin.flush()
        line = next((line for line in self.process.stdout if line.startswith("@")), None)
        return json.loads(line[1:]) if line else None


def _measured(driven: list[Driven], steps: int) -> list[dict[str, Any]]:
    """For each script its name, figures and what it ends with; a script that cannot run has only a name."""
    found: list[dict[str, Any]] = [{"name": each.name, "tokens": [], "relative": []} for each in driven]
    for number in range(steps):
        for each, into in zip(driven, found, strict=True):
            answer = each.ask("step")
            if answer is not None and number:
                into["tokens"].append(1 / answer["seconds"])
                into["relative"].append(answer["plain"] / GIGAFLOP / answer["seconds"])
    for each, into in zip(driven, found, strict=True):
        into |= each.ask("end") or {}
        each.process.wait()
    return found


def of_size(size: str, steps: int, threads: int, seed: int, peers: list[str]) -> list[Row]:
    """The rows of one size."""
    width, latents, k, batch = SIZES[size]
    given = [size, str(steps), str(threads), str(seed)]
    scripts = [(sys.executable, ["cutaway_step.py", "topk"]), (sys.executable, ["cutaway_step.py", "batchtopk"])]
    for python in peers:
        for module, wanted in SCRIPTS.items():
            asked = f"import importlib.util as u, sys; sys.exit(u.find_spec('{module}') is None)"
            if subprocess.run([python, "-c", asked], check=False).returncode == 0:
                scripts += [(python, script) for script in wanted]
    ours, many, *others = _measured([Driven(python, script, given) for python, script in scripts], steps)

    def beside(what: str, factor: float = 1.0) -> Row:
        figures = {"Cutaway, BatchTopK": many.get(what)}
        figures |= {other["name"]: other.get(what) for other in others}
        told = {name: statistics.median(f) if isinstance(f, list) and f else f for name, f in figures.items()}
        return {name: round(f * factor, 3) if f else "could not run" for name, f in told.items()}

    def higher(title: str, what: str, unit: str, goal: float | None) -> Row:
        figures = [figure * batch for figure in ours[what]]
        return row(f"{name}{title}", figures, unit, goal, command, beside(what, batch), better="higher", seed=seed)

    name, command = f"training step, d = {width}, {latents:,} latents, TopK {k}, batch {batch:,}", COMMAND
    most = 300.0 if size == "large" else None
    return [
        higher("", "tokens", "tokens per CPU second", GOALS[size]),
        higher(", beside a plain product", "relative", "tokens per GFLOP of a plain product", None),
        row(
            f"{name}, FVU after {steps} steps",
            [ours["fvu"]],
            "lower is better",
            None,
            command,
            beside("fvu"),
            seed=seed,
        ),
        row(f"{name}, memory", [ours["added"]], "MiB", most, command, beside("added"), seed=seed),
    ]


def rows(seeds: int, peers: list[str]) -> list[Row]:
    """Rows of both sizes, one thread; speed is measured for one seed."""
    return [entry for size, steps in STEPS.items() for entry in of_size(size, steps, 1, 0, peers)]


if __name__ == "__main__":
    if len(sys.argv) > 2 and sys.argv[1] in SIZES:  # SIZE STEPS PEER...
        show(of_size(sys.argv[1], int(sys.argv[2]), 1, 0, sys.argv[3:]), False)
    else:
        show(rows(1, sys.argv[1:]), False)
