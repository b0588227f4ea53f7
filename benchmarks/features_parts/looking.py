"""Pages about latents: all pages of a small run beside its forward pass, one page out of a large index, and labels.

CPU time of one thread. The large index is made of drawn codes (as many and as skewed as those of a dictionary of L0
32), for its pages cost the same whatever was encoded; the disk's cache is warm. Labels are those of a real model's
dictionary.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rows import Row, row
from torch import Tensor

import cutaway as cw
from cutaway.features import Card, Codes, Dictionary, InMemory, Place
from cutaway.features.index import build_index, open_index
from cutaway.features.labels import label
from cutaway.features.seen import Part, watch
from cutaway.features.train import train_dictionary

COMMAND = "python benchmarks/features.py looking"
TEXTS, LENGTH, BATCH, LATENTS = 64, 128, 8, 1000
MANY_ROWS, MANY_LATENTS, L0 = 1_000_000, 10_000, 32
SITE, REAL_LATENTS, REAL_L0, STORIES, TOKENS = "resid.6", 1024, 12, 1024, 128
LABELLED, THRESHOLDS = 60, (0.1, 0.25, 0.5)
ANCHORS = {"sae-dashboard": "9.7 (measured before)", "hand-written stream": ".76 (measured before)"}


def rows(seeds: int, peers: list[str]) -> list[Row]:
    """Pages and labels; no peer is run, the anchors' figures are those of an earlier measurement."""
    del peers
    torch.set_num_threads(1)
    command = f"{COMMAND} --seeds {seeds}"
    ratios = [_all_pages(seed) for seed in range(seeds)]
    title = (
        f"index and all pages of {LATENTS:,} latents, {TEXTS} × {LENGTH} tokens, GPT-2 small's shape, over its forward"
    )
    found = [row(title, ratios, "ratio of CPU time", 1.0, command, ANCHORS)]
    median, slowest, built = _large()
    title = f"a page from {MANY_ROWS:,} tokens × {MANY_LATENTS:,} latents"
    found.append(row(f"{title}, opened anew", median, "ms", 200.0, command))
    found.append(row(f"{title}, the most frequent latent", [slowest], "ms", 200.0, command))
    found.append(row("building that index of drawn codes", [built], "CPU s", None, command))
    return found + _labels(seeds, command)


def _all_pages(seed: int) -> float:
    import transformers

    torch.manual_seed(seed)
    module = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
    ids = torch.randint(0, 50257, (TEXTS, LENGTH))
    rows_of = torch.randn(LATENTS, 768)
    place = Place("resid.12", 768)
    dictionary = Dictionary(
        "random", "topk", {"encoder": rows_of, "decoder": rows_of}, L0, card=Card((place,), (place,))
    )

    def plain() -> None:
        with torch.no_grad():
            for part in ids.split(BATCH):
                module(part, use_cache=False)

    def pages() -> None:
        with tempfile.TemporaryDirectory() as folder:
            index = build_index(dictionary, watch(cw.open(module), ids, batch=BATCH), Path(folder) / "index")
            for latent in range(LATENTS):
                index.page(latent).to_dict()

    with torch.no_grad():
        module(ids[:BATCH], use_cache=False)  # the first pass pays for what torch sets up
    forward, whole = _spent(plain), _spent(pages)
    print(f"seed {seed}: forward {forward:.1f} s, index and pages {whole:.1f} s", file=sys.stderr, flush=True)
    return whole / forward


@dataclass(frozen=True, eq=False)
class Drawn:
    """Texts of drawn tokens; their rows say nothing, for the codes are drawn too."""

    examples: Sequence[Tensor]
    manifest: dict[str, Any] = field(default_factory=dict)

    def parts(self, sites: Sequence[str]) -> Iterator[Part]:
        for start in range(0, len(self.examples), 256):
            count = min(256, len(self.examples) - start)
            grid = torch.cartesian_prod(torch.arange(start, start + count), torch.arange(LENGTH))
            yield Part(dict.fromkeys(sites, torch.zeros(len(grid), 4)), grid[:, 0], grid[:, 1:])


