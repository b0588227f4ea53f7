"""HDF5 as Keras writes it: groups, datasets whose numbers lie in one piece, and the attributes of the root.

A reader of our own, for the part of the format that weights use, because libhdf5 is C code that a damaged file can
crash, and the interpreter with it. Datasets in chunks or compressed are listed and refused when they are read. Layout:
https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html (the numbers of sections below are its own).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cutaway.errors import FormatError
from cutaway.formats.checkpoint import Checkpoint, Place, Risk, TensorInfo
from cutaway.formats.dtypes import DTYPES, bytes_of
from cutaway.formats.hdf5_objects import NOWHERE, Objects
from cutaway.formats.keras_config import layer_risks
from cutaway.formats.reading import damaged, mapped, shown, strict_json

NAME = "HDF5"
MAGIC = b"\x89HDF\r\n\x1a\n"
DEPTH, LINKS, DIMENSIONS = 64, 300_000, 32
CHUNKED = "is stored in chunks or compressed; run `h5repack -l CONTI -f NONE` on the file first"
_FLOATS = {(2, 5): "float16", (2, 8): "bfloat16", (4, 8): "float32", (8, 11): "float64"}  # bytes, bits of the exponent


def detect(path: Path, head: bytes) -> bool:
    """By magic number."""
    return head.startswith(MAGIC)


def open(path: Path) -> Checkpoint:
    """List datasets and what the root says of itself. Raises FormatError."""
    return open_part(path, 0, None)


def open_part(path: Path, start: int, length: int | None) -> Checkpoint:
    """The same for a file that lies inside another."""
    with damaged(path, NAME):
        objects = Objects(mapped(path, start, length))
        walk = _Walk(path, start, objects)
        root = objects.root()
        size, end = len(objects.view), objects.stated_end()
        if size < end:
            raise FormatError(f"{path} is cut short: {size:,} of its {end:,} bytes are there; get it again.")
        attributes = walk.attributes(root)
        walk.seen.add(root)  # a link back to it is a second name of everything
        walk.group(root, "", DEPTH)
    risks = list(walk.risks)
    for key in ("model_config", "training_config"):
        if isinstance(attributes.get(key), str) and attributes[key].startswith("{"):
            attributes[key] = strict_json(attributes[key].encode(), f"the attribute {key} of {path}")
            risks += layer_risks(attributes[key], key)
    return Checkpoint(NAME, [path], walk.tensors, {"attributes": attributes} if attributes else {}, risks[:200])


@dataclass
class _Walk:
    """What was found on the way through the groups; an object met twice is listed under its first name only."""

    path: Path
    start: int
    objects: Objects
    tensors: dict[str, TensorInfo] = field(default_factory=dict)
    risks: list[Risk] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)
    links: int = 0

    def group(self, address: int, prefix: str, depth: int) -> None:
        if depth == 0:
            raise FormatError(f"{self.path} nests groups deeper than {DEPTH} levels; not read.")
        for name, child in self.objects.children(address):
            self.links += 1
            if self.links > LINKS:
                raise FormatError(f"{self.path} has more than {LINKS:,} links; not read.")
            full = f"{prefix}{shown(name, 200)}"
            if child is None:
                self.risks.append(Risk("medium", f"{full!r} is a link by name, perhaps to another file; not followed"))
            elif child not in self.seen:
                self.seen.add(child)
                if self.objects.is_dataset(child):
                    self.tensors[self.unused(full[-500:])] = self.dataset(child, full)
                else:
                    self.group(child, f"{full}/", depth - 1)

    def unused(self, name: str) -> str:
        return name if name not in self.tensors else f"{name}#{len(self.tensors)}"

    def dataset(self, address: int, name: str) -> TensorInfo:
        where = f"The dataset {name[-200:]!r} in {self.path}"
        messages = self.objects.messages(address)
        shape = self.objects.shape(messages[1][0])
        if len(shape) > DIMENSIONS or any(size >= 1 << 62 for size in shape) or math.prod(shape) >= 1 << 60:
            raise FormatError(f"{where} claims more elements than any file holds.")
        dtype, big = _dtype(self.objects.type(messages[3][0]))
        if dtype not in DTYPES:
            return TensorInfo(dtype, shape, 0, Place(self.path, 0, 0, refusal="is no array of plain numbers"))
        nbytes = bytes_of(dtype, math.prod(shape))
        if 7 in messages:
            self.risks.append(Risk("high", f"{name!r} is to be read from another file; it was not looked at"))
            refusal = "lies in another file; it was not looked at"
            return TensorInfo(dtype, shape, nbytes, Place(self.path, 0, nbytes, refusal=refusal))
        found = self.objects.layout(messages[8][0]) if 11 not in messages else None
        if found is None or found[0] == NOWHERE:
            refusal = CHUNKED if found is None else "was never filled"
            return TensorInfo(dtype, shape, nbytes, Place(self.path, 0, nbytes, refusal=refusal))
        offset, size = found
        if size < nbytes or offset + nbytes > len(self.objects.view):
            raise FormatError(f"{where} needs {nbytes:,} bytes, but lies beyond the end of the file; get it again.")
        return TensorInfo(dtype, shape, nbytes, Place(self.path, self.start + offset, nbytes, big))

    def attributes(self, address: int) -> dict[str, Any]:
        """Texts and small lists of texts."""
        return {shown(name): value for name, value in self.objects.attributes(address)}


def _dtype(kind: tuple[int, int, int, int]) -> tuple[str, bool]:
    """Class, flags, bytes and bits of the exponent → a number type, and whether its bytes are in the big order."""
    form, flags, size, exponent = kind
    if form == 0 and size in (1, 2, 4, 8):
        return f"{'' if flags & 8 else 'u'}int{8 * size}", bool(flags & 1) and size > 1
    if form == 1 and not flags & 0x40 and (size, exponent) in _FLOATS:
        return _FLOATS[size, exponent], bool(flags & 1)
    if form == 8 and size == 1:  # h5py writes truth values as an enumeration of two bytes
        return "bool", False
    return {3: "text", 9: "text or list", 6: "compound"}.get(form, f"HDF5 class {form}"), False
