"""Which latents make a head attend from a query to a key: its score, divided among pairs of nodes.

With norms frozen a score is bilinear in what writers add to the query's side and to the key's: Kamath, Ameisen et al.
2025, "Tracing Attention Computation Through Feature Interactions". The sides are targets as latents are, one for each
number of the head's query and key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..attribution.qk import held_bends
from ..errors import InputError, SiteError
from ..lift import Block, Lifted
from ..lift.addressing import component
from ..run.replay import execute
from .direct_effects import Targets, biases, effects
from .freezing import moved, way
from .graph_nodes import GraphNode, graph_nodes
from .replacement import Replacement, Spot, replacement

if TYPE_CHECKING:
    from .feature_graph import FeatureGraph


@dataclass(frozen=True, eq=False)
class LatentAttention:
    """A head's score from a query to a key (before the softmax), divided: `table` [query nodes, key nodes] and `rest`,
    which no writer makes (relative positions), add up to `score`. The last row and column are the bias. `error` is what
    is missing, relative to the score's parts."""

    head: str
    query: int
    key: int
    nodes: tuple[GraphNode, ...]
    table: Float[Tensor, "query_nodes key_nodes"]
    rest: float
    score: float
    error: float

    def _name(self, at: int) -> str:
        return self.nodes[at].name if at < len(self.nodes) else "bias"

    def top(self, count: int = 10) -> list[tuple[str, str, float]]:
        """(node on the query's side, node on the key's side, part of the score) of the largest parts."""
        width = self.table.shape[1]
        order = self.table.abs().flatten().topk(min(count, self.table.numel())).indices.tolist()
        found = [divmod(place, width) for place in order]
        return [(self._name(row), self._name(column), float(self.table[row, column])) for row, column in found]

    def side(self, which: str, count: int = 10) -> list[tuple[str, float]]:
        """(node, what the score would lose without it on one side) of the largest, `which` being "query" or "key".

        Raises InputError for another side.
        """
        if which not in ("query", "key"):
            raise InputError(f"A score has the sides 'query' and 'key', and not {which!r}.")
        sums = self.table.sum(1 if which == "query" else 0)
        order = sums.abs().topk(min(count, len(sums))).indices.tolist()
        return [(self._name(at), float(sums[at])) for at in order]

    def __str__(self) -> str:
        rows = [f"{value:+10.4f}  {query} · {key}" for query, key, value in self.top()]
        return "\n".join([f"{self.head}, query {self.query}, key {self.key}: score {self.score:+.4f}", *rows])


def attention_of(graph: FeatureGraph, head: str, *, query: int = -1, key: int | None = None) -> LatentAttention:
    """Divide a head's score among pairs of the graph's nodes; `key` None is the key that is attended to most.

    All latents that fire are nodes here, those that the graph left out included. Raises SiteError for no such head,
    InputError for a query or key that is not there or not seen.
    """
    trace, lifted = graph.trace, graph.trace.lift()
    block, _, slot = component(lifted, head, reading=False)
    if block.kind != "attention" or slot is None:
        raise SiteError(f"'{head}' is no head of an attention; name one, such as '{block.name}.h0'.")
    model = replacement(trace, graph.dictionaries)
    found = trace.locate(f"{block.name}@{block.step}.scores" if block.step else f"{block.name}.scores")
    at, _ = trace._find(model.tape, found.address)
    scores = execute(model.tape, way(model.tape, [at], ()))[at]
    if scores.ndim != 4 or scores.shape[0] != 1:
        raise InputError(f"The scores of '{block.name}' have shape {tuple(scores.shape)}; only one example's by head.")
    places = _row(scores[0, slot], query, key)
    sides = [_side(model, lifted, block, port, slot, place) for port, place in zip("qk", places, strict=True)]
    width = sides[0][0].width
    groups = [
        Targets(
            torch.arange(width) + number * width, ((spot, row.expand(width), torch.eye(width)),), torch.zeros(width)
        )
        for number, (spot, row) in enumerate(sides)
    ]
    ports = [spot.value for spot, _ in sides]
    model = replace(model, held=model.held | execute(model.tape, way(model.tape, ports, ())))
    made, (bias, _) = effects(model, groups), biases(model, groups)
    left, right = (torch.cat([made[some], bias[some, None]], 1) for some in (slice(width), slice(width, None)))
    pairs, queries, keys, rest = _form(model, lifted, at, (slot, *places), sides)
    table = left.T @ pairs @ right
    table[:, -1] += queries @ left
    table[-1] += keys @ right
    score = float(scores[0, slot, places[0], places[1]])
    missing = abs(float(table.sum()) + rest - score) / max(abs(score), float(table.abs().max()), 1e-9)
    return LatentAttention(head, *places, tuple(graph_nodes(model)), table, rest, score, missing)


def _row(scores: Float[Tensor, "queries keys"], query: int, key: int | None) -> tuple[int, int]:
    """The query and the key asked for, counted from the start."""
    if not -len(scores) <= query < len(scores):
        raise InputError(f"There is no query {query}; there are {len(scores)}.")
    row = scores[query]
    key = int(row.argmax()) if key is None else key
    if not -len(row) <= key < len(row) or not float(row[key]) > -1e9:
        raise InputError(f"The query {query} does not see a key {key}; choose another.")
    return query % len(scores), key % len(row)


def _side(
    model: Replacement, lifted: Lifted, block: Block, port: str, slot: int, place: int
) -> tuple[Spot, Int[Tensor, "one"]]:
    """What a head reads on one side, and which row of it."""
    read = next(read for read in block.reads if read.port == port)
    value = moved(model.trace, model.tape, lifted, read.value)
    shape = tuple(model.tape.graph.values[value].shape)
    if len(shape) != 4 or shape[1] != read.slots.count:
        raise InputError(f"'{block.name}.{port}' has shape {shape}; only one example's values by head are divided.")
    row = slot * read.slots.count // block.slots.count * shape[2] + place
    return Spot(f"{block.name}.{port}", value, 3, shape, model.tape.graph.values[value].op), torch.tensor([row])


def _form(
    model: Replacement, lifted: Lifted, scores: int, at: tuple[int, int, int], sides: Sequence[tuple[Spot, Tensor]]
) -> tuple[Tensor, Tensor, Tensor, float]:
    """A score as a form of both sides' vectors: (of pairs [query, key], of the query alone, of the key alone, rest)."""
    (query, row), (key, column) = sides
    steps = way(model.tape, [scores], [query.value, key.value])
    tape = held_bends(model.tape, lifted.flow, [step.op for step in steps.steps])
    with torch.enable_grad():
        q, k = (torch.zeros(spot.shape, requires_grad=True) for spot in (query, key))
        score = execute(tape, steps, given={query.value: q, key.value: k})[scores][0, at[0], at[1], at[2]]
        (slope,) = torch.autograd.grad(score, q, create_graph=True)
        (other,) = torch.autograd.grad(score, k, retain_graph=True)
        alone = query.rows(slope)[row[0]]
        (pairs,) = torch.autograd.grad(alone, k, torch.eye(len(alone)), is_grads_batched=True)
    return key.rows(pairs)[:, column[0]], alone.detach(), key.rows(other)[column[0]], float(score.detach())
