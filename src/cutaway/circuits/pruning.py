"""Influence in an attribution graph, and what is left of a graph when weak nodes and edges are taken away.

Ameisen et al. 2025, "Circuit Tracing", appendix: edges into a node are divided by the sum of their sizes, so each says
which share of the node it makes; the influence of a node on the outputs is the sum over all paths of the products of
shares, rows of (I − A)⁻¹ − I weighted by the outputs' probabilities.

Tables are [targets, writers]: the first rows and the first columns are the same latents, in the same order; the last
rows are outputs.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import InputError


def shares(table: Float[Tensor, "targets writers"]) -> Float[Tensor, "targets writers"]:
    """Each edge's share of all that enters its target, by size."""
    sizes = table.abs()
    return sizes / sizes.sum(1, keepdim=True).clamp(min=1e-10)


def influence(parts: Float[Tensor, "targets writers"], weights: Float[Tensor, " outputs"]) -> Float[Tensor, " writers"]:
    """How much of the outputs each writer makes, by direct and indirect paths, from the edges' shares."""
    latents = len(parts) - len(weights)
    current = weights @ parts[latents:]
    total = current.clone()
    for _ in range(latents):  # no path is longer, as nothing comes back to itself
        if not bool(current[:latents].any()):
            break
        current = current[:latents] @ parts[:latents]
        total += current
    return total


def edge_influence(
    table: Float[Tensor, "targets writers"], weights: Float[Tensor, " outputs"]
) -> Float[Tensor, "targets writers"]:
    """How much of the outputs passes each edge."""
    parts = shares(table)
    latents = len(table) - len(weights)
    return parts * torch.cat([influence(parts, weights)[:latents], weights])[:, None]


def strongest(scores: Tensor, share: float) -> Bool[Tensor, "..."]:
    """The largest scores that together make up a share of all. Raises InputError for no share."""
    if not 0 <= share <= 1:
        raise InputError(f"A share of influence lies between 0 and 1, and {share} does not.")
    ordered = scores.flatten().sort(descending=True).values
    passed = ordered.double().cumsum(0) / ordered.double().sum().clamp(min=1e-30)
    place = min(int(torch.searchsorted(passed, share)), len(ordered) - 1)
    return (scores >= ordered[place]) & (scores > 0)


def cumulative(scores: Float[Tensor, " writers"]) -> Float[Tensor, " writers"]:
    """For each writer the share of all influence that it and all stronger ones have."""
    order = scores.argsort(descending=True, stable=True)
    found = torch.empty_like(scores)
    found[order] = (scores[order].double().cumsum(0) / scores.double().sum().clamp(min=1e-30)).to(scores)
    return found


def pruned(
    table: Float[Tensor, "targets writers"],
    weights: Float[Tensor, " outputs"],
    always: Bool[Tensor, " writers"],
    node_share: float,
    edge_share: float,
) -> tuple[Bool[Tensor, " writers"], Bool[Tensor, "targets writers"]]:
    """The writers and edges that are left: those of the most influence, up to a share of all; latents that then have
    nothing coming in or going out, and others that have nothing going out, go too. `always`: writers that stay."""
    latents = len(table) - len(weights)
    nodes = strongest(influence(shares(table), weights), node_share) | always
    left = table * nodes
    left[:latents] *= nodes[:latents, None]
    edges = strongest(edge_influence(left, weights), edge_share)
    while True:
        alive = nodes & (edges.any(0) | always)
        alive[:latents] &= edges[:latents].any(1)
        if torch.equal(alive, nodes):
            return nodes, edges
        nodes = alive
        edges = edges & nodes
        edges[:latents] &= nodes[:latents, None]
