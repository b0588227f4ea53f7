"""What ablated writers carry, against plain hooks and against recordings of other inputs."""

import pytest
import torch
from networks import gpt2_runs, organism_runs

import cutaway as cw
from cutaway.attribution.baselines import NAMES, place_name
from cutaway.attribution.mixture import ends, evaluate
from cutaway.errors import InputError
from zoo import case

METRIC = cw.logit_difference(3, 4)


def block_of(graph: cw.EdgeGraph, name: str) -> int:
    """The write of a block."""
    return next(value for value, block in graph.writes.items() if block.name == name)


def patched(module, ids: torch.Tensor, layer: int, change) -> torch.Tensor:
    """The logits when the output of a layer's MLP is changed by a plain hook."""
    handle = module.transformer.h[layer].mlp.register_forward_hook(lambda mod, args, out: change(out))
    logits = module(ids).logits.detach()
    handle.remove()
    return logits


@pytest.mark.parametrize(
    ("baseline", "change"),
    [
        ("zero", lambda out, bias: torch.zeros_like(out) + bias),
        ("mean", lambda out, bias: out.mean(0, keepdim=True).expand_as(out)),
    ],
)
def test_an_ablated_mlp_is_a_plain_hook(baseline: str, change) -> None:
    """The bias of the last projection is wiring, so it stays when the neurons go."""
    clean, _, module = gpt2_runs()
    graph = cw.EdgeGraph(clean, baseline=baseline)
    lost = cw.score(graph, METRIC, method="exact-node", only=["L0.mlp"]).nodes.sum()
    bias = module.transformer.h[0].mlp.c_proj.bias.detach()
    logits = patched(module, clean.args[0], 0, lambda out: change(out, bias))
    want = (METRIC(clean.logits, clean.net) - METRIC(logits, clean.net)).mean()
    torch.testing.assert_close(lost, want, rtol=1e-4, atol=1e-6)


def test_a_resampled_mlp_is_a_plain_hook_with_another_example() -> None:
    clean, _, module = gpt2_runs()
    graph = cw.EdgeGraph(clean, baseline="resample", seed=3)
    write = block_of(graph, "L0.mlp")
    order = [
        next(other for other in range(3) if torch.equal(graph.clean[write][other], graph.corrupted[write][example]))
        for example in range(3)
    ]
    assert sorted(order) == [0, 1, 2] and all(other != example for example, other in enumerate(order))
    lost = cw.score(graph, METRIC, method="exact-node", only=["L0.mlp"]).nodes.sum()
    logits = patched(module, clean.args[0], 0, lambda out: out[order])
    want = (METRIC(clean.logits, clean.net) - METRIC(logits, clean.net)).mean()
    torch.testing.assert_close(lost, want, rtol=1e-4, atol=1e-6)
    for value in graph.writes:  # one draw for all writers
        torch.testing.assert_close(graph.corrupted[value], graph.clean[value][order])


def test_the_seed_draws_again_and_is_kept() -> None:
    clean, _, _ = gpt2_runs(n=8)
    graphs = [cw.EdgeGraph(clean, baseline="resample", seed=seed) for seed in (0, 0, 1)]
    write = block_of(graphs[0], "embed")
    assert torch.equal(graphs[0].corrupted[write], graphs[1].corrupted[write])
    assert not torch.equal(graphs[0].corrupted[write], graphs[2].corrupted[write])
    assert graphs[2].baseline == {"kind": "resample", "from": "clean run", "seed": 1}


