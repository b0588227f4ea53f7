"""Shards of collected rows: immutable safetensors files that say themselves what they hold.

A shard's name is the number of its first example, in the order of collection, and the SHA-256 of its bytes. It is
written under another name, flushed to the disk and then renamed, so a file of that name is complete; no list has to be
in step with the folder, and a kill at any moment loses what was not yet a shard and nothing else.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import CutawayError, FormatError, ResourceError
from ..formats import open_checkpoint
from ..formats.checkpoint import Checkpoint
from ..formats.writing import safetensors_head
from .data import content

_NAME = re.compile(r"(\d{12})-([0-9a-f]{64})\.safetensors")
_PARTIAL = ".partial-"
_KEY = "cutaway.activations"
# Dtypes that shards store, by their code in safetensors.
STORED = {
    torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64", torch.bool: "BOOL",
    torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.int32: "I32", torch.int64: "I64",
}  # fmt: skip


@dataclass(frozen=True)
class Shard:
    """A shard that is there: its examples from `first` up to `last`, in the order of collection, have `rows` rows."""

    path: Path
    first: int
    last: int
    rows: int
    tensors: Checkpoint = field(repr=False)

    @property
    def digest(self) -> str:
        """The SHA-256 that its bytes should have."""
        return self.path.name[13:77]

    def read(self, name: str) -> np.ndarray:
        """A tensor as a view of the file; bfloat16 comes as its bits. Raises FormatError where there is none."""
        return np.asarray(self.tensors.read(name))


def write_shard(folder: Path, first: int, last: int, rows: int, tensors: Mapping[str, Sequence[Tensor]]) -> Shard:
    """Write a shard of tensors, each given in pieces along the first axis. Raises ResourceError from the disk."""
    # Wide numbers first, so that every tensor is aligned to its own.
    names = sorted(tensors, key=lambda name: (-tensors[name][0].itemsize, name))
    told = {_KEY: json.dumps({"first": first, "last": last, "rows": rows})}
    head = safetensors_head(((name, *_described(tensors[name])) for name in names), told)
    digest = hashlib.sha256()
    partial = folder / f"{_PARTIAL}{os.getpid()}"
    try:
        with partial.open("wb") as file:
            start: list[bytes | memoryview] = [head]
            for part in itertools.chain(start, (content(piece) for name in names for piece in tensors[name])):
                digest.update(part)
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        path = folder / f"{first:012d}-{digest.hexdigest()}.safetensors"
        partial.replace(path)
        sync(folder)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise ResourceError(
            f"A shard cannot be written to '{folder}' ({error.strerror or error}); the {first:,} examples before it "
            "are kept, so make room and collect again with the same arguments."
        ) from error
    return shard_at(path)


def _described(pieces: Sequence[Tensor]) -> tuple[str, list[int], int]:
    """Code, shape and bytes of a tensor in pieces."""
    shape = [sum(len(piece) for piece in pieces), *pieces[0].shape[1:]]
    return STORED[pieces[0].dtype], shape, sum(piece.nbytes for piece in pieces)


def sync(folder: Path) -> None:
    """Flush a folder's entries, so that a rename survives a power cut (POSIX; other systems do it themselves)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sweep(folder: Path) -> None:
    """Remove what a killed writer left."""
    for path in folder.glob(f"{_PARTIAL}*"):
        with suppress(OSError):
            path.unlink()


def listed(folder: Path) -> list[Path]:
    """The files of a folder that are named like shards, in order."""
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def shard_at(path: Path) -> Shard:
    """What a file says it is; its header is checked, its bytes are not. Raises FormatError when it is damaged."""
    checkpoint = open_checkpoint(path)
    try:
        told = json.loads(checkpoint.metadata["metadata"][_KEY])
        found = Shard(path, told["first"], told["last"], told["rows"], checkpoint)
        rows = {info.shape[0] for name, info in checkpoint.tensors.items() if name.startswith("values/")}
        examples = checkpoint.tensors["examples/number"].shape
        sound = rows == {found.rows} and examples == (found.last - found.first,)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise FormatError(f"'{path}' is no shard of activations.") from error
    if not sound or found.first != int(path.name[:12]):
        raise FormatError(f"'{path}' holds other rows than it says.")
    return found


def damage(shard: Shard) -> str:
    """What is wrong with a shard's bytes; empty if they are what was written."""
    try:
        with shard.path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"'{shard.path}' cannot be read ({error.strerror or error})"
    return "" if found == shard.digest else f"'{shard.path.name}' is not what was written: its bytes have changed"


def sound_shards(folder: Path) -> tuple[list[Shard], list[str]]:
    """The shards whose bytes are what was written, in order, and what is wrong with the others, which are removed."""
    good: list[Shard] = []
    wrong: list[str] = []
    for path in listed(folder):
        try:
            shard = shard_at(path)
            why = damage(shard)
        except CutawayError as error:
            shard, why = None, str(error).rstrip(".")
        if shard is not None and not why and (not good or shard.first >= good[-1].last):
            good.append(shard)
            continue
        wrong.append(why or f"'{path.name}' holds examples that another shard holds")
        path.unlink(missing_ok=True)
    return good, wrong


def gaps(shards: Iterable[Shard], end: int | None = None) -> list[tuple[int, int | None]]:
    """The ranges of examples that no shard holds, up to `end` (None: without end)."""
    found: list[tuple[int, int | None]] = []
    at = 0
    for shard in shards:
        if shard.first > at:
            found.append((at, shard.first))
        at = shard.last
    return [*found, (at, end)] if end is None or at < end else found
