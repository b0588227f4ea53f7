"""Virtual weights against products of the networks' own weight matrices, and against what heads do in a run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import cutaway as cw
from cutaway.errors import InputError, SiteError
from cutaway.lift.factored import Factored
from cutaway.lift.heads import Heads
from cutaway.lift.responses import plain_units
from zoo import ZOO, case, error

ATTENDING = [name for name, entry in ZOO.items() if any(part.endswith(".attn") for part in entry.expected)]
MIXED = {"segformer": "its keys and values are made from several positions by a convolution"}
CENTRE = torch.eye(32) - 1 / 32


def normed(trace: cw.Trace, site: str, weight: Tensor, norm: str, centred: bool, eps: float) -> Tensor:
    """The linear part of a norm [32, 32] at the last position of the first example."""
    x = trace[site][0, -1]
    x = x - x.mean() if centred else x
    scale = (x.square().mean() + eps).rsqrt() if norm == "frozen" else 1.0
    return (CENTRE if centred else torch.eye(32)) @ torch.diag(weight) * scale


def columns(weight: Tensor, head: int, size: int = 8) -> Tensor:
    return weight[:, head * size : (head + 1) * size]


@pytest.mark.parametrize("norm", ["frozen", "unit"])
@pytest.mark.parametrize("head", [0, 3])
def test_gpt2_by_hand(norm: str, head: int) -> None:
    trace, block = case("gpt2").trace, case("gpt2").module.transformer.h[1]
    into = normed(trace, "L1.resid_pre", block.ln_1.weight, norm, True, 1e-5)
    q, k, v = (into @ columns(part, head) for part in block.attn.c_attn.weight.split(32, 1))
    out = columns(block.attn.c_proj.weight.T, head).T
    found = cw.ov(trace, f"L1.attn.h{head}", norm=norm)
    assert error(found.dense(), v @ out) <= 1e-5
    assert error(cw.qk(trace, f"L1.attn.h{head}", norm=norm).dense(), q @ k.T) <= 1e-5
    assert error(cw.ov(trace, "L1.attn", norm=norm).dense()[head], v @ out) <= 1e-5
    assert found.left.shape == (32, 8) and found.right.shape == (8, 32)


@pytest.mark.parametrize("distance", [0, 2])
def test_llama_by_hand(distance: int) -> None:
    """Grouped queries: heads 2 and 3 read the second key and value. Rotary embedding: the key is turned back."""
    trace, block = case("llama").trace, case("llama").module.model.layers[1]
    gain, attention = torch.diag(block.input_layernorm.weight), block.self_attn
    angles = distance * 10000 ** (-torch.arange(0, 8, 2) / 8)
    turn = torch.zeros(8, 8)
    turn[range(4), range(4)] = turn[range(4, 8), range(4, 8)] = angles.cos()
    turn[range(4), range(4, 8)], turn[range(4, 8), range(4)] = angles.sin(), -angles.sin()
    for head in range(4):
        q = gain @ columns(attention.q_proj.weight.T, head)
        k = gain @ columns(attention.k_proj.weight.T, head // 2)
        v = gain @ columns(attention.v_proj.weight.T, head // 2)
        found = cw.qk(trace, f"L1.attn.h{head}", distance=distance, norm="unit")
        assert error(found.dense(), q @ turn @ k.T) <= 1e-5
        out = columns(attention.o_proj.weight, head).T
        assert error(cw.ov(trace, f"L1.attn.h{head}", norm="unit").dense(), v @ out) <= 1e-5


def test_bert_by_hand() -> None:
    """Heads read what the norm on the stream gave, and between one layer and the next that norm is a component."""
    trace, block = case("bert").trace, case("bert").module.bert.encoder.layer[1].attention
    q, k, v = (getattr(block.self, part).weight.T for part in ("query", "key", "value"))
    out = block.output.dense.weight.T
    assert error(cw.qk(trace, "L1.attn.h1").dense(), columns(q, 1) @ columns(k, 1).T) <= 1e-5
    assert error(cw.ov(trace, "L1.attn.h1").dense(), columns(v, 1) @ out[8:16]) <= 1e-5
    assert cw.composition(trace).scores.isnan().all()
    with pytest.raises(InputError, match="other components lie between"):
        cw.virtual_weights(trace, "L1.attn.h0.q", "L0.attn.h1")


def test_t5_by_hand() -> None:
    """Cross-attention: queries from the decoder's stream, keys and values from what the encoder ended with."""
    trace, module = case("t5").trace, case("t5").module
    block = module.decoder.block[0].layer[1]
    mine, theirs = torch.diag(block.layer_norm.weight), torch.diag(module.encoder.final_layer_norm.weight)
    attention = block.EncDecAttention
    q, k, v = (getattr(attention, part).weight.T for part in "qkv")
    found = cw.qk(trace, "L3.attn.h2", norm="unit").dense()
    assert error(found, mine @ columns(q, 2) @ columns(k, 2).T @ theirs) <= 1e-5
    found = cw.ov(trace, "L3.attn.h2", norm="unit").dense()
    assert error(found, theirs @ columns(v, 2) @ columns(attention.o.weight, 2).T) <= 1e-5


