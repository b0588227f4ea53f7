"""PyTorch's zip archives (`torch.save` since 1.6): a pickle beside the raw bytes of every storage.

The pickle is read as text of a program (see `pickle_program`), never run.
"""

from __future__ import annotations

from pathlib import Path

from cutaway.errors import FormatError
from cutaway.formats.checkpoint import Checkpoint, Risk
from cutaway.formats.pickle_program import interpret
from cutaway.formats.reading import read_range, shown
from cutaway.formats.torch_imports import import_risks
from cutaway.formats.torch_objects import Extent, Storage, collect
from cutaway.formats.zip_directory import STORED, Member, climbing_risks, members

NAME = "torch (zip)"
PICKLE_BYTES = 64 << 20


def detect(path: Path, head: bytes) -> bool:
    """By the name of the first member (`…/data.pkl`), or a zip with one of PyTorch's suffixes."""
    if not head.startswith(b"PK\3\4"):
        return False
    name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    return name == b"data.pkl" or name.endswith(b"/data.pkl") or path.suffix in (".pt", ".pth", ".ckpt", ".bin")


def open(path: Path) -> Checkpoint:
    """List tensors, imports and risks. Raises FormatError."""
    return open_part(path, 0, None)


def open_part(path: Path, start: int, length: int | None) -> Checkpoint:
    """The same for an archive that lies inside another file."""
    found = members(path, start, length)
    packed = [name for name, member in found.items() if member.method != STORED]
    if packed:
        raise FormatError(f"{path} has the compressed member {shown(packed[0])!r}, which torch never writes; not read.")
    pickles = [name for name in found if name == "data.pkl" or (name.endswith("/data.pkl") and name.count("/") == 1)]
    if len(pickles) != 1:
        raise FormatError(f"{path} is a zip archive with {len(pickles)} data.pkl, so it is no checkpoint of PyTorch.")
    root = pickles[0].removesuffix("data.pkl")
    pickle = found[pickles[0]]
    if pickle.size > PICKLE_BYTES:
        raise FormatError(f"The pickle in {path} has {pickle.size:,} bytes, more than the {PICKLE_BYTES:,} read here.")
    program = interpret(read_range(path, pickle.offset, pickle.size), path.name)
    big = _byte_order(path, found.get(f"{root}byteorder")) == b"big"

    def locate(storage: Storage) -> Extent:
        member = found.get(f"{root}data/{storage.key}")
        if member is None:
            raise FormatError(f"{path} lacks the storage {shown(storage.key)!r} that a tensor needs; get it again.")
        return Extent(path, member.offset, member.size, big)

    tensors = collect(program.value, locate, path)
    risks = import_risks(program.imports, path.name) + _script_risks(found, root) + climbing_risks(found)
    risks += [
        Risk("medium", f"{shown(name)!r} claims more elements than are stored")
        for name, tensor in tensors.items()
        if tensor.expanded
    ][:20]
    return Checkpoint(NAME, [path], tensors, {"imports": sorted(str(item) for item in program.imports)}, risks)


def _byte_order(path: Path, member: Member | None) -> bytes:
    return b"little" if member is None or member.size > 16 else read_range(path, member.offset, member.size).strip()


def _script_risks(found: dict[str, Member], root: str) -> list[Risk]:
    """TorchScript archives carry a program of their own."""
    if f"{root}constants.pkl" in found or any(name.startswith(f"{root}code/") for name in found):
        return [Risk("high", "the archive contains TorchScript code, which runs when torch.jit loads and calls it")]
    return []
