"""Quality of trained dictionaries at equal L0: variance unexplained (FVU, lower is better), beside other libraries.

Rows: sparse sums of random directions (96 features in 32 dimensions, 4 at a time), and, where CUTAWAY_DATA has the
story model, its residual stream on stories that it tells. All libraries train on the same rows, on as many samples in
batches of the same size, with their own defaults; figures are from rows that none was trained on.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rows import Row, row
from torch import Tensor

from cutaway.features.dictionary import fvu
from cutaway.features.rows import InMemory
from cutaway.features.train import train_dictionary

KINDS = ("topk", "batchtopk", "matryoshka", "relu", "gated", "jumprelu")
LIBRARIES = ("sae-lens", "dictionary-learning")
HELD = 4000
COMMAND = "python benchmarks/features.py quality"


def synthetic(count: int = 100_000, seed: int = 0) -> Tensor:
    """Sums of 4 of 96 random unit directions in 32 dimensions, with factors between 1 and 2."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(96, 32, generator=generator))
    chosen = torch.rand(count, 96, generator=generator).topk(4).indices
    codes = torch.zeros(count, 96).scatter(1, chosen, 1 + torch.rand(count, 4, generator=generator))
    return codes @ directions


def stories(count: int = 1280, seed: int = 0) -> Tensor | None:
    """The residual stream after the fourth layer on stories that the model tells; None where the model is not there."""
    folder = Path(os.environ.get("CUTAWAY_DATA", "../shared/data")) / "lm-stories260k" / "hf"
    if not folder.is_dir():
        return None
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(folder)).eval()
    torch.manual_seed(seed)
    values = []
    with torch.no_grad():
        for _ in range(count // 256):
            start = torch.ones(256, 1, dtype=torch.long)
            told = model.generate(start, do_sample=True, max_new_tokens=255, pad_token_id=0, eos_token_id=None)
            values.append(model(told, output_hidden_states=True).hidden_states[4][:, 1:].reshape(-1, 64))
    found = torch.cat(values)
    return found[torch.randperm(len(found))]


def beside(peer: str, path: str, words: list[str]) -> dict[str, str]:
    """What another library's dictionary reaches, by its name and version; none where the environment lacks it."""
    script = str(Path(__file__).parents[1] / "peers" / "dictionary_quality.py")
    found = {}
    for library in LIBRARIES:
        known = subprocess.run([peer, "-c", f"import {library.replace('-', '_')}"], capture_output=True)
        if known.returncode == 0:
            done = subprocess.run([peer, script, library, path, *words], capture_output=True, text=True)
            if done.returncode == 0:
                told = json.loads(done.stdout)
                at = f"{told['fvu_at_k']:.3f} at the same L0; " if "fvu_at_k" in told else ""
                found[f"{library} {told['version']}"] = (
                    f"{at}{told['fvu']:.3f} at L0 {told['l0']:.1f}, {told['dead']:.0%} dead, {told['seconds']:.1f} s"
                )
    return found


def rows(seeds: int, peers: list[str]) -> list[Row]:
    """One row for each kind and kind of rows, the FVU over seeds."""
    torch.set_num_threads(1)
    worlds = {"synthetic": (synthetic(), 96, 4, 64, 198_000), "stories": (stories(), 512, 8, 128, 300_000)}
    found: list[Row] = []
    for name, (values, latents, k, batch, samples) in worlds.items():
        if values is None:
            continue
        train, held = values[:-HELD], values[-HELD:]
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "rows.npz")
            np.savez(path, train=train.numpy(), held=held.numpy())
            for kind in KINDS:
                figures, l0, dead, started = [], [], [], time.process_time()
                for seed in range(seeds):
                    made = train_dictionary(
                        InMemory({"rows": train}), latents, k, kind=kind, seed=seed, samples=samples, batch=batch
                    )
                    codes = made.codes(held)
                    figures.append(fvu(held, made.reconstruct(held)))
                    l0.append(codes.l0)
                    dead.append(1 - len(codes.latents.unique()) / latents)
                seconds = (time.process_time() - started) / seeds
                title = (
                    f"{name}, {kind}, L0 {np.mean(l0):.2f} (asked {k}), {np.mean(dead):.0%} dead, {seconds:.1f} CPU s"
                )
                others: Row = {}
                for peer in peers:
                    others |= beside(peer, path, [kind, *map(str, (latents, k, batch, samples))])
                found.append(row(title, figures, "FVU", None, f"{COMMAND} --seeds {seeds}", others))
    return found
