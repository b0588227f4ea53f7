"""Safetensors in several files, tied together by `model.safetensors.index.json`."""

from __future__ import annotations

from pathlib import Path

from cutaway.errors import FormatError
from cutaway.formats import safetensors_file
from cutaway.formats.checkpoint import Checkpoint, Risk, TensorInfo
from cutaway.formats.reading import read_json_file, shown

NAME = "safetensors (sharded)"
SHARDS = 10_000


def detect(path: Path, head: bytes) -> bool:
    """By the ending that Hugging Face gives such an index."""
    return path.name.endswith(".safetensors.index.json")


def open(path: Path) -> Checkpoint:
    """Open every shard the index names, all beside it. Raises FormatError if a shard or a tensor is missing."""
    where = shard_names(path)
    tensors: dict[str, TensorInfo] = {}
    risks: list[Risk] = []
    files = sorted(set(where.values()))
    for file in files:
        shard = safetensors_file.open(path.parent / file)
        for name, tensor in shard.tensors.items():
            if where.get(name) != file:
                risks.append(
                    Risk("medium", f"{file} holds the tensor {shown(name)!r}, which the index does not place there")
                )
            else:
                tensors[name] = tensor
    missing = sorted(where.keys() - tensors.keys())
    if missing:
        raise FormatError(
            f"{path} promises {len(missing)} tensors no shard has, first {shown(missing[0])!r}; get it again."
        )
    return Checkpoint(NAME, [path, *(path.parent / file for file in files)], tensors, {}, risks[:100])


def shard_names(path: Path) -> dict[str, str]:
    """The index: tensor name → file name. Raises FormatError for a file that is not a plain name beside the index."""
    index = read_json_file(path)
    where = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(where, dict) or not where:
        raise FormatError(f"{path} has no weight_map, so it is no index of shards.")
    for name, file in where.items():
        if not isinstance(file, str) or file in ("", ".", "..") or any(c in file for c in "/\\\0:"):
            raise FormatError(f"{path} places {shown(name)!r} in {shown(str(file))!r}, which is no file beside it.")
    if len(set(where.values())) > SHARDS:
        raise FormatError(f"{path} names more than {SHARDS:,} shards.")
    return where
