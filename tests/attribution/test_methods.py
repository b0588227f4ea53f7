"""The contract that every scoring method keeps, whichever files declare methods."""

import json
from collections.abc import Callable
from functools import cache

import pytest
import torch
from networks import gpt2_runs, linear_convolutions, organism_runs
from torch import nn

import cutaway as cw
from cutaway.attribution.baselines import NAMES
from cutaway.attribution.exact import units
from cutaway.attribution.methods import Method, method_named
from cutaway.attribution.mixture import ends, evaluate
from cutaway.errors import InputError, MetricError
from zoo import case

METHODS = sorted(cw.methods())
# They average over circuits, so parts that lie in a row share one effect.
SHARING = ("shapley-edge", "shapley-node")
# They score what goes to the output straight, and nothing else.
STRAIGHT = ("direct",)
KINDS = ("mlp", "lenet", "gru by hand", "mamba", "gpt2")


def few(method: Method, graph: cw.EdgeGraph, count: int = 4) -> dict:
    """Options under which a method that runs the network for every unit does so for a few."""
    options = {}
    if "only" in method.options():
        found = units(graph, method.levels[0])
        options["only"] = found[:: max(1, len(found) // count)][:count]
    if "samples" in method.options() and method.name in SHARING:
        options["samples"] = 2
    return options


def weighted(output: torch.Tensor) -> torch.Tensor:
    """A curved metric of any output."""
    rows = output.flatten(1)
    return (rows * torch.linspace(-1, 1, rows.shape[1])).sum(1) + rows[:, 0].square()


METRIC = cw.custom(weighted, "weighted")


@cache
def small() -> tuple:
    """(clean, corrupted) of an MLP with one hidden layer."""
    torch.manual_seed(0)
    net = cw.open(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).eval())
    return net.record(torch.randn(5, 4)), net.record(torch.randn(5, 4))


@cache
def linear() -> cw.EdgeGraph:
    net = cw.open(linear_convolutions())
    torch.manual_seed(1)
    return cw.EdgeGraph(net.record(torch.randn(5, 2, 8, 8)), net.record(torch.randn(5, 2, 8, 8)))


class Words(nn.Module):
    """Embeddings, averaged with a weight a position, and read out: linear, with positions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(11, 5), nn.Linear(5, 3)
        self.register_buffer("share", torch.rand(4))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head((self.embedding(ids) * self.share[:, None]).sum(1))


@cache
def words(positions: bool) -> cw.EdgeGraph:
    net = cw.open(Words().eval())
    torch.manual_seed(1)
    return cw.EdgeGraph(
        net.record(torch.randint(0, 11, (3, 4))), net.record(torch.randint(0, 11, (3, 4))), positions=positions
    )


def ablated(graph: cw.EdgeGraph, metric: cw.Metric, level: str) -> torch.Tensor:
    """What the metric loses when each unit alone is ablated, by masks."""
    found = units(graph, level)
    masks = torch.ones(len(found) + 1, *graph.shape(), dtype=torch.bool)
    for mask, unit in zip(masks[1:], found, strict=True):
        mask[unit if level == "edge" else (slice(None), *unit)] = False
    values = evaluate(graph, metric, masks).mean(1)
    table = torch.zeros(graph.shape() if level == "edge" else graph.shape()[1:])
    table[tuple(torch.tensor(found).T)] = values[0] - values[1:]
    return table


@pytest.mark.parametrize("name", [name for name in METHODS if name not in SHARING])
def test_a_linear_network_is_scored_as_ablation_does(name: str) -> None:
    metric = cw.logit_difference(0, 2)
    scores = cw.score(linear(), metric, method=name)
    if name in STRAIGHT:
        ends = linear().parts[-1].ports[0].rows
        torch.testing.assert_close(scores.edges[ends], ablated(linear(), metric, "edge")[ends], rtol=1e-3, atol=1e-5)
        return
    for level in method_named(name).levels:
        torch.testing.assert_close(scores.of(level), ablated(linear(), metric, level), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_edges_in_no_row_and_their_positions_add_up_on_a_linear_network(name: str) -> None:
    metric = cw.logit_difference(0, 2)
    whole, parts = (cw.score(words(positions), metric, method=name) for positions in (False, True))
    for level in method_named(name).levels:
        torch.testing.assert_close(whole.of(level), ablated(words(False), metric, level), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(parts.of(level).sum(-1, True), whole.of(level), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_scores_have_the_shapes_of_their_levels_and_no_others(name: str) -> None:
    graph = cw.EdgeGraph(*small())
    scores = cw.score(graph, METRIC, method=name)
    shapes = {"edge": graph.shape(), "node": graph.shape()[1:]}
    for level, shape in shapes.items():
        if level in method_named(name).levels:
            assert scores.of(level).shape == shape
        else:
            with pytest.raises(InputError, match=f"no scores of {level}s"):
                scores.of(level)


@pytest.mark.parametrize("name", METHODS)
def test_scores_are_in_units_of_the_metric_and_repeat_whatever_the_order_of_examples(name: str) -> None:
    clean, corrupted = small()
    order = torch.tensor([3, 0, 4, 1, 2])
    turned = [run.net.record(run.args[0][order]) for run in (clean, corrupted)]
    thrice = cw.custom(lambda output: 3 * weighted(output), "thrice")
    first = cw.score(clean, METRIC, corrupted, method=name)
    for other, scale in (
        (cw.score(clean, METRIC, corrupted, method=name), 1),
        (cw.score(clean, thrice, corrupted, method=name), 3),
        (cw.score(turned[0], METRIC, turned[1], method=name), 1),
    ):
        for level in method_named(name).levels:
            torch.testing.assert_close(other.of(level), scale * first.of(level), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in METHODS if cw.methods()[name].exact])
@pytest.mark.parametrize("baseline", NAMES)
def test_exact_methods_are_ablation(name: str, baseline: str) -> None:
    graph = cw.EdgeGraph(*small(), baseline=baseline)
    for level in method_named(name).levels:
        found = cw.score(graph, METRIC, method=name).of(level)
        torch.testing.assert_close(found, ablated(graph, METRIC, level), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in METHODS if cw.methods()[name].complete])
@pytest.mark.parametrize("organism", ["induction", "counter"])
def test_complete_methods_add_up(name: str, organism: str) -> None:
    clean, corrupted, metric, _ = organism_runs(organism, n=6)
    graph = cw.EdgeGraph(clean, corrupted)
    good, bad = ends(graph, metric)
    method = method_named(name)
    options = {"steps": 200} if "steps" in method.options() else {"samples": 2}
    for level in ("node",) if method.complete == "sources" else method.levels:
        scores = cw.score(graph, metric, method=name, **options).of(level)
        if method.complete == "sources":
            scores = scores[torch.cat([graph.columns[block.write] for block in graph.lifted.sources])]
        assert float(scores.sum()) == pytest.approx(float((good - bad).mean()), rel=0.03)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("baseline", NAMES)
def test_every_baseline_gives_finite_scores_and_is_kept_with_them(name: str, baseline: str) -> None:
    scores = cw.score(*small()[:1], METRIC, small()[1], method=name, baseline=baseline)
    assert json.loads(json.dumps(scores.facts))["baseline"]["kind"] == baseline
    for level in method_named(name).levels:
        assert bool(scores.of(level).isfinite().all()) and bool(scores.of(level).any())


@pytest.mark.parametrize("name", METHODS)
def test_unknown_options_and_metrics_of_nothing_are_refused(name: str) -> None:
    graph = cw.EdgeGraph(*small())
    with pytest.raises(InputError, match="has no option 'strange'"):
        cw.score(graph, METRIC, method=name, strange=1)
    with pytest.raises(MetricError):
        cw.score(graph, cw.custom(lambda output: output[:, 0] * 0.0, "nothing"), method=name)


@pytest.mark.parametrize("runs", [small, pytest.param(gpt2_runs, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", METHODS)
def test_what_it_takes_is_known_beforehand(name: str, runs: Callable[[], tuple]) -> None:
    """The forecast is what the scores say, and no more outputs are made than that; a pass from halfway counts less."""
    clean, corrupted, *_ = runs()
    graph, method = cw.EdgeGraph(clean, corrupted), method_named(name)
    given = few(method, graph)
    read = []

    def counting(output: torch.Tensor) -> torch.Tensor:
        read.append(len(output))
        return weighted(output)

    scores = cw.score(graph, cw.custom(counting, "counting"), method=name, **given)
    forecast = method.passes(graph, {**method.options(), **given})
    assert scores.passes == pytest.approx(forecast, rel=0.1, abs=1)
    assert 0 < len(read) <= 3 * scores.passes + 1


@pytest.mark.parametrize("name", METHODS)
def test_options_of_another_type_are_refused(name: str) -> None:
    for option, default in method_named(name).options().items():
        if default is None:
            continue  # of any type
        for wrong in [None, "x", 2.5] if isinstance(default, int) else [None, 3]:
            with pytest.raises(InputError, match=f"^{option} is "):
                cw.score(linear(), METRIC, method=name, **{option: wrong})
        if option in ("steps", "samples"):
            with pytest.raises(InputError, match=f"{option} is a whole number of at least"):
                cw.score(linear(), METRIC, method=name, **{option: method_named(name).least - 1})


class _Several(nn.Module):
    """Returns a loss before its output, or an output with a loss inside."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first, self.line, self.last = first, nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.line(x).relu()
        logits = self.last(hidden)
        loss = nn.functional.cross_entropy(logits, torch.zeros(len(x), dtype=torch.long))
        return {"loss": loss, "out": logits} if self.first else {"logits": logits, "loss": loss}


@pytest.mark.parametrize(
    ("module", "shape", "said"),
    [
        (_Several(True), (9, 6), "main output is a single number"),
        (_Several(False), (9, 6), "single number for all examples, such as a loss"),
        (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), (6,), "no axis of examples"),
    ],
)
def test_outputs_without_a_row_an_example_are_refused(module: nn.Module, shape: tuple[int, ...], said: str) -> None:
    net = cw.open(module.eval())
    with pytest.raises(InputError, match=said):
        cw.EdgeGraph(net.record(torch.randn(*shape)), net.record(torch.randn(*shape)))


