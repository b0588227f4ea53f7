"""sae-lens' TopK training step: PYTHON sae_lens_step.py SIZE STEPS THREADS SEED [autocast]"""

from __future__ import annotations

import sys
from importlib.metadata import version

from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer
from steps import RATE, SIZES, served, start


def main() -> None:
    """Make the rows and the trainer, and serve."""
    size, made, before = start()
    width, latents, k, batch = SIZES[size]
    low = "autocast" in sys.argv
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=width, d_sae=latents, k=k))
    config = SAETrainerConfig(
        total_training_samples=10**9, train_batch_size_samples=batch, lr=RATE, lr_end=RATE, autocast=low,
        logger=LoggingConfig(log_to_wandb=False),
    )  # fmt: skip
    trainer = SAETrainer(config, sae, iter(()))
    for x in served(f"sae-lens {version('sae-lens')}{' autocast' if low else ''}", made, before, sae):
        trainer.step(x)
        trainer.n_training_steps += 1


if __name__ == "__main__":
    main()
