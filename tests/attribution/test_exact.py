"""Exact patching against plain hooks, with its options, limits and refusals."""

import pytest
import torch
from networks import gpt2_runs, organism_runs

import cutaway as cw
from cutaway.attribution.exact import unit_name, units
from cutaway.errors import InputError, ResourceError

METRIC = cw.logit_difference(3, 4)


def hooked(module, ids: torch.Tensor, where: object, value: torch.Tensor) -> torch.Tensor:
    """The logits when a module's output is this."""
    handle = where.register_forward_hook(lambda mod, args, out: value)
    logits = module(ids).logits.detach()
    handle.remove()
    return logits


def test_nodes_in_both_directions_are_a_patch_by_hooks() -> None:
    clean, corrupted, module = gpt2_runs()
    graph, mlp = cw.EdgeGraph(clean, corrupted), module.transformer.h[0].mlp
    place = graph.writers.index("L0.mlp")
    outputs = [mlp(module.transformer.h[0].ln_2(run["L0.resid_mid"])).detach() for run in (clean, corrupted)]
    good, bad = (METRIC(run.logits, clean.net).mean() for run in (clean, corrupted))
    without = METRIC(hooked(module, clean.args[0], mlp, outputs[1]), clean.net).mean()
    alone = METRIC(hooked(module, corrupted.args[0], mlp, outputs[0]), clean.net).mean()
    lost = cw.score(graph, METRIC, method="exact-node").nodes[place, 0]
    found = cw.score(graph, METRIC, method="exact-node", direction="restore")
    torch.testing.assert_close(lost, good - without, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.nodes[place, 0], alone - bad, rtol=1e-4, atol=1e-6)
    assert found.facts["direction"] == "restore" and found.facts["baseline"]["kind"] == "counterfactual"


def test_an_edge_restored_alone_is_a_patch_of_its_path_in_the_corrupted_run() -> None:
    """The head's clean contribution goes to the logits alone."""
    clean, corrupted, module = gpt2_runs()
    graph = cw.EdgeGraph(clean, corrupted)
    scores = cw.score(graph, METRIC, method="exact-edge", direction="restore", only=["L0.attn.h2 -> logits"])
    weight = module.transformer.h[0].attn.c_proj.weight[16:24]
    change = (clean["L0.attn.z[head=2]"] - corrupted["L0.attn.z[head=2]"]) @ weight
    logits = module.lm_head(module.transformer.ln_f(corrupted["transformer.h.1/add.1"] + change)).detach()
    want = (METRIC(logits, clean.net) - METRIC(corrupted.logits, clean.net)).mean()
    assert scores.passes == 2 and int((scores.edges != 0).sum()) == 1
    torch.testing.assert_close(scores.edges.sum(), want, rtol=1e-4, atol=1e-6)


def test_only_some_are_scored_and_each_as_among_all() -> None:
    clean, corrupted, _ = gpt2_runs()
    graph = cw.EdgeGraph(clean, corrupted)
    whole = cw.score(graph, METRIC, method="exact-edge").edges
    chosen = units(graph, "edge")[5::40]
    part = cw.score(
        graph, METRIC, method="exact-edge", only=[chosen[0], *(unit_name(graph, "edge", u) for u in chosen)]
    )
    kept = torch.zeros_like(whole, dtype=torch.bool)
    kept[tuple(torch.tensor(chosen).T)] = True
    torch.testing.assert_close(part.edges, whole * kept, rtol=1e-4, atol=1e-6)
    assert part.facts["scored"] == len(chosen) == part.passes - 1


def test_positions_are_units_of_their_own() -> None:
    """A name without a position stands for all; the writers at later positions do not reach an earlier one."""
    clean, corrupted, _ = gpt2_runs()
    graph = cw.EdgeGraph(clean, corrupted, positions=True)
    found = units(graph, "node", ["L0.mlp"])
    assert {unit[1] for unit in found} == {2, 3, 4, 5, 6} and unit_name(graph, "node", found[0]) == "L0.mlp@2"
    scores = cw.score(graph, cw.logit_difference(3, 4, position=4), method="exact-node", only=["L0.mlp"])
    torch.testing.assert_close(scores.nodes[:, 5:], torch.zeros_like(scores.nodes[:, 5:]), rtol=0, atol=1e-6)
    assert bool(scores.nodes[graph.writers.index("L0.mlp"), 4] != 0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"direction": "sideways"}, InputError, "no direction 'sideways'; choose 'ablate' or 'restore'"),
        ({"only": ["L0.attn.h7 -> logits"]}, InputError, "no edge 'L0.attn.h7 -> logits'.*near: L0.attn.h"),
        ({"only": [(0, 99, 0)]}, InputError, "no edge"),
        ({"only": []}, InputError, "no edges to score"),
        ({"limit": 10}, ResourceError, r"'exact-edge' takes \d+ forward passes for \d+ edges and the limit is 10"),
        ({"limit": 0}, InputError, "1 or more"),
    ],
)
def test_what_makes_no_sense_or_costs_too_much_is_refused(options: dict, error: type, message: str) -> None:
    clean, corrupted, _ = gpt2_runs()
    with pytest.raises(error, match=message):
        cw.score(cw.EdgeGraph(clean, corrupted), METRIC, method="exact-edge", **options)


def test_a_constant_baseline_has_nothing_to_restore_in() -> None:
    clean, _, metric, _ = organism_runs("shapes", n=4)
    with pytest.raises(InputError, match="the baseline 'zero' has none"):
        cw.score(cw.EdgeGraph(clean, baseline="zero"), metric, method="exact-node", direction="restore")
