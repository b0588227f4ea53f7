"""Strings: what units say, on networks where it is known, and on every kind of architecture."""

import pytest
import torch
import transformers
from torch import nn

import cutaway as cw
from cutaway import organisms
from cutaway.errors import InputError
from cutaway.reading import Strings, strings
from cutaway.reading.filters import describe
from cutaway.reading.nearest import Table

SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}


def hugging(name: tuple[str, str], **more: object) -> nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name[0]}Config")(**more)
    return getattr(transformers, name[1])(config).eval()


def gpt2() -> cw.Network:
    model = hugging(("GPT2", "GPT2LMHeadModel"), n_layer=2, n_embd=32, n_head=4, vocab_size=90, n_positions=16)
    for name, parameter in model.named_parameters():
        if "ln_" in name and name.endswith("weight"):
            parameter.data.uniform_(0.5, 1.5)
    return cw.open(model)


@pytest.fixture(scope="module")
def small() -> cw.Trace:
    return gpt2().record(torch.tensor([[1, 2, 3]]), use_cache=False)


def section(found: Strings, unit: str, side: str) -> dict:
    (row,) = [row for row in found.rows(site=unit, side=side, top=None) if row["site"] == unit]
    return row


@pytest.mark.parametrize("norm", ["unit", "frozen", "none"])
def test_a_neuron_writes_what_its_weights_times_the_unembedding_say(small: cw.Trace, norm: str) -> None:
    model = small.net.module
    w = model.transformer.h[0].mlp.c_proj.weight[7]
    if norm != "none":
        w = (w - w.mean()) * model.transformer.ln_f.weight
    scores = (model.lm_head.weight @ w).detach()
    row = section(strings(small, norm=norm, top=4), "L0.mlp.n7", "writes")
    assert [entry["id"] for entry in row["top"]] == scores.topk(4).indices.tolist()
    assert [entry["id"] for entry in row["low"]] == (-scores).topk(4).indices.tolist()


def test_a_neuron_reads_what_the_embedding_times_its_weights_say(small: cw.Trace) -> None:
    block = small.net.module.transformer.h[1]
    w = block.mlp.c_fc.weight[:, 5] * block.ln_2.weight
    scores = (small.net.module.transformer.wte.weight @ (w - w.mean())).detach()
    row = section(strings(small), "L1.mlp.n5.in", "reads")
    assert [entry["id"] for entry in row["top"]] == scores.topk(6).indices.tolist()


def test_streaming_finds_the_same_as_the_whole_product() -> None:
    torch.manual_seed(0)
    table, directions = Table(torch.randn(9001, 24), "t"), torch.randn(700, 24)
    table.fast = table.rows.mT.to(torch.bfloat16)  # the coarse product, whatever this machine would choose
    found = table.nearest(directions, 5)
    scores = directions / directions.norm(dim=1, keepdim=True) @ table.rows.mT
    assert torch.equal(found.top, scores.topk(5).indices) and torch.equal(found.low, (-scores).topk(5).indices)
    peak = (scores.max(1).values - scores.mean(1)).maximum(scores.mean(1) - scores.min(1).values)
    torch.testing.assert_close(found.peak, peak / scores.std(1, correction=0), rtol=1e-4, atol=1e-4)


def test_random_directions_stand_at_zero_and_a_planted_one_high() -> None:
    torch.manual_seed(5)
    table = Table(torch.randn(5000, 64), "t")
    mean, spread = table.control(256, 0)
    drawn = (table.nearest(torch.randn(400, 64), 1).peak - mean) / spread
    assert abs(float(drawn.mean())) < 0.2 and 0.8 < float(drawn.std()) < 1.2
    planted = (table.nearest(table.rows[17:18], 1).peak - mean) / spread
    assert float(planted) > 10


def test_the_induction_head_copies_and_the_distractors_do_not() -> None:
    organism = organisms.load("induction")
    found = strings(cw.open("induction").record(organism.pairs(2, 0).clean))
    copying = {row["site"]: row["text"] for row in found.rows(side="ov writes", top=None)}
    assert "copying +1.00" in copying["L1.attn.h1"]
    assert all("copying +0.00" in text for name, text in copying.items() if name != "L1.attn.h1")


