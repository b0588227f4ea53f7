"""Strings: what every unit reads and writes in human terms, by the linear paths of a recording.

Writing: a unit's direction at its exit, carried to the outputs, against every output's own direction (the logit lens of
nostalgebraist 2020, for weights; Geva et al. 2022, "Transformer Feed-Forward Layers Build Predictions"). Reading: its
direction at its entrance, carried back to the embedding, against every token's embedding; to an image, as a kernel.
Where no linear path leads to the outputs (another component lies between), a writer is compared with the embedding, and
the row says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..errors import InputError
from ..lift import ops
from ..lift.ops import active, sort_name
from ..lift.responses import leads, plain_units
from ..run.trace import Trace
from .build import kernels, table_of
from .copying import copying_control, copying_score, strongest
from .ends import End, Paths, is_image, paths
from .filters import describe
from .found import Section, Strings
from .maps import factors, linear_map
from .nearest import Nearest, Table

NORMS = {
    "unit": "final norm folded in: gain and centring, scale one",
    "frozen": "final norm folded in, at the recording's scale",
    "none": "final norm left out",
}
_MOST_PATTERN = 400_000_000  # numbers of all kernels of a layer together
_CONTROLS = 64  # random heads


@dataclass(frozen=True, eq=False)
class _Head:
    """Directions of one attention's heads on two sides, each with its table, and what else there is to say."""

    names: list[str]
    tables: tuple[Table, Table]
    directions: tuple[Tensor, Tensor]
    texts: list[str]


@dataclass(eq=False)
class _Reader:
    """The work of one call: paths, tables and what has been found."""

    trace: Trace
    found: Paths
    norm: str
    count: int
    random: int
    seed: int
    labels: dict[str, list[str]]
    outputs: Table | None = None
    embeddings: dict[str, Table] = field(default_factory=dict)
    sections: list[Section] = field(default_factory=list)
    heads: dict[tuple[str, str], list[_Head]] = field(default_factory=dict)
    copying: dict[tuple[int, int], tuple[float, float]] = field(default_factory=dict)
    meeting: Tensor | None = None
    silent: list[str] = field(default_factory=list)


def strings(
    trace: Trace, *, norm: str = "unit", position: int = -1, labels: Sequence[str] | None = None, top: int = 6,
    random: int = 256, seed: int = 0,
) -> Strings:
    """What every unit of a recording reads and writes, as nearest entries of its vocabularies.

    `norm`: the final norm folded in ("unit", or "frozen" at the recording's scale at `position`) or left out ("none");
    the norm before a reader is always folded. `labels`: names of the outputs (classes). `top`: entries a side.
    `random`, `seed`: random directions of the control, against which z is measured. Norms on the skip path (BERT) are
    followed as wiring. Raises InputError for another norm, or labels that do not fit the outputs.
    """  # fmt: skip
    if norm not in NORMS:
        raise InputError(f"The final norm is {', '.join(map(repr, NORMS))}, not {norm!r}.")
    found = paths(trace, "frozen" if norm == "frozen" else "unit", position, through_norms=True)
    last = {end.name: end.step for end in (*found.writers, *found.readers)}
    found = replace(
        found,
        writers=tuple(end for end in found.writers if end.step == last[end.name]),
        readers=tuple(end for end in found.readers if end.step == last[end.name]),
    )
    work = _Reader(trace, found, norm, top, random, seed, {})
    _vocabularies(work, labels)
    inner = [end for end in found.writers if end.kind not in ("embedding", "input", "output")]
    for end in inner:
        if end.kind != "attention" or end.group == 1:
            _writes(work, end)
    for end in found.readers:
        if end.kind not in ("attention", "output", "norm"):
            _reads(work, end)
    for end in inner:
        if end.kind == "attention" and end.group > 1:
            _head(work, end)
    _finish_heads(work)
    notes = [NORMS[norm] + "; norms before readers folded in", f"z: against {random} random directions, seed {seed}"]
    said = {section.names[0] for section in work.sections}
    silent = [name for name in dict.fromkeys(work.silent) if not any(name in other for other in said)]
    if silent:
        notes.append(f"no linear path to words: {', '.join(silent)} (xrefs tells what they read and write)")
    return Strings(tuple(work.sections), work.labels, tuple(notes))


