"""Strings: what every unit reads and writes in human terms, by the linear paths of a recording.

Writing: a unit's direction at its exit, carried to the outputs, against every output's own direction (the logit lens of
nostalgebraist 2020, for weights; Geva et al. 2022, "Transformer Feed-Forward Layers Build Predictions"). Reading: its
direction at its entrance, carried back to the embedding, against every token's embedding; to an image, as a kernel.
Where no linear path leads to the outputs (another component lies between), a writer is compared with the embedding, and
the row says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..errors import InputError
from ..lift.responses import leads
from ..run.trace import Trace
from .build import kernels
from .ends import End, is_image, paths
from .filters import describe
from .found import Section, Strings
from .head_words import finish_heads, head
from .vocabularies import Work, add, fits, from_embedding, read_vocabularies, to_outputs

NORMS = {
    "unit": "final norm folded in: gain and centring, scale one",
    "frozen": "final norm folded in, at the recording's scale",
    "none": "final norm left out",
}
SIDES = ("reads", "writes", "sees", "ov reads", "ov writes", "qk query", "qk key")
_MOST_PATTERN = 400_000_000  # numbers of all kernels of a layer together


def strings(
    trace: Trace, *, norm: str = "unit", position: int = -1, labels: Sequence[str] | None = None, top: int = 6,
    random: int = 256, seed: int = 0, side: str = "",
) -> Strings:
    """What every unit of a recording reads and writes, as nearest entries of its vocabularies.

    `norm`: the final norm folded in ("unit", or "frozen" at the recording's scale at `position`) or left out ("none");
    the norm before a reader is always folded. `labels`: names of the outputs (classes). `top`: entries a side.
    `random`, `seed`: random directions of the control, against which z is measured. `side`: one of SIDES alone; others
    are not computed. Norms on the skip path (BERT) are followed as wiring. Raises InputError for another norm or side,
    or labels that do not fit the outputs.
    """  # fmt: skip
    if norm not in NORMS:
        raise InputError(f"The final norm is {', '.join(map(repr, NORMS))}, not {norm!r}.")
    if side not in ("", *SIDES):
        raise InputError(f"A side is one of {', '.join(SIDES)}, not {side!r}.")
    found = paths(trace, "frozen" if norm == "frozen" else "unit", position, through_norms=True)
    last = {end.name: end.step for end in (*found.writers, *found.readers)}
    found = replace(
        found,
        writers=tuple(end for end in found.writers if end.step == last[end.name]),
        readers=tuple(end for end in found.readers if end.step == last[end.name]),
    )
    work = Work(trace, found, norm, top, (random, seed), {})
    read_vocabularies(work, labels)
    inner = [end for end in found.writers if end.kind not in ("embedding", "input", "output")]
    heads = [end for end in inner if end.kind == "attention" and end.group > 1]
    for end in inner if side in ("", "writes") else ():
        if end not in heads:
            _writes(work, end)
    for end in found.readers if side in ("", "reads", "sees") else ():
        if end.kind not in ("attention", "output", "norm"):
            _reads(work, end)
    for end in heads if side not in ("writes", "reads", "sees") else ():
        head(work, end)
    finish_heads(work)
    notes = [NORMS[norm] + "; norms before readers folded in", f"z: against {random} random directions, seed {seed}"]
    said = {section.names[0] for section in work.sections}
    silent = [name for name in dict.fromkeys(work.silent) if not any(name in other for other in said)]
    if silent:
        notes.append(f"no linear path to words: {', '.join(silent)} (xrefs tells what they read and write)")
    return Strings(tuple(work.sections), work.labels, tuple(notes))


def _writes(work: Work, end: End) -> None:
    names = [end.component(slot) for slot in range(end.count)] if end.group == 1 else _dims(end)
    made = to_outputs(work, end)
    if made is not None:
        add(work, names, "writes", "outputs", *made)
        return
    directions = work.found.written(end)
    table = next((t for t in work.embeddings.values() if directions is not None and fits(t, directions)), None)
    if table is None or directions is None or is_image(end.joint) or end.step:
        work.silent.append(end.name)
        return
    add(work, names, "writes", f"{table.labels} (no linear path to the outputs)", directions, table)


def _dims(end: End) -> list[str]:
    return [f"{end.name}[{unit}]" for unit in range(end.count * end.group)]


def _reads(work: Work, end: End) -> None:
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
        matrix = from_embedding(found, writer, end)
        if matrix is not None and bool(matrix.any()):
            add(work, names, "reads", writer.name, matrix.mT, table)
            said = True
    if not said:
        work.silent.append(end.label)


def _sees(work: Work, end: End, pixels: End) -> bool:
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
    texts, z = describe(images, *work.control)
    names = [end.component(slot) for slot in range(end.count)] if end.group == 1 else _dims(end)
    through = f"{pixels.name}, {images.shape[2]}×{images.shape[3]}"
    work.sections.append(Section(names, "sees", through, "", None, z, texts))
    return True
