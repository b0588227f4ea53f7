"""On every network of the zoo, what the writers contribute adds up to what each reader reads; a wrong edge shows."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from networks import gpt2_runs
from torch import Tensor, nn
from torch.nn import functional as F

import cutaway as cw
from cutaway.attribution.edges import EdgeGraph
from cutaway.attribution.mixture import evaluate
from cutaway.attribution.sums import edge_error, edge_errors
from zoo import ZOO, case, error

WRITERS_NORMS = ("gemma2", "gemma3", "olmo2")


@pytest.mark.parametrize("name", ZOO)
def test_contributions_add_up_to_the_reads(name: str) -> None:
    errors = edge_errors(case(name).trace)
    assert all(found <= 1e-5 for found in errors.values()), errors
    if ZOO[name].expected:
        assert errors


def broken(change) -> dict[str, float]:
    """The errors of the tiny GPT-2 after its lifting was spoilt."""
    trace = gpt2_runs()[0]
    lifted = copy.copy(trace.lift())
    change(lifted)
    trace._lifted = lifted
    return edge_errors(trace)


def test_a_writer_that_is_missing_shows() -> None:
    def without_embedding(lifted) -> None:
        lifted.sources = []

    def without_an_mlp(lifted) -> None:
        lifted.blocks = [block for block in lifted.blocks if block.name != "L0.mlp"]

    assert broken(lambda lifted: None)["L1.attn.q"] <= 1e-5
    assert broken(without_embedding)["L0.attn.q"] > 0.1
    found = broken(without_an_mlp)
    assert found["L1.attn.q"] == found["logits"] == float("inf")
    assert found["L0.attn.v"] <= 1e-5


def test_a_run_without_edges_has_no_error() -> None:
    assert edge_error(cw.open(nn.Identity()).record(torch.randn(2, 3))) in (None, 0.0)


def test_dropped_values_and_interventions_do_not_matter() -> None:
    found = case("llama")
    args, kwargs = found.inputs()
    lean = found.net.record(*args, keep="none", **kwargs)
    assert edge_errors(lean) == edge_errors(found.trace)
    edited = found.trace.replay(cw.scale("L0.resid_mid", 2.0))
    assert edge_errors(edited) == edge_errors(found.trace)


class Normed(nn.Module):
    """Every norm that torch does in one call, and a maximum, between linear maps and a sum."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.third, self.readout = nn.Conv2d(6, 4, 3, padding=1), nn.Linear(4 * 36, 3)
        self.norm = NORMS[norm]

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = self.norm(x + self.second(x).tanh())
        return self.readout(self.third(x).sigmoid().flatten(1))


NORMS = {
    "layer": lambda x: F.layer_norm(x, [6, 6], torch.rand(6, 6, generator=torch.Generator().manual_seed(1)), None),
    "group": lambda x: F.group_norm(x, 3, torch.linspace(0.5, 1.5, 6), torch.ones(6)),
    "instance": lambda x: F.instance_norm(x, weight=torch.linspace(0.5, 1.5, 6)),
    "batch": lambda x: F.batch_norm(x, None, None, torch.linspace(0.5, 1.5, 6), training=True),
    "torch group": lambda x: torch.group_norm(x, 2),
    "rms": lambda x: F.rms_norm(x, [6], torch.linspace(0.5, 1.5, 6)),
    "local": lambda x: F.local_response_norm(x, 3, k=0.5),
    "normalize": lambda x: F.normalize(x, dim=1),
    "maximum": lambda x: F.max_pool2d(x, 3, 1, 1),
    "written out": lambda x: (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 0.1),
    "by its sum": lambda x: x / (x.abs().sum((2, 3), keepdim=True) + 0.1),
    "squashed": lambda x: x * x.square().sum(1, keepdim=True) / (1 + x.square().sum(1, keepdim=True)),
}


@pytest.mark.parametrize("norm", NORMS)
def test_norms_are_frozen_as_they_are(norm: str) -> None:
    trace = cw.open(Normed(norm)).record(torch.randn(3, 2, 6, 6))
    errors = edge_errors(trace)
    assert set(errors) >= {"L0.conv.in", "L1.conv.in", "L2.conv.in"}
    assert edge_error(trace) <= 1e-5, errors


def test_half_precision_is_judged_by_its_own_rounding() -> None:
    trace = cw.open(copy.deepcopy(case("gpt2").module).bfloat16()).record(torch.randint(3, 40, (2, 5)), use_cache=False)
    assert edge_error(trace) <= 1e-5


class PostNormed(nn.Module):
    """Attention and an MLP whose outputs go through torch's layer norm before they are added."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.unembed = nn.Embedding(41, 16), nn.Linear(16, 41)
        self.mix = nn.ModuleList(nn.Linear(16, 16) for _ in range(8))
        self.up, self.down = (nn.ModuleList([nn.Linear(*size), nn.Linear(*size)]) for size in ((16, 24), (24, 16)))
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(4))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for layer in range(2):
            q, k, v = (part(x).unflatten(2, (4, 4)).transpose(1, 2) for part in self.mix[4 * layer : 4 * layer + 3])
            z = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
            x = x + self.norms[2 * layer](self.mix[4 * layer + 3](z))
            x = x + self.norms[2 * layer + 1](self.down[layer](self.up[layer](x).tanh()))
        return self.unembed(x)


def two_runs(name: str) -> tuple[cw.Trace, cw.Trace]:
    if name == "post-normed":
        net = cw.open(PostNormed())
        return net.record(torch.randint(0, 41, (3, 6))), net.record(torch.randint(0, 41, (3, 6)))
    args, kwargs = case(name).other()
    return case(name).trace, case(name).net.record(*args, **kwargs)


@pytest.mark.parametrize("name", [*WRITERS_NORMS, "post-normed"])
def test_a_norm_before_the_stream_belongs_to_the_writer(name: str) -> None:
    """Corrupting one edge into the logits moves the stream by what that head wrote, at its own norm's scale."""
    trace, other = two_runs(name)
    graph, metric = EdgeGraph(trace, other), cw.logit_difference(3, 4)
    row = graph.readers.index("L0.act.in" if name == "gemma2" else "logits")  # logits are capped by a nonlinearity
    masks = torch.ones(3, *graph.shape(), dtype=torch.bool)
    masks[1, row, graph.writers.index("L1.attn.h2")] = False
    masks[2, row, [graph.writers.index("L0.attn.h1"), graph.writers.index("L1.mlp")]] = False
    got = evaluate(graph, metric, masks)

    def moved(written: Callable[[cw.Trace], Tensor]) -> Tensor:
        change = written(other) - written(trace)
        return metric(trace.replay(cw.add("L1.resid_post", change)).logits, trace.net)

    def head(run: cw.Trace, layer: int, number: int) -> Tensor:
        """A head's result and its share of what is added whatever heads say."""
        result, whole = run[f"L{layer}.attn.result"], run[f"L{layer}.attn_out"]
        return result[:, :, number] + (whole - result.sum(2)) / 4

    wanted = [metric(trace.logits, trace.net), moved(lambda run: head(run, 1, 2))]
    wanted.append(moved(lambda run: head(run, 0, 1) + run["L1.mlp_out"]))
    assert error(got, torch.stack(wanted)) <= 1e-5


def test_a_norm_in_training_keeps_its_statistics() -> None:
    found = case("resnet training")
    before = {name: buffer.clone() for name, buffer in found.module.named_buffers()}
    edge_errors(found.trace)
    for name, buffer in found.module.named_buffers():
        assert torch.equal(buffer, before[name]), name