def test_kernels_of_a_convolutional_network() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(5 * 36, 2),
    ).eval()  # fmt: skip
    trace = cw.open(module).record(torch.randn(2, 2, 12, 12))
    gain = 1 / (1 + 1e-5) ** 0.5
    found = cw.virtual_weights(trace, "L1.conv.c2.in", "L0.conv.c1")
    assert error(found.kernel, module[2].weight[2, 1].detach() * gain) <= 1e-6
    whole = cw.virtual_weights(trace, "L1.conv.in", "L0.conv")
    assert error(whole.kernel, module[2].weight.detach().transpose(0, 1) * gain) <= 1e-6
    assert error(whole.matrix, whole.kernel.sum((-1, -2))) <= 1e-5
    with pytest.raises(InputError, match="other components"):
        cw.virtual_weights(trace, "L2.conv.in", "L0.conv")


def test_two_convolutions_in_a_row_are_one_kernel() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    trace = cw.open(nn.Sequential(module, nn.Flatten(), nn.Linear(64, 2))).record(torch.randn(2, 2, 14, 14))
    found = cw.virtual_weights(trace, "L1.conv.c3.in", "L0.conv.c2")
    assert error(found.matrix, module[3].weight[3, 2].sum().detach() / 4) <= 1e-5


def test_components_of_gpt2() -> None:
    trace, module = case("gpt2").trace, case("gpt2").module.transformer
    first, second, words = module.h[0], module.h[1], module.wte.weight
    head = first.attn.c_proj.weight[8:16]
    middle, last = CENTRE @ torch.diag(second.ln_1.weight), CENTRE @ torch.diag(module.ln_f.weight)
    wanted = {
        ("L1.attn.h2.k", "L0.attn.h1"): head @ middle @ columns(second.attn.c_attn.weight[:, 32:64], 2),
        ("L0.mlp.n3.in", "L0.attn.h1"): head @ CENTRE @ torch.diag(first.ln_2.weight) @ first.mlp.c_fc.weight[:, 3],
        ("L1.attn.h0.q", "L0.mlp.n7"): first.mlp.c_proj.weight[7] @ middle @ second.attn.c_attn.weight[:, :8],
        ("logits", "L1.mlp.n7"): second.mlp.c_proj.weight[7] @ last @ words.T,
        ("logits", "embed"): last @ words.T,
        ("L0.attn.h1.v", "pos_embed"): CENTRE @ torch.diag(first.ln_1.weight) @ first.attn.c_attn.weight[:, 72:80],
    }
    for (reader, writer), want in wanted.items():
        found = cw.virtual_weights(trace, reader, writer, norm="unit")
        assert error(found.matrix, want) <= 1e-5, (reader, writer)
        assert found.norm() == pytest.approx(want.norm().item(), rel=1e-4) and "scale one" in found.note
    assert cw.virtual_weights(trace, "L1.attn.q", "L0.attn").matrix.shape == (4, 8, 4, 8)