# ---- vocabularies


def _vocabularies(work: _Reader, labels: Sequence[str] | None) -> None:
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


def _tokens(work: _Reader, count: int) -> list[str]:
    found = []
    for token in range(count):
        try:
            found.append(work.trace.net.token_text(token))
        except (IndexError, KeyError, OverflowError, TypeError, ValueError):  # rows beyond the tokenizer's words
            found.append(f"<{token}>")
    return found


# ---- units


def _writes(work: _Reader, end: End) -> None:
    names = [end.component(slot) for slot in range(end.count)] if end.group == 1 else _dims(end)
    made = _to_outputs(work, end)
    if made is not None:
        _add(work, names, "writes", "outputs", *made)
        return
    directions = work.found.written(end)
    table = next((t for t in work.embeddings.values() if directions is not None and _fits(t, directions)), None)
    if table is None or directions is None or is_image(end.joint) or end.step:
        work.silent.append(end.name)
        return
    _add(work, names, "writes", f"{table.labels} (no linear path to the outputs)", directions, table)


def _dims(end: End) -> list[str]:
    return [f"{end.name}[{unit}]" for unit in range(end.count * end.group)]


def _fits(table: Table, directions: Tensor) -> bool:
    return table.rows.shape[1] == directions.shape[1]


def _to_outputs(work: _Reader, end: End) -> tuple[Tensor, Table] | None:
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
        return None if matrix is None else (torch.eye(len(matrix)), Table(matrix.mT, "outputs"))
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
    return (directions, work.outputs) if _fits(work.outputs, directions) else None


def _output_table(work: _Reader, output: End) -> Table:
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


def _reads(work: _Reader, end: End) -> None:
    found = work.found
    pixels = next((writer for writer in found.writers if writer.kind == "input" and len(writer.units.shape) == 4), None)
    if pixels is not None and _sees(work, end, pixels):
        return
    names = [end.component(slot) for slot in range(end.count)] if end.group == 1 else _dims(end)
    said = False
    for writer in found.writers:
        table = work.embeddings.get(writer.name)
        if table is None or end.step != 0 and not leads(found.frozen, writer.units.value, end.units.value):
            continue
        matrix = _from(found, writer, end)
        if matrix is not None and bool(matrix.any()):
            _add(work, names, "reads", writer.name, matrix.mT, table)
            said = True
    if not said:
        work.silent.append(end.label)


def _from(found: Paths, writer: End, end: End) -> Tensor | None:
    """[embedding's units, reader's units]: what a reader reads of an embedding."""
    if not leads(found.frozen, writer.units.value, end.units.value):
        return None
    if end.step or is_image(end.joint) or end.joint.value == end.units.value:
        return linear_map(found.frozen, writer.units, end.units, found.position)
    factor = factors(found.frozen, writer.units, [end.joint], found.position)[0]
    own = found.read(end)
    if factor is None or own is None:
        return None
    if factor == factor:
        return own * factor
    between = linear_map(found.frozen, writer.units, end.joint, found.position)
    return None if between is None else between @ own


def _sees(work: _Reader, end: End, pixels: End) -> bool:
    """Describe a reader's kernels on the image, where it has such."""
    size = end.count * end.group * torch.tensor(pixels.units.shape[1:]).prod()
    if end.kind == "output" or size > _MOST_PATTERN:
        return False
    seen = kernels(work.found, pixels, end)
    if seen is None or not bool(seen.any()):
        return False
    images = seen.unflatten(2, [pixels.units.shape[axis] for axis in pixels.units.places])
    used = images.abs().sum((0, 1)).nonzero()
    low, high = used.amin(0).tolist(), used.amax(0).tolist()
    images = images[:, :, low[0] : high[0] + 1, low[1] : high[1] + 1]
    texts, z = describe(images, work.random, work.seed)
    names = [end.component(slot) for slot in range(end.count)] if end.group == 1 else _dims(end)
    work.sections.append(Section(names, "sees", f"{pixels.name}, {images.shape[2]}×{images.shape[3]}", "", None, z, texts))
    return True


