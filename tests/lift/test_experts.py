"""Mixtures of experts are one block a layer: the router, its weights, what each expert adds; in any implementation."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from entry import Entry
from language import DEEPSEEK, EXPERTS, LLAMA
from parts import parts
from pretrained import entry
from torch import Tensor, nn
from torch.nn import functional as F

import cutaway as cw
from cutaway.attribution.edges import EdgeGraph
from cutaway.attribution.sums import edge_error
from cutaway.errors import InputError
from cutaway.run.trace import Trace
from zoo import error, hooked

WORDS = 41


class Switch(nn.Module):
    """Experts as modules, each token sent to one of them (Fedus et al. 2021, arXiv:2101.03961)."""

    def __init__(self, chosen: int = 1) -> None:
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(WORDS, 8), nn.LayerNorm(8), nn.Linear(8, WORDS)
        self.router, self.chosen = nn.Linear(8, 3), chosen
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8)) for _ in range(3))

    def mixed(self, x: Tensor, only: int | None = None) -> Tensor:
        weights, index = self.router(x).softmax(-1).topk(self.chosen)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            row, place = torch.where(index == number)
            if only in (None, number):
                out = out.index_add(0, row, expert(x[row]) * weights[row, place, None])
        return out

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        y = self.norm(x).flatten(0, 1)
        return self.head(x + self.mixed(y).view_as(x))


class Early(nn.Module):
    """Weights multiply what experts read, not what they give, and every expert sees every token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.router, self.head = nn.Embedding(WORDS, 8), nn.Linear(8, 4), nn.Linear(8, WORDS)
        self.up, self.down = nn.Parameter(torch.empty(4, 8, 12)), nn.Parameter(torch.empty(4, 12, 8))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        y = x.flatten(0, 1)
        values, index = self.router(y).topk(2)
        weights = torch.full((len(y), 4), -torch.inf).scatter(1, index, values).sigmoid()
        read = (y.repeat(4, 1) * weights.T.reshape(-1, 1)).view(4, -1, 8)
        return self.head(x + torch.bmm(F.relu(torch.bmm(read, self.up)), self.down).sum(0).view_as(x))


@cache
def made(way: str) -> tuple[Entry, nn.Module, Any, Trace]:
    """A network, opened and recorded: `kind/way of computing experts`."""
    kind, _, form = way.partition("/")
    if kind == "switch":
        found = Entry(way, lambda: Switch(int(form)).eval(), lambda: ((torch.randint(3, WORDS, (3, 7)),), {}), {})
    else:
        cls, config, options = {
            "mixtral": ("MixtralForCausalLM", "MixtralConfig", {"num_local_experts": 4}),
            "gpt-oss": (
                "GptOssForCausalLM", "GptOssConfig", {"num_local_experts": 4, "head_dim": 8, "sliding_window": 4},
            ),
            "deepseek": ("DeepseekV3ForCausalLM", "DeepseekV3Config", DEEPSEEK),
            "qwen": (
                "Qwen3MoeForCausalLM", "Qwen3MoeConfig", {"num_experts": 4, "moe_intermediate_size": 16, "head_dim": 8},
            ),
        }[kind]  # fmt: skip
        found = entry(way, cls, config, {**LLAMA, **EXPERTS, **options}, {}, 0, attention="eager")
    module, args, kwargs = found.make()
    if kind != "switch":
        module.config._experts_implementation = form
    net = cw.open(module.requires_grad_(False))
    return found, module, net, net.record(*args, **kwargs)


FORMS = ("eager", "batched_mm", "grouped_mm")
WAYS = (
    *(f"mixtral/{form}" for form in FORMS), *(f"gpt-oss/{form}" for form in FORMS),
    *(f"deepseek/{form}" for form in FORMS), "qwen/eager", "qwen/grouped_mm", "switch/1", "switch/2",
)  # fmt: skip


def components(way: str) -> dict[str, tuple[int, int]]:
    if way.startswith("deepseek"):
        return parts(WORDS, "embed", attn=[4, 4], mlp=[48, 16], moe=4)
    return parts(WORDS, "embed", moe=3) if way.startswith("switch") else parts(WORDS, "embed", attn=[4, 4], moe=[4, 4])


@pytest.mark.parametrize("way", WAYS)
def test_experts_are_one_block_however_they_are_computed(way: str) -> None:
    found = made(way)[3].lift()
    assert {part.name: (part.count, part.calls) for part in found.components()} == components(way)
    part = next(part for part in found if part.name == "L0.moe")
    assert part.axis == "expert" and part.reads == ("router", "in")
    assert edge_error(made(way)[3]) <= 1e-5


