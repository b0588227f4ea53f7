"""A tensor's values in pieces of bounded size, whatever its layout: mapped, strided, deflated, quantised."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator

import numpy as np

from cutaway.errors import FormatError
from cutaway.formats.checkpoint import Checkpoint, Place, TensorInfo
from cutaway.formats.dtypes import DTYPES, bytes_of

PIECE = 1 << 18  # elements looked at together: a megabyte of float32 stays in the cache
WHOLE_BYTES = 128 << 20  # what is deflated and strided at once has to be unpacked as a whole


def row_width(tensor: TensorInfo) -> int:
    """Elements of one entry of the first axis, or 0 where the rows are not worth a look or too wide for a piece."""
    width = math.prod(tensor.shape[1:]) if len(tensor.shape) > 1 else 0
    return width if width <= PIECE and not width * DTYPES[tensor.dtype].bits % 8 else 0


def raw_pieces(checkpoint: Checkpoint, name: str) -> Iterator[np.ndarray]:
    """Flat pieces in C order as `Checkpoint.read` shows the numbers, of whole rows where `row_width` gives a width.

    Raises what `Checkpoint.read` raises, and FormatError for what could only be read as a whole and is too large.
    """
    tensor = checkpoint.tensors[name]
    place, kind = tensor.place, DTYPES[tensor.dtype]
    width = row_width(tensor) or 256  # a multiple of every block
    elements = max(1, PIECE // width) * width
    if place.packed is not None and place.coding == "deflate" and not place.refusal:
        if place.strides is None:
            dtype = np.dtype(kind.view).newbyteorder(">" if place.big_endian else "<")
            for piece in _inflating(place, bytes_of(tensor.dtype, elements)):
                yield np.frombuffer(piece, dtype)
            return
        if place.size > WHOLE_BYTES:
            raise FormatError(f"{name!r} is compressed, and stored by columns; save it uncompressed to examine it.")
    values = checkpoint.read(name)
    yield from _slices(values, bytes_of(tensor.dtype, elements) if kind.packed else elements)


def _slices(values: np.ndarray, elements: int) -> Iterator[np.ndarray]:
    if values.flags.c_contiguous:
        flat = values.reshape(-1)
        for start in range(0, flat.size, elements):
            yield flat[start : start + elements]
        return
    width = math.prod(values.shape[1:])
    if width > elements:
        for part in values:
            yield from _slices(part, elements)
        return
    rows = max(1, elements // width)
    for start in range(0, len(values), rows):
        yield np.ascontiguousarray(values[start : start + rows]).reshape(-1)


def _inflating(place: Place, size: int) -> Iterator[bytes]:
    """The array behind `place.skip` in pieces of `size` bytes; never more than it claims."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    skip, left, held = place.skip, place.size, b""
    with place.path.open("rb") as file:
        file.seek(place.offset)
        unread, fresh = place.packed or 0, b""
        while left:
            if not fresh and unread:
                fresh = file.read(min(unread, 1 << 16))
                unread -= len(fresh) or unread
            try:
                held += inflater.decompress(fresh, size + skip - len(held))
            except zlib.error as error:
                raise FormatError(f"A compressed array in {place.path} is damaged ({error}).") from error
            fresh = inflater.unconsumed_tail
            want = min(size, left)
            if len(held) >= skip + want:
                yield held[skip : skip + want]
                held, skip, left = held[skip + want :], 0, left - want
            elif inflater.eof or not (fresh or unread):
                raise FormatError(f"A compressed array in {place.path} is shorter than it claims; get the file again.")
