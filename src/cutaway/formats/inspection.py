"""`info`: what is in a checkpoint, as plain data for a terminal, a browser or a script."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cutaway.formats.checkpoint import Checkpoint, TensorInfo
from cutaway.formats.dtypes import nonfinite
from cutaway.formats.opening import open_checkpoint
from cutaway.formats.reading import file_size

CHUNK = 1 << 20  # elements looked at together
PREFIXES = 500


def info(path: str | Path, *, sha256: bool = False, scan: bool = False) -> dict[str, Any]:
    """Facts about a checkpoint, JSON-able; nothing from the file is executed.

    `parameters` counts every stored value once, tied tensors too. `sha256` hashes the files; `scan` reads all values,
    counts NaN and infinities, and finds tensors with equal content. Raises FormatError.
    """
    checkpoint = open_checkpoint(path)
    tied = _tied(checkpoint)
    again = {name for group in tied for name in group[1:]}
    counted = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in again}
    facts: dict[str, Any] = {
        "path": str(path),
        "format": checkpoint.format,
        "files": [_file(file, sha256) for file in checkpoint.paths],
        "size": sum(file_size(file) for file in checkpoint.paths),
        "tensors": [
            {"name": name, "dtype": tensor.dtype, "shape": list(tensor.shape), "bytes": tensor.nbytes}
            for name, tensor in checkpoint.tensors.items()
        ],
        "parameters": sum(tensor.elements for tensor in counted.values()),
        "dtypes": _totals((tensor.dtype, tensor) for tensor in counted.values()),
        "prefixes": dict(
            list(_totals((_prefix(name), tensor) for name, tensor in checkpoint.tensors.items()).items())[:PREFIXES]
        ),
        "tied": tied,
        "risks": [{"severity": risk.severity, "text": risk.text} for risk in checkpoint.risks],
        "metadata": checkpoint.metadata,
    }
    if scan:
        facts["nonfinite"], facts["duplicates"] = _scan(checkpoint, counted)
    return facts


def _file(path: Path, sha256: bool) -> dict[str, Any]:
    facts: dict[str, Any] = {"path": str(path), "bytes": file_size(path)}
    if sha256:
        with path.open("rb") as file:
            facts["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    return facts


def _totals(rows: Iterator[tuple[str, TensorInfo]]) -> dict[str, dict[str, int]]:
    """Tensors, parameters and bytes for each key, in order of appearance."""
    totals: dict[str, dict[str, int]] = {}
    for key, tensor in rows:
        total = totals.setdefault(key, {"tensors": 0, "parameters": 0, "bytes": 0})
        total["tensors"] += 1
        total["parameters"] += tensor.elements
        total["bytes"] += tensor.nbytes
    return totals


def _prefix(name: str) -> str:
    """The block a tensor belongs to: up to the first number in its name, else all but the last part."""
    parts = name.split(".")
    for index, part in enumerate(parts[:-1]):
        if part.isdecimal():
            return ".".join(parts[: index + 1])
    return ".".join(parts[:-1]) or name


def _tied(checkpoint: Checkpoint) -> list[list[str]]:
    """Names that share the very same bytes of a file."""
    places: dict[Any, list[str]] = {}
    for name, tensor in checkpoint.tensors.items():
        if tensor.nbytes:
            places.setdefault((tensor.place.path, tensor.place.offset, tensor.place.size), []).append(name)
    return [names for names in places.values() if len(names) > 1]


def _scan(checkpoint: Checkpoint, counted: dict[str, TensorInfo]) -> tuple[dict[str, dict[str, int]], list[list[str]]]:
    """NaN and infinity counts of tensors that have any, and groups of tensors with equal shape and content."""
    found: dict[str, dict[str, int]] = {}
    contents: dict[Any, list[str]] = {}
    for name, tensor in counted.items():
        if tensor.expanded or not tensor.nbytes:
            continue  # an expanded tensor may be far larger than its file
        digest, nan, inf = hashlib.sha256(), 0, 0
        for piece in _pieces(checkpoint.read(name)):
            digest.update(piece.data)
            more = nonfinite(tensor.dtype, piece)
            nan, inf = nan + more[0], inf + more[1]
        if nan or inf:
            found[name] = {"nan": nan, "inf": inf}
        contents.setdefault((tensor.dtype, tensor.shape, digest.digest()), []).append(name)
    return found, [names for names in contents.values() if len(names) > 1]


def _pieces(values: np.ndarray) -> Iterator[np.ndarray]:
    """`values` in C order, in contiguous pieces of bounded size, without copying the whole."""
    if values.flags.c_contiguous:
        flat = values.reshape(-1)
        for start in range(0, flat.size, CHUNK):
            yield flat[start : start + CHUNK]
    elif values.size <= CHUNK:
        yield np.ascontiguousarray(values)
    else:
        for part in values:
            yield from _pieces(part)
