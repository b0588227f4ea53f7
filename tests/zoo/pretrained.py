"""How an architecture of a library of pretrained networks becomes a zoo entry: a tiny config and random weights."""

from __future__ import annotations

from typing import Any

import torch
from entry import BATCH, LENGTH, WORDS, Entry, Inputs, ids
from torch import nn

# Sizes under every name that a config may use; each config takes those it knows.
LLAMA = {
    "vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 32,
}  # fmt: skip
NEOX = {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}
VISION = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 16,
    "patch_size": 4,
}  # fmt: skip


def build(name: str, config: str, options: dict[str, Any], attention: str = "sdpa") -> nn.Module:
    """A network of `transformers` by the names of its class and its config's class."""
    import transformers

    made = getattr(transformers, config)(pad_token_id=0, bos_token_id=1, eos_token_id=2, **options)
    made._attn_implementation = attention
    return getattr(transformers, name)(made).eval()


def entry(
    name: str, cls: str, config: str, options: dict[str, Any], expected: dict[str, tuple[int, int]], stream: int,
    inputs: Any = None, **marks: Any,
) -> Entry:  # fmt: skip
    """An entry of `transformers`; token ids and no cache are what it gets if not told otherwise."""
    attention = marks.pop("attention", "sdpa")
    return Entry(name, lambda: build(cls, config, options, attention), inputs or uncached, expected, stream, **marks)


def uncached() -> Inputs:
    """Token ids, and no cache."""
    return ids()[0], {"use_cache": False}


def masked() -> Inputs:
    """Token ids of which one row ends early."""
    mask = torch.ones(BATCH, LENGTH, dtype=torch.long)
    mask[1, -2:] = 0
    return ids()[0], {"attention_mask": mask}


def pixels() -> Inputs:
    """Images [BATCH, 3, 16, 16]."""
    return (torch.randn(BATCH, 3, 16, 16),), {}


def both() -> Inputs:
    """Token ids for an encoder and a decoder."""
    return (), {"input_ids": ids()[0][0], "decoder_input_ids": ids(5)[0][0], "use_cache": False}
