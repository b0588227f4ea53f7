"""The index of a network's linear paths: built once from a recording, kept as arrays, asked without torch.

For every writer and reader [units, d] the directions in the stream, as 16-bit integers with a scale a row; for every
pair that a linear path joins, the factor between them. Where more than a factor lies between (recurrent cells, images),
and where one side is wide (a vocabulary), the strengths between their components are kept.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..lift.responses import leads
from ..run.trace import Trace
from .ends import End, Paths, grouped, is_image, paths
from .index import Index
from .maps import factors, linear_map, ways

WIDE = 4096  # units of a reader from which the strengths of what leads to it as a whole are kept


def build_index(trace: Trace, *, norm: str = "unit", position: int = -1) -> Index:
    """The index of a recording: who reads what who writes, by weights alone.

    `norm`: "unit" (scales of norms are one; gains and centring stay) or "frozen" (at the recording's scales at
    `position`). Raises InputError for another word.
    """
    if norm not in ("unit", "frozen"):
        raise InputError(f"Norms are 'frozen' (at the recording's scale) or 'unit' (scale one), not {norm!r}.")
    found = paths(trace, norm, position)
    arrays: dict[str, np.ndarray] = {}
    links = _links(found, arrays)
    _keep_directions(found, links, arrays)
    at = "the recording's scale" if norm == "frozen" else "scale one"
    scale = f"norms on the way at {at}, their gains and centring folded in"
    facts: dict[str, Any] = {
        "fingerprint": trace.net.fingerprint, "norm": norm, "note": scale, "links": links, "format": 1,
        "writers": _described(found.writers), "readers": _described(found.readers),
    }  # fmt: skip
    return Index(facts, arrays)


def table_of(found: Paths, write: int) -> Tensor | None:
    """[rows, d]: the parameter whose rows a source looks up, or None where it is none."""
    flow = found.flow
    maker = flow.maker(write)
    values = (write,) if maker is None else maker.inputs
    for value in values:
        if flow.graph.values[value].kind in ("param", "buffer") and len(flow.shape(value)) == 2:
            if flow.shape(value)[-1] == flow.shape(write)[-1]:
                return flow.tape.leaves[value].detach().float()
    return None


def _described(ends: tuple[End, ...]) -> list[dict[str, Any]]:
    rows = {
        end.label: {
            "label": end.label, "name": end.name, "port": end.port, "mark": end.mark, "count": end.count,
            "group": end.group, "kind": end.kind,
        }
        for end in ends
    }  # fmt: skip
    return list(rows.values())


def _keep_directions(found: Paths, links: list[tuple[str, str, float]], arrays: dict[str, np.ndarray]) -> None:
    """The directions of all ends that a factor joins, and the strengths of wide ones taken whole."""
    joined = [link for link in links if link[2]]
    writers = {end.label: end for end in found.writers if end.label in {link[0] for link in joined}}
    readers = {end.label: end for end in found.readers if end.label in {link[1] for link in joined}}
    sources = [label for label, end in writers.items() if end.kind == "embedding"]
    grams = {label: _kept_table(found, writers[label], arrays) for label in sources}
    wide = {}
    for label, end in readers.items():
        matrix = found.read(end)
        assert matrix is not None, "a reader's entrance leads to it"
        pack(arrays, f"R {label}", matrix.mT)
        if matrix.shape[1] >= WIDE:
            wide[label] = matrix @ matrix.mT
            arrays[f"G R {label}"] = wide[label].numpy()
        for source, gram in grams.items():
            factor = next((link[2] for link in joined if link[:2] == (source, label)), 0.0)
            if gram is not None and factor and label in wide:
                arrays[f"S {source} | {label}"] = _root((gram * wide[label]).sum().view(1, 1), factor)
            elif gram is not None and factor:
                squares = ((gram @ matrix) * matrix).sum(0).unflatten(0, (end.count, -1)).sum(1)
                arrays[f"S {source} | {label}"] = _root(squares, factor)[None]
    for label, end in writers.items():
        matrix = found.written(end)
        assert matrix is not None, "a writer leads to its exit"
        pack(arrays, f"W {label}", matrix)
        for reader, gram in wide.items():
            factor = next((link[2] for link in joined if link[:2] == (label, reader)), 0.0)
            if factor and f"S {label} | {reader}" not in arrays:
                squares = ((matrix @ gram) * matrix).sum(1).unflatten(0, (end.count, -1)).sum(1)
                arrays[f"S {label} | {reader}"] = _root(squares, factor)[:, None]


def _kept_table(found: Paths, end: End, arrays: dict[str, np.ndarray]) -> Tensor | None:
    """Keep the rows of a source's table; [d, d]: their mean square."""
    table = table_of(found, end.units.value)
    if table is None:
        return None
    pack(arrays, f"T {end.label}", table)
    gram = table.mT @ table / len(table)
    arrays[f"G W {end.label}"] = gram.numpy()
    return gram


