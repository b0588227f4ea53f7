"""Zoo entries for networks on images."""

from __future__ import annotations

from typing import Any

import torch
from entry import BATCH, Entry, Inputs, channels, floats, layers
from pretrained import VISION as SIZES
from pretrained import build, entry, pixels
from torch import nn

DINO = {**SIZES, "intermediate_size": None, "mlp_ratio": 2, "layerscale_value": 0.5}
SWIN = {
    "image_size": 16, "patch_size": 2, "embed_dim": 16, "depths": [2, 1], "num_heads": [2, 4], "window_size": 4,
    "mlp_ratio": 2.0, "drop_path_rate": 0.0, "num_labels": 5,
}  # fmt: skip
CONVNEXT = {"image_size": 16, "patch_size": 4, "num_stages": 2, "hidden_sizes": [6, 8], "depths": [1, 1]}
SEGFORMER = {
    "num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [8, 16], "patch_sizes": [7, 3],
    "strides": [4, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2], "drop_path_rate": 0.0,
    "decoder_hidden_size": 12, "num_labels": 5,
}  # fmt: skip
MAE = {
    **SIZES, "decoder_num_attention_heads": 2, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1,
    "decoder_intermediate_size": 24,
}  # fmt: skip
DETR = {
    "num_queries": 3, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "num_labels": 4,
}  # fmt: skip


def _detr() -> nn.Module:
    from transformers import ResNetConfig

    backbone = ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    return build("DetrForObjectDetection", "DetrConfig", {**DETR, "backbone_config": backbone}, "eager")


def _noisy() -> Inputs:
    noise: dict[str, Any] = {"noise": torch.rand(BATCH, 16)}  # which patches are hidden
    return pixels()[0], noise


VISION: list[Entry] = [
    entry(
        "vit", "ViTForImageClassification", "ViTConfig", {**SIZES, "num_labels": 5},
        layers(48, 5, embed=0, input=1, pos_embed=1), 5, inputs=pixels,
    ),
    entry(
        "clip vision", "CLIPVisionModelWithProjection", "CLIPVisionConfig", {**SIZES, "projection_dim": 12},
        layers(48, 12, embed=0, input=1, pos_embed=1, L0__norm=1), 5, inputs=pixels,
    ),
    entry(
        "dinov2", "Dinov2ForImageClassification", "Dinov2Config", {**DINO, "num_labels": 5},
        layers(64, 5, embed=0, input=1, pos_embed=1), 5, inputs=pixels,
    ),
    # Its other output is the loss, an act that reads the error and which patches were hidden.
    entry(
        "vit-mae", "ViTMAEForPreTraining", "ViTMAEConfig", MAE,
        layers(48, 48, input=1, pos_embed=1, pos_embed1=1, L2__attn=2, L2__mlp=24, L0__act=1), 8, inputs=_noisy,
    ),
    entry(
        "swin", "SwinForImageClassification", "SwinConfig", SWIN,
        layers(32, 5, heads=2, embed=0, input=1, L0__norm=1, L2__attn=4, L2__mlp=64), 8, inputs=pixels,
        attention="eager",
    ),
    entry(
        "segformer", "SegformerForSemanticSegmentation", "SegformerConfig", SEGFORMER,
        {
            "input": (1, 1), "L0.norm": (1, 1), "L1.norm": (1, 1), "L0.attn": (1, 1), "L1.attn": (2, 1),
            **channels(8, 16, 16, 32, 12, 5), "unembed": (5, 1),
        }, 6, inputs=pixels, attention="eager",
    ),
    entry(
        "convnextv2", "ConvNextV2ForImageClassification", "ConvNextV2Config", {**CONVNEXT, "num_labels": 5},
        {
            "input": (1, 1), "L0.norm": (1, 1), **channels(6, 8, 8), "L0.mlp": (24, 1), "L1.mlp": (32, 1),
            "unembed": (5, 1),
        }, 4, inputs=pixels, attention="eager",
    ),
    # The classes of what is seen; where it is seen is another output, with the last two MLPs and a sigmoid.
    Entry(
        "detr", _detr, lambda: floats(3, 32, 32),
        {
            "input": (1, 1), **channels(4, 4, 4, 8, 8, 16), "L0.act": (4, 1), "L0.attn": (2, 1), "L0.norm": (1, 1),
            "L0.mlp": (24, 1), "L1.attn": (2, 1), "L1.norm": (1, 1), "L1.mlp": (24, 1), "L2.mlp": (16, 1),
            "L3.mlp": (16, 1), "L1.act": (1, 1), "unembed": (5, 1),
        }, 8,
    ),
]  # fmt: skip
