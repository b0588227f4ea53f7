"""Zoo entries for language models that read from left to right."""

from __future__ import annotations

from entry import WORDS, Entry, ids, layers
from parts import parts
from pretrained import LLAMA, NEOX, entry

MAMBA = {"vocab_size": WORDS, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
OPT = {**NEOX, "ffn_dim": 48, "word_embed_proj_dim": 32}
BLOOM = {"vocab_size": WORDS, "hidden_size": 32, "n_layer": 2, "n_head": 4}
GEMMA = {**LLAMA, "head_dim": 8, "sliding_window": 4}
FALCON = {**NEOX, "multi_query": True, "ffn_hidden_size": 48}
GPT = {"vocab_size": WORDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
EXPERTS = {"num_experts_per_tok": 2, "intermediate_size": 16}
QWEN3_NEXT = {
    **LLAMA, **EXPERTS, "head_dim": 8, "layer_types": ["linear_attention", "full_attention"], "num_experts": 4,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_key_head_dim": 4, "linear_value_head_dim": 4,
}  # fmt: skip
DEEPSEEK = {
    **LLAMA, "num_key_value_heads": 4, "first_k_dense_replace": 1, "n_routed_experts": 4, "n_group": 2,
    "topk_group": 1, "num_experts_per_tok": 2, "q_lora_rank": 12, "kv_lora_rank": 8, "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4, "v_head_dim": 8, "moe_intermediate_size": 16,
}  # fmt: skip
MAMBA2 = {**MAMBA, "num_heads": 4, "head_dim": 8, "n_groups": 2, "chunk_size": 4}
GRIFFIN = {
    "vocab_size": WORDS, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "lru_width": 16, "attention_window_size": 4, "block_types": ["recurrent", "attention"],
}  # fmt: skip
JAMBA = {
    **LLAMA, **EXPERTS, "num_experts": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4,
    "mamba_expand": 1, "use_mamba_kernels": False,
}  # fmt: skip
FALCON_H1 = {
    **LLAMA, "mamba_d_ssm": 16, "mamba_n_heads": 4, "mamba_d_head": 4, "mamba_d_state": 4, "mamba_chunk_size": 4,
}  # fmt: skip
GRANITE = {
    **LLAMA, "embedding_multiplier": 3.0, "residual_multiplier": 0.3, "attention_multiplier": 0.2,
    "logits_scaling": 2.0,
}  # fmt: skip


LANGUAGE: list[Entry] = [
    entry("gpt2", "GPT2LMHeadModel", "GPT2Config", GPT, layers(128, pos_embed=1), 5),
    entry("gpt2 eager", "GPT2LMHeadModel", "GPT2Config", GPT, layers(128, pos_embed=1), 5, attention="eager"),
    entry("gpt2 cached", "GPT2LMHeadModel", "GPT2Config", GPT, layers(128, pos_embed=1), 5, inputs=ids),
    entry("gpt-neox", "GPTNeoXForCausalLM", "GPTNeoXConfig", NEOX, layers(48), 3),
    entry("gpt-j", "GPTJForCausalLM", "GPTJConfig", {**GPT, "rotary_dim": 4}, layers(128), 3, attention="eager"),
    entry("opt", "OPTForCausalLM", "OPTConfig", OPT, layers(48, pos_embed=1), 5),
    entry("bloom", "BloomForCausalLM", "BloomConfig", BLOOM, layers(128, L0__norm=1), 5, attention="eager"),
    entry("llama", "LlamaForCausalLM", "LlamaConfig", LLAMA, layers(48), 5),
    entry("mistral", "MistralForCausalLM", "MistralConfig", {**LLAMA, "sliding_window": 4}, layers(48), 5),
    entry("qwen3", "Qwen3ForCausalLM", "Qwen3Config", {**LLAMA, "head_dim": 8}, layers(48), 5),
    entry("gemma2", "Gemma2ForCausalLM", "Gemma2Config", GEMMA, layers(48, L0__act=1), 5, attention="eager"),
    entry("gemma3", "Gemma3ForCausalLM", "Gemma3TextConfig", GEMMA, layers(48), 5),
    entry("phi", "PhiForCausalLM", "PhiConfig", NEOX, layers(48), 3),
    entry("falcon", "FalconForCausalLM", "FalconConfig", FALCON, layers(48), 3),
    entry("olmo2", "Olmo2ForCausalLM", "Olmo2Config", LLAMA, layers(48), 5),
    entry("granite", "GraniteForCausalLM", "GraniteConfig", GRANITE, layers(48), 5),
    entry("cohere2", "Cohere2ForCausalLM", "Cohere2Config", {**LLAMA, "sliding_window": 4}, layers(48), 5),
    # Experts: one block a layer, shared experts apart.
    entry(
        "mixtral", "MixtralForCausalLM", "MixtralConfig", {**LLAMA, **EXPERTS, "num_local_experts": 4},
        parts(WORDS, "embed", attn=[4, 4], moe=[4, 4]), 5,
    ),
    entry(
        "olmoe", "OlmoeForCausalLM", "OlmoeConfig", {**LLAMA, **EXPERTS, "num_experts": 4},
        parts(WORDS, "embed", attn=[4, 4], moe=[4, 4]), 5,
    ),
    entry(
        "gpt-oss", "GptOssForCausalLM", "GptOssConfig",
        {**LLAMA, **EXPERTS, "head_dim": 8, "sliding_window": 4, "num_local_experts": 4},
        parts(WORDS, "embed", attn=[4, 4], moe=[4, 4]), 5, attention="eager",
    ),
    entry(
        "deepseek-v3", "DeepseekV3ForCausalLM", "DeepseekV3Config", DEEPSEEK,
        parts(WORDS, "embed", attn=[4, 4], mlp=[48, 16], moe=4), 5,
    ),
    # Scans and linear attention.
    entry(
        "qwen3-next", "Qwen3NextForCausalLM", "Qwen3NextConfig", QWEN3_NEXT,
        parts(WORDS, "embed", conv=32, ssm=4, attn=4, mlp=[16, 16], moe=[4, 4], act=[1, 1, 1]), 5,
    ),
    entry(
        "mamba", "MambaForCausalLM", "MambaConfig", MAMBA,
        parts(WORDS, "embed", conv=[32, 32], ssm=[32, 32]), 3, attention="eager", varies=True,
    ),
    entry(
        "mamba2", "Mamba2ForCausalLM", "Mamba2Config", MAMBA2,
        parts(WORDS, "embed", conv=[48, 48], ssm=[4, 4]), 3, attention="eager",
    ),
    entry(
        "rwkv", "RwkvForCausalLM", "RwkvConfig", MAMBA,
        parts(WORDS, "embed", ssm=[16, 16], mlp=[64, 64], act=[1, 1], norm=1), 5, attention="eager", varies=True,
    ),
    entry(
        "recurrent gemma", "RecurrentGemmaForCausalLM", "RecurrentGemmaConfig", GRIFFIN,
        parts(WORDS, "embed", conv=16, ssm=16, attn=2, mlp=[16, 16], act=1), 5, varies=True,
    ),
    entry(
        "jamba", "JambaForCausalLM", "JambaConfig", JAMBA,
        parts(WORDS, "embed", conv=32, ssm=32, attn=4, mlp=16, moe=4), 5, varies=True,
    ),
    entry(
        "falcon-h1", "FalconH1ForCausalLM", "FalconH1Config", FALCON_H1,
        parts(WORDS, "embed", conv=[24, 24], ssm=[4, 4], attn=[4, 4], mlp=[48, 48]), 5,
    ),
]  # fmt: skip
