"""Gradients at a run's points, AtP*, direct attribution, IG over activations and scores local to readers."""

import pytest
import torch
from networks import gpt2_runs, linear_convolutions, organism_runs
from test_eap import by_edge, exact_effects
from torch import nn

import cutaway as cw
from cutaway.attribution.activations import ig_activations, local
from cutaway.attribution.eap import eap
from cutaway.attribution.edges import EdgeGraph
from cutaway.attribution.mixture import evaluate
from cutaway.attribution.patching import atp_star, attribution_patching, direct, gradient
from cutaway.errors import InputError
from cutaway.lift.frozen import Frozen, reader
from zoo import case

PROJECTED = cw.custom(lambda out: out.flatten(1)[:, :4] @ torch.linspace(-1, 2, 4), "projected")


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def linear_graph() -> EdgeGraph:
    net = cw.open(linear_convolutions())
    torch.manual_seed(1)
    return EdgeGraph(net.record(torch.randn(5, 2, 8, 8)), net.record(torch.randn(5, 2, 8, 8)))


@pytest.mark.parametrize(
    "method, options",
    [(gradient, {"at": "corrupted"}), (gradient, {"at": "both"}), (atp_star, {}), (ig_activations, {"steps": 2}),
     (local, {"steps": 0, "exact": 0}), (local, {"exact": 0}), (local, {"exact": 3})],
)  # fmt: skip
def test_edges_are_exact_on_a_linear_network(method, options: dict) -> None:
    graph, metric = linear_graph(), cw.logit_difference(0, 2)
    found = by_edge(graph, method(graph, metric, **options).edges)
    torch.testing.assert_close(found, exact_effects(graph, metric), rtol=1e-3, atol=1e-5)


