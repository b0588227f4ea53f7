"""PyTorch files from before 1.6: five pickles in a row, then the storages; and any other bare pickle.

The order is magic number, protocol, system, object, keys of the storages (torch/serialization.py, `_legacy_save`).
After that each storage has eight bytes of length and its elements. Nothing is unpickled.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from cutaway.errors import FormatError
from cutaway.formats.checkpoint import Checkpoint, Risk
from cutaway.formats.dtypes import bytes_of
from cutaway.formats.pickle_program import Program, interpret
from cutaway.formats.reading import file_size, read_range, shown
from cutaway.formats.torch_imports import import_risks
from cutaway.formats.torch_objects import Extent, Storage, collect, storage_of

NAME = "torch (legacy)"
PICKLE = "pickle"
MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
WINDOW = 64 << 20  # all pickles must lie in this many bytes from the start


def detect(path: Path, head: bytes) -> bool:
    """By the first instruction of a binary pickle, which is also the length of some safetensors headers."""
    length_and_json = head[4:9] == b"\0\0\0\0{"
    return len(head) > 2 and head[0] == 0x80 and 1 <= head[1] <= 5 and not length_and_json


def open(path: Path) -> Checkpoint:
    """List tensors, imports and risks; a pickle that torch did not write has only imports and risks."""
    size = file_size(path)
    content = read_range(path, 0, min(size, WINDOW))
    first = interpret(content, path.name)
    if first.value != MAGIC or isinstance(first.value, bool):
        risks = import_risks(first.imports, path.name)
        risks.append(Risk("medium", "this pickle was not written by PyTorch; its contents are not listed"))
        return Checkpoint(PICKLE, [path], {}, _imports([first]), risks)
    programs = [first]
    at = first.end
    for _ in range(4):
        programs.append(interpret(content[at:], path.name))
        at += programs[-1].end
    _, protocol, system, root, keys = programs
    if protocol.value != PROTOCOL or not isinstance(keys.value, list):
        raise FormatError(f"{path} is a PyTorch file of an unknown protocol; save it again with a recent PyTorch.")
    big = isinstance(system.value, dict) and system.value.get("little_endian") is False
    extents = _extents(path, size, at, root, keys.value, big)

    def locate(storage: Storage) -> Extent:
        if storage.key not in extents:
            raise FormatError(f"{path} lacks the storage {shown(storage.key)!r} that a tensor needs; get it again.")
        return extents[storage.key]

    tensors = collect(root.value, locate, path)
    imports = list(dict.fromkeys(item for program in programs for item in program.imports))
    return Checkpoint(NAME, [path], tensors, _imports(programs), import_risks(imports, path.name))


def _imports(programs: list[Program]) -> dict[str, list[str]]:
    return {"imports": sorted({str(item) for program in programs for item in program.imports})}


def _extents(path: Path, size: int, at: int, root: Program, keys: list[Any], big: bool) -> dict[str, Extent]:
    """Walk over the storages in the order of `keys`; their dtypes come from the references in the pickle."""
    storages = {storage.key: storage for storage in map(storage_of, root.persistent)}
    extents: dict[str, Extent] = {}
    for key in keys:
        key = str(key) if isinstance(key, (str, int)) and not isinstance(key, bool) else ""
        if key not in storages or key in extents:
            raise FormatError(f"{path} has a storage {shown(key)!r} that is unknown or comes twice; get it again.")
        (elements,) = struct.unpack(">q" if big else "<q", read_range(path, at, 8))
        length = bytes_of(storages[key].dtype, elements)
        if elements < 0 or at + 8 + length > size:
            raise FormatError(f"{path} is cut short: storage {shown(key)!r} should have {elements:,} elements.")
        extents[key] = Extent(path, at + 8, length, big)
        at += 8 + length
    if at != size:
        raise FormatError(f"{path} has {size - at:,} bytes that belong to no storage; get it again.")
    return extents
