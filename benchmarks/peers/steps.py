"""What the scripts of training steps share: identical rows, and a clock that is driven from outside.

A script builds its step and hands it the rows that `served` gives. Before each it waits for the word `step` on standard
input, so that several libraries take turns on one machine; after each it prints the CPU seconds that the step took, and
those of a plain product of matrices right before it. At the word `end` it prints the rest. Needs torch and NumPy only.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy
import torch
from torch import Tensor

SIZES = {"large": (768, 12_288, 32, 4096), "small": (128, 2048, 32, 1024)}  # width, latents, k, rows of a batch
RATE = 1e-3  # the learning rate of all
GIGAFLOP = 2 * 1024 * 768 * 1024 / 1e9


def rows(size: str, count: int, seed: int = 0) -> list[Tensor]:
    """`count` batches and one that is held out: sums of features that are as frequent as words, 32 a row."""
    width, latents, active, batch = SIZES[size]
    random = numpy.random.default_rng(seed)
    features = torch.from_numpy(random.standard_normal((latents, width), dtype=numpy.float32))
    features /= features.norm(dim=1, keepdim=True)
    often = (1 / (50 + numpy.arange(latents))).cumsum()
    made = []
    for _ in range(count + 1):
        which = torch.from_numpy(numpy.searchsorted(often / often[-1], random.random((batch, active))))
        strength = torch.from_numpy(random.random((batch, active), dtype=numpy.float32) + 0.5)
        made.append(torch.nn.functional.embedding_bag(which, features, mode="sum", per_sample_weights=strength))
    return made


def held(which: str) -> float:
    """MiB of memory of this process now (VmRSS) or at its highest since it was last reset (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(which)).split()[1]) / 1024


def start() -> tuple[str, list[Tensor], float]:
    """(the size, the rows, MiB held before anything of the step is made), from SIZE STEPS THREADS SEED."""
    size, steps, threads, seed = sys.argv[1], *map(int, sys.argv[2:5])
    torch.set_num_threads(threads)
    made = rows(size, steps, seed)
    torch.manual_seed(seed)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the highest starts anew
    return size, made, held("VmRSS")


def tell(found: dict[str, object]) -> None:
    """One line to whoever drives."""
    print("@" + json.dumps(found), flush=True)


def served(label: str, made: list[Tensor], before: float, reconstruct: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
    """The rows of one step after another, timed from when they are given to when the next are asked for."""
    left, right = torch.randn(1024, 768), torch.randn(768, 1024)
    for batch in made[:-1]:
        if sys.stdin.readline().strip() != "step":
            break
        begin = time.process_time()
        left @ right
        plain = time.process_time() - begin
        begin = time.process_time()
        yield batch
        tell({"seconds": time.process_time() - begin, "plain": plain})
    added = held("VmHWM") - before
    with torch.no_grad():
        error = (reconstruct(made[-1]) - made[-1]).square().sum()
    tell({"name": label, "fvu": float(error / (made[-1] - made[-1].mean(0)).square().sum()), "added": added})