def test_local_scores_are_exact_one_block_before_the_output() -> None:
    """Nothing is linearised where the metric of the output is linear and the reader is read by the output alone."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Linear(4, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 3)
    ).eval()
    net = cw.open(module)
    graph = EdgeGraph(net.record(torch.randn(5, 4)), net.record(torch.randn(5, 4)), neurons=True)
    metric = cw.logit_difference(0, 2)
    found, wanted = by_edge(graph, local(graph, metric, exact=0).edges), exact_effects(graph, metric)
    last = torch.tensor([graph.readers[row].startswith(("L1", "logits")) for row, _ in graph.edges])
    assert int(last.sum()) > 30
    torch.testing.assert_close(found[last], wanted[last], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["gpt2", "lenet", *(pytest.param(name, marks=pytest.mark.slow) for name in ("llama", "swin"))]
)
def test_local_scores_follow_exact_ablation_more_closely_than_gradients(name: str) -> None:
    found = case(name)
    args, kwargs = found.other()
    graph = EdgeGraph(found.trace, found.net.record(*args, **kwargs))
    wanted = exact_effects(graph, PROJECTED)
    near, far = (correlation(by_edge(graph, scores.edges), wanted) for scores in (
        local(graph, PROJECTED, exact=0), eap(graph, PROJECTED)
    ))  # fmt: skip
    assert near > far
    assert correlation(by_edge(graph, local(graph, PROJECTED, exact=32).edges), wanted) > max(near - 1e-6, 0.9)


def test_edges_into_queries_and_keys_are_those_of_a_pattern_made_again() -> None:
    """A saturated softmax has no gradient, and moving its query moves all of it: AtP* sees that, EAP does not."""
    clean, corrupted, metric, _ = organism_runs("induction", n=8)
    graph = EdgeGraph(clean, corrupted)
    wanted = exact_effects(graph, metric)
    late = torch.tensor(
        [graph.readers[row].startswith("L1") and graph.readers[row][-1] in "qk" for row, _ in graph.edges]
    )
    fixed, plain = (by_edge(graph, method(graph, metric).edges) for method in (atp_star, eap))
    rest = torch.tensor([graph.readers[row][-1] not in "qk" for row, _ in graph.edges])
    torch.testing.assert_close(fixed[rest], plain[rest], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fixed[late], wanted[late], rtol=0.05, atol=0.05 * float(wanted.abs().max()))
    assert float((fixed - wanted)[late].square().sum()) < float((plain - wanted)[late].square().sum())


def test_nodes_of_attribution_patching_are_gradient_times_difference() -> None:
    clean, corrupted, module = gpt2_runs()
    found = attribution_patching(EdgeGraph(clean, corrupted), cw.logit_difference(3, 4))
    with pytest.raises(InputError, match="no scores of edges"):
        found.of("edge")
    start = module.transformer.wte(clean.args[0]).detach().requires_grad_()
    logits = module(inputs_embeds=start).logits[:, -1]
    slope = torch.autograd.grad((logits[:, 3] - logits[:, 4]).sum(), start)[0]
    moved = start - module.transformer.wte(corrupted.args[0])
    torch.testing.assert_close(found.nodes[0, 0], (moved * slope).sum() / 3, rtol=1e-3, atol=1e-6)


def test_effects_that_cancel_show_when_a_layer_is_passed_by() -> None:
    """GradDrop (Kramár et al. 2024, section 3.2): two layers whose contributions cancel exactly."""

    class Cancelling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.out = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
            self.ups = nn.ModuleList(nn.Linear(3, 4) for _ in range(3))
            self.downs = nn.ModuleList(nn.Linear(4, 3, bias=False) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            for up, down in zip(self.ups, self.downs, strict=True):
                x = x + down(up(x).tanh())
            return self.out(x)

    torch.manual_seed(0)
    net = cw.open(Cancelling().eval())
    graph = EdgeGraph(net.record(torch.randn(4, 3)), net.record(torch.randn(4, 3)))
    metric = cw.logit_difference(0, 1)
    dropped = attribution_patching(graph, metric, grad_drop=True).nodes
    assert bool((dropped >= 0).all())
    # The last layer reaches the output whichever other layer is passed by, so its score keeps its size.
    plain = attribution_patching(graph, metric).nodes
    last = graph.writers.index("L2.mlp")
    torch.testing.assert_close(dropped[last], plain[last].abs(), rtol=1e-4, atol=1e-6)
    with pytest.raises(InputError, match="no two"):
        attribution_patching(linear_one_layer(), metric, grad_drop=True)


def linear_one_layer() -> EdgeGraph:
    torch.manual_seed(0)
    net = cw.open(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).eval())
    return EdgeGraph(net.record(torch.randn(4, 3)), net.record(torch.randn(4, 3)))


@pytest.mark.parametrize("name", ["gpt2", "llama", "lenet", "resnet", "gru", "vit", "autoencoder"])
def test_direct_contributions_are_all_that_writers_add(name: str) -> None:
    """The constant that they leave is what the frozen wiring gives with every writer at zero."""
    graph = EdgeGraph(case(name).trace, baseline="zero")
    found = direct(graph, PROJECTED)
    output, flow = graph.parts[-1].ports[0].value, graph.wiring.flow
    frozen = Frozen(flow, [part.block for part in graph.parts], reader(flow), [output])
    steps = frozen.plan([output], graph.writes)
    empty = frozen.run(
        steps, {value: torch.zeros_like(graph.clean[value]) for value in steps.stored if value in graph.writes}
    )
    constant = float(PROJECTED(empty[output], graph.net).mean())
    assert found.facts["constant"] == pytest.approx(constant, rel=1e-3, abs=1e-5)
    into = torch.tensor([reader == "logits" for reader in graph.readers])
    assert not found.edges[~into].any()


def test_direct_contributions_in_gpt2_are_those_of_logit_attribution_by_hand() -> None:
    clean, _, module = gpt2_runs()
    graph = EdgeGraph(clean, baseline="zero")
    found = dict(zip(graph.writers, direct(graph, cw.logit_difference(3, 4)).nodes[:, 0], strict=True))
    with torch.no_grad():
        hidden: dict[str, torch.Tensor] = {}
        block, norm = module.transformer.h[0], module.transformer.ln_f
        handles = [
            block.mlp.act.register_forward_hook(lambda mod, args, out: hidden.update(mlp=out)),
            norm.register_forward_hook(lambda mod, args, out: hidden.update(stream=args[0])),
        ]
        module(clean.args[0])
        for handle in handles:
            handle.remove()
        stream = hidden["stream"][:, -1]
        scale = (stream.var(-1, unbiased=False) + norm.eps).sqrt()
        added = hidden["mlp"][:, -1] @ block.mlp.c_proj.weight
        direction = (module.lm_head.weight[3] - module.lm_head.weight[4]) * norm.weight
        want = (((added - added.mean(-1, keepdim=True)) / scale[:, None]) @ direction).mean()
    torch.testing.assert_close(found["L0.mlp"], want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["shapes", pytest.param("indirect-object", marks=pytest.mark.slow)])
def test_integrated_gradients_over_activations_are_complete_for_a_whole_write(name: str) -> None:
    """Over the slots of a write they sum to what ablating the write does (Sundararajan et al. 2017)."""
    clean, corrupted, metric, _ = organism_runs(name, n=4)
    graph = EdgeGraph(clean, corrupted)
    nodes = ig_activations(graph, metric, steps=20).nodes[:, 0]
    masks = torch.ones(len(graph.columns) + 1, *graph.shape(), dtype=torch.bool)
    for mask, columns in zip(masks, graph.columns.values(), strict=False):
        mask[:, columns] = False
    *lost, whole = evaluate(graph, metric, masks).mean(1)
    for columns, without in zip(graph.columns.values(), lost, strict=True):
        assert float(nodes[columns].sum()) == pytest.approx(float(whole - without), rel=0.05, abs=0.1)


def test_edges_and_nodes_that_are_measured_are_exact() -> None:
    clean, corrupted, _ = gpt2_runs()
    graph, metric = EdgeGraph(clean, corrupted), cw.logit_difference(3, 4)
    found = local(graph, metric, exact=10_000)
    torch.testing.assert_close(by_edge(graph, found.edges), exact_effects(graph, metric), rtol=1e-4, atol=1e-6)


def test_scores_by_position_add_up_to_scores_without_where_paths_are_linear() -> None:
    graph, metric = EdgeGraph(*gpt2_runs()[:2], positions=True), cw.logit_difference(3, 4)
    for method, options in ((atp_star, {}), (ig_activations, {"steps": 1}), (direct, {}), (local, {"steps": 1})):
        found = method(graph, metric, **options)
        assert found.edges.shape == graph.shape()
        assert bool(found.edges.isfinite().all())
        torch.testing.assert_close(
            found.edges[:, ~graph.moving], torch.zeros(()).expand_as(found.edges[:, ~graph.moving])
        )


def test_options_that_make_no_sense_are_refused() -> None:
    graph, metric = linear_graph(), cw.logit_difference(0, 2)
    with pytest.raises(InputError, match="'clean', 'corrupted' or 'both'"):
        gradient(graph, metric, at="middle")
    with pytest.raises(InputError, match="give 1 or more"):
        ig_activations(graph, metric, steps=0)
    with pytest.raises(InputError, match="negative"):
        local(graph, metric, exact=-1)
