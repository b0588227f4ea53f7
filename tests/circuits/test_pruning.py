"""Influence, pruning and scores of attribution graphs, against their definitions."""

from __future__ import annotations

import pytest
import torch
from graphs import gpt2, ids, transcoders

import cutaway as cw
from cutaway.circuits.feature_graph import FeatureGraph, feature_graph
from cutaway.circuits.pruning import cumulative, edge_influence, influence, pruned, shares, strongest
from cutaway.errors import InputError


@pytest.fixture(scope="module")
def graph() -> FeatureGraph:
    module = gpt2()
    return feature_graph(cw.open(module).record(ids()), transcoders(module, "transformer.h.{}.ln_2"))


def square(graph: FeatureGraph) -> torch.Tensor:
    """[all nodes, all nodes]: the graph as published, rows are targets."""
    latents, width = graph.latents, graph.table.shape[1]
    whole = torch.zeros(len(graph.nodes), len(graph.nodes))
    whole[:latents, :width] = graph.table[:latents]
    whole[width:, :width] = graph.table[latents:]
    return whole


def test_influence_is_the_weighted_sum_over_all_paths(graph: FeatureGraph) -> None:
    sizes = square(graph).double().abs()
    parts = sizes / sizes.sum(1, keepdim=True).clamp(min=1e-10)
    every = torch.linalg.inv(torch.eye(len(parts)).double() - parts) - torch.eye(len(parts)).double()
    weights = torch.zeros(len(parts)).double()
    weights[-len(graph.weights) :] = graph.weights
    assert torch.allclose(graph.influence().double(), (weights @ every)[: graph.table.shape[1]], atol=1e-6)


def test_scores_are_the_published_ones(graph: FeatureGraph) -> None:
    parts = shares(square(graph))
    weights = torch.zeros(len(parts))
    weights[-len(graph.weights) :] = graph.weights
    found = torch.cat([graph.influence(), torch.zeros(len(graph.weights))])
    kinds = [node.kind for node in graph.nodes]
    begun = sum(float(found[at]) for at, kind in enumerate(kinds) if kind == "embedding")
    errors = torch.tensor([kind == "error" for kind in kinds])
    scores = graph.scores()
    assert scores["replacement"] == pytest.approx(begun / (begun + float(found[errors].sum())), abs=1e-5)
    whole = found + weights
    expected = float(((1 - parts[:, errors].sum(1)) * whole).sum() / whole.sum())
    assert scores["completeness"] == pytest.approx(expected, abs=1e-5)


def test_pruning_keeps_the_strongest_and_what_still_leads_somewhere(graph: FeatureGraph) -> None:
    small = graph.prune(0.6, 0.9)
    known = {node.name for node in graph.nodes}
    assert {node.name for node in small.nodes} < known
    assert small.count("embedding") == graph.count("embedding") and small.count("output") == graph.count("output")
    latents = small.latents
    assert bool((small.table[:latents] != 0).any(1).all())  # every latent has something coming in
    going = (small.table != 0).any(0)
    assert all(going[at] for at, node in enumerate(small.nodes[: len(going)]) if node.kind != "embedding")
    whole = {(one.name, other.name): effect for one, other, effect in graph.edges}
    assert all(whole[one.name, other.name] == effect for one, other, effect in small.edges)
    assert graph.prune(1.0, 1.0).table.abs().sum() == pytest.approx(float(graph.table.abs().sum()), rel=1e-4)
    assert small.prune(1.0, 1.0).latents == latents
    assert small.edges == sorted(small.edges, key=lambda edge: -abs(edge[2]))
    with pytest.raises(InputError, match="lies between 0 and 1"):
        graph.prune(1.5)


def test_a_chain_by_hand() -> None:
    # embedding -> latent 0 -> latent 1 -> output, and an error into latent 1
    table = torch.tensor([[0.0, 0.0, 0.0, 2.0], [3.0, 0.0, -1.0, 0.0], [0.0, 0.5, 0.0, 0.0]])
    weights = torch.tensor([0.8])
    found = influence(shares(table), weights)
    assert torch.allclose(found, torch.tensor([0.6, 0.8, 0.2, 0.6]))
    assert torch.allclose(edge_influence(table, weights).sum(), torch.tensor(0.6 + 0.8 + 0.8))
    assert cumulative(found).max() == pytest.approx(1.0)
    assert strongest(found, 0.9).tolist() == [True, True, False, True]
    always = torch.tensor([False, False, False, True])
    nodes, edges = pruned(table, weights, always, 0.9, 1.0)
    assert nodes.tolist() == [True, True, False, True] and int(edges.sum()) == 3