@pytest.mark.parametrize("way", WAYS)
def test_router_weights_and_results_can_be_read(way: str) -> None:
    trace = made(way)[3]
    router, weights, chosen = trace["L0.moe.router"], trace["L0.moe.weights"], trace["L0.moe.chosen"]
    assert trace.locate("L0.moe.router").axes == ("batch", "pos", "expert")
    assert router.shape[:2] == weights.shape[:2] == chosen.shape[:2] == (3, 7)
    if not way.startswith("deepseek"):  # which chooses by groups, with a bias
        assert torch.equal(router.topk(chosen.shape[-1]).indices.sort(-1).values, chosen.sort(-1).values)
    result, out = trace["L0.moe.result"], trace["L0.moe.out"]
    assert trace.locate("L0.moe.result").axes == ("batch", "pos", "expert", "neuron")
    assert error(result.sum(2), out.view(result.sum(2).shape)) <= 1e-6
    unused = torch.ones_like(result[..., 0], dtype=torch.bool).scatter(-1, chosen, False)
    assert bool((result[unused] == 0).all()) and bool(result[~unused].abs().sum(-1).gt(0).all())


@pytest.mark.parametrize("form", FORMS)
def test_results_are_those_of_the_experts(form: str) -> None:
    """Against the experts written out from their weights, all of them on all tokens."""
    _, module, _, trace = made(f"mixtral/{form}")
    experts, x = module.model.layers[1].mlp.experts, trace["L1.moe.in"]
    gate, up = torch.einsum("bpd,efd->bpef", x, experts.gate_up_proj).chunk(2, -1)
    hidden = F.silu(gate) * up
    weights = torch.zeros(3, 7, 4).scatter(-1, trace["L1.moe.chosen"], trace["L1.moe.weights"])
    want = torch.einsum("bpef,edf,bpe->bped", hidden, experts.down_proj, weights)
    assert error(trace["L1.moe.result"], want) <= 1e-6
    if form == "eager":
        for expert in range(4):
            choices = (trace["L1.moe.chosen"] == expert).unbind(-1)  # rows lie by choice, then by token
            rows = torch.cat([hidden[:, :, expert][chosen] for chosen in choices])
            assert error(trace[f"L1.moe.e{expert}.act"], rows) <= 1e-6
    else:
        assert trace["L1.moe.act"].shape == (3 * 7 * 2, 16)


@pytest.mark.parametrize("way", WAYS)
def test_editing_the_router_is_what_a_hook_does(way: str) -> None:
    """Less of one expert and more of another: tokens are sent elsewhere, in a replay or, where it cannot, live."""
    found, _, _, trace = made(way)
    favour = torch.tensor([-3.0, 4.0, 0.0, 0.0])[: trace["L0.moe.router"].shape[-1]]
    edited = trace.replay(cw.add("L0.moe.router", favour))
    assert edited.receipt[0].times == 1
    args, kwargs = found.make()[1:]
    module = found.make()[0].requires_grad_(False)
    if not way.startswith("switch"):
        module.config._experts_implementation = way.split("/")[1]
    assert error(edited.logits, _with_bias(module, favour, args, kwargs)) <= 1e-5
    assert not torch.equal(edited["L0.moe.chosen"], trace["L0.moe.chosen"])