def _root(squares: Tensor, factor: float) -> np.ndarray:
    found: np.ndarray = (squares.clamp(min=0).sqrt() * abs(factor)).numpy()
    return found


def pack(arrays: dict[str, np.ndarray], name: str, matrix: Tensor) -> None:
    """Keep a matrix as 16-bit integers with a scale a row: some 1/30,000 of a row's largest number is lost."""
    scale = (matrix.abs().amax(1) / 32767).clamp(min=1e-30)
    arrays[f"{name} scale"] = scale.numpy()
    arrays[name] = (matrix * (1 / scale)[:, None]).round_().to(torch.int16).numpy()


def _links(found: Paths, arrays: dict[str, np.ndarray]) -> list[tuple[str, str, float]]:
    """(writer, reader, factor); a factor of zero says that a table of strengths is kept."""
    links: dict[tuple[str, str], float] = {}
    for writer in found.writers:
        behind = [reader for reader in found.readers if _before(writer, reader, found)]
        # Steps of a cell share names, and each has a map of its own.
        flat = [not (writer.step or end.step or is_image(writer.joint) or is_image(end.joint)) for end in behind]
        joints = {end.joint.value: end.joint for end, plain in zip(behind, flat, strict=True) if plain}
        known = factors(found.frozen, writer.joint, list(joints.values()), found.position)
        between = dict(zip(joints, known, strict=True))
        for reader, plain in zip(behind, flat, strict=True):
            factor = between[reader.joint.value] if plain else float("nan")
            if not factor:  # no path, or another step of a cell
                continue
            if factor == factor:
                links[writer.label, reader.label] = factor
                continue
            strengths = _strengths(found, writer, reader)
            if strengths is not None and bool((strengths != 0).any()):
                name = f"S {writer.label} | {reader.label}"
                made = strengths.numpy().astype(np.float32)
                before = arrays.get(name, made)
                arrays[name] = np.where(np.abs(before) > np.abs(made), before, made)
                links[writer.label, reader.label] = 0.0
    return [(writer, reader, factor) for (writer, reader), factor in links.items()]


def _before(writer: End, reader: End, found: Paths) -> bool:
    graph = found.flow.graph
    if writer.matrix is not None and reader.matrix is not None and writer.units.value == reader.units.value:
        return False  # latents of one value do not read each other
    return graph.values[writer.units.value].op <= graph.values[reader.units.value].op


def _strengths(found: Paths, writer: End, reader: End) -> Tensor | None:
    """[writer's components, reader's components]: norms of the maps between them; of kernels in images. A reader of one
    component has its units there."""
    groups = (writer.group, reader.group if reader.count > 1 else 1)
    if not is_image(writer.units) and not is_image(reader.units):
        matrix = linear_map(found.frozen, writer.units, reader.units, found.position)
        return None if matrix is None else grouped(_between(writer, matrix, reader), groups)
    kernel = kernels(found, writer, reader)
    if kernel is None:
        return None
    signs = kernel.sum(2).mT.sign() if groups == (1, 1) else 1.0
    return grouped(kernel.square().sum(2).sqrt().mT, groups).abs() * signs


def kernels(found: Paths, writer: End, reader: End) -> Tensor | None:
    """[reader's units, writer's units, places]: what a reader's middle reads of each place of a writer.

    Maxima on the way choose what they chose in the run, so a reader is asked, not a writer: something is always chosen.
    """
    if not leads(found.frozen, writer.units.value, reader.units.value):
        return None
    start, end = writer.units, reader.units
    if start.value == end.value:
        return None
    back = ways(found.frozen, start, end)[1]
    values = torch.cat([back(rows) for rows in end.impulses(found.position, None).split(64)])
    values = values.unflatten(1, start.shape[:2]) if start.tiled else values
    order = [axis + 1 for axis in (*start.axes, *start.places)]
    first = values.movedim(start.first + 1, 1)[:, 0] if start.first not in start.axes else values
    order = [axis - (axis > start.first + 1) for axis in order] if start.first not in start.axes else order
    count = end.shape[end.slot] if len(end.axes) == 1 else values.shape[0]
    made = first.permute(0, *order).reshape(count, prod(start.shape[axis] for axis in start.axes), -1)
    made = made if writer.matrix is None else torch.einsum("rwp,lw->rlp", made, writer.matrix)
    return made if reader.matrix is None else torch.einsum("rwp,lr->lwp", made, reader.matrix)


def _between(writer: End, matrix: Tensor, reader: End) -> Tensor:
    """A map between units as one between their directions, where these have such."""
    matrix = matrix if writer.matrix is None else writer.matrix @ matrix
    return matrix if reader.matrix is None else matrix @ reader.matrix.mT
