"""Collecting a middle layer of GPT-2 small's shape to disk, relative to the plain forward of the whole network.

CPU time, both in one process right after each other, writing, flushing and hashing to disk counted, and also what it
takes to find the site and to sum up the weights once. Values are stored in half precision.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rows import Row, row

import cutaway as cw
from cutaway.features.collect import collect
from cutaway.features.store import Activations

COMMAND = "python benchmarks/features.py collect"
SITE = "resid.12"  # behind the sixth of twelve blocks: a block writes twice
CONTEXTS, LENGTH, BATCH = 64, 128, 8
PEER = Path(__file__).parent.parent / "peers" / "sae_lens_collect.py"


def rows(seeds: int, peers: list[str]) -> list[Row]:
    """Collecting relative to the forward pass, and rows read back in shuffled order."""
    torch.set_num_threads(1)
    ratios, read = [], []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            ratio, made = _collected(seed, Path(folder) / "out")
            ratios.append(ratio)
            read.append(_read(made, seed))
    beside = dict(map(_peer, peers))
    command = f"{COMMAND} --seeds {seeds}"
    title = f"collecting {SITE} of GPT-2 small's shape to disk, {CONTEXTS} × {LENGTH} tokens, over the plain forward"
    return [
        row(title, ratios, "ratio of CPU time", 0.6, command, beside),
        row("rows of 768 read back shuffled", read, "rows per CPU second", None, command, better="higher"),
    ]


def _collected(seed: int, folder: Path) -> tuple[float, Activations]:
    import transformers

    torch.manual_seed(seed)
    module = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
    ids = torch.randint(0, 50257, (CONTEXTS, LENGTH))

    def plain() -> None:
        with torch.no_grad():
            for part in ids.split(BATCH):
                module(part, use_cache=False)

    with torch.no_grad():
        module(ids[:BATCH], use_cache=False)  # the first pass pays for what torch sets up
    forward = _spent(plain)
    made: list[Activations] = []
    collecting = _spent(lambda: made.append(collect(cw.open(module), ids, SITE, folder, batch=BATCH)))
    print(f"seed {seed}: forward {forward:.1f} s, collecting {collecting:.1f} s", file=sys.stderr, flush=True)
    return collecting / forward, made[0]


def _read(made: Activations, seed: int) -> float:
    start = time.process_time()
    count = sum(len(batch[SITE]) for epoch in range(5) for batch in made.batches(1024, seed=seed + epoch))
    return count / (time.process_time() - start)


def _spent(job: Callable[[], Any]) -> float:
    start = time.process_time()
    job()
    return time.process_time() - start


def _peer(python: str) -> tuple[str, str]:
    """SAELens, where the interpreter is that of an environment with it."""
    command = [python, str(PEER), str(CONTEXTS // 2), str(LENGTH), str(BATCH)]  # half of them: a ratio all the same
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    if done.returncode:
        return Path(python).parent.parent.name, "cannot run this"
    told = json.loads(done.stdout.splitlines()[-1])
    return "sae-lens", f"{told['ratio']:.2f} (single precision, not resumable; {told['own']:.2f} of its own forward)"
