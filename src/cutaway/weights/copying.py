"""A copy of a checkpoint with some numbers replaced: same format, names and types, all else byte for byte.

Only the bytes of the changed tensors are written into the copy, where the opener says that they lie, so every format
whose arrays are stored plainly can be edited, and what else is in the file stays. The copy is made beside the target
and put in its place when it is complete, flushed and verified; an existing file is never replaced.
"""

from __future__ import annotations

import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from cutaway.errors import FormatError, ResourceError
from cutaway.formats import Checkpoint, open_checkpoint
from cutaway.formats.checkpoint import Place
from cutaway.formats.dtypes import DTYPES

CARRIED = (".json", ".txt", ".model", ".jinja")  # what lies in a folder beside the weights and belongs to them
CHUNK = 1 << 24


def write_copy(
    source: Checkpoint, changed: Mapping[str, np.ndarray], out: Path, verify: Callable[[Checkpoint], None]
) -> Path:
    """Write `source` with the tensors `changed` (float32, in their shapes) to `out`: a file, or a folder for several.

    `verify` sees the finished copy, opened, and raises to refuse it: nothing is left behind then. Raises FormatError
    for what cannot be edited in place, ResourceError for a target that is there already or cannot be written.
    """
    for name in changed:
        _refuse_coded(source, name)
    folder = _is_folder(source, out)
    if os.path.lexists(out):
        raise ResourceError(f"{out} is there already; an edit never replaces a file, so choose another name.")
    partial = out.with_name(f".{out.stem}.{os.getpid()}{'' if folder else out.suffix}")
    try:
        copies = _copied(source, partial, folder)
        for name, numbers in changed.items():
            place = source.tensors[name].place
            _overwrite(copies[place.path], place, source.tensors[name].dtype, numbers)
        for path in copies.values():
            _mend_sums(path, [source.tensors[name].place for name in changed])
            _flush(path)
        verify(open_checkpoint(partial))
        if folder:
            os.rename(partial, out)
        else:
            os.link(partial, out)  # unlike a rename, this fails where a file appeared meanwhile
    except FileExistsError:
        raise ResourceError(f"{out} appeared meanwhile; an edit never replaces a file, so choose another.") from None
    except OSError as error:
        raise ResourceError(f"{out} cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True) if folder else partial.unlink(missing_ok=True)
    return out


def _refuse_coded(source: Checkpoint, name: str) -> None:
    tensor = source.tensors[name]
    if tensor.place.packed is not None or DTYPES[tensor.dtype].packed or tensor.expanded:
        raise FormatError(
            f"'{name}' is compressed or quantised ({tensor.dtype}) in {source.path.name}, where numbers cannot be "
            "replaced one by one; convert the file first."
        )
    if tensor.dtype not in ("float16", "float32", "float64", "bfloat16"):
        raise FormatError(f"'{name}' holds {tensor.dtype}; only float16, bfloat16, float32 and float64 are edited.")


def _is_folder(source: Checkpoint, out: Path) -> bool:
    files = {tensor.place.path for tensor in source.tensors.values()}
    weights = {file.suffix for file in files}
    if len(files) > 1 and out.suffix in weights:
        raise FormatError(f"The weights lie in {len(files)} files, so the copy is a folder; leave the suffix off.")
    return len(files) > 1 or out.suffix not in weights


def _copied(source: Checkpoint, partial: Path, folder: bool) -> dict[Path, Path]:
    """The files copied; from each file with tensors to its copy."""
    files = list(dict.fromkeys(tensor.place.path for tensor in source.tensors.values()))
    partial.parent.mkdir(parents=True, exist_ok=True)
    if not folder:
        shutil.copyfile(files[0], partial)
        return {files[0]: partial}
    partial.mkdir()
    beside = [entry for entry in files[0].parent.iterdir() if entry.suffix in CARRIED and entry.is_file()]
    for file in dict.fromkeys([*files, *beside]):
        shutil.copyfile(file, partial / file.name)
    return {file: partial / file.name for file in files}


def _overwrite(path: Path, place: Place, dtype: str, numbers: np.ndarray) -> None:
    """Write numbers where an opener said that they lie."""
    kind = np.dtype(DTYPES[dtype].view).newbyteorder(">" if place.big_endian else "<")
    raw = np.memmap(path, np.uint8, "r+", place.offset, (place.size,))
    flat = raw.view(kind)
    values = _bfloat16(numbers) if dtype == "bfloat16" else numbers.astype(kind)
    if place.strides is None:
        flat[:] = values.reshape(-1)
    else:
        strides = tuple(step * kind.itemsize for step in place.strides)
        np.lib.stride_tricks.as_strided(flat, numbers.shape, strides)[...] = values
    raw.flush()


def _bfloat16(numbers: np.ndarray) -> np.ndarray:
    """float32 rounded to the nearest bfloat16, ties to even, as bits."""
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _mend_sums(path: Path, places: list[Place]) -> None:
    """Set the check sums of a zip archive's members in which something was written."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\3\4":
            return
    with zipfile.ZipFile(path) as archive:
        members, at = archive.infolist(), archive.start_dir
    with path.open("r+b") as file:
        for member in members:
            file.seek(at)
            lengths = struct.unpack("<3H", file.read(46)[28:34])
            entry, at = at, at + 46 + sum(lengths)
            file.seek(member.header_offset)
            header = file.read(30)
            start = member.header_offset + 30 + sum(struct.unpack("<2H", header[26:30]))
            if not any(start <= place.offset < start + member.file_size for place in places):
                continue
            packed = struct.pack("<L", _sum(file, start, member.file_size))
            spots = [entry + 16]
            if header[14:18] != b"\0\0\0\0":
                spots.append(member.header_offset + 14)
            file.seek(start + member.file_size)
            if member.flag_bits & 8 and file.read(4) == b"PK\7\x08":
                spots.append(start + member.file_size + 4)
            for spot in spots:
                file.seek(spot)
                file.write(packed)


def _sum(file: object, start: int, size: int) -> int:
    found = 0
    file.seek(start)  # type: ignore[attr-defined]
    while size > 0:
        piece = file.read(min(size, CHUNK))  # type: ignore[attr-defined]
        found, size = zlib.crc32(piece, found), size - len(piece)
        if not piece:
            break
    return found


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
