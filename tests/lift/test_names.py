"""Standard names and TransformerLens aliases name the values that plain hooks see in the block that they belong to."""

from __future__ import annotations

import pytest
import torch
from entry import first
from torch import Tensor

import cutaway as cw
from cutaway.errors import SiteError
from zoo import Case, case, error

# name: (blocks, what the attention adds, what the MLP adds, projection of z, projection of the neurons)
PLACES: dict[str, tuple[str, str, str, str, str]] = {
    "gpt2": ("transformer.h", "attn", "mlp", "attn.c_proj", "mlp.c_proj"),
    "gpt2 eager": ("transformer.h", "attn", "mlp", "attn.c_proj", "mlp.c_proj"),
    "gpt-neox": ("gpt_neox.layers", "attention", "mlp", "attention.dense", "mlp.dense_4h_to_h"),
    "gpt-j": ("transformer.h", "attn", "mlp", "attn.out_proj", "mlp.fc_out"),
    "opt": ("model.decoder.layers", "self_attn", "fc2", "self_attn.out_proj", "fc2"),
    "bloom": (
        "transformer.h", "self_attention.dense", "mlp.dense_4h_to_h", "self_attention.dense", "mlp.dense_4h_to_h",
    ),
    "llama": ("model.layers", "self_attn", "mlp", "self_attn.o_proj", "mlp.down_proj"),
    "mistral": ("model.layers", "self_attn", "mlp", "self_attn.o_proj", "mlp.down_proj"),
    "qwen3": ("model.layers", "self_attn", "mlp", "self_attn.o_proj", "mlp.down_proj"),
    "gemma2": (
        "model.layers", "post_attention_layernorm", "post_feedforward_layernorm", "self_attn.o_proj", "mlp.down_proj",
    ),
    "phi": ("model.layers", "self_attn", "mlp", "self_attn.dense", "mlp.fc2"),
    "falcon": ("transformer.h", "self_attention", "mlp", "self_attention.dense", "mlp.dense_4h_to_h"),
    "bert": ("bert.encoder.layer", "attention.output.dense", "output.dense", "attention.output.dense", "output.dense"),
    "vit": ("vit.layers", "attention", "mlp.fc2", "attention.o_proj", "mlp.fc2"),
    "clip text": ("text_model.encoder.layers", "self_attn", "mlp", "self_attn.out_proj", "mlp.fc2"),
    "clip vision": ("vision_model.encoder.layers", "self_attn", "mlp", "self_attn.out_proj", "mlp.fc2"),
}  # fmt: skip
NORM_LAST = {
    "bert"
}  # a block's output is normalised after the add: resid_post is the sum, the next resid_pre the output


def seen_by_hooks(found: Case) -> dict[str, Tensor]:
    """Every module's first input (`path<`) and output (`path`) in a plain run."""
    seen: dict[str, Tensor] = {}

    def note(path: str):
        def hook(module, args, kwargs, out) -> None:
            given = args if any(isinstance(item, Tensor) for item in args) else tuple(kwargs.values())
            tensors = [item for item in given if isinstance(item, Tensor)]
            if tensors:
                seen[f"{path}<"] = tensors[0].clone()
            if isinstance(out, (Tensor, tuple)):
                seen[path] = first(out).clone()

        return hook

    module = found.entry.make()[0].requires_grad_(False)
    for path, inner in module.named_modules():
        if path:
            inner.register_forward_hook(note(path), with_kwargs=True)
    args, kwargs = found.inputs()
    module(*args, **kwargs)
    return seen


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("layer", [0, 1])
def test_names_of_a_layer(name: str, layer: int) -> None:
    found = case(name)
    seen, trace = seen_by_hooks(found), found.trace
    blocks, attention, mlp, project, down = PLACES[name]
    block = f"{blocks}.{layer}"
    wanted = {
        f"blocks.{layer}.hook_resid_pre": seen[f"{block}<"],
        f"blocks.{layer}.hook_attn_out": seen[f"{block}.{attention}"],
        f"blocks.{layer}.hook_mlp_out": seen[f"{block}.{mlp}"],
        f"blocks.{layer}.mlp.hook_post": seen[f"{block}.{down}<"],
    }
    if name not in NORM_LAST:
        wanted[f"blocks.{layer}.hook_resid_post"] = seen[block]
    for site, want in wanted.items():
        assert error(trace[site].reshape(want.shape), want) <= 1e-6, site
    z, want = trace[f"blocks.{layer}.attn.hook_z"], seen[f"{block}.{project}<"]
    assert error(z.transpose(1, 2).reshape(want.shape), want) <= 1e-6
    assert torch.equal(trace[f"L{layer}.attn.h2"], z[:, 2])
    assert torch.equal(trace[f"L{layer}.resid_pre"], trace[f"blocks.{layer}.hook_resid_pre"])


