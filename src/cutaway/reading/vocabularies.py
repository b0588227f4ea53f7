"""The vocabularies of a network, and units' directions in their coordinates.

The outputs' own directions are those from the last value of the stream (the final norm folded in) or from behind that
norm; the embedding's are the rows of its table. A unit's direction is carried to where it meets them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import InputError
from ..lift import ops
from ..lift.ops import active, sort_name
from ..lift.responses import leads, plain_units
from ..run.trace import Trace
from .build import kernels, table_of
from .ends import End, Paths, is_image
from .found import Section
from .maps import factors, linear_map
from .nearest import Nearest, Table


@dataclass(frozen=True, eq=False)
class HeadWords:
    """Directions of one attention's heads on two sides, each with its table, and what else there is to say."""

    names: list[str]
    tables: tuple[Table, Table]
    directions: tuple[Tensor, Tensor]
    texts: list[str]


@dataclass(eq=False)
class Work:
    """The work of one call: paths, tables and what was found. `control`: how many random directions, and a seed."""

    trace: Trace
    found: Paths
    norm: str
    count: int
    control: tuple[int, int]
    labels: dict[str, list[str]]
    outputs: Table | None = None
    embeddings: dict[str, Table] = field(default_factory=dict)
    sections: list[Section] = field(default_factory=list)
    heads: dict[tuple[str, str], list[HeadWords]] = field(default_factory=dict)
    copying: dict[tuple[int, int], tuple[float, float]] = field(default_factory=dict)
    silent: list[str] = field(default_factory=list)


def read_vocabularies(work: Work, labels: Sequence[str] | None) -> None:
    """Fill in the tables of the embeddings, and what entries are called. Raises InputError for labels that do not
    fit the outputs."""
    found, net = work.found, work.trace.net
    width = found.flow.shape(found.lifted.output.reads[0].value)[-1]
    if labels is not None and len(labels) != width:
        raise InputError(f"{len(labels)} labels were given and the network has {width} outputs; give one for each.")
    for source in found.lifted.sources:
        if source.kind == "embedding" and (rows := table_of(found, source.write)) is not None:
            work.embeddings[source.name] = Table(rows, source.name)
            named = net.tokenizer is not None and source.name == "embed"
            work.labels[source.name] = _tokens(work, len(rows)) if named else _numbered(source.name, len(rows))
        elif source.kind == "input" and len(found.flow.shape(source.write)) < 4:
            size = found.flow.shape(source.write)[-1]
            work.embeddings[source.name] = Table(torch.eye(size), source.name)
            work.labels[source.name] = _numbered("input", size)
    same = work.labels.get("embed", [])
    given = list(labels) if labels is not None else same if len(same) == width and net.tokenizer is not None else None
    work.labels["outputs"] = given if given is not None else _numbered("output", width)


def _numbered(name: str, count: int) -> list[str]:
    return [f"{name} {row}" for row in range(count)]


def _tokens(work: Work, count: int) -> list[str]:
    found = []
    for token in range(count):
        try:
            found.append(work.trace.net.token_text(token))
        except (IndexError, KeyError, OverflowError, TypeError, ValueError):  # rows beyond the tokenizer's words
            found.append(f"<{token}>")
    return found


def to_outputs(work: Work, end: End) -> tuple[Tensor, Table] | None:
    """(a writer's directions, the table of the outputs in the same coordinates)."""
    found = work.found
    output = next(reader for reader in found.readers if reader.kind == "output")
    if not leads(found.frozen, end.units.value, output.units.value):
        return None
    if is_image(end.units):
        seen = kernels(found, end, output)
        return None if seen is None else (torch.eye(seen.shape[1]), Table(seen.sum(2), "outputs"))
    if end.step or is_image(output.joint) or is_image(output.units):
        matrix = linear_map(found.frozen, end.units, output.units, found.position)
        own = end.matrix if end.matrix is not None or matrix is None else torch.eye(len(matrix))
        return None if matrix is None or own is None else (own, Table(matrix.mT, "outputs"))
    directions = found.written(end)
    assert directions is not None, "a writer leads to its exit"
    joint = output.joint
    factor = factors(found.frozen, end.joint, [joint], found.position)[0]
    if factor is None:
        return None
    if factor != factor:
        between = linear_map(found.frozen, end.joint, joint, found.position)
        directions = directions @ between if between is not None else directions
    if work.outputs is None:
        work.outputs = _output_table(work, output)
    return (directions, work.outputs) if fits(work.outputs, directions) else None


def _output_table(work: Work, output: End) -> Table:
    """[outputs, d]: the outputs' directions at the last value of the stream, or behind the final norm."""
    found = work.found
    start = output.joint
    if work.norm == "none":
        value = output.units.value
        while (op := found.flow.maker(value)) is not None and value != start.value:
            moving = active(op, found.flow.activations)
            value = moving[0]
            if sort_name(op) in ops.CONTRACTION:
                start = plain_units(found.flow, value)
                break
    matrix = linear_map(found.frozen, start, output.units, found.position)
    assert matrix is not None, "the outputs are made from the stream"
    return Table(matrix.mT, "outputs")


def fits(table: Table, directions: Tensor) -> bool:
    """Whether directions have a table's coordinates."""
    return table.rows.shape[1] == directions.shape[1]


def from_embedding(found: Paths, writer: End, end: End) -> Tensor | None:
    """[embedding's units, reader's units]: what a reader reads of an embedding."""
    if not leads(found.frozen, writer.units.value, end.units.value):
        return None
    if end.step or is_image(end.joint) or (end.joint.value == end.units.value and end.matrix is None):
        return linear_map(found.frozen, writer.units, end.units, found.position)
    factor = factors(found.frozen, writer.units, [end.joint], found.position)[0]
    own = found.read(end)
    if factor is None or own is None:
        return None
    if factor == factor:
        return own * factor
    between = linear_map(found.frozen, writer.units, end.joint, found.position)
    return None if between is None else between @ own


def add(
    work: Work, names: Sequence[str], side: str, through: str, directions: Tensor, table: Table,
    texts: Sequence[str] = (),
) -> Nearest:
    """Add a section of directions [units, d] compared with a table; a direction of length zero has no z."""
    near = table.nearest(directions, work.count)
    mean, spread = table.control(*work.control)
    z = torch.where(directions.norm(dim=1) > 0, (near.peak - mean) / spread, torch.nan)
    work.sections.append(Section(names, side, through, table.labels, near, z, texts))
    return near
