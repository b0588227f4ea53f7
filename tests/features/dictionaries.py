"""Dictionaries for tests."""

from __future__ import annotations

import torch

from cutaway.features.card import Place
from cutaway.features.dictionary import Dictionary
from cutaway.run.trace import Trace


def dictionary(
    width: int, latents: int, activation: str = "relu", per_row: str = "", skip: bool = False, seed: int = 0
) -> Dictionary:
    """One with random weights."""
    draw = torch.Generator().manual_seed(seed)
    weights = {
        "encoder": torch.randn(latents, width, generator=draw) / width**0.5,
        "decoder": torch.nn.functional.normalize(torch.randn(latents, width, generator=draw), dim=1),
        "encoder_bias": torch.randn(latents, generator=draw) / 10, "center": torch.randn(width, generator=draw) / 10,
        "decoder_bias": torch.randn(width, generator=draw) / 10,
    }  # fmt: skip
    if skip:
        weights["skip"] = torch.randn(width, width, generator=draw) / width
    extra = {name: torch.rand(latents, generator=draw) for name in ("threshold", "scale", "magnitude_bias")}
    return Dictionary("random", activation, weights, 3, extra, per_row)


def place(trace: Trace, site: str) -> Place:
    """A site as a place on a card."""
    return Place(site, trace[site].shape[-1], trace.net.fingerprint)