def _with_bias(module: nn.Module, favour: Tensor, args: Any, kwargs: Any) -> Tensor:
    """The network with a bias on its first router's logits, added where torch computes them."""
    name = next(
        name for name, inner in module.named_modules()
        if name.endswith(("mlp.gate", "mlp.router", "router")) and getattr(inner, "weight", None) is not None
    )  # fmt: skip
    weight, linear = module.get_submodule(name).weight, F.linear

    def biased(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        return linear(x, w, b) + (favour if w is weight or (w.shape == weight.shape and torch.equal(w, weight)) else 0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "linear", biased)
        out = module(*args, **kwargs)
    return out if isinstance(out, Tensor) else out.logits


def test_an_edit_of_a_weight_takes_an_expert_out() -> None:
    found, module, _, trace = made("switch/2")
    x = trace["L0.moe.in"].flatten(0, 1)
    off = torch.where(trace["L0.moe.chosen"] == 1, 0.0, trace["L0.moe.weights"])
    edited = trace.replay(cw.apply("L0.moe.weights", lambda weights: off))
    want = trace["L0.moe.out"].view(21, 8) - module.mixed(x, only=1)
    assert error(edited["L0.moe.out"].view(21, 8), want) <= 1e-6
    assert error(edited["L0.moe.result"][:, :, 1], torch.zeros(3, 7, 8)) == 0


@pytest.mark.parametrize("way", ["mixtral/grouped_mm", "mixtral/batched_mm", "mixtral/eager", "gpt-oss/grouped_mm"])
def test_experts_are_nodes_of_circuits(way: str) -> None:
    found, _, net, clean = made(way)
    torch.manual_seed(5)
    args, kwargs = found.inputs()
    other = net.record(*args, **kwargs)
    graph = EdgeGraph(clean, other)
    assert {f"L1.moe.e{expert}" for expert in range(4)} <= set(graph.writers)
    assert {"L1.moe.router", "L1.moe.in"} <= set(graph.readers)
    apart = (clean.logits - other.logits)[:, -1].detach()
    circuit = cw.find_circuit(clean, other, lambda logits: (logits[:, -1] * apart).sum(-1))
    assert abs(1 - circuit.faithfulness) <= 0.1
    json = circuit.to_dict()
    assert json["universe"]["edges"] == len(graph.edges)


def test_experts_that_a_loop_left_out_cannot_be_mixed_in() -> None:
    found, _, net, clean = made("mixtral/eager")
    torch.manual_seed(5)
    args, kwargs = found.inputs()
    graph = EdgeGraph(clean, net.record(*args, **kwargs))
    part = next(part for part in graph.parts if part.block.name == "L0.moe")
    given = {read.value: clean[f"L0.moe.{read.port}"] for read in part.block.reads}
    given = {value: tensor.view(graph.lifted.flow.shape(value)) for value, tensor in given.items()}
    assert part.inside is not None
    whole = graph.run(part.inside, given)[part.block.write]
    assert error(whole.sum(1), clean["L0.moe.out"]) <= 1e-6
    router = part.block.reads[0].value
    given[router] = given[router] + torch.tensor([0.0, -50.0, 0.0, 0.0])
    with pytest.raises(InputError, match="same experts"):
        graph.run(part.inside, given)


def test_all_ways_of_computing_give_the_same_circuit() -> None:
    circuits = []
    for form in FORMS:
        found, _, net, clean = made(f"mixtral/{form}")
        torch.manual_seed(5)
        args, kwargs = found.inputs()
        other = net.record(*args, **kwargs)
        apart = (clean.logits - other.logits)[:, -1].detach()
        circuits.append(cw.find_circuit(clean, other, lambda logits, d=apart: (logits[:, -1] * d).sum(-1), refine=40))
    assert circuits[0].edges == circuits[1].edges == circuits[2].edges


def test_a_choice_without_experts_is_no_mixture() -> None:
    """A sparse autoencoder keeps its largest latents: a choice, but nothing is computed for what was chosen."""

    class TopK(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode, self.decode = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x: Tensor) -> Tensor:
            values, index = self.encode(x).topk(3)
            return self.decode(torch.zeros(len(x), 16).scatter(-1, index, values))

    lifted = cw.open(TopK()).record(torch.randn(3, 8)).lift()
    assert all(block.kind != "moe" for block in lifted.blocks)


def test_weights_that_do_more_than_weigh_are_no_site() -> None:
    torch.manual_seed(0)
    module = Early().eval()
    with torch.no_grad():
        module.up.normal_(), module.down.normal_()
    trace = cw.open(module).record(torch.randint(3, WORDS, (3, 7)))
    assert {part.name: (part.count, part.calls) for part in trace.lift()} == parts(WORDS, "embed", moe=4)
    assert edge_error(trace) <= 1e-5
    assert trace.locate("L0.moe.act").axes == ("expert", "row", "neuron")
    assert "L0.moe.router" in trace.lift().sites and "L0.moe.weights" not in trace.lift().sites


def test_hooks_agree_where_experts_are_modules() -> None:
    found, _, _, trace = made("switch/2")
    module = found.make()[0].requires_grad_(False)
    args, _ = found.make()[1:]
    with hooked(module, {"router": lambda logits: logits * 2}):
        want = module(*args)
    assert error(trace.replay(cw.scale("L0.moe.router", 2)).logits, want) <= 1e-6
