"""`.keras`: a zip archive of a configuration and an HDF5 file, which lies there uncompressed and is mapped in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cutaway.errors import FormatError
from cutaway.formats import hdf5_file
from cutaway.formats.checkpoint import Checkpoint
from cutaway.formats.keras_config import layer_risks
from cutaway.formats.reading import read_range, shown, strict_json
from cutaway.formats.zip_directory import STORED, climbing_risks, members

NAME = "Keras"
WEIGHTS = "model.weights.h5"
CONFIG_BYTES = 50_000_000
READ = ("config.json", "metadata.json")


def detect(path: Path, head: bytes) -> bool:
    """A zip archive with Keras' suffix."""
    return head.startswith(b"PK\3\4") and path.suffix == ".keras"


def open(path: Path) -> Checkpoint:
    """List weights, configuration and risks. Raises FormatError."""
    found = members(path)
    weights = found.get(WEIGHTS)
    if weights is None:
        raise FormatError(f"{path} holds no {WEIGHTS}, so it is no model of Keras.")
    if weights.method != STORED:
        raise FormatError(f"{path} has compressed weights, which Keras does not write; zip it again with `zip -0`.")
    part = hdf5_file.open_part(path, weights.offset, weights.size)
    metadata: dict[str, Any] = dict(part.metadata)
    risks = [*part.risks, *climbing_risks(found)]
    for name in READ:
        member = found.get(name)
        if member is None or member.method != STORED or member.size > CONFIG_BYTES:
            continue
        content = strict_json(read_range(path, member.offset, member.size), f"{name} in {path}")
        metadata[name.removesuffix(".json")] = content
        risks += layer_risks(content, name)
    metadata["members"] = [shown(name) for name in list(found)[:1000]]
    return Checkpoint(NAME, [path], part.tensors, metadata, risks)
