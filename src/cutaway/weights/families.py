"""Architectures known by the names of their tensors, one row each. A new family is one more row."""

from __future__ import annotations

from cutaway.weights.candidates import Open, heads, product
from cutaway.weights.family import Family, depths, ratio, side, sized, stages
from cutaway.weights.shapes import Shapes, Value

ROPE = ("rope_theta", "rms_norm_eps", "hidden_act")
A, M = "layers.#.self_attn.", "layers.#.mlp."
PLAIN: dict[str, Value] = sized("layers.#", "embed_tokens.weight") | {"intermediate_size": f"{M}gate_proj.weight:0"}
LLAMA: dict[str, Value] = PLAIN | {"attention_bias": f"?{A}q_proj.bias"}
BIASED = LLAMA | {"mlp_bias": f"?{M}gate_proj.bias", "attention_bias": f"?{A}o_proj.bias"}
NORMED = ("layers.#.self_attn.q_norm.weight",)
SANDWICH = ("layers.#.pre_feedforward_layernorm.weight",)
POST = ("layers.#.post_attention_layernorm.weight",)


def _grouped(size: str, *known: Value) -> Open:
    return heads(
        "num_attention_heads", f"{A}q_proj.weight:0", kv=("num_key_value_heads", f"{A}k_proj.weight:0"),
        size=size, known=known, even=True,
    )  # fmt: skip


def _llama(
    name: str, config: str, stem: str, marks: tuple[str, ...] = (), absent: tuple[str, ...] = (),
    sizes: dict[str, Value] | None = None, known: tuple[Value, ...] = (), norm: str = "RMSNorm",
    unseen: tuple[str, ...] = (), size: str = "head_dim",
) -> Family:  # fmt: skip
    """A row of the many that name their tensors as Llama does."""
    classes = (f"{stem}ForCausalLM", f"{stem}Model", f"{stem}ForSequenceClassification")
    needed = ("embed_tokens.weight", f"{A}q_proj.weight", "norm.weight", *marks)
    inverse: Value = lambda shapes: 2 * (shapes.size("layers.#.self_attn.rotary_emb.inv_freq:0") or 0)  # noqa: E731
    return Family(
        name, config, classes, needed, sizes or LLAMA, _grouped(size, *known, inverse), absent, norm,
        unseen=(*ROPE, *unseen),
    )  # fmt: skip


GATED, ROUTED = (f"{M}gate_proj.weight",), (f"{M}experts.gate_up_proj",)
_OPT = "decoder.layers.#.self_attn."
_FFN = "encoder.layer.#."
_T5 = "encoder.block.#.layer.#."
_VIT = {"image_size": side("embeddings.position_embeddings", "embeddings.patch_embeddings.projection.weight", 1)}
_VIT |= {
    "patch_size": "embeddings.patch_embeddings.projection.weight:2",
    "num_channels": "embeddings.patch_embeddings.projection.weight:1", "num_labels": "/classifier.weight:0",
    "hidden_size": "embeddings.patch_embeddings.projection.weight:0",
}  # fmt: skip
_CLIP: dict[str, Value] = {
    "num_hidden_layers": "encoder.layers.#", "intermediate_size": "encoder.layers.#.mlp.fc1.weight:0",
}  # fmt: skip

