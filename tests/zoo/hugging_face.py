"""Zoo entries for architectures of transformers, made tiny from a config with random weights."""

from __future__ import annotations

from typing import Any

import torch
from entry import BATCH, LENGTH, WORDS, Entry, Inputs, ids, layers
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
T5 = {
    "vocab_size": WORDS, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
    "decoder_start_token_id": 1,
}  # fmt: skip
MAMBA = {"vocab_size": WORDS, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
BERT_NORMS = {f"L{layer}__norm": 1 for layer in range(4)}
T5_MLPS = {f"L{layer}__mlp": 48 for layer in range(4)}
OPT = {**NEOX, "ffn_dim": 48, "word_embed_proj_dim": 32}
BLOOM = {"vocab_size": WORDS, "hidden_size": 32, "n_layer": 2, "n_head": 4}
GEMMA = {**LLAMA, "head_dim": 8, "sliding_window": 4}
FALCON = {**NEOX, "multi_query": True, "ffn_hidden_size": 48}
GPT = {"vocab_size": WORDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}


def _build(name: str, config: str, options: dict[str, Any], attention: str = "sdpa") -> nn.Module:
    import transformers

    made = getattr(transformers, config)(pad_token_id=0, bos_token_id=1, eos_token_id=2, **options)
    made._attn_implementation = attention
    return getattr(transformers, name)(made).eval()


def _entry(
    name: str, cls: str, config: str, options: dict[str, Any], expected: dict[str, tuple[int, int]], stream: int,
    inputs: Any = None, **marks: Any,
) -> Entry:  # fmt: skip
    attention = marks.pop("attention", "sdpa")
    return Entry(name, lambda: _build(cls, config, options, attention), inputs or _uncached, expected, stream, **marks)


def _uncached() -> Inputs:
    return ids()[0], {"use_cache": False}


def _masked() -> Inputs:
    mask = torch.ones(BATCH, LENGTH, dtype=torch.long)
    mask[1, -2:] = 0
    return ids()[0], {"attention_mask": mask}


def _pixels() -> Inputs:
    return (torch.randn(BATCH, 3, 16, 16),), {}


def _both() -> Inputs:
    return (), {"input_ids": ids()[0][0], "decoder_input_ids": ids(5)[0][0], "use_cache": False}


HUGGING_FACE: list[Entry] = [
    _entry("gpt2", "GPT2LMHeadModel", "GPT2Config", GPT, layers(128, pos_embed=1), 5),
    _entry("gpt2 eager", "GPT2LMHeadModel", "GPT2Config", GPT, layers(128, pos_embed=1), 5, attention="eager"),
    _entry("gpt2 cached", "GPT2LMHeadModel", "GPT2Config", GPT, layers(128, pos_embed=1), 5, inputs=ids),
    _entry("gpt-neox", "GPTNeoXForCausalLM", "GPTNeoXConfig", NEOX, layers(48), 3),
    _entry("gpt-j", "GPTJForCausalLM", "GPTJConfig", {**GPT, "rotary_dim": 4}, layers(128), 3, attention="eager"),
    _entry("opt", "OPTForCausalLM", "OPTConfig", OPT, layers(48, pos_embed=1), 5),
    _entry("bloom", "BloomForCausalLM", "BloomConfig", BLOOM, layers(128, L0__norm=1), 5, attention="eager"),
    _entry("llama", "LlamaForCausalLM", "LlamaConfig", LLAMA, layers(48), 5),
    _entry("mistral", "MistralForCausalLM", "MistralConfig", {**LLAMA, "sliding_window": 4}, layers(48), 5),
    _entry("qwen3", "Qwen3ForCausalLM", "Qwen3Config", {**LLAMA, "head_dim": 8}, layers(48), 5),
    _entry("gemma2", "Gemma2ForCausalLM", "Gemma2Config", GEMMA, layers(48, L0__act=1), 5, attention="eager"),
    _entry("phi", "PhiForCausalLM", "PhiConfig", NEOX, layers(48), 3),
    _entry("falcon", "FalconForCausalLM", "FalconConfig", FALCON, layers(48), 3),
    # Lifting Mamba is not settled: its gate's channels stand on another axis, and each step of its scan is a block.
    _entry("mamba", "MambaForCausalLM", "MambaConfig", MAMBA, {}, 0, attention="eager"),
    _entry(
        "bert", "BertForMaskedLM", "BertConfig", NEOX,
        layers(48, pos_embed=1, type_embed=1, L2__mlp=32, **BERT_NORMS), 8, inputs=_masked,
    ),
    _entry(
        "vit", "ViTForImageClassification", "ViTConfig", {**VISION, "num_labels": 5},
        layers(48, 5, embed=0, input=1, pos_embed=1), 5, inputs=_pixels,
    ),
    _entry(
        "t5", "T5ForConditionalGeneration", "T5Config", T5, layers(0, count=6, embed1=1, **T5_MLPS), 12, inputs=_both,
        attention="eager",
    ),
    _entry(
        "clip text", "CLIPTextModelWithProjection", "CLIPTextConfig", {**NEOX, "projection_dim": 12},
        layers(48, 12, pos_embed=1), 5, inputs=ids,
    ),
    _entry(
        "clip vision", "CLIPVisionModelWithProjection", "CLIPVisionConfig", {**VISION, "projection_dim": 12},
        layers(48, 12, embed=0, input=1, pos_embed=1, L0__norm=1), 5, inputs=_pixels,
    ),
]  # fmt: skip