@pytest.mark.parametrize("name", PLACES)
def test_patterns_are_attention_and_give_z(name: str) -> None:
    trace = case(name).trace
    pattern, values, z = trace["L1.attn.pattern"], trace["L1.attn.v"], trace["L1.attn.z"]
    assert pattern.shape[:2] == z.shape[:2] == (3, 4)
    assert error(pattern.sum(-1), torch.ones(pattern.shape[:-1])) <= 1e-6
    values = values.repeat_interleave(4 // values.shape[1], 1)
    assert error(pattern @ values, z) <= 1e-5
    assert error(torch.softmax(trace["L1.attn.scores"], -1), pattern) <= 1e-6


def test_parallel_layers_have_no_middle() -> None:
    with pytest.raises(SiteError, match="No site"):
        case("gpt-neox").trace["L0.resid_mid"]
    assert case("gpt2").trace["L0.resid_mid"].shape == (3, 7, 32)


def test_layers_of_a_decoder_with_cross_attention_are_not_guessed() -> None:
    trace = case("t5").trace
    encoder = seen_by_hooks(case("t5"))
    assert error(trace["L0.resid_post"], encoder["encoder.block.0"]) <= 1e-6
    assert (
        error(trace["L3.attn.z"].transpose(1, 2).flatten(2), encoder["decoder.block.0.layer.1.EncDecAttention.o<"])
        <= 1e-6
    )
    with pytest.raises(SiteError, match="No site"):
        trace["L3.resid_post"]


def test_gated_mlps_name_both_reads() -> None:
    trace, seen = case("llama").trace, seen_by_hooks(case("llama"))
    assert torch.equal(trace["blocks.1.mlp.hook_pre"], seen["model.layers.1.mlp.gate_proj"])
    assert torch.equal(trace["blocks.1.mlp.hook_pre_linear"], seen["model.layers.1.mlp.up_proj"])
    assert trace["L1.attn.k"].shape[1] == 2  # grouped: two heads of queries read each
    assert torch.equal(trace["embed"], seen["model.embed_tokens"])


def test_embeddings_are_told_apart() -> None:
    trace, seen = case("bert").trace, seen_by_hooks(case("bert"))
    assert torch.equal(trace["pos_embed"][0], seen["bert.embeddings.position_embeddings"][0])
    assert torch.equal(trace["type_embed"][0], seen["bert.embeddings.token_type_embeddings"][0])


def test_channels_and_neurons_of_a_convolutional_network() -> None:
    trace, seen = case("lenet").trace, seen_by_hooks(case("lenet"))
    assert torch.equal(trace["L0.conv.c2"], seen["features.1"][:, 2])
    assert torch.equal(trace["L1.conv.channel[channel=0]"], seen["features.4"][:, 0])
    assert torch.equal(trace["L0.mlp.n7"], seen["classify.2"][:, 7])


def test_a_layer_whose_second_half_is_unknown_has_no_end() -> None:
    class Odd(torch.nn.Module):
        """Attention, then a running product in place of an MLP, twice."""

        def __init__(self) -> None:
            super().__init__()
            self.mix = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(8))

        def forward(self, x: Tensor) -> Tensor:
            for block in (0, 4):
                q, k, v, out = self.mix[block : block + 4]
                heads = [part(x).view(*x.shape[:2], 2, 4).transpose(1, 2) for part in (q, k, v)]
                z = torch.nn.functional.scaled_dot_product_attention(*heads)
                x = x + z.transpose(1, 2).flatten(2)
                x = x + torch.cumprod(out(x), 1)
            return x

    trace = cw.open(Odd()).record(torch.randn(2, 5, 8))
    assert "L0.resid_pre" in trace.lift().sites
    assert "L0.resid_post" not in trace.lift().sites
