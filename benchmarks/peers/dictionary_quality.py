"""What another library's dictionaries reach on given rows; run with the interpreter of its environment.

    PYTHON dictionary_quality.py sae-lens|dictionary-learning ROWS.npz KIND LATENTS K BATCH SAMPLES [DECODER.npy]

ROWS.npz holds `train` and `held` [rows, d]. Defaults of the library, its recommended scaling of activations, and where
sparsity follows from a coefficient, the coefficient that comes nearest to L0 = K in three trainings. Prints JSON:
version, fvu and l0 on `held` (at the nearest, and the FVU interpolated to K), dead (share of latents that fire on no
held row), cpu seconds of one training. DECODER.npy is written: the directions [latents, d].
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

LIBRARY, PATH, KIND = sys.argv[1:4]
LATENTS, K, BATCH, SAMPLES = map(int, sys.argv[4:8])
torch.set_num_threads(1)
ROWS, DECODER = np.load(PATH), sys.argv[8] if len(sys.argv) > 8 else ""
TRAIN, HELD = (torch.from_numpy(ROWS[name]).float() for name in ("train", "held"))
WIDTH, STEPS = TRAIN.shape[1], SAMPLES // BATCH


def batches() -> Iterator[torch.Tensor]:
    while True:
        order = torch.randperm(len(TRAIN))
        for start in range(0, len(TRAIN) - BATCH + 1, BATCH):
            yield TRAIN[order[start : start + BATCH]]


def measured(encode: Any, decode: Any) -> dict[str, float]:
    with torch.no_grad():
        codes = encode(HELD)
        codes = codes.to_dense() if codes.is_sparse else codes
        error = (HELD - decode(codes)).square().sum()
    fired = codes != 0
    return {
        "l0": float(fired.sum() / len(HELD)), "dead": float((~fired.any(0)).float().mean()),
        "fvu": float(error / (HELD - HELD.mean(0)).square().sum()),
    }  # fmt: skip


def kept(directions: torch.Tensor) -> None:
    if DECODER:
        np.save(DECODER, directions.detach().numpy())


def sae_lens(coefficient: float) -> dict[str, float]:
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.gated_sae import GatedTrainingSAE, GatedTrainingSAEConfig
    from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
    from sae_lens.saes.matryoshka_batchtopk_sae import (
        MatryoshkaBatchTopKTrainingSAE,
        MatryoshkaBatchTopKTrainingSAEConfig,
    )
    from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    widths = [max(round(LATENTS * share), 1) for share in (1 / 32, 3 / 32, 7 / 32, 15 / 32)]
    sae, config, own = {
        "topk": (TopKTrainingSAE, TopKTrainingSAEConfig, {"k": K}),
        "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, {"k": K}),
        "matryoshka": (
            MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig,
            {"k": K, "matryoshka_widths": [*widths, LATENTS]},
        ),
        "relu": (StandardTrainingSAE, StandardTrainingSAEConfig, {"l1_coefficient": coefficient}),
        "gated": (GatedTrainingSAE, GatedTrainingSAEConfig, {"l1_coefficient": coefficient}),
        "jumprelu": (JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig, {"l0_coefficient": coefficient}),
    }[KIND]  # fmt: skip
    made = sae(config(d_in=WIDTH, d_sae=LATENTS, normalize_activations="expected_average_only_in", **own))
    settings = SAETrainerConfig(
        total_training_samples=SAMPLES, train_batch_size_samples=BATCH, n_batches_for_norm_estimate=50, lr_end=3e-5,
        logger=LoggingConfig(log_to_wandb=False),
    )  # fmt: skip
    trained = SAETrainer(settings, made, batches()).fit()
    kept(trained.W_dec)
    return measured(trained.encode, trained.decode)


def dictionary_learning(coefficient: float) -> dict[str, float]:
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.gdm import GatedSAETrainer
    from dictionary_learning.trainers.jumprelu import JumpReluTrainer
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
    from dictionary_learning.trainers.standard import StandardTrainerAprilUpdate
    from dictionary_learning.trainers.top_k import TopKTrainer

    fractions = [1 / 32, 2 / 32, 4 / 32, 8 / 32, 17 / 32]
    trainer, own = {
        "topk": (TopKTrainer, {"k": K}),
        "batchtopk": (BatchTopKTrainer, {"k": K}),
        "matryoshka": (MatryoshkaBatchTopKTrainer, {"k": K, "group_fractions": fractions}),
        "relu": (StandardTrainerAprilUpdate, {"l1_penalty": coefficient}),
        "gated": (GatedSAETrainer, {"l1_penalty": coefficient}),
        "jumprelu": (JumpReluTrainer, {"target_l0": float(K)}),
    }[KIND]
    settings = {"activation_dim": WIDTH, "dict_size": LATENTS, "layer": 0, "lm_name": "rows", "device": "cpu"}
    made = trainer(steps=STEPS, seed=0, **settings, **own)
    factor = float(TRAIN[:50_000].square().sum(1).mean().sqrt())
    for step, batch in zip(range(STEPS), batches(), strict=False):
        made.update(step, batch / factor)
    kept(made.ae.decode(torch.eye(LATENTS)) - made.ae.decode(torch.zeros(1, LATENTS)))
    return measured(lambda rows: made.ae.encode(rows / factor), lambda codes: made.ae.decode(codes) * factor)


def nearest(train: Any) -> dict[str, float]:
    """The training that comes nearest to K, of three; and the FVU at K, on the line through the nearest two."""
    if KIND in ("topk", "batchtopk", "matryoshka") or (LIBRARY, KIND) == ("dictionary-learning", "jumprelu"):
        return train(0.0)
    level, tried = math.log(1.0 if LIBRARY == "sae-lens" else 0.1), []
    for _ in range(3):
        found = train(math.exp(level))
        tried.append((level, math.log(max(found["l0"], 1e-2) / K), found))
        tried.sort(key=lambda one: abs(one[1]))
        if len(tried) == 1 or abs(slope := (tried[1][1] - tried[0][1]) / (tried[1][0] - tried[0][0])) < 0.05:
            level += max(-1.5, min(1.5, tried[0][1]))
        else:
            level = tried[0][0] - max(-1.5, min(1.5, tried[0][1] / slope))
    (_, near, found), (_, far, other) = tried[:2]
    if near * far < 0:  # it lies between them
        found["fvu_at_k"] = found["fvu"] + (other["fvu"] - found["fvu"]) * -near / (far - near)
    return {**found, "trainings": 3}


def main() -> None:
    """Train and print."""
    torch.manual_seed(0)
    started = time.process_time()
    with contextlib.redirect_stdout(sys.stderr):
        found = nearest(sae_lens if LIBRARY == "sae-lens" else dictionary_learning)
    seconds = (time.process_time() - started) / found.pop("trainings", 1)
    print(json.dumps({"version": importlib.metadata.version(LIBRARY), "seconds": seconds, **found}))


if __name__ == "__main__":
    main()
