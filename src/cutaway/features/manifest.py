"""The manifest of collected rows: what they are, so that they are taken up again and read as nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import torch

from ..errors import FormatError, InputError
from ..formats.reading import read_json_file
from ..formats.writing import write_whole
from .shards import Shard

SCHEMA, VERSION = "cutaway.activations", 1
MANIFEST = "manifest.json"
_ZEROED = 0.01  # the share of numbers stored as zero that is told
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


class _Network(msgspec.Struct):
    fingerprint: str


class _Site(msgspec.Struct):
    site: str
    width: int
    axis: str


class _Shard(msgspec.Struct):
    file: str
    examples: tuple[int, int]

    def __post_init__(self) -> None:
        if Path(self.file).name != self.file:
            raise ValueError("a shard's name leads out of the folder")


class _Manifest(msgspec.Struct):
    """What is read of a manifest; the rest is for people."""

    complete: bool
    hash: str
    network: _Network
    data: dict[str, Any]
    sites: list[_Site]
    rows: list[str]
    inputs: list[str]
    dtype: Literal["float16", "bfloat16", "float32"]
    shards: list[_Shard]
    skip_first: int


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder. Raises FormatError for one that is missing, damaged, or of a later version."""
    path = folder / MANIFEST
    if not path.is_file():
        raise FormatError(f"'{folder}' holds no collected activations: it has no {MANIFEST}.")
    found = read_json_file(path)
    if not isinstance(found, dict) or found.get("schema") != SCHEMA or type(found.get("version")) is not int:
        raise FormatError(f"'{path}' is no manifest of collected activations.")
    if found["version"] > VERSION:
        raise FormatError(
            f"'{folder}' was written by a later Cutaway (version {found['version']} of its format, which this one does "
            "not know); update Cutaway to read it."
        )
    try:
        msgspec.convert(found, _Manifest)
    except msgspec.ValidationError as error:
        raise FormatError(f"'{path}' is damaged ({error}); collect again into another folder.") from error
    return found


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest, whole or not at all. Raises ResourceError."""
    write_whole(folder / MANIFEST, json.dumps(manifest, indent=1).encode())


def holds(shard: Shard, manifest: dict[str, Any]) -> bool:
    """Whether a shard has the tensors that a manifest tells of."""
    there = shard.tensors.tensors
    inputs = [f"inputs/{name}{part}" for name in manifest["inputs"] for part in ("", "/shape")]
    return all(name in there for name in ("examples/number", "examples/grid", *inputs)) and all(
        (found := there.get(f"values/{site['site']}")) is not None
        and (found.shape, found.dtype) == ((shard.rows, site["width"]), manifest["dtype"])
        for site in manifest["sites"]
    )


# What must be the same for a collection to be taken up again, and how its being another is said.
_ASKED = {
    "network": "of another network", "data": "of another kind of data", "sites": "of other sites",
    "rows": "of other rows", "dtype": "of another dtype", "skip_first": "with another skip_first",
    "batch": "in other batches", "limit": "with another limit", "seed": "with another seed",
    "inputs": "of other inputs", "hash": "of other data",
}  # fmt: skip
_PARTS = {"network": "fingerprint", "data": "kind"}  # what is compared of a mapping


def check_same(folder: Path, asked: dict[str, Any]) -> None:
    """Raises InputError where a folder holds a collection of something else than what is asked for."""
    there = read_manifest(folder)
    for key, said in _ASKED.items():
        one, two = (where.get(key) for where in (asked, there))
        if part := _PARTS.get(key):
            one, two = (where[key].get(part) for where in (asked, there))
        if key == "hash" and not (one and two):
            continue  # of data that are known when they have come
        if one != two:
            names = {"sites": [str(site["site"]) for site in there["sites"]], "hash": str(two)[:8]}
            told = names.get(key, two)
            told = ", ".join(told) if isinstance(told, list) else told
            raise InputError(
                f"'{folder}' holds a collection {said} ({told!s:.200}); collect into another folder, or remove it."
            )


def completed(manifest: dict[str, Any], shards: Sequence[Shard]) -> dict[str, Any]:
    """The manifest of a complete collection: its shards and the figures of their rows."""
    told: list[dict[str, Any]] = []
    rows = 0
    for shard in shards:
        told.append({
            "file": shard.path.name, "sha256": shard.digest, "bytes": shard.path.stat().st_size,
            "examples": [shard.first, shard.last], "rows": [rows, rows + shard.rows],
        })  # fmt: skip
        rows += shard.rows
    figures, notes = {}, []
    for site in (site["site"] for site in manifest["sites"]):
        norms, total = (
            np.sum([shard.read(f"{part}/{site}") for shard in shards], axis=0) / rows for part in ("norms", "sum")
        )
        figures[site] = {"mean_norm": float(norms[0]), "mean_square_norm": float(norms[1]), "mean": total.tolist()}
        there = [shard for shard in shards if f"zeroed/{site}" in shard.tensors.tensors]
        pairs: list[Any] = [[0, 0], *(shard.read(f"zeroed/{site}") for shard in there)]
        true, zeroed = map(int, np.sum(pairs, axis=0))
        if zeroed > true * _ZEROED:
            notes.append(
                f"about {zeroed / true:.0%} of the numbers of '{site}' that are not zero are stored as zero, being too "
                f"small for {manifest['dtype']}; together they are next to nothing, and dtype='float32' keeps them"
            )
    size = sum(int(one["bytes"]) for one in told)
    counts = {"rows": rows, "examples": shards[-1].last, "shards": len(shards), "bytes": size}
    notes = [*manifest["notes"], *notes]
    return manifest | {"complete": True, "shards": told, "counts": counts, "normalisation": figures, "notes": notes}
