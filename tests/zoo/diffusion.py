"""Zoo entries for the networks of image diffusion."""

from __future__ import annotations

from typing import Any

import torch
from entry import BATCH, Entry, Inputs, channels, floats
from torch import nn

UNET = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
UNET2D: dict[str, Any] = {
    **UNET, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 4,
}  # fmt: skip
CONDITIONED: dict[str, Any] = {
    **UNET, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "cross_attention_dim": 12, "attention_head_dim": 2,
}  # fmt: skip
DIT = {
    "sample_size": 8, "patch_size": 2, "in_channels": 4, "num_layers": 2, "num_attention_heads": 2,
    "attention_head_dim": 8, "num_embeds_ada_norm": 10,
}  # fmt: skip
VAE: dict[str, Any] = {
    "block_out_channels": (8, 16), "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2, "norm_num_groups": 4, "sample_size": 8,
}  # fmt: skip


def _build(name: str, options: dict[str, Any]) -> nn.Module:
    import diffusers

    return getattr(diffusers, name)(**options).eval()


def _timed(*shape: int, **more: Any) -> Inputs:
    return floats(*shape)[0], {"timestep": torch.tensor([1, 5, 8]), **more}


def _conditioned() -> Inputs:
    return _timed(4, 8, 8, encoder_hidden_states=torch.randn(BATCH, 5, 12))


# Acts are the nonlinearities that read the stream before a convolution; of two convolutions that are added the
# nonlinearity after them makes one block.
PARTS = {
    "unet2d": {
        "input": (1, 1), **channels(8, 8, 16, 16, 32, 24, 24, 16, kind="act"), **channels(4, 4, 4, 4, kind="attn"),
        **channels(*[8] * 3, *[16] * 14, *[8] * 5, 3), "unembed": (3, 1),
    },
    "unet2d condition": {
        "input": (1, 1), "input1": (1, 1), **channels(8, 8, 16, 16, 32, 24, 24, 16, 8, kind="act"),
        **channels(*[2] * 8, kind="attn"), **channels(32, 64, 32, 32, kind="mlp"),
        **channels(*[8] * 5, *[16] * 16, *[8] * 10, 4), "unembed": (4, 1),
    },
    "dit": {
        "input": (1, 1), "embed": (1, 1), "embed1": (1, 1), "embed2": (1, 1), "pos_embed": (1, 1),
        **channels(*[1] * 12, kind="act"),
        **channels(2, 2, kind="attn"), **channels(64, 64, kind="mlp"), "unembed": (16, 1),
    },
    "vae": {
        "input": (1, 1), **channels(8, 8, *[16] * 8, 8, 8, kind="act"), **channels(1, 1, kind="attn"),
        **channels(*[8] * 3, *[16] * 7, 8, 8, 4, *[16] * 10, *[8] * 5, 3), "unembed": (3, 1),
    },
}  # fmt: skip

DIFFUSION: list[Entry] = [
    Entry("unet2d", lambda: _build("UNet2DModel", UNET2D), lambda: _timed(3, 8, 8), PARTS["unet2d"], 14),
    Entry(
        "unet2d condition", lambda: _build("UNet2DConditionModel", CONDITIONED), _conditioned,
        PARTS["unet2d condition"], 29,
    ),
    Entry(
        "dit", lambda: _build("DiTTransformer2DModel", DIT),
        lambda: _timed(4, 8, 8, class_labels=torch.tensor([3, 0, 7])), PARTS["dit"], 5,
    ),
    Entry("vae", lambda: _build("AutoencoderKL", VAE), lambda: floats(3, 8, 8), PARTS["vae"], 20),
]  # fmt: skip
