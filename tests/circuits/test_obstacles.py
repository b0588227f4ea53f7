"""What lies between latents and targets: bends that are held, and blocks in the way, which are named."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from graphs import WIDTH, exact_transcoder, gpt2, ids, random_dictionary, shaken
from torch import Tensor, nn

import cutaway as cw
from cutaway.circuits.direct_effects import effects, latent_targets
from cutaway.circuits.feature_graph import feature_graph
from cutaway.circuits.graph_test import verify_graph
from cutaway.circuits.outputs import outputs
from cutaway.circuits.replacement import replacement
from cutaway.circuits.stream_building import by_stream
from cutaway.commands import verbs
from cutaway.errors import InputError
from cutaway.features import save_dictionary

CAP = 1.0


def gemma(cap: float | None) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.Gemma2Config(
        vocab_size=50, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, final_logit_softcapping=cap,
    )  # fmt: skip
    return shaken(transformers.Gemma2ForCausalLM(config).eval())


def layered(*widths: int, ends: tuple[nn.Module, ...] = ()) -> nn.Sequential:
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for wide, out in zip(widths, widths[1:], strict=False):
        parts += [nn.Linear(wide, out), nn.ReLU()]
    return nn.Sequential(*parts[:-1], *ends)


def mlp_transcoders() -> list:
    return [random_dictionary({f"L{at}.resid_mid": 32}, {f"L{at}.mlp_out": 32}, seed=at) for at in range(2)]


# ---- held


def test_a_cap_on_logits_is_held_at_its_derivative() -> None:
    trace = cw.open(gemma(CAP)).record(ids())
    graph = feature_graph(trace, mlp_transcoders(), targets=[7, 3])
    assert graph.latents > 10 and graph.count("component") == 0 and graph.error < 1e-5 and not graph.notes
    plain = cw.open(gemma(None)).record(ids())
    raw = plain.logits[0, -1]
    slopes = 1 - torch.tanh(raw / CAP).square()
    assert slopes.min() < 0.5  # it bends
    for row, index in ((-2, 7), (-1, 3)):
        vector = -slopes / len(slopes)
        vector[index] += slopes[index]
        known = feature_graph(plain, mlp_transcoders(), targets=lambda output, by=vector: output[:, -1] @ by)
        assert [node.name for node in known.nodes[:-1]] == [node.name for node in graph.nodes[:-2]]
        assert torch.allclose(graph.table[row], known.table[-1], atol=1e-5)
    assert "cap on logits" in graph.facts["frozen"]


class Capped(nn.Module):
    """A GPT-2 with a cap on its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = gpt2()

    def forward(self, tokens: Tensor) -> Tensor:
        return CAP * torch.tanh(self.inner(tokens).logits / CAP)


def test_both_ways_to_effects_hold_the_cap() -> None:
    found = [random_dictionary({f"L{at}.resid_mid": WIDTH}, {f"L{at}.mlp_out": WIDTH}, seed=at) for at in range(3)]
    model = replacement(cw.open(Capped().eval()).record(ids()), found)
    groups, count = [], 0
    for stand in model.stands:
        groups += latent_targets(stand, count)
        count += len(stand.codes.latents)
    last = outputs(model.output, model.held[model.output.value], model.trace.net, [7, 3], -1, 2).targets(count)
    slow, quick = effects(model, [*groups, last]), by_stream(model, groups, last)
    assert quick is not None
    assert torch.allclose(quick, slow, atol=1e-5 * float(slow.abs().max()))


@pytest.mark.parametrize("end", [nn.Sigmoid(), nn.ReLU(inplace=True), nn.Softmax(-1), nn.LogSoftmax(-1), nn.Softplus()])
def test_effects_of_latents_are_derivatives_through_any_last_bend(end: nn.Module) -> None:
    module, x = layered(6, 16, 3, ends=(end,)), torch.randn(1, 6, generator=torch.Generator().manual_seed(1))
    module[2].bias.data = torch.tensor([1.0, 0.5, -3.0])
    found = random_dictionary({"L0.mlp.out": 16}, {"L0.mlp.out": 16})
    graph = feature_graph(cw.open(module).record(x), [found], targets=[0, 1, 2])
    assert graph.latents == 4 and graph.error < 1e-5
    middle = torch.relu(module[0](x)).detach().requires_grad_()
    made = copy.deepcopy(module[3])(module[2](middle))[0]
    for row, target in enumerate(graph.targets[-3:]):
        (slope,) = torch.autograd.grad(made[target.index] - made.mean(), middle, retain_graph=True)
        for column, node in enumerate(graph.nodes[:4]):
            own = float(slope[0] @ found.decoder[node.index]) * node.activation
            assert float(graph.table[4 + row, column]) == pytest.approx(own, abs=1e-6)


