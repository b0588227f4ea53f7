"""Building an index: one pass over the rows, then latents sorted piece by piece, in bounded memory.

Rows are encoded as they come, and what fires is appended to scratch files by row. Counts then say where each latent's
entries go: pieces of the scratch are scattered there (a counting sort), and runs of latents are sorted by activation.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, ResourceError
from .arrays import Shapes, new_arrays
from .dictionary import Dictionary, concatenated
from .seen import Part, Seen, kind_of

ENTRIES = 1 << 21  # that are sorted at once, about: 40 MiB
Progress = Callable[[str, int, int], None]


@dataclass
class Pass:
    """What one pass over the rows found: how many entries each row and each latent has, and where rows lie."""

    counts: np.ndarray
    most: np.ndarray
    rows: list[np.ndarray] = field(default_factory=list)
    example: list[np.ndarray] = field(default_factory=list)
    position: list[np.ndarray] = field(default_factory=list)

    def row_counts(self) -> np.ndarray:
        """[rows]: latents that fired on each."""
        return np.concatenate(self.rows) if self.rows else np.zeros(0, np.int64)


def fill(folder: Path, dictionary: Dictionary, seen: Seen, progress: Progress) -> dict[str, Any]:
    """Write the arrays of an index into a folder; gives their counts. Raises what the source raises, InputError for
    rows that are not finite or not in order, ResourceError when the disk is full."""
    sites = [place.site for place in dictionary.card.reads]
    latents, values = folder / "latents.scratch", folder / "values.scratch"
    try:
        with latents.open("wb") as first, values.open("wb") as second:
            found = _encode(dictionary, seen, sites, (first, second), progress)
        counts = found.row_counts()
        if not len(counts):
            raise InputError("There are no rows to index; give at least one example.")
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        raw = [_mapped(latents, "<i4", int(offsets[-1])), _mapped(values, "<f4", int(offsets[-1]))]
        axes = found.position[0].shape[1]
        arrays = new_arrays(
            folder / "index.safetensors", shapes(len(counts), len(found.counts), int(offsets[-1]), axes)
        )
        arrays["offsets"][:] = offsets
        arrays["starts"][:] = np.concatenate([[0], np.cumsum(found.counts)])
        arrays["scales"][:] = np.where(found.most > 0, found.most, 1.0)
        arrays["example"][:] = np.concatenate(found.example)
        arrays["position"][:] = np.concatenate(found.position)
        _scatter(arrays, raw, folder, progress)
        for array in arrays.values():
            if isinstance(array, np.memmap):
                array.flush()
    except OSError as error:
        raise ResourceError(f"The index in '{folder.parent}' cannot be written: {error.strerror or error}.") from error
    for name in (latents, values, folder / "sorted.scratch"):
        with suppress(OSError):
            name.unlink()
    write_examples(folder / "examples.safetensors", seen.examples)
    return {
        "rows": len(counts), "latents": len(found.counts), "entries": int(offsets[-1]), "axes": axes,
        "examples": len(seen.examples), "kind": kind_of(seen.examples[0]),
    }  # fmt: skip


def shapes(rows: int, latents: int, entries: int, axes: int) -> Shapes:
    """The arrays of an index: by row (`offsets`, `latents`, `values`), by latent in order of activation (`starts`,
    `sorted_rows`, `sorted_values`), `scales` that half-precision values are multiples of, and where rows lie."""
    return {
        "offsets": ("int64", (rows + 1,)), "latents": ("int32", (entries,)), "values": ("float16", (entries,)),
        "starts": ("int64", (latents + 1,)), "sorted_rows": ("int32", (entries,)),
        "sorted_values": ("float16", (entries,)), "scales": ("float32", (latents,)),
        "example": ("int32", (rows,)), "position": ("int32", (rows, axes)),
    }  # fmt: skip


def _encode(
    dictionary: Dictionary, seen: Seen, sites: Sequence[str], files: tuple[BinaryIO, BinaryIO], progress: Progress
) -> Pass:
    found = Pass(np.zeros(dictionary.latents, np.int64), np.zeros(dictionary.latents, np.float32))
    last = -1
    for part in seen.parts(sites):
        value = concatenated(part.values, tuple(sites)).to(torch.float32)
        _check(value, part, last)
        with torch.no_grad():
            codes = dictionary.codes(value)
        latents, values = codes.latents.cpu().numpy(), codes.values.detach().float().cpu().numpy()
        files[0].write(latents.astype("<i4").tobytes())
        files[1].write(values.astype("<f4").tobytes())
        found.counts += np.bincount(latents, minlength=dictionary.latents)
        np.maximum.at(found.most, latents, np.abs(values))
        found.rows.append(codes.offsets.diff().cpu().numpy())
        found.example.append(part.example.cpu().numpy().astype(np.int32))
        found.position.append(part.position.cpu().numpy().astype(np.int32))
        last = int(part.example[-1]) if len(part.example) else last
        progress("rows", last + 1, len(seen.examples))
    return found


def _check(value: Tensor, part: Part, last: int) -> None:
    if not bool(value.isfinite().all()):
        row = int((~value.isfinite()).any(1).nonzero()[0, 0])
        position = tuple(part.position[row].tolist())
        where = f"example {int(part.example[row])}" + (f", position {position}" if position else "")
        raise InputError(f"The values at {where} are not finite; find out why, or leave that example out.")
    if len(part.example) and (int(part.example[0]) < last or bool((part.example.diff() < 0).any())):
        raise InputError("The rows of an index must follow one another as the examples do; give them unshuffled.")


def _mapped(path: Path, dtype: str, count: int) -> np.ndarray:
    return np.memmap(path, dtype, "r", 0, (count,)) if count else np.zeros(0, dtype)


def _scatter(arrays: dict[str, np.ndarray], raw: Sequence[np.ndarray], folder: Path, progress: Progress) -> None:
    """Values in half precision by row, then all entries by latent and activation."""
    offsets, starts, scales = arrays["offsets"], arrays["starts"], arrays["scales"]
    entries, count = int(offsets[-1]), len(scales)
    exact = new_arrays(folder / "sorted.scratch", {"sorted": ("float32", (entries,))})["sorted"]
    cursor = np.array(starts[:-1])
    kind = np.uint16 if count <= 1 << 16 else np.int32  # NumPy sorts 16 bits by radix
    for begin, end in _runs(offsets, ENTRIES):
        low, high = int(offsets[begin]), int(offsets[end])
        latents, values = np.array(raw[0][low:high]), np.array(raw[1][low:high])
        arrays["latents"][low:high] = latents
        arrays["values"][low:high] = values / scales[latents]
        rows = np.repeat(np.arange(begin, end, dtype=np.int32), np.diff(offsets[begin : end + 1]))
        order = np.argsort(latents.astype(kind), kind="stable")
        by = latents[order]
        here = np.bincount(by, minlength=count)
        rank = np.arange(len(by)) - np.repeat(np.cumsum(here) - here, here)
        to = cursor[by] + rank
        arrays["sorted_rows"][to], exact[to] = rows[order], values[order]
        cursor += here
        progress("entries by latent", high, entries)
    for begin, end in _runs(starts, ENTRIES):
        low, high = int(starts[begin]), int(starts[end])
        owner = np.repeat(np.arange(begin, end), np.diff(starts[begin : end + 1]))
        values = np.array(exact[low:high])
        order = np.lexsort((-values, owner)) if end - begin > 1 else np.argsort(-values, kind="stable")
        arrays["sorted_rows"][low:high] = arrays["sorted_rows"][low:high][order]
        arrays["sorted_values"][low:high] = values[order] / scales[owner]
        progress("latents in order", end, count)


def _runs(offsets: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """Runs of rows (or latents) that have at most so many entries together, one at least."""
    begin, last = 0, len(offsets) - 1
    while begin < last:
        end = int(np.searchsorted(offsets, offsets[begin] + most, side="right")) - 1
        end = min(max(end, begin + 1), last)
        yield begin, end
        begin = end


def write_examples(path: Path, examples: Sequence[Tensor]) -> None:
    """The inputs in one array and where each begins; those of one shape only, or of one axis (texts)."""
    first = examples[0]
    if any(item.shape[1:] != first.shape[1:] for item in examples):
        raise InputError("The examples have different shapes; an index holds those of one shape, or texts.")
    lengths = np.array([len(item) if item.ndim else 1 for item in examples])
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    dtype = "float32" if first.is_floating_point() else "int32"
    inner = tuple(first.shape[1:])
    arrays = new_arrays(path, {"inputs": (dtype, (int(starts[-1]), *inner)), "input_starts": ("int64", starts.shape)})
    arrays["input_starts"][:] = starts
    for place, item in enumerate(examples):
        arrays["inputs"][starts[place] : starts[place + 1]] = item.detach().cpu().numpy()


def put_in_place(made: Path, folder: Path) -> None:
    """A finished folder at its place, and the one that was there before away. Raises ResourceError."""
    old = made.with_name(f"{made.name}.old")
    try:
        if folder.exists():
            folder.rename(old)
        made.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise ResourceError(f"The index cannot be put at '{folder}': {error.strerror or error}.") from error


def scratch_folder(folder: Path) -> Path:
    """An empty folder beside the index's own; what a killed build left there is removed. Raises ResourceError."""
    made = folder.with_name(f".{folder.name}.partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        old = made.with_name(f"{made.name}.old")
        if old.exists() and not folder.exists():  # killed between the two renames
            old.rename(folder)
        for left in (made, old):
            if left.exists():
                shutil.rmtree(left)
        made.mkdir()
    except OSError as error:
        raise ResourceError(f"No index can be made at '{folder}': {error.strerror or error}.") from error
    return made
