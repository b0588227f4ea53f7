"""Heads in words: what OV copies and what QK looks for, a row a head and side."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .copying import copying_control, copying_score, strongest
from .ends import End
from .nearest import Table
from .vocabularies import HeadWords, Work, add, from_embedding, to_outputs

_CONTROLS = 64  # random heads


def head(work: Work, writer: End) -> None:
    """What OV copies and QK looks for, a row a head and side."""
    found = work.found
    ports = {end.port: end for end in found.readers if end.name == writer.name}
    source = next((end for end in found.writers if end.name in work.embeddings), None)
    table = work.embeddings.get(source.name) if source is not None else None
    reads = {}
    for port, end in ports.items():
        matrix = from_embedding(found, source, end) if source is not None else None
        if matrix is not None and bool(matrix.any()):
            parts = matrix.unflatten(1, (end.count, -1)).movedim(1, 0)
            reads[port] = parts.repeat_interleave(writer.count // len(parts), 0)
    made = to_outputs(work, writer)
    outs = made[0].unflatten(0, (writer.count, -1)) if made is not None else None
    names = [writer.component(slot) for slot in range(writer.count)]
    if "q" in reads and "k" in reads and table is not None:
        into, out, share = strongest(reads["q"], reads["k"].mT)
        texts = [f"{part:.0%} of QK" for part in share.tolist()]
        work.heads.setdefault(("qk query", "qk key"), []).append(HeadWords(names, (table, table), (into, out), texts))
    if "v" in reads and outs is not None and table is not None and made is not None:
        into, out, share = strongest(reads["v"], outs)
        copies = _copies(work, reads["v"], outs, made[1], table)
        texts = [f"{part:.0%} of OV{copy}" for part, copy in zip(share.tolist(), copies, strict=True)]
        said = HeadWords(names, (table, made[1]), (into, out), texts)
        work.heads.setdefault(("ov reads", "ov writes"), []).append(said)
    elif outs is not None and made is not None:
        rights = torch.stack([torch.linalg.svd(out, full_matrices=False).Vh[0] for out in outs])
        add(work, names, "ov writes", "outputs", rights, made[1])
    elif "v" in reads and table is not None:
        lefts = torch.stack([torch.linalg.svd(v, full_matrices=False).U[:, 0] for v in reads["v"]])
        add(work, names, "ov reads", table.labels, lefts, table)
    if not reads and outs is None:
        work.silent.append(writer.name)


def finish_heads(work: Work) -> None:
    """Two rows a head, turned so that the first side's stronger end is its top."""
    for sides, parts in work.heads.items():
        names = [name for part in parts for name in part.names]
        texts = [text for part in parts for text in part.texts]
        turned: Tensor | None = None
        for at, side in enumerate(sides):
            table = parts[0].tables[at]
            both = torch.cat([part.directions[at] for part in parts])
            near = add(work, names, side, table.labels, both, table, texts)
            if turned is None:
                directions = torch.cat([part.directions[0] for part in parts])
                middle = directions @ table.mean / directions.norm(dim=1).clamp(min=1e-30)
                turned = middle - near.low_values[:, 0] > near.top_values[:, 0] - middle
            work.sections[-1] = replace(work.sections[-1], nearest=near.turned(turned))


def _copies(work: Work, values: Tensor, outs: Tensor, outputs: Table, table: Table) -> list[str]:
    """How far each head copies: its score, and how far that stands above random heads."""
    if outputs.rows.shape[0] != table.rows.shape[0]:
        return [""] * len(values)
    meeting = outputs.meeting(table)
    key = (values.shape[2], work.control[1])
    if key not in work.copying:
        shape = (values.shape[1], outs.shape[2], values.shape[2])
        work.copying[key] = copying_control(shape, meeting, _CONTROLS, work.control[1])
    mean, spread = work.copying[key]
    scores = [copying_score(value, out, meeting) for value, out in zip(values, outs, strict=True)]
    return [f", copying {score:+.2f} (z {(score - mean) / spread:+.1f})" for score in scores]
