"""Exact evaluation of circuits against independent computations by plain hooks and by hand."""

import pytest
import torch
from networks import BEHAVING, gpt2_runs, organism_runs

import cutaway as cw
from cutaway.attribution import mixture
from cutaway.attribution.edges import EdgeGraph
from cutaway.attribution.mixture import _hash, evaluate
from zoo import case


def full_mask(graph: EdgeGraph) -> torch.Tensor:
    return torch.ones(graph.shape(), dtype=torch.bool)


def without(graph: EdgeGraph, edge: str) -> torch.Tensor:
    """All edges but one."""
    mask = full_mask(graph)
    writer, reader = edge.split(" -> ")
    mask[graph.readers.index(reader), graph.writers.index(writer)] = False
    return mask


@pytest.mark.parametrize("name", BEHAVING)
@pytest.mark.parametrize("positions", [False, True])
def test_all_edges_give_the_clean_run_and_none_the_corrupted(name: str, positions: bool) -> None:
    if positions and name in ("shapes", "counter"):
        pytest.skip("values without a common position axis")
    clean, corrupted, metric, _ = organism_runs(name, n=6)
    graph = EdgeGraph(clean, corrupted, positions=positions)
    mask = full_mask(graph)
    found = evaluate(graph, metric, torch.stack([mask, ~mask]))
    torch.testing.assert_close(found[0], metric(clean.logits, clean.net), rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(found[1], metric(corrupted.logits, clean.net), rtol=1e-5, atol=2e-5)


def test_an_edge_from_a_head_to_the_logits_by_hand() -> None:
    """Path patching of a head's direct effect: its contribution to the last residual value is swapped."""
    clean, corrupted, module = gpt2_runs()
    graph = EdgeGraph(clean, corrupted)
    metric = cw.logit_difference(3, 4)
    found = evaluate(graph, metric, without(graph, "L0.attn.h2 -> logits")[None])[0]
    weight = module.transformer.h[0].attn.c_proj.weight[16:24]
    change = (corrupted["L0.attn.z[head=2]"] - clean["L0.attn.z[head=2]"]) @ weight
    residual = clean["transformer.h.1/add.1"] + change
    logits = module.lm_head(module.transformer.ln_f(residual))
    torch.testing.assert_close(found, metric(logits.detach(), clean.net), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("port", "place"), [("q", 0), ("k", 1), ("v", 2)])
def test_an_edge_into_one_input_of_one_head_by_hooks(port: str, place: int) -> None:
    """Only head 3 of the second layer sees the corrupted embedding, and only through one of q, k and v."""
    clean, corrupted, module = gpt2_runs()
    graph = EdgeGraph(clean, corrupted)
    metric = cw.logit_difference(3, 4)
    found = evaluate(graph, metric, without(graph, f"embed -> L1.attn.h3.{port}")[None])[0]
    attention = module.transformer.h[1].attn
    change = corrupted["embed"] - clean["embed"]
    mixed = attention.c_attn(module.transformer.h[1].ln_1(clean["L1.resid_pre"] + change))
    columns = slice(32 * place + 24, 32 * place + 32)

    def edit(module: object, args: object, out: torch.Tensor) -> torch.Tensor:
        out = out.clone()
        out[..., columns] = mixed[..., columns]
        return out

    handle = attention.c_attn.register_forward_hook(edit)
    logits = module(clean.args[0]).logits.detach()
    handle.remove()
    torch.testing.assert_close(found, metric(logits, clean.net), rtol=1e-5, atol=1e-6)


def test_a_node_out_of_every_reader_is_a_patch_of_its_value() -> None:
    clean, corrupted, metric, _ = organism_runs("counter", n=6)
    graph = EdgeGraph(clean, corrupted)
    mask = full_mask(graph)
    mask[:, graph.writers.index("embed")] = False
    found = evaluate(graph, metric, mask[None])[0]
    torch.testing.assert_close(found, metric(corrupted.logits, clean.net), rtol=1e-4, atol=1e-4)


def test_circuits_in_one_batch_equal_circuits_alone() -> None:
    clean, corrupted, _ = gpt2_runs()
    metric = cw.logit_difference(3, 4)
    graph = EdgeGraph(clean, corrupted)
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(7, *graph.shape(), generator=generator) < 0.6
    together = evaluate(graph, metric, masks)
    alone = torch.cat([evaluate(graph, metric, mask[None]) for mask in masks])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_worlds_are_told_apart_by_hashes_of_hashes() -> None:
    """Versions of a write of two slots and of one slot, hashed by write and then together: all pairs differ."""
    first, second = torch.cartesian_prod(*[torch.arange(12)] * 2).T
    chosen = torch.ones(144, dtype=torch.long)
    two_slots, one_slot = _hash(torch.stack([chosen, chosen, first], 1)), _hash(torch.stack([chosen, second], 1))
    assert len(_hash(torch.stack([chosen, two_slots, one_slot], 1)).unique()) == 144


@pytest.mark.parametrize("neurons", [False, True])
@pytest.mark.parametrize("entry", ["mlp", "gpt2", "llama", "bert", "olmo2", "mamba", "lenet"])
def test_products_and_slices_give_what_each_mixture_gives_alone(
    entry: str, neurons: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random circuits, in which each slot sees a mixture of its own, with the shortcuts of `meeting` and without."""
    found = case(entry)
    args, kwargs = found.other()
    runs = found.trace, found.net.record(*args, **kwargs)
    metric = cw.custom(lambda output: output.flatten(1).square().mean(1) + output.flatten(1)[:, 0])
    graph = EdgeGraph(*runs, neurons=neurons)
    masks = torch.rand(3, *graph.shape(), generator=torch.Generator().manual_seed(0)) < 0.6
    quick = evaluate(graph, metric, masks)
    monkeypatch.setattr(mixture, "_MANY", 10**9)
    monkeypatch.setattr(mixture, "sliced", lambda graph, port: None)
    slow = evaluate(EdgeGraph(*runs, neurons=neurons), metric, masks)
    torch.testing.assert_close(quick, slow, rtol=1e-4, atol=1e-5)


def test_writers_that_hold_given_values_send_them_on() -> None:
    """The MLP holds the corrupted run's values, and all its readers see them: a patch of its node."""
    clean, corrupted, _ = gpt2_runs()
    graph, metric = EdgeGraph(clean, corrupted), cw.logit_difference(3, 4)
    column = graph.writers.index("L0.mlp")
    sent = torch.zeros(2, len(graph.writers), dtype=torch.bool)
    sent[1, column] = True
    ablated = full_mask(graph)
    ablated[:, column] = False
    want = evaluate(graph, metric, torch.stack([full_mask(graph), ablated]))
    found = evaluate(graph, metric, full_mask(graph).repeat(2, 1, 1, 1), (sent, graph.corrupted))
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-6)
