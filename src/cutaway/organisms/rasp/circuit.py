"""Weights to a circuit: which edges carry what an output reads, in a transformer whose residual directions mean things.

Walking back from the output, a head or neuron is needed if it writes a direction that is read by what is needed; it
then reads the directions of its weights that are not zero. An edge leads from a writer to a reader if the writer writes
a direction that the reader reads. Queries and keys read through each other: their product counts. The rule knows
nothing of programs: it serves the weights of any compiler without norms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Directions = Bool[Tensor, " width"]
Rows = Float[Tensor, "rows width"]
SAME = 1e-6  # weights are of the order of 1; what differs by less is equal


@dataclass(frozen=True)
class LayerWeights:
    """The weights of a layer, a head's own dimensions apart."""

    query: Float[Tensor, "heads own width"]
    query_bias: Float[Tensor, "heads own"]
    key: Float[Tensor, "heads own width"]
    value: Float[Tensor, "heads own width"]
    out: Float[Tensor, "heads width own"]
    up: Float[Tensor, "hidden width"]
    down: Float[Tensor, "width hidden"]


@dataclass(frozen=True)
class Circuit:
    """`edges` and `nodes` that an output needs. `unseen` are the edges that carry the same for all inputs of a length:
    no other input's values, put in their place, show them. `reads` and `writes` are the directions of each node."""

    edges: tuple[str, ...]
    unseen: tuple[str, ...]
    reads: dict[str, Directions]
    writes: dict[str, Directions]

    @property
    def nodes(self) -> tuple[str, ...]:
        """The components that write something needed."""
        return tuple(dict.fromkeys(edge.split(" -> ")[0] for edge in self.edges))


@torch.no_grad()
def circuit_of(
    embed: Float[Tensor, "tokens width"],
    pos_embed: Float[Tensor, "places width"],
    layers: Sequence[LayerWeights],
    output: Float[Tensor, "outputs width"],
    begin: int,
) -> Circuit:
    """The circuit of what `output` reads. `embed` has a row for each token that occurs, `begin` is that of the token
    that stands first in every input."""
    wanted = (output != 0).any(0)
    readers: dict[str, Rows] = {"logits": output}
    neurons: dict[str, Tensor] = {}
    writes: dict[str, Directions] = {}
    for number, layer in reversed(list(enumerate(layers))):
        name = f"L{number}.mlp"
        neurons[name] = active = (layer.down[wanted] != 0).any(0)
        if active.any():
            writes[name] = (layer.down[:, active] != 0).any(1)
            readers[f"{name}.in"] = layer.up[active]
            wanted = wanted | (layer.up[active] != 0).any(0)
        ports = {f"L{number}.attn.h{head}": _ports(layer, head, wanted) for head in range(len(layer.out))}
        for head, (name, found) in enumerate(ports.items()):
            if found is None:
                continue
            writes[name] = (layer.out[head] != 0).any(1)
            for port, rows in found.items():
                readers[f"{name}.{port}"] = rows
                wanted = wanted | (rows != 0).any(0)
    writes |= {"pos_embed": (pos_embed != 0).any(0), "embed": (embed != 0).any(0)}
    tokens = torch.cat([embed[:begin], embed[begin + 1 :]])
    return _joined(readers, writes, _Changes(tokens[1:] - tokens[:1], readers, writes, layers, neurons))


def _ports(layer: LayerWeights, head: int, wanted: Directions) -> dict[str, Rows] | None:
    """What each port of a head reads, or None where the head writes nothing that is wanted."""
    moved = (layer.out[head][wanted] != 0).any(0)
    if not moved.any():
        return None
    query, key = layer.query[head], layer.key[head]
    asked = torch.cat([query, layer.query_bias[head][:, None]], 1)
    return {"q": _kept(key.T @ query), "k": _kept(asked.T @ key), "v": layer.value[head][moved]}


def _kept(product: Rows) -> Rows:
    """A product of weights without what rounding leaves where its terms cancel."""
    return torch.where(product.abs() > SAME * product.abs().max(), product, 0)


class _Changes:
    """What differs between inputs of one length: tokens by their differences, other writers by whole directions."""

    def __init__(
        self,
        differences: Tensor,
        readers: dict[str, Rows],
        writes: dict[str, Directions],
        layers: Sequence[LayerWeights],
        neurons: dict[str, Tensor],
    ) -> None:
        self.differences = differences
        self.moving: dict[str, Directions] = {}
        for number, layer in enumerate(layers):
            for head in range(len(layer.out)):
                name = f"L{number}.attn.h{head}"
                ports = [readers[f"{name}.{port}"] for port in "qkv" if name in writes]
                if any(self._stirred(rows).any() for rows in ports):
                    self.moving[name] = writes[name]
            name = f"L{number}.mlp"
            stirred = neurons[name] & self._stirred(layer.up)
            self.moving[name] = (layer.down[:, stirred] != 0).any(1)

    def seen(self, writer: str, rows: Rows) -> Bool[Tensor, " rows"]:
        """Which of a reader's rows give different numbers for what a writer writes."""
        if writer == "embed":
            return ((rows @ self.differences.T).abs() > SAME).any(1)
        return (rows[:, self.moving[writer]] != 0).any(1) if writer in self.moving else torch.zeros(len(rows)).bool()

    def _stirred(self, rows: Rows) -> Bool[Tensor, " rows"]:
        """Which rows see any writer so far differ; heads of one layer write directions that none of them reads."""
        return torch.stack([self.seen(writer, rows) for writer in ("embed", *self.moving)]).any(0)


def _joined(readers: dict[str, Rows], writes: dict[str, Directions], changes: _Changes) -> Circuit:
    edges, unseen = [], []
    for reader, rows in sorted(readers.items(), key=lambda item: _when(item[0])):
        for writer, written in sorted(writes.items(), key=lambda item: _when(item[0])):
            if _when(writer) < _when(reader)[:2] and (rows[:, written] != 0).any():
                edges.append(f"{writer} -> {reader}")
                if not changes.seen(writer, rows).any():
                    unseen.append(edges[-1])
    return Circuit(tuple(edges), tuple(unseen), {name: (rows != 0).any(0) for name, rows in readers.items()}, writes)


def _when(name: str) -> tuple[int, int, str]:
    """Sorts writers and readers by when they run."""
    if name in ("embed", "pos_embed"):
        return -1, 0, name
    if name == "logits":
        return 10**6, 0, name
    layer, part = name.split(".")[:2]
    return int(layer[1:]), int(part == "mlp"), name
