"""Arrays of a project: immutable safetensors files named by the SHA-256 of their bytes.

A shard is written to a temporary name, flushed to the disk, and only then renamed to its final one, so a shard that
has its final name is complete. Because the name is the hash, writing the same arrays twice gives one file, and
`check` can tell a damaged file from a good one. Shards stay below 128 MiB unless one array alone is larger; arrays
come back as views of a memory map, so a row costs one page and not the file.

The layout is the safetensors one: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cutaway.errors import ProjectError
from cutaway.formats.writing import safetensors_head
from cutaway.project.texts import clean_line

SHARD_BYTES = 128 << 20
HEADER_LIMIT = 100_000_000
TEMPORARY_SECONDS = 3600  # a temporary file this old belongs to a writer that is gone
CHUNK = 4 << 20

_SHARD_NAME = re.compile(r"[0-9a-f]{64}\.safetensors")
_CODES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16", "uint32": "U32", "int32": "I32",
    "uint64": "U64", "int64": "I64", "float16": "F16", "float32": "F32", "float64": "F64", "complex64": "C64",
}  # fmt: skip
_NAMES = {code: name for name, code in _CODES.items()}


@dataclass(frozen=True)
class StagedShard:
    """A complete, flushed shard under a temporary name; nothing refers to it yet."""

    temporary: Path
    digest: str
    names: tuple[str, ...]
    size: int


def stage(folder: Path, tensors: Mapping[str, np.ndarray]) -> list[StagedShard]:
    """Write `tensors` (any shapes) below `folder` under temporary names, in shards of at most `SHARD_BYTES`.

    The split and the bytes depend on the arrays and their names only, so equal input gives equal digests. Raises
    ProjectError for a name or dtype that cannot be stored and OSError from the disk; either way nothing is left.
    """
    arrays = {clean_line(name, "tensor name"): _storable(name, array) for name, array in tensors.items()}
    if len(arrays) != len(tensors):
        raise ProjectError("Two tensors have the same name once their spelling is normalised; rename one of them.")
    if "__metadata__" in arrays:
        raise ProjectError("A tensor cannot be called '__metadata__', which safetensors reserves; rename it.")
    staged: list[StagedShard] = []
    try:
        for group in _groups(arrays):
            staged.append(_write(folder, group))
    except BaseException:
        discard(staged)
        raise
    return staged


def publish(folder: Path, staged: StagedShard) -> None:
    """Give a staged shard its final name and flush the folder; atomic, and harmless when it exists already."""
    os.replace(staged.temporary, shard_path(folder, staged.digest))
    sync_folder(folder)


def discard(staged: list[StagedShard]) -> None:
    """Remove the temporary files of shards which were not published."""
    for shard in staged:
        shard.temporary.unlink(missing_ok=True)


def shard_path(folder: Path, digest: str) -> Path:
    """Where the shard `digest` lives. A digest that is not 64 hex digits (a forged database) is a ProjectError."""
    name = f"{digest}.safetensors"
    if not _SHARD_NAME.fullmatch(name):
        raise ProjectError(f"{digest!r:.80} is not the name of a tensor file; the project was changed by other means.")
    return folder / name


def read_shard(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a shard as read-only views of one memory map. Raises ProjectError if it is missing or damaged."""
    try:
        mapped = np.memmap(path, dtype=np.uint8, mode="r")
        length = struct.unpack("<Q", mapped[:8].tobytes())[0]
        if length > min(HEADER_LIMIT, mapped.size - 8):
            raise ValueError("the header is longer than the file")
        header = json.loads(mapped[8 : 8 + length].tobytes())
        data = mapped[8 + length :]
        arrays = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            start, stop = entry["data_offsets"]
            if not 0 <= start <= stop <= data.size:
                raise ValueError(f"the bytes of {name!r} lie outside the file")
            dtype = np.dtype(_NAMES[entry["dtype"]]).newbyteorder("<")
            arrays[name] = data[start:stop].view(dtype).reshape(entry["shape"])
        return arrays
    except FileNotFoundError:
        raise ProjectError(f"The tensor file {path.name} is missing; restore it from a copy of the project.") from None
    except (ValueError, KeyError, TypeError, AttributeError, struct.error, RecursionError) as error:
        raise ProjectError(f"The tensor file {path.name} is damaged ({error}); restore it from a copy.") from error


def read_named(folder: Path, digests: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The arrays `digests` (tensor name -> shard) names. Raises ProjectError if a shard is missing or lacks one."""
    opened: dict[str, dict[str, np.ndarray]] = {}
    for name, digest in digests.items():
        if digest not in opened:
            opened[digest] = read_shard(shard_path(folder, digest))
        if name not in opened[digest]:
            raise ProjectError(f"The tensor file {digest[:12]}… lacks {name!r}; restore it from a copy.")
    return {name: opened[digest][name] for name, digest in digests.items()}


def digest_of(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_shards(folder: Path) -> set[str]:
    """Digests of all files in `folder` that are named like a shard; anything else there is left alone."""
    if not folder.is_dir():
        return set()
    return {entry.name.split(".")[0] for entry in os.scandir(folder) if _SHARD_NAME.fullmatch(entry.name)}


def sweep_temporaries(folder: Path) -> None:
    """Remove what a killed writer left: `.tmp*` files older than an hour."""
    oldest = time.time() - TEMPORARY_SECONDS
    for path in folder.glob(".tmp*"):
        # Another process may sweep at the same moment.
        with contextlib.suppress(FileNotFoundError):
            if path.is_file() and path.stat().st_mtime < oldest:
                path.unlink()


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename survives a power cut (POSIX; other systems do it themselves)."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _storable(name: str, array: object) -> np.ndarray:
    """A C-ordered little-endian array of a dtype that safetensors knows."""
    if not isinstance(array, np.ndarray):
        raise ProjectError(f"The tensor {name!r} is a {type(array).__name__}; pass a NumPy array.")
    if array.dtype.name not in _CODES:
        raise ProjectError(f"The tensor {name!r} has dtype {array.dtype}, which cannot be stored; convert it first.")
    return np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")


def _groups(arrays: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    """Cut the arrays into shards. Wide dtypes come first, so that every array is aligned to its own item size."""
    group: dict[str, np.ndarray] = {}
    size = 0
    for name in sorted(arrays, key=lambda name: (-arrays[name].itemsize, name)):
        if group and size + arrays[name].nbytes > SHARD_BYTES:
            yield group
            group, size = {}, 0
        group[name] = arrays[name]
        size += arrays[name].nbytes
    if group:
        yield group


def _write(folder: Path, arrays: dict[str, np.ndarray]) -> StagedShard:
    head = safetensors_head((name, _CODES[one.dtype.name], one.shape, one.nbytes) for name, one in arrays.items())
    digest = hashlib.sha256()
    temporary = folder / f".tmp-{os.getpid()}-{secrets.token_hex(8)}"
    try:
        with temporary.open("xb") as file:
            for piece in _pieces(head, arrays):
                digest.update(piece)
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    size = len(head) + sum(array.nbytes for array in arrays.values())
    return StagedShard(temporary, digest.hexdigest(), tuple(arrays), size)


def _pieces(head: bytes, arrays: dict[str, np.ndarray]) -> Iterator[bytes | memoryview]:
    yield head
    for array in arrays.values():
        raw = array.reshape(-1).view(np.uint8)
        for start in range(0, raw.size, CHUNK):
            yield raw[start : start + CHUNK].data
