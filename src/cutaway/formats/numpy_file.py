"""NumPy's `.npy` arrays and `.npz` archives of them. Arrays of objects are pickles, and refused.

The header is a Python literal of a few dozen bytes (numpy/lib/format.py); it is parsed as one, never evaluated.
"""

from __future__ import annotations

import ast
import math
import re
import struct
import warnings
import zlib
from pathlib import Path

from cutaway.errors import FormatError
from cutaway.formats.checkpoint import Checkpoint, Place, Risk, TensorInfo
from cutaway.formats.reading import file_size, read_range, shown
from cutaway.formats.zip_directory import DEFLATED, STORED, Member, climbing_risks, members

NPY, NPZ = "npy", "npz"
HEADER_BYTES = 10_000  # numpy itself refuses longer ones
PACKED_HEAD = 64 << 10
# Deflate reaches 1032 : 1 on zeros. Trained weights compress 1.1 : 1, masks and one-hot tables perhaps 100 : 1.
BOMB_RATIO, BOMB_BYTES = 200, 64 << 20

_MAGIC = b"\x93NUMPY"
_DESCRIPTION = re.compile(r"([<>|=]?)([biufc?])(\d*)")
_KINDS = {
    "b1": "bool", "?": "bool", "u1": "uint8", "i1": "int8", "u2": "uint16", "i2": "int16",
    "u4": "uint32", "i4": "int32", "u8": "uint64", "i8": "int64", "f2": "float16",
    "f4": "float32", "f8": "float64", "c8": "complex64",     "c16": "complex128",
}  # fmt: skip


def detect(path: Path, head: bytes) -> bool:
    """By magic number, or by the suffix .npz on a zip archive."""
    return head.startswith(_MAGIC) or (head.startswith(b"PK") and path.suffix == ".npz")


def open(path: Path) -> Checkpoint:
    """Read the headers. Raises FormatError for arrays of objects, structures or texts, and for zip bombs."""
    size = file_size(path)
    head = read_range(path, 0, min(size, PACKED_HEAD))
    if head.startswith(_MAGIC):
        return Checkpoint(NPY, [path], {path.stem: _array(str(path), path, head, 0, size, None)})
    tensors: dict[str, TensorInfo] = {}
    found = members(path)
    risks = climbing_risks(found)
    for name, member in found.items():
        where = f"{shown(name)!r} in {path}"
        if not name.endswith(".npy"):
            risks.append(Risk("low", f"{shown(name)!r} is not an array and was ignored"))
            continue
        head = _head(path, member, where)
        packed = None if member.method == STORED else member.packed
        tensors[shown(name.removesuffix(".npy"), 500)] = _array(where, path, head, member.offset, member.size, packed)
        if packed is not None and member.size > BOMB_RATIO // 2 * member.packed and member.size > BOMB_BYTES // 64:
            risks.append(
                Risk("medium", f"{shown(name)!r} grows {member.size // max(1, member.packed)} times when unpacked")
            )
    return Checkpoint(NPZ, [path], tensors, {}, risks[:100])


def _head(path: Path, member: Member, where: str) -> bytes:
    """The first bytes of a member, unpacked; a bomb is refused by what it claims, before anything is unpacked."""
    if member.method == STORED:
        return read_range(path, member.offset, min(member.size, PACKED_HEAD))
    if member.method != DEFLATED:
        raise FormatError(f"{where} is compressed by method {member.method}, which NumPy never uses; not read.")
    if member.size > BOMB_BYTES and member.size > BOMB_RATIO * member.packed:
        raise FormatError(
            f"{where} would grow from {member.packed:,} to {member.size:,} bytes, as zip bombs do; not read."
        )
    if member.size > 1100 * member.packed:
        raise FormatError(f"{where} claims to grow more than deflate can; the archive is damaged or made to deceive.")
    packed = read_range(path, member.offset, min(member.packed, PACKED_HEAD))
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, PACKED_HEAD)
    except zlib.error as error:
        raise FormatError(f"{where} cannot be unpacked ({error}); get the file again.") from error


def _array(where: str, path: Path, head: bytes, offset: int, size: int, packed: int | None) -> TensorInfo:
    """One array from its first bytes; it begins at `offset` and takes `size` bytes unpacked, header included."""
    if not head.startswith(_MAGIC) or len(head) < 12:
        raise FormatError(f"{where} is no NumPy array; get the file again.")
    version = head[6]
    if version not in (1, 2, 3):
        raise FormatError(f"{where} has the unknown NumPy format {version}.")
    start = 10 if version == 1 else 12
    length = struct.unpack_from("<H" if version == 1 else "<I", head, 8)[0]
    if length > HEADER_BYTES or start + length > len(head):
        raise FormatError(f"{where} has a header of {length:,} bytes, longer than any NumPy writes, or is cut short.")
    header = _header(where, head[start : start + length])
    big, dtype = _dtype(where, header["descr"])
    shape = header["shape"]
    if not isinstance(shape, tuple) or len(shape) > 64 or not all(type(n) is int and 0 <= n < 1 << 62 for n in shape):
        raise FormatError(f"{where} has an impossible shape.")
    nbytes = math.prod(shape) * int(_BYTES[dtype])
    if nbytes >= 1 << 63:
        raise FormatError(f"{where} claims more elements than any file holds.")
    if nbytes != size - start - length:
        raise FormatError(
            f"{where} needs {nbytes:,} bytes by its shape, but has {size - start - length:,}; get it again."
        )
    strides = None
    if header["fortran_order"] is True and len(shape) > 1:
        strides = tuple(math.prod(shape[:axis]) for axis in range(len(shape)))
    skip = start + length
    place = (
        Place(path, offset + skip, nbytes, big, strides)
        if packed is None
        else Place(path, offset, nbytes, big, strides, packed, skip)
    )
    return TensorInfo(dtype, shape, nbytes, place)


def _header(where: str, text: bytes) -> dict[str, object]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd escapes in a header are not the user's business
            header = ast.literal_eval(text.decode("latin1").strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise FormatError(f"{where} has a header that is no plain description of an array; not read.") from error
    if not isinstance(header, dict) or set(header) != {"descr", "fortran_order", "shape"}:
        raise FormatError(f"{where} has a header without descr, fortran_order and shape, or with more; not read.")
    return header


_BYTES = {name: re.sub(r"\D", "", kind) or "1" for kind, name in _KINDS.items()}


def _dtype(where: str, description: object) -> tuple[bool, str]:
    text = description if isinstance(description, str) else ""
    if "O" in text or (not text and "O" in repr(description)[:2000]):
        raise FormatError(f"{where} is an array of Python objects, so a pickle; it was not read and would run code.")
    match = _DESCRIPTION.fullmatch(text)
    if match is None or match[2] + match[3] not in _KINDS:
        raise FormatError(f"{where} has the dtype {shown(repr(description), 60)}, which is no plain number.")
    return match[1] == ">", _KINDS[match[2] + match[3]]