def test_steps_of_a_recurrent_network() -> None:
    trace, module = case("rnn").trace, case("rnn").module
    layer = next(inner for inner in module.modules() if isinstance(inner, nn.RNN))
    found = cw.virtual_weights(trace, "L0.rnn@2.in", "L0.rnn@1")
    assert error(found.matrix, layer.weight_hh_l0.T) <= 1e-5
    assert error(cw.virtual_weights(trace, "L0.rnn@2.u3.in", "L0.rnn@1.u4").matrix, layer.weight_hh_l0[3, 4]) <= 1e-5


@pytest.mark.parametrize("kind", "qkv")
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "deepseek-v3"])
def test_composition_of_all_pairs(name: str, kind: str) -> None:
    trace = case(name).trace
    found = cw.composition(trace, kind)
    ov = [cw.ov(trace, f"L{layer}.attn", norm="unit").dense() for layer in (0, 1)]
    qk = cw.qk(trace, "L1.attn", norm="unit").dense()
    reads = {"q": qk, "k": qk.mT, "v": ov[1]}[kind]
    products = torch.einsum("wij,hjk->whik", ov[0], reads)
    want = products.norm(dim=(2, 3)) / ov[0].norm(dim=(1, 2))[:, None] / reads.norm(dim=(1, 2))
    assert error(found.scores[:4, 4:], want) <= 1e-4
    assert found.scores[4:].isnan().all() and found.scores[:, :4].isnan().all()
    writer, reader, score = found.top(1)[0]
    assert score == pytest.approx(float(want.max()), rel=1e-4) and writer[:3] == "L0." and reader[:3] == "L1."


def first_example(heads: Heads, x: Tensor) -> Tensor:
    """What stands at the stated position of the first example."""
    if x.ndim == 3:
        return x[heads.position, 0] if heads.flow.time_major else x[0, heads.position]
    return x[heads.position * heads.flow.batch if heads.flow.time_major else heads.position]


def one_hot(trace: cw.Trace, layer: str, key: int) -> cw.Trace:
    def pointed(pattern: Tensor) -> Tensor:
        return torch.zeros_like(pattern).index_fill(-1, torch.tensor(key), 1.0)

    return trace.replay(cw.apply(f"{layer}.pattern", pointed))


def found_in(rows: Tensor, want: Tensor) -> tuple[int, ...]:
    """Where the last axis of `rows` is `want`."""
    apart = (rows - want).abs().amax(-1) / want.abs().max()
    assert apart.min() <= 1e-4, float(apart.min())
    return tuple(int(axis) for axis in torch.unravel_index(apart.argmin(), apart.shape))


@pytest.mark.parametrize("name", ATTENDING)
def test_ov_is_what_a_head_does_when_it_attends_to_one_key(name: str) -> None:
    if name in MIXED:
        pytest.skip(MIXED[name])
    plain = case(name).trace
    for block in plain.lift().blocks:
        if block.kind != "attention":
            continue
        heads = Heads(plain, block.name, "frozen", -1, 0)
        x = plain[plain.lift().tape.graph.site(heads.entrance("v"))]
        units = plain_units(heads.flow, heads.entrance("v"))
        if len(units.places) > 1:  # an image, whose norm is over all places: they sum up
            found = cw.ov(plain, block.name)
            values = torch.einsum("bchw,ncr->bnr", x, found.left) + found.offset * x[0, 0].numel()
            assert error(values[0], plain[f"{block.name}.v"].sum(-2)[0]) <= 1e-4  # at the first example's scale
            continue
        row = first_example(heads, x)
        head = block.slots.count - 1
        values = plain[f"{block.name}.v"]
        grouped = values.flatten(0, -4) if values.ndim > 4 else values
        share = head * (grouped.shape[-3] if grouped.ndim == 4 else 1) // block.slots.count
        grouped = grouped[:, share] if grouped.ndim == 4 else grouped
        found = cw.ov(plain, f"{block.name}.h{head}")
        _, key = found_in(grouped, row @ found.left + found.offset)
        edited = one_hot(plain, block.name, key)
        axis = plain.lift().sites[f"{block.name}.result"].axes.index("head")
        result = edited[f"{block.name}.result"].select(axis, head)
        found_in(result, cw.ov(edited, f"{block.name}.h{head}")(row))


