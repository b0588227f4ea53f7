"""What a circuit is as JSON: the fields of a circuit file, as types. docs/circuits-json.md says what each one means.

No torch is imported here, so that a circuit can be read without a network.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

SCHEMA = "cutaway.circuit/1"
Count = Annotated[int, Meta(ge=0)]
Number = float | None  # None where there is no finite number
# reader and writer (places in the lists), position (None: all), score, exact effect, whether it is in the circuit
Wire = tuple[Count, Count, Count | None, Number, Number, bool]


class EdgeData(Struct):
    """An edge of the circuit."""

    edge: str
    writer: str
    reader: str
    position: Count | None
    score: Number
    exact: Number


class Universe(Struct):
    """How many edges could have been in the circuit, and the graph's shape."""

    edges: Count
    writers: Count
    readers: Count
    positions: Count = 1


class Provenance(Struct):
    """The network, the baseline that ablated writers carry, and the versions that made the file."""

    model: str
    source: str
    fingerprint: str
    baseline: dict[str, Any]
    versions: dict[str, str]


class Inputs(Struct):
    """How many examples the figures are means over, and their common tokens ("…" where they differ)."""

    examples: Count
    tokens: list[str]


class WholeGraph(Struct):
    """Every edge of the graph: `sources` are writers that read nothing, `width` the units of what they write (None
    where that differs), `sizes` the mean norm of each writer's values at each position."""

    writers: list[str]
    readers: list[str]
    sources: list[str]
    width: Count | None
    sizes: list[list[Number]]
    edges: list[Wire]


class CircuitData(Struct):
    """A circuit file."""

    schema: Literal["cutaway.circuit/1"]
    level: Literal["edge", "node"]
    metric: dict[str, Any]
    nodes: list[str]
    edges: list[EdgeData]
    faithfulness: Number
    curve: list[tuple[Count, Number]]
    universe: Universe
    settings: dict[str, Any]
    provenance: Provenance
    inputs: Inputs
    graph: WholeGraph | None = None


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a circuit file."""
    return {"title": "A circuit, as Cutaway writes it", **msgspec.json.schema(CircuitData)}
