"""sparsify's TopK training step: PYTHON sparsify_step.py SIZE STEPS THREADS SEED

Its trainer takes values from a model, so it is given one whose only layer answers with the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version

import torch
from sparsify import SparseCoderConfig, TrainConfig, Trainer
from steps import RATE, SIZES, served, start
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel


class Finished(Exception):
    """There are no more rows."""


class Layer(nn.Module):
    """Answers with the next rows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.rows: Iterator[Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The next rows as one example, or as many zeros."""
        if self.rows is None:
            return torch.zeros(1, 2, self.width)
        found = next(self.rows, None)
        if found is None:
            raise Finished
        return found[None]


class Model(PreTrainedModel):
    """That layer as a model."""

    config_class = PretrainedConfig

    def __init__(self, width: int) -> None:
        super().__init__(PretrainedConfig())
        self.layer, self.unused = Layer(width), nn.Linear(1, 1)

    def forward(self, input_ids: Tensor) -> Tensor:
        """The layer's answer."""
        return self.layer(input_ids)


class Ids(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Examples that say nothing, enough that the learning rate hardly falls."""

    def __init__(self, length: int) -> None:
        self.ids = torch.ones(length, dtype=torch.long)

    def __len__(self) -> int:
        return 10**9

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids}


def main() -> None:
    """Make the rows and the trainer, and serve."""
    size, made, before = start()
    width, latents, k, batch = SIZES[size]
    config = TrainConfig(
        SparseCoderConfig(num_latents=latents, k=k), batch_size=1, optimizer="adam", lr=RATE, lr_warmup_steps=0,
        auxk_alpha=1 / 32, hookpoints=["layer"], log_to_wandb=False, save_every=10**9,
    )  # fmt: skip
    model = Model(width)
    trainer = Trainer(config, Ids(batch), model)
    sae = trainer.saes["layer"]
    label = f"sparsify {version('eai-sparsify')}"
    model.layer.rows = served(label, made, before, lambda x: sae(x).sae_out)
    try:
        trainer.fit()
    except Finished:
        return


if __name__ == "__main__":
    main()
