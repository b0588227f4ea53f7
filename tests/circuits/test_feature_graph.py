"""Attribution graphs: effects add up, agree with plain autograd, and are what edits of the frozen model do."""

from __future__ import annotations

import pytest
import torch
from graphs import WIDTH, exact_transcoder, gpt2, ids, llama, random_dictionary, shaken, transcoders
from torch import Tensor, nn

import cutaway as cw
from cutaway.circuits.direct_effects import effects, latent_targets
from cutaway.circuits.feature_graph import FeatureGraph, feature_graph
from cutaway.circuits.outputs import outputs
from cutaway.circuits.replacement import Replacement, replacement
from cutaway.circuits.stream_building import by_stream
from cutaway.errors import InputError, MetricError
from cutaway.features import Dictionary, Place
from zoo import ZOO, case

NORMS = {"gpt2": "transformer.h.{}.ln_2", "llama": "model.layers.{}.post_attention_layernorm"}


def graph_of(kind: str, **options: object) -> FeatureGraph:
    module = {"gpt2": gpt2, "llama": llama}[kind]()
    return feature_graph(cw.open(module).record(ids()), transcoders(module, NORMS[kind]), **options)


# ---- a reference of its own: plain torch on the module, patterns and norms detached


class _FrozenNorm(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.centred = norm, isinstance(norm, nn.LayerNorm)

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True) if self.centred else x
        eps = self.norm.eps if self.centred else self.norm.variance_epsilon
        scale = (x.square().mean(-1, keepdim=True) + eps).rsqrt().detach()
        return x * scale * self.norm.weight + (self.norm.bias if self.centred else 0.0)


