"""Dictionaries of one place of a real language model, each beside dictionaries of its size and L0 that learned nothing.

The model is the stories model of the shared data, the place resid.3, the texts its own stories (768 to learn from, 256
held out). The goal of each row is the best control's figure: a method that does not beat it has learned nothing that
this figure shows.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rows import Row, row

import cutaway as cw
from cutaway.features import Dictionary, InMemory
from cutaway.features.classical import fit_dictionary
from cutaway.features.evaluate import evaluate_dictionary
from cutaway.features.figures import Evaluation
from cutaway.features.train import train_dictionary

COMMAND = "python benchmarks/features.py evaluation"
SITE, LATENTS, L0 = "resid.3", 512, 8
STORIES, HELD_OUT, TOKENS, SPLICED = 1024, 256, 128, 64
SAMPLES = 400_000
TRAINED = ("batchtopk", "topk", "jumprelu", "relu", "matryoshka", "gated")
FIGURES = ("FVU", "loss recovered (mean)", "added loss", "dead latents", "1-sparse probe F1", "5-sparse probe F1",
           "absorption rate")  # fmt: skip


def rows(seeds: int, peers: list[str]) -> list[Row]:
    """The figures of each kind of dictionary, median over seeds, with the controls' beside them."""
    del peers
    folder = _data() / "lm-stories260k" / "hf"
    if not folder.is_dir():
        return [row("dictionaries of a real model: not measured, there is no shared data", [0], "", None, COMMAND)]
    torch.set_num_threads(1)
    net = cw.open(folder, name="stories260K")
    stories = told(net)
    learn, held = (at_site(net, part) for part in (stories[HELD_OUT:], stories[:HELD_OUT]))
    labels = {"capital letter": torch.tensor([_capital(net.token_text(int(i))) for i in stories[:HELD_OUT].flatten()])}
    kinds: dict[str, Callable[[int], Dictionary]] = {
        **{kind: (lambda seed, kind=kind: train_dictionary(learn, LATENTS, L0, kind=kind, samples=SAMPLES, seed=seed))
           for kind in TRAINED},
        "sparse-coding": lambda seed: fit_dictionary(learn, LATENTS, "sparse-coding", k=L0, seed=seed),
        "k-means": lambda seed: fit_dictionary(learn, LATENTS, "k-means", seed=seed),
    }  # fmt: skip
    found = []
    for kind, make in kinds.items():
        start = time.process_time()
        made = [make(seed) for seed in range(seeds)]
        spent = (time.process_time() - start) / seeds
        told_of = [
            evaluate_dictionary(one, held, net=net, inputs=stories[:SPLICED], labels=labels, seed=seed,
                                seeds=[other for other in made if other is not one])
            for seed, one in enumerate(made)
        ]  # fmt: skip
        print(f"{kind}: {spent:.1f} CPU seconds each\n{told_of[0]}", file=sys.stderr, flush=True)
        names = FIGURES + (("matched cosine", "in the span of 5") if seeds > 1 else ())
        found += [_row(kind, name, told_of) for name in names]
        found.append(
            row(f"{kind}, L0", [float(one.figure("L0").value or 0) for one in told_of], "latents", None, COMMAND)
        )
    return found


def _row(kind: str, name: str, evaluations: list[Evaluation]) -> Row:
    figures = [one.figure(name) for one in evaluations]
    values = [float("nan") if figure.value is None else figure.value for figure in figures]
    controls = {key: value for key, value in figures[0].controls.items() if value is not None}
    blind = [value for key, value in controls.items() if key in ("random", "data", "PCA")]
    better = figures[0].better
    goal = None if name in ("dead latents", "absorption rate") else (max if better == "higher" else min)(blind)
    beside = {key: f"{value:.3f}" for key, value in controls.items()}
    return row(f"{kind}, {name}", values, "", goal, COMMAND, beside, better=better)


def told(net: cw.Network) -> torch.Tensor:
    """Stories that the model tells, as token ids."""
    torch.manual_seed(0)
    options = {"max_new_tokens": TOKENS - 1, "min_new_tokens": TOKENS - 1, "do_sample": True, "top_k": 0}
    begun = torch.ones(STORIES // 4, 1, dtype=torch.long)
    with torch.no_grad():
        parts = [
            net.module.generate(begun, attention_mask=torch.ones_like(begun), pad_token_id=2, **options)
            for _ in range(4)
        ]
    return torch.cat(parts)


def at_site(net: cw.Network, ids: torch.Tensor) -> InMemory:
    """The rows of the place in runs of some stories."""
    values = [net.record(part, keep=[SITE]).value(SITE).flatten(0, 1) for part in ids.split(64)]
    return InMemory({SITE: torch.cat(values)}, network=net.fingerprint)


def _capital(token: str) -> bool:
    return token.strip()[:1].isupper()


def _data() -> Path:
    named = os.environ.get("CUTAWAY_DATA")
    return Path(named) if named else Path(__file__).parents[2].parent / "shared" / "data"
