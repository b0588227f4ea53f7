"""Cutaway's training step: PYTHON cutaway_step.py SIZE STEPS THREADS SEED topk|batchtopk"""

from __future__ import annotations

import sys

import torch
from steps import RATE, SIZES, served, start

from cutaway.features.dictionary import Dictionary
from cutaway.features.sparse_step import SparseStep


def main() -> None:
    """Make the rows and the step, and serve."""
    size, made, before = start()
    width, latents, k, _ = SIZES[size]
    decoder = torch.randn(latents, width)
    decoder /= decoder.norm(dim=1, keepdim=True)
    mean = made[0].mean(0)
    some = made[0][:512] - mean
    _, guess = next(Dictionary("topk", "topk", {"encoder": decoder, "decoder": decoder}, k).reconstructions(some))
    encoder = decoder * float((guess * some).sum() / guess.square().sum())  # as long as reconstructs best
    step = SparseStep(encoder, -(encoder @ mean), decoder, mean.clone(), k=k, rule=sys.argv[5])

    def reconstruct(x: torch.Tensor) -> torch.Tensor:
        extra = {"threshold": torch.full((latents,), step.threshold)}
        rule = "topk" if step.rule == "topk" else "jumprelu"
        return Dictionary("topk", rule, step.weights(), k, extra).reconstruct(x)

    for x in served("Cutaway", made, before, reconstruct):
        step.step(x, x, RATE)


if __name__ == "__main__":
    main()