def _add(
    work: _Reader, names: Sequence[str], side: str, through: str, directions: Tensor, table: Table,
    texts: Sequence[str] = (),
) -> Nearest:
    near = table.nearest(directions, work.count)
    mean, spread = table.control(work.random, work.seed)
    z = torch.where(directions.norm(dim=1) > 0, (near.peak - mean) / spread, torch.nan)
    work.sections.append(Section(names, side, through, table.labels, near, z, texts))
    return near


# ---- heads


def _head(work: _Reader, writer: End) -> None:
    """What OV copies and QK looks for, a row a head and side."""
    found = work.found
    ports = {end.port: end for end in found.readers if end.name == writer.name}
    source = next((end for end in found.writers if end.name in work.embeddings), None)
    table = work.embeddings.get(source.name) if source is not None else None
    reads = {}
    for port, end in ports.items():
        matrix = _from(found, source, end) if source is not None else None
        if matrix is not None and bool(matrix.any()):
            parts = matrix.unflatten(1, (end.count, -1)).movedim(1, 0)
            reads[port] = parts.repeat_interleave(writer.count // len(parts), 0)
    made = _to_outputs(work, writer)
    outs = made[0].unflatten(0, (writer.count, -1)) if made is not None else None
    names = [writer.component(slot) for slot in range(writer.count)]
    if "q" in reads and "k" in reads and table is not None:
        into, out, share = strongest(reads["q"], reads["k"].mT)
        texts = [f"{part:.0%} of QK" for part in share.tolist()]
        work.heads.setdefault(("qk query", "qk key"), []).append(_Head(names, (table, table), (into, out), texts))
    if "v" in reads and outs is not None and table is not None and made is not None:
        into, out, share = strongest(reads["v"], outs)
        copies = _copies(work, reads["v"], outs, made[1], table)
        texts = [f"{part:.0%} of OV{copy}" for part, copy in zip(share.tolist(), copies, strict=True)]
        work.heads.setdefault(("ov reads", "ov writes"), []).append(_Head(names, (table, made[1]), (into, out), texts))
    elif outs is not None and made is not None:
        rights = torch.stack([torch.linalg.svd(out, full_matrices=False).Vh[0] for out in outs])
        _add(work, names, "ov writes", "outputs", rights, made[1])
    elif "v" in reads and table is not None:
        lefts = torch.stack([torch.linalg.svd(v, full_matrices=False).U[:, 0] for v in reads["v"]])
        _add(work, names, "ov reads", table.labels, lefts, table)
    if not reads and outs is None:
        work.silent.append(writer.name)


def _finish_heads(work: _Reader) -> None:
    """Two rows a head, turned so that the first side's stronger end is its top."""
    for sides, parts in work.heads.items():
        names = [name for part in parts for name in part.names]
        texts = [text for part in parts for text in part.texts]
        turned: Tensor | None = None
        for at, side in enumerate(sides):
            table = parts[0].tables[at]
            near = _add(work, names, side, table.labels, torch.cat([part.directions[at] for part in parts]), table, texts)
            if turned is None:
                directions = torch.cat([part.directions[0] for part in parts])
                middle = directions @ table.mean / directions.norm(dim=1).clamp(min=1e-30)
                turned = middle - near.low_values[:, 0] > near.top_values[:, 0] - middle
            work.sections[-1] = replace(work.sections[-1], nearest=near.turned(turned))


def _copies(work: _Reader, values: Tensor, outs: Tensor, outputs: Table, table: Table) -> list[str]:
    """How far each head copies: its score, and how far that stands above random heads."""
    if outputs.rows.shape[0] != table.rows.shape[0]:
        return [""] * len(values)
    if work.meeting is None:
        work.meeting = outputs.rows.mT @ table.rows
    meeting = work.meeting
    key = (values.shape[2], work.seed)
    if key not in work.copying:
        work.copying[key] = copying_control(values.shape[1], outs.shape[2], values.shape[2], meeting, _CONTROLS, work.seed)
    mean, spread = work.copying[key]
    scores = [copying_score(value, out, meeting) for value, out in zip(values, outs, strict=True)]
    return [f", copying {score:+.2f} (z {(score - mean) / spread:+.1f})" for score in scores]
