"""Zoo entries for networks on text and sound that read in both directions, with a decoder or without."""

from __future__ import annotations

import torch
from entry import BATCH, WORDS, Entry, Inputs, floats, ids, layers
from pretrained import NEOX, both, entry, masked

T5 = {
    "vocab_size": WORDS, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
    "decoder_start_token_id": 1,
}  # fmt: skip
BERT_NORMS = {f"L{layer}__norm": 1 for layer in range(4)}
T5_MLPS = {f"L{layer}__mlp": 48 for layer in range(4)}
MODERNBERT = {**NEOX, "layer_types": ["full_attention", "sliding_attention"], "local_attention": 4}
DEBERTA = {**NEOX, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False}
WHISPER = {
    "vocab_size": WORDS, "d_model": 16, "num_mel_bins": 4, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
    "max_source_positions": 6, "max_target_positions": 16, "decoder_start_token_id": 1,
}  # fmt: skip
WAV2VEC = {
    **NEOX, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "conv_dim": [8, 8],
    "conv_stride": [2, 2], "conv_kernel": [4, 3], "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
    "apply_spec_augment": False,
}  # fmt: skip


def _heard() -> Inputs:
    return (), {
        "input_features": torch.randn(BATCH, 4, 12), "decoder_input_ids": ids(5)[0][0], "use_cache": False,
    }  # fmt: skip


ENCODERS: list[Entry] = [
    entry(
        "bert", "BertForMaskedLM", "BertConfig", NEOX,
        layers(48, pos_embed=1, type_embed=1, L2__mlp=32, **BERT_NORMS), 8, inputs=masked,
    ),
    entry(
        "modernbert", "ModernBertForMaskedLM", "ModernBertConfig", MODERNBERT, layers(48, L0__norm=1, L2__mlp=32), 5,
        inputs=masked,
    ),
    entry(
        "deberta-v2", "DebertaV2ForMaskedLM", "DebertaV2Config", DEBERTA, layers(48, L2__mlp=32, **BERT_NORMS), 8,
        inputs=masked, attention="eager",
    ),
    entry(
        "t5", "T5ForConditionalGeneration", "T5Config", T5, layers(0, count=6, embed1=1, **T5_MLPS), 12, inputs=both,
        attention="eager",
    ),
    entry(
        "whisper", "WhisperForConditionalGeneration", "WhisperConfig", WHISPER,
        {
            "input": (1, 1), "embed": (1, 1), "pos_embed": (1, 1), "pos_embed1": (1, 1), "L0.conv": (16, 1),
            "L1.conv": (16, 1), "L0.attn": (2, 1), "L0.mlp": (24, 1), "L1.attn": (2, 1), "L2.attn": (2, 1),
            "L1.mlp": (24, 1), "unembed": (WORDS, 1),
        }, 7, inputs=_heard,
    ),
    entry(
        "wav2vec2", "Wav2Vec2ForCTC", "Wav2Vec2Config", WAV2VEC,
        layers(24, heads=2, embed=0, input=1, L0__conv=8, L1__conv=8, L2__conv=16, **BERT_NORMS), 10,
        inputs=lambda: floats(40),
    ),
    entry(
        "clip text", "CLIPTextModelWithProjection", "CLIPTextConfig", {**NEOX, "projection_dim": 12},
        layers(48, 12, pos_embed=1), 5, inputs=ids,
    ),
]  # fmt: skip
