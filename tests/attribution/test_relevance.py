"""Relevance propagation: values unchanged, relevance conserved, and the same as LRP written out by hand."""

import pytest
import torch
from networks import gpt2_runs, linear_convolutions
from test_eap import by_edge, exact_effects
from torch import nn

import cutaway as cw
from cutaway.attribution.edges import EdgeGraph
from cutaway.attribution.patching import atp_star, direct
from cutaway.attribution.relevance import lrp, relp
from cutaway.attribution.rules import ATTNLRP, RELP, ruled
from cutaway.errors import MetricError
from cutaway.run.replay import execute, plan
from zoo import case

KINDS = (
    "gpt2",
    "gpt2 eager",
    "llama",
    "gemma2",
    "bert",
    "mamba",
    "rwkv",
    "lenet",
    "convnext",
    "gru",
    "lstm cells",
    "vit",
)


class Attention(nn.Module):
    """One head without biases or a mask, on [batch, pos, 4]."""

    def __init__(self, fused: bool = False) -> None:
        super().__init__()
        self.fused = fused
        self.q, self.k, self.v, self.o = (nn.Linear(4, 4, bias=False) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.q(x)[:, None], self.k(x)[:, None], self.v(x)[:, None]
        if self.fused:
            z = nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            z = ((q @ k.transpose(-1, -2)) / 2).softmax(-1) @ v
        return self.o(z[:, 0])


class Gated(nn.Module):
    """A gated MLP without biases, [batch, 5] to [batch, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = (
            nn.Linear(5, 8, bias=False),
            nn.Linear(5, 8, bias=False),
            nn.Linear(8, 3, bias=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


def graph_of(module: nn.Module, *shape: int, **options: object) -> EdgeGraph:
    torch.manual_seed(2)
    return EdgeGraph(cw.open(module.eval()).record(torch.randn(*shape)), baseline="zero", **options)


def made(module_type: type[nn.Module], *args: object) -> nn.Module:
    torch.manual_seed(0)
    return module_type(*args)


WIDE = (
    "resnet training", "unet", "densenet", "dcgan", "wavenet", "rnn relu both ways", "gru time-major", "lstm projected",
    "lstm cells", "convolutional lstm", "capsules", "graph", "encoder and decoder", "mixture", "hypernetwork", "gpt-j",
    "opt", "gemma3", "olmo2", "mixtral", "deepseek-v3", "mamba2", "recurrent gemma", "t5", "deberta-v2", "whisper",
    "swin", "segformer", "dit",
)  # fmt: skip
FIRST = cw.custom(lambda out: out.flatten(1)[:, :5].sum(1), "first five")
LAST = cw.custom(lambda out: out.flatten(1)[:, -1], "last")


@pytest.mark.parametrize("method", [relp, lrp])
def test_scores_are_exact_on_a_linear_network(method) -> None:
    net = cw.open(linear_convolutions())
    torch.manual_seed(1)
    graph = EdgeGraph(net.record(torch.randn(5, 2, 8, 8)), net.record(torch.randn(5, 2, 8, 8)))
    metric = cw.logit_difference(0, 2)
    torch.testing.assert_close(
        by_edge(graph, method(graph, metric).edges), exact_effects(graph, metric), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("table", [RELP, ATTNLRP])
@pytest.mark.parametrize("name", KINDS)
def test_rules_leave_every_value_as_it_is(name: str, table) -> None:
    trace = case(name).trace
    graph = EdgeGraph(trace, baseline="zero")
    wanted = [part.block.reads[0].value for part in graph.parts if part.block.write < 0]
    sources = [part.block.write for part in graph.parts if not part.ports]
    steps = plan(graph.tape, [], wanted, sources)
    given = {value: graph.clean[value] for value in sources if graph.writes[value] not in graph.lifted.constants}
    with torch.no_grad():
        plain = execute(graph.tape, steps, given=given)[wanted[0]]
        under = execute(ruled(graph, table).tape, steps, given=given)[wanted[0]]
    torch.testing.assert_close(under, plain, rtol=0, atol=0)


@pytest.mark.parametrize("method", [relp, lrp])
def test_relevance_of_a_network_without_biases_adds_up_to_its_output(method) -> None:
    """Conservation (Bach et al. 2015): each rule hands on all that it receives."""
    mlp = nn.Sequential(
        nn.Linear(5, 8, bias=False), nn.ReLU(), nn.Linear(8, 6, bias=False), nn.GELU(), nn.Linear(6, 2, bias=False)
    )
    for module, shape in (
        (mlp, (4, 5)),
        (made(Gated), (4, 5)),
        (made(Attention), (3, 6, 4)),
        (made(Attention, True), (3, 6, 4)),
    ):
        graph = graph_of(module, *shape)
        whole = LAST(graph.clean_trace.logits, graph.net).mean()
        nodes = method(graph, LAST).nodes
        place = graph.writers.index("input")
        if method is lrp and isinstance(module, Attention):
            continue  # its softmax rule absorbs relevance, see the test by hand
        torch.testing.assert_close(nodes[place].sum(), whole, rtol=1e-4, atol=1e-6)


def test_an_mlp_gets_what_lrp_by_hand_gives_it() -> None:
    """R_i = sum over j of z_ij / z_j R_j, through ReLU unchanged (LRP-0)."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    graph = graph_of(module, 4, 5, neurons=True)
    first, second, last = module[0], module[2], module[4]
    with torch.no_grad():
        x = graph.clean_trace.args[0]
        h = first(x).relu()
        g = second(h).relu()
        r_g = g * last.weight[1]
        r_h = (h[:, None] * second.weight / second(h)[:, :, None] * r_g[:, :, None]).sum(1)
        r_x = (x[:, None] * first.weight / first(x)[:, :, None] * r_h[:, :, None]).sum((1, 2))
    nodes = relp(graph, LAST).nodes[:, 0]
    named = dict(zip(graph.writers, nodes, strict=True))
    for place in range(8):
        torch.testing.assert_close(named[f"L0.mlp.n{place}"], r_h[:, place].mean(), rtol=1e-4, atol=1e-6)
    for place in range(6):
        torch.testing.assert_close(named[f"L1.mlp.n{place}"], r_g[:, place].mean(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(named["input"], r_x.mean(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("fused", [False, True])
def test_an_attention_gets_what_attnlrp_by_hand_gives_it(fused: bool) -> None:
    """Products share by halves, softmax as R_x = x (R_s - s sum R_s) (Achtibat et al. 2024, section 3.3)."""
    module = made(Attention, fused)
    graph = graph_of(module, 3, 6, 4)
    with torch.no_grad():
        x = graph.clean_trace.args[0]
        q, k, v = module.q(x), module.k(x), module.v(x)
        scores = q @ k.transpose(1, 2) / 2
        pattern = scores.softmax(-1)
        at_z = torch.zeros(3, 6, 4)
        at_z[:, -1] = module.o.weight[-1]  # relevance of z is z times this
        r_pattern = 0.5 * pattern * (at_z @ v.transpose(1, 2))
        r_scores = scores * (r_pattern - pattern * r_pattern.sum(-1, keepdim=True))
        at_scores = r_scores / scores
        r_q = 0.5 * (q * (at_scores @ k / 2)).sum((1, 2))
        r_k = 0.5 * (k * (at_scores.transpose(1, 2) @ q / 2)).sum((1, 2))
        half = 0.5 * (v * (pattern.transpose(1, 2) @ at_z)).sum((1, 2))
        whole = (v * (pattern.transpose(1, 2) @ at_z)).sum((1, 2))
    named = {graph.readers[row][-1]: value for row, value in enumerate(lrp(graph, LAST).edges.sum((1, 2)))}
    want = {"q": r_q, "k": r_k, "v": half}
    for port, value in want.items():
        torch.testing.assert_close(named[port], value.mean(), rtol=1e-4, atol=1e-6)
    held = {graph.readers[row][-1]: value for row, value in enumerate(relp(graph, LAST).edges.sum((1, 2)))}
    torch.testing.assert_close(held["v"], whole.mean(), rtol=1e-4, atol=1e-6)
    assert float(held["q"]) == float(held["k"]) == 0.0


@pytest.mark.parametrize(
    "fused, written",
    [(nn.functional.silu, lambda x: x * x.sigmoid()),
     (lambda x: nn.functional.gelu(x, approximate="tanh"),
      lambda x: 0.5 * x * (1 + torch.tanh(0.7978845608 * (x + 0.044715 * torch.pow(x, 3)))))],
)  # fmt: skip
def test_a_nonlinearity_written_out_gets_what_one_in_a_single_call_gets(fused, written) -> None:
    class Plain(nn.Module):
        def __init__(self, function) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.into, self.out, self.function = nn.Linear(5, 8), nn.Linear(8, 3), function

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.function(self.into(x)))

    once, parts = (relp(graph_of(Plain(function), 4, 5), LAST).nodes for function in (fused, written))
    torch.testing.assert_close(parts, once, rtol=1e-3, atol=1e-6)


def test_a_layer_norm_keeps_its_scale() -> None:
    """The LN-rule: as if the norm only took the mean away and multiplied by a constant."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 3))
    graph = graph_of(module, 4, 4)
    h = module[1](module[0](graph.clean_trace.args[0]))
    deviation = (h.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    row = module[3].weight[-1] * module[2].weight
    want = ((h - h.mean(-1, keepdim=True)) / deviation * row).sum(1).mean()
    place = next(place for place, name in enumerate(graph.writers) if name.startswith("L0"))
    torch.testing.assert_close(relp(graph, LAST).nodes[place, 0], want.detach(), rtol=1e-4, atol=1e-6)


def test_a_gate_in_a_recurrent_cell_receives_nothing() -> None:
    """Arras et al. 2017: what a gate lets through receives all, so a state is handed on undiminished."""
    graph = EdgeGraph(case("gru").trace, baseline="zero")
    found = relp(graph, LAST).edges.abs().sum((1, 2))
    rows = {
        port: found[[row for row, name in enumerate(graph.readers) if name.endswith(f".{port}")]] for port in ("z", "n")
    }
    assert len(rows["z"]) and not rows["z"].any()
    assert bool(rows["n"].any())


@pytest.mark.parametrize("method", [relp, lrp])
def test_a_metric_that_depends_on_nothing_is_refused(method) -> None:
    clean, corrupted, _ = gpt2_runs()
    constant = cw.custom(lambda logits: logits[:, 0, 0] * 0.0, name="nothing")
    with pytest.raises(MetricError, match="does not depend"):
        method(EdgeGraph(clean, corrupted), constant)


@pytest.mark.slow
@pytest.mark.parametrize("name", WIDE)
def test_every_kind_of_network_gets_finite_scores(name: str) -> None:
    found = case(name)
    args, kwargs = found.other()
    graph = EdgeGraph(found.trace, found.net.record(*args, **kwargs))
    for method in (relp, lrp, atp_star, direct):
        scores = method(graph, FIRST)
        assert bool(scores.edges.isfinite().all()) and bool(scores.nodes.isfinite().all())
        assert bool(scores.nodes.any())