def test_everything_zero_leaves_the_biases() -> None:
    """With all writers away, GPT-2's logits are those of the last norm's bias, as the other biases are zero."""
    clean, _, module = gpt2_runs()
    assert not any(
        p.any() for name, p in module.named_parameters() if name.endswith(("c_proj.bias", "mlp.c_proj.bias"))
    )
    graph = cw.EdgeGraph(clean, baseline="zero")
    _, bad = ends(graph, METRIC)
    logits = module.lm_head(module.transformer.ln_f(torch.zeros(3, 7, 32))).detach()
    torch.testing.assert_close(bad, METRIC(logits, clean.net), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("baseline", ["mean", "resample"])
def test_values_come_from_the_corrupted_run_where_there_is_one(baseline: str) -> None:
    clean, corrupted, _ = gpt2_runs()
    graph, alone = cw.EdgeGraph(clean, corrupted, baseline=baseline), cw.EdgeGraph(corrupted, baseline=baseline)
    assert graph.baseline["from"] == "corrupted run" and alone.baseline["from"] == "clean run"
    write = block_of(graph, "L0.mlp")
    torch.testing.assert_close(graph.corrupted[write], alone.corrupted[write])


def test_a_counterfactual_is_the_corrupted_run() -> None:
    clean, corrupted, metric, _ = organism_runs("induction", n=4)
    graph, other = cw.EdgeGraph(clean, corrupted), cw.EdgeGraph(corrupted, clean)
    for value in graph.writes:
        torch.testing.assert_close(graph.corrupted[value], other.clean[value])
    none = torch.zeros(1, *graph.shape(), dtype=torch.bool)
    torch.testing.assert_close(evaluate(graph, metric, none)[0], ends(graph, metric)[1], rtol=1e-4, atol=1e-4)


def turned(tree: object, axis: int, batch: int, order: list[int]) -> object:
    """Inputs with their examples in another order."""
    if isinstance(tree, dict):
        return {key: turned(item, axis, batch, order) for key, item in tree.items()}
    if isinstance(tree, tuple):
        return tuple(turned(item, axis, batch, order) for item in tree)
    if isinstance(tree, torch.Tensor) and tree.ndim > axis and tree.shape[axis] == batch:
        return tree.index_select(axis, torch.tensor(order))
    return tree


@pytest.mark.parametrize(
    "entry", ["lenet", "gru by hand", "gru time-major", "attention folded", "gpt2", "bloom", "mixtral", "mamba", "swin"]
)
def test_other_examples_are_what_other_inputs_give(entry: str) -> None:
    """Windows and heads folded into the batch, positions before it: a write with examples exchanged is that of a run
    with the inputs exchanged, and its mean that over all such runs."""
    found = case(entry)
    batch, axis = found.trace.lift().flow.batch, 1 if "major" in entry else 0
    runs = []
    for shift in range(batch):
        order = [(place + shift) % batch for place in range(batch)]
        args, kwargs = found.inputs()
        torch.manual_seed(3)
        run = found.net.record(*turned(args, axis, batch, order), **turned(kwargs, axis, batch, order))
        runs.append(cw.EdgeGraph(run, baseline="zero").clean)
    mean, resampled = (cw.EdgeGraph(found.trace, baseline=name) for name in ("mean", "resample"))
    for value in mean.writes:
        stack = torch.stack([run[value] for run in runs])
        torch.testing.assert_close(mean.corrupted[value], stack.mean(0), rtol=1e-3, atol=1e-4)
        apart = [(run[value] - resampled.corrupted[value]).abs().max() for run in runs[1:]]
        assert float(min(apart)) < 1e-3 * float(stack.abs().max()) + 1e-5


def test_constants_are_spread_over_examples_and_positions() -> None:
    clean, _, _ = gpt2_runs()
    name = "L0.mlp"
    width = cw.EdgeGraph(clean, baseline="zero").clean[block_of(cw.EdgeGraph(clean, baseline="zero"), name)].shape[-1]
    constant = torch.arange(width).float()
    graph = cw.EdgeGraph(clean, baseline={name: constant})
    write = block_of(graph, name)
    assert torch.equal(graph.corrupted[write], constant.expand_as(graph.clean[write]))
    assert not graph.corrupted[block_of(graph, "embed")].any()
    assert graph.baseline == {"kind": "optimal", "from": "constants given"}


def test_steps_of_a_recurrent_network_have_constants_of_their_own() -> None:
    clean, *_ = organism_runs("counter", n=4)
    graph = cw.EdgeGraph(clean, baseline="zero")
    names = [place_name(block) for block in graph.writes.values()]
    assert len(set(names)) == len(names)
    step = next(name for name in names if name.endswith("@1"))
    value = next(value for value, block in graph.writes.items() if place_name(block) == step)
    again = cw.EdgeGraph(clean, baseline={step: torch.ones(())})
    assert bool((again.corrupted[value] == 1).all())
    assert not again.corrupted[next(iter(again.writes))].any()


@pytest.mark.parametrize(
    ("baseline", "examples", "message"),
    [
        ("median", 3, "no baseline 'median'; choose counterfactual, zero, mean, resample"),
        ("counterfactual", 3, "needs the corrupted run"),
        ("mean", 1, "'mean' needs other examples and there is one; give 2 or more"),
        ("resample", 1, "'resample' needs other examples"),
        ({"L9.mlp": torch.zeros(())}, 3, "no writer 'L9.mlp'.*embed"),
        ({"L0.mlp": torch.zeros(5)}, 3, r"constant of 'L0.mlp' has shape \(5,\)"),
    ],
)
def test_baselines_that_cannot_be_made_are_refused(baseline: object, examples: int, message: str) -> None:
    clean, _, _ = gpt2_runs(n=examples)
    with pytest.raises(InputError, match=message):
        cw.EdgeGraph(clean, baseline=baseline)


def test_rows_that_are_no_examples_are_not_mixed() -> None:
    """Steps of packed sequences hold fewer rows than there are examples."""
    trace = case("gru packed").trace
    with pytest.raises(InputError, match=r"'L0.rnn@5' has 2 rows for 3 examples.*baseline='zero'"):
        cw.EdgeGraph(trace, baseline="mean")
    assert cw.EdgeGraph(trace, baseline="zero").baseline == {"kind": "zero"}


@pytest.mark.parametrize("baseline", NAMES)
def test_a_baseline_keeps_no_view_of_the_run(baseline: str) -> None:
    """Writing into what ablated writers carry changes no recording."""
    clean, corrupted, _ = gpt2_runs()
    graph = cw.EdgeGraph(clean, corrupted, baseline=baseline)
    before = corrupted["embed"].clone()
    for value in graph.corrupted.values():
        value.add_(1)
    assert torch.equal(corrupted["embed"], before)
