"""Inside every attention of the zoo: scores, pattern, z and each head's result fit together, and can be edited."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import cutaway as cw
from cutaway.errors import SiteError
from zoo import ZOO, case, error

ATTENDING = [name for name, entry in ZOO.items() if any(part.endswith(".attn") for part in entry.expected)]
SINKS = {"gpt-oss"}


def attentions(name: str) -> list[str]:
    return [block.name for block in case(name).trace.lift().blocks if block.kind == "attention"]


def spread(values: Tensor, like: Tensor) -> Tensor:
    """Values of grouped heads, repeated for each head."""
    axis = like.ndim - 3
    return values.repeat_interleave(like.shape[axis] // values.shape[axis], axis) if like.ndim > 3 else values


@pytest.mark.parametrize("name", ATTENDING)
def test_patterns_are_distributions_and_give_z(name: str) -> None:
    trace = case(name).trace
    assert attentions(name)
    for layer in attentions(name):
        scores, pattern, values, z = (trace[f"{layer}.{part}"] for part in ("scores", "pattern", "v", "z"))
        assert error(pattern.sum(-1), torch.ones(pattern.shape[:-1])) <= 1e-6
        assert error(torch.softmax(scores, -1), pattern) <= 1e-6
        keys = values.shape[-2]
        assert pattern.shape[-1] == keys + (name in SINKS), layer  # a sink is one more key, of value zero
        assert error(pattern[..., :keys] @ spread(values, z), z) <= 1e-5


@pytest.mark.parametrize("name", ATTENDING)
def test_results_add_up_to_what_the_attention_adds(name: str) -> None:
    """Results and the bias: what is left of the attention's output without them is the same for every example."""
    trace = case(name).trace
    sites = trace.lift().sites
    for layer in attentions(name):
        result, axes = trace[f"{layer}.result"], sites[f"{layer}.result"].axes
        assert axes.count("head") == 1 and result.shape[axes.index("head")] == count(name, layer)
        total = result.sum(axes.index("head"))
        silent = trace.replay(cw.zero(f"{layer}.z"))
        assert not silent[f"{layer}.result"].any()
        out = layer.replace(".attn", ".attn_out")
        if out in sites:
            assert error(total + silent[out], trace[out]) <= 1e-5 or is_normed(name)
            assert error(total + bias(name, layer), trace[out]) <= 1e-5


def count(name: str, layer: str) -> int:
    return next(block for block in case(name).trace.lift().blocks if block.name == layer).slots.count


def is_normed(name: str) -> bool:
    """Whether a norm stands behind the out-projection, whose scale is not what it is when z is zero."""
    return name in ("gemma2", "gemma3", "olmo2")


def bias(name: str, layer: str) -> Tensor:
    """What the attention adds when no head says anything, norms as they were in the run (none has a bias here)."""
    out = layer.replace(".attn", ".attn_out")
    return torch.zeros(1) if is_normed(name) else case(name).trace.replay(cw.zero(f"{layer}.z"))[out]


@pytest.mark.parametrize("name", ATTENDING)
def test_a_head_is_zero_when_its_z_is(name: str) -> None:
    trace = case(name).trace
    layer = attentions(name)[0]
    if is_normed(name):
        pytest.skip("the norm behind the heads changes its scale")
    edited = trace.replay(cw.zero(f"{layer}.z[head=0]"))
    before, after = trace[f"{layer}.result"], edited[f"{layer}.result"]
    axis = trace.lift().sites[f"{layer}.result"].axes.index("head")
    assert not after.select(axis, 0).any()
    if before.shape[axis] > 1:
        assert error(after.narrow(axis, 1, 1), before.narrow(axis, 1, 1)) <= 1e-5


@pytest.mark.parametrize("name", ATTENDING)
def test_patterns_can_be_edited(name: str) -> None:
    trace = case(name).trace
    layer = attentions(name)[-1]
    halved = trace.replay(cw.scale(f"{layer}.pattern", 0.5), until=f"{layer}.z").output[0]
    assert error(halved, trace[f"{layer}.z"] / 2) <= 1e-5


def test_results_are_read_and_edited_through_z() -> None:
    trace = case("gpt2").trace
    assert torch.equal(trace["blocks.1.attn.hook_result"], trace["L1.attn.result"])
    assert trace["L1.attn.result[head=2, pos=-1]"].shape == (3, 32)
    weight = case("gpt2").module.transformer.h[1].attn.c_proj.weight
    assert error(trace["L1.attn.result[head=2]"], trace["L1.attn.z"][:, 2] @ weight[16:24]) <= 1e-5
    with pytest.raises(SiteError, match=r"edit 'L1\.attn\.z' instead"):
        trace.replay(cw.zero("L1.attn.result[head=2]"))
    with pytest.raises(SiteError, match="only be read"):
        trace.replay(until="L1.attn.result")
    args, kwargs = case("gpt2").inputs()
    with pytest.raises(SiteError, match="only be read"):
        case("gpt2").net.record(*args, keep=["L1.attn.result"], **kwargs)
    edit = cw.zero("L0.attn.h1")
    replayed, live = trace.replay(edit), case("gpt2").net.record(*args, interventions=[edit], **kwargs)
    assert error(replayed["L1.attn.result"], live["L1.attn.result"]) <= 1e-5
    assert error(replayed["L1.attn.result"], trace["L1.attn.result"]) > 0.1


NORMS = {  # name: (norm of a layer's attention, of its MLP, the last norm)
    "gpt2": ("transformer.h.1.ln_1", "transformer.h.1.ln_2", "transformer.ln_f"),
    "opt": ("model.decoder.layers.1.self_attn_layer_norm", "model.decoder.layers.1.final_layer_norm",
            "model.decoder.final_layer_norm"),
    "llama": ("model.layers.1.input_layernorm", "model.layers.1.post_attention_layernorm", "model.norm"),
    "qwen3": ("model.layers.1.input_layernorm", "model.layers.1.post_attention_layernorm", "model.norm"),
}  # fmt: skip


@pytest.mark.parametrize("name", NORMS)
def test_norms_of_the_stream_have_the_names_of_transformer_lens(name: str) -> None:
    """What comes out before gain and bias, and what the stream was divided by."""
    trace, module = case(name).trace, case(name).module
    for alias, path in zip(("blocks.1.ln1", "blocks.1.ln2", "ln_final"), NORMS[name], strict=True):
        norm = module.get_submodule(path)
        normalized, scale = trace[f"{alias}.hook_normalized"], trace[f"{alias}.hook_scale"]
        out = normalized * norm.weight + getattr(norm, "bias", 0)
        assert error(out.reshape(trace[path].shape), trace[path]) <= 1e-5
        assert scale.shape == (*normalized.shape[:-1], 1)
        stream = trace[{"blocks.1.ln1": "L1.resid_pre", "blocks.1.ln2": "L1.resid_mid"}.get(alias, "L1.resid_post")]
        stream = stream - stream.mean(-1, keepdim=True) if hasattr(norm, "bias") else stream
        assert error(normalized * scale, stream) <= 1e-5