FAMILIES: tuple[Family, ...] = (
    Family(
        "GPT-2", "GPT2Config", ("GPT2LMHeadModel", "GPT2Model", "GPT2ForSequenceClassification"),
        ("wte.weight", "wpe.weight", "h.#.attn.c_attn.weight", "h.#.mlp.c_fc.weight", "ln_f.bias"),
        sized("h.#", "wte.weight") | {"n_positions": "wpe.weight:0", "n_inner": "h.#.mlp.c_fc.weight:1"},
        heads("num_attention_heads", "wte.weight:1"), unseen=("activation_function", "layer_norm_epsilon"),
    ),
    Family(
        "GPT-NeoX", "GPTNeoXConfig", ("GPTNeoXForCausalLM", "GPTNeoXModel"),
        ("embed_in.weight", "layers.#.attention.query_key_value.weight"),
        sized("layers.#", "embed_in.weight") | {
            "intermediate_size": "layers.#.mlp.dense_h_to_4h.weight:0",
            "attention_bias": "?layers.#.attention.query_key_value.bias",
        },
        heads("num_attention_heads", "embed_in.weight:1", even=True),
        unseen=("hidden_act", "layer_norm_eps", "rotary_pct", "use_parallel_residual"),
    ),
    Family(
        "GPT-J", "GPTJConfig", ("GPTJForCausalLM", "GPTJModel"),
        ("wte.weight", "h.#.attn.q_proj.weight", "h.#.mlp.fc_in.weight", "ln_f.weight"),
        sized("h.#", "wte.weight") | {"n_inner": "h.#.mlp.fc_in.weight:0"},
        heads("num_attention_heads", "wte.weight:1"), unseen=("rotary_dim", "activation_function"),
    ),
    Family(
        "OPT", "OPTConfig", ("OPTForCausalLM", "OPTModel"),
        ("decoder.embed_positions.weight", f"{_OPT}q_proj.bias", "decoder.layers.#.fc1.weight"),
        sized("decoder.layers.#", "decoder.embed_tokens.weight") | {
            "hidden_size": f"{_OPT}q_proj.weight:1", "word_embed_proj_dim": "decoder.embed_tokens.weight:1",
            "ffn_dim": "decoder.layers.#.fc1.weight:0", "do_layer_norm_before": "?decoder.final_layer_norm.weight",
            "max_position_embeddings": lambda shapes: (shapes.size("decoder.embed_positions.weight:0") or 2) - 2,
        },
        heads("num_attention_heads", f"{_OPT}q_proj.weight:0"), absent=("decoder.layers.#.encoder_attn.q_proj.weight",),
        unseen=("activation_function",),
    ),
    Family(
        "BLOOM", "BloomConfig", ("BloomForCausalLM", "BloomModel"),
        ("word_embeddings.weight", "word_embeddings_layernorm.weight", "h.#.self_attention.query_key_value.weight"),
        sized("h.#", "word_embeddings.weight"), heads("n_head", "word_embeddings.weight:1"),
        unseen=("layer_norm_epsilon",), fields={"num_attention_heads": "n_head"},
    ),
    Family(
        "Falcon", "FalconConfig", ("FalconForCausalLM", "FalconModel"),
        ("word_embeddings.weight", "h.#.self_attention.query_key_value.weight", "h.#.mlp.dense_h_to_4h.weight"),
        sized("h.#", "word_embeddings.weight") | {
            "ffn_hidden_size": "h.#.mlp.dense_h_to_4h.weight:0", "bias": "?h.#.self_attention.dense.bias",
            "multi_query": lambda shapes: _falcon_head(shapes) > 0,
            "parallel_attn": lambda shapes: shapes.get("h.#.post_attention_layernorm.weight") is None,
        },
        heads("num_attention_heads", "word_embeddings.weight:1", known=(lambda shapes: _falcon_head(shapes),)),
        absent=("word_embeddings_layernorm.weight", "h.#.ln_attn.weight"), unseen=("alibi", "rope_theta", "activation"),
    ),
    _llama("Llama", "LlamaConfig", "Llama", GATED, (*NORMED, *SANDWICH), BIASED),
    _llama("Mistral", "MistralConfig", "Mistral", GATED, (*NORMED, *SANDWICH, f"{A}q_proj.bias"), PLAIN,
           unseen=("sliding_window",)),
    _llama("Granite", "GraniteConfig", "Granite", GATED, (*NORMED, *SANDWICH), BIASED,
           unseen=("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"), size=""),
    _llama("Qwen 2", "Qwen2Config", "Qwen2", (*GATED, f"{A}q_proj.bias"), (*NORMED, f"{A}o_proj.bias"), PLAIN),
    _llama("Qwen 3", "Qwen3Config", "Qwen3", (*GATED, *NORMED, *POST), SANDWICH, known=(f"{A}q_norm.weight:0",)),
    _llama("Gemma 2", "Gemma2Config", "Gemma2", (*GATED, *SANDWICH), NORMED,
           unseen=("query_pre_attn_scalar", "sliding_window", "attn_logit_softcapping", "final_logit_softcapping")),
    _llama("Gemma 3", "Gemma3TextConfig", "Gemma3", (*GATED, *SANDWICH, *NORMED), known=(f"{A}q_norm.weight:0",),
           unseen=("query_pre_attn_scalar", "sliding_window")),
    _llama("OLMo 2", "Olmo2Config", "Olmo2", (*GATED, *NORMED, "layers.#.post_feedforward_layernorm.weight"), SANDWICH,
           size=""),
    _llama("Cohere 2", "Cohere2Config", "Cohere2", GATED, (*POST, *NORMED), norm="LayerNorm",
           unseen=("sliding_window", "logit_scale")),
    _llama("Mixtral", "MixtralConfig", "Mixtral", (*ROUTED, *POST), (*NORMED, f"{M}gate.e_score_correction_bias"),
           PLAIN | {"intermediate_size": f"{M}experts.down_proj:2", "num_local_experts": f"{M}gate.weight:0"},
           unseen=("num_experts_per_tok", "sliding_window")),
    _llama("OLMoE", "OlmoeConfig", "Olmoe", (*ROUTED, *NORMED), (f"{M}shared_expert_gate.weight",),
           LLAMA | {"intermediate_size": f"{M}experts.down_proj:2", "num_experts": f"{M}gate.weight:0"},
           unseen=("num_experts_per_tok",), size=""),
    _llama("gpt-oss", "GptOssConfig", "GptOss", (f"{A}sinks", f"{M}router.weight"), (),
           LLAMA | {"intermediate_size": f"{M}experts.down_proj:1", "num_local_experts": f"{M}router.weight:0"},
           (lambda shapes: (shapes.size(f"{A}q_proj.weight:0") or 0) // (shapes.size(f"{A}sinks:0") or 1),),
           unseen=("num_experts_per_tok", "sliding_window")),
    Family(
        "Phi", "PhiConfig", ("PhiForCausalLM", "PhiModel"),
        ("embed_tokens.weight", f"{A}dense.weight", f"{M}fc1.weight", "final_layernorm.weight"),
        sized("layers.#", "embed_tokens.weight") | {
            "intermediate_size": f"{M}fc1.weight:0", "qk_layernorm": f"?{A}q_layernorm.weight",
        },
        heads("num_attention_heads", f"{A}q_proj.weight:0", kv=("num_key_value_heads", f"{A}k_proj.weight:0"),
              known=(f"{A}q_layernorm.weight:0",), even=True),
        unseen=("hidden_act", "rope_theta", "partial_rotary_factor", "layer_norm_eps"),
    ),
    Family(
        "Mamba", "MambaConfig", ("MambaForCausalLM", "MambaModel"),
        ("embeddings.weight", "layers.#.mixer.x_proj.weight", "layers.#.mixer.A_log", "norm_f.weight"),
        sized("layers.#", "embeddings.weight") | {
            "state_size": "layers.#.mixer.A_log:1", "conv_kernel": "layers.#.mixer.conv1d.weight:2",
            "time_step_rank": "layers.#.mixer.dt_proj.weight:1", "use_bias": "?layers.#.mixer.in_proj.bias",
            "use_conv_bias": "?layers.#.mixer.conv1d.bias",
            "expand": ratio("layers.#.mixer.A_log:0", "embeddings.weight:1"),
            "intermediate_size": "layers.#.mixer.A_log:0",
        },
        norm="RMSNorm", unseen=("hidden_act", "layer_norm_epsilon"),
    ),
    Family(
        "Mamba 2", "Mamba2Config", ("Mamba2ForCausalLM", "Mamba2Model"),
        ("embeddings.weight", "layers.#.mixer.dt_bias", "layers.#.mixer.norm.weight", "norm_f.weight"),
        sized("layers.#", "embeddings.weight") | {
            "num_heads": "layers.#.mixer.A_log:0", "conv_kernel": "layers.#.mixer.conv1d.weight:2",
            "expand": ratio("layers.#.mixer.norm.weight:0", "embeddings.weight:1"),
            "head_dim": lambda shapes: (shapes.size("layers.#.mixer.norm.weight:0") or 0)
            // (shapes.size("layers.#.mixer.A_log:0") or 1),
            "use_bias": "?layers.#.mixer.in_proj.bias", "use_conv_bias": "?layers.#.mixer.conv1d.bias",
        },
        heads("n_groups", lambda shapes: ((shapes.size("layers.#.mixer.conv1d.weight:0") or 0)
              - (shapes.size("layers.#.mixer.norm.weight:0") or 0)) // 2, size="state_size"),
        norm="RMSNorm", unseen=("hidden_act", "layer_norm_epsilon", "time_step_limit"),
    ),
    Family(
        "RWKV 4", "RwkvConfig", ("RwkvForCausalLM", "RwkvModel"),
        ("embeddings.weight", "blocks.#.attention.time_decay", "blocks.#.feed_forward.key.weight"),
        sized("blocks.#", "embeddings.weight") | {
            "attention_hidden_size": "blocks.#.attention.key.weight:0",
            "intermediate_size": "blocks.#.feed_forward.key.weight:0",
        },
        head="/head.weight", unseen=("layer_norm_epsilon",),
    ),
    Family(
        "BERT", "BertConfig", ("BertForMaskedLM", "BertModel", "BertForSequenceClassification", "BertForPreTraining"),
        ("embeddings.word_embeddings.weight", "embeddings.token_type_embeddings.weight",
         f"{_FFN}attention.self.query.weight"),
        sized("encoder.layer.#", "embeddings.word_embeddings.weight") | {
            "max_position_embeddings": "embeddings.position_embeddings.weight:0",
            "type_vocab_size": "embeddings.token_type_embeddings.weight:0",
            "intermediate_size": f"{_FFN}intermediate.dense.weight:0", "num_labels": "/classifier.weight:0",
        },
        heads("num_attention_heads", "embeddings.word_embeddings.weight:1"),
        head="/cls.predictions.decoder.weight", unseen=("hidden_act", "layer_norm_eps"),
    ),
    Family(
        "DeBERTa v2", "DebertaV2Config", ("DebertaV2ForMaskedLM", "DebertaV2Model"),
        ("embeddings.word_embeddings.weight", f"{_FFN}attention.self.query_proj.weight"),
        sized("encoder.layer.#", "embeddings.word_embeddings.weight") | {
            "intermediate_size": f"{_FFN}intermediate.dense.weight:0", "num_labels": "/classifier.weight:0",
            "max_position_embeddings": "embeddings.position_embeddings.weight:0",
            "position_biased_input": "?embeddings.position_embeddings.weight",
            "type_vocab_size": lambda shapes: shapes.size("embeddings.token_type_embeddings.weight:0") or 0,
            "relative_attention": "?encoder.rel_embeddings.weight",
            "share_att_key": lambda shapes: shapes.get(f"{_FFN}attention.self.pos_key_proj.weight") is None,
            "pos_att_type": lambda shapes: [
                word for word, part in (("c2p", "pos_key_proj"), ("p2c", "pos_query_proj"))
                if shapes.get(f"{_FFN}attention.self.{part}.weight")
            ] or None,
        },
        product(lambda shapes: _buckets(shapes), heads("num_attention_heads", "embeddings.word_embeddings.weight:1")),
        head="/cls.predictions.decoder.weight", unseen=("hidden_act", "layer_norm_eps", "pos_att_type"),
    ),
    Family(
        "ModernBERT", "ModernBertConfig", ("ModernBertForMaskedLM", "ModernBertModel"),
        ("embeddings.tok_embeddings.weight", "layers.#.attn.Wqkv.weight", "layers.#.mlp.Wi.weight"),
        sized("layers.#", "embeddings.tok_embeddings.weight") | {
            "intermediate_size": "layers.#.mlp.Wo.weight:1", "attention_bias": "?layers.#.attn.Wqkv.bias",
            "mlp_bias": "?layers.#.mlp.Wi.bias", "norm_bias": "?embeddings.norm.bias",
        },
        heads("num_attention_heads", "embeddings.tok_embeddings.weight:1"), head="/decoder.weight",
        unseen=("hidden_activation", "norm_eps", "local_attention"),
    ),
    Family(
        "T5", "T5Config", ("T5ForConditionalGeneration", "T5Model", "T5EncoderModel"),
        ("shared.weight", f"{_T5}SelfAttention.relative_attention_bias.weight"),
        {
            "vocab_size": "shared.weight:0", "d_model": "shared.weight:1", "num_layers": "encoder.block.#",
            "num_decoder_layers": "decoder.block.#",
            "num_heads": f"{_T5}SelfAttention.relative_attention_bias.weight:1",
            "relative_attention_num_buckets": f"{_T5}SelfAttention.relative_attention_bias.weight:0",
            "d_kv": lambda shapes: (shapes.size(f"{_T5}SelfAttention.q.weight:0") or 0)
            // (shapes.size(f"{_T5}SelfAttention.relative_attention_bias.weight:1") or 1),
            "d_ff": f"{_T5}DenseReluDense.wo.weight:1",
            "feed_forward_proj": lambda shapes: "gated-gelu"
            if shapes.get(f"{_T5}DenseReluDense.wi_0.weight") else "relu",
        },
        norm="RMSNorm", unseen=("feed_forward_proj", "layer_norm_epsilon", "relative_attention_max_distance"),
        fields={"hidden_size": "d_model", "num_hidden_layers": "num_layers", "num_attention_heads": "num_heads",
                "intermediate_size": "d_ff"},
    ),
    Family(
        "Whisper", "WhisperConfig", ("WhisperForConditionalGeneration", "WhisperModel"),
        ("encoder.conv1.weight", "decoder.layers.#.encoder_attn.q_proj.weight"),
        {
            "vocab_size": "decoder.embed_tokens.weight:0", "d_model": "decoder.embed_tokens.weight:1",
            "num_mel_bins": "encoder.conv1.weight:1", "encoder_layers": "encoder.layers.#",
            "decoder_layers": "decoder.layers.#", "encoder_ffn_dim": "encoder.layers.#.fc1.weight:0",
            "decoder_ffn_dim": "decoder.layers.#.fc1.weight:0",
            "max_source_positions": "encoder.embed_positions.weight:0",
            "max_target_positions": "decoder.embed_positions.weight:0",
        },
        product(heads("encoder_attention_heads", "encoder.layers.#.self_attn.q_proj.weight:0"),
                heads("decoder_attention_heads", "decoder.layers.#.self_attn.q_proj.weight:0")),
        head="/proj_out.weight", unseen=("activation_function",), fields={"hidden_size": "d_model"},
    ),
    Family(
        "CLIP text", "CLIPTextConfig", ("CLIPTextModelWithProjection", "CLIPTextModel"),
        ("embeddings.token_embedding.weight", "encoder.layers.#.self_attn.q_proj.weight"),
        _CLIP | {
            "vocab_size": "embeddings.token_embedding.weight:0", "hidden_size": "embeddings.token_embedding.weight:1",
            "max_position_embeddings": "embeddings.position_embedding.weight:0",
            "projection_dim": "/text_projection.weight:0",
        },
        heads("num_attention_heads", "encoder.layers.#.self_attn.q_proj.weight:0"), head="",
        unseen=("hidden_act", "layer_norm_eps"),
    ),
    Family(
        "CLIP vision", "CLIPVisionConfig", ("CLIPVisionModelWithProjection", "CLIPVisionModel"),
        ("embeddings.class_embedding", "embeddings.patch_embedding.weight", "pre_layrnorm.weight"),
        _CLIP | {
            "hidden_size": "embeddings.patch_embedding.weight:0", "num_channels": "embeddings.patch_embedding.weight:1",
            "patch_size": "embeddings.patch_embedding.weight:2", "projection_dim": "/visual_projection.weight:0",
            "image_size": side("embeddings.position_embedding.weight", "embeddings.patch_embedding.weight", 1),
        },
        heads("num_attention_heads", "encoder.layers.#.self_attn.q_proj.weight:0"), head="",
        unseen=("hidden_act", "layer_norm_eps"),
    ),
    Family(
        "ViT", "ViTConfig", ("ViTForImageClassification", "ViTModel"),
        ("embeddings.cls_token", "embeddings.patch_embeddings.projection.weight", "layers.#.layernorm_before.weight"),
        _VIT | {
            "num_hidden_layers": "layers.#", "intermediate_size": "layers.#.mlp.fc1.weight:0",
            "qkv_bias": "?layers.#.attention.q_proj.bias",
        },
        heads("num_attention_heads", "layers.#.attention.q_proj.weight:0"), head="",
        unseen=("hidden_act", "layer_norm_eps"), absent=("/decoder.mask_token", "/decoder.decoder_pos_embed"),
    ),
    Family(
        "DINOv2", "Dinov2Config", ("Dinov2ForImageClassification", "Dinov2Model"),
        ("embeddings.cls_token", "embeddings.mask_token", "encoder.layer.#.layer_scale1.lambda1"),
        _VIT | {
            "num_hidden_layers": "encoder.layer.#", "qkv_bias": "?encoder.layer.#.attention.q_proj.bias",
            "use_swiglu_ffn": "?encoder.layer.#.mlp.weights_in.weight",
            "mlp_ratio": ratio("encoder.layer.#.mlp.fc1.weight:0", "encoder.layer.#.mlp.fc1.weight:1"),
        },
        heads("num_attention_heads", "encoder.layer.#.attention.q_proj.weight:0"), head="",
        unseen=("hidden_act", "layer_norm_eps"),
    ),
    Family(
        "ConvNeXt V2", "ConvNextV2Config", ("ConvNextV2ForImageClassification", "ConvNextV2Model"),
        ("embeddings.patch_embeddings.weight", "encoder.stages.#.layers.#.grn.weight"),
        {
            "num_channels": "embeddings.patch_embeddings.weight:1",
            "patch_size": "embeddings.patch_embeddings.weight:2",
            "hidden_sizes": stages("encoder.stages.#.layers.0.dwconv.weight:0"), "num_stages": "encoder.stages.#",
            "depths": depths("encoder.stages.", ".layers.#"), "num_labels": "/classifier.weight:0",
        },
        head="", unseen=("hidden_act", "layer_norm_eps"),
    ),
    # Networks that `transformers` does not build under these names; they are recognised, and never opened.
    Family(
        "RWKV, as its authors name it", "", (), ("emb.weight", "blocks.#.att.time_decay", "blocks.#.ffn.key.weight"),
        sized("blocks.#", "emb.weight") | {"intermediate_size": "blocks.#.ffn.key.weight:0"}, head="/head.weight",
    ),
    Family(
        "Llama, as its authors name it", "", (), ("tok_embeddings.weight", "layers.#.attention.wq.weight"),
        sized("layers.#", "tok_embeddings.weight") | {"intermediate_size": "layers.#.feed_forward.w1.weight:0"},
        heads("num_attention_heads", "layers.#.attention.wq.weight:0", size="head_dim", even=True,
              kv=("num_key_value_heads", "layers.#.attention.wk.weight:0")),
        norm="RMSNorm", head="/output.weight",
    ),
    Family(
        "a GGUF transformer", "", (), ("token_embd.weight", "blk.#.attn_q.weight", "blk.#.ffn_up.weight"),
        sized("blk.#", "token_embd.weight") | {"intermediate_size": "blk.#.ffn_up.weight:0"},
        heads("num_attention_heads", "blk.#.attn_q.weight:0", size="head_dim", even=True,
              kv=("num_key_value_heads", "blk.#.attn_k.weight:0")),
        norm="RMSNorm", head="/output.weight",
    ),
    Family(
        "a TransformerLens transformer", "", (), ("embed.W_E", "blocks.#.attn.W_Q"),
        {
            "vocab_size": "embed.W_E:0", "hidden_size": "embed.W_E:1", "num_hidden_layers": "blocks.#",
            "num_attention_heads": "blocks.#.attn.W_Q:0", "head_dim": "blocks.#.attn.W_Q:2",
            "intermediate_size": "blocks.#.mlp.W_in:1",
        },
        head="",
    ),
)  # fmt: skip


def _buckets(shapes: Shapes) -> list[dict[str, int]]:
    """What half the rows of a table of relative positions are: buckets, or positions."""
    rows = shapes.size("encoder.rel_embeddings.weight:0")
    if rows is None:
        return [{}]
    return [{"position_buckets": rows // 2}, {"position_buckets": -1, "max_position_embeddings": rows // 2}]


def _falcon_head(shapes: Shapes) -> int:
    """A head's size where all queries share one key and one value, else 0."""
    fused, width = shapes.size("h.#.self_attention.query_key_value.weight:0"), shapes.size("word_embeddings.weight:1")
    return 0 if fused is None or width is None or fused >= 3 * width else (fused - width) // 2