@pytest.mark.parametrize("name", METHODS)
def test_the_network_and_the_random_state_are_left_alone(name: str) -> None:
    clean, corrupted, module = gpt2_runs()
    graph, before = cw.EdgeGraph(clean, corrupted), {key: value.clone() for key, value in module.state_dict().items()}
    asked = [parameter.requires_grad for parameter in module.parameters()]
    state = torch.get_rng_state()
    cw.score(graph, METRIC, method=name, **few(method_named(name), graph))
    assert torch.equal(state, torch.get_rng_state()) and torch.is_grad_enabled()
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert [parameter.requires_grad for parameter in module.parameters()] == asked
    assert all(parameter.grad is None for parameter in module.parameters())


@cache
def kind(name: str) -> cw.EdgeGraph:
    found = case(name)
    args, kwargs = found.other()
    torch.manual_seed(3)
    return cw.EdgeGraph(found.trace, found.net.record(*args, **kwargs))


@pytest.mark.slow
@pytest.mark.parametrize("entry", KINDS)
@pytest.mark.parametrize("name", METHODS)
def test_every_kind_of_network_is_scored(name: str, entry: str) -> None:
    graph, method = kind(entry), method_named(name)
    scores = cw.score(graph, METRIC, method=name, **few(method, graph))
    for level in method.levels:
        assert bool(scores.of(level).isfinite().all()) and bool(scores.of(level).any())