class _Stood(nn.Module):
    """An MLP of which the output is a leaf, and the input is kept."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        self.read = x
        self.wrote = self.mlp(x).detach().requires_grad_()
        return self.wrote


def reference(kind: str, monkeypatch: pytest.MonkeyPatch) -> tuple[list[_Stood], Tensor, Tensor]:
    """The frozen network: its MLPs, embeddings and logits, in one graph of autograd."""
    module = {"gpt2": gpt2, "llama": llama}[kind]()
    module.set_attn_implementation("eager")
    module.requires_grad_(False)
    softmax = torch.nn.functional.softmax
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda *a, **k: softmax(*a, **k).detach())
    monkeypatch.setattr(torch, "softmax", lambda *a, **k: softmax(*a, **k).detach())
    for name, part in list(module.named_modules()):
        if isinstance(part, nn.LayerNorm) or type(part).__name__ == "LlamaRMSNorm":
            owner = module.get_submodule(name.rpartition(".")[0])
            setattr(owner, name.rpartition(".")[2], _FrozenNorm(part))
    layers = module.transformer.h if kind == "gpt2" else module.model.layers
    for layer in layers:
        layer.mlp = _Stood(layer.mlp)
    table = module.transformer.wte if kind == "gpt2" else module.model.embed_tokens
    embedded = table(ids()).detach().requires_grad_()
    logits = module(inputs_embeds=embedded).logits
    return [layer.mlp for layer in layers], embedded, logits


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_effects_are_those_of_plain_autograd_with_patterns_and_norms_detached(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = graph_of(kind, most_outputs=3)
    mlps, embedded, logits = reference(kind, monkeypatch)
    leaves = [*(mlp.wrote for mlp in mlps), embedded]
    sites = {f"L{number}.mlp_out": number for number in range(len(mlps))} | {"embed": len(mlps)}
    rows = [*range(0, graph.latents, 5), graph.latents, graph.latents + 2]
    for row in rows:
        target = graph.targets[row]
        if target.kind == "latent":
            encoder = graph.dictionaries[target.stand].weights["encoder"][target.index]
            number = mlps[target.stand].read[0, target.position] @ encoder
        else:
            number = logits[0, -1, target.index] - logits[0, -1].mean()
        slopes = torch.autograd.grad(number, leaves, retain_graph=True, allow_unused=True)
        for column, node in enumerate(graph.nodes[: graph.table.shape[1]]):
            if node.site not in sites:
                continue
            slope = slopes[sites[node.site]]
            own = (
                0.0 if slope is None else float(slope[0, node.position] @ wrote(graph, node, leaves[sites[node.site]]))
            )
            assert abs(own - float(graph.table[row, column])) < 1e-4 * max(1.0, float(graph.values.abs().max()))


def wrote(graph: FeatureGraph, node: object, value: Tensor) -> Tensor:
    """What a node writes at its position."""
    if node.kind == "embedding":
        return value[0, node.position].detach()
    if node.kind == "latent":
        return graph.dictionaries[node.stand].decoder[node.index] * node.activation
    number = int(node.site[1])
    dictionary = graph.dictionaries[number]
    latents = [
        other
        for other in graph.nodes
        if (other.kind, other.site, other.position) == ("latent", node.site, node.position)
    ]
    made = sum(dictionary.decoder[other.index] * other.activation for other in latents)
    return value[0, node.position].detach() - made - dictionary.weights["decoder_bias"]


# ---- sums


SORTS = {
    "one norm call": {"read": "L{}.ln2.normalized"},
    "skips": {"read": "transformer.h.{}.ln_2", "skip": True},
    "rows normalised": {"read": "L{}.resid_mid", "per_row": "standard", "skip": True},
    "rows by length": {"read": "L{}.resid_mid", "per_row": "length"},
}


@pytest.mark.parametrize("sort", SORTS)
def test_effects_and_the_bias_add_up_to_what_latents_were(sort: str) -> None:
    module = gpt2()
    graph = feature_graph(cw.open(module).record(ids()), transcoders(module, **SORTS[sort]))
    assert graph.error < 1e-5
    for row, node in enumerate(graph.nodes[: graph.latents]):
        dictionary, value = (
            graph.dictionaries[node.stand],
            graph.trace.value(graph.dictionaries[node.stand].card.reads[0].site)[0, node.position],
        )
        assert abs(float(dictionary.pre_activations(value)[node.index]) - float(graph.values[row])) < 1e-4


def test_a_cross_layer_transcoder_and_an_autoencoder_add_up() -> None:
    trace = cw.open(gpt2()).record(ids())
    across = [
        random_dictionary(
            {f"transformer.h.{layer}.ln_2": WIDTH},
            {f"L{later}.mlp_out": WIDTH for later in range(layer, 3)},
            seed=layer,
        )
        for layer in range(3)
    ]
    graph = feature_graph(trace, across)
    assert graph.error < 1e-5
    assert graph.count("component") == 0 and graph.count("error") == 3 * 7
    alone = feature_graph(trace, [random_dictionary({"L1.resid_mid": WIDTH}, {"L1.mlp_out": WIDTH})])
    assert {node.site for node in alone.nodes if node.kind == "component"} == {"L0.mlp", "L2.mlp"}
    streams = [random_dictionary({f"resid.{at}": WIDTH}, {f"resid.{at}": WIDTH}, seed=at) for at in (2, 4)]
    inside = feature_graph(trace, streams)
    assert inside.error < 1e-5
    below = [at for at, node in enumerate(inside.nodes) if node.site == "resid.2"]
    assert not inside.table[inside.latents :, below].any()  # all of it passes the later dictionary


KINDS = (
    "gpt2",
    "gpt-j",
    "gemma2",
    "t5",
    "bert",
    "vit",
    "mixtral",
    "rwkv",
    "resnet",
    "gru",
    "gru by hand",
    "mlp",
    "lenet",
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in KINDS)) for name in ZOO if name not in (
        "boltzmann", "graph", "graphs", "numpy", "view writes", "encoder and decoder time-major", "unet2d condition",
        "resnet-18", "autoencoder",  # the last: all of its hidden units are off, so that nothing reaches the output
    )]
)  # fmt: skip
def test_effects_add_up_in_every_network(name: str) -> None:
    trace = case(name).trace
    args = [one_of(value) for value in trace.args]
    trace = trace.net.record(*args, **{key: one_of(value) for key, value in trace.kwargs.items()})
    graph = feature_graph(trace, some_dictionaries(trace), most_outputs=2)
    assert graph.error < 1e-5
    assert graph.table.any()


def one_of(value: object) -> object:
    """The first example of a batch."""
    return value[:1] if isinstance(value, Tensor) and value.ndim else value


def some_dictionaries(trace: cw.Trace) -> list[Dictionary]:
    """Random transcoders of the first MLPs, or an autoencoder of the first other block."""
    lifted = trace.lift()

    def place(site: str) -> dict[str, int]:
        found, value = trace.locate(site), trace.value(site)
        return {site: value.shape[found.axes.index("channel") if "channel" in found.axes else -1]}

    found = []
    for layer in [name.removesuffix(".mlp_out") for name in lifted.sites if name.endswith(".mlp_out")][:2]:
        read = next((f"{layer}.{at}" for at in ("resid_mid", "resid_pre") if f"{layer}.{at}" in lifted.sites), None)
        if read is not None:
            found.append(random_dictionary(place(read), place(f"{layer}.mlp_out"), seed=len(found)))
    if not found:
        block = next((block for block in lifted.blocks if block.kind != "attention"), lifted.blocks[0])
        site = f"{block.name}.out" if f"{block.name}.out" in lifted.sites else block.name
        axis = "channel" if "channel" in trace.locate(site).axes else ""
        found.append(random_dictionary(place(site), place(site), axis=axis))
    return found


# ---- two ways to the same numbers


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("some", [slice(None), slice(1, 2)])
def test_the_quick_way_gives_what_gradients_give(kind: str, some: slice) -> None:
    module = {"gpt2": gpt2, "llama": llama}[kind](5)
    model = replacement(cw.open(module).record(ids()), transcoders(module, NORMS[kind])[some])
    groups, last = targets(model)
    quick = by_stream(model, groups, last)
    assert quick is not None
    slow = effects(model, [*groups, last])
    assert torch.allclose(quick, slow, atol=1e-5 * float(slow.abs().max()))


def test_the_quick_way_serves_attention_in_both_directions() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=True)
    module = shaken(nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval())
    trace = cw.open(module).record(torch.randn(1, 5, 16))
    found = [random_dictionary({f"L{at}.resid_mid": 16}, {f"L{at}.mlp_out": 16}, seed=at) for at in range(3)]
    model = replacement(trace, found)
    groups, last = targets(model)
    quick, slow = by_stream(model, groups, last), effects(model, [*groups, last])
    assert quick is None or torch.allclose(quick, slow, atol=1e-5)
    assert feature_graph(trace, found).error < 1e-5


def targets(model: Replacement):
    groups, count = [], 0
    for stand in model.stands:
        groups += latent_targets(stand, count)
        count += len(stand.codes.latents)
    output = model.held[model.output.value]
    return groups, outputs(model.output, output, model.trace.net, None, -1, 4).targets(count)


# ---- what edges mean


def test_an_edit_in_the_frozen_model_changes_targets_as_edges_say() -> None:
    module = gpt2()
    model = replacement(cw.open(module).record(ids()), transcoders(module, NORMS["gpt2"]))
    groups, last = targets(model)
    table = effects(model, [*groups, last])
    spot, stand = model.written[0], model.stands[0]
    writes = {value: model.held[value] for value in model.stops}
    before = model.run([read.value for group in groups for read, _, _ in group.reads], writes)
    edited = dict(writes)
    change = spot.spread(stand.codes.rows[3:4], stand.writers(torch.tensor([3]), 0))[0]
    edited[spot.value] = writes[spot.value] - change
    after = model.run(before, edited)
    for group in groups:
        moved = group.of(before) - group.of(after)
        assert torch.allclose(moved, table[group.numbers, 3], atol=1e-5)


def test_an_exact_transcoder_misses_nothing() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(8, 24), nn.Linear(24, 8)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.down(torch.relu(self.up(x)))

    torch.manual_seed(0)
    blocks = [Block(), Block()]
    module = nn.Sequential(nn.Linear(5, 8), *blocks, nn.Linear(8, 3))
    trace = cw.open(module).record(torch.randn(1, 5))
    found = [exact_transcoder(at, block.up, block.down, f"L{at}.resid_pre") for at, block in enumerate(blocks)]
    graph = feature_graph(trace, found)
    assert graph.scores() == pytest.approx({"replacement": 1.0, "completeness": 1.0}, abs=1e-5)
    errors = [node.activation for node in graph.nodes if node.kind == "error"]
    assert max(errors) < 1e-6
    control = [
        random_dictionary({f"L{at}.resid_pre": 8}, {f"L{at}.mlp_out": 8}, seed=at, latents=24) for at in range(2)
    ]
    assert feature_graph(trace, control).scores()["replacement"] < 0.9


def test_latents_without_a_path_to_the_outputs_are_no_nodes_and_the_weakest_count_to_errors() -> None:
    graph = graph_of("gpt2")
    assert all(node.position == 6 for node in graph.nodes if node.kind == "latent" and node.layer == 2)
    few = graph_of("gpt2", most_nodes=20)
    assert few.latents == 20 and few.error < 1e-5
    assert {node.name for node in few.nodes[:20]} <= {node.name for node in graph.nodes}


def test_targets_can_be_tokens_classes_metrics_and_functions() -> None:
    graph = graph_of("gpt2", targets=[7, 3])
    assert [node.index for node in graph.nodes if node.kind == "output"] == [7, 3]
    metric = graph_of("gpt2", targets=cw.logit_difference(7, 3))
    assert torch.allclose(metric.table[-1, -14:], graph.table[-2, -14:] - graph.table[-1, -14:], atol=1e-5)
    bent = graph_of("gpt2", targets=lambda output: output.square().sum((1, 2)))
    assert bent.error < 1e-5 and bent.latents > graph.latents  # it reads every position
    with pytest.raises(MetricError, match="no class 99"):
        graph_of("gpt2", targets=[99])
    with pytest.raises(MetricError, match="no position 9"):
        graph_of("gpt2", position=9)


def test_what_makes_no_graph() -> None:
    module = gpt2()
    net, found = cw.open(module), transcoders(module, NORMS["gpt2"])
    with pytest.raises(InputError, match="this run has 2"):
        feature_graph(net.record(ids().repeat(2, 1)), found)
    trace = net.record(ids())
    with pytest.raises(InputError, match="no dictionaries"):
        feature_graph(trace, [])
    with pytest.raises(InputError, match="a run with interventions"):
        feature_graph(trace.replay(cw.zero("L0.mlp_out")), found)
    with pytest.raises(InputError, match="does not say what it reads"):
        feature_graph(trace, [found[0].but(card=found[0].card.but(reads=()))])
    with pytest.raises(InputError, match=r"reads 16 numbers a row, and there are .* \(32\)"):
        feature_graph(trace, [random_dictionary({"L0.resid_mid": 16}, {"L0.mlp_out": 32})])
    with pytest.raises(InputError, match="writes what a norm makes"):
        feature_graph(trace, [random_dictionary({"L0.resid_mid": 32}, {"L0.ln2.normalized": 32})])


def test_dictionaries_are_held_against_their_network() -> None:
    net = cw.open("indirect-object")
    trace = net.record(cw.organisms.load("indirect-object").pairs(1, seed=0).clean)
    width = trace["L0.resid_mid"].shape[-1]
    own = random_dictionary({"L0.resid_mid": width}, {"L0.mlp_out": width}, seed=0)
    with pytest.raises(InputError, match="same places"):
        feature_graph(trace, [own, own])
    places = {
        side: tuple(Place(p.site, p.width, "elsewhere") for p in getattr(own.card, side))
        for side in ("reads", "writes")
    }
    told = feature_graph(trace, [own.but(card=own.card.but(**places))]).facts["notes"]
    assert any("elsewhere" in note for note in told)