class PostNorm(nn.Module):
    """An MLP on a stream with a norm after the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.up, self.down = nn.Linear(5, 8), nn.Linear(8, 24), nn.Linear(24, 8)
        self.norm, self.up2, self.down2 = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(24, 8)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.norm(x + self.down(torch.relu(self.up(x))))
        return self.last(x + self.down2(torch.relu(self.up2(x))))


def test_norms_on_the_stream_itself_are_held_at_their_scale_too() -> None:
    torch.manual_seed(0)
    module, x = shaken(PostNorm()), torch.randn(1, 5)
    found = exact_transcoder(0, module.up, module.down, "L0.resid_pre")
    graph = feature_graph(cw.open(module).record(x), [found], targets=[1])
    assert graph.latents > 5 and graph.error < 1e-5
    assert {node.site for node in graph.nodes if node.kind == "component"} == {"L1.mlp"}
    stream = module.first(x)
    stream = stream + module.down(torch.relu(module.up(stream)))
    scale = (stream.var(-1, unbiased=False) + module.norm.eps).sqrt()
    reader = module.last.weight[1] - module.last.weight.mean(0)
    for column, node in enumerate(graph.nodes[: graph.latents]):
        wrote = found.decoder[node.index] * node.activation
        own = float(((wrote - wrote.mean()) / scale * module.norm.weight @ reader).detach())
        assert float(graph.table[-1, column]) == pytest.approx(own, abs=1e-5)


# ---- in the way


def test_blocks_in_the_way_are_named() -> None:
    trace = cw.open(layered(6, 16, 16, 4)).record(torch.randn(1, 6))
    graph = feature_graph(trace, [random_dictionary({"0": 16}, {"0": 16})])
    assert graph.latents == 0 and "L0.mlp, L1.mlp, without dictionaries, are in the way" in graph.notes[0]
    assert graph.notes[0] in repr(graph) and graph.notes[0] in str(graph.to_attribution_graph().data)
    with pytest.raises(InputError, match=r"L1\.mlp"):
        verify_graph(graph)
    both = feature_graph(trace, [random_dictionary({f"L{at}.mlp.out": 16}, {f"L{at}.mlp.out": 16}) for at in (0, 1)])
    assert both.latents == 8 and not both.notes


def test_a_pooler_is_named_and_no_other_block() -> None:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_labels=3
    )
    trace = cw.open(transformers.BertForSequenceClassification(config).eval()).record(ids())
    graph = feature_graph(trace, [random_dictionary({"L0.mlp_out": WIDTH}, {"L0.mlp_out": WIDTH})])
    (note,) = graph.notes
    assert "the block L2.mlp, without a dictionary, is in the way" in note and "L1.mlp" not in note
    pooled = random_dictionary({"L2.mlp.out": WIDTH}, {"L2.mlp.out": WIDTH})
    assert feature_graph(trace, [pooled]).latents == 4


def test_where_nothing_is_in_the_way_or_nothing_fires_that_is_said() -> None:
    trace = cw.open(gpt2()).record(ids())
    late = random_dictionary({"L0.mlp_out": WIDTH}, {"L0.mlp_out": WIDTH})
    assert not feature_graph(trace, [late]).notes
    silent = random_dictionary({"L1.mlp_out": WIDTH}, {"L1.mlp_out": WIDTH}, k=4)
    silent = silent.but(activation="relu", k=0)
    silent.weights["encoder_bias"].fill_(-100.0)
    assert feature_graph(trace, [late, silent]).notes == (
        "No latent of the dictionary that writes 'L1.mlp_out' fires in this run.",
    )


class Sign(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sign(x)


def test_targets_that_nothing_reaches_make_no_graph() -> None:
    trace = cw.open(layered(6, 16, 4, ends=(Sign(),))).record(torch.randn(1, 6))
    found = random_dictionary({"L0.mlp.out": 16}, {"L0.mlp.out": 16})
    with pytest.raises(InputError, match="Nothing in the graph has an effect on the targets"):
        feature_graph(trace, [found])
    off = layered(6, 16, 16, 4)
    off[2].bias.data.fill_(-100.0)
    with pytest.raises(InputError, match=r"the block L1\.mlp, without a dictionary, is in the way"):
        feature_graph(cw.open(off).record(torch.randn(1, 6)), [found])


# ---- layers


def test_latents_of_a_cross_layer_transcoder_have_the_layer_that_they_read() -> None:
    reads, writes = ({f"L{at}.{name}": WIDTH for at in range(3)} for name in ("resid_mid", "mlp_out"))
    whole = random_dictionary(reads, writes, latents=30, k=12)
    encoder = whole.weights["encoder"].view(10, 3, 3, WIDTH)
    decoder = whole.weights["decoder"].view(10, 3, 3, WIDTH)
    for at in range(3):  # latent i reads layer i % 3 and writes from there on
        encoder[:, at, [other for other in range(3) if other != at]] = 0.0
        decoder[:, at, :at] = 0.0
    trace = cw.open(gpt2()).record(ids())
    graph = feature_graph(trace, [whole])
    assert graph.error < 1e-5
    latents = [node for node in graph.nodes if node.kind == "latent"]
    assert {node.index % 3 for node in latents} == {0, 1, 2}
    for node in latents:
        assert node.layer == node.index % 3 and node.site == f"L{node.layer}.mlp_out"
    told = [node for node in graph.to_attribution_graph().nodes if node.kind == "cross layer transcoder"]
    assert sorted(int(node.layer) for node in told) == sorted(node.layer for node in latents)
    parts = [
        random_dictionary({f"L{at}.resid_mid": WIDTH}, {f"L{to}.mlp_out": WIDTH for to in range(at, 3)}, seed=at)
        for at in range(3)
    ]
    for node in feature_graph(trace, parts).nodes:
        assert node.kind != "latent" or (node.layer, node.site) == (node.stand, f"L{node.stand}.mlp_out")


def test_notes_are_on_screen(tmp_path) -> None:
    from rich.console import Console

    width = cw.open("indirect-object").record(cw.organisms.load("indirect-object").pairs(1, seed=0).clean)
    size = width["L1.mlp_out"].shape[-1]
    silent = random_dictionary({"L1.mlp_out": size}, {"L1.mlp_out": size}).but(activation="relu", k=0)
    silent.weights["encoder_bias"].fill_(-1000.0)
    file = str(save_dictionary(silent, tmp_path / "silent.safetensors"))
    verb = verbs()["attribute"]
    result = verb({"model": "indirect-object", "dictionary": [file]})
    console = Console(record=True, width=200)
    console.print(verb.show(result))
    assert "fires in this run" in console.export_text()
