"""The nodes of attribution graphs over latents."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from .outputs import Outputs
from .replacement import Replacement

LATENT, ERROR, PART, SOURCE, OUTPUT = "latent", "error", "component", "embedding", "output"


@dataclass(frozen=True)
class GraphNode:
    """A node: what it is (`kind`), of which value (`site`) at which row (`position`), for a latent its `index` in the
    dictionary (`stand`) and its activation, for an output its class or token as `index` and its probability as
    `activation`. `layer` counts the places that dictionaries write, in order; a latent's is that of the place it reads:
    how many are written before. Its `site` is the first place that it writes."""

    kind: str
    site: str
    position: int
    layer: int
    index: int = -1
    stand: int = -1
    activation: float = 0.0
    label: str = ""

    @property
    def name(self) -> str:
        """`L3.mlp_out[latent=17]@5`: site, latent, position."""
        if self.kind == OUTPUT:
            return f"output {self.label}"
        told = {LATENT: f"[latent={self.index}]", ERROR: " error"}.get(self.kind, "")
        return f"{self.site}{told}@{self.position}"


def graph_nodes(model: Replacement) -> list[GraphNode]:
    """The nodes of the table's columns, in the order that `direct_effects.writers` gives them."""
    layers = _layers(model)
    found: list[GraphNode] = []
    for number, stand in enumerate(model.stands):
        codes = stand.codes
        every = torch.arange(len(codes.latents))
        depths = [sum(spot.order < read.order for spot in model.written) for read in stand.reads]
        reads = _first([stand.readers(every, place) for place in range(len(stand.reads))])
        writes = _first([stand.writers(every, place) for place in range(len(stand.writes))])
        listed = zip(
            codes.rows.tolist(), codes.latents.tolist(), codes.values.tolist(), reads.tolist(), writes.tolist(),
            strict=True,
        )  # fmt: skip
        found += [
            GraphNode(LATENT, stand.writes[to].name, row, depths[come], latent, number, value)
            for row, latent, value, come, to in listed
        ]
    for kind, spots in ((ERROR, model.written), (PART, model.parts), (SOURCE, model.sources)):
        for spot in spots:
            rows = model.errors[spot.value] if kind == ERROR else spot.rows(model.held[spot.value])
            layer = -1 if kind == SOURCE else layers[spot.value]
            sizes = rows.norm(dim=-1).tolist()
            found += [GraphNode(kind, spot.name, row, layer, activation=size) for row, size in enumerate(sizes)]
    return found


def _first(vectors: list[Tensor]) -> Int[Tensor, " entries"]:
    """The first place where each entry's vector [entries, width] is not zero."""
    return torch.stack([part.any(-1) for part in vectors], -1).int().argmax(-1)


def _layers(model: Replacement) -> dict[int, int]:
    """The number of each writer among what dictionaries write, in order of execution; a component has that of the last
    one before it, from 0 on."""
    order = [spot.order for spot in model.written]
    return {spot.value: max(sum(at <= spot.order for at in order) - 1, 0) for spot in (*model.written, *model.parts)}


def output_nodes(model: Replacement, ends: Outputs) -> list[GraphNode]:
    """The nodes of the outputs."""
    row, layer = int(ends.rows[-1]), len(model.written)
    told = zip(ends.labels, ends.ids, ends.weights.tolist(), strict=True)
    return [GraphNode(OUTPUT, "logits", row, layer, one, -1, chance, label) for label, one, chance in told]
