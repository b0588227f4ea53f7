"""dictionary-learning's TopK training step: PYTHON dictionary_learning_step.py SIZE STEPS THREADS SEED"""

from __future__ import annotations

from importlib.metadata import version

from dictionary_learning.trainers import TopKTrainer
from steps import RATE, SIZES, served, start


def main() -> None:
    """Make the rows and the trainer, and serve."""
    size, made, before = start()
    width, latents, k, _ = SIZES[size]
    trainer = TopKTrainer(
        10**9, width, latents, k, layer=0, lm_name="none", lr=RATE, warmup_steps=0, seed=0, device="cpu"
    )
    label = f"dictionary-learning {version('dictionary-learning')}"
    for number, x in enumerate(served(label, made, before, trainer.ae)):
        trainer.update(number, x)


if __name__ == "__main__":
    main()