class DrawnCodes(Dictionary):
    """A dictionary whose codes are drawn: skewed, so that some latents fire on a quarter of all rows."""

    def codes(self, value: Tensor) -> Codes:
        latents = (torch.rand(len(value), L0).square() * self.latents).long().clamp(max=self.latents - 1).sort(1).values
        fresh = torch.ones_like(latents, dtype=torch.bool)
        fresh[:, 1:] = latents[:, 1:] != latents[:, :-1]
        offsets = torch.cat([torch.zeros(1, dtype=torch.long), fresh.sum(1).cumsum(0)])
        kept = latents[fresh]
        return Codes(offsets, kept, 10 * torch.rand(len(kept)).pow(3), self.latents)


def _large() -> tuple[list[float], float, float]:
    """(milliseconds of pages of drawn latents, of the most frequent one, CPU seconds of building)."""
    generator = torch.Generator().manual_seed(0)
    texts = list(torch.randint(0, 500, (MANY_ROWS // LENGTH, LENGTH), generator=generator))
    torch.manual_seed(0)
    weights = {"encoder": torch.zeros(MANY_LATENTS, 4), "decoder": torch.randn(MANY_LATENTS, 768)}
    place = Place("drawn", 4)
    dictionary = DrawnCodes("drawn", "relu", weights, card=Card((place,), (place,)))
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder) / "index"
        built = _spent(lambda: build_index(dictionary, Drawn(texts), where))
        index = open_index(where)
        times = []
        for latent in np.random.default_rng(0).integers(0, MANY_LATENTS, 10):
            times.append(1000 * _spent(lambda latent=latent: open_index(where).page(int(latent)).to_dict()))
        slowest = 1000 * _spent(lambda: index.page(int(np.argmax(index.fired))).to_dict())
    return times, slowest, built


def _labels(seeds: int, command: str) -> list[Row]:
    """Held-out F1 of labels, the median over latents, at several thresholds, beside controls."""
    folder = (
        Path(os.environ.get("CUTAWAY_DATA", Path(__file__).parents[3] / "shared" / "data")) / "lm-stories260k" / "hf"
    )
    if not folder.is_dir():
        return [row("labels of a real model: not measured, there is no shared data", [0], "", None, command)]
    net = cw.open(folder, name="stories260K")
    figures: dict[float, list[float]] = {threshold: [] for threshold in THRESHOLDS}
    controls: dict[float, dict[str, list[float]]] = {threshold: {} for threshold in THRESHOLDS}
    seconds = []
    for seed in range(seeds):
        texts = stories(net, seed)
        values = [net.record(part, keep=[SITE]).value(SITE)[:, 1:].flatten(0, 1) for part in texts.split(64)]
        rows_of = InMemory({SITE: torch.cat(values)}, {"hash": f"stories {seed}"}, net.fingerprint)
        dictionary = train_dictionary(rows_of, REAL_LATENTS, REAL_L0, samples=500_000, seed=seed)
        with tempfile.TemporaryDirectory() as place:
            index = build_index(dictionary, watch(net, texts[:768]), Path(place) / "index")
            alive = np.flatnonzero(index.fired >= 100)
            drawn = np.random.default_rng(seed).choice(alive, min(LABELLED, len(alive)), replace=False).tolist()
            for threshold in THRESHOLDS:
                start = time.process_time()
                made = label(index, drawn, threshold=threshold, seed=seed).values()
                seconds.append((time.process_time() - start) / len(drawn))
                figures[threshold].append(statistics.median(one.score.f1 for one in made))
                for name in next(iter(made)).controls:
                    found = statistics.median(one.controls[name] for one in made)
                    controls[threshold].setdefault(name, []).append(found)
    found = []
    for threshold in THRESHOLDS:
        title = (
            f"labels of {LABELLED} latents of stories260K's {SITE}, firing above {threshold:.0%} of the most, median F1"
        )
        beside = {name: f"{statistics.median(values):.2f}" for name, values in controls[threshold].items()}
        found.append(row(title, figures[threshold], "F1", None, command, beside, better="higher"))
    return [*found, row("learning and testing one label", seconds, "CPU s", None, command)]


def stories(net: cw.Network, seed: int) -> Tensor:
    """[texts, tokens]: what the model itself writes, drawn token by token."""
    torch.manual_seed(seed)
    begun = torch.ones(STORIES, 1, dtype=torch.long)
    with torch.no_grad():
        made: Tensor = net.module.generate(
            begun, attention_mask=torch.ones_like(begun), do_sample=True, top_k=0, max_new_tokens=TOKENS - 1,
            pad_token_id=0, eos_token_id=None,
        )  # fmt: skip
    return made


def _spent(job: Callable[[], Any]) -> float:
    start = time.process_time()
    job()
    return time.process_time() - start