@pytest.mark.parametrize("name", ATTENDING)
def test_qk_is_made_of_what_the_attention_reads(name: str) -> None:
    trace = case(name).trace
    for block in trace.lift().blocks:
        if block.kind != "attention" or name in MIXED:
            continue
        heads = Heads(trace, block.name, "frozen", -1, 0)
        if heads.ports["q"].value not in heads.flow.activations:  # queries that are learnt
            with pytest.raises(InputError, match="depends on the inputs"):
                cw.qk(trace, block.name)
            continue
        found = cw.qk(trace, block.name)
        for port, factor in (("q", found.left), ("k", found.right.mT)):
            entrance = heads.entrance(port)
            x = trace[trace.lift().tape.graph.site(entrance)]
            if len(plain_units(heads.flow, entrance).places) > 1:
                continue
            row = first_example(heads, x)
            offset = heads.offset(port, heads.position)
            got = row @ factor + heads.picked(offset)[0].squeeze(-2)
            values = trace[f"{block.name}.{port}"]
            values = values.flatten(0, -4) if values.ndim > 4 else values
            values = values if values.ndim == 4 else values[:, None]
            values = values.repeat_interleave(len(got) // values.shape[1], 1)
            found_in(values.movedim(1, -2).flatten(-2), got.flatten())


def test_norms_of_an_edited_run_are_that_runs() -> None:
    found = case("llama")
    args, kwargs = found.inputs()
    edit = cw.scale("L0.resid_mid[pos=-1]", 3.0)
    replayed, live = found.trace.replay(edit), found.net.record(*args, interventions=[edit], **kwargs)
    plain, edited = cw.ov(found.trace, "L1.attn").dense(), cw.ov(replayed, "L1.attn").dense()
    assert error(edited, cw.ov(live, "L1.attn").dense()) <= 1e-5
    assert error(edited, plain) > 0.1
    unit = [cw.ov(run, "L1.attn", norm="unit").dense() for run in (replayed, found.trace)]
    assert torch.equal(*unit)


def test_names_and_positions_that_do_not_exist_are_refused() -> None:
    trace = case("gpt2").trace
    for name in ("L7.attn.h0", "L0.attn.h9", "L0.mlp"):
        with pytest.raises(SiteError):
            cw.ov(trace, name)
    for reader, writer in (("L1.attn.h0", "embed"), ("L1.attn.h9.q", "embed"), ("logits", "L0.attn.h1.q")):
        with pytest.raises(SiteError):
            cw.virtual_weights(trace, reader, writer)
    for options in ({"distance": 7}, {"position": 9}, {"distance": -1}, {"norm": "folded"}):
        with pytest.raises(InputError):
            cw.qk(trace, "L0.attn.h0", **options)
    with pytest.raises(InputError, match="kind"):
        cw.composition(trace, "o")


def test_factored_matrices() -> None:
    torch.manual_seed(0)
    left, right = torch.randn(3, 12, 4), torch.randn(3, 4, 9)
    left[0, :, 2:] = 0
    found = Factored(left, right)
    dense = left @ right
    assert found.shape == dense.shape and found.T.shape == (3, 9, 12)
    assert error(found.norm(), dense.norm(dim=(1, 2))) <= 1e-5
    assert error(found.singular_values(), torch.linalg.svdvals(dense)[:, :4]) <= 1e-5
    assert found.rank().tolist() == [2, 4, 4]
    assert 1 < float(found.effective_rank()[0]) <= 2 < float(found.effective_rank()[1]) <= 4
    assert error((found @ found.T).dense(), dense @ dense.mT) <= 1e-5
    assert error(Factored(left[1], right[1], torch.ones(4))(torch.ones(12)), (left[1].sum(0) + 1) @ right[1]) <= 1e-5
