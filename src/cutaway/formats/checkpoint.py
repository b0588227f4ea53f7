"""What every opener returns: names, shapes and places of tensors in files, and what is risky about those files.

Opening reads headers only. `Checkpoint.read` maps the file and gives a view; nothing of the file is ever executed.
"""

from __future__ import annotations

import difflib
import math
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cutaway.errors import FormatError, ResourceError
from cutaway.formats.decoding import decode, is_coded, varints
from cutaway.formats.dtypes import DTYPES
from cutaway.formats.reading import shown

INFLATE_LIMIT = 4 << 30  # a compressed array has to fit into memory; larger ones must be unpacked first

Severity = Literal["high", "medium", "low"]


@dataclass(frozen=True)
class Risk:
    """Something a person should know before anything else reads the file."""

    severity: Severity
    text: str


@dataclass(frozen=True)
class Place:
    """Where a tensor's bytes are.

    `strides` counts elements, None means C order without gaps. `packed` is the number of coded bytes in the file, where
    `coding` is deflate or varint (protobuf's numbers of variable length); `offset` is then where they begin, and `skip`
    the bytes before the array in what comes out. `refusal` says why a tensor is listed but cannot be read.
    """

    path: Path
    offset: int
    size: int
    big_endian: bool = False
    strides: tuple[int, ...] | None = None
    packed: int | None = None
    skip: int = 0
    coding: Literal["deflate", "varint"] = "deflate"
    refusal: str = ""


@dataclass(frozen=True)
class TensorInfo:
    """A tensor without its values: `nbytes` is what its elements take, wherever they are."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    place: Place = field(repr=False)

    @property
    def elements(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def expanded(self) -> bool:
        """Whether several elements share their bytes, so that the tensor is larger than what is in the file."""
        return self.nbytes > self.place.size


@dataclass
class Checkpoint:
    """An opened checkpoint: its files, tensors by name, metadata (JSON-able) and risks."""

    format: str
    paths: list[Path]
    tensors: dict[str, TensorInfo]
    metadata: dict[str, Any] = field(default_factory=dict)
    risks: list[Risk] = field(default_factory=list)

    @property
    def path(self) -> Path:
        """The first file."""
        return self.paths[0]

    def read(self, name: str) -> np.ndarray:
        """The values of `name` with its shape, read-only and memory-mapped where the file is not compressed.

        bfloat16 comes as uint16, float8 as uint8, and packed and quantised types as a flat uint8 array: see
        `TensorInfo.dtype`, and `numbers` for what they mean. Raises FormatError for an unknown name, a file that
        changed, and a tensor that is only listed; ResourceError if a compressed array is larger than 4 GiB.
        """
        tensor = self.readable(name)
        try:
            return _view(tensor)
        except (OSError, ValueError) as error:
            raise FormatError(f"{tensor.place.path} cannot be read any more ({error}); open it again.") from error

    def readable(self, name: str) -> TensorInfo:
        """The tensor, if its values can be read. Raises FormatError for an unknown name, or one that is only listed."""
        if name not in self.tensors:
            near = difflib.get_close_matches(name, self.tensors, n=3)
            advice = f"did you mean {', '.join(near)}?" if near else f"it has {len(self.tensors)} tensors."
            raise FormatError(f"{self.path.name} has no tensor {name!r:.100}; {advice}")
        tensor = self.tensors[name]
        if tensor.place.refusal:
            raise FormatError(f"The tensor {shown(name)!r} in {self.path.name} {tensor.place.refusal}.")
        return tensor

    def numbers(self, name: str) -> np.ndarray:
        """The values of `name` as NumPy's own numbers, in its shape: types that NumPy lacks, and quantised blocks, come
        as new float32 arrays, all others as `read` gives them. Raises what `read` raises."""
        raw, tensor = self.read(name), self.tensors[name]
        if not is_coded(tensor.dtype):
            return raw
        return decode(tensor.dtype, raw, tensor.elements).reshape(tensor.shape)


def _view(tensor: TensorInfo) -> np.ndarray:
    place, kind = tensor.place, DTYPES[tensor.dtype]
    dtype = np.dtype(kind.view).newbyteorder(">" if place.big_endian else "<")
    if place.size == 0 or tensor.elements == 0:
        return np.empty((0,) if kind.packed else tensor.shape, dtype)
    if place.packed is None:
        raw: np.ndarray = np.memmap(place.path, np.uint8, "r", place.offset, (place.size,))
    elif place.coding == "varint":
        return varints(_coded(place), tensor.elements, dtype).reshape(tensor.shape)
    else:
        raw = np.frombuffer(_inflated(place), np.uint8)
    if kind.packed:
        return raw
    flat = raw.view(dtype)
    if place.strides is None:
        return flat.reshape(tensor.shape)
    strides = tuple(step * dtype.itemsize for step in place.strides)
    # The opener has checked that the last element lies within `place.size`.
    return np.lib.stride_tricks.as_strided(flat, tensor.shape, strides, writeable=False)


def _coded(place: Place) -> bytes:
    if place.size > INFLATE_LIMIT:
        raise ResourceError(
            f"An array in {place.path} takes {place.size:,} bytes unpacked; save it uncompressed instead."
        )
    with place.path.open("rb") as file:
        file.seek(place.offset)
        return file.read(place.packed)


def _inflated(place: Place) -> bytes:
    packed = _coded(place)
    try:
        content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, place.skip + place.size)
    except zlib.error as error:
        raise FormatError(f"A compressed array in {place.path} is damaged ({error}); get the file again.") from error
    if len(content) != place.skip + place.size:
        raise FormatError(f"A compressed array in {place.path} is shorter than it claims; get the file again.")
    return content[place.skip :]