def test_conv_filters_are_colours_and_stripes() -> None:
    across = torch.cos(2 * torch.pi * torch.arange(12) / 4).expand(12, 12)
    grey, red = across.expand(3, 12, 12), torch.stack([across.T, -across.T / 2, -across.T / 2])
    (first, second, third), z = describe(torch.stack([grey, red, torch.ones(3, 12, 12)]), 64, 0)
    assert first == "black–white, vertical stripes of 4.0 pixels (100% one colour)"
    assert second.startswith("red–cyan, horizontal stripes of 4.0 pixels")
    assert third.startswith("black–white, even") and float(z.min()) > 3


def test_shapes_are_told_from_colours() -> None:
    organism = organisms.load("shapes")
    assert organism.truth is not None
    trace = cw.open("shapes").record(organism.pairs(2, 0).clean)
    found = strings(trace, labels=organism.truth.figures["outputs"])
    sees = {row["site"]: row["text"] for row in found.rows(side="sees", top=None)}
    assert all(sees[f"L0.conv.c{channel}.in"].startswith("black–white") for channel in range(4))
    assert not any(sees[f"L0.conv.c{channel}.in"].startswith("black–white") for channel in (4, 5, 6))
    assert section(found, "L2.conv.c8", "writes")["top"][0]["entry"] == "red"
    assert {row["side"] for row in found.rows("triangle", top=None)} == {"writes"}


def test_grep_site_and_errors(small: cw.Trace) -> None:
    found = strings(small)
    rows = found.rows("^embed 3$|^output 3$", top=None)
    assert rows and all(any(entry["id"] == 3 for entry in (*row["top"], *row["low"])) for row in rows)
    assert {row["site"].split(".")[0] for row in found.rows(site="L1", top=None)} == {"L1"}
    with pytest.raises(InputError, match="regular expression"):
        found.rows("(")
    with pytest.raises(InputError, match="final norm"):
        strings(small, norm="folded")
    with pytest.raises(InputError, match="outputs"):
        strings(small, labels=["a"])


class Gated(nn.Module):
    """An LSTM over words with a read-out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cell, self.out = nn.Embedding(12, 6), nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 12)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(self.cell(self.embed(ids))[0][:, -1])


class Pictures(nn.Module):
    """Convolutions with batch norm, and a residual one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 5, padding=2, bias=False), nn.BatchNorm2d(6)
        self.second, self.out = nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = x + torch.relu(self.second(x))
        return self.out(x.mean((2, 3)))


IDS = torch.tensor([[1, 2, 3, 4]])
LLAMA = {**SMALL, "vocab_size": 90, "num_key_value_heads": 2}
VIT = {**SMALL, "image_size": 16, "patch_size": 8, "num_labels": 5}
MADE = {
    "gpt2": (lambda: gpt2(), IDS, {"reads", "writes", "ov reads", "ov writes", "qk query", "qk key"}),
    "llama": (lambda: hugging(("Llama", "LlamaForCausalLM"), **LLAMA), IDS, {"reads", "writes", "ov writes", "qk key"}),
    "bert": (lambda: hugging(("Bert", "BertForMaskedLM"), **SMALL, vocab_size=90), IDS, {"reads", "writes", "qk key"}),
    "vit": (lambda: hugging(("ViT", "ViTForImageClassification"), **VIT), torch.randn(1, 3, 16, 16),
            {"sees", "writes", "ov writes"}),
    "lstm": (lambda: Gated().eval(), IDS, {"reads", "writes"}),
    "convolutions": (lambda: Pictures().eval(), torch.randn(1, 3, 12, 12), {"sees", "writes"}),
    "perceptron": (lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(2, 4),
                   {"reads", "writes"}),
}  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_every_kind_of_network_says_something(name: str) -> None:
    make, inputs, sides = MADE[name]
    torch.manual_seed(0)
    trace = cw.open(make()).record(inputs)
    found = strings(trace)
    assert {section.side for section in found.sections} >= sides, str(found)
    assert all(len(section.names) == len(section.z) for section in found.sections)
    assert found.rows(top=3)
